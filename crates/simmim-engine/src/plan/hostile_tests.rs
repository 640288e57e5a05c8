//! Random and hostile graphs and programs: whatever passes verification runs without a panic on the processor, whose views are checked, and
//! so without a wild access on a device whose views are not.

#[allow(unreachable_pub, reason = "a crate of its own, compiled here for the types of this build")]
#[path = "../../../simmim-cases/src/lib.rs"]
#[allow(dead_code, reason = "limits are for those who compute")]
mod cases;

use super::*;
use crate::autodiff::differentiate;
use crate::cpu::{CpuExecutor, Isa};
use crate::executor::Executor;
use crate::graph::DType;
use crate::mixed::mixed_everywhere;
use crate::ops::*;
use cases::{cases, random_inputs};
use simmim_random::{Purpose, Stream};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Larger programs are verified, but not run.
const RUN_BYTES: usize = 1 << 24;

/// A number that fits, nearly fits, or wraps around.
fn wild(s: &mut Stream) -> usize {
    const NUMBERS: [usize; 12] =
        [0, 1, 2, 3, 4, 7, 256, 1 << 32, usize::MAX / 4 + 1, usize::MAX / 2, usize::MAX - 1, usize::MAX];
    NUMBERS[s.below(NUMBERS.len() as u64) as usize]
}

fn one_of<'a, T>(s: &mut Stream, from: &'a [T]) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(s.below(from.len() as u64) as usize) }
}

fn pick<'a, T>(s: &mut Stream, from: &'a mut [T]) -> Option<&'a mut T> {
    if from.is_empty() {
        return None;
    }
    let at = s.below(from.len() as u64) as usize;
    from.get_mut(at)
}

fn wild_type(s: &mut Stream, ty: &mut TensorType) {
    match s.below(5) {
        0 => ty.dtype = [DType::F32, DType::Bf16, DType::I32][s.below(3) as usize],
        1 => ty.shape.push(wild(s)),
        2 => drop(ty.shape.pop()),
        _ => {
            let (add, number) = (s.below(2) == 0, wild(s));
            if let Some(extent) = pick(s, &mut ty.shape) {
                *extent = if add { extent.wrapping_add(1) } else { number };
            }
        }
    }
}

fn wild_rows(s: &mut Stream) -> Option<RowRange> {
    Some(RowRange { start: wild(s), len: wild(s) })
}

/// Other numbers in the fields of an operation that has any.
fn wild_op(s: &mut Stream, op: &mut Op) {
    match op {
        Op::Linear(op) => op.rows = wild_rows(s),
        Op::LinearGradInput(op) => (op.rows, op.gelu) = (wild_rows(s), s.below(2) == 0),
        Op::LinearGradWeight(op) => op.rows = wild_rows(s),
        Op::Attention(op) => op.heads = wild(s),
        Op::CosineHeads(op) => op.heads = wild(s),
        Op::CosineHeadsGrad(op) => op.heads = wild(s),
        Op::Reshape(op) => op.shape = vec![wild(s), wild(s)],
        Op::WindowAttention(op) => (op.heads, op.pad) = (wild(s), s.below(2) == 0),
        Op::WindowAttentionGrad(op) => (op.forward.heads, op.forward.region) = (wild(s), s.below(2) == 0),
        Op::WindowNormalize(op) => op.window = wild(s),
        Op::AttentionGrad(op) => op.forward.heads = wild(s),
        Op::EmbedRows(op) => (op.tokens, op.offset) = (wild(s), wild(s)),
        Op::EmbedRowsGrad(op) => (op.forward.tokens, op.forward.offset) = (wild(s), wild(s)),
        Op::MeanTokens(op) => op.skip = wild(s),
        Op::MeanTokensGrad(op) => (op.tokens, op.skip) = (wild(s), wild(s)),
        Op::PatchGather(op) => op.patch = (wild(s), wild(s)),
        Op::ScatterAddRows(op) => op.shape = vec![wild(s), wild(s)],
        Op::Zero(op) => op.shape = vec![wild(s), wild(s)],
        Op::PixelLoss(op) => op.weighted = !op.weighted,
        Op::PixelLossGrad(op) => op.forward.weighted = !op.forward.weighted,
        Op::Residual(op) => op.keep = !op.keep,
        Op::ResidualGrad(op) => op.keep = !op.keep,
        Op::AdamW(_)
        | Op::Add(_)
        | Op::Cast(_)
        | Op::CrossEntropy(_)
        | Op::CrossEntropyGrad(_)
        | Op::Drain(_)
        | Op::GatherRows(_)
        | Op::GeluGrad(_)
        | Op::GlobalNorm(_)
        | Op::LayerNorm(_)
        | Op::LayerNormGradInput(_)
        | Op::LayerNormGradParameters(_)
        | Op::MovingAverage(_)
        | Op::Pointwise(_)
        | Op::PointwiseGrad(_)
        | Op::QkvBias(_)
        | Op::QkvBiasGrad(_)
        | Op::RelativeBias(_)
        | Op::RelativeBiasGrad(_) => {}
    }
}

/// Runs a program on random inputs. Indices are the largest and smallest ones that are allowed, and some between.
fn run(program: Program, s: &mut Stream) {
    let mut executor = CpuExecutor::with_isa(1, Isa::detect()).unwrap();
    let inputs = program.inputs().to_vec();
    let outputs = program.outputs().to_vec();
    let id = executor.load(program).unwrap();
    for input in inputs {
        let len = input.buffer.ty.len();
        if input.buffer.ty.dtype == DType::F32 {
            let data: Vec<f32> = (0..len).map(|_| s.normal() as f32).collect();
            executor.write(executor.input(id, &input.name).unwrap(), &data).unwrap();
        } else {
            let bound = input.bound.unwrap_or(1).min(i32::MAX as usize);
            if bound == 0 {
                return;
            }
            let draw = |s: &mut Stream| [0, bound - 1, s.below(bound as u64) as usize][s.below(3) as usize] as i32;
            let data: Vec<i32> = (0..len).map(|_| draw(s)).collect();
            executor.write_indices(executor.index_input(id, &input.name).unwrap(), &data).unwrap();
        }
    }
    executor.run(id).unwrap();
    for output in outputs {
        let slot = executor.output(id, &output.name).unwrap();
        executor.read(slot, &mut vec![0.0; output.buffer.ty.len()]).unwrap();
    }
}

/// Runs what passes; returns whether it did.
fn passes(program: &Program, s: &mut Stream) -> bool {
    if program.verify().is_err() {
        return false;
    }
    let small = program.arena_bytes().saturating_add(program.state_bytes()) <= RUN_BYTES;
    if small && catch_unwind(AssertUnwindSafe(|| run(program.clone(), s))).is_err() {
        panic!("a verified program panicked:\n{program}\n{:?}", program.instructions());
    }
    true
}

fn buffers(program: &mut Program) -> Vec<&mut Buffer> {
    let of_instructions = program.instructions.iter_mut().flat_map(|i| i.inputs.iter_mut().chain(&mut i.outputs));
    let inputs = program.inputs.iter_mut().map(|i| &mut i.buffer);
    of_instructions.chain(inputs).chain(program.outputs.iter_mut().map(|o| &mut o.buffer)).collect()
}

/// Changes one thing of a program.
fn corrupt(program: &mut Program, s: &mut Stream, ops: &[Op]) {
    match s.below(12) {
        0 => corrupt_location(program, s),
        1 | 2 => {
            let mut all = buffers(program);
            let at = s.below(all.len() as u64) as usize;
            wild_type(s, &mut all[at].ty);
        }
        3 | 4 => corrupt_constant(program, s),
        5 => {
            let bytes = program.arena_bytes;
            program.arena_bytes = [0, bytes / 2, bytes.wrapping_sub(1), wild(s)][s.below(4) as usize];
        }
        6 => {
            let bound = [None, Some(0), Some(1), Some(wild(s))][s.below(4) as usize];
            if let Some(input) = pick(s, &mut program.inputs) {
                input.bound = bound;
            }
        }
        7 => {
            if let Some(state) = pick(s, &mut program.states) {
                wild_type(s, &mut state.ty);
            }
        }
        8 => {
            let (len, at) = (program.instructions.len(), s.below(program.instructions.len() as u64) as usize);
            match s.below(3) {
                0 => drop(program.instructions.remove(at)),
                1 => program.instructions.push(program.instructions[at].clone()),
                _ => program.instructions.swap(at, s.below(len as u64) as usize),
            }
        }
        _ => {
            if let Some(instruction) = pick(s, &mut program.instructions) {
                corrupt_instruction(instruction, s, ops);
            }
        }
    }
    if program.instructions.is_empty() {
        program.outputs.clear();
    }
}

/// Moves a value to a place where it may not belong.
fn corrupt_location(program: &mut Program, s: &mut Stream) {
    let (number, step) = (wild(s), [4, 256][s.below(2) as usize]);
    let locations: Vec<Location> = buffers(program).iter().map(|b| b.location).collect();
    let location = match s.below(5) {
        0 => Location::Arena(number),
        1 => Location::State(number),
        2 => Location::Constant(number),
        3 => Location::Arena(step * s.below(64) as usize),
        _ => one_of(s, &locations).copied().unwrap_or(Location::Arena(0)),
    };
    if let Some(buffer) = pick(s, &mut buffers(program)) {
        buffer.location = location;
    }
}

fn corrupt_constant(program: &mut Program, s: &mut Stream) {
    let index = [-1, i32::MIN, i32::MAX, 0, 1, 9][s.below(6) as usize];
    if let Some(constant) = pick(s, &mut program.constants) {
        match s.below(3) {
            0 => drop(constant.data.pop()),
            1 => constant.data.push(0),
            _ => pick(s, &mut constant.data).into_iter().for_each(|i| *i = index),
        }
    }
}

/// Gives an instruction another operation, other fields, other copies, or its values in another order.
fn corrupt_instruction(instruction: &mut Instruction, s: &mut Stream, ops: &[Op]) {
    match s.below(4) {
        0 => one_of(s, ops).into_iter().for_each(|op| instruction.op = op.clone()),
        1 => wild_op(s, &mut instruction.op),
        2 if instruction.copies.is_empty() => instruction.copies.push((s.below(4) as usize, s.below(4) as usize)),
        2 => instruction.copies.clear(),
        _ => {
            let mut values: Vec<_> = instruction.inputs.drain(..).chain(instruction.outputs.drain(..)).collect();
            s.shuffle(&mut values);
            let inputs = s.below(values.len() as u64 + 1) as usize;
            instruction.outputs = values.split_off(inputs.min(values.len()));
            instruction.inputs = values;
        }
    }
}

/// A training step with most of what there is: gathers by inputs and constants, products, norms, attention with a bias, losses.
fn network() -> Graph {
    let mut g = Graph::new();
    let (tokens, dim) = (4, 6);
    let x = g.input("x", TensorType::f32([9, dim]));
    let (index, keep) = (g.input("index", TensorType::i32([2, tokens])), g.input("keep", TensorType::f32([2])));
    let x = g.apply1(GatherRows, &[x, index]).unwrap();
    let norm = [g.state("norm.weight", &[dim]), g.state("norm.bias", &[dim])];
    let normed = g.apply1(LayerNorm { eps: 1e-6 }, &[x, norm[0], norm[1]]).unwrap();
    let qkv = g.state("qkv", &[3 * dim, dim]);
    let qkv = g.apply1(Linear::default(), &[normed, qkv]).unwrap();
    let (table, pairs) =
        (g.state("table", &[7, 2]), g.constant("pairs", &[tokens, tokens], (0..16).map(|i| i % 7).collect()));
    let bias = g.apply1(RelativeBias, &[table, pairs]).unwrap();
    let attention = Attention { heads: 2, packing: Packing::Packed, bias: true };
    let branch = g.apply1(attention, &[qkv, bias]).unwrap();
    let gamma = g.state("gamma", &[dim]);
    let x = g.apply1(Residual { gamma: true, keep: true }, &[x, branch, gamma, keep]).unwrap();
    let (fc1, fc1_bias, fc2) = (g.state("fc1", &[8, dim]), g.state("fc1.bias", &[8]), g.state("fc2", &[dim, 8]));
    let hidden = g.apply1(Linear { bias: true, gelu: true, rows: None }, &[x, fc1, fc1_bias]).unwrap();
    let y = g.apply1(Linear::default(), &[hidden, fc2]).unwrap();
    let y = g.apply1(Residual::default(), &[x, y]).unwrap();
    let target = g.input("target", TensorType::f32([2, tokens, dim]));
    let loss = g.apply1(PixelLoss { kind: PixelDistance::L1, scale: 1.0, weighted: false }, &[y, target]).unwrap();
    g.output("loss", loss);
    differentiate(&mut g, loss).unwrap();
    g
}

#[test]
fn a_corrupted_program_is_refused_or_harmless() {
    let mut s = Stream::new(5, Purpose::Test, 0, 0);
    let mut graphs: Vec<Graph> = cases().iter().map(|case| (case.build)(&mut s)).chain([network()]).collect();
    let mixed: Vec<Graph> = graphs.iter().map(|g| mixed_everywhere(g).unwrap()).collect();
    graphs.extend(mixed);
    let ops: Vec<Op> = graphs.iter().flat_map(|g| g.nodes()).map(|n| n.op.clone()).collect();
    let programs: Vec<Program> = graphs.iter().map(|g| Program::compile(g).unwrap()).collect();
    let (mut refused, mut passed) = (0, 0);
    for program in &programs {
        assert!(passes(program, &mut s));
        let rounds = 150 * (1 + program.instructions().len());
        for _ in 0..rounds {
            let mut other = program.clone();
            for _ in 0..=s.below(3) {
                if !other.instructions.is_empty() {
                    corrupt(&mut other, &mut s, &ops);
                }
            }
            if passes(&other, &mut s) { passed += 1 } else { refused += 1 }
        }
    }
    assert!(refused > 2000 && passed > 200, "{refused} refused, {passed} passed");
}

#[test]
fn a_hostile_graph_is_refused_or_harmless() {
    let mut s = Stream::new(6, Purpose::Test, 0, 0);
    let (mut refused, mut passed) = (0, 0);
    for case in cases() {
        for _ in 0..400 {
            let fitting = (case.build)(&mut s);
            let node = fitting.nodes()[0].clone();
            let mut op = node.op.clone();
            if s.below(3) == 0 {
                wild_op(&mut s, &mut op);
            }
            let mut g = Graph::new();
            let mut inputs = Vec::new();
            for (at, &id) in node.inputs.iter().enumerate() {
                let value = fitting.value(id);
                let mut ty = value.ty.clone();
                if s.below(4) == 0 {
                    wild_type(&mut s, &mut ty);
                }
                let name = format!("x{at}");
                inputs.push(match &value.kind {
                    ValueKind::Constant(data) => {
                        let mut data = data.clone();
                        if s.below(3) == 0 {
                            let index = [-1, i32::MIN, i32::MAX, 60][s.below(4) as usize];
                            pick(&mut s, &mut data).into_iter().for_each(|i| *i = index);
                        }
                        g.constant(&name, &ty.shape, data)
                    }
                    _ if s.below(3) == 0 && ty.dtype == DType::F32 => g.state(&name, &ty.shape),
                    _ => g.input(name, ty),
                });
            }
            if s.below(8) == 0 {
                inputs.pop();
            }
            let compiled = g.apply(op, &inputs).and_then(|outputs| {
                outputs.iter().enumerate().for_each(|(i, &v)| g.output(format!("y{i}"), v));
                Program::compile(&g)
            });
            match compiled {
                Ok(program) => {
                    assert!(passes(&program, &mut s));
                    passed += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 500 && passed > 500, "{refused} refused, {passed} passed");
}

/// Every operand of every operation has one element type, and another one is refused.
#[test]
fn operands_of_another_type_are_refused() {
    let mut s = Stream::new(7, Purpose::Test, 0, 0);
    for case in cases() {
        for _ in 0..8 {
            let graph = (case.build)(&mut s);
            assert!(!random_inputs(&graph, &mut s).is_empty() || graph.inputs().count() == 0);
            let node = &graph.nodes()[0];
            let types: Vec<TensorType> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
            for at in 0..types.len() {
                let mut other = types.clone();
                other[at].dtype = if types[at].dtype == DType::F32 { DType::I32 } else { DType::F32 };
                match node.op.infer(&other) {
                    Err(EngineError::DType { input, .. }) => assert_eq!(input, at, "{}", case.variant),
                    found => panic!("{}: input {at} of another type gives {found:?}", case.variant),
                }
            }
        }
    }
}
