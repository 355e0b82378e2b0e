//! RFC 9110 §13, §15.4.5; RFC 9111 §4.3.2: conditions of the client on a stored response.

use super::reuse::{Asked, Lines, NOW, fields};
use tiercel::semantics::precondition::Precondition::{Failed, Holds, NotModified};
use tiercel::semantics::precondition::{Precondition, evaluate, not_modified_fields, strong_match, weak_match};
use tiercel::semantics::{Method, Response, StatusCode};

const BEFORE: &str = "Sun, 12 Nov 2023 22:13:20 GMT";
const MODIFIED: &str = "Mon, 13 Nov 2023 22:13:20 GMT";
const AFTER: &str = "Mon, 13 Nov 2023 22:13:21 GMT";
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

/// Section and sentence; stored fields; fields of the request; answer.
type Row<'a> = (&'a str, Lines<'a>, Lines<'a>, Precondition);

fn check(rows: &[Row<'_>]) {
    for (rule, stored, asked, want) in rows {
        let stored = fields(stored);
        for method in [Method::GET, Method::HEAD] {
            let asked = Asked::new(&method, asked);
            let answer = evaluate(asked.request(), Response { status: StatusCode::OK, fields: &stored }, NOW.wall_ms);
            assert_eq!(answer, *want, "{rule} ({method})");
        }
    }
}

#[test]
fn if_none_match() {
    let strong: Lines<'_> = &[("etag", "\"a\""), ("last-modified", MODIFIED)];
    let weak: Lines<'_> = &[("etag", "W/\"a\"")];
    let odd: Lines<'_> = &[("etag", "\"a,b\\\"")];
    check(&[
        ("13.1.2: a listed tag matches", strong, &[("if-none-match", "\"a\"")], NotModified),
        ("13.1.2: none matches", strong, &[("if-none-match", "\"b\"")], Holds),
        ("13.1.2: first of a list", strong, &[("if-none-match", "\"a\", \"b\", \"c\"")], NotModified),
        ("13.1.2: middle of a list", strong, &[("if-none-match", "\"b\",\"a\" , \"c\"")], NotModified),
        ("13.1.2: last of a list", strong, &[("if-none-match", "\"b\", , \"c\", \"a\"")], NotModified),
        ("5.3: over several lines", strong, &[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], NotModified),
        ("13.1.2: weak comparison, listed weak", strong, &[("if-none-match", "W/\"a\"")], NotModified),
        ("13.1.2: weak comparison, stored weak", weak, &[("if-none-match", "\"a\"")], NotModified),
        ("13.1.2: weak comparison, both", weak, &[("if-none-match", "W/\"b\", W/\"a\"")], NotModified),
        ("13.1.2: * is any representation", strong, &[("if-none-match", "*")], NotModified),
        ("13.1.2: * where there is no tag", &[], &[("if-none-match", "*")], NotModified),
        ("8.8.3: * in quotes is a tag", strong, &[("if-none-match", "\"*\"")], Holds),
        ("13.1.2: a tag where there is none", &[], &[("if-none-match", "\"a\"")], Holds),
        ("8.8.3: comma and backslash mean nothing in a tag", odd, &[("if-none-match", "\"x\\\", \"a,b\\\"")], NotModified),
        ("8.8.3: half of a tag with a comma", odd, &[("if-none-match", "\"a\", \"b\\\"")], Holds),
        ("8.8.3: tags without quotes match only themselves", &[("etag", "a")], &[("if-none-match", "b, a")], NotModified),
        ("8.8.3: tags without quotes match only themselves", &[("etag", "\"a\"")], &[("if-none-match", "a")], Holds),
        ("8.8.3: W/ is case-sensitive", strong, &[("if-none-match", "w/\"a\"")], Holds),
        ("13.1.3: If-Modified-Since is ignored beside it", strong, &[("if-none-match", "\"b\""), ("if-modified-since", DATE)], Holds),
        ("13.1.3: also where it would hold", strong, &[("if-none-match", "\"a\""), ("if-modified-since", BEFORE)], NotModified),
    ]);
}

#[test]
fn if_modified_since() {
    let stored: Lines<'_> = &[("last-modified", MODIFIED), ("date", DATE)];
    let undated: Lines<'_> = &[("date", MODIFIED)];
    check(&[
        ("13.1.3: the same date", stored, &[("if-modified-since", MODIFIED)], NotModified),
        ("13.1.3: a later date", stored, &[("if-modified-since", AFTER)], NotModified),
        ("13.1.3: an earlier date", stored, &[("if-modified-since", BEFORE)], Holds),
        ("5.6.7: rfc850 form", stored, &[("if-modified-since", "Monday, 13-Nov-23 22:13:20 GMT")], NotModified),
        ("5.6.7: asctime form", stored, &[("if-modified-since", "Mon Nov 13 22:13:20 2023")], NotModified),
        ("5.6.7: rfc850 form, earlier", stored, &[("if-modified-since", "Sunday, 12-Nov-23 22:13:20 GMT")], Holds),
        (
            "5.6.7: the stored one in asctime form",
            &[("last-modified", "Mon Nov 13 22:13:20 2023")],
            &[("if-modified-since", MODIFIED)],
            NotModified,
        ),
        ("13.1.3: not a date", stored, &[("if-modified-since", "yesterday")], Holds),
        ("13.1.3: more than one member", stored, &[("if-modified-since", AFTER), ("if-modified-since", AFTER)], Holds),
        ("9111 4.3.2: Date where there is no Last-Modified", undated, &[("if-modified-since", MODIFIED)], NotModified),
        ("9111 4.3.2: a Date later than asked for", undated, &[("if-modified-since", BEFORE)], Holds),
        ("13.1.3: no modification date", &[], &[("if-modified-since", DATE)], Holds),
        ("13.1.3: one that cannot be read", &[("last-modified", "x"), ("date", MODIFIED)], &[("if-modified-since", DATE)], Holds),
    ]);
}

#[test]
fn conditions_of_an_origin_server() {
    let stored: Lines<'_> = &[("etag", "\"a\""), ("last-modified", MODIFIED), ("date", DATE)];
    check(&[
        ("13.1.1: a listed tag matches", stored, &[("if-match", "\"b\", \"a\"")], Holds),
        ("13.1.1: none matches", stored, &[("if-match", "\"b\"")], Failed),
        ("13.1.1: strong comparison", stored, &[("if-match", "W/\"a\"")], Failed),
        ("13.1.1: strong comparison", &[("etag", "W/\"a\"")], &[("if-match", "W/\"a\"")], Failed),
        ("13.1.1: *", &[], &[("if-match", "*")], Holds),
        ("13.1.4: not modified since", stored, &[("if-unmodified-since", MODIFIED)], Holds),
        ("13.1.4: modified since", stored, &[("if-unmodified-since", BEFORE)], Failed),
        ("13.1.4: not a date", stored, &[("if-unmodified-since", "x")], Holds),
        ("13.1.4: no modification date; Date does not stand in", &[("date", DATE)], &[("if-unmodified-since", BEFORE)], Holds),
        ("13.2.2: If-Match replaces If-Unmodified-Since", stored, &[("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Holds),
        ("13.2.2: If-Match comes before If-None-Match", stored, &[("if-match", "\"b\""), ("if-none-match", "\"a\"")], Failed),
        ("13.2.2: then If-None-Match", stored, &[("if-match", "\"a\""), ("if-none-match", "\"a\"")], NotModified),
        ("13.2.2: then If-Modified-Since", stored, &[("if-unmodified-since", AFTER), ("if-modified-since", AFTER)], NotModified),
    ]);
}

#[test]
fn conditions_are_ignored_where_they_do_not_apply() {
    let stored = fields(&[("etag", "\"a\""), ("last-modified", MODIFIED)]);
    let conditions: Lines<'_> = &[("if-match", "\"b\""), ("if-none-match", "\"a\""), ("if-modified-since", AFTER)];
    for status in [204, 206, 301, 404, 410, 500] {
        let response = Response { status: StatusCode::from_u16(status).expect("a status"), fields: &stored };
        assert_eq!(evaluate(Asked::get(conditions).request(), response, NOW.wall_ms), Holds, "13.2.1: {status}");
    }
    for method in [Method::OPTIONS, Method::TRACE, Method::POST] {
        let asked = Asked::new(&method, conditions);
        let response = Response { status: StatusCode::OK, fields: &stored };
        assert_eq!(evaluate(asked.request(), response, NOW.wall_ms), Holds, "13.2.1: {method}");
    }
}

#[test]
fn comparison_of_tags() {
    let rows = [
        ("W/\"1\"", "W/\"1\"", false, true),
        ("W/\"1\"", "W/\"2\"", false, false),
        ("W/\"1\"", "\"1\"", false, true),
        ("\"1\"", "\"1\"", true, true),
        ("\"1\"", "\"2\"", false, false),
        ("\"\"", "\"\"", true, true),
    ];
    for (a, b, strong, weak) in rows {
        for (a, b) in [(a, b), (b, a)] {
            assert_eq!(strong_match(a.as_bytes(), b.as_bytes()), strong, "8.8.3.2: {a} {b}");
            assert_eq!(weak_match(a.as_bytes(), b.as_bytes()), weak, "8.8.3.2: {a} {b}");
        }
    }
}

#[test]
fn a_304_has_what_a_200_would_have_but_for_metadata() {
    let kept: Lines<'_> = &[
        ("content-location", "/a"),
        ("date", DATE),
        ("etag", "\"a\""),
        ("vary", "accept"),
        ("cache-control", "max-age=1"),
        ("expires", DATE),
        ("set-cookie", "a=b"),
        ("x-other", "1"),
    ];
    let dropped = ["content-type", "content-encoding", "content-language", "content-length", "content-range", "content-digest"];
    let mut stored = fields(kept);
    for name in dropped.iter().chain(&["last-modified"]) {
        stored.push(name, "x").expect("a valid line");
    }
    assert_eq!(not_modified_fields(&stored), fields(kept), "15.4.5");
    let untagged = fields(&[("last-modified", MODIFIED), ("content-type", "a/b")]);
    assert_eq!(not_modified_fields(&untagged), fields(&[("last-modified", MODIFIED)]), "15.4.5: useful where there is no ETag");
}
