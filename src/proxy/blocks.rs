//! Large responses in blocks of one size that are fetched as they are wanted (`cache.blocks`; decision 0009).
//!
//! What is stored under the key of the request is a *record*: the head, and no bytes. Each block is a stored response of
//! its own, under a key that says which block of which version it is: entity tag, length of the whole, size of blocks. So
//! blocks of two versions cannot meet in one answer, a purge of the URL or of a key reaches them like anything stored,
//! and the tier weighs and evicts them one by one. Partial content of the origin is stored in no other form
//! (RFC 9111 §3.3).
//!
//! Start at [`first_part`]: what a flight asks for. `fetch` gets a block, from the tier, from another's fetch or from the
//! origin; `stream` puts an answer together as its client takes it.
//!
//! Invariants: a block is used only with a record of its version, and only if no purge since its fetch began names the
//! URL, or a tag of either; what the origin says with a further block updates the record (RFC 9111 §3.4).

mod fetch;
mod stream;

pub use fetch::{BlockFlights, begin, receive};
pub use stream::{BlockStream, settle};

use super::Proxy;
use super::exchange::Exchange;
use super::flight::Failure;
use super::outcome::{CacheResult, Outcome, Source};
use crate::body::BodyError;
use crate::cache::{Blocks, StoredResponse, subject};
use crate::clock;
use crate::semantics::cache_status::Forward;
use crate::semantics::key::hash128;
use crate::semantics::partial::{self, Version};
use crate::semantics::reuse::Validity;
use crate::semantics::{CacheKey, Method, StatusCode, range};
use crate::upstream::Inbound;
use std::ops::Range;
use std::sync::Arc;

/// The size of blocks that the route of a request keeps large responses in. `None` also where the origin was found not to
/// answer in parts lately.
pub fn size(proxy: &Proxy, exchange: &Exchange) -> Option<u64> {
    let size = exchange.policy().blocks?;
    (!proxy.markers.is_set(not_in_parts_key(&exchange.key), clock::now().mono_ms)).then_some(size.get())
}

/// What a flight asks the origin for instead of the whole: one block, the first that the client wants. For a range of
/// what is not stored, and for anything of what is stored in blocks but has to be confirmed.
pub fn first_part(proxy: &Proxy, exchange: &Exchange, candidate: Option<&StoredResponse>) -> Option<Range<u64>> {
    let size = size(proxy, exchange)?;
    let wanted = candidate.map_or_else(|| range::is_asked(exchange.request()), |stored| stored.blocks().is_some());
    if !wanted || exchange.method != Method::GET {
        return None;
    }
    let first = range::first_byte(exchange.request()).unwrap_or(0);
    let start = first - first % size;
    Some(start..start.saturating_add(size))
}

/// The version of a whole response that is rather kept in blocks: too large to be fetched whole for a range, and the
/// origin says that it answers in parts.
pub fn suits(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound) -> Option<(Version, u64)> {
    // Ranges are of GET alone (RFC 9110 §14.2).
    let size = size(proxy, exchange).filter(|_| exchange.method == Method::GET)?;
    let length = inbound.length.filter(|length| *length > exchange.policy().range_whole_max_bytes.max(size))?;
    let takes = inbound.status == StatusCode::OK && partial::takes_ranges(&inbound.fields);
    takes.then(|| Version::of(&inbound.fields, length)).flatten().map(|version| (version, size))
}

/// The origin does not answer in parts as it was asked: for a while it is asked for the whole.
pub fn not_in_parts(proxy: &Proxy, key: &CacheKey) {
    proxy.set_marker(not_in_parts_key(key), clock::now().mono_ms);
}

fn not_in_parts_key(key: &CacheKey) -> u128 {
    key.hash() ^ hash128(b"not in parts")
}

/// One block of a record.
#[derive(Clone)]
pub struct Block {
    record: Arc<StoredResponse>,
    number: u64,
}

impl Block {
    /// The block in which a byte is; `None` of a response that is not in blocks, and beyond its end.
    pub fn at(record: &Arc<StoredResponse>, byte: u64) -> Option<Self> {
        let size = record.blocks()?.size;
        (byte < record.length).then(|| Self { record: Arc::clone(record), number: byte / size })
    }

    fn next(&self) -> Option<Self> {
        Self::at(&self.record, self.range().end)
    }

    fn blocks(&self) -> &Blocks {
        self.record.blocks().expect("a block is made of a response that has them")
    }

    /// Its bytes in the whole.
    pub fn range(&self) -> Range<u64> {
        let size = self.blocks().size;
        self.number * size..(self.number + 1).saturating_mul(size).min(self.record.length)
    }

    /// That of the record, and which block of which version: what has another version has another key.
    fn key(&self) -> CacheKey {
        let Blocks { size, version } = self.blocks();
        self.record.head.key.part(&format!("block {} of {size}, {} of {}", self.number, version.tag(), version.length()))
    }

    /// What is stored of it, if it may still be used.
    fn find(&self, proxy: &Proxy) -> Option<Arc<StoredResponse>> {
        let key = self.key();
        let set = proxy.memory.get(key.hash()).filter(|set| set.head.key == key)?;
        let block = set.responses().iter().find(|block| block.head.secondary == self.record.head.secondary)?;
        // By the tags of both: the record may have others by now than when the block came.
        let (head, tags) = (&self.record.head, self.record.head.tags.union(&block.head.tags));
        let validity = proxy.journal.validity(&subject(&head.key, &head.site, &tags), &block.head.stamp);
        (validity != Validity::Purged && block.length == self.range().end - self.range().start).then(|| Arc::clone(block))
    }
}

/// Blocks that are looked for before an answer begins, to say whether all of it is here: 100 us at most. A longer answer
/// counts as one that is not.
const LOOKED_FOR: u64 = 512;

/// Notes what of an answer's ranges is not here.
pub fn note(proxy: &Proxy, record: &Arc<StoredResponse>, ranges: &[Range<u64>], outcome: &mut Outcome) {
    let is_here = |byte| Block::at(record, byte).is_none_or(|block| block.find(proxy).is_some());
    let first_is_here = ranges.first().is_none_or(|range| is_here(range.start));
    let touched = record.blocks().and_then(|blocks| touched(blocks.size, ranges));
    if first_is_here && touched.is_some_and(|blocks| blocks.into_iter().all(is_here)) {
        return;
    }
    if matches!(outcome.result, CacheResult::Hit | CacheResult::Stale) {
        outcome.result = CacheResult::Miss;
        outcome.source = if first_is_here { Source::Memory } else { Source::Upstream };
        outcome.forward = outcome.forward.or(Some(Forward::Partial));
        outcome.forward_status = outcome.forward_status.or((!first_is_here).then_some(206));
        outcome.stored = record.blocks().is_some_and(|blocks| proxy.memory.is_sure_to_admit(blocks.size));
    }
}

/// The first byte of each block of this size that ranges touch, of one that two touch twice; `None` where they are too many
/// to look for.
fn touched(size: u64, ranges: &[Range<u64>]) -> Option<Vec<u64>> {
    let numbers = |range: &Range<u64>| range.start / size..range.end.div_ceil(size);
    let count = ranges.iter().map(numbers).map(|numbers| numbers.end - numbers.start).fold(0, u64::saturating_add);
    (count <= LOOKED_FOR).then(|| ranges.iter().flat_map(numbers).map(|number| number * size).collect())
}

/// How many blocks of a record are here, of those that are looked for, and how many there are.
pub fn count(proxy: &Proxy, record: &Arc<StoredResponse>) -> Option<(u64, u64)> {
    let size = record.blocks()?.size;
    let of = record.length.div_ceil(size);
    let here = (0..of.min(LOOKED_FOR)).filter_map(|number| Block::at(record, number * size)).filter(|block| block.find(proxy).is_some());
    Some((here.count() as u64, of))
}

/// What the client is told when not even the first byte of an answer could be had.
pub fn failure(error: BodyError) -> Failure {
    let (status, token) = match error {
        BodyError::Timeout => (504, "connection_read_timeout"),
        BodyError::Truncated => (502, "http_response_incomplete"),
        BodyError::Malformed => (502, "http_protocol_error"),
        _ => (502, "connection_terminated"),
    };
    Failure { status, token, text: error.to_string().into(), stale_may_be_served: false, endpoint: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_that_are_touched_are_told_unless_they_are_too_many() {
        assert_eq!(touched(10, &[5..6, 10..20, 19..21]), Some(vec![0, 10, 10, 20]));
        assert_eq!(touched(10, &[0..10, 10..10 * LOOKED_FOR]).map(|blocks| blocks.len() as u64), Some(LOOKED_FOR));
        assert_eq!(touched(10, &[0..10 * LOOKED_FOR, 0..1]), None);
        assert_eq!(touched(1 << 16, &[0..u64::MAX, 0..u64::MAX]), None);
    }

    proptest! {
        /// Each byte of a range is in a block that is told, and each block that is told has a byte of one.
        #[test]
        fn what_is_touched_covers_the_ranges_and_no_more(size in 1u64..50, starts in prop::collection::vec((0u64..500, 1u64..60), 1..5)) {
            let ranges: Vec<Range<u64>> = starts.iter().map(|(start, span)| *start..start + span).collect();
            let blocks = touched(size, &ranges).unwrap();
            for byte in 0..600 {
                let wanted = ranges.iter().any(|range| range.contains(&byte));
                prop_assert!(!wanted || blocks.contains(&(byte / size * size)), "{byte}");
            }
            for first in blocks {
                prop_assert!(ranges.iter().any(|range| range.start < first + size && first < range.end), "{first}");
            }
        }
    }
}
