//! Arguments of `simmim export`.

use super::WeightsOf;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// For whom a model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A folder for timm.create_model("local-dir:PATH", pretrained=True).
    Timm,
    /// A folder for AutoModel.from_pretrained(PATH) of Hugging Face, with AutoImageProcessor.
    Hf,
    /// A safetensors file in the names of microsoft/SimMIM.
    Official,
    /// An ONNX file: patch tokens and their mean, or a classifier's probabilities.
    Onnx,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim export --weights runs/photos --format timm --out photos-timm
  simmim export --weights runs/photos --format hf --out photos-hf
  simmim export --weights runs/classes --format onnx --with-preprocessing --out classes.onnx
  simmim export --weights simmim_pretrain.pth --format official --per-block-tables --out encoder.safetensors")]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) weights: WeightsOf,
    /// For whom.
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Folder (timm, hf) or file (official, onnx) to write.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Take 8-bit RGB images of the model's size instead of normalised floats (onnx).
    #[arg(long)]
    pub(crate) with_preprocessing: bool,
    /// Copy a table of biases that all blocks share to every block, as fine-tuning has it (official).
    #[arg(long)]
    pub(crate) per_block_tables: bool,
}
