//! Arguments as they are typed. What they mean is resolved by the commands.

mod export;
mod finetune;
mod pretrain;
mod probe;
mod use_weights;

pub(crate) use export::{Export, ExportFormat};
pub(crate) use finetune::{Compare, CompareMethod, Evaluate, Finetune, Predict, StartOf};
pub(crate) use pretrain::Pretrain;
pub(crate) use probe::{Method, Neighbors, Probe};
pub(crate) use use_weights::{Embed, Pool, Reconstruct, WeightsOf};

use crate::device::DeviceArguments;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed while running (what was written before stays); 2 wrong arguments or input, nothing was written;
130 stopped by Ctrl-C after a checkpoint was written.

Environment: SIMMIM_ISA chooses the instruction set (amx, avx512, avx2, portable); without it the widest one of the processor is used.";

/// Masked image modelling: pre-train a vision transformer on unlabelled images, see what it learns, take its weights elsewhere.
#[derive(Debug, Parser)]
#[command(name = "simmim", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    /// Format of progress and log lines on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A number of things of which there must be one.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("give a whole number, at least 1".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// Format of the lines on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A progress bar on a terminal, plain lines otherwise.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pre-train an encoder with SimMIM on a folder of images.
    Pretrain(Box<Pretrain>),
    /// Draw original, masked and reconstructed images side by side.
    Reconstruct(Reconstruct),
    /// Write the features of images.
    Embed(Embed),
    /// Train a classifier from pre-trained weights, or from scratch.
    Finetune(Box<Finetune>),
    /// Measure a classifier: accuracy, confusion, calibration.
    Evaluate(Evaluate),
    /// Write the class of each image.
    Predict(Predict),
    /// Measure whether pre-training helped: fine-tuning and probes at shares of the labels, against scratch and raw pixels.
    Compare(Box<Compare>),
    /// Measure how well classes can be told apart by features, layer by layer, against raw pixels and random weights.
    Probe(Probe),
    /// Find the images most like one.
    Neighbors(Neighbors),
    /// Write a model for other programs: timm, Hugging Face, microsoft/SimMIM, ONNX.
    Export(Export),
    /// Print a model (parameters, FLOPs, memory plan, graph), or what weights are.
    Inspect(Inspect),
    /// List the recipes in the binary, or show one.
    Recipes(Recipes),
    /// Measure speed.
    Bench(Bench),
    /// Check that this machine computes what it should, operation by operation and over training steps, and how fast.
    Selftest(SelfTest),
}

/// Settings of a recipe, by name, file and single values.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecipeArguments {
    /// Recipe: a name from `simmim recipes` or a TOML file. `pretrain` takes auto too, the default with --data: by the images' size
    /// and colour.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) recipe: Option<String>,
    /// Set one value of the recipe, such as `optimizer.lr=1e-4`. May be given several times; the last one wins.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim inspect --recipe official_vit_base_patch16
  simmim inspect --recipe demo --batch 8 --graph
  simmim inspect --recipe demo --plan
  simmim inspect --recipe official_vit_base_patch16 --batch 256 --roofline h100
  simmim inspect --weights simmim_pretrain.pth
  simmim inspect --weights dinov2.safetensors --recipe small_images_64")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) recipe: RecipeArguments,
    /// Say what these weights are, and what becomes of each tensor: in a model of their own, or in the recipe's where one is named.
    #[arg(long, value_name = "W", conflicts_with_all = ["batch", "parameters", "graph", "plan"])]
    pub(crate) weights: Option<PathBuf>,
    /// Images in a step; default: the recipe's batch size.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch: Option<usize>,
    /// Print every parameter with its shape.
    #[arg(long)]
    pub(crate) parameters: bool,
    /// Print the operations of the training step.
    #[arg(long)]
    pub(crate) graph: bool,
    /// Print the program: every operation with the places of its values in memory.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Print what a step can at best cost on a card: h100, a100, rtx4090, or its FLOPS,BYTES a second such as 67e12,3.35e12.
    #[arg(long, value_name = "CARD", value_parser = crate::commands::roofline::card)]
    pub(crate) roofline: Option<crate::commands::roofline::Card>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim selftest                          # the processor, each of its instruction sets
  simmim selftest --device cuda --out selftest.txt")]
pub(crate) struct SelfTest {
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
    /// Small shapes and training steps only: no real shapes, no speed.
    #[arg(long)]
    pub(crate) quick: bool,
    /// File for the table, to be sent to whoever wants to know.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim recipes
  simmim recipes show demo > my.toml")]
pub(crate) struct Recipes {
    #[command(subcommand)]
    pub(crate) action: Option<RecipesAction>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecipesAction {
    /// List the recipes in the binary: what `simmim recipes` alone does too.
    List,
    /// Print a recipe with every value and its meaning, ready to be saved and changed.
    Show {
        /// A name from `simmim recipes` or a TOML file.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: BenchWhat,
}

impl Bench {
    /// Whether an argument chooses the instruction set.
    pub(crate) fn names_isa(&self) -> bool {
        matches!(&self.what, BenchWhat::Step(a) if a.isa.is_some())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Measure the training step (forward, backward, optimiser) on random images held in memory.
    Step(BenchStep),
    /// Measure the loader: decode, crop, flip, normalise.
    Loader(BenchLoader),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim bench step --model vit_small_patch32_224 --batch 32 --threads 2 --mask-ratio 0.5 --json
  simmim bench step --model vit_tiny_patch16_224 --batch 16 --profile")]
pub(crate) struct BenchStep {
    /// Model, by its timm name.
    #[arg(long, value_name = "NAME", default_value = "vit_small_patch32_224")]
    pub(crate) model: String,
    /// Height and width of the images; default: the model's.
    #[arg(long, value_name = "N|HxW")]
    pub(crate) image_size: Option<String>,
    /// Images in a step.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
    /// Share of the image that is masked.
    #[arg(long, value_name = "X", default_value_t = 0.5)]
    pub(crate) mask_ratio: f64,
    /// Steps measured, after two that are not.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Parts into which a step is cut (gradient accumulation); 0: chosen by the plan.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) accumulation: usize,
    /// Instruction set: amx, avx512, avx2 or portable; default: that of SIMMIM_ISA, or the widest here.
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
    /// Print the time of each operation to standard error.
    #[arg(long)]
    pub(crate) profile: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  simmim bench loader --data photos --image-size 224 --threads 2 --json")]
pub(crate) struct BenchLoader {
    /// Folder, list file or IDX file; default: the embedded demonstration set.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Height and width of the crops.
    #[arg(long, value_name = "N|HxW", default_value = "224")]
    pub(crate) image_size: String,
    /// Channels of the crops.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) channels: usize,
    /// Loader threads; 0: one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Images measured.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) images: usize,
    /// Decode every pixel of a crop, as `data.scaled_decoding = false` does.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Where decoded pixels are kept; the first epoch, which fills it, is not measured.
    #[arg(long, value_name = "none|memory|disk", default_value = "none", value_parser = ["none", "memory", "disk"])]
    pub(crate) cache: String,
    /// Shorter side of cached images; 0: all pixels.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) cache_size: usize,
    /// Largest size of the cache, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    pub(crate) cache_limit: u64,
    /// Folder of the disk cache; default: `simmim` in the user's cache folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) cache_path: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
