//! May this stored response answer this request now (RFC 9111 §4; RFC 5861, RFC 8246)?
//!
//! Start at [`reuse`]. Whatever the answer, freshness is one number, `ttl_ms`: lifetime minus age, pulled down to the
//! time of a soft purge. A stale response is served only inside a window that the response, the policy or (where
//! honoured) the client opened, and never where [`forbids_stale`].

use super::cache_control::{RequestDirectives, Seconds};
use super::freshness::Facts;
use super::policy::{CachePolicy, ClientDirectives, SetCookie};
use super::{Now, Request, forwarding, name};

/// What the journal says of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Valid,
    /// Soft-purged: stale since this boot-time millisecond.
    Soft {
        since_mono_ms: u64,
    },
    /// What was purged lately is not known here: usable only once the origin has confirmed it.
    Unconfirmed,
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
    /// It would be fresh but for a soft purge.
    SoftPurged,
    /// It may have been purged, which is not known here.
    Unconfirmed,
    /// no-cache in the response.
    NoCache,
    /// A request directive that the policy honours.
    Request,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    Purged,
    /// no-store or private: for the request that brought it alone. Not stored then, but followers of a flight ask too.
    Forbidden,
    /// Stored for a request with Authorization, or asked by one, without permission (§3.5).
    Authorization,
    /// The policy of today would not have stored it.
    Policy,
    VaryStar,
}

/// May the response with these facts answer this request? Vary has been matched by the caller.
///
/// Fields that the answer must do without are told by [`withheld_fields`] and [`withholds_set_cookie`].
pub fn reuse(request: Request<'_>, facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> Reuse {
    if let Some(why) = unusable(request, facts, policy, validity) {
        return Reuse::Unusable(why);
    }
    let (age_ms, ttl_ms) = (facts.age_ms(now), ttl_ms(facts, policy, validity, now));
    let asked = honoured(request, policy);
    if facts.directives.no_cache {
        return Reuse::Revalidate { why: MustAsk::NoCache, age_ms, ttl_ms };
    }
    if validity == Validity::Unconfirmed {
        return Reuse::Revalidate { why: MustAsk::Unconfirmed, age_ms, ttl_ms };
    }
    if ttl_ms > 0 {
        let enough = !wants_fresher(&asked, facts, age_ms, ttl_ms);
        return if enough { Reuse::Fresh { age_ms, ttl_ms } } else { Reuse::Revalidate { why: MustAsk::Request, age_ms, ttl_ms } };
    }
    match stale_now(&asked, facts, policy, validity, (age_ms, ttl_ms)) {
        Some(why) => Reuse::StaleNow { age_ms, ttl_ms, why },
        None => Reuse::Revalidate { why: why_stale(facts, policy, validity, now), age_ms, ttl_ms },
    }
}

/// May it be served stale because the origin failed (RFC 5861 §4, RFC 9111 §4.2.4)? Never against must-revalidate,
/// proxy-revalidate, s-maxage, no-cache, nor when purged or perhaps purged. A soft purge counts as staleness from when it was applied.
pub fn may_serve_on_error(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> bool {
    servable_on_error(facts, policy, validity, now, None)
}

/// [`may_serve_on_error`] for one request, whose own stale-if-error (RFC 5861 §4) can widen the window where the
/// policy honours client directives; it lifts none of the prohibitions.
pub fn may_serve_on_error_to(request: Request<'_>, facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> bool {
    servable_on_error(facts, policy, validity, now, honoured(request, policy).stale_if_error)
}

/// Whether a hit on what is fresh for `ttl_ms` more is to refresh it already (`cache.early_refresh`).
pub fn is_refresh_due(facts: &Facts, policy: &CachePolicy, ttl_ms: i64) -> bool {
    policy.early_refresh > 0.0 && ttl_ms as f64 <= facts.lifetime(policy).ms as f64 * policy.early_refresh
}

/// How long after `now` the response is worth keeping at all: the longest of freshness, stale windows and, with a
/// validator, `keep_stale`; milliseconds.
///
/// Under no-cache only a validator gives it any worth, because every use asks the origin.
pub fn keep_ms(facts: &Facts, policy: &CachePolicy, now: Now) -> u64 {
    let has_validator = facts.has_validator();
    if facts.directives.no_cache && !has_validator {
        return 0;
    }
    let stale_ms = if forbids_stale(facts) { 0 } else { while_revalidate_ms(facts, policy).max(if_error_ms(facts, policy)) };
    let past_fresh_ms = stale_ms.max(if has_validator { policy.keep_stale_ms } else { 0 });
    let ttl_ms = ttl_ms(facts, policy, Validity::Valid, now);
    i64::try_from(past_fresh_ms).unwrap_or(i64::MAX).saturating_add(ttl_ms).max(0).unsigned_abs()
}

/// Whether the request asks for stored responses only (RFC 9111 §5.2.1.7). Obeyed whatever the policy says.
pub fn only_if_cached(request: Request<'_>) -> bool {
    request.fields.has(name::CACHE_CONTROL) && RequestDirectives::parse(request.fields).only_if_cached
}

/// Fields that must be left out when the response is reused without asking the origin: those named by
/// `no-cache="..."` (RFC 9111 §5.2.2.4), lower case.
pub fn withheld_fields(facts: &Facts) -> &[String] {
    &facts.directives.rare().no_cache_fields
}

/// Whether Set-Cookie must be left out when the response is reused: it was stored under another policy than today's.
pub fn withholds_set_cookie(facts: &Facts, policy: &CachePolicy) -> bool {
    facts.set_cookie && policy.set_cookie != SetCookie::Store
}

fn unusable(request: Request<'_>, facts: &Facts, policy: &CachePolicy, validity: Validity) -> Option<Unusable> {
    if validity == Validity::Purged {
        Some(Unusable::Purged)
    } else if forbidden(facts) {
        Some(Unusable::Forbidden)
    } else if refused_by_policy(facts, policy) {
        Some(Unusable::Policy)
    } else if !authorization_allows(request, facts) {
        Some(Unusable::Authorization)
    } else if facts.vary.is_star() {
        Some(Unusable::VaryStar)
    } else {
        None
    }
}

/// §5.2.2.5 and §5.2.2.7. With must-understand, no-store does not count (§5.2.2.3): such a response is stored only if
/// its status is understood.
fn forbidden(facts: &Facts) -> bool {
    facts.directives.private || (facts.directives.no_store && !facts.directives.must_understand)
}

fn refused_by_policy(facts: &Facts, policy: &CachePolicy) -> bool {
    !policy.enabled || (facts.set_cookie && policy.set_cookie == SetCookie::Bypass)
}

/// §3.5 for the request that brought the response; a request that asks with Authorization is held to the same, since
/// what it would be told may be other than what was told without.
fn authorization_allows(request: Request<'_>, facts: &Facts) -> bool {
    !(facts.authorized || forwarding::has_credentials(request.fields)) || facts.is_for_all()
}

/// Lifetime minus age, or the time since a soft purge where that is longer ago; zero and below is stale (§4.2).
fn ttl_ms(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> i64 {
    let lifetime = signed(facts.lifetime(policy).ms);
    let ttl = lifetime.saturating_sub(signed(facts.age_ms(now)));
    match validity {
        Validity::Soft { since_mono_ms } => ttl.min(-signed(now.mono_ms.saturating_sub(since_mono_ms))),
        Validity::Valid | Validity::Unconfirmed | Validity::Purged => ttl,
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn why_stale(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> MustAsk {
    match validity {
        Validity::Soft { .. } if ttl_ms(facts, policy, Validity::Valid, now) > 0 => MustAsk::SoftPurged,
        _ => MustAsk::Stale,
    }
}

/// The client's directives where the policy honours them, else none (§5.2.1: they are advisory).
fn honoured(request: Request<'_>, policy: &CachePolicy) -> RequestDirectives {
    match policy.client_directives {
        ClientDirectives::Honour if request.fields.has(name::CACHE_CONTROL) => RequestDirectives::parse(request.fields),
        ClientDirectives::Honour | ClientDirectives::Ignore => RequestDirectives::default(),
    }
}

/// Whether the client's directives ask for more than freshness (§5.2.1.1, §5.2.1.3, §5.2.1.4).
fn wants_fresher(asked: &RequestDirectives, facts: &Facts, age_ms: u64, ttl_ms: i64) -> bool {
    // Browsers send max-age=0 on a reload, which immutable is there to make cheap (RFC 8246 §2.1).
    let too_old = is_too_old(asked, age_ms) && !facts.directives.immutable;
    let too_short = asked.min_fresh.is_some_and(|least| ttl_ms < signed(millis(least)));
    asked.no_cache || too_old || too_short
}

/// Whether the client's directives refuse a stale response: max-age does, unless max-stale is there too (§5.2.1.1).
fn refuses_stale(asked: &RequestDirectives, age_ms: u64) -> bool {
    let wants_fresh = asked.min_fresh.is_some() || (asked.max_age.is_some() && asked.max_stale.is_none());
    asked.no_cache || wants_fresh || is_too_old(asked, age_ms)
}

/// Older than the client's max-age; a max-age of 0 is taken as a wish to ask, at whatever age.
fn is_too_old(asked: &RequestDirectives, age_ms: u64) -> bool {
    asked.max_age.is_some_and(|most| most == 0 || age_ms > millis(most))
}

/// Why a response that is stale by `-ttl_ms` may be served at once, if it may.
fn stale_now(
    asked: &RequestDirectives,
    facts: &Facts,
    policy: &CachePolicy,
    validity: Validity,
    (age_ms, ttl_ms): (u64, i64),
) -> Option<StaleWhy> {
    if forbids_stale(facts) || refuses_stale(asked, age_ms) {
        return None;
    }
    if is_within(ttl_ms, while_revalidate_ms(facts, policy)) {
        return Some(StaleWhy::WhileRevalidate);
    }
    // No refresh follows a max-stale answer, so that what an operator soft-purged would be served without end.
    let max_stale_ms = asked.max_stale.map_or(0, |most| if most == Seconds::MAX { u64::MAX } else { millis(most) });
    (validity == Validity::Valid && is_within(ttl_ms, max_stale_ms)).then_some(StaleWhy::MaxStale)
}

fn servable_on_error(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now, asked: Option<Seconds>) -> bool {
    if matches!(validity, Validity::Purged | Validity::Unconfirmed) {
        return false;
    }
    if forbidden(facts) || refused_by_policy(facts, policy) || facts.directives.no_cache {
        return false;
    }
    let ttl_ms = ttl_ms(facts, policy, validity, now);
    let window_ms = if_error_ms(facts, policy).max(asked.map_or(0, millis));
    ttl_ms > 0 || (!forbids_stale(facts) && is_within(ttl_ms, window_ms))
}

/// Directives that forbid any stale reuse (§4.2.4); s-maxage has the meaning of proxy-revalidate (§5.2.2.10).
fn forbids_stale(facts: &Facts) -> bool {
    let directives = &facts.directives;
    directives.must_revalidate || directives.proxy_revalidate || directives.s_maxage.is_some() || directives.no_cache
}

/// Whether a response that is stale by `-ttl_ms` is inside a stale window; one of zero length holds nothing.
fn is_within(ttl_ms: i64, window_ms: u64) -> bool {
    window_ms > 0 && ttl_ms.unsigned_abs() <= window_ms
}

fn while_revalidate_ms(facts: &Facts, policy: &CachePolicy) -> u64 {
    facts.directives.rare().stale_while_revalidate.map_or(policy.stale_while_revalidate_ms, millis)
}

fn if_error_ms(facts: &Facts, policy: &CachePolicy) -> u64 {
    facts.directives.rare().stale_if_error.map_or(policy.stale_if_error_ms, millis)
}

fn millis(seconds: Seconds) -> u64 {
    u64::from(seconds) * 1000
}

#[cfg(test)]
pub(super) mod testing {
    //! What the tests of the rules build requests and responses from.

    use super::super::target::{Scheme, Target};
    use super::super::targeted::TargetList;
    use super::super::{Fields, Method, Response, StatusCode};
    use super::*;

    pub const NOW: Now = Now { wall_ms: 1_700_000_000_000, mono_ms: 5_000_000 };

    pub fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    pub struct Asked {
        pub method: Method,
        pub target: Target,
        pub fields: Fields,
    }

    impl Asked {
        pub fn new(method: &Method, lines: &[(&str, &str)]) -> Self {
            let target = Target::parse(Scheme::Http, b"/a/b?c", &fields(&[("host", "shop.example")]), false).unwrap();
            Self { method: method.clone(), target, fields: fields(lines) }
        }
        pub fn get(lines: &[(&str, &str)]) -> Self {
            Self::new(&Method::GET, lines)
        }
        pub fn request(&self) -> Request<'_> {
            Request { method: &self.method, target: &self.target, fields: &self.fields }
        }
    }

    /// Of a 200 that was generated and received at [`NOW`], with an entity tag.
    pub fn facts(cache_control: &str) -> Facts {
        let fields = fields(&[("cache-control", cache_control), ("etag", "\"a\"")]);
        let response = Response { status: StatusCode::OK, fields: &fields };
        Facts::new(Asked::get(&[]).request(), response, &TargetList::default(), NOW, NOW)
    }
}

#[cfg(test)]
mod tests {
    use super::super::terms::Terms;
    use super::super::vary::Vary;
    use super::testing::{Asked, NOW, facts};
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1000;

    fn unvalidated(cache_control: &str) -> Facts {
        let validated = facts(cache_control);
        validated.on(Terms { has_etag: false, ..Terms::clone(&validated) })
    }

    fn after(ms: u64) -> Now {
        NOW.plus_ms(ms)
    }

    fn soft(after_ms: u64) -> Validity {
        Validity::Soft { since_mono_ms: NOW.mono_ms + after_ms }
    }

    fn ask(facts: &Facts, policy: &CachePolicy, validity: Validity, now: Now) -> Reuse {
        reuse(Asked::get(&[]).request(), facts, policy, validity, now)
    }

    #[test]
    fn a_purge_outranks_everything_else() {
        let private = facts("private, max-age=60");
        let stored = private.on(Terms { vary: Vary::Star, authorized: true, ..Terms::clone(&private) });
        let policy = CachePolicy { enabled: false, ..CachePolicy::default() };
        assert_eq!(ask(&stored, &policy, Validity::Purged, NOW), Reuse::Unusable(Unusable::Purged));
    }

    #[test]
    fn what_may_have_been_purged_is_asked_about_and_stands_in_for_nothing() {
        let (stored, policy) = (facts("max-age=60"), CachePolicy::default());
        for later in [NOW, after(61 * SECOND)] {
            let answer = ask(&stored, &policy, Validity::Unconfirmed, later);
            assert!(matches!(answer, Reuse::Revalidate { why: MustAsk::Unconfirmed, .. }), "{answer:?}");
            assert!(!may_serve_on_error(&stored, &policy, Validity::Unconfirmed, later));
        }
    }

    #[test]
    fn todays_policy_is_applied_to_what_is_stored() {
        let fresh = facts("max-age=60");
        let stored = fresh.on(Terms { set_cookie: true, ..Terms::clone(&fresh) });
        let with = |enabled, set_cookie| CachePolicy { enabled, set_cookie, ..CachePolicy::default() };
        let cases = [
            (with(true, SetCookie::Store), None, false),
            (with(true, SetCookie::Strip), None, true),
            (with(true, SetCookie::Bypass), Some(Unusable::Policy), true),
            (with(false, SetCookie::Store), Some(Unusable::Policy), false),
        ];
        for (policy, refused, withheld) in cases {
            let want = refused.map_or(Reuse::Fresh { age_ms: 0, ttl_ms: 60_000 }, Reuse::Unusable);
            assert_eq!(ask(&stored, &policy, Validity::Valid, NOW), want, "{policy:?}");
            assert_eq!(withholds_set_cookie(&stored, &policy), withheld, "{policy:?}");
            assert_eq!(may_serve_on_error(&stored, &policy, Validity::Valid, NOW), refused.is_none(), "{policy:?}");
        }
        assert!(!withholds_set_cookie(&facts("max-age=60"), &CachePolicy::default()));
    }

    #[test]
    fn fields_named_by_no_cache_are_withheld_and_do_not_force_validation() {
        let stored = facts("max-age=60, no-cache=\"X-One, x-two\"");
        assert_eq!(withheld_fields(&stored), ["x-one", "x-two"]);
        assert!(matches!(ask(&stored, &CachePolicy::default(), Validity::Valid, NOW), Reuse::Fresh { .. }));
        assert!(may_serve_on_error(&stored, &CachePolicy::default(), Validity::Valid, after(61 * SECOND)));
    }

    #[test]
    fn staleness_counts_from_the_soft_purge_where_that_is_earlier() {
        let stored = facts("max-age=60, stale-while-revalidate=10");
        let at = |validity, ms| ask(&stored, &CachePolicy::default(), validity, after(ms));
        let why = StaleWhy::WhileRevalidate;
        assert_eq!(at(soft(5_000), 5_000), Reuse::StaleNow { age_ms: 5_000, ttl_ms: 0, why });
        assert_eq!(at(soft(5_000), 15_000), Reuse::StaleNow { age_ms: 15_000, ttl_ms: -10_000, why });
        assert_eq!(at(soft(5_000), 15_001), Reuse::Revalidate { why: MustAsk::SoftPurged, age_ms: 15_001, ttl_ms: -10_001 });
        assert_eq!(at(soft(65_000), 69_000), Reuse::StaleNow { age_ms: 69_000, ttl_ms: -9_000, why });
        assert_eq!(at(soft(65_000), 71_000), Reuse::Revalidate { why: MustAsk::Stale, age_ms: 71_000, ttl_ms: -11_000 });
    }

    #[test]
    fn a_soft_purge_does_not_lift_must_revalidate() {
        let stored = facts("max-age=60, stale-while-revalidate=10, stale-if-error=10, must-revalidate");
        let asked = ask(&stored, &CachePolicy::default(), soft(0), after(1));
        assert_eq!(asked, Reuse::Revalidate { why: MustAsk::SoftPurged, age_ms: 1, ttl_ms: -1 });
        assert!(!may_serve_on_error(&stored, &CachePolicy::default(), soft(0), after(1)));
        assert!(may_serve_on_error(&stored, &CachePolicy::default(), Validity::Valid, after(1)));
    }

    #[test]
    fn max_stale_does_not_reach_what_was_soft_purged() {
        let policy = CachePolicy { client_directives: ClientDirectives::Honour, ..CachePolicy::default() };
        let asked = Asked::get(&[("cache-control", "max-stale")]);
        let answer = |validity| reuse(asked.request(), &facts("max-age=60"), &policy, validity, after(61 * SECOND));
        assert_eq!(answer(Validity::Valid), Reuse::StaleNow { age_ms: 61_000, ttl_ms: -1_000, why: StaleWhy::MaxStale });
        assert_eq!(answer(soft(0)), Reuse::Revalidate { why: MustAsk::Stale, age_ms: 61_000, ttl_ms: -61_000 });
    }

    #[test]
    fn a_request_widens_the_error_window_only_where_honoured() {
        let asked = Asked::get(&[("cache-control", "stale-if-error=100")]);
        let serves = |client_directives, cache_control| {
            let policy = CachePolicy { client_directives, stale_if_error_ms: 0, ..CachePolicy::default() };
            may_serve_on_error_to(asked.request(), &facts(cache_control), &policy, Validity::Valid, after(99 * SECOND))
        };
        assert!(serves(ClientDirectives::Honour, "max-age=1"));
        assert!(!serves(ClientDirectives::Ignore, "max-age=1"));
        assert!(!serves(ClientDirectives::Honour, "max-age=1, must-revalidate"));
    }

    #[test]
    fn what_is_kept_is_what_can_still_be_used() {
        let policy = CachePolicy { stale_if_error_ms: 5_000, keep_stale_ms: 9_000, ..CachePolicy::default() };
        assert_eq!(keep_ms(&facts("max-age=60"), &policy, NOW), 69_000);
        assert_eq!(keep_ms(&facts("max-age=60"), &policy, after(61_000)), 8_000);
        assert_eq!(keep_ms(&facts("max-age=60"), &policy, after(70_000)), 0);
        assert_eq!(keep_ms(&unvalidated("max-age=60"), &policy, NOW), 65_000);
        assert_eq!(keep_ms(&unvalidated("max-age=60, must-revalidate"), &policy, NOW), 60_000);
        assert_eq!(keep_ms(&unvalidated("max-age=60, stale-while-revalidate=30"), &policy, NOW), 90_000);
        assert_eq!(keep_ms(&facts("max-age=60, no-cache"), &policy, NOW), 69_000);
        assert_eq!(keep_ms(&unvalidated("max-age=60, no-cache"), &policy, NOW), 0);
    }

    fn response_directives() -> impl Strategy<Value = String> {
        let one = prop_oneof![
            (0u32..20).prop_map(|n| format!("max-age={n}")),
            (0u32..20).prop_map(|n| format!("s-maxage={n}")),
            (0u32..20).prop_map(|n| format!("stale-while-revalidate={n}")),
            (0u32..20).prop_map(|n| format!("stale-if-error={n}")),
            prop::sample::select(vec!["must-revalidate", "proxy-revalidate", "no-cache", "immutable", "public"]).prop_map(Into::into),
        ];
        prop::collection::vec(one, 0..5).prop_map(|all| all.join(", "))
    }

    fn request_directives() -> impl Strategy<Value = String> {
        let one = prop_oneof![
            (0u32..20).prop_map(|n| format!("max-age={n}")),
            (0u32..20).prop_map(|n| format!("min-fresh={n}")),
            (0u32..20).prop_map(|n| format!("max-stale={n}")),
            prop::sample::select(vec!["max-stale", "no-cache", "no-store"]).prop_map(Into::into),
        ];
        prop::collection::vec(one, 0..4).prop_map(|all| all.join(", "))
    }

    fn validities() -> impl Strategy<Value = Validity> {
        prop_oneof![Just(Validity::Valid), (0u64..40_000).prop_map(soft), Just(Validity::Unconfirmed), Just(Validity::Purged)]
    }

    proptest! {
        #[test]
        fn nothing_stale_is_served_where_it_is_forbidden(
            stored in response_directives(), asked in request_directives(), validity in validities(), ms in 0u64..60_000,
        ) {
            let facts = facts(&stored);
            let policy = CachePolicy {
                client_directives: ClientDirectives::Honour, stale_while_revalidate_ms: 30_000, ..CachePolicy::default()
            };
            let asked = Asked::get(&[("cache-control", &asked)]);
            let answer = reuse(asked.request(), &facts, &policy, validity, after(ms));
            let on_error = may_serve_on_error_to(asked.request(), &facts, &policy, validity, after(ms));
            let lifetime = facts.lifetime(&policy).ms;
            let past = facts.age_ms(after(ms)) >= lifetime || matches!(validity, Validity::Soft { since_mono_ms } if since_mono_ms <= after(ms).mono_ms);
            let strict = ["must-revalidate", "proxy-revalidate", "s-maxage", "no-cache"].iter().any(|one| stored.contains(one));
            let unusable = matches!(validity, Validity::Purged | Validity::Unconfirmed);
            if strict && past || stored.contains("no-cache") || unusable {
                prop_assert!(!matches!(answer, Reuse::StaleNow { .. } | Reuse::Fresh { .. }), "{answer:?}");
                prop_assert!(!on_error);
            }
            if let Reuse::Fresh { age_ms, ttl_ms } = answer {
                prop_assert!(age_ms < lifetime && ttl_ms > 0 && on_error);
            }
        }

        #[test]
        fn a_client_that_is_not_honoured_changes_nothing(
            stored in response_directives(), asked in request_directives(), validity in validities(), ms in 0u64..60_000,
        ) {
            let (facts, policy) = (facts(&stored), CachePolicy::default());
            let asked = Asked::get(&[("cache-control", &asked), ("pragma", "no-cache")]);
            let answer = reuse(asked.request(), &facts, &policy, validity, after(ms));
            prop_assert_eq!(answer, ask(&facts, &policy, validity, after(ms)));
        }

        #[test]
        fn an_honoured_client_gets_fresh_only_where_everybody_does(
            stored in response_directives(), asked in request_directives(), validity in validities(), ms in 0u64..60_000,
        ) {
            let facts = facts(&stored);
            let policy = CachePolicy { client_directives: ClientDirectives::Honour, ..CachePolicy::default() };
            let asked = Asked::get(&[("cache-control", &asked)]);
            let answer = reuse(asked.request(), &facts, &policy, validity, after(ms));
            if matches!(answer, Reuse::Fresh { .. }) {
                prop_assert_eq!(answer, ask(&facts, &CachePolicy::default(), validity, after(ms)));
            }
        }

        #[test]
        fn past_its_keep_a_response_has_no_use(stored in response_directives(), ms in 0u64..60_000) {
            let facts = unvalidated(&stored);
            let policy = CachePolicy { stale_while_revalidate_ms: 3_000, stale_if_error_ms: 4_000, ..CachePolicy::default() };
            let later = after(ms + keep_ms(&facts, &policy, after(ms)) + 1);
            let answer = ask(&facts, &policy, Validity::Valid, later);
            prop_assert!(matches!(answer, Reuse::Revalidate { .. }), "{answer:?}");
            prop_assert!(!may_serve_on_error(&facts, &policy, Validity::Valid, later));
        }
    }
}
