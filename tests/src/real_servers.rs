//! Real MCP servers from npm and PyPI that Fleetwright ships no definition of: from a definition of a few lines to a tool
//! that an official client calls.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::fleet::{Fleet, text};
use crate::strangers::{Kit, node};

/// A server, and the call that shows that it works.
#[derive(Debug)]
pub struct RealServer {
    /// Its name in the fleet.
    pub name: &'static str,
    /// `npm` or `pypi`.
    pub registry: &'static str,
    /// Its package.
    pub package: &'static str,
    /// That package's version.
    pub version: &'static str,
    /// Another package in another version than the newest, where it needs that.
    pub beside: &'static str,
    /// Its command, as YAML.
    pub command: &'static str,
    /// Lines added to `run`.
    pub run: &'static str,
    /// The tool that is called.
    pub tool: &'static str,
    /// Its arguments, as JSON.
    pub arguments: &'static str,
    /// What its answer contains.
    pub contains: &'static str,
}

const fn server(
    name: &'static str,
    registry: &'static str,
    package: &'static str,
    version: &'static str,
) -> RealServer {
    RealServer {
        name,
        registry,
        package,
        version,
        beside: "",
        command: "",
        run: "",
        tool: "",
        arguments: "{}",
        contains: "",
    }
}

impl RealServer {
    const fn runs(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    const fn calls(mut self, tool: &'static str, arguments: &'static str, contains: &'static str) -> Self {
        (self.tool, self.arguments, self.contains) = (tool, arguments, contains);
        self
    }

    const fn beside(mut self, beside: &'static str) -> Self {
        self.beside = beside;
        self
    }

    const fn with(mut self, run: &'static str) -> Self {
        self.run = run;
        self
    }

    fn definition(&self, port: u16) -> String {
        let Self { name, registry, package, version, command, run, .. } = self;
        let beside = if self.beside.is_empty() { String::new() } else { format!(", with: [{}]", self.beside) };
        format!(
            "apiVersion: fleetwright/v1\nname: {name}\npackage: {{ {registry}: \"{package}\", version: \"{version}\"{beside} }}\nrun:\n  \
             command: {command}\n  transport: stdio\n  port: {port}\n{run}health_checks:\n  \
             - {{ name: tools, type: mcp, interval: 2s, timeout: 20s, start_grace: 2m }}\n"
        )
    }
}

/// Servers that need no network and no credentials of their own. Some of PyPI's do not start with the newest Python SDK, which
/// was released after them.
pub const SERVERS: [RealServer; 20] = [
    server("filesystem", "npm", "@modelcontextprotocol/server-filesystem", "2026.8.31")
        .runs(r#"[mcp-server-filesystem, "{{ server.data_dir }}"]"#)
        .calls("list_allowed_directories", r#"{}"#, "data"),
    server("sqlite", "pypi", "mcp-server-sqlite", "2025.4.25")
        .runs(r#"[mcp-server-sqlite, --db-path, "{{ server.data_dir }}/a.db"]"#)
        .beside("mcp==1.30.0")
        .calls("read_query", r#"{"query": "SELECT 40+2 AS answer"}"#, "42"),
    server("memory", "npm", "@modelcontextprotocol/server-memory", "2026.8.31")
        .runs("[mcp-server-memory]")
        .with("  environment: { MEMORY_FILE_PATH: \"{{ server.data_dir }}/memory.jsonl\" }\n")
        .calls(
            "create_entities",
            r#"{"entities": [{"name": "Ada", "entityType": "person", "observations": ["counts"]}]}"#,
            "Ada",
        ),
    server("calculator", "pypi", "mcp-server-calculator", "0.2.1")
        .runs("[mcp-server-calculator]")
        .beside("mcp==1.30.0")
        .calls("calculate", r#"{"expression": "40+2"}"#, "42"),
    server("everything", "npm", "@modelcontextprotocol/server-everything", "2026.8.31")
        .runs("[mcp-server-everything]")
        .calls("echo", r#"{"message": "hello"}"#, "hello"),
    server("thinking", "npm", "@modelcontextprotocol/server-sequential-thinking", "2026.8.31")
        .runs("[mcp-server-sequential-thinking]")
        .calls(
            "sequentialthinking",
            r#"{"thought": "so", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 1}"#,
            "thoughtNumber",
        ),
    server("hello", "npm", "mcp-hello-world", "1.1.2").runs("[mcp-hello-world]").calls(
        "add",
        r#"{"a": 40, "b": 2}"#,
        "42",
    ),
    server("runner", "npm", "mcp-server-code-runner", "0.1.8").runs("[mcp-server-code-runner]").calls(
        "run-code",
        r#"{"code": "console.log(40+2)", "languageId": "javascript"}"#,
        "42",
    ),
    server("monitor", "npm", "@modelcontextprotocol/server-system-monitor", "2.0.3")
        .runs("[mcp-system-monitor-server, --stdio]")
        .calls("get-system-info", r#"{}"#, "hostname"),
    server("customers", "npm", "@modelcontextprotocol/server-customer-segmentation", "2.0.3")
        .runs("[mcp-customer-segmentation-server, --stdio]")
        .calls("get-customer-data", r#"{}"#, "customers"),
    server("budget", "npm", "@modelcontextprotocol/server-budget-allocator", "2.0.3")
        .runs("[mcp-budget-allocator-server, --stdio]")
        .calls("get-budget-data", r#"{}"#, "Budget"),
    server("cohorts", "npm", "@modelcontextprotocol/server-cohort-heatmap", "2.0.3")
        .runs("[mcp-cohort-heatmap-server, --stdio]")
        .calls("get-cohort-data", r#"{}"#, "retention"),
    server("scenarios", "npm", "@modelcontextprotocol/server-scenario-modeler", "2.0.3")
        .runs("[mcp-scenario-modeler-server, --stdio]")
        .calls("get-scenario-data", r#"{}"#, "Templates"),
    server("clock", "npm", "time-mcp", "1.0.6").runs("[time-mcp]").calls(
        "days_in_month",
        r#"{"date": "2026-02-01"}"#,
        "28",
    ),
    server("icons", "npm", "lucide-icons-mcp", "0.1.67").runs("[lucide-icons-mcp, --stdio]").calls(
        "search_icons",
        r#"{"query": "anchor"}"#,
        "Anchor",
    ),
    server("browser", "npm", "@playwright/mcp", "0.0.83")
        .runs("[playwright-mcp, --headless, --executable-path, /usr/bin/chromium, --no-sandbox, --isolated]")
        .calls("browser_navigate", r#"{"url": "data:text/html,<title>here</title>"}"#, "here"),
    server("shell", "pypi", "cli-mcp-server", "0.2.5")
        .runs("[cli-mcp-server]")
        .beside("mcp==1.30.0")
        .with("  environment: { ALLOWED_DIR: /tmp }\n")
        .calls("show_security_rules", r#"{}"#, "Security"),
    server("duckdb", "pypi", "mcp-server-duckdb", "1.1.0")
        .runs(r#"[mcp-server-duckdb, --db-path, "{{ server.data_dir }}/a.duckdb"]"#)
        .beside("mcp==1.30.0")
        .calls("query", r#"{"query": "SELECT 40+2 AS answer"}"#, "42"),
    server("uuid", "pypi", "uuid-mcp", "0.1.0").runs("[uuid-mcp]").beside("mcp==1.30.0").calls(
        "generate_uuid",
        r#"{}"#,
        "-",
    ),
    server("subnets", "pypi", "subnet-calculator-mcp", "0.1.2")
        .runs("[subnet-calculator-mcp]")
        .beside("mcp==1.30.0")
        .calls("validate_ip_in_subnet", r#"{"ip_address": "10.0.0.7", "network": "10.0.0.0/24"}"#, "true"),
];

/// What became of a server.
#[derive(Debug)]
pub struct Called {
    /// Its name.
    pub name: &'static str,
    /// How many tools it has and what the call answered, or what went wrong.
    pub outcome: Result<(u64, String), String>,
}

/// Brings servers up in a fleet of one host, and calls a tool of each with the Python SDK 2.x.
///
/// # Panics
/// If the fleet itself cannot be brought up.
pub fn call_all(servers: &[RealServer]) -> Vec<Called> {
    let fleet = Fleet::new();
    let mut entries = String::from("servers:\n");
    let mut ports = Vec::new();
    for server in servers {
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
        fleet.write(&format!("config/servers/{}.yaml", server.name), &server.definition(port));
        let _ = writeln!(entries, "  - {{ server: {}, place: {{ hosts: [host-1] }} }}", server.name);
        ports.push(port);
    }
    let manifest = fleet.configure(&[], &entries);
    let configured = std::fs::read_to_string(&manifest).expect("the manifest");
    let patient = configured
        .replace("healthy_deadline: 20s", "healthy_deadline: 5m")
        .replace("progress_deadline: 90s", "progress_deadline: 30m, on_failure: continue");
    std::fs::write(&manifest, patient).expect("write");
    // Some want a newer Node than the host's own: what the agents find first is the host's.
    let path = std::env::var("PATH").unwrap_or_default();
    let node = node().parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    let up = fleet.up_with(&manifest, &["--agents", "1"], &[("PATH", &format!("{node}:{path}"))]);
    servers
        .iter()
        .zip(ports)
        .map(|(server, port)| {
            let url = format!("http://{}:{port}/mcp", fleet.address(1));
            let called = call(server, &url);
            let outcome = called.map_err(|error| format!("{error}\n{}", up.stderr));
            Called { name: server.name, outcome }
        })
        .collect()
}

fn call(server: &RealServer, url: &str) -> Result<(u64, String), String> {
    let mut command: Command = Kit::Python2.command("call.py");
    let output =
        command.args([url, "auto", server.tool, server.arguments]).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
    let found: Value = serde_json::from_slice(&output.stdout).map_err(|_| last)?;
    let answer = text(&found["text"]).to_owned();
    if found["failed"] == true || !answer.contains(server.contains) {
        return Err(format!("{} answered {answer:?}", server.tool));
    }
    Ok((found["tools"].as_u64().unwrap_or_default(), answer))
}
