//! One AdamW update of one parameter.
//!
//! # Shapes
//! `param [...]`, `grad [...]`, `m [...]`, `v [...]` of equal shape, `step [4]` = (learning rate, `1 - beta1^t`,
//! `sqrt(1 - beta2^t)`, floor), `clip [1]` -> the updated `param`, a zeroed `grad`, the updated `m` and `v`, all in place. With a
//! `copy [...]` in bfloat16, the updated `param` rounded to it, in place too.
//!
//! `m` and `v` may be those of a part, `[n]`: then the `n` elements of `param`, `grad` and `copy` from `start` on are updated, and the rest
//! stays. So ranks share out the moments.
//!
//! # Mathematics
//! `lr = lr_scale rate + (1 - lr_scale) floor`: the floor is the part of the rate that layer-wise decay leaves alone. `g = clip grad`,
//! `param *= 1 - lr weight_decay`, `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `param -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)` (Loshchilov and Hutter, arXiv 1711.05101,
//! algorithm 2; `lr` multiplies the decay as in PyTorch). A `clip` that is not finite leaves `param`, `m` and `v` as they are.
//!
//! The gradient is zeroed in the same pass, so that the next step's backward can add to it.

use super::{Check, Operation, Port, Precision};
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// The update. Inputs: `param`, `grad`, `m`, `v`, `step`, `clip`, and the `copy` where there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of this parameter.
    pub weight_decay: f32,
    /// Factor of the learning rate for this parameter.
    pub lr_scale: f32,
    /// Whether the parameter has a copy in bfloat16, which is written too.
    pub copy: bool,
    /// First element of the parameter that the moments belong to; 0 where they belong to all.
    pub start: usize,
}

impl Operation for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 6 + usize::from(self.copy))?;
        check.shape(1, "grad", &inputs[0].shape)?;
        check.shape(3, "v", &inputs[2].shape)?;
        if self.start + inputs[2].len() > inputs[0].len() || inputs[2].len() == inputs[0].len() {
            check.shape(2, "m", &inputs[0].shape)?;
        }
        check.len(4, "step", 4)?;
        check.len(5, "clip", 1)?;
        let mut outputs = inputs[..4].to_vec();
        if self.copy {
            check.shape(6, "copy", &inputs[0].shape)?;
            outputs.push(inputs[6].clone());
        }
        Ok(outputs)
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(6) | Port::Output(4) => Precision::Rounded,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        let copy = self.copy.then_some((6, 4));
        [(0, 0), (1, 1), (2, 2), (3, 3)].into_iter().chain(copy).collect()
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let [lr, correction1, correction2, floor] = [0, 1, 2, 3].map(|i| inputs[4].f64()[i]);
        let scale = f64::from(self.lr_scale);
        let lr = lr * scale + floor * (1.0 - scale);
        let clip = inputs[5].f64()[0];
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        for of in 0..outputs[2].len() {
            let i = self.start + of;
            let g = outputs[1][i] * clip;
            outputs[1][i] = 0.0;
            if !clip.is_finite() {
                continue;
            }
            let m = beta1 * outputs[2][of] + (1.0 - beta1) * g;
            let v = beta2 * outputs[3][of] + (1.0 - beta2) * g * g;
            let update = lr / correction1 * m / (v.sqrt() / correction2 + f64::from(self.eps));
            outputs[0][i] = outputs[0][i] * (1.0 - lr * f64::from(self.weight_decay)) - update;
            outputs[2][of] = m;
            outputs[3][of] = v;
            if self.copy {
                outputs[4][i] = outputs[0][i];
            }
        }
    }
}
