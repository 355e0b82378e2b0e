//! Cache-Control directives of requests and responses, parsed once (RFC 9111 §5.2).
//!
//! Where the syntax is broken the restrictive reading wins: `no-store; max-age=5` (a semicolon for a comma) still
//! means no-store, and a lifetime that is not a number is zero. Each line is read for itself, so that a quoted string
//! left open in one line cannot swallow the next.

use super::fields::{is_token_byte, list};
use super::{Fields, name};
use sfv::{BareItem, Dictionary, ListEntry};
use std::ops::Deref;

/// Delta-seconds, saturated at 2^31 (RFC 9111 §1.2.2).
pub type Seconds = u32;

/// The largest delta-seconds that is told apart (RFC 9111 §1.2.2).
pub const SECONDS_MAX: Seconds = 1 << 31;

/// Directives whose argument is a number of seconds.
const LIFETIMES: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

/// More field names than this in one `no-cache="..."` or `private="..."` count as the directive without argument.
const QUALIFIED_NAMES_MAX: usize = 64;

/// Directives of a response. A malformed or contradictory number is `Some(0)`: stale is the safe side (§4.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ResponseDirectives {
    pub max_age: Option<Seconds>,
    pub s_maxage: Option<Seconds>,
    /// To be read by [`ResponseDirectives::rare`]; `None` where none of it was said.
    pub rare: Option<Box<RareDirectives>>,
    pub no_store: bool,
    /// no-cache without an argument.
    pub no_cache: bool,
    /// private without an argument.
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
}

/// What few responses say; one that says none of it has no memory for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RareDirectives {
    pub stale_while_revalidate: Option<Seconds>,
    pub stale_if_error: Option<Seconds>,
    /// Fields named by `no-cache="..."`, lower case.
    pub no_cache_fields: FieldNames,
    /// Fields named by `private="..."`, lower case.
    pub private_fields: FieldNames,
}

/// Directives of a request (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub max_age: Option<Seconds>,
    /// `Some(u32::MAX)`: max-stale without a value, any staleness.
    pub max_stale: Option<Seconds>,
    pub min_fresh: Option<Seconds>,
    pub no_cache: bool,
    pub no_store: bool,
    pub no_transform: bool,
    pub only_if_cached: bool,
    pub stale_if_error: Option<Seconds>,
}

impl ResponseDirectives {
    /// Reads all Cache-Control lines.
    pub fn parse(fields: &Fields) -> Self {
        let mut directives = Self::default();
        for_each(fields, |name, argument| directives.take(name, argument));
        directives
    }

    /// Reads a field that is a Dictionary (RFC 9213 §2.1). A value of the wrong type says nothing.
    pub fn of_dictionary(dictionary: &Dictionary) -> Self {
        let mut directives = Self::default();
        for (name, entry) in dictionary {
            if let ListEntry::Item(item) = entry {
                directives.take_typed(name.as_str(), &item.bare_item);
            }
        }
        directives
    }

    /// What few responses say.
    pub fn rare(&self) -> &RareDirectives {
        static NONE: RareDirectives = RareDirectives {
            stale_while_revalidate: None,
            stale_if_error: None,
            no_cache_fields: FieldNames(None),
            private_fields: FieldNames(None),
        };
        self.rare.as_deref().unwrap_or(&NONE)
    }

    /// How long it may be used stale, while it is asked for anew and where that fails.
    pub fn set_stale_windows(&mut self, window: Option<Seconds>) {
        if self.rare.is_some() || window.is_some() {
            let rare = self.rare.get_or_insert_default();
            (rare.stale_while_revalidate, rare.stale_if_error) = (window, window);
        }
    }

    /// Bytes of memory on the heap.
    pub fn memory(&self) -> usize {
        let of = |rare: &RareDirectives| size_of::<RareDirectives>() + rare.no_cache_fields.memory() + rare.private_fields.memory();
        self.rare.as_deref().map_or(0, of)
    }

    fn take_typed(&mut self, name: &str, value: &BareItem) {
        match value {
            BareItem::Integer(number) => {
                // A negative number of seconds is over.
                let seconds = Seconds::try_from(i64::from(*number).max(0)).unwrap_or(SECONDS_MAX).min(SECONDS_MAX);
                if let Some(slot) = self.lifetime(name.as_bytes()) {
                    *slot = Some(seconds);
                }
            }
            BareItem::Boolean(true) if !LIFETIMES.contains(&name) => self.take(name.as_bytes(), Argument::Absent),
            BareItem::String(names) => match name {
                "no-cache" => self.qualify_no_cache(names.as_str().as_bytes()),
                "private" => self.qualify_private(names.as_str().as_bytes()),
                _ => {}
            },
            _ => {}
        }
    }

    /// Where the number of a directive goes that has one.
    fn lifetime(&mut self, name: &[u8]) -> Option<&mut Option<Seconds>> {
        match name {
            b"max-age" => Some(&mut self.max_age),
            b"s-maxage" => Some(&mut self.s_maxage),
            b"stale-while-revalidate" => Some(&mut self.rare.get_or_insert_default().stale_while_revalidate),
            b"stale-if-error" => Some(&mut self.rare.get_or_insert_default().stale_if_error),
            _ => None,
        }
    }

    fn qualify_no_cache(&mut self, text: &[u8]) {
        let (names, is_whole) = qualified(text, self.rare().no_cache_fields.len());
        self.no_cache |= is_whole;
        names.into_iter().for_each(|name| self.rare.get_or_insert_default().no_cache_fields.push(name));
    }

    fn qualify_private(&mut self, text: &[u8]) {
        let (names, is_whole) = qualified(text, self.rare().private_fields.len());
        self.private |= is_whole;
        names.into_iter().for_each(|name| self.rare.get_or_insert_default().private_fields.push(name));
    }

    /// Directives that only restrict hold whatever stands behind them; those that permit must be well formed.
    fn take(&mut self, name: &[u8], argument: Argument<'_>) {
        if let Some(slot) = self.lifetime(name) {
            return merge(slot, argument);
        }
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.qualify_no_cache(&argument.text()),
            b"private" => self.qualify_private(&argument.text()),
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"no-transform" => self.no_transform = true,
            b"public" => self.public |= argument.is_absent(),
            b"must-understand" => self.must_understand |= argument.is_absent(),
            b"immutable" => self.immutable |= argument.is_absent(),
            _ => {} // §5.2.3: unrecognised directives are ignored
        }
    }
}

impl RequestDirectives {
    /// Reads all Cache-Control lines. Pragma is ignored (§5.4).
    pub fn parse(fields: &Fields) -> Self {
        let mut directives = Self::default();
        for_each(fields, |name, argument| directives.take(name, argument));
        directives
    }

    fn take(&mut self, name: &[u8], argument: Argument<'_>) {
        match name {
            b"max-age" => merge(&mut self.max_age, argument),
            b"max-stale" if argument.is_absent() => self.max_stale = Some(self.max_stale.unwrap_or(u32::MAX)),
            b"max-stale" => merge(&mut self.max_stale, argument),
            b"min-fresh" => merge(&mut self.min_fresh, argument),
            b"stale-if-error" => merge(&mut self.stale_if_error, argument),
            b"no-cache" => self.no_cache = true,
            b"no-store" => self.no_store = true,
            b"no-transform" => self.no_transform = true,
            b"only-if-cached" => self.only_if_cached = true,
            _ => {}
        }
    }
}

/// Seconds of `1*DIGIT`, saturated at [`SECONDS_MAX`]; `None` for anything else (RFC 9111 §1.2.2).
pub fn delta_seconds(text: &[u8]) -> Option<Seconds> {
    read_digits(text.iter().copied())
}

fn read_digits(digits: impl Iterator<Item = u8>) -> Option<Seconds> {
    let mut seconds = None;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let so_far: Seconds = seconds.unwrap_or(0);
        seconds = Some(so_far.saturating_mul(10).saturating_add(Seconds::from(digit - b'0')).min(SECONDS_MAX));
    }
    seconds
}

/// Field names of a qualified directive. Nearly always none, so it is one pointer wide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FieldNames(Option<Box<Names>>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Names(Vec<String>);

impl FieldNames {
    /// Whether this lower-case name is in the list.
    pub fn names(&self, lower: &str) -> bool {
        self.iter().any(|name| name == lower)
    }

    /// Bytes of memory on the heap.
    pub fn memory(&self) -> usize {
        let names = |all: &Names| size_of::<Names>() + all.0.iter().map(|name| size_of::<String>() + name.capacity()).sum::<usize>();
        self.0.as_deref().map_or(0, names)
    }

    fn push(&mut self, name: String) {
        self.0.get_or_insert_default().0.push(name);
    }
}

impl Deref for FieldNames {
    type Target = [String];
    fn deref(&self) -> &[String] {
        self.0.as_deref().map_or(&[], |names| &names.0)
    }
}

impl<'a> IntoIterator for &'a FieldNames {
    type Item = &'a String;
    type IntoIter = std::slice::Iter<'a, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What stands behind the `=` of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument<'a> {
    Absent,
    Token(&'a [u8]),
    /// Without the quotes, escapes still in it.
    Quoted(&'a [u8]),
    Malformed,
}

impl Argument<'_> {
    fn is_absent(self) -> bool {
        self == Self::Absent
    }

    /// Both forms are accepted for every directive (§5.2).
    fn seconds(self) -> Option<Seconds> {
        match self {
            Self::Token(text) => delta_seconds(text),
            Self::Quoted(text) => read_digits(unescape(text)),
            Self::Absent | Self::Malformed => None,
        }
    }

    /// Empty where there is none that can be read.
    fn text(self) -> Vec<u8> {
        match self {
            Self::Token(text) => text.to_vec(),
            Self::Quoted(text) => unescape(text).collect(),
            Self::Absent | Self::Malformed => Vec::new(),
        }
    }
}

/// The bytes of a quoted string's inside without its backslashes (RFC 9110 §5.6.4).
fn unescape(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut bytes = text.iter().copied();
    std::iter::from_fn(move || match bytes.next() {
        Some(b'\\') => bytes.next(),
        byte => byte,
    })
}

/// The longest directive that is known: `stale-while-revalidate`.
const LONGEST: usize = 22;

fn for_each(fields: &Fields, mut take: impl FnMut(&[u8], Argument<'_>)) {
    for line in fields.values(name::CACHE_CONTROL) {
        for member in list(line) {
            read_member(member, |name, argument| {
                let mut lower = [0; LONGEST];
                if let Some(lower) = lower.get_mut(..name.len()) {
                    lower.copy_from_slice(name);
                    lower.make_ascii_lowercase();
                    take(lower, argument);
                }
            });
        }
    }
}

/// Gives the directive of a member, or each word of a malformed one as if it had a malformed argument.
fn read_member(member: &[u8], mut take: impl FnMut(&[u8], Argument<'_>)) {
    if let Some((name, argument)) = well_formed(member) {
        return take(name, argument);
    }
    for word in member.split(|byte| matches!(byte, b' ' | b'\t' | b';')) {
        let name = word.split(|byte| *byte == b'=').next().unwrap_or(word);
        take(name, Argument::Malformed);
    }
}

fn well_formed(member: &[u8]) -> Option<(&[u8], Argument<'_>)> {
    let equals = member.iter().position(|byte| *byte == b'=');
    let (name, argument) = member.split_at(equals.unwrap_or(member.len()));
    let argument = match argument {
        [] => Argument::Absent,
        [_, b'"', inside @ .., b'"'] if is_quoted_inside(inside) => Argument::Quoted(inside),
        [_, token @ ..] if is_token(token) => Argument::Token(token),
        _ => return None,
    };
    is_token(name).then_some((name, argument))
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

/// Whether no quote ends the string early and no escape reaches past its end.
fn is_quoted_inside(inside: &[u8]) -> bool {
    let mut escaped = false;
    for byte in inside {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return false,
            _ => {}
        }
    }
    !escaped
}

/// The first value, or zero where a value is malformed or contradicts an earlier one (§4.2.1).
fn merge(slot: &mut Option<Seconds>, argument: Argument<'_>) {
    let seconds = argument.seconds().unwrap_or(0);
    *slot = Some(if slot.is_none_or(|earlier| earlier == seconds) { seconds } else { 0 });
}

/// The field names of `no-cache` or `private`, beside `known` earlier ones, and whether the directive is meant for the whole
/// response: where there are none that can be read. The token form is accepted too (§5.2.2.4, §5.2.2.7).
fn qualified(text: &[u8], known: usize) -> (Vec<String>, bool) {
    let (mut names, mut is_whole) = (Vec::new(), false);
    for member in list(text) {
        let lower = std::str::from_utf8(member).ok().filter(|text| is_token(text.as_bytes())).map(str::to_ascii_lowercase);
        match lower {
            Some(lower) if known + names.len() < QUALIFIED_NAMES_MAX => names.push(lower),
            _ => is_whole = true,
        }
    }
    is_whole |= names.is_empty();
    (names, is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(lines: &[&str]) -> Fields {
        let mut fields = Fields::new();
        for line in lines {
            fields.append(name::CACHE_CONTROL, line).unwrap();
        }
        fields
    }

    fn response(line: &str) -> ResponseDirectives {
        ResponseDirectives::parse(&of(&[line]))
    }

    #[test]
    fn lifetimes_are_digits_or_zero() {
        for (line, want) in [
            ("max-age=3600", Some(3600)),
            ("MAX-AGE=3600", Some(3600)),
            ("max-age=003600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age=\"36\\00\"", Some(3600)),
            ("max-age=2147483647", Some(2_147_483_647)),
            ("max-age=2147483648", Some(SECONDS_MAX)),
            ("max-age=2147483649", Some(SECONDS_MAX)),
            ("max-age=99999999999", Some(SECONDS_MAX)),
            ("max-age=5, max-age=5", Some(5)),
            ("ext=\"max-age=3600\", max-age=1", Some(1)),
            ("max-age=1, ext=\"max-age=3600\"", Some(1)),
            ("ext=\"a\\\", max-age=3600\"", None),
            ("xmax-age=5", None),
            ("max-age=-1", Some(0)),
            ("max-age='3600'", Some(0)),
            ("max-age =1", Some(0)),
            ("max-age= 1", Some(0)),
            ("max-age=3600.0", Some(0)),
            ("max-age=3600.5", Some(0)),
            ("max-age=a3600", Some(0)),
            ("max-age=3600a", Some(0)),
            ("max-age=", Some(0)),
            ("max-age", Some(0)),
            ("max-age=\"\"", Some(0)),
            ("max-age=\"5", Some(0)),
            ("max-age=5\"", Some(0)),
            ("max-age=\"5\\\"", Some(0)),
            ("max-age=5; private", Some(0)),
            ("max-age=5, max-age=6", Some(0)),
            ("max-age=3600, max-age=0", Some(0)),
            ("", None),
        ] {
            assert_eq!(response(line).max_age, want, "{line}");
        }
        assert_eq!(ResponseDirectives::parse(&of(&["max-age=5", "max-age=6"])).max_age, Some(0));
        assert_eq!(response("s-maxage=7, max-age=0").s_maxage, Some(7));
        let windows = response("stale-while-revalidate=8, stale-if-error=9");
        assert_eq!((windows.rare().stale_while_revalidate, windows.rare().stale_if_error), (Some(8), Some(9)));
    }

    #[test]
    fn flags_are_read_in_any_case_and_over_lines() {
        let read =
            ResponseDirectives::parse(&of(&["Public,, MUST-revalidate ,", "proxy-revalidate, no-transform, immutable, must-understand"]));
        assert!(
            read.public && read.must_revalidate && read.proxy_revalidate && read.no_transform && read.immutable && read.must_understand
        );
        assert!(!read.no_store && !read.no_cache && !read.private);
    }

    #[test]
    fn restrictive_directives_survive_broken_syntax() {
        for line in
            ["no-store", "No-Store=1", "no-store; max-age=5", "max-age=5; no-store", "private no-store", "x=\"a, no-store", "no-store =x"]
        {
            assert!(response(line).no_store, "{line}");
        }
        assert!(!response("ext=\"a, no-store\"").no_store);
        assert!(ResponseDirectives::parse(&of(&["ext=\"a", "no-store"])).no_store);
        for line in ["public; x", "public=1", "immutable=1", "must-understand=x", "public x"] {
            let read = response(line);
            assert!(!read.public && !read.immutable && !read.must_understand, "{line}");
        }
    }

    #[test]
    fn qualified_forms_name_fields() {
        let read = response("no-cache=\"A, set-cookie\", private=x-user");
        assert_eq!(read.rare().no_cache_fields[..], ["a", "set-cookie"]);
        assert_eq!(read.rare().private_fields[..], ["x-user"]);
        assert!(!read.no_cache && !read.private && read.rare().private_fields.names("x-user"));
        for line in ["private", "private=\"\"", "private=\"a b\"", "private=\"a", "private=\",\"", "private=;", "private=\"a\", private"] {
            assert!(response(line).private, "{line}");
        }
        let many: Vec<_> = (0..=QUALIFIED_NAMES_MAX).map(|i| format!("f{i}")).collect();
        let read = response(&format!("no-cache=\"{}\"", many.join(",")));
        assert!(read.no_cache && read.rare().no_cache_fields.len() == QUALIFIED_NAMES_MAX);
        assert!(read.memory() > 0 && response("no-cache, private, max-age=5").memory() == 0);
    }

    #[test]
    fn request_directives_are_read() {
        let read = RequestDirectives::parse(&of(&["max-age=1, max-stale, min-fresh=3, no-cache, no-store, no-transform, only-if-cached"]));
        let want = RequestDirectives {
            max_age: Some(1),
            max_stale: Some(u32::MAX),
            min_fresh: Some(3),
            no_cache: true,
            no_store: true,
            no_transform: true,
            only_if_cached: true,
            stale_if_error: None,
        };
        assert_eq!(read, want);
        let read = RequestDirectives::parse(&of(&["max-stale=5, stale-if-error=6, nothing-to-see-here"]));
        assert_eq!(read, RequestDirectives { max_stale: Some(5), stale_if_error: Some(6), ..RequestDirectives::default() });
        assert_eq!(RequestDirectives::parse(&of(&["max-stale=x"])).max_stale, Some(0));
    }

    #[test]
    fn it_stays_small() {
        assert!(size_of::<ResponseDirectives>() <= 64);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "[ -~\\t]{0,60}") {
            let fields = of(&[&line]);
            ResponseDirectives::parse(&fields);
            RequestDirectives::parse(&fields);
        }

        #[test]
        fn no_store_is_seen_behind_any_other_line(line in "[ -~]{0,40}") {
            prop_assert!(ResponseDirectives::parse(&of(&[&line, "no-store"])).no_store);
        }

        #[test]
        fn digits_are_read_and_saturate(number in any::<u64>()) {
            let want = u32::try_from(number).unwrap_or(u32::MAX).min(SECONDS_MAX);
            prop_assert_eq!(response(&format!("max-age={number}")).max_age, Some(want));
        }
    }
}
