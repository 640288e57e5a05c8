//! `.npy`: an array, and a text file that names its rows.

use super::{Aside, Sink};
use crate::diagnostics::Failure;
use npyz::WriterBuilder;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(super) struct Npy {
    aside: Aside,
    file: BufWriter<File>,
    names: Vec<String>,
    /// Shape of a row.
    shape: Vec<usize>,
    header: usize,
}

/// The header of an array, to the byte at which its numbers start.
fn header(rows: usize, shape: &[usize]) -> Result<Vec<u8>, Failure> {
    let shape: Vec<u64> = std::iter::once(rows).chain(shape.iter().copied()).map(|n| n as u64).collect();
    let mut bytes = Vec::new();
    drop(npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?);
    Ok(bytes)
}

impl Npy {
    pub(super) fn create(path: &Path, rows: usize, shape: Vec<usize>) -> Result<Self, Failure> {
        let aside = Aside::new(path);
        let mut file = BufWriter::new(aside.create()?);
        let header = header(rows, &shape)?;
        file.write_all(&header).map_err(aside.fail())?;
        Ok(Self { file, names: Vec::new(), shape, header: header.len(), aside })
    }

    fn names_path(&self) -> PathBuf {
        self.aside.path.with_extension("files.txt")
    }
}

impl Sink for Npy {
    fn row(&mut self, path: &str, _label: Option<&str>, feature: &[f32]) -> Result<(), Failure> {
        self.names.push(path.to_owned());
        feature.iter().try_for_each(|v| self.file.write_all(&v.to_le_bytes())).map_err(self.aside.fail())
    }

    fn finish(mut self: Box<Self>) -> Result<String, Failure> {
        // Where images were left out, the array has fewer rows than its header said; headers are padded to equal lengths.
        let header = header(self.names.len(), &self.shape)?;
        if header.len() != self.header {
            return Err(Failure::running("internal: the header of the array changed its length"));
        }
        let fail = self.aside.fail();
        self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&header)).map_err(&fail)?;
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(&fail)?;
        let names = self.names_path();
        let list = Aside::new(&names);
        let text: String = self.names.iter().map(|n| n.replace(['\n', '\r'], " ") + "\n").collect();
        list.create()?.write_all(text.as_bytes()).map_err(list.fail())?;
        list.rename()?;
        self.aside.rename()?;
        let shape: Vec<usize> = std::iter::once(self.names.len()).chain(self.shape.iter().copied()).collect();
        Ok(format!("{} with shape {shape:?}; its rows are named in {}", self.aside.path.display(), names.display()))
    }
}
