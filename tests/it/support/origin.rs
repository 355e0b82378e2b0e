//! A scripted origin: real sockets on port 0, any bytes, stalls, resets.
//!
//! Plain threads and blocking sockets, so that it owes nothing to the runtime under test. For each request the script is
//! a list of steps; what was received is recorded and can be waited for. Everything ends when the origin is dropped.

use parking_lot::{Condvar, Mutex};
use socket2::SockRef;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a test waits for a condition before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// Request line and fields, with the empty line.
    pub head: Vec<u8>,
    pub method: String,
    /// The request target as it was written.
    pub target: String,
    /// The target without its query.
    pub path: String,
    /// Names in lower case, values trimmed.
    pub fields: Vec<(String, String)>,
    /// The body, with its framing undone; the first MiB of it. Empty with [`Origin::start_at_head`].
    pub body: Vec<u8>,
    /// Trailer lines after a chunked body, as they came. Empty with [`Origin::start_at_head`].
    pub trailers: String,
    /// Number of the connection, from 0.
    pub connection: usize,
    /// Number of the request on its connection, from 0.
    pub exchange: usize,
}

impl Recorded {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == &name.to_ascii_lowercase()).map(|(_, value)| value.as_str())
    }
}

/// One step of an answer.
pub enum Step {
    Bytes(Vec<u8>),
    /// Waits until the gate is opened.
    Wait(Gate),
    /// The same bytes again and again until the client leaves; the count of bytes written so far is
    /// in [`Origin::endless_bytes`].
    Endless(Vec<u8>),
    /// Reads the request body, which [`Origin::start_at_head`] left unread.
    ReadBody,
    /// Sends back what comes, until the end.
    Echo,
    /// Closes with an orderly FIN after the bytes so far.
    Close,
    /// Closes with RST.
    Reset,
}

/// What to answer. After the last step the connection goes on with the next request.
#[derive(Default)]
pub struct Script {
    steps: Vec<Step>,
    status: Option<String>,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Script {
    /// Steps as given, nothing added.
    pub fn steps(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..Self::default() }
    }

    /// These bytes as they are.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::steps([Step::Bytes(bytes.into())])
    }

    /// 200 with this body and its Content-Length.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    /// A status with this body and its Content-Length.
    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status: Some(status.to_string()), body: body.into(), ..Self::default() }
    }

    /// 200 in chunks; an empty one is left out.
    pub fn chunked<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
            bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        Self::raw(bytes)
    }

    /// 200 with a body that never ends, delimited by the end of the connection.
    pub fn endless(piece: impl Into<Vec<u8>>) -> Self {
        Self::steps([Step::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Step::Endless(piece.into())])
    }

    /// Closes without a word.
    pub fn close() -> Self {
        Self::steps([Step::Close])
    }

    /// Resets without a word.
    pub fn reset() -> Self {
        Self::steps([Step::Reset])
    }

    /// Adds a field to [`Script::ok`] or [`Script::status`].
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits for the gate before what there is so far.
    #[must_use]
    pub fn after(mut self, gate: &Gate) -> Self {
        self.finish_head();
        self.steps.insert(0, Step::Wait(gate.clone()));
        self
    }

    /// Goes on with this step.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.finish_head();
        self.steps.push(step);
        self
    }

    fn finish_head(&mut self) {
        let Some(status) = self.status.take() else { return };
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
        for (name, value) in self.fields.drain(..) {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        bytes.extend(format!("Content-Length: {}\r\n\r\n", self.body.len()).into_bytes());
        bytes.append(&mut self.body);
        self.steps.push(Step::Bytes(bytes));
    }

    /// The steps for a request; a HEAD gets the head alone.
    fn into_steps(mut self, method: &str) -> Vec<Step> {
        if method == "HEAD"
            && let Some(length) = self.status.is_some().then_some(self.body.len())
        {
            let status = self.status.take().unwrap_or_default();
            let lines: String = self.fields.drain(..).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            self.steps.push(Step::Bytes(format!("HTTP/1.1 {status} Scripted\r\n{lines}Content-Length: {length}\r\n\r\n").into_bytes()));
        }
        self.finish_head();
        self.steps
    }
}

/// Something that a script waits for and a test opens.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens it for good.
    pub fn open(&self) {
        *self.0.open.lock() = true;
        self.0.changed.notify_all();
    }

    /// Waits until it is open, or the origin stops.
    fn wait(&self, stopped: &AtomicBool) {
        let mut open = self.0.open.lock();
        while !*open && !stopped.load(Ordering::Acquire) {
            // Woken by `open`; looks now and then whether the origin has stopped.
            self.0.changed.wait_for(&mut open, Duration::from_millis(20));
        }
    }
}

type Respond = dyn Fn(&Recorded) -> Script + Send + Sync;

/// A running origin. Dropping it closes its sockets and joins its threads.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    respond: Box<Respond>,
    at_head: bool,
    seen: Mutex<Seen>,
    changed: Condvar,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Recorded>,
    accepted: usize,
    open: HashMap<usize, TcpStream>,
    /// Bytes of request bodies that were read, and of [`Step::Endless`] that were written.
    body_bytes: u64,
    endless_bytes: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Origin {
    /// Starts on a free port of 127.0.0.1. The script is asked once per request, when its body is there too.
    pub fn start(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::listen(Box::new(respond), false)
    }

    /// Like [`Origin::start`], but the script is asked when the head is there. It leaves the request body unread until
    /// [`Step::ReadBody`]; without that the connection ends after the last step.
    pub fn start_at_head(respond: impl Fn(&Recorded) -> Script + Send + Sync + 'static) -> Self {
        Self::listen(Box::new(respond), true)
    }

    fn listen(respond: Box<Respond>, at_head: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (seen, changed, stopped) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { respond, at_head, seen, changed, stopped });
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests to a path so far, in the order in which they were complete.
    pub fn requests(&self, path: &str) -> Vec<Recorded> {
        self.shared.seen.lock().requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// How many requests to a path came.
    pub fn count(&self, path: &str) -> usize {
        self.shared.seen.lock().requests.iter().filter(|request| request.path == path).count()
    }

    /// How many requests came in all.
    pub fn total(&self) -> usize {
        self.shared.seen.lock().requests.len()
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> usize {
        self.shared.seen.lock().accepted
    }

    /// Connections that are open on this side.
    pub fn open_connections(&self) -> usize {
        self.shared.seen.lock().open.len()
    }

    /// Bytes of request bodies that were read so far.
    pub fn body_bytes(&self) -> u64 {
        self.shared.seen.lock().body_bytes
    }

    /// Bytes that [`Step::Endless`] wrote so far.
    pub fn endless_bytes(&self) -> u64 {
        self.shared.seen.lock().endless_bytes
    }

    /// Closes all connections with FIN, as an origin does with idle ones, and goes on accepting.
    pub fn close_connections(&self) {
        for stream in self.shared.seen.lock().open.values() {
            let _ = stream.shutdown(Shutdown::Both); // gone already
        }
        self.wait_for("its connections are closed", |origin| origin.open_connections() == 0);
    }

    /// Blocks until the condition holds. It is looked at whenever something happens here.
    ///
    /// Panics after [`PATIENCE`], naming `what`.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let mut seen = self.shared.seen.lock();
            self.shared.changed.wait_for(&mut seen, Duration::from_millis(20));
            assert!(Instant::now() < deadline, "origin waited in vain: {what}");
        }
    }

    /// [`Origin::wait_for`] for async tests: other tasks run meanwhile.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        eventually(what, || condition(self)).await;
    }

    /// Blocks until this many requests to a path came.
    pub fn wait_for_requests(&self, path: &str, count: usize) {
        self.wait_for(&format!("{count} requests to {path}"), |origin| origin.count(path) >= count);
    }
}

/// Waits until a condition holds that nobody announces; other tasks run meanwhile.
///
/// Panics after [`PATIENCE`], naming `what`.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join(); // a panic there was reported already
        }
        let mut seen = self.shared.seen.lock();
        for stream in seen.open.values() {
            let _ = stream.shutdown(Shutdown::Both); // gone already
        }
        let threads = std::mem::take(&mut seen.threads);
        drop(seen);
        for thread in threads {
            let _ = thread.join(); // a panic there was reported already
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true); // slower, not wrong
        let Ok(other) = stream.try_clone() else { continue };
        let mut seen = shared.seen.lock();
        let number = seen.accepted;
        seen.accepted += 1;
        seen.open.insert(number, other);
        seen.threads.retain(|thread| !thread.is_finished());
        let connection = Conversation { shared: shared.clone(), stream, number, buffer: Vec::new(), trailers: String::new() };
        seen.threads.push(std::thread::spawn(move || connection.run()));
        drop(seen);
        shared.changed.notify_all();
    }
}

/// One connection.
struct Conversation {
    shared: Arc<Shared>,
    stream: TcpStream,
    number: usize,
    buffer: Vec<u8>,
    trailers: String,
}

/// The connection is of no further use.
struct Over;

impl Conversation {
    fn run(mut self) {
        let mut exchange = 0;
        while self.exchange(exchange).is_ok() {
            exchange += 1;
        }
        let open = self.shared.seen.lock().open.remove(&self.number);
        drop((open, self.stream));
        self.shared.changed.notify_all();
    }

    fn exchange(&mut self, number: usize) -> Result<(), Over> {
        let mut request = self.read_head()?;
        (request.connection, request.exchange) = (self.number, number);
        let mut unread = Framing::of(&request);
        if !self.shared.at_head {
            request.body = self.read_body(std::mem::replace(&mut unread, Framing::None))?;
            request.trailers = std::mem::take(&mut self.trailers);
        }
        self.record(request.clone());
        let script = (self.shared.respond)(&request);
        for step in script.into_steps(&request.method) {
            self.step(step, &mut unread)?;
        }
        // What is left of the body would be read as the next request.
        if unread.is_empty() { Ok(()) } else { Err(Over) }
    }

    fn step(&mut self, step: Step, unread: &mut Framing) -> Result<(), Over> {
        match step {
            Step::Bytes(bytes) => self.stream.write_all(&bytes).map_err(|_| Over),
            Step::Wait(gate) => {
                gate.wait(&self.shared.stopped);
                if self.shared.stopped.load(Ordering::Acquire) { Err(Over) } else { Ok(()) }
            }
            Step::Endless(piece) => loop {
                self.stream.write_all(&piece).map_err(|_| Over)?;
                self.shared.seen.lock().endless_bytes += piece.len() as u64;
                self.shared.changed.notify_all();
            },
            Step::ReadBody => self.read_body(std::mem::replace(unread, Framing::None)).map(drop),
            Step::Echo => loop {
                let bytes = std::mem::take(&mut self.buffer);
                self.stream.write_all(&bytes).map_err(|_| Over)?;
                self.fill()?;
            },
            Step::Close => {
                let _ = self.stream.shutdown(Shutdown::Write); // gone already
                Err(Over)
            }
            Step::Reset => {
                let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)); // the close below resets
                Err(Over)
            }
        }
    }

    fn record(&self, request: Recorded) {
        self.shared.seen.lock().requests.push(request);
        self.shared.changed.notify_all();
    }

    /// Reads some more; an end of file ends the conversation.
    fn fill(&mut self) -> Result<(), Over> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) | Err(_) => Err(Over),
            Ok(read) => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }

    /// Takes all up to and with the first `end`.
    fn take_until(&mut self, end: &[u8]) -> Result<Vec<u8>, Over> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    /// Reads body bytes; the first MiB is kept, the rest counted.
    fn take(&mut self, mut length: u64, into: &mut Vec<u8>) -> Result<(), Over> {
        const KEPT: usize = 1024 * 1024;
        while length > 0 {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let taken = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let keep = taken.min(KEPT.saturating_sub(into.len()));
            into.extend_from_slice(&self.buffer[..keep]);
            self.buffer.drain(..taken);
            length -= taken as u64;
            self.shared.seen.lock().body_bytes += taken as u64;
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    fn read_head(&mut self) -> Result<Recorded, Over> {
        let head = self.take_until(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Recorded { head, method, target, path, fields, ..Recorded::default() })
    }

    fn read_body(&mut self, framing: Framing) -> Result<Vec<u8>, Over> {
        let mut body = Vec::new();
        match framing {
            Framing::None => {}
            Framing::Length(length) => self.take(length, &mut body)?,
            Framing::Chunked => loop {
                let line = self.take_until(b"\r\n")?;
                let size = String::from_utf8_lossy(&line);
                let size = u64::from_str_radix(size.trim().split(';').next().unwrap_or_default(), 16).map_err(|_| Over)?;
                if size == 0 {
                    loop {
                        let line = self.take_until(b"\r\n")?;
                        if line == b"\r\n" {
                            break;
                        }
                        self.trailers.push_str(&String::from_utf8_lossy(&line));
                    }
                    break;
                }
                self.take(size, &mut body)?;
                self.take_until(b"\r\n")?;
            },
        }
        Ok(body)
    }
}

/// How the body of a request ends.
enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    fn of(request: &Recorded) -> Self {
        if request.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Self::Chunked;
        }
        match request.field("content-length").and_then(|length| length.parse().ok()) {
            None | Some(0) => Self::None,
            Some(length) => Self::Length(length),
        }
    }

    const fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}
