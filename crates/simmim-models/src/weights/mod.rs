//! Weight files: every container in, safetensors out, and the names that encoders carry elsewhere.

mod card;
mod dialect;
mod facts;
mod fit;
mod format;
mod hub;
mod hub_swin;
mod interpolate;
mod load;
mod swin;
mod timm;

pub use card::{Card, Resample, Stages};
pub use dialect::{Dialect, Translation};
pub use facts::{Facts, Structure, SwinFacts, ratio};
pub use fit::{
    Fate, Fitted, May, Target, encoder_for_classifier, head_classes, match_classifier, match_parameters,
    normalises_pooled, with_our_names,
};
pub use format::{Element, Entry, Format, Stored, sniff};
pub use hub::{Folder, Images, Model, Purpose};
pub use hub_swin::SwinModel;
pub use load::Loaded;
pub use timm::{classifier_to_timm, encoder_to_timm, timm_call};

use crate::error::ModelError;
use safetensors::{Dtype, SafeTensorError, View};
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

fn io(path: &Path) -> impl Fn(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Io { path: path.to_owned(), source }
}

fn unwritable(path: &Path, what: &str) -> ModelError {
    ModelError::Format { path: path.to_owned(), what: what.to_owned(), help: "write to another place".to_owned() }
}

/// Reads the float tensors of a file, whatever its container; `f16`, `bf16` and `f64` are converted, integer tensors (such as position
/// indices) are left out.
///
/// # Errors
/// As [`Stored::open`] and [`Stored::read`].
pub fn read(path: &Path) -> Result<Weights, ModelError> {
    Ok(read_described(path)?.0)
}

/// As [`read`], with the text that [`write_described`] put into the file; none where it holds none.
///
/// # Errors
/// As [`read`].
pub fn read_described(path: &Path) -> Result<(Weights, Option<String>), ModelError> {
    let stored = Stored::open(path)?;
    let floats = stored.tensors().iter().filter(|(_, e)| e.element.is_float()).map(|(name, _)| name.as_str());
    Ok((stored.read_all(floats)?, stored.metadata.get(METADATA_KEY).cloned()))
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
    write_whole(path, weights, description.map(|text| (METADATA_KEY, text)))
}

/// As [`write()`], with the metadata by which Hugging Face knows tensors of PyTorch.
///
/// # Errors
/// [`ModelError::Io`].
pub fn write_for_torch(path: &Path, weights: &Weights) -> Result<(), ModelError> {
    write_whole(path, weights, Some(("format", "pt".to_owned())))
}

fn write_whole(path: &Path, weights: &Weights, metadata: Option<(&str, String)>) -> Result<(), ModelError> {
    let shapes = weights.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect();
    let fetch = |name: &str| Ok(weights.get(name).map(|t| t.data.clone()).unwrap_or_default());
    write_tensors(path, shapes, fetch, metadata)
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
    metadata: Option<(&str, String)>,
) -> Result<(), E> {
    let source = RefCell::new(Source { fetch, failure: None });
    let tensors = shapes.into_iter().map(|(name, shape)| (name.clone(), Streamed { name, shape, source: &source }));
    let metadata = metadata.map(|(key, text)| HashMap::from([(key.to_owned(), text)]));
    let file = AtomicFile::create(path).map_err(io(path))?.close();
    let written = safetensors::serialize_to_file(tensors, metadata, file.path());
    if let Some(failure) = source.into_inner().failure {
        return Err(failure);
    }
    match written {
        Err(SafeTensorError::IoError(e)) => return Err(io(path)(e).into()),
        Err(e) => return Err(unwritable(path, &e.to_string()).into()),
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
            _ => Err(unwritable(&path, "gone")),
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
