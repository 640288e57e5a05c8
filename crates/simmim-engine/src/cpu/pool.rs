//! A fork-join pool. The caller works too; tasks are handed out one by one; nothing is allocated for a job.
//!
//! Which thread runs which task is not fixed, so results must not depend on it: tasks write to disjoint places, and sums are
//! taken over partitions that follow from the shapes.

#![allow(unsafe_code, reason = "lends a closure and disjoint parts of slices to threads for the length of one call")]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Floats in a cache line.
const LINE: usize = 16;

type Task = *const (dyn Fn(usize, usize) + Sync);

/// How long an idle thread looks for work before it sleeps; operations of a step follow each other within microseconds.
const SPINS: usize = 4_000;

struct Job {
    task: Option<Task>,
    tasks: usize,
    epoch: usize,
    stop: bool,
}

// SAFETY: (1) the pointer in `task` is only followed between the moment `run` publishes it and the moment `run` returns, and
// what it points to is `Sync`.
unsafe impl Send for Job {}

struct Shared {
    job: Mutex<Job>,
    wake: Condvar,
    /// Copy of `job.epoch` that idle threads watch without the lock.
    epoch: AtomicUsize,
    next: AtomicUsize,
    /// Threads that have not finished the current job.
    busy: AtomicUsize,
    panicked: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, task: &(dyn Fn(usize, usize) + Sync), tasks: usize, thread: usize) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            if at >= tasks {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| task(at, thread))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
                std::hint::spin_loop();
                spins += 1;
            }
            let (task, tasks) = {
                let mut job = self.lock();
                while job.epoch == seen && !job.stop {
                    job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
                }
                if job.stop {
                    return;
                }
                seen = job.epoch;
                (job.task, job.tasks)
            };
            if let Some(task) = task {
                // SAFETY: `run` waits until `busy` is zero before it returns, so the closure is alive.
                self.work(unsafe { &*task }, tasks, thread);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
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
    /// A pool of `threads` threads, the caller's included; at least one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: Mutex::new(Job { task: None, tasks: 0, epoch: 0, stop: false }),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        // A thread that the system refuses to start is done without: the others take its tasks.
        let workers = (1..threads.max(1)).filter_map(|thread| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("simmim-{thread}")).spawn(move || shared.serve(thread)).ok()
        });
        Self { workers: workers.collect(), shared }
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
    /// If a task panicked. `&mut self` is not needed, but two threads must not call this at once: the second would wait for ever
    /// inside a task, so a task must not use the pool that runs it.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|at| task(at, 0));
            return;
        }
        // SAFETY: only the lifetime changes; the pointer is dropped from `job` before this function returns.
        let lent: Task = unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), Task>(task) };
        {
            let mut job = self.shared.lock();
            assert!(job.task.is_none(), "a pool runs one job at a time");
            self.shared.next.store(0, Ordering::Relaxed);
            self.shared.busy.store(self.workers.len(), Ordering::Relaxed);
            job.task = Some(lent);
            job.tasks = tasks;
            job.epoch += 1;
            self.shared.epoch.store(job.epoch, Ordering::Release);
        }
        self.shared.wake.notify_all();
        self.shared.work(task, tasks, 0);
        let mut spins = 0;
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.shared.lock().task = None;
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a task of the pool panicked");
    }

    /// Splits `rows` rows into parts of `rows_per_task` and calls `f(rows of the part, its part of each slice, thread)`.
    /// Each slice holds `rows` rows of equal length; parts of different tasks are disjoint.
    pub fn for_rows<const N: usize>(
        &self,
        slices: [&mut [f32]; N],
        rows: usize,
        rows_per_task: usize,
        f: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
    ) {
        if rows == 0 {
            return;
        }
        let step = rows_per_task.max(1);
        let lens = std::array::from_fn(|i| {
            assert!(
                slices[i].len().is_multiple_of(rows),
                "a slice of {} floats does not hold {rows} rows",
                slices[i].len()
            );
            slices[i].len() / rows * step
        });
        let parts = rows.div_ceil(step);
        self.for_parts(slices, lens, parts, &mut [], |part, slices, _| {
            f(part * step..rows.min((part + 1) * step), slices)
        });
    }

    /// Cuts each slice into `parts` parts of its length in `lens` (the last ones may be shorter) and calls
    /// `f(part, its part of each slice, working memory)`, the working memory being that of [`Pool::for_scratch`].
    pub fn for_parts<const N: usize>(
        &self,
        slices: [&mut [f32]; N],
        lens: [usize; N],
        parts: usize,
        scratch: &mut [f32],
        f: impl Fn(usize, [&mut [f32]; N], &mut [f32]) + Sync,
    ) {
        let lent = slices.map(Lent::of);
        self.for_scratch(parts, scratch, |part, scratch| {
            // SAFETY: `for_scratch` calls each part once, so a range is lent to one task at a time. The slices stay borrowed until it
            // returns.
            let slices = std::array::from_fn(|i| unsafe { lent[i].part(part, lens[i]) });
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

/// A slice that is lent to tasks in parts.
#[derive(Clone, Copy)]
struct Lent {
    start: *mut f32,
    len: usize,
}

// SAFETY: the pointer comes from a `&mut [f32]` and is only used for disjoint parts (see `Lent::part`).
unsafe impl Sync for Lent {}

impl Lent {
    fn of(slice: &mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The `at`-th part of length `len`, cut off at the end of the slice.
    ///
    /// # Safety
    /// (1) The slice is still borrowed. (2) No other task holds the same part while this one does.
    unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        let from = (at * len).min(self.len);
        let to = (from + len).min(self.len);
        // SAFETY: the range lies in the slice; the caller's obligations.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), to - from) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to learn from its result.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            pool.for_rows([&mut a, &mut b], rows, per_task, |range, [a, b]| {
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
