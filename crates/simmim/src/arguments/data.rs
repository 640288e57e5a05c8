//! Arguments of `simmim data`.

use super::at_least_one;
use crate::parts::PartArguments;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    pub(crate) what: DataWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataWhat {
    /// Read every image and name those that cannot be used; the exit code is 1 where there are some.
    Check(Check),
    /// Measure mean, deviation and sizes over all images.
    Stats(Stats),
}

/// Images, and the channels that they are wanted in.
#[derive(Debug, Args)]
pub(crate) struct Surveyed {
    /// Channels that the images are wanted in: 1 is gray, 3 RGB, 4 RGB with alpha.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub(crate) channels: usize,
    /// Threads that read; default: one for each core.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) parts: PartArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim data check --data photos
  simmim data check --data photos --out report.csv --part $SLURM_ARRAY_TASK_ID/16")]
pub(crate) struct Check {
    /// Images: a folder, a list file, an IDX file or a folder of IDX files.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Table to write: path, class, width, height, transparent, error.
    #[arg(long, value_name = "F.csv")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) surveyed: Surveyed,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  simmim data stats --data photos
  simmim data stats --data photos --part $SLURM_ARRAY_TASK_ID/16 --out stats.json
  simmim data stats --from stats.json        once all parts are there")]
pub(crate) struct Stats {
    /// Images: a folder, a list file, an IDX file or a folder of IDX files.
    #[arg(long, value_name = "PATH", required_unless_present = "from")]
    pub(crate) data: Option<PathBuf>,
    /// Sums that were written with --out, a file or a folder of parts, instead of images.
    #[arg(long, value_name = "F.json", conflicts_with_all = ["data", "out", "part"])]
    pub(crate) from: Option<PathBuf>,
    /// File for the sums, from which --from gives the same.
    #[arg(long, value_name = "F.json")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) surveyed: Surveyed,
}
