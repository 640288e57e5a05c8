//! The embedded demonstration set: a part of Fashion-MNIST.

use super::IdxSource;
use crate::DataError;

const CLASSES: [&str; 10] =
    ["t-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// 6,000 training images of Fashion-MNIST, 600 of each class: gray, 28 x 28, with labels. They are inside the program.
///
/// Copyright 2017 Zalando SE, MIT licence, see `demo/LICENSE` in this crate; `demo/make.py` made the selection.
///
/// # Errors
/// [`DataError`] only if the embedded data were damaged, which a test rules out.
pub fn demo() -> Result<IdxSource, DataError> {
    let images = include_bytes!("../../demo/train-images-idx3-ubyte.gz");
    let labels = include_bytes!("../../demo/train-labels-idx1-ubyte.gz");
    Ok(IdxSource::from_bytes("demo-train", images, labels)?.with_class_names(&CLASSES))
}

/// 1,000 test images of Fashion-MNIST, 100 of each class, none of them in [`demo`].
///
/// # Errors
/// As for [`demo`].
pub fn demo_held_out() -> Result<IdxSource, DataError> {
    let images = include_bytes!("../../demo/t10k-images-idx3-ubyte.gz");
    let labels = include_bytes!("../../demo/t10k-labels-idx1-ubyte.gz");
    Ok(IdxSource::from_bytes("demo-held-out", images, labels)?.with_class_names(&CLASSES))
}
