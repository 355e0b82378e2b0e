//! Clients that ask all nodes all the time, and judge each answer.

use super::world::{Demand, Kind, Life, Resource, Told};
use super::{Fire, Target};
use crate::support::client::{Answer, Client};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// A client that got no answer for so long asks elsewhere; what it asked for is waited for all the same.
const GIVES_UP: Duration = Duration::from_millis(500);

/// What runs answers within this time, whatever happens to Redis and to other nodes: it waits for the lease of one that is gone
/// (`lease.wait`, 2 s), then for an owner that says nothing (2 s), or it sleeps for a while itself (2.5 s).
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// A connection that may be used again.
pub struct Held {
    client: Client,
    /// Of its node, in which it was made: it ends with that.
    life: Life,
    /// That came over it.
    answers: u64,
}

/// Asks until the fire is over.
pub async fn ask_all_the_time(fire: Arc<Fire>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut clients: Vec<Option<Held>> = fire.nodes.iter().map(|_| None).collect();
    while !fire.is_over() {
        let node = random.random_range(0..fire.nodes.len());
        // Whoever is stopped is asked now and then only: one who waits there asks nobody else.
        if fire.nodes[node].resting.load(SeqCst) && random.random_range(0..8) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        let resource = match random.random_range(0..4) {
            0 => &fire.world.resources[random.random_range(0..fire.world.resources.len())],
            _ => fire.world.hot(random.random_range(0..1000)),
        };
        // While nothing was purged lately the load gives way: what is asked then says little. It never ends.
        if !fire.world.demand(resource, node).close && fire.is_far_from_purges() && random.random_range(0..50) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        ask(&fire, &mut clients[node], node, resource, random.random()).await;
    }
}

/// What was asked.
struct Asked {
    fire: Arc<Fire>,
    node: usize,
    life: Life,
    resource: usize,
    demand: Demand,
}

/// Asks a node for a resource, and judges the answer.
pub async fn ask(fire: &Arc<Fire>, client: &mut Option<Held>, node: usize, resource: &Resource, first_variant: bool) {
    let (address, life) = (fire.nodes[node].http, fire.world.life(node));
    // First what is demanded, then the request.
    let asked = Asked { fire: fire.clone(), node, life, resource: resource.number, demand: fire.world.demand(resource, node) };
    let variant = if first_variant { "1" } else { "2" };
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nX-V: {variant}\r\n\r\n", resource.path, resource.host);
    let held = client.take().filter(|held| held.life == life);
    let mut exchange = Box::pin(async move {
        let mut held = match held {
            Some(held) => held,
            None => Held { client: Client::try_connect(address).await.ok_or("no connection")?, life, answers: 0 },
        };
        held.client.send(request).await;
        let answer = held.client.answer(false).await.ok_or_else(|| format!("hung up behind {} answers", held.answers))?;
        held.answers += 1;
        Ok((held, answer))
    });
    match tokio::time::timeout(GIVES_UP, &mut exchange).await {
        Ok(told) => *client = asked.settle(told),
        Err(_) if asked.rests() => fire.unanswered.count("by a node that rests"),
        Err(_) => {
            fire.late.count(format!("during {}", fire.trouble.lock()));
            fire.waits.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                match tokio::time::timeout(ANSWERED_WITHIN, exchange).await {
                    Ok(told) => drop(asked.settle(told)),
                    Err(_) => asked.failed(format!("no answer in {ANSWERED_WITHIN:?}")),
                }
                asked.fire.waits.fetch_sub(1, SeqCst);
            });
        }
    }
}

impl Asked {
    fn rests(&self) -> bool {
        self.fire.nodes[self.node].resting.load(SeqCst)
    }

    /// Judges what came, and gives the connection back where it may be used again.
    fn settle(&self, told: Result<(Held, Answer), String>) -> Option<Held> {
        let (held, answer) = match told {
            Ok(told) => told,
            Err(_) if self.rests() || self.fire.world.life(self.node) != self.life => {
                self.fire.unanswered.count("by a node that went");
                return None;
            }
            Err(why) => {
                self.failed(why);
                return None;
            }
        };
        judge(&self.fire, self.node, &self.fire.world.resources[self.resource], self.demand, &answer);
        let goes_on = answer.whole && answer.field("connection").is_none_or(|value| value != "close");
        goes_on.then_some(held)
    }

    fn failed(&self, why: String) {
        let (name, resource) = (&self.fire.nodes[self.node].name, &self.fire.world.resources[self.resource]);
        self.fire.tell(format!("{name}, {} of {}: {why}", resource.path, resource.host));
        self.fire.failed.count(why);
    }
}

/// Judges and counts an answer.
pub fn judge(fire: &Fire, node: usize, resource: &Resource, demand: Demand, answer: &Answer) {
    let status = &answer.all("cache-status");
    // A node that is killed breaks off what it was saying, also what it said to another, and at the end all are.
    let has_gone = |target: &Target| target.resting.load(SeqCst);
    let is_broken_off = if fire.plan.shield { fire.nodes.iter().any(has_gone) } else { has_gone(&fire.nodes[node]) };
    if !answer.whole && (fire.is_over() || is_broken_off) {
        return fire.unanswered.count("broken off by a node that went");
    }
    if answer.status != 200 || !answer.whole {
        fire.failed.count(format!("status {} whole {}", answer.status, answer.whole));
        fire.tell(format!("no answer of the origin's from {}: {}", fire.nodes[node].name, answer.head));
        return;
    }
    let stale = status.contains("; ttl=-") || status.contains("fwd=stale");
    fire.checked.fetch_add(1, SeqCst);
    if demand.close {
        fire.close.fetch_add(1, SeqCst);
    }
    fire.outcomes.count(outcome(status));
    if status.contains("CUT-OFF") {
        fire.outcomes.count("by a node that is cut off");
    }
    if let Err(why) = resource.judge(demand, &Told { body: &answer.body, stale }) {
        fire.violated(format!(
            "{} of {} ({:?}) from {}: {why}\n{}",
            resource.path, resource.host, resource.kind, fire.nodes[node].name, answer.head
        ));
    } else if resource.kind == Kind::Large {
        fire.outcomes.count("large");
    }
}

/// What Cache-Status says of it, in a word.
fn outcome(status: &str) -> &'static str {
    let said = |what: &str| status.contains(what);
    match () {
        () if said("; hit") && said("; ttl=-") => "stale hit",
        () if said("detail=SHIELD") => "another node's",
        () if said("REDIS") => "hit in Redis",
        () if said("; hit") => "hit",
        () if said("fwd=stale") => "revalidated",
        () if said("collapsed") => "collapsed",
        () => "miss",
    }
}
