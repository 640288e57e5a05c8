//! A part of another source, and the split into training and held-out samples.

use std::path::PathBuf;
use std::sync::Arc;

use simmim_random::{Purpose, Stream};

use super::{Source, element};
use crate::{Channels, DataError, Image};

/// Chosen images of another source, in a chosen order.
#[derive(Clone)]
pub struct Subset {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
}

impl Subset {
    /// The images of `source` at `indices`.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] for an index beyond the end of `source`.
    pub fn new(source: Arc<dyn Source>, indices: Vec<usize>) -> Result<Self, DataError> {
        let len = source.len();
        match indices.iter().find(|&&index| index >= len) {
            Some(&index) => Err(DataError::OutOfRange { index, len }),
            None => Ok(Self { source, indices }),
        }
    }

    /// The indices into the whole source.
    #[must_use]
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl Source for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn name(&self, index: usize) -> String {
        self.indices.get(index).map(|&i| self.source.name(i)).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.indices.get(index).and_then(|&i| self.source.label(i))
    }

    fn class_names(&self) -> &[String] {
        self.source.class_names()
    }

    fn passed_over(&self) -> Vec<String> {
        self.source.passed_over()
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        self.source.load(*element(&self.indices, index)?, channels)
    }

    fn file(&self, index: usize, path: &mut PathBuf) -> Result<bool, DataError> {
        self.source.file(*element(&self.indices, index)?, path)
    }
}

/// Splits `0..len` at random into training and held-out samples, each sorted; `held_out` is cut to `len`.
///
/// A pure function of its arguments.
#[must_use]
pub fn split(len: usize, held_out: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..len).collect();
    Stream::new(seed, Purpose::Split, 0, 0).shuffle(&mut order);
    let mut train = order.split_off(held_out.min(len));
    train.sort_unstable();
    order.sort_unstable();
    (train, order)
}
