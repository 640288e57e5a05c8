//! TIFF layouts that the `image` crate refuses: many bands, floats, signed and wide integers, planar bands, palettes.

use std::io::Cursor;
use std::path::Path;

use tiff::TiffError;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::{ColorType, tags::SampleFormat, tags::Tag};

use super::{MAX_DECODER_BYTES, check_size};
use crate::{Alpha, DataError, Image, Pixels};

/// Decodes bands as they are; `None` where `image` does it (RGB, RGBA, CMYK, gray of up to 16 bits).
pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<Option<Image>, DataError> {
    if let Some(indices) = palette_as_gray(bytes) {
        return decode_palette(&indices, path).map(Some);
    }
    decode_bands(bytes, path)
}

fn decode_bands(bytes: &[u8], path: &Path) -> Result<Option<Image>, DataError> {
    let fail = |e| from_tiff_error(e, path);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fail)?;
    let (width, height) = decoder.dimensions().map_err(fail)?;
    check_size(width, height, path)?;
    let formats: Option<Vec<u16>> = decoder.find_tag_unsigned_vec(Tag::SampleFormat).map_err(fail)?;
    let unsigned = formats.iter().flatten().all(|&f| SampleFormat::from_u16(f) == Some(SampleFormat::Uint));
    let color = decoder.colortype().map_err(fail)?;
    if unsigned && color.bit_depth() <= 16 && !matches!(color, ColorType::Multiband { bit_depth: 8.., .. }) {
        return Ok(None);
    }
    let alpha = if matches!(color, ColorType::RGBA(_)) { Alpha::Last } else { Alpha::Opaque };
    let channels = match color {
        ColorType::Multiband { bit_depth: 8 | 16 | 32 | 64, num_samples } => usize::from(num_samples),
        ColorType::Gray(8 | 16 | 32 | 64) => 1,
        ColorType::RGB(8 | 16 | 32 | 64) => 3,
        ColorType::RGBA(8 | 16 | 32 | 64) => 4,
        _ => return Ok(None),
    };
    let nodata = nodata(&mut decoder).map_err(fail)?;
    let mut decoder = decoder.with_limits(limits());
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(fail)?;
    let (width, height) = (width as usize, height as usize);
    let pixels = into_pixels(samples, layout.planes, nodata);
    if pixels.len() != width * height * channels {
        return Err(DataError::Damaged {
            path: path.to_owned(),
            reason: format!("expected {} samples, found {}", width * height * channels, pixels.len()),
        });
    }
    Ok(Some(Image { width, height, channels, pixels, alpha }))
}

/// The value that stands for a missing sample: GDAL's tag, a number as text.
fn nodata(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<Option<f32>, TiffError> {
    let Some(value) = decoder.find_tag(Tag::GdalNodata)? else { return Ok(None) };
    // A tag of another type than text is not GDAL's.
    Ok(value.into_string().ok().and_then(|text| text.trim_matches(['\0', ' ']).parse().ok()))
}

/// Unsigned integers of 8 and 16 bits keep their type; all others become floats of the same value, missing ones NaN.
fn into_pixels(samples: DecodingResult, planes: usize, nodata: Option<f32>) -> Pixels {
    let missing = |v: f32| if Some(v) == nodata { f32::NAN } else { v };
    macro_rules! floats {
        ($samples:expr, $float:expr) => {
            Pixels::F32(interleave($samples.into_iter().map($float).map(missing).collect(), planes))
        };
    }
    match samples {
        DecodingResult::U8(v) => Pixels::U8(interleave(v, planes)),
        DecodingResult::U16(v) => Pixels::U16(interleave(v, planes)),
        DecodingResult::F16(v) => floats!(v, f32::from),
        DecodingResult::F32(v) => floats!(v, |x| x),
        DecodingResult::F64(v) => floats!(v, |x| x as f32),
        DecodingResult::U32(v) => floats!(v, |x| x as f32),
        DecodingResult::U64(v) => floats!(v, |x| x as f32),
        DecodingResult::I8(v) => floats!(v, f32::from),
        DecodingResult::I16(v) => floats!(v, f32::from),
        DecodingResult::I32(v) => floats!(v, |x| x as f32),
        DecodingResult::I64(v) => floats!(v, |x| x as f32),
    }
}

/// Planar bands `[planes, pixels]` to interleaved `[pixels, planes]`.
fn interleave<T: Copy>(samples: Vec<T>, planes: usize) -> Vec<T> {
    if planes <= 1 {
        return samples;
    }
    let pixels = samples.len() / planes;
    (0..pixels).flat_map(|p| (0..planes).map(move |c| (c, p))).map(|(c, p)| samples[c * pixels + p]).collect()
}

/// A copy of a palette TIFF in which the colour numbers are declared to be gray: the `tiff` crate reads no palettes, but
/// gives gray samples and the colour map. `None` for other files (BigTIFF, which nobody writes with palettes, included).
fn palette_as_gray(bytes: &[u8]) -> Option<Vec<u8>> {
    const PHOTOMETRIC: u16 = 262;
    const PALETTE: u16 = 3;
    const GRAY: u16 = 1;
    let little = match bytes.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let pair: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let offset: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let directory = if little { u32::from_le_bytes(offset) } else { u32::from_be_bytes(offset) } as usize;
    for entry in 0..usize::from(short(directory)?) {
        // An entry has 12 bytes: tag, type, count, value.
        let at = directory + 2 + entry * 12;
        if short(at)? == PHOTOMETRIC {
            if short(at + 8)? != PALETTE {
                return None;
            }
            let mut copy = bytes.to_vec();
            let gray = if little { GRAY.to_le_bytes() } else { GRAY.to_be_bytes() };
            copy.get_mut(at + 8..at + 10)?.copy_from_slice(&gray);
            return Some(copy);
        }
    }
    None
}

/// Decodes colour numbers of 8 bits and looks up their colours.
fn decode_palette(bytes: &[u8], path: &Path) -> Result<Image, DataError> {
    let fail = |e| from_tiff_error(e, path);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(fail)?;
    let (width, height) = decoder.dimensions().map_err(fail)?;
    check_size(width, height, path)?;
    let map = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(fail)?;
    let mut decoder = decoder.with_limits(limits());
    if decoder.colortype().map_err(fail)? != ColorType::Gray(8) || map.len() != 3 * 256 {
        return Err(unsupported(path, "a palette of other than 256 colours"));
    }
    let DecodingResult::U8(indices) = decoder.read_image().map_err(fail)? else {
        return Err(unsupported(path, "a palette with samples that are not bytes"));
    };
    // The map holds all reds, then all greens, then all blues, in 16 bits.
    let color = |i: u8| [0, 256, 512].map(|part| (map[part + usize::from(i)] >> 8) as u8);
    let pixels = Pixels::U8(indices.into_iter().flat_map(color).collect());
    Ok(Image { width: width as usize, height: height as usize, channels: 3, pixels, alpha: Alpha::Opaque })
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_DECODER_BYTES as usize;
    limits.intermediate_buffer_size = MAX_DECODER_BYTES as usize;
    limits
}

fn unsupported(path: &Path, found: &str) -> DataError {
    DataError::Unsupported { path: path.to_owned(), found: found.into() }
}

fn from_tiff_error(error: TiffError, path: &Path) -> DataError {
    let path = path.to_owned();
    match error {
        TiffError::UnsupportedError(e) => DataError::Unsupported { path, found: e.to_string() },
        TiffError::LimitsExceeded => DataError::TooLarge {
            path,
            limit: format!("{MAX_DECODER_BYTES} bytes"),
            found: "a TIFF that needs more".into(),
        },
        other => DataError::Damaged { path, reason: other.to_string() },
    }
}
