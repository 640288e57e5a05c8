//! Where images come from.

mod demo;
mod folder;
mod idx;
mod labelled;
mod list;
mod spread;
mod subset;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Channels, DataError, Image, decode};

pub use demo::{demo, demo_held_out};
pub use folder::{FolderSource, holds_run};
pub use idx::IdxSource;
pub use labelled::LabelledSource;
pub use list::ListSource;
pub use spread::spread;
pub use subset::{Subset, split};

/// A numbered collection of images, with labels where they are known.
pub trait Source: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name for reports: the path relative to the source, or the file and number. Empty beyond the end.
    fn name(&self, index: usize) -> String;

    /// The class of an image, an index into [`class_names`](Self::class_names), where it is known.
    fn label(&self, index: usize) -> Option<usize>;

    /// The names of the classes; empty without labels.
    fn class_names(&self) -> &[String];

    /// Folders of the source that hold a run and were therefore not searched for images, relative to the source and sorted.
    fn passed_over(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads one image in the channels that are wanted, see [`Image::into_channels`].
    ///
    /// # Errors
    /// [`DataError`] for images that cannot be read, decoded or converted, and for an index beyond the end.
    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError>;

    /// Length in bytes and time of last change (nanoseconds since 1970) of the file that holds an image alone; `None` where there is
    /// no such file, and only the pixels tell whether the image is the same as before.
    fn stamp(&self, index: usize) -> Option<(u64, u64)> {
        let mut path = PathBuf::new();
        if !self.file(index, &mut path).ok()? {
            return None;
        }
        let metadata = std::fs::metadata(path).ok()?;
        let changed = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some((metadata.len(), u64::try_from(changed.as_nanos()).ok()?))
    }

    /// Writes the path of the file that holds one image and nothing else to `path`, and returns whether there is one. Such
    /// files can be decoded in part and cached; `load` is called for everything else.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] for an index beyond the end.
    fn file(&self, _index: usize, _path: &mut PathBuf) -> Result<bool, DataError> {
        Ok(false)
    }
}

/// Opens a folder, list file, IDX file, folder of IDX files, or a single image.
///
/// - A folder with IDX files at its top (`*idx3-ubyte`, gzipped or not) is read as IDX: the training images where
///   there are several, with the labels beside them. Give the path of a file to choose another.
/// - Any other folder is searched for images at any depth, see [`FolderSource`].
/// - `.txt`, `.csv` and `.tsv` files are lists, see [`ListSource`].
///
/// # Errors
/// [`DataError`] when the path is missing, unreadable, of no known kind, or holds no images.
pub fn open(path: &Path) -> Result<Box<dyn Source>, DataError> {
    let metadata = std::fs::metadata(path).map_err(|e| DataError::io(path, e))?;
    if metadata.is_dir() {
        return Ok(match idx::find_images(path)? {
            Some(images) => Box::new(IdxSource::open(&images)?),
            None => Box::new(FolderSource::open(path)?),
        });
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    if matches!(extension.as_deref(), Some("txt" | "csv" | "tsv")) {
        return Ok(Box::new(ListSource::open(path)?));
    }
    let start = first_bytes(path)?;
    if idx::is_idx(&start) {
        Ok(Box::new(IdxSource::open(path)?))
    } else if decode::is_image(&start) {
        Ok(Box::new(FolderSource::single(path)))
    } else {
        Err(DataError::UnknownSource { path: path.to_owned(), found: decode::describe_start(&start) })
    }
}

/// The first bytes of a file, fewer when it is shorter.
fn first_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    file.take(32).read_to_end(&mut start).map_err(|e| DataError::io(path, e))?;
    Ok(start)
}

/// A path for messages and file lists, with `/` on every system.
fn display_path(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

/// The element at `index`, or the error that names both numbers.
fn element<T>(items: &[T], index: usize) -> Result<&T, DataError> {
    items.get(index).ok_or(DataError::OutOfRange { index, len: items.len() })
}

/// Joins a base folder and a path that may be empty (the base itself is the file).
fn join(base: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { base.to_owned() } else { base.join(relative) }
}
