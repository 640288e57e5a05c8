//! Runs programs on the processor.

#![allow(unsafe_code, reason = "builds the kernels' views of the arena; the plan's verification is the argument")]

use super::arena::{Args, LINE, Located, Memory};
use super::{Cpu, Isa, Pool, kernels};
use crate::error::EngineError;
use crate::executor::{Executor, Memory as Held, ProgramId};
use crate::graph::DType;
use crate::ops::{Op, Operation};
use crate::plan::{Buffer, Instruction, Place, Program};
use std::ops::Range;
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
    shape: Vec<usize>,
    /// Number of its block, and where in it the floats lie.
    block: usize,
    floats: Range<usize>,
}

/// Time spent in one instruction of a profiled program.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Name of the operation.
    pub op: &'static str,
    /// Shape of its first output.
    pub shape: Vec<usize>,
    /// Floating point operations of one run.
    pub flops: u64,
    /// Bytes of its inputs and outputs.
    pub bytes: usize,
    /// Seconds since profiling began.
    pub seconds: f64,
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

    /// Floating point operations a second that the threads reach on operands that are near; see [`super::gemm::peaks`].
    #[must_use]
    pub fn peaks(&self, seconds: f64) -> super::gemm::Peaks {
        super::gemm::peaks(&self.cpu, seconds)
    }

    /// Turns the timing of instructions on or off and forgets what was measured.
    pub fn set_profile(&mut self, on: bool) {
        self.profile = on;
        self.programs.iter_mut().for_each(|p| p.seconds.fill(0.0));
    }

    /// Time spent in each instruction since profiling was turned on.
    #[must_use]
    pub fn timings(&self, program: ProgramId) -> Vec<Timing> {
        let loaded = &self.programs[program.0];
        let instructions = loaded.program.instructions.iter().zip(&loaded.seconds);
        instructions
            .map(|(i, &seconds)| Timing {
                op: i.op.name(),
                shape: i.outputs.first().map(|b| b.shape.clone()).unwrap_or_default(),
                flops: i.flops,
                bytes: 4 * i.inputs.iter().chain(&i.outputs).map(Buffer::len).sum::<usize>(),
                seconds,
            })
            .collect()
    }

    /// The number of each of a program's states; those that are not known yet start as zeros.
    fn state_numbers(&mut self, wanted: &[(String, Vec<usize>)]) -> Result<Vec<usize>, EngineError> {
        let (mut new, mut len) = (Vec::new(), 0);
        let mut numbers = Vec::with_capacity(wanted.len());
        for (name, shape) in wanted {
            if let Some(at) = self.states.iter().position(|s| s.name == *name) {
                let expected = &self.states[at].shape;
                if expected != shape {
                    let (expected, found) = (expected.clone(), shape.clone());
                    return Err(EngineError::StateShape { name: name.clone(), expected, found });
                }
                numbers.push(at);
            } else {
                numbers.push(self.states.len() + new.len());
                let too_large = EngineError::OutOfMemory { what: "the states", bytes: usize::MAX };
                let size = shape.iter().try_fold(1usize, |size, &d| size.checked_mul(d));
                let Some(end) = size.and_then(|size| size.checked_add(len)) else { return Err(too_large) };
                let floats = len..end;
                let Some(next) = end.checked_next_multiple_of(LINE) else { return Err(too_large) };
                len = next;
                new.push(State { name: name.clone(), shape: shape.clone(), block: self.blocks.len(), floats });
            }
        }
        if !new.is_empty() {
            self.blocks.push(Memory::zeroed(len, "the states")?);
            self.states.extend(new);
        }
        Ok(numbers)
    }

    fn start_of(&self, loaded: &Loaded, buffer: &Buffer) -> *mut f32 {
        match buffer.place {
            Place::Arena(offset) => self.arena.at(offset),
            Place::State(n) => {
                let state = &self.states[loaded.states[n]];
                self.blocks[state.block].at(state.floats.start)
            }
            Place::Constant(n) => loaded.constants[n].at(0),
        }
    }

    fn locate(&self, loaded: &Loaded, instruction: &Instruction) -> Ready {
        let located = |buffer: &Buffer, taken: bool| Located {
            start: self.start_of(loaded, buffer),
            shape: buffer.shape.clone(),
            len: buffer.len(),
            dtype: buffer.dtype,
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
            let ready = loaded.program.instructions.iter().map(|i| self.locate(loaded, i)).collect();
            self.programs[at].ready = ready;
        }
    }

    fn arena_slice(&mut self, buffer: &Buffer) -> Result<&mut [f32], EngineError> {
        match buffer.place {
            Place::Arena(offset) => Ok(&mut self.arena.floats_mut()[offset..offset + buffer.len()]),
            Place::State(_) | Place::Constant(_) => Err(EngineError::Invalid("an input outside the arena".into())),
        }
    }

    fn input(&self, program: ProgramId, name: &str, len: usize, dtype: DType) -> Result<Buffer, EngineError> {
        let program = &self.programs[program.0].program;
        let buffer = find("input", &program.inputs, name)?;
        if buffer.len() != len || buffer.dtype != dtype {
            return Err(EngineError::Length { name: name.to_owned(), expected: buffer.len(), found: len });
        }
        Ok(buffer.clone())
    }

    fn state(&mut self, name: &str, len: usize) -> Result<&mut [f32], EngineError> {
        let Some(at) = self.states.iter().position(|s| s.name == name) else {
            let known: Vec<&str> = self.states.iter().map(|s| s.name.as_str()).collect();
            return Err(EngineError::Unknown { kind: "state", name: name.to_owned(), known: known.join(", ") });
        };
        let State { block, floats, .. } = &self.states[at];
        if floats.len() != len {
            return Err(EngineError::Length { name: name.to_owned(), expected: floats.len(), found: len });
        }
        Ok(&mut self.blocks[*block].floats_mut()[floats.clone()])
    }
}

fn find<'a>(kind: &'static str, among: &'a [(String, Buffer)], name: &str) -> Result<&'a Buffer, EngineError> {
    among.iter().find(|(n, _)| n == name).map(|(_, b)| b).ok_or_else(|| {
        let known: Vec<&str> = among.iter().map(|(n, _)| n.as_str()).collect();
        EngineError::Unknown { kind, name: name.to_owned(), known: known.join(", ") }
    })
}

impl Executor for CpuExecutor {
    fn load(&mut self, program: Program) -> Result<ProgramId, EngineError> {
        program.verify()?;
        let states = self.state_numbers(&program.states)?;
        let mut constants = Vec::new();
        for data in &program.constants {
            let mut memory = Memory::zeroed(data.len(), "constants")?;
            bytemuck::cast_slice_mut::<f32, i32>(memory.floats_mut()).copy_from_slice(data);
            constants.push(memory);
        }
        let scratch = program.instructions.iter().map(|i| kernels::scratch(i, &self.cpu)).max().unwrap_or(0);
        if scratch > self.scratch.len() {
            self.scratch = Memory::zeroed(scratch, "working memory")?;
        }
        if program.arena_len > self.arena.len() {
            self.arena = Memory::zeroed(program.arena_len, "the arena")?;
        }
        let seconds = vec![0.0; program.instructions.len()];
        self.programs.push(Loaded { program, states, constants, ready: Vec::new(), seconds });
        self.locate_all();
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn write(&mut self, program: ProgramId, input: &str, data: &[f32]) -> Result<(), EngineError> {
        let buffer = self.input(program, input, data.len(), DType::F32)?;
        self.arena_slice(&buffer)?.copy_from_slice(data);
        Ok(())
    }

    fn write_indices(&mut self, program: ProgramId, input: &str, data: &[i32]) -> Result<(), EngineError> {
        let buffer = self.input(program, input, data.len(), DType::I32)?;
        if let Some(&bound) = self.programs[program.0].program.index_bounds.get(input)
            && let Some(bad) = data.iter().find(|&&i| i < 0 || i as usize >= bound)
        {
            return Err(EngineError::Invalid(format!("index {bad} in `{input}`, expected 0..{bound}")));
        }
        bytemuck::cast_slice_mut::<f32, i32>(self.arena_slice(&buffer)?).copy_from_slice(data);
        Ok(())
    }

    fn run(&mut self, program: ProgramId) -> Result<(), EngineError> {
        let loaded = &mut self.programs[program.0];
        for (at, ready) in loaded.ready.iter().enumerate() {
            let start = self.profile.then(Instant::now);
            for &(from, to) in &ready.copies {
                let (input, output) = (&ready.inputs[from], &ready.outputs[to]);
                // SAFETY: both hold `len` elements inside memory of this executor and do not overlap (`Program::verify`).
                unsafe { std::ptr::copy_nonoverlapping(input.start, output.start, output.len) };
            }
            // SAFETY: (1) addresses were computed by `locate_all` for memory that the executor owns and has not moved since;
            // (2) `Program::verify` has checked the overlaps when the program was loaded; (3) `&mut self`.
            let mut args = unsafe { Args::new(&ready.inputs, &ready.outputs, self.scratch.floats_mut()) };
            kernels::run(&self.cpu, &ready.op, &mut args);
            if let Some(start) = start {
                loaded.seconds[at] += start.elapsed().as_secs_f64();
            }
        }
        Ok(())
    }

    fn read(&mut self, program: ProgramId, output: &str, into: &mut [f32]) -> Result<(), EngineError> {
        let loaded = &self.programs[program.0];
        let buffer = find("output", &loaded.program.outputs, output)?;
        if buffer.len() != into.len() {
            return Err(EngineError::Length { name: output.to_owned(), expected: buffer.len(), found: into.len() });
        }
        match buffer.place {
            Place::Arena(offset) => into.copy_from_slice(&self.arena.floats()[offset..offset + buffer.len()]),
            Place::State(n) => {
                let State { block, floats, .. } = &self.states[loaded.states[n]];
                into.copy_from_slice(&self.blocks[*block].floats()[floats.clone()]);
            }
            Place::Constant(_) => return Err(EngineError::Invalid("a constant as an output".into())),
        }
        Ok(())
    }

    fn write_state(&mut self, name: &str, data: &[f32]) -> Result<(), EngineError> {
        self.state(name, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn read_state(&mut self, name: &str, into: &mut [f32]) -> Result<(), EngineError> {
        into.copy_from_slice(self.state(name, into.len())?);
        Ok(())
    }

    fn memory(&self) -> Held {
        let constants = self.programs.iter().flat_map(|p| &p.constants).map(Memory::len).sum::<usize>();
        let states = self.states.iter().map(|s| s.floats.len()).sum::<usize>();
        Held { arena: 4 * self.arena.len(), states: 4 * (states + constants), scratch: 4 * self.scratch.len() }
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
            executor.run(program).unwrap();
            executor.read(program, "y", &mut found).unwrap();
            assert_eq!(found, [value; 7]);
        }
        executor.read_state("b", &mut found).unwrap();
        assert_eq!(found, [20.0; 7]);
        assert!(executor.write_state("b", &[0.0; 8]).is_err() && executor.read_state("d", &mut found).is_err());
    }
}
