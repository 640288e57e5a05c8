//! Arguments of `simmim probe` and `simmim neighbors`.

use super::{Pool, WeightsOf};
use crate::arguments::use_weights::batch_size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// k nearest neighbours by cosine, weighted by temperature.
    Knn,
    /// Logistic regression on standardised features.
    Linear,
    /// One after the other.
    Both,
}

#[derive(Debug, Args)]
#[command(after_help = "\
k, what is done to the features before neighbours are sought (nothing, standardising, whitening), the strength of l2 and the layer
are chosen on a fifth of the training images (below 2,500 of them: on five fifths in turn); VAL only measures.
Classes are matched by name: of folders the first level below TRAIN and VAL. A run's folder keeps the features for the next time, and
gets probe.json and probe.csv: rows of earlier probes of the same images, weights and seed stay in them where this one does not
measure them anew; those of others are renamed to probe-N.

Examples:
  simmim probe --weights runs/photos --data photos/train --val photos/val
  simmim probe --weights runs/fashion --data fashion-mnist --val fashion-mnist/t10k-images-idx3-ubyte.gz --layers 2,3
  simmim probe --weights vit.safetensors --model vit_small_patch16_224 --data train --val val --method linear --json")]
pub(crate) struct Probe {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// Labelled images to fit on: a folder with a folder for each class, a list with labels, or IDX files with labels. Default: the
    /// demonstration set, for a run that was trained on it.
    #[arg(long, value_name = "TRAIN", requires = "val")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled images to measure on.
    #[arg(long, value_name = "VAL", requires = "data")]
    pub(crate) val: Option<PathBuf>,
    /// Which probe.
    #[arg(long, value_enum, default_value_t = Method::Both)]
    pub(crate) method: Method,
    /// Layers: all, or numbers with commas between; k for the output of block k (from 1), -1 for that of the final norm.
    #[arg(long, value_name = "all|L", default_value = "all", allow_hyphen_values = true)]
    pub(crate) layers: String,
    /// How the tokens of an image become one vector: mean or cls.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub(crate) pool: Pool,
    /// Leave out the baselines: raw pixels and the same encoder with random weights.
    #[arg(long)]
    pub(crate) no_baselines: bool,
    /// Images in a pass of the encoder.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    pub(crate) batch: usize,
    /// Seed of the split of the training images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of the table.
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
    /// Image to search for: a file, or #N for image N of the data (from 0), which is then left out of the result.
    #[arg(long, value_name = "FILE|#N")]
    pub(crate) query: String,
    /// Picture to write: the image and its neighbours, nearest first, with their cosine similarity.
    #[arg(long, value_name = "SHEET.png")]
    pub(crate) out: PathBuf,
    /// Number of neighbours.
    #[arg(short, long = "neighbors", value_name = "N", default_value_t = 11)]
    pub(crate) k: usize,
    /// How the tokens of an image become one vector: mean or cls.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub(crate) pool: Pool,
    /// Layer: k for the output of block k (from 1), -1 for the output of the final norm.
    #[arg(long, value_name = "K", default_value_t = -1, allow_hyphen_values = true)]
    pub(crate) layer: i64,
    /// Images in a pass of the encoder.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    pub(crate) batch: usize,
}
