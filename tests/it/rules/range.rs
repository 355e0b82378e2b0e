//! RFC 9110 §13.1.5, §14, §15.3.7: byte ranges of a complete stored response.

use super::reuse::{Asked, Lines, NOW, fields};
use tiercel::semantics::range::Selection::{Many, One, TooMany, Unsatisfiable, Whole};
use tiercel::semantics::range::{Selection, select};
use tiercel::semantics::{Method, Response, StatusCode};

const MODIFIED: &str = "Mon, 13 Nov 2023 22:13:20 GMT";
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

fn selected(asked: &Asked, status: StatusCode, stored: Lines<'_>, length: u64) -> Selection {
    let stored = fields(stored);
    select(asked.request(), Response { status, fields: &stored }, length, 15, NOW.wall_ms)
}

#[test]
fn ranges_of_ten_thousand_bytes() {
    let rows: [(&str, &str, Selection); 37] = [
        ("14.1.2: the first 500 bytes", "bytes=0-499", One(0..500)),
        ("14.1.2: the second 500 bytes", "bytes=500-999", One(500..1000)),
        ("14.1.2: the last 500 bytes", "bytes=-500", One(9500..10000)),
        ("14.1.2: the last 500 bytes", "bytes=9500-", One(9500..10000)),
        ("14.1.2: the first and last byte", "bytes=0-0,-1", Many(vec![0..1, 9999..10000])),
        ("14.1.2: first, middle, last", "bytes= 0-999, 4500-5499, -1000", Many(vec![0..1000, 4500..5500, 9000..10000])),
        ("14.1.2: not canonical: touching", "bytes=500-600,601-999", One(500..1000)),
        ("14.1.2: not canonical: overlapping", "bytes=500-700,601-999", One(500..1000)),
        ("14.1.2: a last position past the end", "bytes=9990-20000", One(9990..10000)),
        ("14.1.2: a suffix longer than the representation", "bytes=-20000", One(0..10000)),
        ("14.1.2: all of it", "bytes=0-", One(0..10000)),
        ("14.1.2: a first position past the end", "bytes=10000-", Unsatisfiable),
        ("14.1.2: a first position past the end", "bytes=10000-10001", Unsatisfiable),
        ("14.1.2: a suffix of zero bytes", "bytes=-0", Unsatisfiable),
        ("14.1.1: one that is satisfiable is enough", "bytes=20000-,5-6", One(5..7)),
        ("14.1.2: large numerals", "bytes=0-99999999999999999999999999", One(0..10000)),
        ("14.1.2: large numerals", "bytes=99999999999999999999999999-", Unsatisfiable),
        ("14.1.2: large numerals", "bytes=-99999999999999999999999999", One(0..10000)),
        ("14.1: unit names are case-insensitive", "Bytes=0-1", One(0..2)),
        ("14.2: a unit that is not understood", "lines=0-1", Whole),
        ("14.1.1: last before first", "bytes=5-4", Whole),
        ("14.1.1: one invalid spec spoils the set", "bytes=0-1,5-4", Whole),
        ("14.1.1: no other-range for bytes", "bytes=0-1,abc", Whole),
        ("14.1.1: not a number", "bytes=0x0-1", Whole),
        ("14.1.1: not a number", "bytes=+1-2", Whole),
        ("14.1.1: neither first nor suffix", "bytes=-", Whole),
        ("14.1.1: an empty set", "bytes=", Whole),
        ("14.1.1: an empty set", "bytes=, ,", Whole),
        ("14.1.1: no unit", "0-1", Whole),
        ("5.6.1.2: empty members are skipped", "bytes=, 0-1 ,,\t500-600,", Many(vec![0..2, 500..601])),
        ("15.3.7.2: parts in the order of asking", "bytes=500-599,0-99", Many(vec![500..600, 0..100])),
        ("15.3.7.2: overlapping ones are one", "bytes=0-99,50-149,400-499", Many(vec![0..150, 400..500])),
        ("15.3.7.2: overlapping ones in any order", "bytes=400-499,50-149,0-99", Many(vec![400..500, 0..150])),
        ("15.3.7.2: a gap smaller than the overhead", "bytes=0-99,150-249", One(0..250)),
        ("15.3.7.2: a larger one", "bytes=0-99,200-249", Many(vec![0..100, 200..250])),
        ("15.3.7.2: the same again and again", "bytes=0-9,0-9,0-9", One(0..10)),
        (
            "14.2, 17.15: too many are ignored",
            "bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16,18-18,20-20,22-22,24-24,26-26,28-28,30-30,32-32",
            TooMany,
        ),
    ];
    for (rule, range, want) in rows {
        assert_eq!(selected(&Asked::get(&[("range", range)]), StatusCode::OK, &[], 10_000), want, "{rule}: {range}");
    }
}

#[test]
fn where_range_has_no_meaning_it_is_ignored() {
    let range: Lines<'_> = &[("range", "bytes=0-1")];
    for method in [Method::HEAD, Method::POST, Method::PUT] {
        assert_eq!(selected(&Asked::new(&method, range), StatusCode::OK, &[], 10), Whole, "14.2: {method}");
    }
    for status in [204, 206, 301, 404, 500] {
        let status = StatusCode::from_u16(status).expect("a status");
        assert_eq!(selected(&Asked::get(range), status, &[], 10), Whole, "14.2: only where it would be a 200, not {status}");
    }
    assert_eq!(selected(&Asked::get(&[]), StatusCode::OK, &[], 10), Whole, "14.2: no Range");
    for range in ["bytes=0-1", "bytes=-1", "bytes=5-"] {
        assert_eq!(selected(&Asked::get(&[("range", range)]), StatusCode::OK, &[], 0), Whole, "14.2: of zero length");
    }
}

#[test]
fn if_range() {
    let tagged: Lines<'_> = &[("etag", "\"a\""), ("last-modified", MODIFIED), ("date", DATE)];
    let same_second: Lines<'_> = &[("last-modified", MODIFIED), ("date", MODIFIED)];
    let undated: Lines<'_> = &[("last-modified", MODIFIED)];
    let rows: [(&str, Lines<'_>, Lines<'_>, bool); 17] = [
        ("13.1.5: the same tag", tagged, &[("if-range", "\"a\"")], true),
        ("13.1.5: another tag", tagged, &[("if-range", "\"b\"")], false),
        ("13.1.5: strong comparison", tagged, &[("if-range", "W/\"a\"")], false),
        ("13.1.5: strong comparison", &[("etag", "W/\"a\"")], &[("if-range", "W/\"a\"")], false),
        ("13.1.5: strong comparison", &[("etag", "W/\"a\"")], &[("if-range", "\"a\"")], false),
        ("13.1.5: one tag, not a list", tagged, &[("if-range", "\"a\", \"b\"")], false),
        ("13.1.5: * is no tag", tagged, &[("if-range", "*")], false),
        ("13.1.5: a tag where there is none", &[], &[("if-range", "\"a\"")], false),
        ("13.1.5: the same date", tagged, &[("if-range", MODIFIED)], true),
        ("5.6.7: in another form", tagged, &[("if-range", "Monday, 13-Nov-23 22:13:20 GMT")], true),
        ("13.1.5: a later date is no exact match", tagged, &[("if-range", DATE)], false),
        ("13.1.5: an earlier date", tagged, &[("if-range", "Sun, 12 Nov 2023 22:13:20 GMT")], false),
        ("8.8.2.2: a date of the same second is weak", same_second, &[("if-range", MODIFIED)], false),
        ("8.8.2.2: nor is one without Date strong", undated, &[("if-range", MODIFIED)], false),
        ("13.1.5: Date is no Last-Modified", &[("date", DATE)], &[("if-range", DATE)], false),
        ("13.1.5: neither tag nor date", tagged, &[("if-range", "a")], false),
        ("13.1.5: repeated", tagged, &[("if-range", "\"a\""), ("if-range", "\"a\"")], false),
    ];
    for (rule, stored, condition, holds) in rows {
        let partial: Vec<_> = [("range", "bytes=2-3")].into_iter().chain(condition.iter().copied()).collect();
        let want = if holds { One(2..4) } else { Whole };
        assert_eq!(selected(&Asked::get(&partial), StatusCode::OK, stored, 10), want, "{rule}");
        assert_eq!(selected(&Asked::get(condition), StatusCode::OK, stored, 10), Whole, "13.1.5: ignored without Range ({rule})");
    }
    let unsatisfiable: Lines<'_> = &[("range", "bytes=10-"), ("if-range", "\"b\"")];
    assert_eq!(selected(&Asked::get(unsatisfiable), StatusCode::OK, tagged, 10), Whole, "13.1.5: no 416 where it does not hold");
}
