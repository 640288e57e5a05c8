//! Differentiation as a pass over the graph: each operation appends its backward operations. There is no tape at run time.
//!
//! Every gradient is accumulated in place: an operation that contributes to a gradient which already has a value takes that
//! value as an input and adds to it. The gradients of states start as the states `grad.NAME`, to which the backward adds; the
//! optimiser's pass zeroes them. So accumulation over micro-batches is running the program several times.

use crate::error::EngineError;
use crate::graph::{Graph, Node, ValueId, ValueKind};
use crate::ops::{Add, Op, Operation, Zero};

/// Prefix of the states that hold gradients.
pub const GRADIENT_PREFIX: &str = "grad.";

/// Scope of the operations that differentiation appends.
pub const GRADIENT_SCOPE: &str = "grad";

/// What [`differentiate`] found.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// Each differentiated state with the value that holds its gradient after the run.
    pub states: Vec<(ValueId, ValueId)>,
}

/// What an operation sees while it appends its backward.
#[derive(Debug)]
pub struct Backward<'g> {
    graph: &'g mut Graph,
    forward: &'g [Node],
    node: &'g Node,
    wanted: &'g [bool],
    gradients: &'g mut Vec<Option<ValueId>>,
}

impl Backward<'_> {
    /// The `i`-th input of the forward operation.
    #[must_use]
    pub fn input(&self, i: usize) -> ValueId {
        self.node.inputs[i]
    }

    /// Its shape.
    #[must_use]
    pub fn input_shape(&self, i: usize) -> &[usize] {
        self.graph.shape(self.node.inputs[i])
    }

    /// The `port`-th output of the forward operation.
    #[must_use]
    pub fn output(&self, port: usize) -> ValueId {
        self.node.outputs[port]
    }

    /// Gradient of the `port`-th output, if the loss depends on it.
    #[must_use]
    pub fn grad_output(&self, port: usize) -> Option<ValueId> {
        self.gradients[self.node.outputs[port].index()]
    }

    /// Whether the gradient of the `i`-th input leads to a state.
    #[must_use]
    pub fn wants(&self, i: usize) -> bool {
        self.wanted[self.node.inputs[i].index()]
    }

    /// The first input whose gradient is wanted; for messages.
    #[must_use]
    pub fn first_wanted(&self) -> usize {
        (0..self.node.inputs.len()).find(|&i| self.wants(i)).unwrap_or(0)
    }

    /// The slope of the GELU that made the `i`-th input, where a linear layer did so for this operation alone.
    #[must_use]
    pub fn slope_of_gelu(&self, i: usize) -> Option<ValueId> {
        let input = self.node.inputs[i];
        let readers = self.forward.iter().flat_map(|n| &n.inputs).filter(|&&v| v == input).count();
        let maker = self.forward.iter().find(|n| n.outputs.first() == Some(&input))?;
        match maker.op {
            Op::Linear(linear) if linear.gelu && readers == 1 => Some(maker.outputs[1]),
            _ => None,
        }
    }

    /// Gradient of any value so far.
    #[must_use]
    pub fn gradient_of(&self, value: ValueId) -> Option<ValueId> {
        self.gradients[value.index()]
    }

    /// Replaces the gradient of any value.
    pub fn set_gradient_of(&mut self, value: ValueId, gradient: ValueId) {
        self.gradients[value.index()] = Some(gradient);
    }

    /// Gradient of the `i`-th input so far.
    #[must_use]
    pub fn gradient(&self, i: usize) -> Option<ValueId> {
        self.gradients[self.node.inputs[i].index()]
    }

    /// Gradient of the `i`-th input so far, or zeros.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn gradient_or_zero(&mut self, i: usize) -> Result<ValueId, EngineError> {
        match self.gradient(i) {
            Some(gradient) => Ok(gradient),
            None => self.graph.apply1(Zero { shape: self.input_shape(i).to_vec() }, &[]),
        }
    }

    /// Replaces the gradient of the `i`-th input.
    pub fn set_gradient(&mut self, i: usize, gradient: ValueId) {
        self.gradients[self.node.inputs[i].index()] = Some(gradient);
    }

    /// Adds to the gradient of the `i`-th input; the first contribution is taken as it is.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn add_gradient(&mut self, i: usize, contribution: ValueId) -> Result<(), EngineError> {
        let sum = match self.gradient(i) {
            Some(so_far) => self.graph.apply1(Add, &[so_far, contribution])?,
            None => contribution,
        };
        self.set_gradient(i, sum);
        Ok(())
    }

    /// The indices of the `i`-th input, where they are constant.
    #[must_use]
    pub fn indices(&self, i: usize) -> Option<&[i32]> {
        match &self.graph.value(self.node.inputs[i]).kind {
            ValueKind::Constant(data) => Some(data),
            ValueKind::Input | ValueKind::State | ValueKind::Computed => None,
        }
    }

    /// Fixed indices for what is appended.
    pub fn constant(&mut self, name: &str, shape: &[usize], data: Vec<i32>) -> ValueId {
        self.graph.constant(name, shape, data)
    }

    /// Appends an operation.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn emit(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>, EngineError> {
        self.graph.apply(op, inputs)
    }
}

/// Appends the gradient of `loss` with respect to every state that it depends on.
///
/// # Errors
/// [`EngineError::NotALoss`]; [`EngineError::NoBackward`] where an operation on the way has no rule, or is another loss;
/// [`EngineError::NoGradient`] where a rule left a state out.
pub fn differentiate(graph: &mut Graph, loss: ValueId) -> Result<Gradients, EngineError> {
    differentiate_states(graph, loss, |_| true)
}

/// As [`differentiate`], for the states alone whose names `trains` accepts. The others are constants: no gradient flows into what
/// depends on nothing else, and no operation is appended for it.
///
/// # Errors
/// As [`differentiate`].
pub fn differentiate_states(
    graph: &mut Graph,
    loss: ValueId,
    trains: impl Fn(&str) -> bool,
) -> Result<Gradients, EngineError> {
    let forward: Vec<Node> = graph.nodes().to_vec();
    let is_root = |node: &Node| node.op.is_loss() && node.outputs.contains(&loss);
    if !forward.iter().any(is_root) {
        let value = graph.values().get(loss.index()).map_or_else(|| loss.index().to_string(), |v| v.name.clone());
        return Err(EngineError::NotALoss { value });
    }
    let mut wanted: Vec<bool> = graph.values().iter().map(|v| v.kind == ValueKind::State && trains(&v.name)).collect();
    for node in &forward {
        if node.inputs.iter().any(|v| wanted[v.index()]) {
            node.outputs.iter().for_each(|v| wanted[v.index()] = true);
        }
    }
    let mut reached = vec![false; wanted.len()];
    reached[loss.index()] = true;
    for node in forward.iter().rev() {
        if node.outputs.iter().any(|v| reached[v.index()]) {
            node.inputs.iter().for_each(|v| reached[v.index()] = true);
        }
    }
    let parameters: Vec<ValueId> =
        graph.states().map(|(id, _)| id).filter(|v| reached[v.index()] && wanted[v.index()]).collect();
    let mut gradients: Vec<Option<ValueId>> = vec![None; wanted.len()];
    let mut starts = Vec::with_capacity(parameters.len());
    for &parameter in &parameters {
        let name = format!("{GRADIENT_PREFIX}{}", graph.value(parameter).name);
        let shape = graph.shape(parameter).to_vec();
        let start = graph.state(&name, &shape);
        gradients[parameter.index()] = Some(start);
        starts.push(start);
    }
    graph.set_scope(GRADIENT_SCOPE);
    for node in forward.iter().rev() {
        let leads = node.outputs.iter().any(|v| wanted[v.index()] && reached[v.index()]);
        if leads {
            let op = node.op.clone();
            if op.is_loss() && !is_root(node) {
                return Err(EngineError::NoBackward { op: op.name(), input: 0 });
            }
            op.backward(&mut Backward { graph, forward: &forward, node, wanted: &wanted, gradients: &mut gradients })?;
        }
    }
    graph.set_scope("");
    if let Some((parameter, _)) =
        parameters.iter().zip(&starts).find(|(p, start)| gradients[p.index()] == Some(**start))
    {
        return Err(EngineError::NoGradient { state: graph.value(*parameter).name.clone() });
    }
    let states = parameters.into_iter().filter_map(|p| gradients[p.index()].map(|g| (p, g))).collect();
    Ok(Gradients { states })
}
