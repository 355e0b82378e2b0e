//! Secondary keys (RFC 9111 §4.1): which request fields select among the responses of one cache key.
//!
//! Values are normalised only in ways that keep their meaning (§4.1): lines joined, white space around commas dropped,
//! and for Accept-Encoding and Accept-Language letter case, the order of members and the spelling of weights. Where
//! a weight differs, the values differ.

use super::fields::{is_token_byte, list, trim};
use super::policy::{AcceptEncoding, CachePolicy};
use super::{Fields, Name, name};
use std::cell::RefCell;
use std::cmp::Reverse;

/// A response that varies on more fields than this counts as `*`: each costs time on every lookup.
const VARY_FIELDS_MAX: usize = 64;

/// A response's Vary, all lines, lower case, sorted, without repeats.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub enum Vary {
    /// No Vary, or an empty one.
    #[default]
    Nothing,
    /// These request fields.
    Fields(Box<[Box<str>]>),
    /// A `*` anywhere in the list: never reusable without validation.
    Star,
}

impl Vary {
    /// Reads all Vary lines. A member that is no field name counts as `*`: what it selects by cannot be known.
    pub fn parse(response: &Fields) -> Self {
        let mut names: Vec<Box<str>> = Vec::new();
        for member in response.values(name::VARY).flat_map(|line| line.split(|byte| *byte == b',')).map(trim) {
            let Ok(text) = std::str::from_utf8(member) else { return Self::Star };
            match text {
                "" => {}
                "*" => return Self::Star,
                _ if names.len() < VARY_FIELDS_MAX && member.iter().all(|byte| is_token_byte(*byte)) => {
                    names.push(text.to_ascii_lowercase().into());
                }
                _ => return Self::Star,
            }
        }
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { Self::Nothing } else { Self::Fields(names.into()) }
    }

    /// The normalised values of the selecting fields in this request, as one comparable block.
    ///
    /// Each field's lines are joined, white space around commas dropped; Accept-Encoding and Accept-Language have
    /// normalisers of their own; quoted strings are left alone; absent is distinct from empty. [`Vary::Star`] has no
    /// secondary key that selects anything: ask [`Vary::is_star`] first.
    pub fn secondary_key(&self, request: &Fields, policy: &CachePolicy) -> SecondaryKey {
        let mut key = Vec::new();
        self.write_secondary_key(request, policy, &mut key);
        SecondaryKey(key.into_boxed_slice())
    }

    /// Appends the bytes of [`Vary::secondary_key`] to `out`, for callers with a buffer to reuse.
    pub fn write_secondary_key(&self, request: &Fields, policy: &CachePolicy, out: &mut Vec<u8>) {
        let names = match self {
            Self::Nothing => return,
            Self::Star => return out.push(b'*'),
            Self::Fields(names) => names,
        };
        for name in names {
            let name: &str = name;
            if name == "accept-encoding"
                && let Some(asked) = asked_encoding(request, policy)
            {
                // The origin sees only what we make of it, so that alone selects.
                out.extend_from_slice(b"accept-encoding:");
                out.extend_from_slice(asked.as_bytes());
                out.push(b'\n');
            } else if !policy.vary_ignore.iter().any(|ignored| ignored.eq_ignore_ascii_case(name)) {
                // Neither names nor values hold a line feed, and names no colon: lines cannot be confused.
                out.extend_from_slice(name.as_bytes());
                write_value(name, request, out);
                out.push(b'\n');
            }
        }
    }

    /// Whether this request selects the response with that secondary key; allocates nothing in the long run.
    pub fn matches(&self, request: &Fields, secondary: &SecondaryKey, policy: &CachePolicy) -> bool {
        thread_local!(static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        match self {
            Self::Nothing => secondary.0.is_empty(),
            Self::Star => false,
            Self::Fields(_) => SCRATCH.with_borrow_mut(|scratch| {
                scratch.clear();
                self.write_secondary_key(request, policy, scratch);
                **scratch == *secondary.0
            }),
        }
    }

    /// Whether no request can be known to select this response.
    pub const fn is_star(&self) -> bool {
        matches!(self, Self::Star)
    }

    /// What it names, for people: `*` alone where that is among it.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Star => vec!["*"],
            Self::Fields(names) => names.iter().map(|name| &**name).collect(),
        }
    }

    /// Bytes of memory on the heap.
    pub fn memory(&self) -> usize {
        match self {
            Self::Nothing | Self::Star => 0,
            Self::Fields(names) => names.iter().map(|name| size_of::<Box<str>>() + name.len()).sum(),
        }
    }
}

/// The Accept-Encoding that goes to the origin where the policy decides it; `None`: as the client sent it.
///
/// `gzip` where the client accepts it (RFC 9110 §12.5.3: listed or `*`, weight above zero), else `identity`.
pub fn asked_encoding(request: &Fields, policy: &CachePolicy) -> Option<&'static str> {
    match policy.accept_encoding {
        AcceptEncoding::Forward => None,
        AcceptEncoding::Identity => Some("identity"),
        AcceptEncoding::Normalise => Some(if accepts_gzip(request) { "gzip" } else { "identity" }),
    }
}

fn accepts_gzip(request: &Fields) -> bool {
    let (mut any, mut gzip) = (None, None);
    for (weight, coding) in request.values(name::ACCEPT_ENCODING).flat_map(list).map(split_weight) {
        if coding == b"*" {
            any = Some(weight);
        } else if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            gzip = gzip.max(Some(weight));
        }
    }
    gzip.or(any).is_some_and(|weight| weight > 0)
}

/// Values selected by Vary, compared byte for byte. Empty for a response without Vary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SecondaryKey(pub Box<[u8]>);

/// Appends `:` and the normalised value of a request field, or nothing where the field is absent. The name is in lower
/// case. Never writes a line feed.
pub fn write_value(name: &str, request: &Fields, out: &mut Vec<u8>) {
    if !request.contains(name) {
        return;
    }
    out.push(b':');
    match Name::lookup(name.as_bytes()) {
        Some(field @ (name::ACCEPT_ENCODING | name::ACCEPT_LANGUAGE)) => write_weighted(request, field, out),
        Some(field) if SINGLE.contains(&field) => write_joined(request, field.as_str(), out, |value, out| out.extend_from_slice(value)),
        _ => write_joined(request, name, out, write_list),
    }
}

/// Fields that are no lists: a comma in them is an ordinary byte, and so is the white space around it.
const SINGLE: [Name; 6] = [name::AUTHORIZATION, name::COOKIE, name::HOST, name::ORIGIN, name::REFERER, name::USER_AGENT];

fn write_joined(request: &Fields, name: &str, out: &mut Vec<u8>, write: impl Fn(&[u8], &mut Vec<u8>)) {
    for (at, line) in request.values(name).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(line, out);
    }
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
fn split_weight(member: &[u8]) -> (u16, &[u8]) {
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

    #[test]
    fn keys_hold_each_field_on_its_own() {
        let vary = Vary::parse(&fields(&[("vary", "B, a"), ("vary", "a,")]));
        let key = |lines: &[(&str, &str)]| vary.secondary_key(&fields(lines), &CachePolicy::default());
        assert_eq!(&*key(&[("a", "1"), ("b", "2")]).0, b"a:1\nb:2\n");
        assert_eq!(key(&[("b", "2"), ("a", "1")]), key(&[("a", "1"), ("b", "2")]));
        assert_ne!(key(&[("a", "12")]), key(&[("a", "1"), ("b", "2")]));
        assert_ne!(key(&[("a", "")]), key(&[]));
        assert_eq!(&*key(&[]).0, b"a\nb\n");
        let policy = CachePolicy { vary_ignore: vec!["A".into()], ..CachePolicy::default() };
        assert_eq!(&*vary.secondary_key(&fields(&[("a", "1"), ("b", "2")]), &policy).0, b"b:2\n");
        assert!(Vary::Nothing.secondary_key(&fields(&[("a", "1")]), &policy).0.is_empty());
    }

    #[test]
    fn too_many_fields_are_a_star() {
        let names: Vec<_> = (0..=VARY_FIELDS_MAX).map(|i| format!("f{i}")).collect();
        assert!(Vary::parse(&fields(&[("vary", &names.join(","))])).is_star());
        assert!(!Vary::parse(&fields(&[("vary", &names[1..].join(","))])).is_star());
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

        #[test]
        fn no_vary_panics_or_forges_a_line(
            vary in "[ -~]{0,30}", name in "[a-z]{1,3}", value in proptest::collection::vec(any::<u8>(), 0..30)
        ) {
            let mut request = Fields::new();
            let _ = request.push(&name, &value);
            let key = Vary::parse(&fields(&[("vary", &vary), ("vary", &name)])).secondary_key(&request, &CachePolicy::default());
            let lines = key.0.iter().filter(|byte| **byte == b'\n').count();
            prop_assert!(lines <= vary.len() + 1);
        }
    }
}
