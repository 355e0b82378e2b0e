//! A server of one connection protocol with a scripted handler behind it.

use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tiercel::body::{BodyError, BodyStream, Chunk, ResponseBody};
use tiercel::config::settings::Limits;
use tiercel::listener::{
    ClientSocket, Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent,
};
use tiercel::observe::metrics::Bound;
use tiercel::proxy::outcome::Outcome;
use tiercel::semantics::{Fields, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(20);

type Script = dyn Fn(&RequestHead, RequestBody, &mut InterimSlot) -> Handled + Send + Sync;

/// What the connections told their handler.
#[derive(Debug, Default, Clone)]
pub struct Told {
    /// Method and target.
    pub handled: Vec<String>,
    /// Field lines with a bar after each, of the same requests.
    pub fields: Vec<String>,
    pub finished: Vec<Sent>,
    pub refused: Vec<Refusal>,
    pub bounds: Vec<Bound>,
    /// Connections that ended.
    pub ended: usize,
}

pub struct Scripted {
    script: Box<Script>,
    pub told: watch::Sender<Told>,
}

impl Handler for Scripted {
    fn handle(self: &Arc<Self>, _: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        self.told.send_modify(|told| {
            told.handled.push(format!("{} {}", head.method, String::from_utf8_lossy(&head.target)));
            told.fields.push(String::from_utf8_lossy(head.fields.wire()).replace("\r\n", "|"));
        });
        (self.script)(head, body, interim)
    }
    fn finished(&self, _: &Peer, _: &RequestHead, _: &Outcome, sent: &Sent) {
        self.told.send_modify(|told| told.finished.push(*sent));
    }
    fn refused(&self, _: &Peer, _: Option<&RequestHead>, refusal: Refusal, _: u64) {
        self.told.send_modify(|told| told.refused.push(refusal));
    }
    fn bound(&self, bound: Bound) {
        self.told.send_modify(|told| told.bounds.push(bound));
    }
}

/// What serves one connection.
pub struct Connection {
    pub socket: ClientSocket,
    pub peer: Peer,
    pub limits: Arc<Limits>,
    pub handler: Arc<Scripted>,
    pub draining: watch::Receiver<bool>,
}

pub struct Server {
    pub address: SocketAddr,
    pub drain: watch::Sender<bool>,
    pub handler: Arc<Scripted>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub async fn start<Served: Future<Output = ()> + Send + 'static>(
        limits: Limits,
        serve: impl Fn(Connection) -> Served + Send + 'static,
        script: impl Fn(&RequestHead, RequestBody, &mut InterimSlot) -> Handled + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Arc::new(Scripted { script: Box::new(script), told: watch::channel(Told::default()).0 });
        let drain = watch::channel(false).0;
        let (limits, shared, draining) = (Arc::new(limits), Arc::clone(&handler), drain.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((stream, client)) = listener.accept().await {
                let (handler, limits) = (Arc::clone(&shared), Arc::clone(&limits));
                let served = serve(Connection {
                    socket: ClientSocket::new(stream.into_std().unwrap()),
                    peer: peer(client, address),
                    limits,
                    handler: Arc::clone(&handler),
                    draining: draining.clone(),
                });
                tokio::spawn(async move {
                    served.await;
                    handler.told.send_modify(|told| told.ended += 1);
                });
            }
        });
        Self { address, drain, handler, accepting }
    }

    /// Waits until what the handler was told fits.
    pub async fn told(&self, fits: impl FnMut(&Told) -> bool) -> Told {
        let mut told = self.handler.told.subscribe();
        tokio::time::timeout(PATIENCE, told.wait_for(fits)).await.expect("it was told").expect("alive").clone()
    }
}

pub fn peer(client: SocketAddr, local: SocketAddr) -> Peer {
    Peer::plain(client, local, 0, "test")
}

pub fn limits() -> Limits {
    let long = Duration::from_secs(60);
    Limits {
        requests_per_connection: 1000,
        header_bytes: 8192,
        header_count: 100,
        url_bytes: 2048,
        body_bytes: 64 << 20,
        header_timeout: long,
        idle_timeout: long,
        body_timeout: long,
        body_rate: 0,
        write_timeout: long,
        ..Limits::default()
    }
}

pub fn response(status: u16, body: ResponseBody) -> Response {
    let mut fields = Fields::new();
    fields.push("x-test", "yes").unwrap();
    let status = StatusCode::from_u16(status).unwrap();
    Response { status, fields: ResponseFields::Own(fields), body, close: false, outcome: Outcome::default() }
}

pub fn text(body: impl Into<String>) -> Response {
    response(200, ResponseBody::Full(Bytes::from(body.into())))
}

pub fn later(future: impl Future<Output = Response> + Send + 'static) -> Handled {
    Handled::later(future)
}

/// A body of prepared pieces.
struct Pieces(VecDeque<Result<Chunk, BodyError>>);

impl BodyStream for Pieces {
    fn poll_chunk(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

pub fn pieces(length: Option<u64>, pieces: impl IntoIterator<Item = Result<Chunk, BodyError>>) -> ResponseBody {
    ResponseBody::Stream { length, stream: Box::pin(Pieces(pieces.into_iter().collect())) }
}

pub fn data(bytes: &'static str) -> Result<Chunk, BodyError> {
    Ok(Chunk::Data(Bytes::from_static(bytes.as_bytes())))
}

/// A body that a test feeds as it goes.
pub struct Fed(pub mpsc::UnboundedReceiver<Result<Chunk, BodyError>>);

impl BodyStream for Fed {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.0.poll_recv(context)
    }
}

/// The next piece of a request's body.
pub async fn next(body: &mut RequestBody) -> Option<Result<Chunk, BodyError>> {
    match body {
        RequestBody::Empty | RequestBody::Full(_) => None,
        RequestBody::Stream { stream, .. } => std::future::poll_fn(|context| stream.as_mut().poll_chunk(context)).await,
    }
}
