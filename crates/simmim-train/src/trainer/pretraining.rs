//! The task of pre-training: masks are drawn, hidden patches painted back.

use super::device::Parts;
use super::held_out::HeldOut;
use super::{Data, Device, Event, LiveProbe, Measured, Session, StepResult, Task, write_encoder};
use crate::error::TrainError;
use crate::preprocessing::Preprocessing;
use crate::ranks::Ranks;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use crate::trivial::TrivialLosses;
use simmim_data::{Batch, MaskSpec, mask};
use simmim_engine::Executor;
use simmim_models::optimizer::Rate;
use simmim_models::weights;

/// Pre-training by a recipe.
pub struct Pretraining {
    recipe: Recipe,
    session: Session,
    masks: MaskSpec,
    held_out: HeldOut,
    pub(super) probe: Option<LiveProbe>,
}

impl Pretraining {
    pub(super) fn new(
        recipe: &Recipe,
        data: &Data,
        executor: Box<dyn Executor>,
        ranks: &Ranks,
    ) -> Result<Self, TrainError> {
        let mut task = Self::steps_only(recipe, executor, ranks)?;
        task.held_out = HeldOut::start(recipe, data, task.session.config(), &task.masks);
        Ok(task)
    }

    /// A task that can take the steps of one of several ranks, and measures nothing.
    pub(crate) fn steps_only(recipe: &Recipe, executor: Box<dyn Executor>, ranks: &Ranks) -> Result<Self, TrainError> {
        let config = recipe.simmim_config()?;
        let ranks = &ranks.clone().following(recipe);
        let parts = Parts::of(recipe, ranks.world())?;
        let masks = recipe.mask_spec(&config);
        let mut session = Session::new(executor, config, recipe.train.seed)?.within(recipe.budget()).among(ranks);
        session.prepare_training(parts.micro, parts.count, recipe.adamw())?;
        Ok(Self { recipe: recipe.clone(), session, masks, held_out: HeldOut::Absent, probe: None })
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// What the encoder needs to know of its images.
    #[must_use]
    pub fn preprocessing(&self) -> Preprocessing {
        Preprocessing::of(&self.recipe.transform())
    }

    fn draw_masks(&self, batch: &Batch) -> Vec<Vec<bool>> {
        let (down, right) = self.session.config().tokens_per_cell();
        let draw = |&sample: &u64| {
            let cells = self.masks.draw(self.recipe.train.seed, batch.epoch, sample);
            mask::expand(&cells, self.masks.rows, self.masks.cols, down, right)
        };
        batch.draws.iter().map(draw).collect()
    }
}

impl Task for Pretraining {
    fn device(&self) -> &Device {
        self.session.device()
    }

    fn device_mut(&mut self) -> &mut Device {
        self.session.device_mut()
    }

    fn accumulate(&mut self, batch: &mut Batch, step: u64) -> Result<(), TrainError> {
        let masks = self.draw_masks(batch);
        self.session.accumulate(&batch.images, &masks, &batch.rows, self.recipe.train.seed, step)
    }

    fn update(&mut self, step: u64, rate: Rate) -> Result<StepResult, TrainError> {
        self.session.update(step, rate)
    }

    fn measure(&mut self, ranks: &Ranks, tell: &mut dyn FnMut(Event)) -> Result<Option<Measured>, TrainError> {
        let loss = self.held_out.loss(&mut self.session, ranks, tell)?;
        Ok(loss.map(|loss| Measured { loss, top1: None }))
    }

    fn trivial(&mut self, wait: bool, tell: &mut dyn FnMut(Event)) -> Result<Option<TrivialLosses>, TrainError> {
        self.held_out.trivial(wait, tell)
    }

    fn probes(&self) -> bool {
        self.probe.is_some()
    }

    fn probe(&mut self) -> Result<Option<f32>, TrainError> {
        self.probe.as_mut().map(|probe| probe.accuracy(&mut self.session)).transpose()
    }

    fn measure_every(&self, _steps_per_epoch: u64) -> u64 {
        self.recipe.validate.every_steps
    }

    fn draw_every(&self) -> u64 {
        self.recipe.reconstruct.every_steps
    }

    fn draw(&mut self, run: &RunFolder, step: u64, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        self.held_out.draw(&mut self.session, || run.reconstruction(step), &self.recipe, tell)
    }

    fn unreadable(&self) -> &[(String, String)] {
        self.held_out.unreadable()
    }

    fn write_results(&mut self, run: &RunFolder) -> Result<(), TrainError> {
        let device = self.session.device_mut();
        let shapes = device.parameters().iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        weights::write_streamed::<TrainError>(&run.model(), shapes, |name| device.read_tensor(name))?;
        write_encoder(&run.encoder(), self.session.weights()?, &self.preprocessing())
    }
}
