//! The connections to one endpoint, and the streams of them.
//!
//! A connection lives on the runtime of the worker that opened it, and requests of that worker are sent on it; where the cap
//! is reached those of others are as well. Another one is opened when all of the worker's are full, by a task of its own:
//! who wants it may leave, others wait for it too.

use crate::clock::{self, Alarm};
use crate::observe::metrics::{Bound, Http2Gauges, Metrics};
use crate::upstream::FetchError;
use crate::upstream::wire::Wire;
use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use parking_lot::Mutex;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The largest window there is (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Streams that we reset and of which something may still come.
const RESET_STREAMS: usize = 1024;
/// How often those in line look by themselves whether the peer allows more streams by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections, all workers together.
    pub connections: usize,
    /// Requests at a time on one connection, where the peer allows as many.
    pub streams: usize,
    /// Bytes of an answer that may come before they are read. All streams of a connection together have as many times that:
    /// those that nobody reads never hold up those that somebody does.
    pub stream_window: u32,
    /// What the head of an answer may come to, by the measure of RFC 9113 §6.5.2.
    pub header_list: u32,
    /// Requests that may wait for a stream...
    pub queue: usize,
    /// ...and so long.
    pub queue_timeout: Duration,
    pub connect_timeout: Duration,
    /// How long a connection without requests is kept.
    pub idle_timeout: Duration,
    /// A connection with requests is asked every so often whether the peer is there, and closed if it does not say so in the
    /// same time.
    pub keep_alive: Duration,
}

pub(crate) struct Connections {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    gauges: Option<Http2Gauges>,
    workers: Box<[Mutex<Links>]>,
    open: AtomicUsize,
    streams: AtomicUsize,
    waiting: AtomicUsize,
    /// A stream is free, or the right to a connection.
    freed: Notify,
}

#[derive(Default)]
struct Links {
    open: Vec<Link>,
    opening: Vec<Opening>,
}

#[derive(Clone)]
struct Link {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
}

/// What there is to know of a connection; it counts as open as long as this is there.
struct State {
    streams: AtomicUsize,
    /// Boot-time nanoseconds; since when there are no streams.
    idle_since: AtomicU64,
    gauges: Option<Http2Gauges>,
    _place: Place,
}

/// The right to a connection.
struct Place(Weak<Connections>);

struct Opening {
    /// Requests that wait for it, or did.
    wanted: usize,
    opened: watch::Receiver<Option<Opened>>,
}

/// `None`: the endpoint speaks HTTP/1.1 only.
type Opened = Result<Option<Link>, FetchError>;

/// What a request gets.
pub(crate) enum Granted {
    Http2(Stream),
    /// The endpoint speaks no HTTP/2, and need not.
    Http1,
}

/// A stream for one request; given back when it is dropped.
pub(crate) struct Stream {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) held: Held,
    /// How long the connection was waited for, where it is new.
    pub(crate) connect: Option<Duration>,
}

pub(super) struct Held {
    state: Arc<State>,
    connections: Arc<Connections>,
}

enum Chosen {
    Stream(Stream),
    Opening(watch::Receiver<Option<Opened>>),
    Full,
}

impl Connections {
    pub(crate) fn new(bounds: Bounds, workers: usize, metrics: Arc<Metrics>, gauges: Option<Http2Gauges>) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            metrics,
            gauges,
            workers: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            open: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// Connections; requests under way; requests in line.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let [open, streams, waiting] = [&self.open, &self.streams, &self.waiting].map(|count| count.load(Ordering::Relaxed));
        (open, streams, waiting)
    }

    /// A stream, at once, on a connection that `dial` opens, or after waiting in line. `fresh`: a connection that was there
    /// just now has died, and others may have with it. Cancel-safe.
    pub(crate) async fn stream<F>(self: &Arc<Self>, worker: usize, fresh: bool, dial: impl Fn() -> F) -> Result<Granted, FetchError>
    where
        F: Future<Output = Result<Option<Wire>, FetchError>> + Send + 'static,
    {
        let began = Instant::now();
        let (mut in_line, mut connect, mut opened) = (None, None, None);
        let mut alarm = Alarm::default();
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable(); // before the look, so that nothing is freed between it and the wait
            if in_line.is_some() || self.waiting.load(Ordering::Acquire) == 0 {
                match self.choose(worker, fresh, opened.as_ref(), &dial) {
                    Chosen::Stream(stream) => return Ok(Granted::Http2(Stream { connect, ..stream })),
                    Chosen::Opening(mut opening) => {
                        // Its task ends within its time, or with the runtime.
                        let announced = opening.wait_for(Option::is_some).await.map_err(|_| FetchError::Closed)?.clone();
                        let Some(link) = announced.unwrap_or(Err(FetchError::Closed))? else { return Ok(Granted::Http1) };
                        (connect, opened) = (Some(began.elapsed()), Some(link.state));
                        continue; // others may have taken all of its streams
                    }
                    Chosen::Full => {}
                }
            }
            if in_line.is_none() {
                in_line = Some(self.join()?);
            }
            let deadline = began + self.bounds.queue_timeout;
            let until = deadline.min(Instant::now() + LOOK_AGAIN);
            if alarm.timeout_at(until, freed).await.is_err() && until == deadline {
                self.metrics.bound(Bound::UpstreamQueueTimeout);
                return Err(FetchError::QueueTimeout);
            }
        }
    }

    /// A place in the line, left on drop.
    fn join(&self) -> Result<InLine<'_>, FetchError> {
        self.metrics.bound(Bound::UpstreamConnections);
        let place = InLine(self);
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= self.bounds.queue {
            self.metrics.bound(Bound::UpstreamQueue);
            return Err(FetchError::QueueFull);
        }
        Ok(place)
    }

    /// The worker's connection with the fewest streams; where all are full, one that is being opened for fewer requests than
    /// it has streams; else another one; and where there are as many as may be, any worker's.
    /// `fresh`: none but the one that was `opened` for it, unless there are as many as may be.
    fn choose<F>(self: &Arc<Self>, worker: usize, fresh: bool, opened: Option<&Arc<State>>, dial: &impl Fn() -> F) -> Chosen
    where
        F: Future<Output = Result<Option<Wire>, FetchError>> + Send + 'static,
    {
        let home = worker % self.workers.len();
        let mut links = self.workers[home].lock();
        let is_allowed = |link: &Link| !fresh || opened.is_some_and(|opened| Arc::ptr_eq(opened, &link.state));
        if let Some(stream) = links.take(self, is_allowed) {
            return Chosen::Stream(stream);
        }
        if let Some(opening) = links.opening.iter_mut().min_by_key(|one| one.wanted).filter(|one| one.wanted < self.bounds.streams) {
            opening.wanted += 1;
            return Chosen::Opening(opening.opened.clone());
        }
        let more = |open| (open < self.bounds.connections).then_some(open + 1);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok() {
            let (open, opened) = watch::channel(None);
            links.opening.push(Opening { wanted: 1, opened: opened.clone() });
            tokio::spawn(run(Arc::clone(self), home, open, dial(), Place(Arc::downgrade(self))));
            return Chosen::Opening(opened);
        }
        drop(links);
        let mut all = (0..self.workers.len()).map(|step| &self.workers[(home + step) % self.workers.len()]);
        all.find_map(|links| links.lock().take(self, |_| true)).map_or(Chosen::Full, Chosen::Stream)
    }

    /// Tells those who wait for it what came of opening a connection.
    fn announce(&self, home: usize, open: watch::Sender<Option<Opened>>, announced: Opened) {
        let mut links = self.workers[home].lock();
        links.opening.retain(|opening| !opening.opened.same_channel(&open.subscribe()));
        links.open.extend(announced.as_ref().ok().and_then(Clone::clone));
        drop(links);
        open.send_replace(Some(announced));
        self.freed.notify_waiters();
    }

    /// Takes a connection out on which there are no streams, so that it ends; false where there are some again.
    fn retire(&self, home: usize, state: &Arc<State>) -> bool {
        let mut links = self.workers[home].lock();
        if state.streams.load(Ordering::Relaxed) > 0 {
            return false;
        }
        links.forget(state);
        true
    }
}

impl Links {
    fn take(&mut self, connections: &Arc<Connections>, is_allowed: impl Fn(&Link) -> bool) -> Option<Stream> {
        self.open.retain_mut(Link::is_usable);
        let loads = self.open.iter().filter(|link| is_allowed(link)).map(|link| (link.state.streams.load(Ordering::Relaxed), link));
        let (_, link) = loads.filter(|(load, link)| *load < link.room(&connections.bounds)).min_by_key(|(load, _)| *load)?;
        Some(Stream { sender: link.sender.clone(), held: Held::new(&link.state, connections), connect: None })
    }

    fn forget(&mut self, state: &Arc<State>) {
        self.open.retain(|link| !Arc::ptr_eq(&link.state, state));
    }
}

impl Link {
    /// Whether it takes new streams: no error and no GOAWAY so far.
    fn is_usable(&mut self) -> bool {
        matches!(self.sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Streams at a time.
    fn room(&self, bounds: &Bounds) -> usize {
        bounds.streams.min(self.sender.current_max_send_streams())
    }
}

impl Held {
    fn new(state: &Arc<State>, connections: &Arc<Connections>) -> Self {
        connections.streams.fetch_add(1, Ordering::Relaxed);
        let before = state.streams.fetch_add(1, Ordering::Relaxed);
        if let Some(gauges) = &state.gauges {
            gauges.streams.inc();
            if before == 0 {
                gauges.connections.idle.dec();
                gauges.connections.active.inc();
            }
        }
        Self { state: Arc::clone(state), connections: Arc::clone(connections) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connections.streams.fetch_sub(1, Ordering::Relaxed);
        self.state.idle_since.store(clock::nanos(), Ordering::Relaxed);
        let left = self.state.streams.fetch_sub(1, Ordering::Relaxed) - 1;
        if let Some(gauges) = &self.state.gauges {
            gauges.streams.dec();
            if left == 0 {
                gauges.connections.active.dec();
                gauges.connections.idle.inc();
            }
        }
        self.connections.freed.notify_one();
    }
}

impl State {
    fn new(gauges: Option<Http2Gauges>, place: Place) -> Arc<Self> {
        if let Some(gauges) = &gauges {
            gauges.connections.idle.inc();
        }
        Arc::new(Self { streams: AtomicUsize::new(0), idle_since: AtomicU64::new(clock::nanos()), gauges, _place: place })
    }

    /// How long there have been no streams; `None` where there are some.
    fn idle_for(&self) -> Option<Duration> {
        let is_idle = self.streams.load(Ordering::Relaxed) == 0;
        is_idle.then(|| Duration::from_nanos(clock::nanos().saturating_sub(self.idle_since.load(Ordering::Relaxed))))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(gauges) = &self.gauges {
            gauges.connections.idle.dec(); // who held a stream held this
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(connections) = self.0.upgrade() {
            connections.open.fetch_sub(1, Ordering::AcqRel);
            connections.freed.notify_one();
        }
    }
}

struct InLine<'a>(&'a Connections);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one(); // newcomers let those in line go first: the last to leave must not leave them waiting
    }
}

/// A connection from before it is opened to its end.
async fn run(
    connections: Arc<Connections>,
    home: usize,
    open: watch::Sender<Option<Opened>>,
    dialing: impl Future<Output = Result<Option<Wire>, FetchError>>,
    place: Place,
) {
    let bounds = connections.bounds.clone();
    let opened = pin!(async {
        match dialing.await? {
            Some(wire) => greet(wire, &bounds).await.map(Some),
            None => Ok(None),
        }
    });
    let opened = clock::timeout(bounds.connect_timeout, opened).await.unwrap_or(Err(FetchError::ConnectTimeout));
    let (announced, greeted) = match opened {
        Ok(Some(greeted)) => {
            let state = State::new(connections.gauges.clone(), place);
            (Ok(Some(Link { sender: greeted.sender.clone(), state: Arc::clone(&state) })), Some((greeted, state)))
        }
        Ok(None) => (Ok(None), None),
        Err(error) => (Err(error), None),
    };
    connections.announce(home, open, announced);
    let Some((Greeted { sender, connection, ping }, state)) = greeted else { return };
    drop(sender);
    let connections = {
        let weak = Arc::downgrade(&connections);
        drop(connections); // it ends with the upstream
        weak
    };
    keep(connection, ping, &connections, home, &state, &bounds).await;
    if let Some(connections) = connections.upgrade() {
        connections.workers[home].lock().forget(&state);
    }
}

struct Greeted {
    sender: SendRequest<Bytes>,
    connection: Connection<Wire, Bytes>,
    ping: PingPong,
}

/// Begins HTTP/2. The answer to our ping says that the other side speaks it, and comes after its settings, so that no more
/// streams are opened than it allows.
async fn greet(wire: Wire, bounds: &Bounds) -> Result<Greeted, FetchError> {
    let window = u32::try_from(bounds.streams).unwrap_or(u32::MAX).saturating_mul(bounds.stream_window).min(WINDOW_MAX);
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(bounds.stream_window)
        .initial_connection_window_size(window)
        .max_header_list_size(bounds.header_list)
        .max_concurrent_reset_streams(RESET_STREAMS);
    let (sender, mut connection) = builder.handshake(wire).await.map_err(|error| no_http2(&error))?;
    let mut ping = connection.ping_pong().ok_or(FetchError::Closed)?;
    tokio::select! {
        ended = &mut connection => Err(ended.err().map_or(FetchError::Closed, |error| no_http2(&error))),
        heard = ping.ping(Ping::opaque()) => match heard {
            Ok(_) => Ok(Greeted { sender, connection, ping }),
            Err(error) => Err(no_http2(&error)),
        },
    }
}

fn no_http2(error: &h2::Error) -> FetchError {
    match error.is_io() {
        true => FetchError::Connect(format!("the connection ended before HTTP/2 began ({error}); does the upstream speak it?")),
        false => FetchError::Malformed(format!("no HTTP/2 came back ({error}); does the upstream speak it?")),
    }
}

/// Serves a connection until it ends: by the peer, because it was not used for long enough, because nobody can use it any
/// more, or because the peer does not answer.
async fn keep(
    connection: Connection<Wire, Bytes>,
    mut ping: PingPong,
    connections: &Weak<Connections>,
    home: usize,
    state: &Arc<State>,
    bounds: &Bounds,
) {
    let watching = async {
        let mut ask_at = Instant::now() + bounds.keep_alive;
        loop {
            let idle = state.idle_for();
            let retire_at = idle.map(|idle| Instant::now() + bounds.idle_timeout.saturating_sub(idle));
            clock::passed(retire_at.map_or(ask_at, |at| at.min(ask_at))).await;
            match state.idle_for() {
                Some(idle) if idle >= bounds.idle_timeout => {
                    if connections.upgrade().is_none_or(|connections| connections.retire(home, state)) {
                        // It ends by itself, for want of anybody who could use it.
                        return tokio::time::sleep(bounds.connect_timeout).await;
                    }
                }
                Some(_) => {}
                None if Instant::now() >= ask_at => match clock::timeout(bounds.keep_alive, pin!(ping.ping(Ping::opaque()))).await {
                    Ok(Ok(_)) => {}
                    _ => return,
                },
                None => continue,
            }
            ask_at = ask_at.max(Instant::now() + bounds.keep_alive);
        }
    };
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection to an upstream ended");
        },
        () = watching => {}
    }
}
