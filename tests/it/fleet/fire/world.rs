//! What the origin has, what was purged of it, and whether an answer may be what it is.
//!
//! Each resource has a version. A purge is checked like this: the version is raised, then the purge is sent; when it is
//! answered as complete the *floor* is raised to that version. Who asks reads the floor first, then sends. An answer
//! that was fetched before the purge has an older version, since the origin says the version that it has when it is asked:
//! so an answer below the floor is one whose fetch began before a purge that had been acknowledged before the request
//! started. No clock takes part in that. Versions and floors are sequentially consistent, and a floor is never higher than
//! what the origin answers from then on.

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long after an acknowledgement an answer counts as close to it.
pub const CLOSE: Duration = Duration::from_millis(100);

/// How a resource is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Fresh for long.
    Fresh,
    /// Fresh for a second, and then to be revalidated.
    Short,
    /// As [`Kind::Fresh`], and may be used stale while it is refreshed: after a soft purge, and only then.
    Lenient,
    /// As [`Kind::Fresh`], with a variant for each of two values of `X-V`.
    Varied,
    /// As [`Kind::Fresh`], and too large for one segment.
    Large,
}

/// Something that the origin has.
pub struct Resource {
    pub number: usize,
    pub kind: Kind,
    pub host: &'static str,
    pub path: String,
    pub keys: [String; 2],
    pub group: String,
    version: AtomicU64,
    floors: Floors,
    /// Floors that hold for requests to one node: it has acknowledged the purge for itself alone.
    local: Vec<Floors>,
    /// When the last purge of it was acknowledged, in microseconds of the world.
    acknowledged_us: AtomicU64,
}

/// Versions below which no answer may be.
#[derive(Default)]
struct Floors {
    hard: AtomicU64,
    soft: AtomicU64,
}

/// What a request that is about to be sent may demand.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    hard: u64,
    soft: u64,
    /// The last purge of the resource was acknowledged shortly before.
    pub close: bool,
}

/// A purge: what it takes, and which version each of that had then.
pub struct Purge {
    pub selector: &'static str,
    pub body: Value,
    pub is_hard: bool,
    raised: Vec<(usize, u64)>,
}

/// What holds a purge's place with a node: a node that was started again has forgotten what it alone acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life(u64);

/// The origin's contents and all floors.
pub struct World {
    pub resources: Vec<Resource>,
    began: Instant,
    lives: Vec<Mutex<u64>>,
    /// What was purged last: most requests go there.
    hot: [AtomicUsize; 8],
    next_hot: AtomicUsize,
}

/// An answer, as far as it is judged.
#[derive(Debug, Clone)]
pub struct Told<'a> {
    pub body: &'a [u8],
    /// Cache-Status says that it is stale.
    pub stale: bool,
}

const HOSTS: [&str; 3] = ["shop.example", "blog.example", "press.example"];
const LARGE: usize = 200_000;

impl World {
    pub fn new(resources: usize, nodes: usize) -> Self {
        let resource = |number: usize| Resource {
            number,
            kind: match number % 16 {
                0..=2 => Kind::Lenient,
                3 | 4 => Kind::Short,
                5 | 6 => Kind::Varied,
                7 if number < 32 => Kind::Large,
                _ => Kind::Fresh,
            },
            host: HOSTS[number / 16 % HOSTS.len()],
            path: format!("/p{}/{number}", number % 12),
            keys: [format!("k{}", number % 40), format!("own-{number}")],
            group: format!("g{}", number % 10),
            version: AtomicU64::new(1),
            floors: Floors::default(),
            local: (0..nodes).map(|_| Floors::default()).collect(),
            acknowledged_us: AtomicU64::new(0),
        };
        Self {
            resources: (0..resources).map(resource).collect(),
            began: Instant::now(),
            lives: (0..nodes).map(|_| Mutex::new(0)).collect(),
            hot: Default::default(),
            next_hot: AtomicUsize::new(0),
        }
    }

    /// The sites that the hosts belong to.
    pub const SITES: &str = "[sites.shop]\nhosts = ['shop.example']\nupstream = 'default'\n\
        [sites.news]\nhosts = ['blog.example', 'press.example']\nupstream = 'default'\n";

    /// The resource at this path.
    pub fn find(&self, path: &str) -> Option<&Resource> {
        let number: usize = path.rsplit('/').next()?.parse().ok()?;
        self.resources.get(number).filter(|resource| resource.path == path)
    }

    /// [`World::prepare`] for one URL.
    pub fn prepare_url(&self, number: usize, is_hard: bool) -> Purge {
        let resource = &self.resources[number];
        let body = json!({"urls": [format!("http://{}{}", resource.host, resource.path)]});
        Purge { selector: "url", body, is_hard, raised: vec![(number, resource.version.fetch_add(1, SeqCst) + 1)] }
    }

    /// Raises the versions of all that a purge will take, which must be sent afterwards. `pick` chooses the kind of selector,
    /// and which one.
    pub fn prepare(&self, pick: u64, is_hard: bool) -> Purge {
        let target = &self.resources[(pick >> 8) as usize % self.resources.len()];
        let Resource { host, path, keys, group, .. } = target;
        let origin = format!("http://{host}");
        let site = if *host == "shop.example" { "shop" } else { "news" };
        let prefix = format!("{host}{}", &path[..=path.rfind('/').expect("a path")]);
        let (selector, body): (_, Value) = match pick % 100 {
            0..40 => ("url", json!({"urls": [format!("http://{host}{path}")]})),
            40..55 => ("key", json!({"tags": [keys[1]]})),
            55..65 => ("keys", json!({"tags": [keys[0], keys[1]]})),
            65..75 => ("group", json!({"groups": [{"origin": origin, "group": group}]})),
            75..85 => ("prefix", json!({"prefixes": [prefix]})),
            85..91 => ("host", json!({"hosts": [host]})),
            91..96 => ("site", json!({"sites": [site]})),
            _ => ("everything", json!({"everything": true})),
        };
        let takes = |other: &&Resource| match selector {
            "url" => other.number == target.number,
            "key" => other.keys.contains(&keys[1]),
            "keys" => other.keys.iter().any(|key| keys.contains(key)),
            "group" => other.host == *host && other.group == *group,
            "prefix" => format!("{}{}", other.host, other.path).starts_with(&prefix),
            "host" => other.host == *host,
            "site" => (other.host == "shop.example") == (site == "shop"),
            _ => true,
        };
        let raised = self.resources.iter().filter(takes).map(|one| (one.number, one.version.fetch_add(1, SeqCst) + 1)).collect();
        Purge { selector, body, is_hard, raised }
    }

    /// The resources that a purge takes; the first is the one that it was made for, where it is for one.
    pub fn taken<'a>(&'a self, purge: &'a Purge) -> impl Iterator<Item = &'a Resource> {
        purge.raised.iter().map(|(number, _)| &self.resources[*number])
    }

    /// The purge is complete: every request from now on, to whichever node, must see its versions.
    pub fn completed(&self, purge: &Purge) {
        for (number, version) in &purge.raised {
            self.resources[*number].floors.raise(purge.is_hard, *version);
        }
        self.heat(purge);
    }

    /// A node has acknowledged the purge for itself, in this life of it.
    pub fn acknowledged_by(&self, node: usize, life: Life, purge: &Purge) {
        let now = self.lives[node].lock();
        if Life(*now) == life {
            for (number, version) in &purge.raised {
                self.resources[*number].local[node].raise(purge.is_hard, *version);
            }
        }
        drop(now);
        self.heat(purge);
    }

    pub fn life(&self, node: usize) -> Life {
        Life(*self.lives[node].lock())
    }

    /// The node was killed: what it alone has acknowledged went with it.
    pub fn forget(&self, node: usize) {
        let mut life = self.lives[node].lock();
        *life += 1;
        for resource in &self.resources {
            resource.local[node].hard.store(0, SeqCst);
            resource.local[node].soft.store(0, SeqCst);
        }
    }

    fn heat(&self, purge: &Purge) {
        let now = self.elapsed_us();
        for (number, _) in &purge.raised {
            self.resources[*number].acknowledged_us.fetch_max(now, SeqCst);
        }
        for (number, _) in purge.raised.iter().take(2) {
            self.hot[self.next_hot.fetch_add(1, SeqCst) % self.hot.len()].store(*number, SeqCst);
        }
    }

    /// One of those that were purged last.
    pub fn hot(&self, pick: usize) -> &Resource {
        &self.resources[self.hot[pick % self.hot.len()].load(SeqCst)]
    }

    fn elapsed_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// What may be demanded of an answer to a request that is sent to this node afterwards.
    pub fn demand(&self, resource: &Resource, node: usize) -> Demand {
        let (floors, local) = (&resource.floors, &resource.local[node]);
        let hard = floors.hard.load(SeqCst).max(local.hard.load(SeqCst));
        let soft = floors.soft.load(SeqCst).max(local.soft.load(SeqCst));
        let acknowledged = resource.acknowledged_us.load(SeqCst);
        let close = acknowledged > 0 && self.elapsed_us().saturating_sub(acknowledged) <= CLOSE.as_micros() as u64;
        Demand { hard, soft, close }
    }
}

impl Floors {
    fn raise(&self, is_hard: bool, version: u64) {
        if is_hard { &self.hard } else { &self.soft }.fetch_max(version, SeqCst);
    }
}

impl Resource {
    pub fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// The body of a version: it says what it is all over.
    pub fn body(&self, version: u64) -> Vec<u8> {
        let line = format!("{} {version}\n", self.number);
        let times = if self.kind == Kind::Large { LARGE.div_ceil(line.len()) } else { 40 };
        line.repeat(times).into_bytes()
    }

    /// Why an answer must not be what it is.
    ///
    /// What a hard purge took must never come again. What a soft one took is stale: it must have been revalidated, which gives
    /// the new version, but for what says `stale-while-revalidate`; that may come once more if Cache-Status tells that it is
    /// stale. The origin never fails here, so `stale-if-error` is no excuse.
    pub fn judge(&self, demand: Demand, told: &Told<'_>) -> Result<u64, String> {
        let Told { body, stale } = told;
        let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '));
        let said: Option<(usize, u64)> = words.and_then(|(number, version)| Some((number.parse().ok()?, version.parse().ok()?)));
        let Some((number, version)) = said else { return Err(format!("no body of ours: {:?}", String::from_utf8_lossy(line))) };
        if number != self.number {
            return Err(format!("the body of resource {number}"));
        }
        if *body != self.body(version).as_slice() {
            return Err(format!("a damaged body of version {version}, {} bytes", body.len()));
        }
        if version > self.version() {
            return Err(format!("version {version}, which never was"));
        }
        if version < demand.hard {
            return Err(format!("version {version} after a hard purge of what was before version {}", demand.hard));
        }
        if version < demand.soft && !(self.kind == Kind::Lenient && *stale) {
            return Err(format!("version {version}, stale: {stale}, after a soft purge of what was before version {}", demand.soft));
        }
        Ok(version)
    }
}

/// Counts by name.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    pub fn count(&self, name: impl Into<String>) {
        *self.0.lock().entry(name.into()).or_default() += 1;
    }

    pub fn of(&self, name: &str) -> u64 {
        self.0.lock().get(name).copied().unwrap_or_default()
    }

    pub fn total(&self) -> u64 {
        self.0.lock().values().sum()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told: Vec<_> = self.0.lock().iter().map(|(name, count)| format!("{name} {count}")).collect();
        f.write_str(&told.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_below_the_floor_is_found() {
        let world = World::new(64, 2);
        let purge = world.prepare_url(8, true);
        let resource = world.taken(&purge).next().expect("the resource");
        let (old, new) = (resource.body(1), resource.body(2));
        let told = |body| Told { body, stale: true };
        let before = world.demand(resource, 1);
        assert_eq!(resource.judge(before, &told(&old)), Ok(1), "not acknowledged yet");
        world.acknowledged_by(0, world.life(0), &purge);
        assert!(resource.judge(world.demand(resource, 0), &told(&old)).is_err(), "by the node that was asked");
        assert_eq!(resource.judge(world.demand(resource, 1), &told(&old)), Ok(1), "by no other yet");
        world.completed(&purge);
        assert!(resource.judge(world.demand(resource, 1), &told(&old)).is_err());
        assert_eq!(resource.judge(world.demand(resource, 1), &told(&new)), Ok(2));
        assert_eq!(resource.judge(before, &told(&old)), Ok(1), "the request started before");
        assert!(world.demand(resource, 1).close);
    }

    #[test]
    fn what_is_soft_may_be_stale_where_the_response_allows_it() {
        let world = World::new(64, 1);
        let lenient = &world.resources[0];
        assert_eq!(lenient.kind, Kind::Lenient);
        for resource in [lenient, &world.resources[8]] {
            resource.version.store(3, SeqCst);
            resource.floors.raise(false, 3);
            resource.floors.raise(true, 2);
            let judge = |version, stale| resource.judge(world.demand(resource, 0), &Told { body: &resource.body(version), stale });
            assert_eq!(judge(2, true).is_ok(), resource.kind == Kind::Lenient);
            assert!(judge(2, false).is_err(), "it must say so");
            assert!(judge(1, true).is_err(), "purged hard");
            assert_eq!(judge(3, false), Ok(3));
            assert!(judge(4, false).is_err(), "it never was");
        }
    }

    #[test]
    fn what_a_node_alone_acknowledged_ends_with_it() {
        let world = World::new(64, 1);
        let purge = world.prepare_url(8, true);
        let resource = world.taken(&purge).next().expect("the resource");
        let life = world.life(0);
        world.acknowledged_by(0, life, &purge);
        world.forget(0);
        world.acknowledged_by(0, life, &purge);
        assert_eq!(world.demand(resource, 0).hard, 0);
    }

    #[test]
    fn a_body_that_is_short_mixed_or_of_another_is_found() {
        let world = World::new(64, 1);
        let resource = &world.resources[7];
        let judge = |body: &[u8]| resource.judge(world.demand(resource, 0), &Told { body, stale: false });
        let whole = resource.body(1);
        assert!(resource.kind == Kind::Large && judge(&whole).is_ok());
        assert!(judge(&whole[..whole.len() - 1]).is_err());
        let mixed = [&whole[..100_000], &resource.body(2)[100_000..]].concat();
        assert!(judge(&mixed).is_err());
        assert!(judge(&world.resources[8].body(1)).is_err());
        assert!(judge(b"").is_err());
    }

    #[test]
    fn every_kind_of_selector_is_made_and_takes_what_it_says() {
        let world = World::new(200, 1);
        let mut seen = BTreeMap::new();
        for pick in 0..20_000 {
            let purge = world.prepare(pick * 7919, true);
            assert!(!purge.raised.is_empty());
            *seen.entry(purge.selector).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
    }
}
