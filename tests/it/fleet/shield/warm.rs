//! A node that starts empty, or comes back, beside others that hold what it owns.

use super::*;
use crate::support::h2_origin;
use std::collections::HashMap;
use tokio::sync::Notify;

impl Stage {
    /// Paths that this node owns, and who stands in for it: the same one for all.
    fn paths_of(&self, owner: usize, count: usize) -> (Vec<String>, usize) {
        let mut found: HashMap<usize, Vec<String>> = HashMap::new();
        for path in (0..1000).map(|number| format!("/own/{number}")) {
            let order = self.order(&path);
            if order[0] == owner {
                let paths = found.entry(order[1]).or_default();
                paths.push(path);
                if paths.len() == count {
                    return (std::mem::take(paths), order[1]);
                }
            }
        }
        panic!("node {owner} owns too little");
    }

    /// All nodes, the owner of the path first.
    fn order(&self, path: &str) -> Vec<usize> {
        let order = self.explained(0, path)["order"].clone();
        let number = |name: &serde_json::Value| self.fleet.nodes.iter().position(|node| node.peer.to_string() == name.as_str().unwrap());
        order.as_array().expect("an order").iter().map(|name| number(name).expect("one of the nodes")).collect()
    }

    /// What a node says of the shield.
    fn explained(&self, node: usize, path: &str) -> serde_json::Value {
        let asked = json!({"url": format!("http://{HOST}{path}")}).to_string();
        let (status, explained) = self.node(node).admin("POST", "/v1/explain", &asked).expect("it answers");
        assert_eq!(status, 200, "{explained}");
        explained["shield"].clone()
    }

    /// Starts a node that was ended, with nothing in its memory.
    async fn begin(&mut self, node: usize) {
        self.fleet.nodes[node].start();
        self.node(node).until_ready();
        eventually("it trusts the journal", || self.node(node).metric("tiercel_journal_trusted", &[]) == Some(1.0)).await;
    }

    fn warm(&self, outcome: &str) -> usize {
        self.sum("tiercel_shield_warm_total", &[&format!("outcome=\"{outcome}\"")]) as usize
    }

    async fn ask(&self, node: usize, path: &str, line: &str) -> Answer {
        let mut client = Client::connect(self.node(node).http).await;
        client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n\r\n")).await
    }
}

/// Answers that it holds each path, and is asked for nothing else; when `gate` is open, with the positions of who asks.
async fn holder(gate: Arc<Notify>) -> h2_origin::Origin {
    h2_origin::Origin::start(move |(request, mut respond)| {
        let gate = Arc::clone(&gate);
        async move {
            let (field, uri) = (request.headers()["tiercel-hop"].to_str().expect("text"), request.uri());
            let asked = Asked { method: "GET", scheme: "http", authority: HOST, target: uri.path() };
            let at_ms = field.split(' ').nth(1).and_then(|time| time.parse().ok()).expect("a time");
            let Hop { standing, wanted, .. } = Hop::read(field.as_bytes(), &Key::new(SECRET.as_bytes()), &asked, at_ms).expect("good");
            assert_eq!(wanted, Wanted::Held);
            gate.notified().await;
            let answer = http::Response::builder()
                .header("tiercel-stamp", format!("{} {}", standing.purge, standing.unsafe_method))
                .header("cache-control", "max-age=600")
                .header("age", "100");
            let mut body = respond.send_response(answer.body(()).expect("an answer"), false).expect("it is there");
            body.send_data(Bytes::from(format!("held {}", uri.path())), true).expect("it is there");
        }
    })
    .await
}

/// A node that asks a peer, and one that has only Redis in common with it.
#[tokio::test]
async fn what_another_node_held_is_shared_with_those_who_wait_for_the_lease() {
    let gate = Arc::new(Notify::new());
    let (origin, redis, holder) = (Origin::start(|_| fresh("fetched")), Redis::start(), holder(Arc::clone(&gate)).await);
    let node = |name: &str, config: &str| {
        let tier = "[lease]\nwait = '2m'\nttl = '5s'\n[cache.redis]\nurl = 'redis://@REDIS@'\nlookup_budget = '5s'\n";
        let config = format!("{config}[journal]\nnode = '{name}'\ntrust = '1s'\n{tier}");
        let plan = Plan { nodes: 1, config, origin: origin.url(), redis: Some(redis.address()), ..Plan::default() };
        Fleet::start(&plan)
    };
    let alone = &CONFIG[..CONFIG.find("[shield]").expect("a shield")];
    let with_peer = CONFIG.replace("[@PEERS@]", &format!("[@PEERS@, 'http://{}']", holder.address));
    let (asker, other) = (node("asker", &with_peer), node("other", alone));
    let asker = Stage { fleet: asker, origin, redis: None };
    let trusted = |fleet: &Fleet| fleet.sum("tiercel_journal_trusted", &[]) == 1.0;
    eventually("both trust the journal", || trusted(&asker.fleet) && trusted(&other)).await;
    let own = asker.node(0).peer.to_string();
    let path = (0..100).map(|number| format!("/own/{number}")).find(|path| asker.explained(0, path)["owner"] == own).expect("half of them");

    let mut first = Client::connect(asker.node(0).http).await;
    first.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    eventually("the holder is asked", || holder.seen.active.load(Ordering::SeqCst) == 1).await;
    let mut second = Client::connect(other.nodes[0].http).await;
    second.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    eventually("the other node waits for its lease", || other.sum("tiercel_lease_waiting", &[]) == 1.0).await;
    gate.notify_one();
    let first = first.answer(false).await.expect("an answer");
    assert!(first.text() == format!("held {path}") && first.all("cache-status").contains("detail=WARM"), "{}", first.head);
    let second = second.answer(false).await.expect("an answer");
    assert!(second.text() == first.text() && second.all("cache-status").contains("detail=LEASE"), "{}", second.head);
    assert!(second.field("age").is_some_and(|age| (100..200).contains(&age.parse::<u32>().unwrap())), "{}", second.head);
    assert_eq!(asker.origin.total(), 0);
    let ended = |outcome| asker.sum("tiercel_lease_ended_total", &[outcome]);
    assert_eq!((ended("outcome=\"stored\""), ended("")), (1.0, 1.0));
}

/// Cache-Status of the node that was asked, without its name.
fn own_member(answer: &Answer) -> String {
    answer.all("cache-status").rsplit("tiercel; ").next().expect("a member").to_owned()
}

#[tokio::test]
async fn an_emptied_owner_does_not_go_to_the_origin_for_what_another_node_holds() {
    let mut stage = Stage::with_journal(|request| {
        let variant = request.field("x-variant").unwrap_or("none");
        fresh(format!("{} {variant}", request.path)).header("Vary", "X-Variant").header("Age", "100")
    });
    let (paths, deputy) = stage.paths_of(0, 10);
    // What all hold, in two variants, and what came while the owner was away.
    let (before, meanwhile) = paths.split_at(6);
    for (path, variant) in before.iter().flat_map(|path| [(path, "a"), (path, "b")]) {
        for node in 0..NODES {
            assert_eq!(stage.ask(node, path, &format!("X-Variant: {variant}")).await.text(), format!("{path} {variant}"));
        }
    }
    assert_eq!(stage.origin.total(), 12);
    stage.fleet.nodes[0].kill();
    for path in meanwhile {
        assert_eq!(stage.ask(deputy, path, "X-Variant: a").await.text(), format!("{path} a"));
    }
    let (fetched, asked) = (stage.origin.total(), stage.warm("found"));
    assert_eq!(fetched, 16);
    stage.begin(0).await;
    assert_eq!(stage.explained(0, &paths[0])["warming"]["asks"], stage.node(deputy).peer.to_string());
    let wanted = paths.iter().map(|path| (path, "a")).chain(before.iter().map(|path| (path, "b")));
    for (number, (path, variant)) in wanted.enumerate() {
        let line = format!("X-Variant: {variant}");
        let first = stage.ask(0, path, &line).await;
        assert_eq!(first.text(), format!("{path} {variant}"));
        let said = first.all("cache-status");
        assert!(said.contains("fwd=") && said.contains("detail=WARM"), "{}", first.head);
        assert!(first.field("age").is_some_and(|age| (100..200).contains(&age.parse::<u32>().unwrap())), "{}", first.head);
        assert_eq!(first.field("tiercel-stamp"), None, "{}", first.head);
        let again = stage.ask(0, path, &line).await;
        assert!(own_member(&again).starts_with("hit") && again.text() == first.text(), "it is kept: {}", again.head);
        assert_eq!(stage.warm("found") - asked, number + 1, "{path} {variant}");
    }
    assert_eq!(stage.origin.total(), fetched);
}

#[tokio::test]
async fn an_emptied_owner_asks_for_other_nodes_as_well() {
    let mut stage = Stage::with_journal(|request| fresh(request.path.clone()));
    let (paths, deputy) = stage.paths_of(0, 5);
    stage.fleet.nodes[0].kill();
    for path in &paths {
        assert_eq!(stage.get(deputy, path).await.text(), *path);
    }
    stage.begin(0).await;
    let asked = stage.warm("found");
    for path in &paths {
        // It asks the owner, and that one the deputy.
        let answer = stage.get(NODES - deputy, path).await;
        assert_eq!(answer.text(), *path);
        assert_eq!(answer.all("cache-status").matches("tiercel; ").count(), 3, "{}", answer.head);
    }
    assert_eq!((stage.origin.total(), stage.warm("found") - asked), (5, 5));
}

#[tokio::test]
async fn what_was_purged_while_the_owner_was_away_is_fetched_and_the_rest_is_not() {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let mut stage = Stage::with_journal(move |request| {
        let key = if request.path.ends_with(|last: char| "02468".contains(last)) { "even" } else { "odd" };
        fresh(served.load(Ordering::SeqCst).to_string()).header("Surrogate-Key", key)
    });
    let (paths, deputy) = stage.paths_of(0, 12);
    for path in &paths {
        for node in 0..NODES {
            assert_eq!(stage.get(node, path).await.text(), "1");
        }
    }
    stage.fleet.nodes[0].kill();
    version.store(2, Ordering::SeqCst);
    let by_url = paths.iter().find(|path| !path.ends_with(|last: char| "02468".contains(last))).expect("an odd one");
    let body = json!({"tags": ["even"], "urls": [format!("http://{HOST}{by_url}")]}).to_string();
    let (status, receipt) = stage.node(deputy).admin("POST", "/v1/purge", &body).expect("it answers");
    assert!(matches!(status, 200 | 202), "{receipt}");
    stage.begin(0).await;
    let fetched = stage.origin.total();
    let is_purged = |path: &String| path == by_url || path.ends_with(|last: char| "02468".contains(last));
    for path in &paths {
        assert_eq!(stage.get(0, path).await.text(), if is_purged(path) { "2" } else { "1" }, "{path}");
    }
    assert_eq!(stage.origin.total(), fetched + paths.iter().filter(|path| is_purged(path)).count());
}

#[tokio::test]
async fn who_purged_has_the_new_response_at_once_also_where_the_deputy_knows_of_it_later() {
    let version = Arc::new(AtomicUsize::new(1));
    let served = version.clone();
    let stage = Stage::with_journal(move |_| fresh(served.load(Ordering::SeqCst).to_string()));
    let (paths, deputy) = stage.paths_of(0, 1);
    for round in 0..60 {
        let old = version.load(Ordering::SeqCst).to_string();
        for node in [0, deputy] {
            let deadline = Instant::now() + PATIENCE;
            while stage.get(node, &paths[0]).await.text() != old {
                assert!(Instant::now() < deadline, "round {round}: node {node} never hears of the purge");
            }
        }
        let new = (version.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let body = json!({"urls": [format!("http://{HOST}{}", paths[0])]}).to_string();
        let (status, receipt) = stage.node(0).admin("POST", "/v1/purge", &body).expect("it answers");
        assert_eq!(status, 200, "{receipt}");
        assert_eq!(stage.get(0, &paths[0]).await.text(), new, "round {round}: {receipt}");
    }
    assert!(stage.warm("rejected") + stage.warm("nothing") >= 60, "the deputy was asked each time");
}

#[tokio::test]
async fn where_others_hold_nothing_one_question_is_all_it_costs() {
    let stage = Stage::with_journal(|request| fresh(request.path.clone()));
    let (paths, deputy) = stage.paths_of(0, 8);
    for path in &paths {
        let answer = stage.get(0, path).await;
        assert!(answer.text() == *path && !answer.all("cache-status").contains("WARM"), "{}", answer.head);
        assert!(own_member(&stage.get(0, path).await).starts_with("hit"));
    }
    assert_eq!((stage.origin.total(), stage.warm("nothing"), stage.warm("not_held")), (8, 8, 8));
    let answered = stage.node(deputy).metric("tiercel_requests_total", &["result=\"miss\""]).expect("it runs");
    assert_eq!(answered, 0.0, "who is asked for what it holds fetches nothing");
}

#[tokio::test]
async fn a_node_that_has_had_its_time_to_fill_asks_nobody() {
    let stage = Stage::with_journal_and_config(&format!("{CONFIG}warm_time = '100ms'\n"), |request| fresh(request.path.clone()));
    let (paths, _) = stage.paths_of(0, 5);
    eventually("its time is over", || stage.explained(0, &paths[0])["warming"].is_null()).await;
    for path in &paths {
        assert_eq!(stage.get(0, path).await.text(), *path);
    }
    assert_eq!((stage.origin.total(), stage.sum("tiercel_shield_warm_total", &[])), (5, 0.0));
}

#[tokio::test]
async fn without_a_journal_that_nodes_share_nobody_is_asked_for_what_it_holds() {
    let stage = Stage::new(|request| fresh(request.path.clone()));
    let (paths, deputy) = stage.paths_of(0, 1);
    assert!(stage.explained(0, &paths[0])["warming"].is_null());
    assert_eq!(stage.get(deputy, &paths[0]).await.text(), paths[0]);
    assert_eq!(stage.sum("tiercel_shield_warm_total", &[]), 0.0);
}

#[tokio::test]
async fn a_deputy_that_is_stopped_costs_the_budget_a_few_times_and_then_the_next_one_is_asked() {
    let slow_to_return = CONFIG.replace("back_off = '200ms'\nback_off_max = '400ms'", "back_off = '10m'\nback_off_max = '10m'");
    let late = slow_to_return.replace("warm_budget = '1m'", "warm_budget = '1s'");
    let mut stage = Stage::with_journal_and_config(&late, |request| fresh(request.path.clone()));
    let (paths, deputy) = stage.paths_of(0, 10);
    let third = NODES - deputy;
    for path in &paths {
        assert_eq!(stage.get(third, path).await.text(), *path);
    }
    stage.fleet.nodes[0].kill();
    stage.begin(0).await;
    assert_eq!(stage.explained(0, &paths[0])["warming"]["asks"], stage.node(deputy).peer.to_string());
    stage.node(deputy).pause();
    let said = |outcome| stage.node(0).metric("tiercel_shield_warm_total", &[&format!("outcome=\"{outcome}\"")]).expect("it runs");
    for (number, path) in paths.iter().enumerate() {
        assert_eq!(stage.get(0, path).await.text(), *path, "a peer that is late is no failure of a request");
        let late = (number + 1).min(3);
        assert_eq!((said("late"), said("found")), (late as f64, (number + 1 - late) as f64), "{path}");
    }
    assert_eq!((said("bypassed"), stage.origin.total()), (0.0, 13));
    assert_eq!(stage.explained(0, &paths[0])["warming"]["asks"], stage.node(third).peer.to_string());
    let fit = stage.node(0).metric("tiercel_shield_peers", &["state=\"fit\""]);
    assert_eq!(fit, Some(2.0), "it is asked for what it owns all the same");
    stage.node(deputy).resume();
}

#[tokio::test]
async fn where_the_deputy_is_dead_the_next_one_is_asked() {
    let slow_to_return = CONFIG.replace("back_off = '200ms'\nback_off_max = '400ms'", "back_off = '10m'\nback_off_max = '10m'");
    let mut stage = Stage::with_journal_and_config(&slow_to_return, |request| fresh(request.path.clone()));
    let (paths, deputy) = stage.paths_of(0, 10);
    let third = NODES - deputy;
    for path in &paths {
        assert_eq!(stage.get(third, path).await.text(), *path);
    }
    assert_eq!(stage.origin.total(), 10);
    stage.fleet.nodes[deputy].kill();
    stage.fleet.nodes[0].kill();
    stage.begin(0).await;
    for path in &paths {
        assert_eq!(stage.get(0, path).await.text(), *path);
    }
    // Three failures in a row show that the deputy is gone.
    assert_eq!((stage.warm("failed"), stage.warm("found"), stage.origin.total()), (3, 7, 13));
}

#[tokio::test]
async fn who_asks_for_what_is_held_by_another_policy_gets_nothing() {
    let stage = Stage::with_journal(|request| fresh(request.path.clone()));
    assert_eq!(stage.get(0, "/a").await.text(), "/a");
    let fetched = stage.origin.total();
    let mut door = knock(stage.node(0).peer).await;
    for (number, path) in ["/a", "/b"].into_iter().enumerate() {
        let field = signed(&Hop { wanted: Wanted::Held, ..hop(number as u64 + 1) }, SECRET, path);
        let (status, error, body) = ask(&mut door, path, &[("tiercel-hop", &field)]).await;
        assert_eq!((status, error.as_deref(), &body[..]), (504, Some("not-held"), &b""[..]), "{path}");
    }
    assert_eq!(stage.origin.total(), fetched, "and nobody is asked for it");
}
