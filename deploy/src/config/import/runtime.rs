//! Arguments of the programs with which clients start packages of PyPI and npm (`uvx`, `npx` and their like): what they
//! say of the package itself is kept, what only concerns the client is passed over, anything else is told.

use super::ImportError;
use super::answers::{Answers, Token};
use super::words::{Words, one_line};

/// What the arguments of a runtime say.
#[derive(Default)]
pub(super) struct Runtime {
    /// The program, where they name one.
    pub(super) program: Option<String>,
    /// Further packages.
    pub(super) with: Vec<String>,
    /// What the program is given before everything else.
    pub(super) arguments: Vec<Words>,
    /// The module that an interpreter runs.
    pub(super) module: Option<String>,
}

/// Options that say how a client goes about it.
const OF_THE_CLIENT: [&str; 18] = [
    "-y",
    "--yes",
    "-q",
    "--quiet",
    "--silent",
    "-s",
    "--prefer-offline",
    "--prefer-online",
    "--no-install",
    "--isolated",
    "--no-cache",
    "-n",
    "--refresh",
    "--offline",
    "--no-progress",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
];
/// Options that say where packages come from.
const SOURCES: [&str; 10] = [
    "--registry",
    "--index",
    "--index-url",
    "-i",
    "--extra-index-url",
    "--default-index",
    "--find-links",
    "-f",
    "--userconfig",
    "--pip-args",
];

/// Reads them. `package` is the name of the package, `version` its version.
pub(super) fn read(
    tokens: Vec<Token>,
    hint: &str,
    (package, version): (&str, &str),
    answers: &mut Answers,
) -> Result<Runtime, ImportError> {
    let mut found = Runtime::default();
    let mut tokens = tokens.into_iter().peekable();
    let interpreter = matches!(hint, "python" | "python3");
    let known = interpreter || matches!(hint, "npx" | "uvx" | "bunx" | "pipx" | "dnx" | "pnpx");
    // Whether the package was named apart, so that the next word is its program.
    let mut apart = false;
    let mut first = true;
    while let Some(token) = tokens.next() {
        let Some(text) = token.words.as_text().filter(|_| known) else {
            left(token, hint, answers)?;
            continue;
        };
        let (option, inline) = match text.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_owned())),
            _ => (text, None),
        };
        let option = option.to_owned();
        let mut value =
            || inline.clone().or_else(|| tokens.next_if(|next| next.words.as_text().is_some()).and_then(text_of));
        match option.as_str() {
            option if OF_THE_CLIENT.contains(&option) || option == "--" => {}
            option if SOURCES.contains(&option) => {
                let message = format!("`{option}` says where packages come from, and an entry says that elsewhere");
                return Err(ImportError::at(&token.place, message).hint(
                    "write the registry's URL as the package's `registryBaseUrl`, and leave this out of the entry: the \
                     package is then never taken from the public one",
                ));
            }
            "--from" | "-p" | "--package" | "--spec" if !(interpreter || (option == "-p" && hint == "uvx")) => {
                let named = value().unwrap_or_default();
                if !is_package(&named, package, version) {
                    let message = format!("`{option} {}` names another package than the entry", one_line(&named));
                    return Err(
                        ImportError::at(&token.place, message).hint("a definition has one package of a registry")
                    );
                }
                apart = true;
            }
            "--with" if hint == "uvx" => {
                let extra = value().unwrap_or_default();
                let exact = extra.split_once("==").is_some_and(|(name, version)| {
                    crate::release::is_pypi_name(name) && super::definition::is_exact(version)
                });
                if !exact {
                    let message = format!("`--with {}` is no exact version", one_line(&extra));
                    return Err(ImportError::at(&token.place, message).hint("write NAME==VERSION in the entry"));
                }
                found.with.push(extra);
            }
            "--python" | "-p" if hint == "uvx" => {
                let version = value().unwrap_or_default();
                answers.notes.push(format!(
                    "{}: wants Python {}: say so in `requires`",
                    token.place,
                    one_line(&version)
                ));
            }
            "-m" if interpreter && found.module.is_none() => {
                found.module = value();
                found.arguments.extend(tokens.by_ref().map(|token| token.words));
            }
            "run" if first && hint == "pipx" => {}
            option if option.starts_with('-') || interpreter => {
                // Its value goes with it, where the entry has both in one.
                while tokens.next_if(|next| next.place == token.place).is_some() {}
                left(token, hint, answers)?;
            }
            word => {
                if apart {
                    found.program = Some(word.to_owned());
                } else if !is_package(word, package, version) {
                    let message = format!("`{}` is another package than the entry's", one_line(word));
                    return Err(
                        ImportError::at(&token.place, message).hint("a definition has one package of a registry")
                    );
                }
                found.arguments.extend(tokens.by_ref().map(|token| token.words));
            }
        }
        first = false;
    }
    Ok(found)
}

fn text_of(token: Token) -> Option<String> {
    token.words.as_text().map(str::to_owned)
}

/// Whether this names the entry's own package, with its version or without, with extras or without.
fn is_package(named: &str, package: &str, version: &str) -> bool {
    let rest = named.strip_prefix(package).unwrap_or("\0");
    let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, rest)) => rest,
        None => rest,
    };
    let rest = rest.trim_start_matches("==").trim_start_matches('@');
    rest.is_empty() || rest == version || rest == "latest"
}

fn left(token: Token, hint: &str, answers: &mut Answers) -> Result<(), ImportError> {
    let shown = one_line(&token.words.template());
    if token.needed {
        let message = format!("`{shown}` is an argument of `{}`, which a definition cannot keep", one_line(hint));
        return Err(
            ImportError::at(&token.place, message).hint("leave it out of the entry if the server runs without it")
        );
    }
    answers.notes.push(format!("{}: left out, since it is for a client that starts it: {shown}", token.place));
    Ok(())
}
