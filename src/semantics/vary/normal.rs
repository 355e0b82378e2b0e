//! Field values in a form in which equal meanings have equal bytes (RFC 9111 §4.1).

use super::super::fields::{list, trim};
use super::super::{Fields, Name, name};
use std::cmp::Reverse;

/// Appends `:` and the normalised value of a request field, or nothing where the field is absent. The name is in lower
/// case. Never writes a line feed.
pub fn write_value(name: &str, request: &Fields, out: &mut Vec<u8>) {
    if !request.contains(name) {
        return;
    }
    out.push(b':');
    match Name::lookup(name.as_bytes()) {
        Some(field @ (name::ACCEPT_ENCODING | name::ACCEPT_LANGUAGE)) => write_weighted(request, field, out),
        // Lines of Cookie are one list of pairs (RFC 9113 §8.2.3).
        Some(name::COOKIE) => write_joined(request, name, b"; ", out, write_as_is),
        Some(field) if SINGLE.contains(&field) => write_joined(request, name, NO_VALUE_BYTE, out, write_as_is),
        _ => write_joined(request, name, b",", out, write_list),
    }
}

/// Fields that are no lists: a comma in them is an ordinary byte, and so is the white space around it. Several lines of one are
/// not one line with a comma; what parts them here is no byte of a value.
const SINGLE: [Name; 5] = [name::AUTHORIZATION, name::HOST, name::ORIGIN, name::REFERER, name::USER_AGENT];
const NO_VALUE_BYTE: &[u8] = b"\r";

fn write_joined(request: &Fields, name: &str, between: &[u8], out: &mut Vec<u8>, write: impl Fn(&[u8], &mut Vec<u8>)) {
    for (at, line) in request.values(name).enumerate() {
        if at > 0 {
            out.extend_from_slice(between);
        }
        write(line, out);
    }
}

fn write_as_is(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(value);
}

/// The value without white space around commas; quoted strings, also one that does not end, as they are.
fn write_list(value: &[u8], out: &mut Vec<u8>) {
    let (mut quoted, mut escaped, mut after_comma) = (false, false, false);
    let start = out.len();
    for byte in trim(value) {
        match byte {
            b' ' | b'\t' if after_comma && !quoted => continue,
            b',' if !quoted => {
                let kept = trim(&out[start..]).len();
                // Nothing but the end can be white space: the beginning was trimmed.
                out.truncate(start + kept);
            }
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        after_comma = *byte == b',' && !quoted;
        out.push(*byte);
    }
}

/// Members of Accept-Encoding or Accept-Language in lower case, sorted by weight and name, without repeats and with
/// weights spelt one way: their order means nothing (RFC 9110 §12.5.3, §12.5.4).
fn write_weighted(request: &Fields, field: Name, out: &mut Vec<u8>) {
    let mut lines = request.values(field);
    if let (Some(line), None) = (lines.next(), lines.next())
        && line.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    {
        return out.extend_from_slice(line); // one member: what a hit nearly always has
    }
    let mut members: Vec<(Reverse<u16>, Vec<u8>)> = request.values(field).flat_map(list).map(weighted).collect();
    members.sort_unstable();
    members.dedup();
    for (at, (Reverse(weight), text)) in members.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(text);
        write_weight(*weight, out);
    }
}

/// Weight in thousandths and name of `name;q=weight`; anything else is a name of weight one, in lower case, without white
/// space around its semicolons.
fn weighted(member: &[u8]) -> (Reverse<u16>, Vec<u8>) {
    let (weight, named) = split_weight(member);
    let parts: Vec<&[u8]> = named.split(|byte| *byte == b';').map(trim).collect();
    (Reverse(weight), parts.join(&b';').to_ascii_lowercase())
}

/// Weight in thousandths and name of `name;q=weight`; anything else is a name of weight one, as it stands.
pub(in super::super) fn split_weight(member: &[u8]) -> (u16, &[u8]) {
    if !member.contains(&b';') {
        return (WHOLE, member); // as nearly all are
    }
    let mut parts = member.split(|byte| *byte == b';').map(trim);
    if let (Some(named), Some(parameter), None) = (parts.next(), parts.next(), parts.next())
        && let Some(weight) = read_weight(parameter)
    {
        return (weight, named);
    }
    (WHOLE, member)
}

/// A weight of one, in thousandths.
const WHOLE: u16 = 1000;

/// `q=0.5` in thousandths (RFC 9110 §12.4.2).
fn read_weight(parameter: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', whole @ (b'0' | b'1'), fraction @ ..] = parameter else { return None };
    let digits = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let places = digits.iter().chain(b"000").take(3);
    let weight = places.fold(u16::from(whole - b'0'), |weight, digit| weight * 10 + u16::from(digit - b'0'));
    (weight <= WHOLE).then_some(weight)
}

fn write_weight(weight: u16, out: &mut Vec<u8>) {
    if weight == WHOLE {
        return;
    }
    out.extend_from_slice(b";q=0");
    let digits = [weight / 100, weight / 10 % 10, weight % 10].map(|digit| b'0' + digit as u8);
    let places = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    if places > 0 {
        out.push(b'.');
    }
    out.extend_from_slice(&digits[..places]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    fn normal(name: &str, lines: &[&str]) -> String {
        let request = fields(&lines.iter().map(|line| (name, *line)).collect::<Vec<_>>());
        let mut out = Vec::new();
        write_value(name, &request, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_normalised() {
        for (name, lines, want) in [
            ("foo", &["1, 2"][..], ":1,2"),
            ("foo", &["1 ,\t2", "3"], ":1,2,3"),
            ("foo", &["1 2"], ":1 2"),
            ("foo", &[""], ":"),
            ("foo", &[], ""),
            ("foo", &["\"a , b\" , c"], ":\"a , b\",c"),
            ("foo", &["\"a \\\" , b\" , c"], ":\"a \\\" , b\",c"),
            ("foo", &["\"a , b"], ":\"a , b"),
            ("foo", &["a,, b"], ":a,,b"),
            ("foo", &[" , a , "], ":,a,"),
            ("cookie", &["a=1, 2"], ":a=1, 2"),
            ("cookie", &["a=1", "b=2,3"], ":a=1; b=2,3"),
            ("user-agent", &["a", "b"], ":a\rb"),
            ("user-agent", &["a,b"], ":a,b"),
            ("user-agent", &["x (KHTML, like y)"], ":x (KHTML, like y)"),
            ("accept-language", &["en-US, DE;q=0.5 , fr; Q=0.50"], ":en-us,de;q=0.5,fr;q=0.5"),
            ("accept-language", &["fr;q=0.500", "de ; q=0.5,en-us"], ":en-us,de;q=0.5,fr;q=0.5"),
            ("accept-language", &["de, de;q=1, de;q=1.000"], ":de"),
            ("accept-language", &["de;q=0, en;q=0.001, fr;q=0.25"], ":fr;q=0.25,en;q=0.001,de;q=0"),
            ("accept-language", &["de;q=2, en;q=x, *"], ":*,de;q=2,en;q=x"),
            ("accept-language", &[""], ":"),
            ("accept-encoding", &["GZIP,  br;q=1.0, identity;q=0"], ":br,gzip,identity;q=0"),
            ("accept-encoding", &["br, gzip, identity ;q=0.0"], ":br,gzip,identity;q=0"),
        ] {
            assert_eq!(normal(name, lines), want, "{name} {lines:?}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(name in "accept-language|accept-encoding|foo|cookie", value in "[ -~]{0,40}") {
            let once = normal(&name, &[&value]);
            prop_assert_eq!(normal(&name, &[&once[1..]]), once);
        }

        #[test]
        fn the_order_of_languages_does_not_matter(
            members in proptest::collection::vec("[a-zA-Z]{2}(-[a-zA-Z]{2})?(;q=(0|0\\.[0-9]{1,3}|1))?", 0..6), seed in any::<u64>()
        ) {
            let mut shuffled = members.clone();
            shuffled.sort_by_key(|member| xxhash_rust::xxh3::xxh3_64_with_seed(member.as_bytes(), seed));
            prop_assert_eq!(normal("accept-language", &[&members.join(",")]), normal("accept-language", &[&shuffled.join(" , ")]));
        }
    }
}
