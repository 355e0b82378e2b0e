//! The socket of a connection, which knows what goes over it.
//!
//! h2 writes and flushes each data frame by itself. What it writes is gathered here instead, and sent when there is enough of it or
//! nothing more to be done: a system call, and a record of TLS, for what a client asked at once.

use super::frames::{Excess, Traffic};
use crate::clock;
use crate::config::settings::Http2;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// ENHANCE_YOUR_CALM (RFC 9113 §7).
const CALM: u32 = 0xb;

/// Bytes that are read of a connection which is given up: unread ones would become a reset, which can destroy our last
/// frame.
const LINGER_BYTES: usize = 256 << 10;

/// Bytes that are gathered at most: what a record of TLS has room for (RFC 8446 §5.1).
const GATHERED: usize = 16 << 10;

/// What the socket tells whoever serves its connection, and is told.
#[derive(Debug)]
pub(super) struct Seen {
    /// Streams that nobody has ended.
    open: AtomicUsize,
    /// Bytes that were written.
    written: AtomicU64,
    /// When something of an answer was written last, or a stream ended; boot-time nanoseconds.
    progress_at: AtomicU64,
    /// When something came last; boot-time nanoseconds.
    heard_at: AtomicU64,
    resets: AtomicBool,
    frames: AtomicBool,
    /// The connection is to end, as one that asks for too much.
    enough: AtomicBool,
}

impl Seen {
    fn new(now: u64) -> Self {
        Self {
            open: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            progress_at: AtomicU64::new(0),
            heard_at: AtomicU64::new(now),
            resets: AtomicBool::new(false),
            frames: AtomicBool::new(false),
            enough: AtomicBool::new(false),
        }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub fn progress_at(&self) -> u64 {
        self.progress_at.load(Ordering::Relaxed)
    }

    pub fn heard_at(&self) -> u64 {
        self.heard_at.load(Ordering::Relaxed)
    }

    /// The bound on frames that the client passed.
    pub fn excess(&self) -> Option<Excess> {
        let passed = |(flag, excess): (&AtomicBool, _)| flag.load(Ordering::Relaxed).then_some(excess);
        [(&self.resets, Excess::Resets), (&self.frames, Excess::Frames)].into_iter().find_map(passed)
    }

    /// Gives the connection up when it is polled next.
    pub fn give_up(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    pub fn is_given_up(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }
}

/// The socket, for h2 and for whoever serves the connection: both are polled by one task.
pub(super) struct Watched<S>(Arc<Mutex<Line<S>>>);

struct Line<S> {
    socket: S,
    traffic: Traffic,
    seen: Arc<Seen>,
    /// What is to be sent, of which so much was; no memory while there is nothing.
    gathered: Vec<u8>,
    sent: usize,
    /// The socket may have kept something of what it was given.
    unflushed: bool,
    /// Nothing can be sent any more.
    broken: bool,
    /// What is left to be written of the last frame, once the connection is given up.
    goaway: Option<Bytes>,
    heard: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    pub fn new(socket: S, bounds: &Http2) -> (Self, Arc<Seen>) {
        let now = clock::nanos();
        let seen = Arc::new(Seen::new(now));
        let line = Line {
            socket,
            traffic: Traffic::new(bounds, now),
            seen: Arc::clone(&seen),
            gathered: Vec::new(),
            sent: 0,
            unflushed: false,
            broken: false,
            goaway: None,
            heard: 0,
        };
        (Self(Arc::new(Mutex::new(line))), seen)
    }

    /// The same socket.
    pub fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Sends what was gathered; pending where the client does not take it. Where it cannot be sent the next read fails.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<()> {
        let line = &mut *self.0.lock();
        if line.broken {
            return Poll::Ready(());
        }
        if ready!(line.poll_send(context)).is_err() {
            line.broken = true;
            context.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl<S> Watched<S> {
    /// Looks at the streams that nobody has ended on the wire, in order.
    pub fn look_at_open<T>(&self, look: impl FnOnce(&[u32]) -> T) -> T {
        look(self.0.lock().traffic.open())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(context))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Hands the socket what was gathered.
    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let gathered = std::mem::take(&mut self.gathered);
            let written = self.poll_pass(context, &[IoSlice::new(&gathered[self.sent..])]);
            self.gathered = gathered;
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        (self.gathered, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Hands the socket this, past what is gathered.
    fn poll_pass(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(context, slices))?;
        self.unflushed = true;
        self.wrote(slices, written);
        Poll::Ready(Ok(written))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.seen.is_given_up() {
            ready!(self.poll_write_out(context))?;
            if self.traffic.may_write_frames() {
                return self.poll_goodbye(context).map_ok(|()| 0);
            }
            return self.poll_pass(context, slices);
        }
        if self.gathered.len() == GATHERED {
            ready!(self.poll_write_out(context))?;
        }
        if self.gathered.is_empty() && slices.iter().map(|slice| slice.len()).sum::<usize>() >= GATHERED {
            return self.poll_pass(context, slices);
        }
        if self.gathered.capacity() == 0 {
            self.gathered.reserve_exact(GATHERED);
        }
        let before = self.gathered.len();
        for slice in slices {
            self.gathered.extend_from_slice(&slice[..slice.len().min(GATHERED - self.gathered.len())]);
        }
        Poll::Ready(Ok(self.gathered.len() - before))
    }

    /// Says why, and listens until the client is done. Whoever serves the connection sees to the time.
    fn poll_goodbye(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(context))?;
        if !self.traffic.may_write_frames() {
            return Poll::Pending; // h2 writes the rest of a frame first
        }
        let last = self.traffic.last;
        let goaway = self.goaway.get_or_insert_with(|| {
            let head = [0, 0, 8, 7, 0, 0, 0, 0, 0];
            [&head[..], &last.to_be_bytes(), &CALM.to_be_bytes()].concat().into()
        });
        while !goaway.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, goaway))?;
            goaway.advance(written);
        }
        ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
        let mut room = [const { MaybeUninit::<u8>::uninit() }; 4096];
        while self.heard < LINGER_BYTES {
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut read))?;
            match read.filled().len() {
                0 => return Poll::Ready(Err(io::Error::other("the client asks for too much"))),
                length => self.heard += length,
            }
        }
        Poll::Pending // what was said may still be on its way
    }

    fn note_open(&self, before: usize) {
        let open = self.traffic.open().len();
        self.seen.open.store(open, Ordering::Relaxed);
        if open < before {
            self.note_progress();
        }
    }

    fn note_progress(&self) {
        self.seen.progress_at.store(clock::nanos(), Ordering::Relaxed);
    }

    fn wrote(&mut self, slices: &[IoSlice<'_>], count: usize) {
        let before = self.traffic.open().len();
        self.seen.written.fetch_add(count as u64, Ordering::Relaxed);
        if self.traffic.wrote(slices.iter().map(|slice| &**slice), count) {
            self.note_progress();
        }
        self.note_open(before);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let line = &mut *self.0.lock();
        if line.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !line.seen.is_given_up() {
            let filled = buffer.filled().len();
            let read = Pin::new(&mut line.socket).poll_read(context, buffer);
            if buffer.filled().len() == filled {
                return read;
            }
            line.seen.heard_at.store(clock::nanos(), Ordering::Relaxed);
            let before = line.traffic.open().len();
            let excess = line.traffic.read(&buffer.filled()[filled..], clock::nanos);
            line.note_open(before);
            let Some(excess) = excess else { return read };
            let flag = if excess == Excess::Resets { &line.seen.resets } else { &line.seen.frames };
            flag.store(true, Ordering::Relaxed);
            line.seen.give_up();
            buffer.set_filled(filled);
        }
        line.poll_goodbye(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is gathered is sent by [`Watched::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = &mut *self.0.lock();
        ready!(line.poll_send(context))?;
        Pin::new(&mut line.socket).poll_shutdown(context)
    }
}
