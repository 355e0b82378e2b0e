//! The map of invalidations: two positions per selector, folding when full (DESIGN section 6).

use super::{Mode, Receipt, Selector, Stamp, Subject};
use crate::config::settings::Purge;
use crate::semantics::Now;
use crate::semantics::reuse::Validity;

/// What a stored response has been checked against; atomics, moved by max only.
#[derive(Debug, Default)]
pub struct CheckedUpTo {}

/// The journal as this node has applied it.
#[derive(Debug)]
pub struct Journal {}

impl Journal {
    pub fn new(settings: &Purge) -> Self {
        let _ = settings;
        todo!()
    }

    /// Positions applied now; taken before a request is sent upstream.
    pub fn stamp(&self) -> Stamp {
        todo!()
    }

    /// Whether a response whose fetch began at `stamp` is usable now. Cheap where nothing new was applied since
    /// `checked`: one load per selector kind at most, no lock.
    pub fn check(&self, subject: &Subject<'_>, stamp: &Stamp, checked: &CheckedUpTo) -> Validity {
        let _ = (subject, stamp, checked);
        todo!()
    }

    /// [`Journal::check`] without memory: for flights, 304s and insertions.
    pub fn validity(&self, subject: &Subject<'_>, stamp: &Stamp) -> Validity {
        let _ = (subject, stamp);
        todo!()
    }

    /// Applies a purge here at once and remembers a receipt.
    pub fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str, now: Now) -> Receipt {
        let _ = (selectors, mode, actor, now);
        todo!()
    }

    /// A receipt by purge id.
    pub fn receipt(&self, id: &str) -> Option<Receipt> {
        let _ = id;
        todo!()
    }

    /// Invalidates URLs for an unsafe method: the cheaper class.
    pub fn invalidate_unsafe(&self, urls: &[u128], now: Now) {
        let _ = (urls, now);
        todo!()
    }

    /// The last entry that matches, for `explain`: selector kind, mode, position, when.
    pub fn last_match(&self, subject: &Subject<'_>) -> Option<serde_json::Value> {
        let _ = subject;
        todo!()
    }
}
