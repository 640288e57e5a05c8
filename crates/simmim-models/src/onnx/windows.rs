//! Operations of Swin transformers in those of ONNX.

use super::lower::{Known, Lowering, Result, no_form};
use super::proto::Attribute;
use crate::weights::Tensor;
use simmim_engine::ValueId;
use simmim_engine::ops::{
    CosineHeads, Function, LARGEST_LOGIT_SCALE, Linear, Pointwise, REGION_MASK, Reshape, SMALLEST_LENGTH,
    WindowAttention,
};

impl Lowering<'_> {
    /// A linear layer on what follows from parameters alone.
    pub(super) fn fixed_linear(&self, op: &Linear, i: &[ValueId]) -> Result<Known> {
        if op.gelu || op.rows.is_some() {
            return Err(no_form("this layer on parameters"));
        }
        let (x, weight) = (self.fixed(i[0])?, self.fixed(i[1])?);
        let inside = weight.shape[1..].iter().product::<usize>().max(1);
        let bias = if op.bias { self.fixed(i[2])?.data.clone() } else { vec![0.0; weight.shape[0]] };
        let unit = |row: &[f32], (weights, bias): (&[f32], &f32)| {
            row.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32 + bias
        };
        let layer = |row: &[f32]| -> Vec<f32> {
            weight.data.chunks_exact(inside).zip(&bias).map(|of_unit| unit(row, of_unit)).collect()
        };
        let data = x.data.chunks_exact(inside).flat_map(layer).collect();
        Ok(Known::Fixed(Tensor { shape: vec![x.data.len() / inside, weight.shape[0]], data }))
    }

    pub(super) fn pointwise(&self, op: &Pointwise, i: &[ValueId]) -> Result<Known> {
        let x = self.fixed(i[0])?;
        let function = |v: &f32| match op.function {
            Function::Relu => v.max(0.0),
            Function::Sigmoid { scale } => scale / (1.0 + (-v).exp()),
        };
        Ok(Known::Fixed(Tensor { shape: x.shape.clone(), data: x.data.iter().map(function).collect() }))
    }

    /// The leading axis is the batch.
    pub(super) fn reshaped(&mut self, op: &Reshape, i: &[ValueId]) -> Result<Known> {
        let x = self.name(i[0])?;
        let shape: Vec<i64> = std::iter::once(-1).chain(op.shape[1..].iter().map(|&d| d as i64)).collect();
        Ok(Known::Runtime(self.reshape(&x, &shape)))
    }

    /// Queries and keys of unit length, queries times the scale of their head.
    pub(super) fn cosine(&mut self, op: &CosineHeads, i: &[ValueId]) -> Result<Known> {
        let scales: Vec<f32> = self.fixed(i[1])?.data.iter().map(|s| s.min(LARGEST_LOGIT_SCALE).exp()).collect();
        if let Ok(row) = self.fixed(i[0]) {
            return Ok(Known::Fixed(cosine_of(row, &scales)));
        }
        let &[_, tokens, width] = self.shape(i[0]) else { return Err(no_form("heads")) };
        let (heads, dim) = (op.heads, width / 3);
        let x = self.name(i[0])?;
        let x = self.reshape(&x, &[-1, tokens as i64, 3, heads as i64, (dim / heads) as i64]);
        let smallest = self.scalar(SMALLEST_LENGTH);
        let mut parts = Vec::new();
        for at in 0..3 {
            let mut part = self.part_of(&x, at, 2);
            if at < 2 {
                let attributes = [("axes", Attribute::Ints(&[3])), ("keepdims", Attribute::Int(1))];
                let length = self.apply("ReduceL2", &[&part], &attributes);
                let length = self.apply("Max", &[&length, &smallest], &[]);
                part = self.apply("Div", &[&part, &length], &[]);
            }
            if at == 0 {
                let scale = self.parameter("scale", &Tensor { shape: vec![heads, 1], data: scales.clone() });
                part = self.apply("Mul", &[&part, &scale], &[]);
            }
            parts.push(self.reshape(&part, &[-1, tokens as i64, dim as i64]));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(Known::Runtime(self.apply("Concat", &parts, &[("axis", Attribute::Int(2))])))
    }

    /// Attention within windows: tokens are gathered window by window, and gathered back.
    pub(super) fn window_attention(&mut self, op: &WindowAttention, i: &[ValueId]) -> Result<Known> {
        let s = op.sizes(self.shape(i[0]), self.shape(i[1]));
        let (index, [region, bias, pad]) = (self.index(i[1])?.to_vec(), op.optional(0));
        let mut x = self.name(i[0])?;
        let mut rows = s.tokens;
        if let Some(at) = pad {
            let row = self.fixed(i[at])?.data.clone();
            let row = self.parameter("beyond", &Tensor { shape: vec![1, 1, row.len()], data: row });
            let spread = self.for_each_image(&row, &[1, 3 * s.dim]);
            x = self.apply("Concat", &[&x, &spread], &[("axis", Attribute::Int(1))]);
            rows += 1;
        }
        let x = self.gather(&x, rows, &index)?;
        let [windows, places, heads, head] = [s.windows, s.places, s.heads, s.head_dim()].map(|n| n as i64);
        let x = self.reshape(&x, &[-1, windows, places, 3, heads, head]);
        let x = self.apply("Transpose", &[&x], &[("perm", Attribute::Ints(&[3, 0, 1, 4, 2, 5]))]);
        let [q, k, v] = [0, 1, 2].map(|at| self.part_of(&x, at, 0));
        let turned = self.apply("Transpose", &[&k], &[("perm", Attribute::Ints(&[0, 1, 2, 4, 3]))]);
        let scale = self.scalar(op.scale);
        let q = self.apply("Mul", &[&q, &scale], &[]);
        let mut scores = self.apply("MatMul", &[&q, &turned], &[]);
        if let Some(at) = bias {
            let bias = self.fixed(i[at])?.clone();
            let bias = self.parameter("bias", &bias);
            scores = self.apply("Add", &[&scores, &bias], &[]);
        }
        if let Some(at) = region {
            let mask = mask(self.index(i[at])?, s.places);
            let mask = Tensor { shape: vec![s.windows, 1, s.places, s.places], data: mask };
            let mask = self.parameter("mask", &mask);
            scores = self.apply("Add", &[&scores, &mask], &[]);
        }
        let shares = self.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
        let mixed = self.apply("MatMul", &[&shares, &v], &[]);
        let turned = self.apply("Transpose", &[&mixed], &[("perm", Attribute::Ints(&[0, 1, 3, 2, 4]))]);
        let placed = self.reshape(&turned, &[-1, windows * places, s.dim as i64]);
        let mut back = vec![0; s.tokens];
        for (place, &token) in index.iter().enumerate() {
            if let Some(slot) = usize::try_from(token).ok().and_then(|token| back.get_mut(token)) {
                *slot = place as i32;
            }
        }
        self.gather(&placed, index.len(), &back).map(Known::Runtime)
    }
}

/// What is added to the scores of each window, `[windows, places, places]`.
fn mask(region: &[i32], places: usize) -> Vec<f32> {
    let of_query = |window: &[i32], q: i32| -> Vec<f32> {
        window.iter().map(|&k| if k == q { 0.0 } else { REGION_MASK }).collect()
    };
    region.chunks_exact(places).flat_map(|w| w.iter().flat_map(|&q| of_query(w, q)).collect::<Vec<_>>()).collect()
}

/// As [`CosineHeads`], of one row.
fn cosine_of(row: &Tensor, scales: &[f32]) -> Tensor {
    let heads = scales.len();
    let head = row.data.len() / 3 / heads.max(1);
    let mut data = row.data.clone();
    for (at, part) in data.chunks_exact_mut(head.max(1)).enumerate().take(2 * heads) {
        let length = part.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(f64::from(SMALLEST_LENGTH));
        let factor = if at < heads { f64::from(scales[at]) } else { 1.0 } / length;
        part.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
    Tensor { shape: row.shape.clone(), data }
}
