//! Weights as the user names them: a run folder, a checkpoint folder, a file, or a folder of Hugging Face.

use super::settings;
use crate::arguments::LogFormat;
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_models::Encoder;
use simmim_models::names::{AVERAGE_PREFIX, FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX};
use simmim_models::weights::{self, Loaded, Structure, Weights};
use simmim_train::checkpoint::{self, CheckpointStore};
use simmim_train::classify::ClassifierFile;
use simmim_train::{Recipe, RunFolder};
use std::path::{Path, PathBuf};

/// Weights under our names, with what is known about them.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) path: PathBuf,
    /// The recipe of the run that they belong to, or that their file holds.
    pub(crate) recipe: Option<Recipe>,
    /// What their file tells, where they come from one.
    pub(crate) loaded: Option<Loaded>,
    pub(crate) weights: Weights,
}

impl Given {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let recipe = run_of(path).map(|run| Recipe::from_run(&run.join("config.toml"))).transpose()?;
        let whole = |weights| Self { path: path.to_owned(), recipe: recipe.clone(), loaded: None, weights };
        match of_run(path)? {
            Some(weights) => Ok(whole(weights)),
            None => {
                exists(path)?;
                let mut loaded = Loaded::open(path)?;
                let weights = std::mem::take(&mut loaded.weights);
                let inside = || loaded.description.as_ref().and_then(|_| ClassifierFile::read(path).ok());
                let recipe = recipe.clone().or_else(|| inside().map(|file| file.recipe));
                Ok(Self { recipe, loaded: Some(loaded), ..whole(weights) })
            }
        }
    }

    /// Rows and columns of patches that the positions were learned on, where they are known.
    pub(crate) fn grid(&self) -> Option<(usize, usize)> {
        let of_recipe = || self.recipe.as_ref().map(|r| r.encoder_config().geometry().patch_grid());
        of_recipe().or_else(|| self.loaded.as_ref().and_then(Loaded::grid))
    }

    /// The recipe of a model like this, with single values on top: that of the run, or a bare one with what the file tells; none where
    /// it tells too little.
    pub(crate) fn architecture(&self, set: &[String]) -> Result<Option<Recipe>, Failure> {
        if let Some(recipe) = &self.recipe {
            return Ok(Some(recipe.with(set)?));
        }
        let Some(mut all) = self.loaded.as_ref().and_then(settings::complete) else { return Ok(None) };
        all.extend(set.iter().cloned());
        Ok(Some(Recipe::resolve("bare", &all)?))
    }

    /// What the tensors say about the model.
    pub(crate) fn facts(&self) -> Option<Structure> {
        self.loaded.as_ref().map(|l| l.facts.clone()).or_else(|| Structure::of(&self.weights))
    }

    /// Attention heads and the epsilon of the norms, as far as they are known.
    pub(crate) fn heads_and_eps(&self) -> (Option<usize>, Option<f64>) {
        let vit = match self.recipe.as_ref().map(Recipe::encoder_config) {
            Some(Encoder::Vit(vit)) => Some((vit.num_heads, vit.eps)),
            _ => None,
        };
        let loaded = self.loaded.as_ref();
        (
            vit.map(|v| v.0).or_else(|| loaded.and_then(Loaded::num_heads)),
            vit.map(|v| v.1.to_string().parse().unwrap_or(1e-6)).or_else(|| loaded.and_then(|l| l.card.eps)),
        )
    }

    /// Says what kind of file this is, where that is not obvious.
    pub(crate) fn announce(&self, format: LogFormat) {
        if let Some(loaded) = &self.loaded {
            say(format, "message", &format!("{}: {}", self.path.display(), origin(loaded)));
        }
    }
}

/// The container and the names of a file, and which of several state dicts was taken.
pub(crate) fn origin(loaded: &Loaded) -> String {
    let mut text = format!("{} in the names of {}", loaded.format.name(), loaded.translation.dialect.name());
    if let Some(taken) = &loaded.taken {
        let average = if loaded.average { " (averaged weights)" } else { "" };
        text.push_str(&format!(", `{taken}`{average} is taken"));
        if !loaded.passed_over.is_empty() {
            text.push_str(&format!(", {} not", quoted_list(&loaded.passed_over)));
        }
    }
    text
}

fn quoted_list(names: &[String]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// The folder of the run that a path belongs to.
pub(crate) fn run_of(path: &Path) -> Option<&Path> {
    path.ancestors().take(4).find(|p| RunFolder::is_run(p))
}

/// Tensors of a run or of its checkpoints; none where the path is neither. Of a run its newest checkpoint counts: `model.safetensors` is
/// older where a run was made longer.
fn of_run(path: &Path) -> Result<Option<Weights>, Failure> {
    let named = |p: &Path, name: &str| p.file_name().is_some_and(|n| n == name);
    if RunFolder::is_run(path) {
        let model = path.join("model.safetensors");
        return match newest(&path.join("checkpoints"))? {
            Some(found) => Ok(Some(found)),
            None if model.is_file() => Ok(Some(weights::read(&model)?)),
            None => {
                Err(Failure::input(format!("{}: the run has no checkpoint yet", path.display()), "let it train first"))
            }
        };
    }
    if path.join("meta.json").is_file() {
        return Ok(Some(parameters_of(checkpoint::load(path)?.1)));
    }
    let store = if named(path, "latest") { path.parent() } else { Some(path) };
    match store.filter(|p| named(p, "checkpoints")) {
        Some(store) => newest(store),
        None => Ok(None),
    }
}

/// The parameters in the newest whole checkpoint of a folder, if there is one.
fn newest(checkpoints: &Path) -> Result<Option<Weights>, Failure> {
    Ok(CheckpointStore::read_only(checkpoints).load_latest()?.map(|found| parameters_of(found.tensors)))
}

/// A checkpoint without the optimiser's moments.
fn parameters_of(mut tensors: Weights) -> Weights {
    let extra = [FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX, AVERAGE_PREFIX];
    tensors.retain(|name, _| !extra.iter().any(|prefix| name.starts_with(prefix)));
    tensors
}

fn exists(path: &Path) -> Result<(), Failure> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Failure::input(
            format!("{} does not exist", path.display()),
            "give a run folder, a checkpoint, a weight file or a folder of Hugging Face",
        )),
        _ => Ok(()),
    }
}
