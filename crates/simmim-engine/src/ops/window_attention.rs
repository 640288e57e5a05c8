//! Multi-head attention within windows of a feature map, shifted or not, named by indices.
//!
//! # Shapes
//! `qkv [batch, tokens, 3 dim]`, `index [windows, places]` (`i32`): the token at each place of each window of an image, the same for
//! all images, or `tokens` where a window reaches beyond the map. Every token stands at exactly one place. `region [windows, places]`
//! (`i32`): places of a window attend to each other where their regions are equal. `bias [heads, places, places]`, `pad [3 dim]`: the
//! queries, keys and values of what lies beyond the map. -> `out [batch, tokens, dim]`, `lse [batch, heads, windows, places]`.
//!
//! # Mathematics
//! Within each window `s = scale q k^T + bias + mask`, `out = softmax(s) v`; `mask` is -100 between different regions and 0 elsewhere
//! (Liu et al., arXiv 2103.14030, section 3.2 and official code). A cyclic shift, the partition into windows and its reverse are
//! nothing but `index`: rows are read and written where they lie.
//!
//! # Backward
//! As [`super::Attention`]'s, window by window. What padding attends to is thrown away, so only its keys and values have a gradient.
//!
//! # Saved
//! The inputs, `out` and `lse`.
//!
//! # Errors
//! Heads that do not divide the width, shapes that do not fit.

use super::{Check, Operation, Port, Precision};
use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::TensorType;
use crate::reference::Tensor;

/// What is added to a score between places of different regions.
pub const REGION_MASK: f32 = -100.0;

/// Regions that a shift makes of a map, at most: three along each axis.
const REGIONS: usize = 9;

/// Attention within windows. Inputs: `qkv`, `index`, then those of `region`, `bias` and `pad` that there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowAttention {
    /// Number of heads.
    pub heads: usize,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Whether windows fall into regions.
    pub region: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether windows reach beyond the map.
    pub pad: bool,
}

/// Gradient of [`WindowAttention`]. Inputs: `grad_out`, `out`, `lse`, the inputs of the forward, then the gradients so far of `bias` and
/// `pad` where there are these. Outputs: `grad_qkv`, then those gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowAttentionGrad {
    /// The forward operation.
    pub forward: WindowAttention,
}

/// Extents of a windowed attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSizes {
    /// Images.
    pub batch: usize,
    /// Tokens of an image.
    pub tokens: usize,
    /// Width of all heads together.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// Windows of an image.
    pub windows: usize,
    /// Places of a window.
    pub places: usize,
}

impl WindowSizes {
    /// Width of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    fn flops(&self, products: u64) -> u64 {
        [self.batch, self.windows, self.places, self.places, self.dim]
            .iter()
            .fold(2 * products, |n, &d| n.saturating_mul(d as u64))
    }
}

impl WindowAttention {
    /// Which inputs hold `region`, `bias` and `pad`, counted from `first`, that of `qkv`.
    #[must_use]
    pub fn optional(&self, first: usize) -> [Option<usize>; 3] {
        let mut next = first + 2;
        [self.region, self.bias, self.pad].map(|there| {
            there.then(|| {
                next += 1;
                next - 1
            })
        })
    }

    /// Number of inputs.
    #[must_use]
    pub fn arity(&self) -> usize {
        2 + usize::from(self.region) + usize::from(self.bias) + usize::from(self.pad)
    }

    /// Gradients of parameters that the backward adds to.
    #[must_use]
    pub fn added(&self) -> usize {
        usize::from(self.bias) + usize::from(self.pad)
    }

    fn bounds(&self, inputs: &[TensorType], at: usize) -> Vec<(usize, usize)> {
        let tokens = inputs[at].shape.get(1).map_or(0, |tokens| tokens + usize::from(self.pad));
        let region = self.optional(at)[0].map(|at| (at, REGIONS));
        [(at + 1, tokens)].into_iter().chain(region).collect()
    }

    /// Extents, from the shapes of `qkv` and `index`.
    #[must_use]
    pub fn sizes(&self, qkv: &[usize], index: &[usize]) -> WindowSizes {
        WindowSizes {
            batch: qkv[0],
            tokens: qkv[1],
            dim: qkv[2] / 3,
            heads: self.heads,
            windows: index[0],
            places: index[1],
        }
    }

    fn check(&self, check: &Check<'_>, inputs: &[TensorType], at: usize) -> Result<WindowSizes, EngineError> {
        let qkv = check.rank(at, "qkv", 3)?;
        if !self.heads.checked_mul(3).is_some_and(|heads| heads > 0 && qkv[2].is_multiple_of(heads)) {
            let expected = format!("[batch, tokens, 3 dim] with dim a multiple of {} heads", self.heads);
            return check.fail(at, "qkv", expected);
        }
        let index = &inputs[at + 1].shape;
        if index.len() != 2 || inputs[at + 1].is_empty() {
            return check.fail(at + 1, "index", "[windows, places]");
        }
        let sizes = self.sizes(qkv, index);
        let [region, bias, pad] = self.optional(at);
        if let Some(at) = region
            && inputs[at].shape != *index
        {
            return check.fail(at, "region", format!("{index:?}"));
        }
        if let Some(at) = bias {
            check.shape(at, "bias", &[self.heads, sizes.places, sizes.places])?;
        }
        if let Some(at) = pad {
            check.len(at, "pad", 3 * sizes.dim)?;
        }
        Ok(sizes)
    }

    fn elements<'a>(&self, inputs: &'a [Tensor]) -> Elements<'a> {
        let [region, bias, pad] = self.optional(0).map(|at| at.map(|at| &inputs[at]));
        let sizes = self.sizes(&inputs[0].shape, &inputs[1].shape);
        Elements {
            sizes,
            scale: f64::from(self.scale),
            qkv: inputs[0].f64(),
            index: inputs[1].i32(),
            region,
            bias,
            pad,
        }
    }
}

/// Element access of the reference.
struct Elements<'a> {
    sizes: WindowSizes,
    scale: f64,
    qkv: &'a [f64],
    index: &'a [i32],
    region: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    pad: Option<&'a Tensor>,
}

impl Elements<'_> {
    /// The token at a place, if it is one of the map.
    fn token(&self, w: usize, place: usize) -> Option<usize> {
        let token = self.index[w * self.sizes.places + place] as usize;
        (token < self.sizes.tokens).then_some(token)
    }

    /// Position in `qkv` of `part` (0 q, 1 k, 2 v), image `b`, token, column.
    fn at(&self, part: usize, b: usize, token: usize, c: usize) -> usize {
        (b * self.sizes.tokens + token) * 3 * self.sizes.dim + part * self.sizes.dim + c
    }

    fn get(&self, part: usize, b: usize, w: usize, place: usize, c: usize) -> f64 {
        match self.token(w, place) {
            Some(token) => self.qkv[self.at(part, b, token, c)],
            None => self.pad.map_or(0.0, |pad| pad.f64()[part * self.sizes.dim + c]),
        }
    }

    fn scores(&self, b: usize, h: usize, w: usize, q: usize) -> Vec<f64> {
        let (d, n) = (self.sizes.head_dim(), self.sizes.places);
        let region = |place: usize| self.region.map_or(0, |r| r.i32()[w * n + place]);
        (0..n)
            .map(|k| {
                let dot: f64 = (0..d).map(|c| self.get(0, b, w, q, h * d + c) * self.get(1, b, w, k, h * d + c)).sum();
                let bias = self.bias.map_or(0.0, |bias| bias.f64()[(h * n + q) * n + k]);
                let mask = if region(q) == region(k) { 0.0 } else { f64::from(REGION_MASK) };
                dot * self.scale + bias + mask
            })
            .collect()
    }

    /// Image, head, window and place of every query.
    fn queries(&self) -> impl Iterator<Item = [usize; 4]> + use<> {
        let WindowSizes { batch, heads, windows, places, .. } = self.sizes;
        (0..batch * heads * windows * places).map(move |i| {
            [i / (heads * windows * places), i / (windows * places) % heads, i / places % windows, i % places]
        })
    }
}

impl Operation for WindowAttention {
    fn name(&self) -> &'static str {
        "window_attention"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let check = Check::new(self.name(), inputs, self.arity())?;
        let s = self.check(&check, inputs, 0)?;
        Ok(vec![TensorType::f32([s.batch, s.tokens, s.dim]), TensorType::f32([s.batch, s.heads, s.windows, s.places])])
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0) | Port::Output(0) => Precision::Product,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn flops(&self, inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        self.sizes(&inputs[0].shape, &inputs[1].shape).flops(2)
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        self.bounds(inputs, 0)
    }

    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        let Some(grad) = ctx.grad_output(0) else { return Ok(()) };
        let mut inputs = vec![grad, ctx.output(0), ctx.output(1)];
        inputs.extend((0..self.arity()).map(|i| ctx.input(i)));
        let added: Vec<usize> = self.optional(0)[1..].iter().copied().flatten().collect();
        for &at in &added {
            inputs.push(ctx.gradient_or_zero(at)?);
        }
        let outputs = ctx.emit(WindowAttentionGrad { forward: *self }, &inputs)?;
        ctx.add_gradient(0, outputs[0])?;
        for (at, &gradient) in added.into_iter().zip(&outputs[1..]) {
            ctx.set_gradient(at, gradient);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let view = self.elements(inputs);
        let (s, d) = (view.sizes, view.sizes.head_dim());
        for [b, h, w, q] in view.queries() {
            let scores = view.scores(b, h, w, q);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
            outputs[1][((b * s.heads + h) * s.windows + w) * s.places + q] = lse;
            let Some(token) = view.token(w, q) else { continue };
            for c in h * d..(h + 1) * d {
                outputs[0][(b * s.tokens + token) * s.dim + c] =
                    scores.iter().enumerate().map(|(k, v)| (v - lse).exp() * view.get(2, b, w, k, c)).sum();
            }
        }
    }
}

impl Operation for WindowAttentionGrad {
    fn name(&self) -> &'static str {
        "window_attention_grad"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
        let f = &self.forward;
        let check = Check::new(self.name(), inputs, 3 + f.arity() + f.added())?;
        let s = f.check(&check, inputs, 3)?;
        check.shape(0, "grad_out", &[s.batch, s.tokens, s.dim])?;
        check.shape(1, "out", &[s.batch, s.tokens, s.dim])?;
        check.shape(2, "lse", &[s.batch, s.heads, s.windows, s.places])?;
        let mut outputs = vec![inputs[3].clone()];
        for (n, at) in f.optional(3)[1..].iter().copied().flatten().enumerate() {
            check.shape(3 + f.arity() + n, "gradient so far", &inputs[at].shape)?;
            outputs.push(inputs[at].clone());
        }
        Ok(outputs)
    }

    fn precision(&self, port: Port) -> Precision {
        match port {
            Port::Input(0 | 1 | 3) | Port::Output(0) => Precision::Product,
            Port::Input(_) | Port::Output(_) => Precision::Float,
        }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..self.forward.added()).map(|n| (3 + self.forward.arity() + n, 1 + n)).collect()
    }

    fn flops(&self, inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        self.forward.sizes(&inputs[3].shape, &inputs[4].shape).flops(5)
    }

    fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
        self.forward.bounds(inputs, 3)
    }

    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
        let f = &self.forward;
        let view = f.elements(&inputs[3..]);
        let [grad, out, lse] = [0, 1, 2].map(|i| inputs[i].f64());
        let (s, d) = (view.sizes, view.sizes.head_dim());
        let grad_pad = 1 + usize::from(f.bias);
        for [b, h, w, q] in view.queries() {
            let Some(token) = view.token(w, q) else { continue };
            let row = (b * s.tokens + token) * s.dim;
            let columns = h * d..(h + 1) * d;
            let delta: f64 = columns.clone().map(|c| grad[row + c] * out[row + c]).sum();
            let lse = lse[((b * s.heads + h) * s.windows + w) * s.places + q];
            for (k, score) in view.scores(b, h, w, q).into_iter().enumerate() {
                let p = (score - lse).exp();
                let grad_p: f64 = columns.clone().map(|c| grad[row + c] * view.get(2, b, w, k, c)).sum();
                let grad_s = p * (grad_p - delta);
                if f.bias {
                    outputs[1][(h * s.places + q) * s.places + k] += grad_s;
                }
                for c in columns.clone() {
                    outputs[0][view.at(0, b, token, c)] += grad_s * view.scale * view.get(1, b, w, k, c);
                    let of_key = grad_s * view.scale * view.get(0, b, w, q, c);
                    let of_value = p * grad[row + c];
                    if let Some(key) = view.token(w, k) {
                        outputs[0][view.at(1, b, key, c)] += of_key;
                        outputs[0][view.at(2, b, key, c)] += of_value;
                    } else if f.pad {
                        outputs[grad_pad][s.dim + c] += of_key;
                        outputs[grad_pad][2 * s.dim + c] += of_value;
                    }
                }
            }
        }
    }
}
