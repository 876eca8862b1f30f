//! What a snapshot keeps of an instance besides its release.

use serde::{Deserialize, Serialize};

/// A database that is dumped before a step, and restored when the step is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// The program that writes the dump to its standard output, and its arguments.
    pub dump: Vec<String>,
    /// The program that reads it from its standard input, and its arguments.
    pub restore: Vec<String>,
}
