//! Texts of others on the operator's terminal, and clients that try to keep a bridge for themselves.
