//! Checkpoints: folders that appear whole or not at all, and are checked by BLAKE3 hashes when read.

mod format;

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use simmim_models::weights::{self, Weights};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const STATE: &str = "state.safetensors";
const META: &str = "meta.json";
/// Names the newest checkpoint, for scripts; [`CheckpointStore::load_latest`] trusts the folders themselves.
const LATEST: &str = "latest";
/// A checkpoint that is being written.
const ASIDE: &str = ".aside-";
/// A checkpoint whose successor of the same step is about to take its name.
const REPLACED: &str = ".replaced-";
/// A damaged checkpoint whose name was needed.
const DAMAGED: &str = "damaged-";
/// Damaged checkpoints that are kept; the oldest go.
const DAMAGED_KEPT: usize = 3;

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

impl Meta {
    /// Whether this is where `other` stands, on whichever machine.
    fn same_place(&self, other: &Self) -> bool {
        let here = Self { threads: other.threads, isa: other.isa.clone(), ..self.clone() };
        here == *other
    }
}

/// Whether a window holds no loss.
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

fn damaged(path: &Path, what: impl Into<String>) -> TrainError {
    TrainError::Checkpoint { path: path.to_owned(), what: what.into() }
}

/// A missing file is damage; one that cannot be read just now is not.
fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> TrainError + '_ {
    move |e| if e.kind() == ErrorKind::NotFound { damaged(path, "it is missing") } else { TrainError::io(path)(e) }
}

fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    std::fs::read(path).map_err(unreadable(path))
}

fn hash(path: &Path) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).map_err(unreadable(path))?;
    hasher.update_reader(file).map_err(TrainError::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    std::fs::rename(from, to).map_err(TrainError::io(from))
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    std::fs::remove_dir_all(folder).map_err(TrainError::io(folder))
}

impl CheckpointStore {
    /// The checkpoints in a folder, which is created where it is missing. What an interrupted write left behind is removed.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let store = Self::read_only(folder);
        for (name, path) in store.entries()? {
            if name.starts_with(ASIDE) {
                remove(&path)?;
            } else if let Some(name) = name.strip_prefix(REPLACED) {
                let successor = folder.join(name);
                if successor.exists() { remove(&path)? } else { rename(&path, &successor)? }
            }
        }
        simmim_files::remove_abandoned(folder);
        Ok(store)
    }

    /// The checkpoints in a folder that another process may be writing to: nothing is changed.
    #[must_use]
    pub fn read_only(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Names and paths in the folder; of a run that has saved nothing yet there are none.
    fn entries(&self) -> Result<Vec<(String, PathBuf)>, TrainError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::io(&self.folder))?,
        };
        let named = |e: std::fs::DirEntry| (e.file_name().to_string_lossy().into_owned(), e.path());
        entries.map(|e| e.map(named).map_err(TrainError::io(&self.folder))).collect()
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of all checkpoints, ascending.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let number = |(name, _): &(String, PathBuf)| name.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(number).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint of tensors with the given names and shapes, names it the latest, and removes all but the last `keep`.
    /// One that stands at the same place of the same run stays as it is. Tensors are fetched one by one. Returns where a damaged
    /// checkpoint of this step was moved to.
    ///
    /// # Errors
    /// [`TrainError::Io`], and what `fetch` fails with; the checkpoints before are untouched then.
    /// [`TrainError::NewerCheckpoint`] where one of this step is a later program's.
    pub fn save(
        &self,
        meta: &Meta,
        shapes: Vec<(String, Vec<usize>)>,
        fetch: impl FnMut(&str) -> Result<Vec<f32>, TrainError>,
        keep: usize,
    ) -> Result<Option<PathBuf>, TrainError> {
        let (step, path) = (meta.step, self.path(meta.step));
        let (mut replaced, mut moved) = (None, None);
        match load(&path) {
            Ok((found, _)) if found.same_place(meta) => return Ok(None),
            // After a rollback to this step the run goes on elsewhere in the data.
            Ok(_) => replaced = Some(self.folder.join(format!("{REPLACED}step-{step:08}"))),
            Err(TrainError::Checkpoint { .. }) if path.exists() => moved = Some(self.move_damaged(&path)?),
            Err(TrainError::Checkpoint { .. }) => {}
            Err(other) => return Err(other),
        }
        let aside = self.folder.join(format!("{ASIDE}step-{step:08}"));
        std::fs::create_dir_all(&aside).map_err(TrainError::io(&aside))?;
        weights::write_streamed(&aside.join(STATE), shapes, fetch)?;
        format::write(&aside, meta)?;
        if let Some(replaced) = &replaced {
            rename(&path, replaced)?;
        }
        rename(&aside, &path)?;
        simmim_files::sync_folder(&self.folder).map_err(TrainError::io(&self.folder))?;
        let latest = self.folder.join(LATEST);
        simmim_files::write(&latest, format!("step-{step:08}\n").as_bytes()).map_err(TrainError::io(&latest))?;
        replaced.map_or(Ok(()), |replaced| remove(&replaced))?;
        for old in self.steps()?.into_iter().filter(|&s| s < step).rev().skip(keep.max(1) - 1) {
            remove(&self.path(old))?;
        }
        Ok(moved)
    }

    /// Gives a damaged checkpoint another name; of those before it the last ones stay.
    fn move_damaged(&self, path: &Path) -> Result<PathBuf, TrainError> {
        let name = format!("{DAMAGED}{}", path.file_name().unwrap_or_default().to_string_lossy());
        let numbered = |n: usize| self.folder.join(if n == 1 { name.clone() } else { format!("{name}-{n}") });
        let free = (1..).map(numbered).find(|p| !p.exists()).unwrap_or_else(|| numbered(1));
        let age = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut before: Vec<_> =
            self.entries()?.into_iter().filter(|(n, _)| n.starts_with(DAMAGED)).map(|(n, p)| (age(&p), n, p)).collect();
        before.sort();
        let too_many = (before.len() + 1).saturating_sub(DAMAGED_KEPT);
        before.iter().take(too_many).try_for_each(|(_, _, path)| remove(path))?;
        rename(path, &free)?;
        Ok(free)
    }

    /// The newest whole checkpoint. None where there is none at all.
    ///
    /// # Errors
    /// [`TrainError::Run`] where all are damaged; [`TrainError::NewerCheckpoint`] and [`TrainError::Io`] for the first that is not
    /// damaged but cannot be read: an older one in its place would throw work away.
    pub fn load_latest(&self) -> Result<Option<Loaded>, TrainError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match load(&self.path(step)) {
                Ok((meta, tensors)) => return Ok(Some(Loaded { meta, tensors, damaged })),
                Err(e @ TrainError::Checkpoint { .. }) => damaged.push(e.to_string()),
                Err(other) => return Err(other),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        Err(TrainError::Run {
            path: self.folder.clone(),
            what: format!("every checkpoint is damaged: {}", damaged.join("; ")),
            help: "restore one from a backup, or start over with --overwrite".into(),
        })
    }
}

/// Reads one checkpoint folder.
///
/// # Errors
/// [`TrainError::Checkpoint`] where a file is missing or not what was written, [`TrainError::NewerCheckpoint`] for one that only a
/// later program reads, [`TrainError::Io`] where the disk fails.
pub fn load(folder: &Path) -> Result<(Meta, Weights), TrainError> {
    let meta = format::read_checked(folder)?;
    Ok((meta, weights::read(&folder.join(STATE))?))
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
        store.save(&meta, vec![("a".into(), vec![2])], |_| Ok(vec![step as f32, 1.0]), keep).unwrap();
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

    /// Makes a checkpoint's `meta.json` say something else, with a checksum that fits.
    fn rewrite(checkpoint: &Path, change: impl Fn(&str) -> String) {
        let (meta, sums) = (checkpoint.join(META), checkpoint.join("checksums.b3"));
        let before = std::fs::read_to_string(&meta).unwrap();
        let after = change(&before);
        std::fs::write(&meta, &after).unwrap();
        let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        let text = std::fs::read_to_string(&sums).unwrap();
        std::fs::write(&sums, text.replace(&hash(&before), &hash(&after))).unwrap();
    }

    #[test]
    fn checkpoints_of_every_format_are_read() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints"));
        let base = Meta { step: 7, epoch: 1, batch: 2, threads: 3, ..Meta::default() };
        let one = Meta { recent_losses: vec![0.1, 0.7, 1e-7], rollbacks: 1, ..base.clone() };
        let classes = vec!["a \"b\" \\".to_owned(), "\u{e9} c".to_owned()];
        let tuned = Meta { best: Some(Best { step: 5, top1: 0.3 }), classes: classes.clone(), ..one.clone() };
        let window = Meta { loss_window: (0.1 + 0.2, 3), ..tuned.clone() };
        let isa = Meta { isa: "avx2".into(), ..window.clone() };
        let expected = [
            ("format-0", base),
            ("format-1", one.clone()),
            ("format-1-classes", tuned),
            ("format-2", window.clone()),
            ("format-2-empty-window", one),
            ("format-2-isa", isa.clone()),
            ("format-3", isa),
        ];
        for (name, meta) in &expected {
            let (found, tensors) = load(&folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(found, *meta, "{name}");
            assert_eq!(tensors["a"].data, [7.0, 1.0], "{name}");
        }
        let committed = std::fs::read_dir(folder).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
        assert_eq!(committed, expected.len(), "a committed checkpoint is not read");
        assert!(expected.iter().any(|(name, _)| *name == format!("format-{}", format::FORMAT)));
    }

    #[test]
    fn a_checkpoint_of_this_program_is_the_committed_one() {
        let committed = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints/format-3"));
        let (meta, _) = load(committed).unwrap();
        let place = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(place.path()).unwrap();
        store.save(&meta, vec![("a".into(), vec![2])], |_| Ok(vec![7.0, 1.0]), 1).unwrap();
        for name in [META, STATE, "checksums.b3"] {
            let written = std::fs::read(place.path().join("step-00000007").join(name)).unwrap();
            let expected = std::fs::read(committed.join(name)).unwrap();
            assert!(written == expected, "{name} differs: a change of the format needs a number and a new folder here");
        }
    }

    #[test]
    fn every_changed_byte_of_an_old_checkpoint_is_noticed() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints"));
        for name in ["format-1-classes", "format-2-isa", "format-3"] {
            let place = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(folder.join(name)).unwrap().flatten() {
                std::fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
            }
            let path = place.path().join(META);
            let whole = std::fs::read(&path).unwrap();
            for at in (0..whole.len()).filter(|&at| !whole[at].is_ascii_whitespace()) {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                std::fs::write(&path, changed).unwrap();
                assert!(load(place.path()).is_err(), "{name}, byte {at}");
            }
        }
    }

    #[test]
    fn a_newer_checkpoint_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1, 3);
        save(&store, 2, 3);
        let path = folder.path().join("step-00000002");
        rewrite(&path, |text| {
            let text = text.replace("\"format\": 3", "\"format\": 4").replace("0.1.0", "7.8.9");
            text.replace("\"meta\"", "\"unheard_of\": [1], \"meta\"")
        });
        let before = std::fs::read(path.join(META)).unwrap();
        let error = store.load_latest().unwrap_err();
        assert!(matches!(&error, TrainError::NewerCheckpoint { needs, .. } if needs == "7.8.9"), "{error}");
        assert!(error.to_string().contains("step-00000002"), "{error}");
        assert!(error.help().unwrap().contains("simmim 7.8.9"), "{:?}", error.help());
        let shapes = vec![("a".to_owned(), vec![2])];
        let saved = store.save(&Meta { step: 2, ..Meta::default() }, shapes, |_| Ok(vec![0.0; 2]), 1);
        assert!(matches!(saved, Err(TrainError::NewerCheckpoint { .. })), "{saved:?}");
        assert_eq!((std::fs::read(path.join(META)).unwrap(), store.steps().unwrap()), (before, vec![1, 2]));
        // Without its checksums it may as well be newer; with others it is damaged.
        std::fs::remove_file(path.join("checksums.b3")).unwrap();
        assert!(matches!(load(&path), Err(TrainError::NewerCheckpoint { .. })));
        std::fs::write(path.join("checksums.b3"), "00  meta.json\n").unwrap();
        assert!(matches!(load(&path), Err(TrainError::Checkpoint { .. })));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1, 3);
        for name in [META, STATE, "checksums.b3"] {
            save(&store, 2, 3);
            let path = folder.path().join("step-00000002");
            // A folder in the place of a file opens and cannot be read.
            std::fs::remove_file(path.join(name)).unwrap();
            std::fs::create_dir(path.join(name)).unwrap();
            assert!(matches!(store.load_latest(), Err(TrainError::Io { .. })), "{name}");
            let shapes = vec![("a".to_owned(), vec![2])];
            let meta = Meta { step: 2, ..Meta::default() };
            assert!(matches!(store.save(&meta, shapes, |_| Ok(vec![0.0; 2]), 1), Err(TrainError::Io { .. })), "{name}");
            std::fs::remove_dir_all(path).unwrap();
        }
    }

    #[test]
    fn a_damaged_checkpoint_makes_room_under_another_name_and_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        let names = || {
            let mut names: Vec<String> = store.entries().unwrap().into_iter().map(|(name, _)| name).collect();
            names.retain(|name| name.starts_with(DAMAGED));
            names.sort();
            names
        };
        for round in 1..6 {
            save(&store, 2, 3);
            let state = folder.path().join("step-00000002").join(STATE);
            std::fs::write(&state, format!("damage {round}")).unwrap();
            let meta = Meta { step: 2, ..Meta::default() };
            let moved = store.save(&meta, vec![("a".into(), vec![2])], |_| Ok(vec![0.0; 2]), 1).unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(moved.join(STATE)).unwrap(), format!("damage {round}"));
            assert_eq!(load(&folder.path().join("step-00000002")).unwrap().0, meta);
            assert_eq!(names().len(), round.min(DAMAGED_KEPT));
            std::fs::remove_dir_all(folder.path().join("step-00000002")).unwrap();
        }
    }

    #[test]
    fn a_run_that_stands_elsewhere_at_the_same_step_is_saved_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        let at = |batch: u64, isa: &str, value: f32| {
            let meta = Meta { step: 2, batch, isa: isa.into(), ..Meta::default() };
            store.save(&meta, vec![("a".into(), vec![1])], |_| Ok(vec![value]), 3).unwrap();
            let found = store.load_latest().unwrap().unwrap();
            (found.meta.batch, found.meta.isa, found.tensors["a"].data[0])
        };
        assert_eq!(at(5, "avx2", 1.0), (5, "avx2".into(), 1.0));
        assert_eq!(at(5, "amx", 2.0), (5, "avx2".into(), 1.0));
        assert_eq!(at(9, "amx", 3.0), (9, "amx".into(), 3.0));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "the checkpoint and its name");
        // Interrupted between two renames: the old one comes back.
        let path = folder.path().join("step-00000002");
        std::fs::rename(&path, folder.path().join(".replaced-step-00000002")).unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        assert_eq!(store.load_latest().unwrap().unwrap().meta.batch, 9);
        std::fs::create_dir(folder.path().join(".replaced-step-00000002")).unwrap();
        CheckpointStore::open(folder.path()).unwrap();
        assert!(!folder.path().join(".replaced-step-00000002").exists());
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
