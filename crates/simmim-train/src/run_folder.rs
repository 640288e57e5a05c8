//! A run is a folder.

use crate::error::TrainError;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a run consists of.
const FOLDERS: [&str; 3] = ["checkpoints", "reconstructions", "tensorboard"];
const FILES: [&str; 7] = [
    "config.toml",
    "metrics.jsonl",
    "encoder.safetensors",
    "model.safetensors",
    "best.safetensors",
    "last.safetensors",
    "skipped.txt",
];
/// What comes in the course of a run, and what later commands add.
const ADDED_FOLDERS: [&str; 1] = ["features"];
const ADDED_FILES: [&str; 4] = ["probe.json", "probe.csv", "baselines.json", "curves.svg"];
/// Held by the process that works in a run; also tells the folder of a run from others that hold a `config.toml`.
const LOCK: &str = ".lock";

/// The folder of a run; README says what it holds. One process at a time writes to it.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// Held for as long as the run is open.
    _lock: File,
}

/// Writes a file aside, syncs and renames it: a reader sees the old or the new contents, never a part.
///
/// # Errors
/// [`TrainError::Io`].
pub(crate) fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    let mut file = File::create(&aside).map_err(TrainError::io(&aside))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(TrainError::io(&aside))?;
    std::fs::rename(&aside, path).map_err(TrainError::io(path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// `probe-N.json` and `probe-N.csv`: what probes of earlier weights or other images found.
fn is_earlier_probe(name: &str) -> bool {
    let number = name.strip_prefix("probe-").and_then(|n| n.strip_suffix(".json").or(n.strip_suffix(".csv")));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes a rename in a folder last through a power failure.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), TrainError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|f| f.sync_all()).map_err(TrainError::io(folder))
}

impl RunFolder {
    /// Creates a run and writes its resolved recipe, from which on the folder counts as a run. A folder that holds a run is only
    /// replaced with `overwrite`; one that holds something else never. What a start left that was interrupted before its recipe
    /// was written is no obstacle.
    ///
    /// # Errors
    /// [`TrainError::Run`] where the folder is taken.
    pub fn create(root: &Path, config: &str, overwrite: bool) -> Result<Self, TrainError> {
        let blocked = root.ancestors().find(|p| p.exists() && !p.is_dir() && !p.as_os_str().is_empty());
        if let Some(file) = blocked {
            return Err(TrainError::Run {
                path: root.to_owned(),
                what: format!("{} is a file", file.display()),
                help: "name a new folder by --out".into(),
            });
        }
        let marked = root.join(LOCK).is_file();
        if marked && Self::is_run(root) {
            if !overwrite {
                return Err(TrainError::Run {
                    path: root.to_owned(),
                    what: "there is a run in this folder".into(),
                    help: "go on with it by --resume, replace it by --overwrite, or name another folder by --out"
                        .into(),
                });
            }
        } else if root.exists() && !(marked && Self::only_leftovers(root)?) && !Self::is_empty(root)? {
            return Err(TrainError::Run {
                path: root.to_owned(),
                what: "the folder holds files that are not a run".into(),
                help: "name an empty or new folder by --out".into(),
            });
        }
        std::fs::create_dir_all(root).map_err(TrainError::io(root))?;
        let run = Self { root: root.to_owned(), _lock: Self::lock(root)? };
        Self::clear(root)?;
        atomic_write(&run.config(), config.as_bytes())?;
        Ok(run)
    }

    /// A folder of the run, made when something is about to be written into it.
    fn folder(&self, name: &str) -> Result<PathBuf, TrainError> {
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        Ok(folder)
    }

    fn is_empty(root: &Path) -> Result<bool, TrainError> {
        Ok(std::fs::read_dir(root).map_err(TrainError::io(root))?.next().is_none())
    }

    /// Whether a folder without recipe holds nothing but what [`RunFolder::create`] makes before it writes the recipe.
    fn only_leftovers(root: &Path) -> Result<bool, TrainError> {
        for entry in std::fs::read_dir(root).map_err(TrainError::io(root))?.flatten() {
            let name = entry.file_name();
            if name != LOCK && name != "config.toml.part" {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a run that exists.
    ///
    /// # Errors
    /// [`TrainError::Run`] where there is none, or another process has it open.
    pub fn open(root: &Path) -> Result<Self, TrainError> {
        if !Self::is_run(root) {
            return Err(TrainError::Run {
                path: root.to_owned(),
                what: "there is no run in this folder".into(),
                help: "a run folder holds a config.toml; start one without --resume".into(),
            });
        }
        Ok(Self { root: root.to_owned(), _lock: Self::lock(root)? })
    }

    /// Whether a folder holds a run.
    #[must_use]
    pub fn is_run(root: &Path) -> bool {
        root.join("config.toml").is_file()
    }

    /// Replaces the recipe of a run that goes on with other settings.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn rewrite_config(&self, config: &str) -> Result<(), TrainError> {
        atomic_write(&self.config(), config.as_bytes())
    }

    /// Whether a training has come to its end here.
    #[must_use]
    pub fn has_results(&self) -> bool {
        self.model().is_file()
    }

    fn lock(root: &Path) -> Result<File, TrainError> {
        let path = root.join(LOCK);
        let file = File::create(&path).map_err(TrainError::io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(TrainError::Run {
                path: root.to_owned(),
                what: "another process works in this run".into(),
                help: "wait for it or stop it".into(),
            }),
            Err(TryLockError::Error(e)) => Err(TrainError::io(&path)(e)),
        }
    }

    /// Removes what a run consists of, and nothing else.
    fn clear(root: &Path) -> Result<(), TrainError> {
        for name in FOLDERS.into_iter().chain(ADDED_FOLDERS) {
            let path = root.join(name);
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        for name in FILES.into_iter().chain(ADDED_FILES) {
            let path = root.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
            }
        }
        for entry in std::fs::read_dir(root).map_err(TrainError::io(root))?.flatten() {
            if is_earlier_probe(&entry.file_name().to_string_lossy()) {
                std::fs::remove_file(entry.path()).map_err(TrainError::io(&entry.path()))?;
            }
        }
        Ok(())
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved recipe.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// One line for each logged step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The folder for TensorBoard's event files, which is created where it is missing.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn tensorboard(&self) -> Result<PathBuf, TrainError> {
        self.folder("tensorboard")
    }

    /// The checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The picture of a step; its folder is created where it is missing.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn reconstruction(&self, step: u64) -> Result<PathBuf, TrainError> {
        Ok(self.folder("reconstructions")?.join(format!("step-{step:08}.png")))
    }

    /// The encoder in timm's names.
    #[must_use]
    pub fn encoder(&self) -> PathBuf {
        self.root.join("encoder.safetensors")
    }

    /// The full model in the official names.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.root.join("model.safetensors")
    }

    /// The classifier of the best measurement, in timm's names.
    #[must_use]
    pub fn best(&self) -> PathBuf {
        self.root.join("best.safetensors")
    }

    /// The classifier of the last step, in timm's names.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        self.root.join("last.safetensors")
    }

    /// Losses of the trivial predictors on the held-out images.
    #[must_use]
    pub fn baselines(&self) -> PathBuf {
        self.root.join("baselines.json")
    }

    /// The curves, as a picture.
    #[must_use]
    pub fn curves(&self) -> PathBuf {
        self.root.join("curves.svg")
    }

    /// Names of unreadable images.
    #[must_use]
    pub fn skipped(&self) -> PathBuf {
        self.root.join("skipped.txt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(root: &Path, overwrite: bool) -> Result<RunFolder, String> {
        RunFolder::create(root, "x = 1", overwrite).map_err(|e| e.to_string())
    }

    #[test]
    fn a_run_is_never_overwritten_unasked_and_nothing_else_ever() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let run = create(&root, false).unwrap();
        std::fs::write(run.metrics(), "old").unwrap();
        std::fs::write(root.join("mine.txt"), "keep").unwrap();
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("another process"));
        assert!(create(&root, true).unwrap_err().contains("another process"));
        drop(run);
        assert!(create(&root, false).unwrap_err().contains("there is a run"));
        let run = create(&root, true).unwrap();
        assert!(root.join("mine.txt").exists() && run.config().exists() && !run.metrics().exists());
        drop(run);
        std::fs::remove_file(root.join("config.toml")).unwrap();
        assert!(create(&root, true).unwrap_err().contains("not a run"));
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("no run"));
    }

    #[test]
    fn a_foreign_folder_with_a_config_is_no_run() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config.toml"), "mine").unwrap();
        assert!(create(place.path(), true).unwrap_err().contains("not a run"));
        assert_eq!(std::fs::read_to_string(place.path().join("config.toml")).unwrap(), "mine");
    }

    #[test]
    fn a_start_that_was_interrupted_can_be_repeated_but_checkpoints_are_never_lost() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        drop(create(&root, false).unwrap());
        std::fs::rename(root.join("config.toml"), root.join("config.toml.part")).unwrap();
        drop(create(&root, false).unwrap());
        std::fs::remove_file(root.join("config.toml")).unwrap();
        std::fs::create_dir_all(root.join("checkpoints/step-00000001")).unwrap();
        assert!(create(&root, false).unwrap_err().contains("not a run"));
    }

    #[test]
    fn a_folder_is_there_once_something_goes_into_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let run = create(&root, false).unwrap();
        assert!(!root.join("tensorboard").exists() && !root.join("reconstructions").exists());
        assert!(run.tensorboard().unwrap().is_dir());
        assert!(run.reconstruction(3).unwrap().parent().unwrap().is_dir());
    }
}
