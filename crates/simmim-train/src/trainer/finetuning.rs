//! The task of fine-tuning: labelled images, mixed and softened labels, top-1 on the validation images.

use super::classifier::PREDICTED;
use super::classifier::{Classifier, finetuning_graph};
use super::device::{Parts, update_graphs};
use super::memory::settle_parts;
use super::{Device, Event, Measured, StepResult, Task};
use crate::classify::{ClassifierFile, Scores};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use simmim_data::{Batch, LabelledSource, Mix, Source, Transform, demo, demo_held_out, source};
use simmim_engine::Executor;
use simmim_models::optimizer::Rate;
use std::path::Path;
use std::sync::Arc;

/// Unreadable validation images that are named in warnings.
const NAMED: usize = 5;

/// Labelled images for training and validation, with the same classes.
#[derive(Debug, Clone)]
pub struct LabelledData {
    /// Images to train on.
    pub train: LabelledSource,
    /// Images to measure on.
    pub val: LabelledSource,
}

impl LabelledData {
    /// Opens the images that a recipe names (`data.path`, `data.val_path`); classes are matched by their names. Two empty paths are
    /// the built-in demo set.
    ///
    /// # Errors
    /// Missing places, images without a class, one class alone, classes that differ.
    pub fn open(recipe: &Recipe) -> Result<Self, TrainError> {
        let d = &recipe.data;
        if d.path.is_empty() && d.val_path.is_empty() {
            let name = Path::new("the demo set");
            let train = LabelledSource::new(Arc::new(demo()?), name)?;
            let val = LabelledSource::with_classes(Arc::new(demo_held_out()?), name, train.class_names())?;
            return Ok(Self { train, val });
        }
        for (key, path, flag) in [("data.path", &d.path, "--data"), ("data.val_path", &d.val_path, "--val")] {
            if path.is_empty() {
                return Err(TrainError::Recipe {
                    origin: key.into(),
                    what: "labelled images are missing".into(),
                    help: format!("pass a folder with one folder per class, or IDX files, with {flag}"),
                });
            }
        }
        let (path, val_path) = (Path::new(&d.path), Path::new(&d.val_path));
        let train = LabelledSource::new(source::open(path)?.into(), path)?;
        let val =
            LabelledSource::with_classes(source::open(val_path)?.into(), val_path, train.class_names())?.complete()?;
        Ok(Self { train, val })
    }
}

/// Settles what a fine-tuning recipe leaves to the data and the plan: mean and deviation, and the parts of a step on so
/// many ranks.
///
/// # Errors
/// Images that cannot be measured, impossible sizes, a batch that the ranks cannot share equally, a step that does not fit into `train.memory`.
pub fn settle_finetuning(recipe: &mut Recipe, data: &LabelledData, ranks: usize) -> Result<(), TrainError> {
    recipe.fix_statistics(&data.train)?;
    let config = recipe.classifier_config(data.train.class_names().len())?;
    let averages = recipe.finetuning()?.0.ema > 0.0;
    let updates = update_graphs(&config.parameters(), &recipe.adamw(), averages, recipe.share_of_moments(ranks))?;
    settle_parts(recipe, &updates, ranks, |micro, parts| finetuning_graph(&config, micro, parts))
}

/// Fine-tuning by a recipe.
pub struct FineTuning {
    recipe: Recipe,
    classifier: Classifier,
    mix: Mix,
    transform: Transform,
    train: LabelledSource,
    val: LabelledSource,
    measured: Vec<usize>,
    threads: usize,
    unreadable: Vec<(String, String)>,
}

impl FineTuning {
    /// A classifier of the data's classes. `recipe` must be settled ([`settle_finetuning`]).
    ///
    /// # Errors
    /// Impossible sizes, a recipe for pre-training.
    pub fn new(recipe: &Recipe, data: &LabelledData, executor: Box<dyn Executor>) -> Result<Self, TrainError> {
        Self::among(recipe, data, executor, &Ranks::default())
    }

    /// As [`FineTuning::new`], as one of several ranks.
    ///
    /// # Errors
    /// As [`FineTuning::new`], a batch that the ranks cannot share equally.
    pub fn among(
        recipe: &Recipe,
        data: &LabelledData,
        executor: Box<dyn Executor>,
        ranks: &Ranks,
    ) -> Result<Self, TrainError> {
        let ranks = &ranks.clone().following(recipe);
        let config = recipe.classifier_config(data.train.class_names().len())?;
        let ema = recipe.finetuning()?.0.ema;
        let parts = Parts::of(recipe, ranks.world())?;
        let mut classifier = Classifier::new(executor, config, recipe.train.seed)?.within(recipe.budget()).among(ranks);
        classifier.prepare_training(parts.micro, parts.count, recipe.adamw(), ema)?;
        Ok(Self {
            recipe: recipe.clone(),
            classifier,
            mix: recipe.mix(),
            transform: recipe.transform(),
            train: data.train.clone(),
            val: data.val.clone(),
            measured: data.val.spread(recipe.validate.images),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            unreadable: Vec::new(),
        })
    }

    /// The training images, for the loop.
    #[must_use]
    pub fn images(&self) -> Arc<dyn Source> {
        Arc::new(self.train.clone())
    }

    /// Scores on this rank's share of the validation images.
    fn scores(&mut self, ranks: &Ranks, tell: &mut dyn FnMut(Event)) -> Result<Scores, TrainError> {
        let mut scores = Scores::new(self.val.class_names().to_vec());
        let labels = self.val.labels();
        let runs = self.measured.chunks(PREDICTED).skip(ranks.rank()).step_by(ranks.world());
        let share: Vec<usize> = runs.flatten().copied().collect();
        if share.is_empty() {
            return Ok(scores);
        }
        let take = |i: usize, logits: &[f32]| scores.add(labels[i], logits);
        let bad = self.classifier.predict(&self.val, &share, &self.transform, self.threads, take)?;
        if self.unreadable.is_empty() {
            bad.iter().take(NAMED).for_each(|(_, e)| tell(Event::Warning(format!("validation image skipped: {e}"))));
        }
        self.unreadable = bad.into_iter().map(|(i, e)| (self.val.name(i), e.to_string())).collect();
        Ok(scores)
    }

    fn file(&mut self) -> Result<ClassifierFile, TrainError> {
        let weights = self.classifier.weights()?;
        Ok(ClassifierFile { recipe: self.recipe.clone(), classes: self.train.class_names().to_vec(), weights })
    }
}

impl Task for FineTuning {
    fn device(&self) -> &Device {
        self.classifier.device()
    }

    fn device_mut(&mut self) -> &mut Device {
        self.classifier.device_mut()
    }

    fn accumulate(&mut self, batch: &mut Batch, step: u64) -> Result<(), TrainError> {
        let (seed, size) = (self.recipe.train.seed, self.transform.size);
        let labels: Vec<usize> = batch.samples.iter().map(|&s| self.train.labels()[s as usize]).collect();
        let mixture = self.mix.draw(seed, batch.epoch, batch.index_in_epoch, size);
        mixture.apply(&mut batch.images, self.transform.values(), size);
        let targets = self.mix.targets(mixture, &labels, self.train.class_names().len());
        self.classifier.accumulate(&batch.images, &targets, &batch.rows, seed, step)
    }

    fn update(&mut self, step: u64, rate: Rate) -> Result<StepResult, TrainError> {
        self.classifier.update(step, rate)
    }

    fn measure(&mut self, ranks: &Ranks, tell: &mut dyn FnMut(Event)) -> Result<Option<Measured>, TrainError> {
        let scores = self.scores(ranks, tell);
        let mut totals = ranks.agree(scores)?.totals();
        ranks.sum(&mut totals)?;
        let [images, found, loss] = totals;
        Ok(Some(Measured { loss: (loss / images.max(1.0)) as f32, top1: Some((found / images.max(1.0)) as f32) }))
    }

    fn measure_every(&self, steps_per_epoch: u64) -> u64 {
        let epochs = self.recipe.finetune.as_ref().map_or(1.0, |f| f.validate_epochs);
        match self.recipe.validate.every_steps {
            0 => ((epochs * steps_per_epoch as f64).round() as u64).max(1),
            every => every,
        }
    }

    fn keep_best(&mut self, run: &RunFolder) -> Result<(), TrainError> {
        self.file()?.write(&run.best())
    }

    fn write_results(&mut self, run: &RunFolder) -> Result<(), TrainError> {
        self.file()?.write(&run.last())
    }

    fn unreadable(&self) -> &[(String, String)] {
        &self.unreadable
    }

    fn classes(&self) -> &[String] {
        self.train.class_names()
    }
}
