//! "Do not line up": keys whose responses could not be shared lately (DESIGN section 5).

use crate::config::settings::Fill;

/// A bounded set of markers with expiry.
#[derive(Debug)]
pub struct Markers {}

impl Markers {
    pub fn new(settings: &Fill) -> Self {
        let _ = settings;
        todo!()
    }
    /// Sets or confirms: 2 s, doubled each time it is confirmed, up to 2 min.
    pub fn set(&self, key: u128, now_mono_ms: u64) {
        let _ = (key, now_mono_ms);
        todo!()
    }
    pub fn clear(&self, key: u128) {
        let _ = key;
        todo!()
    }
    pub fn is_set(&self, key: u128, now_mono_ms: u64) -> bool {
        let _ = (key, now_mono_ms);
        todo!()
    }
    pub fn len(&self) -> usize {
        todo!()
    }
}
