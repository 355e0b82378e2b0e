//! Metrics. Every series is declared in `series`, with its help text; docs/metrics.md lists the same (a test compares).
//!
//! What happens for every request is counted in `hot`, per worker, and summed when scraped; everything else uses the
//! prometheus crate, with children resolved beforehand where the labels are enums. Nothing here decides anything.

mod acme;
mod hot;
mod journal;
mod lease;
mod redis;
mod scrape;
pub mod series;
mod tiers;
mod tls;

pub use acme::{AcmeOutcome, AcmeSeries};
pub use journal::{JournalClass, JournalEvent, JournalSeries};
pub use lease::{LeaseAsked, LeaseEnded, LeaseSeries};
pub use redis::{RedisOutcome, RedisSeries, RedisUse};
pub use series::SERIES;
pub use tiers::{TierLookup, TierSeries, TierWrite};
pub use tls::{CertificateChange, Handshake, TlsSeries};

use crate::proxy::outcome::{CacheResult, RouteId, Source};
use crate::semantics::StatusCode;
use crate::semantics::coding::Coding;
use crate::semantics::storage::NotStored;
use hot::{CLASSES, Finished, Hot, class};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};
use scrape::GaugeSource;
use std::collections::HashMap;
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
    BodyKeyBytes,
    HeaderTimeout,
    IdleTimeout,
    BodyTimeout,
    BodyRate,
    WriteTimeout,
    Waiting,
    FillMemory,
    ObjectSize,
    RangeParts,
    Variants,
    NoVarySearchPaths,
    NoVarySearchBytes,
    SurrogateKeys,
    ReaderDetached,
    PinnedMemory,
    Markers,
    MemoryPressure,
    UpstreamConnections,
    UpstreamQueue,
    UpstreamQueueTimeout,
    UpstreamHeaderBytes,
    UpstreamHeaderCount,
    UpstreamInterim,
    AccessLogQueue,
    InterimDropped,
    InvalidatedGroups,
    DrainTimeout,
    AdminConnections,
    StoreAfter,
    RateLimitCallers,
    UpstreamPurgeQueue,
    UpstreamPurgeQueueTimeout,
    CompressionThreads,
    HotForms,
    DecodedBytes,
    DictionarySize,
    DictionaryMemory,
    Http2Resets,
    Http2IdleFrames,
    Http2Errors,
    Http3Resets,
    AcmeQuestions,
}

impl Bound {
    pub const ALL: [Self; 49] = [
        Self::Connections,
        Self::RequestsPerConnection,
        Self::HeaderBytes,
        Self::HeaderCount,
        Self::UrlBytes,
        Self::BodyBytes,
        Self::BodyKeyBytes,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::BodyTimeout,
        Self::BodyRate,
        Self::WriteTimeout,
        Self::Waiting,
        Self::FillMemory,
        Self::ObjectSize,
        Self::RangeParts,
        Self::Variants,
        Self::NoVarySearchPaths,
        Self::NoVarySearchBytes,
        Self::SurrogateKeys,
        Self::ReaderDetached,
        Self::PinnedMemory,
        Self::Markers,
        Self::MemoryPressure,
        Self::UpstreamConnections,
        Self::UpstreamQueue,
        Self::UpstreamQueueTimeout,
        Self::UpstreamHeaderBytes,
        Self::UpstreamHeaderCount,
        Self::UpstreamInterim,
        Self::AccessLogQueue,
        Self::InterimDropped,
        Self::InvalidatedGroups,
        Self::DrainTimeout,
        Self::AdminConnections,
        Self::StoreAfter,
        Self::RateLimitCallers,
        Self::UpstreamPurgeQueue,
        Self::UpstreamPurgeQueueTimeout,
        Self::CompressionThreads,
        Self::HotForms,
        Self::DecodedBytes,
        Self::DictionarySize,
        Self::DictionaryMemory,
        Self::Http2Resets,
        Self::Http2IdleFrames,
        Self::Http2Errors,
        Self::Http3Resets,
        Self::AcmeQuestions,
    ];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::RequestsPerConnection => "requests_per_connection",
            Self::HeaderBytes => "header_bytes",
            Self::HeaderCount => "header_count",
            Self::UrlBytes => "url_bytes",
            Self::BodyBytes => "body_bytes",
            Self::BodyKeyBytes => "body_key_bytes",
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::BodyRate => "body_rate",
            Self::WriteTimeout => "write_timeout",
            Self::Waiting => "waiting",
            Self::FillMemory => "fill_memory",
            Self::ObjectSize => "object_size",
            Self::RangeParts => "range_parts",
            Self::Variants => "variants",
            Self::NoVarySearchPaths => "no_vary_search_paths",
            Self::NoVarySearchBytes => "no_vary_search_bytes",
            Self::SurrogateKeys => "surrogate_keys",
            Self::ReaderDetached => "reader_detached",
            Self::PinnedMemory => "pinned_memory",
            Self::Markers => "markers",
            Self::MemoryPressure => "memory_pressure",
            Self::UpstreamConnections => "upstream_connections",
            Self::UpstreamQueue => "upstream_queue",
            Self::UpstreamQueueTimeout => "upstream_queue_timeout",
            Self::UpstreamHeaderBytes => "upstream_header_bytes",
            Self::UpstreamHeaderCount => "upstream_header_count",
            Self::UpstreamInterim => "upstream_interim",
            Self::AccessLogQueue => "access_log_queue",
            Self::InterimDropped => "interim_dropped",
            Self::InvalidatedGroups => "invalidated_groups",
            Self::DrainTimeout => "drain_timeout",
            Self::AdminConnections => "admin_connections",
            Self::StoreAfter => "store_after",
            Self::RateLimitCallers => "rate_limit_callers",
            Self::UpstreamPurgeQueue => "upstream_purge_queue",
            Self::UpstreamPurgeQueueTimeout => "upstream_purge_queue_timeout",
            Self::CompressionThreads => "compression_threads",
            Self::HotForms => "hot_forms",
            Self::DecodedBytes => "decoded_bytes",
            Self::DictionarySize => "dictionary_size",
            Self::DictionaryMemory => "dictionary_memory",
            Self::Http2Resets => "http2_resets",
            Self::Http2IdleFrames => "http2_idle_frames",
            Self::Http2Errors => "http2_errors",
            Self::Http3Resets => "http3_resets",
            Self::AcmeQuestions => "acme_questions",
        }
    }
}

/// Why a connection to an upstream was closed that might have been used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// The peer closed it while it was idle.
    Closed,
    /// The peer sent bytes while it was idle.
    Spoke,
    /// Bytes came after a complete response.
    Surplus,
    /// The response was complete before the request was.
    Early,
}

impl Dropped {
    pub const ALL: [Self; 4] = [Self::Closed, Self::Spoke, Self::Surplus, Self::Early];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Spoke => "spoke",
            Self::Surplus => "surplus",
            Self::Early => "early",
        }
    }
}

/// How many connections of an upstream are in use, and how many idle.
#[derive(Debug, Clone)]
pub struct ConnectionGauges {
    pub active: IntGauge,
    pub idle: IntGauge,
}

/// The connections of an upstream over HTTP/2, and the requests under way on them.
#[derive(Debug, Clone)]
pub struct Http2Gauges {
    pub connections: ConnectionGauges,
    pub streams: IntGauge,
}

/// The fetches of an upstream that purges caused: those in line, and all of them so far.
#[derive(Debug, Clone)]
pub struct RecoveryGauges {
    pub waiting: IntGauge,
    pub fetches: IntCounter,
}

/// What a rate limit counts.
#[derive(Debug, Clone)]
pub struct LimitCounters {
    pub rejections: IntCounter,
    /// Requests of a shared limit that Redis did not count.
    pub uncounted: IntCounter,
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
    /// Its node being cut off, it had to have a fetch that began after it came.
    TooOld,
    Full,
}

impl FollowOutcome {
    pub const ALL: [Self; 7] = [Self::Served, Self::Regrouped, Self::Alone, Self::Failed, Self::LedAnew, Self::TooOld, Self::Full];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Regrouped => "regrouped",
            Self::Alone => "alone",
            Self::Failed => "failed",
            Self::LedAnew => "led_anew",
            Self::TooOld => "too_old",
            Self::Full => "full",
        }
    }
}

/// Where a block of a large response came from (`cache.blocks`), or why it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockOutcome {
    Memory,
    /// From another request's fetch.
    Collapsed,
    Fetched,
    /// The origin has another version by now, or does not answer in parts.
    OtherVersion,
    Failed,
}

impl BlockOutcome {
    pub const ALL: [Self; 5] = [Self::Memory, Self::Collapsed, Self::Fetched, Self::OtherVersion, Self::Failed];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Collapsed => "collapsed",
            Self::Fetched => "fetched",
            Self::OtherVersion => "other_version",
            Self::Failed => "failed",
        }
    }
}

/// What became of a request between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ShieldOutcome {
    /// An owner answered, and the answer was taken.
    Answered,
    /// What the owner answered was purged here, or cannot be compared: the upstream was asked.
    Rejected,
    /// The owner did not answer as it should: the next node was asked, or the upstream.
    Failed,
    /// The owner was not asked for its failures.
    Bypassed,
    /// As an owner: answered, with what the asker needs to judge the answer.
    Served,
    /// As an owner: answered as an upstream would, because journal or policy of the asker are others.
    Plain,
    /// As an owner: the hop was not good.
    Refused,
}

impl ShieldOutcome {
    pub const ALL: [Self; 7] = [Self::Answered, Self::Rejected, Self::Failed, Self::Bypassed, Self::Served, Self::Plain, Self::Refused];
    /// `peer_role` and `outcome`.
    pub const fn labels(self) -> [&'static str; 2] {
        match self {
            Self::Answered => ["asker", "answered"],
            Self::Rejected => ["asker", "rejected"],
            Self::Failed => ["asker", "failed"],
            Self::Bypassed => ["asker", "bypassed"],
            Self::Served => ["owner", "served"],
            Self::Plain => ["owner", "plain"],
            Self::Refused => ["owner", "refused"],
        }
    }
}

/// What became of a question for what another node holds (`shield.warm_time`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum WarmOutcome {
    /// It was there, and was taken.
    Found,
    /// Nothing usable was there: the origin was asked.
    Nothing,
    /// It was there, and was purged, or cannot be compared: the origin was asked.
    Rejected,
    /// No answer within `shield.warm_budget`.
    Late,
    Failed,
    /// Nobody was asked: who stands in was late, or failed, of late.
    Bypassed,
    /// As a holder: it was here.
    Given,
    /// As a holder: it was not.
    NotHeld,
}

impl WarmOutcome {
    pub const ALL: [Self; 8] =
        [Self::Found, Self::Nothing, Self::Rejected, Self::Late, Self::Failed, Self::Bypassed, Self::Given, Self::NotHeld];
    /// `peer_role` and `outcome`.
    pub const fn labels(self) -> [&'static str; 2] {
        match self {
            Self::Found => ["asker", "found"],
            Self::Nothing => ["asker", "nothing"],
            Self::Rejected => ["asker", "rejected"],
            Self::Late => ["asker", "late"],
            Self::Failed => ["asker", "failed"],
            Self::Bypassed => ["asker", "bypassed"],
            Self::Given => ["holder", "given"],
            Self::NotHeld => ["holder", "not_held"],
        }
    }
}

/// How a background refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefreshOutcome {
    NotModified,
    Replaced,
    Failed,
}

impl RefreshOutcome {
    pub const ALL: [Self; 3] = [Self::NotModified, Self::Replaced, Self::Failed];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotModified => "not_modified",
            Self::Replaced => "replaced",
            Self::Failed => "failed",
        }
    }
}

/// Why a stored response was served stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StaleReason {
    WhileRevalidate,
    Error,
    MaxStale,
}

impl StaleReason {
    pub const ALL: [Self; 3] = [Self::WhileRevalidate, Self::Error, Self::MaxStale];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WhileRevalidate => "while_revalidate",
            Self::Error => "error",
            Self::MaxStale => "max_stale",
        }
    }
}

/// Where a coded answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CodedFrom {
    /// The store: no encoder was touched.
    Store,
    /// It was made for this answer, and is kept.
    Making,
    /// It was being made for another answer.
    Following,
    /// It was made for this answer alone.
    Alone,
}

impl CodedFrom {
    pub const ALL: [Self; 4] = [Self::Store, Self::Making, Self::Following, Self::Alone];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Making => "making",
            Self::Following => "following",
            Self::Alone => "alone",
        }
    }
}

/// What became of a dictionary that a client named (RFC 9842) for what might be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DictionaryUse {
    /// The answer was coded against it.
    Used,
    /// It is not kept here (any more).
    Unknown,
    /// The response is too long, or its length is not known as yet.
    Length,
    /// A page of another origin asks, which may not read the response.
    OtherOrigin,
}

impl DictionaryUse {
    pub const ALL: [Self; 4] = [Self::Used, Self::Unknown, Self::Length, Self::OtherOrigin];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Unknown => "unknown",
            Self::Length => "length",
            Self::OtherOrigin => "other_origin",
        }
    }
}

/// Why a value left a tier for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Eviction {
    /// For capacity, or refused by the admission policy.
    Size,
    /// Past its deadline.
    Dropped,
    /// Taken out: purged, or not to be kept any more.
    Removed,
}

impl Eviction {
    pub const ALL: [Self; 3] = [Self::Size, Self::Dropped, Self::Removed];
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Dropped => "dropped",
            Self::Removed => "removed",
        }
    }
}

/// Usage of a tier, read at scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct TierUsage {
    pub bytes: u64,
    pub limit_bytes: u64,
    pub responses: u64,
}

/// How this node stands to the fleet's journal, read at scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct FleetUsage {
    pub trusted: bool,
    pub remembered: bool,
    pub epoch: u64,
    /// Time of the last purge applied in order, as Redis had it.
    pub applied_ms: u64,
    /// Invalidations by unsafe methods that wait to be told to the fleet, and how many were not told.
    pub untold: usize,
    pub lost: u64,
}

/// Values read at scrape from the parts that hold them.
pub trait Gauges: Send + Sync {
    fn memory_tier(&self) -> TierUsage;
    /// Bytes in fills in flight and pinned bodies, and their limit.
    fn fill_memory(&self) -> (u64, u64);
    /// Bytes of bodies that sockets can take by page.
    fn pages(&self) -> u64;
    /// Bytes in pinned bodies alone.
    fn pinned_memory(&self) -> u64;
    /// Flights under way, followers waiting.
    fn flights(&self) -> (usize, usize);
    fn markers(&self) -> usize;
    /// Entries in the journal's map, folded entries.
    fn journal(&self) -> (usize, u64);
    /// Compression dictionaries that are kept, and their bytes.
    fn dictionaries(&self) -> (u64, u64);
    /// Callers of rate limits that are remembered.
    fn rate_limit_callers(&self) -> u64;
    fn fleet(&self) -> FleetUsage;
}

/// All series.
pub struct Metrics {
    hot: Arc<Hot>,
    gauges: GaugeSource,
    registry: Registry,
    /// By number of the variant.
    bounds: Vec<IntCounter>,
    not_stored: Vec<IntCounter>,
    followers: Vec<IntCounter>,
    refreshes: Vec<IntCounter>,
    blocks: Vec<IntCounter>,
    stale_served: Vec<IntCounter>,
    shield: Vec<IntCounter>,
    warm: Vec<IntCounter>,
    shield_seconds: Histogram,
    /// Fit, ejected.
    shield_peers: [IntGauge; 2],
    shield_names_failed: IntCounter,
    early_refreshes: IntCounter,
    http3_retries: IntCounter,
    /// By coding, then by [`CodedFrom`].
    coded: [Vec<IntCounter>; Coding::ALL.len()],
    remade: Vec<IntCounter>,
    dictionaries: Vec<IntCounter>,
    stores: [IntCounter; 2],
    written_bytes: IntCounter,
    evictions: Vec<IntCounter>,
    leaders: IntCounter,
    wait_seconds: Histogram,
    connections: IntGauge,
    refused: IntCounterVec,
    purges: IntCounterVec,
    unsafe_invalidations: IntCounter,
    rate_limit_rejections: IntCounterVec,
    rate_limit_uncounted: IntCounterVec,
    panics: IntCounter,
    /// By position in [`LOST_REASONS`].
    access_log_lost: Vec<IntCounter>,
    upstreams: Upstreams,
    /// Connections to Redis.
    pub redis: RedisSeries,
    /// The tier in Redis.
    pub tiers: TierSeries,
    pub lease: LeaseSeries,
    pub journal: JournalSeries,
    pub tls: TlsSeries,
    pub acme: AcmeSeries,
    reload: Reload,
}

const PURGE_KINDS: [&str; 7] = ["url", "key", "group", "prefix", "host", "site", "everything"];
const PURGE_MODES: [&str; 2] = ["hard", "soft"];
const LOST_REASONS: [&str; 2] = ["queue", "write"];
/// The only tier as yet that is counted here.
const MEMORY: &str = "memory";

impl Metrics {
    /// `workers`: how many cores count requests.
    pub fn new(workers: usize) -> Arc<Self> {
        let registry = Registry::new();
        let hot = Arc::new(Hot::new(workers));
        let gauges = GaugeSource::default();
        scrape::register(&registry, hot.clone(), gauges.clone());
        series::BUILD_INFO.gauges(&registry).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let stores = series::STORES.counters(&registry);
        let evictions = series::EVICTIONS.counters(&registry);
        let coded = series::CODED.counters(&registry);
        let shield = series::SHIELD_REQUESTS.counters(&registry);
        let warm = series::SHIELD_WARM.counters(&registry);
        let shield_peers = series::SHIELD_PEERS.gauges(&registry);
        Arc::new(Self {
            bounds: children(&series::BOUND_REACHED.counters(&registry), Bound::ALL.map(Bound::as_str)),
            not_stored: children(&series::NOT_STORED.counters(&registry), NotStored::ALL.map(NotStored::as_str)),
            followers: children(&series::FOLLOWERS.counters(&registry), FollowOutcome::ALL.map(FollowOutcome::as_str)),
            refreshes: children(&series::REFRESHES.counters(&registry), RefreshOutcome::ALL.map(RefreshOutcome::as_str)),
            blocks: children(&series::BLOCKS.counters(&registry), BlockOutcome::ALL.map(BlockOutcome::as_str)),
            stale_served: children(&series::STALE_SERVED.counters(&registry), StaleReason::ALL.map(StaleReason::as_str)),
            shield: ShieldOutcome::ALL.iter().map(|outcome| shield.with_label_values(&outcome.labels())).collect(),
            warm: WarmOutcome::ALL.iter().map(|outcome| warm.with_label_values(&outcome.labels())).collect(),
            shield_seconds: series::SHIELD_SECONDS.histograms(&registry).with_label_values::<&str>(&[]),
            shield_names_failed: series::SHIELD_NAMES_FAILED.counters(&registry).with_label_values::<&str>(&[]),
            shield_peers: ["fit", "ejected"].map(|state| shield_peers.with_label_values(&[state])),
            coded: Coding::ALL.map(|coding| CodedFrom::ALL.map(|from| coded.with_label_values(&[coding.as_str(), from.as_str()])).into()),
            remade: children(&series::REMADE.counters(&registry), Coding::ALL.map(Coding::as_str)),
            dictionaries: children(&series::DICTIONARY_REQUESTS.counters(&registry), DictionaryUse::ALL.map(DictionaryUse::as_str)),
            early_refreshes: single(&series::EARLY_REFRESHES.counters(&registry)),
            http3_retries: single(&series::HTTP3_RETRIES.counters(&registry)),
            stores: ["stored", "rejected"].map(|outcome| stores.with_label_values(&[MEMORY, outcome])),
            written_bytes: series::STORED_BYTES.counters(&registry).with_label_values(&[MEMORY]),
            evictions: Eviction::ALL.iter().map(|eviction| evictions.with_label_values(&[MEMORY, eviction.as_str()])).collect(),
            leaders: single(&series::LEADERS.counters(&registry)),
            wait_seconds: series::WAIT_SECONDS.histograms(&registry).with_label_values::<&str>(&[]),
            connections: series::CONNECTIONS.gauges(&registry).with_label_values::<&str>(&[]),
            refused: series::REFUSED.counters(&registry),
            purges: grid(series::PURGES.counters(&registry), &PURGE_KINDS, &PURGE_MODES),
            unsafe_invalidations: single(&series::UNSAFE_INVALIDATIONS.counters(&registry)),
            rate_limit_rejections: series::RATE_LIMIT_REJECTIONS.counters(&registry),
            rate_limit_uncounted: series::RATE_LIMIT_UNCOUNTED.counters(&registry),
            panics: single(&series::PANICS.counters(&registry)),
            access_log_lost: children(&series::ACCESS_LOG_LOST.counters(&registry), LOST_REASONS),
            upstreams: Upstreams::new(&registry),
            redis: RedisSeries::new(&registry),
            tiers: TierSeries::new(&registry),
            lease: LeaseSeries::new(&registry),
            journal: JournalSeries::new(&registry),
            tls: TlsSeries::new(&registry),
            acme: AcmeSeries::new(&registry),
            reload: Reload::new(&registry),
            hot,
            gauges,
            registry,
        })
    }

    /// How many workers have counters of their own.
    pub fn workers(&self) -> usize {
        self.hot.workers()
    }
    /// The counters of a site's route; the same id for the same names, at any time (reload). Past 32,760 pairs of names
    /// in the life of the process new ones are counted together as `other`.
    pub fn route(&self, site: &str, route: &str) -> RouteId {
        self.hot.route(site, route)
    }
    /// Names behind an id.
    pub fn route_names(&self, id: RouteId) -> (Arc<str>, Arc<str>) {
        self.hot.names(id).map_or_else(|| ("none".into(), "none".into()), |names| (names.site.clone(), names.route.clone()))
    }
    /// [`Metrics::route_names`], borrowed.
    pub fn route_names_ref(&self, id: RouteId) -> (&str, &str) {
        self.hot.names(id).map_or(("none", "none"), |names| (&names.site, &names.route))
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
        self.hot.request(worker, route, Finished { result, source, status: status.as_u16(), body_bytes, duration_ns });
    }
    pub fn bound(&self, bound: Bound) {
        self.bounds[bound as usize].inc();
    }
    pub fn coded(&self, coding: Coding, from: CodedFrom) {
        self.coded[coding as usize][from as usize].inc();
    }
    pub fn remade(&self, coding: Coding) {
        self.remade[coding as usize].inc();
    }
    pub fn dictionary(&self, used: DictionaryUse) {
        self.dictionaries[used as usize].inc();
    }
    pub fn refused(&self, reason: &'static str, status: u16) {
        self.refused.with_label_values(&[reason, CLASSES[class(status)]]).inc();
    }
    pub fn connection_opened(&self) {
        self.connections.inc();
    }
    pub fn connection_closed(&self) {
        self.connections.dec();
    }
    pub fn flight_led(&self) {
        self.leaders.inc();
    }
    pub fn followed(&self, outcome: FollowOutcome, waited: Duration) {
        self.followers[outcome as usize].inc();
        self.wait_seconds.observe(waited.as_secs_f64());
    }
    pub fn stored(&self, bytes: u64) {
        self.stores[0].inc();
        self.written_bytes.inc_by(bytes);
    }
    pub fn not_stored(&self, reason: NotStored) {
        self.not_stored[reason as usize].inc();
        if reason == NotStored::Rejected {
            self.stores[1].inc();
        }
    }
    pub fn evicted(&self, eviction: Eviction) {
        self.evictions[eviction as usize].inc();
    }
    pub fn refreshed(&self, outcome: RefreshOutcome) {
        self.refreshes[outcome as usize].inc();
    }
    /// A block was wanted.
    pub fn block(&self, outcome: BlockOutcome) {
        self.blocks[outcome as usize].inc();
    }
    pub fn shield(&self, outcome: ShieldOutcome) {
        self.shield[outcome as usize].inc();
    }
    pub fn warm(&self, outcome: WarmOutcome) {
        self.warm[outcome as usize].inc();
    }
    /// An owner answered.
    pub fn shield_first_byte(&self, waited: Duration) {
        self.shield_seconds.observe(waited.as_secs_f64());
    }
    /// How many other nodes are asked, and how many are not for their failures.
    pub fn shield_peers(&self, fit: usize, ejected: usize) {
        self.shield_peers[0].set(fit as i64);
        self.shield_peers[1].set(ejected as i64);
    }
    /// A name of peers was not resolved.
    pub fn shield_name_failed(&self) {
        self.shield_names_failed.inc();
    }
    /// A client of HTTP/3 was asked to show that its address is its own.
    pub fn http3_retry(&self) {
        self.http3_retries.inc();
    }
    pub fn early_refresh(&self) {
        self.early_refreshes.inc();
    }
    pub fn stale_served(&self, reason: StaleReason) {
        self.stale_served[reason as usize].inc();
    }
    /// Makes an upstream's series, at zero; those of its exchanges are for who makes these.
    pub fn upstream(&self, upstream: &str) -> UpstreamExchanges {
        self.upstreams.exchanges(upstream)
    }
    pub fn upstream_retry(&self, upstream: &str, reason: &'static str) {
        self.upstreams.retries.with_label_values(&[upstream, reason]).inc();
    }
    /// The gauges of an upstream's connections, to be kept by who counts them.
    pub fn connection_gauges(&self, upstream: &str) -> ConnectionGauges {
        let gauge = |state| self.upstreams.connections.with_label_values(&[upstream, state]);
        ConnectionGauges { active: gauge("active"), idle: gauge("idle") }
    }
    /// The same for connections of HTTP/2.
    pub fn http2_gauges(&self, upstream: &str) -> Http2Gauges {
        Http2Gauges { connections: self.connection_gauges(upstream), streams: self.upstreams.streams.with_label_values(&[upstream]) }
    }
    /// The gauges of fetches that purges caused, to be kept by who counts them.
    pub fn recovery_gauges(&self, upstream: &str) -> RecoveryGauges {
        let (waiting, fetches) = (&self.upstreams.purge_waiting, &self.upstreams.purge_fetches);
        RecoveryGauges { waiting: waiting.with_label_values(&[upstream]), fetches: fetches.with_label_values(&[upstream]) }
    }
    /// A connection was closed that might have been used again.
    pub fn upstream_dropped(&self, upstream: &str, why: Dropped) {
        self.upstreams.dropped.with_label_values(&[upstream, why.as_str()]).inc();
    }
    /// `kind`: url, key, group, prefix, host, site, everything; `mode`: hard, soft.
    pub fn purged(&self, kind: &'static str, mode: &'static str) {
        self.purges.with_label_values(&[kind, mode]).inc();
    }
    pub fn unsafe_invalidation(&self) {
        self.unsafe_invalidations.inc();
    }
    /// The counters of a limit of the configuration, to be kept by it.
    pub fn rate_limit_counters(&self, limit: &str) -> LimitCounters {
        let (rejections, uncounted) = (&self.rate_limit_rejections, &self.rate_limit_uncounted);
        LimitCounters { rejections: rejections.with_label_values(&[limit]), uncounted: uncounted.with_label_values(&[limit]) }
    }
    pub fn panicked(&self) {
        self.panics.inc();
    }
    /// A configuration was loaded, also the first, or refused; `hash` is that of the one tried.
    pub fn reloaded(&self, success: bool, hash: &str) {
        self.reload.record(success, hash);
    }
    /// The access log's queue was full.
    pub fn access_log_full(&self) {
        self.access_log_lost[0].inc();
        self.bound(Bound::AccessLogQueue);
    }
    /// Lines of the access log could not be written.
    pub fn access_log_unwritten(&self, lines: u64) {
        self.access_log_lost[1].inc_by(lines);
    }
    /// Where gauges are read from at scrape.
    pub fn observe_gauges(&self, gauges: Arc<dyn Gauges>) {
        self.gauges.set(gauges);
    }
    /// The text exposition format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered whole");
        }
        text
    }
}

/// Children of an enum's values, in the order of the variants.
fn children<const N: usize>(series: &IntCounterVec, values: [&'static str; N]) -> Vec<IntCounter> {
    values.iter().map(|value| series.with_label_values(&[*value])).collect()
}

/// Makes the children of all pairs, so that they show as zero.
fn grid(series: IntCounterVec, first: &[&str], second: &[&str]) -> IntCounterVec {
    for a in first {
        for b in second {
            series.with_label_values(&[*a, *b]);
        }
    }
    series
}

fn single(series: &IntCounterVec) -> IntCounter {
    series.with_label_values::<&str>(&[])
}

/// Series of upstreams. Their names come from the configuration, so there are few.
struct Upstreams {
    requests: IntCounterVec,
    seconds: prometheus::HistogramVec,
    errors: IntCounterVec,
    retries: IntCounterVec,
    connections: IntGaugeVec,
    streams: IntGaugeVec,
    dropped: IntCounterVec,
    purge_waiting: IntGaugeVec,
    purge_fetches: IntCounterVec,
}

/// Exchanges with an upstream.
pub struct UpstreamExchanges {
    /// By class of status.
    responses: [IntCounter; CLASSES.len()],
    connect: Histogram,
    first_byte: Histogram,
    /// By token: those that came to nothing.
    errors: HashMap<&'static str, IntCounter>,
}

impl UpstreamExchanges {
    /// One exchange: status, or the error's token.
    pub fn count(&self, result: Result<StatusCode, &'static str>, connect: Option<Duration>, first_byte: Duration) {
        if let Some(connect) = connect {
            self.connect.observe(connect.as_secs_f64());
        }
        match result {
            Ok(status) => {
                self.responses[class(status.as_u16())].inc();
                self.first_byte.observe(first_byte.as_secs_f64());
            }
            Err(error) => {
                let counter = self.errors.get(error);
                debug_assert!(counter.is_some(), "UPSTREAM_ERRORS lacks {error}");
                counter.inspect(|counter| counter.inc());
            }
        }
    }
}

/// Tokens of the errors that upstreams can cause (RFC 9209 §2.3), shown as zero from the start.
pub const UPSTREAM_ERRORS: [&str; 16] = [
    "connection_limit_reached",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "destination_ip_unroutable",
    "destination_unavailable",
    "dns_error",
    "dns_timeout",
    "http_protocol_error",
    "http_request_error",
    "http_response_header_section_size",
    "http_response_incomplete",
    "http_response_timeout",
    "tls_alert_received",
    "tls_certificate_error",
    "tls_protocol_error",
];

impl Upstreams {
    fn new(registry: &Registry) -> Self {
        Self {
            requests: series::UPSTREAM_REQUESTS.counters(registry),
            seconds: series::UPSTREAM_SECONDS.histograms(registry),
            errors: series::UPSTREAM_ERRORS.counters(registry),
            retries: series::UPSTREAM_RETRIES.counters(registry),
            connections: series::UPSTREAM_CONNECTIONS.gauges(registry),
            streams: series::UPSTREAM_STREAMS.gauges(registry),
            dropped: series::UPSTREAM_DROPPED.counters(registry),
            purge_waiting: series::UPSTREAM_PURGE_WAITING.gauges(registry),
            purge_fetches: series::UPSTREAM_PURGE_FETCHES.counters(registry),
        }
    }

    fn exchanges(&self, name: &str) -> UpstreamExchanges {
        for state in ["active", "idle"] {
            self.connections.with_label_values(&[name, state]);
        }
        self.streams.with_label_values(&[name]);
        for why in Dropped::ALL {
            self.dropped.with_label_values(&[name, why.as_str()]);
        }
        UpstreamExchanges {
            responses: CLASSES.map(|class| self.requests.with_label_values(&[name, class])),
            connect: self.seconds.with_label_values(&[name, "connect"]),
            first_byte: self.seconds.with_label_values(&[name, "first_byte"]),
            errors: UPSTREAM_ERRORS.map(|error| (error, self.errors.with_label_values(&[name, error]))).into(),
        }
    }
}

/// Series of the configuration in use.
struct Reload {
    success: IntGauge,
    timestamp: IntGauge,
    hash: IntGaugeVec,
}

impl Reload {
    fn new(registry: &Registry) -> Self {
        let single = |series: &series::Series| series.gauges(registry).with_label_values::<&str>(&[]);
        Self {
            success: single(&series::RELOAD_SUCCESS),
            timestamp: single(&series::RELOAD_TIMESTAMP),
            hash: series::CONFIG_HASH.gauges(registry),
        }
    }

    fn record(&self, success: bool, hash: &str) {
        self.success.set(success.into());
        if success {
            self.timestamp.set(crate::clock::now().wall_ms / 1000);
            self.hash.reset();
            self.hash.with_label_values(&[hash]).set(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_their_own_index() {
        assert!(Bound::ALL.iter().enumerate().all(|(at, bound)| *bound as usize == at));
        assert!(NotStored::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
        assert!(FollowOutcome::ALL.iter().enumerate().all(|(at, outcome)| *outcome as usize == at));
        assert!(RefreshOutcome::ALL.iter().enumerate().all(|(at, outcome)| *outcome as usize == at));
        assert!(ShieldOutcome::ALL.iter().enumerate().all(|(at, outcome)| *outcome as usize == at));
        assert!(WarmOutcome::ALL.iter().enumerate().all(|(at, outcome)| *outcome as usize == at));
        assert!(Eviction::ALL.iter().enumerate().all(|(at, eviction)| *eviction as usize == at));
        assert!(StaleReason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    }
}
