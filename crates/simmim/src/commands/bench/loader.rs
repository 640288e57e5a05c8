//! `simmim bench loader`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{BenchLoader, LogFormat};
use crate::commands::{open_images, parse_size};
use crate::diagnostics::Failure;
use crate::meter::{plural, warn_unreadable};
use simmim_data::{CacheConfig, CacheKind, Loader, LoaderConfig, Position, Source, Transform, demo};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

pub(crate) fn run(a: &BenchLoader, format: LogFormat) -> Result<ExitCode, Failure> {
    let images: Arc<dyn Source> = match &a.data {
        Some(path) => open_images(path)?.into(),
        None => Arc::new(demo()?),
    };
    let threads = if a.threads == 0 { std::thread::available_parallelism()?.get() } else { a.threads };
    let mut config = LoaderConfig::new(32, 0, Transform::new(parse_size(&a.image_size)?, a.channels));
    (config.workers, config.prefetch) = (threads, 2 * threads);
    config.reading.scaled_decoding = !a.exact;
    config.drop_last = false;
    let kind = match a.cache.as_str() {
        "memory" => CacheKind::Memory,
        "disk" => CacheKind::Disk,
        _ => CacheKind::None,
    };
    let path = a.cache_path.clone().unwrap_or_default();
    config.cache = CacheConfig { kind, size: a.cache_size, limit: a.cache_limit, path };
    let batch = config.batch;
    let mut loader = Loader::new(images, config, Position::default())?;
    let unmeasured = if kind == CacheKind::None { 1 } else { loader.batches_per_epoch() };
    for _ in 0..unmeasured {
        let first = loader.next_batch()?;
        loader.recycle(first);
    }
    let batches = a.images.div_ceil(batch).max(1);
    let start = Instant::now();
    for _ in 0..batches {
        let next = loader.next_batch()?;
        loader.recycle(next);
    }
    let speed = (batches * batch) as f64 / start.elapsed().as_secs_f64();
    // Another image stood in for each: the figure counts reading it.
    let skipped = loader.skipped();
    let reasons: Vec<String> = skipped.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    warn_unreadable(format, reasons.len(), reasons.iter().map(String::as_str));
    if a.json {
        println!(
            "{}",
            serde_json::json!({ "images_per_second": speed, "threads": threads, "images": batches * batch })
        );
    } else {
        println!("{speed:.1} images/s on {threads} thread{}", plural(threads));
    }
    Ok(ExitCode::SUCCESS)
}
