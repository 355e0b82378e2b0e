//! Series of the tiers outside the process.

use super::series::{self, Series};
use prometheus::{IntCounter, IntGauge, Registry};

const REDIS: &str = "redis";

/// What came of looking for something in a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TierLookup {
    /// Found and used.
    Hit,
    /// Found stale, to be confirmed or to stand in.
    Stale,
    Miss,
    /// Not there a moment ago: not asked.
    Remembered,
    /// Left alone: it does not answer, or this node is cut off from the journal.
    Skipped,
    /// Not asked: it takes no writes, and the last look-ups found nothing.
    Spared,
    /// No answer within the budget.
    Timeout,
    Failed,
    /// Found and not usable: purged, or not for this request.
    Unusable,
    /// Found and no record that can be read.
    Unreadable,
}

impl TierLookup {
    pub const ALL: [Self; 10] = [
        Self::Hit,
        Self::Stale,
        Self::Miss,
        Self::Remembered,
        Self::Skipped,
        Self::Spared,
        Self::Timeout,
        Self::Failed,
        Self::Unusable,
        Self::Unreadable,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Miss => "miss",
            Self::Remembered => "remembered",
            Self::Skipped => "skipped",
            Self::Spared => "spared",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Unusable => "unusable",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What came of something that waited to be written to a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TierWrite {
    Stored,
    /// A response whose fetch began later was there.
    Older,
    /// Purged or past its time by the time that it was its turn.
    Outdated,
    /// The queue was full: dropped.
    Full,
    Failed,
    /// The tier takes no writes at present: dropped.
    Skipped,
    Removed,
    /// The floor of a URL was raised.
    Floor,
    /// Too many floors waited: the oldest was dropped.
    FloorDropped,
}

impl TierWrite {
    pub const ALL: [Self; 9] = [
        Self::Stored,
        Self::Older,
        Self::Outdated,
        Self::Full,
        Self::Failed,
        Self::Skipped,
        Self::Removed,
        Self::Floor,
        Self::FloorDropped,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Older => "older",
            Self::Outdated => "outdated",
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Removed => "removed",
            Self::Floor => "floor",
            Self::FloorDropped => "floor_dropped",
        }
    }
}

/// Why records cannot be read, as who reads them names it.
const UNREADABLE: [&str; 4] = ["foreign", "version", "damaged", "malformed"];

/// Series of the Redis tier.
pub struct TierSeries {
    lookups: Vec<IntCounter>,
    /// By position in [`UNREADABLE`].
    unreadable: Vec<IntCounter>,
    writes: Vec<IntCounter>,
    written_bytes: IntCounter,
    broken_bodies: IntCounter,
    breaker_open: IntGauge,
    queue_entries: IntGauge,
    queue_bytes: IntGauge,
    floors: IntGauge,
}

impl TierSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let children = |series: &Series, values: &[&str]| {
            let all = series.counters(registry);
            values.iter().map(|value| all.with_label_values(&[REDIS, value])).collect()
        };
        let gauge = |series: &Series| series.gauges(registry).with_label_values(&[REDIS]);
        let counter = |series: &Series| series.counters(registry).with_label_values(&[REDIS]);
        Self {
            lookups: children(&series::TIER_LOOKUPS, &TierLookup::ALL.map(TierLookup::as_str)),
            unreadable: children(&series::TIER_UNREADABLE, &UNREADABLE),
            writes: children(&series::TIER_WRITES, &TierWrite::ALL.map(TierWrite::as_str)),
            written_bytes: counter(&series::TIER_WRITTEN_BYTES),
            broken_bodies: counter(&series::TIER_BROKEN_BODIES),
            breaker_open: gauge(&series::TIER_BREAKER),
            queue_entries: gauge(&series::TIER_QUEUE_ENTRIES),
            queue_bytes: gauge(&series::TIER_QUEUE_BYTES),
            floors: gauge(&series::TIER_FLOORS),
        }
    }

    /// A record that was found and could not be read.
    pub fn unreadable(&self, reason: &str) {
        let known = UNREADABLE.iter().position(|known| *known == reason);
        if let Some(at) = known {
            self.unreadable[at].inc();
        }
    }

    pub fn lookup(&self, result: TierLookup) {
        self.lookups[result as usize].inc();
    }

    /// `bytes`: of the records written.
    pub fn write(&self, outcome: TierWrite, bytes: u64) {
        self.writes[outcome as usize].inc();
        self.written_bytes.inc_by(bytes);
    }

    /// What came of so many floors.
    pub fn floors(&self, outcome: TierWrite, count: usize) {
        self.writes[outcome as usize].inc_by(count as u64);
    }

    /// Floors that wait to be raised.
    pub fn floors_waiting(&self, count: usize) {
        self.floors.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A body of which a segment was lost or wrong: its connections were aborted.
    pub fn broken_body(&self) {
        self.broken_bodies.inc();
    }

    pub fn breaker(&self, closed: bool) {
        self.breaker_open.set(i64::from(!closed));
    }

    /// What waits to be written.
    pub fn queue(&self, entries: usize, bytes: u64) {
        self.queue_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.queue_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
