//! Every operation: the processor's kernel against the double precision reference, over random odd shapes, on every instruction
//! set of this machine, with one to three threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use simmim_cases::{Case, LIMIT, cases, mixed_limit, random_inputs};
use simmim_engine::cpu::{CpuExecutor, Isa};
use simmim_engine::graph::Node;
use simmim_engine::mixed::{mixed, mixed_everywhere};
use simmim_engine::ops::{LayerNormGradInput, Linear, Op};
use simmim_engine::reference::{Data, Tensor, evaluate};
use simmim_engine::{Executor, Graph, Program, TensorType};
use simmim_random::{Purpose, Stream};
use std::collections::HashMap;

fn run(graph: &Graph, given: &HashMap<String, Tensor>, isa: Isa, threads: usize) -> Vec<Vec<f32>> {
    let mut executor = CpuExecutor::with_isa(threads, isa).unwrap();
    let id = executor.load(Program::compile(graph).unwrap()).unwrap();
    #[allow(clippy::iter_over_hash_type, reason = "inputs are written in any order")]
    for (name, tensor) in given {
        match &tensor.data {
            Data::F64(data) => {
                let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
                executor.write(executor.input(id, name).unwrap(), &data).unwrap();
            }
            Data::I32(data) => executor.write_indices(executor.index_input(id, name).unwrap(), data).unwrap(),
        }
    }
    executor.run(id).unwrap();
    let read = |(name, value): &(String, simmim_engine::ValueId)| {
        let mut out = vec![0.0; graph.ty(*value).len()];
        executor.read(executor.output(id, name).unwrap(), &mut out).unwrap();
        out
    };
    graph.outputs().iter().map(read).collect()
}

fn check(case: &Case, seed: u64) {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let graph = (case.build)(&mut stream);
    let given = random_inputs(&graph, &mut stream);
    let values = evaluate(&graph, &given);
    let truth: Vec<Vec<f32>> =
        graph.outputs().iter().map(|(_, v)| values[v.index()].f64().iter().map(|&v| v as f32).collect()).collect();
    for isa in Isa::available() {
        let one = run(&graph, &given, isa, 1);
        for ((name, _), (found, truth)) in graph.outputs().iter().zip(one.iter().zip(&truth)) {
            let error = simmim_testing::relative_error(found, truth);
            assert!(error < LIMIT, "{} {name} on {}: {error:e}\n{graph}", case.variant, isa.name());
        }
        for threads in [2, 3] {
            for (a, b) in one.iter().zip(run(&graph, &given, isa, threads)) {
                let error = simmim_testing::relative_error(&b, a);
                assert!(error < 1e-6, "{} differs with {threads} threads: {error:e}", case.variant);
            }
        }
    }
}

/// The case with all in bfloat16 that can be, and whether that changes anything.
fn check_mixed(case: &Case, seed: u64) -> bool {
    let mut stream = Stream::new(seed, Purpose::Test, 1, 0);
    let floats = (case.build)(&mut stream);
    let graph = mixed_everywhere(&floats).unwrap();
    graph.verify().unwrap();
    let given = random_inputs(&graph, &mut stream);
    let values = evaluate(&graph, &given);
    for isa in Isa::available() {
        let one = run(&graph, &given, isa, 1);
        for ((name, value), found) in graph.outputs().iter().zip(&one) {
            let truth: Vec<f32> = values[value.index()].f64().iter().map(|&v| v as f32).collect();
            let error = simmim_testing::relative_error(found, &truth);
            let bound = mixed_limit(&graph, *value, case.variant);
            assert!(error <= bound, "{} {name} on {}: {error:e} > {bound:e}\n{graph}", case.variant, isa.name());
        }
        assert_eq!(one, run(&graph, &given, isa, 3), "{} differs with threads on {}", case.variant, isa.name());
    }
    graph.nodes().len() > floats.nodes().len()
}

/// What is wanted as floats and by a product is written in both types at once.
#[test]
fn the_gradient_of_a_stream_is_written_as_floats_and_rounded() {
    let mut stream = Stream::new(3, Purpose::Test, 2, 0);
    for (rows, dim) in [(1, 16), (7, 33), (130, 48)] {
        for accumulate in [false, true] {
            let mut floats = Graph::new();
            let mut inputs: Vec<_> = ["g", "x"].map(|name| floats.input(name, TensorType::f32([rows, dim]))).into();
            inputs.push(floats.input("w", TensorType::f32([dim])));
            inputs.extend(["mean", "positive rstd"].map(|name| floats.input(name, TensorType::f32([rows]))));
            if accumulate {
                inputs.push(floats.input("so far", TensorType::f32([rows, dim])));
            }
            let op = LayerNormGradInput { accumulate, rounded: false };
            let grad = floats.apply1(op, &inputs).unwrap();
            let weight = floats.input("weight", TensorType::f32([20, dim]));
            let product = floats.apply1(Linear::default(), &[grad, weight]).unwrap();
            floats.output("gradient", grad);
            floats.output("product", product);
            let graph = mixed(&floats, |_| false).unwrap();
            let rounds = |node: &Node| matches!(node.op, Op::LayerNormGradInput(op) if op.rounded);
            assert!(graph.nodes().iter().any(rounds), "{graph}");
            let given = random_inputs(&graph, &mut stream);
            let values = evaluate(&graph, &given);
            for isa in Isa::available() {
                for (found, (name, value)) in run(&graph, &given, isa, 2).iter().zip(graph.outputs()) {
                    let truth: Vec<f32> = values[value.index()].f64().iter().map(|&v| v as f32).collect();
                    // An operand on the edge of two numbers may go to the other one.
                    let bound = if name == "product" { 2f64.powi(-12) } else { 2e-5 };
                    let error = simmim_testing::relative_error(found, &truth);
                    assert!(error < bound, "{name} on {}: {error:e}\n{graph}", isa.name());
                }
            }
        }
    }
}

#[test]
fn kernels_of_mixed_precision_agree_with_their_references() {
    let mixes = |case: &Case| (0..12).filter(|&seed| check_mixed(case, seed)).count() > 3;
    let mixing: Vec<&str> = cases().into_iter().filter(mixes).map(|case| case.variant).collect();
    let expected = [
        "Attention",
        "AttentionGrad",
        "GatherRows",
        "LayerNorm",
        "LayerNormGradInput",
        "LayerNormGradParameters",
        "Linear",
        "LinearGradInput",
        "LinearGradWeight",
        "Residual",
        "ResidualGrad",
        "ScatterAddRows",
        "WindowAttention",
        "WindowAttentionGrad",
    ];
    assert!(expected.iter().all(|op| mixing.contains(op)), "{mixing:?}");
}

#[test]
fn kernels_agree_with_their_references() {
    for case in cases() {
        for seed in 0..12 {
            check(&case, seed);
        }
    }
}
