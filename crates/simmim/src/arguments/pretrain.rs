//! Arguments of `simmim pretrain`.

use super::{MemoryArguments, RecipeArguments};
use crate::commands::length::minutes;
use crate::device::DeviceArguments;
use crate::interrupt::InterruptArguments;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim pretrain
      train on the built-in demo set, about two minutes
  simmim pretrain --data photos --minutes 15 --out runs/photos
      train on a folder of images for a quarter of an hour; labels are not needed, and the images determine the recipe
  simmim pretrain --out runs/photos --resume
      continue after an interruption; gives the same weights as an uninterrupted run (on the same instruction set)
  simmim pretrain --recipe demo --out runs/try --steps 50 --set simmim.mask_ratio=0.8")]
pub(crate) struct Pretrain {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Images: a folder (any depth, mixed formats), a list file, an IDX file or a folder of IDX files. Default: those of the
    /// recipe, else the built-in demo set.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images for a kNN probe of the features every `probe.every_steps` steps: two paths separated by a colon. Classes
    /// are matched by name. The probe does not influence training.
    #[arg(long, value_name = "TRAIN:VAL")]
    pub(crate) probe_data: Option<OsString>,
    /// Run folder. Default: runs/NAME-N with the recipe's name and the first free number.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Continue the run in `--out` from its last checkpoint.
    #[arg(long, requires = "out", conflicts_with_all = ["overwrite", "weights", "recipe"])]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) interrupt: InterruptArguments,
    /// Replace the run in `--out`.
    #[arg(long, requires = "out")]
    pub(crate) overwrite: bool,
    /// Start from these weights, a full model or an encoder: a run folder, a checkpoint, a safetensors file, a PyTorch checkpoint, or a
    /// folder of Hugging Face or timm. The architecture is theirs; mask token and head are drawn afresh where they have none.
    #[arg(long, value_name = "W")]
    pub(crate) weights: Option<PathBuf>,
    /// Keep the recipe's patch size and carry the patch projection of the weights over to it (FlexiViT).
    #[arg(long, requires = "weights")]
    pub(crate) resize_patch: bool,
    /// Training length in optimiser steps.
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Training length in epochs.
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    /// Training length in minutes: a few steps are timed first, and the number of steps follows from them.
    #[arg(long, value_name = "M", conflicts_with_all = ["steps", "epochs", "resume"], value_parser = minutes)]
    pub(crate) minutes: Option<f64>,
    #[command(flatten)]
    pub(crate) memory: MemoryArguments,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
    /// Random seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
    /// Number of checkpoints to keep.
    #[arg(long, value_name = "N")]
    pub(crate) keep: Option<usize>,
}
