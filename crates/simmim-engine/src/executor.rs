//! What runs programs. Nothing above this interface names a device's types.
//!
//! A step of training looks the same on every device:
//!
//! ```text
//! load the programs once, resolve their inputs and outputs to slots once
//! for each part of a step:  write or stage the inputs, run        (neither waits for the device)
//! once a step:              run the update, read loss and norm    (reading waits)
//! ```

use crate::error::EngineError;
use crate::graph::{DType, Element};
use crate::plan::{Output, Program};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// Names a program loaded into an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramId(usize);

impl ProgramId {
    /// For executors: names the `number`-th program that was loaded.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self(number)
    }

    /// Its number, counted from 0 in the order of loading.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }
}

/// An input of a loaded program, found by its name once ([`Executor::input`], [`Executor::index_input`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InputSlot<T: Element = f32> {
    program: ProgramId,
    number: usize,
    element: PhantomData<T>,
}

impl<T: Element> InputSlot<T> {
    fn find(program: ProgramId, among: &Program, name: &str) -> Result<Self, EngineError> {
        let names = || among.inputs().iter().map(|i| i.name.as_str());
        let number = names().position(|n| n == name).ok_or_else(|| unknown("input", name, names()))?;
        let slot = Self { program, number, element: PhantomData };
        slot.check(among)?;
        Ok(slot)
    }

    /// The program.
    #[must_use]
    pub fn program(self) -> ProgramId {
        self.program
    }

    /// The number of the input among [`Program::inputs`].
    #[must_use]
    pub fn number(self) -> usize {
        self.number
    }

    /// For executors: that the slot is one of this program.
    ///
    /// # Errors
    /// [`EngineError::ValueType`], or [`EngineError::Invalid`] for the slot of another executor.
    pub fn check(self, program: &Program) -> Result<(), EngineError> {
        let Some(input) = program.inputs().get(self.number) else {
            return Err(EngineError::Invalid(format!("the program has no input {}", self.number)));
        };
        let expected = input.buffer.ty.dtype;
        if expected == T::DTYPE {
            return Ok(());
        }
        Err(EngineError::ValueType { name: input.name.clone(), expected, found: T::DTYPE })
    }
}

/// An output of a loaded program, found by its name once ([`Executor::output`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OutputSlot {
    program: ProgramId,
    number: usize,
}

impl OutputSlot {
    /// The program.
    #[must_use]
    pub fn program(self) -> ProgramId {
        self.program
    }

    /// The number of the output among [`Program::outputs`].
    #[must_use]
    pub fn number(self) -> usize {
        self.number
    }
}

fn unknown<'a>(kind: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> EngineError {
    EngineError::Unknown { kind, name: name.to_owned(), known: known.collect::<Vec<_>>().join(", ") }
}

/// Memory that an executor holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// The arena, shared by all loaded programs (one runs at a time).
    pub arena: usize,
    /// Parameters, gradients and moments.
    pub states: usize,
    /// Working memory of the kernels.
    pub scratch: usize,
}

/// What an executor computes on. Last bits of results depend on it, so checkpoints name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The device: `cpu`, or the name that a card gives itself.
    pub device: String,
    /// Threads of the host that compute; 1 where the device does.
    pub threads: usize,
    /// Instruction set of the kernels: `avx2`, `avx512`, `avx512bf16`, `amx`, `portable`, or a card's architecture such as `sm_90`.
    pub isa: String,
    /// Whether it has instructions that multiply bfloat16, so that mixed precision is faster than floats.
    pub bf16: bool,
}

impl Machine {
    /// Whether results have the bits of those on instruction set `isa`. Products of bfloat16 alone tell `avx512bf16` from `avx512`.
    #[must_use]
    pub fn gives_bits_of(&self, isa: &str, in_bf16: bool) -> bool {
        let kernels = |isa: &str| if in_bf16 { isa.to_owned() } else { isa.replace("avx512bf16", "avx512") };
        kernels(isa) == kernels(&self.isa)
    }
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

/// Floating point operations a second of the whole device where the caches hold every operand. A multiplication and an addition
/// count as two, whatever computes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// On vectors, by fused multiply-add where there is one.
    pub vectors: f64,
    /// On tile registers or tensor cores, where they are in use.
    pub tiles: Option<f64>,
    /// Of bfloat16, where there are instructions for it.
    pub bf16: Option<f64>,
}

impl Peaks {
    /// The better of both, each by itself.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let better = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.max(b)).or(a).or(b);
        Self {
            vectors: self.vectors.max(other.vectors),
            tiles: better(self.tiles, other.tiles),
            bf16: better(self.bf16, other.bf16),
        }
    }
}

/// What is done with each state that [`Executor::visit_states`] finds: it is given the state's name and its floats.
pub type Visit<'a> = dyn FnMut(&str, &mut [f32]) -> Result<(), EngineError> + 'a;

/// The states of an executor, lent ([`Executor::with_states`], [`Executor::run_visiting`]).
pub trait States {
    /// The floats of a state.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], faults of the device.
    fn state(&mut self, name: &str) -> Result<&mut [f32], EngineError>;
}

/// What is done with the states while they are lent.
pub type Borrow<'a> = dyn FnMut(&mut dyn States) -> Result<(), EngineError> + 'a;

/// What is done with each state that a run is done with: it is given the state's name and the states.
pub type Finished<'a> = dyn FnMut(&str, &mut dyn States) -> Result<(), EngineError> + 'a;

/// States that were read from a device, to be written there again.
struct Fetched<'a, E: ?Sized> {
    executor: &'a mut E,
    lens: BTreeMap<String, usize>,
    held: BTreeMap<String, Vec<f32>>,
}

impl<'a, E: Executor + ?Sized> Fetched<'a, E> {
    fn of(executor: &'a mut E) -> Result<Self, EngineError> {
        let mut lens = BTreeMap::new();
        for program in (0..).map_while(|number| executor.program(ProgramId(number)).ok()) {
            lens.extend(program.states().iter().map(|state| (state.name.clone(), state.ty.len())));
        }
        Ok(Self { executor, lens, held: BTreeMap::new() })
    }

    fn write_back(self) -> Result<(), EngineError> {
        self.held.iter().try_for_each(|(name, floats)| self.executor.write_state(name, floats))
    }
}

impl<E: Executor + ?Sized> States for Fetched<'_, E> {
    fn state(&mut self, name: &str) -> Result<&mut [f32], EngineError> {
        if !self.held.contains_key(name) {
            let names = || self.lens.keys().map(String::as_str);
            let len = *self.lens.get(name).ok_or_else(|| unknown("state", name, names()))?;
            let mut floats = vec![0.0; len];
            self.executor.read_state(name, &mut floats)?;
            self.held.insert(name.to_owned(), floats);
        }
        Ok(self.held.entry(name.to_owned()).or_default())
    }
}

/// Runs programs that share states by name.
///
/// All programs share one arena. An input holds what was written to it until any program runs or an input of another program is
/// written; an output is readable until then, and until a program is loaded.
pub trait Executor: Send {
    /// What it computes on.
    fn machine(&self) -> Machine;

    /// Memory held now.
    fn memory(&self) -> Memory;

    /// Loads a program. Its states are created as zeros, copies in bfloat16 as those of their state ([`crate::mixed`]), unless a program
    /// loaded before has them. The arena may move: what was
    /// written to inputs is forgotten and outputs of earlier runs can no longer be read. States stay as they are.
    ///
    /// # Errors
    /// [`EngineError::StateShape`] where a state exists with another shape, [`EngineError::OutOfMemory`]; the executor is as it
    /// was then.
    fn load(&mut self, program: Program) -> Result<ProgramId, EngineError>;

    /// A loaded program.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for the id of another executor.
    fn program(&self, id: ProgramId) -> Result<&Program, EngineError>;

    /// Finds a float input.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::ValueType`].
    fn input(&self, program: ProgramId, name: &str) -> Result<InputSlot, EngineError> {
        InputSlot::find(program, self.program(program)?, name)
    }

    /// Finds an index input.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::ValueType`].
    fn index_input(&self, program: ProgramId, name: &str) -> Result<InputSlot<i32>, EngineError> {
        InputSlot::find(program, self.program(program)?, name)
    }

    /// Finds an output.
    ///
    /// # Errors
    /// [`EngineError::Unknown`].
    fn output(&self, program: ProgramId, name: &str) -> Result<OutputSlot, EngineError> {
        let names = || self.program(program).map(|p| p.outputs().iter().map(|o| o.name.as_str()));
        match names()?.position(|n| n == name) {
            Some(number) => Ok(OutputSlot { program, number }),
            None => Err(unknown("output", name, names()?)),
        }
    }

    /// Lends the memory of the host from which a float input is taken at the next run, to be filled whole; what it holds before is
    /// undefined. A device gives memory from which it copies without the processor's help.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for the slot of another executor.
    fn stage(&mut self, slot: InputSlot) -> Result<&mut [f32], EngineError>;

    /// Writes a float input.
    ///
    /// # Errors
    /// [`EngineError::Length`], and those of [`Executor::stage`].
    fn write(&mut self, slot: InputSlot, data: &[f32]) -> Result<(), EngineError> {
        let program = self.program(slot.program)?;
        slot.check(program)?;
        let input = &program.inputs()[slot.number];
        let expected = input.buffer.ty.len();
        if data.len() != expected {
            return Err(EngineError::Length { name: input.name.clone(), expected, found: data.len() });
        }
        self.stage(slot)?.copy_from_slice(data);
        Ok(())
    }

    /// Writes an index input.
    ///
    /// # Errors
    /// [`EngineError::Length`], [`EngineError::Index`] for one that is out of bounds; nothing is written then.
    fn write_indices(&mut self, slot: InputSlot<i32>, data: &[i32]) -> Result<(), EngineError>;

    /// Runs a program, all inputs of which were written since the last run of any program. It may return before the device is
    /// done; what goes wrong there is then told by a later call.
    ///
    /// # Errors
    /// [`EngineError::NotWritten`], faults of the device.
    fn run(&mut self, program: ProgramId) -> Result<(), EngineError>;

    /// Waits until the device has done all that it was given.
    ///
    /// # Errors
    /// Faults of the device.
    fn wait(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Reads an output of the last run, and waits for it.
    ///
    /// # Errors
    /// [`EngineError::Overwritten`] where that is gone, [`EngineError::Length`], faults of the device.
    fn read(&mut self, slot: OutputSlot, into: &mut [f32]) -> Result<(), EngineError>;

    /// Overwrites a state of floats, and its bfloat16 copy where there is one ([`crate::mixed`]).
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`], faults of the device.
    fn write_state(&mut self, name: &str, data: &[f32]) -> Result<(), EngineError>;

    /// Reads a state, and waits for it.
    ///
    /// # Errors
    /// [`EngineError::Unknown`], [`EngineError::Length`], faults of the device.
    fn read_state(&mut self, name: &str, into: &mut [f32]) -> Result<(), EngineError>;

    /// Gives the floats of every state whose name begins with `prefix` to `visit`, which may change them, in the order in which the
    /// states came: the same on every rank that loaded the same programs. So ranks sum their gradients.
    ///
    /// # Errors
    /// Those of `visit`, faults of the device.
    fn visit_states(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), EngineError>;

    /// Lends the states. What was changed is written when `body` returns.
    ///
    /// # Errors
    /// Those of `body`, faults of the device.
    fn with_states(&mut self, body: &mut Borrow<'_>) -> Result<(), EngineError> {
        let mut states = Fetched::of(self)?;
        body(&mut states)?;
        states.write_back()
    }

    /// Runs a program as [`Executor::run`] does, and names each of its states of floats that begins with `prefix` to `finished` as soon as the
    /// run is done with it, the same ones in the same order in every run: so ranks send gradients while the backward of earlier layers
    /// runs. An executor that cannot say when runs first, and waits.
    ///
    /// # Errors
    /// As [`Executor::run`], those of `finished`.
    fn run_visiting(
        &mut self,
        program: ProgramId,
        prefix: &str,
        finished: &mut Finished<'_>,
    ) -> Result<(), EngineError> {
        self.run(program)?;
        let names: Vec<String> =
            self.program(program)?.last_uses(prefix).into_iter().map(|(_, name)| name.to_owned()).collect();
        self.with_states(&mut |states| names.iter().try_for_each(|name| finished(name, states)))
    }

    /// Turns the timing of instructions on or off and forgets what was measured.
    fn set_profile(&mut self, on: bool);

    /// Time spent in each instruction since profiling was turned on.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for the id of another executor, faults of the device.
    fn timings(&mut self, program: ProgramId) -> Result<Vec<Timing>, EngineError>;

    /// Measures for about so many seconds what the device reaches at most; none where it is not known.
    fn peaks(&mut self, _seconds: f64) -> Option<Peaks> {
        None
    }
}

/// For executors: what the arena holds that programs share. A run, a write to another program's input and a load overwrite it. An
/// input that was not written is refused: it would hold another program's values, and where it should hold indices these would
/// lead anywhere. So is an output that is gone.
#[derive(Debug, Default)]
pub struct ArenaContents {
    /// The program whose inputs are being written.
    writing: Option<ProgramId>,
    /// Which of them were.
    written: Vec<bool>,
    /// The program whose outputs can be read.
    ran: Option<ProgramId>,
}

impl ArenaContents {
    /// Notes that an input of a program is written.
    pub fn write<T: Element>(&mut self, slot: InputSlot<T>, program: &Program) {
        if self.writing != Some(slot.program) {
            self.writing = Some(slot.program);
            self.written.clear();
            self.written.resize(program.inputs().len(), false);
        }
        self.written[slot.number] = true;
        self.ran = None;
    }

    /// Notes that the arena may have moved.
    pub fn forget(&mut self) {
        (self.writing, self.ran) = (None, None);
    }

    /// Notes that a program runs.
    ///
    /// # Errors
    /// [`EngineError::NotWritten`] with the first input that was not written.
    pub fn run(&mut self, id: ProgramId, program: &Program) -> Result<(), EngineError> {
        let here = self.writing == Some(id);
        let missing = program.inputs().iter().enumerate().find(|&(number, _)| !(here && self.written[number]));
        if let Some((_, input)) = missing {
            return Err(EngineError::NotWritten { input: input.name.clone() });
        }
        (self.writing, self.ran) = (None, Some(id));
        Ok(())
    }

    /// Checks that an output can be read, and gives it.
    ///
    /// # Errors
    /// [`EngineError::Overwritten`], [`EngineError::Length`], [`EngineError::Invalid`] for the slot of another executor.
    pub fn read<'p>(&self, slot: OutputSlot, program: &'p Program, len: usize) -> Result<&'p Output, EngineError> {
        let Some(output) = program.outputs().get(slot.number) else {
            return Err(EngineError::Invalid(format!("the program has no output {}", slot.number)));
        };
        if self.ran != Some(slot.program) {
            return Err(EngineError::Overwritten { output: output.name.clone() });
        }
        let expected = output.buffer.ty.len();
        if len == expected {
            return Ok(output);
        }
        Err(EngineError::Length { name: output.name.clone(), expected, found: len })
    }
}

/// For executors: that indices fit the input they are written to.
///
/// # Errors
/// As [`Executor::write_indices`].
pub fn check_index_input(slot: InputSlot<i32>, program: &Program, data: &[i32]) -> Result<(), EngineError> {
    slot.check(program)?;
    let input = &program.inputs()[slot.number];
    debug_assert_eq!(input.buffer.ty.dtype, DType::I32);
    crate::graph::check_indices(&input.name, data, input.buffer.ty.len(), input.bound.unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_differ_between_instruction_sets_whose_kernels_do() {
        let on = |isa: &str| Machine { device: "cpu".into(), threads: 1, isa: isa.into(), bf16: false };
        for (here, before, in_bf16, same) in [
            ("avx512bf16", "avx512", false, true),
            ("avx512", "avx512bf16", false, true),
            ("avx512bf16", "avx512", true, false),
            ("avx512bf16", "avx512bf16", true, true),
            ("avx2", "avx512", false, false),
            ("amx", "avx512bf16", false, false),
        ] {
            assert_eq!(on(here).gives_bits_of(before, in_bf16), same, "{here}, {before}, {in_bf16}");
        }
    }
}
