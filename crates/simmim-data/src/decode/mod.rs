//! From the bytes of a file to an [`Image`], with limits against hostile input.

pub(crate) mod jpeg;
mod tiff_bands;

use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::{Alpha, Channels, DataError, Image, Pixels};

/// Largest number of pixels that an image may claim, 2^28 (16384 x 16384).
pub const MAX_PIXELS: u64 = 1 << 28;

/// Largest image file that is read, in bytes (1 GiB).
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// What one decoder may allocate in all: the largest image in RGBA with 16 bits.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8;

/// Decodes an image file into the channels that are wanted; the format is recognised by content, never by the name.
///
/// EXIF orientation is applied, as viewers do: crops of a sideways photo would teach the model sideways photos.
/// (torchvision's `ImageFolder` does not.) GIFs give their first frame, palettes are expanded, 16-bit samples
/// keep their depth. For channel conversion see [`Image::into_channels`].
///
/// # Errors
/// [`DataError`] with the path for unreadable, unknown, damaged or too large files, and for channels that the file
/// cannot give.
pub(crate) fn decode_file(path: &Path, channels: Channels) -> Result<Image, DataError> {
    let bytes = read_limited(path, MAX_FILE_BYTES)?;
    decode(&bytes, path, channels)
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    read_into(path, limit, &mut bytes)?;
    Ok(bytes)
}

/// Replaces `bytes` by those of a whole file of at most `limit` bytes.
pub(crate) fn read_into(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> Result<(), DataError> {
    let io = |e| DataError::io(path, e);
    let file = std::fs::File::open(path).map_err(io)?;
    let claimed = file.metadata().map_err(io)?.len();
    bytes.clear();
    // One byte more than there should be: the read that finds the end needs room too.
    bytes.reserve((claimed.min(limit) + 1) as usize);
    // One byte more than allowed tells a file at the limit from one beyond it (or a pipe without end).
    file.take(limit + 1).read_to_end(bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            limit: format!("{limit} bytes"),
            found: format!("{} bytes or more", claimed.max(limit + 1)),
        });
    }
    Ok(())
}

/// Decodes an image in memory into the channels that are wanted; `path` names it in errors. A number of channels alone
/// composites transparency on white.
///
/// The format is recognised by content. EXIF orientation is applied, GIFs give their first frame, palettes are
/// expanded, 16-bit samples keep their depth; [`Image::into_channels`] says how channels are converted.
///
/// Samples of a TIFF that are floats, signed or wider than 16 bits become floats of the same value. Missing ones (NaN, infinite, or
/// what the tag `GDAL_NODATA` names) get the mean of the others in their band, which leaves the image's statistics as they are and
/// makes no edge that a resize would smear.
///
/// # Errors
/// [`DataError::UnknownFormat`], [`DataError::Damaged`], [`DataError::Unsupported`], [`DataError::TooLarge`] or
/// [`DataError::Channels`].
pub fn decode(bytes: &[u8], path: &Path, channels: impl Into<Channels>) -> Result<Image, DataError> {
    // Decoders are written for hostile input, but a panic in one of them must cost one image and not the run.
    let mut decoded = catch_unwind(AssertUnwindSafe(|| decode_native(bytes, path)))
        .unwrap_or_else(|_| Err(DataError::Damaged { path: path.to_owned(), reason: "the decoder panicked".into() }))?;
    if decoded.pixels.is_empty() || decoded.pixels.len() != decoded.width * decoded.height * decoded.channels {
        return Err(DataError::Damaged { path: path.to_owned(), reason: "it has no pixels".into() });
    }
    if let Pixels::F32(samples) = &mut decoded.pixels {
        fill_missing(samples, decoded.channels, path)?;
    }
    decoded.into_channels(channels, path)
}

/// Replaces samples that are not finite by the mean of the finite ones in their band.
fn fill_missing(samples: &mut [f32], bands: usize, path: &Path) -> Result<(), DataError> {
    if samples.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    for band in 0..bands {
        let valid = samples.iter().skip(band).step_by(bands).filter(|v| v.is_finite());
        let (count, sum) = valid.fold((0usize, 0.0f64), |(count, sum), &v| (count + 1, sum + f64::from(v)));
        if count == 0 {
            let reason = format!("all samples of band {} are missing (NaN, infinite or nodata)", band + 1);
            return Err(DataError::Damaged { path: path.to_owned(), reason });
        }
        let mean = (sum / count as f64) as f32;
        samples.iter_mut().skip(band).step_by(bands).filter(|v| !v.is_finite()).for_each(|v| *v = mean);
    }
    Ok(())
}

/// Whether the bytes begin like one of the supported formats.
pub(crate) fn is_image(start: &[u8]) -> bool {
    format_of(start).is_some()
}

fn format_of(start: &[u8]) -> Option<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    // BigTIFF has a magic number of its own, which `image` does not guess.
    if start.starts_with(b"II+\0") || start.starts_with(b"MM\0+") {
        return Some(Tiff);
    }
    image::guess_format(start).ok().filter(|f| matches!(f, Bmp | Gif | Jpeg | Png | Tiff | WebP))
}

/// What the first bytes look like, for messages.
pub(crate) fn describe_start(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(8)];
    match bytes {
        [] => "an empty file".into(),
        [b'<', ..] => "a file that starts with `<` (HTML or XML?)".into(),
        [b'P', b'K', 3, 4, ..] => "a zip archive".into(),
        _ if bytes.get(4..8) == Some(b"ftyp".as_slice()) => "an ISO media file (AVIF, HEIC or video)".into(),
        _ if start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            format!("a file that starts with {:?}", String::from_utf8_lossy(start))
        }
        _ => format!("a file that starts with bytes {start:02x?}"),
    }
}

fn decode_native(bytes: &[u8], path: &Path) -> Result<Image, DataError> {
    let Some(format) = format_of(bytes) else {
        return Err(DataError::UnknownFormat { path: path.to_owned(), found: describe_start(bytes) });
    };
    match format {
        ImageFormat::Jpeg => check_jpeg_end(bytes, path)?,
        ImageFormat::Tiff => {
            if let Some(image) = tiff_bands::decode(bytes, path)? {
                return Ok(image);
            }
        }
        _ => {}
    }
    let fail = |e| from_image_error(e, path);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, path)?;
    let orientation = decoder.orientation().map_err(fail)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    image.apply_orientation(orientation);
    from_dynamic(image, path)
}

/// Refuses a JPEG that ends before its picture does.
pub(crate) fn check_jpeg_end(bytes: &[u8], path: &Path) -> Result<(), DataError> {
    if jpeg_is_complete(bytes) {
        return Ok(());
    }
    Err(DataError::Damaged { path: path.to_owned(), reason: "the JPEG data ends early".into() })
}

/// Refuses an image whose header claims too many pixels, before anything is allocated for them.
pub(crate) fn check_size(width: u32, height: u32, path: &Path) -> Result<(), DataError> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            limit: format!("{MAX_PIXELS} pixels"),
            found: format!("{width} x {height}"),
        });
    }
    if width == 0 || height == 0 {
        return Err(DataError::Damaged { path: path.to_owned(), reason: format!("its size is {width} x {height}") });
    }
    Ok(())
}

fn from_dynamic(image: DynamicImage, path: &Path) -> Result<Image, DataError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let alpha = if image.color().has_alpha() { Alpha::Last } else { Alpha::Opaque };
    let (channels, pixels) = match image {
        DynamicImage::ImageLuma8(i) => (1, Pixels::U8(i.into_raw())),
        DynamicImage::ImageLumaA8(i) => (2, Pixels::U8(i.into_raw())),
        DynamicImage::ImageRgb8(i) => (3, Pixels::U8(i.into_raw())),
        DynamicImage::ImageRgba8(i) => (4, Pixels::U8(i.into_raw())),
        DynamicImage::ImageLuma16(i) => (1, Pixels::U16(i.into_raw())),
        DynamicImage::ImageLumaA16(i) => (2, Pixels::U16(i.into_raw())),
        DynamicImage::ImageRgb16(i) => (3, Pixels::U16(i.into_raw())),
        DynamicImage::ImageRgba16(i) => (4, Pixels::U16(i.into_raw())),
        DynamicImage::ImageRgb32F(i) => (3, Pixels::F32(i.into_raw())),
        DynamicImage::ImageRgba32F(i) => (4, Pixels::F32(i.into_raw())),
        // DynamicImage may grow; a new layout is an error to report, not a reason to fail the build.
        other => {
            return Err(DataError::Unsupported {
                path: path.to_owned(),
                found: format!("pixels of type {:?}", other.color()),
            });
        }
    };
    Ok(Image { width, height, channels, pixels, alpha })
}

fn from_image_error(error: ImageError, path: &Path) -> DataError {
    let path = path.to_owned();
    match error {
        ImageError::Limits(e) => DataError::TooLarge {
            path,
            limit: format!("{MAX_PIXELS} pixels and {MAX_DECODER_BYTES} bytes"),
            found: e.to_string(),
        },
        ImageError::Unsupported(e) => DataError::Unsupported { path, found: e.to_string() },
        other => DataError::Damaged { path, reason: other.to_string() },
    }
}

/// Whether a JPEG holds its end marker after its first scan began.
///
/// The decoder fills a missing rest with gray without a word; training on half-gray pictures is worse than leaving
/// them out. Entropy-coded data never contains the marker, thumbnails lie before the scan.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xff => at += 1,
            0xda => return bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            0x01 | 0xd0..=0xd7 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
        }
    }
    // No scan was found where one belongs. Decoders tolerate junk between segments, so the decoder decides.
    at < bytes.len()
}
