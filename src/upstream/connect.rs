//! New connections to an endpoint.

use super::FetchError;
use crate::clock;
use crate::config::settings::ProxyProtocol;
use crate::listener::Announced;
use proxy_header::{ProxiedAddress, ProxyHeader};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

/// The least time an address gets before the next one is tried (RFC 8305 §5 recommends 250 ms between attempts).
const ATTEMPT_MIN: Duration = Duration::from_millis(250);
/// A connection to the first address that answers, in this order.
pub(crate) async fn connect(addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, FetchError> {
    let deadline = Instant::now() + limit;
    let mut last = FetchError::Dns;
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FetchError::ConnectTimeout);
        }
        let share = (left / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX)).max(ATTEMPT_MIN).min(left);
        last = match clock::timeout(share, pin!(TcpStream::connect(address))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true); // a connection that cannot do it still works
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => FetchError::Refused,
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
                FetchError::Unroutable
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => FetchError::ConnectTimeout,
            Ok(Err(error)) => FetchError::Connect(error.to_string()),
            Err(_) => FetchError::ConnectTimeout,
        };
    }
    Err(last)
}

/// A connection to a socket of this machine. It is used like one over the network: the type owns a descriptor.
pub(super) async fn connect_socket(path: &Path, limit: Duration) -> Result<TcpStream, FetchError> {
    let connected = clock::timeout(limit, pin!(UnixStream::connect(path))).await.map_err(|_| FetchError::ConnectTimeout)?;
    let plain = |stream: UnixStream| TcpStream::from_std(OwnedFd::from(stream.into_std()?).into());
    connected.and_then(plain).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => FetchError::Refused,
        _ => FetchError::Connect(error.to_string()),
    })
}

/// Says whose connection it is, before anything else.
pub(super) async fn announce(
    stream: &mut TcpStream,
    version: ProxyProtocol,
    client: Option<Announced>,
    deadline: Instant,
) -> Result<(), FetchError> {
    let header = announcement(version, client).ok_or(FetchError::InvalidRequest("addresses that the PROXY protocol cannot tell"))?;
    match clock::timeout_at(deadline, pin!(stream.write_all(&header))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(FetchError::Connect(error.to_string())),
        Err(_) => Err(FetchError::ConnectTimeout),
    }
}

/// The header; without a client we ask for ourselves (`LOCAL`, `UNKNOWN`).
fn announcement(version: ProxyProtocol, client: Option<Announced>) -> Option<Vec<u8>> {
    let header = client.map_or_else(ProxyHeader::with_local, |Announced { client, local }| {
        let (client, local) = of_one_family(client, local);
        ProxyHeader::with_address(ProxiedAddress::stream(client, local))
    });
    let mut bytes = Vec::new();
    match version {
        ProxyProtocol::V1 => header.encode_v1(&mut bytes).ok()?,
        ProxyProtocol::V2 => header.encode_v2(&mut bytes).ok()?,
    }
    Some(bytes)
}

/// Addresses of IPv4 that came as IPv6 are what they are; of two families both are IPv6.
fn of_one_family(client: SocketAddr, local: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (client, local) = (plain(client), plain(local));
    let as_ipv6 = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if client.is_ipv4() == local.is_ipv4() { (client, local) } else { (as_ipv6(client), as_ipv6(local)) }
}

/// The order in which addresses are tried: families take turns (RFC 8305 §4), the family of the first address first,
/// and within a family the start moves with `turn`, so that the addresses of one name share the connections.
pub(super) fn order(addresses: &[IpAddr], turn: usize, port: u16) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(IpAddr::is_ipv4);
    let family = |same: bool| {
        let members: Vec<IpAddr> = addresses.iter().copied().filter(|address| (address.is_ipv4() == first_is_v4) == same).collect();
        let start = turn.checked_rem(members.len()).unwrap_or(0);
        (0..members.len()).map(move |step| SocketAddr::new(members[(start + step) % members.len()], port))
    };
    let (mut one, mut other) = (family(true), family(false));
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(one.next());
        ordered.extend(other.next());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ordered(addresses: &[&str], turn: usize) -> Vec<String> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        order(&addresses, turn, 80).iter().map(|address| address.ip().to_string()).collect()
    }

    #[test]
    fn what_is_announced_is_read_as_it_was_meant() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (client, local, want) in [
            ("192.0.2.1:4711", "[::ffff:192.0.2.9]:80", ("192.0.2.1:4711", "192.0.2.9:80")),
            ("[2001:db8::1]:1", "[2001:db8::2]:2", ("[2001:db8::1]:1", "[2001:db8::2]:2")),
            ("192.0.2.1:4711", "[2001:db8::2]:2", ("[::ffff:192.0.2.1]:4711", "[2001:db8::2]:2")),
        ] {
            let announced = Announced { client: address(client), local: address(local) };
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let read = crate::listener::proxy_protocol::parse(&announcement(version, Some(announced)).unwrap()).unwrap();
                assert_eq!(read, Some(Announced { client: address(want.0), local: address(want.1) }));
            }
        }
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            assert_eq!(crate::listener::proxy_protocol::parse(&announcement(version, None).unwrap()).unwrap(), None);
        }
    }

    #[test]
    fn families_take_turns_and_each_rotates() {
        assert_eq!(ordered(&["1.1.1.1", "1.1.1.2", "::1"], 0), ["1.1.1.1", "::1", "1.1.1.2"]);
        assert_eq!(ordered(&["1.1.1.1", "1.1.1.2", "::1"], 1), ["1.1.1.2", "::1", "1.1.1.1"]);
        assert_eq!(ordered(&["::1", "1.1.1.1", "1.1.1.2"], 3), ["::1", "1.1.1.2", "1.1.1.1"]);
        assert!(ordered(&[], 5).is_empty());
    }

    proptest! {
        #[test]
        fn every_address_is_tried_once(addresses in proptest::collection::hash_set(any::<IpAddr>(), 0..8), turn: usize) {
            let addresses: Vec<_> = addresses.into_iter().collect();
            let mut tried: Vec<_> = order(&addresses, turn, 1).iter().map(SocketAddr::ip).collect();
            let mut want = addresses;
            tried.sort();
            want.sort();
            prop_assert_eq!(tried, want);
        }
    }
}
