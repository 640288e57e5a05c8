//! What a training is for: the loop asks a task, and knows nothing of masks or classes.

use super::{Device, Event, StepResult};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::run_folder::RunFolder;
use crate::trivial::TrivialLosses;
use simmim_data::Batch;
use simmim_models::optimizer::Rate;

/// What was measured on held-out images.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    /// Mean loss.
    pub loss: f32,
    /// Share of images whose class was found, where there are classes.
    pub top1: Option<f32>,
}

/// A task of the training loop.
pub trait Task {
    /// The device with the parameters.
    fn device(&self) -> &Device;

    /// The device with the parameters, to read and overwrite them.
    fn device_mut(&mut self) -> &mut Device;

    /// Adds the gradients of a batch, which may be changed, to those so far; `step` counts from 0. Of several ranks, the gradients are those
    /// of all then. Alone it does not wait for the device.
    ///
    /// # Errors
    /// Faults of the device.
    fn accumulate(&mut self, batch: &mut Batch, step: u64) -> Result<(), TrainError>;

    /// Moves the parameters by the gradients so far, which begin anew; `step` counts from 0. Waits for the device.
    ///
    /// # Errors
    /// Faults of the device.
    fn update(&mut self, step: u64, rate: Rate) -> Result<StepResult, TrainError>;

    /// Measures on the held-out images, each rank on its share; nothing is changed. None where no image could be read.
    ///
    /// # Errors
    /// Unreadable images, faults of the device; the same on all ranks.
    fn measure(&mut self, ranks: &Ranks, tell: &mut dyn FnMut(Event)) -> Result<Option<Measured>, TrainError>;

    /// Losses of trivial predictors on the held-out images, where they mean something; nothing yet where they are still being
    /// measured, unless `wait` says to.
    ///
    /// # Errors
    /// Faults of the data.
    fn trivial(&mut self, _wait: bool, _tell: &mut dyn FnMut(Event)) -> Result<Option<TrivialLosses>, TrainError> {
        Ok(None)
    }

    /// Whether [`Task::probe`] has something to measure.
    fn probes(&self) -> bool {
        false
    }

    /// Accuracy of a probe of the present weights.
    ///
    /// # Errors
    /// Faults of the device.
    fn probe(&mut self) -> Result<Option<f32>, TrainError> {
        Ok(None)
    }

    /// Steps between measurements for epochs of so many steps; 0: only at the end.
    fn measure_every(&self, steps_per_epoch: u64) -> u64;

    /// Steps between pictures; 0: only at the end.
    fn draw_every(&self) -> u64 {
        0
    }

    /// Draws what there is to see after a step.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    fn draw(&mut self, _run: &RunFolder, _step: u64, _tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        Ok(())
    }

    /// Keeps the weights of the best measurement so far.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    fn keep_best(&mut self, _run: &RunFolder) -> Result<(), TrainError> {
        Ok(())
    }

    /// Writes what a finished training leaves.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    fn write_results(&mut self, run: &RunFolder) -> Result<(), TrainError>;

    /// Names and reasons of the images to measure on that could not be read so far.
    fn unreadable(&self) -> &[(String, String)] {
        &[]
    }

    /// Names of the classes, kept in every checkpoint; none where there are no classes.
    fn classes(&self) -> &[String] {
        &[]
    }
}
