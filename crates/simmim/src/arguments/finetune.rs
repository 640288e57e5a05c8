//! Arguments of the commands around classifiers.

use super::RecipeArguments;
use crate::device::DeviceArguments;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// The encoder that a fine-tuning starts from, and the recipe.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartOf {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Architecture where the weights do not say it (a bare file, or none): a timm name or a run folder.
    #[arg(long, value_name = "NAME|RUN")]
    pub(crate) model: Option<String>,
    /// Height and width of the images; default: those of the weights. Positions are interpolated.
    #[arg(long, value_name = "N|HxW")]
    pub(crate) image_size: Option<String>,
    /// Carry the patch projection over to another patch size (FlexiViT), which `--set model.patch_size=N` names.
    #[arg(long)]
    pub(crate) resize_patch: bool,
    /// Length of a training in optimiser steps.
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Length of a training in epochs.
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Images carry labels: the first folder level names the class (TRAIN/cat/1.jpg), or IDX files with their label files. Classes of
training and validation images are matched by name. Without --data and --val the embedded demonstration set is taken.

Examples:
  simmim finetune --weights runs/photos --data photos/train --val photos/val --out runs/classes
  simmim finetune --weights none --model runs/photos --data photos/train --val photos/val     the same from scratch
  simmim finetune --weights runs/photos --data photos/train --val photos/val --freeze         train the head only
  simmim finetune --recipe finetune_official_vit_base_patch16 --weights runs/vitb --data imagenet/train --val imagenet/val
  simmim finetune --out runs/classes --resume                                                 after an interruption")]
pub(crate) struct Finetune {
    #[command(flatten)]
    pub(crate) start: StartOf,
    /// Pre-trained weights: a run folder, a checkpoint, a safetensors file, a PyTorch checkpoint, or a folder of Hugging Face or timm;
    /// `none`: train from scratch.
    #[arg(long, value_name = "W|none", required_unless_present = "resume")]
    pub(crate) weights: Option<PathBuf>,
    /// Labelled images to train on.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to measure on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Run folder. Default: runs/NAME-N with the recipe's name and the first free number.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on with the run in `--out` from its last checkpoint.
    #[arg(long, requires = "out", conflicts_with_all = ["overwrite", "weights"])]
    pub(crate) resume: bool,
    /// Delete the run in `--out` first.
    #[arg(long, requires = "out")]
    pub(crate) overwrite: bool,
    /// Leave the encoder as it is: train norm and head only.
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Keep a moving average of the weights with this decay (0.999, say), measure and save that.
    #[arg(long, value_name = "DECAY")]
    pub(crate) ema: Option<f64>,
    /// Seed of everything random.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim evaluate --weights runs/classes --data photos/val --out report
  simmim evaluate --weights runs/classes/best.safetensors --data photos/val --json")]
pub(crate) struct Evaluate {
    /// A classifier: the folder of a fine-tuning (its best weights), a checkpoint, or best.safetensors / last.safetensors.
    #[arg(long, value_name = "FT")]
    pub(crate) weights: PathBuf,
    /// Labelled images; default: the embedded demonstration set's held-out images.
    #[arg(long, value_name = "VAL")]
    pub(crate) data: Option<PathBuf>,
    /// Write scores.json, per_class.csv, confusion.csv and confusion.png to this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object.
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
    /// A classifier: the folder of a fine-tuning (its best weights), a checkpoint, or best.safetensors / last.safetensors.
    #[arg(long, value_name = "FT")]
    pub(crate) weights: PathBuf,
    /// Images; labels are not needed.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Table to write: file, class, probability.
    #[arg(long, value_name = "F.csv")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

/// What a comparison does with encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareMethod {
    /// Fine-tuning, from the weights and from scratch.
    Finetune,
    /// A linear probe of features, of raw pixels and of random weights.
    Probe,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Fine-tunes the pre-trained encoder and one with random weights on the same class-balanced shares of the labels, with the same
images, order and length; probes the features of both, and raw pixels, by logistic regression on the same images; and says whether
the differences stand out from the spread over the seeds. Layer and l2 of a probe, and learning rates where several are given, are
chosen on training images put aside; the validation images only measure. Probes look at images of the size of the pre-training.
A comparison that was interrupted goes on when the same command is given again: finished measurements are kept.

Examples:
  simmim compare --weights runs/photos --data photos/train --val photos/val --out runs/does_it_help
  simmim compare --weights runs/photos --data photos/train --val photos/val --labels 0.01,0.1 --seeds 5 --steps 500
  simmim compare --weights runs/photos --data photos/train --val photos/val --labels 0.1 --lr 5e-4,1e-3 --scratch-lr 2e-4,5e-4,1e-3
  simmim compare --weights runs/photos --data photos/train --val photos/val --methods probe       within minutes")]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) start: StartOf,
    /// Pre-trained weights: a run folder, a checkpoint or a safetensors file.
    #[arg(long, value_name = "W")]
    pub(crate) weights: PathBuf,
    /// Labelled images to train on.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to measure on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Shares of the labelled images, the same of every class.
    #[arg(long, value_name = "X,X,...", value_delimiter = ',', default_value = "0.01,0.1,1")]
    pub(crate) labels: Vec<f64>,
    /// Trainings and probes of each arm at each share.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) seeds: u64,
    /// Folder for results and plot. Default: runs/compare-N with the first free number.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// What is done: finetune, probe or both.
    #[arg(long, value_name = "M,M", value_enum, value_delimiter = ',', default_value = "finetune,probe")]
    pub(crate) methods: Vec<CompareMethod>,
    /// Layers that probes choose among: all, or numbers with commas between; k for block k (from 1), -1 for the final norm.
    #[arg(long, value_name = "all|L", default_value = "all", allow_hyphen_values = true)]
    pub(crate) layers: String,
    /// Learning rate from the weights; default: that of the recipe. Of several, each share takes the one that is best on a fifth of
    /// its training images, put aside at the first seed.
    #[arg(long, value_name = "LR,...", value_delimiter = ',')]
    pub(crate) lr: Vec<f64>,
    /// The same from scratch (all layers alike).
    #[arg(long, value_name = "LR,...", value_delimiter = ',')]
    pub(crate) scratch_lr: Vec<f64>,
    /// Validation images that are measured, spread over all; default: all.
    #[arg(long, value_name = "N")]
    pub(crate) val_images: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
