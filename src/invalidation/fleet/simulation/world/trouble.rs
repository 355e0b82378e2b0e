//! What goes wrong: to nodes, to Redis, and by those who have no business there.

use super::super::chance::Chance;
use super::resources::RESOURCES;
use super::{NODES, Outcome, Role, World};
use crate::invalidation::fleet::Event;
use crate::invalidation::fleet::codec::Fields;

/// What sort of trouble a seed makes: few kinds at a time get further than all at once.
#[derive(Debug)]
pub(super) struct Temper {
    /// Of [`World::disturb`], as bits.
    pub(super) kinds: u64,
    /// One message in so many is lost, or late; 0 for none.
    pub(super) lost: u64,
    pub(super) late: u64,
    /// One answer in so many is not what it should be.
    pub(super) damaged: u64,
    /// Nodes are cut off, or paused, at most so long; and Redis is down.
    pub(super) long_ms: u64,
    pub(super) outage_ms: u64,
    pub(super) resources: usize,
}

impl Temper {
    pub(super) fn new(chance: &mut Chance) -> Self {
        let kinds = if chance.one_in(4) { u64::MAX } else { chance.next() };
        Self {
            kinds,
            lost: chance.of([0, 200, 60, 20]),
            late: chance.of([0, 100, 25, 8]),
            damaged: chance.of([0, 0, 200, 40]),
            long_ms: chance.of([1500, 5000, 9000, 20_000]),
            outage_ms: chance.of([100, 1500, 5000, 9000]),
            resources: chance.of([1, 2, 4, RESOURCES.len()]),
        }
    }
}

impl World {
    pub(super) fn disturb(&mut self, node: usize) -> Outcome {
        let kind = self.chance.below(29);
        if self.temper.kinds & (1 << kind) == 0 {
            return Ok(());
        }
        match kind {
            0..3 => {
                let long = self.duration();
                self.nodes[node].cut_until = self.now_ms + long;
            }
            3..6 => {
                let long = self.duration();
                self.nodes[node].paused_until = self.now_ms + long;
            }
            6 => self.crash(node),
            7..9 => self.start(node),
            9 => self.leave(node)?,
            10 => {
                let long = self.chance.below(self.temper.outage_ms);
                self.redis_down_until = self.now_ms + long;
                self.drop_parked();
            }
            11 => {
                let long = self.chance.below(self.temper.outage_ms);
                self.redis_paused_until = self.now_ms + long;
            }
            12..14 => self.snapshot = self.redis.data.clone(),
            14 if self.chance.one_in(3) => self.restart_redis(self.snapshot.clone()),
            15 => self.restart_redis(self.redis.data.clone()),
            16..18 => self.restart_redis(self.replica.1.clone()),
            18 if self.chance.one_in(3) => self.redis.flush(),
            19 if self.chance.one_in(3) => self.redis.evict_record(),
            20 => {
                let stream = self.index(2);
                self.redis.evict_stream(stream);
            }
            21 => {
                let keep = self.index(3);
                self.redis.trim(keep);
            }
            22..24 => {
                let (stream, from_last) = (self.index(2), self.index(3));
                self.redis.delete_entry(stream, from_last);
            }
            24 => self.put_something_foreign(),
            25 => {
                if let Some(twin) = self.twin() {
                    self.crash(twin);
                    let of = self.index(NODES);
                    self.nodes[twin].name = self.nodes[of].name.clone();
                    self.start(twin);
                }
            }
            26 => self.forget(node)?,
            27 => self.purge_by_a_later_version(),
            _ => self.loses_next_append = true,
        }
        Ok(())
    }

    pub(super) fn twin(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.role == Role::Twin)
    }

    /// Somebody says on a node that another one never comes back. It has ended; its name may come back.
    pub(super) fn forget(&mut self, node: usize) -> Outcome {
        let gone = self.index(NODES);
        let name = self.nodes[gone].name.clone();
        let runs = self.nodes.iter().any(|other| other.name == name && other.process.is_some());
        if runs || !self.runs(node) || self.nodes[node].role == Role::Alone {
            return Ok(());
        }
        self.drive(node, Event::Forget(name))
    }

    /// A node of a later version purges by what this one cannot read.
    pub(super) fn purge_by_a_later_version(&mut self) {
        if self.redis_down_until > self.now_ms {
            return;
        }
        self.moment += 1;
        if let Some(position) = self.redis.append_later_version(self.now_ms) {
            self.later_versions.push((position, self.moment));
            self.answer_parked();
        }
    }

    /// Into one of the journal's streams, by somebody who has nothing to do with it.
    pub(super) fn put_something_foreign(&mut self) {
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let fields = match self.chance.below(4) {
            0 => Fields::new(),
            1 => Fields::from([field("prev", "soon"), field("id", "7")]),
            2 => Fields::from([field("prev", "1-1"), field("data", "{}")]),
            _ => Fields::from([field("message", "hello")]),
        };
        let ahead_ms = self.chance.of([0, 0, 0, 60_000, 1 << 52]);
        let stream = self.index(2);
        self.redis.add_foreign(stream, fields, ahead_ms, self.now_ms);
        self.answer_parked();
    }

    pub(super) fn duration(&mut self) -> u64 {
        self.chance.below(self.temper.long_ms)
    }
}
