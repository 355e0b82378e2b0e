//! Series of the fleet's journal.

use super::series;
use prometheus::{Histogram, IntCounter, IntGauge, Registry};
use std::time::Duration;

/// The two classes of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum JournalClass {
    Purge,
    UnsafeMethod,
}

impl JournalClass {
    pub const ALL: [Self; 2] = [Self::Purge, Self::UnsafeMethod];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::UnsafeMethod => "unsafe_method",
        }
    }
}

/// What does not happen while all is well, but for the first epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum JournalEvent {
    /// Redis has lost entries.
    Loss,
    ServerChanged,
    /// Nobody could say that another server has all entries.
    Unvouched,
    Epoch,
    BehindTrim,
    /// An entry did not follow the last one applied.
    Gap,
    /// Entries were taken out of the stream: what is stored was dropped.
    Hole,
    /// An entry of the stream that is none of the journal's was passed over.
    Foreign,
    /// A purge of this node was appended once more.
    Repaired,
    /// A purge of this node waited longer than it is kept.
    GivenUp,
    /// Everything was invalidated in the stead of what was not kept.
    StoodIn,
    /// Another running node has the name of this one.
    NameTaken,
    CommandFailed,
}

impl JournalEvent {
    pub const ALL: [Self; 13] = [
        Self::Loss,
        Self::ServerChanged,
        Self::Unvouched,
        Self::Epoch,
        Self::BehindTrim,
        Self::Gap,
        Self::Hole,
        Self::Foreign,
        Self::Repaired,
        Self::GivenUp,
        Self::StoodIn,
        Self::NameTaken,
        Self::CommandFailed,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::ServerChanged => "server_changed",
            Self::Unvouched => "unvouched",
            Self::Epoch => "epoch",
            Self::BehindTrim => "behind_trim",
            Self::Gap => "gap",
            Self::Hole => "hole",
            Self::Foreign => "foreign",
            Self::Repaired => "repaired",
            Self::GivenUp => "given_up",
            Self::StoodIn => "stood_in",
            Self::NameTaken => "name_taken",
            Self::CommandFailed => "command_failed",
        }
    }
}

/// What the node at the journal counts.
pub struct JournalSeries {
    propagation: Histogram,
    applied: Vec<IntCounter>,
    appended: Vec<IntCounter>,
    events: Vec<IntCounter>,
    cut_off_requests: Vec<IntCounter>,
    lag: IntGauge,
    nodes: IntGauge,
    unappended: IntGauge,
}

/// By `journal.on_cutoff`.
const POLICIES: [&str; 3] = ["serve", "revalidate", "bypass"];

impl JournalSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let gauge = |series: &series::Series| series.gauges(registry).with_label_values::<&str>(&[]);
        Self {
            propagation: series::PROPAGATION_SECONDS.histograms(registry).with_label_values::<&str>(&[]),
            applied: super::children(&series::JOURNAL_APPLIED.counters(registry), JournalClass::ALL.map(JournalClass::as_str)),
            appended: super::children(&series::JOURNAL_APPENDED.counters(registry), JournalClass::ALL.map(JournalClass::as_str)),
            events: super::children(&series::JOURNAL_EVENTS.counters(registry), JournalEvent::ALL.map(JournalEvent::as_str)),
            cut_off_requests: super::children(&series::CUT_OFF_REQUESTS.counters(registry), POLICIES),
            lag: gauge(&series::JOURNAL_LAG),
            nodes: gauge(&series::JOURNAL_NODES),
            unappended: gauge(&series::JOURNAL_UNAPPENDED),
        }
    }

    /// A purge got here so long after it had its place in the journal.
    pub fn propagated(&self, took: Duration) {
        self.propagation.observe(took.as_secs_f64());
    }

    pub fn applied(&self, class: JournalClass, entries: usize) {
        self.applied[class as usize].inc_by(entries as u64);
    }

    pub fn appended(&self, class: JournalClass) {
        self.appended[class as usize].inc();
    }

    pub fn event(&self, event: JournalEvent, count: usize) {
        self.events[event as usize].inc_by(count as u64);
    }

    /// A request came while this node was cut off; `policy`: what was done about it.
    pub fn cut_off_request(&self, policy: &str) {
        if let Some(at) = POLICIES.iter().position(|known| *known == policy) {
            self.cut_off_requests[at].inc();
        }
    }

    /// How far behind the journal's last entry this node was at its last heartbeat.
    pub fn lag(&self, ms: u64) {
        self.lag.set(i64::try_from(ms).unwrap_or(i64::MAX));
    }

    pub fn nodes(&self, count: usize) {
        self.nodes.set(count as i64);
    }

    pub fn unappended(&self, purges: usize) {
        self.unappended.set(purges as i64);
    }
}
