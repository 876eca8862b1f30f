//! The recipes for databases, on real ones: a release that migrates and then fails leaves the database as it was.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fleetwright_tests::fleet::Fleet;
use fleetwright_tests::tools::{Tool, have, postgresql_programs};

const ROLLED_BACK: i32 = 4;

/// Deploys a server with this database, then a release that migrates it and ends.
/// `run` says what else its definition needs to run.
fn migrate_and_fail(fleet: &Fleet, run: &str, database: &str, migration: &str) {
    fleet.write("config/environments/test.yaml", "apiVersion: fleetwright/v1\nname: test\n");
    let manifest = fleet.write(
        "manifests/test.yaml",
        "apiVersion: fleetwright/v1\nname: test\nenvironment: test\nservers:\n  - { server: app }\n\
         rollout: { min_healthy_time: 5s, bake: 0s, retry: { attempts: 1 } }\n",
    );
    let define = |script: &str| {
        let definition = format!(
            "apiVersion: fleetwright/v1\nname: app\nrun:\n  command: [sh, \"{{{{ server.config_dir }}}}/run.sh\"]\n  stop_timeout: 2s\n{run}\
             files:\n  - path: run.sh\n    content: |\n      {script}\n\
             health_checks:\n  - {{ name: alive, type: command, interval: 1s, config: {{ command: [\"true\"] }} }}\n\
             snapshot:\n  database:\n{database}"
        );
        fleet.write("config/servers/app.yaml", &definition);
    };
    define("exec sleep 100000");
    fleet.up(&manifest, &["--agents", "1"]).expect_code(0);
    define(&format!("{migration} || exit 9\n      sleep 0.1; exit 3"));
    let failed = fleet.deploy(&manifest, &[]).expect_code(ROLLED_BACK);
    assert!(failed.stderr.contains("exit status 3"), "the migration itself must succeed: {}", failed.stderr);
    let kept = fleet.run(&["snapshots", "list", "app"]).expect_code(0).stdout;
    assert!(kept.contains("no snapshots") || kept.contains("database"), "{kept}");
}

#[test]
fn a_migration_of_sqlite_is_undone() {
    if !have(&[Tool::Sqlite]) {
        return;
    }
    let fleet = Fleet::new();
    let file = fleet.path().join("app.db");
    let sql = |text: &str| {
        let output = Command::new("sqlite3").arg(&file).arg(text).output().expect("sqlite3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    sql("CREATE TABLE people (name TEXT); INSERT INTO people VALUES ('Ada'), ('Grace');");
    let before = sql(".dump");
    let path = file.display();
    // The dump is SQL; restoring empties the file first, since the schema may be another.
    let database =
        format!("    dump: [sqlite3, {path}, .dump]\n    restore: [sh, -c, \"rm -f {path}; sqlite3 {path}\"]\n");
    let migration = format!("sqlite3 {path} 'ALTER TABLE people ADD COLUMN age INT; DELETE FROM people;'");
    // The file is the one of whoever runs this test.
    let run = format!("  user: {}\n  writable: [{}]\n", user(), fleet.path().display());
    migrate_and_fail(&fleet, &run, &database, &migration);
    assert_eq!(sql(".dump"), before);
}

/// The name of the user that runs this test.
fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A PostgreSQL of the test's own, on a socket of its own.
struct Postgresql {
    programs: PathBuf,
    folder: tempfile::TempDir,
}

impl Postgresql {
    fn start(programs: PathBuf) -> Self {
        let folder = tempfile::Builder::new().prefix("fw-pg-").tempdir_in("/tmp").expect("a folder");
        let postgresql = Self { programs, folder };
        let data = postgresql.path().join("data");
        succeed(Command::new("chown").arg("nobody:nogroup").arg(postgresql.path()));
        // Servers that use it run as users of their own.
        succeed(Command::new("chmod").arg("0755").arg(postgresql.path()));
        succeed(postgresql.as_nobody("initdb").args(["-U", "fw", "-A", "trust", "--no-sync", "-D"]).arg(&data));
        let options = format!("-c listen_addresses='' -c unix_socket_directories={}", postgresql.path().display());
        let log = postgresql.path().join("log");
        succeed(
            postgresql.as_nobody("pg_ctl").args(["start", "-w", "-o", &options, "-D"]).arg(&data).arg("-l").arg(log),
        );
        postgresql
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn as_nobody(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(self.programs.join(program));
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// A client program with where to connect.
    fn client(&self, program: &str) -> String {
        let program = self.programs.join(program);
        format!("{}, -h, {}, -U, fw", program.display(), self.path().display())
    }

    fn sql(&self, text: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-q", "-t", "-A", "-U", "fw", "-h"]).arg(self.path()).args(["-c", text, "postgres"]);
        let output = psql.output().expect("psql");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Postgresql {
    fn drop(&mut self) {
        let data = self.path().join("data");
        let _ = self.as_nobody("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(data).output();
        let pid = self.path().join("data/postmaster.pid");
        let deadline = Instant::now() + Duration::from_secs(10);
        while pid.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_migration_of_postgresql_is_undone() {
    if !have(&[Tool::Postgresql]) {
        return;
    }
    let postgresql = Postgresql::start(postgresql_programs().expect("its programs"));
    postgresql.sql("CREATE TABLE people (id serial PRIMARY KEY, name text)");
    postgresql.sql("INSERT INTO people (name) VALUES ('Ada'), ('Grace')");
    let fleet = Fleet::new();
    let (dump, restore) = (postgresql.client("pg_dump"), postgresql.client("psql"));
    let database = format!(
        "    dump: [{dump}, --clean, --if-exists, postgres]\n    restore: [{restore}, -X, --quiet, --single-transaction, --set=ON_ERROR_STOP=1, postgres]\n"
    );
    let psql = restore.replace(", ", " ");
    let migration = format!("{psql} -X -q -c 'ALTER TABLE people ADD COLUMN age int; DELETE FROM people' postgres");
    // The socket is below `/tmp`, which the server does not share but for what is named.
    let run = format!("  writable: [{}]\n", postgresql.path().display());
    migrate_and_fail(&fleet, &run, &database, &migration);
    assert_eq!(postgresql.sql("SELECT name FROM people ORDER BY id"), "Ada\nGrace\n");
    let columns = postgresql.sql("SELECT count(*) FROM information_schema.columns WHERE table_name = 'people'");
    assert_eq!(columns.trim(), "2");
}
