//! Stored responses as bytes outside the process, by docs/formats.md. Versioned, and checked whole before any of it is
//! believed: what is damaged, cut short, put under another key, foreign or from the future is [`Unreadable`], a miss.
//!
//! A record is bound to the name under which it is kept: the same bytes under another name are damaged.

use super::{StoredHead, Tags};
use crate::invalidation::{Mark, Position, Stamp};
use crate::semantics::freshness::Facts;
use crate::semantics::policy::CachePolicy;
use crate::semantics::terms::Terms;
use crate::semantics::vary::{SecondaryKey, Vary};
use crate::semantics::{CacheKey, Fields, Method, Now, Request, Response, StatusCode, Target};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: [u8; 3] = *b"TCL";
/// Of all kinds of records.
const VERSION: u8 = 1;
/// Magic, kind, version, how it is sealed, two bytes of nothing.
const ENVELOPE: usize = 8;
/// The record carries a MAC in place of a checksum.
const SEALED_BY_KEY: u8 = 1;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Primary = b'p',
    Head = b'h',
    Segment = b's',
}

/// Why bytes are no record that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not ours, or not of this kind.
    #[error("not a record of this kind")]
    Foreign,
    #[error("a record of another version")]
    Version,
    /// Checksum or MAC says so.
    #[error("a damaged record, or one from under another name")]
    Damaged,
    /// Whole by its checksum, and yet it makes no sense.
    #[error("a record that makes no sense")]
    Malformed,
}

impl Unreadable {
    pub const ALL: [Self; 4] = [Self::Foreign, Self::Version, Self::Damaged, Self::Malformed];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Damaged => "damaged",
            Self::Malformed => "malformed",
        }
    }
}

/// What makes records trustworthy.
#[derive(Clone)]
pub enum Seal {
    /// A checksum: who may write there is trusted.
    Checksum,
    /// HMAC-SHA256 under a key that only the fleet has.
    Key(Arc<[u8]>),
}

impl Seal {
    const fn length(&self) -> usize {
        match self {
            Self::Checksum => 8,
            Self::Key(_) => 32,
        }
    }

    const fn flag(&self) -> u8 {
        match self {
            Self::Checksum => 0,
            Self::Key(_) => SEALED_BY_KEY,
        }
    }

    /// Appends what proves `record` to be the one written under `name`.
    fn close(&self, name: &[u8], record: &mut Vec<u8>) {
        match self {
            Self::Checksum => record.extend_from_slice(&checksum(name, record).to_le_bytes()),
            Self::Key(key) => {
                let code = mac(key, name, record).finalize().into_bytes();
                record.extend_from_slice(&code);
            }
        }
    }

    fn proves(&self, name: &[u8], record: &[u8], proof: &[u8]) -> bool {
        match self {
            Self::Checksum => proof == checksum(name, record).to_le_bytes(),
            Self::Key(key) => mac(key, name, record).verify_slice(proof).is_ok(),
        }
    }
}

fn checksum(name: &[u8], record: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(name.len() as u32).to_le_bytes());
    hash.update(name);
    hash.update(record);
    hash.digest()
}

fn mac(key: &[u8], name: &[u8], record: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(&(name.len() as u32).to_le_bytes());
    mac.update(name);
    mac.update(record);
    mac
}

/// Begins a record of a kind.
fn open(kind: Kind, seal: &Seal, room: usize) -> Vec<u8> {
    let mut record = Vec::with_capacity(ENVELOPE + room + seal.length());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&[kind as u8, VERSION, seal.flag(), 0, 0]);
    record
}

/// Any content as a record, rightly sealed: what someone could keep there who knows how.
#[cfg(any(test, fuzzing))]
pub fn sealed(kind: Kind, seal: &Seal, name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut record = open(kind, seal, content.len());
    record.extend_from_slice(content);
    seal.close(name, &mut record);
    record
}

/// The content of a record that was written under `name`.
fn unseal<'r>(kind: Kind, seal: &Seal, name: &[u8], record: &'r [u8]) -> Result<&'r [u8], Unreadable> {
    if record.len() < ENVELOPE || record[..3] != MAGIC || record[3] != kind as u8 {
        return Err(Unreadable::Foreign);
    }
    if record[4] != VERSION {
        return Err(Unreadable::Version);
    }
    // One sealed otherwise is of a fleet that is configured otherwise: never believed, whichever of the two is stricter.
    if record[5] != seal.flag() || record.len() < ENVELOPE + seal.length() {
        return Err(Unreadable::Damaged);
    }
    let (sealed, proof) = record.split_at(record.len() - seal.length());
    if !seal.proves(name, sealed, proof) {
        return Err(Unreadable::Damaged);
    }
    Ok(&sealed[ENVELOPE..])
}

/// The primary record: which of the responses of a cache key was fetched last, and by what they are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// When that fetch began, in milliseconds of Redis' clock.
    pub began_ms: i64,
    pub vary: Vary,
}

impl Primary {
    pub fn encode(&self, seal: &Seal, name: &[u8]) -> Vec<u8> {
        let mut record = open(Kind::Primary, seal, 64);
        put(&mut record, &self.began_ms.to_le_bytes());
        let names: &[Box<str>] = match &self.vary {
            Vary::Fields(names) => names,
            Vary::Nothing | Vary::Star => &[], // the latter is never stored
        };
        put(&mut record, &(names.len() as u16).to_le_bytes());
        for name in names {
            put_block(&mut record, name.as_bytes());
        }
        seal.close(name, &mut record);
        record
    }

    pub fn decode(seal: &Seal, name: &[u8], record: &[u8]) -> Result<Self, Unreadable> {
        let mut from = Reader(unseal(Kind::Primary, seal, name, record)?);
        let began_ms = from.i64()?;
        let mut fields = Fields::new();
        for _ in 0..from.u16()? {
            fields.push("vary", from.block()?).map_err(|_| Unreadable::Malformed)?;
        }
        from.end()?;
        // As it would be read from a response: what is no list of names selects nothing.
        match Vary::parse(&fields) {
            Vary::Star => Err(Unreadable::Malformed),
            vary => Ok(Self { began_ms, vary }),
        }
    }
}

/// Where the bytes of a body are, beyond those that its head record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BodyPlan {
    /// Names the segments; new with each store.
    pub id: u128,
    /// Bytes of the whole body.
    pub length: u64,
    /// Segments of their own, numbered from 0.
    pub segments: u32,
    /// [`xxh3_64`] of the whole body.
    pub checksum: u64,
}

/// A head record: a stored response without the segments that have records of their own.
#[derive(Debug)]
pub struct HeadRecord {
    /// When its fetch began, in milliseconds of Redis' clock.
    pub began_ms: i64,
    pub head: StoredHead,
    pub plan: BodyPlan,
    /// The first bytes of the body; all of it where there are no segments.
    pub first: Bytes,
}

/// What a head record is read with, of the request that asks.
pub struct Reading<'a> {
    pub key: &'a CacheKey,
    pub target: &'a Target,
    pub site: &'a Arc<Box<str>>,
    pub policy: &'a CachePolicy,
    /// Orders it among the fetches of this process.
    pub fetch: u64,
    pub now: Now,
    /// What Redis' clock says at `now`.
    pub redis_now_ms: i64,
}

/// Times of a head in Redis' clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub began_ms: i64,
    pub received_ms: i64,
}

const AUTHORIZED: u8 = 1;
const WITH_COOKIE: u8 = 2;
const SETS_COOKIE: u8 = 4;

/// Where the time stands at which the fetch of a head or primary record began, for the script that compares it: counted
/// from 1, as Lua does.
pub const BEGAN_AT: usize = ENVELOPE + 1;

/// Where in a head record the id of its body stands, likewise: after three numbers and two positions of three each.
pub const BODY_AT: usize = BEGAN_AT + 8 * (3 + 2 * 3);

/// The id of a body as it stands in a head record.
pub fn body_of(id: &[u8]) -> Option<u128> {
    id.try_into().ok().map(u128::from_le_bytes)
}

/// Makes a head record; `name` is where it will be kept.
pub fn encode_head(seal: &Seal, name: &[u8], head: &StoredHead, times: Times, plan: &BodyPlan, first: &[u8]) -> Vec<u8> {
    let facts = &head.facts;
    let mut record = open(Kind::Head, seal, 512 + head.fields.wire().len() + head.key.as_str().len() + first.len());
    put(&mut record, &times.began_ms.to_le_bytes());
    put(&mut record, &times.received_ms.to_le_bytes());
    put(&mut record, &facts.initial_age_ms.to_le_bytes());
    for position in [head.stamp.purge.position, head.stamp.unsafe_method.position] {
        for number in [position.epoch, position.ms, position.sequence] {
            put(&mut record, &number.to_le_bytes());
        }
    }
    put(&mut record, &plan.id.to_le_bytes());
    put(&mut record, &plan.length.to_le_bytes());
    put(&mut record, &plan.segments.to_le_bytes());
    put(&mut record, &plan.checksum.to_le_bytes());
    put(&mut record, &head.status().as_u16().to_le_bytes());
    let flags = [(facts.authorized, AUTHORIZED), (facts.cookie, WITH_COOKIE), (facts.set_cookie, SETS_COOKIE)];
    record.push(flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag));
    put(&mut record, &facts.jitter.to_le_bytes());
    put_block(&mut record, head.key.as_str().as_bytes());
    put_block(&mut record, &head.secondary.0);
    put_block(&mut record, head.site.as_bytes());
    put_fields(&mut record, &head.fields);
    match &facts.targeted {
        Some(targeted) => put_fields(&mut record, &targeted.consumed),
        None => put_fields(&mut record, &Fields::new()),
    }
    for hashes in [head.tags.keys(), head.tags.groups()] {
        put(&mut record, &(hashes.len() as u32).to_le_bytes());
        for hash in hashes {
            put(&mut record, &hash.to_le_bytes());
        }
    }
    put_block(&mut record, head.tags.text().as_bytes());
    put_block(&mut record, first);
    seal.close(name, &mut record);
    record
}

impl HeadRecord {
    /// Reads what was kept under `name`. A response for another cache key, or of another site, is [`Unreadable::Foreign`].
    pub fn decode(seal: &Seal, name: &[u8], record: &Bytes, reading: &Reading<'_>) -> Result<Self, Unreadable> {
        let content = unseal(Kind::Head, seal, name, record)?;
        let mut from = Reader(content);
        let (began_ms, received_ms, initial_age_ms) = (from.i64()?, from.i64()?, from.u64()?);
        let (purge, unsafe_method) = (from.mark()?, from.mark()?);
        let plan = BodyPlan { id: from.u128()?, length: from.u64()?, segments: from.u32()?, checksum: from.u64()? };
        let status = StatusCode::from_u16(from.u16()?).map_err(|_| Unreadable::Malformed)?;
        let (flags, jitter) = (from.u8()?, from.u16()?);
        if from.block()? != reading.key.as_str().as_bytes() {
            return Err(Unreadable::Foreign);
        }
        let secondary = SecondaryKey(from.block()?.into());
        if from.block()? != reading.site.as_bytes() {
            return Err(Unreadable::Foreign);
        }
        let (fields, consumed) = (from.fields()?, from.fields()?);
        let (keys, groups) = (from.hashes()?, from.hashes()?);
        let text = std::str::from_utf8(from.block()?).map_err(|_| Unreadable::Malformed)?;
        let tags = Tags::of(keys, groups, text.into());
        let first = from.block()?;
        from.end()?;
        let is_whole = plan.segments == 0;
        if (is_whole && (plan.length != first.len() as u64 || xxh3_64(first) != plan.checksum)) || plan.length < first.len() as u64 {
            return Err(Unreadable::Malformed);
        }
        let since_ms = reading.redis_now_ms.saturating_sub(received_ms).max(0);
        let mut received = fields.clone();
        for (name, value) in consumed.iter() {
            received.push(name, value).map_err(|_| Unreadable::Malformed)?;
        }
        let facts = facts(reading, status, &received, since_ms, initial_age_ms, flags, jitter);
        if facts.vary.is_star() {
            return Err(Unreadable::Malformed);
        }
        let head = StoredHead {
            fields,
            facts,
            key: reading.key.clone(),
            secondary,
            stamp: Stamp { purge, unsafe_method }.into(),
            checked: Default::default(),
            tags,
            site: Arc::clone(reading.site),
            fetch: reading.fetch,
            // Of another process' request: a node that is cut off has to ask the origin.
            sent_mono_ms: 0,
        };
        let first = record.slice_ref(first);
        Ok(Self { began_ms, head, plan, first })
    }
}

/// The facts as they were read when the response came, in this process' clocks: `since_ms` ago.
fn facts(
    reading: &Reading<'_>,
    status: StatusCode,
    received: &Fields,
    since_ms: i64,
    initial_age_ms: u64,
    flags: u8,
    jitter: u16,
) -> Facts {
    let since = since_ms.unsigned_abs();
    let mono_ms = reading.now.mono_ms.saturating_sub(since);
    let response_time = Now { wall_ms: reading.now.wall_ms.saturating_sub(since_ms), mono_ms };
    let asked = Fields::new();
    let request = Request { method: &Method::GET, target: reading.target, fields: &asked };
    let facts = Facts::new(request, Response { status, fields: received }, &reading.policy.targeted, response_time, response_time);
    let terms = Terms {
        authorized: flags & AUTHORIZED != 0,
        cookie: flags & WITH_COOKIE != 0,
        set_cookie: facts.set_cookie || flags & SETS_COOKIE != 0,
        ..Terms::clone(&facts)
    };
    let mut facts = facts.on(terms);
    // This host may not have been up when it was received: what its clock cannot say is age from the start.
    facts.initial_age_ms = initial_age_ms.saturating_add(since - (reading.now.mono_ms - mono_ms));
    facts.jitter = jitter;
    facts
}

/// A segment of a body.
pub fn encode_segment(seal: &Seal, name: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut record = open(Kind::Segment, seal, bytes.len());
    put(&mut record, bytes);
    seal.close(name, &mut record);
    record
}

/// The bytes of a segment, without a copy.
pub fn decode_segment(seal: &Seal, name: &[u8], record: &Bytes) -> Result<Bytes, Unreadable> {
    Ok(record.slice_ref(unseal(Kind::Segment, seal, name, record)?))
}

fn put(record: &mut Vec<u8>, bytes: &[u8]) {
    record.extend_from_slice(bytes);
}

/// Bytes after their number.
fn put_block(record: &mut Vec<u8>, bytes: &[u8]) {
    put(record, &(bytes.len() as u32).to_le_bytes());
    put(record, bytes);
}

fn put_fields(record: &mut Vec<u8>, fields: &Fields) {
    put(record, &(fields.len() as u32).to_le_bytes());
    for (name, value) in fields.iter() {
        put_block(record, name.as_bytes());
        put_block(record, value);
    }
}

/// Takes from the front; what is not there makes a record [`Unreadable::Malformed`].
struct Reader<'r>(&'r [u8]);

impl<'r> Reader<'r> {
    fn take(&mut self, count: usize) -> Result<&'r [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Unreadable::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Unreadable::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Unreadable> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Unreadable> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, Unreadable> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Result<u128, Unreadable> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    fn mark(&mut self) -> Result<Mark, Unreadable> {
        let position = Position { epoch: self.u64()?, ms: self.u64()?, sequence: self.u64()? };
        Ok(Mark { position, local: 0 })
    }

    fn block(&mut self) -> Result<&'r [u8], Unreadable> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn fields(&mut self) -> Result<Fields, Unreadable> {
        let mut fields = Fields::new();
        for _ in 0..self.u32()? {
            let (name, value) = (self.block()?, self.block()?);
            fields.push(name, value).map_err(|_| Unreadable::Malformed)?;
        }
        fields.shrink();
        Ok(fields)
    }

    fn hashes(&mut self) -> Result<Box<[u128]>, Unreadable> {
        let count = self.u32()? as usize;
        let bytes = self.take(count.checked_mul(16).ok_or(Unreadable::Malformed)?)?;
        Ok(bytes.as_chunks::<16>().0.iter().map(|hash| u128::from_le_bytes(*hash)).collect())
    }

    fn end(&self) -> Result<(), Unreadable> {
        if self.0.is_empty() { Ok(()) } else { Err(Unreadable::Malformed) }
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
