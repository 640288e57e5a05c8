//! Every operation against the double precision reference at odd shapes, and the large ones against another executor at real
//! shapes, for which the reference is too slow.

use super::{Report, Subject, relative_error};
use crate::diagnostics::Failure;
use simmim_cases::{Case, LIMIT, cases, mixed_limit, random_inputs};
use simmim_engine::mixed::mixed_everywhere;
use simmim_engine::ops::{
    Attention, AttentionGrad, LayerNorm, Linear, LinearGradInput, LinearGradWeight, Packing, WindowAttention,
    WindowAttentionGrad,
};
use simmim_engine::reference::{Data, Tensor, evaluate};
use simmim_engine::{DType, EngineError, Executor, Graph, Program, TensorType, ValueId};
use simmim_random::{Purpose, Stream};
use std::collections::HashMap;

/// Random shapes of each operation.
const SHAPES: u64 = 6;

type Given = HashMap<String, Tensor>;

/// The outputs of a graph.
fn run(executor: &mut dyn Executor, graph: &Graph, given: &Given) -> Result<Vec<Vec<f32>>, EngineError> {
    let id = executor.load(Program::compile(graph)?)?;
    #[allow(clippy::iter_over_hash_type, reason = "inputs are written in any order")]
    for (name, tensor) in given {
        match &tensor.data {
            Data::F64(data) => {
                let data: Vec<f32> = data.iter().map(|&v| v as f32).collect();
                executor.write(executor.input(id, name)?, &data)?;
            }
            Data::I32(data) => executor.write_indices(executor.index_input(id, name)?, data)?,
        }
    }
    executor.run(id)?;
    let read = |(name, value): &(String, ValueId)| {
        let mut out = vec![0.0; graph.ty(*value).len()];
        executor.read(executor.output(id, name)?, &mut out)?;
        Ok(out)
    };
    graph.outputs().iter().map(read).collect()
}

fn worst(found: &[Vec<f32>], truth: &[Vec<f32>]) -> f64 {
    found.iter().zip(truth).map(|(a, b)| relative_error(a, b)).fold(0.0, f64::max)
}

/// A line for each operation: its worst error over several shapes. Another one where it takes bfloat16.
pub(super) fn check(subject: &Subject<'_>, report: &mut Report) -> Result<(), Failure> {
    let mut executor = subject.open()?;
    for case in cases() {
        for mixed in [false, true] {
            let mut worst = None;
            for seed in 0..SHAPES {
                for (error, limit) in errors(&mut *executor, &case, seed, mixed)? {
                    let (most, its_limit) = worst.unwrap_or((0.0, LIMIT));
                    worst = Some(if error / limit >= most / its_limit { (error, limit) } else { (most, its_limit) });
                }
            }
            let numbers = if mixed { " in bfloat16" } else { "" };
            if let Some((error, limit)) = worst {
                report.error(&format!("{}{numbers} at odd shapes", case.variant), error, limit);
            }
        }
    }
    Ok(())
}

/// Error and limit of each output of a case of that seed; none where bfloat16 is asked for and nothing can be.
fn errors(executor: &mut dyn Executor, case: &Case, seed: u64, mixed: bool) -> Result<Vec<(f64, f64)>, EngineError> {
    let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
    let mut graph = (case.build)(&mut stream);
    if mixed {
        graph = mixed_everywhere(&graph)?;
        if graph.values().iter().all(|value| value.ty.dtype != DType::Bf16) {
            return Ok(Vec::new());
        }
    }
    let given = random_inputs(&graph, &mut stream);
    let values = evaluate(&graph, &given);
    let found = run(executor, &graph, &given)?;
    let error = |((_, value), found): (&(String, ValueId), &Vec<f32>)| {
        let truth: Vec<f32> = values[value.index()].f64().iter().map(|&v| v as f32).collect();
        let limit = if mixed { mixed_limit(&graph, *value, case.variant) } else { LIMIT };
        (relative_error(found, &truth), limit)
    };
    Ok(graph.outputs().iter().zip(&found).map(error).collect())
}

/// Graphs of the size of ViT-B/16 on eight images, and of Swin-T.
fn real_shapes() -> Result<Vec<(&'static str, Graph)>, EngineError> {
    let (batch, tokens, dim, hidden, heads) = (8, 197, 768, 3072, 12);
    let floats = |shape: &[usize]| TensorType::f32(shape);
    let finish = |mut graph: Graph, values: Vec<ValueId>| {
        values.into_iter().enumerate().for_each(|(at, value)| graph.output(format!("y{at}"), value));
        graph
    };
    let mut all = Vec::new();
    let mut g = Graph::new();
    let x = g.input("x", floats(&[batch, tokens, dim]));
    let (w, b) = (g.input("w", floats(&[hidden, dim])), g.input("b", floats(&[hidden])));
    let y = g.apply(Linear { bias: true, gelu: true, rows: None }, &[x, w, b])?;
    all.push(("linear with GELU of ViT-B/16", finish(g, y)));
    let mut g = Graph::new();
    let (grad, w) = (g.input("g", floats(&[batch, tokens, hidden])), g.input("w", floats(&[hidden, dim])));
    let y = g.apply(LinearGradInput::default(), &[grad, w])?;
    all.push(("gradient of its input of ViT-B/16", finish(g, y)));
    let mut g = Graph::new();
    let (grad, x) = (g.input("g", floats(&[batch, tokens, hidden])), g.input("x", floats(&[batch, tokens, dim])));
    let (w, b) = (g.input("w", floats(&[hidden, dim])), g.input("b", floats(&[hidden])));
    let y = g.apply(LinearGradWeight { rows: None, bias: true }, &[grad, x, w, b])?;
    all.push(("gradient of its weight of ViT-B/16", finish(g, y)));
    let mut g = Graph::new();
    let x = g.input("x", floats(&[batch, tokens, dim]));
    let (w, b) = (g.input("w", floats(&[dim])), g.input("b", floats(&[dim])));
    let y = g.apply(LayerNorm { eps: 1e-6 }, &[x, w, b])?;
    all.push(("layer norm of ViT-B/16", finish(g, y)));
    let mut g = Graph::new();
    let (qkv, bias) =
        (g.input("qkv", floats(&[batch, tokens, 3 * dim])), g.input("bias", floats(&[heads, tokens, tokens])));
    let op = Attention { heads, packing: Packing::Packed, bias: true };
    let mut y = g.apply(op, &[qkv, bias])?;
    let (grad, sum) = (g.input("g", floats(&[batch, tokens, dim])), g.input("sum", floats(&[heads, tokens, tokens])));
    y.extend(g.apply(AttentionGrad { forward: op }, &[grad, y[0], y[1], qkv, bias, sum])?);
    all.push(("attention of ViT-B/16, both ways", finish(g, y)));
    all.push(("windowed attention of Swin-T, both ways", windowed_attention()?));
    Ok(all)
}

/// The first stage of a Swin-T, its windows without a shift.
fn windowed_attention() -> Result<Graph, EngineError> {
    let (batch, side, window, heads, dim) = (4, 56, 7, 3, 96);
    let (tokens, places) = (side * side, window * window);
    let mut g = Graph::new();
    let token = |at: usize| {
        let (w, place) = (at / places, at % places);
        let (row, col) = (w / (side / window) * window + place / window, w % (side / window) * window + place % window);
        (row * side + col) as i32
    };
    let index = g.constant("index", &[tokens / places, places], (0..tokens).map(token).collect());
    let qkv = g.input("qkv", TensorType::f32([batch, tokens, 3 * dim]));
    let [bias, sum] = ["bias", "sum"].map(|name| g.input(name, TensorType::f32([heads, places, places])));
    let op = WindowAttention { heads, scale: 0.18, region: false, bias: true, pad: false };
    let mut y = g.apply(op, &[qkv, index, bias])?;
    let grad = g.input("g", TensorType::f32([batch, tokens, dim]));
    y.extend(g.apply(WindowAttentionGrad { forward: op }, &[grad, y[0], y[1], qkv, index, bias, sum])?);
    y.into_iter().enumerate().for_each(|(at, value)| g.output(format!("y{at}"), value));
    Ok(g)
}

/// The operations that matter most, at the shapes of ViT-B/16 and Swin-T, against the portable kernels of the processor.
pub(super) fn check_real_shapes(
    subject: &Subject<'_>,
    reference: &Subject<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let (mut tested, mut other) = (subject.open()?, reference.open()?);
    for (name, graph) in real_shapes()? {
        let given = random_inputs(&graph, &mut Stream::new(7, Purpose::Test, 0, 0));
        let (found, truth) = (run(&mut *tested, &graph, &given)?, run(&mut *other, &graph, &given)?);
        report.error(name, worst(&found, &truth), LIMIT);
    }
    Ok(())
}
