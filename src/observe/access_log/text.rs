//! Bytes of strangers as part of a line: escaped, bounded, never more than one line.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

/// Bytes of a request target that are logged; past it `...` stands for the rest.
pub(super) const TARGET_MAX: usize = 4096;
/// Bytes of any other text that are logged.
pub(super) const TEXT_MAX: usize = 1024;

/// The first `max` bytes, and what stands for the rest.
fn bounded(text: &[u8], max: usize) -> (&[u8], &'static [u8]) {
    match text.get(..max) {
        Some(kept) if kept.len() < text.len() => (kept, b"..."),
        _ => (text, b""),
    }
}

/// Inside quotes of a combined line: control characters, quotes, backslashes and everything outside ASCII as `\xHH`.
pub(super) fn quoted(text: &[u8], max: usize, out: &mut Vec<u8>) {
    let (text, rest) = bounded(text, max);
    plain_runs(text, |byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'), out, hex);
    out.extend_from_slice(rest);
}

/// A bare word of a combined line: as [`quoted`], spaces escaped too; `-` where there is nothing.
pub(super) fn word(text: &[u8], out: &mut Vec<u8>) {
    if text.is_empty() {
        return out.push(b'-');
    }
    let (text, rest) = bounded(text, TEXT_MAX);
    plain_runs(text, |byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\'), out, hex);
    out.extend_from_slice(rest);
}

/// Copies runs of plain bytes at once and hands the others to `escape`.
fn plain_runs(mut text: &[u8], plain: impl Fn(u8) -> bool, out: &mut Vec<u8>, escape: impl Fn(u8, &mut Vec<u8>)) {
    while let Some(at) = text.iter().position(|byte| !plain(*byte)) {
        out.extend_from_slice(&text[..at]);
        escape(text[at], out);
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}

/// What most lines need.
const LINE_BYTES: usize = 1024;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

/// The inside of a JSON string. Text outside ASCII becomes `\uXXXX`; bytes that are no UTF-8 are spelled `\xHH`, which
/// in JSON is a backslash and three letters.
fn json_text(text: &[u8], out: &mut Vec<u8>) {
    if is_plain(text) {
        return out.extend_from_slice(text); // nearly always
    }
    for chunk in text.utf8_chunks() {
        let mut valid = chunk.valid();
        while let Some((at, special)) = valid.char_indices().find(|(_, c)| !matches!(c, ' '..='~') || matches!(c, '"' | '\\')) {
            out.extend_from_slice(&valid.as_bytes()[..at]);
            json_escape(special, out);
            valid = &valid[at + special.len_utf8()..];
        }
        out.extend_from_slice(valid.as_bytes());
        for byte in chunk.invalid() {
            out.push(b'\\');
            hex(*byte, out);
        }
    }
}

/// Whether nothing in it has to be escaped. Sixteen bytes at a time, without stopping at the first: a few vector
/// instructions instead of a branch per byte.
fn is_plain(text: &[u8]) -> bool {
    let has_odd =
        |bytes: &[u8; 16]| bytes.iter().fold(false, |odd, byte| odd | !matches!(byte, b' '..=b'~') | matches!(byte, b'"' | b'\\'));
    let (chunks, rest) = text.as_chunks::<16>();
    let mut last = [b' '; 16];
    last[..rest.len()].copy_from_slice(rest);
    !chunks.iter().any(has_odd) && !has_odd(&last)
}

fn json_escape(special: char, out: &mut Vec<u8>) {
    if matches!(special, '"' | '\\') {
        out.extend_from_slice(&[b'\\', special as u8]);
        return;
    }
    for unit in special.encode_utf16(&mut [0; 2]) {
        let nibble = |shift: u32| DIGITS[usize::from(*unit >> shift & 15)];
        out.extend_from_slice(&[b'\\', b'u', nibble(12), nibble(8), nibble(4), nibble(0)]);
    }
}

/// Digits of a number.
pub(super) fn number(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Milliseconds with three digits behind the point.
pub(super) fn milliseconds(ns: u64, out: &mut Vec<u8>) {
    let us = ns / 1000;
    number(us / 1000, out);
    let rest = us % 1000;
    out.extend_from_slice(&[b'.', b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8]);
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn address(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => {
            let (mut text, mut end) = ([b'.'; 16], 0);
            for octet in ip.octets() {
                for unit in [100, 10] {
                    if octet >= unit {
                        text[end] = b'0' + octet / unit % 10;
                        end += 1;
                    }
                }
                text[end] = b'0' + octet % 10;
                end += 2; // the point is there
            }
            out.extend_from_slice(&text[..end - 1]);
        }
        IpAddr::V6(ip) => write!(out, "{ip}").expect("writing to memory does not fail"),
    }
}

/// The name of a member with all that surrounds it, made when the program is compiled: one copy instead of three.
macro_rules! member {
    ($name:literal) => {
        $crate::observe::access_log::text::Member(concat!(",\"", $name, "\":"))
    };
}
pub(super) use member;

/// A comma, a name in quotes, a colon; see [`member`].
#[derive(Clone, Copy)]
pub(super) struct Member(pub(super) &'static str);

/// A JSON object of one line, written member by member. Names are ours and need no escaping.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> Object<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.reserve(LINE_BYTES);
        let begin = out.len();
        Self { out, begin }
    }

    /// The first member's comma becomes the brace. An object has one member at least.
    pub(super) fn end(self) {
        if let Some(comma) = self.out.get_mut(self.begin) {
            *comma = b'{';
        }
        self.out.extend_from_slice(b"}\n");
    }

    /// Writes a name and lends the buffer for its value. Inlined, so that a name of known length is a few stores.
    #[inline(always)]
    pub(super) fn value(&mut self, name: Member, write: impl FnOnce(&mut Vec<u8>)) {
        self.out.extend_from_slice(name.0.as_bytes());
        write(self.out);
    }

    /// A string without anything to escape.
    #[inline(always)]
    pub(super) fn plain(&mut self, name: Member, write: impl FnOnce(&mut Vec<u8>)) {
        self.value(name, |out| {
            out.push(b'"');
            write(out);
            out.push(b'"');
        });
    }

    /// A string of ours.
    #[inline(always)]
    pub(super) fn token(&mut self, name: Member, token: &'static str) {
        self.plain(name, |out| out.extend_from_slice(token.as_bytes()));
    }

    /// Members that were written before.
    pub(super) fn members(&mut self, members: &[u8]) {
        self.out.extend_from_slice(members);
    }

    /// A string of at most `max` bytes before escaping.
    pub(super) fn text(&mut self, name: Member, text: &[u8], max: usize) {
        let (text, rest) = bounded(text, max);
        self.plain(name, |out| {
            json_text(text, out);
            out.extend_from_slice(rest);
        });
    }

    /// [`Object::text`], where there is one.
    #[inline(always)]
    pub(super) fn text_if(&mut self, name: Member, text: Option<&[u8]>) {
        if let Some(text) = text {
            self.text(name, text, TEXT_MAX);
        }
    }

    pub(super) fn number(&mut self, name: Member, value: impl itoa::Integer) {
        self.value(name, |out| number(value, out));
    }

    /// A duration in milliseconds, where there is one.
    #[inline(always)]
    pub(super) fn milliseconds_if(&mut self, name: Member, duration: Option<Duration>) {
        if let Some(duration) = duration {
            self.value(name, |out| milliseconds(nanoseconds(duration), out));
        }
    }

    pub(super) fn boolean(&mut self, name: Member, value: bool) {
        self.value(name, |out| out.extend_from_slice(if value { b"true" } else { b"false" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &[u8], max: usize) -> String {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        object.text(member!("t"), text, max);
        object.end();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        value["t"].as_str().unwrap().to_owned()
    }

    #[test]
    fn bytes_that_are_no_text_are_spelled() {
        assert_eq!(string(b"a\xff\xc3b", 99), "a\\xff\\xc3b");
        assert_eq!(string(b"abcdef", 3), "abc...");
        assert_eq!(string(b"abc", 3), "abc");
        let mut out = Vec::new();
        quoted("a\"b\\c\r\nd\u{e9}\x7f e".as_bytes(), 99, &mut out);
        assert_eq!(out, br"a\x22b\x5cc\x0d\x0ad\xc3\xa9\x7f e");
        out.clear();
        word(b"a b", &mut out);
        word(b"", &mut out);
        assert_eq!(out, br"a\x20b-");
    }

    #[test]
    fn durations_and_addresses_are_written_exactly() {
        let mut out = Vec::new();
        for ns in [0, 999, 1_000, 1_234_567, 61_000_000_000] {
            milliseconds(ns, &mut out);
            out.push(b' ');
        }
        for ip in ["127.0.0.1", "255.0.10.100", "255.255.255.255", "2001:db8::1"] {
            address(ip.parse().unwrap(), &mut out);
            out.push(b' ');
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "0.000 0.000 0.001 1.234 61000.000 127.0.0.1 255.0.10.100 255.255.255.255 2001:db8::1 "
        );
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_json(text in any::<String>()) {
            prop_assert_eq!(string(text.as_bytes(), usize::MAX), text);
        }

        #[test]
        fn any_bytes_stay_one_printable_line(bytes in proptest::collection::vec(any::<u8>(), 0..200), max in 0_usize..100) {
            let mut out = Vec::new();
            quoted(&bytes, max, &mut out);
            word(&bytes, &mut out);
            json_text(&bytes, &mut out);
            prop_assert!(out.iter().all(|byte| matches!(byte, b' '..=b'~')));
            string(&bytes, max);
        }
    }
}
