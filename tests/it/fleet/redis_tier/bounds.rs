//! What is bounded about the tier: what waits to be written, how long a miss is remembered, how long a response is kept there,
//! and who sees it.

use super::*;
use tokio::task::JoinSet;

/// What a node has waiting for Redis: entries and bytes.
fn waiting(node: &Node) -> (f64, f64) {
    let of = |name: &str| node.metric(name, &[]).expect("it answers");
    (of("tiercel_tier_queue_entries"), of("tiercel_tier_queue_bytes"))
}

fn writes(node: &Node, outcome: &str) -> f64 {
    node.metric("tiercel_tier_writes_total", &[&format!("outcome=\"{outcome}\"")]).expect("it answers")
}

#[tokio::test]
async fn nobody_waits_for_writes_and_no_more_of_them_wait_than_may() {
    const BUDGET: Duration = Duration::from_secs(2);
    // By number, and by their bytes: three of the longer bodies.
    for (bound, misses_in_all, length, entries_max, bytes_max) in
        [("queue_entries = 4\n", 100, 1000, 4, u64::MAX), ("queue_bytes = '1MiB'\n", 30, 300_000, 3, 1 << 20)]
    {
        let (origin, redis) = (origin(), Redis::start());
        let fleet = Fleet::start(&plan(2, &origin, &redis, bound));
        let (node, link) = (&fleet.nodes[0], fleet.nodes[0].link.as_ref().expect("a link"));
        get(node, "/before", "").await;
        until_written(node, 1.0).await;
        link.make(Trouble::Slow(Duration::from_millis(200)));
        let mut misses = JoinSet::new();
        for number in 0..misses_in_all {
            let address = node.http;
            misses.spawn(async move {
                let (path, began) = (format!("/m{number}/{length}"), Instant::now());
                let mut client = Client::connect(address).await;
                let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
                assert!(answer.whole && answer.body == body(&path, ""), "{}", answer.head);
                began.elapsed()
            });
        }
        let mut slowest = Duration::ZERO;
        while let Some(took) = misses.join_next().await {
            slowest = slowest.max(took.expect("it is answered"));
            let (entries, bytes) = waiting(node);
            assert!(entries <= f64::from(entries_max) && bytes <= bytes_max as f64, "{bound}: {entries} wait, of {bytes} bytes");
        }
        // Each write takes two answers of Redis: all of them would take longer than that, four at a time.
        assert!(slowest < BUDGET, "{bound}: {slowest:?}");
        link.mend();
        let (stored, full) = (|| writes(node, "stored") - 1.0, || writes(node, "full"));
        until("each is written, or is not to be", node, || stored() + full() == f64::from(misses_in_all)).await;
        assert!(full() >= f64::from(misses_in_all) / 2.0 && stored() >= 4.0, "{bound}: {} did not fit, {} were written", full(), stored());
        assert_eq!(waiting(node), (0.0, 0.0), "{bound}");
        assert_eq!(heads(&redis).len() as f64, stored() + 1.0, "{bound}");
        // There is room again.
        let before = writes(node, "stored");
        get(node, "/after", "").await;
        until_written(node, before + 1.0).await;
        assert!(is_from_redis(&get(&fleet.nodes[1], "/after", "").await));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_looked_for_again_for_a_while() {
    let redis = Redis::start();
    // It has nothing, so that each request is a miss.
    let origin = Origin::start(|_| Script::reset());
    let mut plan = plan(1, &origin, &redis, WITHOUT_LEASES);
    plan.config = plan.config.replace("remember_misses = '0s'", "remember_misses = '2s'");
    let fleet = Fleet::start(&plan);
    let node = &fleet.nodes[0];
    let (began, asked) = (Instant::now(), || commands(node, "lookup", "answered"));
    let before = asked();
    get(node, "/x", "").await;
    assert_eq!((lookups(node, "miss"), lookups(node, "remembered"), asked() - before), (1.0, 0.0, 1.0));
    get(node, "/x", "").await;
    // On a machine that is busy with other things so much time may be over.
    if began.elapsed() < Duration::from_secs(2) {
        assert_eq!((lookups(node, "miss"), lookups(node, "remembered"), asked() - before), (1.0, 1.0, 1.0));
    }
    get(node, "/y", "").await;
    assert!(lookups(node, "miss") >= 2.0, "another is looked for");
    let looked = lookups(node, "miss");
    let deadline = Instant::now() + PATIENCE;
    while lookups(node, "miss") == looked {
        assert!(Instant::now() < deadline, "it is never looked for again");
        get(node, "/x", "").await;
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "too soon: {:?}", began.elapsed());
}

#[tokio::test]
async fn nothing_is_kept_there_for_longer_than_it_may() {
    let (origin, redis) = (origin(), Redis::start());
    let fleet =
        Fleet::start(&plan(1, &origin, &redis, "max_ttl = '30s'\n[[sites.default.routes]]\npath = '/long'\ncache.redis.max_ttl = '5m'\n"));
    let node = &fleet.nodes[0];
    get(node, "/short", "").await;
    until_written(node, 1.0).await;
    let lives = |key: &String| redis.ask(&["PTTL", key]).integer();
    let short = heads(&redis);
    assert!(short.len() == 1 && (1..=30_000).contains(&lives(&short[0])), "{} ms of 600,000 that it is fresh for", lives(&short[0]));
    get(node, "/long", "").await;
    until_written(node, 2.0).await;
    let long: Vec<_> = heads(&redis).into_iter().filter(|head| !short.contains(head)).collect();
    assert!(long.len() == 1 && (30_001..=300_000).contains(&lives(&long[0])), "{long:?}");
}

#[tokio::test]
async fn two_prefixes_in_one_redis_share_nothing() {
    let (origin, redis) = (origin(), Redis::start());
    let of = |prefix: &str| Fleet::start(&plan(2, &origin, &redis, &format!("prefix = '{prefix}'\n")));
    let (one, other) = (of("one"), of("other"));
    for (number, fleet) in [&one, &other].into_iter().enumerate() {
        let first = get(&fleet.nodes[0], "/a/300000", "").await;
        assert!(first.is_miss(), "{}", first.head);
        until_written(&fleet.nodes[0], 1.0).await;
        assert_eq!(origin.count("/a/300000"), number + 1);
    }
    // Nodes of one name are not in each other's way, and nothing that is purged here is purged there.
    let purge = r#"{"everything": true, "wait": "fleet", "timeout": "10s"}"#;
    let (status, receipt) = one.nodes[0].admin("POST", "/v1/purge", purge).expect("it answers");
    assert_eq!((status, receipt["complete"].as_bool(), receipt["nodes"].as_array().map(Vec::len)), (200, Some(true), Some(1)), "{receipt}");
    assert!(is_from_redis(&get(&other.nodes[1], "/a/300000", "").await));
    let purged = get(&one.nodes[1], "/a/300000", "").await;
    assert!(!purged.says("hit"), "{}", purged.head);
    let keys: Vec<_> = redis.ask(&["KEYS", "*"]).list().iter().map(Reply::text).collect();
    for prefix in ["one:", "other:"] {
        assert!(keys.iter().filter(|key| key.starts_with(prefix)).count() >= 4, "{prefix}: {keys:?}");
    }
    assert!(keys.iter().all(|key| key.starts_with("one:") || key.starts_with("other:")), "{keys:?}");
}
