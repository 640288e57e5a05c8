//! Prints a program: what runs, and where its values live.

use super::{Buffer, Location, Program};
use crate::graph::DType;
use crate::ops::Operation;
use std::fmt;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |b: &Buffer| {
            let dims: Vec<String> = b.ty.shape.iter().map(ToString::to_string).collect();
            let place = match b.location {
                Location::Arena(offset) => format!("@{offset}"),
                Location::State(n) => format!("`{}`", self.states[n].name),
                Location::Constant(n) => format!("const {n}"),
            };
            let kind = if b.ty.dtype == DType::Bf16 { "bf16" } else { "" };
            format!("{place}{kind}[{}]", dims.join(","))
        };
        for (at, i) in self.instructions.iter().enumerate() {
            let outputs: Vec<String> = i.outputs.iter().map(&show).collect();
            let inputs: Vec<String> = i.inputs.iter().map(&show).collect();
            let copies = if i.copies.is_empty() { String::new() } else { format!("  copies {:?}", i.copies) };
            writeln!(f, "{at:4} {:28} {} <- {}{copies}", i.op.name(), outputs.join(" "), inputs.join(" "))?;
        }
        Ok(())
    }
}
