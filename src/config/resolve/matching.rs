//! Conditions on requests: path, method, fields, query.

use crate::config::raw::{RawBypass, RawRoute, RawValueMatch};
use crate::config::report::{Report, shown};
use crate::config::settings::{BypassRule, PathMatch, RouteMatch};
use crate::config::shape::join;
use crate::semantics::condition::ValueMatch;
use crate::semantics::fields::is_token_byte;
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes of a compiled regular expression.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Characters of a reason.
const REASON_MAX: usize = 64;

/// The conditions as they are written, of a route or a bypass rule.
struct RawMatch<'a> {
    path: Option<&'a str>,
    exact: Option<&'a str>,
    pattern: Option<&'a str>,
    methods: Option<&'a [String]>,
    headers: &'a BTreeMap<String, RawValueMatch>,
    query: &'a BTreeMap<String, RawValueMatch>,
}

pub fn route(at: &str, raw: &RawRoute, report: &mut Report) -> RouteMatch {
    let raw = RawMatch {
        path: raw.path.as_deref(),
        exact: raw.exact.as_deref(),
        pattern: raw.pattern.as_deref(),
        methods: raw.methods.as_deref(),
        headers: &raw.headers,
        query: &raw.query,
    };
    resolve(at, &raw, report)
}

pub fn bypass(at: &str, raw: &RawBypass, report: &mut Report) -> BypassRule {
    let reason = raw.reason.clone().unwrap_or_default();
    if reason.is_empty() || reason.len() > REASON_MAX || !reason.bytes().all(is_token_byte) {
        let path = if raw.reason.is_some() { join(at, "reason") } else { at.to_owned() };
        let what = if raw.reason.is_some() { "not a token" } else { "a bypass rule needs a reason" };
        report.problem(
            &path,
            what,
            raw.reason.as_ref().map_or_else(String::new, |text| format!("\"{text}\"")),
            "letters, digits and -._ without spaces",
            "write for example reason = \"logged-in\"",
        );
    }
    let conditions = RawMatch {
        path: raw.path.as_deref(),
        exact: raw.exact.as_deref(),
        pattern: raw.pattern.as_deref(),
        methods: raw.methods.as_deref(),
        headers: &raw.headers,
        query: &raw.query,
    };
    let condition = resolve(at, &conditions, report);
    let cookies = cookies(&join(at, "cookies"), raw.cookies.as_deref().unwrap_or_default(), report);
    if cookies.is_empty() && is_everything(&condition) {
        report.problem(
            at,
            "a bypass rule without a condition",
            "",
            "path, exact, pattern, methods, headers, query, cookies",
            "write cache.enabled = false if everything is meant",
        );
    }
    BypassRule { reason, condition, cookies }
}

/// Whether a condition holds for every request.
pub fn is_everything(condition: &RouteMatch) -> bool {
    matches!(condition.path, PathMatch::Any) && condition.methods.is_empty() && condition.headers.is_empty() && condition.query.is_empty()
}

fn resolve(at: &str, raw: &RawMatch<'_>, report: &mut Report) -> RouteMatch {
    RouteMatch {
        path: path(at, raw, report),
        methods: methods(&join(at, "methods"), raw.methods.unwrap_or_default(), report),
        headers: values(&join(at, "headers"), raw.headers, true, report),
        query: values(&join(at, "query"), raw.query, false, report),
    }
}

fn path(at: &str, raw: &RawMatch<'_>, report: &mut Report) -> PathMatch {
    let given: Vec<&str> = [("path", raw.path), ("exact", raw.exact), ("pattern", raw.pattern)]
        .into_iter()
        .filter_map(|(key, value)| value.map(|_| key))
        .collect();
    if let [first, second, ..] = given.as_slice() {
        let what = format!("{first} and {second} contradict each other");
        report.problem(&join(at, second), what, "", "one of path, exact, pattern", format!("remove {second}, or make two routes"));
        return PathMatch::Any;
    }
    if let Some(pattern) = raw.pattern {
        return regex(&join(at, "pattern"), pattern, report).map_or(PathMatch::Any, PathMatch::Pattern);
    }
    let (key, text) = match (raw.path, raw.exact) {
        (Some(text), _) => ("path", text),
        (_, Some(text)) => ("exact", text),
        _ => return PathMatch::Any,
    };
    if !text.starts_with('/') || text.contains(['*', '?', '#', ' ']) {
        let plain = text.split(['*', '?', '#', ' ']).next().unwrap_or_default().trim_start_matches('/');
        let allowed = "a path that begins with / and holds no *, ?, # or space";
        let remedy = format!(
            "write \"/{plain}\"{}",
            if text.contains('*') { " (path matches everything that begins so), or use pattern" } else { "" }
        );
        report.problem(&join(at, key), "not a path", format!("\"{text}\""), allowed, remedy);
    }
    match (key, text) {
        ("path", "/") => PathMatch::Any,
        ("path", text) => PathMatch::Prefix(text.to_owned()),
        (_, text) => PathMatch::Exact(text.to_owned()),
    }
}

/// A regular expression of bounded size.
pub fn regex(path: &str, pattern: &str, report: &mut Report) -> Option<Regex> {
    let built = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
    built
        .map_err(|error| {
            let reason = error.to_string();
            let last = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            let what = format!("not a regular expression: {last}");
            report.problem(
                path,
                what,
                format!("\"{pattern}\""),
                "the syntax of crate regex: no look-around, no back-references",
                "correct it; \\ escapes a special character",
            );
        })
        .ok()
}

fn methods(path: &str, texts: &[String], report: &mut Report) -> Vec<http::Method> {
    let method = |(index, text): (usize, &String)| {
        let parsed = http::Method::from_bytes(text.as_bytes()).ok();
        let known_in_upper =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"].contains(&text.to_ascii_uppercase().as_str());
        if parsed.is_none() || known_in_upper && text.to_ascii_uppercase() != *text {
            let remedy =
                if known_in_upper { format!("write \"{}\"", text.to_ascii_uppercase()) } else { "write a token such as \"GET\"".into() };
            report.problem(
                &format!("{path}[{index}]"),
                "not a method",
                format!("\"{text}\""),
                "methods in upper case: \"GET\", \"HEAD\", \"POST\"",
                remedy,
            );
        }
        parsed
    };
    texts.iter().enumerate().filter_map(method).collect()
}

pub fn values(path: &str, raw: &BTreeMap<String, RawValueMatch>, is_field: bool, report: &mut Report) -> Vec<(String, ValueMatch)> {
    let pair = |(name, raw): (&String, &RawValueMatch)| {
        let at = join(path, name);
        if is_field && (name.is_empty() || !name.bytes().all(is_token_byte)) {
            report.wrong_name(&at, "not a field name", name, "letters, digits and -", "write for example \"x-preview\"");
        }
        let name = if is_field { name.to_ascii_lowercase() } else { name.clone() };
        value(&at, &raw.0, report).map(|condition| (name, condition))
    };
    raw.iter().filter_map(pair).collect()
}

fn value(at: &str, raw: &Value, report: &mut Report) -> Option<ValueMatch> {
    if let Value::String(text) = raw {
        return Some(ValueMatch::Equals(text.clone()));
    }
    let only = raw.as_object().filter(|table| table.len() == 1).and_then(|table| table.iter().next());
    let condition = match only.map(|(key, value)| (key.as_str(), value)) {
        Some(("present", Value::Bool(true))) => Some(ValueMatch::Present),
        Some(("present", Value::Bool(false))) => Some(ValueMatch::Absent),
        Some(("equals", Value::String(text))) => Some(ValueMatch::Equals(text.clone())),
        Some(("prefix", Value::String(text))) => Some(ValueMatch::Prefix(text.clone())),
        Some(("pattern", Value::String(text))) => return regex(&join(at, "pattern"), text, report).map(ValueMatch::Pattern),
        _ => None,
    };
    if condition.is_none() {
        let allowed = r#""text", or one of { present = true }, { equals = "..." }, { prefix = "..." }, { pattern = "..." }"#;
        report.problem(at, "not a condition", shown(raw), allowed, "write exactly one of them");
    }
    condition
}

/// Names of cookies; a trailing `*` matches a prefix.
pub fn cookies(path: &str, texts: &[String], report: &mut Report) -> Vec<String> {
    for (index, text) in texts.iter().enumerate() {
        let name = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || !name.bytes().all(is_token_byte) || name.contains('*') {
            report.problem(
                &format!("{path}[{index}]"),
                "not the name of a cookie",
                format!("\"{text}\""),
                r#""session", or "_ga*" for all that begin so"#,
                "",
            );
        }
    }
    texts.to_vec()
}
