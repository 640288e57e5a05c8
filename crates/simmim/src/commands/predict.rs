//! `simmim predict`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, warnings to standard error"
)]

use crate::arguments::Predict;
use crate::commands::evaluate::load;
use crate::commands::{check_output, open_images, write_file};
use crate::diagnostics::Failure;
use simmim_train::classify::softmax;
use std::process::ExitCode;

pub(crate) fn run(a: &Predict) -> Result<ExitCode, Failure> {
    let (file, mut classifier) = load(&a.weights, &a.device)?;
    let images = open_images(&a.data)?;
    check_output(&a.out)?;
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
    let bad = classifier.predict(&*images, &all, &file.recipe.transform(), a.device.host_threads(), take)?;
    written.map_err(|e| Failure::running(e.to_string()))?;
    bad.iter().for_each(|(_, e)| eprintln!("warning: skipped: {e}"));
    let bytes = table.into_inner().map_err(|e| Failure::running(e.to_string()))?;
    write_file(&a.out, &bytes)?;
    println!("{count} images, {} skipped; {}", bad.len(), a.out.display());
    Ok(ExitCode::SUCCESS)
}
