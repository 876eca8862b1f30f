//! Environments that extend others and say parts of definitions, for all hosts and for single ones.

use fleetwright_tests::fleet::Fleet;

const MANIFEST: &str = "apiVersion: fleetwright/v1\nname: m\nenvironment: production\nhosts:\n  - { name: web-1, address: 10.0.0.1 }\n  \
                        - { name: web-2, address: 10.0.0.2 }\nservers:\n  - { server: time, place: { count: 2 } }\n";

fn configured() -> Fleet {
    let fleet = Fleet::new();
    fleet.write("manifests/m.yaml", MANIFEST);
    fleet.write(
        "config/servers/time.yaml",
        "apiVersion: fleetwright/v1\nname: time\nrun:\n  command: [serve, --zone, \"{{ env.zone }}\", --level, \"{{ env.level }}\"]\n  port: 8801\n  \
         environment: { LOG: info, EXTRA: x }\nfiles:\n  - { path: app.conf, content: plain }\nhealth_checks:\n  - { name: port, type: tcp, severity: critical, interval: 10s }\n",
    );
    fleet.write(
        "config/environments/base.yaml",
        "apiVersion: fleetwright/v1\nname: base\nvariables: { zone: Etc/UTC, level: low }\nrules: { critical_check: true, rollback: true }\n\
         rollout: { canary: 1, max_unavailable: 1 }\nservers:\n  time: { resources: { memory: 256MiB }, run: { environment: { LOG: warn } } }\n",
    );
    fleet.write(
        "config/environments/production.yaml",
        "apiVersion: fleetwright/v1\nname: production\nextends: base\nvariables: { level: high }\nrules: { rollback: false }\n\
         servers:\n  time:\n    run: { environment: { EXTRA: null } }\n    health_checks: [{ name: port, interval: 1s }]\n\
         hosts:\n  web-2: { servers: { time: { run: { port: 9901 }, files: [{ path: app.conf, content: other }] } } }\n",
    );
    fleet
}

#[test]
fn what_an_environment_extends_and_says_of_servers_counts_in_its_order() {
    let fleet = configured();
    let plan = fleet.json(&["plan", "manifests/m.yaml", "--offline"]);
    let steps = plan["plan"]["groups"][0]["steps"].as_array().expect("steps").clone();
    let release = |host: &str| {
        let step =
            steps.iter().find(|step| step["instance"]["host"] == host || step["instance"] == format!("time@{host}"));
        step.expect("a step")["release"].clone()
    };
    let (one, two) = (release("web-1"), release("web-2"));
    assert_eq!(one["run"]["command"], serde_json::json!(["serve", "--zone", "Etc/UTC", "--level", "high"]));
    assert_eq!(one["run"]["environment"], serde_json::json!({ "LOG": "warn" }));
    assert_eq!(one["run"]["resources"]["memory_bytes"], 256 << 20);
    assert_eq!((&one["run"]["endpoint"]["port"], &two["run"]["endpoint"]["port"]), (&8801.into(), &9901.into()));
    assert_eq!((&one["files"][0]["content"], &two["files"][0]["content"]), (&"plain".into(), &"other".into()));
    assert_eq!(plan["plan"]["paces"]["time"]["canary"], 1);

    let shown = fleet.run(&["config", "show", "time", "-e", "production", "--host", "web-2"]).expect_code(0).stdout;
    assert!(shown.contains("port: 9901") && shown.contains("memory: 256MiB") && !shown.contains("EXTRA"), "{shown}");
    let own = fleet.run(&["config", "show", "time"]).expect_code(0).stdout;
    assert!(own.contains("port: 8801") && own.contains("EXTRA") && !own.contains("256MiB"), "{own}");
    let explained = fleet
        .run(&["config", "show", "time", "-e", "production", "--host", "web-2", "--explain"])
        .expect_code(0)
        .stdout;
    let from = |path: &str| {
        let line = explained.lines().find(|line| line.split_whitespace().next() == Some(path));
        line.unwrap_or_else(|| panic!("no {path} in {explained}")).to_owned()
    };
    assert!(from("run.port").contains("9901") && from("run.port").contains("production.yaml"));
    assert!(from("run.environment.LOG").contains("warn") && from("run.environment.LOG").contains("base.yaml"));
    assert!(from("files.app.conf.content").contains("other"), "{explained}");
    assert!(from("health_checks.port.type").contains("servers/time.yaml"));
}

#[test]
fn what_is_wrong_in_layers_is_told_with_its_place() {
    let fleet = configured();
    let told = |text: &str| {
        fleet.write(
            "config/environments/production.yaml",
            &format!("apiVersion: fleetwright/v1\nname: production\n{text}"),
        );
        fleet.run(&["plan", "manifests/m.yaml", "--offline"]).expect_code(1).stderr
    };
    let unknown = told("extends: bse\n");
    assert!(unknown.contains("production.yaml:3:10") && unknown.contains("did you mean `base`"), "{unknown}");
    fleet.write("config/environments/base.yaml", "apiVersion: fleetwright/v1\nname: base\nextends: production\n");
    let circle = told("extends: base\n");
    assert!(circle.contains("in a circle: production → base → production"), "{circle}");
    fleet.write(
        "config/environments/base.yaml",
        "apiVersion: fleetwright/v1\nname: base\nvariables: { zone: '{{ nothing }}', level: x }\n",
    );
    let inherited = told("extends: base\n");
    assert!(inherited.contains("environments/base.yaml:3:"), "a problem is told where it is written: {inherited}");
    let field = told("variables: { zone: z, level: l }\nservers:\n  time: { run: { prot: 1 } }\n");
    assert!(
        field.contains("time.yaml with ") && field.contains("production.yaml:") && field.contains("prot"),
        "{field}"
    );
    let server = told("variables: { zone: z, level: l }\nservers:\n  tme: { run: { port: 1 } }\n");
    assert!(server.contains("production.yaml:5:8") && server.contains("did you mean `time`"), "{server}");
    let none = fleet.run(&["config", "show", "tme"]).expect_code(1).stderr;
    assert!(none.contains("no such server") && none.contains("did you mean `time`"), "{none}");
    assert!(fleet.run(&["config", "show", "time", "-e", "prod"]).expect_code(1).stderr.contains("no such environment"));
    fleet.run(&["config", "show", "time", "--host", "web-1"]).expect_code(2);
}

#[test]
fn what_init_writes_is_valid_plans_and_is_never_written_over() {
    let fleet = Fleet::new();
    let wrote = fleet.run(&["init"]).expect_code(0).stdout;
    assert!(wrote.contains("fleetwright up deployments/first.yaml"), "{wrote}");
    let files = ["deployments/first.yaml", "config/servers/time.yaml", "config/environments/development.yaml"];
    fleet.run(&[&["validate"][..], &files].concat()).expect_code(0);
    let text = std::fs::read_to_string(fleet.path().join(files[0])).expect("read");
    fleet.write(files[0], &format!("{text}hosts: [{{ name: h1 }}]\n"));
    let plan = fleet.run(&["plan", files[0], "--offline"]).expect_code(0).stdout;
    assert!(plan.contains("+ time@h1"), "{plan}");
    let again = fleet.run(&["init"]).expect_code(1).stderr;
    assert!(again.contains("is there already: nothing was written"), "{again}");
    fleet.run(&["init", "elsewhere"]).expect_code(0);
    assert!(fleet.path().join("elsewhere/config/servers/time.yaml").is_file());
}
