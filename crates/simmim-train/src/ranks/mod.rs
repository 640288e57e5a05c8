//! Training by several processes, the ranks: each takes its share of every batch, and all move the same weights by the sum of their
//! gradients.
//!
//! [`Collectives`] is what a library for it has to offer: MPI in the program's feature `mpi`, [`Threads`] of one process, or nothing for a process
//! that is [`Alone`]. [`Ranks`] is what the trainer asks for.
//!
//! Sums are taken in the order of the ranks, whatever the library: each rank gets its block of all addends, sums it, and hands the sum out.
//! So the same number of ranks gives the same bits every time, and every rank has those of the others.

mod threads;

pub use threads::Threads;

use crate::error::TrainError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use simmim_engine::{EngineError, Executor};
use std::cell::RefCell;
use std::rc::Rc;

/// Floats that are summed at once. Smaller states are collected up to it; larger ones go in pieces.
const BUCKET: usize = 1 << 20;

/// What ranks do together. Every rank calls the same functions in the same order with data of the same length, and none returns before
/// the others have called it.
pub trait Collectives {
    /// The number of this rank, below [`Collectives::world`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Gathers the data of every rank, in their order, on all of them: `all` is `world` times as long as `mine`.
    ///
    /// # Errors
    /// [`EngineError::Device`] where a rank is gone.
    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), EngineError>;

    /// Sends the `r`-th of `world` equal blocks to rank `r`, and receives one from each rank, in their order.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), EngineError>;

    /// Gives the data of rank `root` to all.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), EngineError>;

    /// Waits for all ranks.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn barrier(&self) -> Result<(), EngineError>;

    /// Ends the processes of all ranks at once: some of them are waiting for this one, which cannot go on.
    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }

    /// Sums data over the ranks, in their order; rank `r` gets the `r`-th of `world` equal blocks of the sum. The length of `data` is `world`
    /// times that of `mine`.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    fn reduce_scatter(&self, data: &[f32], received: &mut [f32], mine: &mut [f32]) -> Result<(), EngineError> {
        self.all_to_all(bytemuck::cast_slice(data), bytemuck::cast_slice_mut(received))?;
        let (first, others) = received.split_at(mine.len());
        mine.copy_from_slice(first);
        for block in others.chunks_exact(mine.len()) {
            mine.iter_mut().zip(block).for_each(|(sum, addend)| *sum += addend);
        }
        Ok(())
    }

    /// Sums states of an executor over the ranks, those whose names begin with one of `prefixes`; every rank gets the sums. Where states live in
    /// a device's memory, an implementation may reduce them there; this one goes through the host.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`], faults of the device.
    fn all_reduce_states(
        &self,
        executor: &mut dyn Executor,
        prefixes: &[&str],
        buffers: &mut Buffers,
    ) -> Result<(), EngineError> {
        let mut small = std::mem::take(&mut buffers.small);
        small.clear();
        for prefix in prefixes {
            executor.visit_states(prefix, &mut |_, floats| {
                if floats.len() >= BUCKET {
                    return buffers.all_reduce(self, floats);
                }
                small.extend_from_slice(floats);
                Ok(())
            })?;
        }
        buffers.all_reduce(self, &mut small)?;
        let mut at = 0;
        for prefix in prefixes {
            executor.visit_states(prefix, &mut |_, floats| {
                if floats.len() < BUCKET {
                    floats.copy_from_slice(&small[at..at + floats.len()]);
                    at += floats.len();
                }
                Ok(())
            })?;
        }
        buffers.small = small;
        Ok(())
    }

    /// Gives the states of rank 0's executor whose names begin with `prefix` to all.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`], faults of the device.
    fn broadcast_states(&self, executor: &mut dyn Executor, prefix: &str) -> Result<(), EngineError> {
        executor.visit_states(prefix, &mut |_, floats| {
            floats.chunks_mut(BUCKET).try_for_each(|piece| self.broadcast(0, bytemuck::cast_slice_mut(piece)))
        })
    }
}

/// Working memory of sums, kept between steps.
#[derive(Debug, Default)]
pub struct Buffers {
    send: Vec<f32>,
    received: Vec<f32>,
    mine: Vec<f32>,
    small: Vec<f32>,
}

impl Buffers {
    fn all_reduce<C: Collectives + ?Sized>(&mut self, ranks: &C, data: &mut [f32]) -> Result<(), EngineError> {
        let world = ranks.world();
        for piece in data.chunks_mut(BUCKET) {
            let block = piece.len().div_ceil(world);
            for buffer in [&mut self.send, &mut self.received] {
                buffer.resize(block * world, 0.0);
            }
            self.mine.resize(block, 0.0);
            self.send[..piece.len()].copy_from_slice(piece);
            self.send[piece.len()..].fill(0.0);
            ranks.reduce_scatter(&self.send, &mut self.received, &mut self.mine)?;
            ranks.all_gather(bytemuck::cast_slice(&self.mine), bytemuck::cast_slice_mut(&mut self.received))?;
            piece.copy_from_slice(&self.received[..piece.len()]);
        }
        Ok(())
    }
}

/// A process without others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collectives for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8]) -> Result<(), EngineError> {
        all.copy_from_slice(mine);
        Ok(())
    }

    fn all_to_all(&self, send: &[u8], received: &mut [u8]) -> Result<(), EngineError> {
        received.copy_from_slice(send);
        Ok(())
    }

    fn broadcast(&self, _root: usize, _data: &mut [u8]) -> Result<(), EngineError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn all_reduce_states(&self, _: &mut dyn Executor, _: &[&str], _: &mut Buffers) -> Result<(), EngineError> {
        Ok(())
    }

    fn broadcast_states(&self, _: &mut dyn Executor, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
}

/// The ranks of a training, seen from one of them.
#[derive(Clone)]
pub struct Ranks {
    collectives: Rc<dyn Collectives>,
    buffers: Rc<RefCell<Buffers>>,
}

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.world())
    }
}

impl Default for Ranks {
    fn default() -> Self {
        Self::new(Rc::new(Alone))
    }
}

impl Ranks {
    /// Ranks that reach each other in a given way.
    #[must_use]
    pub fn new(collectives: Rc<dyn Collectives>) -> Self {
        Self { collectives, buffers: Rc::default() }
    }

    /// The number of this rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.collectives.rank()
    }

    /// Number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.collectives.world()
    }

    /// Whether this rank writes, draws and speaks for all.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// How the ranks reach each other.
    #[must_use]
    pub fn collectives(&self) -> &dyn Collectives {
        &*self.collectives
    }

    /// Sums states over the ranks, those whose names begin with one of `prefixes`.
    ///
    /// # Errors
    /// As [`Collectives::all_reduce_states`].
    pub fn sum_states(&self, executor: &mut dyn Executor, prefixes: &[&str]) -> Result<(), TrainError> {
        Ok(self.collectives.all_reduce_states(executor, prefixes, &mut self.buffers.borrow_mut())?)
    }

    /// Sums numbers over the ranks.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    pub fn sum(&self, numbers: &mut [f64]) -> Result<(), TrainError> {
        let mut all = vec![0.0; numbers.len() * self.world()];
        self.collectives.all_gather(bytemuck::cast_slice(numbers), bytemuck::cast_slice_mut(&mut all))?;
        let len = numbers.len();
        numbers.iter_mut().enumerate().for_each(|(i, sum)| *sum = all.iter().skip(i).step_by(len).sum());
        Ok(())
    }

    /// Whether it is true on any rank.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    pub fn any(&self, here: bool) -> Result<bool, TrainError> {
        let mut all = vec![0; self.world()];
        self.collectives.all_gather(&[u8::from(here)], &mut all)?;
        Ok(all.contains(&1))
    }

    /// Goes on where no rank has failed; otherwise every rank gets the error of the first that has.
    ///
    /// # Errors
    /// [`TrainError::Rank`] on all ranks; alone, the error as it is.
    pub fn agree<T>(&self, here: Result<T, TrainError>) -> Result<T, TrainError> {
        if self.world() == 1 {
            return here;
        }
        let mut failed = vec![0; self.world()];
        self.collectives.all_gather(&[u8::from(here.is_err())], &mut failed)?;
        let Some(rank) = failed.iter().position(|&failed| failed == 1) else { return here };
        let told = here.err().filter(|_| rank == self.rank()).map(|e| e.at_rank(rank));
        Err(TrainError::Rank(self.told_by(rank, told)?))
    }

    /// What rank 0 has found out, for all. The others do not call `find`.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub fn ask_first<T: Serialize + DeserializeOwned>(
        &self,
        find: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if self.world() == 1 {
            return find();
        }
        let found = self.agree(if self.is_first() { find().map(Some) } else { Ok(None) })?;
        self.told_by(0, found)
    }

    /// Gives what `rank` holds to all.
    fn told_by<T: Serialize + DeserializeOwned>(&self, rank: usize, held: Option<T>) -> Result<T, TrainError> {
        let internal = |e: serde_json::Error| TrainError::Internal { what: format!("a message between ranks: {e}") };
        let mut text = held.map(|held| serde_json::to_vec(&held)).transpose().map_err(internal)?.unwrap_or_default();
        let mut len = (text.len() as u64).to_ne_bytes();
        self.collectives.broadcast(rank, &mut len)?;
        text.resize(u64::from_ne_bytes(len) as usize, 0);
        self.collectives.broadcast(rank, &mut text)?;
        serde_json::from_slice(&text).map_err(internal)
    }

    /// What every rank holds, in their order, for all.
    ///
    /// # Errors
    /// As [`Collectives::all_gather`].
    pub fn gather<T: Serialize + DeserializeOwned + Clone>(&self, mine: &T) -> Result<Vec<T>, TrainError> {
        let here = self.rank();
        (0..self.world()).map(|rank| self.told_by(rank, (rank == here).then(|| mine.clone()))).collect()
    }

    /// Makes sure that states have the same bits on all ranks: those for whose names `which` is true.
    ///
    /// # Errors
    /// [`TrainError::RanksDiffer`] on all ranks, with the first that differs from most.
    pub fn compare_states(
        &self,
        executor: &mut dyn Executor,
        step: u64,
        which: impl Fn(&str) -> bool,
    ) -> Result<(), TrainError> {
        if self.world() == 1 {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        executor.visit_states("", &mut |name, floats| {
            if which(name) {
                hasher.update(bytemuck::cast_slice(floats));
            }
            Ok(())
        })?;
        let mut hashes = vec![[0; blake3::OUT_LEN]; self.world()];
        self.collectives.all_gather(hasher.finalize().as_bytes(), bytemuck::cast_slice_mut(&mut hashes))?;
        match odd_one(&hashes) {
            None => Ok(()),
            Some(rank) => Err(TrainError::RanksDiffer { rank, ranks: self.world(), step }),
        }
    }
}

/// The first whose hash is not that of most; of equally frequent ones that of the lowest rank counts.
fn odd_one(hashes: &[[u8; blake3::OUT_LEN]]) -> Option<usize> {
    let count = |hash: &[u8]| hashes.iter().filter(|other| other[..] == *hash).count();
    let most = hashes.iter().rev().max_by_key(|hash| count(&hash[..]))?;
    hashes.iter().position(|hash| hash != most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `body` gives on each of so many ranks.
    fn on_ranks<T: Send>(world: usize, body: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let body = &body;
            let threads: Vec<_> =
                Threads::new(world).into_iter().map(|rank| scope.spawn(move || body(rank.into_ranks()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_taken_in_the_order_of_the_ranks_and_are_the_same_on_all() {
        for (world, len) in [(1, 5), (2, 7), (3, 1), (4, 4099), (3, BUCKET + 5)] {
            let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 1009) as f32 / 3.0 - 100.0;
            let expected: Vec<f32> =
                (0..len).map(|i| (1..world).fold(value(0, i), |sum, r| sum + value(r, i))).collect();
            let sums = on_ranks(world, |ranks| {
                let mut data: Vec<f32> = (0..len).map(|i| value(ranks.rank(), i)).collect();
                Buffers::default().all_reduce(ranks.collectives(), &mut data).unwrap();
                data
            });
            assert!(sums.iter().all(|sum| *sum == expected), "{world} ranks, {len} values");
        }
    }

    #[test]
    fn a_failure_is_told_to_all_with_the_rank_that_met_it() {
        let told = on_ranks(3, |ranks| {
            let here = match ranks.rank() {
                1 => Err(TrainError::Input { what: "no such image".into(), help: "look".into() }),
                rank => Ok(rank),
            };
            ranks.agree(here).unwrap_err()
        });
        for error in told {
            assert_eq!(error.to_string(), "rank 1: no such image");
            assert_eq!(error.help().as_deref(), Some("look"));
            assert!(error.is_shared() && error.is_input());
        }
    }

    #[test]
    fn what_ranks_hold_reaches_all() {
        let seen = on_ranks(3, |ranks| {
            let ask_first = ranks.ask_first(|| Ok(vec![ranks.rank(); 2])).unwrap();
            let gathered = ranks.gather(&format!("rank {}", ranks.rank())).unwrap().join(", ");
            let mut sums = [ranks.rank() as f64, 1.0];
            ranks.sum(&mut sums).unwrap();
            (ask_first, gathered, sums, ranks.any(ranks.rank() == 2).unwrap(), ranks.any(false).unwrap())
        });
        for one in seen {
            assert_eq!(one, (vec![0, 0], "rank 0, rank 1, rank 2".to_owned(), [3.0, 3.0], true, false));
        }
    }

    #[test]
    fn the_rank_that_differs_from_most_is_named() {
        let hash = |n: u8| [n; blake3::OUT_LEN];
        let odd = |numbers: &[u8]| odd_one(&numbers.iter().map(|&n| hash(n)).collect::<Vec<_>>());
        assert_eq!(odd(&[1, 1, 1]), None);
        assert_eq!(odd(&[1, 1, 2]), Some(2));
        assert_eq!(odd(&[2, 1, 1]), Some(0));
        assert_eq!(odd(&[1, 2]), Some(1));
    }
}
