//! Names, kinds, labels and help texts of all series: the one place that declares them.

use prometheus::core::Desc;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What a series is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The declaration of a series. Label values come from enums and configured names, never from requests.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Upper bounds of the buckets of every histogram of seconds, in nanoseconds.
pub(super) const BUCKETS_NS: [u64; 14] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

const VALID: &str = "declared names and labels are valid, and each is registered once";

impl Series {
    pub(super) fn desc(&self) -> Desc {
        let labels = self.labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, Default::default()).expect(VALID)
    }

    pub(super) fn counters(&self, registry: &Registry) -> IntCounterVec {
        let series = IntCounterVec::new(Opts::new(self.name, self.help), self.labels).expect(VALID);
        registry.register(Box::new(series.clone())).expect(VALID);
        series
    }

    pub(super) fn gauges(&self, registry: &Registry) -> IntGaugeVec {
        let series = IntGaugeVec::new(Opts::new(self.name, self.help), self.labels).expect(VALID);
        registry.register(Box::new(series.clone())).expect(VALID);
        series
    }

    pub(super) fn histograms(&self, registry: &Registry) -> HistogramVec {
        let buckets = BUCKETS_NS.iter().map(|ns| *ns as f64 / 1e9).collect();
        let series = HistogramVec::new(HistogramOpts::new(self.name, self.help).buckets(buckets), self.labels).expect(VALID);
        registry.register(Box::new(series.clone())).expect(VALID);
        series
    }
}

macro_rules! series {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Series =
            Series { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every series of this program; `process_*` comes from the prometheus crate.
        pub const SERIES: &[Series] = &[$($constant),*];
    };
}

series! {
    REQUESTS = Counter "tiercel_requests_total" ["site", "route", "result", "tier", "code"]
        "Requests answered, by cache result, by where the bytes came from, and by class of status.";
    RESPONSE_BYTES = Counter "tiercel_response_bytes_total" ["site", "route", "result", "tier"]
        "Bytes of response bodies written to clients.";
    REQUEST_SECONDS = Histogram "tiercel_request_duration_seconds" ["site", "route", "result"]
        "From the first byte of a request to the last byte of its answer.";
    WORKER_REQUESTS = Counter "tiercel_worker_requests_total" ["worker"]
        "Requests answered, by worker: whether the load is shared.";
    NOT_STORED = Counter "tiercel_cache_not_stored_total" ["reason"]
        "Responses that were not stored, by reason; the reason is the detail in Cache-Status.";
    STORES = Counter "tiercel_cache_stores_total" ["tier", "outcome"]
        "Responses offered to a tier: stored, or rejected by it.";
    STORED_BYTES = Counter "tiercel_cache_written_bytes_total" ["tier"]
        "Bytes of the responses that were stored, heads and bookkeeping included.";
    TIER_BYTES = Gauge "tiercel_tier_stored_bytes" ["tier"]
        "Bytes that a tier holds, all in.";
    TIER_LIMIT = Gauge "tiercel_tier_limit_bytes" ["tier"]
        "Bytes that a tier may hold.";
    TIER_RESPONSES = Gauge "tiercel_tier_stored_responses" ["tier"]
        "Stored responses that a tier holds.";
    EVICTIONS = Counter "tiercel_cache_evictions_total" ["tier", "reason"]
        "Cache keys that left a tier with their stored responses: for size, dropped past their deadline, or removed by a purge.";
    STALE_SERVED = Counter "tiercel_cache_stale_served_total" ["reason"]
        "Answers from stale stored responses, by what allowed it.";
    REFRESHES = Counter "tiercel_cache_refresh_total" ["outcome"]
        "Revalidations in the background, by outcome.";
    BLOCKS = Counter "tiercel_cache_blocks_total" ["outcome"]
        "Blocks of large responses that answers were made of, by where they came from.";
    CODED = Counter "tiercel_compress_total" ["coding", "source"]
        "Answers in a coding of ours, by where the form came from.";
    REMADE = Counter "tiercel_compress_remade_total" ["coding"]
        "Forms that were sent often and made smaller in the background.";
    DICTIONARY_REQUESTS = Counter "tiercel_compress_dictionary_requests_total" ["outcome"]
        "Requests that named a compression dictionary for what might be coded, by what became of that.";
    DICTIONARIES = Gauge "tiercel_compress_dictionaries" []
        "Compression dictionaries that are kept.";
    DICTIONARY_BYTES = Gauge "tiercel_compress_dictionary_bytes" []
        "Bytes of compression dictionaries that are kept; limits.dictionary_memory at most.";
    EARLY_REFRESHES = Counter "tiercel_cache_early_refreshes_total" []
        "Revalidations in the background that were begun before the end of freshness (cache.early_refresh).";
    LEADERS = Counter "tiercel_coalesce_leaders_total" []
        "Flights led: fetches that other requests could join.";
    FOLLOWERS = Counter "tiercel_coalesce_followers_total" ["outcome"]
        "Requests that joined a flight, by how following ended.";
    WAIT_SECONDS = Histogram "tiercel_coalesce_wait_seconds" []
        "How long followers waited for the head of the response.";
    IN_FLIGHT = Gauge "tiercel_coalesce_in_flight" []
        "Flights under way.";
    WAITING = Gauge "tiercel_coalesce_waiting" []
        "Followers that wait for a head.";
    FILL_BYTES = Gauge "tiercel_fill_bytes" []
        "Bytes held by fills in flight and by bodies that readers pin.";
    FILL_LIMIT = Gauge "tiercel_fill_limit_bytes" []
        "Bytes that fills in flight and pinned bodies may hold; past it new fills are not stored.";
    PAGE_BYTES = Gauge "tiercel_page_bytes" []
        "Bytes of large bodies, stored or in flight, that stand in pages which sockets take without a copy.";
    PINNED_BYTES = Gauge "tiercel_pinned_bytes" []
        "Bytes of bodies that were stored, left their tier, and are still being read; part of tiercel_fill_bytes.";
    MARKERS = Gauge "tiercel_markers" []
        "Keys whose requests do not line up because their responses could not be stored.";
    PURGES = Counter "tiercel_purge_requests_total" ["kind", "mode"]
        "Selectors purged, by kind and mode.";
    UNSAFE_INVALIDATIONS = Counter "tiercel_unsafe_invalidations_total" []
        "Invalidations by unsafe methods and Cache-Group-Invalidation.";
    JOURNAL_ENTRIES = Gauge "tiercel_journal_entries" []
        "Selectors that the journal of invalidations holds exactly.";
    JOURNAL_FOLDED = Counter "tiercel_journal_folded_total" []
        "Selectors folded into the fixed table because the journal was full; each may invalidate too much.";
    JOURNAL_TRUSTED = Gauge "tiercel_journal_trusted" []
        "Whether this node knows what the fleet purged; while 0 it is cut off, and journal.on_cutoff counts. Always 1 without a fleet.";
    JOURNAL_REMEMBERED = Gauge "tiercel_journal_remembered" []
        "Whether the fleet is sure to wait for this node when it vanishes; until then it revalidates while cut off, where journal.on_cutoff is serve.";
    JOURNAL_EPOCH = Gauge "tiercel_journal_epoch" []
        "Epoch of the fleet's journal that this node is in; 0 without a fleet, and before the journal was first heard of.";
    JOURNAL_APPLIED_AT = Gauge "tiercel_journal_applied_timestamp_milliseconds" []
        "Place of the last purge that was applied in order: Unix time, by the clock of Redis in a fleet.";
    JOURNAL_LAG = Gauge "tiercel_journal_lag_milliseconds" []
        "How far behind the last purge in the fleet's journal this node was at its last heartbeat.";
    JOURNAL_NODES = Gauge "tiercel_journal_nodes" []
        "Nodes of the fleet that purges wait for, this one included; 0 without a fleet.";
    JOURNAL_UNAPPENDED = Gauge "tiercel_journal_unappended" []
        "Purges of this node that have no place in the fleet's journal yet.";
    JOURNAL_APPENDED = Counter "tiercel_journal_appended_total" ["class"]
        "Entries that this node appended to the fleet's journal.";
    JOURNAL_APPLIED = Counter "tiercel_journal_applied_total" ["class"]
        "Entries of the fleet's journal that came to this node.";
    JOURNAL_EVENTS = Counter "tiercel_journal_events_total" ["event"]
        "What happens to the fleet's journal and does not while all is well: loss, another server, a new epoch (the first too), ...";
    JOURNAL_UNTOLD = Gauge "tiercel_journal_untold" []
        "Invalidations by unsafe methods that wait to be told to the fleet.";
    JOURNAL_UNTOLD_LOST = Counter "tiercel_journal_untold_lost_total" []
        "Invalidations by unsafe methods that the fleet was not told, because too many waited.";
    PROPAGATION_SECONDS = Histogram "tiercel_purge_propagation_seconds" []
        "From when a purge got its place in the fleet's journal until it was in force on this node.";
    CUT_OFF_REQUESTS = Counter "tiercel_cut_off_requests_total" ["policy"]
        "Requests that came while this node was cut off from the fleet's journal, by what was done about it.";
    HTTP3_RETRIES = Counter "tiercel_http3_retries_total" []
        "Clients of HTTP/3 that were asked to show that their address is their own (Retry) before their handshake went on.";
    UPSTREAM_REQUESTS = Counter "tiercel_upstream_requests_total" ["upstream", "code"]
        "Responses of upstreams, by class of status.";
    UPSTREAM_ERRORS = Counter "tiercel_upstream_errors_total" ["upstream", "error"]
        "Requests to upstreams that brought no response, by error (tokens of RFC 9209).";
    UPSTREAM_SECONDS = Histogram "tiercel_upstream_seconds" ["upstream", "phase"]
        "Time to connect (phase connect, new connections only) and from the request sent to the response head (first_byte).";
    UPSTREAM_RETRIES = Counter "tiercel_upstream_retries_total" ["upstream", "reason"]
        "Requests sent once more on a fresh connection, by why the first attempt failed.";
    UPSTREAM_CONNECTIONS = Gauge "tiercel_upstream_connections" ["upstream", "state"]
        "Connections to upstreams, active or idle.";
    UPSTREAM_STREAMS = Gauge "tiercel_upstream_streams" ["upstream"]
        "Requests under way to upstreams over HTTP/2.";
    UPSTREAM_DROPPED = Counter "tiercel_upstream_connections_dropped_total" ["upstream", "reason"]
        "Connections to upstreams closed that might have been used again: the upstream closed an idle one, or spoke on it, sent more than its response, or answered before it had the request.";
    TIER_LOOKUPS = Counter "tiercel_tier_lookups_total" ["tier", "result"]
        "Look-ups in a tier outside the process, by what came of them: hit, stale (to be confirmed), miss, remembered (not there a moment ago), skipped (left alone), spared (it takes no writes, and the last look-ups found nothing), timeout, failed, unusable (purged, or not for the request), unreadable.";
    TIER_UNREADABLE = Counter "tiercel_tier_unreadable_total" ["tier", "reason"]
        "Records that could not be read: foreign, of another version, damaged, or malformed.";
    TIER_BROKEN_BODIES = Counter "tiercel_tier_broken_bodies_total" ["tier"]
        "Bodies of which a segment was gone or wrong while they were delivered: those connections were aborted.";
    TIER_WRITES = Counter "tiercel_tier_writes_total" ["tier", "outcome"]
        "Writes to a tier outside the process: stored, removed, floor (of a URL, raised by an unsafe method), floor_dropped (more than 65,536 waited), older (a later response was there), outdated (purged or past its time when its turn came), full (the queue was), failed, skipped (left alone).";
    TIER_WRITTEN_BYTES = Counter "tiercel_tier_written_bytes_total" ["tier"]
        "Bytes of the records written to a tier outside the process.";
    TIER_QUEUE_ENTRIES = Gauge "tiercel_tier_queue_entries" ["tier"]
        "Writes that wait for a tier outside the process.";
    TIER_QUEUE_BYTES = Gauge "tiercel_tier_queue_bytes" ["tier"]
        "Bytes of the responses that wait to be written to a tier outside the process.";
    TIER_FLOORS = Gauge "tiercel_tier_queue_floors" ["tier"]
        "Floors of URLs that wait to be raised in a tier outside the process.";
    TIER_BREAKER = Gauge "tiercel_tier_breaker_open" ["tier"]
        "Whether a tier is left alone because it does not answer.";
    LEASE_ASKED = Counter "tiercel_lease_asked_total" ["result"]
        "Fetches for which the fleet's lease was asked, by what came of it: led (this node fetched for the fleet), given (what another node stored meanwhile answered), alone (another's response is not in Redis), timed_out (it was waited for in vain), unknown (Redis did not say).";
    LEASE_ENDED = Counter "tiercel_lease_ended_total" ["outcome"]
        "Leases of this node, by what the fleet was told: stored, uncacheable, too_large, not_taken (by Redis), failed; lapsed: nobody could be told.";
    LEASE_WAIT_SECONDS = Histogram "tiercel_lease_wait_seconds" []
        "How long fetches waited for another node's.";
    LEASE_WAITING = Gauge "tiercel_lease_waiting" []
        "Fetches that wait for another node's.";
    SHIELD_REQUESTS = Counter "tiercel_shield_requests_total" ["peer_role", "outcome"]
        "Requests between nodes, as asker and as owner, by outcome.";
    SHIELD_WARM = Counter "tiercel_shield_warm_total" ["peer_role", "outcome"]
        "Questions of nodes that started, or came back, for what others hold of their keys, as asker and as holder, by outcome.";
    SHIELD_SECONDS = Histogram "tiercel_shield_seconds" []
        "From a request sent to another node to the head of its answer.";
    SHIELD_PEERS = Gauge "tiercel_shield_peers" ["state"]
        "Other nodes, by whether they are asked (fit) or not for their failures (ejected).";
    SHIELD_NAMES_FAILED = Counter "tiercel_shield_names_failed_total" []
        "Look-ups of names of peers that failed: the peers that they stood for stay.";
    UPSTREAM_PURGE_WAITING = Gauge "tiercel_upstream_purge_waiting" ["upstream"]
        "Fetches that wait for one of the upstream's places for what purges caused (purge_concurrency).";
    UPSTREAM_PURGE_FETCHES = Counter "tiercel_upstream_purge_fetches_total" ["upstream"]
        "Fetches that were taken for the doing of a purge of a prefix, host, site or everything, and so passed the places for them.";
    REDIS_COMMANDS = Counter "tiercel_redis_commands_total" ["use", "outcome"]
        "Commands sent to Redis, by what for and how they ended: answered, refused (with an error), timeout, broken (the connection failed), or away (not sent: there was none).";
    REDIS_SECONDS = Histogram "tiercel_redis_command_seconds" ["use"]
        "From a command sent to Redis to its answer, or to when it was given up.";
    REDIS_CONNECTS = Counter "tiercel_redis_connects_total" ["use", "outcome"]
        "Connections to Redis that were made, or could not be.";
    REDIS_CONNECTIONS = Gauge "tiercel_redis_connections" ["use"]
        "Connections to Redis that are up.";
    REDIS_CLOCK_OFFSET = Gauge "tiercel_redis_clock_offset_milliseconds" []
        "By how much the clock of Redis is ahead of this host's; stored responses in Redis carry its time.";
    REDIS_POLICY_UNSUITED = Gauge "tiercel_redis_policy_unsuited" ["use"]
        "Whether the maxmemory-policy of Redis does not suit what is kept there (use journal: it may be evicted; bodies: nothing is taken when it is full), and there is a limit to its memory.";
    CONNECTIONS = Gauge "tiercel_connections" []
        "Connections of clients.";
    TLS_HANDSHAKES = Counter "tiercel_tls_handshakes_total" ["version", "outcome"]
        "TLS handshakes with clients, by version of TLS and by what came of them.";
    TLS_CERTIFICATE_EXPIRY = Gauge "tiercel_tls_certificate_expiry_seconds" ["listener", "certificate"]
        "How long the certificate in use is still valid, by listener and file; divided by 86400: days.";
    TLS_REVOCATION_EXPIRY = Gauge "tiercel_tls_revocation_expiry_seconds" ["listener", "file"]
        "How long revocation lists and OCSP responses in use are still good, by listener and file; not positive: they are not used.";
    TLS_CERTIFICATE_CHANGES = Counter "tiercel_tls_certificate_changes_total" ["outcome"]
        "Changes of certificate files: replaced, refused (the old certificate stays), or unstapled (shown without its OCSP response).";
    ACME_ORDERS = Counter "tiercel_acme_orders_total" ["outcome"]
        "Certificates asked for by ACME, by what came of it: obtained, refused (by the authority, or its challenge failed), failed (it was not reached, or what came could not be used or kept), timeout; given: another node of the fleet had obtained it.";
    ACME_CHALLENGES = Counter "tiercel_acme_challenges_total" ["challenge"]
        "Questions of an ACME authority whether a host is ours that this node answered, by kind of challenge.";
    ACME_NEXT = Gauge "tiercel_acme_next_attempt_timestamp_seconds" ["certificate"]
        "When a certificate is asked for next by ACME, as Unix time: its renewal, or the next attempt after one that failed.";
    ACME_FAILURES = Gauge "tiercel_acme_failures" ["certificate"]
        "Attempts to obtain a certificate by ACME that failed since it was last obtained.";
    REFUSED = Counter "tiercel_refused_total" ["reason", "code"]
        "Requests refused before they were handled, by reason and class of status.";
    BOUND_REACHED = Counter "tiercel_bound_reached_total" ["bound"]
        "How often a named bound was reached.";
    ACCESS_LOG_LOST = Counter "tiercel_access_log_lost_total" ["reason"]
        "Lines of the access log that were lost: the queue was full, or writing failed.";
    RATE_LIMIT_REJECTIONS = Counter "tiercel_limit_rejections_total" ["limit"]
        "Requests that a rate limit rejected (429), by the name of the limit; purges that purge.rate rejected, as purge.";
    RATE_LIMIT_UNCOUNTED = Counter "tiercel_limit_uncounted_total" ["limit"]
        "Requests of a shared rate limit that Redis did not count in time; what then happened says on_fault.";
    RATE_LIMIT_CALLERS = Gauge "tiercel_limit_callers" []
        "Callers that rate limits remember, all limits together; limits.rate_limit_callers at most.";
    PANICS = Counter "tiercel_panics_total" []
        "Panics; each ended one request or task. More than none is a bug.";
    RELOAD_SUCCESS = Gauge "tiercel_config_last_reload_success" []
        "Whether the last load of the configuration succeeded; while 0, the one before stays in use.";
    RELOAD_TIMESTAMP = Gauge "tiercel_config_last_reload_timestamp_seconds" []
        "When the configuration in use was loaded, as Unix time; 0 before the first load.";
    CONFIG_HASH = Gauge "tiercel_config_hash_info" ["hash"]
        "Hash of the configuration in use; always 1.";
    BUILD_INFO = Gauge "tiercel_build_info" ["version"]
        "Version of this build; always 1.";
}
