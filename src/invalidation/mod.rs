//! Invalidation: an ordered journal instead of an index from tags to keys (DESIGN section 6).
//!
//! Each stored response carries the [`Stamp`] at which its fetch began. It is usable only if no later entry of the
//! journal matches it. Pure but for locks: the source of entries, local or a fleet's stream, calls [`Journal::apply`].

pub mod journal;
pub mod receipt;
pub mod selector;

pub use journal::{CheckedUpTo, Journal};
pub use receipt::Receipt;
pub use selector::{Mode, Selector, Subject};

/// A place in the journal. A later epoch is above everything of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Position {
    pub epoch: u64,
    /// Stream id: milliseconds, then a sequence within one.
    pub ms: u64,
    pub sequence: u64,
}

/// What had been applied when a fetch began, per class of entries; read together before the request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Purges by operators.
    pub purge: Mark,
    /// Invalidations by unsafe methods and Cache-Group-Invalidation.
    pub unsafe_method: Mark,
}

/// Position applied in order, and the local sequence of provisional entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    pub position: Position,
    pub local: u64,
}
