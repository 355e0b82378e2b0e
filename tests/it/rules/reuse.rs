//! RFC 9111 §4, §4.2.4, §5.2; RFC 5861; RFC 8246: may a stored response be used?

use tiercel::semantics::freshness::Facts;
use tiercel::semantics::policy::{CachePolicy, ClientDirectives};
use tiercel::semantics::reuse::{MustAsk, Reuse, StaleWhy, Unusable, Validity, may_serve_on_error, only_if_cached, reuse};
use tiercel::semantics::target::{Scheme, Target};
use tiercel::semantics::targeted::TargetList;
use tiercel::semantics::{Fields, Method, Now, Request, Response, StatusCode};

pub(super) const NOW: Now = Now { wall_ms: 1_700_000_000_000, mono_ms: 5_000_000 };

/// Field lines as a table has them.
pub(super) type Lines<'a> = &'a [(&'a str, &'a str)];

pub(super) fn fields(lines: Lines<'_>) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in lines {
        fields.push(name, value).expect("a valid line");
    }
    fields
}

/// A request with its parts.
pub(super) struct Asked {
    pub method: Method,
    target: Target,
    fields: Fields,
}

impl Asked {
    pub(super) fn get(lines: Lines<'_>) -> Self {
        Self::new(&Method::GET, lines)
    }
    pub(super) fn new(method: &Method, lines: Lines<'_>) -> Self {
        let target = Target::parse(Scheme::Http, b"/", &fields(&[("host", "shop.example")]), false).expect("a valid target");
        Self { method: method.clone(), target, fields: fields(lines) }
    }
    pub(super) fn request(&self) -> Request<'_> {
        Request { method: &self.method, target: &self.target, fields: &self.fields }
    }
}

/// Facts of a 200 that was asked for and received at [`NOW`].
pub(super) fn facts(asked: Lines<'_>, stored: Lines<'_>) -> Facts {
    let stored = fields(stored);
    Facts::new(Asked::get(asked).request(), Response { status: StatusCode::OK, fields: &stored }, &TargetList::default(), NOW, NOW)
}

fn after(seconds: u64) -> Now {
    NOW.plus_ms(seconds * 1000)
}

fn word(answer: Reuse) -> &'static str {
    match answer {
        Reuse::Fresh { .. } => "fresh",
        Reuse::StaleNow { why: StaleWhy::WhileRevalidate, .. } => "while-revalidate",
        Reuse::StaleNow { why: StaleWhy::MaxStale, .. } => "max-stale",
        Reuse::Revalidate { why: MustAsk::Stale, .. } => "ask: stale",
        Reuse::Revalidate { why: MustAsk::SoftPurged, .. } => "ask: soft-purged",
        Reuse::Revalidate { why: MustAsk::Unconfirmed, .. } => "ask: unconfirmed",
        Reuse::Revalidate { why: MustAsk::NoCache, .. } => "ask: no-cache",
        Reuse::Revalidate { why: MustAsk::Request, .. } => "ask: request",
        Reuse::Unusable(Unusable::Purged) => "unusable: purged",
        Reuse::Unusable(Unusable::Forbidden) => "unusable: forbidden",
        Reuse::Unusable(Unusable::Authorization) => "unusable: authorization",
        Reuse::Unusable(Unusable::Policy) => "unusable: policy",
        Reuse::Unusable(Unusable::VaryStar) => "unusable: vary",
    }
}

/// Section and sentence; Cache-Control of the stored response; Cache-Control of the request; seconds since; answer.
type Row = (&'static str, &'static str, &'static str, u64, &'static str);

fn check(rows: &[Row], policy: &CachePolicy) {
    for (rule, stored, asked, seconds, want) in rows {
        let facts = facts(&[], &[("cache-control", stored), ("etag", "\"a\"")]);
        let asked = if asked.is_empty() { Asked::get(&[]) } else { Asked::get(&[("cache-control", asked)]) };
        let answer = reuse(asked.request(), &facts, policy, Validity::Valid, after(*seconds));
        assert_eq!(word(answer), *want, "{rule} ({stored}) after {seconds} s");
    }
}

#[test]
fn directives_of_the_response_are_obeyed() {
    let rows: [Row; 25] = [
        ("9111 4: fresh may be reused", "max-age=60", "", 59, "fresh"),
        ("9111 4.2: fresh only while the lifetime is greater than the age", "max-age=60", "", 60, "ask: stale"),
        ("9111 4: stale needs validation", "max-age=60", "", 61, "ask: stale"),
        ("9111 4: no-cache is not reused without validation", "max-age=60, no-cache", "", 0, "ask: no-cache"),
        (
            "9111 5.2.2.4: no-cache, even by caches that send stale",
            "max-age=1, no-cache, stale-while-revalidate=60",
            "",
            2,
            "ask: no-cache",
        ),
        ("9111 5.2.2.4: with field names it may be used without those", "max-age=60, no-cache=\"x-a\"", "", 0, "fresh"),
        ("9111 5.2.2.5: no-store must not satisfy another request", "max-age=60, no-store", "", 0, "unusable: forbidden"),
        ("9111 5.2.2.3: must-understand sets no-store aside", "max-age=60, no-store, must-understand", "", 0, "fresh"),
        ("9111 5.2.2.7: private is for a single user", "max-age=60, private", "", 0, "unusable: forbidden"),
        ("9111 5.2.2.7: with field names only those are limited", "max-age=60, private=\"x-a\"", "", 0, "fresh"),
        ("9111 5.2.2.2: must-revalidate is reusable while fresh", "max-age=60, must-revalidate", "", 59, "fresh"),
        ("9111 5.2.2.2: must-revalidate once stale", "max-age=1, must-revalidate, stale-while-revalidate=60", "", 2, "ask: stale"),
        ("9111 5.2.2.8: proxy-revalidate once stale", "max-age=1, proxy-revalidate, stale-while-revalidate=60", "", 2, "ask: stale"),
        ("9111 5.2.2.10: s-maxage overrides max-age", "max-age=1, s-maxage=60", "", 59, "fresh"),
        ("9111 5.2.2.10: s-maxage has the meaning of proxy-revalidate", "s-maxage=1, stale-while-revalidate=60", "", 2, "ask: stale"),
        ("9111 4.2.4: no stale without permission", "max-age=1", "", 2, "ask: stale"),
        ("5861 3: stale up to the seconds indicated", "max-age=1, stale-while-revalidate=4", "", 1, "while-revalidate"),
        ("5861 3: stale up to the seconds indicated", "max-age=1, stale-while-revalidate=4", "", 5, "while-revalidate"),
        ("5861 3: not after them", "max-age=1, stale-while-revalidate=4", "", 6, "ask: stale"),
        ("5861 3: a window of zero is none", "max-age=1, stale-while-revalidate=0", "", 1, "ask: stale"),
        ("5861 3: stale from the start", "max-age=0, stale-while-revalidate=4", "", 0, "while-revalidate"),
        ("5861 4: stale-if-error does not affect freshness", "max-age=1, stale-if-error=60", "", 2, "ask: stale"),
        ("8246 2: immutable is fresh as long as anything else", "max-age=60, immutable", "", 59, "fresh"),
        ("8246 2: stale is revalidated in spite of immutable", "max-age=60, immutable", "", 61, "ask: stale"),
        ("9111 5.2.1: request directives are advisory, ours are ignored", "max-age=60", "no-cache, max-age=0, min-fresh=90", 1, "fresh"),
    ];
    check(&rows, &CachePolicy::default());
}

#[test]
fn directives_of_the_request_are_obeyed_where_the_policy_honours_them() {
    let rows: [Row; 24] = [
        ("9111 5.2.1.1: older than max-age", "max-age=60", "max-age=5", 6, "ask: request"),
        ("9111 5.2.1.1: as old as max-age", "max-age=60", "max-age=5", 5, "fresh"),
        ("9111 5.2.1.1: max-age of 0 asks at any age", "max-age=60", "max-age=0", 0, "ask: request"),
        ("9111 5.2.1.1: max-age does not lengthen freshness", "max-age=60", "max-age=600", 61, "ask: stale"),
        ("9111 5.2.1.1: with max-age no stale is wished", "max-age=1, stale-while-revalidate=60", "max-age=5", 2, "ask: stale"),
        ("9111 5.2.1.1: unless max-stale is there too", "max-age=1", "max-age=5, max-stale=5", 2, "max-stale"),
        ("9111 5.2.1.1: max-age still counts beside max-stale", "max-age=1", "max-age=5, max-stale=50", 6, "ask: stale"),
        ("9111 5.2.1.2: stale by no more than max-stale", "max-age=60", "max-stale=5", 65, "max-stale"),
        ("9111 5.2.1.2: stale by more", "max-age=60", "max-stale=5", 66, "ask: stale"),
        ("9111 5.2.1.2: without a value any age will do", "max-age=60", "max-stale", 1_000_000, "max-stale"),
        ("9111 5.2.1.2: max-stale of 0 allows nothing", "max-age=60", "max-stale=0", 60, "ask: stale"),
        ("9111 4.2.4: max-stale does not lift must-revalidate", "max-age=60, must-revalidate", "max-stale", 61, "ask: stale"),
        ("9111 4.2.4: max-stale does not lift proxy-revalidate", "max-age=60, proxy-revalidate", "max-stale", 61, "ask: stale"),
        ("9111 5.2.2.10: max-stale does not lift s-maxage", "s-maxage=60", "max-stale", 61, "ask: stale"),
        ("9111 5.2.2.4: max-stale does not lift no-cache", "max-age=60, no-cache", "max-stale", 1, "ask: no-cache"),
        ("5861 3: a refresh is owed where both allow stale", "max-age=1, stale-while-revalidate=9", "max-stale", 2, "while-revalidate"),
        ("9111 5.2.1.3: fresh for min-fresh", "max-age=60", "min-fresh=10", 50, "fresh"),
        ("9111 5.2.1.3: not fresh for min-fresh", "max-age=60", "min-fresh=10", 51, "ask: request"),
        ("9111 5.2.1.4: no-cache asks the origin", "max-age=60", "no-cache", 0, "ask: request"),
        ("9111 5.2.1.4: no-cache wants no stale", "max-age=1, stale-while-revalidate=60", "no-cache", 2, "ask: stale"),
        ("9111 5.2.1.5: no-store is not about what is stored", "max-age=60", "no-store", 1, "fresh"),
        ("8246 2.1: immutable skips revalidation on a reload", "max-age=60, immutable", "max-age=0", 1, "fresh"),
        ("8246 2.1: unless no-cache demands it", "max-age=60, immutable", "no-cache", 1, "ask: request"),
        ("9111 5.2.1.7: only-if-cached is no reason to ask", "max-age=60", "only-if-cached", 1, "fresh"),
    ];
    check(&rows, &CachePolicy { client_directives: ClientDirectives::Honour, ..CachePolicy::default() });
}

#[test]
fn the_policy_opens_windows_where_the_response_says_nothing() {
    let rows: [Row; 6] = [
        ("9111 4.2.4: configuration may permit stale", "max-age=60", "", 90, "while-revalidate"),
        ("9111 4.2.4: within its bound", "max-age=60", "", 91, "ask: stale"),
        ("5861 3: the response's window goes before", "max-age=60, stale-while-revalidate=5", "", 66, "ask: stale"),
        ("9111 5.2.2.2: never against must-revalidate", "max-age=60, must-revalidate", "", 61, "ask: stale"),
        ("9111 5.2.2.10: never against s-maxage", "s-maxage=60", "", 61, "ask: stale"),
        ("9111 5.2.2.4: never against no-cache", "max-age=60, no-cache", "", 61, "ask: no-cache"),
    ];
    check(&rows, &CachePolicy { stale_while_revalidate_ms: 30_000, ..CachePolicy::default() });
}

#[test]
fn authorization_needs_permission() {
    let credentials = [("authorization", "Basic YTpi")];
    let rows = [
        ("9111 3.5: not without a directive that allows it", "max-age=60", "unusable: authorization"),
        ("9111 3.5: public", "max-age=60, public", "fresh"),
        ("9111 3.5: must-revalidate", "max-age=60, must-revalidate", "fresh"),
        ("9111 3.5: s-maxage", "s-maxage=60", "fresh"),
        ("9111 3.5: proxy-revalidate has no such effect", "max-age=60, proxy-revalidate", "unusable: authorization"),
    ];
    for (rule, stored, want) in rows {
        let lines = [("cache-control", stored)];
        for (brought_by, asked_by) in [(&credentials[..], &[][..]), (&[], &credentials), (&credentials, &credentials)] {
            let facts = facts(brought_by, &lines);
            let answer = reuse(Asked::get(asked_by).request(), &facts, &CachePolicy::default(), Validity::Valid, NOW);
            assert_eq!(word(answer), want, "{rule}: stored by {brought_by:?}, asked by {asked_by:?}");
        }
    }
}

#[test]
fn purges_and_vary_star_make_unusable_or_stale() {
    let fresh: Lines<'_> = &[("cache-control", "max-age=60, stale-while-revalidate=10")];
    let soft = Validity::Soft { since_mono_ms: NOW.mono_ms };
    let rows = [
        ("9111 4.4: invalidated is removed", fresh, Validity::Purged, 0, "unusable: purged"),
        ("9111 4.4: or needs a validation", &[("cache-control", "max-age=60")], soft, 1, "ask: soft-purged"),
        ("5861 3: the window counts from the soft purge", fresh, soft, 10, "while-revalidate"),
        ("5861 3: and ends", fresh, soft, 11, "ask: soft-purged"),
        ("9111 4.1: Vary with * never matches", &[("cache-control", "max-age=60"), ("vary", "a, *")], Validity::Valid, 0, "unusable: vary"),
    ];
    for (rule, stored, validity, seconds, want) in rows {
        let answer = reuse(Asked::get(&[]).request(), &facts(&[], stored), &CachePolicy::default(), validity, after(seconds));
        assert_eq!(word(answer), want, "{rule}");
    }
}

#[test]
fn a_stale_response_stands_in_for_a_failed_origin() {
    let soft = Validity::Soft { since_mono_ms: NOW.mono_ms };
    let rows = [
        ("5861 4: within the window", "max-age=600, stale-if-error=1200", Validity::Valid, 900, true),
        ("5861 4: at its end", "max-age=600, stale-if-error=1200", Validity::Valid, 1800, true),
        ("5861 4: not past it", "max-age=600, stale-if-error=1200", Validity::Valid, 1801, false),
        ("5861 4: zero allows nothing", "max-age=600, stale-if-error=0", Validity::Valid, 601, false),
        ("9111 4.2.4: disconnected, within the bound of the policy", "max-age=600", Validity::Valid, 660, true),
        ("9111 4.2.4: beyond it", "max-age=600", Validity::Valid, 661, false),
        ("9111 5.2.2.2: must-revalidate while fresh", "max-age=600, must-revalidate", Validity::Valid, 599, true),
        ("9111 5.2.2.2: an error rather than stale", "max-age=600, must-revalidate, stale-if-error=9", Validity::Valid, 601, false),
        ("9111 5.2.2.8: proxy-revalidate likewise", "max-age=600, proxy-revalidate, stale-if-error=9", Validity::Valid, 601, false),
        ("9111 5.2.2.10: s-maxage likewise", "s-maxage=600, stale-if-error=9", Validity::Valid, 601, false),
        ("9111 5.2.2.4: no-cache even while fresh", "max-age=600, no-cache", Validity::Valid, 0, false),
        ("9111 5.2.2.4: no-cache with field names is no obstacle", "max-age=600, no-cache=\"x-a\"", Validity::Valid, 601, true),
        ("9111 4.4: not what was invalidated", "max-age=600", Validity::Purged, 0, false),
        ("5861 4: the window counts from a soft purge", "max-age=600, stale-if-error=9", soft, 9, true),
        ("5861 4: and ends", "max-age=600, stale-if-error=9", soft, 10, false),
    ];
    for (rule, stored, validity, seconds, want) in rows {
        let facts = facts(&[], &[("cache-control", stored)]);
        assert_eq!(may_serve_on_error(&facts, &CachePolicy::default(), validity, after(seconds)), want, "{rule}");
    }
}

#[test]
fn only_if_cached_is_seen_whatever_the_policy() {
    let rows = [
        ("9111 5.2.1.7", &[("cache-control", "only-if-cached")][..], true),
        (
            "9111 5.2: case-insensitive, among others, on any line",
            &[("cache-control", "x=1"), ("cache-control", "max-age=1, Only-If-Cached")],
            true,
        ),
        ("9111 5.2: not inside a quoted string", &[("cache-control", "x=\"only-if-cached\"")], false),
        ("9111 5.2.1.7", &[], false),
    ];
    for (rule, asked, want) in rows {
        assert_eq!(only_if_cached(Asked::get(asked).request()), want, "{rule} {asked:?}");
    }
}
