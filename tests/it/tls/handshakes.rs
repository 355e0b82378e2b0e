//! Versions, suites, names, resumption, and what is on the wire.

use super::{curl, metric, metric_reaches, s_client, start};
use crate::support::client::Client;
use crate::support::origin::{Gate, Origin, Script, Step};
use crate::support::pki::{EC, Pki, RSA, Secure};
use crate::support::process::Process;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::{HandshakeKind, NamedGroup};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn origin() -> Origin {
    Origin::start(|request| {
        let proto = request.field("x-forwarded-proto").unwrap_or("none").to_owned();
        Script::ok(proto).header("Cache-Control", "max-age=60")
    })
}

fn shop() -> Pki {
    let pki = Pki::new();
    pki.issue("shop", &["shop.example", "*.shop.example"], EC, 30);
    pki
}

/// With one certificate for `shop.example`.
fn serve_shop(pki: &Pki, origin: &Origin, more: &str) -> (Process, SocketAddr) {
    start(pki, &origin.url(), &format!("certificates = [{}]\n{more}", pki.entry("shop")), "")
}

const HANDSHAKES: &str = "tiercel_tls_handshakes_total";

fn handshakes(version: &str, outcome: &str) -> String {
    format!("{HANDSHAKES}{{outcome=\"{outcome}\",version=\"{version}\"}}")
}

#[tokio::test]
async fn curl_gets_every_version_of_tls_and_http_that_is_offered() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "");
    let url = "https://shop.example/";
    let shown = ["-o", "/dev/null", "-w", "%{http_version} %{response_code} %header{cache-status}"];
    let ask = |more: &[&str]| curl(&pki, address, &[&shown, more, &[url]].concat()).unwrap();
    assert!(ask(&["--http1.1"]).starts_with("1.1 200 tiercel; fwd=uri-miss"));
    assert!(ask(&["--http2"]).starts_with("2 200 tiercel; hit"));
    assert!(ask(&["--http2", "--tls-max", "1.2"]).starts_with("2 200 tiercel; hit"));
    assert!(ask(&["--http1.1", "--tls-max", "1.2"]).starts_with("1.1 200 tiercel; hit"));
    assert!(ask(&["--no-alpn"]).starts_with("1.1 200 tiercel; hit"));
    assert_eq!(metric(&process, &handshakes("1.3", "full")).await, 3.0);
    assert_eq!(metric(&process, &handshakes("1.2", "full")).await, 2.0);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_hundred_streams_on_each_of_sixteen_connections_are_served_without_an_error() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "");
    curl(&pki, address, &["https://shop.example/"]).unwrap();
    let load = ["-n", "8000", "-c", "16", "-m", "100", "--connect-to", &address.to_string(), "https://shop.example/"];
    let output = Command::new("h2load").args(load).stdin(Stdio::null()).output().expect("h2load runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("8000 succeeded, 0 failed, 0 errored, 0 timeout"), "{report}");
    assert!(report.contains("8000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{report}");
    assert!(report.contains("TLS Protocol: TLSv1.3") && report.contains("Application protocol: h2"), "{report}");
    assert_eq!(metric(&process, &handshakes("1.3", "full")).await, 17.0);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn the_scheme_is_part_of_the_key_and_told_upstream() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "");
    assert_eq!(curl(&pki, address, &["https://shop.example/"]).unwrap(), "https");
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    assert_eq!(Client::connect(process.http()).await.ask(request).await.text(), "http");
    assert_eq!(curl(&pki, address, &["https://shop.example/"]).unwrap(), "https");
    assert_eq!(origin.total(), 2);
    assert_eq!(origin.requests("/")[0].field("forwarded").map(|value| value.contains("proto=https")), Some(true));
}

#[test]
fn nothing_weak_is_spoken() {
    let (pki, origin) = (shop(), origin());
    pki.issue("rsa", &["shop.example"], RSA, 30);
    let tls = format!("certificates = [{}, {}]", pki.entry("shop"), pki.entry("rsa"));
    let (_process, address) = start(&pki, &origin.url(), &tls, "");
    let talk = |arguments: &str| s_client(address, &format!("-servername shop.example {arguments}"), "");
    let agreed =
        |text: &str| text.contains("Verify return code") && !text.contains("Cipher is (NONE)") && !text.contains("Cipher    : 0000");
    // A client that would take anything.
    const ANYTHING: &str = "-cipher ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    for version in ["-tls1", "-tls1_1"] {
        let text = talk(&format!("{version} {ANYTHING}"));
        assert!(!agreed(&text) && text.contains(" alert "), "{version}: {text}");
    }
    for suite in [
        "AES128-SHA",
        "AES256-GCM-SHA384",
        "DES-CBC3-SHA",
        "CAMELLIA128-SHA",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA384",
        "ECDHE-RSA-AES128-SHA256",
        "DHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES128-CCM8",
        "NULL-SHA256",
        "ADH-AES128-GCM-SHA256",
        "PSK-AES128-GCM-SHA256",
    ] {
        let text = talk(&format!("-tls1_2 -cipher {suite}:@SECLEVEL=0"));
        assert!(!agreed(&text), "{suite}: {text}");
    }
    for (version, suite) in [
        ("-tls1_2 -cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_2 -cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("-tls1_2 -cipher", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("-tls1_3 -ciphersuites", "TLS_AES_256_GCM_SHA384"),
        ("-tls1_3 -ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"),
    ] {
        let text = talk(&format!("{version} {suite}"));
        assert!(agreed(&text) && text.contains(suite) && text.contains("Compression: NONE"), "{suite}: {text}");
    }
}

#[test]
fn renegotiation_is_refused() {
    let (pki, origin) = (shop(), origin());
    let (_process, address) = serve_shop(&pki, &origin, "");
    let text = s_client(address, "-servername shop.example -tls1_2 -legacy_renegotiation", "R\nGET / HTTP/1.0\r\n\r\n");
    assert!(text.contains("RENEGOTIATING") && text.contains("no renegotiation"), "{text}");
    assert!(!text.contains("HTTP/1.1 200"), "{text}");
}

#[test]
fn versions_and_suites_are_what_the_configuration_says() {
    let (pki, origin) = (shop(), origin());
    let (_process, address) = serve_shop(
        &pki,
        &origin,
        "min_version = '1.3'\nsuites = ['TLS_CHACHA20_POLY1305_SHA256', 'TLS_AES_128_GCM_SHA256']\nhttp2 = false",
    );
    assert!(curl(&pki, address, &["--tls-max", "1.2", "https://shop.example/"]).unwrap_err().contains("alert"));
    let version = ["-o", "/dev/null", "-w", "%{http_version}", "https://shop.example/"];
    assert_eq!(curl(&pki, address, &version).unwrap(), "1.1", "HTTP/2 is not offered");
    let text = s_client(address, "-servername shop.example", "");
    assert!(text.contains("Cipher is TLS_CHACHA20_POLY1305_SHA256"), "the order is ours: {text}");
    let text = s_client(address, "-servername shop.example -ciphersuites TLS_AES_256_GCM_SHA384", "");
    assert!(text.contains("handshake failure"), "{text}");
}

#[test]
fn the_certificate_is_chosen_by_name_and_by_what_the_client_can_check() {
    let (pki, origin) = (shop(), origin());
    pki.issue("blog", &["blog.example"], EC, 30);
    pki.issue("shop-rsa", &["shop.example", "*.shop.example"], RSA, 30);
    let all = ["shop", "blog", "shop-rsa"].map(|name| pki.entry(name)).join(", ");
    let (_process, address) = start(&pki, &origin.url(), &format!("certificates = [{all}]"), "");
    let subject = |arguments: &str| {
        let text = s_client(address, arguments, "");
        text.lines().find_map(|line| line.strip_prefix("subject=CN = ")).map(str::to_owned).unwrap_or_else(|| panic!("{text}"))
    };
    for (arguments, want) in [
        ("-servername shop.example", "shop"),
        ("-servername BLOG.example", "blog"),
        ("-servername a.shop.example", "shop"),
        ("-servername a.b.shop.example", "shop"),
        ("-servername other.example", "shop"),
        ("-noservername", "shop"),
        ("-servername shop.example -tls1_2 -sigalgs RSA+SHA256", "shop-rsa"),
        ("-servername shop.example -sigalgs rsa_pss_rsae_sha256", "shop-rsa"),
        ("-noservername -sigalgs rsa_pss_rsae_sha256", "shop-rsa"),
        ("-servername blog.example -tls1_3", "blog"),
    ] {
        assert_eq!(subject(arguments), want, "{arguments}");
    }
}

#[tokio::test]
async fn a_session_is_resumed_by_any_worker_and_by_nodes_that_share_a_key() {
    let (pki, origin) = (shop(), origin());
    std::fs::write(pki.path("tickets"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let shared = format!("ticket_key_file = '{}'", pki.path("tickets").display());
    let (one, at_one) = serve_shop(&pki, &origin, &shared);
    let (other, at_other) = serve_shop(&pki, &origin, &shared);
    let (_stranger, at_stranger) = serve_shop(&pki, &origin, "");
    for version in ["-tls1_2", "-tls1_3"] {
        let session = pki.path("session");
        let request = "GET / HTTP/1.0\r\nHost: shop.example\r\n\r\n";
        let talk = |address, more: &str| {
            s_client(address, &format!("-servername shop.example -ign_eof {version} {more} {}", session.display()), request)
        };
        assert!(talk(at_one, "-sess_out").contains("\nNew, TLS"));
        for _ in 0..4 {
            let text = talk(at_one, "-sess_in");
            assert!(text.contains("\nReused, TLS") && text.contains("HTTP/1.1 200"), "{version}: {text}");
        }
        assert!(talk(at_other, "-sess_in").contains("\nReused, TLS"), "{version}");
        assert!(talk(at_stranger, "-sess_in").contains("\nNew, TLS"), "{version}");
        let version = version.replace("-tls1_", "1.");
        assert_eq!(metric(&one, &handshakes(&version, "resumed")).await, 4.0);
        assert_eq!(metric(&other, &handshakes(&version, "resumed")).await, 1.0);
    }
}

#[test]
fn a_ticket_allows_no_early_data() {
    let (pki, origin) = (shop(), origin());
    let (_process, address) = serve_shop(&pki, &origin, "");
    let [session, early] = ["session", "early"].map(|name| pki.path(name).display().to_string());
    let request = "GET / HTTP/1.0\r\nHost: shop.example\r\n\r\n";
    std::fs::write(&early, "GET /early HTTP/1.0\r\nHost: shop.example\r\n\r\n").unwrap();
    let talk = |more: &str| s_client(address, &format!("-servername shop.example -ign_eof -tls1_3 {more}"), request);
    let first = talk(&format!("-sess_out {session}"));
    assert!(first.contains("Max Early Data: 0\n"), "{first}");
    let again = talk(&format!("-sess_in {session} -early_data {early}"));
    assert!(again.contains("\nReused, TLS") && again.contains("Early data was not sent"), "{again}");
    assert_eq!((origin.count("/"), origin.count("/early")), (1, 0));
}

#[tokio::test]
async fn a_session_is_resumed_after_a_reload() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "");
    let mut config = pki.client();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    // Tickets come after the handshake: the answer is behind them.
    Secure::connect(address, "shop.example", &config).await.unwrap().ask(request).await.unwrap();
    process.signal(crate::support::process::HANGUP);
    process.err.wait("the reload", |line| line.contains("configuration reloaded"));
    Secure::connect(address, "shop.example", &config).await.unwrap().ask(request).await.unwrap();
    assert_eq!(metric(&process, &handshakes("1.3", "resumed")).await, 1.0);
}

/// A client that says in TLS 1.2, too, that it knows the hybrid group, which is of 1.3.
#[derive(Debug)]
struct SaidTooEarly;

impl SupportedKxGroup for SaidTooEarly {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        X25519MLKEM768.start()
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

#[tokio::test]
async fn the_key_exchange_withstands_quantum_computers_where_the_client_can() {
    let (pki, origin) = (shop(), origin());
    let (_process, address) = serve_shop(&pki, &origin, "");
    const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;
    let [new, old] = [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]];
    for (groups, versions, group, handshake) in [
        (vec![X25519MLKEM768], new, HYBRID, HandshakeKind::Full),
        (vec![X25519MLKEM768, X25519], new, HYBRID, HandshakeKind::Full),
        (vec![X25519], new, NamedGroup::X25519, HandshakeKind::Full),
        (vec![SECP256R1, X25519], new, NamedGroup::secp256r1, HandshakeKind::Full),
        // Ours counts, for what may be recorded, not the client's order. It costs who likes others better a round trip.
        (vec![SECP256R1, X25519, X25519MLKEM768], new, HYBRID, HandshakeKind::FullWithHelloRetryRequest),
        (vec![X25519], old, NamedGroup::X25519, HandshakeKind::Full),
        (vec![&SaidTooEarly as &dyn SupportedKxGroup, SECP256R1], old, NamedGroup::secp256r1, HandshakeKind::Full),
    ] {
        let what = format!("{groups:?} {versions:?}");
        let provider = CryptoProvider { kx_groups: groups, ..rustls::crypto::aws_lc_rs::default_provider() };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::pem::PemObject::from_pem_file(pki.path("ca.pem")).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
        let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
        let mut connection = Secure::connect(address, "shop.example", &config).await.unwrap();
        let session = connection.stream.get_ref().1;
        let came_of_it = (session.negotiated_key_exchange_group().map(SupportedKxGroup::name), session.handshake_kind());
        assert_eq!(came_of_it, (Some(group), Some(handshake)), "{what}");
        // Which of the two it was makes no difference to a ticket.
        connection.ask("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
        let again = Secure::connect(address, "shop.example", &config).await.unwrap();
        assert_eq!(again.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{what}");
    }
}

#[tokio::test]
async fn a_handshake_has_its_time_and_one_that_waits_for_its_turn_gets_it() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "handshake_timeout = '1s'\nhandshakes = 1");
    let mut silent = TcpStream::connect(address).await.unwrap();
    metric_reaches(&process, "tiercel_connections", 1.0).await;
    // It holds the only turn until its time is over; whoever waits has the same time from when it came.
    let config = Arc::new(pki.client());
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let answer = loop {
        if let Ok(mut connection) = Secure::connect(address, "shop.example", &config).await
            && let Ok(answer) = connection.ask(request).await
        {
            break answer;
        }
    };
    assert!(answer.0.starts_with("HTTP/1.1 200"));
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "closed");
    assert!(metric(&process, &handshakes("none", "timeout")).await >= 1.0);
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_and_counted() {
    let (pki, origin) = (shop(), origin());
    let (process, address) = serve_shop(&pki, &origin, "");
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.first(), Some(&0x15), "an alert");
    metric_reaches(&process, &handshakes("none", "refused"), 1.0).await;
    drop(TcpStream::connect(address).await.unwrap());
    metric_reaches(&process, &handshakes("none", "client_left"), 1.0).await;
    metric_reaches(&process, "tiercel_connections", 0.0).await;
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn an_orderly_end_is_told_and_a_broken_one_is_not() {
    let pki = shop();
    let gate = Gate::new();
    let origin = Origin::start({
        let gate = gate.clone();
        move |request| match &request.path[..] {
            "/whole" => Script::ok("whole"),
            _ => Script::steps([
                Step::Bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n".to_vec()),
                Step::Wait(gate.clone()),
                Step::Reset,
            ]),
        }
    });
    let (_process, address) = serve_shop(&pki, &origin, "");
    let config = Arc::new(pki.client());
    let mut whole = Secure::connect(address, "shop.example", &config).await.unwrap();
    let mut answer = String::new();
    whole.stream.write_all(b"GET /whole HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").await.unwrap();
    whole.stream.read_to_string(&mut answer).await.expect("close_notify");
    assert!(answer.ends_with("whole"), "{answer}");

    // Delimited by close, as HTTP/1.0 has it: only the missing close_notify tells that it is not all.
    let mut broken = Secure::connect(address, "shop.example", &config).await.unwrap();
    broken.stream.write_all(b"GET /broken HTTP/1.0\r\nHost: shop.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"begun") {
        assert!(broken.stream.read_buf(&mut answer).await.unwrap() > 0);
    }
    gate.open();
    broken.stream.read_to_end(&mut answer).await.expect_err("an end that was not agreed on");
}
