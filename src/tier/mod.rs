//! Tiers: keyed values with a drop deadline. A tier knows nothing of HTTP, so none can be wrong about freshness.
//!
//! [`memory`] holds values of this process; [`redis`] bytes that the fleet shares.

pub mod memory;
pub mod redis;
