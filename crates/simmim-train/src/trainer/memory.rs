//! What a training step takes, and how it is made to fit: in parts, and with activations that are computed twice.

use super::device::Parts;
use crate::error::TrainError;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use simmim_engine::mixed::{copies, keep_copies};
use simmim_engine::recompute::{blocks, recompute};
use simmim_engine::{Graph, Program};
use simmim_models::Precision;
use simmim_models::optimizer::Share;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Which activations the backward computes again. The results are the same bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// None.
    None,
    /// Those of every block.
    Block,
    /// Those of the fewest blocks that make the step fit into the memory that is given; none where none is given.
    #[default]
    Auto,
}

/// How a step may spend memory and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// What matrix products multiply.
    pub precision: Precision,
    /// Which activations are computed again.
    pub recompute: Recompute,
    /// Bytes for parameters, gradients, moments, averages and activations; 0: as many as it takes.
    pub memory: u64,
}

impl Budget {
    fn allows(self, bytes: usize) -> bool {
        self.memory == 0 || bytes as u64 <= self.memory
    }
}

impl Recipe {
    /// What the recipe says of memory.
    #[must_use]
    pub fn budget(&self) -> Budget {
        let t = &self.train;
        Budget { precision: t.precision, recompute: t.recompute, memory: t.memory }
    }

    /// The moments that the first of so many ranks keeps.
    pub(super) fn share_of_moments(&self, ranks: usize) -> Share {
        if self.train.shard_optimizer { Share { rank: 0, world: ranks } } else { Share::default() }
    }

    /// Whether images are mixed with their mirror images in the batch.
    pub(super) fn mixes(&self) -> bool {
        let mix = self.mix();
        mix.mixup > 0.0 || mix.cutmix > 0.0
    }

    /// Images of a step that each of so many ranks takes.
    pub(super) fn share(&self, ranks: usize) -> Result<usize, TrainError> {
        let (batch, pairs) = (self.train.batch_size, if self.mixes() && ranks > 1 { 2 } else { 1 });
        if batch.is_multiple_of(ranks * pairs) {
            return Ok(batch / ranks);
        }
        let (unit, why) = match pairs {
            1 => (ranks, ""),
            _ => (2 * ranks, ", in pairs for mixup and CutMix"),
        };
        Err(TrainError::Input {
            what: format!("train.batch_size = {batch} images cannot be shared equally by {ranks} ranks{why}"),
            help: format!("set train.batch_size to a multiple of {unit}, or start another number of ranks"),
        })
    }
}

/// What a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepMemory {
    /// Blocks whose activations are computed again, the first ones.
    pub recomputed: usize,
    /// Blocks whose activations could be.
    pub blocks: usize,
    /// Bytes of parameters, gradients, moments and averages.
    pub states: usize,
    /// Bytes of activations.
    pub arena: usize,
}

impl StepMemory {
    /// All of it in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.states.saturating_add(self.arena)
    }
}

/// The graph of one part of a step as it is to be compiled, `graph` being of floats and `updates` those of the optimiser.
///
/// # Errors
/// [`TrainError::Input`] where the step does not fit into the budget; faults of the graphs.
pub fn fit<'a>(
    graph: &'a Graph,
    updates: &[Graph],
    budget: Budget,
) -> Result<(Cow<'a, Graph>, StepMemory), TrainError> {
    let lowered = budget.precision.lower(graph)?;
    let mut states = BTreeMap::new();
    for update in updates {
        let update = Program::compile(&keep_copies(update, &copies(&lowered))?)?;
        states.extend(update.states().iter().map(|state| (state.name.clone(), state.ty.bytes())));
    }
    let states = states.values().fold(0, |sum: usize, bytes| sum.saturating_add(*bytes));
    let blocks = blocks(&lowered);
    let candidates = match budget.recompute {
        Recompute::None => 0..=0,
        Recompute::Block => blocks..=blocks,
        Recompute::Auto => 0..=blocks,
    };
    let mut least: Option<StepMemory> = None;
    for recomputed in candidates {
        let again = if recomputed == 0 { lowered.clone() } else { Cow::Owned(recompute(&lowered, recomputed)?) };
        let arena = Program::compile(&again)?.arena_bytes();
        let memory = StepMemory { recomputed, blocks, states, arena };
        if budget.allows(memory.bytes()) {
            return Ok((again, memory));
        }
        least = least.filter(|least| least.bytes() <= memory.bytes()).or(Some(memory));
    }
    Err(too_little(budget, least.unwrap_or_default()))
}

fn too_little(budget: Budget, least: StepMemory) -> TrainError {
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let (states, arena) = (mib(least.states as u64), mib(least.arena as u64));
    let with = match least.recomputed {
        0 => String::new(),
        all => format!(" with the activations of {all} blocks computed twice"),
    };
    let help = if budget.memory <= least.states as u64 {
        "take a smaller model or allow more memory: these do not depend on the batch"
    } else if budget.recompute == Recompute::None && least.blocks > 0 {
        "set train.recompute to \"auto\", more parts of a step (train.accumulation), or allow more memory"
    } else {
        "set more parts of a step (train.accumulation, or 0 to have them chosen), train.precision to \"bfloat16\", or allow more memory"
    };
    TrainError::Input {
        what: format!(
            "a step takes {} ({states} of parameters, gradients and moments, {arena} of activations){with}, and {} are allowed",
            mib(least.bytes() as u64),
            mib(budget.memory)
        ),
        help: help.into(),
    }
}

/// Settles the parts of a recipe's step where it leaves them open, for so many ranks, and makes sure that the share of one fits
/// into the memory that is given.
///
/// # Errors
/// As [`fit`].
pub(super) fn settle_parts(
    recipe: &mut Recipe,
    updates: &[Graph],
    ranks: usize,
    graph: impl Fn(usize, usize) -> Result<Graph, TrainError>,
) -> Result<(), TrainError> {
    let (share, budget) = (recipe.share(ranks)?, recipe.budget());
    if recipe.train.accumulation == 0 {
        let parts = fewest_parts(share, budget, updates, |micro, parts| graph(micro, parts * ranks))?;
        // Counted over all ranks, so that a part has as many images at any number of them.
        recipe.train.accumulation = parts * ranks;
    }
    if budget.memory > 0 {
        let parts = Parts::of(recipe, ranks)?;
        fit(&graph(parts.micro, parts.count * ranks)?, updates, budget)?;
    }
    Ok(())
}

/// An arena of this size is always taken.
const ARENA_BYTES: usize = 256 << 20;

/// Parts into which a batch is cut so that the arena of one part stays within 256 MiB, or within two thirds of what parameters, gradients and
/// moments take where that is more, and the step within the budget, without anything computed twice unless the budget says so: the smallest
/// number that divides the batch; the finest cut where even that does not fit. Parts cost less time than what is computed twice.
pub(super) fn fewest_parts(
    batch: usize,
    budget: Budget,
    updates: &[Graph],
    graph: impl Fn(usize, usize) -> Result<Graph, TrainError>,
) -> Result<usize, TrainError> {
    let unlimited = Budget { memory: 0, ..budget };
    for parts in (1..=batch).filter(|parts| batch.is_multiple_of(*parts)) {
        let (_, memory) = fit(&graph(batch / parts, parts)?, updates, unlimited)?;
        if memory.arena <= ARENA_BYTES.max(memory.states / 3 * 2) && budget.allows(memory.bytes()) {
            return Ok(parts);
        }
    }
    Ok(batch)
}
