//! Finding weights and the model they belong to.

mod classifier;
mod given;
mod settings;

pub(crate) use classifier::classifier;
pub(crate) use given::{Given, origin};

use crate::arguments::{LogFormat, WeightsOf};
use crate::commands::parse_size;
use crate::device::DeviceArguments;
use crate::diagnostics::Failure;
use crate::meter::say;
use given::run_of;
use simmim_data::Source;
use simmim_models::weights::{
    Fate, Fitted, Loaded, May, Structure, SwinFacts, Target, encoder_for_classifier, head_classes, normalises_pooled,
    with_our_names,
};
use simmim_models::{Encoder as Architecture, SimMimConfig};
use simmim_train::Recipe;
use simmim_train::features::{Layer, Plan, Pooling};
use std::path::{Path, PathBuf};

/// A model's description and its weights.
pub(crate) struct Model {
    /// The run that the weights and the recipe come from.
    pub(crate) run: Option<PathBuf>,
    pub(crate) recipe: Recipe,
    pub(crate) config: SimMimConfig,
    pub(crate) given: Given,
}

/// What a fine-tuning starts from.
pub(crate) struct Pretrained {
    given: Given,
    /// The recipe of a model like this, where it is known.
    pub(crate) recipe: Option<Recipe>,
    resize_patch: bool,
}

impl Pretrained {
    /// Weights of a run folder, a checkpoint folder, a file or a folder of Hugging Face.
    pub(crate) fn read(path: &Path, resize_patch: bool) -> Result<Self, Failure> {
        let given = Given::read(path)?;
        let recipe = match given.recipe.clone() {
            Some(recipe) => Some(recipe),
            None => given.architecture(&[])?,
        };
        Ok(Self { given, recipe, resize_patch })
    }

    /// What the file shows of the model, for one whose sizes are named.
    pub(crate) fn presence(&self) -> Vec<String> {
        let eps = self.given.heads_and_eps().1;
        self.given.loaded.as_ref().map(|l| settings::presence(&l.facts, eps)).unwrap_or_default()
    }

    /// Tells that of a classifier only the encoder is taken, and what the weights are.
    pub(crate) fn announce(&self, format: LogFormat) {
        self.given.announce(format);
        if let Some(classes) = head_classes(&self.given.weights) {
            let path = self.given.path.display();
            say(
                format,
                "message",
                &format!("{path} holds a classifier of {classes} classes: its head is left, a new one starts"),
            );
        }
    }

    /// The encoder's parameters for a recipe's classifier.
    pub(crate) fn encoder(&self, recipe: &Recipe, classes: usize) -> Result<Fitted, Failure> {
        let config = recipe.classifier_config(classes)?;
        let Given { path, weights, .. } = &self.given;
        Ok(encoder_for_classifier(path, &config, weights.clone(), self.given.grid(), self.resize_patch)?)
    }
}

/// The recipe of a pre-training that starts from weights: where the recipe's model is another one, the architecture is that of the weights, for
/// the recipe's images.
pub(crate) fn recipe_for(alone: Recipe, set: &[String], given: &Given, resize_patch: bool) -> Result<Recipe, Failure> {
    let facts = match given.facts() {
        Some(Structure::Vit(facts)) => facts,
        Some(Structure::Swin(facts)) => return swin_recipe_for(alone, set, given, &facts),
        None => return Ok(alone),
    };
    let (heads, eps) = given.heads_and_eps();
    let own_heads = match alone.encoder_config() {
        Architecture::Vit(vit) if vit.embed_dim == facts.embed_dim => Some(vit.num_heads),
        _ => None,
    };
    let Some(heads) = heads.or(own_heads) else {
        return Err(unnamed(&given.path, "name it by --set model.name=..., such as vit_small_patch16_224"));
    };
    let mut all = settings::sizes(&facts, heads);
    all.extend(settings::presence_in_vit(&facts, eps));
    if alone.model.layer_scale.is_some_and(|v| v != 0.0) && facts.layer_scale.is_some() {
        all.retain(|assignment| !assignment.starts_with("model.layer_scale"));
    }
    let patch = [facts.patch_size.0, facts.patch_size.1];
    if resize_patch {
        all.retain(|assignment| !assignment.starts_with("model.patch_size"));
    } else {
        let divides = |sides: [usize; 2]| sides[0].is_multiple_of(patch[0]) && sides[1].is_multiple_of(patch[1]);
        if !divides(alone.model.image_size)
            && let Some((height, width)) = given.loaded.as_ref().and_then(Loaded::image_size)
        {
            all.push(format!("model.image_size=[{height}, {width}]"));
        }
        if !divides(alone.simmim.mask_patch) {
            all.push(format!("simmim.mask_patch=[{}, {}]", patch[0], patch[1]));
        }
    }
    all.extend(set.iter().cloned());
    Ok(alone.with(&all)?)
}

/// As [`recipe_for`], for the weights of a Swin transformer. Mask cells and images of the recipe stay where they are whole strides.
fn swin_recipe_for(alone: Recipe, set: &[String], given: &Given, facts: &SwinFacts) -> Result<Recipe, Failure> {
    let Some(own) = given.architecture(&[])? else {
        // A recipe for Swin transformers may name the model that the file does not.
        return match alone.encoder_config() {
            Architecture::Swin(_) => Ok(alone),
            Architecture::Vit(_) => Err(unnamed(
                &given.path,
                "name it by --recipe swin_small_images_64 --set model.name=..., such as swin_tiny_patch4_window7_224",
            )),
        };
    };
    let stride = facts.stride();
    let divides = |sides: [usize; 2]| sides[0].is_multiple_of(stride.0) && sides[1].is_multiple_of(stride.1);
    let mut all = vec![format!("model.channels={}", alone.model.channels)];
    if divides(alone.model.image_size) {
        all.push(format!("model.image_size={:?}", alone.model.image_size));
    }
    if !divides(alone.simmim.mask_patch) {
        all.push(format!("simmim.mask_patch=[{}, {}]", stride.0, stride.1));
    }
    all.extend(set.iter().cloned());
    Ok(alone.with_model_of(&own, &all)?)
}

/// Weights to start a model from: a full model, or an encoder.
pub(crate) fn for_model(
    given: Given,
    config: &SimMimConfig,
    resize_patch: bool,
    format: LogFormat,
) -> Result<Vec<(String, Vec<f32>)>, Failure> {
    given.announce(format);
    if normalises_pooled(&given.weights) {
        announce_encoder(&given.path, format);
    }
    let (specs, grid) = (config.parameters(), given.grid());
    let target =
        Target { path: &given.path, encoder: &config.encoder, specs: &specs, may: May::LackTokens, grid, resize_patch };
    let fitted = target.fit(with_our_names(given.weights))?;
    say(format, "message", &summary(&fitted));
    Ok(fitted.tensors)
}

/// What was done with weights, in one line.
pub(crate) fn summary(fitted: &Fitted) -> String {
    const NAMED: usize = 4;
    let named = |names: Vec<String>| {
        let more = names.len().saturating_sub(NAMED);
        let shown = names[..names.len() - more].join(", ");
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    let of = |wanted: fn(&Fate) -> bool| -> Vec<String> {
        let chosen = fitted.fates.iter().filter(|(_, fate)| wanted(fate));
        chosen
            .map(|(name, fate)| if let Fate::Adapted(how) = fate { format!("{name} ({how})") } else { name.clone() })
            .collect()
    };
    let mut parts = vec![format!("{} parameters taken", of(|f| *f == Fate::Taken).len())];
    let groups: [(&str, Vec<String>); 3] = [
        ("carried over", of(|f| matches!(f, Fate::Adapted(_)))),
        ("drawn afresh", of(|f| *f == Fate::Fresh)),
        ("left over", of(|f| *f == Fate::Left)),
    ];
    for (what, names) in groups {
        if !names.is_empty() {
            parts.push(format!("{} {what}: {}", names.len(), named(names)));
        }
    }
    parts.join("; ")
}

fn unnamed(path: &Path, help: &str) -> Failure {
    Failure::input(format!("{}: the file does not say which model it is", path.display()), help)
}

/// The recipe of the run that weights belong to, of what their file tells, or with the model that the arguments name.
pub(crate) fn recipe(a: &WeightsOf) -> Result<Recipe, Failure> {
    recipe_of(a, None)
}

fn recipe_of(a: &WeightsOf, given: Option<&Given>) -> Result<Recipe, Failure> {
    let run = own_run(a);
    let base = a.recipe.clone().or(run.map(|run| run.join("config.toml").display().to_string()));
    let read;
    let given = match given {
        Some(given) => Some(given),
        None if base.is_none() => {
            read = Given::read(&a.weights)?;
            Some(&read)
        }
        None => None,
    };
    let loaded = given.and_then(|g| g.loaded.as_ref());
    let mut set = Vec::new();
    if let Some(model) = &a.model {
        set.push(format!("model.name={model}"));
        if base.is_none() {
            set.extend(loaded.map(|l| settings::presence(&l.facts, l.card.eps)).unwrap_or_default());
        }
    }
    if let Some(size) = &a.image_size {
        let (height, width) = parse_size(size)?;
        set.push(format!("model.image_size=[{height}, {width}]"));
    }
    set.extend(a.set.iter().cloned());
    match (base, &a.model) {
        (Some(base), _) => Ok(Recipe::resolve(&base, &set)?),
        (None, Some(_)) => Ok(Recipe::resolve("bare", &set)?),
        (None, None) => match given.map(|g| g.architecture(&set)).transpose()?.flatten() {
            Some(recipe) => Ok(recipe),
            None => Err(unnamed(
                &a.weights,
                "name it by --model, such as --model vit_small_patch16_224, or put its config.json beside it",
            )),
        },
    }
}

/// The folder of the run from which the arguments take the recipe too.
fn own_run(a: &WeightsOf) -> Option<&Path> {
    run_of(&a.weights).filter(|_| a.model.is_none() && a.recipe.is_none())
}

/// Weights with their recipe, see [`recipe`].
pub(crate) fn resolve(a: &WeightsOf) -> Result<Model, Failure> {
    let given = Given::read(&a.weights)?;
    let recipe = recipe_of(a, Some(&given))?;
    let config = recipe.simmim_config()?;
    Ok(Model { run: own_run(a).map(Path::to_owned), recipe, config, given })
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
    /// What was done with the weights of a file.
    line: Option<String>,
}

/// The encoder that the arguments name. Mean and deviation that the recipe leaves to the data are measured on `images`.
pub(crate) fn encoder(a: &WeightsOf, images: &dyn Source) -> Result<Encoder, Failure> {
    let Model { run, mut recipe, config, given } = resolve(a)?;
    let task = |name: &str| name.ends_with("mask_token") || name.starts_with("decoder.");
    let pretrained = given.recipe.as_ref().is_some_and(|r| r.finetune.is_none());
    let simmim = (run.is_some() && pretrained) || given.weights.keys().any(|name| task(name));
    let classifier = normalises_pooled(&given.weights).then(|| given.path.clone());
    let (specs, grid) = (config.parameters(), given.grid());
    let target = Target {
        path: &given.path,
        encoder: &config.encoder,
        specs: &specs,
        may: May::LackTask,
        grid,
        resize_patch: a.resize_patch,
    };
    let mut fitted = target.fit(with_our_names(given.weights))?;
    // Mask token and head are not part of an encoder.
    fitted.fates.retain(|(name, _)| !task(name));
    let tensors: Vec<_> = std::mem::take(&mut fitted.tensors).into_iter().filter(|(name, _)| !task(name)).collect();
    let line = given
        .loaded
        .as_ref()
        .map(|loaded| format!("{}: {}; {}", given.path.display(), origin(loaded), summary(&fitted)));
    recipe.fix_statistics(images)?;
    Ok(Encoder { run, recipe, encoder: config.encoder.clone(), config, tensors, simmim, classifier, line })
}

/// Tells what was taken out of a classifier.
pub(crate) fn announce_encoder(path: &Path, format: LogFormat) {
    let text = format!(
        "{} holds a classifier: its encoder is taken; fc_norm, meant for the pooled tokens, stands for the norm after the blocks",
        path.display()
    );
    say(format, "message", &text);
}

impl Encoder {
    /// Tells where the weights are not what they seem.
    pub(crate) fn announce(&self, format: LogFormat) {
        self.line.iter().for_each(|line| say(format, "message", line));
        self.classifier.iter().for_each(|path| announce_encoder(path, format));
    }

    /// Features of these layers from the centre of every image.
    pub(crate) fn plan(&self, layers: Vec<Layer>, pooling: Pooling, batch: usize, device: &DeviceArguments) -> Plan {
        let (transform, max_errors) = (self.recipe.transform(), self.recipe.data.max_errors);
        let (threads, precision) = (device.host_threads(), device.precision());
        Plan { layers, pooling, transform, batch, threads, max_errors, precision }
    }
}
