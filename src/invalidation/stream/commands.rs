//! The commands of the fleet's protocol, carried out by Redis.

use crate::invalidation::fleet::codec::{self, Fields, STREAMS};
use crate::invalidation::fleet::protocol::{Answer, Command, Read};
use crate::redis::{FromRedisValue, Keys, Link, Redis, RedisError, Script, StreamReadReply, ToRedisArgs, Use, Value, cmd};
use std::time::Duration;

/// A command that was not answered in this time counts as failed.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Two connections: one for what is answered at once, one for the read that waits.
pub(super) struct Commands {
    link: Link,
    follow: Link,
    keys: Keys,
    record: String,
    max_entries: u64,
    within: Duration,
    append: Script,
    beat: Script,
    propose: Script,
    leave: Script,
}

impl Commands {
    /// An answer after half of `trust` would hardly extend it.
    pub(super) fn new(redis: &Redis, max_entries: u64, trust: Duration) -> Self {
        Self {
            link: redis.link(Use::Journal),
            follow: redis.link(Use::Follow),
            keys: redis.keys().clone(),
            record: redis.keys().journal(),
            max_entries,
            within: ANSWER_MAX.min(trust / 2),
            append: Script::new(include_str!("append.lua")),
            beat: Script::new(include_str!("beat.lua")),
            propose: Script::new(include_str!("propose.lua")),
            leave: Script::new(include_str!("leave.lua")),
        }
    }

    /// Begins anew with both connections where both have been there for `age`; with Sentinel, to whom is master by now. While one
    /// of them is being made nothing can succeed that needs it: the other, given up over that, would be missing in its turn.
    pub(super) fn reconnect_after(&self, age: Duration) {
        let links = [&self.link, &self.follow];
        if links.iter().all(|link| link.up_for().is_some_and(|up_for| up_for >= age)) {
            links.iter().for_each(|link| link.reconnect());
        }
    }

    pub(super) async fn run(&self, command: Command) -> Result<Answer, RedisError> {
        let read = match command {
            Command::Beat(beat) => {
                let words: Vec<String> = self.call(&self.beat, &codec::beat(&beat)).await?;
                codec::read_beat(&words).map(|answer| Answer::Beat(Box::new(answer)))
            }
            Command::Read(read) => codec::read_found(&read, &self.read(&read).await?).map(Answer::Read),
            Command::Append { epoch, purge } => {
                let place: Option<String> = self.call(&self.append, &codec::append_purge(epoch, &purge, self.max_entries)).await?;
                codec::read_appended(epoch, place.as_deref())
            }
            Command::AppendUnsafe { epoch, batch } => {
                let place: Option<String> = self.call(&self.append, &codec::append_batch(epoch, &batch, self.max_entries)).await?;
                codec::read_appended(epoch, place.as_deref())
            }
            Command::Propose(proposal) => {
                let epoch: String = self.call(&self.propose, &codec::propose(&proposal)).await?;
                codec::read_proposed(&epoch)
            }
            Command::Leave { name, instance } => {
                let _: String = self.call(&self.leave, &codec::leave(&name, instance)).await?;
                Ok(Answer::Left)
            }
        };
        read.map_err(|damaged| RedisError::Unexpected(damaged.to_string()))
    }

    async fn call<T: FromRedisValue>(&self, script: &Script, arguments: &[impl ToRedisArgs]) -> Result<T, RedisError> {
        self.link.script(script, &[&self.record], arguments, self.within).await
    }

    async fn read(&self, read: &Read) -> Result<[Vec<(String, Fields)>; 2], RedisError> {
        let streams = STREAMS.map(|stream| self.keys.journal_stream(stream, read.epoch));
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(read.count).arg("BLOCK").arg(read.wait_ms).arg("STREAMS").arg(&streams);
        command.arg(&[codec::place(read.purges_after), codec::place(read.unsafe_after)]);
        let within = Duration::from_millis(read.wait_ms) + self.within;
        let reply: Option<StreamReadReply> = self.follow.query(&command, within).await?;
        let mut found = [Vec::new(), Vec::new()];
        for stream in reply.into_iter().flat_map(|reply| reply.keys) {
            let entries = stream.ids.into_iter().map(|entry| {
                let fields = entry.map.into_iter().filter_map(|(name, value)| Some((name, bytes(value)?))).collect();
                (entry.id, fields)
            });
            found[usize::from(stream.key != streams[0])].extend(entries);
        }
        Ok(found)
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
