//! Servers that are images, on a real engine with a real registry.

use std::fs;
use std::path::PathBuf;

use fleetwright_tests::engine::{BASE, Engine, REGISTRY, REGISTRY_USER};
use fleetwright_tests::fleet::Fleet;
use fleetwright_tests::tools::{Tool, have};
use serde_json::Value;

/// An MCP server over standard input and output that says what it finds, and ends at once when it is told to.
const STDIO: &str = r#"
import json, os, sys
tool = "tool-" + open("/version").read().strip()
if os.path.exists("/broken"):
    print("about to fail", file=sys.stderr, flush=True)
    sys.exit(9)
open(os.environ["DATA"] + "/ran", "a").write(tool + "\n")
print("serving", tool, file=sys.stderr, flush=True)
found = dict(
    key=os.environ.get("API_KEY"), file=open("/run/secrets/api_key").read(), config=open(os.environ["CONFIG"] + "/app.conf").read(),
    uid=os.getuid(), token=os.environ.get("FLEETWRIGHT_BRIDGE_TOKEN"), arguments=sys.argv[1:])
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    method = message["method"]
    if method == "initialize":
        result = dict(protocolVersion=message["params"]["protocolVersion"], capabilities=dict(tools=dict()), serverInfo=dict(name="t", version="1"))
    elif method == "tools/list":
        result = dict(tools=[dict(name=tool, description="t", inputSchema=dict(type="object"))])
    else:
        result = dict(content=[dict(type="text", text=json.dumps(found))])
    print(json.dumps(dict(jsonrpc="2.0", id=message["id"], result=result)), flush=True)
"#;

/// Accepts connections on port 8080, and says goodbye when it is asked to end.
const LISTENS: &str = r#"
import signal, socket, sys
def goodbye(*_):
    print("goodbye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, goodbye)
listener = socket.socket()
listener.bind(("0.0.0.0", 8080))
listener.listen()
print("listening", flush=True)
while True:
    listener.accept()[0].close()
"#;

struct Images {
    engine: Engine,
    json: PathBuf,
}

impl Images {
    fn new() -> Self {
        let mut engine = Engine::new();
        engine.start_registry();
        Self::with(engine)
    }

    fn with(engine: Engine) -> Self {
        let found = std::process::Command::new("python3")
            .args(["-c", "import json, os; print(os.path.dirname(json.__file__))"])
            .output()
            .expect("python3");
        let json = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
        Self { engine, json }
    }

    /// An image that runs a program as user 1234; gives its digest. What the base lacks of Python is copied.
    fn publish(&self, name: &str, program: &str, version: u32, broken: bool) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let copied =
            std::process::Command::new("cp").arg("-r").args([&self.json]).arg(folder.path().join("json")).status();
        assert!(copied.expect("cp").success());
        fs::write(folder.path().join("server.py"), program).expect("write");
        let broken = if broken { "RUN touch /broken\n" } else { "" };
        let dockerfile = format!(
            "FROM {BASE}\nCOPY json /python/json\nCOPY server.py /server.py\nRUN echo {version} > /version\n{broken}\
             ENV PYTHONPATH=/python PYTHONUNBUFFERED=1\nUSER 1234\nENTRYPOINT [\"python3\", \"/server.py\"]\nCMD [\"from-the-image\"]\n"
        );
        fs::write(folder.path().join("Dockerfile"), dockerfile).expect("write");
        self.engine.publish(name, folder.path())
    }

    fn containers(&self) -> Vec<Value> {
        let listed = self.engine.docker(&["ps", "--all", "--quiet", "--no-trunc"]);
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        let inspect = |id: &str| {
            let output = self.engine.docker(&["inspect", id]);
            serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap_or_default().pop()
        };
        ids.split_whitespace().filter_map(inspect).collect()
    }

    fn images(&self) -> String {
        String::from_utf8_lossy(&self.engine.docker(&["images", "--digests"]).stdout).into_owned()
    }
}

fn stdio(digest: &str, more: &str) -> String {
    format!(
        "apiVersion: fleetwright/v1\nname: alpha\npackage: {{ oci: '{REGISTRY}/alpha', digest: '{digest}', version: '1' }}\n\
         run:\n  transport: stdio\n  port: 9501\n  stop_timeout: 5s\n  environment:\n    API_KEY: '{{{{ secret(name=\"api_key\") }}}}'\n    \
         FLEETWRIGHT_BRIDGE_TOKEN: '{{{{ secret(name=\"api_key\") }}}}'\n    DATA: '{{{{ server.data_dir }}}}'\n    CONFIG: '{{{{ server.config_dir }}}}'\n{more}\
         files: [{{ path: app.conf, content: 'zone=test' }}]\nresources: {{ memory: 64MiB, cpu: 50%, tasks: 50 }}\nsnapshot: {{ data: true }}\n\
         health_checks:\n  - name: tools\n    type: mcp\n    severity: critical\n    interval: 1s\n    timeout: 5s\n    config: {{ headers: {{ Authorization: 'Bearer {{{{ secret(name=\"api_key\") }}}}' }} }}\n"
    )
}

#[test]
fn an_image_runs_behind_the_bridge_is_upgraded_put_back_and_removed_with_everything() {
    if !have(&[Tool::Python, Tool::Engine, Tool::Registry]) {
        return;
    }
    let images = Images::new();
    let digests = [images.publish("alpha", STDIO, 1, false), images.publish("alpha", STDIO, 2, false)];
    let broken = images.publish("alpha", STDIO, 3, true);
    assert!(!images.images().contains(&digests[0]), "the host is to fetch it");
    let secret = "secret-of-the-images-5f1c";
    let environment = [("DOCKER_HOST", images.engine.host()), ("FLEETWRIGHT_TEST_API_KEY", secret.to_owned())];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let fleet = Fleet::within(images.engine.namespace(), &environment);
    let manifest = fleet.configure(&[], "servers:\n  - { server: alpha }\n");
    fleet.write(
        "config/environments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nsecrets: { api_key: { env: FLEETWRIGHT_TEST_API_KEY } }\n",
    );
    let tests = format!(
        "integration_tests:\n  - {{ tool: tool-1, contains: '{}' }}\n",
        r#"\"uid\": 1234, \"token\": null, \"arguments\": [\"--said\"]"#
    );
    let first = stdio(&digests[0], "  command: [--said]\n") + &tests;
    fleet.write("config/servers/alpha.yaml", &first);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let row = &fleet.servers()["alpha@host-1"];
    assert_eq!(row["health"], "healthy", "{row:#}");
    let container = images.containers().pop().expect("a container");
    let host = &container["HostConfig"];
    assert_eq!(
        (host["Memory"].as_i64(), host["NanoCpus"].as_i64(), host["PidsLimit"].as_i64()),
        (Some(64 << 20), Some(500_000_000), Some(50))
    );
    assert_eq!((&host["CapDrop"][0], &host["PortBindings"]), (&"ALL".into(), &Value::Null));
    assert!(fleet.run(&["servers", "logs", "alpha@host-1"]).stdout.contains("serving tool-1"));

    // It goes on without the agent, is started again when it ends, and the agent finds it.
    let id = container["Id"].clone();
    fleet.kill_agent("host-1");
    assert_eq!(images.containers()[0]["Id"], id);
    let mut agent = fleet.start_agent("host-1");
    fleet.wait_until("the agent is back", || fleet.servers()["alpha@host-1"]["health"] == "healthy");
    assert_eq!(images.containers()[0]["Id"], id);
    images.engine.docker(&["kill", id.as_str().expect("an id")]);
    fleet.wait_until("another container runs", || {
        images.containers().first().is_some_and(|now| now["Id"] != id && now["State"]["Running"] == true)
    });
    fleet.wait_until("it is healthy", || fleet.servers()["alpha@host-1"]["health"] == "healthy");

    // An upgrade, and one that is put back.
    fleet.write("config/servers/alpha.yaml", &stdio(&digests[1], ""));
    fleet.deploy(&manifest, &[]).expect_code(0);
    assert_eq!(images.containers().len(), 1);
    let logs = fleet.run(&["servers", "logs", "alpha@host-1"]).stdout;
    assert!(logs.contains("serving tool-2"), "{logs}");
    fleet.write("config/servers/alpha.yaml", &stdio(&broken, ""));
    let failed = fleet.deploy(&manifest, &[]).expect_code(4);
    assert!(failed.stderr.contains("about to fail"), "{}", failed.stderr);
    let running = images.containers();
    assert!(
        running.len() == 1 && running[0]["Config"]["Image"].as_str().is_some_and(|image| image.contains(&digests[1]))
    );
    let ran = fs::read_to_string(fleet.host("host-1").join("servers/alpha/data/ran")).expect("its data");
    assert!(ran.starts_with("tool-1\n") && ran.ends_with("tool-2\n") && !ran.contains("tool-3"), "{ran}");

    // What is not there is told, and touches nothing.
    let none = format!("sha256:{}", "0".repeat(64));
    fleet.write("config/servers/alpha.yaml", &stdio(&none, ""));
    let failed = fleet.deploy(&manifest, &[]);
    assert!(failed.code == 4 || failed.code == 1, "{}", failed.stderr);
    assert!(failed.stderr.contains("dependency_error") && failed.stderr.contains("does not come"), "{}", failed.stderr);
    assert_eq!(images.containers()[0]["Id"], running[0]["Id"]);

    // Removed with its container; the image of the release that was put back, and of the one before, go with the next
    // deployments that succeed.
    let empty = fleet.configure_plain(&["beta"], 1, "servers:\n  - { server: beta }\n");
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    fleet.deploy(&empty, &[]).expect_code(0);
    assert!(images.containers().is_empty());
    assert!(!images.images().contains(&broken), "{}", images.images());
    agent.kill().expect("kill");
    agent.wait().expect("wait");
}

#[test]
fn a_port_is_published_and_a_network_made_and_stopping_lets_the_server_say_goodbye() {
    if !have(&[Tool::Python, Tool::Engine, Tool::Registry]) {
        return;
    }
    let images = Images::new();
    let digest = images.publish("listens", LISTENS, 1, false);
    let fleet = Fleet::within(images.engine.namespace(), &[("DOCKER_HOST", &images.engine.host())]);
    let manifest = fleet.configure(&[], "servers:\n  - { server: listens }\n");
    let definition = |more: &str| {
        format!(
            "apiVersion: fleetwright/v1\nname: listens\npackage: {{ oci: '{REGISTRY}/listens', digest: '{digest}', version: '1' }}\n\
             run: {{ port: 9502, stop_timeout: 10s }}\ncontainer: {{ port: 8080, network: backend, read_only: true, volumes: ['cache:/cache'] {more} }}\n\
             health_checks:\n  - {{ name: port, type: tcp, severity: critical, interval: 1s }}\n"
        )
    };
    fleet.write("config/servers/listens.yaml", &definition(""));
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    assert_eq!(fleet.servers()["listens@host-1"]["health"], "healthy");
    let container = images.containers().pop().expect("a container");
    let published = &container["NetworkSettings"]["Ports"]["8080/tcp"][0];
    assert_eq!((&published["HostIp"], &published["HostPort"]), (&fleet.address(1).into(), &"9502".into()));
    assert!(
        container["NetworkSettings"]["Networks"]["backend"].is_object()
            && container["HostConfig"]["ReadonlyRootfs"] == true
    );
    // Memory is counted for the server itself, not for what holds its container.
    let pid = container["State"]["Pid"].as_i64().expect("a pid");
    let marker: Value =
        serde_json::from_slice(&fs::read(fleet.host("host-1").join("servers/listens/container.json")).expect("read"))
            .expect("JSON");
    assert_eq!(marker["process"]["pid"].as_i64(), Some(pid));
    fleet.write("config/servers/listens.yaml", &definition(", capabilities: [NET_BIND_SERVICE]"));
    fleet.deploy(&manifest, &[]).expect_code(0);
    let logs = fleet.run(&["servers", "logs", "listens@host-1"]).stdout;
    assert!(logs.contains("goodbye"), "{logs}");
    for (wrong, told) in [
        (definition(", network: 'a b'"), "is there twice"),
        (definition("").replace("cache:/cache", "cache"), "is not a volume"),
        (definition("").replace(&digest, "sha256:1"), "is not a digest"),
        (definition("").replace("/listens'", "/listens:latest'"), "is not the name of an image"),
    ] {
        fleet.write("config/servers/listens.yaml", &wrong);
        let refused = fleet.run(&["plan", &manifest.to_string_lossy()]).expect_code(1).stderr;
        assert!(refused.contains(told), "{refused}");
    }
    fleet.run(&["down"]).expect_code(0);
    assert!(images.containers().is_empty());
}

/// Does its work, and ends as its arguments say.
const JOB: &str = r#"
import os, sys
open(os.environ["DATA"] + "/runs", "a").write("once\n")
sys.exit(int(sys.argv[1]))
"#;

#[test]
fn an_image_that_completes_has_come_through_when_its_container_ends_well() {
    if !have(&[Tool::Python, Tool::Engine, Tool::Registry]) {
        return;
    }
    let images = Images::new();
    let digest = images.publish("job", JOB, 1, false);
    let environment = [("DOCKER_HOST", images.engine.host())];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let fleet = Fleet::within(images.engine.namespace(), &environment);
    let manifest = fleet.configure(&[], "servers:\n  - { server: job }\n");
    let define = |exit: u8| {
        fleet.write(
            "config/servers/job.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: job\npackage: {{ oci: '{REGISTRY}/job', digest: '{digest}', version: '1' }}\n\
                 run:\n  command: ['{exit}']\n  completes: true\n  environment: {{ DATA: '{{{{ server.data_dir }}}}' }}\n\
                 snapshot: {{ data: true }}\n"
            ),
        );
    };
    let runs = || fs::read_to_string(fleet.host("host-1").join("servers/job/data/runs")).unwrap_or_default();
    define(0);
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    assert_eq!(runs(), "once\n");
    fleet.wait_until("it is told as completed", || {
        fleet.run(&["servers", "list"]).expect_code(0).stdout.contains("completed")
    });
    define(3);
    let failed = fleet.deploy(&manifest, &[]).expect_code(4);
    assert!(failed.stderr.contains("exit status 3"), "{}", failed.stderr);
    assert_eq!(runs(), "once\n", "what it did is put back, and the release before is not run again");
}

#[test]
fn an_image_of_a_closed_registry_comes_with_a_password_that_stays_nowhere() {
    if !have(&[Tool::Python, Tool::Engine, Tool::Registry]) {
        return;
    }
    let mut images = Images::with(Engine::new());
    images.engine.start_closed_registry();
    let digest = images.publish("job", JOB, 1, false);
    let (user, password) = REGISTRY_USER;
    let environment = [("DOCKER_HOST", images.engine.host()), ("FW_TEST_REGISTRY", password.to_owned())];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let fleet = Fleet::within(images.engine.namespace(), &environment);
    let manifest = fleet.configure(&[], "servers:\n  - { server: job }\n");
    fleet.write(
        "config/environments/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nsecrets: { registry: { env: FW_TEST_REGISTRY } }\n",
    );
    let define = |registry: &str| {
        fleet.write(
            "config/servers/job.yaml",
            &format!(
                "apiVersion: fleetwright/v1\nname: job\npackage: {{ oci: '{REGISTRY}/job', digest: '{digest}', version: '1'{registry} }}\n\
                 run:\n  command: ['0']\n  completes: true\n  environment: {{ DATA: '{{{{ server.data_dir }}}}' }}\n\
                 snapshot: {{ data: true }}\n"
            ),
        );
    };
    let with =
        |user: &str| format!(", registry: {{ username: {user}, password: '{{{{ secret(name=\"registry\") }}}}' }}");
    define(&with("somebody"));
    let refused = fleet.up(&manifest, &["--agents", "1"]);
    assert!(refused.code != 0 && refused.stderr.contains("job"), "{}", refused.stderr);
    assert!(!refused.stderr.contains(password), "{}", refused.stderr);
    define(&with(user));
    fleet.deploy(&manifest, &[]).expect_code(0);
    let ran = fs::read_to_string(fleet.host("host-1").join("servers/job/data/runs")).expect("it has run");
    assert_eq!(ran, "once\n");
    let known = std::process::Command::new("grep").args(["-rlF", password]).arg(fleet.path()).output().expect("grep");
    assert_eq!(String::from_utf8_lossy(&known.stdout), "", "no file of the fleet holds the password");
    fleet.run(&["down"]).expect_code(0);
}
