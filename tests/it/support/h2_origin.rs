//! Origins of HTTP/2: h2's server, and one that sends frames as they are.

use super::h2::{END, END_HEADERS, Frame, HEADERS, PING, PREFACE, Raw, SETTINGS, frame};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::HeaderMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;

/// What an origin saw.
#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    pub open: AtomicUsize,
    /// Requests under way, and the most there were.
    pub active: AtomicUsize,
    pub most: AtomicUsize,
}

pub struct Origin {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

/// A request as it came, and where its answer goes.
pub type Exchange = (http::Request<RecvStream>, SendResponse<Bytes>);

impl Origin {
    pub async fn start<F>(answer: impl Fn(Exchange) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(&Builder::new(), answer).await
    }

    pub async fn start_with<F>(builder: &Builder, answer: impl Fn(Exchange) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let origin = Self { address: listener.local_addr().expect("bound"), seen: Arc::default() };
        let (seen, builder) = (Arc::clone(&origin.seen), builder.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, builder.clone(), Arc::clone(&seen), answer.clone()));
            }
        });
        origin
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

/// Serves one connection.
pub async fn serve<S, F>(stream: S, builder: Builder, seen: Arc<Seen>, answer: impl Fn(Exchange) -> F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()> + Send + 'static,
{
    seen.connections.fetch_add(1, Ordering::SeqCst);
    seen.open.fetch_add(1, Ordering::SeqCst);
    if let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await {
        while let Some(Ok(exchange)) = connection.accept().await {
            let (answered, seen) = (answer(exchange), Arc::clone(&seen));
            let active = seen.active.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(active, Ordering::SeqCst);
            tokio::spawn(async move {
                answered.await;
                seen.active.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }
    seen.open.fetch_sub(1, Ordering::SeqCst);
}

/// Answers 200 with this body.
pub fn say(mut respond: SendResponse<Bytes>, body: impl Into<Bytes>) {
    let body: Bytes = body.into();
    let mut stream = respond.send_response(http::Response::new(()), false).expect("a stream");
    stream.send_data(body, true).expect("a stream");
}

/// All of a request's body, and its trailers.
pub async fn read(body: &mut RecvStream) -> (Vec<u8>, HeaderMap) {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        all.extend_from_slice(&data);
        _ = body.flow_control().release_capacity(data.len());
    }
    (all, body.trailers().await.ok().flatten().unwrap_or_default())
}

/// `:status: 200` in HPACK.
pub const OK: &[u8] = &[0x88];

/// An origin that sends what it likes: `script` has each connection after the prefaces and the first ping, and its number.
pub async fn raw<F>(script: impl Fn(Raw, usize) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).await.expect("a preface");
            assert_eq!(preface, PREFACE);
            let mut raw = Raw { stream };
            raw.send(&frame(SETTINGS, 0, 0, &[])).await;
            let Some(ping) = raw.until(|frame| frame.kind == PING).await else { continue };
            raw.send(&[frame(SETTINGS, END, 0, &[]), pong(&ping)].concat()).await;
            tokio::spawn(script(raw, number));
            number += 1;
        }
    });
    address
}

pub fn pong(ping: &Frame) -> Vec<u8> {
    frame(PING, END, 0, &ping.payload)
}

impl Raw {
    /// The stream of the next request.
    pub async fn request(&mut self) -> Option<u32> {
        self.until(|frame| frame.kind == HEADERS).await.map(|frame| frame.stream)
    }

    /// The head of an answer with 200 and these lines.
    pub async fn head(&mut self, stream: u32, lines: &[u8]) {
        self.send(&frame(HEADERS, END_HEADERS, stream, &[OK, lines].concat())).await;
    }
}
