//! Settings as a file would have to say them: for `config print`, for comparing, for the hash.
//!
//! Whatever is printed can be loaded again (secrets aside) and gives the same settings.

use super::resolve::PURGE_BURST;
use super::settings::*;
use super::units::{print_duration, print_rate, print_share, print_size};
use crate::semantics::class::ClientClass;
use crate::semantics::condition::ValueMatch;
use crate::semantics::key::{KeyPolicy, hash128};
use crate::semantics::policy::{AcceptEncoding, CachePolicy, ClientDirectives, Compression, Levels, SetCookie, Statuses, TtlRule};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

/// What stands for a secret.
const MASK: &str = "***";

/// Everything in effect, defaults included, secrets masked.
pub fn effective(settings: &Settings) -> Value {
    let s = settings;
    json!({
        "server": {
            "name": s.server.name,
            "workers": s.server.workers,
            "runtime": match s.server.runtime { Runtime::PerCore => "per_core", Runtime::Shared => "shared" },
            "drain_delay": print_duration(s.server.drain_delay),
            "drain_timeout": print_duration(s.server.drain_timeout),
            "trusted_proxies": networks(&s.server.trusted_proxies),
            "lenient_path": s.server.lenient_path,
            "certificate_poll": s.server.certificate_poll.map_or_else(|| "off".to_owned(), print_duration),
        },
        "listeners": s.listeners.iter().map(|l| (l.name.clone(), listener(l))).collect::<Map<_, _>>(),
        "admin": admin(&s.admin),
        "metrics": {"address": address(s.metrics.address)},
        "memory": memory(&s.memory),
        "limits": limits(&s.limits),
        "fill": fill(&s.fill),
        "upstreams": s.upstreams.iter().map(|u| (u.name.clone(), upstream(u))).collect::<Map<_, _>>(),
        "sites": s.sites.iter().map(|site| (site.name.clone(), print_site(site))).collect::<Map<_, _>>(),
        "purge": purge(s),
        "shield": shield(&s.shield),
        "lease": lease(&s.lease),
        "acme": acme(&s.acme),
        "journal": journal(&s.journal),
        "log": log(&s.log),
        "cache": {"redis": s.redis.as_ref().map_or_else(|| json!({}), redis_tier)},
    })
}

fn listener(listener: &Listener) -> Value {
    let mut table = json!({"address": dollars(&listener.address.to_string()), "h2c": listener.h2c, "proxy_protocol": networks(&listener.proxy_protocol)});
    table["http3"] = json!(listener.http3.is_some());
    if let Some(http3) = &listener.http3 {
        table["http3_retry"] = json!(http3.retry);
        if let Some(port) = http3.port {
            table["http3_port"] = json!(port);
        }
    }
    if let Some(tls) = &listener.tls {
        let certificate = |source: &CertificateSource| match source {
            CertificateSource::Files(files) => pair(files),
            CertificateSource::Acme(certificate) => json!({"acme": certificate.hosts}),
        };
        table["tls"] = json!({
            "certificates": tls.certificates.iter().map(certificate).collect::<Vec<_>>(),
            "min_version": tls.min_version.as_str(),
            "http2": tls.http2,
            "handshake_timeout": print_duration(tls.handshake_timeout),
            "handshakes": tls.handshakes,
        });
        if !tls.suites.is_empty() {
            table["tls"]["suites"] = json!(tls.suites);
        }
        if let Some(file) = &tls.ticket_key {
            table["tls"]["ticket_key_file"] = json!(absolute(file));
        }
        if let Some(clients) = &tls.client_certificates {
            print_clients(clients, &mut table["tls"]);
        }
    }
    if let ListenAddress::Unix { mode, .. } = &listener.address {
        table["socket_mode"] = json!(format!("{mode:04o}"));
    }
    if let Some(port) = listener.redirect_to_https {
        table["redirect_to_https"] = json!(port);
    }
    table
}

fn pair(files: &CertificateFiles) -> Value {
    let mut pair = json!({"cert_file": absolute(&files.certificate), "key_file": absolute(&files.key)});
    if let Some(ocsp) = &files.ocsp {
        pair["ocsp_file"] = json!(absolute(ocsp));
    }
    pair
}

fn print_clients(clients: &ClientCertificates, table: &mut Value) {
    table["client_certificates"] = json!(match clients.asked {
        Asked::Nothing => return table["client_certificates"] = json!("off"),
        Asked::Optional => "optional",
        Asked::Required => "required",
    });
    for (key, file) in [("client_ca_file", &clients.authorities), ("client_crl_file", &clients.revoked)] {
        if let Some(file) = file {
            table[key] = json!(absolute(file));
        }
    }
    table["client_cert_field"] = json!(match clients.told {
        Told::Nothing => "off",
        Told::Certificate => "cert",
        Told::Chain => "chain",
    });
}

/// The name of a file, wherever it is read from.
fn absolute(file: &PemFile) -> String {
    dollars(&std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone()).display().to_string())
}

/// 32 hex digits over everything in effect, secrets included.
pub fn hash(settings: &Settings) -> String {
    let secrets: Vec<_> = secrets(settings).into_iter().map(|(_, secret)| secret.map_or("", Secret::expose)).collect();
    format!("{:032x}", hash128(format!("{}\n{}", effective(settings), secrets.join("\n")).as_bytes()))
}

/// All secrets, with the keys that they stand under.
pub fn secrets(settings: &Settings) -> Vec<(&'static str, Option<&Secret>)> {
    let redis = settings.redis.as_ref().map(|tier| &tier.server);
    let journal = settings.journal.redis.as_ref();
    vec![
        ("acme.eab_key", settings.acme.eab.as_ref().map(|eab| &eab.key)),
        ("acme.seal", settings.acme.seal.as_ref()),
        ("admin.token", settings.admin.token.as_ref()),
        ("shield.secret", settings.shield.secret.as_ref()),
        ("cache.redis.password", redis.and_then(|redis| redis.password.as_ref())),
        ("cache.redis.seal", settings.redis.as_ref().and_then(|tier| tier.key.as_ref())),
        ("cache.redis.sentinel_password", redis.and_then(|redis| redis.sentinel_password.as_ref())),
        ("journal.redis.password", journal.and_then(|redis| redis.password.as_ref())),
        ("journal.redis.sentinel_password", journal.and_then(|redis| redis.sentinel_password.as_ref())),
    ]
}

/// Hash of what decides which answer a request gets: sites and their routes. Nodes where it is the same may answer for
/// each other.
pub fn policy_hash(settings: &Settings) -> u128 {
    let effective = effective(settings);
    hash128(format!("{}\n{}", effective["sites"], settings.server.lenient_path).as_bytes())
}

fn ms(ms: u64) -> String {
    print_duration(Duration::from_millis(ms))
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "off".to_owned(), |address| address.to_string())
}

fn networks(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

fn admin(admin: &Admin) -> Value {
    let mut table = json!({"address": address(admin.address)});
    if admin.token.is_some() {
        table["token"] = json!(MASK);
    }
    table
}

fn redis_tier(tier: &RedisTier) -> Value {
    let mut table = redis(&tier.server);
    table["lookup_budget"] = json!(print_duration(tier.lookup_budget));
    table["remember_misses"] = json!(print_duration(tier.remember_misses));
    table["queue_entries"] = json!(tier.queue_entries);
    table["queue_bytes"] = json!(print_size(tier.queue_bytes));
    if tier.key.is_some() {
        table["seal"] = json!(MASK);
    }
    table
}

/// A connection to Redis.
fn redis(redis: &Redis) -> Value {
    let mut table = json!({
        "url": redis.addresses.iter().map(|address| dollars(&address.to_string())).collect::<Vec<_>>(),
        "mode": match redis.mode { RedisMode::Standalone => "standalone", RedisMode::Sentinel { .. } => "sentinel", RedisMode::Cluster => "cluster" },
        "database": redis.database,
        "prefix": redis.prefix,
        "connect_timeout": print_duration(redis.connect_timeout),
    });
    if let RedisMode::Sentinel { master } = &redis.mode {
        table["sentinel_master"] = json!(dollars(master));
    }
    if let Some(user) = &redis.user {
        table["user"] = json!(dollars(user));
    }
    for (key, secret) in [("password", &redis.password), ("sentinel_password", &redis.sentinel_password)] {
        if secret.is_some() {
            table[key] = json!(MASK);
        }
    }
    for (key, file) in [("roots", &redis.tls.roots), ("certificate", &redis.tls.certificate), ("key", &redis.tls.key)] {
        if let Some(file) = file {
            table["tls"][key] = json!(absolute(file));
        }
    }
    table
}

fn memory(m: &Memory) -> Value {
    json!({
        "limit": print_size(m.limit),
        "policy": match m.policy { Eviction::TinyLfu => "tinylfu", Eviction::Lru => "lru" },
        "stored_share": print_share(m.stored_share),
        "fill_share": print_share(m.fill_share),
        "pressure": print_share(m.pressure),
    })
}

fn limits(l: &Limits) -> Value {
    json!({
        "connections": l.connections,
        "requests_per_connection": l.requests_per_connection,
        "header_bytes": print_size(l.header_bytes as u64),
        "header_count": l.header_count,
        "url_bytes": print_size(l.url_bytes as u64),
        "body_bytes": print_size(l.body_bytes),
        "header_timeout": print_duration(l.header_timeout),
        "idle_timeout": print_duration(l.idle_timeout),
        "body_timeout": print_duration(l.body_timeout),
        "body_rate": print_size(l.body_rate),
        "write_timeout": print_duration(l.write_timeout),
        "waiting": l.waiting,
        "rate_limit_callers": l.rate_limit_callers,
        "rate_limit_budget": print_duration(l.rate_limit_budget),
        "compression_threads": l.compression_threads,
        "dictionary_memory": print_size(l.dictionary_memory),
        "http2": http2(&l.http2),
    })
}

fn http2(h: &Http2) -> Value {
    json!({
        "streams": h.streams,
        "stream_window": print_size(h.stream_window.into()),
        "connection_window": print_size(h.connection_window.into()),
        "send_buffer": print_size(h.send_buffer as u64),
        "resets": h.resets,
        "resets_pending": h.resets_pending,
        "errors": h.errors,
        "idle_frames": h.idle_frames,
        "keep_alive": print_duration(h.keep_alive),
        "keep_alive_timeout": print_duration(h.keep_alive_timeout),
    })
}

fn fill(f: &Fill) -> Value {
    json!({
        "lag": print_size(f.lag),
        "stall": print_duration(f.stall),
        "finish_rest": print_size(f.finish_rest),
        "finish_share": print_share(f.finish_share),
        "range_ahead": print_size(f.range_ahead),
        "marker_first": print_duration(f.marker_first),
        "marker_max": print_duration(f.marker_max),
        "marker_count": f.marker_count,
    })
}

fn upstream(u: &Upstream) -> Value {
    json!({
        "endpoints": u.endpoints.iter().map(|endpoint| endpoint.url.clone()).collect::<Vec<_>>(),
        "balance": match u.balance { Balance::RoundRobin => "round_robin", Balance::LeastRequests => "least_requests" },
        "http": u.http.as_str(),
        "http2": {
            "streams": u.http2.streams,
            "stream_window": print_size(u.http2.stream_window.into()),
            "keep_alive": print_duration(u.http2.keep_alive),
        },
        "http1": match u.http1 { UpstreamCodec::Own => "own", UpstreamCodec::Hyper => "hyper" },
        "connections": u.connections,
        "queue": u.queue,
        "queue_timeout": print_duration(u.queue_timeout),
        "purge_concurrency": u.purge_concurrency,
        "purge_queue_timeout": print_duration(u.purge_queue_timeout),
        "idle_connections": u.idle_connections,
        "idle_timeout": print_duration(u.idle_timeout),
        "connect_timeout": print_duration(u.connect_timeout),
        "first_byte_timeout": print_duration(u.first_byte_timeout),
        "read_timeout": print_duration(u.read_timeout),
        "total_timeout": u.total_timeout.map_or_else(|| "off".to_owned(), print_duration),
        "retries": u.retries,
        "header_bytes": print_size(u.header_bytes as u64),
        "header_count": u.header_count,
        "tls": upstream_tls(u),
        "proxy_protocol": match u.proxy_protocol { None => "off", Some(ProxyProtocol::V1) => "v1", Some(ProxyProtocol::V2) => "v2" },
    })
}

fn upstream_tls(upstream: &Upstream) -> Value {
    if !upstream.endpoints.iter().any(|endpoint| endpoint.is_secure) {
        return json!({});
    }
    let tls = &upstream.tls;
    let mut table = json!({"min_version": tls.min_version.as_str(), "insecure_skip_verify": !tls.verify});
    let certificate = tls.certificate.as_ref();
    let files = [
        ("ca_file", tls.roots.as_ref()),
        ("cert_file", certificate.map(|files| &files.certificate)),
        ("key_file", certificate.map(|files| &files.key)),
    ];
    for (key, file) in files.into_iter().filter_map(|(key, file)| Some((key, file?))) {
        table[key] = json!(absolute(file));
    }
    if let Some(name) = &tls.server_name {
        table["server_name"] = json!(name);
    }
    table
}

fn purge(settings: &Settings) -> Value {
    let p = &settings.purge;
    json!({
        "receipts": p.bounds.receipts,
        "selectors_per_call": p.selectors_per_call,
        "map_capacity": p.bounds.map_capacity,
        "fold_slots": p.bounds.fold_slots,
        "unsafe_methods": match (p.unsafe_methods, settings.journal.tell_unsafe) {
            (false, _) => "off",
            (true, false) => "local",
            (true, true) => "fleet",
        },
        "keys_per_response": p.keys.keys_per_response,
        "key_bytes": print_size(p.keys.key_bytes as u64),
        "recovery": print_duration(p.bounds.recovery),
        "rate": p.rate_limit.as_ref().map_or_else(|| "off".to_owned(), rate),
        "burst": p.rate_limit.as_ref().map_or(PURGE_BURST, |limit| limit.burst),
    })
}

fn journal(j: &Journal) -> Value {
    json!({
        "redis": j.redis.as_ref().map_or_else(|| json!({}), redis),
        "node": j.node,
        "trust": print_duration(j.trust),
        "repair": print_duration(j.repair),
        "on_cutoff": j.on_cutoff.as_str(),
        "serve_at_most": j.serve_at_most.map_or_else(|| "off".to_owned(), print_duration),
        "revalidate_every": print_duration(j.revalidate_every),
        "forget_after": print_duration(j.forget_after),
        "max_entries": j.max_entries,
    })
}

fn lease(lease: &Lease) -> Value {
    json!({
        "enabled": lease.enabled,
        "wait": print_duration(lease.wait),
        "ttl": print_duration(lease.ttl),
        "kept": print_duration(lease.kept),
    })
}

fn acme(a: &Acme) -> Value {
    let mut table = json!({
        "directory": dollars(&a.directory),
        "contact": a.contact.iter().map(|contact| dollars(contact)).collect::<Vec<_>>(),
        "agree_to_terms": a.agree_to_terms,
        "key_type": a.key_type.as_str(),
        "folder": dollars(&std::path::absolute(&a.folder).unwrap_or_else(|_| a.folder.clone()).display().to_string()),
        "challenges": a.challenges.iter().map(|challenge| challenge.as_str()).collect::<Vec<_>>(),
        "renew_jitter": print_share(a.renew_jitter),
        "retry_first": print_duration(a.retry_first),
        "retry_max": print_duration(a.retry_max),
        "order_timeout": print_duration(a.order_timeout),
        "request_timeout": print_duration(a.request_timeout),
        "orders": a.orders,
    });
    if let Some(roots) = &a.roots {
        table["ca_file"] = json!(absolute(roots));
    }
    if let Some(before) = a.renew_before {
        table["renew_before"] = json!(print_duration(before));
    }
    if let Some(eab) = &a.eab {
        table["eab_key_id"] = json!(dollars(&eab.key_id));
        table["eab_key"] = json!(MASK);
    }
    if a.seal.is_some() {
        table["seal"] = json!(MASK);
    }
    table
}

fn shield(s: &Shield) -> Value {
    let scheme = if s.tls.is_some() { "https" } else { "http" };
    let peer = |peer: &ShieldPeer| match peer {
        ShieldPeer::One { host, port } => format!("{scheme}://{}", peer_name(host, *port)),
        ShieldPeer::Names { host, port } => format!("dns:{host}:{port}"),
    };
    let mut table = json!({
        "listen": address(s.listen),
        "peers": s.peers.iter().map(peer).collect::<Vec<_>>(),
        "connect_timeout": print_duration(s.connect_timeout),
        "first_byte_timeout": print_duration(s.first_byte_timeout),
        "read_timeout": print_duration(s.read_timeout),
        "keep_alive": print_duration(s.keep_alive),
        "failures": s.failures,
        "back_off": print_duration(s.back_off),
        "back_off_max": print_duration(s.back_off_max),
        "position_wait": print_duration(s.position_wait),
        "warm_time": s.warm_time.map_or_else(|| "off".to_owned(), print_duration),
        "warm_budget": print_duration(s.warm_budget),
    });
    if let Some(name) = &s.advertise {
        table["advertise"] = json!(format!("{scheme}://{name}"));
    }
    if s.secret.is_some() {
        table["secret"] = json!(MASK);
    }
    if let Some(tls) = &s.tls {
        table["tls"] = pair(&tls.certificate);
        table["tls"]["ca_file"] = json!(absolute(&tls.authorities));
        if let Some(name) = &tls.server_name {
            table["tls"]["server_name"] = json!(name);
        }
    }
    table
}

fn log(log: &Log) -> Value {
    let target = match &log.access.target {
        LogTarget::Off => "off".to_owned(),
        LogTarget::Stdout => "stdout".to_owned(),
        LogTarget::File(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string(),
    };
    json!({
        "level": log.level,
        "format": match log.format { LogFormat::Text => "text", LogFormat::Json => "json" },
        "access": {
            "target": dollars(&target),
            "format": match log.access.format { AccessFormat::Combined => "combined", AccessFormat::Json => "json", AccessFormat::Ecs => "ecs" },
            "queue": log.access.queue,
        },
    })
}

fn print_site(site: &Site) -> Value {
    let mut table = json!({"hosts": site.hosts, "routes": site.routes.iter().map(|route| print_route(route)).collect::<Vec<_>>()});
    if let Some(clients) = &site.client_certificates {
        print_clients(clients, &mut table["tls"]);
    }
    table
}

fn print_route(route: &Route) -> Value {
    let mut table = condition(&route.matcher);
    let (action, value) = print_action(&route.action);
    table.insert(action.into(), value);
    let more = json!({
        "name": route.name,
        "cache": cache(&route.cache, &route.redis, &route.key, &route.rewrite),
        "bypass": route.bypass.iter().map(bypass).collect::<Vec<_>>(),
        "request_headers": edits(&route.request_edits),
        "response_headers": edits(&route.response_edits),
        "rewrite": route.rewrite.iter().map(rewrite).collect::<Vec<_>>(),
        "host": match &route.host {
            UpstreamHost::Preserve => "preserve",
            UpstreamHost::Upstream => "upstream",
            UpstreamHost::Literal(host) => host,
        },
        "strip_cookies": route.strip_cookies,
        "accept_encoding": match route.cache.accept_encoding {
            AcceptEncoding::Normalise => "normalise",
            AcceptEncoding::Identity => "identity",
            AcceptEncoding::Forward => "forward",
        },
        "compression": route.cache.compression.as_ref().map_or(json!(false), |how| compression(how)),
        "purge": {"allow": networks(&route.purge_from)},
        "tags": {"forward": route.forward_tags},
        "cache_status": route.cache_status,
        "show_key": route.show_key,
        "x_cache": route.x_cache,
        "redirect_to_https": route.redirect_to_https.map_or(json!(false), |port| json!(port)),
        "hsts": route.hsts.as_ref().map_or_else(|| json!({"max_age": "off"}), hsts),
        "log": {"query": route.log_query},
        "rate_limit": rate_limit(route.rate_limit.as_ref()),
    });
    table.extend(more.as_object().cloned().unwrap_or_default());
    Value::Object(table)
}

fn hsts(hsts: &Hsts) -> Value {
    json!({"max_age": print_duration(hsts.max_age), "include_subdomains": hsts.include_subdomains, "preload": hsts.preload})
}

fn compression(how: &Compression) -> Value {
    json!({
        "enabled": true,
        "codings": how.codings.iter().map(|coding| coding.as_str()).collect::<Vec<_>>(),
        "types": how.types,
        "min_size": print_size(how.min_bytes),
        "sensitive": how.sensitive,
        "level": levels(&how.level),
        "hot_hits": how.hot_hits,
        "hot_level": levels(&how.hot_level),
        "hot_max_size": print_size(how.hot_max_bytes),
        "decode_max_size": print_size(how.decode.bytes),
        "decode_max_ratio": how.decode.ratio,
        "dictionaries": how.dictionaries.enabled,
        "dictionary_max_size": print_size(how.dictionaries.max_bytes),
        "dictionary_forms": how.dictionaries.forms_max,
    })
}

fn levels(levels: &Levels) -> Value {
    json!({"gzip": levels.gzip, "br": levels.brotli, "zstd": levels.zstd})
}

fn rate_limit(limit: Option<&RateLimit>) -> Value {
    let Some(limit) = limit else { return json!({"rate": "off"}) };
    let by = match &limit.by {
        LimitBy::Client => "client",
        LimitBy::Everybody => "everybody",
        LimitBy::Field(name) => name,
    };
    let on_fault = match limit.on_fault {
        OnFault::Allow => "allow",
        OnFault::Deny => "deny",
    };
    json!({"rate": rate(limit), "burst": limit.burst, "by": by, "name": limit.name, "shared": limit.shared, "on_fault": on_fault})
}

fn rate(limit: &RateLimit) -> String {
    print_rate(limit.rate.count, limit.rate.per.as_secs())
}

fn print_action(action: &Action) -> (&'static str, Value) {
    match action {
        Action::Proxy(upstream) => ("upstream", json!(upstream.name)),
        Action::Redirect { status, location } => ("redirect", json!({"status": status, "location": dollars(location)})),
        Action::Respond { status, content_type, body } => {
            let body = dollars(&String::from_utf8_lossy(body));
            ("respond", json!({"status": status, "content_type": content_type, "body": body}))
        }
    }
}

fn condition(condition: &RouteMatch) -> Map<String, Value> {
    let mut table = Map::new();
    let (key, text) = match &condition.path {
        PathMatch::Any => ("path", "/".to_owned()),
        PathMatch::Prefix(prefix) => ("path", dollars(prefix)),
        PathMatch::Exact(path) => ("exact", dollars(path)),
        PathMatch::Pattern(pattern) => ("pattern", dollars(pattern.as_str())),
    };
    table.insert(key.into(), json!(text));
    table.insert("methods".into(), condition.methods.iter().map(http::Method::as_str).collect());
    table.insert("headers".into(), values(&condition.headers));
    table.insert("query".into(), values(&condition.query));
    table
}

fn values(list: &[(String, ValueMatch)]) -> Value {
    Value::Object(list.iter().map(|(name, value)| (name.clone(), value_match(value))).collect())
}

fn value_match(value: &ValueMatch) -> Value {
    match value {
        ValueMatch::Present => json!({"present": true}),
        ValueMatch::Absent => json!({"present": false}),
        ValueMatch::Equals(text) => json!(dollars(text)),
        ValueMatch::Prefix(text) => json!({"prefix": dollars(text)}),
        ValueMatch::Pattern(pattern) => json!({"pattern": dollars(pattern.as_str())}),
    }
}

fn bypass(rule: &BypassRule) -> Value {
    let mut table = condition(&rule.condition);
    table.insert("reason".into(), json!(rule.reason));
    table.insert("cookies".into(), json!(rule.cookies));
    Value::Object(table)
}

fn cache(policy: &CachePolicy, redis: &RedisAdmission, key: &KeyPolicy, steps: &[Rewrite]) -> Value {
    let mut ttl = Map::new();
    for (name, rules) in [("override", &policy.ttl_override), ("default", &policy.ttl_default)] {
        if !rules.is_empty() {
            ttl.insert(name.into(), Value::Object(rules.iter().map(ttl_rule).collect()));
        }
    }
    let body_key = [("QUERY", policy.body_key.query), ("POST", policy.body_key.post)];
    let body_key_methods: Vec<_> = body_key.into_iter().filter(|(_, is_on)| *is_on).map(|(method, _)| method).collect();
    if policy.ttl_jitter > 0.0 {
        ttl.insert("jitter".into(), json!(print_share(policy.ttl_jitter)));
    }
    // What a rewrite drops is ignored by its own account.
    let is_dropped = |name: &&String| steps.iter().any(|step| matches!(step, Rewrite::DropQuery(names) if names.contains(name)));
    let query_ignore: Vec<&String> = key.query_ignore.iter().filter(|name| !is_dropped(name)).collect();
    json!({
        "enabled": policy.enabled,
        "ttl": ttl,
        "heuristic": policy.heuristic,
        "heuristic_max": ms(policy.heuristic_max_ms),
        "heuristic_with_cookie": policy.heuristic_with_cookie,
        "stale_while_revalidate": ms(policy.stale_while_revalidate_ms),
        "stale_if_error": ms(policy.stale_if_error_ms),
        "early_refresh": print_share(policy.early_refresh),
        "store_after": policy.store_after,
        "deception_guard": policy.deception_guard,
        "error_guard": policy.error_guard,
        "keep_stale": ms(policy.keep_stale_ms),
        "targeted": policy.targeted.names().collect::<Vec<_>>(),
        "set_cookie": match policy.set_cookie { SetCookie::Bypass => "bypass", SetCookie::Store => "store", SetCookie::Strip => "strip" },
        "client_directives": match policy.client_directives { ClientDirectives::Ignore => "ignore", ClientDirectives::Honour => "honour" },
        "max_object_size": print_size(policy.max_object_bytes),
        "range_whole_max": print_size(policy.range_whole_max_bytes),
        "range_parts_max": policy.range_parts_max,
        "blocks": print_size(policy.blocks.map_or(0, NonZeroU64::get)),
        "collapse": policy.collapse,
        "max_variants": policy.max_variants,
        "no_vary_search": policy.no_vary_search,
        "body_key": { "methods": body_key_methods, "max_bytes": print_size(policy.body_key.max_bytes) },
        "redis": {
            "enabled": redis.enabled,
            "max_object_size": print_size(redis.max_object_bytes),
            "max_ttl": print_duration(redis.max_ttl),
            "content_types": redis.content_types,
        },
        "vary": {"ignore": policy.vary.ignore, "languages": policy.vary.languages, "images": policy.vary.images},
        "key": {
            "query_sort": key.query_sort,
            "query_allow": key.query_allow.clone().unwrap_or_else(|| vec!["*".into()]),
            "query_ignore": query_ignore,
            "ignore_tracking": key.ignore_tracking,
            "headers": key.headers,
            "cookies": key.cookies,
            "classes": key.classes.iter().map(class).collect::<Map<_, _>>(),
        },
    })
}

fn class(class: &ClientClass) -> (String, Value) {
    let rules: Vec<Value> = class.rules.iter().map(|rule| json!({"value": rule.value, "headers": values(&rule.headers)})).collect();
    let mut table = json!({"rules": rules, "default": class.default});
    if let Some(name) = &class.forward {
        table["forward"] = json!(name);
    }
    (class.name.clone(), table)
}

fn ttl_rule(rule: &TtlRule) -> (String, Value) {
    let status = match rule.statuses {
        Statuses::Usual => "default".to_owned(),
        Statuses::One(status) => status.to_string(),
        Statuses::Class(class) => format!("{class}xx"),
    };
    (status, json!(ms(rule.lifetime_ms)))
}

fn edits(edits: &[FieldEdit]) -> Value {
    let (mut add, mut set, mut remove) = (Map::<String, Value>::new(), Map::new(), Vec::new());
    for edit in edits {
        match edit {
            FieldEdit::Remove { name } => remove.push(json!(name)),
            FieldEdit::Set { name, value } => drop(set.insert(name.clone(), json!(dollars(value)))),
            FieldEdit::Add { name, value } => {
                if let Some(values) = add.entry(name.clone()).or_insert_with(|| json!([])).as_array_mut() {
                    values.push(json!(dollars(value)));
                }
            }
        }
    }
    json!({"add": add, "set": set, "remove": remove})
}

fn rewrite(step: &Rewrite) -> Value {
    match step {
        Rewrite::StripPrefix(prefix) => json!({"strip_prefix": dollars(prefix)}),
        Rewrite::AddPrefix(prefix) => json!({"add_prefix": dollars(prefix)}),
        Rewrite::Replace { pattern, with } => json!({"pattern": dollars(pattern.as_str()), "with": dollars(with)}),
        Rewrite::DropQuery(names) => json!({"drop_query": names}),
        Rewrite::SetQuery { name, value } => json!({"set_query": {name.clone(): dollars(value)}}),
    }
}

/// Text in which a dollar sign that would be read as a reference to the environment is doubled.
fn dollars(text: &str) -> String {
    text.replace("$$", "$$$$").replace("${", "$${")
}
