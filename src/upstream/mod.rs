//! Requests to upstreams: pools of connections, and what is spoken on them.
//!
//! [`Upstream::send`] is the way in; `send` tells the story of one request. Names become addresses in `resolve`,
//! `balance` chooses among endpoints, `pool` keeps each one's connections under its cap, `connect` makes them. Behind
//! the seam `codec` HTTP/1.1 is spoken by `own`, or by `hyper_client` where the configuration asks for it; `http2` has
//! connections of its own, which requests share.
//!
//! Deliberately not here: active health checks, breakers. Redirects are never
//! followed. Nothing is sent before the first request, names are not even looked up.

pub mod balance;
mod codec;
mod connect;
pub mod error;
pub(crate) mod http2;
mod hyper_client;
mod own;
mod pool;
mod recovery;
mod resolve;
mod send;
mod wire;

pub(crate) use codec::{Broken, Order, Reach, Terms};
pub(crate) use connect::connect;
pub use error::{FetchError, Unanswered};
pub use recovery::Place;
pub(crate) use resolve::Host;
pub(crate) use wire::Wire;

use crate::body::{Again, BodyError, BodyStream, Chunk};
use crate::clock;
use crate::config::settings::{self, UpstreamHttp};
use crate::listener::{Announced, InterimSender, RequestBody};
use crate::observe::metrics::{Metrics, UpstreamExchanges};
use crate::semantics::{Fields, StatusCode};
use crate::tls::client::Client;
use crate::tls::{ALPN_HTTP1, ALPN_HTTP2};
use bytes::Bytes;
use http::Method;
use smallvec::SmallVec;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// A request ready to go: fields without those of a connection; Host included in `fields`.
pub struct Outbound {
    pub method: Method,
    /// Path and query as they go into the request line.
    pub path_and_query: String,
    /// Host field; `None`: the endpoint's own authority. What `fields` say of it is not used.
    pub host: Option<String>,
    pub fields: Fields,
    pub body: RequestBody,
    /// The client asked to upgrade to this protocol: `fields` hold Upgrade, the pool adds Connection.
    pub upgrade: bool,
    /// Where 1xx (but 100 and 101) go.
    pub interim: Option<InterimSender>,
    /// Worker on whose runtime this runs.
    pub worker: usize,
    /// The ends of the client's connection, for upstreams that are told by the PROXY protocol; `None`: we ask for ourselves.
    pub client: Option<Announced>,
}

/// A response head and its body. Dropping the body early closes the connection.
pub struct Inbound {
    pub status: StatusCode,
    /// As they came, minus those of the connection (RFC 9110 §7.6.1).
    pub fields: Fields,
    /// Content-Length where valid and the body is delimited by it.
    pub length: Option<u64>,
    pub body: Option<Arriving>,
    /// After 101.
    pub tunnel: Option<Box<dyn crate::body::Tunnel>>,
    pub endpoint: Arc<str>,
    pub connect: Option<Duration>,
    pub first_byte: Duration,
    pub giver: Giver,
}

/// Who gave a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giver {
    Origin,
    /// Another node of the fleet, which had it or fetched it for that.
    Peer,
    /// One that was asked for what it holds.
    Holder,
}

impl Giver {
    pub const fn is_peer(self) -> bool {
        matches!(self, Self::Peer | Self::Holder)
    }
}

/// The body of a response, as it comes.
pub enum Arriving {
    /// It is all there; the connection is free already.
    Whole(Bytes),
    Stream(Pin<Box<dyn BodyStream>>),
}

impl Arriving {
    /// The same as a stream, whichever it is.
    pub fn into_stream(self) -> Pin<Box<dyn BodyStream>> {
        match self {
            Self::Whole(bytes) => Box::pin(Again { first: Some(bytes), rest: None }),
            Self::Stream(stream) => stream,
        }
    }

    /// As [`BodyStream::poll_chunk`].
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Chunk::Data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.as_mut().poll_chunk(context),
        }
    }
}

/// How long an endpoint that could not be connected to is passed over while another is left.
const EJECTION: Duration = Duration::from_secs(5);

/// One upstream: its endpoints, their connections, counters.
pub struct Upstream {
    pub settings: Arc<settings::Upstream>,
    /// As in the configuration.
    pub name: Arc<str>,
    endpoints: Box<[Endpoint]>,
    /// Grows by one per choice of an endpoint.
    turn: AtomicUsize,
    recovery: recovery::Recovery,
    /// Where some endpoint has TLS.
    tls: Option<Clients>,
    metrics: Arc<Metrics>,
    exchanges: UpstreamExchanges,
}

/// TLS to an upstream, by what is to be spoken through it.
struct Clients {
    http1: Client,
    http2: Client,
}

/// How long an endpoint that chose HTTP/1.1 over HTTP/2 is not asked again.
const CHOICE: Duration = Duration::from_secs(300);

/// One address of an upstream, as configured.
struct Endpoint {
    /// As it stands in logs: `host:port`, or `unix:/path`.
    name: Arc<str>,
    /// Host where none is given.
    authority: Arc<str>,
    port: u16,
    /// Where it is one of this machine.
    socket: Option<PathBuf>,
    /// What the certificate has to name, where there is TLS.
    secure: Option<Arc<str>>,
    host: Arc<resolve::Host>,
    pool: Arc<pool::Pool>,
    /// Where HTTP/2 is, or may be, spoken to it.
    http2: Option<Arc<http2::Connections>>,
    /// Boot-time nanoseconds until which it speaks HTTP/1.1 by its own choice.
    http1_until: AtomicU64,
    /// Grows by one per connection, to share them among the addresses of a name.
    turn: AtomicUsize,
    /// Boot-time nanoseconds until which it is passed over; 0: it is not.
    ejected_until: AtomicU64,
}

/// Connections of an upstream now, all endpoints and workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Open ones, idle ones included.
    pub open: usize,
    pub idle: usize,
    /// Requests in line for one.
    pub waiting: usize,
}

impl Upstream {
    /// `workers`: how many cores keep idle connections of their own.
    pub fn new(settings: Arc<settings::Upstream>, workers: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let endpoint = |endpoint: &settings::Endpoint| Endpoint {
            name: match &endpoint.socket {
                Some(_) => endpoint.url.as_str().into(),
                None => authority(&endpoint.host, endpoint.port, endpoint.is_secure).into(),
            },
            authority: authority(&endpoint.host, endpoint.port, endpoint.is_secure).into(),
            port: endpoint.port,
            socket: endpoint.socket.clone(),
            secure: endpoint.is_secure.then(|| endpoint.host.as_str().into()),
            host: resolve::Host::new(&endpoint.host),
            pool: pool::Pool::new(settings.clone(), workers, metrics.clone()),
            http2: (settings.http == UpstreamHttp::Two || settings.http == UpstreamHttp::Auto && endpoint.is_secure)
                .then(|| http2::Connections::new(bounds(&settings), workers, metrics.clone(), Some(metrics.http2_gauges(&settings.name)))),
            http1_until: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            ejected_until: AtomicU64::new(0),
        };
        let endpoints = settings.endpoints.iter().map(endpoint).collect();
        let recovery = recovery::Recovery::new(&settings, &metrics);
        let (name, tls, exchanges) = (settings.name.as_str().into(), tls(&settings), metrics.upstream(&settings.name));
        Arc::new(Self { name, endpoints, turn: AtomicUsize::new(0), recovery, tls, metrics, exchanges, settings })
    }

    /// Sends a request and waits for the head of the answer, by the upstream's timeouts, with a retry on a fresh
    /// connection where that is safe.
    ///
    /// 101 comes with a `tunnel`, and with Upgrade in its fields; Connection is left to whoever sends it on. Dropping
    /// the future closes the connection that it was using.
    pub fn send(&self, request: Outbound) -> impl Future<Output = Result<Inbound, Unanswered>> + Send {
        send::send(self, request)
    }

    /// A place for a fetch that a purge caused, to be held until the head of its response is there. Cancel-safe.
    pub async fn place_after_purge(&self) -> Result<Place, FetchError> {
        self.recovery.place().await
    }

    /// Connections and waiting requests now.
    pub fn usage(&self) -> Usage {
        self.endpoints.iter().fold(Usage::default(), |sum, endpoint| {
            let (open, idle, waiting) = endpoint.pool.counts();
            let (shared, _, in_line) = endpoint.http2.as_ref().map_or_else(Default::default, |http2| http2.counts());
            Usage { open: sum.open + open + shared, idle: sum.idle + idle, waiting: sum.waiting + waiting + in_line }
        })
    }

    /// Index of the endpoint for the next attempt; there is at least one.
    fn pick(&self, avoid: Option<usize>) -> usize {
        if self.endpoints.len() == 1 {
            return 0;
        }
        let now = clock::nanos();
        let candidate = |endpoint: &Endpoint| balance::Candidate {
            load: endpoint.load(),
            ejected: endpoint.ejected_until.load(Ordering::Relaxed) > now,
        };
        let candidates: SmallVec<[balance::Candidate; 8]> = self.endpoints.iter().map(candidate).collect();
        balance::pick(self.settings.balance, &candidates, self.turn.fetch_add(1, Ordering::Relaxed), avoid)
    }
}

impl Endpoint {
    /// Requests under way or waiting.
    fn load(&self) -> usize {
        let (_, streams, waiting) = self.http2.as_ref().map_or_else(Default::default, |http2| http2.counts());
        self.pool.load() + streams + waiting
    }

    /// Where the next request is to be sent over HTTP/2.
    fn http2(&self) -> Option<&Arc<http2::Connections>> {
        self.http2.as_ref().filter(|_| self.http1_until.load(Ordering::Relaxed) <= clock::nanos())
    }

    /// A connection to where it is, within this time from when it is first polled.
    fn connect(&self, within: Duration) -> impl Future<Output = Result<TcpStream, FetchError>> + Send + 'static {
        let (socket, host, port) = (self.socket.clone(), Arc::clone(&self.host), self.port);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        async move {
            match socket {
                Some(path) => connect::connect_socket(&path, within).await,
                None => connect(&connect::order(&host.addresses(within).await?, turn, port), within).await,
            }
        }
    }

    fn chose_http1(&self) {
        self.http1_until.store(clock::nanos() + CHOICE.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Passive ejection: an endpoint that could not be connected to is passed over for a while.
    fn note_connect(&self, connected: bool) {
        let until = if connected { 0 } else { clock::nanos() + EJECTION.as_nanos() as u64 };
        self.ejected_until.store(until, Ordering::Relaxed);
    }
}

/// What was tried when the configuration was read; it would have to have changed since.
fn tls(settings: &settings::Upstream) -> Option<Clients> {
    settings.endpoints.iter().find(|endpoint| endpoint.is_secure)?;
    let client = Client::new(&settings.tls);
    let http1 = client.inspect_err(|error| tracing::error!(upstream = settings.name, %error, "no TLS to this upstream")).ok()?;
    let protocols: &[&[u8]] = if settings.http == UpstreamHttp::Two { &[ALPN_HTTP2] } else { &[ALPN_HTTP2, ALPN_HTTP1] };
    Some(Clients { http2: http1.offering(protocols), http1 })
}

fn bounds(settings: &settings::Upstream) -> http2::Bounds {
    http2::Bounds {
        connections: settings.connections,
        streams: settings.http2.streams,
        stream_window: settings.http2.stream_window,
        header_list: http2::header_list(settings.header_bytes, settings.header_count),
        queue: settings.queue,
        queue_timeout: settings.queue_timeout,
        connect_timeout: settings.connect_timeout,
        idle_timeout: settings.idle_timeout,
        keep_alive: settings.http2.keep_alive,
    }
}

/// `host:port` as in Host; an IPv6 address in brackets (RFC 3986 §3.2.2), the default port left out (RFC 9110 §4.2.3).
fn authority(host: &str, port: u16, is_secure: bool) -> String {
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    if port == if is_secure { 443 } else { 80 } { host } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GET of `/`, as both codecs are given it.
    pub fn request(lines: &[(&str, &str)], body: RequestBody) -> Outbound {
        let mut fields = Fields::new();
        for (name, value) in lines {
            fields.push(name, value).unwrap();
        }
        let (method, path_and_query) = (Method::GET, "/".to_owned());
        Outbound { method, path_and_query, host: None, fields, body, upgrade: false, interim: None, worker: 0, client: None }
    }

    #[test]
    fn authorities_are_written_as_in_host() {
        assert_eq!(authority("origin.example", 80, false), "origin.example");
        assert_eq!(authority("origin.example", 443, true), "origin.example");
        assert_eq!(authority("origin.example", 80, true), "origin.example:80");
        assert_eq!(authority("origin.example", 8080, false), "origin.example:8080");
        assert_eq!(authority("::1", 8080, false), "[::1]:8080");
        assert_eq!(authority("[::1]", 80, false), "[::1]");
    }
}
