//! Finding weights and the model they belong to.

use crate::arguments::WeightsOf;
use crate::commands::parse_size;
use crate::diagnostics::Failure;
use simmim_data::Source;
use simmim_models::weights::{self, Weights, match_parameters};
use simmim_models::{SimMimConfig, VitConfig};
use simmim_train::features::{Layer, Plan, Pooling};
use simmim_train::{Recipe, RunFolder, checkpoint};
use std::path::{Path, PathBuf};

/// A model's description and its weights.
pub(crate) struct Model {
    /// The run that the weights and the recipe come from.
    pub(crate) run: Option<PathBuf>,
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
    tensors.retain(|name, _| !name.starts_with("exp_avg"));
    tensors
}

/// The folder of the run that a path belongs to.
fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().take(4).find(|p| RunFolder::is_run(p))
}

/// Weights to start a model from: a full model, or an encoder.
pub(crate) fn for_model(path: &Path, config: &SimMimConfig) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    Ok(match_parameters(path, &config.parameters(), tensors(path)?, false)?)
}

/// The recipe of the run that weights belong to, or with the model that the arguments name.
pub(crate) fn recipe(a: &WeightsOf) -> Result<Recipe, Failure> {
    let run = own_run(a);
    let base = a.recipe.clone().or(run.map(|run| run.join("config.toml").display().to_string()));
    let mut set = Vec::new();
    if let Some(model) = &a.model {
        set.push(format!("model.name={model}"));
        if let Some(size) = &a.image_size {
            let (height, width) = parse_size(size)?;
            set.push(format!("model.image_size=[{height}, {width}]"));
        }
    }
    set.extend(a.set.iter().cloned());
    match (base, &a.model) {
        (Some(base), _) => Ok(Recipe::resolve(&base, &set)?),
        (None, Some(_)) => Ok(Recipe::resolve("bare", &set)?),
        (None, None) => Err(Failure::input(
            format!("{}: the file does not say which model it is", a.weights.display()),
            "name it by --model, such as --model vit_small_patch16_224, or give a run folder",
        )),
    }
}

/// The folder of the run from which the arguments take the recipe too.
fn own_run(a: &WeightsOf) -> Option<&Path> {
    run_of(&a.weights).filter(|_| a.model.is_none() && a.recipe.is_none())
}

/// Weights with their recipe, see [`recipe`].
pub(crate) fn resolve(a: &WeightsOf) -> Result<Model, Failure> {
    let recipe = recipe(a)?;
    let config = recipe.simmim_config()?;
    let weights = tensors(&a.weights)?;
    Ok(Model { run: own_run(a).map(Path::to_owned), recipe, config, path: a.weights.clone(), weights })
}

/// An encoder with its weights, ready to make features.
pub(crate) struct Encoder {
    pub(crate) run: Option<PathBuf>,
    pub(crate) recipe: Recipe,
    pub(crate) config: SimMimConfig,
    pub(crate) encoder: VitConfig,
    pub(crate) tensors: Vec<(String, Vec<f32>)>,
    /// Whether SimMIM is known to have trained them.
    pub(crate) simmim: bool,
}

/// The encoder that the arguments name. Mean and deviation that the recipe leaves to the data are measured on `images`.
pub(crate) fn encoder(a: &WeightsOf, images: &dyn Source) -> Result<Encoder, Failure> {
    let Model { run, mut recipe, config, path, mut weights } = resolve(a)?;
    let task = |name: &str| name.ends_with("mask_token") || name.starts_with("decoder.");
    let simmim = run.is_some() || weights.keys().any(|name| task(name));
    // An encoder's file has no mask token and no head; a full model's are not needed here.
    weights.retain(|name, _| !task(name));
    let tensors = match_parameters(&path, &config.parameters(), weights, false)?;
    recipe.fix_statistics(images)?;
    Ok(Encoder { run, recipe, encoder: config.encoder.clone(), config, tensors, simmim })
}

impl Encoder {
    /// Features of these layers from the centre of every image.
    pub(crate) fn plan(&self, layers: Vec<Layer>, pooling: Pooling, batch: usize, threads: usize) -> Plan {
        let (transform, max_errors) = (self.recipe.transform(), self.recipe.data.max_errors);
        Plan { layers, pooling, transform, batch, threads, max_errors }
    }
}
