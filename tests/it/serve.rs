//! End-to-end tests: what a client and an origin see through the running binary, one behaviour each.

mod answers;
mod bad_input;
mod blocks;
mod commands;
mod compression;
mod content;
mod dictionaries;
mod equivalent;
mod forwarding;
mod freshness;
mod http2;
mod http2_abuse;
mod http2_upstream;
mod methods;
mod policy;
mod proxy_protocol;
mod purge;
mod purge_controls;
mod ranges;
mod rate_limits;
mod reuse;
mod routes;
mod sharing;
mod standards;
mod streaming;
mod suite;
mod targeted;
mod updates;
mod upgrades;

use crate::support::client::{Answer, Client};
use crate::support::origin::{Origin, PATIENCE, Recorded, Script};
use crate::support::server::Tiercel;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tiercel::clock;
use tiercel::semantics::date;

/// A running server in front of a scripted origin.
struct Served {
    tiercel: Tiercel,
    origin: Origin,
    folder: TempDir,
}

/// The server as it is without a file of its own.
fn serve(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Served {
    serve_with("", respond)
}

/// The server with some configuration: keys first, then tables.
fn serve_with(config: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Served {
    serve_origin(config, Origin::start(respond))
}

fn serve_origin(config: &str, origin: Origin) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let tiercel = Tiercel::with_config(&whole(config, &origin), folder.path());
    Served { tiercel, origin, folder }
}

/// The server with its access log, in JSON.
fn serve_logged(config: &str, respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Served {
    serve_logged_through(CODECS[0], config, Origin::start(respond))
}

/// The same, with this codec towards the origin.
fn serve_logged_through(codec: &str, config: &str, origin: Origin) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let log = format!("target = \"{}\"\nformat = \"json\"", folder.path().join(LOG).display());
    let config = through(codec, &whole(config, &origin)).replace("target = \"off\"", &log);
    Served { tiercel: Tiercel::with_config(&config, folder.path()), origin, folder }
}

/// Name of the access log of [`serve_logged`].
const LOG: &str = "access.log";

/// What every test's configuration has besides its own part.
fn whole(config: &str, origin: &Origin) -> String {
    format!("{config}\n[upstreams.default]\nendpoints = [\"{}\"]\n[log.access]\ntarget = \"off\"\n", origin.url())
}

/// What speaks to the origin, as in `upstreams.*.http1`; first the default.
const CODECS: [&str; 2] = ["own", "hyper"];

/// A whole configuration, with this codec towards the origin.
fn through(codec: &str, whole: &str) -> String {
    whole.replace("[log.access]", &format!("http1 = \"{codec}\"\n[log.access]")) // behind the table of the upstream
}

impl Served {
    async fn client(&self) -> Client {
        Client::connect(self.tiercel.http).await
    }

    /// GET on a connection of its own.
    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, "").await
    }

    /// GET with further field lines, each with its line end.
    async fn get_with(&self, path: &str, lines: &str) -> Answer {
        self.ask("GET", path, lines, "").await
    }

    /// Any request; a body goes with its Content-Length.
    async fn ask(&self, method: &str, path: &str, lines: &str, body: &str) -> Answer {
        self.client().await.ask(request(method, path, lines, body)).await
    }

    /// GETs until the answer is as wanted.
    async fn until(&self, path: &str, lines: &str, what: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get_with(path, lines).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited in vain: {what}: {}", answer.head);
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    /// GETs until it is a hit. A fetch under way is followed, so that the origin sees one request.
    async fn until_hit(&self, path: &str, lines: &str) -> Answer {
        self.until(path, lines, "a hit", |answer| answer.says("hit")).await
    }

    /// Waits until what is stored is stale, without asking the origin.
    async fn until_stale(&self, path: &str) {
        self.until(path, "Cache-Control: only-if-cached\r\n", "staleness", |answer| answer.status == 504).await;
    }

    /// A call of the admin API.
    async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = Client::connect(self.tiercel.admin)
            .await
            .ask(request(method, path, "Host: localhost\r\nContent-Type: application/json\r\n", body))
            .await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_else(|_| answer.text().into()))
    }

    /// What the cache knows of a URL.
    async fn explain(&self, path: &str) -> Value {
        let (status, answer) = self.admin("POST", "/v1/explain", &json!({"url": format!("http://{HOST}{path}")}).to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Waits until something is stored for a URL, fresh or not.
    async fn until_stored(&self, path: &str) -> Value {
        self.until_explained(path, "a stored response", |explained| !explained["stored"].is_null()).await
    }

    async fn until_explained(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let explained = self.explain(path).await;
            if wanted(&explained) {
                return explained;
            }
            assert!(Instant::now() < deadline, "waited in vain: {what}: {explained}");
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    /// Waits until this many requests wait for another's fetch.
    async fn until_waiting(&self, count: usize) {
        let wanted = format!("tiercel_coalesce_waiting {count}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, metrics) = self.admin("GET", "/metrics", "").await;
            if metrics.as_str().is_some_and(|text| text.lines().any(|line| line == wanted)) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain: {wanted}");
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    /// The access log of [`serve_logged`], once it has this many lines.
    async fn until_logged(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default();
            let whole: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            if whole.len() >= count {
                return whole.into_iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            }
            assert!(Instant::now() < deadline, "waited in vain for {count} lines: {text}");
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    /// How often a bound was reached.
    async fn bound(&self, bound: &str) -> u64 {
        self.metric(&format!("tiercel_bound_reached_total{{bound=\"{bound}\"}}")).await
    }

    async fn until_metric(&self, series: &str, want: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(series).await != want {
            assert!(Instant::now() < deadline, "waited in vain: {series} {want}");
            tokio::time::sleep(Duration::from_millis(2)).await; // nobody announces it
        }
    }

    /// The value of a series, with its labels as they are scraped.
    async fn metric(&self, series: &str) -> u64 {
        self.metrics(series).await.remove("").expect(series)
    }

    /// All values of a family, or of those with these first labels: what stands behind, and the value.
    async fn metrics(&self, family: &str) -> BTreeMap<String, u64> {
        let (_, metrics) = self.admin("GET", "/metrics", "").await;
        let value = |line: &str| {
            let (labels, value) = line.strip_prefix(family)?.rsplit_once(' ')?;
            Some((labels.to_owned(), value.parse().ok()?))
        };
        metrics.as_str().expect("text").lines().filter_map(value).collect()
    }

    /// Makes everything stale at once.
    async fn soften(&self) {
        let (status, answer) = self.admin("POST", "/v1/purge", r#"{"everything": true, "mode": "soft"}"#).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Puts another configuration into effect.
    async fn reload(&self, config: &str) {
        std::fs::write(self.config_file(), whole(config, &self.origin)).expect("a writable folder");
        let (status, answer) = self.admin("POST", "/v1/reload", "{}").await;
        assert_eq!(status, 200, "{answer}");
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("tiercel.toml")
    }

    /// The request that came last to a path.
    fn last(&self, path: &str) -> Recorded {
        self.origin.requests(path).pop().expect("the origin was asked")
    }
}

/// Host of all requests that name no other.
const HOST: &str = "shop.example";

/// Bytes of a request; Host is there unless a line says another.
fn request(method: &str, path: &str, lines: &str, body: &str) -> String {
    let names_host = lines.lines().any(|line| line.to_ascii_lowercase().starts_with("host:"));
    let host = if names_host { String::new() } else { format!("Host: {HOST}\r\n") };
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{method} {path} HTTP/1.1\r\n{host}{lines}{length}\r\n{body}")
}

/// An HTTP date, seconds from now.
fn date_in(seconds: i64) -> String {
    String::from_utf8(date::format(clock::now().wall_ms + seconds * 1000).to_vec()).expect("ASCII")
}

/// A response that may be stored and is fresh for long.
fn fresh(body: &str) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=3600")
}

/// A response that may be stored and is stale when it comes, with a validator.
fn stale(body: &str) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=60").header("Age", "100").header("ETag", "\"v1\"")
}

/// 304 to a conditional request, else the script.
fn confirm_or(request: &Recorded, not_modified: Script, other: Script) -> Script {
    if request.field("if-none-match").is_some() { not_modified } else { other }
}
