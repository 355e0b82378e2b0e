//! HTTP/2 in plain text, by prior knowledge, through the running binary.

use super::*;
use crate::support::h2::{Raw, SETTINGS, ask, connect, get};
use std::process::{Command, Stdio};

const H2C: &str = "[listeners.http]\nh2c = true\n";

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).stdin(Stdio::null()).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn both_protocols_are_served_on_one_port_from_one_store() {
    let served = serve_with(H2C, |_| fresh("stored"));
    let mut client = connect(served.tiercel.http).await;
    let miss = ask(&mut client, get("/a?b=c")).await;
    assert_eq!((miss.status().as_u16(), &miss.body()[..]), (200, &b"stored"[..]));
    let seen = served.last("/a");
    assert_eq!((seen.field("host"), seen.field("via"), seen.field("x-forwarded-proto")), (Some(HOST), Some("2 tiercel"), Some("http")));
    assert!(served.until_hit("/a?b=c", "").await.text() == "stored", "what came over HTTP/2 answers HTTP/1");
    let hit = ask(&mut client, get("/a?b=c")).await;
    assert!(hit.headers()["cache-status"].to_str().unwrap().contains("; hit"), "{:?}", hit.headers());
    assert_eq!(served.origin.count("/a"), 1);
    let url = format!("http://{}/a?b=c", served.tiercel.http);
    let host = format!("Host: {HOST}");
    for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1"), ("--http2", "1.1")] {
        assert_eq!(curl(&[flag, "-H", &host, "-w", " %{http_version}", &url]), format!("stored {version}"), "{flag}");
    }
}

#[tokio::test]
async fn the_preface_may_come_in_pieces_and_what_is_nearly_one_is_refused() {
    let served = serve_with(H2C, |_| fresh("stored"));
    let mut raw = Raw { stream: tokio::net::TcpStream::connect(served.tiercel.http).await.unwrap() };
    raw.stream.set_nodelay(true).unwrap();
    for byte in crate::support::h2::PREFACE {
        raw.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    raw.send(&crate::support::h2::frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(raw.next().await.expect("settings come first").kind, SETTINGS);
    for nearly in
        ["PRI * HTTP/2.0\r\nHost: a\r\n\r\n", "PRI / HTTP/2.0\r\n\r\n", "GET * HTTP/2.0\r\n\r\n", "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let answer = served.client().await.ask(nearly).await;
        assert_eq!(answer.status, 505, "{nearly:?}: {}", answer.head);
    }
    let mut later = served.client().await;
    assert_eq!(later.ask(request("GET", "/", "", "")).await.status, 200);
    assert_eq!(later.ask(crate::support::h2::PREFACE).await.status, 505, "a connection that spoke HTTP/1 goes on with it");
}

#[tokio::test]
async fn without_the_option_the_preface_is_refused_and_a_reload_allows_it() {
    let served = serve(|_| fresh("stored"));
    assert_eq!(served.client().await.ask(crate::support::h2::PREFACE).await.status, 505);
    served.reload(H2C).await;
    let mut client = connect(served.tiercel.http).await;
    assert_eq!(ask(&mut client, get("/")).await.status(), 200);
}
