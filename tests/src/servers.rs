//! MCP servers made for tests: small, without packages, and able to fail in every way that real ones do.

/// An MCP server over standard input and output, in Python without packages. Its first argument says how it
/// behaves: `ok`, `mute` (never answers), `wait` (answers once the file that its third argument names
/// is there), `database` (lists its tool, which fails unless that file has something in it), `crash` (ends after as many seconds as
/// its third argument says). The second names its only tool.
const PROGRAM: &str = r#"
import json, os, sys, threading, time
mode, tool = sys.argv[1], sys.argv[2]
if mode == "crash":
    def end():
        time.sleep(float(sys.argv[3]))
        print("about to crash", file=sys.stderr, flush=True)
        os._exit(7)
    threading.Thread(target=end, daemon=True).start()
while mode == "wait" and not (os.path.exists(sys.argv[3]) and os.path.getsize(sys.argv[3])):
    time.sleep(0.05)
print("serving as", mode, file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if mode == "mute" or "id" not in message:
        continue
    method, result, error = message["method"], None, None
    if method == "initialize":
        info = dict(name="test-server", version="1")
        version = message["params"]["protocolVersion"]
        result = dict(protocolVersion=version, capabilities=dict(tools=dict()), serverInfo=info)
    elif method == "tools/list":
        schema = dict(type="object")
        result = dict(tools=[dict(name=tool, description="a test", inputSchema=schema)])
    elif method == "tools/call" and mode == "database" and not (os.path.exists(sys.argv[3]) and os.path.getsize(sys.argv[3])):
        result = dict(content=[dict(type="text", text="connection refused: no database")], isError=True)
    elif method == "tools/call":
        result = dict(content=[dict(type="text", text="called " + message["params"]["name"])])
    else:
        error = dict(code=-32601, message="no such method")
    answer = dict(jsonrpc="2.0", id=message["id"])
    answer.update(dict(error=error) if error else dict(result=result))
    print(json.dumps(answer), flush=True)
"#;

/// The definition of such a server.
#[derive(Clone, Debug)]
pub struct TestServer {
    /// Its name.
    pub name: &'static str,
    /// Its port.
    pub port: u16,
    /// Its arguments, as the program above takes them.
    pub arguments: String,
    /// Lines added to the definition.
    pub more: &'static str,
}

impl TestServer {
    /// A server that works and has one tool.
    pub fn works(name: &'static str, port: u16, tool: &str) -> Self {
        Self { name, port, arguments: format!("ok, {tool}"), more: "" }
    }

    /// The same server with other arguments.
    #[must_use]
    pub fn behaves(mut self, arguments: &str) -> Self {
        self.arguments = arguments.to_owned();
        self
    }

    /// The YAML text of its definition.
    pub fn definition(&self) -> String {
        let program: String = PROGRAM.lines().map(|line| format!("      {line}\n")).collect();
        format!(
            "apiVersion: fleetwright/v1\nname: {name}\nrun:\n  command: [python3, \"{{{{ server.config_dir }}}}/server.py\", {arguments}]\n  \
             transport: stdio\n  port: {port}\n  stop_timeout: 2s\nfiles:\n  - path: server.py\n    content: |\n{program}\
             health_checks:\n  - {{ name: tools, type: mcp, interval: 1s, timeout: 5s }}\nsnapshot: {{ data: true }}\n{more}",
            name = self.name,
            arguments = self.arguments,
            port = self.port,
            more = self.more,
        )
    }
}

/// The definition of a server that is no MCP server: a shell that sleeps. Where a file `bad-HOST-VERSION` lies in `folder`,
/// it ends at once; its only check is that it runs.
pub fn plain(name: &str, version: u32, folder: &std::path::Path) -> String {
    let folder = folder.display();
    format!(
        "apiVersion: fleetwright/v1\nname: {name}\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\", \"{folder}\"]\n  stop_timeout: 2s\n\
         files:\n  - path: run.sh\n    content: |\n      echo version {version}\n      [ -e {folder}/bad-{{{{ host.name }}}}-{version} ] && exit 3\n      exec sleep 100000\n\
         health_checks:\n  - {{ name: alive, type: command, interval: 1s, severity: critical, config: {{ command: [\"true\"] }} }}\n"
    )
}
