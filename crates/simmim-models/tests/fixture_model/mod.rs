//! The SimMIM model that a fixture's configuration describes, and the fixture's masks.

#[path = "../fixture_encoder/mod.rs"]
mod fixture_encoder;

use fixture_encoder::{encoder, pair};
use serde_json::Value;
use simmim_models::{Area, Encoder, Head, Loss, Mode, SimMimConfig, Target};
use simmim_testing::Fixture;

pub(crate) fn config(c: &Value) -> SimMimConfig {
    let text = |key: &str| c[key].as_str().unwrap();
    let encoder = encoder(c);
    if let Encoder::Swin(_) = encoder {
        let config = SimMimConfig::official(encoder, pair(&c["mask_patch"]), c["mask_ratio"].as_f64().unwrap());
        let window = c["target_window"].as_u64().unwrap() as usize;
        let target = if window > 0 { Target::WindowNormalized { window } } else { Target::Pixels };
        return SimMimConfig { target, ..config };
    }
    SimMimConfig {
        encoder,
        mode: if text("mode") == "tutorial" { Mode::Tutorial } else { Mode::Official },
        mask_patch: pair(&c["mask_patch"]),
        mask_ratio: c["mask_ratio"].as_f64().unwrap(),
        target: if text("target") == "pixels" { Target::Pixels } else { Target::Normalized },
        loss: match text("loss") {
            "l1" => Loss::L1,
            "l2" => Loss::L2,
            _ => Loss::SmoothL1,
        },
        area: if text("area") == "full" { Area::Full } else { Area::Masked },
        head: Head::Linear,
    }
}

/// Token masks from the fixture's masks in mask units.
pub(crate) fn masks(fixture: &Fixture, config: &SimMimConfig) -> Vec<Vec<bool>> {
    let (shape, cells) = &fixture.ints["mask"];
    let (rows, cols) = config.encoder.geometry().patch_grid();
    let (down, right) = config.tokens_per_cell();
    let cell = |image: usize, t: usize| (image * shape[1] + t / cols / down) * shape[2] + t % cols / right;
    (0..shape[0]).map(|image| (0..rows * cols).map(|t| cells[cell(image, t)] == 1).collect()).collect()
}

/// The largest error of a gradient that passes. Cosine attention magnifies rounding: it divides by the lengths of short vectors. PyTorch's
/// own floats are off by 1.3e-5 in the gradient of a `logit_scale`, where the products that are summed nearly cancel.
pub(crate) fn gradient_limit(name: &str) -> f64 {
    if name.starts_with("swinv2") { 4e-5 } else { 1e-5 }
}
