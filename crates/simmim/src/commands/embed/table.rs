//! Tables with path, label and vector: CSV and Parquet.

use super::{Sink, create, fail};
use crate::diagnostics::Failure;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};
use simmim_files::AtomicFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `path,label,0,1,...`: a row an image; the label is empty where there is none.
pub(super) struct Csv {
    path: PathBuf,
    file: csv::Writer<AtomicFile>,
    rows: usize,
    cols: usize,
}

impl Csv {
    pub(super) fn create(path: &Path, cols: usize) -> Result<Self, Failure> {
        let mut file = csv::Writer::from_writer(create(path)?);
        let names = ["path".to_owned(), "label".to_owned()].into_iter().chain((0..cols).map(|i| i.to_string()));
        file.write_record(names).map_err(fail(path))?;
        Ok(Self { path: path.to_owned(), file, rows: 0, cols })
    }
}

impl Sink for Csv {
    fn row(&mut self, path: &str, label: Option<&str>, feature: &[f32]) -> Result<(), Failure> {
        self.rows += 1;
        let text = [path.to_owned(), label.unwrap_or_default().to_owned()];
        // The shortest text that reads back as the same number.
        let fields = text.into_iter().chain(feature.iter().map(f32::to_string));
        self.file.write_record(fields).map_err(fail(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<(Vec<PathBuf>, String), Failure> {
        let file = self.file.into_inner().map_err(fail(&self.path))?;
        file.commit().map_err(fail(&self.path))?;
        let (rows, cols) = (self.rows, self.cols);
        let said = format!("{} with {rows} rows: path, label, {cols} numbers", self.path.display());
        Ok((vec![self.path], said))
    }
}

/// Rows held before they are written as a group.
const GROUP: usize = 8192;

/// Columns `path` (string), `label` (string, null where there is none) and `vector` (list of floats).
pub(super) struct Parquet {
    path: PathBuf,
    file: SerializedFileWriter<AtomicFile>,
    paths: Vec<ByteArray>,
    labels: Vec<Option<ByteArray>>,
    vectors: Vec<f32>,
    rows: usize,
}

fn schema() -> Result<TypePtr, ParquetError> {
    let text = |name: &str, repetition: Repetition| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_repetition(repetition)
            .with_logical_type(Some(LogicalType::String))
            .build()
    };
    let element =
        Type::primitive_type_builder("element", Physical::FLOAT).with_repetition(Repetition::REQUIRED).build()?;
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![Arc::new(element)])
        .build()?;
    let vector = Type::group_type_builder("vector")
        .with_repetition(Repetition::REQUIRED)
        .with_converted_type(ConvertedType::LIST)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let fields = vec![text("path", Repetition::REQUIRED)?, text("label", Repetition::OPTIONAL)?, vector];
    Ok(Arc::new(Type::group_type_builder("features").with_fields(fields.into_iter().map(Arc::new).collect()).build()?))
}

impl Parquet {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        // Floats of features hardly repeat: a dictionary of them would only be in the way.
        let properties = Arc::new(WriterProperties::builder().set_dictionary_enabled(false).build());
        let open = |file: AtomicFile| SerializedFileWriter::new(file, schema()?, properties);
        let file = open(create(path)?).map_err(fail(path))?;
        Ok(Self { path: path.to_owned(), file, paths: Vec::new(), labels: Vec::new(), vectors: Vec::new(), rows: 0 })
    }

    /// Writes the rows held as one row group.
    fn group(&mut self) -> Result<(), ParquetError> {
        let rows = self.paths.len();
        if rows == 0 {
            return Ok(());
        }
        let cols = self.vectors.len() / rows;
        let mut group = self.file.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            column.typed::<ByteArrayType>().write_batch(&self.paths, None, None)?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            let defined: Vec<i16> = self.labels.iter().map(|l| i16::from(l.is_some())).collect();
            let known: Vec<ByteArray> = self.labels.iter().flatten().cloned().collect();
            column.typed::<ByteArrayType>().write_batch(&known, Some(&defined), None)?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            // A list's first element begins a row (repetition 0), the others go on with it (1); every element is there (1).
            let defined = vec![1i16; self.vectors.len()];
            let repeated: Vec<i16> = (0..self.vectors.len()).map(|i| i16::from(i % cols != 0)).collect();
            column.typed::<FloatType>().write_batch(&self.vectors, Some(&defined), Some(&repeated))?;
            column.close()?;
        }
        group.close()?;
        self.rows += rows;
        self.paths.clear();
        self.labels.clear();
        self.vectors.clear();
        Ok(())
    }
}

impl Sink for Parquet {
    fn row(&mut self, path: &str, label: Option<&str>, feature: &[f32]) -> Result<(), Failure> {
        self.paths.push(path.into());
        self.labels.push(label.map(Into::into));
        self.vectors.extend_from_slice(feature);
        if self.paths.len() == GROUP {
            self.group().map_err(fail(&self.path))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(Vec<PathBuf>, String), Failure> {
        self.group().map_err(fail(&self.path))?;
        let file = self.file.into_inner().map_err(fail(&self.path))?;
        file.commit().map_err(fail(&self.path))?;
        let said = format!("{} with {} rows: path, label, vector", self.path.display(), self.rows);
        Ok((vec![self.path], said))
    }
}
