//! A server swaps what is below its own folders while root works there.
