//! The names by which programs and their callers meet: inputs, outputs, and states that are no parameters.

pub use simmim_engine::autodiff::GRADIENT_PREFIX;

/// Input: the images of a run, `[batch, channels, height, width]`.
pub const IMAGES: &str = "images";
/// Input of a classifier's training: soft labels, `[batch, classes]`.
pub const TARGETS: &str = "targets";
/// Input of SimMIM: positions of the visible patches, `[batch, visible]`.
pub const VISIBLE_INDEX: &str = "visible_index";
/// Input of SimMIM: row among the token rows of each token, `[batch, tokens]`.
pub const ASSEMBLE_INDEX: &str = "assemble_index";
/// Input of SimMIM: flat row of each predicted token, `[batch, predicted]`.
pub const PREDICTED_INDEX: &str = "predicted_index";
/// Input of SimMIM: position in the patch grid of each predicted token, `[batch, predicted]`.
pub const PREDICTED_PATCH: &str = "predicted_patch";
/// Input of SimMIM: position among the tokens of each predicted token, `[batch, predicted]`.
pub const QUERY_INDEX: &str = "query_index";
/// Input of SimMIM's plain description: one where a patch counts, `[batch patches]`.
pub const PATCH_WEIGHT: &str = "weight";
/// Input of the update: learning rate and bias corrections, `[3]`.
pub const STEP: &str = "step";
/// Input of an update that keeps moving averages: their decay, `[1]`.
pub const AVERAGE_DECAY: &str = "decay";

/// Output: the loss of a run; of the update: that of the step, `[1]`.
pub const LOSS: &str = "loss";
/// Output of SimMIM: predicted patches, `[batch, predicted, channels height width]`.
pub const PREDICTION: &str = "prediction";
/// Output of SimMIM: what [`PREDICTION`] is compared with.
pub const TARGET: &str = "target";
/// Output of a classifier, `[batch, classes]`.
pub const LOGITS: &str = "logits";
/// Output of the update: norm of all gradients before clipping, `[1]`.
pub const GRADIENT_NORM: &str = "norm";
/// Output of an encoder: the tokens after its final norm, `[batch, tokens, dim]`.
pub const NORMED_TOKENS: &str = "norm";

/// Output of an encoder: the tokens after a block, counted from 1.
#[must_use]
pub fn block_output(block: usize) -> String {
    format!("block.{block}")
}

/// Input of a training: which samples keep a branch of a block, counted from 0, `[batch]`.
#[must_use]
pub(crate) fn kept_branch(block: usize, branch: &str) -> String {
    format!("keep.{block}.{branch}")
}

/// State: sum of the losses of a step's parts so far, `[1]`.
pub const LOSS_SUM: &str = "step.loss";
/// Input of the optimiser's program of one of several ranks: the factor of all gradients.
pub const CLIP: &str = "clip";
/// Prefix of the states that hold first moments.
pub const FIRST_MOMENT_PREFIX: &str = "exp_avg.";
/// Prefix of the states that hold second moments.
pub const SECOND_MOMENT_PREFIX: &str = "exp_avg_sq.";
/// Prefix of the states that hold moving averages of the parameters.
pub const AVERAGE_PREFIX: &str = "ema.";
