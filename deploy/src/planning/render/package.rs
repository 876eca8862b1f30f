//! What is installed, and from which registry.

use serde_saphyr::Spanned;

use super::Templates;
use crate::config::{PackageWritten, Problem, Problems, RegistryWritten, Server, Source, without_secrets};
use crate::release::{Package, Registry, has_marker, masked};

pub(super) fn package(source: &Source, server: &Server, templates: &Templates<'_>) -> Result<Package, Problems> {
    let Some(written) = &server.package else { return Ok(Package::None) };
    let written = &written.value;
    let package = itself(server, written);
    match &written.registry {
        None => Ok(package),
        Some(registry) => {
            let registry = self::registry(source, registry, &package, templates)?;
            Ok(Package::Private { registry, package: Box::new(package) })
        }
    }
}

fn itself(server: &Server, written: &PackageWritten) -> Package {
    let version = written.version.value.clone();
    let sha256 = written.sha256.as_ref().map(|hash| hash.value.to_ascii_lowercase()).unwrap_or_default();
    if let Some(name) = &written.pypi {
        let with = written.with.iter().map(|extra| extra.value.clone()).collect();
        Package::Pypi { name: name.clone(), version, with, lock: server.lock.clone(), build: written.build }
    } else if let Some(name) = &written.npm {
        Package::Npm { name: name.clone(), version, lock: server.lock.clone() }
    } else if let Some(url) = &written.archive {
        Package::Archive { url: url.value.clone(), sha256, version, strip: written.strip }
    } else if let Some(url) = &written.file {
        let name = url.value.rsplit(['/', ':']).next().unwrap_or_default().to_owned();
        Package::File { url: url.value.clone(), sha256, version, name }
    } else if let Some(image) = &written.oci {
        let digest = written.digest.as_ref().map(|digest| digest.value.clone()).unwrap_or_default();
        Package::Oci { image: image.value.clone(), digest, version }
    } else {
        Package::None
    }
}

fn registry(
    source: &Source,
    written: &Spanned<RegistryWritten>,
    package: &Package,
    templates: &Templates<'_>,
) -> Result<Registry, Problems> {
    let wrong = |message: &str, hint: &str| Err(Problem::at(source, written, message).hint(hint).into());
    let RegistryWritten { url, username, password, token, public } = &written.value;
    let is_image = matches!(package, Package::Oci { .. });
    match (package, url) {
        (Package::Pypi { .. } | Package::Npm { .. }, None) => {
            return wrong("a `registry` needs a `url`", "for example https://pypi.example.com/simple");
        }
        (Package::Pypi { .. } | Package::Npm { .. }, Some(_)) | (Package::Oci { .. }, None) => {}
        (Package::Oci { .. }, Some(_)) => {
            return wrong(
                "the registry of an image is in its name",
                "leave `url` out, and begin the name with the registry's host, such as registry.example.com/server",
            );
        }
        _ => {
            return wrong(
                "`registry` is for packages of `pypi`, `npm` and `oci`",
                "archives and files have a URL of their own",
            );
        }
    }
    if is_image && (token.is_some() || *public) {
        return wrong(
            "images come from the one registry of their name, with `username` and `password`",
            "leave out the rest",
        );
    }
    match (username, password, token) {
        (Some(_), Some(_), None) | (None, None, Some(_)) => {}
        (None, None, None) if !is_image => {}
        _ => {
            return wrong(
                "a registry is asked with `username` and `password`, or with a `token`",
                "for a token of PyPI's kind, the user is `__token__`",
            );
        }
    }
    Ok(Registry {
        url: url.as_ref().map(|url| self::url(source, url, templates)).transpose()?,
        username: username.as_ref().map(|name| templates.render(source, name)).transpose()?,
        password: password.as_ref().map(|password| secret(source, password, templates)).transpose()?,
        token: token.as_ref().map(|token| secret(source, token, templates)).transpose()?,
        public: *public,
    })
}

/// What is written out would be in every plan and journal.
fn secret(source: &Source, written: &Spanned<String>, templates: &Templates<'_>) -> Result<String, Problems> {
    let text = templates.render(source, written)?;
    if has_marker(&text) {
        return Ok(text);
    }
    let message = "what a registry is asked with is a secret, and not written out";
    let problem = Problem::at(source, written, message).without_excerpt();
    Err(problem
        .hint("declare it among the environment's `secrets`, and write '{{ secret(name=\"NAME\") }}' here")
        .into())
}

/// Whoever answers in the place of a registry decides what is run.
fn url(source: &Source, written: &Spanned<String>, templates: &Templates<'_>) -> Result<String, Problems> {
    let text = templates.render(source, written)?;
    let text = text.trim_end_matches('/');
    let wrong =
        |message: String, hint: &str| Err(Problem::at(source, written, message).without_excerpt().hint(hint).into());
    if has_marker(text) || without_secrets(text) != text {
        let message = format!("the URL `{}` holds what may be secret", without_secrets(&masked(text)));
        return wrong(message, "it is shown to many: user and password have fields of their own");
    }
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_matches(['[', ']']);
    let plain =
        !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '<' | '>' | '\\'));
    match scheme {
        "https" if !host.is_empty() && plain => Ok(text.to_owned()),
        "http" if is_loopback(host) && plain => Ok(text.to_owned()),
        "http" => wrong(
            format!("the registry `{text}` is not asked over https"),
            "whoever is on the way could put another package in: only on the host itself is plain http enough",
        ),
        _ => wrong(format!("`{text}` is not the URL of a registry"), "for example https://pypi.example.com/simple"),
    }
}

fn is_loopback(host: &str) -> bool {
    let numbers: Vec<&str> = host.split('.').collect();
    let is_number = |text: &&str| text.parse::<u8>().is_ok();
    matches!(host, "localhost" | "::1") || (numbers.len() == 4 && numbers[0] == "127" && numbers.iter().all(is_number))
}
