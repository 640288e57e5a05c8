//! Arguments of the commands around classifiers.

use super::{MemoryArguments, RecipeArguments};
use crate::commands::length::minutes;
use crate::device::DeviceArguments;
use crate::interrupt::InterruptArguments;
use crate::parts::PartArguments;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// The encoder to start from, and the recipe.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartOf {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Architecture, when the weights do not name it (a bare file, or none): a run folder or a timm name.
    #[arg(long, value_name = "RUN|NAME")]
    pub(crate) model: Option<String>,
    /// Height and width of the input; default: as in pre-training. Position embeddings are interpolated.
    #[arg(long, value_name = "N|HxW")]
    pub(crate) image_size: Option<String>,
    /// Carry the patch projection over to another patch size (FlexiViT), which `--set model.patch_size=N` names.
    #[arg(long)]
    pub(crate) resize_patch: bool,
    /// Training length in optimiser steps.
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Training length in epochs.
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    #[command(flatten)]
    pub(crate) memory: MemoryArguments,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Images need labels: the first folder level names the class (TRAIN/cat/1.jpg), or IDX files come with label files. Classes of
training and validation images are matched by name. Without --data and --val, the built-in demo set is used.

Examples:
  simmim finetune --weights runs/photos --data photos/train --val photos/val --out runs/classes
  simmim finetune --weights none --model runs/photos --data photos/train --val photos/val     from scratch
  simmim finetune --weights runs/photos --data photos/train --val photos/val --freeze         head only
  simmim finetune --weights runs/photos --data photos/train --val photos/val --minutes 15     as long as fits
  simmim finetune --recipe finetune_official_vit_base_patch16 --weights runs/vitb --data imagenet/train --val imagenet/val
  simmim finetune --out runs/classes --resume                                                 after an interruption")]
pub(crate) struct Finetune {
    #[command(flatten)]
    pub(crate) start: StartOf,
    /// Pre-trained weights: a run folder, a checkpoint, a safetensors file, a PyTorch checkpoint, or a folder of Hugging Face or timm;
    /// `none` trains from scratch the model that `--model` names.
    #[arg(long, value_name = "W|none", required_unless_present = "resume")]
    pub(crate) weights: Option<PathBuf>,
    /// Labelled images to train on.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to validate on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Run folder. Default: runs/NAME-N with the recipe's name and the first free number.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in `--out` from its last checkpoint.
    #[arg(long, requires = "out", conflicts_with_all = ["overwrite", "weights"])]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) interrupt: InterruptArguments,
    /// Replace the run in `--out`.
    #[arg(long, requires = "out")]
    pub(crate) overwrite: bool,
    /// Training length in minutes: a few steps are timed first, and the number of steps follows from them.
    #[arg(long, value_name = "M", conflicts_with_all = ["steps", "epochs", "resume"], value_parser = minutes)]
    pub(crate) minutes: Option<f64>,
    /// Freeze the encoder: train the norm and head only.
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Validate and save an exponential moving average of the weights with this decay, such as 0.999.
    #[arg(long, value_name = "DECAY")]
    pub(crate) ema: Option<f64>,
    /// Random seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim evaluate --weights runs/classes --data photos/val --out report
  simmim evaluate --weights runs/classes/best.safetensors --data photos/val --json")]
pub(crate) struct Evaluate {
    /// Classifier: a fine-tuning run (its best weights), a checkpoint, best.safetensors / last.safetensors, or one of timm, Hugging Face
    /// or microsoft/SimMIM with its config.json or configuration.
    #[arg(long, value_name = "FT")]
    pub(crate) weights: PathBuf,
    /// Labelled images; default: the validation images of the built-in demo set.
    #[arg(long, value_name = "VAL")]
    pub(crate) data: Option<PathBuf>,
    /// Write scores.json, per_class.csv, confusion.csv and confusion.png to this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  simmim predict --weights runs/classes --data new_photos --out classes.csv")]
pub(crate) struct Predict {
    /// Classifier: a fine-tuning run (its best weights), a checkpoint, best.safetensors / last.safetensors, or one of timm, Hugging Face
    /// or microsoft/SimMIM with its config.json or configuration.
    #[arg(long, value_name = "FT")]
    pub(crate) weights: PathBuf,
    /// Images; labels are not needed.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Table to write: file, class, probability.
    #[arg(long, value_name = "F.csv")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) parts: PartArguments,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

/// What to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareMethod {
    /// Fine-tuning, against training from scratch.
    Finetune,
    /// A linear probe of the features, against random weights and raw pixels.
    Probe,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Fine-tunes the pre-trained encoder and a randomly initialised one on the same class-balanced fractions of the labels, with the same
images, order and length; probes the features of both, and raw pixels, by logistic regression on the same images; and reports
whether the differences exceed the spread over seeds. The layer and l2 strength of a probe, and the learning rate when several are
given, are selected on held-out training images; validation images are used for the final measurement only. Probes use the input
size of pre-training. To continue an interrupted comparison, run the same command again: finished measurements are kept.

Examples:
  simmim compare --weights runs/photos --data photos/train --val photos/val --out runs/does_it_help
  simmim compare --weights runs/photos --data photos/train --val photos/val --labels 0.01,0.1 --seeds 5 --steps 500
  simmim compare --weights runs/photos --data photos/train --val photos/val --labels 0.1 --lr 5e-4,1e-3 --scratch-lr 2e-4,5e-4,1e-3
  simmim compare --weights runs/photos --data photos/train --val photos/val --methods probe       takes minutes")]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) start: StartOf,
    /// Pre-trained weights: a run folder, a checkpoint or a safetensors file.
    #[arg(long, value_name = "W")]
    pub(crate) weights: PathBuf,
    /// Labelled images to train on.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to validate on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Fractions of the labelled images, equal for every class.
    #[arg(long, value_name = "X,X,...", value_delimiter = ',', default_value = "0.01,0.1,1")]
    pub(crate) labels: Vec<f64>,
    /// Number of seeds per fraction and arm.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) seeds: u64,
    /// Folder for results and plot. Default: runs/compare-N with the first free number.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What to compare: finetune, probe or both.
    #[arg(long, value_name = "M,M", value_enum, value_delimiter = ',', default_value = "finetune,probe")]
    pub(crate) methods: Vec<CompareMethod>,
    /// Layers for probes to select from: all, or a comma-separated list; k for block k (from 1), -1 for the final norm.
    #[arg(long, value_name = "all|L", default_value = "all", allow_hyphen_values = true)]
    pub(crate) layers: String,
    /// Learning rate when starting from the weights; default: as in the recipe. Of several, each fraction uses the best one on a
    /// held-out fifth of its training images at the first seed.
    #[arg(long, value_name = "LR,...", value_delimiter = ',')]
    pub(crate) lr: Vec<f64>,
    /// The same for training from scratch (without layer-wise decay).
    #[arg(long, value_name = "LR,...", value_delimiter = ',')]
    pub(crate) scratch_lr: Vec<f64>,
    /// Number of validation images to use, spread over all; default: all.
    #[arg(long, value_name = "N")]
    pub(crate) val_images: Option<usize>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
