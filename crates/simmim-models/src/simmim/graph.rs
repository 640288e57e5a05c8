//! Forward description of the SimMIM step.

use super::{Area, Head, Loss, Mode, SimMimConfig, Target};
use crate::encoder::images_input;
use crate::error::ModelError;
use crate::names::{LOSS, PATCH_WEIGHT, PREDICTION, TARGET};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{Linear, PatchGather, PixelDistance, PixelLoss, WindowNormalize};
use simmim_engine::{Graph, ValueId};

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
    /// Whether drop path is active (the inputs of [`crate::Encoder::branches`]).
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
    let g = config.encoder.geometry();
    let images = images_input(&mut graph, &config.encoder, build.batch);
    let (encoded, positions) = config.encoder.masked(&mut graph, config, build, images)?;
    graph.set_scope("decoder");
    let mut layer = |x: ValueId, name: &str, out: usize, gelu: bool| {
        let weight = graph.state(&format!("{name}.weight"), &[out, g.width]);
        let bias = graph.state(&format!("{name}.bias"), &[out]);
        graph.apply1(Linear { bias: true, gelu, rows: None }, &[x, weight, bias])
    };
    let prediction = match config.head {
        Head::Linear => layer(encoded, "decoder.0", g.cell_values(), false)?,
        Head::Mlp => {
            let hidden = layer(encoded, "decoder.0", g.width, true)?;
            layer(hidden, "decoder.2", g.cell_values(), false)?
        }
    };
    let normalise = (config.target == Target::Normalized).then_some(TARGET_EPS);
    let pixels = match config.target {
        Target::WindowNormalized { window } => graph.apply1(WindowNormalize { window, eps: TARGET_EPS }, &[images])?,
        Target::Pixels | Target::Normalized => images,
    };
    let target = graph.apply1(PatchGather { patch: g.stride, normalise }, &[pixels, positions])?;
    let weighted = build.variant == Variant::Plain && config.area == Area::Masked;
    let mut inputs = vec![prediction, target];
    if weighted {
        inputs.push(graph.input(PATCH_WEIGHT, TensorType::f32([build.batch * g.cells()])));
    }
    let kind = pixel_distance(config.loss);
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
pub fn pixel_distance(loss: Loss) -> PixelDistance {
    match loss {
        Loss::L1 => PixelDistance::L1,
        Loss::L2 => PixelDistance::L2,
        Loss::SmoothL1 => PixelDistance::SmoothL1 { beta: 1.0 },
    }
}

/// The factor between the sum over the differences of a batch and its loss. Tutorial: the mean over masked values, divided again
/// by the masked tokens of an image. Official: over `sum(mask) + 1e-5` pixels, then over the channels. Full area: the mean over all
/// values.
#[must_use]
pub fn loss_scale(config: &SimMimConfig, batch: usize) -> f64 {
    let g = config.encoder.geometry();
    let batch = batch as f64;
    let masked = config.masked_outputs() as f64;
    let divisor = match (config.area, config.mode) {
        (Area::Full, _) => batch * (g.cells() * g.cell_values()) as f64,
        (Area::Masked, Mode::Tutorial) => batch * masked * g.cell_values() as f64 * masked,
        (Area::Masked, Mode::Official) => {
            (batch * masked * (g.stride.0 * g.stride.1) as f64 + 1e-5) * g.channels as f64
        }
    };
    1.0 / divisor
}
