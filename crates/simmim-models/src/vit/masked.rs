//! The encoder on images with hidden patches.

use super::{Blocks, Position, Rows, VitConfig};
use crate::names::{ASSEMBLE_INDEX, PREDICTED_INDEX, PREDICTED_PATCH, QUERY_INDEX, VISIBLE_INDEX};
use crate::simmim::{Build, SimMimConfig, Variant};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::GatherRows;
use simmim_engine::{EngineError, Graph, ValueId};

/// See [`crate::Encoder::masked`].
pub(crate) fn masked(
    graph: &mut Graph,
    c: &VitConfig,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    match build.variant {
        Variant::Fast => fast(graph, c, config, build, images),
        Variant::Plain => plain(graph, c, config, build, images),
    }
}

fn fast(
    graph: &mut Graph,
    c: &VitConfig,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    let prefix = config.prefix() > 0;
    let tokens = c.patches() + config.prefix();
    let predicted = [build.batch, config.predicted_tokens()];
    let visible = graph.input(VISIBLE_INDEX, TensorType::i32([build.batch, config.visible_tokens()]));
    let assemble = graph.input(ASSEMBLE_INDEX, TensorType::i32([build.batch, tokens]));
    let index = graph.input(PREDICTED_INDEX, TensorType::i32(predicted));
    let positions = graph.input(PREDICTED_PATCH, TensorType::i32(predicted));
    let relative = matches!(c.position, Position::SharedRelative | Position::Relative);
    let query = relative.then(|| graph.input(QUERY_INDEX, TensorType::i32(predicted)));
    let mut blocks = Blocks::new(graph, c, "encoder.", build.batch, build.train);
    let patches = blocks.patches(images, visible)?;
    let rows = blocks.token_rows(patches, visible, true, prefix)?;
    let last = c.depth - 1;
    let mut x = if last == 0 {
        blocks.graph.apply1(GatherRows, &[rows, assemble])?
    } else {
        blocks.first_block(rows, assemble, prefix)?
    };
    for block in 1..last {
        x = blocks.block(x, block, prefix)?;
    }
    x = blocks.last_block(x, last, Rows::Chosen { index, query }, prefix)?;
    if config.final_norm() {
        x = blocks.layer_norm(x, "norm")?;
    }
    Ok((x, positions))
}

fn plain(
    graph: &mut Graph,
    c: &VitConfig,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    let prefix = config.prefix() > 0;
    let (patches, offset) = (c.patches(), config.prefix());
    let tokens = patches + offset;
    let every = (0..build.batch * patches).map(|i| (i % patches) as i32).collect();
    let every = graph.constant("every_patch", &[build.batch, patches], every);
    let assemble = graph.input(ASSEMBLE_INDEX, TensorType::i32([build.batch, tokens]));
    let mut blocks = Blocks::new(graph, c, "encoder.", build.batch, build.train);
    let embedded = blocks.patches(images, every)?;
    let rows = blocks.token_rows(embedded, every, true, prefix)?;
    let mut x = blocks.graph.apply1(GatherRows, &[rows, assemble])?;
    for block in 0..c.depth {
        x = blocks.last_block(x, block, Rows::All, prefix)?;
    }
    if config.final_norm() {
        x = blocks.layer_norm(x, "norm")?;
    }
    let kept = (0..build.batch * patches).map(|i| (i / patches * tokens + offset + i % patches) as i32).collect();
    let kept = graph.constant("patch_rows", &[build.batch, patches], kept);
    Ok((graph.apply1(GatherRows, &[x, kept])?, every))
}
