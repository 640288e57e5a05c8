//! Inputs of a program on their way: pinned memory of the host, then memory of the device beside the arena, both twice. While a
//! program runs with one set, the host fills the other, which travels on a stream of its own; the arena, which the program uses as
//! it likes, gets the inputs by a copy within the device when the next run begins.

use crate::driver::{DeviceMemory, Gpu, Pinned};
use crate::error::CudaError;
use crate::executor::laid_out;
use crate::step::{Address, Step};
use cudarc::driver::CudaEvent;
use simmim_engine::plan::{Input, Location};

struct Set {
    pinned: Pinned,
    device: DeviceMemory,
    /// The set has arrived on the device: the host may fill it again.
    arrived: CudaEvent,
    /// The arena has got the set: the next may arrive.
    free: CudaEvent,
}

/// An input: where it lies in a set, and where in the arena.
struct Piece {
    offset: usize,
    bytes: usize,
    arena: usize,
}

pub(crate) struct Staging {
    pieces: Vec<Piece>,
    sets: [Set; 2],
    next: usize,
}

impl Staging {
    pub(crate) fn new(gpu: &Gpu, inputs: &[Input]) -> Result<Self, CudaError> {
        let (offsets, end) = laid_out(inputs.iter().map(|i| i.buffer.ty.bytes()));
        let piece = |(input, &offset): (&Input, &usize)| {
            // `Program` places every input in the arena.
            let arena = if let Location::Arena(at) = input.buffer.location { at } else { 0 };
            Piece { offset, bytes: input.buffer.ty.bytes(), arena }
        };
        let set = || {
            let device = gpu.allocate(end, "inputs on their way")?;
            let (arrived, free) = (gpu.event(false)?, gpu.event(false)?);
            // The memory is zeroed on the stream of programs.
            gpu.record(&free)?;
            Ok(Set { pinned: gpu.allocate_pinned(end)?, device, arrived, free })
        };
        Ok(Self { pieces: inputs.iter().zip(&offsets).map(piece).collect(), sets: [set()?, set()?], next: 0 })
    }

    pub(crate) fn device_bytes(&self) -> usize {
        self.sets.iter().map(|set| set.device.bytes()).sum()
    }

    /// The pinned memory of an input, once what was there before has arrived.
    pub(crate) fn lend(&mut self, input: usize) -> Result<&mut [u8], CudaError> {
        let set = &mut self.sets[self.next];
        crate::driver::Call::call(set.arrived.synchronize(), "cuEventSynchronize")?;
        let piece = &self.pieces[input];
        Ok(&mut set.pinned.as_mut_slice()[piece.offset..piece.offset + piece.bytes])
    }

    /// Sends the set that was filled, and lets the other be filled.
    pub(crate) fn send(&mut self, gpu: &Gpu, arena: Address) -> Result<(), CudaError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let set = &self.sets[self.next];
        gpu.send(&set.pinned, set.device.at(), &set.free, &set.arrived)?;
        for piece in &self.pieces {
            let (to, from) = (Address(arena.0 + piece.arena as u64), Address(set.device.at().0 + piece.offset as u64));
            gpu.enqueue(&Step::Copy { to, from, bytes: piece.bytes }, Address::NONE)?;
        }
        gpu.record(&set.free)?;
        self.next ^= 1;
        Ok(())
    }
}
