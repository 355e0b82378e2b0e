//! The driver: reads heads, asks the handler, and writes what is at hand in one go. Whatever must wait for more than
//! the socket is in `exchange`, boxed, so that an idle connection is small.

use super::alarms::Alarms;
use super::framing::RequestPlan;
use super::held::Held;
use super::intake::Intake;
use super::parse::{HeadExtent, HeadScan};
use super::write::{self, Frame, Framing};
use super::{ANSWERS_IN_A_ROW, FIRST_REQUEST_WAIT, LINGER_BYTES, LINGER_TIME, Preface, READ_BYTES, TRIM_AFTER, bad, framing, parse};
use crate::body::{BodyError, BodyStream, ResponseBody, Tunnel};
use crate::clock;
use crate::config::settings::Limits;
use crate::listener::{Handled, Handler, InterimReceiver, InterimSlot, Later, Peer, Refusal, RequestHead, Response, Sent, Socket};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use crate::semantics::target::Scheme;
use crate::semantics::{Fields, StatusCode, name, upgrade};
use bytes::{Buf, BytesMut};
use http::Method;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

/// What comes after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    /// The end was agreed on.
    Close,
    /// We end it; the client may still be sending.
    Linger,
    /// The last answer did not end as it should; `reset` where only a reset shows that (delimited by close).
    Abort {
        reset: bool,
    },
    /// It is no connection of HTTP/1: what was read stands in the buffer.
    HandOver,
}

/// What waiting for more of a head came to.
enum Filled {
    More,
    End,
    Expired,
}

/// A whole head at the beginning of the buffer.
enum WholeHead {
    /// It was read; so many bytes are its.
    Read(usize),
    Unread(HeadExtent),
}

/// An answer on its way.
pub(super) struct Answer {
    pub status: StatusCode,
    pub outcome: Outcome,
    pub framing: Framing,
    pub frame: Frame,
    pub source: Source,
    /// The client wants further requests answered, and so do we.
    pub persist: bool,
}

/// How far a request came without waiting.
enum Begun {
    Done(Next),
    /// The socket takes no more for now, or the body is yet to come.
    Answering(Box<Answer>),
    /// The handler, or the request body, is to be waited for.
    Waiting(Box<Waiting>),
    Panicked,
}

/// A request whose answer is not there yet, or whose body is not.
pub(super) struct Waiting {
    pub answer: Coming,
    pub interims: Option<InterimReceiver>,
    pub intake: Option<Intake>,
}

pub(super) enum Coming {
    There(Box<Response>),
    Later(Later),
}

/// Where the body of an answer comes from, beyond what the frame holds.
pub(super) enum Source {
    None,
    Stream(Pin<Box<dyn BodyStream>>),
    Tunnel(Box<dyn Tunnel>),
}

/// One client connection.
pub(super) struct Connection<S, H> {
    pub io: S,
    pub peer: Peer,
    pub limits: Arc<Limits>,
    pub handler: Arc<H>,
    pub alarms: Alarms,
    /// Bytes read and not used yet.
    pub buffer: BytesMut,
    /// While there are buffers.
    held: Option<Held>,
    scan: HeadScan,
    preface: Preface,
    pub head: RequestHead,
    /// Whether `head` is that of the request under way.
    head_is_whole: bool,
    /// Bytes to be written.
    pub out: Vec<u8>,
    /// The client sends no more.
    pub eof: bool,
    /// Requests so far.
    served: u64,
    in_a_row: u32,
    /// When the first byte of the request under way was there, boot-time nanoseconds.
    pub began: u64,
}

impl<S, H> Connection<S, H>
where
    S: Socket,
    H: Handler,
{
    pub fn new(
        io: S,
        peer: Peer,
        limits: Arc<Limits>,
        handler: Arc<H>,
        drain: tokio::sync::watch::Receiver<bool>,
        preface: Preface,
    ) -> Self {
        Self {
            io,
            peer,
            limits,
            handler,
            alarms: Alarms::new(drain),
            buffer: BytesMut::new(),
            held: None,
            scan: HeadScan::default(),
            preface,
            head: RequestHead { method: Method::GET, target: Vec::new(), minor_version: 1, fields: Fields::new() },
            head_is_whole: false,
            out: Vec::new(),
            eof: false,
            served: 0,
            in_a_row: 0,
            began: 0,
        }
    }

    /// What the last request came to.
    pub async fn run(&mut self) -> Next {
        let last = loop {
            match self.request().await {
                Next::Request => {}
                last => break last,
            }
        };
        if last != Next::HandOver {
            Box::pin(self.end(last)).await;
        }
        last
    }

    /// One request, from its first byte to the last of its answer.
    async fn request(&mut self) -> Next {
        self.head_is_whole = false;
        let whole = match self.find_head() {
            Ok(Some(whole)) => {
                self.began = clock::nanos();
                whole
            }
            Ok(None) => match self.read_head().await {
                Ok(whole) => whole,
                Err(next) => return next,
            },
            Err(refusal) => {
                self.began = clock::nanos();
                return Box::pin(self.refuse(refusal)).await;
            }
        };
        let plan = match self.take_head(whole) {
            Ok(plan) => plan,
            // A head that was read is gone from the buffer: what begins there is its body.
            Err(_) if !self.head_is_whole && self.begins_http2() => return Next::HandOver,
            Err(refusal) => return Box::pin(self.refuse(refusal)).await,
        };
        self.served += 1;
        let next = self.dispatch(plan).await;
        self.in_a_row += 1;
        if self.in_a_row >= ANSWERS_IN_A_ROW {
            self.in_a_row = 0;
            tokio::task::yield_now().await;
        }
        next
    }

    fn begins_http2(&self) -> bool {
        self.preface == Preface::HandedOver && self.served == 0 && self.buffer.starts_with(HTTP2)
    }

    /// Looks for a whole head in the buffer; reads it, where nothing is unusual about it.
    fn find_head(&mut self) -> Result<Option<WholeHead>, Refusal> {
        // Once for each head: one that comes byte by byte costs no more than its scan.
        if self.scan.is_new()
            && let Some(end) = parse::read_plain(&self.buffer, &self.limits, &mut self.head)
        {
            return Ok(Some(WholeHead::Read(end)));
        }
        Ok(self.scan.scan(&self.buffer, &self.limits)?.map(WholeHead::Unread))
    }

    fn take_head(&mut self, whole: WholeHead) -> Result<RequestPlan, Refusal> {
        let end = match whole {
            WholeHead::Read(end) => end,
            WholeHead::Unread(extent) => {
                parse::parse(&self.buffer[extent.start..extent.end], extent.field_lines, &self.limits, &mut self.head)?;
                extent.end
            }
        };
        self.head_is_whole = true;
        self.buffer.advance(end);
        self.scan = HeadScan::default();
        framing::plan(&mut self.head, &self.limits)
    }

    async fn dispatch(&mut self, plan: RequestPlan) -> Next {
        match poll_fn(|context| Poll::Ready(self.begin(context, plan))).await {
            Begun::Done(next) => next,
            Begun::Answering(answer) => Box::pin(self.answer(answer, None, plan)).await,
            Begun::Waiting(waiting) => Box::pin(self.exchange(*waiting, plan)).await,
            Begun::Panicked => Box::pin(self.refuse(PANIC)).await,
        }
    }

    /// Asks the handler, and does all that needs no waiting. Not `async`: what is at hand for an answer is large, and would
    /// be a part of every connection, idle ones too.
    fn begin(&mut self, context: &mut Context<'_>, plan: RequestPlan) -> Begun {
        let (body, intake) = Intake::open(plan.body, self.limits.body_bytes, self.limits.header_count, plan.expect);
        let mut interim = InterimSlot::default();
        let handled = catch_unwind(AssertUnwindSafe(|| self.handler.handle(&self.peer, &self.head, body, &mut interim)));
        let interims = interim.take();
        let answer = match handled {
            Ok(Handled::Ready(response)) if intake.is_none() && interims.is_none() => {
                return match self.answer_at_once(context, response, plan) {
                    Ok(next) => Begun::Done(next),
                    Err(answer) => Begun::Answering(answer),
                };
            }
            Ok(Handled::Ready(response)) => Coming::There(Box::new(response)),
            Ok(Handled::Later(later)) => Coming::Later(later),
            Err(_) => return Begun::Panicked,
        };
        Begun::Waiting(Box::new(Waiting { answer, interims, intake }))
    }

    /// The fast path: all bytes of the answer are at hand, and the socket takes them. `Err`: what it does not take yet, or
    /// what is yet to come.
    pub fn answer_at_once(&mut self, context: &mut Context<'_>, response: Response, plan: RequestPlan) -> Result<Next, Box<Answer>> {
        let mut answer = self.begin_answer(response, plan, None);
        if matches!(answer.source, Source::None) {
            match self.poll_write(context, &mut answer.frame) {
                Poll::Ready(Ok(())) => return Ok(self.finish(&answer, plan)),
                Poll::Ready(Err(_)) => return Ok(self.finish_aborted(&answer, BodyError::ClientLeft)),
                Poll::Pending => {}
            }
        }
        Err(Box::new(answer))
    }

    /// Frames the answer: its head, and a body that is at hand, stand ready to be written.
    pub fn begin_answer(&mut self, response: Response, plan: RequestPlan, intake: Option<&Intake>) -> Answer {
        let Response { status, fields, body, close, outcome } = response;
        let (to_head, minor) = (self.head.method == Method::HEAD, self.head.minor_version);
        let framing = write::framing(status, to_head, minor, &body);
        let unread =
            intake.is_some_and(|intake| !intake.is_done() && (intake.expects || intake.is_gone() && intake.is_too_long_to_discard()));
        let enough = self.served >= self.limits.requests_per_connection;
        let would_persist = !close && plan.persist && !unread && framing != Framing::UntilClose;
        if enough && would_persist {
            self.handler.bound(Bound::RequestsPerConnection);
        }
        let persist = would_persist && !enough && !self.alarms.draining();
        let connection = match (&body, persist, minor) {
            (ResponseBody::Tunnel(_), ..) => write::Connection::Upgrade,
            (_, false, _) => write::Connection::Close,
            (_, true, 0) => write::Connection::KeepAlive,
            (_, true, _) => write::Connection::Silent,
        };
        self.out.clear();
        write::head(&mut self.out, status, &fields, framing, connection);
        let (body, source) = match (body, framing) {
            (ResponseBody::Tunnel(tunnel), _) => (ResponseBody::Empty, Source::Tunnel(tunnel)),
            (_, Framing::Bare | Framing::HeadOnly(_)) => (ResponseBody::Empty, Source::None),
            (ResponseBody::Stream { stream, .. }, _) => (ResponseBody::Empty, Source::Stream(stream)),
            (body, _) => (body, Source::None),
        };
        Answer { status, outcome, framing, frame: Frame::with_body(&mut self.out, body), source, persist }
    }

    /// The last byte of an answer went out, and its request was read to the end.
    fn finish(&mut self, answer: &Answer, plan: RequestPlan) -> Next {
        self.report(answer, None);
        self.after(answer, plan)
    }

    pub fn after(&self, answer: &Answer, plan: RequestPlan) -> Next {
        // What follows a request to upgrade that was declined may be of the other protocol: not read as HTTP. A client that
        // offers h2c goes on in HTTP/1.1 where nobody takes it up, and may do so at once.
        let fields = &self.head.fields;
        let early = !self.buffer.is_empty() && fields.has(name::UPGRADE) && upgrade::may_look_like_requests(fields);
        if answer.persist && !early {
            Next::Request
        } else if !plan.persist && self.buffer.is_empty() {
            Next::Close
        } else {
            Next::Linger
        }
    }

    pub fn finish_aborted(&mut self, answer: &Answer, error: BodyError) -> Next {
        self.report(answer, Some(error));
        Next::Abort { reset: answer.framing == Framing::UntilClose }
    }

    pub fn report(&self, answer: &Answer, aborted: Option<BodyError>) {
        let sent = Sent {
            status: answer.status,
            body_bytes: answer.frame.body_written(),
            duration_ns: clock::nanos().saturating_sub(self.began),
            aborted,
        };
        self.handler.finished(&self.peer, &self.head, &answer.outcome, &sent);
    }

    /// Writes what the frame holds; ready when all of it is out.
    pub fn poll_write(&mut self, context: &mut Context<'_>, frame: &mut Frame) -> Poll<io::Result<()>> {
        while !frame.is_written(&self.out) {
            let written = match frame.in_pages(&self.out) {
                Some((lead, place)) if S::TAKES_PAGES => ready!(self.io.poll_send(context, lead, place))?,
                _ => ready!(self.poll_write_slices(context, frame))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            frame.advance(&self.out, written);
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_write_slices(&mut self, context: &mut Context<'_>, frame: &Frame) -> Poll<io::Result<usize>> {
        if let Some(rest) = frame.alone(&self.out) {
            return Pin::new(&mut self.io).poll_write(context, rest);
        }
        match &frame.slices(&self.out)[..] {
            [one] => Pin::new(&mut self.io).poll_write(context, one),
            many => Pin::new(&mut self.io).poll_write_vectored(context, many),
        }
    }

    /// Reads into the buffer, which gets `room` where it is nearly full. 0: the client sends no more.
    pub fn poll_read(&mut self, context: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() == 0 {
            return self.poll_first_read(context);
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(room);
        }
        let read = ready!(pin!(self.io.read_buf(&mut self.buffer)).poll(context))?;
        self.eof |= read == 0;
        Poll::Ready(Ok(read))
    }

    /// A connection that waits holds no buffer: it gets one when there is something to put in.
    fn poll_first_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(context, &mut read))?;
        self.eof |= read.filled().is_empty();
        if !self.eof {
            self.held.get_or_insert_with(|| Held::by(self.peer.worker));
            self.buffer.reserve(READ_BYTES);
            self.buffer.extend_from_slice(read.filled());
        }
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Reads until the head under way is whole.
    async fn read_head(&mut self) -> Result<WholeHead, Next> {
        self.in_a_row = 0;
        if !self.is_idle() {
            self.began = clock::nanos();
        }
        let mut deadline = None;
        let mut trimmed = false;
        loop {
            let idle = self.is_idle();
            match poll_fn(|context| self.poll_head(context, &mut deadline)).await {
                Filled::More if idle => (self.began, deadline) = (clock::nanos(), None),
                Filled::More => {}
                Filled::Expired if !idle => return Err(Box::pin(self.refuse(HEADER_TIMEOUT)).await),
                Filled::Expired if !trimmed && !self.alarms.draining() => {
                    trimmed = true;
                    self.trim();
                    deadline = deadline.map(|at: Instant| at - self.trim_after() + self.limits.idle_timeout);
                    continue;
                }
                Filled::End if !idle && self.eof => return Err(Box::pin(self.refuse(bad("head-truncated"))).await),
                Filled::Expired => {
                    if !self.alarms.draining() {
                        self.handler.bound(Bound::IdleTimeout);
                    }
                    return Err(Next::Close);
                }
                Filled::End => return Err(Next::Close),
            }
            match self.find_head() {
                Ok(Some(whole)) => return Ok(whole),
                Ok(None) => {}
                Err(refusal) => return Err(Box::pin(self.refuse(refusal)).await),
            }
        }
    }

    fn poll_head(&mut self, context: &mut Context<'_>, deadline: &mut Option<Instant>) -> Poll<Filled> {
        if self.eof {
            return Poll::Ready(Filled::End);
        }
        let idle = self.is_idle();
        // Before anything else: closing with bytes unread would reset the connection and lose a request that is there.
        match self.poll_read(context, READ_BYTES) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Filled::End),
            Poll::Ready(Ok(_)) => return Poll::Ready(Filled::More),
            Poll::Pending => {}
        }
        if idle && self.held.as_ref().is_some_and(Held::by_many) {
            self.trim();
        }
        let wait = if idle { self.trim_after() } else { self.limits.header_timeout };
        let mut at = *deadline.get_or_insert_with(|| Instant::now() + wait);
        if idle && self.alarms.poll_drain(context).is_ready() {
            if self.served > 0 {
                return Poll::Ready(Filled::End);
            }
            // Whoever has just connected is about to ask, and knows nothing of our end.
            at = at.min(Instant::now() + FIRST_REQUEST_WAIT);
            *deadline = Some(at);
        }
        self.alarms.poll_deadline(context, at).map(|()| Filled::Expired)
    }

    /// Nothing of a request is there. Some clients send an empty line behind a body (RFC 9112 §2.2).
    fn is_idle(&self) -> bool {
        matches!(&self.buffer[..], b"" | b"\r\n")
    }

    fn trim_after(&self) -> std::time::Duration {
        TRIM_AFTER.min(self.limits.idle_timeout)
    }

    /// Gives memory back while nothing is under way.
    fn trim(&mut self) {
        self.held = None;
        self.buffer = BytesMut::new();
        self.scan = HeadScan::default();
        self.out = Vec::new();
        self.head.fields = Fields::new();
        self.head.target = Vec::new();
    }

    /// Answers a request by ourselves, and closes: where one request was not understood, the next cannot be found.
    pub async fn refuse(&mut self, refusal: Refusal) -> Next {
        self.report_refused(refusal);
        self.out.clear();
        let to_head = self.head_is_whole && self.head.method == Method::HEAD;
        write::refusal(&mut self.out, refusal, &self.handler.name(), to_head, clock::now().wall_ms);
        match self.write_out().await {
            Ok(()) => Next::Linger,
            Err(_) => Next::Close,
        }
    }

    pub fn report_refused(&self, refusal: Refusal) {
        let head = self.head_is_whole.then_some(&self.head);
        self.handler.refused(&self.peer, head, refusal, clock::nanos().saturating_sub(self.began));
    }

    async fn end(&mut self, last: Next) {
        let tls = self.peer.scheme == Scheme::Https;
        match last {
            Next::Linger => self.linger().await,
            // Closing a plain socket says the same as shutting it down; TLS has a close of its own.
            Next::Close if tls => _ = tokio::time::timeout(LINGER_TIME, self.io.shutdown()).await,
            Next::Abort { reset: true } => self.io.reset_on_close(),
            Next::Request | Next::Close | Next::Abort { .. } | Next::HandOver => {}
        }
    }

    /// Says that we are done and listens until the client is too: unread bytes at close would become a reset, which can
    /// destroy an answer that the client has not read (RFC 9112 §9.6).
    async fn linger(&mut self) {
        let listen = async {
            self.io.shutdown().await?;
            let mut heard = 0;
            while heard < LINGER_BYTES && !self.eof {
                self.buffer.clear();
                heard += poll_fn(|context| self.poll_read(context, READ_BYTES)).await?;
            }
            io::Result::Ok(())
        };
        _ = tokio::time::timeout(LINGER_TIME, listen).await;
    }
}

/// A handler that panicked: its request fails, nothing else.
pub(super) const PANIC: Refusal = Refusal { status: 500, reason: "panic" };
/// The part of HTTP/2's preface that looks like a request head; `SM` and two line ends follow.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
const HEADER_TIMEOUT: Refusal = Refusal { status: 408, reason: "header-timeout" };
