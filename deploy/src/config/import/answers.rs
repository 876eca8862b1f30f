//! Answers: what stands for an input of an entry. What the entry says itself is written down; what it leaves to the person
//! who installs it is asked of the environment, as a variable or as a secret.

use std::collections::BTreeMap;

use super::ImportError;
use super::entry::Input;
use super::naming;
use super::words::{Part, Words, one_line, parts};
use crate::release::{MARKER_END, MARKER_SIGN};

/// Most words of a description that are shown, in characters.
const DESCRIBED_CHARACTERS_MAX: usize = 120;
/// Most choices that are shown.
const CHOICES_SHOWN_MAX: usize = 12;

/// What an environment must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) secret: bool,
    pub(super) remark: String,
}

/// One word of a command, with where it comes from.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) words: Words,
    pub(super) place: String,
    /// Whether the entry says that nothing works without it.
    pub(super) needed: bool,
}

/// Gives the answers of one package, and remembers what it asks for.
pub(super) struct Answers {
    server: String,
    /// Whether the server listens itself, and is told where.
    pub(super) listens: bool,
    /// What stands for its port and for its address.
    pub(super) port: Words,
    pub(super) host: Words,
    /// What the entry itself calls them, in the URL of the transport.
    pub(super) port_named: Option<String>,
    pub(super) host_named: Option<String>,
    /// Whether it was told its port.
    pub(super) port_told: bool,
    pub(super) asked: BTreeMap<String, Asked>,
    pub(super) notes: Vec<String>,
    /// What is said above the command.
    pub(super) remarks: Vec<String>,
}

impl Answers {
    pub(super) fn new(server: &str, listens: bool) -> Self {
        Self {
            server: server.to_owned(),
            listens,
            port: Words::code("server.port"),
            host: Words::code("host.address"),
            port_named: None,
            host_named: None,
            port_told: false,
            asked: BTreeMap::new(),
            notes: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// What stands for an input; nothing where the entry says nothing and needs nothing.
    pub(super) fn answer(&mut self, input: &Input, place: &str) -> Result<Option<Words>, ImportError> {
        let value = input.value.as_ref().map(|value| value.0.as_str());
        let names = value.map(parts).unwrap_or_default();
        let asks = names.iter().any(|part| matches!(part, Part::Name(_)));
        if let Some(known) = self.listens_there(&[input.name.as_deref(), input.value_hint.as_deref()]).filter(|_| !asks)
        {
            return Ok(Some(known));
        }
        if input.is_secret && !asks {
            if !input.is_required && value.is_none() {
                return Ok(None);
            }
            if value.is_some() {
                self.notes
                    .push(format!("{place}: the entry itself gives a value for a secret; it was not written down"));
            }
            let mut words = Words::text(value.and_then(scheme).unwrap_or_default());
            words.push(Words::secret(&self.ask(input.label(), input, true), None));
            return Ok(Some(words));
        }
        if asks {
            return self.filled(input, &names, place);
        }
        if let Some(said) = value.or_else(|| input.default.as_ref().map(|default| default.0.as_str())) {
            plain(said, place)?;
            if !input.choices.is_empty() && input.choices.iter().all(|choice| choice.0 != said) {
                self.notes.push(format!("{place}: `{}` is none of its choices", one_line(said)));
            }
            return Ok(Some(Words::text(said)));
        }
        Ok(input.is_required.then(|| self.variable(input.label(), input)))
    }

    /// A value with names within braces.
    fn filled(&mut self, input: &Input, names: &[Part<'_>], place: &str) -> Result<Option<Words>, ImportError> {
        let marked = input.variables.values().any(|variable| variable.is_secret);
        let mut words = Words::default();
        // Without one that nobody has to say, the whole is left out.
        let lacks = |name: &str| {
            let open =
                |variable: &Input| variable.value.is_none() && (variable.is_secret || variable.default.is_none());
            input.variables.get(name).is_some_and(|variable| !variable.is_required && open(variable))
        };
        for part in names {
            match part {
                Part::Text(text) => {
                    plain(text, place)?;
                    words.push_text(text);
                }
                Part::Name(name) => {
                    if let Some(known) = self.listens_there(&[Some(name)]) {
                        words.push(known);
                        continue;
                    }
                    if !input.is_required && lacks(name) {
                        return Ok(None);
                    }
                    let place = format!("{place}.variables.{name}");
                    let encode = words.contains("://").then_some("url");
                    match input.variables.get(*name) {
                        Some(variable) if variable.is_secret || (input.is_secret && !marked) => {
                            words.push(Words::secret(&self.ask(name, variable, true), encode));
                        }
                        Some(variable) => words.push(self.inner(name, variable, &place)?),
                        None if input.is_secret => {
                            words.push(Words::secret(&self.ask(name, input, true), encode));
                        }
                        None => {
                            let note = format!("{place}: the entry says nothing of `{{{name}}}`, which stays as it is");
                            self.notes.push(note);
                            words.push_text(&format!("{{{name}}}"));
                        }
                    }
                }
            }
        }
        Ok(Some(words))
    }

    /// A variable of a value, which is no secret.
    fn inner(&mut self, name: &str, variable: &Input, place: &str) -> Result<Words, ImportError> {
        let Some(said) = variable.value.as_ref().or(variable.default.as_ref()) else {
            return Ok(self.variable(name, variable));
        };
        plain(&said.0, place)?;
        if let Some(remark) = remark(variable) {
            self.remark(format!("{}: {remark}", one_line(name)));
        }
        Ok(Words::text(&said.0))
    }

    /// The port or the address that the server listens on, where a name means one of them.
    fn listens_there(&mut self, names: &[Option<&str>]) -> Option<Words> {
        if !self.listens {
            return None;
        }
        let mut names = names.iter().flatten();
        let is = |name: &str, named: &Option<String>| named.as_ref().is_some_and(|named| *named == naming::upper(name));
        names.find_map(|name| {
            if naming::is_port(name) || is(name, &self.port_named) {
                self.port_told = true;
                return Some(self.port.clone());
            }
            (naming::is_host(name) || is(name, &self.host_named)).then(|| self.host.clone())
        })
    }

    fn variable(&mut self, label: &str, input: &Input) -> Words {
        let name = self.ask(label, input, false);
        Words::code(&format!("env.{name}"))
    }

    /// Asks the environment for something, under a name that means nothing else here.
    fn ask(&mut self, label: &str, input: &Input, secret: bool) -> String {
        let asked = Asked { secret, remark: remark(input).unwrap_or_default() };
        let base = naming::asked(&self.server, label);
        let mut name = base.clone();
        let mut number = 2;
        while self.asked.get(&name).is_some_and(|other| *other != asked) {
            let suffix = format!("_{number}");
            name = format!("{}{suffix}", &base[..base.len().min(64 - suffix.len())]);
            number += 1;
        }
        self.asked.insert(name.clone(), asked);
        name
    }

    /// The words of a command. What is a secret is never among them unless the words are for something else: everybody on
    /// a host sees the list of processes.
    pub(super) fn arguments(
        &mut self,
        inputs: &[Input],
        place: &str,
        secrets: bool,
    ) -> Result<Vec<Token>, ImportError> {
        let mut tokens = Vec::new();
        let positional =
            |input: &Input| input.name.as_deref().unwrap_or_default().is_empty() || input.r#type == "positional";
        let said = |input: &Input| input.is_required || input.value.is_some() || input.default.is_some();
        let last = inputs.iter().rposition(|input| positional(input) && said(input));
        for (number, input) in inputs.iter().enumerate() {
            let place = format!("{place}[{number}]");
            let needed = input.is_required || input.value.is_some();
            if !secrets && holds_secret(input) {
                if needed {
                    return Err(seen_by_everybody(input, &place));
                }
                self.left_out(input, &place, "a secret may not be an argument");
                continue;
            }
            let flag = input.name.as_deref().filter(|_| !positional(input));
            if let Some(flag) = flag {
                plain(flag, &place)?;
                self.named(flag, input, &place, &mut tokens)?;
                continue;
            }
            let mut input = input.clone();
            if !said(&input) && last.is_some_and(|last| number < last) {
                // What comes after it would take its place.
                input.is_required = true;
            }
            match self.answer(&input, &place)? {
                Some(words) => {
                    self.remark_on(&input);
                    tokens.push(Token { words, place, needed });
                }
                None => self.left_out(&input, &place, "it has no value"),
            }
        }
        Ok(tokens)
    }

    fn named(&mut self, flag: &str, input: &Input, place: &str, tokens: &mut Vec<Token>) -> Result<(), ImportError> {
        let needed = input.is_required || input.value.is_some();
        let mut push = |words: Words, needed| tokens.push(Token { words, place: place.to_owned(), needed });
        if input.is_boolean() {
            let said = input.value.as_ref().or(input.default.as_ref()).map(|said| said.0.as_str());
            match said {
                Some("true") => push(Words::text(flag), needed),
                None if input.is_required => push(Words::text(flag), needed),
                Some("false") | None => self.left_out(input, place, "it is off unless the flag is given"),
                Some(other) => {
                    let message = format!("`{}` is neither true nor false", one_line(other));
                    return Err(ImportError::at(place, message).hint("`format` is boolean: correct the entry"));
                }
            }
            return Ok(());
        }
        match self.answer(input, place)? {
            Some(words) => {
                self.remark_on(input);
                if flag.ends_with('=') {
                    let mut whole = Words::text(flag);
                    whole.push(words);
                    push(whole, needed);
                } else {
                    push(Words::text(flag), needed);
                    push(words, needed);
                }
            }
            None if is_bare(input) => push(Words::text(flag), true),
            None => self.left_out(input, place, "it has no value"),
        }
        Ok(())
    }

    pub(super) fn left_out(&mut self, input: &Input, place: &str, why: &str) {
        self.notes.push(format!("{place}: left out, since {why}: {}", described(input)));
    }

    fn remark(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    fn remark_on(&mut self, input: &Input) {
        let mut said: Vec<String> = remark(input).filter(|_| !input.choices.is_empty()).into_iter().collect();
        if input.is_repeated {
            said.push("may be given several times".to_owned());
        }
        if !said.is_empty() {
            self.remark(format!("{}: {}", one_line(input.label()), said.join("; ")));
        }
    }
}

/// The first word of credentials, which is no part of the secret.
fn scheme(value: &str) -> Option<&str> {
    let known = ["bearer", "basic", "token"];
    let end = value.find(' ').filter(|end| known.contains(&value[..*end].to_ascii_lowercase().as_str()))?;
    Some(&value[..=end])
}

/// A flag that takes no value, as far as the entry says.
fn is_bare(input: &Input) -> bool {
    let silent = input.value_hint.is_none() && input.placeholder.is_none() && input.format.is_none();
    silent && input.variables.is_empty() && input.choices.is_empty() && !input.is_required && input.value.is_none()
}

/// Whether a secret is in it.
pub(super) fn holds_secret(input: &Input) -> bool {
    let named = |part: &Part<'_>| match part {
        Part::Name(name) => input.variables.get(*name).is_some_and(|variable| variable.is_secret),
        Part::Text(_) => false,
    };
    input.is_secret || input.value.as_ref().is_some_and(|value| parts(&value.0).iter().any(named))
}

fn seen_by_everybody(input: &Input, place: &str) -> ImportError {
    let message = format!(
        "`{}` is a secret that can only be given as an argument, which everybody on the host would see in the list of processes",
        one_line(input.label())
    );
    ImportError::at(place, message).hint(
        "see whether the server also reads it from its environment or from a file, and move it to the entry's \
         `environmentVariables`; else write a definition by hand, with a program of your own that reads it from a file",
    )
}

/// What no program can be given, and what Fleetwright keeps for itself.
pub(super) fn plain(text: &str, place: &str) -> Result<(), ImportError> {
    if text.contains(['\0', MARKER_SIGN, MARKER_END]) {
        let message = "it holds a character that no text may hold: NUL, or one that marks secrets (U+F8FE, U+F8FF)";
        return Err(ImportError::at(place, message.to_owned()).hint("correct the entry, or leave this out of it"));
    }
    Ok(())
}

/// What a person should know of an input.
pub(super) fn remark(input: &Input) -> Option<String> {
    let mut said = Vec::new();
    let what = input.description.as_deref().unwrap_or_default();
    let line: String = one_line(what.trim().lines().next().unwrap_or_default());
    let line: String = line.chars().take(DESCRIBED_CHARACTERS_MAX).collect();
    said.extend(Some(line).filter(|line| !line.is_empty()));
    match input.format.as_deref() {
        Some("filepath") => said.push("a path on the host".to_owned()),
        Some("number") => said.push("a number".to_owned()),
        Some("boolean") => said.push("true or false".to_owned()),
        _ => {}
    }
    if !input.choices.is_empty() {
        let shown: Vec<String> =
            input.choices.iter().take(CHOICES_SHOWN_MAX).map(|choice| one_line(&choice.0)).collect();
        said.push(format!("one of {}", shown.join(", ")));
    }
    if let Some(placeholder) = input.placeholder.as_ref().filter(|_| input.value.is_none()) {
        said.push(format!("such as {}", one_line(&placeholder.0)));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// An input with what is known of it.
pub(super) fn described(input: &Input) -> String {
    let label = one_line(input.label());
    remark(input).map_or_else(|| label.clone(), |remark| format!("{label}: {remark}"))
}
