//! Whoever reaches the coordinator's port tries to use it up: without a certificate, or with the one of a host whose
//! machine they own. Figures are ratios to the calm state of the same run.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fleetwright_deploy::health::{CheckOutcome, CheckReport, HealthReport, HealthStatus, Severity};
use fleetwright_deploy::host::HostView;
use fleetwright_deploy::ids::ReleaseId;
use fleetwright_deploy::journal_budget::{GREETINGS, HEALTH};
use fleetwright_protocol::endpoint;
use fleetwright_protocol::report::{AgentMessageV1, CoordinatorReply};
use fleetwright_tests::attacker::{Attacker, Measured, bytes_of, stolen, tell};
use fleetwright_tests::fleet::{Fleet, clock, program, text};
use tokio::time::{sleep, timeout};

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(6);
/// Files of the journal, which is in SQLite.
const JOURNAL: [&str; 2] = ["journal.db", "journal.db-wal"];
const LOG: [&str; 2] = ["coordinator.log", "coordinator.log.1"];
/// Most that a flood may add to the log, in bytes.
const LOG_BYTES_MAX: u64 = 64 * 1024;

/// A server on each of two hosts.
const SERVERS: &str =
    "servers:\n  - { server: alpha, place: { hosts: [host-1] } }\n  - { server: beta, place: { hosts: [host-2] } }\n";

/// Two hosts, with one server that sleeps on each.
fn fleet() -> Fleet {
    let fleet = Fleet::new();
    let manifest = fleet.configure_plain(&["alpha", "beta"], 1, SERVERS);
    fleet.up(&manifest, &["--agents", "2"]).expect_code(0);
    fleet
}

/// Memory that the coordinator takes at its worst is at most so many hundredths of what it takes in calm.
#[track_caller]
fn memory_stays(what: &str, measured: &Measured, calm_kib: u64, percent_max: u64) {
    let peak = measured.peak_kib();
    eprintln!("{what}: {calm_kib} KiB in calm, {peak} KiB at most");
    assert!(peak * 100 < calm_kib * percent_max, "{what}: {peak} KiB, and {calm_kib} KiB in calm");
}

#[track_caller]
fn log_stays_small(fleet: &Fleet, before: u64) {
    let grown = bytes_of(fleet, &LOG).saturating_sub(before);
    eprintln!("the log has grown by {grown} bytes");
    assert!(grown < LOG_BYTES_MAX, "the log has grown by {grown} bytes");
}

fn enrol(fleet: &Fleet, host: &str) -> bool {
    let token = fleet.json(&["hosts", "token", host]);
    let mut command = Command::new(program("fleetwright-agent"));
    command.args(["enroll", "--coordinator", text(&token["coordinator"])]);
    command.args(["--ca-fingerprint", text(&token["ca_fingerprint"])]);
    command.env("FLEETWRIGHT_TOKEN", text(&token["token"])).stdin(Stdio::null());
    command.arg("--state-dir").arg(fleet.path().join(host));
    let output = command.output().expect("the agent runs");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

/// The coordinator is not there when a host begins to enrol: it is asked again, and the token counts all the same.
#[test]
fn a_host_that_gets_no_answer_asks_again_until_it_is_enrolled() {
    let fleet = fleet();
    let token = fleet.json(&["hosts", "token", "late"]);
    fleet.kill_coordinator();
    let log = fleet.path().join("late.log");
    let mut command = Command::new(program("fleetwright-agent"));
    command.args(["enroll", "--coordinator", text(&token["coordinator"])]);
    command.args(["--ca-fingerprint", text(&token["ca_fingerprint"])]);
    command.env("FLEETWRIGHT_TOKEN", text(&token["token"])).env("FLEETWRIGHT_LOG", "debug").stdin(Stdio::null());
    command.arg("--state-dir").arg(fleet.path().join("late")).stderr(std::fs::File::create(&log).expect("a file"));
    let mut enrolling = command.spawn().expect("the agent runs");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    fleet.wait_until("it has got no answer", || said().contains("it is asked again"));
    let mut coordinator = fleet.start_coordinator();
    assert!(enrolling.wait().expect("ended").success(), "{}", said());
    fleet.run(&["hosts", "show", "late"]).expect_code(0);
    drop(fleet);
    coordinator.wait().expect("ended by `down`");
}

/// Opens as many streams as it is let, and writes as much on each as is taken.
async fn stuff(connection: &quinn::Connection, header: [u8; 4]) {
    let mut writing = tokio::task::JoinSet::new();
    while let Ok(Ok((mut send, receive))) = timeout(Duration::from_millis(200), connection.open_bi()).await {
        writing.spawn(async move {
            let _ = timeout(FLOOD, async {
                send.write_all(&header).await?;
                send.write_all(&vec![0xa5; 500 * 1024]).await
            })
            .await;
            // Neither is ended before the flood is.
            sleep(FLOOD).await;
            drop((send, receive));
        });
        if writing.len() >= 512 {
            break;
        }
    }
    let _ = timeout(FLOOD, connection.closed()).await;
    writing.abort_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_without_a_certificate_take_next_to_no_memory() {
    let fleet = fleet();
    let attacker = Arc::new(Attacker::of(&fleet, 9));
    let measured = Measured::coordinator(&fleet);
    let (calm, log) = (measured.memory_kib(), bytes_of(&fleet, &LOG));
    let until = Instant::now() + FLOOD;
    let mut peers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let attacker = attacker.clone();
        peers.spawn(async move {
            let mut config = attacker.stranger();
            let mut transport = quinn::TransportConfig::default();
            transport.send_window(1 << 30);
            config.transport_config(Arc::new(transport));
            let endpoint = attacker.endpoint(config);
            let mut connections = 0;
            while Instant::now() < until {
                if let Ok(Ok(connection)) = timeout(FLOOD, attacker.dial(&endpoint)).await {
                    connections += 1;
                    stuff(&connection, [0xff, 0x3f, 0, 0]).await;
                }
            }
            connections
        });
    }
    let connections: usize = peers.join_all().await.into_iter().sum();
    assert!(connections >= 8, "they were let in: {connections}");
    memory_stays("eight peers without a certificate", &measured, calm, 150);
    log_stays_small(&fleet, log);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_hold_nobody_up() {
    const HANDSHAKES: usize = 5_000;
    let fleet = fleet();
    let calm_status = Instant::now();
    fleet.run(&["status"]).expect_code(0);
    let calm_status = calm_status.elapsed();
    let attacker = Arc::new(Attacker::of(&fleet, 9));
    let measured = Measured::coordinator(&fleet);
    let (calm, log) = (measured.memory_kib(), bytes_of(&fleet, &LOG));
    let config = attacker.stranger();
    let (begun, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let flood = {
        let (begun, over, attacker) = (begun.clone(), over.clone(), attacker.clone());
        tokio::spawn(async move {
            let mut endpoints = Vec::new();
            while begun.load(Ordering::Relaxed) < HANDSHAKES && !over.load(Ordering::Relaxed) {
                let endpoint = attacker.never_ending(config.clone());
                for _ in 0..100 {
                    let connecting = attacker.dial(&endpoint);
                    tokio::spawn(async move { timeout(FLOOD, connecting).await.is_ok_and(|ended| ended.is_ok()) });
                }
                begun.fetch_add(100, Ordering::Relaxed);
                endpoints.push(endpoint);
                sleep(Duration::from_millis(100)).await;
            }
            endpoints
        })
    };
    fleet.wait_until("the flood is on", || begun.load(Ordering::Relaxed) >= 1_000);
    // An honest agent comes back in the midst of it, and people are answered.
    fleet.kill_agent("host-2");
    let connected = |fleet: &Fleet| {
        let hosts = fleet.json(&["hosts", "list"]);
        hosts.as_array().expect("rows").iter().all(|row| row["connected"] == true)
    };
    fleet.wait_until("the host is gone", || !connected(&fleet));
    let mut agent = fleet.start_agent("host-2");
    fleet.wait_until("the host is back", || connected(&fleet));
    let status = Instant::now();
    fleet.run(&["status"]).expect_code(0);
    let status = status.elapsed();
    over.store(true, Ordering::Relaxed);
    drop(flood.await.expect("the flood"));
    eprintln!(
        "{} handshakes begun; status took {calm_status:?} in calm, {status:?} in the flood",
        begun.load(Ordering::Relaxed)
    );
    assert!(status < calm_status * 10 + Duration::from_secs(1), "status took {status:?}, and {calm_status:?} in calm");
    memory_stays("handshakes that never end", &measured, calm, 400);
    log_stays_small(&fleet, log);
    agent.kill().expect("kill");
    agent.wait().expect("wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_peers_keep_no_host_from_enrolling() {
    let fleet = fleet();
    let attacker = Arc::new(Attacker::of(&fleet, 9));
    let log = bytes_of(&fleet, &LOG);
    let over = Arc::new(AtomicBool::new(false));
    let arrived = Arc::new(AtomicUsize::new(0));
    let mut peers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (attacker, over, arrived) = (attacker.clone(), over.clone(), arrived.clone());
        peers.spawn(async move {
            let endpoint = attacker.endpoint(attacker.stranger());
            for _ in 0..200 {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if let Ok(Ok(connection)) = timeout(FLOOD, attacker.dial(&endpoint)).await {
                    arrived.fetch_add(1, Ordering::Relaxed);
                    // It says nothing, and comes back when it is turned out.
                    let _ = timeout(FLOOD, connection.closed()).await;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
    fleet.wait_until("all of them are there", || arrived.load(Ordering::Relaxed) >= 64);
    for host in ["honest-1", "honest-2", "honest-3"] {
        assert!(enrol(&fleet, host), "{host} could not enrol beside {} idle peers", arrived.load(Ordering::Relaxed));
    }
    over.store(true, Ordering::Relaxed);
    peers.join_all().await;
    log_stays_small(&fleet, log);
}

/// A greeting of a host as it is, but for two large labels that were never told before.
fn large_greeting(n: usize, view: &HostView) -> AgentMessageV1 {
    let label = |key: &str| (key.to_owned(), format!("{n}-{}", "x".repeat(250 * 1024)));
    let view = HostView { labels: [label("a"), label("b")].into(), ..view.clone() };
    AgentMessageV1::Greeting { agent_version: "0".to_owned(), view }
}

/// A report that differs from every other, as large as they come.
fn large_report(n: usize, release: &ReleaseId) -> AgentMessageV1 {
    let check = |c: usize| CheckReport {
        name: format!("check-{c}"),
        severity: Severity::Critical,
        outcome: CheckOutcome::Failing { message: format!("{n} {}", "x".repeat(4_000)) },
    };
    let status = if n.is_multiple_of(2) { HealthStatus::Unhealthy } else { HealthStatus::Healthy };
    let report = HealthReport { status, checks: (0..100).map(check).collect(), ..HealthReport::default() };
    let (server, output) = ("alpha".parse().expect("name"), vec!["y".repeat(4_000); 20]);
    AgentMessageV1::Condition { server, release: release.clone(), report, output }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_floods_takes_neither_disk_nor_memory_nor_the_time_of_the_others() {
    let fleet = fleet();
    let release: ReleaseId = text(&fleet.servers()["alpha@host-1"]["release"]).parse().expect("a release");
    let hosts = fleet.json(&["hosts", "list"]);
    let row = hosts.as_array().expect("rows").iter().find(|row| row["host"] == "host-1").expect("the host");
    let view: HostView = serde_json::from_value(row["view"].clone()).expect("a view");
    // From two addresses: connections from one and the same drive each other out.
    let attackers = [9, 10].map(|number| Arc::new(Attacker::of(&fleet, number)));
    let identity = stolen(&fleet, "host-1");
    fleet.kill_agent("host-1");
    let measured = Measured::coordinator(&fleet);
    let (calm, log, journal) = (measured.memory_kib(), bytes_of(&fleet, &LOG), bytes_of(&fleet, &JOURNAL));
    let until = Instant::now() + FLOOD;
    let mut floods = tokio::task::JoinSet::new();
    let told = Arc::new(AtomicUsize::new(0));
    for (greets, attacker) in [true, false].into_iter().zip(&attackers) {
        let (attacker, identity, told) = (attacker.clone(), identity.clone(), told.clone());
        let (release, view) = (release.clone(), view.clone());
        floods.spawn(async move {
            let endpoint = attacker.endpoint(endpoint::agent(&identity, &clock()).expect("settings"));
            let mut n = 0;
            while Instant::now() < until && n < 20_000 {
                let Ok(Ok(connection)) = timeout(FLOOD, attacker.dial(&endpoint)).await else { continue };
                // Before that, nothing that it tells counts.
                let greeting = AgentMessageV1::Greeting { agent_version: "0".to_owned(), view: view.clone() };
                let _ = timeout(FLOOD, tell(&connection, greeting)).await;
                while Instant::now() < until {
                    n += 1;
                    let message = if greets { large_greeting(n, &view) } else { large_report(n, &release) };
                    match timeout(FLOOD, tell(&connection, message)).await {
                        Ok(Some(CoordinatorReply::Acknowledged)) => _ = told.fetch_add(1, Ordering::Relaxed),
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => break,
                    }
                }
            }
        });
    }
    // The other host goes on meanwhile.
    let manifest = fleet.configure_plain(&["beta"], 2, SERVERS);
    let began = Instant::now();
    fleet.deploy(&manifest, &[]).expect_code(0);
    eprintln!("the other host's deployment took {:?}", began.elapsed());
    floods.join_all().await;
    // Frames of 512 KiB, all but their last bytes, on as many streams and connections as it is let.
    let unfinished = (0..4).map(|_| {
        let attacker = attackers[0].clone();
        let endpoint = attacker.endpoint(endpoint::agent(&identity, &clock()).expect("settings"));
        async move {
            if let Ok(Ok(connection)) = timeout(FLOOD, attacker.dial(&endpoint)).await {
                let _ = timeout(FLOOD, stuff(&connection, (512_u32 * 1024).to_le_bytes())).await;
            }
        }
    });
    unfinished.collect::<tokio::task::JoinSet<()>>().join_all().await;
    let grown = bytes_of(&fleet, &JOURNAL).saturating_sub(journal);
    eprintln!("{} messages were taken; the journal has grown by {grown} bytes", told.load(Ordering::Relaxed));
    let budget = u64::from(GREETINGS.burst) + u64::from(HEALTH.burst);
    assert!(grown < budget * 4, "the journal has grown by {grown} bytes; the budget of the host is {budget}");
    memory_stays("a host that floods", &measured, calm, 300);
    log_stays_small(&fleet, log);
    let status = fleet.run(&["status"]);
    assert!(status.stdout.contains("host host-1 has used up its share of the journal"), "{}", status.stdout);
}
