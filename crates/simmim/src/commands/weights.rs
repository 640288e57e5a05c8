//! Finding weights and the model they belong to.

use crate::arguments::{LogFormat, WeightsOf};
use crate::commands::parse_size;
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_data::Source;
use simmim_models::names::{AVERAGE_PREFIX, FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX};
use simmim_models::weights::{
    self, Weights, encoder_for_classifier, head_classes, match_parameters, normalises_pooled,
};
use simmim_models::{Encoder as Architecture, SimMimConfig};
use simmim_train::checkpoint::{self, CheckpointStore};
use simmim_train::features::{Layer, Plan, Pooling};
use simmim_train::{Recipe, RunFolder};
use std::fs::File;
use std::io::Read;
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

/// Tensors behind a run folder, a checkpoint or a file. Of a run its newest checkpoint counts: `model.safetensors` is older where
/// a run was made longer.
fn tensors(path: &Path) -> Result<Weights, Failure> {
    let named = |p: &Path, name: &str| p.file_name().is_some_and(|n| n == name);
    if RunFolder::is_run(path) {
        return match newest(&path.join("checkpoints"))? {
            Some(found) => Ok(found),
            None if path.join("model.safetensors").is_file() => Ok(weights::read(&path.join("model.safetensors"))?),
            None => {
                Err(Failure::input(format!("{}: the run has no checkpoint yet", path.display()), "let it train first"))
            }
        };
    }
    if path.join("meta.json").is_file() {
        return Ok(parameters_of(checkpoint::load(path)?.1));
    }
    let store = if named(path, "latest") { path.parent() } else { Some(path) };
    if let Some(store) = store.filter(|p| named(p, "checkpoints"))
        && let Some(found) = newest(store)?
    {
        return Ok(found);
    }
    check_file(path)?;
    Ok(weights::read(path)?)
}

/// The parameters in the newest whole checkpoint of a folder, if there is one.
fn newest(checkpoints: &Path) -> Result<Option<Weights>, Failure> {
    Ok(CheckpointStore::read_only(checkpoints).load_latest()?.map(|found| parameters_of(found.tensors)))
}

/// Refuses what is certainly not a weight file in words that say what to do.
fn check_file(path: &Path) -> Result<(), Failure> {
    const GIVE: &str = "give a run folder, a checkpoint folder or a .safetensors file";
    let fail = |what: &str, help: &str| Err(Failure::input(format!("{} {what}", path.display()), help));
    if path.is_dir() {
        return fail("is a folder, but neither a run nor a checkpoint", GIVE);
    }
    let mut start = Vec::new();
    match File::open(path).and_then(|f| f.take(4).read_to_end(&mut start)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => fail("does not exist", GIVE),
        Err(e) => fail(&format!("cannot be read: {e}"), GIVE),
        Ok(_) if start.starts_with(b"PK\x03\x04") || start.starts_with(&[0x80, 0x02]) => fail(
            "is a PyTorch pickle file, which this program does not read",
            "convert it where PyTorch is: safetensors.torch.save_file(state_dict, \"model.safetensors\")",
        ),
        Ok(_) => Ok(()),
    }
}

/// A checkpoint without the optimiser's moments.
fn parameters_of(mut tensors: Weights) -> Weights {
    let extra = [FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, AVERAGE_PREFIX];
    tensors.retain(|name, _| !extra.iter().any(|prefix| name.starts_with(prefix)));
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

    /// Tells that of a classifier only the encoder is taken.
    pub(crate) fn announce(&self, format: LogFormat) {
        if let Some(classes) = head_classes(&self.weights) {
            let path = self.path.display();
            say(
                format,
                "message",
                &format!("{path} holds a classifier of {classes} classes: its head is left, a new one starts"),
            );
        }
    }

    /// The encoder's parameters for a recipe's classifier.
    pub(crate) fn encoder(&self, recipe: &Recipe, classes: usize) -> Result<Vec<(String, Vec<f32>)>, Failure> {
        let config = recipe.classifier_config(classes)?;
        let grid = self.recipe.as_ref().map(|r| r.encoder_config().geometry().patch_grid());
        Ok(encoder_for_classifier(&self.path, &config, self.weights.clone(), grid)?)
    }
}

/// The folder of the run that a path belongs to.
fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().take(4).find(|p| RunFolder::is_run(p))
}

/// Weights to start a model from: a full model, or an encoder.
pub(crate) fn for_model(
    path: &Path,
    config: &SimMimConfig,
    format: LogFormat,
) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    let weights = tensors(path)?;
    if normalises_pooled(&weights) {
        announce_encoder(path, format);
    }
    Ok(match_parameters(path, &config.parameters(), weights, false)?)
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
        (None, None) => {
            check_file(&a.weights)?;
            Err(Failure::input(
                format!("{}: the file does not say which model it is", a.weights.display()),
                "name it by --model, such as --model vit_small_patch16_224, or give a run folder",
            ))
        }
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
    pub(crate) encoder: Architecture,
    pub(crate) tensors: Vec<(String, Vec<f32>)>,
    /// Whether SimMIM is known to have trained them.
    pub(crate) simmim: bool,
    /// The file, where it holds a classifier whose norm of pooled tokens stands for the encoder's.
    classifier: Option<PathBuf>,
}

/// The encoder that the arguments name. Mean and deviation that the recipe leaves to the data are measured on `images`.
pub(crate) fn encoder(a: &WeightsOf, images: &dyn Source) -> Result<Encoder, Failure> {
    let Model { run, mut recipe, config, path, mut weights } = resolve(a)?;
    let task = |name: &str| name.ends_with("mask_token") || name.starts_with("decoder.");
    let simmim = (run.is_some() && recipe.finetune.is_none()) || weights.keys().any(|name| task(name));
    // An encoder's file has no mask token and no head; a full model's are not needed here.
    weights.retain(|name, _| !task(name));
    let classifier = normalises_pooled(&weights).then(|| path.clone());
    let tensors = match_parameters(&path, &config.parameters(), weights, false)?;
    recipe.fix_statistics(images)?;
    Ok(Encoder { run, recipe, encoder: config.encoder.clone(), config, tensors, simmim, classifier })
}

/// Tells what was taken out of a classifier.
fn announce_encoder(path: &Path, format: LogFormat) {
    let text = format!(
        "{} holds a classifier: its encoder is taken; fc_norm, meant for the pooled tokens, stands for the norm after the blocks",
        path.display()
    );
    say(format, "message", &text);
}

impl Encoder {
    /// Tells where the weights are not what they seem.
    pub(crate) fn announce(&self, format: LogFormat) {
        self.classifier.iter().for_each(|path| announce_encoder(path, format));
    }

    /// Features of these layers from the centre of every image.
    pub(crate) fn plan(&self, layers: Vec<Layer>, pooling: Pooling, batch: usize, threads: usize) -> Plan {
        let (transform, max_errors) = (self.recipe.transform(), self.recipe.data.max_errors);
        Plan { layers, pooling, transform, batch, threads, max_errors }
    }
}
