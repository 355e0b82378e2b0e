//! Tiers: keyed values with a drop deadline. A tier knows nothing of HTTP, so none can be wrong about freshness.
//!
//! Today there is one, in memory. The trait for tiers that store bytes outside the process comes with the first of them.

pub mod memory;
