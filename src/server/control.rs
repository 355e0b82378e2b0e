//! What the admin API may do.

use super::assembly::{ReloadError, State};
use super::background::resident_bytes;
use crate::admin::{Control, ExplainRequest, ReloadRefused};
use crate::clock;
use crate::config;
use crate::config::settings::Secret;
use crate::invalidation::stream::Stream;
use crate::invalidation::{Mode, Receipt, Selector};
use crate::limit::Rejected;
use crate::observe::metrics::Bound;
use crate::proxy;
use crate::redis::{Redis, Use};
use crate::semantics::Target;
use crate::tier::redis::usage;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The admin API's hands.
pub struct Controller {
    pub state: Arc<State>,
}

impl Control for Controller {
    fn admit_purge(&self, caller: IpAddr, selectors: usize) -> Result<(), u64> {
        self.state.proxy.admit_purge(caller, selectors).map_err(Rejected::retry_after_seconds)
    }

    fn refused_purge(&self, actor: &str, status: u16, reason: &str) {
        proxy::log_refused_purge(actor, status, reason, clock::now());
    }

    fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt {
        self.state.proxy.purge(selectors, mode, actor, clock::now())
    }

    fn receipt(&self, id: &str) -> Option<Receipt> {
        self.state.proxy.journal.receipt(id)
    }

    fn fleet(&self) -> Option<Arc<Stream>> {
        self.state.proxy.fleet.get().cloned()
    }

    /// By then a node that does not answer any more is known to be cut off.
    fn fleet_timeout(&self) -> Duration {
        self.state.proxy.live.load().settings.journal.trust + Duration::from_secs(1)
    }

    fn normalise_url(&self, url: &str) -> Result<String, String> {
        Target::from_url(url).map(|target| target.without_scheme().to_owned()).map_err(|error| error.to_string())
    }

    fn check_site(&self, name: &str) -> Result<(), String> {
        let live = self.state.proxy.live.load();
        let sites = &live.settings.sites;
        match sites.iter().any(|site| site.name == name) {
            true => Ok(()),
            false => Err(config::site_remedy(name, sites)),
        }
    }

    fn stored_here(&self, url: &str) -> bool {
        // A purge by URL knows no scheme.
        let target = |scheme| Target::from_url(&format!("{scheme}://{url}")).ok();
        ["http", "https"].into_iter().filter_map(target).any(|target| self.state.proxy.holds_url(&target))
    }

    fn explain(&self, request: ExplainRequest) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> {
        let proxy = Arc::clone(&self.state.proxy);
        Box::pin(async move { proxy.explain(&request.url, &request.method, &request.headers, &request.content).await })
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Value, ReloadRefused>> + Send>> {
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            // Reads files: not on the runtime of the admin listener's own connections.
            let reloaded = tokio::task::spawn_blocking(move || state.reload()).await;
            let reloaded = reloaded.unwrap_or_else(|error| Err(ReloadError::Failed(error.into())));
            let settings = reloaded.map_err(|error| ReloadRefused { message: error.to_string(), remedy: error.remedy() })?;
            Ok(json!({"reloaded": true, "hash": settings.hash, "warnings": settings.warnings}))
        })
    }

    fn redis_usage(&self) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> {
        let tier = self.state.proxy.tier().map(|tier| tier.redis().clone());
        let journal = self.fleet().map(|fleet| fleet.redis().clone());
        let has_own = self.state.proxy.live.load().settings.journal.redis.is_some();
        Box::pin(async move {
            match (tier, journal.filter(|_| has_own)) {
                (Some(tier), None) => kept_in(&tier, &[Use::Bodies, Use::Journal]).await,
                (None, Some(journal)) => kept_in(&journal, &[Use::Journal]).await,
                (Some(tier), Some(journal)) => {
                    let mut kept = kept_in(&tier, &[Use::Bodies]).await?;
                    kept["journal_redis"] = kept_in(&journal, &[Use::Journal]).await.unwrap_or_else(|error| json!({"error": error}));
                    Ok(kept)
                }
                (None, None) => Err("no Redis is configured ([cache.redis] url, [journal.redis] url)".into()),
            }
        })
    }

    fn ready(&self) -> Result<(), String> {
        if self.state.draining.load(Ordering::Acquire) {
            return Err("draining".into());
        }
        let Some(fleet) = self.fleet().filter(|fleet| !fleet.has_started()) else { return Ok(()) };
        let live = self.state.proxy.live.load();
        let own = &live.settings.journal;
        if fleet.is_name_taken() {
            let name = &own.node;
            return Err(format!("another node runs under the name of this one, \"{name}\", or did so until a moment ago (journal.node)"));
        }
        // Without Redis it starts all the same, cut off.
        if self.state.started.elapsed() < own.trust { Err("reading the fleet's journal".into()) } else { Ok(()) }
    }

    fn cut_off(&self) -> Option<&'static str> {
        let is_trusted = self.state.proxy.journal.is_trusted(clock::now());
        (!is_trusted).then(|| self.state.proxy.live.load().settings.journal.on_cutoff.as_str())
    }

    fn metrics(&self) -> String {
        self.state.proxy.metrics.render()
    }

    fn config(&self) -> Value {
        config::effective(&self.state.proxy.live.load().settings)
    }

    fn status(&self) -> Value {
        let proxy = &self.state.proxy;
        let live = proxy.live.load();
        let (bytes, responses) = proxy.memory.usage();
        let listeners: serde_json::Map<String, Value> =
            self.state.listeners().into_iter().map(|listener| (listener.name, listener.address.to_string().into())).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": live.settings.server.name,
            "uptime_seconds": self.state.started.elapsed().as_secs(),
            "config_hash": live.settings.hash,
            "listeners": listeners,
            "connections": self.state.connections(),
            "connections_by_worker": self.state.connections_by_worker(),
            "memory": {"limit": live.settings.memory.limit, "resident": resident_bytes(), "stored_bytes": bytes, "stored_capacity": proxy.memory.capacity(), "stored_responses": responses},
            "journal": {"applied": proxy.journal.stamp().purge.position, "cut_off": self.cut_off().is_some()},
            "ready": self.ready().is_ok(),
        })
    }

    fn token(&self) -> Option<Secret> {
        self.state.proxy.live.load().settings.admin.token.clone()
    }

    fn connections_full(&self) {
        self.state.proxy.metrics.bound(Bound::AdminConnections);
    }

    fn selectors_per_call(&self) -> usize {
        self.state.proxy.live.load().settings.purge.selectors_per_call
    }
}

/// What is kept in one Redis; in it is to be what is named.
async fn kept_in(redis: &Redis, keeps: &[Use]) -> Result<Value, String> {
    let usage = usage(redis, keeps).await.map_err(|error| format!("{}: {error}", redis.address()))?;
    serde_json::to_value(usage).map_err(|error| error.to_string())
}
