//! What a parameter is called, its shape, how it starts and whether it decays.

use crate::vit::sincos_positions;
use simmim_random::{Purpose, Stream};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All equal.
    Constant(f32),
    /// Normal.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Normal, cut off at `cut` on both sides, then multiplied by `scale`.
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f32,
        /// Where it is cut.
        cut: f32,
        /// Factor.
        scale: f32,
    },
    /// Uniform in `-bound..bound`.
    Uniform {
        /// The bound.
        bound: f32,
    },
    /// The table of positions of [`sincos_positions`].
    SinCos {
        /// Rows of the patch grid.
        rows: usize,
        /// Columns of the patch grid.
        cols: usize,
        /// Whether a row of zeros for the class token comes first.
        class_token: bool,
    },
}

/// A parameter of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// Official name.
    pub name: String,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
    /// Whether weight decay applies: not to one-dimensional tensors, biases, positions, class, register and mask tokens.
    pub decay: bool,
    /// Whether training changes it; the others are kept as they are and written to files.
    pub used: bool,
    /// Layer of an encoder, for layer-wise decay: 0 for patch projection, positions and tokens, `i + 1` for block `i`; none for what
    /// stands above them all or serves all of them (`get_vit_layer` of the official code).
    pub layer: Option<usize>,
    /// Factor of the learning rate (layer-wise decay).
    pub lr_scale: f32,
}

impl ParameterSpec {
    pub(crate) fn new(name: impl Into<String>, shape: &[usize], init: Init) -> Self {
        let name = name.into();
        let tokens = ["pos_embed", "cls_token", "reg_token", "mask_token"].iter().any(|t| name.ends_with(t));
        let decay = shape.len() > 1 && !name.ends_with(".bias") && !tokens;
        Self { name, shape: shape.to_vec(), init, decay, used: true, layer: None, lr_scale: 1.0 }
    }

    pub(crate) fn in_layer(self, layer: usize) -> Self {
        Self { layer: Some(layer), ..self }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape in the graph: two axes for the weights of products, as in files otherwise.
    #[must_use]
    pub fn graph_shape(&self) -> Vec<usize> {
        if self.shape.len() == 4 { vec![self.shape[0], self.shape[1..].iter().product()] } else { self.shape.clone() }
    }

    /// The starting values: a pure function of the seed and the name.
    #[must_use]
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut stream = Stream::for_name(seed, Purpose::Init, &self.name);
        let mut draw =
            |value: &mut dyn FnMut(&mut Stream) -> f32| (0..self.len()).map(|_| value(&mut stream)).collect();
        match self.init {
            Init::Constant(value) => vec![value; self.len()],
            Init::Normal { std } => draw(&mut |stream| stream.normal() as f32 * std),
            Init::TruncatedNormal { std, cut, scale } => {
                let (std, cut) = (f64::from(std), f64::from(cut));
                draw(&mut |stream| stream.truncated_normal(std, -cut, cut) as f32 * scale)
            }
            Init::Uniform { bound } => draw(&mut |stream| stream.range(-f64::from(bound), f64::from(bound)) as f32),
            Init::SinCos { rows, cols, class_token } => {
                sincos_positions(rows, cols, self.shape[self.shape.len() - 1], class_token)
            }
        }
    }
}
