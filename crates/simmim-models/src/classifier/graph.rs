//! Forward description of a classifier.

use super::{ClassifierConfig, Pool};
use crate::encoder::images_input;
use crate::error::ModelError;
use crate::names::{AVERAGE_PREFIX, LOGITS, LOSS, TARGETS};
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{CrossEntropy, LayerNorm, Linear, MeanTokens};
use simmim_engine::{Graph, ValueId};

/// What the graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierBuild {
    /// Images in one run.
    pub batch: usize,
    /// With a loss against `targets`: the runs whose gradients are added up to one step, by which the loss is divided.
    pub accumulation: Option<usize>,
    /// Whether drop path is active (the inputs of [`crate::Encoder::branches`]).
    pub train: bool,
    /// Whether the moving averages of the parameters are read instead of the parameters.
    pub average: bool,
}

/// The graph of a classifier. Inputs: `images [batch, channels, height, width]`, with a loss also `targets [batch, classes]`.
/// Outputs: `logits [batch, classes]`, with a loss also `loss [1]`, the mean over the step's images. Also returns the loss, or
/// the logits where there is none.
///
/// # Errors
/// [`ModelError::Geometry`] for impossible sizes.
pub fn classifier_graph(config: &ClassifierConfig, build: ClassifierBuild) -> Result<(Graph, ValueId), ModelError> {
    config.validate()?;
    let mut graph = Graph::new();
    let pooled = pooled(&mut graph, config, build)?;
    let prefix = if build.average { AVERAGE_PREFIX } else { "" };
    graph.set_scope("head");
    let state = |graph: &mut Graph, name: &str, shape: &[usize]| graph.state(&format!("{prefix}{name}"), shape);
    let dim = config.encoder.geometry().width;
    let mut x = pooled;
    if config.norms_after_pooling() {
        let parameters = [state(&mut graph, "fc_norm.weight", &[dim]), state(&mut graph, "fc_norm.bias", &[dim])];
        x = graph.apply1(LayerNorm { eps: config.encoder.eps() }, &[x, parameters[0], parameters[1]])?;
    }
    let weight = state(&mut graph, "head.weight", &[config.classes, dim]);
    let bias = state(&mut graph, "head.bias", &[config.classes]);
    let logits = graph.apply1(Linear { bias: true, ..Linear::default() }, &[x, weight, bias])?;
    let mut result = logits;
    if let Some(accumulation) = build.accumulation {
        let targets = graph.input(TARGETS, TensorType::f32([build.batch, config.classes]));
        let scale = (1.0 / (build.batch as f64 * accumulation as f64)) as f32;
        result = graph.apply1(CrossEntropy { scale }, &[logits, targets])?;
        graph.output(LOSS, result);
    }
    graph.set_scope("");
    graph.output(LOGITS, logits);
    Ok((graph, result))
}

/// The encoder up to one vector for each image, `[batch, width]`.
fn pooled(graph: &mut Graph, config: &ClassifierConfig, build: ClassifierBuild) -> Result<ValueId, ModelError> {
    let encoder = config.used_encoder();
    let images = images_input(graph, &encoder, build.batch);
    let prefix = if build.average { "ema.encoder." } else { "encoder." };
    let mut forward = encoder.forward(graph, prefix, build.batch, build.train);
    let mut x = forward.embedded(images)?;
    let last = encoder.depth() - 1;
    for block in 0..last {
        x = forward.next_block(x, block)?;
    }
    x = if config.pool == Pool::Cls { forward.class_block(x, last)? } else { forward.next_block(x, last)? };
    x = forward.final_norm(x)?;
    drop(forward);
    let skip = if config.pool == Pool::Mean { encoder.geometry().prefix() } else { 0 };
    Ok(graph.apply1(MeanTokens { skip }, &[x])?)
}
