//! No-Vary-Search: the first line of the input is the field, the next two are queries.
//!
//! A query is equivalent to its canonical form, and that is its own. A rule is the rule of its own text. Whatever the rule, two
//! queries that are equal are equivalent; and a key under a rule is one line per part.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::key::KeyPolicy;
use tiercel::semantics::no_vary_search::NoVarySearch;
use tiercel::semantics::{CacheKey, Fields, Target, name};

fuzz_target!(|data: &[u8]| {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let Some(rule) = lines.next().and_then(rule) else { return };
    let text = rule.text();
    assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    assert_eq!(self::rule(text.as_bytes()).as_ref(), Some(&rule));
    let queries: Vec<String> = lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    for query in &queries {
        let canonical = rule.canonical(Some(query));
        assert_eq!(rule.canonical(Some(&canonical)), canonical);
        // What is ignored can be added anywhere, an empty parameter always.
        assert_eq!(rule.canonical(Some(&format!("&{query}&&"))), canonical);
        if let Ok(target) = Target::from_url(&format!("http://a/?{query}")) {
            let key = CacheKey::new(&target, &Fields::new(), &KeyPolicy::default()).under(&rule);
            assert_eq!(key.as_str().lines().count(), 2);
            assert!(key.as_str().is_ascii());
        }
    }
});

fn rule(value: &[u8]) -> Option<NoVarySearch> {
    let mut fields = Fields::new();
    fields.append(name::NO_VARY_SEARCH, value).ok()?;
    NoVarySearch::of(&fields).ok()?
}
