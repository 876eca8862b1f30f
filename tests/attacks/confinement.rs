//! A server, its packages, its checks and its dump hooks try to reach what is not theirs.
