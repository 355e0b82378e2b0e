//! A cluster of masters that share the slots between them.

use super::{Pki, Redis, encrypted};
use std::net::SocketAddr;

const SLOTS: usize = 16_384;

/// Three masters, without replicas.
pub struct Cluster {
    pub masters: Vec<Redis>,
}

impl Cluster {
    pub fn start() -> Self {
        Self::form(Redis::address, |_| String::new())
    }

    /// They speak TLS to each other, and take connections with it at [`Cluster::tls_addresses`].
    pub fn with_tls(pki: &Pki) -> Self {
        Self::form(Redis::tls_address, |address| format!("{}tls-cluster yes\n", encrypted(pki, address)))
    }

    /// `place`: where they find each other.
    fn form(place: fn(&Redis) -> SocketAddr, own: impl Fn(SocketAddr) -> String) -> Self {
        let options = |address: SocketAddr| {
            let (ip, bus) = (address.ip(), bus_port(address));
            format!(
                "save ''\nappendonly no\ncluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout 2000\n\
                 cluster-announce-ip {ip}\ncluster-port {bus}\n{}",
                own(address)
            )
        };
        let masters: Vec<_> = (0..3).map(|_| Redis::launch("redis-server", options)).collect();
        for (number, master) in masters.iter().enumerate() {
            let (first, end) = (number * SLOTS / masters.len(), (number + 1) * SLOTS / masters.len());
            master.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(end - 1).to_string()]);
            let epoch = (number + 1).to_string();
            master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        }
        for other in &masters[1..] {
            let (address, bus) = (place(other), bus_port(other.address()).to_string());
            masters[0].ask(&["CLUSTER", "MEET", &address.ip().to_string(), &address.port().to_string(), &bus]);
        }
        for master in &masters {
            master.until("every node sees the whole cluster", |redis| {
                let Ok(reply) = redis.try_ask(&["CLUSTER", "INFO"]) else { return false };
                let text = reply.text();
                ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"].iter().all(|line| text.contains(line))
            });
        }
        Self { masters }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.masters.iter().map(Redis::address).collect()
    }

    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.masters.iter().map(Redis::tls_address).collect()
    }
}

/// Where masters speak to each other: nobody else is at that address.
const fn bus_port(address: SocketAddr) -> u16 {
    address.port() + 5_000
}
