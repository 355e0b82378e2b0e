//! One request of HTTP/2 or 3 and its answer, without what is said on the wire: from its head to the last byte that goes out.

use super::{Shared, request};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody, Tunnel};
use crate::clock;
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::interim::Continue;
use crate::listener::{
    Handled, Handler, Interim, InterimReceiver, InterimSlot, Later, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent,
};
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
    /// Until it has come.
    later: Option<Later>,
    come: Option<Come>,
    interims: Option<InterimReceiver>,
    is_connect: bool,
}

/// What came of the handler's work.
pub(in crate::listener) type Come = Result<Box<Response>, Refusal>;

/// What comes next of a request under way.
pub(in crate::listener) enum Event {
    /// To be relayed (1xx).
    Interim(http::Response<()>),
    /// For [`Waiting::answer`].
    Response(Come),
}

/// Has a request handled, whatever it came by; what can be answered at once is.
pub(in crate::listener) fn ask<H: Handler>(
    shared: &Arc<Shared<H>>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Arc<Limits>, Option<Continue>) -> Result<RequestBody, Refusal>,
) -> Asked<H> {
    let (mut report, is_connect, mut slot) = (Report::new(shared), parts.method == Method::CONNECT, InterimSlot::default());
    let handled = handle(&mut report, parts, body, &mut slot);
    let interims = slot.take();
    let (later, come) = match handled {
        Ok(Handled::Ready(response)) if interims.is_none() => return Asked::Answered(answer(report, Ok(response), is_connect)),
        Err(refusal) => return Asked::Answered(answer(report, Err(refusal), is_connect)),
        Ok(Handled::Ready(response)) => (None, Some(Ok(Box::new(response)))),
        Ok(Handled::Later(later)) => (Some(later), None),
    };
    Asked::Later(Waiting { report, later, come, interims, is_connect })
}

fn handle<H: Handler>(
    report: &mut Report<H>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Arc<Limits>, Option<Continue>) -> Result<RequestBody, Refusal>,
    interims: &mut InterimSlot,
) -> Result<Handled, Refusal> {
    let shared = &*report.shared;
    let head = report.head.insert(request::head(&parts, &shared.limits)?);
    let expected = head.fields.has(name::EXPECT).then(|| Continue::expected(interims));
    let body = body(head, &shared.limits, expected)?;
    drop(parts);
    catch_unwind(AssertUnwindSafe(|| shared.handler.handle(&shared.peer, head, body, interims))).map_err(|_| PANIC)
}

impl<H: Handler> Waiting<H> {
    /// What comes next, up to the response.
    pub async fn event(&mut self) -> Event {
        poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Some(later) = &mut self.later {
            match catch_unwind(AssertUnwindSafe(|| later.as_mut().poll(context))) {
                Ok(Poll::Ready(response)) => (self.later, self.come) = (None, Some(Ok(response))),
                Ok(Poll::Pending) => {}
                Err(_) => (self.later, self.come) = (None, Some(Err(PANIC))),
            }
        }
        if let Some(head) = ready!(self.poll_interim(context)) {
            return Poll::Ready(Event::Interim(head));
        }
        self.come.take().map_or(Poll::Pending, |come| Poll::Ready(Event::Response(come)))
    }

    /// The next interim response; `None` where the response comes first.
    fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<Option<http::Response<()>>> {
        let Some(interims) = &mut self.interims else { return Poll::Ready(None) };
        loop {
            let interim = match &self.come {
                Some(_) => interims.try_recv(),
                None => Some(ready!(interims.poll_recv(context))),
            };
            let Some(Interim { status, fields }) = interim else { return Poll::Ready(None) };
            match headers(&ResponseFields::Own(fields)) {
                Some(headers) => return Poll::Ready(Some(head(status, headers))),
                None => self.report.shared.handler.bound(Bound::InterimDropped),
            }
        }
    }

    pub fn answer(self, come: Come) -> Answer<H> {
        answer(self.report, come.map(|response| *response), self.is_connect)
    }
}

fn answer<H: Handler>(report: Report<H>, response: Result<Response, Refusal>, is_connect: bool) -> Answer<H> {
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
    Answer { head: head(StatusCode::OK, headers), body: Outgoing::new(Source::Tunnel(tunnel), None, report) }
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
    Answer { head: head(status, headers), body: Outgoing::new(source, length, report) }
}

/// The answer to a request that the connection itself refuses.
fn refuse<H: Handler>(mut report: Report<H>, refusal: Refusal) -> Answer<H> {
    report.refuse(refusal);
    report.waits_for_us(false);
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let text = format!("{} {}: {}\n", status.as_str(), status.canonical_reason().unwrap_or("Refused"), refusal.reason);
    let member = proxy_status::member(&report.shared.handler.name(), refusal.error(), Some(refusal.reason));
    let to_head = report.head.as_ref().is_some_and(|head| head.method == Method::HEAD);
    let (length, source) = if to_head { (0, Source::Done) } else { (text.len() as u64, Source::Full(Bytes::from(text))) };
    let mut headers = HeaderMap::new();
    http2::append(&mut headers, DATE.as_str().as_bytes(), &date::format(clock::now().wall_ms));
    http2::append(&mut headers, name::PROXY_STATUS.as_str().as_bytes(), &member);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Answer { head: head(status, headers), body: Outgoing::new(source, Some(length), report) }
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
///
/// Whoever sends it says when the client has all of it ([`Outgoing::taken`]), and keeps it until then: it counts as in use.
pub(in crate::listener) struct Outgoing<H: Handler> {
    source: Source,
    /// Bytes that are to come, where that is known.
    left: Option<u64>,
    /// There is nothing more to come.
    is_end: bool,
    report: Report<H>,
}

/// A piece of a body that goes out.
pub(in crate::listener) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<H: Handler> Outgoing<H> {
    fn new(source: Source, left: Option<u64>, report: Report<H>) -> Self {
        let is_done = matches!(source, Source::Done);
        let mut outgoing = Self { source, left, is_end: false, report };
        if is_done {
            outgoing.end();
        }
        outgoing
    }

    /// Whether there is nothing more to come.
    pub const fn is_end(&self) -> bool {
        self.is_end
    }

    pub const fn is_tunnel(&self) -> bool {
        matches!(self.source, Source::Tunnel(_))
    }

    /// What the requests of its connection share.
    pub fn shared(&self) -> &Shared<H> {
        &self.report.shared
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
        self.report.finish(aborted);
    }

    /// The client has it as it was given out.
    pub fn taken(&mut self) {
        self.report.finish(None);
    }

    /// Whether memory behind it is wanted back, and nobody was told yet that it goes no further.
    pub fn is_revoked(&self) -> bool {
        !self.report.told
            && match &self.source {
                Source::Stored { body, .. } => body.is_revoked(),
                Source::Stream(stream) => stream.is_revoked(),
                Source::Done | Source::Full(_) | Source::Tunnel(_) => false,
            }
    }

    /// It goes no further: its client is too slow, by this bound.
    pub fn detach(&mut self, bound: Bound) {
        guarded(|| self.report.shared.handler.bound(bound));
        self.report.finish(Some(BodyError::Detached));
    }

    /// The last of it was given out.
    fn end(&mut self) {
        self.is_end = true;
        self.report.given_at.get_or_insert_with(clock::nanos);
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Piece, BodyError>>> {
        self.source = Source::Done;
        self.report.finish(Some(error));
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
                        self.end();
                    }
                    Poll::Ready(Some(Ok(Piece::Data(data))))
                }
                Some(Ok(Chunk::Trailers(_))) | None if self.left.is_some_and(|left| left > 0) => self.fail(BodyError::Truncated),
                Some(Ok(Chunk::Trailers(fields))) => {
                    let mut trailers = HeaderMap::with_capacity(fields.len());
                    if !fields.iter().all(|(name, value)| http2::append(&mut trailers, name.as_bytes(), value)) {
                        return self.fail(BodyError::Malformed);
                    }
                    self.end();
                    Poll::Ready(Some(Ok(Piece::Trailers(trailers))))
                }
                None => {
                    self.end();
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
    /// When the last byte was given out.
    given_at: Option<u64>,
    told: bool,
    /// It waits for us, not for its client.
    ours: bool,
}

impl<H: Handler> Report<H> {
    fn new(shared: &Arc<Shared<H>>) -> Self {
        shared.began();
        let shared = Arc::clone(shared);
        let (began, given_at) = (clock::nanos(), None);
        let mut report = Self { shared, head: None, answer: None, body_bytes: 0, began, given_at, told: false, ours: false };
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
        self.told = true;
        let ended_at = self.given_at.unwrap_or_else(clock::nanos);
        let sent = Sent { status: *status, body_bytes: self.body_bytes, duration_ns: ended_at - self.began, aborted };
        guarded(|| self.shared.handler.finished(&self.shared.peer, head, outcome, &sent));
    }
}

impl<H: Handler> Drop for Report<H> {
    fn drop(&mut self) {
        self.waits_for_us(false);
        match self.answer {
            Some(_) => self.finish(Some(BodyError::ClientLeft)),
            None => guarded(|| self.refuse(CLIENT_LEFT)),
        }
        self.shared.ended();
    }
}

/// Tells of a stream that is over or given up. That may panic: then it is not told, because the connection, and all its other streams,
/// would go down with it.
fn guarded(tell: impl FnOnce()) {
    _ = catch_unwind(AssertUnwindSafe(tell));
}
