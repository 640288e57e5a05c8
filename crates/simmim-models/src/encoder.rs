//! What the tasks, and everything above them, know of an encoder.
//!
//! An encoder turns images into a map of tokens, block by block. [`Encoder`] holds one of the families; nothing outside this crate asks
//! which, but the recipe, whose keys make it.

use crate::error::ModelError;
use crate::names::{IMAGES, NORMED_TOKENS, block_output, kept_branch};
use crate::parameters::{Init, ParameterSpec};
use crate::simmim::{Build, SimMimConfig};
use crate::swin::{self, Stages, SwinConfig};
use crate::vit::{self, BRANCHES, Blocks, InitStyle, Position, VitConfig};
use simmim_engine::graph::TensorType;
use simmim_engine::{EngineError, Graph, ValueId};

/// An encoder.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoder {
    /// A vision transformer.
    Vit(VitConfig),
    /// A Swin transformer.
    Swin(SwinConfig),
}

impl From<VitConfig> for Encoder {
    fn from(config: VitConfig) -> Self {
        Self::Vit(config)
    }
}

impl From<SwinConfig> for Encoder {
    fn from(config: SwinConfig) -> Self {
        Self::Swin(config)
    }
}

/// Sizes of an encoder, from its images to the tokens that it ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the images, in pixels.
    pub image_size: (usize, usize),
    /// Channels of the images.
    pub channels: usize,
    /// Height and width of a patch, which is embedded, or hidden, as one, in pixels.
    pub patch_size: (usize, usize),
    /// Height and width of what an output token stands for, in pixels: what a prediction head paints from it.
    pub stride: (usize, usize),
    /// Width of the output tokens.
    pub width: usize,
    /// Whether a class token stands before them.
    pub class_token: bool,
    /// Register tokens that stand before them, behind the class token.
    pub registers: usize,
}

impl Geometry {
    /// Tokens before those of the patches: class token and registers.
    #[must_use]
    pub fn prefix(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }

    /// Rows and columns of the patches.
    #[must_use]
    pub fn patch_grid(&self) -> (usize, usize) {
        (self.image_size.0 / self.patch_size.0, self.image_size.1 / self.patch_size.1)
    }

    /// Number of patches.
    #[must_use]
    pub fn patches(&self) -> usize {
        self.patch_grid().0 * self.patch_grid().1
    }

    /// Rows and columns of the output tokens.
    #[must_use]
    pub fn grid(&self) -> (usize, usize) {
        (self.image_size.0 / self.stride.0, self.image_size.1 / self.stride.1)
    }

    /// Number of output tokens, without a class token.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.grid().0 * self.grid().1
    }

    /// Values of what an output token stands for: channels, height, width.
    #[must_use]
    pub fn cell_values(&self) -> usize {
        self.channels * self.stride.0 * self.stride.1
    }

    /// Patches along the height and the width of what an output token stands for.
    #[must_use]
    pub fn patches_per_cell(&self) -> (usize, usize) {
        (self.stride.0 / self.patch_size.0, self.stride.1 / self.patch_size.1)
    }

    /// The patch in the upper left corner of what an output token stands for.
    #[must_use]
    pub fn first_patch(&self, cell: usize) -> usize {
        let (down, right) = self.patches_per_cell();
        let columns = self.grid().1;
        cell / columns * down * self.patch_grid().1 + cell % columns * right
    }

    /// Values of an image.
    #[must_use]
    pub fn image_values(&self) -> usize {
        self.channels * self.image_size.0 * self.image_size.1
    }
}

/// What can be read after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Rows and columns of the map.
    pub grid: (usize, usize),
    /// Width of the tokens.
    pub width: usize,
    /// Tokens before those of the patches: class token and registers.
    pub prefix: usize,
}

impl Layer {
    /// Tokens of an image, class token and registers included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.grid.0 * self.grid.1 + self.prefix
    }
}

/// A branch that drop path drops for some samples while training (stochastic depth, Huang et al., arXiv 1603.09382).
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// The input of the program that says by which factor each sample keeps it, `[batch]`. There is none where `rate` is 0.
    pub input: String,
    /// Probability that a sample loses it.
    pub rate: f32,
}

impl Encoder {
    /// The encoder of a timm name, such as `vit_small_patch32_224` or `swin_tiny_patch4_window7_224`.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] with the nearest names, [`ModelError::Geometry`].
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        if name.starts_with("swin") {
            SwinConfig::preset(name).map(Self::Swin)
        } else {
            VitConfig::preset(name).map(Self::Vit)
        }
    }

    /// Sizes.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        match self {
            Self::Vit(c) => Geometry {
                image_size: c.image_size,
                channels: c.channels,
                patch_size: c.patch_size,
                stride: c.patch_size,
                width: c.embed_dim,
                class_token: c.class_token,
                registers: c.registers,
            },
            Self::Swin(c) => Geometry {
                image_size: c.image_size,
                channels: c.channels,
                patch_size: c.patch_size,
                stride: c.stride(),
                width: c.out_dim(),
                class_token: false,
                registers: 0,
            },
        }
    }

    /// Changes the size of the images.
    pub fn set_image_size(&mut self, size: (usize, usize)) {
        match self {
            Self::Vit(c) => c.image_size = size,
            Self::Swin(c) => c.image_size = size,
        }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        match self {
            Self::Vit(c) => c.validate(),
            Self::Swin(c) => c.validate(),
        }
    }

    /// What can be read after each block, in order.
    #[must_use]
    pub fn layers(&self) -> Vec<Layer> {
        match self {
            Self::Vit(c) => {
                let layer = Layer { grid: c.grid(), width: c.embed_dim, prefix: c.prefix() };
                vec![layer; c.depth]
            }
            Self::Swin(c) => {
                let layers = c
                    .stages()
                    .into_iter()
                    .flat_map(|s| std::iter::repeat_n(Layer { grid: s.grid, width: s.width, prefix: 0 }, s.depth));
                layers.collect()
            }
        }
    }

    /// Width of the embedded patches.
    #[must_use]
    pub fn embed_dim(&self) -> usize {
        match self {
            Self::Vit(c) => c.embed_dim,
            Self::Swin(c) => c.embed_dim,
        }
    }

    /// How the official code starts the mask token: cut at one standard deviation for ViT, at a hundred for Swin.
    pub(crate) fn mask_token_init(&self) -> Init {
        let cut = if matches!(self, Self::Vit(_)) { 0.02 } else { 2.0 };
        Init::TruncatedNormal { std: 0.02, cut, scale: 1.0 }
    }

    /// Whether the official code lets the mask token decay: its ViT lists positions and class token alone, its Swin the mask token too.
    pub(crate) fn mask_token_decays(&self) -> bool {
        matches!(self, Self::Vit(_))
    }

    /// What the output of the final norm holds: as the last block's.
    #[must_use]
    pub fn output_layer(&self) -> Layer {
        let g = self.geometry();
        Layer { grid: g.grid(), width: g.width, prefix: g.prefix() }
    }

    /// Number of blocks.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::Vit(c) => c.depth,
            Self::Swin(c) => c.depth(),
        }
    }

    /// Whether a norm follows the last block.
    #[must_use]
    pub fn final_norm(&self) -> bool {
        match self {
            Self::Vit(c) => c.final_norm,
            Self::Swin(c) => c.final_norm,
        }
    }

    /// The same encoder with or without the final norm.
    #[must_use]
    pub fn with_final_norm(mut self, on: bool) -> Self {
        match &mut self {
            Self::Vit(c) => c.final_norm = on,
            Self::Swin(c) => c.final_norm = on,
        }
        self
    }

    /// Added to the variance by every norm.
    #[must_use]
    pub fn eps(&self) -> f32 {
        match self {
            Self::Vit(c) => c.eps,
            Self::Swin(c) => c.eps,
        }
    }

    /// Whether pooled tokens are normed by a new norm in place of the encoder's own (`fc_norm`, as for ViT in the official code).
    #[must_use]
    pub fn norms_after_pooling(&self) -> bool {
        matches!(self, Self::Vit(_))
    }

    /// Whether absolute positions are added to the patches.
    pub(crate) fn absolute_positions(&self) -> bool {
        match self {
            Self::Vit(c) => c.position == Position::Absolute,
            Self::Swin(c) => c.absolute,
        }
    }

    /// All branches that drop path can drop, in the order of the layers.
    #[must_use]
    pub fn branches(&self) -> Vec<Branch> {
        let rate = |block: usize| match self {
            Self::Vit(c) => c.drop_path_of(block),
            Self::Swin(c) => c.drop_path_of(block),
        };
        let of_block =
            |block: usize| BRANCHES.map(|branch| Branch { input: kept_branch(block, branch), rate: rate(block) });
        (0..self.depth()).flat_map(of_block).collect()
    }

    /// The parameters, with names behind `prefix`. `style` is for encoders whose initial values differ between codes.
    pub(crate) fn specs(&self, prefix: &str, style: InitStyle) -> Vec<ParameterSpec> {
        match self {
            Self::Vit(c) => vit::specs(c, prefix, style),
            Self::Swin(c) => swin::specs(c, prefix),
        }
    }

    /// Rows and columns of the places between which a table of relative position biases holds offsets.
    pub(crate) fn bias_grid(&self, name: &str) -> Option<(usize, usize)> {
        match self {
            Self::Vit(c) => Some(c.grid()),
            Self::Swin(c) => {
                let stage = name.split("layers.").nth(1)?.split('.').next()?.parse::<usize>().ok()?;
                c.stages().get(stage).map(|s| s.window)
            }
        }
    }

    /// Whether the official fine-tuning spares a matrix from weight decay because of its name.
    pub(crate) fn spared(&self, name: &str) -> bool {
        let keywords = ["relative_position_bias_table", "cpb_mlp", "logit_scale"];
        matches!(self, Self::Swin(_)) && keywords.iter().any(|k| name.contains(k))
    }

    /// The encoder on images with hidden patches: the output tokens that are predicted, `[batch, predicted, width]`, and the cell of each,
    /// `[batch, predicted]`.
    pub(crate) fn masked(
        &self,
        graph: &mut Graph,
        config: &SimMimConfig,
        build: Build,
        images: ValueId,
    ) -> Result<(ValueId, ValueId), EngineError> {
        match self {
            Self::Vit(c) => vit::masked(graph, c, config, build, images),
            Self::Swin(c) => swin::masked(graph, c, config, build, images),
        }
    }

    /// The encoder on whole images, block by block. `drop_path`: whether branches read their inputs.
    pub(crate) fn forward<'a>(
        &'a self,
        graph: &'a mut Graph,
        prefix: &'static str,
        batch: usize,
        drop_path: bool,
    ) -> Box<dyn Forward + 'a> {
        match self {
            Self::Vit(c) => Box::new(Blocks::new(graph, c, prefix, batch, drop_path)),
            Self::Swin(c) => Box::new(Stages::new(graph, c, prefix, batch, drop_path)),
        }
    }

    /// One line on what the encoder is made of.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Vit(c) => format!("{} blocks of width {}, {} heads", c.depth, c.embed_dim, c.num_heads),
            Self::Swin(c) => format!(
                "{:?} blocks from width {} to {}, {:?} heads, windows of {}",
                c.depths,
                c.embed_dim,
                c.out_dim(),
                c.num_heads,
                c.window_size
            ),
        }
    }
}

/// Describes an encoder on whole images in a graph.
pub(crate) trait Forward {
    /// All tokens before the first block.
    fn embedded(&mut self, images: ValueId) -> Result<ValueId, EngineError>;

    /// The block of that number, with what stands between it and the one before.
    fn next_block(&mut self, x: ValueId, block: usize) -> Result<ValueId, EngineError>;

    /// The last block where the class tokens alone are wanted, `[batch, 1, width]`.
    fn class_block(&mut self, x: ValueId, block: usize) -> Result<ValueId, EngineError>;

    /// The final norm, where there is one.
    fn final_norm(&mut self, x: ValueId) -> Result<ValueId, EngineError>;

    /// Makes a value readable.
    fn output(&mut self, name: String, value: ValueId);
}

/// What [`encoder_graph`] makes readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncoderOutputs {
    /// Tokens after these blocks, counted from 1, as outputs [`block_output`].
    Blocks(Vec<usize>),
    /// Tokens after the final norm (after the last block where there is none), as output [`NORMED_TOKENS`].
    Norm,
    /// Both kinds at once.
    BlocksAndNorm(Vec<usize>),
}

/// The encoder on whole images: input `images [batch, channels, height, width]`, outputs `[batch, tokens, width]` of the layers
/// ([`Encoder::layers`]).
///
/// # Errors
/// [`ModelError::Geometry`] for impossible sizes or a block that does not exist.
pub fn encoder_graph(encoder: &Encoder, batch: usize, outputs: &EncoderOutputs) -> Result<Graph, ModelError> {
    encoder.validate()?;
    let wanted = match outputs {
        EncoderOutputs::Blocks(blocks) | EncoderOutputs::BlocksAndNorm(blocks) => blocks.clone(),
        EncoderOutputs::Norm => Vec::new(),
    };
    let norm = !matches!(outputs, EncoderOutputs::Blocks(_));
    let depth = encoder.depth();
    if let Some(bad) = wanted.iter().find(|&&k| k == 0 || k > depth) {
        return Err(ModelError::geometry(
            format!("there is no block {bad}"),
            format!("blocks count from 1 to {depth}; -1 stands for the output of the final norm"),
        ));
    }
    let mut graph = Graph::new();
    let images = images_input(&mut graph, encoder, batch);
    let mut forward = encoder.forward(&mut graph, "encoder.", batch, false);
    let mut x = forward.embedded(images)?;
    let last = wanted.iter().copied().max().filter(|_| !norm).unwrap_or(depth);
    for block in 0..last {
        x = forward.next_block(x, block)?;
        if wanted.contains(&(block + 1)) {
            forward.output(block_output(block + 1), x);
        }
    }
    if norm {
        let y = forward.final_norm(x)?;
        forward.output(NORMED_TOKENS.to_owned(), y);
    }
    drop(forward);
    Ok(graph)
}

/// The input `images`.
pub(crate) fn images_input(graph: &mut Graph, encoder: &Encoder, batch: usize) -> ValueId {
    let Geometry { channels, image_size: (height, width), .. } = encoder.geometry();
    graph.input(IMAGES, TensorType::f32([batch, channels, height, width]))
}
