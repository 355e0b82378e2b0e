//! Nodes with one Redis: one order, and every node shows what came of it.

use super::{FAILED, Node, OBTAINED, REFUSED, origin, stop};
use crate::support::acme::{Pebble, Plan};
use crate::support::origin::Origin;
use crate::support::process::Process;
use crate::support::redis::{Redis, Reply};
use crate::tls::{metric, metric_reaches};

const GIVEN: &str = "tiercel_acme_orders_total{outcome=\"given\"}";
const SEAL: &str = "seal = 'a-secret-of-this-fleet'\n";
const EXTERNAL: (&str, &str) = ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

fn node(pebble: &Pebble, plan: &Plan, origin: &Origin, redis: &Redis, name: &str, acme: &str) -> Node {
    let acme = format!("{acme}\n[cache.redis]\nurl = '{}'\n[journal]\nnode = '{name}'", redis.url());
    Node::new(pebble, plan, origin, "'shop.example', 'www.shop.example'", &acme, "")
}

/// All that Redis holds, as bytes.
fn dump(redis: &Redis) -> Vec<u8> {
    let mut all = Vec::new();
    for key in redis.ask(&["KEYS", "*"]).list() {
        let key = key.text();
        if let Ok(Reply::Text(value)) = redis.try_ask(&["GET", &key]) {
            all.extend([key.as_bytes(), b" ", &value, b"\n"].concat());
        }
    }
    all
}

async fn one_order_for_two(challenge: &str) {
    let (one, origin, mut redis) = (Plan { external: Some(EXTERNAL), ..Plan::new() }, origin(), Redis::start());
    let (other, pebble) = (one.beside(), Pebble::start(one.clone()));
    // Whichever node asks, the authority comes to the other one, too.
    pebble.lead("shop.example", one.http.ip());
    pebble.lead("www.shop.example", other.http.ip());
    let acme = format!("{SEAL}challenges = ['{challenge}']");
    let nodes = [node(&pebble, &one, &origin, &redis, "one", &acme), node(&pebble, &other, &origin, &redis, "other", &acme)];
    let processes: Vec<Process> = nodes.iter().map(Node::start).collect();
    let root = pebble.root();
    let sum = async |series: &str| metric(&processes[0], series).await + metric(&processes[1], series).await;
    for process in &processes {
        metric_reaches(process, "tiercel_tls_certificate_changes_total{outcome=\"replaced\"}", 1.0).await;
    }
    assert_eq!((sum(OBTAINED).await, sum(GIVEN).await), (1.0, 1.0));
    assert_eq!((sum(REFUSED).await, sum(FAILED).await), (0.0, 0.0));
    for process in &processes {
        assert!(metric(process, &format!("tiercel_acme_challenges_total{{challenge=\"{challenge}\"}}")).await >= 1.0);
    }
    for node in &nodes {
        assert_eq!(node.get(&root, "https://shop.example/a").unwrap(), "hello");
    }
    let held = dump(&redis);
    assert!(held.windows(5).any(|part| part == b":acme"), "something is shared");
    assert!(!held.windows(7).any(|part| part == b"PRIVATE"), "keys are encrypted");

    // Without Redis both go on with what they have, also after a restart.
    redis.kill();
    for process in processes {
        stop(process);
    }
    let process = nodes[1].start();
    assert_eq!(nodes[1].get(&root, "https://www.shop.example/a").unwrap(), "hello");
    assert_eq!(metric(&process, OBTAINED).await + metric(&process, FAILED).await, 0.0);
}

#[tokio::test]
async fn one_order_for_two_nodes_by_http_01_and_either_answers() {
    one_order_for_two("http-01").await;
}

#[tokio::test]
async fn one_order_for_two_nodes_by_tls_alpn_01_and_either_answers() {
    one_order_for_two("tls-alpn-01").await;
}

#[tokio::test]
async fn nodes_with_different_secrets_share_nothing_and_say_so() {
    let (one, origin, redis) = (Plan::new(), origin(), Redis::start());
    let (other, pebble) = (one.beside(), Pebble::start(one.clone()));
    let one = node(&pebble, &one, &origin, &redis, "one", SEAL);
    let first = one.start();
    metric_reaches(&first, OBTAINED, 1.0).await;
    pebble.lead("shop.example", other.http.ip());
    pebble.lead("www.shop.example", other.http.ip());
    let other = node(&pebble, &other, &origin, &redis, "other", "seal = 'another-secret-of-another-fleet'");
    let second = other.start();
    metric_reaches(&second, OBTAINED, 1.0).await;
    second.err.wait("the cause", |line| line.contains("cannot be opened") && line.contains("acme.seal_file"));
    assert_eq!(metric(&second, GIVEN).await + metric(&first, GIVEN).await, 0.0);
}

#[tokio::test]
async fn a_failure_of_one_node_is_not_repeated_by_the_other() {
    let (one, origin, redis) = (Plan { refused: vec!["shop.example"], ..Plan::new() }, origin(), Redis::start());
    let (other, pebble) = (one.beside(), Pebble::start(one.clone()));
    let (one, other) = (
        node(&pebble, &one, &origin, &redis, "one", &format!("{SEAL}retry_first = '1h'")),
        node(&pebble, &other, &origin, &redis, "other", &format!("{SEAL}retry_first = '1h'")),
    );
    let first = one.start();
    metric_reaches(&first, REFUSED, 1.0).await;
    let failures = |node: &Node| {
        let file = first_file(node);
        format!("tiercel_acme_failures{{certificate=\"{}\"}}", file.display())
    };
    metric_reaches(&first, &failures(&one), 1.0).await;
    let second = other.start();
    metric_reaches(&second, &failures_at(&one, &other), 1.0).await;
    assert_eq!(metric(&second, REFUSED).await, 0.0);
}

/// Where a node keeps its certificate, though it is not there yet.
fn first_file(node: &Node) -> std::path::PathBuf {
    node.kept().pop().expect("attempts are kept").with_extension("pem")
}

/// The series of the other node's certificate: the same name in another folder.
fn failures_at(node: &Node, other: &Node) -> String {
    let file = first_file(node);
    let below = file.strip_prefix(node.folder.path()).expect("it is below");
    format!("tiercel_acme_failures{{certificate=\"{}\"}}", other.folder.path().join(below).display())
}

#[tokio::test]
async fn nodes_that_had_accounts_of_their_own_end_with_one() {
    let (one, origin, redis) = (Plan::new(), origin(), Redis::start());
    let (other, pebble) = (one.beside(), Pebble::start(one.clone()));
    let hosts = ["shop.example", "www.shop.example"];
    pebble.lead(hosts[0], one.http.ip());
    pebble.lead(hosts[1], other.http.ip());
    let account_in = |node: &Node, name: &str| {
        let file = node.kept().into_iter().find(|file| file.ends_with(name))?;
        let text = std::fs::read(file).expect("it can be read");
        Some(serde_json::from_slice::<serde_json::Value>(&text).expect("JSON")["credentials"]["id"].clone())
    };
    let account = |node: &Node| account_in(node, "account.json").expect("an account is kept");
    let obtained = async |nodes: &[Node; 2]| {
        let processes = [nodes[0].start(), nodes[1].start()];
        for process in &processes {
            metric_reaches(process, OBTAINED, 1.0).await;
        }
        processes.into_iter().for_each(stop);
        [account(&nodes[0]), account(&nodes[1])]
    };
    let alone = |plan: &Plan, host: &str| Node::new(&pebble, plan, &origin, &format!("'{host}'"), "", "");
    let nodes = [alone(&one, hosts[0]), alone(&other, hosts[1])];
    let own = obtained(&nodes).await;
    assert_ne!(own[0], own[1]);
    // From now on they share, and each wants what the other had.
    let shares = |plan: &Plan, host: &str, name: &str, before: Node| {
        let acme = format!("{SEAL}\n[cache.redis]\nurl = '{}'\n[journal]\nnode = '{name}'", redis.url());
        Node { folder: before.folder, ..Node::new(&pebble, plan, &origin, &format!("'{host}'"), &acme, "") }
    };
    let [before, before_too] = nodes;
    let nodes = [shares(&one, hosts[1], "one", before), shares(&other, hosts[0], "other", before_too)];
    let [first, second] = obtained(&nodes).await;
    assert_eq!(first, second);
    let replaced: Vec<_> = nodes.iter().map(|node| account_in(node, "account.json.old")).collect();
    let [first_own, second_own] = own.map(|own| (own != first).then_some(own));
    assert_eq!(replaced, [first_own, second_own], "an account that another took the place of is kept");
}
