//! An allocator that counts what is live, for tests that run alone in their process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(n: usize) {
    let live = LIVE.fetch_add(n, Relaxed) + n;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        COUNT.fetch_sub(1, Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both live for a moment, as far as anybody knows.
        add(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as promised by our caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes that are allocated now.
pub(crate) fn live() -> usize {
    LIVE.load(Relaxed)
}

/// How many allocations those are.
pub(crate) fn count() -> usize {
    COUNT.load(Relaxed)
}

/// Begins a new peak.
pub(crate) fn watch() -> usize {
    let live = live();
    PEAK.store(live, Relaxed);
    live
}

/// The most bytes since then.
pub(crate) fn peak() -> usize {
    PEAK.load(Relaxed)
}
