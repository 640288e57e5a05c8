//! The models against numbers made by PyTorch and timm (`fixtures/scripts/make_models.py`, `make_swin.py`), in both descriptions of the step.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

mod fixture_model;

use fixture_model::{config, gradient_limit, masks};
use simmim_engine::autodiff::{GRADIENT_PREFIX, differentiate};
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::{Executor, Program, ProgramId};
use simmim_models::encoder::{EncoderOutputs, encoder_graph};
use simmim_models::names::{GRADIENT_NORM, IMAGES, LOSS, PREDICTION, STEP};
use simmim_models::optimizer::{AdamWConfig, update_graph};
use simmim_models::simmim::{Build, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_models::{Area, ParameterSpec, SimMimConfig, VitConfig};
use simmim_testing::{Fixture, relative_error};

const MODELS: [&str; 18] = [
    "tutorial_vit",
    "tutorial_vit_5ch_nonsquare",
    "tutorial_vit_1ch_rectpatch",
    "tutorial_vit_l2_full",
    "tutorial_vit_depth1",
    "tutorial_vit_wide",
    "official_vit",
    "official_vit_per_block_bias",
    "official_vit_absolute",
    "official_vit_no_class_full",
    "swin_window4",
    "swin_window6_absolute",
    "swin_window7_padded",
    "swin_three_stages_nonsquare",
    "swinv2_window4",
    "swinv2_window6_normalized",
    "swinv2_window7_padded",
    "swinv2_nonsquare",
];

struct Step {
    executor: CpuExecutor,
    step: ProgramId,
    update: ProgramId,
    parameters: Vec<ParameterSpec>,
    config: SimMimConfig,
    variant: Variant,
    adamw: AdamWConfig,
}

impl Step {
    fn new(fixture: &Fixture, variant: Variant) -> Self {
        let config = config(&fixture.config);
        let parameters = config.parameters();
        let build = Build { batch: fixture.ints["mask"].0[0], variant, accumulation: 1, train: true, outputs: true };
        let (mut graph, loss) = simmim_graph(&config, build).unwrap();
        differentiate(&mut graph, loss).unwrap();
        let adamw = AdamWConfig {
            clip_norm: Some(fixture.config["clip_norm"].as_f64().unwrap() as f32),
            ..AdamWConfig::default()
        };
        let mut executor = CpuExecutor::new(2).unwrap();
        let step = executor.load(Program::compile(&graph).unwrap()).unwrap();
        let update = Program::compile(&update_graph(&parameters, &adamw).unwrap()).unwrap();
        let update = executor.load(update).unwrap();
        for p in parameters.iter().filter(|p| p.used) {
            let (shape, data) = &fixture.floats[&format!("param.{}", p.name)];
            assert_eq!(*shape, p.shape, "{}", p.name);
            executor.write_state(&p.name, data).unwrap();
        }
        Self { executor, step, update, parameters, config, variant, adamw }
    }

    fn loss(&mut self, fixture: &Fixture) -> f32 {
        let mut indices = StepIndices::default();
        indices.fill(&self.config, self.variant, &masks(fixture, &self.config)).unwrap();
        let images = self.executor.input(self.step, IMAGES).unwrap();
        self.executor.write(images, &fixture.floats["images"].1).unwrap();
        let slots = StepSlots::find(&self.executor, self.step).unwrap();
        indices.write(&mut self.executor, &slots).unwrap();
        self.executor.run(self.step).unwrap();
        let mut loss = [0.0];
        self.executor.read(self.executor.output(self.step, LOSS).unwrap(), &mut loss).unwrap();
        loss[0]
    }

    fn state(&mut self, name: &str, len: usize) -> Vec<f32> {
        let mut data = vec![0.0; len];
        self.executor.read_state(name, &mut data).unwrap();
        data
    }
}

/// The largest error with the name it belongs to.
fn worst(errors: impl IntoIterator<Item = (String, f64)>) -> (String, f64) {
    errors.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

#[test]
fn loss_prediction_and_gradients_are_pytorchs() {
    for (name, variant) in MODELS.iter().flat_map(|n| [(n, Variant::Fast), (n, Variant::Plain)]) {
        let fixture = Fixture::load(name);
        let mut step = Step::new(&fixture, variant);
        let loss = step.loss(&fixture);
        let truth = fixture.floats["loss"].1[0];
        assert!((loss / truth - 1.0).abs() < 2e-6, "{name} {variant:?}: loss {loss}, expected {truth}");
        check_prediction(&fixture, &mut step, name);
        let parameters = step.parameters.clone();
        let errors = parameters.iter().filter(|p| p.used).map(|p| {
            let found = step.state(&format!("{GRADIENT_PREFIX}{}", p.name), p.len());
            (p.name.clone(), relative_error(&found, &fixture.floats[&format!("grad.{}", p.name)].1))
        });
        let (tensor, error) = worst(errors.collect::<Vec<_>>());
        assert!(error < gradient_limit(name), "{name} {variant:?}: gradient of {tensor} is off by {error:e}");
    }
}

fn check_prediction(fixture: &Fixture, step: &mut Step, name: &str) {
    let (shape, all) = &fixture.floats["prediction"];
    let geometry = step.config.encoder.geometry();
    let masks = masks(fixture, &step.config);
    let cells = masks.iter().flat_map(|mask| (0..geometry.cells()).map(|cell| mask[geometry.first_patch(cell)]));
    let plain = step.variant == Variant::Plain || step.config.area == Area::Full;
    let expected: Vec<f32> = all
        .chunks_exact(shape[2])
        .zip(cells)
        .filter(|(_, masked)| plain || *masked)
        .flat_map(|(row, _)| row.to_vec())
        .collect();
    let mut found = vec![0.0; expected.len()];
    let prediction = step.executor.output(step.step, PREDICTION).unwrap();
    step.executor.read(prediction, &mut found).unwrap();
    let error = relative_error(&found, &expected);
    assert!(error < 2e-6, "{name}: prediction is off by {error:e}");
}

#[test]
fn ten_clipped_adamw_steps_are_pytorchs() {
    for name in MODELS {
        let fixture = Fixture::load(name);
        let mut step = Step::new(&fixture, Variant::Fast);
        for t in 0..10 {
            let loss = step.loss(&fixture);
            let truth = fixture.floats["losses10"].1[t];
            assert!((loss / truth - 1.0).abs() < 1e-4, "{name}: loss of step {t} is {loss}, expected {truth}");
            let lr = fixture.config["lr"].as_f64().unwrap_or(1e-3);
            let input = step.adamw.step_input(lr, t as u64 + 1);
            step.executor.write(step.executor.input(step.update, STEP).unwrap(), &input).unwrap();
            step.executor.run(step.update).unwrap();
            let mut norm = [0.0];
            step.executor.read(step.executor.output(step.update, GRADIENT_NORM).unwrap(), &mut norm).unwrap();
            let truth = fixture.floats["grad_norms10"].1[t];
            // A difference that rounding moves across zero flips its whole L1 gradient, so the norm is less smooth than the loss.
            assert!((norm[0] / truth - 1.0).abs() < 5e-3, "{name}: norm of step {t} is {}, expected {truth}", norm[0]);
        }
        let parameters = step.parameters.clone();
        let errors = parameters.iter().filter(|p| p.used).map(|p| {
            let mut found = step.state(&p.name, p.len());
            let truth = &fixture.floats[&format!("after10.{}", p.name)].1;
            if p.name.ends_with("qkv.bias") {
                // The gradient of the key bias is zero but for rounding, which AdamW blows up to steps of either sign.
                let third = found.len() / 3;
                found[third..2 * third].copy_from_slice(&truth[third..2 * third]);
            }
            (p.name.clone(), relative_error(&found, truth))
        });
        let (tensor, error) = worst(errors.collect::<Vec<_>>());
        assert!(error < 1e-4, "{name}: {tensor} is off by {error:e} after ten steps");
    }
}

#[test]
fn unused_parameters_are_those_without_a_gradient_in_pytorch() {
    for name in MODELS {
        let fixture = Fixture::load(name);
        let mut unused: Vec<String> =
            config(&fixture.config).parameters().into_iter().filter(|p| !p.used).map(|p| p.name).collect();
        let truth = fixture.config["unused"].as_array();
        let mut truth: Vec<String> = truth.into_iter().flatten().map(|v| v.as_str().unwrap().to_owned()).collect();
        unused.sort();
        truth.sort();
        assert_eq!(unused, truth, "{name}");
    }
}

#[test]
fn weight_decay_of_swin_is_the_official_one() {
    for name in MODELS.into_iter().filter(|name| name.starts_with("swin")) {
        let fixture = Fixture::load(name);
        let parameters = config(&fixture.config).parameters();
        assert_eq!(parameters.len(), fixture.config["decays"].as_object().unwrap().len(), "{name}");
        for p in parameters {
            assert_eq!(p.decay, fixture.config["decays"][&p.name].as_bool().unwrap(), "{name}: {}", p.name);
        }
    }
}

#[test]
fn features_are_timms() {
    for name in ["features_class_token", "features_no_class_token"] {
        let fixture = Fixture::load(name);
        let config = VitConfig {
            image_size: (16, 24),
            patch_size: (8, 8),
            embed_dim: 16,
            depth: 3,
            num_heads: 2,
            class_token: fixture.config["class_token"].as_bool().unwrap(),
            ..VitConfig::preset("vit_tiny_patch8_16").unwrap()
        };
        for outputs in [EncoderOutputs::Blocks(vec![1, 2, 3]), EncoderOutputs::Norm] {
            let graph = encoder_graph(&config.clone().into(), 2, &outputs).unwrap();
            let mut executor = CpuExecutor::new(1).unwrap();
            let id = executor.load(Program::compile(&graph).unwrap()).unwrap();
            for (key, (_, data)) in fixture.floats.iter().filter(|(k, _)| k.starts_with("param.")) {
                let state = format!("encoder.{}", &key["param.".len()..]);
                // The final norm is not part of the graph of the blocks.
                if graph.values().iter().any(|v| v.name == state) {
                    executor.write_state(&state, data).unwrap();
                }
            }
            executor.write(executor.input(id, IMAGES).unwrap(), &fixture.floats["images"].1).unwrap();
            executor.run(id).unwrap();
            for (output, value) in graph.outputs() {
                let mut found = vec![0.0; graph.ty(*value).len()];
                executor.read(executor.output(id, output).unwrap(), &mut found).unwrap();
                let error = relative_error(&found, &fixture.floats[output].1);
                assert!(error < 1e-6, "{name} {output}: {error:e}");
            }
        }
    }
}
