//! Work that waits for disks, in threads of its own, beside everything else.
//!
//! A thread cannot be ended from outside. So long work asks between any two entries or pieces whether it is still wanted
//! ([`go_on`]): it is not once what waits for it was dropped. And whatever comes next for the same server waits until the
//! thread has ended ([`Turns`]): two pieces of work never change the same folders.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleetwright_deploy::failure::{Failure, FailureKind};
use fleetwright_deploy::ids::ServerName;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

/// How long a turn is waited for before that is told.
const TOLD_AFTER: Duration = Duration::from_secs(10);

thread_local! {
    /// Whether the work of this thread was given up.
    static GIVEN_UP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

tokio::task_local! {
    /// The turn of the server that is worked on: each thread that is begun meanwhile holds it as well.
    static TURN: Arc<OwnedMutexGuard<()>>;
}

/// Does work in a thread of its own. Once this is dropped, the work is given up.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let waiting = Waiting::default();
    let (given_up, turn) = (waiting.given_up.clone(), TURN.try_with(Arc::clone).ok());
    let thread = tokio::task::spawn_blocking(move || {
        // Let go last, when nothing of the work is left.
        let _turn = turn;
        let _asked = Asked::about(given_up);
        go_on().map_err(|error| broken(&error))?;
        work()
    });
    thread.await.unwrap_or_else(|error| Err(broken(&error)))
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::DeploymentError, "agent", error.to_string())
}

/// Whether the work of this thread is still wanted: an error where it was given up.
pub(crate) fn go_on() -> io::Result<()> {
    let given_up = GIVEN_UP.with_borrow(|of| of.as_ref().is_some_and(|of| of.load(Ordering::Relaxed)));
    if given_up { Err(io::Error::other("it was given up, since something else comes in its place")) } else { Ok(()) }
}

/// Whoever waits for work. Dropped, nobody does.
#[derive(Default)]
struct Waiting {
    given_up: Arc<AtomicBool>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// The thread's answer to [`go_on`], until this is dropped: threads are used again.
struct Asked;

impl Asked {
    fn about(given_up: Arc<AtomicBool>) -> Self {
        GIVEN_UP.set(Some(given_up));
        Self
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        GIVEN_UP.set(None);
    }
}

/// The turns of servers: one piece of work at a time on each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<ServerName, Arc<tokio::sync::Mutex<()>>>>>);

impl Turns {
    /// Does work once everything before it of the same server has ended, threads and all.
    pub(crate) fn take<T, W: Future<Output = T>>(
        &self,
        server: &ServerName,
        work: W,
    ) -> impl Future<Output = T> + use<T, W> {
        let (door, server) = (self.door(server), server.clone());
        async move {
            let mut turn = std::pin::pin!(door.lock_owned());
            let turn = match timeout(TOLD_AFTER, &mut turn).await {
                Ok(turn) => turn,
                Err(_) => {
                    tracing::warn!(%server, "what was ended is still at work, perhaps it waits for a disk: it is waited for");
                    turn.await
                }
            };
            TURN.scope(Arc::new(turn), work).await
        }
    }

    /// The same for work that cannot wait without an end; nothing when what is before it goes on for longer.
    pub(crate) fn take_within<T, W: Future<Output = T>>(
        &self,
        server: &ServerName,
        patience: Duration,
        work: W,
    ) -> impl Future<Output = Option<T>> + use<T, W> {
        let door = self.door(server);
        async move {
            let turn = timeout(patience, door.lock_owned()).await.ok()?;
            Some(TURN.scope(Arc::new(turn), work).await)
        }
    }

    fn door(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default().clone()
    }
}

/// Does something as work that was given up.
#[cfg(test)]
pub(crate) fn as_given_up<T>(work: impl FnOnce() -> T) -> T {
    let _asked = Asked::about(Arc::new(AtomicBool::new(true)));
    work()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_was_given_up_hears_of_it_and_only_the_next_of_its_server_waits_until_it_has_ended() {
        let turns = Turns::default();
        let [one, other] = ["one", "other"].map(|name| name.parse::<ServerName>().expect("name"));
        let ((began, begun), (release, released)) = (oneshot::channel(), oneshot::channel::<()>());
        let heard = Arc::new(AtomicBool::new(false));
        let hears = heard.clone();
        let first = tokio::spawn(turns.take(
            &one,
            aside(move || {
                assert!(go_on().is_ok(), "somebody waits for it");
                began.send(()).expect("heard");
                released.blocking_recv().expect("released");
                hears.store(go_on().is_err(), Ordering::Relaxed);
                Ok(())
            }),
        ));
        begun.await.expect("begun");
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        let mut next = std::pin::pin!(turns.take(&one, async { heard.load(Ordering::Relaxed) }));
        assert!(next.as_mut().now_or_never().is_none(), "the thread has not ended");
        assert!(turns.take(&other, async { true }).now_or_never().is_some(), "another server does not wait");
        release.send(()).expect("it waits");
        assert!(timeout(PATIENCE, next).await.expect("in time"), "the thread has heard of it before");
    }

    #[tokio::test]
    async fn a_thread_that_is_used_again_does_its_next_work() {
        as_given_up(|| go_on().expect_err("given up"));
        go_on().expect("that is over");
        aside(|| go_on().map_err(|error| broken(&error))).await.expect("it goes on");
    }
}
