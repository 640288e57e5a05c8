//! Token rows before the first block: embedded patches with their positions, and one template row per position.
//!
//! Before the first attention a masked token depends only on its position, so a single template row per position serves the
//! whole batch; the rows of a batch are put together afterwards by [`super::GatherRows`].
//!
//! # Shapes
//! `patches [batch, visible, dim]`, `index [batch, visible]` (`i32`, positions in the patch grid), `mask_token [1, 1, dim]`,
//! `cls_token [1, 1, dim]`, `reg_token [1, registers, dim]`, `pos_embed [1, offset + tokens, dim]` ->
//! `rows [batch visible + templates + 1 + registers, dim]`: first the patches, then with a mask token the templates (one for each
//! position; a single one without positions), then the class token, then the registers (Darcet et al., arXiv 2309.16588), which have
//! no positions.
//!
//! # Mathematics
//! `rows[i] = patches[i] + pos[offset + index[i]]`, `template[t] = mask_token + pos[offset + t]`, `class = cls_token + pos[0]`,
//! `register[r] = reg_token[r]`.
//!
//! # Backward
//! `grad_patches` is the first part of `grad_rows`; the parameters' gradients are sums of rows, in the order of the rows.
//!
//! # Saved
//! `index`.
//!
//! # Errors
//! Shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::{TensorType, ValueId};
use crate::reference::Tensor;

/// Builds the rows. Inputs: `patches`, `index`, then those of `mask_token`, `cls_token`, `reg_token`, `pos_embed` that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedRows {
    /// Positions in the patch grid.
    pub tokens: usize,
    /// Whether there is a mask token, and so template rows.
    pub mask_token: bool,
    /// Whether there is a class token.
    pub cls_token: bool,
    /// Number of registers.
    pub registers: usize,
    /// Whether there are absolute positions.
    pub pos_embed: bool,
    /// Row of `pos_embed` that belongs to the first patch (1 where row 0 is the class token's).
    pub offset: usize,
}

/// Gradient of [`EmbedRows`]. Inputs: `grad_rows`, `index`, then the gradients so far of the parameters that there are.
/// Outputs: `grad_patches`, then the parameters' gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedRowsGrad {
    /// The forward operation.
    pub forward: EmbedRows,
}

/// What a row of the result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// A patch.
    Patch,
    /// The template of a position.
    Template(usize),
    /// The class token.
    Class,
    /// A register.
    Register(usize),
}

impl EmbedRows {
    /// Which inputs hold the mask token, class token, registers and positions, counted from `first`.
    #[must_use]
    pub fn parameters(&self, first: usize) -> [Option<usize>; 4] {
        let mut next = first;
        [self.mask_token, self.cls_token, self.registers > 0, self.pos_embed].map(|there| {
            there.then(|| {
                next += 1;
                next - 1
            })
        })
    }

    /// How many parameters there are.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.parameters(0).into_iter().flatten().count()
    }

    /// Rows of class token and registers, which follow the templates.
    #[must_use]
    pub fn special(&self) -> usize {
        usize::from(self.cls_token).saturating_add(self.registers)
    }

    /// What a row is, where `visible` patches come first.
    #[must_use]
    pub fn row(&self, row: usize, visible: usize) -> Row {
        match row.checked_sub(visible) {
            None => Row::Patch,
            Some(t) if t < self.templates() => Row::Template(t),
            Some(t) => match (t - self.templates()).checked_sub(usize::from(self.cls_token)) {
                None => Row::Class,
                Some(r) => Row::Register(r),
            },
        }
    }

    /// Template rows that follow the patches.
    #[must_use]
    pub fn templates(&self) -> usize {
        match (self.mask_token, self.pos_embed) {
            (false, _) => 0,
            (true, true) => self.tokens,
            (true, false) => 1,
        }
    }

    /// Rows of `pos_embed`.
    fn positions(&self) -> usize {
        self.offset.saturating_add(self.tokens)
    }

    fn check_parameters(&self, check: &Check<'_>, first: usize, dim: usize) -> Result<(), EngineError> {
        let [mask, cls, reg, pos] = self.parameters(first);
        if self.positions() > isize::MAX as usize {
            return check.fail(
                1,
                "index",
                format!("positions that can be counted, not {} + {}", self.offset, self.tokens),
            );
        }
        if let Some(at) = mask {
            check.len(at, "mask_token", dim)?;
        }
        if let Some(at) = cls {
            check.len(at, "cls_token", dim)?;
        }
        if let Some(at) = reg {
            check.len(at, "reg_token", self.registers.saturating_mul(dim))?;
        }
        if let Some(at) = pos {
            check.len(at, "pos_embed", self.positions().saturating_mul(dim))?;
        }
        Ok(())
    }
}

impl Operation for EmbedRows {
    fn name(&self) -> &'static str {
        "embed_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, 2 + self.parameter_count())?;
        let patches = check.rank(0, "patches", 3)?;
        if inputs[1].shape != patches[..2] {
            return check.fail(1, "index", format!("{:?}", &patches[..2]));
        }
        self.check_parameters(&check, 2, patches[2])?;
        let rows = (patches[0] * patches[1]).saturating_add(self.templates()).saturating_add(self.special());
        Ok(vec![TensorType::f32([rows, patches[2]])])
    }

    fn index_bounds(&self, _inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, self.tokens)]
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let mut inputs: Vec<ValueId> = vec![grad, ctx.input(1)];
        for at in self.parameters(2).into_iter().flatten() {
            inputs.push(ctx.gradient_or_zero(at)?);
        }
        let outputs = ctx.emit(EmbedRowsGrad { forward: *self }, &inputs)?;
        ctx.add_gradient(0, outputs[0])?;
        for at in self.parameters(2).into_iter().flatten() {
            ctx.set_gradient(at, outputs[at - 1]);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let dim = inputs[0].columns();
        let [mask, cls, reg, pos] = self.parameters(2);
        let token = |at: Option<usize>, i: usize| at.map_or(0.0, |at| inputs[at].f64()[i]);
        let position = |row: usize, c: usize| pos.map_or(0.0, |at| inputs[at].f64()[row * dim + c]);
        let visible = inputs[1].len();
        for (o, y) in outputs[0].iter_mut().enumerate() {
            let (row, c) = (o / dim, o % dim);
            *y = match self.row(row, visible) {
                Row::Patch => inputs[0].f64()[o] + position(self.offset + inputs[1].i32()[row] as usize, c),
                Row::Template(t) => token(mask, c) + position(self.offset + t, c),
                Row::Class => token(cls, c) + position(0, c),
                Row::Register(r) => token(reg, r * dim + c),
            };
        }
    }
}

impl Operation for EmbedRowsGrad {
    fn name(&self) -> &'static str {
        "embed_rows_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let f = &self.forward;
        let check = Check::new(self.name(), inputs, 2 + f.parameter_count())?;
        let grad = check.rank(0, "grad_rows", 2)?;
        let rows = inputs[1].len().saturating_add(f.templates()).saturating_add(f.special());
        f.check_parameters(&check, 2, grad[1])?;
        check.len(0, "grad_rows", rows.saturating_mul(grad[1]))?;
        let mut patches = inputs[1].shape.clone();
        patches.push(grad[1]);
        Ok(std::iter::once(TensorType::f32(patches)).chain(inputs[2..].iter().cloned()).collect())
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Output(0) => Precision::Either,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn index_bounds(&self, _inputs: &[TensorType]) -> Vec<(usize, usize)> {
        vec![(1, self.forward.tokens)]
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..self.forward.parameter_count()).map(|i| (2 + i, 1 + i)).collect()
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let f = &self.forward;
        let dim = inputs[0].columns();
        let [mask, cls, reg, pos] = f.parameters(1);
        let visible = inputs[1].len();
        for (o, &g) in inputs[0].f64().iter().enumerate() {
            let (row, c) = (o / dim, o % dim);
            let position = match f.row(row, visible) {
                Row::Patch => {
                    outputs[0][o] = g;
                    f.offset + inputs[1].i32()[row] as usize
                }
                Row::Template(t) => {
                    mask.into_iter().for_each(|at| outputs[at][c] += g);
                    f.offset + t
                }
                Row::Class => {
                    cls.into_iter().for_each(|at| outputs[at][c] += g);
                    0
                }
                Row::Register(r) => {
                    reg.into_iter().for_each(|at| outputs[at][r * dim + c] += g);
                    continue;
                }
            };
            pos.into_iter().for_each(|at| outputs[at][position * dim + c] += g);
        }
    }
}
