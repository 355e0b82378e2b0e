//! What we keep in Redis, as far as a bounded look can tell; for people.

use crate::redis::{Holder, Kept, Link, Redis, RedisError, Use, cmd, pipe, unsuited};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Keys that are looked at, and for how long at most, in all.
const KEYS_MAX: usize = 100_000;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Keys that one step asks for.
const STEP: usize = 1000;
const WITHIN: Duration = Duration::from_secs(2);

/// What was found. Bytes are what Redis takes for it (`MEMORY USAGE`).
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
    pub rate_limits: Records,
    /// What nodes share to obtain certificates.
    pub acme: Records,
    /// Where it is to be there.
    pub journal: Option<JournalUsage>,
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

#[derive(Debug, Default, serde::Serialize)]
pub struct JournalUsage {
    /// Everything of it: the record, the streams, and what is left of epochs before.
    #[serde(flatten)]
    pub all: Records,
    pub epoch: Option<u64>,
    /// Nodes that are registered.
    pub nodes: usize,
    pub purges: StreamUsage,
    pub unsafe_methods: StreamUsage,
    #[serde(skip)]
    bytes_of: HashMap<String, u64>,
}

#[derive(Debug, Default, serde::Serialize)]
pub struct StreamUsage {
    pub entries: u64,
    /// `None` where the look ended before it.
    pub bytes: Option<u64>,
}

/// Looks with `SCAN`, which does not hold up others. `keeps`: what is to be kept there, [`Use::Bodies`] for the tier and
/// [`Use::Journal`].
pub async fn usage(redis: &Redis, keeps: &[Use]) -> Result<Usage, RedisError> {
    let link = redis.link(Use::Admin);
    link.ready(WITHIN).await?;
    let journal = keeps.contains(&Use::Journal).then(JournalUsage::default);
    let mut usage = Usage { address: redis.address(), journal, ..Usage::default() };
    let began = Instant::now();
    for holder in link.holders(WITHIN).await? {
        usage.servers += 1;
        about_server(&link, holder, keeps, &mut usage).await?;
        scan(&link, holder, redis, began, &mut usage).await?;
    }
    if let Some(journal) = &mut usage.journal {
        about_journal(&link, redis, journal).await?;
    }
    Ok(usage)
}

/// All keys of one server: each of its cursors counts there only.
async fn scan(link: &Link, holder: Holder, redis: &Redis, began: Instant, usage: &mut Usage) -> Result<(), RedisError> {
    let (keys, pattern) = (redis.keys(), redis.keys().pattern());
    let mut cursor = 0_u64;
    loop {
        if usage.keys_seen >= KEYS_MAX || began.elapsed() >= TIME_MAX {
            usage.partial = true;
            return Ok(());
        }
        let mut scan = pipe();
        scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
        let ((next, names),): ((u64, Vec<String>),) = link.pipeline_to(holder, &scan, WITHIN).await?;
        let ours: Vec<_> = names.into_iter().filter_map(|name| Some((keys.kept(&name)?, name))).collect();
        if !ours.is_empty() {
            let mut measure = pipe();
            for (_, name) in &ours {
                measure.cmd("MEMORY").arg("USAGE").arg(name);
            }
            // What is gone meanwhile takes nothing.
            let bytes: Vec<Option<u64>> = link.pipeline_to(holder, &measure, WITHIN).await?;
            ours.into_iter().zip(bytes).for_each(|((kept, name), bytes)| usage.add(kept, name, bytes.unwrap_or(0)));
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

async fn about_journal(link: &Link, redis: &Redis, journal: &mut JournalUsage) -> Result<(), RedisError> {
    let keys = redis.keys();
    let record: HashMap<String, String> = link.query(cmd("HGETALL").arg(keys.journal()), WITHIN).await?;
    journal.epoch = record.get("epoch").and_then(|epoch| epoch.parse().ok());
    journal.nodes = record.keys().filter(|field| field.starts_with("node:")).count();
    let Some(epoch) = journal.epoch else { return Ok(()) };
    for (name, stream) in [("purges", &mut journal.purges), ("unsafe", &mut journal.unsafe_methods)] {
        let key = keys.journal_stream(name, epoch);
        stream.entries = link.query(cmd("XLEN").arg(&key), WITHIN).await?;
        // One that has had no entry is not there.
        stream.bytes = if stream.entries == 0 { Some(0) } else { journal.bytes_of.get(&key).copied() };
    }
    Ok(())
}

async fn about_server(link: &Link, holder: Holder, keeps: &[Use], usage: &mut Usage) -> Result<(), RedisError> {
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
    if let Some(policy) = usage.max_memory_policy.as_deref().filter(|_| limit > 0) {
        let wrong = keeps.iter().filter_map(|purpose| unsuited(policy, *purpose));
        warnings.extend(wrong.map(|what| format!("maxmemory-policy is {policy}: Redis {what}; volatile-lru or another volatile-* suits")));
    }
    warnings.retain(|warning| !usage.warnings.contains(warning));
    usage.warnings.append(&mut warnings);
    Ok(())
}

impl Usage {
    fn add(&mut self, kept: Kept, name: String, bytes: u64) {
        let records = match kept {
            Kept::Primary => &mut self.primary,
            Kept::Head => &mut self.heads,
            Kept::Segment => &mut self.segments,
            Kept::Floor => &mut self.floors,
            Kept::Lease => &mut self.leases,
            Kept::Limit => &mut self.rate_limits,
            Kept::Acme => &mut self.acme,
            Kept::Journal => {
                let journal = self.journal.get_or_insert_default();
                journal.bytes_of.insert(name, bytes);
                &mut journal.all
            }
        };
        self.keys_seen += 1;
        records.keys += 1;
        records.bytes += bytes;
    }
}
