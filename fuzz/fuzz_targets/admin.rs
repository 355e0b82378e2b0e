//! The admin API over a connection to the real listener: the first byte picks the call, the rest is its body, its path or its
//! query. Every call is answered, never with a fault of ours, and says why in JSON where it is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use std::future::pending;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use tiercel::admin::{self, Control, ExplainRequest, ReloadRefused};
use tiercel::clock;
use tiercel::config::settings::Secret;
use tiercel::invalidation::{Mode, Receipt, Selector};
use tiercel::proxy::Proxy;
use tiercel::semantics::Target;

struct Hands(Arc<Proxy>);

impl Control for Hands {
    fn admit_purge(&self, caller: IpAddr, selectors: usize) -> Result<(), u64> {
        self.0.admit_purge(caller, selectors).map_err(|rejected| rejected.retry_after_seconds())
    }
    fn refused_purge(&self, _: &str, _: u16, _: &str) {}
    fn purge(&self, selectors: Vec<Selector>, mode: Mode, actor: &str) -> Receipt {
        self.0.purge(selectors, mode, actor, clock::now())
    }
    fn receipt(&self, id: &str) -> Option<Receipt> {
        self.0.journal.receipt(id)
    }
    fn normalise_url(&self, url: &str) -> Result<String, String> {
        Target::from_url(url).map(|target| target.without_scheme().to_owned()).map_err(|error| error.to_string())
    }
    fn check_site(&self, name: &str) -> Result<(), String> {
        if name == "default" { Ok(()) } else { Err("default".into()) }
    }
    fn stored_here(&self, _: &str) -> bool {
        false
    }
    fn explain(&self, request: ExplainRequest) -> Pin<Box<dyn Future<Output = Result<Value, String>> + Send>> {
        let proxy = Arc::clone(&self.0);
        Box::pin(async move { proxy.explain(&request.url, &request.method, &request.headers, &request.content).await })
    }
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<Value, ReloadRefused>> + Send>> {
        Box::pin(async { Ok(json!({})) })
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> String {
        String::new()
    }
    fn config(&self) -> Value {
        Value::Null
    }
    fn status(&self) -> Value {
        Value::Null
    }
    fn token(&self) -> Option<Secret> {
        None
    }
    fn selectors_per_call(&self) -> usize {
        16
    }
}

static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let settings =
        tiercel_fuzz::settings("admin", "[upstreams.default]\nendpoints = [\"http://127.0.0.1:9\"]\n[log.access]\ntarget = \"off\"\n");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hands = Arc::new(Hands(tiercel_fuzz::proxy(&settings)));
    let handle = admin::serve(listener, hands, false, pending()).expect("loopback needs no token");
    handle.address()
});

static CONNECTION: Mutex<Option<TcpStream>> = Mutex::new(None);

fuzz_target!(|data: &[u8]| {
    let Some((call, rest)) = data.split_first() else { return };
    let text: String = String::from_utf8_lossy(rest).chars().filter(char::is_ascii_graphic).collect();
    let (head, body) = match call % 4 {
        0 => ("POST /v1/purge HTTP/1.1".to_owned(), rest),
        1 => ("POST /v1/explain HTTP/1.1".to_owned(), rest),
        2 => (format!("POST /v1/purge?{text} HTTP/1.1"), &br#"{"hosts":["a"]}"#[..]),
        _ => (format!("GET /v1/purge/{text} HTTP/1.1"), &b""[..]),
    };
    let request = format!("{head}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let (status, answer) = exchange(&[request.as_bytes(), body].concat());
    assert!((200..500).contains(&status), "{status}");
    if status == 400 && call % 4 < 2 {
        let problem: Value = serde_json::from_slice(&answer).expect("JSON");
        assert!(problem["error"]["message"].is_string() && problem["error"]["remedy"].is_string(), "{problem}");
    }
});

/// Status and body; a connection that has ended is made anew, once.
fn exchange(request: &[u8]) -> (u16, Vec<u8>) {
    let mut kept = CONNECTION.lock().expect("one thread");
    for _ in 0..2 {
        let mut connection = kept.take().unwrap_or_else(|| TcpStream::connect(*ADDRESS).expect("it listens"));
        if connection.write_all(request).is_ok()
            && let Some(answer) = read(&mut connection)
        {
            *kept = Some(connection);
            return answer;
        }
    }
    panic!("no answer")
}

fn read(connection: &mut TcpStream) -> Option<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(connection, &mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length: usize = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
    while bytes.len() < end + length {
        fill(connection, &mut bytes)?;
    }
    Some((status, bytes.split_off(end)))
}

fn fill(connection: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut some = [0; 4096];
    let count = connection.read(&mut some).ok().filter(|count| *count > 0)?;
    bytes.extend_from_slice(&some[..count]);
    Some(())
}
