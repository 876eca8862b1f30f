//! What travels between coordinator and agents: versioned messages in bounded frames, commands in signed
//! envelopes, and the settings of the QUIC endpoints; and the clock and the log file that both programs have. This crate
//! decides nothing.
//!
//! Agents dial. Each message or command has a bidirectional stream of its own: one frame there, one frame back.

pub mod artifact;
pub mod bounds;
pub mod clock;
pub mod command;
pub mod endpoint;
pub mod enrol;
pub mod frame;
pub mod log_file;
pub mod report;
pub mod snapshot;

pub use clock::Clock;
pub use command::{
    Command, CommandBody, CommandReply, Envelope, Intent, Rejection, StepOrder, VerifiedCommand, Verifier,
};
pub use frame::{FrameError, read_frame, write_frame};

/// ALPN of the protocol between agents and coordinator; both sides present certificates.
pub const ALPN: &[u8] = b"fleetwright/1";
/// ALPN of enrolment, the only thing a peer without a certificate may do.
pub const ALPN_ENROL: &[u8] = b"fleetwright-enrol/1";

/// QUIC application close codes, for people who look at logs.
pub mod close {
    /// The peer is leaving in good order.
    pub const GOODBYE: u32 = 0;
    /// The peer presented no certificate, or one that does not let it do this.
    pub const NOT_PERMITTED: u32 = 1;
    /// The peer sent something that is no message of this protocol.
    pub const BAD_MESSAGE: u32 = 2;
    /// The peer's certificate is over.
    pub const EXPIRED: u32 = 4;
    /// A newer connection of the same host took over.
    pub const SUPERSEDED: u32 = 3;
    /// There is no place for the peer now; it may come back.
    pub const BUSY: u32 = 5;
}
