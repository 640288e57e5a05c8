//! `simmim embed`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

mod npy;
mod table;

use crate::arguments::{Embed, LogFormat};
use crate::commands::{class_name, open_images, weights};
use crate::device;
use crate::diagnostics::Failure;
use crate::meter::{Meter, warn_unreadable};
use crate::parts::Place;
use crate::ranks;
use simmim_data::Source;
use simmim_files::AtomicFile;
use simmim_train::Ranks;
use simmim_train::features::{Extractor, Key, Layer, Pooling};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A file that features go to, row by row.
trait Sink {
    fn row(&mut self, path: &str, label: Option<&str>, feature: &[f32]) -> Result<(), Failure>;

    /// Completes the file and gives it its name; gives what was written, and what to say of it.
    fn finish(self: Box<Self>) -> Result<(Vec<PathBuf>, String), Failure>;
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
    ranks::run(format, |ranks| embed(a, format, &ranks.clone().without_limit()))
}

fn embed(a: &Embed, format: LogFormat, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let kind = Kind::of(a)?;
    // What costs little to refuse comes first, and all ranks refuse it with one message.
    let share = ranks::agree(ranks, || {
        weights::recipe(&a.weights)?;
        let share = a.parts.share(open_images(&a.data)?, ranks)?;
        share.check_output(&a.out)?;
        Ok(share)
    })?;
    let images = &*share.images;
    let model = weights::encoder(&a.weights, images)?;
    if ranks.is_first() {
        model.announce(format);
    }
    let layer = Layer::of(a.layer, &model.encoder)?;
    let plan = model.plan(vec![layer], a.pool.pooling(), a.batch, &a.weights.device);
    let made_from =
        || Ok(format!("{layer:?} {}", Key::new(images, &plan, &model.encoder, &model.tensors)?.conditions()));
    let slot = match share.place(&a.out, made_from)? {
        Place::Make(slot) => slot,
        Place::There(path) => {
            println!("{} is there already", path.display());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let shape = match plan.pooling {
        Pooling::None => vec![layer.shape(&model.encoder).tokens(), layer.shape(&model.encoder).width],
        _ => vec![layer.shape(&model.encoder).width],
    };
    let mut sink = kind.create(&slot.path, images.len(), shape)?;
    let done = if images.is_empty() {
        0
    } else {
        let mut extractor = Extractor::new(device::open(&a.weights.device)?, &model.encoder, &model.tensors, plan)?;
        rows(&mut extractor, images, &mut *sink, format)?
    };
    if done == 0 && !share.may_be_empty() {
        return Err(Failure::input("no image could be read", "check that the files are images"));
    }
    let (files, said) = sink.finish()?;
    slot.seal(&files)?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// Writes the features of all images that can be read; gives their number.
fn rows(
    extractor: &mut Extractor,
    images: &dyn Source,
    sink: &mut dyn Sink,
    format: LogFormat,
) -> Result<usize, Failure> {
    let mut meter = Meter::new(format, "embed", images.len());
    let all: Vec<usize> = (0..images.len()).collect();
    let (mut done, mut failed) = (0, None);
    let mut take = |_: usize, place: usize, feature: &[f32]| {
        if failed.is_none() {
            failed = sink.row(&images.name(place), class_name(images, place), feature).err();
            done += 1;
        }
    };
    let unread = extractor.for_each(images, &all, &mut take, &mut |n| meter.at(n))?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let reasons: Vec<String> = unread.iter().map(|(_, e)| e.to_string()).collect();
    warn_unreadable(format, reasons.len(), reasons.iter().map(String::as_str));
    meter.finish(done);
    Ok(done)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Csv,
    Parquet,
}

impl Kind {
    /// Starts the file of a table.
    fn create(self, path: &Path, rows: usize, shape: Vec<usize>) -> Result<Box<dyn Sink>, Failure> {
        Ok(match self {
            Self::Npy => Box::new(npy::Npy::create(path, rows, shape)?),
            Self::Csv => Box::new(table::Csv::create(path, shape[0])?),
            Self::Parquet => Box::new(table::Parquet::create(path)?),
        })
    }

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
