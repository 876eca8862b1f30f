//! A stdio server behind a bridge, or one that speaks HTTP itself, reached at a URL until it is dropped.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fleet::program;
use crate::strangers::Kit;

/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that tests talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fixture {
    /// `everything.py`, on the Python SDK 2.x: both eras.
    Python,
    /// `everything.mjs`, on the TypeScript SDK 1.x: the older era alone.
    TypeScript,
    /// `tools2.mjs`, on the TypeScript SDK 2.x: both eras, one of them for each process, as it was first spoken to.
    TypeScript2,
}

impl Fixture {
    /// Those that have all that the conformance suite asks for.
    pub const ALL: [Self; 2] = [Self::Python, Self::TypeScript];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Python => "Python SDK 2.3",
            Self::TypeScript => "TypeScript SDK 1.32",
            Self::TypeScript2 => "TypeScript SDK 2.4",
        }
    }

    /// How many tools it has.
    pub const fn tools(self) -> usize {
        match self {
            Self::Python => 30,
            Self::TypeScript => 25,
            Self::TypeScript2 => 12,
        }
    }

    const fn kit(self) -> Kit {
        match self {
            Self::Python => Kit::Python2,
            Self::TypeScript => Kit::TypeScript1,
            Self::TypeScript2 => Kit::TypeScript2,
        }
    }

    const fn script(self) -> &'static str {
        match self {
            Self::Python => "everything.py",
            Self::TypeScript => "everything.mjs",
            Self::TypeScript2 => "tools2.mjs",
        }
    }

    /// The command that serves over standard input and output.
    pub fn stdio(self) -> Vec<OsString> {
        let kit = self.kit();
        vec![kit.interpreter().into(), kit.script(self.script()).into(), "stdio".into()]
    }

    /// The same server, speaking HTTP by its own SDK.
    pub fn native(self) -> Served {
        let port = free_port();
        let mut command = self.kit().command(self.script());
        command.args(["http", &port.to_string()]);
        Served::start(command, port)
    }
}

/// How a bridge is started.
#[derive(Clone, Debug)]
pub struct Bridge {
    agent: PathBuf,
    arguments: Vec<OsString>,
}

impl Default for Bridge {
    fn default() -> Self {
        Self::of(&program("fleetwright-agent"))
    }
}

impl Bridge {
    /// The bridge of this build of the agent.
    pub fn of(agent: &Path) -> Self {
        Self { agent: agent.to_owned(), arguments: Vec::new() }
    }

    /// A child for each session.
    #[must_use]
    pub fn own(self) -> Self {
        self.with(&["--sessions", "own"])
    }

    /// With these arguments as well.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Starts it in front of a server.
    pub fn serve(&self, server: &[OsString]) -> Served {
        let port = free_port();
        let mut command = Command::new(&self.agent);
        command.args(["bridge", "--listen", &format!("127.0.0.1:{port}"), "--path", "/mcp"]);
        command.args(&self.arguments).arg("--").args(server);
        Served::start(command, port)
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Served {
    child: Child,
    port: u16,
    /// What it and everything that it starts say on standard error.
    log: tempfile::NamedTempFile,
}

impl Served {
    /// Starts a command that will listen on this port of the loopback address, and waits until it does.
    ///
    /// # Panics
    /// If it ends, or does not listen in time.
    pub fn start(mut command: Command, port: u16) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let stderr = log.reopen().expect("the file");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
        let mut served = Self { child, port, log };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = served.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{command:?} ended: {ended:?}\n{}", served.log());
            assert!(Instant::now() < deadline, "{command:?} does not listen:\n{}", served.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A bridge has its port before its server is ready, and answers then.
        let answered = answers(port);
        assert!(answered.is_ok(), "{command:?} does not answer: {answered:?}\n{}", served.log());
        served
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it and its children have said on standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Waits until its log has said something so often.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn until_said(&self, words: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.log().matches(words).count() < times {
            assert!(Instant::now() < deadline, "\"{words}\" was not said {times} times:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Told first, so that it ends what it has started.
        let _ = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|exit| exit.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the first byte of an answer, whatever it is.
fn answers(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n").as_bytes())?;
    stream.read_exact(&mut [0])
}

/// A port of the loopback address that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port()
}
