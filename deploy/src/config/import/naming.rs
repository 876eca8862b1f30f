//! Names: of servers, of what is asked for, and of what an entry means by them.

/// Last parts of names that say nothing of what a server does.
const SAYS_NOTHING: [&str; 12] = [
    "mcp",
    "server",
    "mcp-server",
    "server-mcp",
    "mcpserver",
    "mcp-servers",
    "servers",
    "main",
    "app",
    "api",
    "index",
    "remote",
];
/// Parts of domains that say nothing of whose they are.
const NOBODY: [&str; 8] = ["www", "app", "api", "mcp", "dev", "server", "io", "com"];
/// Longest name of a variable or a secret, in bytes.
const ASKED_BYTES_MAX: usize = 64;
/// Words of the template language, which no variable may be called.
const RESERVED: [&str; 16] = [
    "and", "as", "block", "else", "false", "filter", "for", "if", "import", "in", "is", "none", "not", "or", "true",
    "with",
];

/// A text in lower case, with `-` for all that is neither a letter nor a digit.
fn plain(text: &str, between: char) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => plain.push(c.to_ascii_lowercase()),
            _ if plain.ends_with(between) => {}
            _ => plain.push(between),
        }
    }
    plain.trim_matches(between).to_owned()
}

/// What a server may be called: the last part of its name in reverse DNS, or its publisher where that says nothing.
pub(super) fn server(name: &str) -> String {
    let (publisher, last) = name.rsplit_once('/').unwrap_or(("", name));
    let last = plain(last, '-');
    let mut labels = publisher.rsplit('.').map(|label| plain(label, '-'));
    let chosen = if last.is_empty() || SAYS_NOTHING.contains(&last.as_str()) {
        labels.find(|label| !label.is_empty() && !NOBODY.contains(&label.as_str())).unwrap_or(last)
    } else {
        last
    };
    let end = chosen.len().min(crate::ids::NAME_BYTES_MAX);
    chosen[..end].trim_matches('-').to_owned()
}

/// What a variable or a secret of an environment may be called: an environment serves many servers, so the server's name
/// begins it.
pub(super) fn asked(server: &str, label: &str) -> String {
    let (server, label) = (plain(server, '_'), plain(label, '_'));
    let label = if label.is_empty() { "argument".to_owned() } else { label };
    let whole =
        if label == server || label.starts_with(&format!("{server}_")) { label } else { format!("{server}_{label}") };
    let whole = if whole.starts_with(|c: char| c.is_ascii_digit()) { format!("v_{whole}") } else { whole };
    let end = whole.len().min(ASKED_BYTES_MAX);
    let whole = whole[..end].trim_end_matches('_').to_owned();
    if RESERVED.contains(&whole.as_str()) { format!("{whole}_value") } else { whole }
}

/// A name as environments write it.
pub(super) fn upper(label: &str) -> String {
    plain(label, '_').to_ascii_uppercase()
}

/// Whether a name means the port that the server itself listens on.
pub(super) fn is_port(label: &str) -> bool {
    let exact = ["PORT", "HTTP_PORT", "SERVER_PORT", "LISTEN_PORT", "BIND_PORT", "SERVICE_PORT"];
    let ends = ["MCP_PORT", "MCP_HTTP_PORT", "MCP_BIND_PORT", "MCP_SERVER_PORT", "MCP_LISTEN_PORT"];
    means(label, &exact, &ends)
}

/// Whether a name means the address that the server itself listens on.
pub(super) fn is_host(label: &str) -> bool {
    let exact = [
        "HOST",
        "BIND",
        "BIND_HOST",
        "BIND_ADDRESS",
        "BIND_ADDR",
        "LISTEN_HOST",
        "LISTEN_ADDRESS",
        "LISTEN_ADDR",
        "HTTP_HOST",
        "SERVER_HOST",
    ];
    let ends = ["MCP_HOST", "MCP_HTTP_HOST", "MCP_BIND_HOST", "MCP_BIND_ADDRESS", "MCP_SERVER_HOST", "MCP_LISTEN_HOST"];
    means(label, &exact, &ends)
}

fn means(label: &str, exact: &[&str], ends: &[&str]) -> bool {
    let label = upper(label);
    exact.contains(&label.as_str()) || ends.iter().any(|end| label.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_called_after_its_publisher_where_its_last_part_says_nothing() {
        for (name, called) in [
            ("io.github.acme/weather_Server", "weather-server"),
            ("io.github.acme/mcp", "acme"),
            ("com.acme.mcp/mcp-server", "acme"),
            ("com.acme/server", "acme"),
            ("mcp", "mcp"),
            ("io.github.Ünï/--", "n"),
            ("io.github.a/日本", "a"),
        ] {
            assert_eq!(server(name), called, "{name}");
        }
        assert_eq!(server(&format!("a/{}-b", "x".repeat(62))), "x".repeat(62));
    }

    #[test]
    fn what_is_asked_for_is_called_after_its_server_and_fit_for_a_template() {
        assert_eq!(asked("github", "GITHUB_TOKEN"), "github_token");
        assert_eq!(asked("time-zone", "--local.zone"), "time_zone_local_zone");
        assert_eq!(asked("2fa", "é"), "v_2fa_argument");
        assert_eq!(asked("in", "in"), "in_value");
        assert!(asked("a", &"b".repeat(500)).len() <= 64);
    }

    #[test]
    fn only_its_own_port_and_address_are_the_servers() {
        for label in ["--port", "PORT", "FASTMCP_PORT", "PROMETHEUS_MCP_BIND_PORT", "http-port"] {
            assert!(is_port(label), "{label}");
        }
        for label in ["DB_PORT", "--redis-port", "portal", "-p"] {
            assert!(!is_port(label), "{label}");
        }
        assert!(is_host("--host") && is_host("SLACK_MCP_HOST") && !is_host("DOCKER_HOST") && !is_host("PGHOST"));
    }
}
