//! An allocator that leaves nothing in what it frees.

#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait, and mallopt(3) a C function")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    slice,
};

/// The system's allocator, but what is freed is overwritten with zeros first, and what grows or shrinks moves to a new
/// place. Types that wipe themselves reach only what is theirs; this reaches the buffers of HTTP/2, TLS, Protobuf, JSON
/// and YAML as well. It costs one pass over each buffer that is freed.
pub struct WipingAllocator;

// SAFETY: all memory comes from `System`, which upholds the contract, with the layouts that the caller gave. Of the
// caller's memory nothing is touched but the block that `dealloc` is given, before it goes back. `realloc` is the
// trait's own: `alloc`, copy, `dealloc`.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // Not `zeroize` itself, whose volatile writes go byte by byte.
        // SAFETY: the caller gives up a block of this size, which nobody else refers to. Once written it is initialised.
        let wiped = unsafe {
            ptr.write_bytes(0, layout.size());
            slice::from_raw_parts(ptr, layout.size())
        };
        // What is freed next could be taken not to matter.
        zeroize::optimization_barrier(wiped);
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Blocks from this size on are mapped each by itself, and given back to the system when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 128 * 1024;
/// As much free memory is kept at the heap's end.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: libc::c_int = 1024 * 1024;
/// Heaps, which threads share. Each keeps what was freed in it.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;
/// Freed blocks up to this size wait in lists of their own, beside those of each thread, until a request for 1 KiB or more puts all
/// of them together with their neighbours. A request for secrets asks for such blocks again and again.
#[cfg(target_env = "gnu")]
const FAST_BYTES_MAX: libc::c_int = 0;

/// Bounds what the system's allocator keeps of freed memory (mallopt(3)). Otherwise glibc raises the size from which it maps
/// blocks by themselves with the largest block that was ever freed, and what large replies took stays with the process. To be
/// called before there are threads.
#[cfg(target_env = "gnu")]
pub fn keep_little_free_memory() {
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
        (libc::M_ARENA_MAX, HEAPS_MAX),
        (libc::M_MXFAST, FAST_BYTES_MAX),
    ] {
        // SAFETY: it takes numbers alone. A value that it does not like changes nothing, and is no reason not to start.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other systems' allocators have nothing of the kind.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little_free_memory() {}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn a_block_that_grows_or_shrinks_keeps_its_content_in_a_new_place() {
        let layout = Layout::array::<u8>(1000).unwrap();
        // SAFETY: each block is used within its size, and freed once with the layout that it has then.
        unsafe {
            let first = WipingAllocator.alloc_zeroed(layout);
            first.copy_from(b"kept".as_ptr(), 4);
            let larger = WipingAllocator.realloc(first, layout, 100_000);
            assert_ne!(first, larger);
            let smaller = WipingAllocator.realloc(larger, Layout::array::<u8>(100_000).unwrap(), 8);
            assert_eq!(slice::from_raw_parts(black_box(smaller), 8), b"kept\0\0\0\0");
            WipingAllocator.dealloc(smaller, Layout::array::<u8>(8).unwrap());
        }
    }
}
