//! The agent itself as a server: what runs is this process.

use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::release::Release;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Runtime, State};
use crate::handover;
use crate::layout::ServerLayout;
use crate::stage;

/// The agent of this host.
pub(super) struct Agent;

impl Runtime for Agent {
    fn start<'a>(&'a self, server: &'a ServerLayout, release: &'a Release) -> BoxFuture<'a, Result<(), Failure>> {
        async { handover::switch(server, release) }.boxed()
    }

    /// There is nothing to be stopped: who would start the next one?
    fn stop<'a>(&'a self, _: &'a ServerLayout, _: bool) -> BoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn forget<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, Result<(), Failure>> {
        async { handover::leave(server) }.boxed()
    }

    fn state<'a>(&'a self, server: &'a ServerLayout) -> BoxFuture<'a, State> {
        let release = stage::load(&server.current_release());
        let runs = release.is_some_and(|release| handover::is_running(server, &release));
        let pid = self.pid(server).filter(|_| runs);
        async move { State { runs, kept: true, pid, ..State::default() } }.boxed()
    }

    fn pid(&self, _: &ServerLayout) -> Option<i32> {
        i32::try_from(std::process::id()).ok()
    }

    /// Its log is the host's to keep.
    fn output(&self, _: &ServerLayout, _: usize, _: bool) -> Vec<String> {
        Vec::new()
    }
}
