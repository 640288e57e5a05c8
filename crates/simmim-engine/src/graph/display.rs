//! Prints a graph, one node a line.

use super::{DType, Graph, ValueId};
use crate::ops::Operation;
use std::fmt;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |id: ValueId| {
            let value = self.value(id);
            let dims: Vec<String> = value.ty.shape.iter().map(ToString::to_string).collect();
            let kind = if value.ty.dtype == DType::F32 { "" } else { &format!(" {}", value.ty.dtype) };
            format!("%{} {}{kind}[{}]", id.index(), value.name, dims.join(","))
        };
        for node in self.nodes() {
            let outputs: Vec<String> = node.outputs.iter().map(|&v| show(v)).collect();
            let inputs: Vec<String> =
                node.inputs.iter().map(|&v| format!("%{} {}", v.index(), self.value(v).name)).collect();
            writeln!(f, "{} = {}({})", outputs.join(", "), node.op.name(), inputs.join(", "))?;
        }
        for (name, value) in self.outputs() {
            writeln!(f, "output {name} = {}", show(*value))?;
        }
        Ok(())
    }
}
