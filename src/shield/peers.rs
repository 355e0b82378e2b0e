//! The nodes of a fleet as one of them knows them: who owns a key, who is fit to be asked, and the asking.

use super::client::{Client, Place, Question};
use super::health::{Fitness, Health, Rules};
use super::hop::{Asked, Hop, Invalid, Key, Standing, WINDOW_MS, Wanted};
use super::replay::Replays;
use super::ring::Ring;
use crate::clock;
use crate::config::settings::{self, ShieldPeer, ShieldTls};
use crate::observe::log::RateLimit;
use crate::observe::metrics::{Metrics, ShieldOutcome};
use crate::semantics::target::Scheme;
use crate::semantics::{Fields, Now, name};
use crate::tls::ALPN_HTTP2;
use crate::tls::client::{ClientError, Watched};
use crate::upstream::{FetchError, Host, Inbound};
use arc_swap::ArcSwap;
use http::Method;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::timeout;

/// Between two looks at what a name of peers stands for. Answers are kept for their own time besides.
const REFRESH_MS: u64 = 1000;
/// How long a name may take to be looked up; the question goes on behind.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Between two warnings of the same kind.
const WARN_INTERVAL_MS: u64 = 10_000;

/// What a process is to its peers, whatever its configuration says: kept through reloads.
#[derive(Debug)]
struct Identity {
    sender: u128,
    /// Grows by one per hop.
    number: AtomicU64,
    replays: Mutex<Replays>,
    /// Boot-time ms; since when it is one of them.
    joined_mono_ms: u64,
}

/// The fleet, by one configuration.
pub struct Shield {
    pub settings: settings::Shield,
    key: Key,
    /// Hash of what this node makes of requests.
    policy: u128,
    /// Our own name among the peers; `None`: nobody asks us.
    own: Option<Arc<str>>,
    /// `None`: plain text.
    tls: Option<Arc<Watched>>,
    identity: Arc<Identity>,
    members: ArcSwap<Members>,
    names: Vec<Name>,
    /// What the names of peers, as they are configured, stood for when they were last resolved.
    found: Mutex<HashMap<NameAndPort, Arc<[IpAddr]>>>,
    refresh_at_mono_ms: AtomicU64,
    workers: usize,
    metrics: Arc<Metrics>,
}

/// A name that stands for several peers.
struct Name {
    text: String,
    port: u16,
    host: Arc<Host>,
}

type NameAndPort = (String, u16);

/// Who there is.
#[derive(Default)]
struct Members {
    ring: Ring,
    peers: HashMap<Arc<str>, Arc<Peer>>,
}

/// Another node.
pub struct Peer {
    /// `host:port`.
    pub name: Arc<str>,
    client: Client,
    health: Mutex<Health>,
    /// Whether it is asked for what it holds: one that is late several times in a row, or does not take the question, is left
    /// alone with it for a while. That it fails is another matter: who owns a key is waited for.
    promptness: Mutex<Health>,
}

impl Peer {
    /// Whether it is asked.
    pub fn is_fit(&self) -> bool {
        self.health.lock().is_fit()
    }

    /// Whether it may be asked for what it holds.
    fn may_be_asked_held(&self, now_mono_ms: u64) -> bool {
        self.is_fit() && self.promptness.lock().may_be_asked(now_mono_ms)
    }
}

/// A hop that was found good.
#[derive(Debug, Clone, Copy)]
pub struct Admitted {
    pub standing: Standing,
    /// What it makes of requests is what we make of them.
    pub same_policy: bool,
    pub wanted: Wanted,
}

impl Shield {
    /// `before`: what ran so far; it keeps its identity, and its connections to peers that are still there. `None`: there
    /// is no shield.
    pub fn new(settings: &settings::Settings, before: Option<&Arc<Self>>, metrics: &Arc<Metrics>) -> Option<Arc<Self>> {
        let (workers, shield, policy) = (settings.server.workers, &settings.shield, crate::config::policy_hash(settings));
        let Some(secret) = shield.secret.as_ref().filter(|_| shield.is_on()) else {
            metrics.shield_peers(0, 0);
            return None;
        };
        if let Some(before) = before.filter(|before| before.settings == *shield && before.policy == policy) {
            return Some(Arc::clone(before));
        }
        let names = shield.peers.iter().filter_map(|peer| match peer {
            ShieldPeer::Names { host, port } => Some(Name { text: host.clone(), port: *port, host: Host::new(host) }),
            ShieldPeer::One { .. } => None,
        });
        let identity = before.map_or_else(
            || {
                let (sender, joined_mono_ms) = (rand::random(), clock::mono_ms());
                Arc::new(Identity { sender, number: AtomicU64::new(1), replays: Mutex::default(), joined_mono_ms })
            },
            |before| Arc::clone(&before.identity),
        );
        let is_same_tls = |before: &&Arc<Self>| before.settings.tls == shield.tls;
        let tls = match before.filter(is_same_tls) {
            Some(before) => before.tls.clone(),
            None => shield.tls.as_ref().and_then(towards_owners),
        };
        if tls.is_none() && shield.tls.is_some() {
            metrics.shield_peers(0, 0);
            return None;
        }
        let built = Self {
            key: Key::new(secret.expose().as_bytes()),
            policy,
            own: shield.advertise.as_deref().map(Arc::from),
            tls,
            identity,
            members: ArcSwap::default(),
            names: names.collect(),
            found: Mutex::new(before.map(|before| before.found.lock().clone()).unwrap_or_default()),
            refresh_at_mono_ms: AtomicU64::new(0),
            workers,
            metrics: Arc::clone(metrics),
            settings: shield.clone(),
        };
        if let Some(before) = before.filter(is_same_tls) {
            built.members.store(before.members.load_full());
        }
        built.take_up(None);
        Some(Arc::new(built))
    }

    /// Our own name among the peers.
    pub fn own(&self) -> Option<&Arc<str>> {
        self.own.as_ref()
    }

    /// How other nodes are asked, where that is by TLS.
    pub fn tls(&self) -> Option<&Arc<Watched>> {
        self.tls.as_ref()
    }

    /// All nodes in order, the owner of the key first; for people.
    pub fn order(&self, key: u128) -> Vec<Arc<str>> {
        self.members.load().ring.order(key).into_iter().cloned().collect()
    }

    /// The peers that own a key before this node does, the owner first; none where this node owns it.
    pub fn owners(self: &Arc<Self>, key: u128, now: Now) -> Vec<Arc<Peer>> {
        self.refresh(now);
        let members = self.members.load();
        let before = match &self.own {
            Some(own) => members.ring.before(key, own),
            None => members.ring.order(key),
        };
        before.into_iter().filter_map(|name| members.peers.get(name).cloned()).collect()
    }

    /// Who stands in for this node where it owns the key, and so may hold what it lost, or never had: the next in the order
    /// that is fit, and answers such questions in time.
    pub fn deputy(&self, key: u128, now: Now) -> Option<Arc<Peer>> {
        let members = self.members.load();
        let after = members.ring.after(key, self.own.as_deref()?);
        after.into_iter().filter_map(|name| members.peers.get(name)).find(|peer| peer.may_be_asked_held(now.mono_ms)).cloned()
    }

    /// How much longer others are asked for what they hold of this node's own keys; none once it has had the time to fill.
    /// `followed_since_mono_ms`: since when it has followed the journal without a gap, as those do that stand in for nobody.
    pub fn warms_for(&self, followed_since_mono_ms: u64, now: Now) -> Duration {
        let began = self.identity.joined_mono_ms.max(followed_since_mono_ms);
        let so_far = Duration::from_millis(now.mono_ms.saturating_sub(began));
        self.settings.warm_time.map_or(Duration::ZERO, |time| time.saturating_sub(so_far))
    }

    /// Who they are, and whether they are fit; for people.
    pub fn states(&self) -> Vec<(Arc<str>, bool)> {
        let members = self.members.load();
        let mut states: Vec<_> = members.peers.values().map(|peer| (Arc::clone(&peer.name), peer.is_fit())).collect();
        states.sort();
        states
    }

    /// Asks a peer, if it is fit. `None`: it is not; whoever finds its probe due sends it on its way.
    pub async fn ask(self: &Arc<Self>, peer: &Arc<Peer>, question: &Question, standing: Standing) -> Option<Result<Inbound, FetchError>> {
        self.ask_for(Wanted::Response, peer, question, standing).await
    }

    /// The same for what the peer holds: its answer is waited for as long as `warm_budget`. `None` also where it was late, or
    /// refused the question, too often.
    ///
    /// A node of an earlier release refuses it while it answers all others: that says nothing of its health.
    pub async fn ask_held(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        question: &Question,
        standing: Standing,
    ) -> Option<Result<Inbound, FetchError>> {
        let (rules, now_mono_ms) = (self.rules(), clock::mono_ms());
        let is_probe = {
            let mut promptness = peer.promptness.lock();
            match promptness.fitness(now_mono_ms) {
                Fitness::Fit => false,
                Fitness::Sick => return None,
                Fitness::ProbeDue => {
                    // This question is the probe. Nobody may be there any more when it is answered: so it has failed until then.
                    promptness.failed(true, &rules, now_mono_ms);
                    true
                }
            }
        };
        let answer = timeout(self.settings.warm_budget, self.ask_for(Wanted::Held, peer, question, standing)).await;
        let answer = answer.unwrap_or(Some(Err(FetchError::ResponseTimeout)));
        match &answer {
            Some(Ok(_)) => {
                peer.promptness.lock().answered(is_probe);
            }
            // How many of ours wait for it says nothing of it.
            Some(Err(error)) if !is_probe && !error.is_ours() => {
                if peer.promptness.lock().failed(false, &rules, clock::mono_ms()) {
                    tracing::debug!(peer = &*peer.name, %error, "a peer is not asked for what it holds for a while");
                }
            }
            Some(Err(_)) | None => {}
        }
        answer
    }

    async fn ask_for(
        self: &Arc<Self>,
        wanted: Wanted,
        peer: &Arc<Peer>,
        question: &Question,
        standing: Standing,
    ) -> Option<Result<Inbound, FetchError>> {
        let fitness = peer.health.lock().fitness(clock::now().mono_ms);
        match fitness {
            Fitness::Fit => {}
            Fitness::Sick => return None,
            Fitness::ProbeDue => {
                tokio::spawn(Arc::clone(self).probe(Arc::clone(peer), question.worker));
                return None;
            }
        }
        let hop = || self.hop(question, standing, wanted);
        let answer = peer.client.send(question, hop, &self.settings, &peer.name).await;
        match &answer {
            // What does not fit a request says nothing of the peer, nor does how many of ours wait for it.
            Err(error) if error.is_ours() => {}
            Err(error) => self.failed(peer, false, error),
            Ok(inbound) => match refusal(inbound) {
                Some(error) => {
                    if wanted == Wanted::Response {
                        self.failed(peer, false, &error);
                    }
                    return Some(Err(error));
                }
                None => {
                    self.metrics.shield_first_byte(inbound.first_byte);
                    self.answered(peer, false);
                }
            },
        }
        Some(answer)
    }

    /// Asks a peer that was ejected whether it is there again: not for anything, so that no client waits for it.
    async fn probe(self: Arc<Self>, peer: Arc<Peer>, worker: usize) {
        let (method, authority) = (Method::OPTIONS, peer.name.to_string());
        let question = Question { method, scheme: Scheme::Http, authority, target: PROBE.into(), fields: Fields::new(), worker };
        let hop = || self.hop(&question, Standing::default(), Wanted::Response);
        match peer.client.send(&question, hop, &self.settings, &peer.name).await {
            Ok(inbound) if inbound.status == 204 => self.answered(&peer, true),
            Ok(inbound) => self.failed(&peer, true, &FetchError::Malformed(format!("a probe was answered {}", inbound.status))),
            Err(error) => self.failed(&peer, true, &error),
        }
    }

    fn answered(&self, peer: &Peer, probe: bool) {
        if peer.health.lock().answered(probe) {
            tracing::info!(peer = &*peer.name, "a peer answers again");
            self.count_peers();
        }
    }

    fn failed(&self, peer: &Peer, probe: bool, error: &FetchError) {
        if peer.health.lock().failed(probe, &self.rules(), clock::now().mono_ms) {
            tracing::warn!(peer = &*peer.name, %error, "a peer is not asked for a while");
            self.count_peers();
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            failures: self.settings.failures,
            back_off_ms: self.settings.back_off.as_millis() as u64,
            back_off_max_ms: self.settings.back_off_max.as_millis() as u64,
        }
    }

    fn count_peers(&self) {
        let members = self.members.load();
        let fit = members.peers.values().filter(|peer| peer.is_fit()).count();
        self.metrics.shield_peers(fit, members.peers.len() - fit);
    }

    /// The hop field for a request of ours.
    fn hop(&self, question: &Question, standing: Standing, wanted: Wanted) -> String {
        let Question { method, scheme, authority, target, .. } = question;
        let asked = Asked { method: method.as_str(), scheme: scheme.as_str(), authority, target };
        let number = self.identity.number.fetch_add(1, Ordering::Relaxed);
        let hop = Hop { at_ms: clock::now().wall_ms, sender: self.identity.sender, number, policy: self.policy, standing, wanted };
        hop.write(&self.key, &asked)
    }

    /// Whether a request comes from a node of the fleet, is meant as it stands, and is new.
    pub fn admit(&self, fields: &Fields, asked: &Asked<'_>, now: Now) -> Result<Admitted, Invalid> {
        let admitted = self.read(fields, asked, now);
        if let Err(invalid) = admitted {
            self.metrics.shield(ShieldOutcome::Refused);
            static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
            if let Some(held_back) = LIMIT.pass(now.mono_ms) {
                tracing::warn!(reason = invalid.as_str(), text = %invalid, held_back, "a request between peers is refused");
            }
        }
        admitted
    }

    fn read(&self, fields: &Fields, asked: &Asked<'_>, now: Now) -> Result<Admitted, Invalid> {
        let mut values = fields.values(name::TIERCEL_HOP);
        let (Some(field), None) = (values.next(), values.next()) else { return Err(Invalid::Missing) };
        let hop = Hop::read(field, &self.key, asked, now.wall_ms)?;
        if hop.sender == self.identity.sender {
            return Err(Invalid::Own);
        }
        let keep_ms = 2 * WINDOW_MS.unsigned_abs();
        self.identity.replays.lock().take(hop.sender, hop.number, now.mono_ms, keep_ms)?;
        Ok(Admitted { standing: hop.standing, same_policy: hop.policy == self.policy, wanted: hop.wanted })
    }

    /// Looks, now and then, who stands behind the names of peers.
    fn refresh(self: &Arc<Self>, now: Now) {
        let due = self.refresh_at_mono_ms.load(Ordering::Relaxed);
        let taken = || {
            let next = now.mono_ms + REFRESH_MS;
            self.refresh_at_mono_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if now.mono_ms >= due && taken() {
            for number in 0..self.names.len() {
                tokio::spawn(Arc::clone(self).look_up(number));
            }
        }
    }

    /// A name that does not resolve takes nobody out: the peers that it stood for are found out by asking them.
    async fn look_up(self: Arc<Self>, number: usize) {
        let Name { text, port, host } = &self.names[number];
        match host.addresses(LOOK_UP).await {
            Ok(addresses) => self.take_up(Some(((text.clone(), *port), addresses))),
            Err(error) => {
                self.metrics.shield_name_failed();
                static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
                if let Some(held_back) = LIMIT.pass(clock::now().mono_ms) {
                    tracing::warn!(name = text, %error, held_back, "a name of peers is not resolved: those that it stood for stay");
                }
            }
        }
    }

    /// Takes up who there is by now: what was said of those that stay is kept. `answer`: what a name stands for by now.
    fn take_up(&self, answer: Option<(NameAndPort, Arc<[IpAddr]>)>) {
        let mut found = self.found.lock();
        found.extend(answer);
        let place = |host: &str, port: u16, certified_as: &str| {
            let name: Arc<str> = settings::peer_name(host, port).into();
            (name, Place { host: host.to_owned(), port, certified_as: certified_as.into() })
        };
        let fixed = self.settings.peers.iter().filter_map(|peer| match peer {
            ShieldPeer::One { host, port } => Some(place(host, *port, host)),
            ShieldPeer::Names { .. } => None,
        });
        let named = self.names.iter().flat_map(|Name { text, port, .. }| {
            let addresses = found.get(&(text.clone(), *port)).map_or(&[][..], |addresses| &addresses[..]);
            addresses.iter().map(|address| place(&address.to_string(), *port, text))
        });
        let known = self.members.load_full();
        let mut peers = HashMap::new();
        for (name, place) in fixed.chain(named).filter(|(name, _)| self.own.as_ref() != Some(name)) {
            let peer = self.peer(&name, place, known.peers.get(&name));
            peers.insert(name, peer);
        }
        let ring = Ring::new(peers.keys().cloned().chain(self.own.clone()));
        if ring != known.ring {
            tracing::info!(nodes = ring.names().len(), "nodes of the shield");
        }
        self.members.store(Arc::new(Members { ring, peers }));
        self.count_peers();
    }

    /// `known`: what there is of it; its connections go on where they would be the same, and what is known of its health does.
    fn peer(&self, name: &Arc<str>, place: Place, known: Option<&Arc<Peer>>) -> Arc<Peer> {
        if let Some(peer) = known.filter(|peer| peer.client.is_for(&place, self.tls.as_ref(), self.workers, &self.settings)) {
            return Arc::clone(peer);
        }
        let health = known.map(|peer| peer.health.lock().clone()).unwrap_or_default();
        let client = Client::new(place, self.tls.clone(), self.workers, &self.settings, &self.metrics);
        Arc::new(Peer { name: Arc::clone(name), client, health: Mutex::new(health), promptness: Mutex::default() })
    }
}

/// What was tried when the configuration was read; it would have to have changed since.
fn towards_owners(tls: &ShieldTls) -> Option<Arc<Watched>> {
    let client = Watched::new(tls.towards_owners(), &[ALPN_HTTP2]);
    let told = |error: &ClientError| tracing::error!(%error, remedy = error.remedy(), "no TLS between nodes, and so no shield");
    Some(Arc::new(client.inspect_err(told).ok()?))
}

/// What an answer says where the peer does not take the request for one of its fleet.
fn refusal(inbound: &Inbound) -> Option<FetchError> {
    let token = inbound.fields.text(name::TIERCEL_ERROR).filter(|token| token.starts_with("hop-"))?;
    Some(FetchError::Malformed(format!("the peer refuses our request: {token}")))
}

/// What a probe asks for.
const PROBE: &str = "/";

/// Whether a request that was admitted is a probe: it gets 204, and goes nowhere.
pub fn is_probe(method: &Method) -> bool {
    *method == Method::OPTIONS
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(failures: u32, peers: &[&str]) -> settings::Settings {
        let flags = json!({
            "upstreams": {"default": {"endpoints": ["http://127.0.0.1:1"]}},
            "shield": {"peers": peers, "secret": "0123456789abcdef", "failures": failures},
        });
        crate::config::load(&crate::config::Sources::new(None, flags)).expect("a configuration")
    }

    #[test]
    fn peers_by_name_stay_through_a_reload_with_what_is_known_of_them() {
        let metrics = Metrics::new(1);
        let answer = |address: &str| Some((("fleet.example".to_owned(), 9182), Arc::from([address.parse().unwrap()])));
        let before = Shield::new(&settings(3, &["dns:fleet.example:9182"]), None, &metrics).unwrap();
        before.take_up(answer("10.0.0.1"));
        let peers = |shield: &Shield| shield.members.load().peers.values().cloned().collect::<Vec<_>>();
        let after = Shield::new(&settings(4, &["dns:fleet.example:9182"]), Some(&before), &metrics).unwrap();
        assert_eq!(after.states(), [("10.0.0.1:9182".into(), true)]);
        assert!(Arc::ptr_eq(&peers(&before)[0], &peers(&after)[0]), "its connections and its health");
        let mut patient = settings(4, &["dns:fleet.example:9182"]);
        patient.shield.connect_timeout *= 2;
        peers(&after)[0].health.lock().failed(false, &Rules { failures: 1, back_off_ms: 1000, back_off_max_ms: 1000 }, 0);
        let changed = Shield::new(&patient, Some(&after), &metrics).unwrap();
        assert!(!Arc::ptr_eq(&peers(&after)[0], &peers(&changed)[0]), "connections by other rules");
        assert_eq!(changed.states(), [("10.0.0.1:9182".into(), false)], "its health stays");
        let other = Shield::new(&settings(4, &["dns:other.example:9182"]), Some(&after), &metrics).unwrap();
        assert!(other.states().is_empty(), "what another name stood for");
        after.take_up(answer("10.0.0.2"));
        assert_eq!(after.states(), [("10.0.0.2:9182".into(), true)], "the last answer counts");
    }

    #[tokio::test]
    async fn a_peer_that_knows_no_question_for_what_it_holds_is_asked_for_the_rest() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = format!("http://{}", listener.local_addr().unwrap());
        // A node of the release before: a word more in the hop is malformed to it.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let knows = request.headers()["tiercel-hop"].to_str().unwrap().split(' ').count() == 9;
                        let (status, field, value) =
                            if knows { (200, "tiercel-stamp", "none") } else { (403, "tiercel-error", "hop-malformed") };
                        respond
                            .send_response(http::Response::builder().status(status).header(field, value).body(()).unwrap(), true)
                            .unwrap();
                    }
                });
            }
        });
        let shield = Shield::new(&settings(2, &[&peer]), None, &Metrics::new(1)).unwrap();
        let asked = shield.members.load().peers.values().next().cloned().unwrap();
        let (method, scheme) = (Method::GET, Scheme::Http);
        let question = Question { method, scheme, authority: "a".into(), target: "/".into(), fields: Fields::new(), worker: 0 };
        for _ in 0..2 {
            let refused = shield.ask_held(&asked, &question, Standing::default()).await;
            assert!(matches!(refused, Some(Err(FetchError::Malformed(_)))), "{:?}", refused.map(Result::err));
        }
        assert!(asked.is_fit(), "it answers all other questions");
        assert!(!asked.may_be_asked_held(clock::mono_ms()), "it is not asked that again for a while");
        assert!(shield.ask_held(&asked, &question, Standing::default()).await.is_none());
        assert!(matches!(shield.ask(&asked, &question, Standing::default()).await, Some(Ok(inbound)) if inbound.status == 200));
    }

    #[tokio::test]
    async fn a_line_that_is_full_says_nothing_against_the_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = format!("http://{}", listener.local_addr().unwrap());
        // It takes connections and streams, and answers nobody.
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.push(tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut requests = Vec::new();
                    while let Some(Ok(request)) = connection.accept().await {
                        requests.push(request);
                    }
                }));
            }
        });
        let shield = Shield::new(&settings(1, &[&peer]), None, &Metrics::new(1)).unwrap();
        let asked = shield.members.load().peers.values().next().cloned().unwrap();
        let (method, scheme) = (Method::GET, Scheme::Http);
        let question = Question { method, scheme, authority: "a".into(), target: "/".into(), fields: Fields::new(), worker: 0 };
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..20_000 {
            let (shield, asked, question) = (Arc::clone(&shield), Arc::clone(&asked), question.clone());
            crowd.spawn(async move { shield.ask(&asked, &question, Standing::default()).await });
        }
        let first = crowd.join_next().await.unwrap().unwrap();
        assert!(matches!(first, Some(Err(FetchError::QueueFull))), "{:?}", first.map(Result::err));
        assert!(asked.is_fit());
    }
}
