//! A classifier on a device: the compiled programs of fine-tuning and prediction over one set of parameters.

use super::StepResult;
use super::device::{Device, Training};
use crate::error::TrainError;
use simmim_data::{DataError, Source, Transform, load_centered};
use simmim_engine::autodiff::differentiate_states;
use simmim_engine::{Executor, Graph, ProgramId};
use simmim_models::classifier::{ClassifierBuild, classifier_graph};
use simmim_models::optimizer::{AdamWConfig, averaging_update_graph, update_graph};
use simmim_models::weights::Weights;
use simmim_models::{ClassifierConfig, ModelError, ParameterSpec};
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// Images of one run of the prediction program.
pub(super) const PREDICTED: usize = 64;

/// A classifier on an executor.
pub struct Classifier {
    device: Device,
    config: ClassifierConfig,
    training: Option<Training>,
    prediction: Option<ProgramId>,
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

    /// The model.
    #[must_use]
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.device.parameters
    }

    /// The executor, for its memory.
    #[must_use]
    pub fn executor(&self) -> &dyn Executor {
        &*self.device.executor
    }

    /// Compiles the training step of `micro * accumulation` images, and with a decay `ema` the moving average of the weights.
    ///
    /// # Errors
    /// Faults of the plan or the device.
    pub fn prepare_training(
        &mut self,
        micro: usize,
        accumulation: usize,
        adamw: AdamWConfig,
        ema: f64,
    ) -> Result<(), TrainError> {
        self.device.averages = ema > 0.0;
        self.ema = ema;
        let step = self.device.load(&finetuning_graph(&self.config, micro, accumulation)?)?;
        let parameters = &self.device.parameters;
        let update =
            if ema > 0.0 { averaging_update_graph(parameters, &adamw)? } else { update_graph(parameters, &adamw)? };
        let update = self.device.load(&update)?;
        self.prediction = Some(self.load_prediction()?);
        self.training = Some(Training { step, update, adamw, micro, accumulation });
        self.device.start_averages(true)
    }

    fn load_prediction(&mut self) -> Result<ProgramId, TrainError> {
        let average = self.device.averages;
        let build = ClassifierBuild { batch: PREDICTED, accumulation: None, train: false, average };
        self.device.load(&classifier_graph(&self.config, build)?.0)
    }

    /// One optimiser step on `images [batch, channels, height, width]` with soft labels `targets [batch, classes]`; `step` counts
    /// from 0.
    ///
    /// # Errors
    /// Faults of the device. Call [`Classifier::prepare_training`] first.
    pub fn train_step(
        &mut self,
        images: &[f32],
        targets: &[f32],
        seed: u64,
        step: u64,
        lr: f64,
    ) -> Result<StepResult, TrainError> {
        let Some(t) = self.training else {
            return Err(TrainError::Internal { what: "training was not prepared".into() });
        };
        let (size, classes) = (images.len() / (t.micro * t.accumulation), self.config.classes);
        let mut total = 0.0;
        for part in 0..t.accumulation {
            let range = part * t.micro..(part + 1) * t.micro;
            let executor = &mut self.device.executor;
            executor.write(t.step, "images", &images[range.start * size..range.end * size])?;
            executor.write(t.step, "targets", &targets[range.start * classes..range.end * classes])?;
            if !self.config.freeze {
                self.device.write_drop_path(t.step, &self.config.encoder, seed, step, range)?;
            }
            self.device.executor.run(t.step)?;
            total += f64::from(self.device.loss(t.step)?);
        }
        if self.ema > 0.0 {
            // The average forgets the start quickly while there is little to average.
            let decay = self.ema.min((1.0 + step as f64) / (10.0 + step as f64));
            self.device.executor.write(t.update, "decay", &[decay as f32])?;
        }
        Ok(StepResult { loss: total as f32, grad_norm: self.device.update(&t, step, lr)? })
    }

    /// Logits `[count, classes]` of up to [`PREDICTED`] images; of the averaged weights where they are kept.
    fn logits(&mut self, images: &[f32], count: usize) -> Result<Vec<f32>, TrainError> {
        let program = match self.prediction {
            Some(known) => known,
            None => self.load_prediction()?,
        };
        self.prediction = Some(program);
        self.device.executor.write(program, "images", images)?;
        self.device.executor.run(program)?;
        let mut logits = vec![0.0; PREDICTED * self.config.classes];
        self.device.executor.read(program, "logits", &mut logits)?;
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

    /// Overwrites parameters, and starts their averages there.
    ///
    /// # Errors
    /// Unknown names, other lengths, faults of the device.
    pub fn set_weights(&mut self, weights: Vec<(String, Vec<f32>)>) -> Result<(), TrainError> {
        self.device.set_weights(weights)?;
        self.device.start_averages(true)
    }

    pub(super) fn checkpoint_shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.device.checkpoint_shapes()
    }

    pub(super) fn read_tensor(&mut self, name: &str) -> Result<Vec<f32>, TrainError> {
        self.device.read_tensor(name)
    }

    pub(super) fn restore(&mut self, path: &Path, tensors: Weights) -> Result<(), TrainError> {
        self.device.restore(path, tensors)
    }
}
