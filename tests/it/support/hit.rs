//! The path of a hit without a socket: a proxy in this process that holds one response, and a client that sends the
//! same request again and again. Instructions (`benches/hit.rs`) and allocations are counted on it. The same for a request
//! that passes, with a kept connection to an origin.

use parking_lot::Mutex;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tiercel::config::{self, Sources, settings::Limits};
use tiercel::invalidation::Journal;
use tiercel::listener::{Peer, Socket, http1};
use tiercel::observe::access_log::AccessLog;
use tiercel::observe::metrics::Metrics;
use tiercel::proxy::{Live, Proxy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    request: &'static str,
    status_line: &'static str,
    /// What Cache-Status says.
    told: &'static str,
    /// With the access log, in JSON.
    pub logged: bool,
}

const PLAIN: Case = Case {
    name: "plain",
    request: "GET /item/1 HTTP/1.1\r\nHost: bench.example\r\nAccept-Encoding: gzip\r\n\r\n",
    status_line: "HTTP/1.1 200 OK\r\n",
    told: "; hit;",
    logged: false,
};

/// Nobody may store what it is answered, and nobody waits for another's answer.
const PASSED: Case =
    Case { name: "passed", request: "GET /own/1 HTTP/1.1\r\nHost: bench.example\r\n\r\n", told: "; detail=NO-STORE", ..PLAIN };

/// All but the last ask for the same stored response of 1 KiB, with Vary, ETag and two surrogate keys.
pub const CASES: [Case; 5] = [
    PLAIN,
    Case {
        name: "browser",
        request: "GET /item/1 HTTP/1.1\r\nHost: bench.example\r\nConnection: keep-alive\r\n\
            sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n\
            Upgrade-Insecure-Requests: 1\r\n\
            User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
            Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
            Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\
            Referer: http://bench.example/list?page=3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
            Cookie: _ga=GA1.1.1234567890.1700000000; consent=all; theme=dark; session=0123456789abcdef0123456789abcdef; cart=17\r\n\
            Priority: u=0, i\r\n\r\n",
        ..PLAIN
    },
    Case {
        name: "conditional",
        request: "GET /item/1 HTTP/1.1\r\nHost: bench.example\r\nAccept-Encoding: gzip\r\nIf-None-Match: \"0-item-1\"\r\n\r\n",
        status_line: "HTTP/1.1 304 Not Modified\r\n",
        ..PLAIN
    },
    Case { name: "logged", logged: true, ..PLAIN },
    PASSED,
];

/// A proxy with twenty sites and fifty routes that holds the response.
pub struct HitPath {
    runtime: Runtime,
    proxy: Arc<Proxy>,
    limits: Arc<Limits>,
    /// Kept: a connection whose drain signal lost its sender takes another way.
    drain: watch::Sender<bool>,
}

impl HitPath {
    /// With the access log, if `logged`: lines are formatted as ever, and go nowhere.
    pub fn start(logged: bool) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
        let config = include_str!("../../../benches/perf/tiercel.conf.in").replace("@WORKERS@", "1").replace("@PORT@", "0");
        let target = if logged { "target = \"/dev/null\"\nformat = \"json\"\nqueue = 100000" } else { "target = \"off\"" };
        let config = config.replace("target = \"off\"", target);
        std::fs::write(file.path(), config.replace("@ORIGIN@", &origin().to_string())).expect("a writable file");
        let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
        let settings = config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
        let metrics = Metrics::new(settings.server.workers);
        let access_log = Arc::new(AccessLog::open(&settings.log.access, Arc::clone(&metrics)).expect("off, or a file that is there"));
        let live = Live::new(settings.clone(), None, &metrics);
        let proxy = Proxy::new(&settings, live, Arc::new(Journal::new(&settings.purge.bounds)), metrics, access_log, Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let path = Self { runtime, proxy, limits: Arc::new(settings.limits.clone()), drain: watch::Sender::new(false) };
        path.warm();
        path
    }

    /// Asks until the response is stored, which is soon after it was first answered.
    fn warm(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (connection, heard) = self.connect(CASES[0].request, 1, || {});
            self.runtime.block_on(connection);
            let answer = String::from_utf8_lossy(&heard.lock().last).into_owned();
            if answer.contains("; hit;") {
                return;
            }
            assert!(Instant::now() < deadline, "never stored: {answer}");
        }
    }

    /// `count` such requests over one connection. `before_each` is called when one is about to be read.
    ///
    /// The connection is polled by hand, by a waker that does nothing: no runtime is counted with a hit. What passes waits
    /// for its origin, by the runtime. Instructions are counted from entering this function to leaving it, so it must remain
    /// one.
    #[inline(never)]
    pub fn hits(&self, case: Case, count: u64, before_each: impl FnMut() + Send + Unpin + 'static) {
        let _entered = self.runtime.enter();
        let (connection, heard) = self.connect(case.request, count, before_each);
        let mut connection = pin!(connection);
        if case.told == PASSED.told {
            self.runtime.block_on(connection);
        } else {
            let mut context = Context::from_waker(Waker::noop());
            let mut polls = 0;
            while connection.as_mut().poll(&mut context).is_pending() {
                polls += 1;
                assert!(polls < 3 * count + 10, "a hit waits for more than its request");
            }
        }
        let heard = heard.lock();
        let last = String::from_utf8_lossy(&heard.last);
        assert_eq!(heard.answers, count, "{last}");
        assert!(last.starts_with(case.status_line) && last.contains(case.told), "{last}");
        assert!(case.told == PASSED.told || heard.writes == count, "{} writes for {count} hits, head and body apart", heard.writes);
    }

    fn connect<F>(&self, request: &'static str, count: u64, before_each: F) -> (impl Future<Output = ()>, Arc<Mutex<Heard>>)
    where
        F: FnMut() + Send + Unpin + 'static,
    {
        let heard = Arc::new(Mutex::new(Heard { answers: 0, writes: 0, last: Vec::with_capacity(4096) }));
        let client =
            Client { request: request.as_bytes(), rest: b"", sent: 0, left: count, waited: false, before_each, heard: Arc::clone(&heard) };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let peer = Peer::plain(address, address, 0, "bench");
        (http1::serve(client, peer, Arc::clone(&self.limits), Arc::clone(&self.proxy), self.drain.subscribe()), heard)
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers on each connection until its client leaves. With an Age and a lifetime that have as many digits after hours.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || answer(connection));
        }
    });
    address
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    let stored = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: public, max-age=864000\r\nAge: 1000\r\n\
         Vary: Accept-Encoding\r\nETag: \"0-item-1\"\r\nLast-Modified: Sat, 01 Aug 2026 00:00:00 GMT\r\n\
         Surrogate-Key: item-1 list-7\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    );
    let own = format!(
        "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 01 Aug 2026 00:00:00 GMT\r\nContent-Type: text/html\r\n\
         Content-Length: 1024\r\nLast-Modified: Sat, 01 Aug 2026 00:00:00 GMT\r\nConnection: keep-alive\r\n\
         ETag: \"6a6d2b80-400\"\r\nCache-Control: no-store\r\nAccept-Ranges: bytes\r\n\r\n{}",
        "x".repeat(1024)
    );
    let mut is_own = false;
    for line in BufReader::new(connection.try_clone()?).lines() {
        let line = line?;
        if line.starts_with("GET ") {
            is_own = line.starts_with("GET /own/");
        }
        if line.is_empty() {
            connection.write_all(if is_own { own.as_bytes() } else { stored.as_bytes() })?;
        }
    }
    Ok(())
}

/// What a client got.
struct Heard {
    answers: u64,
    /// Calls that wrote.
    writes: u64,
    last: Vec<u8>,
}

/// Sends its request again when the answer to the last one is out, `left` times, then leaves. Before each request it has
/// nothing to read once, as a socket has.
struct Client<F> {
    request: &'static [u8],
    /// What is unread of the request under way.
    rest: &'static [u8],
    sent: u64,
    left: u64,
    waited: bool,
    before_each: F,
    heard: Arc<Mutex<Heard>>,
}

impl<F: FnMut() + Unpin> AsyncRead for Client<F> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            if self.heard.lock().answers < self.sent {
                return Poll::Pending; // who writes the answer looks again
            }
            self.waited = !self.waited;
            if self.waited {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            (self.sent, self.left) = (self.sent + 1, self.left - 1);
            self.rest = self.request;
            self.heard.lock().last.clear();
            (self.before_each)();
        }
        let (now, later) = self.rest.split_at(self.rest.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

impl<F: FnMut() + Unpin + Send + 'static> Socket for Client<F> {}

impl<F: Unpin> AsyncWrite for Client<F> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }
    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut heard = self.heard.lock();
        heard.answers += u64::from(heard.last.is_empty());
        heard.writes += 1;
        slices.iter().for_each(|slice| heard.last.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
