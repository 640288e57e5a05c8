//! A classifier on a device: the compiled programs of fine-tuning and prediction over one set of parameters.

use super::StepResult;
use super::device::{Device, DropPath, Parts, Update};
use super::memory::Budget;
use super::session::unprepared;
use crate::error::TrainError;
use crate::ranks::Ranks;
use simmim_data::{DataError, Source, Transform, load_centered};
use simmim_engine::autodiff::differentiate_states;
use simmim_engine::{Executor, Graph, InputSlot, OutputSlot, ProgramId};
use simmim_models::classifier::{ClassifierBuild, classifier_graph};
use simmim_models::names::{IMAGES, LOGITS, TARGETS};
use simmim_models::optimizer::{AdamWConfig, Rate, sum_loss};
use simmim_models::weights::Weights;
use simmim_models::{ClassifierConfig, ModelError, Precision};
use std::sync::mpsc::sync_channel;

/// Images of one run of the prediction program.
pub(super) const PREDICTED: usize = 64;

/// The programs of training.
#[derive(Debug, Clone)]
struct Training {
    parts: Parts,
    program: ProgramId,
    images: InputSlot,
    targets: InputSlot,
    drop_path: DropPath,
    update: Update,
}

/// The program that gives logits.
#[derive(Debug, Clone, Copy)]
struct Prediction {
    program: ProgramId,
    images: InputSlot,
    logits: OutputSlot,
}

/// A classifier on an executor.
pub struct Classifier {
    device: Device,
    config: ClassifierConfig,
    training: Option<Training>,
    prediction: Option<Prediction>,
    /// Decay of the moving average of the weights; 0 for none.
    ema: f64,
}

/// The differentiated graph of one part of a step: what [`Classifier::prepare_training`] compiles.
///
/// # Errors
/// As [`classifier_graph`].
pub(super) fn finetuning_graph(config: &ClassifierConfig, micro: usize, parts: usize) -> Result<Graph, TrainError> {
    // A frozen encoder runs as it does in prediction.
    let build = ClassifierBuild { batch: micro, accumulation: Some(parts), train: !config.freeze, average: false };
    let (mut graph, loss) = classifier_graph(config, build)?;
    let parameters = config.parameters();
    let trains = |name: &str| parameters.iter().any(|p| p.used && p.name == name);
    differentiate_states(&mut graph, loss, trains).map_err(ModelError::from)?;
    sum_loss(&mut graph, loss)?;
    Ok(graph)
}

impl Classifier {
    /// A classifier with its starting values: a pure function of the seed.
    ///
    /// # Errors
    /// Impossible sizes.
    pub fn new(executor: Box<dyn Executor>, config: ClassifierConfig, seed: u64) -> Result<Self, TrainError> {
        config.validate()?;
        let device = Device::new(executor, config.parameters(), seed);
        Ok(Self { device, config, training: None, prediction: None, ema: 0.0 })
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
    pub fn config(&self) -> &ClassifierConfig {
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

    /// Compiles the training step of this rank, `micro * accumulation` images, and with a decay `ema` the moving average of the weights.
    ///
    /// # Errors
    /// A step that does not fit into the budget, faults of the plan or the device.
    pub fn prepare_training(
        &mut self,
        micro: usize,
        accumulation: usize,
        adamw: AdamWConfig,
        ema: f64,
    ) -> Result<(), TrainError> {
        self.ema = ema;
        let graph = finetuning_graph(&self.config, micro, accumulation * self.device.ranks.world())?;
        let (program, update) = self.device.load_step(&graph, ema > 0.0, adamw)?;
        self.prediction = Some(self.load_prediction()?);
        let executor = self.device.executor();
        // A frozen encoder drops nothing.
        let branches = if self.config.freeze { Vec::new() } else { self.config.encoder.branches() };
        self.training = Some(Training {
            parts: Parts { micro, count: accumulation },
            program,
            images: executor.input(program, IMAGES)?,
            targets: executor.input(program, TARGETS)?,
            drop_path: DropPath::find(executor, program, &branches)?,
            update,
        });
        self.device.start_averages(true)
    }

    fn load_prediction(&mut self) -> Result<Prediction, TrainError> {
        let average = self.device.averages();
        let build = ClassifierBuild { batch: PREDICTED, accumulation: None, train: false, average };
        let program = self.device.load(&classifier_graph(&self.config, build)?.0)?;
        let executor = self.device.executor();
        Ok(Prediction { program, images: executor.input(program, IMAGES)?, logits: executor.output(program, LOGITS)? })
    }

    /// Adds the gradients of a batch to those so far, and its loss: `images [batch, channels, height, width]` with soft labels
    /// `targets [batch, classes]`; `rows [batch]` says which of the whole batch each image is. `step` counts from 0 and chooses, with the
    /// seed and the row, the branches that drop path drops. Of several ranks, the gradients are those of all. Alone it does not wait for
    /// the device.
    ///
    /// # Errors
    /// Faults of the device. Call [`Classifier::prepare_training`] first.
    pub fn accumulate(
        &mut self,
        images: &[f32],
        targets: &[f32],
        rows: &[usize],
        seed: u64,
        step: u64,
    ) -> Result<(), TrainError> {
        let Some(t) = &self.training else { return Err(unprepared()) };
        let (size, classes) = (images.len() / t.parts.images(), self.config.classes);
        for range in t.parts.ranges() {
            let executor = self.device.executor_mut();
            executor.write(t.images, &images[range.start * size..range.end * size])?;
            executor.write(t.targets, &targets[range.start * classes..range.end * classes])?;
            let last = range.end == t.parts.images();
            t.drop_path.write(executor, seed, step, &rows[range])?;
            if last { self.device.run_last(t.program)? } else { executor.run(t.program)? }
        }
        Ok(())
    }

    /// Moves the parameters by the gradients so far, which begin anew, and their averages; `step` counts from 0. Waits for the device.
    ///
    /// # Errors
    /// Faults of the device. Call [`Classifier::prepare_training`] first.
    pub fn update(&mut self, step: u64, rate: impl Into<Rate>) -> Result<StepResult, TrainError> {
        let Some(t) = &self.training else { return Err(unprepared()) };
        // The average forgets the start quickly while there is little to average.
        let decay = self.ema.min((1.0 + step as f64) / (10.0 + step as f64));
        self.device.update(&t.update, step, rate.into(), decay)
    }

    /// Logits `[count, classes]` of up to [`PREDICTED`] images; of the averaged weights where they are kept.
    fn logits(&mut self, images: &[f32], count: usize) -> Result<Vec<f32>, TrainError> {
        let p = match self.prediction {
            Some(known) => known,
            None => self.load_prediction()?,
        };
        self.prediction = Some(p);
        let executor = self.device.executor_mut();
        executor.write(p.images, images)?;
        executor.run(p.program)?;
        let mut logits = vec![0.0; PREDICTED * self.config.classes];
        executor.read(p.logits, &mut logits)?;
        logits.truncate(count * self.config.classes);
        Ok(logits)
    }

    /// Gives the logits of chosen images of a source, centred, to `take`, in order; images are read by `threads` threads while the
    /// ones before run. Returns the images that could not be read, with their reasons.
    ///
    /// # Errors
    /// [`DataError::NothingReadable`] where none can be read, faults of the device.
    pub fn predict(
        &mut self,
        source: &dyn Source,
        indices: &[usize],
        transform: &Transform,
        threads: usize,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<Vec<(usize, DataError)>, TrainError> {
        let values = transform.values();
        let mut unreadable = Vec::new();
        std::thread::scope(|scope| -> Result<(), TrainError> {
            let (sender, receiver) = sync_channel(1);
            scope.spawn(move || {
                for part in indices.chunks(PREDICTED) {
                    let mut images = vec![0.0; PREDICTED * values];
                    let bad = load_centered(source, part, transform, threads, &mut images[..part.len() * values]);
                    // A receiver that is gone has failed, and says so itself.
                    if sender.send((part, images, bad)).is_err() {
                        return;
                    }
                }
            });
            while let Ok((part, images, bad)) = receiver.recv() {
                let bad = bad?;
                let logits = self.logits(&images, part.len())?;
                let rows = part.iter().zip(logits.chunks_exact(self.config.classes)).enumerate();
                rows.filter(|(row, _)| bad.iter().all(|(b, _)| b != row)).for_each(|(_, (&i, row))| take(i, row));
                unreadable.extend(bad.into_iter().map(|(row, error)| (part[row], error)));
            }
            Ok(())
        })?;
        if unreadable.len() == indices.len() {
            let examples = unreadable.first().map_or_else(|| "there are none".into(), |(_, e)| e.to_string());
            return Err(DataError::NothingReadable { found: indices.len(), examples }.into());
        }
        Ok(unreadable)
    }

    /// All parameters under the official names; the averaged ones where they are kept.
    ///
    /// # Errors
    /// Faults of the device.
    pub fn weights(&mut self) -> Result<Weights, TrainError> {
        self.device.weights(true)
    }
}
