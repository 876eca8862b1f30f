//! The one place where the coordinator reads the clock.

use fleetwright_deploy::time::Timestamp;

/// Now.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// Now, in seconds since 1970, as certificates count.
pub(crate) fn now_unix_s() -> i64 {
    now().unix_ms() / 1_000
}
