//! Certificate files: what is wrong with them, and their change while connections go on.

use super::{config, metric, metric_reaches, start};
use crate::support::origin::{Origin, Script, eventually};
use crate::support::pki::{EC, Pki, Secure};
use crate::support::process::{HANGUP, fails, run, write_config};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n";

fn origin() -> Origin {
    Origin::start(|_| Script::ok("hello").header("Cache-Control", "max-age=60"))
}

fn certificate(pki: &Pki, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(pki.path(name)).unwrap()
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_is_wrong_and_what_helps() {
    let pki = Pki::new();
    pki.issue("good", &["shop.example"], EC, 30);
    pki.issue("other", &["shop.example"], EC, 30);
    pki.issue("old", &["shop.example"], EC, -1);
    pki.openssl("pkey -in good.key -aes256 -passout pass:x -out locked.key");
    pki.openssl("x509 -in good.pem -outform der -out good.der");
    let read = |name: &str| std::fs::read_to_string(pki.path(name)).unwrap();
    let write = |name: &str, text: &str| std::fs::write(pki.path(name), text).unwrap();
    write("chain.pem", &(read("good.pem") + &read("ca.pem")));
    write("mixed.pem", &(read("good.pem") + &read("other.pem")));
    write("text.pem", "hello\n");
    write("cut.pem", &read("good.pem")[..200]);
    let check = |certificate: &str, key: &str| {
        let tls = format!("certificates = [{{ cert_file = '{certificate}', key_file = '{key}' }}]");
        let file = write_config(pki.folder(), &config("http://127.0.0.1:3000", &tls, ""));
        run(&["check", "--config", file.to_str().unwrap()])
    };
    let fine = check("chain.pem", "good.key");
    assert!(fine.status.success(), "{}", String::from_utf8_lossy(&fine.stderr));
    for (certificate, key, at, what, remedy) in [
        ("nowhere.pem", "good.key", "cert_file", "cannot be read", "create it"),
        ("good.pem", "nowhere.key", "key_file", "cannot be read", "create it"),
        ("good.key", "good.key", "cert_file", "holds no certificate, but PRIVATE KEY", "swap"),
        ("good.pem", "good.pem", "key_file", "holds no private key, but CERTIFICATE", "private key"),
        ("good.pem", "locked.key", "key_file", "holds no private key, but ENCRYPTED PRIVATE KEY", "openssl pkey"),
        ("good.pem", "other.key", "key_file", "is not the key of", "asked for"),
        ("old.pem", "old.key", "cert_file", "expired on", "renewed"),
        ("mixed.pem", "good.key", "cert_file", "certificate 2 did not issue the one before it", "in"),
        ("good.der", "good.key", "cert_file", "not PEM", "openssl x509 -inform der"),
        ("text.pem", "good.key", "cert_file", "holds no certificate, nor anything else in PEM", "fullchain"),
        ("cut.pem", "good.key", "cert_file", "not PEM", "openssl"),
    ] {
        let output = check(certificate, key);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let path = format!("listeners.https.tls.certificates[0].{at}");
        let name = if at == "cert_file" { certificate } else { key };
        assert_eq!(output.status.code(), Some(2), "{certificate} {key}: {text}");
        assert!([path.as_str(), name, what, remedy].iter().all(|part| text.contains(part)), "{certificate} {key}: {text}");
    }
}

#[test]
fn other_keys_of_the_table_are_checked_too() {
    let pki = Pki::new();
    pki.issue("good", &["shop.example"], EC, 30);
    std::fs::write(pki.path("short"), "too short").unwrap();
    let good = format!("certificates = [{}]", pki.entry("good"));
    for (tls, what, remedy) in [
        ("certificates = []".to_owned(), "TLS needs certificates", "cert_file"),
        ("certificates = [{ cert_file = 'good.pem' }]".to_owned(), "needs both files", "name the file"),
        (format!("{good}\nsuites = ['TLS_AES_128_GCM_SHA257']"), "not a suite", "did you mean \"TLS_AES_128_GCM_SHA256\"?"),
        (format!("{good}\nsuites = ['TLS_AES_128_GCM_SHA256']"), "a version without a suite", "min_version"),
        (format!("{good}\nmin_version = '1.1'"), "1.1", "1.2"),
        (format!("{good}\nticket_key_file = 'short'"), "too short", "openssl rand"),
        (format!("{good}\nhandshakes = 0"), "out of bounds", ""),
    ] {
        let file = write_config(pki.folder(), &config("http://127.0.0.1:3000", &tls, ""));
        let (code, text) = fails(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!(code, Some(2), "{tls}: {text}");
        assert!(text.contains(what) && text.contains(remedy), "{tls}: {text}");
    }
}

/// Clients that ask again and again until told to stop.
struct Asking {
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    stop: AtomicBool,
    /// Answers that came.
    asked: AtomicUsize,
    /// Connections that were shown the certificate at hand.
    shown: Mutex<HashMap<CertificateDer<'static>, usize>>,
}

impl Asking {
    async fn connect(&self) -> Secure {
        let connection = Secure::connect(self.address, "shop.example", &self.config).await.unwrap();
        *self.shown.lock().entry(connection.shown()).or_default() += 1;
        connection
    }

    /// One client, on one connection or on a new one each time.
    async fn keep_on(self: Arc<Self>, reconnects: bool) {
        let mut connection = self.connect().await;
        while !self.stop.load(Ordering::Relaxed) {
            let (head, body) = connection.ask(REQUEST).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200") && body == b"hello", "{head}");
            self.asked.fetch_add(1, Ordering::Relaxed);
            if reconnects {
                connection = self.connect().await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Until so many more answers came, and so many more connections were shown this certificate.
    async fn go_on(&self, answers: usize, certificate: &CertificateDer<'static>, connections: usize) {
        let shown = || self.shown.lock().get(certificate).copied().unwrap_or(0);
        let (answers, connections) = (self.asked.load(Ordering::Relaxed) + answers, shown() + connections);
        eventually("they go on", || self.asked.load(Ordering::Relaxed) >= answers && shown() >= connections).await;
    }
}

/// Certificates as Kubernetes mounts them: a link to a folder is exchanged for another.
#[tokio::test]
async fn a_certificate_is_exchanged_under_200_connections_and_nobody_notices() {
    let (pki, origin) = (Pki::new(), origin());
    for name in ["first", "second"] {
        pki.issue(name, &["shop.example"], EC, 30);
        std::fs::create_dir(pki.path(&format!("{name}.d"))).unwrap();
        for ending in ["pem", "key"] {
            std::fs::rename(pki.path(&format!("{name}.{ending}")), pki.path(&format!("{name}.d/shop.{ending}"))).unwrap();
        }
    }
    symlink("first.d", pki.path("current")).unwrap();
    let tls = format!("certificates = [{}]", pki.entry("current/shop"));
    let (process, address) = start(&pki, &origin.url(), &tls, "[server]\ncertificate_poll = '20ms'\n");
    let (stop, asked, shown) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
    let asking = Arc::new(Asking { address, config: Arc::new(pki.client()), stop, asked, shown });
    let clients: Vec<_> = (0..200).map(|number| tokio::spawn(Arc::clone(&asking).keep_on(number % 2 == 0))).collect();
    let [first, second] = ["first", "second"].map(|name| certificate(&pki, &format!("{name}.d/shop.pem")));
    asking.go_on(400, &first, 300).await;

    symlink("second.d", pki.path("next")).unwrap();
    std::fs::rename(pki.path("next"), pki.path("current")).unwrap();
    metric_reaches(&process, "tiercel_tls_certificate_changes_total{outcome=\"replaced\"}", 1.0).await;
    asking.go_on(400, &second, 200).await;
    assert_eq!(asking.connect().await.shown(), second);
    asking.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no errors");
    }
    assert_eq!(metric(&process, "tiercel_tls_certificate_changes_total{outcome=\"refused\"}").await, 0.0);
}

#[tokio::test]
async fn a_bad_new_file_keeps_the_old_certificate_and_is_told() {
    let (pki, origin) = (Pki::new(), origin());
    pki.issue("shop", &["shop.example"], EC, 30);
    pki.issue("next", &["shop.example"], EC, 90);
    pki.issue("blog", &["blog.example"], EC, 30);
    let tls = format!("certificates = [{}, {}]", pki.entry("shop"), pki.entry("blog"));
    let (process, address) = start(&pki, &origin.url(), &tls, "[server]\ncertificate_poll = '20ms'\n");
    let config = Arc::new(pki.client());
    let shown = async |host: &str| Secure::connect(address, host, &config).await.unwrap().shown();
    let (before, blog) = (certificate(&pki, "shop.pem"), certificate(&pki, "blog.pem"));
    let expiry = format!("tiercel_tls_certificate_expiry_seconds{{certificate=\"{}\",listener=\"https\"}}", pki.path("shop.pem").display());
    let days = metric(&process, &expiry).await / 86_400.0;
    assert!((29.9..=30.0).contains(&days), "{days}");
    let refused = "tiercel_tls_certificate_changes_total{outcome=\"refused\"}";

    // Half a renewal: the certificate is there, its key is not yet.
    std::fs::copy(pki.path("next.pem"), pki.path("shop.pem")).unwrap();
    metric_reaches(&process, refused, 1.0).await;
    let line = process.err.wait("the refusal", |line| line.contains("new certificate refused"));
    assert!(line.contains("shop.key") && line.contains("is not the key of"), "{line}");
    assert_eq!(shown("shop.example").await, before);
    // Said once, not at every look.
    std::fs::write(pki.path("blog.pem"), "").unwrap();
    metric_reaches(&process, refused, 2.0).await;
    std::fs::remove_file(pki.path("blog.pem")).unwrap();
    metric_reaches(&process, refused, 3.0).await;
    assert_eq!(metric(&process, refused).await, 3.0);
    assert_eq!(shown("blog.example").await, blog);
    // A reload refuses the whole configuration.
    process.signal(HANGUP);
    let line = process.err.wait("the reload", |line| line.contains("configuration refused"));
    assert!(line.contains("error") || line.contains("ERROR"), "{line}");
    assert_eq!(shown("blog.example").await, blog);

    std::fs::copy(pki.path("next.key"), pki.path("shop.key")).unwrap();
    metric_reaches(&process, "tiercel_tls_certificate_changes_total{outcome=\"replaced\"}", 1.0).await;
    assert_eq!(shown("shop.example").await, certificate(&pki, "next.pem"));
    let days = metric(&process, &expiry).await / 86_400.0;
    assert!((89.9..=90.0).contains(&days), "{days}");
}

/// What a client that asks for it (`openssl s_client -status`) is told of the certificate.
fn stapled(address: SocketAddr) -> bool {
    let text = super::s_client(address, "-servername shop.example -status", "");
    assert!(text.contains("Verify return code"), "{text}");
    text.contains("OCSP Response Status: successful")
}

#[tokio::test]
async fn a_good_staple_is_shown_and_a_wrong_one_is_dropped_and_told() {
    let (pki, origin) = (Pki::new(), origin());
    pki.issue("shop", &["shop.example"], EC, 30);
    pki.issue("other", &["other.example"], EC, 30);
    for name in ["shop", "other"] {
        pki.note(name);
        pki.tell_status(name, &format!("{name}.ocsp"));
    }
    std::fs::copy(pki.path("shop.ocsp"), pki.path("staple")).unwrap();
    let entry = pki.entry("shop").replace(" }", &format!(", ocsp_file = '{}' }}", pki.path("staple").display()));
    let (process, address) = start(&pki, &origin.url(), &format!("certificates = [{entry}]"), "[server]\ncertificate_poll = '20ms'\n");
    assert!(stapled(address));
    let left = format!("tiercel_tls_revocation_expiry_seconds{{file=\"{}\",listener=\"https\"}}", pki.path("staple").display());
    let seconds = metric(&process, &left).await;
    assert!((86_000.0..=86_400.0).contains(&seconds), "{seconds}");

    let put = |name: &str| {
        std::fs::copy(pki.path(name), pki.path("next")).unwrap();
        std::fs::rename(pki.path("next"), pki.path("staple")).unwrap();
    };
    let changes = |outcome: &str| format!("tiercel_tls_certificate_changes_total{{outcome=\"{outcome}\"}}");
    put("other.ocsp");
    metric_reaches(&process, &changes("unstapled"), 1.0).await;
    let line = process.err.wait("the complaint", |line| line.contains("shown without an OCSP response"));
    assert!(line.contains("staple") && line.contains("not about this certificate") && line.contains("remedy"), "{line}");
    assert!(!stapled(address));
    eventually_async("nothing is left", async || metric(&process, &left).await <= 0.0).await;
    put("shop.ocsp");
    metric_reaches(&process, &changes("replaced"), 1.0).await;
    assert!(stapled(address));
    pki.revoke("shop");
    pki.tell_status("shop", "revoked.ocsp");
    put("revoked.ocsp");
    metric_reaches(&process, &changes("unstapled"), 2.0).await;
    assert!(!stapled(address));
    // Whoever starts with it is warned.
    let entry = format!("certificates = [{entry}]");
    let output = run(&["check", "--config", write_config(pki.folder(), &config(&origin.url(), &entry, "")).to_str().unwrap()]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("ocsp_file: says that the certificate was revoked"), "{text}");
}

/// Waits for a condition that has to be asked for.
async fn eventually_async(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + crate::support::origin::PATIENCE;
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_reload_takes_up_new_files_and_turns_tls_on_and_off() {
    let (pki, origin) = (Pki::new(), origin());
    pki.issue("shop", &["shop.example"], EC, 30);
    pki.issue("next", &["shop.example"], EC, 30);
    let text = config(&origin.url(), &format!("certificates = [{}]", pki.entry("shop")), "[server]\ncertificate_poll = 'off'\n");
    let process = crate::support::process::Process::with_config(pki.folder(), &text);
    let address = process.address("listener https");
    let client = Arc::new(pki.client());
    let mut kept = Secure::connect(address, "shop.example", &client).await.unwrap();
    for (number, text) in [
        (1, text.replace("shop.pem", "next.pem").replace("shop.key", "next.key")),
        (
            2,
            text.replace("[listeners.https.tls]", "[listeners.other.tls]")
                .replace("[admin]", "[listeners.other]\naddress = '127.0.0.1:0'\n[admin]"),
        ),
    ] {
        write_config(pki.folder(), &text);
        process.signal(HANGUP);
        let reloads = || process.err.all().iter().filter(|line| line.contains("configuration reloaded")).count();
        eventually("the reload", || reloads() >= number).await;
        assert!(kept.ask(REQUEST).await.unwrap().0.starts_with("HTTP/1.1 200"), "what was connected goes on");
        if number == 1 {
            let shown = Secure::connect(address, "shop.example", &client).await.unwrap().shown();
            assert_eq!(shown, certificate(&pki, "next.pem"));
        } else {
            let mut plain = crate::support::client::Client::connect(address).await;
            assert_eq!(plain.ask(REQUEST).await.status, 200);
        }
    }
}
