//! What products multiply.

use super::amx::Parts;
use super::pack::Pack;
use crate::graph::{Bf16, Element};

/// An element type of operands.
#[allow(private_bounds, reason = "the set of types is closed")]
pub trait Operand: Element + Pack + Parts {
    /// Elements in a word of four bytes.
    const IN_WORD: usize = 4 / size_of::<Self>();

    /// Words that hold so many elements.
    #[must_use]
    #[inline(always)]
    fn words(elements: usize) -> usize {
        elements.div_ceil(Self::IN_WORD)
    }

    /// The word of an element and of the one that follows it along the sums; a float has no room for that.
    #[must_use]
    fn word(first: Self, second: Self) -> f32;
}

impl Operand for f32 {
    #[inline(always)]
    fn word(first: Self, _: Self) -> f32 {
        first
    }
}

impl Operand for Bf16 {
    #[inline(always)]
    fn word(first: Self, second: Self) -> f32 {
        f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
    }
}

/// A matrix in a slice, with strides.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a, O = f32> {
    /// The elements.
    pub data: &'a [O],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a, O> MatrixView<'a, O> {
    /// Rows one after the other, `stride` apart.
    #[must_use]
    pub fn rows(data: &'a [O], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The same matrix, transposed.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    pub(super) fn holds(&self, rows: usize, cols: usize) -> bool {
        let last = |extent: usize, stride: usize| (extent - 1).checked_mul(stride);
        rows == 0
            || cols == 0
            || last(rows, self.row_stride)
                .zip(last(cols, self.col_stride))
                .and_then(|(row, col)| row.checked_add(col))
                .is_some_and(|last| last < self.data.len())
    }

    /// The elements from one on.
    pub(super) fn from(&self, row: usize, col: usize) -> &'a [O] {
        &self.data[row * self.row_stride + col * self.col_stride..]
    }
}
