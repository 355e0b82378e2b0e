//! The table of flights.
//!
//! ```text
//! join -> Lead -> publish(Head) -> late joiners get the head at once -> retire or drop
//!              -> publish(Alone | Failed | LeadAnew), or drop (Died): out of the table, then everybody is woken
//!      -> Follow -> wait -> use the head, go on alone, or join again
//! ```
//!
//! Invariants: at most one flight per key is in the table; whoever joined one learns what it came to, whatever
//! happens to its leader; a flight that cannot be used leaves the table *before* its followers are woken, so that the
//! first of them to join again leads and the others follow it. Locks are taken shard first, then flight, and no waker
//! is invoked under either. What it deliberately does not do: bound how long a follower waits. The leader's upstream
//! timeouts do, and a leader that is gone has published.

use super::sync::{AtomicUsize, Instant, Mutex, Ordering, SHARDS};
use super::wake::{Awake, Place, Sleepers};
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Identifies a flight: the whole primary key and, where the key's Vary is known, the secondary key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    pub key: crate::semantics::key::CacheKeyText,
    pub secondary: Option<crate::semantics::vary::SecondaryKey>,
}

/// Flights under way. `H` is what a leader publishes as head; `S` the stamp of a fetch.
pub struct FlightTable<H, S> {
    shards: Box<[Mutex<Shard<H, S>>]>,
    /// Random per process: nobody outside can aim keys at one shard.
    hasher: RandomState,
    waiting: Arc<Waiting>,
}

/// The hash only finds; the map compares whole keys.
type Shard<H, S> = HashMap<FlightKey, Entry<H, S>>;

struct Entry<H, S> {
    flight: Arc<Flight<H>>,
    stamp: Arc<S>,
}

/// Leading or following.
pub enum Join<H, S> {
    /// Nobody fetches this yet: whoever got this must.
    Lead(Leader<H, S>),
    Follow(Follower<H>),
    /// The bound on waiting followers is reached.
    Full,
}

/// What a flight came to, as its followers learn it.
#[derive(Debug)]
pub enum Published<H> {
    /// A head that others may use, each by its own reuse decision.
    Head(Arc<H>),
    /// Nobody else may use it: go on alone, all at once.
    Alone,
    /// It failed in a way that does not depend on the request.
    Failed(Arc<Failure>),
    /// It failed after the request was sent: one follower may lead anew, once.
    LeadAnew,
    /// The leader died without a word.
    Died,
}

/// What failed, told to all who waited; the table passes it on unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Status for those who have nothing stale to serve.
    pub status: u16,
    /// Error token for Proxy-Status (RFC 9209 §2.3).
    pub token: &'static str,
    /// For logs.
    pub text: Arc<str>,
    /// Whether a stale response may stand in (RFC 5861 §4).
    pub stale_may_be_served: bool,
    /// Who was asked last, if anybody was.
    pub endpoint: Option<Arc<str>>,
}

impl<H> Clone for Published<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Head(head) => Self::Head(Arc::clone(head)),
            Self::Alone => Self::Alone,
            Self::Failed(failure) => Self::Failed(Arc::clone(failure)),
            Self::LeadAnew => Self::LeadAnew,
            Self::Died => Self::Died,
        }
    }
}

/// The duty to publish. Dropping it without publishing says [`Published::Died`]; dropping it in any case takes the
/// flight out of the table.
pub struct Leader<H, S> {
    table: Arc<FlightTable<H, S>>,
    key: FlightKey,
    flight: Arc<Flight<H>>,
    stamp: Arc<S>,
}

/// A place in the line. Dropping it leaves.
pub struct Follower<H> {
    flight: Arc<Flight<H>>,
    place: Option<Place>,
    /// Whether it counts against the bound on those who wait: a leader's own client does not.
    bounded: bool,
    since: Instant,
}

impl<H, S> FlightTable<H, S> {
    /// `waiting`: how many followers may wait for a head in the process.
    pub fn new(waiting: usize) -> Self {
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect(),
            hasher,
            waiting: Arc::new(Waiting { limit: waiting, now: AtomicUsize::new(0) }),
        }
    }

    /// Another table, with the same bound on all who wait in both.
    pub fn beside<G, T>(other: &FlightTable<G, T>) -> Self {
        Self { waiting: Arc::clone(&other.waiting), ..Self::new(0) }
    }

    /// Joins the flight for `key`, or becomes its leader. `may_join(stamp)` is asked of a flight under way; where it
    /// says no, that flight is replaced in the table (its followers stay with it). `stamp()` is taken for a new one.
    ///
    /// Both are called under the lock of a shard: they must be quick and must not touch this table. A follower of a
    /// flight whose head is published already does not wait, so the bound is not asked.
    pub fn join(self: &Arc<Self>, key: FlightKey, may_join: impl FnOnce(&S) -> bool, stamp: impl FnOnce() -> S) -> Join<H, S> {
        let mut shard = self.shard(&key).lock();
        if let Some(entry) = shard.get(&key)
            && may_join(&entry.stamp)
        {
            return if entry.flight.enter(true) { Join::Follow(Follower::of(&entry.flight, true)) } else { Join::Full };
        }
        let flight = Arc::new(Flight { state: Mutex::new(State::default()), waiting: Arc::clone(&self.waiting) });
        let stamp = Arc::new(stamp());
        shard.insert(key.clone(), Entry { flight: Arc::clone(&flight), stamp: Arc::clone(&stamp) });
        Join::Lead(Leader { table: Arc::clone(self), key, flight, stamp })
    }

    /// Joins a flight under way, if there is one that `may_join` allows; never leads.
    pub fn follow(&self, key: &FlightKey, may_join: impl FnOnce(&S) -> bool) -> Option<Follower<H>> {
        let shard = self.shard(key).lock();
        let entry = shard.get(key).filter(|entry| may_join(&entry.stamp))?;
        entry.flight.enter(true).then(|| Follower::of(&entry.flight, true))
    }

    /// Flights under way, and followers waiting in all tables with its bound, for metrics.
    pub fn usage(&self) -> (usize, usize) {
        (self.shards.iter().map(|shard| shard.lock().len()).sum(), self.waiting.now.load(Ordering::Relaxed))
    }

    fn shard(&self, key: &FlightKey) -> &Mutex<Shard<H, S>> {
        // Not the bits by which the map itself chooses.
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % self.shards.len()]
    }
}

impl<H, S> Leader<H, S> {
    /// When the fetch began.
    pub fn stamp(&self) -> &S {
        &self.stamp
    }

    /// A place in the line for the leader's own client, whose connection only follows. It does not count against the
    /// bound on those who wait.
    pub fn follow(&self) -> Follower<H> {
        self.flight.enter(false);
        Follower::of(&self.flight, false)
    }

    /// Followers there, waiting or told.
    pub fn followers(&self) -> usize {
        self.flight.state.lock().present
    }

    /// Resolves when no follower is there, at once if there was none. Others may still join until
    /// [`Leader::retire_if_deserted`] has said yes. Cancel-safe; one task at a time.
    pub async fn deserted(&self) {
        poll_fn(|context| self.flight.poll_deserted(context.waker())).await;
    }

    /// Tells all followers, now and later, until [`Leader::retire`] or the end. The first publication counts. All but
    /// [`Published::Head`] take the flight out of the table before anybody is woken.
    pub fn publish(&self, published: Published<H>) {
        if !matches!(published, Published::Head(_)) {
            self.retire();
        }
        self.flight.publish(published);
    }

    /// Takes the flight out of the table: nobody new joins; who is there stays.
    pub fn retire(&self) {
        self.retire_if(|_| true);
    }

    /// [`Leader::retire`] if no follower is there, as one step: where it says yes, nobody can have joined meanwhile.
    pub fn retire_if_deserted(&self) -> bool {
        self.retire_if(|flight| flight.state.lock().present == 0)
    }

    fn retire_if(&self, condition: impl FnOnce(&Flight<H>) -> bool) -> bool {
        let mut shard = self.table.shard(&self.key).lock();
        let agreed = condition(&self.flight);
        // Another flight may have taken the place of this one.
        if agreed && shard.get(&self.key).is_some_and(|entry| Arc::ptr_eq(&entry.flight, &self.flight)) {
            shard.remove(&self.key);
        }
        agreed
    }
}

impl<H, S> Drop for Leader<H, S> {
    fn drop(&mut self) {
        self.publish(Published::Died);
    }
}

impl<H> Follower<H> {
    fn of(flight: &Arc<Flight<H>>, bounded: bool) -> Self {
        Self { flight: Arc::clone(flight), place: None, bounded, since: Instant::now() }
    }

    /// Waits for the head, woken by its publication. Cancel-safe.
    ///
    /// After [`Published::LeadAnew`] or [`Published::Died`] join again: the first to do so leads. The new fetch may be
    /// over by the time a late one comes, so the cache is asked before.
    pub async fn wait(&mut self) -> Published<H> {
        poll_fn(|context| self.flight.poll_published(&mut self.place, context.waker())).await
    }

    /// How long it has been following so far.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }
}

impl<H> Drop for Follower<H> {
    fn drop(&mut self) {
        self.flight.leave(self.place.take(), self.bounded);
    }
}

/// One fetch and those who wait for it.
struct Flight<H> {
    state: Mutex<State<H>>,
    waiting: Arc<Waiting>,
}

struct State<H> {
    published: Option<Published<H>>,
    sleepers: Sleepers,
    /// Followers there.
    present: usize,
    /// Of them, those that count against the bound: they wait, and nothing is published.
    bounded: usize,
    /// The leader, where it waits for the last follower to leave.
    leader: Option<Waker>,
}

impl<H> Default for State<H> {
    fn default() -> Self {
        Self { published: None, sleepers: Sleepers::default(), present: 0, bounded: 0, leader: None }
    }
}

impl<H> Flight<H> {
    /// A follower comes; says whether the bound on those who wait lets it in.
    fn enter(&self, bounded: bool) -> bool {
        let mut state = self.state.lock();
        if bounded && state.published.is_none() {
            if !self.waiting.enter() {
                return false;
            }
            state.bounded += 1;
        }
        state.present += 1;
        true
    }

    fn leave(&self, place: Option<Place>, bounded: bool) {
        let mut state = self.state.lock();
        state.sleepers.leave(place);
        state.present -= 1;
        if bounded && state.published.is_none() {
            state.bounded -= 1;
            self.waiting.leave(1);
        }
        let leader = if state.present == 0 { state.leader.take() } else { None };
        drop(state);
        if let Some(leader) = leader {
            leader.wake();
        }
    }

    fn publish(&self, published: Published<H>) {
        let woken = self.conclude(published);
        woken.wake();
    }

    fn conclude(&self, published: Published<H>) -> Awake {
        let mut state = self.state.lock();
        if state.published.is_some() {
            return Awake::default();
        }
        state.published = Some(published);
        self.waiting.leave(std::mem::take(&mut state.bounded));
        state.sleepers.take()
    }

    fn poll_published(&self, place: &mut Option<Place>, waker: &Waker) -> Poll<Published<H>> {
        let mut state = self.state.lock();
        match &state.published {
            Some(published) => Poll::Ready(published.clone()),
            None => {
                state.sleepers.register(place, waker);
                Poll::Pending
            }
        }
    }

    fn poll_deserted(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state.lock();
        if state.present == 0 {
            return Poll::Ready(());
        }
        state.leader = Some(waker.clone());
        Poll::Pending
    }
}

/// Followers that wait, in all flights of a table.
struct Waiting {
    limit: usize,
    now: AtomicUsize,
}

impl Waiting {
    fn enter(&self) -> bool {
        // A count, nothing is published by it. Over the limit it is taken back, which may refuse another meanwhile:
        // the bound is reached then anyway.
        if self.now.fetch_add(1, Ordering::Relaxed) < self.limit {
            return true;
        }
        self.leave(1);
        false
    }

    fn leave(&self, followers: usize) {
        self.now.fetch_sub(followers, Ordering::Relaxed);
    }
}

impl<H, S> fmt::Debug for FlightTable<H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flights, waiting) = self.usage();
        f.debug_struct("FlightTable").field("flights", &flights).field("waiting", &waiting).finish()
    }
}

impl<H, S> fmt::Debug for Leader<H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader").field("key", &self.key).field("followers", &self.followers()).finish()
    }
}

impl<H> fmt::Debug for Follower<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("waited", &self.waited()).finish()
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
