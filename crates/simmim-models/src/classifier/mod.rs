//! A classifier on an encoder: pooled tokens, a norm, one linear layer (the fine-tuning of Xie et al., arXiv 2111.09886).

mod graph;

pub use graph::{ClassifierBuild, classifier_graph};

use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::parameters::{Init, ParameterSpec};
use crate::vit::InitStyle;

/// How the tokens of an image become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Mean of the patch tokens. A ViT's are then normed by a new norm `fc_norm`, and its own final norm is not used; a Swin
    /// transformer's are those after its final norm.
    Mean,
    /// The class token after the encoder's final norm.
    Cls,
}

/// Encoder, pooling and number of classes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierConfig {
    /// The encoder.
    pub encoder: Encoder,
    /// Number of classes.
    pub classes: usize,
    /// How tokens are pooled.
    pub pool: Pool,
    /// Factor of the head's starting values.
    pub head_scale: f32,
    /// Learning rate of a block as a share of the one above it; 1 for all alike.
    pub layer_decay: f64,
    /// Whether the encoder stays as it is.
    pub freeze: bool,
}

impl ClassifierConfig {
    /// Mean pooling and the official head, all layers trained at one rate.
    #[must_use]
    pub fn new(encoder: impl Into<Encoder>, classes: usize) -> Self {
        Self { encoder: encoder.into(), classes, pool: Pool::Mean, head_scale: 0.001, layer_decay: 1.0, freeze: false }
    }

    /// Checks that sizes fit each other.
    ///
    /// # Errors
    /// [`ModelError::Geometry`] with what to do.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.encoder.validate()?;
        if self.classes < 2 {
            return Err(ModelError::geometry(
                format!("a classifier of {} classes has nothing to tell apart", self.classes),
                "give images of two classes at least",
            ));
        }
        if self.pool == Pool::Cls && !self.encoder.geometry().class_token {
            return Err(ModelError::geometry("the encoder has no class token to pool", "set finetune.pool = \"mean\""));
        }
        Ok(())
    }

    /// Whether pooled tokens are normed (`fc_norm`) instead of each token.
    #[must_use]
    pub fn norms_after_pooling(&self) -> bool {
        self.pool == Pool::Mean && self.encoder.norms_after_pooling()
    }

    /// Whether the encoder's final norm is part of the classifier.
    #[must_use]
    pub fn final_norm(&self) -> bool {
        self.encoder.final_norm() && !self.norms_after_pooling()
    }

    /// The encoder as the classifier uses it.
    #[must_use]
    pub fn used_encoder(&self) -> Encoder {
        self.encoder.clone().with_final_norm(self.final_norm())
    }

    /// All parameters in the order of the layers, the encoder's behind `encoder.`, with the learning rates of layer-wise decay.
    #[must_use]
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let dim = self.encoder.geometry().width;
        let mut list = self.used_encoder().specs("encoder.", InitStyle::Official);
        if self.norms_after_pooling() {
            list.push(ParameterSpec::new("fc_norm.weight", &[dim], Init::Constant(1.0)));
            list.push(ParameterSpec::new("fc_norm.bias", &[dim], Init::Constant(0.0)));
        }
        let head = Init::TruncatedNormal { std: 0.02, cut: 0.02, scale: self.head_scale };
        list.push(ParameterSpec::new("head.weight", &[self.classes, dim], head));
        list.push(ParameterSpec::new("head.bias", &[self.classes], Init::Constant(0.0)));
        let top = self.encoder.depth() + 1;
        for p in &mut list {
            let layer = p.layer.unwrap_or(top);
            p.lr_scale = self.layer_decay.powi((top - layer) as i32) as f32;
            p.decay &= !self.encoder.spared(&p.name);
            p.used = !(self.freeze && p.name.starts_with("encoder."));
        }
        list
    }
}
