//! `[journal]`: this node in the fleet.

use super::redis;
use super::table::Table;
use crate::config::machine;
use crate::config::raw::{RawConfig, RawDuration, RawDurationOrOff, RawJournal, RawOnCutoff, RawUnsafeMethods};
use crate::config::report::Report;
use crate::config::settings::{Journal, Listener, OnCutoff, Settings};
use crate::config::units;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Bytes of the name of a node: of a host with its port.
const NODE_BYTES_MAX: usize = 256;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn journal(whole: &RawConfig, listeners: &[Listener], report: &mut Report) -> Journal {
    let raw = &whole.journal;
    let in_fleet = raw.redis.url.is_some() || whole.cache.redis.url.is_some();
    let redis = redis::server("journal.redis", raw.redis.server_keys(), report);
    let mut t = Table::new(report, "journal");
    let journal = Journal {
        redis,
        tell_unsafe: matches!(whole.purge.unsafe_methods, None | Some(RawUnsafeMethods::Fleet)),
        node: raw.node.clone().unwrap_or_else(|| default_node(listeners.first().filter(|_| in_fleet))),
        trust: bounded(&mut t, "trust", raw.trust.as_ref(), secs(3), secs(1)..=secs(60)),
        repair: bounded(&mut t, "repair", raw.repair.as_ref(), secs(600), secs(10)..=secs(86_400)),
        on_cutoff: match raw.on_cutoff {
            None | Some(RawOnCutoff::Serve) => OnCutoff::Serve,
            Some(RawOnCutoff::Revalidate) => OnCutoff::Revalidate,
            Some(RawOnCutoff::Bypass) => OnCutoff::Bypass,
        },
        serve_at_most: serve_at_most(raw.serve_at_most.as_ref(), &mut t),
        revalidate_every: t.duration("revalidate_every", raw.revalidate_every.as_ref(), Duration::ZERO),
        forget_after: bounded(&mut t, "forget_after", raw.forget_after.as_ref(), secs(3600), secs(10)..=secs(30 * 86_400)),
        max_entries: t.count("max_entries", raw.max_entries, 100_000, 1000..=10_000_000),
    };
    if journal.forget_after <= journal.trust + Journal::MARGIN {
        let allowed = "more than trust and a second";
        let given = format!("\"{}\"", units::print_duration(journal.forget_after));
        t.wrong_text(
            "forget_after",
            "nodes would be forgotten before they are known to be cut off",
            given,
            allowed,
            "write for example forget_after = \"1h\"",
        );
    }
    let is_plain = journal.node.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}' | b'"' | b'/'));
    if journal.node.is_empty() || journal.node.len() > NODE_BYTES_MAX || !is_plain {
        let allowed = "1 to 256 visible ASCII characters but braces, quotes and slashes";
        t.wrong_text("node", "not a name", format!("\"{}\"", journal.node), allowed, "write for example node = \"edge-1\"");
    }
    journal
}

/// In a fleet a node has a name that is known before its listeners are.
pub fn check_node(raw: &RawJournal, settings: &Settings, report: &mut Report) {
    let has_port = settings.listeners.first().is_some_and(|listener| listener.address.port() != 0);
    if settings.journal_redis().is_some() && raw.node.is_none() && !has_port {
        let remedy = "write for example node = \"edge-1\" in [journal], or give the first listener a port";
        report.problem("journal.node", "a node of a fleet without a name", "", "a name of its own in the fleet", remedy);
    }
}

/// The host name, and in a fleet the port: several nodes of it may be on one host.
fn default_node(listener: Option<&Listener>) -> String {
    let host = machine::host_name();
    listener.map_or(host.clone(), |listener| format!("{host}:{}", listener.address.port()))
}

fn bounded(t: &mut Table<'_>, key: &str, raw: Option<&RawDuration>, default: Duration, bounds: RangeInclusive<Duration>) -> Duration {
    let length = t.duration(key, raw, default);
    if bounds.contains(&length) {
        return length;
    }
    let allowed = format!("{} to {}", units::print_duration(*bounds.start()), units::print_duration(*bounds.end()));
    t.wrong_text(key, "out of bounds", format!("\"{}\"", units::print_duration(length)), &allowed, "");
    default
}

/// Zero would be the policy "revalidate" by another name.
fn serve_at_most(raw: Option<&RawDurationOrOff>, t: &mut Table<'_>) -> Option<Duration> {
    let value = &raw?.0;
    if value == "off" {
        return None;
    }
    let allowed = r#"a duration such as "30s", or "off""#;
    let length = t.quantity("serve_at_most", value, units::duration, allowed)?;
    if length.is_zero() {
        t.wrong("serve_at_most", "no time at all", value, allowed, "write on_cutoff = \"revalidate\" instead");
    }
    Some(length)
}
