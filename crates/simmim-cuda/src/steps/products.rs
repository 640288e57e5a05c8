//! Linear layers: products by cuBLASLt where it is there and takes them, else by the kernels of `linear.cu`.

use super::{Builder, Operand};
use crate::step::{Address, Kernel, Launch, Product, Step};
use simmim_engine::ops::{Linear, LinearGradInput, LinearGradWeight, RowRange};

/// The tile of `linear.cu`.
const TILE: (usize, usize) = (128, 64);
/// Blocks that a product should have at least, so that the sum over many rows is cut where the result is small.
const BLOCKS: usize = 256;
/// Rows of a part of such a sum at least.
const ROWS_OF_PART: usize = 512;

/// The rows of a weight that are used: its first one, and how many.
fn range_of(rows: Option<RowRange>, weight: &Operand) -> RowRange {
    rows.unwrap_or(RowRange { start: 0, len: weight.shape()[0] })
}

fn grid(rows: usize, columns: usize) -> [usize; 3] {
    [rows.div_ceil(TILE.0), columns.div_ceil(TILE.1), 1]
}

/// Lets cuBLASLt compute a product, or says that it does not.
fn by_library(b: &mut Builder<'_>, product: Product) -> bool {
    let Some(workspace) = (b.takes)(&product) else { return false };
    b.scratch(workspace);
    b.push(Step::Product(product));
    true
}

pub(super) fn linear(b: &mut Builder<'_>, op: &Linear, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &inputs[1]);
    let (rows, terms) = (inputs[0].rows(), inputs[0].columns());
    let weight = inputs[1].at.element(range.start * terms);
    let bias = op.bias.then(|| inputs[2].at.element(range.start));
    let slope = op.gelu.then(|| outputs[1].at);
    let product = Product {
        rows,
        columns: range.len,
        terms,
        a: inputs[0].at,
        a_transposed: false,
        b: weight,
        b_transposed: true,
        d: outputs[0].at,
        accumulate: false,
        bias,
    };
    if by_library(b, product) {
        if let Some(slope) = slope {
            let launch = Launch::for_each(Kernel("linear", "gelu"), outputs[0].len());
            b.launch(launch.address(outputs[0].at).address(slope).index(outputs[0].len()));
        }
        return;
    }
    let launch = Launch::new(Kernel("linear", "linear"), grid(rows, range.len), 128);
    let launch = launch.address(inputs[0].at).address(weight).address(bias.unwrap_or(Address::NONE));
    let launch = launch.address(outputs[0].at).address(slope.unwrap_or(Address::NONE));
    b.launch(launch.int(rows).int(range.len).int(terms));
}

pub(super) fn linear_grad_input(b: &mut Builder<'_>, op: &LinearGradInput, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &inputs[1]);
    let (rows, columns) = (inputs[0].rows(), inputs[1].columns());
    let weight = inputs[1].at.element(range.start * columns);
    let slope = op.gelu.then(|| inputs[2].at);
    let product = Product {
        rows,
        columns,
        terms: range.len,
        a: inputs[0].at,
        a_transposed: false,
        b: weight,
        b_transposed: false,
        d: outputs[0].at,
        accumulate: op.accumulate,
        bias: None,
    };
    if by_library(b, product) {
        if let Some(slope) = slope {
            let launch = Launch::for_each(Kernel("linear", "gelu_grad"), outputs[0].len());
            b.launch(launch.address(outputs[0].at).address(slope).index(outputs[0].len()));
        }
        return;
    }
    let launch = Launch::new(Kernel("linear", "linear_grad_input"), grid(rows, columns), 128);
    let launch = launch.address(inputs[0].at).address(weight).address(slope.unwrap_or(Address::NONE));
    b.launch(launch.address(outputs[0].at).int(rows).int(range.len).int(columns).flag(op.accumulate));
}

pub(super) fn linear_grad_weight(b: &mut Builder<'_>, op: &LinearGradWeight, inputs: &[Operand], outputs: &[Operand]) {
    let range = range_of(op.rows, &outputs[0]);
    let (rows, columns) = (inputs[0].rows(), outputs[0].columns());
    let grad_weight = outputs[0].at.element(range.start * columns);
    let product = Product {
        rows: range.len,
        columns,
        terms: rows,
        a: inputs[0].at,
        a_transposed: true,
        b: inputs[1].at,
        b_transposed: false,
        d: grad_weight,
        accumulate: true,
        bias: None,
    };
    if !by_library(b, product) {
        own_grad_weight(b, inputs, grad_weight, [rows, range.len, columns]);
    }
    if op.bias {
        column_sums(b, &inputs[0], outputs[1].at.element(range.start));
    }
}

fn own_grad_weight(b: &mut Builder<'_>, inputs: &[Operand], to: Address, [rows, outputs, columns]: [usize; 3]) {
    let [x, y, _] = grid(outputs, columns);
    let parts = BLOCKS.div_ceil(x * y).min(rows.div_ceil(ROWS_OF_PART));
    let rows_of_part = rows.div_ceil(parts);
    let launch = |to: Address| {
        let launch = Launch::new(Kernel("linear", "linear_grad_weight"), [x, y, parts], 128);
        let launch = launch.address(inputs[0].at).address(inputs[1].at).address(to);
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
    let (number, parts) = b.column_sums(x.at, x.rows(), x.columns());
    b.add_parts(sum, parts, number, x.columns());
}
