//! What a stored response is used for, or kept for, only because the configuration says so: Cache-Status tells it.

use super::freshness::{Facts, LifetimeSource, is_heuristically_cacheable};
use super::policy::{CachePolicy, SetCookie};
use super::vary::Vary;

/// A switch of the configuration without which the answer would have been another. Tokens for `detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Widening {
    /// Stale, inside `cache.stale_while_revalidate`, where the response itself opens no window.
    StaleByPolicy,
    /// `cache.ttl.override`.
    TtlOverride,
    /// `cache.ttl.default` for a status that RFC 9111 section 3 does not let caches keep of their own accord.
    TtlDefault,
    /// `cache.set_cookie = "store"`.
    SetCookieStored,
    /// `cache.set_cookie = "strip"`.
    SetCookieStripped,
    /// `cache.vary.ignore` names a field of its Vary.
    VaryIgnored,
    /// `cache.heuristic_with_cookie`.
    HeuristicWithCookie,
    /// `cache.body_key.methods` has POST; a matter of the request, not of the response.
    PostByContent,
}

impl Widening {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StaleByPolicy => "STALE-BY-POLICY",
            Self::TtlOverride => "TTL-OVERRIDE",
            Self::TtlDefault => "TTL-DEFAULT",
            Self::SetCookieStored => "SET-COOKIE-STORED",
            Self::SetCookieStripped => "SET-COOKIE-STRIPPED",
            Self::VaryIgnored => "VARY-IGNORED",
            Self::HeuristicWithCookie => "HEURISTIC-WITH-COOKIE",
            Self::PostByContent => "POST-BY-CONTENT",
        }
    }
}

/// The first switch that this use of a response needs; `stale_ms`: how long it is past its freshness, where it is used
/// without asking the origin all the same. Costs next to nothing where the policy opens nothing.
pub fn widening(facts: &Facts, policy: &CachePolicy, stale_ms: Option<u64>) -> Option<Widening> {
    if stale_ms
        .is_some_and(|stale_ms| facts.directives.rare().stale_while_revalidate.is_none() && stale_ms <= policy.stale_while_revalidate_ms)
    {
        return Some(Widening::StaleByPolicy);
    }
    if !policy.ttl_override.is_empty() && policy.override_ms(facts.status).is_some() {
        return Some(Widening::TtlOverride);
    }
    if !policy.ttl_default.is_empty() && !is_heuristically_cacheable(facts.status) && has_lifetime_by_default_alone(facts, policy) {
        return Some(Widening::TtlDefault);
    }
    if facts.set_cookie {
        return match policy.set_cookie {
            SetCookie::Bypass => None,
            SetCookie::Store => Some(Widening::SetCookieStored),
            SetCookie::Strip => Some(Widening::SetCookieStripped),
        };
    }
    if !policy.vary.ignore.is_empty() && names_one_of(&facts.vary, &policy.vary.ignore) {
        return Some(Widening::VaryIgnored);
    }
    let by_cookie = facts.cookie && policy.heuristic_with_cookie && facts.lifetime(policy).source == LifetimeSource::Heuristic;
    by_cookie.then_some(Widening::HeuristicWithCookie)
}

fn has_lifetime_by_default_alone(facts: &Facts, policy: &CachePolicy) -> bool {
    !facts.directives.public && facts.lifetime(policy).source == LifetimeSource::PolicyDefault
}

fn names_one_of(vary: &Vary, ignored: &[String]) -> bool {
    let Vary::Fields(names) = vary else { return false };
    names.iter().any(|name| ignored.iter().any(|ignored| ignored.eq_ignore_ascii_case(name)))
}
