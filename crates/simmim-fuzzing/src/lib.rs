//! One body for each reader of files that may come from anywhere. A body may meet an error, never a panic, and what it reads must be
//! whole. The folder `fuzz/` runs them under libFuzzer; `tests/mutations.rs` runs them on stable Rust, as plain loops over
//! [`mutations`](mutate::Mutations) of the [`seeds`](Target::seeds).

// A body asserts what must hold: to panic is its way to report.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fuzz target reports by panicking")]

pub mod mutate;

use std::path::{Path, PathBuf};

use simmim_data::{Channels, DataError, Source, Transform, decode, load_centered, source};
use simmim_models::weights;
use simmim_train::{Recipe, checkpoint};

/// A reader, what it is fed at first, and what is done with it.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of the target in `fuzz/`.
    pub name: &'static str,
    /// Whole files that it reads.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads one file.
    pub run: fn(&[u8]),
}

/// All readers.
pub const TARGETS: [Target; 8] = [
    Target { name: "image", seeds: image_seeds, run: image },
    Target { name: "jpeg", seeds: jpeg_seeds, run: jpeg },
    Target { name: "tiff", seeds: tiff_seeds, run: tiff },
    Target { name: "idx", seeds: idx_seeds, run: idx },
    Target { name: "list", seeds: list_seeds, run: list },
    Target { name: "recipe", seeds: recipe_seeds, run: recipe },
    Target { name: "safetensors", seeds: safetensors_seeds, run: safetensors },
    Target { name: "checkpoint", seeds: checkpoint_seeds, run: checkpoint },
];

/// Every format by its content, from memory, into gray, RGB and RGBA.
pub fn image(bytes: &[u8]) {
    for channels in [1, 3, 4] {
        whole(decode(bytes, Path::new("image"), channels), channels);
    }
}

/// A JPEG by the decoder of parts, which the loader takes for files.
pub fn jpeg(bytes: &[u8]) {
    let file = TempFile::new("photo.jpg", bytes);
    let source = source::open(&file.path);
    // What does not begin as an image is no source.
    let Ok(source) = source else { return };
    for (size, channels) in [((5, 7), 3), ((40, 30), 1)] {
        let transform = Transform::new(size, channels);
        let mut out = vec![f32::NAN; transform.values()];
        load_centered(&*source, &[0], &transform, 1, &mut out).expect("the transform is valid");
        assert!(out.iter().all(|v| v.is_finite()), "unwritten pixels");
    }
}

/// A TIFF in as many bands as it may have.
pub fn tiff(bytes: &[u8]) {
    for channels in 1..=5 {
        whole(decode(bytes, Path::new("bands.tif"), channels), channels);
    }
}

/// An IDX file, gzipped or not.
pub fn idx(bytes: &[u8]) {
    let file = TempFile::new("train-images-idx3-ubyte", bytes);
    let Ok(images) = source::IdxSource::open(&file.path) else { return };
    assert!(!images.is_empty());
    for index in [0, images.len() - 1] {
        whole(images.load(index, 3.into()), 3);
    }
}

/// A list, as plain text and as CSV.
pub fn list(bytes: &[u8]) {
    for name in ["list.txt", "list.csv"] {
        let file = TempFile::new(name, bytes);
        let Ok(images) = source::ListSource::open(&file.path) else { continue };
        for index in 0..images.len().min(4) {
            assert!(images.label(index).is_none_or(|label| label < images.class_names().len()));
            assert!(!images.name(index).contains('\n'));
        }
    }
}

/// A recipe file.
pub fn recipe(bytes: &[u8]) {
    let file = TempFile::new("recipe.toml", bytes);
    let Ok(recipe) = Recipe::resolve(&file.path.display().to_string(), &[]) else { return };
    // What resolves is complete: written out and read again, it is the same.
    let again = TempFile::new("config.toml", recipe.to_toml().as_bytes());
    assert_eq!(Recipe::from_run(&again.path).expect("a resolved recipe"), recipe);
}

/// A file of weights.
pub fn safetensors(bytes: &[u8]) {
    let file = TempFile::new("weights.safetensors", bytes);
    let Ok(tensors) = weights::read(&file.path) else { return };
    for (name, tensor) in tensors {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len(), "{name}");
    }
}

/// The metadata of a checkpoint beside a whole state.
pub fn checkpoint(bytes: &[u8]) {
    let file = TempFile::new("meta.json", bytes);
    let (_, state, sums) = checkpoint_files();
    for (name, bytes) in [("state.safetensors", state), ("checksums.b3", sums)] {
        std::fs::write(file.path.with_file_name(name), bytes).expect("a temporary file");
    }
    if let Ok((meta, tensors)) = checkpoint::load(file.folder()) {
        assert_eq!(meta, checkpoint_meta(), "the checksum let a change pass");
        assert_eq!(tensors.len(), 2);
    }
}

/// An image that was decoded is whole.
fn whole(decoded: Result<simmim_data::Image, DataError>, channels: impl Into<Channels>) {
    if let Ok(image) = decoded {
        assert_eq!(image.channels, channels.into().count);
        assert_eq!(image.pixels.len(), image.width * image.height * image.channels);
        assert!(!image.pixels.is_empty());
    }
}

/// A file in a folder of its own, which goes with it.
struct TempFile {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        Self { folder, path }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Committed files of a folder, with one of these endings.
fn committed(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the repository's files")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let wanted = |path: &PathBuf| endings.iter().any(|e| path.to_string_lossy().ends_with(e));
    let files = paths.iter().filter(|path| wanted(path)).map(|path| std::fs::read(path).expect("a committed file"));
    // Large seeds make slow loops, and mutations seldom hit what matters in them.
    files.filter(|file| file.len() <= 1 << 14).collect()
}

const PICTURES: &str = "simmim-data/tests/fixtures/formats";

fn image_seeds() -> Vec<Vec<u8>> {
    committed(PICTURES, &[".png", ".webp", ".bmp", ".gif", ".jpg", ".tif"])
}

fn jpeg_seeds() -> Vec<Vec<u8>> {
    [committed("simmim-data/tests/fixtures/jpeg", &[".jpg"]), committed(PICTURES, &[".jpg"])].concat()
}

fn tiff_seeds() -> Vec<Vec<u8>> {
    committed(PICTURES, &[".tif"])
}

fn idx_seeds() -> Vec<Vec<u8>> {
    let mut plain = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
    plain.extend(0..24);
    // The same in one stored block of gzip: a header, the block, CRC-32 and length.
    let mut gzipped = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1];
    gzipped.extend((plain.len() as u16).to_le_bytes());
    gzipped.extend((!(plain.len() as u16)).to_le_bytes());
    gzipped.extend(&plain);
    gzipped.extend(crc32(&plain).to_le_bytes());
    gzipped.extend((plain.len() as u32).to_le_bytes());
    vec![plain, gzipped]
}

/// The checksum of gzip, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

fn list_seeds() -> Vec<Vec<u8>> {
    // A list names itself, so that it is not refused for files that do not exist.
    let texts: [&[u8]; 3] = [
        b"# a comment\nlist.txt\n\"list.txt\"\tcat\nlist.csv,dog\n",
        b"\xef\xbb\xbfpath,label\r\nlist.csv,3\r\nlist.txt,1048577\r\n",
        b"list.txt,a\nlist.csv\t\n\"list.csv,list.txt\"\n",
    ];
    texts.map(<[u8]>::to_vec).to_vec()
}

fn recipe_seeds() -> Vec<Vec<u8>> {
    let mut seeds = committed("simmim-train/recipes", &[".toml"]);
    seeds.push(b"extends = \"demo\"\n[optimizer]\nlr = 1e-3\n[model]\nimage_size = [32, 48]\n".to_vec());
    seeds.push(Recipe::resolve("demo", &[]).expect("the demonstration").to_toml().into_bytes());
    seeds
}

/// Where the run of [`checkpoint_files`] stood.
fn checkpoint_meta() -> checkpoint::Meta {
    checkpoint::Meta { step: 3, recent_losses: vec![0.5, 0.25], ..checkpoint::Meta::default() }
}

/// `meta.json`, `state.safetensors` and `checksums.b3` of a checkpoint.
fn checkpoint_files() -> &'static (Vec<u8>, Vec<u8>, Vec<u8>) {
    static FILES: std::sync::OnceLock<(Vec<u8>, Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = checkpoint::CheckpointStore::open(folder.path()).expect("an empty folder");
        let shapes = vec![("a".to_owned(), vec![2, 3]), ("grad.a".to_owned(), vec![6])];
        store.save(&checkpoint_meta(), shapes, |_| Ok(vec![1.5; 6]), 1).expect("a checkpoint");
        let read = |name: &str| std::fs::read(folder.path().join("step-00000003").join(name)).expect("a file of it");
        (read("meta.json"), read("state.safetensors"), read("checksums.b3"))
    })
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let halves = br#"{"__metadata__":{"simmim":"x"},"h":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"i":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}}"#;
    let mut file = (halves.len() as u64).to_le_bytes().to_vec();
    file.extend(halves);
    file.extend([0, 60, 0, 124, 1, 0, 0, 0, 0, 0, 0, 0]);
    vec![checkpoint_files().1.clone(), file]
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    vec![checkpoint_files().0.clone()]
}
