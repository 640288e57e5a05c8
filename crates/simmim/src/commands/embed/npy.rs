//! `.npy`: an array, and a text file that names its rows.

use super::{Sink, create, fail};
use crate::commands::write_file;
use crate::diagnostics::Failure;
use crate::npy::header;
use simmim_files::AtomicFile;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(super) struct Npy {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
    names: Vec<String>,
    /// Shape of a row.
    shape: Vec<usize>,
}

impl Npy {
    pub(super) fn create(path: &Path, rows: usize, shape: Vec<usize>) -> Result<Self, Failure> {
        let mut file = BufWriter::new(create(path)?);
        let header = header(rows, &shape);
        file.write_all(&header).map_err(fail(path))?;
        Ok(Self { path: path.to_owned(), file, names: Vec::new(), shape })
    }

    fn names_path(&self) -> PathBuf {
        self.path.with_extension("files.txt")
    }
}

impl Sink for Npy {
    fn row(&mut self, path: &str, _label: Option<&str>, feature: &[f32]) -> Result<(), Failure> {
        self.names.push(path.to_owned());
        feature.iter().try_for_each(|v| self.file.write_all(&v.to_le_bytes())).map_err(fail(&self.path))
    }

    fn finish(mut self: Box<Self>) -> Result<(Vec<PathBuf>, String), Failure> {
        // Where images were left out, the array has fewer rows than its header said.
        let header = header(self.names.len(), &self.shape);
        self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&header)).map_err(fail(&self.path))?;
        let names = self.names_path();
        let text: String = self.names.iter().map(|n| n.replace(['\n', '\r'], " ") + "\n").collect();
        write_file(&names, text.as_bytes())?;
        let file = self.file.into_inner().map_err(fail(&self.path))?;
        file.commit().map_err(fail(&self.path))?;
        let shape: Vec<usize> = std::iter::once(self.names.len()).chain(self.shape.iter().copied()).collect();
        let said = format!("{} with shape {shape:?}; the image paths are in {}", self.path.display(), names.display());
        Ok((vec![self.path, names], said))
    }
}
