//! Checks that run a program: by its exit status, as a Nagios plugin, and by what systemd says of a unit.

use std::process::Stdio;
use std::time::Duration;

use fleetwright_deploy::health::CheckOutcome;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Found, Place, shown};
use crate::confine;
use crate::process::KillGroup;
use crate::supervise::inherited_path;

/// Most of a program's output that is looked at, in bytes; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;
/// Most measurements that are taken from a plugin.
const PERFORMANCE_MAX: usize = 64;
/// How long the output of a program that has ended may still come, from what it left behind.
const LEFTOVER_TIMEOUT: Duration = Duration::from_millis(200);

/// What a program did.
struct Ended {
    exit: std::process::ExitStatus,
    stdout: String,
    stderr: String,
}

/// Passes when the program exits with 0.
pub(super) async fn check(command: &[String], place: &Place) -> Result<String, String> {
    let program = command.first().map_or("", String::as_str);
    let ended = run(command, confined(command, place)?).await?;
    if ended.exit.success() {
        return Ok(format!("`{program}` succeeded"));
    }
    let last = [&ended.stderr, &ended.stdout].into_iter().find_map(|text| text.trim().lines().last());
    let last = last.map(|line| format!(": {line}")).unwrap_or_default();
    Err(format!("`{program}` failed with {}{last}", ended.exit))
}

/// Runs a program that speaks as the Monitoring Plugins Development Guidelines say: exit status 0, 1, 2 and 3 are OK,
/// WARNING, CRITICAL and UNKNOWN; the first line of output is for people, and performance data follows `|`.
pub(super) async fn plugin(command: &[String], place: &Place) -> Found {
    let ended = match confined(command, place) {
        Ok(prepared) => run(command, prepared).await,
        Err(message) => Err(message),
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(message) => return super::plain(Err(message)),
    };
    let (text, performance) = split(&ended.stdout);
    let message = match (text.is_empty(), ended.stderr.trim().lines().last()) {
        (false, _) => shown(&text),
        (true, Some(line)) => shown(line),
        (true, None) => format!("`{}` printed nothing", command.first().map_or("", String::as_str)),
    };
    let outcome = match ended.exit.code() {
        Some(0) => CheckOutcome::Passing { message },
        Some(1) => CheckOutcome::Warning { message },
        Some(2) => CheckOutcome::Failing { message },
        Some(3) => CheckOutcome::Failing { message: format!("unknown: {message}") },
        _ => CheckOutcome::Failing { message: format!("{} is no status of a plugin: {message}", ended.exit) },
    };
    Found { outcome, mcp: None, performance }
}

/// Passes when the unit is active.
pub(super) async fn unit(unit: &str) -> Result<String, String> {
    let words = ["systemctl", "show", "--property=ActiveState,SubState", "--", unit];
    let command: Vec<String> = words.into_iter().map(str::to_owned).collect();
    // That is the host's own program, and asks the host.
    let mut asking = Command::new(&command[0]);
    asking.args(&command[1..]);
    let ended = run(&command, asking).await?;
    let property = |name: &str| {
        let mut lines = ended.stdout.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let (active, sub) = (property("ActiveState"), property("SubState"));
    match active {
        "active" => Ok(format!("{unit} is active ({sub})")),
        "" => Err(format!("systemd does not say anything of {unit}: {}", ended.stderr.trim())),
        other => Err(format!("{unit} is {other} ({sub})")),
    }
}

/// The text for people, and the measurements, of a plugin's output.
fn split(output: &str) -> (String, Vec<String>) {
    let mut lines = output.lines();
    let first = lines.next().unwrap_or_default();
    let (text, data) = first.split_once('|').unwrap_or((first, ""));
    let mut data = data.to_owned();
    // Longer output may hold more measurements behind a second bar.
    if let Some((_, more)) = lines.collect::<Vec<_>>().join("\n").split_once('|') {
        data.push(' ');
        data.push_str(more);
    }
    (text.trim().to_owned(), measurements(&data))
}

/// `'label'=value[unit];[warn];[crit];[min];[max]`, separated by spaces; a quoted label may hold spaces.
fn measurements(data: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut one, mut quoted) = (String::new(), false);
    for c in data.chars().chain([' ']) {
        match c {
            '\'' => {
                quoted = !quoted;
                one.push(c);
            }
            c if c.is_whitespace() && !quoted => {
                if one.contains('=') && found.len() < PERFORMANCE_MAX {
                    found.push(shown(&one));
                }
                one.clear();
            }
            c => one.push(c),
        }
    }
    found
}

/// A program of a check, as the server's user, and no more than the server may do. It is looked for on the host.
fn confined(command: &[String], place: &Place) -> Result<Command, String> {
    let program = command.first().ok_or_else(|| "the command is empty".to_owned())?;
    let path = inherited_path();
    confine::find(program, &path).map_err(|error| format!("`{program}` could not be started: {error}"))?;
    confine::beside(&place.server, &place.release, command, &path).map_err(|failure| failure.message)
}

async fn run(command: &[String], mut prepared: Command) -> Result<Ended, String> {
    let program = command.first().map_or("", String::as_str);
    let mut child = prepared
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`{program}` could not be started: {error}"))?;
    let _group = KillGroup::of(child.id());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let exit = {
        let reading = async { tokio::join!(read_some(out, &mut stdout), read_some(err, &mut stderr)) };
        tokio::pin!(reading);
        tokio::select! {
            _ = &mut reading => child.wait().await,
            exit = child.wait() => {
                // A leftover child may keep the output open: it is not waited for.
                let _ = timeout(LEFTOVER_TIMEOUT, reading).await;
                exit
            }
        }
    };
    let exit = exit.map_err(|error| error.to_string())?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ended { exit, stdout: text(stdout), stderr: text(stderr) })
}

/// Reads to the end, and keeps the start.
async fn read_some(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 4 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_plugin_is_text_and_measurements() {
        let (text, data) =
            split("DISK OK - free: 3326 MB | /=2643MB;5948;5958;0;5968 'a b'=3%\n/ 15272 MB\n| /boot=68MB");
        assert_eq!(text, "DISK OK - free: 3326 MB");
        assert_eq!(data, ["/=2643MB;5948;5958;0;5968", "'a b'=3%", "/boot=68MB"]);
        assert_eq!(split(""), (String::new(), Vec::new()));
        assert_eq!(split("no data | rubbish"), ("no data".to_owned(), Vec::new()));
    }
}
