//! Field sections: one flat block of `name: value\r\n` lines and a table of where each begins.
//!
//! The block is what goes on an HTTP/1 wire, so a stored response is sent by copying it; the table
//! is what the rules read. Names are kept in lower case (RFC 9110 §5.1: case-insensitive). Well
//! known names have a number, and a bit set of the numbers present answers "is it there at all"
//! without looking at a byte.
//!
//! Invariants: every line in the block has exactly one table entry, in order; names are tokens;
//! values hold no CR, LF or NUL and have no leading or trailing white space. [`Fields::push`]
//! refuses anything else, so a value that exists can be written to a wire as it is.

use std::fmt;
use std::hash::{Hash, Hasher};

/// A well known field name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(u8);

/// The number of all other names: the largest of seven bits.
const UNKNOWN: u8 = 127;

macro_rules! names {
    ($($constant:ident = $text:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u8)]
        enum Number { $($constant,)* Count }
        /// Constants for every well known field name.
        pub mod name {
            use super::{Name, Number};
            $(#[doc = $text] pub const $constant: Name = Name(Number::$constant as u8);)*
        }
        const NAMES: &[&str] = &[$($text,)*];
        const _: () = assert!((Number::Count as usize) <= UNKNOWN as usize);
    };
}

names! {
    ACCEPT = "accept",
    ACCEPT_ENCODING = "accept-encoding",
    ACCEPT_LANGUAGE = "accept-language",
    ACCEPT_RANGES = "accept-ranges",
    AGE = "age",
    ALT_SVC = "alt-svc",
    AUTHORIZATION = "authorization",
    AVAILABLE_DICTIONARY = "available-dictionary",
    CACHE_CONTROL = "cache-control",
    CACHE_GROUPS = "cache-groups",
    CACHE_GROUP_INVALIDATION = "cache-group-invalidation",
    CACHE_STATUS = "cache-status",
    CACHE_TAG = "cache-tag",
    CDN_CACHE_CONTROL = "cdn-cache-control",
    CDN_LOOP = "cdn-loop",
    CF_CONNECTING_IP = "cf-connecting-ip",
    CLEAR_SITE_DATA = "clear-site-data",
    CLIENT_CERT = "client-cert",
    CLIENT_CERT_CHAIN = "client-cert-chain",
    CONNECTION = "connection",
    CONTENT_DIGEST = "content-digest",
    CONTENT_DISPOSITION = "content-disposition",
    CONTENT_ENCODING = "content-encoding",
    CONTENT_LANGUAGE = "content-language",
    CONTENT_LENGTH = "content-length",
    CONTENT_LOCATION = "content-location",
    CONTENT_RANGE = "content-range",
    CONTENT_SECURITY_POLICY = "content-security-policy",
    CONTENT_TYPE = "content-type",
    COOKIE = "cookie",
    DATE = "date",
    DICTIONARY_ID = "dictionary-id",
    DNT = "dnt",
    EDGE_CACHE_TAG = "edge-cache-tag",
    ETAG = "etag",
    EXPECT = "expect",
    EXPIRES = "expires",
    FASTLY_SOFT_PURGE = "fastly-soft-purge",
    FASTLY_CLIENT_IP = "fastly-client-ip",
    FORWARDED = "forwarded",
    FRONT_END_HTTPS = "front-end-https",
    HOST = "host",
    HTTP2_SETTINGS = "http2-settings",
    IF_MATCH = "if-match",
    IF_MODIFIED_SINCE = "if-modified-since",
    IF_NONE_MATCH = "if-none-match",
    IF_RANGE = "if-range",
    IF_UNMODIFIED_SINCE = "if-unmodified-since",
    KEEP_ALIVE = "keep-alive",
    LAST_MODIFIED = "last-modified",
    LINK = "link",
    LOCATION = "location",
    MAX_FORWARDS = "max-forwards",
    NO_VARY_SEARCH = "no-vary-search",
    ORIGIN = "origin",
    PRAGMA = "pragma",
    PRIORITY = "priority",
    PROXY_AUTHENTICATE = "proxy-authenticate",
    PROXY_AUTHENTICATION_INFO = "proxy-authentication-info",
    PROXY_AUTHORIZATION = "proxy-authorization",
    PROXY_CONNECTION = "proxy-connection",
    PROXY_STATUS = "proxy-status",
    RANGE = "range",
    REFERER = "referer",
    RETRY_AFTER = "retry-after",
    SEC_WEBSOCKET_KEY = "sec-websocket-key",
    SERVER = "server",
    SERVER_TIMING = "server-timing",
    SET_COOKIE = "set-cookie",
    STRICT_TRANSPORT_SECURITY = "strict-transport-security",
    SURROGATE_CAPABILITY = "surrogate-capability",
    SURROGATE_CONTROL = "surrogate-control",
    SURROGATE_KEY = "surrogate-key",
    TE = "te",
    TIERCEL_ERROR = "tiercel-error",
    TIERCEL_HOP = "tiercel-hop",
    TIERCEL_STAMP = "tiercel-stamp",
    TRACEPARENT = "traceparent",
    TRACESTATE = "tracestate",
    TRAILER = "trailer",
    TRANSFER_ENCODING = "transfer-encoding",
    TRUE_CLIENT_IP = "true-client-ip",
    UPGRADE = "upgrade",
    UPGRADE_INSECURE_REQUESTS = "upgrade-insecure-requests",
    USER_AGENT = "user-agent",
    USE_AS_DICTIONARY = "use-as-dictionary",
    VARY = "vary",
    VIA = "via",
    WARNING = "warning",
    X_ACCEL_EXPIRES = "x-accel-expires",
    X_CACHE = "x-cache",
    X_CLIENT_IP = "x-client-ip",
    X_CLUSTER_CLIENT_IP = "x-cluster-client-ip",
    X_FORWARDED_FOR = "x-forwarded-for",
    X_FORWARDED_HOST = "x-forwarded-host",
    X_FORWARDED_PORT = "x-forwarded-port",
    X_FORWARDED_PREFIX = "x-forwarded-prefix",
    X_FORWARDED_PROTO = "x-forwarded-proto",
    X_FORWARDED_SCHEME = "x-forwarded-scheme",
    X_FORWARDED_SERVER = "x-forwarded-server",
    X_FORWARDED_SSL = "x-forwarded-ssl",
    X_HOST = "x-host",
    X_HTTP_HOST_OVERRIDE = "x-http-host-override",
    X_HTTP_METHOD_OVERRIDE = "x-http-method-override",
    X_METHOD_OVERRIDE = "x-method-override",
    X_HTTP_METHOD = "x-http-method",
    X_ORIGINAL_HOST = "x-original-host",
    X_ORIGINAL_URL = "x-original-url",
    X_REAL_IP = "x-real-ip",
    X_REQUEST_ID = "x-request-id",
    X_REWRITE_URL = "x-rewrite-url",
    X_SCHEME = "x-scheme",
    X_URL_SCHEME = "x-url-scheme",
    XKEY = "xkey",
    XKEY_SOFTPURGE = "xkey-softpurge",
}

const SLOTS: usize = 1024;
const MULTIPLIER: u32 = 31;

const fn slot(bytes: &[u8]) -> usize {
    // Length, first, middle and last letter tell the known names apart well enough for short chains.
    let n = bytes.len();
    let mixed = (n as u32)
        .wrapping_mul(131)
        .wrapping_add((bytes[0] as u32).wrapping_mul(MULTIPLIER))
        .wrapping_add((bytes[n / 2] as u32).wrapping_mul(977))
        .wrapping_add((bytes[n - 1] as u32).wrapping_mul(57))
        .wrapping_add((bytes[n / 3] as u32).wrapping_mul(389));
    (mixed ^ (mixed >> 10)) as usize % SLOTS
}

/// Open-addressed table from [`slot`] to the number of a name.
const TABLE: [u8; SLOTS] = {
    let mut table = [UNKNOWN; SLOTS];
    let mut i = 0;
    while i < NAMES.len() {
        let mut at = slot(NAMES[i].as_bytes());
        while table[at] != UNKNOWN {
            at = (at + 1) % SLOTS;
        }
        table[at] = i as u8;
        i += 1;
    }
    table
};

/// Length of the longest well known name.
const LONGEST: usize = {
    let (mut longest, mut i) = (0, 0);
    while i < NAMES.len() {
        if NAMES[i].len() > longest {
            longest = NAMES[i].len();
        }
        i += 1;
    }
    longest
};

impl Name {
    /// The name with this lower-case text, if it is a well known one.
    pub fn lookup(lower: &[u8]) -> Option<Self> {
        if lower.is_empty() {
            return None;
        }
        let mut at = slot(lower);
        loop {
            match TABLE[at] {
                UNKNOWN => return None,
                number if NAMES[number as usize].as_bytes() == lower => return Some(Self(number)),
                _ => at = (at + 1) % SLOTS,
            }
        }
    }

    /// The name with this text in any letter case, if it is a well known one.
    pub fn lookup_any_case(text: &[u8]) -> Option<Self> {
        let mut lower = [0; LONGEST];
        let lower = lower.get_mut(..text.len())?;
        lower.copy_from_slice(text);
        lower.make_ascii_lowercase();
        Self::lookup(lower)
    }

    /// The text of the name, in lower case.
    pub const fn as_str(self) -> &'static str {
        NAMES[self.0 as usize]
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of well known names, in halves: as one number it would have to stand at a multiple of sixteen, and with it all
/// that holds one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Names([u64; 2]);

impl Names {
    /// The set of these names.
    pub const fn of(names: &[Name]) -> Self {
        let (mut set, mut at) = (Self([0; 2]), 0);
        while at < names.len() {
            set = set.with(names[at]);
            at += 1;
        }
        set
    }

    /// Whether the name is in the set.
    pub const fn contains(self, name: Name) -> bool {
        self.bits() & (1 << name.0) != 0
    }

    /// The set and this name.
    pub const fn with(self, name: Name) -> Self {
        let bits = self.bits() | 1 << name.0;
        Self([bits as u64, (bits >> 64) as u64])
    }

    const fn without(self, names: Self) -> Self {
        Self([self.0[0] & !names.0[0], self.0[1] & !names.0[1]])
    }

    const fn bits(self) -> u128 {
        self.0[0] as u128 | (self.0[1] as u128) << 64
    }
}

/// What a field can be looked up by: a [`Name`], or text in any letter case. Neither allocates.
pub trait FieldName: Copy {
    /// The number of the name; `None` for one that is not well known.
    fn number(self) -> Option<Name>;
    /// The text of the name, in any letter case.
    fn text(&self) -> &str;
}

impl FieldName for Name {
    fn number(self) -> Option<Name> {
        Some(self)
    }
    fn text(&self) -> &str {
        self.as_str()
    }
}

impl FieldName for &str {
    fn number(self) -> Option<Name> {
        Name::lookup_any_case(self.as_bytes())
    }
    fn text(&self) -> &str {
        self
    }
}

impl FieldName for &String {
    fn number(self) -> Option<Name> {
        self.as_str().number()
    }
    fn text(&self) -> &str {
        self
    }
}

/// Why a line was not taken into a field section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The name is empty, too long, or not a token (RFC 9110 §5.1).
    #[error("field name is not a token")]
    Name,
    /// The value holds CR, LF, NUL or another control byte (RFC 9110 §5.5).
    #[error("field value holds a control byte")]
    Value,
    /// The section would pass [`SECTION_MAX`].
    #[error("field section is too large")]
    Size,
}

/// Bytes that a section may have: twice what the limits on heads can be set to, so that lines may be added to any.
pub const SECTION_MAX: usize = 1 << START_BITS;

/// Longest name.
const NAME_MAX: usize = u16::MAX as usize;

/// Where a line begins, and the number of its name, in four bytes: a stored response has a dozen. The name ends with a colon,
/// the value where the next line begins, but for CR LF.
#[derive(Clone, Copy)]
struct Line(u32);

const START_BITS: u32 = 25;

impl Line {
    const fn new(start: usize, number: u8) -> Self {
        Self((number as u32) << START_BITS | start as u32)
    }
    const fn start(self) -> usize {
        self.0 as usize % SECTION_MAX
    }
    const fn number(self) -> u8 {
        (self.0 >> START_BITS) as u8
    }
    /// Its name, if that is well known.
    const fn name(self) -> Option<Name> {
        if self.number() == UNKNOWN { None } else { Some(Name(self.number())) }
    }
}

/// A field section: header or trailer fields in the order in which they came.
#[derive(Clone, Default)]
pub struct Fields {
    block: Vec<u8>,
    lines: Vec<Line>,
    present: Names,
}

/// Bytes of a token (RFC 9110 §5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = matches!(byte as u8, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z');
        byte += 1;
    }
    table
};

/// Bytes of a token in lower case; 0 for any other byte.
const LOWER_TOKEN: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        if TOKEN_BYTES[byte] {
            table[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// Puts the token that `line` begins with into lower case; its length.
fn lower_token(line: &mut [u8]) -> usize {
    let mut length = 0;
    for byte in line {
        let lower = LOWER_TOKEN[*byte as usize];
        if lower == 0 {
            break;
        }
        (*byte, length) = (lower, length + 1);
    }
    length
}

/// Bytes of a field value: visible, space, tab, obs-text (RFC 9110 §5.5).
pub const fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Not `all`: what never stops early is done sixteen bytes at a time.
fn is_value(bytes: &[u8]) -> bool {
    !bytes.iter().fold(false, |wrong, byte| wrong | !is_value_byte(*byte))
}

/// How many bytes are none of a value; in pieces whose count fits a byte, so that these, too, are done sixteen at a time.
fn count_controls(bytes: &[u8]) -> usize {
    let count = |piece: &[u8]| piece.iter().fold(0u8, |count, byte| count.wrapping_add(u8::from(!is_value_byte(*byte))));
    bytes.chunks(128).map(|piece| usize::from(count(piece))).sum()
}

impl Fields {
    /// An empty section; allocates nothing.
    pub const fn new() -> Self {
        Self { block: Vec::new(), lines: Vec::new(), present: Names([0; 2]) }
    }

    /// An empty section with room for `bytes` of lines in `lines` lines.
    pub fn with_capacity(bytes: usize, lines: usize) -> Self {
        Self { block: Vec::with_capacity(bytes), lines: Vec::with_capacity(lines), present: Names([0; 2]) }
    }

    /// Makes room for `bytes` more of lines in `lines` lines.
    pub fn reserve(&mut self, bytes: usize, lines: usize) {
        self.block.reserve(bytes);
        self.lines.reserve(lines);
    }

    /// Forgets all lines and keeps the memory.
    pub fn clear(&mut self) {
        self.block.clear();
        self.lines.clear();
        self.present = Names::default();
    }

    /// Gives back memory that is not used: by a copy, since allocators leave what became somewhat shorter where it is.
    pub fn shrink(&mut self) {
        if self.block.len() < self.block.capacity() {
            self.block = self.block.as_slice().to_vec();
        }
        if self.lines.len() < self.lines.capacity() {
            self.lines = self.lines.as_slice().to_vec();
        }
    }

    /// Appends a line. The name is lower-cased, white space around the value is dropped.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let name = name.as_ref();
        let (start, value) = self.checked(name, value.as_ref())?;
        self.block.extend_from_slice(name);
        self.block[start..].make_ascii_lowercase();
        let number = Name::lookup(&self.block[start..]).map_or(UNKNOWN, |name| name.0);
        self.finish_line(start, number, value);
        Ok(())
    }

    /// Appends a line with a well known name.
    pub fn append(&mut self, name: Name, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let text = name.as_str().as_bytes();
        let (start, value) = self.checked_value(text, value.as_ref())?;
        self.block.extend_from_slice(text);
        self.finish_line(start, name.0, value);
        Ok(())
    }

    /// Appends a line with a well known name, whose value is made of these, one behind the other.
    pub fn append_parts(&mut self, name: Name, parts: &[&[u8]]) -> Result<(), FieldError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let (start, text) = (self.block.len(), name.as_str().as_bytes());
        if start + text.len() + length + 4 > SECTION_MAX {
            return Err(FieldError::Size);
        }
        self.block.reserve(text.len() + length + 4);
        self.block.extend_from_slice(text);
        self.block.extend_from_slice(b": ");
        parts.iter().for_each(|part| self.block.extend_from_slice(part));
        let value = &self.block[start + text.len() + 2..];
        if !is_value(value) || trim(value).len() < value.len() {
            self.block.truncate(start);
            return Err(FieldError::Value);
        }
        self.block.extend_from_slice(b"\r\n");
        self.note_line(Line::new(start, name.0));
        Ok(())
    }

    /// Reads the lines at the beginning of `bytes` into an empty section; says how many bytes they have, the empty line that
    /// ends them included.
    ///
    /// Only where each stands as this section writes its own, but for the letter case of its name, as in nearly all heads.
    /// `None` of any other, or without an empty line: then nothing is read, and who knows what else is allowed has to look.
    pub fn read_plain(&mut self, bytes: &[u8]) -> Option<usize> {
        debug_assert!(self.is_empty(), "its lines would not stand where the block does");
        let end = self.take_plain(bytes);
        match end {
            Some(end) => self.block.truncate(end),
            None => self.clear(),
        }
        Some(end? + 2)
    }

    /// Where the empty line is.
    fn take_plain(&mut self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() > SECTION_MAX {
            return None;
        }
        self.block.extend_from_slice(bytes);
        let mut start = 0;
        while !self.block[start..].starts_with(b"\r\n") {
            let line = &mut self.block[start..];
            let name_length = lower_token(line);
            let (name, rest) = line.split_at(name_length);
            let rest = rest.strip_prefix(b": ")?;
            let (value, end) = rest.split_at(memchr::memchr(b'\r', rest)?);
            let is_trimmed = !matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
            if !(1..=NAME_MAX).contains(&name.len()) || !is_trimmed || !end.starts_with(b"\r\n") {
                return None;
            }
            let number = Name::lookup(name).map_or(UNKNOWN, |name| name.0);
            let next = start + name.len() + value.len() + 4;
            self.note_line(Line::new(start, number));
            start = next;
        }
        // The two at the end of each line, and no other: so none is in a value.
        (count_controls(&self.block[..start]) == 2 * self.lines.len()).then_some(start)
    }

    /// Where the next line begins, and its value trimmed, if the line may be taken.
    fn checked<'v>(&self, name: &[u8], value: &'v [u8]) -> Result<(usize, &'v [u8]), FieldError> {
        if name.is_empty() || name.len() > NAME_MAX || !name.iter().all(|byte| is_token_byte(*byte)) {
            return Err(FieldError::Name);
        }
        self.checked_value(name, value)
    }

    /// [`Fields::checked`] for a name that is known to be one.
    fn checked_value<'v>(&self, name: &[u8], value: &'v [u8]) -> Result<(usize, &'v [u8]), FieldError> {
        let value = trim(value);
        if !is_value(value) {
            return Err(FieldError::Value);
        }
        let start = self.block.len();
        if start + name.len() + value.len() + 4 > SECTION_MAX {
            return Err(FieldError::Size);
        }
        Ok((start, value))
    }

    fn finish_line(&mut self, start: usize, number: u8, value: &[u8]) {
        self.block.extend_from_slice(b": ");
        self.block.extend_from_slice(value);
        self.block.extend_from_slice(b"\r\n");
        self.note_line(Line::new(start, number));
    }

    fn note_line(&mut self, line: Line) {
        self.lines.push(line);
        if let Some(name) = line.name() {
            self.present = self.present.with(name);
        }
    }

    /// Replaces all lines of this name by one. On an error nothing has changed.
    pub fn set(&mut self, name: impl FieldName, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let (text, value) = (name.text().as_bytes(), value.as_ref());
        match self.checked(text, value) {
            // What it replaces makes room.
            Err(FieldError::Size) if self.block.len() - self.bytes_of(name) + text.len() + trim(value).len() + 4 <= SECTION_MAX => {}
            checked => {
                checked?;
            }
        }
        self.remove(name);
        self.push(name.text(), value)
    }

    /// Removes all lines of this name; says whether there were any.
    pub fn remove(&mut self, name: impl FieldName) -> bool {
        self.contains(name) && self.retain(|_, line, _| !line.eq_ignore_ascii_case(name.text().as_bytes()))
    }

    /// Removes all lines of these names. What stays between two of them moves at once.
    pub fn remove_any(&mut self, names: Names) {
        let goes = |line: &Line| line.name().is_some_and(|name| names.contains(name));
        let Some(first) = self.lines.iter().position(goes) else { return };
        let (mut kept, mut end, mut at) = (first, self.lines[first].start(), first);
        while at < self.lines.len() {
            let run = at;
            while self.lines.get(at).is_some_and(|line| !goes(line)) {
                at += 1;
            }
            if run == at {
                at += 1;
                continue;
            }
            let (start, run_end) = (self.lines[run].start(), self.end_of(at - 1));
            self.block.copy_within(start..run_end, end);
            for number in run..at {
                let line = self.lines[number];
                self.lines[kept] = Line::new(line.start() - (start - end), line.number());
                kept += 1;
            }
            end += run_end - start;
        }
        self.block.truncate(end);
        self.lines.truncate(kept);
        self.present = self.present.without(names);
    }

    /// Keeps the lines for which `keep(number, name, value)` is true, asking once for each in order; says whether any went.
    /// The number is `None` for a name that is not well known. Works in place.
    pub fn retain(&mut self, mut keep: impl FnMut(Option<Name>, &[u8], &[u8]) -> bool) -> bool {
        let mut keeps = |fields: &Self, at: usize| keep(fields.lines[at].name(), fields.name_at(at), fields.value_at(at));
        // Where all stay, as a rule, nothing moves.
        let Some(first) = (0..self.lines.len()).find(|at| !keeps(self, *at)) else { return false };
        let (mut kept, mut end) = (first, self.lines[first].start());
        for at in first + 1..self.lines.len() {
            if keeps(self, at) {
                let (line, line_end) = (self.lines[at], self.end_of(at));
                self.block.copy_within(line.start()..line_end, end);
                self.lines[kept] = Line::new(end, line.number());
                end += line_end - line.start();
                kept += 1;
            }
        }
        self.block.truncate(end);
        self.lines.truncate(kept);
        self.present = self.lines.iter().filter_map(|line| line.name()).fold(Names::default(), Names::with);
        true
    }

    /// A copy with the lines for which `keep(number, name, value)` is true, asked once for each in order. The number is
    /// `None` for a name that is not well known.
    #[must_use]
    pub fn copy_if(&self, keep: impl FnMut(Option<Name>, &[u8], &[u8]) -> bool) -> Self {
        self.copy_if_with_room(0, 0, keep)
    }

    /// [`Fields::copy_if`] with room for so many more bytes and lines.
    #[must_use]
    pub fn copy_if_with_room(&self, bytes: usize, lines: usize, mut keep: impl FnMut(Option<Name>, &[u8], &[u8]) -> bool) -> Self {
        let mut kept = Self::with_capacity(self.block.len() + bytes, self.lines.len() + lines);
        for (at, line) in self.lines.iter().enumerate() {
            if keep(line.name(), self.name_at(at), self.value_at(at)) {
                let start = kept.block.len();
                kept.block.extend_from_slice(&self.block[line.start()..self.end_of(at)]);
                kept.note_line(Line::new(start, line.number()));
            }
        }
        kept
    }

    /// A copy without the lines of these names, with room for so many more bytes and lines.
    #[must_use]
    pub fn copy_without(&self, names: Names, bytes: usize, lines: usize) -> Self {
        let mut copy = Self::with_capacity(self.block.len() + bytes, self.lines.len() + lines);
        copy.block.extend_from_slice(&self.block);
        copy.lines.extend_from_slice(&self.lines);
        copy.present = self.present;
        copy.remove_any(names);
        copy
    }

    /// Whether any line has this name.
    pub fn contains(&self, name: impl FieldName) -> bool {
        self.values(name).next().is_some()
    }

    /// Whether any line has this name: one bit to look at.
    pub const fn has(&self, name: Name) -> bool {
        self.present.contains(name)
    }

    /// Whether any line has one of these names: as cheap as asking for one.
    pub const fn has_any(&self, names: Names) -> bool {
        self.present.bits() & names.bits() != 0
    }

    /// The value of the first line of this well known name.
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        if !self.has(name) {
            return None;
        }
        self.lines.iter().position(|line| line.number() == name.0).map(|at| self.value_at(at))
    }

    /// The value of the first line of this name, given as text.
    pub fn get_named(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// [`Fields::get`] as text; `None` also where the value is not UTF-8.
    pub fn text(&self, name: Name) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The values of all lines of this name, in order.
    #[inline]
    pub fn values(&self, name: impl FieldName) -> impl Iterator<Item = &[u8]> {
        let number = name.number();
        let wanted = number.map_or(UNKNOWN, |name| name.0);
        let nothing = number.is_some_and(|name| !self.has(name));
        let mut at = if nothing { self.lines.len() } else { 0 };
        std::iter::from_fn(move || {
            while let Some(line) = self.lines.get(at) {
                at += 1;
                if line.number() == wanted && (wanted != UNKNOWN || self.has_text(*line, name.text())) {
                    return Some(self.value_at(at - 1));
                }
            }
            None
        })
    }

    /// Bytes of all lines of this name.
    fn bytes_of(&self, name: impl FieldName) -> usize {
        self.values(name).map(|value| name.text().len() + value.len() + 4).sum()
    }

    fn name_at(&self, line: usize) -> &[u8] {
        let line = self.lines[line];
        &self.block[line.start()..self.name_end(line)]
    }

    fn value_at(&self, line: usize) -> &[u8] {
        &self.block[self.name_end(self.lines[line]) + 2..self.end_of(line) - 2]
    }

    fn name_end(&self, line: Line) -> usize {
        let length = match line.name() {
            Some(name) => name.as_str().len(),
            None => memchr::memchr(b':', &self.block[line.start()..]).unwrap_or_default(), // each line has one
        };
        line.start() + length
    }

    /// Past the CR LF that ends the line.
    fn end_of(&self, line: usize) -> usize {
        self.lines.get(line + 1).map_or(self.block.len(), |next| next.start())
    }

    fn has_text(&self, line: Line, name: &str) -> bool {
        self.block[line.start()..self.name_end(line)].eq_ignore_ascii_case(name.as_bytes())
    }

    /// All lines of this name as one list, joined with `", "` (RFC 9110 §5.3); `None` where absent.
    pub fn joined(&self, name: impl FieldName) -> Option<std::borrow::Cow<'_, [u8]>> {
        let mut values = self.values(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(first.into()) };
        let mut all = [first, b", ", second].concat();
        for value in values {
            all.extend_from_slice(b", ");
            all.extend_from_slice(value);
        }
        Some(all.into())
    }

    /// All lines as name and value, in order. Names are lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        (0..self.lines.len()).map(|at| {
            let name = std::str::from_utf8(self.name_at(at)).unwrap_or_default(); // tokens are ASCII
            (name, self.value_at(at))
        })
    }

    /// The lines as they go on an HTTP/1 wire, without the empty line that ends the section.
    pub fn wire(&self) -> &[u8] {
        &self.block
    }

    /// Number of lines.
    pub const fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are no lines.
    pub const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of memory that the section occupies, its own struct aside.
    pub fn memory(&self) -> usize {
        self.block.capacity() + self.lines.capacity() * size_of::<Line>()
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl Eq for Fields {}

impl Hash for Fields {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.block.hash(state);
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, value.escape_ascii().to_string()))).finish()
    }
}

/// `value` without spaces and tabs at its ends (OWS, RFC 9110 §5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The members of a comma-separated list, trimmed, empty ones skipped, commas in quoted strings kept
/// (RFC 9110 §5.6.1). A quoted string that never ends is none: from its member on every comma parts.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut quotes) = (Some(value), value.contains(&b'"'));
    std::iter::from_fn(move || {
        loop {
            let value = rest?;
            let mut comma = if quotes { unquoted_comma(value) } else { Ok(plain_comma(value)) };
            if let Err(Unterminated) = comma {
                // Once and for all: to look for quotes again in each member would take quadratic time.
                quotes = false;
                comma = Ok(plain_comma(value));
            }
            let at = comma.ok().flatten();
            rest = at.map(|at| &value[at + 1..]);
            let member = trim(&value[..at.unwrap_or(value.len())]);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

/// A quoted string goes on to the end of the value.
struct Unterminated;

fn plain_comma(value: &[u8]) -> Option<usize> {
    value.iter().position(|byte| *byte == b',')
}

fn unquoted_comma(value: &[u8]) -> Result<Option<usize>, Unterminated> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return Ok(Some(at)),
            _ => {}
        }
    }
    if quoted { Err(Unterminated) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_section_ends_before_a_line_cannot_be_found() {
        let (mut fields, half) = (Fields::new(), vec![b'x'; SECTION_MAX / 2]);
        assert_eq!(fields.push("x-long", &half), Ok(()));
        assert_eq!(fields.push("x-long", &half), Err(FieldError::Size));
        assert_eq!((fields.push("x-last", "1"), fields.append(name::AGE, "2")), (Ok(()), Ok(())));
        assert_eq!((fields.get_named("X-Last"), fields.get(name::AGE), fields.len()), (Some(&b"1"[..]), Some(&b"2"[..]), 3));
    }

    #[test]
    fn what_is_replaced_makes_room() {
        let (mut fields, most) = (Fields::new(), vec![b'x'; SECTION_MAX - "x-long: \r\n".len()]);
        fields.set("x-long", &most).unwrap();
        assert_eq!(fields.wire().len(), SECTION_MAX);
        assert_eq!(fields.set("X-Long", &most), Ok(()), "no more than before");
        assert_eq!(fields.set(name::AGE, "1"), Err(FieldError::Size));
        assert_eq!(fields.set("x-long", [&most[..], b"x"].concat()), Err(FieldError::Size), "one byte more");
        assert_eq!((fields.wire().len(), fields.len()), (SECTION_MAX, 1));
        fields.set("x-long", &most[..most.len() - 8]).unwrap();
        assert_eq!((fields.set(name::AGE, "1"), fields.set(name::AGE, "2")), (Ok(()), Ok(())));
        assert_eq!((fields.wire().len(), fields.get(name::AGE)), (SECTION_MAX, Some(&b"2"[..])));
    }

    #[test]
    fn every_known_name_is_found_by_its_text() {
        for (number, text) in NAMES.iter().enumerate() {
            assert_eq!(Name::lookup(text.as_bytes()), Some(Name(number as u8)), "{text}");
        }
        assert_eq!(Name::lookup(b"x-unknown"), None);
        assert_eq!(Name::lookup(b""), None);
    }

    #[test]
    fn lines_are_a_wire_block() {
        let mut fields = Fields::new();
        fields.push("Cache-Control", "  max-age=5\t").unwrap();
        fields.push("X-Thing", "").unwrap();
        fields.append(name::AGE, "7").unwrap();
        assert_eq!(fields.wire(), b"cache-control: max-age=5\r\nx-thing: \r\nage: 7\r\n");
        assert_eq!(fields.get(name::CACHE_CONTROL), Some(&b"max-age=5"[..]));
        assert_eq!(fields.get_named("X-THING"), Some(&b""[..]));
        assert!(!fields.has(name::EXPIRES));
        assert!(fields.remove("x-thing"));
        assert_eq!(fields.wire(), b"cache-control: max-age=5\r\nage: 7\r\n");
        fields.set(name::AGE, "8").unwrap();
        assert_eq!(fields.get(name::AGE), Some(&b"8"[..]));
    }

    #[test]
    fn parts_are_one_value_or_none() {
        let mut fields = Fields::new();
        fields.append_parts(name::VIA, &[b"1.1", b" ", b"a"]).unwrap();
        let refused: [&[&[u8]]; 3] = [&[b"a", b"b\r\nc: d"], &[b"a", b" "], &[b"\ta"]];
        for bad in refused {
            assert_eq!(fields.append_parts(name::AGE, bad), Err(FieldError::Value));
        }
        assert_eq!(fields.wire(), b"via: 1.1 a\r\n");
        assert!(fields.has(name::VIA) && !fields.has(name::AGE));
    }

    #[test]
    fn repeated_lines_join_as_a_list() {
        let mut fields = Fields::new();
        fields.push("vary", "a").unwrap();
        fields.push("Vary", "b, c").unwrap();
        assert_eq!(fields.joined(name::VARY).unwrap(), &b"a, b, c"[..]);
        assert_eq!(fields.joined("none"), None);
    }

    #[test]
    fn bytes_that_could_split_a_line_are_refused() {
        let mut fields = Fields::new();
        assert_eq!(fields.push("a b", "c"), Err(FieldError::Name));
        assert_eq!(fields.push("", "c"), Err(FieldError::Name));
        for bad in ["a\rb", "a\nb", "a\0b", "a\x7fb"] {
            assert_eq!(fields.push("a", bad), Err(FieldError::Value));
            assert_eq!(fields.append(name::AGE, bad), Err(FieldError::Value));
        }
        assert!(fields.is_empty());
    }

    #[test]
    fn lists_keep_commas_in_quoted_strings() {
        let members: Vec<_> = list(br#" a, , "b, \" c" ,d"#).collect();
        assert_eq!(members, [&b"a"[..], br#""b, \" c""#, b"d"]);
        let open: Vec<_> = list(br#""a,b", c="d, e,"f"#).collect();
        assert_eq!(open, [&br#""a,b""#[..], br#"c="d, e,"f"#]);
        let open: Vec<_> = list(br#"x, a="b, no-store, c"#).collect();
        assert_eq!(open, [&b"x"[..], br#"a="b"#, b"no-store", b"c"]);
    }

    #[test]
    fn a_value_that_is_refused_leaves_the_old_one() {
        let mut fields = Fields::new();
        fields.push("x-a", "1").unwrap();
        fields.push("age", "1").unwrap();
        assert_eq!(fields.set("X-A", "a\nb"), Err(FieldError::Value));
        assert_eq!(fields.set("not a token", "a"), Err(FieldError::Name));
        assert_eq!(fields.set(name::AGE, "\0"), Err(FieldError::Value));
        assert_eq!(fields.wire(), b"x-a: 1\r\nage: 1\r\n");
        fields.set("X-A", "2").unwrap();
        fields.set("x-b", "3").unwrap();
        assert_eq!(fields.wire(), b"age: 1\r\nx-a: 2\r\nx-b: 3\r\n");
        assert!(!fields.remove("x-c") && fields.remove("X-B") && fields.remove(name::AGE));
        assert!(!fields.has(name::AGE) && fields.contains("x-A"));
    }

    #[test]
    fn a_copy_keeps_numbers_and_order() {
        let mut fields = Fields::new();
        for (name, value) in [("age", "1"), ("x", "2"), ("date", "3")] {
            fields.push(name, value).unwrap();
        }
        let copy = fields.copy_if(|number, _, _| number != Some(name::AGE));
        assert_eq!(copy.wire(), b"x: 2\r\ndate: 3\r\n");
        assert!(copy.has(name::DATE) && !copy.has(name::AGE) && copy.get_named("X") == Some(b"2"));
    }

    proptest! {
        #[test]
        fn retaining_is_copying_what_is_kept(
            pairs in proptest::collection::vec(("age|date|x|y|vary", "[ -~]{0,9}"), 0..9), mask in any::<u16>()
        ) {
            let mut fields = Fields::new();
            for (name, value) in &pairs {
                fields.push(name, value).unwrap();
            }
            let by_mask = || {
                let mut bits = mask;
                move || {
                    bits = bits.rotate_right(1);
                    bits & 1 == 0
                }
            };
            let mut keep = by_mask();
            let copy = fields.copy_if(|_, _, _| keep());
            let mut keep = by_mask();
            prop_assert_eq!(fields.retain(|_, _, _| keep()), copy.len() < pairs.len());
            prop_assert_eq!(fields.iter().collect::<Vec<_>>(), copy.iter().collect::<Vec<_>>());
            prop_assert_eq!((fields.wire(), fields.present), (copy.wire(), copy.present));
        }

        #[test]
        fn removing_names_is_copying_the_others(pairs in proptest::collection::vec(("age|date|x|y|vary", "[ -~]{0,9}"), 0..9)) {
            let mut fields = Fields::new();
            for (name, value) in &pairs {
                fields.push(name, value).unwrap();
            }
            let names = Names::of(&[name::AGE, name::VARY, name::VIA]);
            let copy = fields.copy_if(|number, _, _| !number.is_some_and(|name| names.contains(name)));
            fields.remove_any(names);
            prop_assert_eq!(fields.iter().collect::<Vec<_>>(), copy.iter().collect::<Vec<_>>());
            prop_assert_eq!((fields.wire(), fields.present), (copy.wire(), copy.present));
        }

        #[test]
        fn lines_read_plain_are_those_pushed_and_all_others_are_left(
            lines in proptest::collection::vec(("host|Age|x-A|DATE|a|a b|", ":|: |:  |:\t", "[!-~]{0,9}( [!-~]{1,3}|\t[!-~])?", "|||| |\t"), 0..6),
            odd in proptest::option::of((any::<proptest::sample::Index>(), prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()])),
            behind in "[ -~\r\n]{0,9}",
        ) {
            let (mut head, mut is_plain, mut pushed) = (Vec::new(), true, Fields::new());
            for (name, colon, value, after) in &lines {
                head.extend_from_slice(format!("{name}{colon}{value}{after}\r\n").as_bytes());
                let line = format!("{colon}{value}{after}");
                let plain = line.strip_prefix(": ").filter(|value| trim(value.as_bytes()).len() == value.len());
                is_plain &= plain.is_some_and(|value| pushed.push(name, value).is_ok());
            }
            head.extend_from_slice(b"\r\n");
            let length = head.len();
            head.extend_from_slice(behind.as_bytes());
            let mut whole = Fields::new();
            if let Some((at, byte)) = odd {
                // What one byte makes of it may be plain, too: then it is written as it was read.
                let at = at.index(length);
                head[at] = byte;
                if let Some(length) = whole.read_plain(&head) {
                    prop_assert_eq!([whole.wire(), b"\r\n"].concat().to_ascii_lowercase(), head[..length].to_ascii_lowercase());
                    prop_assert!(whole.iter().all(|(name, value)| Fields::new().push(name, value).is_ok() && value == trim(value)));
                }
                return Ok(());
            }
            prop_assert_eq!(whole.read_plain(&head), is_plain.then_some(length));
            if is_plain {
                prop_assert_eq!((whole.wire(), whole.present), (pushed.wire(), pushed.present));
                prop_assert_eq!(whole.iter().collect::<Vec<_>>(), pushed.iter().collect::<Vec<_>>());
            }
            prop_assert!(is_plain || whole.is_empty() && whole.wire().is_empty());
            prop_assert_eq!(Fields::new().read_plain(&head[..length - 1]), None);
        }

        #[test]
        fn what_was_pushed_is_read_back(pairs in proptest::collection::vec(("[a-zA-Z][a-zA-Z-]{0,20}", "[ -~]{0,30}"), 0..20)) {
            let mut fields = Fields::new();
            for (name, value) in &pairs {
                fields.push(name, value).unwrap();
            }
            let read: Vec<_> = fields.iter().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
            let want: Vec<_> = pairs.iter().map(|(n, v)| (n.to_ascii_lowercase(), trim(v.as_bytes()).to_vec())).collect();
            prop_assert_eq!(read, want);
        }
    }
}
