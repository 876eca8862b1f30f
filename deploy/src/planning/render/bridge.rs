//! Rendering of what is told to the bridge of a server: the names and origins by which clients come, each checked as it
//! will be compared.

use serde_saphyr::Spanned;

use super::Templates;
use crate::config::{Problem, Problems, RunWritten, Source};
use crate::release::{BRIDGE_NAME_BYTES_MAX, BRIDGE_NAMES_MAX, Bridge, has_marker};

/// The settings of the bridge of a server.
pub(super) fn rendered(source: &Source, written: &RunWritten, templates: &Templates<'_>) -> Result<Bridge, Problems> {
    let name = |text: &str| {
        let message = fault(text)?;
        Some((message, "write the name that clients use, in lower case: tools.example.com, or tools.example.com:8443"))
    };
    let origin = |text: &str| {
        let message = match text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
            None => "does not begin with http:// or https://",
            Some(authority) => fault(authority)?,
        };
        Some((message, "write what browsers send as Origin: https://chat.example.com, without a path"))
    };
    Ok(Bridge {
        sessions: written.sessions.as_ref().map(|sessions| sessions.value).unwrap_or_default(),
        sessions_max: written.sessions_max.as_ref().map(|most| most.value),
        hosts: names("hosts", source, &written.hosts, templates, name)?,
        origins: names("origins", source, &written.origins, templates, origin)?,
    })
}

/// Rendered names, each once. `fault` says what is wrong with one, and what would be right.
fn names(
    field: &str,
    source: &Source,
    written: &[Spanned<String>],
    templates: &Templates<'_>,
    fault: impl Fn(&str) -> Option<(&'static str, &'static str)>,
) -> Result<Vec<String>, Problems> {
    if let Some(beyond) = written.get(BRIDGE_NAMES_MAX) {
        let problem = Problem::at(source, beyond, format!("`run.{field}` has more than {BRIDGE_NAMES_MAX} entries"));
        return Err(problem
            .hint("clients that come by so many names go through one proxy that passes one of them")
            .into());
    }
    let (mut names, mut problems) = (Vec::with_capacity(written.len()), Vec::new());
    for entry in written {
        let text = templates.render(source, entry)?;
        if has_marker(&text) {
            let problem = Problem::at(source, entry, "a secret is no name: it would be seen in the list of processes");
            problems.push(problem.hint("where clients come from is no secret; what they present is a token"));
        } else if let Some((why, hint)) = fault(&text) {
            problems.push(Problem::at(source, entry, format!("`run.{field}`: `{text}` {why}")).hint(hint));
        } else if !names.contains(&text) {
            names.push(text);
        }
    }
    Problems::none_or(problems)?;
    Ok(names)
}

/// What is wrong with `HOST` or `HOST:PORT`.
fn fault(authority: &str) -> Option<&'static str> {
    let (host, port) = match authority.rsplit_once(':') {
        // A colon within brackets is one of an IPv6 address.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = |text: &str| {
        text.contains(':')
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b) || b":.".contains(&b))
    };
    let is_label = |label: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && label.bytes().all(plain)
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port);
    if authority.len() > BRIDGE_NAME_BYTES_MAX {
        Some("is longer than 253 bytes")
    } else if authority.contains('*') {
        Some("has a wildcard, and whoever owns one of those names could come by it")
    } else if authority.contains("://") || authority.contains(['/', '?', '#', '@']) {
        Some("is more than a host and a port")
    } else if authority.bytes().any(|b| b.is_ascii_uppercase()) {
        Some("is not in lower case, as names are compared")
    } else if port.is_some_and(|port| !is_port(port)) {
        Some("does not end with a port from 1 to 65535")
    } else if !inner.map_or_else(|| host.split('.').all(is_label), is_address) {
        Some("is not the name or the address of a host")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hosts_with_or_without_a_port_and_nothing_else() {
        for fits in [
            "tools",
            "tools.example.com",
            "tools.example.com:8443",
            "10.0.0.5",
            "10.0.0.5:1",
            "[::1]",
            "[fe80::1]:65535",
        ] {
            assert_eq!(fault(fits), None, "{fits}");
        }
        for (wrong, why) in [
            ("", "is not the name"),
            ("Tools.example", "lower case"),
            ("*.example.com", "wildcard"),
            ("*", "wildcard"),
            ("tools.example:0", "port"),
            ("tools.example:65536", "port"),
            ("tools.example:+80", "port"),
            ("tools.example:", "port"),
            ("a:b:80", "is not the name"),
            ("::1", "is not the name"),
            ("[tools]", "is not the name"),
            ("tools..example", "is not the name"),
            ("-tools", "is not the name"),
            ("--origin", "is not the name"),
            ("tools example", "is not the name"),
            ("tools\n", "is not the name"),
            ("user@tools", "more than"),
            ("tools/mcp", "more than"),
            ("http://tools", "more than"),
            ("tö.example", "is not the name"),
        ] {
            assert!(fault(wrong).is_some_and(|told| told.contains(why)), "{wrong}: {:?}", fault(wrong));
        }
        assert!(fault(&"a.".repeat(127)).is_some_and(|why| why.contains("253")), "{}", "a.".repeat(127).len());
    }
}
