use fleetwright_deploy::health::{HttpMore, Severity};
use fleetwright_deploy::time::Length;

use super::*;

fn checker() -> Checker {
    let release = Release::plain("time".parse().expect("name"), Vec::new());
    let folder = std::env::temp_dir().join("fleetwright-checks/servers/time");
    std::fs::create_dir_all(folder.join("data")).expect("folder");
    Checker::new(BTreeMap::new(), Place { server: ServerLayout::at(&folder), release }).expect("client")
}

fn check(probe: Probe, limit: Length) -> HealthCheck {
    HealthCheck { timeout: limit, ..HealthCheck::new("c".to_owned(), Severity::Critical, probe) }
}

async fn outcome(probe: Probe) -> CheckOutcome {
    let _ = rustls::crypto::ring::default_provider().install_default();
    checker().run(&check(probe, Length::from_secs(5))).await.outcome
}

#[tokio::test]
async fn a_command_passes_by_its_exit_status() {
    let probe = |command: &str| Probe::Command { command: vec![command.to_owned()] };
    assert!(matches!(outcome(probe("true")).await, CheckOutcome::Passing { .. }));
    assert!(matches!(outcome(probe("false")).await, CheckOutcome::Failing { .. }));
    assert!(matches!(outcome(probe("no-such-program")).await, CheckOutcome::Failing { .. }));
}

#[tokio::test]
async fn a_check_that_hangs_is_ended_with_everything_it_started() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("folder");
    let pid_file = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
    let probe = Probe::Command { command: vec!["sh".to_owned(), "-c".to_owned(), script] };
    let found = checker().run(&check(probe, Length::from_ms(1_500))).await;
    assert_eq!(found.outcome.message(), "no answer within 1s500ms");
    let pid: i32 = std::fs::read_to_string(&pid_file).expect("pid").trim().parse().expect("number");
    // A killed process is gone as soon as it is scheduled again, which on a busy machine is not at once.
    let gone = async {
        while crate::process::Process::find(pid).is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.expect("the grandchild is ended");
}

#[tokio::test]
async fn a_tcp_port_that_nobody_listens_on_fails() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    assert!(matches!(outcome(Probe::Tcp { address: address.clone() }).await, CheckOutcome::Passing { .. }));
    drop(listener);
    assert!(matches!(outcome(Probe::Tcp { address }).await, CheckOutcome::Failing { .. }));
}

#[tokio::test]
async fn a_full_enough_disk_and_a_missing_file_fail() {
    let disk = |free_bytes_min| Probe::Disk { path: "/".to_owned(), free_bytes_min, free_percent_min: 0 };
    assert!(matches!(outcome(disk(1)).await, CheckOutcome::Passing { .. }));
    assert!(matches!(outcome(disk(u64::MAX)).await, CheckOutcome::Failing { .. }));
    let missing = file_probe("/no/such/file");
    assert!(matches!(outcome(missing).await, CheckOutcome::Failing { .. }));
}

fn file_probe(path: &str) -> Probe {
    Probe::File { path: path.to_owned(), age_max: None, absent: false, sha256: None, mode: None }
}

#[tokio::test]
async fn a_file_is_judged_by_hash_mode_and_absence() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("f");
    std::fs::write(&path, "abc").expect("write");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("mode");
    let path = path.to_string_lossy().into_owned();
    let probe = |sha: Option<&str>, wanted_mode, gone| Probe::File {
        path: path.clone(),
        age_max: None,
        absent: gone,
        sha256: sha.map(str::to_owned),
        mode: wanted_mode,
    };
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(matches!(outcome(probe(Some(ABC), Some(0o640), false)).await, CheckOutcome::Passing { .. }));
    assert!(outcome(probe(Some(&"0".repeat(64)), None, false)).await.message().contains(ABC));
    assert!(outcome(probe(None, Some(0o600), false)).await.message().contains("0640, not 0600"));
    assert!(matches!(outcome(probe(None, None, true)).await, CheckOutcome::Failing { .. }));
}

#[tokio::test]
async fn a_plugin_passes_warns_and_fails_by_its_exit_status_and_tells_what_it_measured() {
    let plugin = |script: &str| Probe::Custom { command: ["sh", "-c", script].map(str::to_owned).to_vec() };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ok = check(plugin("echo 'LOAD OK | load1=0.5;1;2'"), Length::from_secs(5));
    let found = checker().run(&ok).await;
    assert_eq!((found.outcome.message(), found.performance), ("LOAD OK", vec!["load1=0.5;1;2".to_owned()]));
    assert!(matches!(outcome(plugin("echo W; exit 1")).await, CheckOutcome::Warning { .. }));
    assert!(matches!(outcome(plugin("echo C; exit 2")).await, CheckOutcome::Failing { .. }));
    assert_eq!(outcome(plugin("echo U; exit 3")).await.message(), "unknown: U");
    assert!(outcome(plugin("exit 9")).await.message().contains("no status of a plugin"));
}

#[tokio::test]
async fn a_plugin_that_prints_without_end_is_cut_and_one_that_leaves_a_child_behind_is_not_waited_for() {
    let shell = |script: &str| Probe::Custom { command: ["sh", "-c", script].map(str::to_owned).to_vec() };
    let flood = outcome(shell("head -c 50000000 /dev/zero; exit 2")).await;
    assert!(flood.message().len() <= 300, "{}", flood.message().len());
    assert!(matches!(outcome(shell("sleep 1000 & echo done")).await, CheckOutcome::Passing { .. }));
}

/// Answers every request on a free port with this.
async fn answering(answer: &'static str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 2048];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn an_answer_is_judged_by_headers_pattern_and_json() {
    let url = answering(
        "HTTP/1.1 200 OK\r\nconnection: close\r\nx-state: ready\r\n\r\n{\"status\":\"up\",\"parts\":[{\"n\":1},{\"n\":2}]}",
    )
    .await;
    let probe =
        |more: HttpMore| Probe::Http { url: url.clone(), statuses: vec![200], contains: None, more: Box::new(more) };
    let json = |path: &str, value: serde_json::Value| HttpMore {
        json: [(path.to_owned(), value)].into(),
        ..HttpMore::default()
    };
    assert!(matches!(outcome(probe(json("$.status", "up".into()))).await, CheckOutcome::Passing { .. }));
    assert!(matches!(outcome(probe(json("$.parts[*].n", 2.into()))).await, CheckOutcome::Passing { .. }));
    let wrong = outcome(probe(json("$.status", "down".into()))).await;
    assert!(wrong.message().contains("is \"up\", not \"down\""), "{}", wrong.message());
    let header = |value: &str| HttpMore {
        expected_headers: [("x-state".to_owned(), value.to_owned())].into(),
        ..HttpMore::default()
    };
    assert!(matches!(outcome(probe(header("ready"))).await, CheckOutcome::Passing { .. }));
    assert!(outcome(probe(header("gone"))).await.message().contains("is `ready`, not `gone`"));
    let pattern = |text: &str| HttpMore { matches: Some(text.to_owned()), ..HttpMore::default() };
    assert!(matches!(outcome(probe(pattern("\"n\":[0-9]"))).await, CheckOutcome::Passing { .. }));
    assert!(matches!(outcome(probe(pattern("^nothing"))).await, CheckOutcome::Failing { .. }));
}

#[tokio::test]
async fn a_failing_run_is_tried_again_as_often_as_the_check_says() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().expect("folder");
    let script = format!("echo x >> {0}/runs; [ $(wc -l < {0}/runs) -ge 3 ]", folder.path().display());
    let probe = Probe::Command { command: vec!["sh".to_owned(), "-c".to_owned(), script] };
    let twice = HealthCheck { retries: 2, ..check(probe, Length::from_secs(5)) };
    let found = checker().run(&twice).await;
    assert!(matches!(found.outcome, CheckOutcome::Passing { .. }), "{}", found.outcome.message());
}

#[tokio::test]
async fn a_certificate_that_ends_soon_fails() {
    use tokio_rustls::TlsAcceptor;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let now = clock_s();
    let authority = fleetwright_certs::Authority::create("demo", now).expect("authority");
    let (certificate, key_pem) = authority.issue_coordinator("c", now).expect("certificate");
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(key_pem.as_bytes()).expect("key");
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der], key);
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config.expect("settings")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("https://{}/", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let probe = |length| Probe::Http {
        url: url.clone(),
        statuses: vec![200],
        contains: None,
        more: Box::new(HttpMore { certificate_valid_for: Some(length), ..HttpMore::default() }),
    };
    let day = |n: u64| Length::from_secs(n * 24 * 3_600);
    assert!(outcome(probe(day(400))).await.message().contains("counts until"));
    assert!(!outcome(probe(day(300))).await.message().contains("counts until"), "it counts for a year");
}

fn clock_s() -> i64 {
    crate::clock::now().unix_ms() / 1_000
}
