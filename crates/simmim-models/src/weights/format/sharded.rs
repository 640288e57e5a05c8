//! Weights in several files: an index that names the file of every tensor.

use super::{Format, Opened, Stored, open_one, sniff, wrong};
use crate::error::ModelError;
use std::collections::BTreeMap;
use std::path::Path;

/// Far beyond the index of any model.
const LARGEST_INDEX: u64 = 64 << 20;
const MOST_FILES: usize = 4096;

pub(super) fn open(path: &Path) -> Result<Stored, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    const HELP: &str = "give the folder of the model with all its files";
    if std::fs::metadata(path).map_err(io)?.len() > LARGEST_INDEX {
        return Err(wrong(path, "it is too large for an index of shards", HELP));
    }
    let text = std::fs::read(path).map_err(io)?;
    let index: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| wrong(path, format!("it is no index of shards: {e}"), HELP))?;
    let Some(map) = index.get("weight_map").and_then(|m| m.as_object()) else {
        return Err(wrong(path, "it is JSON, but no index of shards: it has no `weight_map`", HELP));
    };
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|f| is_plain(f));
        let file = file.ok_or_else(|| wrong(path, format!("its entry for {tensor} names no file beside it"), HELP))?;
        names.entry(file).or_default().push(tensor);
    }
    if names.len() > MOST_FILES {
        return Err(wrong(path, format!("it names {} files", names.len()), HELP));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let missing: Vec<&str> = names.keys().copied().filter(|file| !folder.join(file).is_file()).collect();
    if !missing.is_empty() {
        return Err(wrong(path, format!("files that it names are missing: {}", missing.join(", ")), HELP));
    }
    let (mut opened, mut files, mut bytes) = (Opened::default(), Vec::new(), 0);
    for (file, tensors) in names {
        let shard = folder.join(file);
        let (mut one, size) = open_one(&shard, sniff(&shard)?)?;
        for name in tensors {
            let entry = one.tensors.remove(name);
            let mut entry =
                entry.ok_or_else(|| wrong(&shard, format!("{name}, which the index places here, is missing"), HELP))?;
            entry.file = files.len();
            opened.tensors.insert(name.to_owned(), entry);
        }
        opened.metadata.extend(one.metadata);
        files.push(shard);
        bytes += size;
    }
    Stored::new(path, Format::Sharded, files, bytes, opened)
}

/// Whether a name is that of a file, and leads nowhere else.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != ".." && name != "."
}
