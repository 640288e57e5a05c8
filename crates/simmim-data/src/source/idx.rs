//! IDX files: the format of the MNIST family, gzipped or not.
//!
//! Layout: two zero bytes, a type (0x08 is unsigned byte), the number of dimensions, the dimensions as big-endian
//! `u32`, the data in row-major order.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::Source;
use crate::{Alpha, Channels, DataError, Image, Pixels};

/// Largest unpacked IDX file, in bytes (4 GiB; MNIST has 47 MB).
const MAX_IDX_BYTES: u64 = 1 << 32;

const UNSIGNED_BYTE: u8 = 0x08;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Gray images of one size, held in memory, with labels where there is a label file.
#[derive(Debug)]
pub struct IdxSource {
    path: PathBuf,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
    labels: Option<Vec<u8>>,
    classes: Vec<String>,
}

impl IdxSource {
    /// Reads an image file and, where it lies beside it under the usual name (`images` becomes `labels`, `idx3` becomes
    /// `idx1`, `.gz` added or removed), its label file.
    ///
    /// # Errors
    /// [`DataError::Idx`] for files that contradict themselves or each other; [`DataError::Missing`],
    /// [`DataError::Io`], [`DataError::TooLarge`].
    pub fn open(images: &Path) -> Result<Self, DataError> {
        let read = |path: &Path| {
            let file = std::fs::File::open(path).map_err(|e| DataError::io(path, e))?;
            let length = file.metadata().map_err(|e| DataError::io(path, e))?.len();
            read_idx(std::io::BufReader::new(file), length, path)
        };
        let labels = label_file(images).map(|path| Ok((read(&path)?, path))).transpose()?;
        Self::assemble(images, read(images)?, labels)
    }

    /// Reads images and labels (each gzipped or not) from memory; the paths name them in errors.
    ///
    /// # Errors
    /// [`DataError::Idx`] for data that contradicts itself.
    pub(crate) fn from_bytes(name: &str, images: &[u8], labels: &[u8]) -> Result<Self, DataError> {
        let path = PathBuf::from(name);
        let labels_path = PathBuf::from(format!("{name}-labels"));
        let labels = read_idx(labels, labels.len() as u64, &labels_path)?;
        Self::assemble(&path, read_idx(images, images.len() as u64, &path)?, Some((labels, labels_path)))
    }

    /// Replaces the class names `0`, `1`, ... by names that are known.
    pub(crate) fn with_class_names(mut self, names: &[&str]) -> Self {
        self.classes = names.iter().map(|&n| n.to_owned()).collect();
        self
    }

    fn assemble(path: &Path, images: Idx, labels: Option<(Idx, PathBuf)>) -> Result<Self, DataError> {
        let &[count, rows, cols] = images.dims.as_slice() else {
            return Err(mismatch(path, "images of 3 dimensions", format!("{} dimensions", images.dims.len())));
        };
        if count == 0 {
            return Err(DataError::NoImages { path: path.to_owned(), files: 0 });
        }
        if rows == 0 || cols == 0 {
            return Err(mismatch(path, "images with pixels", format!("{rows} x {cols} pixels")));
        }
        let labels = match labels {
            Some((labels, labels_path)) => {
                if labels.dims != [count] {
                    let found = format!("shape {:?}", labels.dims);
                    return Err(mismatch(&labels_path, format!("one label for each of {count} images"), found));
                }
                Some(labels.data)
            }
            None => None,
        };
        let classes = labels.iter().flatten().max().map_or(0, |&l| usize::from(l) + 1);
        let classes = (0..classes).map(|c| c.to_string()).collect();
        Ok(Self { path: path.to_owned(), rows, cols, data: images.data, labels, classes })
    }
}

impl Source for IdxSource {
    fn len(&self) -> usize {
        self.data.len() / (self.rows * self.cols)
    }

    fn name(&self, index: usize) -> String {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        if index < self.len() { format!("{file}#{index}") } else { String::new() }
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.as_ref()?.get(index).map(|&l| usize::from(l))
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        if index >= self.len() {
            return Err(DataError::OutOfRange { index, len: self.len() });
        }
        let pixels = self.rows * self.cols;
        let pixels = Pixels::U8(self.data[index * pixels..(index + 1) * pixels].to_vec());
        Image { width: self.cols, height: self.rows, channels: 1, pixels, alpha: Alpha::Opaque }
            .into_channels(channels, &self.path)
    }
}

/// A parsed IDX file of unsigned bytes.
struct Idx {
    dims: Vec<usize>,
    data: Vec<u8>,
}

/// Reads an IDX file of `length` stored bytes, unpacking it if it is gzipped.
fn read_idx(mut reader: impl Read, length: u64, path: &Path) -> Result<Idx, DataError> {
    let mut start = Vec::new();
    reader.by_ref().take(2).read_to_end(&mut start).map_err(|e| DataError::io(path, e))?;
    let gzipped = start == GZIP;
    let all = std::io::Cursor::new(start).chain(reader);
    if gzipped {
        // Deflate packs at most 1032 to 1: a header that claims more is a lie, found before unpacking.
        parse_idx(MultiGzDecoder::new(all), length.saturating_mul(1032), path)
    } else {
        parse_idx(all, length, path)
    }
}

/// Parses an IDX stream that can hold at most `possible` bytes.
fn parse_idx(mut reader: impl Read, possible: u64, path: &Path) -> Result<Idx, DataError> {
    let ended = |e: std::io::Error, what: &str| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => mismatch(path, what, "the end of the file"),
        _ => DataError::Damaged { path: path.to_owned(), reason: e.to_string() },
    };
    let mut magic = [0u8; 4];
    reader.read_exact(&mut magic).map_err(|e| ended(e, "a header of 4 bytes"))?;
    let [0, 0, kind, dimensions] = magic else {
        return Err(mismatch(path, "two zero bytes at the start", format!("bytes {magic:02x?}")));
    };
    if kind != UNSIGNED_BYTE {
        return Err(mismatch(path, "values of type 0x08 (unsigned byte)", format!("type {kind:#04x}")));
    }
    let mut dims = Vec::with_capacity(usize::from(dimensions));
    for _ in 0..dimensions {
        let mut size = [0u8; 4];
        reader.read_exact(&mut size).map_err(|e| ended(e, "the size of every dimension"))?;
        dims.push(u32::from_be_bytes(size));
    }
    let expected = dims.iter().try_fold(1u64, |product, &d| product.checked_mul(u64::from(d)));
    let expected = expected.filter(|&e| e <= MAX_IDX_BYTES).ok_or_else(|| DataError::TooLarge {
        path: path.to_owned(),
        limit: format!("{MAX_IDX_BYTES} bytes"),
        found: format!("a header that claims shape {dims:?}"),
    })?;
    if expected > possible {
        return Err(mismatch(path, format!("{expected} bytes of data for shape {dims:?}"), "a shorter file"));
    }
    let mut data = Vec::new();
    // One byte more than claimed tells whether something follows; memory grows with what is really there.
    reader.take(expected + 1).read_to_end(&mut data).map_err(|e| ended(e, "a complete file"))?;
    if data.len() as u64 != expected {
        let found = if data.len() as u64 > expected { "more".to_owned() } else { format!("{} bytes", data.len()) };
        return Err(mismatch(path, format!("{expected} bytes of data for shape {dims:?}"), found));
    }
    Ok(Idx { dims: dims.into_iter().map(|d| d as usize).collect(), data })
}

fn mismatch(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> DataError {
    DataError::Idx { path: path.to_owned(), expected: expected.into(), found: found.into() }
}

/// Whether a file begins like IDX or gzip.
pub(super) fn is_idx(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || start.starts_with(&[0, 0, UNSIGNED_BYTE])
}

/// The image file of a folder that holds IDX files at its top: the training images where there are several.
pub(super) fn find_images(folder: &Path) -> Result<Option<PathBuf>, DataError> {
    let io = |e| DataError::io(folder, e);
    let mut found: Vec<(bool, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        let is_images = stem.ends_with("idx3-ubyte") || stem.ends_with("idx3.ubyte");
        if is_images && !name.starts_with('.') && entry.path().is_file() {
            found.push((!name.contains("train"), entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().next().map(|(_, path)| path))
}

/// The label file beside an image file, if it is there.
fn label_file(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    if labels == name {
        return None;
    }
    let other = match labels.strip_suffix(".gz") {
        Some(plain) => plain.to_owned(),
        None => format!("{labels}.gz"),
    };
    [labels, other].iter().map(|n| images.with_file_name(n)).find(|p| p.is_file())
}
