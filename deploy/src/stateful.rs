//! Kinds of servers that keep something for their client between its requests: with one process for all clients, each would
//! meet what another has left there.
//!
//! They are known by the words of their packages' names. The table is for advice alone: nothing is refused by it, and what
//! a definition says of its sessions itself counts.

/// What a kind of server keeps, and the words that name it, all of which must be there.
const KINDS: [(&[&str], &str); 15] = [
    (&["playwright"], A_BROWSER),
    (&["puppeteer"], A_BROWSER),
    (&["selenium"], A_BROWSER),
    (&["webdriver"], A_BROWSER),
    (&["chrome"], A_BROWSER),
    (&["chromium"], A_BROWSER),
    (&["firefox"], A_BROWSER),
    (&["browser"], A_BROWSER),
    (&["browsermcp"], A_BROWSER),
    (&["browserbase"], A_BROWSER),
    (&["stagehand"], A_BROWSER),
    (&["sequential", "thinking"], A_HISTORY),
    (&["sequentialthinking"], A_HISTORY),
    (&["desktop", "commander"], "open terminals"),
    (&["server", "everything"], "requests to its client (sampling, elicitation, roots)"),
];
const A_BROWSER: &str = "an open browser";
const A_HISTORY: &str = "a history of thoughts";

/// What the server of a package keeps for its client between requests, where its kind is known.
pub fn kept_for_its_client(package: &str) -> Option<&'static str> {
    let name = package.to_ascii_lowercase();
    let own: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    KINDS.iter().find(|(words, _)| words.iter().all(|word| own.contains(word))).map(|(_, keeps)| *keeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_keep_something_for_a_client_are_known_by_their_packages() {
        for (package, keeps) in [
            ("@playwright/mcp", A_BROWSER),
            ("@executeautomation/playwright-mcp-server", A_BROWSER),
            ("puppeteer-mcp-server", A_BROWSER),
            ("chrome-devtools-mcp", A_BROWSER),
            ("@browsermcp/mcp", A_BROWSER),
            ("mcr.microsoft.com/playwright/mcp", A_BROWSER),
            ("@modelcontextprotocol/server-sequential-thinking", A_HISTORY),
            ("@wonderwhy-er/desktop-commander", "open terminals"),
        ] {
            assert_eq!(kept_for_its_client(package), Some(keeps), "{package}");
        }
    }

    #[test]
    fn a_server_whose_state_belongs_to_all_its_clients_is_not_among_them() {
        // The graph of server-memory is a file: processes of its own for each session would write over each other.
        for package in
            ["@modelcontextprotocol/server-memory", "mcp-server-time", "mcp-server-git", "browserslist-mcp", ""]
        {
            assert_eq!(kept_for_its_client(package), None, "{package}");
        }
    }
}
