//! Series of the connections to Redis.

use super::series;
use prometheus::{Histogram, IntCounter, IntGauge, Registry};
use std::time::Duration;

/// What a connection to Redis is used for; each has its own, so that none waits behind another's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RedisUse {
    /// Look-ups of the tier.
    Lookup,
    /// Bodies, and what is written to the tier but for floors.
    Bodies,
    /// Floors of URLs, raised by unsafe methods.
    Floors,
    /// The journal's commands.
    Journal,
    /// Reads of the journal that wait for news.
    Follow,
    /// Leases for fetches.
    Lease,
    /// Shared rate limits.
    Limit,
    /// Certificates that nodes obtain for each other.
    Acme,
    /// Channels.
    Subscribe,
    /// What people ask for.
    Admin,
}

impl RedisUse {
    pub const ALL: [Self; 10] = [
        Self::Lookup,
        Self::Bodies,
        Self::Floors,
        Self::Journal,
        Self::Follow,
        Self::Lease,
        Self::Limit,
        Self::Acme,
        Self::Subscribe,
        Self::Admin,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Bodies => "bodies",
            Self::Floors => "floors",
            Self::Journal => "journal",
            Self::Follow => "follow",
            Self::Lease => "lease",
            Self::Limit => "limit",
            Self::Acme => "acme",
            Self::Subscribe => "subscribe",
            Self::Admin => "admin",
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RedisOutcome {
    Answered,
    /// There was no connection.
    Away,
    Timeout,
    /// Redis answered with an error.
    Refused,
    /// The connection failed, or the answer made no sense.
    Broken,
}

impl RedisOutcome {
    pub const ALL: [Self; 5] = [Self::Answered, Self::Away, Self::Timeout, Self::Refused, Self::Broken];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Away => "away",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Broken => "broken",
        }
    }
}

/// Counters of all uses.
pub struct RedisSeries {
    uses: Vec<UseSeries>,
    clock_offset: IntGauge,
    unsuited: [(RedisUse, IntGauge); 2],
}

struct UseSeries {
    commands: Vec<IntCounter>,
    seconds: Histogram,
    connects: [IntCounter; 2],
    connections: IntGauge,
}

impl RedisSeries {
    pub(super) fn new(registry: &Registry) -> Self {
        let commands = series::REDIS_COMMANDS.counters(registry);
        let seconds = series::REDIS_SECONDS.histograms(registry);
        let connects = series::REDIS_CONNECTS.counters(registry);
        let connections = series::REDIS_CONNECTIONS.gauges(registry);
        let of_use = |purpose: RedisUse| {
            let name = purpose.as_str();
            UseSeries {
                commands: RedisOutcome::ALL.iter().map(|outcome| commands.with_label_values(&[name, outcome.as_str()])).collect(),
                seconds: seconds.with_label_values(&[name]),
                connects: ["connected", "failed"].map(|outcome| connects.with_label_values(&[name, outcome])),
                connections: connections.with_label_values(&[name]),
            }
        };
        let unsuited = series::REDIS_POLICY_UNSUITED.gauges(registry);
        Self {
            unsuited: [RedisUse::Journal, RedisUse::Bodies].map(|purpose| (purpose, unsuited.with_label_values(&[purpose.as_str()]))),
            uses: RedisUse::ALL.into_iter().map(of_use).collect(),
            clock_offset: series::REDIS_CLOCK_OFFSET.gauges(registry).with_label_values::<&str>(&[]),
        }
    }

    /// A command ended; `took` counts from when it was sent.
    pub fn command(&self, purpose: RedisUse, outcome: RedisOutcome, took: Duration) {
        let series = &self.uses[purpose as usize];
        series.commands[outcome as usize].inc();
        if outcome != RedisOutcome::Away {
            series.seconds.observe(took.as_secs_f64());
        }
    }

    /// A connection was made, or could not be.
    pub fn connect(&self, purpose: RedisUse, success: bool) {
        self.uses[purpose as usize].connects[usize::from(!success)].inc();
    }

    /// Connections that are up.
    pub fn connections(&self, purpose: RedisUse) -> &IntGauge {
        &self.uses[purpose as usize].connections
    }

    /// Whether a Redis that is full would do the wrong thing with what this use keeps there.
    pub fn unsuited(&self, purpose: RedisUse, is_unsuited: bool) {
        if let Some((_, gauge)) = self.unsuited.iter().find(|(of, _)| *of == purpose) {
            gauge.set(i64::from(is_unsuited));
        }
    }

    /// By how much the clock of Redis is ahead of this host's.
    pub fn clock_offset(&self, ms: i64) {
        self.clock_offset.set(ms);
    }
}
