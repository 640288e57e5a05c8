//! From instructions to steps: launches, working memory and tables of every operation. What an operation is stands in
//! `simmim_engine::ops`, its kernels in `kernels/`, under the same name.

mod attention;
mod products;
mod rows;
mod tensors;

use crate::error::CudaError;
use crate::step::{Address, Kernel, Launch, Product, Step, Values};
use simmim_engine::ops::{Function, Op, PixelDistance};
use simmim_engine::plan::{Buffer, Instruction};
use simmim_engine::{DType, TensorType};
use std::cell::Cell;

/// Elements of a part of a loss: as in `pixel_loss.cu`.
const LOSS_PART: usize = 4096;
/// Rows of a plane that a block of `window_normalize.cu` takes: twice the sums of a window's rows for one start of them.
const ROWS_OF_STRIP: usize = 64;
/// Parts into which sums over rows are cut at most.
const MOST_PARTS: usize = 256;

/// A value with its address.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub(crate) at: Address,
    pub(crate) ty: TensorType,
}

impl Operand {
    fn rounded(&self) -> bool {
        self.ty.dtype == DType::Bf16
    }

    fn values(&self) -> Values {
        Values::new(self.at, self.rounded())
    }

    fn len(&self) -> usize {
        self.ty.len()
    }

    fn rows(&self) -> usize {
        self.ty.rows()
    }

    fn columns(&self) -> usize {
        self.ty.columns()
    }

    fn shape(&self) -> &[usize] {
        &self.ty.shape
    }
}

/// Where the pieces of a program lie. Building twice, first with addresses of nothing, tells how much memory it needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bases {
    pub(crate) scratch: Address,
    pub(crate) tables: Address,
}

/// Collects the steps of a program.
pub(crate) struct Builder<'a> {
    bases: Bases,
    /// Bytes of working memory that an instruction needs at most.
    pub(crate) scratch: usize,
    /// Tables for operations over many tensors.
    pub(crate) tables: Vec<u8>,
    /// Each step with the number of its instruction.
    pub(crate) steps: Vec<(usize, Step)>,
    /// Whether cuBLASLt takes a product, and the working memory that it needs then.
    takes: &'a dyn Fn(&Product) -> Option<usize>,
    at: usize,
    used: Cell<usize>,
}

/// A piece of working memory, aligned as the arena is.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(256)
}

impl<'a> Builder<'a> {
    pub(crate) fn new(bases: Bases, takes: &'a dyn Fn(&Product) -> Option<usize>) -> Self {
        Self { bases, scratch: 0, tables: Vec::new(), steps: Vec::new(), takes, at: 0, used: Cell::new(0) }
    }

    /// Adds the steps of all instructions, values at the addresses that `locate` gives.
    ///
    /// # Errors
    /// [`CudaError::WideHead`].
    pub(crate) fn build(
        &mut self,
        instructions: &[Instruction],
        locate: &dyn Fn(&Buffer) -> Address,
    ) -> Result<(), CudaError> {
        let operand = |buffer: &Buffer| Operand { at: locate(buffer), ty: buffer.ty.clone() };
        let mut at = 0;
        while at < instructions.len() {
            let alike = tensors::run_of_updates(&instructions[at..]);
            if alike > 0 {
                self.start(at);
                tensors::updates(self, &instructions[at..at + alike], &operand);
                at += alike;
                continue;
            }
            let i = &instructions[at];
            self.start(at);
            let inputs: Vec<Operand> = i.inputs.iter().map(operand).collect();
            let outputs: Vec<Operand> = i.outputs.iter().map(operand).collect();
            for &(from, to) in &i.copies {
                let bytes = outputs[to].ty.bytes();
                self.push(Step::Copy { to: outputs[to].at, from: inputs[from].at, bytes });
            }
            self.operation(&i.op, &inputs, &outputs)?;
            at += 1;
        }
        Ok(())
    }

    fn start(&mut self, at: usize) {
        self.at = at;
        self.used.set(0);
    }

    fn push(&mut self, step: Step) {
        self.steps.push((self.at, step));
    }

    fn launch(&mut self, launch: Launch) {
        self.push(Step::Launch(launch));
    }

    /// Working memory of the instruction.
    fn scratch(&mut self, bytes: usize) -> Address {
        let start = self.used.get();
        self.used.set(start + padded(bytes));
        self.scratch = self.scratch.max(start + padded(bytes));
        Address(self.bases.scratch.0 + start as u64)
    }

    /// A table that lasts as long as the program.
    fn table(&mut self, bytes: &[u8]) -> Address {
        let start = padded(self.tables.len());
        self.tables.resize(start, 0);
        self.tables.extend_from_slice(bytes);
        Address(self.bases.tables.0 + start as u64)
    }

    /// Sums of the columns of `x [rows, columns]`, in parts: their number, and where they lie one after the other.
    fn column_sums(&mut self, x: Values, rows: usize, columns: usize) -> (usize, Address) {
        let (number, rows_of_part) = parts_of(rows);
        let parts = self.scratch(4 * number * columns);
        let launch = Launch::new(Kernel("partials", "column_sums"), [columns.div_ceil(32), number, 1], 256);
        self.launch(launch.with(x).address(parts).int(rows).int(columns).int(rows_of_part));
        (number, parts)
    }

    /// `sum += the parts`, each of `count` floats, in their order.
    fn add_parts(&mut self, sum: Address, parts: Address, number: usize, count: usize) {
        let launch = Launch::for_each(Kernel("partials", "add_parts"), count);
        self.launch(launch.address(sum).address(parts).int(number).index(count));
    }

    /// `value = scale` times the sum of so many doubles.
    fn sum_parts(&mut self, value: Address, parts: Address, number: usize, scale: f32) {
        let launch = Launch::new(Kernel("partials", "sum_parts"), [1, 1, 1], 256);
        self.launch(launch.address(value).address(parts).int(number).with(scale));
    }

    fn operation(&mut self, op: &Op, inputs: &[Operand], outputs: &[Operand]) -> Result<(), CudaError> {
        match op {
            // Even a single update goes through `tensors`.
            Op::AdamW(_) | Op::MovingAverage(_) => {}
            Op::Add(_) => {
                let launch = Launch::for_each(Kernel("add", "add"), outputs[0].len());
                self.launch(launch.address(outputs[0].at).address(inputs[1].at).index(outputs[0].len()));
            }
            Op::Attention(op) => attention::attention(self, op, inputs, outputs)?,
            Op::AttentionGrad(op) => attention::attention_grad(self, op, inputs, outputs)?,
            Op::Cast(_) => {
                let launch = Launch::for_each(Kernel("cast", "cast"), outputs[0].len());
                self.launch(launch.with(inputs[0].values()).with(outputs[0].values()).index(outputs[0].len()));
            }
            Op::CrossEntropy(op) => rows::cross_entropy(self, op, inputs, outputs),
            Op::CrossEntropyGrad(op) => rows::cross_entropy_grad(self, op, inputs, outputs),
            Op::Drain(_) => {
                let bytes = outputs[0].ty.bytes();
                self.push(Step::Copy { to: outputs[1].at, from: outputs[0].at, bytes });
                self.push(Step::Zero { at: outputs[0].at, bytes });
            }
            Op::EmbedRows(op) => rows::embed_rows(self, op, inputs, outputs),
            Op::EmbedRowsGrad(op) => rows::embed_rows_grad(self, op, inputs, outputs),
            Op::GatherRows(_) => {
                let launch = Launch::for_each(Kernel("gather_rows", "gather_rows"), outputs[0].len());
                let launch = launch.with(inputs[0].values()).address(inputs[1].at).with(outputs[0].values());
                self.launch(launch.index(outputs[0].len()).int(outputs[0].columns()));
            }
            Op::GeluGrad(_) => {
                let launch = Launch::for_each(Kernel("linear", "gelu_grad"), outputs[0].len());
                self.launch(launch.address(outputs[0].at).with(inputs[1].values()).index(outputs[0].len()));
            }
            Op::GlobalNorm(op) => tensors::global_norm(self, op, inputs, outputs),
            Op::LayerNorm(op) => rows::layer_norm(self, op, inputs, outputs),
            Op::LayerNormGradInput(op) => rows::layer_norm_grad_input(self, op, inputs, outputs),
            Op::LayerNormGradParameters(_) => rows::layer_norm_grad_parameters(self, inputs, outputs),
            Op::Linear(op) => products::linear(self, op, inputs, outputs),
            Op::LinearGradInput(op) => products::linear_grad_input(self, op, inputs, outputs),
            Op::LinearGradWeight(op) => products::linear_grad_weight(self, op, inputs, outputs),
            Op::MeanTokens(op) => {
                let [images, tokens, dim] = [0, 1, 2].map(|axis| inputs[0].shape()[axis]);
                let launch = Launch::new(Kernel("mean_tokens", "mean_tokens"), [images, dim.div_ceil(128), 1], 128);
                self.launch(launch.address(inputs[0].at).address(outputs[0].at).int(tokens).int(op.skip).int(dim));
            }
            Op::MeanTokensGrad(op) => {
                let launch = Launch::for_each(Kernel("mean_tokens", "mean_tokens_grad"), outputs[0].len());
                let launch = launch.address(inputs[0].at).address(outputs[0].at).index(outputs[0].len());
                self.launch(launch.int(op.tokens).int(op.skip).int(outputs[0].columns()));
            }
            Op::PatchGather(op) => rows::patch_gather(self, op, inputs, outputs),
            Op::PixelLoss(op) => {
                let parts = inputs[0].len().div_ceil(LOSS_PART);
                let sums = self.scratch(8 * parts);
                let launch = Launch::new(Kernel("pixel_loss", "pixel_loss_parts"), [parts, 1, 1], 256);
                let weight = if op.weighted { inputs[2].at } else { Address::NONE };
                let launch = launch.address(inputs[0].at).address(inputs[1].at).address(weight).address(sums);
                let (kind, beta) = kind_of(op.kind);
                self.launch(launch.index(inputs[0].len()).int(inputs[0].columns()).int(kind).with(beta));
                self.sum_parts(outputs[0].at, sums, parts, op.scale);
            }
            Op::PixelLossGrad(op) => {
                let launch = Launch::for_each(Kernel("pixel_loss", "pixel_loss_grad"), outputs[0].len());
                let weight = if op.forward.weighted { inputs[2].at } else { Address::NONE };
                let launch =
                    launch.address(inputs[0].at).address(inputs[1].at).address(weight).with(outputs[0].values());
                let (kind, beta) = kind_of(op.forward.kind);
                let launch = launch.index(inputs[0].len()).int(inputs[0].columns()).int(kind).with(beta);
                self.launch(launch.with(op.forward.scale));
            }
            Op::QkvBias(_) => {
                let launch = Launch::for_each(Kernel("qkv_bias", "qkv_bias"), outputs[0].len());
                let launch = launch.address(inputs[0].at).address(inputs[1].at).address(outputs[0].at);
                self.launch(launch.int(inputs[0].len()));
            }
            Op::QkvBiasGrad(_) => {
                let launch = Launch::for_each(Kernel("qkv_bias", "qkv_bias_grad"), outputs[0].len());
                let launch = launch.address(inputs[0].at).address(outputs[0].at).address(outputs[1].at);
                self.launch(launch.int(outputs[0].len()));
            }
            Op::RelativeBias(_) => {
                let launch = Launch::for_each(Kernel("relative_bias", "relative_bias"), outputs[0].len());
                let launch = launch.address(inputs[0].at).address(inputs[1].at).address(outputs[0].at);
                self.launch(launch.index(outputs[0].len()).int(inputs[1].len()).int(inputs[0].columns()));
            }
            Op::RelativeBiasGrad(_) => {
                let (entries, heads) = (outputs[0].rows(), outputs[0].columns());
                let kernel = Kernel("relative_bias", "relative_bias_grad");
                let launch = Launch::new(kernel, [entries, heads.div_ceil(32), 1], 32);
                let launch = launch.address(inputs[0].at).address(inputs[1].at).address(outputs[0].at);
                self.launch(launch.int(inputs[1].len()).int(heads));
            }
            // In place, and copied above where that cannot be.
            Op::Reshape(_) => {}
            Op::CosineHeads(op) => rows::cosine_heads(self, op, inputs, outputs),
            Op::CosineHeadsGrad(op) => rows::cosine_heads_grad(self, op, inputs, outputs),
            Op::Pointwise(op) => {
                let launch = Launch::for_each(Kernel("pointwise", "pointwise"), outputs[0].len());
                let launch = launch.address(inputs[0].at).address(outputs[0].at).index(outputs[0].len());
                let (function, scale) = function_of(op.function);
                self.launch(launch.int(function).with(scale));
            }
            Op::PointwiseGrad(op) => {
                let launch = Launch::for_each(Kernel("pointwise", "pointwise_grad"), outputs[0].len());
                let launch = launch.address(outputs[0].at).address(inputs[1].at).index(outputs[0].len());
                let (function, scale) = function_of(op.function);
                self.launch(launch.int(function).with(scale));
            }
            Op::WindowAttention(op) => attention::window_attention(self, op, inputs, outputs)?,
            Op::WindowAttentionGrad(op) => attention::window_attention_grad(self, op, inputs, outputs)?,
            Op::WindowNormalize(op) => {
                let [images, channels, height, width] = [0, 1, 2, 3].map(|axis| inputs[0].shape()[axis]);
                let (planes, strips) = (images * channels, height.div_ceil(ROWS_OF_STRIP));
                let sums = self.scratch(8 * planes * strips * 2 * width);
                let kernel = Kernel("window_normalize", "window_normalize");
                let launch = Launch::new(kernel, [planes, strips, 1], 256);
                let launch = launch.address(inputs[0].at).address(outputs[0].at).address(sums).int(height).int(width);
                self.launch(launch.int(op.window / 2).int(ROWS_OF_STRIP).with(op.eps));
            }
            Op::Residual(op) => rows::residual(self, op, inputs, outputs),
            Op::ResidualGrad(op) => rows::residual_grad(self, op, inputs, outputs),
            Op::ScatterAddRows(op) => {
                let (rows, dim) = (outputs[0].rows(), outputs[0].columns());
                let kernel = Kernel("gather_rows", "scatter_add_rows");
                let launch = Launch::new(kernel, [rows, dim.div_ceil(128), 1], 128);
                let launch = launch.with(inputs[0].values()).address(inputs[1].at).address(outputs[0].at);
                self.launch(launch.int(inputs[1].len()).int(dim).flag(op.accumulate));
            }
            Op::Zero(_) => self.push(Step::Zero { at: outputs[0].at, bytes: outputs[0].ty.bytes() }),
        }
        Ok(())
    }
}

/// Number of a loss as in `pixel_loss.cu`, and its `beta`.
fn kind_of(kind: PixelDistance) -> (usize, f32) {
    match kind {
        PixelDistance::L1 => (0, 0.0),
        PixelDistance::L2 => (1, 0.0),
        PixelDistance::SmoothL1 { beta } => (2, beta),
    }
}

/// Number of a function as in `pointwise.cu`, and its factor.
fn function_of(function: Function) -> (usize, f32) {
    match function {
        Function::Relu => (0, 1.0),
        Function::Sigmoid { scale } => (1, scale),
    }
}

/// Parts of a sum over so many rows, and the rows of each: they follow from the shape.
fn parts_of(rows: usize) -> (usize, usize) {
    let rows_of_part = rows.div_ceil(MOST_PARTS).max(64);
    (rows.div_ceil(rows_of_part), rows_of_part)
}
