//! Those who purge: one after the other, at any node, and each purge is checked from its answer on.

use super::Fire;
use super::load::ask;
use super::world::Purge;
use crate::support::client::{Answer, Client};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// How long a purge that is not complete yet is asked after.
const FOLLOWED: Duration = Duration::from_secs(30);

/// Purges until the fire is over.
pub async fn purge_again_and_again(fire: Arc<Fire>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while !fire.is_over() {
        let pick = random.random::<u64>();
        let node = random.random_range(0..fire.nodes.len());
        if fire.nodes[node].resting.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        // A purge matters where something is stored: here, elsewhere, or below.
        if random.random_range(0..3) > 0 {
            let target = &fire.world.resources[(pick >> 8) as usize % fire.world.resources.len()];
            for other in 0..fire.nodes.len() {
                if random.random() && !fire.nodes[other].resting.load(SeqCst) {
                    ask(&fire, &mut None, other, target, true).await;
                }
            }
        }
        let checked = fire.checked.load(SeqCst);
        match random.random_range(0..9) {
            // The same selector hard, and soft at the same moment: both count.
            0 => {
                let other = random.random_range(0..fire.nodes.len());
                let (hard, soft) = (fire.world.prepare(pick, true), fire.world.prepare(pick, false));
                tokio::join!(purge(&fire, node, hard), purge(&fire, other, soft));
            }
            // Hard, and again while what it made necessary is being fetched.
            1 => {
                purge(&fire, node, fire.world.prepare(pick, true)).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(0..10))).await;
                purge(&fire, node, fire.world.prepare(pick, true)).await;
            }
            2 => write(&fire, node, fire.world.prepare_url((pick >> 8) as usize % fire.world.resources.len(), true)).await,
            kind => purge(&fire, node, fire.world.prepare(pick, kind > 4)).await,
        }
        // What it took is asked for by many before the next.
        let until = Instant::now() + Duration::from_secs(2);
        while fire.checked.load(SeqCst) < checked + fire.plan.answers_per_purge && Instant::now() < until && !fire.is_over() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Sends a purge that was prepared, and raises the floors that its answer allows.
pub async fn purge(fire: &Arc<Fire>, node: usize, purge: Purge) {
    let mode = if purge.is_hard { "hard" } else { "soft" };
    let life = fire.world.life(node);
    let mut body = purge.body.clone();
    body["mode"] = mode.into();
    body["wait"] = fire.plan.wait.into();
    let sent = Instant::now();
    let Some((status, receipt)) = post(fire, node, "/v1/purge", &body.to_string()).await else {
        fire.purges.count("unanswered");
        return;
    };
    let complete = receipt["complete"] == true;
    if !matches!((status, complete), (200, _) | (202, false)) {
        fire.purges.count(format!("refused {status}"));
        fire.tell(format!("a purge was refused with {status}: {receipt}"));
        return;
    }
    fire.purges.count(format!("{} {mode}", purge.selector));
    if complete {
        fire.world.completed(&purge);
        fire.acknowledged.count("complete at once");
        fire.took.lock().push(sent.elapsed());
        return;
    }
    fire.world.acknowledged_by(node, life, &purge);
    fire.acknowledged.count(if receipt["acknowledged"] == "local" { "local" } else { "not complete yet" });
    let id = receipt["id"].as_str().expect("an id").to_owned();
    tokio::spawn(follow(fire.clone(), node, id, purge));
}

/// Writes by an unsafe method to the URL that a purge was prepared for: whoever asks that node from its answer on reads the write.
async fn write(fire: &Fire, node: usize, prepared: Purge) {
    let life = fire.world.life(node);
    let resource = fire.world.taken(&prepared).next().expect("a URL is of one resource");
    let request = format!("POST {} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", resource.path, resource.host);
    let exchange = async {
        let mut client = Client::try_connect(fire.nodes[node].http).await?;
        client.send(request).await;
        client.answer(false).await
    };
    match tokio::time::timeout(Duration::from_secs(15), exchange).await {
        Ok(Some(answer)) if answer.status == 204 => {
            fire.world.acknowledged_by(node, life, &prepared);
            fire.purges.count("write");
        }
        Ok(Some(answer)) => {
            fire.failed.count(format!("a write: status {}", answer.status));
            fire.tell(format!("a write was answered by {} with {}", fire.nodes[node].name, answer.head));
        }
        Ok(None) | Err(_) => fire.purges.count("unanswered write"),
    }
}

/// Asks after a purge until it is complete.
async fn follow(fire: Arc<Fire>, node: usize, id: String, purge: Purge) {
    let until = Instant::now() + FOLLOWED;
    while Instant::now() < until && !fire.is_over() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Some((status, receipt)) = get(&fire, node, &format!("/v1/purge/{id}")).await else { continue };
        if status != 200 && status != 202 {
            // The node has been started again, and knows nothing of it.
            return fire.acknowledged.count("forgotten");
        }
        if receipt["complete"] == true {
            fire.world.completed(&purge);
            return fire.acknowledged.count("complete later");
        }
    }
    fire.acknowledged.count(if fire.is_over() { "not complete at the end" } else { "never complete" });
}

pub async fn post(fire: &Fire, node: usize, path: &str, body: &str) -> Option<(u16, Value)> {
    let lines = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    call(fire, node, &format!("POST {path} HTTP/1.1\r\n{lines}"), body).await
}

async fn get(fire: &Fire, node: usize, path: &str) -> Option<(u16, Value)> {
    call(fire, node, &format!("GET {path} HTTP/1.1\r\n"), "").await
}

async fn call(fire: &Fire, node: usize, head: &str, body: &str) -> Option<(u16, Value)> {
    let admin = fire.nodes[node].admin;
    let exchange = async {
        let mut client = Client::try_connect(admin).await?;
        client.send(format!("{head}Host: {admin}\r\nConnection: close\r\n\r\n{body}")).await;
        client.answer(false).await
    };
    let answer: Answer = tokio::time::timeout(Duration::from_secs(15), exchange).await.ok()??;
    Some((answer.status, serde_json::from_slice(&answer.body).ok()?))
}
