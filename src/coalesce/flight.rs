//! The table of flights.

use std::sync::Arc;
use std::time::Duration;

/// Identifies a flight: the whole primary key and, where the key's Vary is known, the secondary key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    pub key: crate::semantics::key::CacheKeyText,
    pub secondary: Option<crate::semantics::vary::SecondaryKey>,
}

/// Flights under way. `H` is what a leader publishes as head; `S` the stamp of a fetch.
#[derive(Debug)]
pub struct FlightTable<H, S> {
    _marker: std::marker::PhantomData<(H, S)>,
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
    Failed(Arc<str>),
    /// It failed after the request was sent: one follower may lead anew, once.
    LeadAnew,
    /// The leader died without a word.
    Died,
}

impl<H> Clone for Published<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Head(head) => Self::Head(Arc::clone(head)),
            Self::Alone => Self::Alone,
            Self::Failed(token) => Self::Failed(Arc::clone(token)),
            Self::LeadAnew => Self::LeadAnew,
            Self::Died => Self::Died,
        }
    }
}

/// The duty to publish. Dropping it without publishing says [`Published::Died`].
pub struct Leader<H, S> {
    _marker: std::marker::PhantomData<(H, S)>,
}

/// A place in the line. Dropping it leaves.
pub struct Follower<H> {
    _marker: std::marker::PhantomData<H>,
}

impl<H, S> FlightTable<H, S> {
    /// `waiting`: how many followers may wait for a head in the process.
    pub fn new(waiting: usize) -> Self {
        let _ = waiting;
        todo!()
    }

    /// Joins the flight for `key`, or becomes its leader. `may_join(stamp)` is asked of a flight under way; where it
    /// says no, that flight is replaced in the table (its followers stay with it). `stamp()` is taken for a new one.
    pub fn join(self: &Arc<Self>, key: FlightKey, may_join: impl FnOnce(&S) -> bool, stamp: impl FnOnce() -> S) -> Join<H, S> {
        let _ = (key, may_join, stamp);
        todo!()
    }

    /// Flights under way and followers waiting, for metrics.
    pub fn usage(&self) -> (usize, usize) {
        todo!()
    }
}

impl<H, S> Leader<H, S> {
    /// When the fetch began.
    pub fn stamp(&self) -> &S {
        todo!()
    }
    /// Followers there, waiting or told.
    pub fn followers(&self) -> usize {
        todo!()
    }
    /// Tells all followers, now and later, until [`Leader::retire`] or the end.
    pub fn publish(&self, published: Published<H>) {
        let _ = published;
        todo!()
    }
    /// Takes the flight out of the table: nobody new joins; who is there stays.
    pub fn retire(&self) {
        todo!()
    }
}

impl<H> Follower<H> {
    /// Waits for the head, woken by its publication. Cancel-safe.
    pub async fn wait(&mut self) -> Published<H> {
        todo!()
    }
    /// How long it has waited so far.
    pub fn waited(&self) -> Duration {
        todo!()
    }
}
