//! The same where Redis is several servers: whatever is wrong with one of them, or with all.

use super::{CONFIG, Duration, Fleet, Instant, PATIENCE, Plan, Redis, Restart, Servers, body, get, is_from_redis, origin};

#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// All of them are out of memory.
    Full,
    /// All of them take no writes, for want of replicas.
    ReadOnly,
    /// One stands still, for longer than the others wait for it.
    Paused,
    /// One is gone, with all that it held.
    Gone,
}

use Trouble::*;

#[tokio::test]
async fn no_trouble_with_one_of_several_servers_is_trouble_for_a_request() {
    const REQUESTS: usize = 40;
    let origin = origin();
    for start in Servers::EVERY_KIND {
        let mut servers = start();
        let mode = servers.mode();
        let config = CONFIG.replace("url = 'redis://@REDIS@'", &servers.config()).replace("'2s'", "'25ms'");
        let fleet = Fleet::start(&Plan { nodes: 2, config, origin: origin.url(), ..Plan::default() });
        until_all_is_shared(&fleet, &format!("/{mode}/before")).await;
        for trouble in [Full, ReadOnly, Paused, Gone] {
            match trouble {
                Full => servers.all.iter().for_each(|redis| redis.set("maxmemory", "1")),
                ReadOnly => servers.all.iter().for_each(|redis| redis.set("min-replicas-to-write", "5")),
                Paused => servers.master().pause(),
                Gone => servers.master().kill(),
            }
            let began = Instant::now();
            for request in 0.. {
                // They notice after a second, and go on without it.
                if request >= REQUESTS && began.elapsed() > Duration::from_millis(1500) {
                    break;
                }
                let path = format!("/{mode}/{trouble:?}/{request}");
                let answer = get(&fleet.nodes[request % 2], &path, "").await;
                assert!(answer.status == 200 && answer.whole && answer.body == body(&path, ""), "{mode} {trouble:?}: {}", answer.head);
            }
            match trouble {
                Full => servers.all.iter().for_each(|redis| redis.set("maxmemory", "0")),
                ReadOnly => servers.all.iter().for_each(|redis| redis.set("min-replicas-to-write", "0")),
                Paused => servers.all.iter().for_each(Redis::resume),
                Gone => servers.all.iter_mut().filter(|redis| !redis.runs()).for_each(|redis| redis.start_again(Restart::Empty)),
            }
            until_all_is_shared(&fleet, &format!("/{mode}/after-{trouble:?}")).await;
        }
    }
}

/// Waits until one node has what the other stored, wherever the servers keep it.
async fn until_all_is_shared(fleet: &Fleet, folder: &str) {
    const PATHS: usize = 12;
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut shared = 0;
    for number in 0.. {
        let path = format!("{folder}/{number}");
        assert_eq!(get(&fleet.nodes[0], &path, "").await.body, body(&path, ""));
        shared = if is_from_redis(&get(&fleet.nodes[1], &path, "").await) { shared + 1 } else { 0 };
        if shared == PATHS {
            return;
        }
        assert!(Instant::now() < deadline, "{folder}: not all is shared:\n{}\n{}", fleet.nodes[0].log(), fleet.nodes[1].log());
    }
}
