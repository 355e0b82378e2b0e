//! Well-formed requests mean the same to this connection and to hyper's server: method, target, fields, body, which of
//! several pipelined ones are answered, and how the answers are framed.

use crate::support::scripted;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::select;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tiercel::body::{Chunk, ResponseBody};
use tiercel::config::settings::Limits;
use tiercel::listener::{Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent, http1};
use tiercel::proxy::outcome::Outcome;
use tiercel::semantics::{Fields, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn well_formed_requests_mean_the_same_to_hyper(requests in prop::collection::vec(request(), 1..4), step in 1usize..400) {
        let requests = last_one_closes(requests);
        let answered = 1 + requests.iter().position(|request| !request.persists()).expect("the last one");
        let expected: Vec<Parsed> = requests[..answered].iter().map(Request::parsed).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ours, theirs) = runtime.block_on(async { (talk(&requests, step, serve_ours).await, talk(&requests, step, serve_hypers).await) });
        prop_assert_eq!(&theirs.parsed, &expected, "hyper");
        prop_assert_eq!(&ours.parsed, &expected, "ours");
        prop_assert_eq!(ours.answers, theirs.answers);
    }
}

// ---- requests ----

#[derive(Debug, Clone)]
struct Request {
    method: String,
    target: String,
    minor_version: u8,
    /// What Connection says.
    connection: Option<&'static str>,
    expects: bool,
    fields: Vec<Field>,
    body: Body,
}

#[derive(Debug, Clone)]
struct Field {
    name: String,
    value: Vec<u8>,
    /// White space before and behind the value (RFC 9112 §5.1).
    space: (&'static str, &'static str),
}

#[derive(Debug, Clone)]
enum Body {
    None,
    Length(Vec<u8>),
    /// Pieces with their chunk extensions, and trailer fields.
    Chunked(Vec<(Vec<u8>, &'static str)>, Vec<Field>),
}

/// A request as a server understood it; fields sorted by name, their names in lower case.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    method: String,
    target: String,
    minor_version: u8,
    fields: Vec<(String, Vec<u8>)>,
    body: Result<Vec<u8>, String>,
    trailers: Vec<(String, Vec<u8>)>,
}

fn request() -> impl Strategy<Value = Request> {
    let method = prop_oneof![
        3 => select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PURGE", "TRACE"]).prop_map(str::to_owned),
        1 => "[A-Z][a-zA-Z0-9!#$%&'*+.^_`|~-]{0,15}".prop_filter("a tunnel", |method| method != "CONNECT"),
    ];
    let target = prop_oneof![
        6 => "/([a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2}){0,60}(\\?[a-zA-Z0-9._~!$&'()*+,;=:@/?-]{0,40})?",
        1 => "http://[a-z0-9]{1,10}\\.example(:[1-9][0-9]{1,3})?/[a-z0-9/]{0,20}(\\?[a-z=&]{0,10})?",
    ];
    let version = prop_oneof![4 => Just(1u8), 1 => Just(0u8)];
    let connection = prop_oneof![
        3 => Just(None),
        2 => select(vec!["keep-alive", "Keep-Alive, x-first", "close", "Close", "x-a, close"]).prop_map(Some),
    ];
    let fields = prop::collection::vec(field(), 0..12);
    (method, target, version, connection, prop::bool::weighted(0.1), fields, body()).prop_map(
        |(method, target, minor_version, connection, expects, fields, body)| {
            let body = match body {
                // RFC 9112 §6.1: HTTP/1.0 knows no transfer codings.
                Body::Chunked(pieces, _) if minor_version == 0 => Body::Length(pieces.into_iter().flat_map(|piece| piece.0).collect()),
                body => body,
            };
            let expects = expects && minor_version > 0 && !matches!(body, Body::None);
            let (method, target) = if method == "OPTIONS" && target.len() % 3 == 0 { (method, "*".into()) } else { (method, target) };
            Request { method, target, minor_version, connection, expects, fields, body }
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..600);
    let extension = select(vec!["", "", "", ";a", ";a=b", ";a=\"b;c\";d"]);
    let piece = (prop::collection::vec(any::<u8>(), 1..300), extension);
    let trailers = prop::collection::vec(field_named("x-t-[a-z]{1,8}"), 0..3);
    prop_oneof![
        3 => Just(Body::None),
        3 => bytes().prop_map(Body::Length),
        3 => (prop::collection::vec(piece, 0..5), trailers).prop_map(|(pieces, trailers)| Body::Chunked(pieces, trailers)),
    ]
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        field_named("(Accept|accept-encoding|COOKIE|Cache-Control|If-None-Match|Range|User-Agent|Via|X-Forwarded-For|DNT)"),
        field_named("[xX]-[a-zA-Z0-9!#$%&'*+.^_`|~-]{0,24}"),
    ]
}

/// Values are visible characters and obs-text with inner white space (RFC 9110 §5.5), or empty.
fn field_named(name: &'static str) -> impl Strategy<Value = Field> {
    let visible = || prop_oneof![5 => 0x21u8..=0x7e, 1 => 0x80u8..=0xff];
    let inner = prop_oneof![8 => 0x21u8..=0x7e, 1 => 0x80u8..=0xff, 1 => Just(b' '), 1 => Just(b'\t')];
    let value = prop_oneof![
        1 => Just(Vec::new()),
        6 => (visible(), prop::collection::vec(inner, 0..60), visible()).prop_map(|(first, inner, last)| [&[first], &inner[..], &[last]].concat()),
    ];
    let space = select(vec![(" ", ""), ("", ""), ("\t", " "), ("  \t", "\t ")]);
    (name, value, space).prop_map(|(name, value, space)| Field { name, value, space })
}

/// So that the connection ends, and everything that was said is there.
fn last_one_closes(mut requests: Vec<Request>) -> Vec<Request> {
    if let Some(last) = requests.last_mut() {
        last.connection = Some("close");
    }
    requests
}

impl Request {
    /// RFC 9112 §9.3.
    fn persists(&self) -> bool {
        let says = |option: &str| self.connection.is_some_and(|value| value.to_ascii_lowercase().split(", ").any(|one| one == option));
        !says("close") && (self.minor_version > 0 || says("keep-alive"))
    }

    /// All field lines, framing included.
    fn lines(&self) -> Vec<Field> {
        let line = |name: &str, value: String| Field { name: name.into(), value: value.into(), space: (" ", "") };
        let mut lines = vec![line("Host", "bench.example".into())];
        lines.extend(self.fields.iter().cloned());
        lines.extend(self.connection.map(|value| line("Connection", value.into())));
        lines.extend(self.expects.then(|| line("Expect", "100-continue".into())));
        match &self.body {
            Body::None => {}
            Body::Length(bytes) => lines.push(line("Content-Length", bytes.len().to_string())),
            Body::Chunked(..) => lines.push(line("Transfer-Encoding", "chunked".into())),
        }
        lines
    }

    fn wire(&self) -> Vec<u8> {
        let mut wire = format!("{} {} HTTP/1.{}\r\n", self.method, self.target, self.minor_version).into_bytes();
        write_lines(&mut wire, &self.lines());
        match &self.body {
            Body::None => {}
            Body::Length(bytes) => wire.extend_from_slice(bytes),
            Body::Chunked(pieces, trailers) => {
                for (piece, extension) in pieces {
                    wire.extend(format!("{:X}{extension}\r\n", piece.len()).bytes());
                    wire.extend_from_slice(piece);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\n");
                write_lines(&mut wire, trailers);
            }
        }
        wire
    }

    /// What a server should make of it.
    fn parsed(&self) -> Parsed {
        let pairs = |lines: &[Field]| sorted(lines.iter().map(|line| (line.name.to_ascii_lowercase(), line.value.clone())));
        let (body, trailers) = match &self.body {
            Body::None => (Vec::new(), Vec::new()),
            Body::Length(bytes) => (bytes.clone(), Vec::new()),
            Body::Chunked(pieces, trailers) => (pieces.iter().flat_map(|piece| piece.0.clone()).collect(), pairs(trailers)),
        };
        let (method, target, minor_version) = (self.method.clone(), self.target.clone(), self.minor_version);
        Parsed { method, target, minor_version, fields: pairs(&self.lines()), body: Ok(body), trailers }
    }
}

fn write_lines(wire: &mut Vec<u8>, lines: &[Field]) {
    for Field { name, value, space } in lines {
        wire.extend([name.as_bytes(), b":", space.0.as_bytes(), value, space.1.as_bytes(), b"\r\n"].concat());
    }
    wire.extend_from_slice(b"\r\n");
}

/// By name; lines of one name stay in order.
fn sorted(fields: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields.into_iter().collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

// ---- the client ----

type Shared = Arc<Mutex<Vec<Parsed>>>;

/// What came of a conversation.
struct Said {
    parsed: Vec<Parsed>,
    answers: Vec<Answer>,
}

/// A final answer, as far as both servers should agree.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: String,
    length: Option<String>,
    /// Whether the connection goes on, as the version and Connection of the answer say (RFC 9112 §9.3).
    persists: bool,
    body: Vec<u8>,
}

/// Sends all requests, `step` bytes at a time, whatever is answered, and listens to the end.
async fn talk<F>(requests: &[Request], step: usize, serve: impl FnOnce(DuplexStream, Shared) -> F) -> Said
where
    F: Future<Output = ()> + Send + 'static,
{
    let parsed = Shared::default();
    let (client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(serve(server, Arc::clone(&parsed)));
    let (mut reading, mut writing) = tokio::io::split(client);
    let wire: Vec<u8> = requests.iter().flat_map(Request::wire).collect();
    let mut heard = Vec::new();
    let send = async {
        for piece in wire.chunks(step) {
            if writing.write_all(piece).await.is_err() {
                return; // a server may leave once it has answered what it wants to
            }
            tokio::task::yield_now().await;
        }
    };
    let all = async { tokio::join!(send, reading.read_to_end(&mut heard)).1 };
    tokio::time::timeout(PATIENCE, all).await.expect("the connection ends").expect("an orderly end");
    drop((reading, writing));
    tokio::time::timeout(PATIENCE, serving).await.expect("the server ends").expect("no panic");
    let parsed = std::mem::take(&mut *parsed.lock());
    Said { parsed, answers: answers(requests, &heard) }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn answers(requests: &[Request], mut heard: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !heard.is_empty() {
        let (head, rest) = split_once(heard, b"\r\n\r\n");
        heard = rest;
        let head = std::str::from_utf8(head).expect("an ASCII head");
        let status = head.split(' ').nth(1).expect("a status").to_owned();
        if status.starts_with('1') {
            continue;
        }
        let value = |name: &str| {
            let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
            lines.find(|line| line.0.eq_ignore_ascii_case(name)).map(|line| line.1.to_ascii_lowercase())
        };
        let (length, connection) = (value("content-length"), value("connection"));
        let persists =
            connection.as_deref() != Some("close") && (!head.starts_with("HTTP/1.0") || connection.as_deref() == Some("keep-alive"));
        let to_head = requests[answers.len()].method == "HEAD";
        let bytes = if to_head { 0 } else { length.as_ref().expect("a length").parse().expect("a number") };
        let (body, rest) = heard.split_at_checked(bytes).expect("a whole body");
        heard = rest;
        answers.push(Answer { status, length, persists, body: body.to_vec() });
    }
    answers
}

fn split_once<'a>(bytes: &'a [u8], end: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = bytes.windows(end.len()).position(|window| window == end).expect("a whole head");
    (&bytes[..at], &bytes[at + end.len()..])
}

// ---- the servers: both tell what they understood, and answer with a summary ----

fn summary(parsed: &Parsed) -> String {
    let bytes = parsed.body.as_ref().map_or(0, Vec::len);
    format!("{} {} with {} fields and {bytes} bytes", parsed.method, parsed.target, parsed.fields.len())
}

struct Echo(Shared);

async fn serve_ours(stream: DuplexStream, parsed: Shared) {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let peer = Peer::plain(address, address, 0, "test");
    let drain = watch::Sender::new(false);
    http1::serve(stream, peer, Arc::new(limits()), Arc::new(Echo(parsed)), drain.subscribe()).await;
}

impl Handler for Echo {
    fn handle(self: &Arc<Self>, _: &Peer, head: &RequestHead, mut body: RequestBody, _: &mut InterimSlot) -> Handled {
        let (head, told) = (head.clone(), Arc::clone(&self.0));
        Handled::later(async move {
            let (mut bytes, mut trailers) = (Ok(Vec::new()), Vec::new());
            while let (RequestBody::Stream { stream, .. }, Ok(sofar)) = (&mut body, &mut bytes) {
                match poll_fn(|context| stream.as_mut().poll_chunk(context)).await {
                    Some(Ok(Chunk::Data(data))) => sofar.extend_from_slice(&data),
                    Some(Ok(Chunk::Trailers(fields))) => trailers = pairs(&fields),
                    Some(Err(error)) => bytes = Err(error.to_string()),
                    None => break,
                }
            }
            let parsed = Parsed {
                method: head.method.to_string(),
                target: String::from_utf8(head.target).expect("ASCII"),
                minor_version: head.minor_version,
                fields: pairs(&head.fields),
                body: bytes,
                trailers,
            };
            let body = ResponseBody::Full(summary(&parsed).into());
            told.lock().push(parsed);
            Response { status: StatusCode::OK, fields: ResponseFields::Own(Fields::new()), body, close: false, outcome: Outcome::default() }
        })
    }
    fn finished(&self, _: &Peer, _: &RequestHead, _: &Outcome, _: &Sent) {}
    fn refused(&self, _: &Peer, _: Option<&RequestHead>, _: Refusal, _: u64) {}
}

fn pairs(fields: &Fields) -> Vec<(String, Vec<u8>)> {
    sorted(fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())))
}

fn limits() -> Limits {
    Limits {
        requests_per_connection: 100,
        header_bytes: 32 * 1024,
        url_bytes: 8192,
        body_bytes: 1 << 20,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        body_timeout: PATIENCE,
        write_timeout: PATIENCE,
        ..scripted::limits()
    }
}

async fn serve_hypers(stream: DuplexStream, parsed: Shared) {
    let service = hyper::service::service_fn(move |request| answer_by_hyper(request, Arc::clone(&parsed)));
    // An error is seen by the client: its answers are not whole.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer_by_hyper(request: http::Request<hyper::body::Incoming>, told: Shared) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let (body, trailers) = match body.collect().await {
        Ok(whole) => {
            let trailers = whole.trailers().map(header_pairs).unwrap_or_default();
            (Ok(whole.to_bytes().to_vec()), trailers)
        }
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    let parsed = Parsed {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        minor_version: u8::from(head.version == http::Version::HTTP_11),
        fields: header_pairs(&head.headers),
        body,
        trailers,
    };
    let answer = http::Response::new(Full::from(summary(&parsed)));
    told.lock().push(parsed);
    Ok(answer)
}

fn header_pairs(headers: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    sorted(headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())))
}
