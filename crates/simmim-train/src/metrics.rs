//! `metrics.jsonl`: one JSON object for each logged step.

use crate::error::TrainError;
use serde::{Deserialize, Deserializer, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done, with the part of the current one.
    pub epoch: f64,
    /// Mean training loss since the last line; not finite (`null` in the file) where a step's was not.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f32,
    /// Learning rate of the step.
    pub lr: f64,
    /// Gradient norm of the step, before clipping; as the loss.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f32,
    /// Images for each second of training since the last line.
    pub images_per_second: f64,
    /// Share of that time spent waiting for images.
    pub data_wait: f64,
    /// Loss on the held-out images (under fixed masks in pre-training), where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f32>,
    /// Share of the held-out images whose class was found, where there are classes and it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_top1: Option<f32>,
    /// Accuracy of a kNN probe, 0 to 1, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_knn: Option<f32>,
}

/// JSON has no numbers that are not finite; they are written as `null`.
fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    Ok(Option::<f32>::deserialize(from)?.unwrap_or(f32::NAN))
}

/// Appends lines to a file.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file and drops lines after `step` and lines that an interruption has torn.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        if path.exists() {
            let kept: String = read(path)?
                .into_iter()
                .filter(|r| r.step <= step)
                .filter_map(|r| serde_json::to_string(&r).ok())
                .map(|line| line + "\n")
                .collect();
            simmim_files::write(path, kept.as_bytes()).map_err(TrainError::io(path))?;
        }
        let file = File::options().create(true).append(true).open(path).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&mut self, record: &Record) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(TrainError::io(&self.path))
    }
}

/// The whole lines of a file.
///
/// # Errors
/// [`TrainError::Io`].
pub fn read(path: &Path) -> Result<Vec<Record>, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_drops_torn_lines_and_those_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics
                .write(&Record {
                    step,
                    loss: if step == 3 { f32::NAN } else { 0.1 },
                    val_loss: (step == 2).then_some(0.5),
                    ..Record::default()
                })
                .unwrap();
        }
        let torn = [&std::fs::read(&path).unwrap()[..], b"{\"step\": 6, \"lo\xff"].concat();
        std::fs::write(&path, torn).unwrap();
        let mut metrics = Metrics::open(&path, 3).unwrap();
        metrics.write(&Record { step: 4, ..Record::default() }).unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!((lines[1].val_loss, lines[0].val_loss), (Some(0.5), None));
        assert!(lines[2].loss.is_nan());
    }
}
