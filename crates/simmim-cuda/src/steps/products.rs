//! Linear layers: products by cuBLASLt where it is there and takes them, else by the kernels of `linear.cu`, of bfloat16 by those of
//! `linear_rounded.cu`.

use super::{Builder, Operand};
use crate::step::{Address, Kernel, Launch, Product, Step, Values};
use simmim_engine::ops::{Linear, LinearGradInput, LinearGradWeight, RowRange};

/// The tile of `linear.cu`, and its threads.
const TILE: ([usize; 2], u32) = ([128, 64], 128);
/// Those of `linear_rounded.cu`.
const ROUNDED_TILE: ([usize; 2], u32) = ([128, 128], 256);
/// Blocks that a product should have at least, so that the sum over many rows is cut where the result is small.
const BLOCKS: usize = 256;
/// Rows of a part of such a sum at least.
const ROWS_OF_PART: usize = 512;

/// The rows of a weight that are used: its first one, and how many.
fn range_of(rows: Option<RowRange>, weight: &Operand) -> RowRange {
    rows.unwrap_or(RowRange { start: 0, len: weight.shape()[0] })
}

/// A launch with a block for each tile of a result, by the kernel of floats or of bfloat16, and each of so many parts of its sums.
fn by_tiles(names: [&'static str; 2], rounded: bool, [rows, columns, parts]: [usize; 3]) -> Launch {
    let [floats, halves] = names;
    let (kernel, (tile, threads)) =
        if rounded { (Kernel("linear_rounded", halves), ROUNDED_TILE) } else { (Kernel("linear", floats), TILE) };
    Launch::new(kernel, [rows.div_ceil(tile[0]), columns.div_ceil(tile[1]), parts], threads)
}

/// The values of an operand that there may be none of.
fn optional(operand: Option<&Operand>) -> Values {
    operand.map_or(Values::NONE, Operand::values)
}

/// Lets cuBLASLt compute a product, or says that it does not. `edge`: whether the result is not yet what is stored, but goes through GELU
/// or its slope. In bfloat16 that would round twice; and cuBLASLt adds no bias of floats to a result of bfloat16.
fn by_library(b: &mut Builder<'_>, product: Product, edge: bool) -> bool {
    if product.d.rounded() && (edge || product.bias.is_some()) {
        return false;
    }
    let Some(workspace) = (b.takes)(&product) else { return false };
    b.scratch(workspace);
    b.push(Step::Product(product));
    true
}

pub(super) fn linear(b: &mut Builder<'_>, op: &Linear, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &inputs[1]);
    let (rows, terms) = (inputs[0].rows(), inputs[0].columns());
    let (x, weight) = (inputs[0].values(), inputs[1].values().from(range.start * terms));
    let bias = op.bias.then(|| inputs[2].at.element(range.start));
    let slope = op.gelu.then(|| &outputs[1]);
    let product = Product {
        rows,
        columns: range.len,
        terms,
        a: x,
        a_transposed: false,
        b: weight,
        b_transposed: true,
        d: outputs[0].values(),
        accumulate: false,
        bias,
    };
    if by_library(b, product, op.gelu) {
        if let Some(slope) = slope {
            let launch = Launch::for_each(Kernel("linear", "gelu"), outputs[0].len());
            b.launch(launch.address(outputs[0].at).address(slope.at).index(outputs[0].len()));
        }
        return;
    }
    let launch = by_tiles(["linear", "linear_rounded"], x.rounded(), [rows, range.len, 1]);
    let launch = launch.address(x.start).address(weight.start).address(bias.unwrap_or(Address::NONE));
    let launch = launch.of(x.rounded(), outputs[0].values()).of(x.rounded(), optional(slope));
    b.launch(launch.int(rows).int(range.len).int(terms));
}

pub(super) fn linear_grad_input(b: &mut Builder<'_>, op: &LinearGradInput, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &inputs[1]);
    let (rows, columns) = (inputs[0].rows(), inputs[1].columns());
    let (grad, weight) = (inputs[0].values(), inputs[1].values().from(range.start * columns));
    let slope = op.gelu.then(|| &inputs[2]);
    let product = Product {
        rows,
        columns,
        terms: range.len,
        a: grad,
        a_transposed: false,
        b: weight,
        b_transposed: false,
        d: outputs[0].values(),
        accumulate: op.accumulate,
        bias: None,
    };
    if by_library(b, product, op.gelu) {
        if let Some(slope) = slope {
            let launch = Launch::for_each(Kernel("linear", "gelu_grad"), outputs[0].len());
            b.launch(launch.address(outputs[0].at).with(slope.values()).index(outputs[0].len()));
        }
        return;
    }
    let launch = by_tiles(["linear_grad_input", "linear_grad_input_rounded"], grad.rounded(), [rows, columns, 1]);
    let launch = launch.address(grad.start).address(weight.start).of(grad.rounded(), optional(slope));
    b.launch(launch.of(grad.rounded(), outputs[0].values()).int(rows).int(range.len).int(columns).flag(op.accumulate));
}

pub(super) fn linear_grad_weight(b: &mut Builder<'_>, op: &LinearGradWeight, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &outputs[0]);
    let (rows, columns) = (inputs[0].rows(), outputs[0].columns());
    let grad_weight = outputs[0].at.element(range.start * columns);
    let product = Product {
        rows: range.len,
        columns,
        terms: rows,
        a: inputs[0].values(),
        a_transposed: true,
        b: inputs[1].values(),
        b_transposed: false,
        d: Values::new(grad_weight, false),
        accumulate: true,
        bias: None,
    };
    if !by_library(b, product, false) {
        own_grad_weight(b, inputs, grad_weight, [rows, range.len, columns]);
    }
    if op.bias {
        column_sums(b, &inputs[0], outputs[1].at.element(range.start));
    }
}

fn own_grad_weight(b: &mut Builder<'_>, inputs: &[Operand], to: Address, [rows, outputs, columns]: [usize; 3]) {
    let tiles = |parts: usize| {
        by_tiles(["linear_grad_weight", "linear_grad_weight_rounded"], inputs[0].rounded(), [outputs, columns, parts])
    };
    let [x, y, _] = tiles(1).grid.map(|extent| extent as usize);
    let parts = BLOCKS.div_ceil(x * y).min(rows.div_ceil(ROWS_OF_PART));
    let rows_of_part = rows.div_ceil(parts);
    let launch = |to: Address| {
        let launch = tiles(parts).address(inputs[0].at).address(inputs[1].at).address(to);
        launch.int(rows).int(outputs).int(columns).int(rows_of_part).flag(parts == 1)
    };
    if parts == 1 {
        return b.launch(launch(to));
    }
    let sums = b.scratch(4 * parts * outputs * columns);
    b.launch(launch(sums));
    b.add_parts(to, sums, parts, outputs * columns);
}

/// `sum +=` the sums of the columns of `x`.
fn column_sums(b: &mut Builder<'_>, x: &Operand, sum: Address) {
    let (number, parts) = b.column_sums(x.values(), x.rows(), x.columns());
    b.add_parts(sum, parts, number, x.columns());
}
