//! Leases of a fleet: several nodes in this process, one real Redis.

use crate::support::origin::eventually;
use crate::support::redis::{Redis as Server, Reply};
use std::time::{Duration, Instant};
use tiercel::coalesce::lease::{Asking, Claim, Ended, Lease, Leases, Outcome, Verdict};
use tiercel::config::{self, Sources, settings};
use tiercel::observe::metrics::Metrics;
use tiercel::redis::Redis;

const KEY: &str = "test:{lease}:l";

const TERMS: settings::Lease =
    settings::Lease { enabled: true, ttl: Duration::from_millis(600), wait: Duration::from_secs(10), kept: Duration::from_secs(5) };

/// What a busy machine keeps.
const BUDGET: Duration = Duration::from_secs(5);

fn redis(server: &Server) -> Redis {
    let text = format!("[upstreams.app]\nendpoints = [\"http://127.0.0.1:1\"]\n[cache.redis]\nurl = \"{}\"\n", server.url());
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    std::fs::write(file.path(), text).expect("a writable file");
    let settings = config::load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() }).expect("it is right");
    Redis::new(&settings.redis.expect("configured").server, &Metrics::new(1)).expect("usable")
}

/// A node that is connected and listens.
async fn node(server: &Server, terms: settings::Lease, budget: Duration) -> Leases {
    let before: i64 = listeners(server);
    let leases = Leases::new(&redis(server), terms, budget, &Metrics::new(1));
    let deadline = Instant::now() + Duration::from_secs(20);
    let asks = async || leases.ask("test:{lease}:connected", None, leases.deadline()).await;
    while matches!(asks().await, Verdict::Unknown | Verdict::TimedOut) || listeners(server) <= before {
        assert!(Instant::now() < deadline, "no connection to Redis");
        tokio::time::sleep(Duration::from_millis(5)).await; // nobody announces it
    }
    leases
}

async fn ask(node: &Leases, useless: Option<&Outcome>) -> Verdict {
    node.ask(KEY, useless, node.deadline()).await
}

/// Who listens to outcomes.
fn listeners(server: &Server) -> i64 {
    let counts = server.ask(&["PUBSUB", "NUMSUB", "tiercel:channel:lease"]);
    counts.list().get(1).map_or(0, Reply::integer)
}

fn lead(verdict: Verdict) -> Lease {
    match verdict {
        Verdict::Lead(lease) => lease,
        Verdict::Ended(outcome) => panic!("ended: {outcome:?}"),
        Verdict::TimedOut | Verdict::Unknown => panic!("alone"),
    }
}

fn ended(verdict: &Verdict) -> Option<Ended> {
    match verdict {
        Verdict::Ended(outcome) => Some(outcome.ended),
        _ => None,
    }
}

#[tokio::test]
async fn one_leads_and_all_others_are_woken_by_the_outcome() {
    let server = Server::start();
    // Who is not woken looks when the lease lapses: by then its wait is long over.
    let terms = settings::Lease { ttl: Duration::from_secs(600), ..TERMS };
    let nodes = [node(&server, terms, BUDGET).await, node(&server, terms, BUDGET).await, node(&server, terms, BUDGET).await];
    let lease = lead(ask(&nodes[0], None).await);
    let waiting = futures(nodes.iter().flat_map(|node| (0..20).map(move |_| ask(node, None))).collect());
    let leading = async {
        while nodes.iter().any(|node| node.waited_for() == 0) {
            tokio::task::yield_now().await;
        }
        assert!(lease.end(Ended::Stored).await);
    };
    let (verdicts, ()) = tokio::join!(waiting, leading);
    assert_eq!(verdicts.iter().map(ended).collect::<Vec<_>>(), [Some(Ended::Stored); 60]);
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
    let nodes = [node(&server, TERMS, BUDGET).await, node(&server, TERMS, BUDGET).await];
    let began = Instant::now();
    server.ask(&["SET", KEY, "hsomebody", "PX", "400"]);
    let (first, second) = tokio::join!(
        async {
            let verdict = ask(&nodes[0], None).await;
            finish(verdict).await
        },
        async {
            let verdict = ask(&nodes[1], None).await;
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
    let node = node(&server, TERMS, BUDGET).await;
    let lease = lead(ask(&node, None).await);
    server.ask(&["SET", KEY, "hanother", "PX", "60000"]);
    assert!(!lease.end(Ended::Stored).await);
    assert_eq!(server.ask(&["GET", KEY]).text(), "hanother");
}

#[tokio::test]
async fn a_lease_is_renewed_while_it_is_held_and_goes_with_its_holder() {
    let server = Server::start();
    let short = settings::Lease { ttl: Duration::from_millis(300), ..TERMS };
    let nodes = [node(&server, short, BUDGET).await, node(&server, short, BUDGET).await];
    let lease = lead(ask(&nodes[0], None).await);
    let token = || server.ask(&["GET", KEY]).text().split_off(1); // behind what says whether somebody waits
    let held = token();
    let (waited, ()) = tokio::join!(ask(&nodes[1], None), async {
        let began = Instant::now();
        while began.elapsed() < short.ttl * 4 {
            assert_eq!(token(), held);
            tokio::time::sleep(Duration::from_millis(10)).await; // time is what is tested
        }
        drop(lease); // as where its task is ended
    });
    lead(waited);
}

#[tokio::test]
async fn an_outcome_is_known_to_who_asks_later_unless_it_was_of_no_use() {
    let server = Server::start();
    let nodes = [node(&server, TERMS, BUDGET).await, node(&server, TERMS, BUDGET).await];
    let mut useless = None;
    for expected in [Ended::Uncacheable, Ended::TooLarge, Ended::NotTaken, Ended::Stored] {
        assert!(lead(ask(&nodes[0], useless.as_ref()).await).end(expected).await);
        let verdict = ask(&nodes[1], useless.as_ref()).await;
        assert_eq!(ended(&verdict), Some(expected), "what was of no use was another");
        useless = if let Verdict::Ended(outcome) = verdict { Some(outcome) } else { None };
        assert!(server.ask(&["PTTL", KEY]).integer() <= 5000);
    }
    assert!(lead(ask(&nodes[1], useless.as_ref()).await).end(Ended::Failed).await);
    assert_eq!(server.ask(&["EXISTS", KEY]).integer(), 0);
    lead(ask(&nodes[0], None).await);
}

#[tokio::test]
async fn a_lease_comes_with_records_in_one_round_trip_and_not_where_they_are_there() {
    let server = Server::start();
    let node = node(&server, TERMS, BUDGET).await;
    let redis = redis(&server);
    let link = redis.link(tiercel::redis::Use::Lookup);
    link.ready(BUDGET).await.expect("a connection");
    let records = ["test:{lease}:a".to_owned(), "test:{lease}:b".to_owned()];
    let along = async |absent| {
        let asking = Asking { key: KEY.to_owned(), records: &records, absent, useless: None };
        node.ask_along::<Option<String>>(&link, BUDGET, asking).await.expect("an answer")
    };
    server.ask(&["SET", &records[1], "b"]);
    let (claim, found) = along(2).await;
    assert!(matches!(claim, Claim::Free(_)), "the second is there");
    assert_eq!(found, [None, Some("b".to_owned())]);
    assert_eq!(server.ask(&["EXISTS", KEY]).integer(), 0);
    let (claim, found) = along(1).await;
    let Claim::Lead(lease) = claim else { panic!("only the first counts") };
    assert_eq!(found.len(), 2);
    assert!(matches!(along(1).await.0, Claim::Held(_)), "one at a time");
    assert!(lease.end(Ended::Stored).await);
    assert!(matches!(along(2).await.0, Claim::Ended(_, outcome) if outcome.ended == Ended::Stored));
    // A server that takes no writes gives no leases, and is read all the same.
    server.ask(&["DEL", KEY]);
    server.set("maxmemory", "1");
    let (claim, found) = along(1).await;
    assert!(matches!(claim, Claim::Unknown));
    assert_eq!(found, [None, Some("b".to_owned())]);
}

#[tokio::test]
async fn what_was_asked_for_and_not_waited_for_is_given_back() {
    let server = Server::start();
    let node = node(&server, TERMS, Duration::from_millis(20)).await;
    server.pause();
    assert!(matches!(ask(&node, None).await, Verdict::Unknown));
    server.resume();
    eventually("nobody has it", || server.ask(&["EXISTS", KEY]).integer() == 0).await;
    lead(ask(&node, None).await);
}

#[tokio::test]
async fn an_outcome_that_nobody_waits_for_is_not_published() {
    let server = Server::start();
    let nodes = [node(&server, TERMS, BUDGET).await, node(&server, TERMS, BUDGET).await];
    let published = || server.info("commandstats", "cmdstat_publish");
    assert!(lead(ask(&nodes[0], None).await).end(Ended::Failed).await);
    assert_eq!(published(), None);
    let lease = lead(ask(&nodes[0], None).await);
    let (_, waited) = tokio::join!(
        async {
            eventually("it says that it waits", || server.ask(&["GET", KEY]).text().starts_with('w')).await;
            lease.end(Ended::Failed).await
        },
        ask(&nodes[1], None)
    );
    lead(waited);
    assert!(published().is_some_and(|calls| calls.starts_with("calls=1,")), "{:?}", published());
}

#[tokio::test]
async fn nobody_waits_longer_than_the_terms_say_or_for_redis() {
    let server = Server::start();
    let terms = settings::Lease { wait: Duration::from_millis(200), ..TERMS };
    let node = node(&server, terms, Duration::from_millis(300)).await;
    server.ask(&["SET", KEY, "hsomebody", "PX", "60000"]);
    let began = Instant::now();
    assert!(matches!(ask(&node, None).await, Verdict::TimedOut));
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&began.elapsed()));
    server.pause();
    let began = Instant::now();
    assert!(matches!(node.ask("test:{lease}:other", None, node.deadline()).await, Verdict::Unknown));
    assert!(began.elapsed() < Duration::from_secs(5));
    server.resume();
}
