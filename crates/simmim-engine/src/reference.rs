//! Plain evaluation in double precision: the truth that kernels and whole models are tested against.

use crate::graph::{Bf16, DType, Graph, ValueId, ValueKind};
use crate::ops::Operation;
use std::collections::HashMap;

/// Contents of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Floats.
    F64(Vec<f64>),
    /// Indices.
    I32(Vec<i32>),
}

/// A tensor of the reference: shape and row-major contents.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Contents.
    pub data: Data,
}

impl Tensor {
    /// A float tensor.
    pub fn floats(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        Self { shape: shape.into(), data: Data::F64(data) }
    }

    /// An index tensor.
    pub fn indices(shape: impl Into<Vec<usize>>, data: Vec<i32>) -> Self {
        Self { shape: shape.into(), data: Data::I32(data) }
    }

    /// The floats; empty for indices (operations check types when the graph is built).
    #[must_use]
    pub fn f64(&self) -> &[f64] {
        match &self.data {
            Data::F64(data) => data,
            Data::I32(_) => &[],
        }
    }

    /// The indices; empty for floats.
    #[must_use]
    pub fn i32(&self) -> &[i32] {
        match &self.data {
            Data::I32(data) => data,
            Data::F64(_) => &[],
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Extent of the last axis.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The value that belongs to element `i` of `total`, where this tensor holds one value for each equal group of them.
    #[must_use]
    pub(crate) fn group(&self, i: usize, total: usize) -> f64 {
        self.f64()[i / (total / self.len())]
    }
}

/// Evaluates a graph. `given` holds inputs and states by name; a missing one counts as zeros.
/// Returns every value of the graph after the run; states hold what in-place operations left in them.
#[must_use]
pub fn evaluate(graph: &Graph, given: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let mut values: Vec<Tensor> = graph
        .values()
        .iter()
        .map(|v| match &v.kind {
            ValueKind::Constant(bits) if v.ty.dtype == DType::F32 => {
                let floats = bits.iter().map(|b| f64::from(f32::from_bits(b.cast_unsigned())));
                Tensor::floats(v.ty.shape.clone(), floats.collect::<Vec<_>>())
            }
            ValueKind::Constant(data) => Tensor::indices(v.ty.shape.clone(), data.clone()),
            ValueKind::Input | ValueKind::State if given.contains_key(&v.name) => given[&v.name].clone(),
            _ => Tensor::floats(v.ty.shape.clone(), vec![0.0; v.ty.len()]),
        })
        .collect();
    let mut holder: HashMap<ValueId, ValueId> = HashMap::new();
    for node in graph.nodes() {
        let inputs: Vec<Tensor> = node.inputs.iter().map(|v| values[v.index()].clone()).collect();
        let mut outputs: Vec<Vec<f64>> = node.outputs.iter().map(|&v| vec![0.0; graph.ty(v).len()]).collect();
        for (from, to) in node.op.in_place() {
            outputs[to] = inputs[from].f64().to_vec();
            let origin = holder.get(&node.inputs[from]).copied().unwrap_or(node.inputs[from]);
            if graph.value(origin).kind == ValueKind::State {
                holder.insert(node.outputs[to], origin);
            }
        }
        node.op.reference(&inputs, &mut outputs);
        for (&id, mut data) in node.outputs.iter().zip(outputs) {
            if graph.ty(id).dtype == DType::Bf16 {
                data.iter_mut().for_each(|v| *v = f64::from(Bf16::nearest(*v as f32).value()));
            }
            if let Some(state) = holder.get(&id) {
                values[state.index()].data = Data::F64(data.clone());
            }
            values[id.index()] = Tensor::floats(graph.shape(id), data);
        }
    }
    values
}
