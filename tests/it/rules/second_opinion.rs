//! What the crate http-cache-semantics says of the same exchange, as a second opinion: whether a response may be stored,
//! how long it is fresh, whether it answers a request, and whether a 304 confirms it.
//!
//! Both must agree but for the disagreements of [`Dispute`], each of which is shown to be one, with the reason why ours
//! is right. Only GET is asked: it stores responses to HEAD and POST, we do not.

use super::reuse::{Asked, NOW, fields};
use http_cache_semantics::{AfterResponse, BeforeRequest, CacheOptions, CachePolicy as Theirs};
use proptest::prelude::*;
use std::time::{Duration, SystemTime};
use tiercel::semantics::freshness::Facts;
use tiercel::semantics::policy::{CachePolicy, ClientDirectives, SetCookie};
use tiercel::semantics::reuse::{Reuse, StaleWhy, Validity, reuse};
use tiercel::semantics::storage::{Storage, may_store};
use tiercel::semantics::validation::selects;
use tiercel::semantics::{Fields, Response, StatusCode, date};

/// Where we differ, and are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dispute {
    /// §3 asks for a status that is understood only of 206, 304 and with must-understand; it has a list for all.
    StatusNeedNotBeUnderstood,
    /// §5.2.2.3: must-understand lifts no-store where the status is understood; it does not know the directive.
    MustUnderstand,
    /// §3: "such responses are not usually useful to store": stale at once and without a validator.
    NothingToUse,
    /// 405, 414 and 501 may be caused by an odd request; without explicit freshness they are not stored.
    ErrorGuard,
    /// §5.2.2.7: private with field names limits those fields alone.
    PrivateFields,
    /// §5.2.2.4: no-cache with field names withholds those fields alone.
    NoCacheFields,
    /// §5.2: directives are compared without regard to case.
    Case,
    /// §5.2: a comma in a quoted string ends no directive.
    QuotedComma,
    /// §4.2.1: a directive given twice with other values makes stale; it adds must-revalidate to the first.
    Repeated,
    /// §5.4: Pragma means nothing in a response.
    Pragma,
    /// §4.1: Vary with * can never match, so that it is not stored; it stores it, to no use.
    VaryStar,
    /// §5.2.2.8: proxy-revalidate is about stale responses; it takes the lifetime as zero.
    ProxyRevalidate,
    /// §7.3: Set-Cookie does not inhibit caching; here the policy says "store".
    SetCookie,
    /// §4.2.3: the age is at least the apparent age; it does not look at Date.
    ApparentAge,
    /// Heuristics stop at what may be personal: a request with Authorization.
    PersonalHeuristic,
    /// RFC 8246 §2.1: a reload does not revalidate what is immutable.
    Immutable,
    /// A client that sends max-age=0 means to ask, at whatever age.
    MaxAgeZero,
    /// §4.2.4: max-stale lifts neither proxy-revalidate, nor s-maxage, nor no-cache.
    MaxStaleLiftsNothing,
    /// §5.2.1.2: stale "by no more than" the seconds of max-stale; it wants less.
    MaxStaleToTheSecond,
    /// RFC 5861 §3: stale-while-revalidate; it does not know the directive.
    WhileRevalidate,
}

/// One exchange and a later request.
#[derive(Debug, Clone)]
struct Case {
    status: u16,
    asked: Vec<(&'static str, String)>,
    answered: Vec<(&'static str, String)>,
    /// Cache-Control of the later request.
    again: String,
    seconds: u64,
}

fn said(lines: &[(&'static str, String)]) -> Fields {
    let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
    fields(&lines)
}

fn at(seconds: i64) -> String {
    String::from_utf8(date::format(NOW.wall_ms + seconds * 1000).to_vec()).expect("ASCII")
}

fn when(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(NOW.wall_ms.unsigned_abs()) + Duration::from_secs(seconds)
}

/// What both say: stored; seconds of freshness left at the later request; served to it without asking.
#[derive(Debug, PartialEq, Eq)]
struct Opinion {
    stored: bool,
    ttl: Option<u64>,
    served: Option<bool>,
}

impl Case {
    fn value(&self, name: &str) -> Option<&str> {
        self.answered.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
    fn has(&self, directive: &str) -> bool {
        self.value("cache-control").is_some_and(|value| value.to_ascii_lowercase().contains(directive))
    }

    fn policy() -> CachePolicy {
        CachePolicy {
            set_cookie: SetCookie::Store,
            client_directives: ClientDirectives::Honour,
            heuristic_max_ms: u64::MAX,
            ..CachePolicy::default()
        }
    }

    fn facts(&self) -> Facts {
        let asked: Vec<_> = self.asked.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answered = said(&self.answered);
        let response = Response { status: StatusCode::from_u16(self.status).expect("a status"), fields: &answered };
        Facts::new(Asked::get(&asked).request(), response, &Self::policy().targeted, NOW, NOW)
    }

    /// The later request: as the first, but for Cache-Control.
    fn later(&self) -> Vec<(&'static str, String)> {
        let mut lines = self.asked.clone();
        if !self.again.is_empty() {
            lines.push(("cache-control", self.again.clone()));
        }
        lines
    }

    fn ours(&self) -> (Opinion, Option<StaleWhy>) {
        let policy = Self::policy();
        let (answered, facts) = (said(&self.answered), self.facts());
        let lines: Vec<_> = self.asked.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let asked = Asked::get(&lines);
        let response = Response { status: StatusCode::from_u16(self.status).expect("a status"), fields: &answered };
        if may_store(asked.request(), response, &facts, &policy) != Storage::Stored {
            return (Opinion { stored: false, ttl: None, served: None }, None);
        }
        let now = NOW.plus_ms(self.seconds * 1000);
        let later = self.later();
        let lines: Vec<_> = later.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = reuse(Asked::get(&lines).request(), &facts, &policy, Validity::Valid, now);
        let why = if let Reuse::StaleNow { why, .. } = answer { Some(why) } else { None };
        let served = matches!(answer, Reuse::Fresh { .. } | Reuse::StaleNow { .. });
        let lifetime = if facts.directives.no_cache { 0 } else { facts.lifetime(&policy).ms };
        let ttl = lifetime.saturating_sub(facts.age_ms(now)) / 1000;
        (Opinion { stored: true, ttl: Some(ttl), served: Some(served) }, why)
    }

    fn request(lines: &[(&'static str, String)]) -> http::Request<()> {
        let head = http::Request::builder().uri("http://shop.example/a").header("host", "shop.example");
        lines.iter().fold(head, |head, (name, value)| head.header(*name, value)).body(()).expect("a request")
    }

    fn them(&self) -> Theirs {
        let head =
            self.answered.iter().fold(http::Response::builder().status(self.status), |head, (name, value)| head.header(*name, value));
        let options = CacheOptions { immutable_min_time_to_live: Duration::ZERO, ..CacheOptions::default() };
        Theirs::new_options(&Self::request(&self.asked), &head.body(()).expect("a response"), when(0), options)
    }

    fn theirs(&self) -> Opinion {
        let them = self.them();
        if !them.is_storable() {
            return Opinion { stored: false, ttl: None, served: None };
        }
        let now = when(self.seconds);
        let served = matches!(them.before_request(&Self::request(&self.later()), now), BeforeRequest::Fresh(_));
        Opinion { stored: true, ttl: Some(them.time_to_live(now).as_secs()), served: Some(served) }
    }

    /// The first of the disputes that this case is about.
    fn dispute(&self) -> Option<Dispute> {
        self.dispute_on_reading()
            .or_else(|| self.dispute_on_storing())
            .or_else(|| self.dispute_on_freshness())
            .or_else(|| self.dispute_on_reuse())
    }

    fn dispute_on_reading(&self) -> Option<Dispute> {
        let value = self.value("cache-control").unwrap_or_default();
        let names: Vec<&str> = value.split(',').filter_map(|part| part.split('=').next()).map(str::trim).collect();
        let repeated = ["max-age", "s-maxage"].iter().any(|name| names.iter().filter(|known| *known == name).count() > 1);
        if value.chars().any(char::is_uppercase) {
            Some(Dispute::Case)
        } else if value.contains("ext=\"") {
            Some(Dispute::QuotedComma)
        } else if repeated {
            Some(Dispute::Repeated)
        } else if self.value("pragma").is_some() && value.is_empty() {
            Some(Dispute::Pragma)
        } else if self.has("private=\"") {
            Some(Dispute::PrivateFields)
        } else if self.has("no-cache=\"") {
            Some(Dispute::NoCacheFields)
        } else if self.has("must-understand") {
            Some(Dispute::MustUnderstand)
        } else {
            None
        }
    }

    fn dispute_on_storing(&self) -> Option<Dispute> {
        let explicit = self.has("max-age") || self.has("s-maxage") || self.value("expires").is_some();
        let validator = self.value("etag").is_some() || self.value("last-modified").is_some();
        if self.value("vary") == Some("*") {
            Some(Dispute::VaryStar)
        } else if matches!(self.status, 405 | 414 | 501) && !explicit {
            Some(Dispute::ErrorGuard)
        } else if !matches!(self.status, 200 | 203 | 204 | 300..=303 | 307 | 308 | 404 | 405 | 410 | 414 | 501) {
            Some(Dispute::StatusNeedNotBeUnderstood)
        } else if !validator && self.is_useless() {
            Some(Dispute::NothingToUse)
        } else {
            None
        }
    }

    fn is_useless(&self) -> bool {
        let facts = self.facts();
        let directives = &facts.directives;
        let window =
            if directives.must_revalidate || directives.proxy_revalidate { None } else { directives.rare().stale_while_revalidate };
        let usable_ms = facts.lifetime(&Self::policy()).ms + 1000 * u64::from(window.unwrap_or(0));
        directives.no_cache || usable_ms <= facts.initial_age_ms
    }

    fn dispute_on_freshness(&self) -> Option<Dispute> {
        let facts = self.facts();
        let said_age: u64 = self.value("age").and_then(|value| value.parse().ok()).unwrap_or(0);
        let personal = facts.authorized && facts.explicit_lifetime().is_none();
        if self.has("proxy-revalidate") {
            Some(Dispute::ProxyRevalidate)
        } else if self.value("set-cookie").is_some() {
            Some(Dispute::SetCookie)
        } else if facts.initial_age_ms > said_age * 1000 {
            Some(Dispute::ApparentAge)
        } else if personal {
            Some(Dispute::PersonalHeuristic)
        } else {
            None
        }
    }

    fn dispute_on_reuse(&self) -> Option<Dispute> {
        let (opinion, why) = self.ours();
        let max_stale = self.again.contains("max-stale");
        if opinion.stored && why == Some(StaleWhy::WhileRevalidate) {
            Some(Dispute::WhileRevalidate)
        } else if self.again.contains("max-age=0") {
            Some(Dispute::MaxAgeZero)
        } else if self.again.contains("max-age") && self.has("immutable") {
            Some(Dispute::Immutable)
        } else if max_stale && (self.has("s-maxage") || self.has("no-cache")) {
            Some(Dispute::MaxStaleLiftsNothing)
        } else if max_stale && why == Some(StaleWhy::MaxStale) {
            Some(Dispute::MaxStaleToTheSecond)
        } else {
            None
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let directives = prop::sample::subsequence(
        vec![
            "max-age=0",
            "max-age=60",
            "s-maxage=60",
            "s-maxage=0",
            "no-store",
            "no-cache",
            "private",
            "public",
            "must-revalidate",
            "proxy-revalidate",
            "immutable",
            "must-understand",
            "stale-while-revalidate=30",
            "private=\"x-a\"",
            "no-cache=\"x-a\"",
            "Max-Age=9",
            "ext=\"no-store, max-age=7\"",
            "unknown",
            "max-age=abc",
            "max-age=\"60\"",
        ],
        0..4,
    );
    let directives = directives.prop_map(|directives| directives.join(", "));
    let offset = || prop::sample::select(vec![-100_000_i64, -3000, -60, 0, 30, 60, 100_000]);
    let asked = (prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    let answered = (
        prop::option::weighted(0.8, directives),
        prop::option::weighted(0.3, offset()),
        prop::option::weighted(0.7, prop::sample::select(vec![0_i64, 0, 0, 100, -100])),
        prop::option::weighted(0.3, prop::sample::select(vec!["0", "30", "100", "99999"])),
        prop::option::weighted(0.4, offset()),
        prop::bool::weighted(0.5),
        prop::option::weighted(
            0.2,
            prop::sample::select(vec![("set-cookie", "a=b"), ("pragma", "no-cache"), ("vary", "*"), ("vary", "x-a")]),
        ),
    );
    let again =
        prop::sample::select(vec!["", "", "", "no-cache", "max-age=0", "max-age=40", "max-stale", "max-stale=40", "min-fresh=20", "x=1"]);
    let status = prop::sample::select(vec![200_u16, 200, 200, 203, 204, 206, 301, 302, 307, 404, 405, 410, 414, 500, 501, 503]);
    (status, asked, answered, again, prop::sample::select(vec![0_u64, 1, 29, 30, 59, 60, 61, 90, 110, 10_000])).prop_map(
        |(status, (authorized, cookie), (control, expires, dated, age, modified, tagged, other), again, seconds)| {
            let mut asked = Vec::new();
            asked.extend(authorized.then(|| ("authorization", "Basic YTpi".to_owned())));
            asked.extend(cookie.then(|| ("x-a", "1".to_owned())));
            let mut answered = Vec::new();
            answered.extend(control.filter(|value| !value.is_empty()).map(|value| ("cache-control", value)));
            answered.extend(expires.map(|seconds| ("expires", at(seconds))));
            answered.extend(dated.map(|seconds| ("date", at(seconds))));
            answered.extend(age.map(|value| ("age", value.to_owned())));
            answered.extend(modified.map(|seconds| ("last-modified", at(seconds))));
            answered.extend(tagged.then(|| ("etag", "\"a\"".to_owned())));
            answered.extend(other.map(|(name, value)| (name, value.to_owned())));
            Case { status, asked, answered, again: again.to_owned(), seconds }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn both_agree_but_for_the_known_disputes(case in cases()) {
        let (ours, theirs) = (case.ours().0, case.theirs());
        prop_assert!(ours == theirs || case.dispute().is_some(), "ours: {:?}, theirs: {:?}", ours, theirs);
    }
}

/// 200 to a plain request, with these fields; asked again after so many seconds.
fn case(answered: &[(&'static str, &str)], again: &str, seconds: u64) -> Case {
    let answered = answered.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Case { status: 200, asked: Vec::new(), answered, again: again.to_owned(), seconds }
}

fn control(value: &str) -> Case {
    case(&[("cache-control", value), ("etag", "\"a\"")], "", 1)
}

/// Ours: not stored, asked, or served.
fn word(opinion: &Opinion) -> &'static str {
    match opinion.served {
        None => "not stored",
        Some(false) => "asks",
        Some(true) => "served",
    }
}

#[test]
fn each_known_dispute_is_one_and_ours_is_the_answer_of_the_standard() {
    let (old, older) = (at(-3000), at(-100_000));
    let authorized = Case {
        asked: vec![("authorization", "Basic YTpi".to_owned())],
        ..case(&[("cache-control", "public"), ("last-modified", &older)], "", 1)
    };
    let error = Case { status: 405, ..case(&[("last-modified", &older)], "", 1) };
    let teapot = Case { status: 299, ..control("max-age=60") };
    for (dispute, case, want) in [
        (Dispute::StatusNeedNotBeUnderstood, teapot, "served"),
        (Dispute::MustUnderstand, control("no-store, must-understand, max-age=60"), "served"),
        (Dispute::NothingToUse, case(&[("cache-control", "max-age=0")], "", 1), "not stored"),
        (Dispute::ErrorGuard, error, "not stored"),
        (Dispute::PrivateFields, control("private=\"x-a\", max-age=60"), "served"),
        (Dispute::NoCacheFields, control("no-cache=\"x-a\", max-age=60"), "served"),
        (Dispute::Case, control("No-Store, max-age=60"), "not stored"),
        (Dispute::QuotedComma, Case { seconds: 9, ..control("ext=\"a, max-age=7\", max-age=60") }, "served"),
        (Dispute::Repeated, control("max-age=60, max-age=9"), "asks"),
        (Dispute::Pragma, case(&[("pragma", "no-cache"), ("expires", &at(60)), ("date", &at(0))], "", 1), "served"),
        (Dispute::VaryStar, case(&[("cache-control", "max-age=60"), ("vary", "*")], "", 1), "not stored"),
        (Dispute::ProxyRevalidate, control("proxy-revalidate, max-age=60"), "served"),
        (Dispute::SetCookie, case(&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], "", 1), "served"),
        (Dispute::ApparentAge, case(&[("cache-control", "max-age=60"), ("date", &old), ("etag", "\"a\"")], "", 1), "asks"),
        (Dispute::PersonalHeuristic, authorized, "asks"),
        (Dispute::Immutable, Case { again: "max-age=1".to_owned(), seconds: 9, ..control("max-age=60, immutable") }, "served"),
        (Dispute::MaxAgeZero, Case { again: "max-age=0".to_owned(), seconds: 0, ..control("max-age=60") }, "asks"),
        (Dispute::MaxStaleLiftsNothing, Case { again: "max-stale".to_owned(), seconds: 61, ..control("s-maxage=60") }, "asks"),
        (Dispute::MaxStaleToTheSecond, Case { again: "max-stale=5".to_owned(), seconds: 65, ..control("max-age=60") }, "served"),
        (Dispute::WhileRevalidate, Case { seconds: 61, ..control("max-age=60, stale-while-revalidate=9") }, "served"),
    ] {
        let (ours, theirs) = (case.ours().0, case.theirs());
        assert_eq!(case.dispute(), Some(dispute), "{case:?}");
        assert_eq!(word(&ours), want, "{dispute:?}");
        assert_ne!(ours, theirs, "{dispute:?}: it has come round, so that this is no dispute any more");
    }
}

/// Validators of a stored response or a 304.
type Validators = (Option<&'static str>, Option<i64>);

fn validators(with: Validators) -> Vec<(&'static str, String)> {
    let tag = with.0.map(|tag| ("etag", tag.to_owned()));
    tag.into_iter().chain(with.1.map(|seconds| ("last-modified", at(seconds)))).collect()
}

/// Whether a 304 with these validators confirms what was stored with those: ours, theirs.
fn confirms(stored: Validators, received: Validators) -> (bool, bool) {
    let mut answered = validators(stored);
    answered.extend([("date", at(0)), ("cache-control", "max-age=60".to_owned())]);
    let case = Case { status: 200, asked: Vec::new(), answered, again: String::new(), seconds: 0 };
    let received = validators(received);
    let head = received.iter().fold(http::Response::builder().status(304), |head, (name, value)| head.header(*name, value));
    let after = case.them().after_response(&Case::request(&[]), &head.body(()).expect("a response"), when(0));
    (selects(&said(&received), &said(&case.answered), &case.facts()), matches!(after, AfterResponse::NotModified(..)))
}

/// Where we differ on a 304.
fn disputed(stored: Validators, received: Validators) -> bool {
    let weak = |tag: Option<&str>| tag.is_some_and(|tag| tag.starts_with("W/"));
    // §4.3.3: a 304 without validators means the response that the request named; many origins leave them out.
    let bare = received == (None, None);
    // RFC 9110 §8.8.3.2: a weak tag matches none strongly; it drops the W/ of the stored one.
    let weak_for_strong = weak(stored.0) && received.0.is_some() && !weak(received.0);
    // §4.3.4: "one of those same strong validators" is enough, and a Last-Modified well before Date is one (RFC 9110
    // §8.8.2.2); it looks at the date only where there is no tag. So too where only the tag is missing from the 304.
    let strong_date = received.1.is_some();
    bare || weak_for_strong || strong_date
}

proptest! {
    #[test]
    fn both_agree_on_what_a_304_confirms(
        stored in (prop::option::of(prop::sample::select(vec!["\"a\"", "W/\"a\"", "\"b\""])), prop::option::of(prop::sample::select(vec![-100_i64, -90]))),
        received in (prop::option::of(prop::sample::select(vec!["\"a\"", "W/\"a\"", "\"b\"", "W/\"b\""])), prop::option::of(prop::sample::select(vec![-100_i64, -90]))),
    ) {
        let (ours, theirs) = confirms(stored, received);
        prop_assert!(ours == theirs || disputed(stored, received), "ours: {}, theirs: {}", ours, theirs);
    }
}

#[test]
fn each_dispute_on_a_304_is_one() {
    for (rule, stored, received, ours) in [
        ("4.3.3: without validators", (Some("\"a\""), None), (None, None), true),
        ("9110 8.8.3.2: weak for strong", (Some("W/\"a\""), None), (Some("\"a\""), None), false),
        ("4.3.4: the date is strong too", (Some("\"b\""), Some(-100)), (Some("\"a\""), Some(-100)), true),
    ] {
        assert_eq!(confirms(stored, received), (ours, !ours), "{rule}");
        assert!(disputed(stored, received), "{rule}");
    }
}
