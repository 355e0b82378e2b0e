//! Where Redis is, and how to connect.

use super::table::Table;
use super::{check_fleet_secret, secret, secs};
use crate::config::raw::{RawAddresses, RawCacheRedis, RawLease, RawRedisMode, RawRedisTls, RedisKeys};
use crate::config::report::{Report, shown};
use crate::config::settings::{Lease, PemFile, Redis, RedisAddress, RedisAdmission, RedisMode, RedisTier, RedisTls};
use crate::config::shape::join;
use crate::config::units::print_duration;
use crate::semantics::fields::is_token_byte;
use std::time::Duration;

const ADDRESS_ALLOWED: &str = r#""redis://host:port", "rediss://host:port" (TLS) or "unix:/path/to/socket""#;
const PORT: u16 = 6379;
/// Servers that one deployment may name.
const ADDRESSES_MAX: usize = 64;
const PREFIX_BYTES_MAX: usize = 64;
/// Databases of a server, at most: its configuration may have fewer.
const DATABASE_MAX: u64 = 65_535;

/// `[cache.redis]` at the top.
pub fn tier(raw: &RawCacheRedis, report: &mut Report) -> Option<RedisTier> {
    let at = "cache.redis";
    let key = secret("cache.redis.seal", raw.seal.as_deref(), raw.seal_file.as_deref(), report);
    check_fleet_secret("cache.redis.seal", raw.seal_file.is_some(), key.as_ref(), report);
    let server = server(at, raw.server_keys(), report);
    if let (None, None, Some(given)) = (&server, raw.url.as_ref(), of_tier(raw).first()) {
        let remedy = "write url = \"redis://127.0.0.1:6379\" in [cache.redis]";
        report.problem(&join(at, given), "a tier without a Redis", "", "url beside it", remedy);
    }
    let mut table = Table::new(report, at);
    let tier = RedisTier {
        lookup_budget: table.timeout("lookup_budget", raw.lookup_budget.as_ref(), Duration::from_millis(25)),
        remember_misses: table.duration("remember_misses", raw.remember_misses.as_ref(), secs(1)),
        queue_entries: table.count("queue_entries", raw.queue_entries, 16_384, 1..=10_000_000) as usize,
        queue_bytes: table.size("queue_bytes", raw.queue_bytes.as_ref(), 64 << 20, 1 << 20..=1 << 40),
        key,
        server: server?,
    };
    Some(tier)
}

/// `[lease]`.
pub fn lease(raw: &RawLease, report: &mut Report) -> Lease {
    let mut table = Table::new(report, "lease");
    let lease = Lease {
        enabled: raw.enabled.unwrap_or(true),
        wait: table.timeout("wait", raw.wait.as_ref(), secs(2)),
        ttl: table.duration("ttl", raw.ttl.as_ref(), secs(1)),
        kept: table.timeout("kept", raw.kept.as_ref(), secs(2)),
    };
    if !LEASE_TTL.contains(&lease.ttl) {
        let found = format!("\"{}\"", print_duration(lease.ttl));
        table.wrong_text("ttl", "out of bounds", found, "100ms to 1m", "write for example \"1s\"");
    }
    lease
}

/// A lease is renewed three times in its time, and one that nobody renews any more holds up who waits.
const LEASE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=secs(60);

/// The keys of the tier that are there and count at the top only.
fn of_tier(raw: &RawCacheRedis) -> Vec<&'static str> {
    let all = [
        ("lookup_budget", raw.lookup_budget.is_some()),
        ("remember_misses", raw.remember_misses.is_some()),
        ("queue_entries", raw.queue_entries.is_some()),
        ("queue_bytes", raw.queue_bytes.is_some()),
        ("seal", raw.seal.is_some()),
        ("seal_file", raw.seal_file.is_some()),
    ];
    all.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect()
}

/// What of a `cache.redis` table is of sites and routes, too.
pub fn apply(at: &str, raw: &RawCacheRedis, admission: &mut RedisAdmission, report: &mut Report) {
    check_level(at, raw, report);
    admission.enabled = raw.enabled.unwrap_or(admission.enabled);
    if let Some(types) = &raw.content_types {
        for (index, text) in types.iter().enumerate().filter(|(_, text)| !is_type(text)) {
            let (at, found) = (format!("{}[{index}]", join(at, "content_types")), format!("\"{text}\""));
            report.problem(&at, "not a content type", found, "\"text/html\", or \"image/*\" for all images", "correct it, or remove it");
        }
        admission.content_types = types.iter().map(|text| text.to_ascii_lowercase()).collect();
    }
    let mut table = Table::new(report, at);
    let most = &mut admission.max_object_bytes;
    *most = table.size("max_object_size", raw.max_object_size.as_ref(), *most, 0..=OBJECT_BYTES_MAX);
    admission.max_ttl = table.timeout("max_ttl", raw.max_ttl.as_ref(), admission.max_ttl);
}

/// Longest body that may be in Redis: it stands in a queue before.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

fn is_type(text: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_token_byte);
    text.split_once('/').is_some_and(|(kind, sub)| is_name(kind) && (sub == "*" || is_name(sub)))
}

/// A connection; `None` where none is wanted, or where it cannot be.
pub fn server(at: &str, keys: RedisKeys<'_>, report: &mut Report) -> Option<Redis> {
    let Some(url) = keys.url else {
        if let Some(key) = given(&keys).first() {
            report.problem(
                &join(at, key),
                "a connection to nowhere",
                String::new(),
                "url beside it",
                format!("write url = \"redis://127.0.0.1:6379\" in [{at}]"),
            );
        }
        return None;
    };
    let addresses = addresses(&join(at, "url"), url, report);
    let mode = mode(at, &keys, &addresses, report);
    let prefix = keys.prefix.unwrap_or("tiercel").to_owned();
    let is_plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'));
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !is_plain {
        let allowed = "1 to 64 letters, digits and - _ . :";
        report.problem(&join(at, "prefix"), "not a prefix of keys", format!("\"{prefix}\""), allowed, "write for example \"shop\"");
    }
    let password = secret(&join(at, "password"), keys.password.0, keys.password.1, report);
    if keys.user.is_some() && keys.password == (None, None) {
        report.problem(&join(at, "user"), "a user without a password", "", "password_file beside it", "add password_file");
    }
    let sentinel_password = secret(&join(at, "sentinel_password"), keys.sentinel_password.0, keys.sentinel_password.1, report);
    let tls = tls(&join(at, "tls"), keys.tls, &addresses, report);
    let mut table = Table::new(report, at);
    let database = table.count("database", keys.database, 0, 0..=DATABASE_MAX) as u32;
    let connect_timeout = table.timeout("connect_timeout", keys.connect_timeout, secs(1));
    if addresses.is_empty() {
        return None;
    }
    Some(Redis {
        mode: mode?,
        addresses,
        sentinel_password,
        user: keys.user.map(str::to_owned),
        password,
        database,
        tls,
        prefix,
        connect_timeout,
    })
}

/// In sites and routes Redis is used or not; where it is stands at the top.
fn check_level(at: &str, raw: &RawCacheRedis, report: &mut Report) {
    if at == "cache.redis" {
        return;
    }
    let keys = raw.server_keys();
    let mut given = given(&keys);
    given.extend(keys.url.map(|_| "url"));
    given.extend(of_tier(raw));
    for key in given {
        let path = join(at, key);
        report.problem(&path, "the fleet shares one Redis", "", "this key in [cache.redis] at the top", "move it to [cache.redis]");
    }
}

/// The keys besides `url` that are there.
fn given(keys: &RedisKeys<'_>) -> Vec<&'static str> {
    let all = [
        ("mode", keys.mode.is_some()),
        ("sentinel_master", keys.sentinel_master.is_some()),
        ("sentinel_password", keys.sentinel_password.0.is_some()),
        ("sentinel_password_file", keys.sentinel_password.1.is_some()),
        ("user", keys.user.is_some()),
        ("password", keys.password.0.is_some()),
        ("password_file", keys.password.1.is_some()),
        ("database", keys.database.is_some()),
        ("tls", *keys.tls != RawRedisTls::default()),
        ("prefix", keys.prefix.is_some()),
        ("connect_timeout", keys.connect_timeout.is_some()),
    ];
    all.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect()
}

fn addresses(path: &str, raw: &RawAddresses, report: &mut Report) -> Vec<RedisAddress> {
    let values = raw.0.as_array().map_or_else(|| vec![&raw.0], |list| list.iter().collect());
    if values.is_empty() || values.len() > ADDRESSES_MAX {
        report.problem(path, "no address, or too many", values.len().to_string(), format!("1 to {ADDRESSES_MAX}"), "name some");
    }
    let mut addresses = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let path = if raw.0.is_array() { format!("{path}[{index}]") } else { path.to_owned() };
        let text = value.as_str().unwrap_or_default();
        match address(text) {
            Some(address) => addresses.push(address),
            None if text.contains('@') => {
                let remedy = "leave the login out of it: write user and password_file beside it";
                report.problem(&path, "an address with a login", "***", ADDRESS_ALLOWED, remedy);
            }
            None => {
                report.problem(&path, "not an address of Redis", shown(value), ADDRESS_ALLOWED, "write \"redis://127.0.0.1:6379\"");
            }
        }
    }
    addresses
}

/// Scheme, host and port, and nothing else; without a port Redis' own.
fn address(text: &str) -> Option<RedisAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return path.starts_with('/').then(|| RedisAddress::Unix { path: path.into() });
    }
    let (scheme, authority) = text.split_once("://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some(""))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let is_name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if host.is_empty() || !(host.contains(':') || is_name(host)) {
        return None;
    }
    let port = if port.is_empty() { PORT } else { port.parse().ok().filter(|port| *port > 0)? };
    let host = host.to_owned();
    match scheme {
        "redis" | "valkey" => Some(RedisAddress::Tcp { host, port }),
        "rediss" | "valkeys" => Some(RedisAddress::Tls { host, port }),
        _ => None,
    }
}

fn mode(at: &str, keys: &RedisKeys<'_>, addresses: &[RedisAddress], report: &mut Report) -> Option<RedisMode> {
    let mode = keys.mode.unwrap_or(RawRedisMode::Standalone);
    let has_sentinel_key = keys.sentinel_master.is_some() || keys.sentinel_password != (None, None);
    if mode != RawRedisMode::Sentinel && has_sentinel_key {
        let remedy = "write mode = \"sentinel\", or remove what is Sentinel's";
        report.problem(&join(at, "sentinel_master"), "Sentinel without its mode", "", "mode = \"sentinel\" beside it", remedy);
    }
    if mode == RawRedisMode::Standalone && addresses.len() > 1 {
        let remedy = "name one, or write mode = \"cluster\" or mode = \"sentinel\"";
        report.problem(&join(at, "url"), "several servers", addresses.len().to_string(), "one for a standalone server", remedy);
    }
    if mode == RawRedisMode::Cluster {
        if keys.database.is_some_and(|number| number > 0) {
            report.problem(&join(at, "database"), "a Cluster has no other database", "", "0", "remove it");
        }
        if addresses.iter().any(|address| matches!(address, RedisAddress::Unix { .. })) {
            report.problem(&join(at, "url"), "a Cluster is found by its addresses", "", "redis:// or rediss://", "name hosts and ports");
        }
    }
    match mode {
        RawRedisMode::Standalone => Some(RedisMode::Standalone),
        RawRedisMode::Cluster => Some(RedisMode::Cluster),
        RawRedisMode::Sentinel => match keys.sentinel_master {
            Some(master) if !master.is_empty() => Some(RedisMode::Sentinel { master: master.to_owned() }),
            _ => {
                let remedy = "write sentinel_master = \"mymaster\", as in sentinel.conf";
                report.problem(&join(at, "sentinel_master"), "no master is named", "", "what Sentinel calls the master", remedy);
                None
            }
        },
    }
}

fn tls(at: &str, raw: &RawRedisTls, addresses: &[RedisAddress], report: &mut Report) -> RedisTls {
    let is_encrypted = addresses.iter().any(|address| matches!(address, RedisAddress::Tls { .. }));
    if is_encrypted && addresses.iter().any(|address| !matches!(address, RedisAddress::Tls { .. })) {
        let at = at.trim_end_matches(".tls");
        report.problem(&join(at, "url"), "some addresses with TLS and some without", "", "all of one kind", "write rediss:// for all");
    }
    if *raw != RawRedisTls::default() && !is_encrypted && !addresses.is_empty() {
        report.problem(at, "TLS for a connection without it", "", "url = \"rediss://...\"", "write rediss://, or remove this table");
    }
    if raw.certificate.is_some() != raw.key.is_some() {
        report.problem(at, "a certificate without its key, or the other way round", "", "certificate and key, or none", "add the other");
    }
    let mut file = |key: &str, path: &Option<String>| {
        let given = path.as_ref()?;
        let at = join(at, key);
        let path = report.directory(&at).join(given);
        match PemFile::read(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                let what = format!("cannot be read: {error}");
                report.problem(&at, what, format!("\"{given}\""), "a readable PEM file", "create it, or correct the name");
                None
            }
        }
    };
    RedisTls { roots: file("roots", &raw.roots), certificate: file("certificate", &raw.certificate), key: file("key", &raw.key) }
}
