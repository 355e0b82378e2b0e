//! Invalidation: an ordered journal instead of an index from tags to keys (DESIGN section 6).
//!
//! Each stored response carries the [`Stamp`] at which its fetch began. It is usable only if no later entry of the
//! journal matches it. Pure but for locks: the source of entries, local or a fleet's stream, calls [`Journal::apply`].
//!
//! Invariant: after a purge has returned, no check that starts later finds a response usable whose stamp is older.
//! Everything that is bounded here may invalidate too much when a bound is reached, and never too little.
//!
//! Start reading at [`Journal`]; `ledger` is the map of one class of entries, `clockwork` makes its changes
//! visible to checks without a lock on the common path.

mod clockwork;
pub mod entry;
pub mod fleet;
pub mod journal;
pub mod kind;
mod ledger;
#[cfg(test)]
mod model;
mod outbox;
pub mod receipt;
pub mod selector;
mod slots;
#[cfg(not(simulation))]
pub mod stream;
mod unshared;
mod wide;

pub use clockwork::CheckedUpTo;
pub use entry::{Entry, Purge, PurgeId, Refused};
pub use journal::Journal;
pub use kind::Kind;
pub use receipt::Receipt;
pub use selector::{Mode, Selector, Subject};

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// A place in the journal. A later epoch is above everything of an earlier one.
///
/// As text, and so in JSON: `epoch-ms-sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Position {
    /// 0 where this node is its own journal; those of a fleet begin at 1.
    pub epoch: u64,
    /// Stream id: milliseconds, then a sequence within one.
    pub ms: u64,
    pub sequence: u64,
}

impl Position {
    /// Before the first entry of an epoch.
    pub const fn start_of(epoch: u64) -> Self {
        Self { epoch, ms: 0, sequence: 0 }
    }

    /// The place after this one for an entry made at `wall_ms`; later even where the clock went back.
    #[must_use]
    pub(crate) fn next(self, wall_ms: i64) -> Self {
        match u64::try_from(wall_ms) {
            Ok(ms) if ms > self.ms => Self { ms, sequence: 0, ..self },
            _ => Self { sequence: self.sequence + 1, ..self },
        }
    }
}

/// The text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position is epoch-ms-sequence: three decimal numbers")]
pub struct NotAPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.epoch, self.ms, self.sequence)
    }
}

impl FromStr for Position {
    type Err = NotAPosition;

    /// Takes the text that `Display` writes and no other, so that a place has one text.
    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let mut numbers = text.splitn(3, '-').map(|number| number.parse().map_err(|_| NotAPosition));
        let mut number = || numbers.next().unwrap_or(Err(NotAPosition));
        let position = Self { epoch: number()?, ms: number()?, sequence: number()? };
        if position.to_string() == text { Ok(position) } else { Err(NotAPosition) }
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = NotAPosition;

    fn try_from(text: String) -> Result<Self, NotAPosition> {
        text.parse()
    }
}

/// What had been applied when a fetch began, per class of entries; read together before the request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Purges by operators.
    pub purge: Mark,
    /// Invalidations by unsafe methods and Cache-Group-Invalidation.
    pub unsafe_method: Mark,
}

impl Stamp {
    /// Whether more had been applied when this one was taken. Two stamps of one node are never incomparable, but
    /// equal where nothing was applied between them: then the later request decides.
    pub fn is_later_than(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Greater)
    }

    /// As other nodes may read it, beside what is stored in a shared tier: they know nothing of this node's local
    /// sequence. On the way back [`Journal::of_shared`] makes it comparable.
    #[must_use]
    pub fn shared(&self) -> Self {
        let part = |mark: &Mark| Mark { position: mark.position, local: 0 };
        Self { purge: part(&self.purge), unsafe_method: part(&self.unsafe_method) }
    }
}

/// A stamp as stored responses keep it: all whose fetches began between the same two entries share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStamp(Arc<Stamp>);

thread_local! {
    static LAST: RefCell<SharedStamp> = RefCell::new(SharedStamp(Arc::default()));
}

impl From<Stamp> for SharedStamp {
    fn from(stamp: Stamp) -> Self {
        LAST.with_borrow_mut(|last| {
            if *last.0 != stamp {
                *last = Self(Arc::new(stamp));
            }
            last.clone()
        })
    }
}

impl Deref for SharedStamp {
    type Target = Stamp;

    fn deref(&self) -> &Stamp {
        &self.0
    }
}

impl PartialOrd for Stamp {
    /// `None` where each has seen something that the other has not: stamps of different nodes.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let parts = [
            self.purge.position.cmp(&other.purge.position),
            self.purge.local.cmp(&other.purge.local),
            self.unsafe_method.position.cmp(&other.unsafe_method.position),
            self.unsafe_method.local.cmp(&other.unsafe_method.local),
        ];
        match (parts.contains(&Ordering::Less), parts.contains(&Ordering::Greater)) {
            (true, true) => None,
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => Some(Ordering::Equal),
        }
    }
}

/// Position applied in order, and the local sequence of provisional entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    pub position: Position,
    pub local: u64,
}

impl Mark {
    /// Whether an entry at this mark came after a stamp. The parts are compared separately: an entry has only one of
    /// them, or both where a fold holds several.
    fn came_after(&self, stamp: &Self) -> bool {
        self.position > stamp.position || self.local > stamp.local
    }

    fn raise(&mut self, to: Self) {
        self.position = self.position.max(to.position);
        self.local = self.local.max(to.local);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(epoch: u64, ms: u64, sequence: u64) -> Position {
        Position { epoch, ms, sequence }
    }

    #[test]
    fn later_epoch_is_above_everything_of_an_earlier_one() {
        assert!(position(2, 0, 0) > position(1, u64::MAX, u64::MAX));
        assert!(position(1, 2, 0) > position(1, 1, 9));
        assert!(position(1, 1, 2) > position(1, 1, 1));
    }

    #[test]
    fn next_position_is_later_even_when_the_clock_goes_back() {
        let first = Position::default().next(1000);
        assert_eq!(first, position(0, 1000, 0));
        assert_eq!(first.next(1000), position(0, 1000, 1));
        assert_eq!(first.next(500), position(0, 1000, 1));
        assert_eq!(first.next(-5).next(1001), position(0, 1001, 0));
        assert_eq!(Position::default().next(0), position(0, 0, 1));
    }

    #[test]
    fn only_the_canonical_text_is_a_position() {
        for text in ["", "1", "1-2", "1-2-3-4", "1-2-", "-1-2-3", "+1-2-3", "01-2-3", "1-2-3 ", "1-2-18446744073709551616"] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text:?}");
        }
        assert_eq!(serde_json::to_string(&position(3, 14, 15)).unwrap(), "\"3-14-15\"");
        assert_eq!(serde_json::from_str::<Position>("\"3-14-15\"").unwrap(), position(3, 14, 15));
        assert!(serde_json::from_str::<Position>("\"3-14\"").is_err());
    }

    #[test]
    fn stored_responses_share_a_stamp_until_another_one_comes() {
        let at = |ms| SharedStamp::from(Stamp { purge: Mark { position: position(0, ms, 0), local: 0 }, ..Stamp::default() });
        let (first, same, other) = (at(1), at(1), at(2));
        assert!(Arc::ptr_eq(&first.0, &same.0) && !Arc::ptr_eq(&first.0, &other.0));
        assert_eq!((first.purge.position.ms, other.purge.position.ms, at(1)), (1, 2, first));
    }

    #[test]
    fn stamps_of_one_node_are_ordered_and_of_two_may_not_be() {
        let at = |ms, local| Stamp { purge: Mark { position: position(0, ms, 0), local }, unsafe_method: Mark::default() };
        assert!(at(2, 1).is_later_than(&at(1, 1)));
        assert!(at(1, 2).is_later_than(&at(1, 1)));
        assert!(!at(1, 1).is_later_than(&at(1, 1)));
        assert_eq!(at(2, 1).partial_cmp(&at(1, 2)), None);
        assert!(!at(2, 1).is_later_than(&at(1, 2)));
    }

    proptest! {
        #[test]
        fn position_survives_its_text(epoch: u64, ms: u64, sequence: u64) {
            let position = position(epoch, ms, sequence);
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[0-9+-]{0,24}|\\PC{0,12}") {
            if let Ok(position) = text.parse::<Position>() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
