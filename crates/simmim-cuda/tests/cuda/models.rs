//! Whole models: against PyTorch's numbers, against the processor, both descriptions of a step, and a resume.

#[path = "../../../simmim-models/tests/fixture_model/mod.rs"]
mod fixture_model;

use crate::{emulator, executor};
use fixture_model::{config, gradient_limit, masks};
use simmim_cuda::Products;
use simmim_engine::autodiff::{GRADIENT_PREFIX, differentiate};
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::mixed::{copies, keep_copies};
use simmim_engine::{Executor, InputSlot, OutputSlot, Program, ProgramId};
use simmim_models::names::{FIRST_MOMENT_PREFIX, GRADIENT_NORM, IMAGES, LOSS, SECOND_MOMENT_PREFIX, STEP};
use simmim_models::optimizer::{AdamWConfig, sum_loss, update_graph};
use simmim_models::simmim::{Build, Loss, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_models::{ParameterSpec, Precision};
use simmim_testing::{Fixture, relative_error};

/// The training of a fixture's model on its images.
struct Training {
    executor: Box<dyn Executor>,
    step: ProgramId,
    update: ProgramId,
    images: InputSlot,
    indices: (StepIndices, StepSlots),
    rate: InputSlot,
    results: [OutputSlot; 2],
    parameters: Vec<ParameterSpec>,
    pixels: Vec<f32>,
    adamw: AdamWConfig,
    lr: f64,
}

impl Training {
    fn new(executor: Box<dyn Executor>, fixture: &Fixture, variant: Variant) -> Self {
        Self::with(executor, fixture, variant, Precision::Float32, None)
    }

    /// In that precision, with another loss than the fixture's where one is given.
    fn with(
        mut executor: Box<dyn Executor>,
        fixture: &Fixture,
        variant: Variant,
        precision: Precision,
        loss: Option<Loss>,
    ) -> Self {
        let mut config = config(&fixture.config);
        config.loss = loss.unwrap_or(config.loss);
        let build = Build { batch: fixture.ints["mask"].0[0], variant, accumulation: 1, train: true, outputs: false };
        let (mut graph, loss) = simmim_graph(&config, build).unwrap();
        differentiate(&mut graph, loss).unwrap();
        sum_loss(&mut graph, loss).unwrap();
        let clip_norm = Some(fixture.config["clip_norm"].as_f64().unwrap() as f32);
        let adamw = AdamWConfig { clip_norm, ..AdamWConfig::default() };
        let parameters: Vec<ParameterSpec> = config.parameters().into_iter().filter(|p| p.used).collect();
        let graph = precision.lower(&graph).unwrap();
        let step = executor.load(Program::compile(&graph).unwrap()).unwrap();
        let update = keep_copies(&update_graph(&parameters, &adamw).unwrap(), &copies(&graph)).unwrap();
        let update = Program::compile(&update).unwrap();
        let update = executor.load(update).unwrap();
        for p in &parameters {
            executor.write_state(&p.name, &fixture.floats[&format!("param.{}", p.name)].1).unwrap();
        }
        let mut indices = StepIndices::default();
        indices.fill(&config, variant, &masks(fixture, &config)).unwrap();
        Self {
            images: executor.input(step, IMAGES).unwrap(),
            indices: (indices, StepSlots::find(&*executor, step).unwrap()),
            rate: executor.input(update, STEP).unwrap(),
            results: [LOSS, GRADIENT_NORM].map(|name| executor.output(update, name).unwrap()),
            pixels: fixture.floats["images"].1.clone(),
            executor,
            step,
            update,
            parameters,
            adamw,
            lr: fixture.config["lr"].as_f64().unwrap_or(1e-3),
        }
    }

    /// Adds the gradients of the images.
    fn accumulate(&mut self) {
        self.executor.write(self.images, &self.pixels).unwrap();
        self.indices.0.write(&mut *self.executor, &self.indices.1).unwrap();
        self.executor.run(self.step).unwrap();
    }

    /// Moves the parameters; loss and norm of the step.
    fn update(&mut self, at: u64) -> [f32; 2] {
        self.executor.write(self.rate, &self.adamw.step_input(self.lr, at + 1)).unwrap();
        self.executor.run(self.update).unwrap();
        self.results.map(|slot| {
            let mut value = [0.0];
            self.executor.read(slot, &mut value).unwrap();
            value[0]
        })
    }

    fn steps(&mut self, steps: std::ops::Range<u64>) -> Vec<[f32; 2]> {
        let step = |at| {
            self.accumulate();
            self.update(at)
        };
        steps.map(step).collect()
    }

    fn read(&mut self, name: &str, len: usize) -> Vec<f32> {
        let mut data = vec![0.0; len];
        self.executor.read_state(name, &mut data).unwrap();
        data
    }

    /// The states with these prefixes.
    fn states(&mut self, prefixes: &[&str]) -> Vec<(String, Vec<f32>)> {
        let names = self.parameters.clone();
        let names =
            names.iter().flat_map(|p| prefixes.iter().map(move |prefix| (format!("{prefix}{}", p.name), p.len())));
        names.map(|(name, len)| (name.clone(), self.read(&name, len))).collect()
    }
}

/// What a checkpoint holds.
const KEPT: [&str; 3] = ["", FIRST_MOMENT_PREFIX, SECOND_MOMENT_PREFIX];

#[test]
fn losses_and_gradients_are_pytorchs() {
    let models = [
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
        "swin_window7_padded",
        "swin_three_stages_nonsquare",
        "swinv2_window4",
        "swinv2_window6_normalized",
        "swinv2_window7_padded",
    ];
    let (_guard, emulator) = emulator();
    for (at, name) in models.into_iter().enumerate() {
        let fixture = Fixture::load(name);
        // Both descriptions of a step and both kinds of products have their turn.
        let variant = if at % 3 == 1 { Variant::Plain } else { Variant::Fast };
        let products = if at % 2 == 0 { Products::Own } else { Products::Library };
        let mut training = Training::new(Box::new(executor(products)), &fixture, variant);
        training.accumulate();
        for (state, found) in training.states(&[GRADIENT_PREFIX]) {
            let truth = &fixture.floats[&format!("grad.{}", &state[GRADIENT_PREFIX.len()..])].1;
            let error = relative_error(&found, truth);
            assert!(error < gradient_limit(name), "{name} {variant:?} {products:?}: {state} is off by {error:e}");
        }
        let [loss, norm] = training.update(0);
        for (found, truth) in [(loss, &fixture.floats["loss"].1), (norm, &fixture.floats["grad_norms10"].1)] {
            assert!((found / truth[0] - 1.0).abs() < 1e-5, "{name} {variant:?}: {found}, expected {}", truth[0]);
        }
        assert_eq!(emulator.take_fault(), None, "{name}");
    }
}

#[test]
fn ten_steps_are_pytorchs_and_the_processors() {
    let (_guard, emulator) = emulator();
    for name in ["official_vit", "swin_window7_padded", "swinv2_window6_normalized"] {
        let fixture = Fixture::load(name);
        let found = Training::new(Box::new(executor(Products::Own)), &fixture, Variant::Fast).steps(0..10);
        let cpu = Training::new(Box::new(CpuExecutor::new(1).unwrap()), &fixture, Variant::Fast).steps(0..10);
        for (t, ([loss, norm], [cpu_loss, cpu_norm])) in found.into_iter().zip(cpu).enumerate() {
            let truth = fixture.floats["losses10"].1[t];
            assert!((loss / truth - 1.0).abs() < 1e-4, "{name}: loss of step {t} is {loss}, expected {truth}");
            assert!(
                (loss / cpu_loss - 1.0).abs() < 1e-4,
                "{name}: loss of step {t} is {loss}, on the processor {cpu_loss}"
            );
            assert!(
                (norm / cpu_norm - 1.0).abs() < 5e-3,
                "{name}: norm of step {t} is {norm}, on the processor {cpu_norm}"
            );
        }
    }
    assert_eq!(emulator.take_fault(), None);
}

/// In mixed precision: losses and norms are the processor's, and gradients about as near to those of floats as the processor's are, where both
/// round alike but sum in other orders. Copies of parameters follow what is written from outside and what AdamW writes, else the
/// steps after the first would not agree.
#[test]
fn mixed_models_are_the_processors() {
    let (_guard, emulator) = emulator();
    let models = ["tutorial_vit", "official_vit", "swin_window7_padded", "swinv2_window6_normalized"];
    for (at, name) in models.into_iter().enumerate() {
        let fixture = Fixture::load(name);
        let products = if at % 2 == 0 { Products::Own } else { Products::Library };
        // The gradient of L1 is a sign, which the smallest error can turn.
        let start = |executor: Box<dyn Executor>, precision| {
            Training::with(executor, &fixture, Variant::Fast, precision, Some(Loss::L2))
        };
        let on_cpu = |precision| start(Box::new(CpuExecutor::new(1).unwrap()), precision);
        let mut training = start(Box::new(executor(products)), Precision::Bfloat16);
        let (mut cpu, mut floats) = (on_cpu(Precision::Bfloat16), on_cpu(Precision::Float32));
        assert!(training.executor.program(training.step).unwrap().states().iter().any(|s| s.name.starts_with("bf16.")));
        for training in [&mut training, &mut cpu, &mut floats] {
            training.accumulate();
        }
        let [found, rounded, truth] =
            [&mut training, &mut cpu, &mut floats].map(|training| training.states(&[GRADIENT_PREFIX]));
        for ((state, found), ((_, rounded), (_, truth))) in found.into_iter().zip(rounded.into_iter().zip(truth)) {
            let (error, limit) = (relative_error(&found, &truth), 3.0 * relative_error(&rounded, &truth) + 1e-3);
            assert!(error < limit, "{name} {products:?}: {state} is off by {error:e}, not {limit:e}");
        }
        let first = [training.update(0), cpu.update(0)];
        let later = training.steps(1..5).into_iter().zip(cpu.steps(1..5)).map(|(found, truth)| [found, truth]);
        // AdamW's first steps are as large for small gradients as for large ones.
        for (at, ([[loss, norm], [cpu_loss, cpu_norm]], limit)) in
            std::iter::once((first, 1e-3)).chain(later.map(|pair| (pair, 4e-3))).enumerate()
        {
            let off = (loss / cpu_loss - 1.0).abs();
            assert!(off < limit, "{name}: a loss of {loss} at step {at}, on the processor {cpu_loss}");
            let off = (norm / cpu_norm - 1.0).abs();
            assert!(off < 10.0 * limit, "{name}: a norm of {norm} at step {at}, on the processor {cpu_norm}");
        }
        assert_eq!(emulator.take_fault(), None, "{name}");
    }
}

/// Stopped after three steps and gone on elsewhere from what a checkpoint holds: the same to the bit, whatever the order in which
/// threads, blocks and streams run.
#[test]
fn a_resumed_training_is_the_one_that_was_never_stopped() {
    let (_guard, emulator) = emulator();
    let fixture = Fixture::load("tutorial_vit");
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let start = |seed: u64| {
            emulator.seed(seed);
            Training::with(Box::new(executor(Products::Own)), &fixture, Variant::Fast, precision, None)
        };
        let mut whole = start(1);
        let results = whole.steps(0..6);
        let mut first = start(2);
        assert_eq!(first.steps(0..3), results[..3]);
        let kept = first.states(&KEPT);
        drop(first);
        let mut second = start(3);
        for (name, data) in kept {
            second.executor.write_state(&name, &data).unwrap();
        }
        assert_eq!(second.steps(3..6), results[3..]);
        assert!(second.states(&KEPT) == whole.states(&KEPT), "weights differ");
    }
    assert_eq!(emulator.take_fault(), None);
}

/// Timing runs the same steps one by one.
#[test]
fn a_profiled_step_is_the_same() {
    let (_guard, emulator) = emulator();
    let fixture = Fixture::load("tutorial_vit_depth1");
    let start = || Training::new(Box::new(executor(Products::Own)), &fixture, Variant::Fast);
    let plain = start().steps(0..3);
    let mut profiled = start();
    profiled.executor.set_profile(true);
    assert_eq!(profiled.steps(0..3), plain);
    let timings = profiled.executor.timings(profiled.step).unwrap();
    assert_eq!(timings.len(), profiled.executor.program(profiled.step).unwrap().instructions().len());
    assert!(timings.iter().any(|t| t.op == "attention" && t.seconds > 0.0 && t.flops > 0));
    assert_eq!(emulator.take_fault(), None);
}
