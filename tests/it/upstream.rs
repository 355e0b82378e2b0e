//! Requests to upstreams against a scripted origin on real sockets. The whole file runs twice: as `upstream` through our
//! own codec, as `upstream_hyper` through hyper's.

use crate::support::origin::{Gate, Origin, Recorded, Script, Step, eventually};
use bytes::Bytes;
use http::{Method, StatusCode};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tiercel::body::{BodyError, BodyStream, Chunk};
use tiercel::config::settings;
use tiercel::listener::{InterimSlot, RequestBody};
use tiercel::observe::metrics::Metrics;
use tiercel::semantics::{Fields, name};
use tiercel::upstream::{FetchError, Inbound, Outbound, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(60);
/// For what is expected to run out.
const SHORT: Duration = Duration::from_millis(50);

fn endpoint(host: &str, port: u16) -> settings::Endpoint {
    settings::Endpoint { url: format!("http://{host}:{port}"), host: host.to_owned(), port, is_secure: false, socket: None }
}

fn codec() -> settings::UpstreamCodec {
    if module_path!().ends_with("_hyper") { settings::UpstreamCodec::Hyper } else { settings::UpstreamCodec::Own }
}

/// One endpoint, through this codec.
pub fn codec_settings(http1: settings::UpstreamCodec, address: SocketAddr) -> settings::Upstream {
    settings::Upstream { http1, ..to(&[address]) }
}

fn to(addresses: &[SocketAddr]) -> settings::Upstream {
    settings::Upstream {
        name: "app".to_owned(),
        endpoints: addresses.iter().map(|address| endpoint(&address.ip().to_string(), address.port())).collect(),
        balance: settings::Balance::RoundRobin,
        http: settings::UpstreamHttp::One,
        http1: codec(),
        http2: settings::UpstreamHttp2::default(),
        connections: 8,
        queue: 8,
        queue_timeout: LONG,
        purge_concurrency: 0,
        purge_queue_timeout: LONG,
        idle_connections: 8,
        idle_timeout: LONG,
        connect_timeout: LONG,
        first_byte_timeout: LONG,
        read_timeout: LONG,
        total_timeout: None,
        retries: 1,
        header_bytes: 16 * 1024,
        header_count: 100,
        tls: settings::UpstreamTls::default(),
        proxy_protocol: None,
    }
}

fn start(settings: settings::Upstream) -> Arc<Upstream> {
    Upstream::new(Arc::new(settings), 2, Metrics::new(2))
}

fn upstream(origin: &Origin) -> Arc<Upstream> {
    start(codec_settings(codec(), origin.addr()))
}

fn request(method: Method, path: &str, body: RequestBody) -> Outbound {
    let (path_and_query, fields) = (path.to_owned(), Fields::new());
    Outbound { method, path_and_query, host: None, fields, body, upgrade: false, interim: None, worker: 0, client: None }
}

pub fn get(path: &str) -> Outbound {
    request(Method::GET, path, RequestBody::Empty)
}

fn post(path: &str, body: &'static str) -> Outbound {
    let stream = Pieces { pieces: vec![Bytes::from_static(body.as_bytes())], end: End::Clean };
    request(Method::POST, path, RequestBody::Stream { length: Some(body.len() as u64), stream: Box::pin(stream) })
}

/// A request body of given pieces.
struct Pieces {
    pieces: Vec<Bytes>,
    end: End,
}

enum End {
    Clean,
    Fails(BodyError),
    /// The client sends nothing more; the guard tells when the stream is dropped.
    Never(#[expect(dead_code, reason = "held for its drop")] Arc<()>),
}

impl BodyStream for Pieces {
    fn poll_chunk(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        if !self.pieces.is_empty() {
            return Poll::Ready(Some(Ok(Chunk::Data(self.pieces.remove(0)))));
        }
        match self.end {
            End::Clean => Poll::Ready(None),
            End::Fails(error) => Poll::Ready(Some(Err(error))),
            End::Never(_) => Poll::Pending,
        }
    }
}

async fn next(inbound: &mut Inbound) -> Option<Result<Chunk, BodyError>> {
    let body = inbound.body.as_mut()?;
    poll_fn(|context| body.poll_chunk(context)).await
}

/// The body to its end, and how it ended.
async fn read(inbound: &mut Inbound) -> (Vec<u8>, Option<BodyError>) {
    let mut all = Vec::new();
    loop {
        match next(inbound).await {
            None => return (all, None),
            Some(Ok(Chunk::Data(data))) => all.extend_from_slice(&data),
            Some(Ok(Chunk::Trailers(_))) => {}
            Some(Err(error)) => return (all, Some(error)),
        }
    }
}

async fn fetch(upstream: &Arc<Upstream>, request: Outbound) -> (StatusCode, String) {
    let mut inbound = upstream.send(request).await.unwrap();
    let (body, error) = read(&mut inbound).await;
    assert_eq!(error, None);
    (inbound.status, String::from_utf8(body).unwrap())
}

pub async fn fails(upstream: &Arc<Upstream>, request: Outbound) -> FetchError {
    upstream.send(request).await.map(|inbound| inbound.status).unwrap_err().error
}

fn ok() -> (StatusCode, String) {
    (StatusCode::OK, "ok".to_owned())
}

// Connections

#[tokio::test]
async fn a_connection_is_used_again() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    let mut first = upstream.send(get("/")).await.unwrap();
    assert!(first.connect.is_some());
    assert_eq!(read(&mut first).await, (b"ok".to_vec(), None));
    for _ in 0..3 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
    }
    assert!(upstream.send(get("/")).await.unwrap().connect.is_none());
    assert_eq!(origin.connections(), 1);
    assert_eq!(origin.requests("/")[2].field("host").unwrap(), origin.addr().to_string());
}

#[tokio::test]
async fn answers_without_a_body_give_the_connection_back_at_once() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/304" => Script::raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nETag: \"a\"\r\n\r\n"),
        "/204" => Script::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        _ => Script::ok(if request.method == "HEAD" { "four" } else { "" }),
    });
    let upstream = upstream(&origin);
    for (request, length) in
        [(get("/304"), None), (get("/204"), None), (request(Method::HEAD, "/head", RequestBody::Empty), None), (get("/empty"), Some(0))]
    {
        let inbound = upstream.send(request).await.unwrap();
        assert!(inbound.body.is_none());
        assert_eq!(inbound.length, length);
        assert_eq!(upstream.usage().idle, 1);
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn idle_connections_are_closed_when_their_time_is_up() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = start(settings::Upstream { idle_timeout: SHORT, ..to(&[origin.addr()]) });
    assert_eq!(fetch(&upstream, get("/")).await, ok());
    origin.until("the idle connection is closed", |origin| origin.open_connections() == 0).await;
    assert_eq!(upstream.usage(), tiercel::upstream::Usage::default());
    assert_eq!(fetch(&upstream, get("/")).await, ok());
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_the_origin_will_close_is_not_kept() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/soon" => Script::ok("ok").header("Keep-Alive", "timeout=1"),
        _ => Script::ok("ok").header("Connection", "close"),
    });
    let upstream = upstream(&origin);
    for path in ["/soon", "/close"] {
        assert_eq!(fetch(&upstream, get(path)).await, ok());
        assert_eq!(upstream.usage().open, 0, "{path}");
    }
}

#[tokio::test]
async fn idle_connections_have_a_limit() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Script::ok("ok").after(&gate)
    });
    let upstream = start(settings::Upstream { idle_connections: 1, ..to(&[origin.addr()]) });
    let (one, two) = tokio::join!(fetch(&upstream, get("/")), async {
        let fetched = tokio::join!(fetch(&upstream, get("/")), async {
            origin.until("both requests are there", |origin| origin.total() == 2).await;
            gate.open();
        });
        fetched.0
    });
    assert_eq!((one, two), (ok(), ok()));
    assert_eq!((upstream.usage().open, upstream.usage().idle), (1, 1));
}

#[tokio::test]
async fn requests_beyond_the_cap_wait_in_a_line_that_ends() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Script::ok("ok").after(&gate)
    });
    let upstream = start(settings::Upstream { connections: 1, queue: 1, ..to(&[origin.addr()]) });
    let spawn = |worker| {
        let upstream = upstream.clone();
        tokio::spawn(async move { fetch(&upstream, Outbound { worker, ..get("/") }).await })
    };
    let first = spawn(0);
    origin.until("the first request is there", |origin| origin.total() == 1).await;
    let second = spawn(1);
    eventually("the second waits", || upstream.usage().waiting == 1).await;
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::QueueFull));
    gate.open();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (ok(), ok()));
    assert_eq!((origin.connections(), origin.total()), (1, 2));
    assert_eq!(upstream.usage().waiting, 0);
}

#[tokio::test]
async fn waiting_in_line_has_a_deadline() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |_| Script::ok("ok").after(&gate)
    });
    let upstream = start(settings::Upstream { connections: 1, queue_timeout: SHORT, ..to(&[origin.addr()]) });
    let first = tokio::spawn({
        let upstream = upstream.clone();
        async move { fetch(&upstream, get("/")).await }
    });
    origin.until("the first request is there", |origin| origin.total() == 1).await;
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::QueueTimeout));
    assert_eq!(upstream.usage().waiting, 0);
    gate.open();
    assert_eq!(first.await.unwrap(), ok());
}

#[tokio::test]
async fn the_line_moves_on_when_a_connection_or_a_waiter_goes_away() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/endless" => Script::endless("x"),
        _ => Script::ok("ok"),
    });
    let upstream = start(settings::Upstream { connections: 1, ..to(&[origin.addr()]) });
    let endless = upstream.send(get("/endless")).await.unwrap();
    let spawn = || {
        let upstream = upstream.clone();
        tokio::spawn(async move { fetch(&upstream, get("/")).await })
    };
    let (leaves, stays) = (spawn(), spawn());
    eventually("two wait", || upstream.usage().waiting == 2).await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    drop(endless);
    assert_eq!(stays.await.unwrap(), ok());
    assert_eq!(origin.count("/"), 1);
}

#[tokio::test]
async fn at_the_cap_a_worker_uses_what_is_idle_elsewhere() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = start(settings::Upstream { connections: 1, ..to(&[origin.addr()]) });
    for worker in [0, 1, 0] {
        assert_eq!(fetch(&upstream, Outbound { worker, ..get("/") }).await, ok());
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_in_the_line() {
    const TASKS: usize = 24;
    const REQUESTS: usize = 40;
    let origin = Origin::start(|request| {
        // Some connections go away, so that rights to new ones are handed on too.
        if request.path == "/close" { Script::ok("ok").header("Connection", "close") } else { Script::ok("ok") }
    });
    let upstream = start(settings::Upstream { connections: 3, queue: TASKS, ..to(&[origin.addr()]) });
    let tasks: Vec<_> = (0..TASKS)
        .map(|worker| {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                for number in 0..REQUESTS {
                    let path = if number % 5 == worker % 5 { "/close" } else { "/keep" };
                    assert_eq!(fetch(&upstream, Outbound { worker, ..get(path) }).await, ok());
                    assert!(upstream.usage().open <= 3);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let usage = upstream.usage();
    assert_eq!((usage.open, usage.waiting), (usage.idle, 0));
    assert_eq!(origin.total(), TASKS * REQUESTS);
}

#[tokio::test]
async fn dropping_a_body_early_closes_its_connection() {
    let origin = Origin::start(|_| Script::endless("some bytes"));
    let upstream = upstream(&origin);
    let mut inbound = upstream.send(get("/")).await.unwrap();
    assert!(matches!(next(&mut inbound).await, Some(Ok(Chunk::Data(_)))));
    drop(inbound);
    origin.until("the connection is closed", |origin| origin.open_connections() == 0).await;
    assert_eq!(upstream.usage().open, 0);
}

// Endpoints and names

/// An address to which nothing listens, held so that nobody else takes it.
fn dead_address() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_refused_connection_is_said_to_be_refused() {
    let (_held, address) = dead_address();
    let upstream = start(to(&[address]));
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::Refused));
    assert_eq!(upstream.usage().open, 0);
}

#[tokio::test]
async fn endpoints_take_turns() {
    let origins = [Origin::start(|_| Script::ok("ok")), Origin::start(|_| Script::ok("ok"))];
    let upstream = start(to(&[origins[0].addr(), origins[1].addr()]));
    for _ in 0..6 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
    }
    assert_eq!([origins[0].total(), origins[1].total()], [3, 3]);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_connected_to_is_passed_over() {
    let (_held, dead) = dead_address();
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = start(to(&[dead, origin.addr()]));
    assert_eq!(fetch(&upstream, post("/", "body")).await, ok());
    let upstream = start(settings::Upstream { retries: 0, ..to(&[dead, origin.addr()]) });
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::Refused));
    for _ in 0..4 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
    }
}

#[tokio::test]
async fn the_idlest_endpoint_is_chosen_where_that_is_asked_for() {
    let busy = Origin::start(|_| Script::endless("x"));
    let idle = Origin::start(|_| Script::ok("ok"));
    let balance = settings::Balance::LeastRequests;
    let upstream = start(settings::Upstream { balance, ..to(&[busy.addr(), idle.addr()]) });
    let _held = upstream.send(get("/")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
    }
    assert_eq!([busy.total(), idle.total()], [1, 3]);
}

#[tokio::test]
async fn names_are_resolved() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let endpoints = vec![endpoint("localhost", origin.addr().port())];
    let upstream = start(settings::Upstream { endpoints, ..to(&[]) });
    assert_eq!(fetch(&upstream, get("/")).await, ok());
    assert_eq!(fetch(&upstream, get("/")).await, ok());
    assert_eq!(origin.requests("/")[0].field("host").unwrap(), format!("localhost:{}", origin.addr().port()));
}

// Timeouts

#[tokio::test]
async fn a_head_that_does_not_come_is_a_timeout() {
    let origin = Origin::start(|_| Script::ok("ok").after(&Gate::new()));
    let upstream = start(settings::Upstream { first_byte_timeout: SHORT, ..to(&[origin.addr()]) });
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::ResponseTimeout));
    assert_eq!(upstream.usage().open, 0);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_slow_upload_is_not_a_slow_origin() {
    let origin = Origin::start(|_| Script::ok("ok"));
    // Long enough for an answer from a busy machine, and shorter than the upload.
    let first_byte_timeout = 20 * SHORT;
    let upstream = start(settings::Upstream { first_byte_timeout, ..to(&[origin.addr()]) });
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let body = RequestBody::Stream { length: None, stream: Box::pin(Piped(receiver)) };
    let sending = upstream.send(request(Method::POST, "/", body));
    let ((), answer) = tokio::join!(
        async {
            for _ in 0..4 {
                tokio::time::sleep(first_byte_timeout / 3).await; // the slow client itself
                sender.send(Bytes::from_static(b"piece")).await.unwrap();
            }
            drop(sender);
        },
        sending
    );
    assert_eq!(answer.unwrap().status, StatusCode::OK);
    assert_eq!(origin.requests("/")[0].body, b"piecepiecepiecepiece");
}

/// A request body that another task feeds.
struct Piped(tokio::sync::mpsc::Receiver<Bytes>);

impl BodyStream for Piped {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Chunk::Data(piece))))
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_a_timeout() {
    let origin = Origin::start(|_| Script::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour").then(Step::Wait(Gate::new())));
    let upstream = start(settings::Upstream { read_timeout: SHORT, ..to(&[origin.addr()]) });
    let mut inbound = upstream.send(get("/")).await.unwrap();
    assert_eq!(inbound.length, Some(9));
    assert_eq!(read(&mut inbound).await, (b"four".to_vec(), Some(BodyError::Timeout)));
    assert_eq!(upstream.usage().open, 0);
}

/// An answer that begins before the upload has ended, and what is to come of it after that.
fn early(rest: Step) -> Script {
    Script::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nearly".to_vec()), Step::ReadBody, rest])
}

#[tokio::test]
async fn a_slow_upload_is_not_a_stalled_body() {
    let origin = Origin::start_at_head(|_| early(Step::Bytes(b"late".to_vec())));
    // Long enough for the rest from a busy machine, and shorter than the upload.
    let read_timeout = 20 * SHORT;
    let upstream = start(settings::Upstream { read_timeout, ..to(&[origin.addr()]) });
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let body = RequestBody::Stream { length: None, stream: Box::pin(Piped(receiver)) };
    let mut inbound = upstream.send(request(Method::POST, "/", body)).await.unwrap();
    let ((), answered) = tokio::join!(
        async {
            sender.send(Bytes::from_static(b"piece")).await.unwrap();
            tokio::time::sleep(2 * read_timeout).await; // the slow client itself
            sender.send(Bytes::from_static(b"piece")).await.unwrap();
            drop(sender);
        },
        read(&mut inbound)
    );
    assert_eq!(answered, (b"earlylate".to_vec(), None));
    origin.wait_for("the whole upload", |origin| origin.body_bytes() == 10);
}

#[tokio::test]
async fn an_origin_that_has_the_whole_upload_may_not_stall() {
    let origin = Origin::start_at_head(|_| early(Step::Wait(Gate::new())));
    let upstream = start(settings::Upstream { read_timeout: SHORT, ..to(&[origin.addr()]) });
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let body = RequestBody::Stream { length: None, stream: Box::pin(Piped(receiver)) };
    let mut inbound = upstream.send(request(Method::POST, "/", body)).await.unwrap();
    sender.send(Bytes::from_static(b"piece")).await.unwrap();
    drop(sender);
    assert_eq!(read(&mut inbound).await, (b"early".to_vec(), Some(BodyError::Timeout)));
}

#[tokio::test]
async fn a_slow_upload_ends_with_the_exchange() {
    let origin = Origin::start_at_head(|_| early(Step::Wait(Gate::new())));
    // Time enough for a head from a busy machine.
    let upstream = start(settings::Upstream { total_timeout: Some(20 * SHORT), ..to(&[origin.addr()]) });
    let stream = Pieces { pieces: vec![Bytes::from_static(b"piece")], end: End::Never(Arc::new(())) };
    let body = RequestBody::Stream { length: None, stream: Box::pin(stream) };
    let mut inbound = upstream.send(request(Method::POST, "/", body)).await.unwrap();
    assert_eq!(read(&mut inbound).await, (b"early".to_vec(), Some(BodyError::Timeout)));
}

#[tokio::test]
async fn the_whole_exchange_has_a_deadline() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/silent" => Script::ok("ok").after(&Gate::new()),
        _ => Script::endless("x"),
    });
    let within = |total_timeout| start(settings::Upstream { total_timeout: Some(total_timeout), ..to(&[origin.addr()]) });
    assert!(matches!(fails(&within(SHORT), get("/silent")).await, FetchError::TotalTimeout));
    // Time enough for a head from a busy machine.
    let upstream = within(20 * SHORT);
    let mut inbound = upstream.send(get("/endless")).await.unwrap();
    assert_eq!(read(&mut inbound).await.1, Some(BodyError::Timeout));
}

// Retries: the origin sees each request at most once, unless it closed an idle connection on it without a byte.

/// Answers on new connections, closes without a word on used ones.
fn forgets(request: &Recorded) -> Script {
    if request.exchange == 0 { Script::ok("ok") } else { Script::close() }
}

#[tokio::test]
async fn a_request_on_a_dead_idle_connection_is_sent_again_on_a_new_one() {
    let origin = Origin::start(forgets);
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, get("/first")).await, ok());
    assert_eq!(fetch(&upstream, get("/second")).await, ok());
    let seen: Vec<_> = origin.requests("/second").iter().map(|request| (request.connection, request.exchange)).collect();
    assert_eq!(seen, [(0, 1), (1, 0)]);
}

#[tokio::test]
async fn it_is_sent_again_once_and_only_once() {
    let origin = Origin::start(|request| if request.path == "/dead" { Script::close() } else { Script::ok("ok") });
    for (retries, seen) in [(1, 2), (3, 2 + 2), (0, 2 + 2 + 1)] {
        let upstream = start(settings::Upstream { retries, ..to(&[origin.addr()]) });
        assert_eq!(fetch(&upstream, get("/")).await, ok());
        assert!(matches!(fails(&upstream, get("/dead")).await, FetchError::Closed));
        assert_eq!(origin.count("/dead"), seen, "{retries} retries");
    }
}

#[tokio::test]
async fn what_is_not_idempotent_or_has_a_body_is_not_sent_again() {
    let origin = Origin::start(forgets);
    let bodiless = || request(Method::POST, "/post", RequestBody::Empty);
    let put = || Outbound { method: Method::PUT, ..post("/put", "body") };
    for (request, path) in [(bodiless(), "/post"), (put(), "/put")] {
        let upstream = upstream(&origin);
        assert_eq!(fetch(&upstream, get("/first")).await, ok());
        assert!(matches!(fails(&upstream, request).await, FetchError::Closed));
        assert_eq!(origin.count(path), 1);
    }
}

#[tokio::test]
async fn an_answer_that_began_is_not_asked_for_again() {
    let origin = Origin::start(|request| match request.exchange {
        0 => Script::ok("ok"),
        _ => Script::raw("HTTP/1.1 2").then(Step::Close),
    });
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, get("/")).await, ok());
    assert!(upstream.send(get("/begun")).await.is_err());
    assert_eq!(origin.count("/begun"), 1);
}

#[tokio::test]
async fn a_new_connection_that_closes_is_not_tried_again() {
    let origin = Origin::start(|request| if request.path == "/reset" { Script::reset() } else { Script::close() });
    let upstream = upstream(&origin);
    assert!(matches!(fails(&upstream, get("/close")).await, FetchError::Closed));
    assert!(matches!(fails(&upstream, get("/reset")).await, FetchError::Reset));
    assert_eq!((origin.count("/close"), origin.count("/reset")), (1, 1));
}

#[tokio::test]
async fn a_connection_that_has_just_been_closed_is_not_used_for_a_body() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = start(settings::Upstream { retries: 0, ..to(&[origin.addr()]) });
    for round in 1..=3 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
        // This blocks the runtime, so nobody has read the end of the connection when the request goes out.
        origin.close_connections();
        assert_eq!(fetch(&upstream, post("/post", "body")).await, ok());
        assert_eq!(origin.requests("/post").len(), round);
        assert_eq!(origin.requests("/post")[round - 1].body, b"body");
    }
}

// What comes back

#[tokio::test]
async fn a_body_that_ends_too_early_never_looks_whole() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/length" => Script::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour").then(Step::Close),
        "/chunk" => Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nfour").then(Step::Close),
        "/last" => Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n").then(Step::Close),
        _ => Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\nzz\r\n"),
    });
    let upstream = upstream(&origin);
    for (path, want) in [
        ("/length", BodyError::Truncated),
        ("/chunk", BodyError::Truncated),
        ("/last", BodyError::Truncated),
        ("/malformed", BodyError::Malformed),
    ] {
        let mut inbound = upstream.send(get(path)).await.unwrap();
        assert_eq!(read(&mut inbound).await, (b"four".to_vec(), Some(want)), "{path}");
        assert_eq!(upstream.usage().open, 0);
    }
}

#[tokio::test]
async fn the_end_of_the_connection_ends_a_body_only_if_it_is_orderly() {
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| {
            let script = Script::raw("HTTP/1.1 200 OK\r\n\r\nfour");
            if request.path == "/fin" { script.then(Step::Close) } else { script.then(Step::Wait(gate.clone())).then(Step::Reset) }
        }
    });
    let upstream = upstream(&origin);
    let mut inbound = upstream.send(get("/fin")).await.unwrap();
    assert_eq!(inbound.length, None);
    assert_eq!(read(&mut inbound).await, (b"four".to_vec(), None));
    let mut inbound = upstream.send(get("/reset")).await.unwrap();
    assert!(matches!(next(&mut inbound).await, Some(Ok(Chunk::Data(data))) if data == "four"));
    gate.open();
    assert_eq!(read(&mut inbound).await, (Vec::new(), Some(BodyError::Reset)));
}

#[tokio::test]
async fn bytes_beyond_the_length_end_the_connection_and_not_the_answer() {
    let origin = Origin::start(|_| Script::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and something more"));
    let upstream = upstream(&origin);
    for connections in 1..=2 {
        assert_eq!(fetch(&upstream, get("/")).await, ok());
        assert_eq!((origin.connections(), upstream.usage().idle), (connections, 0));
    }
}

#[tokio::test]
async fn an_unknown_transfer_coding_lasts_until_the_connection_ends() {
    let origin = Origin::start(|_| Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: word\r\n\r\nok").then(Step::Close));
    let upstream = upstream(&origin);
    let mut inbound = upstream.send(get("/")).await.unwrap();
    assert_eq!((inbound.length, inbound.fields.len()), (None, 0));
    assert_eq!(read(&mut inbound).await, (b"ok".to_vec(), None));
}

#[tokio::test]
async fn chunked_bodies_and_their_trailers_come_through() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/plain" => Script::chunked([&b"o"[..], b"k"]),
        _ => Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nContent-Length: 3\r\n\r\n"),
    });
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, get("/plain")).await, ok());
    let mut inbound = upstream.send(get("/trailers")).await.unwrap();
    assert!(matches!(next(&mut inbound).await, Some(Ok(Chunk::Data(data))) if data == "ok"));
    let Some(Ok(Chunk::Trailers(trailers))) = next(&mut inbound).await else { panic!("no trailers") };
    assert_eq!(trailers.wire(), b"x-sum: 7\r\n");
    assert!(next(&mut inbound).await.is_none());
    assert_eq!((origin.connections(), upstream.usage().idle), (1, 1));
}

#[tokio::test]
async fn fields_of_the_connection_stay_there() {
    let origin = Origin::start(|_| {
        Script::ok("ok").header("Connection", "X-Hop").header("X-Hop", "1").header("Keep-Alive", "timeout=9").header("X-Kept", "a  b")
    });
    let upstream = upstream(&origin);
    let mut sent = get("/");
    for (name, value) in [("Connection", "X-Mine"), ("X-Mine", "1"), ("TE", "gzip"), ("X-Other", "2")] {
        sent.fields.push(name, value).unwrap();
    }
    let inbound = upstream.send(sent).await.unwrap();
    assert_eq!(inbound.fields.get_named("x-kept"), Some(&b"a  b"[..]));
    assert_eq!(inbound.fields.len(), 2);
    let seen = &origin.requests("/")[0];
    assert_eq!(seen.field("x-other"), Some("2"));
    assert!(["connection", "x-mine", "te"].iter().all(|name| seen.field(name).is_none()));
}

#[tokio::test]
async fn heads_that_could_be_read_in_two_ways_are_refused() {
    let origin = Origin::start(|request| {
        let (status, fields) = match request.path.as_str() {
            "/lengths" => ("200 OK", "Content-Length: 2\r\nContent-Length: 3\r\n"),
            "/both" => ("200 OK", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
            "/coded" => ("200 OK", "Transfer-Encoding: gzip, chunked\r\n"),
            "/fold" => ("200 OK", "X: a\r\n b\r\nContent-Length: 2\r\n"),
            "/space" => ("200 OK", "Content-Length : 2\r\n"),
            "/range" => ("206 Partial", "Content-Range: bytes 0-1/9\r\nContent-Length: 2\r\n"),
            "/switch" => ("101 Switching", "Upgrade: other\r\nConnection: upgrade\r\n"),
            _ => ("2xx OK", "Content-Length: 2\r\n"),
        };
        Script::raw(format!("HTTP/1.1 {status}\r\n{fields}\r\nok"))
    });
    let upstream = upstream(&origin);
    for path in ["/lengths", "/both", "/coded", "/fold", "/space", "/range", "/switch", "/status"] {
        let error = fails(&upstream, get(path)).await;
        assert!(matches!(error, FetchError::Malformed(_)), "{path}: {error:?}");
        assert_eq!((upstream.usage().open, origin.count(path)), (0, 1), "{path}");
    }
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let origin = Origin::start(|request| match request.path.as_str() {
        "/count" => Script::raw(format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101))),
        "/bytes" => Script::raw(format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(17 * 1024))),
        _ => Script::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\na: ".to_vec()), Step::Endless(vec![b'b'; 1024])]),
    });
    let upstream = upstream(&origin);
    for path in ["/count", "/bytes", "/endless"] {
        let error = fails(&upstream, get(path)).await;
        assert!(matches!(error, FetchError::HeadTooLarge), "{path}: {error:?}");
    }
}

#[tokio::test]
async fn interim_responses_are_passed_on_in_order() {
    let origin = Origin::start(|_| {
        Script::raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
            .then(Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()))
    });
    let upstream = upstream(&origin);
    let mut slot = InterimSlot::default();
    let interim = Some(slot.sender());
    assert_eq!(fetch(&upstream, Outbound { interim, ..get("/") }).await, ok());
    let mut receiver = slot.take().unwrap();
    let hints = receiver.recv().await;
    assert_eq!((hints.status.as_u16(), hints.fields.wire()), (103, &b"link: </a>\r\n"[..]));
    assert_eq!(receiver.recv().await.status.as_u16(), 102);
    assert!(receiver.try_recv().is_none());
}

#[tokio::test]
async fn a_flood_of_interim_responses_is_an_error() {
    let origin = Origin::start(|request| {
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n";
        match request.path.as_str() {
            "/endless" => Script::steps([Step::Endless(interim.to_vec())]),
            path => {
                let count = if path == "/many" { 16 } else { 17 };
                Script::raw([&interim.repeat(count)[..], b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"].concat())
            }
        }
    });
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, get("/many")).await, ok());
    for path in ["/more", "/endless"] {
        assert!(matches!(fails(&upstream, get(path)).await, FetchError::Malformed(_)), "{path}");
        assert_eq!((upstream.usage().open, origin.count(path)), (0, 1), "{path}");
    }
}

// Upgrades

fn websocket(path: &str) -> Outbound {
    let mut request = Outbound { upgrade: true, ..get(path) };
    request.fields.push("Upgrade", "websocket").unwrap();
    request
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let origin = Origin::start(|_| {
        Script::raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello").then(Step::Echo)
    });
    let upstream = upstream(&origin);
    let inbound = upstream.send(websocket("/")).await.unwrap();
    assert_eq!((inbound.status.as_u16(), inbound.fields.get(name::UPGRADE)), (101, Some(&b"websocket"[..])));
    let mut tunnel = inbound.tunnel.unwrap();
    tunnel.write_all(b" there").await.unwrap();
    let mut echo = [0; 11];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello there");
    assert_eq!((upstream.usage().open, upstream.usage().idle), (1, 0));
    drop(tunnel);
    origin.until("the tunnel is closed", |origin| origin.open_connections() == 0).await;
    assert_eq!(upstream.usage().open, 0);
    let seen = &origin.requests("/")[0];
    assert_eq!((seen.field("connection"), seen.field("upgrade")), (Some("upgrade"), Some("websocket")));
}

#[tokio::test]
async fn a_switch_to_a_protocol_that_was_not_asked_for_is_refused() {
    let origin = Origin::start(|request| {
        let protocols = request.path.trim_start_matches('/');
        Script::raw(format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocols}\r\nConnection: upgrade\r\n\r\nhello"))
            .then(Step::Echo)
    });
    let upstream = upstream(&origin);
    for protocols in ["", "h2c", "websocket,h2c", "websocket/13"] {
        let error = fails(&upstream, websocket(&format!("/{protocols}"))).await;
        assert!(matches!(error, FetchError::Malformed(_)), "{protocols}: {error:?}");
        assert_eq!(upstream.usage().open, 0, "{protocols}");
        origin.until("the connection is closed", |origin| origin.open_connections() == 0).await;
    }
    assert!(upstream.send(websocket("/WebSocket")).await.unwrap().tunnel.is_some());
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, websocket("/")).await, ok());
    let with_body = Outbound { upgrade: true, fields: websocket("/").fields, ..post("/post", "body") };
    assert_eq!(fetch(&upstream, with_body).await, ok());
    let seen = &origin.requests("/post")[0];
    assert_eq!((seen.field("connection"), seen.field("upgrade"), &seen.body[..]), (None, None, &b"body"[..]));
}

// Request bodies

#[tokio::test]
async fn request_bodies_are_framed_by_what_is_known_of_them() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    assert_eq!(fetch(&upstream, post("/length", "body")).await, ok());
    let chunked = |method| {
        let stream = Pieces { pieces: vec![Bytes::from_static(b"bo"), Bytes::new(), Bytes::from_static(b"dy")], end: End::Clean };
        request(method, "/chunked", RequestBody::Stream { length: None, stream: Box::pin(stream) })
    };
    assert_eq!(fetch(&upstream, chunked(Method::POST)).await, ok());
    assert_eq!(fetch(&upstream, chunked(Method::GET)).await, ok());
    assert_eq!(fetch(&upstream, request(Method::PUT, "/none", RequestBody::Empty)).await, ok());
    assert_eq!(origin.requests("/length")[0].field("content-length"), Some("4"));
    assert_eq!(origin.requests("/none")[0].field("content-length"), Some("0"));
    for seen in origin.requests("/chunked") {
        assert_eq!((seen.field("transfer-encoding"), seen.field("content-length")), (Some("chunked"), None));
        assert_eq!(seen.body, b"body");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_request_body_that_fails_ends_the_exchange() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    for (connections, length) in [(1, Some(4)), (2, None)] {
        let stream = Pieces { pieces: vec![Bytes::from_static(b"bo")], end: End::Fails(BodyError::ClientLeft) };
        let body = RequestBody::Stream { length, stream: Box::pin(stream) };
        let error = fails(&upstream, request(Method::POST, "/", body)).await;
        assert!(matches!(error, FetchError::RequestBody(BodyError::ClientLeft)), "{length:?}: {error:?}");
        let closed = |origin: &Origin| origin.connections() == connections && origin.open_connections() == 0;
        origin.until("the connection is closed", closed).await;
        assert_eq!(origin.total(), 0, "{length:?}");
    }
}

#[tokio::test]
async fn a_request_body_shorter_than_announced_ends_the_exchange() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    let stream = Pieces { pieces: vec![Bytes::from_static(b"bo")], end: End::Clean };
    let body = RequestBody::Stream { length: Some(4), stream: Box::pin(stream) };
    let error = fails(&upstream, request(Method::POST, "/", body)).await;
    assert!(matches!(error, FetchError::RequestBody(BodyError::Truncated)), "{error:?}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_is_delivered() {
    let gate = Gate::new();
    let origin = Origin::start_at_head({
        let gate = gate.clone();
        move |_| Script::status(413, "too much").then(Step::Wait(gate.clone()))
    });
    let upstream = upstream(&origin);
    let alive = Arc::new(());
    let stream = Pieces { pieces: vec![Bytes::from_static(b"begin")], end: End::Never(alive.clone()) };
    let body = RequestBody::Stream { length: Some(1 << 30), stream: Box::pin(stream) };
    let (status, text) = fetch(&upstream, request(Method::POST, "/", body)).await;
    assert_eq!((status.as_u16(), text.as_str()), (413, "too much"));
    assert_eq!(upstream.usage().open, 0);
    eventually("the upload is dropped", || Arc::strong_count(&alive) == 1).await;
    gate.open();
}

#[tokio::test]
async fn an_origin_may_answer_while_it_still_reads() {
    let origin = Origin::start_at_head(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec();
        Script::steps([Step::Bytes(head), Step::ReadBody, Step::Bytes(b"ok".to_vec())])
    });
    let upstream = upstream(&origin);
    let pieces = vec![Bytes::from(vec![b'x'; 64 * 1024]); 256];
    let body = RequestBody::Stream { length: Some(256 * 64 * 1024), stream: Box::pin(Pieces { pieces, end: End::Clean }) };
    assert_eq!(fetch(&upstream, request(Method::POST, "/", body)).await, ok());
    assert_eq!((origin.body_bytes(), upstream.usage().idle), (256 * 64 * 1024, 1));
}

#[tokio::test]
async fn an_answer_is_delivered_though_the_origin_resets_the_upload() {
    let origin = Origin::start_at_head(|_| Script::status(413, "too much").header("Connection", "close").then(Step::Close));
    let upstream = upstream(&origin);
    let pieces = vec![Bytes::from(vec![b'x'; 64 * 1024]); 256];
    let length = Some(256 * 64 * 1024);
    let body = RequestBody::Stream { length, stream: Box::pin(Pieces { pieces, end: End::Clean }) };
    let (status, text) = fetch(&upstream, request(Method::POST, "/", body)).await;
    assert_eq!((status.as_u16(), text.as_str()), (413, "too much"));
}

/// Produces a body as it is asked for, and counts.
struct Counted {
    left: u64,
    produced: Arc<AtomicU64>,
    origin: Arc<Origin>,
    /// The most by which this was ahead of the origin.
    lead: Arc<AtomicU64>,
}

impl BodyStream for Counted {
    fn poll_chunk(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        const PIECE: &[u8] = &[b'x'; 64 * 1024];
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= PIECE.len() as u64;
        let produced = self.produced.fetch_add(PIECE.len() as u64, Ordering::Relaxed) + PIECE.len() as u64;
        self.lead.fetch_max(produced.saturating_sub(self.origin.body_bytes()), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Chunk::Data(Bytes::from_static(PIECE)))))
    }
}

#[tokio::test]
async fn an_upload_goes_at_the_pace_of_the_origin() {
    const TOTAL: u64 = 64 << 20;
    /// What kernels buffer between two sockets, with room to spare; of our own there is 64 KiB.
    const BUFFERED: u64 = 24 << 20;
    let gate = Gate::new();
    let origin = Arc::new(Origin::start_at_head({
        let gate = gate.clone();
        move |_| {
            Script::steps([
                Step::Wait(gate.clone()),
                Step::ReadBody,
                Step::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
            ])
        }
    }));
    let upstream = upstream(&origin);
    let (produced, lead) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stream = Counted { left: TOTAL, produced: produced.clone(), origin: origin.clone(), lead: lead.clone() };
    let body = RequestBody::Stream { length: None, stream: Box::pin(stream) };
    let sending = tokio::spawn({
        let upstream = upstream.clone();
        async move { fetch(&upstream, request(Method::PUT, "/", body)).await }
    });
    let standstill = AtomicU64::new(0);
    let last = AtomicU64::new(0);
    eventually("the upload stands still", || {
        let now = produced.load(Ordering::Relaxed);
        let still = now > 0 && last.swap(now, Ordering::Relaxed) == now;
        let count = if still { standstill.fetch_add(1, Ordering::Relaxed) + 1 } else { standstill.swap(0, Ordering::Relaxed) };
        still && count >= 25
    })
    .await;
    assert!(produced.load(Ordering::Relaxed) < BUFFERED);
    gate.open();
    assert_eq!(sending.await.unwrap(), ok());
    assert_eq!((produced.load(Ordering::Relaxed), origin.body_bytes()), (TOTAL, TOTAL));
    assert!(lead.load(Ordering::Relaxed) < BUFFERED, "{lead:?}");
}

#[tokio::test]
async fn requests_that_cannot_be_sent_are_refused_before_anything_is() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let upstream = upstream(&origin);
    for bad in [
        get("/a b"),
        get("/a#b"),
        request(Method::CONNECT, "/", RequestBody::Empty),
        Outbound { host: Some("a\r\nb".to_owned()), ..get("/") },
    ] {
        assert!(matches!(fails(&upstream, bad).await, FetchError::InvalidRequest(_)));
    }
    assert_eq!(origin.connections(), 0);
}
