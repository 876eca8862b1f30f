//! What an agent costs while nothing happens: memory, processor time and writes, with servers that are watched.
//!
//! `cargo build --release --workspace && cargo run --release -p fleetwright-tests --bin idle -- --seconds 300`

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fleetwright_tests::fleet::Fleet;

/// Measures an idle agent.
#[derive(Parser)]
struct Arguments {
    /// How long to measure.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// How many servers it watches, each with a check of every 10 s.
    #[arg(long, default_value_t = 5)]
    servers: u16,
}

/// The most that an idle agent may take.
const RSS_KIB_MAX: u64 = 12 * 1024;
const CPU_S_PER_HOUR_MAX: f64 = 5.0;

struct Used {
    cpu_ticks: u64,
    written_bytes: u64,
    rss_kib: u64,
    /// What of that is no page of a file.
    own_kib: u64,
}

#[expect(clippy::print_stdout, reason = "the result is for people")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let fleet = Fleet::new();
    let mut entries = String::from("servers:\n");
    for n in 0..arguments.servers {
        let port = 9_300 + n;
        let address = fleet.address(1);
        let definition = format!(
            "apiVersion: fleetwright/v1\nname: s{n}\nrun:\n  command: [python3, -m, http.server, --bind, '{address}', '{port}']\n  transport: none\n  port: {port}\n\
             health_checks:\n  - {{ name: answers, type: http, interval: 10s, config: {{ path: / }} }}\n"
        );
        fleet.write(&format!("config/servers/s{n}.yaml"), &definition);
        entries.push_str(&format!("  - {{ server: s{n} }}\n"));
    }
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    let manifest = fleet
        .write("manifests/test.yaml", &format!("apiVersion: fleetwright/v1\nname: test\nenvironment: test\n{entries}"));
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    let pid = fleet.holder(&fleet.host("host-1").join("agent.lock")).expect("an agent").as_raw_nonzero().get();
    // What a start costs is over by then, and watching has slowed down.
    std::thread::sleep(Duration::from_secs(75));
    let before = used(pid);
    std::thread::sleep(Duration::from_secs(arguments.seconds));
    let after = used(pid);
    let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
    let cpu_s = (after.cpu_ticks - before.cpu_ticks) as f64 / ticks_per_s;
    let per_hour = cpu_s * 3_600.0 / arguments.seconds as f64;
    let written = after.written_bytes - before.written_bytes;
    println!("an agent with {} servers, over {} s:", arguments.servers, arguments.seconds);
    let (rss, own) = (after.rss_kib as f64 / 1024.0, after.own_kib as f64 / 1024.0);
    println!("  memory (RSS)     {rss:.1} MiB (at most {} MiB), {own:.1} of it its own", RSS_KIB_MAX / 1024);
    println!("  processor time   {per_hour:.2} s per hour (at most {CPU_S_PER_HOUR_MAX} s)");
    println!("  written to disk  {written} bytes (at most 0)");
    let good = after.rss_kib <= RSS_KIB_MAX && per_hour <= CPU_S_PER_HOUR_MAX && written == 0;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn used(pid: i32) -> Used {
    let process = Path::new("/proc").join(pid.to_string());
    let read = |file: &str| fs::read_to_string(process.join(file)).expect("the agent runs");
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim_start_matches(':').split_whitespace().next().expect("a number").parse::<u64>().expect("a number")
    };
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<u64>().expect("a number");
    Used {
        cpu_ticks: ticks(11) + ticks(12),
        written_bytes: number(&read("io"), "write_bytes"),
        rss_kib: number(&read("status"), "VmRSS"),
        own_kib: number(&read("status"), "RssAnon"),
    }
}
