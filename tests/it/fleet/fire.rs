//! Purge under fire: many clients ask all nodes without a pause, others purge, and everything that can go wrong does,
//! one after the other. No answer may be older than a purge that had been acknowledged before it was asked for
//! (`world.rs` says how that is known). The same harness must find each fault that is planted (`tiercel::faults`).

mod load;
mod origin;
mod purges;
mod troubles;
mod world;

use crate::support::fleet::{self, Fleet};
use crate::support::redis::{Redis, Sentinels};
use parking_lot::{Condvar, Mutex};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use troubles::{Stage, Trouble};
use world::{Counts, World};

/// What there is between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// Nothing: one node.
    Alone,
    /// One Redis, each node with a link of its own to it.
    Standalone,
    /// A master with a replica, watched by three Sentinels.
    Sentinel,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    setup: Setup,
    config: &'static str,
    trust: Duration,
    wait: &'static str,
    troubles: Vec<Trouble>,
    fault: Option<&'static str>,
    /// It ends when there were so many answers, and purges, and each trouble was there once; after this time it has failed to.
    answers: u64,
    purges: u64,
    at_most: Duration,
    answers_per_purge: u64,
    /// It ends at the first violation.
    is_enough: bool,
    is_verbose: bool,
}

/// A node, as clients see it.
pub struct Target {
    name: String,
    http: SocketAddr,
    admin: SocketAddr,
    /// It is stopped, or gone: nobody needs to wait for it.
    resting: AtomicBool,
}

/// What all have in common, and what they found.
pub struct Fire {
    plan: Plan,
    world: Arc<World>,
    nodes: Vec<Target>,
    over: (Mutex<bool>, Condvar),
    began: Instant,
    trouble: Mutex<String>,
    checked: AtomicU64,
    close: AtomicU64,
    outcomes: Counts,
    purges: Counts,
    acknowledged: Counts,
    took: Mutex<Vec<Duration>>,
    unanswered: Counts,
    failed: Counts,
    troubles: Counts,
    violations: Mutex<Vec<String>>,
}

impl Fire {
    pub fn is_over(&self) -> bool {
        *self.over.0.lock()
    }

    fn end(&self) {
        *self.over.0.lock() = true;
        self.over.1.notify_all();
    }

    /// For a while, or until it is over.
    pub fn wait(&self, how_long: Duration) {
        let mut over = self.over.0.lock();
        self.over.1.wait_while_for(&mut over, |over| !*over, how_long);
    }

    fn tell(&self, what: String) {
        println!("{:7.3} {what}", self.began.elapsed().as_secs_f64());
    }

    fn violated(&self, what: String) {
        let mut violations = self.violations.lock();
        if violations.len() < 10 {
            self.tell(format!("VIOLATION ({}): {what}", self.trouble.lock()));
        }
        violations.push(what);
        drop(violations);
        if self.plan.is_enough {
            self.end();
        }
    }

    /// All that was asked for has happened.
    fn is_done(&self) -> bool {
        let (checked, close, purges) = (self.checked.load(SeqCst), self.close.load(SeqCst), self.acknowledged.total());
        let troubled = self.plan.troubles.iter().all(|trouble| self.troubles.of(&format!("{trouble:?}")) > 0);
        checked >= self.plan.answers && purges >= self.plan.purges && close * 3 >= checked && troubled
    }

    fn report(&self) {
        let (checked, close) = (self.checked.load(SeqCst), self.close.load(SeqCst));
        let mut took = std::mem::take(&mut *self.took.lock());
        took.sort();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
        self.tell(format!(
            "{checked} answers checked, {close} of them within {} ms after an acknowledgement; {} violations\n\
             answers: {}\nwithout an answer: {}\nfailed: {}\npurges: {}\nacknowledged: {}; complete at once within {:?} (median), {:?} (p99)\n\
             troubles: {}",
            world::CLOSE.as_millis(),
            self.violations.lock().len(),
            self.outcomes,
            self.unanswered,
            self.failed,
            self.purges,
            self.acknowledged,
            at(0.5),
            at(0.99),
            self.troubles,
        ));
    }
}

const CLIENTS: u64 = 32;
const PURGERS: u64 = 6;
const RESOURCES: usize = 192;

/// Runs a plan to its end.
fn run(plan: Plan) -> Arc<Fire> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u32>);
    println!("SEED={seed}");
    let seed = u64::from(seed) << 16;
    let nodes = if plan.setup == Setup::Alone { 1 } else { 3 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    // What the origin needs of the world it has from the first request on; the nodes are known later.
    let world = Arc::new(World::new(RESOURCES, nodes));
    let origin = runtime.block_on(origin::VersionedOrigin::start(world.clone(), seed));

    let mut redis = Vec::new();
    let mut sentinels = None;
    if plan.setup != Setup::Alone {
        redis.push(Redis::start());
    }
    if plan.setup == Setup::Sentinel {
        redis.push(Redis::replica_of(&redis[0], &[]));
        sentinels = Some(Sentinels::watch(&redis[0], 1, 500));
    }
    let server = match &sentinels {
        Some(sentinels) => Some(sentinels.addresses()[0]),
        None => redis.first().map(Redis::address),
    };
    let config = format!("{COMMON}\n{}\n{}", World::SITES, plan.config);
    let fault = plan.fault.map(str::to_owned);
    let fleet = Fleet::start(&fleet::Plan { nodes, config, origin: format!("http://{}", origin.address), redis: server, fault });
    let target = |node: &fleet::Node| Target { name: node.name.clone(), http: node.http, admin: node.admin, resting: false.into() };
    let fire = Arc::new(Fire {
        nodes: fleet.nodes.iter().map(target).collect(),
        world,
        plan,
        over: Default::default(),
        began: Instant::now(),
        trouble: Mutex::default(),
        checked: AtomicU64::new(0),
        close: AtomicU64::new(0),
        outcomes: Counts::default(),
        purges: Counts::default(),
        acknowledged: Counts::default(),
        took: Mutex::default(),
        unanswered: Counts::default(),
        failed: Counts::default(),
        troubles: Counts::default(),
        violations: Mutex::default(),
    });
    for number in 0..CLIENTS {
        runtime.spawn(load::ask_all_the_time(fire.clone(), seed + number));
    }
    for number in 0..PURGERS {
        runtime.spawn(purges::purge_again_and_again(fire.clone(), seed + CLIENTS + number));
    }
    let stage = Stage { fire: fire.clone(), fleet, redis, sentinels, random: troubles::random(seed), clients: runtime.handle().clone() };
    let troubles = std::thread::spawn(move || {
        let mut stage = stage;
        stage.trouble_until_over();
        stage
    });
    let deadline = Instant::now() + fire.plan.at_most;
    while !fire.is_over() && !fire.is_done() && !troubles.is_finished() && Instant::now() < deadline {
        fire.wait(Duration::from_millis(50));
    }
    fire.end();
    let stage = troubles.join().expect("no trouble of our own");
    if fire.plan.setup != Setup::Alone && fire.plan.fault.is_none() {
        assert!(troubles::has_streams(&stage.redis[0]), "there is a journal in Redis");
    }
    drop(stage);
    runtime.shutdown_timeout(Duration::from_secs(2));
    fire.report();
    println!("{} requests at the origin", origin.requests.load(SeqCst));
    fire
}

/// Nothing may be stale but what says so, and what is slow here is slow because the machine is.
const COMMON: &str = "[server]\nname = '@NODE@'\nworkers = 2\n[cache]\nstale_if_error = '0s'\n[memory]\nlimit = '256MiB'\n\
    [log]\nlevel = 'warn'\n[upstreams.default]\nendpoints = ['@ORIGIN@']\n";

/// A run that has to find nothing.
fn finds_nothing(plan: Plan) {
    let fire = run(plan);
    assert!(
        fire.violations.lock().is_empty(),
        "{} violations, the first of them:\n{}",
        fire.violations.lock().len(),
        fire.violations.lock()[0]
    );
    assert_eq!(fire.failed.total(), 0, "{}", fire.failed);
    assert!(fire.is_done(), "too little happened in {:?}", fire.plan.at_most);
}

/// A run that has to find the fault.
fn finds(plan: Plan) {
    let fire = run(plan);
    assert!(!fire.violations.lock().is_empty(), "{:?} was not found", fire.plan.fault);
}

fn alone() -> Plan {
    Plan {
        setup: Setup::Alone,
        config: "",
        trust: Duration::from_secs(1),
        wait: "fleet",
        troubles: Trouble::of(Setup::Alone),
        fault: None,
        answers: 5_000,
        purges: 50,
        at_most: Duration::from_secs(60),
        answers_per_purge: 60,
        is_enough: false,
        is_verbose: std::env::var_os("VERBOSE").is_some(),
    }
}

/// A run that ends when the fault is found.
fn with_fault(fault: &'static str, plan: Plan) -> Plan {
    Plan { fault: Some(fault), is_enough: true, ..plan }
}

#[test]
fn a_stamp_taken_at_the_end_of_the_fetch_is_found() {
    finds(with_fault("StampAtFetchEnd", Plan { troubles: Vec::new(), ..alone() }));
}

#[test]
fn a_soft_purge_in_place_of_a_hard_one_is_found() {
    finds(with_fault("SoftOverwritesHard", Plan { troubles: Vec::new(), ..alone() }));
}

#[test]
fn one_node_never_answers_with_what_was_purged() {
    finds_nothing(alone());
}
