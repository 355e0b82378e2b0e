//! What the writer and the readers of a fill share: bytes, positions, and who waits for what.
//!
//! No task, no timer, no I/O: `now` and wakers come in, decisions and deadlines go out; [`super::fill`] makes futures
//! of it. Every change goes through [`Buffer::change`], which invokes wakers after the lock is released.
//!
//! Invariants: a reader is a position, never an index, so segments may be merged under it; `positions` counts the
//! readers that have bytes to come and only those; a fill that is not stored any more never is again; bytes are
//! charged while they are held here, until the body that is made of them is stored: then with that.

use super::budget::{Charge, FillBudget};
use super::sync::{Instant, Mutex};
use super::wake::{Awake, Place, Sleepers};
use crate::body::{BodyError, StoredBody};
use crate::semantics::Fields;
use bytes::Bytes;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Neighbours that are together at most this long become one segment as they arrive, so that an origin that sends
/// byte by byte costs bytes, and a small piece does not pin the large read buffer that it was cut from.
const TINY: usize = 4 * 1024;

/// Bounds and thresholds of one fill.
#[derive(Debug)]
pub struct Rules {
    pub declared: Option<u64>,
    pub keep_at_most: u64,
    pub lag: u64,
    pub stall: Duration,
    pub finish_rest: u64,
    pub finish_share: f64,
}

/// Why storing ended while the body still streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstored {
    TooLarge,
    Memory,
}

/// A whole body. Its bytes are exactly as large as they say: no slack of a read buffer hangs on them. They are charged
/// to the budget for fills until [`super::fill::Fill::stored`] or the end of the fill and its readers; whoever keeps
/// them weighs them.
#[derive(Debug, Clone)]
pub struct CompleteBody {
    /// One up to 256 KiB; else each between 16 KiB and 1 MiB. None for an empty body.
    pub segments: Arc<[Bytes]>,
    pub length: u64,
    pub trailers: Option<Fields>,
}

/// The shared core of a fill.
#[derive(Debug)]
pub struct Buffer {
    rules: Rules,
    state: Mutex<State>,
}

/// Where one reader is. Not shared: the reader holds it.
#[derive(Debug)]
pub struct Cursor {
    /// Its entry; `None` once it has learnt its end.
    slot: Option<usize>,
    end: Option<u64>,
    place: Option<Place>,
}

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    Data(Bytes),
    Trailers(Fields),
    End,
    Failed(BodyError),
}

/// What became of a push.
#[derive(Debug, PartialEq, Eq)]
pub enum Push {
    Done,
    /// It stopped being stored: whoever must know is told now; then try again at once.
    Unstored,
    /// It failed, or nobody wants the rest.
    Abandoned,
    /// Wait to be woken, and look again at the deadline where there is one.
    Wait(Option<Instant>),
}

#[derive(Debug)]
struct State {
    segments: VecDeque<Segment>,
    /// Where the bytes that are held begin; freed before it.
    first: u64,
    arrived: u64,
    charge: Charge,
    unstored: Option<Unstored>,
    end: Option<End>,
    whole: Option<Arc<[Bytes]>>,
    /// What was stored of it: while readers are here they read that.
    stored: Option<Arc<StoredBody>>,
    readers: Slab<Reader>,
    /// How many readers stand where.
    positions: BTreeMap<u64, usize>,
    tickets: usize,
    /// Whether a reader or ticket was ever made: before, the first is being waited for.
    wanted: bool,
    /// Readers that have read everything and wait for more.
    starved: Sleepers,
    writer: Option<Waker>,
    gate: Option<Gate>,
    held_up: Stopwatch,
    wake_readers: bool,
    wake_writer: bool,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    bytes: Bytes,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

#[derive(Debug)]
struct Reader {
    position: u64,
    /// How long it has held others up, in the waits that it is out of.
    stalled: Duration,
    detached: bool,
}

#[derive(Debug)]
enum End {
    Complete(Option<Fields>),
    Failed(BodyError),
}

/// The writer waits until no reader stands before `threshold`.
#[derive(Debug)]
struct Gate {
    threshold: u64,
    /// The stopwatch when it shut.
    mark: Duration,
}

/// Time during which the writer waited for slow readers while another reader had nothing left to read.
#[derive(Debug, Default)]
struct Stopwatch {
    sum: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    fn read(&self, now: Instant) -> Duration {
        self.sum + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
    /// Says whether it was started.
    fn run(&mut self, run: bool, now: Instant) -> bool {
        if run == self.since.is_some() {
            return false;
        }
        self.sum = self.read(now);
        self.since = run.then_some(now);
        run
    }
}

impl Buffer {
    pub fn new(budget: &Arc<FillBudget>, rules: Rules) -> Arc<Self> {
        let declared = rules.declared.unwrap_or(0);
        let unstored = if declared > rules.keep_at_most || rules.keep_at_most == 0 {
            Some(Unstored::TooLarge)
        } else if budget.left() == 0 || declared > budget.left() {
            Some(Unstored::Memory)
        } else {
            None
        };
        Arc::new(Self { rules, state: Mutex::new(State::new(budget.empty(), unstored)) })
    }

    /// Applies a change and wakes whom it concerns, after the lock is released.
    fn change<R>(&self, change: impl FnOnce(&mut State, &Rules) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state, &self.rules);
        let readers = if std::mem::take(&mut state.wake_readers) { state.starved.take() } else { Awake::default() };
        let writer = if std::mem::take(&mut state.wake_writer) { state.writer.take() } else { None };
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        readers.wake();
        result
    }

    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    // The writer's side.

    /// Appends `bytes`, or says what to wait for; the waker is then invoked when it is time to try again.
    pub fn poll_push(&self, bytes: &Bytes, now: Instant, waker: &Waker) -> Push {
        self.change(|state, rules| state.push(rules, bytes, now, waker))
    }

    pub fn poll_abandoned(&self, waker: &Waker) -> Poll<()> {
        self.change(|state, rules| {
            if state.end.is_some() || state.give_up(rules) {
                return Poll::Ready(());
            }
            state.writer = Some(waker.clone());
            Poll::Pending
        })
    }

    /// The body is whole.
    pub fn finish(&self, trailers: Option<Fields>) -> Result<(), BodyError> {
        self.change(|state, rules| {
            if let Some(End::Failed(error)) = state.end {
                return Err(error);
            }
            if rules.declared.is_some_and(|declared| declared != state.arrived) {
                state.conclude(End::Failed(BodyError::Truncated));
                return Err(BodyError::Truncated);
            }
            state.whole = state.unstored.is_none().then(|| state.segments.iter().map(|segment| segment.bytes.clone()).collect());
            state.conclude(End::Complete(trailers));
            Ok(())
        })
    }

    /// The body failed, unless it has ended already.
    pub fn fail(&self, error: BodyError) {
        self.change(|state, _| {
            if state.end.is_none() {
                state.conclude(End::Failed(error));
            }
        });
    }

    /// The segments from `start`, the start of one, while all are kept.
    pub fn since(&self, start: u64) -> Vec<Bytes> {
        let state = self.state.lock();
        let at = state.segments.partition_point(|segment| segment.start < start);
        state.segments.range(at..).map(|segment| segment.bytes.clone()).collect()
    }

    /// Puts `bytes` in the place of the segments from `start`, whose bytes they are.
    pub fn replace_since(&self, start: u64, bytes: Bytes) {
        let mut state = self.state.lock();
        let at = state.segments.partition_point(|segment| segment.start < start);
        let replaced = state.segments.split_off(at);
        state.segments.push_back(Segment { start, bytes });
        drop(state);
        // Large buffers may be freed here, outside the lock.
        drop(replaced);
    }

    /// The whole body is kept elsewhere. Where these very bytes are, they are weighed there and not charged here any more.
    pub fn stored(&self, body: &Arc<StoredBody>) {
        let mut state = self.state.lock();
        let first = |segments: &[Bytes]| segments.first().map(|segment| segment.as_ptr());
        if state.whole.as_deref().is_some_and(|whole| first(whole) == first(body.segments())) {
            let charged = state.charge.bytes();
            state.charge.shrink(charged);
        }
        state.stored = Some(Arc::clone(body));
    }

    // The readers' side.

    pub fn open(&self, start: u64, end: Option<u64>, now: Instant) -> Option<Cursor> {
        self.change(|state, _| {
            let gone = start < state.first || (state.unstored.is_some() && state.first > 0);
            let over = match state.end {
                None => false,
                Some(End::Complete(_)) => start > state.arrived,
                Some(End::Failed(_)) => true,
            };
            if gone || over {
                return None;
            }
            state.wanted = true;
            if let Some(threshold) = state.gate.as_ref().map(|gate| gate.threshold) {
                state.unshut(now); // what others have held up so far is not this reader's
                state.shut(threshold, now);
            }
            *state.positions.entry(start).or_default() += 1;
            let slot = state.readers.insert(Reader { position: start, stalled: Duration::ZERO, detached: false });
            Some(Cursor { slot: Some(slot), end, place: None })
        })
    }

    pub fn poll_read(&self, cursor: &mut Cursor, now: Instant, waker: &Waker) -> Poll<Read> {
        self.change(|state, _| state.read(cursor, now, waker))
    }

    pub fn close(&self, cursor: &mut Cursor, now: Instant) {
        self.change(|state, _| state.leave(cursor, now));
    }

    /// Somebody may still open a reader.
    pub fn hold(&self) {
        self.change(|state, _| {
            state.wanted = true;
            state.tickets += 1;
        });
    }

    pub fn release(&self, now: Instant) {
        self.change(|state, _| {
            state.tickets -= 1;
            state.moved(now);
        });
    }

    /// Whether what readers hold is wanted back.
    pub fn is_revoked(&self) -> bool {
        self.state.lock().stored.as_ref().is_some_and(|body| body.is_revoked())
    }

    // What anybody may ask.

    pub fn arrived(&self) -> u64 {
        self.state.lock().arrived
    }

    pub fn unstored(&self) -> Option<Unstored> {
        self.state.lock().unstored
    }

    pub fn readers(&self) -> usize {
        let state = self.state.lock();
        state.readers.iter().filter(|(_, reader)| !reader.detached).count()
    }

    pub fn failure(&self) -> Option<BodyError> {
        match self.state.lock().end {
            Some(End::Failed(error)) => Some(error),
            _ => None,
        }
    }

    pub fn complete(&self) -> Option<CompleteBody> {
        let state = self.state.lock();
        match (&state.end, &state.whole) {
            (Some(End::Complete(trailers)), Some(whole)) => {
                Some(CompleteBody { segments: Arc::clone(whole), length: state.arrived, trailers: trailers.clone() })
            }
            _ => None,
        }
    }
}

impl State {
    fn new(charge: Charge, unstored: Option<Unstored>) -> Self {
        Self {
            segments: VecDeque::new(),
            first: 0,
            arrived: 0,
            charge,
            unstored,
            end: None,
            whole: None,
            stored: None,
            readers: Slab::new(),
            positions: BTreeMap::new(),
            tickets: 0,
            wanted: false,
            starved: Sleepers::default(),
            writer: None,
            gate: None,
            held_up: Stopwatch::default(),
            wake_readers: false,
            wake_writer: false,
        }
    }

    fn push(&mut self, rules: &Rules, bytes: &Bytes, now: Instant, waker: &Waker) -> Push {
        let length = bytes.len() as u64;
        loop {
            if self.is_closed(rules, length) {
                return Push::Abandoned;
            }
            if self.unstored.is_none() {
                if !self.keep(rules, length) {
                    return Push::Unstored; // which may mean that nobody wants it
                }
            } else if !self.has_room(rules, length, now) {
                if self.detach_overdue(rules, now) {
                    continue;
                }
                self.wake_writer = false;
                self.writer = Some(waker.clone());
                return Push::Wait(self.deadline(rules, now));
            }
            self.append(bytes, now);
            self.free(); // readers may all be waiting for what comes later
            return Push::Done;
        }
    }

    /// Whether there is no point in `length` bytes more; ends the body where they are one too many.
    fn is_closed(&mut self, rules: &Rules, length: u64) -> bool {
        if self.end.is_some() || self.give_up(rules) {
            return true;
        }
        let excess = rules.declared.is_some_and(|declared| self.arrived + length > declared);
        if excess {
            self.conclude(End::Failed(BodyError::Malformed));
        }
        excess
    }

    /// Ends the body if nobody wants it and finishing it unread is not worth while. From then on nobody can join, so
    /// the writer may stop without taking anybody by surprise.
    fn give_up(&mut self, rules: &Rules) -> bool {
        let finish = self.unstored.is_none()
            && rules.declared.is_some_and(|declared| {
                declared.saturating_sub(self.arrived) <= rules.finish_rest || self.arrived as f64 >= rules.finish_share * declared as f64
            });
        let give_up = !self.is_wanted() && !finish;
        if give_up {
            self.conclude(End::Failed(BodyError::ClientLeft));
        }
        give_up
    }

    fn is_wanted(&self) -> bool {
        !self.wanted || self.tickets > 0 || !self.positions.is_empty()
    }

    fn conclude(&mut self, end: End) {
        self.end = Some(end);
        self.wake_readers = true;
    }

    /// Charges `length` bytes of a body that is being stored; where that may not be, storing ends.
    fn keep(&mut self, rules: &Rules, length: u64) -> bool {
        let refused = if self.arrived + length > rules.keep_at_most {
            Unstored::TooLarge
        } else if !self.charge.grow(length) {
            Unstored::Memory
        } else {
            return true;
        };
        self.unstored = Some(refused);
        self.free();
        false
    }

    /// Charges `length` bytes of a body that is not stored, or shuts the gate until readers have made room. Where
    /// nobody has anything left to read there always is: without one segment the body would not get on.
    fn has_room(&mut self, rules: &Rules, length: u64, now: Instant) -> bool {
        let slowest = self.slowest();
        let threshold = (self.arrived + length).saturating_sub(rules.lag).min(self.arrived);
        if slowest < threshold {
            self.shut(threshold, now);
            return false;
        }
        if slowest >= self.arrived {
            self.charge.force(length);
        } else if !self.charge.grow(length) {
            self.shut(self.arrived, now);
            return false;
        }
        true
    }

    /// The position of the slowest reader; before there is any, and while one may still come, where the bytes begin.
    fn slowest(&self) -> u64 {
        if self.tickets > 0 {
            return self.first;
        }
        self.positions.first_key_value().map_or(self.first, |(position, _)| *position)
    }

    fn append(&mut self, bytes: &Bytes, now: Instant) {
        self.unshut(now);
        let start = self.arrived;
        self.arrived += bytes.len() as u64;
        match self.segments.back_mut() {
            Some(last) if last.bytes.len() + bytes.len() <= TINY => last.bytes = concat(&[last.bytes.clone(), bytes.clone()]),
            _ if bytes.len() <= TINY => self.segments.push_back(Segment { start, bytes: Bytes::copy_from_slice(bytes) }),
            _ => self.segments.push_back(Segment { start, bytes: bytes.clone() }),
        }
        self.wake_readers = true;
    }

    fn shut(&mut self, threshold: u64, now: Instant) {
        if self.gate.as_ref().is_none_or(|gate| gate.threshold != threshold) {
            self.unshut(now);
            self.gate = Some(Gate { threshold, mark: self.held_up.read(now) });
        }
        self.watch(now);
    }

    /// Opens the gate and books what those who still stand before it have held others up.
    fn unshut(&mut self, now: Instant) {
        if let Some(gate) = self.gate.take() {
            let spent = self.held_up.read(now) - gate.mark;
            for (_, reader) in self.readers.iter_mut().filter(|(_, reader)| reader.position < gate.threshold) {
                reader.stalled += spent;
            }
        }
        self.watch(now);
    }

    /// Lets the stopwatch run while slow readers hold others up. The writer must learn of its start: it has the timer.
    fn watch(&mut self, now: Instant) {
        let started = self.held_up.run(self.gate.is_some() && !self.starved.is_empty(), now);
        self.wake_writer |= started;
    }

    /// Detaches readers that have held others up for too long; says whether there were any.
    fn detach_overdue(&mut self, rules: &Rules, now: Instant) -> bool {
        let overdue: Vec<usize> = self.holding(now).filter(|(_, stalled)| *stalled >= rules.stall).map(|(slot, _)| slot).collect();
        for slot in &overdue {
            self.readers[*slot].detached = true;
            self.step_off(self.readers[*slot].position);
            self.charge.budget().count_detached();
        }
        self.free();
        !overdue.is_empty()
    }

    /// When the first of those who hold others up will have done so for too long.
    fn deadline(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        self.holding(now).map(|(_, stalled)| now + rules.stall.saturating_sub(stalled)).min()
    }

    /// Readers that hold others up now, with the time for which they have done so in sum.
    fn holding(&self, now: Instant) -> impl Iterator<Item = (usize, Duration)> {
        let gate = self.gate.as_ref().filter(|_| self.held_up.since.is_some());
        let (threshold, spent) = gate.map_or((0, Duration::ZERO), |gate| (gate.threshold, self.held_up.read(now) - gate.mark));
        let before = self.readers.iter().filter(move |(_, reader)| !reader.detached && reader.position < threshold);
        before.map(move |(slot, reader)| (slot, reader.stalled + spent))
    }

    fn read(&mut self, cursor: &mut Cursor, now: Instant, waker: &Waker) -> Poll<Read> {
        let Some(slot) = cursor.slot else { return Poll::Ready(Read::End) };
        let Reader { position, detached, .. } = self.readers[slot];
        let satisfied = cursor.end.is_some_and(|end| position >= end);
        let last = match &self.end {
            _ if detached => Read::Failed(BodyError::Detached),
            _ if satisfied => Read::End,
            _ if position < self.arrived => {
                let bytes = self.slice(position, cursor.end);
                let to = position + bytes.len() as u64;
                if cursor.end == Some(to) {
                    self.leave(cursor, now); // it may never ask again, and must not hold others up
                } else {
                    self.advance(slot, to, now);
                }
                return Poll::Ready(Read::Data(bytes));
            }
            None => {
                self.starved.register(&mut cursor.place, waker);
                self.watch(now);
                return Poll::Pending;
            }
            Some(End::Failed(error)) => Read::Failed(*error),
            // It was asked for more than there was.
            Some(End::Complete(_)) if position > self.arrived || cursor.end.is_some() => Read::Failed(BodyError::Truncated),
            Some(End::Complete(trailers)) => trailers.clone().map_or(Read::End, Read::Trailers),
        };
        self.leave(cursor, now);
        Poll::Ready(last)
    }

    /// The rest of the segment at `position`, up to `end`.
    fn slice(&self, position: u64, end: Option<u64>) -> Bytes {
        let segment = &self.segments[self.segments.partition_point(|segment| segment.end() <= position)];
        let end = end.unwrap_or(u64::MAX).min(segment.end());
        segment.bytes.slice((position - segment.start) as usize..(end - segment.start) as usize)
    }

    fn advance(&mut self, slot: usize, to: u64, now: Instant) {
        let reader = &mut self.readers[slot];
        let from = std::mem::replace(&mut reader.position, to);
        if let Some(gate) = self.gate.as_ref().filter(|gate| from < gate.threshold && gate.threshold <= to) {
            reader.stalled += self.held_up.read(now) - gate.mark;
        }
        *self.positions.entry(to).or_default() += 1;
        self.step_off(from);
        self.moved(now);
    }

    /// The reader is done, whether it has read everything or not.
    fn leave(&mut self, cursor: &mut Cursor, now: Instant) {
        let Some(slot) = cursor.slot.take() else { return };
        let reader = self.readers.remove(slot);
        self.starved.leave(cursor.place.take());
        if !reader.detached {
            self.step_off(reader.position);
        }
        self.moved(now);
    }

    fn step_off(&mut self, position: u64) {
        if let Some(readers) = self.positions.get_mut(&position) {
            *readers -= 1;
            if *readers == 0 {
                self.positions.remove(&position);
            }
        }
    }

    /// After readers moved or left: frees what they have passed, and wakes the writer where it can go on.
    fn moved(&mut self, now: Instant) {
        self.free();
        let open = self.gate.as_ref().is_some_and(|gate| self.slowest() >= gate.threshold);
        self.wake_writer |= open || !self.is_wanted();
        self.watch(now);
    }

    fn free(&mut self) {
        if self.unstored.is_none() || self.positions.is_empty() {
            return;
        }
        let slowest = self.slowest();
        while let Some(segment) = self.segments.pop_front_if(|segment| segment.end() <= slowest) {
            self.first = segment.end();
            self.charge.shrink(segment.bytes.len() as u64);
        }
    }
}

/// The bytes of all pieces as one segment without slack.
pub fn concat(pieces: &[Bytes]) -> Bytes {
    let mut whole = Vec::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    Bytes::from(whole)
}
