//! The seven servers of the development manifest, from their real npm and PyPI packages; and the production
//! manifest, which plans without a coordinator.

use std::io::{Read, Write};
use std::net::TcpListener;

use fleetwright_tests::fleet::{Fleet, repository, text};
use fleetwright_tests::tools::{Tool, have};

/// An HTTP server that answers every request with the JSON that Semgrep asks its service for when it starts. Its
/// service cannot be reached from where tests run.
fn semgrep_service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let body = serde_json::json!({
        "issuer": url, "jwks_uri": format!("{url}/jwks"), "authorization_endpoint": format!("{url}/a"),
        "introspection_endpoint": format!("{url}/i"), "token_endpoint": format!("{url}/t"), "active": true,
        "sub": "u", "scope": "mcp", "client_id": "c", "exp": 4_102_444_800_u64, "rules": [], "keys": [],
    })
    .to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let body = body.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 64 * 1024];
                let _ = stream.read(&mut request);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            });
        }
    });
    url
}

#[test]
fn the_development_manifest_runs_the_seven_servers_from_their_real_packages() {
    if !have(&[Tool::Python, Tool::Pypi, Tool::Npm]) {
        return;
    }
    let fleet = Fleet::new();
    let manifest = repository().join("deploy/deployments/mcp-development-deployment.yaml");
    let manifest = manifest.to_string_lossy();
    let first_address = fleet.address(1);
    let mut command = fleet.command(&["up", &manifest, "--detach", "--first-address", &first_address]);
    // Without an engine docker-mcp is skipped; with one it would depend on what that engine runs.
    command.env("SEMGREP_URL", semgrep_service()).env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let output = command.output().expect("fleetwright runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("skipped docker-mcp") && stdout.contains("no docker"), "{stdout}");
    let servers = fleet.servers();
    let tools: Vec<(String, usize)> = servers
        .iter()
        .map(|(id, row)| {
            assert_eq!(row["health"], "healthy", "{row:#}");
            let tools = row["report"]["mcp"]["tools"].as_array().map_or(0, Vec::len);
            (id.split('@').next().unwrap_or_default().to_owned(), tools)
        })
        .collect();
    let expected = [
        ("brave-search", 8),
        ("kubernetes-mcp", 20),
        ("prometheus-monitoring", 6),
        ("s3-storage", 4),
        ("security-scanner", 7),
        ("slack-notifications", 18),
    ];
    assert_eq!(tools, expected.map(|(name, tools)| (name.to_owned(), tools)));
    let eras: std::collections::BTreeSet<&str> =
        servers.values().map(|row| text(&row["report"]["mcp"]["protocol"])).collect();
    assert_eq!(eras.len(), 2, "both eras of the protocol are spoken: {eras:?}");
}

#[test]
fn the_production_manifest_plans_without_a_coordinator() {
    let fleet = Fleet::new();
    let manifest = repository().join("deploy/deployments/mcp-production-deployment.yaml");
    let plan = fleet.run(&["plan", &manifest.to_string_lossy(), "--output", "json"]).expect_code(0).json();
    assert_eq!(plan["summary"]["create"], 7);
    let paces = plan["plan"]["paces"].as_object().expect("a pace for each server");
    assert!(paces.len() == 7 && paces.values().all(|pace| pace["canary"] == 1 && pace["bake"] == "5m"), "{paces:?}");
    assert_eq!(plan["plan"]["rollback"]["strategy"], "graceful");
    let groups: Vec<String> =
        plan["plan"]["groups"].as_array().expect("groups").iter().map(|group| group["servers"].to_string()).collect();
    let expected = [
        r#"["brave-search","security-scanner"]"#,
        r#"["docker-mcp","kubernetes-mcp"]"#,
        r#"["prometheus-monitoring"]"#,
        r#"["s3-storage","slack-notifications"]"#,
    ];
    assert_eq!(groups, expected);
    fleet.run(&["plan", &manifest.to_string_lossy(), "--detailed-exitcode"]).expect_code(3);
}

#[test]
fn every_file_that_ships_is_valid() {
    let fleet = Fleet::new();
    let root = repository().join("deploy");
    let files = ["config/servers", "config/environments", "deployments"]
        .map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    let files: Vec<String> =
        files.into_iter().flatten().flatten().map(|entry| entry.path().to_string_lossy().into_owned()).collect();
    let mut arguments = vec!["validate"];
    arguments.extend(files.iter().map(String::as_str));
    fleet.run(&arguments).expect_code(0);
}
