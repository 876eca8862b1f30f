//! Enrolment tokens: 256 random bits that let one host enrol once. Only their hash is kept.

use sha2::{Digest, Sha256};

use crate::CertsError;

/// A token, to be shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token.
    pub fn generate() -> Result<Self, CertsError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("fw1-{}", hex::encode(bytes))))
    }

    /// The token as it is handed over.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// SHA-256 of a token's text, in hexadecimal.
    pub fn sha256(text: &str) -> String {
        hex::encode(Sha256::digest(text.as_bytes()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}
