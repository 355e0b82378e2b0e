//! Both runtimes, and connections shared among workers.

use super::process::{Process, TERMINATE, config};
use super::{get, keeping, metric, post, until, until_settled};
use crate::support::client::Client;
use crate::support::origin::{Origin, Script};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

fn origin() -> Origin {
    Origin::start(|_| Script::ok("fresh").header("cache-control", "max-age=60").header("surrogate-key", "all"))
}

fn started(origin: &Origin, runtime: &str, workers: usize) -> Process {
    started_with(origin, runtime, workers, "")
}

fn started_with(origin: &Origin, runtime: &str, workers: usize, of_listener: &str) -> Process {
    let folder = tempfile::tempdir().unwrap();
    let text = config(&origin.url(), &format!("[server]\nworkers = {workers}\nruntime = '{runtime}'\n"));
    let process = Process::with_config(folder.path(), &text.replace("[listeners.http]\n", &format!("[listeners.http]\n{of_listener}")));
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
        // Nobody has fewer than three quarters of what another has, but for the last one that came.
        assert!(loads.iter().all(|load| (27..=37).contains(load)), "{runtime}: {loads:?}");
        let counts = until("all are counted", || by_worker(process.admin()), |counts| counts.iter().sum::<f64>() == 64.0).await;
        assert!(counts.iter().all(|count| *count >= 26.0), "{runtime}: {counts:?}");
    }
}

/// Each connection of the load asks as often as any other, so a worker's share of requests is that of connections.
#[tokio::test]
async fn sixteen_connections_of_either_protocol_leave_no_worker_behind() {
    for protocol in [&["--h1"][..], &["-m", "100"]] {
        let origin = origin();
        let process = started_with(&origin, "per_core", 2, "h2c = true\n");
        let url = format!("http://{}/a", process.http());
        let load = [&["-n", "16000", "-c", "16", &url][..], protocol].concat();
        let report = Command::new("h2load").args(&load).stdin(Stdio::null()).output().expect("h2load runs");
        let report = String::from_utf8_lossy(&report.stdout);
        assert!(report.contains("16000 succeeded, 0 failed, 0 errored, 0 timeout") && report.contains("16000 2xx"), "{report}");
        let counts = until("all are counted", || by_worker(process.admin()), |counts| counts.iter().sum::<f64>() == 16_000.0).await;
        assert!(counts.iter().all(|count| *count >= 0.6 * (16_000.0 - count)), "{protocol:?}: {counts:?}");
    }
}

async fn by_worker(admin: SocketAddr) -> [f64; 2] {
    let of = async |worker: &str| metric(admin, "tiercel_worker_requests_total", &[worker]).await;
    [of("worker=\"0\"").await, of("worker=\"1\"").await]
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
