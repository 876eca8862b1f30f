//! Templates: Tera with Fleetwright's context and functions. A missing value is an error with its place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_saphyr::Spanned;
use sha2::{Digest, Sha256};
use strum::VariantNames;
use tera::{Context, ErrorKind, Kwargs, State, Tera, Value};

use crate::config::{Problem, Problems, Source, near_miss};
use crate::planning::Files;
use crate::release::{MARKER_END, MARKER_START, SecretEncoding, SecretSource, SecretUse, is_secret_name, marker};
use crate::time::Timestamp;

/// Longest text that `random_string` gives, in characters.
const RANDOM_CHARACTERS_MAX: u32 = 256;

/// What one release is rendered with, and what that used.
#[derive(Default)]
struct Used {
    scope: String,
    now: Timestamp,
    clock: bool,
    secrets: BTreeMap<String, SecretUse>,
}

/// The templates of a plan's releases. Making them is dear, so they are made once and begun anew for each release.
pub(in crate::planning) struct Templates {
    tera: Tera,
    context: Context,
    /// What is the same for many releases, by what it is the same for.
    kept: HashMap<String, Value>,
    used: Arc<Mutex<Used>>,
}

impl Templates {
    /// Templates whose function `env` sees `variables`, whose `secret` knows `declared`, and whose `file` reads `files`.
    pub(in crate::planning) fn new(
        variables: &BTreeMap<String, String>,
        declared: &BTreeMap<String, SecretSource>,
        files: &Files,
    ) -> Self {
        let used = Arc::new(Mutex::new(Used::default()));
        let mut tera = Tera::new();
        register_env(&mut tera, variables.clone());
        register_secret(&mut tera, declared.clone(), Arc::clone(&used));
        register_random_string(&mut tera, Arc::clone(&used));
        register_now(&mut tera, Arc::clone(&used));
        register_file(&mut tera, files.clone());
        register_required(&mut tera);
        register_filters(&mut tera);
        Self { tera, context: Context::new(), kept: HashMap::new(), used }
    }

    /// Begins a release, for which `random_string` gives the same text for the same `scope` and name, and `now` is
    /// `now`. What was set for the one before is no longer there.
    pub(super) fn begin(&mut self, scope: String, now: Timestamp) {
        self.context = Context::new();
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Used { scope, now, ..Used::default() };
    }

    /// Makes a value visible to the templates rendered from now on.
    pub(super) fn set(&mut self, name: &'static str, value: &impl Serialize) {
        self.context.insert(name, value);
    }

    /// The same with a value that is made once for all releases of which it is the same.
    pub(super) fn set_kept<T: Serialize>(&mut self, name: &'static str, of: &str, value: impl FnOnce() -> T) {
        let key = format!("{name} {of}");
        let value = self.kept.entry(key).or_insert_with(|| Value::from_serializable(&value()));
        self.context.insert_value(name, value.clone());
    }

    /// Renders a text that was written in a file.
    pub(super) fn render(&self, source: &Source, written: &Spanned<String>) -> Result<String, Problems> {
        self.render_text(&written.value).map_err(|error| {
            let problem = match error.place {
                Some((line, column)) => Problem::within(source, written, line, column, error.message),
                None => Problem::at(source, written, error.message),
            };
            match error.hint {
                Some(hint) => problem.hint(hint).into(),
                None => problem.into(),
            }
        })
    }

    /// Renders a text whose own place is not known.
    pub(super) fn render_text(&self, text: &str) -> Result<String, TemplateError> {
        if !is_template(text) {
            return Ok(text.to_owned());
        }
        let rendered = self.tera.render_str(text, &self.context, false).map_err(|error| TemplateError::new(&error))?;
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if are_whole(&rendered, &used.secrets) { Ok(rendered) } else { Err(TemplateError::changed_secret()) }
    }

    pub(super) fn clock_was_read(&self) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clock
    }

    pub(super) fn secrets_used(&self) -> BTreeMap<String, SecretUse> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).secrets.clone()
    }
}

/// Whether a text is more than itself.
pub(super) fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// Why a template cannot be rendered.
pub(super) struct TemplateError {
    pub(super) message: String,
    place: Option<(usize, usize)>,
    hint: Option<String>,
}

/// Whether every marker of a secret is as it was made: a filter works on the marker, not on the value.
fn are_whole(rendered: &str, used: &BTreeMap<String, SecretUse>) -> bool {
    let mut rest = rendered;
    let sign = MARKER_START.chars().next().unwrap_or_default();
    while let Some(at) = rest.find([sign, MARKER_END]) {
        let Some((name, after)) = rest[at..].strip_prefix(MARKER_START).and_then(|after| after.split_once(MARKER_END))
        else {
            return false;
        };
        if !used.contains_key(name) {
            return false;
        }
        rest = after;
    }
    true
}

impl TemplateError {
    fn changed_secret() -> Self {
        Self {
            message: "template: a filter has changed a secret, whose value is not known here".to_owned(),
            place: None,
            hint: Some("use the secret as it is, and let its value be what the server wants".to_owned()),
        }
    }

    fn new(error: &tera::Error) -> Self {
        let (text, place) = match error.kind() {
            ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
                (report.message().to_owned(), Some((report.span().start_line, report.span().start_col)))
            }
            _ => (error.to_string(), None),
        };
        let (text, hint) = match text.split_once(HINT_MARK) {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        };
        let mut message = text.trim().trim_end_matches('.').to_owned();
        if let Some(first) = message.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        Self { message: format!("template: {message}"), place, hint }
    }
}

/// Separates message and hint where an error has to pass through Tera as one text.
const HINT_MARK: &str = "\u{1f}hint: ";

fn error(message: String, hint: Option<String>) -> tera::Error {
    match hint {
        Some(hint) => tera::Error::message(format!("{message}{HINT_MARK}{hint}")),
        None => tera::Error::message(message),
    }
}

fn register_env(tera: &mut Tera, variables: BTreeMap<String, String>) {
    tera.register_function("env", move |kwargs: Kwargs, _: &State| {
        let name: String = kwargs.must_get("name")?;
        let default: Option<String> = kwargs.get("default")?;
        variables.get(&name).cloned().or(default).ok_or_else(|| {
            let hint = format!("export {name}, or give a default: env(name=\"{name}\", default=\"…\")");
            error(format!("the environment variable `{name}` is not set"), Some(hint))
        })
    });
}

fn register_secret(tera: &mut Tera, declared: BTreeMap<String, SecretSource>, used: Arc<Mutex<Used>>) {
    tera.register_function("secret", move |kwargs: Kwargs, _: &State| {
        let name: String = kwargs.must_get("name")?;
        let encode = match kwargs.get::<String>("encode")? {
            None => None,
            Some(encode) => Some(encode.parse::<SecretEncoding>().map_err(|_| {
                let known = SecretEncoding::VARIANTS.join(", ");
                error(format!("there is no encoding `{encode}`"), Some(format!("`encode` is one of {known}")))
            })?),
        };
        let Some(source) = declared.get(&name) else {
            let near = near_miss(&name, declared.keys().map(String::as_str));
            let hint = near.unwrap_or_else(|| format!("declare it under `secrets:` as `{name}: {{ env: VARIABLE }}`"));
            return Err(error(format!("the environment declares no secret `{name}`"), Some(hint)));
        };
        let key = match encode {
            Some(encode) => format!("{name}.{}", <&'static str>::from(encode)),
            None => name,
        };
        let secret = SecretUse { source: source.clone(), digest: None, encode };
        used.lock().unwrap_or_else(PoisonError::into_inner).secrets.insert(key.clone(), secret);
        Ok(marker(&key))
    });
}

fn register_random_string(tera: &mut Tera, used: Arc<Mutex<Used>>) {
    tera.register_function("random_string", move |kwargs: Kwargs, _: &State| {
        let length: u32 = kwargs.must_get("length")?;
        let name: String = kwargs.get("name")?.unwrap_or_else(|| "default".to_owned());
        if length == 0 || length > RANDOM_CHARACTERS_MAX {
            return Err(error(
                format!("random_string gives 1 to {RANDOM_CHARACTERS_MAX} characters, not {length}"),
                None,
            ));
        }
        if !is_secret_name(&name) {
            let hint = "letters, digits, `-` and `_`, at most 64".to_owned();
            return Err(error(format!("`{name}` is not the name of a random text"), Some(hint)));
        }
        let key = format!("random.{name}.{length}");
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        let source = SecretSource::Generated { context: format!("{}/{name}", used.scope), length };
        used.secrets.insert(key.clone(), SecretUse { source, digest: None, encode: None });
        Ok(marker(&key))
    });
}

fn register_file(tera: &mut Tera, files: Files) {
    tera.register_function("file", move |kwargs: Kwargs, _: &State| {
        let path: String = kwargs.must_get("path")?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\n']);
        if !path.split('/').all(plain) {
            let hint = "write a path below the folder `files` beside `config`, without `..`".to_owned();
            return Err(error(format!("`{path}` is not the path of a file"), Some(hint)));
        }
        let text = files.read(&path).map_err(|why| {
            error(
                format!("the file `{path}` cannot be read: {why}"),
                Some("it is looked for in `files`, beside `config`".to_owned()),
            )
        })?;
        // What looks like a marker would be taken for one.
        if text.contains([MARKER_END]) || text.contains(MARKER_START) {
            return Err(error(format!("the file `{path}` has characters that mark secrets"), None));
        }
        Ok(text)
    });
}

fn register_required(tera: &mut Tera) {
    tera.register_function("required", |kwargs: Kwargs, _: &State| {
        let message: String =
            kwargs.get("message")?.unwrap_or_else(|| "a value that is required is not there".to_owned());
        let value: Option<Value> = kwargs.get("value")?;
        match value.filter(|value| !value.is_none() && !value.is_undefined() && value.as_str() != Some("")) {
            Some(value) => Ok(value),
            None => Err(error(message, None)),
        }
    });
}

/// What Tera does not bring: encodings and digests, for texts that hold no secret.
fn register_filters(tera: &mut Tera) {
    fn open(text: &str) -> Result<&str, tera::Error> {
        match text.contains(MARKER_START) {
            true => Err(error("a filter would change a secret, whose value is not known here".to_owned(), None)),
            false => Ok(text),
        }
    }
    tera.register_filter("base64_encode", |text: &str, _: Kwargs, _: &State| Ok(STANDARD.encode(open(text)?)));
    tera.register_filter("base64_decode", |text: &str, _: Kwargs, _: &State| {
        let bytes = STANDARD.decode(open(text)?).map_err(|_| error("this is not base64".to_owned(), None))?;
        String::from_utf8(bytes).map_err(|_| error("what the base64 holds is no text".to_owned(), None))
    });
    tera.register_filter("sha256", |text: &str, _: Kwargs, _: &State| Ok(hex::encode(Sha256::digest(open(text)?))));
    tera.register_filter("to_json", |value: Value, _: Kwargs, _: &State| {
        serde_json::to_string(&value).map_err(|failed| error(failed.to_string(), None))
    });
    tera.register_filter("to_yaml", |value: Value, _: Kwargs, _: &State| {
        serde_saphyr::to_string(&value).map_err(|failed| error(failed.to_string(), None))
    });
}

fn register_now(tera: &mut Tera, used: Arc<Mutex<Used>>) {
    tera.register_function("now", move |_: Kwargs, _: &State| {
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        used.clock = true;
        used.now.to_string()
    });
}
