//! One file for each verb.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod embed;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod features;
pub(crate) mod finetune;
pub(crate) mod fits;
pub(crate) mod groups;
pub(crate) mod inspect;
pub(crate) mod inspect_weights;
pub(crate) mod length;
pub(crate) mod mask_file;
pub(crate) mod neighbors;
pub(crate) mod predict;
pub(crate) mod pretrain;
pub(crate) mod probe;
pub(crate) mod recipes;
pub(crate) mod reconstruct;
pub(crate) mod roofline;
pub(crate) mod selftest;
pub(crate) mod weights;

use crate::diagnostics::Failure;
use simmim_data::{Source, source};
use std::path::Path;

/// `224` or `192x256`: height and width.
pub(crate) fn parse_size(text: &str) -> Result<(usize, usize), Failure> {
    let mut parts = text.split(['x', 'X']).map(|p| p.trim().parse::<usize>().ok().filter(|&n| n > 0));
    match (parts.next().flatten(), parts.next(), parts.next()) {
        (Some(side), None, None) => Ok((side, side)),
        (Some(height), Some(Some(width)), None) => Ok((height, width)),
        _ => Err(Failure::input(
            format!("`{text}` is not an image size"),
            "use a side such as 224, or HEIGHTxWIDTH such as 192x256",
        )),
    }
}

/// Opens the images at a path, and warns of folders among them that hold runs.
pub(crate) fn open_images(path: &Path) -> Result<Box<dyn Source>, Failure> {
    let images = source::open(path)?;
    warn_of_runs(&*images);
    Ok(images)
}

/// Warns of folders among images that hold runs.
#[allow(clippy::print_stderr, reason = "warnings go to standard error")]
pub(crate) fn warn_of_runs(images: &dyn Source) {
    said_of_runs(&[images]).into_iter().for_each(|text| eprintln!("warning: {text}"));
}

/// Names the folders among the images that hold runs, once each.
pub(crate) fn said_of_runs(images: &[&dyn Source]) -> Option<String> {
    let mut folders: Vec<String> = images.iter().flat_map(|images| images.passed_over()).collect();
    folders.sort();
    folders.dedup();
    let what = match folders.len() {
        1 => "a folder among the images holds a run and is".to_owned(),
        count => format!("{count} folders among the images hold runs and are"),
    };
    (!folders.is_empty()).then(|| format!("{what} passed over: {}", folders.join(", ")))
}

/// The name of an image's class, where it is known.
pub(crate) fn class_name(images: &dyn Source, index: usize) -> Option<&str> {
    images.class_names().get(images.label(index)?).map(String::as_str)
}

/// Refuses a path that no file can be written to, before any work is done for it.
pub(crate) fn check_output(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Failure::input(format!("{} is a folder", path.display()), "name a file"));
    }
    if !folder.is_dir() {
        return Err(Failure::input(
            format!("{}: the folder {} does not exist", path.display(), folder.display()),
            "create the folder, or choose another one",
        ));
    }
    Ok(())
}

/// Writes a file of results, which appears whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    simmim_files::write(path, bytes).map_err(|e| Failure::running(format!("{}: {e}", path.display())))
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_would_split_them() {
        assert_eq!(quoted(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(quoted(Path::new("my run/it's")), "'my run/it'\\''s'");
    }
}
