//! Kernels of `linear`.

use super::vector_math::{gelu, gelu_derivative};
use super::{Args, PARTIAL_ROWS, rows_per_task, sum_partials};
use crate::cpu::Cpu;
use crate::cpu::dispatch::vectorised;
use crate::cpu::gemm::{Extents, View, multiply, product_rows, rows_per_task as product_rows_per_task};
use crate::cpu::kernels::add::add_slices;
use crate::ops::{Linear, LinearGradInput, LinearGradWeight, Op, RowRange};
use crate::plan::Instruction;

/// First row and number of rows of the weight in use.
fn range_of(rows: Option<RowRange>, total: usize) -> (usize, usize) {
    rows.map_or((0, total), |r| (r.start, r.len))
}

pub(crate) fn scratch(i: &Instruction, _cpu: &Cpu) -> usize {
    match &i.op {
        Op::LinearGradWeight(op) if op.bias => {
            let columns = *i.inputs[0].shape.last().unwrap_or(&1);
            i.inputs[0].len().div_ceil(columns.max(1) * PARTIAL_ROWS) * columns
        }
        _ => 0,
    }
}

pub(crate) fn linear(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    if op.gelu { linear_gelu(cpu, op, args) } else { linear_plain(cpu, op, args) }
}

/// The operands of a forward product: extents, `x`, the transposed weight, and the bias in use.
fn operands<'a>(op: &Linear, inputs: super::Inputs<'a>) -> (Extents, View<'a>, View<'a>, Option<&'a [f32]>) {
    let (x, weight) = (inputs.f32(0), inputs.f32(1));
    let [total, k] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, n) = range_of(op.rows, total);
    let bias = op.bias.then(|| &inputs.f32(2)[start..start + n]);
    (Extents { m: x.len() / k, n, k }, View::rows(x, k), View::rows(&weight[start * k..], k).transposed(), bias)
}

fn linear_plain(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
    let (e, x, weight, bias) = operands(op, inputs);
    product_rows(cpu, y, e, x, weight, false, |_, y| {
        if let Some(bias) = bias {
            y.chunks_exact_mut(e.n).for_each(|y| add_slices(cpu.isa, y, bias));
        }
    });
}

fn linear_gelu(cpu: &Cpu, op: &Linear, args: &mut Args<'_>) {
    let (inputs, [y, pre], _) = args.split::<2>();
    let (e, x, weight, bias) = operands(op, inputs);
    cpu.pool.for_rows([y, pre], e.m, product_rows_per_task(cpu, e.m), |rows, [y, pre]| {
        multiply(pre, e.n, Extents { m: rows.len(), ..e }, x.skip_rows(rows.start), weight, 1.0, false);
        for (y, pre) in y.chunks_exact_mut(e.n).zip(pre.chunks_exact_mut(e.n)) {
            if let Some(bias) = bias {
                add_slices(cpu.isa, pre, bias);
            }
            gelu_row(cpu.isa, y, pre);
        }
    });
}

vectorised! {
    fn gelu_row<FMA>(y: &mut [f32], pre: &[f32]) {
        y.iter_mut().zip(pre).for_each(|(y, &z)| *y = gelu::<FMA>(z));
    }
}

pub(crate) fn gelu_grad(cpu: &Cpu, args: &mut Args<'_>) {
    let (inputs, [grad], _) = args.split::<1>();
    let (pre, len) = (inputs.f32(1), grad.len());
    cpu.pool.for_rows([grad], len, rows_per_task(4), |range, [grad]| gelu_grad_row(cpu.isa, grad, &pre[range]));
}

vectorised! {
    fn gelu_grad_row<FMA>(grad: &mut [f32], pre: &[f32]) {
        grad.iter_mut().zip(pre).for_each(|(g, &z)| *g *= gelu_derivative::<FMA>(z));
    }
}

pub(crate) fn linear_grad_input(cpu: &Cpu, op: &LinearGradInput, args: &mut Args<'_>) {
    let (inputs, [grad_x], _) = args.split::<1>();
    let (grad, weight) = (inputs.f32(0), inputs.f32(1));
    let [total, n] = [0, 1].map(|i| inputs.shape(1)[i]);
    let (start, k) = range_of(op.rows, total);
    let e = Extents { m: grad.len() / k, n, k };
    product_rows(cpu, grad_x, e, View::rows(grad, k), View::rows(&weight[start * n..], n), op.accumulate, |_, _| ());
}

pub(crate) fn linear_grad_weight(cpu: &Cpu, op: &LinearGradWeight, args: &mut Args<'_>) {
    if op.bias {
        let (inputs, [grad_weight, grad_bias], scratch) = args.split::<2>();
        weight_gradient(cpu, op, inputs, grad_weight);
        let (start, columns) = range_of(op.rows, grad_bias.len());
        column_sums(cpu, inputs.f32(0), &mut grad_bias[start..start + columns], scratch);
    } else {
        let (inputs, [grad_weight], _) = args.split::<1>();
        weight_gradient(cpu, op, inputs, grad_weight);
    }
}

fn weight_gradient(cpu: &Cpu, op: &LinearGradWeight, inputs: super::Inputs<'_>, grad_weight: &mut [f32]) {
    let (grad, x) = (inputs.f32(0), inputs.f32(1));
    let [total, n] = [0, 1].map(|i| inputs.output_shape(0)[i]);
    let (start, m) = range_of(op.rows, total);
    let e = Extents { m, n, k: grad.len() / m };
    let target = &mut grad_weight[start * n..(start + m) * n];
    product_rows(cpu, target, e, View::rows(grad, m).transposed(), View::rows(x, n), true, |_, _| ());
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
            rows.chunks_exact(columns).for_each(|row| add_slices(cpu.isa, partial, row));
        }
    });
    sum_partials(cpu.isa, sums, partials);
}
