//! A model of the Redis that keeps the journal: the record, the streams, the scripts of [`super::super::protocol`] word by
//! word, and a shared tier beside them. It is spoken to as Redis is: in the texts and bytes of [`codec`].

use super::super::codec::{self, Fields};
use super::super::protocol::{Answer, Command, Doubt, Member, Read, Server, Vouch};
use super::world::TierEntry;
use crate::invalidation::Position;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Entries of each stream that are kept at most.
const ENTRIES_MAX: u64 = 1000;

/// What a snapshot holds and a replica copies.
#[derive(Debug, Clone, Default)]
pub(super) struct Data {
    record: Option<Kept>,
    /// Purges, and unsafe methods.
    streams: [Stream; 2],
    pub(super) tier: BTreeMap<(u64, usize), TierEntry>,
}

#[derive(Debug, Clone)]
struct Kept {
    epoch: u64,
    base: Position,
    /// Of both streams.
    last: [Position; 2],
    server: Server,
    since_ms: i64,
    ids_from_ms: i64,
    doubt: Option<Doubt>,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    epoch: u64,
    entries: VecDeque<(Position, Rc<Fields>)>,
    /// Also of entries that are gone.
    last_generated: Position,
}

#[derive(Debug)]
pub(super) struct Redis {
    pub(super) server: Server,
    /// Its clock against the world's.
    pub(super) clock_ms: i64,
    pub(super) data: Data,
}

impl Redis {
    pub(super) fn new(name: u64) -> Self {
        Self { server: server(name), clock_ms: 0, data: Data::default() }
    }

    /// Another process or another master, with this data.
    pub(super) fn become_another(&mut self, name: u64, data: Data, clock_ms: i64) {
        *self = Self { server: server(name), clock_ms, data };
    }

    fn now_ms(&self, world_ms: u64) -> i64 {
        1_000_000 + i64::try_from(world_ms).unwrap() + self.clock_ms
    }

    /// Does a command; `None` where a read has nothing to answer yet.
    pub(super) fn run(&mut self, command: &Command, world_ms: u64) -> Option<Answer> {
        let answer = self.answer(command, world_ms, |words| words)?;
        Some(answer.expect("what the model writes can be read"))
    }

    /// Does a command, and what it answers is damaged: a word of it, or all behind one. A name is not: who cannot trust a text
    /// of Redis' to be the one that was written cannot trust any.
    pub(super) fn run_damaged(&mut self, command: &Command, world_ms: u64, pick: u64) -> Result<Answer, &'static str> {
        let damage = |mut words: Vec<String>| {
            let at = usize::try_from(pick >> 8).unwrap_or(usize::MAX) % words.len().max(1);
            match words.get_mut(at) {
                Some(word) if at < 12 || at % 2 == 1 => *word = "?".into(),
                _ => words.truncate(6),
            }
            words
        };
        self.answer(command, world_ms, damage).unwrap_or(Err("nothing came")).map_err(|_| "damaged")
    }

    fn answer(
        &mut self,
        command: &Command,
        world_ms: u64,
        way: impl Fn(Vec<String>) -> Vec<String>,
    ) -> Option<Result<Answer, &'static str>> {
        let now_ms = self.now_ms(world_ms);
        let one = |word: String| way(vec![word]).concat();
        let answer = match command {
            Command::Beat(beat) => {
                let mut words = vec![self.server.0.to_string(), now_ms.to_string()];
                words.extend(self.beat(&codec::beat(beat), now_ms));
                let words = way(words);
                codec::read_beat(&words).map(|answer| Answer::Beat(Box::new(answer)))
            }
            Command::Read(read) => {
                let mut found = self.read(read)?;
                for (place, _) in found.iter_mut().flatten() {
                    *place = one(std::mem::take(place));
                }
                codec::read_found(read, &found).map(Answer::Read)
            }
            Command::Append { epoch, purge } => {
                let place = self.append(0, &codec::append_purge(*epoch, purge, ENTRIES_MAX), now_ms).map(one);
                codec::read_appended(*epoch, place.as_deref())
            }
            Command::AppendUnsafe { epoch, batch } => {
                let place = self.append(1, &codec::append_batch(*epoch, batch, ENTRIES_MAX), now_ms).map(one);
                codec::read_appended(*epoch, place.as_deref())
            }
            Command::Propose(proposal) => codec::read_proposed(&one(self.propose(&codec::propose(proposal), now_ms))),
            Command::Leave { name, instance } => {
                self.leave(&codec::leave(name, *instance));
                Ok(Answer::Left)
            }
        };
        Some(answer.map_err(|_| "damaged"))
    }

    /// `beat.lua`. From the status on; what stands before it is the same in each answer.
    fn beat(&mut self, arguments: &[String], now_ms: i64) -> Vec<String> {
        let status = self.take_beat(arguments, now_ms);
        let mut words = vec![status.to_owned()];
        let [purges, unsafe_methods] = &self.data.streams;
        if let Some(record) = &self.data.record {
            let doubt = record.doubt.as_ref().map_or_else(String::new, |doubt| {
                let state = if doubt.spoiled { "spoiled" } else { "whole" };
                format!("{} {} {} {state}", doubt.server.0, doubt.since_ms, doubt.newest_ms)
            });
            words.extend([
                record.epoch.to_string(),
                record.base.to_string(),
                codec::place(record.last[0]),
                codec::place(record.last[1]),
                codec::place(purges.first_previous(record.last[0])),
                codec::place(unsafe_methods.first_previous(record.last[1])),
                record.server.0.to_string(),
                record.since_ms.to_string(),
                doubt,
            ]);
            for member in record.members.values() {
                words.extend([member.name.clone(), codec::member_text(member)]);
            }
        }
        words
    }

    fn take_beat(&mut self, arguments: &[String], now_ms: i64) -> &'static str {
        let Some(record) = self.data.record.as_mut() else { return "no_record" };
        let [name, instance, policy, beat, acknowledged, epoch, applied, unsafe_applied, witness, rest @ ..] = arguments else {
            panic!("{arguments:?}")
        };
        let [believed, vouch, prune_ms, ids_ahead_ms, lapse_ms, restore @ ..] = rest else { panic!("{arguments:?}") };
        let number = |text: &String| text.parse::<i64>().expect("a number");
        let [purges, unsafe_methods] = &self.data.streams;
        if record.server != self.server && record.doubt.as_ref().is_none_or(|doubt| doubt.server != self.server) {
            let newest_ms = record.members.values().map(|member| member.at_ms).max().unwrap_or(0);
            record.doubt = Some(Doubt { server: self.server.clone(), since_ms: now_ms, newest_ms, spoiled: false });
        }
        if *believed != *self.server.0 {
            return "other_server";
        }
        if *epoch != record.epoch.to_string() {
            return "other_epoch";
        }
        let at = |place: &str| codec::position(record.epoch, place).expect("a place");
        let (applied, unsafe_applied) = (at(applied), at(unsafe_applied));
        let first_previous = purges.first_previous(record.last[0]);
        if applied < first_previous || unsafe_applied < unsafe_methods.first_previous(record.last[1]) {
            return "behind_trim";
        }
        if applied > record.last[0] || purges.is_used_up() || unsafe_methods.is_used_up() {
            return "entry_lost";
        }
        if !witness.is_empty() && applied > first_previous && purges.id_at(applied) != Some(witness.as_bytes()) {
            return "entry_lost";
        }
        let before = record.members.get(name).filter(|member| !member.left);
        let is_same = before.is_some_and(|member| member.instance.to_string() == *instance);
        if before.is_some_and(|member| !is_same && (now_ms - member.at_ms).abs() < number(lapse_ms)) {
            return "name_taken";
        }
        let continued = is_same && before.is_some_and(|member| member.beat >= number(acknowledged).unsigned_abs());
        let replaced = before.is_some() && !is_same;
        if let Some(doubt) = record.doubt.as_mut()
            && !continued
            && (acknowledged != "0" || replaced)
        {
            doubt.spoiled = true;
        }
        record.members.retain(|_, member| now_ms - member.at_ms < number(prune_ms));
        for [name, text] in restore.as_chunks::<2>().0 {
            let member = codec::read_member(name, text);
            record.members.entry(name.clone()).or_insert(member);
        }
        let text = format!("{instance} {beat} {acknowledged} {applied} {now_ms} stays {policy} {}", self.server.0);
        record.members.insert(name.clone(), codec::read_member(name, &text));
        let vouched = match vouch.as_str() {
            "" => false,
            "together" => record.doubt.as_ref().is_some_and(|doubt| !doubt.spoiled),
            until_ms => now_ms <= number(&until_ms.to_owned()),
        };
        if vouched && record.server != self.server {
            (record.server, record.since_ms, record.doubt) = (self.server.clone(), now_ms, None);
            assert_eq!(number(ids_ahead_ms), Vouch::IDS_AHEAD_MS);
            record.ids_from_ms = now_ms + number(ids_ahead_ms);
        }
        if continued { "continued" } else { "begun" }
    }

    /// What `XREAD` gives, where that is anything.
    fn read(&self, read: &Read) -> Option<[Vec<(String, Fields)>; 2]> {
        let [purges, unsafe_methods] = &self.data.streams;
        let after = |stream: &Stream, position: Position| -> Vec<(String, Fields)> {
            let entries = stream.entries.iter().filter(|(at, _)| stream.epoch == read.epoch && *at > position);
            entries.take(read.count).map(|(at, fields)| (codec::place(*at), Fields::clone(fields))).collect()
        };
        let found = [after(purges, read.purges_after), after(unsafe_methods, read.unsafe_after)];
        found.iter().any(|stream| !stream.is_empty()).then_some(found)
    }

    /// `append.lua`.
    fn append(&mut self, stream: usize, arguments: &[Vec<u8>], now_ms: i64) -> Option<String> {
        let [epoch, name, last_field, most, id, version, data] = arguments else { panic!("{arguments:?}") };
        assert_eq!((name.as_slice(), last_field.as_slice()), [(&b"purges"[..], &b"last"[..]), (b"unsafe", b"unsafe_last")][stream]);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let record = self.data.record.as_mut().filter(|record| text(epoch) == record.epoch.to_string() && record.server == self.server)?;
        let previous = record.last[stream];
        let fields = [("prev", codec::place(previous).into_bytes()), ("id", id.clone()), ("v", version.clone()), ("data", data.clone())];
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let (of, from_ms) = (&mut self.data.streams[stream], now_ms.max(record.ids_from_ms));
        record.last[stream] = of.add(record.epoch, previous, fields, from_ms);
        of.trim(text(most).parse().expect("a number"));
        Some(codec::place(record.last[stream]))
    }

    /// `propose.lua`.
    fn propose(&mut self, [expected, at_least, base]: &[String; 3], now_ms: i64) -> String {
        let epoch = self.data.record.as_ref().map(|record| record.epoch);
        let text = epoch.map_or_else(String::new, |epoch| epoch.to_string());
        if text != *expected {
            return if text.is_empty() { "0".into() } else { text };
        }
        let at_least: u64 = at_least.parse().expect("a number");
        let epoch = at_least.max(epoch.unwrap_or(0) + 1).max(now_ms.unsigned_abs());
        let start = Position::start_of(epoch);
        let members = self.data.record.take().map(|record| record.members).unwrap_or_default();
        self.data.record = Some(Kept {
            epoch,
            base: base.parse().expect("a position"),
            last: [start, start],
            server: self.server.clone(),
            since_ms: now_ms,
            ids_from_ms: 0,
            doubt: None,
            members,
        });
        self.data.streams = Default::default();
        epoch.to_string()
    }

    /// `leave.lua`.
    fn leave(&mut self, [name, instance]: &[String; 2]) {
        let member = self.data.record.as_mut().and_then(|record| record.members.get_mut(name));
        if let Some(member) = member.filter(|member| *instance == member.instance.to_string()) {
            member.left = true;
        }
    }

    /// A node of a later version appends a purge; where it got its place.
    pub(super) fn append_later_version(&mut self, world_ms: u64) -> Option<Position> {
        let epoch = self.epoch();
        let id = format!("{:032x}", world_ms).into_bytes();
        let words = [epoch.to_string().into_bytes(), b"purges".into(), b"last".into(), ENTRIES_MAX.to_string().into_bytes()];
        let arguments: Vec<Vec<u8>> = words.into_iter().chain([id, b"2".into(), b"{}".into()]).collect();
        let place = self.append(0, &arguments, self.now_ms(world_ms))?;
        codec::position(epoch, &place)
    }

    /// The last purge.
    pub(super) fn last(&self) -> Option<Position> {
        self.data.record.as_ref().map(|record| record.last[0])
    }

    pub(super) fn epoch(&self) -> u64 {
        self.data.record.as_ref().map_or(0, |record| record.epoch)
    }

    pub(super) fn flush(&mut self) {
        self.data = Data::default();
    }

    pub(super) fn evict_record(&mut self) {
        self.data.record = None;
    }

    pub(super) fn evict_stream(&mut self, stream: usize) {
        let epoch = self.data.streams[stream].epoch;
        self.data.streams[stream] = Stream { epoch, ..Stream::default() };
    }

    pub(super) fn trim(&mut self, keep: usize) {
        self.data.streams.iter_mut().for_each(|stream| stream.trim(keep));
    }

    /// Somebody takes one of the last entries out.
    pub(super) fn delete_entry(&mut self, stream: usize, from_last: usize) {
        let entries = &mut self.data.streams[stream].entries;
        if let Some(at) = entries.len().checked_sub(1 + from_last) {
            entries.remove(at);
        }
    }

    /// Somebody puts something in that is none of the journal's; where `ahead_ms` is given, so far in the future.
    pub(super) fn add_foreign(&mut self, stream: usize, fields: Fields, ahead_ms: u64, world_ms: u64) {
        let Some(record) = &self.data.record else { return };
        let from_ms = self.now_ms(world_ms).saturating_add_unsigned(ahead_ms);
        let stream = &mut self.data.streams[stream];
        let last = stream.last_generated.max(Position::start_of(record.epoch));
        stream.add(record.epoch, last, fields, from_ms);
    }
}

impl Stream {
    fn add(&mut self, epoch: u64, previous: Position, fields: Fields, from_ms: i64) -> Position {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
        let position = previous.max(self.last_generated).next(from_ms);
        self.entries.push_back((position, fields.into()));
        self.last_generated = position;
        position
    }

    fn first_previous(&self, last: Position) -> Position {
        let entries = self.entries.iter().filter(|(at, _)| at.epoch == last.epoch);
        let mut previous = entries.filter_map(|(at, fields)| codec::position(at.epoch, std::str::from_utf8(fields.get("prev")?).ok()?));
        previous.next().unwrap_or(last)
    }

    fn is_used_up(&self) -> bool {
        self.last_generated.ms >= 1 << 52
    }

    fn trim(&mut self, keep: usize) {
        while self.entries.len() > keep {
            self.entries.pop_front();
        }
    }

    fn id_at(&self, position: Position) -> Option<&[u8]> {
        let (_, fields) = self.entries.iter().find(|(at, _)| *at == position)?;
        fields.get("id").map(Vec::as_slice)
    }
}

fn server(name: u64) -> Server {
    Server(format!("server-{name}").into())
}
