//! Clients of HTTP/2: hyper's, and one that sends frames as they are.

use super::origin::PATIENCE;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection that hyper keeps.
pub async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("connect");
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    sender
}

pub fn get(path: &str) -> http::Request<Full<Bytes>> {
    http::Request::get(format!("http://shop.example{path}")).body(Full::default()).expect("a request")
}

/// Sends a request and reads the whole answer.
pub async fn ask(client: &mut SendRequest<Full<Bytes>>, request: http::Request<Full<Bytes>>) -> http::Response<Bytes> {
    client.ready().await.expect("the connection goes on");
    let (parts, body) = client.send_request(request).await.expect("an answer").into_parts();
    http::Response::from_parts(parts, body.collect().await.expect("the whole body").to_bytes())
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://a/` in HPACK.
pub const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

/// The same with POST.
pub const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'a'];

/// Types of frames (RFC 9113 §6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// END_STREAM, or ACK.
pub const END: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal line in HPACK, not indexed; name and value of less than 127 bytes.
pub fn line(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }
}

/// A connection on which a test sends what it likes.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    /// Sends the preface and these settings.
    pub async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self { stream: TcpStream::connect(address).await.expect("connect") };
        let payload: Vec<u8> =
            settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()).collect();
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await;
        raw
    }

    /// Sends bytes; where the server closed meanwhile that is no failure of the test by itself.
    pub async fn send(&mut self, bytes: &[u8]) {
        _ = self.stream.write_all(bytes).await;
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        next(&mut self.stream).await
    }

    /// Frames up to the first that is wanted; `None` where the connection ends before.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Sends bytes while what comes is read, until the server ends the connection; the code of its GOAWAY, if one came.
    pub async fn send_to_the_end(mut self, bytes: &[u8]) -> Option<u32> {
        let (mut read, mut write) = self.stream.split();
        let sending = async {
            _ = write.write_all(bytes).await; // it may be closed before all is sent
            std::future::pending::<()>().await;
        };
        let reading = async {
            let mut code = None;
            while let Some(frame) = next(&mut read).await {
                if frame.kind == GOAWAY {
                    code = frame.code();
                }
            }
            code
        };
        tokio::select! {
            code = reading => code,
            () = sending => None,
        }
    }
}

/// The next frame that comes here; `None` at the end.
pub async fn next(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("the server fell silent").ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut payload)).await.expect("the server fell silent").ok()?;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}
