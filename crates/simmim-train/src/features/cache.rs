//! Features kept in the folder of a run.
//!
//! A file holds the features of one layer and is named after what they follow from: the images (names, labels, and size and time of
//! change of their files, or the pixels where an image has no file of its own), the transform, model and pooling, the layer, and the
//! weights. It carries a hash of its contents; a damaged one is passed over and made again.

use super::{Features, Layer, Matrix, Plan};
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use simmim_data::{Channels, DataError, Pixels, Source, Transform};
use simmim_files::AtomicFile;
use simmim_models::{Encoder, Precision};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// First line of a file; the number changes with its layout.
const MAGIC: &[u8] = b"simmim features 2\n";
/// Longest header that is read.
const LONGEST_HEADER: usize = 1 << 28;

/// What features of any layer follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Images, transform, model and pooling.
    images: String,
    weights: String,
}

impl Key {
    /// The key of all images of `source`; `weights` as for [`super::Extractor::new`].
    ///
    /// # Errors
    /// [`DataError`] for images without a file of their own that cannot be read.
    pub fn new(
        source: &dyn Source,
        plan: &Plan,
        encoder: &Encoder,
        weights: &[(String, Vec<f32>)],
    ) -> Result<Self, DataError> {
        let mut rest = format!("{encoder:?} {:?}", plan.pooling);
        // Floats, which were all there was at first, are not named, so that what was kept and probed before counts.
        if plan.precision != Precision::Float32 {
            rest += plan.precision.name();
        }
        let weights = weights.iter().map(|(name, values)| (name.as_str(), values.as_slice()));
        Self::of(source, &plan.transform, &rest, weights)
    }

    /// The key of what follows from all images of `source`, from weights, and from the `rest`.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn of<'w>(
        source: &dyn Source,
        transform: &Transform,
        rest: &str,
        weights: impl Iterator<Item = (&'w str, &'w [f32])>,
    ) -> Result<Self, DataError> {
        let mut data = blake3::Hasher::new();
        for index in 0..source.len() {
            let label = source.label(index).map_or(u64::MAX, |l| l as u64);
            let name = source.name(index);
            data.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&label.to_le_bytes());
            match source.stamp(index) {
                Some((size, changed)) => data.update(&size.to_le_bytes()).update(&changed.to_le_bytes()),
                None => hash_pixels(&mut data, source, index, transform.wanted()),
            };
        }
        // Crop, flip and policy are those of training.
        let Transform { size, channels, background, interpolation, mean, std, keep, crop: _, flip: _, policy: _ } =
            transform;
        let transform = format!("{size:?} {channels} {background} {interpolation:?} {mean:?} {std:?} {keep}");
        data.update(format!("{transform} {rest}").as_bytes());
        let mut all = blake3::Hasher::new();
        for (name, values) in weights {
            all.update(name.as_bytes()).update(&(values.len() as u64).to_le_bytes());
            all.update(bytemuck::cast_slice(values));
        }
        let short = |hash: &blake3::Hasher| hash.finalize().to_hex()[..32].to_owned();
        Ok(Self { images: short(&data), weights: short(&all) })
    }

    /// The key as text.
    #[must_use]
    pub fn conditions(&self) -> String {
        format!("{}-{}", self.images, self.weights)
    }
}

/// An unreadable image counts as its error: it may be repaired.
fn hash_pixels<'a>(
    hash: &'a mut blake3::Hasher,
    source: &dyn Source,
    index: usize,
    channels: Channels,
) -> &'a mut blake3::Hasher {
    match source.load(index, channels) {
        Ok(image) => {
            hash.update(&(image.width as u64).to_le_bytes()).update(&(image.height as u64).to_le_bytes());
            match &image.pixels {
                Pixels::U8(v) => hash.update(v),
                Pixels::U16(v) => hash.update(bytemuck::cast_slice(v)),
                Pixels::F32(v) => hash.update(bytemuck::cast_slice(v)),
            }
        }
        Err(error) => hash.update(error.to_string().as_bytes()),
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    images: Vec<usize>,
    unreadable: Vec<(usize, String)>,
    cols: usize,
}

/// Features in a folder; without a folder nothing is kept.
#[derive(Debug, Clone)]
pub struct FeatureCache {
    folder: Option<PathBuf>,
}

impl FeatureCache {
    /// Keeps features in `features/` of a run, or not at all.
    #[must_use]
    pub fn new(run: Option<&Path>) -> Self {
        Self { folder: run.map(|run| run.join("features")) }
    }

    fn path(&self, role: &str, key: &Key, layer: Layer) -> Option<PathBuf> {
        let layer = match layer {
            Layer::Block(k) => format!("block{k}"),
            Layer::Norm => "norm".to_owned(),
        };
        Some(self.folder.as_ref()?.join(format!("{role}-{}-{layer}-{}", key.images, key.weights)))
    }

    /// The features of one layer that were kept under a key, if they are whole. `role` tells features of trained weights from those of
    /// others.
    #[must_use]
    pub fn load(&self, role: &str, key: &Key, layer: Layer) -> Option<Features> {
        parse(&std::fs::read(self.path(role, key, layer)?).ok()?)
    }

    /// Keeps features of these layers; those of the same images and role under other weights go.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn store(&self, role: &str, key: &Key, layers: &[Layer], features: &Features) -> Result<(), TrainError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        for (&layer, matrix) in layers.iter().zip(&features.layers) {
            if let Some(path) = self.path(role, key, layer) {
                write(&path, features, matrix)?;
            }
        }
        remove_others(folder, &format!("{role}-{}-", key.images), &format!("-{}", key.weights));
        simmim_files::remove_abandoned(folder);
        Ok(())
    }
}

/// Writes the features of one layer.
fn write(path: &Path, features: &Features, matrix: &Matrix) -> Result<(), TrainError> {
    let header = Header { images: features.images.clone(), unreadable: features.unreadable.clone(), cols: matrix.cols };
    let header = serde_json::to_vec(&header).map_err(|e| TrainError::Internal { what: e.to_string() })?;
    let length = (header.len() as u64).to_le_bytes();
    let parts: [&[u8]; 3] = [&length, &header, bytemuck::cast_slice(&matrix.data)];
    let mut hash = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hash.update(part);
    });
    let write = || {
        let mut file = BufWriter::new(AtomicFile::create(path)?);
        file.write_all(MAGIC)?;
        file.write_all(hash.finalize().as_bytes())?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.commit()
    };
    write().map_err(TrainError::io(path))
}

/// Removes files whose name starts with `prefix` and does not end with `keep`, but none that another process is writing. Failing to is
/// no fault: they are only in the way.
fn remove_others(folder: &Path, prefix: &str, keep: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && !name.ends_with(keep) && !simmim_files::is_unfinished(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Features> {
    let (hash, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(blake3::OUT_LEN)?;
    if blake3::hash(rest).as_bytes() != hash {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let length =
        usize::try_from(u64::from_le_bytes(*length)).ok().filter(|&l| l <= LONGEST_HEADER && l <= rest.len())?;
    let (header, body) = rest.split_at(length);
    let header: Header = serde_json::from_slice(header).ok()?;
    let (rows, cols) = (header.images.len(), header.cols);
    rows.checked_mul(cols)?.checked_mul(4).filter(|&size| size == body.len())?;
    let layer = Matrix { rows, cols, data: bytemuck::pod_collect_to_vec(body) };
    Some(Features { images: header.images, layers: vec![layer], unreadable: header.unreadable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Pooling;
    use simmim_data::{demo_held_out, source::Subset};
    use std::sync::Arc;

    const LAYERS: [Layer; 2] = [Layer::Block(1), Layer::Norm];

    fn features() -> Features {
        let matrix = |cols: usize| Matrix { rows: 2, cols, data: (0..2 * cols).map(|i| i as f32 - 1.5).collect() };
        Features { images: vec![0, 2], layers: vec![matrix(3), matrix(1)], unreadable: vec![(1, "broken".into())] }
    }

    fn key(images: &[usize], weight: f32, layers: &[Layer]) -> Key {
        let source = Subset::new(Arc::new(demo_held_out().unwrap()), images.to_vec()).unwrap();
        let transform = Transform::new((28, 28), 1);
        let plan = Plan {
            layers: layers.to_vec(),
            pooling: Pooling::Mean,
            transform,
            batch: 2,
            threads: 1,
            max_errors: 0,
            precision: Precision::Float32,
        };
        let encoder = Encoder::preset("vit_tiny_patch4_28").unwrap();
        Key::new(&source, &plan, &encoder, &[("w".to_owned(), vec![weight])]).unwrap()
    }

    #[test]
    fn each_layer_that_is_kept_comes_back_and_damage_is_passed_over() {
        let run = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(Some(run.path()));
        let key = key(&[0, 1], 1.0, &LAYERS);
        assert_eq!(cache.load("trained", &key, Layer::Norm), None);
        cache.store("trained", &key, &LAYERS, &features()).unwrap();
        for (layer, matrix) in LAYERS.into_iter().zip(features().layers) {
            let expected = Features { layers: vec![matrix], ..features() };
            assert_eq!(cache.load("trained", &key, layer), Some(expected));
        }
        assert_eq!(cache.load("trained", &key, Layer::Block(2)), None);
        assert_eq!(cache.load("random", &key, Layer::Norm), None);
        let whole = std::fs::read(cache.path("trained", &key, Layer::Norm).unwrap()).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(parse(&damaged), None, "byte {at}");
            assert_eq!(parse(&whole[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_key_follows_what_the_centred_view_keeps() {
        let source = demo_held_out().unwrap();
        let encoder = Encoder::preset("vit_tiny_patch4_28").unwrap();
        let key_in = |keep: f64, flip: f64, precision: Precision| {
            let transform = Transform { keep, flip, ..Transform::new((28, 28), 1) };
            let (layers, pooling) = (vec![Layer::Norm], Pooling::Mean);
            let plan = Plan { layers, pooling, transform, batch: 2, threads: 1, max_errors: 0, precision };
            Key::new(&source, &plan, &encoder, &[]).unwrap()
        };
        let key = |keep: f64, flip: f64| key_in(keep, flip, Precision::Float32);
        assert_eq!(key(1.0, 0.5), key(1.0, 0.0));
        assert_ne!(key(1.0, 0.5), key(0.875, 0.5));
        assert_ne!(key(1.0, 0.5), key_in(1.0, 0.5, Precision::Bfloat16));
    }

    #[test]
    fn the_key_follows_images_and_weights_not_the_layers_asked_for_and_old_weights_go() {
        let first = key(&[0, 1], 1.0, &LAYERS);
        assert_eq!(first, key(&[0, 1], 1.0, &[Layer::Norm]));
        for other in [key(&[0, 2], 1.0, &LAYERS), key(&[0, 1], 2.0, &LAYERS)] {
            assert_ne!(first, other);
        }
        let run = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(Some(run.path()));
        let (one, other) = (&LAYERS[..1], &LAYERS[1..]);
        cache.store("trained", &first, one, &features()).unwrap();
        cache.store("trained", &first, other, &features()).unwrap();
        let files = || std::fs::read_dir(run.path().join("features")).unwrap().count();
        assert_eq!(files(), 2, "a layer does not replace another");
        cache.store("trained", &key(&[0, 1], 2.0, &LAYERS), other, &features()).unwrap();
        assert_eq!((cache.load("trained", &first, LAYERS[0]), files()), (None, 1));
    }
}
