//! The tables of `docs/mcp.md`, and where bridged rows may be below native ones: each place has its reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Record, Suite, Way};
use crate::bridged::Fixture;
use crate::fleet::repository;

/// Scenarios that pass natively and not bridged, and why that is so.
#[derive(Debug)]
pub struct Exception {
    /// How the fixture is reached.
    pub way: Way,
    /// At which fixtures.
    pub fixtures: &'static [Fixture],
    /// At revisions of the older era, or of the modern one.
    pub modern: bool,
    /// The scenarios.
    pub scenarios: &'static [&'static str],
    /// The reason, as the guide gives it.
    pub reason: &'static str,
}

/// All of them. One that passes after all must be taken off.
pub const EXCEPTIONS: [Exception; 1] = [Exception {
    way: Way::Shared,
    fixtures: &Fixture::ALL,
    modern: false,
    scenarios: &[
        "tools-call-sampling",
        "tools-call-elicitation",
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
    ],
    reason: "a server that many clients share cannot say which of them it asks",
}];

/// Rows of `own` that supergateway passes and the bridge does not: where, which, and why.
const BELOW_SUPERGATEWAY: [(Fixture, &str, &str, &str); 1] = [(
    Fixture::TypeScript,
    "2026-07-28",
    "server-sse-multiple-streams",
    "it asks for no more than a status of success; a server of the older era alone refuses that revision natively, too",
)];

impl Exception {
    /// Whether it is about this row.
    pub fn covers(&self, fixture: Fixture, suite: Suite, way: Way, scenario: &str) -> bool {
        let modern = suite.name().ends_with("2026-07-28");
        let of_suite = self.way == way && self.modern == modern && self.fixtures.contains(&fixture);
        of_suite && self.scenarios.contains(&scenario)
    }
}

/// A row, by where it is.
pub type Row<'a> = (Fixture, Suite, &'a str, &'a BTreeMap<String, bool>);

/// Every row of a record.
pub fn rows(record: &Record) -> impl Iterator<Item = Row<'_>> {
    Fixture::ALL.into_iter().flat_map(move |fixture| {
        Suite::ALL.into_iter().flat_map(move |suite| {
            let rows = record.get(fixture.name()).and_then(|suites| suites.get(&suite.name()));
            rows.into_iter().flatten().map(move |(scenario, ways)| (fixture, suite, scenario.as_str(), ways))
        })
    })
}

/// Whether a row passes by this way.
pub fn passes(ways: &BTreeMap<String, bool>, way: Way) -> bool {
    ways.get(way.name()).copied().unwrap_or(false)
}

/// What is wrong with a record: rows below native without a reason, rows of `own` below supergateway without one, and
/// reasons that are no longer needed.
pub fn complaints(record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    let mut needed = vec![false; EXCEPTIONS.len()];
    for (fixture, suite, scenario, ways) in rows(record) {
        for way in [Way::Shared, Way::Own] {
            let place = format!("{}, {}, {}: {scenario}", fixture.name(), suite.name(), way.name());
            let exception = EXCEPTIONS.iter().position(|one| one.covers(fixture, suite, way, scenario));
            match (passes(ways, Way::Native), passes(ways, way), exception) {
                (true, false, None) => found.push(format!("{place} passes natively alone, and no reason is given")),
                (_, true, Some(_)) => found.push(format!("{place} passes, and is on the list of exceptions")),
                (_, false, Some(n)) => needed[n] = true,
                (_, true, None) | (false, false, None) => {}
            }
        }
        let below = passes(ways, Way::Supergateway) && !passes(ways, Way::Own);
        let named = BELOW_SUPERGATEWAY
            .iter()
            .any(|(of, revision, row, _)| *of == fixture && suite.name().ends_with(revision) && *row == scenario);
        let place = format!("{}, {}: {scenario}", fixture.name(), suite.name());
        match (below, named) {
            (true, false) => {
                found.push(format!("{place} passes with supergateway and not with `own`, and no reason is given"))
            }
            (false, true) => found.push(format!("{place} is on the list of rows below supergateway, and is none")),
            (true, true) | (false, false) => {}
        }
    }
    let unneeded = EXCEPTIONS.iter().zip(&needed).filter(|(_, needed)| !**needed);
    found.extend(unneeded.map(|(exception, _)| format!("nothing fails for the reason: {}", exception.reason)));
    found
}

/// The tables, in Markdown.
pub fn tables(record: &Record) -> String {
    let mut out = String::from(
        "| server | suite, revision | native | `shared` | `own` | supergateway 4.0.0 |\n|---|---|---|---|---|---|\n",
    );
    for fixture in Fixture::ALL {
        for suite in Suite::ALL {
            let all: Vec<_> = rows(record).filter(|row| row.0 == fixture && row.1 == suite).collect();
            let passed = |way: Way| all.iter().filter(|row| passes(row.3, way)).count();
            // Where nothing passes, nothing was measured.
            let shown =
                |way: Way| Some(passed(way)).filter(|n| *n > 0).map_or_else(|| "–".to_owned(), |n| n.to_string());
            let [native, shared, own, other] = Way::ALL.map(shown);
            let count = all.len();
            let _ = writeln!(
                out,
                "| {} | {} | {native} of {count} | {shared} | {own} | {other} |",
                fixture.name(),
                suite.name()
            );
        }
    }
    out.push_str(
        "\nRows that pass natively and not through the bridge:\n\n| rows | sessions | reason |\n|---|---|---|\n",
    );
    for exception in &EXCEPTIONS {
        let names: Vec<String> = exception.scenarios.iter().map(|name| format!("`{name}`")).collect();
        let era = if exception.modern { "2026-07-28" } else { "until 2025-11-25" };
        let _ = writeln!(out, "| {} ({era}) | `{}` | {} |", names.join(", "), exception.way.name(), exception.reason);
    }
    out
}

const BEGIN: &str = "<!-- conformance: generated -->\n";
const END: &str = "<!-- end -->";

/// Puts the tables into the guide.
///
/// # Errors
/// If the guide cannot be read or written.
///
/// # Panics
/// If it has no place for them.
pub fn write_into_guide(record: &Record) -> std::io::Result<()> {
    let path = repository().join("docs/mcp.md");
    let guide = std::fs::read_to_string(&path)?;
    let (before, rest) = guide.split_once(BEGIN).expect("a place for the tables");
    let (_, after) = rest.split_once(END).expect("its end");
    std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", tables(record)))
}
