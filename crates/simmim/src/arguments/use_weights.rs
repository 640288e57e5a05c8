//! Arguments of the commands that use trained weights.

use super::at_least_one;
use crate::device::DeviceArguments;
use crate::parts::PartArguments;
use clap::{Args, ValueEnum};
use simmim_train::features::Pooling;
use std::path::PathBuf;

/// A number of images per forward pass.
pub(crate) fn batch_size(text: &str) -> Result<usize, String> {
    let known = text.parse().ok().filter(|n| (1..=65_536).contains(n));
    known.ok_or_else(|| "use a number from 1 to 65536".to_owned())
}

/// Weights, and their model where the file does not name it.
#[derive(Debug, Clone, Args)]
pub(crate) struct WeightsOf {
    /// Weights: a run folder, a checkpoint folder, a safetensors file, a PyTorch checkpoint, or a folder of Hugging Face or timm.
    #[arg(long, value_name = "W")]
    pub(crate) weights: PathBuf,
    /// Model of a file that does not say it (by a config.json beside it, by options inside), by its timm name.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Height and width of the images; default: the model's. Positions are interpolated.
    #[arg(long, value_name = "N|HxW")]
    pub(crate) image_size: Option<String>,
    /// Carry the patch projection over to another patch size (FlexiViT), which `--set model.patch_size=N` names.
    #[arg(long)]
    pub(crate) resize_patch: bool,
    /// Recipe that says how the weights of a file were trained (mask, target, mode, mean and std).
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) recipe: Option<String>,
    /// Set one value of that recipe.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim reconstruct --weights runs/photos --data photos --out grid.png
  simmim reconstruct --weights model.safetensors --model vit_base_patch16_224 \\
      --recipe official_vit_base_patch16 --data photos --out grid.png \\
      --mask mask.npy --values values.safetensors")]
pub(crate) struct Reconstruct {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// Images to reconstruct; default: held-out images of the run.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Picture to write: one row per image with original, masked image and reconstruction.
    #[arg(long, value_name = "FILE.png")]
    pub(crate) out: PathBuf,
    /// Number of images, spread over the data and its classes.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) images: usize,
    /// Masks: a 0/1 array [images, rows, columns] of mask cells with the same number of 1s in each image; default: drawn from the
    /// seed.
    #[arg(long, value_name = "M.npy")]
    pub(crate) mask: Option<PathBuf>,
    /// Also write `mask`, `target`, `prediction` (normalised pixels, [n, C, H, W]) and `loss` to this safetensors file. Visible
    /// pixels of `prediction` are 0 unless simmim.area is full; so are those of `target` when it is normalised per patch.
    #[arg(long, value_name = "V.safetensors")]
    pub(crate) values: Option<PathBuf>,
    /// Seed of the masks and of the choice of images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// How to pool the tokens of an image into one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pool {
    /// Mean of the patch tokens, which SimMIM trains. Use this unless you have a reason not to.
    Mean,
    /// The class token. SimMIM never trains it: its features are close to random.
    Cls,
    /// All tokens, [images, tokens, dim].
    None,
}

impl Pool {
    /// The same, as the library names it.
    pub(crate) fn pooling(self) -> Pooling {
        match self {
            Self::Mean => Pooling::Mean,
            Self::Cls => Pooling::Class,
            Self::None => Pooling::None,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim embed --weights runs/photos --data photos --out features.npy
  simmim embed --weights runs/photos --data photos --out features.parquet --layer 8
  simmim embed --weights runs/photos --data photos --out features.parquet --part $SLURM_ARRAY_TASK_ID/16
  simmim embed --weights vit.safetensors --model vit_small_patch16_224 \\
      --data photos --out f.npy --pool none --layer 8")]
pub(crate) struct Embed {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// Images to embed.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// File to write. F.npy: a float32 array, with the image paths in F.files.txt beside it; F.parquet, F.csv: a table of path,
    /// label (the class, if known) and vector.
    #[arg(long, value_name = "F.npy|.parquet|.csv")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) parts: PartArguments,
    /// How to pool the tokens of an image into one vector.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub(crate) pool: Pool,
    /// Layer: k for the output of block k (from 1), -1 for the output of the final norm.
    #[arg(long, value_name = "K", default_value_t = -1, allow_hyphen_values = true)]
    pub(crate) layer: i64,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = batch_size)]
    pub(crate) batch: usize,
}
