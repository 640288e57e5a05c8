//! The encoder on images with hidden patches.

use super::{Stages, SwinConfig};
use crate::names::{ASSEMBLE_INDEX, PREDICTED_INDEX, PREDICTED_PATCH, VISIBLE_INDEX};
use crate::simmim::{Build, SimMimConfig, Variant};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::GatherRows;
use simmim_engine::{EngineError, Graph, ValueId};

/// See [`crate::Encoder::masked`].
pub(crate) fn masked(
    graph: &mut Graph,
    c: &SwinConfig,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    let fast = build.variant == Variant::Fast;
    let (batch, patches, cells) = (build.batch, c.patches(), config.encoder.geometry().cells());
    let every = |graph: &mut Graph, name: &str, count: usize| {
        graph.constant(name, &[batch, count], (0..batch * count).map(|i| (i % count) as i32).collect())
    };
    let visible = if fast {
        graph.input(VISIBLE_INDEX, TensorType::i32([batch, config.visible_tokens()]))
    } else {
        every(graph, "every_patch", patches)
    };
    let assemble = graph.input(ASSEMBLE_INDEX, TensorType::i32([batch, patches]));
    let predicted = [batch, config.predicted_tokens()];
    let chosen = fast.then(|| graph.input(PREDICTED_INDEX, TensorType::i32(predicted)));
    let positions =
        if fast { graph.input(PREDICTED_PATCH, TensorType::i32(predicted)) } else { every(graph, "every_cell", cells) };
    let mut stages = Stages::new(graph, c, "encoder.", batch, build.train);
    let embedded = stages.patches(images, visible)?;
    let rows = stages.token_rows(embedded, visible, true)?;
    let all = c.stages();
    let last = c.depth() - 1;
    let mut x = if fast {
        stages.first_block(rows, assemble, &all[0], chosen.filter(|_| last == 0))?
    } else {
        let x = stages.graph.apply1(GatherRows, &[rows, assemble])?;
        stages.block(x, &all[0], 0, None)?
    };
    for number in 1..=last {
        x = stages.numbered_block(x, number, chosen.filter(|_| number == last))?;
    }
    if config.final_norm() {
        stages.graph.set_scope("");
        x = stages.layer_norm(x, "norm")?;
    }
    Ok((x, positions))
}
