//! The PROXY protocol in front of requests.

use super::*;
use std::process::Command;

const FROM_THE_BALANCER: &str = "[listeners.http]\nproxy_protocol = [\"127.0.0.1\"]\n";
const ANNOUNCED: &str = "PROXY TCP4 203.0.113.7 198.51.100.2 51000 443\r\n";
/// Version 2, LOCAL: the balancer speaks for itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test]
async fn the_client_is_whom_the_balancer_names() {
    let served = serve_with(FROM_THE_BALANCER, |_| fresh("stored"));
    let mut client = served.client().await;
    let named = client.ask(format!("{ANNOUNCED}{}", request("GET", "/named", "", ""))).await;
    assert_eq!((named.status, named.text()), (200, "stored"));
    assert_eq!(served.last("/named").field("x-forwarded-for"), Some("203.0.113.7"));
    assert_eq!(client.ask(request("GET", "/again", "", "")).await.status, 200, "one header for all requests of a connection");
    assert_eq!(served.last("/again").field("x-forwarded-for"), Some("203.0.113.7"));
    let itself = served.client().await.ask([LOCAL, request("GET", "/itself", "", "").as_bytes()].concat()).await;
    assert_eq!(itself.status, 200);
    assert_eq!(served.last("/itself").field("x-forwarded-for"), Some("127.0.0.1"));
    let url = format!("http://{}/curl", served.tiercel.http);
    let curl = Command::new("curl").args(["-sS", "--max-time", "20", "--haproxy-protocol", &url]).output().expect("curl runs");
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "stored", "{}", String::from_utf8_lossy(&curl.stderr));
}

#[tokio::test]
async fn without_a_header_the_balancer_is_refused_and_others_cannot_bring_one() {
    let served = serve_with(FROM_THE_BALANCER, |_| fresh("stored"));
    let mut bare = served.client().await;
    bare.send(request("GET", "/", "", "")).await;
    assert_eq!(bare.until("\r\n").await, None, "it is closed without a word");
    served.until_metric("tiercel_refused_total{code=\"4xx\",reason=\"proxy-protocol\"}", 1).await;
    let elsewhere = |header: bool| {
        let url = format!("http://{}/elsewhere", served.tiercel.http);
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-o", "-", "-w", " %{http_code}", "--interface", "127.0.0.2", &url]);
        let output = if header { curl.arg("--haproxy-protocol") } else { &mut curl }.output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(elsewhere(false), "stored 200");
    assert_eq!(served.last("/elsewhere").field("x-forwarded-for"), Some("127.0.0.2"));
    assert!(elsewhere(true).ends_with(" 400"));
    served.reload("").await;
    assert_eq!(served.get("/").await.status, 200, "no header is wanted any more");
}
