//! What a purge did and where, kept for a while (`GET /v1/purge/<id>`).

use super::{Mode, Position, Purge, Selector};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};

/// The answer to a purge.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// Purge id: 32 hex digits.
    pub id: String,
    pub mode: Mode,
    /// As matched: first those that were given, in their order, then what else the URLs among them are under other routes.
    pub selectors: Vec<Selector>,
    /// Position of its entry, `epoch-ms-sequence`; the default while it has none.
    pub position: Position,
    /// RFC 3339, UTC.
    pub issued_at: String,
    pub actor: String,
    /// `fleet` once it has its place in the fleet's journal, else `local`: applied on this node.
    pub acknowledged: &'static str,
    /// Where there is a fleet: why it has no place in its journal yet.
    pub reason: Option<String>,
    pub complete: bool,
    /// The nodes of the fleet, but this one; empty without a fleet, and until it has its place.
    pub nodes: Vec<NodeReceipt>,
}

/// What a node of the fleet has done with a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReceipt {
    pub node: String,
    pub state: NodeState,
    /// From the purge's issue until this state was known here.
    pub elapsed_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It may still serve what was purged.
    Waiting,
    Applied,
    /// It is cut off from the journal, and does not serve stored responses while it is.
    CutOff,
    /// It left in order, or was forgotten.
    Gone,
}

impl NodeState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Applied => "applied",
            Self::CutOff => "cut_off",
            Self::Gone => "gone",
        }
    }
}

impl Receipt {
    /// Of a purge that is complete when it is applied here.
    pub(super) fn local(purge: Purge, position: Position) -> Self {
        Self { position, complete: true, reason: None, ..Self::provisional(purge) }
    }

    /// Of a purge that has no place in the fleet's journal yet.
    pub(super) fn provisional(purge: Purge) -> Self {
        let Purge { id, selectors, mode, issued_at, actor } = purge;
        Self {
            id: id.to_string(),
            mode,
            selectors,
            position: Position::default(),
            issued_at,
            actor,
            acknowledged: "local",
            reason: Some("the fleet is being told".into()),
            complete: false,
            nodes: Vec::new(),
        }
    }

    /// As clients get it. `given` says what the first selectors were before they were normalised; where it is empty, or
    /// there is none, nothing is said of that.
    pub fn json(&self, given: impl IntoIterator<Item = String>) -> Value {
        let mut given = given.into_iter();
        let describe = |selector: &Selector| {
            let mut described = json!({ "kind": selector.kind().as_str(), "normalised": selector.text() });
            if let Some(given) = given.next().filter(|given| !given.is_empty()) {
                described["given"] = given.into();
            }
            described
        };
        let mut json = json!({
            "id": self.id,
            "mode": self.mode.as_str(),
            "selectors": self.selectors.iter().map(describe).collect::<Vec<_>>(),
            "position": (self.position != Position::default()).then_some(self.position),
            "issued_at": self.issued_at,
            "actor": self.actor,
            "acknowledged": self.acknowledged,
            "complete": self.complete,
        });
        if let Some(reason) = &self.reason {
            json["reason"] = reason.as_str().into();
        }
        if !self.nodes.is_empty() {
            let node = |node: &NodeReceipt| json!({"node": node.node, "state": node.state.as_str(), "elapsed_ms": node.elapsed_ms});
            json["nodes"] = self.nodes.iter().map(node).collect();
        }
        json
    }
}

/// The last receipts, by purge id.
#[derive(Debug)]
pub(super) struct Receipts {
    limit: usize,
    by_id: HashMap<String, Receipt>,
    oldest_first: VecDeque<String>,
}

impl Receipts {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, by_id: HashMap::new(), oldest_first: VecDeque::new() }
    }

    pub(super) fn keep(&mut self, receipt: Receipt) {
        self.oldest_first.push_back(receipt.id.clone());
        self.by_id.insert(receipt.id.clone(), receipt);
        while self.oldest_first.len() > self.limit {
            if let Some(oldest) = self.oldest_first.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<Receipt> {
        self.by_id.get(id).cloned()
    }

    pub(super) fn change(&mut self, id: &str, change: impl FnOnce(&mut Receipt)) {
        if let Some(receipt) = self.by_id.get_mut(id) {
            change(receipt);
        }
    }
}

/// `2026-11-21T22:11:06.123Z` (RFC 3339 section 5.6); times outside the years 1970 to 9999 are moved to their edge.
pub(super) fn rfc3339(wall_ms: i64) -> String {
    const END_OF_9999_MS: i64 = 253_402_300_799_999;
    let ms = wall_ms.clamp(0, END_OF_9999_MS);
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second, millis) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day since 1970. Counts in years that begin with March, so that the leap day is the last.
fn civil(days_since_1970: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    const DAYS_FROM_MARCH_OF_YEAR_0: i64 = 719_468;
    let days = days_since_1970 + DAYS_FROM_MARCH_OF_YEAR_0;
    let (era, of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalidation::PurgeId;
    use proptest::prelude::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let rows = [
            (0, "1970-01-01T00:00:00.000Z"),
            (-5, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_795_299_066_123, "2026-11-21T22:11:06.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ];
        for (wall_ms, expected) in rows {
            assert_eq!(rfc3339(wall_ms), expected);
        }
    }

    proptest! {
        #[test]
        fn texts_of_times_are_ordered_as_the_times(a in 0..253_402_300_799_999_i64, b in 0..253_402_300_799_999_i64) {
            prop_assert_eq!(a.cmp(&b), rfc3339(a).cmp(&rfc3339(b)));
        }
    }

    #[test]
    fn oldest_receipts_go_beyond_the_limit() {
        let mut receipts = Receipts::new(2);
        let ids: Vec<String> = (0..3)
            .map(|_| {
                let purge = Purge {
                    id: PurgeId::random(),
                    selectors: vec![Selector::Everything],
                    mode: Mode::Soft,
                    issued_at: rfc3339(0),
                    actor: "test".into(),
                };
                let receipt = Receipt::local(purge, Position::default());
                let id = receipt.id.clone();
                receipts.keep(receipt);
                id
            })
            .collect();
        assert!(receipts.find(&ids[0]).is_none());
        assert_eq!(receipts.find(&ids[1]).unwrap().id, ids[1]);
        assert_eq!(receipts.find(&ids[2]).unwrap().id, ids[2]);
        assert_eq!(receipts.by_id.len(), 2);
    }
}
