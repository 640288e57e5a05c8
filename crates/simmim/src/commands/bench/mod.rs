//! `simmim bench`.

pub(crate) mod embed;
pub(crate) mod loader;
pub(crate) mod step;

use crate::arguments::BenchModel;
use crate::commands::parse_size;
use crate::diagnostics::Failure;
use simmim_models::Encoder;

/// Steps, or passes of the encoder, before the measured ones.
const WARM_UP: usize = 2;

/// The encoder to time, at the size that was asked for.
fn encoder(a: &BenchModel) -> Result<Encoder, Failure> {
    let mut encoder = Encoder::preset(&a.model)?;
    if let Some(size) = &a.image_size {
        encoder.set_image_size(parse_size(size)?);
    }
    Ok(encoder)
}

/// The middle one of some times.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The most memory this process has held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
