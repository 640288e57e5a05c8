//! Arguments as typed. The commands resolve what they mean.

mod data;
mod export;
mod finetune;
mod memory;
mod pretrain;
mod probe;
mod use_weights;

pub(crate) use data::{Check, Data, DataWhat, Stats, Surveyed};
pub(crate) use export::{Export, ExportFormat};
pub(crate) use finetune::{Compare, CompareMethod, Evaluate, Finetune, Predict, StartOf};
pub(crate) use memory::MemoryArguments;
pub(crate) use pretrain::Pretrain;
pub(crate) use probe::{Method, Neighbors, Probe};
pub(crate) use use_weights::{Embed, Pool, Reconstruct, WeightsOf};

use crate::device::DeviceArguments;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 success; 1 failed while running (files written so far are kept); 2 invalid arguments or input, nothing was written;
130 interrupted with Ctrl-C, after a checkpoint was written; 75 interrupted with the signal of --requeue-signal, after one was written.

Environment: SIMMIM_ISA selects the instruction set (amx, avx512bf16, avx512, avx2, portable); the default is the widest the processor has.";

/// Masked image modelling: pre-train a vision transformer on unlabelled images, see what it learns, use its weights elsewhere.
#[derive(Debug, Parser)]
#[command(name = "simmim", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    /// Format of progress and log lines on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A count of at least one.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("use a whole number, at least 1".to_owned()),
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
    /// See what images are like before anything is trained on them: unreadable ones, mean and deviation, sizes.
    Data(Data),
    /// Compute features of images and write them to a file.
    Embed(Embed),
    /// Train a classifier from pre-trained weights, or from scratch.
    Finetune(Box<Finetune>),
    /// Evaluate a classifier: accuracy, confusion matrix, calibration.
    Evaluate(Evaluate),
    /// Classify images and write a table.
    Predict(Predict),
    /// Measure whether pre-training helped: fine-tune and probe on fractions of the labels, against training from scratch and raw pixels.
    Compare(Box<Compare>),
    /// Measure how well the features of each layer separate classes, against raw pixels and random weights.
    Probe(Probe),
    /// Find the images most similar to a query image.
    Neighbors(Neighbors),
    /// Write a model for other programs: timm, Hugging Face, microsoft/SimMIM, ONNX.
    Export(Export),
    /// Print a model (parameters, FLOPs, memory plan, graph), or what weights are.
    Inspect(Inspect),
    /// List the built-in recipes, or show one.
    Recipes(Recipes),
    /// Measure speed.
    Bench(Bench),
    /// Check that this machine computes what it should, operation by operation and over training steps, and how fast.
    Selftest(SelfTest),
}

/// A recipe by name or file, and single values on top.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecipeArguments {
    /// Recipe: a name from `simmim recipes` or a TOML file. `pretrain` takes auto too, the default with --data: by the images' size
    /// and colour.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) recipe: Option<String>,
    /// Set one value of the recipe, such as `optimizer.lr=1e-4`. May be repeated; the last one wins.
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
    /// Images per step; default: the recipe's batch size.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch: Option<usize>,
    #[command(flatten)]
    pub(crate) memory: MemoryArguments,
    /// List every parameter with its shape.
    #[arg(long)]
    pub(crate) parameters: bool,
    /// Print the operations of the training step.
    #[arg(long)]
    pub(crate) graph: bool,
    /// Print the compiled program: every operation with the memory location of its values.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Print what a step can at best cost on a card: h100, a100, rtx4090, or its FLOPS,BYTES a second such as 67e12,3.35e12.
    #[arg(long, value_name = "CARD", value_parser = crate::commands::roofline::card)]
    pub(crate) roofline: Option<crate::commands::roofline::Card>,
    /// Print a JSON object.
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
    /// List the built-in recipes (as `simmim recipes` does).
    List,
    /// Print a recipe with every value and its meaning, ready to save and edit.
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
    /// Whether an argument selects the instruction set.
    pub(crate) fn names_isa(&self) -> bool {
        match &self.what {
            BenchWhat::Step(a) => a.what.isa.is_some(),
            BenchWhat::Embed(a) => a.what.isa.is_some(),
            BenchWhat::Loader(_) => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// Time the training step (forward, backward, optimiser) on random images in memory.
    Step(BenchStep),
    /// Time the encoder on random images in memory, as `simmim embed` runs it.
    Embed(BenchEmbed),
    /// Time the data loader: decode, crop, flip, normalise.
    Loader(BenchLoader),
}

/// What the benchmarks of a model have in common.
#[derive(Debug, Args)]
pub(crate) struct BenchModel {
    /// timm name of the model.
    #[arg(long, value_name = "NAME", default_value = "vit_small_patch32_224")]
    pub(crate) model: String,
    /// Height and width of the images; default: the model's.
    #[arg(long, value_name = "N|HxW")]
    pub(crate) image_size: Option<String>,
    /// Images per step, or per pass of the encoder.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) device: DeviceArguments,
    /// Instruction set: amx, avx512bf16, avx512, avx2 or portable; default: SIMMIM_ISA, or the widest the processor has.
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
    /// Steps or passes to time, after two to warm up.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  simmim bench embed --model vit_small_patch16_224 --batch 32 --precision bf16 --json")]
pub(crate) struct BenchEmbed {
    #[command(flatten)]
    pub(crate) what: BenchModel,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim bench step --model vit_small_patch32_224 --batch 32 --threads 2 --mask-ratio 0.5 --json
  simmim bench step --model vit_tiny_patch16_224 --batch 16 --profile")]
pub(crate) struct BenchStep {
    #[command(flatten)]
    pub(crate) what: BenchModel,
    /// Fraction of the image that is masked.
    #[arg(long, value_name = "X", default_value_t = 0.5)]
    pub(crate) mask_ratio: f64,
    /// Parts per step (gradient accumulation); 0: chosen to fit memory.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) accumulation: usize,
    #[command(flatten)]
    pub(crate) memory: MemoryArguments,
    /// Activations that the backward computes again, whatever memory there is: those of all blocks.
    #[arg(long, conflicts_with = "memory")]
    pub(crate) recompute: bool,
    /// Print the time of each operation to standard error.
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  simmim bench loader --data photos --image-size 224 --threads 2 --json")]
pub(crate) struct BenchLoader {
    /// Folder, list file or IDX file; default: the built-in demo set.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Height and width of the crops.
    #[arg(long, value_name = "N|HxW", default_value = "224")]
    pub(crate) image_size: String,
    /// Channels of the crops.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) channels: usize,
    /// Loader threads; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Images to load.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) images: usize,
    /// Decode every pixel of a crop (data.scaled_decoding = false).
    #[arg(long)]
    pub(crate) exact: bool,
    /// Where to cache decoded pixels; the first epoch, which fills the cache, is not timed.
    #[arg(long, value_name = "none|memory|disk", default_value = "none", value_parser = ["none", "memory", "disk"])]
    pub(crate) cache: String,
    /// Shorter side of cached images; 0: full size.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) cache_size: usize,
    /// Maximum cache size in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30)]
    pub(crate) cache_limit: u64,
    /// Disk cache folder; default: `simmim` in the user's cache folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) cache_path: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
