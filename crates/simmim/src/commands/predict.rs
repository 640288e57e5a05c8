//! `simmim predict`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, warnings to standard error"
)]

use crate::arguments::{LogFormat, Predict};
use crate::commands::evaluate::load;
use crate::commands::open_images;
use crate::diagnostics::Failure;
use crate::parts::Place;
use crate::ranks;
use simmim_data::DataError;
use simmim_train::classify::softmax;
use simmim_train::features::Key;
use simmim_train::{Ranks, TrainError};
use std::process::ExitCode;

pub(crate) fn run(a: &Predict, format: LogFormat) -> Result<ExitCode, Failure> {
    ranks::run(format, |ranks| predict(a, &ranks.clone().without_limit()))
}

fn predict(a: &Predict, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let (file, mut classifier, share) = ranks::agree(ranks, || {
        let (file, classifier) = load(&a.weights, &a.device)?;
        let share = a.parts.share(open_images(&a.data)?, ranks)?;
        share.check_output(&a.out)?;
        Ok((file, classifier, share))
    })?;
    let (images, transform) = (&*share.images, file.recipe.transform());
    let made_from = || {
        let rest = format!("{:?} {:?} {:?}", classifier.config(), file.classes, a.device.precision());
        let weights = file.weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.as_slice()));
        Ok(Key::of(images, &transform, &rest, weights)?.conditions())
    };
    let slot = match share.place(&a.out, made_from)? {
        Place::Make(slot) => slot,
        Place::There(path) => {
            println!("{} is there already", path.display());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut written = table.write_record(["file", "class", "probability"]);
    let all: Vec<usize> = (0..images.len()).collect();
    let mut count = 0;
    let take = |i: usize, logits: &[f32]| {
        let p = softmax(logits);
        let best = (0..p.len()).fold(0, |best, k| if p[k] > p[best] { k } else { best });
        let row = [images.name(i), file.classes[best].clone(), format!("{:.6}", p[best])];
        count += 1;
        if written.is_ok() {
            written = table.write_record(&row);
        }
    };
    let bad = match classifier.predict(images, &all, &transform, a.device.host_threads(), take) {
        Err(TrainError::Data(DataError::NothingReadable { .. })) if share.may_be_empty() => Vec::new(),
        other => other?,
    };
    written.map_err(|e| Failure::running(e.to_string()))?;
    bad.iter().for_each(|(_, e)| eprintln!("warning: skipped: {e}"));
    let bytes = table.into_inner().map_err(|e| Failure::running(e.to_string()))?;
    let path = slot.write(&bytes)?;
    println!("{count} images, {} skipped; {}", bad.len(), path.display());
    Ok(ExitCode::SUCCESS)
}
