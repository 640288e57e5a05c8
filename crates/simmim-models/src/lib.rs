//! Models of simmim: vision transformers, the SimMIM task around them, parameter names and weight files.
//!
//! A model is described once, forward only, as a graph of the engine. Parameters carry the official names
//! (`encoder.blocks.0.attn.qkv.weight`, `encoder.mask_token`, `decoder.0.weight`); encoders are exported under timm's.

pub mod classifier;
mod error;
pub mod optimizer;
mod parameters;
pub mod simmim;
pub mod vit;
pub mod weights;

pub use classifier::{ClassifierConfig, Pool};
pub use error::ModelError;
pub use parameters::{Init, ParameterSpec};
pub use simmim::{Area, Loss, Mode, SimMimConfig, Target};
pub use vit::{Position, QkvBias, VitConfig};
