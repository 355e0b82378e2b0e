//! Secondary keys: RFC 9111 §4.1, RFC 9110 §12.5.5.

use super::freshness::fields;
use tiercel::semantics::policy::{AcceptEncoding, CachePolicy, VaryPolicy};
use tiercel::semantics::vary::Vary;

#[test]
fn vary_is_one_list_over_all_its_lines() {
    for (section, lines, want) in [
        ("9110 12.5.5 none", &[][..], Some(&[][..])),
        ("9110 5.6.1 empty", &[""], Some(&[])),
        ("9110 5.6.1 empty members", &[", ,"], Some(&[])),
        ("9110 5.1 case-insensitive", &["Foo, BAR"], Some(&["bar", "foo"])),
        ("9110 5.3 several lines", &["foo", "bar, foo"], Some(&["bar", "foo"])),
        ("4.1 star", &["*"], None),
        ("4.1 star twice", &["*, *"], None),
        ("4.1 star after an empty member", &[", *"], None),
        ("4.1 star on a second line", &["", "*"], None),
        ("4.1 star after a name", &["Foo, *"], None),
        ("4.1 star before a name", &["*, Foo"], None),
        ("no field name: nothing known", &["foo bar"], None),
        ("no field name: quoted", &["\"*\""], None),
    ] {
        let lines: Vec<_> = lines.iter().map(|line| ("Vary", *line)).collect();
        let vary = Vary::parse(&fields(&lines));
        let names = match &vary {
            Vary::Nothing => Some(vec![]),
            Vary::Fields(names) => Some(names.iter().map(|name| &**name).collect()),
            Vary::Star => None,
        };
        assert_eq!(names.as_deref(), want, "{section}");
        assert_eq!(vary.is_star(), want.is_none(), "{section}");
    }
}

#[test]
fn fields_match_that_mean_the_same() {
    type Lines<'a> = &'a [(&'a str, &'a str)];
    let row = |section: &'static str, names: &'static str, a: Lines<'static>, b: Lines<'static>, same: bool| (section, names, a, b, same);
    for (section, names, a, b, same) in [
        row("4.1 equal", "foo", &[("Foo", "1")], &[("Foo", "1")], true),
        row("4.1 different", "foo", &[("Foo", "1")], &[("Foo", "2")], false),
        row("4.1 absent in both", "foo, bar", &[("Foo", "1")], &[("Foo", "1")], true),
        row("4.1 absent in one", "foo", &[("Foo", "1")], &[], false),
        row("4.1 absent is not empty", "foo", &[("Foo", "")], &[], false),
        row("4.1 others do not matter", "foo", &[("Foo", "1"), ("Cookie", "a")], &[("Foo", "1"), ("Cookie", "b")], true),
        row("4.1 order of fields", "foo, bar", &[("Foo", "1"), ("Bar", "2")], &[("Bar", "2"), ("Foo", "1")], true),
        row("4.1 field by field", "foo, bar", &[("Foo", "1"), ("Bar", "23")], &[("Foo", "12"), ("Bar", "3")], false),
        row("4.1 combining lines", "foo", &[("Foo", "1, 2")], &[("Foo", "1"), ("Foo", "2")], true),
        row("4.1 white space", "foo", &[("Foo", "1,2")], &[("Foo", " 1 ,  2 ")], true),
        row("4.1 order within a field may matter", "foo", &[("Foo", "1,2")], &[("Foo", "2,1")], false),
        row("4.1 case may matter", "foo", &[("Foo", "a")], &[("Foo", "A")], false),
        row("4.1 quoted strings", "foo", &[("Foo", "\"1,2\"")], &[("Foo", "\"1, 2\"")], false),
        row("9110 12.5.4 case", "accept-language", &[("Accept-Language", "en-US")], &[("Accept-Language", "EN-us")], true),
        row("9110 12.5.4 space", "accept-language", &[("Accept-Language", "en,de;q=0.5")], &[("Accept-Language", "en , de ; q=0.5")], true),
        row("9110 12.5.4 order", "accept-language", &[("Accept-Language", "en, de")], &[("Accept-Language", "de, en")], true),
        row("9110 12.4.2 q=1", "accept-language", &[("Accept-Language", "en")], &[("Accept-Language", "en;q=1.0")], true),
        row(
            "9110 12.4.2 weights",
            "accept-language",
            &[("Accept-Language", "en, de;q=0.5")],
            &[("Accept-Language", "en;q=0.5, de")],
            false,
        ),
        row("9110 12.4.2 other weight", "accept-language", &[("Accept-Language", "de;q=0.5")], &[("Accept-Language", "de;q=0.6")], false),
        row("9110 12.5.3 order and case", "accept-encoding", &[("Accept-Encoding", "gzip, BR")], &[("Accept-Encoding", "br,gzip")], true),
        row("9110 12.5.3 refused", "accept-encoding", &[("Accept-Encoding", "gzip;q=0")], &[("Accept-Encoding", "gzip")], false),
        row("9110 12.5.3 empty is identity", "accept-encoding", &[("Accept-Encoding", "")], &[], false),
        row("9113 8.2.3 lines of cookies", "cookie", &[("Cookie", "a=1; b=2")], &[("Cookie", "a=1"), ("Cookie", "b=2")], true),
        row(
            "9110 5.3 no list: lines are not joined",
            "user-agent",
            &[("User-Agent", "a,b")],
            &[("User-Agent", "a"), ("User-Agent", "b")],
            false,
        ),
        row("4.1 quoted strings over lines", "foo", &[("Foo", "\"a , b\", c")], &[("Foo", "\"a , b\""), ("Foo", "c")], true),
        row("6265 cookies are bytes", "cookie", &[("Cookie", "a=1, 2")], &[("Cookie", "a=1,2")], false),
    ] {
        let vary = Vary::parse(&fields(&[("Vary", names)]));
        let key = |lines| vary.secondary_key(&fields(lines), &as_sent());
        assert_eq!(key(a) == key(b), same, "{section}");
    }
}

/// The client's Accept-Encoding goes to the origin as it came, so its value selects.
fn as_sent() -> CachePolicy {
    CachePolicy { accept_encoding: AcceptEncoding::Forward, ..CachePolicy::default() }
}

#[test]
fn an_accept_encoding_that_we_decide_selects_by_what_the_origin_is_asked() {
    let vary = Vary::parse(&fields(&[("Vary", "Accept-Encoding")]));
    let same = |a: &[(&str, &str)], b: &[(&str, &str)], policy: &CachePolicy| {
        let key = vary.secondary_key(&fields(a), policy);
        assert_eq!(vary.matches(&fields(b), &key, policy), key == vary.secondary_key(&fields(b), policy));
        vary.matches(&fields(b), &key, policy)
    };
    let normalise = CachePolicy::default();
    let accept = |value| [("Accept-Encoding", value)];
    assert!(same(&accept("gzip, deflate, br, zstd"), &accept("gzip"), &normalise));
    assert!(same(&accept("*"), &accept("br, gzip;q=0.1"), &normalise));
    assert!(same(&accept("br"), &[], &normalise));
    assert!(same(&accept("gzip;q=0, *"), &[], &normalise));
    assert!(!same(&accept("gzip"), &accept("br"), &normalise));
    let identity = CachePolicy { accept_encoding: AcceptEncoding::Identity, ..CachePolicy::default() };
    assert!(same(&accept("gzip"), &accept("br"), &identity));
    assert!(!same(&accept("gzip"), &accept("br"), &as_sent()));
}

#[test]
fn a_response_that_varies_on_what_differs_with_every_client_is_nobody_elses() {
    for names in ["X-Forwarded-For", "accept, forwarded", "X-Request-ID"] {
        assert!(Vary::parse(&fields(&[("Vary", names)])).is_star(), "{names}");
    }
    assert!(!Vary::parse(&fields(&[("Vary", "X-Forwarded-Proto")])).is_star(), "the scheme is in the key");
}

#[test]
fn fields_that_are_reduced_for_the_origin_select_by_what_is_left() {
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let vary = VaryPolicy { languages: list(&["en", "de"]), images: list(&["image/webp"]), ..VaryPolicy::default() };
    let policy = CachePolicy { vary, ..CachePolicy::default() };
    let key = |names: &str, name: &str, value: Option<&str>, policy: &CachePolicy| {
        let request = value.map_or_else(|| fields(&[]), |value| fields(&[(name, value)]));
        String::from_utf8(Vary::parse(&fields(&[("Vary", names)])).secondary_key(&request, policy).0.into_vec()).unwrap()
    };
    let language = |value| key("Accept-Language", "Accept-Language", value, &policy);
    assert_eq!(language(Some("fr, de-CH;q=0.8, en;q=0.7")), "accept-language:de\n");
    assert_eq!((language(Some("fr")), language(Some("*"))), (language(None), "accept-language\n".into()), "4647 3.4: the default");
    let accept = |value| key("Accept", "Accept", value, &policy);
    assert_eq!(accept(Some("image/avif,image/webp,*/*;q=0.8")), "accept:image/webp, */*;q=0.8\n");
    assert_eq!(accept(Some("image/png,*/*")), accept(None));
    assert_eq!(accept(Some("text/html , application/json")), "accept:text/html,application/json\n", "no image is asked for");
    let plain = CachePolicy::default();
    assert_eq!(key("Accept", "Accept", Some("image/webp , */*"), &plain), "accept:image/webp,*/*\n", "4.1 white space alone");
}

#[test]
fn responses_with_other_vary_do_not_share_keys() {
    let request = fields(&[("Foo", "1"), ("Bar", "1")]);
    let key = |names| Vary::parse(&fields(&[("Vary", names)])).secondary_key(&request, &CachePolicy::default());
    assert_ne!(key("foo"), key("bar"));
    assert_ne!(key("foo"), key("foo, bar"));
    assert_eq!(key("bar, foo"), key("foo, bar"));
}
