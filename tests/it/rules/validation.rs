//! RFC 9111 §3.2, §4.3: conditional requests and what their answers do to a stored response.

use super::reuse::{Lines, NOW, facts, fields};
use tiercel::semantics::policy::CachePolicy;
use tiercel::semantics::storage::stored_fields;
use tiercel::semantics::validation::{add_conditions, also_selects, changes_representation, head_fits, selects, strip_conditions, update};
use tiercel::semantics::{Fields, Response, StatusCode};

/// A day before [`NOW`]: Tue, 14 Nov 2023 22:13:20 GMT.
const MODIFIED: &str = "Mon, 13 Nov 2023 22:13:20 GMT";
const MODIFIED_RFC850: &str = "Monday, 13-Nov-23 22:13:20 GMT";
const EARLIER: &str = "Sun, 12 Nov 2023 22:13:20 GMT";
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

fn lines(fields: &Fields) -> Vec<(&str, String)> {
    fields.iter().map(|(name, value)| (name, String::from_utf8_lossy(value).into_owned())).collect()
}

fn owned<'a>(lines: Lines<'a>) -> Vec<(&'a str, String)> {
    lines.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn ok(fields: &Fields) -> Response<'_> {
    Response { status: StatusCode::OK, fields }
}

#[test]
fn conditions_are_made_from_the_stored_validators() {
    let rows: [(&str, Lines<'_>, Lines<'_>); 7] = [
        ("4.3.1: entity tags MUST be sent", &[("etag", "\"a\"")], &[("if-none-match", "\"a\"")]),
        ("4.3.1: weak ones too", &[("etag", "W/\"a\"")], &[("if-none-match", "W/\"a\"")]),
        ("4.3.1: Last-Modified SHOULD be sent", &[("last-modified", MODIFIED)], &[("if-modified-since", MODIFIED)]),
        ("4.3.1: byte for byte", &[("last-modified", MODIFIED_RFC850)], &[("if-modified-since", MODIFIED_RFC850)]),
        (
            "4.3.1: both, for old intermediaries",
            &[("last-modified", MODIFIED), ("etag", "\"a\"")],
            &[("if-none-match", "\"a\""), ("if-modified-since", MODIFIED)],
        ),
        ("9110 13.1.3: what is no date would be ignored", &[("last-modified", "yesterday")], &[]),
        ("4.3.1: without validators there is no condition", &[("date", DATE)], &[]),
    ];
    for (rule, stored, want) in rows {
        let (stored_fields, facts) = (fields(stored), facts(&[], stored));
        let mut request = fields(&[("accept", "text/html")]);
        assert_eq!(add_conditions(&mut request, ok(&stored_fields), &facts), !want.is_empty(), "{rule}");
        let want: Vec<_> = [("accept", "text/html".to_owned())].into_iter().chain(owned(want)).collect();
        assert_eq!(lines(&request), want, "{rule}");
    }
}

#[test]
fn a_validator_that_is_not_stored_is_none() {
    const TAG: (&str, &str) = ("etag", "\"a\"");
    const DATED: (&str, &str) = ("last-modified", MODIFIED);
    let (none, tag, date): (Lines<'_>, Lines<'_>, Lines<'_>) = (&[], &[("if-none-match", "\"a\"")], &[("if-modified-since", MODIFIED)]);
    let rows: [(&str, Lines<'_>, Lines<'_>); 8] = [
        ("5.2.2.7: a private tag MUST NOT be stored", &[TAG, ("cache-control", "private=\"ETag\"")], none),
        ("5.2.2.7: nor a private date", &[DATED, ("cache-control", "private=\"last-modified, x\"")], none),
        ("5.2.2.7: the other validator stays", &[TAG, DATED, ("cache-control", "private=etag")], date),
        ("5.2.2.7: either way", &[TAG, DATED, ("cache-control", "private=\"Last-Modified\"")], tag),
        ("5.2.2.7: another field is no matter", &[TAG, ("cache-control", "private=\"x-etag\"")], tag),
        ("5.2.2.4: what is only to be validated first is stored", &[TAG, ("cache-control", "no-cache=\"etag\"")], tag),
        ("9110 7.6.1: no connection takes a validator away", &[TAG, ("connection", "etag")], tag),
        (
            "9213 2.2: of directives only those that govern count",
            &[TAG, ("cdn-cache-control", "max-age=1"), ("cache-control", "private=\"etag\"")],
            tag,
        ),
    ];
    let policy = CachePolicy::default();
    for (rule, received, want) in rows {
        let (received_fields, facts) = (fields(received), facts(&[], received));
        let stored = stored_fields(ok(&received_fields), &facts, &policy);
        let mut request = Fields::new();
        assert_eq!(add_conditions(&mut request, ok(&stored), &facts), !want.is_empty(), "{rule}");
        assert_eq!((lines(&request), facts.has_validator()), (owned(want), !want.is_empty()), "{rule}");
        // §4.3.4: a 304 that names a strong tag where none is stored MUST NOT update, whatever was received; one that names
        // none means the one that was asked for.
        let is_stored = stored.contains("etag");
        assert_eq!(selects(&fields(&[TAG]), &stored, &facts), is_stored, "{rule}");
        assert_eq!(also_selects(&fields(&[TAG]), &stored, &facts), is_stored, "{rule}");
        assert!(selects(&fields(&[("date", DATE)]), &stored, &facts), "{rule}");
    }
}

#[test]
fn a_shared_request_carries_no_conditions_of_one_client() {
    let client: Lines<'_> = &[
        ("accept", "a"),
        ("if-match", "\"x\""),
        ("if-none-match", "\"x\""),
        ("if-none-match", "\"y\""),
        ("if-modified-since", MODIFIED),
        ("if-unmodified-since", MODIFIED),
        ("if-range", "\"x\""),
        ("range", "bytes=0-1"),
        ("cookie", "b"),
    ];
    let mut request = fields(client);
    strip_conditions(&mut request);
    assert_eq!(lines(&request), owned(&[("accept", "a"), ("cookie", "b")]));
    let stored: Lines<'_> = &[("etag", "\"a\"")];
    let mut conditional = fields(client);
    add_conditions(&mut conditional, ok(&fields(stored)), &facts(&[], stored));
    assert_eq!(conditional.values("if-none-match").collect::<Vec<_>>(), [b"\"a\""], "4.3.1: ours replaces the client's");
}

#[test]
fn a_304_selects_by_its_strongest_validators() {
    let tag_and_date: Lines<'_> = &[("date", DATE), ("etag", "\"a\""), ("last-modified", MODIFIED)];
    let weak_tag_and_date: Lines<'_> = &[("date", DATE), ("etag", "W/\"a\""), ("last-modified", MODIFIED)];
    let touched: Lines<'_> = &[("date", MODIFIED), ("etag", "\"a\""), ("last-modified", MODIFIED)];
    let rows: [(&str, Lines<'_>, Lines<'_>, bool); 17] = [
        ("4.3.4: the same strong tag", tag_and_date, &[("etag", "\"a\"")], true),
        ("4.3.4: another strong tag MUST NOT update", tag_and_date, &[("etag", "\"b\"")], false),
        ("4.3.4: one of the same strong validators is enough", tag_and_date, &[("etag", "\"b\""), ("last-modified", MODIFIED)], true),
        ("4.3.4: also where the date is the other one", tag_and_date, &[("etag", "\"a\""), ("last-modified", EARLIER)], true),
        ("4.3.4: none of the same", tag_and_date, &[("etag", "\"b\""), ("last-modified", EARLIER)], false),
        ("9110 8.8.2.2: a date of the same second is weak", touched, &[("etag", "\"b\""), ("last-modified", MODIFIED)], false),
        ("4.3.4: a weak date decides where nothing strong is there", touched, &[("last-modified", MODIFIED)], true),
        ("4.3.4: another date", touched, &[("last-modified", EARLIER)], false),
        ("9110 8.8.3.2: strong and weak do not match strongly", weak_tag_and_date, &[("etag", "\"a\"")], false),
        ("4.3.4: weak validators correspond", weak_tag_and_date, &[("etag", "W/\"a\"")], true),
        ("4.3.4: a weak tag corresponds to a strong one", tag_and_date, &[("etag", "W/\"a\"")], true),
        ("4.3.4: another weak tag", weak_tag_and_date, &[("etag", "W/\"b\"")], false),
        ("4.3.4: a strong date goes before a weak tag", weak_tag_and_date, &[("etag", "W/\"b\""), ("last-modified", MODIFIED)], true),
        ("9110 5.6.7: dates are compared, not their spelling", tag_and_date, &[("last-modified", MODIFIED_RFC850)], true),
        ("4.3.3: a 304 without validators means the one asked for", tag_and_date, &[("date", DATE)], true),
        ("4.3.4: neither has one", &[("date", DATE)], &[("date", DATE)], true),
        ("4.3.4: a tag for what had none", &[("date", DATE)], &[("etag", "\"a\"")], false),
    ];
    for (rule, stored, not_modified, want) in rows {
        assert_eq!(selects(&fields(not_modified), &fields(stored), &facts(&[], stored)), want, "{rule}");
    }
}

#[test]
fn a_304_updates_all_responses_with_one_of_its_strong_validators() {
    let stored: Lines<'_> = &[("date", DATE), ("etag", "\"a\""), ("last-modified", MODIFIED)];
    let rows: [(&str, Lines<'_>, bool); 5] = [
        ("4.3.4: the same strong tag", &[("etag", "\"a\"")], true),
        ("4.3.4: another strong tag, the same strong date", &[("etag", "\"b\""), ("last-modified", MODIFIED)], true),
        ("4.3.4: another strong tag", &[("etag", "\"b\"")], false),
        ("4.3.4: of weak ones only the most recent is updated", &[("etag", "W/\"a\"")], false),
        ("4.3.4: without validators only a single one", &[("date", DATE)], false),
    ];
    for (rule, not_modified, want) in rows {
        assert_eq!(also_selects(&fields(not_modified), &fields(stored), &facts(&[], stored)), want, "{rule}");
    }
}

#[test]
fn a_304_updates_the_stored_fields() {
    let rows: [(&str, Lines<'_>, Lines<'_>, Lines<'_>); 12] = [
        (
            "3.2: a field that is there is replaced",
            &[("a", "1"), ("b", "2")],
            &[("a", "3"), ("date", DATE)],
            &[("b", "2"), ("a", "3"), ("date", DATE)],
        ),
        ("3.2: with all its lines", &[("a", "1"), ("a", "2")], &[("a", "3"), ("a", "4")], &[("a", "3"), ("a", "4")]),
        ("3.2: a field that is not there is added", &[("b", "2")], &[("x-new", "3")], &[("b", "2"), ("x-new", "3")]),
        (
            "3.2: a field that the 304 omits stays",
            &[("test-header", "1"), ("date", DATE)],
            &[("date", DATE)],
            &[("test-header", "1"), ("date", DATE)],
        ),
        (
            "3.2: Content-* is no reason to leave a field alone",
            &[("content-type", "a/b")],
            &[("content-type", "c/d")],
            &[("content-type", "c/d")],
        ),
        ("3.2: except Content-Length", &[("content-length", "36")], &[("content-length", "10")], &[("content-length", "36")]),
        ("3.2: Content-Range MAY be omitted: it is of a body", &[("b", "2")], &[("content-range", "bytes 0-1/2")], &[("b", "2")]),
        ("3.2: also where it was not there", &[("b", "2")], &[("content-length", "10")], &[("b", "2")]),
        (
            "3.1: fields of the connection",
            &[("b", "2")],
            &[("connection", "x-hop, close"), ("x-hop", "1"), ("keep-alive", "1")],
            &[("b", "2")],
        ),
        ("3.1: fields of a proxy", &[("b", "2")], &[("proxy-authenticate", "x"), ("proxy-authentication-info", "y")], &[("b", "2")]),
        ("4.2.3: Age is of the message, not of the response", &[("b", "2")], &[("age", "30")], &[("b", "2")]),
        ("9110 6.6.1: without Date the time of receipt counts", &[("b", "2"), ("date", DATE)], &[("a", "1")], &[("b", "2"), ("a", "1")]),
    ];
    for (rule, stored, not_modified, want) in rows {
        assert_eq!(lines(&update(&fields(stored), &fields(not_modified))), owned(want), "{rule}");
    }
    for name in [
        "cache-control",
        "expires",
        "etag",
        "last-modified",
        "content-encoding",
        "content-md5",
        "content-location",
        "content-security-policy",
        "set-cookie",
        "vary",
    ] {
        let updated = update(&fields(&[(name, "a")]), &fields(&[(name, "b")]));
        assert_eq!(lines(&updated), owned(&[(name, "b")]), "3.2: {name} is replaced");
    }
}

#[test]
fn a_head_response_freshens_what_it_fits() {
    let stored: Lines<'_> = &[("etag", "\"a\""), ("last-modified", MODIFIED), ("content-length", "5")];
    let rows: [(&str, u16, Lines<'_>, bool); 9] = [
        ("4.3.5: all match", 200, stored, true),
        ("4.3.5: only received validators count", 200, &[("x", "1")], true),
        ("4.3.5: another tag", 200, &[("etag", "\"b\"")], false),
        ("4.3.5: weak is another value", 200, &[("etag", "W/\"a\"")], false),
        ("4.3.5: another date", 200, &[("etag", "\"a\""), ("last-modified", EARLIER)], false),
        ("4.3.5: another length", 200, &[("etag", "\"a\""), ("content-length", "6")], false),
        ("4.3.5: the same length", 200, &[("content-length", "5")], true),
        ("4.3.5: only a 200", 410, stored, false),
        ("4.3.5: only a 200", 204, stored, false),
    ];
    for (rule, status, head, want) in rows {
        let (head, stored_fields) = (fields(head), fields(stored));
        let head = Response { status: StatusCode::from_u16(status).expect("a status"), fields: &head };
        assert_eq!(head_fits(head, ok(&stored_fields), 5), want, "{rule} {status}");
    }
    let (head, bare) = (fields(stored), fields(&[]));
    assert!(!head_fits(ok(&head), ok(&bare), 5), "4.3.5: values that were not stored do not match");
    let length = fields(&[("content-length", "5")]);
    assert!(head_fits(ok(&length), ok(&bare), 5), "4.3.5: what was stored has a length, said or not");
    let gone = Response { status: StatusCode::GONE, fields: &head };
    assert!(!head_fits(ok(&head), gone, 5), "4.3.5: the stored response is a 200");
}

#[test]
fn derived_forms_outlive_only_what_does_not_touch_them() {
    let before: Lines<'_> = &[("content-type", "text/html"), ("etag", "\"a\""), ("cache-control", "max-age=1")];
    let rows: [(&str, Lines<'_>, bool); 6] = [
        ("other fields", &[("content-type", "text/html"), ("etag", "\"a\""), ("cache-control", "max-age=9"), ("x", "1")], false),
        ("another type", &[("content-type", "text/css"), ("etag", "\"a\"")], true),
        ("another tag", &[("content-type", "text/html"), ("etag", "\"b\"")], true),
        ("no tag any more", &[("content-type", "text/html")], true),
        ("a coding", &[("content-type", "text/html"), ("etag", "\"a\""), ("content-encoding", "gzip")], true),
        ("9110 7.7: no-transform", &[("content-type", "text/html"), ("etag", "\"a\""), ("cache-control", "no-transform")], true),
    ];
    for (rule, after, want) in rows {
        assert_eq!(changes_representation(&fields(before), &fields(after)), want, "{rule}");
    }
    let forbidden = fields(&[("cache-control", "no-transform")]);
    assert!(!changes_representation(&forbidden, &forbidden), "no-transform was there before");
}

#[test]
fn freshness_restarts_from_the_304() {
    let stored = fields(&[("cache-control", "max-age=1"), ("date", EARLIER), ("etag", "\"a\"")]);
    let updated = update(&stored, &fields(&[("cache-control", "max-age=3600"), ("date", DATE), ("etag", "\"a\"")]));
    let lines: Vec<_> = lines(&updated);
    let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let facts = facts(&[], &lines);
    assert_eq!(facts.age_ms(NOW), 0, "4.2.3: the age counts from the validation");
    assert_eq!(facts.lifetime(&Default::default()).ms, 3_600_000);
}
