//! Series of the leases by which one node fetches for the fleet.

use super::{children, series};
use prometheus::{Histogram, IntCounter, IntGauge, Registry};
use std::time::Duration;

/// What came of asking for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LeaseAsked {
    /// This node fetches for the fleet.
    Led,
    /// Another node did: what it stored answers.
    Given,
    /// Another node did, and Redis has nothing of it: fetched without a lease.
    Alone,
    /// Another node had it for too long: fetched without a lease.
    TimedOut,
    /// Redis did not say: fetched without a lease.
    Unknown,
}

impl LeaseAsked {
    pub const ALL: [Self; 5] = [Self::Led, Self::Given, Self::Alone, Self::TimedOut, Self::Unknown];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Led => "led",
            Self::Given => "given",
            Self::Alone => "alone",
            Self::TimedOut => "timed_out",
            Self::Unknown => "unknown",
        }
    }
}

/// How a fetch under a lease ended, as far as those who wait for it have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LeaseEnded {
    /// The response is in Redis.
    Stored,
    /// It may not be shared.
    Uncacheable,
    /// It may be shared, but is larger than what Redis is given.
    TooLarge,
    /// It may be shared, but Redis is not given it for another reason, or did not take it.
    NotTaken,
    /// Somebody else should try.
    Failed,
}

impl LeaseEnded {
    pub const ALL: [Self; 5] = [Self::Stored, Self::Uncacheable, Self::TooLarge, Self::NotTaken, Self::Failed];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Uncacheable => "uncacheable",
            Self::TooLarge => "too_large",
            Self::NotTaken => "not_taken",
            Self::Failed => "failed",
        }
    }
}

/// Series of leases.
pub struct LeaseSeries {
    asked: Vec<IntCounter>,
    ended: Vec<IntCounter>,
    lapsed: IntCounter,
    wait_seconds: Histogram,
    waiting: IntGauge,
}

impl LeaseSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let ended = series::LEASE_ENDED.counters(registry);
        Self {
            asked: children(&series::LEASE_ASKED.counters(registry), LeaseAsked::ALL.map(LeaseAsked::as_str)),
            ended: children(&ended, LeaseEnded::ALL.map(LeaseEnded::as_str)),
            lapsed: ended.with_label_values(&["lapsed"]),
            wait_seconds: series::LEASE_WAIT_SECONDS.histograms(registry).with_label_values::<&str>(&[]),
            waiting: series::LEASE_WAITING.gauges(registry).with_label_values::<&str>(&[]),
        }
    }

    pub fn asked(&self, result: LeaseAsked) {
        self.asked[result as usize].inc();
    }

    /// A lease of this node ended.
    pub fn ended(&self, how: LeaseEnded) {
        self.ended[how as usize].inc();
    }

    /// A lease was another's, or nobody's, before this node had ended it; or Redis did not answer when it did.
    pub fn lapsed(&self) {
        self.lapsed.inc();
    }

    /// Somebody here waited so long for another node.
    pub fn waited(&self, how_long: Duration) {
        self.wait_seconds.observe(how_long.as_secs_f64());
    }

    /// Fetches that wait for another node's.
    pub const fn waiting(&self) -> &IntGauge {
        &self.waiting
    }
}
