//! TLS between the nodes.

use super::{CONFIG, SECRET, Stage, ask, edge_config, fresh, hop, passed, signed, until_passed};
use crate::support::origin::{PATIENCE, eventually};
use crate::support::pki::{EC, Pki, Secure};
use crate::support::process::Process;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the certificates of all nodes are for.
const NAME: &str = "node.fleet";

/// An authority, and what it made for the nodes.
fn authority() -> Pki {
    let pki = Pki::new();
    pki.issue("node", &[NAME], EC, 30);
    pki
}

fn tls_table(pki: &Pki) -> String {
    let folder = pki.folder().display();
    format!(
        "[shield.tls]\ncert_file = '{folder}/node.pem'\nkey_file = '{folder}/node.key'\nca_file = '{folder}/ca.pem'\nserver_name = '{NAME}'\n"
    )
}

/// Three nodes that are certified by one authority.
fn stage(pki: &Pki) -> Stage {
    let config = CONFIG.replace("@PEERS@", "@SECURE_PEERS@").replace("workers = 2", "workers = 2\ncertificate_poll = '50ms'");
    Stage::with_config(&format!("{config}{}", tls_table(pki)), |request| fresh(request.path.clone()))
}

/// A path is asked for at a node that does not own it, and the owner answers.
async fn reaches(stage: &Stage, asker: usize, owner: usize, folder: &str) {
    let deadline = Instant::now() + PATIENCE;
    for attempt in 0.. {
        let path = stage.path_below(&format!("{folder}/{asker}-{owner}-{attempt}"), owner);
        let answer = stage.get(asker, &path).await;
        assert_eq!((answer.status, answer.text()), (200, path.as_str()));
        if answer.all("cache-status").contains("detail=SHIELD") && stage.origin.count(&path) == 1 {
            return;
        }
        assert!(Instant::now() < deadline, "node {asker} never gets an answer of node {owner}: {}", stage.node(asker).log());
    }
}

#[tokio::test]
async fn nodes_that_show_each_other_certificates_are_one_fleet() {
    let pki = authority();
    let stage = stage(&pki);
    for (asker, owner) in [(0, 1), (1, 2), (2, 0)] {
        reaches(&stage, asker, owner, "/secure").await;
    }
    let requests = |outcome: &str| stage.sum("tiercel_shield_requests_total", &[&format!("outcome=\"{outcome}\"")]);
    assert_eq!((requests("answered"), requests("failed")), (3.0, 0.0), "at the first try each");
    assert!(stage.sum("tiercel_tls_handshakes_total", &["version=\"1.3\""]) >= 3.0);
}

#[tokio::test]
async fn who_shows_no_certificate_of_the_fleet_does_not_come_as_far_as_asking() {
    let (pki, others) = (authority(), authority());
    let stage = stage(&pki);
    let door = stage.node(0).peer;
    let mut plain = TcpStream::connect(door).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    let mut heard = Vec::new();
    let _ = plain.read_to_end(&mut heard).await; // it may be reset
    assert!(heard.first().is_none_or(|kind| *kind == 0x15), "at most an alert: {heard:?}");
    let stranger = others.path("node");
    for (who, config) in [("nobody", pki.client()), ("a node of another fleet", pki.client_showing(&stranger))] {
        let refused = async {
            let mut secure = Secure::connect(door, NAME, &Arc::new(config)).await?;
            secure.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await
        };
        assert!(refused.await.is_err(), "{who} is heard");
    }
    assert_eq!(stage.node(0).metric("tiercel_shield_requests_total", &["peer_role=\"owner\""]), Some(0.0));
    // A certificate alone is not enough.
    let certified = Secure::connect(door, NAME, &Arc::new(pki.client_showing(&pki.path("node")))).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(certified.stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let forged = signed(&hop(1), "another secret of theirs", "/a");
    assert_eq!(ask(&mut sender, "/a", &[("tiercel-hop", &forged)]).await.0, 403);
    let good = signed(&hop(2), SECRET, "/a");
    assert_eq!(ask(&mut sender, "/a", &[("tiercel-hop", &good)]).await.0, 200);
}

#[tokio::test]
async fn a_node_of_another_authority_is_not_asked_and_the_log_says_why() {
    let (pki, others) = (authority(), authority());
    let stage = stage(&pki);
    let (folder, mut number) = (tempfile::tempdir().unwrap(), 0);
    let peers = format!("'https://{}'", stage.node(0).peer);
    // It shows what the fleet takes, and does not take what the fleet shows.
    std::fs::copy(others.path("ca.pem"), pki.path("others.pem")).unwrap();
    let table = tls_table(&pki).replace("ca.pem", "others.pem");
    let edge = Process::with_config(folder.path(), &edge_text(&stage, &peers, &table));
    for _ in 0..4 {
        assert_eq!(passed(&stage, edge.http(), &mut number).await, 1, "the origin answers, asked by the edge itself");
    }
    eventually("the log says whose certificate", || edge.err.all().iter().any(|line| line.contains("the certificate of node.fleet"))).await;
}

/// An edge without `server_name`, and what the certificates of nodes are for.
fn edge(stage: &Stage, pki: &Pki, peers: &str, folder: &Path) -> Process {
    let table = tls_table(pki).replace(&format!("server_name = '{NAME}'\n"), "");
    Process::with_config(folder, &edge_text(stage, peers, &table))
}

fn edge_text(stage: &Stage, peers: &str, table: &str) -> String {
    format!("{}{table}[listeners.http]\naddress = '127.0.0.1:0'\n[admin]\naddress = '127.0.0.1:0'\n", edge_config(stage, peers))
}

#[tokio::test]
async fn without_a_name_for_all_a_certificate_is_for_the_host_among_the_peers() {
    let (pki, mut number) = (Pki::new(), 0);
    // The addresses of nodes are not known before they begin: they have other certificates until then.
    pki.issue("node", &[NAME], EC, 30);
    let mut stage = stage(&pki);
    let node = stage.node(0).peer;
    let folder = tempfile::tempdir().unwrap();
    let named = edge(&stage, &pki, &format!("'https://{node}'"), folder.path());
    assert_eq!(passed(&stage, named.http(), &mut number).await, 1, "the certificate is not for the address");
    pki.issue("node", &[NAME, &node.ip().to_string()], EC, 30);
    stage.fleet.nodes[0].kill();
    stage.fleet.nodes[0].start();
    stage.node(0).until_ready();
    until_passed(&stage, named.http(), 2, &mut number).await;
}

#[tokio::test]
async fn a_reload_brings_tls_to_a_node() {
    let (pki, folder, mut number) = (authority(), tempfile::tempdir().unwrap(), 0);
    let stage = stage(&pki);
    let node = stage.node(0).peer;
    let edge = Process::with_config(folder.path(), &edge_text(&stage, &format!("'http://{node}'"), ""));
    assert_eq!(passed(&stage, edge.http(), &mut number).await, 1, "they do not understand each other");
    // The listener stays where it is.
    let text = edge_text(&stage, &format!("'https://{node}'"), &tls_table(&pki));
    std::fs::write(folder.path().join("tiercel.toml"), text).unwrap();
    edge.signal(1);
    until_passed(&stage, edge.http(), 2, &mut number).await;
}

#[tokio::test]
async fn an_authority_is_exchanged_under_running_nodes() {
    let (pki, next) = (authority(), authority());
    let mut stage = stage(&pki);
    reaches(&stage, 0, 2, "/before").await;
    for file in ["node.pem", "node.key", "ca.pem"] {
        put(&next.path(file), &pki.path(file));
    }
    // One node begins anew, and knows nothing else: the others meet it by what they read while they ran.
    stage.fleet.nodes[2].kill();
    stage.fleet.nodes[2].start();
    stage.node(2).until_ready();
    reaches(&stage, 0, 2, "/after").await;
    reaches(&stage, 2, 0, "/after").await;
}

/// There all at once.
fn put(from: &Path, to: &Path) {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).unwrap();
    std::fs::rename(new, to).unwrap();
}
