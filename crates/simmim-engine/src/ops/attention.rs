//! Multi-head scaled dot-product attention with an optional additive bias.
//!
//! # Shapes
//! Packed: `qkv [batch, tokens, 3 dim]`. Split: `q [batch, queries, dim]`, `kv [batch, tokens, 2 dim]`; head `h` owns columns
//! `h head_dim .. (h + 1) head_dim` of each part. `bias [heads, positions, tokens]`; in a split attention `query [batch, queries]`
//! names the row of the bias that belongs to each query. -> `out [batch, queries, dim]`, `lse [batch, heads, queries]`.
//!
//! # Mathematics
//! `s = q k^T / sqrt(head_dim) + bias`, `p = softmax(s)`, `out = p v` (Vaswani et al., arXiv 1706.03762, section 3.2);
//! `lse = log sum exp s` over the keys.
//!
//! # Backward
//! `p` is computed again from `lse`. `grad_v = p^T grad_out`, `grad_p = grad_out v^T`,
//! `grad_s = p (grad_p - rowsum(grad_out out))`, `grad_q = grad_s k / sqrt(head_dim)`, `grad_k = grad_s^T q / sqrt(head_dim)`,
//! `grad_bias = sum over the batch of grad_s` (Dao et al., arXiv 2205.14135, appendix B).
//!
//! # Saved
//! The inputs, `out` and `lse`; never the score matrix.
//!
//! # Errors
//! Heads that do not divide the width, shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// How queries, keys and values arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One tensor `qkv [batch, tokens, 3 dim]`.
    Packed,
    /// `q [batch, queries, dim]` and `kv [batch, tokens, 2 dim]`.
    Split,
}

/// Attention. Inputs: `qkv`, or `q` and `kv`; then `bias` when set; then, split and with bias, `query` (indices).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// How the inputs arrive.
    pub packing: Packing,
    /// Whether there is a bias.
    pub bias: bool,
}

/// Gradient of [`Attention`]. Inputs: `grad_out`, `out`, `lse`, the inputs of the forward, and with bias its gradient so far.
/// Outputs: `grad_qkv`, or `grad_q` and `grad_kv`; then `grad_bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionGrad {
    /// The forward operation.
    pub forward: Attention,
}

/// Extents of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Samples (or windows).
    pub batch: usize,
    /// Queries of a sample.
    pub queries: usize,
    /// Keys of a sample.
    pub tokens: usize,
    /// Width of all heads together.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
}

impl AttentionSizes {
    /// Width of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    fn flops(&self, products: u64) -> u64 {
        [self.batch, self.queries, self.tokens, self.dim].iter().fold(2 * products, |n, &d| n.saturating_mul(d as u64))
    }
}

impl Attention {
    /// Number of inputs.
    #[must_use]
    pub fn arity(&self) -> usize {
        let split = usize::from(self.packing == Packing::Split);
        1 + split + usize::from(self.bias) * (1 + split)
    }

    /// Extents, from the shapes of the first inputs.
    #[must_use]
    pub fn sizes(&self, first: &[usize], second: &[usize]) -> AttentionSizes {
        let (batch, queries) = (first[0], first[1]);
        let (tokens, dim) = match self.packing {
            Packing::Packed => (queries, first[2] / 3),
            Packing::Split => (second[1], first[2]),
        };
        AttentionSizes { batch, queries, tokens, dim, heads: self.heads }
    }

    fn check(&self, check: &Check<'_>, inputs: &[TensorType], at: usize) -> Result<AttentionSizes, EngineError> {
        let first = check.rank(at, "qkv or q", 3)?;
        let parts = if self.packing == Packing::Packed { 3 } else { 1 };
        if !self.heads.checked_mul(parts).is_some_and(|heads| heads > 0 && first[2].is_multiple_of(heads)) {
            return check.fail(
                at,
                "qkv or q",
                format!("[batch, tokens, {parts} dim] with dim a multiple of {} heads", self.heads),
            );
        }
        let split = self.packing == Packing::Split;
        let second = if split { check.rank(at + 1, "kv", 3)? } else { first };
        let sizes = self.sizes(first, second);
        if split {
            check.shape(at + 1, "kv", &[sizes.batch, sizes.tokens, 2 * sizes.dim])?;
        }
        if self.bias {
            let bias_at = at + 1 + usize::from(split);
            let bias = check.rank(bias_at, "bias", 3)?;
            if bias[0] != self.heads || bias[2] != sizes.tokens || (!split && bias[1] != sizes.queries) {
                return check.fail(bias_at, "bias", format!("[{}, positions, {}]", self.heads, sizes.tokens));
            }
            if split && inputs[bias_at + 1].shape != [sizes.batch, sizes.queries] {
                return check.fail(bias_at + 1, "query", format!("[{}, {}]", sizes.batch, sizes.queries));
            }
        }
        Ok(sizes)
    }

    fn elements<'a>(&self, inputs: &'a [Tensor]) -> Elements<'a> {
        let split = self.packing == Packing::Split;
        let sizes = self.sizes(&inputs[0].shape, &inputs[usize::from(split)].shape);
        let bias = self.bias.then(|| &inputs[1 + usize::from(split)]);
        Elements { split, sizes, inputs, bias, query: (self.bias && split).then(|| inputs[3].i32()) }
    }
}

/// Element access of the reference.
struct Elements<'a> {
    split: bool,
    sizes: AttentionSizes,
    inputs: &'a [Tensor],
    bias: Option<&'a Tensor>,
    query: Option<&'a [i32]>,
}

impl Elements<'_> {
    /// Position of `part` (0 q, 1 k, 2 v), sample `b`, token `n`, column `c`: which input, and where in it.
    fn at(&self, part: usize, b: usize, n: usize, c: usize) -> (usize, usize) {
        let s = &self.sizes;
        match (self.split, part) {
            (false, _) => (0, (b * s.tokens + n) * 3 * s.dim + part * s.dim + c),
            (true, 0) => (0, (b * s.queries + n) * s.dim + c),
            (true, _) => (1, (b * s.tokens + n) * 2 * s.dim + (part - 1) * s.dim + c),
        }
    }

    fn get(&self, part: usize, b: usize, n: usize, c: usize) -> f64 {
        let (input, at) = self.at(part, b, n, c);
        self.inputs[input].f64()[at]
    }

    fn bias_at(&self, h: usize, b: usize, q: usize, k: usize) -> Option<usize> {
        let bias = self.bias?;
        let row = self.query.map_or(q, |query| query[b * self.sizes.queries + q] as usize);
        Some((h * bias.shape[1] + row) * bias.shape[2] + k)
    }

    fn scores(&self, b: usize, h: usize, q: usize) -> Vec<f64> {
        let d = self.sizes.head_dim();
        let scale = 1.0 / (d as f64).sqrt();
        (0..self.sizes.tokens)
            .map(|k| {
                let dot: f64 = (0..d).map(|c| self.get(0, b, q, h * d + c) * self.get(1, b, k, h * d + c)).sum();
                let bias = self.bias_at(h, b, q, k).map_or(0.0, |at| self.bias.map_or(0.0, |t| t.f64()[at]));
                dot * scale + bias
            })
            .collect()
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, self.arity())?;
        let s = self.check(&check, inputs, 0)?;
        Ok(vec![TensorType::f32([s.batch, s.queries, s.dim]), TensorType::f32([s.batch, s.heads, s.queries])])
    }

    fn precision(&self, port: Port) -> Precision {
        let split = usize::from(self.packing == Packing::Split);
        match port {
            Port::Input(i) if i <= split => Precision::Product,
            Port::Output(0) => Precision::Product,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn flops(&self, inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        let second = inputs.get(1).unwrap_or(&inputs[0]);
        self.sizes(&inputs[0].shape, &second.shape).flops(2)
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        if self.bias && self.packing == Packing::Split { vec![(3, inputs[2].shape[1])] } else { Vec::new() }
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let mut inputs = vec![grad, ctx.output(0), ctx.output(1)];
        inputs.extend((0..self.arity()).map(|i| ctx.input(i)));
        let split = usize::from(self.packing == Packing::Split);
        if self.bias {
            inputs.push(ctx.gradient_or_zero(1 + split)?);
        }
        let outputs = ctx.emit(AttentionGrad { forward: *self }, &inputs)?;
        ctx.add_gradient(0, outputs[0])?;
        if split == 1 {
            ctx.add_gradient(1, outputs[1])?;
        }
        if self.bias {
            ctx.set_gradient(1 + split, outputs[1 + split]);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let view = self.elements(inputs);
        let s = view.sizes;
        let d = s.head_dim();
        for (b, h, q) in
            (0..s.batch).flat_map(|b| (0..s.heads).flat_map(move |h| (0..s.queries).map(move |q| (b, h, q))))
        {
            let scores = view.scores(b, h, q);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
            for c in 0..d {
                outputs[0][(b * s.queries + q) * s.dim + h * d + c] =
                    scores.iter().enumerate().map(|(k, v)| (v - lse).exp() * view.get(2, b, k, h * d + c)).sum();
            }
            outputs[1][(b * s.heads + h) * s.queries + q] = lse;
        }
    }
}

impl Operation for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let arity = self.forward.arity();
        let check = Check::new(self.name(), inputs, 3 + arity + usize::from(self.forward.bias))?;
        let s = self.forward.check(&check, inputs, 3)?;
        check.shape(0, "grad_out", &[s.batch, s.queries, s.dim])?;
        check.shape(1, "out", &[s.batch, s.queries, s.dim])?;
        check.shape(2, "lse", &[s.batch, s.heads, s.queries])?;
        let split = usize::from(self.forward.packing == Packing::Split);
        let mut outputs: Vec<TensorType> = inputs[3..=3 + split].to_vec();
        if self.forward.bias {
            check.shape(3 + arity, "grad_bias", &inputs[4 + split].shape)?;
            outputs.push(inputs[3 + arity].clone());
        }
        Ok(outputs)
    }

    fn precision(&self, port: Port) -> Precision {
        let split = usize::from(self.forward.packing == Packing::Split);
        match port {
            Port::Input(0 | 1) => Precision::Product,
            Port::Input(i) if (3..=3 + split).contains(&i) => Precision::Product,
            Port::Output(i) if i <= split => Precision::Product,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        let split = usize::from(self.forward.packing == Packing::Split);
        if self.forward.bias { vec![(3 + self.forward.arity(), 1 + split)] } else { Vec::new() }
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        let bounds = self.forward.index_bounds(&inputs[3..]);
        bounds.into_iter().map(|(at, bound)| (at + 3, bound)).collect()
    }

    fn flops(&self, inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        let second = inputs.get(4).unwrap_or(&inputs[3]);
        self.forward.sizes(&inputs[3].shape, &second.shape).flops(5)
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let view = self.forward.elements(&inputs[3..]);
        let [grad, out, lse] = [0, 1, 2].map(|i| inputs[i].f64());
        let s = view.sizes;
        let d = s.head_dim();
        let scale = 1.0 / (d as f64).sqrt();
        let split = usize::from(view.split);
        for (b, h, q) in
            (0..s.batch).flat_map(|b| (0..s.heads).flat_map(move |h| (0..s.queries).map(move |q| (b, h, q))))
        {
            let row = (b * s.queries + q) * s.dim + h * d;
            let delta: f64 = (0..d).map(|c| grad[row + c] * out[row + c]).sum();
            let lse = lse[(b * s.heads + h) * s.queries + q];
            for (k, score) in view.scores(b, h, q).into_iter().enumerate() {
                let p = (score - lse).exp();
                let grad_p: f64 = (0..d).map(|c| grad[row + c] * view.get(2, b, k, h * d + c)).sum();
                let grad_s = p * (grad_p - delta);
                for c in 0..d {
                    let at = |part, n| view.at(part, b, n, h * d + c);
                    let (q_at, k_at, v_at) = (at(0, q), at(1, k), at(2, k));
                    outputs[q_at.0][q_at.1] += grad_s * scale * view.get(1, b, k, h * d + c);
                    outputs[k_at.0][k_at.1] += grad_s * scale * view.get(0, b, q, h * d + c);
                    outputs[v_at.0][v_at.1] += p * grad[row + c];
                }
                if let Some(at) = view.bias_at(h, b, q, k) {
                    outputs[1 + split][at] += grad_s;
                }
            }
        }
    }
}
