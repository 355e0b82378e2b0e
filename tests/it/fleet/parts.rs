//! The parts that the tests of the fleet stand on: they do what they are said to.

use crate::support::fleet::{Fleet, Plan};
use crate::support::link::{Link, Trouble};
use crate::support::origin::{Origin, Script};
use crate::support::redis::{Cluster, Connection, Redis, Reply, Restart, Sentinels};
use std::time::{Duration, Instant};

#[test]
fn a_redis_that_starts_again_has_what_it_saved_or_nothing() {
    let mut redis = Redis::start();
    redis.ask(&["SET", "a", "old"]);
    redis.save();
    redis.ask(&["SET", "a", "new"]);
    redis.kill();
    assert!(redis.try_ask(&["PING"]).is_err());
    redis.start_again(Restart::Saved);
    assert_eq!(redis.ask(&["GET", "a"]).text(), "old");
    redis.stop();
    redis.start_again(Restart::Empty);
    assert_eq!(redis.ask(&["GET", "a"]), Reply::Nothing);
}

#[test]
fn a_redis_that_is_full_refuses_writes() {
    let redis = Redis::with_options(&[("maxmemory", "3mb"), ("maxmemory-policy", "noeviction")]);
    let large = "x".repeat(256 << 10);
    let refused = (0..20).map(|n| redis.try_ask(&["SET", &n.to_string(), &large]).unwrap()).find(Reply::is_error);
    assert!(matches!(&refused, Some(Reply::Error(error)) if error.starts_with("OOM ")), "{refused:?}");
    redis.set("maxmemory", "0");
    redis.ask(&["SET", "c", "d"]);
}

#[test]
fn a_redis_that_is_paused_answers_when_it_goes_on() {
    let redis = Redis::start();
    let mut connection = redis.connect().unwrap();
    redis.pause();
    connection.send(&["ECHO", "late"]).unwrap();
    redis.resume();
    assert_eq!(connection.reply().unwrap().text(), "late");
}

#[test]
fn a_link_is_cut_held_slowed_and_garbled() {
    let redis = Redis::start();
    let link = Link::to(redis.address());
    let mut first = Connection::to(link.address()).unwrap();
    assert_eq!(first.ask(&["ECHO", "a"]).unwrap().text(), "a");
    link.make(Trouble::Slow(Duration::from_millis(80)));
    let sent = Instant::now();
    assert_eq!(first.ask(&["ECHO", "b"]).unwrap().text(), "b");
    assert!(sent.elapsed() >= Duration::from_millis(80));
    link.make(Trouble::Held);
    first.send(&["INCR", "held"]).unwrap();
    assert_eq!(redis.ask(&["GET", "held"]), Reply::Nothing);
    link.mend();
    assert_eq!(first.reply().unwrap(), Reply::Integer(1));
    link.make(Trouble::Garbled);
    assert!(first.ask(&["ECHO", "c"]).is_err());
    link.make(Trouble::Cut);
    assert!(first.ask(&["PING"]).is_err());
    assert!(Connection::to(link.address()).and_then(|mut further| further.ask(&["PING"])).is_err());
    link.mend();
    assert_eq!(Connection::to(link.address()).unwrap().ask(&["ECHO", "d"]).unwrap().text(), "d");
    let other = Redis::start();
    other.ask(&["SET", "name", "other"]);
    link.lead_to(other.address());
    assert_eq!(Connection::to(link.address()).unwrap().ask(&["GET", "name"]).unwrap().text(), "other");
}

#[test]
fn sentinels_make_a_replica_that_lags_the_master() {
    let mut master = Redis::start();
    let replica = Redis::replica_of(&master, &[]);
    let sentinels = Sentinels::watch(&master, 1, 500);
    assert_eq!(sentinels.master(), Some(master.address()));
    master.ask(&["SET", "a", "old"]);
    replica.until("the write is there", |replica| replica.ask(&["GET", "a"]).text() == "old");
    replica.stop_following();
    master.ask(&["SET", "a", "new"]);
    master.kill();
    sentinels.until_master(&replica);
    replica.follow_again();
    assert_eq!(replica.ask(&["GET", "a"]).text(), "old", "the last write is lost");
}

#[test]
fn a_cluster_shares_the_slots_between_its_masters() {
    let cluster = Cluster::start();
    let words =
        ["a", "b", "c"].map(|key| cluster.masters.iter().filter(|master| !master.try_ask(&["SET", key, key]).unwrap().is_error()).count());
    assert_eq!(words, [1, 1, 1], "each key is at one of them");
    assert_eq!(cluster.masters.iter().map(|master| master.ask(&["DBSIZE"]).integer()).sum::<i64>(), 3);
}

#[tokio::test]
async fn a_fleet_of_three_starts_pauses_ends_and_starts_again() {
    let origin = Origin::start(|_| Script::ok("body").header("cache-control", "max-age=60"));
    let plan = Plan {
        nodes: 3,
        config: "[server]\nname = '@NODE@'\n[upstreams.default]\nendpoints = ['@ORIGIN@']\n".to_owned(),
        origin: origin.url(),
        ..Plan::default()
    };
    let mut fleet = Fleet::start(&plan);
    for node in &fleet.nodes {
        let answer = node.get("shop.example", "/a").await;
        assert_eq!(answer.text(), "body");
        assert!(answer.field("cache-status").is_some_and(|value| value.starts_with(&node.name)), "{}", answer.head);
    }
    assert_eq!(origin.count("/a"), 3, "they have nothing in common yet");
    fleet.nodes[1].pause();
    fleet.nodes[1].resume();
    fleet.nodes[0].kill();
    fleet.nodes[0].start();
    fleet.nodes[0].until_ready();
    assert_eq!(fleet.nodes[0].get("shop.example", "/a").await.text(), "body");
    fleet.nodes[2].terminate();
    assert!(!fleet.nodes[2].runs() && fleet.nodes[1].runs());
    assert_eq!(origin.count("/a"), 4);
}
