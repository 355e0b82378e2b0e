//! May this stored response answer this request now (RFC 9111 §4; RFC 5861, RFC 8246)?

use super::freshness::Facts;
use super::policy::CachePolicy;
use super::{Now, Request};

/// What the journal says of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Valid,
    /// Soft-purged: stale since this boot-time millisecond.
    Soft {
        since_mono_ms: u64,
    },
    /// Hard-purged: not usable for anything, not even its validators.
    Purged,
}

/// The answer. Ages in milliseconds; `ttl_ms` is lifetime minus age, negative when stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    Fresh {
        age_ms: u64,
        ttl_ms: i64,
    },
    /// Serve it and refresh it in the background (stale-while-revalidate), or as the client's max-stale allows.
    StaleNow {
        age_ms: u64,
        ttl_ms: i64,
        why: StaleWhy,
    },
    /// Ask the origin first.
    Revalidate {
        why: MustAsk,
        age_ms: u64,
        ttl_ms: i64,
    },
    /// Not usable at all: as if nothing were stored.
    Unusable(Unusable),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleWhy {
    WhileRevalidate,
    /// The client's max-stale, honoured by policy; no refresh is owed.
    MaxStale,
}

/// Why the origin has to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MustAsk {
    Stale,
    SoftPurged,
    /// no-cache in the response.
    NoCache,
    /// A request directive that the policy honours.
    Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    Purged,
    /// Stored for a request with Authorization, or asked by one, without permission (§3.5).
    Authorization,
    /// The policy of today would not have stored it.
    Policy,
    VaryStar,
}

/// May the response with these facts answer this request? Vary has been matched by the caller.
pub fn reuse(request: Request<'_>, facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> Reuse {
    let _ = (request, facts, policy, validity, now);
    todo!()
}

/// May it be served stale because the origin failed (RFC 5861 §4, RFC 9111 §4.2.4)? Never against must-revalidate,
/// proxy-revalidate, s-maxage, no-cache, nor when purged.
pub fn may_serve_on_error(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> bool {
    let _ = (facts, policy, validity, now);
    todo!()
}

/// How long after `now` the response is worth keeping at all: the longest of freshness, stale windows and, with a
/// validator, `keep_stale`; milliseconds.
pub fn keep_ms(facts: &Facts, policy: &CachePolicy, now: Now) -> u64 {
    let _ = (facts, policy, now);
    todo!()
}

/// Whether the request asks for stored responses only (RFC 9111 §5.2.1.7).
pub fn only_if_cached(request: Request<'_>) -> bool {
    let _ = request;
    todo!()
}
