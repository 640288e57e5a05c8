//! Operations over many tensors in one launch: the optimiser's.

use super::{Builder, Operand};
use crate::step::{Address, Kernel, Launch};
use bytemuck::{Pod, Zeroable};
use simmim_engine::ops::{GlobalNorm, Op};
use simmim_engine::plan::{Buffer, Instruction, Location};

/// Elements of a chunk: as in `tensors.cuh`.
const CHUNK: usize = 4096;

/// `struct Chunk` of `tensors.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    tensor: i32,
    unused: i32,
    start: i64,
}

/// `struct AdamWTensor` of `adamw.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdamWTensor {
    /// Parameter, gradient, moments, and the copy of the parameter or nothing.
    addresses: [Address; 5],
    count: i64,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    lr_scale: f32,
    unused: f32,
}

/// `struct AverageTensor` of `moving_average.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AverageTensor {
    average: Address,
    param: Address,
    count: i64,
}

/// `struct NormTensor` of `global_norm.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormTensor {
    values: Address,
    count: i64,
}

/// The chunks of tensors of these lengths.
fn chunks_of(lengths: impl Iterator<Item = usize>) -> Vec<Chunk> {
    let of = |(tensor, len): (usize, usize)| {
        (0..len).step_by(CHUNK).map(move |start| Chunk { tensor: tensor as i32, unused: 0, start: start as i64 })
    };
    lengths.enumerate().flat_map(of).collect()
}

/// How many instructions from the first on are updates of parameters and averages that may be done together: the parameters
/// first, then the averages.
pub(super) fn run_of_updates(instructions: &[Instruction]) -> usize {
    // What tells the inputs apart that all tensors of a launch share.
    let shared = |i: &Instruction| -> Vec<Location> {
        match i.op {
            Op::AdamW(_) => i.inputs[4..6].iter().map(|b| b.location).collect(),
            _ => vec![i.inputs[2].location],
        }
    };
    let (mut first_update, mut first_average): (Option<Vec<Location>>, Option<Vec<Location>>) = (None, None);
    let mut averaged: Vec<Location> = Vec::new();
    for (at, i) in instructions.iter().enumerate() {
        let first = match i.op {
            Op::AdamW(_) => &mut first_update,
            Op::MovingAverage(_) => &mut first_average,
            _ => return at,
        };
        if !i.copies.is_empty() && at > 0 || *first.get_or_insert_with(|| shared(i)) != shared(i) {
            return at;
        }
        let touched = i.inputs.iter().chain(&i.outputs).map(|b| b.location);
        match i.op {
            // An update after an average of the same state would come before it.
            Op::AdamW(_) if i.outputs.iter().any(|b| averaged.contains(&b.location)) => return at,
            Op::MovingAverage(_) => averaged.extend(touched),
            _ => {}
        }
        if !i.copies.is_empty() {
            return 1;
        }
    }
    instructions.len()
}

/// The steps of a run of updates.
pub(super) fn updates(b: &mut Builder<'_>, instructions: &[Instruction], operand: &dyn Fn(&Buffer) -> Operand) {
    let (mut adamw, mut averages, mut inputs) = (Vec::new(), Vec::new(), [Address::NONE; 3]);
    for i in instructions {
        let [outputs, given] = [&i.outputs, &i.inputs].map(|of| of.iter().map(operand).collect::<Vec<_>>());
        for &(from, to) in &i.copies {
            let bytes = outputs[to].ty.bytes();
            b.push(crate::step::Step::Copy { to: outputs[to].at, from: given[from].at, bytes });
        }
        if let Op::AdamW(op) = &i.op {
            let count = outputs[2].len() as i64;
            (inputs[0], inputs[1]) = (given[4].at, given[5].at);
            let (beta1, beta2, eps, weight_decay, lr_scale) =
                (op.beta1, op.beta2, op.eps, op.weight_decay, op.lr_scale);
            let [param, grad] = [0, 1].map(|n: usize| outputs[n].at.element(op.start));
            let copy = if op.copy { outputs[4].values().from(op.start).start } else { Address::NONE };
            let addresses = [param, grad, outputs[2].at, outputs[3].at, copy];
            adamw.push(AdamWTensor { addresses, count, beta1, beta2, eps, weight_decay, lr_scale, unused: 0.0 });
        } else {
            inputs[2] = given[2].at;
            let count = outputs[0].len() as i64;
            averages.push(AverageTensor { average: outputs[0].at, param: given[1].at, count });
        }
    }
    if !adamw.is_empty() {
        let launch = over(b, Kernel("adamw", "adamw"), &adamw, adamw.iter().map(|t| t.count as usize));
        b.launch(launch.address(inputs[0]).address(inputs[1]));
    }
    if !averages.is_empty() {
        let kernel = Kernel("moving_average", "moving_average");
        let launch = over(b, kernel, &averages, averages.iter().map(|t| t.count as usize));
        b.launch(launch.address(inputs[2]));
    }
}

/// A launch with a block for each chunk, whose first parameters are the tables.
fn over<T: Pod>(b: &mut Builder<'_>, kernel: Kernel, tensors: &[T], lengths: impl Iterator<Item = usize>) -> Launch {
    let chunks = chunks_of(lengths);
    let launch = Launch::new(kernel, [chunks.len(), 1, 1], 256);
    let tensors = b.table(bytemuck::cast_slice(tensors));
    let chunks = b.table(bytemuck::cast_slice(&chunks));
    launch.address(tensors).address(chunks)
}

pub(super) fn global_norm(b: &mut Builder<'_>, op: &GlobalNorm, inputs: &[Operand], outputs: &[Operand]) {
    let tensors: Vec<NormTensor> = inputs.iter().map(|x| NormTensor { values: x.at, count: x.len() as i64 }).collect();
    let launch = over(b, Kernel("global_norm", "global_norm_parts"), &tensors, inputs.iter().map(Operand::len));
    let parts = launch.grid[0] as usize;
    let sums = b.scratch(8 * parts);
    b.launch(launch.address(sums));
    let launch = Launch::new(Kernel("global_norm", "global_norm"), [1, 1, 1], 256);
    let launch = launch.address(sums).int(parts).with(op.max_norm.unwrap_or(-1.0));
    b.launch(launch.address(outputs[0].at).address(outputs[1].at));
}
