//! Features of images: what an encoder makes of them, at one or several layers.
//!
//! [`Extractor`] runs whole images through an encoder in batches while threads read the next ones; [`FeatureCache`] keeps what it
//! gave in the folder of a run. Every command that needs features takes them from here.

mod cache;
mod extractor;

pub use cache::{FeatureCache, Key};
pub(crate) use extractor::{EncoderProgram, Unread, for_batches};
pub use extractor::{Extractor, Plan, pixels};

use crate::error::TrainError;
use simmim_models::Encoder;
use simmim_models::encoder::Layer as Shape;
use std::fmt;

/// A place in the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The output of a block, counted from 1.
    Block(usize),
    /// The output of the final norm; of the last block where the encoder has none.
    Norm,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(k) => write!(f, "block {k}"),
            Self::Norm => write!(f, "norm"),
        }
    }
}

impl Layer {
    /// The layer of a number: k for block k, counted from 1; -1 for the final norm.
    ///
    /// # Errors
    /// [`TrainError::Input`] for a layer that the encoder does not have.
    pub fn of(number: i64, encoder: &Encoder) -> Result<Self, TrainError> {
        match usize::try_from(number) {
            Ok(k) if (1..=encoder.depth()).contains(&k) => Ok(Self::Block(k)),
            _ if number == -1 => Ok(Self::Norm),
            _ => Err(TrainError::Input {
                what: format!("there is no layer {number}"),
                help: format!("use 1 to {} for the output of a block, -1 for the final norm", encoder.depth()),
            }),
        }
    }

    /// Every block, and the final norm where there is one.
    #[must_use]
    pub fn all(encoder: &Encoder) -> Vec<Self> {
        (1..=encoder.depth()).map(Self::Block).chain(encoder.final_norm().then_some(Self::Norm)).collect()
    }

    /// Map and width of its tokens.
    #[must_use]
    pub fn shape(self, encoder: &Encoder) -> Shape {
        match self {
            Self::Block(k) => encoder.layers().get(k.saturating_sub(1)).copied().unwrap_or(encoder.output_layer()),
            Self::Norm => encoder.output_layer(),
        }
    }

    /// The number that [`Layer::of`] takes.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Block(k) => k as i64,
            Self::Norm => -1,
        }
    }
}

/// How the tokens of an image become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of the patch tokens.
    Mean,
    /// The class token.
    Class,
    /// All tokens, one after the other.
    None,
}

/// Rows of numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Numbers of a row.
    pub cols: usize,
    /// The numbers, row by row.
    pub data: Vec<f32>,
}

impl Matrix {
    /// A row.
    #[must_use]
    pub fn row(&self, at: usize) -> &[f32] {
        &self.data[at * self.cols..(at + 1) * self.cols]
    }

    /// Chosen rows in a chosen order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let data = rows.iter().flat_map(|&r| self.row(r)).copied().collect();
        Self { rows: rows.len(), cols: self.cols, data }
    }
}

/// Features of images.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Features {
    /// Index into the source of each row; images that could not be read have none.
    pub images: Vec<usize>,
    /// One matrix for each layer, in the order they were asked for: a row an image.
    pub layers: Vec<Matrix>,
    /// Images that could not be read, with the reason.
    pub unreadable: Vec<(usize, String)>,
}
