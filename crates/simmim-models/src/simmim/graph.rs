//! Forward description of the SimMIM step.

use super::{Area, Loss, Mode, SimMimConfig, Target};
use crate::error::ModelError;
use crate::names::{
    ASSEMBLE_INDEX, IMAGES, LOSS, PATCH_WEIGHT, PREDICTED_INDEX, PREDICTED_PATCH, PREDICTION, QUERY_INDEX, TARGET,
    VISIBLE_INDEX,
};
use crate::vit::{Blocks, Position, Rows};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{GatherRows, Linear, LossKind, PatchGather, PixelLoss};
use simmim_engine::{EngineError, Graph, ValueId};

/// Added to the variance of a patch where targets are normalised.
pub const TARGET_EPS: f32 = 1e-6;

/// How the step is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// With the exact savings: only visible patches are embedded, one template row per position serves the batch in the first
    /// block, and after the last block's keys and values only predicted rows are computed.
    Fast,
    /// Every layer on every token: what the savings are tested against, and what model FLOPs are counted on.
    Plain,
}

/// What the graph is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Build {
    /// Images in one run.
    pub batch: usize,
    /// How it is described.
    pub variant: Variant,
    /// Runs whose gradients are added up to one step; the loss is divided by it.
    pub accumulation: usize,
    /// Whether drop path is active (the inputs of [`crate::VitConfig::branches`]).
    pub train: bool,
    /// Whether `prediction` and `target` are readable.
    pub outputs: bool,
}

/// The graph of the step. Inputs: `images [batch, channels, height, width]` and the indices of [`super::StepIndices`].
/// Outputs: `loss [1]`; with [`Build::outputs`] also `prediction` and `target`, both `[batch, predicted, channels height width]`.
/// Also returns the loss, for [`simmim_engine::autodiff::differentiate`].
///
/// # Errors
/// [`ModelError::Geometry`] for impossible sizes.
pub fn simmim_graph(config: &SimMimConfig, build: Build) -> Result<(Graph, ValueId), ModelError> {
    config.validate()?;
    let mut graph = Graph::new();
    let c = &config.encoder;
    let images = graph.input(IMAGES, TensorType::f32([build.batch, c.channels, c.image_size.0, c.image_size.1]));
    let (encoded, positions) = match build.variant {
        Variant::Fast => fast_encoder(&mut graph, config, build, images)?,
        Variant::Plain => plain_encoder(&mut graph, config, build, images)?,
    };
    graph.set_scope("decoder");
    let weight = graph.state("decoder.0.weight", &[c.patch_values(), c.embed_dim]);
    let bias = graph.state("decoder.0.bias", &[c.patch_values()]);
    let prediction = graph.apply1(Linear { bias: true, ..Linear::default() }, &[encoded, weight, bias])?;
    let normalise = (config.target == Target::Normalized).then_some(TARGET_EPS);
    let target = graph.apply1(PatchGather { patch: c.patch_size, normalise }, &[images, positions])?;
    let weighted = build.variant == Variant::Plain && config.area == Area::Masked;
    let mut inputs = vec![prediction, target];
    if weighted {
        inputs.push(graph.input(PATCH_WEIGHT, TensorType::f32([build.batch * c.patches()])));
    }
    let kind = loss_kind(config.loss);
    let scale = (loss_scale(config, build.batch) / build.accumulation as f64) as f32;
    let loss = graph.apply1(PixelLoss { kind, scale, weighted }, &inputs)?;
    graph.set_scope("");
    graph.output(LOSS, loss);
    if build.outputs {
        graph.output(PREDICTION, prediction);
        graph.output(TARGET, target);
    }
    Ok((graph, loss))
}

/// The function of the difference, as the engine names it.
#[must_use]
pub fn loss_kind(loss: Loss) -> LossKind {
    match loss {
        Loss::L1 => LossKind::L1,
        Loss::L2 => LossKind::L2,
        Loss::SmoothL1 => LossKind::SmoothL1 { beta: 1.0 },
    }
}

/// The factor between the sum over the differences of a batch and its loss. Tutorial: the mean over masked values, divided again
/// by the masked tokens of an image. Official: over `sum(mask) + 1e-5` pixels, then over the channels. Full area: the mean over all
/// values.
#[must_use]
pub fn loss_scale(config: &SimMimConfig, batch: usize) -> f64 {
    let c = &config.encoder;
    let batch = batch as f64;
    let masked = config.masked_tokens() as f64;
    let divisor = match (config.area, config.mode) {
        (Area::Full, _) => batch * (c.patches() * c.patch_values()) as f64,
        (Area::Masked, Mode::Tutorial) => batch * masked * c.patch_values() as f64 * masked,
        (Area::Masked, Mode::Official) => {
            (batch * masked * (c.patch_size.0 * c.patch_size.1) as f64 + 1e-5) * c.channels as f64
        }
    };
    1.0 / divisor
}

fn fast_encoder(
    graph: &mut Graph,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    let c = &config.encoder;
    let class_token = config.class_token();
    let tokens = c.patches() + usize::from(class_token);
    let predicted = [build.batch, config.predicted_tokens()];
    let visible = graph.input(VISIBLE_INDEX, TensorType::i32([build.batch, config.visible_tokens()]));
    let assemble = graph.input(ASSEMBLE_INDEX, TensorType::i32([build.batch, tokens]));
    let index = graph.input(PREDICTED_INDEX, TensorType::i32(predicted));
    let positions = graph.input(PREDICTED_PATCH, TensorType::i32(predicted));
    let relative = matches!(c.position, Position::SharedRelative | Position::Relative);
    let query = relative.then(|| graph.input(QUERY_INDEX, TensorType::i32(predicted)));
    let mut blocks = Blocks::new(graph, c, "encoder.", build.batch, build.train);
    let patches = blocks.patches(images, visible)?;
    let rows = blocks.token_rows(patches, visible, true, class_token)?;
    let last = c.depth - 1;
    let mut x = if last == 0 {
        blocks.graph.apply1(GatherRows, &[rows, assemble])?
    } else {
        blocks.first_block(rows, assemble, class_token)?
    };
    for block in 1..last {
        x = blocks.block(x, block, class_token)?;
    }
    x = blocks.last_block(x, last, Rows::Chosen { index, query }, class_token)?;
    if config.final_norm() {
        x = blocks.layer_norm(x, "norm")?;
    }
    Ok((x, positions))
}

fn plain_encoder(
    graph: &mut Graph,
    config: &SimMimConfig,
    build: Build,
    images: ValueId,
) -> Result<(ValueId, ValueId), EngineError> {
    let c = &config.encoder;
    let class_token = config.class_token();
    let (patches, offset) = (c.patches(), usize::from(class_token));
    let tokens = patches + offset;
    let every = (0..build.batch * patches).map(|i| (i % patches) as i32).collect();
    let every = graph.constant("every_patch", &[build.batch, patches], every);
    let assemble = graph.input(ASSEMBLE_INDEX, TensorType::i32([build.batch, tokens]));
    let mut blocks = Blocks::new(graph, c, "encoder.", build.batch, build.train);
    let embedded = blocks.patches(images, every)?;
    let rows = blocks.token_rows(embedded, every, true, class_token)?;
    let mut x = blocks.graph.apply1(GatherRows, &[rows, assemble])?;
    for block in 0..c.depth {
        x = blocks.last_block(x, block, Rows::All, class_token)?;
    }
    if config.final_norm() {
        x = blocks.layer_norm(x, "norm")?;
    }
    let kept = (0..build.batch * patches).map(|i| (i / patches * tokens + offset + i % patches) as i32).collect();
    let kept = graph.constant("patch_rows", &[build.batch, patches], kept);
    Ok((graph.apply1(GatherRows, &[x, kept])?, every))
}
