//! PyTorch checkpoints since 1.6: a zip archive with `data.pkl` and a stored entry for each storage.

use super::torch::{self, Storage};
use super::{Opened, Source, pickle};
use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// More entries than tensors of any model.
const MOST_ENTRIES: usize = 1 << 20;

/// An entry that lies in the archive as it is.
type Entries = HashMap<String, Storage>;

pub(super) fn open(source: &Source<'_>) -> Result<Opened, String> {
    let (root, entries) = entries(source)?;
    let find = |name: &str| entries.get(&format!("{root}{name}")).copied();
    if let Some(order) = find("byteorder")
        && text(source, order)?.trim() == "big"
    {
        return Err("its numbers are big-endian".into());
    }
    let pickled = find("data.pkl").ok_or("it is a zip archive without data.pkl, so no PyTorch checkpoint")?;
    if find("constants.pkl").is_some() {
        return Err("it is a TorchScript program; save the state dict of the module instead".into());
    }
    let mut file = source.file()?;
    file.seek(SeekFrom::Start(pickled.start)).map_err(|e| e.to_string())?;
    let pickle = pickle::read(&mut BufReader::new(file.take(pickled.bytes)))?;
    let found = torch::contents(&pickle, &|key| find(&format!("data/{key}")))?;
    Ok(found.into())
}

/// The folder inside the archive, and its entries.
fn entries(source: &Source<'_>) -> Result<(String, Entries), String> {
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let damaged = |e: rawzip::Error| format!("its zip directory is damaged: {e}");
    let archive = ZipArchive::from_file(source.file()?, &mut buffer).map_err(damaged)?;
    let mut list = Vec::new();
    let mut headers = archive.entries(&mut buffer);
    while let Some(header) = headers.next_entry().map_err(damaged)? {
        let name = String::from_utf8_lossy(header.file_path().as_ref()).into_owned();
        let stored = header.compression_method() == CompressionMethod::STORE
            && header.compressed_size_hint() == header.uncompressed_size_hint();
        list.push((name, stored, header.wayfinder()));
        if list.len() > MOST_ENTRIES {
            return Err(format!("it has more than {MOST_ENTRIES} entries"));
        }
    }
    let root = list.iter().find_map(|(name, ..)| name.strip_suffix("data.pkl")).unwrap_or_default().to_owned();
    let (mut entries, mut total) = (Entries::new(), 0u64);
    for (name, stored, place) in list {
        if !stored {
            return Err(format!("its entry `{name}` is compressed, which torch.save never does"));
        }
        let (start, end) = archive.get_entry(place).map_err(damaged)?.compressed_data_range();
        if end < start || end > source.size {
            return Err(format!("its entry `{name}` reaches beyond the file"));
        }
        // Entries that share their bytes would add up to more than the file.
        total = total.saturating_add(end - start);
        entries.insert(name, Storage { start, bytes: end - start });
    }
    if total > source.size {
        return Err("its entries overlap".into());
    }
    Ok((root, entries))
}

fn text(source: &Source<'_>, entry: Storage) -> Result<String, String> {
    let mut file = source.file()?;
    file.seek(SeekFrom::Start(entry.start)).map_err(|e| e.to_string())?;
    let mut text = Vec::new();
    File::take(file, entry.bytes.min(64)).read_to_end(&mut text).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
