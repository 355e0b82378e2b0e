//! Raw into settings. The only place that applies defaults, and the only one that may look at both.

mod acme;
mod cache;
mod compression;
mod fields;
mod https;
mod journal;
mod key;
mod limit;
mod matching;
mod net;
mod redis;
mod shield;
mod site;
mod table;
mod tls;

pub use limit::PURGE_BURST;

use super::files::read_text;
use super::machine;
use super::raw::*;
use super::report::Report;
use super::settings::*;
use super::shape::join;
use super::units;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use table::Table;

/// What `limit = "auto"` takes at most, and the share of what is there that it leaves alone.
const MEMORY_AUTO_MAX: u64 = 1 << 30;
const MEMORY_AUTO_SHARE: f64 = 0.60;
/// Less is not enough for the process itself.
const MEMORY_MIN: u64 = 16 << 20;
/// Most worker threads.
const THREADS_MAX: u64 = 1024;
/// Longest token or other secret.
const SECRET_BYTES_MAX: usize = 4096;
/// Longest file with a secret, white space included.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a name that becomes a label.
const NAME_BYTES_MAX: usize = 64;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Resolves everything; problems go into the report, and what has one is replaced by its default.
pub fn resolve(raw: &RawConfig, report: &mut Report) -> Settings {
    let upstreams = net::upstreams(&raw.upstreams, report);
    let server = server(&raw.server, report);
    let acme = Arc::new(acme::acme(&raw.acme, report));
    let listeners = listeners(&raw.listeners, &acme, report);
    let settings = Settings {
        admin: admin(&raw.admin, report),
        metrics: Metrics { address: net::address_or_off("metrics.address", raw.metrics.address.as_deref(), None, report) },
        memory: memory(&raw.memory, report),
        limits: limits(&raw.limits, report),
        fill: fill(&raw.fill, report),
        sites: site::sites(raw, &server.name, &upstreams, report),
        server,
        upstreams,
        purge: purge(&raw.purge, report),
        shield: shield::shield(&raw.shield, report),
        lease: redis::lease(&raw.lease, report),
        acme,
        journal: journal::journal(raw, &listeners, report),
        log: log(&raw.log, report),
        listeners,
        redis: redis::tier(&raw.cache.redis, report),
        hash: String::new(),
        warnings: Vec::new(),
    };
    check_addresses(&settings, report);
    https::check(&settings, report);
    acme::check(&settings, report);
    limit::check(&settings, report);
    shield::check_name(&settings, report);
    shield::check_patience(&settings, report);
    shield::check_warmth(&settings, report);
    journal::check_node(&raw.journal, &settings, report);
    settings
}

fn server(raw: &RawServer, report: &mut Report) -> Server {
    let name = raw.name.clone().unwrap_or_else(|| "tiercel".into());
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(crate::semantics::fields::is_token_byte) {
        report.problem(
            "server.name",
            "not a token",
            format!("\"{name}\""),
            "1 to 64 letters, digits and -._~!#$%&'*+^`|",
            "write a short name without spaces",
        );
    }
    let mut table = Table::new(report, "server");
    let certificate_poll = table.timeout_or_off("certificate_poll", raw.certificate_poll.as_ref(), Some(secs(5)));
    Server {
        workers: threads("workers", raw.workers.as_ref(), machine::cores(), &mut table),
        drain_delay: table.duration("drain_delay", raw.drain_delay.as_ref(), Duration::ZERO),
        drain_timeout: table.duration("drain_timeout", raw.drain_timeout.as_ref(), secs(30)),
        runtime: match raw.runtime {
            None | Some(RawRuntime::PerCore) => Runtime::PerCore,
            Some(RawRuntime::Shared) => Runtime::Shared,
        },
        trusted_proxies: net::networks("server.trusted_proxies", raw.trusted_proxies.as_deref().unwrap_or_default(), report),
        lenient_path: raw.lenient_path.unwrap_or(false),
        certificate_poll,
        name,
    }
}

fn threads(key: &str, raw: Option<&RawWorkers>, auto: usize, table: &mut Table<'_>) -> usize {
    let Some(RawWorkers(value)) = raw else { return auto };
    match value.as_u64() {
        Some(count) if (1..=THREADS_MAX).contains(&count) => count as usize,
        None if value == "auto" => auto,
        _ => {
            table.wrong(key, "not a number of threads", value, "1 to 1024, or \"auto\"", "write \"auto\" for what the cores are good for");
            1
        }
    }
}

fn listeners(raw: &BTreeMap<String, RawListener>, acme: &Acme, report: &mut Report) -> Vec<Listener> {
    if raw.is_empty() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        return vec![Listener {
            name: "http".into(),
            address: ListenAddress::Tcp(address),
            kind: ListenerKind::Clients,
            h2c: false,
            http3: None,
            proxy_protocol: Vec::new(),
            redirect_to_https: None,
            tls: None,
        }];
    }
    let listener = |(name, raw): (&String, &RawListener)| {
        let path = join("listeners", name);
        label(&path, name, report);
        let Some(address) = raw.address.as_deref() else {
            report.problem(&path, "a listener without an address", "", net::ADDRESS_ALLOWED, "write address = \"127.0.0.1:8080\"");
            return None;
        };
        let address = net::listen_address(&path, address, raw.socket_mode.as_deref(), report)?;
        if raw.h2c.unwrap_or(false) && raw.tls.is_some() {
            let remedy = "remove h2c; tls.http2 offers HTTP/2 there";
            report.problem(&join(&path, "h2c"), "HTTP/2 in plain text on a listener with TLS", "true", "h2c without tls", remedy);
        }
        let http3 = http3(&path, raw, report);
        let tls = raw.tls.as_ref().map(|raw| Arc::new(tls::listener(&join(&path, "tls"), raw, acme, report)));
        let announcing = raw.proxy_protocol.as_deref().unwrap_or_default();
        let proxy_protocol = net::networks(&join(&path, "proxy_protocol"), announcing, report);
        let redirect_to_https = https::redirect(&path, raw.redirect_to_https.as_ref(), None, report);
        let (kind, h2c) = (ListenerKind::Clients, raw.h2c.unwrap_or(false));
        if http3.is_some() && tls.as_ref().is_some_and(|tls| tls.client_certificates.is_some()) {
            let remedy = "remove http3, or give it a listener that asks for no certificates";
            report.problem(&join(&path, "http3"), "clients are not asked for certificates over HTTP/3", "true", "false", remedy);
        }
        Some(Listener { name: name.clone(), address, kind, h2c, http3, proxy_protocol, redirect_to_https, tls })
    };
    raw.iter().filter_map(listener).collect()
}

fn http3(path: &str, raw: &RawListener, report: &mut Report) -> Option<Http3> {
    if !raw.http3.unwrap_or(false) {
        if raw.http3_port.is_some() || raw.http3_retry.is_some() {
            report.problem(
                path,
                "keys for HTTP/3 on a listener without it",
                "http3_port or http3_retry",
                "with http3 = true",
                "write http3 = true",
            );
        }
        return None;
    }
    let mut refuse = |what: &str, allowed: &str, remedy: &str| report.problem(&join(path, "http3"), what, "true", allowed, remedy);
    if !cfg!(feature = "http3") {
        refuse("this build has no HTTP/3", "false", "take the image, or build with `cargo build --release --features http3`");
    }
    if raw.tls.is_none() {
        refuse("HTTP/3 is always encrypted", "a listener with tls", "add [listeners.NAME.tls] with a certificate, or remove http3");
    }
    if raw.address.as_deref().is_some_and(|address| address.starts_with(ListenAddress::UNIX)) {
        refuse("HTTP/3 comes over UDP", "a listener with IP address and port", "remove http3, or give it a listener of its own");
    }
    if raw.proxy_protocol.is_some() {
        refuse(
            "the PROXY protocol does not come over UDP",
            "http3 without proxy_protocol",
            "remove one of the two, or give HTTP/3 a listener of its own",
        );
    }
    Some(Http3 { port: raw.http3_port.filter(|port| *port > 0), retry: raw.http3_retry.unwrap_or(false) })
}

fn admin(raw: &RawAdmin, report: &mut Report) -> Admin {
    let default = Some(SocketAddr::from(([127, 0, 0, 1], 9180)));
    let address = net::address_or_off("admin.address", raw.address.as_deref(), default, report);
    let token = secret("admin.token", raw.token.as_deref(), raw.token_file.as_deref(), report);
    let is_open = address.is_some_and(|address| !address.ip().is_loopback());
    if is_open && raw.token.is_none() && raw.token_file.is_none() {
        report.problem(
            "admin.address",
            "an admin listener that others can reach needs a token",
            raw.address.clone().unwrap_or_default(),
            "a loopback address, or any address with admin.token_file",
            "write token_file = \"/run/secrets/tiercel-admin\" beside it, or address = \"127.0.0.1:9180\"; for metrics alone use [metrics] address",
        );
    }
    Admin { address, token }
}

/// A secret given as it is or by file; white space at the end of a file is not part of it.
fn secret(path: &str, literal: Option<&str>, file: Option<&str>, report: &mut Report) -> Option<Secret> {
    let file_path = format!("{path}_file");
    let text = match (literal, file) {
        (Some(_), Some(file)) => {
            let remedy = format!("remove one of {path} and {file_path}");
            report.problem(&file_path, "a secret given twice", format!("\"{file}\""), "one of the two", remedy);
            return None;
        }
        (Some(literal), None) => literal.to_owned(),
        (None, Some(file)) => match read_text(&report.directory(&file_path).join(file), SECRET_FILE_BYTES_MAX) {
            Ok(text) => text.trim_end().to_owned(),
            Err(error) => {
                report.problem(
                    &file_path,
                    format!("cannot be read: {error}"),
                    format!("\"{file}\""),
                    "a readable file",
                    "create it, or correct the name",
                );
                return None;
            }
        },
        (None, None) => return None,
    };
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic());
    if text.is_empty() || text.len() > SECRET_BYTES_MAX || !is_plain {
        let at = if file.is_some() { file_path.as_str() } else { path };
        report.problem(
            at,
            "not usable as a token",
            "***",
            "1 to 4096 visible ASCII characters without spaces",
            "make a new one, for example with: openssl rand -hex 32",
        );
        return None;
    }
    Some(Secret::new(text))
}

/// A shorter secret can be guessed.
const FLEET_SECRET_BYTES_MIN: usize = 16;
const FLEET_SECRET: &str = "16 to 4096 visible ASCII characters, the same on all nodes";
const FLEET_SECRET_REMEDY: &str = "make one, for example with: openssl rand -hex 32, and give it to every node by a file";

/// One by which nodes know each other's word.
fn check_fleet_secret(path: &str, in_file: bool, secret: Option<&Secret>, report: &mut Report) {
    if secret.is_some_and(|secret| secret.expose().len() < FLEET_SECRET_BYTES_MIN) {
        let path = if in_file { format!("{path}_file") } else { path.to_owned() };
        report.problem(&path, "a secret that can be guessed", "***", FLEET_SECRET, FLEET_SECRET_REMEDY);
    }
}

fn memory(raw: &RawMemory, report: &mut Report) -> Memory {
    let mut table = Table::new(report, "memory");
    let stored_share = table.share("stored_share", raw.stored_share.as_ref(), 0.60);
    let fill_share = table.share("fill_share", raw.fill_share.as_ref(), 0.25);
    let pressure = table.share("pressure", raw.pressure.as_ref(), 0.95);
    let limit = memory_limit(raw.limit.as_ref(), &mut table);
    if stored_share + fill_share > 1.0 {
        let found = format!("{} and {}", units::print_share(stored_share), units::print_share(fill_share));
        table.wrong_text(
            "fill_share",
            "stored_share and fill_share are more than the whole",
            found,
            "together at most 100%",
            "lower one of them",
        );
    }
    let policy = match raw.policy {
        None | Some(RawEviction::TinyLfu) => Eviction::TinyLfu,
        Some(RawEviction::Lru) => Eviction::Lru,
    };
    Memory { limit, policy, stored_share, fill_share, pressure }
}

fn memory_limit(raw: Option<&RawMemoryLimit>, table: &mut Table<'_>) -> u64 {
    let share_of = |share: f64| (machine::memory() as f64 * share) as u64;
    let automatic = share_of(MEMORY_AUTO_SHARE).min(MEMORY_AUTO_MAX);
    let Some(RawMemoryLimit(value)) = raw else { return automatic };
    let allowed = r#"a size such as "1GiB", a share such as "60%", or "auto"; at least "16MiB""#;
    let limit = match value.as_str() {
        Some("auto") => automatic,
        Some(text) if text.trim_end().ends_with('%') => table.quantity("limit", value, units::share, allowed).map_or(automatic, share_of),
        _ => table.quantity("limit", value, units::size, allowed).unwrap_or(automatic),
    };
    if limit < MEMORY_MIN {
        table.wrong("limit", "too little to run in", value, allowed, "give more");
    }
    limit
}

fn limits(raw: &RawLimits, report: &mut Report) -> Limits {
    let (mut t, default) = (Table::new(report, "limits"), Limits::default());
    Limits {
        connections: t.count("connections", raw.connections, default.connections as u64, 1..=10_000_000) as usize,
        requests_per_connection: t.count(
            "requests_per_connection",
            raw.requests_per_connection,
            default.requests_per_connection,
            1..=u64::MAX,
        ),
        header_bytes: t.size("header_bytes", raw.header_bytes.as_ref(), default.header_bytes as u64, 512..=16 * MIB) as usize,
        header_count: t.count("header_count", raw.header_count, default.header_count as u64, 1..=10_000) as usize,
        url_bytes: t.size("url_bytes", raw.url_bytes.as_ref(), default.url_bytes as u64, 64..=MIB) as usize,
        body_bytes: t.size("body_bytes", raw.body_bytes.as_ref(), default.body_bytes, 0..=u64::MAX),
        header_timeout: t.timeout("header_timeout", raw.header_timeout.as_ref(), default.header_timeout),
        idle_timeout: t.timeout("idle_timeout", raw.idle_timeout.as_ref(), default.idle_timeout),
        body_timeout: t.timeout("body_timeout", raw.body_timeout.as_ref(), default.body_timeout),
        body_rate: t.size("body_rate", raw.body_rate.as_ref(), default.body_rate, 0..=GIB),
        write_timeout: t.timeout("write_timeout", raw.write_timeout.as_ref(), default.write_timeout),
        waiting: t.count("waiting", raw.waiting, default.waiting as u64, 0..=10_000_000) as usize,
        rate_limit_callers: t.count("rate_limit_callers", raw.rate_limit_callers, default.rate_limit_callers, 16..=100_000_000),
        compression_threads: threads("compression_threads", raw.compression_threads.as_ref(), (machine::cores() - 1).max(1), &mut t),
        dictionary_memory: t.size("dictionary_memory", raw.dictionary_memory.as_ref(), default.dictionary_memory, MIB..=64 * GIB),
        rate_limit_budget: t.timeout("rate_limit_budget", raw.rate_limit_budget.as_ref(), default.rate_limit_budget),
        http2: http2(&raw.http2, report),
    }
}

fn http2(raw: &RawHttp2, report: &mut Report) -> Http2 {
    /// RFC 9113 §6.9.1.
    const WINDOW_MAX: u64 = (1 << 31) - 1;
    let (mut t, default) = (Table::new(report, "limits.http2"), Http2::default());
    let mut window = |key, raw: &Option<RawSize>, default: u32| t.size(key, raw.as_ref(), default.into(), 16 * KIB..=WINDOW_MAX) as u32;
    let stream_window = window("stream_window", &raw.stream_window, default.stream_window);
    let connection_window = window("connection_window", &raw.connection_window, default.connection_window);
    Http2 {
        streams: t.count("streams", raw.streams, default.streams.into(), 1..=10_000) as u32,
        stream_window,
        connection_window,
        send_buffer: t.size("send_buffer", raw.send_buffer.as_ref(), default.send_buffer as u64, 16 * KIB..=16 * MIB) as usize,
        resets: t.count("resets", raw.resets, default.resets, 1..=1_000_000),
        resets_pending: t.count("resets_pending", raw.resets_pending, default.resets_pending as u64, 1..=10_000) as usize,
        errors: t.count("errors", raw.errors, default.errors as u64, 1..=1_000_000) as usize,
        idle_frames: t.count("idle_frames", raw.idle_frames, default.idle_frames, 100..=1_000_000),
        keep_alive: t.timeout("keep_alive", raw.keep_alive.as_ref(), default.keep_alive),
        keep_alive_timeout: t.timeout("keep_alive_timeout", raw.keep_alive_timeout.as_ref(), default.keep_alive_timeout),
    }
}

fn fill(raw: &RawFill, report: &mut Report) -> Fill {
    let mut t = Table::new(report, "fill");
    let fill = Fill {
        lag: t.size("lag", raw.lag.as_ref(), 4 * MIB, 64 * KIB..=GIB),
        stall: t.duration("stall", raw.stall.as_ref(), secs(2)),
        finish_rest: t.size("finish_rest", raw.finish_rest.as_ref(), MIB, 0..=u64::MAX),
        finish_share: t.share("finish_share", raw.finish_share.as_ref(), 0.5),
        range_ahead: t.size("range_ahead", raw.range_ahead.as_ref(), 4 * MIB, 0..=u64::MAX),
        marker_first: t.timeout("marker_first", raw.marker_first.as_ref(), secs(2)),
        marker_max: t.timeout("marker_max", raw.marker_max.as_ref(), secs(120)),
        marker_count: t.count("marker_count", raw.marker_count, 16_384, 1..=10_000_000) as usize,
    };
    if fill.marker_first > fill.marker_max {
        let found = format!("{} and {}", units::print_duration(fill.marker_first), units::print_duration(fill.marker_max));
        t.wrong_text("marker_max", "marker_first is longer than marker_max", found, "marker_first at most marker_max", "raise marker_max");
    }
    fill
}

fn purge(raw: &RawPurge, report: &mut Report) -> Purge {
    let is_off = raw.unsafe_methods == Some(RawUnsafeMethods::Off);
    if is_off {
        report.warn("purge.unsafe_methods", "POST, PUT and DELETE invalidate nothing, against RFC 9111 section 4.4");
    }
    let rate_limit = limit::purge(raw, report);
    let mut t = Table::new(report, "purge");
    Purge {
        bounds: PurgeBounds {
            receipts: t.count("receipts", raw.receipts, 4096, 1..=1_000_000) as usize,
            map_capacity: t.count("map_capacity", raw.map_capacity, 262_144, 16..=100_000_000) as usize,
            fold_slots: t.count("fold_slots", raw.fold_slots, 16_384, 16..=100_000_000) as usize,
            recovery: t.duration("recovery", raw.recovery.as_ref(), secs(60)),
        },
        keys: KeyBounds {
            keys_per_response: t.count("keys_per_response", raw.keys_per_response, 256, 1..=65_536) as usize,
            key_bytes: t.size("key_bytes", raw.key_bytes.as_ref(), KIB, 1..=64 * KIB) as usize,
        },
        selectors_per_call: t.count("selectors_per_call", raw.selectors_per_call, 100, 1..=100_000) as usize,
        unsafe_methods: !is_off,
        rate_limit,
    }
}

fn log(raw: &RawLog, report: &mut Report) -> Log {
    let level = raw.level.clone().unwrap_or_else(|| "info".into());
    if level.trim().is_empty() || tracing_subscriber::EnvFilter::builder().parse(&level).is_err() || !is_filter(&level) {
        let words = ["error", "warn", "info", "debug", "trace"];
        let near = super::problem::nearest(&level, words);
        let remedy = near.map_or_else(|| "write \"info\"".into(), |word| format!("did you mean \"{word}\"?"));
        report.problem(
            "log.level",
            "not a log level",
            format!("\"{level}\""),
            "error, warn, info, debug, trace, or target=level, separated by commas",
            remedy,
        );
    }
    let target = match raw.access.target.as_deref() {
        Some("off") => LogTarget::Off,
        None | Some("stdout") => LogTarget::Stdout,
        Some("") => {
            report.problem("log.access.target", "no target", "\"\"", "\"off\", \"stdout\", or a file name", "write \"off\"");
            LogTarget::Off
        }
        Some(file) => LogTarget::File(report.directory("log.access.target").join(PathBuf::from(file))),
    };
    let mut table = Table::new(report, "log.access");
    Log {
        level,
        format: match raw.format {
            None | Some(RawLogFormat::Text) => LogFormat::Text,
            Some(RawLogFormat::Json) => LogFormat::Json,
        },
        access: AccessLog {
            target,
            format: match raw.access.format {
                None | Some(RawAccessFormat::Combined) => AccessFormat::Combined,
                Some(RawAccessFormat::Json) => AccessFormat::Json,
                Some(RawAccessFormat::Ecs) => AccessFormat::Ecs,
            },
            queue: table.count("queue", raw.access.queue, 8192, 1..=10_000_000) as usize,
        },
    }
}

/// A single word is a level: the filter's own parser would take any word for the name of a target.
fn is_filter(text: &str) -> bool {
    let is_level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word.trim().to_ascii_lowercase().as_str());
    text.split(',').all(|directive| directive.rsplit_once('=').map_or_else(|| is_level(directive), |(_, level)| is_level(level)))
}

/// A name that appears in logs, metrics and paths.
fn label(path: &str, name: &str, report: &mut Report) {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain {
        report.problem(path, "not a name", format!("\"{name}\""), "1 to 64 letters, digits, '-', '_' and '.'", "choose another name");
    }
}

/// No two listeners may want the same socket; an unspecified address covers every other with its port.
fn check_addresses(settings: &Settings, report: &mut Report) {
    let mut taken: Vec<(String, ListenAddress)> = Vec::new();
    let clients = settings.listeners.iter().map(|listener| (join(&join("listeners", &listener.name), "address"), listener.address.clone()));
    let own = [
        ("admin.address", settings.admin.address),
        ("metrics.address", settings.metrics.address),
        ("shield.listen", settings.shield.listen),
    ];
    let own = own.into_iter().filter_map(|(path, address)| Some((path.to_owned(), ListenAddress::Tcp(address?))));
    for (path, address) in clients.chain(own) {
        let covers = |other: &ListenAddress| match (&address, other) {
            (ListenAddress::Tcp(address), ListenAddress::Tcp(other)) => {
                let wide = address.ip().is_unspecified() || other.ip().is_unspecified();
                address.port() != 0 && address.port() == other.port() && (wide || address.ip() == other.ip())
            }
            (ListenAddress::Unix { path, .. }, ListenAddress::Unix { path: other, .. }) => path == other,
            _ => false,
        };
        if let Some((other, _)) = taken.iter().find(|(_, other)| covers(other)) {
            let what = format!("the same address as {other}");
            report.problem(&path, what, format!("\"{address}\""), "an address of its own", "choose another port or path");
        }
        taken.push((path, address));
    }
}
