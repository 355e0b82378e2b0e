//! Metrics as a scraper sees them, their documentation, and the access log in a real file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tiercel::body::BodyError;
use tiercel::config::settings::{self, AccessFormat, LogTarget};
use tiercel::listener::{Peer, RequestHead, Sent};
use tiercel::observe::access_log::AccessLog;
use tiercel::observe::metrics::{
    Bound, Eviction, FleetUsage, FollowOutcome, Gauges, Metrics, RefreshOutcome, SERIES, StaleReason, TierUsage, UPSTREAM_ERRORS,
};
use tiercel::proxy::outcome::{CacheResult, Outcome, RouteId, Source};
use tiercel::semantics::storage::NotStored;
use tiercel::semantics::{Fields, Method, StatusCode, name};
use tiercel::upstream::FetchError;

/// A scrape, parsed strictly: families with help and type, samples by name and labels.
#[derive(Default)]
struct Scrape {
    /// Type and help by name.
    families: BTreeMap<String, (String, String)>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(metrics: &Metrics) -> Self {
        let mut scrape = Self::default();
        let mut help = None;
        let text = metrics.render();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = Some(rest.split_once(' ').unwrap_or_else(|| panic!("{line}")));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let (helped, text) = help.take().unwrap_or_else(|| panic!("{name} has no help"));
                assert_eq!(helped, name);
                let before = scrape.families.insert(name.to_owned(), (kind.to_owned(), text.to_owned()));
                assert!(before.is_none(), "{name} twice");
            } else {
                scrape.sample(line);
            }
        }
        scrape
    }

    fn sample(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        check_labels(labels);
        let family =
            ["_bucket", "_sum", "_count"].iter().filter_map(|end| name.strip_suffix(end)).find(|base| self.families.contains_key(*base));
        let (kind, _) = &self.families.get(family.unwrap_or(name)).unwrap_or_else(|| panic!("{line} belongs to no family"));
        assert_eq!(family.is_some(), kind == "histogram", "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(self.samples.insert(series.to_owned(), value).is_none(), "{series} twice");
    }

    fn value(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("{series} is not there"))
    }

    /// Names of the labels of a family's samples.
    fn labels(&self, family: &str) -> BTreeSet<String> {
        let samples = self.samples.keys().filter_map(|series| {
            let (name, labels) = series.split_once('{')?;
            (name == family || name.strip_prefix(family).is_some_and(|end| end == "_count")).then(|| labels.trim_end_matches('}'))
        });
        samples.flat_map(check_labels).collect()
    }
}

/// `a="b",c="d"` and nothing else; the names.
fn check_labels(mut labels: &str) -> Vec<String> {
    let mut names = Vec::new();
    while !labels.is_empty() {
        let (name, rest) = labels.split_once("=\"").unwrap_or_else(|| panic!("{labels}"));
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        names.push(name.to_owned());
        let mut escaped = false;
        let end = rest.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        labels = &rest[end.unwrap() + 1..];
        labels = labels.strip_prefix(',').unwrap_or(labels);
    }
    names
}

struct Scripted;

impl Gauges for Scripted {
    fn memory_tier(&self) -> TierUsage {
        TierUsage { bytes: 10, limit_bytes: 11, responses: 12 }
    }
    fn fill_memory(&self) -> (u64, u64) {
        (13, 14)
    }
    fn pages(&self) -> u64 {
        4096
    }
    fn pinned_memory(&self) -> u64 {
        20
    }
    fn flights(&self) -> (usize, usize) {
        (15, 16)
    }
    fn markers(&self) -> usize {
        17
    }
    fn journal(&self) -> (usize, u64) {
        (18, 19)
    }
    fn dictionaries(&self) -> (u64, u64) {
        (26, 27)
    }
    fn rate_limit_callers(&self) -> u64 {
        21
    }
    fn fleet(&self) -> FleetUsage {
        FleetUsage { trusted: true, remembered: true, epoch: 22, applied_ms: 23, untold: 24, lost: 25 }
    }
}

/// Does everything that can be counted, once.
fn everything(metrics: &Metrics) {
    let route = metrics.route("shop", "default");
    metrics.request(0, route, CacheResult::Hit, Source::Memory, StatusCode::OK, 100, 60_000);
    Bound::ALL.iter().for_each(|bound| metrics.bound(*bound));
    NotStored::ALL.iter().for_each(|reason| metrics.not_stored(*reason));
    FollowOutcome::ALL.iter().for_each(|outcome| metrics.followed(*outcome, Duration::from_millis(3)));
    RefreshOutcome::ALL.iter().for_each(|outcome| metrics.refreshed(*outcome));
    StaleReason::ALL.iter().for_each(|reason| metrics.stale_served(*reason));
    metrics.refused("header_bytes", 431);
    metrics.tls.certificate_expires("https", "shop.pem", 86_400);
    metrics.tls.revocation_expires("https", "clients.crl", 3600);
    metrics.acme.waits("acme/shop.example.pem", 1_800_000_000, 0);
    metrics.connection_opened();
    metrics.connection_opened();
    metrics.connection_closed();
    metrics.flight_led();
    metrics.stored(2000);
    Eviction::ALL.iter().for_each(|eviction| metrics.evicted(*eviction));
    let exchanges = metrics.upstream("app");
    exchanges.count(Ok(StatusCode::OK), Some(Duration::from_millis(1)), Duration::from_millis(20));
    exchanges.count(Err("dns_error"), None, Duration::ZERO);
    metrics.upstream_retry("app", "connection_terminated");
    let gauges = metrics.connection_gauges("app");
    gauges.idle.add(3);
    gauges.idle.dec();
    let recovery = metrics.recovery_gauges("app");
    recovery.fetches.inc();
    recovery.waiting.inc();
    metrics.upstream_dropped("app", tiercel::observe::metrics::Dropped::Surplus);
    metrics.purged("url", "hard");
    metrics.unsafe_invalidation();
    let limit = metrics.rate_limit_counters("shop");
    limit.rejections.inc();
    limit.uncounted.inc();
    metrics.panicked();
    metrics.access_log_unwritten(7);
    metrics.reloaded(true, "abc");
    metrics.observe_gauges(Arc::new(Scripted));
}

#[test]
fn every_method_counts_where_it_says() {
    let metrics = Metrics::new(2);
    everything(&metrics);
    let scrape = Scrape::of(&metrics);
    for (series, want) in [
        (r#"tiercel_requests_total{site="shop",route="default",result="hit",tier="memory",code="2xx"}"#, 1.0),
        (r#"tiercel_response_bytes_total{site="shop",route="default",result="hit",tier="memory"}"#, 100.0),
        (r#"tiercel_request_duration_seconds_bucket{site="shop",route="default",result="hit",le="0.00005"}"#, 0.0),
        (r#"tiercel_request_duration_seconds_bucket{site="shop",route="default",result="hit",le="0.0001"}"#, 1.0),
        (r#"tiercel_request_duration_seconds_bucket{site="shop",route="default",result="hit",le="+Inf"}"#, 1.0),
        (r#"tiercel_request_duration_seconds_sum{site="shop",route="default",result="hit"}"#, 0.00006),
        (r#"tiercel_request_duration_seconds_count{site="shop",route="default",result="hit"}"#, 1.0),
        (r#"tiercel_bound_reached_total{bound="upstream_queue_timeout"}"#, 1.0),
        (r#"tiercel_cache_not_stored_total{reason="SET-COOKIE"}"#, 1.0),
        (r#"tiercel_cache_stores_total{outcome="stored",tier="memory"}"#, 1.0),
        (r#"tiercel_cache_stores_total{outcome="rejected",tier="memory"}"#, 1.0),
        (r#"tiercel_cache_written_bytes_total{tier="memory"}"#, 2000.0),
        (r#"tiercel_cache_evictions_total{reason="size",tier="memory"}"#, 1.0),
        (r#"tiercel_cache_evictions_total{reason="removed",tier="memory"}"#, 1.0),
        (r#"tiercel_cache_stale_served_total{reason="while_revalidate"}"#, 1.0),
        (r#"tiercel_cache_refresh_total{outcome="not_modified"}"#, 1.0),
        ("tiercel_coalesce_leaders_total", 1.0),
        (r#"tiercel_coalesce_followers_total{outcome="led_anew"}"#, 1.0),
        ("tiercel_coalesce_wait_seconds_count", 7.0),
        ("tiercel_connections", 1.0),
        (r#"tiercel_refused_total{code="4xx",reason="header_bytes"}"#, 1.0),
        (r#"tiercel_upstream_requests_total{code="2xx",upstream="app"}"#, 1.0),
        (r#"tiercel_upstream_errors_total{error="dns_error",upstream="app"}"#, 1.0),
        (r#"tiercel_upstream_retries_total{reason="connection_terminated",upstream="app"}"#, 1.0),
        (r#"tiercel_upstream_connections{state="idle",upstream="app"}"#, 2.0),
        (r#"tiercel_upstream_seconds_count{phase="connect",upstream="app"}"#, 1.0),
        (r#"tiercel_upstream_seconds_count{phase="first_byte",upstream="app"}"#, 1.0),
        (r#"tiercel_purge_requests_total{kind="url",mode="hard"}"#, 1.0),
        ("tiercel_unsafe_invalidations_total", 1.0),
        ("tiercel_panics_total", 1.0),
        (r#"tiercel_access_log_lost_total{reason="write"}"#, 7.0),
        ("tiercel_config_last_reload_success", 1.0),
        (r#"tiercel_config_hash_info{hash="abc"}"#, 1.0),
        (r#"tiercel_tier_stored_bytes{tier="memory"}"#, 10.0),
        (r#"tiercel_tier_limit_bytes{tier="memory"}"#, 11.0),
        (r#"tiercel_tier_stored_responses{tier="memory"}"#, 12.0),
        ("tiercel_fill_bytes", 13.0),
        ("tiercel_fill_limit_bytes", 14.0),
        ("tiercel_pinned_bytes", 20.0),
        ("tiercel_coalesce_in_flight", 15.0),
        ("tiercel_coalesce_waiting", 16.0),
        ("tiercel_markers", 17.0),
        ("tiercel_journal_entries", 18.0),
        ("tiercel_journal_folded_total", 19.0),
    ] {
        assert_eq!(scrape.value(series), want, "{series}");
    }
    assert!(scrape.value("tiercel_config_last_reload_timestamp_seconds") > 1.7e9);
    assert!(scrape.value("process_resident_memory_bytes") > 0.0);
}

#[test]
fn enums_and_configured_names_show_zeros_from_the_first_start() {
    let metrics = Metrics::new(1);
    metrics.route("shop", "assets");
    metrics.upstream("app");
    let scrape = Scrape::of(&metrics);
    let pairs =
        [("hit", "memory"), ("miss", "upstream"), ("miss", "flight"), ("stale", "memory"), ("bypass", "upstream"), ("error", "tiercel")];
    for (result, tier) in pairs {
        let labels = format!(r#"{{site="shop",route="assets",result="{result}",tier="{tier}""#);
        assert_eq!(scrape.value(&format!(r#"tiercel_requests_total{labels},code="2xx"}}"#)), 0.0);
        assert_eq!(scrape.value(&format!("tiercel_response_bytes_total{labels}}}")), 0.0);
    }
    for bound in Bound::ALL {
        assert_eq!(scrape.value(&format!(r#"tiercel_bound_reached_total{{bound="{}"}}"#, bound.as_str())), 0.0);
    }
    for reason in NotStored::ALL {
        assert_eq!(scrape.value(&format!(r#"tiercel_cache_not_stored_total{{reason="{}"}}"#, reason.as_str())), 0.0);
    }
    let evictions: BTreeSet<_> = scrape.samples.keys().filter(|series| series.starts_with("tiercel_cache_evictions_total")).collect();
    let reasons = Eviction::ALL.map(|eviction| format!(r#"tiercel_cache_evictions_total{{reason="{}",tier="memory"}}"#, eviction.as_str()));
    assert_eq!(evictions, reasons.iter().collect());
    for error in UPSTREAM_ERRORS {
        assert_eq!(scrape.value(&format!(r#"tiercel_upstream_errors_total{{error="{error}",upstream="app"}}"#)), 0.0);
    }
    for series in [r#"tiercel_purge_requests_total{kind="everything",mode="soft"}"#, "tiercel_panics_total", "tiercel_markers"] {
        assert_eq!(scrape.value(series), 0.0);
    }
    assert_eq!(scrape.value(&format!(r#"tiercel_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"))), 1.0);
}

#[test]
fn documentation_and_scrape_name_the_same_series() {
    let metrics = Metrics::new(1);
    everything(&metrics);
    let scrape = Scrape::of(&metrics);
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let mut documented = BTreeMap::new();
    for row in document.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("{row}") };
        let labels: BTreeSet<_> =
            labels.split(", ").filter(|label| !label.is_empty()).map(|label| label.trim_matches('`').to_owned()).collect();
        assert_eq!(scrape.labels(name.trim_matches('`')), labels, "labels of {name}");
        documented.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), help.to_owned()));
    }
    assert_eq!(documented, scrape.families);
    let declared: BTreeSet<_> = SERIES.iter().map(|series| series.name.to_owned()).collect();
    let own: BTreeSet<_> = scrape.families.into_keys().filter(|name| !name.starts_with("process_")).collect();
    assert_eq!(declared, own);
}

#[test]
fn names_keep_their_ids_and_odd_names_are_escaped() {
    let metrics = Metrics::new(1);
    let first = metrics.route("shop", "a");
    let odd = metrics.route("sh\"op\\\n", "b");
    assert_eq!(metrics.route("shop", "a"), first);
    assert_ne!(first, odd);
    assert_ne!(first, RouteId::default(), "requests without a route are not counted for the first");
    let (site, route) = metrics.route_names(first);
    assert_eq!((&*site, &*route), ("shop", "a"));
    assert_eq!(metrics.route_names_ref(RouteId(u32::MAX)), ("none", "none"));
    metrics.request(0, odd, CacheResult::Local, Source::Tiercel, StatusCode::NOT_FOUND, 0, 1);
    let scrape = Scrape::of(&metrics);
    assert_eq!(scrape.value(r#"tiercel_requests_total{site="sh\"op\\\n",route="b",result="local",tier="tiercel",code="4xx"}"#), 1.0);
}

#[test]
fn a_refused_reload_keeps_the_hash_that_is_in_use() {
    let metrics = Metrics::new(1);
    metrics.reloaded(true, "first");
    metrics.reloaded(false, "broken");
    let scrape = Scrape::of(&metrics);
    assert_eq!(scrape.value("tiercel_config_last_reload_success"), 0.0);
    assert_eq!(scrape.value(r#"tiercel_config_hash_info{hash="first"}"#), 1.0);
    metrics.reloaded(true, "second");
    let scrape = Scrape::of(&metrics);
    assert!(!scrape.samples.contains_key(r#"tiercel_config_hash_info{hash="first"}"#));
    assert_eq!(scrape.value(r#"tiercel_config_hash_info{hash="second"}"#), 1.0);
}

#[test]
fn every_error_of_an_upstream_is_shown_from_the_start() {
    for error in [
        FetchError::Dns,
        FetchError::Refused,
        FetchError::ConnectTimeout,
        FetchError::Connect(String::new()),
        FetchError::QueueTimeout,
        FetchError::QueueFull,
        FetchError::ResponseTimeout,
        FetchError::Closed,
        FetchError::Reset,
        FetchError::Malformed(String::new()),
        FetchError::HeadTooLarge,
        FetchError::RequestBody(BodyError::ClientLeft),
        FetchError::TotalTimeout,
    ] {
        assert!(UPSTREAM_ERRORS.contains(&error.token()), "{error:?}");
    }
}

fn record(log: &AccessLog, target: &str) {
    let peer = Peer::plain("192.0.2.7:4711".parse().unwrap(), "192.0.2.1:80".parse().unwrap(), 0, "http");
    let mut fields = Fields::new();
    fields.append(name::HOST, "shop.example").unwrap();
    let head = RequestHead { method: Method::GET, target: target.into(), minor_version: 1, fields };
    let sent = Sent { status: StatusCode::OK, body_bytes: 1, duration_ns: 1, aborted: None };
    log.record(&peer, &head, &Outcome::default(), &sent);
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} did not come");
        std::thread::yield_now();
    }
}

#[test]
fn the_access_log_is_flushed_when_idle_and_can_be_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    let settings = settings::AccessLog { target: LogTarget::File(path.clone()), format: AccessFormat::Json, queue: 100 };
    let log = AccessLog::open(&settings, Metrics::new(2)).unwrap();
    assert!(log.enabled());
    let holds = |path: &Path, text: &str| std::fs::read_to_string(path).is_ok_and(|lines| lines.contains(text) && lines.ends_with('\n'));
    record(&log, "/before");
    wait_for("the first line", || holds(&path, "/before"));
    std::fs::rename(&path, &moved).unwrap();
    log.reopen();
    wait_for("the new file", || path.exists());
    record(&log, "/after");
    log.close();
    assert!(holds(&path, "/after") && !holds(&path, "/before") && holds(&moved, "/before") && !holds(&moved, "/after"));
}

#[test]
fn an_access_log_that_is_off_or_cannot_be_opened_says_so() {
    let off = settings::AccessLog { target: LogTarget::Off, format: AccessFormat::Json, queue: 1 };
    let log = AccessLog::open(&off, Metrics::new(1)).unwrap();
    assert!(!log.enabled());
    record(&log, "/nobody-sees-this");
    log.reopen();
    log.close();
    let missing = settings::AccessLog { target: LogTarget::File("/nonexistent/access.log".into()), ..off };
    assert_eq!(AccessLog::open(&missing, Metrics::new(1)).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
