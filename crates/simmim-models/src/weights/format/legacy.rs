//! PyTorch checkpoints before 1.6: four pickles (a magic number, a version, the machine, the object), the keys of the storages,
//! then each storage behind its length.

use super::pickle::{self, Id, Node, Pickle};
use super::torch::{self, Checkpoint, Storage};
use super::{Opened, Source};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};

/// The magic number, little-endian.
pub(super) const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub(super) fn open(source: &Source<'_>) -> Result<Opened, String> {
    let mut input = BufReader::new(source.file()?);
    let magic = pickle::read(&mut input)?;
    if !matches!(magic.node(magic.root()), Node::Long(bytes) if bytes[..] == MAGIC) {
        return Err("its magic number is another".into());
    }
    let version = pickle::read(&mut input)?;
    if version.int(version.root()) != Some(VERSION) {
        return Err("its format is of another version".into());
    }
    let machine = pickle::read(&mut input)?;
    if let Some(little) = machine.get(machine.root(), "little_endian")
        && machine.int(little) == Some(0)
    {
        return Err("its numbers are big-endian".into());
    }
    let object = pickle::read(&mut input)?;
    let keys = pickle::read(&mut input)?;
    let storages = storages(&mut input, &object, &keys, source.size)?;
    let found = torch::contents(&object, &|key| storages.get(key).copied())?;
    Ok(found.into())
}

/// Where each storage lies.
fn storages(
    input: &mut (impl BufRead + Seek),
    object: &Pickle,
    keys: &Pickle,
    size: u64,
) -> Result<HashMap<String, Storage>, String> {
    let kinds = elements(object);
    let mut found = HashMap::new();
    for key in keys.sequence(keys.root()).ok_or("its list of storages is missing")? {
        let key = keys.text(*key).ok_or("the key of a storage is no text")?;
        let mut length = [0; 8];
        input.read_exact(&mut length).map_err(|_| "it ends before its storages")?;
        let start = input.stream_position().map_err(|e| e.to_string())?;
        let width = *kinds.get(key).ok_or_else(|| format!("no tensor uses its storage `{key}`"))?;
        let bytes = u64::from_le_bytes(length).checked_mul(width);
        let end = bytes.and_then(|bytes| start.checked_add(bytes)).filter(|&end| end <= size);
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(format!("its storage `{key}` reaches beyond the file"));
        };
        found.insert(key.to_owned(), Storage { start, bytes });
        input.seek(SeekFrom::Start(end)).map_err(|e| e.to_string())?;
    }
    Ok(found)
}

/// Bytes of an element of each storage that the object names.
fn elements(object: &Pickle) -> HashMap<String, u64> {
    let checkpoint = Checkpoint(object);
    let all = 0..object.len() as Id;
    all.filter_map(|id| checkpoint.storage(id)).map(|s| (s.key, s.element.bytes() as u64)).collect()
}
