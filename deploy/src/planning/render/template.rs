//! Templates: Tera with Fleetwright's context and functions. A missing value is an error with its place.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_saphyr::Spanned;
use sha2::{Digest, Sha256};
use strum::VariantNames;
use tera::{Context, ErrorKind, Kwargs, State, Tera, Value};

use super::context::{Kept, Subject};
use crate::config::{Field, Problem, Problems, Source, near_miss};
use crate::planning::Files;
use crate::release::{
    MARKER_END, MARKER_SIGN, MARKER_START, SecretEncoding, SecretSource, SecretUse, has_marker, is_secret_name, marker,
};
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

/// Words without which a text comes out the same for every release of a plan: they give what is a release's own, or are
/// noted in it.
const OF_ONE_RELEASE: [&str; 6] = ["server", "host", "secret", "random_string", "now", "__tera_context"];
/// The same where the variables of the environment are templates themselves.
const VARIABLES: &str = "env";
/// How many texts that are the same for every release are kept, and how long they may be, in bytes.
const COMMON_TEXTS_MAX: usize = 4_096;
const COMMON_BYTES_MAX: usize = 4_096;

/// The templates of a plan's releases. Making them is dear, so they are made once and begun anew for each release.
pub(in crate::planning) struct Templates<'a> {
    tera: Tera,
    used: Arc<Mutex<Used>>,
    subject: Option<Subject<'a>>,
    /// The variables of the environment, rendered for the subject, where some are templates.
    variables: Option<BTreeMap<&'a str, String>>,
    /// What the subject's templates see; made when there is one.
    context: OnceCell<Context>,
    kept: Kept<'a>,
    /// What was rendered and is the same for every release, by its template.
    common: RefCell<HashMap<String, String>>,
}

impl<'a> Templates<'a> {
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
        Self {
            tera,
            used,
            subject: None,
            variables: None,
            context: OnceCell::new(),
            kept: Kept::default(),
            common: RefCell::default(),
        }
    }

    /// Begins a release, for which `now` is `now`. Variables of its environment that are templates are rendered first,
    /// and see nothing but functions.
    pub(super) fn begin(&mut self, own: &Source, subject: Subject<'a>, now: Timestamp) -> Result<(), Problems> {
        let environment = subject.environment;
        {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let Used { mut scope, .. } = std::mem::take(&mut *used);
            scope.clear();
            // `random_string` gives the same text for the same scope and name.
            scope.push_str(environment.name.value.as_str());
            scope.push('/');
            scope.push_str(subject.server.name.value.as_str());
            *used = Used { scope, now, ..Used::default() };
        }
        self.subject = Some(subject);
        self.context = OnceCell::new();
        self.variables = None;
        if environment.variables.values().any(|written| is_template(&written.value)) {
            let nothing = Context::new();
            let mut variables = BTreeMap::new();
            for (name, written) in &environment.variables {
                let source = environment.source_of(own, Field::Variable, name);
                let rendered = self.render_with(&written.value, &nothing);
                variables.insert(name.as_str(), rendered.map_err(|error| error.at(source, written))?);
            }
            self.variables = Some(variables);
        }
        Ok(())
    }

    /// Renders a text that was written in a file.
    pub(super) fn render(&self, source: &Source, written: &Spanned<String>) -> Result<String, Problems> {
        self.render_text(&written.value).map_err(|error| error.at(source, written).into())
    }

    /// Renders a text whose own place is not known.
    pub(super) fn render_text(&self, text: &str) -> Result<String, TemplateError> {
        if !is_template(text) {
            return Ok(text.to_owned());
        }
        if let Some(known) = self.common.borrow().get(text) {
            return Ok(known.clone());
        }
        let variables = self.variables.as_ref();
        let context = self
            .context
            .get_or_init(|| self.subject.map_or_else(Context::new, |subject| self.kept.context(subject, variables)));
        let rendered = self.render_with(text, context)?;
        let is_own = OF_ONE_RELEASE.iter().any(|word| text.contains(word))
            || (variables.is_some() && text.contains(VARIABLES))
            || rendered.contains([MARKER_SIGN, MARKER_END]);
        let mut common = self.common.borrow_mut();
        if !is_own && text.len() + rendered.len() <= COMMON_BYTES_MAX && common.len() < COMMON_TEXTS_MAX {
            common.insert(text.to_owned(), rendered.clone());
        }
        Ok(rendered)
    }

    fn render_with(&self, text: &str, context: &Context) -> Result<String, TemplateError> {
        if !is_template(text) {
            return Ok(text.to_owned());
        }
        let rendered = self.tera.render_str(text, context, false).map_err(|error| TemplateError::new(&error))?;
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if are_whole(&rendered, &used.secrets) { Ok(rendered) } else { Err(TemplateError::changed_secret()) }
    }

    pub(super) fn clock_was_read(&self) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clock
    }

    /// The secrets that the release uses; those of the next one come anew.
    pub(super) fn take_secrets_used(&self) -> BTreeMap<String, SecretUse> {
        std::mem::take(&mut self.used.lock().unwrap_or_else(PoisonError::into_inner).secrets)
    }
}

/// Whether a text is more than itself.
pub(super) fn is_template(text: &str) -> bool {
    // Most texts have no brace at all.
    let follows = |(at, _)| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%'));
    text.match_indices('{').any(follows)
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
    while let Some(at) = rest.find([MARKER_SIGN, MARKER_END]) {
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
    fn at(self, source: &Source, written: &Spanned<String>) -> Problem {
        let problem = match self.place {
            Some((line, column)) => Problem::within(source, written, line, column, self.message),
            None => Problem::at(source, written, self.message),
        };
        match self.hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }

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
        if text.contains([MARKER_END]) || has_marker(&text) {
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
        match has_marker(text) {
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
