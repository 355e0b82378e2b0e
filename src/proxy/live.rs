//! The configuration as the request path uses it: routes joined with their upstreams and counters.

use crate::config::{Settings, settings};
use crate::limit::{Buckets, Limiter, SharedCounts};
use crate::observe::metrics::{Bound, Metrics};
use crate::proxy::outcome::{Outcome, RouteId};
use crate::route::Router;
use crate::semantics::key::KeyPolicy;
use crate::semantics::{Fields, Method, Target};
use crate::shield::Shield;
use crate::upstream::Upstream;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// One configuration, immutable.
pub struct Live {
    pub settings: Arc<Settings>,
    /// For connections that are accepted from now on.
    pub limits: Arc<settings::Limits>,
    pub router: Router,
    /// By site and route, as the router numbers them.
    routed: Vec<Vec<Arc<Routed>>>,
    upstreams: HashMap<String, Arc<Upstream>>,
    /// The other nodes of the fleet, where one asks the origin for all.
    pub shield: Option<Arc<Shield>>,
    /// `1.1 name`, for Via.
    pub via: String,
    /// What rate limits remember; the same one for the life of the process.
    pub buckets: Buckets,
    /// Where the fleet counts, where there is Redis.
    shared_counts: Option<Arc<SharedCounts>>,
    /// By name.
    limiters: HashMap<String, Arc<Limiter>>,
    /// Of purges, per caller.
    pub purge_limiter: Option<Arc<Limiter>>,
}

/// A route with all that a request on it needs.
pub struct Routed {
    /// As stored responses keep it: in eight bytes.
    pub site: Arc<Box<str>>,
    pub route: Arc<settings::Route>,
    pub id: RouteId,
    /// `None` for redirects and fixed answers.
    pub upstream: Option<Arc<Upstream>>,
    /// Who may be asked before that; `None` also where nothing is cached.
    pub shield: Option<Arc<Shield>>,
    /// Name in Cache-Status, Via, CDN-Loop.
    pub node: Arc<str>,
    pub via: Arc<str>,
    /// What its site asks of clients; `None`: what the listener does.
    pub client_certificates: Option<Arc<settings::ClientCertificates>>,
    /// The route's rate limit, which it may have together with others.
    pub limiter: Option<Arc<Limiter>>,
    pub settings: Arc<Settings>,
}

impl Routed {
    /// A record of what happens to a request from here on. `client`: as believed, where that is not the peer itself.
    pub fn outcome(&self, client: Option<IpAddr>, request_id: Option<Arc<str>>) -> Outcome {
        Outcome { route: self.id, client, log_query: self.route.log_query, request_id, ..Outcome::default() }
    }
}

impl Live {
    /// Joins settings with what runs: an upstream whose settings did not change keeps its connections.
    pub fn new(settings: Settings, before: Option<&Self>, metrics: &Arc<Metrics>) -> Self {
        let settings = Arc::new(settings);
        let upstreams: HashMap<String, Arc<Upstream>> = settings
            .upstreams
            .iter()
            .map(|wanted| {
                let kept = before.and_then(|live| live.upstreams.get(&wanted.name)).filter(|there| there.settings == *wanted);
                let upstream =
                    kept.cloned().unwrap_or_else(|| Upstream::new(Arc::clone(wanted), settings.server.workers, Arc::clone(metrics)));
                (wanted.name.clone(), upstream)
            })
            .collect();
        let shield = Shield::new(&settings, before.and_then(|live| live.shield.as_ref()), metrics);
        let buckets = before.map_or_else(|| buckets(&settings, metrics), |live| live.buckets.clone());
        let shared_counts = shared_counts(&settings, before, metrics);
        let limiters = limiters(&settings, before, &buckets, shared_counts.as_ref(), metrics);
        let purge_limiter = settings.purge.rate_limit.as_ref().map(|wanted| {
            let kept = before.and_then(|live| live.purge_limiter.clone()).filter(|there| there.settings == *wanted);
            kept.unwrap_or_else(|| limiter(wanted, &buckets, None, metrics))
        });
        let via = format!("1.1 {}", settings.server.name);
        let (node, shared_via): (Arc<str>, Arc<str>) = (settings.server.name.as_str().into(), via.as_str().into());
        let routed = settings
            .sites
            .iter()
            .map(|site| {
                let name: Arc<Box<str>> = Arc::new(site.name.as_str().into());
                let join = |route: &Arc<settings::Route>| {
                    Arc::new(Routed {
                        site: Arc::clone(&name),
                        id: metrics.route(&site.name, &route.name),
                        upstream: match &route.action {
                            settings::Action::Proxy(upstream) => upstreams.get(&upstream.name).cloned(),
                            _ => None,
                        },
                        shield: shield.clone().filter(|_| route.cache.enabled),
                        limiter: route.rate_limit.as_ref().and_then(|limit| limiters.get(&limit.name).cloned()),
                        route: Arc::clone(route),
                        node: Arc::clone(&node),
                        via: Arc::clone(&shared_via),
                        client_certificates: site.client_certificates.clone(),
                        settings: Arc::clone(&settings),
                    })
                };
                site.routes.iter().map(join).collect()
            })
            .collect();
        let (router, limits) = (Router::new(&settings.sites), Arc::new(settings.limits.clone()));
        Self { router, limits, routed, upstreams, shield, via, buckets, shared_counts, limiters, purge_limiter, settings }
    }

    /// The key rules of the routes that could answer a URL from what is stored.
    pub fn key_policies(&self, target: &Target) -> impl Iterator<Item = &KeyPolicy> {
        self.router.possible(target).into_iter().filter(|route| route.cache.enabled).map(|route| &route.key)
    }

    /// The route of a request.
    pub fn route(&self, target: &Target, method: &Method, fields: &Fields) -> Option<&Arc<Routed>> {
        let (_, _, site, route) = self.router.find(target, method, fields)?;
        self.routed.get(site)?.get(route)
    }
}

fn buckets(settings: &Settings, metrics: &Arc<Metrics>) -> Buckets {
    let metrics = Arc::clone(metrics);
    Buckets::new(settings.limits.rate_limit_callers, move || metrics.bound(Bound::RateLimitCallers))
}

/// One connection for all shared limits, kept where Redis stays the same.
fn shared_counts(settings: &Settings, before: Option<&Live>, metrics: &Arc<Metrics>) -> Option<Arc<SharedCounts>> {
    let redis = &settings.redis.as_ref()?.server;
    let budget = settings.limits.rate_limit_budget;
    let is_same = |live: &&Live| {
        let there = &live.settings;
        there.limits.rate_limit_budget == budget && there.redis.as_ref().is_some_and(|there| there.server == *redis)
    };
    if let Some(kept) = before.filter(is_same).and_then(|live| live.shared_counts.clone()) {
        return Some(kept);
    }
    match SharedCounts::new(redis, budget, metrics) {
        Ok(counts) => Some(Arc::new(counts)),
        Err(error) => {
            tracing::error!(%error, "shared rate limits count on each node alone");
            None
        }
    }
}

/// One for each limit by name; what it has counted stays where its settings do.
fn limiters(
    settings: &Settings,
    before: Option<&Live>,
    buckets: &Buckets,
    shared: Option<&Arc<SharedCounts>>,
    metrics: &Metrics,
) -> HashMap<String, Arc<Limiter>> {
    let wanted = settings.sites.iter().flat_map(|site| &site.routes).filter_map(|route| route.rate_limit.as_ref());
    let mut limiters: HashMap<String, Arc<Limiter>> = HashMap::new();
    for wanted in wanted {
        let shared = shared.filter(|_| wanted.shared);
        let is_same = |there: &&Arc<Limiter>| there.settings == *wanted && there.counts_at(shared);
        let kept = || before?.limiters.get(&wanted.name).filter(is_same).cloned();
        limiters.entry(wanted.name.clone()).or_insert_with(|| kept().unwrap_or_else(|| limiter(wanted, buckets, shared, metrics)));
    }
    limiters
}

fn limiter(settings: &settings::RateLimit, buckets: &Buckets, shared: Option<&Arc<SharedCounts>>, metrics: &Metrics) -> Arc<Limiter> {
    Arc::new(Limiter::new(settings.clone(), buckets, metrics.rate_limit_counters(&settings.name), shared.cloned()))
}
