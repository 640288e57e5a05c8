//! Reconstruction pictures: a row an image, with original, masked and reconstruction.

use crate::error::TrainError;
use crate::trainer::Reconstruction;
use image::{Rgb, RgbImage};
use simmim_models::{Geometry, SimMimConfig, Target};
use std::path::Path;

/// Pixels between pictures.
const GAP: u32 = 2;
/// Smallest side at which a picture is shown; smaller ones are enlarged by a whole factor.
const SMALLEST: usize = 112;
const MASKED: [f32; 3] = [0.5, 0.5, 0.5];

/// Puts predicted patches in their places: `[images, channels, height, width]`, zeros elsewhere.
#[must_use]
pub fn assemble(config: &SimMimConfig, patches: &[f32], positions: &[i32], images: usize) -> Vec<f32> {
    let c = config.encoder.geometry();
    let ((h, w), (ph, pw)) = (c.image_size, c.stride);
    let mut out = vec![0.0; images * c.channels * h * w];
    for (row, (patch, &position)) in patches.chunks_exact(c.cell_values()).zip(positions).enumerate() {
        let image = row / config.predicted_tokens();
        let (top, left) = (position as usize / (w / pw) * ph, position as usize % (w / pw) * pw);
        for (line, values) in patch.chunks_exact(pw).enumerate() {
            let start = ((image * c.channels + line / ph) * h + top + line % ph) * w + left;
            out[start..start + pw].copy_from_slice(values);
        }
    }
    out
}

/// Where pixels are hidden: `[images, height, width]`, from token masks.
#[must_use]
pub fn pixel_mask(config: &SimMimConfig, masks: &[Vec<bool>]) -> Vec<bool> {
    let c = config.encoder.geometry();
    let ((h, w), (ph, pw)) = (c.image_size, c.patch_size);
    let pixel = |mask: &Vec<bool>| (0..h * w).map(|i| mask[i / w / ph * (w / pw) + i % w / pw]).collect::<Vec<_>>();
    masks.iter().flat_map(pixel).collect()
}

/// Pixels of the predictions in normalised space. With normalised targets a prediction has no level and contrast of its own; it
/// is given those of the visible part of its image, never those of the true patch, which would leak the answer.
fn prediction_pixels(config: &SimMimConfig, images: &[f32], hidden: &[bool], r: &Reconstruction) -> Vec<f32> {
    let mut out = assemble(config, &r.prediction, &r.positions, hidden.len() / plane(config));
    if config.target != Target::Pixels {
        let planes = out.chunks_exact_mut(plane(config)).zip(images.chunks_exact(plane(config)));
        for (i, (out, image)) in planes.enumerate() {
            let sample = i / config.encoder.geometry().channels;
            let hidden = &hidden[sample * plane(config)..(sample + 1) * plane(config)];
            let visible: Vec<f32> = image.iter().zip(hidden).filter(|(_, h)| !**h).map(|(v, _)| *v).collect();
            let n = visible.len().max(1) as f32;
            let mean = visible.iter().sum::<f32>() / n;
            let std = (visible.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
            out.iter_mut().for_each(|v| *v = *v * std + mean);
        }
    }
    out
}

fn plane(config: &SimMimConfig) -> usize {
    let (height, width) = config.encoder.geometry().image_size;
    height * width
}

/// Draws the grid. `images` are normalised, `mean` and `std` undo that. Other channel counts than 1 and 3 show their first three
/// channels, or the first alone.
///
/// # Errors
/// [`TrainError::Io`].
pub fn draw(
    path: &Path,
    config: &SimMimConfig,
    images: &[f32],
    masks: &[Vec<bool>],
    r: &Reconstruction,
    (mean, std): (&[f32], &[f32]),
) -> Result<(), TrainError> {
    let Geometry { image_size: (h, w), channels, .. } = config.encoder.geometry();
    let area = h * w;
    let hidden = pixel_mask(config, masks);
    let predicted = prediction_pixels(config, images, &hidden, r);
    let zoom = SMALLEST.div_ceil(h.max(w)).max(1) as u32;
    let (cell_w, cell_h) = (w as u32 * zoom + GAP, h as u32 * zoom + GAP);
    let mut grid = RgbImage::from_pixel(3 * cell_w + GAP, masks.len() as u32 * cell_h + GAP, Rgb([255, 255, 255]));
    for (image, column, i) in (0..masks.len()).flat_map(|m| (0..3).flat_map(move |c| (0..area).map(move |i| (m, c, i))))
    {
        let value = |from: &[f32], c: usize| {
            let c = if channels >= 3 { c } else { 0 };
            from[(image * channels + c) * area + i] * std[c] + mean[c]
        };
        let masked = hidden[image * area + i];
        let color = [0, 1, 2].map(|c| match column {
            1 if masked => MASKED[c],
            2 if masked => value(&predicted, c),
            _ => value(images, c),
        });
        let color = Rgb(color.map(|v| (v.clamp(0.0, 1.0) * 255.0).round() as u8));
        let (left, top) =
            (GAP + column * cell_w + (i % w) as u32 * zoom, GAP + image as u32 * cell_h + (i / w) as u32 * zoom);
        for (x, y) in (0..zoom).flat_map(|x| (0..zoom).map(move |y| (x, y))) {
            grid.put_pixel(left + x, top + y, color);
        }
    }
    let io = |e: image::ImageError| TrainError::Io { path: path.to_owned(), source: std::io::Error::other(e) };
    let mut bytes = std::io::Cursor::new(Vec::new());
    grid.write_to(&mut bytes, image::ImageFormat::Png).map_err(io)?;
    simmim_files::write(path, bytes.get_ref()).map_err(TrainError::io(path))
}
