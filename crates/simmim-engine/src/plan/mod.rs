//! Turns a graph into a program: every value gets a place, nothing is allocated while the program runs.

mod display;
mod layout;

use crate::error::EngineError;
use crate::graph::{DType, Graph, ValueId, ValueKind};
use crate::ops::{Op, Operation};
use layout::{Interval, place};
use std::collections::HashMap;

/// Floats to which every place in the arena is aligned (64 bytes: a cache line and the widest vector).
pub const ALIGNMENT: usize = 16;

/// Where a value lives. Offsets and lengths count four-byte elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the arena, from this offset on.
    Arena(usize),
    /// In the program's state of this number.
    State(usize),
    /// In the program's constant of this number.
    Constant(usize),
}

/// A value with its place.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// Where it lives.
    pub place: Place,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: DType,
}

impl Buffer {
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
}

/// One operation of a program, with the places of its values.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// The operation.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Buffer>,
    /// What it writes.
    pub outputs: Vec<Buffer>,
    /// `(input, output)` pairs that are in place by the operation's definition but not by this plan, because the input is read
    /// again later: the executor copies before it runs the kernel.
    pub copies: Vec<(usize, usize)>,
    /// Floating point operations.
    pub flops: u64,
}

/// A compiled graph.
#[derive(Debug, Clone)]
pub struct Program {
    /// What runs, in order.
    pub instructions: Vec<Instruction>,
    /// Elements of the arena.
    pub arena_len: usize,
    /// Inputs by name. They share the arena: write them before every run.
    pub inputs: Vec<(String, Buffer)>,
    /// Outputs by name, readable until the next run.
    pub outputs: Vec<(String, Buffer)>,
    /// States by number: name and shape.
    pub states: Vec<(String, Vec<usize>)>,
    /// Constants by number.
    pub constants: Vec<Vec<i32>>,
    /// Exclusive upper bound of the indices in each `i32` input, by name.
    pub index_bounds: HashMap<String, usize>,
}

impl Program {
    /// Plans a graph.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where the graph breaks an invariant.
    pub fn compile(graph: &Graph) -> Result<Self, EngineError> {
        graph.verify()?;
        let aliases = Aliases::find(graph)?;
        let intervals = aliases.intervals(graph);
        let (offsets, arena_len) = place(&intervals);
        let mut planner = Planner::new(graph, &aliases, &intervals, &offsets);
        let program = planner.program(arena_len);
        program.verify()?;
        Ok(program)
    }

    /// Bytes of the arena.
    #[must_use]
    pub fn arena_bytes(&self) -> usize {
        4 * self.arena_len
    }

    /// Bytes of the states that the program touches.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        4 * self.states.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>()
    }

    /// Floating point operations of one run.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.instructions.iter().map(|i| i.flops).sum()
    }

    /// Checks what executors rely on: no output of an instruction overlaps another of its values, except where the operation
    /// works in place, and everything lies inside the arena.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] with the first fault.
    pub fn verify(&self) -> Result<(), EngineError> {
        let overlap = |a: &Buffer, b: &Buffer| match (a.place, b.place) {
            (Place::Arena(x), Place::Arena(y)) => x < y + b.len() && y < x + a.len(),
            (x, y) => x == y,
        };
        for (at, i) in self.instructions.iter().enumerate() {
            let fault = |what: &str| Err(EngineError::Invalid(format!("instruction {at} ({}): {what}", i.op.name())));
            let in_place = i.op.in_place();
            for (o, output) in i.outputs.iter().enumerate() {
                if let Place::Arena(offset) = output.place
                    && offset + output.len() > self.arena_len
                {
                    return fault("an output outside the arena");
                }
                if matches!(output.place, Place::Constant(_)) {
                    return fault("an output over a constant");
                }
                for (n, input) in i.inputs.iter().enumerate() {
                    let allowed =
                        in_place.contains(&(n, o)) && !i.copies.contains(&(n, o)) && input.place == output.place;
                    if overlap(input, output) && !allowed {
                        return fault("an output overlaps an input");
                    }
                }
                if i.outputs[..o].iter().any(|other| overlap(other, output)) {
                    return fault("two outputs overlap");
                }
            }
        }
        Ok(())
    }
}

/// Which values share one buffer because an operation works in place.
struct Aliases {
    /// The value whose buffer each value lives in.
    root: Vec<ValueId>,
    /// Node and pair of each in-place operation that needs a copy.
    copies: Vec<Vec<(usize, usize)>>,
}

impl Aliases {
    fn find(graph: &Graph) -> Result<Self, EngineError> {
        let mut root: Vec<ValueId> = (0..graph.values().len() as u32).map(ValueId).collect();
        let mut last_read = vec![0usize; root.len()];
        for (at, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().for_each(|v| last_read[v.index()] = at);
        }
        graph.outputs().iter().for_each(|(_, v)| last_read[v.index()] = usize::MAX);
        let mut copies = vec![Vec::new(); graph.nodes().len()];
        for (at, node) in graph.nodes().iter().enumerate() {
            for (from, to) in node.op.in_place() {
                let (input, output) = (node.inputs[from], node.outputs[to]);
                let origin = root[input.index()];
                let readable_later = last_read[input.index()] > at;
                let twice = node.inputs.iter().filter(|&&v| root[v.index()] == origin).count() > 1;
                match graph.value(origin).kind {
                    ValueKind::State if readable_later || twice => {
                        let name = &graph.value(origin).name;
                        return Err(EngineError::Invalid(format!(
                            "state `{name}` is read after node {at} has changed it"
                        )));
                    }
                    ValueKind::State => root[output.index()] = origin,
                    ValueKind::Computed if !readable_later && !twice => root[output.index()] = origin,
                    _ => copies[at].push((from, to)),
                }
            }
        }
        Ok(Self { root, copies })
    }

    /// Lifetime of each buffer that lives in the arena.
    fn intervals(&self, graph: &Graph) -> Vec<Interval> {
        let mut intervals: HashMap<ValueId, Interval> = HashMap::new();
        for (id, value) in graph.of_kind(&ValueKind::Input) {
            intervals.insert(id, Interval { root: id, len: value.ty.len(), first: 0, last: 0 });
        }
        for (at, node) in graph.nodes().iter().enumerate() {
            for &output in &node.outputs {
                let root = self.root[output.index()];
                if graph.value(root).kind != ValueKind::State {
                    let new = Interval { root, len: graph.ty(root).len(), first: at, last: at };
                    intervals.entry(root).or_insert(new).last = at;
                }
            }
            for input in &node.inputs {
                if let Some(interval) = intervals.get_mut(&self.root[input.index()]) {
                    interval.last = at;
                }
            }
        }
        for (_, output) in graph.outputs() {
            if let Some(interval) = intervals.get_mut(&self.root[output.index()]) {
                interval.last = usize::MAX;
            }
        }
        let mut intervals: Vec<Interval> = intervals.into_values().collect();
        intervals.sort_by_key(|i| i.root);
        intervals
    }
}

/// Builds the program's tables.
struct Planner<'a> {
    graph: &'a Graph,
    aliases: &'a Aliases,
    arena: HashMap<ValueId, usize>,
    numbers: HashMap<ValueId, usize>,
    states: Vec<(String, Vec<usize>)>,
    constants: Vec<Vec<i32>>,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, aliases: &'a Aliases, intervals: &[Interval], offsets: &[usize]) -> Self {
        let arena = intervals.iter().zip(offsets).map(|(i, &o)| (i.root, o)).collect();
        let mut planner =
            Self { graph, aliases, arena, numbers: HashMap::new(), states: Vec::new(), constants: Vec::new() };
        for (at, value) in graph.values().iter().enumerate() {
            let id = ValueId(at as u32);
            match &value.kind {
                ValueKind::State => {
                    planner.numbers.insert(id, planner.states.len());
                    planner.states.push((value.name.clone(), value.ty.shape.clone()));
                }
                ValueKind::Constant(data) => {
                    planner.numbers.insert(id, planner.constants.len());
                    planner.constants.push(data.clone());
                }
                ValueKind::Input | ValueKind::Computed => {}
            }
        }
        planner
    }

    fn buffer(&self, id: ValueId) -> Buffer {
        let root = self.aliases.root[id.index()];
        let number = |id| self.numbers.get(&id).copied().unwrap_or_default();
        let place = match self.graph.value(root).kind {
            ValueKind::State => Place::State(number(root)),
            ValueKind::Constant(_) => Place::Constant(number(root)),
            ValueKind::Input | ValueKind::Computed => Place::Arena(self.arena.get(&root).copied().unwrap_or_default()),
        };
        let ty = self.graph.ty(id);
        Buffer { place, shape: ty.shape.clone(), dtype: ty.dtype }
    }

    fn program(&mut self, arena_len: usize) -> Program {
        let graph = self.graph;
        let buffers = |ids: &[ValueId]| ids.iter().map(|&v| self.buffer(v)).collect::<Vec<_>>();
        let instructions = graph.nodes().iter().zip(&self.aliases.copies).map(|(node, copies)| Instruction {
            op: node.op.clone(),
            inputs: buffers(&node.inputs),
            outputs: buffers(&node.outputs),
            copies: copies.clone(),
            flops: graph.node_flops(node),
        });
        Program {
            instructions: instructions.collect(),
            arena_len,
            inputs: graph.of_kind(&ValueKind::Input).map(|(id, v)| (v.name.clone(), self.buffer(id))).collect(),
            outputs: graph.outputs().iter().map(|(name, v)| (name.clone(), self.buffer(*v))).collect(),
            states: std::mem::take(&mut self.states.clone()),
            constants: self.constants.clone(),
            index_bounds: index_bounds(graph),
        }
    }
}

/// The tightest bound that any reader puts on each index input.
fn index_bounds(graph: &Graph) -> HashMap<String, usize> {
    let mut bounds: HashMap<String, usize> = HashMap::new();
    for node in graph.nodes() {
        let types: Vec<_> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        for (at, bound) in node.op.index_bounds(&types) {
            let value = graph.value(node.inputs[at]);
            let entry = bounds.entry(value.name.clone()).or_insert(bound);
            *entry = bound.min(*entry);
        }
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::TensorType;
    use crate::ops::{Add, GatherRows, Zero};

    #[test]
    fn disjoint_lifetimes_share_the_arena() {
        let mut g = Graph::new();
        let mut value = g.apply1(Zero { shape: vec![100] }, &[]).unwrap();
        let index = g.constant("index", &[100], vec![0; 100]);
        for _ in 0..6 {
            value = g.apply1(GatherRows, &[value, index]).unwrap();
            value = g.apply1(Add, &[value, value]).unwrap_or(value);
        }
        g.output("y", value);
        let naive: usize = g.of_kind(&ValueKind::Computed).map(|(_, v)| v.ty.len()).sum();
        let program = Program::compile(&g).unwrap();
        assert!(program.arena_len < naive / 3, "{} of {naive}", program.arena_len);
    }

    #[test]
    fn an_input_read_later_is_copied_not_overwritten() {
        let mut g = Graph::new();
        let (a, b) = (g.apply1(Zero { shape: vec![4] }, &[]).unwrap(), g.input("b", TensorType::f32([4])));
        let sum = g.apply1(Add, &[a, b]).unwrap();
        let again = g.apply1(Add, &[a, sum]).unwrap();
        g.output("again", again);
        let program = Program::compile(&g).unwrap();
        assert_eq!(program.instructions[1].copies, [(0, 0)]);
        assert!(program.instructions[2].copies.is_empty());
    }

    #[test]
    fn reading_a_state_after_its_change_is_refused() {
        let mut g = Graph::new();
        let (s, b) = (g.state("s", &[4]), g.input("b", TensorType::f32([4])));
        let changed = g.apply1(Add, &[s, b]).unwrap();
        let bad = g.apply1(Add, &[changed, s]).unwrap();
        g.output("bad", bad);
        assert!(Program::compile(&g).unwrap_err().to_string().contains("`s` is read after"));
    }
}
