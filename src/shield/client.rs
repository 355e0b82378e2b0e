//! Connections to one peer, and requests on them: HTTP/2 in plain text by prior knowledge (RFC 9113 §3.3).

use crate::body::{BodyError, BodyStream, Chunk};
use crate::config::settings;
use crate::http2;
use crate::semantics::{Fields, hop, name};
use crate::upstream::{Arriving, FetchError, Host, Inbound, connect};
use bytes::Bytes;
use http_body::Body;
use http_body_util::Empty;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::time::{Instant, timeout_at};

/// Requests at a time on one connection before there is another. With [`STREAM_WINDOW`] this is the window of the
/// connection: streams that nobody reads never hold up those that somebody does.
const STREAMS: usize = 64;
/// Bytes of an answer that may come before they are read.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// Connections to one peer per worker; past that they have more streams each.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of the head of an answer.
const HEADER_BYTES: u32 = 256 << 10;

/// A request to a peer; it has no body.
#[derive(Debug, Clone)]
pub struct Question {
    pub method: http::Method,
    pub authority: String,
    /// Path and query.
    pub target: String,
    pub fields: Fields,
    /// Worker on whose runtime this runs.
    pub worker: usize,
}

/// The connections to one peer.
pub struct Client {
    host: Arc<Host>,
    port: u16,
    /// By worker: a connection lives on the runtime that opened it.
    links: Box<[Mutex<Vec<Link>>]>,
}

#[derive(Clone)]
struct Link {
    sender: SendRequest<Empty<Bytes>>,
    streams: Arc<AtomicUsize>,
}

/// A stream of a connection is in use as long as this is there.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    fn hold(&self) -> Held {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(&self.streams))
    }
}

impl Client {
    pub fn new(host: Arc<Host>, port: u16, workers: usize) -> Self {
        Self { host, port, links: (0..workers.max(1)).map(|_| Mutex::default()).collect() }
    }

    /// Sends a request and waits for the head of its answer. Dropping this resets the stream.
    ///
    /// A connection that turns out to have died since it was last used is no failure of the peer: then it is sent once more
    /// on a new one. One that falls silent is.
    pub async fn send(&self, question: &Question, settings: &settings::Shield, endpoint: &Arc<str>) -> Result<Inbound, FetchError> {
        let message = message(question)?;
        let began = Instant::now();
        let deadline = began + settings.first_byte_timeout;
        let (link, held, connect) = match self.idlest(question.worker) {
            Some((link, held)) => (link, held, None),
            None => self.open(question.worker, settings).await?,
        };
        let is_fresh = connect.is_some();
        let (mut held, mut connect) = (held, connect);
        let mut answer = exchange(link, message.clone(), deadline).await;
        if !is_fresh && began.elapsed() < settings.keep_alive && matches!(answer, Err(FetchError::Closed)) {
            let (link, again, took) = self.open(question.worker, settings).await?;
            (held, connect) = (again, took);
            answer = exchange(link, message, deadline).await;
        }
        let (parts, incoming) = answer?.into_parts();
        let malformed = |_| FetchError::Malformed("a field of the peer's answer".into());
        let mut fields = http2::fields(&parts.headers).map_err(malformed)?;
        hop::strip(&mut fields);
        let is_head = question.method == http::Method::HEAD;
        let length = if is_head { None } else { fields.text(name::CONTENT_LENGTH).and_then(|length| length.parse().ok()) };
        let body = (!incoming.is_end_stream()).then(|| {
            let incoming = http2::Incoming::new(incoming, settings.read_timeout, None);
            Arriving::Stream(Box::pin(Streamed { incoming, _held: held }))
        });
        Ok(Inbound {
            status: parts.status,
            fields,
            length,
            body,
            tunnel: None,
            endpoint: Arc::clone(endpoint),
            connect,
            first_byte: began.elapsed(),
            from_peer: true,
        })
    }

    /// The connection with the fewest streams, unless another one should be opened.
    fn idlest(&self, worker: usize) -> Option<(Link, Held)> {
        let mut links = self.links_of(worker).lock();
        links.retain(|link| !link.sender.is_closed());
        let load = |link: &Link| link.streams.load(Ordering::Relaxed);
        let idlest = links.iter().min_by_key(|link| load(link))?;
        (load(idlest) < STREAMS || links.len() >= CONNECTIONS_MAX).then(|| (idlest.clone(), idlest.hold()))
    }

    fn links_of(&self, worker: usize) -> &Mutex<Vec<Link>> {
        &self.links[worker % self.links.len()]
    }

    async fn open(&self, worker: usize, settings: &settings::Shield) -> Result<(Link, Held, Option<std::time::Duration>), FetchError> {
        let began = Instant::now();
        let deadline = began + settings.connect_timeout;
        let opening = async {
            let addresses = self.host.addresses(settings.connect_timeout).await?;
            let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, self.port)).collect();
            let stream = connect(&addresses, settings.connect_timeout).await?;
            builder(settings).handshake(TokioIo::new(stream)).await.map_err(|error| FetchError::Connect(error.to_string()))
        };
        let (sender, connection) = timeout_at(deadline, opening).await.map_err(|_| FetchError::ConnectTimeout)??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a peer ended");
            }
        });
        let link = Link { sender, streams: Arc::default() };
        let held = link.hold();
        self.links_of(worker).lock().push(link.clone());
        Ok((link, held, Some(began.elapsed())))
    }
}

fn builder(settings: &settings::Shield) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_BYTES)
        // A peer that is stopped still has a kernel that takes connections: only an answer says that it is there.
        .keep_alive_interval(settings.keep_alive)
        .keep_alive_timeout(settings.keep_alive);
    builder
}

async fn exchange(
    mut link: Link,
    message: http::Request<Empty<Bytes>>,
    deadline: Instant,
) -> Result<http::Response<hyper::body::Incoming>, FetchError> {
    let sending = async {
        link.sender.ready().await?;
        link.sender.send_request(message).await
    };
    match timeout_at(deadline, sending).await {
        Err(_) => Err(FetchError::ResponseTimeout),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_parse() => Err(FetchError::Malformed(error.to_string())),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a request to a peer failed");
            Err(FetchError::Closed)
        }
    }
}

/// The head as hyper takes it. The host is that of the request: `:authority`.
fn message(question: &Question) -> Result<http::Request<Empty<Bytes>>, FetchError> {
    const UNFIT: FetchError = FetchError::InvalidRequest("it does not fit a request head of HTTP/2");
    let uri = http::Uri::builder().scheme("http").authority(question.authority.as_str()).path_and_query(question.target.as_str());
    let mut message = http::Request::new(Empty::new());
    *message.method_mut() = question.method.clone();
    *message.uri_mut() = uri.build().map_err(|_| UNFIT)?;
    if message.uri().path_and_query().is_none_or(|target| target.as_str() != question.target) {
        return Err(UNFIT);
    }
    headers(&question.fields, message.headers_mut()).then_some(message).ok_or(UNFIT)
}

fn headers(fields: &Fields, to: &mut http::HeaderMap) -> bool {
    let mut lines = fields.iter().filter(|(name, _)| *name != name::HOST.as_str() && *name != name::CONTENT_LENGTH.as_str());
    lines.all(|(name, value)| http2::append(to, name.as_bytes(), value))
}

/// A body that holds its stream.
struct Streamed {
    incoming: http2::Incoming,
    _held: Held,
}

impl BodyStream for Streamed {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        Pin::new(&mut self.incoming).poll_chunk(context)
    }
}
