//! Compression dictionaries that are kept (RFC 9842): responses that origins declared to be one, by the hash of their bytes.
//!
//! They outlive the responses that they came from: when a new version is stored, clients still have the one before. Nobody
//! ever gets a dictionary from here; who names its hash has it, and gets what is coded against it.

use super::when_full;
use crate::pages;
use crate::semantics::dictionary::{Dictionary, DictionaryHash};
use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::sync::Arc;

/// A bounded map from origin (`https://shop.example`) and hash to the dictionary. Those go first that were not asked for the longest.
#[derive(Clone)]
pub struct Dictionaries {
    kept: Cache<(Arc<str>, DictionaryHash), Arc<Dictionary>>,
}

/// What the map keeps per dictionary beside its bytes and its origin, about.
const BOOKKEEPING: usize = 400;

impl Dictionaries {
    /// `on_full` is told of each dictionary that had to go because all of them had this many `bytes`.
    pub fn new(bytes: u64, on_full: impl Fn() + Send + Sync + 'static) -> Self {
        let weigh = |(origin, _): &(Arc<str>, DictionaryHash), dictionary: &Arc<Dictionary>| {
            u32::try_from(dictionary.bytes().len() + origin.len() + BOOKKEEPING).unwrap_or(u32::MAX)
        };
        // A new version counts at once, however often the old one was asked for.
        let builder = Cache::builder().max_capacity(bytes).weigher(weigh).eviction_policy(EvictionPolicy::lru());
        Self { kept: builder.eviction_listener(when_full(on_full)).build() }
    }

    /// Keeps a body as a dictionary for its origin.
    pub fn keep(&self, origin: &str, body: &[Bytes]) {
        let dictionary = Dictionary::new(in_one_piece(body));
        let key = (Arc::from(origin), dictionary.hash());
        // What is kept already stays: a response that is confirmed comes here each time.
        if self.kept.get(&key).is_none() {
            self.kept.insert(key, Arc::new(dictionary));
        }
    }

    pub fn get(&self, origin: &str, hash: DictionaryHash) -> Option<Arc<Dictionary>> {
        self.kept.get(&(Arc::from(origin), hash))
    }

    /// How many there are, and bytes of them all, about: maintenance is put off.
    pub fn usage(&self) -> (u64, u64) {
        (self.kept.entry_count(), self.kept.weighted_size())
    }

    /// Does what was put off, so that what is gone is freed and counted; a background task calls it.
    pub fn tend(&self) {
        self.kept.run_pending_tasks();
    }
}

/// Shared with the body where that is one piece that stands alone, else copied.
fn in_one_piece(body: &[Bytes]) -> Bytes {
    match body {
        [one] if one.len() >= pages::MIN => one.clone(),
        pieces => pages::gather(pieces).unwrap_or_else(|| pieces.concat().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn hash(bytes: &[u8]) -> DictionaryHash {
        Dictionary::new(Bytes::copy_from_slice(bytes)).hash()
    }

    #[test]
    fn a_dictionary_is_for_its_origin() {
        let dictionaries = Dictionaries::new(1 << 20, || ());
        dictionaries.keep("https://a", &[Bytes::from_static(b"some "), Bytes::from_static(b"bytes")]);
        let found = dictionaries.get("https://a", hash(b"some bytes")).unwrap();
        assert_eq!(found.bytes(), b"some bytes");
        assert!(dictionaries.get("http://a", hash(b"some bytes")).is_none());
        assert!(dictionaries.get("https://a", hash(b"some")).is_none());
        dictionaries.keep("https://a", &[Bytes::from_static(b"some bytes")]);
        assert!(Arc::ptr_eq(&found, &dictionaries.get("https://a", hash(b"some bytes")).unwrap()), "it was there");
    }

    #[test]
    fn a_large_body_in_one_piece_is_shared() {
        let dictionaries = Dictionaries::new(1 << 20, || ());
        let body = Bytes::from(vec![7; pages::MIN]);
        dictionaries.keep("https://a", std::slice::from_ref(&body));
        assert_eq!(dictionaries.get("https://a", hash(&body)).unwrap().bytes().as_ptr(), body.as_ptr());
    }

    #[test]
    fn dictionaries_are_bounded_and_what_goes_is_told() {
        let gone = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&gone);
        let dictionaries = Dictionaries::new(100_000, move || {
            told.fetch_add(1, Ordering::Relaxed);
        });
        for number in 0..100u8 {
            dictionaries.keep("https://a", &[Bytes::from(vec![number; 5_000])]);
        }
        dictionaries.tend();
        let (kept, bytes) = dictionaries.usage();
        assert!((1..=20).contains(&kept) && bytes <= 100_000, "{kept} of {bytes} bytes");
        assert_eq!(gone.load(Ordering::Relaxed), 100 - kept);
    }
}
