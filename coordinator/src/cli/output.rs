//! Printing: data to standard output in the format that was asked for, everything else to standard error.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use fleetwright_deploy::config::Problems;
use fleetwright_deploy::failure::Failure;
use serde::Serialize;

use crate::client::failure_in;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// For programs: one JSON value.
    Json,
    /// Nothing but errors.
    Quiet,
}

/// The terminal, or whatever stands in its place.
pub(crate) struct Ui {
    format: Format,
    color: bool,
}

/// Colours, for those who see them; no meaning is in a colour alone.
#[derive(Clone, Copy)]
pub(crate) enum Color {
    Green,
    Yellow,
    Red,
    Bold,
    Dim,
}

impl Ui {
    pub(crate) fn new(format: Format) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, color: wanted && std::io::stdout().is_terminal() }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a result.
    pub(crate) fn data<T: Serialize>(&self, value: &T, human: impl FnOnce() -> String) {
        match self.format {
            Format::Human => self.print(&human()),
            Format::Json => self.print(&serde_json::to_string_pretty(value).unwrap_or_default()),
            Format::Quiet => {}
        }
    }

    /// Says what is going on.
    pub(crate) fn say(&self, text: &str) {
        if self.format != Format::Quiet {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    /// Whether a progress bar can be drawn.
    pub(crate) fn draws(&self) -> bool {
        self.format == Format::Human && std::io::stderr().is_terminal()
    }

    pub(crate) fn paint(&self, color: Color, text: &str) -> String {
        let code = match color {
            Color::Green => "32",
            Color::Yellow => "33",
            Color::Red => "31",
            Color::Bold => "1",
            Color::Dim => "2",
        };
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Prints an error: to standard error for people, and as data for programs.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        if self.format == Format::Json {
            let body = match (error.downcast_ref::<Problems>(), failure_in(error)) {
                (Some(problems), _) => {
                    serde_json::json!({ "error": { "kind": "configuration_error", "problems": problems } })
                }
                (None, Some(failure)) => serde_json::json!({ "error": failure }),
                (None, None) => serde_json::json!({ "error": { "message": format!("{error:#}") } }),
            };
            self.print(&serde_json::to_string_pretty(&body).unwrap_or_default());
        }
        let text = match (error.downcast_ref::<Problems>(), failure_in(error)) {
            (Some(problems), _) => {
                let all: Vec<String> =
                    problems.0.iter().map(|problem| format!("error: configuration_error: {problem}")).collect();
                all.join("\n\n")
            }
            (None, Some(failure)) => format!("error: {}", describe(failure)),
            (None, None) => format!("error: {error:#}"),
        };
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Whoever closes the pipe has read enough.
    fn print(&self, text: &str) {
        if writeln!(std::io::stdout().lock(), "{text}").is_err() {
            std::process::exit(0);
        }
    }
}

/// A failure with its hint and its output.
pub(crate) fn describe(failure: &Failure) -> String {
    let mut text = failure.to_string();
    if !failure.output.is_empty() {
        text.push_str("\n  last output:");
        for line in &failure.output {
            let _ = write!(text, "\n    | {line}");
        }
    }
    if let Some(hint) = &failure.hint {
        let _ = write!(text, "\n  hint: {hint}");
    }
    text
}

/// A table with aligned columns, without lines. The last column is not padded.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let format_row = |cells: &mut dyn Iterator<Item = &str>| {
        let line: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![format_row(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| format_row(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let rows = [
            vec!["a".to_owned(), "long value".to_owned(), String::new()],
            vec!["bcd".to_owned(), "x".to_owned(), "y".to_owned()],
        ];
        assert_eq!(
            table(&["ONE", "TWO", "THREE"], &rows),
            "ONE  TWO         THREE\na    long value\nbcd  x           y"
        );
    }
}
