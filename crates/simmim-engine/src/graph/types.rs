//! Element types and tensor types.

use super::Bf16;
use std::fmt;

/// Element type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// The upper half of a 32-bit float ([`Bf16`]).
    Bf16,
    /// 32-bit signed integer, for indices.
    I32,
}

impl DType {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Whether its elements are numbers and not indices.
    #[must_use]
    pub const fn is_float(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 => true,
            Self::I32 => false,
        }
    }

    /// Its name: `f32`, `bf16`, `i32`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::I32 => "i32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
    impl Sealed for super::Bf16 {}
}

/// A type of the host that has a [`DType`]. Every pattern of its bits is a value (`Pod`), so that memory which a device has
/// written may be seen as a slice of it.
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed {
    /// The element type of a value that holds it.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

impl Element for Bf16 {
    const DTYPE: DType = DType::Bf16;
}

/// An [`Element`] that kernels compute with, as a float.
pub trait Number: Element {
    /// Its value.
    fn value(self) -> f32;

    /// The nearest element.
    fn nearest(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Number for Bf16 {
    #[inline(always)]
    fn value(self) -> f32 {
        Self::value(self)
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        Self::nearest(value)
    }
}

/// Static shape and element type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Extent of each axis, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl TensorType {
    /// A float tensor.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        Self { shape: shape.into(), dtype: DType::F32 }
    }

    /// An index tensor.
    pub fn i32(shape: impl Into<Vec<usize>>) -> Self {
        Self { shape: shape.into(), dtype: DType::I32 }
    }

    /// The same shape with another element type.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Number of elements; `usize::MAX` where it is larger than that.
    #[must_use]
    pub fn len(&self) -> usize {
        elements(&self.shape)
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Bytes of all elements; `usize::MAX` where it is larger than that.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len().saturating_mul(self.dtype.bytes())
    }

    /// Whether a value of this type can exist: it has elements, and an address space holds them.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        !self.is_empty() && isize::try_from(self.bytes()).is_ok()
    }

    /// Extent of the last axis; 1 for a scalar.
    #[must_use]
    pub fn columns(&self) -> usize {
        columns(&self.shape)
    }

    /// Product of all axes but the last.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.len().checked_div(self.columns()).unwrap_or(0)
    }
}

/// Number of elements of a shape; `usize::MAX` where it is larger than that.
#[must_use]
pub fn elements(shape: &[usize]) -> usize {
    if shape.contains(&0) { 0 } else { shape.iter().fold(1, |product, &extent| product.saturating_mul(extent)) }
}

/// Extent of the last axis of a shape; 1 for a scalar.
#[must_use]
pub fn columns(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_do_not_wrap_around() {
        let huge = usize::MAX / 2;
        for (shape, len, possible) in [
            (vec![], 1, true),
            (vec![2, 3], 6, true),
            (vec![huge, huge], usize::MAX, false),
            (vec![huge, huge, 0], 0, false),
            (vec![huge], huge, false),
        ] {
            let ty = TensorType::f32(shape);
            assert_eq!((ty.len(), ty.is_possible()), (len, possible), "{ty}");
        }
        assert_eq!(TensorType::i32([4, 5]).rows(), 4);
        assert_eq!(TensorType::f32([huge, huge]).bytes(), usize::MAX);
    }
}
