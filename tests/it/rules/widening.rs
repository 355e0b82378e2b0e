//! What an answer needs of the configuration: RFC 9111 §3, §4.1, §4.2, §4.2.4, §7.3.

use super::freshness::{RECEIVED, at, fields};
use http::{Method, StatusCode};
use tiercel::semantics::freshness::Facts;
use tiercel::semantics::policy::{CachePolicy, SetCookie, Statuses, TtlRule, VaryPolicy};
use tiercel::semantics::reuse::is_refresh_due;
use tiercel::semantics::widening::{Widening, widening};
use tiercel::semantics::{Request, Response, Target};

fn facts(status: u16, asked: &[(&str, &str)], lines: &[(&str, &str)]) -> Facts {
    let (target, asked, lines) = (Target::from_url("http://shop.example/a").unwrap(), fields(asked), fields(lines));
    let request = Request { method: &Method::GET, target: &target, fields: &asked };
    let response = Response { status: StatusCode::from_u16(status).unwrap(), fields: &lines };
    Facts::new(request, response, &CachePolicy::default().targeted, RECEIVED, RECEIVED)
}

fn rules(statuses: Statuses) -> Vec<TtlRule> {
    vec![TtlRule { statuses, lifetime_ms: 60_000 }]
}

#[test]
fn a_use_names_the_line_of_the_configuration_that_it_needs() {
    use Widening::*;
    let (now, day_ago) = (at(0), at(-86_400_000));
    let modified = [("Date", &*now), ("Last-Modified", &*day_ago)];
    let plain = CachePolicy::default();
    let fresh = [("Cache-Control", "max-age=60"), ("Vary", "User-Agent"), ("Set-Cookie", "a=b")];
    let (fresh, cookie) = (&fresh[..], &[("Cookie", "a=b")][..]);
    let with = |set_cookie| CachePolicy { set_cookie, ..plain.clone() };
    let overriding = CachePolicy { ttl_override: rules(Statuses::One(404)), ..plain.clone() };
    let default = CachePolicy { ttl_default: rules(Statuses::Class(4)), ..plain.clone() };
    let vary = CachePolicy { vary: VaryPolicy { ignore: vec!["User-agent".into()], ..VaryPolicy::default() }, ..plain.clone() };
    let by_cookie = CachePolicy { heuristic_with_cookie: true, ..plain.clone() };
    let window = CachePolicy { stale_while_revalidate_ms: 60_000, ..plain.clone() };
    let own = [("Cache-Control", "max-age=60, stale-while-revalidate=60")];
    for (section, policy, status, asked, lines, stale_ms, want) in [
        ("nothing", &plain, 200, cookie, fresh, None, None),
        ("4.2 override", &overriding, 404, &[], fresh, None, Some(TtlOverride)),
        ("4.2 of another status", &overriding, 200, &[], fresh, None, None),
        ("3 default for 403", &default, 403, &[], &[], None, Some(TtlDefault)),
        ("3 default for 404 is heuristic freshness", &default, 404, &[], &[], None, None),
        ("3 explicit freshness needs no default", &default, 403, &[], fresh, None, None),
        ("3 public needs no permission", &default, 403, &[], &[("Cache-Control", "public")], None, None),
        ("7.3 stored", &with(SetCookie::Store), 200, &[], fresh, None, Some(SetCookieStored)),
        ("7.3 without it", &with(SetCookie::Strip), 200, &[], fresh, None, Some(SetCookieStripped)),
        ("4.1 ignored", &vary, 200, &[], &fresh[..2], None, Some(VaryIgnored)),
        ("4.1 another field", &vary, 200, &[], &[("Cache-Control", "max-age=60"), ("Vary", "Accept")], None, None),
        ("4.2.2 with Cookie", &by_cookie, 200, cookie, &modified, None, Some(HeuristicWithCookie)),
        ("4.2.2 explicit", &by_cookie, 200, cookie, &fresh[..2], None, None),
        ("4.2.2 without Cookie", &by_cookie, 200, &[], &modified, None, None),
        ("4.2.4 a window of ours", &window, 200, &[], &fresh[..1], Some(0), Some(StaleByPolicy)),
        ("4.2.4 past our window: the client's max-stale", &window, 200, &[], &fresh[..1], Some(60_001), None),
        ("4.2.4 no window", &plain, 200, &[], &fresh[..1], Some(1), None),
        ("4.2.4 of the origin's", &window, 200, &[], &own, Some(1), None),
        ("4.2.4 while fresh", &window, 200, &[], &fresh[..1], None, None),
    ] {
        assert_eq!(widening(&facts(status, asked, lines), policy, stale_ms), want, "{section}");
    }
}

#[test]
fn a_refresh_is_due_in_the_last_share_of_the_lifetime() {
    let lasting = facts(200, &[], &[("Cache-Control", "max-age=100")]);
    for (share, ttl_ms, due) in
        [(0.0, 0, false), (0.0, 1, false), (0.1, 100_000, false), (0.1, 10_001, false), (0.1, 10_000, true), (0.1, 1, true)]
    {
        let policy = CachePolicy { early_refresh: share, ..CachePolicy::default() };
        assert_eq!(is_refresh_due(&lasting, &policy, ttl_ms), due, "{share}: {ttl_ms}");
    }
}
