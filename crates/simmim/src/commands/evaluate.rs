//! `simmim evaluate`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to standard output, warnings to standard error"
)]

use crate::arguments::Evaluate;
use crate::commands::weights::classifier;
use crate::commands::{open_images, write_file};
use crate::device::{self, DeviceArguments};
use crate::diagnostics::Failure;
use simmim_data::{LabelledSource, Source, demo_held_out};
use simmim_train::Classifier;
use simmim_train::classify::{ClassifierFile, Scores, confusion_csv, draw_confusion};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// A classifier ready to predict, with what it was made by.
pub(crate) fn load(weights: &Path, device: &DeviceArguments) -> Result<(ClassifierFile, Classifier), Failure> {
    let (file, said) = classifier(weights)?;
    said.iter().for_each(|line| eprintln!("{line}"));
    let parameters = file.parameters(weights)?;
    let config = file.recipe.classifier_config(file.classes.len())?;
    let mut classifier = Classifier::new(device::open(device)?, config, 0)?.in_precision(device.precision());
    classifier.device_mut().set_weights(parameters)?;
    Ok((file, classifier))
}

pub(crate) fn run(a: &Evaluate) -> Result<ExitCode, Failure> {
    let (file, mut classifier) = load(&a.weights, &a.device)?;
    let (images, path): (Arc<dyn Source>, &Path) = match &a.data {
        Some(path) => (open_images(path)?.into(), path),
        None => (Arc::new(demo_held_out()?), Path::new("the demo set")),
    };
    let labelled = LabelledSource::with_classes(images, path, &file.classes)?;
    if let Some(out) = &a.out {
        std::fs::create_dir_all(out)
            .map_err(|e| Failure::input(format!("{}: {e}", out.display()), "choose a folder that can be written to"))?;
    }
    for absent in labelled.absent() {
        eprintln!("warning: no image of class `{absent}`");
    }
    let mut scores = Scores::new(file.classes.clone());
    let labels = labelled.labels();
    let all = labelled.spread(0);
    let take = |i: usize, logits: &[f32]| scores.add(labels[i], logits);
    let bad = classifier.predict(&labelled, &all, &file.recipe.transform(), a.device.host_threads(), take)?;
    bad.iter().for_each(|(_, e)| eprintln!("warning: skipped: {e}"));
    if let Some(out) = &a.out {
        write(&scores, out)?;
    }
    if a.json {
        println!("{}", scores.to_json());
    } else {
        print(&scores);
    }
    Ok(ExitCode::SUCCESS)
}

fn write(scores: &Scores, out: &Path) -> Result<(), Failure> {
    let file = |name: &str, bytes: &[u8]| write_file(&out.join(name), bytes);
    file("scores.json", format!("{:#}\n", scores.to_json()).as_bytes())?;
    file("confusion.csv", &confusion_csv(scores)?)?;
    let mut table = csv::Writer::from_writer(Vec::new());
    for class in scores.per_class() {
        table.serialize(class).map_err(|e| Failure::running(e.to_string()))?;
    }
    file("per_class.csv", &table.into_inner().map_err(|e| Failure::running(e.to_string()))?)?;
    Ok(draw_confusion(scores, &out.join("confusion.png"))?)
}

fn print(scores: &Scores) {
    println!("images             {}", scores.images());
    println!("top-1              {:.2} %", 100.0 * scores.top(1));
    // Among five classes or fewer every image is right.
    if scores.classes().len() > 5 {
        println!("top-5              {:.2} %", 100.0 * scores.top(5));
    }
    println!("cross-entropy      {:.4}", scores.loss());
    println!("calibration error  {:.2} %", 100.0 * scores.calibration_error());
    let classes = scores.per_class();
    let width = classes.iter().map(|c| c.class.chars().count()).max().unwrap_or(0).clamp(5, 40);
    println!("{:width$}  {:>7}  {:>8}  {:>9}", "class", "images", "found", "precision");
    let share = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{:.1} %", 100.0 * v));
    for c in classes {
        println!("{:width$}  {:>7}  {:>8}  {:>9}", c.class, c.images, share(c.recall), share(c.precision));
    }
}
