//! Memory for large bodies that a socket can take without copying them (decision 0008).
//!
//! One file without a name, in memory only, mapped once: whoever reads a body here reads bytes like any others, and
//! `sendfile` lets the kernel send the pages themselves. Nothing is ever written twice: a slot that is given back loses
//! its pages, so that what a socket still holds of them stays what it was, and gets new ones when it is used again.
//!
//! Invariants: a slot is written by whoever takes it, before anybody else can see it, and never again; slots do not
//! overlap. Where the system gives no such memory, or it is used up, bodies live on the heap.

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Shorter pieces are cheaper to copy into a socket than to hand over by page.
pub const MIN: usize = 64 * 1024;
/// Slots are 64 KiB, 128 KiB and so on up to 1 MiB of addresses; of memory each takes the pages that it needs.
const CLASSES: usize = 5;

static ARENA: OnceLock<Arc<Arena>> = OnceLock::new();

/// Makes `bytes` of addresses ready for the process; later calls change nothing. Memory is taken only as bodies come.
pub fn reserve(bytes: u64) -> io::Result<()> {
    if ARENA.get().is_none() {
        let arena = Arc::new(Arena::new(bytes)?);
        let _ = ARENA.set(arena); // somebody may have been quicker
    }
    Ok(())
}

/// The bytes of all pieces as one; `None` where they are too few, too many, or there is no such memory.
pub fn gather(pieces: &[Bytes]) -> Option<Bytes> {
    ARENA.get().and_then(|arena| Arena::gather(arena, pieces))
}

/// Bytes of memory in use.
pub fn used() -> u64 {
    ARENA.get().map_or(0, |arena| arena.used.load(Ordering::Relaxed))
}

/// Where bytes stand, if they stand in pages.
pub fn find(bytes: &[u8]) -> Option<Place<'static>> {
    ARENA.get().and_then(|arena| arena.find(bytes))
}

/// What `length` bytes cost here: whole pages.
pub fn cost(length: usize) -> usize {
    length.next_multiple_of(rustix::param::page_size())
}

/// Bytes that stand in pages.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    arena: &'a Arena,
    offset: u64,
    length: usize,
}

impl Place<'_> {
    /// Hands as many of the bytes to a socket as it takes.
    pub fn send(self, socket: impl AsFd) -> io::Result<usize> {
        let mut offset = self.offset;
        Ok(rustix::fs::sendfile(socket, &self.arena.file, Some(&mut offset), self.length)?)
    }
}

#[derive(Debug)]
struct Arena {
    file: OwnedFd,
    map: MmapRaw,
    slots: Mutex<Slots>,
    used: AtomicU64,
}

/// Which addresses are free.
#[derive(Debug, Default)]
struct Slots {
    /// From here on nothing was ever used.
    fresh: u64,
    /// Offsets of slots that were given back, by class.
    free: [Vec<u64>; CLASSES],
}

impl Arena {
    fn new(bytes: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("tiercel-bodies", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes)?;
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        Ok(Self { file, map, slots: Mutex::default(), used: AtomicU64::new(0) })
    }

    fn gather(arena: &Arc<Self>, pieces: &[Bytes]) -> Option<Bytes> {
        let length = pieces.iter().map(Bytes::len).sum();
        let mut slot = Slot::take(arena, length)?;
        // One call instead of a fault per page; it fails where there is no memory.
        arena.map.advise_range(Advice::PopulateWrite, slot.offset, length).ok()?;
        let mut room = slot.room();
        for piece in pieces {
            let (here, rest) = room.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            room = rest;
        }
        Some(Bytes::from_owner(slot))
    }

    fn find(&self, bytes: &[u8]) -> Option<Place<'_>> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize)?;
        (offset < self.map.len()).then_some(Place { arena: self, offset: offset as u64, length: bytes.len() })
    }
}

impl Slots {
    fn take(&mut self, class: usize, end: u64) -> Option<u64> {
        if let Some(offset) = self.free[class].pop() {
            return Some(offset);
        }
        let offset = self.fresh;
        let next = offset + size(class);
        (next <= end).then(|| {
            self.fresh = next;
            offset
        })
    }
}

/// The smallest class that holds so many bytes.
fn class(length: usize) -> Option<usize> {
    (length >= MIN).then(|| (0..CLASSES).find(|class| length as u64 <= size(*class)))?
}

const fn size(class: usize) -> u64 {
    (MIN as u64) << class
}

/// Bytes of a body, and their place until they are dropped.
struct Slot {
    arena: Arc<Arena>,
    class: usize,
    offset: usize,
    length: usize,
}

impl Slot {
    fn take(arena: &Arc<Arena>, length: usize) -> Option<Self> {
        let class = class(length)?;
        let offset = arena.slots.lock().take(class, arena.map.len() as u64)?;
        arena.used.fetch_add(cost(length) as u64, Ordering::Relaxed);
        Some(Self { arena: Arc::clone(arena), class, offset: offset as usize, length })
    }

    #[expect(unsafe_code, reason = "a mapping is an address; only here it becomes bytes to write")]
    fn room(&mut self) -> &mut [u8] {
        // SAFETY: the slot lies within the mapping, which lives as long as its arena; nobody else has this slot, and
        // `find` gives out addresses of bytes that exist already.
        unsafe { std::slice::from_raw_parts_mut(self.arena.map.as_mut_ptr().add(self.offset), self.length) }
    }
}

impl AsRef<[u8]> for Slot {
    #[expect(unsafe_code, reason = "a mapping is an address; only here it becomes bytes to read")]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as for `room`; a slot is only read once it is shared. The file has no name and no other descriptor,
        // and never shrinks.
        unsafe { std::slice::from_raw_parts(self.arena.map.as_ptr().add(self.offset), self.length) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.arena.file, flags, self.offset as u64, size(self.class)) {
            Ok(()) => {
                self.arena.used.fetch_sub(cost(self.length) as u64, Ordering::Relaxed);
                self.arena.slots.lock().free[self.class].push(self.offset as u64);
            }
            // With its pages still there the slot must not be used again: a socket may hold them.
            Err(error) => tracing::warn!(%error, bytes = self.length, "memory of a body was not given back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn arena(bytes: u64) -> Arc<Arena> {
        Arc::new(Arena::new(bytes).unwrap())
    }

    fn piece(byte: u8, length: usize) -> Bytes {
        Bytes::from(vec![byte; length])
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn pieces_become_one_that_a_socket_takes_from_anywhere() {
        let arena = arena(1 << 20);
        let whole = Arena::gather(&arena, &[piece(1, 50_000), piece(2, 50_000)]).unwrap();
        assert_eq!(whole, [vec![1; 50_000], vec![2; 50_000]].concat());
        let part = whole.slice(49_999..50_003);
        let (mut client, server) = pair();
        assert_eq!(arena.find(&part).unwrap().send(&server).unwrap(), 4);
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, [1, 2, 2, 2]);
        assert!(arena.find(&piece(1, 10)).is_none());
    }

    #[test]
    fn what_a_socket_holds_stays_when_its_slot_is_used_again() {
        let arena = arena(MIN as u64);
        let (mut client, server) = pair();
        let first = Arena::gather(&arena, &[piece(1, MIN)]).unwrap();
        let sent = arena.find(&first).unwrap().send(&server).unwrap();
        assert!(Arena::gather(&arena, &[piece(2, MIN)]).is_none(), "there is one slot");
        drop(first);
        assert_eq!(arena.used.load(Ordering::Relaxed), 0);
        let second = Arena::gather(&arena, &[piece(2, MIN)]).unwrap();
        assert_eq!(arena.used.load(Ordering::Relaxed), MIN as u64);
        let mut got = vec![0; sent];
        client.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == 1) && second.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn what_is_too_short_or_too_long_lives_elsewhere() {
        let arena = arena(4 << 20);
        assert!(Arena::gather(&arena, &[piece(1, MIN - 1)]).is_none());
        assert!(Arena::gather(&arena, &[piece(1, (1 << 20) + 1)]).is_none());
        assert!(Arena::gather(&arena, &[piece(1, 1 << 20)]).is_some());
        assert_eq!(cost(MIN + 1), MIN + rustix::param::page_size());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Bodies come and go in any order and never meet.
        #[test]
        fn slots_never_overlap(steps in prop::collection::vec((any::<u8>(), 60_000..300_000usize, any::<prop::sample::Index>()), 1..40)) {
            let arena = arena(4 << 20);
            let mut held: Vec<(u8, Bytes)> = Vec::new();
            for (byte, length, index) in steps {
                match Arena::gather(&arena, &[piece(byte, length)]) {
                    Some(bytes) => held.push((byte, bytes)),
                    None if held.is_empty() => {}
                    None => drop(held.swap_remove(index.index(held.len()))),
                }
                for (byte, bytes) in &held {
                    prop_assert!(bytes.iter().step_by(997).chain(bytes.last()).all(|there| there == byte));
                }
            }
            let used: usize = held.iter().map(|(_, bytes)| cost(bytes.len())).sum();
            prop_assert_eq!(arena.used.load(Ordering::Relaxed), used as u64);
        }
    }
}
