//! HTTP/1.1 to upstreams by hyper's client: a task per connection, and channels between it and the request.
//!
//! `wire` is its socket, `body` streams both ways, and `convert` is the only place that knows both `http::HeaderMap` and
//! our `Fields`.

mod body;
mod convert;
mod wire;

use super::codec::{self, Answer, Broken, Idle, Order, Reach};
use super::pool::{Connection, Hold};
use super::{Arriving, FetchError, Outbound, settings};
use crate::body::{BodyError, Tunnel};
use crate::clock;
use crate::http1::response::{Fault, INTERIM_MAX, vet};
use crate::listener::RequestBody;
use body::{Download, Progress, Upload, find};
use http::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use wire::Wire;

/// Bytes that a connection buffers of a body in each direction: what back-pressure leaves in memory.
const BUFFER_BYTES: usize = 64 * 1024;
/// The least that hyper takes for it.
const BUFFER_BYTES_MIN: usize = 8192;
/// Lines of a head for which hyper needs no memory from the heap.
const HYPER_LINES: usize = 100;

/// An open connection and its driver, a task of its own. Dropping it closes the connection.
pub(super) struct Link {
    sender: http1::SendRequest<Upload>,
    wire: Arc<Wire>,
    driver: AbortHandle,
    /// Worker on whose runtime the driver runs.
    pub(super) home: usize,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    pub(super) async fn new(stream: TcpStream, settings: &settings::Upstream, home: usize) -> Result<Self, FetchError> {
        let (wire, socket) = Wire::new(stream);
        let handshake = builder(settings).handshake(TokioIo::new(socket)).await;
        let (sender, connection) = handshake.map_err(|error| FetchError::Connect(error.to_string()))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Ok(Self { sender, wire, driver: driver.abort_handle(), home })
    }

    /// Whether a request may go out on it. One that seems alive to hyper may have been closed a moment ago.
    pub(super) fn idle(&self, closely: bool) -> Idle {
        let quiet = if closely { self.sender.is_ready() && self.wire.is_quiet() } else { !self.sender.is_closed() };
        if quiet { Idle::Quiet } else { Idle::Closed }
    }
}

fn builder(settings: &settings::Upstream) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_header_size(settings.header_bytes);
    builder.max_buf_size(settings.header_bytes.max(BUFFER_BYTES).max(BUFFER_BYTES_MIN));
    if settings.header_count != HYPER_LINES {
        builder.max_headers(settings.header_count);
    }
    builder
}

/// The request head as hyper takes it.
pub(super) fn message(request: &Outbound, upgrade: bool, authority: &str) -> Result<http::Request<()>, FetchError> {
    let mut message = http::Request::new(());
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = convert::target(request)?;
    *message.headers_mut() = convert::outbound(request, upgrade, authority)?;
    Ok(message)
}

/// Sends a request on this connection and waits for the head of its answer.
pub(super) async fn exchange(
    order: &Order<'_>,
    message: http::Request<()>,
    request: &mut Outbound,
    mut link: Link,
    hold: Hold,
) -> Result<Answer, Broken> {
    let (body, upload) = Upload::new(std::mem::replace(&mut request.body, RequestBody::Empty));
    let mut message = message.map(|()| body);
    watch_interim(order, &mut message, &link);
    match send(order, message, &mut link, upload.as_deref()).await {
        Ok(response) => answer(order, response, link, hold, upload).await,
        Err((error, Some(unsent))) => {
            request.body = unsent.into_request_body();
            Err(Broken { error, reach: Reach::Unwritten })
        }
        Err((error, None)) => Err(Broken { error, reach: reach(&link) }),
    }
}

fn reach(link: &Link) -> Reach {
    if link.wire.answered() { Reach::Answered } else { Reach::Unanswered }
}

/// Passes 1xx on as they come, and ends a flood of them.
fn watch_interim(order: &Order<'_>, message: &mut http::Request<Upload>, link: &Link) {
    let (wire, driver, metrics) = (link.wire.clone(), link.driver.clone(), order.metrics.clone());
    let (interim, bytes_max) = (order.interim.cloned(), order.terms.header_bytes);
    let (count, bytes) = (AtomicU32::new(0), AtomicUsize::new(0));
    hyper::ext::on_informational(message, move |response| {
        let length = convert::wire_bytes(response.headers());
        if count.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX || bytes.fetch_add(length, Ordering::Relaxed) + length > bytes_max {
            wire.set_flooded();
            return driver.abort();
        }
        let Some(interim) = &interim else { return };
        if let Ok(mut fields) = convert::fields(response.headers()) {
            crate::semantics::hop::strip(&mut fields);
            codec::relay(interim, response.status(), fields, &metrics);
        }
    });
}

/// Sends the request and waits for the head; on failure with the body, if nothing was written.
async fn send(
    order: &Order<'_>,
    message: http::Request<Upload>,
    link: &mut Link,
    upload: Option<&Progress>,
) -> Result<http::Response<Incoming>, (FetchError, Option<Upload>)> {
    link.wire.begin();
    let answer = link.sender.try_send_request(message);
    match head_in_time(answer, order.began, order.terms.first_byte_timeout, upload).await {
        None => Err((FetchError::ResponseTimeout, None)),
        Some(Ok(_)) if link.wire.flooded() => Err((order.fault(Fault::Flood), None)),
        Some(Ok(response)) => Ok(response),
        Some(Err(mut error)) => {
            let unsent = error.take_message().map(http::Request::into_body);
            Err((classify(order, &error.into_error(), link), unsent))
        }
    }
}

/// The answer in our terms.
async fn answer(
    order: &Order<'_>,
    response: http::Response<Incoming>,
    link: Link,
    hold: Hold,
    upload: Option<Arc<Progress>>,
) -> Result<Answer, Broken> {
    let vetted = convert::fields(response.headers()).and_then(|fields| {
        let minor_version = u8::from(response.version() == http::Version::HTTP_11);
        vet(&order.asked, minor_version, response.status(), fields).map_err(|fault| order.fault(fault))
    });
    let head = vetted.map_err(|error| Broken { error, reach: Reach::Answered })?;
    let at = Instant::now();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let tunnel = Some(tunnel(response, link, hold).await?);
        return Ok(Answer { head, at, body: None, tunnel });
    }
    let connection = Connection { link: codec::Link::Hyper(link), hold };
    let body = Download::new(response.into_body(), connection, upload, head.keep, order.pace());
    Ok(Answer { head, at, body: body.map(|body| Arriving::Stream(Box::pin(body))), tunnel: None })
}

/// Waits for the head of the answer, `limit` from when the origin had the last of the request that there was to have: an
/// upload takes as long as the client needs for it.
async fn head_in_time(
    answer: impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<Upload>>>>,
    began: Instant,
    limit: Duration,
    upload: Option<&Progress>,
) -> Option<Result<http::Response<Incoming>, TrySendError<http::Request<Upload>>>> {
    let mut answer = pin!(answer);
    let mut deadline = began + limit;
    loop {
        if let Ok(answer) = clock::timeout_at(deadline, answer.as_mut()).await {
            return Some(answer);
        }
        let now = Instant::now();
        deadline = upload?.origin_silent_since().unwrap_or(now) + limit;
        if deadline <= now {
            return None;
        }
    }
}

/// Why there was no head, from what hyper says and what it does not.
fn classify(order: &Order<'_>, error: &hyper::Error, link: &Link) -> FetchError {
    if link.wire.flooded() {
        return order.fault(Fault::Flood);
    }
    if let Some(error) = find::<BodyError>(error) {
        return FetchError::RequestBody(*error);
    }
    if error.is_parse_too_large() {
        return order.fault(Fault::HeadTooLarge("header-bytes"));
    }
    if error.is_parse() {
        return FetchError::Malformed(error.to_string());
    }
    match find::<io::Error>(error) {
        Some(_) => FetchError::Reset,
        None => FetchError::Closed,
    }
}

/// The connection after a 101, as bytes. It counts against the cap until it is dropped.
async fn tunnel(response: http::Response<Incoming>, link: Link, hold: Hold) -> Result<Box<dyn Tunnel>, Broken> {
    link.wire.becomes_tunnel();
    match hyper::upgrade::on(response).await {
        Ok(upgraded) => Ok(Box::new(Upgraded { io: TokioIo::new(upgraded), _link: link, _hold: hold })),
        Err(error) => Err(Broken { error: FetchError::Malformed(error.to_string()), reach: Reach::Answered }),
    }
}

struct Upgraded {
    io: TokioIo<hyper::upgrade::Upgraded>,
    _link: Link,
    _hold: Hold,
}

impl AsyncRead for Upgraded {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
