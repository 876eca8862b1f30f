//! Streams of events (server-sent events, WHATWG HTML section 9.2) to a client. What a stream of a session carries is kept
//! for a while, so that a client whose connection broke asks for the rest.

use std::any::Any;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// How often a stream without news shows that it is still there. Proxies end those that are silent for a minute.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE: &str = ": \n\n";
/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);
/// Most notifications of one stream that nobody has read; further ones are dropped. Answers and questions never are.
const UNREAD_NEWS_MAX: usize = 256;
/// And most bytes of what nobody has read, beyond which they are dropped too.
const UNREAD_NEWS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most bytes that a stream keeps of what was read already.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// How long a stream that has its answer is kept, and one that waits for it without a reader.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// What a stream takes besides what it carries, about.
const KEPT_OVERHEAD_BYTES: usize = 1024;
/// Most bytes of all streams together that are kept after their answer.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) number: u64,
    /// Whether what it carries is numbered, and can be asked for again.
    resumable: bool,
    state: Mutex<State>,
    changed: Notify,
    /// That a reader has come or gone.
    readers: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    next: u64,
    bytes: usize,
    /// What has gone to a reader.
    read: u64,
    /// The reader that counts; those before it end.
    reader: u64,
    /// Since when there is none.
    alone_since: Option<Instant>,
    finished: bool,
    /// Whether its last message is the answer.
    answered: bool,
}

#[derive(Clone, Debug)]
struct Event {
    number: u64,
    data: Bytes,
}

/// A place in a stream, as a client names it in `Last-Event-ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream: u64,
    pub(super) event: u64,
}

impl Place {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (stream, event) = text.split_once('-')?;
        Some(Self { stream: stream.parse().ok()?, event: event.parse().ok()? })
    }
}

/// How a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// With all that nobody has read.
    Unread { primed: bool },
    /// After the event with this number.
    After(u64),
}

impl Stream {
    pub(super) fn new(number: u64, resumable: bool) -> Arc<Self> {
        let state = State { alone_since: Some(Instant::now()), ..State::default() };
        Arc::new(Self { number, resumable, state: Mutex::new(state), changed: Notify::new(), readers: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an answer, or a question.
    pub(super) fn push(&self, message: String) {
        self.add(message, false);
    }

    /// Adds a notification, if there is room for it.
    pub(super) fn push_news(&self, message: String) {
        self.add(message, true);
    }

    /// Adds the last message.
    pub(super) fn finish(&self, message: String) {
        self.add(message, false);
        self.state().answered = true;
        self.end();
    }

    /// Ends it without a last message.
    pub(super) fn end(&self) {
        self.state().finished = true;
        self.changed.notify_waiters();
    }

    /// Whether nothing was added yet.
    pub(super) fn is_empty(&self) -> bool {
        self.state().next == 0
    }

    fn add(&self, message: String, news: bool) {
        let mut state = self.state();
        if state.finished {
            return;
        }
        let unread = state.events.iter().rev().take_while(|event| event.number >= state.read).count();
        let unread_bytes: usize = state.events.iter().rev().take(unread).map(|event| event.data.len()).sum();
        if news && (unread >= UNREAD_NEWS_MAX || unread_bytes >= UNREAD_NEWS_BYTES_MAX) {
            tracing::debug!("a slow client misses notifications");
            return;
        }
        // A message is one line; where it holds a line's end, that stands between its words.
        let data = if message.contains(['\r', '\n']) { message.replace(['\r', '\n'], " ") } else { message };
        let number = state.next;
        state.next += 1;
        state.bytes += data.len();
        state.events.push_back(Event { number, data: data.into() });
        while state.bytes > READ_BYTES_MAX && state.events.front().is_some_and(|first| first.number < state.read) {
            if let Some(first) = state.events.pop_front() {
                state.bytes -= first.data.len();
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits for the first message, or the end.
    pub(super) async fn first(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                if state.next > 0 || state.finished {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Waits until nobody has read it for as long as its answer would be kept for somebody whose connection broke.
    pub(super) async fn abandoned(&self) {
        loop {
            let changed = self.readers.notified();
            let alone_since = self.state().alone_since;
            match alone_since {
                None => changed.await,
                Some(since) if since.elapsed() >= KEPT_FOR => return,
                Some(since) => {
                    let _ = timeout_at(since + KEPT_FOR, changed).await;
                }
            }
        }
    }

    /// Waits for the end, and gives the answer, if there is one.
    pub(super) async fn last(self: &Arc<Self>) -> Option<Bytes> {
        let _reader = self.reader();
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                if state.finished {
                    return state.events.back().filter(|_| state.answered).map(|last| last.data.clone());
                }
            }
            changed.await;
        }
    }

    /// A new reader, which counts from now on.
    fn reader(self: &Arc<Self>) -> Reader {
        let number = {
            let mut state = self.state();
            state.reader += 1;
            state.alone_since = None;
            state.reader
        };
        self.changed.notify_waiters();
        self.readers.notify_waiters();
        Reader { stream: self.clone(), number }
    }

    /// Whether there is, or may come, anything for whoever has read up to this event.
    pub(super) fn has_more(&self, event: u64) -> bool {
        let state = self.state();
        let next = event.wrapping_add(1);
        !state.finished || state.events.back().is_some_and(|last| last.number >= next)
    }

    /// The events as the body of an answer. A reader that began before ends. `held` is dropped with it.
    pub(super) fn body(self: &Arc<Self>, from: From, held: impl Any + Send) -> Body {
        let reader = self.reader();
        let read = self.state().read;
        let (next, greeting) = match from {
            // An event without data, so that the client has a place to go on from.
            From::Unread { primed: true } => {
                let place = self.id(read.checked_sub(1));
                (read, Some(format!("{place}retry: {}\ndata: \n\n", RETRY.as_millis())))
            }
            From::Unread { primed: false } => (read, None),
            From::After(event) => (event.saturating_add(1), None),
        };
        let reading = Reading { reader, next, greeting, _held: Box::new(held) };
        Body::from_stream(stream::unfold(reading, |mut reading| async move {
            let part = reading.next().await?;
            Some((Ok::<_, Infallible>(part), reading))
        }))
    }

    /// The line that names a place; before the first event, there is a place too.
    fn id(&self, event: Option<u64>) -> String {
        match (self.resumable, event) {
            (true, Some(event)) => format!("id: {}-{event}\n", self.number),
            (true, None) => format!("id: {}-{}\n", self.number, Reading::BEFORE_ALL),
            (false, _) => String::new(),
        }
    }
}

/// Who reads a stream, for as long as it does.
struct Reader {
    stream: Arc<Stream>,
    number: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        {
            let mut state = self.stream.state();
            // Another one has taken its place.
            if state.reader != self.number {
                return;
            }
            state.alone_since = Some(Instant::now());
        }
        self.stream.readers.notify_waiters();
    }
}

struct Reading {
    reader: Reader,
    next: u64,
    greeting: Option<String>,
    _held: Box<dyn Any + Send>,
}

impl Reading {
    /// The place before the first event: the one after it is the first.
    const BEFORE_ALL: u64 = u64::MAX;

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting.into());
        }
        let stream = &self.reader.stream;
        loop {
            let changed = stream.changed.notified();
            {
                let mut state = stream.state();
                if state.reader != self.reader.number {
                    return None;
                }
                if self.next == Self::BEFORE_ALL {
                    self.next = 0;
                }
                if let Some(event) = state.events.iter().find(|event| event.number >= self.next).cloned() {
                    self.next = event.number + 1;
                    state.read = state.read.max(self.next);
                    let mut text = stream.id(Some(event.number)).into_bytes();
                    text.extend_from_slice(b"event: message\ndata: ");
                    text.extend_from_slice(&event.data);
                    text.extend_from_slice(b"\n\n");
                    return Some(text.into());
                }
                if state.finished {
                    return None;
                }
            }
            tokio::select! {
                () = changed => {}
                () = sleep(KEEP_ALIVE_INTERVAL) => return Some(Bytes::from_static(KEEP_ALIVE.as_bytes())),
            }
        }
    }
}

/// Streams that have their answer, kept for those whose connection broke.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<AllKept>>);

#[derive(Default)]
struct AllKept {
    all: VecDeque<KeptOne>,
    bytes: usize,
}

struct KeptOne {
    since: Instant,
    bytes: usize,
    number: u64,
    forget: Forget,
}

/// What takes a stream out of its session.
pub(super) type Forget = Box<dyn FnOnce(u64) + Send>;

impl Kept {
    /// Keeps one, and lets go of those that were kept for long enough, or take more room than there is.
    pub(super) fn keep(&self, stream: &Stream, forget: Forget) {
        let bytes = stream.state().bytes + KEPT_OVERHEAD_BYTES;
        {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.bytes += bytes;
            kept.all.push_back(KeptOne { since: Instant::now(), bytes, number: stream.number, forget });
        }
        self.let_go();
    }

    /// Lets go of those that were kept for long enough, or take more room than there is.
    pub(super) fn let_go(&self) {
        let now = Instant::now();
        let mut leaving = Vec::new();
        {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(first) = kept.all.front() {
                if kept.bytes <= KEPT_BYTES_MAX && now.duration_since(first.since) < KEPT_FOR {
                    break;
                }
                kept.bytes -= first.bytes;
                leaving.extend(kept.all.pop_front());
            }
        }
        leaving.into_iter().for_each(|one| (one.forget)(one.number));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::time::timeout;

    use super::*;

    async fn read(body: Body) -> String {
        let mut text = String::new();
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            text.push_str(&String::from_utf8_lossy(&part.expect("bytes")));
        }
        text
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_last_message_and_can_be_asked_for_again() {
        let stream = Stream::new(3, true);
        stream.push_news("a".to_owned());
        stream.finish("b\r\nc".to_owned());
        stream.push("late".to_owned());
        let primed = read(stream.body(From::Unread { primed: true }, ())).await;
        let first = format!("id: 3-{}\nretry: 1000\ndata: \n\n", u64::MAX);
        let [a, b] = ["id: 3-0\nevent: message\ndata: a\n\n", "id: 3-1\nevent: message\ndata: b  c\n\n"];
        assert_eq!(primed, format!("{first}{a}{b}"));
        assert_eq!(read(stream.body(From::After(0), ())).await, b);
        assert_eq!(read(stream.body(From::After(u64::MAX), ())).await, format!("{a}{b}"), "from before all");
        assert_eq!(Place::parse("3-0"), Some(Place { stream: 3, event: 0 }));
        assert!(Place::parse("rubbish").is_none());
    }

    #[tokio::test]
    async fn a_new_reader_ends_the_one_before_and_gets_what_nobody_has_read() {
        let stream = Stream::new(0, false);
        stream.push("a".to_owned());
        let mut one = stream.body(From::Unread { primed: false }, ()).into_data_stream();
        assert_eq!(one.next().await.expect("a part").expect("bytes"), "event: message\ndata: a\n\n");
        let two = stream.body(From::Unread { primed: false }, ());
        assert!(one.next().await.is_none());
        stream.finish("b".to_owned());
        assert_eq!(read(two).await, "event: message\ndata: b\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_abandoned_when_nobody_has_read_it_for_two_minutes() {
        let (stream, begun) = (Stream::new(0, true), Instant::now());
        stream.abandoned().await;
        assert_eq!(begun.elapsed().as_secs(), 120, "nobody ever came");
        let (first, begun) = (stream.body(From::Unread { primed: true }, ()), Instant::now());
        assert!(timeout(KEPT_FOR * 10, stream.abandoned()).await.is_err(), "somebody reads");
        let second = stream.body(From::After(u64::MAX), ());
        drop(first);
        assert!(timeout(KEPT_FOR * 10, stream.abandoned()).await.is_err(), "another one reads");
        drop(second);
        stream.push_news("nobody reads this".to_owned());
        stream.abandoned().await;
        assert_eq!(begun.elapsed().as_secs(), 21 * 120, "both have gone");
        let (waiting, begun) = (stream.clone(), Instant::now());
        assert!(timeout(KEPT_FOR, waiting.last()).await.is_err(), "a client that takes no events waits");
        stream.abandoned().await;
        assert_eq!(begun.elapsed().as_secs(), 2 * 120);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_back_in_time_is_waited_for_anew() {
        let (stream, begun) = (Stream::new(0, true), Instant::now());
        let waiting = tokio::spawn({
            let stream = stream.clone();
            async move { stream.abandoned().await }
        });
        sleep(KEPT_FOR - Duration::from_secs(1)).await;
        let body = stream.body(From::After(u64::MAX), ());
        sleep(Duration::from_secs(5)).await;
        drop(body);
        waiting.await.expect("abandoned");
        assert_eq!(begun.elapsed().as_secs(), 119 + 5 + 120);
    }

    #[tokio::test]
    async fn notifications_that_nobody_reads_are_bounded_and_answers_come_through() {
        let stream = Stream::new(0, false);
        for _ in 0..(UNREAD_NEWS_MAX * 2) {
            stream.push_news("news".to_owned());
        }
        stream.finish("answer".to_owned());
        let text = read(stream.body(From::Unread { primed: false }, ())).await;
        assert_eq!(text.matches("data: news").count(), UNREAD_NEWS_MAX);
        assert!(text.ends_with("data: answer\n\n"));
        assert_eq!(stream.last().await.expect("the last"), "answer");
    }

    #[tokio::test]
    async fn what_is_kept_has_a_limit() {
        let (kept, forgotten) = (Kept::default(), Arc::new(Mutex::new(Vec::new())));
        let noted = forgotten.clone();
        let forget = || -> Forget {
            let noted = noted.clone();
            Box::new(move |number| noted.lock().expect("lock").push(number))
        };
        let large = "x".repeat(KEPT_BYTES_MAX / 2);
        let mut all = Vec::new();
        for number in 0..3 {
            let stream = Stream::new(number, true);
            stream.finish(large.clone());
            kept.keep(&stream, forget());
            all.push(stream);
        }
        assert_eq!(*forgotten.lock().expect("lock"), [0, 1]);
    }
}
