//! A decoded image and the conversion between channel counts.

use std::path::Path;

use crate::DataError;

/// A decoded image: interleaved samples, row by row (`[height, width, channels]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Samples per pixel.
    pub channels: usize,
    /// The samples, `height * width * channels` of them.
    pub pixels: Pixels,
}

/// The samples of an [`Image`] in the depth of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// 8 bits, black 0, white 255.
    U8(Vec<u8>),
    /// 16 bits, black 0, white 65535.
    U16(Vec<u16>),
    /// Floats as stored, black 0, white 1; other ranges are kept and need a mean and std of their own.
    F32(Vec<f32>),
}

impl Pixels {
    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Image {
    /// The same image with `channels` channels. `path` names the image in errors.
    ///
    /// Gray becomes RGB by replication, RGB becomes gray with the integer weights of PIL's `convert("L")`
    /// (ITU-R 601-2), alpha is dropped without blending as PIL's `convert("RGB")` does.
    ///
    /// # Errors
    /// [`DataError::Channels`] for any other pair: channels are never invented, and bands are never dropped.
    pub fn into_channels(self, channels: usize, path: &Path) -> Result<Self, DataError> {
        let Self { width, height, channels: have, pixels } = self;
        if have == channels {
            return Ok(Self { width, height, channels, pixels });
        }
        if !matches!((have, channels), (1..=4, 1) | (1 | 2 | 4, 3)) {
            return Err(DataError::Channels { path: path.to_owned(), expected: channels, found: have });
        }
        let pixels = match pixels {
            Pixels::U8(v) => Pixels::U8(convert(&v, have, channels, luma_u8)),
            Pixels::U16(v) => Pixels::U16(convert(&v, have, channels, luma_u16)),
            Pixels::F32(v) => Pixels::F32(convert(&v, have, channels, luma_f32)),
        };
        Ok(Self { width, height, channels, pixels })
    }
}

/// [`Image::into_channels`] for 8-bit samples and pairs that it knows, into memory that is there.
pub(crate) fn convert_bytes(samples: &[u8], have: usize, want: usize, out: &mut Vec<u8>) {
    out.clear();
    convert_into(samples, have, want, luma_u8, out);
}

fn convert<T: Copy>(samples: &[T], have: usize, want: usize, luma: impl Fn(T, T, T) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(samples.len() / have * want);
    convert_into(samples, have, want, luma, &mut out);
    out
}

fn convert_into<T: Copy>(samples: &[T], have: usize, want: usize, luma: impl Fn(T, T, T) -> T, out: &mut Vec<T>) {
    for pixel in samples.chunks_exact(have) {
        match (pixel, want) {
            (&[r, g, b] | &[r, g, b, _], 1) => out.push(luma(r, g, b)),
            (&[r, g, b, _], _) => out.extend_from_slice(&[r, g, b]),
            (&[v, ..], _) => out.extend(std::iter::repeat_n(v, want)),
            (&[], _) => {}
        }
    }
}

// The weights of PIL's rgb2l: 0.299, 0.587 and 0.114 in units of 2^-16, rounded.
const LUMA: [u64; 3] = [19595, 38470, 7471];

fn luma_u8(r: u8, g: u8, b: u8) -> u8 {
    luma_u16(u16::from(r), u16::from(g), u16::from(b)) as u8
}

fn luma_u16(r: u16, g: u16, b: u16) -> u16 {
    ((u64::from(r) * LUMA[0] + u64::from(g) * LUMA[1] + u64::from(b) * LUMA[2] + 0x8000) >> 16) as u16
}

fn luma_f32(r: f32, g: f32, b: f32) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(channels: usize, samples: &[u8]) -> Image {
        Image { width: samples.len() / channels, height: 1, channels, pixels: Pixels::U8(samples.to_vec()) }
    }

    #[test]
    fn conversions_follow_pil() {
        // PIL: Image.new("RGB", (1, 1), (200, 100, 50)).convert("L") gives 124.
        let cases: &[(usize, &[u8], usize, &[u8])] = &[
            (1, &[7, 9], 3, &[7, 7, 7, 9, 9, 9]),
            (2, &[7, 255], 1, &[7]),
            (2, &[7, 0], 3, &[7, 7, 7]),
            (3, &[200, 100, 50], 1, &[124]),
            (3, &[255, 255, 255], 1, &[255]),
            (4, &[200, 100, 50, 3], 1, &[124]),
            (4, &[200, 100, 50, 0], 3, &[200, 100, 50]),
            (4, &[1, 2, 3, 4], 4, &[1, 2, 3, 4]),
        ];
        for &(have, input, want, expected) in cases {
            let converted = image(have, input).into_channels(want, Path::new("x")).unwrap();
            assert_eq!(converted.pixels, Pixels::U8(expected.to_vec()), "{have} -> {want}");
            assert_eq!(converted.channels, want);
        }
    }

    #[test]
    fn channels_are_never_invented_or_dropped() {
        for (have, want) in [(3, 4), (1, 2), (1, 5), (5, 3), (5, 1), (3, 2), (4, 2)] {
            let input = vec![0; have];
            let error = image(have, &input).into_channels(want, Path::new("x.png")).unwrap_err();
            assert!(
                matches!(error, DataError::Channels { expected, found, .. } if expected == want && found == have),
                "{error}"
            );
        }
    }
}
