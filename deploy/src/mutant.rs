//! Known-bad changes of the machines, one at a time, to prove that the simulation would see them.
//!
//! Without the feature `mutants`, which no program that is shipped has, nothing of this is there.

use strum::{EnumIter, IntoStaticStr};

/// A known-bad change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Mutant {
    /// The coordinator goes on although an entry was not written.
    SkipDurableWrite,
    /// A torn entry at the end of the journal is taken for whole.
    TakeTornEntry,
    /// Hosts that cannot be reached are forgotten in the budget.
    ForgetUnreachable,
    /// `max_unavailable` holds nothing back.
    IgnoreBudget,
    /// A host obeys commands older than those it has obeyed.
    AcceptOlderGeneration,
    /// A host obeys a command each time that it comes.
    ObeyTwice,
    /// A host obeys what comes late for a step that was undone.
    ObeyLate,
    /// A host takes a confirmation after its dead-man deadline.
    ConfirmAfterDeadline,
    /// A host never puts itself back.
    NoDeadMan,
    /// A host that was confirmed puts itself back all the same.
    RevertConfirmed,
    /// A host takes what it put back for what it had switched to.
    ForgetRestored,
    /// A group begins before the one before it is healthy.
    SkipGroupGate,
    /// A server begins before those have been started that it starts after.
    StartTooEarly,
    /// A rollback leaves confirmed instances as they are.
    RollBackHalf,
    /// What is held starts new things all the same.
    IgnoreHold,
    /// Nothing ends a deployment that makes no progress.
    NoProgressDeadline,
    /// Two deployments may work on one instance.
    TwoOwners,
    /// A report about an earlier attempt counts for the present one.
    MixAttempts,
    /// After a restart, hosts are taken for connected that were.
    RememberConnections,
    /// A host obeys what comes under an intent whose deployment has ended there.
    ObeySpentIntent,
}

#[cfg(feature = "mutants")]
mod active {
    use std::cell::Cell;

    thread_local! {
        pub(super) static ACTIVE: Cell<Option<super::Mutant>> = const { Cell::new(None) };
    }
}

/// Makes a change active for this thread, or none.
#[cfg(feature = "mutants")]
pub fn activate(mutant: Option<Mutant>) {
    active::ACTIVE.with(|active| active.set(mutant));
}

/// Whether a change is active.
#[cfg(feature = "mutants")]
pub fn is_active(mutant: Mutant) -> bool {
    active::ACTIVE.with(|active| active.get() == Some(mutant))
}

/// Whether a change is active: never, in a program that is shipped.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_active(_: Mutant) -> bool {
    false
}
