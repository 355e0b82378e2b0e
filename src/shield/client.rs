//! Connections to one peer, and requests on them: HTTP/2, in plain text by prior knowledge (RFC 9113 §3.3) or over TLS.

use crate::config::settings;
use crate::http1::response::Asked;
use crate::listener::RequestBody;
use crate::observe::metrics::Metrics;
use crate::semantics::target::Scheme;
use crate::semantics::{Fields, name};
use crate::tls::client::Watched;
use crate::upstream::http2::{self, Bounds, Connections, Granted, Stream};
use crate::upstream::{Broken, FetchError, Giver, Host, Inbound, Order, Outbound, Reach, Terms, Wire, connect};
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Requests at a time on one connection before there is another.
const STREAMS: usize = 64;
/// Bytes of an answer that may come before they are read: they stand in no account of the memory, so they are few.
const STREAM_WINDOW: u32 = 128 << 10;
/// Connections to one peer per worker.
const CONNECTIONS: usize = 8;
/// Requests to one peer that may wait for a stream.
const QUEUE: usize = 4096;
/// The head of an answer.
const HEADER_BYTES: usize = 256 << 10;
const HEADER_COUNT: usize = 1024;
/// How long a connection without requests is kept.
const IDLE: Duration = Duration::from_secs(60);

/// A request to a peer; it has no body.
#[derive(Debug, Clone)]
pub struct Question {
    pub method: Method,
    pub scheme: Scheme,
    pub authority: String,
    /// Path and query.
    pub target: String,
    /// Without Tiercel-Hop.
    pub fields: Fields,
    /// Worker on whose runtime this runs.
    pub worker: usize,
}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    /// What its certificate is for, unless the fleet's are for one name.
    pub certified_as: Arc<str>,
}

/// The connections to one peer.
pub struct Client {
    place: Place,
    host: Arc<Host>,
    bounds: Bounds,
    tls: Option<Arc<Watched>>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
}

impl Client {
    /// `tls`: `None`: plain text.
    pub fn new(place: Place, tls: Option<Arc<Watched>>, workers: usize, settings: &settings::Shield, metrics: &Arc<Metrics>) -> Self {
        let bounds = Self::bounds(workers, settings);
        let connections = Connections::new(bounds.clone(), workers, Arc::clone(metrics), None);
        Self { host: Host::new(&place.host), place, bounds, tls, connections, metrics: Arc::clone(metrics) }
    }

    /// Whether one that is made now would be like this one.
    pub fn is_for(&self, place: &Place, tls: Option<&Arc<Watched>>, workers: usize, settings: &settings::Shield) -> bool {
        self.place == *place && self.tls.as_ref().map(Arc::as_ptr) == tls.map(Arc::as_ptr) && self.bounds == Self::bounds(workers, settings)
    }

    fn bounds(workers: usize, settings: &settings::Shield) -> Bounds {
        Bounds {
            connections: CONNECTIONS * workers.max(1),
            streams: STREAMS,
            stream_window: STREAM_WINDOW,
            header_list: http2::header_list(HEADER_BYTES, HEADER_COUNT),
            queue: QUEUE,
            queue_timeout: settings.first_byte_timeout,
            connect_timeout: settings.connect_timeout,
            idle_timeout: IDLE,
            // A peer that is stopped still has a kernel that takes connections: only an answer says that it is there.
            keep_alive: settings.keep_alive,
        }
    }

    /// Sends a request and waits for the head of its answer. Dropping this resets the stream. `hop` is written when the
    /// request can go, and anew when it goes once more: it is good for a moment, and once.
    ///
    /// A connection that turns out to have died since it was last used is no failure of the peer: then it is sent once more
    /// on a new one. One that falls silent is.
    pub async fn send(
        &self,
        question: &Question,
        hop: impl Fn() -> String,
        settings: &settings::Shield,
        endpoint: &Arc<str>,
    ) -> Result<Inbound, FetchError> {
        let order = Order {
            terms: Terms {
                first_byte_timeout: settings.first_byte_timeout,
                read_timeout: settings.read_timeout,
                header_bytes: HEADER_BYTES,
                header_count: HEADER_COUNT,
            },
            metrics: &self.metrics,
            asked: Asked { head: question.method == Method::HEAD, range: question.fields.has(name::RANGE), upgrade: None },
            interim: None,
            began: Instant::now(),
            deadline: None,
        };
        let send = async |stream: Stream| {
            let mut request = outbound(question, &hop())?;
            let message = http2::message(&request, false, &question.authority)?;
            Ok::<_, FetchError>(http2::exchange(&order, message, &mut request, stream).await)
        };
        let stream = self.stream(question.worker, settings, false).await?;
        let mut connect = stream.connect;
        let mut answer = send(stream).await?;
        if let Err(Broken { reach: Reach::Unwritten | Reach::Unanswered, .. }) = answer
            && connect.is_none()
            && order.began.elapsed() < settings.keep_alive
        {
            let stream = self.stream(question.worker, settings, true).await?;
            connect = stream.connect;
            answer = send(stream).await?;
        }
        let answer = answer.map_err(|broken| broken.error)?;
        Ok(Inbound {
            status: answer.head.status,
            fields: answer.head.fields,
            length: answer.head.length,
            body: answer.body,
            tunnel: None,
            endpoint: Arc::clone(endpoint),
            connect,
            first_byte: order.began.elapsed(),
            giver: Giver::Peer,
        })
    }

    async fn stream(&self, worker: usize, settings: &settings::Shield, fresh: bool) -> Result<Stream, FetchError> {
        let limit = settings.connect_timeout;
        let dial = || {
            let (host, place, tls) = (Arc::clone(&self.host), self.place.clone(), self.tls.clone());
            async move {
                let deadline = Instant::now() + limit;
                let addresses = host.addresses(limit).await?;
                let addresses: Vec<_> = addresses.iter().map(|address| SocketAddr::new(*address, place.port)).collect();
                let stream = connect(&addresses, limit).await?;
                let Some(tls) = tls else { return Ok(Some(Wire::Plain(stream))) };
                let wire = Wire::secure(stream, &tls.current(), &place.certified_as, deadline).await?;
                let chosen = wire.chose_http2().then_some(wire);
                chosen
                    .map(Some)
                    .ok_or_else(|| FetchError::TlsProtocol(format!("{} is no node: it did not choose HTTP/2", place.certified_as)))
            }
        };
        match self.connections.stream(worker, fresh, dial).await? {
            Granted::Http2(stream) => Ok(stream),
            Granted::Http1 => Err(FetchError::Closed), // nothing else was offered
        }
    }
}

fn outbound(question: &Question, hop: &str) -> Result<Outbound, FetchError> {
    let mut fields = question.fields.clone();
    fields.append(name::TIERCEL_HOP, hop).map_err(|_| FetchError::InvalidRequest("a hop that is no field"))?;
    Ok(Outbound {
        method: question.method.clone(),
        path_and_query: question.target.clone(),
        host: Some(question.authority.clone()),
        fields,
        body: RequestBody::Empty,
        upgrade: false,
        interim: None,
        worker: question.worker,
        client: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
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

    fn client(address: SocketAddr) -> Client {
        let host = address.ip().to_string();
        let place = Place { certified_as: host.as_str().into(), host, port: address.port() };
        Client::new(place, None, 1, &settings(), &Metrics::new(1))
    }

    #[tokio::test]
    async fn a_burst_opens_as_many_connections_as_its_streams_need() {
        const BURST: usize = 200;
        let (address, opened) = peer().await;
        let client = Arc::new(client(address));
        let (method, scheme) = (http::Method::GET, Scheme::Http);
        let question = Question { method, scheme, authority: "a".into(), target: "/".into(), fields: Fields::new(), worker: 0 };
        let mut all = JoinSet::new();
        for _ in 0..BURST {
            let (client, question) = (Arc::clone(&client), question.clone());
            all.spawn(async move { client.send(&question, String::new, &settings(), &"peer".into()).await.map(|inbound| inbound.status) });
        }
        while let Some(answer) = all.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), 200);
        }
        assert!(opened.load(Ordering::Relaxed) <= BURST.div_ceil(STREAMS), "{} connections", opened.load(Ordering::Relaxed));
    }

    /// Answers one request on each connection and ends it with the next; tells what hops came.
    async fn tired_peer() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, hops) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    for number in 0..2 {
                        let Some(Ok((request, mut answer))) = connection.accept().await else { return };
                        told.send(request.headers()["tiercel-hop"].to_str().unwrap().to_owned()).unwrap();
                        if number == 0 {
                            answer.send_response(http::Response::new(()), true).unwrap();
                        }
                    }
                });
            }
        });
        (address, hops)
    }

    #[tokio::test]
    async fn a_request_that_goes_once_more_has_a_hop_of_its_own() {
        let (address, mut hops) = tired_peer().await;
        let client = client(address);
        let (method, scheme) = (http::Method::GET, Scheme::Http);
        let question = Question { method, scheme, authority: "a".into(), target: "/".into(), fields: Fields::new(), worker: 0 };
        let count = AtomicUsize::new(0);
        let hop = || count.fetch_add(1, Ordering::Relaxed).to_string();
        for _ in 0..2 {
            assert_eq!(client.send(&question, hop, &settings(), &"peer".into()).await.unwrap().status, 200);
        }
        let mut came = Vec::new();
        while let Ok(hop) = hops.try_recv() {
            came.push(hop);
        }
        assert_eq!(came, ["0", "1", "2"]);
    }

    #[tokio::test]
    async fn all_who_wait_for_a_connection_learn_that_there_is_none() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let client = client(address);
        let settings = settings();
        let (one, other) = tokio::join!(client.stream(0, &settings, false), client.stream(0, &settings, false));
        assert!(matches!(one, Err(FetchError::Refused)) && matches!(other, Err(FetchError::Refused)));
        assert_eq!(client.connections.counts(), (0, 0, 0), "the next one tries again");
    }
}
