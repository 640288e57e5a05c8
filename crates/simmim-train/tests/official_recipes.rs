//! Ten steps of every official recipe, narrowed, against the official code (`fixtures/scripts/make_recipes.py`): the recipe as a user
//! names it, through schedule, layer decay, loss and optimiser. Weights, images, masks and targets are hashes of names, as in the script.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use serde_json::Value;
use simmim_engine::cpu::CpuExecutor;
use simmim_models::ParameterSpec;
use simmim_models::optimizer::Rate;
use simmim_train::{Classifier, Recipe, Session, StepResult};
use std::collections::BTreeMap;

const BATCH: usize = 2;
const CLASSES: usize = 10;
/// Images of ImageNet-1k in batches of 2048.
const STEPS_PER_EPOCH: u64 = 1_281_167 / 2048;

/// `count` numbers in -1..1: FNV-1a of the name, then the finaliser of MurmurHash3 over the index.
fn hashed(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let number = |i: usize| {
        let mut x = (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 16;
        f64::from(x >> 8) / f64::from(1 << 23) - 1.0
    };
    (0..count).map(number).collect()
}

fn drawn(p: &ParameterSpec) -> Vec<f32> {
    let fan_in = p.len() / p.shape[0];
    let value = |u: f64| match &p.name {
        name if name.contains("logit_scale") => 2.0 + 0.25 * u,
        name if name.contains("gamma") => 0.125 + 0.0625 * u,
        _ if p.shape.len() > 1 => u * (1.5 / (fan_in as f64).sqrt()),
        name if name.ends_with(".weight") => 1.0 + 0.25 * u,
        _ => 0.125 * u,
    };
    hashed(&p.name, p.len()).into_iter().map(|u| value(u) as f32).collect()
}

/// The model of a recipe with what it is trained on.
enum Model {
    SimMim { session: Box<Session>, masks: Vec<Vec<bool>> },
    Classifier { classifier: Box<Classifier>, targets: Vec<f32> },
}

impl Model {
    fn new(recipe: &Recipe) -> Self {
        let executor = Box::new(CpuExecutor::new(2).unwrap());
        let mut model = if recipe.finetune.is_none() {
            let config = recipe.simmim_config().unwrap();
            let mut session = Session::new(executor, config, 0).unwrap();
            session.prepare_training(BATCH, 1, recipe.adamw()).unwrap();
            let masks = (0..BATCH).map(|image| mask(session.config(), image)).collect();
            Self::SimMim { session: Box::new(session), masks }
        } else {
            let mut classifier = Classifier::new(executor, recipe.classifier_config(CLASSES).unwrap(), 0).unwrap();
            classifier.prepare_training(BATCH, 1, recipe.adamw(), 0.0).unwrap();
            let raw: Vec<f64> = hashed("targets", BATCH * CLASSES).into_iter().map(|u| 1.0 + u).collect();
            let row = |row: &[f64]| row.iter().map(|v| (v / row.iter().sum::<f64>()) as f32).collect::<Vec<_>>();
            Self::Classifier {
                classifier: Box::new(classifier),
                targets: raw.chunks_exact(CLASSES).flat_map(row).collect(),
            }
        };
        let weights = model.parameters().iter().map(|p| (p.name.clone(), drawn(p))).collect();
        model.device().set_weights(weights).unwrap();
        model
    }

    fn device(&mut self) -> &mut simmim_train::Device {
        match self {
            Self::SimMim { session, .. } => session.device_mut(),
            Self::Classifier { classifier, .. } => classifier.device_mut(),
        }
    }

    /// In the order of their names.
    fn parameters(&mut self) -> Vec<ParameterSpec> {
        let mut list = self.device().parameters().to_vec();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn step(&mut self, images: &[f32], step: u64, rate: Rate) -> StepResult {
        match self {
            Self::SimMim { session, masks } => session.train_step(images, masks, 0, step, rate).unwrap(),
            Self::Classifier { classifier, targets } => {
                classifier.accumulate(images, targets, &[0, 1], 0, step).unwrap();
                classifier.update(step, rate).unwrap()
            }
        }
    }
}

/// The mask of an image over patches: the cells with the smallest hashes are hidden.
fn mask(config: &simmim_models::SimMimConfig, image: usize) -> Vec<bool> {
    let (rows, cols) = config.encoder.geometry().patch_grid();
    let (down, right) = config.tokens_per_cell();
    let (cell_rows, cell_cols) = (rows / down, cols / right);
    let hashes = hashed(&format!("mask.{image}"), cell_rows * cell_cols);
    let mut order: Vec<usize> = (0..hashes.len()).collect();
    order.sort_by(|&a, &b| hashes[a].total_cmp(&hashes[b]));
    let hidden = &order[..(hashes.len() as f64 * config.mask_ratio).ceil() as usize];
    let cell = |t: usize| t / cols / down * cell_cols + t % cols / right;
    (0..rows * cols).map(|t| hidden.contains(&cell(t))).collect()
}

fn ten_steps(name: &str, truth: &Value) {
    let model = &truth["model"];
    let set = [
        format!("model.embed_dim={}", model["embed_dim"]),
        format!("model.num_heads={}", model["num_heads"]),
        "model.drop_path=0.0".to_owned(),
    ];
    let recipe = Recipe::resolve(name, &set).unwrap();
    let mut model = Model::new(&recipe);
    let parameters = model.parameters();
    let numbers = |key: &str| truth[key].as_array().unwrap().iter().map(Value::as_f64).collect::<Vec<_>>();
    let (scales, moved, decays) = (numbers("scales"), numbers("moved"), truth["decays"].as_str().unwrap());
    assert_eq!(parameters.len(), decays.len(), "{name}");
    for ((p, scale), (decay, moved)) in parameters.iter().zip(&scales).zip(decays.bytes().zip(&moved)) {
        assert_eq!(p.decay, decay == b'1', "{name}: decay of {}", p.name);
        assert!((f64::from(p.lr_scale) / scale.unwrap() - 1.0).abs() < 1e-5, "{name}: rate of {}", p.name);
        assert_eq!(p.used, moved.is_some(), "{name}: use of {}", p.name);
    }
    let size = recipe.transform().size;
    let images: Vec<f32> = hashed("images", BATCH * 3 * size.0 * size.1).iter().map(|u| (2.0 * u) as f32).collect();
    let schedule = recipe.learning_rate(STEPS_PER_EPOCH);
    let (losses, norms) = (numbers("losses"), numbers("norms"));
    for (step, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
        let rate = schedule.at(step as u64 * schedule.total_steps / 10 + schedule.total_steps / 20);
        let slowest = parameters.iter().map(|p| f64::from(p.lr_scale)).fold(1.0, f64::min);
        let official = &truth["rates"][step];
        for (found, official) in
            [(rate.lr, &official[0]), (rate.lr * slowest + rate.floor * (1.0 - slowest), &official[1])]
        {
            let official = official.as_f64().unwrap();
            assert!(
                (found / official - 1.0).abs() < 1e-6,
                "{name}: rate of step {step} is {found:e}, not {official:e}"
            );
        }
        let found = model.step(&images, step as u64, rate);
        let (loss, norm) = (loss.unwrap(), norm.unwrap());
        let error = [f64::from(found.loss) / loss - 1.0, f64::from(found.grad_norm) / norm - 1.0];
        assert!(error[0].abs() < 1e-5, "{name}: loss of step {step} is {}, not {loss} ({:e})", found.loss, error[0]);
        // Rounding turns the sign of differences that are nearly zero, which is all that their gradient under L1 consists of.
        assert!(
            error[1].abs() < 5e-3,
            "{name}: norm of step {step} is {}, not {norm} ({:e})",
            found.grad_norm,
            error[1]
        );
    }
    for (p, moved) in parameters.iter().zip(moved).filter_map(|(p, moved)| Some((p, moved?))) {
        let (now, before) = (model.device().read_tensor(&p.name).unwrap(), drawn(p));
        let change: f64 = now.iter().zip(&before).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let error = change.sqrt() / moved - 1.0;
        // The slowest move norms of about 1 by a few of their last bits.
        assert!(error.abs() < 0.03, "{name}: {} moved by {}, not {moved}", p.name, change.sqrt());
    }
}

#[test]
fn official_recipes_train_as_the_official_code() {
    let text = std::fs::read_to_string(simmim_testing::fixtures().join("official_recipes.json")).unwrap();
    let truth: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    for (name, truth) in &truth {
        ten_steps(name, truth);
    }
}
