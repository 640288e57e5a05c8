//! What images are like: sizes, means and mean squares, and which cannot be read.

use crate::{Alpha, Channels, DataError, Pixels, Source};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// What one image is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Whether it has transparent pixels.
    pub transparent: bool,
    /// Mean and mean square of each channel, of samples in 0..1.
    pub moments: Vec<(f64, f64)>,
}

/// Reads the images of `source` at `indices` with so many threads, and calls `each` with every place in `indices`, in order, and what is
/// there.
pub fn survey(
    source: &dyn Source,
    wanted: impl Into<Channels>,
    indices: &[usize],
    threads: usize,
    each: &mut dyn FnMut(usize, Result<Seen, DataError>),
) {
    let (wanted, next) = (wanted.into(), AtomicUsize::new(0));
    let look = |index: usize| {
        let image = source.load(index, wanted)?;
        let transparent = image.alpha != Alpha::Opaque;
        let moments = image_moments(&image.pixels, wanted.count);
        Ok(Seen { width: image.width, height: image.height, transparent, moments })
    };
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..threads.clamp(1, indices.len().max(1)) {
            let (sender, next, look) = (sender.clone(), &next, &look);
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&index) = indices.get(place) else { return };
                    // A receiver that is gone has panicked, and the scope ends with it.
                    if sender.send((place, look(index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut early, mut expected) = (BTreeMap::new(), 0);
        for (place, seen) in receiver {
            early.insert(place, seen);
            while let Some(seen) = early.remove(&expected) {
                each(expected, seen);
                expected += 1;
            }
        }
    });
}

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
    let indices: Vec<usize> =
        // u128 keeps the product exact for any length.
        (0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut read, mut first_failure) = (Vec::new(), None::<String>);
    survey(source, wanted, &indices, threads, &mut |_, seen| match seen {
        Ok(seen) => read.push(seen.moments),
        Err(error) => {
            first_failure.get_or_insert_with(|| error.to_string());
        }
    });
    if read.is_empty() {
        let examples = first_failure.unwrap_or_else(|| "the source is empty".into());
        return Err(DataError::NothingReadable { found: count, examples });
    }
    let images = read.len() as f64;
    let channel = |c: usize| {
        let (mean, square) = (read.iter().map(|m| m[c].0).sum(), read.iter().map(|m| m[c].1).sum());
        let (mean, std) = mean_and_deviation(mean, square, images);
        (mean as f32, std as f32)
    };
    Ok((0..channels).map(channel).unzip())
}

/// Mean and standard deviation of a channel from the sums of the means and mean squares of so many images. That of a constant channel is 1.
#[must_use]
pub fn mean_and_deviation(means: f64, squares: f64, images: f64) -> (f64, f64) {
    let mean = means / images;
    let std = (squares / images - mean * mean).max(0.0).sqrt();
    (mean, if std < 1e-6 { 1.0 } else { std })
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
