//! What makes a target normal (RFC 3986 §6.2.2, §6.2.3), and what is refused.

use super::{Scheme, Target, TargetError};
use std::cell::Cell;
use std::net::Ipv6Addr;

/// Longest target and longest Host that are read at all; listeners have far lower limits.
const TARGET_BYTES_MAX: usize = 1 << 20;

/// How a path is read where RFC 3986 leaves a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathRules {
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
pub(super) struct Builder {
    pub(super) text: Vec<u8>,
    authority_start: usize,
}

impl Builder {
    pub(super) fn new(scheme: Scheme, authority: &[u8], rest_length: usize) -> Result<Self, TargetError> {
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
    pub(super) fn finish(mut self, rest: &[u8], rules: PathRules) -> Result<Target, TargetError> {
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

    pub(super) fn finish_asterisk(mut self) -> Result<Target, TargetError> {
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
pub(super) fn split_absolute(raw: &[u8]) -> Result<(Scheme, &[u8], &[u8]), TargetError> {
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
pub(super) fn has_scheme(reference: &str) -> bool {
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
const NAME: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 256 {
        table[byte] = is_unreserved(byte as u8) || is_sub_delimiter(byte as u8);
        byte += 1;
    }
    table
};

const fn is_name_byte(byte: u8) -> bool {
    NAME[byte as usize]
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
pub fn decode(text: &[u8]) -> Option<u8> {
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
