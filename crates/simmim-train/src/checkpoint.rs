//! Checkpoints: written aside, synced, renamed; every file checked by its BLAKE3 hash when read.

use crate::error::TrainError;
use crate::run_folder::{atomic_write, sync_folder};
use serde::{Deserialize, Serialize};
use simmim_models::weights::{self, Weights};
use std::path::{Path, PathBuf};

const STATE: &str = "state.safetensors";
const META: &str = "meta.json";
const LATEST: &str = "latest";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Optimiser steps done.
    pub step: u64,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Number of the next batch within the epoch.
    pub batch: u64,
    /// Threads that the run was started with.
    pub threads: usize,
    /// BLAKE3 of the tensors' file.
    pub state_hash: String,
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
}

fn broken(path: &Path, what: impl Into<String>) -> TrainError {
    TrainError::Checkpoint { path: path.to_owned(), what: what.into() }
}

impl CheckpointStore {
    /// The checkpoints in a folder. What an interrupted write left behind is removed.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let store = Self { folder: folder.to_owned() };
        for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".aside-") {
                std::fs::remove_dir_all(entry.path()).map_err(TrainError::io(&entry.path()))?;
            }
        }
        Ok(store)
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of all checkpoints, ascending.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = std::fs::read_dir(&self.folder).map_err(TrainError::io(&self.folder))?;
        let number = |e: std::fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries.flatten().filter_map(number).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint, names it the latest, and removes all but the last `keep`.
    ///
    /// # Errors
    /// [`TrainError::Io`]; the checkpoints before are untouched then.
    pub fn save(&self, mut meta: Meta, tensors: &Weights, keep: usize) -> Result<(), TrainError> {
        let aside = self.folder.join(format!(".aside-{:08}", meta.step));
        std::fs::create_dir_all(&aside).map_err(TrainError::io(&aside))?;
        let state = aside.join(STATE);
        weights::write(&state, tensors)?;
        meta.state_hash = hash(&state)?;
        let text = serde_json::to_vec_pretty(&meta).map_err(|e| broken(&aside, e.to_string()))?;
        atomic_write(&aside.join(META), &text)?;
        let path = self.path(meta.step);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
        }
        std::fs::rename(&aside, &path).map_err(TrainError::io(&path))?;
        sync_folder(&self.folder)?;
        atomic_write(&self.folder.join(LATEST), format!("step-{:08}\n", meta.step).as_bytes())?;
        let steps = self.steps()?;
        for &old in steps.iter().filter(|&&s| s < meta.step).rev().skip(keep.max(1) - 1) {
            let path = self.path(old);
            std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
        }
        Ok(())
    }

    /// The newest whole checkpoint, with a message for each newer one that is damaged. None where there is none at all.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] where all are damaged.
    pub fn load_latest(&self) -> Result<Option<(Meta, Weights, Vec<String>)>, TrainError> {
        let mut warnings = Vec::new();
        let mut failure = None;
        for step in self.steps()?.into_iter().rev() {
            match load(&self.path(step)) {
                Ok((meta, tensors)) => return Ok(Some((meta, tensors, warnings))),
                Err(e) => {
                    warnings.push(e.to_string());
                    failure = Some(e);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

/// Reads one checkpoint folder.
///
/// # Errors
/// [`TrainError::Checkpoint`] where a file is missing or not what was written.
pub fn load(folder: &Path) -> Result<(Meta, Weights), TrainError> {
    let path = folder.join(META);
    let text = std::fs::read(&path).map_err(|e| broken(&path, e.to_string()))?;
    let meta: Meta = serde_json::from_slice(&text).map_err(|e| broken(&path, format!("damaged: {e}")))?;
    let state = folder.join(STATE);
    if hash(&state).map_err(|e| broken(&state, e.to_string()))? != meta.state_hash {
        return Err(broken(&state, "damaged: its hash is not the one that was written"));
    }
    Ok((meta, weights::read(&state)?))
}

fn hash(path: &Path) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).map_err(TrainError::io(path))?;
    hasher.update_reader(file).map_err(TrainError::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_models::weights::Tensor;

    fn meta(step: u64) -> Meta {
        Meta { step, epoch: 1, batch: 2, threads: 2, state_hash: String::new() }
    }

    fn tensors(step: u64) -> Weights {
        [("a".to_owned(), Tensor { shape: vec![2], data: vec![step as f32, 1.0] })].into()
    }

    #[test]
    fn the_last_ones_are_kept_and_the_newest_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        assert!(store.load_latest().unwrap().is_none());
        for step in 1..=5 {
            store.save(meta(step), &tensors(step), 2).unwrap();
        }
        assert_eq!(store.steps().unwrap(), [4, 5]);
        let (found, state, warnings) = store.load_latest().unwrap().unwrap();
        assert_eq!((found.step, found.batch, state, warnings.len()), (5, 2, tensors(5), 0));
        assert_eq!(std::fs::read_to_string(folder.path().join("latest")).unwrap().trim(), "step-00000005");
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_the_one_before_it_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        store.save(meta(1), &tensors(1), 3).unwrap();
        for damage in 0..4 {
            store.save(meta(2), &tensors(2), 3).unwrap();
            let state = folder.path().join("step-00000002").join(STATE);
            let mut bytes = std::fs::read(&state).unwrap();
            match damage {
                0 => *bytes.last_mut().unwrap() ^= 1,
                1 => bytes.truncate(bytes.len() / 2),
                2 => std::fs::remove_file(state.with_file_name(META)).unwrap(),
                _ => std::fs::write(state.with_file_name(META), b"{").unwrap(),
            }
            std::fs::write(&state, bytes).unwrap();
            let (found, _, warnings) = store.load_latest().unwrap().unwrap();
            assert_eq!((found.step, warnings.len()), (1, 1));
            assert!(warnings[0].contains("step-00000002"), "{warnings:?}");
        }
    }

    #[test]
    fn an_interrupted_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aside-00000007")).unwrap();
        std::fs::write(folder.path().join(".aside-00000007/state.safetensors.part"), b"half").unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        assert!(store.load_latest().unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
