//! Data for masked image modelling: where images come from, how they are decoded, cropped, masked and batched.
//!
//! - [`source`]: folders, list files, IDX files and the embedded demonstration set behind one trait, [`Source`];
//! - [`Transform`]: random and centred crops, flips and normalisation into planar `f32`;
//! - [`mask`]: which cells of an image are hidden, with a fixed count per image;
//! - [`Loader`]: prefetched batches whose content is a pure function of `(seed, epoch, index)`.
//!
//! Everything random is read from [`simmim_random::Stream`], so results do not depend on thread counts.
//!
//! ```
//! use std::sync::Arc;
//! use simmim_data::{Loader, LoaderConfig, Position, Transform};
//!
//! let source = Arc::new(simmim_data::demo()?);
//! let transform = Transform::new((32, 32), 1);
//! let mut loader = Loader::new(source, LoaderConfig::new(8, 0, transform), Position::default())?;
//! let batch = loader.next_batch()?;
//! assert_eq!(batch.images.len(), 8 * 32 * 32);
//! # Ok::<(), simmim_data::DataError>(())
//! ```

mod augment;
mod background;
pub mod cache;
mod decode;
mod error;
mod loader;
pub mod mask;
mod orientation;
mod pixels;
pub mod policy;
mod read;
mod region;
mod resize;
mod simd;
pub mod source;
mod statistics;

pub use augment::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, RandomResizedCrop, Transform};
pub use background::{Background, Channels};
pub use cache::{Cache, CacheConfig, CacheKind};
pub use decode::{MAX_FILE_BYTES, MAX_PIXELS, decode};
pub use error::DataError;
pub use loader::{Batch, Loader, LoaderConfig, Position, Transparency, load_centered};
pub use mask::{MaskKind, MaskSpec};
pub use pixels::{Alpha, Image, Pixels};
pub use policy::{Mix, Mixture, Policy, RandAugment};
pub use read::Reading;
pub use source::{LabelledSource, Source, Subset, demo, demo_held_out, split};
pub use statistics::{Seen, mean_and_deviation, mean_std, survey};
