//! "Is my loss normal?": the loss of predictors that learn nothing.
//!
//! Two predictors see what the model sees, the visible patches of an image, and paint each hidden patch in one colour: the mean
//! colour of all visible patches, or that of the visible patches next to it (the nearest ring of the patch grid that holds one).
//! Their loss is the model's own: on the same images and masks, in the space of its targets (raw pixels, or patches normalised
//! each by its own mean and deviation), by the same function, over the same area. Where the loss covers visible patches too, those
//! are predicted by the same rules, without looking at themselves.

use serde::{Deserialize, Serialize};
use simmim_engine::ops::WindowNormalize;
use simmim_models::simmim::{TARGET_EPS, loss_scale, pixel_distance};
use simmim_models::{Area, SimMimConfig, Target};

/// Losses of the trivial predictors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrivialLosses {
    /// Every patch in the mean colour of the image's visible patches.
    pub mean_color: f32,
    /// Every patch in the mean colour of its nearest visible neighbours.
    pub visible_neighbors: f32,
}

impl TrivialLosses {
    /// Measures both on normalised images `[images, channels, height, width]` under token masks, true where a patch is hidden.
    #[must_use]
    pub fn measure(config: &SimMimConfig, images: &[f32], masks: &[Vec<bool>]) -> Self {
        let size = images.len() / masks.len().max(1);
        let mut sums = [0.0; 2];
        for (image, mask) in images.chunks_exact(size.max(1)).zip(masks) {
            let of_image = image_sums(config, &normalized(config, image), mask);
            sums.iter_mut().zip(of_image).for_each(|(s, v)| *s += v);
        }
        let scale = loss_scale(config, masks.len());
        Self { mean_color: (sums[0] * scale) as f32, visible_neighbors: (sums[1] * scale) as f32 }
    }

    /// The smaller of the two.
    #[must_use]
    pub fn best(&self) -> f32 {
        self.mean_color.min(self.visible_neighbors)
    }
}

/// The image as targets are cut from it.
fn normalized(config: &SimMimConfig, image: &[f32]) -> Vec<f32> {
    let Target::WindowNormalized { window } = config.target else { return image.to_vec() };
    let (height, width) = config.encoder.geometry().image_size;
    let (op, mut out) = (WindowNormalize { window, eps: TARGET_EPS }, vec![0.0; image.len()]);
    let mut sums = vec![0.0; 2 * width];
    for (x, y) in image.chunks_exact(height * width).zip(out.chunks_exact_mut(height * width)) {
        op.normalize_plane(x, y, width, &mut sums);
    }
    out
}

/// Sums of the loss function over the predicted values of an image.
fn image_sums(config: &SimMimConfig, image: &[f32], mask: &[bool]) -> [f64; 2] {
    let c = config.encoder.geometry();
    let area = c.stride.0 * c.stride.1;
    let mask: Vec<bool> = (0..c.cells()).map(|cell| mask[c.first_patch(cell)]).collect();
    let targets: Vec<Vec<f64>> = (0..c.cells()).map(|p| target(config, image, p)).collect();
    let colors: Vec<Vec<f64>> =
        targets.iter().map(|t| t.chunks_exact(area).map(|v| v.iter().sum::<f64>() / area as f64).collect()).collect();
    let mean = |patches: &[usize]| -> Vec<f64> {
        let n = patches.len().max(1) as f64;
        (0..c.channels).map(|ch| patches.iter().map(|&p| colors[p][ch]).sum::<f64>() / n).collect()
    };
    let visible: Vec<usize> = (0..c.cells()).filter(|&p| !mask[p]).collect();
    let kind = pixel_distance(config.loss);
    let loss = |color: &[f64], target: &[f64]| -> f64 {
        let values = target.chunks_exact(area).zip(color).flat_map(|(v, color)| v.iter().map(move |v| color - v));
        values.map(|d| kind.value(d)).sum()
    };
    let mut sums = [0.0; 2];
    for patch in (0..c.cells()).filter(|&p| mask[p] || config.area == Area::Full) {
        let others: Vec<usize> = visible.iter().copied().filter(|&p| p != patch).collect();
        sums[0] += loss(&mean(&others), &targets[patch]);
        sums[1] += loss(&mean(&nearest(&others, patch, c.grid().1)), &targets[patch]);
    }
    sums
}

/// Those of `others` in the nearest ring around a patch that holds any; rings are squares of the patch grid.
fn nearest(others: &[usize], patch: usize, columns: usize) -> Vec<usize> {
    let distance =
        |&other: &usize| (other / columns).abs_diff(patch / columns).max((other % columns).abs_diff(patch % columns));
    let least = others.iter().map(distance).min();
    others.iter().copied().filter(|p| Some(distance(p)) == least).collect()
}

/// A patch as the loss sees it, in the order (channel, row, column); normalised as by the engine's `patch_gather`.
fn target(config: &SimMimConfig, image: &[f32], patch: usize) -> Vec<f64> {
    let c = config.encoder.geometry();
    let ((height, width), (ph, pw)) = (c.image_size, c.stride);
    let (top, left) = (patch / c.grid().1 * ph, patch % c.grid().1 * pw);
    let mut values = Vec::with_capacity(c.cell_values());
    for (channel, row) in (0..c.channels).flat_map(|ch| (0..ph).map(move |r| (ch, r))) {
        let start = (channel * height + top + row) * width + left;
        values.extend(image[start..start + pw].iter().map(|&v| f64::from(v)));
    }
    if config.target == Target::Normalized {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len().max(2) - 1) as f64;
        values.iter_mut().for_each(|v| *v = (*v - mean) / (var + f64::from(TARGET_EPS)).sqrt());
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Session;
    use simmim_engine::cpu::CpuExecutor;
    use simmim_models::{Loss, Mode, VitConfig};
    use simmim_random::{Purpose, Stream};

    /// 2 x 3 patches of 2 x 2 pixels.
    fn config(channels: usize) -> SimMimConfig {
        let mut encoder = VitConfig::preset("vit_tiny_patch8_16").unwrap();
        (encoder.image_size, encoder.patch_size, encoder.channels) = ((4, 6), (2, 2), channels);
        (encoder.embed_dim, encoder.depth, encoder.num_heads) = (8, 1, 2);
        SimMimConfig::official(encoder, (2, 2), 0.5)
    }

    /// Patches of one value each.
    fn flat(values: [f32; 6]) -> Vec<f32> {
        (0..4).flat_map(|y| (0..6).map(move |x| values[y / 2 * 3 + x / 2])).collect()
    }

    #[test]
    fn hand_made_cases() {
        // Visible: 0 and 1 in the upper row, 6 at the end of the lower one; hidden: 2 above right, 3 and 5 below.
        //   0 1 [2]
        //  [3][5] 6
        let image = flat([0.0, 1.0, 2.0, 3.0, 5.0, 6.0]);
        let mask = vec![false, false, true, true, true, false];
        let losses = TrivialLosses::measure(&config(1), &image, std::slice::from_ref(&mask));
        // The mean is 7/3: |2 - 7/3| + |3 - 7/3| + |5 - 7/3| = 1/3 + 2/3 + 8/3.
        assert!((losses.mean_color - 11.0 / 9.0).abs() < 1e-5, "{losses:?}");
        // Neighbours of 2: 1 and 6, 3.5; of 3: 0 and 1, 0.5; of 5: 0, 1 and 6, 7/3.
        assert!((losses.visible_neighbors - (1.5 + 2.5 + 8.0 / 3.0) / 3.0).abs() < 1e-5, "{losses:?}");
        let squared = SimMimConfig { loss: Loss::L2, ..config(1) };
        let losses = TrivialLosses::measure(&squared, &image, std::slice::from_ref(&mask));
        assert!((losses.mean_color - (1.0 + 4.0 + 64.0) / 27.0).abs() < 1e-5, "{losses:?}");
        // The tutorial divides again by the three hidden patches.
        let tutorial = SimMimConfig { mode: Mode::Tutorial, ..config(1) };
        let losses = TrivialLosses::measure(&tutorial, &image, &[mask]);
        assert!((losses.mean_color - 11.0 / 27.0).abs() < 1e-5, "{losses:?}");
    }

    #[test]
    fn a_hidden_patch_without_neighbours_looks_farther() {
        let image = flat([9.0, 0.0, 4.0, 0.0, 0.0, 7.0]);
        let mask = vec![true, true, false, true, true, false];
        let c = SimMimConfig { mask_ratio: 0.6, ..config(1) };
        let losses = TrivialLosses::measure(&c, &image, &[mask]);
        // All four are painted 5.5: those of the first column from two columns away.
        assert!((losses.visible_neighbors - (3.5 + 3.0 * 5.5) / 4.0).abs() < 1e-5, "{losses:?}");
        assert_eq!(losses.mean_color, losses.visible_neighbors);
    }

    #[test]
    fn visible_patches_are_predicted_without_themselves() {
        let c = SimMimConfig { area: Area::Full, mask_ratio: 0.6, ..config(1) };
        let image = flat([0.0, 0.0, 4.0, 0.0, 0.0, 7.0]);
        let losses = TrivialLosses::measure(&c, &image, &[vec![true, true, false, true, true, false]]);
        assert!((losses.mean_color - (4.0 * 5.5 + 3.0 + 3.0) / 6.0).abs() < 1e-5, "{losses:?}");
    }

    /// A model whose head is zero predicts zero. On patches normalised over their one channel both predictors paint zero too, so
    /// the loss of the session must be theirs: for every mode, function and area.
    #[test]
    fn the_loss_is_the_models_own() {
        let mut stream = Stream::new(1, Purpose::Test, 5, 0);
        let images: Vec<f32> = (0..5 * 24).map(|_| stream.normal() as f32).collect();
        let masks: Vec<Vec<bool>> = (0..5).map(|i| (0..6).map(|p| (p + i) % 2 == 0).collect()).collect();
        for mode in [Mode::Tutorial, Mode::Official] {
            for (loss, area) in [(Loss::L1, Area::Masked), (Loss::L2, Area::Full), (Loss::SmoothL1, Area::Masked)] {
                let c = SimMimConfig { mode, loss, area, target: Target::Normalized, ..config(1) };
                let mut session = Session::new(Box::new(CpuExecutor::new(1).unwrap()), c.clone(), 0).unwrap();
                session.reconstruct(&images, &masks).unwrap();
                let zero = |name: &str, len: usize| (name.to_owned(), vec![0.0; len]);
                session
                    .device_mut()
                    .set_weights(vec![zero("decoder.0.weight", 4 * 8), zero("decoder.0.bias", 4)])
                    .unwrap();
                let expected = session.reconstruct(&images, &masks).unwrap().loss;
                let losses = TrivialLosses::measure(&c, &images, &masks);
                for found in [losses.mean_color, losses.visible_neighbors] {
                    assert!(
                        (found - expected).abs() < 1e-5 * expected,
                        "{mode:?} {loss:?} {area:?}: {found} {expected}"
                    );
                }
            }
        }
    }

    /// Pixel by pixel, without patches: what the definition says.
    #[test]
    fn a_plain_reference_agrees_on_random_images() {
        let mut stream = Stream::new(2, Purpose::Test, 5, 0);
        let c = config(3);
        for _ in 0..20 {
            let image: Vec<f32> = (0..72).map(|_| stream.normal() as f32).collect();
            let mut order = [0, 1, 2, 3, 4, 5];
            stream.shuffle(&mut order);
            let hidden: Vec<usize> = order[..3].to_vec();
            let mask: Vec<bool> = (0..6).map(|p| hidden.contains(&p)).collect();
            let patch_of = |y: usize, x: usize| y / 2 * 3 + x / 2;
            let pixel = |ch: usize, y: usize, x: usize| f64::from(image[ch * 24 + y * 6 + x]);
            let mean = |ch: usize, from: &dyn Fn(usize) -> bool| {
                let (mut sum, mut n) = (0.0, 0.0);
                for (y, x) in (0..4).flat_map(|y| (0..6).map(move |x| (y, x))) {
                    if from(patch_of(y, x)) {
                        (sum, n) = (sum + pixel(ch, y, x), n + 1.0);
                    }
                }
                sum / n
            };
            let mut expected = [0.0; 2];
            for (ch, y, x) in (0..3).flat_map(|ch| (0..4).flat_map(move |y| (0..6).map(move |x| (ch, y, x)))) {
                let p = patch_of(y, x);
                if !mask[p] {
                    continue;
                }
                let far = |q: usize| ((q / 3).abs_diff(p / 3)).max((q % 3).abs_diff(p % 3));
                let near = (0..6).filter(|&q| !mask[q]).map(far).min().unwrap();
                expected[0] += (mean(ch, &|q| !mask[q]) - pixel(ch, y, x)).abs() / 36.0;
                expected[1] += (mean(ch, &|q| !mask[q] && far(q) == near) - pixel(ch, y, x)).abs() / 36.0;
            }
            let found = TrivialLosses::measure(&c, &image, &[mask]);
            assert!((f64::from(found.mean_color) - expected[0]).abs() < 1e-5, "{found:?} {expected:?}");
            assert!((f64::from(found.visible_neighbors) - expected[1]).abs() < 1e-5, "{found:?} {expected:?}");
        }
    }
}
