//! A whole client connection on bytes, without a socket: what the handler is asked, what goes out, and that it ends. For the
//! fuzz target and for the test of the same property. The method picks what the handler does.

use super::arrival::Arrival;
use bytes::Bytes;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tiercel::body::{Chunk, ResponseBody};
use tiercel::config::settings::Limits;
use tiercel::http1::response::{self, Asked, Event, Reader};
use tiercel::listener::http1::serve;
use tiercel::listener::{Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent, Socket};
use tiercel::proxy::outcome::Outcome;
use tiercel::semantics::{Fields, Method, StatusCode, name};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// By the paused clock: beyond every time-out together.
const FOR_EVER: Duration = Duration::from_secs(3600);

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without sockets"));
}

/// What became of a connection: all that may not depend on how its bytes came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Head of each request that the handler was asked, and its body where the handler read it to the end.
    pub requests: Vec<(String, Option<Vec<u8>>)>,
    pub reports: Vec<Report>,
    pub answers: Vec<Answer>,
    /// The first request with Upgrade. What follows it is read as HTTP only where it came after the answer.
    upgrade: Option<usize>,
}

/// How the handler was told that a request is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub status: u16,
    reason: String,
    to_head: bool,
}

/// An answer as the client reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    head: String,
    body: Vec<u8>,
    trailers: Vec<u8>,
    whole: bool,
}

/// Serves one connection on which `data` comes, and then the end.
pub fn connection(data: &[u8], arrival: Arrival) -> Told {
    let wire = Wire { input: data.to_vec(), taken: 0, arrival, paused: false, output: Arc::default() };
    let (handler, output) = (Arc::new(Scripted::default()), Arc::clone(&wire.output));
    let (_drain, draining) = watch::channel(false);
    let ended = RUNTIME.with_borrow(|runtime| {
        let served = serve(wire, peer(), Arc::new(limits()), Arc::clone(&handler), draining);
        runtime.block_on(async { tokio::time::timeout(FOR_EVER, served).await.is_ok() })
    });
    assert!(ended, "the connection hangs");
    let mut told = std::mem::take(&mut *handler.told());
    told.answers = read_answers(&output.lock().expect("no panic"), &told.reports);
    if let Some(at) = told.upgrade {
        told.requests.truncate(at);
        told.reports.truncate(at);
        told.answers.truncate(at);
    }
    told
}

/// Reads what went out, one answer for each report and nothing else.
fn read_answers(mut bytes: &[u8], reports: &[Report]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for report in reports {
        assert!(answers.last().is_none_or(|answer: &Answer| answer.whole), "an answer behind one that was cut");
        let (length, status, answer) = read_answer(bytes, report.to_head);
        assert_eq!(status, report.status);
        assert!(answer.whole != report.reason.starts_with("aborted"), "{report:?}: {answer:?}");
        bytes = &bytes[length..];
        answers.push(answer);
    }
    assert!(bytes.is_empty(), "behind the last answer: {}", bytes.escape_ascii());
    answers
}

fn read_answer(bytes: &[u8], to_head: bool) -> (usize, u16, Answer) {
    let asked = Asked { head: to_head, ..Asked::default() };
    let mut reader = Reader::new(asked, response::Limits { header_bytes: 1 << 16, header_count: 64 });
    let (mut taken, mut status) = (0, 0);
    let mut answer = Answer { head: String::new(), body: Vec::new(), trailers: Vec::new(), whole: false };
    loop {
        let (length, event) = reader.next(&bytes[taken..]).expect("what we send is well formed");
        taken += length;
        match event {
            Event::More => break,
            Event::Interim(..) => {} // 100, which is sent only where the body was not there yet
            Event::Final(mut head) => {
                head.fields.remove(name::DATE);
                status = head.status.as_u16();
                answer.head = format!("{head:?}");
            }
            Event::Data(data) => answer.body.extend_from_slice(&bytes[taken - data..taken]),
            Event::Trailers(fields) => answer.trailers = fields.wire().to_vec(),
            Event::End => {
                answer.whole = true;
                return (taken, status, answer);
            }
        }
    }
    answer.whole = reader.close().is_ok();
    (taken, status, answer)
}

/// The client's side: bytes come in pieces, with pauses between them or without, and are taken so too.
struct Wire {
    input: Vec<u8>,
    taken: usize,
    arrival: Arrival,
    paused: bool,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Socket for Wire {}

impl Wire {
    /// Pending every other time, where pieces are uneven or there are two.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        self.paused = !self.paused && matches!(self.arrival, Arrival::Uneven(_) | Arrival::Split(_));
        if self.paused {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.arrival.piece())
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let piece = ready!(self.poll_piece(context)).min(buffer.remaining()).min(self.input.len() - self.taken);
        buffer.put_slice(&self.input[self.taken..self.taken + piece]);
        self.taken += piece;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let piece = ready!(self.poll_piece(context)).min(bytes.len());
        self.output.lock().expect("no panic").extend_from_slice(&bytes[..piece]);
        Poll::Ready(Ok(piece))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// POST reads the body, then answers; PUT answers with the body as it comes; all else leaves the body alone.
#[derive(Default)]
struct Scripted(Mutex<Told>);

impl Scripted {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("no panic")
    }

    async fn read_whole(self: Arc<Self>, at: usize, mut body: RequestBody) -> Response {
        let mut bytes = Vec::new();
        while let RequestBody::Stream { stream, .. } = &mut body
            && let Some(chunk) = poll_fn(|context| stream.as_mut().poll_chunk(context)).await
        {
            match chunk {
                Ok(Chunk::Data(data)) => bytes.extend_from_slice(&data),
                Ok(Chunk::Trailers(fields)) => bytes.extend_from_slice(fields.wire()),
                Err(_) => return answer(ResponseBody::Empty),
            }
        }
        self.told().requests[at].1 = Some(bytes);
        answer(ResponseBody::Empty)
    }
}

impl Handler for Scripted {
    fn handle(self: &Arc<Self>, _: &Peer, head: &RequestHead, body: RequestBody, _: &mut InterimSlot) -> Handled {
        let mut told = self.told();
        let at = told.requests.len();
        told.requests.push((format!("{head:?}"), None));
        if head.fields.has(name::UPGRADE) {
            told.upgrade.get_or_insert(at);
        }
        drop(told);
        match (&head.method, body) {
            (&Method::POST, body) => Handled::later(Arc::clone(self).read_whole(at, body)),
            (&Method::PUT, RequestBody::Stream { length, stream }) => Handled::Ready(answer(ResponseBody::Stream { length, stream })),
            _ => Handled::Ready(answer(ResponseBody::Full(Bytes::from_static(b"hello")))),
        }
    }

    fn finished(&self, _: &Peer, head: &RequestHead, _: &Outcome, sent: &Sent) {
        let reason = sent.aborted.map_or_else(String::new, |error| format!("aborted: {error}"));
        self.told().reports.push(Report { status: sent.status.as_u16(), reason, to_head: head.method == Method::HEAD });
    }

    fn refused(&self, _: &Peer, head: Option<&RequestHead>, refusal: Refusal, _: u64) {
        let to_head = head.is_some_and(|head| head.method == Method::HEAD);
        self.told().reports.push(Report { status: refusal.status, reason: refusal.reason.into(), to_head });
    }
}

fn answer(body: ResponseBody) -> Response {
    let fields = ResponseFields::Own(Fields::new());
    Response { status: StatusCode::OK, fields, body, close: false, outcome: Outcome::default() }
}

fn peer() -> Peer {
    let nobody = ([127, 0, 0, 1], 0).into();
    Peer::plain(nobody, nobody, 0, "fuzz")
}

/// Small enough for every bound on bytes to be reached.
fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits {
        requests_per_connection: 8,
        header_bytes: 1024,
        header_count: 8,
        url_bytes: 256,
        body_bytes: 256,
        header_timeout: second,
        idle_timeout: second,
        body_timeout: second,
        body_rate: 100,
        write_timeout: second,
        ..Limits::default()
    }
}
