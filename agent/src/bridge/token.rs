//! The token that a bridge asks for. The bridge needs no more than its hash: that is what staging writes into its
//! environment, so that neither the server behind it nor anybody else reads the token there.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use fleetwright_deploy::release::{BRIDGE_TOKEN_CHARACTERS_MIN, BRIDGE_TOKEN_VARIABLE};

/// What a hash begins with where a token may stand; 64 hexadecimal digits follow. An older bridge takes it for the token,
/// which nobody knows, and so lets nobody in.
const HASH_PREFIX: &str = "blake3:";
/// What the hash is for (BLAKE3's key derivation): a hash of the same token made for something else is of no use here.
const CONTEXT: &str = "fleetwright 2026 token of a bridge";

/// The hash of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(blake3::Hash);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{BRIDGE_TOKEN_VARIABLE} has fewer than {BRIDGE_TOKEN_CHARACTERS_MIN} characters")]
pub(crate) struct ShortToken;

impl Token {
    /// The token, or its hash as [`hide`] has written it.
    pub(crate) fn parse(text: &str) -> Result<Self, ShortToken> {
        if let Some(hash) = text.strip_prefix(HASH_PREFIX).and_then(|hex| blake3::Hash::from_hex(hex).ok()) {
            return Ok(Self(hash));
        }
        if text.chars().count() < BRIDGE_TOKEN_CHARACTERS_MIN {
            return Err(ShortToken);
        }
        Ok(Self::of(text.as_bytes()))
    }

    fn of(token: &[u8]) -> Self {
        Self(blake3::derive_key(CONTEXT, token).into())
    }

    /// Whether a request presents it (RFC 6750, section 2.1): the scheme in any case (RFC 9110, section 11.1), spaces,
    /// the token.
    pub(crate) fn is_presented(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(presented), None) = (all.next(), all.next()) else { return false };
        let Some((scheme, token)) = presented.as_bytes().split_at_checked("bearer".len()) else { return false };
        // Hashes are compared, so that the time it takes tells nothing.
        scheme.eq_ignore_ascii_case(b"bearer") && token.starts_with(b" ") && Self::of(token.trim_ascii()).0 == self.0
    }
}

/// Puts the hash of the token into an environment in place of the token.
pub(crate) fn hide<K: Ord + AsRef<str>>(environment: &mut BTreeMap<K, String>) -> Result<(), ShortToken> {
    let own = environment.iter_mut().find(|(name, _)| name.as_ref() == BRIDGE_TOKEN_VARIABLE);
    if let Some((_, value)) = own {
        *value = format!("{HASH_PREFIX}{}", Token::parse(value)?.0.to_hex());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TOKEN: &str = "a-token-of-more-than-sixteen-characters";

    fn presents(token: &Token, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
        token.is_presented(&headers)
    }

    #[test]
    fn the_scheme_may_be_in_any_case_and_the_token_may_not() {
        let token = Token::parse(TOKEN).expect("long enough");
        for right in ["Bearer", "bearer", "BEARER", "bEARER "] {
            assert!(presents(&token, &format!("{right} {TOKEN}")), "{right}");
        }
        let upper = TOKEN.to_uppercase();
        for wrong in
            [TOKEN, "", "Bearer", &format!("Bearer{TOKEN}"), &format!("Basic {TOKEN}"), &format!("Bearer {upper}")]
        {
            assert!(!presents(&token, wrong), "{wrong}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer a-token-of-more-than-sixteen-characters"));
        }
        assert!(!token.is_presented(&twice) && !token.is_presented(&HeaderMap::new()));
    }

    #[test]
    fn the_hash_stands_for_the_token_and_is_none_itself() {
        let mut environment = BTreeMap::from([(BRIDGE_TOKEN_VARIABLE, TOKEN.to_owned()), ("OTHER", TOKEN.to_owned())]);
        hide(&mut environment).expect("long enough");
        let hidden = environment[BRIDGE_TOKEN_VARIABLE].clone();
        assert!(!hidden.contains(TOKEN) && environment["OTHER"] == TOKEN);
        let token = Token::parse(&hidden).expect("a hash");
        assert_eq!(Ok(token), Token::parse(TOKEN));
        assert!(presents(&token, &format!("Bearer {TOKEN}")) && !presents(&token, &format!("Bearer {hidden}")));
        hide(&mut environment).expect("twice");
        assert_eq!(environment[BRIDGE_TOKEN_VARIABLE], hidden, "hiding it again changes nothing");
    }

    #[test]
    fn a_short_token_is_refused() {
        let mut environment = BTreeMap::from([(BRIDGE_TOKEN_VARIABLE, "short".to_owned())]);
        assert_eq!(hide(&mut environment), Err(ShortToken));
        assert_eq!(Token::parse("blake3:rubbish"), Err(ShortToken));
        assert!(hide(&mut BTreeMap::<String, String>::new()).is_ok());
    }
}
