//! What we keep in Redis, as far as a bounded look can tell; for people.

use crate::redis::{Link, Redis, RedisError, Use, cmd, pipe};
use std::time::{Duration, Instant};

/// Keys that are looked at, and for how long at most.
const KEYS_MAX: usize = 100_000;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Keys that one step asks for.
const STEP: usize = 1000;
const WITHIN: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Usage {
    pub address: String,
    /// Not all keys were looked at: the bound on keys or time was reached, or it is a Cluster, of which one node was asked.
    pub partial: bool,
    pub keys_seen: usize,
    pub primary: Records,
    pub heads: Records,
    pub segments: Records,
    pub floors: Records,
    pub leases: Records,
    /// Of the server, everything in it.
    pub used_memory_bytes: Option<u64>,
    pub max_memory_bytes: Option<u64>,
    pub max_memory_policy: Option<String>,
    pub evicted_keys: Option<u64>,
    /// What should be changed there.
    pub warnings: Vec<String>,
}

#[derive(Debug, Default, serde::Serialize)]
pub struct Records {
    pub keys: usize,
    pub bytes: u64,
}

/// Looks with `SCAN`, which does not hold up others.
pub async fn usage(redis: &Redis) -> Result<Usage, RedisError> {
    let link = redis.link(Use::Admin);
    link.ready(WITHIN).await?;
    let mut usage = Usage { address: redis.address(), ..Usage::default() };
    about_server(&link, &mut usage).await?;
    let (began, mut cursor) = (Instant::now(), 0_u64);
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(redis.keys().tier_pattern()).arg("COUNT").arg(STEP);
        let (next, names): (u64, Vec<String>) = link.query(&scan, WITHIN).await?;
        for name in &names {
            usage.add(name, length(&link, name).await?);
        }
        cursor = next;
        let is_enough = usage.keys_seen >= KEYS_MAX || began.elapsed() >= TIME_MAX;
        usage.partial |= is_enough && cursor != 0;
        if cursor == 0 || is_enough {
            return Ok(usage);
        }
    }
}

async fn length(link: &Link, name: &str) -> Result<u64, RedisError> {
    link.query(cmd("STRLEN").arg(name), WITHIN).await
}

async fn about_server(link: &Link, usage: &mut Usage) -> Result<(), RedisError> {
    let asked: Result<(String, String), RedisError> =
        link.pipeline(pipe().cmd("INFO").arg("memory").cmd("INFO").arg("stats"), WITHIN).await;
    let (memory, stats) = match asked {
        Ok(answers) => answers,
        // A user that may not ask; or a Cluster, where each node has its own answer.
        Err(RedisError::Refused { .. } | RedisError::Unexpected(_)) => {
            usage.partial = true;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let value = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.map(|value| value.trim().to_owned())
    };
    let number = |text: &str, name: &str| value(text, name)?.parse().ok();
    usage.used_memory_bytes = number(&memory, "used_memory");
    usage.max_memory_bytes = number(&memory, "maxmemory");
    usage.max_memory_policy = value(&memory, "maxmemory_policy");
    usage.evicted_keys = number(&stats, "evicted_keys");
    let limit = usage.max_memory_bytes.unwrap_or(0);
    if limit == 0 {
        usage.warnings.push("maxmemory is not set: Redis may take all memory of its host".into());
    }
    if let Some(policy) = usage.max_memory_policy.as_deref().filter(|policy| limit > 0 && !policy.starts_with("volatile-")) {
        let what =
            if policy == "noeviction" { "takes no more when it is full" } else { "may evict the journal, which costs the whole tier" };
        usage.warnings.push(format!("maxmemory-policy is {policy}: Redis {what}; volatile-lru or another volatile-* suits"));
    }
    Ok(())
}

impl Usage {
    /// By the last part of the name that says what it is: `..}:h:..`.
    fn add(&mut self, name: &str, bytes: u64) {
        let kind = name.rsplit_once("}:").map_or("", |(_, rest)| rest);
        let records = match kind.as_bytes().first() {
            Some(b'p') => &mut self.primary,
            Some(b'h') => &mut self.heads,
            Some(b's') => &mut self.segments,
            Some(b'f') => &mut self.floors,
            Some(b'l') => &mut self.leases,
            _ => return,
        };
        self.keys_seen += 1;
        records.keys += 1;
        records.bytes += bytes;
    }
}
