//! HTTP/2 from the client to the upstream, through the running binary: gRPC, and what is stored.

use super::*;
use crate::support::h2::{DATA, RST_STREAM, ask, connect, frame, get};
use crate::support::h2_origin::{Origin as Http2Origin, raw, read, say};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;

/// The binary in front of an upstream that speaks HTTP/2 in plain text.
fn start(upstream: SocketAddr) -> (Tiercel, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[listeners.http]\nh2c = true\n[log.access]\ntarget = 'off'\n[upstreams.default]\nendpoints = ['http://{upstream}']\nhttp = '2'\n\
         connect_timeout = '1s'\nretries = 0\n"
    );
    (Tiercel::with_config(&config, folder.path()), folder)
}

async fn client(tiercel: &Tiercel) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(tiercel.http).await.expect("connect");
    let (sender, connection) = h2::client::handshake(stream).await.expect("handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

fn call(method: &str) -> http::Request<()> {
    let uri = format!("http://{HOST}/echo.Echo/{method}");
    http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(())
        .unwrap()
}

/// A service that answers as gRPC does: `/Bidirectional` each message at once, others once all is there.
async fn service() -> Http2Origin {
    Http2Origin::start(|(mut request, mut respond)| async move {
        let asked = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!((asked("te").as_deref(), asked("grpc-timeout").as_deref()), (Some("trailers"), Some("5S")));
        let head =
            http::Response::builder().header("content-type", "application/grpc").header("cache-control", "max-age=60").body(()).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let mut stream = respond.send_response(head, false).unwrap();
        match &method[..] {
            "Bidirectional" => {
                while let Some(Ok(data)) = request.body_mut().data().await {
                    stream.send_data(data, false).unwrap();
                }
            }
            "ServerStream" => {
                read(request.body_mut()).await;
                for number in 0..100u8 {
                    stream.send_data(Bytes::from(vec![number]), false).unwrap();
                }
            }
            _ => {
                let (message, _) = read(request.body_mut()).await;
                stream.send_data(message.into(), false).unwrap();
            }
        }
        stream.send_trailers(trailers).unwrap();
    })
    .await
}

#[tokio::test]
async fn all_kinds_of_grpc_calls_pass() {
    let origin = service().await;
    let (tiercel, _folder) = start(origin.address);
    let mut client = client(&tiercel).await;
    for (method, messages, want) in [
        ("Unary", &["hello"][..], b"hello".to_vec()),
        ("ClientStream", &["a", "b", "c"], b"abc".to_vec()),
        ("ServerStream", &["x"], (0..100).collect()),
    ] {
        let (answer, mut stream) = client.send_request(call(method), false).unwrap();
        for message in messages {
            stream.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &HeaderValue::from_static("application/grpc")));
        let (body, trailers) = read(&mut answer.into_body()).await;
        assert_eq!((body, trailers["grpc-status"].to_str().unwrap()), (want, "0"), "{method}");
    }
    let (answer, mut stream) = client.send_request(call("Bidirectional"), false).unwrap();
    let mut body = answer.await.expect("a head before the request ends").into_body();
    for message in ["one", "two", "three"] {
        stream.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
        assert_eq!(poll_fn(|context| body.poll_data(context)).await.unwrap().unwrap(), message);
    }
    stream.send_data(Bytes::new(), true).unwrap();
    let (rest, trailers) = read(&mut body).await;
    assert_eq!((rest.len(), trailers["grpc-status"].to_str().unwrap()), (0, "0"));
    assert_eq!(origin.connections(), 1, "they share a connection");
}

#[tokio::test]
async fn a_failure_of_ours_has_a_status_of_grpc() {
    let nobody = crate::support::address::free();
    let (tiercel, _folder) = start(nobody);
    let mut client = client(&tiercel).await;
    let (answer, _) = client.send_request(call("Unary"), true).unwrap();
    let answer = answer.await.unwrap();
    let line = |name: &str| answer.headers()[name].to_str().unwrap();
    assert_eq!((answer.status().as_u16(), line("content-type"), line("grpc-status")), (200, "application/grpc", "14"));
    assert!(line("proxy-status").contains("connection_refused"), "{:?}", answer.headers());
    let other = ask(&mut connect(tiercel.http).await, get("/")).await;
    assert_eq!(other.status(), 502, "others have one of HTTP");
}

#[tokio::test]
async fn what_comes_over_http2_is_stored_if_it_is_whole() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let origin = Http2Origin::start(move |(_, mut respond)| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let head = http::Response::builder().header("cache-control", "max-age=60").body(()).unwrap();
            respond.send_response(head, false).unwrap().send_data(Bytes::from_static(b"whole"), true).unwrap();
        }
    })
    .await;
    let (tiercel, _folder) = start(origin.address);
    let mut client = connect(tiercel.http).await;
    let hit = loop {
        let answer = ask(&mut client, get("/a")).await;
        assert_eq!(&answer.body()[..], b"whole");
        if answer.headers()["cache-status"].to_str().unwrap().contains("; hit") {
            break answer;
        }
    };
    assert!(hit.headers().contains_key("age"));
    let fetched = count.load(Ordering::SeqCst);
    assert_eq!(ask(&mut client, get("/a")).await.body(), "whole");
    assert_eq!(count.load(Ordering::SeqCst), fetched);
}

#[tokio::test]
async fn what_is_cut_off_is_never_stored_nor_ends_in_order() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let address = raw(move |mut raw, _| {
        let count = Arc::clone(&count);
        async move {
            while let Some(stream) = raw.request().await {
                count.fetch_add(1, Ordering::SeqCst);
                raw.head(stream, &crate::support::h2::line("cache-control", "max-age=60")).await;
                raw.send(&frame(DATA, 0, stream, b"half")).await;
                raw.send(&frame(RST_STREAM, 0, stream, &2u32.to_be_bytes())).await;
            }
        }
    })
    .await;
    let (tiercel, _folder) = start(address);
    let mut client = client(&tiercel).await;
    for number in 1..4 {
        let request = http::Request::get(format!("http://{HOST}/a")).body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        if let Ok(answer) = answer.await {
            let mut body = answer.into_body();
            let failed = loop {
                match poll_fn(|context| body.poll_data(context)).await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error.is_reset(),
                    None => break false,
                }
            };
            assert!(failed, "the stream is reset");
        }
        assert_eq!(asked.load(Ordering::SeqCst), number, "each asks anew");
    }
}

#[tokio::test]
async fn the_store_is_one_whatever_is_spoken_on_either_side() {
    let origin = Http2Origin::start(|(_, respond)| async move { say(respond, "over 2") }).await;
    let (tiercel, _folder) = start(origin.address);
    let answer = Client::connect(tiercel.http).await.ask(format!("GET /b HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!((answer.status, answer.text()), (200, "over 2"));
}
