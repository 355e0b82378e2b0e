//! One request and the head of its answer: choosing an endpoint, a connection, waiting, and trying once more where that
//! is safe.
//!
//! An origin sees each client request at most once. A request is sent again only if nothing of it can have been acted
//! upon: no connection came about; hyper gave it back unwritten; or an idle connection turned out to be closed without
//! a byte in return, and the request is idempotent and without a body (RFC 9110 §9.2.2).

use super::body::{Download, Pace, Progress, Upload, find};
use super::connect::{self, Link};
use super::convert::{self, Asked};
use super::pool::{Connection, Slot, Want};
use super::{Endpoint, FetchError, Inbound, Outbound, Upstream};
use crate::body::{BodyError, BodyStream, Tunnel};
use crate::listener::{Interim, RequestBody};
use crate::observe::metrics::{Bound, Metrics};
use crate::semantics::name;
use crate::upstream::error::Retry;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Interim responses to one request; one more and the connection is closed.
pub(super) const INTERIM_MAX: u32 = 16;

/// See [`Upstream::send`].
pub(super) async fn send(upstream: &Upstream, request: Outbound) -> Result<Inbound, FetchError> {
    let Some(limit) = upstream.settings.total_timeout else { return attempts(upstream, request, None).await };
    let deadline = Instant::now() + limit;
    let sent = tokio::time::timeout_at(deadline, attempts(upstream, request, Some(deadline))).await;
    sent.unwrap_or_else(|_| {
        upstream.metrics.upstream_request(&upstream.settings.name, Err(FetchError::TotalTimeout.token()), None, limit);
        Err(FetchError::TotalTimeout)
    })
}

/// An attempt that failed, and what of it decides whether there may be another.
struct Failed {
    error: FetchError,
    stage: Stage,
    connect: Option<Duration>,
    waited: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There was no connection to send it on.
    Unconnected,
    /// The connection went away before the request was written; `reused`: it was an idle one.
    Unwritten { reused: bool },
    /// Written on an idle connection, and nothing came back.
    Unanswered,
    /// Written on a new connection, or something came back.
    Begun,
}

async fn attempts(upstream: &Upstream, mut request: Outbound, deadline: Option<Instant>) -> Result<Inbound, FetchError> {
    let name = &upstream.settings.name;
    let repeatable = is_repeatable(&request);
    let (mut left, mut avoid, mut fresh) = (upstream.settings.retries, None, false);
    loop {
        let at = upstream.pick(avoid);
        let endpoint = &upstream.endpoints[at];
        let attempt = Attempt { upstream, endpoint, want: Want { worker: request.worker, fresh, repeatable }, deadline };
        let failed = match attempt.run(&mut request).await {
            Ok(inbound) => {
                upstream.metrics.upstream_request(name, Ok(inbound.status), inbound.connect, inbound.first_byte);
                return Ok(inbound);
            }
            Err(failed) => failed,
        };
        upstream.metrics.upstream_request(name, Err(failed.error.token()), failed.connect, failed.waited);
        // An idle connection that died before the request was written costs no retry; the next one is a new one.
        let free = failed.stage == Stage::Unwritten { reused: true };
        if !free && (left == 0 || !failed.may_be_repeated(repeatable, upstream.endpoints.len())) {
            return Err(failed.error);
        }
        left -= u32::from(!free);
        upstream.metrics.upstream_retry(name, failed.error.token());
        (avoid, fresh) = (Some(at).filter(|_| !free), true);
    }
}

impl Failed {
    fn may_be_repeated(&self, repeatable: bool, endpoints: usize) -> bool {
        match self.stage {
            Stage::Unconnected => match self.error {
                FetchError::QueueFull | FetchError::QueueTimeout | FetchError::InvalidRequest(_) => false,
                _ => endpoints > 1 || self.error.retry() == Retry::FreshConnection,
            },
            Stage::Unwritten { .. } => true,
            Stage::Unanswered => repeatable && self.error.retry() == Retry::FreshConnection,
            Stage::Begun => false,
        }
    }
}

/// Idempotent (RFC 9110 §9.2.2), without a body that sending it would use up.
fn is_repeatable(request: &Outbound) -> bool {
    let idempotent = matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE);
    idempotent && matches!(request.body, RequestBody::Empty) && !request.upgrade
}

/// One try at one endpoint.
struct Attempt<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Endpoint,
    want: Want,
    deadline: Option<Instant>,
}

/// What is known once the request is on its way.
struct Sent {
    connection: Connection,
    reused: bool,
    connect: Option<Duration>,
    upload: Option<Arc<Progress>>,
    began: Instant,
}

impl Attempt<'_> {
    async fn run(&self, request: &mut Outbound) -> Result<Inbound, Failed> {
        let asked = Asked {
            head: request.method == Method::HEAD,
            range: request.fields.has(name::RANGE),
            // An upgrade of a request with a body is ignored (RFC 9110 §7.8 allows it): no byte of a client can be
            // taken for the new protocol before the 101.
            upgrade: request.upgrade && matches!(request.body, RequestBody::Empty),
        };
        let message = self.message(request, asked).map_err(Failed::before)?;
        let (connection, connect) = self.connection().await?;
        let (mut message, upload) = attach(message, request);
        let mut sent = Sent { connection, reused: connect.is_none(), connect, upload, began: Instant::now() };
        self.watch_interim(&mut message, request, &mut sent.connection);
        match self.exchange(message, &mut sent).await {
            Ok(response) => self.inbound(asked, response, sent).await,
            Err((error, unsent)) => {
                let written = unsent.is_none();
                if let Some(body) = unsent {
                    request.body = body.into_request_body();
                }
                Err(sent.failed(error, written))
            }
        }
    }

    /// The request head as hyper takes it.
    fn message(&self, request: &Outbound, asked: Asked) -> Result<http::Request<()>, FetchError> {
        if request.method == Method::CONNECT {
            return Err(FetchError::InvalidRequest("CONNECT is not passed on"));
        }
        let mut message = http::Request::new(());
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = convert::target(request)?;
        *message.headers_mut() = convert::outbound(request, asked.upgrade, &self.endpoint.authority)?;
        Ok(message)
    }

    /// A connection, and how long it took to make one if it is new.
    async fn connection(&self) -> Result<(Connection, Option<Duration>), Failed> {
        let (endpoint, settings) = (self.endpoint, &self.upstream.settings);
        let began = Instant::now();
        let slot = endpoint.pool.acquire(self.want).await;
        let permit = match slot.map_err(|error| Failed { waited: began.elapsed(), ..Failed::before(error) })? {
            Slot::Connection(connection) => return Ok((connection, None)),
            Slot::Permit(permit) => permit,
        };
        let began = Instant::now();
        let opened = async {
            let addresses = endpoint.host.addresses(settings.connect_timeout).await?;
            let turn = endpoint.turn.fetch_add(1, Ordering::Relaxed);
            Link::open(&connect::order(&addresses, turn, endpoint.port), settings, self.want.worker).await
        };
        let opened = opened.await;
        let took = began.elapsed();
        endpoint.note_connect(opened.is_ok());
        match opened {
            Ok(link) => Ok((permit.connected(link), Some(took))),
            Err(error) => Err(Failed { connect: Some(took), ..Failed::before(error) }),
        }
    }

    /// Passes 1xx on as they come (but 100: it belongs to our hop; 101 is final), and ends a flood of them.
    fn watch_interim(&self, message: &mut http::Request<Upload>, request: &Outbound, connection: &mut Connection) {
        let link = connection.link();
        let (wire, driver, metrics) = (link.wire.clone(), link.driver.clone(), self.upstream.metrics.clone());
        let (interim, count) = (request.interim.clone(), AtomicU32::new(0));
        hyper::ext::on_informational(message, move |response| {
            if count.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
                wire.set_flooded();
                return driver.abort();
            }
            let Some(interim) = &interim else { return };
            let status = response.status();
            if status == StatusCode::CONTINUE {
                return;
            }
            relay(interim, status, response.headers(), &metrics);
        });
    }

    /// Sends the request and waits for the head; on failure with the body, if nothing was written.
    async fn exchange(
        &self,
        message: http::Request<Upload>,
        sent: &mut Sent,
    ) -> Result<http::Response<Incoming>, (FetchError, Option<Upload>)> {
        let link = sent.connection.link();
        link.wire.begin();
        let answer = link.sender.try_send_request(message);
        let limit = self.upstream.settings.first_byte_timeout;
        match head_in_time(answer, sent.began, limit, sent.upload.as_deref()).await {
            None => Err((FetchError::ResponseTimeout, None)),
            Some(Ok(_)) if sent.connection.link().wire.flooded() => Err((flooded(), None)),
            Some(Ok(response)) => Ok(response),
            Some(Err(mut error)) => {
                let unsent = error.take_message().map(http::Request::into_body);
                let error = classify(&error.into_error(), sent.connection.link());
                Err((error, unsent))
            }
        }
    }

    /// The answer in our terms.
    async fn inbound(&self, asked: Asked, response: http::Response<Incoming>, sent: Sent) -> Result<Inbound, Failed> {
        let first_byte = sent.began.elapsed();
        let vetted = convert::vet(asked, response.version(), response.status(), response.headers());
        let vetted = match vetted {
            Ok(vetted) if vetted.fields.len() <= self.upstream.settings.header_count => vetted,
            Ok(_) => return Err(sent.failed(FetchError::HeadTooLarge, true)),
            Err(error) => return Err(sent.failed(error, true)),
        };
        let (status, connect) = (response.status(), sent.connect);
        let mut inbound = Inbound {
            status,
            fields: vetted.fields,
            length: vetted.length,
            body: None,
            tunnel: None,
            endpoint: self.endpoint.authority.clone(),
            connect,
            first_byte,
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            for protocol in response.headers().get_all(http::header::UPGRADE) {
                let _ = inbound.fields.append(name::UPGRADE, protocol); // it was a field value before
            }
            inbound.tunnel = Some(tunnel(response, sent).await?);
            return Ok(inbound);
        }
        let pace = Pace { read_timeout: self.upstream.settings.read_timeout, deadline: self.deadline };
        let body = Download::new(response.into_body(), sent.connection, sent.upload, vetted.keep, pace);
        inbound.body = body.map(|body| Box::pin(body) as Pin<Box<dyn BodyStream>>);
        Ok(inbound)
    }
}

/// Puts the body of the request to its head: from here on it is used up unless it comes back unwritten.
fn attach(message: http::Request<()>, request: &mut Outbound) -> (http::Request<Upload>, Option<Arc<Progress>>) {
    let (body, upload) = Upload::new(std::mem::replace(&mut request.body, RequestBody::Empty));
    (message.map(|()| body), upload)
}

fn relay(to: &crate::listener::InterimSender, status: StatusCode, head: &http::HeaderMap, metrics: &Metrics) {
    let relayed = convert::inbound(head).is_ok_and(|fields| to.try_send(Interim { status, fields }).is_ok());
    if !relayed {
        metrics.bound(Bound::InterimDropped);
    }
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
        if let Ok(answer) = tokio::time::timeout_at(deadline, answer.as_mut()).await {
            return Some(answer);
        }
        let now = Instant::now();
        deadline = upload?.origin_silent_since().unwrap_or(now) + limit;
        if deadline <= now {
            return None;
        }
    }
}

fn flooded() -> FetchError {
    FetchError::Malformed("too many interim responses".to_owned())
}

/// Why there was no head, from what hyper says and what it does not.
fn classify(error: &hyper::Error, link: &Link) -> FetchError {
    if link.wire.flooded() {
        return flooded();
    }
    if let Some(error) = find::<BodyError>(error) {
        return FetchError::RequestBody(*error);
    }
    if error.is_parse_too_large() {
        return FetchError::HeadTooLarge;
    }
    if error.is_parse() {
        return FetchError::Malformed(error.to_string());
    }
    match find::<io::Error>(error) {
        Some(_) => FetchError::Reset,
        None => FetchError::Closed,
    }
}

impl Failed {
    fn before(error: FetchError) -> Self {
        Self { error, stage: Stage::Unconnected, connect: None, waited: Duration::ZERO }
    }
}

impl Sent {
    fn failed(mut self, error: FetchError, written: bool) -> Failed {
        let stage = if !written {
            Stage::Unwritten { reused: self.reused }
        } else if self.reused && !self.connection.link().wire.answered() {
            Stage::Unanswered
        } else {
            Stage::Begun
        };
        Failed { error, stage, connect: self.connect, waited: self.began.elapsed() }
    }
}

/// The connection after a 101, as bytes. It counts against the cap until it is dropped.
async fn tunnel(response: http::Response<Incoming>, mut sent: Sent) -> Result<Box<dyn Tunnel>, Failed> {
    sent.connection.link().wire.becomes_tunnel();
    match hyper::upgrade::on(response).await {
        Ok(upgraded) => Ok(Box::new(Upgraded { io: TokioIo::new(upgraded), _connection: sent.connection })),
        Err(error) => Err(sent.failed(FetchError::Malformed(error.to_string()), true)),
    }
}

struct Upgraded {
    io: TokioIo<hyper::upgrade::Upgraded>,
    _connection: Connection,
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
