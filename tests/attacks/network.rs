//! Whoever reaches the coordinator's port tries to use it up.
