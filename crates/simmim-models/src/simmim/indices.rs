//! The indices that turn masks into the inputs of a step.

use super::{Area, SimMimConfig, Variant};
use crate::error::ModelError;
use crate::names::{ASSEMBLE_INDEX, PATCH_WEIGHT, PREDICTED_INDEX, PREDICTED_PATCH, QUERY_INDEX, VISIBLE_INDEX};
use simmim_engine::{EngineError, Executor, InputSlot, ProgramId};

/// Indices of one batch. Buffers are reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct StepIndices {
    /// Positions of the visible patches, `[batch, visible]`.
    pub visible: Vec<i32>,
    /// Row among the token rows of each token, `[batch, tokens]`.
    pub assemble: Vec<i32>,
    /// Flat row of each predicted token, `[batch, predicted]`.
    pub predicted: Vec<i32>,
    /// Position in the output grid of each predicted token, `[batch, predicted]`.
    pub predicted_patch: Vec<i32>,
    /// Position among the tokens of each predicted token, `[batch, predicted]`.
    pub query: Vec<i32>,
    /// One where an output token counts in the plain description's loss, `[batch cells]`.
    pub weight: Vec<f32>,
}

impl StepIndices {
    /// Fills the indices from token masks `[batch][patches]`, true where a patch is hidden.
    ///
    /// # Errors
    /// [`ModelError::MaskCount`] where a mask hides another number of patches than the model was built for,
    /// [`ModelError::MaskCells`] where it cuts through what an output token stands for.
    pub fn fill(&mut self, config: &SimMimConfig, variant: Variant, masks: &[Vec<bool>]) -> Result<(), ModelError> {
        let geometry = config.encoder.geometry();
        let (patches, cells) = (geometry.patches(), geometry.cells());
        let prefix = config.prefix();
        let positions = config.encoder.absolute_positions();
        let templates = if positions { patches } else { 1 };
        let visible_rows = match variant {
            Variant::Fast => masks.len() * config.visible_tokens(),
            Variant::Plain => masks.len() * patches,
        };
        self.clear();
        for (image, mask) in masks.iter().enumerate() {
            let hidden = mask.iter().filter(|&&m| m).count();
            let expected = config.masked_tokens();
            if hidden != expected || mask.len() != patches {
                return Err(ModelError::MaskCount { image, expected, found: hidden });
            }
            let special = visible_rows + templates..visible_rows + templates + prefix;
            self.assemble.extend(special.map(|row| row as i32));
            for (patch, &masked) in mask.iter().enumerate() {
                let row = match (masked, variant) {
                    (true, _) => visible_rows + if positions { patch } else { 0 },
                    (false, Variant::Fast) => self.visible.len(),
                    (false, Variant::Plain) => image * patches + patch,
                };
                self.assemble.push(row as i32);
                if !masked {
                    self.visible.push(patch as i32);
                }
            }
            for cell in 0..cells {
                let masked = mask[geometry.first_patch(cell)];
                if masked || config.area == Area::Full {
                    self.predicted.push((image * (cells + prefix) + prefix + cell) as i32);
                    self.predicted_patch.push(cell as i32);
                    self.query.push((prefix + cell) as i32);
                }
                self.weight.push(f32::from(u8::from(masked)));
            }
            if self.predicted.len() != (image + 1) * config.predicted_tokens() {
                return Err(ModelError::MaskCells { image });
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        [&mut self.visible, &mut self.assemble, &mut self.predicted, &mut self.predicted_patch, &mut self.query]
            .into_iter()
            .for_each(Vec::clear);
        self.weight.clear();
    }

    /// Writes the inputs that a program has.
    ///
    /// # Errors
    /// As [`Executor::write_indices`].
    pub fn write(&self, executor: &mut dyn Executor, slots: &StepSlots) -> Result<(), EngineError> {
        executor.write_indices(slots.assemble, &self.assemble)?;
        for (slot, indices) in [
            (slots.visible, &self.visible),
            (slots.predicted, &self.predicted),
            (slots.predicted_patch, &self.predicted_patch),
            (slots.query, &self.query),
        ] {
            if let Some(slot) = slot {
                executor.write_indices(slot, indices)?;
            }
        }
        slots.weight.map_or(Ok(()), |slot| executor.write(slot, &self.weight))
    }
}

/// The inputs of a SimMIM program that [`StepIndices`] fills: which there are depends on how it is described.
#[derive(Debug, Clone, Copy)]
pub struct StepSlots {
    assemble: InputSlot<i32>,
    visible: Option<InputSlot<i32>>,
    predicted: Option<InputSlot<i32>>,
    predicted_patch: Option<InputSlot<i32>>,
    query: Option<InputSlot<i32>>,
    weight: Option<InputSlot>,
}

impl StepSlots {
    /// Finds them.
    ///
    /// # Errors
    /// [`EngineError::Unknown`] for a program that is none of [`super::simmim_graph`].
    pub fn find(executor: &dyn Executor, program: ProgramId) -> Result<Self, EngineError> {
        let inputs = executor.program(program)?.inputs();
        let there = |name: &str| inputs.iter().any(|i| i.name == name);
        let index = |name: &str| there(name).then(|| executor.index_input(program, name)).transpose();
        Ok(Self {
            assemble: executor.index_input(program, ASSEMBLE_INDEX)?,
            visible: index(VISIBLE_INDEX)?,
            predicted: index(PREDICTED_INDEX)?,
            predicted_patch: index(PREDICTED_PATCH)?,
            query: index(QUERY_INDEX)?,
            weight: there(PATCH_WEIGHT).then(|| executor.input(program, PATCH_WEIGHT)).transpose()?,
        })
    }
}
