//! The shield: peers, this node's own name among them, the secret that they share.

use super::net;
use super::table::Table;
use super::{FLEET_SECRET, FLEET_SECRET_REMEDY, check_fleet_secret, secret, secs};
use crate::config::raw::RawShield;
use crate::config::report::Report;
use crate::config::settings::{Endpoint, Settings, Shield, ShieldPeer, Upstream, peer_name};
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
    let peers = texts.iter().enumerate().filter_map(|(index, text)| peer(&format!("shield.peers[{index}]"), text, report)).collect();
    let advertise = advertise(raw, listen, report);
    let secret = secret("shield.secret", raw.secret.as_deref(), raw.secret_file.as_deref(), report);
    let mut table = Table::new(report, "shield");
    let shield = Shield {
        listen,
        peers,
        advertise,
        secret,
        connect_timeout: table.timeout("connect_timeout", raw.connect_timeout.as_ref(), Duration::from_millis(500)),
        first_byte_timeout: table.timeout("first_byte_timeout", raw.first_byte_timeout.as_ref(), secs(75)),
        read_timeout: table.timeout("read_timeout", raw.read_timeout.as_ref(), secs(60)),
        keep_alive: table.timeout("keep_alive", raw.keep_alive.as_ref(), secs(1)),
        failures: table.count("failures", raw.failures, 3, 1..=1000) as u32,
        back_off: table.timeout("back_off", raw.back_off.as_ref(), secs(1)),
        back_off_max: table.timeout("back_off_max", raw.back_off_max.as_ref(), secs(30)),
        position_wait: table.duration("position_wait", raw.position_wait.as_ref(), Duration::from_millis(50)),
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

/// `http://host:port` or `dns:name:port`.
fn peer(path: &str, text: &str, report: &mut Report) -> Option<ShieldPeer> {
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
    let (host, port) = plain(path, text, report)?;
    Some(ShieldPeer::One { host, port })
}

/// `http://host:port`: nodes have no TLS between them.
fn plain(path: &str, text: &str, report: &mut Report) -> Option<(String, u16)> {
    let Endpoint { host, port, is_secure, .. } = net::endpoint(path, text, report)?;
    if is_secure {
        let remedy = format!("write \"http://{}\"", peer_name(&host, port));
        report.problem(path, "there is no TLS between nodes", format!("\"{text}\""), "\"http://host:port\"", remedy);
    }
    Some((host, port))
}

/// Our own name: as written, or what others reach us by where that is one address.
fn advertise(raw: &RawShield, listen: Option<SocketAddr>, report: &mut Report) -> Option<String> {
    if let Some(text) = &raw.advertise {
        return plain("shield.advertise", text, report).map(|(host, port)| peer_name(&host, port));
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
