//! All interleavings of the protocol, by loom: every task runs once, what tasks wrote is seen after `run`, no thread touches a job that
//! is over, and nobody waits for ever.

/// Loom's primitives, for the same text.
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(super) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(super) use loom::thread::yield_now;
    pub(super) use std::sync::PoisonError;

    /// One look is all that looks can find.
    pub(super) const SPINS: usize = 1;
}

#[allow(clippy::duplicate_mod, reason = "compiled a second time, with other primitives")]
#[path = "protocol.rs"]
mod protocol;

use loom::cell::UnsafeCell;
use protocol::Shared;

/// A place that one task writes and the caller reads afterwards; loom finds accesses that are not ordered.
struct Place(UnsafeCell<u32>);

// SAFETY: loom reports every access that is not ordered with the others; that is what the test is for.
unsafe impl Sync for Place {}

/// `jobs` jobs of so many tasks, on the caller and `workers` threads, with all interleavings of at most `preemptions` preemptions.
fn jobs(workers: usize, jobs: usize, tasks: usize, preemptions: usize) {
    let mut exploration = loom::model::Builder::new();
    exploration.preemption_bound = Some(preemptions);
    exploration.check(move || {
        let shared = Shared::new();
        let threads: Vec<_> = (1..=workers)
            .map(|thread| {
                let shared = loom::sync::Arc::clone(&shared);
                loom::thread::spawn(move || shared.serve(thread))
            })
            .collect();
        for _ in 0..jobs {
            // Gone after each job: a thread that came late would touch places that are no more.
            let places: Vec<Place> = (0..tasks).map(|_| Place(UnsafeCell::new(0))).collect();
            shared.run(workers, tasks, &|task, thread| {
                assert!(thread <= workers);
                // SAFETY: loom watches the access.
                places[task].0.with_mut(|p| unsafe { *p += 1 });
            });
            for place in &places {
                // SAFETY: as above.
                assert_eq!(place.0.with(|p| unsafe { *p }), 1);
            }
        }
        shared.stop();
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn one_thread_and_two_jobs() {
    jobs(1, 2, 2, 3);
}

#[test]
fn two_threads_and_one_job() {
    jobs(2, 1, 2, 1);
}
