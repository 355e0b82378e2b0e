//! What goes over a connection, by the heads of its frames (RFC 9113 §4.1). Pure.
//!
//! hyper and h2 bound what one frame may do; what many of them may do in sum is counted here: frames that bring nothing
//! cost us as much as those that do.

use crate::config::settings::Http2;

/// Types of frames that are told apart.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Bytes of the preface of a client before its first frame.
pub(super) const PREFACE: usize = 24;
/// Data frames with fewer bytes than this bring next to nothing, but for the last one.
const SMALL: usize = 64;
/// A request earns this many frames: windows, priorities and what else goes with it.
const EARNED_BY_REQUEST: u64 = 4;
/// As does each piece of an answer of this many bytes: its reader opens windows.
const EARNED_BY_BYTES: u64 = 1024;
/// Over how long resets are counted, seconds.
const RESET_SECONDS: u64 = 10;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

/// Finds heads in bytes that come in any pieces.
#[derive(Debug)]
pub(super) struct Scanner {
    head: [u8; 9],
    have: usize,
    /// Bytes before the next head.
    skip: usize,
}

impl Scanner {
    /// `skip` bytes come before the first frame.
    pub fn new(skip: usize) -> Self {
        Self { head: [0; 9], have: 0, skip }
    }

    /// Whether the next byte is the first of a frame.
    pub fn is_between_frames(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// Whether more of the frame is to come whose head was found last.
    fn is_in_frame(&self) -> bool {
        self.skip > 0
    }

    /// Tells of each head that ends in these bytes; `false` from it ends the scan.
    pub fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < self.head.len() {
                return;
            }
            let [a, b, c, kind, flags, w, x, y, z] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            (self.have, self.skip) = (0, length);
            found(Frame { length, kind, flags, stream: u32::from_be_bytes([w & 0x7f, x, y, z]) });
        }
    }
}

/// A number of tokens that fills up with time.
#[derive(Debug)]
struct Bucket {
    capacity: u64,
    left: u64,
    /// Nanoseconds for one token.
    every: u64,
    /// Up to when those for time were given.
    at: u64,
}

impl Bucket {
    fn new(capacity: u64, seconds: u64, now: u64) -> Self {
        Self { capacity, left: capacity, every: (seconds * 1_000_000_000 / capacity).max(1), at: now }
    }

    fn earn(&mut self, tokens: u64) {
        self.left = (self.left + tokens).min(self.capacity);
    }

    /// Takes one; false where there is none.
    fn take(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.at) / self.every;
        self.at += earned * self.every;
        self.earn(earned);
        self.left.checked_sub(1).map(|left| self.left = left).is_some()
    }
}

/// A bound on frames that was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// Streams that the client reset.
    Resets,
    /// Frames that bring nothing.
    Frames,
}

/// What a connection has done so far.
#[derive(Debug)]
pub(super) struct Traffic {
    incoming: Scanner,
    outgoing: Scanner,
    resets: Bucket,
    frames: Bucket,
    written: u64,
    /// The last stream that the client opened.
    pub last: u32,
    /// Streams that nobody has ended yet, in order.
    open: Vec<u32>,
    /// The stream that ends with what is being written.
    ending: Option<Ending>,
}

#[derive(Debug, Clone, Copy)]
struct Ending {
    stream: u32,
    /// With the frame whose head went out last; a field section may go on in others.
    is_last: bool,
}

impl Traffic {
    /// `now`: nanoseconds.
    pub fn new(bounds: &Http2, now: u64) -> Self {
        Self {
            incoming: Scanner::new(PREFACE),
            outgoing: Scanner::new(0),
            resets: Bucket::new(bounds.resets, RESET_SECONDS, now),
            frames: Bucket::new(bounds.idle_frames, 1, now),
            written: 0,
            last: 0,
            open: Vec::new(),
            ending: None,
        }
    }

    /// Streams that were opened and that nobody has ended, in order. One that we end is open until the last byte of its last frame
    /// was written.
    pub fn open(&self) -> &[u32] {
        &self.open
    }

    pub fn may_write_frames(&self) -> bool {
        self.outgoing.is_between_frames()
    }

    /// Takes note of what came.
    pub fn read(&mut self, bytes: &[u8], now: impl Fn() -> u64) -> Option<Excess> {
        let Self { incoming, resets, frames, last, open, .. } = self;
        let mut excess = None;
        incoming.scan(bytes, |frame| match frame.kind {
            HEADERS if frame.stream > *last => {
                *last = frame.stream;
                open.push(frame.stream);
                frames.earn(EARNED_BY_REQUEST);
            }
            DATA if frame.length >= SMALL || frame.flags & END_STREAM != 0 => {}
            RST_STREAM => {
                close(open, frame.stream);
                if !resets.take(now()) {
                    excess = Some(Excess::Resets);
                }
            }
            CONTINUATION if frame.length >= SMALL => {} // h2 bounds a head
            _ => {
                if !frames.take(now()) {
                    excess = excess.or(Some(Excess::Frames));
                }
            }
        });
        excess
    }

    /// Takes note of what was written; whether anything of an answer was.
    pub fn wrote<'b>(&mut self, slices: impl Iterator<Item = &'b [u8]>, mut count: usize) -> bool {
        let Self { outgoing, frames, written, open, ending, .. } = self;
        // More of a frame under way is more of an answer, as all long ones are.
        let mut of_answer = !outgoing.is_between_frames();
        *written += count as u64;
        frames.earn(*written / EARNED_BY_BYTES);
        *written %= EARNED_BY_BYTES;
        for slice in slices {
            let taken = count.min(slice.len());
            count -= taken;
            outgoing.scan(&slice[..taken], |frame| {
                end(open, ending); // the frame before is out
                let is_of_answer = matches!(frame.kind, DATA | HEADERS | RST_STREAM);
                of_answer |= is_of_answer;
                if is_of_answer && (frame.kind == RST_STREAM || frame.flags & END_STREAM != 0) {
                    *ending = Some(Ending { stream: frame.stream, is_last: false });
                }
                if let Some(ending) = ending {
                    ending.is_last = matches!(frame.kind, DATA | RST_STREAM) || frame.flags & END_HEADERS != 0;
                }
            });
            if !outgoing.is_in_frame() {
                end(open, ending);
            }
        }
        of_answer
    }
}

/// What ended with the frame that is out now.
fn end(open: &mut Vec<u32>, ending: &mut Option<Ending>) {
    if let Some(ended) = ending.take_if(|ending| ending.is_last) {
        close(open, ended.stream);
    }
}

fn close(open: &mut Vec<u32>, stream: u32) {
    if let Ok(at) = open.binary_search(&stream) {
        open.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.resize(9 + length, 0);
        bytes
    }

    fn traffic(resets: u64, idle_frames: u64) -> Traffic {
        let mut traffic = Traffic::new(&Http2 { resets, idle_frames, ..Http2::default() }, 0);
        assert_eq!(traffic.read(&[0; PREFACE], || 0), None);
        traffic
    }

    #[test]
    fn streams_are_open_until_somebody_ends_them() {
        let mut traffic = traffic(10, 100);
        for stream in [1, 3, 5, 3] {
            assert_eq!(traffic.read(&frame(HEADERS, 5, stream, 10), || 0), None);
        }
        assert_eq!((traffic.open().len(), traffic.last), (3, 5), "the second of 3 are its trailers");
        let whole = [frame(HEADERS, 4, 1, 20), frame(DATA, 0, 1, 100)].concat();
        assert!(traffic.wrote([&whole[..]].into_iter(), whole.len()));
        assert_eq!(traffic.open().len(), 3);
        let end = frame(DATA, END_STREAM, 1, 0);
        assert!(traffic.wrote([&end[..4], &end[4..]].into_iter(), 9) && traffic.open().len() == 2);
        assert_eq!(traffic.read(&frame(RST_STREAM, 0, 5, 4), || 0), None);
        assert!(traffic.wrote([&frame(RST_STREAM, 0, 3, 4)[..]].into_iter(), 13) && traffic.open().is_empty());
        assert!(!traffic.wrote([&frame(6, END_STREAM, 0, 8)[..]].into_iter(), 17), "the answer to a PING is none of ours");
    }

    #[test]
    fn a_stream_ends_with_the_last_byte_of_its_last_frame() {
        let data = frame(DATA, END_STREAM, 1, 100);
        // A head that goes on in another frame, as of an answer without a body.
        let head = [frame(HEADERS, END_STREAM, 1, 20), frame(CONTINUATION, 0, 1, 5), frame(CONTINUATION, END_HEADERS, 1, 7)].concat();
        let reset = frame(RST_STREAM, 0, 1, 4);
        for bytes in [data, head, reset, frame(DATA, END_STREAM, 1, 0)] {
            let mut traffic = traffic(10, 100);
            assert_eq!(traffic.read(&frame(HEADERS, 5, 1, 10), || 0), None);
            for at in 0..bytes.len() {
                assert_eq!(traffic.open(), [1], "{at} of {} bytes", bytes.len());
                traffic.wrote([&bytes[at..=at]].into_iter(), 1);
            }
            assert!(traffic.open().is_empty());
        }
    }

    #[test]
    fn resets_and_frames_that_bring_nothing_are_counted_over_time() {
        let mut traffic = traffic(10, 20);
        let reset = frame(RST_STREAM, 0, 1, 4);
        for _ in 0..10 {
            assert_eq!(traffic.read(&reset, || 0), None);
        }
        assert_eq!(traffic.read(&reset, || 0), Some(Excess::Resets));
        assert_eq!(traffic.read(&reset, || SECOND), None, "one a second");
        assert_eq!(traffic.read(&reset, || SECOND), Some(Excess::Resets));
        for (kind, length) in [(4, 0), (6, 8), (2, 5), (8, 4), (0x42, 100), (DATA, 0), (CONTINUATION, 0), (HEADERS, 0)] {
            let mut traffic = self::traffic(10, 20);
            assert_eq!(traffic.read(&frame(kind, 0, 0, length).repeat(20), || 0), None, "{kind}");
            assert_eq!(traffic.read(&frame(kind, 0, 0, length), || 0), Some(Excess::Frames), "{kind}");
            assert_eq!(traffic.read(&frame(kind, 0, 0, length).repeat(20), || 2 * SECOND), None, "{kind}");
            assert_eq!(traffic.read(&frame(HEADERS, 5, 9, 9), || 0), None, "{kind}");
            assert_eq!(traffic.read(&frame(kind, 0, 0, length).repeat(4), || 0), None, "{kind}: a request earns some");
            assert!(traffic.wrote([&frame(DATA, 0, 9, 2040)[..]].into_iter(), 2049));
            assert_eq!(traffic.read(&frame(kind, 0, 0, length).repeat(2), || 0), None, "{kind}: so does an answer");
            assert_eq!(traffic.read(&frame(kind, 0, 0, length), || 0), Some(Excess::Frames), "{kind}");
        }
        let data = [frame(DATA, 0, 1, SMALL), frame(DATA, END_STREAM, 1, 0)].concat().repeat(1000);
        assert_eq!(self::traffic(10, 20).read(&data, || 0), None);
    }

    proptest! {
        #[test]
        fn frames_are_found_however_bytes_are_split(
            frames in prop::collection::vec((0usize..40, 0u8..12, any::<u8>(), 0u32..0x7fff_ffff), 0..12), step in 1usize..30
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(length, kind, flags, stream)| frame(*kind, *flags, *stream, *length)).collect();
            let (mut scanner, mut found) = (Scanner::new(3), Vec::new());
            let all = [vec![0xff; 3], bytes].concat();
            for piece in all.chunks(step) {
                scanner.scan(piece, |frame| found.push((frame.length, frame.kind, frame.flags, frame.stream)));
            }
            prop_assert_eq!(found, frames);
            prop_assert!(scanner.is_between_frames());
        }
    }
}
