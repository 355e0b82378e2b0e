//! The process from start to end: configurations, signals, reloads, limits, logs, workers, the demo. The binary is run as
//! users run it.

mod demo;
mod drain;
mod limits;
mod logs;
mod reload;
mod start;
mod workers;

use crate::support::client::{Answer, Client};
use crate::support::origin::PATIENCE;
use crate::support::process;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A GET on a connection of its own.
async fn get(address: SocketAddr, path: &str) -> Answer {
    get_with(address, path, "").await
}

/// The same with further field lines, each with its line end.
async fn get_with(address: SocketAddr, path: &str, lines: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.ask(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{lines}\r\n")).await
}

async fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    let mut client = Client::connect(address).await;
    let lines = format!("Host: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    client.ask(format!("POST {path} HTTP/1.1\r\n{lines}\r\n\r\n{body}")).await
}

/// A GET that leaves the connection open.
fn keeping(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test.example\r\n\r\n")
}

/// The sum of all series of this name whose labels hold all of these texts.
async fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let answer = get(admin, "/metrics").await;
    assert_eq!(answer.status, 200);
    answer
        .text()
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number"))
        .sum()
}

async fn bound(admin: SocketAddr, bound: &str) -> f64 {
    metric(admin, "tiercel_bound_reached_total", &[&format!("bound=\"{bound}\"")]).await
}

/// Waits until nothing is being fetched: whoever asked has an answer before it is stored.
async fn until_settled(admin: SocketAddr) {
    until("the end of all fetches", || metric(admin, "tiercel_coalesce_in_flight", &[]), |flights| *flights == 0.0).await;
}

/// Asks again and again until the answer is right.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> T, right: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if right(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
