//! Classifiers: those of this program, and those of others.

use super::{Given, origin, settings};
use crate::diagnostics::Failure;
use simmim_data::demo_held_out;
use simmim_models::Pool;
use simmim_train::Recipe;
use simmim_train::classify::ClassifierFile;
use std::path::Path;

/// The recipe that is assumed for classifiers of others: nothing of it but the data matters here.
const RECIPE: &str = "finetune_small_images";

/// A classifier, and what is worth saying about it.
pub(crate) fn classifier(path: &Path) -> Result<(ClassifierFile, Option<String>), Failure> {
    let own = match ClassifierFile::read(path) {
        Ok(file) => return Ok((file, None)),
        Err(e) => e,
    };
    let Ok(Given { loaded: Some(mut loaded), weights, recipe: None, .. }) = Given::read(path) else {
        return Err(own.into());
    };
    loaded.weights = weights;
    let config = loaded.classifier()?;
    let mut set = settings::complete(&loaded).unwrap_or_default();
    set.push(format!("finetune.pool={}", if config.pool == Pool::Mean { "mean" } else { "cls" }));
    set.extend(loaded.card.crop.map(|crop| format!("finetune.eval_crop={crop:?}")));
    let mut recipe = Recipe::resolve(RECIPE, &set)?;
    recipe.fix_statistics(&demo_held_out()?)?;
    let mut said = format!("{}: {}, {} classes", path.display(), origin(&loaded), config.classes);
    let mut classes = loaded.card.classes.clone();
    if classes.len() != config.classes {
        said.push_str("; their names are not known, so they are numbered from 0");
        classes = (0..config.classes).map(|class| class.to_string()).collect();
    }
    Ok((ClassifierFile { recipe, classes, weights: loaded.classifier_weights() }, Some(said)))
}
