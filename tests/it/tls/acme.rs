//! Certificates by ACME, from a real authority (pebble) that looks whether hosts are ours.

mod fleet;

use super::{metric, metric_reaches, s_client};
use crate::support::acme::{Pebble, Plan};
use crate::support::client::Client;
use crate::support::origin::{Origin, Script};
use crate::support::pki::Secure;
use crate::support::process::{Process, TERMINATE, fails, write_config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const OBTAINED: &str = "tiercel_acme_orders_total{outcome=\"obtained\"}";
const REFUSED: &str = "tiercel_acme_orders_total{outcome=\"refused\"}";
const FAILED: &str = "tiercel_acme_orders_total{outcome=\"failed\"}";

fn origin() -> Origin {
    Origin::start(|_| Script::ok("hello").header("Cache-Control", "max-age=60"))
}

/// A node with listeners where the authority looks, in a folder of its own.
struct Node {
    folder: tempfile::TempDir,
    text: String,
    http: SocketAddr,
    https: SocketAddr,
}

impl Node {
    /// `hosts`: a certificate for these; `acme`: more keys of `[acme]`; `more`: what stands before all tables.
    fn new(pebble: &Pebble, plan: &Plan, origin: &Origin, hosts: &str, acme: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (http, https) = (plan.http, plan.https);
        let text = format!(
            "{more}\n[listeners.http]\naddress = '{http}'\n[listeners.https]\naddress = '{https}'\n[listeners.https.tls]\n\
             certificates = [{{ acme = [{hosts}] }}]\n[admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n{}{acme}\n\
             [sites.shop]\nhosts = ['shop.example', 'www.shop.example']\n[upstreams.default]\nendpoints = ['{}']\n",
            pebble.config("kept"),
            origin.url(),
        );
        Self { folder, text, http, https }
    }

    fn start(&self) -> Process {
        Process::with_config(self.folder.path(), &self.text)
    }

    /// Files that are kept, in order, without those that are being written.
    fn kept(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let Ok(folders) = std::fs::read_dir(self.folder.path().join("kept")) else { return files };
        for folder in folders {
            files.extend(std::fs::read_dir(folder.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
        }
        files.retain(|file: &PathBuf| !file.file_name().unwrap().to_str().unwrap().starts_with('.'));
        files.sort();
        files
    }

    /// What curl gets from the listener with TLS, trusting this root.
    fn get(&self, root: &Path, url: &str) -> Result<String, String> {
        let to = format!("::{}", self.https);
        let output = Command::new("curl").args(["-sS", "--max-time", "20", "--cacert"]).arg(root).args(["--connect-to", &to, url]).output();
        let output = output.expect("curl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

fn stop(mut process: Process) {
    process.signal(TERMINATE);
    assert_eq!(process.end(), Some(0));
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_certificate_is_obtained_by_http_01_kept_and_shown_again_without_another_order() {
    let (plan, origin) = (Plan::new(), origin());
    let mut pebble = Pebble::start(plan.clone());
    let acme = "challenges = ['http-01']\ncontact = ['mailto:admin@shop.example']";
    // Also for a host that no site is for, and though everything else is sent to https.
    let hosts = "'shop.example', 'www.shop.example', 'elsewhere.example'";
    let node = Node::new(&pebble, &plan, &origin, hosts, acme, "redirect_to_https = true");
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    let root = pebble.root();
    assert_eq!(node.get(&root, "https://shop.example/a").unwrap(), "hello");
    assert_eq!(node.get(&root, "https://www.shop.example/a").unwrap(), "hello");
    assert!(metric(&process, "tiercel_acme_challenges_total{challenge=\"http-01\"}").await >= 3.0);
    // What nobody knows goes its way.
    let ask = async |path: &str| {
        let mut client = Client::connect(node.http).await;
        client.ask(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n")).await
    };
    assert_eq!(ask("/.well-known/acme-challenge/LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0").await.text(), "hello");
    assert_eq!(ask("/a").await.status, 308);
    let kept = node.kept();
    let names: Vec<_> = kept.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert!(matches!(names[..], ["account.json", certificate] if certificate.starts_with("shop.example-")), "{names:?}");
    assert!(kept.iter().all(|file| mode(file) == 0o600 && mode(file.parent().unwrap()) == 0o700));
    let expiry = format!("tiercel_tls_certificate_expiry_seconds{{certificate=\"{}\",listener=\"https\"}}", kept[1].display());
    assert!((80_000.0..=86_400.0).contains(&metric(&process, &expiry).await));
    stop(process);

    pebble.stop();
    let process = node.start();
    assert_eq!(node.get(&root, "https://shop.example/a").unwrap(), "hello");
    for outcome in [OBTAINED, REFUSED, FAILED] {
        assert_eq!(metric(&process, outcome).await, 0.0);
    }
    let next = format!("tiercel_acme_next_attempt_timestamp_seconds{{certificate=\"{}\"}}", kept[1].display());
    metric_reaches(&process, &next, 1.0).await;
}

#[tokio::test]
async fn a_certificate_is_obtained_by_tls_alpn_01_for_an_account_that_the_authority_gave_out() {
    let external = Some(("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"));
    let (plan, origin) = (Plan { external, ..Plan::new() }, origin());
    let pebble = Pebble::start(plan.clone());
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "challenges = ['tls-alpn-01']\nkey_type = 'p384'", "");
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    assert_eq!(node.get(&pebble.root(), "https://shop.example/a").unwrap(), "hello");
    let text = s_client(node.https, "-servername shop.example", "");
    assert!(text.contains("Server public key is 384 bit"), "{text}");
    let answered = metric(&process, "tiercel_acme_challenges_total{challenge=\"tls-alpn-01\"}").await;
    assert!(answered >= 1.0);
    assert_eq!(metric(&process, "tiercel_tls_handshakes_total{outcome=\"challenge\",version=\"none\"}").await, answered);
    // Nobody is answered any more, and a challenge becomes no request.
    let text = s_client(node.https, "-servername shop.example -alpn acme-tls/1", "");
    assert!(text.contains("no application protocol"), "{text}");
}

#[tokio::test]
async fn a_certificate_is_renewed_under_load_and_nobody_notices() {
    let (plan, origin) = (Plan { seconds: 24, ..Plan::new() }, origin());
    let pebble = Pebble::start(plan.clone());
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "renew_before = '1d'", "");
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pebble.root()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let (config, stop, asked) = (Arc::new(config), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let https = node.https;
    let clients: Vec<_> = (0..20)
        .map(|number| {
            let (config, stop, asked) = (Arc::clone(&config), Arc::clone(&stop), Arc::clone(&asked));
            tokio::spawn(async move {
                let mut connection = Secure::connect(https, "shop.example", &config).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // Half of them keep their connection, the others shake hands again and again.
                    if number % 2 == 0 {
                        connection = Secure::connect(https, "shop.example", &config).await.unwrap();
                    }
                    let (head, body) = connection.ask("GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
                    assert!(head.starts_with("HTTP/1.1 200") && body == b"hello", "{head}");
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let shown = async || Secure::connect(https, "shop.example", &config).await.unwrap().shown();
    let first = shown().await;
    metric_reaches(&process, OBTAINED, 2.0).await;
    assert_ne!(shown().await, first);
    let so_far = asked.load(Ordering::Relaxed);
    while asked.load(Ordering::Relaxed) < so_far + 100 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no errors");
    }
    assert_eq!(metric(&process, REFUSED).await + metric(&process, FAILED).await, 0.0);
}

#[tokio::test]
async fn while_the_authority_is_away_what_is_there_is_served_and_it_is_asked_again() {
    let (plan, origin) = (Plan { seconds: 24, ..Plan::new() }, origin());
    let mut pebble = Pebble::stopped(plan.clone());
    let acme = "retry_first = '100ms'\nretry_max = '500ms'\nrenew_before = '1d'";
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", acme, "");
    let process = node.start();
    metric_reaches(&process, FAILED, 2.0).await;
    let line = process.err.wait("the failure", |line| line.contains("certificate not obtained"));
    assert!(["cannot be reached", "acme.directory", "shop.example"].iter().all(|part| line.contains(part)), "{line}");
    process.err.wait("that there is none", |line| line.contains("there is no certificate yet"));
    let mut client = Client::connect(node.http).await;
    assert_eq!(client.ask("GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.text(), "hello");
    assert!(s_client(node.https, "-servername shop.example", "").contains("alert"), "no certificate, no handshake");

    pebble.run();
    metric_reaches(&process, OBTAINED, 1.0).await;
    let root = pebble.root();
    assert_eq!(node.get(&root, "https://shop.example/a").unwrap(), "hello");
    let failures = format!("tiercel_acme_failures{{certificate=\"{}\"}}", node.kept()[1].display());
    while metric(&process, &failures).await > 0.0 {
        tokio::task::yield_now().await;
    }
    // It comes back without memory: of accounts, too.
    pebble.stop();
    metric_reaches(&process, &failures, 1.0).await;
    assert_eq!(node.get(&root, "https://shop.example/a").unwrap(), "hello");
    pebble.run();
    metric_reaches(&process, OBTAINED, 2.0).await;
    assert_eq!(node.get(&pebble.root(), "https://shop.example/a").unwrap(), "hello");
}

#[tokio::test]
async fn a_refusal_is_told_and_a_restart_asks_no_sooner() {
    let (plan, origin) = (Plan { refused: vec!["shop.example"], ..Plan::new() }, origin());
    let pebble = Pebble::start(plan.clone());
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "retry_first = '1h'", "");
    let process = node.start();
    metric_reaches(&process, REFUSED, 1.0).await;
    let line = process.err.wait("the refusal", |line| line.contains("certificate not obtained"));
    assert!(line.contains("CAA records") && line.contains("failures=1"), "{line}");
    let failures = format!("tiercel_acme_failures{{certificate=\"{}\"}}", node.kept()[1].with_extension("pem").display());
    metric_reaches(&process, &failures, 1.0).await;
    stop(process);
    let process = node.start();
    metric_reaches(&process, &failures, 1.0).await;
    assert_eq!(metric(&process, REFUSED).await, 0.0);
}

#[tokio::test]
async fn a_challenge_that_fails_is_told_and_the_next_attempt_takes_the_next() {
    let (plan, origin) = (Plan::new(), origin());
    // Nobody listens where the authority comes for http-01.
    let pebble = Pebble::start(Plan { http: (plan.http.ip(), 1).into(), ..plan.clone() });
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "retry_first = '100ms'", "");
    let process = node.start();
    let line = process.err.wait("the failure", |line| line.contains("certificate not obtained"));
    assert!(["shop.example was not found to be ours by http-01", "port 80"].iter().all(|part| line.contains(part)), "{line}");
    metric_reaches(&process, OBTAINED, 1.0).await;
    assert_eq!((metric(&process, REFUSED).await, metric(&process, FAILED).await), (1.0, 0.0));
    assert_eq!(node.get(&pebble.root(), "https://shop.example/a").unwrap(), "hello");
}

#[tokio::test]
async fn what_is_damaged_is_told_and_obtained_anew() {
    let (plan, origin) = (Plan::new(), origin());
    let pebble = Pebble::start(plan.clone());
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "", "");
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    stop(process);
    for file in node.kept() {
        let text = std::fs::read(&file).unwrap();
        std::fs::write(&file, &text[..text.len() / 3]).unwrap();
    }
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    process.err.wait("the certificate", |line| line.contains("the certificate that is kept cannot be used"));
    process.err.wait("the account", |line| line.contains("the account with the authority cannot be used"));
    assert_eq!(node.get(&pebble.root(), "https://shop.example/a").unwrap(), "hello");
}

#[tokio::test]
async fn a_reload_wants_other_certificates_and_keeps_those_that_stay() {
    let (plan, origin) = (Plan::new(), origin());
    let pebble = Pebble::start(plan.clone());
    let node = Node::new(&pebble, &plan, &origin, "'shop.example'", "", "");
    let process = node.start();
    metric_reaches(&process, OBTAINED, 1.0).await;
    let more = node.text.replace("[{ acme = ['shop.example'] }]", "[{ acme = ['shop.example'] }, { acme = ['www.shop.example'] }]");
    write_config(node.folder.path(), &more);
    process.signal(crate::support::process::HANGUP);
    metric_reaches(&process, OBTAINED, 2.0).await;
    let root = pebble.root();
    for host in ["shop.example", "www.shop.example"] {
        assert_eq!(node.get(&root, &format!("https://{host}/a")).unwrap(), "hello");
    }
    assert_eq!(metric(&process, OBTAINED).await, 2.0);
}

#[test]
fn what_cannot_be_certified_is_refused_with_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let check = |certificate: &str, acme: &str| {
        let text = format!(
            "[listeners.https]\naddress = '127.0.0.1:0'\n[listeners.https.tls]\ncertificates = [{certificate}]\n\
             [upstreams.default]\nendpoints = ['http://127.0.0.1:3000']\n[acme]\n{acme}\n"
        );
        fails(&["check", "--config", write_config(folder.path(), &text).to_str().unwrap()])
    };
    let (one, agreed) = ("{ acme = ['shop.example'] }", "agree_to_terms = true");
    for (certificate, acme, at, what, remedy) in [
        (one, "", "acme.agree_to_terms", "consent", "agree_to_terms = true"),
        ("{ acme = [] }", agreed, "certificates[0].acme", "needs hosts", "acme = ["),
        ("{ acme = ['*.shop.example'] }", agreed, "certificates[0].acme[0]", "wildcard", "list each host"),
        ("{ acme = ['192.0.2.1'] }", agreed, "certificates[0].acme[0]", "not a host name", "DNS name"),
        ("{ acme = ['a.example', 'A.example'] }", agreed, "certificates[0].acme[1]", "twice", "remove one"),
        ("{ acme = ['a.example'], key_file = 'a.key' }", agreed, "certificates[0].key_file", "beside hosts", "remove"),
        (one, "agree_to_terms = true\ndirectory = 'http://ca.example'", "acme.directory", "https", "https"),
        (one, "agree_to_terms = true\ncontact = ['me@shop.example']", "acme.contact[0]", "reach you", "mailto:me@shop.example"),
        (one, "agree_to_terms = true\neab_key_id = 'a'", "acme.eab_key_id", "key id and its key", "eab_key_file"),
        (one, "agree_to_terms = true\neab_key_id = 'a'\neab_key = 'a+b'", "acme.eab_key", "base64url", "copy"),
        (one, "agree_to_terms = true\nchallenges = []", "acme.challenges", "none", "http-01"),
        (one, "agree_to_terms = true\nretry_first = '2d'", "acme.retry_max", "out of bounds", "1d"),
        (one, "agree_to_terms = true\nseal = 'short'", "acme.seal", "guessed", "openssl rand"),
    ] {
        let (code, text) = check(certificate, acme);
        assert_eq!(code, Some(2), "{certificate} {acme}: {text}");
        assert!([at, what, remedy].iter().all(|part| text.contains(part)), "{certificate} {acme}: {text}");
    }
}
