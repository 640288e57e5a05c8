//! What a checkpoint's folder holds, in every format that was ever written.
//!
//! | format | `meta.json` | checked by |
//! |---|---|---|
//! | 0 | [`Meta`] and the hash of the tensors, no number | that hash |
//! | 1, 2 | number, [`Meta`], hash of the tensors, seal | that hash, and the seal: a hash of the three others as compact JSON |
//! | 3 | number, oldest program that reads it, [`Meta`] | `checksums.b3`, which `b3sum --check` reads too |
//!
//! All later formats keep number and reader at the top of `meta.json` and its line in `checksums.b3`: this program tells a newer
//! checkpoint from a damaged one by them.

use super::{META, Meta, STATE, damaged, hash, read};
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::path::Path;

/// Changes when older programs can no longer read a checkpoint.
pub(super) const FORMAT: u32 = 3;
/// The oldest version of the program that reads [`FORMAT`].
const READER: &str = "0.1.0";
const CHECKSUMS: &str = "checksums.b3";

/// What is read before anything else.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    format: u32,
    #[serde(default)]
    reader: String,
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    reader: &'a str,
    meta: &'a Meta,
}

/// Format 3 as read.
#[derive(Deserialize)]
struct Described {
    meta: Meta,
}

/// Formats 1 and 2 as read.
#[derive(Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    format: &'a RawValue,
    #[serde(borrow)]
    meta: &'a RawValue,
    #[serde(borrow)]
    state_hash: &'a RawValue,
    seal: String,
}

/// Format 0 as read.
#[derive(Deserialize)]
struct Bare {
    step: u64,
    epoch: u64,
    batch: u64,
    threads: usize,
    state_hash: String,
}

/// Writes `meta.json` and the checksums of both files into a folder that holds the tensors.
pub(super) fn write(folder: &Path, meta: &Meta) -> Result<(), TrainError> {
    let text = serde_json::to_vec_pretty(&Written { format: FORMAT, reader: READER, meta })
        .map_err(|e| TrainError::Internal { what: e.to_string() })?;
    let sums = format!("{}  {META}\n{}  {STATE}\n", hash_of(&text), hash(&folder.join(STATE))?);
    for (name, bytes) in [(META, &text[..]), (CHECKSUMS, sums.as_bytes())] {
        let path = folder.join(name);
        simmim_files::write(&path, bytes).map_err(TrainError::io(&path))?;
    }
    Ok(())
}

/// Reads `meta.json` and checks both files.
pub(super) fn read_checked(folder: &Path) -> Result<Meta, TrainError> {
    let path = folder.join(META);
    let text = read(&path)?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| damaged(&path, e.to_string()))?;
    let (meta, state) = match header.format {
        0 => bare(&path, &text)?,
        1 | 2 => sealed(&path, &text)?,
        FORMAT => {
            check(&path, &hash_of(&text), &listed(folder, META)?)?;
            let described: Described = serde_json::from_slice(&text).map_err(|e| damaged(&path, e.to_string()))?;
            (described.meta, listed(folder, STATE)?)
        }
        newer => {
            // A number that damage has made is none; without checksums to tell by, the checkpoint counts as a newer one's.
            match listed(folder, META) {
                Ok(sum) => check(&path, &hash_of(&text), &sum)?,
                Err(TrainError::Checkpoint { .. }) => {}
                Err(other) => return Err(other),
            }
            return Err(TrainError::NewerCheckpoint {
                path: folder.to_owned(),
                format: newer,
                reads: FORMAT,
                needs: header.reader,
            });
        }
    };
    let tensors = folder.join(STATE);
    check(&tensors, &hash(&tensors)?, &state)?;
    Ok(meta)
}

/// The checksum that is listed for a file.
fn listed(folder: &Path, name: &str) -> Result<String, TrainError> {
    let path = folder.join(CHECKSUMS);
    let text = String::from_utf8_lossy(&read(&path)?).into_owned();
    let line = text.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix("  "));
    line.map(str::to_owned).ok_or_else(|| damaged(&path, format!("it does not list {name}")))
}

fn check(path: &Path, found: &str, written: &str) -> Result<(), TrainError> {
    if found == written { Ok(()) } else { Err(damaged(path, "its contents have changed since it was written")) }
}

fn bare(path: &Path, text: &[u8]) -> Result<(Meta, String), TrainError> {
    let Bare { step, epoch, batch, threads, state_hash } =
        serde_json::from_slice(text).map_err(|e| damaged(path, e.to_string()))?;
    Ok((Meta { step, epoch, batch, threads, ..Meta::default() }, state_hash))
}

fn sealed(path: &Path, text: &[u8]) -> Result<(Meta, String), TrainError> {
    let broken = |e: serde_json::Error| damaged(path, e.to_string());
    let sealed: Sealed<'_> = serde_json::from_slice(text).map_err(broken)?;
    let [format, meta, state_hash] = [sealed.format, sealed.meta, sealed.state_hash].map(compact);
    check(path, &hash_of(format!("[{format},{meta},{state_hash}]").as_bytes()), &sealed.seal)?;
    Ok((serde_json::from_str(&meta).map_err(broken)?, serde_json::from_str(&state_hash).map_err(broken)?))
}

/// JSON without the white space between its parts.
fn compact(value: &RawValue) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keeps = |&c: &char| {
        let keep = quoted || !c.is_ascii_whitespace();
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        keep
    };
    value.get().chars().filter(keeps).collect()
}

fn hash_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_and_strings_stay() {
        let pretty = "{\n  \"a b\": [1.0, \" \\\" \\\\\", \"\\\\\" ],\n\t\"c\": null\r\n}";
        let raw: &RawValue = serde_json::from_str(pretty).unwrap();
        assert_eq!(compact(raw), "{\"a b\":[1.0,\" \\\" \\\\\",\"\\\\\"],\"c\":null}");
    }
}
