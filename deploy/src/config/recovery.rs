//! Error recovery: what else is wrong with a file whose reading has ended with its first error.
//!
//! The file is taken as a tree with places, written anew line by line, and read again and again: each time what is wrong
//! is taken out, or put right, until nothing is.

use serde::de::DeserializeOwned;
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::{Problem, Source, said};
use super::read;
use super::text::quoted;

/// Larger files are told their first error alone, in bytes.
const BYTES_MAX: usize = 256 * 1024;
/// Most errors of one file that are told.
const ERRORS_MAX: usize = 20;
/// How often a file is read at most to find them.
const READINGS_MAX: usize = 200;
/// Deepest tree that is looked at.
const DEPTH_MAX: usize = 64;
/// How the reader begins to say that a field is not there.
const MISSING: &str = "missing field ";
/// Values of all kinds, one of which takes the place of one that is wrong and cannot be left out.
const STAND_INS: [&str; 7] = ["x", "1", "10s", "[x]", "[]", "{}", "true"];

/// A value of the file, with its place.
#[derive(Clone)]
struct Node {
    line: u64,
    column: u64,
    content: Content,
}

impl Node {
    /// A value that is not in the file.
    fn made_up(text: &str) -> Self {
        Self { line: 0, column: 0, content: Content::Scalar(text.to_owned()) }
    }
}

#[derive(Clone)]
enum Content {
    /// A text as YAML writes it.
    Scalar(String),
    List(Vec<Node>),
    Fields(Fields),
}

#[derive(Clone, Default)]
struct Fields {
    entries: Vec<(Node, Node)>,
    /// Names of entries that were left out: that they are missing then says nothing about the file.
    left_out: Vec<String>,
}

/// Which value of a tree is meant: the numbers of its ancestors' items, and its own.
type Path = Vec<usize>;

/// What the reader says of a tree.
struct Complaint {
    said: String,
    /// The line on which it stands, whose entry this is, and whether it is about its name.
    path: Path,
    at_name: bool,
}

/// The problems of a file after its first one.
pub(super) fn further<T: DeserializeOwned>(source: &Source, bytes_max: usize) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    if source.text.len() > BYTES_MAX.min(bytes_max) {
        return problems;
    }
    let Some(mut tree) = tree(&source.text) else { return problems };
    let mut readings = 0;
    let mut complaint = complaint::<T>(&tree, &mut readings);
    for number in 0..ERRORS_MAX {
        let Some(wrong) = &complaint else { break };

        if number > 0 && !is_own_doing(&tree, wrong) {
            problems.push(told(source, &tree, wrong));
        }
        let Some((mended, next)) = mend::<T>(&tree, wrong, &mut readings) else { break };
        (tree, complaint) = (mended, next);
    }
    problems
}

/// Whether a complaint is only about something that was left out here.
fn is_own_doing(tree: &Node, wrong: &Complaint) -> bool {
    let Some(name) = wrong.said.strip_prefix(MISSING) else { return false };
    let mapping = value_of(tree, &wrong.path).map(|node| &node.content);
    matches!(mapping, Some(Content::Fields(fields)) if fields.left_out.iter().any(|left| left == name.trim_matches('`')))
}

/// Where in the file a complaint belongs: line and column; 0 where that is not known.
fn place(tree: &Node, wrong: &Complaint) -> (u64, u64) {
    let name = name_of(tree, &wrong.path).filter(|_| wrong.at_name);
    name.or_else(|| value_of(tree, &wrong.path)).map_or((0, 0), |node| (node.line, node.column))
}

/// The complaint as a problem of the file.
fn told(source: &Source, tree: &Node, wrong: &Complaint) -> Problem {
    let (line, column) = place(tree, wrong);
    Problem::in_words_at(source, line, column, &wrong.said)
}

/// A tree without what is wrong, and what is wrong then.
fn mend<T: DeserializeOwned>(
    tree: &Node,
    wrong: &Complaint,
    readings: &mut usize,
) -> Option<(Node, Option<Complaint>)> {
    for attempt in attempts(tree, wrong) {
        if *readings >= READINGS_MAX {
            return None;
        }
        let next = complaint::<T>(&attempt, readings);
        // Another complaint about the same value does not help, either.
        let same = next.as_ref().is_some_and(|next| {
            let of_value = !wrong.at_name && !wrong.said.starts_with(MISSING);
            let again = next.said == wrong.said || (of_value && !next.said.starts_with(MISSING));
            again && next.at_name == wrong.at_name && place(&attempt, next) == place(tree, wrong)
        });
        let made_worse = |next: &Complaint| is_own_doing(&attempt, next) || place(&attempt, next) == (0, 0);
        if !same && !next.as_ref().is_some_and(made_worse) {
            return Some((attempt, next));
        }
    }
    None
}

/// What may help against a complaint: to add what is missing, else to leave out what is wrong, or to put something else
/// in its place, or to leave out what it is in.
fn attempts(tree: &Node, wrong: &Complaint) -> Vec<Node> {
    let mut attempts: Vec<Node> = Vec::new();
    if let Some(missing) = wrong.said.strip_prefix(MISSING) {
        for stand_in in STAND_INS {
            let mut tree = tree.clone();
            if let Some(Node { content: Content::Fields(fields), .. }) = value_mut(&mut tree, &wrong.path) {
                fields.entries.push((Node::made_up(missing.trim_matches('`')), Node::made_up(stand_in)));
                attempts.push(tree);
            }
        }
        return attempts;
    }
    if wrong.path.is_empty() {
        return attempts;
    }
    attempts.extend(without(tree, &wrong.path));
    for stand_in in STAND_INS.into_iter().filter(|_| !wrong.at_name) {
        let mut tree = tree.clone();
        if let Some(node) = value_mut(&mut tree, &wrong.path) {
            node.content = Content::Scalar(stand_in.to_owned());
            attempts.push(tree);
        }
    }
    attempts.extend(wrong.path.split_last().and_then(|(_, parent)| without(tree, parent)));
    attempts
}

/// What the reader says of a tree first; nothing when it has nothing to say.
fn complaint<T: DeserializeOwned>(tree: &Node, readings: &mut usize) -> Option<Complaint> {
    *readings += 1;
    let mut writing = Writing { text: String::new(), lines: Vec::new() };
    writing.node(tree, 0, &mut Vec::new());
    let error = read::<T>(&writing.text).err()?;
    let said = said(&error);
    let location = error.location();
    let line = location.map_or(0, |at| at.line()).saturating_sub(1);
    let written = usize::try_from(line).ok().and_then(|line| writing.lines.get(line));
    let (mut path, name_ends) = written.cloned().unwrap_or_default();
    let mut at_name = location.is_none_or(|at| at.column() <= name_ends);
    // What is said of a whole list or mapping is said where its first entry begins.
    if at_name && (said.starts_with(MISSING) || said.starts_with("expected ")) {
        path.pop();
        at_name = false;
    }
    Some(Complaint { said, path, at_name })
}

/// A tree as YAML, an entry a line.
struct Writing {
    text: String,
    /// Whose entry each line is, and the column at which its name has ended.
    lines: Vec<(Path, u64)>,
}

impl Writing {
    fn node(&mut self, node: &Node, depth: usize, path: &mut Path) {
        match &node.content {
            Content::Scalar(text) => self.line(&" ".repeat(depth), text, path, 0),
            Content::List(items) if items.is_empty() => self.line(&" ".repeat(depth), "[]", path, 0),
            Content::Fields(fields) if fields.entries.is_empty() => self.line(&" ".repeat(depth), "{}", path, 0),
            Content::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    path.push(n);
                    self.entry(&format!("{}-", " ".repeat(depth)), item, depth, path);
                    path.pop();
                }
            }
            Content::Fields(fields) => {
                for (n, (name, value)) in fields.entries.iter().enumerate() {
                    let Content::Scalar(name) = &name.content else { continue };
                    path.push(n);
                    self.entry(&format!("{}{name}:", " ".repeat(depth)), value, depth, path);
                    path.pop();
                }
            }
        }
    }

    fn entry(&mut self, head: &str, value: &Node, depth: usize, path: &mut Path) {
        let name_ends = head.chars().count() as u64;
        match &value.content {
            Content::Scalar(text) => self.line(&format!("{head} "), text, path, name_ends),
            Content::List(items) if items.is_empty() => self.line(&format!("{head} "), "[]", path, name_ends),
            Content::Fields(fields) if fields.entries.is_empty() => {
                self.line(&format!("{head} "), "{}", path, name_ends)
            }
            Content::List(_) | Content::Fields(_) => {
                self.line(head, "", path, name_ends + 1);
                self.node(value, depth + 1, path);
            }
        }
    }

    fn line(&mut self, head: &str, text: &str, path: &Path, name_ends: u64) {
        self.text.push_str(head);
        self.text.push_str(text);
        self.text.push('\n');
        self.lines.push((path.clone(), name_ends));
    }
}

/// What the file holds, in order.
type Events<'e, 'a> = dyn Iterator<Item = Result<(Event<'a>, Span), ScanError>> + 'e;

/// The file as a tree. Nothing where it has what would not be the same when written anew: anchors, tags, several
/// documents, names that are no texts.
fn tree(text: &str) -> Option<Node> {
    let begins = |event: &Result<(Event<'_>, Span), ScanError>| {
        matches!(event, Ok((Event::StreamStart | Event::DocumentStart(..), _)))
    };
    let mut events = Parser::new_from_str(text).filter(|event| !begins(event));
    let (event, span) = events.next()?.ok()?;
    let root = node(event, span, &mut events, 0)?;
    let mut rest = || events.next()?.ok().map(|(event, _)| event);
    (rest()? == Event::DocumentEnd && rest()? == Event::StreamEnd).then_some(root)
}

fn node<'a>(event: Event<'a>, span: Span, events: &mut Events<'_, 'a>, depth: usize) -> Option<Node> {
    if depth > DEPTH_MAX {
        return None;
    }
    let content = match event {
        Event::Scalar(text, style, 0, None) => {
            let plain = style == ScalarStyle::Plain && !text.contains('\n');
            Content::Scalar(if plain { text.into_owned() } else { quoted(&text) })
        }
        Event::SequenceStart(_, 0, None) => {
            let mut items = Vec::new();
            loop {
                match events.next()?.ok()? {
                    (Event::SequenceEnd, _) => break Content::List(items),
                    (event, span) => items.push(node(event, span, events, depth + 1)?),
                }
            }
        }
        Event::MappingStart(_, 0, None) => {
            let mut fields = Fields::default();
            loop {
                let name = match events.next()?.ok()? {
                    (Event::MappingEnd, _) => break Content::Fields(fields),
                    (event, span) => node(event, span, events, depth + 1)?,
                };
                if !matches!(&name.content, Content::Scalar(text) if text != "<<") {
                    return None;
                }
                let (event, span) = events.next()?.ok()?;
                fields.entries.push((name, node(event, span, events, depth + 1)?));
            }
        }
        _ => return None,
    };
    Some(Node { line: span.start.line() as u64, column: span.start.col() as u64 + 1, content })
}

fn value_of<'a>(tree: &'a Node, path: &[usize]) -> Option<&'a Node> {
    path.iter().try_fold(tree, |node, n| match &node.content {
        Content::Fields(fields) => fields.entries.get(*n).map(|(_, value)| value),
        Content::List(items) => items.get(*n),
        Content::Scalar(_) => None,
    })
}

fn value_mut<'a>(tree: &'a mut Node, path: &[usize]) -> Option<&'a mut Node> {
    path.iter().try_fold(tree, |node, n| match &mut node.content {
        Content::Fields(fields) => fields.entries.get_mut(*n).map(|(_, value)| value),
        Content::List(items) => items.get_mut(*n),
        Content::Scalar(_) => None,
    })
}

fn name_of<'a>(tree: &'a Node, path: &[usize]) -> Option<&'a Node> {
    let (last, parent) = path.split_last()?;
    match &value_of(tree, parent)?.content {
        Content::Fields(fields) => fields.entries.get(*last).map(|(name, _)| name),
        Content::List(_) | Content::Scalar(_) => None,
    }
}

/// The tree without one of its entries.
fn without(tree: &Node, path: &[usize]) -> Option<Node> {
    let (last, parent) = path.split_last()?;
    let mut tree = tree.clone();
    match &mut value_mut(&mut tree, parent)?.content {
        Content::Fields(fields) if *last < fields.entries.len() => {
            let (name, _) = fields.entries.remove(*last);
            if let Content::Scalar(name) = name.content {
                fields.left_out.push(name.trim_matches('"').to_owned());
            }
        }
        Content::List(items) if *last < items.len() => drop(items.remove(*last)),
        _ => return None,
    }
    Some(tree)
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, Manifest, Server};
    use super::*;

    fn told(outcome: Result<(), super::super::Problems>) -> Vec<String> {
        let problems = outcome.expect_err("problems").0;
        problems.iter().map(|problem| format!("{}: {}", problem.place(), problem.message)).collect()
    }

    fn server(text: &str) -> Vec<String> {
        told(Server::parse(&Source { path: "a.yaml".to_owned(), text: text.to_owned() }).map(drop))
    }

    #[test]
    fn every_error_of_a_definition_is_told_at_once_in_its_place() {
        let text = "apiVersion: fleetwright/v1
name: Alpha
packge: { pypi: a, version: 1.0 }
run:
  command: serve
  port: 70000
  transport: carrier
  stop_timeout: 10
health_checks:
  - { name: a, type: ping }
  - { type: tcp, severty: critical }
files:
  - path: x
resources: [a]
";
        let told = server(text);
        let expected = [
            "a.yaml:2:7: ",
            "a.yaml:3:1: unknown field `packge`",
            "a.yaml:5:12: a list is expected",
            "a.yaml:6:9: ",
            "a.yaml:7:14: unknown value `carrier`",
            "a.yaml:8:17: ",
            "a.yaml:10:22: unknown value `ping`",
            "a.yaml:11:18: unknown field `severty`",
            "a.yaml:13:5: missing field `content`",
            "a.yaml:14:12: ",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}, not {expected}");
        }
    }

    #[test]
    fn errors_of_manifests_and_environments_are_found_in_lists_and_under_names() {
        let manifest = "apiVersion: fleetwright/v1
name: m
servers:
  - { server: a, priorty: 1 }
  - { server: B }
  - { server: c, place: { count: many } }
rollout: { canary: 200%, bake: soon }
"
        .to_owned();
        let source = Source { path: "m.yaml".to_owned(), text: manifest };
        let all = told(Manifest::parse(&source).map(drop));
        assert_eq!(all.len(), 5, "{all:#?}");
        let environment = "apiVersion: fleetwright/v1\nname: e\nrules: { critical_chek: true, canary: maybe }\nsecrets: { a: { file: [b] } }\n\
                           hosts: { Bad_Host: {} }\n";
        let source = Source { path: "e.yaml".to_owned(), text: environment.to_owned() };
        let all = told(Environment::parse(&source).map(drop));
        assert_eq!(all.len(), 4, "{all:#?}");
    }

    #[test]
    fn what_is_no_yaml_and_what_has_anchors_is_told_its_first_error_alone() {
        assert_eq!(server("apiVersion: fleetwright/v1\nname: [a\nrnu: {}\n").len(), 1);
        assert_eq!(server("apiVersion: &a fleetwright/v1\nname: A\nrnu: *a\n").len(), 1);
        assert_eq!(server("").len(), 1);
    }

    #[test]
    fn a_file_full_of_errors_ends_soon() {
        let fields: String = (0..1_000).map(|n| format!("wrong{n}: 1\n")).collect();
        let told = server(&format!("apiVersion: fleetwright/v1\nname: a\nrun: {{ command: [a] }}\n{fields}"));
        assert_eq!(told.len(), ERRORS_MAX);
    }
}
