//! Matrix products: the only door to the product crate.
//!
//! [`multiply`] is one product on one thread over strided views; [`product_rows`] spreads a product over the pool by rows of the
//! result. The order in which an element's terms are added depends on the shapes of the parts only.

#![allow(unsafe_code, reason = "calls the product crate, which takes pointers and strides")]

use super::Cpu;

/// A strided view of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// Rows one after the other, `stride` apart.
    #[must_use]
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The same matrix, transposed.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    /// The matrix without its first `rows` rows.
    #[must_use]
    pub fn skip_rows(self, rows: usize) -> Self {
        Self { data: &self.data[rows * self.row_stride..], ..self }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// Extents of a product: `[m, k] x [k, n] -> [m, n]`.
#[derive(Debug, Clone, Copy)]
pub struct Extents {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// `c = alpha a b`, or `c += alpha a b` with `accumulate`, on the calling thread. Rows of `c` are `c_stride` apart.
///
/// # Panics
/// If a view is too short for the extents: a fault of the kernel.
pub fn multiply(c: &mut [f32], c_stride: usize, e: Extents, a: View<'_>, b: View<'_>, alpha: f32, accumulate: bool) {
    let Extents { m, n, k } = e;
    if m == 0 || n == 0 {
        return;
    }
    assert!(c_stride >= n && (m - 1) * c_stride + n <= c.len(), "result too short for {e:?}");
    assert!(a.holds(m, k) && b.holds(k, n), "operand too short for {e:?}");
    // SAFETY: (1) every element named by extents and strides lies inside its slice (asserted above); (2) `c` is borrowed mutably,
    // so it overlaps neither operand, and its rows do not overlap because `c_stride >= n`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Rows of a result that one task takes: an even share for each thread, in blocks the micro-kernels like.
#[must_use]
pub fn rows_per_task(cpu: &Cpu, rows: usize) -> usize {
    rows.div_ceil(cpu.pool.threads()).next_multiple_of(24)
}

/// `c = a b` or `c += a b` over the pool, for contiguous `c [m, n]`; `finish(first row, block)` runs on each block of rows while
/// it is warm.
pub fn product_rows(
    cpu: &Cpu,
    c: &mut [f32],
    e: Extents,
    a: View<'_>,
    b: View<'_>,
    accumulate: bool,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    cpu.pool.for_rows([c], e.m, rows_per_task(cpu, e.m), |rows, [c]| {
        multiply(c, e.n, Extents { m: rows.len(), ..e }, a.skip_rows(rows.start), b, 1.0, accumulate);
        finish(rows.start, c);
    });
}
