//! The closed set of operations.
//!
//! Each file holds one operation with its backward operations: definition, shapes, mathematics, reference implementation and
//! backward rule. Kernels live in the executors under the same file name. Adding an operation means a file here, a variant in
//! [`Op`] (the `operations!` list), a kernel per executor, and then following the compiler.

mod adamw;
mod add;
mod attention;
mod cast;
mod cosine_heads;
mod cross_entropy;
mod drain;
mod embed_rows;
mod gather_rows;
mod global_norm;
mod layer_norm;
mod linear;
mod mean_tokens;
mod moving_average;
mod patch_gather;
mod pixel_loss;
mod pointwise;
mod qkv_bias;
mod relative_bias;
mod reshape;
mod residual;
mod window_attention;
mod window_normalize;
mod zero;

pub use adamw::AdamW;
pub use add::Add;
pub use attention::{Attention, AttentionGrad, AttentionSizes, Packing};
pub use cast::Cast;
pub use cosine_heads::{CosineHeads, CosineHeadsGrad, LARGEST_LOGIT_SCALE, SMALLEST_LENGTH};
pub use cross_entropy::{CrossEntropy, CrossEntropyGrad};
pub use drain::Drain;
pub use embed_rows::{EmbedRows, EmbedRowsGrad, Row as EmbedRow};
pub use gather_rows::{GatherRows, ScatterAddRows};
pub use global_norm::GlobalNorm;
pub use layer_norm::{LayerNorm, LayerNormGradInput, LayerNormGradParameters};
pub use linear::{GeluGrad, Linear, LinearGradInput, LinearGradWeight, RowRange, gelu, gelu_derivative};
pub use mean_tokens::{MeanTokens, MeanTokensGrad};
pub use moving_average::MovingAverage;
pub use patch_gather::PatchGather;
pub use pixel_loss::{PixelDistance, PixelLoss, PixelLossGrad};
pub use pointwise::{Function, Pointwise, PointwiseGrad};
pub use qkv_bias::{QkvBias, QkvBiasGrad};
pub use relative_bias::{RelativeBias, RelativeBiasGrad};
pub use reshape::Reshape;
pub use residual::{Residual, ResidualGrad};
pub use window_attention::{REGION_MASK, WindowAttention, WindowAttentionGrad, WindowSizes};
pub use window_normalize::WindowNormalize;
pub use zero::Zero;

use crate::autodiff::Backward;
use crate::error::EngineError;
use crate::graph::{DType, TensorType};
use crate::reference::Tensor;

/// An input or an output of an operation, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// An input.
    Input(usize),
    /// An output.
    Output(usize),
}

/// Which numbers an operation takes at an input, or gives at an output, where these are no indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Floats.
    Float,
    /// Floats or bfloat16, which it converts. An output that is an input, modified, is of its type.
    Either,
    /// Floats or bfloat16, and the same at all inputs and outputs of this kind: they meet in matrix products.
    Product,
    /// Bfloat16.
    Rounded,
}

/// What every operation defines.
pub trait Operation {
    /// Name in snake case: also the name of the file and of the kernels.
    fn name(&self) -> &'static str;

    /// Types of the outputs.
    ///
    /// # Errors
    /// [`EngineError::Shape`] or [`EngineError::Arity`] where the inputs do not fit.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError>;

    /// Pairs `(input, output)` in which the output is the input, modified. A kernel finds the input's contents in the output.
    fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Floating point operations, multiplications and additions counted apart; zero where they do not matter.
    fn flops(&self, _inputs: &[TensorType], _outputs: &[TensorType]) -> u64 {
        0
    }

    /// Which numbers it takes and gives. Where it has matrix products and these are of floats, so is all else.
    fn precision(&self, _port: Port) -> Precision {
        Precision::Float
    }

    /// `(input, bound)`: that input holds indices, which must lie in `0..bound`. All other inputs hold numbers.
    fn index_bounds(&self, _inputs: &[TensorType]) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Whether differentiation may start at its output: the operation is a loss, and its backward needs no gradient of it.
    fn is_loss(&self) -> bool {
        false
    }

    /// Emits the operations that compute the gradients of the inputs.
    ///
    /// # Errors
    /// [`EngineError::NoBackward`] where there is no rule.
    fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
        Err(EngineError::NoBackward { op: self.name(), input: ctx.first_wanted() })
    }

    /// The plain implementation, in double precision. `outputs` hold zeros, or the input's contents where
    /// [`Operation::in_place`] says so.
    fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]);
}

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// An operation of the graph.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "each variant is documented at the type it holds")]
        pub enum Op { $($name($name)),* }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self { Self::$name(op) }
        })*

        impl Operation for Op {
            fn name(&self) -> &'static str {
                match self { $(Self::$name(op) => op.name()),* }
            }
            fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, EngineError> {
                check_possible(self.name(), inputs)?;
                let outputs = match self { $(Self::$name(op) => op.infer(inputs)),* }?;
                check_types(self, inputs)?;
                match outputs.iter().find(|ty| !ty.is_possible()) {
                    Some(ty) => Err(EngineError::ImpossibleResult { op: self.name(), shape: ty.shape.clone() }),
                    None => Ok(outputs),
                }
            }
            fn in_place(&self) -> Vec<(usize, usize)> {
                match self { $(Self::$name(op) => op.in_place()),* }
            }
            fn flops(&self, inputs: &[TensorType], outputs: &[TensorType]) -> u64 {
                match self { $(Self::$name(op) => op.flops(inputs, outputs)),* }
            }
            fn index_bounds(&self, inputs: &[TensorType]) -> Vec<(usize, usize)> {
                match self { $(Self::$name(op) => op.index_bounds(inputs)),* }
            }
            fn precision(&self, port: Port) -> Precision {
                match self { $(Self::$name(op) => op.precision(port)),* }
            }
            fn is_loss(&self) -> bool {
                match self { $(Self::$name(op) => op.is_loss()),* }
            }
            fn backward(&self, ctx: &mut Backward<'_>) -> Result<(), EngineError> {
                match self { $(Self::$name(op) => op.backward(ctx)),* }
            }
            fn reference(&self, inputs: &[Tensor], outputs: &mut [Vec<f64>]) {
                match self { $(Self::$name(op) => op.reference(inputs, outputs)),* }
            }
        }

        impl Op {
            /// Names of all variants; tests use it to find operations without a case.
            pub const VARIANTS: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Name of this variant.
            #[must_use]
            pub fn variant(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),* }
            }
        }
    };
}

operations!(
    AdamW,
    Add,
    Attention,
    AttentionGrad,
    Cast,
    CosineHeads,
    CosineHeadsGrad,
    CrossEntropy,
    CrossEntropyGrad,
    Drain,
    EmbedRows,
    EmbedRowsGrad,
    GatherRows,
    GeluGrad,
    GlobalNorm,
    LayerNorm,
    LayerNormGradInput,
    LayerNormGradParameters,
    Linear,
    LinearGradInput,
    LinearGradWeight,
    MeanTokens,
    MeanTokensGrad,
    MovingAverage,
    PatchGather,
    PixelLoss,
    PixelLossGrad,
    Pointwise,
    PointwiseGrad,
    QkvBias,
    QkvBiasGrad,
    RelativeBias,
    RelativeBiasGrad,
    Reshape,
    Residual,
    ResidualGrad,
    ScatterAddRows,
    WindowAttention,
    WindowAttentionGrad,
    WindowNormalize,
    Zero,
);

/// Every input has elements and fits an address space, so that no operation has to think of empty tensors and sizes do not wrap.
fn check_possible(op: &'static str, inputs: &[TensorType]) -> Result<(), EngineError> {
    match inputs.iter().position(|ty| !ty.is_possible()) {
        Some(input) => Err(EngineError::Shape {
            op,
            input,
            role: "an operand",
            expected: "elements, and no more than memory can hold".into(),
            found: inputs[input].shape.clone(),
        }),
        None => Ok(()),
    }
}

/// Every operand has an element type that the operation takes: indices where it says so, numbers of its precision otherwise.
fn check_types(op: &Op, inputs: &[TensorType]) -> Result<(), EngineError> {
    let indices = op.index_bounds(inputs);
    let mut products = None;
    for (input, ty) in inputs.iter().enumerate() {
        let precision = op.precision(Port::Input(input));
        let expected = match precision {
            _ if indices.iter().any(|&(at, _)| at == input) => DType::I32,
            Precision::Rounded => DType::Bf16,
            Precision::Either if ty.dtype == DType::Bf16 && products != Some(DType::F32) => DType::Bf16,
            Precision::Product => match (ty.dtype, products) {
                (_, Some(first)) => first,
                (DType::Bf16, None) => DType::Bf16,
                (DType::F32 | DType::I32, None) => DType::F32,
            },
            Precision::Float | Precision::Either => DType::F32,
        };
        if ty.dtype != expected {
            return Err(EngineError::DType { op: op.name(), input, expected, found: ty.dtype });
        }
        if precision == Precision::Product {
            products = Some(expected);
        }
    }
    Ok(())
}

impl Op {
    /// The element type of its matrix products, where it has any.
    #[must_use]
    pub fn product_type(&self, inputs: &[TensorType]) -> Option<DType> {
        let ports = inputs.iter().enumerate();
        ports.filter(|(i, _)| self.precision(Port::Input(*i)) == Precision::Product).map(|(_, ty)| ty.dtype).next()
    }

    /// Whether it can define values of these types from these inputs, for which [`Operation::infer`] gave `inferred`.
    #[must_use]
    pub fn defines(&self, inputs: &[TensorType], inferred: &[TensorType], outputs: &[TensorType]) -> bool {
        let in_place = self.in_place();
        let products = self.product_type(inputs);
        let mut either = None;
        inferred.len() == outputs.len()
            && inferred.iter().zip(outputs).enumerate().all(|(at, (expected, found))| {
                let same_place = in_place.iter().find(|(_, to)| *to == at);
                let dtype = match (same_place, self.precision(Port::Output(at))) {
                    (Some(&(from, _)), _) => found.dtype == inputs[from].dtype,
                    (None, Precision::Float) => found.dtype == DType::F32,
                    (None, Precision::Rounded) => found.dtype == DType::Bf16,
                    (None, Precision::Product) => Some(found.dtype) == products,
                    (None, Precision::Either) => {
                        let alike = *either.get_or_insert(found.dtype) == found.dtype;
                        alike && found.dtype.is_float() && (found.dtype == DType::F32 || products != Some(DType::F32))
                    }
                };
                dtype && expected.shape == found.shape
            })
    }
}

/// Checks of inputs, shared by the operations. Element types are checked for all operations alike ([`check_types`]).
pub(crate) struct Check<'a> {
    op: &'static str,
    inputs: &'a [TensorType],
}

impl<'a> Check<'a> {
    pub(crate) fn new(op: &'static str, inputs: &'a [TensorType], expected: usize) -> Result<Self, EngineError> {
        if inputs.len() == expected {
            Ok(Self { op, inputs })
        } else {
            Err(EngineError::Arity { op, expected, found: inputs.len() })
        }
    }

    pub(crate) fn fail<T>(
        &self,
        input: usize,
        role: &'static str,
        expected: impl Into<String>,
    ) -> Result<T, EngineError> {
        Err(EngineError::Shape {
            op: self.op,
            input,
            role,
            expected: expected.into(),
            found: self.inputs[input].shape.clone(),
        })
    }

    /// Input `at` must have exactly this shape.
    pub(crate) fn shape(&self, at: usize, role: &'static str, shape: &[usize]) -> Result<(), EngineError> {
        if self.inputs[at].shape == shape { Ok(()) } else { self.fail(at, role, format!("{shape:?}")) }
    }

    /// Input `at` must hold this many elements, in any shape.
    pub(crate) fn len(&self, at: usize, role: &'static str, len: usize) -> Result<(), EngineError> {
        if self.inputs[at].len() == len { Ok(()) } else { self.fail(at, role, format!("{len} elements")) }
    }

    /// Input `at` must have this rank.
    pub(crate) fn rank(&self, at: usize, role: &'static str, rank: usize) -> Result<&'a [usize], EngineError> {
        let shape = &self.inputs[at].shape;
        if shape.len() == rank { Ok(shape) } else { self.fail(at, role, format!("{rank} axes")) }
    }
}
