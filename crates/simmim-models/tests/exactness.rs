//! The savings of the fast description change nothing: its loss and every gradient are those of the plain description, which puts
//! every token through every layer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use simmim_engine::autodiff::{GRADIENT_PREFIX, differentiate};
use simmim_engine::cpu::{CpuExecutor, Isa};
use simmim_engine::recompute::{blocks, recompute};
use simmim_engine::{Executor, Graph, Program};
use simmim_models::names::{IMAGES, LOSS};
use simmim_models::simmim::{Build, StepIndices, StepSlots, Variant, simmim_graph};
use simmim_models::swin::Version;
use simmim_models::{
    Area, Head, Loss, Mode, Position, PositionInit, Precision, QkvBias, SimMimConfig, SwinConfig, Target, VitConfig,
    WeightInit,
};
use simmim_random::{Purpose, Stream};

const BATCH: usize = 4;

fn encoder() -> VitConfig {
    VitConfig {
        image_size: (24, 32),
        patch_size: (4, 8),
        channels: 3,
        embed_dim: 24,
        depth: 3,
        num_heads: 3,
        mlp_ratio: 4.0,
        class_token: true,
        registers: 0,
        position: Position::Absolute,
        position_init: PositionInit::Normal,
        weight_init: WeightInit::Normal,
        layer_scale: None,
        drop_path: 0.0,
        qkv_bias: QkvBias::Full,
        final_norm: true,
        eps: 1e-6,
    }
}

fn official() -> SimMimConfig {
    official_with(|_| ())
}

fn official_with(change: impl Fn(&mut VitConfig)) -> SimMimConfig {
    let mut encoder = VitConfig {
        position: Position::SharedRelative,
        layer_scale: Some(0.1),
        drop_path: 0.3,
        qkv_bias: QkvBias::NoKey,
        ..encoder()
    };
    change(&mut encoder);
    SimMimConfig { mode: Mode::Official, mask_patch: (8, 8), ..SimMimConfig::tutorial(encoder, 0.5) }
}

fn swin(version: Version, change: impl Fn(&mut SwinConfig)) -> SimMimConfig {
    let mut encoder = SwinConfig {
        version,
        image_size: (32, 48),
        patch_size: (4, 4),
        channels: 3,
        embed_dim: 16,
        depths: vec![2, 3],
        num_heads: vec![2, 4],
        window_size: 4,
        pretrained_windows: Vec::new(),
        mlp_ratio: 2.0,
        absolute: false,
        drop_path: 0.3,
        qkv_bias: true,
        final_norm: true,
        eps: 1e-5,
    };
    change(&mut encoder);
    SimMimConfig::official(encoder, (8, 8), 0.6)
}

/// Configurations that meet each saving alone and together.
fn configurations() -> Vec<(&'static str, SimMimConfig)> {
    let tutorial = |encoder| SimMimConfig::tutorial(encoder, 0.5);
    let with = |change: &dyn Fn(&mut SimMimConfig)| {
        let mut config = official();
        change(&mut config);
        config
    };
    vec![
        ("tutorial", tutorial(encoder())),
        ("tutorial, one block", tutorial(VitConfig { depth: 1, ..encoder() })),
        ("tutorial, two blocks", tutorial(VitConfig { depth: 2, ..encoder() })),
        ("tutorial, few masked", SimMimConfig::tutorial(encoder(), 0.05)),
        ("tutorial, nearly all masked", SimMimConfig::tutorial(encoder(), 0.95)),
        ("tutorial, five channels", tutorial(VitConfig { channels: 5, ..encoder() })),
        ("tutorial, full area, L2", SimMimConfig { area: Area::Full, loss: Loss::L2, ..tutorial(encoder()) }),
        ("tutorial, drop path", tutorial(VitConfig { drop_path: 0.3, ..encoder() })),
        ("official", official()),
        ("official, one block", official_with(|c| c.depth = 1)),
        ("official, no class token", official_with(|c| c.class_token = false)),
        ("registers", official_with(|c| (c.registers, c.position) = (3, Position::Absolute))),
        ("official, full area", with(&|c| c.area = Area::Full)),
        ("official, a bias for each block", official_with(|c| c.position = Position::Relative)),
        ("official, absolute positions", official_with(|c| c.position = Position::Absolute)),
        ("official, no positions", official_with(|c| c.position = Position::None)),
        ("official, no final norm", official_with(|c| c.final_norm = false)),
        ("official, no biases of qkv", official_with(|c| c.qkv_bias = QkvBias::None)),
        (
            "official, normalised targets, smooth L1",
            with(&|c| (c.target, c.loss) = (Target::Normalized, Loss::SmoothL1)),
        ),
        ("official, two layers in the head", with(&|c| c.head = Head::Mlp)),
        ("swin", swin(Version::V1, |_| ())),
        ("swin, padded windows, absolute positions", swin(Version::V1, |c| (c.window_size, c.absolute) = (3, true))),
        ("swin, one stage of one block", swin(Version::V1, |c| (c.depths, c.num_heads) = (vec![1], vec![2]))),
        ("swin, no biases of qkv, padded", swin(Version::V1, |c| (c.window_size, c.qkv_bias) = (3, false))),
        ("swin v2", swin(Version::V2, |_| ())),
        ("swin v2, padded windows", swin(Version::V2, |c| c.window_size = 3)),
        ("swin v2, no biases of qkv, padded", swin(Version::V2, |c| (c.window_size, c.qkv_bias) = (3, false))),
        ("swin, full area", SimMimConfig { area: Area::Full, ..swin(Version::V1, |_| ()) }),
        (
            "swin, targets normalised by windows",
            SimMimConfig { target: Target::WindowNormalized { window: 5 }, ..swin(Version::V1, |_| ()) },
        ),
    ]
}

/// Random masks in token units.
fn masks(config: &SimMimConfig, stream: &mut Stream) -> Vec<Vec<bool>> {
    let (rows, cols) = config.mask_grid();
    let (down, right) = config.tokens_per_cell();
    let mut draw = |_| {
        let mut cells: Vec<bool> = (0..rows * cols).map(|i| i < config.masked_tokens() / (down * right)).collect();
        stream.shuffle(&mut cells);
        let cell = |t: usize| t / (cols * right) / down * cols + t % (cols * right) / right;
        (0..config.encoder.geometry().patches()).map(|t| cells[cell(t)]).collect()
    };
    (0..BATCH).map(&mut draw).collect()
}

/// Loss, and the gradient of each parameter with its name.
fn step(config: &SimMimConfig, variant: Variant, isa: Isa) -> Step {
    step_in(config, variant, isa, Precision::Float32, 0)
}

/// `recomputed` blocks are computed again in the backward.
fn step_in(config: &SimMimConfig, variant: Variant, isa: Isa, precision: Precision, recomputed: usize) -> Step {
    let build = Build { batch: BATCH, variant, accumulation: 1, train: true, outputs: false };
    let (mut graph, loss) = simmim_graph(config, build).unwrap();
    differentiate(&mut graph, loss).unwrap();
    let mut executor = CpuExecutor::with_isa(2, isa).unwrap();
    let graph = recompute(&precision.lower(&graph).unwrap(), recomputed).unwrap();
    let id = executor.load(Program::compile(&graph).unwrap()).unwrap();
    let mut stream = Stream::new(11, Purpose::Test, 0, 0);
    // Each variant draws the same numbers in the same order, whatever its graph uses.
    let parameters = config.parameters();
    for p in &parameters {
        let values: Vec<f32> = p.initial(5).iter().map(|v| v + 0.1 * stream.normal() as f32).collect();
        if p.used {
            executor.write_state(&p.name, &values).unwrap();
        }
    }
    let images: Vec<f32> =
        (0..BATCH * config.encoder.geometry().image_values()).map(|_| stream.normal() as f32).collect();
    executor.write(executor.input(id, IMAGES).unwrap(), &images).unwrap();
    let masks = masks(config, &mut stream);
    let mut indices = StepIndices::default();
    indices.fill(config, variant, &masks).unwrap();
    let slots = StepSlots::find(&executor, id).unwrap();
    indices.write(&mut executor, &slots).unwrap();
    for branch in config.encoder.branches().iter().filter(|b| b.rate > 0.0) {
        let keep: Vec<f32> = (0..BATCH).map(|_| if stream.uniform() < 0.3 { 0.0 } else { 1.25 }).collect();
        executor.write(executor.input(id, &branch.input).unwrap(), &keep).unwrap();
    }
    executor.run(id).unwrap();
    let mut loss = [0.0];
    executor.read(executor.output(id, LOSS).unwrap(), &mut loss).unwrap();
    let mut gradient = |name: &str, len: usize| {
        let mut data = vec![0.0; len];
        executor.read_state(&format!("{GRADIENT_PREFIX}{name}"), &mut data).unwrap();
        (name.to_owned(), data)
    };
    (loss[0], parameters.iter().filter(|p| p.used).map(|p| gradient(&p.name, p.len())).collect())
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

type Step = (f32, Vec<(String, Vec<f32>)>);

/// Loss and gradients agree to `limit`.
fn assert_same(name: &str, (found_loss, found): &Step, (loss, truth): &Step, limit: f64) {
    let off = f64::from(found_loss / loss - 1.0).abs();
    assert!(off < limit, "{name}: loss {found_loss} and {loss}");
    let total = norm(truth.iter().flat_map(|(_, g)| g).map(|&v| f64::from(v)));
    for ((parameter, a), (_, b)) in found.iter().zip(truth) {
        let size = norm(b.iter().map(|&v| f64::from(v)));
        let off = norm(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        // A gradient that cancels (the key's bias has none) holds nothing but the rounding of its terms.
        let scale = size.max(1e-2 * total);
        assert!(off <= limit * scale, "{name}: gradient of {parameter} is off by {:e}", off / scale);
    }
}

#[test]
fn the_fast_description_is_the_plain_one() {
    for (name, config) in configurations() {
        let isa = Isa::detect();
        assert_same(name, &step(&config, Variant::Fast, isa), &step(&config, Variant::Plain, isa), 1e-6);
    }
}

#[test]
fn wide_models_agree_on_every_instruction_set() {
    // Wide enough for tile registers: products of 64 columns and terms at least.
    let wide = VitConfig { embed_dim: 144, ..encoder() };
    let tutorial = SimMimConfig::tutorial(wide.clone(), 0.5);
    let official = official_with(|c| c.embed_dim = 144);
    for (name, config) in [("tutorial", tutorial), ("official", official)] {
        let truth = step(&config, Variant::Plain, Isa::named("portable").unwrap());
        for isa in Isa::available() {
            let fast = step(&config, Variant::Fast, isa);
            // Sums of gradients that nearly cancel (those of biases) hold the rounding of both.
            assert_same(&format!("{name} on {}", isa.name()), &fast, &truth, 5e-6);
        }
    }
}

/// Every block and stage can be computed again, in both precisions, and nothing changes by that.
#[test]
fn what_is_computed_again_gives_the_same_bits() {
    let isa = Isa::detect();
    for (name, config) in configurations() {
        let build = Build { batch: BATCH, variant: Variant::Fast, accumulation: 1, train: true, outputs: false };
        let (mut graph, loss) = simmim_graph(&config, build).unwrap();
        differentiate(&mut graph, loss).unwrap();
        let (all, layers) = (blocks(&graph), config.encoder.layers().len());
        assert!(all >= layers, "{name}: {all} of {layers} blocks");
        let arena = |graph: &Graph| Program::compile(graph).unwrap().arena_bytes();
        assert!(arena(&recompute(&graph, all).unwrap()) < arena(&graph), "{name}");
        for precision in [Precision::Float32, Precision::Bfloat16] {
            let truth = step_in(&config, Variant::Fast, isa, precision, 0);
            for recomputed in [1, all / 2, all] {
                let found = step_in(&config, Variant::Fast, isa, precision, recomputed);
                assert!(found == truth, "{name} in {precision} with {recomputed} blocks");
            }
        }
    }
}

/// Mixed precision loses bits, not the direction: the gradient of every parameter in bfloat16 lies along that in floats. One that
/// cancels (the key's bias has none) has no direction.
#[test]
fn gradients_in_bfloat16_point_where_those_of_floats_do() {
    let wide_swin = |version| swin(version, |c| (c.embed_dim, c.num_heads) = (48, vec![2, 4]));
    let configurations = [
        ("tutorial", SimMimConfig::tutorial(VitConfig { embed_dim: 144, ..encoder() }, 0.5)),
        ("official", official_with(|c| c.embed_dim = 144)),
        ("a bias for each block", official_with(|c| (c.embed_dim, c.position) = (144, Position::Relative))),
        ("swin", wide_swin(Version::V1)),
        ("swin v2", wide_swin(Version::V2)),
    ];
    for (name, config) in configurations {
        // The gradient of L1 is a sign, which the smallest error can turn.
        let config = SimMimConfig { loss: Loss::L2, ..config };
        for isa in Isa::available() {
            let (loss, truth) = step(&config, Variant::Fast, isa);
            let (mixed_loss, mixed) = step_in(&config, Variant::Fast, isa, Precision::Bfloat16, 0);
            assert!((mixed_loss / loss - 1.0).abs() < 1e-3, "{name} on {}: loss {mixed_loss}, {loss}", isa.name());
            let total = norm(truth.iter().flat_map(|(_, g)| g).map(|&v| f64::from(v)));
            for ((parameter, a), (_, b)) in mixed.iter().zip(&truth) {
                let [size, other] = [b, a].map(|g| norm(g.iter().map(|&v| f64::from(v))));
                if size < 1e-3 * total {
                    continue;
                }
                let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let cosine = dot / (size * other);
                assert!(cosine > 0.999, "{name} on {}: {parameter} has a cosine of {cosine:.6}", isa.name());
            }
        }
    }
}
