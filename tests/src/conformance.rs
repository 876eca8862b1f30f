//! The official conformance suite, run against fixture servers native and bridged, and what it found written down in
//! `tests/clients/conformance.json`, from which the tables of `docs/mcp.md` are generated.

pub mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bridged::{Bridge, Fixture, Served, free_port};
use crate::fleet::{repository, text};
use crate::strangers::{Kit, node};

/// A suite, and the revision of the protocol at which it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// The released suite, 0.1.16, which knows revisions up to 2025-11-25.
    Released,
    /// The newest suite, at one of its revisions.
    Next(&'static str),
}

impl Suite {
    /// All that are run.
    pub const ALL: [Self; 4] =
        [Self::Released, Self::Next("2025-06-18"), Self::Next("2025-11-25"), Self::Next("2026-07-28")];

    /// Its name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Released => String::from("0.1.16, 2025-11-25"),
            Self::Next(revision) => format!("0.2.0-alpha.12, {revision}"),
        }
    }

    fn command(self) -> Command {
        let (kit, revision) = match self {
            Self::Released => (Kit::Conformance, "2025-11-25"),
            Self::Next(revision) => (Kit::ConformanceNext, revision),
        };
        let mut command = Command::new(node());
        command.arg(kit.module("@modelcontextprotocol/conformance/dist/index.js")).arg("server");
        command.args(["--suite", "all", "--spec-version", revision]);
        if matches!(self, Self::Next(_)) {
            // Of one scenario; a machine at work is slow.
            command.args(["--timeout", "120000"]);
        }
        command
    }
}

/// How a fixture is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By its own SDK's HTTP.
    Native,
    /// Through the bridge, with one child for all.
    Shared,
    /// Through the bridge, with a child for each session.
    Own,
    /// Through supergateway, with a child for each session.
    Supergateway,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Native, Self::Shared, Self::Own, Self::Supergateway];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Shared => "shared",
            Self::Own => "own",
            Self::Supergateway => "supergateway",
        }
    }

    /// Starts the fixture so.
    pub fn serve(self, fixture: Fixture, bridge: &Bridge) -> Served {
        match self {
            Self::Native => fixture.native(),
            Self::Shared => bridge.serve(&fixture.stdio()),
            Self::Own => bridge.clone().own().serve(&fixture.stdio()),
            Self::Supergateway => {
                let port = free_port();
                let words: Vec<String> =
                    fixture.stdio().iter().map(|word| format!("'{}'", word.to_string_lossy())).collect();
                let mut command = Command::new(node());
                command.arg(Kit::Supergateway.module("supergateway/dist/index.js")).args(["--stdio", &words.join(" ")]);
                command.args(["--outputTransport", "streamableHttp", "--stateful", "--logLevel", "none", "--port"]);
                Served::start(
                    {
                        command.arg(port.to_string());
                        command
                    },
                    port,
                )
            }
        }
    }
}

/// What a scenario has found wrong; nothing, if it passed.
pub type Faults = Vec<String>;

/// Runs a suite, or one scenario of it, against a URL.
///
/// # Panics
/// If the suite does not run.
pub fn run(suite: Suite, url: &str, scenario: Option<&str>) -> BTreeMap<String, Faults> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = suite.command();
    command.args(["--url", url, "--output-dir"]).arg(folder.path()).stdin(Stdio::null());
    command.args(scenario.map(|name| ["--scenario", name]).into_iter().flatten());
    let output = command.output().expect("the suite runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder.path()).expect("results").map(|entry| entry.expect("an entry").path()) {
        let checks = fs::read(entry.join("checks.json")).expect("the checks");
        let checks: Vec<Value> = serde_json::from_slice(&checks).expect("JSON");
        found.insert(scenario_of(&entry), checks.iter().filter_map(fault).collect());
    }
    // What the suite's own summary counts as failed without a check that says why has failed as well.
    for line in said.lines().filter_map(|line| line.strip_prefix("✗ ")) {
        let faults: &mut Faults = found.entry(line.split(':').next().unwrap_or(line).to_owned()).or_default();
        if faults.is_empty() {
            faults.push(line.to_owned());
        }
    }
    assert!(!found.is_empty(), "{command:?} found nothing:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    found
}

/// `server-NAME-TIME` is the folder of a scenario; names may begin with `server-` themselves.
fn scenario_of(folder: &Path) -> String {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let name = name.strip_prefix("server-").unwrap_or(&name);
    name.len().checked_sub("-2026-01-01T00-00-00-000Z".len()).map_or(name, |end| &name[..end]).to_owned()
}

fn fault(check: &Value) -> Option<String> {
    let message = check["errorMessage"].as_str().unwrap_or("no message");
    (check["status"] == "FAILURE").then(|| format!("{}: {message}", text(&check["id"])))
}

/// Which scenarios pass, by fixture, suite, scenario and way.
pub type Record = BTreeMap<String, BTreeMap<String, BTreeMap<String, BTreeMap<String, bool>>>>;

/// Where results are written down.
pub fn record_path() -> PathBuf {
    repository().join("tests/clients/conformance.json")
}

/// What was written down.
///
/// # Panics
/// If it cannot be read.
pub fn recorded() -> Record {
    let text = fs::read_to_string(record_path()).unwrap_or_else(|_| String::from("{}"));
    let rows: BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<String>>>> =
        serde_json::from_str(&text).expect("the record");
    let passed = |ways: Vec<String>| {
        Way::ALL.iter().map(|way| (way.name().to_owned(), ways.iter().any(|name| name == way.name()))).collect()
    };
    let suites = |suites: BTreeMap<String, BTreeMap<String, Vec<String>>>| {
        let scenarios = |rows: BTreeMap<String, Vec<String>>| rows.into_iter().map(|(row, ways)| (row, passed(ways)));
        suites.into_iter().map(|(suite, rows)| (suite, scenarios(rows).collect())).collect()
    };
    rows.into_iter().map(|(fixture, of)| (fixture, suites(of))).collect()
}

/// Writes results down: for each scenario, the ways by which it passed.
///
/// # Errors
/// If the file cannot be written.
pub fn write_down(record: &Record) -> std::io::Result<()> {
    let mut out = json!({});
    for (fixture, suites) in record {
        for (suite, rows) in suites {
            for (row, ways) in rows {
                let passed: Vec<&String> = ways.iter().filter(|(_, passed)| **passed).map(|(way, _)| way).collect();
                out[fixture][suite][row] = json!(passed);
            }
        }
    }
    fs::write(record_path(), format!("{out:#}\n"))
}
