//! Redis as several servers: a Cluster, or a master with a replica that Sentinels watch.

use super::{Cluster, Redis, Sentinels, sentinel};
use std::net::SocketAddr;

pub struct Servers {
    /// All masters of a Cluster; else the first master and its replica.
    pub all: Vec<Redis>,
    sentinels: Option<Sentinels>,
}

impl Servers {
    pub const EVERY_KIND: [fn() -> Self; 2] = [Self::cluster, Self::watched];

    pub fn cluster() -> Self {
        Self { all: Cluster::start().masters, sentinels: None }
    }

    pub fn watched() -> Self {
        let master = Redis::start();
        let replica = Redis::replica_of(&master, &[]);
        let sentinels = Sentinels::watch(&master, 1, 500);
        Self { all: vec![master, replica], sentinels: Some(sentinels) }
    }

    /// `mode`, of `[cache.redis]`.
    pub fn mode(&self) -> &'static str {
        if self.sentinels.is_some() { "sentinel" } else { "cluster" }
    }

    /// The keys of `[cache.redis]` that lead there.
    pub fn config(&self) -> String {
        let urls = |addresses: &[SocketAddr]| addresses.iter().map(|address| format!("'redis://{address}'")).collect::<Vec<_>>().join(", ");
        match &self.sentinels {
            Some(sentinels) => {
                format!("url = [{}]\nmode = 'sentinel'\nsentinel_master = '{}'", urls(&sentinels.addresses()), sentinel::NAME)
            }
            None => format!("url = [{}]\nmode = 'cluster'", urls(&self.all.iter().map(Redis::address).collect::<Vec<_>>())),
        }
    }

    /// Waits until the Sentinels agree that this one is the master.
    pub fn until_master(&self, number: usize) {
        self.sentinels.as_ref().expect("Sentinels").until_master(&self.all[number]);
    }

    /// A server that takes writes now, or did last.
    pub fn master(&mut self) -> &mut Redis {
        let named = self.sentinels.as_ref().and_then(Sentinels::master);
        let at = self.all.iter().position(|redis| named == Some(redis.address())).unwrap_or(0);
        &mut self.all[at]
    }
}
