use fleetwright_deploy::deployment::{Deployment, DeploymentSummary, Options};
use fleetwright_deploy::fleet::Introduction;
use fleetwright_deploy::ids::Generation;
use fleetwright_deploy::plan::Plan;
use rusqlite::{Connection, params};

use super::*;

fn name() -> FleetName {
    "demo".parse().expect("name")
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(ms).expect("small"))
}

/// An event that any fleet takes, and that does not make it grow.
fn event(n: u64) -> FleetEvent {
    FleetEvent::HostEnrolled {
        host: format!("h{}", n % 3).parse().expect("name"),
        certificate_sha256: format!("{n:064x}"),
        introduction: Introduction::default(),
    }
}

/// Applies events and appends them in batches.
fn fill(journal: &mut Journal<SqliteStore>, live: &mut Fleet, count: u64, batch: usize) {
    let mut entries = Vec::new();
    let first = journal.last();
    for n in first + 1..=first + count {
        let event = event(n);
        let notes = live.apply(event.clone(), at(n)).expect("apply").notes;
        entries.push(NewEntry { at: at(n), actor: Actor::Coordinator, event, notes });
    }
    for chunk in entries.chunks(batch) {
        journal.append(chunk).expect("append");
    }
}

struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal.db")
    }

    fn open(&self) -> (Journal<SqliteStore>, Fleet, Opened) {
        Journal::open(SqliteStore::open(&self.path()).expect("open"), name()).expect("fold")
    }

    /// A journal with so many entries, closed; gives what it folds to.
    fn with(&self, count: u64) -> Fleet {
        let (mut journal, mut live, _) = self.open();
        fill(&mut journal, &mut live, count, 7);
        live
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.path()).expect("open").execute(sql, params![]).expect("sql");
    }
}

#[test]
fn entries_are_there_after_opening_again_and_a_second_writer_is_noticed() {
    let file = File::new();
    let live = file.with(20);
    let (mut journal, folded, opened) = file.open();
    assert_eq!((folded, opened), (live, Opened { snapshot: 0, folded: 20, set_aside: 0 }));
    let records = records(journal.store(), 18, 10).expect("records");
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [19, 20]);
    assert_eq!(records[0].event_type, "host_enrolled");
    let (mut other, _, _) = file.open();
    let entry = || NewEntry { at: at(1), actor: Actor::User(7), event: event(1), notes: Vec::new() };
    journal.append(&[entry()]).expect("the first writer");
    assert!(matches!(other.append(&[entry()]), Err(JournalError::Store(StoreError::Conflict(21)))));
}

#[test]
fn what_was_not_wholly_written_at_the_end_is_set_aside_and_the_rest_goes_on() {
    for damage in [
        "UPDATE events SET event = substr(event, 1, 5) WHERE seq = 10",
        "UPDATE events SET hash = x'00' WHERE seq = 10",
        "UPDATE events SET at = 77 WHERE seq = 10",
        "UPDATE events SET notes = 'x' WHERE seq IN (9, 10)",
        "DELETE FROM events WHERE seq = 9",
    ] {
        let file = File::new();
        file.with(10);
        file.sql(damage);
        let (mut journal, mut live, opened) = file.open();
        assert!(opened.set_aside > 0, "{damage} was not noticed");
        assert_eq!(opened.folded, journal.last());
        assert!(journal.last() >= 8, "{damage}: more was lost than was torn");
        fill(&mut journal, &mut live, 5, 2);
        drop(journal);
        assert_eq!(file.open().1, live);
        let torn: u64 = Connection::open(file.path())
            .expect("open")
            .query_row("SELECT count(*) FROM torn", [], |row| row.get::<_, i64>(0))
            .map(|count| u64::try_from(count).expect("count"))
            .expect("count");
        assert_eq!(torn, opened.set_aside, "what was set aside is kept");
    }
}

#[test]
fn damage_before_whole_entries_is_no_torn_tail_and_stops_the_coordinator() {
    for damage in [
        "UPDATE events SET event = '{}' WHERE seq = 5",
        "DELETE FROM events WHERE seq = 5",
        "UPDATE events SET hash = x'00' WHERE seq = 5",
        "UPDATE events SET actor = 'uid:1' WHERE seq = 5",
        "UPDATE events SET actor = NULL WHERE seq = 5",
    ] {
        let file = File::new();
        file.with(10);
        file.sql(damage);
        let error = Journal::open(SqliteStore::open(&file.path()).expect("open"), name()).err().expect("damaged");
        assert!(matches!(error, JournalError::Damaged(5, _)), "{damage}: {error}");
        let told = verify(&SqliteStore::open(&file.path()).expect("open"), &name()).expect_err("damaged").to_string();
        assert!(told.contains("entry 5"), "{told}");
    }
}

#[test]
fn a_whole_entry_of_a_kind_that_is_not_known_stops_the_coordinator_and_is_kept() {
    let file = File::new();
    file.with(10);
    let mut store = SqliteStore::open(&file.path()).expect("open");
    let before = store.read(9, 1).expect("read").remove(0);
    let mut newer = StoredEntry { seq: 11, event: r#"{"type":"of_a_later_version"}"#.to_owned(), ..before.clone() };
    newer.hash = newer.chained_to(&before.hash);
    store.append(10, &[newer]).expect("append");
    let error = Journal::open(store, name()).err().expect("not understood");
    assert!(matches!(error, JournalError::NotUnderstood(11, _)) && error.to_string().contains("newer coordinator"));
    assert_eq!(SqliteStore::open(&file.path()).expect("open").read(10, 5).expect("read").len(), 1, "it is still there");
}

#[test]
fn a_file_that_was_cut_off_goes_on_with_its_whole_entries_and_keeps_the_damaged_one_aside() {
    let file = File::new();
    file.with(2_000);
    // Closing the last connection has moved the write-ahead log into the file.
    let length = std::fs::metadata(file.path()).expect("metadata").len();
    let cut = std::fs::OpenOptions::new().write(true).open(file.path()).expect("open");
    cut.set_len(length / 2).expect("cut");
    drop(cut);
    let (mut journal, mut folded, opened, aside) = open_file(&file.path(), &name()).expect("salvage");
    assert!(aside.expect("the damaged file is kept").exists());
    assert!(opened.folded > 100 && opened.folded < 2_000, "{} entries", opened.folded);
    let mut live = Fleet::new(name());
    for n in 1..=journal.last() {
        live.apply(event(n), at(n)).expect("apply");
    }
    assert_eq!(folded, live);
    fill(&mut journal, &mut folded, 5, 5);
    verify(journal.store(), &name()).expect("whole again");
}

#[test]
fn a_snapshot_shortens_the_fold_and_a_broken_one_is_passed_over() {
    const EVERY: u64 = 200;
    let file = File::new();
    {
        let (journal, mut live, _) = file.open();
        let mut journal = journal.with_snapshots_every(EVERY);
        for _ in 0..3 {
            fill(&mut journal, &mut live, EVERY, 50);
            journal.snapshot_if_due(&live).expect("snapshot");
        }
        fill(&mut journal, &mut live, 10, 10);
    }
    let (journal, live, opened) = file.open();
    assert_eq!(opened, Opened { snapshot: 3 * EVERY, folded: 10, set_aside: 0 });
    let verified = verify(journal.store(), &name()).expect("whole");
    assert_eq!((verified.entries, verified.snapshots), (3 * EVERY + 10, 2));
    drop(journal);
    file.sql(&format!("UPDATE snapshots SET state = replace(state, 'h1', 'h2') WHERE seq = {}", 3 * EVERY));
    let (_, folded, opened) = file.open();
    assert_eq!(opened, Opened { snapshot: 2 * EVERY, folded: EVERY + 10, set_aside: 0 });
    assert_eq!(folded, live);
    file.sql("UPDATE snapshots SET version = '0.0.0'");
    let (_, folded, opened) = file.open();
    assert_eq!((opened.snapshot, folded), (0, live));
}

#[test]
fn a_full_disk_writes_nothing_and_is_no_loss_once_there_is_room() {
    let file = File::new();
    let live = file.with(10);
    let (mut journal, mut ahead, _) = file.open();
    journal.store().limit_pages(1).expect("pragma");
    let mut entries = Vec::new();
    for n in 11..1_000 {
        let notes = ahead.apply(event(n), at(n)).expect("apply").notes;
        entries.push(NewEntry { at: at(n), actor: Actor::Coordinator, event: event(n), notes });
    }
    let error = journal.append(&entries).expect_err("full");
    assert!(error.is_full(), "{error}");
    assert_eq!(journal.last(), 10);
    assert_eq!(file.open().1, live);
    journal.store().limit_pages(1_000_000).expect("pragma");
    journal.append(&entries).expect("there is room");
    drop(journal);
    assert_eq!(file.open().1, ahead);
}

/// Every version of the file that was ever released opens, folds, and takes new entries. The files are made by
/// the versions themselves and never changed.
#[test]
fn files_of_every_released_version_open() {
    let files: &[&str] = &[include_str!("tests/journal-v1.sql")];
    for (version, sql) in (1..).zip(files) {
        let file = File::new();
        Connection::open(file.path()).expect("open").execute_batch(sql).expect("the file as it was written");
        let (mut journal, mut live, opened) = file.open();
        assert!(opened.folded > 20 && opened.set_aside == 0, "version {version}: {opened:?}");
        assert!(live.deployments().next().is_some_and(|deployment| deployment.outcome().is_some()));
        // What hosts told in them is believed.
        let addresses = live.hosts().values().map(|host| host.believed().expect("it has told").address);
        assert_eq!(addresses.collect::<Vec<_>>(), ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        fill(&mut journal, &mut live, 3, 3);
        verify(journal.store(), &name()).expect("whole");
        drop(journal);
        assert_eq!(file.open().1, live);
    }
}

#[test]
fn a_file_of_a_later_version_is_left_alone() {
    let file = File::new();
    file.with(3);
    file.sql("PRAGMA user_version = 99");
    assert!(matches!(SqliteStore::open(&file.path()).err(), Some(StoreError::Newer(99))));
}

/// A file of before, in which a second deployment took the place of the first, whose hosts have long forgotten it.
fn with_history() -> (File, Journal<SqliteStore>, Fleet, DeploymentId) {
    let file = File::new();
    let sql = include_str!("tests/journal-v1.sql");
    Connection::open(file.path()).expect("open").execute_batch(sql).expect("the file as it was written");
    let (journal, live, _) = file.open();
    let first = live.deployments().next().expect("the first").id().clone();
    (file, journal, live, first)
}

fn archive(journal: &mut Journal<SqliteStore>, live: &mut Fleet, id: &DeploymentId) {
    let deployments = BTreeSet::from([id.clone()]);
    journal.archive(live, &deployments).expect("it is kept");
    // Years after.
    let (at, event) = (at(9_000_000_000_000), FleetEvent::DeploymentsArchived { deployments });
    let notes = live.apply(event.clone(), at).expect("history").notes;
    journal.append(&[NewEntry { at, actor: Actor::Coordinator, event, notes }]).expect("append");
}

#[test]
fn what_leaves_the_fleet_is_in_the_archive_by_page_by_name_and_by_server() {
    let (file, mut journal, mut live, first) = with_history();
    let whole = live.deployment(&first).cloned().expect("it");
    archive(&mut journal, &mut live, &first);
    assert_eq!(live.deployment(&first), None);
    let store = journal.store();
    let pages = |before, limit| store.past(Generation(before), limit).expect("a page");
    assert_eq!(pages(u64::MAX, 10), [(whole.generation(), DeploymentSummary::new(&whole))]);
    assert_eq!((pages(whole.generation().0, 10), pages(u64::MAX, 0)), (Vec::new(), Vec::new()));
    assert_eq!(store.past_deployment(&first).expect("readable").as_ref(), Some(&whole));
    let of = |server: &str| store.past_of(&server.parse().expect("name")).expect("readable");
    let (at, PastPlan { summary, releases }) = of("web").pop().expect("it had planned it");
    assert_eq!((at, summary.id, releases.len()), (whole.generation(), first, 3));
    assert_eq!(of("other"), []);
    drop(journal);
    assert_eq!(file.open().1, live);
}

#[test]
fn an_archive_that_was_lost_is_made_again_from_the_entries() {
    let (file, mut journal, mut live, first) = with_history();
    let whole = live.deployment(&first).cloned();
    archive(&mut journal, &mut live, &first);
    drop(journal);
    file.sql("DELETE FROM deployments");
    file.sql("DELETE FROM planned");
    let (journal, folded, _) = file.open();
    assert_eq!(folded, live);
    assert_eq!(journal.store().past_deployment(&first).expect("readable"), whole);
    verify(journal.store(), &name()).expect("whole");
}

#[test]
fn the_archive_holds_the_newest_each_as_it_was_written_last() {
    let (_file, mut journal, live, first) = with_history();
    let plan = live.deployment(&first).expect("it").plan().clone();
    let past = |generation: u64| {
        let plan = Plan { parent: Generation(generation), ..Plan::clone(&plan) };
        let options = Options { rollback: true, started_by: "test".to_owned() };
        PastDeployment::new(&Deployment::new(plan.into(), options, &BTreeSet::new(), at(generation)))
    };
    let store = &mut journal.store;
    let most = u64::from(ARCHIVED_MAX);
    for generation in 0..most + 5 {
        store.archive(&[past(generation)]).expect("it is kept");
    }
    let kept = store.past(Generation(u64::MAX), usize::MAX).expect("all");
    let generations: Vec<u64> = kept.iter().map(|(generation, _)| generation.0).collect();
    assert_eq!(generations, (6..most + 6).rev().collect::<Vec<_>>());
    assert_eq!(store.past_of(&"web".parse().expect("name")).expect("readable").len(), kept.len());
    let mut again = past(most);
    again.summary.started_by = "somebody else".to_owned();
    store.archive(&[again]).expect("it is kept");
    let kept = store.past(Generation(u64::MAX), usize::MAX).expect("all");
    assert_eq!(kept.len(), usize::try_from(most).expect("small"));
    assert_eq!(kept[4].1.started_by, "somebody else", "another version may write it in another form");
}
