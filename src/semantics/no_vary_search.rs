//! Which parts of a query a response does not depend on (No-Vary-Search, draft-ietf-httpbis-no-vary-search).
//!
//! A response with such a rule answers every URL that is equivalent to its own under it: it is stored under one key for all of
//! them ([`super::CacheKey::under`]), which holds the rule and the query in a form that is equal for equivalent queries and for
//! no others ([`NoVarySearch::canonical`]).

use super::query::{decoded, parameters};
use super::{Fields, name};
use sfv::{BareItem, Dictionary, InnerList, ListEntry, Parser};
use std::collections::BTreeSet;

/// A field with more bytes than this says nothing: the rule is part of the key of each response.
pub const RULE_BYTES_MAX: usize = 4096;

/// A URL variation config other than the default one (§4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NoVarySearch {
    names: Names,
    /// The order of parameters with different names counts.
    key_order_counts: bool,
}

/// Which parameters count, by their decoded names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Names {
    /// All but these (`params`).
    AllBut(BTreeSet<String>),
    /// Only these (`except`).
    Only(BTreeSet<String>),
}

/// A field that is longer than [`RULE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl NoVarySearch {
    /// The rule of a response (§5): `None` where there is none, where it is malformed, and where it changes nothing.
    ///
    /// The algorithm of §5.1 gives the default for a field that has neither `params` nor `except`, and so would make
    /// nothing of `key-order` alone, which §1, §5.2.1 and §6.1 of the same draft have as their first example. It is read as
    /// the examples have it.
    pub fn of(response: &Fields) -> Result<Option<Self>, TooLong> {
        let Some(value) = response.joined(name::NO_VARY_SEARCH) else { return Ok(None) };
        if value.len() > RULE_BYTES_MAX {
            return Err(TooLong);
        }
        let dictionary: Option<Dictionary> = Parser::new(&value[..]).parse().ok();
        Ok(dictionary.and_then(|dictionary| Self::parse(&dictionary)).filter(|rule| *rule != Self::default_rule()))
    }

    /// What the draft calls the default: all parameters count, and so does their order.
    const fn default_rule() -> Self {
        Self { names: Names::AllBut(BTreeSet::new()), key_order_counts: true }
    }

    fn parse(dictionary: &Dictionary) -> Option<Self> {
        let key_order_counts = match dictionary.get("key-order") {
            None => true,
            Some(ListEntry::Item(item)) => match item.bare_item {
                BareItem::Boolean(ignored) => !ignored,
                _ => return None,
            },
            Some(ListEntry::InnerList(_)) => return None,
        };
        let names = match (dictionary.get("params"), dictionary.get("except")) {
            (Some(_), Some(_)) => return None,
            (None, None) => Names::AllBut(BTreeSet::new()),
            (Some(ListEntry::InnerList(list)), None) => Names::AllBut(names(list)?),
            (None, Some(ListEntry::InnerList(list))) => Names::Only(names(list)?),
            (Some(ListEntry::Item(_)), None) | (None, Some(ListEntry::Item(_))) => return None,
        };
        Some(Self { names, key_order_counts })
    }

    /// The query in a form that is equal for equivalent queries, and for no others (§6): its parameters as
    /// application/x-www-form-urlencoded reads them, without those that do not count, sorted by name where their order does
    /// not, and written in one way. Empty where none is left.
    pub fn canonical(&self, query: Option<&str>) -> String {
        let pairs = parameters(query.unwrap_or_default()).map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (text(name), text(value))
        });
        let mut counted: Vec<(String, String)> = pairs.filter(|(name, _)| self.counts(name)).collect();
        if !self.key_order_counts {
            counted.sort_by(|a, b| a.0.cmp(&b.0)); // stable: what repeats a name keeps its order
        }
        let mut canonical = String::new();
        for (name, value) in &counted {
            if !canonical.is_empty() {
                canonical.push('&');
            }
            push_encoded(&mut canonical, name);
            canonical.push('=');
            push_encoded(&mut canonical, value);
        }
        canonical
    }

    /// The rule as a field would say it, in one way, on one line.
    pub fn text(&self) -> String {
        let (key, names) = match &self.names {
            Names::AllBut(names) => ("params", names),
            Names::Only(names) => ("except", names),
        };
        let mut text = String::from(if self.key_order_counts { "" } else { "key-order, " });
        text.push_str(key);
        text.push_str("=(");
        for (at, name) in names.iter().enumerate() {
            text.push_str(if at == 0 { "\"" } else { " \"" });
            push_encoded(&mut text, name);
            text.push('"');
        }
        text.push(')');
        text
    }

    /// Bytes of memory, its own struct included.
    pub fn memory(&self) -> usize {
        let (Names::AllBut(names) | Names::Only(names)) = &self.names;
        // A node of the set holds up to eleven names, half of them as a rule.
        size_of::<Self>() + names.iter().map(|name| name.len() + 2 * size_of::<String>()).sum::<usize>()
    }

    fn counts(&self, name: &str) -> bool {
        match &self.names {
            Names::AllBut(names) => !names.contains(name),
            Names::Only(names) => names.contains(name),
        }
    }
}

/// Each item read by "parse a key" (§5.3); `None` where one is no String.
fn names(list: &InnerList) -> Option<BTreeSet<String>> {
    list.items.iter().map(|item| item.bare_item.as_string().map(|name| text(name.as_str()))).collect()
}

/// Plus is space, percent-decoded, UTF-8 with replacement: a name or value as the urlencoded parser has it.
fn text(encoded: &str) -> String {
    String::from_utf8_lossy(&decoded(encoded)).into_owned()
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
fn push_encoded(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(value: &str) -> Option<NoVarySearch> {
        let mut fields = Fields::new();
        fields.push("no-vary-search", value).unwrap();
        NoVarySearch::of(&fields).unwrap()
    }

    /// The comparison of §6, step by step as it is written there.
    fn equivalent(rule: &NoVarySearch, a: &str, b: &str) -> bool {
        let list = |query: &str| {
            let mut pairs = Vec::new();
            for sequence in query.split('&').filter(|sequence| !sequence.is_empty()) {
                let (name, value) = sequence.split_once('=').unwrap_or((sequence, ""));
                let read = |text: &str| String::from_utf8_lossy(&decoded(&text.replace('+', "%20"))).into_owned();
                pairs.push((read(name), read(value)));
            }
            match &rule.names {
                Names::AllBut(names) => pairs.retain(|pair| !names.contains(&pair.0)),
                Names::Only(names) => pairs.retain(|pair| names.contains(&pair.0)),
            }
            if !rule.key_order_counts {
                // By UTF-16 code units, as the draft has it.
                pairs.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            }
            pairs
        };
        list(a) == list(b)
    }

    #[test]
    fn a_rule_has_one_text() {
        for (value, want) in [
            ("key-order", "key-order, params=()"),
            ("params=(\"b\" \"a\" \"a\")", "params=(\"a\" \"b\")"),
            ("params=(\"a\" \"b\"), key-order=?0, unknown=1", "params=(\"a\" \"b\")"),
            ("except=(\"a+b\" \"%22\")", "except=(\"%22\" \"a%20b\")"),
            ("except=()", "except=()"),
        ] {
            assert_eq!(rule(value).map(|rule| rule.text()).as_deref(), Some(want), "{value}");
            assert_eq!(rule(want), rule(value), "{value}");
        }
    }

    #[test]
    fn a_rule_that_is_too_long_is_none() {
        let mut fields = Fields::new();
        fields.push("no-vary-search", format!("params=(\"{}\")", "a".repeat(RULE_BYTES_MAX))).unwrap();
        assert_eq!(NoVarySearch::of(&fields), Err(TooLong));
    }

    const RULE: &str = "(key-order(=\\?[01])?, )?(params|except)=\\((\"[ab%é +]{0,3}\" ?){0,3}\\)|key-order";
    const QUERY: &str = "([abé]|%61|%C3%A9|%f6|%ef%bf%bd|%20|\\+|=|&|%|%3D|%26){0,10}";

    proptest! {
        #[test]
        fn canonical_forms_are_equal_where_the_draft_says_equivalent_and_nowhere_else(value in RULE, a in QUERY, b in QUERY) {
            if let Some(rule) = rule(&value) {
                prop_assert_eq!(rule.canonical(Some(&a)) == rule.canonical(Some(&b)), equivalent(&rule, &a, &b));
            }
        }

        #[test]
        fn equivalence_is_an_equivalence_relation(value in RULE, a in QUERY, b in QUERY, c in QUERY) {
            if let Some(rule) = rule(&value) {
                prop_assert!(equivalent(&rule, &a, &a));
                prop_assert_eq!(equivalent(&rule, &a, &b), equivalent(&rule, &b, &a));
                prop_assert!(!(equivalent(&rule, &a, &b) && equivalent(&rule, &b, &c)) || equivalent(&rule, &a, &c));
                let once = rule.canonical(Some(&a));
                prop_assert!(equivalent(&rule, &a, &once), "a query is equivalent to its canonical form: {}", once);
                prop_assert_eq!(rule.canonical(Some(&once)), once);
            }
        }

        #[test]
        fn any_field_is_a_rule_or_none_and_its_text_is_the_same_rule(value in "[ -~]{0,40}|[a-z=()\"?, %0-9-]{0,40}") {
            if let Some(rule) = rule(&value) {
                prop_assert_eq!(self::rule(&rule.text()), Some(rule));
            }
        }
    }
}
