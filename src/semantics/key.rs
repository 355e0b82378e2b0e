//! The effective request target and the cache key (RFC 9110 §7.1, RFC 9111 §2).
//!
//! One normaliser feeds routing, cache key and upstream request: they all use the bytes of one
//! [`Target`]. Where a target could be read in two ways it is refused, not mended (RFC 9112 §3.2); what is
//! normalised is what RFC 3986 §6.2.2 and §6.2.3 call equivalent.

use super::vary::write_value;
use super::{Fields, name};
use core::net::Ipv6Addr;
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

/// Longest target and longest Host that are read at all; listeners have far lower limits.
const TARGET_BYTES_MAX: usize = 1 << 20;

/// Fixed-key 128-bit hash, equal on all nodes. Finds; never decides alone where bytes can be compared.
pub fn hash128(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// A normalised http or https URL: `scheme://authority/path[?query]`.
///
/// Authority in lower case without userinfo, default port and the root's dot; the path begins with
/// `/`; there is no fragment, no dot segment, no control byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    text: Arc<str>,
    /// Where the authority begins: past `://`.
    authority_start: u32,
    path_start: u32,
    /// Where `?` is, or the length.
    path_end: u32,
}

/// Why a target was refused; each is a 400 unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("request target holds a byte that is not allowed")]
    Byte,
    #[error("request target is in no form that is served here")]
    Form,
    #[error("Host is missing")]
    HostMissing,
    #[error("Host is repeated")]
    HostRepeated,
    #[error("Host is malformed")]
    HostMalformed,
    #[error("Host disagrees with the absolute target")]
    HostDisagrees,
    #[error("userinfo in the target")]
    Userinfo,
    #[error("path is ambiguous: encoded slash, backslash or NUL, or a dot segment above the root")]
    Path,
}

impl Target {
    /// The target of a request line and its Host lines, normalised.
    ///
    /// Takes origin form, absolute form (then scheme and Host must agree), and `*` (as path `*`; for OPTIONS only,
    /// which the caller checks by [`Target::is_asterisk`]).
    /// Dot segments are removed, unreserved characters percent-decoded, hex digits upper-cased, an empty path is
    /// `/`. Encoded slashes (%2F), backslashes (raw or %5C), encoded control bytes and dot segments with a path
    /// parameter (`..;`) are refused unless `lenient_path` (then kept as they are, encoded). Bytes that are neither
    /// visible ASCII nor part of a valid percent-encoding, and fragments, are refused; in a query a `%` that encodes
    /// nothing becomes `%25`.
    ///
    /// A host is an IPv6 address in brackets or a name (RFC 3986 §3.2.2); percent-encoding in it only of unreserved
    /// characters.
    pub fn parse(scheme: Scheme, raw: &[u8], hosts: &Fields, lenient_path: bool) -> Result<Self, TargetError> {
        let mut lines = hosts.values(name::HOST);
        let host = lines.next().ok_or(TargetError::HostMissing)?;
        if lines.next().is_some() {
            return Err(TargetError::HostRepeated);
        }
        let rules = if lenient_path { PathRules::Lenient } else { PathRules::Strict };
        match raw {
            [b'/', ..] => Builder::new(scheme, host, raw.len())?.finish(raw, rules),
            b"*" => Builder::new(scheme, host, 1)?.finish_asterisk(),
            _ => {
                let (named, authority, rest) = split_absolute(raw)?;
                if named != scheme {
                    return Err(TargetError::Form);
                }
                let target = Builder::new(scheme, authority, rest.len())?;
                if target.text != Builder::new(scheme, host, 0)?.text {
                    return Err(TargetError::HostDisagrees);
                }
                target.finish(rest, rules)
            }
        }
    }

    /// The target whose [`Target::without_scheme`] this is: of http, unless that would leave out a default port.
    pub fn from_text(text: &str) -> Option<Self> {
        let read = |scheme| Self::from_url(&format!("{scheme}://{text}")).ok();
        ["http", "https"].into_iter().filter_map(read).find(|target| target.without_scheme() == text)
    }

    /// Builds a target from a URL as an operator writes it in a purge or on the command line. Encodes what a browser
    /// would encode; paths are read as with `lenient_path`.
    pub fn from_url(url: &str) -> Result<Self, TargetError> {
        let (scheme, authority, rest) = split_absolute(url.as_bytes())?;
        Builder::new(scheme, authority, rest.len())?.finish(rest, PathRules::Reference)
    }

    /// The same target with another path and query (rewrites, relative references). Both are normalised, a missing
    /// first slash is added; dot segments cannot leave the root (RFC 3986 §5.2.4).
    pub fn with_path_and_query(&self, path: &str, query: Option<&str>) -> Result<Self, TargetError> {
        if path.contains('?') {
            return Err(TargetError::Byte);
        }
        let mut rest = String::with_capacity(path.len() + query.map_or(0, str::len) + 2);
        if !path.starts_with('/') {
            rest.push('/');
        }
        rest.push_str(path);
        if let Some(query) = query {
            rest.push('?');
            rest.push_str(query);
        }
        Builder::new(self.scheme(), self.authority().as_bytes(), rest.len())?.finish(rest.as_bytes(), PathRules::Reference)
    }

    /// A reference such as Location, resolved against this target (RFC 3986 §5.2). Its fragment is dropped; schemes
    /// other than http and https are refused.
    pub fn resolve(&self, reference: &str) -> Result<Self, TargetError> {
        let reference = reference.split('#').next().unwrap_or(reference);
        if has_scheme(reference) {
            return Self::from_url(reference);
        }
        if reference.starts_with("//") {
            return Self::from_url(&format!("{}:{reference}", self.scheme().as_str()));
        }
        let (path, query) = match reference.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (reference, None),
        };
        if path.is_empty() {
            return self.with_path_and_query(self.path(), query.or_else(|| self.query()));
        }
        if path.starts_with('/') {
            return self.with_path_and_query(path, query);
        }
        let directory = self.path().rfind('/').map_or("/", |slash| &self.path()[..=slash]);
        self.with_path_and_query(&format!("{directory}{path}"), query)
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Whether this is `*`, the server as a whole (RFC 9110 §7.1): good for OPTIONS only.
    pub fn is_asterisk(&self) -> bool {
        self.path() == "*"
    }
    /// Scheme of the URL.
    pub fn scheme(&self) -> Scheme {
        if self.authority_start == 8 { Scheme::Https } else { Scheme::Http }
    }
    /// Host and, where it is not the default one, port.
    pub fn authority(&self) -> &str {
        &self.text[self.authority_start as usize..self.path_start as usize]
    }
    /// Host without port; IPv6 in brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.rfind(':') {
            Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
            _ => authority,
        }
    }
    /// The path; begins with `/` unless the target is `*`.
    pub fn path(&self) -> &str {
        &self.text[self.path_start as usize..self.path_end as usize]
    }
    /// What follows the first `?`; `Some("")` where nothing does.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path_end as usize + 1..)
    }
    /// Path and query as they go into a request line.
    pub fn path_and_query(&self) -> &str {
        &self.text[self.path_start as usize..]
    }
    /// Scheme and authority: `http://shop.example`.
    pub fn origin(&self) -> &str {
        &self.text[..self.path_start as usize]
    }
    /// Everything but the scheme: `authority/path?query`.
    pub fn without_scheme(&self) -> &str {
        &self.text[self.authority_start as usize..]
    }
    /// [`Target::without_scheme`], hashed: what a URL purge is matched on.
    pub fn url_hash(&self) -> u128 {
        hash128(self.without_scheme().as_bytes())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the client reached us, or is taken to have (trusted X-Forwarded-Proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// How a path is read where RFC 3986 leaves a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathRules {
    /// From a client: refuse what two readers could take differently.
    Strict,
    /// From a client: keep such bytes, encoded.
    Lenient,
    /// From an operator or origin: keep them, encode what should have been, stay below the root.
    Reference,
}

thread_local! {
    /// The buffer of the target built last, so that a target costs one allocation: its text.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}
/// A buffer that grew beyond this is not kept.
const SCRATCH_BYTES: usize = 16 * 1024;

/// A target under construction: scheme and authority are there.
struct Builder {
    text: Vec<u8>,
    authority_start: usize,
}

impl Builder {
    fn new(scheme: Scheme, authority: &[u8], rest_length: usize) -> Result<Self, TargetError> {
        if authority.len() > TARGET_BYTES_MAX || rest_length > TARGET_BYTES_MAX {
            return Err(TargetError::Form);
        }
        let prefix: &[u8] = match scheme {
            Scheme::Http => b"http://",
            Scheme::Https => b"https://",
        };
        let mut text = SCRATCH.take();
        text.clear();
        text.reserve(prefix.len() + authority.len() + rest_length + 1);
        text.extend_from_slice(prefix);
        push_authority(&mut text, scheme, authority)?;
        Ok(Self { text, authority_start: prefix.len() })
    }

    /// Adds path and query. `rest` begins with `/` or `?`, or is empty.
    fn finish(mut self, rest: &[u8], rules: PathRules) -> Result<Target, TargetError> {
        let path_start = self.text.len();
        if !rest.starts_with(b"/") {
            self.text.push(b'/');
        }
        let plain = rest.iter().take_while(|byte| is_plain(**byte)).count();
        self.text.extend_from_slice(&rest[..plain]);
        let query = match rest.get(plain) {
            None => None,
            Some(b'?') => Some(&rest[plain + 1..]),
            Some(_) => push_rest_of_path(&mut self.text, &rest[plain..], rules)?,
        };
        if has_dot_after_slash(&self.text[path_start..]) {
            remove_dot_segments(&mut self.text, path_start, rules)?;
        }
        let path_end = self.text.len();
        if let Some(query) = query {
            self.text.push(b'?');
            push_query(&mut self.text, query, rules)?;
        }
        self.into_target(path_start, path_end)
    }

    fn finish_asterisk(mut self) -> Result<Target, TargetError> {
        let path_start = self.text.len();
        self.text.push(b'*');
        self.into_target(path_start, path_start + 1)
    }

    fn into_target(self, path_start: usize, path_end: usize) -> Result<Target, TargetError> {
        let text = std::str::from_utf8(&self.text).map_err(|_| TargetError::Byte)?.into();
        if self.text.capacity() <= SCRATCH_BYTES {
            SCRATCH.set(self.text);
        }
        // Both inputs are at most TARGET_BYTES_MAX and grow at most threefold: far below 4 GiB.
        let [authority_start, path_start, path_end] = [self.authority_start, path_start, path_end].map(|at| at as u32);
        Ok(Target { text, authority_start, path_start, path_end })
    }
}

/// Scheme, authority and rest of an absolute URL.
fn split_absolute(raw: &[u8]) -> Result<(Scheme, &[u8], &[u8]), TargetError> {
    let colon = raw.iter().position(|byte| *byte == b':').ok_or(TargetError::Form)?;
    let scheme = match &raw[..colon] {
        name if name.eq_ignore_ascii_case(b"http") => Scheme::Http,
        name if name.eq_ignore_ascii_case(b"https") => Scheme::Https,
        _ => return Err(TargetError::Form),
    };
    let [b':', b'/', b'/', after @ ..] = &raw[colon..] else { return Err(TargetError::Form) };
    let end = after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    if authority.contains(&b'@') {
        return Err(TargetError::Userinfo);
    }
    Ok((scheme, authority, rest))
}

/// Whether a reference begins with a scheme (RFC 3986 §3.1).
fn has_scheme(reference: &str) -> bool {
    let end = reference.find([':', '/', '?']).unwrap_or(reference.len());
    let scheme = &reference.as_bytes()[..end];
    reference[end..].starts_with(':')
        && scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Host in lower case and port, where it is not the default one (RFC 3986 §3.2.2, §6.2.3).
fn push_authority(text: &mut Vec<u8>, scheme: Scheme, authority: &[u8]) -> Result<(), TargetError> {
    let start = text.len();
    let port = match authority {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|byte| *byte == b']').ok_or(TargetError::HostMalformed)?;
            push_ipv6(text, &rest[..end])?;
            &rest[end + 1..]
        }
        _ => {
            let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
            push_name(text, &authority[..end])?;
            &authority[end..]
        }
    };
    if text.len() == start {
        return Err(TargetError::HostMalformed); // RFC 9110 §4.2.1: an empty host is invalid
    }
    match port {
        [] | [b':'] => Ok(()),
        [b':', digits @ ..] => push_port(text, scheme, digits),
        _ => Err(TargetError::HostMalformed),
    }
}

fn push_ipv6(text: &mut Vec<u8>, address: &[u8]) -> Result<(), TargetError> {
    let address: Option<Ipv6Addr> = std::str::from_utf8(address).ok().and_then(|address| address.parse().ok());
    let address = address.ok_or(TargetError::HostMalformed)?;
    text.extend_from_slice(format!("[{address}]").as_bytes());
    Ok(())
}

fn push_name(text: &mut Vec<u8>, name: &[u8]) -> Result<(), TargetError> {
    let start = text.len();
    let plain = name.iter().take_while(|byte| is_name_byte(**byte)).count();
    text.extend_from_slice(&name[..plain]);
    let mut rest = &name[plain..];
    while let [first, after @ ..] = rest {
        let byte = if *first == b'%' { decode(rest).filter(|byte| is_unreserved(*byte)) } else { Some(*first) };
        text.push(byte.filter(|byte| is_name_byte(*byte)).ok_or(TargetError::HostMalformed)?);
        rest = if *first == b'%' { &rest[3..] } else { after };
    }
    // The dot of the root may end a name; with it and without, it is the same host (RFC 3986 §3.2.2). Two would be none.
    if text[start..].ends_with(b".") {
        text.pop();
        if text[start..].ends_with(b".") {
            return Err(TargetError::HostMalformed);
        }
    }
    text[start..].make_ascii_lowercase();
    Ok(())
}

/// Bytes of a reg-name or IPv4 address without percent-encoding (RFC 3986 §3.2.2).
const fn is_name_byte(byte: u8) -> bool {
    is_unreserved(byte) || is_sub_delimiter(byte)
}

fn push_port(text: &mut Vec<u8>, scheme: Scheme, digits: &[u8]) -> Result<(), TargetError> {
    let read = digits.iter().try_fold(0_u32, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        Some(port * 10 + digit).filter(|port| *port <= u32::from(u16::MAX))
    });
    let port = read.filter(|port| *port > 0).ok_or(TargetError::HostMalformed)?;
    let default = match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    if port != default {
        text.push(b':');
        text.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    Ok(())
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §2.2.
const fn is_sub_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// Bytes that a path holds as they are: `pchar` without percent-encoding, and `/` (RFC 3986 §3.3).
const PLAIN: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 256 {
        let b = byte as u8;
        table[byte] = is_unreserved(b) || is_sub_delimiter(b) || matches!(b, b':' | b'@' | b'/');
        byte += 1;
    }
    table
};

const fn is_plain(byte: u8) -> bool {
    PLAIN[byte as usize]
}

/// The byte that `%XX` at the beginning of `text` stands for.
fn decode(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

fn push_encoded(text: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    text.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

/// The path from its first byte that is not plain; gives the query where there is one.
fn push_rest_of_path<'a>(text: &mut Vec<u8>, path: &'a [u8], rules: PathRules) -> Result<Option<&'a [u8]>, TargetError> {
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        at += match *byte {
            b'?' => return Ok(Some(&path[at + 1..])),
            byte if is_plain(byte) => {
                text.push(byte);
                1
            }
            b'%' => {
                push_code(text, &path[at..], rules)?;
                3
            }
            b'\\' if rules == PathRules::Strict => return Err(TargetError::Path),
            // Browsers send `[`, `]`, `|` and the like as they are; the encoded form means the same.
            byte if may_be_encoded(byte, rules) => {
                push_encoded(text, byte);
                1
            }
            _ => return Err(TargetError::Byte),
        };
    }
    Ok(None)
}

/// Whether a raw byte that a URL has no place for is mended by encoding it.
fn may_be_encoded(byte: u8, rules: PathRules) -> bool {
    byte != b'#' && (byte.is_ascii_graphic() || (rules == PathRules::Reference && (byte == b' ' || byte >= 0x80)))
}

/// The percent-encoding at the beginning of `path`.
fn push_code(text: &mut Vec<u8>, path: &[u8], rules: PathRules) -> Result<(), TargetError> {
    let byte = decode(path).ok_or(TargetError::Byte)?;
    if is_unreserved(byte) {
        text.push(byte);
        return Ok(());
    }
    if rules == PathRules::Strict && (matches!(byte, b'/' | b'\\') || byte.is_ascii_control()) {
        return Err(TargetError::Path);
    }
    push_encoded(text, byte);
    Ok(())
}

/// Visible bytes of a query stay as they are, but for quote and angle brackets, which nobody sends raw with intent.
fn push_query(text: &mut Vec<u8>, query: &[u8], rules: PathRules) -> Result<(), TargetError> {
    let mut at = 0;
    while let Some(byte) = query.get(at) {
        at += 1;
        match *byte {
            b'%' => match decode(&query[at - 1..]) {
                Some(byte) if is_unreserved(byte) => {
                    text.push(byte);
                    at += 2;
                }
                Some(byte) => {
                    push_encoded(text, byte);
                    at += 2;
                }
                None => push_encoded(text, b'%'), // as a lenient reader takes it, and stable
            },
            byte if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>') => text.push(byte),
            byte if may_be_encoded(byte, rules) => push_encoded(text, byte),
            _ => return Err(TargetError::Byte),
        }
    }
    Ok(())
}

fn has_dot_after_slash(path: &[u8]) -> bool {
    path.windows(2).any(|pair| pair == b"/.")
}

/// Removes dot segments from the path that begins at `start` (RFC 3986 §5.2.4).
fn remove_dot_segments(text: &mut Vec<u8>, start: usize, rules: PathRules) -> Result<(), TargetError> {
    let path = text.split_off(start);
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                let parent = text[start..].iter().rposition(|byte| *byte == b'/');
                if parent.is_none() && rules != PathRules::Reference {
                    return Err(TargetError::Path);
                }
                text.truncate(start + parent.unwrap_or(0));
            }
            // Some servers drop path parameters before they look at dot segments.
            [b'.', b';', ..] | [b'.', b'.', b';', ..] if rules == PathRules::Strict => return Err(TargetError::Path),
            _ => {
                text.push(b'/');
                text.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            text.push(b'/');
        }
    }
    Ok(())
}

/// What a route makes of the target and fields for the cache key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPolicy {
    /// Sort query parameters by name, stable.
    pub query_sort: bool,
    /// Only these parameters count; `None`: all. A trailing `*` matches a prefix.
    pub query_allow: Option<Vec<String>>,
    /// These parameters do not count; a trailing `*` matches a prefix.
    pub query_ignore: Vec<String>,
    /// Request fields whose values, normalised as for Vary, are part of the key.
    pub headers: Vec<String>,
    /// Cookies whose values are part of the key.
    pub cookies: Vec<String>,
}

impl KeyPolicy {
    /// Whether the key is the target as it is: no allocation beyond it.
    pub fn is_plain(&self) -> bool {
        self.keeps_query() && self.headers.is_empty() && self.cookies.is_empty()
    }
    /// Whether the query is part of the key as it is.
    pub fn keeps_query(&self) -> bool {
        !self.query_sort && self.query_allow.is_none() && self.query_ignore.is_empty()
    }
}

/// The primary cache key: compared whole on every hit; the hash only finds it.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheKey {
    /// The normalised URL (after the query rules), then one line per further part.
    text: Arc<str>,
    /// Length of the URL part of the text.
    url_length: u32,
    hash: u128,
    url_hash: u128,
}

impl CacheKey {
    /// The key of a request on a route.
    pub fn new(target: &Target, fields: &Fields, policy: &KeyPolicy) -> Self {
        if policy.is_plain() {
            let (hash, url_hash) = (hash128(target.as_str().as_bytes()), target.url_hash());
            return Self { text: Arc::clone(&target.text), url_length: target.text.len() as u32, hash, url_hash };
        }
        let mut text = String::with_capacity(target.text.len() + 64);
        text.push_str(&target.text[..target.path_end as usize]);
        push_key_query(&mut text, target.query(), policy);
        let url_length = text.len();
        push_key_parts(&mut text, fields, policy);
        let url_hash = hash128(&text.as_bytes()[target.authority_start as usize..url_length]);
        Self { hash: hash128(text.as_bytes()), url_hash, url_length: url_length as u32, text: text.into() }
    }

    /// The key of a part of what this is the key of: invalidated with it.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        let text = [&self.text, "\n", name].concat();
        Self { hash: hash128(text.as_bytes()), text: text.into(), ..self.clone() }
    }

    /// The whole key as text; parts after the URL are on lines of their own.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// [`CacheKey::as_str`], shared.
    pub fn text(&self) -> &CacheKeyText {
        &self.text
    }
    /// The URL part.
    pub fn url(&self) -> &str {
        &self.text[..self.url_length as usize]
    }
    /// The URL part without its scheme: `authority/path?query`.
    pub fn url_text(&self) -> &str {
        self.url().split_once("://").map_or("", |(_, text)| text)
    }
    /// Hash of the whole key.
    pub const fn hash(&self) -> u128 {
        self.hash
    }
    /// Hash of authority, path and query after the route's rules: what a URL purge matches.
    pub const fn url_hash(&self) -> u128 {
        self.url_hash
    }
}

/// Appends the parameters that count.
fn push_key_query(text: &mut String, query: Option<&str>, policy: &KeyPolicy) {
    let Some(query) = query else { return };
    if policy.keeps_query() {
        text.push('?');
        text.push_str(query);
        return;
    }
    let mut parameters: Vec<(Cow<'_, [u8]>, &str)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| (decoded(parameter.split('=').next().unwrap_or(parameter)), parameter))
        .filter(|(name, parameter)| counts(name, parameter, policy))
        .collect();
    if policy.query_sort {
        parameters.sort_by(|a, b| a.0.cmp(&b.0)); // stable: the order of repeats may have a meaning
    }
    for (at, (_, parameter)) in parameters.iter().enumerate() {
        text.push(if at == 0 { '?' } else { '&' });
        text.push_str(parameter);
    }
}

fn counts(name: &[u8], parameter: &str, policy: &KeyPolicy) -> bool {
    // Some origins part parameters at `;` too: `ignored=1;wanted=2` would then smuggle `wanted` past the key.
    parameter.contains(';')
        || (policy.query_allow.as_ref().is_none_or(|allowed| is_listed(name, allowed)) && !is_listed(name, &policy.query_ignore))
}

fn is_listed(name: &[u8], patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(&decoded(prefix)),
        None => name == &*decoded(pattern),
    })
}

/// A parameter name as an origin sees it, so that `a[b]` and `a%5Bb%5D` are one name.
fn decoded(name: &str) -> Cow<'_, [u8]> {
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name.as_bytes());
    }
    let (mut rest, mut bytes) = (name.as_bytes(), Vec::with_capacity(name.len()));
    while let [first, after @ ..] = rest {
        let code = decode(rest);
        bytes.push(code.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if code.is_some() { &rest[3..] } else { after };
    }
    Cow::Owned(bytes)
}

/// Appends one line per field or cookie that is part of the key. Values are escaped, so that none can end its line or
/// pass for another.
fn push_key_parts(text: &mut String, fields: &Fields, policy: &KeyPolicy) {
    let mut value = Vec::new();
    for name in &policy.headers {
        let name = name.to_ascii_lowercase();
        value.clear();
        write_value(&name, fields, &mut value);
        text.push_str("\nheader ");
        text.push_str(&name);
        if let [_, value @ ..] = &value[..] {
            text.push(':');
            push_escaped(text, value);
        }
    }
    for name in &policy.cookies {
        text.push_str("\ncookie ");
        text.push_str(name);
        for value in cookie_values(fields, name) {
            text.push(':');
            push_escaped(text, value);
        }
    }
}

/// The value without bytes that could end its line or, a colon, pass for a further value.
fn push_escaped(text: &mut String, value: &[u8]) {
    for byte in value {
        match byte {
            b':' => text.push_str("\\x3a"),
            byte => text.extend(byte.escape_ascii().map(char::from)),
        }
    }
}

/// The values of all cookies of this name, in order (RFC 6265 §5.4).
fn cookie_values<'a>(fields: &'a Fields, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = fields.values(name::COOKIE).flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (super::fields::trim(&pair[..equals]) == name.as_bytes()).then(|| super::fields::trim(&pair[equals + 1..]))
    })
}

/// The text of a whole primary key, shared.
pub type CacheKeyText = Arc<str>;

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(value: &[u8]) -> Fields {
        let mut fields = Fields::new();
        fields.append(name::HOST, value).unwrap();
        fields
    }

    #[test]
    fn parts_are_told_apart() {
        let target = Target::parse(Scheme::Https, b"/p/q?r=s?t", &host(b"Shop.Example:8443"), false).unwrap();
        assert_eq!(target.as_str(), "https://shop.example:8443/p/q?r=s?t");
        assert_eq!((target.scheme(), target.authority(), target.host()), (Scheme::Https, "shop.example:8443", "shop.example"));
        assert_eq!((target.path(), target.query(), target.path_and_query()), ("/p/q", Some("r=s?t"), "/p/q?r=s?t"));
        assert_eq!(target.origin(), "https://shop.example:8443");
        assert_eq!(target.url_hash(), Target::from_url("http://shop.example:8443/p/q?r=s?t").unwrap().url_hash());
        let star = Target::parse(Scheme::Http, b"*", &host(b"a"), false).unwrap();
        assert!(star.is_asterisk() && star.path_and_query() == "*" && star.authority() == "a");
        let six = Target::parse(Scheme::Http, b"/", &host(b"[0:0::1]:8080"), false).unwrap();
        assert_eq!((six.authority(), six.host()), ("[::1]:8080", "[::1]"));
        let empty = Target::parse(Scheme::Http, b"/?", &host(b"a"), false).unwrap();
        assert_eq!((empty.query(), empty.as_str()), (Some(""), "http://a/?"));
    }

    #[test]
    fn the_dot_of_the_root_names_no_other_host() {
        let parse = |raw: &[u8], name: &[u8]| Target::parse(Scheme::Http, raw, &host(name), false).map(|target| target.to_string());
        let want = Ok("http://shop.example:8080/a".to_owned());
        for name in ["shop.example:8080", "Shop.Example.:8080", "shop.example%2e:8080"] {
            assert_eq!(parse(b"/a", name.as_bytes()), want);
            assert_eq!(parse(b"http://shop.example.:8080/a", name.as_bytes()), want);
            assert_eq!(Target::from_url(&format!("http://{name}/a")).map(|target| target.to_string()), want);
        }
        for name in [".", "..", "shop.example..", ".:80"] {
            assert_eq!(parse(b"/a", name.as_bytes()), Err(TargetError::HostMalformed), "{name}");
        }
    }

    #[test]
    fn a_text_without_scheme_is_read_back_whatever_its_port() {
        for url in ["http://a/b?c", "https://a/b", "http://a:443/", "https://a:80/", "https://[::1]:80/"] {
            let target = Target::from_url(url).unwrap();
            assert_eq!(Target::from_text(target.without_scheme()).unwrap().without_scheme(), target.without_scheme());
        }
        assert_eq!(Target::from_text("A/b"), None);
    }

    #[test]
    fn a_plain_key_shares_the_text_of_its_target() {
        let fields = host(b"a");
        let target = Target::parse(Scheme::Http, b"/assets/app.js?v=1", &fields, false).unwrap();
        let key = CacheKey::new(&target, &fields, &KeyPolicy::default());
        assert!(Arc::ptr_eq(key.text(), &target.text));
    }

    #[test]
    fn cookies_are_found_by_exact_name() {
        let mut fields = Fields::new();
        fields.append(name::COOKIE, "aa=1; a=2;a = 3; b").unwrap();
        fields.append(name::COOKIE, "a=4=5").unwrap();
        let values: Vec<_> = cookie_values(&fields, "a").collect();
        assert_eq!(values, [&b"2"[..], b"3", b"4=5"]);
    }

    proptest! {
        #[test]
        fn a_normalised_target_is_normal(
            raw in r#"(/|/\.|\.\.|%2e|%2E|%41|%[0-9a-f]{2}|%|;|[a-c]|\?|"|\[|\||\\|&|=|\+){0,12}"#,
            authority in "[a-zA-Z0-9.-]{1,8}(:[0-9]{0,5})?", lenient in any::<bool>()
        ) {
            let parse = |raw: &str, authority: &str| Target::parse(Scheme::Http, raw.as_bytes(), &host(authority.as_bytes()), lenient);
            if let Ok(target) = parse(&format!("/{raw}"), &authority) {
                let normal = Ok(target.clone());
                prop_assert_eq!(&parse(target.path_and_query(), target.authority()), &normal);
                prop_assert_eq!(&parse(target.as_str(), target.authority()), &normal);
                prop_assert_eq!(&Target::from_url(target.as_str()), &normal);
                prop_assert_eq!(&target.with_path_and_query(target.path(), target.query()), &normal);
                let dots = target.path().split('/').any(|segment| segment == "." || segment == "..");
                prop_assert!(!dots && target.path().starts_with('/') && target.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }

        #[test]
        fn no_bytes_panic(
            raw in proptest::collection::vec(any::<u8>(), 0..40), authority in proptest::collection::vec(any::<u8>(), 0..20),
            lenient in any::<bool>()
        ) {
            let mut fields = Fields::new();
            let _ = fields.append(name::HOST, &authority);
            let _ = Target::parse(Scheme::Http, &raw, &fields, lenient);
            let _ = Target::parse(Scheme::Https, &[b"https://", &raw[..]].concat(), &fields, lenient);
            if let Ok(target) = Target::parse(Scheme::Http, &[b"/", &raw[..]].concat(), &host(b"a"), lenient) {
                prop_assert_eq!(target.host(), "a");
            }
        }

        #[test]
        fn no_reference_panics_or_leaves_normal_form(reference in "(http:|//|/|\\.\\.|\\.|\\?|#|a|b|:|%2f|é| ){0,10}") {
            let base = Target::from_url("http://a/b/c/d;p?q").unwrap();
            if let Ok(target) = base.resolve(&reference) {
                prop_assert_eq!(Target::from_url(target.as_str()), Ok(target.clone()));
            }
        }

        #[test]
        fn parts_of_a_key_cannot_be_forged(a in proptest::collection::vec(any::<u8>(), 0..12), b in "[ -~]{0,12}", policy in 0..3) {
            let policy = KeyPolicy {
                headers: if policy == 1 { vec![] } else { vec!["x-a".into(), "x-b".into()] },
                cookies: if policy == 0 { vec![] } else { vec!["c".into()] },
                ..KeyPolicy::default()
            };
            let mut fields = Fields::new();
            let _ = fields.push("x-a", &a);
            let _ = fields.push("x-b", &b);
            let _ = fields.push("cookie", [b"c=", &a[..]].concat());
            let key = CacheKey::new(&Target::from_url("http://a/").unwrap(), &fields, &policy);
            prop_assert_eq!(key.as_str().lines().count(), 1 + policy.headers.len() + policy.cookies.len());
            prop_assert!(key.as_str().is_ascii());
        }
    }
}
