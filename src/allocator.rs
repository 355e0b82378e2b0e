//! The allocator of the process: mimalloc, asked for no more than is needed, and by workers no more often than is needed.
//!
//! For an alignment mimalloc 3.3.2 makes room by hand, unless the size is a power of two, and takes the next size that it
//! has: 64 bytes for 48, 448 for 384. Up to [`NATURAL`] that is never needed, since all its blocks stand so; such memory
//! is asked for without an alignment. `blocks_take_no_more_than_their_size` shows what would come of it otherwise.
//!
//! mimalloc gives a block that was freed out again only after all others of its page: a request that allocates and frees as much
//! as the one before it gets memory that no cache of the processor has any more. A worker therefore keeps some of the
//! blocks that it frees, those of each [`Size`] by themselves, and takes the last one first.
//!
//! Invariant: a block of a layout that has a `Size` is at least as long as that, whoever allocated it and by whichever call.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;

/// What C's `malloc` promises, and so mimalloc, for a block that is at least as long: a multiple of this is its address.
const NATURAL: usize = 16;

/// Longest block that is kept, bytes.
const KEPT_SIZE: usize = 4096;
/// Blocks of one size that a worker keeps.
const KEPT_COUNT: usize = 64;
/// And bytes of them.
const KEPT_BYTES: usize = 32 * 1024;

/// mimalloc, by the size alone where that is enough.
#[derive(Debug)]
pub struct Allocator;

#[expect(unsafe_code, reason = "the trait is unsafe; each call is passed on but for a block that was kept")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Size::of(layout) {
            Some(size) => match Kept::with(|kept| kept.take(size)) {
                Some(block) => block,
                None => unsafe { MiMalloc.alloc(size.layout()) },
            },
            None => unsafe { MiMalloc.alloc(asked(layout, layout.size())) },
        }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let asked = Size::of(layout).map_or_else(|| asked(layout, layout.size()), Size::layout);
        unsafe { MiMalloc.alloc_zeroed(asked) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let size = Layout::from_size_align(new_size, layout.align()).ok().and_then(Size::of);
        unsafe { MiMalloc.realloc(pointer, asked(layout, new_size), size.map_or(new_size, Size::bytes)) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !Size::of(layout).is_some_and(|size| Kept::with(|kept| kept.put(size, pointer))) {
            unsafe { MiMalloc.dealloc(pointer, layout) }
        }
    }
}

/// From here on this thread keeps blocks that it frees: at most [`KEPT_COUNT`] of a size, or [`KEPT_BYTES`]. They are never
/// given back, so it is for threads that live as long as the process.
pub fn keep_blocks() {
    Kept::with(|kept| kept.sizes.iter_mut().zip(0u8..).for_each(|(of_size, number)| of_size.room = Size(number).kept()));
}

/// What mimalloc is asked for where `layout` is wanted, or another `size` of it.
const fn asked(layout: Layout, size: usize) -> Layout {
    match Layout::from_size_align(layout.size(), 1) {
        Ok(plain) if layout.align() <= NATURAL && layout.align() <= size => plain,
        _ => layout,
    }
}

/// The sizes up to [`KEPT_SIZE`] that mimalloc has: 8, 16, 32, 48, 64, then four up to each power of two. What is asked for is rounded up
/// to one of them, as mimalloc would do itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(u8);

impl Size {
    const COUNT: usize = Self::containing(KEPT_SIZE).0 as usize + 1;

    /// The one for a layout; `None` where that is too long, or alignment takes more than the size.
    const fn of(layout: Layout) -> Option<Self> {
        let (bytes, align) = (layout.size(), layout.align());
        if bytes > KEPT_SIZE || align > NATURAL || align > bytes { None } else { Some(Self::containing(bytes)) }
    }

    /// The least that has so many bytes; not 0.
    const fn containing(bytes: usize) -> Self {
        let last = bytes - 1;
        match last {
            0..8 => Self(0),
            8..64 => Self(1 + (last / 16) as u8),
            _ => {
                let doubling = last.ilog2();
                Self(5 + (doubling as u8 - 6) * 4 + (last >> (doubling - 2)) as u8 % 4)
            }
        }
    }

    const fn bytes(self) -> usize {
        match self.0 {
            0 => 8,
            1..5 => self.0 as usize * 16,
            number => ((number as usize - 5) % 4 + 5) << ((number - 5) / 4 + 4),
        }
    }

    fn layout(self) -> Layout {
        Layout::from_size_align(self.bytes(), 1).expect("a few KiB")
    }

    /// Blocks of this size that a worker keeps.
    const fn kept(self) -> usize {
        let by_bytes = KEPT_BYTES / self.bytes();
        if by_bytes < KEPT_COUNT { by_bytes } else { KEPT_COUNT }
    }
}

/// Blocks that a thread keeps, by size.
struct Kept {
    sizes: [OfSize; Size::COUNT],
}

/// Those of one size: each holds where the next one is.
#[derive(Clone, Copy)]
struct OfSize {
    first: *mut u8,
    /// How many more are kept.
    room: usize,
}

thread_local! {
    /// Until it is told otherwise a thread keeps none.
    static KEPT: UnsafeCell<Kept> = const { UnsafeCell::new(Kept { sizes: [OfSize { first: ptr::null_mut(), room: 0 }; Size::COUNT] }) };
}

#[expect(unsafe_code, reason = "blocks that nobody has are linked by their first bytes")]
impl Kept {
    #[inline]
    fn with<T>(act: impl FnOnce(&mut Self) -> T) -> T {
        // What `act` is here allocates nothing and calls nobody: there is no second reference.
        KEPT.with(|kept| act(unsafe { &mut *kept.get() }))
    }

    #[inline]
    fn take(&mut self, size: Size) -> Option<*mut u8> {
        let of_size = &mut self.sizes[usize::from(size.0)];
        let block = of_size.first;
        if block.is_null() {
            return None;
        }
        // Written by `put`, and since then the block was nobody's.
        of_size.first = unsafe { block.cast::<*mut u8>().read_unaligned() };
        of_size.room += 1;
        Some(block)
    }

    /// Whether it is kept.
    #[inline]
    fn put(&mut self, size: Size, block: *mut u8) -> bool {
        let of_size = &mut self.sizes[usize::from(size.0)];
        if of_size.room == 0 {
            return false;
        }
        // It has at least eight bytes, and whoever frees it does not look at them again.
        unsafe { block.cast::<*mut u8>().write_unaligned(of_size.first) };
        *of_size = OfSize { first: block, room: of_size.room - 1 };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated(allocator: &impl GlobalAlloc, size: usize, align: usize) -> Vec<(usize, Layout)> {
        let layout = Layout::from_size_align(size, align).unwrap();
        #[expect(unsafe_code, reason = "the allocator itself is asked")]
        (0..1000).map(|_| (unsafe { allocator.alloc(layout) } as usize, layout)).collect()
    }

    fn free(allocator: &impl GlobalAlloc, blocks: &[(usize, Layout)]) {
        for (address, layout) in blocks {
            #[expect(unsafe_code, reason = "the allocator itself is asked")]
            unsafe {
                allocator.dealloc(*address as *mut u8, *layout);
            }
        }
    }

    #[test]
    fn blocks_stand_as_they_are_asked_for() {
        for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
            for size in [1, 7, 8, 9, 15, 16, 24, 40, 48, 80, 100, 384, 1000, 1040, 10_000, 100_000] {
                let blocks = allocated(&Allocator, size, align);
                assert!(blocks.iter().all(|(address, _)| *address != 0 && address % align == 0), "{size} bytes at {align}");
                free(&Allocator, &blocks);
            }
        }
    }

    #[test]
    fn what_grows_stands_as_it_did() {
        for align in [8, 16, 64] {
            let mut layout = Layout::from_size_align(4, align).unwrap();
            #[expect(unsafe_code, reason = "the allocator itself is asked")]
            unsafe {
                let mut block = Allocator.alloc_zeroed(layout);
                for size in [8, 12, 48, 384, 5000, 200_000, 40, 3] {
                    block = Allocator.realloc(block, layout, size);
                    layout = Layout::from_size_align(size, align).unwrap();
                    assert!((block as usize).is_multiple_of(align), "{size} bytes at {align}");
                    assert_eq!((block.read(), block.add(2).read()), (0, 0));
                }
                Allocator.dealloc(block, layout);
            }
        }
    }

    #[test]
    fn every_length_has_the_least_size_that_is_as_long() {
        let sizes: Vec<usize> = (0..Size::COUNT as u8).map(|number| Size(number).bytes()).collect();
        assert_eq!((sizes[0], sizes[Size::COUNT - 1]), (8, KEPT_SIZE));
        assert!(sizes.is_sorted());
        for bytes in 1..=KEPT_SIZE {
            let number = usize::from(Size::containing(bytes).0);
            assert!(sizes[number] >= bytes && (number == 0 || sizes[number - 1] < bytes), "{bytes}: {}", sizes[number]);
        }
        let of = |size, align| Size::of(Layout::from_size_align(size, align).unwrap());
        assert_eq!((of(KEPT_SIZE + 1, 1), of(64, 32), of(8, 16)), (None, None, None));
    }

    #[test]
    fn the_block_that_was_freed_last_is_given_out_first_and_only_so_many_are_kept() {
        let layout = Layout::from_size_align(1000, 8).unwrap();
        let addresses = |blocks: &[(usize, Layout)]| blocks.iter().map(|(address, _)| *address).collect::<Vec<_>>();
        std::thread::spawn(move || {
            keep_blocks();
            let before = allocated(&Allocator, layout.size(), layout.align());
            free(&Allocator, &before);
            let after = allocated(&Allocator, 900, 4); // of the same size
            let kept = Size::of(layout).unwrap().kept();
            assert_eq!(kept, KEPT_BYTES / 1024);
            let last_first: Vec<usize> = addresses(&before[..kept]).into_iter().rev().collect();
            assert_eq!(addresses(&after[..kept]), last_first);
            free(&Allocator, &after);
        })
        .join()
        .unwrap();
    }

    /// What is kept is given to any who asks for its size: no two blocks stand closer than that.
    #[test]
    fn blocks_are_as_long_as_their_size_however_they_came_about() {
        for (asked, grown) in [(70, 65), (70, 1), (1, 70), (200, 129), (129, 200), (5000, 3000), (3000, 5000), (2000, 3000)] {
            let [layout, after] = [asked, grown].map(|size| Layout::from_size_align(size, 1).unwrap());
            #[expect(unsafe_code, reason = "the allocator itself is asked")]
            let made = || unsafe { Allocator.realloc(Allocator.alloc_zeroed(layout), layout, grown) as usize };
            let mut blocks: Vec<(usize, Layout)> = (0..1000).map(|_| (made(), after)).collect();
            blocks.sort_unstable_by_key(|(address, _)| *address);
            let least = Size::of(after).map_or(grown, Size::bytes);
            assert!(blocks.windows(2).all(|pair| pair[1].0 - pair[0].0 >= least), "{asked} bytes that became {grown}");
            free(&Allocator, &blocks);
        }
    }

    /// Blocks of one size stand side by side: the least distance of two is what one takes.
    #[test]
    fn blocks_take_no_more_than_their_size() {
        for (size, align) in [(48, 8), (80, 8), (112, 16), (256, 8), (384, 16)] {
            let blocks = allocated(&Allocator, size, align);
            let mut addresses: Vec<usize> = blocks.iter().map(|(address, _)| *address).collect();
            addresses.sort_unstable();
            let taken = addresses.windows(2).map(|pair| pair[1] - pair[0]).min();
            assert_eq!(taken, Some(size), "bytes for {size}");
            free(&Allocator, &blocks);
        }
    }
}
