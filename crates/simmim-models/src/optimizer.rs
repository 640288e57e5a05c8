//! The optimiser's step as a graph.

use crate::names::{
    AVERAGE_DECAY, AVERAGE_PREFIX, CLIP, FIRST_MOMENT_PREFIX, GRADIENT_NORM, GRADIENT_PREFIX, LOSS, LOSS_SUM,
    SECOND_MOMENT_PREFIX, STEP,
};
use crate::parameters::ParameterSpec;
use simmim_engine::graph::TensorType;
use simmim_engine::ops::{AdamW, Add, Drain, GlobalNorm, MovingAverage};
use simmim_engine::{EngineError, Graph, ValueId};
use std::ops::Range;

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decays of the moments.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of the parameters that decay.
    pub weight_decay: f32,
    /// Largest gradient norm that is left alone.
    pub clip_norm: Option<f32>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.05, clip_norm: None }
    }
}

/// Learning rate of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Rate of a parameter whose factor is 1.
    pub lr: f64,
    /// The part of it that the factors of layer-wise decay leave alone: a parameter of factor `s` has the rate `s lr + (1 - s) floor`.
    pub floor: f64,
}

impl From<f64> for Rate {
    /// A rate without a floor.
    fn from(lr: f64) -> Self {
        Self { lr, floor: 0.0 }
    }
}

impl AdamWConfig {
    /// The input `step` of the update for step `t`, counted from 1: learning rate, both bias corrections, and the rate's floor.
    #[must_use]
    pub fn step_input(&self, rate: impl Into<Rate>, t: u64) -> [f32; 4] {
        let Rate { lr, floor } = rate.into();
        let t = t.min(i32::MAX as u64) as i32;
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(t);
        [lr as f32, correction(self.betas.0) as f32, correction(self.betas.1).sqrt() as f32, floor as f32]
    }
}

/// Adds the loss of a part of a step to the state [`LOSS_SUM`], which the update gives out: so a device is asked for the loss once a
/// step. Comes after differentiation, because nothing is differentiated through a state that changes.
///
/// # Errors
/// As [`Graph::apply`].
pub fn sum_loss(graph: &mut Graph, loss: ValueId) -> Result<(), EngineError> {
    let sum = graph.state(LOSS_SUM, &[1]);
    graph.apply(Add, &[sum, loss]).map(drop)
}

/// The part of every parameter whose moments one of several ranks keeps; the whole where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { rank: 0, world: 1 }
    }
}

impl Share {
    /// Its part of `len` values. Those of all ranks follow each other, and differ in length by one at most.
    #[must_use]
    pub fn of(self, len: usize) -> Range<usize> {
        len * self.rank / self.world..len * (self.rank + 1) / self.world
    }

    /// Whether it is the whole.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.world == 1
    }
}

/// Global norm, clipping and AdamW for all used parameters. Input `step [4]` (see [`AdamWConfig::step_input`]); outputs `norm [1]`
/// and `loss [1]`, what [`sum_loss`] has summed. Gradients and that sum are zeroed; parameters are left alone where the norm is not
/// finite.
///
/// # Errors
/// [`EngineError`] only for an empty list.
pub fn update_graph(parameters: &[ParameterSpec], config: &AdamWConfig) -> Result<Graph, EngineError> {
    update(parameters, config, false)
}

/// As [`update_graph`], and the moving averages of the parameters, `ema.NAME`, after it. Further input: `decay [1]`.
///
/// # Errors
/// As [`update_graph`].
pub fn averaging_update_graph(parameters: &[ParameterSpec], config: &AdamWConfig) -> Result<Graph, EngineError> {
    update(parameters, config, true)
}

/// As [`update_graph`], for the share of a rank alone, whose moments are as long. The norm is that of all ranks, so it is not computed here:
/// the input `clip [1]` is the factor that [`GlobalNorm::clip`] gives for it. Output: `loss [1]`.
///
/// # Errors
/// As [`update_graph`].
pub fn sharded_update_graph(
    parameters: &[ParameterSpec],
    config: &AdamWConfig,
    share: Share,
) -> Result<Graph, EngineError> {
    let mut graph = Graph::new();
    let (step, clip) = (graph.input(STEP, TensorType::f32([4])), graph.input(CLIP, TensorType::f32([1])));
    for p in parameters.iter().filter(|p| p.used && !share.of(p.len()).is_empty()) {
        let gradient = graph.state(&format!("{GRADIENT_PREFIX}{}", p.name), &p.graph_shape());
        adamw(&mut graph, p, gradient, [step, clip], config, share)?;
    }
    drain_loss(&mut graph)?;
    Ok(graph)
}

/// The moving averages of all used parameters, `ema.NAME`. Input: `decay [1]`.
///
/// # Errors
/// As [`update_graph`].
pub fn averages_graph(parameters: &[ParameterSpec]) -> Result<Graph, EngineError> {
    let mut graph = Graph::new();
    let decay = graph.input(AVERAGE_DECAY, TensorType::f32([1]));
    for p in parameters.iter().filter(|p| p.used) {
        let parameter = graph.state(&p.name, &p.graph_shape());
        average(&mut graph, p, parameter, decay)?;
    }
    Ok(graph)
}

fn update(parameters: &[ParameterSpec], config: &AdamWConfig, averages: bool) -> Result<Graph, EngineError> {
    let mut graph = Graph::new();
    let decay = averages.then(|| graph.input(AVERAGE_DECAY, TensorType::f32([1])));
    let step = graph.input(STEP, TensorType::f32([4]));
    let used: Vec<&ParameterSpec> = parameters.iter().filter(|p| p.used).collect();
    let gradients: Vec<_> =
        used.iter().map(|p| graph.state(&format!("{GRADIENT_PREFIX}{}", p.name), &p.graph_shape())).collect();
    let norm = graph.apply(GlobalNorm { max_norm: config.clip_norm }, &gradients)?;
    for (p, &gradient) in used.iter().zip(&gradients) {
        let updated = adamw(&mut graph, p, gradient, [step, norm[1]], config, Share::default())?;
        if let Some(decay) = decay {
            average(&mut graph, p, updated, decay)?;
        }
    }
    drain_loss(&mut graph)?;
    graph.output(GRADIENT_NORM, norm[0]);
    Ok(graph)
}

/// The update of a share of one parameter; gives the parameter.
fn adamw(
    graph: &mut Graph,
    p: &ParameterSpec,
    gradient: ValueId,
    [step, clip]: [ValueId; 2],
    config: &AdamWConfig,
    share: Share,
) -> Result<ValueId, EngineError> {
    let (shape, slice) = (p.graph_shape(), share.of(p.len()));
    let moments = if share.is_whole() { shape.clone() } else { vec![slice.len()] };
    let parameter = graph.state(&p.name, &shape);
    let first = graph.state(&format!("{FIRST_MOMENT_PREFIX}{}", p.name), &moments);
    let second = graph.state(&format!("{SECOND_MOMENT_PREFIX}{}", p.name), &moments);
    let op = AdamW {
        beta1: config.betas.0,
        beta2: config.betas.1,
        eps: config.eps,
        weight_decay: if p.decay { config.weight_decay } else { 0.0 },
        lr_scale: p.lr_scale,
        copy: false,
        start: slice.start,
    };
    graph.apply1(op, &[parameter, gradient, first, second, step, clip])
}

fn average(graph: &mut Graph, p: &ParameterSpec, parameter: ValueId, decay: ValueId) -> Result<(), EngineError> {
    let average = graph.state(&format!("{AVERAGE_PREFIX}{}", p.name), &p.graph_shape());
    graph.apply1(MovingAverage, &[average, parameter, decay]).map(drop)
}

fn drain_loss(graph: &mut Graph) -> Result<(), EngineError> {
    let sum = graph.state(LOSS_SUM, &[1]);
    let drained = graph.apply(Drain, &[sum])?;
    graph.output(LOSS, drained[1]);
    Ok(())
}
