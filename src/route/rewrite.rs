//! Path and query towards the upstream, and the location of redirects.

use crate::config::settings::Rewrite;
use crate::semantics::Target;
use crate::semantics::target::TargetError;

/// The target after all steps, normalised anew. An error means that a step made a path that is ambiguous or
/// leads above the root: such a request must not go on.
pub fn rewrite(target: &Target, steps: &[Rewrite]) -> Result<Target, TargetError> {
    // `*` is no path: there is nothing of it to change.
    if steps.is_empty() || target.is_asterisk() {
        return Ok(target.clone());
    }
    let mut path = target.path().to_owned();
    let mut query = target.query().map(str::to_owned);
    for step in steps {
        match step {
            Rewrite::StripPrefix(prefix) => path = strip_prefix(path, prefix),
            Rewrite::AddPrefix(prefix) => path.insert_str(0, prefix.trim_end_matches('/')),
            Rewrite::Replace { pattern, with } => {
                let replaced = pattern.replace_all(&path, with.as_str());
                path = if replaced.starts_with('/') { replaced.into_owned() } else { format!("/{replaced}") };
            }
            Rewrite::DropQuery(names) => query = query.as_deref().and_then(|query| drop_query(query, names)),
            Rewrite::SetQuery { name, value } => query = Some(set_query(query.as_deref().unwrap_or_default(), name, value)),
        }
    }
    // A question mark in a path, from a replacement, would begin the query: it belongs to the path here.
    let path = path.replace('?', "%3F").replace('#', "%23");
    target.with_path_and_query(&path, query.as_deref())
}

/// Only whole segments go: `/api` is a prefix of `/api/x` and of `/api`, not of `/apis`.
fn strip_prefix(path: String, prefix: &str) -> String {
    match path.strip_prefix(prefix.trim_end_matches('/')) {
        Some("") => "/".to_owned(),
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        _ => path,
    }
}

fn parameter_name(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}

fn drop_query(query: &str, names: &[String]) -> Option<String> {
    let is_dropped = |pair: &str| {
        let parameter = parameter_name(pair);
        names.iter().any(|name| name.strip_suffix('*').map_or(parameter == name, |prefix| parameter.starts_with(prefix)))
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_dropped(pair)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// The first parameter of this name gets the value, further ones go; where there is none it comes last.
fn set_query(query: &str, name: &str, value: &str) -> String {
    let set = format!("{}={}", encode(name), encode(value));
    let mut is_set = false;
    let mut pairs: Vec<&str> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if parameter_name(pair) != name {
            pairs.push(pair);
        } else if !std::mem::replace(&mut is_set, true) {
            pairs.push(&set);
        }
    }
    if !is_set {
        pairs.push(&set);
    }
    pairs.join("&")
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Location of a redirect: `{host}` is host and port, `{path}` the path, `{query}` the query with its question mark
/// or nothing.
pub fn redirect_location(template: &str, target: &Target) -> String {
    let query = &target.path_and_query()[target.path().len()..];
    let mut location = String::with_capacity(template.len() + target.as_str().len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        location.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [("{host}", target.authority()), ("{path}", target.path()), ("{query}", query)];
        let (taken, value) = known.into_iter().find(|(name, _)| rest.starts_with(name)).unwrap_or(("{", "{"));
        location.push_str(value);
        rest = &rest[taken.len()..];
    }
    location.push_str(rest);
    location
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prefixes_go_by_whole_segments() {
        for (path, prefix, want) in [
            ("/api/x", "/api", "/x"),
            ("/api/x", "/api/", "/x"),
            ("/api", "/api", "/"),
            ("/apis", "/api", "/apis"),
            ("/other", "/api", "/other"),
        ] {
            assert_eq!(strip_prefix(path.into(), prefix), want, "{path} {prefix}");
        }
    }

    #[test]
    fn query_parameters_are_dropped_and_set() {
        let names = ["utm_*".to_owned(), "fbclid".to_owned()];
        assert_eq!(drop_query("a=1&utm_source=x&fbclid=2&b", &names).as_deref(), Some("a=1&b"));
        assert_eq!(drop_query("utm_source=x", &names), None);
        assert_eq!(set_query("a=1&b=2&a=3", "a", "x y"), "a=x%20y&b=2");
        assert_eq!(set_query("", "a", "1"), "a=1");
    }

    proptest! {
        #[test]
        fn what_was_set_is_there_once_and_what_was_dropped_is_gone(query in "[a-c=&]{0,20}", value in "[a-z ]{0,5}") {
            let set = set_query(&query, "a", &value);
            prop_assert_eq!(set.split('&').filter(|pair| parameter_name(pair) == "a").count(), 1);
            let dropped = drop_query(&set, &["a".to_owned()]).unwrap_or_default();
            prop_assert!(dropped.split('&').all(|pair| parameter_name(pair) != "a"));
        }
    }
}
