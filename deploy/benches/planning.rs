//! Planning at scale: from written configuration to a plan that may be executed.
//!
//! `cargo bench -p fleetwright-deploy --bench planning`, and with `-- --ansible PROGRAM` beside `ansible-inventory --list`
//! on as many hosts as there are servers. `-- --servers N --times K` plans one layered graph, for profilers, and tells the
//! quickest.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fleetwright_deploy::config::{Environment, Manifest, Server, Source};
use fleetwright_deploy::host::{Facts, HostView};
use fleetwright_deploy::planning::{Circumstances, Configuration, plan};
use fleetwright_deploy::time::Timestamp;

/// As the `fleetwright` command has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many servers each server of a layered graph depends on.
const DEPENDENCIES: usize = 5;
/// How many runs the median is taken of, where two programs are compared.
const RUNS: usize = 9;
/// How many servers a layer has.
const LAYER: usize = 100;

/// What is planned.
struct Case {
    name: String,
    servers: usize,
    hosts: usize,
    /// On how many hosts each server runs.
    count: usize,
    depends_on: Box<dyn Fn(usize) -> Vec<usize>>,
    /// A template that each definition has.
    template: &'static str,
}

/// Numbers that look random and are the same every time (SplitMix64, Steele et al. 2014).
fn random(seed: u64) -> usize {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) >> 33).unwrap_or(0)
}

/// Each server depends on five of the layer before it.
fn layered(servers: usize) -> Case {
    let depends_on = |n: usize| {
        let layer = n / LAYER;
        if layer == 0 {
            return Vec::new();
        }
        let mut on: Vec<usize> =
            (0..DEPENDENCIES).map(|k| (layer - 1) * LAYER + random((n * DEPENDENCIES + k) as u64) % LAYER).collect();
        on.sort_unstable();
        on.dedup();
        on
    };
    Case {
        name: format!("layers, {servers}"),
        servers,
        hosts: 100,
        count: 1,
        depends_on: Box::new(depends_on),
        template: "{{ env.zone }}",
    }
}

fn source(path: String, text: String) -> Source {
    Source { path, text }
}

/// The texts of a case: manifest, environment, definitions.
fn written(case: &Case) -> (Source, Source, Vec<Source>) {
    let mut manifest = String::from("apiVersion: fleetwright/v1\nname: bench\nenvironment: bench\nservers:\n");
    let mut definitions = Vec::with_capacity(case.servers);
    for n in 0..case.servers {
        let on: Vec<String> = (case.depends_on)(n).iter().map(|on| format!("s{on}")).collect();
        manifest.push_str(&format!(
            "  - {{ server: s{n}, depends_on: [{}], place: {{ count: {} }} }}\n",
            on.join(", "),
            case.count
        ));
        let text = format!(
            "apiVersion: fleetwright/v1\nname: s{n}\nrun: {{ command: [serve, --zone, \"{}\"] }}\n\
             health_checks:\n  - {{ name: alive, type: command, config: {{ command: [\"true\"] }} }}\n",
            case.template
        );
        definitions.push(source(format!("s{n}.yaml"), text));
    }
    let environment = "apiVersion: fleetwright/v1\nname: bench\nvariables: { zone: Etc/UTC }\n".to_owned();
    (source("m.yaml".to_owned(), manifest), source("bench.yaml".to_owned(), environment), definitions)
}

struct Took {
    read: Duration,
    planned: Duration,
    instances: usize,
    groups: usize,
}

fn run(case: &Case, times: usize) -> Took {
    let (manifest, environment, definitions) = written(case);
    let view = |n: usize| HostView {
        address: format!("10.0.{}.{}", n / 250, n % 250 + 1),
        state_dir: "/state".to_owned(),
        labels: BTreeMap::new(),
        facts: Some(Facts::default()),
    };
    let hosts = (0..case.hosts).map(|n| (format!("h{n}").parse().expect("a name"), view(n)));
    let circumstances =
        Circumstances { hosts: hosts.collect(), now: Timestamp::from_unix_ms(1), ..Circumstances::default() };
    let began = Instant::now();
    let mut servers = BTreeMap::new();
    for source in definitions {
        let server = Server::parse(&source).expect("a definition");
        servers.insert(server.name.value.clone(), (source, server));
    }
    let configuration = Configuration {
        manifest: (manifest.clone(), Manifest::parse(&manifest).expect("a manifest")),
        environment: (environment.clone(), Environment::parse(&environment).expect("an environment")),
        servers,
        on_hosts: BTreeMap::new(),
    };
    let read = began.elapsed();
    let (mut planned, mut instances, mut groups) = (Duration::MAX, 0, 0);
    for _ in 0..times {
        let began = Instant::now();
        let checked = plan(&configuration, &circumstances).expect("a plan");
        planned = planned.min(began.elapsed());
        (instances, groups) = (checked.plan().steps().count(), checked.plan().groups.len());
    }
    Took { read, planned, instances, groups }
}

fn median(mut took: Vec<f64>) -> f64 {
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// How many milliseconds a plan takes in a process that has planned nothing before.
fn in_own_process(servers: usize) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).args(["--servers", &servers.to_string()]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let planned = text.trim_end().strip_suffix(" ms").and_then(|text| text.rsplit(' ').next());
    planned.and_then(|planned| planned.parse().ok()).expect("how long it took")
}

/// How long `ansible-inventory --list` takes for as many hosts.
fn ansible(program: &str, hosts: usize) -> Duration {
    let path = std::env::temp_dir().join(format!("fleetwright-bench-{}.ini", std::process::id()));
    let mut file = std::fs::File::create(&path).expect("a file");
    writeln!(file, "[bench]").expect("write");
    for n in 0..hosts {
        writeln!(file, "h{n} ansible_host=10.0.{}.{} zone=Etc/UTC", n / 250, n % 250 + 1).expect("write");
    }
    let began = Instant::now();
    let status = Command::new(program).arg("--list").arg("-i").arg(&path).stdout(Stdio::null()).status();
    let took = began.elapsed();
    let _ = std::fs::remove_file(&path);
    assert!(status.expect("ansible-inventory runs").success());
    took
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let ansible_program = arguments.iter().position(|word| word == "--ansible").and_then(|at| arguments.get(at + 1));
    let number = |flag: &str| {
        let at = arguments.iter().position(|word| word == flag)?;
        arguments.get(at + 1)?.parse::<usize>().ok()
    };
    if let Some(servers) = number("--servers") {
        let took = run(&layered(servers), number("--times").unwrap_or(1));
        let [read, planned] = [took.read, took.planned].map(|took| took.as_secs_f64() * 1e3);
        println!("{servers} servers: read in {read:.1} ms, planned in {planned:.1} ms");
        return;
    }
    let cases = [
        layered(1_000),
        layered(10_000),
        layered(100_000),
        Case { name: "1,000 × 100 hosts".to_owned(), count: 100, ..layered(1_000) },
        Case { name: "own templates".to_owned(), template: "{{ server.data_dir }}/{{ host.name }}", ..layered(10_000) },
        Case {
            name: "a chain, 100,000".to_owned(),
            depends_on: Box::new(|n| n.checked_sub(1).into_iter().collect()),
            ..layered(100_000)
        },
        Case {
            name: "a star, 100,000".to_owned(),
            depends_on: Box::new(|n| if n == 0 { Vec::new() } else { vec![0] }),
            ..layered(100_000)
        },
    ];
    println!(
        "{:<20} {:>9} {:>7} {:>9} {:>9} {:>14}",
        "case", "instances", "groups", "read ms", "plan ms", "plan µs each"
    );
    let mut each = Vec::new();
    for case in &cases {
        let Took { read, planned, instances, groups } = run(case, 1);
        let micros = planned.as_secs_f64() * 1e6 / instances as f64;
        each.push(micros);
        println!(
            "{:<20} {instances:>9} {groups:>7} {:>9.0} {:>9.0} {micros:>14.1}",
            case.name,
            read.as_secs_f64() * 1e3,
            planned.as_secs_f64() * 1e3,
        );
    }
    println!("time per instance at 100,000 against 1,000: {:.2} times (at most 2)", each[2] / each[0]);
    if let Some(program) = ansible_program {
        // In turn, so that neither has the machine's better minutes.
        let runs = (0..RUNS).map(|_| (in_own_process(10_000), ansible(program, 10_000).as_secs_f64() * 1e3));
        let (ours, theirs): (Vec<f64>, Vec<f64>) = runs.unzip();
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "ansible-inventory --list of 10,000 hosts: {theirs:.0} ms, {:.0} times our plan of 10,000 servers: {ours:.1} ms",
            theirs / ours
        );
    }
}
