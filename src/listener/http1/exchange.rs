//! One request and its answer where either must be waited for. Everything goes on at once: the request body comes in
//! while the handler works and while the answer goes out, interim responses go out before it, and a client that resets
//! the connection is noticed.
//!
//! A client that only closed its sending side is still answered (RFC 9112 §9.6 lets it do so), and cannot be told from
//! one that closed altogether until something is written to it. What is streamed to such a client may therefore pause
//! for no longer than the write timeout.

use super::connection::{Answer, Coming, Connection, Next, PANIC, Source, Waiting};
use super::framing::{RequestPlan, has_option};
use super::intake::{Intake, Room};
use super::write::{self, Frame, Framing};
use super::{BODY_READ_BYTES, PIPELINE_BYTES, READ_BYTES, UNREAD_BODY_TIME, bad};
use crate::body::{BodyError, BodyStream, Chunk, Tunnel};
use crate::http1::chunked::begin_chunk;
use crate::listener::{Handler, Interim, InterimReceiver, Later, Refusal, Response, Socket};
use crate::observe::metrics::Bound;
use crate::semantics::name;
use bytes::Bytes;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

type Polled = Option<Result<Chunk, BodyError>>;

/// The client left before there was an answer. No such status goes out; it names the case in log and metrics.
const CLIENT_LEFT: Refusal = Refusal { status: 499, reason: "client-left" };

/// What happened first while the handler was at work.
enum Event {
    Response(Box<Response>),
    Interim(Interim),
    /// The body is wanted, and the client waits to be told.
    Continue,
    Refused(Refusal),
    Gone,
}

impl<S, H> Connection<S, H>
where
    S: Socket,
    H: Handler,
{
    pub async fn exchange(&mut self, waiting: Waiting, plan: RequestPlan) -> Next {
        let Waiting { answer, interims, mut intake } = waiting;
        // Interim responses are unknown to HTTP/1.0 (RFC 9110 §15.2).
        let mut interims = interims.filter(|_| self.head.minor_version > 0);
        let response = match answer {
            Coming::There(response) => response,
            Coming::Later(later) => match self.wait_for_response(later, &mut interims, &mut intake).await {
                Ok(response) => response,
                Err(next) => return next,
            },
        };
        while let Some(interim) = interims.as_mut().and_then(InterimReceiver::try_recv) {
            if self.write_interim(&interim).await.is_err() {
                break;
            }
        }
        let answer = match &intake {
            Some(unread) => Box::new(self.begin_answer(*response, plan, Some(unread))),
            None => match self.at_once(response, plan).await {
                Ok(next) => return next,
                Err(answer) => answer,
            },
        };
        Box::pin(self.answer(answer, intake, plan)).await
    }

    /// See [`Connection::answer_at_once`].
    fn at_once(&mut self, response: Box<Response>, plan: RequestPlan) -> impl Future<Output = Result<Next, Box<Answer>>> {
        let mut response = Some(response);
        poll_fn(move |context| match response.take() {
            Some(response) => Poll::Ready(self.answer_at_once(context, *response, plan)),
            None => Poll::Pending,
        })
    }

    /// Leaving drops the future, and with it whatever it had begun for this client.
    async fn wait_for_response(
        &mut self,
        mut future: Later,
        interims: &mut Option<InterimReceiver>,
        intake: &mut Option<Intake>,
    ) -> Result<Box<Response>, Next> {
        loop {
            let written = match poll_fn(|context| self.poll_event(context, &mut future, interims, intake)).await {
                Event::Response(response) => return Ok(response),
                Event::Interim(interim) => self.write_interim(&interim).await,
                Event::Continue => self.write_continue(intake).await,
                Event::Refused(refusal) => return Err(Box::pin(self.refuse(refusal)).await),
                Event::Gone => Err(BodyError::ClientLeft),
            };
            if written.is_err() {
                self.report_refused(CLIENT_LEFT);
                return Err(Next::Close);
            }
        }
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
        future: &mut Later,
        interims: &mut Option<InterimReceiver>,
        intake: &mut Option<Intake>,
    ) -> Poll<Event> {
        match intake.as_mut().map(|intake| self.poll_intake(context, intake)) {
            Some(Poll::Ready(Err(refusal))) if refusal == CLIENT_LEFT => return Poll::Ready(Event::Gone),
            Some(Poll::Ready(Err(refusal))) => return Poll::Ready(Event::Refused(refusal)),
            Some(Poll::Pending) => {}
            None | Some(Poll::Ready(Ok(()))) if self.is_gone(context) => return Poll::Ready(Event::Gone),
            None | Some(Poll::Ready(Ok(()))) => {}
        }
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(response)) => return Poll::Ready(Event::Response(response)),
            Ok(Poll::Pending) => {}
            Err(_) => return Poll::Ready(Event::Refused(PANIC)),
        }
        if intake.as_ref().is_some_and(Intake::wants_continue) {
            return Poll::Ready(Event::Continue);
        }
        match interims.as_mut().map(|interims| interims.poll_recv(context)) {
            Some(Poll::Ready(interim)) => return Poll::Ready(Event::Interim(interim)),
            Some(Poll::Pending) | None => {}
        }
        Poll::Pending
    }

    /// Moves the request body on as far as client and reader allow; ready at its end, or where it must be refused.
    fn poll_intake(&mut self, context: &mut Context<'_>, intake: &mut Intake) -> Poll<Result<(), Refusal>> {
        loop {
            if intake.is_done() {
                return Poll::Ready(Ok(()));
            }
            match intake.poll_room(context) {
                Poll::Ready(Room::Open) => {}
                Poll::Ready(Room::Gone) if intake.discarding && !intake.is_too_long_to_discard() => {}
                Poll::Ready(Room::Gone) | Poll::Pending => {
                    intake.pace.stop(Instant::now, 0);
                    return Poll::Pending;
                }
            }
            if !self.buffer.is_empty() {
                // A body that is there already needs no 100 (RFC 9110 §10.1.1).
                intake.expects = false;
                if let Err(refusal) = intake.feed(&mut self.buffer) {
                    return Poll::Ready(Err(refusal));
                }
                continue;
            }
            if intake.expects {
                return Poll::Pending;
            }
            match self.poll_body_bytes(context, intake) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
    }

    fn poll_body_bytes(&mut self, context: &mut Context<'_>, intake: &mut Intake) -> Poll<Result<(), Refusal>> {
        if self.eof {
            intake.fail(BodyError::ClientLeft);
            return Poll::Ready(Err(bad("body-truncated")));
        }
        match self.poll_read(context, BODY_READ_BYTES) {
            Poll::Ready(Ok(read)) => {
                intake.pace.stop(Instant::now, read);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(_)) => {
                intake.fail(BodyError::ClientLeft);
                Poll::Ready(Err(CLIENT_LEFT))
            }
            Poll::Pending => {
                let (at, refusal) = intake.pace.wait(Instant::now, &self.limits);
                if self.alarms.poll_deadline(context, at).is_ready() {
                    intake.fail(BodyError::Timeout);
                    return Poll::Ready(Err(refusal));
                }
                Poll::Pending
            }
        }
    }

    /// Takes in what the client sends ahead, up to a bound; true where it reset the connection.
    fn is_gone(&mut self, context: &mut Context<'_>) -> bool {
        while !self.eof && self.buffer.len() < PIPELINE_BYTES {
            match self.poll_read(context, READ_BYTES) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }

    async fn write_interim(&mut self, interim: &Interim) -> Result<(), BodyError> {
        self.out.clear();
        write::interim(&mut self.out, interim);
        self.write_out().await
    }

    async fn write_continue(&mut self, intake: &mut Option<Intake>) -> Result<(), BodyError> {
        if let Some(intake) = intake {
            intake.expects = false;
        }
        self.out.clear();
        self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.write_out().await
    }

    /// Writes what stands in `out`, and nothing else meanwhile.
    pub async fn write_out(&mut self) -> Result<(), BodyError> {
        let mut frame = Frame::plain(&self.out);
        self.write_frame(&mut frame, &mut None).await
    }

    /// Sends an answer to its end, then sees to what is left of its request.
    pub async fn answer(&mut self, mut answer: Box<Answer>, mut intake: Option<Intake>, plan: RequestPlan) -> Next {
        let written = match std::mem::replace(&mut answer.source, Source::None) {
            Source::None => self.write_frame(&mut answer.frame, &mut intake).await,
            Source::Stream(stream) => self.write_stream(&mut answer, stream, &mut intake).await,
            Source::Tunnel(tunnel) => return self.run_tunnel(answer, tunnel, intake).await,
        };
        if let Err(error) = written {
            return self.finish_aborted(&answer, error);
        }
        self.report(&answer, None);
        let settled = match intake {
            Some(intake) => self.settle(intake).await,
            None => true,
        };
        if settled { self.after(&answer, plan) } else { Next::Linger }
    }

    /// Sees to a request body that was not whole when its answer was: whoever still reads it gets it; what nobody reads
    /// is thrown away, if it is short and quick. False: the connection cannot be used again.
    async fn settle(&mut self, mut intake: Intake) -> bool {
        if !intake.is_done() && (intake.expects || intake.is_failed()) {
            return false;
        }
        intake.discarding = true;
        let mut deadline = None;
        poll_fn(|context| {
            if let Poll::Ready(read) = self.poll_intake(context, &mut intake) {
                return Poll::Ready(read.is_ok());
            }
            if !intake.is_gone() {
                return Poll::Pending;
            }
            let at = *deadline.get_or_insert_with(|| Instant::now() + UNREAD_BODY_TIME);
            match intake.is_too_long_to_discard() || self.alarms.poll_deadline(context, at).is_ready() {
                true => Poll::Ready(false),
                false => Poll::Pending,
            }
        })
        .await
    }

    async fn write_frame(&mut self, frame: &mut Frame, intake: &mut Option<Intake>) -> Result<(), BodyError> {
        let (mut deadline, mut before) = (None, None);
        poll_fn(|context| {
            self.pump(context, intake);
            if frame.is_revoked() {
                self.handler.bound(Bound::ReaderDetached);
                return Poll::Ready(Err(BodyError::Detached));
            }
            match self.poll_write(context, frame) {
                Poll::Ready(result) => return Poll::Ready(result.map_err(|_| BodyError::ClientLeft)),
                Poll::Pending => {}
            }
            if before.replace(frame.progress()) != Some(frame.progress()) {
                deadline = None;
            }
            let at = *deadline.get_or_insert_with(|| Instant::now() + self.limits.write_timeout);
            self.alarms.poll_deadline(context, at).map(|()| {
                self.handler.bound(Bound::WriteTimeout);
                Err(BodyError::Detached)
            })
        })
        .await
    }

    /// Keeps the request body moving while the answer goes out. What is wrong with it is told to its reader; the answer
    /// has begun, so the connection can only be closed after it ([`Connection::settle`] finds it so).
    fn pump(&mut self, context: &mut Context<'_>, intake: &mut Option<Intake>) {
        if let Some(intake) = intake
            && !intake.is_failed()
        {
            if intake.wants_continue() {
                // No 100 may follow a final head (RFC 9110 §15.2), but the client must not wait for it for ever (§10.1.1).
                intake.expects = false;
            }
            _ = self.poll_intake(context, intake);
        }
    }

    /// Sends a streamed body, each piece as it comes.
    async fn write_stream(
        &mut self,
        answer: &mut Answer,
        mut stream: Pin<Box<dyn BodyStream>>,
        intake: &mut Option<Intake>,
    ) -> Result<(), BodyError> {
        let mut ahead = None;
        loop {
            // What was not sent yet (the head) waits only for what is there at once.
            let polled = match ahead.take() {
                Some(polled) => Some(polled),
                None => poll_now(&mut stream).await,
            };
            let polled = match polled {
                Some(polled) => polled,
                None => {
                    self.write_frame(&mut answer.frame, intake).await?;
                    answer.frame.restart(&mut self.out);
                    self.next_chunk(&mut stream, intake).await?
                }
            };
            match polled {
                Some(Ok(Chunk::Data(data))) if data.is_empty() => {}
                Some(Ok(Chunk::Data(data))) => {
                    ahead = self.load(answer, data, &mut stream).await?;
                    self.write_piece(&mut answer.frame, intake, &mut stream).await?;
                    answer.frame.restart(&mut self.out);
                    if answer.is_ended() && matches!(ahead, Some(None)) {
                        return Ok(());
                    }
                }
                Some(Ok(Chunk::Trailers(trailers))) => {
                    let wanted = has_option(&self.head.fields, name::TE, "trailers");
                    return self.write_end(answer, Some(&trailers).filter(|_| wanted), intake).await;
                }
                None => return self.write_end(answer, None, intake).await,
                Some(Err(error)) => {
                    // What came before the fault is sent: the client may make use of it.
                    self.write_frame(&mut answer.frame, intake).await?;
                    return Err(error);
                }
            }
        }
    }

    /// [`Connection::write_frame`] for a piece of a streamed body, unless the memory behind it is wanted back meanwhile.
    async fn write_piece(
        &mut self,
        frame: &mut Frame,
        intake: &mut Option<Intake>,
        stream: &mut Pin<Box<dyn BodyStream>>,
    ) -> Result<(), BodyError> {
        let written = {
            let mut writing = pin!(self.write_frame(frame, intake));
            // Moved in: shared references to a stream cannot go to another thread.
            poll_fn(move |context| match stream.is_revoked() {
                true => Poll::Ready(None),
                false => writing.as_mut().poll(context).map(Some),
            })
            .await
        };
        written.unwrap_or_else(|| {
            self.handler.bound(Bound::ReaderDetached);
            Err(BodyError::Detached)
        })
    }

    /// Frames a piece. Looks one piece ahead, so that the end of a body goes out together with its last bytes.
    async fn load(&mut self, answer: &mut Answer, data: Bytes, stream: &mut Pin<Box<dyn BodyStream>>) -> Result<Option<Polled>, BodyError> {
        if let Framing::Length(left) = &mut answer.framing {
            *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Malformed)?;
        }
        let ahead = poll_now(stream).await;
        let chunked = answer.framing == Framing::Chunked;
        let tail: &'static [u8] = match ahead {
            Some(None) if chunked => b"\r\n0\r\n\r\n",
            _ if chunked => b"\r\n",
            _ => b"",
        };
        if chunked {
            begin_chunk(&mut self.out, data.len());
        }
        answer.frame.load(&self.out, data, tail);
        Ok(ahead)
    }

    async fn write_end(
        &mut self,
        answer: &mut Answer,
        trailers: Option<&crate::semantics::Fields>,
        intake: &mut Option<Intake>,
    ) -> Result<(), BodyError> {
        if answer.framing == Framing::Chunked {
            write::last_chunk(&mut self.out, trailers);
            answer.frame.extend_lead(&self.out);
        }
        self.write_frame(&mut answer.frame, intake).await?;
        match answer.is_ended() {
            true => Ok(()),
            false => Err(BodyError::Truncated),
        }
    }

    /// Waits for the next piece, with the client in view.
    async fn next_chunk(&mut self, stream: &mut Pin<Box<dyn BodyStream>>, intake: &mut Option<Intake>) -> Result<Polled, BodyError> {
        let mut deadline = None;
        poll_fn(|context| {
            self.pump(context, intake);
            if let Poll::Ready(polled) = poll_guarded(stream, context) {
                return Poll::Ready(Ok(polled));
            }
            if intake.as_ref().is_none_or(Intake::is_done) && self.is_gone(context) {
                return Poll::Ready(Err(BodyError::ClientLeft));
            }
            if !self.eof {
                return Poll::Pending;
            }
            let at = *deadline.get_or_insert_with(|| Instant::now() + self.limits.write_timeout);
            self.alarms.poll_deadline(context, at).map(|()| Err(BodyError::ClientLeft))
        })
        .await
    }

    /// After 101: bytes both ways until both sides ended. What the client sent ahead of the 101 goes first.
    async fn run_tunnel(&mut self, mut answer: Box<Answer>, mut tunnel: Box<dyn Tunnel>, intake: Option<Intake>) -> Next {
        let whole = intake.is_none_or(|intake| intake.is_done());
        let copied = match self.write_frame(&mut answer.frame, &mut None).await {
            Ok(()) if whole => self.copy_both_ways(&mut tunnel).await,
            // The rest of a request body would be taken for the other protocol.
            Ok(()) => Err(io::ErrorKind::InvalidData.into()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        };
        match copied {
            Ok(to_client) => {
                answer.frame.count_body(to_client);
                self.report(&answer, None);
                Next::Close
            }
            Err(_) => self.finish_aborted(&answer, BodyError::Reset),
        }
    }

    async fn copy_both_ways(&mut self, tunnel: &mut Box<dyn Tunnel>) -> io::Result<u64> {
        let early = self.buffer.split().freeze();
        tunnel.write_all(&early).await?;
        tunnel.flush().await?;
        let (_, to_client) = tokio::io::copy_bidirectional(&mut self.io, tunnel).await?;
        Ok(to_client)
    }
}

impl Answer {
    /// Whether the body has the length that was announced.
    fn is_ended(&self) -> bool {
        !matches!(self.framing, Framing::Length(1..))
    }
}

/// What the stream has at once; `None`: nothing yet.
async fn poll_now(stream: &mut Pin<Box<dyn BodyStream>>) -> Option<Polled> {
    poll_fn(|context| {
        Poll::Ready(match poll_guarded(stream, context) {
            Poll::Ready(polled) => Some(polled),
            Poll::Pending => None,
        })
    })
    .await
}

/// A source that panics is one that failed.
fn poll_guarded(stream: &mut Pin<Box<dyn BodyStream>>, context: &mut Context<'_>) -> Poll<Polled> {
    catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_chunk(context))).unwrap_or(Poll::Ready(Some(Err(BodyError::Reset))))
}
