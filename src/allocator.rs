//! The allocator of the process: mimalloc, asked for no more than is needed.
//!
//! For an alignment mimalloc 3.3.2 makes room by hand, unless the size is a power of two, and takes the next size that it
//! has: 64 bytes for 48, 448 for 384. Up to [`NATURAL`] that is never needed, since all its blocks stand so; such memory
//! is asked for without an alignment. `blocks_take_no_more_than_their_size` shows what would come of it otherwise.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};

/// What C's `malloc` promises, and so mimalloc, for a block that is at least as long: a multiple of this is its address.
const NATURAL: usize = 16;

/// mimalloc, by the size alone where that is enough.
#[derive(Debug)]
pub struct Allocator;

#[expect(unsafe_code, reason = "the trait is unsafe; each call is passed on")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { MiMalloc.alloc(asked(layout, layout.size())) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { MiMalloc.alloc_zeroed(asked(layout, layout.size())) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        unsafe { MiMalloc.realloc(pointer, asked(layout, new_size), new_size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
}

/// What mimalloc is asked for where `layout` is wanted, or another `size` of it.
const fn asked(layout: Layout, size: usize) -> Layout {
    match Layout::from_size_align(layout.size(), 1) {
        Ok(plain) if layout.align() <= NATURAL && layout.align() <= size => plain,
        _ => layout,
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
