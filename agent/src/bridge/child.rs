//! A server's process, which speaks JSON-RPC in lines and is asked by many at once. It knows which answer and which news
//! belong to which request; what belongs to none, whoever started it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::de::IgnoredAny;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::era::{Level, META_SUBSCRIPTION};
use super::line::{LINE_BYTES_MAX, Line, Lines, id_of};
use super::message::{self, Answer, INTERNAL_ERROR, Message, Raw, failure, fields, number, raw, text};
use crate::process::{self, KillGroup, OwnChildren};

/// How long the last words of a server that has ended may still come.
const LEFTOVER_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a server whose input was closed has to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// And how long after it was told to.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);
/// What marks the processes of one session's server, wherever they have gone.
const MARK_VARIABLE: &str = "FLEETWRIGHT_BRIDGE_SESSION";
/// How many lines wait to be written; whoever has more waits too.
const LINES_MAX: usize = 256;
/// Most bytes of lines that wait to be written.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a server may take to stop what was cancelled, since it does not say when it has; how many of those are remembered.
const CANCELLED_FOR: Duration = Duration::from_millis(500);
const CANCELLED_MAX: usize = 1024;
/// How many notifications of one request wait to be read; more are dropped.
const NEWS_MAX: usize = 256;

/// Whom a request is of. What is of one is never told another.
pub(super) type Owner = u64;

/// A notification.
#[derive(Debug)]
pub(super) struct News {
    pub(super) method: String,
    pub(super) params: Option<Raw>,
}

/// What the server says that belongs to no request.
#[derive(Debug)]
pub(super) enum Heard {
    News(News),
    Request { id: Raw, method: String, params: Option<Raw> },
}

/// Who is told what belongs to no request.
pub(super) type Hearer = Box<dyn Fn(&Child, Heard) + Send + Sync>;

/// What is started: the program with its arguments, without a variable that is not for it.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) hidden: &'static str,
    pub(super) own: OwnChildren,
}

/// A server's process. It ends when the last of these is dropped, or when it is told to.
#[derive(Clone)]
pub(super) struct Child(Arc<Inner>);

struct Inner {
    lines: Mutex<Option<mpsc::Sender<String>>>,
    pending: Mutex<BTreeMap<u64, Pending>>,
    /// Requests that were cancelled, whose answers have not come: the server may still be at them.
    cancelled: Mutex<BTreeMap<u64, (Owner, Instant)>>,
    /// Bytes that wait to be written.
    queued: Arc<AtomicUsize>,
    next: AtomicU64,
    end: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end.notify_one();
    }
}

/// A request that waits for its answer.
struct Pending {
    answer: oneshot::Sender<Answer>,
    news: mpsc::Sender<News>,
    /// The token under which its client wants to be told of progress.
    progress: Option<Raw>,
    owner: Owner,
    logs: Logs,
}

/// Whether log messages may be of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logs {
    /// The server writes none for it.
    Never,
    /// It may cause some, and its client wants none.
    Unwanted,
    /// Its client wants those that are at least so important.
    From(Level),
}

/// A request, as it is asked.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) method: &'a str,
    pub(super) params: Option<Raw>,
    pub(super) owner: Owner,
    pub(super) logs: Logs,
}

/// A request on its way.
pub(super) struct Asked {
    pub(super) answer: oneshot::Receiver<Answer>,
    pub(super) news: mpsc::Receiver<News>,
    id: u64,
    child: Child,
}

impl Drop for Asked {
    /// Whoever no longer waits has cancelled, unless the answer has come.
    fn drop(&mut self) {
        let left = self.child.pending().remove(&self.id);
        if let Some(left) = left {
            if left.logs != Logs::Never {
                self.child.0.note_cancelled(self.id, left.owner);
            }
            let params = raw(&json!({ "requestId": self.id, "reason": "the client no longer waits" }));
            self.child.try_write(message::notification("notifications/cancelled", Some(&params)));
        }
    }
}

/// Why a server has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAsked {
    #[error("the MCP server behind the bridge has ended")]
    Ended,
    #[error("the MCP server behind the bridge does not read what it is sent; try again later")]
    Busy,
}

impl NotAsked {
    pub(super) fn answer(self) -> Answer {
        Err(failure(INTERNAL_ERROR, &self.to_string()))
    }
}

/// How a process group is treated: that of the bridge itself is ended with the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    OfTheBridge,
    Own,
}

impl Child {
    /// Starts a server. The receiver tells how it ended.
    pub(super) fn start(program: &Program, group: Group, hearer: Hearer) -> Result<(Self, oneshot::Receiver<String>)> {
        let (name, arguments) = program.command.split_first().context("no command was given")?;
        let mut command = Command::new(name);
        command.args(arguments).env_remove(program.hidden);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mark = (group == Group::Own).then(|| format!("{MARK_VARIABLE}={}", mark()));
        if let Some((name, value)) = mark.as_deref().and_then(|mark| mark.split_once('=')) {
            command.process_group(0).env(name, value);
        }
        let mut process = command.spawn().with_context(|| format!("`{name}` could not be started"))?;
        let pid = process.id().and_then(|pid| i32::try_from(pid).ok());
        program.own.add(pid);
        let kill_group = (group == Group::Own).then(|| KillGroup::of(process.id()));
        let (stdin, stdout) = (process.stdin.take().context("no input")?, process.stdout.take().context("no output")?);
        let (lines, to_write) = mpsc::channel(LINES_MAX);
        let end = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            lines: Mutex::new(Some(lines)),
            pending: Mutex::default(),
            cancelled: Mutex::default(),
            queued: Arc::default(),
            next: AtomicU64::new(1),
            end: end.clone(),
        });
        tokio::spawn(write(stdin, to_write, inner.queued.clone()));
        let (tell, ended) = oneshot::channel();
        // Reading holds no part in the server: one that nobody needs any more ends.
        let (reading, own) = (Arc::downgrade(&inner), program.own.clone());
        tokio::spawn(async move {
            let output = read(stdout, &reading, &hearer);
            tokio::pin!(output);
            let exit = tokio::select! {
                // Nobody will answer any more, so it is not left running either.
                () = &mut output => end_of(&mut process, group, LEFTOVER_TIMEOUT).await,
                exit = process.wait() => {
                    // What it left behind may keep its output open: that is not waited for.
                    let _ = timeout(LEFTOVER_TIMEOUT, output).await;
                    exit
                }
                () = end.notified() => {
                    if let Some(inner) = reading.upgrade() {
                        inner.close();
                    }
                    let mut ending = std::pin::pin!(end_of(&mut process, group, END_TIMEOUT));
                    // What it still writes is read, so that it does not wait for that.
                    tokio::select! {
                        exit = ending.as_mut() => exit,
                        () = &mut output => ending.await,
                    }
                }
            };
            drop(kill_group);
            if let Some(mark) = mark {
                process::kill_marked(&mark);
            }
            own.remove(pid);
            if let Some(inner) = reading.upgrade() {
                inner.close();
                inner.pending().clear();
            }
            let _ = tell.send(exit.map_or_else(|error| error.to_string(), |exit| exit.to_string()));
        });
        Ok((Self(inner), ended))
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.0.pending()
    }

    /// Asks the server.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Asked, NotAsked> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let (news, heard) = mpsc::channel(NEWS_MAX);
        let (params, progress) = exchange_token(question.params, id);
        let pending = Pending { answer, news, progress, owner: question.owner, logs: question.logs };
        self.pending().insert(id, pending);
        let asked = Asked { answer: answered, news: heard, id, child: self.clone() };
        self.write(message::request(&number(id), question.method, params.as_deref())).await?;
        Ok(asked)
    }

    /// Asks the server, and waits for its answer alone.
    pub(super) async fn ask_plainly(&self, method: &str, params: Option<Raw>) -> Result<Answer, NotAsked> {
        let mut asked = self.ask(Question { method, params, owner: 0, logs: Logs::Never }).await?;
        (&mut asked.answer).await.map_err(|_| NotAsked::Ended)
    }

    /// Sends a notification.
    pub(super) async fn tell(&self, method: &str, params: Option<&RawValue>) {
        let _ = self.write(message::notification(method, params)).await;
    }

    /// Answers what the server has asked.
    pub(super) fn answer(&self, id: &RawValue, answer: &Answer) {
        self.try_write(message::answer(id, answer));
    }

    /// Asks the server to end, and ends it if it does not.
    pub(super) fn end(&self) {
        self.0.end.notify_one();
    }

    /// Closes the server's input, which asks it to end.
    pub(super) fn close(&self) {
        self.0.close();
    }

    /// The request that log messages are of, where that is certain: all that could have caused them are of one owner. The
    /// newest of them is told.
    pub(super) fn tell_whoever_asked(&self, level: Option<Level>, news: News) -> Attribution {
        let cancelled = self.0.still_cancelled();
        let pending = self.pending();
        let mut all = pending.values().rev().filter(|pending| pending.logs != Logs::Never);
        let Some(newest) = all.next() else {
            return if cancelled.is_empty() { Attribution::NobodyAsks(news) } else { Attribution::Unclear };
        };
        if all.any(|other| other.owner != newest.owner) || cancelled.iter().any(|owner| *owner != newest.owner) {
            return Attribution::Unclear;
        }
        if let Logs::From(least) = newest.logs
            && level.is_none_or(|level| level >= least)
        {
            let _ = newest.news.try_send(news);
        }
        Attribution::Told
    }

    async fn write(&self, line: String) -> Result<(), NotAsked> {
        let lines = self.0.lines().ok_or(NotAsked::Ended)?;
        let bytes = line.len();
        if self.0.queued.fetch_add(bytes, Ordering::Relaxed) > QUEUED_BYTES_MAX {
            self.0.queued.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NotAsked::Busy);
        }
        lines.send(line).await.map_err(|_| NotAsked::Ended)
    }

    fn try_write(&self, line: String) {
        let Some(lines) = self.0.lines() else { return };
        let bytes = line.len();
        self.0.queued.fetch_add(bytes, Ordering::Relaxed);
        if lines.try_send(line).is_err() {
            self.0.queued.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!("the server does not read what it is sent");
        }
    }

    /// Takes in what the server wrote.
    fn take(&self, message: Message, hearer: &Hearer) {
        match (message.method, message.id) {
            (Some(method), Some(id)) => hearer(self, Heard::Request { id, method, params: message.params }),
            (Some(method), None) => {
                if let Some(news) = self.told_to_its_request(News { method, params: message.params }) {
                    hearer(self, Heard::News(news));
                }
            }
            (None, Some(id)) => {
                let Ok(id) = id.get().parse::<u64>() else { return };
                self.0.cancelled().remove(&id);
                let Some(pending) = self.pending().remove(&id) else { return };
                let answer = match (message.error, message.result) {
                    (Some(error), _) => Err(error),
                    (None, result) => Ok(result.unwrap_or_else(|| raw(&json!({})))),
                };
                let _ = pending.answer.send(answer);
            }
            (None, None) => {}
        }
    }

    /// Tells news to the request that they name; gives back those that name none.
    fn told_to_its_request(&self, mut news: News) -> Option<News> {
        let Some(mut params) = fields(news.params.as_deref()) else { return Some(news) };
        if news.method == "notifications/progress" {
            let id: Option<u64> = params.get("progressToken").and_then(|token| token.get().parse().ok());
            let pending = self.pending();
            let of = id.and_then(|id| pending.get(&id));
            if let Some((of, token)) = of.and_then(|of| Some((of, of.progress.clone()?))) {
                params.insert("progressToken".to_owned(), token);
                news.params = Some(raw(&params));
                let _ = of.news.try_send(news);
            }
            return None;
        }
        if news.method == "notifications/cancelled" {
            // A server of the modern era ends a stream that is listened to with it.
            let id: Option<u64> = params.get("requestId").and_then(|id| id.get().parse().ok());
            if let Some(pending) = id.and_then(|id| self.pending().remove(&id)) {
                let _ = pending.answer.send(Err(failure(INTERNAL_ERROR, "the server has ended the stream")));
                return None;
            }
        }
        let meta = fields(params.get("_meta").map(|meta| &**meta));
        let subscription = meta.as_ref().and_then(|meta| meta.get(META_SUBSCRIPTION));
        let Some(id) = subscription.and_then(|id| id.get().parse::<u64>().ok()) else { return Some(news) };
        if let Some(of) = self.pending().get(&id) {
            let _ = of.news.try_send(news);
        }
        None
    }

    /// Ends the wait for an answer that nobody can read: numbers or characters that JSON does not have.
    fn unreadable(&self, line: &[u8]) {
        let is_json = serde_json::from_slice::<IgnoredAny>(line).is_ok();
        let id = (!is_json && line.trim_ascii_start().starts_with(b"{")).then(|| id_of(line)).flatten();
        if let Some(pending) = id.and_then(|id| self.pending().remove(&id)) {
            let _ = pending.answer.send(Err(failure(INTERNAL_ERROR, "the server's answer is no JSON")));
        }
    }

    /// Ends the wait for an answer that was too long to be taken.
    fn too_long(&self, id: Option<u64>) {
        let mib = LINE_BYTES_MAX >> 20;
        tracing::warn!("the server wrote a message of more than {mib} MiB, which is the most; it is skipped");
        if let Some(pending) = id.and_then(|id| self.pending().remove(&id)) {
            let message =
                format!("the server's answer has more than {mib} MiB, which is the most that the bridge takes");
            let _ = pending.answer.send(Err(failure(INTERNAL_ERROR, &message)));
        }
    }
}

/// Whose a log message is.
pub(super) enum Attribution {
    /// It was told to whoever it is of, or is of somebody who wants none.
    Told,
    /// Nobody has asked for anything.
    NobodyAsks(News),
    /// It may be of several.
    Unclear,
}

impl Inner {
    fn cancelled(&self) -> MutexGuard<'_, BTreeMap<u64, (Owner, Instant)>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_cancelled(&self, id: u64, owner: Owner) {
        let mut cancelled = self.cancelled();
        if cancelled.len() >= CANCELLED_MAX {
            cancelled.pop_first();
        }
        cancelled.insert(id, (owner, Instant::now()));
    }

    /// Whose cancelled requests the server may still be at.
    fn still_cancelled(&self) -> BTreeSet<Owner> {
        let mut cancelled = self.cancelled();
        cancelled.retain(|_, (_, since)| since.elapsed() < CANCELLED_FOR);
        cancelled.values().map(|(owner, _)| *owner).collect()
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> Option<mpsc::Sender<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Tokens of different clients may be the same, so the server gets the id of the request in their place.
fn exchange_token(params: Option<Raw>, id: u64) -> (Option<Raw>, Option<Raw>) {
    const TOKEN: &str = "progressToken";
    if !params.as_ref().is_some_and(|params| params.get().contains(TOKEN)) {
        return (params, None);
    }
    let Some(mut all) = fields(params.as_deref()) else { return (params, None) };
    let Some(mut meta) = fields(all.get("_meta").map(|meta| &**meta)) else { return (params, None) };
    let token = meta.insert(TOKEN.to_owned(), number(id));
    if token.is_none() {
        return (params, None);
    }
    all.insert("_meta".to_owned(), raw(&meta));
    (Some(raw(&all)), token)
}

/// A number that no other session's server of this bridge has.
fn mark() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits for the end of a process, and ends it when it takes too long: first in words, where it has a group of its own.
async fn end_of(process: &mut tokio::process::Child, group: Group, patience: Duration) -> std::io::Result<ExitStatus> {
    if let Ok(exit) = timeout(patience, process.wait()).await {
        return exit;
    }
    let pid = process.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.filter(|_| group == Group::Own) {
        process::kill_group(pid, Signal::TERM);
        if let Ok(exit) = timeout(TERMINATE_TIMEOUT, process.wait()).await {
            return exit;
        }
    }
    process.start_kill()?;
    process.wait().await
}

async fn write(mut stdin: ChildStdin, mut lines: mpsc::Receiver<String>, queued: Arc<AtomicUsize>) {
    while let Some(mut line) = lines.recv().await {
        queued.fetch_sub(line.len(), Ordering::Relaxed);
        line.push('\n');
        if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
}

async fn read(stdout: ChildStdout, inner: &std::sync::Weak<Inner>, hearer: &Hearer) {
    let mut lines = Lines::new(BufReader::with_capacity(32 * 1024, stdout), LINE_BYTES_MAX);
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the server's output cannot be read");
                return;
            }
        };
        let Some(child) = inner.upgrade().map(Child) else { return };
        match line {
            Line::TooLong { id } => child.too_long(id),
            Line::Whole(line) => match messages(line) {
                Some(messages) => messages.into_iter().for_each(|message| child.take(message, hearer)),
                None => {
                    child.unreadable(line);
                    keep(line);
                }
            },
        }
    }
}

/// The messages of a line: one, or several in a list, as 2025-03-26 allows.
fn messages(line: &[u8]) -> Option<Vec<Message>> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Some(Vec::new());
    }
    let messages: Vec<Message> = match line.trim_ascii_start().first() {
        Some(b'[') => serde_json::from_slice(line).ok()?,
        _ => vec![serde_json::from_slice(line).ok()?],
    };
    messages.iter().all(is_message).then_some(messages)
}

/// Whether it is a message, and no line of a log that happens to be an object.
fn is_message(message: &Message) -> bool {
    let answers = message.id.is_some() && (message.result.is_some() || message.error.is_some());
    answers || (message.is_version_2() && message.method.is_some())
}

/// A line that is no message is something that the server has to say: it goes where its errors go, as it is.
fn keep(line: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(line).and_then(|()| stderr.write_all(b"\n"));
}

/// What log messages say of how important they are.
pub(super) fn level_of(news: &News) -> Option<Level> {
    text(&fields(news.params.as_deref())?, "level").and_then(|level| Level::parse(&level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gets_the_id_of_the_request_in_place_of_its_clients_token() {
        let params = raw(&json!({ "a": 1.5, "_meta": { "progressToken": "p", "mine": 1 } }));
        let (params, token) = exchange_token(Some(params), 7);
        assert_eq!(params.expect("parameters").get(), r#"{"_meta":{"mine":1,"progressToken":7},"a":1.5}"#);
        assert_eq!(token.expect("a token").get(), "\"p\"");
        let elsewhere = raw(&json!({ "progressToken": "p", "_meta": {} }));
        let (params, token) = exchange_token(Some(elsewhere.clone()), 7);
        assert!(token.is_none() && params.expect("parameters").get() == elsewhere.get());
    }
}
