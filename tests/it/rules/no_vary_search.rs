//! No-Vary-Search (draft-ietf-httpbis-no-vary-search): every example of the draft, and a row per normative step.

use super::freshness::fields;
use tiercel::semantics::no_vary_search::NoVarySearch;

fn rule(value: &str) -> Option<NoVarySearch> {
    NoVarySearch::of(&fields(&[("No-Vary-Search", value)])).expect("of bounded length")
}

/// Whether two queries are equivalent under the rule of a field; the bytes as they are where it is no rule.
fn are_equivalent(value: &str, a: Option<&str>, b: Option<&str>) -> bool {
    match rule(value) {
        Some(rule) => rule.canonical(a) == rule.canonical(b),
        None => a == b,
    }
}

#[test]
fn fields_are_rules_as_in_sections_3_and_5() {
    for (section, value, want) in [
        ("1", "key-order", Some("key-order, params=()")),
        ("1", r#"params=("utm_source" "utm_medium" "utm_campaign")"#, Some(r#"params=("utm_campaign" "utm_medium" "utm_source")"#)),
        ("1", r#"except=("productId")"#, Some(r#"except=("productId")"#)),
        ("5.2.1", r#"params=("a")"#, Some(r#"params=("a")"#)),
        ("5.2.1", r#"except=("x")"#, Some(r#"except=("x")"#)),
        ("5.2.1: the same as no field", "params=()", None),
        ("5.2.1", "except=()", Some("except=()")),
        ("5.2.1 invalid", r#"key-order="not a boolean""#, None),
        ("5.2.1 invalid", r#"params="not an inner list""#, None),
        ("5.2.1 invalid", "params=(not-a-string)", None),
        ("5.2.1 invalid", "params=?0", None),
        ("5.2.1 invalid", "params=?1", None),
        ("5.2.1 invalid", r#"params=?1, except=("x")"#, None),
        ("5.2.1 invalid", r#"params=("a"), except=("x")"#, None),
        ("5.2.1 invalid", "params=(), except=()", None),
        ("5.2.1 invalid", r#"except="not an inner list""#, None),
        ("5.2.1 invalid", "except=(not-a-string)", None),
        ("5.2.1 invalid", "except=?1", None),
        ("5.2.1 unconventional", "key-order=?1", Some("key-order, params=()")),
        ("5.2.1 unconventional", r#"except=("x"), key-order"#, Some(r#"key-order, except=("x")"#)),
        ("5.2.1 unconventional", "key-order=?0", None),
        ("5.3.1", r#"params=("%C3%A9+%E6%B0%97")"#, Some(r#"params=("%C3%A9%20%E6%B0%97")"#)),
        ("3: other keys are ignored", r#"params=("a");x=1, other=("b");y, more"#, Some(r#"params=("a")"#)),
        ("3: parameters of items, too", r#"params=("a";x "b";y=1)"#, Some(r#"params=("a" "b")"#)),
        ("9651 4.2.2: the last of a repeated key", r#"params=("a"), params=("b")"#, Some(r#"params=("b")"#)),
        ("9651 4.2: broken syntax voids the field", r#"params=("a"#, None),
        ("9651 4.2", r#"params=("a") key-order"#, None),
        ("9651 3.2: keys are in lower case", r#"Params=("a")"#, None),
        ("9651 3.3.3: strings are ASCII", "params=(\"\u{e9}\")", None),
        ("5.2 no field value", "", None),
    ] {
        assert_eq!(rule(value).map(|rule| rule.text()).as_deref(), want, "{section}: {value}");
    }
    assert_eq!(NoVarySearch::of(&fields(&[])), Ok(None), "5.2: no field");
    let lines = fields(&[("No-Vary-Search", "key-order"), ("No-Vary-Search", r#"except=("x")"#)]);
    assert_eq!(NoVarySearch::of(&lines), Ok(rule(r#"key-order, except=("x")"#)), "9651 4.2: several lines are one dictionary");
}

#[test]
fn queries_are_equivalent_as_in_section_6() {
    let (yes, no) = (true, false);
    for (section, value, a, b, want) in [
        ("6.1 a null query", "key-order", None, Some(""), yes),
        ("6.1 percent-decoding", "key-order", Some("a=x"), Some("%61=%78"), yes),
        ("6.1 percent-decoding", "key-order", Some("a=\u{e9}"), Some("a=%C3%A9"), yes),
        ("6.1 both are U+FFFD", "key-order", Some("a=%f6"), Some("a=%ef%bf%bd"), yes),
        ("6.1 empty strings", "key-order", Some("a=x&&&&"), Some("a=x"), yes),
        ("6.1 an empty value", "key-order", Some("a="), Some("a"), yes),
        ("6.1 space", "key-order", Some("a=%20"), Some("a= &"), yes),
        ("6.1 plus", "key-order", Some("a=+"), Some("a= &"), yes),
        ("5.3.1", r#"params=("%C3%A9+%E6%B0%97")"#, Some("\u{e9} \u{6c17}=1"), Some("\u{e9}+\u{6c17}=2"), yes),
        ("5.3.1", r#"params=("%C3%A9+%E6%B0%97")"#, Some("%C3%A9%20\u{6c17}=3"), Some("%C3%A9+%E6%B0%97=4"), yes),
        ("6 the default compares bytes", "", None, Some(""), no),
        ("6 the default compares bytes", "", Some("a=b&&&c"), Some("a=b&c="), no),
        ("6 the default compares bytes", "params=()", Some("a=b"), Some("%61=b"), no),
        ("6 params: these do not count", r#"params=("a")"#, Some("a=1&b=2"), Some("b=2&a=3&a"), yes),
        ("6 params: others do", r#"params=("a")"#, Some("a=1&b=2"), Some("a=1&b=3"), no),
        ("6 params: and so does their order", r#"params=("a")"#, Some("c&b"), Some("b&c"), no),
        ("6 except: others do not count", r#"except=("a")"#, Some("a=1&b=2"), Some("a=1"), yes),
        ("6 except: these do", r#"except=("a")"#, Some("a=1"), Some("a=2"), no),
        ("6 except: and whether they are there", r#"except=("a")"#, Some("a"), None, no),
        ("6 except nothing", "except=()", Some("a=1&b"), None, yes),
        ("6 names by letter case", r#"params=("a")"#, Some("A=1"), None, no),
        ("6 key-order", "key-order", Some("a=1&b=2"), Some("b=2&a=1"), yes),
        ("6 key-order: repeats keep their order", "key-order", Some("a=1&b&a=2"), Some("a=1&a=2&b"), yes),
        ("6 key-order: repeats keep their order", "key-order", Some("a=1&a=2"), Some("a=2&a=1"), no),
        ("6 key-order and params", r#"key-order, params=("x")"#, Some("b&x&a"), Some("a&b"), yes),
        ("6 separators in values are none", "key-order", Some("a=1%26b=2"), Some("a=1&b=2"), no),
        ("6 the number of parameters", "key-order", Some("a=1&a=1"), Some("a=1"), no),
    ] {
        assert_eq!(are_equivalent(value, a, b), want, "{section}: {value}: {a:?} {b:?}");
        assert_eq!(are_equivalent(value, b, a), want, "{section}: {value}: {b:?} {a:?}");
    }
}
