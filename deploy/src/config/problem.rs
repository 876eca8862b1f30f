//! What is wrong with a configuration file: where, what, and what to do about it.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde_saphyr::Spanned;

/// A text and the path it was read from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path, as the operator would write it.
    pub path: String,
    /// The text.
    pub text: String,
}

impl Source {
    /// Its lines as YAML breaks them (YAML 1.2.2, section 5.4): a carriage return alone ends one, too.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(self.text.as_str());
        std::iter::from_fn(move || {
            let text = rest.take().filter(|text| !text.is_empty())?;
            let end = text.find(['\n', '\r']).unwrap_or(text.len());
            let after = &text[end..];
            rest = after.strip_prefix("\r\n").or_else(|| after.strip_prefix(['\n', '\r']));
            Some(&text[..end])
        })
    }

    /// A file that defines something must bear its name, so that the definition is found by name.
    pub(super) fn check_name<T>(&self, written: &Spanned<T>, name: &str) -> Result<(), Problems> {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
        if stem == name {
            return Ok(());
        }
        let message = format!("the file is called `{file}`, but defines `{name}`");
        Err(Problem::at(self, written, message)
            .hint(format!("rename the file to {name}.yaml, or the definition to {stem}"))
            .into())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The line, from 1; nothing when it concerns the whole file.
    pub line: Option<u64>,
    /// The column, from 1.
    pub column: Option<u64>,
    /// The text of that line.
    pub excerpt: Option<String>,
    /// What is wrong; lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The rule of the environment that is broken, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl Problem {
    /// A problem of a whole file.
    pub fn in_file(source: &Source, message: impl Into<String>) -> Self {
        let (file, message) = (source.path.clone(), message.into());
        Self { file, line: None, column: None, excerpt: None, message, hint: None, rule: None }
    }

    /// A problem of a field of the whole file, where that is written on a line of its own.
    pub fn at_field(source: &Source, field: &str, message: impl Into<String>) -> Self {
        let is_field = |line: &str| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':'));
        match source.lines().position(is_field) {
            Some(index) => Self::at_line(source, index as u64 + 1, 1, message),
            None => Self::in_file(source, message),
        }
    }

    /// A problem at the place where a value was written.
    pub fn at<T>(source: &Source, value: &Spanned<T>, message: impl Into<String>) -> Self {
        Self::at_line(source, value.referenced.line(), value.referenced.column(), message)
    }

    /// A problem inside a text that starts where `value` was written: `line` lines (from 1) and `column`
    /// characters (from 0) into it.
    pub fn within(
        source: &Source,
        value: &Spanned<String>,
        line: usize,
        column: usize,
        message: impl Into<String>,
    ) -> Self {
        let start = value.referenced;
        let is_block = source_line(source, start.line()).is_some_and(|text| {
            let header = text.get(start.column().saturating_sub(1) as usize..).unwrap_or("");
            header.starts_with('|') || header.starts_with('>')
        });
        let (lines, columns) = (line as u64, column as u64);
        if is_block {
            let line = start.line() + lines;
            let indent = source_line(source, line).map_or(0, |text| text.len() - text.trim_start().len()) as u64;
            Self::at_line(source, line, indent + columns + 1, message)
        } else if lines > 1 && !stands_there(source, start.line() + lines - 1, value.value.lines().nth(line - 1)) {
            // Its line breaks are escapes, or folded: they are no lines of the file.
            Self::at(source, value, message)
        } else {
            let header = source_line(source, start.line())
                .and_then(|text| text.get(start.column().saturating_sub(1) as usize..));
            let quote = u64::from(header.is_some_and(|text| text.starts_with(['"', '\''])));
            Self::at_line(source, start.line() + lines - 1, start.column() + columns + quote, message)
        }
    }

    /// A problem at a line and column, both from 1.
    pub fn at_line(source: &Source, line: u64, column: u64, message: impl Into<String>) -> Self {
        let known = line > 0;
        Self {
            file: source.path.clone(),
            line: known.then_some(line),
            column: known.then_some(column),
            excerpt: source_line(source, line).map(|text| text.chars().take(160).collect()),
            message: message.into(),
            hint: None,
            rule: None,
        }
    }

    /// What the YAML reader says.
    pub(super) fn from_yaml(source: &Source, error: &serde_saphyr::Error) -> Self {
        let place = error.without_snippet().location();
        let (line, column) = place.map_or((0, 0), |place| (place.line(), place.column()));
        Self::in_words_at(source, line, column, &said(error))
    }

    /// What the YAML reader says of a place; of the whole file where the line is 0.
    pub(super) fn in_words_at(source: &Source, line: u64, column: u64, said: &str) -> Self {
        let (message, hint) = in_words(said);
        let problem = Self::at_line(source, line, column, message);
        match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }

    /// The same problem with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same problem without the line that it is in, which may hold a secret.
    #[must_use]
    pub fn without_excerpt(mut self) -> Self {
        self.excerpt = None;
        self
    }

    /// The same problem as a broken rule of an environment.
    #[must_use]
    pub fn of_rule(mut self, rule: &str, environment: &str) -> Self {
        self.message.push_str(&format!(" (rule `{rule}` of environment {environment})"));
        self.rule = Some(rule.to_owned());
        self
    }

    /// `FILE:LINE:COLUMN`, as much of that as is known.
    pub fn place(&self) -> String {
        match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            _ => self.file.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message)?;
        if let (Some(line), Some(column), Some(excerpt)) = (self.line, self.column, &self.excerpt) {
            let gutter = line.to_string();
            let pad = " ".repeat(gutter.len());
            let caret = " ".repeat(usize::try_from(column.saturating_sub(1)).unwrap_or(0).min(160));
            write!(f, "\n {pad} |\n {gutter} | {excerpt}\n {pad} | {caret}^")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl Problems {
    /// `Ok` when there are none. What was found several times, in a file that several others name, is told once.
    pub fn none_or(problems: Vec<Problem>) -> Result<(), Self> {
        let mut seen = HashSet::new();
        let once: Vec<Problem> = problems.into_iter().filter(|problem| seen.insert(problem.clone())).collect();
        if once.is_empty() { Ok(()) } else { Err(Self(once)) }
    }
}

/// Whether a line of the file is this line of a text, but for its indentation.
fn stands_there(source: &Source, line: u64, text: Option<&str>) -> bool {
    match (source_line(source, line), text) {
        (Some(there), Some(text)) => there.trim() == text.trim(),
        _ => false,
    }
}

fn source_line(source: &Source, line: u64) -> Option<&str> {
    let index = usize::try_from(line.checked_sub(1)?).ok()?;
    source.lines().nth(index)
}

/// The known name that a mistyped one was probably meant to be, as a hint.
pub fn near_miss<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near = known.into_iter().map(|name| (strsim::damerau_levenshtein(written, name), name));
    let (distance, name) = near.min()?;
    (distance <= 1 + written.len() / 4).then(|| format!("did you mean `{name}`?"))
}

/// What the YAML reader says, without the place.
pub(super) fn said(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    first.split(" at line ").next().unwrap_or(first).to_owned()
}

/// What the YAML reader says, in the words of those who write files, with a hint where there is one.
fn in_words(said: &str) -> (String, Option<String>) {
    let quoted = |text: &str| text.split('`').nth(1).unwrap_or_default().to_owned();
    if let Some((what, known)) = said.split_once(", expected one of ")
        && (what.starts_with("unknown field") || what.starts_with("unknown variant"))
    {
        let name = quoted(what);
        let known = known.replace('`', "");
        if known == "stdio, http, none" && matches!(name.as_str(), "sse" | "http+sse" | "http-sse") {
            let message =
                format!("`{name}` is the HTTP+SSE transport of 2024-11-05, which clients of today do not speak");
            let hint = "start the server with its stdio (`transport: stdio`, behind the bridge) or its streamable HTTP \
                        (`transport: http`): most have one of them, with another argument; one that has only SSE cannot be deployed";
            return (message, Some(hint.to_owned()));
        }
        let near = near_miss(&name, known.split(", "));
        let kind = if what.starts_with("unknown field") { "field" } else { "value" };
        return (format!("unknown {kind} `{name}`, expected one of {known}"), near);
    }
    let scalars = [
        ("invalid u16", "a whole number from 0 to 65535 is expected"),
        ("invalid u32", "a whole number from 0 to 4294967295 is expected"),
        ("invalid u8", "a whole number from 0 to 255 is expected"),
        ("invalid u64", "a whole number is expected"),
        ("invalid i32", "a whole number is expected"),
        ("invalid i64", "a whole number is expected"),
        ("invalid f64", "a number is expected"),
        ("invalid boolean", "`true` or `false` is expected"),
    ];
    let words = [
        ("expected sequence start", "a list is expected, such as [a, b]"),
        ("expected mapping start", "fields are expected, such as `name: value`"),
        ("expected string scalar", "a text is expected"),
        ("cannot deserialize tagged scalar into string", "a text is expected, without a tag such as !!int"),
        ("recursion limit exceeded", "lists and fields are nested too deeply here"),
        ("alias references unknown anchor", "the file has no anchor that this alias names"),
        ("expected string key for externally tagged enum", "one of the known values is expected"),
        ("externally tagged enum expected scalar or mapping", "one of the known values is expected"),
        ("unexpected value for unit", "nothing is expected after this value"),
        ("multiple YAML documents detected", "the file holds several YAML documents, and one is expected"),
        ("unexpected end of input", "something is missing here: the file is empty, or ends too early"),
        ("budget breached", "the file holds more than is read: too many values, aliases or levels"),
    ];
    for (reader, ours) in scalars.iter().chain(&words) {
        if said.starts_with(reader) {
            return ((*ours).to_owned(), None);
        }
    }
    if said.starts_with("cannot deserialize null into string") {
        let hint = "write a text: \"\" for an empty one, \"null\" for the word";
        return ("a text is expected, and there is none (`null`, `~` or nothing)".to_owned(), Some(hint.to_owned()));
    }
    if let Some(rest) = said.strip_prefix("duplicate mapping key: ") {
        let name = rest.split(',').next().unwrap_or_default();
        return (format!("`{name}` is there twice"), Some("keep one of them".to_owned()));
    }
    (said.to_owned(), None)
}
