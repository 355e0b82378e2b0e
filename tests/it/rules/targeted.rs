//! RFC 9213 §2, §3: targeted fields, through to what may be stored and for how long.

use super::freshness::{RECEIVED, SENT, at, fields};
use http::{Method, StatusCode};
use tiercel::semantics::freshness::{Facts, LifetimeSource};
use tiercel::semantics::policy::CachePolicy;
use tiercel::semantics::reuse::{Validity, may_serve_on_error};
use tiercel::semantics::storage::{NotStored, Storage, may_store};
use tiercel::semantics::targeted::TargetList;
use tiercel::semantics::validation::update;
use tiercel::semantics::{Fields, Request, Response, Target};

type Lines<'a> = Vec<(&'a str, &'a str)>;

fn read(asked: &[(&str, &str)], lines: &Fields, policy: &CachePolicy) -> (Facts, Storage) {
    let (target, asked) = (Target::from_url("http://shop.example/a").unwrap(), fields(asked));
    let request = Request { method: &Method::GET, target: &target, fields: &asked };
    let response = Response { status: StatusCode::OK, fields: lines };
    let facts = Facts::new(request, response, &policy.targeted, SENT, RECEIVED);
    let storage = may_store(request, response, &facts, policy);
    (facts, storage)
}

/// What it comes to: the field that governs, lifetime in seconds, and whether it may be stored.
fn outcome(policy: &CachePolicy, lines: &Lines<'_>) -> (String, u64, Storage) {
    let (facts, storage) = read(&[], &fields(lines), policy);
    (facts.governed_by().to_owned(), facts.lifetime(policy).ms / 1000, storage)
}

#[test]
fn the_governing_field_replaces_cache_control_and_expires() {
    use Storage::{Not, Stored};
    let (now, later, day_ago) = (at(0), at(3_600_000), at(-86_400_000));
    let (date, expires, modified) = (("Date", &*now), ("Expires", &*later), ("Last-Modified", &*day_ago));
    let (cdn, cc) = (|value| ("CDN-Cache-Control", value), |value| ("Cache-Control", value));
    for (section, lines, field, lifetime, storage) in [
        ("2.2 instead of Cache-Control", vec![cc("max-age=1"), cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("2.2 instead of s-maxage", vec![cc("s-maxage=1"), cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("2.2 instead of Expires", vec![expires, date, cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("2.2 instead of Expires: 0", vec![("Expires", "0"), cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("2.2 a short one", vec![cc("max-age=3600"), cdn("max-age=1")], "cdn-cache-control", 1, Stored),
        ("2.2 zero", vec![expires, date, cdn("max-age=0")], "cdn-cache-control", 0, Not(NotStored::NoFreshness)),
        ("3.1 over no-store", vec![cc("no-store"), cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("3.1 over private", vec![cc("private"), cdn("max-age=60")], "cdn-cache-control", 60, Stored),
        ("2.2 no-store", vec![cc("max-age=60"), expires, cdn("no-store")], "cdn-cache-control", 0, Not(NotStored::NoStore)),
        ("2.2 private", vec![cc("max-age=60"), cdn("private")], "cdn-cache-control", 0, Not(NotStored::Private)),
        ("2.2 no-cache", vec![cc("max-age=60"), cdn("no-cache, max-age=60")], "cdn-cache-control", 60, Not(NotStored::NoFreshness)),
        ("3.1 none: heuristics decide", vec![cc("no-store"), date, modified, cdn("none")], "cdn-cache-control", 8640, Stored),
        ("3.1 none: nothing explicit is left", vec![expires, date, cdn("none")], "cdn-cache-control", 0, Not(NotStored::NoFreshness)),
        ("2.2 private fields", vec![cdn("max-age=60, private=\"set-cookie\""), ("Set-Cookie", "a=b")], "cdn-cache-control", 60, Stored),
        ("2.1 empty is ignored", vec![cc("max-age=9"), cdn("")], "cache-control", 9, Stored),
        ("2.1 a parsing error is ignored", vec![cc("no-store"), cdn("max-age=60, &&&&&")], "cache-control", 0, Not(NotStored::NoStore)),
        ("2.1 a space before =", vec![cc("max-age=9"), cdn("max-age =60")], "cache-control", 9, Stored),
        ("2.1 a wrong type", vec![cc("max-age=9"), cdn("max-age=\"60\"")], "cdn-cache-control", 0, Not(NotStored::NoFreshness)),
        ("2.2 not on the list", vec![cc("max-age=9"), ("Other-Cache-Control", "no-store")], "cache-control", 9, Stored),
        ("2.3 Age counts", vec![cdn("max-age=60"), ("Age", "60")], "cdn-cache-control", 60, Not(NotStored::NoFreshness)),
        ("1.2.2 saturates", vec![cdn("max-age=99999999999")], "cdn-cache-control", 1 << 31, Stored),
    ] {
        let want = (field.to_owned(), lifetime, storage);
        assert_eq!(outcome(&CachePolicy::default(), &lines), want, "{section}");
    }
}

#[test]
fn the_source_of_the_lifetime_is_the_directive_of_the_governing_field() {
    let lines = fields(&[("CDN-Cache-Control", "s-maxage=9, max-age=5"), ("Cache-Control", "max-age=1")]);
    let (facts, _) = read(&[], &lines, &CachePolicy::default());
    assert_eq!(facts.lifetime(&CachePolicy::default()).source, LifetimeSource::SMaxage);
    let list = TargetList::new(&["x-accel-expires"], "tiercel");
    let policy = CachePolicy { targeted: list, ..CachePolicy::default() };
    let until = format!("@{}", SENT.wall_ms / 1000 + 60);
    let (facts, _) = read(&[], &fields(&[("X-Accel-Expires", &until), ("Date", &at(0))]), &policy);
    let lifetime = facts.lifetime(&policy);
    assert_eq!((lifetime.ms, lifetime.source), (60_000, LifetimeSource::Expires));
}

#[test]
fn permission_for_authorized_requests_comes_from_the_governing_field() {
    let policy = CachePolicy::default();
    for (cache_control, cdn, want) in [
        ("public, max-age=60", "max-age=60", Storage::Not(NotStored::Authorization)),
        ("max-age=60", "max-age=60, public", Storage::Stored),
        ("max-age=60", "s-maxage=60", Storage::Stored),
    ] {
        let lines = fields(&[("Cache-Control", cache_control), ("CDN-Cache-Control", cdn)]);
        assert_eq!(read(&[("Authorization", "x")], &lines, &policy).1, want, "{cdn}");
    }
}

#[test]
fn stale_use_is_forbidden_by_the_governing_field_alone() {
    let policy = CachePolicy::default();
    for (cache_control, cdn, allowed) in [
        ("max-age=1, must-revalidate", "max-age=1", true),
        ("max-age=1", "max-age=1, must-revalidate", false),
        ("max-age=1", "max-age=1, proxy-revalidate", false),
        ("max-age=1", "s-maxage=1", false),
        ("max-age=1", "max-age=1, no-cache", false),
        ("max-age=1", "max-age=1, stale-if-error=0", false),
    ] {
        let lines = fields(&[("Cache-Control", cache_control), ("CDN-Cache-Control", cdn)]);
        let (facts, _) = read(&[], &lines, &policy);
        let served = may_serve_on_error(&facts, &policy, Validity::Valid, RECEIVED.plus_ms(5_000));
        assert_eq!(served, allowed, "4.2.4: {cdn}");
    }
}

#[test]
fn an_update_is_read_whole() {
    let policy = CachePolicy::default();
    let stored = fields(&[("CDN-Cache-Control", "max-age=60"), ("Cache-Control", "max-age=1")]);
    for (newer, field, lifetime) in [
        (vec![], "cdn-cache-control", 60),
        (vec![("Cache-Control", "no-store")], "cdn-cache-control", 60),
        (vec![("CDN-Cache-Control", "max-age=9")], "cdn-cache-control", 9),
        (vec![("CDN-Cache-Control", "&")], "cache-control", 1),
    ] {
        let (facts, _) = read(&[], &update(&stored, &fields(&newer)), &policy);
        assert_eq!((facts.governed_by(), facts.lifetime(&policy).ms / 1000), (field, lifetime), "{newer:?}");
    }
}

#[test]
fn facts_are_read_anew_by_another_list() {
    let lines = [("CDN-Cache-Control", "max-age=60"), ("Surrogate-Control", "max-age=9"), ("Cache-Control", "max-age=1"), ("Age", "5")];
    let lists = [TargetList::default(), TargetList::new(&["surrogate-control"], "tiercel"), TargetList::new::<&str>(&[], "tiercel")];
    for first in &lists {
        for second in &lists {
            let policy = |list: &TargetList| CachePolicy { targeted: list.clone(), ..CachePolicy::default() };
            let (before, _) = read(&[], &fields(&lines), &policy(first));
            let (straight, _) = read(&[], &fields(&lines), &policy(second));
            assert_eq!(before.reread(&fields(&lines), second).lifetime(&policy(second)), straight.lifetime(&policy(second)));
        }
    }
}
