//! HTTP Cache Groups (RFC 9875): the fields.

use super::freshness::fields;
use tiercel::cache::{GROUPS_MAX, Tags, named_groups};
use tiercel::config::settings::KeyBounds;
use tiercel::invalidation::selector::group_hash;
use tiercel::semantics::name;

const ORIGIN: &str = "https://a.example";

fn limits() -> KeyBounds {
    KeyBounds { keys_per_response: 1, key_bytes: 1 }
}

fn groups(lines: &[&str]) -> Vec<u128> {
    let lines: Vec<_> = lines.iter().map(|line| ("Cache-Groups", *line)).collect();
    Tags::parse(&fields(&lines), ORIGIN, &limits()).expect("few enough").groups().to_vec()
}

fn invalidated(lines: &[&str]) -> Vec<u128> {
    let lines: Vec<_> = lines.iter().map(|line| ("Cache-Group-Invalidation", *line)).collect();
    named_groups(&fields(&lines), name::CACHE_GROUP_INVALIDATION, ORIGIN)
}

#[test]
fn members_are_read_as_in_sections_2_and_3() {
    for (section, lines, want) in [
        ("2 the example", &[r#""scripts""#][..], &["scripts"][..]),
        ("3 the example", &[r#""eurovision-results", "australia""#], &["eurovision-results", "australia"]),
        ("2 unrecognised parameters are ignored", &[r#""a";x;y="b, c", "d";z=1"#], &["a", "d"]),
        ("9651 4.2 several lines are one list", &[r#""a""#, r#""b""#], &["a", "b"]),
        ("2 strings are opaque", &[r#""", " ", "a,b", "a\"b\\", "ü""#], &["", " ", "a,b", r#"a"b\"#]),
        ("2 other types are no groups; the strings beside them are", &[r#"a, 1, ("b"), "c""#], &["c"]),
        ("absent", &[], &[]),
        ("empty", &[""], &[]),
    ] {
        let want: Vec<_> = want.iter().map(|group| group_hash(ORIGIN, group)).collect();
        assert_eq!((groups(lines), invalidated(lines)), (want.clone(), want), "{section}: {lines:?}");
    }
}

#[test]
fn a_group_is_one_string_of_one_origin() {
    let of = |group: &str| groups(&[&format!("\"{group}\"")]);
    assert_ne!(of("a"), of("A"), "2.1: case-sensitive, character by character");
    assert_ne!(of("a"), of("a "), "2.1");
    assert_eq!(
        groups(&[r#""a", "b""#]).iter().collect::<std::collections::BTreeSet<_>>(),
        groups(&[r#""b", "a""#]).iter().collect(),
        "2: order"
    );
    let lines = fields(&[("Cache-Groups", "\"a\"")]);
    for other in ["http://a.example", "https://a.example:8443", "https://b.example", "https://www.a.example"] {
        let theirs = Tags::parse(&lines, other, &limits()).unwrap();
        assert_ne!(theirs.groups(), of("a"), "2.1: they share the origin: {other}");
    }
}

#[test]
fn at_least_32_groups_of_at_least_32_characters_are_supported() {
    const { assert!(GROUPS_MAX >= 32) };
    for (count, length) in [(32, 32), (GROUPS_MAX, 1024)] {
        let members: Vec<_> = (0..count).map(|number| format!("\"{number:0>length$}\"")).collect();
        let want: Vec<_> = (0..count).map(|number| group_hash(ORIGIN, &format!("{number:0>length$}"))).collect();
        assert_eq!((groups(&[&members.join(", ")]), invalidated(&[&members.join(", ")])), (want.clone(), want), "2, 3: {count}");
    }
    let more: Vec<_> = (0..=GROUPS_MAX).map(|number| format!("\"{number}\"")).collect();
    let lines = fields(&[("Cache-Groups", &more.join(", "))]);
    assert!(Tags::parse(&lines, ORIGIN, &limits()).is_err(), "with more it is not stored: an invalidation could miss it");
}
