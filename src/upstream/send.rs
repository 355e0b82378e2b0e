//! One request and the head of its answer: choosing an endpoint, a connection, waiting, and trying once more where that
//! is safe.
//!
//! An origin sees each client request at most once. A request is sent again only if nothing of it can have been acted
//! upon: no connection came about; not a byte of it was written; the origin says so (HTTP/2); or an idle connection turned out to be closed without
//! a byte in return, and the request is idempotent and its body, if it has one, still at hand (RFC 9110 §9.2.2).

use super::codec::{Answer, Broken, Link, Message, Order, Reach, Terms};
use super::connect;
use super::http2::{self, Connections, Granted};
use super::pool::{Connection, Slot, Want};
use super::wire::Wire;
use super::{Clients, Endpoint, FetchError, Giver, Inbound, Outbound, Unanswered, Upstream};
use crate::clock;
use crate::config::settings::UpstreamHttp;
use crate::http1::response::Asked;
use crate::listener::{Announced, InterimSender, RequestBody};
use crate::observe::log::RateLimit;
use crate::semantics::{invalidation, name};
use crate::tls::client::Client;
use crate::upstream::error::Retry;
use http::Method;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// See [`Upstream::send`].
///
/// All of it is boxed once: futures move into those that wait for them, and this one is large. What few requests need is
/// boxed by itself, here and below.
pub(super) fn send(upstream: &Upstream, mut request: Outbound) -> Pin<Box<impl Future<Output = Result<Inbound, Unanswered>> + Send>> {
    Box::pin(async move {
        if upstream.endpoints.is_empty() {
            return Err(FetchError::Dns.into());
        }
        let mut tried = None;
        let sent = match upstream.settings.total_timeout {
            None => attempts(upstream, &mut request, None, &mut tried).await,
            Some(limit) => {
                let deadline = Instant::now() + limit;
                let attempts = Box::pin(attempts(upstream, &mut request, Some(deadline), &mut tried));
                let sent = Box::pin(clock::timeout_at(deadline, attempts)).await;
                sent.unwrap_or_else(|_| {
                    upstream.exchanges.count(Err(FetchError::TotalTimeout.token()), None, limit);
                    Err(FetchError::TotalTimeout)
                })
            }
        };
        sent.map_err(|error| Unanswered { error, endpoint: tried.map(|at| Arc::clone(&upstream.endpoints[at].name)) })
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
    /// The connection went away before the request was written, or its origin says that it was not acted upon; `reused`: it
    /// was an idle one, or one in use for others.
    Unwritten { reused: bool },
    /// Written on an idle connection, and nothing came back.
    Unanswered,
    /// Written on a new connection, or something came back.
    Begun,
}

impl Stage {
    fn of(reach: Reach, reused: bool) -> Self {
        match reach {
            Reach::Unwritten => Self::Unwritten { reused },
            Reach::Unanswered if reused => Self::Unanswered,
            Reach::Unanswered | Reach::Answered => Self::Begun,
        }
    }
}

/// `tried` becomes the index of the endpoint that is tried: it tells it also where this is dropped.
async fn attempts(
    upstream: &Upstream,
    request: &mut Outbound,
    deadline: Option<Instant>,
    tried: &mut Option<usize>,
) -> Result<Inbound, FetchError> {
    let name = &upstream.settings.name;
    let repeatable = is_repeatable(request);
    let body = if let RequestBody::Full(bytes) = &request.body { Some(bytes.clone()) } else { None };
    // A connection that began with a client's address is that client's, and one request's.
    let (mut left, mut avoid, mut fresh) = (upstream.settings.retries, None, upstream.settings.proxy_protocol.is_some());
    loop {
        let at = upstream.pick(avoid);
        *tried = Some(at);
        let endpoint = &upstream.endpoints[at];
        let attempt = Attempt { upstream, endpoint, want: Want { worker: request.worker, fresh }, deadline };
        let failed = match attempt.run(request).await {
            Ok(inbound) => {
                upstream.exchanges.count(Ok(inbound.status), inbound.connect, inbound.first_byte);
                return Ok(inbound);
            }
            Err(failed) => failed,
        };
        upstream.exchanges.count(Err(failed.error.token()), failed.connect, failed.waited);
        // An idle connection that died before the request was written costs no retry; the next one is a new one.
        let free = failed.stage == Stage::Unwritten { reused: true };
        if !free && (left == 0 || !failed.may_be_repeated(repeatable, upstream.endpoints.len())) {
            return Err(failed.error);
        }
        left -= u32::from(!free);
        upstream.metrics.upstream_retry(name, failed.error.token());
        (avoid, fresh) = (Some(at).filter(|_| !free), true);
        if let Some(bytes) = &body {
            request.body = RequestBody::Full(bytes.clone());
        }
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

/// Idempotent (RFC 9110 §9.2.2: safe methods, PUT and DELETE), without a body that sending it would use up.
fn is_repeatable(request: &Outbound) -> bool {
    let idempotent = invalidation::is_safe(&request.method) || matches!(request.method, Method::PUT | Method::DELETE);
    idempotent && !matches!(request.body, RequestBody::Stream { .. }) && !request.upgrade
}

/// One try at one endpoint.
struct Attempt<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Endpoint,
    want: Want,
    deadline: Option<Instant>,
}

impl Attempt<'_> {
    async fn run(&self, request: &mut Outbound) -> Result<Inbound, Failed> {
        let settings = &self.upstream.settings;
        let asked = Asked {
            head: request.method == Method::HEAD,
            range: request.fields.has(name::RANGE),
            // An upgrade of a request with a body is ignored (RFC 9110 §7.8 allows it): no byte of a client can be
            // taken for the new protocol before the 101.
            upgrade: (request.upgrade && matches!(request.body, RequestBody::Empty))
                .then(|| request.fields.joined(name::UPGRADE).map(|protocols| protocols.into_owned().into()))
                .flatten(),
        };
        // An upgrade is one of HTTP/1.1.
        if asked.upgrade.is_none()
            && let Some(connections) = self.endpoint.http2()
        {
            match Box::pin(self.over_http2(request, &asked, connections)).await? {
                Some(inbound) => return Ok(inbound),
                None => self.endpoint.chose_http1(),
            }
        }
        let message = Message::new(settings.http1, request, &asked, &self.endpoint.authority).map_err(Failed::before)?;
        let now = Instant::now();
        let (connection, connect, began) = match self.endpoint.pool.idle(self.want, now) {
            Some(connection) => (connection, None, now),
            None => {
                let (connection, connect) = Box::pin(self.wait_for_connection(request.client)).await?;
                (connection, connect, Instant::now())
            }
        };
        let interim = request.interim.take();
        let order = self.order(asked, interim.as_ref(), began);
        let answered = order.carry_out(message, request, connection).await;
        request.interim = interim; // for another attempt
        self.outcome(answered, connect, began)
    }

    /// `None`: the endpoint speaks HTTP/1.1, and may.
    async fn over_http2(&self, request: &mut Outbound, asked: &Asked, connections: &Arc<Connections>) -> Result<Option<Inbound>, Failed> {
        let is_secure = self.endpoint.secure.is_some();
        let message = http2::message(request, is_secure, &self.endpoint.authority).map_err(Failed::before)?;
        let began = Instant::now();
        let granted = connections.stream(self.want.worker, self.want.fresh, || self.dial()).await;
        let stream = match granted {
            Ok(Granted::Http2(stream)) => stream,
            Ok(Granted::Http1) => return Ok(None),
            Err(error @ (FetchError::QueueFull | FetchError::QueueTimeout)) => return Err(Failed::before(error)),
            Err(error) => {
                self.endpoint.note_connect(false);
                self.tell(&error);
                return Err(Failed { connect: Some(began.elapsed()), ..Failed::before(error) });
            }
        };
        let connect = stream.connect;
        if connect.is_some() {
            self.endpoint.note_connect(true);
        }
        let interim = request.interim.clone();
        let order = self.order(asked.clone(), interim.as_ref(), Instant::now());
        let answered = http2::exchange(&order, message, request, stream).await;
        self.outcome(answered, connect, order.began).map(Some)
    }

    /// Opens a connection for HTTP/2; `None`: the endpoint chose HTTP/1.1, and may.
    fn dial(&self) -> impl Future<Output = Result<Option<Wire>, FetchError>> + Send + 'static {
        let (endpoint, settings) = (self.endpoint, Arc::clone(&self.upstream.settings));
        let connected = endpoint.connect(settings.connect_timeout);
        let secure = self.secure(|clients| &clients.http2).map(|secure| secure.map(|(client, host)| (client.clone(), host.to_owned())));
        async move {
            let deadline = Instant::now() + settings.connect_timeout;
            let secure = secure?;
            let stream = connected.await?;
            let Some((client, host)) = secure else { return Ok(Some(Wire::Plain(stream))) };
            let wire = Wire::secure(stream, &client, &host, deadline).await?;
            match wire.chose_http2() {
                true => Ok(Some(wire)),
                false if settings.http == UpstreamHttp::Auto => Ok(None),
                false => Err(FetchError::TlsProtocol(format!(r#"{host} does not choose HTTP/2 (ALPN): set http = "auto" or "1.1""#))),
            }
        }
    }

    fn order<'o>(&'o self, asked: Asked, interim: Option<&'o InterimSender>, began: Instant) -> Order<'o> {
        Order { terms: Terms::of(&self.upstream.settings), metrics: &self.upstream.metrics, asked, interim, began, deadline: self.deadline }
    }

    fn outcome(&self, answered: Result<Answer, Broken>, connect: Option<Duration>, began: Instant) -> Result<Inbound, Failed> {
        match answered {
            Ok(answer) => Ok(self.inbound(answer, connect, began)),
            Err(Broken { error, reach }) => {
                Err(Failed { error, stage: Stage::of(reach, connect.is_none()), connect, waited: began.elapsed() })
            }
        }
    }

    /// Whom to shake hands with, and how, where there is TLS.
    fn secure(&self, choose: impl Fn(&Clients) -> &Client) -> Result<Option<(&Client, &str)>, FetchError> {
        match (&self.endpoint.secure, &self.upstream.tls) {
            (None, _) => Ok(None),
            (Some(host), Some(clients)) => Ok(Some((choose(clients), host))),
            (Some(_), None) => Err(FetchError::TlsProtocol("TLS to this upstream could not be set up".into())),
        }
    }

    fn inbound(&self, answer: Answer, connect: Option<Duration>, began: Instant) -> Inbound {
        let Answer { head, at, body, tunnel } = answer;
        let endpoint = self.endpoint.name.clone();
        Inbound {
            status: head.status,
            fields: head.fields,
            length: head.length,
            body,
            tunnel,
            endpoint,
            connect,
            first_byte: at - began,
            giver: Giver::Origin,
        }
    }

    /// A connection, and how long it took to make one if it is new.
    async fn wait_for_connection(&self, client: Option<Announced>) -> Result<(Connection, Option<Duration>), Failed> {
        let (endpoint, settings) = (self.endpoint, &self.upstream.settings);
        let permit = match endpoint.pool.acquire(self.want).await.map_err(Failed::before)? {
            Slot::Connection(connection) => return Ok((connection, None)),
            Slot::Permit(permit) => permit,
        };
        let began = Instant::now();
        let opened = async {
            let deadline = Instant::now() + settings.connect_timeout;
            let mut stream = endpoint.connect(settings.connect_timeout).await?;
            if let Some(version) = settings.proxy_protocol {
                connect::announce(&mut stream, version, client, deadline).await?;
            }
            let secure = self.secure(|clients| &clients.http1)?;
            Link::open(stream, secure, settings, self.want.worker, deadline).await
        };
        let opened = opened.await;
        let took = began.elapsed();
        endpoint.note_connect(opened.is_ok());
        match opened {
            Ok(link) => Ok((permit.connected(link), Some(took))),
            Err(error) => {
                self.tell(&error);
                Err(Failed { connect: Some(took), ..Failed::before(error) })
            }
        }
    }
}

/// Between two warnings, milliseconds.
const WARN_INTERVAL_MS: u64 = 10_000;

impl Attempt<'_> {
    /// What only the operator can mend is told, with what helps.
    fn tell(&self, error: &FetchError) {
        static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
        let is_tls = matches!(error, FetchError::TlsCertificate(_) | FetchError::TlsAlert(_) | FetchError::TlsProtocol(_));
        if is_tls && let Some(held_back) = LIMIT.pass(clock::now().mono_ms) {
            let (upstream, endpoint) = (&*self.upstream.name, &*self.endpoint.name);
            tracing::warn!(upstream, endpoint, %error, held_back, "TLS to an upstream failed");
        }
    }
}

impl Failed {
    fn before(error: FetchError) -> Self {
        Self { error, stage: Stage::Unconnected, connect: None, waited: Duration::ZERO }
    }
}
