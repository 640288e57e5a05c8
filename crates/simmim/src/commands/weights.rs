//! Finding weights and the model they belong to.

use crate::arguments::WeightsOf;
use crate::commands::parse_size;
use crate::diagnostics::Failure;
use simmim_models::SimMimConfig;
use simmim_models::classifier::AVERAGE_PREFIX;
use simmim_models::weights::{self, Weights, encoder_for_classifier, match_parameters};
use simmim_train::{Recipe, RunFolder, checkpoint};
use std::path::{Path, PathBuf};

/// A model's description and its weights.
pub(crate) struct Model {
    pub(crate) recipe: Recipe,
    pub(crate) config: SimMimConfig,
    pub(crate) path: PathBuf,
    pub(crate) weights: Weights,
}

/// Tensors behind a run folder, a checkpoint folder or a file.
fn tensors(path: &Path) -> Result<Weights, Failure> {
    if RunFolder::is_run(path) {
        let model = path.join("model.safetensors");
        if model.is_file() {
            return Ok(weights::read(&model)?);
        }
        let store = checkpoint::CheckpointStore::read_only(&path.join("checkpoints"));
        return match store.load_latest()? {
            Some(found) => Ok(parameters_of(found.tensors)),
            None => {
                Err(Failure::input(format!("{}: the run has no checkpoint yet", path.display()), "let it train first"))
            }
        };
    }
    if path.join("meta.json").is_file() {
        return Ok(parameters_of(checkpoint::load(path)?.1));
    }
    Ok(weights::read(path)?)
}

/// A checkpoint without the optimiser's moments.
fn parameters_of(mut tensors: Weights) -> Weights {
    tensors.retain(|name, _| !(name.starts_with("exp_avg") || name.starts_with(AVERAGE_PREFIX)));
    tensors
}

/// What a fine-tuning starts from: weights, and the recipe of their run where they belong to one.
pub(crate) struct Pretrained {
    path: PathBuf,
    weights: Weights,
    pub(crate) recipe: Option<Recipe>,
}

impl Pretrained {
    /// Weights of a run folder, a checkpoint folder or a file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let recipe = run_of(path).map(|run| Recipe::from_run(&run.join("config.toml"))).transpose()?;
        Ok(Self { path: path.to_owned(), weights: tensors(path)?, recipe })
    }

    /// The encoder's parameters for a recipe's classifier.
    pub(crate) fn encoder(&self, recipe: &Recipe, classes: usize) -> Result<Vec<(String, Vec<f32>)>, Failure> {
        let config = recipe.classifier_config(classes)?;
        let grid = self.recipe.as_ref().map(|r| r.encoder_config().grid());
        Ok(encoder_for_classifier(&self.path, &config, self.weights.clone(), grid)?)
    }
}

/// The folder of the run that a path belongs to.
fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().take(4).find(|p| RunFolder::is_run(p))
}

/// Weights to start a model from: a full model, or an encoder.
pub(crate) fn for_model(path: &Path, config: &SimMimConfig) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    Ok(match_parameters(path, &config.parameters(), tensors(path)?, false)?)
}

/// Weights with the recipe of their run, or with the model that the arguments name.
pub(crate) fn resolve(a: &WeightsOf) -> Result<Model, Failure> {
    let run = run_of(&a.weights).map(|run| run.join("config.toml").display().to_string());
    let base = a.recipe.clone().or(run.filter(|_| a.model.is_none()));
    let mut set = Vec::new();
    if let Some(model) = &a.model {
        set.push(format!("model.name={model}"));
        if let Some(size) = &a.image_size {
            let (height, width) = parse_size(size)?;
            set.push(format!("model.image_size=[{height}, {width}]"));
        }
    }
    set.extend(a.set.iter().cloned());
    let recipe = match (base, &a.model) {
        (Some(base), _) => Recipe::resolve(&base, &set)?,
        (None, Some(_)) => Recipe::resolve("bare", &set)?,
        (None, None) => {
            return Err(Failure::input(
                format!("{}: the file does not say which model it is", a.weights.display()),
                "name it by --model, such as --model vit_small_patch16_224, or give a run folder",
            ));
        }
    };
    let config = recipe.simmim_config()?;
    let weights = tensors(&a.weights)?;
    Ok(Model { recipe, config, path: a.weights.clone(), weights })
}
