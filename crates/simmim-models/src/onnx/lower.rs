//! The engine's operations in those of ONNX.
//!
//! The graph is described for one image. Every value that depends on it has a leading axis of one, which becomes the batch; values
//! that follow from parameters alone are computed here and become part of the model.

use super::proto::{Attribute, GraphBuilder};
use crate::error::ModelError;
use crate::weights::Tensor;
use simmim_engine::graph::{DType, Node, ValueKind};
use simmim_engine::ops::{Attention, EmbedRow, EmbedRows, Linear, Op, Operation, Packing, PatchGather};
use simmim_engine::{Graph, ValueId};
use std::collections::BTreeMap;

/// What a value of the graph is in the ONNX model.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// Computed at run time, under this name.
    Runtime(String),
    /// Known now.
    Fixed(Tensor),
    /// Indices.
    Index(Vec<i32>),
}

pub(super) type Result<T> = std::result::Result<T, ModelError>;

/// Translates nodes one after the other.
pub(super) struct Lowering<'a> {
    graph: &'a Graph,
    pub(super) builder: GraphBuilder,
    values: BTreeMap<usize, Known>,
    /// Name of the input whose first axis is the batch.
    images: String,
    count: usize,
}

impl<'a> Lowering<'a> {
    /// `parameters` gives the value of every state; `images` is the ONNX name of the graph's input.
    pub(super) fn new(graph: &'a Graph, images: &str, parameters: &dyn Fn(&str) -> Option<Vec<f32>>) -> Result<Self> {
        let mut values = BTreeMap::new();
        for (at, value) in graph.values().iter().enumerate() {
            let known = match &value.kind {
                ValueKind::Input => Known::Runtime(images.to_owned()),
                ValueKind::State => {
                    let data = parameters(&value.name);
                    let data = data.filter(|d| d.len() == value.ty.len()).ok_or_else(|| lacking(&value.name))?;
                    Known::Fixed(Tensor { shape: value.ty.shape.clone(), data })
                }
                ValueKind::Constant(bits) if value.ty.dtype == DType::F32 => {
                    let data = bits.iter().map(|b| f32::from_bits(b.cast_unsigned())).collect();
                    Known::Fixed(Tensor { shape: value.ty.shape.clone(), data })
                }
                ValueKind::Constant(data) => Known::Index(data.clone()),
                ValueKind::Computed => continue,
            };
            values.insert(at, known);
        }
        Ok(Self { graph, builder: GraphBuilder::default(), values, images: images.to_owned(), count: 0 })
    }

    /// All nodes of the graph.
    pub(super) fn run(&mut self) -> Result<()> {
        for node in self.graph.nodes() {
            let value = self.node(node)?;
            self.values.insert(node.outputs[0].index(), value);
        }
        Ok(())
    }

    /// Name of a value that is computed at run time.
    pub(super) fn name(&self, id: ValueId) -> Result<String> {
        match &self.values[&id.index()] {
            Known::Runtime(name) => Ok(name.clone()),
            _ => Err(no_form("a value that follows from parameters alone")),
        }
    }

    pub(super) fn fixed(&self, id: ValueId) -> Result<&Tensor> {
        match &self.values[&id.index()] {
            Known::Fixed(tensor) => Ok(tensor),
            _ => Err(no_form("a parameter that is computed at run time")),
        }
    }

    pub(super) fn index(&self, id: ValueId) -> Result<&[i32]> {
        match &self.values[&id.index()] {
            Known::Index(index) => Ok(index),
            _ => Err(no_form("indices that are given at run time")),
        }
    }

    fn node(&mut self, node: &Node) -> Result<Known> {
        let i = &node.inputs;
        let shape = |at: usize| self.graph.shape(i[at]).to_vec();
        match &node.op {
            Op::PatchGather(op) => self.patches(op, i),
            Op::Linear(op) if self.fixed(i[0]).is_ok() => self.fixed_linear(op, i),
            Op::Linear(op) => self.linear(op, i),
            Op::Pointwise(op) => self.pointwise(op, i),
            Op::Zero(op) => {
                Ok(Known::Fixed(Tensor { shape: op.shape.clone(), data: vec![0.0; op.shape.iter().product()] }))
            }
            Op::Reshape(op) => self.reshaped(op, i),
            Op::CosineHeads(op) => self.cosine(op, i),
            Op::WindowAttention(op) => self.window_attention(op, i),
            Op::EmbedRows(op) => self.embed(op, i),
            Op::GatherRows(_) => {
                let (x, index) = (self.name(i[0])?, self.index(i[1])?.to_vec());
                let rows = shape(0).iter().rev().skip(1).product();
                self.gather(&x, rows, &index).map(Known::Runtime)
            }
            Op::LayerNorm(op) => {
                let (x, weight, bias) = (self.name(i[0])?, self.fixed(i[1])?.clone(), self.fixed(i[2])?.clone());
                let (weight, bias) = (self.parameter("weight", &weight), self.parameter("bias", &bias));
                let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(op.eps))];
                Ok(Known::Runtime(self.apply("LayerNormalization", &[&x, &weight, &bias], &attributes)))
            }
            Op::Attention(op) => self.attention(op, i),
            Op::Residual(op) if !op.keep => {
                let (x, mut branch) = (self.name(i[0])?, self.name(i[1])?);
                if op.gamma {
                    let gamma = self.fixed(i[2])?.clone();
                    let gamma = self.parameter("gamma", &gamma);
                    branch = self.apply("Mul", &[&branch, &gamma], &[]);
                }
                Ok(Known::Runtime(self.apply("Add", &[&x, &branch], &[])))
            }
            Op::MeanTokens(op) => {
                let tokens = shape(0)[1];
                let index: Vec<i32> = (op.skip..tokens).map(|t| t as i32).collect();
                let x = self.name(i[0])?;
                let x = self.gather(&x, tokens, &index)?;
                let attributes = [("axes", Attribute::Ints(&[1])), ("keepdims", Attribute::Int(0))];
                Ok(Known::Runtime(self.apply("ReduceMean", &[&x], &attributes)))
            }
            Op::QkvBias(_) => {
                let (q, v) = (&self.fixed(i[0])?.data, &self.fixed(i[1])?.data);
                let data = [&q[..], &vec![0.0; q.len()], v].concat();
                Ok(Known::Fixed(Tensor { shape: vec![data.len()], data }))
            }
            Op::RelativeBias(_) => {
                let (table, index) = (self.fixed(i[0])?, self.index(i[1])?);
                let heads = table.shape[1];
                let row = |h: usize| index.iter().map(move |&at| table.data[at as usize * heads + h]);
                let data = (0..heads).flat_map(row).collect();
                let places = self.graph.shape(i[1]);
                Ok(Known::Fixed(Tensor { shape: vec![heads, places[0], places[1]], data }))
            }
            other => Err(no_form(&format!("`{}`", other.name()))),
        }
    }

    /// Non-overlapping patches as rows `[batch, patches, channels height width]`.
    fn patches(&mut self, op: &PatchGather, i: &[ValueId]) -> Result<Known> {
        if op.normalise.is_some() {
            return Err(no_form("normalised patches"));
        }
        let &[_, channels, height, width] = self.graph.shape(i[0]) else { return Err(no_form("images")) };
        let (ph, pw) = op.patch;
        let (rows, cols) = (height / ph, width / pw);
        let images = self.images.clone();
        let cut = self.reshape(&images, &[-1, channels as i64, rows as i64, ph as i64, cols as i64, pw as i64]);
        let turned = self.apply("Transpose", &[&cut], &[("perm", Attribute::Ints(&[0, 2, 4, 1, 3, 5]))]);
        let all = self.reshape(&turned, &[-1, (rows * cols) as i64, (channels * ph * pw) as i64]);
        let index = self.index(i[1])?.to_vec();
        self.gather(&all, rows * cols, &index).map(Known::Runtime)
    }

    /// `x wᵀ + b`, and GELU by the error function.
    fn linear(&mut self, op: &Linear, i: &[ValueId]) -> Result<Known> {
        let (x, weight) = (self.name(i[0])?, self.fixed(i[1])?);
        let inside = weight.shape[1..].iter().product::<usize>();
        let (start, len) = op.rows.map_or((0, weight.shape[0]), |r| (r.start, r.len));
        let chosen = &weight.data[start * inside..(start + len) * inside];
        let data = (0..inside).flat_map(|c| (0..len).map(move |r| chosen[r * inside + c])).collect();
        let weight = self.parameter("weight", &Tensor { shape: vec![inside, len], data });
        let mut y = self.apply("MatMul", &[&x, &weight], &[]);
        if op.bias {
            let bias = self.fixed(i[2])?.data[start..start + len].to_vec();
            let bias = self.parameter("bias", &Tensor { shape: vec![len], data: bias });
            y = self.apply("Add", &[&y, &bias], &[]);
        }
        if op.gelu {
            let root = self.scalar(std::f32::consts::FRAC_1_SQRT_2);
            let (half, one) = (self.scalar(0.5), self.scalar(1.0));
            let inner = self.apply("Mul", &[&y, &root], &[]);
            let erf = self.apply("Erf", &[&inner], &[]);
            let gate = self.apply("Add", &[&erf, &one], &[]);
            let scaled = self.apply("Mul", &[&y, &half], &[]);
            y = self.apply("Mul", &[&scaled, &gate], &[]);
        }
        Ok(Known::Runtime(y))
    }

    /// Patches with their positions, then the rows that all images share.
    fn embed(&mut self, op: &EmbedRows, i: &[ValueId]) -> Result<Known> {
        if op.mask_token {
            return Err(no_form("mask tokens"));
        }
        let (mut x, index) = (self.name(i[0])?, self.index(i[1])?.to_vec());
        let dim = self.graph.shape(i[0])[2];
        let [_, cls, reg, pos] = op.parameters(2);
        let data = |at: Option<usize>| -> Result<Option<Vec<f32>>> {
            at.map(|at| Ok(self.fixed(i[at])?.data.clone())).transpose()
        };
        let (cls, reg, pos) = (data(cls)?, data(reg)?, data(pos)?);
        let row = |data: &[f32], at: usize| data[at * dim..(at + 1) * dim].to_vec();
        if let Some(pos) = &pos {
            let rows = index.iter().flat_map(|&at| row(pos, op.offset + at as usize)).collect();
            let rows = self.parameter("positions", &Tensor { shape: vec![1, index.len(), dim], data: rows });
            x = self.apply("Add", &[&x, &rows], &[]);
        }
        let mut shared = Vec::new();
        for r in 0..op.special() {
            match op.row(index.len() + r, index.len()) {
                EmbedRow::Class => {
                    let token = cls.iter().flatten().copied();
                    let position = pos.as_ref().map_or_else(|| vec![0.0; dim], |pos| row(pos, 0));
                    shared.extend(token.zip(position).map(|(t, p)| t + p));
                }
                EmbedRow::Register(r) => shared.extend(reg.iter().flat_map(|reg| row(reg, r))),
                EmbedRow::Patch | EmbedRow::Template(_) => return Err(no_form("mask tokens")),
            }
        }
        if !shared.is_empty() {
            let rows = op.special();
            let tokens = self.parameter("tokens", &Tensor { shape: vec![1, rows, dim], data: shared });
            let spread = self.for_each_image(&tokens, &[rows, dim]);
            x = self.apply("Concat", &[&x, &spread], &[("axis", Attribute::Int(1))]);
        }
        Ok(Known::Runtime(x))
    }

    /// Softmax of scaled products with an optional bias.
    fn attention(&mut self, op: &Attention, i: &[ValueId]) -> Result<Known> {
        let heads = op.heads;
        let (q, k, v, dim);
        match op.packing {
            Packing::Packed => {
                let &[_, tokens, width] = self.graph.shape(i[0]) else { return Err(no_form("attention")) };
                dim = width / 3;
                let x = self.name(i[0])?;
                let x = self.heads(&x, tokens, 3, heads, dim);
                [q, k, v] = [0, 1, 2].map(|part| self.part(&x, part));
            }
            Packing::Split => {
                let &[_, queries, width] = self.graph.shape(i[0]) else { return Err(no_form("attention")) };
                let tokens = self.graph.shape(i[1])[1];
                dim = width;
                let (x, y) = (self.name(i[0])?, self.name(i[1])?);
                let (x, y) = (self.heads(&x, queries, 1, heads, dim), self.heads(&y, tokens, 2, heads, dim));
                q = self.part(&x, 0);
                [k, v] = [0, 1].map(|part| self.part(&y, part));
            }
        }
        let turned = self.apply("Transpose", &[&k], &[("perm", Attribute::Ints(&[0, 1, 3, 2]))]);
        let scale = self.scalar(1.0 / ((dim / heads) as f32).sqrt());
        let q = self.apply("Mul", &[&q, &scale], &[]);
        let mut scores = self.apply("MatMul", &[&q, &turned], &[]);
        let after = if op.packing == Packing::Packed { 1 } else { 2 };
        if op.bias {
            let mut bias = self.fixed(i[after])?.clone();
            if let Some(&query) = i.get(after + 1) {
                bias = rows_of(&bias, self.index(query)?);
            }
            let bias = self.parameter("bias", &bias);
            scores = self.apply("Add", &[&scores, &bias], &[]);
        }
        let shares = self.apply("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
        let mixed = self.apply("MatMul", &[&shares, &v], &[]);
        let turned = self.apply("Transpose", &[&mixed], &[("perm", Attribute::Ints(&[0, 2, 1, 3]))]);
        let queries = self.graph.shape(i[0])[1];
        Ok(Known::Runtime(self.reshape(&turned, &[-1, queries as i64, dim as i64])))
    }

    /// `[batch, tokens, parts dim]` as `[parts, batch, heads, tokens, dim / heads]`.
    fn heads(&mut self, x: &str, tokens: usize, parts: usize, heads: usize, dim: usize) -> String {
        let shape = [-1, tokens as i64, parts as i64, heads as i64, (dim / heads) as i64];
        let cut = self.reshape(x, &shape);
        self.apply("Transpose", &[&cut], &[("perm", Attribute::Ints(&[2, 0, 3, 1, 4]))])
    }

    fn part(&mut self, x: &str, at: i64) -> String {
        self.part_of(x, at, 0)
    }

    /// One element of an axis, which is gone then.
    pub(super) fn part_of(&mut self, x: &str, at: i64, axis: i64) -> String {
        let index = self.fresh("index");
        self.builder.integers(&index, &[], &[at]);
        self.apply("Gather", &[x, &index], &[("axis", Attribute::Int(axis))])
    }

    /// A value `[1, ...rest]` for each image of the batch.
    pub(super) fn for_each_image(&mut self, x: &str, rest: &[usize]) -> String {
        let images = self.images.clone();
        let sizes = self.apply("Shape", &[&images], &[("start", Attribute::Int(0)), ("end", Attribute::Int(1))]);
        let rest: Vec<i64> = rest.iter().map(|&d| d as i64).collect();
        let rest = self.integers(&rest);
        let shape = self.apply("Concat", &[&sizes, &rest], &[("axis", Attribute::Int(0))]);
        self.apply("Expand", &[x, &shape], &[])
    }

    pub(super) fn shape(&self, id: ValueId) -> &'a [usize] {
        self.graph.shape(id)
    }

    /// Rows of the second axis; `x` itself where they are all of them in order.
    pub(super) fn gather(&mut self, x: &str, rows: usize, index: &[i32]) -> Result<String> {
        if index.len() == rows && index.iter().enumerate().all(|(at, &row)| row == at as i32) {
            return Ok(x.to_owned());
        }
        if index.iter().any(|&row| row < 0 || row as usize >= rows) {
            return Err(no_form("rows of several images"));
        }
        let index: Vec<i64> = index.iter().map(|&row| i64::from(row)).collect();
        let index = self.integers(&index);
        Ok(self.apply("Gather", &[x, &index], &[("axis", Attribute::Int(1))]))
    }

    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.integers(shape);
        self.apply("Reshape", &[x, &shape], &[])
    }

    fn integers(&mut self, values: &[i64]) -> String {
        let name = self.fresh("index");
        self.builder.integers(&name, &[values.len()], values);
        name
    }

    pub(super) fn scalar(&mut self, value: f32) -> String {
        let name = self.fresh("number");
        self.builder.floats(&name, &[], &[value]);
        name
    }

    pub(super) fn parameter(&mut self, role: &str, tensor: &Tensor) -> String {
        let name = self.fresh(role);
        self.builder.floats(&name, &tensor.shape, &tensor.data);
        name
    }

    pub(super) fn apply(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute<'_>)]) -> String {
        let output = self.fresh(&op.to_lowercase());
        self.builder.node(op, inputs, &output, attributes);
        output
    }

    fn fresh(&mut self, role: &str) -> String {
        self.count += 1;
        format!("{role}_{}", self.count)
    }
}

/// Rows of a bias `[heads, tokens, tokens]` for some queries.
fn rows_of(bias: &Tensor, queries: &[i32]) -> Tensor {
    let &[heads, rows, cols] = bias.shape.as_slice() else { return bias.clone() };
    let row = |h: usize, q: i32| bias.data[(h * rows + q as usize) * cols..][..cols].to_vec();
    let data = (0..heads).flat_map(|h| queries.iter().flat_map(move |&q| row(h, q))).collect();
    Tensor { shape: vec![heads, queries.len(), cols], data }
}

fn lacking(name: &str) -> ModelError {
    ModelError::geometry(format!("the weights lack {name}"), "give the weights of the whole model")
}

pub(super) fn no_form(what: &str) -> ModelError {
    ModelError::geometry(format!("{what}: there is no form of it in ONNX here"), "export to another format")
}
