//! Addresses, networks, hosts, upstreams.

use super::table::Table;
use super::{KIB, MIB, label, secs};
use crate::config::problem::nearest;
use crate::config::raw::{RawBalance, RawCodec, RawUpstream, RawUpstreamHttp, RawUpstreamHttp2};
use crate::config::report::Report;
use crate::config::settings::{Balance, Endpoint, Upstream, UpstreamCodec, UpstreamHttp, UpstreamHttp2};
use crate::config::shape::join;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What a listening address may be.
pub const ADDRESS_ALLOWED: &str = r#"an IP address and a port: "127.0.0.1:8080", "[::1]:8080", "0.0.0.0:0""#;
/// Endpoints of one upstream.
const ENDPOINTS_MAX: usize = 1024;

/// A listening address.
pub fn address(path: &str, text: &str, report: &mut Report) -> Option<SocketAddr> {
    text.parse().map_err(|_| report.problem(path, "not an address", format!("\"{text}\""), ADDRESS_ALLOWED, address_remedy(text))).ok()
}

fn address_remedy(text: &str) -> String {
    let bare = text.trim_start_matches("http://").trim_end_matches('/');
    let guess = match bare.rsplit_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        Some(("*", port)) => format!("0.0.0.0:{port}"),
        None if bare.parse::<u16>().is_ok() => format!("127.0.0.1:{bare}"),
        None if bare.parse::<IpAddr>().is_ok() => format!("{bare}:8080"),
        _ => bare.to_owned(),
    };
    if guess.parse::<SocketAddr>().is_ok() { format!("write \"{guess}\"") } else { "write an IP address, not a name".into() }
}

/// A listening address, or the word `off`.
pub fn address_or_off(path: &str, text: Option<&str>, default: Option<SocketAddr>, report: &mut Report) -> Option<SocketAddr> {
    match text {
        None => default,
        Some("off") => None,
        Some(text) => address(path, text, report),
    }
}

/// Networks as `10.0.0.0/8`; an address alone is a network of one.
pub fn networks(path: &str, texts: &[String], report: &mut Report) -> Vec<IpNet> {
    let network = |(index, text): (usize, &String)| {
        let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if parsed.is_none() {
            let allowed = r#"a network or an address: "10.0.0.0/8", "::1""#;
            report.problem(&format!("{path}[{index}]"), "not a network", format!("\"{text}\""), allowed, "write an IP address, not a name");
        }
        parsed
    };
    texts.iter().enumerate().filter_map(network).collect()
}

/// Hosts of a site: lower case, no port; `*.suffix` for all below a name.
pub fn hosts(path: &str, texts: &[String], report: &mut Report) -> Vec<String> {
    let host = |(index, text): (usize, &String)| {
        if let Some(host) = site_host(text) {
            return Some(host);
        }
        let lower = text.to_ascii_lowercase();
        let bare = lower.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.split(['/', '?']).next().unwrap_or_default();
        let bare = bare.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(bare, |(host, _)| host);
        let remedy = match bare {
            "*" | "" => "leave hosts empty for a site that takes every host".to_owned(),
            bare if is_host(bare.strip_prefix("*.").unwrap_or(bare)) => format!("write \"{bare}\""),
            _ => "write a host name without scheme, port and path".to_owned(),
        };
        let allowed = r#""shop.example.com", "*.example.com", "192.0.2.1", "[2001:db8::1]""#;
        report.problem(&format!("{path}[{index}]"), "not a host", format!("\"{text}\""), allowed, remedy);
        None
    };
    texts.iter().enumerate().filter_map(host).collect()
}

/// One host of a site, as targets have it; `None` where it is none.
pub fn site_host(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    // The dot of the root names the same host.
    is_host(lower.strip_prefix("*.").unwrap_or(&lower)).then(|| lower.strip_suffix('.').unwrap_or(&lower).to_owned())
}

/// A registered name, an IPv4 address, or an IPv6 address in brackets.
pub fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
            text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
        }
    }
}

/// All upstreams, in the order of their names.
pub fn upstreams(raw: &BTreeMap<String, RawUpstream>, report: &mut Report) -> Vec<Arc<Upstream>> {
    raw.iter().map(|(name, raw)| Arc::new(upstream(name, raw, report))).collect()
}

fn upstream(name: &str, raw: &RawUpstream, report: &mut Report) -> Upstream {
    let path = join("upstreams", name);
    label(&path, name, report);
    let urls = raw.endpoints.as_deref().unwrap_or_default();
    if urls.is_empty() || urls.len() > ENDPOINTS_MAX {
        let remedy = "write endpoints = [\"http://127.0.0.1:3000\"]";
        report.problem(&path, "an upstream needs endpoints", format!("{} endpoints", urls.len()), "1 to 1024 endpoints", remedy);
    }
    let at = join(&path, "endpoints");
    let endpoints: Vec<Endpoint> =
        urls.iter().enumerate().filter_map(|(index, url)| endpoint(&format!("{at}[{index}]"), url, report)).collect();
    let is_secure = endpoints.iter().any(|endpoint| endpoint.is_secure);
    if is_secure && matches!(raw.http1, Some(RawCodec::Hyper)) {
        let remedy = "leave http1 out";
        report.problem(&join(&path, "http1"), "a codec for plain text", "\"hyper\"", "\"own\" for https", remedy);
    }
    let http2 = http2(&join(&path, "http2"), &raw.http2, report);
    let tls = super::tls::upstream(&join(&path, "tls"), &raw.tls, is_secure, report);
    let mut t = Table::new(report, &path);
    Upstream {
        name: name.to_owned(),
        endpoints,
        balance: match raw.balance {
            None | Some(RawBalance::RoundRobin) => Balance::RoundRobin,
            Some(RawBalance::LeastRequests) => Balance::LeastRequests,
        },
        http: match raw.http {
            None | Some(RawUpstreamHttp::One) => UpstreamHttp::One,
            Some(RawUpstreamHttp::Two) => UpstreamHttp::Two,
            Some(RawUpstreamHttp::Auto) => UpstreamHttp::Auto,
        },
        http2,
        http1: match raw.http1 {
            None | Some(RawCodec::Own) => UpstreamCodec::Own,
            Some(RawCodec::Hyper) => UpstreamCodec::Hyper,
        },
        connections: t.count("connections", raw.connections, 256, 1..=1_000_000) as usize,
        queue: t.count("queue", raw.queue, 4096, 0..=10_000_000) as usize,
        queue_timeout: t.timeout("queue_timeout", raw.queue_timeout.as_ref(), secs(5)),
        purge_concurrency: t.count("purge_concurrency", raw.purge_concurrency, 32, 0..=1_000_000) as usize,
        purge_queue_timeout: t.timeout("purge_queue_timeout", raw.purge_queue_timeout.as_ref(), secs(30)),
        idle_connections: t.count("idle_connections", raw.idle_connections, 64, 0..=1_000_000) as usize,
        idle_timeout: t.timeout("idle_timeout", raw.idle_timeout.as_ref(), secs(30)),
        connect_timeout: t.timeout("connect_timeout", raw.connect_timeout.as_ref(), secs(3)),
        first_byte_timeout: t.timeout("first_byte_timeout", raw.first_byte_timeout.as_ref(), secs(30)),
        read_timeout: t.timeout("read_timeout", raw.read_timeout.as_ref(), secs(60)),
        total_timeout: t.timeout_or_off("total_timeout", raw.total_timeout.as_ref(), None),
        retries: t.count("retries", raw.retries, 1, 0..=10) as u32,
        header_bytes: t.size("header_bytes", raw.header_bytes.as_ref(), 64 * KIB, 512..=16 * MIB) as usize,
        header_count: t.count("header_count", raw.header_count, 200, 1..=10_000) as usize,
        tls,
    }
}

fn http2(path: &str, raw: &RawUpstreamHttp2, report: &mut Report) -> UpstreamHttp2 {
    let (mut t, default) = (Table::new(report, path), UpstreamHttp2::default());
    let window = default.stream_window.into();
    UpstreamHttp2 {
        streams: t.count("streams", raw.streams, default.streams as u64, 1..=10_000) as usize,
        stream_window: t.size("stream_window", raw.stream_window.as_ref(), window, KIB..=16 * MIB) as u32,
        keep_alive: t.timeout("keep_alive", raw.keep_alive.as_ref(), default.keep_alive),
    }
}

/// `http://host[:port]` or `https://host[:port]`.
pub fn endpoint(path: &str, url: &str, report: &mut Report) -> Option<Endpoint> {
    const ALLOWED: &str = r#""http://host:port" or "https://host:port", without a path"#;
    let mut refuse = |what: &str, remedy: String| {
        report.problem(path, what, format!("\"{url}\""), ALLOWED, remedy);
        None
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return refuse("an endpoint needs a scheme", format!("write \"http://{url}\""));
    };
    let is_secure = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return refuse("not a scheme for upstreams", format!("write \"http://{rest}\"")),
    };
    let (authority, after) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    if !matches!(after, "" | "/") {
        return refuse(
            "an endpoint has no path",
            format!("write \"{scheme}://{authority}\", and rewrite = [{{ add_prefix = \"{after}\" }}] on the route"),
        );
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok().filter(|port| *port != 0)),
        _ => (authority, Some(if is_secure { 443 } else { 80 })),
    };
    let host = host.to_ascii_lowercase();
    match port {
        None => refuse("not a port", "write a port between 1 and 65535".into()),
        Some(_) if !is_host(&host) => refuse("not a host", "write a host name or an IP address (IPv6 in brackets)".into()),
        Some(port) => Some(Endpoint { url: url.trim_end_matches('/').to_owned(), host, port, is_secure }),
    }
}

/// The upstream of this name.
pub fn find<'a>(path: &str, name: &str, upstreams: &'a [Arc<Upstream>], report: &mut Report) -> Option<&'a Arc<Upstream>> {
    let found = upstreams.iter().find(|upstream| upstream.name == name);
    if found.is_none() {
        let names: Vec<&str> = upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        let remedy = match nearest(name, names.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("add [upstreams.{name}] with endpoints = [\"http://...\"]"),
        };
        let allowed = if names.is_empty() { "no upstream is configured".into() } else { names.join(", ") };
        report.problem(path, format!("there is no upstream \"{name}\""), format!("\"{name}\""), allowed, remedy);
    }
    found
}
