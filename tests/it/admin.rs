//! The admin API over real sockets, against a scripted [`Control`].

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use tiercel::admin::{self, Control, ExplainRequest, Handle, ReloadRefused};
use tiercel::config::settings::Secret;
use tiercel::invalidation::{Mode, Position, Receipt, Selector};
use tiercel::observe::metrics::{Metrics, SERIES};
use tokio::sync::oneshot;

/// Answers by script and remembers what it was asked to do.
struct Scripted {
    metrics: Arc<Metrics>,
    ready: Mutex<Result<(), String>>,
    purges: Mutex<Vec<(Vec<Selector>, Mode, String)>>,
    reloads: Mutex<usize>,
    explained: Mutex<Vec<ExplainRequest>>,
    full: Mutex<usize>,
    token: Mutex<Option<Secret>>,
    /// Selectors that may still be purged.
    purges_left: Mutex<usize>,
    /// Who was refused a purge, and how.
    refused: Mutex<Vec<(String, u16)>>,
}

const ID: &str = "0123456789abcdef0123456789abcdef";

impl Scripted {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            metrics: Metrics::new(1),
            ready: Mutex::new(Ok(())),
            purges: Mutex::default(),
            reloads: Mutex::default(),
            explained: Mutex::default(),
            full: Mutex::default(),
            token: Mutex::default(),
            purges_left: Mutex::new(1000),
            refused: Mutex::default(),
        })
    }
}

fn receipt(selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt {
    let position = Position { epoch: 1, ms: 1_795_298_645_123, sequence: 2 };
    let issued_at = "2026-11-21T22:04:05.123Z".into();
    let (id, actor, reason, nodes) = (ID.into(), actor.into(), None, Vec::new());
    Receipt { id, mode, selectors, position, issued_at, actor, acknowledged: "local", reason, complete: true, nodes }
}

impl Control for Scripted {
    fn admit_purge(&self, caller: IpAddr, selectors: usize) -> Result<(), u64> {
        assert!(caller.is_loopback());
        let mut left = self.purges_left.lock();
        *left = left.checked_sub(selectors).ok_or(7_u64)?;
        Ok(())
    }
    fn refused_purge(&self, actor: &str, status: u16, _: &str) {
        let (who, _) = actor.rsplit_once(':').expect("a port");
        self.refused.lock().push((who.to_owned(), status));
    }
    fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt {
        self.purges.lock().push((selectors.clone(), mode, actor.to_owned()));
        receipt(selectors, mode, actor)
    }
    fn receipt(&self, id: &str) -> Option<Receipt> {
        (id == ID).then(|| receipt(vec![Selector::Everything], Mode::Soft, "admin:127.0.0.1:1"))
    }
    /// Lower case without scheme stands for the real thing.
    fn normalise_url(&self, url: &str) -> Result<String, String> {
        let (_, rest) = url.split_once("://").ok_or("it has no scheme")?;
        Ok(rest.to_ascii_lowercase())
    }
    fn check_site(&self, name: &str) -> Result<(), String> {
        if name == "shop" { Ok(()) } else { Err("the sites are: shop".into()) }
    }
    fn stored_here(&self, url: &str) -> bool {
        url == "shop.example/stored"
    }
    fn explain(&self, request: ExplainRequest) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> {
        let explained = if request.url == "nonsense" {
            Err("the URL is not absolute".into())
        } else {
            self.explained.lock().push(request);
            Ok(json!({ "tier": "memory" }))
        };
        Box::pin(async { explained })
    }
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Value, ReloadRefused>> + Send>> {
        let mut reloads = self.reloads.lock();
        *reloads += 1;
        let first = *reloads == 1;
        let refused = ReloadRefused { message: "sites.shop: two problems".into(), remedy: "mend both" };
        Box::pin(async move { if first { Ok(json!({ "hash": "abc" })) } else { Err(refused) } })
    }
    fn ready(&self) -> Result<(), String> {
        self.ready.lock().clone()
    }
    fn metrics(&self) -> String {
        self.metrics.render()
    }
    fn config(&self) -> Value {
        json!({ "admin": { "token": "***" } })
    }
    fn status(&self) -> Value {
        json!({ "version": "test" })
    }
    fn token(&self) -> Option<Secret> {
        self.token.lock().clone()
    }
    fn selectors_per_call(&self) -> usize {
        3
    }
    fn connections_full(&self) {
        *self.full.lock() += 1;
    }
}

/// A listener under test; ends with the value.
struct Admin {
    control: Arc<Scripted>,
    address: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    handle: Option<Handle>,
}

impl Admin {
    fn start() -> Self {
        Self::with("127.0.0.1:0", None, false)
    }

    fn with(bind: &str, token: Option<&str>, metrics_only: bool) -> Self {
        let control = Scripted::new();
        *control.token.lock() = token.map(Secret::new);
        let (shutdown, ends) = oneshot::channel();
        let listener = TcpListener::bind(bind).unwrap();
        let ends = async move {
            let _ = ends.await;
        };
        let handle = admin::serve(listener, control.clone(), metrics_only, ends).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], handle.address().port()));
        Self { control, address, shutdown: Some(shutdown), handle: Some(handle) }
    }

    /// Sends a request with these lines besides Host, and reads the answer to its end.
    fn ask(&self, request_line: &str, lines: &[&str], body: &str) -> Answer {
        let host = format!("Host: {}", self.address);
        let mut all = vec![host.as_str()];
        if lines.iter().any(|line| line.starts_with("Host:")) {
            all.clear();
        }
        all.extend_from_slice(lines);
        let length = format!("Content-Length: {}", body.len());
        if !body.is_empty() {
            all.push(&length);
        }
        self.raw(&format!("{request_line} HTTP/1.1\r\n{}\r\nConnection: close\r\n\r\n{body}", all.join("\r\n")))
    }

    fn raw(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let _ = stream.write_all(request.as_bytes()); // refused early, the rest may not be taken
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer); // likewise: a reset after the answer
        Answer::parse(&String::from_utf8(answer).unwrap())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[], "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&format!("POST {path}"), &["Content-Type: application/json"], &body.to_string())
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.shutdown.take());
        self.handle.take().unwrap().join();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The message of an error of this status, which has a remedy too.
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let error = &self.json()["error"];
        assert!(!error["remedy"].as_str().unwrap().is_empty());
        error["message"].as_str().unwrap().to_owned()
    }
}

#[test]
fn metrics_and_probes_answer() {
    let admin = Admin::start();
    let metrics = admin.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.head);
    assert!(metrics.head.contains("cache-control: no-store"), "{}", metrics.head);
    assert!(metrics.body.contains(SERIES[0].name));
    assert_eq!((admin.get("/healthz").status, admin.get("/readyz").status), (200, 200));
    *admin.control.ready.lock() = Err("draining".into());
    assert_eq!(admin.get("/readyz").error(503), "draining");
    assert_eq!(admin.get("/healthz").status, 200, "alive while draining");
}

#[test]
fn the_read_only_listener_has_nothing_else_and_may_be_bound_anywhere() {
    let admin = Admin::with("0.0.0.0:0", None, true);
    assert_eq!(admin.ask("GET /metrics", &["Host: node7.cluster.example"], "").status, 200);
    for path in ["/", "/v1/status", "/v1/config", "/v1/purge/1"] {
        admin.get(path).error(404);
    }
    for path in ["/v1/purge", "/v1/reload", "/v1/explain"] {
        admin.post(path, &json!({ "everything": true })).error(404);
    }
    admin.post("/metrics", &json!({})).error(405);
    assert!(admin.control.purges.lock().is_empty() && *admin.control.reloads.lock() == 0);
}

#[test]
fn index_status_and_configuration_are_told() {
    let admin = Admin::start();
    let index = admin.get("/");
    assert!(index.body.contains("POST /v1/purge") && index.head.contains("text/plain") && !index.body.contains('<'));
    assert_eq!(admin.get("/v1/status").json(), json!({ "version": "test" }));
    assert_eq!(admin.get("/v1/config").json()["admin"]["token"], "***");
}

#[test]
fn refused_purges_are_told_about_and_too_many_may_try_again_later() {
    let admin = Admin::with("127.0.0.1:0", Some("secret"), false);
    *admin.control.purges_left.lock() = 2;
    let ask = |lines: &[&str], body: &Value| {
        admin.ask("POST /v1/purge", &[&["Content-Type: application/json"], lines].concat(), &body.to_string())
    };
    let token = ["Authorization: Bearer secret"];
    ask(&[], &json!({"everything": true})).error(401);
    ask(&["Authorization: Bearer guess"], &json!({"everything": true})).error(401);
    ask(&token, &json!({})).error(400);
    assert_eq!(ask(&token, &json!({"tags": ["a", "b"]})).status, 200);
    let refused = ask(&token, &json!({"tags": ["c"]}));
    assert_eq!(refused.error(429), "too many purges");
    assert!(refused.head.contains("retry-after: 7\r\n"), "{}", refused.head);
    assert_eq!(admin.control.purges.lock().len(), 1);
    let who = "admin:127.0.0.1".to_owned();
    assert_eq!(*admin.control.refused.lock(), [401, 401, 400, 429].map(|status| (who.clone(), status)));
    admin.get("/v1/purge/none").error(401);
    assert_eq!(admin.control.refused.lock().len(), 4, "reading a receipt is no purge");
}

#[test]
fn a_purge_names_its_selectors_as_they_were_normalised() {
    let admin = Admin::start();
    let body = json!({
        "keys": [" product-1 "],
        "groups": [{ "origin": "HTTPS://Shop.Example/", "group": "scripts" }],
        "prefixes": ["Shop.Example/Assets/"],
        "mode": "soft",
    });
    let answer = admin.post("/v1/purge", &body).json();
    assert_eq!(
        answer["selectors"],
        json!([
            { "kind": "key", "given": " product-1 ", "normalised": "product-1" },
            { "kind": "group", "given": "HTTPS://Shop.Example/ scripts", "normalised": "https://shop.example scripts" },
            { "kind": "prefix", "given": "Shop.Example/Assets/", "normalised": "shop.example/assets/" },
        ])
    );
    let facts = ["id", "mode", "position", "issued_at", "acknowledged", "complete"].map(|name| answer[name].clone());
    let want = json!([ID, "soft", "1-1795298645123-2", "2026-11-21T22:04:05.123Z", "local", true]);
    assert_eq!(Value::from(facts.to_vec()), want);
    assert_eq!(answer.get("stored_here"), None);
    let (selectors, mode, actor) = admin.control.purges.lock()[0].clone();
    assert_eq!(mode, Mode::Soft);
    assert!(actor.starts_with("admin:127.0.0.1:"), "{actor}");
    let group = Selector::Group { origin: "https://shop.example".into(), group: "scripts".into() };
    assert_eq!(selectors, [Selector::Key("product-1".into()), group, Selector::Prefix("shop.example/assets/".into())]);
}

#[test]
fn a_single_url_is_told_whether_it_was_stored_here() {
    let admin = Admin::start();
    for (url, stored) in [("https://shop.example/Stored", true), ("https://shop.example/other", false)] {
        let answer = admin.post("/v1/purge", &json!({ "urls": [url] })).json();
        assert_eq!(answer["stored_here"], stored);
    }
    assert!(admin.control.purges.lock().iter().all(|(_, mode, _)| *mode == Mode::Hard), "hard unless asked");
}

#[test]
fn hosts_sites_and_everything_can_be_purged() {
    let admin = Admin::start();
    let body = json!({ "hosts": ["Shop.Example:8080"], "sites": ["shop"], "everything": true });
    assert_eq!(admin.post("/v1/purge", &body).status, 200);
    let selectors = admin.control.purges.lock()[0].0.clone();
    assert_eq!(selectors, [Selector::Host("shop.example:8080".into()), Selector::Site("shop".into()), Selector::Everything]);
}

#[test]
fn mode_and_wait_may_stand_in_the_query_but_not_contradict() {
    let admin = Admin::start();
    let body = json!({ "tags": ["a"] });
    let answer = admin.post("/v1/purge?mode=soft&wait=fleet&timeout=500ms", &body).json();
    assert_eq!((&answer["mode"], &answer["acknowledged"]), (&"soft".into(), &"local".into()));
    assert!(answer["reason"].as_str().unwrap().contains("no fleet"));
    assert_eq!(admin.post("/v1/purge?wait=none", &body).json().get("reason"), None);
    let contradicting = json!({ "tags": ["a"], "mode": "hard" });
    assert!(admin.post("/v1/purge?mode=soft", &contradicting).error(400).contains("mode"));
    admin.post("/v1/purge?mode=firm", &body).error(400);
    admin.post("/v1/purge?url=http://shop.example/", &body).error(400);
}

#[test]
fn purges_that_are_not_understood_are_refused_whole() {
    let admin = Admin::start();
    for (body, message) in [
        (json!({ "url": ["https://shop.example/"] }), "unknown field `url`"),
        (json!({ "groups": [{ "origin": "https://shop.example", "name": "x" }] }), "groups[0].name: unknown field `name`"),
        (json!({ "tags": [1] }), "tags[0]"),
        (json!({}), "nothing to purge"),
        (json!({ "tags": ["a", "b"], "hosts": ["c"], "everything": true }), "4 selectors in one call; at most 3"),
        (json!({ "tags": ["a"], "urls": ["shop.example/"] }), "no scheme"),
        (json!({ "tags": [" "] }), "tags"),
        (json!({ "tags": ["x".repeat(1025)] }), "1024"),
        (json!({ "sites": ["a\nb"] }), "sites"),
        (json!({ "tags": ["a"], "sites": ["shopp"] }), "there is no site `shopp`"),
        (json!({ "hosts": ["https://shop.example"] }), "hosts"),
        (json!({ "groups": [{ "origin": "shop.example", "group": "g" }] }), "origin"),
        (json!({ "tags": ["a"], "timeout": "2" }), "timeout"),
        (json!({ "tags": ["a"], "timeout": "2h" }), "timeout"),
        (json!({ "tags": ["a"], "timeout": "99999999999999999999s" }), "timeout"),
        (json!({ "tags": ["a"], "mode": "firm" }), "mode"),
        (json!([["https://shop.example/"]]), "JSON object"),
    ] {
        let error = admin.post("/v1/purge", &body).error(400);
        assert!(error.contains(message), "{body}: {error}");
    }
    let json = &["Content-Type: application/json"];
    for broken in ["{", "{} {}", "\u{0}"] {
        admin.ask("POST /v1/purge", json, broken).error(400);
    }
    admin.ask("POST /v1/purge", json, "").error(400);
    assert!(admin.control.purges.lock().is_empty());
}

#[test]
fn a_node_without_a_fleet_has_no_others() {
    let admin = Admin::start();
    assert_eq!(admin.get("/v1/nodes").error(404), "this node belongs to no fleet");
}

#[test]
fn receipts_are_found_by_id() {
    let admin = Admin::start();
    let receipt = admin.get(&format!("/v1/purge/{ID}")).json();
    assert_eq!((&receipt["id"], &receipt["selectors"][0]["kind"]), (&ID.into(), &"everything".into()));
    admin.get("/v1/purge/ffff").error(404);
}

#[test]
fn explain_takes_a_request_and_refuses_nonsense() {
    let admin = Admin::start();
    let body = json!({ "url": "http://shop.example/", "headers": [["accept", "*/*"]] });
    assert_eq!(admin.post("/v1/explain", &body).json(), json!({ "tier": "memory" }));
    let explained = admin.control.explained.lock()[0].clone();
    assert_eq!((explained.method.as_str(), explained.headers), ("GET", vec![("accept".into(), "*/*".into())]));
    assert_eq!(admin.post("/v1/explain", &json!({ "url": "nonsense" })).error(400), "the URL is not absolute");
    assert!(admin.post("/v1/explain", &json!({ "uri": "/" })).error(400).contains("unknown field `uri`"));
}

#[test]
fn reload_answers_and_a_refused_one_names_the_problems() {
    let admin = Admin::start();
    assert_eq!(admin.ask("POST /v1/reload", &[], "").json(), json!({ "hash": "abc" }));
    assert_eq!(admin.ask("POST /v1/reload", &["Content-Length: 0"], "").error(422), "sites.shop: two problems");
}

#[test]
fn nothing_changes_by_get() {
    let admin = Admin::start();
    for path in ["/v1/purge?everything=true", "/v1/reload", "/v1/explain"] {
        let answer = admin.get(path);
        answer.error(405);
        assert!(answer.head.contains("allow: post"), "{}", answer.head);
    }
    assert!(admin.control.purges.lock().is_empty() && *admin.control.reloads.lock() == 0);
    admin.get("/v2").error(404);
}

#[test]
fn the_token_guards_all_but_metrics_and_probes() {
    let admin = Admin::with("127.0.0.1:0", Some("correct horse"), false);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(admin.get(path).status, 200, "{path}");
    }
    for path in ["/", "/v1/status", "/v1/config", "/v1/purge/1", "/nowhere", "/metrics/", "//metrics"] {
        let answer = admin.get(path);
        answer.error(401);
        assert!(answer.head.contains("www-authenticate: bearer"));
    }
    for wrong in ["Bearer correct hors", "Bearer correct horse!", "Bearer ", "Basic correct horse", "correct horse"] {
        admin.ask("GET /v1/status", &[&format!("Authorization: {wrong}")], "").error(401);
    }
    let body = json!({ "everything": true }).to_string();
    let with = ["Authorization: bearer correct horse", "Content-Type: application/json"];
    admin.ask("POST /v1/purge", &with[1..], &body).error(401);
    assert!(admin.control.purges.lock().is_empty());
    assert_eq!(admin.ask("POST /v1/purge", &with, &body).status, 200);
}

#[test]
fn another_address_than_loopback_needs_a_token() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let error = admin::serve(listener, Scripted::new(), false, std::future::pending()).unwrap_err();
    assert!(error.to_string().contains("needs a token"), "{error}");
    let admin = Admin::with("0.0.0.0:0", Some("secret"), false);
    let lines = ["Host: admin.example", "Authorization: Bearer secret"];
    assert_eq!(admin.ask("GET /v1/status", &lines, "").status, 200, "the Host rule is loopback's");
}

#[test]
fn a_rebound_name_is_refused_on_loopback() {
    let admin = Admin::start();
    for host in ["evil.example", "evil.example:9180", "localhost.evil.example"] {
        admin.ask("GET /v1/config", &[&format!("Host: {host}")], "").error(403);
    }
    admin.raw("GET http://evil.example/v1/config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").error(403);
    for host in ["localhost", "127.0.0.1", "[::1]:1"] {
        assert_eq!(admin.ask("GET /v1/config", &[&format!("Host: {host}")], "").status, 200);
    }
}

#[test]
fn a_browser_cannot_be_made_to_post() {
    let admin = Admin::start();
    let body = json!({ "everything": true }).to_string();
    let json = "Content-Type: application/json";
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"] {
        admin.ask("POST /v1/purge", &[&format!("Content-Type: {kind}")], &body).error(415);
    }
    admin.ask("POST /v1/purge", &[], &body).error(415);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = format!("POST /v1/purge HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}");
    admin.raw(&head).error(415);
    for foreign in ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"] {
        admin.ask("POST /v1/purge", &[json, foreign], &body).error(403);
        admin.ask("POST /v1/reload", &[foreign], "").error(403);
    }
    assert!(admin.control.purges.lock().is_empty() && *admin.control.reloads.lock() == 0);
    let own = format!("Origin: http://{}", admin.address);
    assert_eq!(admin.ask("POST /v1/purge", &["Content-Type: Application/JSON; charset=utf-8", &own], &body).status, 200);
}

#[test]
fn a_body_above_its_bound_is_refused() {
    let admin = Admin::start();
    let json = "Content-Type: application/json";
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let request = format!(
        "POST /v1/purge HTTP/1.1\r\nHost: localhost\r\n{json}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}1\r\n \r\n0\r\n\r\n"
    );
    assert!(admin.raw(&request).error(413).contains("1048576"));
    let fits = json!({ "tags": ["a"] }).to_string() + &" ".repeat((1 << 20) - 100);
    assert_eq!(admin.ask("POST /v1/purge", &[json], &fits).status, 200);
}

#[test]
fn shutting_down_ends_idle_connections_and_the_thread() {
    let mut admin = Admin::start();
    let mut kept = TcpStream::connect(admin.address).unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut first = [0; 12];
    kept.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    admin.shutdown.take().unwrap().send(()).unwrap();
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).unwrap();
    let address = admin.address;
    drop(admin);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn connections_beyond_the_bound_wait_until_one_ends() {
    let admin = Admin::start();
    let ask = || {
        let mut stream = TcpStream::connect(admin.address).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    };
    let answered = |stream: &mut TcpStream| stream.read_exact(&mut [0; 12]).is_ok();
    let mut kept: Vec<_> = (0..256).map(|_| ask()).collect();
    assert!(kept.iter_mut().all(answered));
    let mut waiting = ask();
    let begun = std::time::Instant::now();
    while *admin.control.full.lock() == 0 {
        assert!(begun.elapsed().as_secs() < 30, "the bound was never reached");
        std::thread::yield_now();
    }
    kept.pop();
    assert!(answered(&mut waiting));
}
