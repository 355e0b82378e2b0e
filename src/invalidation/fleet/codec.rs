//! The journal as text and bytes in Redis: arguments of the scripts, what they give, and the entries of the streams.
//!
//! What is specified in `docs/formats.md` ("Journal"). Whatever comes from Redis may be anything.

use super::protocol::{
    Answer, Batch, Beat, BeatAnswer, Doubt, Found, Instance, Member, Policy, Proposal, Read, Record, Refusal, Server, Taken, UnsafeEntry,
    Vouch,
};
use crate::invalidation::{Entry, Kind, Mode, Position, Purge, PurgeId, Selector};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Of the data of entries. A later one may mean what this program does not know.
const VERSION: &str = "1";
/// The two streams, as they are named in keys.
pub(in crate::invalidation) const STREAMS: [&str; 2] = ["purges", "unsafe"];

/// Fields of an entry.
pub(in crate::invalidation) type Fields = HashMap<String, Vec<u8>>;

/// What came from Redis is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal's record in Redis is damaged: {0}")]
pub(in crate::invalidation) struct Damaged(&'static str);

/// A place in a stream of an epoch, as Redis has it.
pub(in crate::invalidation) fn place(position: Position) -> String {
    format!("{}-{}", position.ms, position.sequence)
}

pub(in crate::invalidation) fn position(epoch: u64, place: &str) -> Option<Position> {
    let (ms, sequence) = place.split_once('-')?;
    Some(Position { epoch, ms: ms.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// Arguments of the script `beat`.
pub(in crate::invalidation) fn beat(beat: &Beat) -> Vec<String> {
    let vouch = match beat.vouch {
        None => String::new(),
        Some(Vouch::Unbroken { until_ms }) => until_ms.to_string(),
        Some(Vouch::Together) => "together".into(),
    };
    let mut arguments = vec![
        beat.name.clone(),
        beat.instance.to_string(),
        policy_text(beat.policy),
        beat.beat.to_string(),
        beat.acknowledged.to_string(),
        beat.applied.epoch.to_string(),
        place(beat.applied),
        place(beat.unsafe_applied),
        beat.witness.map_or_else(String::new, |id| id.to_string()),
        beat.server.0.to_string(),
        vouch,
        beat.prune_ms.to_string(),
        Vouch::IDS_AHEAD_MS.to_string(),
        beat.lapse_ms.to_string(),
    ];
    for member in &beat.restore {
        arguments.extend([member.name.clone(), member_text(member)]);
    }
    arguments
}

/// What the script `beat` gives.
pub(in crate::invalidation) fn read_beat(words: &[String]) -> Result<BeatAnswer, Damaged> {
    let [server, now_ms, status, rest @ ..] = words else { return Err(Damaged("the answer is too short")) };
    let taken = match status.as_str() {
        "continued" => Ok(Taken { continued: true }),
        "begun" => Ok(Taken { continued: false }),
        "no_record" => Err(Refusal::NoRecord),
        "other_server" => Err(Refusal::OtherServer),
        "other_epoch" => Err(Refusal::OtherEpoch),
        "behind_trim" => Err(Refusal::BehindTrim),
        "entry_lost" => Err(Refusal::EntryLost),
        "name_taken" => Err(Refusal::NameTaken),
        _ => return Err(Damaged("an unknown status")),
    };
    let record = if rest.is_empty() { None } else { Some(record(rest)?) };
    Ok(BeatAnswer { server: server_of(server), now_ms: number(now_ms)?, taken, record })
}

fn record(words: &[String]) -> Result<Record, Damaged> {
    let [epoch, base, last, unsafe_last, first_previous, unsafe_first_previous, server, since, doubt, members @ ..] = words else {
        return Err(Damaged("the record is too short"));
    };
    let epoch = number(epoch)?;
    let at = |text: &str| position(epoch, text).ok_or(Damaged("a place"));
    Ok(Record {
        epoch,
        base: base.parse().map_err(|_| Damaged("base"))?,
        last: at(last)?,
        unsafe_last: at(unsafe_last)?,
        first_previous: at(first_previous)?,
        unsafe_first_previous: at(unsafe_first_previous)?,
        server: server_of(server),
        since_ms: number(since)?,
        doubt: if doubt.is_empty() { None } else { Some(read_doubt(doubt)?) },
        members: members.as_chunks::<2>().0.iter().map(|[name, text]| read_member(name, text)).collect(),
    })
}

fn read_doubt(text: &str) -> Result<Doubt, Damaged> {
    let words: Vec<&str> = text.split(' ').collect();
    let [server, since, newest, state] = words[..] else { return Err(Damaged("doubt")) };
    Ok(Doubt { server: server_of(server), since_ms: number(since)?, newest_ms: number(newest)?, spoiled: state != "whole" })
}

/// As the script `beat` writes it.
pub(super) fn member_text(member: &Member) -> String {
    let Member { instance, policy, beat, acknowledged, applied, at_ms, server, left, name: _ } = member;
    let (state, policy) = (if *left { "left" } else { "stays" }, policy_text(*policy));
    format!("{instance} {beat} {acknowledged} {applied} {at_ms} {state} {policy} {}", server.0)
}

/// A member that cannot be read, which a later version may have written, or nobody, is one that serves, who knows for how
/// long; it is heard of whenever its text changes.
pub(super) fn read_member(name: &str, text: &str) -> Member {
    let words: Vec<&str> = text.split(' ').collect();
    known_member(name, &words).unwrap_or_else(|| Member {
        name: name.to_owned(),
        instance: Instance(0),
        policy: UNKNOWN_POLICY,
        beat: mark_of(text),
        acknowledged: 0,
        applied: Position::default(),
        at_ms: words.get(4).and_then(|at_ms| at_ms.parse().ok()).unwrap_or(0),
        server: Server::default(),
        left: words.get(5) == Some(&"left"),
    })
}

/// Another for another text, on one node.
fn mark_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn known_member(name: &str, words: &[&str]) -> Option<Member> {
    // What comes behind is of a later version.
    let [instance, beat, acknowledged, applied, at_ms, state, policy, server, ..] = *words else { return None };
    Some(Member {
        name: name.to_owned(),
        instance: Instance(u128::from_str_radix(instance, 16).ok()?),
        policy: read_policy(policy),
        beat: beat.parse().ok()?,
        acknowledged: acknowledged.parse().ok()?,
        applied: applied.parse().ok()?,
        at_ms: at_ms.parse().ok()?,
        server: server_of(server),
        left: state == "left",
    })
}

/// Of a node that has not said, or not so that it is understood.
const UNKNOWN_POLICY: Policy = Policy::Serve { at_most_ms: None, every_ms: 0 };

fn policy_text(policy: Policy) -> String {
    match policy {
        Policy::Serve { at_most_ms: None, .. } => "serve".into(),
        Policy::Serve { at_most_ms: Some(ms), every_ms: 0 } => format!("serve:{ms}"),
        Policy::Serve { at_most_ms: Some(ms), every_ms } => format!("serve:{ms}:{every_ms}"),
        Policy::Revalidate { every_ms: 0 } => "revalidate".into(),
        Policy::Revalidate { every_ms } => format!("revalidate:{every_ms}"),
        Policy::Bypass => "bypass".into(),
    }
}

fn read_policy(text: &str) -> Policy {
    let (name, times) = text.split_once(':').unwrap_or((text, ""));
    let times: Result<Vec<u64>, _> = times.split(':').filter(|time| !time.is_empty()).map(str::parse).collect();
    match (name, times.as_deref()) {
        ("serve", Ok([ms])) => Policy::Serve { at_most_ms: Some(*ms), every_ms: 0 },
        ("serve", Ok([ms, every_ms])) => Policy::Serve { at_most_ms: Some(*ms), every_ms: *every_ms },
        ("revalidate", Ok([])) => Policy::Revalidate { every_ms: 0 },
        ("revalidate", Ok([every_ms])) => Policy::Revalidate { every_ms: *every_ms },
        ("bypass", Ok([])) => Policy::Bypass,
        _ => UNKNOWN_POLICY,
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Damaged> {
    text.parse().map_err(|_| Damaged("a number"))
}

fn server_of(text: &str) -> Server {
    Server(text.into())
}

/// What of a purge is in its data.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeData {
    selectors: Vec<Selector>,
    mode: Mode,
    issued_at: String,
    actor: String,
}

/// Arguments of the script `append`; the stream keeps about `most` entries.
pub(in crate::invalidation) fn append_purge(epoch: u64, purge: &Purge, most: u64) -> Vec<Vec<u8>> {
    append(epoch, STREAMS[0], "last", most, purge.id, purge_data(purge))
}

/// The same for the stream of unsafe methods.
pub(in crate::invalidation) fn append_batch(epoch: u64, batch: &Batch, most: u64) -> Vec<Vec<u8>> {
    append(epoch, STREAMS[1], "unsafe_last", most, batch.id, hashes_data(&batch.hashes))
}

fn append(epoch: u64, stream: &str, last: &str, most: u64, id: PurgeId, data: Vec<u8>) -> Vec<Vec<u8>> {
    let texts = [epoch.to_string(), stream.to_owned(), last.to_owned(), most.to_string(), id.to_string(), VERSION.to_owned()];
    texts.into_iter().map(String::into_bytes).chain([data]).collect()
}

/// What the script `append` gives.
pub(in crate::invalidation) fn read_appended(epoch: u64, place: Option<&str>) -> Result<Answer, Damaged> {
    let position = place.map(|place| position(epoch, place).ok_or(Damaged("the place of an entry"))).transpose()?;
    Ok(Answer::Appended(position))
}

/// Arguments of the script `propose`.
pub(in crate::invalidation) fn propose(proposal: &Proposal) -> [String; 3] {
    let Proposal { expected, at_least, base } = proposal;
    [expected.map_or_else(String::new, |epoch| epoch.to_string()), at_least.to_string(), base.to_string()]
}

/// What the script `propose` gives.
pub(in crate::invalidation) fn read_proposed(epoch: &str) -> Result<Answer, Damaged> {
    Ok(Answer::Proposed { epoch: number(epoch)? })
}

/// Arguments of the script `leave`.
pub(in crate::invalidation) fn leave(name: &str, instance: Instance) -> [String; 2] {
    [name.to_owned(), instance.to_string()]
}

/// What a read of both streams gave: of each entry its place, and its fields.
pub(in crate::invalidation) fn read_found(read: &Read, streams: &[Vec<(String, Fields)>; 2]) -> Result<Found, Damaged> {
    let raw = |(place, fields)| Raw { epoch: read.epoch, place, fields };
    let raw = |stream: usize| streams[stream].iter().map(move |(place, fields)| raw((place, fields)));
    let purges: Vec<Entry> = raw(0).filter_map(|raw| raw.purge().transpose()).collect::<Result<_, _>>()?;
    let unsafe_methods: Vec<UnsafeEntry> = raw(1).filter_map(|raw| raw.batch().transpose()).collect::<Result<_, _>>()?;
    let last = |stream: usize| raw(stream).next_back().map(|raw| raw.position()).transpose();
    let found = streams[0].len() + streams[1].len();
    Ok(Found {
        foreign: found - purges.len() - unsafe_methods.len(),
        purges,
        unsafe_methods,
        read_to: (last(0)?.unwrap_or(read.purges_after), last(1)?.unwrap_or(read.unsafe_after)),
        is_full: streams.iter().any(|stream| stream.len() >= read.count),
    })
}

fn purge_data(purge: &Purge) -> Vec<u8> {
    let Purge { id: _, selectors, mode, issued_at, actor } = purge.clone();
    // Texts, lists and enums always serialise.
    serde_json::to_vec(&PurgeData { selectors, mode, issued_at, actor }).unwrap_or_default()
}

/// An entry of either stream as Redis gives it: its place, and fields with values.
#[derive(Clone, Copy)]
struct Raw<'a> {
    epoch: u64,
    place: &'a str,
    fields: &'a Fields,
}

impl Raw<'_> {
    /// What cannot be read is taken as a purge of everything: it was meant to make something unusable. `None` where it is no
    /// entry of the journal: each of those says what it follows, and has an id, in whatever version.
    fn purge(&self) -> Result<Option<Entry>, Damaged> {
        let Some((previous, id)) = self.previous().zip(self.id()) else { return Ok(None) };
        let everything =
            || PurgeData { selectors: vec![Selector::Everything], mode: Mode::Hard, issued_at: String::new(), actor: "unreadable".into() };
        let data = self.data().and_then(|data| serde_json::from_slice(data).ok()).unwrap_or_else(everything);
        let PurgeData { selectors, mode, issued_at, actor } = data;
        Ok(Some(Entry { position: self.position()?, previous, purge: Purge { id, selectors, mode, issued_at, actor } }))
    }

    /// As [`Raw::purge`], of its class.
    fn batch(&self) -> Result<Option<UnsafeEntry>, Damaged> {
        let Some((previous, id)) = self.previous().zip(self.id()) else { return Ok(None) };
        let hashes = self.data().and_then(read_hashes).unwrap_or_else(|| vec![(Kind::Everything, 0)]);
        Ok(Some(UnsafeEntry { position: self.position()?, previous, batch: Batch { id, hashes } }))
    }

    fn position(&self) -> Result<Position, Damaged> {
        position(self.epoch, self.place).ok_or(Damaged("a place"))
    }

    fn previous(&self) -> Option<Position> {
        position(self.epoch, self.text("prev")?)
    }

    fn id(&self) -> Option<PurgeId> {
        self.text("id")?.parse().ok()
    }

    fn data(&self) -> Option<&[u8]> {
        if self.text("v")? == VERSION { self.fields.get("data").map(Vec::as_slice) } else { None }
    }

    fn text(&self, field: &str) -> Option<&str> {
        std::str::from_utf8(self.fields.get(field)?).ok()
    }
}

/// Kinds of what unsafe methods invalidate, by the byte that stands for each.
const KINDS: [(u8, Kind); 4] = [(b'u', Kind::Url), (b'g', Kind::Group), (b'h', Kind::Host), (b'e', Kind::Everything)];

/// Of each hash the kind, one byte, and 16 bytes, the highest first.
fn hashes_data(hashes: &[(Kind, u128)]) -> Vec<u8> {
    let byte_of = |kind: Kind| KINDS.iter().find(|(_, known)| *known == kind).map_or(0, |(byte, _)| *byte);
    hashes.iter().flat_map(|&(kind, hash)| std::iter::once(byte_of(kind)).chain(hash.to_be_bytes())).collect()
}

fn read_hashes(data: &[u8]) -> Option<Vec<(Kind, u128)>> {
    let (whole, rest) = data.as_chunks::<17>();
    if !rest.is_empty() {
        return None;
    }
    let one = |bytes: &[u8; 17]| {
        let (_, kind) = KINDS.into_iter().find(|(byte, _)| *byte == bytes[0])?;
        Some((kind, u128::from_be_bytes(bytes[1..].try_into().ok()?)))
    };
    whole.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Position {
        text.parse().expect("a position")
    }

    fn member(policy: Policy, left: bool) -> Member {
        Member {
            name: "edge-1:8080".into(),
            instance: Instance(0xabc),
            policy,
            beat: 7,
            acknowledged: 6,
            applied: at("1795298645000-12-3"),
            at_ms: 1_795_298_645_123,
            server: server_of("run/repl"),
            left,
        }
    }

    #[test]
    fn members_survive_their_text() {
        let serve = |at_most_ms, every_ms| Policy::Serve { at_most_ms, every_ms };
        let revalidate = |every_ms| Policy::Revalidate { every_ms };
        let policies = [serve(None, 0), serve(Some(5000), 0), serve(Some(0), 7), revalidate(0), revalidate(500), Policy::Bypass];
        for policy in policies {
            for left in [false, true] {
                let member = member(policy, left);
                assert_eq!(read_member("edge-1:8080", &member_text(&member)), member);
            }
        }
    }

    #[test]
    fn what_later_versions_write_of_a_member_is_one_that_serves() {
        let text = member_text(&member(Policy::Bypass, false));
        assert_eq!(read_member("edge-1:8080", &format!("{text} more")), member(Policy::Bypass, false), "words behind are theirs");
        for policy in ["serve", "serve:x", "serve:1:2:3", "revalidate:soon", "bypass:1", "dream"] {
            let read = read_member("edge-1:8080", &text.replace("bypass", policy));
            assert_eq!(read, member(UNKNOWN_POLICY, false), "{policy}");
        }
        let [one, other] = ["nonsense", "a b c d 77 left"].map(|text| read_member("a", text));
        assert_eq!([one.policy, other.policy], [UNKNOWN_POLICY; 2]);
        assert_eq!((one.at_ms, one.left, other.at_ms, other.left), (0, false, 77, true));
        assert_ne!(one.beat, other.beat, "another text is a sign of life");
    }

    fn fields(pairs: &[(&str, &[u8])]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect()
    }

    #[test]
    fn entries_survive_and_what_cannot_be_read_purges_everything() {
        let purge = Purge {
            id: PurgeId::random(),
            selectors: vec![Selector::Url("a.test/".into()), Selector::Key("red".into())],
            mode: Mode::Soft,
            issued_at: "2026-11-22T08:00:00.000Z".into(),
            actor: "admin:127.0.0.1:1".into(),
        };
        let (id, data) = (purge.id.to_string(), purge_data(&purge));
        let whole = [("prev", b"5-0".as_slice()), ("id", id.as_bytes()), ("v", b"1"), ("data", &data)];
        let read = |pairs: &[(&str, &[u8])]| Raw { epoch: 9, place: "6-1", fields: &fields(pairs) }.purge().expect("a place");
        assert_eq!(read(&whole), Some(Entry { position: at("9-6-1"), previous: at("9-5-0"), purge }));
        let with = |broken: (&'static str, &'static [u8])| {
            let mut pairs = whole;
            let at = pairs.iter().position(|(name, _)| *name == broken.0).expect("there");
            pairs[at] = broken;
            read(&pairs)
        };
        for broken in [("v", b"2".as_slice()), ("data", b"{}"), ("data", b"\xff")] {
            let entry = with(broken).expect("an entry of the journal");
            assert_eq!((entry.purge.selectors, entry.purge.mode), (vec![Selector::Everything], Mode::Hard), "{broken:?}");
            assert_eq!(entry.previous, self::at("9-5-0"));
        }
        for foreign in [("id", b"7".as_slice()), ("prev", b"first"), ("prev", b"")] {
            assert_eq!(with(foreign), None, "{foreign:?}");
        }
        assert_eq!(read(&[]), None);
        let nowhere = fields(&whole);
        assert!(Raw { epoch: 9, place: "x", fields: &nowhere }.purge().is_err());
    }

    #[test]
    fn batches_that_cannot_be_read_purge_everything() {
        let id = PurgeId::random().to_string();
        for data in [b"u".as_slice(), b"x0123456789abcdef", b"u0123456789abcdefg"] {
            let fields = fields(&[("prev", b"5-0"), ("id", id.as_bytes()), ("v", b"1"), ("data", data)]);
            let entry = Raw { epoch: 9, place: "6-1", fields: &fields }.batch().expect("a place").expect("an entry of the journal");
            assert_eq!(entry.batch.hashes, [(Kind::Everything, 0)], "{data:?}");
        }
    }

    #[test]
    fn a_read_passes_over_what_others_put_into_a_stream() {
        let read = Read { epoch: 9, purges_after: at("9-5-0"), unsafe_after: at("9-4-0"), wait_ms: 0, count: 3 };
        let id = PurgeId::random().to_string();
        let own = fields(&[("prev", b"5-0"), ("id", id.as_bytes()), ("v", b"1"), ("data", b"")]);
        let purges = vec![("5-1".to_owned(), fields(&[("a", b"b")])), ("6-0".to_owned(), own), ("7-0".to_owned(), fields(&[]))];
        let found = read_found(&read, &[purges, vec![]]).expect("places");
        assert_eq!((found.purges.len(), found.unsafe_methods.len(), found.foreign, found.is_full), (1, 0, 2, true));
        assert_eq!(found.read_to, (at("9-7-0"), at("9-4-0")));
        assert!(read_found(&read, &[vec![("x".to_owned(), fields(&[]))], vec![]]).is_err());
    }

    proptest! {
        #[test]
        fn hashes_survive_their_bytes(hashes in prop::collection::vec((0..KINDS.len(), any::<u128>()), 0..300)) {
            let hashes: Vec<_> = hashes.into_iter().map(|(kind, hash)| (KINDS[kind].1, hash)).collect();
            prop_assert_eq!(read_hashes(&hashes_data(&hashes)), Some(hashes));
        }

        #[test]
        fn any_answer_is_read_or_refused(words in prop::collection::vec("[a-z_0-9 -]{0,12}", 0..20)) {
            let _ = read_beat(&words);
        }
    }
}
