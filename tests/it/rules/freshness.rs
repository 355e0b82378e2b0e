//! Freshness lifetime and current age: RFC 9111 §4.2, §5.1, §5.2, §5.3.

use http::{Method, StatusCode};
use tiercel::semantics::freshness::{Facts, LifetimeSource};
use tiercel::semantics::policy::{CachePolicy, Statuses, TtlRule};
use tiercel::semantics::targeted::TargetList;
use tiercel::semantics::{Fields, Now, Request, Response, Target, date};

/// 2026-03-01T00:00:00.250Z, received 250 ms after it was asked for.
pub(super) const RECEIVED: Now = Now { wall_ms: 1_772_323_200_250, mono_ms: 50_250 };
pub(super) const SENT: Now = Now { wall_ms: 1_772_323_200_000, mono_ms: 50_000 };
const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;

pub(super) fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in lines {
        fields.push(name, value).unwrap();
    }
    fields
}

/// The date that is so many milliseconds from the time of the request.
pub(super) fn at(offset_ms: i64) -> String {
    String::from_utf8(date::format(SENT.wall_ms + offset_ms).to_vec()).unwrap()
}

pub(super) fn facts_of(request: Request<'_>, status: u16, lines: &Fields) -> Facts {
    Facts::new(request, Response { status: StatusCode::from_u16(status).unwrap(), fields: lines }, &TargetList::default(), SENT, RECEIVED)
}

fn facts(status: u16, asked: &[(&str, &str)], lines: &[(&str, &str)]) -> Facts {
    let target = Target::from_url("http://shop.example/a").unwrap();
    let (asked, answered) = (fields(asked), fields(lines));
    facts_of(Request { method: &Method::GET, target: &target, fields: &asked }, status, &answered)
}

fn lifetime(lines: &[(&str, &str)]) -> (i64, LifetimeSource) {
    lifetime_by(&CachePolicy::default(), &facts(200, &[], lines))
}

fn lifetime_by(policy: &CachePolicy, facts: &Facts) -> (i64, LifetimeSource) {
    let lifetime = facts.lifetime(policy);
    (lifetime.ms.try_into().unwrap(), lifetime.source)
}

#[test]
fn the_governing_field_is_the_first_of_section_4_2_1() {
    use LifetimeSource::{Expires, MaxAge, None, SMaxage};
    let (now, later, past) = (at(0), at(HOUR), at(-HOUR));
    let (date, expires, expired) = (("Date", &*now), ("Expires", &*later), ("Expires", &*past));
    for (section, lines, want) in [
        ("4.2.1 s-maxage first", vec![("Cache-Control", "max-age=0, s-maxage=3600"), expired, date], (HOUR, SMaxage)),
        ("4.2.1 s-maxage=0 beats max-age", vec![("Cache-Control", "max-age=3600, s-maxage=0")], (0, SMaxage)),
        ("4.2.1 then max-age", vec![("Cache-Control", "max-age=60"), expires, date], (60 * SECOND, MaxAge)),
        ("5.3 max-age=0 beats Expires", vec![("Cache-Control", "max-age=0"), expires, date], (0, MaxAge)),
        ("4.2.1 then Expires minus Date", vec![expires, date], (HOUR, Expires)),
        ("4.2.1 nothing", vec![date], (0, None)),
        ("4.2.1 malformed is stale", vec![("Cache-Control", "max-age=1h"), expires, date], (0, MaxAge)),
        ("4.2.1 contradictory is stale", vec![("Cache-Control", "max-age=9"), ("Cache-Control", "max-age=8")], (0, MaxAge)),
        ("4.2.1 repeated is not contradictory", vec![("Cache-Control", "max-age=9, max-age=9")], (9 * SECOND, MaxAge)),
        ("5.2 case-insensitive", vec![("Cache-Control", "MAX-age=9")], (9 * SECOND, MaxAge)),
        ("5.2 both argument forms", vec![("Cache-Control", "max-age=\"9\"")], (9 * SECOND, MaxAge)),
        ("5.2.3 unknown directives are ignored", vec![("Cache-Control", "foo, bar=\"max-age=1\", max-age=9")], (9 * SECOND, MaxAge)),
        ("1.2.2 saturates", vec![("Cache-Control", "max-age=99999999999")], ((1_i64 << 31) * SECOND, MaxAge)),
        ("1.2.2 2^31 - 1", vec![("Cache-Control", "max-age=2147483647")], (((1_i64 << 31) - 1) * SECOND, MaxAge)),
        ("5.3 Expires equal to Date", vec![("Expires", &now), date], (0, Expires)),
        ("5.3 Expires before Date", vec![expired, date], (0, Expires)),
        ("5.3 Expires against receipt without Date", vec![expires], (HOUR - 250, Expires)),
        ("4.2.3 Date unreadable is absent", vec![expires, ("Date", "yesterday")], (HOUR - 250, Expires)),
        ("5.3 invalid, above all 0, is expired", vec![("Expires", "0"), date], (0, Expires)),
        ("5.3 several that differ", vec![expires, ("Expires", &now), date], (0, Expires)),
        ("5.3 empty", vec![("Expires", ""), date], (0, Expires)),
        ("5.4 Pragma means nothing in a response", vec![("Pragma", "no-cache"), expires, date], (HOUR, Expires)),
    ] {
        assert_eq!(lifetime(&lines), want, "{section}");
    }
}

#[test]
fn expires_is_a_date_to_the_letter_or_over() {
    for (section, expires, fresh) in [
        ("9110 5.6.7 IMF-fixdate", vec!["Thu, 18 Aug 2050 02:01:18 GMT"], true),
        ("4.2 weekday in another case", vec!["THU, 18 Aug 2050 02:01:18 GMT"], true),
        ("4.2 month in another case", vec!["Thu, 18 AUG 2050 02:01:18 GMT"], true),
        ("4.2 zone in another case", vec!["Thu, 18 Aug 2050 02:01:18 gMT"], true),
        ("9110 5.6.7 rfc850-date", vec!["Thursday, 18-Aug-50 02:01:18 GMT"], true),
        ("9110 5.6.7 asctime-date", vec!["Thu Aug  8 02:01:18 2050"], true),
        ("9110 5.6.7 the weekday is not compared", vec!["Sun, 18 Aug 2050 02:01:18 GMT"], true),
        ("9110 5.6.7 a rfc850 year more than 50 years ahead is past", vec!["Thursday, 18-Aug-77 02:01:18 GMT"], false),
        ("5.3 beyond 2^32 seconds", vec!["Sun, 21 Nov 2286 04:46:39 GMT"], true),
        ("5.3 twice the same", vec!["Thu, 18 Aug 2050 02:01:18 GMT", "Thu, 18 Aug 2050 02:01:18 GMT"], true),
        ("4.2 another zone", vec!["Thu, 18 Aug 2050 02:01:18 UTC"], false),
        ("4.2 another zone", vec!["Thu, 18 Aug 2050 02:01:18 AEST"], false),
        ("5.3 two-digit year", vec!["Thu, 18 Aug 50 02:01:18 GMT"], false),
        ("5.3 no comma", vec!["Thu 18 Aug 2050 02:01:18 GMT"], false),
        ("5.3 more spaces", vec!["Thu, 18  Aug  2050 02:01:18 GMT"], false),
        ("5.3 dashes", vec!["Thu, 18-Aug-2050 02:01:18 GMT"], false),
        ("5.3 dots in the time", vec!["Thu, 18 Aug 2050 02.01.18 GMT"], false),
        ("5.3 one-digit hour", vec!["Thu, 18 Aug 2050 2:01:18 GMT"], false),
        ("5.3 over several lines", vec!["Thu, 18 Aug 2050 02:01:18", "GMT"], false),
        ("5.3 zero", vec!["0"], false),
        ("5.3 a number", vec!["2000000000"], false),
        ("5.3 words", vec!["never"], false),
    ] {
        let lines: Vec<_> = expires.iter().map(|value| ("Expires", *value)).collect();
        let (ms, source) = lifetime(&lines);
        assert_eq!((ms > 0, source), (fresh, LifetimeSource::Expires), "{section}: {expires:?}");
    }
}

#[test]
fn jitter_shortens_each_lifetime_by_a_part_of_its_share() {
    let policy = CachePolicy { ttl_jitter: 0.1, ..CachePolicy::default() };
    let hour = facts(200, &[], &[("Cache-Control", "max-age=3600")]);
    assert_eq!(lifetime_by(&policy, &hour), (HOUR, LifetimeSource::MaxAge), "as it was received");
    let shortened = |key: u128, fetch: u64| {
        let (ms, source) = lifetime_by(&policy, &hour.clone().jittered(key, fetch));
        assert!(source == LifetimeSource::MaxAge && (HOUR * 9 / 10..=HOUR).contains(&ms), "{ms}");
        ms
    };
    let lifetimes: Vec<i64> = (0..1000).map(|number| shortened(number, 7)).collect();
    assert_eq!(lifetimes, (0..1000).map(|number| shortened(number, 7)).collect::<Vec<_>>(), "each time the same");
    assert!((0..100).any(|fetch| shortened(5, fetch) != shortened(5, fetch + 1)), "another fetch, another part");
    // Evenly: each tenth of the share has its tenth of the responses, give or take.
    for tenth in 0..10 {
        let from = HOUR - HOUR / 100 * (tenth + 1);
        let there = lifetimes.iter().filter(|ms| (from..from + HOUR / 100).contains(*ms)).count();
        assert!((50..200).contains(&there), "{tenth}: {there}");
    }
    for (lines, rules) in [(vec![("Date", "x")], 3_600_000), (vec![("Cache-Control", "max-age=60")], 3_600_000)] {
        let rules = vec![TtlRule { statuses: Statuses::Usual, lifetime_ms: rules }];
        let policy = CachePolicy { ttl_override: rules.clone(), ttl_default: rules, ttl_jitter: 0.5, ..CachePolicy::default() };
        let (ms, _) = lifetime_by(&policy, &facts(200, &[], &lines).jittered(1, 1));
        assert!((HOUR / 2..HOUR).contains(&ms), "lifetimes of the operator's too: {ms}");
    }
    let zero = facts(200, &[], &[("Cache-Control", "max-age=0")]).jittered(1, 1);
    assert_eq!(lifetime_by(&policy, &zero).0, 0);
}

#[test]
fn expires_and_date_count_from_each_other_not_from_our_clock() {
    let (date, expires) = (at(DAY), at(DAY + HOUR));
    assert_eq!(lifetime(&[("Date", &date), ("Expires", &expires)]), (HOUR, LifetimeSource::Expires));
    let (date, expires) = (at(-DAY), at(-DAY + HOUR));
    let slow = facts(200, &[], &[("Date", &date), ("Expires", &expires)]);
    assert_eq!(lifetime_by(&CachePolicy::default(), &slow), (HOUR, LifetimeSource::Expires));
    assert!(slow.age_ms(RECEIVED) > HOUR.unsigned_abs(), "but by its apparent age it is stale");
}

#[test]
fn age_is_the_greater_of_apparent_age_and_age_field() {
    let delay = 250;
    let (now, hour_ago, in_an_hour) = (at(0), at(-HOUR), at(HOUR));
    for (section, lines, want) in [
        ("4.2.3 no Age, no Date: the delay", vec![], delay),
        ("4.2.3 apparent age", vec![("Date", &*hour_ago)], HOUR),
        ("4.2.3 a Date ahead is no negative age", vec![("Date", &in_an_hour)], delay),
        ("4.2.3 Age plus delay", vec![("Age", "30"), ("Date", &now)], 30 * SECOND + delay),
        ("4.2.3 Age above apparent age", vec![("Age", "7200"), ("Date", &hour_ago)], 2 * HOUR + delay),
        ("4.2.3 apparent age above Age", vec![("Age", "30"), ("Date", &hour_ago)], HOUR),
        ("5.1 the first member counts", vec![("Age", "7200, 0")], 2 * HOUR + delay),
        ("5.1 the first member counts over lines", vec![("Age", "0"), ("Age", "7200")], delay),
        ("5.1 empty members are none", vec![("Age", ", 7200")], 2 * HOUR + delay),
        ("5.1 an invalid first member: ignored as a whole", vec![("Age", "abc, 7200")], delay),
        ("5.1 an invalid first line: ignored as a whole", vec![("Age", "abc"), ("Age", "7200")], delay),
        ("5.1 negative", vec![("Age", "-7200")], delay),
        ("5.1 fraction", vec![("Age", "7200.0")], delay),
        ("5.1 parameter", vec![("Age", "7200;foo=111")], delay),
        ("5.1 quoted", vec![("Age", "\"7200\"")], delay),
        ("5.1 leading zeros", vec![("Age", "007200")], 2 * HOUR + delay),
        ("1.2.2 2^31 - 1", vec![("Age", "2147483647")], ((1 << 31) - 1) * SECOND + delay),
        ("1.2.2 2^31", vec![("Age", "2147483648")], (1 << 31) * SECOND + delay),
        ("1.2.2 above 2^31", vec![("Age", "2147483649")], (1 << 31) * SECOND + delay),
        ("1.2.2 far above", vec![("Age", "99999999999999999999999")], (1 << 31) * SECOND + delay),
    ] {
        let facts = facts(200, &[], &lines);
        assert_eq!(facts.age_ms(RECEIVED), want.unsigned_abs(), "{section}");
        assert_eq!(facts.age_ms(RECEIVED.plus_ms(3_001)), want.unsigned_abs() + 3_001, "{section}: resident time");
    }
}

#[test]
fn resident_time_does_not_follow_the_wall_clock() {
    let facts = facts(200, &[], &[]);
    let back = Now { wall_ms: RECEIVED.wall_ms - DAY, mono_ms: RECEIVED.mono_ms + 10_000 };
    assert_eq!(facts.age_ms(back), 10_250);
    let before = Now { wall_ms: 0, mono_ms: 0 };
    assert_eq!(facts.age_ms(before), 250, "nor is it ever negative");
}

#[test]
fn a_response_of_this_second_is_not_aged_by_the_rounding_of_its_date() {
    let received = Now { wall_ms: SENT.wall_ms + 990, mono_ms: SENT.mono_ms + 5 };
    let target = Target::from_url("http://a/").unwrap();
    let answered = fields(&[("Date", &at(0))]);
    let request = Request { method: &Method::GET, target: &target, fields: &Fields::new() };
    let facts = Facts::new(request, Response { status: StatusCode::OK, fields: &answered }, &TargetList::default(), SENT, received);
    assert_eq!(facts.age_ms(received), 5);
}

#[test]
fn heuristic_freshness_is_a_tenth_of_the_time_since_last_modified() {
    use LifetimeSource::{Heuristic, None};
    let (now, day_ago, later) = (at(0), at(-DAY), at(HOUR));
    let (date, modified) = (("Date", &*now), ("Last-Modified", &*day_ago));
    for (section, status, asked, lines, want) in [
        ("4.2.2 a tenth", 200, &[][..], vec![date, modified], (DAY / 10, Heuristic)),
        ("4.2.2 no Last-Modified", 200, &[], vec![date], (0, None)),
        ("4.2.2 Last-Modified ahead", 200, &[], vec![date, ("Last-Modified", &later)], (0, None)),
        ("4.2.2 unreadable Last-Modified", 200, &[], vec![date, ("Last-Modified", "x")], (0, None)),
        ("9110 15.1 204", 204, &[], vec![date, modified], (DAY / 10, Heuristic)),
        ("9110 15.1 301", 301, &[], vec![date, modified], (DAY / 10, Heuristic)),
        ("9110 15.1 404", 404, &[], vec![date, modified], (DAY / 10, Heuristic)),
        ("9110 15.1 not 201", 201, &[], vec![date, modified], (0, None)),
        ("9110 15.1 not 302", 302, &[], vec![date, modified], (0, None)),
        ("9110 15.1 not 503", 503, &[], vec![date, modified], (0, None)),
        ("9110 15.1 not 599", 599, &[], vec![date, modified], (0, None)),
        ("4.2.2 public lifts the status", 599, &[], vec![date, modified, ("Cache-Control", "public")], (DAY / 10, Heuristic)),
        ("design: not with Set-Cookie", 200, &[], vec![date, modified, ("Set-Cookie", "a=b")], (0, None)),
        ("design: not with Cookie", 200, &[("Cookie", "a=b")], vec![date, modified], (0, None)),
        ("design: not with Authorization", 200, &[("Authorization", "x")], vec![date, modified, ("Cache-Control", "public")], (0, None)),
        (
            "4.2.2 Content-Disposition is no matter",
            200,
            &[],
            vec![date, modified, ("Content-Disposition", "attachment")],
            (DAY / 10, Heuristic),
        ),
    ] {
        assert_eq!(lifetime_by(&CachePolicy::default(), &facts(status, asked, &lines)), want, "{section}");
    }
    let facts = facts(200, &[("Cookie", "a=b")], &[date, modified]);
    let policy = CachePolicy { heuristic_with_cookie: true, heuristic_max_ms: 60_000, ..CachePolicy::default() };
    assert_eq!(lifetime_by(&policy, &facts), (60_000, Heuristic), "bounded, and with Cookie where the policy says so");
    assert_eq!(lifetime_by(&CachePolicy { heuristic: false, ..policy }, &facts), (0, None), "off");
}

#[test]
fn policy_overrides_come_first_and_defaults_before_heuristics() {
    use LifetimeSource::{MaxAge, PolicyDefault, PolicyOverride};
    let (now, day_ago) = (at(0), at(-DAY));
    let rule = |statuses, lifetime_ms| vec![TtlRule { statuses, lifetime_ms }];
    let explicit = facts(200, &[], &[("Cache-Control", "max-age=0")]);
    let implicit = facts(404, &[], &[("Date", &now), ("Last-Modified", &day_ago)]);
    let policy = CachePolicy { ttl_default: rule(Statuses::Usual, 5), ..CachePolicy::default() };
    assert_eq!(lifetime_by(&policy, &explicit), (0, MaxAge));
    assert_eq!(lifetime_by(&policy, &implicit), (5, PolicyDefault));
    let policy = CachePolicy { ttl_override: rule(Statuses::One(200), 7), ..policy };
    assert_eq!(lifetime_by(&policy, &explicit), (7, PolicyOverride));
    assert_eq!(lifetime_by(&policy, &implicit), (5, PolicyDefault));
}

#[test]
fn facts_hold_what_later_decisions_need() {
    let day_ago = at(-DAY);
    let lines = [("ETag", "W/\"x\""), ("Last-Modified", &*day_ago), ("Vary", "A"), ("Set-Cookie", "a=b")];
    let read = facts(200, &[("Authorization", "x"), ("Cookie", "a=b")], &lines);
    assert_eq!(read.last_modified_ms(), Some(SENT.wall_ms - DAY));
    assert!(read.has_etag && read.authorized && read.cookie && read.set_cookie && read.has_validator());
    let differing = facts(200, &[], &[("ETag", "\"a\""), ("ETag", "\"b\"")]);
    assert!(!differing.has_etag, "a validator that contradicts itself is none");
    let hidden = facts(200, &[], &[("Set-Cookie", "a=b"), ("Cache-Control", "no-cache=\"Set-Cookie\"")]);
    assert!(!hidden.set_cookie, "5.2.2.4: others do not get it");
    assert!(!hidden.has_validator());
}
