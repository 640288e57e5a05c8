//! A text file that lists images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Source, element};
use crate::{Channels, DataError, Image, decode};

/// Largest list that is read, in bytes (1 GiB, about ten million lines).
const MAX_LIST_BYTES: u64 = 1 << 30;

/// Whole numbers up to here are labels by themselves; larger ones are names of classes.
const MAX_NUMERIC_LABEL: usize = 1 << 20;

/// How many of the first entries are looked for, to notice a list with the wrong base folder before training starts.
const CHECKED_ENTRIES: usize = 16;

/// The images named in a `.txt`, `.csv` or `.tsv` file: one path a line, relative to the folder of the list, with an
/// optional label after a tab or comma.
///
/// Empty lines and lines that start with `#` are skipped, as is a header line (`path`, `file`, `filename` or `image`).
/// In a `.txt` list, a comma that belongs to an existing file's name does not separate a label. Labels that are all
/// whole numbers are taken as they are; otherwise a label is the index of its name among the sorted names.
#[derive(Debug)]
pub struct ListSource {
    paths: Vec<PathBuf>,
    names: Vec<String>,
    labels: Vec<Option<usize>>,
    classes: Vec<String>,
}

impl ListSource {
    /// Reads a list. The images are not opened, but if none of the first few exists, the list is refused.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::TooLarge`]; [`DataError::List`] for text that is not
    /// UTF-8 or entries that do not exist; [`DataError::NoImages`] for an empty list.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = decode::read_limited(path, MAX_LIST_BYTES)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            DataError::List { path: path.to_owned(), line, reason: "the text is not UTF-8".into() }
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let comma_separates = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let mut entries: Vec<(usize, &str, Option<&str>)> = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (file, label) = separate(line, base, comma_separates);
            if entries.is_empty() && is_header(file) && !base.join(file).exists() {
                continue;
            }
            entries.push((number + 1, file, label));
        }
        let Some(&(line, first, _)) = entries.first() else {
            return Err(DataError::NoImages { path: path.to_owned(), files: 0 });
        };
        if !entries.iter().take(CHECKED_ENTRIES).any(|(_, file, _)| base.join(file).exists()) {
            let reason = format!("`{}` does not exist", base.join(first).display());
            return Err(DataError::List { path: path.to_owned(), line, reason });
        }
        let (labels, classes) = number_labels(entries.iter().map(|e| e.2).collect());
        Ok(Self {
            paths: entries.iter().map(|e| base.join(e.1)).collect(),
            names: entries.iter().map(|e| e.1.to_owned()).collect(),
            labels,
            classes,
        })
    }
}

impl Source for ListSource {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).cloned().unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).copied().flatten()
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        decode::decode_file(element(&self.paths, index)?, channels)
    }

    fn file(&self, index: usize, path: &mut PathBuf) -> Result<bool, DataError> {
        path.clear();
        path.push(element(&self.paths, index)?);
        Ok(true)
    }
}

/// Splits a line into path and label.
fn separate<'a>(line: &'a str, base: &Path, comma_separates: bool) -> (&'a str, Option<&'a str>) {
    let parts = match line.rsplit_once('\t') {
        Some(parts) => Some(parts),
        None => match line.rsplit_once(',') {
            Some(parts) if comma_separates || !base.join(line).exists() => Some(parts),
            _ => None,
        },
    };
    let clean = |text: &'a str| {
        let text = text.trim();
        text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text)
    };
    match parts {
        // A quoted path may hold commas, and then there is no label.
        Some(_) if line.starts_with('"') && line.ends_with('"') && line.matches('"').count() == 2 => {
            (clean(line), None)
        }
        Some((file, label)) => (clean(file), Some(clean(label)).filter(|l| !l.is_empty())),
        None => (clean(line), None),
    }
}

fn is_header(file: &str) -> bool {
    ["path", "file", "filename", "file_name", "image"].contains(&file.to_lowercase().as_str())
}

/// Numbers and names of the labels.
fn number_labels(labels: Vec<Option<&str>>) -> (Vec<Option<usize>>, Vec<String>) {
    let distinct: BTreeSet<&str> = labels.iter().copied().flatten().collect();
    let numbers: Option<Vec<usize>> =
        distinct.iter().map(|l| l.parse().ok().filter(|&n| n < MAX_NUMERIC_LABEL)).collect();
    match numbers {
        Some(numbers) => {
            let classes = numbers.iter().max().map_or(0, |&n| n + 1);
            let labels = labels.into_iter().map(|l| l.and_then(|l| l.parse().ok())).collect();
            (labels, (0..classes).map(|n| n.to_string()).collect())
        }
        None => {
            let index: BTreeMap<&str, usize> = distinct.iter().enumerate().map(|(i, &name)| (name, i)).collect();
            let labels = labels.into_iter().map(|l| l.and_then(|l| index.get(l).copied())).collect();
            (labels, distinct.into_iter().map(str::to_owned).collect())
        }
    }
}
