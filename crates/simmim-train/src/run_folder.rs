//! A run is a folder.

use crate::error::TrainError;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// What a run consists of, with what later commands add.
const FOLDERS: [&str; 4] = ["checkpoints", "reconstructions", "tensorboard", "features"];
const FILES: [&str; 11] = [
    "config.toml",
    "metrics.jsonl",
    "encoder.safetensors",
    "model.safetensors",
    "best.safetensors",
    "last.safetensors",
    "skipped.txt",
    "baselines.json",
    "curves.svg",
    "probe.json",
    "probe.csv",
];
/// Held by the process that works in a run; also tells the folder of a run from others that hold a `config.toml`.
const LOCK: &str = ".lock";
/// Held while a probe adds its results to those of others.
const PROBE_LOCK: &str = ".probe.lock";
/// The recipe of a run that is being replaced.
const REPLACED: &str = "config.toml.replaced";

/// The folder of a run; README says what it holds. One process at a time writes to it.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// Held for as long as the run is open.
    _lock: File,
}

/// `probe-N.json` and `probe-N.csv`: what probes of earlier weights or other images found.
fn is_earlier_probe(name: &str) -> bool {
    let number = name.strip_prefix("probe-").and_then(|n| n.strip_suffix(".json").or(n.strip_suffix(".csv")));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Waits until no other process adds results of a probe to a run; none does while the file is held.
pub(crate) fn lock_probe(root: &Path) -> Result<File, TrainError> {
    let path = root.join(PROBE_LOCK);
    let file = File::create(&path).map_err(TrainError::io(&path))?;
    file.lock().map_err(TrainError::io(&path))?;
    Ok(file)
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
                help: "choose a new folder with --out".into(),
            });
        }
        // Before the lock, because not even a lock belongs into a folder of something else.
        if root.exists() && !root.join(LOCK).is_file() && !Self::only_leftovers(root)? {
            return Err(Self::foreign(root));
        }
        std::fs::create_dir_all(root).map_err(TrainError::io(root))?;
        let run = Self { root: root.to_owned(), _lock: Self::lock(root)? };
        // Under the lock: another process may have made a run here just now.
        if Self::is_run(root) {
            if !overwrite {
                return Err(TrainError::Run {
                    path: root.to_owned(),
                    what: "this folder holds a run".into(),
                    help: "continue it with --resume, replace it with --overwrite, or choose another folder with --out"
                        .into(),
                });
            }
        } else if !root.join(REPLACED).exists() && !Self::only_leftovers(root)? {
            return Err(Self::foreign(root));
        }
        run.clear()?;
        run.rewrite_config(config)?;
        Ok(run)
    }

    fn foreign(root: &Path) -> TrainError {
        TrainError::Run {
            path: root.to_owned(),
            what: "this folder holds files but no run".into(),
            help: "choose an empty or new folder with --out".into(),
        }
    }

    /// A folder of the run, made when something is about to be written into it.
    fn folder(&self, name: &str) -> Result<PathBuf, TrainError> {
        let folder = self.root.join(name);
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        Ok(folder)
    }

    /// Whether a folder holds nothing but what [`RunFolder::create`] makes before it writes the recipe.
    fn only_leftovers(root: &Path) -> Result<bool, TrainError> {
        for entry in std::fs::read_dir(root).map_err(TrainError::io(root))? {
            let name = entry.map_err(TrainError::io(root))?.file_name();
            // `config.toml.part` is the temporary file of older versions.
            let unfinished = name == "config.toml.part" || simmim_files::is_unfinished(Path::new(&name));
            if name != LOCK && name != PROBE_LOCK && !unfinished {
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
                what: "this folder holds no run".into(),
                help: "a run folder has a config.toml; to start a new run, leave out --resume".into(),
            });
        }
        Ok(Self { root: root.to_owned(), _lock: Self::lock(root)? })
    }

    /// Whether a folder holds a run.
    #[must_use]
    pub fn is_run(root: &Path) -> bool {
        root.join("config.toml").is_file()
    }

    /// Replaces the recipe of a run that continues with other settings.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn rewrite_config(&self, config: &str) -> Result<(), TrainError> {
        let path = self.config();
        simmim_files::write(&path, config.as_bytes()).map_err(TrainError::io(&path))
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
            Ok(()) => {
                simmim_files::remove_abandoned(root);
                Ok(file)
            }
            Err(TryLockError::WouldBlock) => Err(TrainError::Run {
                path: root.to_owned(),
                what: "another process is using this run".into(),
                help: "wait for it to finish, or stop it".into(),
            }),
            Err(TryLockError::Error(e)) => Err(TrainError::io(&path)(e)),
        }
    }

    /// Removes what a run consists of, and nothing else. The recipe is renamed first and goes last: what an interruption leaves is
    /// no run any more, and is known for one that was to be replaced.
    fn clear(&self) -> Result<(), TrainError> {
        let (config, replaced) = (self.config(), self.root.join(REPLACED));
        if config.exists() {
            std::fs::rename(&config, &replaced).map_err(TrainError::io(&config))?;
        }
        for name in FOLDERS {
            let path = self.root.join(name);
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        for entry in std::fs::read_dir(&self.root).map_err(TrainError::io(&self.root))? {
            let path = entry.map_err(TrainError::io(&self.root))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if FILES.contains(&&*name) || is_earlier_probe(&name) {
                std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
            }
        }
        if replaced.exists() {
            std::fs::remove_file(&replaced).map_err(TrainError::io(&replaced))?;
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
        for overwrite in [true, false] {
            assert!(create(&root, overwrite).unwrap_err().contains("another process"));
        }
        drop(run);
        assert!(create(&root, false).unwrap_err().contains("this folder holds a run"));
        let run = create(&root, true).unwrap();
        assert!(root.join("mine.txt").exists() && run.config().exists() && !run.metrics().exists());
        drop(run);
        std::fs::remove_file(root.join("config.toml")).unwrap();
        assert!(create(&root, true).unwrap_err().contains("holds files but no run"));
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("no run"));
    }

    #[test]
    fn a_foreign_folder_with_a_config_is_no_run() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config.toml"), "mine").unwrap();
        assert!(create(place.path(), true).unwrap_err().contains("holds files but no run"));
        assert_eq!(std::fs::read_to_string(place.path().join("config.toml")).unwrap(), "mine");
    }

    #[test]
    fn a_start_that_was_interrupted_can_be_repeated_but_checkpoints_are_never_lost() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        drop(create(&root, false).unwrap());
        for unfinished in ["config.toml.part", "config.toml.x7.unfinished"] {
            std::fs::rename(root.join("config.toml"), root.join(unfinished)).unwrap();
            drop(create(&root, false).unwrap());
        }
        std::fs::remove_file(root.join("config.toml")).unwrap();
        std::fs::create_dir_all(root.join("checkpoints/step-00000001")).unwrap();
        assert!(create(&root, false).unwrap_err().contains("holds files but no run"));
    }

    #[test]
    fn of_many_starts_at_once_one_gets_the_folder() {
        let place = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let root = place.path().join(round.to_string());
            let start = || create(&root, false).map(|run| std::fs::write(run.metrics(), "").unwrap()).is_ok();
            let won: usize = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                starts.into_iter().map(|s| usize::from(s.join().unwrap())).sum()
            });
            assert_eq!(won, 1, "round {round}");
            assert!(root.join("metrics.jsonl").exists(), "round {round}: a run was cleared");
        }
    }

    #[test]
    fn a_replacement_that_was_interrupted_leaves_no_run_and_can_be_repeated() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let run = create(&root, false).unwrap();
        std::fs::create_dir_all(run.checkpoints()).unwrap();
        // A folder in the place of a file: the removal fails half way.
        std::fs::create_dir(run.metrics()).unwrap();
        drop(run);
        create(&root, true).unwrap_err();
        assert!(!RunFolder::is_run(&root) && RunFolder::open(&root).is_err());
        std::fs::remove_dir(root.join("metrics.jsonl")).unwrap();
        drop(create(&root, false).unwrap());
        assert!(RunFolder::is_run(&root) && !root.join(REPLACED).exists());
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
