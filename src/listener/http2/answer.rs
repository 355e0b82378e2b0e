//! One request of a connection: from its head to the last byte of its answer.

use super::{Shared, request};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody, Tunnel};
use crate::clock;
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::{Handled, Handler, InterimSlot, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use crate::semantics::{StatusCode, date, name, proxy_status};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::request::Parts;
use http::{HeaderMap, Method};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::io::copy_bidirectional;

/// The client reset the stream before there was an answer. No such status goes out; it names the case in log and metrics.
const CLIENT_LEFT: Refusal = Refusal { status: 499, reason: "client-left" };
/// A handler that panicked: its request fails, nothing else.
const PANIC: Refusal = Refusal { status: 500, reason: "panic" };
/// An upstream that answers a request for a tunnel as if it had been none: as an answer of ours that would say that there is
/// one (RFC 8441 §5).
const DECLINED: Refusal = Refusal { status: 502, reason: "upgrade-declined" };
/// An answer that does not fit HTTP/2.
const UNFIT: Refusal = Refusal { status: 502, reason: "response-unfit" };

/// Answers one request. Where its stream is reset this is dropped, and with it all work for it.
pub(super) async fn to<H: Handler>(shared: Arc<Shared<H>>, mut request: http::Request<Incoming>) -> http::Response<Outgoing<H>> {
    let upgrade = (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
    let (parts, incoming) = request.into_parts();
    answer(shared, parts, |head, limits| request::body(head, incoming, limits), upgrade).await
}

/// The same for a head and a body, whatever they came by.
pub(in crate::listener) async fn answer<H: Handler>(
    shared: Arc<Shared<H>>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Limits) -> Result<RequestBody, Refusal>,
    upgrade: Option<OnUpgrade>,
) -> http::Response<Outgoing<H>> {
    let mut report = Report::new(shared);
    match (handle(&mut report, parts, body).await, upgrade) {
        (Ok(Response { status, fields, body: ResponseBody::Tunnel(tunnel), outcome, .. }), Some(upgrade)) if status == 101 => {
            open(report, (fields, outcome), tunnel, upgrade)
        }
        (Ok(Response { status, .. }), Some(_)) if status.is_success() => refuse(report, DECLINED),
        (Ok(response), _) => begin(report, response),
        (Err(refusal), _) => refuse(report, refusal),
    }
}

/// 200, where HTTP/1.1 has 101 (RFC 8441 §5): from then on the stream is a tunnel, until both sides ended it.
fn open<H: Handler>(
    mut report: Report<H>,
    (fields, outcome): (ResponseFields, Outcome),
    mut tunnel: Box<dyn Tunnel>,
    upgrade: OnUpgrade,
) -> http::Response<Outgoing<H>> {
    let Some(mut headers) = headers(&fields) else { return refuse(report, UNFIT) };
    headers.remove(SEC_WEBSOCKET_ACCEPT);
    headers.remove(CONTENT_LENGTH);
    report.answer = Some((StatusCode::OK, outcome));
    tokio::spawn(async move {
        let copied = match upgrade.await {
            Ok(upgraded) => copy_bidirectional(&mut TokioIo::new(upgraded), &mut tunnel).await.ok(),
            Err(_) => None,
        };
        report.body_bytes = copied.map_or(0, |(_, to_client)| to_client);
        report.finish(copied.is_none().then_some(BodyError::Reset));
    });
    let mut answer = http::Response::new(Outgoing { source: Source::Done, left: None, report: None });
    *answer.headers_mut() = headers;
    answer
}

async fn handle<H: Handler>(
    report: &mut Report<H>,
    parts: Parts,
    body: impl FnOnce(&RequestHead, &Limits) -> Result<RequestBody, Refusal>,
) -> Result<Response, Refusal> {
    let limits = Arc::clone(&report.shared.limits);
    let head = report.head.insert(request::head(&parts, &limits)?);
    let body = body(head, &limits)?;
    drop(parts);
    let (shared, mut slot) = (&report.shared, InterimSlot::default());
    let handled = catch_unwind(AssertUnwindSafe(|| shared.handler.handle(&shared.peer, head, body, &mut slot)));
    let response = match handled.map_err(|_| PANIC)? {
        Handled::Ready(response) => response,
        Handled::Later(mut future) => {
            *poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(polled) => polled.map(Ok),
                Err(_) => Poll::Ready(Err(PANIC)),
            })
            .await?
        }
    };
    while slot.take_one() {
        shared.handler.bound(Bound::InterimDropped);
    }
    Ok(response)
}

/// The answer as hyper takes it.
fn begin<H: Handler>(mut report: Report<H>, response: Response) -> http::Response<Outgoing<H>> {
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
    let left = length;
    if matches!(source, Source::Done) {
        report.finish(None);
    }
    let mut answer = http::Response::new(Outgoing { source, left, report: Some(report) });
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    answer
}

/// The answer to a request that the connection itself refuses.
fn refuse<H: Handler>(mut report: Report<H>, refusal: Refusal) -> http::Response<Outgoing<H>> {
    report.refuse(refusal);
    report.waits_for_us(false);
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let text = format!("{} {}: {}\n", status.as_str(), status.canonical_reason().unwrap_or("Refused"), refusal.reason);
    let member = proxy_status::member(&report.shared.handler.name(), refusal.error(), Some(refusal.reason));
    let to_head = report.head.as_ref().is_some_and(|head| head.method == Method::HEAD);
    let source = if to_head { Source::Done } else { Source::Full(Bytes::from(text)) };
    let mut answer = http::Response::new(Outgoing { source, left: None, report: Some(report) });
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    http2::append(headers, DATE.as_str().as_bytes(), &date::format(clock::now().wall_ms));
    http2::append(headers, name::PROXY_STATUS.as_str().as_bytes(), &member);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// All lines of an answer; `None` where one fits no section of hyper's.
fn headers(fields: &ResponseFields) -> Option<HeaderMap> {
    let (fields, extra) = match fields {
        ResponseFields::Stored { stored, extra } => (&stored.fields, &extra[..]),
        ResponseFields::Own(fields) => (fields, &[][..]),
    };
    let mut headers = HeaderMap::with_capacity(fields.len() + 6);
    for (name, value) in fields.iter() {
        http2::append(&mut headers, name.as_bytes(), value).then_some(())?;
    }
    for line in extra.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")) {
        let colon = memchr::memchr(b':', line)?;
        http2::append(&mut headers, &line[..colon], crate::semantics::fields::trim(&line[colon + 1..])).then_some(())?;
    }
    Some(headers)
}

enum Source {
    Done,
    Full(Bytes),
    Stored { body: Arc<StoredBody>, start: u64, end: u64 },
    Stream(Pin<Box<dyn BodyStream>>),
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        match self {
            Self::Done => Poll::Ready(None),
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

/// The body of an answer, as hyper pulls it. Where it does not end as it should its stream is reset (P4).
pub struct Outgoing<H: Handler> {
    source: Source,
    /// Bytes that are to come, where that is known.
    left: Option<u64>,
    /// `None`: the answer is a tunnel, which tells of itself.
    report: Option<Report<H>>,
}

impl<H: Handler> Outgoing<H> {
    fn finish(&mut self, aborted: Option<BodyError>) {
        self.source = Source::Done;
        if let Some(report) = &mut self.report {
            report.finish(aborted);
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.finish(Some(error));
        Poll::Ready(Some(Err(error)))
    }

    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let polled = self.source.poll(context);
        if let Some(report) = &mut self.report {
            report.waits_for_us(polled.is_pending());
            if let Poll::Ready(Some(Ok(Chunk::Data(data)))) = &polled {
                report.body_bytes += data.len() as u64;
            }
        }
        polled
    }
}

impl<H: Handler> Body for Outgoing<H> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            return match ready!(this.poll_source(context)) {
                Some(Ok(Chunk::Data(data))) if data.is_empty() => continue,
                Some(Ok(Chunk::Data(data))) => {
                    let length = data.len() as u64;
                    if let Some(left) = &mut this.left {
                        let Some(rest) = left.checked_sub(length) else { return this.fail(BodyError::Malformed) };
                        *left = rest;
                    }
                    // hyper does not ask again after the last byte of what is at hand.
                    if this.left == Some(0) && !matches!(this.source, Source::Stream(_)) {
                        this.finish(None);
                    }
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Some(Ok(Chunk::Trailers(_))) | None if this.left.is_some_and(|left| left > 0) => this.fail(BodyError::Truncated),
                Some(Ok(Chunk::Trailers(fields))) => {
                    let mut trailers = HeaderMap::with_capacity(fields.len());
                    if !fields.iter().all(|(name, value)| http2::append(&mut trailers, name.as_bytes(), value)) {
                        return this.fail(BodyError::Malformed);
                    }
                    this.finish(None);
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
                None => {
                    this.finish(None);
                    Poll::Ready(None)
                }
                Some(Err(error)) => this.fail(error),
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Done)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
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
    fn new(shared: Arc<Shared<H>>) -> Self {
        shared.began();
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
