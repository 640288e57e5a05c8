//! Weight files: safetensors in and out, and the names that encoders carry elsewhere.

mod interpolate;
mod names;
mod transfer;

pub use names::{encoder_to_timm, head_classes, match_parameters, normalises_pooled, timm_call};
pub use transfer::{classifier_to_timm, encoder_for_classifier, match_classifier};

use crate::error::ModelError;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use simmim_files::AtomicFile;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A tensor by shape and row-major contents.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Contents.
    pub data: Vec<f32>,
}

/// Tensors by name.
pub type Weights = BTreeMap<String, Tensor>;

/// Largest file that is read: far above any vision transformer, far below what a wrong path could name.
const LARGEST: u64 = 64 << 30;

fn io(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io { path: path.to_owned(), source }
}

fn format(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Format { path: path.to_owned(), reason: reason.into() }
}

/// Reads a safetensors file; `f16`, `bf16` and `f64` are converted, integer tensors (such as position indices) are left out.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Format`] for anything that is not a whole safetensors file.
pub fn read(path: &Path) -> Result<Weights, ModelError> {
    Ok(read_described(path)?.0)
}

/// As [`read`], with the text that [`write_described`] put into the file; none where it holds none.
///
/// # Errors
/// As [`read`].
pub fn read_described(path: &Path) -> Result<(Weights, Option<String>), ModelError> {
    let size = std::fs::metadata(path).map_err(io(path))?.len();
    if size > LARGEST {
        return Err(format(path, format!("{size} bytes are more than any model here has")));
    }
    let bytes = std::fs::read(path).map_err(io(path))?;
    let broken = |e: SafeTensorError| format(path, e.to_string());
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let description = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)).cloned();
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut weights = Weights::new();
    for (name, view) in file.iter() {
        if let Some(data) = to_f32(&view) {
            weights.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), data });
        }
    }
    if weights.is_empty() {
        return Err(format(path, "it holds no float tensors"));
    }
    Ok((weights, description))
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let halves = || data.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
    Some(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        Dtype::BF16 => halves().map(|h| f32::from_bits(u32::from(h) << 16)).collect(),
        Dtype::F16 => halves().map(half_to_f32).collect(),
        _ => return None,
    })
}

/// IEEE 754 binary16 to binary32.
fn half_to_f32(h: u16) -> f32 {
    let sign = if h >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(h >> 10 & 31), f32::from(h & 1023));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// Key under which a file's metadata carries what this program knows of it. One key, because the format leaves the order of
/// several open, and equal runs should give equal files.
const METADATA_KEY: &str = "simmim";

/// Writes a safetensors file, which appears at `path` whole or not at all.
///
/// # Errors
/// [`ModelError::Io`].
pub fn write(path: &Path, weights: &Weights) -> Result<(), ModelError> {
    write_described(path, weights, None)
}

/// As [`write()`], with a text that says what the weights are ([`read_described`]).
///
/// # Errors
/// [`ModelError::Io`].
pub fn write_described(path: &Path, weights: &Weights, description: Option<String>) -> Result<(), ModelError> {
    let shapes = weights.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect();
    let fetch = |name: &str| Ok(weights.get(name).map(|t| t.data.clone()).unwrap_or_default());
    write_tensors(path, shapes, fetch, description)
}

/// As [`write()`], but each tensor is fetched when its turn comes: no more than one is held besides what the caller holds.
///
/// # Errors
/// [`ModelError::Io`], and what `fetch` fails with; the file at `path` is then as before.
pub fn write_streamed<E: From<ModelError>>(
    path: &Path,
    shapes: Vec<(String, Vec<usize>)>,
    fetch: impl FnMut(&str) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    write_tensors(path, shapes, fetch, None)
}

fn write_tensors<E: From<ModelError>>(
    path: &Path,
    shapes: Vec<(String, Vec<usize>)>,
    fetch: impl FnMut(&str) -> Result<Vec<f32>, E>,
    description: Option<String>,
) -> Result<(), E> {
    let source = RefCell::new(Source { fetch, failure: None });
    let tensors = shapes.into_iter().map(|(name, shape)| (name.clone(), Streamed { name, shape, source: &source }));
    let metadata = description.map(|text| HashMap::from([(METADATA_KEY.to_owned(), text)]));
    let file = AtomicFile::create(path).map_err(io(path))?.close();
    let written = safetensors::serialize_to_file(tensors, metadata, file.path());
    if let Some(failure) = source.into_inner().failure {
        return Err(failure);
    }
    match written {
        Err(SafeTensorError::IoError(e)) => return Err(io(path)(e).into()),
        Err(e) => return Err(format(path, e.to_string()).into()),
        Ok(()) => {}
    }
    Ok(file.commit().map_err(io(path))?)
}

/// Where [`Streamed`] tensors come from, and the first failure there: the writer itself knows no failing tensors.
struct Source<F, E> {
    fetch: F,
    failure: Option<E>,
}

/// A tensor that is fetched when it is written.
struct Streamed<'a, F, E> {
    name: String,
    shape: Vec<usize>,
    source: &'a RefCell<Source<F, E>>,
}

impl<F: FnMut(&str) -> Result<Vec<f32>, E>, E> View for Streamed<'_, F, E> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut source = self.source.borrow_mut();
        let values = (source.fetch)(&self.name).unwrap_or_else(|e| {
            source.failure.get_or_insert(e);
            Vec::new()
        });
        Cow::Owned(bytemuck::cast_slice(&values).to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_converted() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 5.960_464_5e-8), (0x7bff, 65504.0)] {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7e00).is_nan() && half_to_f32(0xfc00) == f32::NEG_INFINITY);
    }

    #[test]
    fn weights_are_as_readable_as_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("w.safetensors"), folder.path().join("other"));
        let weights = Weights::from([("a".to_owned(), Tensor { shape: vec![1], data: vec![1.0] })]);
        write(&path, &weights).unwrap();
        std::fs::write(&other, b"x").unwrap();
        let permissions = |p: &Path| std::fs::metadata(p).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&other));
    }

    #[test]
    fn a_tensor_that_cannot_be_fetched_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let shapes = || vec![("a".to_owned(), vec![2]), ("b".to_owned(), vec![1])];
        write_streamed::<ModelError>(&path, shapes(), |name| Ok(vec![1.0; if name == "a" { 2 } else { 1 }])).unwrap();
        let before = std::fs::read(&path).unwrap();
        let failed = write_streamed(&path, shapes(), |name| match name {
            "a" => Ok(vec![2.0; 2]),
            _ => Err(format(&path, "gone")),
        });
        assert!(failed.unwrap_err().to_string().contains("gone"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn what_is_written_is_read_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let tensor = Tensor { shape: vec![2, 3], data: vec![1.0, -2.0, 3.5, 0.0, 1e-30, 7.0] };
        let weights = Weights::from([("a".to_owned(), tensor)]);
        write(&path, &weights).unwrap();
        assert_eq!(read(&path).unwrap(), weights);
        let whole = std::fs::read(&path).unwrap();
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        for damaged in [&whole[..whole.len() - 1], &whole[..4], &[], b"not a weight file at all", &huge] {
            std::fs::write(&path, damaged).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, ModelError::Format { .. }), "{error}");
            assert!(error.to_string().contains("w.safetensors"));
        }
    }
}
