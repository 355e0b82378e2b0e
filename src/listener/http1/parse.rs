//! Bytes to a request head: where it ends ([`HeadScan`]), and what it says ([`parse`]). Pure. Nearly all heads are written in
//! one way and there at once: those are read in one step ([`read_plain`]), to the same end.
//!
//! httparse reads tokens fast but takes a bare LF for a line end and any number of blank lines before the request line.
//! The scan that finds the end of the head is stricter and refuses those first, so that both agree on every line.

use super::bad;
use crate::config::settings::Limits;
use crate::listener::{Refusal, RequestHead};
use crate::semantics::fields::{FieldError, is_token_byte};
use http::Method;
use memchr::{memchr, memchr_iter};
use std::mem::MaybeUninit;

/// Room in a request line besides the target: the longest method that is read, the version, spaces.
const LINE_BESIDES_TARGET: usize = 64;
/// Field lines that are parsed without an allocation.
const LINES_ON_STACK: usize = 128;
/// Longest field section that is read in one step: what comes behind the head is copied with it up to here.
const PLAIN_BYTES: usize = 4096;

/// Reads a head at the beginning of `bytes` into `head` in one step; says how many bytes it has. `None` of one that is not
/// whole yet or in any way unusual, which says nothing against it: that is for [`HeadScan`] and [`parse`] to say. They take
/// whatever is taken here, and read it alike.
pub fn read_plain(bytes: &[u8], limits: &Limits, head: &mut RequestHead) -> Option<usize> {
    let (line, rest) = bytes.split_at(memchr(b'\r', bytes)?);
    let lines = rest.strip_prefix(b"\r\n")?;
    let (request, minor_version) = match line.split_last_chunk()? {
        (request, b" HTTP/1.1") => (request, 1),
        (request, b" HTTP/1.0") => (request, 0),
        _ => return None,
    };
    let (method, target) = request.split_at(request.iter().position(|byte| *byte == b' ')?);
    let [_, target @ ..] = target else { return None };
    let is_target = !target.is_empty() && target.iter().fold(true, |all, byte| all & byte.is_ascii_graphic());
    let method = Method::from_bytes(method).ok().filter(|method| is_target && *method != Method::CONNECT)?;
    head.fields.clear();
    let end = line.len() + 2 + head.fields.read_plain(&lines[..lines.len().min(PLAIN_BYTES)])?;
    let line_fits = target.len() <= limits.url_bytes && line.len() + 2 <= limits.url_bytes + LINE_BESIDES_TARGET;
    if !line_fits || end > limits.header_bytes || head.fields.len() > limits.header_count {
        return None;
    }
    head.target.clear();
    head.target.extend_from_slice(target);
    (head.method, head.minor_version) = (method, minor_version);
    Some(end)
}

/// Looks for the end of a head as bytes come in; never looks at a byte twice.
///
/// What it says depends on the bytes only, not on how they were split on arrival.
#[derive(Debug, Clone, Default)]
pub struct HeadScan {
    /// Bytes looked at.
    scanned: usize,
    /// Where the head begins: 0, or 2 after an empty line (RFC 9112 §2.2).
    start: usize,
    line_start: usize,
    /// Lines that are complete, the request line included.
    lines: usize,
}

/// Where a complete head lies in the bytes scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadExtent {
    pub start: usize,
    /// Past the empty line.
    pub end: usize,
    pub field_lines: usize,
}

impl HeadScan {
    /// Nothing was looked at.
    pub const fn is_new(&self) -> bool {
        self.scanned == 0
    }

    /// `bytes` are all bytes from the beginning, those scanned before included. `None`: the head is not whole yet.
    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<HeadExtent>, Refusal> {
        self.check_first_byte(bytes)?;
        while let Some(offset) = memchr(b'\n', &bytes[self.scanned..]) {
            let line_feed = self.scanned + offset;
            self.check_bounds(line_feed + 1, limits)?;
            if line_feed == 0 || bytes[line_feed - 1] != b'\r' {
                return Err(bad("bare-lf"));
            }
            self.scanned = line_feed + 1;
            if self.line_start < line_feed - 1 {
                self.check_line(bytes[self.line_start], limits)?;
                self.lines += 1;
            } else if self.lines > 0 {
                return Ok(Some(HeadExtent { start: self.start, end: self.scanned, field_lines: self.lines - 1 }));
            } else if self.start > 0 {
                return Err(bad("leading-lines"));
            } else {
                self.start = self.scanned;
            }
            self.line_start = self.scanned;
            self.check_first_byte(bytes)?;
        }
        self.scanned = bytes.len();
        self.check_bounds(bytes.len(), limits)?;
        Ok(None)
    }

    /// Refuses what can be no request by its first byte, such as a TLS handshake on this port.
    fn check_first_byte(&self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.lines > 0 {
            return Ok(());
        }
        match bytes.get(self.line_start) {
            Some(b' ' | b'\t') => Err(bad("leading-space")),
            Some(b'\n') => Err(bad("bare-lf")),
            Some(byte) if *byte != b'\r' && !is_token_byte(*byte) => Err(bad("request-line")),
            _ => Ok(()),
        }
    }

    fn check_line(&self, first: u8, limits: &Limits) -> Result<(), Refusal> {
        if self.lines > 0 && matches!(first, b' ' | b'\t') {
            return Err(bad("obs-fold"));
        }
        if self.lines > limits.header_count {
            return Err(Refusal { status: 431, reason: "header-count" });
        }
        Ok(())
    }

    /// `upto`: bytes known to belong to this head.
    fn check_bounds(&self, upto: usize, limits: &Limits) -> Result<(), Refusal> {
        let line_max = limits.url_bytes + LINE_BESIDES_TARGET;
        if self.lines == 0 && line_max <= limits.header_bytes && upto - self.line_start > line_max {
            return Err(Refusal { status: 414, reason: "url-bytes" });
        }
        if upto - self.start > limits.header_bytes {
            return Err(Refusal { status: 431, reason: "header-bytes" });
        }
        Ok(())
    }
}

/// Reads a whole head, as [`HeadScan`] delimited it, into `head`, whose memory is used again.
pub fn parse(bytes: &[u8], field_lines: usize, limits: &Limits, head: &mut RequestHead) -> Result<(), Refusal> {
    head.fields.clear();
    head.target.clear();
    if field_lines <= LINES_ON_STACK {
        read(bytes, &mut [const { MaybeUninit::uninit() }; LINES_ON_STACK], limits, head)
    } else {
        let mut lines = Vec::new();
        lines.resize_with(field_lines, MaybeUninit::uninit);
        read(bytes, &mut lines, limits, head)
    }
}

fn read<'b>(
    bytes: &'b [u8],
    lines: &mut [MaybeUninit<httparse::Header<'b>>],
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<(), Refusal> {
    let mut request = httparse::Request::new(&mut []);
    let length = request.parse_with_uninit_headers(bytes, lines).map_err(|error| refusal(error, bytes))?;
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(bad("request-line"));
    };
    if length != httparse::Status::Complete(bytes.len()) {
        return Err(bad("request-line"));
    }
    if target.len() > limits.url_bytes {
        return Err(Refusal { status: 414, reason: "url-bytes" });
    }
    head.method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("method"))?;
    head.target.extend_from_slice(target.as_bytes());
    head.fields.reserve(bytes.len(), request.headers.len());
    head.minor_version = minor;
    for line in request.headers.iter() {
        head.fields.push(line.name, line.value).map_err(|error| match error {
            FieldError::Name => bad("field-name"),
            FieldError::Value => bad("field-value"),
            FieldError::Size => Refusal { status: 431, reason: "header-bytes" },
        })?;
    }
    if head.method == Method::CONNECT {
        // A cache in front of services opens no tunnels to others (RFC 9110 §9.3.6, §15.6.2).
        return Err(Refusal { status: 501, reason: "connect" });
    }
    Ok(())
}

fn refusal(error: httparse::Error, bytes: &[u8]) -> Refusal {
    match error {
        httparse::Error::HeaderName => bad("field-name"),
        httparse::Error::HeaderValue => bad("field-value"),
        httparse::Error::NewLine if has_bare_cr(bytes) => bad("bare-cr"),
        httparse::Error::TooManyHeaders => Refusal { status: 431, reason: "header-count" },
        httparse::Error::Version if names_a_version(bytes) => Refusal { status: 505, reason: "version" },
        _ => bad("request-line"),
    }
}

fn has_bare_cr(bytes: &[u8]) -> bool {
    memchr_iter(b'\r', bytes).any(|at| bytes.get(at + 1) != Some(&b'\n'))
}

/// Whether the request line is well formed and its version is one that is not spoken here (RFC 9112 §2.3).
fn names_a_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr(b'\r', bytes).unwrap_or(bytes.len())];
    let mut parts = line.split(|byte| *byte == b' ');
    let version = parts.nth(2).unwrap_or_default();
    parts.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::http1::framing::tests::limits;
    use crate::semantics::{Fields, name};
    use proptest::prelude::*;

    pub fn empty_head() -> RequestHead {
        RequestHead { method: Method::GET, target: Vec::new(), minor_version: 1, fields: Fields::new() }
    }

    /// Feeds `bytes` in pieces of `step`; the head or the refusal, and how many bytes the head took.
    fn feed(bytes: &[u8], step: usize) -> Result<Option<(RequestHead, usize)>, Refusal> {
        let limits = limits();
        let mut scan = HeadScan::default();
        for end in (0..bytes.len()).step_by(step.max(1)).chain([bytes.len()]) {
            if let Some(extent) = scan.scan(&bytes[..end], &limits)? {
                let mut head = empty_head();
                parse(&bytes[extent.start..extent.end], extent.field_lines, &limits, &mut head)?;
                return Ok(Some((head, extent.end)));
            }
        }
        Ok(None)
    }

    fn told(result: &Result<Option<(RequestHead, usize)>, Refusal>) -> String {
        match result {
            Ok(Some((head, end))) => {
                format!("{} {:?} {} {:?} {end}", head.method, head.target, head.minor_version, head.fields.wire())
            }
            Ok(None) => "more".into(),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    /// What is read in one step is what the scan and the parser make of it.
    fn is_read_alike(bytes: &[u8]) -> bool {
        let mut head = empty_head();
        match read_plain(bytes, &limits(), &mut head) {
            Some(end) => {
                let numbered = |head: &RequestHead| head.fields.has(name::HOST);
                let by_steps = feed(bytes, usize::MAX / 2);
                let is_numbered =
                    by_steps.as_ref().is_ok_and(|read| read.as_ref().is_some_and(|read| numbered(&read.0) == numbered(&head)));
                is_numbered && told(&by_steps) == told(&Ok(Some((head, end))))
            }
            None => true,
        }
    }

    #[test]
    fn heads_as_they_are_usually_written_are_read_in_one_step() {
        let limits = limits();
        let plain = |bytes: &[u8]| read_plain(bytes, &limits, &mut empty_head());
        for head in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "PUT /a?b=%20 HTTP/1.0\r\nHOST: x\r\nX-B: \"a\tb\"\r\nEmpty: \r\n\r\n",
            "POST * HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(plain(format!("{head}body").as_bytes()), Some(head.len()), "{head}");
            assert_eq!(plain(&head.as_bytes()[..head.len() - 1]), None, "{head}");
            assert!(is_read_alike(head.as_bytes()));
        }
        let long = |target: usize, value: usize, lines: usize| {
            let lines = "a: b\r\n".repeat(lines);
            format!("GET /{} HTTP/1.1\r\n{lines}v: {}\r\n\r\n", "t".repeat(target), "v".repeat(value)).into_bytes()
        };
        assert!(plain(&long(limits.url_bytes - 1, 0, limits.header_count - 1)).is_some() && plain(&long(0, PLAIN_BYTES - 7, 0)).is_some());
        for beyond in [long(limits.url_bytes, 0, 0), long(0, 0, limits.header_count), long(0, PLAIN_BYTES - 6, 0)] {
            assert_eq!(plain(&beyond), None);
        }
    }

    #[test]
    fn a_head_is_read_and_what_follows_is_left() {
        let bytes = b"GET /a?b HTTP/1.1\r\nHost: x\r\nX-Odd:  v \t\r\n\r\nGET /next";
        let (head, end) = feed(bytes, 7).unwrap().unwrap();
        assert_eq!((head.method.as_str(), &head.target[..], head.minor_version), ("GET", &b"/a?b"[..], 1));
        assert_eq!(head.fields.get(name::HOST), Some(&b"x"[..]));
        assert_eq!(head.fields.get_named("x-odd"), Some(&b"v"[..]));
        assert_eq!(&bytes[end..], b"GET /next");
    }

    #[test]
    fn many_lines_are_read_up_to_the_limit() {
        let with = |lines: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(lines)).into_bytes();
        assert_eq!(feed(&with(200), 999).unwrap().unwrap().0.fields.len(), 200);
        assert_eq!(feed(&with(201), 999).unwrap_err(), Refusal { status: 431, reason: "header-count" });
    }

    #[test]
    fn versions_that_are_not_spoken_are_told_from_nonsense() {
        for (line, status) in [
            ("GET / HTTP/1.0", 0),
            ("GET / HTTP/1.2", 505),
            ("GET / HTTP/2.0", 505),
            ("PRI * HTTP/2.0", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / http/1.1", 400),
            ("GET / HTTP/1.10", 400),
            ("GET / HTTP/1,1", 400),
            ("GET /", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET /  HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            ("GET /a b HTTP/1.1", 400),
            ("GET\t/ HTTP/1.1", 400),
            ("G@T / HTTP/1.1", 400),
            ("CONNECT a:1 HTTP/1.1", 501),
        ] {
            let result = feed(format!("{line}\r\n\r\n").as_bytes(), 4096);
            assert_eq!(result.as_ref().map_or_else(|refusal| refusal.status, |_| 0), status, "{line}: {}", told(&result));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_split_anywhere_say_the_same(bytes in prop::collection::vec(prop_oneof![
            Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b'a'), any::<u8>()], 0..200), step in 1usize..40) {
            prop_assert_eq!(told(&feed(&bytes, step)), told(&feed(&bytes, usize::MAX / 2)));
            prop_assert!(is_read_alike(&bytes) && is_read_alike(&[b"GET / HTTP/1.1\r\n", &bytes[..]].concat()));
        }

        #[test]
        fn damaged_heads_split_anywhere_say_the_same(at in 0usize..120, byte in any::<u8>(), step in 1usize..40) {
            let mut bytes = b"\r\nPOST /some/path?query HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\nAccept: a, b\r\n\r\nhelloGET / HTTP".to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            prop_assert_eq!(told(&feed(&bytes, step)), told(&feed(&bytes, usize::MAX / 2)));
            prop_assert!(is_read_alike(&bytes) && is_read_alike(&bytes[2..]));
        }

        #[test]
        fn long_heads_split_anywhere_say_the_same(target in 0usize..3000, value in 0usize..9000, step in 1usize..4000) {
            let bytes = format!("GET /{} HTTP/1.1\r\nA: {}\r\n\r\n", "t".repeat(target), "v".repeat(value)).into_bytes();
            prop_assert_eq!(told(&feed(&bytes, step)), told(&feed(&bytes, usize::MAX / 2)));
            prop_assert!(is_read_alike(&bytes));
        }

        #[test]
        fn what_was_pushed_is_what_was_sent(name in "[a-z][a-z0-9-]{0,20}", value in "[!-~]([ -~]{0,30}[!-~])?") {
            let (head, _) = feed(format!("GET / HTTP/1.1\r\n{name}: {value}\r\n\r\n").as_bytes(), 3).unwrap().unwrap();
            prop_assert_eq!(head.fields.get_named(&name), Some(value.as_bytes()));
        }
    }
}
