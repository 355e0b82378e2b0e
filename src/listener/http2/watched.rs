//! The socket of a connection, which knows what goes over it.

use super::frames::{Excess, Traffic};
use crate::clock;
use crate::config::settings::Http2;
use bytes::{Buf, Bytes};
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

/// What the socket tells whoever serves its connection, and is told.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Streams that nobody has ended.
    open: AtomicUsize,
    /// When something of an answer was written last, or a stream ended; boot-time nanoseconds.
    progress_at: AtomicU64,
    resets: AtomicBool,
    frames: AtomicBool,
    /// The connection is to end, as one that asks for too much.
    enough: AtomicBool,
}

impl Seen {
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn progress_at(&self) -> u64 {
        self.progress_at.load(Ordering::Relaxed)
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

pub(super) struct Watched<S> {
    socket: S,
    traffic: Traffic,
    seen: Arc<Seen>,
    /// What is left to be written of the last frame, once the connection is given up.
    goaway: Option<Bytes>,
    heard: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    pub fn new(socket: S, bounds: &Http2) -> (Self, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        let traffic = Traffic::new(bounds, clock::nanos());
        (Self { socket, traffic, seen: Arc::clone(&seen), goaway: None, heard: 0 }, seen)
    }

    /// Says why, and listens until the client is done. Whoever serves the connection sees to the time.
    fn poll_goodbye(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// The connection was given up, and h2 is not in the middle of a frame.
    fn is_silent(&self) -> bool {
        self.seen.is_given_up() && self.traffic.may_write_frames()
    }

    fn note_open(&self, before: usize) {
        let open = self.traffic.open();
        self.seen.open.store(open, Ordering::Relaxed);
        if open < before {
            self.note_progress();
        }
    }

    fn note_progress(&self) {
        self.seen.progress_at.store(clock::nanos(), Ordering::Relaxed);
    }

    fn wrote(&mut self, slices: &[IoSlice<'_>], count: usize) {
        let before = self.traffic.open();
        if self.traffic.wrote(slices.iter().map(|slice| &**slice), count) {
            self.note_progress();
        }
        self.note_open(before);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.seen.is_given_up() {
            let filled = buffer.filled().len();
            let read = Pin::new(&mut this.socket).poll_read(context, buffer);
            let before = this.traffic.open();
            let excess = this.traffic.read(&buffer.filled()[filled..], clock::nanos);
            this.note_open(before);
            let Some(excess) = excess else { return read };
            let flag = if excess == Excess::Resets { &this.seen.resets } else { &this.seen.frames };
            flag.store(true, Ordering::Relaxed);
            this.seen.give_up();
            buffer.set_filled(filled);
        }
        this.poll_goodbye(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_silent() {
            return self.poll_goodbye(context).map_ok(|()| 0);
        }
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.wrote(&[IoSlice::new(bytes)], count);
        }
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.is_silent() {
            return self.poll_goodbye(context).map_ok(|()| 0);
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(count)) = written {
            self.wrote(slices, count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
