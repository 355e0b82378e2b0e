//! The journal as text and bytes in Redis: arguments of the scripts, what they give, and the entries of the streams.
//!
//! What is specified in `docs/formats.md` ("Journal"). Whatever comes from Redis may be anything.

use crate::invalidation::fleet::protocol::{
    Batch, Beat, BeatAnswer, Doubt, Instance, Member, Policy, Record, Refusal, Server, Taken, UnsafeEntry, Vouch,
};
use crate::invalidation::{Entry, Kind, Mode, Position, Purge, PurgeId, Selector};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Of the data of entries. A later one may mean what this program does not know.
pub(super) const VERSION: &str = "1";

/// What came from Redis is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal's record in Redis is damaged: {0}")]
pub(super) struct Damaged(&'static str);

/// A place in a stream of an epoch, as Redis has it.
pub(super) fn place(position: Position) -> String {
    format!("{}-{}", position.ms, position.sequence)
}

pub(super) fn position(epoch: u64, place: &str) -> Option<Position> {
    let (ms, sequence) = place.split_once('-')?;
    Some(Position { epoch, ms: ms.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// Arguments of the script `beat`.
pub(super) fn beat(beat: &Beat) -> Vec<String> {
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
    ];
    for member in &beat.restore {
        arguments.extend([member.name.clone(), member_text(member)]);
    }
    arguments
}

/// What the script `beat` gives.
pub(super) fn read_beat(words: &[String]) -> Result<BeatAnswer, Damaged> {
    let [server, now_ms, status, rest @ ..] = words else { return Err(Damaged("the answer is too short")) };
    let taken = match status.as_str() {
        "continued" => Ok(Taken { continued: true }),
        "begun" => Ok(Taken { continued: false }),
        "no_record" => Err(Refusal::NoRecord),
        "other_server" => Err(Refusal::OtherServer),
        "other_epoch" => Err(Refusal::OtherEpoch),
        "behind_trim" => Err(Refusal::BehindTrim),
        "entry_lost" => Err(Refusal::EntryLost),
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
        members: members.as_chunks::<2>().0.iter().map(|[name, text]| read_member(name, text)).collect::<Result<_, _>>()?,
    })
}

fn read_doubt(text: &str) -> Result<Doubt, Damaged> {
    let words: Vec<&str> = text.split(' ').collect();
    let [server, since, newest, state] = words[..] else { return Err(Damaged("doubt")) };
    Ok(Doubt { server: server_of(server), since_ms: number(since)?, newest_ms: number(newest)?, spoiled: state != "whole" })
}

/// As the script `beat` writes it.
fn member_text(member: &Member) -> String {
    let Member { instance, policy, beat, acknowledged, applied, at_ms, server, left, name: _ } = member;
    let (state, policy) = (if *left { "left" } else { "stays" }, policy_text(*policy));
    format!("{instance} {beat} {acknowledged} {applied} {at_ms} {state} {policy} {}", server.0)
}

fn read_member(name: &str, text: &str) -> Result<Member, Damaged> {
    let words: Vec<&str> = text.split(' ').collect();
    let [instance, beat, acknowledged, applied, at_ms, state, policy, server] = words[..] else {
        return Err(Damaged("a member"));
    };
    Ok(Member {
        name: name.to_owned(),
        instance: Instance(u128::from_str_radix(instance, 16).map_err(|_| Damaged("an instance"))?),
        policy: read_policy(policy).ok_or(Damaged("a policy"))?,
        beat: number(beat)?,
        acknowledged: number(acknowledged)?,
        applied: applied.parse().map_err(|_| Damaged("a position"))?,
        at_ms: number(at_ms)?,
        server: server_of(server),
        left: state == "left",
    })
}

fn policy_text(policy: Policy) -> String {
    match policy {
        Policy::Serve { at_most_ms: None } => "serve".into(),
        Policy::Serve { at_most_ms: Some(ms) } => format!("serve:{ms}"),
        Policy::Revalidate => "revalidate".into(),
        Policy::Bypass => "bypass".into(),
    }
}

fn read_policy(text: &str) -> Option<Policy> {
    Some(match text.split_once(':') {
        Some(("serve", ms)) => Policy::Serve { at_most_ms: Some(ms.parse().ok()?) },
        None if text == "serve" => Policy::Serve { at_most_ms: None },
        None if text == "revalidate" => Policy::Revalidate,
        None if text == "bypass" => Policy::Bypass,
        _ => return None,
    })
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

pub(super) fn purge_data(purge: &Purge) -> Vec<u8> {
    let Purge { id: _, selectors, mode, issued_at, actor } = purge.clone();
    // Texts, lists and enums always serialise.
    serde_json::to_vec(&PurgeData { selectors, mode, issued_at, actor }).unwrap_or_default()
}

/// An entry of either stream as Redis gives it: its place, and fields with values.
pub(super) struct Raw<'a> {
    pub(super) epoch: u64,
    pub(super) place: &'a str,
    pub(super) fields: &'a HashMap<String, Vec<u8>>,
}

impl Raw<'_> {
    /// What cannot be read is taken as a purge of everything: it was meant to make something unusable.
    pub(super) fn purge(&self) -> Result<Entry, Damaged> {
        let data = self.data().and_then(|data| serde_json::from_slice(data).ok());
        let read = self.id().zip(data);
        let everything =
            || PurgeData { selectors: vec![Selector::Everything], mode: Mode::Hard, issued_at: String::new(), actor: "unreadable".into() };
        let (id, data) = read.unwrap_or_else(|| (PurgeId::random(), everything()));
        let PurgeData { selectors, mode, issued_at, actor } = data;
        let purge = Purge { id, selectors, mode, issued_at, actor };
        Ok(Entry { position: self.position()?, previous: self.previous(), purge })
    }

    /// As [`Raw::purge`], of its class.
    pub(super) fn batch(&self) -> Result<UnsafeEntry, Damaged> {
        let read = self.id().zip(self.data().and_then(read_hashes));
        let (id, hashes) = read.unwrap_or_else(|| (PurgeId::random(), vec![(Kind::Everything, 0)]));
        Ok(UnsafeEntry { position: self.position()?, previous: self.previous(), batch: Batch { id, hashes } })
    }

    fn position(&self) -> Result<Position, Damaged> {
        position(self.epoch, self.place).ok_or(Damaged("a place"))
    }

    /// Where that cannot be read the entry follows nothing, and a heartbeat finds out what is wrong.
    fn previous(&self) -> Position {
        let text = self.text("prev").and_then(|text| position(self.epoch, text));
        text.unwrap_or(Position { epoch: self.epoch, ms: u64::MAX, sequence: u64::MAX })
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
const KINDS: [(u8, Kind); 3] = [(b'u', Kind::Url), (b'g', Kind::Group), (b'h', Kind::Host)];

/// Of each hash the kind, one byte, and 16 bytes, the highest first.
pub(super) fn hashes_data(hashes: &[(Kind, u128)]) -> Vec<u8> {
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
        let policies = [Policy::Serve { at_most_ms: None }, Policy::Serve { at_most_ms: Some(5000) }, Policy::Revalidate, Policy::Bypass];
        for policy in policies {
            for left in [false, true] {
                let member = member(policy, left);
                assert_eq!(read_member("edge-1:8080", &member_text(&member)), Ok(member));
            }
        }
        assert!(read_member("a", "nonsense").is_err());
        assert_eq!(read_policy("serve:x"), None);
    }

    fn fields(pairs: &[(&str, &[u8])]) -> HashMap<String, Vec<u8>> {
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
        assert_eq!(read(&whole), Entry { position: at("9-6-1"), previous: at("9-5-0"), purge });
        for broken in [("v", b"2".as_slice()), ("data", b"{}"), ("data", b"\xff"), ("id", b"7")] {
            let mut pairs = whole;
            let at = pairs.iter().position(|(name, _)| *name == broken.0).expect("there");
            pairs[at] = broken;
            let entry = read(&pairs);
            assert_eq!((entry.purge.selectors, entry.purge.mode), (vec![Selector::Everything], Mode::Hard), "{broken:?}");
            assert_eq!(entry.previous, self::at("9-5-0"));
        }
        assert_eq!(read(&[]).previous.ms, u64::MAX, "it follows nothing");
        assert!(Raw { epoch: 9, place: "x", fields: &fields(&[]) }.purge().is_err());
    }

    #[test]
    fn batches_that_cannot_be_read_purge_everything() {
        let id = PurgeId::random().to_string();
        for data in [b"u".as_slice(), b"x0123456789abcdef", b"u0123456789abcdefg"] {
            let fields = fields(&[("prev", b"5-0"), ("id", id.as_bytes()), ("v", b"1"), ("data", data)]);
            let entry = Raw { epoch: 9, place: "6-1", fields: &fields }.batch().expect("a place");
            assert_eq!(entry.batch.hashes, [(Kind::Everything, 0)], "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn hashes_survive_their_bytes(hashes in prop::collection::vec((0..3_usize, any::<u128>()), 0..300)) {
            let hashes: Vec<_> = hashes.into_iter().map(|(kind, hash)| (KINDS[kind].1, hash)).collect();
            prop_assert_eq!(read_hashes(&hashes_data(&hashes)), Some(hashes));
        }

        #[test]
        fn any_answer_is_read_or_refused(words in prop::collection::vec("[a-z_0-9 -]{0,12}", 0..20)) {
            let _ = read_beat(&words);
        }
    }
}
