//! HTTP/3 through the running binary: h3's client on quinn, and streams with bytes as they are.

mod limits;
mod slow;

use super::metric;
use crate::support::origin::{Gate, Origin, PATIENCE, Script, Step, eventually};
use crate::support::pki::{EC, Pki, Secure};
use crate::support::process::{CONTINUE, HANGUP, Process, TERMINATE, run, write_config};
use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::Code;
use http::{HeaderMap, Method, Request, StatusCode};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, TransportConfig, VarInt};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tiercel::clock::LAST_LOOK;
use tiercel::listener::http3::quic;
use tokio::net::UdpSocket;

const HOST: &str = "shop.example";

fn config(pki: &Pki, origin: &Origin, listener: &str, more: &str) -> String {
    format!(
        "{more}\n[listeners.http]\naddress = '127.0.0.1:0'\n[listeners.https]\naddress = '127.0.0.1:0'\nhttp3 = true\n{listener}\n\
         tls.certificates = [{}]\n[admin]\naddress = '127.0.0.1:0'\n[log.access]\ntarget = 'off'\n[upstreams.default]\nendpoints = ['{}']\n",
        pki.entry("shop"),
        origin.url()
    )
}

/// A process with HTTP/3, and where it is.
fn start(origin: &Origin, listener: &str, more: &str) -> (Pki, Process, SocketAddr) {
    let pki = Pki::new();
    pki.issue("shop", &[HOST], EC, 30);
    let process = Process::with_config(pki.folder(), &config(&pki, origin, listener, more));
    let address = process.address("listener https");
    (pki, process, address)
}

fn cached(body: &str) -> Script {
    Script::ok(body).header("Cache-Control", "max-age=60")
}

/// A connection of QUIC.
async fn dial(pki: &Pki, address: SocketAddr) -> quinn::Connection {
    dial_with(pki, address, TransportConfig::default()).await
}

async fn dial_with(pki: &Pki, address: SocketAddr, transport: TransportConfig) -> quinn::Connection {
    let mut secure = pki.client();
    secure.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(secure).unwrap()));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(config, address, HOST).unwrap().await.expect("a connection")
}

struct Client {
    quinn: quinn::Connection,
    send: SendRequest<quic::Connection, Bytes>,
}

type Stream = RequestStream<quic::BidiStream<Bytes>, Bytes>;

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    /// The stream ended in order.
    is_whole: bool,
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    async fn connect(pki: &Pki, address: SocketAddr) -> Self {
        Self::over(dial(pki, address).await).await
    }

    async fn over(quinn: quinn::Connection) -> Self {
        let (mut driver, send) = h3::client::new(quic::Connection::new(quinn.clone())).await.expect("HTTP/3");
        tokio::spawn(async move { poll_fn(|context| driver.poll_close(context)).await });
        Self { quinn, send }
    }

    async fn begin(&mut self, request: Request<()>) -> Stream {
        self.send.send_request(request).await.expect("a stream")
    }

    async fn get(&mut self, path: &str) -> Answer {
        let mut stream = self.begin(request(Method::GET, path)).await;
        stream.finish().await.unwrap();
        answer(stream).await.expect("an answer")
    }
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://{HOST}{path}")).body(()).unwrap()
}

/// All of an answer; `None` where not even a head came.
async fn answer(mut stream: Stream) -> Option<Answer> {
    let head = tokio::time::timeout(PATIENCE, stream.recv_response()).await.expect("the server fell silent").ok()?;
    let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
    let is_whole = loop {
        match tokio::time::timeout(PATIENCE, stream.recv_data()).await.expect("the server fell silent") {
            Ok(Some(mut data)) => body.extend_from_slice(&data.copy_to_bytes(data.remaining())),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    if is_whole && let Ok(Some(fields)) = stream.recv_trailers().await {
        trailers = fields;
    }
    Some(Answer { status: head.status(), fields: head.headers().clone(), body, trailers, is_whole })
}

/// A frame (RFC 9114 §7.1), its length in four bytes.
fn frame(kind: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &(length | 0x8000_0000).to_be_bytes(), payload].concat()
}

/// The head of a request in QPACK, and lines that are not indexed.
fn head(method: u8, lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0, 0xc0 | method, 0xd7, 0xc1, 0x50, HOST.len() as u8];
    block.extend(HOST.as_bytes());
    for (name, value) in lines {
        let length = name.len() as u8;
        block.extend(if length < 7 { vec![0x20 | length] } else { vec![0x27, length - 7] });
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    frame(1, block.len() as u32, &block)
}

const GET: u8 = 17;
const POST: u8 = 20;

/// Sends bytes on a stream of their own, and its end with `ends`; what came back and whether that ended in order.
async fn raw(connection: &quinn::Connection, bytes: &[u8], ends: bool) -> (Vec<u8>, bool) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    _ = send.write_all(bytes).await; // it may be stopped before all is sent
    if ends {
        _ = send.finish();
    }
    let read = tokio::time::timeout(PATIENCE, receive.read_to_end(1 << 20)).await.expect("the server fell silent");
    (read.as_ref().map_or_else(|_| Vec::new(), Clone::clone), read.is_ok())
}

#[tokio::test]
async fn answers_are_those_of_the_other_protocols_from_one_store() {
    let large = "x".repeat(3 << 20);
    let body = large.clone();
    let origin = Origin::start(move |request| match request.path.as_str() {
        "/large" => cached(&body),
        "/trailers" => {
            Script::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
        }
        _ => cached("stored").header("ETag", "\"1\""),
    });
    let (pki, process, address) = start(&origin, "http3_port = 443", "");
    let mut client = Client::connect(&pki, address).await;
    let miss = client.get("/a?b=c").await;
    assert_eq!((miss.status, &miss.body[..], miss.is_whole, miss.field("content-length")), (StatusCode::OK, &b"stored"[..], true, "6"));
    let seen = origin.requests("/a").remove(0);
    assert_eq!((seen.field("host"), seen.field("via"), seen.field("x-forwarded-proto")), (Some(HOST), Some("3 tiercel"), Some("https")));
    let mut hit = client.get("/a?b=c").await;
    while !hit.field("cache-status").contains("; hit") {
        hit = client.get("/a?b=c").await;
    }
    assert_eq!((&hit.body[..], hit.field("alt-svc")), (&b"stored"[..], ""));
    let mut over_tcp = Secure::connect(address, HOST, &Arc::new(pki.client())).await.unwrap();
    let (told, body) = over_tcp.ask(&format!("GET /a?b=c HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await.unwrap();
    assert!(told.contains("; hit") && told.contains("alt-svc: h3=\":443\"; ma=86400\r\n") && body == b"stored", "{told}");
    let fetched = origin.total();
    let mut head = client.begin(request(Method::HEAD, "/a?b=c")).await;
    head.finish().await.unwrap();
    let head = answer(head).await.unwrap();
    assert_eq!((head.body.len(), head.field("content-length"), head.is_whole), (0, "6", true));
    let mut conditional = request(Method::GET, "/a?b=c");
    conditional.headers_mut().insert("if-none-match", "\"1\"".parse().unwrap());
    let mut stream = client.begin(conditional).await;
    stream.finish().await.unwrap();
    assert_eq!(answer(stream).await.unwrap().status, StatusCode::NOT_MODIFIED);
    assert_eq!(origin.total(), fetched);
    let answer = client.get("/large").await;
    assert!(answer.is_whole && answer.body == large.as_bytes());
    assert_eq!(client.get("/trailers").await.trailers["x-sum"], "7");
    assert_eq!(metric(&process, "tiercel_http3_retries_total").await, 0.0);
}

#[tokio::test]
async fn bodies_go_up_as_they_are_and_no_longer_than_allowed() {
    let origin = Origin::start(|request| Script::ok(format!("{} {}", request.method, request.body.len())));
    let (pki, _process, address) = start(&origin, "", "[limits]\nbody_bytes = '2MiB'\n");
    let mut client = Client::connect(&pki, address).await;
    let mut stream = client.begin(request(Method::POST, "/")).await;
    for _ in 0..16 {
        stream.send_data(Bytes::from(vec![b'x'; 64 << 10])).await.unwrap();
    }
    stream.finish().await.unwrap();
    assert_eq!(answer(stream).await.unwrap().body, b"POST 1048576");
    let mut announced = request(Method::POST, "/");
    announced.headers_mut().insert("content-length", 3_000_000.into());
    let stream = client.begin(announced).await;
    assert_eq!(answer(stream).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut with_body = request(Method::GET, "/get");
    with_body.headers_mut().insert("content-length", 2.into());
    let mut stream = client.begin(with_body).await;
    stream.send_data(Bytes::from_static(b"ok")).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(answer(stream).await.unwrap().body, b"GET 2");
    assert_eq!(client.get("/").await.body, b"GET 0");
}

#[tokio::test]
async fn what_does_not_end_as_it_should_is_reset() {
    let gate = Gate::new();
    let cut = gate.clone();
    let origin = Origin::start(move |request| match request.path.as_str() {
        "/cut" => Script::steps([
            Step::Bytes(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec()),
            Step::Wait(cut.clone()),
            Step::Close,
        ]),
        _ => Script::ok("ok"),
    });
    let (pki, _process, address) = start(&origin, "", "");
    let mut client = Client::connect(&pki, address).await;
    let mut stream = client.begin(request(Method::GET, "/cut")).await;
    stream.finish().await.unwrap();
    stream.recv_response().await.unwrap();
    gate.open();
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.recv_data()).await.expect("the server fell silent") {
            Ok(Some(_)) => {}
            ended => break ended.map(|_| ()),
        }
    };
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(client.get("/").await.body, b"ok", "the connection goes on");
}

#[tokio::test]
async fn a_client_that_stops_listening_ends_the_work_for_it() {
    let origin = Origin::start(|_| Script::endless(b"x".repeat(1000)));
    let (pki, _process, address) = start(&origin, "", "");
    let mut client = Client::connect(&pki, address).await;
    for while_waiting in [false, true] {
        let mut stream = client.begin(request(Method::POST, if while_waiting { "/silent" } else { "/" })).await;
        stream.finish().await.unwrap();
        if !while_waiting {
            stream.recv_response().await.unwrap();
        }
        origin.until("it is asked", |origin| origin.open_connections() == 1).await;
        stream.stop_sending(Code::H3_REQUEST_CANCELLED);
        origin.until("it is left alone", |origin| origin.open_connections() == 0).await;
    }
}

#[tokio::test]
async fn what_h3_lets_through_is_refused_and_the_connection_goes_on() {
    let origin = Origin::start(|request| Script::ok(request.body.len().to_string()));
    let (pki, _process, address) = start(&origin, "", "[limits]\nheader_timeout = '500ms'\nheader_bytes = '8KiB'\n");
    let connection = dial(&pki, address).await;
    let fine = head(GET, &[("x", "y")]);
    let good = || raw(&connection, &fine, true);
    let (bytes, is_whole) = good().await;
    assert!(is_whole && bytes.ends_with(b"0"), "{bytes:?}");
    let long = frame(1, 1 << 28, &vec![0; 200_000]);
    let unknown = [head(GET, &[]), frame(0x21, 1 << 28, &vec![0; 200_000])].concat();
    let many = [head(GET, &[]), [0x21, 0].repeat(1000)].concat();
    let cut = [head(POST, &[]), frame(0, 100, b"only a part")].concat();
    let short = [head(POST, &[("content-length", "100")]), frame(0, 3, b"abc")].concat();
    for (name, bytes, ends) in [
        ("a head that never ends", &long, false),
        ("a frame of no known type that never ends", &unknown, false),
        ("frames that bring nothing", &many, false),
        ("a body that is cut off within a frame", &cut, true),
        ("a body that is shorter than announced", &short, true),
        ("a byte of a head", &vec![1], false),
        ("half a head", &head(GET, &[])[..10].to_vec(), false),
        ("Connection", &head(GET, &[("connection", "close")]), true),
        ("Transfer-Encoding", &head(POST, &[("transfer-encoding", "chunked")]), true),
        ("a TE for more than trailers", &head(GET, &[("te", "gzip")]), true),
        ("two lengths", &head(POST, &[("content-length", "0"), ("content-length", "0")]), true),
    ] {
        let (bytes, is_whole) = raw(&connection, bytes, ends).await;
        let refused = !is_whole
            || bytes.windows(3).any(|window| window == b"400" || window == b"502")
            || bytes.first() == Some(&1) && !bytes.ends_with(b"0");
        assert!(refused, "{name}: {bytes:?}");
        let (bytes, is_whole) = good().await;
        assert!(is_whole && bytes.ends_with(b"0"), "after {name}: {bytes:?}");
    }
    assert!(
        origin.requests("/").iter().all(|request| request.method == "GET" && request.body.is_empty()),
        "nothing of them was sent on as whole"
    );
    let mut client = Client::connect(&pki, address).await;
    let mut large = request(Method::GET, "/");
    for number in 0..150 {
        large.headers_mut().append(http::HeaderName::try_from(format!("a{number}")).unwrap(), "x".parse().unwrap());
    }
    let mut stream = client.begin(large).await;
    stream.finish().await.unwrap();
    assert_eq!(answer(stream).await.unwrap().status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn too_many_resets_end_the_connection_and_no_other() {
    let origin = Origin::start(|_| Script::steps([Step::Wait(Gate::new())]));
    let (pki, process, address) = start(&origin, "", "[limits.http2]\nresets = 20\n");
    let (bad, good) = (dial(&pki, address).await, dial(&pki, address).await);
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            let Ok((mut send, mut receive)) = bad.open_bi().await else { break };
            _ = send.write_all(&head(GET, &[("x", "y")])).await;
            _ = send.finish();
            _ = receive.stop(VarInt::from_u32(0x10c));
            tokio::task::yield_now().await;
        }
        bad.closed().await
    });
    let ConnectionError::ApplicationClosed(close) = ended.await.expect("the server lets it go on") else { panic!("how it ended") };
    assert_eq!(u64::from(close.error_code), Code::H3_EXCESSIVE_LOAD.value());
    assert_eq!(metric(&process, "tiercel_bound_reached_total{bound=\"http3_resets\"}").await, 1.0);
    assert!(good.close_reason().is_none());
}

#[tokio::test]
async fn addresses_are_verified_where_that_is_wanted() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "http3_retry = true", "");
    let mut client = Client::connect(&pki, address).await;
    assert_eq!(client.get("/").await.body, b"ok");
    assert!(metric(&process, "tiercel_http3_retries_total").await >= 1.0);
    assert_eq!(metric(&process, "tiercel_tls_handshakes_total{outcome=\"full\",version=\"1.3\"}").await, 1.0);
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_in_time() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, _process, address) = start(&origin, "", "[limits]\nidle_timeout = '300ms'\n");
    let mut client = Client::connect(&pki, address).await;
    assert_eq!(client.get("/").await.body, b"ok");
    tokio::time::timeout(PATIENCE, client.quinn.closed()).await.expect("it goes on");
}

#[tokio::test]
async fn what_is_under_way_ends_before_the_process_does() {
    let gate = Gate::new();
    let held = gate.clone();
    let origin = Origin::start(move |_| Script::ok("late").after(&held));
    let (pki, mut process, address) = start(&origin, "", "");
    let mut client = Client::connect(&pki, address).await;
    let mut stream = client.begin(request(Method::GET, "/")).await;
    stream.finish().await.unwrap();
    origin.until("it is asked", |origin| origin.total() == 1).await;
    process.signal(TERMINATE);
    eventually("no more connections are taken", || std::net::TcpStream::connect(address).is_err()).await;
    gate.open();
    let answer = answer(stream).await.unwrap();
    assert_eq!((&answer.body[..], answer.is_whole), (&b"late"[..], true));
    let ConnectionError::ApplicationClosed(close) = client.quinn.closed().await else { panic!("how it ended") };
    assert_eq!(u64::from(close.error_code), Code::H3_NO_ERROR.value());
    assert_eq!(process.end(), Some(0));
}

#[tokio::test]
async fn certificates_are_taken_up_as_over_tcp() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "", "");
    let before = dial(&pki, address).await;
    let shown =
        |connection: &quinn::Connection| connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap()[0].clone();
    let old = CertificateDer::from_pem_file(pki.path("shop.pem")).unwrap();
    assert_eq!(shown(&before), old);
    pki.issue("shop", &[HOST], EC, 60);
    process.signal(HANGUP);
    let new = CertificateDer::from_pem_file(pki.path("shop.pem")).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while shown(&dial(&pki, address).await) != new {
        assert!(std::time::Instant::now() < deadline, "the old one is shown");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(before.close_reason().is_none());
}

/// HTTP/3 asks nobody for a certificate, and so is no way round being asked.
#[tokio::test]
async fn a_site_that_asks_for_certificates_is_not_served() {
    let origin = Origin::start(|_| cached("ok"));
    let pki = Pki::new();
    pki.issue("shop", &[HOST], EC, 30);
    for (asked, status) in
        [("off", StatusCode::OK), ("optional", StatusCode::MISDIRECTED_REQUEST), ("required", StatusCode::MISDIRECTED_REQUEST)]
    {
        let authority = if asked == "off" { String::new() } else { format!("client_ca_file = '{}'\n", pki.path("ca.pem").display()) };
        let site = format!("[sites.shop]\nhosts = ['{HOST}']\n[sites.shop.tls]\nclient_certificates = '{asked}'\n{authority}");
        let process = Process::with_config(pki.folder(), &config(&pki, &origin, "", &site));
        let mut client = Client::connect(&pki, process.address("listener https")).await;
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.body == b"ok"), (status, status == StatusCode::OK), "{asked}");
    }
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_session_is_resumed_without_early_data() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, _process, address) = start(&origin, "", "");
    let kept = Arc::new(ClientSessionMemoryCache::new(8));
    let mut secure = pki.client();
    secure.alpn_protocols = vec![b"h3".to_vec()];
    secure.resumption = Resumption::store(Arc::clone(&kept) as _);
    secure.enable_early_data = true;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(secure).unwrap()));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connect = || endpoint.connect_with(config.clone(), address, HOST).unwrap();
    // Tickets come after the handshake: the answer is behind them.
    assert_eq!(Client::over(connect().await.expect("a connection")).await.get("/").await.body, b"ok");
    let ticket = kept.take_tls13_ticket(&HOST.try_into().unwrap()).expect("one of several");
    assert_eq!(ticket.max_early_data_size(), 0);
    let Err(again) = connect().into_0rtt() else { panic!("requests may be sent again by anybody") };
    assert_eq!(Client::over(again.await.expect("a connection")).await.get("/").await.body, b"ok");
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let pki = Pki::new();
    pki.issue("shop", &[HOST], EC, 30);
    let origin = Origin::start(|_| Script::ok("ok"));
    let asked = format!("tls.client_certificates = 'optional'\ntls.client_ca_file = '{}'", pki.path("ca.pem").display());
    let check = |text: &str| {
        let file = write_config(pki.folder(), text);
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(check(&config(&pki, &origin, "", "")).0);
    let plain = "[listeners.http]\naddress = '127.0.0.1:0'\nhttp3 = true\n[upstreams.a]\nendpoints = ['http://a']\n";
    for (text, what) in [
        (plain.to_owned(), "always encrypted"),
        (config(&pki, &origin, "proxy_protocol = ['127.0.0.1']", ""), "does not come over UDP"),
        (config(&pki, &origin, "http3_port = 1", "").replace("http3 = true\n", ""), "without it"),
        (config(&pki, &origin, &asked, ""), "not asked for certificates over HTTP/3"),
    ] {
        let (is_fine, told) = check(&text);
        assert!(!is_fine && told.contains(what), "{told}");
    }
}

#[tokio::test]
async fn interim_responses_go_before_the_answer() {
    let origin =
        Origin::start(|_| Script::raw("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let (pki, _process, address) = start(&origin, "", "");
    let mut client = Client::connect(&pki, address).await;
    let mut stream = client.begin(request(Method::GET, "/")).await;
    stream.finish().await.unwrap();
    let interim = tokio::time::timeout(PATIENCE, stream.recv_response()).await.expect("in time").unwrap();
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</a.css>".parse().unwrap()));
    let answer = answer(stream).await.expect("the answer behind it");
    assert_eq!((answer.status, &answer.body[..], answer.is_whole), (StatusCode::OK, &b"ok"[..], true));
}

#[tokio::test]
async fn who_expects_100_gets_it_once_its_body_is_wanted() {
    let origin = Origin::start(|request| Script::ok(format!("{} bytes", request.body.len())));
    let (pki, _process, address) = start(&origin, "", "");
    let mut client = Client::connect(&pki, address).await;
    for method in [Method::POST, Method::OPTIONS] {
        let mut expecting = request(method, "/upload");
        expecting.headers_mut().insert("expect", "100-continue".parse().unwrap());
        let mut stream = client.begin(expecting).await;
        let interim = tokio::time::timeout(PATIENCE, stream.recv_response()).await.expect("the server fell silent").unwrap();
        assert_eq!(interim.status(), StatusCode::CONTINUE);
        stream.send_data(Bytes::from_static(b"hello")).await.unwrap();
        stream.finish().await.unwrap();
        let answer = answer(stream).await.expect("the answer behind it");
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"5 bytes"[..]));
    }
}

#[tokio::test]
async fn a_request_body_that_drips_is_refused() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, _process, address) = start(&origin, "", "[limits]\nbody_timeout = '200ms'\nbody_rate = '1KiB'\n");
    let mut client = Client::connect(&pki, address).await;
    let stream = client.begin(request(Method::POST, "/")).await;
    let (mut send, mut receive) = stream.split();
    let dripping = async {
        while send.send_data(Bytes::from_static(b"x")).await.is_ok() {
            tokio::time::sleep(LAST_LOOK / 2).await; // how slow this client is
        }
        std::future::pending::<()>().await;
    };
    let answered = tokio::select! {
        answered = tokio::time::timeout(PATIENCE, receive.recv_response()) => answered.expect("it is read on"),
        () = dripping => unreachable!(),
    };
    assert_eq!(answered.expect("an answer").status(), StatusCode::REQUEST_TIMEOUT);
}

/// Between a server and one client.
struct Relay {
    socket: UdpSocket,
    server: SocketAddr,
    client: SocketAddr,
}

impl Relay {
    /// A datagram, and where it belongs.
    async fn next(&mut self) -> (Vec<u8>, SocketAddr) {
        let mut datagram = vec![0; 2048];
        let (length, from) = self.socket.recv_from(&mut datagram).await.expect("a datagram");
        datagram.truncate(length);
        if from == self.server {
            return (datagram, self.client);
        }
        self.client = from;
        (datagram, self.server)
    }

    async fn send(&self, (datagram, to): &(Vec<u8>, SocketAddr)) {
        self.socket.send_to(datagram, to).await.expect("it is sent");
    }

    async fn pass_on(&mut self) {
        loop {
            let datagram = self.next().await;
            self.send(&datagram).await;
        }
    }
}

#[tokio::test]
async fn a_handshake_whose_client_spoke_while_the_process_was_stopped_ends_well() {
    let origin = Origin::start(|_| Script::ok("ok"));
    let (pki, process, address) = start(&origin, "tls.handshake_timeout = '1s'", "");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let relayed = socket.local_addr().expect("bound");
    let mut relay = Relay { socket, server: address, client: relayed };
    // What the client says to the first answer comes while the process is stopped.
    let relaying = async {
        loop {
            let datagram = relay.next().await;
            relay.send(&datagram).await;
            if datagram.1 != address {
                break;
            }
        }
        let said = loop {
            let datagram = relay.next().await;
            if datagram.1 == address {
                break datagram;
            }
            relay.send(&datagram).await;
        };
        process.stop();
        relay.send(&said).await;
        _ = tokio::time::timeout(Duration::from_millis(1500), relay.pass_on()).await;
        process.signal(CONTINUE);
        relay.pass_on().await;
    };
    let asked = async { Client::connect(&pki, relayed).await.get("/").await.status };
    let status = tokio::select! {
        status = asked => status,
        () = relaying => unreachable!(),
    };
    assert_eq!(status, StatusCode::OK);
}

// The wait for a line of the log takes a thread.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_logged_as_whole_once_its_client_has_it() {
    const LENGTH: usize = 200_000;
    let origin = Origin::start(|_| cached(&"x".repeat(LENGTH)));
    let pki = Pki::new();
    pki.issue("shop", &[HOST], EC, 30);
    let text = config(&pki, &origin, "", "").replace("target = 'off'", "target = 'stdout'\nformat = 'json'");
    let process = Process::with_config(pki.folder(), &text);
    let mut client = Client::connect(&pki, process.address("listener https")).await;
    assert_eq!(client.get("/").await.body.len(), LENGTH);
    let whole = process.out.wait("the first", |line| line.contains("\"path\":\"/\""));
    assert!(whole.contains("\"bytes\":200000") && !whole.contains("client_left"), "{whole}");
    // Another has room for half of it, takes a piece, and then wants no more.
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(LENGTH as u32 / 2));
    let mut client = Client::over(dial_with(&pki, process.address("listener https"), transport).await).await;
    let mut stream = client.begin(request(Method::GET, "/again")).await;
    stream.finish().await.unwrap();
    stream.recv_response().await.expect("a head");
    assert!(stream.recv_data().await.expect("a piece").is_some());
    stream.stop_sending(Code::H3_REQUEST_CANCELLED);
    let cut = process.out.wait("the second", |line| line.contains("/again"));
    assert!(cut.contains("client_left"), "{cut}");
}
