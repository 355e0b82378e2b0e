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
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Requests at a time on one connection before there is another. With [`STREAM_WINDOW`] this is the window of the
/// connection: streams that nobody reads never hold up those that somebody does.
const STREAMS: usize = 64;
/// Bytes of an answer that may come before they are read: they stand in no account of the memory, so they are few.
const STREAM_WINDOW: u32 = 128 << 10;
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
    links: Box<[Arc<Mutex<Links>>]>,
}

#[derive(Default)]
struct Links {
    open: Vec<Link>,
    opening: Vec<Opening>,
}

#[derive(Clone)]
struct Link {
    sender: SendRequest<Empty<Bytes>>,
    streams: Arc<AtomicUsize>,
}

/// A connection that is being opened, by a task of its own: who wants it may leave, others wait for it as well.
struct Opening {
    /// Requests that wait for it, or did.
    wanted: usize,
    opened: watch::Receiver<Option<Result<Link, FetchError>>>,
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
        Self { host, port, links: (0..workers.max(1)).map(|_| Arc::default()).collect() }
    }

    /// Sends a request and waits for the head of its answer. Dropping this resets the stream.
    ///
    /// A connection that turns out to have died since it was last used is no failure of the peer: then it is sent once more
    /// on a new one. One that falls silent is.
    pub async fn send(&self, question: &Question, settings: &settings::Shield, endpoint: &Arc<str>) -> Result<Inbound, FetchError> {
        let message = message(question)?;
        let began = Instant::now();
        let deadline = began + settings.first_byte_timeout;
        let (link, mut held, mut connect) = self.link(question.worker, settings, false).await?;
        let is_fresh = connect.is_some();
        let mut answer = exchange(link, message.clone(), deadline).await;
        if !is_fresh && began.elapsed() < settings.keep_alive && matches!(answer, Err(FetchError::Closed)) {
            let (link, again, took) = self.link(question.worker, settings, true).await?;
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

    /// A connection, a stream of it, and how long it was waited for where it is new. `anew`: one that was there just now has
    /// died, and others may have with it.
    async fn link(&self, worker: usize, settings: &settings::Shield, anew: bool) -> Result<(Link, Held, Option<Duration>), FetchError> {
        let began = Instant::now();
        let mut opened = match self.choose(worker, settings, anew) {
            Chosen::Open(link, held) => return Ok((link, held, None)),
            Chosen::Opening(opened) => opened,
        };
        // Its task ends within its time, or with the runtime.
        let opened = opened.wait_for(Option::is_some).await.map_err(|_| FetchError::Closed)?.clone();
        let link = opened.unwrap_or(Err(FetchError::Closed))?;
        let held = link.hold();
        Ok((link, held, Some(began.elapsed())))
    }

    /// The connection with the fewest streams; where all are full, one that is being opened for fewer requests than it has
    /// streams; else another one, as long as there are not too many.
    fn choose(&self, worker: usize, settings: &settings::Shield, anew: bool) -> Chosen {
        let all = &self.links[worker % self.links.len()];
        let mut links = all.lock();
        links.open.retain(|link| !link.sender.is_closed());
        let is_full = links.open.len() + links.opening.len() >= CONNECTIONS_MAX;
        let idlest = links.open.iter().map(|link| (link.streams.load(Ordering::Relaxed), link)).min_by_key(|(load, _)| *load);
        if let Some((_, link)) = idlest.filter(|(load, _)| (*load < STREAMS && !anew) || (is_full && links.opening.is_empty())) {
            return Chosen::Open(link.clone(), link.hold());
        }
        if let Some(opening) = links.opening.iter_mut().min_by_key(|opening| opening.wanted).filter(|one| is_full || one.wanted < STREAMS) {
            opening.wanted += 1;
            return Chosen::Opening(opening.opened.clone());
        }
        let (open, opened) = watch::channel(None);
        links.opening.push(Opening { wanted: 1, opened: opened.clone() });
        let (host, port, settings, all) = (Arc::clone(&self.host), self.port, settings.clone(), Arc::clone(all));
        tokio::spawn(async move {
            let link = connected(&host, port, &settings).await;
            let mut links = all.lock();
            links.opening.retain(|opening| !opening.opened.same_channel(&open.subscribe()));
            links.open.extend(link.as_ref().ok().cloned());
            drop(links);
            open.send_replace(Some(link));
        });
        Chosen::Opening(opened)
    }
}

enum Chosen {
    Open(Link, Held),
    Opening(watch::Receiver<Option<Result<Link, FetchError>>>),
}

async fn connected(host: &Arc<Host>, port: u16, settings: &settings::Shield) -> Result<Link, FetchError> {
    let opening = async {
        let addresses = host.addresses(settings.connect_timeout).await?;
        let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        let stream = connect(&addresses, settings.connect_timeout).await?;
        builder(settings).handshake(TokioIo::new(stream)).await.map_err(|error| FetchError::Connect(error.to_string()))
    };
    let (sender, connection) = timeout(settings.connect_timeout, opening).await.map_err(|_| FetchError::ConnectTimeout)??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a peer ended");
        }
    });
    Ok(Link { sender, streams: Arc::default() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::service::service_fn;
    use std::convert::Infallible;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    /// Answers everything, on as many connections as are opened; counts them.
    async fn peer() -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, opened) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&opened);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = service_fn(async |_| Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new())));
                tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
            }
        });
        (address, opened)
    }

    fn settings() -> settings::Shield {
        let flags = serde_json::json!({"upstreams": {"default": {"endpoints": ["http://127.0.0.1:1"]}}});
        crate::config::load(&crate::config::Sources::new(None, flags)).expect("defaults").shield
    }

    #[tokio::test]
    async fn a_burst_opens_as_many_connections_as_its_streams_need() {
        const BURST: usize = 200;
        let (address, opened) = peer().await;
        let client = Arc::new(Client::new(Host::new(&address.ip().to_string()), address.port(), 1));
        let question = Question { method: http::Method::GET, authority: "a".into(), target: "/".into(), fields: Fields::new(), worker: 0 };
        let mut all = JoinSet::new();
        for _ in 0..BURST {
            let (client, question) = (Arc::clone(&client), question.clone());
            all.spawn(async move { client.send(&question, &settings(), &"peer".into()).await.map(|inbound| inbound.status) });
        }
        while let Some(answer) = all.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), 200);
        }
        assert!(opened.load(Ordering::Relaxed) <= BURST.div_ceil(STREAMS), "{} connections", opened.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn all_who_wait_for_a_connection_learn_that_there_is_none() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let client = Client::new(Host::new(&address.ip().to_string()), address.port(), 1);
        let settings = settings();
        let (one, other) = tokio::join!(client.link(0, &settings, false), client.link(0, &settings, false));
        assert!(matches!(one, Err(FetchError::Refused)) && matches!(other, Err(FetchError::Refused)));
        assert!(client.links[0].lock().opening.is_empty(), "the next one tries again");
    }
}
