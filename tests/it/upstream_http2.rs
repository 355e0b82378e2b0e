//! Requests to upstreams over HTTP/2: h2's server behind, or frames as they are.

use crate::support::h2::{CONTINUATION, DATA, END, END_HEADERS, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame, line};
use crate::support::h2_origin::{OK, Origin, Seen, pong, raw, read, say, serve};
use crate::support::pki::{EC, Pki};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tiercel::body::{BodyError, BodyStream, Chunk};
use tiercel::config::settings::{self, UpstreamHttp, UpstreamHttp2};
use tiercel::listener::{InterimSlot, RequestBody};
use tiercel::observe::metrics::Metrics;
use tiercel::semantics::Fields;
use tiercel::upstream::{FetchError, Inbound, Outbound, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

const PATIENCE: Duration = Duration::from_secs(20);
/// For what is expected to run out.
const SHORT: Duration = Duration::from_millis(100);

fn to(address: SocketAddr) -> settings::Upstream {
    settings::Upstream { http: UpstreamHttp::Two, ..crate::upstream::codec_settings(settings::UpstreamCodec::Own, address) }
}

fn start(settings: settings::Upstream) -> Arc<Upstream> {
    Upstream::new(Arc::new(settings), 2, Metrics::new(2))
}

fn post(path: &str, body: RequestBody) -> Outbound {
    Outbound { method: Method::POST, body, ..get(path) }
}

fn get(path: &str) -> Outbound {
    crate::upstream::get(path)
}

/// A request body that comes over a channel.
struct Fed(mpsc::UnboundedReceiver<Result<Chunk, BodyError>>);

impl BodyStream for Fed {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.0.poll_recv(context)
    }
}

fn fed() -> (mpsc::UnboundedSender<Result<Chunk, BodyError>>, RequestBody) {
    let (send, receive) = mpsc::unbounded_channel();
    (send, RequestBody::Stream { length: None, stream: Box::pin(Fed(receive)) })
}

fn data(text: &'static str) -> Result<Chunk, BodyError> {
    Ok(Chunk::Data(Bytes::from_static(text.as_bytes())))
}

async fn next(inbound: &mut Inbound) -> Option<Result<Chunk, BodyError>> {
    let body = inbound.body.as_mut()?;
    tokio::time::timeout(PATIENCE, poll_fn(|context| body.poll_chunk(context))).await.expect("the origin fell silent")
}

/// The body to its end, its trailers, and how it ended.
async fn all(inbound: &mut Inbound) -> (Vec<u8>, Fields, Option<BodyError>) {
    let (mut all, mut trailers) = (Vec::new(), Fields::new());
    loop {
        match next(inbound).await {
            None => return (all, trailers, None),
            Some(Ok(Chunk::Data(data))) => all.extend_from_slice(&data),
            Some(Ok(Chunk::Trailers(fields))) => trailers = fields,
            Some(Err(error)) => return (all, trailers, Some(error)),
        }
    }
}

async fn fetch(upstream: &Arc<Upstream>, request: Outbound) -> (StatusCode, String) {
    let mut inbound = upstream.send(request).await.expect("an answer");
    let (body, _, error) = all(&mut inbound).await;
    assert_eq!(error, None);
    (inbound.status, String::from_utf8(body).expect("text"))
}

async fn fails(upstream: &Arc<Upstream>, request: Outbound) -> FetchError {
    upstream.send(request).await.map(|inbound| inbound.status).unwrap_err().error
}

fn ok(text: &str) -> (StatusCode, String) {
    (StatusCode::OK, text.to_owned())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// Connections

#[tokio::test]
async fn requests_share_connections_and_no_more_go_up_at_a_time_than_the_origin_allows() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let origin = Origin::start_with(&builder, move |(_, respond)| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            say(respond, "ok");
        }
    })
    .await;
    let upstream = start(settings::Upstream { connections: 2, ..to(origin.address) });
    let requests: Vec<_> = (0..9)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { fetch(&upstream, get("/")).await })
        })
        .collect();
    until("four are up and the others wait", || upstream.usage().waiting == 5 && origin.seen.active.load(Ordering::SeqCst) == 4).await;
    go.add_permits(9);
    for request in requests {
        assert_eq!(request.await.unwrap(), ok("ok"));
    }
    assert_eq!((origin.connections(), origin.seen.most.load(Ordering::SeqCst)), (2, 4));
    assert_eq!(upstream.usage().waiting, 0);
}

#[tokio::test]
async fn the_line_has_an_end_and_a_time() {
    let origin = Origin::start(|(_, respond)| async move {
        let _respond = respond;
        std::future::pending::<()>().await;
    })
    .await;
    let one = UpstreamHttp2 { streams: 1, ..UpstreamHttp2::default() };
    let few = settings::Upstream { connections: 1, queue: 1, queue_timeout: SHORT, http2: one, ..to(origin.address) };
    let upstream = start(few);
    let held = tokio::spawn({
        let upstream = Arc::clone(&upstream);
        async move { fails(&upstream, get("/")).await }
    });
    until("one is up", || origin.seen.active.load(Ordering::SeqCst) == 1).await;
    let (first, second) = tokio::join!(fails(&upstream, get("/")), async {
        until("one waits", || upstream.usage().waiting == 1).await;
        fails(&upstream, get("/")).await
    });
    assert!(matches!(first, FetchError::QueueTimeout) && matches!(second, FetchError::QueueFull), "{first:?} {second:?}");
    held.abort();
    let _ = held.await;
    until("its stream is free", || upstream.usage().waiting == 0).await;
    assert!(
        !matches!(tokio::time::timeout(SHORT * 2, fails(&upstream, get("/"))).await, Ok(FetchError::QueueTimeout)),
        "the stream was given back"
    );
}

#[tokio::test]
async fn idle_connections_are_closed_and_a_new_one_is_opened() {
    let origin = Origin::start(|(_, respond)| async move { say(respond, "ok") }).await;
    let upstream = start(settings::Upstream { idle_timeout: SHORT, ..to(origin.address) });
    assert_eq!(fetch(&upstream, get("/")).await, ok("ok"));
    until("it is closed", || origin.seen.open.load(Ordering::SeqCst) == 0 && upstream.usage().open == 0).await;
    assert_eq!(fetch(&upstream, get("/")).await, ok("ok"));
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn connections_end_with_their_upstream() {
    let origin = Origin::start(|(_, respond)| async move { say(respond, "ok") }).await;
    let upstream = start(to(origin.address));
    let mut last = upstream.send(get("/")).await.unwrap();
    drop(upstream);
    assert_eq!(all(&mut last).await.0, b"ok", "what is under way goes on");
    until("it is closed", || origin.seen.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_closed_and_requests_on_it_fail() {
    let address = raw(|mut raw, _| async move {
        while raw.next().await.is_some() {} // pings, too, are not answered
    })
    .await;
    let quick = UpstreamHttp2 { keep_alive: SHORT, ..UpstreamHttp2::default() };
    let upstream = start(settings::Upstream { http2: quick, retries: 0, ..to(address) });
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::Closed));
    until("the connection is gone", || upstream.usage().open == 0).await;
}

#[tokio::test]
async fn who_does_not_speak_http2_is_told_of() {
    let origin = crate::support::origin::Origin::start(|_| crate::support::origin::Script::ok("ok"));
    let error = fails(&start(to(origin.addr())), get("/")).await;
    assert!(error.to_string().contains("does the upstream speak it?"), "{error}");
    assert!(matches!(error, FetchError::Malformed(_) | FetchError::Connect(_)));
}

// Requests and answers

#[tokio::test]
async fn heads_go_up_and_come_down_whole() {
    let origin = Origin::start(|(request, mut respond)| async move {
        let mut lines: Vec<_> = request.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        lines.sort();
        let told = format!("{} {} {}", request.method(), request.uri(), lines.join(" "));
        let mut interim = http::Response::new(());
        *interim.status_mut() = StatusCode::EARLY_HINTS;
        interim.headers_mut().insert("link", "</a>".parse().unwrap());
        respond.send_informational(interim).unwrap();
        let answer = http::Response::builder().header("x", "1").header("x", "2").header("content-length", told.len()).body(()).unwrap();
        respond.send_response(answer, false).unwrap().send_data(told.into(), true).unwrap();
    })
    .await;
    let upstream = start(to(origin.address));
    let mut request = get("/a?b=c");
    request.host = Some("shop.example".to_owned());
    for (name, value) in [("cookie", "a=1; b=2"), ("connection", "x-secret"), ("x-secret", "1"), ("accept", "*/*")] {
        request.fields.push(name, value).unwrap();
    }
    let mut slot = InterimSlot::default();
    request.interim = Some(slot.sender());
    let mut inbound = upstream.send(request).await.unwrap();
    let values: Vec<_> = inbound.fields.iter().filter(|(name, _)| *name == "x").map(|(_, value)| value.to_vec()).collect();
    assert_eq!((values, inbound.length), (vec![b"1".to_vec(), b"2".to_vec()], Some(all(&mut inbound).await.0.len() as u64)));
    assert!(slot.take().is_some_and(|mut interims| interims.try_recv().is_some()), "the interim response went on");
    let told = fetch(&upstream, Outbound { host: Some("shop.example".to_owned()), ..get("/a?b=c") }).await.1;
    assert_eq!(told, "GET http://shop.example/a?b=c te=trailers");
}

#[tokio::test]
async fn answers_without_a_body_give_their_stream_back_at_once() {
    let origin = Origin::start(|(request, mut respond)| async move {
        let status = request.uri().path()[1..].parse().unwrap_or(StatusCode::OK);
        let answer = http::Response::builder().status(status).header("content-length", if status == 200 { 7 } else { 0 }).body(()).unwrap();
        respond.send_response(answer, true).unwrap();
    })
    .await;
    let upstream = start(to(origin.address));
    for (method, path) in [(Method::HEAD, "/200"), (Method::GET, "/304"), (Method::GET, "/404")] {
        let inbound = upstream.send(Outbound { method, ..get(path) }).await.unwrap();
        assert!(inbound.body.is_none());
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn both_sides_may_speak_at_once_and_end_with_trailers() {
    let origin = Origin::start(|(mut request, mut respond)| async move {
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        let body = request.body_mut();
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            stream.send_data(data, false).unwrap();
        }
        let mut trailers = body.trailers().await.unwrap().expect("the client's trailers");
        trailers.insert("grpc-status", "0".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    })
    .await;
    let upstream = start(to(origin.address));
    let (client, body) = fed();
    let mut inbound = upstream.send(post("/echo", body)).await.expect("a head before the request ended");
    for text in ["one", "two", "three"] {
        client.send(data(text)).unwrap();
        let Some(Ok(Chunk::Data(echo))) = next(&mut inbound).await else { panic!("no echo") };
        assert_eq!(echo, text);
    }
    let mut fields = Fields::new();
    fields.push("x-checksum", "7").unwrap();
    client.send(Ok(Chunk::Trailers(fields))).unwrap();
    let Some(Ok(Chunk::Trailers(trailers))) = next(&mut inbound).await else { panic!("no trailers") };
    assert_eq!(trailers.wire(), b"x-checksum: 7\r\ngrpc-status: 0\r\n");
    assert!(next(&mut inbound).await.is_none());
}

#[tokio::test]
async fn large_bodies_go_up_as_windows_allow_and_a_client_that_fails_resets_its_stream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let origin = Origin::start(move |(mut request, respond)| {
        let tell = tell.clone();
        async move {
            let mut read = 0;
            let failed = loop {
                match request.body_mut().data().await {
                    None => break false,
                    Some(Err(_)) => break true,
                    Some(Ok(data)) => {
                        read += data.len();
                        request.body_mut().flow_control().release_capacity(data.len()).unwrap();
                    }
                }
            };
            tell.send((read, failed)).unwrap();
            say(respond, read.to_string());
        }
    })
    .await;
    let upstream = start(to(origin.address));
    let large = Bytes::from(vec![b'x'; 3 << 20]);
    assert_eq!(fetch(&upstream, post("/", RequestBody::Full(large.clone()))).await, ok(&large.len().to_string()));
    assert_eq!(told.recv().await, Some((3 << 20, false)));
    let (client, body) = fed();
    client.send(Ok(Chunk::Data(large.slice(..1000)))).unwrap();
    client.send(Err(BodyError::ClientLeft)).unwrap();
    assert!(matches!(fails(&upstream, post("/", body)).await, FetchError::RequestBody(BodyError::ClientLeft)));
    assert!(matches!(told.recv().await, Some((_, true))), "the origin does not take it for whole");
    let (client, body) = fed();
    let RequestBody::Stream { stream, .. } = body else { unreachable!() };
    client.send(Ok(Chunk::Data(large.slice(..10)))).unwrap();
    drop(client);
    let short = post("/", RequestBody::Stream { length: Some(11), stream });
    assert!(matches!(fails(&upstream, short).await, FetchError::RequestBody(BodyError::Truncated)));
}

#[tokio::test]
async fn a_reader_that_stops_holds_a_window_and_nobody_else() {
    let origin = Origin::start(|(request, mut respond)| async move {
        if request.uri().path() != "/large" {
            return say(respond, "ok");
        }
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        for _ in 0..64 {
            stream.reserve_capacity(64 << 10);
            let mut left = 64 << 10;
            while left > 0 {
                let Some(Ok(room)) = poll_fn(|context| stream.poll_capacity(context)).await else { return };
                let room = room.min(left);
                stream.send_data(vec![b'x'; room].into(), false).unwrap();
                left -= room;
            }
        }
        stream.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let narrow = UpstreamHttp2 { streams: 4, stream_window: 64 << 10, ..UpstreamHttp2::default() };
    let upstream = start(settings::Upstream { connections: 1, http2: narrow, ..to(origin.address) });
    let mut stopped = Vec::new();
    for _ in 0..3 {
        stopped.push(upstream.send(get("/large")).await.unwrap());
    }
    for _ in 0..20 {
        assert_eq!(fetch(&upstream, get("/")).await, ok("ok"), "on the fourth stream of the same connection");
    }
    for mut inbound in stopped {
        assert_eq!(all(&mut inbound).await.0.len(), 4 << 20, "it goes on when it is read");
    }
    assert_eq!(origin.connections(), 1);
}

// What was not acted upon, and what was

#[tokio::test]
async fn a_refused_stream_is_sent_again_whatever_the_method_unless_some_of_its_body_is_gone() {
    let address = raw(|mut raw, number| async move {
        while let Some(stream) = raw.request().await {
            match number {
                0 => raw.send(&frame(RST_STREAM, 0, stream, &7u32.to_be_bytes())).await,
                _ => {
                    raw.head(stream, &[]).await;
                    raw.send(&frame(DATA, END, stream, b"ok")).await;
                }
            }
        }
    })
    .await;
    let again = start(to(address));
    assert_eq!(fetch(&again, post("/", RequestBody::Full(Bytes::from_static(b"body")))).await, ok("ok"));
    let once = start(settings::Upstream { retries: 0, ..to(raw_refusing().await) });
    assert!(matches!(fails(&once, get("/")).await, FetchError::Reset));
    let gone = start(to(raw_refusing().await));
    let (client, body) = fed();
    client.send(data("some")).unwrap();
    assert!(matches!(fails(&gone, post("/", body)).await, FetchError::Reset));
}

/// Refuses every stream once some of its body is there, or at once where there is none.
async fn raw_refusing() -> SocketAddr {
    raw(|mut raw, _| async move {
        while let Some(frame_) = raw.until(|frame| frame.kind == DATA || frame.kind == HEADERS && frame.flags & END != 0).await {
            raw.send(&frame(RST_STREAM, 0, frame_.stream, &7u32.to_be_bytes())).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_goaway_before_a_request_costs_nothing_and_one_behind_it_lets_it_end() {
    let address = raw(|mut raw, number| async move {
        while let Some(stream) = raw.request().await {
            let last = if number == 0 && stream > 1 { 1 } else { stream };
            raw.send(&frame(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &0u32.to_be_bytes()].concat())).await;
            if last == stream {
                raw.head(stream, &[]).await;
                raw.send(&frame(DATA, END, stream, b"ok")).await;
            }
            if number > 0 {
                break;
            }
        }
        while raw.next().await.is_some() {}
    })
    .await;
    let upstream = start(settings::Upstream { retries: 0, ..to(address) });
    for _ in 0..3 {
        assert_eq!(fetch(&upstream, post("/", RequestBody::Full(Bytes::from_static(b"body")))).await, ok("ok"));
    }
}

#[tokio::test]
async fn a_connection_that_dies_costs_idempotent_requests_nothing_and_others_an_error() {
    let address = raw(|mut raw, number| async move {
        // The first request of each connection is answered; the second ends the first connection.
        let stream = raw.request().await.unwrap();
        raw.head(stream, &[]).await;
        raw.send(&frame(DATA, END, stream, b"ok")).await;
        while raw.request().await.is_some() && number > 0 {}
    })
    .await;
    let upstream = start(to(address));
    assert_eq!(fetch(&upstream, get("/")).await, ok("ok"));
    assert_eq!(fetch(&upstream, get("/")).await, ok("ok"), "on a new connection");
    let address = raw(|mut raw, _| async move {
        let stream = raw.request().await.unwrap();
        raw.head(stream, &[]).await;
        raw.send(&frame(DATA, END, stream, b"ok")).await;
        raw.request().await;
    })
    .await;
    let upstream = start(to(address));
    assert_eq!(fetch(&upstream, get("/")).await, ok("ok"));
    let error = fails(&upstream, post("/", RequestBody::Full(Bytes::from_static(b"body")))).await;
    assert!(matches!(error, FetchError::Closed | FetchError::Reset), "{error:?}");
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_never_whole() {
    for (name, end) in [
        ("reset", Some(frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()))),
        ("reset without an error", Some(frame(RST_STREAM, 0, 1, &0u32.to_be_bytes()))),
        ("ended too early", Some(frame(DATA, END, 1, b""))),
        ("longer than announced", Some(frame(DATA, END, 1, b"more than ten bytes"))),
        ("goaway and end", Some(frame(GOAWAY, 0, 0, &[1u32.to_be_bytes(), 2u32.to_be_bytes()].concat()))),
        ("the connection ended", None),
    ] {
        let end = Arc::new(end);
        let address = raw(move |mut raw, _| {
            let end = Arc::clone(&end);
            async move {
                let stream = raw.request().await.unwrap();
                raw.head(stream, &line("content-length", "10")).await;
                raw.send(&frame(DATA, 0, stream, b"half ")).await;
                if let Some(end) = &*end {
                    raw.send(end).await;
                    if end[3] != GOAWAY {
                        while raw.next().await.is_some() {}
                    }
                }
            }
        })
        .await;
        let mut inbound = start(to(address)).send(get("/")).await.unwrap();
        let (body, _, error) = all(&mut inbound).await;
        assert!(body.len() <= 5 && error.is_some(), "{name}: {body:?} {error:?}");
    }
}

// Bad origins

#[tokio::test]
async fn what_an_origin_may_not_do_fails_its_requests_and_nothing_else() {
    type Bad = (&'static str, fn(u32) -> Vec<u8>);
    let bad: [Bad; 7] = [
        ("a head without end", |stream| {
            let more = frame(CONTINUATION, 0, stream, &line("a", &"x".repeat(100)).repeat(100));
            [frame(HEADERS, 0, stream, OK), more.repeat(2000)].concat()
        }),
        ("a head of empty frames", |stream| [frame(HEADERS, 0, stream, OK), frame(CONTINUATION, 0, stream, b"").repeat(100_000)].concat()),
        ("a head that is too large", |stream| {
            let many = line("a", &"x".repeat(120)).repeat(160);
            let rest: Vec<u8> = many.chunks(16_000).map(|part| frame(CONTINUATION, 0, stream, part)).collect::<Vec<_>>().concat();
            [frame(HEADERS, 0, stream, OK), rest, frame(CONTINUATION, END_HEADERS, stream, b"")].concat()
        }),
        ("too many lines", |stream| frame(HEADERS, END_HEADERS | END, stream, &[OK, &line("a", "").repeat(101)].concat())),
        ("interim responses without end", |stream| {
            let interim = [&[0x08, 3][..], b"103"].concat();
            frame(HEADERS, END_HEADERS, stream, &interim).repeat(1000)
        }),
        ("fields of a connection", |stream| {
            frame(HEADERS, END_HEADERS | END, stream, &[OK, &line("transfer-encoding", "chunked")].concat())
        }),
        ("no status", |stream| frame(HEADERS, END_HEADERS | END, stream, &line("a", "b"))),
    ];
    let good = Origin::start(|(_, respond)| async move { say(respond, "ok") }).await;
    let other = start(to(good.address));
    for (name, bytes) in bad {
        let address = raw(move |mut raw, _| async move {
            let Some(stream) = raw.request().await else { return };
            let bytes = bytes(stream);
            let (mut read, mut write) = raw.stream.split();
            let send = async {
                _ = write.write_all(&bytes).await; // it may be closed before all is sent
                std::future::pending::<()>().await;
            };
            let mut sink = tokio::io::sink();
            tokio::select! {
                () = send => {}
                _ = tokio::io::copy(&mut read, &mut sink) => {}
            }
        })
        .await;
        let error = fails(&start(settings::Upstream { retries: 0, ..to(address) }), get("/")).await;
        assert!(matches!(error, FetchError::Malformed(_) | FetchError::HeadTooLarge | FetchError::Reset), "{name}: {error:?}");
        assert_eq!(fetch(&other, get("/")).await, ok("ok"), "{name}: others do not notice");
    }
}

#[tokio::test]
async fn an_origin_that_floods_is_given_up_when_its_answer_is_due() {
    for flood in [frame(SETTINGS, 0, 0, &[]), frame(6, 0, 0, &[0; 8])] {
        let address = raw(move |mut raw, _| {
            let flood = flood.repeat(1000);
            async move {
                raw.request().await;
                let (mut read, mut write) = raw.stream.split();
                let send = async { while write.write_all(&flood).await.is_ok() {} };
                let mut sink = tokio::io::sink();
                tokio::join!(send, async { _ = tokio::io::copy(&mut read, &mut sink).await });
            }
        })
        .await;
        let good = Origin::start(|(_, respond)| async move { say(respond, "ok") }).await;
        let (other, bad) = (start(to(good.address)), start(settings::Upstream { first_byte_timeout: SHORT * 3, ..to(address) }));
        let (error, ()) = tokio::join!(fails(&bad, get("/")), async {
            for _ in 0..20 {
                assert_eq!(fetch(&other, get("/")).await, ok("ok"));
            }
        });
        assert!(matches!(error, FetchError::ResponseTimeout), "{error:?}");
    }
}

#[tokio::test]
async fn an_origin_that_falls_silent_is_waited_for_no_longer_than_configured() {
    let address = raw(|mut raw, _| async move {
        while let Some(next) = raw.next().await {
            match next.kind {
                6 => raw.send(&pong(&next)).await,
                HEADERS if next.stream == 3 => raw.head(3, &[]).await,
                _ => {}
            }
        }
    })
    .await;
    let upstream = start(settings::Upstream { first_byte_timeout: SHORT, read_timeout: SHORT, ..to(address) });
    assert!(matches!(fails(&upstream, get("/")).await, FetchError::ResponseTimeout));
    let mut inbound = upstream.send(get("/")).await.expect("the head of the second");
    assert_eq!(all(&mut inbound).await.2, Some(BodyError::Timeout));
}

// TLS

/// An origin behind TLS that chooses among these protocols, and the number of its connections.
async fn secure(pki: &Pki, protocols: &[&[u8]]) -> (SocketAddr, Arc<Seen>) {
    let chain = vec![CertificateDer::from_pem_file(pki.path("origin.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pki.path("origin.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (address, seen) = (listener.local_addr().unwrap(), Arc::<Seen>::default());
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    return serve(stream, h2::server::Builder::new(), seen, |(_, respond)| async move { say(respond, "over 2") }).await;
                }
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nover 1.1").await.unwrap();
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn over_tls_the_endpoint_chooses_or_must() {
    let pki = Pki::new();
    pki.issue("origin", &["127.0.0.1"], EC, 30);
    let tls = settings::UpstreamTls { verify: false, ..settings::UpstreamTls::default() };
    let upstream = |address: SocketAddr, http| {
        let mut settings = settings::Upstream { http, tls: tls.clone(), ..to(address) };
        settings.endpoints[0].is_secure = true;
        start(settings)
    };
    let (both, seen) = secure(&pki, &[b"h2", b"http/1.1"]).await;
    for (http, text) in [(UpstreamHttp::One, "over 1.1"), (UpstreamHttp::Two, "over 2"), (UpstreamHttp::Auto, "over 2")] {
        assert_eq!(fetch(&upstream(both, http), get("/")).await, ok(text), "{http:?}");
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 3);
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let (old, seen) = secure(&pki, protocols).await;
        let auto = upstream(old, UpstreamHttp::Auto);
        for _ in 0..3 {
            assert_eq!(fetch(&auto, get("/")).await, ok("over 1.1"));
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), 2, "one to ask, and one that is kept");
        let error = fails(&upstream(old, UpstreamHttp::Two), get("/")).await;
        assert!(matches!(&error, FetchError::TlsProtocol(_) | FetchError::TlsAlert(_)), "{error:?}");
    }
}

#[tokio::test]
async fn an_upgrade_goes_up_over_http1() {
    let pki = Pki::new();
    pki.issue("origin", &["127.0.0.1"], EC, 30);
    let (address, _) = secure(&pki, &[b"h2", b"http/1.1"]).await;
    let mut settings = to(address);
    settings.http = UpstreamHttp::Auto;
    settings.tls.verify = false;
    settings.endpoints[0].is_secure = true;
    let upstream = start(settings);
    let mut request = Outbound { upgrade: true, ..get("/") };
    request.fields.push("upgrade", "websocket").unwrap();
    assert_eq!(fetch(&upstream, request).await, ok("over 1.1"), "and is declined there");
}

#[tokio::test]
async fn trailers_of_a_request_arrive() {
    let (tell, mut told) = mpsc::unbounded_channel::<(Vec<u8>, HeaderMap)>();
    let origin = Origin::start(move |(mut request, respond)| {
        let tell = tell.clone();
        async move {
            tell.send(read(request.body_mut()).await).unwrap();
            say(respond, "ok");
        }
    })
    .await;
    let (client, body) = fed();
    client.send(data("body")).unwrap();
    let mut trailers = Fields::new();
    trailers.push("x-sum", "9").unwrap();
    client.send(Ok(Chunk::Trailers(trailers))).unwrap();
    assert_eq!(fetch(&start(to(origin.address)), post("/", body)).await, ok("ok"));
    let (body, trailers) = told.recv().await.unwrap();
    assert_eq!((&body[..], &trailers["x-sum"]), (&b"body"[..], &"9".parse().unwrap()));
}
