//! What a reload changes, and what it cannot.

use super::print::{effective, secrets};
use super::problem::{Place, Problem, Problems};
use super::settings::Settings;
use super::shape::join;
use serde_json::Value;

/// Keys whose values are built into the running process.
const FIXED: &[&str] = &[
    "server.workers",
    "server.runtime",
    "admin.address",
    "metrics.address",
    "memory.limit",
    "memory.policy",
    "memory.stored_share",
    "memory.fill_share",
    "purge.receipts",
    "purge.map_capacity",
    "purge.fold_slots",
    "purge.recovery",
    "journal.redis.url",
    "journal.redis.mode",
    "journal.redis.sentinel_master",
    "journal.redis.sentinel_password",
    "journal.redis.user",
    "journal.redis.password",
    "journal.redis.database",
    "journal.redis.tls.roots",
    "journal.redis.tls.certificate",
    "journal.redis.tls.key",
    "journal.redis.prefix",
    "journal.redis.connect_timeout",
    "journal.node",
    "purge.unsafe_methods",
    "journal.trust",
    "journal.repair",
    "journal.on_cutoff",
    "journal.serve_at_most",
    "journal.revalidate_every",
    "journal.forget_after",
    "journal.max_entries",
    "limits.waiting",
    "limits.rate_limit_callers",
    "limits.compression_threads",
    "limits.dictionary_memory",
    "fill.marker_first",
    "fill.marker_max",
    "fill.marker_count",
    "log.format",
    "log.access.target",
    "log.access.format",
    "log.access.queue",
    "cache.redis.url",
    "cache.redis.mode",
    "cache.redis.sentinel_master",
    "cache.redis.sentinel_password",
    "cache.redis.user",
    "cache.redis.password",
    "cache.redis.database",
    "cache.redis.tls.roots",
    "cache.redis.tls.certificate",
    "cache.redis.tls.key",
    "cache.redis.prefix",
    "cache.redis.connect_timeout",
    "cache.redis.lookup_budget",
    "cache.redis.remember_misses",
    "cache.redis.queue_entries",
    "cache.redis.queue_bytes",
    "cache.redis.seal",
    "lease.enabled",
    "lease.wait",
    "lease.ttl",
    "lease.kept",
];

/// The keys that differ, in order; or, where some of them cannot change while the process runs, those.
pub fn changes(old: &Settings, new: &Settings) -> Result<Vec<String>, Problems> {
    let (before, after) = (effective(old), effective(new));
    let mut changed = Vec::new();
    differing("", &before, &after, &mut changed);
    for ((key, before), (_, after)) in secrets(old).into_iter().zip(secrets(new)) {
        if before != after {
            changed.push(key.into());
        }
    }
    changed.sort();
    changed.dedup();
    let refused: Vec<Problem> = changed.iter().filter(|path| is_fixed(path)).map(|path| refusal(path, &before, &after)).collect();
    if refused.is_empty() { Ok(changed) } else { Err(Problems::new(refused)) }
}

/// HTTP/3 of a listener that stays has its socket from the start.
fn is_fixed(path: &str) -> bool {
    let of_listener = path.strip_prefix("listeners.").and_then(|rest| rest.rsplit_once('.'));
    FIXED.contains(&path) || of_listener.is_some_and(|(_, key)| key.starts_with("http3"))
}

fn refusal(path: &str, before: &Value, after: &Value) -> Problem {
    let pointer = format!("/{}", path.replace('.', "/"));
    let show = |tree: &Value| tree.pointer(&pointer).map_or_else(String::new, Value::to_string);
    Problem {
        path: path.to_owned(),
        place: Place::Nowhere,
        what: "cannot change while the process runs".into(),
        found: format!("{}, running with {}", show(after), show(before)),
        allowed: show(before),
        remedy: "set it back, or restart".into(),
    }
}

fn differing(path: &str, before: &Value, after: &Value, changed: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                differing(&join(path, key), old, new, changed);
            }
        }
        (old, new) if old != new => changed.push(path.to_owned()),
        _ => {}
    }
}
