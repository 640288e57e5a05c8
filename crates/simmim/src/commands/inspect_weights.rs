//! `simmim inspect --weights`: what a file is, and what becomes of its tensors.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Inspect;
use crate::commands::weights::{Given, origin, recipe_for};
use crate::diagnostics::Failure;
use serde_json::{Value, json};
use simmim_models::weights::{Facts, Fate, Loaded, May, Target, Weights, with_our_names};
use simmim_models::{ClassifierConfig, Encoder, ParameterSpec, Pool, Position, SimMimConfig};
use simmim_train::Recipe;
use std::path::Path;
use std::process::ExitCode;

/// A line of the table.
struct Line {
    name: String,
    /// Names in the file.
    file: Vec<String>,
    shape: Vec<usize>,
    fate: &'static str,
    how: String,
}

pub(crate) fn run(a: &Inspect, path: &Path) -> Result<ExitCode, Failure> {
    let given = Given::read(path)?;
    let named = a.recipe.recipe.is_some() || !a.recipe.set.is_empty();
    let weights = with_our_names(given.weights.clone());
    let facts = given.facts();
    let wanted = if named {
        let name = a.recipe.recipe.as_deref().unwrap_or("bare");
        let config =
            recipe_for(Recipe::resolve(name, &a.recipe.set)?, &a.recipe.set, &given, false)?.simmim_config()?;
        Some((config.encoder.clone(), config.parameters()))
    } else {
        own(&given, facts.as_ref())
    };
    let lines = match &wanted {
        Some((encoder, specs)) => table(&given, encoder, specs, weights)?,
        None => unfitted(&given, &weights),
    };
    let encoder = wanted.map(|(encoder, _)| encoder);
    if a.json {
        println!("{:#}", as_json(&given, facts.as_ref(), encoder.as_ref(), &lines));
    } else {
        print(&given, facts.as_ref(), encoder.as_ref(), &lines);
    }
    Ok(ExitCode::SUCCESS)
}

/// The model that the weights are themselves, as far as it is known.
fn own(given: &Given, facts: Option<&Facts>) -> Option<(Encoder, Vec<ParameterSpec>)> {
    let of_recipe = given.recipe.as_ref().map(Recipe::encoder_config);
    let encoder = of_recipe.or_else(|| given.loaded.as_ref().and_then(Loaded::encoder).map(Encoder::Vit))?;
    let specs = match facts.and_then(|f| f.classes).filter(|&n| n >= 2) {
        Some(classes) => {
            let pool = if facts.is_some_and(|f| f.pooled_norm) || !encoder.geometry().class_token {
                Pool::Mean
            } else {
                Pool::Cls
            };
            let mut config = ClassifierConfig::new(encoder.clone(), classes);
            config.pool = pool;
            config.parameters()
        }
        None => {
            let mut specs = SimMimConfig::official(encoder.clone(), encoder.geometry().stride, 0.5).parameters();
            let has = |name: &str| given.weights.contains_key(name);
            // An encoder lacks nothing without mask token and head.
            specs.retain(|s| has(&s.name) || !(s.name.ends_with("mask_token") || s.name.starts_with("decoder.")));
            specs
        }
    };
    Some((encoder, specs))
}

fn table(given: &Given, encoder: &Encoder, specs: &[ParameterSpec], weights: Weights) -> Result<Vec<Line>, Failure> {
    let (path, grid) = (given.path.as_path(), given.grid());
    let target = Target { path, encoder, specs, may: May::LackTokens, grid, resize_patch: false };
    let shapes: Vec<(String, Vec<usize>)> = weights.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect();
    let fitted = target.fit(weights)?;
    let translation = given.loaded.as_ref().map(|l| &l.translation);
    let shape = |name: &str| {
        let stored = shapes.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        stored.or_else(|| specs.iter().find(|s| s.name == name).map(|s| s.shape.clone())).unwrap_or_default()
    };
    let mut lines: Vec<Line> = fitted
        .fates
        .into_iter()
        .map(|(name, fate)| {
            let file = translation.and_then(|t| t.names.get(&name)).cloned().unwrap_or_default();
            let renamed = translation.is_some_and(|t| t.renames(&name));
            let (fate, how) = match fate {
                Fate::Taken if renamed => ("renamed", String::new()),
                Fate::Taken => ("taken", String::new()),
                Fate::Adapted(how) => ("carried over", how),
                Fate::Fresh => ("drawn afresh", String::new()),
                Fate::Left => ("left over", String::new()),
            };
            Line { shape: shape(&name), name, file, fate, how }
        })
        .collect();
    lines.extend(unknown(given));
    Ok(lines)
}

/// Tensors of the file that are no parameters here.
fn unknown(given: &Given) -> Vec<Line> {
    let left = given.loaded.iter().flat_map(|l| &l.translation.left);
    let line = |name: &String| Line {
        name: String::new(),
        file: vec![name.clone()],
        shape: Vec::new(),
        fate: "left over",
        how: String::new(),
    };
    left.map(line).collect()
}

/// What can be said where the model is not known.
fn unfitted(given: &Given, weights: &Weights) -> Vec<Line> {
    let translation = given.loaded.as_ref().map(|l| &l.translation);
    let line = |(name, tensor): (&String, &simmim_models::weights::Tensor)| Line {
        name: name.clone(),
        file: translation.and_then(|t| t.names.get(name)).cloned().unwrap_or_default(),
        shape: tensor.shape.clone(),
        fate: if translation.is_some_and(|t| t.renames(name)) { "renamed" } else { "taken" },
        how: String::new(),
    };
    weights.iter().map(line).chain(unknown(given)).collect()
}

fn heads(encoder: &Encoder) -> Option<usize> {
    if let Encoder::Vit(vit) = encoder { Some(vit.num_heads) } else { None }
}

/// The architecture in words.
fn architecture(f: &Facts, encoder: Option<&Encoder>) -> String {
    let heads = encoder.map_or_else(
        || "heads not known (name the model by --recipe or --set model.name)".to_owned(),
        |e| {
            let (height, width) = e.geometry().image_size;
            format!("{} heads, images of {height}x{width}", heads(e).unwrap_or_default())
        },
    );
    let mut parts = vec![format!(
        "vision transformer, {} blocks of width {}, patches of {}x{} with {} channels, {heads}",
        f.depth, f.embed_dim, f.patch_size.0, f.patch_size.1, f.channels
    )];
    parts.push(if f.class_token { "class token" } else { "no class token" }.to_owned());
    if f.registers > 0 {
        parts.push(format!("{} registers", f.registers));
    }
    parts.push(
        match f.position {
            Position::Absolute => "absolute positions",
            Position::SharedRelative => "relative positions, one table for all blocks",
            Position::Relative => "relative positions in each block",
            Position::None => "no positions",
        }
        .to_owned(),
    );
    if f.layer_scale.is_some() {
        parts.push("LayerScale".to_owned());
    }
    if f.mask_token && f.decoder {
        parts.push("mask token and head of SimMIM".to_owned());
    }
    if let Some(classes) = f.classes {
        parts.push(format!("classifier of {classes} classes"));
    }
    parts.join(", ")
}

fn format_of(given: &Given) -> String {
    given.loaded.as_ref().map_or_else(|| "simmim".to_owned(), origin)
}

fn training(given: &Given) -> Vec<String> {
    let mut known = given.loaded.as_ref().map(|l| l.card.training.clone()).unwrap_or_default();
    known.extend(given.recipe.as_ref().map(|r| format!("simmim, recipe of {}", r.model.name)));
    known
}

fn print(given: &Given, facts: Option<&Facts>, encoder: Option<&Encoder>, lines: &[Line]) {
    println!("weights      {}", given.path.display());
    println!("format       {}", format_of(given));
    match (facts, encoder) {
        (Some(facts), _) => println!("model        {}", architecture(facts, encoder)),
        (None, Some(encoder)) => println!("model        Swin transformer, {}", encoder.describe()),
        (None, None) => {}
    }
    if let Some(source) = given.loaded.as_ref().and_then(|l| l.card.source.as_ref()) {
        println!("described by {}", source.display());
    }
    let training = training(given);
    if !training.is_empty() {
        println!("training     {}", training.join("; "));
    }
    let count = |fate: &str| lines.iter().filter(|l| l.fate == fate).count();
    let counts = ["taken", "renamed", "carried over", "drawn afresh", "left over"].map(|fate| (fate, count(fate)));
    let counts = counts.iter().filter(|(_, n)| *n > 0).map(|(fate, n)| format!("{n} {fate}")).collect::<Vec<_>>();
    println!("tensors      {}", counts.join(", "));
    println!();
    for line in lines {
        let how = if line.how.is_empty() { String::new() } else { format!(" ({})", line.how) };
        let other = line.file.len() != 1 || line.file[0] != line.name;
        let from = if line.file.is_empty() || !other || line.name.is_empty() {
            String::new()
        } else {
            format!("  <- {}", line.file.join(" + "))
        };
        let name = if line.name.is_empty() { line.file.join(" + ") } else { line.name.clone() };
        let shape = if line.shape.is_empty() { String::new() } else { format!("{:?}", line.shape) };
        println!("{:12} {name:58} {shape}{how}{from}", line.fate);
    }
}

fn as_json(given: &Given, facts: Option<&Facts>, encoder: Option<&Encoder>, lines: &[Line]) -> Value {
    let loaded = given.loaded.as_ref();
    let keys: Vec<Value> = lines
        .iter()
        .map(|l| json!({ "name": l.name, "file": l.file, "shape": l.shape, "fate": l.fate, "how": l.how }))
        .collect();
    json!({
        "path": given.path.display().to_string(),
        "format": loaded.map(|l| l.format.name()),
        "dialect": loaded.map(|l| l.translation.dialect.name()),
        "taken": loaded.and_then(|l| l.taken.clone()),
        "average": loaded.is_some_and(|l| l.average),
        "passed_over": loaded.map(|l| l.passed_over.clone()).unwrap_or_default(),
        "described_by": loaded.and_then(|l| l.card.source.as_ref()).map(|p| p.display().to_string()),
        "training": training(given),
        "classes": loaded.map(|l| l.card.classes.clone()).unwrap_or_default(),
        "model": facts.map(|f| json!({
            "embed_dim": f.embed_dim, "depth": f.depth, "num_heads": encoder.and_then(heads),
            "patch_size": [f.patch_size.0, f.patch_size.1], "channels": f.channels, "mlp_dim": f.mlp_dim,
            "image_size": encoder.map(|e| [e.geometry().image_size.0, e.geometry().image_size.1]), "class_token": f.class_token,
            "registers": f.registers, "layer_scale": f.layer_scale.is_some(), "final_norm": f.final_norm,
            "mask_token": f.mask_token, "decoder": f.decoder, "classes": f.classes,
        })),
        "keys": keys,
    })
}
