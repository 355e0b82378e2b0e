//! Client certificates: who is let in, what the upstream is told, and what may be reused.

use super::{config, curl, metric_reaches, s_client, start};
use crate::support::client::Client;
use crate::support::origin::{Origin, Recorded, Script};
use crate::support::pki::{EC, Pki, Secure};
use crate::support::process::{Process, fails, write_config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::sync::Arc;

/// An authority with a server for two hosts and two clients.
fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("server", &["shop.example", "blog.example"], EC, 30);
    for client in ["alice", "bob"] {
        pki.issue(client, &[&format!("{client}.example")], EC, 30);
    }
    pki
}

/// Says what it was told of the client.
fn origin() -> Origin {
    Origin::start(|request| Script::ok(told(request)))
}

fn told(request: &Recorded) -> String {
    let field = |name: &str| request.field(name).unwrap_or("none").to_owned();
    format!("{} {}", field("client-cert"), field("client-cert-chain"))
}

/// Client-Cert for a certificate that was issued.
fn field(pki: &Pki, name: &str) -> String {
    let certificate = CertificateDer::from_pem_file(pki.path(&format!("{name}.pem"))).unwrap();
    let text = tiercel::semantics::structured::byte_sequences([&certificate[..]]);
    assert!(text.starts_with(":MII") && text.ends_with(':'), "{text}");
    text
}

fn tls(pki: &Pki, more: &str) -> String {
    format!("certificates = [{}]\n{more}\n", pki.entry("server"))
}

fn asked(pki: &Pki, asked: &str) -> String {
    format!("client_certificates = '{asked}'\nclient_ca_file = '{}'\n", pki.path("ca.pem").display())
}

/// curl as a client with this certificate.
fn curl_as(pki: &Pki, name: &str, address: SocketAddr, arguments: &[&str]) -> Result<String, String> {
    let (certificate, key) = (pki.path(&format!("{name}.pem")), pki.path(&format!("{name}.key")));
    let shown = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    curl(pki, address, &[&shown, arguments].concat())
}

const SHOP: &str = "https://shop.example/";

#[test]
fn who_has_to_show_a_certificate_is_let_in_with_a_good_one_only() {
    let (pki, origin, stranger) = (pki(), origin(), Pki::new());
    stranger.issue("eve", &["eve.example"], EC, 30);
    let (process, address) = start(&pki, &origin.url(), &tls(&pki, &asked(&pki, "required")), "");
    for version in ["--http1.1", "--http2"] {
        let claims = ["-H", "Client-Cert: :ZXZl:", "-H", "Client-Cert-Chain: :ZXZl:", "-H", "Client_Cert: :ZXZl:"];
        let answer = curl_as(&pki, "alice", address, &[&claims, &[version, SHOP][..]].concat()).unwrap();
        assert_eq!(answer, format!("{} none", field(&pki, "alice")), "{version}");
    }
    assert_eq!(origin.requests("/").iter().filter(|request| request.field("client_cert").is_some()).count(), 0);
    for version in ["1.2", "1.3"] {
        let none = curl(&pki, address, &["--tls-max", version, SHOP]).unwrap_err();
        assert!(none.contains("certificate required") || none.contains("handshake failure"), "{none}");
        let (certificate, key) = (stranger.path("eve.pem"), stranger.path("eve.key"));
        let shown = ["--tls-max", version, "--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap(), SHOP];
        let refused = curl(&pki, address, &shown).unwrap_err();
        assert!(refused.contains("alert"), "{refused}");
    }
    assert_eq!(origin.total(), 2);
    // Whom it asks for, as clients choose by.
    assert!(s_client(address, "-servername shop.example", "").contains("CN = Authority"));
    drop(process);
}

#[tokio::test]
async fn who_may_show_a_certificate_is_known_by_it_and_by_nothing_else() {
    let (pki, origin) = (pki(), origin());
    let (process, address) =
        start(&pki, &origin.url(), &tls(&pki, &asked(&pki, "optional")), "[server]\ntrusted_proxies = ['127.0.0.1']\n");
    let claims = ["-H", "Client-Cert: :ZXZl:", "-H", "Client-Cert-Chain: :ZXZl:", SHOP];
    assert_eq!(curl(&pki, address, &claims).unwrap(), "none none");
    assert_eq!(curl_as(&pki, "bob", address, &claims).unwrap(), format!("{} none", field(&pki, "bob")));
    // Not even a trusted proxy is believed.
    let request = "GET /plain HTTP/1.1\r\nHost: shop.example\r\nClient-Cert: :ZXZl:\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    assert_eq!(Client::connect(process.http()).await.ask(request).await.text(), "none none");
}

#[test]
fn the_upstream_is_told_the_chain_or_nothing_where_that_is_wanted() {
    let (pki, origin) = (pki(), origin());
    let both = std::fs::read_to_string(pki.path("alice.pem")).unwrap() + &std::fs::read_to_string(pki.path("ca.pem")).unwrap();
    std::fs::write(pki.path("chain.pem"), both).unwrap();
    std::fs::copy(pki.path("alice.key"), pki.path("chain.key")).unwrap();
    for (wanted, want) in [("off", "none none".to_owned()), ("chain", format!("{} {}", field(&pki, "alice"), field(&pki, "ca")))] {
        let more = format!("{}client_cert_field = '{wanted}'\n", asked(&pki, "required"));
        let (_process, address) = start(&pki, &origin.url(), &tls(&pki, &more), "");
        assert_eq!(curl_as(&pki, "chain", address, &[SHOP]).unwrap(), want);
    }
}

/// One site whose clients show certificates, another where nobody is asked.
fn two_sites(pki: &Pki, origin: &Origin) -> (Process, SocketAddr) {
    let sites = format!(
        "[sites.shop]\nhosts = ['shop.example']\n[sites.shop.tls]\n{}[sites.blog]\nhosts = ['blog.example']\n",
        asked(pki, "required")
    );
    let text = config(&origin.url(), &tls(pki, ""), "") + &sites;
    let process = Process::with_config(pki.folder(), &text);
    let address = process.address("listener https");
    (process, address)
}

#[tokio::test]
async fn a_site_asks_for_itself_and_takes_requests_of_its_own_handshakes_only() {
    let (pki, origin) = (pki(), origin());
    let (process, address) = two_sites(&pki, &origin);
    let blog = "https://blog.example/";
    let alice = format!("{} none", field(&pki, "alice"));
    assert_eq!(curl(&pki, address, &[blog]).unwrap(), "none none");
    assert_eq!(curl_as(&pki, "alice", address, &[SHOP]).unwrap(), alice);
    assert!(curl(&pki, address, &[SHOP]).is_err());
    let status = ["-o", "/dev/null", "-w", "%{response_code}"];
    for version in ["--http1.1", "--http2"] {
        // Nothing was asked in the handshake for the one...
        let other = [&status[..], &[version, "-H", "Host: shop.example", blog]].concat();
        assert_eq!(curl_as(&pki, "alice", address, &other).unwrap(), "421", "{version}");
        // ...and what was shown to the other is nobody else's business.
        let other = [&status[..], &[version, "-H", "Host: blog.example", SHOP]].concat();
        assert_eq!(curl_as(&pki, "alice", address, &other).unwrap(), "421", "{version}");
    }
    let plain = Client::connect(process.http()).await.ask("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await;
    assert_eq!(plain.status, 421);
    assert!(plain.field("proxy-status").is_some_and(|status| status.contains("misdirected")));
    assert_eq!(Client::connect(process.http()).await.ask("GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n").await.status, 200);
    // What is stored is behind the same door.
    let cached =
        Client::connect(process.http()).await.ask("GET / HTTP/1.1\r\nHost: shop.example\r\nCache-Control: only-if-cached\r\n\r\n").await;
    assert_eq!(cached.status, 421);
}

/// Whom nobody asked for a certificate is not let in by the ticket of that (CVE-2025-23419).
#[test]
fn a_session_of_a_site_that_asks_nobody_is_no_way_into_one_that_asks() {
    let (pki, origin) = (pki(), origin());
    let (_process, address) = two_sites(&pki, &origin);
    let session = pki.path("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let talk = |host: &str, keeps: &str| {
            let request = format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
            s_client(address, &format!("-servername {host} -ign_eof {version} {keeps} {session}"), &request)
        };
        let first = talk("blog.example", "-sess_out");
        assert!(first.contains("\nNew, TLS") && first.contains("HTTP/1.1 200"), "{version}: {first}");
        let again = talk("blog.example", "-sess_in");
        assert!(again.contains("\nReused, TLS") && again.contains("HTTP/1.1 200"), "{version}: {again}");
        let elsewhere = talk("shop.example", "-sess_in");
        assert!(!elsewhere.contains("Reused,") && !elsewhere.contains("HTTP/1.1 200"), "{version}: {elsewhere}");
        assert!(elsewhere.contains(" alert "), "it is asked, and has none to show: {elsewhere}");
    }
    assert_eq!(origin.total(), 4, "nobody else's request went on");
}

#[tokio::test]
async fn with_one_policy_for_all_the_name_of_the_handshake_is_that_of_the_request() {
    let (pki, origin) = (pki(), origin());
    let (_process, address) = start(&pki, &origin.url(), &tls(&pki, &asked(&pki, "required")), "");
    let mut connection = Secure::connect(address, "shop.example", &Arc::new(pki.client_with("alice"))).await.unwrap();
    for (host, status) in [("shop.example", "200"), ("SHOP.example:443", "200"), ("blog.example", "421"), ("shop.example", "200")] {
        let (head, _) = connection.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {head}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_from_the_new_list_on_and_no_session_is_a_way_round_it() {
    let (pki, origin) = (pki(), origin());
    pki.list_revoked("list.pem", "-crldays 2");
    let more = format!("{}client_crl_file = '{}'\n", asked(&pki, "required"), pki.path("list.pem").display());
    let (process, address) = start(&pki, &origin.url(), &tls(&pki, &more), "[server]\ncertificate_poll = '20ms'\n");
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let (alice, bob) = (Arc::new(pki.client_with("alice")), Arc::new(pki.client_with("bob")));
    let ask = async |config: &Arc<rustls::ClientConfig>| {
        let mut connection = Secure::connect(address, "shop.example", config).await?;
        let answer = connection.ask(request).await?;
        let resumed = connection.stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        std::io::Result::Ok((answer, resumed))
    };
    for resumes in [false, true] {
        let ((head, body), resumed) = ask(&alice).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && resumed == resumes, "{head}");
        assert_eq!(String::from_utf8_lossy(&body), format!("{} none", field(&pki, "alice")), "also from a ticket");
    }
    let mut kept = Secure::connect(address, "shop.example", &alice).await.unwrap();
    kept.ask(request).await.unwrap();
    let list = format!("tiercel_tls_revocation_expiry_seconds{{file=\"{}\",listener=\"https\"}}", pki.path("list.pem").display());
    metric_reaches(&process, &list, 172_000.0).await;

    pki.revoke("alice");
    pki.list_revoked("list.pem", "-crldays 2");
    metric_reaches(&process, "tiercel_tls_certificate_changes_total{outcome=\"replaced\"}", 1.0).await;
    ask(&alice).await.unwrap_err();
    ask(&bob).await.unwrap();
    assert!(kept.ask(request).await.unwrap().0.starts_with("HTTP/1.1 200"), "what was connected goes on");
    // A list that is out of date does not take the place of one that is not.
    pki.list_revoked("list.pem", "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z");
    metric_reaches(&process, "tiercel_tls_certificate_changes_total{outcome=\"refused\"}", 1.0).await;
    let line = process.err.wait("the refusal", |line| line.contains("new certificate refused"));
    assert!(line.contains("list.pem") && line.contains("out of date"), "{line}");
    ask(&bob).await.unwrap();
    ask(&alice).await.unwrap_err();
}

#[test]
fn what_a_certificate_may_have_selected_is_reused_only_where_the_origin_allows_it() {
    let pki = pki();
    let origin = Origin::start(|request| {
        let script = Script::ok(told(request));
        match request.target.as_str() {
            "/private" => script.header("Cache-Control", "max-age=60"),
            "/public" => script.header("Cache-Control", "public, max-age=60"),
            _ => script.header("Cache-Control", "public, max-age=60").header("Vary", "Accept-Language, Client-Cert"),
        }
    });
    let (_process, address) = start(&pki, &origin.url(), &tls(&pki, &asked(&pki, "optional")), "");
    let ask = |name: &str, path: &str| curl_as(&pki, name, address, &["-i", "--http1.1", &format!("https://shop.example{path}")]).unwrap();
    for _ in 0..2 {
        assert!(ask("alice", "/private").contains(&field(&pki, "alice")));
    }
    assert_eq!(origin.count("/private"), 2, "max-age alone is not for others");
    assert!(ask("alice", "/public").contains("fwd=uri-miss"));
    assert!(ask("bob", "/public").contains("; hit"));
    for name in ["alice", "bob", "alice", "bob"] {
        let answer = ask(name, "/each");
        assert!(answer.contains(&field(&pki, name)) && answer.to_ascii_lowercase().contains("\r\nvary: *\r\n"), "{answer}");
    }
    assert_eq!(origin.count("/each"), 2, "one variant for each certificate");
    let anybody = curl(&pki, address, &["https://shop.example/each"]).unwrap();
    assert_eq!(anybody, "none none");
}

#[test]
fn what_is_wrong_with_the_files_of_clients_is_named() {
    let pki = pki();
    pki.list_revoked("old.pem", "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z");
    let (ca, old) = (pki.path("ca.pem").display().to_string(), pki.path("old.pem").display().to_string());
    for (more, at, what, remedy) in [
        ("client_certificates = 'required'".to_owned(), "client_ca_file", "need an authority", "PEM file"),
        (format!("client_ca_file = '{ca}'"), "client_ca_file", "not asked for", "client_certificates = "),
        ("client_certificates = 'off'\nclient_cert_field = 'chain'".to_owned(), "client_cert_field", "not asked for", "remove"),
        (
            format!("client_certificates = 'optional'\nclient_ca_file = '{old}'"),
            "client_ca_file",
            "no certificate of an authority",
            "certify",
        ),
        (
            format!("client_certificates = 'optional'\nclient_ca_file = '{ca}'\nclient_crl_file = '{ca}'"),
            "client_crl_file",
            "no revocation list",
            "openssl crl",
        ),
        (
            format!("client_certificates = 'optional'\nclient_ca_file = '{ca}'\nclient_crl_file = '{old}'"),
            "client_crl_file",
            "out of date",
            "new list",
        ),
        ("client_certificates = 'maybe'".to_owned(), "client_certificates", "maybe", "required"),
    ] {
        let file = write_config(pki.folder(), &config("http://127.0.0.1:3000", &tls(&pki, &more), ""));
        let (code, text) = fails(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!(code, Some(2), "{more}: {text}");
        assert!([at, what, remedy].iter().all(|part| text.contains(part)), "{more}: {text}");
    }
    let text =
        format!("[upstreams.default]\nendpoints = ['http://127.0.0.1:3000']\n[sites.shop]\n[sites.shop.tls]\n{}", asked(&pki, "required"));
    let (code, text) = fails(&["check", "--config", write_config(pki.folder(), &text).to_str().unwrap()]);
    assert!(code == Some(2) && text.contains("no listener with TLS"), "{text}");
}
