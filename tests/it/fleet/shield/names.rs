//! Peers behind a name: as many as it has addresses, and others when it has others.

use super::{CONFIG, HOST, PATIENCE, fresh};
use crate::support::address;
use crate::support::client::Client;
use crate::support::origin::Origin;
use crate::support::process::{Process, command, write_config};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;

const NAME: &str = "peers.test";

/// Addresses at different places with one port.
fn places(count: usize) -> Vec<SocketAddr> {
    let mut places = vec![address::free()];
    while places.len() < count {
        let place = SocketAddr::new(address::free().ip(), places[0].port());
        if TcpListener::bind(place).is_ok() {
            places.push(place);
        }
    }
    places
}

/// A node, called by this name in Cache-Status. `hosts`: the file that it has in the place of `/etc/hosts`.
fn start(name: &str, shield: &str, origin: &Origin, hosts: Option<&Path>) -> (Process, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let listeners = "[listeners.http]\naddress = '127.0.0.1:0'\n[admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n";
    let config = CONFIG.replace("[server]\n", &format!("[server]\nname = '{name}'\n")).replace("@ORIGIN@", &origin.url());
    let config = config.replace("listen = '@PEER@'\npeers = [@PEERS@]\n", shield) + listeners;
    let file = write_config(folder.path(), &config);
    let mut plain = command(&["run", "--config", file.to_str().expect("a UTF-8 path")]);
    let process = match hosts {
        None => Process::spawn(&mut plain),
        Some(hosts) => {
            let mut own = Command::new("unshare");
            own.args(["--map-root-user", "--mount", "sh", "-ec", "mount --bind \"$0\" /etc/hosts; exec \"$@\""]);
            Process::spawn(own.arg(hosts).arg(plain.get_program()).args(plain.get_args()))
        }
    };
    process.http();
    (process, folder)
}

/// Asks for one path after the other until these nodes answer, and no other does.
async fn until_answered_by(expected: &[&str], asker: &Process, round: &str) {
    const PATHS: usize = 40;
    let deadline = Instant::now() + PATIENCE;
    for attempt in 0.. {
        let mut answering = BTreeSet::new();
        for number in 0..PATHS {
            let path = format!("/{round}/{attempt}/{number}");
            let mut client = Client::connect(asker.http()).await;
            let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
            assert_eq!((answer.status, answer.text()), (200, path.as_str()), "{}", answer.head);
            // The farthest from the client stands first.
            let said = answer.all("cache-status");
            answering.insert(said.split(';').next().unwrap_or_default().to_owned());
        }
        if answering.iter().map(String::as_str).eq(expected.iter().copied()) {
            return;
        }
        assert!(Instant::now() < deadline, "{round}: {answering:?}, not {expected:?}:\n{}", asker.err.all().join("\n"));
    }
}

#[tokio::test]
async fn all_addresses_of_a_name_are_peers_and_so_are_those_that_it_gets_later() {
    let origin = Origin::start(|request| fresh(request.path.clone()));
    let (places, folder) = (places(3), tempfile::tempdir().expect("a folder"));
    let peers = places.iter().map(|place| format!("'http://{place}'")).collect::<Vec<_>>().join(", ");
    let owner = |(place, name)| start(name, &format!("listen = '{place}'\npeers = [{peers}]\n"), &origin, None);
    let _owners: Vec<_> = places.iter().zip(["a", "b", "c"]).map(owner).collect();
    let hosts = folder.path().join("hosts");
    // Written anew, not replaced: the process has this very file.
    let lead = |to: &[usize]| {
        let lines: String = to.iter().map(|&at| format!("{} {NAME}\n", places[at].ip())).collect();
        std::fs::write(&hosts, lines).expect("a writable folder");
    };
    lead(&[0, 1]);
    let shield = format!("peers = ['dns:{NAME}:{}']\n", places[0].port());
    let (asker, _folder) = start("asker", &shield, &origin, Some(&hosts));
    until_answered_by(&["a", "b"], &asker, "first").await;
    lead(&[1, 2]);
    until_answered_by(&["b", "c"], &asker, "later").await;
    // Nobody has the name any more: those that had it last stay.
    lead(&[]);
    let failed = || asker.err.all().iter().any(|line| line.contains("name not resolved"));
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        until_answered_by(&["b", "c"], &asker, &format!("gone-{round}")).await;
        if failed() {
            return;
        }
        assert!(Instant::now() < deadline, "it is never asked for again:\n{}", asker.err.all().join("\n"));
    }
}
