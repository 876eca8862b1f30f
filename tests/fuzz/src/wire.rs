//! What peers send: frames, greetings, reports and requests to enrol. What is taken of them is small enough to be kept, and
//! what was written once is read as it was.

use std::fmt::Debug;

use fleetwright_deploy::failure::OUTPUT_LINES_MAX;
use fleetwright_deploy::health::HealthReport;
use fleetwright_deploy::ids::InstanceId;
use fleetwright_deploy::limits::last_lines;
use fleetwright_deploy::reported;
use fleetwright_protocol::enrol::{EnrolReply, EnrolRequest};
use fleetwright_protocol::frame::{
    COMMAND_BYTES_MAX, ENROL_BYTES_MAX, MESSAGE_BYTES_MAX, decode, encode, length_within,
};
use fleetwright_protocol::report::{AgentMessage, AgentMessageV1, CoordinatorReply};
use fleetwright_protocol::{CommandReply, Envelope};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of JSON that a greeting, a report of health or a step may become in the journal: texts grow at most sixfold
/// when they are written as JSON.
const EVENT_BYTES_MAX: usize = 6 * 512 * 1024;

/// The message, if these bytes are one: then writing and reading it again gives the same.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], limit: usize) -> Option<T> {
    let message: T = decode(bytes).ok()?;
    let Ok(written) = encode(&message, limit) else { return Some(message) };
    assert_eq!(decode::<T>(&written).as_ref().ok(), Some(&message));
    Some(message)
}

/// A frame of whatever kind of message.
pub fn frame(data: &[u8]) {
    let Some((length, payload)) = data.split_first_chunk() else { return };
    if let Ok(bytes) = length_within(*length, COMMAND_BYTES_MAX) {
        let payload = &payload[..bytes.min(payload.len())];
        let _ = message::<Envelope>(payload, COMMAND_BYTES_MAX);
        let _ = message::<CommandReply>(payload, MESSAGE_BYTES_MAX);
        let _ = message::<CoordinatorReply>(payload, MESSAGE_BYTES_MAX);
        let _ = message::<EnrolReply>(payload, MESSAGE_BYTES_MAX);
    }
}

/// A greeting: what is kept of it has limits, and is as it was when it is cut again.
pub fn greeting(data: &[u8]) {
    let Some(AgentMessage::V1(message)) = message(data, MESSAGE_BYTES_MAX) else { return };
    let view = match message {
        AgentMessageV1::Hello { view, .. } => view.into(),
        AgentMessageV1::Greeting { view, .. } => view,
        _ => return,
    };
    let view = view.bounded();
    small(&view);
    assert_eq!(view.clone().bounded(), view);
}

/// A report of an agent: of a step, or of health.
pub fn report(data: &[u8]) {
    let Some(AgentMessage::V1(message)) = message(data, MESSAGE_BYTES_MAX) else { return };
    match message {
        AgentMessageV1::Step { server, report, .. } => {
            let Ok(host) = "h1".parse() else { return };
            let on = InstanceId::new(server, host);
            let cut = reported::step(report, &on);
            small(&cut);
            assert_eq!(reported::step(cut.clone(), &on), cut);
        }
        AgentMessageV1::Health { report, output, .. } => condition(report.into(), output),
        AgentMessageV1::Condition { report, output, .. } => condition(report, output),
        _ => {}
    }
}

fn condition(report: HealthReport, output: Vec<String>) {
    small(&last_lines(output, OUTPUT_LINES_MAX));
    let cut = report.bounded();
    small(&cut);
    assert_eq!(cut.clone().bounded(), cut);
}

/// A request to enrol.
pub fn enrol_request(data: &[u8]) {
    let _ = message::<EnrolRequest>(data, ENROL_BYTES_MAX);
}

fn small(event: &impl Serialize) {
    let bytes = encode(event, usize::MAX).map_or(0, |bytes| bytes.len());
    assert!(bytes < EVENT_BYTES_MAX, "{bytes} bytes would be kept");
}
