//! The one place where the agent reads the clock.

use fleetwright_deploy::time::Timestamp;
use fleetwright_protocol::Clock;

/// Now.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The clock of this machine.
pub(crate) fn system() -> Clock {
    Clock::new(now)
}
