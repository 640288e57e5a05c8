//! `simmim export`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{Export, ExportFormat, LogFormat};
use crate::commands::weights::{self, summary};
use crate::commands::{check_output, quoted};
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_data::demo_held_out;
use simmim_models::onnx::{Preprocessing, classifier_onnx, encoder_onnx};
use simmim_models::weights::{
    Folder, Images, May, Model, Purpose, SwinModel, Target, Tensor, Weights, normalises_pooled, with_our_names, write,
    write_for_torch,
};
use simmim_models::{ClassifierConfig, Encoder, Head, Mode, ModelError, ParameterSpec};
use simmim_train::Recipe;
use simmim_train::classify::ClassifierFile;
use simmim_train::recipe::{InterpolationKind, Statistic};
use std::path::Path;
use std::process::ExitCode;

/// A model with all that an export says about it.
struct Exported {
    encoder: Encoder,
    classifier: Option<ClassifierConfig>,
    purpose: Purpose,
    images: Images,
    weights: Weights,
}

pub(crate) fn run(a: &Export, format: LogFormat) -> Result<ExitCode, Failure> {
    let folder = matches!(a.format, ExportFormat::Timm | ExportFormat::Hf);
    for (given, name, of) in [
        (a.with_preprocessing, "--with-preprocessing", ExportFormat::Onnx),
        (a.per_block_tables, "--per-block-tables", ExportFormat::Official),
    ] {
        if given && a.format != of {
            return Err(Failure::input(format!("{name} says nothing for this format"), "leave it out"));
        }
    }
    if folder {
        free(&a.out)?;
    } else {
        check_output(&a.out)?;
    }
    let exported = match classifier(a)? {
        Some(classifier) => classifier,
        None => encoder(a, format)?,
    };
    let Exported { encoder, classifier, purpose, images, weights } = exported;
    let preprocessing =
        a.with_preprocessing.then(|| Preprocessing { mean: images.mean.clone(), std: images.std.clone() });
    if a.format == ExportFormat::Onnx {
        let parameters = |name: &str| weights.get(name).map(|t| t.data.clone());
        let bytes = match (&classifier, &purpose) {
            (Some(config), Purpose::Classifier(_, classes)) => {
                classifier_onnx(config, classes, &parameters, preprocessing.as_ref())?
            }
            _ => encoder_onnx(&encoder, &parameters, preprocessing.as_ref())?,
        };
        simmim_files::write(&a.out, &bytes).map_err(|e| Failure::running(format!("{}: {e}", a.out.display())))?;
        println!("ONNX model: {}", a.out.display());
        let path = quoted(&a.out);
        println!("in onnxruntime: onnxruntime.InferenceSession(\"{path}\")");
        return Ok(ExitCode::SUCCESS);
    }
    let model = match &encoder {
        Encoder::Vit(encoder) => Written::Vit(Model { encoder, purpose, images, weights }),
        Encoder::Swin(encoder) => Written::Swin(SwinModel { encoder, purpose, images, weights }),
    };
    match a.format {
        ExportFormat::Timm => finish(&a.out, &model.timm()?, format, "timm")?,
        ExportFormat::Hf => finish(&a.out, &model.hugging_face()?, format, "transformers")?,
        ExportFormat::Official | ExportFormat::Onnx => {
            write(&a.out, &model.official(a.per_block_tables))?;
            println!("weights in the names of microsoft/SimMIM: {}", a.out.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A model of either family to be written.
enum Written<'a> {
    Vit(Model<'a>),
    Swin(SwinModel<'a>),
}

impl Written<'_> {
    fn timm(&self) -> Result<Folder, ModelError> {
        match self {
            Self::Vit(model) => model.timm(),
            Self::Swin(model) => model.timm(),
        }
    }

    fn hugging_face(&self) -> Result<Folder, ModelError> {
        match self {
            Self::Vit(model) => model.hugging_face(),
            Self::Swin(model) => model.hugging_face(),
        }
    }

    /// A Swin transformer has its tables per block anyway.
    fn official(&self, per_block: bool) -> Weights {
        match self {
            Self::Vit(model) => model.official(per_block),
            Self::Swin(model) => model.official(),
        }
    }
}

/// Refuses a folder that holds something already.
fn free(out: &Path) -> Result<(), Failure> {
    let empty = || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if out.exists() && !empty() {
        return Err(Failure::input(format!("{} is there already", out.display()), "name a new folder"));
    }
    Ok(())
}

fn finish(out: &Path, folder: &Folder, format: LogFormat, library: &str) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| Failure::running(format!("{path}: {e}"))
    };
    std::fs::create_dir_all(out).map_err(failed(out))?;
    write_for_torch(&out.join("model.safetensors"), &folder.weights)?;
    for (name, content) in &folder.files {
        let path = out.join(name);
        simmim_files::write(&path, format!("{content:#}\n").as_bytes()).map_err(failed(&path))?;
    }
    if !folder.left.is_empty() {
        say(format, "message", &format!("without a place in {library}: {}", folder.left.join(", ")));
    }
    println!("{} for {library}: {}", folder.class, out.display());
    let path = serde_json::Value::from(out.display().to_string());
    println!("{}", snippet(folder, library, &path.to_string()));
    Ok(())
}

/// The call that loads the folder.
fn snippet(folder: &Folder, library: &str, path: &str) -> String {
    if library == "timm" {
        let path = path.trim_matches('"');
        return format!("in timm: timm.create_model(\"local-dir:{path}\", pretrained=True)");
    }
    let auto = match folder.class.split_once("For") {
        Some((_, "MaskedImageModeling")) => "AutoModelForMaskedImageModeling",
        Some((_, "ImageClassification")) => "AutoModelForImageClassification",
        _ => "AutoModel",
    };
    format!("in transformers: transformers.{auto}.from_pretrained({path})")
}

/// The classifier that the arguments name, if it is one of this program.
fn classifier(a: &Export) -> Result<Option<Exported>, Failure> {
    if a.weights.model.is_some() || a.weights.recipe.is_some() {
        return Ok(None);
    }
    let Ok(file) = ClassifierFile::read(&a.weights.weights) else { return Ok(None) };
    let config = file.recipe.classifier_config(file.classes.len())?;
    let weights = named(&config.parameters(), file.parameters(&a.weights.weights)?);
    let pool = config.pool;
    let images = images(&file.recipe, file.recipe.finetune.as_ref().map_or(1.0, |f| f.eval_crop))?;
    let encoder = config.used_encoder();
    let purpose = Purpose::Classifier(pool, file.classes);
    Ok(Some(Exported { encoder, classifier: Some(config), purpose, images, weights }))
}

/// The encoder that the arguments name, or the whole of SimMIM where it is there.
fn encoder(a: &Export, format: LogFormat) -> Result<Exported, Failure> {
    let weights::Model { recipe, config, given, .. } = weights::resolve(&a.weights)?;
    given.announce(format);
    if normalises_pooled(&given.weights) {
        weights::announce_encoder(&given.path, format);
    }
    let (specs, grid) = (config.parameters(), given.grid());
    let target = Target {
        path: &given.path,
        encoder: &config.encoder,
        specs: &specs,
        may: May::LackTask,
        grid,
        resize_patch: a.weights.resize_patch,
    };
    let fitted = target.fit(with_our_names(given.weights.clone()))?;
    say(format, "message", &summary(&fitted));
    let weights = named(&specs, fitted.tensors);
    let whole = weights.contains_key("encoder.mask_token") && weights.contains_key("decoder.0.weight");
    // Others have a head of one layer.
    let official = config.mode == Mode::Official && config.head == Head::Linear;
    let purpose = if whole && official { Purpose::Reconstruction } else { Purpose::Encoder };
    let images = images(&recipe, 1.0)?;
    Ok(Exported { encoder: config.encoder, classifier: None, purpose, images, weights })
}

fn named(specs: &[ParameterSpec], tensors: Vec<(String, Vec<f32>)>) -> Weights {
    let shape = |name: &str| specs.iter().find(|s| s.name == name).map(|s| s.shape.clone()).unwrap_or_default();
    tensors.into_iter().map(|(name, data)| (name.clone(), Tensor { shape: shape(&name), data })).collect()
}

/// How images are brought to the model.
fn images(recipe: &Recipe, crop: f64) -> Result<Images, Failure> {
    let mut recipe = recipe.clone();
    let unknown = |s: &Statistic| matches!(s, Statistic::Named(name) if name == "measure");
    if unknown(&recipe.data.mean) || unknown(&recipe.data.std) {
        return Err(Failure::input(
            "mean and deviation of the images are not known",
            "name them: --set data.mean=[...] --set data.std=[...]",
        ));
    }
    recipe.fix_statistics(&demo_held_out()?)?;
    let (mean, std) = recipe.statistics();
    Ok(Images { mean, std, bicubic: recipe.data.interpolation == InterpolationKind::Bicubic, crop })
}
