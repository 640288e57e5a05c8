//! Mixed precision as a pass over the graph: matrix products of bfloat16 whose sums, and everything else that adds up, are floats
//! (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740; Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
//! Training", arXiv 1905.12322).
//!
//! [`mixed`] rewrites a graph of floats, differentiated or not. Each operation says what it takes ([`Operation::precision`]):
//!
//! - Operands of a product are bfloat16. A value that a product makes or reads, and that its other readers can convert, is stored in
//!   bfloat16 alone; where another reader wants floats, a [`Cast`] stands between.
//! - A state that a product reads is read from a copy, the state `bf16.NAME`. Executors write the copy whenever the state is written;
//!   [`keep_copies`] makes AdamW write it as it updates.
//! - Parameters, gradients, moments, sums, the statistics of norms and of softmax, the residual stream and its gradient, and the loss stay
//!   floats.

use crate::error::EngineError;
use crate::graph::{DType, Graph, Node, Rewrite, TensorType, ValueId, ValueKind};
use crate::ops::{AdamW, Cast, LayerNormGradInput, Op, Operation, Port, Precision};
use std::collections::BTreeSet;

/// Prefix of the states that hold the bfloat16 copy of another one.
pub const COPY_PREFIX: &str = "bf16.";

/// Shorter products stay floats: they cost nothing, and few terms do not even out their rounding.
const SHORTEST: usize = 16;

/// The graph with its products in bfloat16. `copied` says which of the states that products read have a copy; the others are cast in
/// every run.
///
/// # Errors
/// As [`Graph::verify`].
pub fn mixed(graph: &Graph, copied: impl Fn(&str) -> bool) -> Result<Graph, EngineError> {
    lower(graph, &copied, false)
}

/// As [`mixed`], with everything in bfloat16 that can be: the shortest products and values that no product touches too. For tests of kernels.
///
/// # Errors
/// As [`mixed`].
pub fn mixed_everywhere(graph: &Graph) -> Result<Graph, EngineError> {
    lower(graph, &|_| false, true)
}

fn lower(graph: &Graph, copied: &dyn Fn(&str) -> bool, everywhere: bool) -> Result<Graph, EngineError> {
    let rewrite = Rewrite::new(graph)?;
    let stored = Stored::decide(graph, everywhere);
    let mut lowering = Lowering {
        rewrite,
        floats: vec![None; graph.values().len()],
        rounded: vec![None; graph.values().len()],
        copied,
        everywhere,
    };
    for (node, rounds) in graph.nodes().iter().zip(&stored.products) {
        lowering.node(node, *rounds, &stored)?;
    }
    for (name, value) in graph.outputs() {
        let value = lowering.float(*value)?;
        lowering.rewrite.to.output(name.clone(), value);
    }
    Ok(lowering.rewrite.to)
}

/// Names of the states of which the graph reads a copy in bfloat16.
#[must_use]
pub fn copies(graph: &Graph) -> BTreeSet<String> {
    graph.states().filter_map(|(_, state)| state.name.strip_prefix(COPY_PREFIX)).map(str::to_owned).collect()
}

/// The graph of an update in which AdamW writes the copies of these states too.
///
/// # Errors
/// As [`Graph::verify`].
pub fn keep_copies(graph: &Graph, copies: &BTreeSet<String>) -> Result<Graph, EngineError> {
    let mut rewrite = Rewrite::new(graph)?;
    for node in graph.nodes() {
        let mut inputs = node.inputs.iter().map(|&v| rewrite.value(v)).collect::<Result<Vec<_>, _>>()?;
        let parameter = node.inputs.first().map(|&v| graph.value(v));
        let op = match (&node.op, parameter) {
            (Op::AdamW(adamw), Some(parameter)) if copies.contains(&parameter.name) => {
                let ty = parameter.ty.clone().with_dtype(DType::Bf16);
                inputs.push(rewrite.to.state_of(&format!("{COPY_PREFIX}{}", parameter.name), ty));
                Op::from(AdamW { copy: true, ..*adamw })
            }
            (op, _) => op.clone(),
        };
        rewrite.apply(node, op, &inputs, &[])?;
    }
    rewrite.finish()
}

/// Which nodes multiply bfloat16, and which values are stored so.
struct Stored {
    /// Of each node: whether its products are of bfloat16.
    products: Vec<bool>,
    /// Of each value: whether it is stored in bfloat16.
    values: Vec<bool>,
    /// Of each value: whether a product reads it in bfloat16.
    read_rounded: Vec<bool>,
}

impl Stored {
    fn decide(graph: &Graph, everywhere: bool) -> Self {
        let shortest = if everywhere { 1 } else { SHORTEST };
        let products: Vec<bool> = graph.nodes().iter().map(|node| multiplies(graph, node, shortest)).collect();
        let count = graph.values().len();
        let (mut possible, mut wanted, mut read_rounded) = (vec![false; count], vec![false; count], vec![false; count]);
        for (node, &rounds) in graph.nodes().iter().zip(&products) {
            for (port, output) in node.outputs.iter().enumerate() {
                possible[output.index()] = takes(graph, node, rounds, Port::Output(port));
                wanted[output.index()] = rounds || everywhere;
            }
        }
        for (_, value) in graph.outputs() {
            possible[value.index()] &= everywhere;
        }
        for (node, &rounds) in graph.nodes().iter().zip(&products) {
            for (port, input) in node.inputs.iter().enumerate() {
                possible[input.index()] &= takes(graph, node, rounds, Port::Input(port));
                let multiplied = rounds && node.op.precision(Port::Input(port)) == Precision::Product;
                wanted[input.index()] |= multiplied;
                read_rounded[input.index()] |= multiplied;
            }
        }
        let mut values: Vec<bool> = possible.iter().zip(&wanted).map(|(p, w)| *p && *w).collect();
        for (node, &rounds) in graph.nodes().iter().zip(&products) {
            let of = |wanted: Precision| {
                let ports = node.outputs.iter().enumerate();
                ports.filter(move |(port, _)| node.op.precision(Port::Output(*port)) == wanted).map(|(_, v)| v.index())
            };
            of(Precision::Product).for_each(|v| values[v] = rounds);
            // What an operation converts, it writes alike.
            let alike = of(Precision::Either).all(|v| values[v]);
            of(Precision::Either).for_each(|v| values[v] &= alike);
        }
        Self { products, values, read_rounded }
    }
}

/// Whether a node has products that are worth rounding for.
fn multiplies(graph: &Graph, node: &Node, shortest: usize) -> bool {
    let ports = node.inputs.iter().enumerate();
    let mut operands = ports
        .filter(|(port, _)| node.op.precision(Port::Input(*port)) == Precision::Product)
        .map(|(_, v)| v)
        .peekable();
    operands.peek().is_some() && operands.all(|v| graph.ty(*v).columns() >= shortest)
}

/// Whether a node that multiplies bfloat16, or not, takes it at a port.
fn takes(graph: &Graph, node: &Node, rounds: bool, port: Port) -> bool {
    let types: Vec<TensorType> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
    match node.op.precision(port) {
        Precision::Float => false,
        Precision::Either => rounds || node.op.product_type(&types).is_none(),
        Precision::Product => rounds,
        Precision::Rounded => true,
    }
}

struct Lowering<'a> {
    /// Each value as it is stored.
    rewrite: Rewrite<'a>,
    /// Each value as floats, where it was asked for so.
    floats: Vec<Option<ValueId>>,
    /// Each value as bfloat16, where it was asked for so.
    rounded: Vec<Option<ValueId>>,
    copied: &'a dyn Fn(&str) -> bool,
    everywhere: bool,
}

impl Lowering<'_> {
    fn node(&mut self, node: &Node, rounds: bool, stored: &Stored) -> Result<(), EngineError> {
        self.rewrite.to.set_scope(&node.scope);
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (port, &value) in node.inputs.iter().enumerate() {
            let ty = self.rewrite.from.ty(value);
            inputs.push(match node.op.precision(Port::Input(port)) {
                _ if !ty.dtype.is_float() => self.rewrite.value(value)?,
                Precision::Product if rounds => self.rounded(value)?,
                Precision::Either if self.everywhere => self.rounded(value)?,
                Precision::Either if takes(self.rewrite.from, node, rounds, Port::Input(port)) => {
                    self.rewrite.value(value)?
                }
                Precision::Rounded => self.rounded(value)?,
                Precision::Float | Precision::Either | Precision::Product => self.float(value)?,
            });
        }
        let in_place = node.op.in_place();
        let ports = node.outputs.iter().enumerate();
        // What is modified in place stays of its type.
        let types: Vec<DType> = ports
            .map(|(port, v)| match in_place.iter().find(|(_, to)| *to == port) {
                Some(&(from, _)) => self.rewrite.to.ty(inputs[from]).dtype,
                None if stored.values[v.index()] => DType::Bf16,
                None => self.rewrite.from.ty(*v).dtype,
            })
            .collect();
        if let (Op::LayerNormGradInput(op), [output]) = (&node.op, &*node.outputs)
            && !stored.values[output.index()]
            && stored.read_rounded[output.index()]
        {
            // The gradient of the residual stream is wanted as floats and as an operand: both are written while it is at hand.
            let op = LayerNormGradInput { rounded: true, ..*op };
            let outputs = self.rewrite.to.apply_as(op.into(), &inputs, &[])?;
            self.rewrite.define(*output, outputs[0]);
            self.rounded[output.index()] = Some(outputs[1]);
            return Ok(());
        }
        self.rewrite.apply(node, node.op.clone(), &inputs, &types)
    }

    fn float(&mut self, value: ValueId) -> Result<ValueId, EngineError> {
        let stored = self.rewrite.value(value)?;
        if self.rewrite.to.ty(stored).dtype != DType::Bf16 {
            return Ok(stored);
        }
        if let Some(known) = self.floats[value.index()] {
            return Ok(known);
        }
        let cast = self.rewrite.to.apply_as(Cast.into(), &[stored], &[DType::F32])?[0];
        self.floats[value.index()] = Some(cast);
        Ok(cast)
    }

    fn rounded(&mut self, value: ValueId) -> Result<ValueId, EngineError> {
        let stored = self.rewrite.value(value)?;
        let (known, ty) = (self.rewrite.from.value(value), self.rewrite.to.ty(stored).clone());
        if ty.dtype == DType::Bf16 {
            return Ok(stored);
        }
        if let Some(known) = self.rounded[value.index()] {
            return Ok(known);
        }
        let rounded = if known.kind == ValueKind::State && (self.copied)(&known.name) {
            self.rewrite.to.state_of(&format!("{COPY_PREFIX}{}", known.name), ty.with_dtype(DType::Bf16))
        } else {
            self.rewrite.to.apply_as(Cast.into(), &[stored], &[DType::Bf16])?[0]
        };
        self.rounded[value.index()] = Some(rounded);
        Ok(rounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::differentiate;
    use crate::cpu::CpuExecutor;
    use crate::graph::Bf16;
    use crate::ops::{
        Attention, CosineHeads, GlobalNorm, LayerNorm, Linear, Packing, PixelDistance, PixelLoss, Residual,
    };
    use crate::{Executor, Program};

    const DIM: usize = 32;

    /// A block of a residual network with two products and a loss, differentiated.
    fn network() -> Graph {
        let mut g = Graph::new();
        let (x, target) = (g.input("x", TensorType::f32([4, DIM])), g.input("target", TensorType::f32([4, DIM])));
        let [scale, shift] = ["scale", "shift"].map(|name| g.state(name, &[DIM]));
        let [first, second] = ["first", "second"].map(|name| g.state(name, &[DIM, DIM]));
        let normed = g.apply1(LayerNorm { eps: 1e-6 }, &[x, scale, shift]).unwrap();
        let hidden = g.apply1(Linear { gelu: true, ..Linear::default() }, &[normed, first]).unwrap();
        let branch = g.apply1(Linear::default(), &[hidden, second]).unwrap();
        let y = g.apply1(Residual::default(), &[x, branch]).unwrap();
        let loss = PixelLoss { kind: PixelDistance::L2, scale: 0.01, weighted: false };
        let loss = g.apply1(loss, &[y, target]).unwrap();
        g.output("loss", loss);
        differentiate(&mut g, loss).unwrap();
        g
    }

    fn update() -> Graph {
        let mut g = Graph::new();
        let step = g.input("step", TensorType::f32([4]));
        let gradient = g.state("grad.first", &[DIM, DIM]);
        let norm = g.apply(GlobalNorm { max_norm: None }, &[gradient]).unwrap();
        let [first, m, v] = ["first", "m.first", "v.first"].map(|name| g.state(name, &[DIM, DIM]));
        let op = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, lr_scale: 1.0, copy: false, start: 0 };
        g.apply(op, &[first, gradient, m, v, step, norm[1]]).unwrap();
        g.output("norm", norm[0]);
        g
    }

    #[test]
    fn what_products_alone_touch_is_stored_in_bfloat16_alone() {
        let printed = mixed(&network(), |_| true).unwrap().to_string();
        let expected = "\
%10 layer_norm:0 bf16[4,32], %11 layer_norm:1[4], %12 layer_norm:2[4] = layer_norm(%0 x, %2 scale, %3 shift)
%14 linear_gelu:0 bf16[4,32], %15 linear_gelu:1 bf16[4,32] = linear_gelu(%10 layer_norm:0, %13 bf16.first)
%17 linear bf16[4,32] = linear(%14 linear_gelu:0, %16 bf16.second)
%18 residual[4,32] = residual(%0 x, %17 linear)
";
        assert!(printed.starts_with(expected), "{printed}");
        let graph = mixed(&network(), |_| true).unwrap();
        let casts = graph.nodes().iter().filter(|node| node.op == Op::from(Cast)).count();
        // Every rounding is part of a kernel that makes or reads the value.
        assert_eq!(casts, 0, "{graph}");
        assert_eq!(copies(&graph).into_iter().collect::<Vec<_>>(), ["first", "second"]);
        assert!(copies(&mixed(&network(), |name| name == "second").unwrap()).contains("second"));
        assert!(copies(&network()).is_empty());
    }

    #[test]
    fn what_is_modified_in_place_stays_bfloat16() {
        let mut g = Graph::new();
        let (x, target) = (g.input("x", TensorType::f32([2, 5, DIM])), g.input("target", TensorType::f32([2, 5, DIM])));
        let (weight, scale) = (g.state("weight", &[3 * DIM, DIM]), g.state("scale", &[2]));
        let qkv = g.apply1(Linear::default(), &[x, weight]).unwrap();
        let unit = g.apply1(CosineHeads { heads: 2 }, &[qkv, scale]).unwrap();
        let attention = Attention { heads: 2, packing: Packing::Packed, bias: false };
        let y = g.apply1(attention, &[unit]).unwrap();
        let loss = PixelLoss { kind: PixelDistance::L2, scale: 0.01, weighted: false };
        let loss = g.apply1(loss, &[y, target]).unwrap();
        g.output("loss", loss);
        differentiate(&mut g, loss).unwrap();
        let graph = mixed(&g, |_| true).unwrap();
        let normalises = |node: &&Node| matches!(node.op, Op::CosineHeads(_) | Op::CosineHeadsGrad(_));
        let found: Vec<DType> = graph.nodes().iter().filter(normalises).map(|n| graph.ty(n.outputs[0]).dtype).collect();
        assert_eq!(found, [DType::Bf16; 2], "{graph}");
        // The images, once; the gradient of the loss.
        let casts = graph.nodes().iter().filter(|node| node.op == Op::from(Cast)).count();
        assert_eq!(casts, 2, "{graph}");
    }

    #[test]
    fn copies_follow_what_is_written_and_what_adamw_updates() {
        let step = mixed(&network(), |_| true).unwrap();
        let update = keep_copies(&update(), &copies(&step)).unwrap();
        let mut executor = CpuExecutor::new(2).unwrap();
        let step = executor.load(Program::compile(&step).unwrap()).unwrap();
        let written: Vec<f32> = (0..DIM * DIM).map(|i| (i as f32 * 0.37).sin()).collect();
        executor.write_state("first", &written).unwrap();
        executor.write_state("second", &written).unwrap();
        executor.write_state("scale", &[1.0; DIM]).unwrap();
        // Loaded later, a copy begins as its state.
        let update = executor.load(Program::compile(&update).unwrap()).unwrap();
        let mut read = Graph::new();
        let copy = read.state_of("bf16.first", TensorType::f32([DIM, DIM]).with_dtype(DType::Bf16));
        let floats = read.apply_as(Cast.into(), &[copy], &[DType::F32]).unwrap()[0];
        read.output("copy", floats);
        let read = executor.load(Program::compile(&read).unwrap()).unwrap();
        let copy = |executor: &mut CpuExecutor| {
            executor.run(read).unwrap();
            let mut found = vec![0.0; DIM * DIM];
            executor.read(executor.output(read, "copy").unwrap(), &mut found).unwrap();
            found
        };
        let rounded = |values: &[f32]| values.iter().map(|&v| Bf16::nearest(v).value()).collect::<Vec<_>>();
        assert_eq!(copy(&mut executor), rounded(&written));
        for name in ["x", "target"] {
            let slot = executor.input(step, name).unwrap();
            executor.write(slot, &[0.25; 4 * DIM]).unwrap();
        }
        executor.run(step).unwrap();
        let slot = executor.input(update, "step").unwrap();
        executor.write(slot, &[0.1, 0.1, 0.1, 0.0]).unwrap();
        executor.run(update).unwrap();
        let mut updated = vec![0.0; DIM * DIM];
        executor.read_state("first", &mut updated).unwrap();
        assert!(updated != written);
        assert_eq!(copy(&mut executor), rounded(&updated));
        assert!(executor.read_state("bf16.first", &mut updated).is_err(), "a copy is no state of floats");
    }

    #[test]
    fn results_in_mixed_precision_are_close_to_those_of_floats() {
        let loss = |graph: &Graph| {
            let mut executor = CpuExecutor::new(1).unwrap();
            let id = executor.load(Program::compile(graph).unwrap()).unwrap();
            let values: Vec<f32> = (0..DIM * DIM).map(|i| (i as f32 * 0.7).cos() * 0.2).collect();
            executor.write_state("first", &values).unwrap();
            executor.write_state("second", &values).unwrap();
            executor.write_state("scale", &[1.0; DIM]).unwrap();
            for (name, factor) in [("x", 0.3), ("target", 0.9)] {
                let data: Vec<f32> = (0..4 * DIM).map(|i| (i as f32 * factor).sin()).collect();
                executor.write(executor.input(id, name).unwrap(), &data).unwrap();
            }
            executor.run(id).unwrap();
            let mut loss = [0.0];
            executor.read(executor.output(id, "loss").unwrap(), &mut loss).unwrap();
            loss[0]
        };
        let (floats, mixed) = (loss(&network()), loss(&mixed(&network(), |_| true).unwrap()));
        assert!(floats != mixed && (mixed / floats - 1.0).abs() < 4e-3, "{mixed}, {floats}");
    }
}
