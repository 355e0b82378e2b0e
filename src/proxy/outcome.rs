//! What happened to a request, recorded once; Cache-Status, access log, metrics and `explain` print it.

use crate::semantics::cache_status::{CacheStatus, Forward};
use crate::semantics::coding::Coding;
use crate::semantics::storage::NotStored;
use crate::semantics::widening::Widening;
use std::sync::Arc;
use std::time::Duration;

/// The record of one request.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Index of the route's counters; its site and route name too, see `observe::metrics`.
    pub route: RouteId,
    pub result: CacheResult,
    /// Where the bytes came from.
    pub source: Source,
    /// RFC 9211 `fwd`.
    pub forward: Option<Forward>,
    /// Status of the upstream's answer, where one was asked.
    pub forward_status: Option<u16>,
    pub not_stored: Option<NotStored>,
    pub stored: bool,
    /// Answered by another request's fetch.
    pub collapsed: bool,
    /// It was looked up under the key of all URLs that are equivalent to its own (No-Vary-Search).
    pub is_equivalent: bool,
    /// The body is made of blocks (`cache.blocks`).
    pub in_blocks: bool,
    /// The line of the configuration without which the answer would have been another (P1: then Cache-Status says so).
    pub widening: Option<Widening>,
    /// The coding that we made of it.
    pub coding: Option<Coding>,
    /// What the client reads decided about its coding, and the response does not say so itself.
    pub negotiated: Negotiated,
    pub contact: Contact,
    /// Configured reason of a bypass rule, or another token for `detail`.
    pub detail: Option<Arc<str>>,
    /// Age and remaining freshness in milliseconds where a stored response was used.
    pub age_ms: Option<u64>,
    pub ttl_ms: Option<i64>,
    /// RFC 9209 error token where we made the answer up.
    pub error: Option<&'static str>,
    pub timing: Timing,
    pub upstream: Option<Arc<str>>,
    pub endpoint: Option<Arc<str>>,
    /// As a trusted proxy gave it, or as it went upstream; `None`: nobody was told any.
    pub request_id: Option<Arc<str>>,
    /// The client as believed (trusted proxies); `None`: the peer itself.
    pub client: Option<std::net::IpAddr>,
    /// Query strings may be logged.
    pub log_query: bool,
    /// It was asked for by https.
    pub is_secure: bool,
}

/// What of the request decided about the coding of an answer, beyond what its own Vary names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Negotiated {
    #[default]
    Nothing,
    Coding,
    Dictionary,
    CodingAndDictionary,
}

impl Negotiated {
    pub const fn new(coding: bool, dictionary: bool) -> Self {
        match (coding, dictionary) {
            (false, false) => Self::Nothing,
            (true, false) => Self::Coding,
            (false, true) => Self::Dictionary,
            (true, true) => Self::CodingAndDictionary,
        }
    }

    /// For Vary.
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Coding => Some("accept-encoding"),
            Self::Dictionary => Some("available-dictionary"),
            Self::CodingAndDictionary => Some("accept-encoding, available-dictionary"),
        }
    }
}

/// How this node stood with the fleet, as far as the request could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Contact {
    #[default]
    Whole,
    /// It was cut off from the fleet's journal when the request came.
    CutOff,
    /// The tier that the fleet shares was left alone, for it had not answered others.
    LookupSkipped,
    /// It gave no answer within the budget.
    LookupTimeout,
    LookupFailed,
}

impl Contact {
    /// For `detail`.
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::CutOff => Some("CUT-OFF"),
            Self::LookupSkipped => Some("REDIS-SKIPPED"),
            Self::LookupTimeout => Some("REDIS-TIMEOUT"),
            Self::LookupFailed => Some("REDIS-FAILED"),
        }
    }
}

/// The id of a request that nobody named: 128 bits of chance, as hexadecimal digits.
pub fn new_id() -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut id = [0; 32];
    for (pair, byte) in id.as_chunks_mut::<2>().0.iter_mut().zip(rand::random::<[u8; 16]>()) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    id
}

/// Index of a site's and route's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RouteId(pub u32);

/// `result` in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum CacheResult {
    /// A fresh stored response.
    Hit,
    /// Fetched, or collapsed onto a fetch.
    #[default]
    Miss,
    /// A stale stored response.
    Stale,
    /// A stored response that the origin confirmed.
    Revalidated,
    /// The cache was not consulted.
    Bypass,
    /// We made the answer up because something failed.
    Error,
    /// Redirects and fixed answers, PURGE: no upstream involved.
    Local,
}

impl CacheResult {
    pub const ALL: [Self; 7] = [Self::Hit, Self::Miss, Self::Stale, Self::Revalidated, Self::Bypass, Self::Error, Self::Local];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Bypass => "bypass",
            Self::Error => "error",
            Self::Local => "local",
        }
    }
}

/// Where the bytes came from: `tier` in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Source {
    Memory,
    /// A flight that another request leads.
    Flight,
    #[default]
    Upstream,
    Tiercel,
    /// The tier that the fleet shares.
    Redis,
    /// Another node of the fleet.
    Shield,
}

impl Source {
    pub const ALL: [Self; 6] = [Self::Memory, Self::Flight, Self::Upstream, Self::Tiercel, Self::Redis, Self::Shield];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Flight => "flight",
            Self::Upstream => "upstream",
            Self::Tiercel => "tiercel",
            Self::Redis => "redis",
            Self::Shield => "shield",
        }
    }
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Waiting for another request's head.
    pub waited: Option<Duration>,
    /// From sending the request upstream to the head.
    pub first_byte: Option<Duration>,
    pub connect: Option<Duration>,
}

impl Timing {
    /// Of the request whose fetch it was; who followed another's has none.
    pub const fn of_fetch(connect: Option<Duration>, first_byte: Duration) -> Self {
        Self { waited: None, first_byte: Some(first_byte), connect }
    }
}

impl Outcome {
    /// The record as RFC 9211 puts it.
    pub fn cache_status<'a>(&'a self, key: Option<&'a str>) -> CacheStatus<'a> {
        let hit = self.forward.is_none() && matches!(self.result, CacheResult::Hit | CacheResult::Stale);
        CacheStatus {
            hit,
            forward: self.forward,
            forward_status: self.forward_status,
            ttl: self.ttl_ms.map(|ttl_ms| self.seconds_of(ttl_ms)),
            stored: self.stored,
            collapsed: self.collapsed,
            detail: self.detail(),
            key,
        }
    }

    /// What is stale has less than none, also in the millisecond in which it became so.
    fn seconds_of(&self, ttl_ms: i64) -> i64 {
        let seconds = ttl_ms.div_euclid(1000);
        if self.result == CacheResult::Stale { seconds.min(-1) } else { seconds }
    }

    /// Our reason, as a token: a bypass rule's name, why it was not stored, what the configuration widened, or where
    /// it came from: the tier of a hit, another node.
    pub fn detail(&self) -> Option<&str> {
        match self.not_stored {
            Some(reason) if self.detail.is_none() => Some(reason.as_str()),
            _ => self.own_detail().or(match self.source {
                Source::Memory => Some("MEMORY"),
                Source::Redis => Some("REDIS"),
                Source::Shield => Some("SHIELD"),
                Source::Flight | Source::Upstream | Source::Tiercel => None,
            }),
        }
    }

    /// [`Outcome::detail`] without what the log says elsewhere.
    pub fn own_detail(&self) -> Option<&str> {
        let widening = || Some(self.widening?.as_str());
        self.detail
            .as_deref()
            .or_else(widening)
            .or_else(|| self.contact.as_str())
            .or((self.is_equivalent && self.source == Source::Memory).then_some("NO-VARY-SEARCH"))
    }

    /// `HIT` for what came from the cache, stale or confirmed; everything else is `MISS`.
    pub fn x_cache(&self) -> &'static str {
        match self.result {
            CacheResult::Hit | CacheResult::Stale | CacheResult::Revalidated => "HIT",
            _ => "MISS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_is_told_to_be_from_its_first_millisecond() {
        for (result, ttl_ms, want) in [
            (CacheResult::Hit, 1999, 1),
            (CacheResult::Hit, 1, 0),
            (CacheResult::Stale, 0, -1),
            (CacheResult::Stale, -1, -1),
            (CacheResult::Stale, -1000, -1),
            (CacheResult::Stale, -1001, -2),
        ] {
            let outcome = Outcome { result, ttl_ms: Some(ttl_ms), ..Outcome::default() };
            assert_eq!(outcome.cache_status(None).ttl, Some(want), "{ttl_ms} ms");
        }
    }
}
