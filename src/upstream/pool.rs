//! The connections of one endpoint.
//!
//! All workers together have at most `connections` of them; who wants one more waits in line, first come first served,
//! until `queue_timeout`; the line has at most `queue` places. Idle connections stay with the worker on whose runtime
//! they live, the last used one first, so that the others grow old and are closed. Only where the cap is reached does a
//! worker use an idle connection of another: it costs a wake-up across cores, less than closing one to open another.
//!
//! Invariant: `open` counts every connection, idle or not, and every [`Permit`] to make one. Nothing is ever dropped
//! while the line is locked that would have to lock it again: permits that are not passed on are disarmed first.

use super::codec::{Idle, Link};
use super::{FetchError, settings};
use crate::clock;
use crate::observe::metrics::{Bound, ConnectionGauges, Dropped, Metrics};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How often idle connections are looked at, in search of those that their peers closed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    settings: Arc<settings::Upstream>,
    metrics: Arc<Metrics>,
    gauges: ConnectionGauges,
    /// One per worker.
    shelves: Box<[Mutex<Shelf>]>,
    open: AtomicUsize,
    idle: AtomicUsize,
    /// Length of the line, or more while somebody is about to join it.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

/// Idle connections of a worker, the last used one last.
#[derive(Default)]
struct Shelf {
    parked: Vec<Parked>,
    /// A task closes those that grow too old.
    swept: bool,
}

struct Parked {
    link: Link,
    until: Instant,
}

#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    tickets: u64,
}

struct Waiter {
    ticket: u64,
    sender: oneshot::Sender<Slot>,
}

/// What a request gets: a connection, or the right to make one.
pub(super) enum Slot {
    Connection(Connection),
    Permit(Permit),
}

/// A connection in use. Dropping it closes it.
pub(super) struct Connection {
    pub link: Link,
    pub hold: Hold,
}

/// The place in the pool of a connection in use: its right to be, and to come back. Dropped after the connection.
pub(super) struct Hold(Permit);

/// The right to have one connection.
pub(super) struct Permit {
    /// `None`: handed on.
    pool: Option<Arc<Pool>>,
}

/// What a request asks of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub worker: usize,
    /// One that was never used, because an idle one has just failed this request.
    pub fresh: bool,
}

impl Pool {
    pub(super) fn new(settings: Arc<settings::Upstream>, workers: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let gauges = metrics.connection_gauges(&settings.name);
        Arc::new(Self {
            settings,
            metrics,
            gauges,
            shelves: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            open: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
        })
    }

    /// Requests under way or waiting.
    pub(super) fn load(&self) -> usize {
        let [open, idle, waiting] = [&self.open, &self.idle, &self.waiting].map(|count| count.load(Ordering::Relaxed));
        open.saturating_sub(idle) + waiting
    }

    /// Connections, idle ones included; idle ones; requests in line.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let [open, idle, waiting] = [&self.open, &self.idle, &self.waiting].map(|count| count.load(Ordering::Relaxed));
        (open, idle, waiting)
    }

    /// An idle connection of this worker, unless somebody waits in line.
    pub(super) fn idle(self: &Arc<Self>, want: Want, now: Instant) -> Option<Connection> {
        if want.fresh || self.waiting.load(Ordering::Acquire) > 0 {
            return None;
        }
        while let Some(mut parked) = self.take(want.worker) {
            if self.is_usable(&mut parked, now) {
                return Some(self.revive(parked.link));
            }
            drop(self.revive(parked.link));
        }
        None
    }

    /// An idle connection, or the right to make one, at once or after waiting in line.
    ///
    /// Cancel-safe: whoever leaves the line gives back what came too late.
    pub(super) async fn acquire(self: &Arc<Self>, want: Want) -> Result<Slot, FetchError> {
        if let Some(connection) = self.idle(want, Instant::now()) {
            return Ok(Slot::Connection(connection));
        }
        let slot = match self.join(want)? {
            Joined::At(slot) => slot,
            Joined::Line(place) => place.wait(self.settings.queue_timeout).await?,
        };
        Ok(match slot {
            Slot::Connection(connection) if want.fresh => Slot::Permit(connection.into_permit()),
            slot => slot,
        })
    }

    /// Where no connection of the worker's own is idle: the right to make one, an idle one of another worker, or a
    /// place in the line.
    fn join(self: &Arc<Self>, want: Want) -> Result<Joined<'_>, FetchError> {
        let mut line = self.line.lock();
        if line.waiters.is_empty() {
            if self.open.load(Ordering::Relaxed) < self.settings.connections {
                self.open.fetch_add(1, Ordering::Relaxed);
                return Ok(Joined::At(Slot::Permit(Permit::of(self))));
            }
            // Announced before the shelves are searched: whoever parks a connection afterwards looks for us.
            self.waiting.store(1, Ordering::Release);
            if let Some(mut parked) = self.take_any(want.worker) {
                self.waiting.store(0, Ordering::Release);
                drop(line);
                let usable = !want.fresh && self.is_usable(&mut parked, Instant::now());
                let connection = self.revive(parked.link);
                return Ok(Joined::At(if usable { Slot::Connection(connection) } else { Slot::Permit(connection.into_permit()) }));
            }
        }
        self.metrics.bound(Bound::UpstreamConnections);
        if line.waiters.len() >= self.settings.queue {
            line.waiters.retain(|waiter| !waiter.sender.is_closed());
        }
        if line.waiters.len() >= self.settings.queue {
            self.waiting.store(line.waiters.len(), Ordering::Release);
            self.metrics.bound(Bound::UpstreamQueue);
            return Err(FetchError::QueueFull);
        }
        let (sender, receiver) = oneshot::channel();
        line.tickets += 1;
        let ticket = line.tickets;
        line.waiters.push_back(Waiter { ticket, sender });
        self.waiting.store(line.waiters.len(), Ordering::Release);
        Ok(Joined::Line(Place { pool: self, ticket, receiver }))
    }

    /// The last used idle connection of a worker.
    fn take(&self, worker: usize) -> Option<Parked> {
        let parked = self.shelves[worker % self.shelves.len()].lock().parked.pop()?;
        self.idle.fetch_sub(1, Ordering::Relaxed);
        self.gauges.idle.dec();
        Some(parked)
    }

    /// An idle connection of any worker, of this one first.
    fn take_any(&self, worker: usize) -> Option<Parked> {
        (0..self.shelves.len()).find_map(|step| self.take(worker.wrapping_add(step)))
    }

    /// A connection to which nobody has the right, with the right to it.
    fn revive(self: &Arc<Self>, link: Link) -> Connection {
        Connection::new(link, Permit::of(self))
    }

    /// Puts a connection to which nobody has the right any more on the shelf of its worker, unless somebody waits for it or there
    /// are enough.
    fn park(self: &Arc<Self>, mut link: Link, keep: Duration, now: Instant) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            let Some(connection) = self.hand_over(self.revive(link)) else { return };
            link = connection.into_link();
        }
        if self.idle.fetch_add(1, Ordering::Relaxed) >= self.settings.idle_connections {
            self.idle.fetch_sub(1, Ordering::Relaxed);
            return drop(self.revive(link));
        }
        let until = now + keep.min(self.settings.idle_timeout);
        self.gauges.idle.inc();
        let at = link.home() % self.shelves.len();
        let mut shelf = self.shelves[at].lock();
        shelf.parked.push(Parked { link, until });
        let sweep = !std::mem::replace(&mut shelf.swept, true);
        drop(shelf);
        if sweep {
            self.sweep_in_background(at);
        }
        // Somebody may have joined the line between the look above and the shelf.
        while self.waiting.load(Ordering::Acquire) > 0
            && let Some(parked) = self.take(at)
        {
            let until = parked.until;
            let Some(connection) = self.hand_over(self.revive(parked.link)) else { continue };
            let now = Instant::now();
            return self.park(connection.into_link(), until.saturating_duration_since(now), now);
        }
    }

    /// Gives a connection to the first in line; back where nobody takes it.
    fn hand_over(&self, connection: Connection) -> Option<Connection> {
        let mut line = self.line.lock();
        let back = self.serve(&mut line, Slot::Connection(connection));
        drop(line);
        match back {
            Some(Slot::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    fn serve(&self, line: &mut Line, mut slot: Slot) -> Option<Slot> {
        while let Some(waiter) = line.waiters.pop_front() {
            self.waiting.store(line.waiters.len(), Ordering::Release);
            match waiter.sender.send(slot) {
                Ok(()) => return None,
                Err(back) => slot = back,
            }
        }
        self.waiting.store(0, Ordering::Release);
        Some(slot)
    }

    /// A connection is gone, or was never made: the first in line may make one.
    fn release(self: &Arc<Self>) {
        let mut line = self.line.lock();
        if let Some(Slot::Permit(mut permit)) = self.serve(&mut line, Slot::Permit(Permit::of(self))) {
            permit.pool = None;
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether a request may go out on it: young enough, and nothing heard of it, by a look at the socket itself.
    fn is_usable(&self, parked: &mut Parked, now: Instant) -> bool {
        now < parked.until && self.is_quiet(parked, true)
    }

    fn is_quiet(&self, parked: &mut Parked, closely: bool) -> bool {
        match parked.link.idle(closely) {
            Idle::Quiet => return true,
            Idle::Closed => self.metrics.upstream_dropped(&self.settings.name, Dropped::Closed),
            Idle::Spoke => self.metrics.upstream_dropped(&self.settings.name, Dropped::Spoke),
        }
        false
    }

    /// Closes what grows too old: a task that ends when the shelf is empty or the pool is gone.
    fn sweep_in_background(self: &Arc<Self>, at: usize) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            self.shelves[at].lock().swept = false;
            return;
        };
        let pool: Weak<Self> = Arc::downgrade(self);
        runtime.spawn(async move {
            while let Some(next) = pool.upgrade().and_then(|pool| pool.sweep(at)) {
                tokio::time::sleep_until(next).await;
            }
        });
    }

    /// Closes the connections of a shelf that are too old or dead; when to look again, `None` where none is left.
    fn sweep(self: &Arc<Self>, at: usize) -> Option<Instant> {
        let now = Instant::now();
        let mut shelf = self.shelves[at].lock();
        let dead: Vec<Parked> = shelf.parked.extract_if(.., |parked| parked.until <= now || !self.is_quiet(parked, false)).collect();
        let next = shelf.parked.iter().map(|parked| parked.until).min().map(|until| until.min(now + SWEEP_EVERY));
        shelf.swept = next.is_some();
        drop(shelf);
        self.idle.fetch_sub(dead.len(), Ordering::Relaxed);
        for parked in dead {
            self.gauges.idle.dec();
            drop(self.revive(parked.link));
        }
        next
    }
}

enum Joined<'a> {
    At(Slot),
    Line(Place<'a>),
}

/// A place in the line, left on drop.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    ticket: u64,
    receiver: oneshot::Receiver<Slot>,
}

impl Place<'_> {
    async fn wait(mut self, limit: Duration) -> Result<Slot, FetchError> {
        match clock::timeout(limit, &mut self.receiver).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => {
                self.pool.metrics.bound(Bound::UpstreamQueueTimeout);
                Err(FetchError::QueueTimeout)
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.pool.line.lock();
        line.waiters.retain(|waiter| waiter.ticket != self.ticket);
        self.pool.waiting.store(line.waiters.len(), Ordering::Release);
    }
}

impl Permit {
    fn of(pool: &Arc<Pool>) -> Self {
        Self { pool: Some(pool.clone()) }
    }

    /// Uses the right.
    pub(super) fn connected(self, link: Link) -> Connection {
        Connection::new(link, self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.release();
        }
    }
}

impl Connection {
    fn new(link: Link, permit: Permit) -> Self {
        Self { link, hold: Hold::new(permit) }
    }

    /// The exchange is over and the connection good for another: keeps it idle, at most `keep` and the configured time.
    pub(super) fn park(self, keep: Duration) {
        let Self { mut link, hold } = self;
        if link.idle(false) == Idle::Quiet {
            hold.park(link, keep, Instant::now());
        }
    }

    /// Without the right to it, which goes to the shelf together with the connection.
    fn into_link(self) -> Link {
        self.hold.into_permit().pool = None;
        self.link
    }

    /// Closes it and keeps the right to another.
    fn into_permit(self) -> Permit {
        drop(self.link);
        self.hold.into_permit()
    }
}

impl Hold {
    fn new(permit: Permit) -> Self {
        if let Some(pool) = &permit.pool {
            pool.gauges.active.inc();
        }
        Self(permit)
    }

    /// See [`Connection::park`]; from `now` on it is idle.
    pub(super) fn park(self, link: Link, keep: Duration, now: Instant) {
        if let Some(pool) = self.into_permit().pool.take() {
            pool.park(link, keep, now);
        }
    }

    /// The connection is closed though it might have been used again.
    pub(super) fn dropped(&self, why: Dropped) {
        if let Some(pool) = &self.0.pool {
            pool.metrics.upstream_dropped(&pool.settings.name, why);
        }
    }

    fn into_permit(mut self) -> Permit {
        self.count_out();
        Permit { pool: self.0.pool.take() }
    }

    fn count_out(&self) {
        if let Some(pool) = &self.0.pool {
            pool.gauges.active.dec();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.count_out();
    }
}
