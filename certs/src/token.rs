//! Enrolment tokens: 256 random bits that let one host enrol once. Only their hash is kept.

use sha2::{Digest, Sha256};

use crate::CertsError;

/// What every token begins with.
const PREFIX: &str = "fw1-";
/// How many random bytes are in one.
const BYTES: usize = 32;

/// A token, to be shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new token.
    pub fn generate() -> Result<Self, CertsError> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", hex::encode(bytes))))
    }

    /// The token as it is handed over.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether a text has the shape of a token.
    pub fn is_shaped(text: &str) -> bool {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == 2 * BYTES && rest.bytes().all(hex))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_nothing_else_have_the_shape_of_one() {
        let token = Token::generate().expect("random numbers");
        assert!(Token::is_shaped(token.reveal()));
        for other in ["", "fw1-", "fw1-00", &token.reveal()[1..], &token.reveal().to_uppercase()] {
            assert!(!Token::is_shaped(other), "{other:?}");
        }
    }
}
