//! The SimMIM task around an encoder (Xie et al., arXiv 2111.09886).

mod graph;
mod indices;

pub use graph::{Build, TARGET_EPS, Variant, loss_scale, pixel_distance, simmim_graph};
pub use indices::{StepIndices, StepSlots};

use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::parameters::{Init, ParameterSpec};
use crate::vit::InitStyle;

/// Which implementation is reproduced exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The tutorial on timm transformers: no class token, no final norm, loss divided again by the masked tokens.
    Tutorial,
    /// microsoft/SimMIM: class token kept, final norm applied, loss over masked pixels of the batch.
    Official,
}

/// What is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Pixels in normalised space.
    Pixels,
    /// Pixels normalised once more within each patch.
    Normalized,
    /// Pixels normalised once more by the window around each, channel by channel.
    WindowNormalized {
        /// Side of the window in pixels, odd.
        window: usize,
    },
}

/// Function of the difference between prediction and target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Absolute difference.
    L1,
    /// Squared difference.
    L2,
    /// Squared below 1, absolute above.
    SmoothL1,
}

/// What paints pixels from an output token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// One linear layer: `decoder.0`.
    Linear,
    /// Two with GELU between them, as wide there as the tokens: `decoder.0` and `decoder.2`.
    Mlp,
}

/// Where the loss is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// On masked patches.
    Masked,
    /// On all patches.
    Full,
}

/// Encoder, mask and loss.
#[derive(Debug, Clone, PartialEq)]
pub struct SimMimConfig {
    /// The encoder.
    pub encoder: Encoder,
    /// Which implementation is reproduced.
    pub mode: Mode,
    /// Height and width of a mask cell in pixels; multiples of what an output token stands for.
    pub mask_patch: (usize, usize),
    /// Share of the cells that is masked.
    pub mask_ratio: f64,
    /// What is predicted.
    pub target: Target,
    /// Function of the difference.
    pub loss: Loss,
    /// Where the loss is taken.
    pub area: Area,
    /// What paints pixels from an output token.
    pub head: Head,
}

impl SimMimConfig {
    /// The tutorial's task: output tokens masked one by one, L1 on masked pixels.
    #[must_use]
    pub fn tutorial(encoder: impl Into<Encoder>, mask_ratio: f64) -> Self {
        let encoder = encoder.into();
        let (mask_patch, mode) = (encoder.geometry().stride, Mode::Tutorial);
        Self {
            encoder,
            mode,
            mask_patch,
            mask_ratio,
            target: Target::Pixels,
            loss: Loss::L1,
            area: Area::Masked,
            head: Head::Linear,
        }
    }

    /// The official task with mask cells of `mask_patch` pixels.
    #[must_use]
    pub fn official(encoder: impl Into<Encoder>, mask_patch: (usize, usize), mask_ratio: f64) -> Self {
        Self { mask_patch, mode: Mode::Official, ..Self::tutorial(encoder, mask_ratio) }
    }

    /// Checks that sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.encoder.validate()?;
        let g = self.encoder.geometry();
        let ((mh, mw), (sh, sw), (h, w)) = (self.mask_patch, g.stride, g.image_size);
        if mh == 0 || mw == 0 || mh % sh != 0 || mw % sw != 0 {
            let what =
                if g.stride == g.patch_size { "the patch" } else { "what a token of the last stage stands for," };
            return Err(ModelError::geometry(
                format!("a mask patch of {mh}x{mw} is not a multiple of {what} {sh}x{sw}"),
                format!("set simmim.mask_patch to a multiple of {sh}x{sw}"),
            ));
        }
        if h % mh != 0 || w % mw != 0 {
            return Err(ModelError::geometry(
                format!("mask patches of {mh}x{mw} do not divide images of {h}x{w}"),
                "set simmim.mask_patch or model.image_size so that one divides the other",
            ));
        }
        if let Target::WindowNormalized { window } = self.target
            && (window < 3 || window % 2 == 0)
        {
            return Err(ModelError::geometry(
                format!("a target window of {window} pixels has no middle"),
                "set simmim.target_window to an odd number of pixels; the official recipe has 47",
            ));
        }
        let (masked, cells) = (self.masked_cells(), self.mask_grid().0 * self.mask_grid().1);
        if masked == 0 || masked >= cells {
            return Err(ModelError::geometry(
                format!("a mask ratio of {} hides {masked} of {cells} cells", self.mask_ratio),
                "set simmim.mask_ratio so that some cells are hidden and some are not, or take a smaller simmim.mask_patch",
            ));
        }
        Ok(())
    }

    /// Rows and columns of the mask.
    #[must_use]
    pub fn mask_grid(&self) -> (usize, usize) {
        let (height, width) = self.encoder.geometry().image_size;
        (height / self.mask_patch.0, width / self.mask_patch.1)
    }

    /// Patches along the height and the width of a mask cell.
    #[must_use]
    pub fn tokens_per_cell(&self) -> (usize, usize) {
        let (height, width) = self.encoder.geometry().patch_size;
        (self.mask_patch.0 / height, self.mask_patch.1 / width)
    }

    /// Masked cells of each image: rounded down in the tutorial, up in the official code.
    #[must_use]
    pub fn masked_cells(&self) -> usize {
        let cells = (self.mask_grid().0 * self.mask_grid().1) as f64 * self.mask_ratio;
        (if self.mode == Mode::Tutorial { cells.floor() } else { cells.ceil() }) as usize
    }

    /// Masked patches of each image.
    #[must_use]
    pub fn masked_tokens(&self) -> usize {
        self.masked_cells() * self.tokens_per_cell().0 * self.tokens_per_cell().1
    }

    /// Visible patches of each image.
    #[must_use]
    pub fn visible_tokens(&self) -> usize {
        self.encoder.geometry().patches() - self.masked_tokens()
    }

    /// Output tokens of each image of which all patches are masked; of no other token any patch is.
    #[must_use]
    pub fn masked_outputs(&self) -> usize {
        let (down, right) = self.encoder.geometry().patches_per_cell();
        self.masked_tokens() / (down * right)
    }

    /// Output tokens of each image that are predicted.
    #[must_use]
    pub fn predicted_tokens(&self) -> usize {
        if self.area == Area::Full { self.encoder.geometry().cells() } else { self.masked_outputs() }
    }

    /// Tokens before those of the patches that run through the encoder while pre-training: class token and registers.
    #[must_use]
    pub fn prefix(&self) -> usize {
        if self.mode == Mode::Official { self.encoder.geometry().prefix() } else { 0 }
    }

    /// Whether the final norm is applied while pre-training.
    #[must_use]
    pub fn final_norm(&self) -> bool {
        self.encoder.final_norm() && self.mode == Mode::Official
    }

    /// All parameters in the order of the layers, under the official names.
    #[must_use]
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let g = self.encoder.geometry();
        let (dim, values, embedded) = (g.width, g.cell_values(), self.encoder.embed_dim());
        let tutorial = self.mode == Mode::Tutorial;
        let style = if tutorial { InitStyle::Timm } else { InitStyle::Official };
        let mask_init = if tutorial { Init::Normal { std: 1.0 } } else { self.encoder.mask_token_init() };
        let head = Init::Uniform { bound: 1.0 / (dim as f32).sqrt() };
        let mut list = self.encoder.specs("encoder.", style);
        let mask_token = ParameterSpec::new("encoder.mask_token", &[1, 1, embedded], mask_init).in_layer(0);
        list.push(ParameterSpec { decay: self.encoder.mask_token_decays(), ..mask_token });
        let layers: &[(&str, usize)] = match self.head {
            Head::Linear => &[("decoder.0", values)],
            Head::Mlp => &[("decoder.0", dim), ("decoder.2", values)],
        };
        for &(name, out) in layers {
            list.push(ParameterSpec::new(format!("{name}.weight"), &[out, dim, 1, 1], head));
            list.push(ParameterSpec::new(format!("{name}.bias"), &[out], head));
        }
        for p in &mut list {
            p.used = match p.name.as_str() {
                "encoder.cls_token" | "encoder.reg_token" => self.prefix() > 0,
                "encoder.norm.weight" | "encoder.norm.bias" => self.final_norm(),
                _ => true,
            };
            // The tutorial hands all parameters to one AdamW.
            p.decay |= tutorial;
        }
        list
    }
}
