//! Exponential moving average of a parameter.
//!
//! # Shapes
//! `average [...]`, `param [...]` of equal shape, `decay [1]` -> the updated `average`, in place.
//!
//! # Mathematics
//! `average = decay average + (1 - decay) param` (Polyak and Juditsky, 1992; as timm's `ModelEma`). The decay is an input,
//! because it warms up.
//!
//! # Backward
//! None: it stands only in the optimiser's graph.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The update. Inputs: `average`, `param`, `decay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovingAverage;

impl Operation for MovingAverage {
    fn name(&self) -> &'static str {
        "moving_average"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 3)?;
        check.shape(1, "param", &inputs[0].shape)?;
        check.len(2, "decay", 1)?;
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let decay = inputs[2].f64()[0];
        outputs[0].iter_mut().zip(inputs[1].f64()).for_each(|(a, p)| *a = decay * *a + (1.0 - decay) * p);
    }
}
