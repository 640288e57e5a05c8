//! Ranks that are threads of one process: for tests, and to see what ranks do without a launcher.

use super::{Collectives, Patience, Ranks};
use crate::error::TrainError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A waiting rank looks this often whether all are to end.
const LOOK: Duration = Duration::from_millis(20);

/// A rank that is a thread. All calls meet, so every thread has to make the same ones.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    meeting: Mutex<Meeting>,
    changed: Condvar,
    /// What each rank has put in for the call that is under way.
    slots: Vec<Mutex<Vec<u8>>>,
}

#[derive(Debug)]
struct Meeting {
    arrived: Vec<bool>,
    /// Number of meetings that are over.
    over: u64,
}

impl Threads {
    /// So many ranks, one for each thread.
    #[must_use]
    pub fn new(world: usize) -> Vec<Self> {
        let slots = (0..world).map(|_| Mutex::default()).collect();
        let meeting = Mutex::new(Meeting { arrived: vec![false; world], over: 0 });
        let shared = Arc::new(Shared { meeting, changed: Condvar::new(), slots });
        (0..world).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// For the trainer.
    ///
    /// # Errors
    /// [`TrainError::Internal`] where no thread can be started.
    pub fn into_ranks(self) -> Result<Ranks, TrainError> {
        Ranks::open(move |patience| Ok(Member { rank: self.rank, shared: self.shared, patience }))
    }
}

/// The rank as the thread that speaks for it has it.
struct Member {
    rank: usize,
    shared: Arc<Shared>,
    patience: Patience,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    /// Waits until all ranks have come.
    fn meet(&self) -> Result<(), TrainError> {
        let mut meeting = lock(&self.shared.meeting);
        meeting.arrived[self.rank] = true;
        if meeting.arrived.iter().all(|&here| here) {
            meeting.arrived.fill(false);
            meeting.over += 1;
            self.shared.changed.notify_all();
            return Ok(());
        }
        let (over, start, mut told) = (meeting.over, Instant::now(), false);
        while meeting.over == over {
            if self.patience.ended().is_some() {
                return Err(TrainError::Ranks { what: "this rank has ended".into() });
            }
            if !told && start.elapsed() > self.patience.limit() {
                told = true;
                let missing = meeting.arrived.iter().enumerate().filter(|(_, here)| !**here).map(|(rank, _)| rank);
                self.patience.tell(super::missing(missing, self.patience.limit()));
            }
            let waited = self.shared.changed.wait_timeout(meeting, LOOK);
            meeting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Puts data in, lets `take` see what rank `r` has put in for every `r`, and waits until all have seen it.
    fn exchange(&self, mine: &[u8], mut take: impl FnMut(usize, &[u8])) -> Result<(), TrainError> {
        let mut own = lock(&self.shared.slots[self.rank]);
        own.clear();
        own.extend_from_slice(mine);
        drop(own);
        self.meet()?;
        (0..self.world()).for_each(|rank| take(rank, &lock(&self.shared.slots[rank])));
        self.meet()
    }
}

impl Collectives for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.shared.slots.len()
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), TrainError> {
        let len = mine.len();
        self.exchange(mine, |rank, theirs| all[rank * len..(rank + 1) * len].copy_from_slice(theirs))
    }

    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), TrainError> {
        let len = send.len() / self.world();
        let block = |rank: usize| rank * len..(rank + 1) * len;
        self.exchange(send, |rank, theirs| received[block(rank)].copy_from_slice(&theirs[block(self.rank)]))
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), TrainError> {
        let mine = data.to_vec();
        self.exchange(&mine, |rank, theirs| {
            if rank == root {
                data.copy_from_slice(theirs);
            }
        })
    }

    fn barrier(&self) -> Result<(), TrainError> {
        self.meet()
    }
}
