//! What ranks do together, whatever connects them.

use super::link::{Done, Shared};
use crate::error::TrainError;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// What a library that connects ranks has to offer. Every rank calls the same functions in the same order with data of the same length, and
/// none returns before the others have called it. All are called by one thread, that of [`super::Ranks::open`].
///
/// A rank that waits for the others longer than [`Patience::limit`] names those that have not come ([`Patience::tell`]) and waits on, until
/// it is told to end ([`Patience::ended`]).
pub trait Collectives {
    /// The number of this rank, below [`Collectives::world`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Gathers the data of every rank, in their order, on all of them: `all` is `world` times as long as `mine`.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] where ranks cannot be reached.
    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), TrainError>;

    /// Sends the `r`-th of `world` equal blocks to rank `r`, and receives one from each rank, in their order.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), TrainError>;

    /// Gives the data of rank `root` to all.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), TrainError>;

    /// Waits for all ranks.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn barrier(&self) -> Result<(), TrainError>;

    /// Is called now and then while nothing is asked of this rank: others that wait for it may want to know that it is there.
    fn idle(&self) {}

    /// Ends the processes of all ranks at once: some of them are waiting for this one, which cannot go on. Ranks that are threads go on waiting.
    fn abort(&self, _code: u8) {}
}

/// How long a rank waits for the others, and what it says and hears while it waits.
#[derive(Clone)]
pub struct Patience {
    pub(super) shared: Arc<Shared>,
    pub(super) say: Sender<Done>,
}

impl Patience {
    /// After this long, ranks that have not come are missing.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.shared.limit()
    }

    /// Tells the waiting training which ranks are missing, and why one thinks so. Once is enough.
    pub fn tell(&self, missing: String) {
        // A training that no longer listens has failed by itself.
        drop(self.say.send(Done::Failed(TrainError::Ranks { what: missing })));
    }

    /// The exit code with which all are to end, once that is so.
    #[must_use]
    pub fn ended(&self) -> Option<u8> {
        self.shared.ended()
    }
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience").field("limit", &self.limit()).finish_non_exhaustive()
    }
}
