//! The PROXY protocol: who the client is, as a balancer says it before anything else, in version 1 or 2.
//!
//! No byte behind the header is taken: what follows is for whoever reads the connection next. Fields beyond the addresses
//! (TLVs) are passed over.

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest line of version 1, and the longest header of version 2 that is taken.
const LINE_MAX: usize = 107;
const BINARY_MAX: usize = 4096;
/// No header is shorter: `PROXY UNKNOWN` and its line end.
const SHORTEST: usize = 15;
const LINE: &[u8] = b"PROXY ";
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2 before the addresses.
const BINARY_FIXED: usize = 16;

/// The ends of the connection of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    pub client: SocketAddr,
    pub local: SocketAddr,
}

/// Reads a header; `None`: the balancer speaks for itself, as in a health check, or of no address that we know. Errors are of
/// kind `InvalidData` where what came is no header.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<Announced>> {
    let mut header = Vec::with_capacity(LINE_MAX);
    loop {
        let most = match next(&header) {
            Next::Whole => break,
            Next::Bytes(count) => count,
            Next::Line(most) => {
                let mut seen = [0; LINE_MAX];
                let there = stream.peek(&mut seen[..most]).await?;
                memchr::memchr(b'\n', &seen[..there]).map_or(there, |end| end + 1)
            }
            Next::Not => return Err(io::ErrorKind::InvalidData.into()),
        };
        if most == 0 || stream.take(most as u64).read_buf(&mut header).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    parse(&header)
}

/// What is to be read behind what was.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: the header is there.
    Whole,
    /// So many bytes, which are all of the header.
    Bytes(usize),
    /// Up to the end of a line, at most so many bytes.
    Line(usize),
    /// It is no header.
    Not,
}

fn next(header: &[u8]) -> Next {
    let begins = |with: &[u8]| header.iter().zip(with).all(|(is, should)| is == should);
    let is_binary = begins(BINARY);
    if !is_binary && !begins(LINE) {
        return Next::Not;
    }
    if header.len() < SHORTEST {
        return Next::Bytes(SHORTEST - header.len());
    }
    if is_binary {
        let length = header.get(BINARY_FIXED - 2..BINARY_FIXED).map_or(0, |length| usize::from(u16::from_be_bytes([length[0], length[1]])));
        return match (BINARY_FIXED + length).checked_sub(header.len()) {
            _ if BINARY_FIXED + length > BINARY_MAX => Next::Not,
            None | Some(0) => Next::Whole,
            Some(missing) => Next::Bytes(missing),
        };
    }
    match LINE_MAX.checked_sub(header.len()) {
        _ if header.ends_with(b"\r\n") => Next::Whole,
        None | Some(0) => Next::Not,
        Some(most) => Next::Line(most),
    }
}

/// A whole header.
pub fn parse(header: &[u8]) -> io::Result<Option<Announced>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default()).map_err(|_| invalid())?;
    if length != header.len() {
        return Err(invalid());
    }
    let of_streams = parsed.proxied_address().filter(|addresses| addresses.protocol == Protocol::Stream);
    Ok(of_streams.map(|addresses| Announced { client: addresses.source, local: addresses.destination }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proxy_header::ProxiedAddress;
    use std::net::IpAddr;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// What is read of `pieces`, each sent when the one before was taken, and what is left behind the header.
    async fn read_of(pieces: &[&[u8]]) -> (io::Result<Option<Announced>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        sender.set_nodelay(true).unwrap();
        let send = async move {
            for piece in pieces {
                sender.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (read, ()) = tokio::join!(read(&mut stream), send);
        let mut left = Vec::new();
        stream.read_to_end(&mut left).await.unwrap();
        (read, left)
    }

    fn binary(addresses: Option<ProxiedAddress>) -> Vec<u8> {
        let header = addresses.map_or_else(ProxyHeader::with_local, ProxyHeader::with_address);
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    fn announced(client: &str, local: &str) -> Announced {
        Announced { client: client.parse().unwrap(), local: local.parse().unwrap() }
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_what_follows() {
        let v4 = announced("192.0.2.1:51000", "198.51.100.2:443");
        let v6 = announced("[2001:db8::1]:51000", "[2001:db8::2]:443");
        let of = |announced: Announced| Some(ProxiedAddress::stream(announced.client, announced.local));
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 51000 443\r\n".to_vec(), Some(v4)),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 51000 443\r\n".to_vec(), Some(v6)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(of(v4)), Some(v4)),
            (binary(of(v6)), Some(v6)),
            (binary(None), None),
            (binary(Some(ProxiedAddress::datagram(v4.client, v4.local))), None),
        ] {
            let follows = b"GET / HTTP/1.1\r\n\r\n";
            let at_once = [&header[..], follows].concat();
            let bytes: Vec<&[u8]> = at_once.chunks(1).collect();
            for pieces in [&[&at_once[..]][..], &bytes] {
                let (read, left) = read_of(pieces).await;
                assert_eq!((read.unwrap(), &left[..]), (expected, &follows[..]), "{}", String::from_utf8_lossy(&header));
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_before_it_is_all_there() {
        let mut long = binary(None);
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 1 2 3 4\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 99999\r\n",
            &long,
            &endless,
        ] {
            let (read, _) = read_of(&[bytes]).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData, "{}", String::from_utf8_lossy(bytes));
        }
        let (read, _) = read_of(&[b"PROXY TCP4 192.0.2.1"]).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn any_addresses_are_read_back(client: (IpAddr, u16), local: (IpAddr, u16)) {
            prop_assume!(client.0.is_ipv4() == local.0.is_ipv4());
            let (client, local) = (SocketAddr::from(client), SocketAddr::from(local));
            let header = binary(Some(ProxiedAddress::stream(client, local)));
            prop_assert_eq!(next(&header), Next::Whole);
            prop_assert_eq!(parse(&header).unwrap(), Some(Announced { client, local }));
        }

        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>, binary: bool, length: u16) {
            let mut all = if binary { BINARY.to_vec() } else { LINE.to_vec() };
            all.extend_from_slice(&[0x21, 0x11]);
            all.extend_from_slice(&length.to_be_bytes());
            all.extend(bytes);
            for end in 0..=all.len() {
                match next(&all[..end]) {
                    Next::Whole => {
                        let _ = parse(&all[..end]);
                        break;
                    }
                    Next::Bytes(count) | Next::Line(count) => prop_assert!(count > 0),
                    Next::Not => break,
                }
            }
        }
    }
}
