//! Arguments of `simmim probe` and `simmim neighbors`.

use super::{Pool, WeightsOf};
use crate::arguments::use_weights::batch_size;
use clap::{Args, ValueEnum};
use simmim_train::probe::linear::MOST_ITERATIONS;
use std::path::PathBuf;

/// Probe to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// k nearest neighbours by cosine similarity, with temperature weighting.
    Knn,
    /// Logistic regression on standardised features.
    Linear,
    /// Both, one after the other.
    Both,
}

#[derive(Debug, Args)]
#[command(after_help = "\
k, the feature space of the neighbours (plain, standardised or whitened), the l2 strength and the layer are selected on a held-out
fifth of the training images (with fewer than 2,500 images: by five-fold cross-validation). VAL is used for measurement only. Where images
belong together, name their groups with --groups: near-duplicates on both sides of the split select the wrong layer.
Classes are matched by name; in folders, the first level below TRAIN and VAL names the class. The run folder caches the features and
collects the results in probe.json and probe.csv: a narrower probe of the same images, weights and seed keeps the rows it does not
measure; results under other conditions are renamed to probe-N.

Examples:
  simmim probe --weights runs/photos --data photos/train --val photos/val
  simmim probe --weights runs/photos --data photos/train --val photos/val --groups '^(.+)_crop'    IMG_17_crop3.jpg belongs to IMG_17
  simmim probe --weights runs/fashion --data fashion-mnist --val fashion-mnist/t10k-images-idx3-ubyte.gz --layers 2,3
  simmim probe --weights vit.safetensors --model vit_small_patch16_224 --data train --val val --method linear --json")]
pub(crate) struct Probe {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// Labelled images to fit on: a folder with one folder per class, a list with labels, or IDX files with labels. Default: the
    /// demo set, for a run that was trained on it.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to validate on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Probe to run.
    #[arg(long, value_enum, default_value_t = Method::Both)]
    pub(crate) method: Method,
    /// Layers: all, or a comma-separated list; k for the output of block k (from 1), -1 for the final norm.
    #[arg(long, value_name = "all|L", default_value = "all", allow_hyphen_values = true)]
    pub(crate) layers: String,
    /// How to pool the tokens of an image into one vector: mean or cls.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub(crate) pool: Pool,
    /// Skip the baselines: raw pixels and the same encoder with random weights.
    #[arg(long)]
    pub(crate) no_baselines: bool,
    /// Which training images belong together (crops of a photograph, images of an object or a patient): they stay on one side of the
    /// split. `folder`: those of a folder; a CSV or text file with a path, relative to TRAIN, and a group on each line; or a pattern with
    /// a capture for the names of the files, such as '^([a-z]+)_'.
    #[arg(long, value_name = "folder|FILE|PATTERN")]
    pub(crate) groups: Option<String>,
    /// Iterations after which a linear fit ends; a warning says where that happened.
    #[arg(long, value_name = "N", default_value_t = MOST_ITERATIONS, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_iterations: u64,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    pub(crate) batch: usize,
    /// Seed of the split of the training images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print a JSON object instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim neighbors --weights runs/photos --data photos --query mine.jpg --out sheet.png
  simmim neighbors --weights runs/photos --data photos --query '#17' --out sheet.png -k 23")]
pub(crate) struct Neighbors {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// Images to search.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Query image: a file, or #N for image N of the data (from 0). An image of the data is left out of the results.
    #[arg(long, value_name = "FILE|#N")]
    pub(crate) query: String,
    /// Picture to write: the query and its neighbours, nearest first, with their cosine similarity.
    #[arg(long, value_name = "SHEET.png")]
    pub(crate) out: PathBuf,
    /// Number of neighbours.
    #[arg(short, long = "neighbors", value_name = "N", default_value_t = 11)]
    pub(crate) k: usize,
    /// How to pool the tokens of an image into one vector: mean or cls.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub(crate) pool: Pool,
    /// Layer: k for the output of block k (from 1), -1 for the output of the final norm.
    #[arg(long, value_name = "K", default_value_t = -1, allow_hyphen_values = true)]
    pub(crate) layer: i64,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    pub(crate) batch: usize,
}
