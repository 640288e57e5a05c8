//! Kernels of `linear`, for operands of floats and of bfloat16, whose sums are floats.

use super::vector_math::gelu_and_slope;
use super::{Args, Inputs, PARTIAL_ROWS, round_block, rows_per_task, sum_partials};
use crate::cpu::kernels::add::add_slices;
use crate::graph::{Bf16, DType, Number};
use crate::host::dispatch::vectorised;
use crate::host::gemm::{Extents, MatrixView, NOTHING, Operand, Product, Tile, product, product_scratch};
use crate::host::{BlockMut, Cpu};
use crate::ops::{Linear, LinearGradInput, LinearGradWeight, RowRange};
use crate::plan::Instruction;

/// First row and number of rows of the weight in use.
fn range_of(rows: Option<RowRange>, total: usize) -> (usize, usize) {
    rows.map_or((0, total), |r| (r.start, r.len))
}

/// Working memory of a product of what the instruction's first input holds.
fn scratch_of(i: &Instruction, cpu: &Cpu, e: Extents) -> usize {
    match i.inputs[0].ty.dtype {
        DType::Bf16 => product_scratch::<Bf16>(cpu, e),
        DType::F32 | DType::I32 => product_scratch::<f32>(cpu, e),
    }
}

pub(crate) fn scratch(op: &Linear, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, k] = [0, 1].map(|d| i.inputs[1].ty.shape[d]);
    let (_, n) = range_of(op.rows, total);
    scratch_of(i, cpu, Extents { m: i.inputs[0].ty.len() / k, n, k })
}

pub(crate) fn scratch_grad_input(op: &LinearGradInput, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, n] = [0, 1].map(|d| i.inputs[1].ty.shape[d]);
    let (_, k) = range_of(op.rows, total);
    scratch_of(i, cpu, Extents { m: i.inputs[0].ty.len() / k, n, k })
}

pub(crate) fn scratch_grad_weight(op: &LinearGradWeight, i: &Instruction, cpu: &Cpu) -> usize {
    let [total, n] = [0, 1].map(|d| i.outputs[0].ty.shape[d]);
    let (_, m) = range_of(op.rows, total);
    let rows = i.inputs[0].ty.len() / m;
    let sums = if op.bias { rows.div_ceil(PARTIAL_ROWS) * m } else { 0 };
    scratch_of(i, cpu, Extents { m, n, k: rows }).max(sums)
}

pub(crate) fn linear(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    match (args.input_type(0), args.output_type(0)) {
        (DType::Bf16, DType::Bf16) => linear_rounded(cpu, op, args),
        (DType::Bf16, _) => linear_floats::<Bf16>(cpu, op, args),
        _ => linear_floats::<f32>(cpu, op, args),
    }
}

/// A forward product with its bias.
fn forward<'a, O: Operand>(op: &Linear, inputs: Inputs<'a>) -> Product<'a, O> {
    let (x, weight) = (inputs.get::<O>(0), inputs.get::<O>(1));
    let [total, k] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, n) = range_of(op.rows, total);
    let e = Extents { m: x.len() / k, n, k };
    let bias = op.bias.then(|| &inputs.f32(2)[start..start + n]);
    Product::new(e, MatrixView::rows(x, k), MatrixView::rows(&weight[start * k..], k).transposed()).with_bias(bias)
}

fn linear_floats<O: Operand>(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    if op.gelu {
        let (inputs, [y, slope], scratch) = args.split::<2>();
        let p = forward::<O>(op, inputs);
        product(cpu, [y], [slope], p, scratch, |place, y, [slope]| gelu_block(cpu.isa, y, slope, place));
    } else {
        let (inputs, [y], scratch) = args.split::<1>();
        product(cpu, [y], NOTHING, forward::<O>(op, inputs), scratch, |_, _, _| ());
    }
}

fn linear_rounded(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (p, y) = (forward::<Bf16>(op, inputs), outputs.take::<Bf16>());
    if op.gelu {
        product(cpu, [], [y, outputs.take()], p, scratch, |place, values, [y, slope]| {
            gelu_block(cpu.isa, values, slope, place);
            round_block(cpu.isa, values, y, place);
        });
    } else {
        product(cpu, [], [y], p, scratch, |place, values, [y]| round_block(cpu.isa, values, y, place));
    }
}

vectorised! {
    /// Turns a tile into its GELU and writes the slope.
    fn gelu_block<FMA, S: Number>(y: &mut BlockMut<'_>, slope: &mut BlockMut<'_, S>, place: &Tile) {
        for (i, row) in place.rows.clone().enumerate() {
            let (y, slope) = (y.row(i), &mut slope.row(row)[place.cols.clone()]);
            // Vector by vector: a tile is too narrow for the loop that the compiler would make.
            let ((y, y_tail), (slope, slope_tail)) = (y.as_chunks_mut::<16>(), slope.as_chunks_mut::<16>());
            for (y, slope) in y.iter_mut().zip(slope) {
                let mut slopes = [0.0; 16];
                y.iter_mut().zip(&mut slopes).for_each(|(y, s)| (*y, *s) = gelu_and_slope::<FMA>(*y));
                *slope = slopes.map(S::nearest);
            }
            for (y, slope) in y_tail.iter_mut().zip(slope_tail) {
                let (value, s) = gelu_and_slope::<FMA>(*y);
                (*y, *slope) = (value, S::nearest(s));
            }
        }
    }
}

pub(crate) fn gelu_grad(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [grad], _) = args.split::<1>();
    let (slope, len) = (inputs.f32(1), grad.len());
    cpu.pool.for_rows([grad], len, rows_per_task(4), |range, [grad]| multiply_slices(cpu.isa, grad, &slope[range]));
}

vectorised! {
    /// Multiplies a tile by that of a matrix, which holds all rows of `columns` numbers.
    fn multiply_block<_FMA, S: Number>(grad: &mut BlockMut<'_>, by: &[S], columns: usize, place: &Tile) {
        for (i, row) in place.rows.clone().enumerate() {
            let start = (place.first.0 + row) * columns + place.first.1;
            let by = &by[start + place.cols.start..start + place.cols.end];
            let ((grad, grad_tail), (by, by_tail)) = (grad.row(i).as_chunks_mut::<16>(), by.as_chunks::<16>());
            // Copies: the compiler does not see that a block and a slice are apart, and would take number by number.
            for (grad, &by) in grad.iter_mut().zip(by) {
                let g = *grad;
                *grad = std::array::from_fn(|lane| g[lane] * by[lane].value());
            }
            grad_tail.iter_mut().zip(by_tail).for_each(|(g, s)| *g *= s.value());
        }
    }
}

vectorised! {
    fn multiply_slices<_FMA>(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }
}

pub(crate) fn linear_grad_input(cpu: &Cpu, op: &LinearGradInput, args: &mut Args<'_>) {
    match (args.input_type(0), op.gelu.then(|| args.input_type(2))) {
        (DType::Bf16, Some(DType::Bf16)) => grad_input::<Bf16, Bf16>(cpu, op, args),
        (DType::Bf16, _) => grad_input::<Bf16, f32>(cpu, op, args),
        _ => grad_input::<f32, f32>(cpu, op, args),
    }
}

/// For operands `O` and a slope `S`.
fn grad_input<O: Operand, S: Number>(cpu: &Cpu, op: &LinearGradInput, args: &mut Args<'_>) {
    let rounded = args.output_type(0) == DType::Bf16;
    let (inputs, mut outputs, scratch) = args.parts();
    let (grad, weight) = (inputs.get::<O>(0), inputs.get::<O>(1));
    let [total, n] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, k) = range_of(op.rows, total);
    let e = Extents { m: grad.len() / k, n, k };
    let p = Product::new(e, MatrixView::rows(grad, k), MatrixView::rows(&weight[start * n..], n))
        .accumulated(op.accumulate);
    let slope = op.gelu.then(|| inputs.get::<S>(2));
    let p = slope.map_or(p, |slope| p.with_epilogue_operand(slope));
    let through_gelu = |place: &Tile, values: &mut BlockMut<'_>| {
        if let Some(slope) = slope {
            multiply_block(cpu.isa, values, slope, n, place);
        }
    };
    if rounded {
        product(cpu, [], [outputs.take::<Bf16>()], p, scratch, |place, values, [grad_x]| {
            through_gelu(place, values);
            round_block(cpu.isa, values, grad_x, place);
        });
    } else {
        product(cpu, [outputs.take()], NOTHING, p, scratch, |place, values, _| through_gelu(place, values));
    }
}

pub(crate) fn linear_grad_weight(cpu: &Cpu, op: &LinearGradWeight, args: &mut Args<'_>) {
    match args.input_type(0) {
        DType::Bf16 => grad_weight::<Bf16>(cpu, op, args),
        DType::F32 | DType::I32 => grad_weight::<f32>(cpu, op, args),
    }
}

fn grad_weight<O: Operand + Number>(cpu: &Cpu, op: &LinearGradWeight, args: &mut Args<'_>) {
    let (inputs, mut outputs, scratch) = args.parts();
    let (grad, x, grad_weight) = (inputs.get::<O>(0), inputs.get::<O>(1), outputs.take());
    let [total, n] = [0, 1].map(|i| inputs.output_shape(0)[i]);
    let (start, m) = range_of(op.rows, total);
    let e = Extents { m, n, k: grad.len() / m };
    let target = &mut grad_weight[start * n..(start + m) * n];
    let p = Product::new(e, MatrixView::rows(grad, m).transposed(), MatrixView::rows(x, n)).accumulated(true);
    product(cpu, [target], NOTHING, p, scratch, |_, _, _| ());
    if op.bias {
        column_sums(cpu, grad, &mut outputs.take()[start..start + m], scratch);
    }
}

vectorised! {
    /// Adds four rows, with one visit to their sums.
    fn add_four<_FMA, T: Number>(sums: &mut [f32], rows: &[T]) {
        let columns = sums.len();
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| &rows[i * columns..(i + 1) * columns]);
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += (a[i].value() + b[i].value()) + (c[i].value() + d[i].value());
        }
    }
}

/// Adds the sums of the columns of `rows` to `sums`, over a partition that depends on the shape alone.
fn column_sums<T: Number>(cpu: &Cpu, rows: &[T], sums: &mut [f32], scratch: &mut [f32]) {
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
