//! Leases of a fleet: several nodes in this process, one real Redis.

use crate::support::redis::{Redis as Server, Reply};
use std::time::{Duration, Instant};
use tiercel::coalesce::lease::{Ended, Lease, Leases, Terms, Verdict};
use tiercel::config::{self, Sources};
use tiercel::observe::metrics::Metrics;
use tiercel::redis::Redis;

const KEY: &str = "test:{lease}:l";

const TERMS: Terms =
    Terms { ttl: Duration::from_millis(600), wait: Duration::from_secs(10), kept: Duration::from_secs(5), budget: Duration::from_secs(5) };

/// A node that is connected and listens.
async fn node(server: &Server, terms: Terms) -> Leases {
    let text = format!("[upstreams.app]\nendpoints = [\"http://127.0.0.1:1\"]\n[cache.redis]\nurl = \"{}\"\n", server.url());
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), text).expect("a writable file");
    let settings = config::load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() }).expect("it is right");
    let redis = Redis::new(&settings.redis.expect("configured").server, &Metrics::new(1)).expect("usable");
    let before: i64 = listeners(server);
    let leases = Leases::new(&redis, terms);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !matches!(leases.ask("test:{lease}:connected", true).await, Verdict::Lead(_) | Verdict::Ended(_)) || listeners(server) <= before {
        assert!(Instant::now() < deadline, "no connection to Redis");
        tokio::time::sleep(Duration::from_millis(5)).await; // nobody announces it
    }
    leases
}

/// Who listens to outcomes.
fn listeners(server: &Server) -> i64 {
    let counts = server.ask(&["PUBSUB", "NUMSUB", "tiercel:channel:lease"]);
    counts.list().get(1).map_or(0, Reply::integer)
}

fn lead(verdict: Verdict) -> Lease {
    match verdict {
        Verdict::Lead(lease) => lease,
        Verdict::Ended(ended) => panic!("ended: {ended:?}"),
        Verdict::Alone => panic!("alone"),
    }
}

fn ended(verdict: &Verdict) -> Option<Ended> {
    match verdict {
        Verdict::Ended(ended) => Some(*ended),
        Verdict::Lead(_) | Verdict::Alone => None,
    }
}

#[tokio::test]
async fn one_leads_and_all_others_are_woken_by_the_outcome() {
    let server = Server::start();
    let nodes = [node(&server, TERMS).await, node(&server, TERMS).await, node(&server, TERMS).await];
    let lease = lead(nodes[0].ask(KEY, false).await);
    let asks = nodes.iter().flat_map(|node| (0..20).map(move |_| node.ask(KEY, false)));
    let waiting = async {
        let mut told = Vec::new();
        for ask in asks.map(|ask| async { (ask.await, Instant::now()) }).collect::<Vec<_>>() {
            told.push(ask);
        }
        futures(told).await
    };
    let leading = async {
        while nodes.iter().any(|node| node.waited_for() == 0) {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        assert!(lease.end(Ended::Stored).await);
        began
    };
    let (verdicts, began) = tokio::join!(waiting, leading);
    for (verdict, at) in &verdicts {
        assert_eq!(ended(verdict), Some(Ended::Stored));
        assert!(at.duration_since(began) < TERMS.ttl, "woken, not by the lapse of the lease");
    }
    assert_eq!(verdicts.len(), 60);
    assert!(nodes.iter().all(|node| node.waited_for() == 0), "nothing stays of those who waited");
}

/// All of them at the same time.
async fn futures<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        for (one, done) in &mut all {
            if done.is_none()
                && let std::task::Poll::Ready(value) = one.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if all.iter().all(|(_, done)| done.is_some()) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn a_dead_holder_is_replaced_by_one_when_its_lease_lapses() {
    let server = Server::start();
    let nodes = [node(&server, TERMS).await, node(&server, TERMS).await];
    server.ask(&["SET", KEY, "hsomebody", "PX", "400"]);
    let began = Instant::now();
    let (first, second) = tokio::join!(
        async {
            let verdict = nodes[0].ask(KEY, false).await;
            finish(verdict).await
        },
        async {
            let verdict = nodes[1].ask(KEY, false).await;
            finish(verdict).await
        }
    );
    assert!(began.elapsed() >= Duration::from_millis(390), "not before it lapsed");
    assert_eq!([first, second].iter().filter(|led| **led).count(), 1, "one leads, the other gets its outcome");
}

/// Ends what is led; whether it was.
async fn finish(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Lead(lease) => lease.end(Ended::Stored).await,
        verdict => {
            assert_eq!(ended(&verdict), Some(Ended::Stored));
            false
        }
    }
}

#[tokio::test]
async fn nobody_touches_a_lease_that_is_anothers_by_now() {
    let server = Server::start();
    let node = node(&server, TERMS).await;
    let lease = lead(node.ask(KEY, false).await);
    server.ask(&["SET", KEY, "hanother", "PX", "60000"]);
    assert!(!lease.end(Ended::Stored).await);
    assert_eq!(server.ask(&["GET", KEY]).text(), "hanother");
}

#[tokio::test]
async fn a_lease_is_renewed_while_it_is_held_and_goes_with_its_holder() {
    let server = Server::start();
    let short = Terms { ttl: Duration::from_millis(300), ..TERMS };
    let nodes = [node(&server, short).await, node(&server, short).await];
    let lease = lead(nodes[0].ask(KEY, false).await);
    let token = server.ask(&["GET", KEY]).text();
    let (waited, ()) = tokio::join!(nodes[1].ask(KEY, false), async {
        let began = Instant::now();
        while began.elapsed() < short.ttl * 4 {
            assert_eq!(server.ask(&["GET", KEY]).text(), token);
            tokio::time::sleep(Duration::from_millis(10)).await; // time is what is tested
        }
        drop(lease); // as where its task is ended
    });
    lead(waited);
}

#[tokio::test]
async fn an_outcome_is_known_to_who_asks_later_unless_it_was_of_no_use() {
    let server = Server::start();
    let nodes = [node(&server, TERMS).await, node(&server, TERMS).await];
    for outcome in [Ended::Uncacheable, Ended::TooLarge, Ended::Stored] {
        assert!(lead(nodes[0].ask(KEY, true).await).end(outcome).await);
        assert_eq!(ended(&nodes[1].ask(KEY, false).await), Some(outcome));
        assert!(server.ask(&["PTTL", KEY]).integer() <= 5000);
    }
    assert!(lead(nodes[1].ask(KEY, true).await).end(Ended::Failed).await);
    assert_eq!(server.ask(&["EXISTS", KEY]).integer(), 0);
    lead(nodes[0].ask(KEY, false).await);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_terms_say_or_for_redis() {
    let server = Server::start();
    let terms = Terms { wait: Duration::from_millis(200), budget: Duration::from_millis(300), ..TERMS };
    let node = node(&server, terms).await;
    server.ask(&["SET", KEY, "hsomebody", "PX", "60000"]);
    let began = Instant::now();
    assert!(matches!(node.ask(KEY, false).await, Verdict::Alone));
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&began.elapsed()));
    server.pause();
    let began = Instant::now();
    assert!(matches!(node.ask("test:{lease}:other", false).await, Verdict::Alone));
    assert!(began.elapsed() < Duration::from_secs(5));
    server.resume();
}
