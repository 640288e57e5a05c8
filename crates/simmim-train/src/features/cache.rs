//! Features kept in the folder of a run.
//!
//! A file is named after what its contents follow from: the images (names, labels, and size and time of change of their files, or
//! the pixels where an image has no file of its own), the transform, model, layers and pooling, and the weights. It carries a hash
//! of its contents; a damaged one is passed over and made again.

use super::{Features, Matrix, Plan};
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use simmim_data::{Channels, DataError, Pixels, Source, Transform};
use simmim_files::AtomicFile;
use simmim_models::{Encoder, Precision};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// First line of a file; the number changes with its layout.
const MAGIC: &[u8] = b"simmim features 1\n";
/// Longest header that is read.
const LONGEST_HEADER: usize = 1 << 28;

/// What features follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    data: String,
    weights: String,
    /// `data` without the layers.
    images: String,
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
        let mut data = blake3::Hasher::new();
        for index in 0..source.len() {
            let label = source.label(index).map_or(u64::MAX, |l| l as u64);
            let name = source.name(index);
            data.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&label.to_le_bytes());
            match source.stamp(index) {
                Some((size, changed)) => data.update(&size.to_le_bytes()).update(&changed.to_le_bytes()),
                None => hash_pixels(&mut data, source, index, plan.transform.wanted()),
            };
        }
        // Crop, flip and policy are those of training.
        let Transform { size, channels, background, interpolation, mean, std, keep, crop: _, flip: _, policy: _ } =
            &plan.transform;
        let transform = format!("{size:?} {channels} {background} {interpolation:?} {mean:?} {std:?} {keep}");
        data.update(format!("{transform} {encoder:?} {:?}", plan.pooling).as_bytes());
        // Floats, which were all there was at first, are not named, so that what was kept and probed before counts.
        if plan.precision != Precision::Float32 {
            data.update(plan.precision.name().as_bytes());
        }
        let images = data.clone();
        data.update(format!(" {:?}", plan.layers).as_bytes());
        let mut all = blake3::Hasher::new();
        for (name, values) in weights {
            all.update(name.as_bytes()).update(&(values.len() as u64).to_le_bytes());
            all.update(bytemuck::cast_slice(values));
        }
        let short = |hash: &blake3::Hasher| hash.finalize().to_hex()[..32].to_owned();
        Ok(Self { data: short(&data), weights: short(&all), images: short(&images) })
    }

    /// What features of any layer follow from: images, transform, model, pooling, weights.
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
    cols: Vec<usize>,
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

    fn path(&self, role: &str, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{role}-{}-{}", key.data, key.weights)))
    }

    /// What was kept under a key, if it is whole. `role` tells features of trained weights from those of others.
    #[must_use]
    pub fn load(&self, role: &str, key: &Key) -> Option<Features> {
        parse(&std::fs::read(self.path(role, key)?).ok()?)
    }

    /// Keeps features; those of the same images and role under other weights go.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn store(&self, role: &str, key: &Key, features: &Features) -> Result<(), TrainError> {
        let (Some(folder), Some(path)) = (&self.folder, self.path(role, key)) else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let header = Header {
            images: features.images.clone(),
            unreadable: features.unreadable.clone(),
            cols: features.layers.iter().map(|m| m.cols).collect(),
        };
        let header = serde_json::to_vec(&header).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        let length = (header.len() as u64).to_le_bytes();
        let mut parts: Vec<&[u8]> = vec![&length, &header];
        parts.extend(features.layers.iter().map(|m| bytemuck::cast_slice::<f32, u8>(&m.data)));
        let mut hash = blake3::Hasher::new();
        parts.iter().for_each(|part| {
            hash.update(part);
        });
        let write = || {
            let mut file = BufWriter::new(AtomicFile::create(&path)?);
            file.write_all(MAGIC)?;
            file.write_all(hash.finalize().as_bytes())?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.commit()
        };
        write().map_err(TrainError::io(&path))?;
        remove_others(folder, &format!("{role}-{}-", key.data), &path);
        simmim_files::remove_abandoned(folder);
        Ok(())
    }
}

/// Removes other files whose name starts alike, but none that another process is writing. Failing to is no fault: they are only in
/// the way.
fn remove_others(folder: &Path, prefix: &str, keep: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if name.to_string_lossy().starts_with(prefix) && path != keep && !simmim_files::is_unfinished(&path) {
            let _ = std::fs::remove_file(entry.path());
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
    let (header, mut body) = rest.split_at(length);
    let header: Header = serde_json::from_slice(header).ok()?;
    let rows = header.images.len();
    let mut layers = Vec::new();
    for cols in header.cols {
        let size = rows.checked_mul(cols)?.checked_mul(4).filter(|&s| s <= body.len())?;
        let (here, after) = body.split_at(size);
        layers.push(Matrix { rows, cols, data: bytemuck::pod_collect_to_vec(here) });
        body = after;
    }
    body.is_empty().then_some(Features { images: header.images, layers, unreadable: header.unreadable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Layer, Pooling};
    use simmim_data::{demo_held_out, source::Subset};
    use std::sync::Arc;

    fn features() -> Features {
        let matrix = |cols: usize| Matrix { rows: 2, cols, data: (0..2 * cols).map(|i| i as f32 - 1.5).collect() };
        Features { images: vec![0, 2], layers: vec![matrix(3), matrix(1)], unreadable: vec![(1, "broken".into())] }
    }

    fn key(images: &[usize], weight: f32, layer: Layer) -> Key {
        let source = Subset::new(Arc::new(demo_held_out().unwrap()), images.to_vec()).unwrap();
        let transform = Transform::new((28, 28), 1);
        let plan = Plan {
            layers: vec![layer],
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
    fn what_is_kept_comes_back_and_damage_is_passed_over() {
        let run = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(Some(run.path()));
        let key = key(&[0, 1], 1.0, Layer::Norm);
        assert_eq!(cache.load("trained", &key), None);
        cache.store("trained", &key, &features()).unwrap();
        assert_eq!(cache.load("trained", &key), Some(features()));
        assert_eq!(cache.load("random", &key), None);
        let path = cache.path("trained", &key).unwrap();
        let whole = std::fs::read(&path).unwrap();
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
    fn the_key_follows_images_weights_and_layer_and_old_weights_go() {
        let first = key(&[0, 1], 1.0, Layer::Norm);
        assert_eq!(first, key(&[0, 1], 1.0, Layer::Norm));
        for other in
            [key(&[0, 2], 1.0, Layer::Norm), key(&[0, 1], 2.0, Layer::Norm), key(&[0, 1], 1.0, Layer::Block(1))]
        {
            assert_ne!(first, other);
        }
        let run = tempfile::tempdir().unwrap();
        let cache = FeatureCache::new(Some(run.path()));
        cache.store("trained", &first, &features()).unwrap();
        cache.store("trained", &key(&[0, 1], 2.0, Layer::Norm), &features()).unwrap();
        assert_eq!(cache.load("trained", &first), None);
        assert_eq!(std::fs::read_dir(run.path().join("features")).unwrap().count(), 1);
    }
}
