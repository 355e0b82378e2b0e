//! What we keep in Redis, as far as a bounded look can tell; for people.

use crate::redis::{Holder, Link, Redis, RedisError, Use, pipe};
use std::time::{Duration, Instant};

/// Keys that are looked at, and for how long at most, in all.
const KEYS_MAX: usize = 100_000;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Keys that one step asks for.
const STEP: usize = 1000;
const WITHIN: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Usage {
    pub address: String,
    /// Not all keys were looked at, because the bound on keys or time was reached; or a server may not be asked about itself.
    pub partial: bool,
    /// Servers that were looked at: in a Cluster the masters.
    pub servers: usize,
    pub keys_seen: usize,
    pub primary: Records,
    pub heads: Records,
    pub segments: Records,
    pub floors: Records,
    pub leases: Records,
    /// Of the servers, everything in them.
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
    let began = Instant::now();
    for holder in link.holders(WITHIN).await? {
        usage.servers += 1;
        about_server(&link, holder, &mut usage).await?;
        scan(&link, holder, &redis.keys().tier_pattern(), began, &mut usage).await?;
    }
    Ok(usage)
}

/// All keys of one server: each of its cursors counts there only.
async fn scan(link: &Link, holder: Holder, pattern: &str, began: Instant, usage: &mut Usage) -> Result<(), RedisError> {
    let mut cursor = 0_u64;
    loop {
        if usage.keys_seen >= KEYS_MAX || began.elapsed() >= TIME_MAX {
            usage.partial = true;
            return Ok(());
        }
        let mut scan = pipe();
        scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
        let ((next, names),): ((u64, Vec<String>),) = link.pipeline_to(holder, &scan, WITHIN).await?;
        if !names.is_empty() {
            let mut measure = pipe();
            for name in &names {
                measure.cmd("STRLEN").arg(name);
            }
            let lengths: Vec<u64> = link.pipeline_to(holder, &measure, WITHIN).await?;
            names.iter().zip(lengths).for_each(|(name, bytes)| usage.add(name, bytes));
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

async fn about_server(link: &Link, holder: Holder, usage: &mut Usage) -> Result<(), RedisError> {
    let asked: Result<(String, String), RedisError> =
        link.pipeline_to(holder, pipe().cmd("INFO").arg("memory").cmd("INFO").arg("stats"), WITHIN).await;
    let (memory, stats) = match asked {
        Ok(answers) => answers,
        // A user that may not ask.
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
    let add = |sum: &mut Option<u64>, more: Option<u64>| *sum = more.map_or(*sum, |more| Some(sum.unwrap_or(0) + more));
    let limit: u64 = number(&memory, "maxmemory").unwrap_or(0);
    add(&mut usage.used_memory_bytes, number(&memory, "used_memory"));
    add(&mut usage.max_memory_bytes, Some(limit));
    add(&mut usage.evicted_keys, number(&stats, "evicted_keys"));
    usage.max_memory_policy = value(&memory, "maxmemory_policy");
    let mut warnings = Vec::new();
    if limit == 0 {
        warnings.push("maxmemory is not set: Redis may take all memory of its host".to_owned());
    }
    if let Some(policy) = usage.max_memory_policy.as_deref().filter(|policy| limit > 0 && !policy.starts_with("volatile-")) {
        let what =
            if policy == "noeviction" { "takes no more when it is full" } else { "may evict the journal, which costs the whole tier" };
        warnings.push(format!("maxmemory-policy is {policy}: Redis {what}; volatile-lru or another volatile-* suits"));
    }
    warnings.retain(|warning| !usage.warnings.contains(warning));
    usage.warnings.append(&mut warnings);
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
