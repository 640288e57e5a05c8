//! Safetensors: a JSON header with the place of every tensor, then their bytes.

use super::{Element, Entry, Opened, Source};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::io::Read;

/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::BF16,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        Dtype::I16 => Element::I16,
        Dtype::I8 => Element::I8,
        Dtype::U8 => Element::U8,
        Dtype::BOOL => Element::Bool,
        other => Element::Other { bytes: other.bitsize().div_ceil(8) },
    }
}

pub(super) fn open(source: &Source<'_>) -> Result<Opened, String> {
    let mut file = source.file()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "it is too short for a header")?;
    let length = u64::from_le_bytes(length);
    let start = length.checked_add(8).filter(|&start| length <= LONGEST_HEADER && start <= source.size);
    let start = start.ok_or_else(|| format!("its header claims {length} bytes"))?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|e| e.to_string())?;
    // The library checks that tensors follow each other without gap or overlap and have the bytes of their shapes.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| format!("its header is damaged: {e}"))?;
    if start.checked_add(metadata.data_len() as u64) != Some(source.size) {
        let (claimed, there) = (metadata.data_len(), source.size - start);
        return Err(format!("its header speaks of {claimed} bytes, but {there} follow"));
    }
    let mut opened = Opened::default();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let entry = Entry {
            file: 0,
            start: start + info.data_offsets.0 as u64,
            element: element(info.dtype),
            shape: info.shape.clone(),
            strides: None,
        };
        opened.tensors.insert(name, entry);
    }
    opened.metadata = metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(opened)
}
