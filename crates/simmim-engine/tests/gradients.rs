//! The backward rules against central differences of the forward references, in double precision.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use simmim_engine::autodiff::{GRADIENT_PREFIX, differentiate, differentiate_states};
use simmim_engine::graph::{Graph, TensorType, ValueId};
use simmim_engine::ops::*;
use simmim_engine::reference::{Tensor, evaluate};
use simmim_random::{Purpose, Stream};
use std::collections::HashMap;

const STEP: f64 = 1e-5;

/// Ends a graph with a smooth loss against a random target, differentiates it, and compares every gradient.
fn check(name: &str, mut graph: Graph, y: ValueId) {
    let shape = graph.shape(y).to_vec();
    let target = graph.input("target", TensorType::f32(shape));
    let loss = graph.apply1(PixelLoss { kind: PixelDistance::L2, scale: 0.5, weighted: false }, &[y, target]).unwrap();
    check_loss(name, graph, loss);
}

fn check_loss(name: &str, mut graph: Graph, loss: ValueId) {
    let forward = graph.clone();
    let gradients = differentiate(&mut graph, loss).unwrap();
    graph.verify().unwrap();
    let mut stream = Stream::new(11, Purpose::Test, 0, 0);
    let mut given = HashMap::new();
    for (_, v) in forward.inputs().chain(forward.states()) {
        let data = (0..v.ty.len()).map(|_| stream.normal()).collect();
        given.insert(v.name.clone(), Tensor::floats(v.ty.shape.clone(), data));
    }
    let values = evaluate(&graph, &given);
    assert!(!gradients.states.is_empty(), "{name} has no gradients");
    for (state, gradient) in gradients.states {
        let value = graph.value(state).clone();
        assert!(!value.name.starts_with(GRADIENT_PREFIX));
        for at in 0..value.ty.len() {
            let loss_at = |delta: f64| {
                let mut moved = given.clone();
                let mut data = moved[&value.name].f64().to_vec();
                data[at] += delta;
                moved.insert(value.name.clone(), Tensor::floats(value.ty.shape.clone(), data));
                evaluate(&forward, &moved)[loss.index()].f64()[0]
            };
            let truth = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            let found = values[gradient.index()].f64()[at];
            assert!(
                (found - truth).abs() < 1e-6 * truth.abs().max(1.0),
                "{name}: {}[{at}] is {found}, expected {truth}",
                value.name
            );
        }
    }
}

#[test]
fn linear() {
    for (bias, gelu, rows) in [
        (true, false, None),
        (false, false, None),
        (true, true, None),
        (true, true, Some(RowRange { start: 1, len: 2 })),
        (false, false, Some(RowRange { start: 2, len: 2 })),
    ] {
        let mut g = Graph::new();
        let mut inputs = vec![g.state("x", &[2, 3, 5]), g.state("w", &[4, 5])];
        if bias {
            inputs.push(g.state("b", &[4]));
        }
        let y = g.apply1(Linear { bias, gelu, rows }, &inputs).unwrap();
        check("linear", g, y);
    }
}

#[test]
fn layer_norm() {
    let mut g = Graph::new();
    let inputs = [g.state("x", &[3, 7]), g.state("w", &[7]), g.state("b", &[7])];
    let y = g.apply1(LayerNorm { eps: 1e-3 }, &inputs).unwrap();
    check("layer_norm", g, y);
}

#[test]
fn attention() {
    for bias in [false, true] {
        let mut g = Graph::new();
        let mut inputs = vec![g.state("qkv", &[2, 5, 18])];
        if bias {
            inputs.push(g.state("bias", &[3, 5, 5]));
        }
        let y = g.apply1(Attention { heads: 3, packing: Packing::Packed, bias }, &inputs).unwrap();
        check("packed attention", g, y);

        let mut g = Graph::new();
        let mut inputs = vec![g.state("q", &[2, 3, 4]), g.state("kv", &[2, 5, 8])];
        if bias {
            inputs.push(g.state("bias", &[2, 5, 5]));
            inputs.push(g.constant("query", &[2, 3], vec![4, 0, 4, 1, 2, 3]));
        }
        let y = g.apply1(Attention { heads: 2, packing: Packing::Split, bias }, &inputs).unwrap();
        check("split attention", g, y);
    }
}

#[test]
fn window_attention() {
    for case in 0..8 {
        let (region, bias, pad) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
        let tokens = if pad { 6 } else { 8 };
        let mut g = Graph::new();
        let mut inputs = vec![g.state("qkv", &[2, tokens, 12])];
        let index = [5, 0, 6, 2, 1, 3, 7, 4].map(|i: i32| i.min(tokens as i32));
        inputs.push(g.constant("index", &[2, 4], index.to_vec()));
        if region {
            inputs.push(g.constant("region", &[2, 4], vec![0, 1, 0, 0, 2, 2, 2, 2]));
        }
        if bias {
            inputs.push(g.state("bias", &[2, 4, 4]));
        }
        if pad {
            inputs.push(g.state("pad", &[12]));
        }
        let y = g.apply1(WindowAttention { heads: 2, scale: 0.6, region, bias, pad }, &inputs).unwrap();
        check("window_attention", g, y);
    }
}

#[test]
fn cosine_heads_and_pointwise_functions() {
    let mut g = Graph::new();
    let x = g.state("x", &[3, 24]);
    let qkv = g.apply1(Reshape { shape: vec![6, 12] }, &[x]).unwrap();
    let scale = g.state("scale", &[2, 1, 1]);
    let y = g.apply1(CosineHeads { heads: 2 }, &[qkv, scale]).unwrap();
    check("cosine_heads", g, y);
    for function in [Function::Relu, Function::Sigmoid { scale: 16.0 }] {
        let mut g = Graph::new();
        let x = g.state("x", &[3, 7]);
        let y = g.apply1(Pointwise { function }, &[x]).unwrap();
        check("pointwise", g, y);
    }
}

#[test]
fn residual() {
    for (gamma, keep) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut g = Graph::new();
        let mut inputs = vec![g.state("x", &[2, 3, 4]), g.state("branch", &[2, 3, 4])];
        if gamma {
            inputs.push(g.state("gamma", &[4]));
        }
        if keep {
            inputs.push(g.input("keep", TensorType::f32([2])));
        }
        let y = g.apply1(Residual { gamma, keep }, &inputs).unwrap();
        check("residual", g, y);
    }
}

#[test]
fn embed_rows() {
    for case in 0..16 {
        let (mask_token, cls_token, pos_embed) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
        let registers = if case & 8 > 0 { 3 } else { 0 };
        let op = EmbedRows { tokens: 4, mask_token, cls_token, registers, pos_embed, offset: 1 };
        let mut g = Graph::new();
        let mut inputs = vec![g.state("patches", &[2, 3, 2]), g.constant("index", &[2, 3], vec![0, 3, 2, 1, 3, 0])];
        for (there, name, rows) in [
            (mask_token, "mask_token", 1),
            (cls_token, "cls_token", 1),
            (registers > 0, "reg_token", registers),
            (pos_embed, "pos_embed", 5),
        ] {
            if there {
                inputs.push(g.state(name, &[1, rows, 2]));
            }
        }
        let y = g.apply1(op, &inputs).unwrap();
        check("embed_rows", g, y);
    }
}

#[test]
fn gathers_and_bias_tables() {
    let mut g = Graph::new();
    let inputs = [g.state("x", &[4, 3]), g.constant("index", &[2, 3], vec![3, 3, 0, 1, 3, 0])];
    let y = g.apply1(GatherRows, &inputs).unwrap();
    check("gather_rows", g, y);

    let mut g = Graph::new();
    let inputs = [g.state("x", &[2, 3, 2]), g.constant("index", &[3, 2], vec![5, 3, 0, 1, 4, 2])];
    let y = g.apply1(GatherRows, &inputs).unwrap();
    let again = g.apply1(GatherRows, &inputs).unwrap();
    let sum = g.apply1(Residual::default(), &[y, again]).unwrap();
    check("gather_rows by a permutation", g, sum);

    let mut g = Graph::new();
    let inputs = [g.state("table", &[5, 2]), g.constant("index", &[2, 3], vec![4, 4, 0, 1, 2, 0])];
    let y = g.apply1(RelativeBias, &inputs).unwrap();
    check("relative_bias", g, y);

    let mut g = Graph::new();
    let inputs = [g.state("q", &[3]), g.state("v", &[3])];
    let y = g.apply1(QkvBias, &inputs).unwrap();
    check("qkv_bias", g, y);
}

#[test]
fn losses() {
    for kind in [PixelDistance::L1, PixelDistance::L2, PixelDistance::SmoothL1 { beta: 0.8 }] {
        for weighted in [false, true] {
            let mut g = Graph::new();
            let mut inputs = vec![g.state("p", &[3, 4]), g.input("t", TensorType::f32([3, 4]))];
            if weighted {
                inputs.push(g.input("weight", TensorType::f32([3])));
            }
            let loss = g.apply1(PixelLoss { kind, scale: 0.3, weighted }, &inputs).unwrap();
            check_loss("pixel_loss", g, loss);
        }
    }
}

#[test]
fn cross_entropy() {
    let mut g = Graph::new();
    let inputs = [g.state("logits", &[3, 5]), g.input("targets", TensorType::f32([3, 5]))];
    let loss = g.apply1(CrossEntropy { scale: 0.3 }, &inputs).unwrap();
    check_loss("cross_entropy", g, loss);
}

#[test]
fn mean_tokens() {
    for skip in [0, 1] {
        let mut g = Graph::new();
        let x = g.state("x", &[2, 4, 3]);
        let y = g.apply1(MeanTokens { skip }, &[x]).unwrap();
        check("mean_tokens", g, y);
    }
}

/// What is frozen gets no gradient, and nothing is computed for it; what follows it does.
#[test]
fn frozen_states_have_no_backward() {
    let mut g = Graph::new();
    let (x, below, above) =
        (g.input("x", TensorType::f32([3, 4])), g.state("below", &[4, 4]), g.state("above", &[2, 4]));
    let hidden = g.apply1(Linear { gelu: true, ..Linear::default() }, &[x, below]).unwrap();
    let y = g.apply1(Linear::default(), &[hidden, above]).unwrap();
    let target = g.input("target", TensorType::f32([3, 2]));
    let loss = g.apply1(PixelLoss { kind: PixelDistance::L2, scale: 1.0, weighted: false }, &[y, target]).unwrap();
    let gradients = differentiate_states(&mut g, loss, |name| name != "below").unwrap();
    assert_eq!(gradients.states.iter().map(|(s, _)| *s).collect::<Vec<_>>(), [above]);
    let products = g.nodes().iter().filter(|n| matches!(n.op, Op::LinearGradInput(_) | Op::LinearGradWeight(_)));
    assert_eq!(products.count(), 1);
    assert!(g.find_state("grad.below").is_none());
}

/// A bias or a scale is trained although what stands before it is frozen: its gradient is that of a training of everything.
#[test]
fn a_state_behind_a_frozen_one_gets_its_gradient() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([3, 4]));
    let (weight, bias) = (g.state("weight", &[4, 4]), g.state("bias", &[4]));
    let (norm_weight, norm_bias) = (g.state("norm.weight", &[4]), g.state("norm.bias", &[4]));
    let gamma = g.state("gamma", &[4]);
    let hidden = g.apply1(Linear { bias: true, ..Linear::default() }, &[x, weight, bias]).unwrap();
    let normed = g.apply1(LayerNorm { eps: 1e-3 }, &[x, norm_weight, norm_bias]).unwrap();
    let sum = g.apply1(Residual { gamma: true, keep: false }, &[hidden, normed, gamma]).unwrap();
    let y = g.apply1(Residual { gamma: true, keep: false }, &[sum, x, gamma]).unwrap();
    let target = g.input("target", TensorType::f32([3, 4]));
    let loss = g.apply1(PixelLoss { kind: PixelDistance::L2, scale: 1.0, weighted: false }, &[y, target]).unwrap();
    let mut stream = Stream::new(3, Purpose::Test, 0, 0);
    let mut given = HashMap::new();
    for (_, v) in g.inputs().chain(g.states()) {
        let data = (0..v.ty.len()).map(|_| stream.normal()).collect();
        given.insert(v.name.clone(), Tensor::floats(v.ty.shape.clone(), data));
    }
    let gradients_of = |trains: &dyn Fn(&str) -> bool| {
        let mut graph = g.clone();
        let gradients = differentiate_states(&mut graph, loss, trains).unwrap();
        let values = evaluate(&graph, &given);
        let named = |(s, v): (ValueId, ValueId)| (graph.value(s).name.clone(), values[v.index()].f64().to_vec());
        gradients.states.into_iter().map(named).collect::<HashMap<_, _>>()
    };
    let all = gradients_of(&|_| true);
    assert!(all.len() == 5 && all.values().all(|g| g.iter().any(|&v| v != 0.0)));
    for trained in ["bias", "norm.bias", "gamma"] {
        let found = gradients_of(&|name| name == trained);
        assert_eq!(found.len(), 1, "{trained}");
        assert_eq!(found[trained], all[trained], "{trained}");
    }
}

#[test]
fn differentiation_starts_at_a_loss_and_forgets_no_state() {
    let mut g = Graph::new();
    let (x, w) = (g.input("x", TensorType::f32([3, 4])), g.state("w", &[2, 4]));
    let y = g.apply1(Linear::default(), &[x, w]).unwrap();
    let refused = differentiate(&mut g.clone(), y).unwrap_err().to_string();
    assert!(refused.starts_with("`linear` is no loss"), "{refused}");
    assert!(differentiate(&mut g.clone(), w).unwrap_err().to_string().starts_with("`w` is no loss"));

    // A target that is trained would silently stay as it is.
    let target = g.state("target", &[3, 2]);
    let loss = g.apply1(PixelLoss { kind: PixelDistance::L2, scale: 1.0, weighted: false }, &[y, target]).unwrap();
    let refused = differentiate(&mut g, loss).unwrap_err().to_string();
    assert_eq!(refused, "pixel_loss has no backward rule for its input 1");

    let mut g = Graph::new();
    let (images, index) = (g.state("images", &[1, 1, 4, 4]), g.constant("index", &[1, 1], vec![0]));
    let patches = g.apply1(PatchGather { patch: (2, 2), normalise: None }, &[images, index]).unwrap();
    let target = g.input("target", TensorType::f32([1, 1, 4]));
    let loss =
        g.apply1(PixelLoss { kind: PixelDistance::L2, scale: 1.0, weighted: false }, &[patches, target]).unwrap();
    assert!(matches!(differentiate(&mut g, loss), Err(simmim_engine::EngineError::NoBackward { .. })));
}

/// One value read by several operations: its gradient is the sum of what each contributes.
#[test]
fn a_value_that_is_read_several_times() {
    let mut g = Graph::new();
    let (x, w) = (g.state("x", &[3, 4]), g.state("w", &[4, 4]));
    let once = g.apply1(Linear::default(), &[x, w]).unwrap();
    let twice = g.apply1(Linear { gelu: true, ..Linear::default() }, &[once, w]).unwrap();
    let sum = g.apply1(Residual::default(), &[once, twice]).unwrap();
    let index = g.constant("index", &[2], vec![1, 1]);
    let (a, b) = (g.apply1(GatherRows, &[sum, index]).unwrap(), g.apply1(GatherRows, &[once, index]).unwrap());
    let y = g.apply1(Residual::default(), &[a, b]).unwrap();
    check("a value read several times", g, y);
}
