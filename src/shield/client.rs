//! Connections to one peer, and requests on them: HTTP/2, in plain text by prior knowledge (RFC 9113 §3.3) or over TLS.

use crate::config::settings;
use crate::http1::response::Asked;
use crate::listener::RequestBody;
use crate::observe::metrics::Metrics;
use crate::semantics::{Fields, name};
use crate::tls::client::Watched;
use crate::upstream::http2::{self, Bounds, Connections, Granted, Stream};
use crate::upstream::{Broken, FetchError, Host, Inbound, Order, Outbound, Reach, Terms, Wire, connect};
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
    pub authority: String,
    /// Path and query.
    pub target: String,
    pub fields: Fields,
    /// Worker on whose runtime this runs.
    pub worker: usize,
}

/// Where a peer is.
pub struct Place {
    pub host: Arc<Host>,
    pub port: u16,
    /// What its certificate is for, unless the fleet's are for one name.
    pub certified_as: Arc<str>,
}

/// The connections to one peer.
pub struct Client {
    place: Arc<Place>,
    tls: Option<Arc<Watched>>,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
}

impl Client {
    /// `tls`: `None`: plain text.
    pub fn new(place: Place, tls: Option<Arc<Watched>>, workers: usize, settings: &settings::Shield, metrics: &Arc<Metrics>) -> Self {
        let bounds = Bounds {
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
        };
        let connections = Connections::new(bounds, workers, Arc::clone(metrics), None);
        Self { place: Arc::new(place), tls, connections, metrics: Arc::clone(metrics) }
    }

    /// Sends a request and waits for the head of its answer. Dropping this resets the stream.
    ///
    /// A connection that turns out to have died since it was last used is no failure of the peer: then it is sent once more
    /// on a new one. One that falls silent is.
    pub async fn send(&self, question: &Question, settings: &settings::Shield, endpoint: &Arc<str>) -> Result<Inbound, FetchError> {
        let mut request = Outbound {
            method: question.method.clone(),
            path_and_query: question.target.clone(),
            host: Some(question.authority.clone()),
            fields: question.fields.clone(),
            body: RequestBody::Empty,
            upgrade: false,
            interim: None,
            worker: question.worker,
            client: None,
        };
        let message = http2::message(&request, false, &question.authority)?;
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
        let stream = self.stream(question.worker, settings, false).await?;
        let mut connect = stream.connect;
        let mut answer = http2::exchange(&order, message.clone(), &mut request, stream).await;
        if let Err(Broken { reach: Reach::Unwritten | Reach::Unanswered, .. }) = answer
            && connect.is_none()
            && order.began.elapsed() < settings.keep_alive
        {
            let stream = self.stream(question.worker, settings, true).await?;
            connect = stream.connect;
            answer = http2::exchange(&order, message, &mut request, stream).await;
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
            from_peer: true,
        })
    }

    async fn stream(&self, worker: usize, settings: &settings::Shield, fresh: bool) -> Result<Stream, FetchError> {
        let limit = settings.connect_timeout;
        let dial = || {
            let (place, tls) = (Arc::clone(&self.place), self.tls.clone());
            async move {
                let deadline = Instant::now() + limit;
                let addresses = place.host.addresses(limit).await?;
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
        let place = Place { host: Host::new(&host), port: address.port(), certified_as: host.into() };
        Client::new(place, None, 1, &settings(), &Metrics::new(1))
    }

    #[tokio::test]
    async fn a_burst_opens_as_many_connections_as_its_streams_need() {
        const BURST: usize = 200;
        let (address, opened) = peer().await;
        let client = Arc::new(client(address));
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
        let client = client(address);
        let settings = settings();
        let (one, other) = tokio::join!(client.stream(0, &settings, false), client.stream(0, &settings, false));
        assert!(matches!(one, Err(FetchError::Refused)) && matches!(other, Err(FetchError::Refused)));
        assert_eq!(client.connections.counts(), (0, 0, 0), "the next one tries again");
    }
}
