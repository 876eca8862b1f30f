//! Connections between hosts and the coordinator: a message arrives late, twice, or after another that was sent
//! later; it is lost only with its connection, which each side notices in its own time.

use std::collections::{BTreeMap, BTreeSet};

use fleetwright_deploy::admission::Signed;
use fleetwright_deploy::deployment::Order;
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::ids::{CommandId, Generation, HostName, ReleaseId, ServerName};
use fleetwright_deploy::instance::{StepKey, StepReport};
use fleetwright_deploy::time::Timestamp;

/// How long a side hears nothing before it gives a connection up, in milliseconds.
pub(super) const IDLE_MS: i64 = 10_000;

/// Tells connections apart.
pub(super) type ConnectionId = u64;

/// A command, as much of it as matters once its signatures are verified.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) id: CommandId,
    pub(super) generation: Generation,
    pub(super) intent: Signed,
    pub(super) not_after: Timestamp,
    pub(super) server: ServerName,
    pub(super) key: StepKey,
    pub(super) order: Order,
}

#[derive(Clone, Debug)]
pub(super) enum Message {
    Hello,
    Welcome,
    Command(Box<Command>),
    /// What a host is to know about an operator's intent, and the generation in which it was told.
    Intent {
        intent: Signed,
        ended: bool,
        generation: Generation,
    },
    Refused {
        command: Box<Command>,
        failure: Failure,
    },
    Stale(Generation),
    Report {
        number: u64,
        server: ServerName,
        key: StepKey,
        report: StepReport,
    },
    Heard {
        number: u64,
    },
    Health {
        server: ServerName,
        release: ReleaseId,
        report: HealthReport,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Host,
    Coordinator,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Host => Self::Coordinator,
            Self::Coordinator => Self::Host,
        }
    }
}

/// A connection, and which sides still hold it for open.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) host: HostName,
    pub(super) open: BTreeSet<Side>,
}

#[derive(Default)]
pub(super) struct Network {
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) partitioned: BTreeMap<HostName, i64>,
    /// Hosts whose next message is lost.
    pub(super) losing: BTreeSet<HostName>,
    next: ConnectionId,
}

impl Network {
    pub(super) fn connect(&mut self, host: HostName) -> ConnectionId {
        self.next += 1;
        let open = [Side::Host, Side::Coordinator].into();
        self.connections.insert(self.next, Connection { host, open });
        self.next
    }

    pub(super) fn is_partitioned(&self, host: &HostName, now: i64) -> bool {
        self.partitioned.get(host).is_some_and(|until| now < *until)
    }

    pub(super) fn is_open(&self, id: ConnectionId, side: Side) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.open.contains(&side))
    }

    /// One side gives a connection up; whether it was open for it.
    pub(super) fn close(&mut self, id: ConnectionId, side: Side) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let was_open = connection.open.remove(&side);
        if connection.open.is_empty() {
            self.connections.remove(&id);
        }
        was_open
    }
}
