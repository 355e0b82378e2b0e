//! A panic in one request: that request fails, is logged with its id and counted; everything else goes on.
//!
//! The handler behind the connection is the proxy itself; in front of it stands one that panics where the path says so.

use crate::support::client::Client;
use crate::support::origin::{Gate, Origin, Script, eventually};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tiercel::body::{BodyError, BodyStream, Chunk, ResponseBody};
use tiercel::config::{self, Sources};
use tiercel::invalidation::Journal;
use tiercel::listener::http1::serve;
use tiercel::listener::{
    ClientSocket, Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent,
};
use tiercel::observe::access_log::AccessLog;
use tiercel::observe::metrics::{Bound, Metrics};
use tiercel::proxy::outcome::Outcome;
use tiercel::proxy::{Live, Proxy};
use tiercel::semantics::{Fields, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::watch;

struct Faulty(Arc<Proxy>);

impl Handler for Faulty {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        match &head.target[..] {
            b"/at-once" => panic!("scripted"),
            b"/later" => Handled::later(async { panic!("scripted") }),
            b"/body" => Handled::Ready(Response {
                status: StatusCode::OK,
                fields: ResponseFields::Own(Fields::new()),
                body: ResponseBody::Stream { length: Some(5), stream: Box::pin(FaultyBody) },
                close: false,
                outcome: Outcome { request_id: Some("given".into()), ..Outcome::default() },
            }),
            _ => self.0.handle(peer, head, body, interim),
        }
    }
    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        self.0.finished(peer, head, outcome, sent);
    }
    fn refused(&self, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64) {
        self.0.refused(peer, head, refusal, duration_ns);
    }
    fn bound(&self, bound: Bound) {
        self.0.bound(bound);
    }
}

struct FaultyBody;

impl BodyStream for FaultyBody {
    fn poll_chunk(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        panic!("scripted");
    }
}

struct Served {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    log: PathBuf,
    _folder: tempfile::TempDir,
    /// Kept: its end would be taken for a drain.
    _drain: watch::Sender<bool>,
}

/// The proxy behind the faulty handler, in this process.
async fn served(origin: &Origin) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let file = folder.path().join("tiercel.toml");
    let text = format!(
        "server.trusted_proxies = ['127.0.0.1/32']\nsites.default.upstream = 'default'\nupstreams.default.endpoints = ['{}']\n\
         log.access = {{ target = '{}', format = 'json' }}\n",
        origin.url(),
        log.display()
    );
    std::fs::write(&file, text).expect("a writable folder");
    let settings = config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|problems| panic!("{problems}"));
    let metrics = Metrics::new(settings.server.workers);
    let access_log = Arc::new(AccessLog::open(&settings.log.access, Arc::clone(&metrics)).expect("a writable folder"));
    let live = Live::new(settings.clone(), None, &metrics);
    let proxy =
        Proxy::new(&settings, live, Arc::new(Journal::new(&settings.purge.bounds)), Arc::clone(&metrics), access_log, Arc::default());
    let (handler, limits) = (Arc::new(Faulty(proxy)), Arc::new(settings.limits.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let drain = watch::Sender::new(false);
    let draining = drain.subscribe();
    tokio::spawn(async move {
        while let Ok((stream, client)) = listener.accept().await {
            let peer = Peer::plain(client, address, 0, "test");
            let stream = ClientSocket::new(stream.into_std().expect("a socket of ours"));
            tokio::spawn(serve(stream, peer, Arc::clone(&limits), Arc::clone(&handler), draining.clone()));
        }
    });
    Served { address, metrics, log, _folder: folder, _drain: drain }
}

impl Served {
    async fn send(&self, path: &str) -> Client {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nX-Request-Id: given\r\n\r\n")).await;
        client
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[tokio::test]
async fn a_panic_fails_one_request_and_leaves_its_trace_while_others_go_on() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Script::ok("body").header("Cache-Control", "max-age=60").after(&held));
    let served = served(&origin).await;
    let mut under_way = served.send("/a").await;
    origin.until("a request under way", |origin| origin.count("/a") == 1).await;
    for path in ["/at-once", "/later"] {
        let answer = served.send(path).await.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.field("connection")), (500, Some("close")), "{path}");
    }
    let torn = served.send("/body").await.answer(false).await.expect("a head");
    assert!(torn.status == 200 && !torn.whole, "never a short body as a whole one");
    gate.open();
    assert_eq!(under_way.answer(false).await.expect("an answer").text(), "body");
    assert_eq!(served.send("/b").await.answer(false).await.expect("an answer").text(), "body");
    eventually("a line each", || served.lines().len() == 5).await;
    for path in ["/at-once", "/later", "/body"] {
        let lines = served.lines();
        let line = lines.iter().find(|line| line["path"] == path).expect("its line");
        assert_eq!(line["request_id"], "given", "{line}");
        assert!(path == "/body" || line["detail"] == "panic", "{line}");
    }
    assert!(served.metrics.render().contains("tiercel_refused_total{code=\"5xx\",reason=\"panic\"} 2\n"));
}
