//! A folder of images, searched at any depth.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Source, display_path, element, first_bytes, join};
use crate::{Channels, DataError, Image, decode};

/// Names that image files carry; the decoder looks at the content only.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "tif", "tiff", "bmp", "dib", "gif"];

/// Deeper folders are taken for a mistake (a file system that contains itself).
const MAX_DEPTH: usize = 64;

/// All images below a folder, sorted by path.
///
/// Images are files with a known extension in any case, or without any extension but with the content of an image.
/// Hidden files and folders (`.name`) are ignored, links are followed. Folders that hold a run ([`holds_run`]) are passed
/// over: their pictures are reconstructions, not data. Where every folder of the first level is a class, the label is the
/// index of that folder among the sorted names; images at the top have no label.
#[derive(Debug)]
pub struct FolderSource {
    root: PathBuf,
    /// Relative paths.
    files: Vec<PathBuf>,
    labels: Vec<Option<usize>>,
    classes: Vec<String>,
    /// Relative paths of the runs among the folders.
    runs: Vec<PathBuf>,
}

impl FolderSource {
    /// Searches a folder.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`] for folders that cannot be read, [`DataError::NoImages`],
    /// [`DataError::Run`] where the folder itself holds a run.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        if holds_run(root) {
            return Err(DataError::Run { path: root.to_owned() });
        }
        let mut search = Search::default();
        search.visit(root, Path::new(""), &mut Vec::new())?;
        let Search { mut files, mut runs, others } = search;
        if files.is_empty() {
            return Err(DataError::NoImages { path: root.to_owned(), files: others });
        }
        files.sort();
        runs.sort();
        let folders: BTreeSet<String> = files.iter().filter_map(|f| first_folder(f)).collect();
        let index: BTreeMap<&str, usize> = folders.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let labels = files.iter().map(|f| first_folder(f).and_then(|name| index.get(name.as_str()).copied())).collect();
        Ok(Self { root: root.to_owned(), files, labels, classes: folders.into_iter().collect(), runs })
    }

    /// A source of one image file.
    #[must_use]
    pub fn single(file: &Path) -> Self {
        let root = file.parent().unwrap_or(Path::new("")).to_owned();
        let name = file.file_name().map(PathBuf::from).unwrap_or_default();
        Self { root, files: vec![name], labels: vec![None], classes: Vec::new(), runs: Vec::new() }
    }
}

impl Source for FolderSource {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.files.get(index).map(|f| display_path(f)).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).copied().flatten()
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn passed_over(&self) -> Vec<String> {
        self.runs.iter().map(|folder| display_path(folder)).collect()
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        decode::decode_file(&join(&self.root, element(&self.files, index)?), channels)
    }

    fn file(&self, index: usize, path: &mut PathBuf) -> Result<bool, DataError> {
        path.clear();
        path.push(&self.root);
        let file = element(&self.files, index)?;
        // An empty relative path would add a `/`.
        if !file.as_os_str().is_empty() {
            path.push(file);
        }
        Ok(true)
    }
}

/// Whether a folder holds a run: a `config.toml` beside the lock, the metrics or the checkpoints that only a run has. A data set
/// may well have a `config.toml` of its own.
#[must_use]
pub fn holds_run(folder: &Path) -> bool {
    folder.join("config.toml").is_file()
        && (folder.join(".lock").is_file()
            || folder.join("metrics.jsonl").is_file()
            || folder.join("checkpoints").is_dir())
}

/// The first folder of a relative path, `None` for a file at the top.
fn first_folder(file: &Path) -> Option<String> {
    let mut parts = file.components();
    let first = parts.next()?;
    parts.next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

#[derive(Default)]
struct Search {
    files: Vec<PathBuf>,
    /// Folders that hold a run.
    runs: Vec<PathBuf>,
    others: usize,
}

impl Search {
    /// Visits `root/relative`; `above` holds the real paths of the folders on the way, to notice links in a circle.
    fn visit(&mut self, root: &Path, relative: &Path, above: &mut Vec<PathBuf>) -> Result<(), DataError> {
        let folder = join(root, relative);
        let io = |e| DataError::io(&folder, e);
        let real = folder.canonicalize().map_err(io)?;
        if above.contains(&real) || above.len() >= MAX_DEPTH {
            return Ok(());
        }
        above.push(real);
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let below = relative.join(&name);
            let kind = entry.file_type().map_err(io)?;
            let is_folder = if kind.is_symlink() {
                // A dangling link is a file that is not there.
                std::fs::metadata(entry.path()).is_ok_and(|m| m.is_dir())
            } else {
                kind.is_dir()
            };
            if is_folder && holds_run(&entry.path()) {
                self.runs.push(below);
            } else if is_folder {
                self.visit(root, &below, above)?;
            } else if looks_like_image(&name, &entry.path()) {
                self.files.push(below);
            } else {
                self.others += 1;
            }
        }
        above.pop();
        Ok(())
    }
}

fn looks_like_image(name: &OsStr, path: &Path) -> bool {
    match Path::new(name).extension() {
        Some(extension) => {
            let extension = extension.to_string_lossy().to_lowercase();
            EXTENSIONS.contains(&extension.as_str())
        }
        // Only regular files are opened: reading a pipe would wait for ever.
        None => {
            std::fs::metadata(path).is_ok_and(|m| m.is_file())
                && first_bytes(path).is_ok_and(|start| decode::is_image(&start))
        }
    }
}
