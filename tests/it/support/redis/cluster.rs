//! A cluster of masters that share the slots between them.

use super::Redis;
use std::net::SocketAddr;

const SLOTS: usize = 16_384;

/// Three masters, without replicas.
pub struct Cluster {
    pub masters: Vec<Redis>,
}

impl Cluster {
    pub fn start() -> Self {
        let options = |address: SocketAddr| {
            let (ip, port) = (address.ip(), address.port());
            format!(
                "save ''\nappendonly no\ncluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout 2000\n\
                 cluster-announce-ip {ip}\ncluster-announce-port {port}\n"
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
            let address = other.address();
            masters[0].ask(&["CLUSTER", "MEET", &address.ip().to_string(), &address.port().to_string()]);
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
}
