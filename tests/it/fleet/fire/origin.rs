//! The origin of the world: says the version that a resource has when it is asked, at once or late.

use super::world::{Kind, Resource, World};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An origin that runs until its runtime ends.
pub struct VersionedOrigin {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
}

impl VersionedOrigin {
    pub async fn start(world: Arc<World>, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let requests = Arc::new(AtomicU64::new(0));
        let counter = requests.clone();
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let random = StdRng::seed_from_u64(seed ^ connection);
                tokio::spawn(converse(stream, world.clone(), random, counter.clone()));
            }
        });
        Self { address, requests }
    }
}

async fn converse(mut stream: TcpStream, world: Arc<World>, mut random: StdRng, requests: Arc<AtomicU64>) {
    let _ = stream.set_nodelay(true); // slower, not wrong
    let mut read = Vec::new();
    loop {
        let end = loop {
            match memchr::memmem::find(&read, b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if matches!(stream.read_buf(&mut read).await, Ok(1..)) => {}
                None => return,
            }
        };
        let head: Vec<u8> = read.drain(..end).collect();
        let head = String::from_utf8_lossy(&head);
        requests.fetch_add(1, Ordering::Relaxed);
        let path = head.split(' ').nth(1).unwrap_or_default();
        // What the answer will be is settled here: a purge that comes while it is held back was not known to it.
        let answer = match world.find(path) {
            Some(_) if head.starts_with("POST ") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            Some(resource) => answer(resource, &head),
            None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        };
        let held_ms = match random.random_range(0..10) {
            0 => random.random_range(20..60),
            1..4 => random.random_range(1..8),
            _ => 0,
        };
        if held_ms > 0 {
            tokio::time::sleep(Duration::from_millis(held_ms)).await;
        }
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn answer(resource: &Resource, head: &str) -> Vec<u8> {
    let version = resource.version();
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
    };
    let variant = field("x-v").unwrap_or_default();
    let tag = format!("\"{}-{version}-{variant}\"", resource.number);
    let lifetime = match resource.kind {
        Kind::Short => "max-age=1",
        Kind::Lenient => "max-age=3600, stale-while-revalidate=600",
        _ => "max-age=3600",
    };
    let [first, second] = &resource.keys;
    let mut fields =
        format!("ETag: {tag}\r\nCache-Control: {lifetime}\r\nSurrogate-Key: {first} {second}\r\nCache-Groups: \"{}\"\r\n", resource.group);
    if resource.kind == Kind::Varied {
        fields.push_str("Vary: X-V\r\n");
    }
    if field("if-none-match").is_some_and(|tags| tags.contains(&tag)) {
        return format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").into_bytes();
    }
    let body = resource.body(version);
    let mut answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(body);
    answer
}
