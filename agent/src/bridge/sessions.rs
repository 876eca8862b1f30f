//! The sessions of clients of the older era. Clients that go away without a word leave theirs behind: where there are too
//! many, the one that was not used for longest makes room, and its client begins anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::admission::{Admission, Open, admit};
use super::child::{Child, Heard, News, Owner};
use super::listening::Listening;
use super::message::{self, Answer, Fields, INTERNAL_ERROR, Raw, failure, fields, raw, text};
use super::streams::{Kept, Stream};

/// Most questions of a server to one client that wait for their answers.
const QUESTIONS_MAX: usize = 64;
/// Most requests of one session at once.
pub(super) const REQUESTS_MAX: usize = 256;
/// The stream that belongs to no request.
const STANDALONE: u64 = 0;

/// What a client has said of itself in its handshake.
#[derive(Debug)]
pub(super) struct Hello {
    /// Its parameters of `initialize`.
    pub(super) params: Raw,
    pub(super) version: Option<String>,
    pub(super) client: Option<Raw>,
    pub(super) capabilities: Option<Raw>,
}

impl Hello {
    pub(super) fn of(params: Option<&RawValue>) -> Self {
        let mut all = fields(params).unwrap_or_default();
        Self {
            params: params.map_or_else(|| raw(&json!({})), ToOwned::to_owned),
            version: text(&all, "protocolVersion"),
            client: all.remove("clientInfo"),
            capabilities: all.remove("capabilities"),
        }
    }

    /// Whether the client can do nothing for a server.
    pub(super) fn offers_nothing(&self) -> bool {
        fields(self.capabilities.as_deref()).is_none_or(|capabilities| capabilities.is_empty())
    }
}

/// One client's session.
pub(super) struct Session {
    pub(super) id: String,
    pub(super) owner: Owner,
    pub(super) hello: Hello,
    /// The version that was agreed on.
    pub(super) version: String,
    /// The server's process that is this session's alone; `None` where the server is of the modern era alone, which needs
    /// none.
    pub(super) own: OnceCell<Option<Child>>,
    /// What it listens to on a server of the modern era.
    pub(super) listening: Listening,
    peer: IpAddr,
    streams: Mutex<Streams>,
    /// Who waits for what the client was asked, by the id that it was asked with.
    questions: Mutex<BTreeMap<String, Asker>>,
    usage: Mutex<Usage>,
    kept: Kept,
}

struct Streams {
    next: u64,
    all: BTreeMap<u64, Arc<Stream>>,
    /// The requests under way, by their streams, each with the id that the client gave it.
    running: BTreeMap<u64, Running>,
    ended: bool,
}

struct Running {
    id: String,
    task: AbortHandle,
    /// Whether its client reads the stream as it comes, and so can be asked something on it.
    events: bool,
}

/// Who gets the client's answer.
pub(super) type Asker = Box<dyn FnOnce(Answer) + Send>;

#[derive(Clone, Copy)]
struct Usage {
    /// How many requests and streams of it are under way.
    open: u32,
    /// When the last one began or ended.
    last: Instant,
}

impl Session {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn questions(&self) -> MutexGuard<'_, BTreeMap<String, Asker>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is used, until what is returned is dropped.
    pub(super) fn using(self: &Arc<Self>) -> Using {
        let mut usage = self.usage();
        (usage.open, usage.last) = (usage.open + 1, Instant::now());
        Using(self.clone())
    }

    /// Since when nobody has used it; nothing while somebody does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let usage = *self.usage();
        (usage.open == 0).then_some(usage.last)
    }

    /// Begins a request: `serve` makes its answer while its stream is open.
    pub(super) fn begin<F>(
        self: &Arc<Self>,
        id: &RawValue,
        events: bool,
        serve: impl FnOnce(Arc<Stream>) -> F,
    ) -> Option<Arc<Stream>>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut streams = self.streams();
        if streams.ended || streams.running.len() >= REQUESTS_MAX {
            return None;
        }
        streams.next += 1;
        let stream = Stream::new(streams.next, true);
        streams.all.insert(stream.number, stream.clone());
        let (serving, own_id, to, session) = (serve(stream.clone()), id.to_owned(), stream.clone(), self.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                answer = serving => {
                    to.finish(message::answer(&own_id, &answer));
                    session.ended(&to);
                }
                // What made the answer is dropped, and with it the server's request is cancelled.
                () = to.abandoned() => session.forget(&to),
            }
        });
        let running = Running { id: id.get().to_owned(), task: task.abort_handle(), events };
        streams.running.insert(stream.number, running);
        Some(stream)
    }

    fn ended(self: &Arc<Self>, stream: &Stream) {
        self.streams().running.remove(&stream.number);
        let session = Arc::downgrade(self);
        let forget = Box::new(move |number| {
            if let Some(session) = session.upgrade() {
                session.streams().all.remove(&number);
            }
        });
        self.kept.keep(stream, forget);
    }

    /// Lets go of a request whose client has gone and not come back.
    fn forget(&self, stream: &Stream) {
        let mut streams = self.streams();
        streams.running.remove(&stream.number);
        streams.all.remove(&stream.number);
        drop(streams);
        stream.end();
    }

    /// Cancels a request of this client: the newest with this id.
    pub(super) fn cancel(&self, id: &RawValue) {
        let stream = {
            let mut streams = self.streams();
            let newest = streams.running.iter().rev().find(|(_, running)| running.id == id.get());
            let Some(number) = newest.map(|(number, _)| *number) else { return };
            if let Some(running) = streams.running.remove(&number) {
                running.task.abort();
            }
            streams.all.remove(&number)
        };
        if let Some(stream) = stream {
            stream.end();
        }
    }

    /// The stream with this number. The one that belongs to no request is there always.
    pub(super) fn stream(&self, number: u64) -> Option<Arc<Stream>> {
        self.streams().all.get(&number).cloned()
    }

    /// The stream that belongs to no request.
    pub(super) fn standalone(&self) -> Arc<Stream> {
        self.stream(STANDALONE).unwrap_or_else(|| Stream::new(STANDALONE, true))
    }

    /// The stream of the newest request under way whose client reads it; else the one that belongs to none.
    fn nearest(&self) -> Arc<Stream> {
        let streams = self.streams();
        let newest = streams.running.iter().rev().find(|(_, running)| running.events).map(|(number, _)| *number);
        let nearest = newest.and_then(|number| streams.all.get(&number)).or_else(|| streams.all.get(&STANDALONE));
        nearest.cloned().unwrap_or_else(|| Stream::new(STANDALONE, true))
    }

    /// Tells the client what belongs to no request.
    pub(super) fn tell(&self, news: &News) {
        self.standalone().push_news(message::notification(&news.method, news.params.as_deref()));
    }

    /// Asks the client; `asker` gets the answer.
    pub(super) fn ask(&self, stream: &Stream, id: &RawValue, method: &str, params: Option<&RawValue>, asker: Asker) {
        {
            let mut questions = self.questions();
            if questions.len() >= QUESTIONS_MAX {
                drop(questions);
                let message = format!("the client has {QUESTIONS_MAX} questions to answer already");
                return asker(Err(failure(INTERNAL_ERROR, &message)));
            }
            questions.insert(id.get().to_owned(), asker);
        }
        stream.push(message::request(id, method, params));
    }

    /// Nobody waits any more for what the client was asked.
    pub(super) fn withdraw(&self, id: &RawValue) {
        self.questions().remove(id.get());
    }

    /// Takes the client's answer to what it was asked.
    pub(super) fn answered(&self, id: &RawValue, answer: Answer) {
        if let Some(asker) = self.questions().remove(id.get()) {
            asker(answer);
        }
    }

    /// Takes what the session's own server says that belongs to no request.
    pub(super) fn heard_own(&self, child: &Child, heard: Heard) {
        match heard {
            Heard::Request { id, method, .. } if method == "ping" => child.answer(&id, &Ok(raw(&json!({})))),
            Heard::Request { id, method, params } => {
                let (child, of) = (child.clone(), id.clone());
                let asker = Box::new(move |answer: Answer| child.answer(&of, &answer));
                self.ask(&self.nearest(), &id, &method, params.as_deref(), asker);
            }
            Heard::News(news) => {
                if news.method == "notifications/cancelled"
                    && let Some(id) = fields(news.params.as_deref()).and_then(|params| params.get("requestId").cloned())
                {
                    self.withdraw(&id);
                }
                // A log message belongs to what the server is at, and what has changed belongs to nobody.
                let stream = if news.method == "notifications/message" { self.nearest() } else { self.standalone() };
                stream.push_news(message::notification(&news.method, news.params.as_deref()));
            }
        }
    }

    /// Ends it, and all that is under way in it.
    fn end(&self) {
        let (streams, running) = {
            let mut streams = self.streams();
            streams.ended = true;
            (std::mem::take(&mut streams.all), std::mem::take(&mut streams.running))
        };
        running.into_values().for_each(|running| running.task.abort());
        streams.into_values().for_each(|stream| stream.end());
        self.questions().clear();
        self.listening.end();
        if let Some(Some(own)) = self.own.get() {
            own.end();
        }
    }
}

/// A session at use.
pub(super) struct Using(Arc<Session>);

impl Drop for Using {
    fn drop(&mut self) {
        let mut usage = self.0.usage();
        (usage.open, usage.last) = (usage.open.saturating_sub(1), Instant::now());
    }
}

/// All sessions.
#[derive(Clone)]
pub(super) struct Sessions(Arc<Inner>);

struct Inner {
    most: usize,
    all: Mutex<BTreeMap<String, Arc<Session>>>,
    next: AtomicU64,
    kept: Kept,
    /// What is done when one has ended.
    leave: Box<dyn Fn(Owner) + Send + Sync>,
}

/// Why no session could be begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSession {
    #[error("{0} sessions are in use, and that is the most; try again later")]
    Full(usize),
    #[error("there are no random numbers to be had")]
    Random,
}

impl Sessions {
    pub(super) fn new(most: usize, leave: impl Fn(Owner) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            most,
            all: Mutex::default(),
            next: AtomicU64::new(1),
            kept: Kept::default(),
            leave: Box::new(leave),
        }))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that nobody else is known by.
    pub(super) fn owner(&self) -> Owner {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a session, and makes room for it where there is none and somebody can be spared.
    pub(super) fn begin(&self, peer: IpAddr, hello: Hello, version: String) -> Result<Arc<Session>, NoSession> {
        self.make_room(peer)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| NoSession::Random)?;
        let session = Arc::new(Session {
            id: hex::encode(random),
            owner: self.owner(),
            hello,
            version,
            own: OnceCell::new(),
            listening: Listening::default(),
            peer,
            streams: Mutex::new(Streams {
                next: STANDALONE,
                all: BTreeMap::from([(STANDALONE, Stream::new(STANDALONE, true))]),
                running: BTreeMap::new(),
                ended: false,
            }),
            questions: Mutex::default(),
            usage: Mutex::new(Usage { open: 0, last: Instant::now() }),
            kept: self.0.kept.clone(),
        });
        self.all().insert(session.id.clone(), session.clone());
        Ok(session)
    }

    fn make_room(&self, peer: IpAddr) -> Result<(), NoSession> {
        let out = {
            let all = self.all();
            let judged: Vec<(u64, Open)> = all
                .values()
                .map(|session| (session.owner, Open { peer: session.peer, idle_since: session.idle_since() }))
                .collect();
            match admit(&judged, peer, self.0.most) {
                Admission::Room => return Ok(()),
                Admission::Refused => return Err(NoSession::Full(self.0.most)),
                Admission::InPlaceOf(owner) => all.values().find(|session| session.owner == owner).cloned(),
            }
        };
        if let Some(session) = out {
            self.end(&session);
        }
        Ok(())
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Session>> {
        self.all().get(id).cloned()
    }

    /// Ends a session.
    pub(super) fn end(&self, session: &Arc<Session>) {
        if self.all().remove(&session.id).is_some() {
            session.end();
            (self.0.leave)(session.owner);
        }
    }

    /// Ends all.
    pub(super) fn end_all(&self) {
        let all: Vec<Arc<Session>> = self.all().values().cloned().collect();
        all.iter().for_each(|session| self.end(session));
    }

    /// Ends the sessions whose own server nobody has used since then, and lets go of what was kept for long enough.
    pub(super) fn end_idle(&self, since: Instant) {
        self.0.kept.let_go();
        let idle: Vec<Arc<Session>> = {
            let all = self.all();
            let own = all.values().filter(|session| matches!(session.own.get(), Some(Some(_))));
            own.filter(|session| session.idle_since().is_some_and(|idle| idle < since)).cloned().collect()
        };
        for session in idle {
            tracing::info!("a session that nobody uses has ended, and its server with it");
            self.end(&session);
        }
    }

    /// Ends a session by what names it weakly, if it is still there.
    pub(super) fn end_weak(&self, session: &Weak<Session>) {
        if let Some(session) = session.upgrade() {
            self.end(&session);
        }
    }
}

/// What is known of a client, as the modern era says it with each request.
pub(super) fn meta_of(hello: &Hello) -> Fields {
    use super::era::{META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN};
    let mut meta = Fields::from([(META_VERSION.to_owned(), raw(MODERN))]);
    let capabilities = hello.capabilities.clone().unwrap_or_else(|| raw(&json!({})));
    meta.insert(META_CAPABILITIES.to_owned(), capabilities);
    if let Some(client) = &hello.client {
        meta.insert(META_CLIENT.to_owned(), client.clone());
    }
    meta
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::super::child::{Attribution, Group, Logs, Program, Question};
    use super::super::era::Level;
    use super::super::streams::From;
    use super::*;
    use crate::process::OwnChildren;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A server that says again whatever it is told, and so never answers.
    fn echo() -> (Child, mpsc::Receiver<Heard>) {
        let (say, said) = mpsc::channel(16);
        let program = Program { command: vec!["cat".to_owned()], hidden: "", own: OwnChildren::default() };
        let hears = move |_: &Child, heard| say.try_send(heard).expect("room");
        let (child, _) = Child::start(&program, Group::Own, Box::new(hears)).expect("it starts");
        (child, said)
    }

    fn ask(session: &Arc<Session>, child: &Child) -> Arc<Stream> {
        let (child, owner) = (child.clone(), session.owner);
        let serve = move |_| async move {
            let question = Question { method: "tools/call", params: None, owner, logs: Logs::From(Level::ALL) };
            super::super::front::ask(&child, question, |_| {}).await
        };
        session.begin(&raw(&7), true, serve).expect("begun")
    }

    fn of_whom(child: &Child) -> &'static str {
        let news = News { method: "notifications/message".to_owned(), params: None };
        match child.tell_whoever_asked(None, news) {
            Attribution::Told => "whoever waits",
            Attribution::NobodyAsks(_) => "nobody",
            Attribution::Unclear => "unclear",
        }
    }

    #[tokio::test]
    async fn a_request_whose_client_has_gone_is_cancelled_at_the_server_and_forgotten() {
        let (child, mut said) = echo();
        let sessions = Sessions::new(4, |_| {});
        let begin = || sessions.begin(PEER, Hello::of(None), "2025-11-25".to_owned()).expect("room");
        let (gone, stays) = (begin(), begin());
        let left = ask(&gone, &child);
        let Some(Heard::Request { id, .. }) = said.recv().await else { panic!("the request comes first") };
        let read = ask(&stays, &child);
        assert!(matches!(said.recv().await, Some(Heard::Request { .. })));
        let reading = read.body(From::Unread { primed: true }, ());
        drop(left.body(From::Unread { primed: true }, ()));
        assert_eq!(of_whom(&child), "unclear", "its client may come back");
        tokio::time::pause();
        let begun = Instant::now();
        let Some(Heard::News(news)) = said.recv().await else { panic!("then that it is cancelled") };
        assert_eq!(begun.elapsed().as_secs(), 120);
        assert_eq!(news.method, "notifications/cancelled");
        let params = fields(news.params.as_deref()).expect("parameters");
        assert_eq!(params["requestId"].get(), id.get());
        assert!(gone.stream(left.number).is_none() && gone.streams().running.is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(of_whom(&child), "whoever waits", "there is but one who waits");
        assert!(stays.stream(read.number).is_some(), "what somebody reads goes on");
        drop(reading);
    }
}
