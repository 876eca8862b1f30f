//! What a bundle (`.mcpb`) starts: its `manifest.json` says it, with names for folders and for what a person is to say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::ImportError;
use super::answers::{Answers, holds_secret, plain};
use super::entry::{Input, Said};
use super::words::{Words, one_line};

/// What is started.
pub(super) struct Started {
    pub(super) command: Vec<Words>,
    pub(super) requires: Vec<&'static str>,
    pub(super) check: Option<String>,
    pub(super) environment: BTreeMap<String, Words>,
}

#[derive(Deserialize)]
struct Manifest {
    server: Server,
    #[serde(default)]
    user_config: BTreeMap<String, Setting>,
}

#[derive(Deserialize)]
struct Server {
    mcp_config: Config,
}

#[derive(Deserialize)]
struct Config {
    command: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Setting {
    #[serde(default)]
    r#type: String,
    description: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    sensitive: bool,
    default: Option<Value>,
}

impl Setting {
    /// The same as an input of an entry.
    fn input(&self, name: &str) -> Input {
        let default = match &self.default {
            Some(Value::String(text)) if !text.contains("${") => Some(text.clone()),
            Some(Value::Bool(value)) => Some(value.to_string()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let format = match self.r#type.as_str() {
            "directory" | "file" => Some("filepath"),
            "number" => Some("number"),
            "boolean" => Some("boolean"),
            _ => None,
        };
        Input {
            name: Some(name.to_owned()),
            description: self.description.clone(),
            is_required: self.required,
            is_secret: self.sensitive,
            format: format.map(str::to_owned),
            default: default.map(Said),
            ..Input::default()
        }
    }
}

impl Started {
    /// What most bundles start.
    pub(super) fn guess(check: String) -> Self {
        let mut script = Words::code("server.app_dir");
        script.push_text("/server/index.js");
        Self {
            command: vec![Words::text("node"), script],
            requires: vec!["node"],
            check: Some(check),
            environment: BTreeMap::new(),
        }
    }
}

/// Reads the `manifest.json` of a bundle.
pub(super) fn read(manifest: &str, place: &str, answers: &mut Answers) -> Result<Started, ImportError> {
    let read: Manifest = serde_json::from_str(manifest).map_err(|error| {
        let message = format!("the bundle's manifest.json cannot be read: {}", one_line(&error.to_string()));
        ImportError::at(place, message).hint("its `server.mcp_config` says what is started")
    })?;
    let Config { command, args, env } = &read.server.mcp_config;
    let requires = match command.as_str() {
        "node" | "npx" => vec!["node"],
        "python" | "python3" => vec!["python"],
        _ => Vec::new(),
    };
    let mut words = Vec::new();
    for (number, word) in std::iter::once(command).chain(args).enumerate() {
        let place = format!("{place}: manifest.json: server.mcp_config.args[{}]", number.saturating_sub(1));
        if let Some(word) = filled(word, &read.user_config, &place, answers, false)? {
            words.push(word);
        }
    }
    let mut environment = BTreeMap::new();
    for (name, value) in env.iter().filter(|(name, _)| super::definition::is_variable(name)) {
        let place = format!("{place}: manifest.json: server.mcp_config.env.{}", one_line(name));
        plain(name, &place)?;
        if let Some(value) = filled(value, &read.user_config, &place, answers, true)? {
            environment.insert(name.clone(), value);
        }
    }
    Ok(Started { command: words, requires, check: None, environment })
}

/// A text of the manifest; nothing where it is about something that nobody has to say.
fn filled(
    text: &str,
    settings: &BTreeMap<String, Setting>,
    place: &str,
    answers: &mut Answers,
    secrets: bool,
) -> Result<Option<Words>, ImportError> {
    plain(text, place)?;
    let mut words = Words::default();
    let mut rest = text;
    while let Some((before, name, after)) = rest
        .split_once("${")
        .and_then(|(before, after)| Some((before, after.split_once('}')?)))
        .map(|(before, (name, after))| (before, name, after))
    {
        words.push_text(before);
        rest = after;
        match name {
            "__dirname" => words.push(Words::code("server.app_dir")),
            "HOME" | "DESKTOP" | "DOCUMENTS" | "DOWNLOADS" => words.push(Words::code("server.data_dir")),
            "/" | "pathSeparator" => words.push_text("/"),
            _ => {
                let setting = name.strip_prefix("user_config.").and_then(|name| Some((name, settings.get(name)?)));
                let Some((name, setting)) = setting else {
                    words.push_text(&format!("${{{name}}}"));
                    continue;
                };
                let input = setting.input(name);
                if !secrets && holds_secret(&input) {
                    let message = format!("`{}` is a secret, and would be an argument", one_line(name));
                    return Err(ImportError::at(place, message).hint(
                        "everybody on the host would see it in the list of processes: this bundle cannot be imported",
                    ));
                }
                match answers.answer(&input, place)? {
                    Some(answer) => words.push(answer),
                    None => return Ok(None),
                }
            }
        }
    }
    words.push_text(rest);
    Ok(Some(words))
}
