//! Checkpoints: written aside, synced, renamed; tensors and metadata are checked by BLAKE3 hashes when read.

use crate::error::TrainError;
use crate::run_folder::{atomic_write, sync_folder};
use serde::{Deserialize, Serialize};
use simmim_models::weights::{self, Weights};
use std::path::{Path, PathBuf};

const STATE: &str = "state.safetensors";
const META: &str = "meta.json";
/// Names the newest checkpoint, for scripts; [`CheckpointStore::load_latest`] trusts the folders themselves.
const LATEST: &str = "latest";
/// Changes when older programs can no longer read a checkpoint.
const FORMAT: u32 = 2;

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Optimiser steps done.
    pub step: u64,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Number of the next batch within the epoch.
    pub batch: u64,
    /// Threads that the run was started with.
    pub threads: usize,
    /// Instruction set that it ran on; not known of older ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub isa: String,
    /// Losses that the guard compares the next one with, oldest first.
    pub recent_losses: Vec<f32>,
    /// Sum and number of the losses since the last line of the metrics.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub loss_window: (f64, u64),
    /// Rollbacks so far.
    pub rollbacks: usize,
    /// The best measurement so far, where there are classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Names of the classes; empty where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

/// Whether a window holds no loss; it is left out then, as in format 1, whose seals know of none.
fn is_empty(window: &(f64, u64)) -> bool {
    *window == (0.0, 0)
}

/// The best measurement of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimiser steps done when it was taken.
    pub step: u64,
    /// Share of the held-out images whose class was found.
    pub top1: f32,
}

/// What `meta.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    format: u32,
    meta: Meta,
    /// BLAKE3 of the tensors' file.
    state_hash: String,
    /// BLAKE3 of the fields above.
    seal: String,
}

impl Sealed {
    fn new(meta: Meta, state_hash: String) -> Self {
        let mut sealed = Self { format: FORMAT, meta, state_hash, seal: String::new() };
        sealed.seal = sealed.sealed_with();
        sealed
    }

    fn sealed_with(&self) -> String {
        let text = serde_json::to_string(&(self.format, &self.meta, &self.state_hash)).unwrap_or_default();
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    folder: PathBuf,
}

/// A checkpoint as read.
#[derive(Debug)]
pub struct Loaded {
    /// Where the run stood.
    pub meta: Meta,
    /// Parameters and moments.
    pub tensors: Weights,
    /// A message for each newer checkpoint that is damaged.
    pub damaged: Vec<String>,
}

fn broken(path: &Path, what: impl Into<String>) -> TrainError {
    TrainError::Checkpoint { path: path.to_owned(), what: what.into() }
}

impl CheckpointStore {
    /// The checkpoints in a folder, which is created where it is missing. What an interrupted write left behind is removed.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".aside-") {
                std::fs::remove_dir_all(entry.path()).map_err(TrainError::io(&entry.path()))?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The checkpoints in a folder that another process may be writing to: nothing is changed.
    #[must_use]
    pub fn read_only(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of all checkpoints, ascending.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = match std::fs::read_dir(&self.folder) {
            // A run that has saved nothing yet.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::io(&self.folder))?,
        };
        let number = |e: std::fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = entries.flatten().filter_map(number).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint of tensors with the given names and shapes, names it the latest, and removes all but the last `keep`.
    /// A whole checkpoint of the same step stays as it is: the same run has written it. Tensors are fetched one by one.
    ///
    /// # Errors
    /// [`TrainError::Io`], and what `fetch` fails with; the checkpoints before are untouched then.
    pub fn save(
        &self,
        meta: Meta,
        shapes: Vec<(String, Vec<usize>)>,
        fetch: impl FnMut(&str) -> Result<Vec<f32>, TrainError>,
        keep: usize,
    ) -> Result<(), TrainError> {
        let (step, path) = (meta.step, self.path(meta.step));
        if path.exists() {
            if load(&path).is_ok() {
                return Ok(());
            }
            std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
        }
        let aside = self.folder.join(format!(".aside-{step:08}"));
        std::fs::create_dir_all(&aside).map_err(TrainError::io(&aside))?;
        let state = aside.join(STATE);
        weights::write_streamed(&state, shapes, fetch)?;
        let sealed = Sealed::new(meta, hash(&state)?);
        let text = serde_json::to_vec_pretty(&sealed).map_err(|e| broken(&aside, e.to_string()))?;
        atomic_write(&aside.join(META), &text)?;
        std::fs::rename(&aside, &path).map_err(TrainError::io(&path))?;
        sync_folder(&self.folder)?;
        atomic_write(&self.folder.join(LATEST), format!("step-{step:08}\n").as_bytes())?;
        for old in self.steps()?.into_iter().filter(|&s| s < step).rev().skip(keep.max(1) - 1) {
            let path = self.path(old);
            std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
        }
        Ok(())
    }

    /// The newest whole checkpoint. None where there is none at all.
    ///
    /// # Errors
    /// [`TrainError::Run`] where all are damaged.
    pub fn load_latest(&self) -> Result<Option<Loaded>, TrainError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match load(&self.path(step)) {
                Ok((meta, tensors)) => return Ok(Some(Loaded { meta, tensors, damaged })),
                Err(e) => damaged.push(e.to_string()),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        Err(TrainError::Run {
            path: self.folder.clone(),
            what: format!("every checkpoint is damaged: {}", damaged.join("; ")),
            help: "bring one back from a copy, or start anew with --overwrite".into(),
        })
    }
}

/// Reads one checkpoint folder.
///
/// # Errors
/// [`TrainError::Checkpoint`] where a file is missing or not what was written.
pub fn load(folder: &Path) -> Result<(Meta, Weights), TrainError> {
    let path = folder.join(META);
    let text = std::fs::read(&path).map_err(|e| broken(&path, e.to_string()))?;
    let sealed: Sealed = serde_json::from_slice(&text).map_err(|e| broken(&path, format!("damaged: {e}")))?;
    if sealed.seal != sealed.sealed_with() {
        return Err(broken(&path, "damaged: its hash is not the one that was written"));
    }
    if sealed.format > FORMAT {
        return Err(broken(&path, format!("format {}, this program reads up to {FORMAT}", sealed.format)));
    }
    let state = folder.join(STATE);
    if hash(&state).map_err(|e| broken(&state, e.to_string()))? != sealed.state_hash {
        return Err(broken(&state, "damaged: its hash is not the one that was written"));
    }
    Ok((sealed.meta, weights::read(&state)?))
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

    fn save(store: &CheckpointStore, step: u64, keep: usize) {
        let meta = Meta {
            step,
            epoch: 1,
            batch: 2,
            threads: 2,
            recent_losses: vec![0.1, 0.7],
            rollbacks: 1,
            ..Meta::default()
        };
        store.save(meta, vec![("a".into(), vec![2])], |_| Ok(vec![step as f32, 1.0]), keep).unwrap();
    }

    #[test]
    fn the_last_ones_are_kept_and_the_newest_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        assert!(store.load_latest().unwrap().is_none());
        for step in 1..=5 {
            save(&store, step, 2);
        }
        assert_eq!(store.steps().unwrap(), [4, 5]);
        let found = store.load_latest().unwrap().unwrap();
        assert_eq!((found.meta.step, found.meta.batch, found.damaged.len()), (5, 2, 0));
        assert_eq!((found.meta.recent_losses, found.meta.rollbacks), (vec![0.1, 0.7], 1));
        assert_eq!(found.tensors["a"].data, [5.0, 1.0]);
        assert_eq!(std::fs::read_to_string(folder.path().join("latest")).unwrap().trim(), "step-00000005");
    }

    #[test]
    fn a_checkpoint_of_the_first_format_is_read_and_one_of_a_later_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1, 3);
        let path = folder.path().join("step-00000001");
        let text = std::fs::read_to_string(path.join(META)).unwrap();
        assert!(!text.contains("loss_window"), "{text}");
        let mut sealed: Sealed = serde_json::from_str(&text).unwrap();
        for (format, readable) in [(1, true), (FORMAT + 1, false)] {
            sealed.format = format;
            sealed.seal = sealed.sealed_with();
            std::fs::write(path.join(META), serde_json::to_string(&sealed).unwrap()).unwrap();
            assert_eq!(load(&path).is_ok(), readable, "format {format}");
        }
        assert!(CheckpointStore::read_only(&folder.path().join("none")).load_latest().unwrap().is_none());
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_the_one_before_it_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1, 3);
        for damage in 0..5 {
            save(&store, 2, 3);
            let state = folder.path().join("step-00000002").join(STATE);
            let meta = state.with_file_name(META);
            let mut bytes = std::fs::read(&state).unwrap();
            match damage {
                0 => *bytes.last_mut().unwrap() ^= 1,
                1 => bytes.truncate(bytes.len() / 2),
                2 => std::fs::remove_file(&meta).unwrap(),
                3 => std::fs::write(&meta, b"{").unwrap(),
                _ => {
                    let text = std::fs::read_to_string(&meta).unwrap();
                    std::fs::write(&meta, text.replace("\"batch\": 2", "\"batch\": 3")).unwrap();
                }
            }
            std::fs::write(&state, bytes).unwrap();
            let found = store.load_latest().unwrap().unwrap();
            assert_eq!((found.meta.step, found.damaged.len()), (1, 1), "damage {damage}");
            assert!(found.damaged[0].contains("step-00000002"), "{:?}", found.damaged);
        }
        std::fs::remove_file(folder.path().join("step-00000001").join(META)).unwrap();
        let error = store.load_latest().unwrap_err();
        assert!(error.to_string().contains("every checkpoint is damaged"), "{error}");
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
