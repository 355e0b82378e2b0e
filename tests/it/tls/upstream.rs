//! https to upstreams: whom we believe, what we show, and what an end without close_notify means.

use super::metric;
use crate::support::client::{Answer, Client};
use crate::support::origin::{Origin, Script, Step};
use crate::support::pki::{EC, Pki};
use crate::support::process::{Process, command, config, fails, write_config};
use parking_lot::Mutex;
use rustls::crypto::SupportedKxGroup;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, NamedGroup, RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What stands before a plain origin and speaks TLS for it.
struct Front {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug, Clone)]
struct Seen {
    name: Option<String>,
    handshake: Option<HandshakeKind>,
    group: Option<NamedGroup>,
    has_certificate: bool,
}

/// How a front behaves.
#[derive(Clone, Copy, Default)]
struct Manner {
    wants_certificate: bool,
    /// The end of a connection is told by TCP alone.
    leaves_without_a_word: bool,
}

impl Front {
    async fn start(pki: &Pki, certificate: &str, origin: &Origin, manner: Manner) -> Self {
        let chain = vec![CertificateDer::from_pem_file(pki.path(&format!("{certificate}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(pki.path(&format!("{certificate}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
        let builder = match manner.wants_certificate {
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(pki.path("ca.pem")).unwrap()).unwrap();
                builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap())
            }
            false => builder.with_no_client_auth(),
        };
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, behind) = (Arc::clone(&front.seen), origin.addr());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, behind, Arc::clone(&seen), manner));
            }
        });
        front
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, behind: SocketAddr, seen: Arc<Mutex<Vec<Seen>>>, manner: Manner) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let session = stream.get_ref().1;
    seen.lock().push(Seen {
        name: session.server_name().map(str::to_owned),
        handshake: session.handshake_kind(),
        group: session.negotiated_key_exchange_group().map(SupportedKxGroup::name),
        has_certificate: session.peer_certificates().is_some(),
    });
    let (mut from_proxy, mut to_proxy) = tokio::io::split(stream);
    let (mut from_origin, mut to_origin) = TcpStream::connect(behind).await.unwrap().into_split();
    let up = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_proxy, &mut to_origin).await; // however it ends
        from_proxy
    });
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from_origin.read(&mut bytes).await {
        if to_proxy.write_all(&bytes[..read]).await.is_err() || to_proxy.flush().await.is_err() {
            return;
        }
    }
    if manner.leaves_without_a_word {
        up.abort();
    } else {
        let _ = to_proxy.shutdown().await; // the proxy may have left
    }
}

fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("origin", &["localhost"], EC, 30);
    pki
}

fn hello() -> Origin {
    Origin::start(|request| Script::ok(request.body.clone()).header("Cache-Control", "max-age=60"))
}

/// A proxy to this URL, with these keys of `upstreams.default.tls`.
fn proxy(pki: &Pki, url: &str, tls: &str) -> Process {
    Process::with_config(pki.folder(), &format!("{}[upstreams.default.tls]\n{tls}\n", config(url, "")))
}

async fn ask(process: &Process, path: &str) -> Answer {
    let mut client = Client::connect(process.http()).await;
    client.ask(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n")).await
}

fn trusting(pki: &Pki) -> String {
    format!("ca_file = '{}'", pki.path("ca.pem").display())
}

#[tokio::test]
async fn an_upstream_is_believed_only_with_a_certificate_for_its_name() {
    let (pki, origin) = (pki(), hello());
    pki.issue("other", &["other.example", "more.example"], EC, 30);
    pki.issue("old", &["localhost"], EC, -1);
    let good = Front::start(&pki, "origin", &origin, Manner::default()).await;
    let other = Front::start(&pki, "other", &origin, Manner::default()).await;
    let old = Front::start(&pki, "old", &origin, Manner::default()).await;
    let trusted = trusting(&pki);
    for (url, tls, want, told) in [
        (good.url(), trusted.clone(), 200, ""),
        (good.url(), String::new(), 502, "tls.ca_file"),
        (other.url(), trusted.clone(), 502, "the certificate is for other.example, more.example, not for localhost"),
        (other.url(), format!("{trusted}\nserver_name = 'more.example'"), 200, ""),
        (old.url(), trusted.clone(), 502, "has expired"),
        (old.url(), "insecure_skip_verify = true".to_owned(), 200, ""),
    ] {
        let process = proxy(&pki, &url, &tls);
        let answer = ask(&process, "/").await;
        assert_eq!(answer.status, want, "{url} {tls}: {}", answer.head);
        if want == 502 {
            assert!(answer.field("proxy-status").unwrap().contains("error=tls_certificate_error"), "{}", answer.head);
            assert_eq!(metric(&process, "tiercel_upstream_errors_total{error=\"tls_certificate_error\",upstream=\"default\"}").await, 1.0);
            process.err.wait(told, |line| line.contains(told));
        }
        if tls.contains("insecure") {
            process.err.wait("a warning", |line| line.contains("insecure_skip_verify"));
        }
    }
    assert_eq!(good.seen()[0].name.as_deref(), Some("localhost"));
    assert_eq!(other.seen()[0].name.as_deref(), Some("more.example"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_wanted() {
    let (pki, origin) = (pki(), hello());
    pki.issue("client", &["proxy.example"], EC, 30);
    let front = Front::start(&pki, "origin", &origin, Manner { wants_certificate: true, ..Manner::default() }).await;
    let refused = ask(&proxy(&pki, &front.url(), &trusting(&pki)), "/").await;
    assert_eq!(refused.status, 502, "{}", refused.head);
    let error = refused.field("proxy-status").unwrap();
    assert!(error.contains("error=tls_alert_received") || error.contains("error=connection_terminated"), "{error}");
    let client = pki.path("client").display().to_string();
    let tls = format!("{}\ncert_file = '{client}.pem'\nkey_file = '{client}.key'", trusting(&pki));
    assert_eq!(ask(&proxy(&pki, &front.url(), &tls), "/").await.status, 200);
    assert!(front.seen().last().unwrap().has_certificate);
}

#[tokio::test]
async fn an_upstream_that_speaks_no_tls_is_told_apart() {
    let pki = pki();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.readable().await.is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await; // it may have left
            }
        }
    });
    let process = proxy(&pki, &format!("https://localhost:{}", address.port()), &trusting(&pki));
    let answer = ask(&process, "/").await;
    assert_eq!(answer.status, 502);
    assert!(answer.field("proxy-status").unwrap().contains("error=tls_protocol_error"), "{}", answer.head);
}

#[tokio::test]
async fn connections_are_used_again_and_sessions_resumed() {
    let (pki, origin) = (pki(), hello());
    let front = Front::start(&pki, "origin", &origin, Manner::default()).await;
    let process = proxy(&pki, &front.url(), &format!("{}\n[server]\nworkers = 1", trusting(&pki)));
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(ask(&process, path).await.status, 200);
    }
    assert_eq!(front.seen().len(), 1, "tickets that come late are no answer that nobody asked for");
    origin.close_connections();
    assert_eq!(ask(&process, "/5").await.status, 200);
    let seen = front.seen();
    assert_eq!((seen.len(), seen[1].handshake), (2, Some(HandshakeKind::Resumed)), "{seen:?}");
}

#[tokio::test]
async fn the_key_exchange_with_an_upstream_withstands_quantum_computers_where_it_can() {
    let (pki, origin) = (pki(), hello());
    let front = Front::start(&pki, "origin", &origin, Manner::default()).await;
    assert_eq!(ask(&proxy(&pki, &front.url(), &trusting(&pki)), "/").await.status, 200);
    let seen = front.seen();
    // It is named first, which this server goes by, and its share is there without being asked for.
    assert_eq!((seen[0].group, seen[0].handshake), (Some(NamedGroup::X25519MLKEM768), Some(HandshakeKind::Full)));
}

/// Browsers and curl log keys where that variable says; here it would open what goes on with everybody.
// Waiting for curl takes a thread.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_logged_whatever_the_environment_says() {
    let (pki, origin) = (pki(), hello());
    pki.issue("shop", &["shop.example"], EC, 30);
    let front = Front::start(&pki, "origin", &origin, Manner::default()).await;
    let tls = format!("certificates = [{}]", pki.entry("shop"));
    let text = super::config(&front.url(), &tls, "") + &format!("[upstreams.default.tls]\n{}\n", trusting(&pki));
    let (file, log) = (write_config(pki.folder(), &text), pki.path("keys.log"));
    let process = Process::spawn(command(&["run", "--config", file.to_str().unwrap()]).env("SSLKEYLOGFILE", &log));
    for version in ["1.2", "1.3"] {
        let address = process.address("listener https");
        assert_eq!(super::curl(&pki, address, &["--tls-max", version, "-d", version, "https://shop.example/"]).unwrap(), version);
    }
    assert!(!front.seen().is_empty() && !log.exists());
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let (pki, origin) = (pki(), hello());
    let front = Front::start(&pki, "origin", &origin, Manner::default()).await;
    let process = proxy(&pki, &front.url(), &trusting(&pki));
    let body: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut client = Client::connect(process.http()).await;
    let head = format!("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = client.ask([head.as_bytes(), &body].concat()).await;
    assert_eq!((answer.status, answer.body == body), (200, true));
}

#[tokio::test]
async fn a_body_that_the_end_delimits_is_whole_only_with_close_notify() {
    let pki = pki();
    let origin = Origin::start(|_| {
        Script::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n\r\nhalf of it".to_vec()), Step::Close])
    });
    let polite = Front::start(&pki, "origin", &origin, Manner::default()).await;
    let rude = Front::start(&pki, "origin", &origin, Manner { leaves_without_a_word: true, ..Manner::default() }).await;
    let process = proxy(&pki, &polite.url(), &trusting(&pki));
    let answer = ask(&process, "/").await;
    assert_eq!((answer.whole, answer.text()), (true, "half of it"));
    assert!(ask(&process, "/").await.says("hit"));
    let process = proxy(&pki, &rude.url(), &trusting(&pki));
    for _ in 0..2 {
        let mut client = Client::connect(process.http()).await;
        client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").await;
        if let Some(answer) = client.answer(false).await {
            assert!(!answer.whole && !answer.says("hit"), "{}", answer.head);
        }
    }
    assert_eq!(origin.total(), 3, "nothing of it was stored");
}

#[test]
fn what_does_not_fit_https_is_told_when_the_configuration_is_read() {
    let pki = pki();
    std::fs::write(pki.path("none.pem"), "no certificate\n").unwrap();
    let origin = pki.path("origin").display().to_string();
    for (url, tls, what, remedy) in [
        ("http://localhost:1", "server_name = 'a.example'".to_owned(), "TLS for an upstream without it", "https://"),
        ("https://localhost:1", format!("ca_file = '{}'", pki.path("none.pem").display()), "no certificate of an authority", "PEM file"),
        ("https://localhost:1", "ca_file = 'nowhere.pem'".to_owned(), "cannot be read", "create it"),
        (
            "https://localhost:1",
            format!("cert_file = '{origin}.pem'\nkey_file = '{}'", pki.path("ca.key").display()),
            "is not the key of",
            "asked for",
        ),
        ("https://localhost:1", "server_name = 'a b'".to_owned(), "not a name", "correct"),
        (
            "https://localhost:1",
            "[upstreams.other]\nendpoints = ['https://localhost:1']\nhttp1 = 'hyper'".to_owned(),
            "a codec for plain text",
            "http1",
        ),
    ] {
        let text = format!("{}[upstreams.default.tls]\n{tls}\n", config(url, ""));
        let file = write_config(pki.folder(), &text);
        let (code, text) = fails(&["check", "--config", file.to_str().unwrap()]);
        assert!(code == Some(2) && text.contains(what) && text.contains(remedy), "{tls}: {text}");
    }
}
