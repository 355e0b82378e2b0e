//! Clients that ask all nodes all the time, and judge each answer.

use super::world::{Kind, Resource, Told};
use super::{Fire, Target};
use crate::support::client::{Answer, Client};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// A client that got no answer for so long leaves, and asks elsewhere.
const GIVES_UP: Duration = Duration::from_millis(500);

/// Asks until the fire is over.
pub async fn ask_all_the_time(fire: Arc<Fire>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut clients: Vec<Option<Client>> = fire.nodes.iter().map(|_| None).collect();
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

/// Asks a node for a resource, and judges the answer; whether there was one.
pub async fn ask(fire: &Fire, client: &mut Option<Client>, node: usize, resource: &Resource, first_variant: bool) -> bool {
    let address = fire.nodes[node].http;
    // First what is demanded, then the request.
    let demand = fire.world.demand(resource, node);
    let exchange = async {
        let mut connection = match client.take() {
            Some(connection) => connection,
            None => Client::try_connect(address).await?,
        };
        let variant = if first_variant { "1" } else { "2" };
        let lines = format!("Host: {}\r\nX-V: {variant}\r\n", resource.host);
        connection.send(format!("GET {} HTTP/1.1\r\n{lines}\r\n", resource.path)).await;
        let answer = connection.answer(false).await?;
        Some((connection, answer))
    };
    let Ok(Some((connection, answer))) = tokio::time::timeout(GIVES_UP, exchange).await else {
        fire.unanswered.count(if fire.nodes[node].resting.load(SeqCst) { "by a node that rests" } else { "by a node that runs" });
        return false;
    };
    if answer.field("connection").is_none_or(|value| value != "close") {
        *client = Some(connection);
    }
    judge(fire, node, resource, demand, &answer);
    true
}

/// Judges and counts an answer.
pub fn judge(fire: &Fire, node: usize, resource: &Resource, demand: super::world::Demand, answer: &Answer) {
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
