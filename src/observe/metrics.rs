//! Every series is declared here, with its help text; docs/metrics.md lists the same (a test compares).

use crate::proxy::outcome::{CacheResult, RouteId, Source};
use crate::semantics::StatusCode;
use crate::semantics::storage::NotStored;
use std::sync::Arc;
use std::time::Duration;

/// Named bounds: `tiercel_bound_reached_total{bound}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Bound {
    Connections,
    RequestsPerConnection,
    HeaderBytes,
    HeaderCount,
    UrlBytes,
    BodyBytes,
    HeaderTimeout,
    IdleTimeout,
    BodyTimeout,
    WriteTimeout,
    Waiting,
    FillMemory,
    ObjectSize,
    Variants,
    SurrogateKeys,
    ReaderDetached,
    Markers,
    MemoryPressure,
    UpstreamConnections,
    UpstreamQueue,
    UpstreamQueueTimeout,
    AccessLogQueue,
    InterimDropped,
    JournalFold,
    Receipts,
    DrainTimeout,
}

impl Bound {
    pub const ALL: [Self; 26] = [
        Self::Connections,
        Self::RequestsPerConnection,
        Self::HeaderBytes,
        Self::HeaderCount,
        Self::UrlBytes,
        Self::BodyBytes,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::BodyTimeout,
        Self::WriteTimeout,
        Self::Waiting,
        Self::FillMemory,
        Self::ObjectSize,
        Self::Variants,
        Self::SurrogateKeys,
        Self::ReaderDetached,
        Self::Markers,
        Self::MemoryPressure,
        Self::UpstreamConnections,
        Self::UpstreamQueue,
        Self::UpstreamQueueTimeout,
        Self::AccessLogQueue,
        Self::InterimDropped,
        Self::JournalFold,
        Self::Receipts,
        Self::DrainTimeout,
    ];
}

/// How following a flight ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FollowOutcome {
    Served,
    Regrouped,
    Alone,
    Failed,
    LedAnew,
    Full,
}

/// How a background refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefreshOutcome {
    NotModified,
    Replaced,
    Failed,
}

/// Why a stored response was served stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StaleReason {
    WhileRevalidate,
    Error,
    MaxStale,
}

/// Usage of a tier, read at scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct TierUsage {
    pub bytes: u64,
    pub limit_bytes: u64,
    pub responses: u64,
}

/// Values read at scrape from the parts that hold them.
pub trait Gauges: Send + Sync {
    fn memory_tier(&self) -> TierUsage;
    /// Bytes in fills in flight and pinned bodies, and their limit.
    fn fill_memory(&self) -> (u64, u64);
    /// Flights under way, followers waiting.
    fn flights(&self) -> (usize, usize);
    fn markers(&self) -> usize;
    /// Entries in the journal's map, folded entries.
    fn journal(&self) -> (usize, u64);
}

/// All series.
pub struct Metrics {}

impl Metrics {
    /// `workers`: how many cores count requests.
    pub fn new(workers: usize) -> Arc<Self> {
        let _ = workers;
        todo!()
    }

    /// The counters of a site's route; the same id for the same names, at any time (reload).
    pub fn route(&self, site: &str, route: &str) -> RouteId {
        let _ = (site, route);
        todo!()
    }
    /// Names behind an id.
    pub fn route_names(&self, id: RouteId) -> (Arc<str>, Arc<str>) {
        let _ = id;
        todo!()
    }
    /// One finished request: the hot path. Touches only counters of `worker`.
    pub fn request(
        &self,
        worker: usize,
        route: RouteId,
        result: CacheResult,
        source: Source,
        status: StatusCode,
        body_bytes: u64,
        duration_ns: u64,
    ) {
        let _ = (worker, route, result, source, status, body_bytes, duration_ns);
        todo!()
    }
    pub fn bound(&self, bound: Bound) {
        let _ = bound;
        todo!()
    }
    pub fn refused(&self, reason: &'static str, status: u16) {
        let _ = (reason, status);
        todo!()
    }
    pub fn connection_opened(&self) {
        todo!()
    }
    pub fn connection_closed(&self) {
        todo!()
    }
    pub fn flight_led(&self) {
        todo!()
    }
    pub fn followed(&self, outcome: FollowOutcome, waited: Duration) {
        let _ = (outcome, waited);
        todo!()
    }
    pub fn stored(&self, bytes: u64) {
        let _ = bytes;
        todo!()
    }
    pub fn not_stored(&self, reason: NotStored) {
        let _ = reason;
        todo!()
    }
    /// `reason`: size, expired, replaced, purged.
    pub fn evicted(&self, reason: &'static str, count: u64) {
        let _ = (reason, count);
        todo!()
    }
    pub fn refreshed(&self, outcome: RefreshOutcome) {
        let _ = outcome;
        todo!()
    }
    pub fn stale_served(&self, reason: StaleReason) {
        let _ = reason;
        todo!()
    }
    /// One exchange with an upstream: status, or the error's token.
    pub fn upstream_request(
        &self,
        upstream: &str,
        result: Result<StatusCode, &'static str>,
        connect: Option<Duration>,
        first_byte: Duration,
    ) {
        let _ = (upstream, result, connect, first_byte);
        todo!()
    }
    pub fn upstream_retry(&self, upstream: &str, reason: &'static str) {
        let _ = (upstream, reason);
        todo!()
    }
    /// Change of connections of an endpoint: `state` is `active` or `idle`.
    pub fn upstream_connections(&self, upstream: &str, state: &'static str, change: i64) {
        let _ = (upstream, state, change);
        todo!()
    }
    /// `kind`: url, key, group, prefix, host, site, everything; `mode`: hard, soft.
    pub fn purged(&self, kind: &'static str, mode: &'static str) {
        let _ = (kind, mode);
        todo!()
    }
    pub fn unsafe_invalidation(&self) {
        todo!()
    }
    pub fn panicked(&self) {
        todo!()
    }
    pub fn reloaded(&self, success: bool, hash: &str) {
        let _ = (success, hash);
        todo!()
    }
    /// Where gauges are read from at scrape.
    pub fn observe_gauges(&self, gauges: Arc<dyn Gauges>) {
        let _ = gauges;
        todo!()
    }
    /// The text exposition format.
    pub fn render(&self) -> String {
        todo!()
    }
}
