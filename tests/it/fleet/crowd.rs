//! Many clients that ask all nodes for one thing, at the same time.

use crate::support::client::Client;
use crate::support::fleet::Fleet;
use crate::support::origin::{Recorded, Script, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Mutex, MutexGuard};

pub const HOST: &str = "shop.example";
pub const CROWD: usize = 3_000;

pub fn fresh(body: impl Into<Vec<u8>>) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=600")
}

pub fn body_of(variant: &str) -> Vec<u8> {
    [variant.as_bytes(), &[b'.'; 5000]].concat()
}

/// Fresh, and of the variant that is asked for, `none` if it is not.
pub fn its_variant(request: &Recorded) -> Script {
    fresh(body_of(request.field("x-variant").unwrap_or("none"))).header("Vary", "X-Variant")
}

/// Two crowds together would need more descriptors than there are.
static ALONE: Mutex<()> = Mutex::const_new(());

pub async fn room_for_a_crowd() -> MutexGuard<'static, ()> {
    let guard = ALONE.lock().await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("the soft limit may be raised");
    assert!(limit.maximum.is_none_or(|most| most >= CROWD as u64 + 1500), "too few descriptors: ulimit -Hn");
    guard
}

/// `CROWD` requests spread over the nodes, with the variants in turn; with the number of the node that each went to.
pub async fn gather(fleet: &Fleet, path: &str, variants: usize) -> Vec<(usize, usize, Client)> {
    let nodes = fleet.nodes.len();
    let mut crowd = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let (node, variant) = (number % nodes, (number / nodes) % variants);
        let mut client = Client::connect(fleet.nodes[node].http).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Variant: {variant}\r\n\r\n")).await;
        crowd.push((node, variant, client));
    }
    crowd
}

/// Until so many follow flights of their nodes, before the head.
pub async fn until_waiting(fleet: &Fleet, followers: usize) {
    eventually("all wait", || fleet.sum("tiercel_coalesce_waiting", &[]) as usize == followers).await;
}

pub async fn everybody_gets_its_variant(crowd: Vec<(usize, usize, Client)>) {
    for (node, variant, mut client) in crowd {
        let answer = client.answer(false).await.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true), "node {node}: {}", answer.head);
        assert!(answer.body == body_of(&variant.to_string()), "node {node}: the body of another variant");
    }
}
