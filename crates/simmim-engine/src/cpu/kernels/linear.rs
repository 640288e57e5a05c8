//! Kernels of `linear`.

use super::vector_math::gelu_and_slope;
use super::{Args, PARTIAL_ROWS, rows_per_task, sum_partials};
use crate::cpu::kernels::add::add_slices;
use crate::host::dispatch::vectorised;
use crate::host::gemm::{Extents, MatrixView, Product, Tile, product, product_scratch};
use crate::host::{BlockMut, Cpu};
use crate::ops::{Linear, LinearGradInput, LinearGradWeight, RowRange};
use crate::plan::Instruction;

/// First row and number of rows of the weight in use.
fn range_of(rows: Option<RowRange>, total: usize) -> (usize, usize) {
    rows.map_or((0, total), |r| (r.start, r.len))
}

pub(crate) fn scratch(op: &Linear, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, k] = [0, 1].map(|d| i.inputs[1].ty.shape[d]);
    let (_, n) = range_of(op.rows, total);
    product_scratch(cpu, Extents { m: i.inputs[0].ty.len() / k, n, k })
}

pub(crate) fn scratch_grad_input(op: &LinearGradInput, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, n] = [0, 1].map(|d| i.inputs[1].ty.shape[d]);
    let (_, k) = range_of(op.rows, total);
    product_scratch(cpu, Extents { m: i.inputs[0].ty.len() / k, n, k })
}

pub(crate) fn scratch_grad_weight(op: &LinearGradWeight, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, n] = [0, 1].map(|d| i.outputs[0].ty.shape[d]);
    let (_, m) = range_of(op.rows, total);
    let rows = i.inputs[0].ty.len() / m;
    let sums = if op.bias { rows.div_ceil(PARTIAL_ROWS) * m } else { 0 };
    product_scratch(cpu, Extents { m, n, k: rows }).max(sums)
}

pub(crate) fn linear(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    if op.gelu { linear_gelu(cpu, op, args) } else { linear_plain(cpu, op, args) }
}

/// A forward product with its bias.
fn forward<'a>(op: &Linear, inputs: super::Inputs<'a>) -> Product<'a> {
    let (x, weight) = (inputs.f32(0), inputs.f32(1));
    let [total, k] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, n) = range_of(op.rows, total);
    let e = Extents { m: x.len() / k, n, k };
    let bias = op.bias.then(|| &inputs.f32(2)[start..start + n]);
    Product::new(e, MatrixView::rows(x, k), MatrixView::rows(&weight[start * k..], k).transposed()).with_bias(bias)
}

fn linear_plain(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    let (inputs, [y], scratch) = args.split::<1>();
    product(cpu, [y], forward(op, inputs), scratch, |_, _| ());
}

fn linear_gelu(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    let (inputs, [y, slope], scratch) = args.split::<2>();
    product(cpu, [y, slope], forward(op, inputs), scratch, |place, [y, slope]| {
        gelu_block(cpu.isa, y, slope, place);
    });
}

vectorised! {
    /// Turns a tile into its GELU and writes the slope.
    fn gelu_block<FMA>(y: &mut BlockMut<'_>, slope: &mut BlockMut<'_>, place: &Tile) {
        for i in place.rows.clone() {
            let (y, slope) = (&mut y.row(i)[place.cols.clone()], &mut slope.row(i)[place.cols.clone()]);
            // Vector by vector: a tile is too narrow for the loop that the compiler would make.
            let ((y, y_tail), (slope, slope_tail)) = (y.as_chunks_mut::<16>(), slope.as_chunks_mut::<16>());
            for (y, slope) in y.iter_mut().zip(slope) {
                y.iter_mut().zip(slope).for_each(|(y, s)| (*y, *s) = gelu_and_slope::<FMA>(*y));
            }
            y_tail.iter_mut().zip(slope_tail).for_each(|(y, s)| (*y, *s) = gelu_and_slope::<FMA>(*y));
        }
    }
}

pub(crate) fn gelu_grad(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [grad], _) = args.split::<1>();
    let (slope, len) = (inputs.f32(1), grad.len());
    cpu.pool.for_rows([grad], len, rows_per_task(4), |range, [grad]| multiply_slices(cpu.isa, grad, &slope[range]));
}

vectorised! {
    /// Multiplies a tile by that of a matrix, which holds all rows of `columns` floats.
    fn multiply_block<_FMA>(grad: &mut BlockMut<'_>, by: &[f32], columns: usize, place: &Tile) {
        for i in place.rows.clone() {
            let start = (place.first.0 + i) * columns + place.first.1;
            let by = &by[start + place.cols.start..start + place.cols.end];
            let ((grad, grad_tail), (by, by_tail)) =
                (grad.row(i)[place.cols.clone()].as_chunks_mut::<16>(), by.as_chunks::<16>());
            // Copies: the compiler does not see that a block and a slice are apart, and would take number by number.
            for (grad, &by) in grad.iter_mut().zip(by) {
                let g = *grad;
                *grad = std::array::from_fn(|lane| g[lane] * by[lane]);
            }
            grad_tail.iter_mut().zip(by_tail).for_each(|(g, s)| *g *= s);
        }
    }
}

vectorised! {
    fn multiply_slices<_FMA>(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }
}

pub(crate) fn linear_grad_input(cpu: &Cpu, op: &LinearGradInput, args: &mut Args<'_>) {
    let (inputs, [grad_x], scratch) = args.split::<1>();
    let (grad, weight) = (inputs.f32(0), inputs.f32(1));
    let [total, n] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, k) = range_of(op.rows, total);
    let e = Extents { m: grad.len() / k, n, k };
    let p = Product::new(e, MatrixView::rows(grad, k), MatrixView::rows(&weight[start * n..], n))
        .accumulated(op.accumulate);
    if !op.gelu {
        return product(cpu, [grad_x], p, scratch, |_, _| ());
    }
    let slope = inputs.f32(2);
    product(cpu, [grad_x], p.with_epilogue_operand(slope), scratch, |place, [grad]| {
        multiply_block(cpu.isa, grad, slope, n, place)
    });
}

pub(crate) fn linear_grad_weight(cpu: &Cpu, op: &LinearGradWeight, args: &mut Args<'_>) {
    if op.bias {
        let (inputs, [grad_weight, grad_bias], scratch) = args.split::<2>();
        weight_gradient(cpu, op, inputs, grad_weight, scratch);
        let (start, columns) = range_of(op.rows, grad_bias.len());
        column_sums(cpu, inputs.f32(0), &mut grad_bias[start..start + columns], scratch);
    } else {
        let (inputs, [grad_weight], scratch) = args.split::<1>();
        weight_gradient(cpu, op, inputs, grad_weight, scratch);
    }
}

fn weight_gradient(
    cpu: &Cpu,
    op: &LinearGradWeight,
    inputs: super::Inputs<'_>,
    grad_weight: &mut [f32],
    scratch: &mut [f32],
) {
    let (grad, x) = (inputs.f32(0), inputs.f32(1));
    let [total, n] = [0, 1].map(|i| inputs.output_shape(0)[i]);
    let (start, m) = range_of(op.rows, total);
    let e = Extents { m, n, k: grad.len() / m };
    let target = &mut grad_weight[start * n..(start + m) * n];
    let p = Product::new(e, MatrixView::rows(grad, m).transposed(), MatrixView::rows(x, n)).accumulated(true);
    product(cpu, [target], p, scratch, |_, _| ());
}

vectorised! {
    /// Adds four rows, with one visit to their sums.
    fn add_four<_FMA>(sums: &mut [f32], rows: &[f32]) {
        let columns = sums.len();
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| &rows[i * columns..(i + 1) * columns]);
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += (a[i] + b[i]) + (c[i] + d[i]);
        }
    }
}

/// Adds the sums of the columns of `rows` to `sums`, over a partition that depends on the shape alone.
fn column_sums(cpu: &Cpu, rows: &[f32], sums: &mut [f32], scratch: &mut [f32]) {
    let columns = sums.len();
    let total = rows.len() / columns;
    let parts = total.div_ceil(PARTIAL_ROWS);
    let partials = &mut scratch[..parts * columns];
    cpu.pool.for_rows([&mut *partials], parts, 1, |range, [partials]| {
        for (part, partial) in range.zip(partials.chunks_exact_mut(columns)) {
            partial.fill(0.0);
            let rows = &rows[part * PARTIAL_ROWS * columns..total.min((part + 1) * PARTIAL_ROWS) * columns];
            let fours = rows.chunks_exact(4 * columns);
            fours.remainder().chunks_exact(columns).for_each(|row| add_slices(cpu.isa, partial, row));
            fours.for_each(|rows| add_four(cpu.isa, partial, rows));
        }
    });
    sum_partials(cpu.isa, sums, partials);
}
