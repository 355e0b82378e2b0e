//! An answer to bytes: status line, fields, framing (RFC 9112 §4, §6, §7.1). Pure.

use crate::body::{ResponseBody, StoredBody};
use crate::listener::{Interim, Refusal, ResponseFields};
use crate::pages::{self, Place};
use crate::semantics::{Fields, StatusCode, date, name, proxy_status};
use bytes::Bytes;
use smallvec::SmallVec;
use std::io::{IoSlice, Write as _};
use std::sync::Arc;

/// Room for what a head holds beside its fields.
const BESIDES: usize = 128;
/// A body up to this length is copied behind its head: cheaper than a second element of a vectored write.
const COPY_BYTES: u64 = 4096;
/// Fewer bytes are copied into the socket though they stand in pages.
const PAGES_BYTES: usize = 32 * 1024;
/// Elements of one vectored write.
const SLICES: usize = 32;

/// How the body of an answer is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body and no length: 1xx, 204 (RFC 9110 §8.6).
    Bare,
    /// No body; a length may be told: answers to HEAD, 304.
    HeadOnly(Option<u64>),
    Length(u64),
    Chunked,
    /// Ends with the connection: HTTP/1.0 without a known length.
    UntilClose,
}

/// What the Connection field of an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Nothing: HTTP/1.1 persists.
    Silent,
    KeepAlive,
    Close,
    Upgrade,
}

/// How to delimit this body for this client (RFC 9112 §6.3).
pub fn framing(status: StatusCode, to_head: bool, minor_version: u8, body: &ResponseBody) -> Framing {
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return Framing::Bare;
    }
    if to_head || status == StatusCode::NOT_MODIFIED {
        let told = to_head && !matches!(body, ResponseBody::Empty);
        return Framing::HeadOnly(body.length().filter(|_| told));
    }
    match body.length() {
        Some(length) => Framing::Length(length),
        None if minor_version > 0 => Framing::Chunked,
        None => Framing::UntilClose,
    }
}

/// Writes a response head. A Content-Length among the fields that contradicts the framing is replaced.
pub fn head(out: &mut Vec<u8>, status: StatusCode, fields: &ResponseFields, framing: Framing, connection: Connection) {
    let (fields, extra) = match fields {
        ResponseFields::Stored { stored, extra } => (&stored.fields, &extra[..]),
        ResponseFields::Own(fields) => (fields, &[][..]),
    };
    head_of(out, status, fields, extra, framing, connection);
}

fn head_of(out: &mut Vec<u8>, status: StatusCode, fields: &Fields, extra: &[u8], framing: Framing, connection: Connection) {
    out.reserve(fields.wire().len() + extra.len() + BESIDES);
    status_line(out, status);
    let length = lines(out, fields, framing);
    out.extend_from_slice(extra);
    if let Some(length) = length {
        out.extend_from_slice(b"content-length: ");
        out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(match connection {
        Connection::Silent => b"\r\n",
        Connection::KeepAlive => b"connection: keep-alive\r\n\r\n",
        Connection::Close => b"connection: close\r\n\r\n",
        Connection::Upgrade => b"connection: upgrade\r\n\r\n",
    });
}

/// Copies the field lines; returns the length that is still to be told.
fn lines(out: &mut Vec<u8>, fields: &Fields, framing: Framing) -> Option<u64> {
    let length = match framing {
        Framing::Length(length) | Framing::HeadOnly(Some(length)) => Some(length),
        _ => None,
    };
    let keep_as_is = match length {
        _ if !fields.has(name::CONTENT_LENGTH) => true,
        Some(length) if says(fields, length) => {
            out.extend_from_slice(fields.wire());
            return None;
        }
        _ => matches!(framing, Framing::HeadOnly(None)),
    };
    if keep_as_is {
        out.extend_from_slice(fields.wire());
        return length;
    }
    for (field, value) in fields.iter().filter(|(field, _)| *field != name::CONTENT_LENGTH.as_str()) {
        out.extend_from_slice(field.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    length
}

/// Whether the fields say this length, once.
fn says(fields: &Fields, length: u64) -> bool {
    let mut values = fields.values(name::CONTENT_LENGTH);
    values.next() == Some(itoa::Buffer::new().format(length).as_bytes()) && values.next().is_none()
}

fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    match status {
        StatusCode::OK => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        StatusCode::NOT_MODIFIED => out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n"),
        _ => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(status.as_str().as_bytes());
            // The space stays where there is no phrase (RFC 9112 §4).
            out.push(b' ');
            out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Writes an interim response (RFC 9110 §15.2).
pub fn interim(out: &mut Vec<u8>, interim: &Interim) {
    head_of(out, interim.status, &interim.fields, &[], Framing::Bare, Connection::Silent);
}

/// Writes the answer to a request that the connection itself refuses: it closes afterwards. `wall_ms` is for Date
/// (RFC 9110 §6.6.1), `name` is ours.
pub fn refusal(out: &mut Vec<u8>, refusal: Refusal, name: &str, to_head: bool, wall_ms: i64) {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = format!("{} {}: {}\n", status.as_str(), status.canonical_reason().unwrap_or("Refused"), refusal.reason);
    status_line(out, status);
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(&date::format(wall_ms));
    out.extend_from_slice(b"\r\nproxy-status: ");
    out.extend_from_slice(&proxy_status::member(name, refusal.error(), Some(refusal.reason)));
    // Writing to a Vec cannot fail.
    let _ = write!(out, "\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    if !to_head {
        out.extend_from_slice(body.as_bytes());
    }
}

/// Writes the end of a chunked body.
pub fn last_chunk(out: &mut Vec<u8>, trailers: Option<&Fields>) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers.map(Fields::wire).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

/// Body bytes at hand that wait to be written.
#[derive(Debug, Default)]
enum Data {
    #[default]
    Nothing,
    One(Bytes),
    /// Of its segments, from byte `offset` of number `index`, `left` bytes.
    Stored {
        body: Arc<StoredBody>,
        index: usize,
        offset: usize,
        left: u64,
    },
}

/// What is written in one go: the bytes in a buffer, data, and an end. Remembers how far it came.
#[derive(Debug, Default)]
pub struct Frame {
    /// Bytes of the buffer that are written.
    lead: usize,
    /// Bytes at the front of the buffer that are no body.
    not_body: usize,
    data: Data,
    tail: &'static [u8],
    /// Body bytes that are written.
    body_written: u64,
    /// All bytes that are written, to see progress.
    written: u64,
}

impl Frame {
    /// The buffer as it is: no body.
    pub fn plain(out: &[u8]) -> Self {
        Self { not_body: out.len(), ..Self::default() }
    }

    /// A head that stands in `out`, and a body that is at hand; a short one is copied behind it.
    pub fn with_body(out: &mut Vec<u8>, body: ResponseBody) -> Self {
        let mut frame = Self::plain(out);
        frame.data = match body {
            ResponseBody::Full(bytes) => Data::One(bytes),
            ResponseBody::Stored { body, start, end } => stored(body, start, end),
            ResponseBody::Empty | ResponseBody::Stream { .. } | ResponseBody::Tunnel(_) => Data::Nothing,
        };
        if frame.data.left() <= COPY_BYTES {
            let copied = frame.data.copy_to(out);
            frame.data.advance(copied);
            if frame.data.left() == 0 {
                frame.data = Data::Nothing; // however slow the client is, it holds no stored body
            }
        }
        frame
    }

    /// Adds a piece of a streamed body to what stands in `out` and was not written yet.
    pub fn load(&mut self, out: &[u8], data: Bytes, tail: &'static [u8]) {
        self.not_body = out.len();
        self.data = Data::One(data);
        self.tail = tail;
    }

    /// Begins anew with an empty buffer; keeps the count of body bytes.
    pub fn restart(&mut self, out: &mut Vec<u8>) {
        out.clear();
        *self = Self { body_written: self.body_written, written: self.written, ..Self::default() };
    }

    /// The end of a chunked body was added to what stands in `out`.
    pub fn extend_lead(&mut self, out: &[u8]) {
        self.not_body = out.len();
    }

    /// Body bytes that went out by other ways (a tunnel).
    pub fn count_body(&mut self, bytes: u64) {
        self.body_written += bytes;
    }

    /// What is left of the buffer, and the bytes behind it, where these are many and stand in pages.
    pub fn in_pages<'a>(&self, out: &'a [u8]) -> Option<(&'a [u8], Place<'static>)> {
        let next = self.data.next();
        if next.len() < PAGES_BYTES {
            return None;
        }
        Some((&out[self.lead..], pages::find(next)?))
    }

    /// What is left, where all of it stands in the buffer.
    pub fn alone<'a>(&self, out: &'a [u8]) -> Option<&'a [u8]> {
        (self.data.left() == 0 && self.tail.is_empty()).then(|| &out[self.lead..])
    }

    /// What is left, as elements of one vectored write.
    pub fn slices<'a>(&'a self, out: &'a [u8]) -> SmallVec<[IoSlice<'a>; SLICES]> {
        let mut slices = SmallVec::new();
        if self.lead < out.len() {
            slices.push(IoSlice::new(&out[self.lead..]));
        }
        self.data.slices(&mut slices);
        if !self.tail.is_empty() && slices.len() < SLICES {
            slices.push(IoSlice::new(self.tail));
        }
        slices
    }

    /// `written` further bytes went out.
    pub fn advance(&mut self, out: &[u8], written: usize) {
        let lead = written.min(out.len() - self.lead);
        let body_before = self.lead.max(self.not_body);
        self.written += written as u64;
        self.lead += lead;
        self.body_written += self.lead.saturating_sub(body_before) as u64;
        let data = usize::try_from(self.data.left()).unwrap_or(usize::MAX).min(written - lead);
        self.data.advance(data);
        self.body_written += data as u64;
        self.tail = &self.tail[written - lead - data..];
    }

    pub fn is_written(&self, out: &[u8]) -> bool {
        self.lead == out.len() && self.data.left() == 0 && self.tail.is_empty()
    }

    /// Whether what is left is of a stored body that is wanted back.
    pub fn is_revoked(&self) -> bool {
        matches!(&self.data, Data::Stored { body, .. } if body.is_revoked())
    }

    pub fn body_written(&self) -> u64 {
        self.body_written
    }

    /// Bytes of any kind that are written; grows with each write that makes progress.
    pub fn progress(&self) -> u64 {
        self.written
    }
}

fn stored(body: Arc<StoredBody>, start: u64, end: u64) -> Data {
    let segments = body.segments();
    let (mut index, mut skip) = (0, start);
    while index < segments.len() && skip >= segments[index].len() as u64 {
        skip -= segments[index].len() as u64;
        index += 1;
    }
    let left = if index < segments.len() { end.saturating_sub(start) } else { 0 };
    Data::Stored { body, index, offset: skip as usize, left }
}

impl Data {
    fn left(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len() as u64,
            Self::Stored { left, .. } => *left,
        }
    }

    /// What is left of the first segment.
    fn next(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Stored { body, index, offset, left } => {
                let Some(segment) = body.segments().get(*index) else { return &[] };
                let left = usize::try_from(*left).unwrap_or(usize::MAX);
                &segment[*offset..segment.len().min(offset.saturating_add(left))]
            }
        }
    }

    fn slices<'a>(&'a self, slices: &mut SmallVec<[IoSlice<'a>; SLICES]>) {
        match self {
            Self::Nothing => {}
            Self::One(bytes) if bytes.is_empty() => {}
            Self::One(bytes) => slices.push(IoSlice::new(bytes)),
            Self::Stored { body, index, offset, left } => {
                let (mut offset, mut left) = (*offset, *left);
                for segment in &body.segments()[*index..] {
                    if left == 0 || slices.len() == SLICES {
                        break;
                    }
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(segment.len() - offset);
                    if length > 0 {
                        slices.push(IoSlice::new(&segment[offset..offset + length]));
                    }
                    (offset, left) = (0, left - length as u64);
                }
            }
        }
    }

    /// Copies what one vectored write would take; the rest, if there are very many small segments, stays.
    fn copy_to(&self, out: &mut Vec<u8>) -> usize {
        let before = out.len();
        let next = self.next();
        if next.len() as u64 == self.left() {
            out.extend_from_slice(next); // one segment, as all short bodies have
            return next.len();
        }
        out.reserve(usize::try_from(self.left()).unwrap_or_default());
        let mut slices = SmallVec::new();
        self.slices(&mut slices);
        slices.iter().for_each(|slice| out.extend_from_slice(slice));
        out.len() - before
    }

    fn advance(&mut self, mut by: usize) {
        match self {
            Self::Nothing => {}
            Self::One(bytes) => bytes::Buf::advance(bytes, by),
            Self::Stored { body, index, offset, left } => {
                let segments = body.segments();
                *left -= by as u64;
                while by > 0 {
                    let here = by.min(segments[*index].len() - *offset);
                    (*offset, by) = (*offset + here, by - here);
                    if *offset == segments[*index].len() {
                        (*index, *offset) = (*index + 1, 0);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(status: u16, lines: &[(&str, &str)], extra: &[u8], framing: Framing, connection: Connection) -> String {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        let mut out = Vec::new();
        head_of(&mut out, StatusCode::from_u16(status).unwrap(), &fields, extra, framing, connection);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heads_are_written_as_the_framing_says() {
        let length = ("content-length", "5");
        for (status, lines, framing, connection, expected) in [
            (200, &[length][..], Framing::Length(5), Connection::Silent, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nage: 1\r\n\r\n"),
            (
                200,
                &[],
                Framing::Length(5),
                Connection::Close,
                "HTTP/1.1 200 OK\r\nage: 1\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
            ),
            (
                206,
                &[length, ("a", "b")],
                Framing::Length(3),
                Connection::Silent,
                "HTTP/1.1 206 Partial Content\r\na: b\r\nage: 1\r\ncontent-length: 3\r\n\r\n",
            ),
            (200, &[length, length], Framing::Length(5), Connection::Silent, "HTTP/1.1 200 OK\r\nage: 1\r\ncontent-length: 5\r\n\r\n"),
            (200, &[length], Framing::Chunked, Connection::Silent, "HTTP/1.1 200 OK\r\nage: 1\r\ntransfer-encoding: chunked\r\n\r\n"),
            (200, &[], Framing::UntilClose, Connection::Close, "HTTP/1.1 200 OK\r\nage: 1\r\nconnection: close\r\n\r\n"),
            (204, &[length], Framing::Bare, Connection::KeepAlive, "HTTP/1.1 204 No Content\r\nage: 1\r\nconnection: keep-alive\r\n\r\n"),
            (
                304,
                &[length],
                Framing::HeadOnly(None),
                Connection::Silent,
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nage: 1\r\n\r\n",
            ),
            (200, &[], Framing::HeadOnly(Some(9)), Connection::Silent, "HTTP/1.1 200 OK\r\nage: 1\r\ncontent-length: 9\r\n\r\n"),
            (200, &[], Framing::HeadOnly(None), Connection::Silent, "HTTP/1.1 200 OK\r\nage: 1\r\n\r\n"),
            (599, &[], Framing::Length(0), Connection::Silent, "HTTP/1.1 599 \r\nage: 1\r\ncontent-length: 0\r\n\r\n"),
        ] {
            assert_eq!(encoded(status, lines, b"age: 1\r\n", framing, connection), expected);
        }
    }

    #[test]
    fn framing_by_status_method_and_version() {
        let of = |status: u16, to_head, minor, body: &ResponseBody| framing(StatusCode::from_u16(status).unwrap(), to_head, minor, body);
        let full = ResponseBody::Full(Bytes::from_static(b"abc"));
        assert_eq!(of(200, false, 1, &full), Framing::Length(3));
        assert_eq!(of(200, true, 1, &full), Framing::HeadOnly(Some(3)));
        assert_eq!(of(200, true, 1, &ResponseBody::Empty), Framing::HeadOnly(None));
        assert_eq!(of(200, false, 1, &ResponseBody::Empty), Framing::Length(0));
        assert_eq!(of(304, false, 1, &full), Framing::HeadOnly(None));
        assert_eq!(of(204, false, 1, &full), Framing::Bare);
        assert_eq!(of(101, false, 1, &full), Framing::Bare);
    }

    proptest! {
        /// However the writes are cut, the bytes that go out are lead, body, tail, and the count is right.
        #[test]
        fn frames_write_everything_once(
            lead in prop::collection::vec(any::<u8>(), 0..50),
            segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..50),
            cut in (0.0..1.0f64, 0.0..1.0f64),
            writes in prop::collection::vec(1usize..5000, 1..20),
        ) {
            let body = segments.concat();
            let (a, b) = ((body.len() as f64 * cut.0) as usize, (body.len() as f64 * cut.1) as usize);
            let (start, end) = (a.min(b), a.max(b));
            let segments: Vec<Bytes> = segments.into_iter().map(Bytes::from).collect();
            let stored = Arc::new(StoredBody::new(&segments));
            let mut out = lead.clone();
            let mut frame = Frame::with_body(&mut out, ResponseBody::Stored { body: stored, start: start as u64, end: end as u64 });
            let mut sent = Vec::new();
            for limit in writes.iter().cycle() {
                if frame.is_written(&out) {
                    break;
                }
                let offered: Vec<u8> = frame.slices(&out).iter().flat_map(|slice| slice.to_vec()).take(*limit).collect();
                prop_assert!(!offered.is_empty());
                frame.advance(&out, offered.len());
                sent.extend(offered);
            }
            prop_assert_eq!(sent, [&lead[..], &body[start..end]].concat());
            prop_assert_eq!(frame.body_written(), (end - start) as u64);
        }
    }
}
