//! Rendering of health checks: from the words of a definition to what the agent runs.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::Templates;
use crate::config::{CheckType, Problem, Problems, Source, WrittenCheck};
use crate::health::{HealthCheck, Probe};
use crate::release::{Run, Transport};
use crate::time::Length;

const INTERVAL: Length = Length::from_secs(10);
const TIMEOUT: Length = Length::from_secs(10);
const FAILURE_THRESHOLD: u32 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct McpConfig {
    url: Option<String>,
    #[serde(default)]
    expected_tools: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpConfig {
    url: Option<String>,
    path: Option<String>,
    status: Option<u16>,
    contains: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpConfig {
    address: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandConfig {
    command: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileConfig {
    path: String,
    age_max: Option<Length>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskConfig {
    path: String,
    free_min: String,
}

/// The check as the agent runs it against an instance that runs as `run` says.
pub(super) fn rendered(
    source: &Source,
    written: &Spanned<WrittenCheck>,
    run: &Run,
    templates: &Templates,
) -> Result<HealthCheck, Problems> {
    let check = &written.value;
    let wrong = |message: String| {
        let kind: &'static str = check.check_type.into();
        Problem::at(source, written, format!("check `{}` of type {kind}: {message}", check.name))
    };
    let mut config = Value::Object(check.config.clone());
    render_texts(&mut config, templates).map_err(&wrong)?;
    let probe = probe(check.check_type, config, run).map_err(&wrong)?;
    let failure_threshold = check.failure_threshold.unwrap_or(FAILURE_THRESHOLD);
    let interval = check.interval.unwrap_or(INTERVAL);
    let timeout = check.timeout.unwrap_or(TIMEOUT);
    if failure_threshold == 0 || interval == Length::ZERO || timeout == Length::ZERO {
        return Err(wrong("`failure_threshold`, `interval` and `timeout` must be above 0".to_owned()).into());
    }
    Ok(HealthCheck {
        name: check.name.clone(),
        severity: check.severity,
        probe,
        interval,
        timeout,
        failure_threshold,
        tags: check.tags.clone(),
    })
}

fn render_texts(value: &mut Value, templates: &Templates) -> Result<(), String> {
    match value {
        Value::String(text) => *text = templates.render_text(text).map_err(|error| error.message)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| render_texts(item, templates))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|field| render_texts(field, templates))?,
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

fn probe(check_type: CheckType, config: Value, run: &Run) -> Result<Probe, String> {
    let endpoint = || run.endpoint.as_ref().ok_or_else(|| "the server has no `port`, so say where to look".to_owned());
    Ok(match check_type {
        CheckType::Mcp => {
            if run.transport == Transport::None {
                return Err("the server's transport is `none`, so it speaks no MCP".to_owned());
            }
            let McpConfig { url, expected_tools } = read(config)?;
            Probe::Mcp { url: url.map_or_else(|| endpoint().map(|at| at.url()), Ok)?, expected_tools }
        }
        CheckType::Http => {
            let HttpConfig { url, path, status, contains } = read(config)?;
            let url = match (url, path) {
                (Some(url), None) => url,
                (None, path) => format!("http://{}{}", endpoint()?.authority(), path.as_deref().unwrap_or("/")),
                (Some(_), Some(_)) => return Err("give `url` or `path`, not both".to_owned()),
            };
            Probe::Http { url, statuses: vec![status.unwrap_or(200)], contains }
        }
        CheckType::Tcp => {
            let TcpConfig { address } = read(config)?;
            Probe::Tcp { address: address.map_or_else(|| endpoint().map(|at| at.authority()), Ok)? }
        }
        CheckType::Command => {
            let CommandConfig { command } = read(config)?;
            if command.is_empty() {
                return Err("`command` is empty".to_owned());
            }
            Probe::Command { command }
        }
        CheckType::File => {
            let FileConfig { path, age_max } = read(config)?;
            Probe::File { path, age_max }
        }
        CheckType::Disk => {
            let DiskConfig { path, free_min } = read(config)?;
            Probe::Disk { path, free_bytes_min: bytes(&free_min)? }
        }
    })
}

fn read<T: DeserializeOwned>(config: Value) -> Result<T, String> {
    serde_json::from_value(config).map_err(|error| error.to_string())
}

/// A size such as `100MiB` or `2GiB`, in bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match unit.trim() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        _ => None,
    };
    let size = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    size.ok_or_else(|| format!("`{text}` is not a size: write for example 100MiB or 2GiB"))
}
