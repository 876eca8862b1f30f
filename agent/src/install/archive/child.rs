//! Unpacking in a process of its own. What an archive does to its reader it does to that process: its memory, its time and
//! its files are limited by the kernel, and the agent is told how it ended.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use fleetwright_deploy::failure::{Failure, FailureKind};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use super::limits::BYTES_MAX;
use super::{STEP, refused};
use crate::confine::own_program;
use crate::install::client::Client;

/// Most memory, in bytes, processor time, in seconds, and open files of the process that unpacks.
const MEMORY_BYTES_MAX: u64 = 512 * 1024 * 1024;
const CPU_SECONDS_MAX: u64 = 300;
const FILES_OPEN_MAX: u64 = 64;

/// Unpacks in a process of its own, as the user that installs; it prints what went wrong as JSON.
pub(in crate::install) async fn unpack(client: &Client, archive: &Path, to: &Path, strip: u32) -> Result<(), Failure> {
    let [program, archive, to] = [&own_program(), archive, to].map(|path| path.display().to_string());
    let words = [&program, "unpack", "--strip", &strip.to_string(), "--", &archive, &to].map(str::to_owned);
    judge(&client.output(&words, "unpack").await?)
}

/// What the process that unpacked says by how it ended.
fn judge(output: &Output) -> Result<(), Failure> {
    if output.status.success() {
        return Ok(());
    }
    if let Ok(failure) = serde_json::from_slice(&output.stdout) {
        return Err(failure);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let failure = match output.status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => refused(format!("it takes more than {CPU_SECONDS_MAX} s of processor time to unpack")),
        Some(Signal::XFSZ) => refused(format!("it has a file of more than {} MiB", BYTES_MAX >> 20)),
        Some(Signal::ABORT | Signal::SEGV | Signal::BUS) if text.contains("memory allocation") => {
            refused(format!("it takes more than {} MiB of memory to unpack", MEMORY_BYTES_MAX >> 20))
        }
        _ => {
            let message = format!("unpacking the archive ended with {}", output.status);
            Failure::new(FailureKind::DeploymentError, STEP, message)
        }
    };
    Err(failure.output(text.lines()))
}

/// Sets this process's own limits, before it looks at an archive. What cannot be limited is not begun.
pub(super) fn limit() -> std::io::Result<()> {
    let limits = [
        (Resource::As, MEMORY_BYTES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Fsize, BYTES_MAX),
        (Resource::Nofile, FILES_OPEN_MAX),
        (Resource::Core, 0),
    ];
    for (resource, most) in limits {
        let before = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let most = most.min(before);
        // At the harder limit of processor time the kernel kills without a word of why.
        let hard = if matches!(resource, Resource::Cpu) { (most + 5).min(before) } else { most };
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(hard) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn ended(raw: i32, stdout: &str, stderr: &str) -> Result<(), Failure> {
        let status = ExitStatus::from_raw(raw);
        judge(&Output { status, stdout: stdout.as_bytes().to_vec(), stderr: stderr.as_bytes().to_vec() })
    }

    #[test]
    fn how_the_process_ended_says_which_limit_it_was() {
        ended(0, "", "").expect("unpacked");
        let told = refused("it is a bomb".to_owned());
        let json = serde_json::to_string(&told).expect("JSON");
        assert_eq!(ended(0x100, &json, "").expect_err("refused"), told);
        let cases = [
            (24, "", "more than 300 s of processor time"),
            (25, "", "a file of more than 8192 MiB"),
            (6, "memory allocation of 9 bytes failed", "more than 512 MiB of memory"),
            (9, "", "signal: 9"),
            (0x100, "rubbish", "exit status: 1"),
        ];
        for (raw, stderr, words) in cases {
            let failure = ended(raw, "", stderr).expect_err(words);
            assert!(failure.message.contains(words), "{failure}");
        }
    }
}
