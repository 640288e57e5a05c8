//! A model on a device: the compiled programs of training and evaluation over one set of parameters.

use super::device::{Device, Training};
use crate::error::TrainError;
use crate::features::{EncoderProgram, Layer};
use simmim_engine::autodiff::differentiate;
use simmim_engine::{Executor, Graph, Program, ProgramId};
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{Build, StepIndices, Variant, simmim_graph};
use simmim_models::weights::Weights;
use simmim_models::{ParameterSpec, SimMimConfig};
use std::collections::BTreeMap;
use std::path::Path;

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

/// A SimMIM model on an executor. See the module's documentation.
pub struct Session {
    device: Device,
    config: SimMimConfig,
    training: Option<Training>,
    evaluation: BTreeMap<usize, ProgramId>,
    indices: StepIndices,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("config", &self.config)
            .field("memory", &self.device.executor.memory())
            .finish_non_exhaustive()
    }
}

/// The differentiated graph of one micro-batch: what [`Session::prepare_training`] compiles.
///
/// # Errors
/// As [`simmim_graph`].
pub fn training_graph(config: &SimMimConfig, micro: usize, accumulation: usize) -> Result<Graph, TrainError> {
    let build = Build { batch: micro, variant: Variant::Fast, accumulation, train: true, outputs: false };
    let (mut graph, loss) = simmim_graph(config, build)?;
    differentiate(&mut graph, loss).map_err(simmim_models::ModelError::from)?;
    Ok(graph)
}

/// An arena of this size is always taken.
const ARENA_BYTES: usize = 256 << 20;

/// Parts into which a batch is cut so that the arena of one part stays within 256 MiB, or within two thirds of what parameters,
/// gradients and moments take where that is more: the smallest number that divides the batch; the finest cut where even that does not fit.
///
/// # Errors
/// As [`training_graph`].
pub fn choose_accumulation(config: &SimMimConfig, batch: usize) -> Result<usize, TrainError> {
    fewest_parts(batch, |micro, parts| training_graph(config, micro, parts))
}

/// As [`choose_accumulation`], for any graph.
pub(super) fn fewest_parts(
    batch: usize,
    graph: impl Fn(usize, usize) -> Result<Graph, TrainError>,
) -> Result<usize, TrainError> {
    for parts in (1..=batch).filter(|parts| batch.is_multiple_of(*parts)) {
        let program = Program::compile(&graph(batch / parts, parts)?)?;
        // The program holds parameters and gradients; moments double that.
        if program.arena_bytes() <= ARENA_BYTES.max(2 * program.state_bytes() * 2 / 3) {
            return Ok(parts);
        }
    }
    Ok(batch)
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

    /// The model.
    #[must_use]
    pub fn config(&self) -> &SimMimConfig {
        &self.config
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.device.parameters
    }

    /// The executor, for its memory and timings.
    #[must_use]
    pub fn executor(&self) -> &dyn Executor {
        &*self.device.executor
    }

    /// The executor, to run what [`Session::encoder_program`] loaded.
    pub(crate) fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.device.executor
    }

    /// Loads the encoder on whole images, over the same parameters.
    pub(crate) fn encoder_program(&mut self, layers: &[Layer], batch: usize) -> Result<EncoderProgram, TrainError> {
        let graph = EncoderProgram::graph(&self.config.encoder, layers, batch)?;
        let id = self.device.load(&graph)?;
        Ok(EncoderProgram::new(id, &self.config.encoder, layers, batch))
    }

    /// Compiles the training step: `micro * accumulation` images in as many runs as `accumulation` says.
    ///
    /// # Errors
    /// Faults of the plan or the device.
    pub fn prepare_training(
        &mut self,
        micro: usize,
        accumulation: usize,
        adamw: AdamWConfig,
    ) -> Result<(), TrainError> {
        let step = self.device.load(&training_graph(&self.config, micro, accumulation)?)?;
        let update = self.device.load(&update_graph(&self.device.parameters, &adamw)?)?;
        self.training = Some(Training { step, update, adamw, micro, accumulation });
        Ok(())
    }

    /// One optimiser step.
    ///
    /// `images [batch, channels, height, width]`, `masks [batch][patches]`; `step` counts from 0, and `samples` name the images
    /// for drop path.
    ///
    /// # Errors
    /// Masks of the wrong size, faults of the device. Call [`Session::prepare_training`] first.
    pub fn train_step(
        &mut self,
        images: &[f32],
        masks: &[Vec<bool>],
        seed: u64,
        step: u64,
        lr: f64,
    ) -> Result<StepResult, TrainError> {
        let Some(t) = self.training else {
            return Err(TrainError::Internal { what: "training was not prepared".into() });
        };
        let size = images.len() / (t.micro * t.accumulation);
        let mut total = 0.0;
        for part in 0..t.accumulation {
            let range = part * t.micro..(part + 1) * t.micro;
            let executor = &mut *self.device.executor;
            executor.write(t.step, "images", &images[range.start * size..range.end * size])?;
            self.indices.fill(&self.config, Variant::Fast, &masks[range.clone()])?;
            self.indices.write(executor, t.step, &self.config, Variant::Fast)?;
            self.device.write_drop_path(t.step, &self.config.encoder, seed, step, range)?;
            self.device.executor.run(t.step)?;
            total += f64::from(self.device.loss(t.step)?);
        }
        Ok(StepResult { loss: total as f32, grad_norm: self.device.update(&t, step, lr)? })
    }

    /// Loss, predictions and targets of images under given masks; nothing is changed.
    ///
    /// # Errors
    /// Masks of the wrong size, faults of the device.
    pub fn reconstruct(&mut self, images: &[f32], masks: &[Vec<bool>]) -> Result<Reconstruction, TrainError> {
        let batch = masks.len();
        let program = match self.evaluation.get(&batch) {
            Some(&known) => known,
            None => {
                let build = Build { batch, variant: Variant::Fast, accumulation: 1, train: false, outputs: true };
                let new = self.device.load(&simmim_graph(&self.config, build)?.0)?;
                self.evaluation.insert(batch, new);
                new
            }
        };
        let executor = &mut *self.device.executor;
        executor.write(program, "images", images)?;
        self.indices.fill(&self.config, Variant::Fast, masks)?;
        self.indices.write(executor, program, &self.config, Variant::Fast)?;
        executor.run(program)?;
        let mut loss = [0.0];
        executor.read(program, "loss", &mut loss)?;
        let len = batch * self.config.predicted_tokens() * self.config.encoder.patch_values();
        let (mut prediction, mut target) = (vec![0.0; len], vec![0.0; len]);
        executor.read(program, "prediction", &mut prediction)?;
        executor.read(program, "target", &mut target)?;
        Ok(Reconstruction { loss: loss[0], prediction, target, positions: self.indices.predicted_patch.clone() })
    }

    /// All parameters under the official names.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn weights(&mut self) -> Result<Weights, TrainError> {
        self.device.weights(false)
    }

    /// Overwrites parameters, such as those that [`simmim_models::weights::match_parameters`] found in a file.
    ///
    /// # Errors
    /// Unknown names, other lengths, faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        self.device.set_weights(weights)
    }

    /// Name and shape of everything a checkpoint holds: all parameters, and the optimiser's moments of those in use.
    #[must_use]
    pub fn checkpoint_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.device.checkpoint_shapes()
    }

    /// One tensor of [`Session::checkpoint_shapes`].
    ///
    /// # Errors
    /// [`TrainError::Engine`] for an unknown name, faults of the device.
    pub fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
        self.device.read_tensor(name)
    }

    /// Brings back what a checkpoint holds. `path` names it in errors.
    ///
    /// # Errors
    /// [`simmim_models::ModelError::Mismatch`] with every missing, unexpected and misshapen tensor; nothing is changed then.
    pub fn restore(&mut self, path: &Path, tensors: Weights) -> Result<(), TrainError> {
        self.device.restore(path, tensors)
    }
}
