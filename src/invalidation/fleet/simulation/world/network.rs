//! The network, and Redis at its end.

use super::super::redis::Data;
use super::{What, World};
use crate::invalidation::fleet::protocol::{Answer, Command, Ticket};

impl World {
    pub(super) fn send(&mut self, node: usize, life: u64, ticket: Ticket, command: Command) {
        if matches!(command, Command::Read(_)) {
            self.parked.retain(|(parked, ..)| *parked != node);
        }
        let cut = self.nodes[node].cut_until > self.now_ms;
        if cut || self.loses() {
            let answer = Err("lost on the way there");
            let after = if self.chance.one_in(2) { 20 } else { 1000 };
            self.later(after, What::ToNode { node, life, ticket, answer });
            return;
        }
        let delay = self.delay();
        self.later(delay, What::ToRedis { node, life, ticket, command });
    }

    pub(super) fn at_redis(&mut self, node: usize, life: u64, ticket: Ticket, command: &Command) {
        if self.redis_down_until > self.now_ms {
            self.later(1, What::ToNode { node, life, ticket, answer: Err("refused") });
            return;
        }
        if self.redis_paused_until > self.now_ms {
            let left = self.redis_paused_until - self.now_ms;
            self.later(left, What::ToRedis { node, life, ticket, command: command.clone() });
            return;
        }
        let is_append = matches!(command, Command::Append { .. } | Command::AppendUnsafe { .. });
        if is_append && std::mem::take(&mut self.loses_next_append) {
            let before = self.redis.data.clone();
            if let Some(answer) = self.redis.run(command, self.now_ms) {
                self.answer(node, life, ticket, answer);
            }
            return self.restart_redis(before);
        }
        if !self.calm && self.temper.damaged > 0 && self.chance.one_in(self.temper.damaged) {
            self.seen.damaged += 1;
            let pick = self.chance.next();
            let answer = if pick.is_multiple_of(4) { Ok(Answer::Left) } else { self.redis.run_damaged(command, self.now_ms, pick) };
            self.later(1, What::ToNode { node, life, ticket, answer });
            if is_append {
                self.answer_parked();
            }
            return;
        }
        match self.redis.run(command, self.now_ms) {
            Some(answer) => self.answer(node, life, ticket, answer),
            None => {
                let Command::Read(read) = command else { return };
                self.parked.push((node, life, ticket, *read));
                self.later(read.wait_ms, What::ReadEnds { node, life, ticket });
            }
        }
        if is_append {
            self.answer_parked();
        }
    }

    /// There is something new in the streams.
    pub(super) fn answer_parked(&mut self) {
        for (node, life, ticket, read) in std::mem::take(&mut self.parked) {
            match self.redis.run(&Command::Read(read), self.now_ms) {
                Some(answer) => self.answer(node, life, ticket, answer),
                None => self.parked.push((node, life, ticket, read)),
            }
        }
    }

    pub(super) fn answer(&mut self, node: usize, life: u64, ticket: Ticket, answer: Answer) {
        let lost = self.nodes[node].cut_until > self.now_ms || self.loses();
        if lost {
            self.later(1000, What::ToNode { node, life, ticket, answer: Err("lost on the way back") });
        } else {
            let delay = self.delay();
            self.later(delay, What::ToNode { node, life, ticket, answer: Ok(answer) });
        }
    }

    pub(super) fn drop_parked(&mut self) {
        for (node, life, ticket, _) in std::mem::take(&mut self.parked) {
            self.later(1, What::ToNode { node, life, ticket, answer: Err("closed") });
        }
    }

    pub(super) fn restart_redis(&mut self, data: Data) {
        self.drop_parked();
        self.servers += 1;
        // No node remembers these: what a server loses of them is lost.
        self.later_versions.clear();
        let ahead_ms = i64::try_from(self.chance.below(400)).expect("small") - 200;
        self.redis.become_another(self.servers, data, ahead_ms);
        let down_ms = self.chance.below(self.temper.outage_ms);
        self.redis_down_until = self.redis_down_until.max(self.now_ms + down_ms);
    }

    pub(super) fn delay(&mut self) -> u64 {
        let late = !self.calm && self.temper.late > 0 && self.chance.one_in(self.temper.late);
        if late { self.chance.below(2500) } else { 1 + self.chance.below(4) }
    }

    pub(super) fn loses(&mut self) -> bool {
        !self.calm && self.temper.lost > 0 && self.chance.one_in(self.temper.lost)
    }
}
