//! The clock that a program judges times by. The program's own is the only one in production; a simulation hands in
//! another, so that commands, certificates and deadlines live in its time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fleetwright_deploy::time::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Tells the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that tells what this function tells.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// Now, in seconds since 1970, as certificates count.
    pub fn now_unix_s(&self) -> i64 {
        self.now().unix_ms() / 1_000
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = Duration::from_millis(u64::try_from(self.now().unix_ms()).ok()?);
        Some(UnixTime::since_unix_epoch(since_epoch))
    }
}
