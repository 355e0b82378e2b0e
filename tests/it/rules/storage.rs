//! May a response be stored: RFC 9111 §3, §3.1, §3.5, §5.2, §7.3, and the guards of a shared cache.

use super::freshness::{at, facts_of, fields};
use http::{Method, StatusCode};
use tiercel::semantics::policy::{CachePolicy, SetCookie, Statuses, TtlRule};
use tiercel::semantics::storage::{HEAD_BYTES_MAX, NotStored, Storage, may_store, stored_fields};
use tiercel::semantics::{Fields, Request, Response, Target};

const DAY: i64 = 24 * 3_600_000;
const FRESH: (&str, &str) = ("Cache-Control", "max-age=60");

#[derive(Clone)]
struct Exchange<'a> {
    method: Method,
    url: &'a str,
    asked: Vec<(&'a str, &'a str)>,
    status: u16,
    policy: CachePolicy,
}

impl Default for Exchange<'_> {
    fn default() -> Self {
        Self { method: Method::GET, url: "http://shop.example/a", asked: vec![], status: 200, policy: CachePolicy::default() }
    }
}

impl Exchange<'_> {
    fn storage(&self, answered: &[(&str, &str)]) -> Storage {
        self.storage_of(&fields(answered))
    }
    fn storage_of(&self, answered: &Fields) -> Storage {
        let (target, asked) = (Target::from_url(self.url).unwrap(), fields(&self.asked));
        let request = Request { method: &self.method, target: &target, fields: &asked };
        let facts = facts_of(request, self.status, answered);
        let response = Response { status: StatusCode::from_u16(self.status).unwrap(), fields: answered };
        may_store(request, response, &facts, &self.policy)
    }
    fn stored_lines(&self, answered: &[(&str, &str)]) -> String {
        let (target, answered) = (Target::from_url(self.url).unwrap(), fields(answered));
        let request = Request { method: &self.method, target: &target, fields: &Fields::new() };
        let response = Response { status: StatusCode::from_u16(self.status).unwrap(), fields: &answered };
        let stored = stored_fields(response, &facts_of(request, self.status, &answered), &self.policy);
        String::from_utf8(stored.wire().to_vec()).unwrap()
    }
}

fn cache_control(value: &str) -> Storage {
    Exchange::default().storage(&[("Cache-Control", value), ("ETag", "\"x\"")])
}

use Storage::{Not, Stored};

#[test]
fn directives_of_the_response() {
    for (section, value, want) in [
        ("3 explicit freshness", "max-age=60", Stored),
        ("5.2.2.5 no-store", "no-store, max-age=60", Not(NotStored::NoStore)),
        ("5.2.2.5 in any case", "No-STORE", Not(NotStored::NoStore)),
        ("5.2.2.5 in broken syntax", "max-age=60; no-store", Not(NotStored::NoStore)),
        ("5.2.2.7 private", "private, max-age=60", Not(NotStored::Private)),
        ("5.2.2.7 in any case", "PRIVATE", Not(NotStored::Private)),
        ("5.2.2.7 field form", "private=\"x-user\", max-age=60", Stored),
        ("5.2.2.4 no-cache with a validator", "no-cache", Stored),
        ("5.2.2.4 field form", "no-cache=\"a, b\", max-age=60", Stored),
        ("5.2.2.3 must-understand lifts no-store", "must-understand, no-store, max-age=60", Stored),
        ("5.2.2.3 but not private", "must-understand, no-store, private, max-age=60", Not(NotStored::Private)),
        ("4.2 max-age=0 with a validator", "max-age=0", Stored),
    ] {
        assert_eq!(cache_control(value), want, "{section}");
    }
    let unknown = Exchange { status: 599, ..Exchange::default() };
    assert_eq!(unknown.storage(&[("Cache-Control", "must-understand, no-store, max-age=60")]), Not(NotStored::NoStore), "5.2.2.3");
    assert_eq!(unknown.storage(&[("Cache-Control", "must-understand, max-age=60")]), Not(NotStored::Status), "3: not understood");
    assert_eq!(unknown.storage(&[FRESH, ("Pragma", "no-cache")]), Stored, "5.4: Pragma is no matter in a response");
}

#[test]
fn explicit_freshness_makes_any_final_status_storable() {
    for status in [200, 201, 203, 204, 299, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410, 414, 451, 499, 500, 501, 502, 503, 504, 599] {
        let exchange = Exchange { status, ..Exchange::default() };
        assert_eq!(exchange.storage(&[FRESH]), Stored, "3: {status} with max-age");
        assert_eq!(exchange.storage(&[("Date", &at(0)), ("Expires", &at(DAY))]), Stored, "3: {status} with Expires");
    }
    for (section, status, want) in [
        ("3 interim", 103, NotStored::Status),
        ("3.3 partial content", 206, NotStored::Partial),
        ("4.3.4 a 304 is not a response to keep", 304, NotStored::Status),
    ] {
        assert_eq!(Exchange { status, ..Exchange::default() }.storage(&[FRESH]), Not(want), "{section}");
    }
    let whole = Exchange::default().storage(&[FRESH, ("Content-Range", "bytes 0-1/2")]);
    assert_eq!(whole, Stored, "9110 14.4: Content-Range means nothing on a 200");
}

#[test]
fn without_explicit_freshness_the_status_and_a_validator_decide() {
    let (now, day_ago) = (at(0), at(-DAY));
    let modified = [("Date", &*now), ("Last-Modified", &*day_ago)];
    for status in [200, 203, 204, 300, 301, 308, 404, 410] {
        let exchange = Exchange { status, ..Exchange::default() };
        assert_eq!(exchange.storage(&modified), Stored, "4.2.2: {status}");
        assert_eq!(exchange.storage(&[("ETag", "\"x\"")]), Stored, "3: {status} with a validator only");
        assert_eq!(exchange.storage(&[("Date", &now)]), Not(NotStored::NoFreshness), "4.2.2: {status} with nothing");
    }
    for status in [201, 202, 302, 303, 307, 403, 500, 502, 503, 504, 599] {
        let exchange = Exchange { status, ..Exchange::default() };
        assert_eq!(exchange.storage(&modified), Not(NotStored::Status), "9110 15.1: {status}");
        let public = [modified[0], modified[1], ("Cache-Control", "public")];
        assert_eq!(exchange.storage(&public), Stored, "3: {status} with public");
    }
    for (section, lines) in [
        ("5.2.2.4 no-cache without a validator", vec![("Cache-Control", "no-cache, max-age=60")]),
        ("4.2 max-age=0 without a validator", vec![("Cache-Control", "max-age=0")]),
        ("5.3 Expires: 0 without a validator", vec![("Expires", "0")]),
        ("4.2.3 stale on arrival without a validator", vec![FRESH, ("Age", "61")]),
        ("3 public alone", vec![("Cache-Control", "public")]),
    ] {
        assert_eq!(Exchange::default().storage(&lines), Not(NotStored::NoFreshness), "{section}");
    }
    let windows = Exchange::default().storage(&[("Cache-Control", "max-age=0, stale-while-revalidate=60")]);
    assert_eq!(windows, Stored, "5861 3: it may be served stale");
}

#[test]
fn heuristics_stop_at_what_may_be_personal() {
    let (now, day_ago) = (at(0), at(-DAY));
    let modified = [("Date", &*now), ("Last-Modified", &*day_ago)];
    let cookie = Exchange { asked: vec![("Cookie", "s=1")], ..Exchange::default() };
    assert_eq!(cookie.storage(&modified), Stored, "kept for its validator, stale at once");
    let ((now, day_ago), url) = ((at(0), at(-DAY)), "http://shop.example/account.css");
    for (section, url, content_type, lines, want) in [
        ("page behind a static name", url, "text/html; charset=utf-8", vec![], Not(NotStored::DeceptionGuard)),
        ("in any case", "http://a/x.CSS", "Text/HTML", vec![], Not(NotStored::DeceptionGuard)),
        ("API answer behind a static name", "http://a/me/x.js", "application/json", vec![], Not(NotStored::DeceptionGuard)),
        ("problem behind a static name", "http://a/me/x.js", "application/problem+JSON", vec![], Not(NotStored::DeceptionGuard)),
        ("XML behind a static name", "http://a/me/x.js", "text/xml", vec![], Not(NotStored::DeceptionGuard)),
        ("path parameter", "http://a/me;x.css", "text/html", vec![], Not(NotStored::DeceptionGuard)),
        ("path parameter behind it", "http://a/me.css;x=1.5", "text/html", vec![], Not(NotStored::DeceptionGuard)),
        ("encoded delimiter", "http://a/me%0A.css", "text/html", vec![], Not(NotStored::DeceptionGuard)),
        ("encoded delimiter", "http://a/me.css%3Fx", "text/html", vec![], Not(NotStored::DeceptionGuard)),
        ("not in the query", "http://a/me?x.css", "text/html", vec![], Stored),
        ("the right type", url, "text/css", vec![], Stored),
        ("another name", "http://a/x.html", "text/html", vec![], Stored),
        ("JSON by name", "http://a/x.json", "application/json", vec![], Stored),
        ("explicit freshness", url, "text/html", vec![FRESH], Stored),
    ] {
        let mut answered = vec![("Date", &*now), ("Last-Modified", &*day_ago), ("Content-Type", content_type)];
        answered.extend(lines);
        assert_eq!(Exchange { url, ..Exchange::default() }.storage(&answered), want, "{section}");
    }
    let rule = vec![TtlRule { statuses: Statuses::Usual, lifetime_ms: 60_000 }];
    let policy = CachePolicy { ttl_default: rule.clone(), ttl_override: rule, ..CachePolicy::default() };
    let deceived = Exchange { url, policy, ..Exchange::default() }.storage(&[("Content-Type", "text/html")]);
    assert_eq!(deceived, Not(NotStored::DeceptionGuard), "a rule by path is what such an attack needs");
    let off = CachePolicy { deception_guard: false, ..CachePolicy::default() };
    let answered = [modified[0], modified[1], ("Content-Type", "text/html")];
    assert_eq!(Exchange { url, policy: off, ..Exchange::default() }.storage(&answered), Stored, "where the operator says so");
}

#[test]
fn requests_that_are_not_stored_for() {
    let stored =
        |method: Method, asked: Vec<(&'static str, &'static str)>| Exchange { method, asked, ..Exchange::default() }.storage(&[FRESH]);
    for (section, method, asked, want) in [
        ("3 GET", Method::GET, vec![], Stored),
        ("9110 9.3.2 HEAD has no body to keep", Method::HEAD, vec![], Not(NotStored::Method)),
        ("3 POST", Method::POST, vec![], Not(NotStored::Method)),
        ("5.2.1.5 no-store", Method::GET, vec![("Cache-Control", "no-store")], Not(NotStored::RequestNoStore)),
        ("5.2.1 others", Method::GET, vec![("Cache-Control", "no-cache, max-age=0"), ("Pragma", "no-cache")], Stored),
        ("body that is not in the key", Method::GET, vec![("Content-Length", "1")], Not(NotStored::PoisonGuard)),
        ("body that is not in the key", Method::GET, vec![("Transfer-Encoding", "chunked")], Not(NotStored::PoisonGuard)),
        ("empty body", Method::GET, vec![("Content-Length", "0")], Stored),
        ("another method in a field", Method::GET, vec![("X-HTTP-Method-Override", "POST")], Not(NotStored::PoisonGuard)),
        ("another method in a field", Method::GET, vec![("X-Method-Override", "POST")], Not(NotStored::PoisonGuard)),
        ("another method in a field", Method::GET, vec![("X-HTTP-Method", "POST")], Not(NotStored::PoisonGuard)),
    ] {
        assert_eq!(stored(method, asked), want, "{section}");
    }
    let policy = CachePolicy { enabled: false, ..CachePolicy::default() };
    assert_eq!(Exchange { policy, ..Exchange::default() }.storage(&[FRESH]), Not(NotStored::Disabled));
}

#[test]
fn authorization_needs_permission_of_section_3_5() {
    for (value, want) in [
        ("max-age=60", Not(NotStored::Authorization)),
        ("max-age=60, public", Stored),
        ("max-age=60, must-revalidate", Stored),
        ("s-maxage=60", Stored),
        ("max-age=60, proxy-revalidate", Not(NotStored::Authorization)),
        ("max-age=60, immutable", Not(NotStored::Authorization)),
    ] {
        let exchange = Exchange { asked: vec![("Authorization", "Basic x")], ..Exchange::default() };
        assert_eq!(exchange.storage(&[("Cache-Control", value)]), want, "{value}");
    }
}

#[test]
fn set_cookie_is_not_stored_unless_the_policy_says_so() {
    let with = |set_cookie| Exchange { policy: CachePolicy { set_cookie, ..CachePolicy::default() }, ..Exchange::default() };
    let lines = [FRESH, ("Set-Cookie", "s=1"), ("Date", &*at(0))];
    assert_eq!(with(SetCookie::Bypass).storage(&lines), Not(NotStored::SetCookie));
    for (set_cookie, kept) in [(SetCookie::Store, true), (SetCookie::Strip, false)] {
        assert_eq!(with(set_cookie).storage(&lines), Stored);
        assert_eq!(with(set_cookie).stored_lines(&lines).contains("set-cookie: "), kept);
    }
    for value in ["max-age=60, private=\"Set-Cookie\"", "max-age=60, no-cache=\"set-cookie\""] {
        let lines = [("Cache-Control", value), ("Set-Cookie", "s=1")];
        assert_eq!(with(SetCookie::Bypass).storage(&lines), Stored, "5.2.2.4, 5.2.2.7: others do not get it");
        assert!(!with(SetCookie::Bypass).stored_lines(&lines).contains("set-cookie: "));
    }
}

#[test]
fn errors_that_blame_the_request_are_guarded() {
    let long = "x".repeat(17 << 10);
    for status in [400, 405, 406, 411, 413, 414, 415, 417, 421, 426, 428, 431, 501] {
        let asked = |asked: Vec<(&'static str, &'static str)>, url| Exchange { status, asked, url, ..Exchange::default() };
        let plain = || asked(vec![], "http://a/");
        assert_eq!(plain().storage(&[FRESH]), Stored, "{status} with explicit freshness");
        let modified = [("Date", &*at(0)), ("Last-Modified", &*at(-DAY)), ("Cache-Control", "public")];
        assert_eq!(plain().storage(&modified), Not(NotStored::PoisonGuard), "{status} without");
        for exchange in [
            asked(vec![("X-Odd", "caf\u{e9}")], "http://a/"),
            asked(vec![("X-Odd", "a\tb")], "http://a/"),
            asked(vec![("Content-Length", "5")], "http://a/"),
            asked(vec![("X-HTTP-Method-Override", "PUT")], "http://a/"),
            asked(vec![], "http://a/?a=%00"),
            asked(vec![], "http://a/?a={{"),
            Exchange { asked: vec![("X-Long", &long)], ..plain() },
        ] {
            assert_eq!(exchange.storage(&[FRESH]), Not(NotStored::PoisonGuard), "{status}, {}", exchange.url);
        }
    }
    let other = Exchange { status: 404, asked: vec![("X-Odd", "caf\u{e9}")], ..Exchange::default() };
    assert_eq!(other.storage(&[FRESH]), Stored, "404 does not blame the request");
    let rule = vec![TtlRule { statuses: Statuses::Class(4), lifetime_ms: 60_000 }];
    let ruled = Exchange { status: 405, policy: CachePolicy { ttl_default: rule, ..CachePolicy::default() }, ..Exchange::default() };
    assert_eq!(ruled.storage(&[]), Stored, "the operator named a lifetime");
    for status in [405, 414, 501] {
        let modified = [("Date", &*at(0)), ("Last-Modified", &*at(-DAY))];
        let policy = CachePolicy { error_guard: false, ..CachePolicy::default() };
        let unguarded = Exchange { status, policy, ..Exchange::default() };
        assert_eq!(unguarded.storage(&modified), Stored, "9110 15.1: {status}, where the guard is off");
    }
    for (status, asked) in [(412, ("If-Match", "\"x\"")), (416, ("Range", "bytes=9-"))] {
        let exchange = Exchange { status, asked: vec![asked], ..Exchange::default() };
        assert_eq!(exchange.storage(&[FRESH]), Not(NotStored::PoisonGuard), "{status} answers what is not in the key");
    }
}

#[test]
fn what_cannot_be_kept_is_not() {
    assert_eq!(Exchange::default().storage(&[FRESH, ("Vary", "a, *")]), Not(NotStored::VaryStar), "4.1");
    let small = Exchange { policy: CachePolicy { max_object_bytes: 10, ..CachePolicy::default() }, ..Exchange::default() };
    assert_eq!(small.storage(&[FRESH, ("Content-Length", "11")]), Not(NotStored::TooLarge));
    assert_eq!(small.storage(&[FRESH, ("Content-Length", "10")]), Stored);
    let long = "x".repeat(HEAD_BYTES_MAX);
    assert_eq!(small.storage(&[FRESH, ("X-Long", &long)]), Not(NotStored::HeadTooLarge));
}

#[test]
fn a_lifetime_by_policy_never_lifts_no_store_or_private() {
    let policy = CachePolicy { ttl_override: vec![TtlRule { statuses: Statuses::Usual, lifetime_ms: 60_000 }], ..CachePolicy::default() };
    let exchange = Exchange { policy, ..Exchange::default() };
    assert_eq!(exchange.storage(&[]), Stored);
    assert_eq!(exchange.storage(&[("Cache-Control", "max-age=0")]), Stored);
    assert_eq!(exchange.storage(&[("Cache-Control", "no-store")]), Not(NotStored::NoStore));
    assert_eq!(exchange.storage(&[("Cache-Control", "private")]), Not(NotStored::Private));
}

#[test]
fn fields_that_are_kept() {
    let lines = Exchange::default().stored_lines(&[
        ("Connection", "a, b"),
        ("A", "1"),
        ("B", "2"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "x"),
        ("Proxy-Authentication-Info", "x"),
        ("TE", "x"),
        ("Transfer-Encoding", "chunked"),
        ("Trailer", "x"),
        ("Upgrade", "x"),
        ("Age", "5"),
        ("X-User", "7"),
        ("Cache-Control", "max-age=60, private=\"x-user\""),
        ("Date", &at(0)),
        ("Expires", "0"),
        ("X-Unknown", "kept"),
    ]);
    let want = format!("cache-control: max-age=60, private=\"x-user\"\r\ndate: {}\r\nexpires: 0\r\nx-unknown: kept\r\n", at(0));
    assert_eq!(lines, want, "3.1; 5.1 (Age is computed); 5.2.2.7");
}

#[test]
fn a_response_without_date_gets_the_time_of_receipt() {
    let receipt = at(250);
    for lines in [vec![("A", "1")], vec![("A", "1"), ("Date", "yesterday")], vec![("Date", "x"), ("A", "1"), ("Date", &*at(0))]] {
        assert_eq!(Exchange::default().stored_lines(&lines), format!("a: 1\r\ndate: {receipt}\r\n"), "9110 6.6.1");
    }
    let lines = Exchange::default().stored_lines(&[("Date", &at(-DAY))]);
    assert_eq!(lines, format!("date: {}\r\n", at(-DAY)), "9110 6.6.1: one that is there is never changed");
}
