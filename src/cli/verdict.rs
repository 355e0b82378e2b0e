//! Cache-Status (RFC 9211) in words.

/// One sentence per cache, nearest the origin first, as in the field.
pub fn in_words(value: &[u8]) -> Vec<String> {
    let members: Vec<String> = split(value, b',').filter(|member| !member.is_empty()).map(member_in_words).collect();
    if members.is_empty() { vec!["the answer has no Cache-Status".into()] } else { members }
}

fn member_in_words(member: &[u8]) -> String {
    let mut parts = parameters(member);
    let cache = parts.next().map_or_else(String::new, |(name, _)| name);
    let parameters: Vec<(String, String)> = parts.collect();
    let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let mut words = vec![match (get("hit"), get("fwd")) {
        (Some(_), _) => hit(get("ttl")),
        (None, Some(reason)) => forwarded(reason),
        (None, None) => "answered by itself".to_owned(),
    }];
    if let Some(status) = get("fwd-status") {
        words.push(format!("the upstream said {status}"));
    }
    if get("collapsed").is_some() {
        words.push("shared the fetch of another request".into());
    }
    if get("stored").is_some() {
        words.push("stored".into());
    }
    if let (None, Some(ttl)) = (get("hit"), get("ttl")) {
        words.push(format!("fresh for {ttl} s"));
    }
    if let Some(key) = get("key") {
        words.push(format!("key {key}"));
    }
    if let Some(detail) = get("detail") {
        words.push(format!("because of {detail}"));
    }
    format!("{cache}: {}", words.join(", "))
}

fn hit(ttl: Option<&str>) -> String {
    match ttl.map(|ttl| (ttl, ttl.strip_prefix('-'))) {
        Some((_, Some(past))) => format!("hit, stale for {past} s"),
        Some((ttl, None)) => format!("hit, fresh for {ttl} s more"),
        None => "hit".into(),
    }
}

fn forwarded(reason: &str) -> String {
    let why = match reason {
        "bypass" => "past the cache",
        "method" => "fetched, because of the method",
        "uri-miss" => "fetched, nothing stored for this URL",
        "vary-miss" => "fetched, nothing stored for these request fields",
        "miss" => "fetched, nothing stored that fits",
        "request" => "fetched, because the request asked for it",
        "stale" => "fetched, because what was stored is stale",
        "partial" => "fetched, because only a part is stored",
        other => return format!("fetched ({other})"),
    };
    why.to_owned()
}

/// Name and value of the item and its parameters; strings without their quotes.
fn parameters(member: &[u8]) -> impl Iterator<Item = (String, String)> {
    split(member, b';').map(|part| {
        let equals = part.iter().position(|byte| *byte == b'=' && part[0] != b'"').unwrap_or(part.len());
        let value = part.get(equals + 1..).unwrap_or_default();
        (unquoted(&part[..equals]), unquoted(value))
    })
}

/// The parts between separators outside of quoted strings, trimmed.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = end_of_part(text, separator);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
}

fn end_of_part(text: &[u8], separator: u8) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            byte if *byte == separator && !is_quoted => return at,
            _ => {}
        }
    }
    text.len()
}

fn unquoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.trim_ascii());
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let plain = inner.map_or_else(|| text.to_string(), |inner| inner.replace("\\\"", "\"").replace("\\\\", "\\"));
    plain.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_are_put_into_words() {
        for (value, want) in [
            ("tiercel; hit; ttl=30", "tiercel: hit, fresh for 30 s more"),
            ("tiercel; hit; ttl=-5; detail=STALE", "tiercel: hit, stale for 5 s, because of STALE"),
            (
                "tiercel; fwd=uri-miss; fwd-status=200; stored; ttl=60",
                "tiercel: fetched, nothing stored for this URL, the upstream said 200, stored, fresh for 60 s",
            ),
            ("\"a; b\"; fwd=bypass; key=\"x, \\\"y\"", "a; b: past the cache, key x, \"y"),
            ("tiercel; fwd=uri-miss; collapsed", "tiercel: fetched, nothing stored for this URL, shared the fetch of another request"),
        ] {
            assert_eq!(in_words(value.as_bytes()), [want], "{value}");
        }
        assert_eq!(in_words(b"origin; hit, tiercel; fwd=stale").len(), 2);
        assert_eq!(in_words(b""), ["the answer has no Cache-Status"]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_printable_words(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            for line in in_words(&value) {
                prop_assert!(!line.chars().any(char::is_control));
            }
        }
    }
}
