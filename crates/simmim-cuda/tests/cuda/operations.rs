//! Every operation: the kernels against the double precision reference, over random odd shapes, in several orders of execution.

use crate::{emulator, executor};
use simmim_cases::{Case, LIMIT, cases, mixed_limit, random_inputs};
use simmim_cuda::{CudaExecutor, Products};
use simmim_engine::mixed::{mixed, mixed_everywhere};
use simmim_engine::ops::*;
use simmim_engine::plan::{Buffer, Location};
use simmim_engine::reference::{Data, Tensor, evaluate};
use simmim_engine::{DType, Executor, Graph, Program, ProgramId, TensorType};
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
    /// How far each output may be off.
    limits: Vec<f64>,
}

impl Known {
    pub(crate) fn of(graph: Graph, stream: &mut Stream) -> Self {
        let given = random_inputs(&graph, stream);
        let values = evaluate(&graph, &given);
        let floats =
            |(_, v): &(String, simmim_engine::ValueId)| values[v.index()].f64().iter().map(|&v| v as f32).collect();
        let truth = graph.outputs().iter().map(floats).collect();
        let limits = vec![LIMIT; graph.outputs().len()];
        Self { graph, given, truth, limits }
    }

    /// A graph of mixed precision.
    pub(crate) fn of_mixed(graph: Graph, variant: &str, stream: &mut Stream) -> Self {
        let limits = graph.outputs().iter().map(|(_, value)| mixed_limit(&graph, *value, variant)).collect();
        Self { limits, ..Self::of(graph, stream) }
    }

    /// A case of that seed with all in bfloat16 that can be, where anything can.
    pub(crate) fn of_mixed_case(case: &Case, seed: u64) -> Option<Self> {
        let mut stream = Stream::new(seed, Purpose::Test, 1, 0);
        let graph = mixed_everywhere(&(case.build)(&mut stream)).unwrap();
        let rounds = graph.values().iter().any(|value| value.ty.dtype == DType::Bf16);
        rounds.then(|| Self::of_mixed(graph, case.variant, &mut stream))
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
        let known = self.truth.iter().zip(&self.limits);
        for ((name, _), (found, (truth, &limit))) in self.graph.outputs().iter().zip(found.iter().zip(known)) {
            let error = simmim_testing::relative_error(found, truth);
            if error.is_nan() || error > limit {
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

#[test]
fn kernels_of_mixed_precision_agree_with_their_references() {
    let mut mixing = Vec::new();
    for case in cases() {
        for seed in 0..6 {
            if let Some(known) = Known::of_mixed_case(&case, seed) {
                check(&known, case.variant, seed);
                mixing.push(case.variant);
            }
        }
    }
    mixing.dedup();
    let expected = [
        "Attention",
        "AttentionGrad",
        "CosineHeads",
        "CosineHeadsGrad",
        "EmbedRowsGrad",
        "GatherRows",
        "LayerNorm",
        "LayerNormGradInput",
        "LayerNormGradParameters",
        "Linear",
        "LinearGradInput",
        "LinearGradWeight",
        "PatchGather",
        "PixelLossGrad",
        "Residual",
        "ResidualGrad",
        "ScatterAddRows",
        "WindowAttention",
        "WindowAttentionGrad",
    ];
    assert!(expected.iter().all(|op| mixing.contains(op)), "{mixing:?}");
}

/// All products of a layer of `outputs` x `inputs` on `rows` rows, in bfloat16. Even extents move in pieces, odd ones number by number.
pub(crate) fn rounded_products([rows, inputs, outputs]: [usize; 3], seed: u64) -> Known {
    let mut g = Graph::new();
    let input = |g: &mut Graph, name: &str, shape: &[usize]| g.input(name, TensorType::f32(shape));
    let [x, so_far] = ["x", "so far"].map(|name| input(&mut g, name, &[rows, inputs]));
    let [w, grad_w] = ["w", "grad w"].map(|name| input(&mut g, name, &[outputs, inputs]));
    let [b, grad_b] = ["b", "grad b"].map(|name| input(&mut g, name, &[outputs]));
    let grad = input(&mut g, "grad", &[rows, outputs]);
    let slope = input(&mut g, "slope", &[rows, inputs]);
    let mut results = g.apply(Linear { bias: true, gelu: true, rows: None }, &[x, w, b]).unwrap();
    results.extend(g.apply(Linear::default(), &[x, w]).unwrap());
    let through_gelu = LinearGradInput { gelu: true, ..LinearGradInput::default() };
    results.extend(g.apply(through_gelu, &[grad, w, slope]).unwrap());
    results.extend(g.apply(LinearGradInput::default(), &[grad, w]).unwrap());
    let adding = LinearGradInput { accumulate: true, ..LinearGradInput::default() };
    results.extend(g.apply(adding, &[grad, w, so_far]).unwrap());
    let of_weight = LinearGradWeight { rows: None, bias: true };
    results.extend(g.apply(of_weight, &[grad, x, grad_w, grad_b]).unwrap());
    for (at, value) in results.into_iter().enumerate() {
        g.output(format!("y{at}"), value);
    }
    let graph = mixed_everywhere(&g).unwrap();
    Known::of_mixed(graph, "Linear", &mut Stream::new(seed, Purpose::Test, 2, 0))
}

#[test]
fn products_of_bfloat16_are_right_in_whole_tiles_and_in_parts_of_them() {
    let extents = [[128, 64, 128], [136, 104, 264], [130, 107, 131], [1301, 40, 24], [1301, 33, 17]];
    for (extents, seed) in extents.into_iter().zip(0..) {
        check(&rounded_products(extents, seed), "Linear, bfloat16", seed);
    }
}

/// What is wanted as floats and by a product is written in both types at once.
#[test]
fn the_gradient_of_a_stream_is_written_as_floats_and_rounded() {
    for accumulate in [false, true] {
        let (rows, dim) = (7, 33);
        let mut g = Graph::new();
        let mut inputs: Vec<_> = ["g", "x"].map(|name| g.input(name, TensorType::f32([rows, dim]))).into();
        inputs.push(g.input("w", TensorType::f32([dim])));
        inputs.extend(["mean", "positive rstd"].map(|name| g.input(name, TensorType::f32([rows]))));
        if accumulate {
            inputs.push(g.input("so far", TensorType::f32([rows, dim])));
        }
        let grad = g.apply1(LayerNormGradInput { accumulate, rounded: false }, &inputs).unwrap();
        let weight = g.input("weight", TensorType::f32([20, dim]));
        let product = g.apply1(Linear::default(), &[grad, weight]).unwrap();
        g.output("gradient", grad);
        g.output("product", product);
        let graph = mixed(&g, |_| false).unwrap();
        let rounds = |op: &Op| matches!(op, Op::LayerNormGradInput(op) if op.rounded);
        assert!(graph.nodes().iter().any(|node| rounds(&node.op)), "{graph}");
        let mut known = Known::of_mixed(graph, "both", &mut Stream::new(5, Purpose::Test, 2, 0));
        // An operand on the edge of two numbers may go to the other one.
        known.limits[1] = 2f64.powi(-12);
        check(&known, "both", 5);
    }
}

/// Attention forward and backward with a bias, of two samples and heads.
pub(crate) fn attention(head_dim: usize, split: bool, extents: [usize; 2], seed: u64) -> Known {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    Known::of(attention_graph(head_dim, split, extents, &mut stream), &mut stream)
}

/// The same in bfloat16.
fn rounded_attention(head_dim: usize, split: bool, extents: [usize; 2], seed: u64) -> Known {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let graph = mixed_everywhere(&attention_graph(head_dim, split, extents, &mut stream)).unwrap();
    Known::of_mixed(graph, "Attention", &mut stream)
}

fn attention_graph(head_dim: usize, split: bool, [tokens, queries]: [usize; 2], stream: &mut Stream) -> Graph {
    let (heads, batch) = (2, 2);
    let dim = heads * head_dim;
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
    graph
}

/// Heads of each width that has kernels.
#[test]
fn heads_of_every_width_are_right() {
    for (head_dim, seed) in [(32, 0), (33, 1), (64, 2), (80, 3), (96, 4), (97, 5), (128, 6)] {
        for split in [false, true] {
            check(&attention(head_dim, split, [37, 19], seed), "attention", seed);
            check(&rounded_attention(head_dim, split, [37, 19], seed), "attention in bfloat16", seed);
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
