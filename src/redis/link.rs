//! One connection, kept up by a task of its own.

use super::connect::{Connection, Holder, Role, Server};
use super::{Cmd, FromRedisValue, Pipeline, RedisError, Script, Shared, ToRedisArgs, Use, Value};
use crate::clock;
use crate::observe::metrics::RedisOutcome;
use prometheus::IntGauge;
use rand::RngExt;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Between two attempts to connect: the first, doubled each time up to the last, each shortened by chance to a half at
/// most, so that a fleet does not come back in step.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(2);
/// A connection on which every answer is late for so long is replaced.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How often Redis is asked for its clock, and for what it does when it is full.
const GREET_EVERY: Duration = Duration::from_secs(60);

/// A connection with one purpose. Dropping it closes the connection.
pub struct Link {
    line: Arc<Line>,
    /// The task that keeps the connection up.
    keeper: OnceLock<AbortHandle>,
}

struct Line {
    shared: Arc<Shared>,
    purpose: Use,
    /// The connection, while there is one.
    current: watch::Sender<Option<Current>>,
    /// Wakes the keeper to replace the connection of this generation, or an earlier one.
    broken: AtomicU64,
    wake: Notify,
    /// When the first of the commands was sent that came to nothing, in nanoseconds; 0: the last one was answered.
    silent_since: AtomicU64,
    was_connected: AtomicBool,
}

#[derive(Clone)]
struct Current {
    connection: Connection,
    connected: Connected,
    /// Monotonic nanoseconds.
    since: u64,
}

/// A connection that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Counts connections of this link, from 1.
    pub generation: u64,
    /// Whom it reached.
    pub server: Server,
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>, purpose: Use) -> Self {
        let line = Line {
            shared,
            purpose,
            current: watch::Sender::new(None),
            broken: AtomicU64::new(0),
            wake: Notify::new(),
            silent_since: AtomicU64::new(0),
            was_connected: AtomicBool::new(false),
        };
        Self { line: Arc::new(line), keeper: OnceLock::new() }
    }

    /// Sends a command and waits for its answer, at most so long. Fails at once where there is no connection.
    ///
    /// Cancel-safe; a command that was given up may still be carried out.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd, within: Duration) -> Result<T, RedisError> {
        self.run(within, async |mut connection| read(connection.send(command).await?)).await
    }

    /// Sends commands together; their keys must share a hash tag. The first error among the answers fails them all.
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline, within: Duration) -> Result<T, RedisError> {
        self.run(within, async |mut connection| Ok(connection.send_all(pipeline).await?)).await
    }

    /// Runs a script for each of these keys, whatever they are, with its own arguments, in one round trip. Where a server does not
    /// know it yet, what it refused for that is sent once more, and whole. Each is run, whatever becomes of the others; the first
    /// error among the answers is told.
    pub async fn script_each<K, A>(&self, script: &Script, calls: &[(K, A)], within: Duration) -> Result<(), RedisError>
    where
        K: ToRedisArgs,
        A: AsRef<[String]>,
    {
        let by_digest = calls.iter().map(|(key, own)| script.by_digest(&[key], own.as_ref())).collect();
        self.run(within, async |mut connection| {
            let (mut unknown, mut failed) = (Vec::new(), Ok(()));
            for ((key, own), answer) in calls.iter().zip(connection.send_each(by_digest).await?) {
                match answer.map_err(RedisError::from) {
                    Err(error) if error.is_unknown_script() => unknown.push(script.whole(&[key], own.as_ref())),
                    answer => failed = failed.and(answer.map(drop)),
                }
            }
            if !unknown.is_empty() {
                for answer in connection.send_each(unknown).await? {
                    failed = failed.and(answer.map(drop).map_err(RedisError::from));
                }
            }
            failed
        })
        .await
    }

    /// Runs a script; its keys must share a hash tag. Where Redis does not know it yet, it is sent whole.
    pub async fn script<T, K, A>(&self, script: &Script, keys: &[K], arguments: &[A], within: Duration) -> Result<T, RedisError>
    where
        T: FromRedisValue,
        K: ToRedisArgs,
        A: ToRedisArgs,
    {
        self.run(within, async |mut connection| match connection.send(&script.by_digest(keys, arguments)).await.map_err(RedisError::from) {
            Err(error) if error.is_unknown_script() => read(connection.send(&script.whole(keys, arguments)).await?),
            answer => read(answer?),
        })
        .await
    }

    /// Who answers for a key now. Asks; [`Link::connected`] says who answered when the connection was made.
    pub async fn server(&self, key: &str, within: Duration) -> Result<Server, RedisError> {
        self.run(within, async |mut connection| connection.server(Some(key)).await).await
    }

    /// The servers that hold keys: one; in a Cluster every master.
    pub async fn holders(&self, within: Duration) -> Result<Vec<Holder>, RedisError> {
        self.run(within, async |mut connection| connection.holders().await).await
    }

    /// Sends commands together to one of the servers that hold keys, whatever their keys.
    pub async fn pipeline_to<T: FromRedisValue>(&self, holder: Holder, pipeline: &Pipeline, within: Duration) -> Result<T, RedisError> {
        self.run(within, async |mut connection| connection.send_all_to(holder, pipeline).await).await
    }

    /// Whether it was never connected as yet.
    pub fn is_new(&self) -> bool {
        !self.line.was_connected.load(Ordering::Relaxed)
    }

    /// The connection, if there is one now.
    pub fn connected(&self) -> Option<Connected> {
        self.start();
        self.line.current.borrow().as_ref().map(|current| current.connected.clone())
    }

    /// How long the connection has been there, if there is one now.
    pub fn up_for(&self) -> Option<Duration> {
        let since = self.line.current.borrow().as_ref()?.since;
        Some(Duration::from_nanos(clock::nanos().saturating_sub(since)))
    }

    /// Waits for a connection, at most so long.
    pub async fn ready(&self, within: Duration) -> Result<Connected, RedisError> {
        self.start();
        let mut current = self.line.current.subscribe();
        let waited = timeout(within, current.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(current)) => current.as_ref().map(|current| current.connected.clone()).ok_or(RedisError::Away),
            _ => Err(RedisError::Away),
        }
    }

    /// Makes a new connection, with Sentinel to whom is master by now.
    pub fn reconnect(&self) {
        let generation = self.line.current.borrow().as_ref().map(|current| current.connected.generation);
        if let Some(generation) = generation {
            self.line.replace(generation);
        }
    }

    async fn run<T>(&self, within: Duration, act: impl AsyncFnOnce(Connection) -> Result<T, RedisError>) -> Result<T, RedisError> {
        self.start();
        let sent = clock::nanos();
        let current = self.line.current.borrow().clone();
        let Some(Current { connection, connected, .. }) = current else {
            self.line.count(RedisOutcome::Away, Duration::ZERO);
            return Err(RedisError::Away);
        };
        let result = timeout(within, act(connection)).await.unwrap_or(Err(RedisError::Timeout));
        self.line.ended(&result, sent, connected.generation);
        result
    }

    fn start(&self) {
        self.keeper.get_or_init(|| tokio::spawn(keep(Arc::downgrade(&self.line))).abort_handle());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
        self.line.current.send_replace(None);
    }
}

impl Line {
    /// Counts what came of a command, and judges the connection by it.
    fn ended<T>(&self, result: &Result<T, RedisError>, sent: u64, generation: u64) {
        let now = clock::nanos();
        let outcome = outcome(result);
        self.count(outcome, Duration::from_nanos(now.saturating_sub(sent)));
        if outcome != RedisOutcome::Timeout {
            self.silent_since.store(0, Ordering::Relaxed);
        } else if let Err(since) = self.silent_since.compare_exchange(0, sent, Ordering::Relaxed, Ordering::Relaxed)
            && now.saturating_sub(since) >= SILENCE_MAX.as_nanos() as u64
        {
            self.replace(generation);
        } else if now.saturating_sub(sent) >= SILENCE_MAX.as_nanos() as u64 {
            self.replace(generation);
        }
        if result.as_ref().is_err_and(RedisError::wants_another_connection) {
            self.replace(generation);
        }
    }

    fn count(&self, outcome: RedisOutcome, took: Duration) {
        self.shared.metrics.redis.command(self.purpose, outcome, took);
    }

    /// Has the connection of this generation replaced; a later one stays.
    fn replace(&self, generation: u64) {
        self.broken.fetch_max(generation, Ordering::AcqRel);
        self.current.send_if_modified(|current| {
            let is_it = current.as_ref().is_some_and(|current| current.connected.generation <= generation);
            if is_it {
                *current = None;
            }
            is_it
        });
        self.wake.notify_one();
    }
}

/// Counts a connection while it is up, also where its task is ended from outside.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Connects, and again whenever the connection broke, until the link is dropped.
async fn keep(line: Weak<Line>) {
    let (mut generation, mut backoff) = (0, BACKOFF_FIRST);
    loop {
        generation += 1;
        let Some(up) = line.upgrade() else { return };
        let attempt = connect(&up, generation).await;
        up.shared.metrics.redis.connect(up.purpose, attempt.is_ok());
        match attempt {
            Ok(current) => {
                let since = current.since;
                up.silent_since.store(0, Ordering::Relaxed);
                tracing::info!(redis = %up.shared.target, purpose = up.purpose.as_str(), generation, "connected to Redis");
                let _counted = Counted::new(up.shared.metrics.redis.connections(up.purpose));
                let connection = current.connection.clone();
                up.current.send_replace(Some(current));
                up.was_connected.store(true, Ordering::Relaxed);
                stay(up, connection, generation).await;
                tracing::warn!(generation, "connection to Redis lost");
                // One that did not last counts as a failed attempt.
                if clock::nanos() - since > BACKOFF_LAST.as_nanos() as u64 {
                    backoff = BACKOFF_FIRST;
                }
            }
            Err(error) => {
                if backoff == BACKOFF_FIRST {
                    tracing::warn!(redis = %up.shared.target, purpose = up.purpose.as_str(), %error, "no connection to Redis; trying on");
                }
                drop(up);
            }
        }
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(backoff.mul_f64(share)).await;
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

async fn connect(line: &Line, generation: u64) -> Result<Current, RedisError> {
    let target = &line.shared.target;
    let mut connection = target.connect().await?;
    let server = greet(line, &mut connection).await?;
    if server.role == Role::Replica && target.wants_master() {
        return Err(RedisError::Refused { code: "READONLY".into(), detail: "the server that Sentinel names is a replica yet".into() });
    }
    Ok(Current { connection, connected: Connected { generation, server }, since: clock::nanos() })
}

/// Asks who is there, and how things stand.
async fn greet(line: &Line, connection: &mut Connection) -> Result<Server, RedisError> {
    let (shared, purpose) = (&line.shared, line.purpose);
    let key = (purpose == Use::Journal).then(|| shared.keys.journal());
    let ask = async {
        let server = connection.server(key.as_deref()).await?;
        if !is_of_many(purpose, connection) {
            shared.check_policy(purpose, std::slice::from_ref(&server.when_full));
        }
        shared.set_clock_offset(connection.clock_offset().await?);
        Ok(server)
    };
    timeout(shared.target.connect_timeout(), ask).await.unwrap_or(Err(RedisError::Timeout))
}

/// Whether what connections of this use keep there is with many servers.
fn is_of_many(purpose: Use, connection: &Connection) -> bool {
    purpose == Use::Bodies && matches!(connection, Connection::Cluster(_))
}

/// Asks all servers of many what they do when they are full. Beside all else: a connection is as good as those who answer.
async fn look_around(line: &Line, mut connection: Connection) -> Infallible {
    if is_of_many(line.purpose, &connection)
        && let Ok(Ok(policies)) = timeout(line.shared.target.connect_timeout(), connection.policies()).await
    {
        line.shared.check_policy(line.purpose, &policies);
    }
    std::future::pending().await
}

/// Until the connection is to be replaced; asks now and then.
async fn stay(line: Arc<Line>, mut connection: Connection, generation: u64) {
    loop {
        let woken = tokio::select! {
            woken = timeout(GREET_EVERY, line.wake.notified()) => woken.is_ok(),
            never = look_around(&line, connection.clone()) => match never {},
        };
        if line.broken.load(Ordering::Acquire) >= generation {
            return;
        }
        if woken {
            continue;
        }
        if greet(&line, &mut connection).await.is_err() {
            line.replace(generation);
        }
    }
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, RedisError> {
    ::redis::from_redis_value(value).map_err(|error| RedisError::Unexpected(error.to_string()))
}

fn outcome<T>(result: &Result<T, RedisError>) -> RedisOutcome {
    match result {
        Ok(_) => RedisOutcome::Answered,
        Err(RedisError::Away | RedisError::Misconfigured(_)) => RedisOutcome::Away,
        Err(RedisError::Timeout) => RedisOutcome::Timeout,
        Err(RedisError::Refused { .. }) => RedisOutcome::Refused,
        Err(RedisError::Broken(_) | RedisError::Unexpected(_)) => RedisOutcome::Broken,
    }
}
