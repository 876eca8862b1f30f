//! Somebody has the coordinator's keys, and old messages.
