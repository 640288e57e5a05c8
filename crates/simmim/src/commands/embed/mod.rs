//! `simmim embed`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

mod npy;
mod table;

use crate::arguments::{Embed, LogFormat};
use crate::commands::{check_output, open_images, weights};
use crate::device;
use crate::diagnostics::Failure;
use crate::meter::{Meter, warn_unreadable};
use simmim_data::Source;
use simmim_files::AtomicFile;
use simmim_train::features::{Extractor, Layer, Pooling};
use std::path::Path;
use std::process::ExitCode;

/// A file that features go to, row by row.
trait Sink {
    fn row(&mut self, path: &str, label: Option<&str>, feature: &[f32]) -> Result<(), Failure>;

    /// Completes the file and gives it its name.
    fn finish(self: Box<Self>) -> Result<String, Failure>;
}

/// Starts a file that appears at `path` once it is committed.
fn create(path: &Path) -> Result<AtomicFile, Failure> {
    AtomicFile::create(path)
        .map_err(|e| Failure::input(format!("{}: {e}", path.display()), "choose a file that can be written to"))
}

/// What a failed write becomes.
fn fail<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Failure + '_ {
    |e| Failure::running(format!("{}: {e}", path.display()))
}

pub(crate) fn run(a: &Embed, format: LogFormat) -> Result<ExitCode, Failure> {
    let kind = Kind::of(a)?;
    check_output(&a.out)?;
    weights::recipe(&a.weights)?;
    let images = open_images(&a.data)?;
    let model = weights::encoder(&a.weights, &*images)?;
    model.announce(format);
    let layer = Layer::of(a.layer, &model.encoder)?;
    let pooling = a.pool.pooling();
    let executor = device::open(&a.weights.device)?;
    let plan = model.plan(vec![layer], pooling, a.batch, &a.weights.device);
    let mut extractor = Extractor::new(executor, &model.encoder, &model.tensors, plan)?;
    let shape = match pooling {
        Pooling::None => vec![layer.shape(&model.encoder).tokens(), layer.shape(&model.encoder).width],
        _ => vec![layer.shape(&model.encoder).width],
    };
    let mut sink: Box<dyn Sink> = match kind {
        Kind::Npy => Box::new(npy::Npy::create(&a.out, images.len(), shape)?),
        Kind::Csv => Box::new(table::Csv::create(&a.out, shape[0])?),
        Kind::Parquet => Box::new(table::Parquet::create(&a.out)?),
    };
    let mut meter = Meter::new(format, "embed", images.len());
    let all: Vec<usize> = (0..images.len()).collect();
    let (mut done, mut failed) = (0, None);
    let mut take = |_: usize, place: usize, feature: &[f32]| {
        if failed.is_none() {
            failed = sink.row(&images.name(place), label(&*images, place), feature).err();
            done += 1;
        }
    };
    let unread = extractor.for_each(&*images, &all, &mut take, &mut |n| meter.at(n))?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if done == 0 {
        return Err(Failure::input("no image could be read", "check that the files are images"));
    }
    let reasons: Vec<String> = unread.iter().map(|(_, e)| e.to_string()).collect();
    warn_unreadable(format, reasons.len(), reasons.iter().map(String::as_str));
    meter.finish(done);
    println!("{}", sink.finish()?);
    Ok(ExitCode::SUCCESS)
}

/// The name of an image's class.
fn label(images: &dyn Source, index: usize) -> Option<&str> {
    images.class_names().get(images.label(index)?).map(String::as_str)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Csv,
    Parquet,
}

impl Kind {
    fn of(a: &Embed) -> Result<Self, Failure> {
        let extension = a.out.extension().map(|e| e.to_string_lossy().to_lowercase());
        let kind = match extension.as_deref() {
            Some("csv") => Self::Csv,
            Some("parquet") => Self::Parquet,
            Some("npy") => Self::Npy,
            _ => {
                return Err(Failure::input(
                    format!("{}: the name does not end in a known format", a.out.display()),
                    "name a file that ends in .npy, .parquet or .csv",
                ));
            }
        };
        if kind != Self::Npy && a.pool == crate::arguments::Pool::None {
            return Err(Failure::input(
                "a table has one vector per image, but --pool none gives one per token",
                "write a .npy file, or use --pool mean",
            ));
        }
        Ok(kind)
    }
}
