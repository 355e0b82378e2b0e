//! One request of HTTP/2 or 3 and its answer, without what is said on the wire: from its head to the last byte that goes out.

use super::{Shared, request};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody, Tunnel};
use crate::clock;
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::{Handled, Handler, InterimSlot, Later, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use crate::semantics::{StatusCode, date, name, proxy_status};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::request::Parts;
use http::{HeaderMap, Method};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

/// The client reset the stream before there was an answer. No such status goes out; it names the case in log and metrics.
const CLIENT_LEFT: Refusal = Refusal { status: 499, reason: "client-left" };
/// A handler that panicked: its request fails, nothing else.
const PANIC: Refusal = Refusal { status: 500, reason: "panic" };
/// An upstream that answers a request for a tunnel as if it had been none: as an answer of ours that would say that there is
/// one (RFC 8441 §5).
const DECLINED: Refusal = Refusal { status: 502, reason: "upgrade-declined" };
/// An answer that does not fit HTTP/2.
const UNFIT: Refusal = Refusal { status: 502, reason: "response-unfit" };

/// The head of an answer, and its body.
pub(in crate::listener) struct Answer<H: Handler> {
    pub head: http::Response<()>,
    pub body: Outgoing<H>,
}

/// What came of a request so far.
pub(in crate::listener) enum Asked<H: Handler> {
    Answered(Answer<H>),
    Later(Waiting<H>),
}

/// A request under way. Dropping it drops all work for it.
pub(in crate::listener) struct Waiting<H: Handler> {
    report: Report<H>,
    response: Later,
    interims: InterimSlot,
    is_connect: bool,
}

/// Has a request handled, whatever it came by; what can be answered at once is.
pub(in crate::listener) fn ask<H: Handler>(
    shared: &Arc<Shared<H>>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Limits) -> Result<RequestBody, Refusal>,
) -> Asked<H> {
    let (mut report, is_connect, mut interims) = (Report::new(shared), parts.method == Method::CONNECT, InterimSlot::default());
    match handle(&mut report, parts, body, &mut interims) {
        Ok(Handled::Later(response)) => Asked::Later(Waiting { report, response, interims, is_connect }),
        Ok(Handled::Ready(response)) => Asked::Answered(answer(report, Ok(response), interims, is_connect)),
        Err(refusal) => Asked::Answered(answer(report, Err(refusal), interims, is_connect)),
    }
}

fn handle<H: Handler>(
    report: &mut Report<H>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Limits) -> Result<RequestBody, Refusal>,
    interims: &mut InterimSlot,
) -> Result<Handled, Refusal> {
    let shared = &*report.shared;
    let head = report.head.insert(request::head(&parts, &shared.limits)?);
    let body = body(head, &shared.limits)?;
    drop(parts);
    catch_unwind(AssertUnwindSafe(|| shared.handler.handle(&shared.peer, head, body, interims))).map_err(|_| PANIC)
}

impl<H: Handler> Waiting<H> {
    /// The answer, when it is there.
    pub async fn answer(mut self) -> Answer<H> {
        let response = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| self.response.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(PANIC)),
        });
        let response = response.await;
        answer(self.report, response.map(|response| *response), self.interims, self.is_connect)
    }
}

fn answer<H: Handler>(report: Report<H>, response: Result<Response, Refusal>, mut interims: InterimSlot, is_connect: bool) -> Answer<H> {
    if response.is_ok() {
        while interims.take_one() {
            report.shared.handler.bound(Bound::InterimDropped);
        }
    }
    match response {
        Ok(Response { status, fields, body: ResponseBody::Tunnel(tunnel), outcome, .. }) if is_connect && status == 101 => {
            open(report, &fields, outcome, tunnel)
        }
        Ok(Response { status, .. }) if is_connect && status.is_success() => refuse(report, DECLINED),
        Ok(response) => begin(report, response),
        Err(refusal) => refuse(report, refusal),
    }
}

/// 200, where HTTP/1.1 has 101 (RFC 8441 §5): from then on the stream is a tunnel, until both sides ended it. Nobody waits for the
/// client meanwhile.
fn open<H: Handler>(mut report: Report<H>, fields: &ResponseFields, outcome: Outcome, tunnel: Box<dyn Tunnel>) -> Answer<H> {
    let Some(mut headers) = headers(fields) else { return refuse(report, UNFIT) };
    headers.remove(SEC_WEBSOCKET_ACCEPT);
    headers.remove(CONTENT_LENGTH);
    report.answer = Some((StatusCode::OK, outcome));
    Answer { head: head(StatusCode::OK, headers), body: Outgoing { source: Source::Tunnel(tunnel), left: None, report } }
}

fn head(status: StatusCode, headers: HeaderMap) -> http::Response<()> {
    let mut head = http::Response::new(());
    (*head.status_mut(), *head.headers_mut()) = (status, headers);
    head
}

fn begin<H: Handler>(mut report: Report<H>, response: Response) -> Answer<H> {
    let Response { status, fields, body, outcome, .. } = response;
    let to_head = report.head.as_ref().is_some_and(|head| head.method == Method::HEAD);
    let bodiless = to_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let length = if bodiless { Some(0) } else { body.length() };
    let source = match body {
        // Who does not ask for a tunnel as HTTP/2 has it does not get one: 101 is unknown to it.
        ResponseBody::Tunnel(_) => return refuse(report, UNFIT),
        _ if bodiless => Source::Done,
        ResponseBody::Empty => Source::Done,
        ResponseBody::Full(bytes) => Source::Full(bytes),
        ResponseBody::Stored { body, start, end } => Source::Stored { body, start, end },
        ResponseBody::Stream { stream, .. } => Source::Stream(stream),
    };
    let Some(mut headers) = headers(&fields) else { return refuse(report, UNFIT) };
    match length {
        _ if status == StatusCode::NO_CONTENT => drop(headers.remove(CONTENT_LENGTH)),
        Some(length) if !bodiless => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        None => drop(headers.remove(CONTENT_LENGTH)),
        Some(_) => {}
    }
    report.answer = Some((status, outcome));
    report.waits_for_us(false);
    if matches!(source, Source::Done) {
        report.finish(None);
    }
    Answer { head: head(status, headers), body: Outgoing { source, left: length, report } }
}

/// The answer to a request that the connection itself refuses.
fn refuse<H: Handler>(mut report: Report<H>, refusal: Refusal) -> Answer<H> {
    report.refuse(refusal);
    report.waits_for_us(false);
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let text = format!("{} {}: {}\n", status.as_str(), status.canonical_reason().unwrap_or("Refused"), refusal.reason);
    let member = proxy_status::member(&report.shared.handler.name(), refusal.error(), Some(refusal.reason));
    let to_head = report.head.as_ref().is_some_and(|head| head.method == Method::HEAD);
    let source = if to_head { Source::Done } else { Source::Full(Bytes::from(text)) };
    let mut headers = HeaderMap::new();
    http2::append(&mut headers, DATE.as_str().as_bytes(), &date::format(clock::now().wall_ms));
    http2::append(&mut headers, name::PROXY_STATUS.as_str().as_bytes(), &member);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Answer { head: head(status, headers), body: Outgoing { source, left: None, report } }
}

/// All lines of an answer; `None` where one fits no section.
fn headers(fields: &ResponseFields) -> Option<HeaderMap> {
    let (fields, extra) = match fields {
        ResponseFields::Stored { stored, extra } => (&stored.fields, &extra[..]),
        ResponseFields::Own(fields) => (fields, &[][..]),
    };
    let mut headers = HeaderMap::with_capacity(fields.len() + EXTRA_LINES);
    http2::append_block(&mut headers, &Bytes::from([fields.wire(), extra].concat())).then_some(headers)
}

/// Lines for which there is room at once beside those of a stored response.
const EXTRA_LINES: usize = 6;

enum Source {
    Done,
    Full(Bytes),
    Stored { body: Arc<StoredBody>, start: u64, end: u64 },
    Stream(Pin<Box<dyn BodyStream>>),
    Tunnel(Box<dyn Tunnel>),
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        match self {
            Self::Done | Self::Tunnel(_) => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Done;
                Poll::Ready(Some(Ok(Chunk::Data(bytes))))
            }
            Self::Stored { body, .. } if body.is_revoked() => Poll::Ready(Some(Err(BodyError::Detached))),
            Self::Stored { body, start, end } => {
                let piece = piece(body, *start, *end);
                *start += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                Poll::Ready(piece.map(|piece| Ok(Chunk::Data(piece))))
            }
            // A source that panics is one that failed.
            Self::Stream(stream) => {
                catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_chunk(context))).unwrap_or(Poll::Ready(Some(Err(BodyError::Reset))))
            }
        }
    }
}

/// The next bytes of a stored body: the rest of the segment in which they begin.
fn piece(body: &StoredBody, start: u64, end: u64) -> Option<Bytes> {
    let mut skipped = 0;
    for segment in body.segments() {
        let length = segment.len() as u64;
        if start < skipped + length && start < end {
            return Some(segment.slice((start - skipped) as usize..(end - skipped).min(length) as usize));
        }
        skipped += length;
    }
    None
}

/// The body of an answer, as its stream takes it. Where it does not end as it should the stream is to be reset (P4).
pub(in crate::listener) struct Outgoing<H: Handler> {
    source: Source,
    /// Bytes that are to come, where that is known.
    left: Option<u64>,
    report: Report<H>,
}

/// A piece of a body that goes out.
pub(in crate::listener) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<H: Handler> Outgoing<H> {
    /// Whether there is nothing more to come.
    pub const fn is_end(&self) -> bool {
        matches!(self.source, Source::Done)
    }

    pub const fn is_tunnel(&self) -> bool {
        matches!(self.source, Source::Tunnel(_))
    }

    /// The other end of the tunnel that the stream becomes, if so.
    pub fn take_tunnel(&mut self) -> Option<Box<dyn Tunnel>> {
        match std::mem::replace(&mut self.source, Source::Done) {
            Source::Tunnel(tunnel) => Some(tunnel),
            source => {
                self.source = source;
                None
            }
        }
    }

    /// What became of the tunnel.
    pub fn tunnelled(mut self, to_client: u64, aborted: Option<BodyError>) {
        self.report.body_bytes = to_client;
        self.finish(aborted);
    }

    fn finish(&mut self, aborted: Option<BodyError>) {
        self.source = Source::Done;
        self.report.finish(aborted);
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Piece, BodyError>>> {
        self.finish(Some(error));
        Poll::Ready(Some(Err(error)))
    }

    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let polled = self.source.poll(context);
        self.report.waits_for_us(polled.is_pending());
        if let Poll::Ready(Some(Ok(Chunk::Data(data)))) = &polled {
            self.report.body_bytes += data.len() as u64;
        }
        polled
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        loop {
            return match ready!(self.poll_source(context)) {
                Some(Ok(Chunk::Data(data))) if data.is_empty() => continue,
                Some(Ok(Chunk::Data(data))) => {
                    let length = data.len() as u64;
                    if let Some(left) = &mut self.left {
                        let Some(rest) = left.checked_sub(length) else { return self.fail(BodyError::Malformed) };
                        *left = rest;
                    }
                    // The last byte of what is at hand ends it; a stream may have trailers, or fail.
                    if self.left == Some(0) && !matches!(self.source, Source::Stream(_)) {
                        self.finish(None);
                    }
                    Poll::Ready(Some(Ok(Piece::Data(data))))
                }
                Some(Ok(Chunk::Trailers(_))) | None if self.left.is_some_and(|left| left > 0) => self.fail(BodyError::Truncated),
                Some(Ok(Chunk::Trailers(fields))) => {
                    let mut trailers = HeaderMap::with_capacity(fields.len());
                    if !fields.iter().all(|(name, value)| http2::append(&mut trailers, name.as_bytes(), value)) {
                        return self.fail(BodyError::Malformed);
                    }
                    self.finish(None);
                    Poll::Ready(Some(Ok(Piece::Trailers(trailers))))
                }
                None => {
                    self.finish(None);
                    Poll::Ready(None)
                }
                Some(Err(error)) => self.fail(error),
            };
        }
    }
}

/// What is told of a request once it is over, however that comes.
struct Report<H: Handler> {
    shared: Arc<Shared<H>>,
    head: Option<RequestHead>,
    /// Once there is one.
    answer: Option<(StatusCode, Outcome)>,
    body_bytes: u64,
    /// Boot-time nanoseconds.
    began: u64,
    told: bool,
    /// It waits for us, not for its client.
    ours: bool,
}

impl<H: Handler> Report<H> {
    fn new(shared: &Arc<Shared<H>>) -> Self {
        shared.began();
        let shared = Arc::clone(shared);
        let mut report = Self { shared, head: None, answer: None, body_bytes: 0, began: clock::nanos(), told: false, ours: false };
        report.waits_for_us(true);
        report
    }

    fn waits_for_us(&mut self, ours: bool) {
        match (std::mem::replace(&mut self.ours, ours), ours) {
            (false, true) => _ = self.shared.ours.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.shared.ours.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        if !std::mem::replace(&mut self.told, true) {
            self.shared.handler.refused(&self.shared.peer, self.head.as_ref(), refusal, clock::nanos() - self.began);
        }
    }

    fn finish(&mut self, aborted: Option<BodyError>) {
        let (Some(head), Some((status, outcome)), false) = (&self.head, &self.answer, self.told) else { return };
        let sent = Sent { status: *status, body_bytes: self.body_bytes, duration_ns: clock::nanos() - self.began, aborted };
        self.shared.handler.finished(&self.shared.peer, head, outcome, &sent);
        self.told = true;
    }
}

impl<H: Handler> Drop for Report<H> {
    fn drop(&mut self) {
        self.waits_for_us(false);
        match self.answer {
            Some(_) => self.finish(Some(BodyError::ClientLeft)),
            None => self.refuse(CLIENT_LEFT),
        }
        self.shared.ended();
    }
}
