//! Targets and cache keys: RFC 9110 §4.2, §7.1, §7.2; RFC 9112 §3.2; RFC 3986 §5, §6; RFC 9111 §2.

use super::freshness::fields;
use tiercel::semantics::class::{ClassRule, ClientClass};
use tiercel::semantics::condition::ValueMatch;
use tiercel::semantics::key::{CacheKey, KeyPolicy};
use tiercel::semantics::target::{Scheme, Target, TargetError};
use tiercel::semantics::{Fields, hop};

fn parse(raw: &str, host: &str) -> Result<String, TargetError> {
    Target::parse(Scheme::Http, raw.as_bytes(), &fields(&[("Host", host)]), false).map(|target| target.to_string())
}

#[test]
fn targets_are_normalised_or_refused() {
    use TargetError::{Byte, Form, Path, Userinfo};
    for (section, raw, want) in [
        ("9112 3.2.1 origin form", "/a/b?c=d", Ok("/a/b?c=d")),
        ("9112 3.2.1 empty query", "/a?", Ok("/a?")),
        ("9112 3.2.1 question marks in a query", "/a?b?c", Ok("/a?b?c")),
        ("9112 3.2.2 absolute form", "http://h/a?b", Ok("/a?b")),
        ("9112 3.2.2 scheme in any case", "HTTP://H/a", Ok("/a")),
        ("9110 4.2.3 empty path", "http://h", Ok("/")),
        ("9110 4.2.3 empty path with query", "http://h?a", Ok("/?a")),
        ("9110 4.2.3 default port", "http://h:80/a", Ok("/a")),
        ("9110 4.2.4 userinfo", "http://u:p@h/a", Err(Userinfo)),
        ("9112 3.2.3 authority form", "h:443", Err(Form)),
        ("9112 3.2 another scheme", "ftp://h/a", Err(Form)),
        ("9110 7.4 another scheme than the connection's", "https://h/a", Err(Form)),
        ("9112 3.2 no form", "a/b", Err(Form)),
        ("9112 3.2 empty", "", Err(Form)),
        ("9112 3.2 one slash", "http:/h/a", Err(Form)),
        ("9110 4.1 fragment", "/a#b", Err(Byte)),
        ("9110 4.1 fragment in a query", "/a?b#c", Err(Byte)),
        ("9110 4.1 fragment of an absolute form", "http://h#b", Err(Byte)),
        ("9112 3.2 space", "/a b", Err(Byte)),
        ("9112 3.2 control byte", "/a\u{1}b", Err(Byte)),
        ("9112 3.2 control byte in a query", "/a?\u{7f}", Err(Byte)),
        ("9112 3.2 bytes above ASCII", "/caf\u{e9}", Err(Byte)),
        ("9112 3.2 bytes above ASCII in a query", "/?caf\u{e9}", Err(Byte)),
        ("3986 6.2.2.1 case of encodings", "/%c3%a9", Ok("/%C3%A9")),
        ("3986 6.2.2.1 case of the path", "/aB", Ok("/aB")),
        ("3986 6.2.2.2 unreserved characters", "/%41%7E%2d?%61=%5F", Ok("/A~-?a=_")),
        ("3986 6.2.2.2 reserved characters", "/%3B%3f?%26", Ok("/%3B%3F?%26")),
        ("3986 6.2.2.2 only once", "/%2541", Ok("/%2541")),
        ("3986 2.1 malformed encoding", "/%4", Err(Byte)),
        ("3986 2.1 malformed encoding", "/%zz", Err(Byte)),
        ("3986 2.1 malformed encoding in a query", "/?100%&%4%31", Ok("/?100%25&%2541")),
        ("3986 3.3 what browsers leave raw", "/a[1]|\"", Ok("/a%5B1%5D%7C%22")),
        ("3986 3.4 what browsers leave raw in a query", "/?a[1]|{}\\^\"", Ok("/?a[1]|{}\\^%22")),
        ("3986 5.2.4 dot segments", "/a/./b/../c", Ok("/a/c")),
        ("3986 5.2.4 at the end", "/a/b/..", Ok("/a/")),
        ("3986 5.2.4 at the end", "/a/.", Ok("/a/")),
        ("3986 5.2.4 empty segments are segments", "/a//../b", Ok("/a/b")),
        ("3986 5.2.4 encoded", "/a/%2e%2E/b", Ok("/b")),
        ("3986 5.2.4 not segments", "/a../.b/..c/...", Ok("/a../.b/..c/...")),
        ("3986 5.2.4 not in a query", "/a?/../b", Ok("/a?/../b")),
        ("design: above the root", "/../a", Err(Path)),
        ("design: above the root", "/a/../../b", Err(Path)),
        ("design: path parameter on a dot segment", "/a/..;/b", Err(Path)),
        ("design: path parameter on a dot segment", "/.;x=1/b", Err(Path)),
        ("3986 3.3 other path parameters", "/a;b=c/d", Ok("/a;b=c/d")),
        ("design: encoded slash", "/a%2fb", Err(Path)),
        ("design: backslash", "/a\\b", Err(Path)),
        ("design: encoded backslash", "/a%5Cb", Err(Path)),
        ("design: NUL", "/a%00", Err(Path)),
        ("design: encoded line feed", "/a%0a.css", Err(Path)),
        ("design: encoded slash in a query", "/?a%2fb%5c%00", Ok("/?a%2Fb%5C%00")),
        ("design: several slashes stay", "//a//b", Ok("//a//b")),
    ] {
        assert_eq!(parse(raw, "h"), want.map(|rest| format!("http://h{rest}")), "{section}: {raw}");
    }
}

#[test]
fn lenient_paths_are_kept_encoded() {
    for (raw, want) in [("/a%2fb", "/a%2Fb"), ("/a\\b", "/a%5Cb"), ("/a%5cb%00%0a", "/a%5Cb%00%0A"), ("/..;/a", "/..;/a")] {
        let target = Target::parse(Scheme::Http, raw.as_bytes(), &fields(&[("Host", "h")]), true).unwrap();
        assert_eq!(target.path(), want);
        assert_eq!(Target::from_url(target.as_str()).unwrap(), target, "a purge reaches it");
    }
    let lenient = |raw: &str| Target::parse(Scheme::Http, raw.as_bytes(), &fields(&[("Host", "h")]), true);
    assert_eq!(lenient("/../a"), Err(TargetError::Path));
    assert_eq!(lenient("/a\u{1}"), Err(TargetError::Byte));
}

#[test]
fn hosts_are_normalised_or_refused() {
    use TargetError::HostMalformed;
    for (section, host, want) in [
        ("3986 3.2.2 case", "Shop.EXAMPLE", Ok("shop.example")),
        ("3986 3.2.3 port", "h:8080", Ok("h:8080")),
        ("3986 6.2.3 default port", "h:80", Ok("h")),
        ("3986 6.2.3 empty port", "h:", Ok("h")),
        ("3986 6.2.3 zeros", "h:0080", Ok("h")),
        ("3986 3.2.2 IPv4", "127.0.0.1:1", Ok("127.0.0.1:1")),
        ("3986 3.2.2 IPv6", "[2001:DB8:0:0::1]:81", Ok("[2001:db8::1]:81")),
        ("3986 3.2.2 sub-delims", "a_b!c", Ok("a_b!c")),
        ("3986 6.2.2.2 encoded unreserved", "%41b", Ok("ab")),
        ("3986 3.2.2 encoded otherwise", "a%2Fb", Err(HostMalformed)),
        ("3986 2.1 malformed encoding", "a%4", Err(HostMalformed)),
        ("9110 4.2.1 empty", "", Err(HostMalformed)),
        ("9110 4.2.1 port only", ":80", Err(HostMalformed)),
        ("3986 3.2.3 two ports", "h:80:80", Err(HostMalformed)),
        ("3986 3.2.3 no number", "h:8a", Err(HostMalformed)),
        ("6335 6 no port", "h:0", Err(HostMalformed)),
        ("6335 6 too large", "h:65536", Err(HostMalformed)),
        ("6335 6 too large", "h:99999999999999999999", Err(HostMalformed)),
        ("9110 4.2.4 userinfo", "u@h", Err(HostMalformed)),
        ("9110 7.2 path", "h/a", Err(HostMalformed)),
        ("9110 7.2 query", "h?a", Err(HostMalformed)),
        ("9110 7.2 space", "h h", Err(HostMalformed)),
        ("9110 7.2 not ASCII", "h\u{e9}", Err(HostMalformed)),
        ("3986 3.2.2 unfinished", "[::1", Err(HostMalformed)),
        ("3986 3.2.2 no address", "[h]", Err(HostMalformed)),
        ("3986 3.2.2 rest", "[::1]h", Err(HostMalformed)),
        ("3986 3.2.2 zone", "[fe80::1%25eth0]", Err(HostMalformed)),
        ("3986 3.2.2 bare IPv6", "::1", Err(HostMalformed)),
    ] {
        assert_eq!(parse("/", host), want.map(|host| format!("http://{host}/")), "{section}: {host}");
    }
}

#[test]
fn there_is_one_host_and_it_agrees_with_the_target() {
    let of = |raw: &str, hosts: &[&str]| {
        let lines: Vec<_> = hosts.iter().map(|host| ("Host", *host)).collect();
        Target::parse(Scheme::Http, raw.as_bytes(), &fields(&lines), false).map(|target| target.to_string())
    };
    assert_eq!(of("/", &[]), Err(TargetError::HostMissing), "9112 3.2");
    assert_eq!(of("http://h/", &[]), Err(TargetError::HostMissing), "9112 3.2: also with the absolute form");
    assert_eq!(of("/", &["h", "h"]), Err(TargetError::HostRepeated), "9112 3.2: more than one line");
    assert_eq!(of("http://h/", &["i"]), Err(TargetError::HostDisagrees), "design: it must agree");
    assert_eq!(of("http://h:81/", &["h"]), Err(TargetError::HostDisagrees), "design: with the port too");
    assert_eq!(of("http://h:80/", &["H"]), Ok("http://h/".into()), "3986 6.2: equivalent");
    assert_eq!(of("http:///", &["h"]), Err(TargetError::HostMalformed), "9110 4.2.1: empty host");
    let https = Target::parse(Scheme::Https, b"https://h:443/", &fields(&[("Host", "h")]), false).unwrap();
    assert_eq!((https.as_str(), https.scheme()), ("https://h/", Scheme::Https));
    let star = Target::parse(Scheme::Http, b"*", &fields(&[("Host", "h")]), false).unwrap();
    assert!(star.is_asterisk(), "9112 3.2.4");
}

#[test]
fn references_resolve_as_in_rfc_3986_section_5_4() {
    let base = Target::from_url("http://a/b/c/d;p?q").unwrap();
    for (reference, want) in [
        ("g", "http://a/b/c/g"),
        ("./g", "http://a/b/c/g"),
        ("g/", "http://a/b/c/g/"),
        ("/g", "http://a/g"),
        ("//g", "http://g/"),
        ("?y", "http://a/b/c/d;p?y"),
        ("g?y", "http://a/b/c/g?y"),
        ("#s", "http://a/b/c/d;p?q"),
        ("g#s", "http://a/b/c/g"),
        ("g?y#s", "http://a/b/c/g?y"),
        (";x", "http://a/b/c/;x"),
        ("g;x", "http://a/b/c/g;x"),
        ("", "http://a/b/c/d;p?q"),
        (".", "http://a/b/c/"),
        ("./", "http://a/b/c/"),
        ("..", "http://a/b/"),
        ("../", "http://a/b/"),
        ("../g", "http://a/b/g"),
        ("../..", "http://a/"),
        ("../../g", "http://a/g"),
        ("../../../g", "http://a/g"),
        ("/./g", "http://a/g"),
        ("/../g", "http://a/g"),
        ("g.", "http://a/b/c/g."),
        ("..g", "http://a/b/c/..g"),
        ("./g/.", "http://a/b/c/g/"),
        ("g/./h", "http://a/b/c/g/h"),
        ("g/../h", "http://a/b/c/h"),
        ("g;x=1/../y", "http://a/b/c/y"),
        ("g?y/../x", "http://a/b/c/g?y/../x"),
        ("http://B:80/x", "http://b/x"),
        ("HTTPS://b/x", "https://b/x"),
        ("g:h/..", ""),
        ("mailto:x", ""),
        ("http:g", ""),
        ("./g:h", "http://a/b/c/g:h"),
        ("?a:b", "http://a/b/c/d;p?a:b"),
        ("caf\u{e9} x", "http://a/b/c/caf%C3%A9%20x"),
    ] {
        let got = base.resolve(reference).map(|target| target.to_string()).unwrap_or_default();
        assert_eq!(got, want, "{reference}");
    }
}

#[test]
fn paths_can_be_rewritten() {
    let base = Target::from_url("https://a:8443/b?c").unwrap();
    assert_eq!(base.with_path_and_query("/x/../y%41", Some("z")).unwrap().as_str(), "https://a:8443/yA?z");
    assert_eq!(base.with_path_and_query("x", None).unwrap().as_str(), "https://a:8443/x");
    assert_eq!(base.with_path_and_query("", Some("")).unwrap().as_str(), "https://a:8443/?");
    assert_eq!(base.with_path_and_query("/a?b", None), Err(TargetError::Byte));
    assert_eq!(base.with_path_and_query("/a\n", None), Err(TargetError::Byte));
    assert_eq!(Target::from_url("a.example/x"), Err(TargetError::Form));
    assert_eq!(Target::from_url("http://u@a/x"), Err(TargetError::Userinfo));
}

fn key(url: &str, lines: &[(&str, &str)], policy: &KeyPolicy) -> CacheKey {
    CacheKey::new(&Target::from_url(url).unwrap(), &fields(lines), policy)
}

#[test]
fn the_primary_key_is_the_target_and_what_the_route_adds() {
    let plain = key("http://a/b?z=1&a=2", &[("Cookie", "s=1")], &KeyPolicy::default());
    assert_eq!((plain.as_str(), plain.url()), ("http://a/b?z=1&a=2", "http://a/b?z=1&a=2"));
    assert_ne!(plain, key("https://a/b?z=1&a=2", &[], &KeyPolicy::default()), "scheme");
    assert_eq!(plain.url_hash(), key("https://a/b?z=1&a=2", &[], &KeyPolicy::default()).url_hash(), "a purge takes both schemes");
    assert_ne!(plain.hash(), plain.url_hash());

    let sort = KeyPolicy { query_sort: true, ..KeyPolicy::default() };
    let ignore = KeyPolicy { query_ignore: vec!["utm_*".into(), "fbclid".into(), "a[b]".into()], ..KeyPolicy::default() };
    let allow = KeyPolicy { query_allow: Some(vec!["id".into(), "p*".into()]), query_sort: true, ..KeyPolicy::default() };
    let none = KeyPolicy { query_allow: Some(vec![]), ..KeyPolicy::default() };
    for (name, policy, url, want) in [
        ("sorted, stable", &sort, "http://a/?b=2&a=1&b=1&&a", "http://a/?a=1&a&b=2&b=1"),
        ("ignored", &ignore, "http://a/?utm_source=x&id=1&fbclid=y&utm_=", "http://a/?id=1"),
        ("ignored in any spelling", &ignore, "http://a/?a%5Bb%5D=1&a[b]=2&a[c]=3", "http://a/?a[c]=3"),
        ("only the names that are listed", &ignore, "http://a/?fbclid2=1&Fbclid=2", "http://a/?fbclid2=1&Fbclid=2"),
        ("nothing left", &ignore, "http://a/?fbclid", "http://a/"),
        ("no parameter smuggled behind a semicolon", &ignore, "http://a/?fbclid=1;id=2", "http://a/?fbclid=1;id=2"),
        ("allowed", &allow, "http://a/?x=1&page=2&id=3&p=4", "http://a/?id=3&p=4&page=2"),
        ("none allowed", &none, "http://a/?x=1", "http://a/"),
        ("no query", &sort, "http://a/", "http://a/"),
    ] {
        let key = key(url, &[], policy);
        assert_eq!(key.as_str(), want, "{name}");
        assert_eq!(key.url_hash(), Target::from_url(want).unwrap().url_hash(), "{name}: what a purge of the normalised URL matches");
    }
}

#[test]
fn field_and_cookie_parts_are_lines_of_their_own() {
    let policy = KeyPolicy { headers: vec!["X-Country".into()], cookies: vec!["lang".into()], ..KeyPolicy::default() };
    let of = |lines: &[(&str, &str)]| key("http://a/?q", lines, &policy).as_str().to_owned();
    assert_eq!(of(&[]), "http://a/?q\nheader x-country\ncookie lang");
    assert_eq!(of(&[("x-country", "DE"), ("Cookie", "a=b; lang=de")]), "http://a/?q\nheader x-country:DE\ncookie lang:de");
    assert_ne!(of(&[("x-country", "")]), of(&[]), "absent is not empty");
    assert_ne!(of(&[("Cookie", "lang=a:b")]), of(&[("Cookie", "lang=a; lang=b")]));
    assert_ne!(of(&[("x-country", "\\xe9")]), of(&[("x-country", "\u{e9}")]));
    assert_eq!(of(&[("x-country", "a , b")]), of(&[("x-country", "a"), ("X-Country", "b")]));
    assert_eq!(key("http://a/?q", &[("x-country", "DE")], &policy).url(), "http://a/?q");
    assert_eq!(key("http://a/?q", &[("x-country", "DE")], &policy).url_hash(), key("http://a/?q", &[], &policy).url_hash());
}

#[test]
fn tracking_parameters_do_not_count_by_one_switch() {
    let policy = KeyPolicy { ignore_tracking: true, ..KeyPolicy::default() };
    let url = "http://a/?utm_source=x&gclid=1&id=2&utm%5Fmedium=y&fbclid&msclkid=";
    assert_eq!(key(url, &[], &policy).as_str(), "http://a/?id=2");
    assert_eq!(key(url, &[], &KeyPolicy::default()).as_str(), Target::from_url(url).unwrap().as_str());
    assert_eq!(key("http://a/?UTM_source=x&ref=y", &[], &policy).as_str(), "http://a/?UTM_source=x&ref=y");
}

#[test]
fn a_class_stands_in_the_key_for_the_field_that_it_is_made_of() {
    let rule = ClassRule { value: "mobile".into(), headers: vec![("user-agent".into(), ValueMatch::Prefix("M".into()))] };
    let class = ClientClass { name: "device".into(), rules: vec![rule], default: "other".into(), forward: None };
    let policy = KeyPolicy { classes: vec![class], ..KeyPolicy::default() };
    let of = |agent| key("http://a/", &[("User-Agent", agent)], &policy);
    assert_eq!(of("M1").as_str(), "http://a/\nclass device:mobile");
    assert_eq!((of("M1"), of("x").as_str()), (of("M2"), "http://a/\nclass device:other"));
    assert_eq!(of("M1").url_hash(), key("http://a/", &[], &KeyPolicy::default()).url_hash(), "a purge of the URL takes all classes");
}

#[test]
fn forwarding_fields_that_say_something_else_than_the_target_are_keyed() {
    let of = |lines: &[(&str, &str)]| key("https://a/b?c", lines, &KeyPolicy::default()).as_str().to_owned();
    let agreeing = [("X-Forwarded-Host", "A"), ("X-Forwarded-Port", "443"), ("X-Forwarded-For", "192.0.2.1")];
    assert_eq!(of(&agreeing), "https://a/b?c");
    assert_eq!(
        of(&[("X-Forwarded-Port", "8443"), ("X-Forwarded-Host", "b"), ("X-Forwarded-Prefix", "/p:q")]),
        "https://a/b?c\nforwarded x-forwarded-host:b\nforwarded x-forwarded-port:8443\nforwarded x-forwarded-prefix:/p\\x3aq"
    );
}

#[test]
fn connection_options_do_not_travel() {
    let mut lines: Fields = fields(&[("Connection", "close, X-Hop"), ("X-Hop", "1"), ("TE", "trailers"), ("X-End", "2")]);
    hop::strip(&mut lines);
    assert_eq!(lines.wire(), b"x-end: 2\r\n", "9110 7.6.1");
}
