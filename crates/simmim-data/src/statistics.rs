//! Mean and standard deviation measured from data.

use std::sync::Mutex;

use crate::loader::lock;
use crate::{Channels, DataError, Pixels, Source};

/// Per-channel mean and standard deviation of pixels in 0..1, over at most `max_images` images spread evenly over the
/// source. Every image weighs the same, whatever its size.
///
/// Unreadable images are left out. A channel that is constant gets a standard deviation of 1, so that dividing by it
/// is safe. The result does not depend on the number of threads.
///
/// # Errors
/// [`DataError::NothingReadable`] when no image could be read.
pub fn mean_std(
    source: &dyn Source,
    wanted: impl Into<Channels>,
    max_images: usize,
) -> Result<(Vec<f32>, Vec<f32>), DataError> {
    let wanted = wanted.into();
    let channels = wanted.count;
    let len = source.len();
    let count = max_images.clamp(1, len.max(1)).min(len);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count.max(1));
    let mut moments: Vec<Option<Vec<(f64, f64)>>> = vec![None; count];
    let first_failure = Mutex::new(None::<(usize, String)>);
    let work = Mutex::new(moments.iter_mut().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((i, slot)) = lock(&work).next() else { break };
                    // u128 keeps the product exact for any length.
                    let index = (i as u128 * len as u128 / count as u128) as usize;
                    match source.load(index, wanted) {
                        Ok(image) => *slot = Some(image_moments(&image.pixels, channels)),
                        Err(error) => {
                            let mut first = lock(&first_failure);
                            if first.as_ref().is_none_or(|(known, _)| i < *known) {
                                *first = Some((i, error.to_string()));
                            }
                        }
                    }
                }
            });
        }
    });
    let read: Vec<Vec<(f64, f64)>> = moments.into_iter().flatten().collect();
    if read.is_empty() {
        let examples = lock(&first_failure).take().map_or_else(|| "the source is empty".into(), |(_, reason)| reason);
        return Err(DataError::NothingReadable { found: count, examples });
    }
    let images = read.len() as f64;
    let channel = |c: usize| {
        let mean = read.iter().map(|m| m[c].0).sum::<f64>() / images;
        let square = read.iter().map(|m| m[c].1).sum::<f64>() / images;
        let std = (square - mean * mean).max(0.0).sqrt();
        (mean as f32, if std < 1e-6 { 1.0 } else { std as f32 })
    };
    Ok((0..channels).map(channel).unzip())
}

/// Mean and mean square of each channel.
fn image_moments(pixels: &Pixels, channels: usize) -> Vec<(f64, f64)> {
    match pixels {
        Pixels::U8(v) => moments(v, channels, 255.0),
        Pixels::U16(v) => moments(v, channels, 65535.0),
        Pixels::F32(v) => moments(v, channels, 1.0),
    }
}

fn moments<T: Copy + Into<f64>>(samples: &[T], channels: usize, white: f64) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); channels];
    for pixel in samples.chunks_exact(channels) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            let value: f64 = value.into();
            sum.0 += value;
            sum.1 += value * value;
        }
    }
    let pixels = (samples.len() / channels) as f64;
    sums.iter().map(|&(sum, square)| (sum / pixels / white, square / pixels / white / white)).collect()
}
