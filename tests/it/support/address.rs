//! Addresses that nobody else has.

use rand::RngExt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// A loopback address of which no other test knows, with a port that is free and that no outgoing connection is given.
///
/// Who stops listening there finds it free again: that is why it is not a port of 127.0.0.1.
pub fn free() -> SocketAddr {
    let mut random = rand::rng();
    loop {
        let host = Ipv4Addr::new(127, random.random_range(1..=254), random.random_range(0..=255), random.random_range(1..=254));
        let address = SocketAddr::from((host, random.random_range(10_000..20_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
