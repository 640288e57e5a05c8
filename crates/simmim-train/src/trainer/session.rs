//! A model on a device: the compiled programs of training and evaluation over one set of parameters.

use crate::error::TrainError;
use crate::features::{EncoderProgram, Layer};
use simmim_engine::autodiff::differentiate;
use simmim_engine::{Executor, Graph, Program, ProgramId};
use simmim_models::optimizer::{AdamWConfig, FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, update_graph};
use simmim_models::simmim::{Build, StepIndices, Variant, simmim_graph};
use simmim_models::weights::{Tensor, Weights};
use simmim_models::{ParameterSpec, SimMimConfig};
use simmim_random::{Purpose, Stream};
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

/// The training programs.
struct Training {
    step: ProgramId,
    update: ProgramId,
    adamw: AdamWConfig,
    micro: usize,
    accumulation: usize,
}

/// A SimMIM model on an executor. See the module's documentation.
pub struct Session {
    executor: Box<dyn Executor>,
    config: SimMimConfig,
    parameters: Vec<ParameterSpec>,
    training: Option<Training>,
    evaluation: BTreeMap<usize, ProgramId>,
    /// Parameters that no program uses, kept for files.
    idle: BTreeMap<String, Vec<f32>>,
    indices: StepIndices,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("config", &self.config)
            .field("memory", &self.executor.memory())
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

/// Parts into which a batch is cut so that the arena of one part stays within `bytes`: the smallest number that divides the
/// batch; the finest cut where even that does not fit.
///
/// # Errors
/// As [`training_graph`].
pub fn choose_accumulation(config: &SimMimConfig, batch: usize, bytes: usize) -> Result<usize, TrainError> {
    for parts in (1..=batch).filter(|parts| batch.is_multiple_of(*parts)) {
        let program = Program::compile(&training_graph(config, batch / parts, parts)?)?;
        if program.arena_bytes() <= bytes {
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
        let parameters = config.parameters();
        let idle = parameters.iter().map(|p| (p.name.clone(), p.initial(seed))).collect();
        let (training, evaluation) = (None, BTreeMap::new());
        Ok(Self { executor, config, parameters, training, evaluation, idle, indices: StepIndices::default() })
    }

    /// The model.
    #[must_use]
    pub fn config(&self) -> &SimMimConfig {
        &self.config
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    /// The executor, for its memory and timings.
    #[must_use]
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The executor, to run what [`Session::encoder_program`] loaded.
    pub(crate) fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.executor
    }

    /// Loads the encoder on whole images, over the same parameters.
    pub(crate) fn encoder_program(&mut self, layers: &[Layer], batch: usize) -> Result<EncoderProgram, TrainError> {
        let graph = EncoderProgram::graph(&self.config.encoder, layers, batch)?;
        let id = self.load(&graph)?;
        Ok(EncoderProgram::new(id, &self.config.encoder, layers, batch))
    }

    /// Loads a program; parameters that come to the device with it move there.
    fn load(&mut self, graph: &Graph) -> Result<ProgramId, TrainError> {
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
        let step = self.load(&training_graph(&self.config, micro, accumulation)?)?;
        let update = self.load(&update_graph(&self.parameters, &adamw)?)?;
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
        let Some(t) = &self.training else {
            return Err(TrainError::Internal { what: "training was not prepared".into() });
        };
        let (program, update, micro, runs) = (t.step, t.update, t.micro, t.accumulation);
        let input = t.adamw.step_input(lr, step + 1);
        let size = images.len() / (micro * runs);
        let mut total = 0.0;
        for part in 0..runs {
            let range = part * micro..(part + 1) * micro;
            self.executor.write(program, "images", &images[range.start * size..range.end * size])?;
            self.indices.fill(&self.config, Variant::Fast, &masks[range.clone()])?;
            self.indices.write(&mut *self.executor, program, &self.config, Variant::Fast)?;
            self.write_drop_path(program, seed, step, range)?;
            self.executor.run(program)?;
            let mut loss = [0.0];
            self.executor.read(program, "loss", &mut loss)?;
            total += f64::from(loss[0]);
        }
        self.executor.write(update, "step", &input)?;
        self.executor.run(update)?;
        let mut norm = [0.0];
        self.executor.read(update, "norm", &mut norm)?;
        Ok(StepResult { loss: total as f32, grad_norm: norm[0] })
    }

    /// Keeps or drops each branch of each sample: a pure function of (seed, step, place in the batch, branch).
    fn write_drop_path(
        &mut self,
        program: ProgramId,
        seed: u64,
        step: u64,
        range: std::ops::Range<usize>,
    ) -> Result<(), TrainError> {
        let encoder = &self.config.encoder;
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
                let new = self.load(&simmim_graph(&self.config, build)?.0)?;
                self.evaluation.insert(batch, new);
                new
            }
        };
        self.executor.write(program, "images", images)?;
        self.indices.fill(&self.config, Variant::Fast, masks)?;
        self.indices.write(&mut *self.executor, program, &self.config, Variant::Fast)?;
        self.executor.run(program)?;
        let mut loss = [0.0];
        self.executor.read(program, "loss", &mut loss)?;
        let len = batch * self.config.predicted_tokens() * self.config.encoder.patch_values();
        let (mut prediction, mut target) = (vec![0.0; len], vec![0.0; len]);
        self.executor.read(program, "prediction", &mut prediction)?;
        self.executor.read(program, "target", &mut target)?;
        Ok(Reconstruction { loss: loss[0], prediction, target, positions: self.indices.predicted_patch.clone() })
    }

    /// All parameters under the official names.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn weights(&mut self) -> Result<Weights, TrainError> {
        let specs = self.parameters.clone();
        specs
            .into_iter()
            .map(|p| Ok((p.name.clone(), Tensor { data: self.read_tensor(&p.name)?, shape: p.shape })))
            .collect()
    }

    /// Overwrites parameters, such as those that [`simmim_models::weights::match_parameters`] found in a file.
    ///
    /// # Errors
    /// Unknown names, other lengths, faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        for (name, data) in weights {
            match self.idle.get_mut(&name) {
                Some(place) => *place = data,
                None => self.executor.write_state(&name, &data)?,
            }
        }
        Ok(())
    }

    /// Name and shape of everything a checkpoint holds: all parameters, and the optimiser's moments of those in use.
    #[must_use]
    pub fn checkpoint_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let moments = self.parameters.iter().filter(|p| p.used).flat_map(|p| {
            [FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX].map(|prefix| (format!("{prefix}{}", p.name), p.shape.clone()))
        });
        self.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).chain(moments).collect()
    }

    /// One tensor of [`Session::checkpoint_shapes`].
    ///
    /// # Errors
    /// [`TrainError::Engine`] for an unknown name, faults of the device.
    pub fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
        if let Some(data) = self.idle.get(name) {
            return Ok(data.clone());
        }
        let owner = [FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX].iter().find_map(|p| name.strip_prefix(p));
        let owner = owner.unwrap_or(name);
        let len = self.parameters.iter().find(|p| p.name == owner).map_or(0, ParameterSpec::len);
        let mut data = vec![0.0; len];
        self.executor.read_state(name, &mut data)?;
        Ok(data)
    }

    /// Brings back what a checkpoint holds. `path` names it in errors.
    ///
    /// # Errors
    /// [`simmim_models::ModelError::Mismatch`] with every missing, unexpected and misshapen tensor; nothing is changed then.
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
            return self.set_weights(found);
        }
        Err(simmim_models::ModelError::Mismatch { path: path.to_owned(), missing, unexpected, misshapen }.into())
    }
}
