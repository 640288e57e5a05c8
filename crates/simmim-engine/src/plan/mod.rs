//! Turns a graph into a program: every value gets a place, nothing is allocated while the program runs.
//!
//! A [`Program`] can only be made by [`Program::compile`], and only if it passes `verify`: executors, CUDA's among them, may take its
//! places, types and indices at their word.

mod display;
mod layout;
mod verify;

use crate::error::EngineError;
use crate::graph::{DType, Graph, TensorType, ValueId, ValueKind};
use crate::ops::{Op, Operation};
use layout::{Interval, place};
use std::collections::HashMap;

/// Bytes to which every place in the arena is aligned: what CUDA's allocator gives, and more than a cache line or the widest vector.
pub const ALIGNMENT: usize = 256;

/// Where a value lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In the arena, from this byte on.
    Arena(usize),
    /// In the program's state of this number.
    State(usize),
    /// In the program's constant of this number.
    Constant(usize),
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Where it lives.
    pub location: Location,
    /// Its shape and element type.
    pub ty: TensorType,
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

impl Instruction {
    /// Bytes of its inputs and outputs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inputs.iter().chain(&self.outputs).map(|b| b.ty.bytes()).sum()
    }
}

/// An input of a program. It lives in the arena, which all programs of an executor share.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name, unlike that of any other input.
    pub name: String,
    /// Where it is written to.
    pub buffer: Buffer,
    /// For indices: all of them must lie below this number.
    pub bound: Option<usize>,
}

/// An output of a program.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its name, unlike that of any other output.
    pub name: String,
    /// Where it is read from. It holds floats.
    pub buffer: Buffer,
}

/// A state that a program touches.
#[derive(Debug, Clone)]
pub struct State {
    /// Its name, by which programs share it.
    pub name: String,
    /// Shape and element type.
    pub ty: TensorType,
}

/// Fixed elements: indices, or the bits of floats.
#[derive(Debug, Clone)]
pub struct Constant {
    /// Its name, for messages.
    pub name: String,
    /// The elements; of a constant that is read as floats, their bits.
    pub data: Vec<i32>,
}

/// A compiled graph.
#[derive(Debug, Clone)]
pub struct Program {
    instructions: Vec<Instruction>,
    arena_bytes: usize,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    states: Vec<State>,
    constants: Vec<Constant>,
}

impl Program {
    /// Plans a graph.
    ///
    /// # Errors
    /// As [`Graph::verify`]; [`EngineError::Invalid`] where a state is read after it was changed or an output holds indices;
    /// [`EngineError::OutOfMemory`] where no memory could hold all values.
    pub fn compile(graph: &Graph) -> Result<Self, EngineError> {
        graph.verify()?;
        let aliases = Aliases::find(graph)?;
        let intervals = aliases.intervals(graph);
        let (offsets, arena_bytes) = place(&intervals);
        if isize::try_from(arena_bytes).is_err() {
            return Err(EngineError::OutOfMemory { what: "the arena", bytes: arena_bytes });
        }
        let program = Planner::new(graph, &aliases, &intervals, &offsets).program(arena_bytes);
        program.verify()?;
        Ok(program)
    }

    /// What runs, in order.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// What the caller writes before every run.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// What the caller may read until the next run.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The states that the program touches, by number.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// The states of floats whose names begin with `prefix`, and for each the number of the last instruction that touches it, ascending.
    #[must_use]
    pub fn last_uses(&self, prefix: &str) -> Vec<(usize, &str)> {
        let mut last = vec![None; self.states.len()];
        for (at, instruction) in self.instructions.iter().enumerate() {
            for buffer in instruction.inputs.iter().chain(&instruction.outputs) {
                if let Location::State(n) = buffer.location {
                    last[n] = Some(at);
                }
            }
        }
        let wanted = |state: &State| state.name.starts_with(prefix) && state.ty.dtype == DType::F32;
        let states = self.states.iter().zip(last).filter(|(state, _)| wanted(state));
        let mut uses: Vec<_> = states.filter_map(|(state, at)| Some((at?, state.name.as_str()))).collect();
        uses.sort_by_key(|(at, _)| *at);
        uses
    }

    /// The constants, by number.
    #[must_use]
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// Bytes of the arena.
    #[must_use]
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of the states that the program touches.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.states.iter().fold(0, |sum, state| sum.saturating_add(state.ty.bytes()))
    }

    /// Floating point operations of one run.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.instructions.iter().fold(0, |sum, i| sum.saturating_add(i.flops))
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
        for (id, value) in graph.inputs() {
            intervals.insert(id, Interval { root: id, bytes: value.ty.bytes(), first: 0, last: 0 });
        }
        for (at, node) in graph.nodes().iter().enumerate() {
            for &output in &node.outputs {
                let root = self.root[output.index()];
                if graph.value(root).kind != ValueKind::State {
                    let new = Interval { root, bytes: graph.ty(root).bytes(), first: at, last: at };
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
    /// Offset of each buffer in the arena.
    arena: HashMap<ValueId, usize>,
    /// Number of each state and each constant.
    numbers: HashMap<ValueId, usize>,
    states: Vec<State>,
    constants: Vec<Constant>,
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
                    planner.states.push(State { name: value.name.clone(), ty: value.ty.clone() });
                }
                ValueKind::Constant(data) => {
                    planner.numbers.insert(id, planner.constants.len());
                    planner.constants.push(Constant { name: value.name.clone(), data: data.clone() });
                }
                ValueKind::Input | ValueKind::Computed => {}
            }
        }
        planner
    }

    fn buffer(&self, id: ValueId) -> Buffer {
        let root = self.aliases.root[id.index()];
        let number = |id| self.numbers.get(&id).copied().unwrap_or_default();
        let location = match self.graph.value(root).kind {
            ValueKind::State => Location::State(number(root)),
            ValueKind::Constant(_) => Location::Constant(number(root)),
            ValueKind::Input | ValueKind::Computed => {
                Location::Arena(self.arena.get(&root).copied().unwrap_or_default())
            }
        };
        Buffer { location, ty: self.graph.ty(id).clone() }
    }

    fn program(self, arena_bytes: usize) -> Program {
        let graph = self.graph;
        let buffers = |ids: &[ValueId]| ids.iter().map(|&v| self.buffer(v)).collect::<Vec<_>>();
        let instructions = graph.nodes().iter().zip(&self.aliases.copies).map(|(node, copies)| Instruction {
            op: node.op.clone(),
            inputs: buffers(&node.inputs),
            outputs: buffers(&node.outputs),
            copies: copies.clone(),
            flops: graph.node_flops(node),
        });
        let bounds = index_bounds(graph);
        let input = |(id, value): (ValueId, &crate::graph::Value)| Input {
            name: value.name.clone(),
            buffer: self.buffer(id),
            bound: bounds.get(&id).copied(),
        };
        let output = |(name, id): &(String, ValueId)| Output { name: name.clone(), buffer: self.buffer(*id) };
        Program {
            instructions: instructions.collect(),
            arena_bytes,
            inputs: graph.inputs().map(input).collect(),
            outputs: graph.outputs().iter().map(output).collect(),
            states: self.states,
            constants: self.constants,
        }
    }
}

/// The tightest bound that any reader puts on the indices of each value.
fn index_bounds(graph: &Graph) -> HashMap<ValueId, usize> {
    let mut bounds: HashMap<ValueId, usize> = HashMap::new();
    for node in graph.nodes() {
        let types: Vec<_> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        for (at, bound) in node.op.index_bounds(&types) {
            let entry = bounds.entry(node.inputs[at]).or_insert(bound);
            *entry = bound.min(*entry);
        }
    }
    bounds
}

#[cfg(test)]
mod hostile_tests;

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
        let naive: usize = g.values().iter().filter(|v| v.kind == ValueKind::Computed).map(|v| v.ty.bytes()).sum();
        let program = Program::compile(&g).unwrap();
        assert!(program.arena_bytes < naive / 3, "{} of {naive}", program.arena_bytes);
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
