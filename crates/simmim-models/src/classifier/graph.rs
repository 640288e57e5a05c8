//! Forward description of a classifier.

use super::{ClassifierConfig, Pool};
use crate::error::ModelError;
use crate::names::{AVERAGE_PREFIX, IMAGES, LOGITS, LOSS, TARGETS};
use crate::vit::{Blocks, Position, Rows, embedded_tokens};
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
    /// Whether drop path is active (the inputs of [`crate::VitConfig::branches`]).
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
    let encoder = config.used_encoder();
    let pooled = pooled(&mut graph, config, build)?;
    let prefix = if build.average { AVERAGE_PREFIX } else { "" };
    graph.set_scope("head");
    let state = |graph: &mut Graph, name: &str, shape: &[usize]| graph.state(&format!("{prefix}{name}"), shape);
    let dim = encoder.embed_dim;
    let mut x = pooled;
    if config.pool == Pool::Mean {
        let parameters = [state(&mut graph, "fc_norm.weight", &[dim]), state(&mut graph, "fc_norm.bias", &[dim])];
        x = graph.apply1(LayerNorm { eps: encoder.eps }, &[x, parameters[0], parameters[1]])?;
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

/// The encoder up to one vector for each image, `[batch, dim]`.
fn pooled(graph: &mut Graph, config: &ClassifierConfig, build: ClassifierBuild) -> Result<ValueId, ModelError> {
    let c = config.used_encoder();
    let images = graph.input(IMAGES, TensorType::f32([build.batch, c.channels, c.image_size.0, c.image_size.1]));
    let chosen = (config.pool == Pool::Cls).then(|| class_rows(graph, config, build.batch));
    let prefix = if build.average { "ema.encoder." } else { "encoder." };
    let mut blocks = Blocks::new(graph, &c, prefix, build.batch, build.train);
    let mut x = embedded_tokens(&mut blocks, images)?;
    for block in 0..c.depth - 1 {
        x = blocks.block(x, block, c.class_token)?;
    }
    let rows = chosen.map_or(Rows::All, |(index, query)| Rows::Chosen { index, query });
    x = blocks.last_block(x, c.depth - 1, rows, c.class_token)?;
    blocks.graph.set_scope("");
    if c.final_norm {
        x = blocks.layer_norm(x, "norm")?;
    }
    let skip = if config.pool == Pool::Mean { usize::from(c.class_token) } else { 0 };
    Ok(graph.apply1(MeanTokens { skip }, &[x])?)
}

/// Rows of the class tokens: after the last block's keys and values only they matter.
fn class_rows(graph: &mut Graph, config: &ClassifierConfig, batch: usize) -> (ValueId, Option<ValueId>) {
    let tokens = config.encoder.tokens();
    let index = graph.constant("class_rows", &[batch, 1], (0..batch).map(|b| (b * tokens) as i32).collect());
    let relative = matches!(config.encoder.position, Position::SharedRelative | Position::Relative);
    let query = relative.then(|| graph.constant("class_query", &[batch, 1], vec![0; batch]));
    (index, query)
}
