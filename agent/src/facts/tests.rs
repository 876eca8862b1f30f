//! Programs of a search path of our own, which write down how often they are asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

/// A host of two folders of programs, and what was kept of it.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().expect("folder") };
        for folder in ["first", "second"] {
            fs::create_dir(host.path(folder)).expect("folder");
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a program there, whole, as package managers do: it notes that it is asked, and then does this.
    fn put(&self, name: &str, does: &str) {
        let (fresh, note) = (self.path("fresh"), self.path("asked"));
        let text = format!("#!/bin/sh\necho {name} >> {}\n{does}\n", note.display());
        fs::write(&fresh, text).expect("write");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("mode");
        fs::rename(&fresh, self.path(name)).expect("rename");
    }

    fn put_python(&self, name: &str, version: &str) {
        self.put(name, &format!("echo {}; echo {version}", self.path(name).display()));
    }

    fn put_node(&self, folder: &str, version: &str) {
        self.put(&format!("{folder}/node"), &format!("echo v{version}"));
        self.put(&format!("{folder}/npm"), "echo 11.0.0");
    }

    fn known(&self) -> Arc<Known> {
        self.known_within(Duration::from_secs(60))
    }

    fn known_within(&self, patience: Duration) -> Arc<Known> {
        let path = std::env::join_paths([self.path("first"), self.path("second")]).expect("path");
        let retry_pause_max = Duration::from_millis(10);
        let search = Search { path, pyenv: None, engines: false, patience, retry_pause_max };
        Known::by(search, self.folder.path(), self.path("facts.json"))
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        let note = self.path("asked");
        let text = fs::read_to_string(&note).unwrap_or_default();
        let _ = fs::remove_file(&note);
        let mut asked: Vec<String> = text.lines().map(str::to_owned).collect();
        asked.sort();
        asked
    }
}

fn needs(text: &str) -> Vec<Requirement> {
    vec![Requirement::try_from(text.to_owned()).expect("a requirement")]
}

#[tokio::test]
async fn what_is_known_is_not_asked_again_neither_at_a_hello_nor_at_a_stage_nor_after_a_restart() {
    let host = Host::new();
    host.put_python("first/python3", "3.99.1");
    host.put_node("second", "99.1.0");
    let known = host.known();
    assert!(known.facts().are_unknown() && host.asked().is_empty(), "a hello asks nothing");
    known.check(&needs("node>=99"), "preflight").await.expect("it has it");
    assert_eq!(host.asked(), ["first/python3", "second/node", "second/npm"]);
    for known in [known, host.known()] {
        let facts = known.facts();
        assert!(needs("python>=3.99")[0].is_met_by(&facts) && needs("python3>=3.99")[0].is_met_by(&facts));
        assert!(needs("node>=99")[0].is_met_by(&facts) && !facts.is_unknown("node"));
        known.check(&needs("node>=99"), "preflight").await.expect("it has it");
        assert_eq!(known.node().await, Some(Version::from([99, 1, 0])));
        let usual = known.pythons().await.into_iter().find(|python| python.is_usual).expect("python3");
        assert_eq!(usual.program, host.path("first/python3"));
        assert_eq!(host.asked(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_program_that_has_changed_and_one_that_comes_earlier_on_the_path_are_asked_and_no_other() {
    let host = Host::new();
    host.put_python("second/python3", "3.98.0");
    host.put_node("second", "98.0.0");
    let known = host.known();
    let mut changes = known.changes();
    known.look(Anew::Changed).await;
    changes.changed().await.expect("news");
    host.asked();
    host.put_node("second", "99.0.0");
    known.check(&needs("node>=99"), "preflight").await.expect("it was asked anew");
    assert_eq!(host.asked(), ["second/node", "second/npm"]);
    assert!(changes.has_changed().expect("it is there"), "so the coordinator hears of it");
    host.put_python("first/python3", "3.99.0");
    known.look(Anew::Changed).await;
    assert_eq!(host.asked(), ["first/python3"]);
    assert!(needs("python3>=3.99")[0].is_met_by(&known.facts()));
    fs::remove_file(host.path("first/python3")).expect("remove");
    known.look(Anew::Changed).await;
    assert!(!needs("python3>=3.99")[0].is_met_by(&known.facts()));
    assert_eq!(host.asked(), ["second/python3"]);
    known.refresh().await;
    assert_eq!(host.asked(), ["second/node", "second/npm", "second/python3"], "a person asks for everything");
}

#[tokio::test]
async fn a_program_that_does_not_answer_or_is_killed_is_unknown_until_it_is_asked_again() {
    let host = Host::new();
    // Until somebody opens the gate, Node neither answers nor ends; npm is killed, as by the kernel for want of memory.
    let gate = host.path("gate");
    let gated = |otherwise: &str, says: &str| format!("[ -e {} ] || {otherwise}; echo {says}", gate.display());
    host.put("first/node", &gated("exec /bin/sleep 300", "v99.0.0"));
    host.put("first/npm", &gated("kill -KILL $$", "11.0.0"));
    host.put_python("first/python3", "3.99.0");
    let patience = Duration::from_secs(3);
    let known = host.known_within(patience);
    let failure = known.check(&needs("node>=99"), "preflight").await.expect_err("not known");
    assert_eq!((failure.kind, failure.transient), (FailureKind::TimeoutError, true), "{failure}");
    assert!(failure.message.contains("it is not known whether this host has node>=99"), "{failure}");
    assert!(failure.hint.as_ref().is_some_and(|hint| hint.contains("hosts refresh")), "{failure}");
    host.asked();
    known.check(&needs("python>=3.99"), "preflight").await.expect("it has it");
    assert_eq!(host.asked(), [] as [&str; 0], "nobody waits for what he does not need");
    let facts = known.facts();
    assert!(facts.is_unknown("node") && needs("node>=99")[0].is_unknown_of(&facts));
    assert!(!facts.is_unknown("python") && needs("python3>=3.99")[0].is_met_by(&facts));
    let again = host.known_within(patience);
    assert!(again.facts().is_unknown("node"), "also after a restart, before anything is looked at");
    again.look(Anew::Changed).await;
    assert!(again.facts().is_unknown("node"), "nothing is kept of it");
    let mut changes = again.changes();
    again.follow();
    fs::write(&gate, "").expect("gate");
    while again.facts().is_unknown("node") {
        timeout(Duration::from_secs(30), changes.changed()).await.expect("it is asked again").expect("news");
    }
    assert!(needs("node>=99")[0].is_met_by(&again.facts()));
    again.check(&needs("node>=99"), "preflight").await.expect("it has it");
}

#[tokio::test]
async fn a_program_that_answers_no_is_absent_and_asked_once_more_before_a_stage_is_refused_for_it() {
    let host = Host::new();
    host.put("first/node", "exit 1");
    host.put("first/npm", "echo 11.0.0");
    let known = host.known();
    known.look(Anew::Changed).await;
    assert!(!known.facts().is_unknown("node"));
    host.asked();
    let failure = known.check(&needs("node"), "preflight").await.expect_err("absent");
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::DependencyError, "this host has no node"));
    assert!(host.asked().contains(&"first/node".to_owned()));
}

#[tokio::test]
async fn what_was_kept_and_cannot_be_read_is_asked_anew() {
    let host = Host::new();
    host.put_node("first", "99.0.0");
    host.known().look(Anew::Changed).await;
    let file = host.path("facts.json");
    let kept = fs::read_to_string(&file).expect("kept");
    assert_eq!(fs::metadata(&file).expect("metadata").permissions().mode() & 0o777, 0o600);
    for unreadable in ["", "{", &kept.replace("\"version\": 1,", "\"version\": 2,"), &kept[..kept.len() / 2]] {
        fs::write(&file, unreadable).expect("write");
        host.asked();
        let known = host.known();
        assert!(known.facts().are_unknown(), "{unreadable}");
        known.check(&needs("node>=99"), "preflight").await.expect("it has it");
        assert!(host.asked().contains(&"first/node".to_owned()));
        assert_eq!(fs::read_to_string(&file).expect("kept"), kept, "kept again");
    }
}

#[tokio::test]
async fn a_stage_does_not_wait_for_what_it_does_not_need_while_that_is_asked_again() {
    let host = Host::new();
    host.put("first/node", "exec /bin/sleep 300");
    host.put("first/npm", "echo 11.0.0");
    host.put_python("first/python3", "3.99.0");
    let known = host.known_within(Duration::from_secs(3));
    known.look(Anew::Changed).await;
    assert!(known.facts().is_unknown("node"));
    // From now on it is waited for as long as it may be.
    known.now().silent.values_mut().for_each(|silent| silent.times = 16);
    let again = tokio::spawn({
        let known = known.clone();
        async move { known.look(Anew::Silent).await }
    });
    while known.looking.try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    known.check(&needs("python>=3.99"), "preflight").await.expect("it has it");
    known.settle_python("install").await.expect("it has answered");
    assert_eq!(known.pythons().await.len(), 1);
    assert!(known.looking.try_lock().is_err(), "Node is still being asked");
    again.abort();
}

#[tokio::test]
async fn whoever_waits_while_everything_is_asked_shares_the_next_answers() {
    let host = Host::new();
    host.put_python("first/python3", "3.99.0");
    let known = host.known();
    tokio::join!(known.refresh(), known.refresh(), known.refresh(), known.refresh());
    assert_eq!(host.asked(), ["first/python3", "first/python3"], "once for the first, once for all others");
}

#[tokio::test]
async fn another_python_is_not_taken_because_the_hosts_own_is_slow() {
    let host = Host::new();
    let gate = host.path("gate");
    let own = format!(
        "[ -e {} ] || exec /bin/sleep 300; echo {}; echo 3.99.0",
        gate.display(),
        host.path("first/python3").display()
    );
    host.put("first/python3", &own);
    host.put_python("first/python3.9", "3.9.0");
    let known = host.known_within(Duration::from_secs(3));
    known.look(Anew::Changed).await;
    assert_eq!(known.pythons().await.len(), 1);
    let failure = known.settle_python("install").await.expect_err("not known");
    assert!(failure.kind == FailureKind::TimeoutError && failure.message.contains("python3"), "{failure}");
    fs::write(&gate, "").expect("gate");
    known.settle_python("install").await.expect("it has answered");
    assert!(known.pythons().await.iter().any(|python| python.is_usual));
}
