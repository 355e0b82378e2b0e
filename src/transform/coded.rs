//! A body that is coded, or decoded, as it comes.
//!
//! What takes long is done in the [`Pool`]; a few small pieces are coded at once, since handing them over would cost more.
//! When the source pauses, what came so far is flushed: of a stream of events at once, of anything else after
//! [`FLUSH_AFTER`], so that what merely arrives piece by piece is coded as well as if it had come whole.

use super::decoder::{DecodeError, Decoder};
use super::encoder::Encoder;
use super::pool::Pool;
use crate::body::{BodyError, BodyStream, Chunk};
use crate::observe::metrics::Bound;
use crate::semantics::Fields;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// Bytes that are coded on the core that serves: brotli and gzip at their fast levels take less than 200 us for them.
pub const AT_ONCE: usize = 8 << 10;
/// Bytes that are coded in one piece of work, so that the first of a large body do not wait for the last.
const PIECE: usize = 64 << 10;
/// How long a pause is that makes what came so far go out.
pub const FLUSH_AFTER: Duration = Duration::from_millis(10);

/// What is done to it.
pub enum Codec {
    Encode(Encoder),
    Decode(Decoder),
}

impl Codec {
    /// Bytes that a step goes through.
    fn work(&self, step: &Step) -> usize {
        let written = step.pieces.iter().map(|bytes| match self {
            Self::Encode(encoder) => encoder.work_to_write(bytes),
            Self::Decode(_) => bytes.len(),
        });
        let finished = match (self, &step.then) {
            // What comes with the end is gone through then, with the rest.
            (Self::Encode(encoder @ Encoder::Delta(_)), Then::Finish) => {
                encoder.work_to_finish() + step.pieces.iter().map(Bytes::len).sum::<usize>()
            }
            _ => 0,
        };
        written.sum::<usize>() + finished
    }

    fn run(mut self: Box<Self>, step: Step) -> Result<Made, BodyError> {
        let not_coded = |_: io::Error| BodyError::NotCoded;
        let mut out = Vec::with_capacity(step.pieces.len() + 1);
        for bytes in &step.pieces {
            out.push(match &mut *self {
                Self::Encode(encoder) => encoder.write(bytes).map_err(not_coded)?,
                Self::Decode(decoder) => decoder.write(bytes).map_err(not_decoded)?,
            });
        }
        match (&mut *self, step.then) {
            (Self::Encode(encoder), Then::Flush) => out.push(encoder.flush().map_err(not_coded)?),
            (Self::Decode(_), Then::Flush) | (_, Then::GoOn) => {} // a decoder keeps nothing back
            (_, Then::Finish) => {
                out.push(match *self {
                    Self::Encode(encoder) => encoder.finish().map_err(not_coded)?,
                    Self::Decode(decoder) => decoder.finish().map_err(not_decoded)?,
                });
                return Ok((None, joined(&out)));
            }
        }
        Ok((Some(self), joined(&out)))
    }
}

const fn not_decoded(error: DecodeError) -> BodyError {
    match error {
        DecodeError::TooLarge => BodyError::TooLarge,
        DecodeError::Malformed => BodyError::Malformed,
    }
}

fn joined(pieces: &[Bytes]) -> Bytes {
    let mut filled = pieces.iter().filter(|piece| !piece.is_empty());
    match (filled.next(), filled.next()) {
        (first, None) => first.cloned().unwrap_or_default(),
        _ => pieces.concat().into(),
    }
}

/// Codes what `source` gives, or takes its coding off.
pub struct Coded {
    source: Pin<Box<dyn BodyStream>>,
    state: State,
    pool: Pool,
    /// A pause of the source is the end of an event.
    events: bool,
    /// Came and waits to be coded.
    input: Input,
    /// Bytes that were coded here since work was last done in the pool, or flushed.
    at_once: usize,
    /// Something was written since the last flush.
    dirty: bool,
    pause: Option<Pin<Box<Sleep>>>,
    /// The source gives nothing more.
    ended: bool,
    trailers: Option<Fields>,
}

enum State {
    Ready(Box<Codec>),
    Working(Work),
    Over,
}

type Work = Pin<Box<dyn Future<Output = Result<Made, BodyError>> + Send>>;

/// What a piece of work came to; no codec after the end.
type Made = (Option<Box<Codec>>, Bytes);

/// What is done in one go. To hand work to another thread and to come back costs as much as to code some kilobytes.
struct Step {
    pieces: Vec<Bytes>,
    then: Then,
}

enum Then {
    GoOn,
    Flush,
    Finish,
}

#[derive(Default)]
struct Input {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Input {
    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
    }

    /// The first of it, [`PIECE`] bytes at most.
    fn take(&mut self) -> Vec<Bytes> {
        let mut room = self.bytes.min(PIECE);
        self.bytes -= room;
        let mut taken = Vec::with_capacity(self.pieces.len());
        while room > 0
            && let Some(first) = self.pieces.front_mut()
        {
            let piece = first.split_to(room.min(first.len()));
            if first.is_empty() {
                self.pieces.pop_front();
            }
            room -= piece.len();
            taken.push(piece);
        }
        taken
    }
}

impl Coded {
    /// `events`: what comes is a stream of events.
    pub fn new(source: Pin<Box<dyn BodyStream>>, codec: Codec, pool: Pool, events: bool) -> Self {
        Self {
            source,
            state: State::Ready(Box::new(codec)),
            pool,
            events,
            input: Input::default(),
            at_once: 0,
            dirty: false,
            pause: None,
            ended: false,
            trailers: None,
        }
    }

    /// Takes the codec one step further with what came, here or in the pool.
    fn step(&mut self, then: Then) {
        let State::Ready(codec) = std::mem::replace(&mut self.state, State::Over) else { return };
        self.pause = None;
        self.dirty = matches!(then, Then::GoOn);
        let step = Step { pieces: self.input.take(), then };
        self.at_once += codec.work(&step);
        if self.at_once <= AT_ONCE {
            self.at_once = if self.dirty { self.at_once } else { 0 };
            self.state = State::Working(Box::pin(std::future::ready(codec.run(step))));
            return;
        }
        self.at_once = 0;
        let pool = self.pool.clone();
        let work = pool.run(move || codec.run(step));
        self.state = State::Working(Box::pin(async move { work.await.unwrap_or(Err(BodyError::NotCoded)) }));
    }

    /// What the source has to give next becomes a step; pending while it pauses.
    fn take(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while self.input.bytes < PIECE && !self.ended {
            match self.source.as_mut().poll_chunk(context) {
                Poll::Ready(Some(Ok(Chunk::Data(bytes)))) => self.input.push(bytes),
                Poll::Ready(Some(Ok(Chunk::Trailers(trailers)))) => self.trailers = Some(trailers),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending if self.input.bytes > 0 => break,
                Poll::Pending if self.dirty => {
                    if !self.events {
                        ready!(self.pause.get_or_insert_with(|| Box::pin(sleep(FLUSH_AFTER))).as_mut().poll(context));
                    }
                    self.step(Then::Flush);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        self.step(if self.ended && self.input.bytes <= PIECE { Then::Finish } else { Then::GoOn });
        Poll::Ready(Ok(()))
    }
}

impl Coded {
    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Chunk, BodyError>>> {
        (self.state, self.trailers) = (State::Over, None);
        Poll::Ready(Some(Err(error)))
    }
}

impl BodyStream for Coded {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Over => return Poll::Ready(this.trailers.take().map(|trailers| Ok(Chunk::Trailers(trailers)))),
                State::Ready(_) => {
                    if let Err(error) = ready!(this.take(context)) {
                        return this.fail(error);
                    }
                }
                State::Working(work) => match ready!(work.as_mut().poll(context)) {
                    Ok((codec, out)) => {
                        this.state = codec.map_or(State::Over, State::Ready);
                        if !out.is_empty() {
                            return Poll::Ready(Some(Ok(Chunk::Data(out))));
                        }
                    }
                    Err(error) => {
                        if error == BodyError::TooLarge {
                            this.pool.metrics().bound(Bound::DecodedBytes);
                        }
                        return this.fail(error);
                    }
                },
            }
        }
    }

    fn is_revoked(&self) -> bool {
        self.source.is_revoked()
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::testing::decode;
    use super::*;
    use crate::observe::metrics::Metrics;
    use crate::semantics::coding::{Coding, Wanted};
    use crate::semantics::policy::Compression;
    use std::future::poll_fn;

    /// Gives what it has, `None` being a pause of a second.
    struct Script(VecDeque<Option<Result<Chunk, BodyError>>>, Option<Pin<Box<Sleep>>>);

    impl BodyStream for Script {
        fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
            if let Some(Some(chunk)) = self.0.pop_front_if(|next| next.is_some()) {
                return Poll::Ready(Some(chunk));
            }
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            ready!(self.1.get_or_insert_with(|| Box::pin(sleep(Duration::from_secs(1)))).as_mut().poll(context));
            self.0.pop_front();
            self.1 = None;
            self.poll_chunk(context)
        }
    }

    fn coded(coding: Coding, events: bool, script: Vec<Option<Result<Chunk, BodyError>>>) -> Coded {
        let encoder = Encoder::new(&Wanted::plain(coding), &Compression::default().level, None).unwrap();
        Coded::new(Box::pin(Script(script.into(), None)), Codec::Encode(encoder), Pool::new(1, Metrics::new(1)), events)
    }

    fn data(text: impl Into<Vec<u8>>) -> Option<Result<Chunk, BodyError>> {
        Some(Ok(Chunk::Data(text.into().into())))
    }

    async fn next(coded: &mut Coded) -> Option<Result<Chunk, BodyError>> {
        poll_fn(|context| Pin::new(&mut *coded).poll_chunk(context)).await
    }

    /// All data until the end, and the end.
    async fn rest(coded: &mut Coded) -> (Vec<u8>, Option<Result<Chunk, BodyError>>) {
        let mut out = Vec::new();
        loop {
            match next(coded).await {
                Some(Ok(Chunk::Data(bytes))) => out.extend_from_slice(&bytes),
                end => return (out, end),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_and_small_pieces_come_back_in_order() {
        let pieces = [vec![b'a'; 10], vec![b'b'; 300_000], vec![b'c'; AT_ONCE], vec![b'd'; 1], vec![b'e'; PIECE + 1]];
        for coding in Coding::PLAIN {
            let mut coded = coded(coding, false, pieces.iter().map(|piece| data(piece.clone())).collect());
            let (out, end) = rest(&mut coded).await;
            assert!(end.is_none());
            assert_eq!(decode(coding, &out).unwrap(), pieces.concat(), "{coding:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_coded_in_one_go() {
        // Noise: each step gives something.
        let noise: Vec<u8> = (0..7u64 * 16 * 1024).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let mut coded = coded(Coding::Gzip, false, noise.chunks(16 * 1024).map(data).collect());
        let (mut out, mut steps) = (Vec::new(), 0);
        while let Some(Ok(Chunk::Data(bytes))) = next(&mut coded).await {
            out.extend_from_slice(&bytes);
            steps += 1;
        }
        assert_eq!(steps, noise.len().div_ceil(PIECE));
        assert_eq!(decode(Coding::Gzip, &out).unwrap(), noise);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_pause_goes_out() {
        for (coding, events) in Coding::PLAIN.into_iter().flat_map(|coding| [(coding, true), (coding, false)]) {
            let mut coded = coded(coding, events, vec![data("data: one\n\n"), None, data("data: two\n\n"), None]);
            let began = tokio::time::Instant::now();
            let mut out = Vec::new();
            while decode(coding, &out).unwrap_or_default() != b"data: one\n\n" {
                let Some(Ok(Chunk::Data(bytes))) = next(&mut coded).await else { panic!("{coding:?}: it ended") };
                out.extend_from_slice(&bytes);
            }
            let waited = if events { Duration::ZERO } else { FLUSH_AFTER };
            assert!(began.elapsed() >= waited && began.elapsed() < waited + Duration::from_millis(5), "{:?}", began.elapsed());
            out.extend_from_slice(&rest(&mut coded).await.0);
            assert_eq!(decode(coding, &out).unwrap(), b"data: one\n\ndata: two\n\n");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_is_no_whole_form() {
        for coding in Coding::PLAIN {
            let mut coded = coded(coding, false, vec![data("some"), Some(Err(BodyError::Truncated))]);
            let (_, end) = rest(&mut coded).await;
            assert!(matches!(end, Some(Err(BodyError::Truncated))), "{end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_come_after_the_form() {
        let mut trailers = Fields::new();
        trailers.push("x-sum", "1").unwrap();
        let mut coded = coded(Coding::Gzip, false, vec![data("some"), Some(Ok(Chunk::Trailers(trailers)))]);
        let (out, end) = rest(&mut coded).await;
        assert_eq!(decode(Coding::Gzip, &out).unwrap(), b"some");
        assert!(matches!(end, Some(Ok(Chunk::Trailers(_)))), "{end:?}");
        assert!(next(&mut coded).await.is_none());
    }
}
