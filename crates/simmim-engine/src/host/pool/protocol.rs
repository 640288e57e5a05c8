//! How the caller and the threads of a pool hand a job to each other.
//!
//! The text is compiled twice: with the standard library's primitives (`super::sync`) for use, and with loom's for a test that tries
//! all interleavings.

use super::sync::{
    Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, SPINS, spin_loop, yield_now,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Job {
    task: Option<*const Task<'static>>,
    tasks: usize,
    epoch: usize,
    stop: bool,
}

// SAFETY: (1) the pointer in `task` is only followed between the moment `run` publishes it and the moment `run` returns, and
// what it points to is `Sync`.
unsafe impl Send for Job {}

/// What the caller and the threads share.
pub(super) struct Shared {
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
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            job: Mutex::new(Job { task: None, tasks: 0, epoch: 0, stop: false }),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, task: &Task<'_>, tasks: usize, thread: usize) {
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

    /// What thread `thread` does until the pool ends.
    pub(super) fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
                spin_loop();
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

    /// Shares the tasks with `workers` threads that serve, and waits for all of them.
    ///
    /// # Panics
    /// If a task panicked, or another job is running.
    pub(super) fn run(&self, workers: usize, tasks: usize, task: &Task<'_>) {
        // SAFETY: only the lifetime changes; the pointer is dropped from `job` before this function returns.
        let lent = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        {
            let mut job = self.lock();
            assert!(job.task.is_none(), "a pool runs one job at a time");
            self.next.store(0, Ordering::Relaxed);
            self.busy.store(workers, Ordering::Relaxed);
            job.task = Some(lent);
            job.tasks = tasks;
            job.epoch += 1;
            self.epoch.store(job.epoch, Ordering::Release);
        }
        self.wake.notify_all();
        self.work(task, tasks, 0);
        let mut spins = 0;
        while self.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { spin_loop() } else { yield_now() }
        }
        self.lock().task = None;
        assert!(!self.panicked.swap(false, Ordering::Relaxed), "a task of the pool panicked");
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.epoch.fetch_add(1, Ordering::Release);
        self.wake.notify_all();
    }
}
