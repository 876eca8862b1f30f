//! A registry of a package's own, with what it is asked with. A host asks it, and no other, for the package.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::secret::{MissingSecret, reveal, secrets_in};

/// Where a package comes from that is not of its kind's public registry. Its texts may hold markers of secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Its URL: of a simple index (PEP 503), or of a registry of npm's. Of an image, the name says it.
    pub url: Option<String>,
    /// The user that it is asked as (RFC 7617).
    pub username: Option<String>,
    /// That user's password.
    pub password: Option<String>,
    /// What it is asked with instead (RFC 6750).
    pub token: Option<String>,
    /// Whether what it does not have, other than the package itself, may come from the public registry.
    pub public: bool,
}

impl Registry {
    /// Its texts with the secrets put in.
    pub fn revealed(&self, values: &BTreeMap<String, String>) -> Result<Self, MissingSecret> {
        let of = |text: &Option<String>| text.as_ref().map(|text| reveal(text, values)).transpose();
        Ok(Self {
            url: self.url.clone(),
            username: of(&self.username)?,
            password: of(&self.password)?,
            token: of(&self.token)?,
            public: self.public,
        })
    }

    /// The names of the secrets that its texts name.
    pub fn secrets(&self) -> Vec<String> {
        let texts = [&self.username, &self.password, &self.token].into_iter().flatten();
        texts.flat_map(|text| secrets_in(text)).collect()
    }
}
