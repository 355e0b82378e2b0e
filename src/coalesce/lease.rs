//! One leader across nodes: a lease in Redis for each fetch (DESIGN section 5).
//!
//! Who is about to fetch asks for the lease of what it fetches. Who gets it leads for the fleet: it renews the lease while
//! it fetches, and ends it with an outcome at the head of the response, which is published and kept for a moment. Who does
//! not get it waits for the outcome, woken by it, or for the lease to lapse, which it does soon after its holder died; and
//! never longer than [`Terms::wait`]. Redis slow or gone is no failure: everybody goes on alone, collapsed per node as ever.
//!
//! Invariant: nobody renews or ends a lease that is not its own: both compare a token that is new for each lease.

use crate::clock;
use crate::redis::{Link, Message, Redis, RedisError, Script, Use};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// How a fetch ended, as far as those who wait for it have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The response is in Redis.
    Stored,
    /// It may not be shared: everybody goes on alone.
    Uncacheable,
    /// It may be shared, but is larger than what Redis takes.
    TooLarge,
    /// Somebody else should try.
    Failed,
}

impl Ended {
    const ALL: [Self; 4] = [Self::Stored, Self::Uncacheable, Self::TooLarge, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Uncacheable => "uncacheable",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|ended| ended.as_str().as_bytes() == text)
    }
}

/// How leases are held and waited for.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// So long after its holder died another gets it.
    pub ttl: Duration,
    /// Longest wait for another's outcome.
    pub wait: Duration,
    /// So long an outcome is known to those who ask later.
    pub kept: Duration,
    /// What Redis may take for one answer.
    pub budget: Duration,
}

/// What asking came to.
pub enum Verdict {
    /// This node fetches for the fleet.
    Lead(Lease),
    /// Another node did; never [`Ended::Failed`].
    Ended(Ended),
    /// Nobody knows, or it took too long: fetch without a lease.
    Alone,
}

/// The leases of a fleet as one node sees them.
pub struct Leases {
    shared: Arc<Shared>,
    listener: AbortHandle,
}

struct Shared {
    link: Link,
    channel: String,
    terms: Terms,
    ask: Script,
    renew: Script,
    end: Script,
    /// Those here who wait, by the name of the lease.
    waiting: Mutex<HashMap<String, Waited>>,
}

/// A lease that is waited for here.
struct Waited {
    news: watch::Sender<News>,
    waiters: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    Ended(Ended),
    /// Something may have been missed: whoever waits asks again.
    Unknown,
}

/// Takes the lease if nobody has it: `h` and the token of who has it from now on. Else what is there, and for how many more
/// milliseconds. An outcome that is kept (`o...`) counts as nobody where the third argument says so.
const ASK: &str = "\
local there = redis.call('GET', KEYS[1])
if there and not (ARGV[3] == 'anew' and string.sub(there, 1, 1) == 'o') then
  return {there, redis.call('PTTL', KEYS[1])}
end
redis.call('SET', KEYS[1], 'h' .. ARGV[1], 'PX', ARGV[2])
return {'h' .. ARGV[1], tonumber(ARGV[2])}";

const RENEW: &str = "\
if redis.call('GET', KEYS[1]) ~= 'h' .. ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// A failure is not kept: who asks next leads.
const END: &str = "\
if redis.call('GET', KEYS[1]) ~= 'h' .. ARGV[1] then return 0 end
if ARGV[2] == 'failed' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], 'o' .. ARGV[2], 'PX', ARGV[3]) end
redis.call('PUBLISH', ARGV[4], ARGV[2] .. ' ' .. KEYS[1])
return 1";

/// Outcomes that may wait to be read; beyond, waits end by the lapse of their lease.
const MESSAGES: usize = 65_536;
/// Beyond the time that a lease is known to last, so that it has lapsed when it is asked for again.
const LAPSE_MARGIN: Duration = Duration::from_millis(5);
/// A key of somebody else's that never expires is not asked about all the time.
const LAPSE_MIN_MS: u64 = 20;

impl Leases {
    /// To be called on a runtime, which then listens.
    pub fn new(redis: &Redis, terms: Terms) -> Self {
        let channel = redis.keys().channel("lease");
        let shared = Arc::new(Shared {
            link: redis.link(Use::Lease),
            channel: channel.clone(),
            terms,
            ask: Script::new(ASK),
            renew: Script::new(RENEW),
            end: Script::new(END),
            waiting: Mutex::default(),
        });
        let mut messages = redis.subscribe(vec![channel], MESSAGES);
        let told = Arc::clone(&shared);
        let listener = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                told.hear(&message);
            }
        });
        Self { shared, listener: listener.abort_handle() }
    }

    /// Asks for a lease by the name of its key, and waits where another node has it. `anew`: an outcome that is kept was of no
    /// use, and does not count. Cancel-safe: a lease that came too late lapses.
    pub async fn ask(&self, key: &str, anew: bool) -> Verdict {
        let shared = &self.shared;
        let deadline = Instant::now() + shared.terms.wait;
        let token = format!("{:032x}", rand::random::<u128>());
        // Before asking: an outcome that comes in between is heard.
        let mut wait = Wait::begin(shared, key);
        loop {
            let Ok((there, left_ms)) = shared.ask(key, &token, anew).await else { return Verdict::Alone };
            match there.split_first() {
                Some((b'h', holder)) if holder == token.as_bytes() => return Verdict::Lead(Lease::begin(shared, key, token)),
                Some((b'h', _)) => {}
                Some((b'o', ended)) => return Ended::parse(ended).map_or(Verdict::Alone, Verdict::Ended),
                _ => return Verdict::Alone,
            }
            let lapses = Instant::now() + Duration::from_millis(u64::try_from(left_ms).unwrap_or(0).max(LAPSE_MIN_MS)) + LAPSE_MARGIN;
            match wait.news(lapses.min(deadline)).await {
                Some(News::Ended(Ended::Failed) | News::Unknown | News::None) => {}
                Some(News::Ended(ended)) => return Verdict::Ended(ended),
                None if Instant::now() >= deadline => return Verdict::Alone,
                None => {}
            }
        }
    }

    /// Leases that are waited for here.
    pub fn waited_for(&self) -> usize {
        self.shared.waiting.lock().len()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Shared {
    async fn ask(&self, key: &str, token: &str, anew: bool) -> Result<(Vec<u8>, i64), RedisError> {
        let ttl_ms = self.terms.ttl.as_millis().to_string();
        self.link.script(&self.ask, &[key], &[token, &ttl_ms, if anew { "anew" } else { "" }], self.terms.budget).await
    }

    /// Whether it was still its own.
    async fn renew(&self, key: &str, token: &str) -> Result<bool, RedisError> {
        self.link.script(&self.renew, &[key], &[token, &self.terms.ttl.as_millis().to_string()], self.terms.budget).await
    }

    async fn end(&self, key: &str, token: &str, ended: Ended) -> Result<bool, RedisError> {
        let kept_ms = self.terms.kept.as_millis().to_string();
        self.link.script(&self.end, &[key], &[token, ended.as_str(), &kept_ms, &self.channel], self.terms.budget).await
    }

    fn hear(&self, message: &Message) {
        match message {
            Message::Listening => {
                for waited in self.waiting.lock().values() {
                    waited.news.send_replace(News::Unknown);
                }
            }
            Message::Published { message, .. } => {
                let Some(at) = message.iter().position(|byte| *byte == b' ') else { return };
                let (Some(ended), Ok(key)) = (Ended::parse(&message[..at]), std::str::from_utf8(&message[at + 1..])) else { return };
                if let Some(waited) = self.waiting.lock().get(key) {
                    waited.news.send_replace(News::Ended(ended));
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
}

impl<'a> Wait<'a> {
    fn begin(shared: &'a Shared, key: &'a str) -> Self {
        let mut waiting = shared.waiting.lock();
        let waited = waiting.entry(key.to_owned()).or_insert_with(|| Waited { news: watch::Sender::new(News::None), waiters: 0 });
        waited.waiters += 1;
        Self { shared, key, news: waited.news.subscribe() }
    }

    /// What comes until then.
    async fn news(&mut self, until: Instant) -> Option<News> {
        tokio::select! {
            biased;
            changed = self.news.changed() => changed.ok().map(|()| *self.news.borrow_and_update()),
            () = sleep_until(until) => None,
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
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
    renewal: AbortHandle,
    /// Somebody was told.
    told: bool,
}

impl Lease {
    fn begin(shared: &Arc<Shared>, key: &str, token: String) -> Self {
        let (shared, key) = (Arc::clone(shared), key.to_owned());
        let renewal = tokio::spawn(renew(Arc::clone(&shared), key.clone(), token.clone())).abort_handle();
        Self { shared, key, token, renewal, told: false }
    }

    /// Tells everybody who waits. False where the lease had lapsed, or Redis did not answer.
    pub async fn end(mut self, ended: Ended) -> bool {
        self.told = true;
        self.renewal.abort();
        self.shared.end(&self.key, &self.token, ended).await.unwrap_or(false)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.told {
            return;
        }
        // Outside of a runtime nobody can be told: it lapses.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (shared, key, token) = (Arc::clone(&self.shared), std::mem::take(&mut self.key), std::mem::take(&mut self.token));
            runtime.spawn(async move {
                let _ = shared.end(&key, &token, Ended::Failed).await; // else it lapses
            });
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
