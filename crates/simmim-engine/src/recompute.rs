//! Activations that the backward computes again instead of keeping them (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
//! arXiv 1604.06174), as a pass over a differentiated graph.
//!
//! A block is a run of forward nodes of one scope ([`Graph::set_scope`]). Of a block that is recomputed, only what later blocks read is kept;
//! where the backward first reads anything else of it, the nodes that lead there stand once more. They are the same operations on the same
//! values, so that results are equal bit for bit.

use crate::autodiff::GRADIENT_SCOPE;
use crate::error::EngineError;
use crate::graph::{Graph, Node, Rewrite, ValueId, ValueKind};
use crate::ops::Operation;
use std::collections::BTreeSet;
use std::ops::Range;

/// Number of blocks that can be recomputed.
#[must_use]
pub fn blocks(graph: &Graph) -> usize {
    Block::all(graph).len()
}

/// The graph in which the backward computes the first `blocks` blocks again: the earliest ones, which would be kept the longest.
///
/// # Errors
/// As [`Graph::verify`].
pub fn recompute(graph: &Graph, blocks: usize) -> Result<Graph, EngineError> {
    let chosen: Vec<Block> = Block::all(graph).into_iter().take(blocks).collect();
    let mut rewrite = Rewrite::new(graph)?;
    // What the backward reads instead of a value.
    let mut again: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    for (at, node) in graph.nodes().iter().enumerate() {
        for block in chosen.iter().filter(|block| block.first_read == at) {
            for node in block.nodes.iter().map(|&at| &graph.nodes()[at]) {
                let outputs = append(&mut rewrite, node, &format!("again.{}", node.scope), &again)?;
                let wanted = node.outputs.iter().zip(outputs).filter(|(old, _)| block.wanted.contains(old));
                wanted.for_each(|(old, new)| again[old.index()] = Some(new));
            }
        }
        let outputs = append(&mut rewrite, node, &node.scope, &again)?;
        node.outputs.iter().zip(outputs).for_each(|(&old, new)| rewrite.define(old, new));
    }
    rewrite.finish()
}

/// Appends a node once more, on what was computed again where there is such.
fn append(
    rewrite: &mut Rewrite<'_>,
    node: &Node,
    scope: &str,
    again: &[Option<ValueId>],
) -> Result<Vec<ValueId>, EngineError> {
    let input = |&v: &ValueId| again[v.index()].map_or_else(|| rewrite.value(v), Ok);
    let inputs = node.inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
    let dtypes: Vec<_> = node.outputs.iter().map(|&v| rewrite.from.ty(v).dtype).collect();
    rewrite.to.set_scope(scope);
    rewrite.to.apply_as(node.op.clone(), &inputs, &dtypes)
}

/// What is to be computed again of a block.
struct Block {
    /// The nodes that the backward needs once more, in order.
    nodes: Vec<usize>,
    /// What of it is read: by the backward, which no longer finds it kept, or by another of these nodes.
    wanted: BTreeSet<ValueId>,
    /// The node of the backward that first reads any of it.
    first_read: usize,
}

impl Block {
    /// The blocks of which recomputing frees more than they hand on. Not the last one, where the backward begins.
    fn all(graph: &Graph) -> Vec<Self> {
        let nodes = graph.nodes();
        let Some(end) = nodes.iter().position(|node| node.scope == GRADIENT_SCOPE) else { return Vec::new() };
        let runs: Vec<Range<usize>> = (0..end)
            .filter(|&at| at == 0 || nodes[at].scope != nodes[at - 1].scope)
            .map(|start| start..(start..end).find(|&at| nodes[at].scope != nodes[start].scope).unwrap_or(end))
            .collect();
        let last = runs.len().saturating_sub(1);
        runs.into_iter().take(last).filter_map(|run| Self::of(graph, run, end)).collect()
    }

    fn of(graph: &Graph, run: Range<usize>, end: usize) -> Option<Self> {
        let nodes = graph.nodes();
        let read_in = |range: Range<usize>| -> BTreeSet<ValueId> {
            nodes[range].iter().flat_map(|node| node.inputs.iter().copied()).collect()
        };
        let (later, backward) = (read_in(run.end..end), read_in(end..nodes.len()));
        let outputs = graph.outputs().iter().map(|(_, value)| *value);
        let handed_on: BTreeSet<ValueId> = later.into_iter().chain(outputs).collect();
        let made = || nodes[run.clone()].iter().flat_map(|node| node.outputs.iter().copied());
        let bytes = |value: ValueId| graph.ty(value).bytes();
        let kept: usize = made().filter(|v| handed_on.contains(v)).map(bytes).sum();
        let freed: BTreeSet<ValueId> = made().filter(|v| backward.contains(v) && !handed_on.contains(v)).collect();
        let changes_a_state = |node: &Node| {
            node.op.in_place().iter().any(|&(from, _)| graph.value(node.inputs[from]).kind == ValueKind::State)
        };
        if freed.is_empty()
            || freed.iter().copied().map(bytes).sum::<usize>() < kept
            || nodes[run.clone()].iter().any(changes_a_state)
        {
            return None;
        }
        let first_read = (end..nodes.len()).find(|&at| nodes[at].inputs.iter().any(|v| freed.contains(v)))?;
        let (mut wanted, mut again) = (freed.clone(), Vec::new());
        for at in run.rev() {
            if nodes[at].outputs.iter().any(|v| wanted.contains(v)) {
                wanted.extend(nodes[at].inputs.iter().filter(|v| !handed_on.contains(v)));
                again.push(at);
            }
        }
        again.reverse();
        Some(Self { nodes: again, wanted, first_read })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::differentiate;
    use crate::cpu::CpuExecutor;
    use crate::graph::TensorType;
    use crate::mixed::mixed;
    use crate::ops::{LayerNorm, Linear, PixelDistance, PixelLoss, Residual};
    use crate::{Executor, Program};

    const DIM: usize = 32;
    const ROWS: usize = 64;

    /// A residual network of some blocks, differentiated.
    fn network(depth: usize) -> Graph {
        let mut g = Graph::new();
        let (mut x, target) =
            (g.input("x", TensorType::f32([ROWS, DIM])), g.input("target", TensorType::f32([ROWS, DIM])));
        for block in 0..depth {
            g.set_scope(format!("blocks.{block}"));
            let state = |g: &mut Graph, name: &str, shape: &[usize]| g.state(&format!("{block}.{name}"), shape);
            let [scale, shift] = ["scale", "shift"].map(|name| state(&mut g, name, &[DIM]));
            let (first, second) = (state(&mut g, "first", &[4 * DIM, DIM]), state(&mut g, "second", &[DIM, 4 * DIM]));
            let normed = g.apply1(LayerNorm { eps: 1e-6 }, &[x, scale, shift]).unwrap();
            let hidden = g.apply1(Linear { gelu: true, ..Linear::default() }, &[normed, first]).unwrap();
            let branch = g.apply1(Linear::default(), &[hidden, second]).unwrap();
            x = g.apply1(Residual::default(), &[x, branch]).unwrap();
        }
        g.set_scope("");
        let loss = PixelLoss { kind: PixelDistance::L2, scale: 0.01, weighted: false };
        let loss = g.apply1(loss, &[x, target]).unwrap();
        g.output("loss", loss);
        differentiate(&mut g, loss).unwrap();
        g
    }

    /// Loss and gradients.
    fn run(graph: &Graph) -> Vec<Vec<u32>> {
        let mut executor = CpuExecutor::new(2).unwrap();
        let id = executor.load(Program::compile(graph).unwrap()).unwrap();
        let states: Vec<(String, usize)> = graph.states().map(|(_, s)| (s.name.clone(), s.ty.len())).collect();
        for (name, len) in states.iter().filter(|(name, _)| !name.starts_with("grad.") && !name.starts_with("bf16.")) {
            let values: Vec<f32> = (0..*len).map(|i| ((i * 7 + name.len()) % 23) as f32 * 0.02 - 0.2).collect();
            executor.write_state(name, &values).unwrap();
        }
        for name in ["x", "target"] {
            let values: Vec<f32> = (0..ROWS * DIM).map(|i| ((i * 5 + name.len()) % 19) as f32 * 0.1 - 0.9).collect();
            executor.write(executor.input(id, name).unwrap(), &values).unwrap();
        }
        executor.run(id).unwrap();
        let mut found = vec![vec![0.0; 1]];
        executor.read(executor.output(id, "loss").unwrap(), &mut found[0]).unwrap();
        for (name, len) in states.iter().filter(|(name, _)| name.starts_with("grad.")) {
            let mut gradient = vec![0.0; *len];
            executor.read_state(name, &mut gradient).unwrap();
            found.push(gradient);
        }
        found.into_iter().map(|v| v.into_iter().map(f32::to_bits).collect()).collect()
    }

    #[test]
    fn every_number_of_blocks_gives_the_same_bits_and_each_takes_less_memory() {
        let depth = 6;
        for graph in [network(depth), mixed(&network(depth), |_| true).unwrap()] {
            assert_eq!(blocks(&graph), depth, "{graph}");
            let truth = run(&graph);
            assert!(truth.iter().all(|v| v.iter().any(|&bits| bits != 0)), "something is zero");
            let mut arena = Program::compile(&graph).unwrap().arena_bytes();
            for count in 1..=depth {
                let again = recompute(&graph, count).unwrap();
                assert_eq!(run(&again), truth, "{count} blocks");
                let program = Program::compile(&again).unwrap();
                // The last block is computed again as soon as it was computed.
                assert!(
                    program.arena_bytes() < arena || count == depth,
                    "{count} blocks: {} of {arena}",
                    program.arena_bytes()
                );
                arena = program.arena_bytes();
            }
            assert!(arena * 2 < Program::compile(&graph).unwrap().arena_bytes());
        }
    }

    #[test]
    fn what_no_backward_reads_is_not_computed_again() {
        let mut forward = Graph::new();
        let x = forward.input("x", TensorType::f32([ROWS, DIM]));
        let weight = forward.state("weight", &[DIM, DIM]);
        let y = forward.apply1(Linear::default(), &[x, weight]).unwrap();
        forward.output("y", y);
        assert_eq!(blocks(&forward), 0);
        assert_eq!(recompute(&forward, 3).unwrap().to_string(), forward.to_string());
        // Of a block, the layers that lead to nothing but the stream are left out: the second one here.
        let graph = network(2);
        let again = recompute(&graph, 1).unwrap();
        assert_eq!(again.nodes().len(), graph.nodes().len() + 2, "{again}");
    }
}
