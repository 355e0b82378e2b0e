//! Compression dictionaries: which responses are one, and which one a client has (RFC 9842).
//!
//! A response that declares itself one ([`is_dictionary`]) is kept under the hash of its content, for its origin alone. A
//! client that has it says so by that hash ([`available`]), which is all that it is believed: `Dictionary-ID` is for origins
//! that keep dictionaries by name. Which of its dictionaries fits a URL is for the client to find out, by `match` (§2.2.2).

use super::fields::trim;
use super::{Fields, Method, Request, Response, StatusCode, name};
use bytes::Bytes;
use sfv::{BareItem, Dictionary as Members, Item, ItemSerializer, ListEntry, Parser};
use sha2::{Digest, Sha256};
use std::fmt;

/// The SHA-256 hash of a dictionary: what it is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DictionaryHash(pub [u8; 32]);

/// As in Available-Dictionary: a Byte Sequence.
impl fmt::Display for DictionaryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ItemSerializer::new().bare_item(&self.0[..]).finish())
    }
}

/// Bytes that both ends have, of the type `raw` (§2.1.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Dictionary {
    hash: DictionaryHash,
    bytes: Bytes,
}

impl Dictionary {
    /// Hashes, which takes a while for long ones: 1 MiB takes about a millisecond.
    pub fn new(bytes: Bytes) -> Self {
        Self { hash: DictionaryHash(Sha256::digest(&bytes).into()), bytes }
    }

    pub const fn hash(&self) -> DictionaryHash {
        self.hash
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dictionary({}, {} bytes)", self.hash, self.bytes.len())
    }
}

/// A field with more bytes than this says nothing.
const FIELD_BYTES_MAX: usize = 4096;
/// Characters of an `id` (§2.1.3).
const ID_CHARS_MAX: usize = 1024;

/// Whether the response to this request may be a dictionary for others: it declares that, and is a whole representation as
/// clients have it once its coding is taken off.
pub fn is_dictionary(request: Request<'_>, response: Response<'_>) -> bool {
    let fields = response.fields;
    *request.method == Method::GET
        && response.status == StatusCode::OK
        && fields.has(name::USE_AS_DICTIONARY)
        && !fields.has(name::CONTENT_ENCODING)
        && !fields.has(name::CONTENT_RANGE)
        && declares(fields)
}

/// Whether Use-As-Dictionary is such that clients use the response (§2.1). Members with other names may come to mean something.
fn declares(response: &Fields) -> bool {
    let Some(value) = response.joined(name::USE_AS_DICTIONARY).filter(|value| value.len() <= FIELD_BYTES_MAX) else { return false };
    let Ok(members) = Parser::new(&value[..]).parse::<Members>() else { return false };
    let matches = match members.get("match") {
        Some(ListEntry::Item(Item { bare_item: BareItem::String(pattern), .. })) => !has_regexp(pattern.as_str()),
        _ => false,
    };
    let is_for_destinations = match members.get("match-dest") {
        None => true,
        Some(ListEntry::InnerList(list)) => list.items.iter().all(|item| matches!(item.bare_item, BareItem::String(_))),
        Some(ListEntry::Item(_)) => false,
    };
    let has_good_id = match members.get("id") {
        None => true,
        Some(ListEntry::Item(Item { bare_item: BareItem::String(id), .. })) => id.as_str().len() <= ID_CHARS_MAX,
        Some(_) => false,
    };
    let is_raw = match members.get("type") {
        None => true,
        Some(ListEntry::Item(Item { bare_item: BareItem::Token(kind), .. })) => kind.as_str() == "raw",
        Some(_) => false,
    };
    matches && is_for_destinations && has_good_id && is_raw
}

/// Whether a URL pattern has a group with a regular expression, which `match` must not have: a parenthesis that is not escaped.
fn has_regexp(pattern: &str) -> bool {
    let mut escaped = false;
    pattern.bytes().any(|byte| {
        let begins = byte == b'(' && !escaped;
        escaped = byte == b'\\' && !escaped;
        begins
    })
}

/// The dictionary that a client says it has; `None` where it says nothing, or nothing that can be understood (§2.2).
pub fn available(request: &Fields) -> Option<DictionaryHash> {
    let mut lines = request.values(name::AVAILABLE_DICTIONARY);
    let line = lines.next().filter(|line| lines.next().is_none() && line.len() <= FIELD_BYTES_MAX)?;
    let item = Parser::new(line).parse::<Item>().ok()?;
    match item.bare_item {
        BareItem::ByteSequence(bytes) => Some(DictionaryHash(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Whether a dictionary may be used for this answer: not where the length of it could tell a page of another origin what it
/// may not read (§9.3.3). Clients that send no Sec-Fetch-Site have no such pages.
pub fn may_be_used(request: &Fields, response: &Fields) -> bool {
    let says = |name: &str| request.values(name).next().map(trim);
    let (Some(site), Some(mode)) = (says("sec-fetch-site"), says("sec-fetch-mode")) else { return true };
    match mode {
        _ if site == b"same-origin" => true,
        b"navigate" | b"same-origin" => true,
        b"cors" => {
            let origin = request.get(name::ORIGIN).map(trim);
            let allowed = response.values("access-control-allow-origin").next().map(trim);
            origin.is_some() && (allowed == Some(b"*") || allowed == origin)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::reuse::testing::{Asked, fields};
    use super::*;
    use proptest::prelude::*;

    fn declared(value: &str) -> bool {
        declares(&fields(&[("use-as-dictionary", value)]))
    }

    #[test]
    fn a_dictionary_declares_what_it_is_for() {
        for (value, want) in [
            (r#"match="/app*js""#, true),
            (r#"match="/product/*", match-dest=("document")"#, true),
            (r#"match="/a", match-dest=()"#, true),
            (r#"match="/a", id="dictionary-12345", type=raw, later=?1"#, true),
            (r#"match="/a";x=1"#, true),
            (r#"match="/a\\(b""#, true),
            (r#"match="/(a|b)""#, false),
            (r#"match="/\\\\(b)""#, false),
            (r#"match="/a", type=zstd"#, false),
            (r#"match="/a", type="raw""#, false),
            (r#"match="/a", match-dest="document""#, false),
            (r#"match="/a", match-dest=(document)"#, false),
            (r#"match="/a", id=abc"#, false),
            ("match=/a", false),
            ("match", false),
            (r#"match=("/a")"#, false),
            (r#"id="a""#, false),
            (r#"match="/a"#, false),
            ("", false),
        ] {
            assert_eq!(declared(value), want, "{value}");
        }
        assert!(declared(&format!(r#"match="/a", id="{}""#, "x".repeat(1024))));
        assert!(!declared(&format!(r#"match="/a", id="{}""#, "x".repeat(1025))));
        assert!(!declared(&format!(r#"match="/{}""#, "x".repeat(FIELD_BYTES_MAX))));
        assert!(declares(&fields(&[("use-as-dictionary", "match=\"/a\""), ("use-as-dictionary", "type=raw")])), "lines are one");
        assert!(!declares(&Fields::new()));
    }

    #[test]
    fn a_dictionary_is_a_whole_representation() {
        const DECLARED: (&str, &str) = ("use-as-dictionary", "match=\"/*\"");
        let is = |method: &Method, status: u16, lines: &[(&str, &str)]| {
            let (mut asked, fields) = (Asked::get(&[]), fields(lines));
            asked.method = method.clone();
            is_dictionary(asked.request(), Response { status: StatusCode::from_u16(status).unwrap(), fields: &fields })
        };
        assert!(is(&Method::GET, 200, &[DECLARED]));
        assert!(!is(&Method::GET, 200, &[]));
        assert!(!is(&Method::POST, 200, &[DECLARED]) && !is(&Method::GET, 404, &[DECLARED]) && !is(&Method::GET, 206, &[DECLARED]));
        assert!(!is(&Method::GET, 200, &[DECLARED, ("content-encoding", "gzip")]));
    }

    /// The hash of RFC 9842 §2.2.
    const SENT: &str = ":pZGm1Av0IEBKARczz7exkNYsZb8LzaMrV7J32a2fFG4=:";

    #[test]
    fn what_a_client_has_is_one_hash() {
        let said = |lines: &[(&str, &str)]| available(&fields(lines));
        let hash = said(&[("available-dictionary", SENT)]).unwrap();
        assert_eq!((hash.0[..3].to_vec(), hash.to_string().as_str()), (vec![0xa5, 0x91, 0xa6], SENT));
        assert_eq!(said(&[("available-dictionary", &format!("{SENT};a=1"))]), Some(hash), "parameters say nothing");
        for value in ["", ":pZGm1Av0:", "pZGm", &SENT[1..], &format!("{SENT}, {SENT}"), "?1", "::"] {
            assert_eq!(said(&[("available-dictionary", value)]), None, "{value}");
        }
        assert_eq!(said(&[("available-dictionary", SENT), ("available-dictionary", SENT)]), None);
        assert_eq!(said(&[]), None);
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let dictionary = Dictionary::new(Bytes::from_static(b"abc"));
        assert_eq!(dictionary.hash().0[..4], [0xba, 0x78, 0x16, 0xbf], "FIPS 180-4, the example of one block");
        assert_eq!(dictionary.bytes(), b"abc");
    }

    #[test]
    fn pages_of_other_origins_learn_nothing_from_lengths() {
        let may = |request: &[(&str, &str)], allowed: Option<&str>| {
            let allowed: Vec<_> = allowed.iter().map(|origin| ("access-control-allow-origin", *origin)).collect();
            may_be_used(&fields(request), &fields(&allowed))
        };
        const CROSS: (&str, &str) = ("sec-fetch-site", "cross-site");
        const CORS: [(&str, &str); 3] = [CROSS, ("sec-fetch-mode", "cors"), ("origin", "https://a.example")];
        assert!(may(&[], None) && may(&[CROSS], None));
        assert!(may(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors")], None));
        assert!(may(&[CROSS, ("sec-fetch-mode", "navigate")], None) && may(&[CROSS, ("sec-fetch-mode", "same-origin")], None));
        assert!(may(&CORS, Some("*")) && may(&CORS, Some("https://a.example")));
        assert!(!may(&CORS, None) && !may(&CORS, Some("https://b.example")) && !may(&CORS[..2], Some("*")));
        assert!(!may(&[CROSS, ("sec-fetch-mode", "no-cors")], Some("*")) && !may(&[CROSS, ("sec-fetch-mode", "other")], None));
    }

    proptest! {
        #[test]
        fn hashes_are_read_as_they_are_written(bytes: [u8; 32]) {
            let written = DictionaryHash(bytes).to_string();
            prop_assert_eq!(available(&fields(&[("available-dictionary", &written)])), Some(DictionaryHash(bytes)));
        }

        /// What is valid stays so whatever else there is that nobody knows as yet.
        #[test]
        fn patterns_without_groups_are_taken(path in "[a-z0-9/*._~-]{1,40}", more in "(, [a-z]{6,9}=(1|\\?0|tok))?") {
            let value = format!("match=\"/{path}\"{more}");
            prop_assert!(declared(&value));
            let grouped = format!("match=\"/{path}(.)\"{more}");
            prop_assert!(!declared(&grouped));
        }

        #[test]
        fn any_bytes_are_read_without_panic(value in prop::collection::vec(any::<u8>(), 0..80)) {
            for field in ["use-as-dictionary", "available-dictionary"] {
                let mut any = Fields::new();
                if any.push(field, &value).is_ok() {
                    let _ = (declares(&any), available(&any));
                }
            }
        }
    }
}
