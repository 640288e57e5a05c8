//! Parameters on a device, whatever they are trained for: loading programs, files and checkpoints, the optimiser's step.

use super::StepResult;
use super::memory::{Budget, StepMemory, fit};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use simmim_engine::ops::GlobalNorm;
use simmim_engine::{Executor, Graph, InputSlot, OutputSlot, Program, ProgramId, mixed};
use simmim_models::encoder::Branch;
use simmim_models::names::{
    AVERAGE_DECAY, AVERAGE_PREFIX, CLIP, FIRST_MOMENT_PREFIX, GRADIENT_NORM, GRADIENT_PREFIX, LOSS, LOSS_SUM,
    SECOND_MOMENT_PREFIX, STEP,
};
use simmim_models::optimizer::{
    AdamWConfig, Rate, Share, averages_graph, averaging_update_graph, sharded_update_graph, update_graph,
};
use simmim_models::weights::{Tensor, Weights};
use simmim_models::{ModelError, ParameterSpec, Precision};
use simmim_random::{Purpose, Stream};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// How a rank's share of a step is cut into parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    /// Images of a part.
    pub(super) micro: usize,
    /// Number of parts.
    pub(super) count: usize,
}

impl Parts {
    /// The share of a recipe's batch that each of so many ranks takes, in as few parts as there can be of no more images than the recipe says.
    pub(super) fn of(recipe: &Recipe, ranks: usize) -> Result<Self, TrainError> {
        let (batch, share) = (recipe.train.batch_size, recipe.share(ranks)?);
        let most = (batch / recipe.train.accumulation.max(1)).max(1);
        let micro = (1..=share.min(most)).rev().find(|micro| share.is_multiple_of(*micro)).unwrap_or(1);
        Ok(Self { micro, count: share / micro })
    }

    /// The rows of the share of each part.
    pub(super) fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count).map(move |part| part * self.micro..(part + 1) * self.micro)
    }

    /// Images of the share.
    pub(super) fn images(self) -> usize {
        self.micro * self.count
    }
}

/// The optimiser's programs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    program: ProgramId,
    step: InputSlot,
    norm: Norm,
    /// The program that moves the averages, where they are kept, and its decay.
    averages: Option<(ProgramId, InputSlot)>,
    loss: OutputSlot,
    adamw: AdamWConfig,
}

/// Where the norm of all gradients comes from.
#[derive(Debug, Clone, Copy)]
enum Norm {
    /// The program computes it.
    Computed(OutputSlot),
    /// The ranks have summed its squares; the program takes the factor that clips.
    Summed(InputSlot),
}

/// The graphs of the optimiser: one, or for the share of a rank one, and another for the averages, which need whole parameters.
pub(super) fn update_graphs(
    parameters: &[ParameterSpec],
    adamw: &AdamWConfig,
    averages: bool,
    share: Share,
) -> Result<Vec<Graph>, TrainError> {
    Ok(match (share.is_whole(), averages) {
        (true, false) => vec![update_graph(parameters, adamw)?],
        (true, true) => vec![averaging_update_graph(parameters, adamw)?],
        (false, false) => vec![sharded_update_graph(parameters, adamw, share)?],
        (false, true) => vec![sharded_update_graph(parameters, adamw, share)?, averages_graph(parameters)?],
    })
}

/// Inputs of a program that say which samples keep which branch.
#[derive(Debug, Clone)]
pub(super) struct DropPath {
    /// Number of each branch that can be dropped, its rate and its input.
    dropped: Vec<(usize, f64, InputSlot)>,
    /// Number of all branches.
    branches: usize,
}

impl DropPath {
    pub(super) fn find(executor: &dyn Executor, program: ProgramId, branches: &[Branch]) -> Result<Self, TrainError> {
        let dropped = branches.iter().enumerate().filter(|(_, branch)| branch.rate > 0.0);
        let found = dropped
            .map(|(number, branch)| Ok((number, f64::from(branch.rate), executor.input(program, &branch.input)?)));
        Ok(Self { dropped: found.collect::<Result<_, TrainError>>()?, branches: branches.len() })
    }

    /// Keeps or drops each branch of the samples in these rows of the batch: a pure function of (seed, step, row, branch).
    pub(super) fn write(
        &self,
        executor: &mut dyn Executor,
        seed: u64,
        step: u64,
        rows: &[usize],
    ) -> Result<(), TrainError> {
        for &(number, rate, slot) in &self.dropped {
            let draw = |sample: usize| {
                let place = (sample * self.branches + number) as u64;
                let kept = Stream::new(seed, Purpose::DropPath, step, place).uniform() >= rate;
                if kept { (1.0 / (1.0 - rate)) as f32 } else { 0.0 }
            };
            executor.stage(slot)?.iter_mut().zip(rows).for_each(|(keep, &sample)| *keep = draw(sample));
        }
        Ok(())
    }
}

/// An executor with the parameters of one model.
pub struct Device {
    executor: Box<dyn Executor>,
    parameters: Vec<ParameterSpec>,
    /// Parameters that no program uses, kept for files.
    idle: BTreeMap<String, Vec<f32>>,
    /// Whether moving averages of the parameters are kept.
    averages: bool,
    /// What programs compute with, and how a step may spend memory.
    pub(super) budget: Budget,
    /// Ranks whose gradients are summed, each of its share of the batch.
    pub(super) ranks: Ranks,
    /// Sum of the squares of all gradients of the step, where ranks share out the moments.
    squares: f64,
    /// Whole moments on their way to the ranks that keep them.
    moments: BTreeMap<String, Vec<f32>>,
    /// What a step takes, once it is loaded.
    step_memory: StepMemory,
    /// Parameters of which programs read a copy, and whether the update that writes the copies is loaded.
    copied: BTreeSet<String>,
    updates: bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("machine", &self.executor.machine())
            .field("memory", &self.executor.memory())
            .finish_non_exhaustive()
    }
}

fn is_moment(name: &str) -> bool {
    name.starts_with(FIRST_MOMENT_PREFIX) || name.starts_with(SECOND_MOMENT_PREFIX)
}

impl Device {
    /// With starting values that are a pure function of the seed.
    pub(super) fn new(executor: Box<dyn Executor>, parameters: Vec<ParameterSpec>, seed: u64) -> Self {
        let idle = parameters.iter().map(|p| (p.name.clone(), p.initial(seed))).collect();
        Self {
            executor,
            parameters,
            idle,
            averages: false,
            budget: Budget::default(),
            ranks: Ranks::default(),
            squares: 0.0,
            moments: BTreeMap::new(),
            step_memory: StepMemory::default(),
            copied: BTreeSet::new(),
            updates: false,
        }
    }

    /// The executor, for its memory and timings.
    #[must_use]
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to run what was loaded.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    /// What programs compute with.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.budget.precision
    }

    /// What a training step takes; nothing before it is loaded.
    #[must_use]
    pub fn step_memory(&self) -> StepMemory {
        self.step_memory
    }

    /// Whether moving averages of the parameters are kept.
    pub(super) fn averages(&self) -> bool {
        self.averages
    }

    /// Loads a program in the device's precision; parameters that come to the device with it move there.
    pub(super) fn load(&mut self, graph: &Graph) -> Result<ProgramId, TrainError> {
        let graph = self.budget.precision.lower(graph)?;
        self.load_copying(&graph)
    }

    /// Loads the programs of a training step, so that it stays within the budget: that of a part, and the optimiser's.
    pub(super) fn load_step(
        &mut self,
        graph: &Graph,
        averages: bool,
        adamw: AdamWConfig,
    ) -> Result<(ProgramId, Update), TrainError> {
        let updates = update_graphs(&self.parameters, &adamw, averages, self.ranks.share())?;
        let (graph, memory) = fit(graph, &updates, self.budget)?;
        self.step_memory = memory;
        Ok((self.load_copying(&graph)?, self.load_update(&updates, adamw)?))
    }

    fn load_copying(&mut self, graph: &Graph) -> Result<ProgramId, TrainError> {
        let copied = mixed::copies(graph);
        if self.updates && !copied.is_subset(&self.copied) {
            return Err(TrainError::Internal { what: "a program reads copies that the update does not write".into() });
        }
        self.copied.extend(copied);
        self.load_lowered(graph)
    }

    fn load_lowered(&mut self, graph: &Graph) -> Result<ProgramId, TrainError> {
        let program = Program::compile(graph)?;
        let names: Vec<String> = program.states().iter().map(|state| state.name.clone()).collect();
        let id = self.executor.load(program)?;
        for name in names {
            if let Some(data) = self.idle.remove(&name) {
                self.executor.write_state(&name, &data)?;
            }
        }
        Ok(id)
    }

    /// Loads the optimiser's programs. Moving averages are kept from now on where one has an input for their decay; they start with
    /// [`Device::start_averages`]. Programs that train come before it.
    fn load_update(&mut self, graphs: &[Graph], adamw: AdamWConfig) -> Result<Update, TrainError> {
        self.averages = graphs.iter().any(|graph| graph.find_input(AVERAGE_DECAY).is_some());
        let sharded = !self.ranks.share().is_whole();
        let mut programs = Vec::with_capacity(graphs.len());
        for graph in graphs {
            // Parameters that come from other ranks are rounded to their copies as they come, and this rank's with them.
            let graph = if sharded { graph } else { &mixed::keep_copies(graph, &self.copied)? };
            programs.push(self.load_lowered(graph)?);
        }
        self.updates = true;
        match programs[..] {
            [program] => self.update_of(program, self.averages.then_some(program), adamw),
            [program, averaging] => self.update_of(program, Some(averaging), adamw),
            _ => Err(TrainError::Internal { what: "an optimiser has one program or two".into() }),
        }
    }

    fn update_of(
        &self,
        program: ProgramId,
        averaging: Option<ProgramId>,
        adamw: AdamWConfig,
    ) -> Result<Update, TrainError> {
        let executor = &*self.executor;
        let norm = match self.ranks.share().is_whole() {
            true => Norm::Computed(executor.output(program, GRADIENT_NORM)?),
            false => Norm::Summed(executor.input(program, CLIP)?),
        };
        let averages = averaging.map(|id| Ok::<_, TrainError>((id, executor.input(id, AVERAGE_DECAY)?))).transpose()?;
        let (step, loss) = (executor.input(program, STEP)?, executor.output(program, LOSS)?);
        Ok(Update { program, step, norm, averages, loss, adamw })
    }

    /// Runs the last part of a step; the gradients are those of all ranks then.
    pub(super) fn run_last(&mut self, program: ProgramId) -> Result<(), TrainError> {
        self.squares = self.ranks.run_summing(&mut *self.executor, program, GRADIENT_PREFIX, LOSS_SUM)?;
        Ok(())
    }

    /// Moves the parameters by the gradients so far, and their averages, where there are any, with `decay`; `step` counts from 0.
    /// Waits for the device. Where ranks share out the moments each moves its slices, and gets those of the others.
    pub(super) fn update(&mut self, u: &Update, step: u64, rate: Rate, decay: f64) -> Result<StepResult, TrainError> {
        self.executor.write(u.step, &u.adamw.step_input(rate, step + 1))?;
        if let Norm::Summed(clip) = u.norm {
            let factor = GlobalNorm { max_norm: u.adamw.clip_norm }.clip(self.squares.sqrt());
            self.executor.write(clip, &[factor as f32])?;
        }
        if let Some((_, slot)) = u.averages.filter(|(id, _)| *id == u.program) {
            self.executor.write(slot, &[decay as f32])?;
        }
        self.executor.run(u.program)?;
        let (mut loss, mut norm) = ([0.0], [self.squares.sqrt() as f32]);
        self.executor.read(u.loss, &mut loss)?;
        if let Norm::Computed(slot) = u.norm {
            self.executor.read(slot, &mut norm)?;
        }
        if !self.ranks.share().is_whole() {
            let names: Vec<String> = self.parameters.iter().filter(|p| p.used).map(|p| p.name.clone()).collect();
            self.ranks.gather_slices(&mut *self.executor, &names)?;
        }
        if let Some((id, slot)) = u.averages.filter(|(id, _)| *id != u.program) {
            self.executor.write(slot, &[decay as f32])?;
            self.executor.run(id)?;
        }
        Ok(StepResult { loss: loss[0], grad_norm: norm[0] })
    }

    /// Gives all ranks what the first has: parameters, averages, and the moments that they keep.
    pub(super) fn share_states(&mut self) -> Result<(), TrainError> {
        let sharded = !self.ranks.share().is_whole();
        let ranks = self.ranks.clone();
        ranks.broadcast_states(&mut *self.executor, |name| !(sharded && is_moment(name)))?;
        if ranks.ask_first(|| Ok(!self.moments.is_empty()))? {
            for (name, len) in self.moment_lens() {
                let whole = ranks.hand_out(self.moments.remove(&name).unwrap_or_default(), len)?;
                let slice = ranks.share().of(len);
                if !slice.is_empty() {
                    self.executor.write_state(&name, &whole[slice])?;
                }
            }
        }
        Ok(())
    }

    /// The moments of a checkpoint, and how many values each has on all ranks together.
    fn moment_lens(&self) -> Vec<(String, usize)> {
        let moments = self.checkpoint_shapes().into_iter().filter(|(name, _)| is_moment(name));
        moments.map(|(name, shape)| (name, shape.iter().product())).collect()
    }

    /// Answers the first rank, which writes a checkpoint with what `write` does, and asks for the moments of the others one by one.
    pub(super) fn with_all_moments<T>(
        &mut self,
        write: Option<impl FnOnce(&mut Self) -> Result<T, TrainError>>,
    ) -> Result<Option<T>, TrainError> {
        if self.ranks.share().is_whole() {
            return write.map(|write| write(self)).transpose();
        }
        if let Some(write) = write {
            let written = write(self);
            self.ranks.tell(None)?;
            return written.map(Some);
        }
        let moments = self.moment_lens();
        while let Some(number) = self.ranks.tell(None)? {
            let (name, len) =
                moments.get(number).ok_or_else(|| TrainError::Internal { what: "no such moment".into() })?;
            self.join_moment(name, *len)?;
        }
        Ok(None)
    }

    fn join_moment(&mut self, name: &str, len: usize) -> Result<Vec<f32>, TrainError> {
        let mut mine = vec![0.0; self.ranks.share().of(len).len()];
        if !mine.is_empty() {
            self.executor.read_state(name, &mut mine)?;
        }
        self.ranks.join_slices(&mine, len)
    }

    /// All parameters under the official names; their moving averages instead where `average` asks for them and they are kept.
    pub(super) fn weights(&mut self, average: bool) -> Result<Weights, TrainError> {
        let specs = self.parameters.clone();
        specs
            .into_iter()
            .map(|p| {
                let prefix = if average && self.averages && p.used { AVERAGE_PREFIX } else { "" };
                let data = self.read_tensor(&format!("{prefix}{}", p.name))?;
                Ok((p.name, Tensor { data, shape: p.shape }))
            })
            .collect()
    }

    /// Overwrites parameters, such as those that [`simmim_models::weights::match_parameters`] found in a file, and starts their
    /// averages there.
    ///
    /// # Errors
    /// Unknown names, other lengths, faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        self.write_tensors(weights)?;
        self.start_averages(true)
    }

    fn write_tensors(&mut self, tensors: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        let sharded = !self.ranks.share().is_whole();
        for (name, data) in tensors {
            if sharded && is_moment(&name) {
                self.moments.insert(name, data);
                continue;
            }
            match self.idle.get_mut(&name) {
                Some(place) => *place = data,
                None => self.executor.write_state(&name, &data)?,
            }
        }
        Ok(())
    }

    /// Sets the moving averages to the parameters: of all of them, or of those that never change.
    pub(super) fn start_averages(&mut self, all: bool) -> Result<(), TrainError> {
        if !self.averages {
            return Ok(());
        }
        for p in self.parameters.clone().into_iter().filter(|p| all || !p.used) {
            let data = self.read_tensor(&p.name)?;
            self.executor.write_state(&format!("{AVERAGE_PREFIX}{}", p.name), &data)?;
        }
        Ok(())
    }

    /// Name and shape of everything a checkpoint holds: all parameters, and moments and averages of those that change.
    #[must_use]
    pub fn checkpoint_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let prefixes: &[&str] = &[FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, AVERAGE_PREFIX];
        let prefixes = &prefixes[..if self.averages { 3 } else { 2 }];
        let used = self.parameters.iter().filter(|p| p.used);
        let kept = used.flat_map(|p| prefixes.iter().map(|prefix| (format!("{prefix}{}", p.name), p.shape.clone())));
        self.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).chain(kept).collect()
    }

    /// One tensor of [`Device::checkpoint_shapes`]. Where ranks share out the moments, the first may ask for these while it writes a
    /// checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Engine`] for an unknown name, faults of the device.
    pub fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
        if let Some(data) = self.idle.get(name) {
            return Ok(data.clone());
        }
        if is_moment(name) && !self.ranks.share().is_whole() {
            let moments = self.moment_lens();
            let found = moments.iter().enumerate().find(|(_, (known, _))| known == name);
            let (number, (_, len)) = found.ok_or_else(|| TrainError::Internal { what: format!("no moment {name}") })?;
            self.ranks.tell(Some(number))?;
            return self.join_moment(name, *len);
        }
        let prefixes = [FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, AVERAGE_PREFIX];
        let owner = prefixes.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
        let len = self.parameters.iter().find(|p| p.name == owner).map_or(0, ParameterSpec::len);
        let mut data = vec![0.0; len];
        self.executor.read_state(name, &mut data)?;
        Ok(data)
    }

    /// Brings back what a checkpoint holds. `path` names it in errors.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] with every missing, unexpected and misshapen tensor; nothing is changed then.
    pub fn restore(&mut self, path: &Path, mut tensors: Weights) -> Result<(), TrainError> {
        let (mut missing, mut misshapen, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (name, shape) in self.checkpoint_shapes() {
            match tensors.remove(&name) {
                Some(t) if t.shape == shape => found.push((name, t.data)),
                Some(t) => misshapen.push(format!("{name} ({:?} in the file, {shape:?} in the model)", t.shape)),
                None => missing.push(name),
            }
        }
        let unexpected: Vec<String> = tensors.into_keys().collect();
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            self.write_tensors(found)?;
            return self.start_averages(false);
        }
        Err(ModelError::Mismatch { path: path.to_owned(), missing, unexpected, misshapen }.into())
    }
}
