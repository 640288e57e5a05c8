//! Runs programs on the processor.

#![allow(unsafe_code, reason = "builds the kernels' views of the arena; the plan's verification is the argument")]

use super::arena::{Args, Located, Memory};
use super::kernels;
use crate::error::EngineError;
use crate::executor::{
    self, ArenaContents, Borrow, Executor, Finished, InputSlot, Machine, OutputSlot, Peaks, ProgramId, States, Timing,
    Visit, check_index_input,
};
use crate::graph::{Bf16, DType, TensorType};
use crate::host::{Cpu, Isa, Pool};
use crate::mixed::COPY_PREFIX;
use crate::ops::{Op, Operation};
use crate::plan::{self, ALIGNMENT, Buffer, Instruction, Location, Program};
use std::collections::BTreeSet;
use std::time::Instant;

/// An instruction with the addresses of its values.
struct Ready {
    op: Op,
    inputs: Vec<Located>,
    outputs: Vec<Located>,
    copies: Vec<(usize, usize)>,
}

struct Loaded {
    program: Program,
    /// Number among the executor's states of each state of the program.
    states: Vec<usize>,
    constants: Vec<Memory>,
    ready: Vec<Ready>,
    seconds: Vec<f64>,
}

struct State {
    name: String,
    ty: TensorType,
    /// Number of its block, and the byte of it at which the state begins.
    block: usize,
    offset: usize,
}

/// The processor's [`Executor`].
pub struct CpuExecutor {
    cpu: Cpu,
    arena: Memory,
    scratch: Memory,
    states: Vec<State>,
    /// The states that one program brought, together: single ones are too small for huge pages.
    blocks: Vec<Memory>,
    programs: Vec<Loaded>,
    contents: ArenaContents,
    profile: bool,
}

// SAFETY: the pointers in `Located` point into memory that the executor owns; they are only followed by `run`, which borrows it
// exclusively.
unsafe impl Send for CpuExecutor {}

impl std::fmt::Debug for CpuExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuExecutor").field("cpu", &self.cpu).field("memory", &self.memory()).finish()
    }
}

impl CpuExecutor {
    /// An executor with `threads` threads (0: one for each core) on the widest instruction set here.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    pub fn new(threads: usize) -> Result<Self, EngineError> {
        Self::with_isa(threads, Isa::detect())
    }

    /// An executor on a chosen instruction set.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, EngineError> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if threads == 0 { cores() } else { threads };
        Ok(Self {
            cpu: Cpu { pool: Pool::new(threads), isa },
            arena: Memory::zeroed(0, "the arena")?,
            scratch: Memory::zeroed(0, "working memory")?,
            states: Vec::new(),
            blocks: Vec::new(),
            programs: Vec::new(),
            contents: ArenaContents::default(),
            profile: false,
        })
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.cpu.pool.threads()
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.cpu.isa
    }

    /// The number of each of a program's states; those that are not known yet start as zeros.
    fn state_numbers(&mut self, wanted: &[plan::State]) -> Result<Vec<usize>, EngineError> {
        let (mut new, mut bytes) = (Vec::new(), 0usize);
        let mut numbers = Vec::with_capacity(wanted.len());
        for plan::State { name, ty } in wanted {
            if let Some(at) = self.states.iter().position(|s| s.name == *name) {
                let expected = &self.states[at].ty;
                if expected != ty {
                    let (expected, found) = (expected.shape.clone(), ty.shape.clone());
                    return Err(EngineError::StateShape { name: name.clone(), expected, found });
                }
                numbers.push(at);
            } else {
                numbers.push(self.states.len() + new.len());
                new.push(State { name: name.clone(), ty: ty.clone(), block: self.blocks.len(), offset: bytes });
                let end = bytes.checked_add(ty.bytes()).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
                bytes = end.ok_or(EngineError::OutOfMemory { what: "the states", bytes: usize::MAX })?;
            }
        }
        if !new.is_empty() {
            self.blocks.push(Memory::zeroed(bytes, "the states")?);
            let names: Vec<String> = new.iter().map(|state| state.name.clone()).collect();
            self.states.extend(new);
            for name in names {
                self.round_copy(name.strip_prefix(COPY_PREFIX).unwrap_or(&name));
            }
        }
        Ok(numbers)
    }

    /// Writes the bfloat16 copy of a state, where there are both.
    fn round_copy(&mut self, name: &str) {
        let find = |wanted: &str, dtype: DType| {
            let found = self.states.iter().find(|s| s.name == wanted && s.ty.dtype == dtype);
            found.map(|s| (s.block, s.offset, s.ty.len()))
        };
        let Some((block, offset, len)) = find(name, DType::F32) else { return };
        let Some((to, start, copied)) = find(&format!("{COPY_PREFIX}{name}"), DType::Bf16) else { return };
        if len == copied {
            let rounded: Vec<Bf16> =
                self.blocks[block].slice::<f32>(offset, len).iter().map(|v| Bf16::nearest(*v)).collect();
            self.blocks[to].slice_mut::<Bf16>(start, len).copy_from_slice(&rounded);
        }
    }

    /// Runs a program; after the instruction of each number in `last`, which ascend, `finished` is called with the name beside it.
    fn execute(
        &mut self,
        id: ProgramId,
        mut last: &[(usize, String)],
        finished: &mut Finished<'_>,
    ) -> Result<(), EngineError> {
        self.loaded(id)?;
        let loaded = &mut self.programs[id.number()];
        self.contents.run(id, &loaded.program)?;
        let floats = self.scratch.bytes() / size_of::<f32>();
        let mut lent = Lent { states: &self.states, blocks: &mut self.blocks, touched: BTreeSet::new() };
        for (at, ready) in loaded.ready.iter().enumerate() {
            let start = self.profile.then(Instant::now);
            for &(from, to) in &ready.copies {
                let (input, output) = (&ready.inputs[from], &ready.outputs[to]);
                // SAFETY: both hold as many bytes inside memory of this executor and do not overlap (`Program::verify`).
                unsafe { std::ptr::copy_nonoverlapping(input.start, output.start, output.ty.bytes()) };
            }
            // SAFETY: (1) addresses were computed by `locate_all` for memory that the executor owns and has not moved since;
            // (2) `Program::verify` has checked the overlaps when the program was made; (3) `&mut self`, and what `lent` gives out is
            // not held beyond a call of `finished`.
            let mut args = unsafe { Args::new(&ready.inputs, &ready.outputs, self.scratch.slice_mut(0, floats)) };
            kernels::run(&self.cpu, &ready.op, &mut args);
            if let Some(start) = start {
                loaded.seconds[at] += start.elapsed().as_secs_f64();
            }
            while let Some(((_, name), rest)) = last.split_first().filter(|((of, _), _)| *of == at) {
                finished(name, &mut lent)?;
                last = rest;
            }
        }
        let touched = lent.touched;
        touched.iter().for_each(|name| self.round_copy(name));
        Ok(())
    }

    fn start_of(&self, loaded: &Loaded, buffer: &Buffer) -> *mut u8 {
        match buffer.location {
            Location::Arena(offset) => self.arena.locate(offset, &buffer.ty),
            Location::State(n) => {
                let state = &self.states[loaded.states[n]];
                self.blocks[state.block].locate(state.offset, &buffer.ty)
            }
            Location::Constant(n) => loaded.constants[n].locate(0, &buffer.ty),
        }
    }

    fn locate(&self, loaded: &Loaded, instruction: &Instruction) -> Ready {
        let located = |buffer: &Buffer, taken: bool| Located {
            start: self.start_of(loaded, buffer),
            ty: buffer.ty.clone(),
            len: buffer.ty.len(),
            taken,
        };
        // An in-place input is never read by a kernel: its contents stand in the output, copied there if need be.
        let in_place = instruction.op.in_place();
        let taken = |i: usize| in_place.iter().any(|&(from, _)| from == i);
        Ready {
            op: instruction.op.clone(),
            inputs: instruction.inputs.iter().enumerate().map(|(i, b)| located(b, taken(i))).collect(),
            outputs: instruction.outputs.iter().map(|b| located(b, false)).collect(),
            copies: instruction.copies.clone(),
        }
    }

    /// Computes all addresses again; needed when the arena has moved.
    fn locate_all(&mut self) {
        for at in 0..self.programs.len() {
            let loaded = &self.programs[at];
            let ready = loaded.program.instructions().iter().map(|i| self.locate(loaded, i)).collect();
            self.programs[at].ready = ready;
        }
    }

    fn loaded(&self, id: ProgramId) -> Result<&Loaded, EngineError> {
        self.programs
            .get(id.number())
            .ok_or_else(|| EngineError::Invalid(format!("program {} is of another executor", id.number())))
    }

    fn state(&mut self, name: &str, len: usize) -> Result<&mut [f32], EngineError> {
        let floats = place(&self.states, &mut self.blocks, name)?;
        if floats.len() != len {
            return Err(EngineError::Length { name: name.to_owned(), expected: floats.len(), found: len });
        }
        Ok(floats)
    }
}

/// The floats of a state.
fn place<'a>(states: &[State], blocks: &'a mut [Memory], name: &str) -> Result<&'a mut [f32], EngineError> {
    let floats = || states.iter().filter(|s| s.ty.dtype == DType::F32);
    let Some(State { ty, block, offset, .. }) = floats().find(|s| s.name == name) else {
        let known: Vec<&str> = floats().map(|s| s.name.as_str()).collect();
        return Err(EngineError::Unknown { kind: "state", name: name.to_owned(), known: known.join(", ") });
    };
    Ok(blocks[*block].slice_mut(*offset, ty.len()))
}

/// The states while they are lent.
struct Lent<'a> {
    states: &'a [State],
    blocks: &'a mut [Memory],
    /// Those whose copies may have to be rounded anew.
    touched: BTreeSet<String>,
}

impl States for Lent<'_> {
    fn state(&mut self, name: &str) -> Result<&mut [f32], EngineError> {
        if !self.touched.contains(name) {
            self.touched.insert(name.to_owned());
        }
        place(self.states, self.blocks, name)
    }
}

/// Where an input lies in the arena (`Program` has no other inputs), and its number of elements.
fn in_arena(buffer: &Buffer) -> Result<(usize, usize), EngineError> {
    match buffer.location {
        Location::Arena(offset) => Ok((offset, buffer.ty.len())),
        Location::State(_) | Location::Constant(_) => Err(EngineError::Invalid("an input outside the arena".into())),
    }
}

impl Executor for CpuExecutor {
    fn machine(&self) -> Machine {
        Machine {
            device: "cpu".into(),
            threads: self.threads(),
            isa: self.cpu.isa.name().into(),
            bf16: self.cpu.isa.multiplies_bf16(),
        }
    }

    fn memory(&self) -> executor::Memory {
        let constants = self.programs.iter().flat_map(|p| &p.constants).map(Memory::bytes).sum::<usize>();
        executor::Memory {
            arena: self.arena.bytes(),
            states: constants + self.states.iter().map(|s| s.ty.bytes()).sum::<usize>(),
            scratch: self.scratch.bytes(),
        }
    }

    fn load(&mut self, program: Program) -> Result<ProgramId, EngineError> {
        // What can fail comes first, and the states last of it, so that a failure leaves no trace.
        let mut constants = Vec::with_capacity(program.constants().len());
        for constant in program.constants() {
            let mut memory = Memory::zeroed(size_of_val(&*constant.data), "constants")?;
            memory.slice_mut::<i32>(0, constant.data.len()).copy_from_slice(&constant.data);
            constants.push(memory);
        }
        let grown =
            |now: &Memory, bytes: usize, what| (bytes > now.bytes()).then(|| Memory::zeroed(bytes, what)).transpose();
        let scratch = program.instructions().iter().map(|i| kernels::scratch(i, &self.cpu)).max().unwrap_or(0);
        let scratch = grown(&self.scratch, scratch.saturating_mul(size_of::<f32>()), "working memory")?;
        let arena = grown(&self.arena, program.arena_bytes(), "the arena")?;
        let states = self.state_numbers(program.states())?;
        if let Some(larger) = scratch {
            self.scratch = larger;
        }
        if let Some(larger) = arena {
            self.arena = larger;
        }
        let seconds = vec![0.0; program.instructions().len()];
        self.programs.push(Loaded { program, states, constants, ready: Vec::new(), seconds });
        self.locate_all();
        self.contents.forget();
        Ok(ProgramId::new(self.programs.len() - 1))
    }

    fn program(&self, id: ProgramId) -> Result<&Program, EngineError> {
        Ok(&self.loaded(id)?.program)
    }

    fn stage(&mut self, slot: InputSlot) -> Result<&mut [f32], EngineError> {
        let program = &self.loaded(slot.program())?.program;
        slot.check(program)?;
        let (offset, len) = in_arena(&program.inputs()[slot.number()].buffer)?;
        self.contents.write(slot, &self.programs[slot.program().number()].program);
        Ok(self.arena.slice_mut(offset, len))
    }

    fn write_indices(&mut self, slot: InputSlot<i32>, data: &[i32]) -> Result<(), EngineError> {
        let program = &self.loaded(slot.program())?.program;
        check_index_input(slot, program, data)?;
        let (offset, len) = in_arena(&program.inputs()[slot.number()].buffer)?;
        self.contents.write(slot, &self.programs[slot.program().number()].program);
        self.arena.slice_mut(offset, len).copy_from_slice(data);
        Ok(())
    }

    fn run(&mut self, id: ProgramId) -> Result<(), EngineError> {
        self.execute(id, &[], &mut |_, _| Ok(()))
    }

    fn run_visiting(&mut self, id: ProgramId, prefix: &str, finished: &mut Finished<'_>) -> Result<(), EngineError> {
        let last = self.loaded(id)?.program.last_uses(prefix);
        let last: Vec<(usize, String)> = last.into_iter().map(|(at, name)| (at, name.to_owned())).collect();
        self.execute(id, &last, finished)
    }

    fn with_states(&mut self, body: &mut Borrow<'_>) -> Result<(), EngineError> {
        let mut lent = Lent { states: &self.states, blocks: &mut self.blocks, touched: BTreeSet::new() };
        let result = body(&mut lent);
        let touched = lent.touched;
        touched.iter().for_each(|name| self.round_copy(name));
        result
    }

    fn read(&mut self, slot: OutputSlot, into: &mut [f32]) -> Result<(), EngineError> {
        let loaded = self.loaded(slot.program())?;
        let output = self.contents.read(slot, &loaded.program, into.len())?;
        let len = into.len();
        into.copy_from_slice(match output.buffer.location {
            Location::Arena(offset) => self.arena.slice(offset, len),
            Location::State(n) => {
                let State { block, offset, .. } = &self.states[loaded.states[n]];
                self.blocks[*block].slice(*offset, len)
            }
            Location::Constant(_) => return Err(EngineError::Invalid("an output that is constant".into())),
        });
        Ok(())
    }

    fn write_state(&mut self, name: &str, data: &[f32]) -> Result<(), EngineError> {
        self.state(name, data.len())?.copy_from_slice(data);
        self.round_copy(name);
        Ok(())
    }

    fn read_state(&mut self, name: &str, into: &mut [f32]) -> Result<(), EngineError> {
        into.copy_from_slice(self.state(name, into.len())?);
        Ok(())
    }

    fn visit_states(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        let wanted = |s: &State| s.name.starts_with(prefix) && s.ty.dtype == DType::F32;
        for at in 0..self.states.len() {
            if wanted(&self.states[at]) {
                let State { name, ty, block, offset } = &self.states[at];
                visit(name, self.blocks[*block].slice_mut(*offset, ty.len()))?;
                let name = name.clone();
                self.round_copy(&name);
            }
        }
        Ok(())
    }

    fn set_profile(&mut self, on: bool) {
        self.profile = on;
        self.programs.iter_mut().for_each(|p| p.seconds.fill(0.0));
    }

    fn peaks(&mut self, seconds: f64) -> Option<Peaks> {
        Some(crate::host::gemm::peaks(&self.cpu, seconds))
    }

    fn timings(&mut self, program: ProgramId) -> Result<Vec<Timing>, EngineError> {
        let loaded = self.loaded(program)?;
        let instructions = loaded.program.instructions().iter().zip(&loaded.seconds);
        let timing = |(i, &seconds): (&Instruction, &f64)| Timing {
            op: i.op.name(),
            shape: i.outputs.first().map(|b| b.ty.shape.clone()).unwrap_or_default(),
            flops: i.flops,
            bytes: i.bytes(),
            seconds,
        };
        Ok(instructions.map(timing).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Graph;
    use crate::ops::Residual;

    /// `y` is the sum of two states of so many floats.
    fn sum(a: &str, b: &str, len: usize) -> Program {
        let mut graph = Graph::new();
        let inputs = [a, b].map(|name| graph.state(name, &[1, len]));
        let y = graph.apply1(Residual::default(), &inputs).unwrap();
        graph.output("y", y);
        Program::compile(&graph).unwrap()
    }

    #[test]
    fn programs_share_states_and_others_lie_apart() {
        let mut executor = CpuExecutor::new(1).unwrap();
        let first = executor.load(sum("a", "b", 7)).unwrap();
        let second = executor.load(sum("b", "c", 7)).unwrap();
        for (name, value) in [("a", 1.0), ("b", 20.0), ("c", 300.0)] {
            executor.write_state(name, &[value; 7]).unwrap();
        }
        let refused = executor.load(sum("c", "d", 8)).unwrap_err();
        assert!(matches!(refused, EngineError::StateShape { .. }), "{refused}");
        let third = executor.load(sum("c", "e", 7)).unwrap();
        let mut found = [0.0; 7];
        for (program, value) in [(first, 21.0), (second, 320.0), (third, 300.0)] {
            let y = executor.output(program, "y").unwrap();
            executor.run(program).unwrap();
            executor.read(y, &mut found).unwrap();
            assert_eq!(found, [value; 7]);
        }
        executor.read_state("b", &mut found).unwrap();
        assert_eq!(found, [20.0; 7]);
        assert!(executor.write_state("b", &[0.0; 8]).is_err() && executor.read_state("d", &mut found).is_err());
    }

    /// `y` is the sum of two inputs.
    fn sum_of_inputs(a: &str, b: &str) -> Program {
        let mut graph = Graph::new();
        let inputs = [a, b].map(|name| graph.input(name, TensorType::f32([3])));
        let y = graph.apply1(Residual::default(), &inputs).unwrap();
        graph.output("y", y);
        Program::compile(&graph).unwrap()
    }

    #[test]
    fn what_the_arena_no_longer_holds_is_neither_run_on_nor_read() {
        let mut executor = CpuExecutor::new(1).unwrap();
        let [first, second] = [("a", "b"), ("c", "d")].map(|(a, b)| executor.load(sum_of_inputs(a, b)).unwrap());
        let slot = |executor: &CpuExecutor, program, name| executor.input(program, name).unwrap();
        let (a, b, c) = (slot(&executor, first, "a"), slot(&executor, first, "b"), slot(&executor, second, "c"));
        let y = executor.output(first, "y").unwrap();
        let write = |executor: &mut CpuExecutor, slots: &[InputSlot]| {
            slots.iter().for_each(|&slot| executor.write(slot, &[1.0; 3]).unwrap());
        };
        let runs = |executor: &mut CpuExecutor| executor.run(first).map_err(|e| e.to_string());
        let missing = |name: &str| Err(format!("input `{name}` was not written since the last run"));
        write(&mut executor, &[a]);
        assert_eq!(runs(&mut executor), missing("b"));
        write(&mut executor, &[a, b]);
        assert_eq!(runs(&mut executor), Ok(()));
        assert_eq!(runs(&mut executor), missing("a"));
        let mut found = [0.0; 3];
        executor.read(y, &mut found).unwrap();
        assert_eq!(found, [2.0; 3]);
        write(&mut executor, &[a, b, c]);
        assert_eq!(runs(&mut executor), missing("a"));
        assert!(matches!(executor.read(y, &mut found), Err(EngineError::Overwritten { .. })));
        write(&mut executor, &[a, b]);
        runs(&mut executor).unwrap();
        executor.load(sum_of_inputs("e", "f")).unwrap();
        assert!(matches!(executor.read(y, &mut found), Err(EngineError::Overwritten { .. })));
        write(&mut executor, &[a, b]);
        executor.load(sum_of_inputs("g", "h")).unwrap();
        assert_eq!(runs(&mut executor), missing("a"));
    }

    #[test]
    fn slots_are_typed_and_indices_stay_in_bounds() {
        let mut graph = Graph::new();
        let (x, index) = (graph.state("x", &[4, 2]), graph.input("index", TensorType::i32([2])));
        let y = graph.apply1(crate::ops::GatherRows, &[x, index]).unwrap();
        graph.output("y", y);
        let mut executor = CpuExecutor::new(1).unwrap();
        let program = executor.load(Program::compile(&graph).unwrap()).unwrap();
        let says = |e: EngineError| e.to_string();
        assert_eq!(executor.input(program, "index").map_err(says), Err("`index` holds i32, f32 was given".into()));
        assert!(executor.input(program, "z").map_err(says).unwrap_err().ends_with("named `z`; there are: index"));
        let index = executor.index_input(program, "index").unwrap();
        for (given, wrong) in
            [(&[0, 4][..], "index 4 in `index` is not in 0..4"), (&[-1, 0], "index -1"), (&[0], "1 were")]
        {
            assert!(executor.write_indices(index, given).map_err(says).unwrap_err().contains(wrong));
        }
        assert!(matches!(executor.run(program), Err(EngineError::NotWritten { .. })));
        executor.write_indices(index, &[3, 0]).unwrap();
        executor.run(program).unwrap();
    }

    #[test]
    fn states_are_named_when_a_run_is_done_with_them_and_can_be_changed_then() {
        // y = a + b, then z = a + c: b is done with first.
        let mut graph = Graph::new();
        let [a, b, c] = ["s.a", "s.b", "s.c"].map(|name| graph.state(name, &[1, 3]));
        let y = graph.apply1(Residual::default(), &[a, b]).unwrap();
        let z = graph.apply1(Residual::default(), &[a, c]).unwrap();
        graph.output("y", y);
        graph.output("z", z);
        let mut executor = CpuExecutor::new(1).unwrap();
        let program = executor.load(Program::compile(&graph).unwrap()).unwrap();
        for (name, value) in [("s.a", 1.0), ("s.b", 20.0), ("s.c", 300.0)] {
            executor.write_state(name, &[value; 3]).unwrap();
        }
        let mut seen = Vec::new();
        executor
            .run_visiting(program, "s.", &mut |name, states| {
                seen.push(name.to_owned());
                states.state(name)?.fill(0.5);
                assert!(matches!(states.state("x"), Err(EngineError::Unknown { .. })));
                // What is changed is changed at once.
                if name == "s.b" { states.state("s.c").map(|c| c.fill(400.0)) } else { Ok(()) }
            })
            .unwrap();
        assert_eq!(seen, ["s.b", "s.a", "s.c"]);
        let (y, z) = (executor.output(program, "y").unwrap(), executor.output(program, "z").unwrap());
        let mut found = [0.0; 3];
        for (slot, value) in [(y, 21.0), (z, 401.0)] {
            executor.read(slot, &mut found).unwrap();
            assert_eq!(found, [value; 3]);
        }
        executor.read_state("s.c", &mut found).unwrap();
        assert_eq!(found, [0.5; 3]);
    }

    #[test]
    fn states_are_visited_by_prefix_in_the_order_in_which_they_came() {
        let mut executor = CpuExecutor::new(1).unwrap();
        executor.load(sum("grad.b", "x", 3)).unwrap();
        executor.load(sum("grad.a", "x", 3)).unwrap();
        let mut seen = Vec::new();
        executor
            .visit_states("grad.", &mut |name, floats| {
                seen.push(name.to_owned());
                floats.fill(seen.len() as f32);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, ["grad.b", "grad.a"]);
        let mut found = [0.0; 3];
        executor.read_state("grad.a", &mut found).unwrap();
        assert_eq!(found, [2.0; 3]);
    }
}
