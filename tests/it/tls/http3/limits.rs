//! Bounds on connections over HTTP/3, which are those of the other protocols.

use super::{Client, GET, HOST, answer, dial, head, request, start};
use crate::support::origin::{Gate, Origin, PATIENCE, Script};
use crate::support::pki::Pki;
use crate::tls::{metric, metric_reaches};
use http::{Method, StatusCode};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connecting, ConnectionError, Endpoint, VarInt};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Where it is set in `server/quic.rs`: handshakes with clients that have not shown that their address is theirs.
const UNVALIDATED_MAX: usize = 64;

fn endpoint(pki: &Pki) -> Endpoint {
    let mut secure = pki.client();
    secure.alpn_protocols = vec![b"h3".to_vec()];
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(secure).unwrap())));
    endpoint
}

/// The first packets of so many clients, who then say nothing more.
async fn first_packets(pki: &Pki, count: usize) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, here) = (endpoint(pki), socket.local_addr().unwrap());
    let _clients: Vec<Connecting> = (0..count).map(|_| endpoint.connect(here, HOST).unwrap()).collect();
    let mut packets = HashMap::new();
    while packets.len() < count {
        let mut packet = vec![0; 1500];
        let length = timeout(PATIENCE, socket.recv(&mut packet)).await.expect("they begin").unwrap();
        packet.truncate(length);
        // By the destination that each made up (RFC 9000 §17.2).
        let id = packet[6..6 + usize::from(packet[5])].to_vec();
        packets.entry(id).or_insert(packet);
    }
    packets.into_values().collect()
}

#[tokio::test]
async fn a_connection_too_many_is_refused() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "", "[limits]\nconnections = 2\n");
    let (mut first, second) = (Client::connect(&pki, address).await, dial(&pki, address).await);
    let endpoint = endpoint(&pki);
    let late = endpoint.connect(address, HOST).unwrap().await;
    let Err(ConnectionError::ConnectionClosed(refused)) = late else { panic!("{late:?}") };
    assert_eq!(refused.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
    assert!(metric(&process, "tiercel_bound_reached_total{bound=\"connections\"}").await >= 1.0);
    assert_eq!(first.get("/").await.body, b"ok", "those within the limit go on");
    second.close(VarInt::from_u32(0), b"");
    let deadline = Instant::now() + PATIENCE;
    while endpoint.connect(address, HOST).unwrap().await.is_err() {
        assert!(Instant::now() < deadline, "there is no room again");
    }
}

#[tokio::test]
async fn where_many_leave_their_handshake_open_others_show_that_their_address_is_theirs() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "", "");
    let packets = first_packets(&pki, UNVALIDATED_MAX + 6).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for packet in &packets {
        socket.send_to(packet, address).await.unwrap();
    }
    const RETRIES: &str = "tiercel_http3_retries_total";
    metric_reaches(&process, RETRIES, 6.0).await;
    metric_reaches(&process, "tiercel_connections", UNVALIDATED_MAX as f64).await;
    assert_eq!((metric(&process, RETRIES).await, metric(&process, "tiercel_connections").await), (6.0, UNVALIDATED_MAX as f64));
    // Who does so is served meanwhile.
    assert_eq!(Client::connect(&pki, address).await.get("/").await.body, b"ok");
    assert!(metric(&process, RETRIES).await > 6.0);
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "tls.handshake_timeout = '100ms'\ntls.handshakes = 1", "");
    let packets = first_packets(&pki, 1).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&packets[0], address).await.unwrap();
    metric_reaches(&process, "tiercel_tls_handshakes_total{outcome=\"timeout\",version=\"none\"}", 1.0).await;
    // Its turn is another's.
    let endpoint = endpoint(&pki);
    let deadline = Instant::now() + PATIENCE;
    while endpoint.connect(address, HOST).unwrap().await.is_err() {
        assert!(Instant::now() < deadline, "nobody gets in");
    }
}

#[tokio::test]
async fn a_connection_has_so_many_requests_at_a_time() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Script::ok("ok").after(&held));
    let (pki, _process, address) = start(&origin, "", "[limits.http2]\nstreams = 4\n");
    let mut client = Client::connect(&pki, address).await;
    let mut streams = Vec::new();
    for number in 0..4 {
        let mut stream = client.begin(request(Method::GET, &format!("/{number}"))).await;
        stream.finish().await.unwrap();
        streams.push(stream);
    }
    origin.until("all four are under way", |origin| origin.total() == 4).await;
    let quinn = client.quinn.clone();
    let mut fifth = pin!(quinn.open_bi());
    let is_open = poll_fn(|context| Poll::Ready(fifth.as_mut().poll(context).is_ready())).await;
    assert!(!is_open, "a fifth may be opened");
    gate.open();
    for stream in streams {
        assert_eq!(answer(stream).await.map(|answer| (answer.status, answer.is_whole)), Some((StatusCode::OK, true)));
    }
    let (mut send, mut receive) = timeout(PATIENCE, fifth).await.expect("there is room again").unwrap();
    send.write_all(&head(GET, &[])).await.unwrap();
    send.finish().unwrap();
    assert!(timeout(PATIENCE, receive.read_to_end(1 << 20)).await.expect("it is answered").unwrap().ends_with(b"ok"));
}
