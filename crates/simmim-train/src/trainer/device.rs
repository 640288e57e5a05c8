//! Parameters on a device, whatever they are trained for: loading programs, files and checkpoints, the optimiser's step.

use super::StepResult;
use super::memory::{Budget, StepMemory, fit};
use crate::error::TrainError;
use crate::recipe::Recipe;
use simmim_engine::{Executor, Graph, InputSlot, OutputSlot, Program, ProgramId, mixed};
use simmim_models::encoder::Branch;
use simmim_models::names::{
    AVERAGE_DECAY, AVERAGE_PREFIX, FIRST_MOMENT_PREFIX, GRADIENT_NORM, LOSS, SECOND_MOMENT_PREFIX, STEP,
};
use simmim_models::optimizer::{AdamWConfig, Rate};
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

/// The optimiser's program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    program: ProgramId,
    step: InputSlot,
    /// Only where moving averages are kept.
    decay: Option<InputSlot>,
    loss: OutputSlot,
    norm: OutputSlot,
    adamw: AdamWConfig,
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
    pub(super) ranks: usize,
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
            ranks: 1,
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
        update: &Graph,
        adamw: AdamWConfig,
    ) -> Result<(ProgramId, Update), TrainError> {
        let (graph, memory) = fit(graph, update, self.budget)?;
        self.step_memory = memory;
        Ok((self.load_copying(&graph)?, self.load_update(update, adamw)?))
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

    /// Loads the optimiser's program. Moving averages are kept from now on where it has an input for their decay; they start with
    /// [`Device::start_averages`]. Programs that train come before it.
    fn load_update(&mut self, graph: &Graph, adamw: AdamWConfig) -> Result<Update, TrainError> {
        self.averages = graph.find_input(AVERAGE_DECAY).is_some();
        let program = self.load_lowered(&mixed::keep_copies(graph, &self.copied)?)?;
        self.updates = true;
        let executor = &*self.executor;
        let decay = self.averages.then(|| executor.input(program, AVERAGE_DECAY)).transpose()?;
        let (loss, norm) = (executor.output(program, LOSS)?, executor.output(program, GRADIENT_NORM)?);
        Ok(Update { program, step: executor.input(program, STEP)?, decay, loss, norm, adamw })
    }

    /// Moves the parameters by the gradients so far, and their averages, where there are any, with `decay`; `step` counts from 0.
    /// Waits for the device.
    pub(super) fn update(&mut self, u: &Update, step: u64, rate: Rate, decay: f64) -> Result<StepResult, TrainError> {
        self.executor.write(u.step, &u.adamw.step_input(rate, step + 1))?;
        if let Some(slot) = u.decay {
            self.executor.write(slot, &[decay as f32])?;
        }
        self.executor.run(u.program)?;
        let (mut loss, mut norm) = ([0.0], [0.0]);
        self.executor.read(u.loss, &mut loss)?;
        self.executor.read(u.norm, &mut norm)?;
        Ok(StepResult { loss: loss[0], grad_norm: norm[0] })
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
        for (name, data) in tensors {
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

    /// One tensor of [`Device::checkpoint_shapes`].
    ///
    /// # Errors
    /// [`TrainError::Engine`] for an unknown name, faults of the device.
    pub fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
        if let Some(data) = self.idle.get(name) {
            return Ok(data.clone());
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
