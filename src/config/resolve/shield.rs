//! The shield: peers, this node's own name among them, the secret that they share.

use super::table::Table;
use super::{FLEET_SECRET, FLEET_SECRET_REMEDY, check_fleet_secret, secret, secs};
use super::{net, tls};
use crate::config::raw::RawShield;
use crate::config::report::Report;
use crate::config::settings::{SHIELD_LISTENER, Settings, Shield, ShieldPeer, Upstream, peer_name};
use crate::config::units;
use std::net::SocketAddr;
use std::time::Duration;

/// Nodes of one fleet that are written down.
const PEERS_MAX: usize = 1024;

pub fn shield(raw: &RawShield, report: &mut Report) -> Shield {
    let listen = net::address_or_off("shield.listen", raw.listen.as_deref(), None, report);
    let texts = raw.peers.as_deref().unwrap_or_default();
    if texts.len() > PEERS_MAX {
        report.problem("shield.peers", "too many peers", texts.len().to_string(), "at most 1024", "name them by DNS: \"dns:name:port\"");
    }
    let tls = raw.tls.as_ref().map(|raw| tls::peers("shield.tls", raw, report));
    let is_secure = tls.is_some();
    let peer = |(index, text): (usize, &String)| peer(&format!("shield.peers[{index}]"), text, is_secure, report);
    let peers = texts.iter().enumerate().filter_map(peer).collect();
    let advertise = advertise(raw, listen, is_secure, report);
    let secret = secret("shield.secret", raw.secret.as_deref(), raw.secret_file.as_deref(), report);
    let mut table = Table::new(report, "shield");
    let shield = Shield {
        listen,
        peers,
        advertise,
        secret,
        tls: tls.flatten(),
        connect_timeout: table.timeout("connect_timeout", raw.connect_timeout.as_ref(), Duration::from_millis(500)),
        first_byte_timeout: table.timeout("first_byte_timeout", raw.first_byte_timeout.as_ref(), secs(75)),
        read_timeout: table.timeout("read_timeout", raw.read_timeout.as_ref(), secs(60)),
        keep_alive: table.timeout("keep_alive", raw.keep_alive.as_ref(), secs(1)),
        failures: table.count("failures", raw.failures, 3, 1..=1000) as u32,
        back_off: table.timeout("back_off", raw.back_off.as_ref(), secs(1)),
        back_off_max: table.timeout("back_off_max", raw.back_off_max.as_ref(), secs(30)),
        position_wait: table.duration("position_wait", raw.position_wait.as_ref(), Duration::from_millis(50)),
        warm_time: table.timeout_or_off("warm_time", raw.warm_time.as_ref(), Some(secs(600))),
        warm_budget: table.timeout("warm_budget", raw.warm_budget.as_ref(), Duration::from_millis(50)),
    };
    if shield.back_off > shield.back_off_max {
        let found = format!("{} and {}", units::print_duration(shield.back_off), units::print_duration(shield.back_off_max));
        table.wrong_text(
            "back_off_max",
            "back_off is longer than back_off_max",
            found,
            "back_off at most back_off_max",
            "raise back_off_max",
        );
    }
    check_secret(raw, &shield, report);
    shield
}

fn check_secret(raw: &RawShield, shield: &Shield, report: &mut Report) {
    let is_given = raw.secret.is_some() || raw.secret_file.is_some();
    if shield.is_on() && !is_given {
        report.problem("shield", "a shield without a secret", "", FLEET_SECRET, FLEET_SECRET_REMEDY);
    }
    check_fleet_secret("shield.secret", raw.secret_file.is_some(), shield.secret.as_ref(), report);
}

/// What the listener of other nodes is called in logs and metrics.
pub fn check_name(settings: &Settings, report: &mut Report) {
    if settings.shield.listen.is_some() && settings.listeners.iter().any(|listener| listener.name == SHIELD_LISTENER) {
        let remedy = "choose another name";
        report.problem("listeners.shield", "the name of the listener for other nodes", "", "any other name beside shield.listen", remedy);
    }
}

/// A peer that gives up before the owner does would be taken for one that fails.
pub fn check_patience(settings: &Settings, report: &mut Report) {
    let patience = |upstream: &Upstream| {
        upstream.purge_queue_timeout + upstream.queue_timeout + upstream.connect_timeout + upstream.first_byte_timeout
    };
    let Some((needed, name)) = settings.upstreams.iter().map(|upstream| (patience(upstream), &upstream.name)).max() else { return };
    if settings.shield.is_on() && settings.shield.first_byte_timeout <= needed {
        let needed = units::print_duration(needed);
        report.warn(
            "shield.first_byte_timeout",
            &format!("an owner may wait {needed} for upstream \"{name}\": peers give up before, and take it for a failure of the owner; write more than that"),
        );
    }
}

/// Without positions that compare nobody could say whether what another node holds was purged while this one was away.
pub fn check_warmth(settings: &Settings, report: &mut Report) {
    let shield = &settings.shield;
    let would_ask = shield.advertise.is_some() && !shield.peers.is_empty() && shield.warm_time.is_some();
    if would_ask && settings.journal_redis().is_none() {
        let text = "this node, when it starts, goes to the origin for what other nodes hold of its keys: to be asked for that they need a \
             journal in common (journal.redis.url or cache.redis.url); write \"off\" where that is as it should be";
        report.warn("shield.warm_time", text);
    }
}

/// A URL or `dns:name:port`.
fn peer(path: &str, text: &str, is_secure: bool, report: &mut Report) -> Option<ShieldPeer> {
    if let Some(name) = text.strip_prefix("dns:") {
        let parsed = name.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|port| *port != 0)?)));
        return match parsed.filter(|(host, _)| net::is_host(host)) {
            Some((host, port)) => Some(ShieldPeer::Names { host: host.to_ascii_lowercase(), port }),
            None => {
                let remedy = "write for example \"dns:tiercel.internal:9182\"";
                report.problem(path, "not a name and a port", format!("\"{text}\""), "dns:NAME:PORT", remedy);
                None
            }
        };
    }
    let (host, port) = url(path, text, is_secure, report)?;
    Some(ShieldPeer::One { host, port })
}

/// `http://host:port`, or `https://host:port` where nodes have TLS between them.
fn url(path: &str, text: &str, is_secure: bool, report: &mut Report) -> Option<(String, u16)> {
    let endpoint = net::endpoint(path, text, report)?;
    let (host, port) = (endpoint.host, endpoint.port);
    if endpoint.is_secure != is_secure {
        let name = peer_name(&host, port);
        let (what, allowed, remedy) = if is_secure {
            ("shield.tls is for all nodes", "\"https://host:port\"", format!("write \"https://{name}\""))
        } else {
            let remedy = format!("add [shield.tls] with cert_file, key_file and ca_file, or write \"http://{name}\"");
            ("TLS between nodes needs certificates", "\"http://host:port\"", remedy)
        };
        report.problem(path, what, format!("\"{text}\""), allowed, remedy);
    }
    Some((host, port))
}

/// Our own name: as written, or what others reach us by where that is one address.
fn advertise(raw: &RawShield, listen: Option<SocketAddr>, is_secure: bool, report: &mut Report) -> Option<String> {
    if let Some(text) = &raw.advertise {
        return url("shield.advertise", text, is_secure, report).map(|(host, port)| peer_name(&host, port));
    }
    let listen = listen?;
    if listen.ip().is_unspecified() || listen.port() == 0 {
        report.problem(
            "shield.listen",
            "others cannot tell from this what this node is called",
            format!("\"{listen}\""),
            "one address and a port, or shield.advertise beside it",
            "write advertise = \"http://HOST:PORT\", as the other nodes name this one in peers",
        );
        return None;
    }
    Some(peer_name(&listen.ip().to_string(), listen.port()))
}
