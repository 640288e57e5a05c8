//! Linear probes at shares of the labels, on features that are made once.

use crate::arguments::{Compare, LogFormat, WeightsOf};
use crate::commands::features::{Maker, RANDOM, TRAINED};
use crate::commands::fits::Fits;
use crate::commands::probe::layers;
use crate::commands::weights;
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_data::Source;
use simmim_train::classify::{Arm, ArmResult, Method};
use simmim_train::features::{Features, Layer, Matrix, Pooling, pixels};
use simmim_train::probe::linear::MOST_ITERATIONS;
use simmim_train::probe::{Methods, Prober, folds, pixel_transform};
use simmim_train::{LabelledData, RunFolder};
use std::path::Path;
use std::time::Instant;

/// Images in a pass of the encoder.
const BATCH: usize = 64;

/// Features of the images that may be asked for: a matrix a layer; raw pixels are one without a layer.
struct Bank {
    arm: Arm,
    layers: Vec<Option<Layer>>,
    train: Vec<Matrix>,
    val: Vec<Matrix>,
    /// The layer that is taken where no image can be held out to select one.
    fallback: usize,
}

/// Everything that probes need.
pub(super) struct Probes {
    banks: Vec<Bank>,
    /// Training images of the rows, ascending.
    images: Vec<usize>,
    train_labels: Vec<usize>,
    val_labels: Vec<usize>,
    classes: usize,
    threads: usize,
    format: LogFormat,
}

/// The arms that are probed.
pub(super) const ARMS: [Arm; 3] = [Arm::Pretrained, Arm::Pixels, Arm::Random];

/// The weights as `simmim probe` takes them: at the size of images that they were trained on.
fn weights_of(a: &Compare) -> WeightsOf {
    let model = a.start.model.clone();
    let run = model.as_deref().map(Path::new).filter(|m| RunFolder::is_run(m));
    WeightsOf {
        weights: a.weights.clone(),
        recipe: run.map(|run| run.join("config.toml").display().to_string()),
        model: if run.is_some() { None } else { model },
        image_size: None,
        resize_patch: a.start.resize_patch,
        set: Vec::new(),
        device: a.start.device.clone(),
    }
}

/// Refuses layers that the encoder lacks, before anything is written.
pub(super) fn check(a: &Compare, data: &LabelledData, format: LogFormat) -> Result<(), Failure> {
    let model = weights::encoder(&weights_of(a), &data.train)?;
    model.announce(format);
    layers(&a.layers, &model).map(|_| ())
}

/// The matrices at chosen images. Those that could not be read were left out of the features.
fn at(features: &Features, images: &[usize]) -> Vec<Matrix> {
    let rows: Vec<usize> = images.iter().filter_map(|i| features.images.binary_search(i).ok()).collect();
    features.layers.iter().map(|m| m.select(&rows)).collect()
}

impl Probes {
    /// Makes the features of all images, or takes them from the run's folder, and keeps those of `wanted` training images (ascending)
    /// and `measured` validation images.
    pub(super) fn prepare(
        a: &Compare,
        data: &LabelledData,
        wanted: &[usize],
        measured: &[usize],
        format: LogFormat,
    ) -> Result<Self, Failure> {
        let model = weights::encoder(&weights_of(a), &data.train)?;
        let layers = layers(&a.layers, &model)?;
        let depth = model.encoder.depth();
        let middle = Layer::Block((2 * depth).div_ceil(3));
        let fallback = layers.iter().position(|l| *l == middle).unwrap_or(layers.len() / 2);
        let seed = model.recipe.train.seed;
        let random: Vec<(String, Vec<f32>)> =
            model.config.parameters().iter().map(|p| (p.name.clone(), p.initial(seed))).collect();
        let (mut banks, mut images, mut val_images) = (Vec::new(), Vec::new(), Vec::new());
        for (arm, tensors, role) in [(Arm::Pretrained, &model.tensors, TRAINED), (Arm::Random, &random, RANDOM)] {
            let how = (layers.clone(), Pooling::Mean, BATCH);
            let mut maker = Maker::new(&model, (tensors, role), how, &a.start.device, format);
            let (train, val) = (maker.of(&data.train, "TRAIN")?, maker.of(&data.val, "VAL")?);
            let readable = |f: &Features, all: &[usize]| {
                all.iter().copied().filter(|i| f.images.binary_search(i).is_ok()).collect::<Vec<_>>()
            };
            (images, val_images) = (readable(&train, wanted), readable(&val, measured));
            let (train, val) = (at(&train, &images), at(&val, &val_images));
            banks.push(Bank { arm, layers: layers.iter().copied().map(Some).collect(), train, val, fallback });
        }
        let transform = pixel_transform(&model.recipe.transform());
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let of = |source: &dyn Source, images: &[usize]| {
            Ok::<_, Failure>(pixels(source, images, &transform, threads)?.layers)
        };
        let (train, val) = (of(&data.train, &images)?, of(&data.val, &val_images)?);
        banks.push(Bank { arm: Arm::Pixels, layers: vec![None], train, val, fallback: 0 });
        let labels = |all: &[usize], images: &[usize]| images.iter().map(|&i| all[i]).collect();
        Ok(Self {
            banks,
            train_labels: labels(data.train.labels(), &images),
            val_labels: labels(data.val.labels(), &val_images),
            images,
            classes: data.train.class_names().len(),
            threads: a.start.device.threads,
            format,
        })
    }

    /// One probe on the labels of some images: layer and l2 are chosen on a part of them.
    pub(super) fn run(&self, share: f64, seed: u64, images: &[usize], arm: Arm) -> Result<ArmResult, Failure> {
        let start = Instant::now();
        let bank = self.banks.iter().find(|b| b.arm == arm);
        let bank = bank.ok_or_else(|| Failure::running("internal: an arm that is not probed"))?;
        let rows: Vec<usize> = images.iter().filter_map(|i| self.images.binary_search(i).ok()).collect();
        let labels: Vec<usize> = rows.iter().map(|&r| self.train_labels[r]).collect();
        let linear = Methods { knn: false, linear: true };
        let (train, val) = (labels.clone(), self.val_labels.clone());
        let mut counts = vec![0; self.classes];
        labels.iter().for_each(|&l| counts[l] += 1);
        let several = counts.iter().any(|&n| n > 1);
        let parts = if several { folds(&labels, self.classes, seed)? } else { Vec::new() };
        let prober = Prober::new(self.threads, linear, self.classes, train, val, parts);
        let candidates: Vec<(Matrix, &Matrix)> = bank.train.iter().map(|m| m.select(&rows)).zip(&bank.val).collect();
        let mut fits = Fits::new(self.format, false, 1.0);
        let (chosen, score) =
            fits.rate(arm.title(), 1.0, |watch| prober.best_linear(&candidates, bank.fallback, watch))?;
        if score.capped > 0 {
            let text = format!(
                "{}: {} fits ended after {MOST_ITERATIONS} iterations, before the minimum",
                arm.title(),
                score.capped
            );
            say(self.format, "warning", &text);
        }
        Ok(ArmResult {
            share,
            images: images.len(),
            seed,
            method: Method::Probe,
            arm,
            top1: score.val_accuracy,
            steps: 0,
            seconds: start.elapsed().as_secs_f64(),
            lr: None,
            layer: bank.layers[chosen].map(Layer::number),
            l2: Some(score.l2),
        })
    }
}
