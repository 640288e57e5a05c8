//! The indices that turn masks into the inputs of a step.

use super::{Area, SimMimConfig, Variant};
use crate::error::ModelError;
use simmim_engine::{EngineError, Executor, ProgramId};

/// Indices of one batch. Buffers are reused from step to step.
#[derive(Debug, Clone, Default)]
pub struct StepIndices {
    /// Positions of the visible patches, `[batch, visible]`.
    pub visible: Vec<i32>,
    /// Row among the token rows of each token, `[batch, tokens]`.
    pub assemble: Vec<i32>,
    /// Flat row of each predicted token, `[batch, predicted]`.
    pub predicted: Vec<i32>,
    /// Position in the patch grid of each predicted token, `[batch, predicted]`.
    pub predicted_patch: Vec<i32>,
    /// Position among the tokens of each predicted token, `[batch, predicted]`.
    pub query: Vec<i32>,
    /// One where a patch counts in the plain description's loss, `[batch patches]`.
    pub weight: Vec<f32>,
}

impl StepIndices {
    /// Fills the indices from token masks `[batch][patches]`, true where a patch is hidden.
    ///
    /// # Errors
    /// [`ModelError::MaskCount`] where a mask hides another number of patches than the model was built for.
    pub fn fill(&mut self, config: &SimMimConfig, variant: Variant, masks: &[Vec<bool>]) -> Result<(), ModelError> {
        let patches = config.encoder.patches();
        let class = usize::from(config.class_token());
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
            if class == 1 {
                self.assemble.push((visible_rows + patches) as i32);
            }
            for (patch, &masked) in mask.iter().enumerate() {
                let row = match (masked, variant) {
                    (true, _) => visible_rows + patch,
                    (false, Variant::Fast) => self.visible.len(),
                    (false, Variant::Plain) => image * patches + patch,
                };
                self.assemble.push(row as i32);
                if !masked {
                    self.visible.push(patch as i32);
                }
                if masked || config.area == Area::Full {
                    self.predicted.push((image * (patches + class) + class + patch) as i32);
                    self.predicted_patch.push(patch as i32);
                    self.query.push((class + patch) as i32);
                }
                self.weight.push(f32::from(u8::from(masked)));
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

    /// Writes the inputs that a program of this variant has.
    ///
    /// # Errors
    /// As [`Executor::write_indices`].
    pub fn write(
        &self,
        executor: &mut dyn Executor,
        program: ProgramId,
        config: &SimMimConfig,
        variant: Variant,
    ) -> Result<(), EngineError> {
        use crate::vit::Position::{Relative, SharedRelative};
        executor.write_indices(program, "assemble_index", &self.assemble)?;
        match variant {
            Variant::Fast => {
                executor.write_indices(program, "visible_index", &self.visible)?;
                executor.write_indices(program, "predicted_index", &self.predicted)?;
                executor.write_indices(program, "predicted_patch", &self.predicted_patch)?;
                if matches!(config.encoder.position, SharedRelative | Relative) {
                    executor.write_indices(program, "query_index", &self.query)?;
                }
            }
            Variant::Plain if config.area == Area::Masked => executor.write(program, "weight", &self.weight)?,
            Variant::Plain => {}
        }
        Ok(())
    }
}
