//! What passes that make a graph from another one have in common.

use super::{DType, Graph, Node, ValueId, ValueKind};
use crate::error::EngineError;
use crate::ops::Op;

/// A graph that is made from another one, node by node. Inputs, states and constants are there from the start.
pub(crate) struct Rewrite<'a> {
    pub(crate) from: &'a Graph,
    pub(crate) to: Graph,
    /// Each value of the old graph in the new one.
    values: Vec<Option<ValueId>>,
}

impl<'a> Rewrite<'a> {
    /// Begins with the values that no node defines.
    ///
    /// # Errors
    /// As [`Graph::verify`].
    pub(crate) fn new(from: &'a Graph) -> Result<Self, EngineError> {
        from.verify()?;
        let mut to = Graph::new();
        let mut take =
            |value| if from.value(value).kind == ValueKind::Computed { None } else { Some(to.take(from.value(value))) };
        let values = (0..from.values().len() as u32).map(|at| take(ValueId(at))).collect();
        Ok(Self { from, to, values })
    }

    /// A value of the old graph in the new one.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where it has none yet.
    pub(crate) fn value(&self, old: ValueId) -> Result<ValueId, EngineError> {
        let undefined =
            || EngineError::Invalid(format!("`{}` is read before it is defined", self.from.value(old).name));
        self.values[old.index()].ok_or_else(undefined)
    }

    /// What a value of the old graph is from now on.
    pub(crate) fn define(&mut self, old: ValueId, new: ValueId) {
        self.values[old.index()] = Some(new);
    }

    /// Appends what a node becomes; the element types are those of its first outputs.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub(crate) fn apply(
        &mut self,
        node: &Node,
        op: Op,
        inputs: &[ValueId],
        dtypes: &[DType],
    ) -> Result<(), EngineError> {
        self.to.set_scope(&node.scope);
        let outputs = self.to.apply_as(op, inputs, dtypes)?;
        node.outputs.iter().zip(outputs).for_each(|(&old, new)| self.define(old, new));
        Ok(())
    }

    /// The new graph, with the outputs of the old one.
    ///
    /// # Errors
    /// As [`Rewrite::value`].
    pub(crate) fn finish(mut self) -> Result<Graph, EngineError> {
        for (name, value) in self.from.outputs() {
            let value = self.value(*value)?;
            self.to.output(name.clone(), value);
        }
        Ok(self.to)
    }
}
