//! A model on a device: the compiled programs of training and evaluation over one set of parameters.

use super::device::{Device, DropPath, Parts, Update, update_graphs};
use super::memory::{Budget, fewest_parts};
use crate::error::TrainError;
use crate::features::{EncoderProgram, Layer};
use crate::ranks::Ranks;
use simmim_engine::autodiff::differentiate;
use simmim_engine::{Executor, Graph, InputSlot, OutputSlot, ProgramId};
use simmim_models::names::{IMAGES, LOSS, PREDICTION, TARGET};
use simmim_models::optimizer::{AdamWConfig, Rate, Share, sum_loss};
use simmim_models::simmim::{Build, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_models::weights::Weights;
use simmim_models::{ModelError, Precision, SimMimConfig};
use std::collections::BTreeMap;

/// What one optimiser step gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Loss of the batch.
    pub loss: f32,
    /// Norm of all gradients before clipping. Where it is not finite the parameters were left as they are.
    pub grad_norm: f32,
}

/// Loss, predictions and targets of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    /// Loss of the batch.
    pub loss: f32,
    /// Predicted patches, `[images, predicted, channels height width]`.
    pub prediction: Vec<f32>,
    /// Their targets, of the same shape.
    pub target: Vec<f32>,
    /// Position in the patch grid of each, `[images, predicted]`.
    pub positions: Vec<i32>,
}

/// The programs of training.
#[derive(Debug, Clone)]
struct Training {
    parts: Parts,
    program: ProgramId,
    images: InputSlot,
    indices: StepSlots,
    drop_path: DropPath,
    update: Update,
}

/// The program that gives loss, predictions and targets of a batch of one size.
#[derive(Debug, Clone, Copy)]
struct Evaluation {
    program: ProgramId,
    images: InputSlot,
    indices: StepSlots,
    loss: OutputSlot,
    prediction: OutputSlot,
    target: OutputSlot,
}

impl Evaluation {
    fn load(device: &mut Device, config: &SimMimConfig, batch: usize) -> Result<Self, TrainError> {
        let build = Build { batch, variant: Variant::Fast, accumulation: 1, train: false, outputs: true };
        let program = device.load(&simmim_graph(config, build)?.0)?;
        let executor = device.executor();
        Ok(Self {
            program,
            images: executor.input(program, IMAGES)?,
            indices: StepSlots::find(executor, program)?,
            loss: executor.output(program, LOSS)?,
            prediction: executor.output(program, PREDICTION)?,
            target: executor.output(program, TARGET)?,
        })
    }
}

/// A SimMIM model on an executor. See the module's documentation.
pub struct Session {
    device: Device,
    config: SimMimConfig,
    training: Option<Training>,
    evaluation: BTreeMap<usize, Evaluation>,
    indices: StepIndices,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("config", &self.config).field("device", &self.device).finish_non_exhaustive()
    }
}

/// The differentiated graph of one micro-batch: what [`Session::prepare_training`] compiles.
///
/// # Errors
/// As [`simmim_graph`].
pub fn training_graph(config: &SimMimConfig, micro: usize, accumulation: usize) -> Result<Graph, TrainError> {
    let build = Build { batch: micro, variant: Variant::Fast, accumulation, train: true, outputs: false };
    let (mut graph, loss) = simmim_graph(config, build)?;
    differentiate(&mut graph, loss).map_err(ModelError::from)?;
    sum_loss(&mut graph, loss)?;
    Ok(graph)
}

/// Parts into which a batch is cut: as few as the arena and the budget allow (see `trainer/memory.rs`).
///
/// # Errors
/// As [`training_graph`].
pub fn choose_accumulation(config: &SimMimConfig, batch: usize, budget: Budget) -> Result<usize, TrainError> {
    let update = update_graphs(&config.parameters(), &AdamWConfig::default(), false, Share::default())?;
    fewest_parts(batch, budget, &update, |micro, parts| training_graph(config, micro, parts))
}

impl Session {
    /// A model with its starting values: a pure function of the seed.
    ///
    /// # Errors
    /// Impossible sizes.
    pub fn new(executor: Box<dyn Executor>, config: SimMimConfig, seed: u64) -> Result<Self, TrainError> {
        config.validate()?;
        let device = Device::new(executor, config.parameters(), seed);
        Ok(Self { device, config, training: None, evaluation: BTreeMap::new(), indices: StepIndices::default() })
    }

    /// The same model, computed in another precision. Call it before anything else.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        self.within(Budget { precision, ..Budget::default() })
    }

    /// The same model, trained within a budget. Call it before anything else.
    #[must_use]
    pub fn within(mut self, budget: Budget) -> Self {
        self.device.budget = budget;
        self
    }

    /// The same model, trained by ranks that sum their gradients. Call it before anything else.
    #[must_use]
    pub fn among(mut self, ranks: &Ranks) -> Self {
        self.device.ranks = ranks.clone();
        self
    }

    /// The model.
    #[must_use]
    pub fn config(&self) -> &SimMimConfig {
        &self.config
    }

    /// The device with the parameters.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device with the parameters, to read and overwrite them.
    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Loads the encoder on whole images, over the same parameters.
    pub(crate) fn encoder_program(&mut self, layers: &[Layer], batch: usize) -> Result<EncoderProgram, TrainError> {
        let graph = EncoderProgram::graph(&self.config.encoder, layers, batch)?;
        let id = self.device.load(&graph)?;
        EncoderProgram::new(self.device.executor(), id, &self.config.encoder, layers, batch)
    }

    /// Compiles the training step of this rank: `micro * accumulation` images in as many runs as `accumulation` says.
    ///
    /// # Errors
    /// A step that does not fit into the budget, faults of the plan or the device.
    pub fn prepare_training(
        &mut self,
        micro: usize,
        accumulation: usize,
        adamw: AdamWConfig,
    ) -> Result<(), TrainError> {
        let graph = training_graph(&self.config, micro, accumulation * self.device.ranks.world())?;
        let (program, update) = self.device.load_step(&graph, false, adamw)?;
        let executor = self.device.executor();
        self.training = Some(Training {
            parts: Parts { micro, count: accumulation },
            program,
            images: executor.input(program, IMAGES)?,
            indices: StepSlots::find(executor, program)?,
            drop_path: DropPath::find(executor, program, &self.config.encoder.branches())?,
            update,
        });
        Ok(())
    }

    /// One optimiser step: [`Session::accumulate`], then [`Session::update`].
    ///
    /// # Errors
    /// As both.
    pub fn train_step(
        &mut self,
        images: &[f32],
        masks: &[Vec<bool>],
        seed: u64,
        step: u64,
        rate: impl Into<Rate>,
    ) -> Result<StepResult, TrainError> {
        let rows: Vec<usize> = (0..masks.len()).collect();
        self.accumulate(images, masks, &rows, seed, step)?;
        self.update(step, rate)
    }

    /// Adds the gradients of a batch to those so far, and its loss; of several ranks, those of all. Alone it does not wait for the device.
    ///
    /// `images [batch, channels, height, width]`, `masks [batch][patches]`, `rows [batch]`: which of the whole batch each image is. `step`
    /// counts from 0 and chooses, with the seed and the row, the branches that drop path drops.
    ///
    /// # Errors
    /// Masks of the wrong size, faults of the device. Call [`Session::prepare_training`] first.
    pub fn accumulate(
        &mut self,
        images: &[f32],
        masks: &[Vec<bool>],
        rows: &[usize],
        seed: u64,
        step: u64,
    ) -> Result<(), TrainError> {
        let Some(t) = &self.training else { return Err(unprepared()) };
        let size = images.len() / t.parts.images();
        for range in t.parts.ranges() {
            let executor = self.device.executor_mut();
            executor.write(t.images, &images[range.start * size..range.end * size])?;
            self.indices.fill(&self.config, Variant::Fast, &masks[range.clone()])?;
            self.indices.write(executor, &t.indices)?;
            let last = range.end == t.parts.images();
            t.drop_path.write(executor, seed, step, &rows[range])?;
            if last { self.device.run_last(t.program)? } else { executor.run(t.program)? }
        }
        Ok(())
    }

    /// Moves the parameters by the gradients so far, which begin anew; `step` counts from 0. Waits for the device.
    ///
    /// # Errors
    /// Faults of the device. Call [`Session::prepare_training`] first.
    pub fn update(&mut self, step: u64, rate: impl Into<Rate>) -> Result<StepResult, TrainError> {
        let Some(t) = &self.training else { return Err(unprepared()) };
        self.device.update(&t.update, step, rate.into(), 0.0)
    }

    /// Loss, predictions and targets of images under given masks; nothing is changed.
    ///
    /// # Errors
    /// Masks of the wrong size, faults of the device.
    pub fn reconstruct(&mut self, images: &[f32], masks: &[Vec<bool>]) -> Result<Reconstruction, TrainError> {
        let batch = masks.len();
        let e = match self.evaluation.get(&batch) {
            Some(&known) => known,
            None => {
                let new = Evaluation::load(&mut self.device, &self.config, batch)?;
                self.evaluation.insert(batch, new);
                new
            }
        };
        let executor = self.device.executor_mut();
        executor.write(e.images, images)?;
        self.indices.fill(&self.config, Variant::Fast, masks)?;
        self.indices.write(executor, &e.indices)?;
        executor.run(e.program)?;
        let len = batch * self.config.predicted_tokens() * self.config.encoder.geometry().cell_values();
        let (mut loss, mut prediction, mut target) = ([0.0], vec![0.0; len], vec![0.0; len]);
        executor.read(e.loss, &mut loss)?;
        executor.read(e.prediction, &mut prediction)?;
        executor.read(e.target, &mut target)?;
        Ok(Reconstruction { loss: loss[0], prediction, target, positions: self.indices.predicted_patch.clone() })
    }

    /// All parameters under the official names.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn weights(&mut self) -> Result<Weights, TrainError> {
        self.device.weights(false)
    }
}

/// A step before its programs.
pub(super) fn unprepared() -> TrainError {
    TrainError::Internal { what: "training was not prepared".into() }
}
