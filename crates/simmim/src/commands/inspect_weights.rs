//! `simmim inspect --weights`: what a file is, and what becomes of its tensors.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Inspect;
use crate::commands::weights::{Given, origin, recipe_for};
use crate::diagnostics::Failure;
use serde_json::{Value, json};
use simmim_models::swin::Version;
use simmim_models::weights::{Facts, Fate, Loaded, May, Structure, SwinFacts, Target, Weights, with_our_names};
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
fn own(given: &Given, facts: Option<&Structure>) -> Option<(Encoder, Vec<ParameterSpec>)> {
    let of_recipe = given.recipe.as_ref().map(Recipe::encoder_config);
    let encoder = of_recipe.or_else(|| given.loaded.as_ref().and_then(Loaded::encoder))?;
    let specs = match facts.and_then(Structure::classes).filter(|&n| n >= 2) {
        Some(classes) => {
            let pooled_norm = matches!(facts, Some(Structure::Vit(f)) if f.pooled_norm);
            let pool = if pooled_norm || !encoder.geometry().class_token { Pool::Mean } else { Pool::Cls };
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

/// The architecture in words.
fn architecture(structure: &Structure, encoder: Option<&Encoder>) -> String {
    match structure {
        Structure::Vit(facts) => vit_in_words(facts, encoder),
        Structure::Swin(facts) => swin_in_words(facts, encoder),
    }
}

const UNKNOWN: &str = "not known (name the model by --recipe or --set model.name)";

fn images_of(encoder: &Encoder) -> String {
    let (height, width) = encoder.geometry().image_size;
    format!("images of {height}x{width}")
}

fn swin_in_words(f: &SwinFacts, encoder: Option<&Encoder>) -> String {
    let sizes = match encoder {
        Some(Encoder::Swin(c)) => {
            format!("windows of {0}x{0}, {1}", c.window_size, images_of(&Encoder::Swin(c.clone())))
        }
        _ => format!("windows and images {UNKNOWN}"),
    };
    let version = if f.version == Version::V1 { "" } else { " v2" };
    let list = |values: &[usize]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut parts = vec![format!(
        "Swin transformer{version}, stages of {} blocks with {} heads, first width {}, patches of {}x{} with {} channels, {sizes}",
        list(&f.depths),
        list(&f.num_heads),
        f.embed_dim,
        f.patch_size.0,
        f.patch_size.1,
        f.channels
    )];
    if f.places.is_some() {
        parts.push("absolute positions".to_owned());
    }
    parts.extend(of_task(f.mask_token && f.decoder, f.classes));
    parts.join(", ")
}

fn of_task(simmim: bool, classes: Option<usize>) -> Vec<String> {
    let mut parts = Vec::new();
    if simmim {
        parts.push("mask token and head of SimMIM".to_owned());
    }
    if let Some(classes) = classes {
        parts.push(format!("classifier of {classes} classes"));
    }
    parts
}

fn vit_in_words(f: &Facts, encoder: Option<&Encoder>) -> String {
    let heads = match encoder {
        Some(Encoder::Vit(c)) => format!("{} heads, {}", c.num_heads, images_of(&Encoder::Vit(c.clone()))),
        _ => format!("heads {UNKNOWN}"),
    };
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
    parts.extend(of_task(f.mask_token && f.decoder, f.classes));
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

fn print(given: &Given, facts: Option<&Structure>, encoder: Option<&Encoder>, lines: &[Line]) {
    println!("weights      {}", given.path.display());
    println!("format       {}", format_of(given));
    if let Some(facts) = facts {
        println!("model        {}", architecture(facts, encoder));
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

fn as_json(given: &Given, facts: Option<&Structure>, encoder: Option<&Encoder>, lines: &[Line]) -> Value {
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
        "model": facts.map(|f| model_as_json(f, encoder)),
        "keys": keys,
    })
}

fn model_as_json(structure: &Structure, encoder: Option<&Encoder>) -> Value {
    let image_size = encoder.map(|e| [e.geometry().image_size.0, e.geometry().image_size.1]);
    match structure {
        Structure::Vit(f) => {
            let heads = if let Some(Encoder::Vit(c)) = encoder { Some(c.num_heads) } else { None };
            json!({
                "family": "vit", "embed_dim": f.embed_dim, "depth": f.depth, "num_heads": heads,
                "patch_size": [f.patch_size.0, f.patch_size.1], "channels": f.channels, "mlp_dim": f.mlp_dim,
                "image_size": image_size, "class_token": f.class_token,
                "registers": f.registers, "layer_scale": f.layer_scale.is_some(), "final_norm": f.final_norm,
                "mask_token": f.mask_token, "decoder": f.decoder, "classes": f.classes,
            })
        }
        Structure::Swin(f) => {
            let swin = if let Some(Encoder::Swin(c)) = encoder { Some(c) } else { None };
            json!({
                "family": if f.version == Version::V1 { "swin" } else { "swinv2" },
                "embed_dim": f.embed_dim, "depths": f.depths, "num_heads": f.num_heads,
                "patch_size": [f.patch_size.0, f.patch_size.1], "channels": f.channels, "mlp_dim": f.mlp_dim,
                "image_size": image_size, "window_size": swin.map(|c| c.window_size),
                "pretrained_windows": swin.map(|c| c.pretrained_windows.clone()), "final_norm": f.final_norm,
                "mask_token": f.mask_token, "decoder": f.decoder, "classes": f.classes,
            })
        }
    }
}
