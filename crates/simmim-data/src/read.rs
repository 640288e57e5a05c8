//! From a sample of a source to a row of a batch, by the shortest way: a crop is chosen from the size that the header of a
//! file gives, and only what it needs is decoded; or decoded pixels come from a cache.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use crate::augment::Crop;
use crate::cache::{Cache, Hit, Layout, Stamp};
use crate::decode::{self, MAX_FILE_BYTES, jpeg};
use crate::loader::lock;
use crate::orientation::{shown_size, stored_part, swaps};
use crate::region::Region;
use crate::resize::{Resizer, Target, Window};
use crate::{Alpha, DataError, Image, Interpolation, Pixels, Source, Transform};

/// A smaller size is decoded where the crop has at least this many quarters of the result's width and height in it. At 5 a sharp
/// photograph differed from filtering all pixels by 2.2 of 255 in the mean (libjpeg's reduced decoding: 1.9), at 6 by less than 1.
const QUARTERS: usize = 6;

/// How image files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Whether JPEG files whose crop is much larger than the result are decoded at a half, a quarter or an eighth of their
    /// size: faster, with a mean difference well below 2/255. Otherwise every pixel of the crop counts.
    pub scaled_decoding: bool,
}

impl Default for Reading {
    /// Scaled decoding.
    fn default() -> Self {
        Self { scaled_decoding: true }
    }
}

/// Reads samples for one transform.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) transform: &'a Transform,
    pub(crate) reading: Reading,
    pub(crate) cache: Option<&'a Cache>,
}

/// Scratch memory, reused from image to image.
#[derive(Default)]
struct Buffers {
    path: PathBuf,
    file: Vec<u8>,
    jpeg: jpeg::Workspace,
    decoded: Vec<u8>,
    converted: Vec<u8>,
    resizer: Resizer,
    resized: Vec<u8>,
    cached: Vec<u8>,
}

/// Buffers that go back to a pool when they are dropped: the threads that fill a batch live no longer than it.
pub(crate) struct Scratch(Option<Buffers>);

/// More than this many are not kept.
const MAX_SPARE: usize = 256;

static SPARE: Mutex<Vec<Buffers>> = Mutex::new(Vec::new());

impl Scratch {
    pub(crate) fn take() -> Self {
        Self(Some(lock(&SPARE).pop().unwrap_or_default()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut spare = lock(&SPARE);
        if spare.len() < MAX_SPARE {
            spare.extend(self.0.take());
        }
    }
}

/// Pixels as they are stored, before they are turned as EXIF says; the bytes themselves are in a buffer.
#[derive(Clone, Copy)]
struct Decoded {
    window: Region,
    channels: usize,
    shift: u32,
    orientation: u8,
}

impl Reader<'_> {
    /// Writes a view of a sample to `out`, of shape `[channels, height, width]`; `choose` gets the width and height of the
    /// image as it is shown. Returns whether the image had transparent pixels that are no longer there.
    pub(crate) fn fill(
        &self,
        index: usize,
        choose: impl FnOnce((usize, usize)) -> Crop,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<bool, DataError> {
        self.transform.check(self.transform.channels, out)?;
        let buffers = scratch.0.get_or_insert_default();
        if !self.source.file(index, &mut buffers.path)? {
            let image = self.source.load(index, self.transform.wanted())?;
            return self.render(&image, choose, out);
        }
        match self.cache {
            Some(cache) => self.fill_cached(cache, index, choose, buffers, out),
            None => {
                decode::read_into(&buffers.path, MAX_FILE_BYTES, &mut buffers.file)?;
                self.fill_decoded(choose, buffers, out)
            }
        }
    }

    /// Decodes what the crop needs of `buffers.file`.
    fn fill_decoded(
        &self,
        choose: impl FnOnce((usize, usize)) -> Crop,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<bool, DataError> {
        let Some(header) = self.jpeg_header(buffers)? else {
            let image = decode::decode(&buffers.file, &buffers.path, self.transform.wanted())?;
            return self.render(&image, choose, out);
        };
        let size = (header.width, header.height);
        let crop = choose(shown_size(size, header.orientation));
        let part = stored_part(crop.part, size, header.orientation);
        let shift = if self.reading.scaled_decoding { self.shift(part, header.orientation) } else { 0 };
        if let Some(decoded) = self.decode_jpeg(&header, part, shift, buffers) {
            self.finish(decoded, Crop { part, ..crop }, buffers, out);
            return Ok(false);
        }
        let image = decode::decode(&buffers.file, &buffers.path, self.transform.wanted())?;
        if shown_size(size, header.orientation) != (image.width, image.height) {
            let reason = "two decoders find different sizes".into();
            return Err(DataError::Damaged { path: buffers.path.clone(), reason });
        }
        self.render(&image, |_| crop, out)
    }

    /// Writes a view of a decoded image.
    fn render(
        &self,
        image: &Image,
        choose: impl FnOnce((usize, usize)) -> Crop,
        out: &mut [f32],
    ) -> Result<bool, DataError> {
        self.transform.render(image, choose((image.width, image.height)), out)?;
        Ok(image.alpha == Alpha::Removed)
    }

    /// The header of the file at hand where it is a JPEG that can be decoded in part.
    fn jpeg_header(&self, buffers: &Buffers) -> Result<Option<jpeg::Header>, DataError> {
        if !matches!(self.transform.channels, 1 | 3) || !buffers.file.starts_with(&[0xff, 0xd8, 0xff]) {
            return Ok(None);
        }
        let Ok(header) = jpeg::Header::parse(&buffers.file) else { return Ok(None) };
        decode::check_size(header.width as u32, header.height as u32, &buffers.path)?;
        decode::check_jpeg_end(&buffers.file, &buffers.path)?;
        Ok(Some(header))
    }

    /// How far a part of a stored image can be reduced while it is decoded.
    fn shift(&self, part: Region, orientation: u8) -> u32 {
        let (height, width) = self.transform.size;
        let (width, height) = if swaps(orientation) { (height, width) } else { (width, height) };
        let enough = |shift: &u32| {
            (part.width >> shift) * 4 >= width * QUARTERS && (part.height >> shift) * 4 >= height * QUARTERS
        };
        (1..=3).rev().find(enough).unwrap_or(0)
    }

    /// Decodes a part of the file at hand into `buffers.decoded`, in the channels of the transform; `None` leaves it to the
    /// general decoder.
    fn decode_jpeg(&self, header: &jpeg::Header, part: Region, shift: u32, buffers: &mut Buffers) -> Option<Decoded> {
        let Buffers { file, jpeg, decoded, converted, .. } = buffers;
        // As for the other decoders, a panic must cost one image at most and not the run.
        let window = catch_unwind(AssertUnwindSafe(|| jpeg.decode(file, header, part, shift, decoded))).ok()?.ok()?;
        let channels = self.transform.channels;
        if header.channels() != channels {
            crate::pixels::convert_bytes(decoded, header.channels(), channels, converted);
            std::mem::swap(decoded, converted);
        }
        Some(Decoded { window, channels, shift, orientation: header.orientation })
    }

    /// Resizes and normalises `buffers.decoded`. The part of the crop is one of the stored image.
    fn finish(&self, decoded: Decoded, crop: Crop, buffers: &mut Buffers, out: &mut [f32]) {
        let Buffers { decoded: pixels, resizer, resized, .. } = buffers;
        let Decoded { window, channels, shift, orientation } = decoded;
        let source = Window { pixels: pixels.as_slice(), channels, window, shift };
        self.transform.resize_bytes(&source, crop, orientation, resizer, resized);
        self.transform.normalise_bytes(resized, out);
    }

    /// Takes the pixels from the cache, or decodes the whole image and puts them there. Which of both happens never shows:
    /// the pixels follow from the file and the settings.
    fn fill_cached(
        &self,
        cache: &Cache,
        index: usize,
        choose: impl FnOnce((usize, usize)) -> Crop,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<bool, DataError> {
        let channels = self.transform.wanted();
        let stamp = Stamp::of(&buffers.path)?;
        let hit = cache.get(index, &buffers.path, stamp, channels, &mut buffers.cached);
        if let Some(hit) = hit {
            let Buffers { cached, resizer, resized, .. } = buffers;
            let (layout, pixels) = match &hit {
                Hit::Memory(entry) => (entry.layout, &entry.pixels[..]),
                Hit::Disk(layout, range) => (*layout, &cached[range.clone()]),
            };
            self.show(layout, pixels, choose, resizer, resized, out);
            return Ok(layout.background.is_some());
        }
        decode::read_into(&buffers.path, MAX_FILE_BYTES, &mut buffers.file)?;
        let layout = match self.decode_whole(cache.size(), buffers)? {
            Whole::Bytes(layout) => layout,
            Whole::Other(image) => return self.render(&image, choose, out),
        };
        let Buffers { path, decoded, resizer, resized, .. } = buffers;
        let pixels = &decoded[..layout.width * layout.height * channels.count];
        cache.put(index, path, stamp, channels.count, layout, pixels);
        self.show(layout, pixels, choose, resizer, resized, out);
        Ok(layout.background.is_some())
    }

    fn show(
        &self,
        layout: Layout,
        pixels: &[u8],
        choose: impl FnOnce((usize, usize)) -> Crop,
        resizer: &mut Resizer,
        resized: &mut Vec<u8>,
        out: &mut [f32],
    ) {
        let Layout { width, height, orientation, .. } = layout;
        let crop = choose(shown_size((width, height), orientation));
        let crop = Crop { part: stored_part(crop.part, (width, height), orientation), ..crop };
        let window = Region::whole(width, height);
        let source = Window { pixels, channels: self.transform.channels, window, shift: 0 };
        self.transform.resize_bytes(&source, crop, orientation, resizer, resized);
        self.transform.normalise_bytes(resized, out);
    }

    /// Decodes all of the file at hand into `buffers.decoded`, reduced so that the shorter side has `size` pixels (0: as it is).
    fn decode_whole(&self, size: usize, buffers: &mut Buffers) -> Result<Whole, DataError> {
        let channels = self.transform.channels;
        let decoded = self.jpeg_header(buffers)?.and_then(|header| {
            let shorter = header.width.min(header.height);
            let reduced = size > 0 && self.reading.scaled_decoding;
            let enough = |shift: &u32| reduced && (shorter >> shift) * 4 >= size * QUARTERS;
            let shift = (1..=3).rev().find(enough).unwrap_or(0);
            let whole = Region::whole(header.width, header.height);
            let decoded = self.decode_jpeg(&header, whole, shift, buffers)?;
            Some((decoded, header.width, header.height))
        });
        let mut background = None;
        let (decoded, width, height) = match decoded {
            Some(decoded) => decoded,
            None => {
                let image = decode::decode(&buffers.file, &buffers.path, self.transform.wanted())?;
                background = (image.alpha == Alpha::Removed).then_some(self.transform.background);
                let Pixels::U8(pixels) = image.pixels else { return Ok(Whole::Other(image)) };
                let window = Region::whole(image.width, image.height);
                buffers.decoded = pixels;
                (Decoded { window, channels, shift: 0, orientation: 1 }, image.width, image.height)
            }
        };
        let orientation = decoded.orientation;
        let shorter = width.min(height);
        if size == 0 || shorter <= size {
            return Ok(Whole::Bytes(Layout { width, height, orientation, background }));
        }
        let scaled = |side: usize| ((side * size) as f64 / shorter as f64).round().max(1.0) as usize;
        let (small_width, small_height) = (scaled(width), scaled(height));
        let Buffers { decoded: pixels, converted, resizer, .. } = buffers;
        let source = Window { pixels: pixels.as_slice(), channels, window: decoded.window, shift: decoded.shift };
        let part = Region::whole(width, height);
        let size = (small_height, small_width);
        converted.resize(small_width * small_height * channels, 0);
        resizer.bytes(&source, &Target { part, size, flip: false, interpolation: Interpolation::Bilinear }, converted);
        std::mem::swap(pixels, converted);
        Ok(Whole::Bytes(Layout { width: small_width, height: small_height, orientation, background }))
    }
}

/// A whole decoded image.
enum Whole {
    /// 8 bits: in `Buffers::decoded`.
    Bytes(Layout),
    /// Anything else, which is not cached.
    Other(Image),
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::open;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg").join(name)
    }

    /// Pixels in 0..255 of a view, planar.
    fn view(path: &Path, size: (usize, usize), crop: Crop, scaled_decoding: bool) -> Vec<f32> {
        let source = open(path).unwrap();
        let mut transform = Transform::new(size, 3);
        (transform.mean, transform.std) = (vec![0.0; 3], vec![1.0 / 255.0; 3]);
        let mut out = vec![0.0; transform.values()];
        let reading = Reading { scaled_decoding };
        let reader = Reader { source: &*source, transform: &transform, reading, cache: None };
        reader.fill(0, |_| crop, &mut Scratch::take(), &mut out).unwrap();
        out
    }

    fn mean_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32
    }

    #[test]
    fn views_of_a_photo_agree_with_pil() {
        let part = Region { left: 37, top: 21, width: 571, height: 440 };
        let expected = fixture("photo-view.png");
        let whole = Crop { part: Region::whole(96, 80), flip: false };
        let expected = view(&expected, (80, 96), whole, false);
        let exact = view(&fixture("photo.jpg"), (80, 96), Crop { part, flip: false }, false);
        let scaled = view(&fixture("photo.jpg"), (80, 96), Crop { part, flip: false }, true);
        assert!(mean_difference(&exact, &expected) < 0.3, "{}", mean_difference(&exact, &expected));
        let difference = mean_difference(&scaled, &expected);
        assert!(exact != scaled && difference < 1.0, "{difference}");
        let mut mirrored = view(&fixture("photo.jpg"), (80, 96), Crop { part, flip: true }, false);
        mirrored.chunks_exact_mut(96).for_each(<[f32]>::reverse);
        assert!(mean_difference(&mirrored, &exact) < 1e-6);
    }

    /// The stored image is cut and the result turned: the same as turning the image first, for every orientation.
    #[test]
    fn turned_photos_agree_with_the_general_decoder() {
        let folder = tempfile::tempdir().unwrap();
        let photo = std::fs::read(fixture("photo.jpg")).unwrap();
        for orientation in 1..=8u8 {
            let path = folder.path().join(format!("{orientation}.jpg"));
            let mut file = vec![0xff, 0xd8, 0xff, 0xe1, 0, 34];
            // An EXIF segment of one entry: tag 0x0112, type short, count 1.
            file.extend(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0");
            file.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
            file.extend(&photo[2..]);
            std::fs::write(&path, file).unwrap();
            let image = decode::decode_file(&path, 3.into()).unwrap();
            let (width, height) = shown_size((640, 480), orientation);
            assert_eq!((image.width, image.height), (width, height));
            let part = Region { left: 40, top: 24, width: width - 70, height: height - 31 };
            let mut transform = Transform::new((50, 70), 3);
            (transform.mean, transform.std) = (vec![0.0; 3], vec![1.0 / 255.0; 3]);
            for flip in [false, true] {
                let mut expected = vec![0.0; transform.values()];
                transform.render(&image, Crop { part, flip }, &mut expected).unwrap();
                let exact = view(&path, (50, 70), Crop { part, flip }, false);
                assert!(
                    mean_difference(&exact, &expected) < 0.5,
                    "{orientation}: {}",
                    mean_difference(&exact, &expected)
                );
                let scaled = view(&path, (50, 70), Crop { part, flip }, true);
                assert!(
                    mean_difference(&scaled, &expected) < 1.5,
                    "{orientation}: {}",
                    mean_difference(&scaled, &expected)
                );
            }
        }
    }
}
