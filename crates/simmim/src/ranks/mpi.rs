//! Ranks that are processes of MPI.

use crate::diagnostics::Failure;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::Status;
use mpi::request::{Request, Scope, scope};
use mpi::topology::{Process, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use simmim_train::ranks::{Collectives, Patience};
use simmim_train::{Ranks, TrainError};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Asks a rank whether it is there.
const ROLL_CALL: i32 = 17;
/// Answers: 1 where the rank waits for the others, 0 where it does something else.
const HERE: i32 = 18;
/// Ranks have so long to answer.
const ANSWERS: Duration = Duration::from_secs(2);
/// Between looks whether something is done it sleeps, longer each time: while gradients travel, the processor is needed elsewhere.
const NAPS: [Duration; 2] = [Duration::from_micros(10), Duration::from_micros(500)];

/// All processes that the launcher has started. Faults of the library end all of them, which is its default.
struct Mpi {
    world: SimpleCommunicator,
    patience: Patience,
    /// When this rank began to ask who is there.
    asked: Cell<Option<Instant>>,
    /// Leaves MPI when it is dropped, after the last rank has come to that.
    _universe: Universe,
}

pub(super) fn open() -> Result<Ranks, Failure> {
    Ok(Ranks::open(|patience| {
        // The thread that opens it is the one that calls it from then on.
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(TrainError::Internal { what: "MPI was initialised before".into() });
        };
        Ok(Mpi { world: universe.world(), patience, asked: Cell::new(None), _universe: universe })
    })?)
}

impl Mpi {
    fn process(&self, rank: usize) -> Process<'_> {
        self.world.process_at_rank(rank as i32)
    }

    /// Waits for what was begun. Returns only when it is done: where ranks are missing the training is told, and ends all.
    fn wait<'a, D: ?Sized, S: Scope<'a>>(&self, mut request: Request<'a, D, S>) {
        let (start, mut nap) = (Instant::now(), NAPS[0]);
        loop {
            match request.test() {
                Ok(_) => return,
                Err(not_yet) => request = not_yet,
            }
            std::thread::sleep(nap);
            nap = (nap * 3 / 2).min(NAPS[1]);
            self.answer(1);
            if let Some(code) = self.patience.ended() {
                self.world.abort(code.into());
            }
            if start.elapsed() > self.patience.limit() {
                self.look_for_missing();
            }
        }
    }

    /// Answers ranks that ask whether this one is there.
    fn answer(&self, waiting: u8) {
        while let Some((asker, _)) = self.take(ROLL_CALL) {
            self.process(asker).send_with_tag(&waiting, HERE);
        }
    }

    /// Takes a message where there is one: the rank that sent it, and what it says.
    fn take(&self, tag: i32) -> Option<(usize, u8)> {
        self.world.any_process().immediate_probe_with_tag(tag)?;
        let (answer, status): (u8, Status) = self.world.any_process().receive_with_tag(tag);
        Some((status.source_rank() as usize, answer))
    }

    /// Asks all ranks, waits for the answers, and tells the training of those that do not come. The lowest of the ranks that wait speaks for all.
    fn look_for_missing(&self) {
        if self.asked.get().is_some() {
            return;
        }
        self.asked.set(Some(Instant::now()));
        let (here, world) = (self.rank(), self.world());
        let others = || (0..world).filter(|&rank| rank != here);
        // So short a message leaves at once, whether it is taken or not.
        others().for_each(|rank| self.process(rank).send_with_tag(&0u8, ROLL_CALL));
        let mut answers = vec![None; world];
        let start = Instant::now();
        while start.elapsed() < ANSWERS && answers.iter().flatten().count() < world - 1 {
            self.answer(1);
            while let Some((rank, answer)) = self.take(HERE) {
                answers[rank] = Some(answer);
            }
            std::thread::sleep(NAPS[1]);
        }
        let waiting = |rank: usize| rank == here || answers[rank] == Some(1);
        if (0..here).any(waiting) {
            return;
        }
        let state = |rank: usize| match answers[rank] {
            None => format!("rank {rank} does not answer (its process is stopped, or its machine is gone)"),
            Some(_) => format!("rank {rank} is there, but is busy or hangs"),
        };
        let missing: Vec<String> = others().filter(|&rank| !waiting(rank)).map(state).collect();
        let waited = self.patience.limit().as_secs();
        self.patience.tell(format!("the ranks have waited {waited} seconds: {}", missing.join("; ")));
    }
}

impl Collectives for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), TrainError> {
        scope(|scope| self.wait(self.world.immediate_all_gather_into(scope, mine, all)));
        Ok(())
    }

    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), TrainError> {
        scope(|scope| self.wait(self.world.immediate_all_to_all_into(scope, send, received)));
        Ok(())
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), TrainError> {
        scope(|scope| self.wait(self.process(root).immediate_broadcast_into(scope, data)));
        Ok(())
    }

    fn barrier(&self) -> Result<(), TrainError> {
        self.all_gather(&[0], &mut vec![0; self.world()])
    }

    fn idle(&self) {
        self.answer(0);
    }

    fn abort(&self, code: u8) {
        self.world.abort(code.into());
    }
}
