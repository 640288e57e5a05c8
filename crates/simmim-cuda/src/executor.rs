//! Runs programs on a GPU.

use crate::driver::{Captured, DeviceMemory, Gpu};
use crate::error::CudaError;
use crate::staging::Staging;
use crate::step::{Address, Step};
use crate::steps::{Bases, Builder};
use simmim_engine::executor::{
    ArenaContents, Executor, InputSlot, Machine, Memory, OutputSlot, ProgramId, Timing, Visit, check_index_input,
};
use simmim_engine::graph::Bf16;
use simmim_engine::mixed::COPY_PREFIX;
use simmim_engine::plan::{self, ALIGNMENT, Buffer, Location, Program};
use simmim_engine::{DType, EngineError, TensorType};

/// Steps, each with the number of its instruction.
type Numbered = Vec<(usize, Step)>;

/// A program with its place on the device.
struct Loaded {
    program: Program,
    /// Number among the executor's states of each state of the program.
    states: Vec<usize>,
    /// Constants, one after another, each aligned as the arena is; then the tables of operations over many tensors.
    fixed: DeviceMemory,
    /// Where each constant begins there, and where the tables do.
    constants: Vec<usize>,
    tables: usize,
    steps: Numbered,
    staging: Staging,
    /// The steps as a graph, from the second run on: the first one lets libraries prepare what they may not while capturing.
    graph: Option<Captured>,
    ran: bool,
    seconds: Vec<f64>,
}

struct State {
    name: String,
    ty: TensorType,
    /// Number of its block, and the byte of it at which the state begins.
    block: usize,
    offset: usize,
}

/// A GPU as an [`Executor`].
///
/// Programs run on one stream, each as a captured graph. Inputs are staged in pinned memory and travel on a second stream while the
/// program before still runs; only reading waits.
pub struct CudaExecutor {
    programs: Vec<Loaded>,
    states: Vec<State>,
    /// The states that one program brought, together.
    blocks: Vec<DeviceMemory>,
    arena: DeviceMemory,
    scratch: DeviceMemory,
    contents: ArenaContents,
    profile: bool,
    /// Dropped last.
    gpu: Gpu,
}

impl std::fmt::Debug for CudaExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaExecutor").field("machine", &self.machine()).field("memory", &self.memory()).finish()
    }
}

/// What computes products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// cuBLASLt where it is found, else own kernels.
    #[default]
    Library,
    /// Own kernels.
    Own,
}

impl CudaExecutor {
    /// Opens the device of that number.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoSuchDevice`], [`CudaError::OldDevice`], faults of the driver.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Self::with_products(ordinal, Products::default())
    }

    /// Opens a device and says what computes products.
    ///
    /// # Errors
    /// As [`CudaExecutor::open`].
    pub fn with_products(ordinal: usize, products: Products) -> Result<Self, CudaError> {
        let gpu = Gpu::open(ordinal, products == Products::Library)?;
        let (arena, scratch) = (gpu.allocate(0, "the arena")?, gpu.allocate(0, "working memory")?);
        let contents = ArenaContents::default();
        Ok(Self {
            programs: Vec::new(),
            states: Vec::new(),
            blocks: Vec::new(),
            arena,
            scratch,
            contents,
            profile: false,
            gpu,
        })
    }

    /// Free and total memory of the device, in bytes.
    ///
    /// # Errors
    /// Faults of the driver.
    pub fn device_memory(&self) -> Result<(usize, usize), CudaError> {
        self.gpu.memory()
    }

    /// Multiprocessors of the device.
    #[must_use]
    pub fn multiprocessors(&self) -> usize {
        self.gpu.multiprocessors()
    }

    /// Whether products run on cuBLASLt.
    #[must_use]
    pub fn has_library(&self) -> bool {
        self.gpu.has_library()
    }

    /// The arena as it is now. For tests: what no value covers must stay as it was.
    ///
    /// # Errors
    /// Faults of the driver.
    #[doc(hidden)]
    pub fn arena_bytes(&self) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; self.arena.bytes()];
        self.gpu.download(self.arena.at(), &mut bytes)?;
        Ok(bytes)
    }

    /// Fills the arena. For tests.
    ///
    /// # Errors
    /// Faults of the driver.
    #[doc(hidden)]
    pub fn fill_arena(&mut self, byte: u8) -> Result<(), CudaError> {
        self.gpu.upload(self.arena.at(), &vec![byte; self.arena.bytes()])
    }

    fn loaded(&self, id: ProgramId) -> Result<&Loaded, EngineError> {
        let foreign = || EngineError::Invalid(format!("program {} is of another executor", id.number()));
        self.programs.get(id.number()).ok_or_else(foreign)
    }

    /// The number of each of a program's states, and the new ones among them with the bytes that they take together.
    fn state_numbers(&self, wanted: &[plan::State]) -> Result<(Vec<usize>, Vec<State>, usize), EngineError> {
        let (mut new, mut bytes, mut numbers) = (Vec::new(), 0usize, Vec::with_capacity(wanted.len()));
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
        Ok((numbers, new, bytes))
    }

    fn address_of_state(&self, number: usize) -> Address {
        let state = &self.states[number];
        Address(self.blocks[state.block].at().0 + state.offset as u64)
    }

    fn locate(&self, loaded: &Loaded, buffer: &Buffer) -> Address {
        match buffer.location {
            Location::Arena(offset) => Address(self.arena.at().0 + offset as u64),
            Location::State(n) => self.address_of_state(loaded.states[n]),
            Location::Constant(n) => Address(loaded.fixed.at().0 + loaded.constants[n] as u64),
        }
    }

    /// The steps of a program at the addresses of now, and its tables.
    fn steps(&self, loaded: &Loaded) -> Result<(Numbered, Vec<u8>), CudaError> {
        let tables = Address(loaded.fixed.at().0 + loaded.tables as u64);
        let takes = |product: &_| self.gpu.takes(product);
        let mut builder = Builder::new(Bases { scratch: self.scratch.at(), tables }, &takes);
        builder.build(loaded.program.instructions(), &|buffer| self.locate(loaded, buffer))?;
        Ok((builder.steps, builder.tables))
    }

    /// Computes the steps of all programs again; needed when the arena or the working memory has moved.
    fn locate_all(&mut self) -> Result<(), CudaError> {
        for at in 0..self.programs.len() {
            let (steps, tables) = self.steps(&self.programs[at])?;
            let loaded = &mut self.programs[at];
            self.gpu.upload(Address(loaded.fixed.at().0 + loaded.tables as u64), &tables)?;
            self.gpu.prepare(steps.iter().map(|(_, step)| step))?;
            (loaded.steps, loaded.graph, loaded.ran) = (steps, None, false);
        }
        Ok(())
    }

    /// Bytes of working memory and of tables that a program needs, wherever it lies.
    fn needs(&self, program: &Program) -> Result<(usize, usize), CudaError> {
        // An address of each kind, aligned as the real ones are.
        let base = Address(1 << 20);
        let takes = |product: &_| self.gpu.takes(product);
        let mut builder = Builder::new(Bases { scratch: base, tables: base }, &takes);
        let locate = |buffer: &Buffer| match buffer.location {
            Location::Arena(offset) => Address(base.0 + offset as u64),
            Location::State(_) | Location::Constant(_) => base,
        };
        builder.build(program.instructions(), &locate)?;
        Ok((builder.scratch, builder.tables.len()))
    }

    /// Memory of at least so many bytes in place of what there is. The old one is given back first where both do not fit.
    fn grow(gpu: &Gpu, memory: &mut DeviceMemory, bytes: usize, what: &'static str) -> Result<bool, CudaError> {
        if bytes <= memory.bytes() {
            return Ok(false);
        }
        gpu.wait()?;
        let grown = match gpu.allocate(bytes, what) {
            Err(CudaError::OutOfMemory { .. }) => {
                let before = memory.bytes();
                *memory = gpu.allocate(0, what)?;
                gpu.allocate(bytes, what).or_else(|error| {
                    *memory = gpu.allocate(before, what)?;
                    Err(error)
                })
            }
            other => other,
        };
        *memory = grown?;
        Ok(true)
    }

    /// Notes that an input is written, and lends the pinned memory from which it is taken.
    fn stage_bytes<T: simmim_engine::graph::Element>(&mut self, slot: InputSlot<T>) -> Result<&mut [u8], EngineError> {
        slot.check(&self.loaded(slot.program())?.program)?;
        let loaded = &mut self.programs[slot.program().number()];
        self.contents.write(slot, &loaded.program);
        Ok(loaded.staging.lend(slot.number())?)
    }

    fn run_steps(gpu: &Gpu, loaded: &mut Loaded, scratch: Address) -> Result<(), CudaError> {
        let steps = || loaded.steps.iter().map(|(_, step)| step);
        if let Some(graph) = &loaded.graph {
            return graph.launch();
        }
        if loaded.ran {
            let graph = gpu.capture(steps(), scratch)?;
            graph.launch()?;
            loaded.graph = Some(graph);
            return Ok(());
        }
        loaded.ran = true;
        steps().try_for_each(|step| gpu.enqueue(step, scratch))
    }

    /// Runs the steps one by one with an event before each instruction and after the last.
    fn run_timed(gpu: &Gpu, loaded: &mut Loaded, scratch: Address) -> Result<(), CudaError> {
        let mut marks = Vec::new();
        let mut instruction = usize::MAX;
        for (at, step) in &loaded.steps {
            if *at != instruction {
                let event = gpu.event(true)?;
                gpu.record(&event)?;
                marks.push((*at, event));
                instruction = *at;
            }
            gpu.enqueue(step, scratch)?;
        }
        let end = gpu.event(true)?;
        gpu.record(&end)?;
        let ends = marks.iter().skip(1).map(|(_, event)| event).chain([&end]);
        for ((at, start), end) in marks.iter().zip(ends) {
            let elapsed = start.elapsed_ms(end);
            loaded.seconds[*at] += f64::from(crate::driver::Call::call(elapsed, "cuEventElapsedTime")?) / 1e3;
        }
        Ok(())
    }

    /// Writes the bfloat16 copy of a state, where there are both.
    fn round_copy(&self, name: &str) -> Result<(), CudaError> {
        let find =
            |wanted: &str, dtype: DType| self.states.iter().position(|s| s.name == wanted && s.ty.dtype == dtype);
        let copy = find(&format!("{COPY_PREFIX}{name}"), DType::Bf16);
        let (Some(from), Some(to)) = (find(name, DType::F32), copy) else { return Ok(()) };
        let mut floats = vec![0.0; self.states[from].ty.len()];
        self.gpu.download(self.address_of_state(from), bytemuck::cast_slice_mut(&mut floats))?;
        self.write_copy(to, &floats)
    }

    /// Writes a state of bfloat16 that is the copy of these floats.
    fn write_copy(&self, number: usize, floats: &[f32]) -> Result<(), CudaError> {
        if self.states[number].ty.len() != floats.len() {
            return Ok(());
        }
        let rounded: Vec<Bf16> = floats.iter().map(|&value| Bf16::nearest(value)).collect();
        self.gpu.upload(self.address_of_state(number), bytemuck::cast_slice(&rounded))
    }

    /// Writes a state of floats, and its copy where there is one.
    fn write_floats(&self, name: &str, at: Address, floats: &[f32]) -> Result<(), CudaError> {
        self.gpu.upload(at, bytemuck::cast_slice(floats))?;
        let copy = format!("{COPY_PREFIX}{name}");
        match self.states.iter().position(|s| s.name == copy && s.ty.dtype == DType::Bf16) {
            Some(number) => self.write_copy(number, floats),
            None => Ok(()),
        }
    }

    fn state(&self, name: &str, len: usize) -> Result<Address, EngineError> {
        let floats = |s: &State| s.ty.dtype == DType::F32;
        let Some(at) = self.states.iter().position(|s| s.name == name && floats(s)) else {
            let known: Vec<&str> = self.states.iter().filter(|s| floats(s)).map(|s| s.name.as_str()).collect();
            return Err(EngineError::Unknown { kind: "state", name: name.to_owned(), known: known.join(", ") });
        };
        let expected = self.states[at].ty.len();
        if expected != len {
            return Err(EngineError::Length { name: name.to_owned(), expected, found: len });
        }
        Ok(self.address_of_state(at))
    }
}

/// Where each piece begins when they lie one after another, aligned as the arena is, and where the last one ends.
pub(crate) fn laid_out(bytes: impl Iterator<Item = usize>) -> (Vec<usize>, usize) {
    let mut end = 0usize;
    let place = |bytes: usize| {
        let start = end;
        end = start.saturating_add(bytes).next_multiple_of(ALIGNMENT);
        start
    };
    let starts = bytes.map(place).collect();
    (starts, end)
}

impl Executor for CudaExecutor {
    fn machine(&self) -> Machine {
        let (major, minor) = self.gpu.capability;
        Machine { device: self.gpu.name.clone(), threads: 1, isa: format!("sm_{major}{minor}"), bf16: true }
    }

    fn memory(&self) -> Memory {
        let staged: usize = self.programs.iter().map(|p| p.staging.device_bytes()).sum();
        let fixed: usize = self.programs.iter().map(|p| p.fixed.bytes()).sum();
        let states: usize = self.blocks.iter().map(DeviceMemory::bytes).sum();
        Memory { arena: self.arena.bytes() + staged, states: states + fixed, scratch: self.scratch.bytes() }
    }

    fn load(&mut self, program: Program) -> Result<ProgramId, EngineError> {
        // What can fail comes first, so that a failure leaves no trace but a larger arena.
        let (states, new, bytes) = self.state_numbers(program.states())?;
        let (scratch, table_bytes) = self.needs(&program)?;
        let (constants, tables) = laid_out(program.constants().iter().map(|c| size_of_val(&*c.data)));
        let fixed = self.gpu.allocate(tables + table_bytes, "constants")?;
        for (constant, &offset) in program.constants().iter().zip(&constants) {
            self.gpu.upload(Address(fixed.at().0 + offset as u64), bytemuck::cast_slice(&constant.data))?;
        }
        let staging = Staging::new(&self.gpu, program.inputs())?;
        let block = self.gpu.allocate(bytes, "the states")?;
        let mut moved = Self::grow(&self.gpu, &mut self.scratch, scratch, "working memory")?;
        let arena = Self::grow(&self.gpu, &mut self.arena, program.arena_bytes(), "the arena");
        self.contents.forget();
        moved |= match arena {
            Ok(moved) => moved,
            Err(error) => {
                self.locate_all()?;
                return Err(error.into());
            }
        };
        if !new.is_empty() {
            let names: Vec<String> = new.iter().map(|state| state.name.clone()).collect();
            self.blocks.push(block);
            self.states.extend(new);
            for name in names {
                self.round_copy(name.strip_prefix(COPY_PREFIX).unwrap_or(&name))?;
            }
        }
        let seconds = vec![0.0; program.instructions().len()];
        let (steps, graph, ran) = (Vec::new(), None, false);
        self.programs.push(Loaded { program, states, fixed, constants, tables, steps, staging, graph, ran, seconds });
        if moved {
            self.locate_all()?;
        } else {
            let last = self.programs.len() - 1;
            let (steps, tables) = self.steps(&self.programs[last])?;
            let loaded = &mut self.programs[last];
            self.gpu.upload(Address(loaded.fixed.at().0 + loaded.tables as u64), &tables)?;
            self.gpu.prepare(steps.iter().map(|(_, step)| step))?;
            loaded.steps = steps;
        }
        Ok(ProgramId::new(self.programs.len() - 1))
    }

    fn program(&self, id: ProgramId) -> Result<&Program, EngineError> {
        Ok(&self.loaded(id)?.program)
    }

    fn stage(&mut self, slot: InputSlot) -> Result<&mut [f32], EngineError> {
        Ok(bytemuck::cast_slice_mut(self.stage_bytes(slot)?))
    }

    fn write_indices(&mut self, slot: InputSlot<i32>, data: &[i32]) -> Result<(), EngineError> {
        check_index_input(slot, &self.loaded(slot.program())?.program, data)?;
        self.stage_bytes(slot)?.copy_from_slice(bytemuck::cast_slice(data));
        Ok(())
    }

    fn run(&mut self, id: ProgramId) -> Result<(), EngineError> {
        self.loaded(id)?;
        let loaded = &mut self.programs[id.number()];
        self.contents.run(id, &loaded.program)?;
        let arena = self.arena.at();
        loaded.staging.send(&self.gpu, arena)?;
        if self.profile {
            Self::run_timed(&self.gpu, loaded, self.scratch.at())?;
        } else {
            Self::run_steps(&self.gpu, loaded, self.scratch.at())?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), EngineError> {
        Ok(self.gpu.wait()?)
    }

    fn read(&mut self, slot: OutputSlot, into: &mut [f32]) -> Result<(), EngineError> {
        let loaded = self.loaded(slot.program())?;
        let output = self.contents.read(slot, &loaded.program, into.len())?;
        Ok(self.gpu.download(self.locate(loaded, &output.buffer), bytemuck::cast_slice_mut(into))?)
    }

    fn write_state(&mut self, name: &str, data: &[f32]) -> Result<(), EngineError> {
        Ok(self.write_floats(name, self.state(name, data.len())?, data)?)
    }

    fn read_state(&mut self, name: &str, into: &mut [f32]) -> Result<(), EngineError> {
        Ok(self.gpu.download(self.state(name, into.len())?, bytemuck::cast_slice_mut(into))?)
    }

    fn visit_states(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        for number in 0..self.states.len() {
            let State { name, ty, .. } = &self.states[number];
            if name.starts_with(prefix) && ty.dtype == DType::F32 {
                let mut data = vec![0.0f32; ty.len()];
                let at = self.address_of_state(number);
                self.gpu.download(at, bytemuck::cast_slice_mut(&mut data))?;
                visit(name, &mut data)?;
                self.write_floats(name, at, &data)?;
            }
        }
        Ok(())
    }

    fn set_profile(&mut self, on: bool) {
        self.profile = on;
        self.programs.iter_mut().for_each(|p| p.seconds.fill(0.0));
    }

    fn timings(&mut self, program: ProgramId) -> Result<Vec<Timing>, EngineError> {
        let loaded = self.loaded(program)?;
        let instructions = loaded.program.instructions().iter().zip(&loaded.seconds);
        let timing = |(i, &seconds): (&plan::Instruction, &f64)| Timing {
            op: simmim_engine::ops::Operation::name(&i.op),
            shape: i.outputs.first().map(|b| b.ty.shape.clone()).unwrap_or_default(),
            flops: i.flops,
            bytes: i.bytes(),
            seconds,
        };
        Ok(instructions.map(timing).collect())
    }
}
