//! Models of simmim: vision transformers, the SimMIM task around them, parameter names and weight files.
//!
//! A model is described once, forward only, as a graph of the engine. Parameters carry the official names
//! (`encoder.blocks.0.attn.qkv.weight`, `encoder.mask_token`, `decoder.0.weight`); encoders are exported under timm's.
//!
//! ```
//! use simmim_models::{SimMimConfig, VitConfig};
//!
//! let vit = VitConfig::preset("vit_base_patch16_224")?;
//! let simmim = SimMimConfig::official(vit, (32, 32), 0.6);
//! simmim.validate()?;
//! assert_eq!((simmim.masked_cells(), simmim.masked_tokens()), (30, 120));
//! assert!(simmim.parameters().iter().any(|p| p.name == "encoder.blocks.11.mlp.fc2.weight"));
//! # Ok::<(), simmim_models::ModelError>(())
//! ```

pub mod classifier;
pub mod encoder;
mod error;
pub mod names;
pub mod onnx;
pub mod optimizer;
mod parameters;
mod precision;
pub mod simmim;
pub mod swin;
pub mod vit;
pub mod weights;

pub use classifier::{ClassifierConfig, Pool};
pub use encoder::{Encoder, Geometry};
pub use error::ModelError;
pub use parameters::{Init, ParameterSpec};
pub use precision::Precision;
pub use simmim::{Area, Head, Loss, Mode, SimMimConfig, Target};
pub use swin::SwinConfig;
pub use vit::{Position, PositionInit, QkvBias, VitConfig, WeightInit};
