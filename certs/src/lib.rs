//! Who is who in a fleet: its certificate authority, the identities it gives out, enrolment tokens, and the
//! ed25519 keys that sign commands and intents.
//!
//! This crate decides nothing. It draws random numbers and handles keys; it opens no socket, reads no clock,
//! and touches no file but through [`store`].

mod authority;
mod identity;
mod pinned;
mod signing;
pub mod store;
mod token;

pub use authority::{Authority, Certificate, Enrolment, fingerprint, key_and_request, not_after_unix_s};
pub use identity::{COORDINATOR_DNS_NAME, Identity, Role};
pub use pinned::PinnedAuthority;
pub use signing::{BadSignature, KeyId, Signature, Signer, TrustedKeys};
pub use token::Token;

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A key or certificate could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A certificate is not one of this fleet's.
    #[error("certificate: {0}")]
    Identity(String),
    /// A signing key could not be read.
    #[error("signing key: {0}")]
    Key(String),
    /// A fingerprint is not `sha256:` and 64 hexadecimal digits.
    #[error("`{0}` is no fingerprint: it must be sha256: and 64 hexadecimal digits")]
    Fingerprint(String),
    /// The operating system gave no random numbers.
    #[error("random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}
