//! The bodies of the fuzz targets over mutated files, on stable Rust: no panic, and no more memory than the limits of the readers.

#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use simmim_fuzzing::TARGETS;
use simmim_fuzzing::mutate::Mutations;

/// The system's allocator, with what is in use and the most that ever was.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        USED.fetch_sub(layout.size(), Relaxed);
        grow(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn grow(size: usize) {
    PEAK.fetch_max(USED.fetch_add(size, Relaxed) + size, Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a file of a few kilobytes may take at most: an image at the limit of pixels, in all the forms it passes through.
const MOST: usize = 4 << 30;

/// One target at a time: the memory in use is that of the process.
static ALONE: Mutex<()> = Mutex::new(());

fn survives(name: &str, count: u64) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mutations = Mutations::of((target.seeds)());
    for number in 0..count {
        let file = mutations.get(number);
        let before = USED.load(Relaxed);
        PEAK.store(before, Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&file)));
        let taken = PEAK.load(Relaxed).saturating_sub(before);
        assert!(outcome.is_ok(), "mutation {number} of {name} ({} bytes) panics", file.len());
        assert!(taken < MOST, "mutation {number} of {name} ({} bytes) takes {taken} bytes", file.len());
    }
}

macro_rules! targets {
    ($($name:ident: $count:expr,)*) => {
        $(
            #[test]
            fn $name() {
                survives(stringify!($name), $count);
            }
        )*

        #[test]
        fn every_target_is_run() {
            assert_eq!([$(stringify!($name)),*], TARGETS.map(|target| target.name));
        }
    };
}

targets! {
    image: 2000,
    jpeg: 2000,
    tiff: 2000,
    idx: 4000,
    list: 4000,
    recipe: 1500,
    safetensors: 4000,
    checkpoint: 3000,
}
