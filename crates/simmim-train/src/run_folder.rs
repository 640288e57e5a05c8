//! A run is a folder.

use crate::error::TrainError;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder of a run; see ARCHITECTURE.md for what it holds. One process at a time writes to it.
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

/// Makes a rename in a folder last through a power failure.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), TrainError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|f| f.sync_all()).map_err(TrainError::io(folder))
}

impl RunFolder {
    /// Creates a run. A folder that holds a run is only replaced with `overwrite`; one that holds something else never.
    ///
    /// # Errors
    /// [`TrainError::Run`] where the folder is taken.
    pub fn create(root: &Path, overwrite: bool) -> Result<Self, TrainError> {
        if Self::is_run(root) {
            if !overwrite {
                return Err(TrainError::Run {
                    path: root.to_owned(),
                    what: "there is a run in this folder".into(),
                    help: "go on with it by --resume, replace it by --overwrite, or name another folder by --out"
                        .into(),
                });
            }
            let lock = Self::lock(root)?;
            Self::clear(root)?;
            drop(lock);
        } else if root.exists() && std::fs::read_dir(root).map_err(TrainError::io(root))?.next().is_some() {
            return Err(TrainError::Run {
                path: root.to_owned(),
                what: "the folder holds files that are not a run".into(),
                help: "name an empty or new folder by --out".into(),
            });
        }
        for folder in [root.to_owned(), root.join("checkpoints"), root.join("reconstructions")] {
            std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        }
        Ok(Self { root: root.to_owned(), _lock: Self::lock(root)? })
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

    fn lock(root: &Path) -> Result<File, TrainError> {
        let path = root.join(".lock");
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
        for name in ["checkpoints", "reconstructions"] {
            let path = root.join(name);
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        for name in ["config.toml", "metrics.jsonl", "encoder.safetensors", "model.safetensors", "skipped.txt"] {
            let path = root.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
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

    /// The checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The picture of a step.
    #[must_use]
    pub fn reconstruction(&self, step: u64) -> PathBuf {
        self.root.join(format!("reconstructions/step-{step:08}.png"))
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

    /// Names of unreadable images.
    #[must_use]
    pub fn skipped(&self) -> PathBuf {
        self.root.join("skipped.txt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_never_overwritten_unasked_and_nothing_else_ever() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let run = RunFolder::create(&root, false).unwrap();
        std::fs::write(run.config(), "x = 1").unwrap();
        std::fs::write(root.join("mine.txt"), "keep").unwrap();
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("another process"));
        drop(run);
        assert!(RunFolder::create(&root, false).unwrap_err().to_string().contains("there is a run"));
        RunFolder::create(&root, true).unwrap();
        assert!(root.join("mine.txt").exists() && !root.join("config.toml").exists());
        assert!(RunFolder::create(&root, true).unwrap_err().to_string().contains("not a run"));
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("no run"));
    }
}
