//! Bringing clients to https and keeping them there: redirects, Strict-Transport-Security.

use super::{config, curl, start};
use crate::support::client::{Answer, Client};
use crate::support::origin::{Origin, Script};
use crate::support::pki::{EC, Pki};
use crate::support::process::{Process, fails, write_config};
use std::net::SocketAddr;

fn origin() -> Origin {
    Origin::start(|_| Script::ok("hello").header("Cache-Control", "max-age=60").header("Strict-Transport-Security", "max-age=1"))
}

fn pki() -> (Pki, String) {
    let pki = Pki::new();
    pki.issue("shop", &["shop.example"], EC, 30);
    let tls = format!("certificates = [{}]", pki.entry("shop"));
    (pki, tls)
}

async fn plain(address: SocketAddr, line: &str, more: &str) -> Answer {
    Client::connect(address).await.ask(format!("{line} HTTP/1.1\r\nHost: shop.example:8080\r\n{more}\r\n")).await
}

#[tokio::test]
async fn everything_without_tls_is_sent_to_https_but_for_challenges() {
    let (origin, (pki, tls)) = (origin(), pki());
    let (process, address) = start(&pki, &origin.url(), &tls, "redirect_to_https = true\n");
    let answer = plain(process.http(), "GET /a%20b?c=d", "").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://shop.example/a%20b?c=d")));
    assert_eq!(answer.field("strict-transport-security"), None);
    let answer = plain(process.http(), "POST /form", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://shop.example/form")));
    assert_eq!(origin.total(), 0);
    assert_eq!(plain(process.http(), "GET /.well-known/acme-challenge/token", "").await.text(), "hello");
    assert_eq!(curl(&pki, address, &["https://shop.example/a"]).unwrap(), "hello");
}

#[tokio::test]
async fn a_listener_a_site_or_a_route_says_so_and_a_trusted_proxy_may_have_seen_to_it() {
    let (origin, (pki, tls)) = (origin(), pki());
    let more = "[server]\ntrusted_proxies = ['127.0.0.1']\n[listeners.door]\naddress = '127.0.0.1:0'\nredirect_to_https = 8443\n";
    let text = config(&origin.url(), &tls, more)
        + "[sites.shop]\nhosts = ['shop.example']\n[[sites.shop.routes]]\npath = '/account/'\nredirect_to_https = true\n";
    let process = Process::with_config(pki.folder(), &text);
    let location = |answer: &Answer| answer.field("location").map(str::to_owned);
    assert_eq!(plain(process.http(), "GET /a", "").await.status, 200);
    assert_eq!(location(&plain(process.http(), "GET /account/a", "").await).as_deref(), Some("https://shop.example/account/a"));
    let door = process.address("listener door");
    assert_eq!(location(&plain(door, "GET /a", "").await).as_deref(), Some("https://shop.example:8443/a"));
    assert_eq!(plain(door, "GET /a", "X-Forwarded-Proto: https\r\n").await.status, 200);
}

#[tokio::test]
async fn answers_over_https_say_so_once_and_those_without_do_not() {
    let (origin, (pki, tls)) = (origin(), pki());
    let hsts = "hsts = { max_age = '365d', include_subdomains = true, preload = true }\n";
    let (process, address) = start(&pki, &origin.url(), &tls, hsts);
    let shown = ["-o", "/dev/null", "-D", "-"];
    for (version, path) in [("--http1.1", "/a"), ("--http1.1", "/a"), ("--http2", "/a"), ("--http2", "/b?c")] {
        let head = curl(&pki, address, &[&shown[..], &[version, &format!("https://shop.example{path}")]].concat()).unwrap();
        let lines: Vec<_> = head.lines().filter(|line| line.to_ascii_lowercase().starts_with("strict-transport-security")).collect();
        assert_eq!(lines.len(), 1, "{head}");
        assert!(lines[0].ends_with(": max-age=31536000; includeSubDomains; preload"), "{head}");
    }
    let answers = [plain(process.http(), "GET /a", "").await, plain(process.http(), "GET /a", "").await];
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.field("strict-transport-security").is_none()));
    // Where nothing is configured it is the origin's to say.
    let (_process, address) = start(&pki, &origin.url(), &tls, "");
    assert!(
        curl(&pki, address, &["-i", "https://shop.example/a"])
            .unwrap()
            .to_ascii_lowercase()
            .contains("strict-transport-security: max-age=1\r")
    );
}

#[test]
fn what_browsers_would_not_take_is_refused() {
    let pki = Pki::new();
    for (text, what, remedy) in [
        ("hsts = { preload = true }", "without a time", "max_age"),
        ("hsts = { max_age = '30d', include_subdomains = true, preload = true }", "would not take it", "365d"),
        ("hsts = { max_age = 'soon' }", "hsts.max_age", "365d"),
        ("redirect_to_https = 70000", "not a port", "true"),
        ("redirect_to_https = 'yes'", "not a port", "true"),
    ] {
        let text = format!("{text}\n[upstreams.default]\nendpoints = ['http://127.0.0.1:3000']\n");
        let (code, said) = fails(&["check", "--config", write_config(pki.folder(), &text).to_str().unwrap()]);
        assert_eq!(code, Some(2), "{text}: {said}");
        assert!(said.contains(what) && said.contains(remedy), "{text}: {said}");
    }
}
