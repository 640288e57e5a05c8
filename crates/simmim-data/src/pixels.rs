//! A decoded image and the conversion between channel counts.

use std::path::Path;

use crate::{Channels, DataError};

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
    /// Where the transparency is.
    pub alpha: Alpha,
}

/// What became of the alpha channel of an [`Image`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// There is none, or it was opaque everywhere.
    #[default]
    Opaque,
    /// It is the last channel; colours are not multiplied by it.
    Last,
    /// The image had transparent pixels; they were composited on a background, or their alpha was dropped.
    Removed,
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
    /// The same image in other channels. `path` names the image in errors.
    ///
    /// Gray becomes RGB by replication, RGB becomes gray with the integer weights of PIL's `convert("L")`
    /// (ITU-R 601-2). Alpha that is not asked for is composited on the background before anything else, rounded as PIL's
    /// `alpha_composite` does, or dropped. The fourth of four bands that is not alpha is dropped.
    ///
    /// # Errors
    /// [`DataError::Channels`] for any other pair: channels are never invented, and other bands are never dropped.
    pub fn into_channels(self, channels: impl Into<Channels>, path: &Path) -> Result<Self, DataError> {
        let Channels { count, background } = channels.into();
        let Self { width, height, channels: have, pixels, alpha } = self;
        if have == count {
            return Ok(Self { width, height, channels: have, pixels, alpha });
        }
        if !matches!((have, count), (1..=4, 1) | (1 | 2 | 4, 3)) {
            return Err(DataError::Channels { path: path.to_owned(), expected: count, found: have });
        }
        let has_alpha = alpha == Alpha::Last && matches!(have, 2 | 4);
        let change = Change { have, count, background: background.color().filter(|_| has_alpha) };
        let (pixels, transparent) = match pixels {
            Pixels::U8(v) => (Pixels::U8(convert(&v, change)), has_alpha && any_transparent(&v, have)),
            Pixels::U16(v) => (Pixels::U16(convert(&v, change)), has_alpha && any_transparent(&v, have)),
            Pixels::F32(v) => (Pixels::F32(convert(&v, change)), has_alpha && any_transparent(&v, have)),
        };
        let alpha = match alpha {
            Alpha::Last => {
                if transparent {
                    Alpha::Removed
                } else {
                    Alpha::Opaque
                }
            }
            known => known,
        };
        Ok(Self { width, height, channels: count, pixels, alpha })
    }
}

/// A conversion between channel counts.
#[derive(Clone, Copy)]
struct Change {
    have: usize,
    count: usize,
    /// The colour on which alpha, the last channel, is composited.
    background: Option<[u8; 3]>,
}

/// [`Image::into_channels`] for opaque 8-bit samples and pairs that it knows, into memory that is there.
pub(crate) fn convert_bytes(samples: &[u8], have: usize, count: usize, out: &mut Vec<u8>) {
    out.clear();
    convert_into(samples, Change { have, count, background: None }, out);
}

fn convert<T: Sample>(samples: &[T], change: Change) -> Vec<T> {
    let mut out = Vec::with_capacity(samples.len() / change.have * change.count);
    convert_into(samples, change, &mut out);
    out
}

fn convert_into<T: Sample>(samples: &[T], change: Change, out: &mut Vec<T>) {
    if let Some(background) = change.background {
        let behind = background.map(T::from_byte);
        for pixel in samples.chunks_exact(change.have) {
            let (color, alpha) = match *pixel {
                [v, a] => ([v; 3], a),
                [r, g, b, a] => ([r, g, b], a),
                _ => continue,
            };
            let [r, g, b] = [0, 1, 2].map(|c| color[c].over(behind[c], alpha));
            if change.count == 1 { out.push(T::luma(r, g, b)) } else { out.extend_from_slice(&[r, g, b]) }
        }
        return;
    }
    for pixel in samples.chunks_exact(change.have) {
        match (pixel, change.count) {
            (&[r, g, b] | &[r, g, b, _], 1) => out.push(T::luma(r, g, b)),
            (&[r, g, b, _], _) => out.extend_from_slice(&[r, g, b]),
            (&[v, ..], count) => out.extend(std::iter::repeat_n(v, count)),
            (&[], _) => {}
        }
    }
}

/// Whether the last channel is below opaque anywhere.
fn any_transparent<T: Sample>(samples: &[T], channels: usize) -> bool {
    samples.iter().skip(channels - 1).step_by(channels).any(|&alpha| alpha < T::OPAQUE)
}

/// A sample of any depth.
trait Sample: Copy + PartialOrd {
    /// Alpha of an opaque pixel, and white.
    const OPAQUE: Self;

    /// A sample of 8 bits in this depth.
    fn from_byte(byte: u8) -> Self;

    /// The sample with this alpha over an opaque one.
    fn over(self, behind: Self, alpha: Self) -> Self;

    /// Gray of a colour.
    fn luma(r: Self, g: Self, b: Self) -> Self;
}

impl Sample for u8 {
    const OPAQUE: Self = 255;

    fn from_byte(byte: u8) -> Self {
        byte
    }

    fn over(self, behind: Self, alpha: Self) -> Self {
        let sum = u32::from(self) * u32::from(alpha) + u32::from(behind) * u32::from(255 - alpha);
        // Rounded: 255 is odd, so there are no ties.
        ((sum + 127) / 255) as Self
    }

    fn luma(r: Self, g: Self, b: Self) -> Self {
        u16::luma(r.into(), g.into(), b.into()) as Self
    }
}

impl Sample for u16 {
    const OPAQUE: Self = 65535;

    fn from_byte(byte: u8) -> Self {
        Self::from(byte) * 257
    }

    fn over(self, behind: Self, alpha: Self) -> Self {
        let sum = u64::from(self) * u64::from(alpha) + u64::from(behind) * u64::from(65535 - alpha);
        ((sum + 32767) / 65535) as Self
    }

    fn luma(r: Self, g: Self, b: Self) -> Self {
        ((u64::from(r) * LUMA[0] + u64::from(g) * LUMA[1] + u64::from(b) * LUMA[2] + 0x8000) >> 16) as Self
    }
}

impl Sample for f32 {
    const OPAQUE: Self = 1.0;

    fn from_byte(byte: u8) -> Self {
        Self::from(byte) / 255.0
    }

    fn over(self, behind: Self, alpha: Self) -> Self {
        let alpha = alpha.clamp(0.0, 1.0);
        self * alpha + behind * (1.0 - alpha)
    }

    fn luma(r: Self, g: Self, b: Self) -> Self {
        0.299 * r + 0.587 * g + 0.114 * b
    }
}

// The weights of PIL's rgb2l: 0.299, 0.587 and 0.114 in units of 2^-16, rounded.
const LUMA: [u64; 3] = [19595, 38470, 7471];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Background;

    fn image(channels: usize, samples: &[u8]) -> Image {
        let alpha = if matches!(channels, 2 | 4) { Alpha::Last } else { Alpha::Opaque };
        let (width, pixels) = (samples.len() / channels, Pixels::U8(samples.to_vec()));
        Image { width, height: 1, channels, pixels, alpha }
    }

    #[test]
    fn conversions_that_drop_alpha_follow_pil() {
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
            let wanted = Channels { count: want, background: Background::Drop };
            let converted = image(have, input).into_channels(wanted, Path::new("x")).unwrap();
            assert_eq!(converted.pixels, Pixels::U8(expected.to_vec()), "{have} -> {want}");
            assert_eq!(converted.channels, want);
        }
    }

    #[test]
    fn what_became_of_transparency_is_known() {
        let to =
            |have: usize, input: &[u8], want: usize| image(have, input).into_channels(want, Path::new("x")).unwrap();
        assert_eq!(to(4, &[1, 2, 3, 255, 4, 5, 6, 254], 3).alpha, Alpha::Removed);
        assert_eq!(to(4, &[1, 2, 3, 255, 4, 5, 6, 255], 3).alpha, Alpha::Opaque);
        assert_eq!(to(2, &[9, 0], 1).alpha, Alpha::Removed);
        assert_eq!(to(4, &[1, 2, 3, 0], 4).alpha, Alpha::Last);
        assert_eq!(to(3, &[1, 2, 3], 1).alpha, Alpha::Opaque);
        // A fourth band that is not alpha is no transparency.
        let bands = Image { alpha: Alpha::Opaque, ..image(4, &[1, 2, 3, 0]) };
        let rgb = bands.into_channels(3, Path::new("x")).unwrap();
        assert_eq!((rgb.pixels, rgb.alpha), (Pixels::U8(vec![1, 2, 3]), Alpha::Opaque));
    }

    /// Every sample, alpha and background of 8 bits, and some of the other depths, against the plain formula.
    #[test]
    fn compositing_is_the_rounded_mean() {
        let plain = |v: f64, behind: f64, alpha: f64, white: f64| v * alpha / white + behind * (white - alpha) / white;
        for v in 0..=255u8 {
            for alpha in 0..=255u8 {
                for behind in [0, 1, 127, 128, 200, 255u8] {
                    let expected = plain(v.into(), behind.into(), alpha.into(), 255.0).round();
                    assert_eq!(f64::from(v.over(behind, alpha)), expected, "{v} {behind} {alpha}");
                }
            }
        }
        for i in 0..5000u64 {
            let [v, behind, alpha] = [i * 7919, i * 104_729, i * 1_299_709].map(|x| (x % 65536) as u16);
            let expected = plain(v.into(), behind.into(), alpha.into(), 65535.0).round();
            assert_eq!(f64::from(v.over(behind, alpha)), expected);
            let [fv, fb, fa] = [v, behind, alpha].map(|x| f32::from(x) / 65535.0);
            let expected = plain(fv.into(), fb.into(), fa.into(), 1.0);
            assert!((f64::from(fv.over(fb, fa)) - expected).abs() < 1e-6);
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
