//! The cache key of a level: query rules, and the fields, cookies and client classes that are part of it.

use super::cache::field_names;
use super::fields::field_name;
use super::matching;
use crate::config::raw::{RawClass, RawClassRule, RawKey};
use crate::config::report::Report;
use crate::config::shape::join;
use crate::semantics::class::{ClassRule, ClientClass};
use crate::semantics::key::KeyPolicy;
use std::collections::BTreeMap;

/// Applies a `cache.key` table to the key of the level around it.
pub fn apply(at: &str, raw: &RawKey, key: &mut KeyPolicy, report: &mut Report) {
    apply_query(at, raw, key, report);
    if let Some(names) = &raw.headers {
        key.headers = field_names(&join(at, "headers"), names, report);
    }
    if let Some(names) = &raw.cookies {
        key.cookies = cookies(&join(at, "cookies"), names, report);
    }
    if let Some(classes) = &raw.classes {
        key.classes = self::classes(&join(at, "classes"), classes, report);
    }
}

fn apply_query(at: &str, raw: &RawKey, key: &mut KeyPolicy, report: &mut Report) {
    if raw.query_allow.is_some()
        && raw.query_ignore.as_ref().is_some_and(|names| !names.is_empty())
        && raw.query_allow.as_deref() != Some(&["*".to_owned()])
    {
        let what = "query_allow and query_ignore contradict each other";
        report.problem(
            &join(at, "query_ignore"),
            what,
            "",
            "one of the two",
            "remove query_ignore: what query_allow does not name does not count",
        );
    }
    key.query_sort = raw.query_sort.unwrap_or(key.query_sort);
    if let Some(names) = &raw.query_allow {
        key.query_allow = (!names.iter().any(|name| name == "*")).then(|| names.clone());
        // What a level around this one ignores is not named here, or is meant to count here.
        if key.query_allow.is_some() {
            key.query_ignore.clear();
        }
    }
    if let Some(names) = &raw.query_ignore {
        key.query_ignore = names.clone();
    }
    key.ignore_tracking = raw.ignore_tracking.unwrap_or(key.ignore_tracking);
}

/// Names of cookies, each of one: a value is part of the key under its name.
fn cookies(at: &str, names: &[String], report: &mut Report) -> Vec<String> {
    for (index, name) in names.iter().enumerate().filter(|(_, name)| name.ends_with('*')) {
        let found = format!("\"{name}\"");
        report.problem(&format!("{at}[{index}]"), "more than one cookie", found, "the name of a cookie", "name each of them");
    }
    matching::cookies(at, names, report)
}

fn classes(at: &str, raw: &BTreeMap<String, RawClass>, report: &mut Report) -> Vec<ClientClass> {
    raw.iter().map(|(name, raw)| class(&join(at, name), name, raw, report)).collect()
}

fn class(at: &str, name: &str, raw: &RawClass, report: &mut Report) -> ClientClass {
    if !is_word(name) {
        report.wrong_name(at, "not a name", name, WORD_ALLOWED, "write for example device");
    }
    if raw.rules.is_empty() {
        let remedy = "write rules = [{ value = \"mobile\", headers = { user-agent = { pattern = \"(?i)mobile\" } } }]";
        report.problem(at, "a class without rules", "", "at least one rule", remedy);
    }
    let rule = |(index, raw): (usize, &RawClassRule)| {
        let at = format!("{}[{index}]", join(at, "rules"));
        let headers = matching::values(&join(&at, "headers"), &raw.headers, true, report);
        if raw.headers.is_empty() {
            report.problem(&at, "a rule without a condition", "", "headers", "write the value as default if it is meant for everybody");
        }
        ClassRule { value: value(&join(&at, "value"), raw.value.as_deref(), report), headers }
    };
    let rules = raw.rules.iter().enumerate().map(rule).collect();
    let default = value(&join(at, "default"), Some(raw.default.as_deref().unwrap_or("other")), report);
    let forward = raw.forward.as_deref().and_then(|name| field_name(&join(at, "forward"), name, true, report));
    ClientClass { name: name.to_owned(), rules, default, forward }
}

const WORD_ALLOWED: &str = "letters, digits and -._";

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn value(at: &str, text: Option<&str>, report: &mut Report) -> String {
    let text = text.unwrap_or_default();
    if !is_word(text) {
        report.problem(at, "not a value of a class", format!("\"{text}\""), WORD_ALLOWED, "write for example \"mobile\"");
    }
    text.to_owned()
}
