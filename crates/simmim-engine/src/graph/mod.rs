//! Graphs of fused operations over values of static shape.
//!
//! A graph is in single-assignment form: a [`Node`] reads values and defines new ones; the order of the nodes is the order in
//! which they run. Values that outlive a program (parameters, gradients, moments) are *states*: buffers shared by name between
//! all programs loaded into one executor.

mod bf16;
mod display;
mod rewrite;
mod types;

pub use bf16::Bf16;
pub(crate) use rewrite::Rewrite;
pub use types::{DType, Element, Number, TensorType, columns, elements};

use crate::error::EngineError;
use crate::ops::{Op, Operation};
use std::collections::HashSet;
use std::ops::Not;

/// Names a value of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) u32);

impl ValueId {
    /// Position among the graph's values.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueKind {
    /// Written by the caller before each run.
    Input,
    /// A buffer that lives as long as the executor and is shared by name between programs.
    State,
    /// Fixed elements, known when the graph is built: indices, or the bits of floats, as the value's type says.
    Constant(Vec<i32>),
    /// Defined by a node.
    Computed,
}

/// A value of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// For messages and printing; unique for inputs and states.
    pub name: String,
    /// Shape and element type.
    pub ty: TensorType,
    /// Where it comes from.
    pub kind: ValueKind,
}

/// An operation applied to values.
#[derive(Debug, Clone)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<ValueId>,
    /// What it defines.
    pub outputs: Vec<ValueId>,
    /// The part of the model that it belongs to ([`Graph::set_scope`]).
    pub scope: String,
}

/// A graph. See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
    outputs: Vec<(String, ValueId)>,
    scope: String,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares an input that the caller writes before each run. Its name is its own among the inputs.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        self.push(name.into(), ty, ValueKind::Input)
    }

    /// Declares the float state `name`, or finds it again where it was declared with the same shape. With another shape it is a
    /// fault, which [`Graph::verify`] finds.
    pub fn state(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.state_of(name, TensorType::f32(shape))
    }

    /// As [`Graph::state`], for another element type.
    pub(crate) fn state_of(&mut self, name: &str, ty: TensorType) -> ValueId {
        let known = self.values.iter().position(|v| v.kind == ValueKind::State && v.name == name && v.ty == ty);
        match known {
            Some(at) => ValueId(at as u32),
            None => self.push(name.to_owned(), ty, ValueKind::State),
        }
    }

    /// Adds a value that no node defines, as another graph has it.
    pub(crate) fn take(&mut self, value: &Value) -> ValueId {
        match value.kind {
            ValueKind::State => self.state_of(&value.name, value.ty.clone()),
            ValueKind::Input | ValueKind::Constant(_) | ValueKind::Computed => {
                self.push(value.name.clone(), value.ty.clone(), value.kind.clone())
            }
        }
    }

    /// Fixed indices of the given shape. Data of another length, or out of the bounds of the operation that reads it, is refused
    /// where the constant is used ([`Graph::apply`]).
    pub fn constant(&mut self, name: &str, shape: &[usize], data: Vec<i32>) -> ValueId {
        self.push(name.to_owned(), TensorType::i32(shape), ValueKind::Constant(data))
    }

    /// Fixed numbers of the given shape.
    pub fn constant_floats(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> ValueId {
        let bits = data.into_iter().map(|v| v.to_bits().cast_signed()).collect();
        self.push(name.to_owned(), TensorType::f32(shape), ValueKind::Constant(bits))
    }

    /// The part of the model (`blocks.3`) that the nodes which follow belong to: a prefix of their values' names.
    pub fn set_scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Applies an operation and returns what it defines.
    ///
    /// # Errors
    /// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Arity`] where the inputs do not fit;
    /// [`EngineError::Length`] and [`EngineError::Index`] for a constant that does not; [`EngineError::Invalid`] for a value of
    /// another graph.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, EngineError> {
        self.apply_as(op.into(), inputs, &[])
    }

    /// As [`Graph::apply`], with these element types of the first outputs.
    pub(crate) fn apply_as(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        dtypes: &[DType],
    ) -> Result<Vec<ValueId>, EngineError> {
        if let Some(foreign) = inputs.iter().find(|v| v.index() >= self.values.len()) {
            return Err(EngineError::Invalid(format!("{}: value {} is of another graph", op.name(), foreign.index())));
        }
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.ty(v).clone()).collect();
        let inferred = op.infer(&types)?;
        let given =
            |(port, ty): (usize, &TensorType)| ty.clone().with_dtype(dtypes.get(port).copied().unwrap_or(ty.dtype));
        let defined: Vec<TensorType> = inferred.iter().enumerate().map(given).collect();
        if !op.defines(&types, &inferred, &defined) {
            return Err(EngineError::Invalid(format!("{} cannot define {defined:?}", op.name())));
        }
        self.check_constants(&op, inputs, &types)?;
        let prefix = if self.scope.is_empty() { String::new() } else { format!("{}.", self.scope) };
        let many = defined.len() > 1;
        let outputs = defined
            .into_iter()
            .enumerate()
            .map(|(port, ty)| {
                let tail = if many { format!(":{port}") } else { String::new() };
                self.push(format!("{prefix}{}{tail}", op.name()), ty, ValueKind::Computed)
            })
            .collect::<Vec<_>>();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), scope: self.scope.clone() });
        Ok(outputs)
    }

    /// Applies an operation that defines one value, or whose first value alone is wanted.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn apply1(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, EngineError> {
        let outputs = self.apply(op, inputs)?;
        outputs.first().copied().ok_or_else(|| EngineError::Invalid("an operation without outputs".into()))
    }

    /// Marks a value to be readable after each run.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push((name.into(), value));
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All nodes, in the order in which they run.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Values that can be read after a run.
    #[must_use]
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// A value.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Type of a value.
    #[must_use]
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id.index()].ty
    }

    /// Shape of a value.
    #[must_use]
    pub fn shape(&self, id: ValueId) -> &[usize] {
        &self.values[id.index()].ty.shape
    }

    /// The input of that name.
    #[must_use]
    pub fn find_input(&self, name: &str) -> Option<ValueId> {
        self.inputs().find(|(_, v)| v.name == name).map(|(id, _)| id)
    }

    /// The state of that name.
    #[must_use]
    pub fn find_state(&self, name: &str) -> Option<ValueId> {
        self.states().find(|(_, v)| v.name == name).map(|(id, _)| id)
    }

    /// The inputs, in the order in which they were declared.
    pub fn inputs(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.select(|v| v.kind == ValueKind::Input)
    }

    /// The states, in the order in which they were declared.
    pub fn states(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.select(|v| v.kind == ValueKind::State)
    }

    fn select(&self, wanted: impl Fn(&Value) -> bool) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().filter(move |(_, v)| wanted(v)).map(|(at, v)| (ValueId(at as u32), v))
    }

    /// Floating point operations of one run, multiplications and additions counted apart.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|n| self.node_flops(n)).sum()
    }

    /// Floating point operations of one node.
    #[must_use]
    pub fn node_flops(&self, node: &Node) -> u64 {
        let types = |ids: &[ValueId]| ids.iter().map(|&v| self.ty(v).clone()).collect::<Vec<_>>();
        node.op.flops(&types(&node.inputs), &types(&node.outputs))
    }

    /// Checks that names are unique, that every node reads only what stands before it, that outputs exist, that constants fit and
    /// that the shapes still agree.
    ///
    /// # Errors
    /// [`EngineError::StateShape`] for a state of two shapes, [`EngineError::Invalid`] and those of [`Graph::apply`] with the first
    /// fault otherwise.
    pub fn verify(&self) -> Result<(), EngineError> {
        self.verify_names()?;
        let mut defined: Vec<bool> = self.values.iter().map(|v| v.kind != ValueKind::Computed).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            let fault = |what: &str| EngineError::Invalid(format!("node {at} ({}) {what}", node.op.name()));
            if node.inputs.iter().any(|input| !defined.get(input.index()).copied().unwrap_or(false)) {
                return Err(fault("reads an undefined value"));
            }
            let types: Vec<TensorType> = node.inputs.iter().map(|&v| self.ty(v).clone()).collect();
            let expected = node.op.infer(&types)?;
            self.check_constants(&node.op, &node.inputs, &types)?;
            let found: Vec<TensorType> = node.outputs.iter().map(|&v| self.ty(v).clone()).collect();
            if !node.op.defines(&types, &expected, &found) {
                return Err(fault(&format!("defines {found:?}")));
            }
            if node.outputs.iter().any(|output| std::mem::replace(&mut defined[output.index()], true)) {
                return Err(fault("redefines a value"));
            }
        }
        match self.outputs.iter().find(|(_, v)| !defined.get(v.index()).copied().unwrap_or(false)) {
            Some((name, _)) => Err(EngineError::Invalid(format!("output `{name}` is never defined"))),
            None => Ok(()),
        }
    }

    fn verify_names(&self) -> Result<(), EngineError> {
        let twice = |kind: &str, name: &str| Err(EngineError::Invalid(format!("two {kind}s are named `{name}`")));
        let mut seen = HashSet::new();
        for (_, input) in self.inputs() {
            if !seen.insert(&input.name) {
                return twice("input", &input.name);
            }
        }
        seen.clear();
        for (id, state) in self.states() {
            if !seen.insert(&state.name) {
                let first = self.find_state(&state.name).unwrap_or(id);
                return Err(EngineError::StateShape {
                    name: state.name.clone(),
                    expected: self.shape(first).to_vec(),
                    found: state.ty.shape.clone(),
                });
            }
        }
        seen.clear();
        match self.outputs.iter().find(|(name, _)| !seen.insert(name)) {
            Some((name, _)) => twice("output", name),
            None => Ok(()),
        }
    }

    /// Constants have the length of their shape, and their indices lie within the bounds that an operation puts on them.
    fn check_constants(&self, op: &Op, inputs: &[ValueId], types: &[TensorType]) -> Result<(), EngineError> {
        let bounds = op.index_bounds(types);
        for (at, &input) in inputs.iter().enumerate() {
            let value = self.value(input);
            let ValueKind::Constant(data) = &value.kind else { continue };
            let (expected, found) = (value.ty.len(), data.len());
            match bounds.iter().find(|(of, _)| *of == at) {
                Some(&(_, bound)) => check_indices(&value.name, data, expected, bound)?,
                None if found == expected => {}
                None => return Err(EngineError::Length { name: value.name.clone(), expected, found }),
            }
        }
        Ok(())
    }

    fn push(&mut self, name: String, ty: TensorType, kind: ValueKind) -> ValueId {
        self.values.push(Value { name, ty, kind });
        ValueId((self.values.len() - 1) as u32)
    }
}

/// Checks that `data` holds `len` indices in `0..bound`.
pub(crate) fn check_indices(name: &str, data: &[i32], len: usize, bound: usize) -> Result<(), EngineError> {
    if data.len() != len {
        return Err(EngineError::Length { name: name.to_owned(), expected: len, found: data.len() });
    }
    match data.iter().find(|&&i| usize::try_from(i).is_ok_and(|i| i < bound).not()) {
        Some(&index) => Err(EngineError::Index { name: name.to_owned(), index, bound }),
        None => Ok(()),
    }
}
