//! Parameters on a device, whatever they are trained for: loading programs, files and checkpoints, the optimiser's step.

use crate::error::TrainError;
use simmim_engine::{Executor, Graph, Program, ProgramId};
use simmim_models::classifier::AVERAGE_PREFIX;
use simmim_models::optimizer::{AdamWConfig, FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX};
use simmim_models::weights::{Tensor, Weights};
use simmim_models::{ModelError, ParameterSpec, VitConfig};
use simmim_random::{Purpose, Stream};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// The programs of training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Training {
    pub(super) step: ProgramId,
    pub(super) update: ProgramId,
    pub(super) adamw: AdamWConfig,
    /// Images of one run of `step`.
    pub(super) micro: usize,
    /// Runs of `step` in an optimiser step.
    pub(super) accumulation: usize,
}

/// An executor with the parameters of one model.
pub(super) struct Device {
    pub(super) executor: Box<dyn Executor>,
    pub(super) parameters: Vec<ParameterSpec>,
    /// Parameters that no program uses, kept for files.
    idle: BTreeMap<String, Vec<f32>>,
    /// Whether moving averages of the parameters are kept.
    pub(super) averages: bool,
}

impl Device {
    /// With starting values that are a pure function of the seed.
    pub(super) fn new(executor: Box<dyn Executor>, parameters: Vec<ParameterSpec>, seed: u64) -> Self {
        let idle = parameters.iter().map(|p| (p.name.clone(), p.initial(seed))).collect();
        Self { executor, parameters, idle, averages: false }
    }

    /// Loads a program; parameters that come to the device with it move there.
    pub(super) fn load(&mut self, graph: &Graph) -> Result<ProgramId, TrainError> {
        let program = Program::compile(graph)?;
        let names: Vec<String> = program.states.iter().map(|(name, _)| name.clone()).collect();
        let id = self.executor.load(program)?;
        for name in names {
            if let Some(data) = self.idle.remove(&name) {
                self.executor.write_state(&name, &data)?;
            }
        }
        Ok(id)
    }

    /// The loss of the last run.
    pub(super) fn loss(&mut self, program: ProgramId) -> Result<f32, TrainError> {
        let mut loss = [0.0];
        self.executor.read(program, "loss", &mut loss)?;
        Ok(loss[0])
    }

    /// Moves the parameters by the gradients so far; `step` counts from 0. Returns the gradients' norm.
    pub(super) fn update(&mut self, t: &Training, step: u64, lr: f64) -> Result<f32, TrainError> {
        self.executor.write(t.update, "step", &t.adamw.step_input(lr, step + 1))?;
        self.executor.run(t.update)?;
        let mut norm = [0.0];
        self.executor.read(t.update, "norm", &mut norm)?;
        Ok(norm[0])
    }

    /// Keeps or drops each branch of each sample: a pure function of (seed, step, place in the batch, branch).
    pub(super) fn write_drop_path(
        &mut self,
        program: ProgramId,
        encoder: &VitConfig,
        seed: u64,
        step: u64,
        range: Range<usize>,
    ) -> Result<(), TrainError> {
        if encoder.drop_path <= 0.0 {
            return Ok(());
        }
        for block in 1..encoder.depth {
            let rate = f64::from(encoder.drop_path_of(block));
            for (part, name) in ["attn", "mlp"].into_iter().enumerate() {
                let draw = |sample: usize| {
                    let place = ((sample * encoder.depth + block) * 2 + part) as u64;
                    let kept = Stream::new(seed, Purpose::DropPath, step, place).uniform() >= rate;
                    if kept { (1.0 / (1.0 - rate)) as f32 } else { 0.0 }
                };
                let keep: Vec<f32> = range.clone().map(draw).collect();
                self.executor.write(program, &format!("keep.{block}.{name}"), &keep)?;
            }
        }
        Ok(())
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

    /// Overwrites parameters.
    pub(super) fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        for (name, data) in weights {
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
    pub(super) fn checkpoint_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let prefixes: &[&str] = &[FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, AVERAGE_PREFIX];
        let prefixes = &prefixes[..if self.averages { 3 } else { 2 }];
        let used = self.parameters.iter().filter(|p| p.used);
        let kept = used.flat_map(|p| prefixes.iter().map(|prefix| (format!("{prefix}{}", p.name), p.shape.clone())));
        self.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).chain(kept).collect()
    }

    /// One tensor of [`Device::checkpoint_shapes`].
    pub(super) fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
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

    /// Brings back what a checkpoint holds; nothing is changed where it does not fit.
    pub(super) fn restore(&mut self, path: &Path, mut tensors: Weights) -> Result<(), TrainError> {
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
            self.set_weights(found)?;
            return self.start_averages(false);
        }
        Err(ModelError::Mismatch { path: path.to_owned(), missing, unexpected, misshapen }.into())
    }
}
