//! Ranks that are threads of one process: for tests, and to see what ranks do without a launcher.

use super::{Collectives, Ranks};
use simmim_engine::EngineError;
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

/// A rank that is a thread. All calls meet at a barrier, so every thread has to make the same ones.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    barrier: Barrier,
    /// What each rank has put in for the call that is under way.
    slots: Vec<Mutex<Vec<u8>>>,
}

impl Threads {
    /// So many ranks, one for each thread.
    #[must_use]
    pub fn new(world: usize) -> Vec<Self> {
        let slots = (0..world).map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { barrier: Barrier::new(world), slots });
        (0..world).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// For the trainer.
    #[must_use]
    pub fn into_ranks(self) -> Ranks {
        Ranks::new(Rc::new(self))
    }

    /// Puts data in, lets `take` see what rank `r` has put in for every `r`, and waits until all have seen it.
    fn exchange(&self, mine: &[u8], mut take: impl FnMut(usize, &[u8])) {
        let slot = |rank: usize| self.shared.slots[rank].lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = slot(self.rank);
        own.clear();
        own.extend_from_slice(mine);
        drop(own);
        self.shared.barrier.wait();
        (0..self.world()).for_each(|rank| take(rank, &slot(rank)));
        self.shared.barrier.wait();
    }
}

impl Collectives for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.shared.slots.len()
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), EngineError> {
        let len = mine.len();
        self.exchange(mine, |rank, theirs| all[rank * len..(rank + 1) * len].copy_from_slice(theirs));
        Ok(())
    }

    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), EngineError> {
        let len = send.len() / self.world();
        let block = |rank: usize| rank * len..(rank + 1) * len;
        self.exchange(send, |rank, theirs| received[block(rank)].copy_from_slice(&theirs[block(self.rank)]));
        Ok(())
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), EngineError> {
        let mine = data.to_vec();
        self.exchange(&mine, |rank, theirs| {
            if rank == root {
                data.copy_from_slice(theirs);
            }
        });
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        self.shared.barrier.wait();
        Ok(())
    }
}
