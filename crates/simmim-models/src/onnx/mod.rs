//! Models as ONNX, made from the engine's graph: there is no second description of them.

mod lower;
mod proto;
mod windows;

use crate::classifier::{ClassifierBuild, ClassifierConfig, classifier_graph};
use crate::encoder::{Encoder, EncoderOutputs, encoder_graph};
use crate::error::ModelError;
use crate::weights::Tensor;
use lower::Lowering;
use proto::{Attribute, Axis, Kind};
use simmim_engine::Graph;
use simmim_engine::ops::{GatherRows, MeanTokens};

/// Largest message that protocol buffers allow.
const LARGEST: usize = (2 << 30) - (1 << 20);

/// How 8-bit images become the model's input, where that is part of the ONNX model.
#[derive(Debug, Clone)]
pub struct Preprocessing {
    /// Mean of each channel, of values in 0 to 1.
    pub mean: Vec<f32>,
    /// Deviation of each channel.
    pub std: Vec<f32>,
}

/// An encoder. Input `images [batch, channels, height, width]`, normalised; with preprocessing `pixels [batch, height, width, channels]`
/// of 8 bits. Outputs `patch_tokens [batch, patches, dim]` after the last norm and `pooled [batch, dim]`, their mean. `parameters` gives
/// each parameter under its official name.
///
/// # Errors
/// [`ModelError::Geometry`] where parameters are missing or the model is too large for the format.
pub fn encoder_onnx(
    config: &Encoder,
    parameters: &dyn Fn(&str) -> Option<Vec<f32>>,
    preprocessing: Option<&Preprocessing>,
) -> Result<Vec<u8>, ModelError> {
    let mut graph = encoder_graph(config, 1, &EncoderOutputs::Norm)?;
    let geometry = config.geometry();
    let (tokens, prefix, cells) = (graph.outputs()[0].1, geometry.prefix(), geometry.cells());
    let kept = (prefix..prefix + cells).map(|t| t as i32).collect();
    let kept = graph.constant("patch_rows", &[1, cells], kept);
    let patches = graph.apply1(GatherRows, &[tokens, kept])?;
    let pooled = graph.apply1(MeanTokens { skip: prefix }, &[tokens])?;
    let (mut lowering, input) = begin(&graph, config, parameters, preprocessing)?;
    let dim = Axis::Fixed(geometry.width);
    for (name, value, axes) in [
        ("patch_tokens", patches, &[Axis::Named("batch"), Axis::Fixed(cells), dim][..]),
        ("pooled", pooled, &[Axis::Named("batch"), dim][..]),
    ] {
        let computed = lowering.name(value)?;
        lowering.builder.node("Identity", &[&computed], name, &[]);
        lowering.builder.output(name, axes);
    }
    finish(lowering, "encoder", vec![("input".to_owned(), input)])
}

/// A classifier. Inputs as [`encoder_onnx`]; outputs `logits` and `probabilities`, both `[batch, classes]`. The names of the classes stand in
/// the metadata under `classes`, as a JSON list.
///
/// # Errors
/// As [`encoder_onnx`].
pub fn classifier_onnx(
    config: &ClassifierConfig,
    classes: &[String],
    parameters: &dyn Fn(&str) -> Option<Vec<f32>>,
    preprocessing: Option<&Preprocessing>,
) -> Result<Vec<u8>, ModelError> {
    let build = ClassifierBuild { batch: 1, accumulation: None, train: false, average: false };
    let (graph, logits) = classifier_graph(config, build)?;
    let (mut lowering, input) = begin(&graph, &config.encoder, parameters, preprocessing)?;
    let computed = lowering.name(logits)?;
    let axes = [Axis::Named("batch"), Axis::Fixed(config.classes)];
    lowering.builder.node("Identity", &[&computed], "logits", &[]);
    lowering.builder.node("Softmax", &[&computed], "probabilities", &[("axis", Attribute::Int(-1))]);
    lowering.builder.output("logits", &axes);
    lowering.builder.output("probabilities", &axes);
    let classes = serde_json::Value::from(classes.to_vec()).to_string();
    finish(lowering, "classifier", vec![("input".to_owned(), input), ("classes".to_owned(), classes)])
}

/// Translates the graph behind its input, and says what the input is.
fn begin<'a>(
    graph: &'a Graph,
    config: &Encoder,
    parameters: &dyn Fn(&str) -> Option<Vec<f32>>,
    preprocessing: Option<&Preprocessing>,
) -> Result<(Lowering<'a>, String), ModelError> {
    let geometry = config.geometry();
    let (height, width) = geometry.image_size;
    let [batch, channels, rows, cols] =
        [Axis::Named("batch"), Axis::Fixed(geometry.channels), Axis::Fixed(height), Axis::Fixed(width)];
    let mut lowering = Lowering::new(graph, "images", parameters)?;
    let input = match preprocessing {
        None => {
            lowering.builder.input("images", Kind::Float, &[batch, channels, rows, cols]);
            format!("[batch, {}, {height}, {width}], normalised", geometry.channels)
        }
        Some(p) => {
            lowering.builder.input("pixels", Kind::Bytes, &[batch, rows, cols, channels]);
            normalise(&mut lowering, p, geometry.channels);
            format!("[batch, {height}, {width}, {}], 8 bits", geometry.channels)
        }
    };
    lowering.run()?;
    Ok((lowering, input))
}

/// `(pixels / 255 - mean) / std`, channels first.
fn normalise(lowering: &mut Lowering<'_>, p: &Preprocessing, channels: usize) {
    let plane = |data: Vec<f32>| Tensor { shape: vec![1, channels, 1, 1], data };
    let scale = plane(p.std.iter().map(|s| 1.0 / (255.0 * s)).collect());
    let shift = plane(p.mean.iter().zip(&p.std).map(|(m, s)| -m / s).collect());
    let (scale, shift) = (lowering.parameter("scale", &scale), lowering.parameter("shift", &shift));
    let floats = lowering.apply("Cast", &["pixels"], &[("to", Attribute::Int(Kind::Float as i64))]);
    let planes = lowering.apply("Transpose", &[&floats], &[("perm", Attribute::Ints(&[0, 3, 1, 2]))]);
    let scaled = lowering.apply("Mul", &[&planes, &scale], &[]);
    lowering.builder.node("Add", &[&scaled, &shift], "images", &[]);
}

fn finish(lowering: Lowering<'_>, name: &str, metadata: Vec<(String, String)>) -> Result<Vec<u8>, ModelError> {
    let bytes = lowering.builder.finish(name, &metadata);
    if bytes.len() > LARGEST {
        return Err(ModelError::geometry(
            format!("{} bytes are more than one ONNX file can hold", bytes.len()),
            "export to another format, such as timm",
        ));
    }
    Ok(bytes)
}
