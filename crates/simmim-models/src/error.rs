//! What can be wrong with a model's description or its weights.

use simmim_engine::EngineError;
use std::path::PathBuf;

/// An error of the models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No preset of that name.
    #[error("unknown model `{name}`")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Names like it.
        nearest: String,
    },
    /// Sizes that do not fit each other.
    #[error("{what}")]
    Geometry {
        /// What does not fit.
        what: String,
        /// What to do.
        help: String,
    },
    /// Weights whose keys or shapes are not the model's.
    #[error("{}: the weights do not fit the model{}{}{}", path.display(),
        list("missing", missing), list("unexpected", unexpected), list("of another shape", misshapen))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Keys of the model that the file lacks.
        missing: Vec<String>,
        /// Keys of the file that the model lacks.
        unexpected: Vec<String>,
        /// Keys with both shapes.
        misshapen: Vec<String>,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of weights that is damaged, or none.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        help: String,
    },
    /// The mask of an image has the wrong number of masked tokens.
    #[error("the mask of image {image} hides {found} tokens, expected {expected}")]
    MaskCount {
        /// Position in the batch.
        image: usize,
        /// Number that the model was built for.
        expected: usize,
        /// Number in the mask.
        found: usize,
    },
    /// The mask of an image hides a part of what an output token stands for.
    #[error("the mask of image {image} cuts through what a token of the last stage stands for")]
    MaskCells {
        /// Position in the batch.
        image: usize,
    },
    /// A fault of the engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn list(what: &str, keys: &[String]) -> String {
    const SHOWN: usize = 8;
    if keys.is_empty() {
        return String::new();
    }
    let more = if keys.len() > SHOWN { format!(" and {} more", keys.len() - SHOWN) } else { String::new() };
    format!("\n  {what}: {}{more}", keys[..keys.len().min(SHOWN)].join(", "))
}

impl ModelError {
    /// What the user can do.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::UnknownModel { nearest, .. } => Some(format!(
                "names are vit_SIZE_patchP_PIXELS, swin_SIZE_patch4_windowW_PIXELS and swinv2_SIZE_windowW_PIXELS with SIZE tiny, small, base or large; near: {nearest}"
            )),
            Self::Geometry { help, .. } | Self::Format { help, .. } => Some(help.clone()),
            Self::Mismatch { .. } => {
                Some("name the model these weights belong to (--model, --image-size, --recipe)".to_owned())
            }
            Self::MaskCells { .. } => Some("hide whole cells of simmim.mask_patch".to_owned()),
            Self::MaskCount { .. } => {
                Some("every mask must hide the share of cells that the recipe's ratio says".to_owned())
            }
            Self::Io { .. } | Self::Engine(_) => None,
        }
    }

    pub(crate) fn geometry(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Geometry { what: what.into(), help: help.into() }
    }
}
