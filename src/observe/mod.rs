//! Metrics, access log, error log. Prints the record of `proxy::outcome`; decides nothing.

pub mod access_log;
pub mod log;
pub mod metrics;
pub mod time;
