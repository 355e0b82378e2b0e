//! Secondary keys (RFC 9111 §4.1): which request fields select among the responses of one cache key.
//!
//! Values are normalised only in ways that keep their meaning (§4.1): lines joined, white space around commas dropped,
//! and for Accept-Encoding and Accept-Language letter case, the order of members and the spelling of weights. Where
//! a weight differs, the values differ. What is reduced further, by policy, is reduced for the origin too (`asked`).

mod asked;
mod normal;

pub use asked::{Asked, DECIDED, write_asked};
pub(super) use normal::split_weight;
pub use normal::write_value;

use super::fields::{is_token_byte, trim};
use super::policy::CachePolicy;
use super::{Fields, forwarding, name};
use std::cell::RefCell;

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
    /// Reads all Vary lines. A member that is no field name counts as `*`: what it selects by cannot be known. So does a
    /// field that we write ourselves and that differs with every client.
    pub fn parse(response: &Fields) -> Self {
        let mut names: Vec<Box<str>> = Vec::new();
        for member in response.values(name::VARY).flat_map(|line| line.split(|byte| *byte == b',')).map(trim) {
            let Ok(text) = std::str::from_utf8(member) else { return Self::Star };
            match text {
                "" => {}
                "*" => return Self::Star,
                _ if names.len() < VARY_FIELDS_MAX && member.iter().all(|byte| is_token_byte(*byte)) => {
                    let name = text.to_ascii_lowercase();
                    if forwarding::is_per_client(&name) {
                        return Self::Star;
                    }
                    names.push(name.into());
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
            if is_written_as_asked(name, request, policy, out) {
                out.push(b'\n');
            } else if !policy.vary.ignore.iter().any(|ignored| ignored.eq_ignore_ascii_case(name)) {
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

/// Appends name and value of a field that the origin sees only as we make it: that alone selects. Says whether it is one.
fn is_written_as_asked(name: &str, request: &Fields, policy: &CachePolicy, out: &mut Vec<u8>) -> bool {
    let field = match name {
        "accept-encoding" => name::ACCEPT_ENCODING,
        "accept-language" if !policy.vary.languages.is_empty() => name::ACCEPT_LANGUAGE,
        "accept" if !policy.vary.images.is_empty() => name::ACCEPT,
        "available-dictionary" if asked::has_dictionaries(policy) => name::AVAILABLE_DICTIONARY,
        "dictionary-id" if asked::has_dictionaries(policy) => name::DICTIONARY_ID,
        _ => return false,
    };
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    match write_asked(field, request, policy, out) {
        Asked::Written => {}
        Asked::Nothing => out.truncate(out.len() - 1), // as where a field is absent
        Asked::AsSent => out.truncate(start),
    }
    out.len() > start
}

/// Values selected by Vary, compared byte for byte. Empty for a response without Vary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SecondaryKey(pub Box<[u8]>);

#[cfg(test)]
mod tests {
    use super::super::policy::VaryPolicy;
    use super::*;
    use proptest::prelude::*;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
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
        let policy = CachePolicy { vary: VaryPolicy { ignore: vec!["A".into()], ..VaryPolicy::default() }, ..CachePolicy::default() };
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
