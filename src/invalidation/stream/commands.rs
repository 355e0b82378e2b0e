//! The commands of the fleet's protocol, carried out by Redis.

use super::codec::{self, Raw, VERSION};
use crate::invalidation::fleet::protocol::{Answer, Beat, Command, Proposal, Read};
use crate::redis::{Keys, Link, Redis, RedisError, Script, StreamReadReply, Use, cmd};
use std::collections::HashMap;
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

    /// Begins anew with both connections; with Sentinel, to whom is master by now.
    pub(super) fn reconnect(&self) {
        self.link.reconnect();
        self.follow.reconnect();
    }

    pub(super) async fn run(&self, command: Command) -> Result<Answer, RedisError> {
        match command {
            Command::Beat(beat) => self.beat(&beat).await,
            Command::Read(read) => self.read(read).await,
            Command::Append { epoch, purge } => self.append(epoch, "purges", "last", purge.id.to_string(), codec::purge_data(&purge)).await,
            Command::AppendUnsafe { epoch, batch } => {
                self.append(epoch, "unsafe", "unsafe_last", batch.id.to_string(), codec::hashes_data(&batch.hashes)).await
            }
            Command::Propose(proposal) => self.propose(proposal).await,
            Command::Leave { name, instance } => {
                let instance = instance.map_or_else(String::new, |instance| instance.to_string());
                let _: String = self.link.script(&self.leave, &[&self.record], &[name, instance], self.within).await?;
                Ok(Answer::Left)
            }
        }
    }

    async fn beat(&self, beat: &Beat) -> Result<Answer, RedisError> {
        let words: Vec<String> = self.link.script(&self.beat, &[&self.record], &codec::beat(beat), self.within).await?;
        codec::read_beat(&words).map(|answer| Answer::Beat(Box::new(answer))).map_err(|error| RedisError::Unexpected(error.to_string()))
    }

    async fn append(&self, epoch: u64, stream: &str, last: &str, id: String, data: Vec<u8>) -> Result<Answer, RedisError> {
        let most = self.max_entries.to_string();
        let texts = [epoch.to_string(), stream.to_owned(), last.to_owned(), most, id, VERSION.to_owned()];
        let arguments: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).chain([data]).collect();
        let place: Option<String> = self.link.script(&self.append, &[&self.record], &arguments, self.within).await?;
        match place {
            None => Ok(Answer::Appended(None)),
            Some(place) => match codec::position(epoch, &place) {
                Some(position) => Ok(Answer::Appended(Some(position))),
                None => Err(RedisError::Unexpected(format!("\"{place}\" is no place in a stream"))),
            },
        }
    }

    async fn propose(&self, Proposal { expected, at_least, base }: Proposal) -> Result<Answer, RedisError> {
        let arguments = [expected.map_or_else(String::new, |epoch| epoch.to_string()), at_least.to_string(), base.to_string()];
        let epoch: String = self.link.script(&self.propose, &[&self.record], &arguments, self.within).await?;
        epoch.parse().map(|epoch| Answer::Proposed { epoch }).map_err(|_| RedisError::Unexpected(format!("\"{epoch}\" is no epoch")))
    }

    async fn read(&self, Read { epoch, purges_after, unsafe_after, wait_ms, count }: Read) -> Result<Answer, RedisError> {
        let streams = ["purges", "unsafe"].map(|stream| self.keys.journal_stream(stream, epoch));
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(count).arg("BLOCK").arg(wait_ms).arg("STREAMS").arg(&streams);
        read.arg(&[codec::place(purges_after), codec::place(unsafe_after)]);
        let reply: Option<StreamReadReply> = self.follow.query(&read, Duration::from_millis(wait_ms) + self.within).await?;
        let (mut purges, mut unsafe_methods) = (Vec::new(), Vec::new());
        let damaged = |error: codec::Damaged| RedisError::Unexpected(error.to_string());
        for stream in reply.into_iter().flat_map(|reply| reply.keys) {
            for entry in &stream.ids {
                let fields: HashMap<String, Vec<u8>> =
                    entry.map.iter().filter_map(|(name, value)| Some((name.clone(), bytes(value)?))).collect();
                let raw = Raw { epoch, place: &entry.id, fields: &fields };
                if stream.key == streams[0] {
                    purges.push(raw.purge().map_err(damaged)?);
                } else {
                    unsafe_methods.push(raw.batch().map_err(damaged)?);
                }
            }
        }
        Ok(Answer::Read { purges, unsafe_methods })
    }
}

fn bytes(value: &crate::redis::Value) -> Option<Vec<u8>> {
    match value {
        crate::redis::Value::BulkString(bytes) => Some(bytes.clone()),
        _ => None,
    }
}
