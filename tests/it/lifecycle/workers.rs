//! Both runtimes, and connections shared among workers.

use super::process::{Process, TERMINATE, config};
use super::{get, keeping, metric, post, until, until_settled};
use crate::support::client::Client;
use crate::support::origin::{Origin, Script};
use std::net::SocketAddr;

fn origin() -> Origin {
    Origin::start(|_| Script::ok("fresh").header("cache-control", "max-age=60").header("surrogate-key", "all"))
}

fn started(origin: &Origin, runtime: &str, workers: usize) -> Process {
    let folder = tempfile::tempdir().unwrap();
    let text = config(&origin.url(), &format!("[server]\nworkers = {workers}\nruntime = '{runtime}'\n"));
    let process = Process::with_config(folder.path(), &text);
    process.admin();
    process
}

async fn loads(admin: SocketAddr) -> Vec<u64> {
    let status: serde_json::Value = serde_json::from_slice(&get(admin, "/v1/status").await.body).unwrap();
    status["connections_by_worker"].as_array().unwrap().iter().map(|load| load.as_u64().unwrap()).collect()
}

#[tokio::test]
async fn both_runtimes_serve_store_collapse_purge_and_end() {
    for runtime in ["per_core", "shared"] {
        let origin = origin();
        let mut process = started(&origin, runtime, 2);
        let (http, admin) = (process.http(), process.admin());
        let miss = get(http, "/a").await;
        assert!(miss.field("cache-status").is_some_and(|status| status.contains("fwd=uri-miss")), "{runtime}: {}", miss.head);
        until_settled(admin).await;
        let hit = get(http, "/a").await;
        assert!(hit.field("cache-status").is_some_and(|status| status.contains("hit")), "{runtime}: {}", hit.head);
        let many: Vec<_> = (0..50).map(|_| tokio::spawn(async move { get(http, "/together").await })).collect();
        for answer in many {
            assert_eq!(answer.await.unwrap().text(), "fresh");
        }
        assert_eq!(origin.count("/together"), 1, "{runtime}");
        assert_eq!(post(admin, "/v1/purge", r#"{"tags":["all"]}"#).await.status, 200);
        assert_eq!(get(http, "/a").await.text(), "fresh");
        assert_eq!(origin.count("/a"), 2, "{runtime}");
        until("all are counted", || metric(admin, "tiercel_requests_total", &[]), |count| *count == 53.0).await;
        process.signal(TERMINATE);
        assert_eq!(process.end(), Some(0), "{runtime}");
    }
}

#[tokio::test]
async fn two_workers_share_what_is_accepted() {
    for runtime in ["per_core", "shared"] {
        let origin = origin();
        let process = started(&origin, runtime, 2);
        let mut clients = Vec::new();
        for _ in 0..64 {
            let mut client = Client::connect(process.http()).await;
            assert_eq!(client.ask(keeping("/a")).await.status, 200);
            clients.push(client);
        }
        let loads = loads(process.admin()).await;
        assert_eq!(loads.iter().sum::<u64>(), 64, "{runtime}: {loads:?}");
        // Nobody has more than half as much again as the mean.
        assert!(loads.iter().all(|load| (16..=49).contains(load)), "{runtime}: {loads:?}");
        let counted = async |worker: &str| metric(process.admin(), "tiercel_worker_requests_total", &[worker]).await;
        until("all are counted", || metric(process.admin(), "tiercel_worker_requests_total", &[]), |count| *count == 64.0).await;
        let counts = [counted("worker=\"0\"").await, counted("worker=\"1\"").await];
        assert!(counts.iter().all(|count| *count >= 15.0), "{runtime}: {counts:?}");
    }
}

/// The kernel spreads connections by chance; a worker that has eight while the other has none gives the next one away.
#[tokio::test]
async fn a_loaded_worker_hands_connections_over() {
    let origin = origin();
    let process = started(&origin, "per_core", 2);
    let (http, admin) = (process.http(), process.admin());
    let connect = async || {
        let mut client = Client::connect(http).await;
        assert_eq!(client.ask(keeping("/a")).await.status, 200);
        client
    };
    let mut kept = Vec::new();
    while kept.len() < 8 {
        let before = loads(admin).await;
        let client = connect().await;
        if loads(admin).await[0] > before[0] {
            kept.push(client);
        } else {
            drop(client);
            until("it is counted out", || loads(admin), |loads| loads[1] == before[1]).await;
        }
    }
    // Without handing over, every other one of these would stay with the first worker.
    for _ in 0..24 {
        let client = connect().await;
        assert_eq!(loads(admin).await, [8, 1]);
        drop(client);
        until("it is counted out", || loads(admin), |loads| *loads == [8, 0]).await;
    }
}
