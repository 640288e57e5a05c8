//! The errors of the data layer: what was expected, what was found, and what to do.

use std::path::{Path, PathBuf};

/// Why data could not be read or a configuration cannot work.
///
/// The text of `Display` is one line without a full stop; [`DataError::help`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist.
    #[error("`{}` does not exist", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A folder or list without a single image.
    #[error("no images in `{}` ({files} other files seen)", path.display())]
    NoImages {
        /// The folder or list.
        path: PathBuf,
        /// Number of files that are not images.
        files: usize,
    },
    /// A folder that holds a run where images are looked for.
    #[error("`{}` holds a run, not images to learn from", path.display())]
    Run {
        /// The folder.
        path: PathBuf,
    },
    /// A file that is neither a list, nor IDX, nor an image.
    #[error("`{}` cannot be read as images: expected a folder, a list file, an IDX file or an image, found {found}", path.display())]
    UnknownSource {
        /// The file.
        path: PathBuf,
        /// What its first bytes look like.
        found: String,
    },
    /// An image file whose content is none of the known formats.
    #[error("`{}` is not a known image format: found {found}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What its first bytes look like.
        found: String,
    },
    /// A file of a known format that cannot be decoded.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        reason: String,
    },
    /// A valid file of a kind that is not supported.
    #[error("`{}` is not supported: {found}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature that is not supported.
        found: String,
    },
    /// A file that claims or has a size beyond the limit.
    #[error("`{}` is too large: expected at most {limit}, found {found}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, with its unit.
        limit: String,
        /// The size found, with its unit.
        found: String,
    },
    /// An image that does not have the requested channels.
    #[error("`{}` does not have the requested channels: expected {expected}, found {found}", path.display())]
    Channels {
        /// The file.
        path: PathBuf,
        /// The requested number of channels.
        expected: usize,
        /// The number of channels in the file.
        found: usize,
    },
    /// An IDX file that contradicts itself.
    #[error("`{}` is not a valid IDX file: expected {expected}, found {found}", path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What the format demands.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// A list file with an unusable line.
    #[error("`{}`, line {line}: {reason}", path.display())]
    List {
        /// The list file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Classes that cannot be learned or measured.
    #[error("`{}`: {what}", path.display())]
    Labels {
        /// The source.
        path: PathBuf,
        /// What is wrong with its classes.
        what: String,
        /// What to do about it.
        help: &'static str,
    },
    /// More unreadable files than allowed.
    #[error("{found} images could not be read, more than the {limit} allowed: {examples}")]
    TooManyFailures {
        /// Number of distinct unreadable images seen.
        found: usize,
        /// The limit.
        limit: usize,
        /// Some of them, with reasons.
        examples: String,
    },
    /// No image of the whole source could be read.
    #[error("none of the {found} images tried could be read: {examples}")]
    NothingReadable {
        /// Number of images tried.
        found: usize,
        /// Some of them, with reasons.
        examples: String,
    },
    /// A value of a configuration that cannot work.
    #[error("`{key}`: expected {expected}, found {found}")]
    Config {
        /// The name of the value.
        key: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An index beyond the end of a source.
    #[error("sample {index} does not exist in a source of {len}")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// The length of the source.
        len: usize,
    },
    /// Reading an image panicked outside the decoders.
    #[error("reading `{image}` panicked: {message}")]
    Panicked {
        /// The image's name in its source.
        image: String,
        /// The panic's message.
        message: String,
    },
    /// The loader has ended; an earlier call returned the reason.
    #[error("the loader has stopped after an earlier error")]
    Stopped,
}

impl DataError {
    /// What the user can do about it, as one or two sentences; `None` where there is nothing useful to add.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Missing { .. } => "check the spelling; relative paths start at the current folder",
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "give yourself permission to read it"
            }
            Self::Io { .. } | Self::Stopped | Self::OutOfRange { .. } => return None,
            Self::NoImages { .. } => {
                "put JPEG, PNG, WebP, TIFF, BMP or GIF files into it (any depth of folders, class folders are not \
                 needed), or IDX files such as `train-images-idx3-ubyte.gz`"
            }
            Self::Run { .. } => {
                "give the folder of the images; if you do mean the run's pictures, give its folder `reconstructions`"
            }
            Self::UnknownSource { .. } => {
                "give a folder of images, a list (`.txt`, `.csv`, `.tsv` with one path a line), an IDX file \
                 (gzipped or not), or one image"
            }
            Self::UnknownFormat { .. } => "convert it to JPEG, PNG, WebP, TIFF, BMP or GIF, or remove it",
            Self::Damaged { .. } => "remove it or fetch it again",
            Self::Unsupported { .. } => "convert it to an ordinary PNG or JPEG",
            Self::TooLarge { .. } => {
                "scale it down or remove it; a header that lies about its size is a sign of damage"
            }
            Self::Channels { expected, .. } if *expected == 1 || *expected == 3 => {
                "files with more than four bands cannot be turned into gray or RGB; ask for their own number of channels"
            }
            Self::Channels { .. } => "1 and 3 channels work for every image; others only for files that have them",
            Self::Idx { .. } => "fetch the file again; images are unsigned bytes of shape [images, rows, columns]",
            Self::List { .. } => {
                "each line is one path, relative to the list's folder, with an optional label after a tab or comma"
            }
            Self::Labels { help, .. } => help,
            Self::TooManyFailures { .. } => "remove or repair these files, or raise the limit of allowed failures",
            Self::Panicked { .. } => {
                "this is a fault of simmim, not of your data: please report it with the image; move the image away and resume to \
                 go on without it"
            }
            Self::NothingReadable { .. } => "check that these are images and that the requested channels fit them",
            Self::Config { .. } => "change the value in the recipe or with `--set`",
        };
        Some(text.to_owned())
    }

    /// The file or folder concerned, where there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Missing { path }
            | Self::Io { path, .. }
            | Self::NoImages { path, .. }
            | Self::Run { path }
            | Self::UnknownSource { path, .. }
            | Self::UnknownFormat { path, .. }
            | Self::Damaged { path, .. }
            | Self::Unsupported { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Channels { path, .. }
            | Self::Idx { path, .. }
            | Self::List { path, .. }
            | Self::Labels { path, .. } => Some(path),
            Self::TooManyFailures { .. }
            | Self::NothingReadable { .. }
            | Self::Config { .. }
            | Self::OutOfRange { .. }
            | Self::Panicked { .. }
            | Self::Stopped => None,
        }
    }

    /// Wraps a system error, telling a missing path from other reasons.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            Self::Missing { path: path.to_owned() }
        } else {
            Self::Io { path: path.to_owned(), source }
        }
    }

    /// A configuration value that cannot work.
    pub(crate) fn config(key: &'static str, expected: impl Into<String>, found: impl std::fmt::Display) -> Self {
        Self::Config { key, expected: expected.into(), found: found.to_string() }
    }
}
