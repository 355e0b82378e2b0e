//! A browser in front of a real process: Debian's Chromium, without a window, which writes into its page what it saw.

use super::{config, metric};
use crate::support::origin::{Origin, Script};
use crate::support::pki::{EC, Pki};
use crate::support::process::Process;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::process::Command;

const HOST: &str = "shop.example";

/// Runs this script to its end, and leaves what it returned as the text of the page.
fn page(script: &str) -> Script {
    let html = format!(
        "<!doctype html><meta charset=utf-8><body><script>\n\
         const protocol = (entries) => entries.at(-1).nextHopProtocol;\n\
         const hash = async (text) => Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text))),\n\
         (byte) => byte.toString(16).padStart(2, '0')).join('');\n\
         const wait = (ms) => new Promise((done) => setTimeout(done, ms));\n\
         (async () => {{ {script} }})().catch((error) => ({{ error: String(error) }}))\n\
         .then((seen) => {{ document.body.textContent = JSON.stringify(seen); }});\n</script>"
    );
    Script::ok(html).header("Content-Type", "text/html").header("Cache-Control", "max-age=60")
}

/// A process whose access log is on its standard output.
fn serve(pki: &Pki, origin: &Origin, listener: &str, more: &str) -> (Process, SocketAddr) {
    pki.issue("shop", &[HOST], EC, 30);
    let text = config(&origin.url(), &format!("certificates = [{}]\n", pki.entry("shop")), more)
        .replace("[listeners.https]\n", &format!("[listeners.https]\n{listener}\n"))
        .replace("target = 'off'", "target = 'stdout'\nformat = 'json'");
    let process = Process::with_config(pki.folder(), &text);
    let address = process.address("listener https");
    (process, address)
}

/// What the page at `/` of this address wrote. The browser knows nobody who vouches for the certificate: it is told its key.
fn browse(pki: &Pki, address: SocketAddr, flags: &[&str]) -> Value {
    pki.openssl("x509 -in shop.pem -pubkey -noout -out shop.pub");
    pki.openssl("pkey -pubin -in shop.pub -outform der -out shop.spki");
    pki.openssl("dgst -sha256 -binary -out shop.hash shop.spki");
    pki.openssl("base64 -A -in shop.hash -out shop.known");
    let known = std::fs::read_to_string(pki.path("shop.known")).expect("a file");
    let profile = tempfile::tempdir().expect("a temporary folder");
    let quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
    let output = Command::new("timeout")
        .args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu"])
        .args(quiet)
        .args(flags)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--ignore-certificate-errors-spki-list={known}"))
        .arg(format!("--host-resolver-rules=MAP {HOST} {}", address.ip()))
        // Timers of the page run ahead while nothing is under way.
        .args(["--virtual-time-budget=30000", "--dump-dom"])
        .arg(format!("https://{HOST}:{}/", address.port()))
        .output()
        .expect("chromium runs");
    let dom = String::from_utf8_lossy(&output.stdout);
    let text = dom.split_once("<body>").and_then(|(_, rest)| rest.split_once("</body>")).map(|(text, _)| text.trim());
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_else(|| panic!("no result in {dom}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// The first request in the access log that fits.
fn logged(process: &Process, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
    let line = process.out.wait(what, |line| parsed(line).is_some_and(|logged| fits(&logged)));
    parsed(&line).expect("it was read before")
}

#[tokio::test]
async fn a_browser_agrees_on_the_newest_tls_and_http2() {
    let pki = Pki::new();
    let origin = Origin::start(|_| page("return { protocol: protocol(performance.getEntriesByType('navigation')) };"));
    let (process, address) = serve(&pki, &origin, "", "");
    assert_eq!(browse(&pki, address, &[]), serde_json::json!({ "protocol": "h2" }));
    let logged = logged(&process, "the page", |logged| logged["path"] == "/");
    assert_eq!((&logged["protocol"], &logged["status"], &logged["scheme"]), (&"HTTP/2".into(), &200.into(), &"https".into()));
    assert!(metric(&process, "tiercel_tls_handshakes_total{outcome=\"full\",version=\"1.3\"}").await >= 1.0);
}

/// Scripts of which one is the other with a few changes.
fn bundle(version: u32) -> String {
    let line = |number: u32| {
        let own = if number % 97 == 13 { version } else { 0 };
        format!("function f{number}(n) {{ return n * {} + {own}; }}\n", number.wrapping_mul(2_654_435_761))
    };
    (0..3000).map(line).collect()
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_browser_keeps_a_dictionary_and_reads_what_is_coded_against_it() {
    for (coding, delta) in [("br", "dcb"), ("zstd", "dcz")] {
        let pki = Pki::new();
        let origin = Origin::start(|request| match request.path.as_str() {
            // The browser puts a dictionary away in its own time: other URLs are asked for until it has.
            "/" => page(
                "await (await fetch('/app.1.js')).text();\n\
                 for (let tries = 0; tries < 200; tries++) {\n\
                 const answer = await fetch('/app.2.js?' + tries);\n\
                 const [coding, text] = [answer.headers.get('content-encoding'), await answer.text()];\n\
                 if (coding.startsWith('dc')) return { coding, hash: await hash(text) };\n\
                 await wait(100);\n\
                 }",
            ),
            path => {
                let script = Script::ok(bundle(if path == "/app.1.js" { 1 } else { 2 }));
                let script = script.header("Content-Type", "text/javascript").header("Cache-Control", "max-age=60");
                if path == "/app.1.js" { script.header("Use-As-Dictionary", "match=\"/app*js\"") } else { script }
            }
        });
        let more = format!("[compression]\nenabled = true\ndictionaries = true\ncodings = ['{coding}']\n");
        let (process, address) = serve(&pki, &origin, "", &more);
        // By default it wants an authority that it came with.
        let flags = ["--disable-features=CompressionDictionaryTransportRequireKnownRootCert"];
        assert_eq!(browse(&pki, address, &flags), serde_json::json!({ "coding": delta, "hash": hash(&bundle(2)) }));
        let logged = logged(&process, "the delta", |logged| logged["coding"] == delta);
        assert_eq!((&logged["path"], &logged["protocol"]), (&"/app.2.js".into(), &"HTTP/2".into()));
        assert!(logged["bytes"].as_u64().expect("a number") < 2000, "{logged}");
    }
}

/// It is told to: for a certificate that it only takes because of its key it remembers no Alt-Svc.
#[cfg(feature = "http3")]
#[tokio::test]
async fn a_browser_speaks_http3() {
    let pki = Pki::new();
    let origin = Origin::start(|request| match request.path.as_str() {
        "/" => page(
            "const [first, then] = [protocol(performance.getEntriesByType('navigation')), new URL('/next', location.href).href];\n\
             const text = await (await fetch(then)).text();\n\
             return { first, then: protocol(performance.getEntriesByName(then)), hash: await hash(text) };",
        ),
        _ => Script::ok(bundle(1)).header("Cache-Control", "max-age=60"),
    });
    let (process, address) = serve(&pki, &origin, "http3 = true", "");
    let forced = format!("--origin-to-force-quic-on={HOST}:{}", address.port());
    assert_eq!(browse(&pki, address, &[&forced]), serde_json::json!({ "first": "h3", "then": "h3", "hash": hash(&bundle(1)) }));
    for path in ["/", "/next"] {
        let logged = logged(&process, "what it asked for", |logged| logged["path"] == path);
        assert_eq!((&logged["protocol"], &logged["status"]), (&"HTTP/3".into(), &200.into()));
    }
}
