//! Ranks that are processes of MPI.

use crate::diagnostics::Failure;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use simmim_engine::EngineError;
use simmim_train::Ranks;
use simmim_train::ranks::Collectives;
use std::rc::Rc;

/// All processes that the launcher has started. Faults of the library end all of them, which is its default.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    /// Leaves MPI when it is dropped, after the last rank has come to that.
    _universe: Universe,
}

impl Mpi {
    pub(super) fn open() -> Result<Ranks, Failure> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Failure::running("MPI was initialised before"));
        };
        Ok(Ranks::new(Rc::new(Self { world: universe.world(), _universe: universe })))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The others wait for this rank, and leaving MPI would wait for them.
        if std::thread::panicking() {
            self.world.abort(101);
        }
    }
}

impl Collectives for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), EngineError> {
        self.world.all_gather_into(mine, all);
        Ok(())
    }

    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), EngineError> {
        self.world.all_to_all_into(send, received);
        Ok(())
    }

    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), EngineError> {
        self.world.process_at_rank(root as i32).broadcast_into(data);
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        self.world.barrier();
        Ok(())
    }

    fn abort(&self, code: u8) -> ! {
        self.world.abort(code.into())
    }
}
