//! Graphs of fused operations over values of static shape.
//!
//! A graph is in single-assignment form: a [`Node`] reads values and defines new ones; the order of the nodes is the order in
//! which they run. Values that outlive a program (parameters, gradients, moments) are *states*: buffers shared by name between
//! all programs loaded into one executor.

mod display;

use crate::error::EngineError;
use crate::ops::{Op, Operation};

/// Element type of a value. Every type is four bytes wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer, for indices.
    I32,
}

/// Static shape and element type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Extent of each axis, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl TensorType {
    /// A float tensor.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        Self { shape: shape.into(), dtype: DType::F32 }
    }

    /// An index tensor.
    pub fn i32(shape: impl Into<Vec<usize>>) -> Self {
        Self { shape: shape.into(), dtype: DType::I32 }
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

    /// Extent of the last axis; 1 for a scalar.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    #[must_use]
    pub fn rows(&self) -> usize {
        if self.columns() == 0 { 0 } else { self.len() / self.columns() }
    }
}

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
    /// Fixed indices, known when the graph is built.
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

    /// Declares an input that the caller writes before each run.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        self.push(name.into(), ty, ValueKind::Input)
    }

    /// Declares (or finds again) the float state `name`.
    pub fn state(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let known = self.values.iter().position(|v| v.kind == ValueKind::State && v.name == name);
        match known {
            Some(at) => ValueId(at as u32),
            None => self.push(name.to_owned(), TensorType::f32(shape), ValueKind::State),
        }
    }

    /// Fixed indices of the given shape.
    pub fn constant(&mut self, name: &str, shape: &[usize], data: Vec<i32>) -> ValueId {
        self.push(name.to_owned(), TensorType::i32(shape), ValueKind::Constant(data))
    }

    /// Prefix given to the names of the values that follow (`blocks.3`).
    pub fn set_scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Applies an operation and returns what it defines.
    ///
    /// # Errors
    /// [`EngineError::Shape`] or [`EngineError::Arity`] where the inputs do not fit.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, EngineError> {
        let op = op.into();
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.ty(v).clone()).collect();
        let defined = op.infer(&types)?;
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
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
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

    /// The input or state of that name.
    #[must_use]
    pub fn find(&self, name: &str, kind: &ValueKind) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name && v.kind == *kind).map(|at| ValueId(at as u32))
    }

    /// Names, types and kinds of the values of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a ValueKind) -> impl Iterator<Item = (ValueId, &'a Value)> {
        self.values.iter().enumerate().filter(move |(_, v)| v.kind == *kind).map(|(at, v)| (ValueId(at as u32), v))
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

    /// Checks that every node reads only what stands before it, that outputs exist and that the shapes still agree.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] with the first fault.
    pub fn verify(&self) -> Result<(), EngineError> {
        let mut defined: Vec<bool> = self.values.iter().map(|v| v.kind != ValueKind::Computed).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                if !defined.get(input.index()).copied().unwrap_or(false) {
                    return Err(EngineError::Invalid(format!(
                        "node {at} ({}) reads an undefined value",
                        node.op.name()
                    )));
                }
            }
            let types: Vec<TensorType> = node.inputs.iter().map(|&v| self.ty(v).clone()).collect();
            let expected = node.op.infer(&types)?;
            let found: Vec<TensorType> = node.outputs.iter().map(|&v| self.ty(v).clone()).collect();
            if expected != found {
                return Err(EngineError::Invalid(format!("node {at} ({}) defines {found:?}", node.op.name())));
            }
            for &output in &node.outputs {
                if std::mem::replace(&mut defined[output.index()], true) {
                    return Err(EngineError::Invalid(format!("node {at} ({}) redefines a value", node.op.name())));
                }
            }
        }
        if let Some((name, _)) = self.outputs.iter().find(|(_, v)| !defined[v.index()]) {
            return Err(EngineError::Invalid(format!("output `{name}` is never defined")));
        }
        Ok(())
    }

    fn push(&mut self, name: String, ty: TensorType, kind: ValueKind) -> ValueId {
        self.values.push(Value { name, ty, kind });
        ValueId((self.values.len() - 1) as u32)
    }
}
