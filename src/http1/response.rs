//! A response as it comes from an upstream: bytes in, events out (RFC 9112 §4, §5, §6, §7, §9.3). Pure.
//!
//! `Head -> (Interim -> Head)* -> Final -> Body -> End`
//!
//! [`Reader::next`] is the way in. What two parsers could read differently is refused ([`Fault::Malformed`] names the
//! reason); `docs/http1.md` lists it row by row. What a head says of its body is decided in [`vet`], which reads fields
//! and nothing else, so that a head that another parser read is judged alike.

use super::chunked::{ChunkError, Chunked};
use crate::semantics::fields::{list, trim};
use crate::semantics::{Fields, StatusCode, hop, name, upgrade};
use memchr::memchr;
use memchr::memmem::Finder;
use std::mem::MaybeUninit;
use std::sync::LazyLock;
use std::time::Duration;

/// Interim responses to one request; one more is a flood.
pub const INTERIM_MAX: u32 = 16;
/// Field lines that are parsed without an allocation.
const LINES_ON_STACK: usize = 64;
/// Longest field section that is read in one step.
const PLAIN_BYTES: usize = 2048;
/// Room for as many lines as a response usually has.
const USUAL_LINES: usize = 16;
/// Seconds taken off an advertised `Keep-Alive: timeout`, so that we close first.
const KEEP_ALIVE_MARGIN_S: u64 = 1;
/// Room for what an answer made of it has besides: Cache-Status, Via and their kin.
const ADDED_BYTES: usize = 128;
const ADDED_LINES: usize = 4;
/// Looks for the end of a head.
static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
/// How every response begins.
const VERSION: &[u8] = b"HTTP/1.";

/// What the request was, as far as the reading of its response depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    pub head: bool,
    pub range: bool,
    /// The protocols that Upgrade named.
    pub upgrade: Option<Box<[u8]>>,
}

/// Bounds on heads. All heads of one answer together, interim ones included, have twice `header_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub header_bytes: usize,
    pub header_count: usize,
}

/// Why a response is not read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Malformed(&'static str),
    /// A head has more bytes, or more lines, than is allowed.
    HeadTooLarge(&'static str),
    /// More interim responses than are taken, or more bytes of them.
    Flood,
    /// The bytes ended before they should.
    Truncated,
}

/// What the bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet: call again with more bytes.
    More,
    /// An interim response (1xx but 101), without the fields of the connection.
    Interim(StatusCode, Fields),
    /// The final head. What follows is its body, or the protocol of a 101.
    Final(Head),
    /// The last so many of the bytes taken belong to the body.
    Data(usize),
    /// Trailer fields; the body has ended.
    Trailers(Fields),
    /// The body has ended. What follows does not belong to this response.
    End,
}

/// A response head that may be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub status: StatusCode,
    /// Without those of the connection, but with Upgrade where the status is 101.
    pub fields: Fields,
    /// Content-Length where valid and the body is delimited by it.
    pub length: Option<u64>,
    pub body: BodyEnd,
    /// How long the connection may be kept idle after this exchange; `None`: not at all.
    pub keep: Option<Duration>,
}

/// How a response body is delimited (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEnd {
    /// There is none.
    None,
    Length(u64),
    Chunked,
    /// By the orderly end of the connection.
    Close,
}

/// Reads one response, its interim ones first.
#[derive(Debug)]
pub struct Reader {
    asked: Asked,
    limits: Limits,
    scan: Scan,
    interims: u32,
    head_bytes: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
    Done,
}

impl Reader {
    pub fn new(asked: Asked, limits: Limits) -> Self {
        Self { asked, limits, scan: Scan::default(), interims: 0, head_bytes: 0, state: State::Head }
    }

    /// Reads on: how many bytes were taken, and what they came to. `bytes` begin with the first that was not taken; with
    /// [`Event::More`] while a head is incomplete none is, and the same bytes and more are given again.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), Fault> {
        match &mut self.state {
            State::Head => self.head(bytes),
            State::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 && taken == 0 {
                    self.state = State::Done;
                    return Ok((0, Event::End));
                }
                Ok((taken, data(taken)))
            }
            State::Chunked(chunked) => {
                let step = chunked.decode(bytes).map_err(Fault::from)?;
                if step.data > 0 || !chunked.is_done() {
                    return Ok((step.consumed, data(step.data)));
                }
                let trailers = chunked.take_trailers().map(of_trailer_section).filter(|fields| !fields.is_empty());
                self.state = State::Done;
                Ok((step.consumed, trailers.map_or(Event::End, Event::Trailers)))
            }
            State::UntilClose => Ok((bytes.len(), data(bytes.len()))),
            State::Done => Ok((0, Event::End)),
        }
    }

    /// The peer closed in an orderly way, and every byte before was taken. An error where that cuts the response off.
    pub fn close(&mut self) -> Result<(), Fault> {
        match self.state {
            State::UntilClose | State::Done | State::Length(0) => {
                self.state = State::Done;
                Ok(())
            }
            State::Head | State::Length(_) | State::Chunked(_) => Err(Fault::Truncated),
        }
    }

    /// The body has ended, and what comes next is not part of it.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Length(0))
    }

    /// Body bytes to come, where their number is known.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<(usize, Event), Fault> {
        let plain = if self.scan.scanned == 0 { read_plain(bytes, &self.limits) } else { None };
        let (end, (minor_version, status, fields)) = match plain {
            Some(read) => read,
            None => {
                let Some(lines) = self.scan.scan(bytes, &self.limits)? else { return Ok((0, Event::More)) };
                let end = self.scan.scanned;
                (end, parse(&bytes[..end], lines)?)
            }
        };
        self.scan = Scan::default();
        self.head_bytes += end;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.interims += 1;
            if self.interims > INTERIM_MAX || self.head_bytes > self.limits.header_bytes {
                return Err(Fault::Flood);
            }
            let mut fields = fields;
            hop::strip(&mut fields);
            return Ok((end, Event::Interim(status, fields)));
        }
        let head = vet(&self.asked, minor_version, status, fields)?;
        self.state = match head.body {
            BodyEnd::None => State::Done,
            BodyEnd::Length(length) => State::Length(length),
            BodyEnd::Chunked => State::Chunked(Box::new(Chunked::of_response(self.limits.header_count))),
            BodyEnd::Close => State::UntilClose,
        };
        Ok((end, Event::Final(head)))
    }
}

fn data(length: usize) -> Event {
    if length == 0 { Event::More } else { Event::Data(length) }
}

impl From<ChunkError> for Fault {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Malformed(reason) => Self::Malformed(reason),
            ChunkError::TooLarge => Self::Malformed("chunk-size"),
        }
    }
}

/// Looks for the end of a head; never looks at a byte twice, and what it says does not depend on how the bytes were
/// split. Refuses line ends that httparse would take.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    scanned: usize,
    line_start: usize,
    lines: usize,
}

impl Scan {
    /// How many field lines the head has, once it is whole; it ends at `scanned`.
    fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Fault> {
        let known = bytes.len().min(VERSION.len());
        if self.lines == 0 && bytes[..known] != VERSION[..known] {
            return Err(Fault::Malformed("status-line")); // HTTP/0.9, another protocol, an empty line, the body of a 1xx
        }
        while let Some(offset) = memchr(b'\n', &bytes[self.scanned..]) {
            let line_feed = self.scanned + offset;
            if line_feed >= limits.header_bytes {
                return Err(Fault::HeadTooLarge("header-bytes"));
            }
            if line_feed == 0 || bytes[line_feed - 1] != b'\r' {
                return Err(Fault::Malformed("bare-lf"));
            }
            self.scanned = line_feed + 1;
            if self.line_start == line_feed - 1 {
                return Ok(Some(self.lines - 1)); // not 0: the first line begins with the version
            }
            if matches!(bytes[self.line_start], b' ' | b'\t') {
                return Err(Fault::Malformed("obs-fold"));
            }
            if self.lines > limits.header_count {
                return Err(Fault::HeadTooLarge("header-count"));
            }
            self.lines += 1;
            self.line_start = self.scanned;
        }
        self.scanned = bytes.len();
        if bytes.len() > limits.header_bytes {
            return Err(Fault::HeadTooLarge("header-bytes"));
        }
        Ok(None)
    }
}

/// Minor version, status, fields.
type Read = (u8, StatusCode, Fields);

/// Reads a head at the beginning of `bytes` in one step; says how many bytes it has. `None` of one that is not whole yet or in
/// any way unusual, which says nothing against it: that is for [`Scan`] and [`parse`] to say. They take whatever is taken here,
/// and read it alike.
fn read_plain(bytes: &[u8], limits: &Limits) -> Option<(usize, Read)> {
    let (line, lines) = bytes.split_at_checked(memchr(b'\r', bytes)? + 2)?;
    let (version, rest) = line.strip_prefix(VERSION)?.split_at_checked(2)?;
    let minor_version = match version {
        b"0 " => 0,
        b"1 " => 1,
        _ => return None,
    };
    let (code, phrase) = rest.split_at_checked(3)?;
    let is_phrase = matches!(phrase, [b' ', text @ .., b'\r', b'\n'] if text.iter().all(|byte| matches!(byte, b' '..=b'~')));
    let status = StatusCode::from_bytes(code).ok().filter(|_| is_phrase)?;
    // With the line end before it the empty line is two line ends, also where there is no field; what comes behind is the body's.
    let from_line_end = &bytes[line.len() - 2..];
    let lines = &lines[..EMPTY_LINE.find(&from_line_end[..from_line_end.len().min(PLAIN_BYTES)])? + 2];
    let mut fields = Fields::with_capacity(lines.len() + ADDED_BYTES, USUAL_LINES + ADDED_LINES);
    let end = line.len() + fields.read_plain(lines)?;
    (end <= limits.header_bytes && fields.len() <= limits.header_count).then_some((end, (minor_version, status, fields)))
}

/// Reads a whole head.
fn parse(bytes: &[u8], lines: usize) -> Result<Read, Fault> {
    if lines <= LINES_ON_STACK {
        return read(bytes, &mut [const { MaybeUninit::uninit() }; LINES_ON_STACK]);
    }
    let mut room = Vec::new();
    room.resize_with(lines, MaybeUninit::uninit);
    read(bytes, &mut room)
}

fn read<'b>(bytes: &'b [u8], lines: &mut [MaybeUninit<httparse::Header<'b>>]) -> Result<Read, Fault> {
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, lines);
    let length = parsed.map_err(|error| Fault::Malformed(reason(error)))?;
    let (Some(minor_version), Some(code)) = (response.version, response.code) else { return Err(Fault::Malformed("status-line")) };
    if length != httparse::Status::Complete(bytes.len()) {
        return Err(Fault::Malformed("status-line"));
    }
    let status = StatusCode::from_u16(code).map_err(|_| Fault::Malformed("status-line"))?;
    let mut fields = Fields::with_capacity(bytes.len() + ADDED_BYTES, response.headers.len() + ADDED_LINES);
    for line in response.headers {
        fields.push(line.name, line.value).map_err(|error| {
            Fault::Malformed(match error {
                crate::semantics::fields::FieldError::Name => "field-name",
                _ => "field-value",
            })
        })?;
    }
    Ok((minor_version, status, fields))
}

const fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "field-name",
        httparse::Error::HeaderValue => "field-value",
        httparse::Error::NewLine => "bare-cr",
        httparse::Error::Version => "version",
        _ => "status-line",
    }
}

/// Checks what a head says of its body and its connection, and takes the fields of the connection out.
///
/// Refused: Content-Length that is no number or several ones, and with Transfer-Encoding (RFC 9112 §6.3: ought to be
/// handled as an error); Transfer-Encoding in HTTP/1.0 (§6.1); transfer codings that change the content and that nobody
/// asked for (we send no TE); 101 that was not asked for, or to another protocol (RFC 9110 §7.8, §15.2.2); 206 and 416 to a request without Range
/// (RFC 9110 §15.3.7, §15.5.17).
pub fn vet(asked: &Asked, minor_version: u8, status: StatusCode, mut fields: Fields) -> Result<Head, Fault> {
    match status {
        StatusCode::SWITCHING_PROTOCOLS if !asked.upgrade.as_ref().is_some_and(|asked| upgrade::is_answer_to(asked, &fields)) => {
            return Err(Fault::Malformed("unasked-101"));
        }
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if !asked.range => return Err(Fault::Malformed("unasked-range")),
        _ => {}
    }
    let without_body = asked.head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let declared = content_length(&fields)?;
    let coding = if without_body { Coding::None } else { transfer_coding(minor_version, &fields)? };
    if coding != Coding::None && declared.is_some() {
        return Err(Fault::Malformed("length-and-transfer-encoding"));
    }
    let body = match (coding, declared) {
        _ if without_body => BodyEnd::None,
        (Coding::Chunked, _) => BodyEnd::Chunked,
        (Coding::None, Some(length)) => BodyEnd::Length(length),
        (Coding::None | Coding::Unknown, _) => BodyEnd::Close,
    };
    let keep = if body != BodyEnd::Close && persists(minor_version, &fields) { keep_alive(&fields) } else { None };
    strip(&mut fields, status);
    if status == StatusCode::NO_CONTENT {
        fields.remove(name::CONTENT_LENGTH); // RFC 9110 §8.6: there must be none
    } else if let Some(length) = declared {
        write_length(&mut fields, length);
    }
    let length = declared.filter(|_| !without_body);
    Ok(Head { status, fields, length, body, keep })
}

/// Takes the fields of the connection out; a 101 keeps what it switches to.
fn strip(fields: &mut Fields, status: StatusCode) {
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return hop::strip(fields);
    }
    let protocols: Vec<Vec<u8>> = fields.values(name::UPGRADE).map(<[u8]>::to_vec).collect();
    hop::strip(fields);
    for protocol in protocols {
        let _ = fields.append(name::UPGRADE, protocol); // it was a field value before
    }
}

/// Fields of a trailer section, without those that belong to a head alone (RFC 9110 §6.5.1).
pub fn of_trailer_section(mut fields: Fields) -> Fields {
    hop::strip(&mut fields);
    fields.retain(|_, name, _| !matches!(name, b"content-length" | b"host" | b"content-encoding" | b"content-range" | b"content-type"));
    fields
}

/// Content-Length; the same number several times is one (RFC 9110 §8.6).
fn content_length(fields: &Fields) -> Result<Option<u64>, Fault> {
    let mut declared = None;
    for value in fields.values(name::CONTENT_LENGTH) {
        for member in value.split(|byte| *byte == b',') {
            let length = digits(trim(member)).ok_or(Fault::Malformed("content-length"))?;
            if declared.replace(length).is_some_and(|before| before != length) {
                return Err(Fault::Malformed("content-length-contradicts"));
            }
        }
    }
    Ok(declared)
}

/// Sees to it that Content-Length can be read in one way only.
fn write_length(fields: &mut Fields, length: u64) {
    let mut buffer = itoa::Buffer::new();
    let canonical = buffer.format(length);
    let mut values = fields.values(name::CONTENT_LENGTH);
    let is_canonical = values.next() == Some(canonical.as_bytes()) && values.next().is_none();
    drop(values);
    if !is_canonical {
        let _ = fields.set(name::CONTENT_LENGTH, canonical); // digits always fit
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    None,
    Chunked,
    /// A word that nobody knows: the body is what comes until the origin closes (RFC 9112 §6.3).
    Unknown,
}

/// The transfer coding. Known codings other than a single `chunked` would have to be undone, which nobody asked for.
fn transfer_coding(minor_version: u8, fields: &Fields) -> Result<Coding, Fault> {
    if !fields.has(name::TRANSFER_ENCODING) {
        return Ok(Coding::None);
    }
    if minor_version == 0 {
        return Err(Fault::Malformed("transfer-encoding-in-1.0"));
    }
    let mut coding = Coding::None;
    for word in fields.values(name::TRANSFER_ENCODING).flat_map(list) {
        let word = trim(word.split(|byte| *byte == b';').next().unwrap_or_default()).to_ascii_lowercase();
        coding = match (&word[..], coding) {
            (b"chunked", Coding::None) => Coding::Chunked,
            (b"chunked" | b"gzip" | b"x-gzip" | b"deflate" | b"compress" | b"x-compress", _) | (_, Coding::Chunked) => {
                return Err(Fault::Malformed("transfer-encoding"));
            }
            _ => Coding::Unknown,
        };
    }
    Ok(if coding == Coding::Chunked { coding } else { Coding::Unknown })
}

/// Whether the connection goes on (RFC 9112 §9.3). HTTP/1.0 never does here: what it means by keep-alive is not to be
/// relied upon through intermediaries (§C.2.2).
fn persists(minor_version: u8, fields: &Fields) -> bool {
    minor_version == 1 && !fields.values(name::CONNECTION).flat_map(list).any(|option| option.eq_ignore_ascii_case(b"close"))
}

/// How long the origin keeps an idle connection, less a margin; the longest duration where it does not say.
fn keep_alive(fields: &Fields) -> Option<Duration> {
    match fields.values(name::KEEP_ALIVE).flat_map(list).find_map(timeout) {
        None => Some(Duration::MAX),
        Some(seconds) => seconds.checked_sub(KEEP_ALIVE_MARGIN_S).filter(|kept| *kept > 0).map(Duration::from_secs),
    }
}

fn timeout(parameter: &[u8]) -> Option<u64> {
    let equals = memchr(b'=', parameter)?;
    let (name, value) = (trim(&parameter[..equals]), trim(&parameter[equals + 1..]));
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    name.eq_ignore_ascii_case(b"timeout").then(|| digits(value))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { header_bytes: 1000, header_count: 20 };
    const PLAIN: Asked = Asked { head: false, range: false, upgrade: None };

    /// All that a response came to, data joined.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Told {
        heads: Vec<(u16, Vec<u8>)>,
        last: Option<Head>,
        body: Vec<u8>,
        trailers: Vec<u8>,
        taken: usize,
        ended: bool,
    }

    /// Feeds `bytes` in pieces of `step`, then the end of the connection.
    fn told(asked: Asked, bytes: &[u8], step: usize) -> Result<Told, Fault> {
        let (mut reader, mut told, mut end) = (Reader::new(asked, LIMITS), Told::default(), 0);
        loop {
            let (taken, event) = reader.next(&bytes[told.taken..end])?;
            told.taken += taken;
            match event {
                Event::More if end == bytes.len() => break,
                Event::More => end = bytes.len().min(end.saturating_add(step.max(1))),
                Event::Interim(status, fields) => told.heads.push((status.as_u16(), fields.wire().to_vec())),
                Event::Final(head) => told.last = Some(head),
                Event::Data(data) => told.body.extend_from_slice(&bytes[told.taken - data..told.taken]),
                Event::Trailers(fields) => told.trailers = fields.wire().to_vec(),
                Event::End => {
                    told.ended = true;
                    return Ok(told);
                }
            }
        }
        reader.close()?;
        told.ended = true;
        Ok(told)
    }

    fn at_once(bytes: &[u8]) -> Result<Told, Fault> {
        told(PLAIN, bytes, usize::MAX)
    }

    fn vetted(status: u16, lines: &[(&str, &str)]) -> Result<Head, Fault> {
        vet(&PLAIN, 1, StatusCode::from_u16(status).unwrap(), fields(lines))
    }

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        fields
    }

    /// What is read in one step is what the scan and the parser make of it.
    fn is_read_alike(bytes: &[u8]) -> bool {
        let Some((end, (minor_version, status, fields))) = read_plain(bytes, &LIMITS) else { return true };
        let mut scan = Scan::default();
        let Ok(Some(lines)) = scan.scan(bytes, &LIMITS) else { return false };
        let Ok(parsed) = parse(&bytes[..scan.scanned], lines) else { return false };
        (end, minor_version, status) == (scan.scanned, parsed.0, parsed.1) && fields.iter().eq(parsed.2.iter())
    }

    #[test]
    fn heads_as_they_are_usually_written_are_read_in_one_step() {
        for head in
            ["HTTP/1.1 200 OK\r\nETag: \"a\"\r\nX-A: b\tc\r\nE: \r\n\r\n", "HTTP/1.0 404 Not Found\r\n\r\n", "HTTP/1.1 299 \r\n\r\n"]
        {
            let bytes = format!("{head}body");
            assert_eq!(read_plain(bytes.as_bytes(), &LIMITS).map(|(end, _)| end), Some(head.len()), "{head}");
            assert!(is_read_alike(bytes.as_bytes()), "{head}");
        }
        let long = |value: usize, lines: usize| format!("HTTP/1.1 200 OK\r\n{}v: {}\r\n\r\n", "a: b\r\n".repeat(lines), "v".repeat(value));
        let least = long(0, 0).len();
        assert!(read_plain(long(LIMITS.header_bytes - least, 0).as_bytes(), &LIMITS).is_some());
        assert!(read_plain(long(0, LIMITS.header_count - 1).as_bytes(), &LIMITS).is_some());
        for beyond in [long(LIMITS.header_bytes - least + 1, 0), long(0, LIMITS.header_count)] {
            assert_eq!(read_plain(beyond.as_bytes(), &LIMITS), None);
        }
    }

    proptest! {
        #[test]
        fn damaged_heads_are_read_alike_in_one_step(at in any::<prop::sample::Index>(), byte in prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), any::<u8>()]) {
            let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b\r\n\r\n".to_vec();
            *at.get_mut(&mut head[..]) = byte;
            prop_assert!(is_read_alike(&head));
            head[41] = b'b'; // where a space too many was
            prop_assert!(is_read_alike(&head));
        }
    }

    #[test]
    fn bodies_end_where_their_head_says() {
        let ok = |head: &str, rest: &str| {
            let read = at_once(format!("HTTP/1.1 200 OK\r\n{head}\r\n{rest}").as_bytes()).unwrap();
            (String::from_utf8(read.body).unwrap(), head.len() + 19 + rest.len() - read.taken)
        };
        assert_eq!(ok("Content-Length: 2\r\n", "ok and more"), ("ok".to_owned(), 9));
        assert_eq!(ok("Content-Length: 0\r\n", "more"), (String::new(), 4));
        assert_eq!(ok("", "all that comes"), ("all that comes".to_owned(), 0));
        assert_eq!(ok("Transfer-Encoding: word\r\n", "all"), ("all".to_owned(), 0));
        assert_eq!(ok("Transfer-Encoding: Chunked\r\n", "2\r\nok\r\n0\r\n\r\nmore"), ("ok".to_owned(), 4));
    }

    #[test]
    fn what_is_cut_off_never_ends() {
        for bytes in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 103 Early\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        ] {
            assert_eq!(at_once(bytes.as_bytes()), Err(Fault::Truncated), "{bytes:?}");
        }
    }

    #[test]
    fn heads_that_could_be_read_in_two_ways_are_refused() {
        for (bytes, reason) in [
            ("<html>", "status-line"),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", "status-line"),
            ("HTTP/2.0 200 OK\r\n\r\n", "status-line"),
            ("HTTP/1.2 200 OK\r\n\r\n", "version"),
            ("HTTP/1.1  200 OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 20 OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 2000 OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 099 OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 2xx OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 200 OK\n\r\n", "bare-lf"),
            ("HTTP/1.1 200 OK\r\nA: b\n\r\n", "bare-lf"),
            ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "field-value"),
            ("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n", "field-value"),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "field-name"),
            ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", "field-name"),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "field-name"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "obs-fold"),
            ("HTTP/1.1 200 OK\r\n A: b\r\n\r\n", "obs-fold"),
            ("HTTP/1.1 103 Early\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "status-line"),
            ("HTTP/1.1 206 Partial\r\n\r\n", "unasked-range"),
            ("HTTP/1.1 101 Switch\r\nUpgrade: x\r\n\r\n", "unasked-101"),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding-in-1.0"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n", "chunk-size"),
        ] {
            assert_eq!(at_once(bytes.as_bytes()).map(|told| told.taken), Err(Fault::Malformed(reason)), "{bytes:?}");
        }
    }

    #[test]
    fn floods_have_a_bound() {
        let interim = "HTTP/1.1 102 Processing\r\n\r\n";
        let last = "HTTP/1.1 204 No\r\n\r\n";
        assert_eq!(at_once([&interim.repeat(16), last].concat().as_bytes()).unwrap().heads.len(), 16);
        assert_eq!(at_once([&interim.repeat(17), last].concat().as_bytes()), Err(Fault::Flood));
        let long = format!("HTTP/1.1 103 Early\r\nA: {}\r\n\r\n", "b".repeat(600));
        assert!(at_once([&long, last].concat().as_bytes()).is_ok());
        assert_eq!(at_once([&long, &long, last].concat().as_bytes()), Err(Fault::Flood));
        let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        assert_eq!(at_once(head(&"a: b\r\n".repeat(21)).as_bytes()), Err(Fault::HeadTooLarge("header-count")));
        assert!(at_once(head(&"a: b\r\n".repeat(20)).as_bytes()).is_ok());
        assert_eq!(at_once(head(&"b".repeat(1000)).as_bytes()), Err(Fault::HeadTooLarge("header-bytes")));
    }

    #[test]
    fn framing_that_can_be_read_two_ways_is_refused() {
        for bad in [
            &[("content-length", "5"), ("content-length", "6")][..],
            &[("content-length", "5, 6")],
            &[("content-length", "+5")],
            &[("content-length", "")],
            &[("content-length", "5,")],
            &[("content-length", "99999999999999999999")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("content-length", "5"), ("transfer-encoding", "word")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "gzip")],
            &[("transfer-encoding", "chunked, word")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert!(matches!(vetted(200, bad), Err(Fault::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn repeated_equal_lengths_become_one() {
        for lines in [&[("content-length", "5"), ("content-length", "5, 05")][..], &[("content-length", "05")]] {
            let head = vetted(200, lines).unwrap();
            assert_eq!((head.length, head.fields.wire()), (Some(5), &b"content-length: 5\r\n"[..]));
        }
    }

    #[test]
    fn an_unknown_transfer_coding_ends_with_the_connection() {
        let head = vetted(200, &[("transfer-encoding", "word"), ("a", "b")]).unwrap();
        assert_eq!((head.length, head.body, head.keep, head.fields.wire()), (None, BodyEnd::Close, None, &b"a: b\r\n"[..]));
    }

    #[test]
    fn lengths_without_a_body_are_not_a_length_of_the_body() {
        let not_modified = vetted(304, &[("content-length", "10")]).unwrap();
        assert_eq!((not_modified.length, not_modified.keep), (None, Some(Duration::MAX)));
        assert!(vetted(204, &[("content-length", "10")]).unwrap().fields.is_empty());
        let asked = Asked { head: true, ..PLAIN };
        let to_head = vet(&asked, 1, StatusCode::OK, fields(&[("content-length", "10")])).unwrap();
        assert_eq!((to_head.length, to_head.fields.get(name::CONTENT_LENGTH)), (None, Some(&b"10"[..])));
    }

    #[test]
    fn answers_to_questions_that_were_not_asked_are_refused() {
        for status in [101, 206, 416] {
            assert!(vetted(status, &[("upgrade", "x"), ("content-length", "0")]).is_err(), "{status}");
        }
        let asked = Asked { range: true, upgrade: Some((*b"x").into()), ..PLAIN };
        for status in [StatusCode::SWITCHING_PROTOCOLS, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE] {
            let head = vet(&asked, 1, status, fields(&[("connection", "upgrade"), ("upgrade", "x")])).unwrap();
            assert_eq!(head.fields.has(name::UPGRADE), status == 101, "{status}");
        }
        for lines in [&[][..], &[("upgrade", "y")], &[("upgrade", "x, y")]] {
            assert!(vet(&asked, 1, StatusCode::SWITCHING_PROTOCOLS, fields(lines)).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn connections_are_kept_shorter_than_advertised() {
        let keep = |lines| vetted(200, lines).unwrap().keep;
        assert_eq!(keep(&[("content-length", "0")]), Some(Duration::MAX));
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "max=3, timeout=5")]), Some(Duration::from_secs(4)));
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "timeout = \"5\"")]), Some(Duration::from_secs(4)));
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "timeout=1")]), None);
        assert_eq!(keep(&[("content-length", "0"), ("keep-alive", "timeout=soon")]), Some(Duration::MAX));
        assert_eq!(keep(&[("content-length", "0"), ("connection", "x, Close")]), None);
        assert_eq!(keep(&[]), None);
        let old = vet(&PLAIN, 0, StatusCode::OK, fields(&[("content-length", "0"), ("connection", "keep-alive")]));
        assert_eq!(old.unwrap().keep, None);
    }

    #[test]
    fn trailers_are_kept_apart_and_those_of_heads_dropped() {
        let bytes = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 7\r\nContent-Length: 3\r\nContent-Type: a\r\n\r\n";
        let read = at_once(bytes.as_bytes()).unwrap();
        assert_eq!((read.trailers, read.taken), (b"x-sum: 7\r\n".to_vec(), bytes.len()));
    }

    fn asked() -> impl Strategy<Value = Asked> {
        any::<(bool, bool, bool)>().prop_map(|(head, range, upgrade)| Asked { head, range, upgrade: upgrade.then(|| (*b"x").into()) })
    }

    proptest! {
        #[test]
        fn any_bytes_split_anywhere_say_the_same(asked in asked(), start in 0usize..4, bytes in prop::collection::vec(prop_oneof![
            Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b'0'), Just(b'2'), any::<u8>()], 0..200), step in 1usize..40) {
            let begin = ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0 "][start];
            let bytes = [begin.as_bytes(), &bytes].concat();
            prop_assert_eq!(told(asked.clone(), &bytes, step), told(asked, &bytes, usize::MAX));
        }

        #[test]
        fn damaged_responses_split_anywhere_say_the_same(at in 0usize..220, byte in any::<u8>(), step in 1usize..40, asked in asked()) {
            let mut bytes = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nConnection: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                5;a=\"b\"\r\nhello\r\n006\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nHTTP/1.1 200 OK".to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            prop_assert_eq!(told(asked.clone(), &bytes, step), told(asked, &bytes, usize::MAX));
        }

        #[test]
        fn no_head_panics_and_lengths_are_believed_only_alone(
            status in 100u16..1000, length in "[0-9, +]{0,12}", coding in proptest::option::of("[a-z,; ]{0,12}"), keep in "[ -~]{0,20}",
        ) {
            let mut lines = vec![("content-length", length.as_str()), ("keep-alive", &keep)];
            lines.extend(coding.as_deref().map(|coding| ("transfer-encoding", coding)));
            if let Ok(Head { length: Some(_), .. }) = vetted(status, &lines) {
                prop_assert!(coding.is_none());
            }
        }

        #[test]
        fn what_was_written_is_read(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..9), chunked: bool, step in 1usize..60) {
            let (body, mut wire) = (pieces.concat(), b"HTTP/1.1 200 OK\r\nX: y\r\n".to_vec());
            if chunked {
                wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in &pieces {
                    wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    wire.extend_from_slice(piece);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\n\r\n");
            } else {
                wire.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                wire.extend_from_slice(&body);
            }
            let length = wire.len();
            wire.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            let read = told(PLAIN, &wire, step).unwrap();
            prop_assert_eq!((read.body, read.taken, read.ended), (body, length, true));
        }
    }
}
