//! The request path: the journey of a request on one page.
//!
//! [`Proxy::handle`] is the journey. What can be answered from memory is answered at once, without a task, a lock held
//! or an await; everything else goes on as one boxed future. What HTTP permits is decided in `semantics`; here it is
//! acted on. What happened is recorded once, in [`outcome::Outcome`].
//!
//! Invariant: no failure of the cache is a failure of the request.

mod admit;
mod alone;
mod answer;
mod ask;
mod blocks;
mod challenge;
mod content;
mod deliver;
mod dictionaries;
mod exchange;
mod explain;
mod fill;
mod flight;
mod forms;
mod forward;
mod hot_forms;
mod lead;
mod lease;
mod limit;
mod live;
mod lookup;
pub mod outcome;
mod purge;
mod refusals;
mod refused;
pub mod remote;
mod resume;
mod revalidate;
mod shield;
mod standing;
mod store;

pub use live::{Live, Routed};
pub use purge::log_refusal as log_refused_purge;
pub use shield::PeerDoor;

use crate::cache::{Counted, Dictionaries, RequestCounts, SearchRules, StoredResponse, Tags, VaryMemory, subject};
use crate::clock;
use crate::coalesce::fill::FillBudget;
use crate::coalesce::flight::FlightTable;
use crate::coalesce::marker::{Markers, Set};
use crate::coalesce::pinned::Pins;
use crate::config::Settings;
use crate::invalidation::Journal;
use crate::invalidation::stream::Stream;
use crate::listener::{Handled, Handler, InterimSender, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Sent};
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Bound, FleetUsage, Gauges, Metrics, StaleReason, TierUsage};
use crate::semantics::Now;
use crate::semantics::cache_status::Forward;
use crate::semantics::policy::CachePolicy;
use crate::semantics::reuse::{self, Reuse, Validity};
use crate::semantics::storage::NotStored;
use crate::tier::memory::{MemoryTier, Setup};
use crate::tier::redis::RedisTier;
use crate::tls::challenges::{self, Challenges};
use crate::transform::pool::Pool;
use admit::Way;
use arc_swap::ArcSwap;
use deliver::Reused;
use exchange::Arrival;
use flight::{Departure, FlightHead};
use forms::Making;
use hot_forms::HotForms;
use lookup::Found;
use outcome::{CacheResult, Outcome};
use refusals::Refusals;
use remote::Remote;
use shield::FromPeer;
use standing::Standing;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Everything that requests share.
pub struct Proxy {
    /// What the configuration says now; swapped whole by a reload.
    pub live: ArcSwap<Live>,
    pub memory: MemoryTier<StoredResponse>,
    pub journal: Arc<Journal>,
    /// The fleet's end of it, where there is a fleet.
    pub fleet: OnceLock<Arc<Stream>>,
    flights: Arc<FlightTable<FlightHead, Departure>>,
    /// Fetches of single blocks.
    blocks: Arc<blocks::BlockFlights>,
    markers: Markers,
    /// Why responses of keys were not stored lately, for `explain`.
    refusals: Refusals,
    /// Keys whose background refresh failed lately: the next one waits.
    failed_refreshes: Markers,
    vary_memory: VaryMemory,
    search_rules: SearchRules,
    /// For routes that store only what is asked for more than once.
    request_counts: RequestCounts,
    budget: Arc<FillBudget>,
    /// Bodies that left the tiers while they are read.
    pins: Arc<Pins>,
    /// Coded forms that are being made, and where.
    making: Making,
    pool: Pool,
    hot_forms: HotForms,
    pub dictionaries: Dictionaries,
    /// What authorities are answered that look whether a host is ours.
    pub challenges: Arc<Challenges>,
    pub metrics: Arc<Metrics>,
    pub access_log: Arc<AccessLog>,
    /// The process holds nearly all it may: new fills are not stored.
    under_pressure: AtomicBool,
    /// Numbers fetches in the order in which they began.
    fetches: AtomicU64,
    /// The tier that the fleet shares, where there is one.
    remote: OnceLock<Remote>,
}

/// How much of its memory the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    None,
    /// Nothing more is to be stored.
    Full,
    /// And some of what is stored has to go.
    Shed,
}

impl Handler for Proxy {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        if self.challenges.may_be_any()
            && let Some(token) = challenges::token(&head.target)
        {
            return challenge::answer(self, token, peer, head, body, interim);
        }
        self.journey(&self.live.load(), peer, head, body, interim, None)
    }

    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        self.metrics.request(peer.worker, outcome.route, outcome.result, outcome.source, sent.status, sent.body_bytes, sent.duration_ns);
        if self.access_log.enabled() {
            self.access_log.record(peer, head, outcome, sent);
        }
    }

    fn refused(&self, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64) {
        refused::count(&self.metrics, refusal);
        if self.access_log.enabled() {
            refused::log(self, peer, head, refusal, duration_ns);
        }
    }

    fn name(&self) -> String {
        self.live.load().settings.server.name.clone()
    }

    fn bound(&self, bound: Bound) {
        self.metrics.bound(bound);
    }
}

impl Proxy {
    /// The journey of a request; `from_peer`: of one that another node of the fleet sends.
    fn journey(
        self: &Arc<Self>,
        live: &Live,
        peer: &Peer,
        head: &RequestHead,
        body: RequestBody,
        interim: &mut InterimSlot,
        from_peer: Option<Arc<FromPeer>>,
    ) -> Handled {
        let now = clock::now();
        let arrival = match admit::admit(live, peer, head, from_peer) {
            Ok(arrival) => arrival,
            Err(refused) => return self.refuse(live, &refused),
        };
        if let Err(refused) = admit::expect_own_handshake(&arrival) {
            return self.refuse(live, &refused);
        }
        // What another node lets through has been counted there.
        let checked = if arrival.from_peer.is_some() { limit::Checked::Passed } else { limit::check(&arrival) };
        match checked {
            limit::Checked::Passed => self.go(arrival, body, interim, now),
            limit::Checked::Refused(response) => Handled::Ready(*response),
            limit::Checked::InFleet(limiter, caller) => limit::in_fleet(self, limiter, caller, arrival, body, interim),
        }
    }
}

/// From the store, without asking anybody: the hot path. What is kept in blocks may have to be fetched.
fn at_once(
    proxy: &Arc<Proxy>,
    arrival: Arrival<'_>,
    interim: impl FnOnce() -> Option<InterimSender>,
    stored: &Arc<StoredResponse>,
    reused: Reused,
    now: Now,
) -> Handled {
    match stored.body() {
        Some(body) => Handled::Ready(deliver::stored(proxy, &arrival, stored, body, reused, now)),
        None => fill::in_blocks(proxy, arrival, interim(), stored, reused, now),
    }
}

impl Proxy {
    pub fn new(
        settings: &Settings,
        live: Live,
        journal: Arc<Journal>,
        metrics: Arc<Metrics>,
        access_log: Arc<AccessLog>,
        challenges: Arc<Challenges>,
    ) -> Arc<Self> {
        let [told, full, crowded] = std::array::from_fn(|_| Arc::clone(&metrics));
        let memory = MemoryTier::new(Setup {
            capacity: settings.memory.stored_bytes(),
            lru: settings.memory.policy == crate::config::settings::Eviction::Lru,
            on_eviction: Box::new(move |_, eviction| told.evicted(eviction)),
        });
        let budget = FillBudget::new(settings.memory.fill_bytes());
        let flights = Arc::new(FlightTable::new(settings.limits.waiting));
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            memory,
            journal,
            fleet: OnceLock::new(),
            blocks: Arc::new(FlightTable::beside(&flights)),
            flights,
            markers: Markers::new(&settings.fill),
            refusals: Refusals::default(),
            failed_refreshes: Markers::new(&settings.fill),
            vary_memory: VaryMemory::new(VARY_MEMORY_KEYS),
            search_rules: SearchRules::new(SEARCH_RULE_BYTES, move || full.bound(Bound::NoVarySearchPaths)),
            request_counts: RequestCounts::default(),
            pins: Pins::new(&budget),
            budget,
            making: Making::default(),
            hot_forms: HotForms::default(),
            challenges,
            dictionaries: Dictionaries::new(settings.limits.dictionary_memory, move || crowded.bound(Bound::DictionaryMemory)),
            pool: Pool::new(settings.limits.compression_threads, Arc::clone(&metrics)),
            metrics,
            access_log,
            under_pressure: AtomicBool::new(false),
            fetches: AtomicU64::new(0),
            remote: OnceLock::new(),
        })
    }

    /// Ends the journey of a request that does not enter.
    #[cold]
    fn refuse(&self, live: &Live, refused: &admit::Refused) -> Handled {
        self.metrics.refused(refused.reason, refused.status);
        Handled::Ready(answer::refused(live, refused))
    }

    /// The journey from the limits on.
    fn go(self: &Arc<Self>, mut arrival: Arrival<'_>, body: RequestBody, interim: &mut InterimSlot, now: Now) -> Handled {
        arrival.standing = Standing::of(&self.journal, &arrival.routed.settings.journal, now);
        if let Some(policy) = arrival.standing.as_str() {
            self.metrics.journal.cut_off_request(policy);
        }
        match admit::way(&arrival, &body) {
            Way::Local(answer) => Handled::Ready(answer::local(&arrival, answer)),
            Way::Purge => Handled::Ready(purge::by_method(self, &arrival, now)),
            Way::Past(why) if why.is_choice() && reuse::only_if_cached(arrival.request()) => {
                Handled::Ready(answer::not_cached(arrival.routed, arrival.outcome()))
            }
            Way::Past(why) => alone::past_the_cache(self, arrival, body, interim, why),
            Way::CacheByContent => content::start(self, arrival, body, interim),
            Way::Cache => {
                let relays = arrival.minor_version > 0;
                self.from_cache(arrival, || relays.then(|| interim.sender()), now)
            }
        }
    }

    /// The journey from the cache on. `interim` makes a sender of interim responses, where the client takes them.
    fn from_cache(self: &Arc<Self>, mut arrival: Arrival<'_>, interim: impl FnOnce() -> Option<InterimSender>, now: Now) -> Handled {
        let mut found = lookup::find(self, arrival.request(), &arrival.key, arrival.policy(), arrival.standing, now);
        if self.search_rules.any() {
            found = lookup::find_equivalent(self, &mut arrival, found, now);
        }
        match found {
            Found::Stored { response, reuse: Reuse::Fresh { age_ms, ttl_ms }, .. } => {
                if reuse::is_refresh_due(&response.head.facts, arrival.policy(), ttl_ms)
                    && revalidate::in_background(self, &arrival, &response)
                {
                    self.metrics.early_refresh();
                }
                at_once(self, arrival, interim, &response, Reused { result: CacheResult::Hit, age_ms, ttl_ms }, now)
            }
            // Who asks for it would find it soft-purged, too: it is confirmed for the whole fleet.
            Found::Stored { response, reuse: Reuse::StaleNow { .. }, validity }
                if arrival.from_peer.is_some() && validity != Validity::Valid =>
            {
                fill::start(self, arrival, interim(), Forward::Stale, Some((response, validity)), now)
            }
            Found::Stored { response, reuse: Reuse::StaleNow { age_ms, ttl_ms, why }, .. } => {
                if why == reuse::StaleWhy::WhileRevalidate {
                    revalidate::in_background(self, &arrival, &response);
                }
                self.metrics.stale_served(match why {
                    reuse::StaleWhy::WhileRevalidate => StaleReason::WhileRevalidate,
                    reuse::StaleWhy::MaxStale => StaleReason::MaxStale,
                });
                at_once(self, arrival, interim, &response, Reused { result: CacheResult::Stale, age_ms, ttl_ms }, now)
            }
            _ if reuse::only_if_cached(arrival.request()) => Handled::Ready(answer::not_cached(arrival.routed, arrival.outcome())),
            Found::Stored { response, reuse: Reuse::Revalidate { why, .. }, validity } => {
                let forward = if why == reuse::MustAsk::Request { Forward::Request } else { Forward::Stale };
                fill::start(self, arrival, interim(), forward, Some((response, validity)), now)
            }
            Found::Stored { .. } => fill::start(self, arrival, interim(), Forward::Miss, None, now),
            Found::OtherVariants => fill::start(self, arrival, interim(), Forward::VaryMiss, None, now),
            Found::Nothing => fill::start(self, arrival, interim(), Forward::UriMiss, None, now),
        }
    }

    /// Takes part in the tier that the fleet shares, from now on; once.
    pub fn share(&self, remote: Remote) {
        let _ = self.remote.set(remote);
    }

    /// That tier.
    pub fn tier(&self) -> Option<&Arc<RedisTier>> {
        self.remote.get().map(|remote| &remote.tier)
    }

    /// Whether a fetch is likely to be the doing of a purge that hit much: one of late matches the URL, and nothing is
    /// stored that came after it.
    fn is_recovering(&self, exchange: &exchange::Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>) -> bool {
        let is_refetched = candidate.is_some_and(|(_, validity)| *validity == Validity::Valid);
        !is_refetched && self.journal.is_recovering(&subject(&exchange.key, &exchange.routed.site, &Tags::default()), clock::now())
    }

    fn next_fetch(&self) -> u64 {
        self.fetches.fetch_add(1, Ordering::Relaxed)
    }

    /// Says how much the process holds of what it may; sheds responses while it is too much.
    pub fn press(&self, pressure: Pressure) {
        if pressure == Pressure::Shed {
            self.metrics.bound(Bound::MemoryPressure);
            self.memory.shed(SHED_SHARE);
        }
        self.under_pressure.store(pressure != Pressure::None, Ordering::Relaxed);
    }

    /// Gives memory back that slow clients pin beyond its part; a background task calls it.
    pub fn relieve(&self) {
        let stall = self.live.load().settings.fill.stall;
        for _ in 0..self.pins.relieve(clock::now().mono_ms, stall) {
            self.metrics.bound(Bound::PinnedMemory);
        }
    }

    /// Requests for this key do not line up for a while.
    fn set_marker(&self, key: u128, now_mono_ms: u64) {
        self.count_marker(self.markers.set(key, now_mono_ms));
    }

    fn count_marker(&self, set: Set) {
        if set == Set::Full {
            self.metrics.bound(Bound::Markers);
        }
    }

    /// Counts a request that the store could not answer, where that decides about storing.
    fn count_request(&self, key: u128, policy: &CachePolicy) {
        if policy.store_after > 1 && self.request_counts.count(key) == Counted::Full {
            self.metrics.bound(Bound::StoreAfter);
        }
    }

    /// Why a body of this many bytes could not be kept now, if so.
    fn no_room_for(&self, declared: Option<u64>) -> Option<NotStored> {
        let full = self.budget.used().saturating_add(declared.unwrap_or(0)) > self.budget.limit();
        (full || self.under_pressure.load(Ordering::Relaxed)).then(|| {
            self.metrics.bound(Bound::FillMemory);
            NotStored::Memory
        })
    }
}

impl Gauges for Proxy {
    fn memory_tier(&self) -> TierUsage {
        let (bytes, responses) = self.memory.usage();
        TierUsage { bytes, limit_bytes: self.memory.capacity(), responses }
    }
    fn fill_memory(&self) -> (u64, u64) {
        (self.budget.used(), self.budget.limit())
    }
    fn pages(&self) -> u64 {
        crate::pages::used()
    }
    fn pinned_memory(&self) -> u64 {
        self.pins.bytes()
    }
    fn flights(&self) -> (usize, usize) {
        let (flights, waiting) = self.flights.usage();
        (flights + self.blocks.usage().0, waiting)
    }
    fn markers(&self) -> usize {
        self.markers.len()
    }
    fn journal(&self) -> (usize, u64) {
        self.journal.usage()
    }
    fn dictionaries(&self) -> (u64, u64) {
        self.dictionaries.usage()
    }
    fn rate_limit_callers(&self) -> u64 {
        self.live.load().buckets.count()
    }
    fn fleet(&self) -> FleetUsage {
        let (position, (untold, lost)) = (self.journal.stamp().purge.position, self.journal.untold());
        FleetUsage {
            trusted: self.journal.is_trusted(clock::now()),
            remembered: self.journal.is_remembered(),
            epoch: position.epoch,
            applied_ms: position.ms,
            untold,
            lost,
        }
    }
}

/// Keys whose Vary is remembered beyond eviction; about 200 bytes each.
const VARY_MEMORY_KEYS: u64 = 50_000;

/// Bytes of No-Vary-Search that are remembered of paths: enough for some 10,000.
const SEARCH_RULE_BYTES: u64 = 4 << 20;

/// What goes at once when the process holds too much.
const SHED_SHARE: f64 = 0.10;
