//! Writing behind: what is stored waits in a bounded queue for a thread of its own, and nobody waits for that.

use super::floors::{Floor, Floors, Raiser};
use crate::clock;
use crate::config::settings;
use crate::observe::metrics::{Metrics, TierWrite};
use crate::redis::{Breaker, Link, Redis, RedisError, Script, Use, cmd, pipe};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// For one command with up to a segment of bytes.
pub(super) const WITHIN: Duration = Duration::from_secs(2);
/// Segments live so much longer than their head, or than it was replaced: who found it may still read.
const DELIVERY_MAX_MS: u64 = 600_000;
/// Failures in a row after which writes are dropped unsent until one of them is due again.
const BREAKER_AFTER: u32 = 3;
/// Writes under way at a time.
const WRITERS: usize = 4;

/// Something to be written.
pub enum Write {
    /// A stored response. It is made into records when its turn comes; `None` where it is not to be kept any more.
    Store {
        /// What it holds in memory while it waits.
        bytes: u64,
        records: Box<dyn FnOnce() -> Option<Records> + Send>,
        /// Who wants to know what came of it; dropped unused where the queue is full.
        told: Option<oneshot::Sender<TierWrite>>,
    },
    Remove {
        name: String,
    },
}

/// The records of a stored response.
pub struct Records {
    /// Name and content.
    pub head: (String, Vec<u8>),
    pub primary: (String, Vec<u8>),
    pub segments: Segments,
    /// Where in head and primary record the time stands that the script compares, and in a head what it says of its body.
    pub began_at: usize,
    pub body_at: usize,
    /// The names of the segments that a head which this one replaces told of, unless they are its own: id of the body, and
    /// their number.
    pub replaced: Box<NamesOf>,
    pub keep: Duration,
    /// Told once the response is there.
    pub written: Box<dyn FnOnce() + Send>,
}

/// From the id of a body and the number of its segments to their names.
pub type NamesOf = dyn FnOnce(&[u8], u32) -> Vec<String> + Send;

/// The segments of its body.
pub enum Segments {
    /// To be written, one at a time: name and content.
    New(Box<dyn Iterator<Item = (String, Vec<u8>)> + Send>),
    /// They are there and are to live longer; where one is not, the response is not written.
    There(Vec<String>),
}

pub struct Queue {
    waiting: Mutex<Waiting>,
    entries_max: usize,
    bytes_max: u64,
    wake: Notify,
    /// They are many and small, and wait apart.
    pub floors: Floors,
    breaker: Breaker,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    writes: VecDeque<Write>,
    bytes: u64,
}

impl Write {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Store { bytes, .. } => *bytes,
            Self::Remove { .. } => 0,
        }
    }
}

impl Queue {
    pub fn start(redis: Redis, settings: &settings::RedisTier, metrics: Arc<Metrics>) -> std::io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            waiting: Mutex::default(),
            entries_max: settings.queue_entries,
            bytes_max: settings.queue_bytes,
            wake: Notify::new(),
            floors: Floors::new(Arc::clone(&metrics)),
            breaker: Breaker::new(BREAKER_AFTER),
            metrics,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let weak = Arc::downgrade(&queue);
        std::thread::Builder::new().name("redis-writes".into()).spawn(move || runtime.block_on(work(&weak, &redis)))?;
        Ok(queue)
    }

    pub fn push(&self, write: Write) {
        self.put(write, VecDeque::push_back);
    }

    /// Ahead of all that waits.
    pub fn push_first(&self, write: Write) {
        self.put(write, VecDeque::push_front);
    }

    fn put(&self, write: Write, put: impl FnOnce(&mut VecDeque<Write>, Write)) {
        let mut waiting = self.waiting.lock();
        let bytes = write.bytes();
        if waiting.writes.len() >= self.entries_max || waiting.bytes.saturating_add(bytes) > self.bytes_max {
            drop(waiting);
            self.metrics.tiers.write(TierWrite::Full, 0);
            return;
        }
        waiting.bytes += bytes;
        put(&mut waiting.writes, write);
        self.metrics.tiers.queue(waiting.writes.len(), waiting.bytes);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Whether Redis took the last writes, as far as is known.
    pub fn takes_writes(&self) -> bool {
        self.breaker.is_closed()
    }

    async fn next(&self) -> Write {
        loop {
            if let Some(write) = self.take() {
                return write;
            }
            self.wake.notified().await;
        }
    }

    fn take(&self) -> Option<Write> {
        let mut waiting = self.waiting.lock();
        let write = waiting.writes.pop_front()?;
        waiting.bytes -= write.bytes();
        self.metrics.tiers.queue(waiting.writes.len(), waiting.bytes);
        if !waiting.writes.is_empty() {
            self.wake.notify_one(); // another writer may be free
        }
        Some(write)
    }
}

/// Writes until the queue is gone.
async fn work(queue: &Weak<Queue>, redis: &Redis) {
    let writer = Writer { link: redis.link(Use::Bodies), script: Script::new(include_str!("store.lua")) };
    let all: [_; WRITERS] = std::array::from_fn(|_| writer.run(queue));
    let [a, b, c, d] = all;
    tokio::join!(a, b, c, d, raise_floors(redis, queue));
}

/// Raises floors until the queue is gone.
async fn raise_floors(redis: &Redis, queue: &Weak<Queue>) {
    let raiser = Raiser::new(redis);
    let _ = raiser.link.ready(WITHIN).await;
    while let Some(queue) = queue.upgrade() {
        if let Ok(floors) = tokio::time::timeout(IDLE, queue.floors.next()).await {
            let outcome = raise(&raiser, &queue.breaker, &floors).await;
            queue.metrics.tiers.floors(outcome, floors.len());
        }
    }
}

async fn raise(raiser: &Raiser, breaker: &Breaker, floors: &[Floor]) -> TierWrite {
    if !breaker.admits(clock::now().mono_ms) {
        return TierWrite::Skipped;
    }
    let result = raiser.raise(floors).await;
    judge(breaker, &result);
    result.map_or(TierWrite::Failed, |()| TierWrite::Floor)
}

/// Has the breaker know what came of a write.
fn judge<T>(breaker: &Breaker, result: &Result<T, RedisError>) {
    match result {
        Ok(_) if breaker.succeeded() => tracing::info!("Redis takes writes again"),
        Err(error) if breaker.failed(clock::now().mono_ms) => {
            tracing::warn!(%error, "Redis takes no writes: what is stored here is not shared until it does");
        }
        Ok(_) | Err(_) => {}
    }
}

struct Writer {
    link: Link,
    script: Script,
}

/// How often a writer looks whether its queue is still wanted.
const IDLE: Duration = Duration::from_secs(1);

impl Writer {
    async fn run(&self, queue: &Weak<Queue>) {
        let _ = self.link.ready(WITHIN).await; // what is written first need not find nobody there
        while let Some(queue) = queue.upgrade() {
            if let Ok(write) = tokio::time::timeout(IDLE, queue.next()).await {
                self.write(&queue, write).await;
            }
        }
    }

    async fn write(&self, queue: &Queue, mut write: Write) {
        let told = if let Write::Store { told, .. } = &mut write { told.take() } else { None };
        let (outcome, bytes) = self.carry_out(&queue.breaker, write).await;
        queue.metrics.tiers.write(outcome, bytes);
        if let Some(told) = told {
            let _ = told.send(outcome); // who asked may have gone
        }
    }

    /// With the bytes that were written.
    async fn carry_out(&self, breaker: &Breaker, write: Write) -> (TierWrite, u64) {
        if !breaker.admits(clock::now().mono_ms) {
            return (TierWrite::Skipped, 0);
        }
        let result = match write {
            Write::Remove { name } => self.link.query::<i64>(cmd("UNLINK").arg(name), WITHIN).await.map(|_| (TierWrite::Removed, 0)),
            Write::Store { records, .. } => match records() {
                None => return (TierWrite::Outdated, 0),
                Some(records) => self.store(records).await,
            },
        };
        judge(breaker, &result);
        result.unwrap_or((TierWrite::Failed, 0))
    }

    /// Segments first, the head last. What comes to nothing is taken out again; the segments of a response that was replaced
    /// stay as long as whoever found it may read.
    async fn store(&self, records: Records) -> Result<(TierWrite, u64), RedisError> {
        let Records { head, primary, segments, began_at, body_at, replaced, keep, written } = records;
        let keep_ms = clock::ms(keep).max(1);
        let longer_ms = keep_ms.saturating_add(DELIVERY_MAX_MS);
        let (mut bytes, mut new) = ((head.1.len() + primary.1.len()) as u64, Vec::new());
        match segments {
            Segments::New(segments) => {
                for (name, content) in segments {
                    bytes += content.len() as u64;
                    new.push(name.clone());
                    let put = self.link.query::<String>(cmd("SET").arg(name).arg(content).arg("PX").arg(longer_ms), WITHIN).await;
                    if let Err(error) = put {
                        self.take_out(new).await;
                        return Err(error);
                    }
                }
            }
            Segments::There(names) => {
                let there = self.expire(&names, longer_ms).await?;
                if there.contains(&0) {
                    return Ok((TierWrite::Outdated, 0));
                }
            }
        }
        let places = [keep_ms.to_string().into_bytes(), began_at.to_string().into_bytes(), body_at.to_string().into_bytes()];
        let [keep_ms, began_at, body_at] = places;
        let arguments = [head.1, primary.1, keep_ms, began_at, body_at];
        let put: Result<(i64, Vec<u8>, u32), _> = self.link.script(&self.script, &[head.0, primary.0], &arguments, WITHIN).await;
        match put {
            Ok((0, ..)) => {
                self.take_out(new).await;
                Ok((TierWrite::Older, 0))
            }
            Ok((_, body, segments)) => {
                let names = replaced(&body, segments);
                if !names.is_empty() {
                    // Where that fails they stay until they expire.
                    let _ = self.expire(&names, DELIVERY_MAX_MS).await;
                }
                written();
                Ok((TierWrite::Stored, bytes))
            }
            // Without an answer it may be visible.
            Err(error) => {
                if matches!(error, RedisError::Refused { .. } | RedisError::Away) {
                    self.take_out(new).await;
                }
                Err(error)
            }
        }
    }

    async fn expire(&self, names: &[String], within_ms: u64) -> Result<Vec<i64>, RedisError> {
        let mut expire = pipe();
        for name in names {
            expire.cmd("PEXPIRE").arg(name).arg(within_ms);
        }
        self.link.pipeline(&expire, WITHIN).await
    }

    /// Segments that no head leads to; where Redis does not take that either they expire.
    async fn take_out(&self, names: Vec<String>) {
        if !names.is_empty() {
            let _ = self.link.query::<i64>(cmd("UNLINK").arg(names), WITHIN).await;
        }
    }
}
