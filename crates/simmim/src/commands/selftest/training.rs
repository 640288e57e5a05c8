//! A few training steps against the processor, and a resume.

use super::{Report, Subject, Verdict};
use crate::diagnostics::Failure;
use simmim_engine::Executor;
use simmim_models::optimizer::AdamWConfig;
use simmim_models::swin::SwinConfig;
use simmim_models::{Mode, Position, Precision, QkvBias, SimMimConfig, Target, VitConfig};
use simmim_random::{Purpose, Stream};
use simmim_train::Session;

const BATCH: usize = 8;
/// Numbers to compute with, steps, and the largest relative difference of a loss within them.
const TRIALS: [(Precision, u64, f64); 2] = [(Precision::Float32, 10, 1e-3), (Precision::Bfloat16, 4, 5e-3)];

/// A small ViT with what it can have: bias tables, layer scale, drop path.
fn vit() -> Result<SimMimConfig, Failure> {
    let encoder = VitConfig {
        embed_dim: 96,
        depth: 3,
        position: Position::SharedRelative,
        layer_scale: Some(0.1),
        drop_path: 0.1,
        qkv_bias: QkvBias::NoKey,
        ..VitConfig::preset("vit_tiny_patch4_32")?
    };
    Ok(SimMimConfig { mode: Mode::Official, mask_patch: (8, 8), ..SimMimConfig::tutorial(encoder, 0.5) })
}

/// A small Swin transformer with shifted and padded windows, cosine attention and targets normalised by windows.
fn swin() -> Result<SimMimConfig, Failure> {
    let encoder = SwinConfig {
        patch_size: (2, 2),
        embed_dim: 32,
        depths: vec![2, 2],
        num_heads: vec![1, 2],
        drop_path: 0.1,
        ..SwinConfig::preset("swinv2_tiny_window6_32")?
    };
    let target = Target::WindowNormalized { window: 7 };
    Ok(SimMimConfig { target, ..SimMimConfig::official(encoder, (8, 8), 0.5) })
}

struct Run {
    session: Session,
    images: Vec<f32>,
    masks: Vec<Vec<bool>>,
}

impl Run {
    fn new(executor: Box<dyn Executor>, config: SimMimConfig, precision: Precision) -> Result<Self, Failure> {
        let mut stream = Stream::new(5, Purpose::Test, 0, 0);
        let images = (0..BATCH * config.encoder.geometry().image_values()).map(|_| stream.normal() as f32).collect();
        let masks = (0..BATCH).map(|_| mask(&config, &mut stream)).collect();
        let mut session = Session::new(executor, config, 1)?.in_precision(precision);
        // Two parts of a step, so that gradients and losses are summed.
        session.prepare_training(BATCH / 2, 2, AdamWConfig::default())?;
        Ok(Self { session, images, masks })
    }

    fn losses(&mut self, steps: std::ops::Range<u64>) -> Result<Vec<f32>, Failure> {
        let step = |at| Ok(self.session.train_step(&self.images, &self.masks, 3, at, 1e-3)?.loss);
        steps.map(step).collect()
    }

    /// Everything that a checkpoint holds.
    fn tensors(&mut self) -> Result<Vec<(String, Vec<f32>)>, Failure> {
        let device = self.session.device_mut();
        let names: Vec<String> = device.checkpoint_shapes().into_iter().map(|(name, _)| name).collect();
        names.into_iter().map(|name| Ok((name.clone(), device.read_tensor(&name)?))).collect()
    }
}

/// A random mask in patches, whole cells hidden.
pub(super) fn mask(config: &SimMimConfig, stream: &mut Stream) -> Vec<bool> {
    let ((rows, cols), (down, right)) = (config.mask_grid(), config.tokens_per_cell());
    let mut cells: Vec<bool> = (0..rows * cols).map(|i| i < config.masked_cells()).collect();
    stream.shuffle(&mut cells);
    simmim_data::mask::expand(&cells, rows, cols, down, right)
}

pub(super) fn check(subject: &Subject<'_>, reference: &Subject<'_>, report: &mut Report) -> Result<(), Failure> {
    for trial in TRIALS {
        check_model("ViT", &vit()?, trial, [subject, reference], report)?;
        check_model("Swin", &swin()?, trial, [subject, reference], report)?;
    }
    Ok(())
}

fn check_model(
    name: &str,
    config: &SimMimConfig,
    (precision, steps, limit): (Precision, u64, f64),
    [subject, reference]: [&Subject<'_>; 2],
    report: &mut Report,
) -> Result<(), Failure> {
    let start = |subject: &Subject<'_>| Run::new(subject.open()?, config.clone(), precision);
    let mut run = start(subject)?;
    let first = run.losses(0..steps / 2)?;
    let kept = run.tensors()?;
    let losses: Vec<f32> = first.into_iter().chain(run.losses(steps / 2..steps)?).collect();
    let truth = start(reference)?.losses(0..steps)?;
    let off = |(a, b): (&f32, &f32)| f64::from(a / b - 1.0).abs();
    let error =
        losses.iter().zip(&truth).map(off).fold(0.0, |worst, e| if e > worst || e.is_nan() { e } else { worst });
    report.error(&format!("{steps} steps of a small {name} in {precision}: loss"), error, limit);
    // Stopped in the middle and gone on from what a checkpoint holds: to the bit.
    let mut resumed = start(subject)?;
    resumed.session.device_mut().set_weights(kept)?;
    resumed.losses(steps / 2..steps)?;
    let same = resumed.tensors()? == run.tensors()?;
    report.line(
        &format!("{name} in {precision} resumed after half of them: same weights"),
        "",
        if same { &Verdict::Right } else { &Verdict::Wrong },
    );
    Ok(())
}
