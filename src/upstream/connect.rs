//! New connections to an endpoint.

use super::FetchError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
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
        last = match tokio::time::timeout(share, TcpStream::connect(address)).await {
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
