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

    fn run(mut self: Box<Self>, mut step: Step) -> Made {
        let mut out = Vec::with_capacity(step.pieces.len() + 1);
        let next = match (self.go_through(&mut step, &mut out), step.then) {
            (Err(error), _) => State::Failed(error),
            (Ok(true), _) => State::Halfway(self, step),
            (Ok(false), Then::GoOn | Then::Flush) => State::Ready(self),
            (Ok(false), Then::Finish) => match (*self).finish() {
                Ok(last) => {
                    out.push(last);
                    State::Over
                }
                Err(error) => State::Failed(error),
            },
        };
        Made { next, out: joined(&out) }
    }

    /// Takes the pieces of a step; true where more may come of it than came by now.
    fn go_through(&mut self, step: &mut Step, out: &mut Vec<Bytes>) -> Result<bool, BodyError> {
        match self {
            Self::Encode(encoder) => {
                for bytes in step.pieces.drain(..) {
                    out.push(encoder.write(&bytes).map_err(not_coded)?);
                }
                if matches!(step.then, Then::Flush) {
                    out.push(encoder.flush().map_err(not_coded)?);
                }
                Ok(false)
            }
            // It keeps nothing back that could be flushed.
            Self::Decode(decoder) => {
                let (bytes, has_more) = decoder.decode(&mut step.pieces).map_err(not_decoded)?;
                out.push(bytes);
                Ok(has_more)
            }
        }
    }

    fn finish(self) -> Result<Bytes, BodyError> {
        match self {
            Self::Encode(encoder) => encoder.finish().map_err(not_coded),
            Self::Decode(decoder) => decoder.finish().map_err(not_decoded),
        }
    }
}

fn not_coded(_: io::Error) -> BodyError {
    BodyError::NotCoded
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
    /// How the source ended, when it did.
    end: Option<Result<(), BodyError>>,
    trailers: Option<Fields>,
}

enum State {
    Ready(Box<Codec>),
    /// So much came of a part of a step that it goes out before the rest is gone through.
    Halfway(Box<Codec>, Step),
    Working(Work),
    /// What came before that went out.
    Failed(BodyError),
    Over,
}

type Work = Pin<Box<dyn Future<Output = Made> + Send>>;

/// What a piece of work came to.
struct Made {
    next: State,
    out: Bytes,
}

/// What is done in one go. To hand work to another thread and to come back costs as much as to code some kilobytes.
struct Step {
    pieces: VecDeque<Bytes>,
    then: Then,
}

#[derive(Clone, Copy)]
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
    fn take(&mut self) -> VecDeque<Bytes> {
        let mut room = self.bytes.min(PIECE);
        self.bytes -= room;
        let mut taken = VecDeque::with_capacity(self.pieces.len());
        while room > 0
            && let Some(first) = self.pieces.front_mut()
        {
            let piece = first.split_to(room.min(first.len()));
            if first.is_empty() {
                self.pieces.pop_front();
            }
            room -= piece.len();
            taken.push_back(piece);
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
            end: None,
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
        } else {
            self.run_in_pool(codec, step);
        }
    }

    /// Goes through the rest of a step: there is much to do, or it would be over.
    fn go_on(&mut self) {
        if let State::Halfway(codec, step) = std::mem::replace(&mut self.state, State::Over) {
            self.run_in_pool(codec, step);
        }
    }

    fn run_in_pool(&mut self, codec: Box<Codec>, step: Step) {
        self.at_once = 0;
        let work = self.pool.clone().run(move || codec.run(step));
        let not_done = || Made { next: State::Failed(BodyError::NotCoded), out: Bytes::new() };
        self.state = State::Working(Box::pin(async move { work.await.unwrap_or_else(|_| not_done()) }));
    }

    /// What the source has to give next becomes a step; pending while it pauses. What came before an error goes out first.
    fn take(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while self.input.bytes < PIECE && self.end.is_none() {
            match self.source.as_mut().poll_chunk(context) {
                Poll::Ready(Some(Ok(Chunk::Data(bytes)))) => self.input.push(bytes),
                Poll::Ready(Some(Ok(Chunk::Trailers(trailers)))) => self.trailers = Some(trailers),
                Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => self.end = Some(Ok(())),
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
        let is_last = self.input.bytes <= PIECE;
        match self.end {
            Some(Err(error)) if self.input.bytes == 0 && !self.dirty => return Poll::Ready(Err(error)),
            Some(Err(_)) if is_last => self.step(Then::Flush),
            Some(Ok(())) if is_last => self.step(Then::Finish),
            _ => self.step(Then::GoOn),
        }
        Poll::Ready(Ok(()))
    }

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
                State::Failed(error) => {
                    let error = *error;
                    if error == BodyError::TooLarge {
                        this.pool.metrics().bound(Bound::DecodedBytes);
                    }
                    return this.fail(error);
                }
                State::Ready(_) => {
                    if let Err(error) = ready!(this.take(context)) {
                        return this.fail(error);
                    }
                }
                State::Halfway(..) => this.go_on(),
                State::Working(work) => {
                    let Made { next, out } = ready!(work.as_mut().poll(context));
                    this.state = next;
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Chunk::Data(out))));
                    }
                }
            }
        }
    }

    fn is_revoked(&self) -> bool {
        self.source.is_revoked()
    }
}

#[cfg(test)]
mod tests {
    use super::super::decoder::OUT_MAX;
    use super::super::encoder::encode;
    use super::super::encoder::testing::decode;
    use super::*;
    use crate::observe::metrics::Metrics;
    use crate::semantics::coding::{Coding, Wanted};
    use crate::semantics::dictionary::Dictionary;
    use crate::semantics::policy::{Compression, DecodeLimits};
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::Waker;

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

    fn decoded(coding: Coding, ratio: u64, script: Vec<Option<Result<Chunk, BodyError>>>) -> Coded {
        let decoder = Decoder::new(coding, DecodeLimits { ratio, bytes: 64 << 20 }).unwrap();
        Coded::new(Box::pin(Script(script.into(), None)), Codec::Decode(decoder), Pool::new(1, Metrics::new(1)), false)
    }

    fn form(coding: Coding, bytes: Vec<u8>) -> Bytes {
        encode(&Wanted::plain(coding), &Compression::default().level, &[bytes.into()]).unwrap()
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
    async fn a_source_that_fails_is_no_whole_form_and_what_it_gave_goes_out() {
        for coding in Coding::PLAIN {
            let mut coded = coded(coding, false, vec![data("some"), data(" more"), Some(Err(BodyError::Truncated))]);
            let (out, end) = rest(&mut coded).await;
            assert!(matches!(end, Some(Err(BodyError::Truncated))), "{end:?}");
            assert_eq!(decode(coding, &out).unwrap(), b"some more");
            // Half of it stands for more than a step of a decoder makes.
            let some: Vec<u8> =
                (0_u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string().into_bytes()).take(600_000).collect();
            let whole = form(coding, some);
            for end in [10, whole.len() / 2, whole.len()] {
                let mut decoded = decoded(coding, 1000, vec![data(&whole[..end]), Some(Err(BodyError::Reset))]);
                let (out, error) = rest(&mut decoded).await;
                assert!(matches!(error, Some(Err(BodyError::Reset))), "{error:?}");
                assert_eq!(out, decode(coding, &whole[..end]).unwrap_or_default(), "{coding:?} up to {end}");
                let least = if end == 10 { 0 } else { 40_000 };
                assert!(out.len() >= least, "{coding:?} up to {end}: {}", out.len());
                assert!(next(&mut decoded).await.is_none());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_decoded_before_an_error_goes_out() {
        let text = b"a text that comes to something; ".repeat(100);
        for coding in Coding::PLAIN {
            let whole = form(coding, text.clone());
            let (half, other_half) = whole.split_at(whole.len() / 2);
            let mut decoded = decoded(coding, 1000, vec![data(half), data(other_half), data("in no coding")]);
            let (out, end) = rest(&mut decoded).await;
            assert!(out == text && matches!(end, Some(Err(BodyError::Malformed))), "{coding:?}: {} and {end:?}", out.len());
        }
    }

    /// Some kilobytes stand for ten megabytes: they are made as they are taken.
    #[tokio::test]
    async fn no_more_is_decoded_at_a_time_than_may_be_held() {
        const LENGTH: usize = 10 << 20;
        for coding in Coding::PLAIN {
            let bomb = form(coding, vec![0; LENGTH]);
            assert!(bomb.len() < PIECE, "one step: {}", bomb.len());
            let (mut decoded, mut length, mut most) = (decoded(coding, u64::MAX, vec![data(bomb)]), 0, 0);
            while let Some(chunk) = next(&mut decoded).await {
                let Ok(Chunk::Data(bytes)) = chunk else { panic!("{chunk:?}") };
                (length, most) = (length + bytes.len(), most.max(bytes.len()));
            }
            assert_eq!(length, LENGTH, "{coding:?}");
            assert!(most <= OUT_MAX, "{coding:?}: {most} bytes at a time");
        }
    }

    /// Nothing comes out of a pool without a place.
    #[test]
    fn a_delta_is_made_in_the_pool_where_content_and_dictionary_are_large() {
        for (content, length, at_once) in [(100, 1000, true), (60 << 10, 1 << 10, false), (100, 60 << 10, false)] {
            let dictionary = Arc::new(Dictionary::new(vec![b'a'; length].into()));
            let wanted = Wanted { coding: Coding::Dcz, dictionary: Some(dictionary) };
            let encoder = Encoder::new(&wanted, &Compression::default().level, None).unwrap();
            let source = Script([data(vec![b'b'; content])].into(), None);
            let mut coded = Coded::new(Box::pin(source), Codec::Encode(encoder), Pool::new(0, Metrics::new(1)), false);
            let first = Pin::new(&mut coded).poll_chunk(&mut Context::from_waker(Waker::noop()));
            assert_eq!(first.is_ready(), at_once, "{content} bytes against {length}");
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
