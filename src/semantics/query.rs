//! Query parameters (`name=value`, parted by `&`) as the key's rules read them.

use super::target::decode;
use std::borrow::Cow;

/// The parameters of a query as they stand; empty ones are none.
pub fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|parameter| !parameter.is_empty())
}

/// The decoded name of a parameter.
pub fn name(parameter: &str) -> Cow<'_, [u8]> {
    decoded(parameter.split('=').next().unwrap_or(parameter))
}

/// Whether one of the patterns names this decoded name; a trailing `*` matches a prefix.
pub fn is_listed(name: &[u8], patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(&decoded(prefix)),
        None => name == &*decoded(pattern),
    })
}

/// A name or value as an origin sees it, so that `a[b]` and `a%5Bb%5D` are one: percent-decoded, a plus being a space.
pub fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    let (mut rest, mut bytes) = (text.as_bytes(), Vec::with_capacity(text.len()));
    while let [first, after @ ..] = rest {
        let code = decode(rest);
        bytes.push(code.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if code.is_some() { &rest[3..] } else { after };
    }
    Cow::Owned(bytes)
}
