//! Every operation: the kernels against the double precision reference, over random odd shapes, in several orders of execution.

use crate::{emulator, executor};
use simmim_cases::{Case, cases, random_inputs};
use simmim_cuda::{CudaExecutor, Products};
use simmim_engine::ops::*;
use simmim_engine::plan::{Buffer, Location};
use simmim_engine::reference::{Data, Tensor, evaluate};
use simmim_engine::{Executor, Graph, Program, ProgramId, TensorType};
use simmim_random::{Purpose, Stream};
use std::collections::HashMap;
use std::ops::Range;

/// What memory holds before anyone has written to it: not a number, for floats.
const UNWRITTEN: u8 = 0xff;

/// Outputs of a graph, or what went wrong.
pub(crate) fn run(graph: &Graph, given: &HashMap<String, Tensor>, products: Products) -> Result<Vec<Vec<f32>>, String> {
    let mut executor = executor(products);
    let fault = |e: simmim_engine::EngineError| e.to_string();
    let id = executor.load(Program::compile(graph).map_err(fault)?).map_err(fault)?;
    executor.fill_arena(UNWRITTEN).map_err(|e| e.to_string())?;
    #[allow(clippy::iter_over_hash_type, reason = "inputs are written in any order")]
    for (name, tensor) in given {
        match &tensor.data {
            Data::F64(data) => {
                let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
                executor.write(executor.input(id, name).map_err(fault)?, &data).map_err(fault)?;
            }
            Data::I32(data) => {
                executor.write_indices(executor.index_input(id, name).map_err(fault)?, data).map_err(fault)?;
            }
        }
    }
    executor.run(id).map_err(fault)?;
    let mut outputs = Vec::new();
    for (name, value) in graph.outputs() {
        let mut out = vec![0.0; graph.ty(*value).len()];
        executor.read(executor.output(id, name).map_err(fault)?, &mut out).map_err(fault)?;
        outputs.push(out);
    }
    check_gaps(&executor, id)?;
    Ok(outputs)
}

/// Nothing is written outside the values of a program. They lie 256 bytes apart, so odd shapes leave gaps.
fn check_gaps(executor: &CudaExecutor, id: ProgramId) -> Result<(), String> {
    let program = executor.program(id).map_err(|e| e.to_string())?;
    let used = program.instructions().iter().flat_map(|i| i.inputs.iter().chain(&i.outputs));
    // An input may be declared and never read.
    let buffers = used.chain(program.inputs().iter().map(|i| &i.buffer));
    let inside = |b: &Buffer| match b.location {
        Location::Arena(at) => Some(at..at + b.ty.bytes()),
        Location::State(_) | Location::Constant(_) => None,
    };
    let covered: Vec<Range<usize>> = buffers.filter_map(inside).collect();
    let bytes = executor.arena_bytes().map_err(|e| e.to_string())?;
    let written = |&(at, &byte): &(usize, &u8)| byte != UNWRITTEN && !covered.iter().any(|range| range.contains(&at));
    match bytes.iter().enumerate().find(written) {
        Some((at, _)) => Err(format!("a write to byte {at} of the arena, which belongs to no value")),
        None => Ok(()),
    }
}

/// A graph with its inputs and what the reference makes of them.
pub(crate) struct Known {
    pub(crate) graph: Graph,
    pub(crate) given: HashMap<String, Tensor>,
    pub(crate) truth: Vec<Vec<f32>>,
}

impl Known {
    pub(crate) fn of(graph: Graph, stream: &mut Stream) -> Self {
        let given = random_inputs(&graph, stream);
        let values = evaluate(&graph, &given);
        let floats =
            |(_, v): &(String, simmim_engine::ValueId)| values[v.index()].f64().iter().map(|&v| v as f32).collect();
        let truth = graph.outputs().iter().map(floats).collect();
        Self { graph, given, truth }
    }

    /// A case of that seed.
    pub(crate) fn of_case(case: &Case, seed: u64) -> Self {
        let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
        let graph = (case.build)(&mut stream);
        Self::of(graph, &mut stream)
    }

    /// Outputs that agree with the reference, or what is wrong with them.
    pub(crate) fn check(&self, products: Products) -> Result<Vec<Vec<f32>>, String> {
        let found = run(&self.graph, &self.given, products)?;
        for ((name, _), (found, truth)) in self.graph.outputs().iter().zip(found.iter().zip(&self.truth)) {
            let error = simmim_testing::relative_error(found, truth);
            if error.is_nan() || error >= 2e-5 {
                return Err(format!("{name} is off by {error:e}"));
            }
        }
        Ok(found)
    }
}

/// Right by own kernels and by the library's, and the same to the bit in every order of execution.
fn check(known: &Known, name: &str, seed: u64) {
    let (_guard, emulator) = emulator();
    emulator.seed(seed);
    let one = known.check(Products::Own).unwrap_or_else(|e| panic!("{name} {seed}: {e}\n{}", known.graph));
    emulator.seed(seed + 1000);
    assert_eq!(known.check(Products::Own), Ok(one), "{name} {seed} depends on the order of execution");
    if name.starts_with("Linear") {
        known.check(Products::Library).unwrap_or_else(|e| panic!("{name} {seed} by the library: {e}\n{}", known.graph));
    }
    assert_eq!(emulator.take_fault(), None, "{name} {seed}");
}

#[test]
fn kernels_agree_with_their_references() {
    for case in cases() {
        for seed in 0..6 {
            check(&Known::of_case(&case, seed), case.variant, seed);
        }
    }
}

/// Attention forward and backward with a bias, of two samples and heads.
pub(crate) fn attention(head_dim: usize, split: bool, [tokens, queries]: [usize; 2], seed: u64) -> Known {
    let (heads, batch) = (2, 2);
    let dim = heads * head_dim;
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut graph = Graph::new();
    let packing = if split { Packing::Split } else { Packing::Packed };
    let op = Attention { heads, packing, bias: true };
    let mut forward = if split {
        let (q, kv) = (TensorType::f32([batch, queries, dim]), TensorType::f32([batch, tokens, 2 * dim]));
        vec![graph.input("q", q), graph.input("kv", kv)]
    } else {
        vec![graph.input("qkv", TensorType::f32([batch, tokens, 3 * dim]))]
    };
    forward.push(graph.input("bias", TensorType::f32([heads, tokens, tokens])));
    if split {
        // Positions that occur twice, and many that do not.
        let query = (0..batch * queries).map(|_| stream.below(tokens as u64 / 2) as i32).collect();
        forward.push(graph.constant("query", &[batch, queries], query));
    }
    let saved = graph.apply(op, &forward).unwrap();
    let grad = graph.input("grad", TensorType::f32([batch, if split { queries } else { tokens }, dim]));
    let mut inputs = vec![grad, saved[0], saved[1]];
    inputs.extend(&forward);
    inputs.push(graph.input("grad_bias", TensorType::f32([heads, tokens, tokens])));
    let grads = graph.apply(AttentionGrad { forward: op }, &inputs).unwrap();
    for (at, value) in saved.into_iter().chain(grads).enumerate() {
        graph.output(format!("y{at}"), value);
    }
    Known::of(graph, &mut stream)
}

/// Heads of each width that has kernels.
#[test]
fn heads_of_every_width_are_right() {
    for (head_dim, seed) in [(32, 0), (33, 1), (64, 2), (80, 3), (96, 4), (97, 5), (128, 6)] {
        for split in [false, true] {
            check(&attention(head_dim, split, [37, 19], seed), "attention", seed);
        }
    }
}

/// Sums over many rows are cut into parts.
#[test]
fn products_and_sums_over_many_rows_are_right() {
    let (rows, inputs, outputs) = (1301, 33, 17);
    let mut graph = Graph::new();
    let shape = |rows: usize, columns: usize| TensorType::f32([rows, columns]);
    let (grad, x) = (graph.input("grad", shape(rows, outputs)), graph.input("x", shape(rows, inputs)));
    let (weight, bias) =
        (graph.input("weight", shape(outputs, inputs)), graph.input("bias", TensorType::f32([outputs])));
    let op = LinearGradWeight { rows: None, bias: true };
    for (at, value) in graph.apply(op, &[grad, x, weight, bias]).unwrap().into_iter().enumerate() {
        graph.output(format!("y{at}"), value);
    }
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    check(&Known::of(graph, &mut stream), "Linear, many rows", 3);
}

#[test]
fn a_head_that_is_too_wide_is_refused() {
    let (_guard, _) = emulator();
    let mut graph = Graph::new();
    let qkv = graph.input("qkv", TensorType::f32([1, 4, 3 * 129]));
    let y = graph.apply1(Attention { heads: 1, packing: Packing::Packed, bias: false }, &[qkv]).unwrap();
    graph.output("y", y);
    let error = executor(Products::Own).load(Program::compile(&graph).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "attention with heads of 129 columns, and the kernels take up to 128");
    assert!(error.help().unwrap().contains("--device cpu"));
}
