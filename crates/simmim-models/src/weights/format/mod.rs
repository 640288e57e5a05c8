//! Containers of weights: what a file is follows from its content, and tensors are read when they are asked for.

mod element;
mod legacy;
mod notes;
mod pickle;
mod safetensors;
mod sharded;
mod torch;
mod zip;

pub use element::Element;

use super::Tensor;
use crate::error::ModelError;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Largest file that is read: far above any vision transformer, far below what a wrong path could name.
const LARGEST: u64 = 64 << 30;

/// A kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One safetensors file.
    Safetensors,
    /// Files named by an index, as Hugging Face writes large models.
    Sharded,
    /// `torch.save` since PyTorch 1.6.
    Torch,
    /// `torch.save` before PyTorch 1.6.
    LegacyTorch,
}

impl Format {
    /// The name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Sharded => "shards with an index",
            Self::Torch => "PyTorch checkpoint",
            Self::LegacyTorch => "PyTorch checkpoint (before 1.6)",
        }
    }
}

/// Where a tensor lies, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Place among the files of the container.
    file: usize,
    /// Byte of the first element.
    start: u64,
    /// Type of the elements.
    pub element: Element,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Elements between neighbours along each axis; none where they lie in order.
    strides: Option<Vec<usize>>,
}

impl Entry {
    /// Number of elements; the largest number there is where it is beyond that.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX)
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether elements lie in the order of the axes.
    fn in_order(&self) -> bool {
        let Some(strides) = &self.strides else { return true };
        let mut expected = 1;
        for (&len, &stride) in self.shape.iter().zip(strides).rev() {
            if len != 1 && stride != expected {
                return false;
            }
            expected *= len;
        }
        true
    }

    /// Elements between the first one and the last, both included.
    fn span(&self) -> usize {
        if self.in_order() {
            return self.len();
        }
        let strides = self.strides.iter().flatten();
        1 + self.shape.iter().zip(strides).map(|(&len, &stride)| len.saturating_sub(1) * stride).sum::<usize>()
    }
}

/// Weights in files, of which nothing but the description has been read.
#[derive(Debug)]
pub struct Stored {
    /// The file or folder that was opened.
    pub path: PathBuf,
    /// The kind of container.
    pub format: Format,
    files: Vec<PathBuf>,
    bytes: u64,
    tensors: BTreeMap<String, Entry>,
    /// Texts of the container: a safetensors file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Name of the state dict that was taken where the checkpoint holds it beside other things.
    pub taken: Option<String>,
    /// State dicts that the checkpoint holds besides.
    pub passed_over: Vec<String>,
    /// Everything else that a checkpoint says, as JSON: options, epoch, accuracy.
    pub notes: serde_json::Value,
}

/// What the reader of one file found.
#[derive(Debug, Default)]
struct Opened {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    taken: Option<String>,
    passed_over: Vec<String>,
    notes: serde_json::Value,
}

impl From<torch::Contents> for Opened {
    fn from(c: torch::Contents) -> Self {
        let torch::Contents { tensors, taken, passed_over, notes } = c;
        Self { tensors, metadata: BTreeMap::new(), taken, passed_over, notes }
    }
}

/// One file to read.
struct Source<'a> {
    path: &'a Path,
    size: u64,
}

impl Source<'_> {
    fn file(&self) -> Result<File, String> {
        File::open(self.path).map_err(|e| e.to_string())
    }
}

const GIVE: &str =
    "give a safetensors file, a PyTorch checkpoint, a Hugging Face folder, a run folder or a checkpoint folder";

fn wrong(path: &Path, what: impl Into<String>, help: impl Into<String>) -> ModelError {
    ModelError::Format { path: path.to_owned(), what: what.into(), help: help.into() }
}

/// What a file is, by its first bytes.
///
/// # Errors
/// [`ModelError::Io`]; [`ModelError::Format`] with what it seems to be instead.
pub fn sniff(path: &Path) -> Result<Format, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len();
    let mut start = Vec::new();
    File::open(path).and_then(|f| f.take(512).read_to_end(&mut start)).map_err(io)?;
    if size > LARGEST {
        return Err(wrong(path, format!("{size} bytes are more than any model here has"), GIVE));
    }
    let has = |magic: &[u8]| start.windows(magic.len()).take(64).any(|w| w == magic);
    let header = start.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    match &start[..] {
        _ if start.starts_with(b"PK\x03\x04") => Ok(Format::Torch),
        _ if has(&legacy::MAGIC) => Ok(Format::LegacyTorch),
        _ if start.get(8) == Some(&b'{') && header.is_some_and(|n| n < size) => Ok(Format::Safetensors),
        [b'{', ..] if start.contains(&b'"') => Ok(Format::Sharded),
        _ => Err(unknown(path, &start)),
    }
}

/// Names what is certainly not a weight file in words that say what to do.
fn unknown(path: &Path, start: &[u8]) -> ModelError {
    let text = String::from_utf8_lossy(start).trim_start().to_lowercase();
    let (what, help) = if text.starts_with("version https://git-lfs") {
        ("is a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull")
    } else if text.starts_with("<!doctype") || text.starts_with("<html") {
        ("is a web page", "download the file itself, not the page that shows it")
    } else if start.starts_with(b"\x89HDF") {
        ("is an HDF5 file (Keras), which this program does not read", "convert it to safetensors where it was made")
    } else if start.get(257..262) == Some(b"ustar") {
        (
            "is a checkpoint of PyTorch before 0.1.10, which this program does not read",
            "save it again with a newer PyTorch",
        )
    } else if start.first() == Some(&0x80) {
        ("is a pickle, but not one that torch.save wrote", "save the state dict with torch.save or safetensors")
    } else {
        ("is no weight file", GIVE)
    };
    wrong(path, what, help)
}

/// Files of a Hugging Face folder, the best first.
const IN_FOLDER: [&str; 5] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

impl Stored {
    /// Opens a file, an index of shards, or a folder with either.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Format`] for everything that is no whole file of weights.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            return Self::open(&in_folder(path)?);
        }
        let format = sniff(path)?;
        if format == Format::Sharded {
            return sharded::open(path);
        }
        let (opened, bytes) = open_one(path, format)?;
        Self::new(path, format, vec![path.to_owned()], bytes, opened)
    }

    fn new(path: &Path, format: Format, files: Vec<PathBuf>, bytes: u64, opened: Opened) -> Result<Self, ModelError> {
        let Opened { tensors, metadata, taken, passed_over, notes } = opened;
        if !tensors.values().any(|e| e.element.is_float()) {
            return Err(wrong(path, "it holds no float tensors", GIVE));
        }
        Ok(Self { path: path.to_owned(), format, files, bytes, tensors, metadata, taken, passed_over, notes })
    }

    /// All tensors by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// Whether the state dict that was taken is an average of weights.
    #[must_use]
    pub fn is_average(&self) -> bool {
        self.taken.as_deref().is_some_and(torch::is_average)
    }

    /// Reads one tensor as `f32`.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Format`] for an unknown name, a type that is no float, a view that is larger than what it views.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let fail = |what: String| wrong(&self.path, format!("{name}: {what}"), GIVE);
        let entry = self.tensors.get(name).ok_or_else(|| fail("there is no such tensor".into()))?;
        if !entry.element.is_float() {
            return Err(fail(format!("its elements are {}, not floats", entry.element.name())));
        }
        let (len, span) = (entry.len(), entry.span());
        if len > span && len as u64 > self.bytes {
            return Err(fail(format!("its {len} elements repeat {span}")));
        }
        let path = self.files.get(entry.file).unwrap_or(&self.path);
        let io = |source| ModelError::Io { path: path.clone(), source };
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(entry.start)).map_err(io)?;
        let mut raw = Vec::new();
        let wanted = if len == 0 { 0 } else { span * entry.element.bytes() };
        file.take(wanted as u64).read_to_end(&mut raw).map_err(io)?;
        if raw.len() != wanted {
            return Err(fail("the file ends before it".into()));
        }
        let window = entry.element.to_f32(&raw).unwrap_or_default();
        let data = if len == 0 || entry.in_order() { window } else { gather(&window, entry) };
        Ok(Tensor { shape: entry.shape.clone(), data })
    }

    /// Reads these tensors, which may share storage, but not without end.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub fn read_all<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<super::Weights, ModelError> {
        let size = |name: &str| self.tensors.get(name).map_or(0, |e| e.len() as u128 * e.element.bytes() as u128);
        let total: u128 = names.clone().map(size).sum();
        if total > 2 * u128::from(self.bytes) {
            let what = format!("its tensors share storage so that {} bytes become {total}", self.bytes);
            return Err(wrong(&self.path, what, GIVE));
        }
        names.map(|name| Ok((name.to_owned(), self.read(name)?))).collect()
    }
}

/// The file of weights in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf, ModelError> {
    if let Some(name) = IN_FOLDER.iter().find(|name| folder.join(name).is_file()) {
        return Ok(folder.join(name));
    }
    let io = |source| ModelError::Io { path: folder.to_owned(), source };
    let mut others = Vec::new();
    for file in std::fs::read_dir(folder).map_err(io)? {
        let path = file.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            others.push(path);
        }
    }
    match (others.pop(), others.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(wrong(folder, "is a folder with several weight files", "name one of them")),
        (None, _) => {
            Err(wrong(folder, "is a folder, but neither a run, a checkpoint nor a model of Hugging Face", GIVE))
        }
    }
}

/// Opens one file of a format that is known, and gives its size.
fn open_one(path: &Path, format: Format) -> Result<(Opened, u64), ModelError> {
    let size = std::fs::metadata(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?.len();
    let source = Source { path, size };
    let opened = match format {
        Format::Safetensors => safetensors::open(&source),
        Format::Torch => zip::open(&source),
        Format::LegacyTorch => legacy::open(&source),
        Format::Sharded => Err("an index names itself".to_owned()),
    };
    let opened = opened.map_err(|what| wrong(path, format!("not a whole {}: {what}", format.name()), GIVE))?;
    Ok((opened, size))
}

/// The elements of a view in the order of its axes.
fn gather(window: &[f32], entry: &Entry) -> Vec<f32> {
    let strides: Vec<usize> = entry.strides.iter().flatten().copied().collect();
    let mut place = vec![0usize; entry.shape.len()];
    let mut at = 0;
    let mut out = Vec::with_capacity(entry.len());
    for _ in 0..entry.len() {
        out.push(window[at]);
        for axis in (0..place.len()).rev() {
            place[axis] += 1;
            at += strides[axis];
            if place[axis] < entry.shape[axis] {
                break;
            }
            at -= strides[axis] * entry.shape[axis];
            place[axis] = 0;
        }
    }
    out
}
