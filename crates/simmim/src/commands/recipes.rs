//! `simmim recipes`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::diagnostics::Failure;
use simmim_train::recipe::EMBEDDED;
use simmim_train::{Recipe, TrainError};
use std::process::ExitCode;

pub(crate) fn list() -> Result<ExitCode, Failure> {
    for (name, text) in EMBEDDED {
        let first = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        println!("{name:36} {first}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A recipe for fine-tuning that leaves the model to the weights is shown for the model of the demo recipe.
fn for_any_model(name: &str, error: TrainError) -> Result<Recipe, TrainError> {
    let model = Recipe::resolve("demo", &[])?;
    let recipe = Recipe::resolve_for(name, &[], Some(&model));
    recipe.ok().filter(|r| r.finetune.is_some()).ok_or(error)
}

pub(crate) fn show(name: &str) -> Result<ExitCode, Failure> {
    print!("{}", Recipe::resolve(name, &[]).or_else(|e| for_any_model(name, e))?.to_toml());
    Ok(ExitCode::SUCCESS)
}
