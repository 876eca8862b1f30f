//! Rendering of health checks: from the words of a definition to what the agent runs.

use std::borrow::Cow;
use std::collections::BTreeMap;

use regex::Regex;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json_path::JsonPath;
use serde_saphyr::Spanned;

use super::Templates;
use super::template::is_template;
use crate::config::{Check, CheckType, Problem, Problems, Source, near_miss};
use crate::health::{HealthCheck, HttpMore, McpCall, Probe};
use crate::host::bytes;
use crate::release::{BRIDGE_TOKEN_VARIABLE, Run, ToolCall, Transport, has_marker};
use crate::time::Length;
use crate::wording;

/// What a check of some type is told.
type Config = serde_json::Map<String, Value>;

/// The pause between two calls of a check, unless it says otherwise: a call may be dear.
const CALL_INTERVAL: Length = Length::from_secs(60);
/// Most times that a failing run is tried again at once.
const RETRIES_MAX: u32 = 10;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct McpConfig {
    url: Option<String>,
    #[serde(default)]
    expected_tools: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    call: Option<CallConfig>,
}

/// A call that the check of an MCP server makes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CallConfig {
    tool: String,
    #[serde(default)]
    arguments: Config,
    contains: Option<String>,
    #[serde(default)]
    json: BTreeMap<String, Value>,
    interval: Option<Length>,
}

impl CallConfig {
    fn rendered(self) -> Result<Box<McpCall>, String> {
        let Self { tool, arguments, contains, json, interval } = self;
        if tool.is_empty() {
            return Err("`call.tool` is empty".to_owned());
        }
        check_paths(&json).map_err(|why| format!("`call`: {why}"))?;
        let interval = interval.unwrap_or(CALL_INTERVAL);
        if interval == Length::ZERO {
            return Err("`call.interval` must be above 0".to_owned());
        }
        Ok(Box::new(McpCall { call: ToolCall { tool, arguments, contains, json }, interval }))
    }
}

/// Whether JSONPaths are such.
pub(super) fn check_paths(json: &BTreeMap<String, Value>) -> Result<(), String> {
    for path in json.keys() {
        JsonPath::parse(path).map_err(|error| {
            let place = error.position() + 1;
            format!("`json`: `{path}` is no JSONPath from character {place} on: write for example $.status or $.items[0].name")
        })?;
    }
    Ok(())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpConfig {
    url: Option<String>,
    path: Option<String>,
    #[schemars(with = "Option<OneOrMore>")]
    status: Option<Statuses>,
    contains: Option<String>,
    matches: Option<String>,
    #[serde(default)]
    json: BTreeMap<String, Value>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    expected_headers: BTreeMap<String, String>,
    certificate_valid_for: Option<Length>,
}

/// One status code, or several, for the schema.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "it is only described")]
enum OneOrMore {
    One(u16),
    More(Vec<u16>),
}

/// What `config` may hold for each type of check, as JSON Schema.
pub(in crate::planning) fn config_schemas() -> Vec<(&'static str, Value)> {
    fn of<T: JsonSchema>() -> Value {
        let generator = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator();
        generator.into_root_schema_for::<T>().into()
    }
    let types = [
        (CheckType::Mcp, of::<McpConfig>()),
        (CheckType::Http, of::<HttpConfig>()),
        (CheckType::Tcp, of::<TcpConfig>()),
        (CheckType::Command, of::<CommandConfig>()),
        (CheckType::File, of::<FileConfig>()),
        (CheckType::Disk, of::<DiskConfig>()),
        (CheckType::Systemd, of::<SystemdConfig>()),
        (CheckType::Custom, of::<CommandConfig>()),
    ];
    types.map(|(check_type, schema)| (check_type.into(), schema)).into()
}

/// One status code, or several.
#[derive(Deserialize)]
#[serde(try_from = "Value")]
struct Statuses(Vec<u16>);

impl TryFrom<Value> for Statuses {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let code = |value: &Value| {
            let code =
                value.as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (100..600).contains(code));
            code.ok_or_else(|| format!("`{value}` is not an HTTP status code: write for example 200 or [200, 204]"))
        };
        match &value {
            Value::Array(codes) if !codes.is_empty() => codes.iter().map(code).collect::<Result<_, _>>().map(Self),
            one => Ok(Self(vec![code(one)?])),
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TcpConfig {
    address: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CommandConfig {
    command: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    path: String,
    age_max: Option<Length>,
    exists: Option<bool>,
    sha256: Option<String>,
    mode: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SystemdConfig {
    unit: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DiskConfig {
    path: String,
    free_min: Option<String>,
    free_percent_min: Option<u32>,
}

/// The check as the agent runs it against an instance that runs as `run` says.
pub(super) fn rendered(
    source: &Source,
    written: &Spanned<Check>,
    run: &Run,
    templates: &Templates<'_>,
) -> Result<HealthCheck, Problems> {
    let check = &written.value;
    let wrong = |message: String| {
        let kind: &'static str = check.check_type.into();
        Problem::at(source, written, format!("check `{}` of type {kind}: {message}", check.name))
    };
    let mut config = Cow::Borrowed(&check.config);
    if check.config.values().any(has_template) {
        config.to_mut().values_mut().try_for_each(|field| render_texts(field, templates)).map_err(&wrong)?;
    }
    if let Some(place) = shows_secret(&config) {
        let problem: Problem = wrong(format!("a secret in `{place}` would be seen in reports and lists of processes"));
        return Err(problem.hint("secrets belong in `headers` of mcp and http checks").into());
    }
    let probe = probe(check.check_type, &config, run).map_err(|error| {
        let problem = wrong(error.message);
        match error.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    })?;
    let usual = HealthCheck::new(check.name.clone(), check.severity, probe);
    let rendered = HealthCheck {
        interval: check.interval.unwrap_or(usual.interval),
        timeout: check.timeout.unwrap_or(usual.timeout),
        failure_threshold: check.failure_threshold.unwrap_or(usual.failure_threshold),
        tags: check.tags.clone(),
        start_grace: check.start_grace.unwrap_or(usual.start_grace),
        success_threshold: check.success_threshold.unwrap_or(usual.success_threshold),
        retries: check.retries.unwrap_or(usual.retries),
        group: check.group.clone(),
        ..usual
    };
    let (failures, successes) = (rendered.failure_threshold, rendered.success_threshold);
    if failures == 0 || successes == 0 || rendered.interval == Length::ZERO || rendered.timeout == Length::ZERO {
        let message = "`failure_threshold`, `success_threshold`, `interval` and `timeout` must be above 0";
        return Err(wrong(message.to_owned()).into());
    }
    if rendered.retries > RETRIES_MAX {
        return Err(wrong(format!("`retries` is at most {RETRIES_MAX}")).into());
    }
    Ok(rendered)
}

fn has_template(value: &Value) -> bool {
    match value {
        Value::String(text) => is_template(text),
        Value::Array(items) => items.iter().any(has_template),
        Value::Object(fields) => fields.values().any(has_template),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn render_texts(value: &mut Value, templates: &Templates<'_>) -> Result<(), String> {
    match value {
        Value::String(text) => *text = templates.render_text(text).map_err(|error| error.message)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| render_texts(item, templates))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|field| render_texts(field, templates))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// The first field, besides `headers`, in which a secret is.
fn shows_secret(config: &Config) -> Option<&str> {
    config
        .iter()
        .filter(|(name, _)| *name != "headers")
        .find(|(_, value)| holds_marker(value))
        .map(|(name, _)| name.as_str())
}

fn holds_marker(value: &Value) -> bool {
    match value {
        Value::String(text) => has_marker(text),
        Value::Array(items) => items.iter().any(holds_marker),
        Value::Object(fields) => fields.iter().any(|(name, field)| has_marker(name) || holds_marker(field)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Headers must be what HTTP lets through (RFC 9110, section 5), whatever their secrets are.
fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("`headers`: `{name}` is not the name of a header"));
        }
        if value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(format!("`headers`: the value of {name} has a line break or another control character"));
        }
    }
    Ok(())
}

/// The token of a server's own bridge is presented to it, and to nobody else, where a check says nothing of that itself.
fn present_token(run: &Run, url: &str, headers: &mut BTreeMap<String, String>) {
    let own = run.transport == Transport::Stdio && run.endpoint.as_ref().is_some_and(|endpoint| endpoint.url() == url);
    let token = run.environment.get(BRIDGE_TOKEN_VARIABLE).filter(|token| own && !token.is_empty());
    if let Some(token) = token.filter(|_| !headers.keys().any(|name| name.eq_ignore_ascii_case("authorization"))) {
        headers.insert("Authorization".to_owned(), format!("Bearer {token}"));
    }
}

fn probe(check_type: CheckType, config: &Config, run: &Run) -> Result<Probe, Wrong> {
    let endpoint = || run.endpoint.as_ref().ok_or_else(|| "the server has no `port`, so say where to look".to_owned());
    Ok(match check_type {
        CheckType::Mcp => {
            if run.transport == Transport::None {
                return Err("the server's transport is `none`, so it speaks no MCP".into());
            }
            let McpConfig { url, expected_tools, mut headers, call } = read(config)?;
            let url = url.map_or_else(|| endpoint().map(|at| at.url()), Ok)?;
            present_token(run, &url, &mut headers);
            check_headers(&headers)?;
            Probe::Mcp { url, expected_tools, headers, call: call.map(CallConfig::rendered).transpose()? }
        }
        CheckType::Http => {
            let HttpConfig {
                url,
                path,
                status,
                contains,
                matches,
                json,
                headers,
                expected_headers,
                certificate_valid_for,
            } = read(config)?;
            check_headers(&headers)?;
            let more = HttpMore { headers, expected_headers, matches, json, certificate_valid_for };
            if let Some(pattern) = &more.matches {
                Regex::new(pattern).map_err(|error| format!("`matches`: {error}"))?;
            }
            check_paths(&more.json)?;
            let url = match (url, path) {
                (Some(url), None) => url,
                (None, path) => format!("http://{}{}", endpoint()?.authority(), path.as_deref().unwrap_or("/")),
                (Some(_), Some(_)) => return Err("give `url` or `path`, not both".into()),
            };
            if more.certificate_valid_for.is_some() && !url.starts_with("https://") {
                return Err(format!("`certificate_valid_for` needs an https URL, not {url}").into());
            }
            let statuses = status.map_or_else(|| vec![200], |status| status.0);
            Probe::Http { url, statuses, contains, more: Box::new(more) }
        }
        CheckType::Tcp => {
            let TcpConfig { address } = read(config)?;
            Probe::Tcp { address: address.map_or_else(|| endpoint().map(|at| at.authority()), Ok)? }
        }
        CheckType::Command => {
            let CommandConfig { command } = read(config)?;
            if command.is_empty() {
                return Err("`command` is empty".into());
            }
            Probe::Command { command }
        }
        CheckType::File => {
            let FileConfig { path, age_max, exists, sha256, mode } = read(config)?;
            let absent = exists == Some(false);
            if absent && (age_max.is_some() || sha256.is_some() || mode.is_some()) {
                return Err("a file that must not be there has no `age_max`, `sha256` or `mode`".into());
            }
            if sha256.as_ref().is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit())) {
                return Err("`sha256` is 64 hexadecimal digits".into());
            }
            let mode = match &mode {
                None => None,
                Some(text) => match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
                    Ok(mode) if mode <= 0o7777 => Some(mode),
                    Ok(_) | Err(_) => {
                        return Err(format!("`{text}` is not a file mode: write for example \"0640\"").into());
                    }
                },
            };
            Probe::File { path, age_max, absent, sha256: sha256.map(|hash| hash.to_ascii_lowercase()), mode }
        }
        CheckType::Disk => {
            let DiskConfig { path, free_min, free_percent_min } = read(config)?;
            if free_min.is_none() && free_percent_min.is_none() {
                return Err("say `free_min`, such as 1GiB, or `free_percent_min`, such as 10".into());
            }
            if free_percent_min.is_some_and(|percent| percent > 100) {
                return Err("`free_percent_min` is at most 100".into());
            }
            let free_bytes_min = free_min.map_or(Ok(0), |size| bytes(&size))?;
            Probe::Disk { path, free_bytes_min, free_percent_min: free_percent_min.unwrap_or(0) }
        }
        CheckType::Systemd => {
            let SystemdConfig { unit } = read(config)?;
            let unit = if unit.contains('.') { unit } else { format!("{unit}.service") };
            if unit.starts_with('-') || unit.contains(['/', '\n', ' ']) {
                return Err(format!("`{unit}` is not the name of a unit").into());
            }
            Probe::Systemd { unit }
        }
        CheckType::Custom => {
            let CommandConfig { command } = read(config)?;
            if command.is_empty() {
                return Err("`command` is empty".into());
            }
            Probe::Custom { command }
        }
    })
}

/// What is wrong with what a check is told, with what would be right where that is known.
struct Wrong {
    message: String,
    hint: Option<String>,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

impl From<&str> for Wrong {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

fn read<T: DeserializeOwned>(config: &Config) -> Result<T, Wrong> {
    // The place is looked for only where there is something to be said of it.
    T::deserialize(config).or_else(|_| serde_path_to_error::deserialize(config)).map_err(|error| {
        let (path, said) = (error.path().to_string(), error.inner().to_string());
        let near = wording::unknown(&said).and_then(|(name, known)| near_miss(name, known));
        let said = wording::of_data(&said);
        let message = if path == "." { said } else { format!("`{path}`: {said}") };
        Wrong { message, hint: near }
    })
}
