//! One leader across nodes: a lease in Redis for each fetch (DESIGN section 5).
//!
//! Who is about to fetch asks for the lease of what it fetches. Who gets it leads for the fleet: it renews the lease while
//! it fetches, and ends it with an outcome at the head of the response, which is published and kept for a moment. Who does
//! not get it waits for the outcome, woken by it, or for the lease to lapse, which it does soon after its holder died; and
//! never longer than [`settings::Lease::wait`]. Redis slow or gone is no failure: everybody goes on alone, collapsed per node as ever.
//!
//! An outcome is published only where somebody waits for it, so that a fetch nobody else wants costs the others nothing.
//!
//! Invariant: nobody renews or ends a lease that is not its own: both compare a token that is new for each lease.

use crate::clock;
use crate::config::settings;
pub use crate::observe::metrics::LeaseEnded as Ended;
use crate::observe::metrics::Metrics;
use crate::redis::{FromRedisValue, Link, Message, Redis, RedisError, Script, Use};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// What came of a fetch. No two are equal: each has the token of its lease in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub ended: Ended,
    /// As Redis keeps it: `stored 0123..`.
    text: String,
}

impl Outcome {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (ended, _) = text.split_once(' ')?;
        let ended = Ended::ALL.into_iter().find(|known| known.as_str() == ended)?;
        Some(Self { ended, text: text.to_owned() })
    }
}

/// A lease as Redis holds it, for people.
pub fn describe(there: &[u8]) -> &'static str {
    match there.split_first() {
        Some((b'h', _)) => "held: a node fetches",
        Some((b'w', _)) => "held: a node fetches, and others wait",
        Some((b'o', outcome)) => Outcome::parse(outcome).map_or("unknown", |outcome| outcome.ended.as_str()),
        _ => "unknown",
    }
}

/// A lease that is asked for while records are read, all of one slot.
pub struct Asking<'a> {
    /// Name of the lease.
    pub key: String,
    pub records: &'a [String],
    /// It is not taken unless so many of the first records are absent.
    pub absent: usize,
    /// An outcome that was of no use, and does not count.
    pub useless: Option<&'a Outcome>,
}

/// What was found at the time at which the records were read, with the name of the lease.
pub enum Claim {
    /// This node fetches for the fleet.
    Lead(Lease),
    /// Nobody has it, and because of the records it was not taken.
    Free(String),
    /// Another fetch has it.
    Held(String),
    Ended(String, Outcome),
    /// Nobody can tell.
    Unknown,
}

/// What asking, and waiting, came to.
pub enum Verdict {
    /// This node fetches for the fleet.
    Lead(Lease),
    /// Another node did; never [`Ended::Failed`].
    Ended(Outcome),
    /// Another node has it for too long: fetch without a lease.
    TimedOut,
    /// Redis does not say: fetch without a lease.
    Unknown,
}

/// The leases of a fleet as one node sees them.
pub struct Leases {
    shared: Arc<Shared>,
    /// Who hears outcomes, from the first question on.
    listener: OnceLock<AbortHandle>,
}

struct Shared {
    redis: Redis,
    link: Link,
    channel: String,
    terms: settings::Lease,
    /// What Redis may take for an answer that somebody waits for.
    budget: Duration,
    ask: Script,
    renew: Script,
    end: Script,
    /// Those here who wait, by the name of the lease.
    waiting: Mutex<HashMap<String, Waited>>,
    metrics: Arc<Metrics>,
}

/// A lease that is waited for here.
struct Waited {
    news: watch::Sender<News>,
    waiters: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum News {
    None,
    Ended(Outcome),
    /// Something may have been missed: whoever waits asks again.
    Unknown,
}

/// Reads the records behind the first key. Takes the lease unless somebody has it, or one of the first records (how many: the
/// fourth argument) is there; an outcome that is kept (`o..`) counts as nobody if it is the third argument. Who has it is `h`
/// and a token; `w` instead says that somebody waits, who is to be told. A Redis that takes no writes gives no leases (`?`), but
/// records.
const ASK: &str = "\
local records = {}
if #KEYS > 1 then records = redis.call('MGET', unpack(KEYS, 2)) end
local there = redis.call('GET', KEYS[1])
if there and there ~= ARGV[3] then
  local left = redis.call('PTTL', KEYS[1])
  if string.sub(there, 1, 1) == 'h' then redis.pcall('SET', KEYS[1], 'w' .. string.sub(there, 2), 'KEEPTTL') end
  return {there, left, records}
end
for i = 1, tonumber(ARGV[4]) do
  if records[i] then return {'', 0, records} end
end
if redis.pcall('SET', KEYS[1], 'h' .. ARGV[1], 'PX', ARGV[2]).err then return {'?', 0, records} end
return {'h' .. ARGV[1], tonumber(ARGV[2]), records}";

const RENEW: &str = "\
local there = redis.call('GET', KEYS[1])
if not there or string.sub(there, 2) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// A failure is not kept: who asks next leads.
const END: &str = "\
local there = redis.call('GET', KEYS[1])
if not there or string.sub(there, 2) ~= ARGV[1] then return 0 end
local outcome = ARGV[2] .. ' ' .. ARGV[1]
if ARGV[2] == 'failed' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], 'o' .. outcome, 'PX', ARGV[3]) end
if string.sub(there, 1, 1) == 'w' then redis.call('PUBLISH', ARGV[4], outcome .. ' ' .. KEYS[1]) end
return 1";

/// Outcomes that may wait to be read; beyond, waits end by the lapse of their lease.
const MESSAGES: usize = 65_536;
/// Beyond the time that a lease is known to last, so that it has lapsed when it is asked for again.
const LAPSE_MARGIN: Duration = Duration::from_millis(5);
/// A key of somebody else's that never expires is not asked about all the time.
const LAPSE_MIN_MS: u64 = 20;

impl Leases {
    /// `budget`: what Redis may take for an answer that somebody waits for.
    pub fn new(redis: &Redis, terms: settings::Lease, budget: Duration, metrics: &Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            link: redis.link(Use::Lease),
            channel: redis.keys().channel("lease"),
            terms,
            budget,
            ask: Script::new(ASK),
            renew: Script::new(RENEW),
            end: Script::new(END),
            waiting: Mutex::default(),
            metrics: Arc::clone(metrics),
            redis: redis.clone(),
        });
        Self { shared, listener: OnceLock::new() }
    }

    /// When a wait that begins now ends at the latest.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.shared.terms.wait
    }

    /// Asks for a lease while records are read, in one round trip on a link of the asker's.
    ///
    /// Cancel-safe: what was taken and not given is given back.
    pub async fn ask_along<R: FromRedisValue>(
        &self,
        link: &Link,
        within: Duration,
        asking: Asking<'_>,
    ) -> Result<(Claim, Vec<R>), RedisError> {
        self.listen();
        let (claim, _, records) = self.shared.ask(link, within, asking).await?;
        Ok((claim, records))
    }

    /// Asks for a lease by its name, and waits where another fetch has it. `useless`: an outcome that does not count.
    ///
    /// Cancel-safe, as [`Self::ask_along`].
    pub async fn ask(&self, key: &str, useless: Option<&Outcome>, deadline: Instant) -> Verdict {
        self.listen();
        let (shared, began) = (&self.shared, Instant::now());
        // Before asking: an outcome that comes in between is heard.
        let mut wait = Wait::begin(shared, key);
        if shared.link.is_new() {
            let _ = shared.link.ready(shared.budget).await; // the command tells
        }
        let verdict = loop {
            let asking = Asking { key: key.to_owned(), records: &[], absent: 0, useless };
            let within = shared.budget.min(deadline.saturating_duration_since(Instant::now()));
            let lapses = match shared.ask::<()>(&shared.link, within, asking).await {
                Ok((Claim::Lead(lease), ..)) => break Verdict::Lead(lease),
                Ok((Claim::Ended(_, outcome), ..)) => break Verdict::Ended(outcome),
                Ok((Claim::Held(_) | Claim::Free(_), left_ms, _)) => {
                    Instant::now() + Duration::from_millis(u64::try_from(left_ms).unwrap_or(0).max(LAPSE_MIN_MS)) + LAPSE_MARGIN
                }
                Ok((Claim::Unknown, ..)) | Err(_) => break Verdict::Unknown,
            };
            match wait.news(lapses.min(deadline)).await {
                Some(News::Ended(outcome)) if outcome.ended != Ended::Failed && Some(&outcome) != useless => break Verdict::Ended(outcome),
                Some(_) => {}
                None if Instant::now() >= deadline => break Verdict::TimedOut,
                None => {}
            }
        };
        if wait.was_needed {
            shared.metrics.lease.waited(began.elapsed());
        }
        verdict
    }

    /// Leases that are waited for here.
    pub fn waited_for(&self) -> usize {
        self.shared.waiting.lock().len()
    }

    fn listen(&self) {
        self.listener.get_or_init(|| {
            let mut messages = self.shared.redis.subscribe(vec![self.shared.channel.clone()], MESSAGES);
            let told = Arc::clone(&self.shared);
            let listener = tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    told.hear(&message);
                }
            });
            listener.abort_handle()
        });
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get() {
            listener.abort();
        }
    }
}

impl Shared {
    /// With the milliseconds that what is there has left.
    async fn ask<R: FromRedisValue>(
        self: &Arc<Self>,
        link: &Link,
        within: Duration,
        asking: Asking<'_>,
    ) -> Result<(Claim, i64, Vec<R>), RedisError> {
        let Asking { key, records, absent, useless } = asking;
        let useless = useless.map_or_else(String::new, |outcome| format!("o{}", outcome.text));
        let ttl_ms = self.terms.ttl.as_millis().to_string();
        let mut lease = Lease::unsure(self, key);
        let keys: Vec<_> = std::iter::once(&lease.key).chain(records).collect();
        let arguments = [&lease.token, &ttl_ms, &useless, &absent.to_string()];
        let answer: Result<(Vec<u8>, i64, Vec<R>), RedisError> = link.script(&self.ask, &keys, &arguments, within).await;
        // What was not answered may have been done: then it is undone.
        if matches!(answer, Ok(_) | Err(RedisError::Away | RedisError::Misconfigured(_))) {
            lease.is_over = true;
        }
        let (there, left_ms, records) = answer?;
        let claim = match there.split_first() {
            Some((b'h' | b'w', holder)) if holder == lease.token.as_bytes() => Claim::Lead(lease.begin()),
            Some((b'o', outcome)) => match Outcome::parse(outcome) {
                Some(outcome) => Claim::Ended(lease.take_key(), outcome),
                None => Claim::Held(lease.take_key()), // a later version's
            },
            Some((b'?', _)) => Claim::Unknown,
            Some(_) => Claim::Held(lease.take_key()),
            None => Claim::Free(lease.take_key()),
        };
        Ok((claim, left_ms, records))
    }

    /// Whether it was still its own.
    async fn renew(&self, key: &str, token: &str) -> Result<bool, RedisError> {
        self.link.script(&self.renew, &[key], &[token, &self.terms.ttl.as_millis().to_string()], self.terms.ttl).await
    }

    /// Whether somebody could be told. It takes as long as the lease may last, for nobody here waits.
    async fn end(&self, key: &str, token: &str, ended: Ended) -> bool {
        let kept_ms = self.terms.kept.as_millis().to_string();
        if self.link.is_new() {
            let _ = self.link.ready(self.terms.ttl).await; // the command tells
        }
        self.link.script(&self.end, &[key], &[token, ended.as_str(), &kept_ms, &self.channel], self.terms.ttl).await.unwrap_or(false)
    }

    fn hear(&self, message: &Message) {
        match message {
            Message::Listening => {
                for waited in self.waiting.lock().values() {
                    waited.news.send_replace(News::Unknown);
                }
            }
            Message::Published { message, .. } => {
                let Some(at) = message.iter().rposition(|byte| *byte == b' ') else { return };
                let (Some(outcome), Ok(key)) = (Outcome::parse(&message[..at]), std::str::from_utf8(&message[at + 1..])) else { return };
                if let Some(waited) = self.waiting.lock().get(key) {
                    waited.news.send_replace(News::Ended(outcome));
                }
            }
        }
    }
}

/// Somebody here who waits for a lease.
struct Wait<'a> {
    shared: &'a Shared,
    key: &'a str,
    news: watch::Receiver<News>,
    was_needed: bool,
}

impl<'a> Wait<'a> {
    fn begin(shared: &'a Shared, key: &'a str) -> Self {
        let mut waiting = shared.waiting.lock();
        let waited = waiting.entry(key.to_owned()).or_insert_with(|| Waited { news: watch::Sender::new(News::None), waiters: 0 });
        waited.waiters += 1;
        Self { shared, key, news: waited.news.subscribe(), was_needed: false }
    }

    /// What comes until then.
    async fn news(&mut self, until: Instant) -> Option<News> {
        if !self.was_needed {
            self.was_needed = true;
            self.shared.metrics.lease.waiting().inc();
        }
        tokio::select! {
            biased;
            changed = self.news.changed() => changed.ok().map(|()| self.news.borrow_and_update().clone()),
            () = sleep_until(until) => None,
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.was_needed {
            self.shared.metrics.lease.waiting().dec();
        }
        let mut waiting = self.shared.waiting.lock();
        if let Some(waited) = waiting.get_mut(self.key) {
            waited.waiters -= 1;
            if waited.waiters == 0 {
                waiting.remove(self.key);
            }
        }
    }
}

/// The right, and the duty, to fetch for the fleet. Dropped without an outcome it ends as failed.
pub struct Lease {
    shared: Arc<Shared>,
    key: String,
    token: String,
    renewal: Option<AbortHandle>,
    /// What is told when it is dropped.
    ended: Ended,
    /// Somebody was told, or nobody has to be.
    is_over: bool,
}

impl Lease {
    /// One that may or may not be got.
    fn unsure(shared: &Arc<Shared>, key: String) -> Self {
        let token = format!("{:032x}", rand::random::<u128>());
        Self { shared: Arc::clone(shared), key, token, renewal: None, ended: Ended::Failed, is_over: false }
    }

    fn begin(mut self) -> Self {
        self.is_over = false;
        self.renewal = Some(tokio::spawn(renew(Arc::clone(&self.shared), self.key.clone(), self.token.clone())).abort_handle());
        self
    }

    fn take_key(&mut self) -> String {
        std::mem::take(&mut self.key)
    }

    /// Tells everybody who waits. False where the lease had lapsed, or Redis did not answer.
    pub async fn end(mut self, ended: Ended) -> bool {
        self.is_over = true;
        self.stop_renewal();
        let told = self.shared.end(&self.key, &self.token, ended).await;
        self.count(ended, told);
        told
    }

    /// The same without waiting for Redis.
    pub fn tell(mut self, ended: Ended) {
        self.ended = ended; // told when it is dropped, which is now
    }

    fn stop_renewal(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }

    /// One that was never sure to be this node's own does not count.
    fn count(&self, ended: Ended, told: bool) {
        match (&self.renewal, told) {
            (None, _) => {}
            (Some(_), true) => self.shared.metrics.lease.ended(ended),
            (Some(_), false) => self.shared.metrics.lease.lapsed(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop_renewal();
        if self.is_over {
            return;
        }
        // Outside of a runtime nobody can be told: it lapses.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let ended = self.ended;
            let again = Self {
                shared: Arc::clone(&self.shared),
                key: self.take_key(),
                token: std::mem::take(&mut self.token),
                renewal: self.renewal.take(),
                ended,
                is_over: true,
            };
            runtime.spawn(async move { again.end(ended).await });
        }
    }
}

/// Renews a lease three times in its time, until it is another's.
async fn renew(shared: Arc<Shared>, key: String, token: String) {
    let mut lapses = clock::nanos() + shared.terms.ttl.as_nanos() as u64;
    loop {
        tokio::time::sleep(shared.terms.ttl / 3).await;
        let asked = clock::nanos();
        match shared.renew(&key, &token).await {
            Ok(true) => lapses = asked + shared.terms.ttl.as_nanos() as u64,
            Ok(false) => return,
            Err(_) if clock::nanos() > lapses => return,
            Err(_) => {}
        }
    }
}
