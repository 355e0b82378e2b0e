//! End-to-end tests of the HTTP/2 connection: hyper's client or raw frames in front, a scripted handler behind.

use crate::support::h2::{self, DATA, END, GET, GOAWAY, PING, PREFACE, Raw, frame, get};
use crate::support::origin::eventually;
use crate::support::scripted::{Connection, Fed, Scripted, Server, data, limits, peer, pieces, response, text};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tiercel::body::{BodyError, Chunk, ResponseBody, StoredBody};
use tiercel::clock::LAST_LOOK;
use tiercel::config::settings::{Http2, Limits};
use tiercel::listener::http2::serve;
use tiercel::listener::{Handled, Handler, Interim, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Sent};
use tiercel::observe::metrics::Bound;
use tiercel::proxy::outcome::Outcome;
use tiercel::semantics::{Fields, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(20);

async fn start(limits: Limits, script: impl Fn(&RequestHead, RequestBody, &mut InterimSlot) -> Handled + Send + Sync + 'static) -> Server {
    Server::start(limits, |c| serve(c.socket, c.peer, c.limits, c.handler, c.draining), script).await
}

async fn client(server: &Server) -> SendRequest<Full<Bytes>> {
    h2::connect(server.address).await
}

async fn body_of(mut body: RequestBody) -> Result<Vec<u8>, BodyError> {
    let mut all = Vec::new();
    let RequestBody::Stream { stream, .. } = &mut body else { return Ok(all) };
    while let Some(chunk) = poll_fn(|context| stream.as_mut().poll_chunk(context)).await {
        if let Chunk::Data(bytes) = chunk? {
            all.extend(bytes);
        }
    }
    Ok(all)
}

#[tokio::test]
async fn requests_of_one_connection_go_on_at_once() {
    let (first, waits) = oneshot::channel::<()>();
    let waits = parking_lot::Mutex::new(Some(waits));
    let server = start(limits(), move |head, _, _| match &head.target[..] {
        b"/slow" => {
            let waits = waits.lock().take().unwrap();
            Handled::later(async move {
                waits.await.unwrap();
                text("slow")
            })
        }
        _ => Handled::Ready(text("quick")),
    })
    .await;
    let mut client = client(&server).await;
    let slow = client.send_request(get("/slow"));
    let quick = client.send_request(get("/quick?a=b")).await.unwrap();
    assert_eq!(
        (quick.status(), &quick.headers()["x-test"], &quick.headers()["content-length"]),
        (StatusCode::OK, &"yes".parse().unwrap(), &5.into())
    );
    assert_eq!(quick.into_body().collect().await.unwrap().to_bytes(), "quick");
    first.send(()).unwrap();
    assert_eq!(slow.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "slow");
    let told = server.told(|told| told.finished.len() == 2).await;
    let quick = told.handled.iter().position(|request| request == "GET /quick?a=b").expect("it was handled");
    assert_eq!(told.fields[quick], "host: shop.example|");
    assert!(told.finished.iter().all(|sent| sent.aborted.is_none() && sent.body_bytes > 3));
}

#[tokio::test]
async fn request_bodies_come_in_as_they_are_read_and_no_longer_than_allowed() {
    let server = start(Limits { body_bytes: 300_000, ..limits() }, |_, body, _| {
        Handled::later(async move {
            match body_of(body).await {
                Ok(all) => response(200, ResponseBody::Full(all.into())),
                Err(error) => text(format!("{error:?}")),
            }
        })
    })
    .await;
    let mut client = client(&server).await;
    let sent = Bytes::from((0..300_000_u32).map(|at| at as u8).collect::<Vec<_>>());
    let post = |body: Bytes| http::Request::post("http://a/").body(Full::new(body)).unwrap();
    let answer = client.send_request(post(sent.clone())).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), sent);
    let refused = client.send_request(post(Bytes::from(vec![0; 300_001]))).await.unwrap();
    assert_eq!(refused.status(), 413);
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200, "the connection goes on");
}

#[tokio::test]
async fn what_does_not_end_as_it_should_is_reset_and_never_ended() {
    let server = start(limits(), |head, _, _| {
        let body = match &head.target[..] {
            b"/fails" => pieces(None, [data("some"), Err(BodyError::Truncated)]),
            b"/short" => pieces(Some(10), [data("some")]),
            b"/long" => pieces(Some(3), [data("some")]),
            _ => pieces(None, [data("some"), data("more")]),
        };
        Handled::Ready(response(200, body))
    })
    .await;
    let mut client = client(&server).await;
    for (path, error) in [("/fails", BodyError::Truncated), ("/short", BodyError::Truncated), ("/long", BodyError::Malformed)] {
        let whole = match client.send_request(get(path)).await {
            Ok(answer) => answer.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "{path} ended as if it were whole");
        let told = server.told(|told| told.finished.iter().any(|sent| sent.aborted == Some(error))).await;
        server.handler.told.send_modify(|told| told.finished.clear());
        assert_eq!(told.finished.len(), 1);
    }
    let answer = client.send_request(get("/good")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "somemore");
}

#[tokio::test]
async fn stored_bodies_ranges_of_them_trailers_and_bodiless_answers() {
    let server = start(limits(), |head, _, _| {
        let segments = ["0123", "4567", "89"].map(|segment| Bytes::from_static(segment.as_bytes()));
        let stored = |start, end| ResponseBody::Stored { body: Arc::new(StoredBody::new(&segments)), start, end };
        let mut trailers = Fields::new();
        trailers.push("x-sum", "1").unwrap();
        Handled::Ready(match &head.target[..] {
            b"/part" => response(206, stored(3, 9)),
            b"/trailers" => response(200, pieces(None, [data("a"), Ok(Chunk::Trailers(trailers))])),
            b"/none" => response(204, ResponseBody::Empty),
            b"/empty" => response(200, ResponseBody::Empty),
            _ => response(200, stored(0, 10)),
        })
    })
    .await;
    let mut client = client(&server).await;
    for (path, length, expected) in
        [("/", Some("10"), "0123456789"), ("/part", Some("6"), "345678"), ("/none", None, ""), ("/empty", Some("0"), "")]
    {
        let answer = client.send_request(get(path)).await.unwrap();
        assert_eq!(answer.headers().get("content-length").map(|value| value.to_str().unwrap()), length, "{path}");
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), expected, "{path}");
    }
    let head = http::Request::head("http://a/").body(Full::default()).unwrap();
    assert_eq!(client.send_request(head).await.unwrap().into_body().collect().await.unwrap().to_bytes(), "");
    let collected = client.send_request(get("/trailers")).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "1");
}

#[tokio::test]
async fn a_reset_ends_the_work_for_its_stream_and_no_other() {
    let (fed, body) = mpsc::unbounded_channel();
    let body = parking_lot::Mutex::new(Some(body));
    let server = start(limits(), move |head, _, _| match &head.target[..] {
        b"/never" => Handled::later(std::future::pending()),
        _ => Handled::Ready(response(200, ResponseBody::Stream { length: None, stream: Box::pin(Fed(body.lock().take().unwrap())) })),
    })
    .await;
    let mut client = client(&server).await;
    let never = tokio::spawn(client.send_request(get("/never")));
    let mut streamed = client.send_request(get("/fed")).await.unwrap().into_body();
    server.told(|told| told.handled.len() == 2).await;
    never.abort();
    let told = server.told(|told| !told.refused.is_empty()).await;
    assert_eq!(told.refused[0].status, 499);
    fed.send(data("still here")).unwrap();
    assert_eq!(streamed.frame().await.unwrap().unwrap().into_data().unwrap(), "still here");
    drop(streamed);
    tokio::time::timeout(PATIENCE, fed.closed()).await.expect("the body is dropped with its stream");
    assert_eq!(server.told(|told| told.finished.len() == 1).await.finished[0].aborted, Some(BodyError::ClientLeft));
}

#[tokio::test]
async fn heads_beyond_bounds_and_those_that_disagree_are_refused() {
    let server = start(Limits { header_count: 50, ..limits() }, |_, _, _| Handled::Ready(text("ok"))).await;
    let mut client = client(&server).await;
    let with = |fields: &[(&str, &str)], path: &str| {
        let mut request = get(path);
        for (name, value) in fields {
            request.headers_mut().append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        request
    };
    let many: Vec<_> = (0..51).map(|_| ("x", "1")).collect();
    for (request, status) in [
        (with(&[("host", "other.example")], "/"), 400),
        (with(&[("host", "SHOP.example")], "/"), 200),
        (with(&many, "/"), 431),
        (with(&[("expect", "something")], "/"), 417),
        (with(&[], &format!("/{}", "a".repeat(2100))), 414),
        (with(&[("x", &"a".repeat(9000))], "/"), 431),
        (with(&[("cookie", "a=1"), ("cookie", "b=2")], "/cookies"), 200),
    ] {
        let asked = format!("{:?}", request.headers().keys().next());
        assert_eq!(client.send_request(request).await.unwrap().status(), status, "{asked}");
    }
    let told = server.told(|told| told.finished.len() == 2).await;
    assert_eq!(told.handled.last().unwrap(), "GET /cookies");
    assert_eq!(told.fields.last().unwrap(), "cookie: a=1; b=2|host: shop.example|");
}

#[tokio::test]
async fn a_panic_fails_its_request_alone() {
    let server = start(limits(), |head, _, _| match &head.target[..] {
        b"/panic" => panic!("on purpose"),
        b"/late-panic" => Handled::later(async { panic!("on purpose") }),
        _ => Handled::Ready(text("ok")),
    })
    .await;
    let mut client = client(&server).await;
    for path in ["/panic", "/late-panic"] {
        assert_eq!(client.send_request(get(path)).await.unwrap().status(), 500);
    }
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
}

/// Panics where it is told of a refusal, of an answer that did not come to its end, or of a bound.
struct Faulty(Arc<Scripted>);

impl Handler for Faulty {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        self.0.handle(peer, head, body, interim)
    }
    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        self.0.finished(peer, head, outcome, sent);
        assert!(sent.aborted.is_none(), "on purpose");
    }
    fn refused(&self, _: &Peer, _: Option<&RequestHead>, _: Refusal, _: u64) {
        panic!("on purpose");
    }
    fn bound(&self, bound: Bound) {
        self.0.bound(bound);
        panic!("on purpose");
    }
}

#[tokio::test]
async fn a_panic_beside_the_handler_ends_its_stream_alone() {
    let serving = |c: Connection| serve(c.socket, c.peer, c.limits, Arc::new(Faulty(c.handler)), c.draining);
    let server = Server::start(Limits { url_bytes: 10, ..limits() }, serving, |_, _, _| Handled::Ready(text("ok"))).await;
    let mut client = client(&server).await;
    let failed = client.send_request(get("/a-target-that-is-too-long")).await.expect_err("no answer");
    let reason = std::error::Error::source(&failed).and_then(|cause| cause.downcast_ref::<::h2::Error>()).and_then(::h2::Error::reason);
    assert_eq!(reason, Some(::h2::Reason::INTERNAL_ERROR), "{failed:?}");
    assert_eq!(client.send_request(get("/")).await.expect("the connection goes on").status(), 200);
}

#[tokio::test]
async fn a_panic_where_an_answer_is_given_up_or_its_client_leaves_ends_nothing_else() {
    const LENGTH: usize = 50_000; // fits the windows, and what h2 may keep
    for (is_given_up, aborted) in [(true, BodyError::Detached), (false, BodyError::ClientLeft)] {
        let (server, body) = stored(limits(), LENGTH).await;
        let (mut client, socket) = duplex(1000);
        let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
        tokio::spawn(serve(socket, peer, Arc::new(limits()), Arc::new(Faulty(Arc::clone(&server.handler))), drain));
        client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, GET)].concat()).await.unwrap();
        while h2::next(&mut client).await.expect("an answer").kind != h2::HEADERS {}
        match is_given_up {
            true => body.revoke(),
            false => client.write_all(&frame(h2::RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await.unwrap(),
        }
        let other = [&[0x82, 0x86, 0x41, 1, b'a', 0x04, 2][..], b"/o"].concat();
        client.write_all(&frame(h2::HEADERS, END | h2::END_HEADERS, 3, &other)).await.unwrap();
        while h2::next(&mut client).await.expect("the connection goes on").payload != b"other" {}
        let told = server.told(|told| told.finished.len() == 2).await;
        assert_eq!(told.finished.iter().filter_map(|sent| sent.aborted).collect::<Vec<_>>(), [aborted]);
        eventually("nobody has it any more", || readers(&body) == 0).await;
    }
}

#[tokio::test]
async fn interim_responses_go_before_the_answer_with_all_their_fields() {
    let (go, waits) = oneshot::channel::<()>();
    let waits = parking_lot::Mutex::new(Some(waits));
    let server = start(limits(), move |head, _, slot| {
        let sender = slot.sender();
        let send = move |status: u16, link: &str| {
            let mut fields = Fields::new();
            fields.push("link", link).unwrap();
            fields.push("connection", "close").unwrap();
            sender.try_send(Interim { status: StatusCode::from_u16(status).unwrap(), fields }).unwrap();
        };
        send(103, "</a.css>");
        match &head.target[..] {
            b"/at-once" => Handled::Ready(text("ok")),
            _ => {
                let waits = waits.lock().take().unwrap();
                Handled::later(async move {
                    waits.await.unwrap();
                    send(102, "</b.css>");
                    text("ok")
                })
            }
        }
    })
    .await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) = ::h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut go = Some(go);
    for (path, interims) in [("/later", &[(103, "</a.css>"), (102, "</b.css>")][..]), ("/at-once", &[(103, "</a.css>")])] {
        let request = http::Request::get(format!("http://shop.example{path}")).body(()).unwrap();
        let (mut answer, _) = client.send_request(request, true).unwrap();
        for (status, link) in interims {
            let interim = poll_fn(|context| answer.poll_informational(context)).await.expect("one more").unwrap();
            assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (*status, &link.parse().unwrap()));
            assert_eq!(interim.headers().len(), 1);
            // The first one comes before there is an answer.
            if let Some(go) = go.take() {
                go.send(()).unwrap();
            }
        }
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert_eq!(server.told(|told| told.finished.len() == 2).await.bounds, []);
}

/// A body of one segment that is stored, and a server of it.
async fn stored(limits: Limits, length: usize) -> (Server, Arc<StoredBody>) {
    let body = Arc::new(StoredBody::new(&[Bytes::from(vec![b'x'; length])]));
    let served = Arc::clone(&body);
    let answer = move || response(200, ResponseBody::Stored { body: Arc::clone(&served), start: 0, end: length as u64 });
    (start(limits, move |head, _, _| Handled::Ready(if head.target == b"/" { answer() } else { text("other") })).await, body)
}

/// Those who have a body beside the test and the script that serves it.
fn readers(body: &Arc<StoredBody>) -> usize {
    Arc::strong_count(body) - 2
}

fn room(stream: u32, bytes: u32) -> Vec<u8> {
    frame(h2::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

#[tokio::test]
async fn an_answer_is_whole_when_its_client_has_it_and_its_body_in_use_until_then() {
    let (server, body) = stored(limits(), 100).await;
    let mut raw = Raw::connect(server.address, &[(4, 10)]).await;
    for stream in [1, 3] {
        raw.send(&frame(h2::HEADERS, END | h2::END_HEADERS, stream, GET)).await;
        assert_eq!(raw.until(|frame| frame.kind == DATA).await.unwrap().payload.len(), 10);
    }
    assert_eq!((readers(&body), server.handler.told.borrow().finished.len()), (2, 0));
    raw.send(&frame(h2::RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
    let told = server.told(|told| told.finished.len() == 1).await;
    assert_eq!(told.finished[0].aborted, Some(BodyError::ClientLeft));
    raw.send(&room(3, 90)).await;
    assert!(raw.until(|frame| frame.kind == DATA && frame.flags & END != 0).await.is_some());
    let told = server.told(|told| told.finished.len() == 2).await;
    assert_eq!((told.finished[1].aborted, told.finished[1].body_bytes), (None, 100));
    eventually("nobody has it any more", || readers(&body) == 0).await;
}

#[tokio::test]
async fn a_body_that_is_wanted_back_goes_no_further_once_its_client_takes_something() {
    let (server, body) = stored(limits(), 100_000).await;
    let mut raw = Raw::connect(server.address, &[(4, 10)]).await;
    raw.send(&frame(h2::HEADERS, END | h2::END_HEADERS, 1, GET)).await;
    assert_eq!(raw.until(|frame| frame.kind == DATA).await.unwrap().payload.len(), 10);
    body.revoke();
    raw.send(&room(1, 10)).await;
    let ended = raw.until(|frame| frame.stream == 1).await.expect("it is ended");
    assert_eq!((ended.kind, ended.code()), (h2::RST_STREAM, Some(::h2::Reason::CANCEL.into())));
    let told = server.told(|told| !told.finished.is_empty()).await;
    assert_eq!((told.finished[0].aborted, &told.bounds[..]), (Some(BodyError::Detached), &[Bound::ReaderDetached][..]));
    eventually("nobody has it any more", || readers(&body) == 0).await;
}

#[tokio::test]
async fn what_the_library_has_of_a_body_is_in_use_and_given_back_when_it_is_wanted() {
    const LENGTH: usize = 50_000; // fits the windows, and what h2 may keep
    let (server, body) = stored(limits(), LENGTH).await;
    let (mut client, socket) = duplex(1000);
    client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, GET)].concat()).await.unwrap();
    let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
    tokio::spawn(serve(socket, peer, Arc::new(limits()), Arc::clone(&server.handler), drain));
    while h2::next(&mut client).await.expect("an answer").kind != h2::HEADERS {}
    assert_eq!((readers(&body), server.handler.told.borrow().finished.len()), (1, 0));
    body.revoke();
    let mut came = 0;
    let ended = loop {
        let frame = h2::next(&mut client).await.expect("it is ended");
        match frame.kind {
            DATA => came += frame.payload.len(),
            _ => break frame,
        }
    };
    assert_eq!((ended.kind, ended.code()), (h2::RST_STREAM, Some(::h2::Reason::CANCEL.into())));
    assert!(came < LENGTH, "all of it came");
    let told = server.told(|told| !told.finished.is_empty()).await;
    assert_eq!((told.finished[0].aborted, &told.bounds[..]), (Some(BodyError::Detached), &[Bound::ReaderDetached][..]));
    eventually("nobody has it any more", || readers(&body) == 0).await;
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_is_given_up_though_others_go_on() {
    let limits = Limits { write_timeout: Duration::from_millis(100), requests_per_connection: u64::MAX, ..limits() };
    let (server, body) = stored(limits, 100).await;
    let mut raw = Raw::connect(server.address, &[(4, 10)]).await;
    raw.send(&frame(h2::HEADERS, END | h2::END_HEADERS, 1, GET)).await;
    // Another target: of five bytes, which have room.
    let other = [&[0x82, 0x86, 0x41, 1, b'a', 0x04, 2][..], b"/o"].concat();
    let mut stream = 1;
    let ended = loop {
        stream += 2;
        raw.send(&frame(h2::HEADERS, END | h2::END_HEADERS, stream, &other)).await;
        let next = raw.until(|frame| frame.kind == h2::RST_STREAM || frame.stream == stream && frame.flags & END != 0).await;
        match next.expect("the connection goes on") {
            ended if ended.kind == h2::RST_STREAM => break ended,
            answered => assert_eq!(answered.payload, b"other"),
        }
    };
    assert_eq!((ended.stream, ended.code()), (1, Some(::h2::Reason::CANCEL.into())));
    let told = server.told(|told| told.finished.iter().any(|sent| sent.aborted.is_some())).await;
    assert_eq!(told.bounds, [Bound::WriteTimeout]);
    eventually("nobody has it any more", || readers(&body) == 0).await;
}

#[tokio::test]
async fn answers_that_wait_their_turn_on_a_slow_connection_all_come() {
    const STREAMS: u32 = 100;
    const LENGTH: usize = 96 << 10; // of which h2 has 64 KiB at a time
    const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
    let (server, _) = stored(Limits { write_timeout: WRITE_TIMEOUT, ..limits() }, LENGTH).await;
    let (mut client, socket) = duplex(64 << 10);
    let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
    tokio::spawn(serve(socket, peer, Arc::new(Limits { write_timeout: WRITE_TIMEOUT, ..limits() }), Arc::clone(&server.handler), drain));
    // Its windows are open: it is slow, and no more.
    let mut asked = [PREFACE, &frame(4, 0, 0, &[0, 4, 0, 16, 0, 0]), &room(0, 1 << 30)].concat();
    for number in 0..STREAMS {
        asked.extend(frame(h2::HEADERS, END | h2::END_HEADERS, 2 * number + 1, GET));
    }
    client.write_all(&asked).await.unwrap();
    let began = std::time::Instant::now();
    let (mut whole, mut came) = (0, 0);
    while whole < STREAMS {
        let frame = h2::next(&mut client).await.expect("the connection goes on");
        assert_ne!(frame.kind, h2::RST_STREAM, "stream {} after {:?}", frame.stream, began.elapsed());
        if frame.kind == DATA {
            came += frame.payload.len();
            whole += u32::from(frame.flags & END != 0);
            tokio::time::sleep(Duration::from_millis(6)).await; // how slow this client is
        }
    }
    assert_eq!(came, STREAMS as usize * LENGTH);
    let turn = began.elapsed() * (16 << 10) / LENGTH as u32;
    assert!(turn > WRITE_TIMEOUT, "a turn took {turn:?}: nobody waited for long");
    let told = server.told(|told| told.finished.len() == STREAMS as usize).await;
    assert!(told.finished.iter().all(|sent| sent.aborted.is_none()) && told.bounds.is_empty());
}

#[tokio::test]
async fn an_answer_is_whole_with_its_last_byte_and_not_before() {
    const LENGTH: usize = 5000; // a frame, of which the pipe takes a part
    let (server, _) = stored(limits(), LENGTH).await;
    for takes_all in [false, true] {
        let (mut client, socket) = duplex(1000);
        let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
        let serving = tokio::spawn(serve(socket, peer, Arc::new(limits()), Arc::clone(&server.handler), drain));
        client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, GET)].concat()).await.unwrap();
        while h2::next(&mut client).await.expect("an answer").kind != h2::HEADERS {}
        let mut part = vec![0; 9 + LENGTH - if takes_all { 0 } else { 2000 }];
        client.read_exact(&mut part).await.unwrap();
        assert_eq!((part[3], part[4] & END), (DATA, END), "the last frame of all");
        drop(client);
        serving.await.unwrap();
        let told = server.told(|told| !told.finished.is_empty()).await;
        assert_eq!(told.finished[0].aborted, (!takes_all).then_some(BodyError::ClientLeft));
        server.handler.told.send_modify(|told| told.finished.clear());
    }
}

#[tokio::test]
async fn who_expects_100_gets_it_once_its_body_is_wanted_and_not_otherwise() {
    let server = start(limits(), |head, body, _| match &head.target[..] {
        b"/" => Handled::Ready(text("no")),
        _ => Handled::later(async { text(format!("{} bytes", body_of(body).await.unwrap().len())) }),
    })
    .await;
    let url = |path: &str| format!("http://{}{path}", server.address);
    let curl = async |path: &str, more: &[&str]| {
        let mut command = std::process::Command::new("curl");
        command.args(["-sSv", "--http2-prior-knowledge", "--max-time", "15", "--expect100-timeout", "60", "--data-binary", "hello"]);
        command.args(more).arg(url(path));
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("curl runs");
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let expects = ["-H", "Expect: 100-continue"];
    let (answer, told) = curl("/upload", &expects).await;
    assert!(answer == "5 bytes" && told.contains("< HTTP/2 100"), "{answer} {told}");
    let (answer, told) = curl("/upload", &[]).await;
    assert!(answer == "5 bytes" && !told.contains("HTTP/2 100"), "{answer} {told}");
    let mut raw = Raw::connect(server.address, &[]).await;
    raw.send(&frame(h2::HEADERS, h2::END_HEADERS, 1, &[h2::POST, &h2::line("expect", "100-continue")].concat())).await;
    let head = raw.until(|frame| frame.kind == h2::HEADERS).await.expect("an answer");
    assert_eq!(head.payload[0], 0x88, "200 at once, where nobody wants the body");
}

#[tokio::test]
async fn a_request_body_that_drips_is_refused() {
    let (tell, told) = oneshot::channel();
    let tell = parking_lot::Mutex::new(Some(tell));
    let limits = Limits { body_timeout: Duration::from_millis(200), body_rate: 1000, ..limits() };
    let server = start(limits, move |_, body, _| {
        let tell = tell.lock().take().unwrap();
        Handled::later(async move {
            tell.send(body_of(body).await).unwrap();
            text("ok")
        })
    })
    .await;
    let mut raw = Raw::connect(server.address, &[]).await;
    raw.send(&frame(h2::HEADERS, h2::END_HEADERS, 1, h2::POST)).await;
    let dripping = async {
        loop {
            raw.send(&frame(DATA, 0, 1, b"x")).await;
            tokio::time::sleep(LAST_LOOK / 2).await; // how slow this client is
        }
    };
    let read = tokio::select! {
        read = told => read.unwrap(),
        () = dripping => unreachable!(),
        () = tokio::time::sleep(PATIENCE) => panic!("it is read on"),
    };
    assert_eq!(read, Err(BodyError::Timeout));
}

#[tokio::test]
async fn a_tunnel_ends_with_its_stream_after_the_clients_end() {
    let (mut upstream, ours) = duplex(1000);
    let ours = parking_lot::Mutex::new(Some(ours));
    let server = start(limits(), move |_, _, _| {
        let tunnel = Box::new(ours.lock().take().expect("one request"));
        Handled::Ready(response(101, ResponseBody::Tunnel(tunnel)))
    })
    .await;
    let mut raw = Raw::connect(server.address, &[]).await;
    let lines = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let head: Vec<u8> = lines.iter().flat_map(|(name, value)| h2::line(name, value)).collect();
    raw.send(&frame(h2::HEADERS, h2::END_HEADERS, 1, &head)).await;
    assert!(raw.until(|frame| frame.kind == h2::HEADERS).await.is_some());
    raw.send(&frame(DATA, END, 1, b"last")).await;
    let mut read = Vec::new();
    tokio::time::timeout(PATIENCE, upstream.read_to_end(&mut read)).await.expect("the client's end").unwrap();
    assert_eq!(read, b"last");
    raw.send(&frame(h2::RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
    assert_eq!(server.told(|told| !told.finished.is_empty()).await.finished[0].aborted, Some(BodyError::Reset));
    assert!(upstream.write_all(b"nobody").await.is_err(), "the tunnel is closed");
}

#[tokio::test]
async fn idle_connections_end_and_a_drain_lets_requests_finish() {
    let (go, waits) = oneshot::channel::<()>();
    let waits = parking_lot::Mutex::new(Some(waits));
    let short = Duration::from_millis(50);
    let server = start(Limits { idle_timeout: short, header_timeout: short, ..limits() }, move |_, _, _| {
        let waits = waits.lock().take();
        Handled::later(async move {
            if let Some(waits) = waits {
                waits.await.unwrap();
            }
            text("ok")
        })
    })
    .await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut client = client(&server).await;
    let answer = client.send_request(get("/"));
    let told = server.told(|told| told.ended == 1).await;
    assert_eq!(told.handled.len(), 1, "the silent one ended, the busy one goes on");
    drop(silent);
    server.drain.send_replace(true);
    go.send(()).unwrap();
    assert_eq!(answer.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "ok");
    server.told(|told| told.ended == 2).await;
}

#[tokio::test]
async fn a_connection_whose_answers_are_still_on_their_way_is_not_idle() {
    const LENGTH: usize = 24 << 20;
    let short = Duration::from_millis(50);
    let body = Bytes::from(vec![b'x'; LENGTH]);
    let server = start(Limits { idle_timeout: short, header_timeout: short, ..limits() }, move |_, _, _| {
        let mut answer = text("");
        answer.body = ResponseBody::Full(body.clone());
        Handled::Ready(answer)
    })
    .await;
    const ROOM: u32 = 1 << 30;
    let mut raw = Raw::connect(server.address, &[(4, ROOM)]).await;
    let request = frame(h2::HEADERS, END | h2::END_HEADERS, 1, GET);
    raw.send(&[frame(h2::WINDOW_UPDATE, 0, 0, &ROOM.to_be_bytes()), request].concat()).await;
    let mut came = 0;
    while came < LENGTH {
        let piece = raw.until(|frame| frame.kind == DATA).await.unwrap_or_else(|| panic!("it ended after {came} bytes"));
        came += piece.payload.len();
        // No slower than a line may be: all of it takes many times as long as an idle connection has.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.told(|told| told.ended == 1).await;
}

#[tokio::test]
async fn a_connection_has_as_many_requests_as_it_may() {
    let server = start(Limits { requests_per_connection: 3, ..limits() }, |_, _, _| Handled::Ready(text("ok"))).await;
    let mut client = client(&server).await;
    for _ in 0..3 {
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    }
    server.told(|told| told.ended == 1).await;
    assert!(client.ready().await.is_err() || client.send_request(get("/")).await.is_err());
}

#[tokio::test]
async fn a_client_that_does_not_hear_of_the_end_is_refused_in_time() {
    let (go, waits) = oneshot::channel::<()>();
    let waits = parking_lot::Mutex::new(Some(waits));
    let limits = Limits { requests_per_connection: 2, header_timeout: Duration::from_millis(100), ..limits() };
    let limits = Limits { write_timeout: Duration::from_millis(200), ..limits };
    let server = start(limits, move |_, _, _| match waits.lock().take() {
        None => Handled::Ready(text("ok")),
        Some(waits) => Handled::later(async move {
            waits.await.unwrap();
            text("ok")
        }),
    })
    .await;
    let mut raw = Raw::connect(server.address, &[]).await;
    let ask = |stream| frame(h2::HEADERS, END | h2::END_HEADERS, stream, GET);
    raw.send(&[ask(1), ask(3)].concat()).await;
    assert!(raw.until(|frame| frame.kind == GOAWAY).await.is_some(), "it is told");
    // It goes on as if it had not heard.
    let mut stream = 3;
    let refused = loop {
        stream += 2;
        raw.send(&ask(stream)).await;
        let ended = raw.until(|frame| frame.stream == stream && frame.flags & END != 0 || frame.kind == h2::RST_STREAM).await;
        let ended = ended.expect("a request is under way");
        if ended.kind == h2::RST_STREAM {
            break ended;
        }
    };
    assert_eq!((refused.stream, refused.code()), (stream, Some(::h2::Reason::REFUSED_STREAM.into())));
    go.send(()).unwrap();
    let last = raw.until(|frame| frame.stream == 1 && frame.flags & END != 0).await;
    assert_eq!(last.expect("what is under way is answered").payload, b"ok");
    assert!(raw.until(|_| false).await.is_none());
    server.told(|told| told.ended == 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_a_ping_is_closed_and_one_that_does_stays() {
    let short = Duration::from_millis(30);
    let http2 = Http2 { keep_alive: short, keep_alive_timeout: short, ..Http2::default() };
    let server = start(Limits { http2, ..limits() }, |_, _, _| Handled::Ready(text("ok"))).await;
    let is_question = |frame: &h2::Frame| frame.kind == PING && frame.flags & END == 0;
    let mut silent = Raw::connect(server.address, &[]).await;
    assert!(silent.until(is_question).await.is_some());
    assert_eq!(silent.until(|frame| frame.kind == GOAWAY).await.and_then(|frame| frame.code()), Some(0));
    server.told(|told| told.ended == 1).await;
    let mut lively = Raw::connect(server.address, &[]).await;
    for _ in 0..5 {
        let question = lively.until(is_question).await.expect("it is asked");
        lively.send(&frame(PING, END, 0, &question.payload)).await;
    }
    lively.send(&frame(1, 5, 1, GET)).await;
    assert!(lively.until(|frame| frame.stream == 1).await.is_some());
}

/// A socket that counts what it is given.
struct Counting {
    socket: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl tiercel::listener::Socket for Counting {}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// A connection on which so many requests have come by the time it is served, and its writes.
async fn asked_at_once(requests: u32) -> (DuplexStream, Counting) {
    let (mut client, socket) = duplex(1 << 20);
    let head = [PREFACE, &frame(4, 0, 0, &[]), &frame(4, 1, 0, &[])].concat();
    client.write_all(&head).await.unwrap();
    for number in 0..requests {
        client.write_all(&frame(1, 5, 2 * number + 1, GET)).await.unwrap();
    }
    (client, Counting { socket, writes: Arc::default() })
}

#[tokio::test]
async fn answers_to_what_came_together_go_out_together() {
    let server = start(limits(), |head, _, _| match &head.target[..] {
        b"/" => Handled::Ready(response(200, ResponseBody::Full(Bytes::from(vec![b'x'; 1000])))),
        _ => Handled::Later(Box::pin(std::future::pending())),
    })
    .await;
    let (mut client, socket) = asked_at_once(40).await;
    let writes = Arc::clone(&socket.writes);
    let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
    tokio::spawn(serve(socket, peer, Arc::new(limits()), Arc::clone(&server.handler), drain));
    let (mut ended, mut length) = (0, 0);
    while ended < 40 {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        client.read_exact(&mut vec![0; size]).await.unwrap();
        length += 9 + size;
        ended += usize::from(head[3] == DATA && head[4] & END != 0);
    }
    let writes = writes.load(Ordering::Relaxed);
    assert!(length > 40_000 && writes <= 2 + length / (16 << 10), "{writes} writes for {length} bytes");
}

#[tokio::test]
async fn a_connection_gives_others_their_turn() {
    let server = start(limits(), |_, _, _| Handled::Ready(text("ok"))).await;
    let (_client, socket) = asked_at_once(100).await;
    let (peer, drain) = (peer(server.address, server.address), server.drain.subscribe());
    tokio::spawn(serve(socket, peer, Arc::new(limits()), Arc::clone(&server.handler), drain));
    // Tasks that are woken have their turns in that order.
    let told = server.handler.told.subscribe();
    let other = tokio::spawn(poll_fn(move |context| match told.borrow().handled.len() {
        0 => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
        handled => Poll::Ready(handled),
    }));
    assert_eq!(other.await.unwrap(), 64);
    server.told(|told| told.finished.len() == 100).await;
}

/// Sends bytes and waits until the server has closed the connection.
async fn abuse(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let sending = async {
        _ = write.write_all(bytes).await; // it may be closed before all is sent
    };
    let reading = async {
        let mut heard = [0; 4096];
        while matches!(read.read(&mut heard).await, Ok(1..)) {}
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(sending, reading) }).await.expect("the connection is closed");
}

#[tokio::test]
async fn abuse_ends_its_connection_and_harms_no_other() {
    let server = start(limits(), |_, _, _| Handled::later(async { text("ok") })).await;
    let mut client = client(&server).await;
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    let settings = frame(4, 0, 0, &[]);
    let begin = [PREFACE, &settings].concat();
    let mut resets = begin.clone();
    for stream in (1..20_000_u32).step_by(2) {
        resets.extend(frame(1, 5, stream, GET));
        resets.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut continuation = [&begin[..], &frame(1, 1, 1, GET)].concat();
    for _ in 0..20_000 {
        continuation.extend(frame(9, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(100)));
    }
    let mut own_errors = begin.clone();
    for stream in (1..4_000_u32).step_by(2) {
        own_errors.extend(frame(1, 5, stream, GET));
        own_errors.extend(frame(8, 0, stream, &0_u32.to_be_bytes())); // a window that grows by nothing
    }
    for (what, bytes) in [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        ("noise", vec![0xa5; 64 << 10]),
        ("a frame too large", [&begin[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("HPACK that is none", [&begin[..], &frame(1, 5, 1, &[0xff; 64])].concat()),
        ("data for no stream", [&begin[..], &frame(0, 1, 7, b"x")].concat()),
        ("rapid resets", resets),
        ("continuation without end", continuation),
        ("errors of streams", own_errors),
    ] {
        abuse(server.address, &bytes).await;
        let answer = client.send_request(get("/")).await.unwrap_or_else(|error| panic!("after {what}: {error}"));
        assert_eq!(answer.status(), 200, "after {what}");
    }
    let told = server.told(|told| told.ended == 8).await;
    assert!(told.handled.len() < 9_000, "{} requests of connections that are abused were handled", told.handled.len());
}
