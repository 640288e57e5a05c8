//! A fork-join pool. The caller works too; tasks are handed out one by one; nothing is allocated for a job.
//!
//! Which thread runs which task is not fixed, so results must not depend on it: tasks write to disjoint places, and sums are
//! taken over partitions that follow from the shapes.

#![allow(unsafe_code, reason = "lends a closure and disjoint parts of slices to threads for the length of one call")]

mod protocol;

use super::LINE;
use protocol::Shared;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The primitives that the protocol uses.
mod sync {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
    pub(super) use std::thread::yield_now;

    /// How long an idle thread looks for work before it sleeps; operations of a step follow each other within microseconds.
    pub(super) const SPINS: usize = 4_000;
}

/// A fixed set of threads. See the module's documentation.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one. Where the system refuses to start a thread, the pool does
    /// without it and those that would follow: the others take their tasks.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::with(threads, |thread, shared| {
            std::thread::Builder::new().name(format!("simmim-{thread}")).spawn(move || shared.serve(thread))
        })
    }

    /// `start` starts a thread. Threads are numbered without gaps, because kernels cut working memory by their number.
    fn with(threads: usize, mut start: impl FnMut(usize, Arc<Shared>) -> std::io::Result<JoinHandle<()>>) -> Self {
        let shared = Shared::new();
        let workers = (1..threads.max(1)).map_while(|thread| start(thread, Arc::clone(&shared)).ok()).collect();
        Self { shared, workers }
    }

    /// Number of threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i, thread)` for every `i` in `0..tasks` and returns when all are done. `thread` is below [`Pool::threads`]
    /// and belongs to one running call at a time.
    ///
    /// # Panics
    /// If a task panicked, or the pool is running another job: tasks must not use the pool that runs them.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|at| task(at, 0));
        } else {
            self.shared.run(self.workers.len(), tasks, task);
        }
    }

    /// Splits `rows` rows into parts of `rows_per_task` and calls `f(rows of the part, its part of each slice)`.
    /// Each slice holds `rows` rows of equal length; parts of different tasks are disjoint.
    pub fn for_rows<S: Slices>(
        &self,
        slices: S,
        rows: usize,
        rows_per_task: usize,
        f: impl Fn(Range<usize>, S) + Sync,
    ) {
        if rows == 0 {
            return;
        }
        let step = rows_per_task.max(1);
        let lens = slices.lens_of_rows(rows, step);
        let parts = rows.div_ceil(step);
        self.for_parts(slices, lens, parts, &mut [], |part, slices, _| {
            f(part * step..rows.min((part + 1).saturating_mul(step)), slices)
        });
    }

    /// Cuts each slice into `parts` parts of its length in `lens` (the last ones may be shorter) and calls
    /// `f(part, its part of each slice, working memory)`, the working memory being that of [`Pool::for_scratch`].
    pub fn for_parts<S: Slices>(
        &self,
        slices: S,
        lens: S::Lens,
        parts: usize,
        scratch: &mut [f32],
        f: impl Fn(usize, S, &mut [f32]) + Sync,
    ) {
        let lent = slices.lend();
        self.for_scratch(parts, scratch, |part, scratch| {
            // SAFETY: `for_scratch` calls each part once, so a range is lent to one task at a time. The slices were given away, so
            // that nothing else reaches them as long as their borrow lasts.
            let slices = unsafe { S::part(lent, part, lens) };
            f(part, slices, scratch);
        });
    }

    /// Calls `f(task, working memory)` for every task. The working memory is `scratch` cut into as many equal pieces as there are
    /// threads, at multiples of a cache line; what a task finds in it is undefined.
    pub fn for_scratch(&self, tasks: usize, scratch: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
        let piece = scratch.len() / self.threads() / LINE * LINE;
        let scratch = Lent::of(scratch);
        self.run(tasks, &|task, thread| {
            // SAFETY: `thread` belongs to one running call at a time, so a piece is lent to one task at a time. The slice stays
            // borrowed until `run` returns.
            let scratch = unsafe { scratch.part(thread, piece) };
            f(task, scratch);
        });
    }
}

/// Slices that are cut alike: an array of slices of one type, or a pair of such arrays, whose types differ.
pub trait Slices: Sized + private::Sealed {
    /// Length of a part of each slice.
    type Lens: Copy + Sync;
    /// The slices while they are lent.
    #[doc(hidden)]
    type Lent: Copy + Sync;

    /// Length of `step` of so many rows in each slice.
    #[doc(hidden)]
    fn lens_of_rows(&self, rows: usize, step: usize) -> Self::Lens;

    /// Gives the slices away.
    #[doc(hidden)]
    fn lend(self) -> Self::Lent;

    /// The `at`-th part of each slice, cut off at its end; empty beyond it.
    ///
    /// # Safety
    /// (1) The slices came from a `Self`, which is used for nothing else. (2) Each part is asked for once.
    #[doc(hidden)]
    unsafe fn part(lent: Self::Lent, at: usize, lens: Self::Lens) -> Self;
}

mod private {
    pub trait Sealed {}
    impl<T, const N: usize> Sealed for [&mut [T]; N] {}
    impl<A, B> Sealed for (A, B) {}
}

impl<T: Send, const N: usize> Slices for [&mut [T]; N] {
    type Lens = [usize; N];
    type Lent = [Lent<T>; N];

    fn lens_of_rows(&self, rows: usize, step: usize) -> Self::Lens {
        std::array::from_fn(|i| {
            let len = self[i].len();
            assert!(len.is_multiple_of(rows), "a slice of {len} elements does not hold {rows} rows");
            (len / rows).saturating_mul(step)
        })
    }

    fn lend(self) -> Self::Lent {
        self.map(Lent::of)
    }

    unsafe fn part(lent: Self::Lent, at: usize, lens: Self::Lens) -> Self {
        // SAFETY: the caller's obligations.
        std::array::from_fn(|i| unsafe { lent[i].part(at, lens[i]) })
    }
}

impl<A: Slices, B: Slices> Slices for (A, B) {
    type Lens = (A::Lens, B::Lens);
    type Lent = (A::Lent, B::Lent);

    fn lens_of_rows(&self, rows: usize, step: usize) -> Self::Lens {
        (self.0.lens_of_rows(rows, step), self.1.lens_of_rows(rows, step))
    }

    fn lend(self) -> Self::Lent {
        (self.0.lend(), self.1.lend())
    }

    unsafe fn part(lent: Self::Lent, at: usize, lens: Self::Lens) -> Self {
        // SAFETY: the caller's obligations.
        unsafe { (A::part(lent.0, at, lens.0), B::part(lent.1, at, lens.1)) }
    }
}

/// A slice that is lent to tasks in parts.
#[doc(hidden)]
#[derive(Debug)]
pub struct Lent<T> {
    start: *mut T,
    len: usize,
}

impl<T> Clone for Lent<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Lent<T> {}

// SAFETY: the pointer comes from a `&mut [T]` and is only used for disjoint parts (see `Lent::part`).
unsafe impl<T: Send> Sync for Lent<T> {}

impl<T> Lent<T> {
    fn of(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The `at`-th part of length `len`, cut off at the end of the slice; empty beyond it.
    ///
    /// # Safety
    /// (1) The slice is still borrowed. (2) No other task holds the same part while this one does.
    unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        let from = at.saturating_mul(len).min(self.len);
        let to = from.saturating_add(len).min(self.len);
        // SAFETY: the range lies in the slice; the caller's obligations.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), to - from) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to learn from its result.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod loom_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Parts that lie beyond the end are empty, whatever the product of number and length would wrap around to.
    #[test]
    fn parts_beyond_the_end_are_empty() {
        let half = usize::MAX / 2 + 1;
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let (mut data, seen) = (vec![0.0f32; 10], AtomicUsize::new(0));
            pool.for_parts([&mut data[..]], [half], 5, &mut [], |part, [slice], _| {
                assert_eq!(slice.len(), if part == 0 { 10 } else { 0 });
                slice.iter_mut().for_each(|v| *v += 1.0);
                seen.fetch_add(1, Ordering::Relaxed);
            });
            pool.for_rows([&mut data[..]], 10, usize::MAX, |range, [slice]| {
                assert_eq!((range, slice.len()), (0..10, 10));
                slice.iter_mut().for_each(|v| *v += 1.0);
            });
            assert!(seen.into_inner() == 5 && data.iter().all(|&v| v == 2.0));
        }
    }

    #[test]
    fn a_pool_that_lacks_a_thread_numbers_the_others_without_a_gap() {
        let refuse_first = |refused: usize| {
            Pool::with(4, |thread, shared| {
                if thread == refused {
                    return Err(std::io::ErrorKind::WouldBlock.into());
                }
                std::thread::Builder::new().spawn(move || shared.serve(thread))
            })
        };
        for refused in 1..4 {
            let pool = refuse_first(refused);
            assert_eq!(pool.threads(), refused);
            let mut scratch = vec![0.0; refused * LINE];
            pool.for_scratch(64, &mut scratch, |_, piece| assert_eq!(piece.len(), LINE));
            pool.run(64, &|_, thread| assert!(thread < refused));
        }
    }

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task, thread| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn rows_are_split_without_overlap_or_gap() {
        let pool = Pool::new(3);
        for (rows, per_task) in [(1, 1), (7, 2), (10, 100), (33, 5)] {
            let (mut a, mut b) = (vec![0.0; rows * 3], vec![0.0; rows]);
            pool.for_rows([&mut a[..], &mut b[..]], rows, per_task, |range, [a, b]| {
                a.iter_mut().for_each(|v| *v += 1.0);
                for (row, v) in range.zip(b) {
                    *v += row as f32;
                }
            });
            assert!(a.iter().all(|&v| v == 1.0));
            assert!(b.iter().enumerate().all(|(i, &v)| v == i as f32));
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task, _| assert_ne!(task, 3, "on purpose"))));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|task, _| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
