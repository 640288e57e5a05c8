//! Training by several processes, the ranks: each takes its share of every batch, and all move the same weights by the sum of their
//! gradients.
//!
//! [`Collectives`] is what a library for it has to offer: MPI in the program's feature `mpi`, or [`Threads`] of one process. [`Ranks`] is what
//! the trainer asks for. A thread of its own speaks to the other ranks (`link.rs`), so that gradients travel while the backward of earlier
//! layers runs (`exchange.rs`).
//!
//! Sums are taken in the order of the ranks, whatever the library: each rank gets its slice of all addends, sums it, and hands the sum out.
//! So the same number of ranks gives the same bits every time, and every rank has those of the others.

mod collectives;
mod exchange;
mod link;
mod piece;
mod threads;

pub use collectives::{Collectives, Patience};
pub use threads::Threads;

use crate::error::TrainError;
use crate::recipe::Recipe;
use exchange::{Aim, Exchange};
use link::{Job, Link};
use serde::Serialize;
use serde::de::DeserializeOwned;
use simmim_engine::executor::States;
use simmim_engine::{Executor, ProgramId};
use simmim_models::Precision;
use simmim_models::optimizer::Share;
use std::rc::Rc;
use std::time::Duration;

/// Floats that are handed out at once.
const PIECE: usize = 1 << 20;

/// The ranks of a training, seen from one of them.
#[derive(Clone, Default)]
pub struct Ranks {
    /// None for a process that is alone.
    link: Option<Rc<Link>>,
    travel: Travel,
}

/// How states travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Travel {
    /// Bytes of a piece. It leaves as soon as the backward has filled it.
    bucket_bytes: usize,
    /// What gradients are rounded to.
    gradients: Precision,
    /// Whether each rank keeps its slices of the moments alone, and updates its slices of the parameters.
    shard_optimizer: bool,
}

impl Default for Travel {
    fn default() -> Self {
        Self { bucket_bytes: 4 << 20, gradients: Precision::Float32, shard_optimizer: false }
    }
}

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.world())
    }
}

/// Says which ranks a rank has waited for in vain.
pub(crate) fn missing(ranks: impl Iterator<Item = usize>, limit: Duration) -> String {
    let ranks: Vec<String> = ranks.map(|rank| rank.to_string()).collect();
    let (s, verb) = if ranks.len() == 1 { ("", "does") } else { ("s", "do") };
    format!("rank{s} {} {verb} not come, {:.0} seconds after the others", ranks.join(", "), limit.as_secs_f64())
}

impl Ranks {
    /// Connects the ranks, in the thread that speaks to them from then on.
    ///
    /// # Errors
    /// What `open` fails with; [`TrainError::Internal`] where no thread can be started.
    pub fn open<C: Collectives>(
        open: impl FnOnce(Patience) -> Result<C, TrainError> + Send + 'static,
    ) -> Result<Self, TrainError> {
        let link = Link::open(open)?;
        Ok(Self { link: (link.world > 1).then(|| Rc::new(link)), travel: Travel::default() })
    }

    /// The same ranks, which wait for each other and send states as a recipe says.
    #[must_use]
    pub fn following(mut self, recipe: &Recipe) -> Self {
        let t = &recipe.train;
        self.travel = Travel {
            bucket_bytes: t.bucket_bytes,
            gradients: t.gradient_precision,
            shard_optimizer: t.shard_optimizer,
        };
        self.link.iter().for_each(|link| link.set_limit(Duration::from_secs(t.rank_timeout)));
        self
    }

    /// The same ranks, which wait for each other however long it takes: for shares of different lengths.
    #[must_use]
    pub fn without_limit(self) -> Self {
        self.link.iter().for_each(|link| link.set_limit(Duration::MAX));
        self
    }

    /// The number of this rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.rank)
    }

    /// Number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.link.as_ref().map_or(1, |link| link.world)
    }

    /// Whether this rank writes, draws and speaks for all.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] where ranks are missing.
    pub fn barrier(&self) -> Result<(), TrainError> {
        self.link.as_ref().map_or(Ok(()), |link| link.bytes(Job::Barrier).map(drop))
    }

    /// Ends the processes of all ranks at once: some of them are waiting for this one, which cannot go on.
    pub fn abort(&self, code: u8) -> ! {
        if let Some(link) = &self.link {
            link.end(code);
            // The library ends this process, too.
            std::thread::sleep(Duration::from_secs(5));
        }
        std::process::exit(code.into())
    }

    /// The data of every rank, in their order. All have as much.
    fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<u8>, TrainError> {
        self.link.as_ref().map_or(Ok(mine.clone()), |link| link.bytes(Job::AllGather(mine)))
    }

    /// The data of one rank; the others give as much.
    fn broadcast(&self, root: usize, data: Vec<u8>) -> Result<Vec<u8>, TrainError> {
        self.link.as_ref().map_or(Ok(data.clone()), |link| link.bytes(Job::Broadcast(root, data)))
    }

    /// Runs a program and sums the states whose names begin with `prefix` over the ranks while it runs, then the loss that the state `loss`
    /// has added up. Where moments are shared out every rank gets the sums of its slices, and zeros for the rest; this gives the sum
    /// of the squares of all then.
    pub(crate) fn run_summing(
        &self,
        executor: &mut dyn Executor,
        program: ProgramId,
        prefix: &str,
        loss: &str,
    ) -> Result<f64, TrainError> {
        let Some(link) = &self.link else { return Ok(executor.run(program).map(|()| 0.0)?) };
        let aim = if self.travel.shard_optimizer { Aim::SumOwn } else { Aim::Sum };
        let mut exchange = Exchange::new(link, aim, self.travel.gradients, self.travel.bucket_bytes);
        executor.run_visiting(program, prefix, &mut |name, states| exchange.add(name, states))?;
        let mut here = [0.0];
        let squares = lend(executor, |states| {
            let squares = exchange.finish(states)?;
            here.copy_from_slice(states.state(loss)?);
            Ok(squares)
        })?;
        let mut totals = [f64::from(here[0]), squares];
        self.sum(&mut totals)?;
        executor.write_state(loss, &[totals[0] as f32])?;
        Ok(totals[1])
    }

    /// Gives every rank the slices of the named states that the others have updated.
    ///
    /// # Errors
    /// As [`Ranks::barrier`], faults of the device.
    pub(crate) fn gather_slices(&self, executor: &mut dyn Executor, names: &[String]) -> Result<(), TrainError> {
        let Some(link) = &self.link else { return Ok(()) };
        let mut exchange = Exchange::new(link, Aim::Gather, Precision::Float32, self.travel.bucket_bytes);
        lend(executor, |states| {
            names.iter().try_for_each(|name| exchange.add(name, states))?;
            exchange.finish(states).map(drop)
        })
    }

    /// The share of the moments that this rank keeps.
    #[must_use]
    pub fn share(&self) -> Share {
        match self.travel.shard_optimizer {
            true => Share { rank: self.rank(), world: self.world() },
            false => Share::default(),
        }
    }

    /// A number that rank 0 gives to all; the others are asked for nothing.
    pub(crate) fn tell(&self, number: Option<usize>) -> Result<Option<usize>, TrainError> {
        let number = number.map_or(u64::MAX, |number| number as u64);
        let told = self.broadcast(0, number.to_ne_bytes().to_vec())?;
        Ok(usize::try_from(bytemuck::pod_read_unaligned::<u64>(&told)).ok().filter(|&number| number as u64 != u64::MAX))
    }

    /// All slices of floats of which every rank has one, on rank 0; the others get nothing. `len` is the length of the whole.
    pub(crate) fn join_slices(&self, mine: &[f32], len: usize) -> Result<Vec<f32>, TrainError> {
        let Some(link) = &self.link else { return Ok(mine.to_vec()) };
        let longest = len.div_ceil(link.world);
        let mut padded = mine.to_vec();
        padded.resize(longest, 0.0);
        let all = self.all_gather(bytemuck::cast_slice(&padded).to_vec())?;
        if !self.is_first() {
            return Ok(Vec::new());
        }
        let slices = all.chunks_exact(4 * longest).enumerate();
        let slice = |(rank, bytes): (usize, &[u8])| {
            let own = Share { rank, world: link.world }.of(len).len();
            floats(&bytes[..4 * own])
        };
        Ok(slices.flat_map(slice).collect())
    }

    /// The floats that rank 0 has, on all.
    pub(crate) fn hand_out(&self, mut all: Vec<f32>, len: usize) -> Result<Vec<f32>, TrainError> {
        if self.link.is_none() {
            return Ok(all);
        }
        all.resize(len, 0.0);
        for piece in all.chunks_mut(PIECE) {
            let bytes = self.broadcast(0, bytemuck::cast_slice(piece).to_vec())?;
            bytemuck::cast_slice_mut(piece).copy_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Gives the states of rank 0's executor for whose names `which` is true to all.
    ///
    /// # Errors
    /// As [`Ranks::barrier`], faults of the device.
    pub fn broadcast_states(
        &self,
        executor: &mut dyn Executor,
        which: impl Fn(&str) -> bool,
    ) -> Result<(), TrainError> {
        if self.link.is_none() {
            return Ok(());
        }
        let mut failed = None;
        executor.visit_states("", &mut |name, floats| {
            for piece in floats.chunks_mut(PIECE) {
                if !which(name) || failed.is_some() {
                    return Ok(());
                }
                match self.broadcast(0, bytemuck::cast_slice(piece).to_vec()) {
                    Ok(bytes) => bytemuck::cast_slice_mut(piece).copy_from_slice(&bytes),
                    Err(error) => failed = Some(error),
                }
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Sums numbers over the ranks, in their order.
    ///
    /// # Errors
    /// As [`Ranks::barrier`].
    pub fn sum(&self, numbers: &mut [f64]) -> Result<(), TrainError> {
        let all = self.all_gather(bytemuck::cast_slice(numbers).to_vec())?;
        let all: Vec<f64> = all.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        let len = numbers.len();
        numbers.iter_mut().enumerate().for_each(|(i, sum)| *sum = all.iter().skip(i).step_by(len).sum());
        Ok(())
    }

    /// Whether it is true on any rank.
    ///
    /// # Errors
    /// As [`Ranks::barrier`].
    pub fn any(&self, here: bool) -> Result<bool, TrainError> {
        Ok(self.all_gather(vec![u8::from(here)])?.contains(&1))
    }

    /// Goes on where no rank has failed; otherwise every rank gets the error of the first that has.
    ///
    /// # Errors
    /// [`TrainError::Rank`] on all ranks; alone, the error as it is.
    pub fn agree<T>(&self, here: Result<T, TrainError>) -> Result<T, TrainError> {
        if self.world() == 1 {
            return here;
        }
        if let Err(error @ TrainError::Ranks { .. }) = here {
            return Err(error);
        }
        let failed = self.all_gather(vec![u8::from(here.is_err())])?;
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
        let len = self.broadcast(rank, (text.len() as u64).to_ne_bytes().to_vec())?;
        text.resize(bytemuck::pod_read_unaligned::<u64>(&len) as usize, 0);
        serde_json::from_slice(&self.broadcast(rank, text)?).map_err(internal)
    }

    /// What every rank holds, in their order, for all.
    ///
    /// # Errors
    /// As [`Ranks::barrier`].
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
        let hashes = self.all_gather(hasher.finalize().as_bytes().to_vec())?;
        match odd_one(bytemuck::cast_slice(&hashes)) {
            None => Ok(()),
            Some(rank) => Err(TrainError::RanksDiffer { rank, ranks: self.world(), step }),
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// Lends the states of an executor to what may fail in its own way.
fn lend<T>(
    executor: &mut dyn Executor,
    body: impl FnOnce(&mut dyn States) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let (mut body, mut result) = (Some(body), None);
    executor.with_states(&mut |states| {
        result = body.take().map(|body| body(states));
        Ok(())
    })?;
    result.unwrap_or_else(|| Err(TrainError::Internal { what: "the states were not lent".into() }))
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
    use simmim_engine::cpu::CpuExecutor;
    use simmim_engine::graph::Bf16;
    use simmim_engine::ops::Add;
    use simmim_engine::{Graph, Program};

    /// What `body` gives on each of so many ranks.
    fn on_ranks<T: Send>(world: usize, body: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let body = &body;
            let threads: Vec<_> = Threads::new(world)
                .into_iter()
                .map(|rank| scope.spawn(move || body(rank.into_ranks().unwrap())))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// States of these lengths, and a program that touches the last of them first.
    fn executor(lens: &[usize]) -> (CpuExecutor, ProgramId) {
        let mut graph = Graph::new();
        for (at, &len) in lens.iter().enumerate().rev() {
            let [sum, one] = ["grad", "value"].map(|name| graph.state(&format!("{name}.{at}"), &[len]));
            graph.apply(Add, &[sum, one]).unwrap();
        }
        let [loss, of_part] = ["loss", "loss of a part"].map(|name| graph.state(name, &[1]));
        graph.apply(Add, &[loss, of_part]).unwrap();
        let mut executor = CpuExecutor::new(1).unwrap();
        let program = executor.load(Program::compile(&graph).unwrap()).unwrap();
        (executor, program)
    }

    fn value(rank: usize, i: usize) -> f32 {
        ((rank * 7919 + i * 104_729) % 1009) as f32 / 3.0 - 100.0
    }

    fn read(executor: &mut CpuExecutor, name: &str, len: usize) -> Vec<f32> {
        let mut floats = vec![0.0; len];
        executor.read_state(name, &mut floats).unwrap();
        floats
    }

    /// The gradients of a program on so many ranks: sums of `value` over them. Also the sum of squares that they found.
    fn summed(world: usize, lens: &[usize], travel: Travel) -> Vec<(Vec<Vec<f32>>, f64)> {
        on_ranks(world, |mut ranks| {
            ranks.travel = travel;
            let (mut executor, program) = executor(lens);
            for (at, &len) in lens.iter().enumerate() {
                let data: Vec<f32> = (0..len).map(|i| value(ranks.rank(), at + i)).collect();
                executor.write_state(&format!("value.{at}"), &data).unwrap();
            }
            executor.write_state("loss of a part", &[1.0 + ranks.rank() as f32]).unwrap();
            let squares = ranks.run_summing(&mut executor, program, "grad.", "loss").unwrap();
            let losses: usize = (1..=world).sum();
            assert_eq!(read(&mut executor, "loss", 1), [losses as f32]);
            let of = |(at, &len): (usize, &usize)| read(&mut executor, &format!("grad.{at}"), len);
            (lens.iter().enumerate().map(of).collect(), squares)
        })
    }

    /// States shorter than the number of ranks, pieces of few floats and of more than there are.
    const CASES: [(usize, &[usize], usize); 6] = [
        (2, &[7], 1 << 20),
        (3, &[1, 5, 2, 900], 64),
        (4, &[4099, 3, 17], 1000),
        (4, &[1], 4),
        (3, &[(1 << 20) + 5, 11], 4 << 20),
        (2, &[100, 100], 1),
    ];

    #[test]
    fn gradients_are_summed_in_the_order_of_the_ranks_and_are_the_same_on_all() {
        for (world, lens, bucket_bytes) in CASES {
            let expected: Vec<Vec<f32>> = lens
                .iter()
                .enumerate()
                .map(|(at, &len)| {
                    (0..len).map(|i| (1..world).fold(value(0, at + i), |sum, r| sum + value(r, at + i))).collect()
                })
                .collect();
            let travel = Travel { bucket_bytes, ..Travel::default() };
            for (sums, _) in summed(world, lens, travel) {
                assert!(sums == expected, "{world} ranks, {lens:?}");
            }
            // The slices of each rank, and the squares of all.
            let squares: f64 = expected.iter().flatten().map(|&v| f64::from(v) * f64::from(v)).sum();
            for (rank, (sums, found)) in
                summed(world, lens, Travel { shard_optimizer: true, ..travel }).into_iter().enumerate()
            {
                assert!((found - squares).abs() <= 1e-11 * squares, "{found}, {squares}");
                for (sum, whole) in sums.iter().zip(&expected) {
                    let own = Share { rank, world }.of(whole.len());
                    let of_others = sum[..own.start].iter().chain(&sum[own.end..]);
                    assert!(sum[own.clone()] == whole[own.clone()] && of_others.into_iter().all(|&v| v == 0.0));
                }
            }
            // Rounded once before they travel, and once as a sum.
            let rounded = |v: f32| Bf16::nearest(v).value();
            let travel = Travel { gradients: Precision::Bfloat16, ..travel };
            for (sums, _) in summed(world, lens, travel) {
                for (at, sum) in sums.iter().enumerate() {
                    let expect = |i: usize| {
                        rounded((1..world).fold(rounded(value(0, at + i)), |s, r| s + rounded(value(r, at + i))))
                    };
                    assert!(sum.iter().enumerate().all(|(i, &v)| v == expect(i)), "{world} ranks, {lens:?}");
                }
            }
        }
    }

    #[test]
    fn slices_are_gathered_joined_and_handed_out() {
        for (world, lens, bucket_bytes) in CASES {
            let all = on_ranks(world, |mut ranks| {
                ranks.travel = Travel { bucket_bytes, shard_optimizer: true, ..Travel::default() };
                let (mut executor, _) = executor(lens);
                let mut names = Vec::new();
                for (at, &len) in lens.iter().enumerate() {
                    names.push(format!("value.{at}"));
                    let data: Vec<f32> = (0..len).map(|i| value(ranks.rank(), at + i)).collect();
                    executor.write_state(&names[at], &data).unwrap();
                }
                ranks.gather_slices(&mut executor, &names).unwrap();
                let of = |(at, &len): (usize, &usize)| read(&mut executor, &format!("value.{at}"), len);
                let gathered: Vec<Vec<f32>> = lens.iter().enumerate().map(of).collect();
                let joined = |whole: &Vec<f32>| {
                    let own = ranks.share().of(whole.len());
                    let joined = ranks.join_slices(&whole[own], whole.len()).unwrap();
                    assert_eq!(joined.is_empty(), !ranks.is_first());
                    assert!(ranks.hand_out(joined, whole.len()).unwrap() == *whole);
                };
                gathered.iter().for_each(joined);
                gathered
            });
            for gathered in all {
                for (at, whole) in gathered.iter().enumerate() {
                    let owner = |i: usize| (0..world).find(|&rank| Share { rank, world }.of(whole.len()).contains(&i));
                    assert!(whole.iter().enumerate().all(|(i, &v)| v == value(owner(i).unwrap(), at + i)));
                }
            }
        }
    }

    #[test]
    fn a_rank_that_does_not_come_is_named_within_the_limit() {
        let start = std::time::Instant::now();
        let told = on_ranks(3, |ranks| {
            ranks.link.iter().for_each(|link| link.set_limit(Duration::from_millis(300)));
            ranks.barrier().unwrap();
            if ranks.rank() == 1 {
                std::thread::sleep(Duration::from_secs(2));
                return None;
            }
            Some(ranks.barrier().unwrap_err())
        });
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(told[1].is_none());
        for error in [0, 2].map(|rank: usize| told[rank].as_ref().unwrap()) {
            assert_eq!(error.to_string(), "rank 1 does not come, 0 seconds after the others");
            assert!(!error.is_shared() && error.help().unwrap().contains("train.rank_timeout"));
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
