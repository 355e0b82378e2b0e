//! A raw HTTP/1 client: sends bytes as they are, reads answers as they come.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// After this a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a server under test.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, framing undone.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Status line and field lines as they came, with their line ends.
    pub head: String,
    pub body: Vec<u8>,
    /// Trailer lines as they came.
    pub trailers: String,
    /// The body ended as its framing says.
    pub whole: bool,
}

impl Answer {
    /// The first field with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// All lines with this name, joined as one list.
    pub fn all(&self, name: &str) -> String {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let values: Vec<_> = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect();
        values.join(", ")
    }

    /// Whether Cache-Status has this parameter, as it stands: `hit`, `fwd=stale`.
    pub fn says(&self, parameter: &str) -> bool {
        self.field("cache-status").is_some_and(|value| value.split("; ").any(|said| said == parameter))
    }

    /// Cache-Status without its ttl, which moves with the clock.
    pub fn said(&self) -> String {
        let kept = self.field("cache-status").unwrap_or_default().split("; ").filter(|said| !said.starts_with("ttl="));
        kept.collect::<Vec<_>>().join("; ")
    }

    /// Whether nothing usable was stored. What was purged is there until somebody meets it or it is swept out, so there are
    /// two words for that.
    pub fn is_miss(&self) -> bool {
        self.says("fwd=miss") || self.says("fwd=uri-miss")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: Vec::new() }
    }

    /// `None` where nobody listens.
    pub async fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, buffer: Vec::new() })
    }

    /// One for which the kernel keeps little of what it has not read.
    pub async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(256 << 10).expect("a receive buffer");
        Self { stream: socket.connect(address).await.expect("connect"), buffer: Vec::new() }
    }

    /// Sends bytes; a connection that the server closed meanwhile is no failure of the test by itself.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Closes the sending side.
    pub async fn finish_sending(&mut self) {
        self.stream.shutdown().await.expect("shutdown");
    }

    /// Closes with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("linger");
    }

    /// More bytes; false at the end, or where the server reset the connection.
    async fn more(&mut self) -> bool {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("the server fell silent");
        matches!(read, Ok(1..))
    }

    /// Sends a request and reads its answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let to_head = request.as_ref().starts_with(b"HEAD ");
        self.send(request).await;
        self.answer(to_head).await.expect("an answer")
    }

    /// Reads one answer, interim ones too; `None` where the connection ended before it.
    pub async fn answer(&mut self, to_head: bool) -> Option<Answer> {
        let head = self.until("\r\n\r\n").await?;
        let status = head.get(9..12)?.parse().expect("a status");
        let mut answer = Answer { status, head, body: Vec::new(), trailers: String::new(), whole: true };
        if to_head || status < 200 || status == 204 || status == 304 {
            return Some(answer);
        }
        if answer.field("transfer-encoding").is_some() {
            answer.whole = self.chunks(&mut answer).await.is_some();
        } else if let Some(length) = answer.field("content-length") {
            let length = length.parse().expect("a length");
            while self.buffer.len() < length && self.more().await {}
            answer.whole = self.buffer.len() >= length;
            answer.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.more().await {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Some(answer)
    }

    async fn chunks(&mut self, answer: &mut Answer) -> Option<()> {
        loop {
            let line = self.until("\r\n").await?;
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            while self.buffer.len() < size + 2 {
                if !self.more().await {
                    answer.body.append(&mut self.buffer);
                    return None;
                }
            }
            answer.body.extend(self.buffer.drain(..size));
            assert_eq!(self.buffer.drain(..2).collect::<Vec<_>>(), b"\r\n");
        }
        loop {
            let line = self.until("\r\n").await?;
            if line == "\r\n" {
                return Some(());
            }
            answer.trailers.push_str(&line);
        }
    }

    /// Bytes up to and with `end`.
    pub async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, end.as_bytes()) {
                return Some(String::from_utf8_lossy(&self.buffer.drain(..at + end.len()).collect::<Vec<_>>()).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// This many bytes, fewer only at the end.
    pub async fn take_exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.more().await {}
        self.buffer.drain(..count.min(self.buffer.len())).collect()
    }

    /// At most this many bytes, as they are there; none at the end.
    pub async fn take(&mut self, most: usize) -> Vec<u8> {
        while self.buffer.is_empty() && self.more().await {}
        self.buffer.drain(..most.min(self.buffer.len())).collect()
    }

    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Drops what was read and not looked at.
    pub fn forget(&mut self) {
        self.buffer.clear();
    }

    /// Whether the connection ends now without another byte, and how.
    pub async fn ended(&mut self) -> Ended {
        if !self.buffer.is_empty() {
            return Ended::MoreBytes;
        }
        match tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("the connection stays open") {
            Ok(0) => Ended::Closed,
            Ok(_) => Ended::MoreBytes,
            Err(_) => Ended::Reset,
        }
    }
}

/// Asks where a connection may idle for a moment only: on a busy machine the request may come too late, and is sent again
/// on another.
pub async fn patient(connect: impl AsyncFn() -> Client, request: &str) -> (Client, Answer) {
    for _ in 0..100 {
        let mut client = connect().await;
        client.send(request).await;
        if let Some(answer) = client.answer(false).await {
            return (client, answer);
        }
    }
    panic!("every connection ended before an answer");
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Closed,
    Reset,
    MoreBytes,
}
