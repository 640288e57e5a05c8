//! A classifier in a file: weights in timm's names, class names and recipe in its metadata.

use crate::checkpoint::{self, CheckpointStore};
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;
use serde::{Deserialize, Serialize};
use simmim_models::names::AVERAGE_PREFIX;
use simmim_models::weights::{self, Weights, classifier_to_timm, match_classifier};
use std::path::{Path, PathBuf};

/// A trained classifier with all that is needed to use it.
#[derive(Debug, Clone)]
pub struct ClassifierFile {
    /// How it was made; also its architecture, and mean and deviation of the images.
    pub recipe: Recipe,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
    /// The parameters.
    pub weights: Weights,
}

/// What the metadata of a file says.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    classes: Vec<String>,
    recipe: Recipe,
}

fn no_classifier(path: &Path, what: &str) -> TrainError {
    TrainError::Run {
        path: path.to_owned(),
        what: what.to_owned(),
        help: "use a fine-tuning run, one of its checkpoints, or its best.safetensors or last.safetensors".into(),
    }
}

impl ClassifierFile {
    /// Writes a file that timm reads, and that says what it is.
    ///
    /// # Errors
    /// [`TrainError::Model`].
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let description = Description { classes: self.classes.clone(), recipe: self.recipe.clone() };
        let text = serde_json::to_string(&description).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        Ok(weights::write_described(path, &classifier_to_timm(&self.weights), Some(text))?)
    }

    /// Reads a classifier: a file, the folder of a fine-tuning (its best weights, else those of its last checkpoint), or one
    /// checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Run`] for what is no classifier, and what reading fails with.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        if RunFolder::is_run(path) {
            let best = path.join("best.safetensors");
            if best.is_file() {
                return Self::from_file(&best);
            }
            return match CheckpointStore::read_only(&path.join("checkpoints")).load_latest() {
                Ok(Some(found)) => Self::from_checkpoint(path, found.meta, found.tensors),
                Ok(None) => Err(no_classifier(path, "this run has no checkpoint yet")),
                Err(e) => Err(e),
            };
        }
        if path.join("meta.json").is_file() {
            let (meta, tensors) = checkpoint::load(path)?;
            return Self::from_checkpoint(path, meta, tensors);
        }
        if path.is_dir() {
            return Err(no_classifier(path, "there is this folder holds no run"));
        }
        Self::from_file(path)
    }

    fn from_file(path: &Path) -> Result<Self, TrainError> {
        let (weights, description) = weights::read_described(path)?;
        let description =
            description.ok_or_else(|| no_classifier(path, "this file is not a classifier written by simmim"))?;
        let unreadable = |e| no_classifier(path, &format!("its description cannot be read: {e}"));
        let known: serde_json::Value = serde_json::from_str(&description).map_err(unreadable)?;
        if known.get("classes").is_none() {
            return Err(no_classifier(path, "this file is an encoder without a classifier"));
        }
        let known: Description = serde_json::from_value(known).map_err(unreadable)?;
        Ok(Self { recipe: known.recipe, classes: known.classes, weights })
    }

    fn from_checkpoint(path: &Path, meta: checkpoint::Meta, mut tensors: Weights) -> Result<Self, TrainError> {
        if meta.classes.is_empty() {
            return Err(no_classifier(path, "this is a pre-training run, not a classifier"));
        }
        let run: Option<PathBuf> = path.ancestors().take(4).find(|p| RunFolder::is_run(p)).map(Path::to_owned);
        let run = run.ok_or_else(|| no_classifier(path, "this checkpoint does not belong to a run"))?;
        let recipe = Recipe::from_run(&run.join("config.toml"))?;
        let averages: Vec<String> = tensors.keys().filter(|k| k.starts_with(AVERAGE_PREFIX)).cloned().collect();
        for name in averages {
            if let Some(tensor) = tensors.remove(&name) {
                tensors.insert(name[AVERAGE_PREFIX.len()..].to_owned(), tensor);
            }
        }
        tensors.retain(|name, _| !name.starts_with("exp_avg"));
        Ok(Self { recipe, classes: meta.classes, weights: tensors })
    }

    /// The parameters under the official names, checked against the architecture. `path` names them in errors.
    ///
    /// # Errors
    /// [`TrainError::Model`] with every key that does not fit.
    pub fn parameters(&self, path: &Path) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        let config = self.recipe.classifier_config(self.classes.len())?;
        Ok(match_classifier(path, &config, self.weights.clone())?)
    }
}
