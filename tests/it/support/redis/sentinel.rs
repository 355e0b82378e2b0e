//! Sentinels that watch a master and make a replica the master when it is gone.

use super::{Pki, Redis, encrypted};
use std::net::SocketAddr;
use std::time::Duration;

/// The name under which they know the master.
pub const NAME: &str = "fleet";

/// A Sentinel that was held up for two seconds, by its disk or others' load, does nothing for thirty ("tilt").
const PATIENCE: Duration = Duration::from_secs(60);

/// Three of them, of which two must agree.
pub struct Sentinels {
    servers: Vec<Redis>,
    /// Where they know a server.
    place: fn(&Redis) -> SocketAddr,
}

impl Sentinels {
    /// Watches a master whose replicas are in step. `down_after_ms` is how long it may be silent.
    pub fn watch(master: &Redis, replicas: usize, down_after_ms: u32) -> Self {
        Self::form(Redis::address, master, replicas, down_after_ms, |_| String::new())
    }

    /// The same over TLS; [`Sentinels::tls_addresses`] is where they are asked so.
    pub fn watch_with_tls(pki: &Pki, master: &Redis, replicas: usize, down_after_ms: u32) -> Self {
        Self::form(Redis::tls_address, master, replicas, down_after_ms, |address| encrypted(pki, address))
    }

    fn form(
        place: fn(&Redis) -> SocketAddr,
        master: &Redis,
        replicas: usize,
        down_after_ms: u32,
        own: impl Fn(SocketAddr) -> String,
    ) -> Self {
        let (ip, port) = (place(master).ip(), place(master).port());
        let configuration = format!(
            "sentinel resolve-hostnames no\nsentinel monitor {NAME} {ip} {port} 2\nsentinel down-after-milliseconds {NAME} {down_after_ms}\n\
             sentinel failover-timeout {NAME} 3000\nsentinel parallel-syncs {NAME} 1\n"
        );
        let servers: Vec<_> = (0..3).map(|_| Redis::launch("redis-sentinel", |address| own(address) + &configuration)).collect();
        for server in &servers {
            server.until("the sentinels know of each other and the replicas", |server| {
                let Ok(reply) = server.try_ask(&["SENTINEL", "MASTER", NAME]) else { return false };
                let words: Vec<_> = reply.list().iter().map(super::Reply::text).collect();
                let value = |name: &str| words.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair[1].parse::<usize>().ok());
                value("num-slaves") == Some(replicas) && value("num-other-sentinels") == Some(2)
            });
        }
        Self { servers, place }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Redis::address).collect()
    }

    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Redis::tls_address).collect()
    }

    /// Where the master is now, as the first of them says.
    pub fn master(&self) -> Option<SocketAddr> {
        let reply = self.servers[0].try_ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
        let words: Vec<_> = reply.list().iter().map(super::Reply::text).collect();
        Some(SocketAddr::new(words.first()?.parse().ok()?, words.get(1)?.parse().ok()?))
    }

    /// Waits until they agree that this one is the master, and it knows.
    pub fn until_master(&self, expected: &Redis) {
        self.servers[0].until_within(PATIENCE, "the replica is the master", |_| {
            self.master() == Some((self.place)(expected)) && expected.info("replication", "role").as_deref() == Some("master")
        });
    }

    /// Asks for a failover, the master being there or not.
    pub fn fail_over(&self) {
        // Refused while another is under way: that one does as well.
        let _ = self.servers[0].try_ask(&["SENTINEL", "FAILOVER", NAME]);
    }
}
