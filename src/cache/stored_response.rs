//! A response as the cache holds it.

use crate::semantics::freshness::Facts;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{CacheKey, Fields, Response, StatusCode};
use bytes::Bytes;
use std::sync::Arc;

/// Immutable but for what the journal has checked.
#[derive(Debug)]
pub struct StoredResponse {
    pub status: StatusCode,
    /// Ready for the wire: connection-specific fields and Age left out, Date there.
    pub fields: Fields,
    pub facts: Facts,
    pub key: CacheKey,
    pub secondary: SecondaryKey,
    pub segments: Arc<[Bytes]>,
    pub length: u64,
}

impl StoredResponse {
    /// As the rules see it.
    pub fn head(&self) -> Response<'_> {
        Response { status: self.status, fields: &self.fields }
    }
}
