//! Tables in parts: each of several processes writes its own file of a folder that readers take as one table.
//!
//! A part takes successive images, so the parts in the order of their names are the whole table. Beside each lies a hidden file that says what
//! it was made from and what its bytes are; readers pass over names that begin with a dot.

use crate::diagnostics::Failure;
use clap::Args;
use serde::{Deserialize, Serialize};
use simmim_data::{Source, Subset};
use simmim_train::Ranks;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One of so many parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    index: usize,
    count: usize,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct PartArguments {
    /// Take one of N shares of the images, I from 0 to N - 1, and write it to a file of its own in the folder that `--out` names then. One that is
    /// there and whole is not made again. For job arrays; under mpirun each rank takes its share without this.
    #[arg(long, value_name = "I/N", value_parser = parse)]
    pub(crate) part: Option<Part>,
    /// Make a part again, whatever lies in its place.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

fn parse(text: &str) -> Result<Part, String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((index, count)) if index < count && count <= 100_000 => Ok(Part { index, count }),
        _ => Err("use I/N with I from 0 to N - 1, such as 0/8 to 7/8".to_owned()),
    }
}

/// What one process makes of the images.
pub(crate) struct Share {
    pub(crate) images: Arc<dyn Source>,
    /// None where there is one table in one file.
    part: Option<Part>,
    overwrite: bool,
}

impl PartArguments {
    /// The share of this process: the part that was asked for, that of its rank, or all.
    pub(crate) fn share(self, images: Box<dyn Source>, ranks: &Ranks) -> Result<Share, Failure> {
        let images: Arc<dyn Source> = Arc::from(images);
        let part = match (self.part, ranks.world()) {
            (part, 1) => part,
            (None, count) => Some(Part { index: ranks.rank(), count }),
            (Some(_), _) => {
                return Err(Failure::input(
                    "--part is given, and a launcher has started several ranks, each of which takes its share",
                    "leave out --part, or start it without mpirun",
                ));
            }
        };
        if self.overwrite && part.is_none() {
            return Err(Failure::input(
                "--overwrite is for tables in parts; a table in one file is replaced anyway",
                "give --part, or leave it out",
            ));
        }
        let images = match part {
            None => images,
            Some(part) => {
                let range = part.of(images.len());
                Arc::new(Subset::new(images, range.collect())?)
            }
        };
        Ok(Share { images, part, overwrite: self.overwrite })
    }
}

impl Part {
    /// Its share of so many images.
    fn of(self, images: usize) -> Range<usize> {
        images * self.index / self.count..images * (self.index + 1) / self.count
    }

    /// The name of its file, without the extension.
    fn stem(self) -> String {
        format!("part-{:05}-of-{:05}", self.index, self.count)
    }
}

/// Where a share is written to.
pub(crate) enum Place {
    /// There it is already.
    There(PathBuf),
    /// To be made.
    Make(Slot),
}

/// A file to be made.
pub(crate) struct Slot {
    pub(crate) path: PathBuf,
    /// Where it is said what the file was made from, and what that is; nowhere for a whole table.
    seal: Option<(PathBuf, String)>,
}

/// The hidden file beside a part.
#[derive(Serialize, Deserialize)]
struct Seal {
    made_from: String,
    /// Names of the part's files, and hashes of their bytes.
    files: Vec<(String, String)>,
}

impl Share {
    /// Whether an empty table is a result: of some of many parts.
    pub(crate) fn may_be_empty(&self) -> bool {
        self.part.is_some()
    }

    /// Refuses an output that cannot be written, before any work is done for it.
    pub(crate) fn check_output(&self, out: &Path) -> Result<(), Failure> {
        let Some(part) = self.part else { return super::commands::check_output(out) };
        if out.is_file() {
            return Err(Failure::input(
                format!("{} is a file, and a table in parts is a folder of that name", out.display()),
                "remove it, or name another one",
            ));
        }
        std::fs::create_dir_all(out)
            .map_err(|e| Failure::input(format!("{}: {e}", out.display()), "choose a folder that can be written to"))?;
        let suffix = format!("-of-{:05}", part.count);
        let entries = std::fs::read_dir(out).map_err(|e| Failure::running(format!("{}: {e}", out.display())))?;
        for name in entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            let stem = name.split('.').next().unwrap_or_default();
            if stem.starts_with("part-") && !stem.ends_with(&suffix) {
                return Err(Failure::input(
                    format!("{} holds {name}, which is not one of {} parts", out.display(), part.count),
                    "give the same number of parts to all processes, or name another folder",
                ));
            }
        }
        Ok(())
    }

    /// Where the share goes. `made_from` names everything that its rows follow from.
    pub(crate) fn place(
        &self,
        out: &Path,
        made_from: impl FnOnce() -> Result<String, Failure>,
    ) -> Result<Place, Failure> {
        let Some(part) = self.part else { return Ok(Place::Make(Slot { path: out.to_owned(), seal: None })) };
        let extension = out.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let path = out.join(format!("{}.{extension}", part.stem()));
        let (seal, made_from) = (out.join(format!(".{}.json", part.stem())), made_from()?);
        let known: Option<Seal> = std::fs::read(&seal).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let (Some(known), false) = (known, self.overwrite) {
            if known.made_from != made_from {
                return Err(Failure::input(
                    format!("{} was made from other weights, images or settings", path.display()),
                    "give --overwrite to make it again, or name another folder",
                ));
            }
            let same = |(name, hash): &(String, String)| hash_of(&out.join(name)).is_ok_and(|found| found == *hash);
            if known.files.iter().all(same) {
                return Ok(Place::There(path));
            }
        }
        Ok(Place::Make(Slot { path, seal: Some((seal, made_from)) }))
    }
}

/// The files of all parts in a folder, in order.
pub(crate) fn all(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder)
        .map_err(|e| Failure::input(format!("{}: {e}", folder.display()), "name another folder"))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_part =
        |name: &String| name.starts_with("part-") && Path::new(name).extension().is_some_and(|e| e == extension);
    let mut found: Vec<String> = names.filter(of_part).collect();
    found.sort();
    let count = found.first().and_then(|name| name.split(['-', '.']).nth(3)?.parse().ok()).unwrap_or(0);
    if found.is_empty() || found.len() != count {
        return Err(Failure::input(
            format!("{} holds {} of {count} parts", folder.display(), found.len()),
            "make the others first",
        ));
    }
    Ok(found.iter().map(|name| folder.join(name)).collect())
}

impl Slot {
    /// Writes a part that is one file, and seals it; gives its path.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.path.clone();
        super::commands::write_file(&path, bytes)?;
        self.seal(std::slice::from_ref(&path))?;
        Ok(path)
    }

    /// Says what the part was made from, once its files are complete.
    pub(crate) fn seal(self, files: &[PathBuf]) -> Result<(), Failure> {
        let Some((seal, made_from)) = self.seal else { return Ok(()) };
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hashed = |path: &PathBuf| Ok((name(path), hash_of(path)?));
        let files = files.iter().map(hashed).collect::<Result<Vec<_>, Failure>>()?;
        let text =
            serde_json::to_vec_pretty(&Seal { made_from, files }).map_err(|e| Failure::running(e.to_string()))?;
        super::commands::write_file(&seal, &text)
    }
}

fn hash_of(path: &Path) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::running(format!("{}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).map_err(failed)?).map_err(failed)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_are_of_about_the_same_size() {
        for (images, count) in [(10, 3), (3, 7), (0, 2), (8, 8), (1000, 1)] {
            let ranges: Vec<_> = (0..count).map(|index| Part { index, count }.of(images)).collect();
            assert_eq!((ranges[0].start, ranges[count - 1].end), (0, images));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            let sizes = || ranges.iter().map(ExactSizeIterator::len);
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
    }

    #[test]
    fn what_names_no_part_is_refused() {
        assert_eq!(parse("2/8"), Ok(Part { index: 2, count: 8 }));
        for bad in ["8/8", "1", "-1/2", "0/0", "a/b", "1/2/3", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
