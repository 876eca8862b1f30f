//! The ed25519 keys (RFC 8032) that sign commands and intents. Every signature is made for one purpose: the
//! purpose is signed along, so that a signature for one can never pass for the other.

use std::collections::BTreeMap;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::CertsError;

/// Which key signed: the start of SHA-256 of the public key, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    fn of(key: &VerifyingKey) -> Self {
        Self(hex::encode(&Sha256::digest(key.as_bytes())[..8]))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A signature, and which key made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The key.
    pub key_id: KeyId,
    /// The signature's 64 bytes.
    pub bytes: Vec<u8>,
}

/// A private key that signs for one purpose.
pub struct Signer {
    key: SigningKey,
    purpose: &'static str,
}

impl Signer {
    /// A new key for `purpose`.
    pub fn generate(purpose: &'static str) -> Result<Self, CertsError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self { key: SigningKey::from_bytes(&secret), purpose })
    }

    /// The key in this PKCS #8 PEM text.
    pub fn from_pem(pem: &str, purpose: &'static str) -> Result<Self, CertsError> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|error| CertsError::Key(error.to_string()))?;
        Ok(Self { key, purpose })
    }

    /// The private key as PKCS #8 PEM.
    pub fn to_pem(&self) -> Result<String, CertsError> {
        let pem = self.key.to_pkcs8_pem(LineEnding::LF).map_err(|error| CertsError::Key(error.to_string()))?;
        Ok(pem.to_string())
    }

    /// The public key as PEM.
    pub fn public_pem(&self) -> Result<String, CertsError> {
        self.key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|error| CertsError::Key(error.to_string()))
    }

    /// Signs these bytes.
    pub fn sign(&self, payload: &[u8]) -> Signature {
        let signature = self.key.sign(&message(self.purpose, payload));
        Signature { key_id: KeyId::of(&self.key.verifying_key()), bytes: signature.to_bytes().to_vec() }
    }
}

/// The public keys that may sign for one purpose.
#[derive(Clone, Debug)]
pub struct TrustedKeys {
    keys: BTreeMap<KeyId, VerifyingKey>,
    purpose: &'static str,
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// The key is not one of those trusted for this purpose.
    #[error("it is signed with the key {0}, which may not sign this")]
    UnknownKey(KeyId),
    /// The signature does not belong to these bytes.
    #[error("its signature does not fit its content")]
    Mismatch,
}

impl TrustedKeys {
    /// Trusts these public keys (PEM) for `purpose`.
    pub fn from_pems<'a>(pems: impl IntoIterator<Item = &'a str>, purpose: &'static str) -> Result<Self, CertsError> {
        let mut keys = BTreeMap::new();
        for pem in pems {
            let key = VerifyingKey::from_public_key_pem(pem).map_err(|error| CertsError::Key(error.to_string()))?;
            keys.insert(KeyId::of(&key), key);
        }
        Ok(Self { keys, purpose })
    }

    /// Whether a trusted key signed exactly these bytes (RFC 8032 with the strict checks).
    pub fn verify(&self, payload: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = self.keys.get(&signature.key_id).ok_or_else(|| BadSignature::UnknownKey(signature.key_id.clone()))?;
        let parsed = ed25519_dalek::Signature::from_slice(&signature.bytes).map_err(|_| BadSignature::Mismatch)?;
        key.verify_strict(&message(self.purpose, payload), &parsed).map_err(|_| BadSignature::Mismatch)
    }
}

fn message(purpose: &str, payload: &[u8]) -> Vec<u8> {
    [b"fleetwright:", purpose.as_bytes(), b"\0", payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_counts_only_for_its_bytes_its_key_and_its_purpose() {
        let signer = Signer::generate("command").expect("key");
        let public = signer.public_pem().expect("pem");
        let trusted = TrustedKeys::from_pems([public.as_str()], "command").expect("keys");
        let signature = signer.sign(b"stop");
        assert_eq!(trusted.verify(b"stop", &signature), Ok(()));
        assert_eq!(trusted.verify(b"stop!", &signature), Err(BadSignature::Mismatch));
        let other_purpose = TrustedKeys::from_pems([public.as_str()], "intent").expect("keys");
        assert_eq!(other_purpose.verify(b"stop", &signature), Err(BadSignature::Mismatch));
        let stranger = Signer::generate("command").expect("key").sign(b"stop");
        assert!(matches!(trusted.verify(b"stop", &stranger), Err(BadSignature::UnknownKey(_))));
        let cut = Signature { bytes: signature.bytes[..63].to_vec(), ..signature };
        assert_eq!(trusted.verify(b"stop", &cut), Err(BadSignature::Mismatch));
    }

    #[test]
    fn a_key_reads_back_from_its_pem() {
        let signer = Signer::generate("intent").expect("key");
        let again = Signer::from_pem(&signer.to_pem().expect("pem"), "intent").expect("read");
        assert_eq!(signer.sign(b"x"), again.sign(b"x"));
    }
}
