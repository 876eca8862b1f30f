//! Arguments of `docker run`: what a definition has a field for becomes that field, what only concerns the client is passed
//! over, anything else that the image needs refuses the import by its name.

use super::ImportError;
use super::answers::{Answers, Token};
use super::entry::{EntryPackage, Input};
use super::words::{Words, one_line};

/// What the arguments say of the container.
#[derive(Default)]
pub(super) struct Container {
    pub(super) port: Option<u16>,
    /// The port of the host that the entry publishes it on.
    pub(super) published: Option<u16>,
    pub(super) network: Option<String>,
    pub(super) volumes: Vec<Words>,
    pub(super) capabilities: Vec<String>,
    pub(super) read_only: bool,
    pub(super) user: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) cpu: Option<String>,
    pub(super) tasks: Option<u32>,
    pub(super) environment: Vec<(String, Words)>,
    /// Variables that are only named: their values come from the client's environment.
    pub(super) passed_on: Vec<(String, String)>,
    /// What the program is given.
    pub(super) arguments: Vec<Words>,
}

/// Options of the client's: with a value, and without.
const OF_THE_CLIENT: [&str; 10] = [
    "--name",
    "--pull",
    "--label",
    "-l",
    "--restart",
    "--log-driver",
    "--cap-drop",
    "--hostname",
    "-h",
    "--stop-timeout",
];
const FLAGS_OF_THE_CLIENT: [&str; 12] =
    ["--rm", "-i", "-t", "-it", "-ti", "-d", "--interactive", "--tty", "--detach", "--init", "-q", "--quiet"];
/// Options that take no value.
const FLAGS: [&str; 5] = ["--privileged", "--read-only", "--no-healthcheck", "-P", "--publish-all"];

/// The port inside the container that the arguments publish, as far as the entry itself says it.
pub(super) fn port_of(package: &EntryPackage) -> Option<u16> {
    published(package).and_then(|said| said.rsplit(':').next()?.split('/').next()?.parse().ok())
}

fn published(package: &EntryPackage) -> Option<&str> {
    values_of(package, &["-p", "--publish"])
}

/// Whether the container is to share the host's network.
pub(super) fn shares_network(package: &EntryPackage) -> bool {
    values_of(package, &["--network", "--net"]) == Some("host")
}

fn values_of<'a>(package: &'a EntryPackage, options: &[&str]) -> Option<&'a str> {
    let inputs = &package.runtime_arguments;
    fn said(input: &Input) -> Option<&str> {
        input.value.as_ref().or(input.default.as_ref()).map(|said| said.0.as_str())
    }
    inputs.iter().enumerate().find_map(|(number, input)| {
        let word = input.name.as_deref().filter(|name| !name.is_empty()).or_else(|| said(input))?;
        if let Some((_, value)) = word.split_once('=').filter(|(option, _)| options.contains(option)) {
            return Some(value);
        }
        let own = input.name.as_deref().filter(|name| !name.is_empty()).and_then(|_| said(input));
        options.contains(&word).then(|| own.or_else(|| inputs.get(number + 1).and_then(said)))?
    })
}

/// Reads them. `image` is what the entry calls its image.
pub(super) fn read(tokens: Vec<Token>, image: &str, answers: &mut Answers) -> Result<Container, ImportError> {
    let mut found = Container::default();
    let mut tokens = tokens.into_iter().peekable();
    tokens.next_if(|token| token.words.as_text() == Some("run"));
    while let Some(token) = tokens.next() {
        if token.words.as_text() == Some(image) {
            for token in tokens.by_ref() {
                if token.words.holds_secret() {
                    let message = "a secret would be an argument of the image's program".to_owned();
                    let hint = "everybody on the host would see it: hand it over in the entry's `environmentVariables`";
                    return Err(ImportError::at(&token.place, message).hint(hint));
                }
                found.arguments.push(token.words);
            }
            break;
        }
        let (option, inline) = option_of(&token)?;
        if FLAGS_OF_THE_CLIENT.contains(&option.as_str()) {
            continue;
        }
        if FLAGS.contains(&option.as_str()) {
            flag(&option, inline.as_ref(), &token, &mut found)?;
            continue;
        }
        let Some(value) = inline.or_else(|| tokens.next().map(|next| next.words)) else {
            return Err(unknown(&option, &token));
        };
        if OF_THE_CLIENT.contains(&option.as_str()) {
            continue;
        }
        if let Err(error) = found.take(&option, &value, &token, answers) {
            if token.needed {
                return Err(error);
            }
            answers.notes.push(format!("{error}; it was left out"));
        }
    }
    Ok(found)
}

/// An option, with its value where both are one word.
fn option_of(token: &Token) -> Result<(String, Option<Words>), ImportError> {
    let (name, value) = match token.words.split_once('=') {
        Some((name, value)) if name.as_text().is_some_and(|name| name.starts_with("--")) => (name, Some(value)),
        _ => (token.words.clone(), None),
    };
    match name.as_text().filter(|name| name.starts_with('-')) {
        Some(name) => Ok((name.to_owned(), value)),
        None => {
            let message = format!("`{}` is no option of `docker run`", one_line(&name.template()));
            Err(ImportError::at(&token.place, message)
                .hint("what the image's program is given belongs in `packageArguments`"))
        }
    }
}

fn unknown(option: &str, token: &Token) -> ImportError {
    let message = format!("`{}` is an option of `docker run` that a definition cannot keep", one_line(option));
    ImportError::at(&token.place, message).hint("leave it out of the entry if the image runs without it")
}

fn flag(option: &str, value: Option<&Words>, token: &Token, found: &mut Container) -> Result<(), ImportError> {
    if value.is_some_and(|value| value.as_text() == Some("false")) || option == "--no-healthcheck" {
        return Ok(());
    }
    if option == "--read-only" {
        found.read_only = true;
        return Ok(());
    }
    Err(unknown(option, token))
}

impl Container {
    fn take(&mut self, option: &str, value: &Words, token: &Token, answers: &mut Answers) -> Result<(), ImportError> {
        let wrong = |why: &str| {
            ImportError::at(&token.place, format!("`{option} {}`: {why}", one_line(&value.template())))
                .hint("correct it in the entry, or leave it out if the image runs without it")
        };
        let text = value.as_text();
        match option {
            "-e" | "--env" => self.environment(value, &token.place).map_err(wrong),
            "-v" | "--volume" => self.volume(value).map_err(wrong),
            "--mount" => self.mount(value).map_err(wrong),
            "-p" | "--publish" => self.publish(value, answers).map_err(wrong),
            "--network" | "--net" => match text {
                Some(name) if is_plain(name) => {
                    self.network = Some(name.to_owned());
                    Ok(())
                }
                _ => Err(wrong("a network is bridge, host, none, or a plain name")),
            },
            "--cap-add" => {
                let capability = text.map(|text| text.trim_start_matches("CAP_")).unwrap_or_default();
                let fits = |b: u8| b.is_ascii_uppercase() || b == b'_';
                if capability.is_empty() || !capability.bytes().all(fits) || capability == "ALL" {
                    return Err(wrong("a definition names single capabilities"));
                }
                self.capabilities.push(capability.to_owned());
                Ok(())
            }
            "-u" | "--user" => {
                let user = text.unwrap_or_default();
                let parts = user.split(':').count();
                if parts > 2 || !user.split(':').all(is_plain) {
                    return Err(wrong("a user of an image is USER or USER:GROUP"));
                }
                self.user = Some(user.to_owned());
                Ok(())
            }
            "-m" | "--memory" => {
                self.memory = Some(text.and_then(memory).ok_or_else(|| wrong("an amount of memory is such as 512m"))?);
                Ok(())
            }
            "--cpus" => {
                let cpus = text.and_then(|text| text.parse::<f64>().ok()).filter(|cpus| (0.01..=1000.0).contains(cpus));
                let percent = cpus
                    .map(|cpus| (cpus * 100.0).ceil())
                    .ok_or_else(|| wrong("a number of processors is such as 1.5"))?;
                self.cpu = Some(format!("{percent}%"));
                Ok(())
            }
            "--pids-limit" => {
                let tasks = text.and_then(|text| text.parse().ok()).filter(|tasks| *tasks > 0);
                self.tasks = Some(tasks.ok_or_else(|| wrong("it is a number above 0"))?);
                Ok(())
            }
            "--security-opt" if text.is_some_and(|text| text.starts_with("no-new-privileges")) => Ok(()),
            _ => Err(unknown(option, token)),
        }
    }

    fn environment(&mut self, value: &Words, place: &str) -> Result<(), &'static str> {
        let (name, value) = match value.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (value.clone(), None),
        };
        let name = name.as_text().filter(|name| super::definition::is_variable(name)).ok_or("it names no variable")?;
        match value {
            Some(value) => self.environment.push((name.to_owned(), value)),
            None => self.passed_on.push((name.to_owned(), place.to_owned())),
        }
        Ok(())
    }

    fn volume(&mut self, value: &Words) -> Result<(), &'static str> {
        let parts = value.split(':');
        let (source, target, options) = match parts.as_slice() {
            [source, target] => (source, target, None),
            [source, target, options] => (source, target, Some(options)),
            _ => return Err("a volume is SOURCE:TARGET or SOURCE:TARGET:ro"),
        };
        let options = match options {
            Some(options) => options.as_text().ok_or("its options are such as ro")?,
            None => "rw",
        };
        let mut read_only = false;
        for option in options.split(',') {
            match option {
                "ro" => read_only = true,
                "rw" | "z" | "Z" | "" => {}
                _ => return Err("a definition only knows the option ro"),
            }
        }
        self.mounted(source, target, read_only)
    }

    fn mount(&mut self, value: &Words) -> Result<(), &'static str> {
        let (mut source, mut target, mut read_only) = (None, None, false);
        for part in value.split(',') {
            let (key, value) = part.split_once('=').unwrap_or_else(|| (part.clone(), Words::text("true")));
            match key.as_text().unwrap_or_default() {
                "type" if matches!(value.as_text(), Some("bind" | "volume")) => {}
                "source" | "src" => source = Some(value),
                "target" | "destination" | "dst" => target = Some(value),
                "readonly" | "ro" => read_only = value.as_text() != Some("false") && value.as_text() != Some("0"),
                "consistency" => {}
                _ => return Err("a definition only knows binds and volumes with source, target and readonly"),
            }
        }
        let (source, target) = source.zip(target).ok_or("it needs a source and a target")?;
        self.mounted(&source, &target, read_only)
    }

    fn mounted(&mut self, source: &Words, target: &Words, read_only: bool) -> Result<(), &'static str> {
        if source.holds_secret() || target.holds_secret() {
            return Err("a secret is no path");
        }
        if let Some(source) = source.as_text().filter(|source| !is_path(source) && !is_plain(source)) {
            return Err(match source.starts_with(['.', '~', '$', '/']) {
                true => {
                    "its source is a folder of whoever starts it: make it a variable of the entry, or an absolute path"
                }
                false => "its source is neither an absolute path nor the name of a volume",
            });
        }
        if target.as_text().is_some_and(|target| !is_path(target)) {
            return Err("its target is no absolute path");
        }
        let mut volume = source.clone();
        volume.push_text(":");
        volume.push(target.clone());
        if read_only {
            volume.push_text(":ro");
        }
        self.volumes.push(volume);
        Ok(())
    }

    fn publish(&mut self, value: &Words, answers: &Answers) -> Result<(), &'static str> {
        if !answers.listens {
            return Err("a server that speaks over stdio publishes no port here");
        }
        let parts = value.split(':');
        let inside = parts.last().ok_or("it names no port")?;
        if *inside == answers.port && inside.as_text().is_none() {
            return Ok(());
        }
        let port = |words: &Words| words.as_text().and_then(|text| text.trim_end_matches("/tcp").parse().ok());
        self.port = Some(port(inside).ok_or("the port inside must be one TCP port")?);
        self.published = parts.len().checked_sub(2).and_then(|at| parts.get(at)).and_then(port);
        Ok(())
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.split('/').all(|part| part != "..") && !text.contains([':', '\n'])
}

fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// An amount of memory as Docker writes it, as a definition writes it.
fn memory(text: &str) -> Option<String> {
    let end = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = end.parse().ok().filter(|number| *number > 0)?;
    let unit = match text[end.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => "B",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return None,
    };
    let size = format!("{number}{unit}");
    crate::host::bytes(&size).ok().map(|_| size)
}
