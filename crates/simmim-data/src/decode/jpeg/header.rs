//! The segments of a JPEG file up to its first scan (ITU-T T.81, annex B).

use super::{Unusual, unusual};

/// Positions of coefficients in the order of the file: `ZIGZAG[k]` is `row * 8 + column`. Sixteen more places, which a
/// damaged file could reach, lead to the last coefficient.
pub(super) const ZIGZAG: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// How a component is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Component {
    /// Blocks of this component in a minimum coded unit, across and down.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Which tables it uses.
    pub(super) quantiser: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
    id: u8,
}

/// Code lengths and symbols of a Huffman table as the file gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HuffmanSpec {
    /// Number of codes of 1 to 16 bits.
    pub(super) counts: [u8; 16],
    /// Symbols, in the order of their codes.
    pub(super) symbols: [u8; 256],
}

/// What is known of a JPEG file before its first scan is decoded.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    /// Columns as stored, before any EXIF orientation.
    pub(crate) width: usize,
    /// Rows as stored.
    pub(crate) height: usize,
    /// The value of the EXIF orientation tag, 1 where there is none.
    pub(crate) orientation: u8,
    /// One component (gray) or three (luma and two chromas).
    pub(super) components: [Component; 3],
    pub(super) count: usize,
    /// Minimum coded units between restart markers, 0 for none.
    pub(super) restart_interval: usize,
    /// Quantisers in the order of the file.
    pub(super) quantisers: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<HuffmanSpec>; 4],
    pub(super) ac: [Option<HuffmanSpec>; 4],
    /// Where the entropy-coded data begins.
    pub(super) scan: usize,
}

impl Header {
    /// Reads everything up to the first scan.
    ///
    /// # Errors
    /// [`Unusual`] for files that are not baseline or extended sequential Huffman-coded with 8 bits, one interleaved scan,
    /// and gray or YCbCr with chroma at full resolution, half of the columns, or half of both.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Unusual> {
        let mut header = Self {
            width: 0,
            height: 0,
            orientation: 1,
            components: [Component::default(); 3],
            count: 0,
            restart_interval: 0,
            quantisers: [None; 4],
            dc: [None; 4],
            ac: [None; 4],
            scan: 0,
        };
        if bytes.get(..2) != Some(&[0xff, 0xd8]) {
            return unusual("no start marker");
        }
        let mut at = 2;
        loop {
            let Some(&[0xff, marker]) = bytes.get(at..at + 2) else { return unusual("no marker where one belongs") };
            at += 2;
            if marker == 0xff {
                at -= 1;
                continue;
            }
            let Some(&[high, low]) = bytes.get(at..at + 2) else { return unusual("the header ends early") };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let Some(body) = bytes.get(at + 2..at + length.max(2)) else { return unusual("a segment ends early") };
            at += length.max(2);
            match marker {
                0xc0 | 0xc1 => header.frame(body)?,
                0xc4 => header.huffman(body)?,
                0xdb => header.quantiser(body)?,
                0xdd => match *body {
                    [high, low] => header.restart_interval = usize::from(u16::from_be_bytes([high, low])),
                    _ => return unusual("a restart interval of another length"),
                },
                0xda => {
                    header.scan_header(body)?;
                    header.scan = at;
                    return Ok(header);
                }
                0xe1 => {
                    if let Some(exif) = body.strip_prefix(b"Exif\0\0") {
                        header.orientation =
                            image::metadata::Orientation::from_exif_chunk(exif).map_or(1, |o| o.to_exif());
                    }
                }
                // Adobe's marker names the colours: 1 is YCbCr.
                0xee => {
                    if body.starts_with(b"Adobe") && body.get(11) != Some(&1) {
                        return unusual("colours other than YCbCr");
                    }
                }
                0xe0..=0xef | 0xfe => {}
                _ => return unusual("another coding process"),
            }
        }
    }

    fn frame(&mut self, body: &[u8]) -> Result<(), Unusual> {
        if self.count != 0 {
            return unusual("two frames");
        }
        let &[8, h1, h0, w1, w0, count, ref rest @ ..] = body else { return unusual("not 8 bits") };
        let count = usize::from(count);
        if !matches!(count, 1 | 3) || rest.len() != count * 3 {
            return unusual("neither one nor three components");
        }
        (self.height, self.width) =
            (usize::from(u16::from_be_bytes([h1, h0])), usize::from(u16::from_be_bytes([w1, w0])));
        if self.width == 0 || self.height == 0 {
            return unusual("no size");
        }
        for (component, part) in self.components.iter_mut().zip(rest.chunks_exact(3)) {
            *component = Component {
                id: part[0],
                h: usize::from(part[1] >> 4),
                v: usize::from(part[1] & 15),
                quantiser: usize::from(part[2]),
                ..Component::default()
            };
        }
        self.count = count;
        let [y, cb, cr] = self.components;
        if count == 1 {
            // The factors of a single component mean nothing: its blocks follow each other.
            (self.components[0].h, self.components[0].v) = (1, 1);
        } else if [y.id, cb.id, cr.id] == *b"RGB"
            || [cb.h, cb.v, cr.h, cr.v] != [1; 4]
            || !matches!((y.h, y.v), (1, 1) | (2, 1) | (2, 2))
        {
            return unusual("another sampling or colours other than YCbCr");
        }
        Ok(())
    }

    fn quantiser(&mut self, mut body: &[u8]) -> Result<(), Unusual> {
        while let [kind, rest @ ..] = body {
            let (wide, slot) = (kind >> 4 != 0, usize::from(kind & 15));
            let size = if wide { 128 } else { 64 };
            let (Some(values), Some(place)) = (rest.get(..size), self.quantisers.get_mut(slot)) else {
                return unusual("a damaged quantisation table");
            };
            let mut table = [0u16; 64];
            for (k, value) in table.iter_mut().enumerate() {
                *value =
                    if wide { u16::from_be_bytes([values[2 * k], values[2 * k + 1]]) } else { u16::from(values[k]) };
            }
            *place = Some(table);
            body = &rest[size..];
        }
        Ok(())
    }

    fn huffman(&mut self, mut body: &[u8]) -> Result<(), Unusual> {
        while let [kind, rest @ ..] = body {
            let Some((counts, rest)) = rest.split_first_chunk::<16>() else {
                return unusual("a damaged Huffman table");
            };
            let total: usize = counts.iter().map(|&c| usize::from(c)).sum();
            let places = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let (Some(values), Some(place), true) =
                (rest.get(..total), places.get_mut(usize::from(kind & 15)), total <= 256 && kind >> 4 <= 1)
            else {
                return unusual("a damaged Huffman table");
            };
            let mut symbols = [0; 256];
            symbols[..total].copy_from_slice(values);
            *place = Some(HuffmanSpec { counts: *counts, symbols });
            body = &rest[total..];
        }
        Ok(())
    }

    fn scan_header(&mut self, body: &[u8]) -> Result<(), Unusual> {
        let count = self.count;
        if count == 0 || body.len() != 4 + 2 * count || usize::from(body[0]) != count {
            return unusual("several scans");
        }
        for (component, part) in self.components.iter_mut().zip(body[1..].chunks_exact(2)).take(count) {
            if component.id != part[0] {
                return unusual("components in another order");
            }
            (component.dc, component.ac) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            if component.dc > 3 || component.ac > 3 {
                return unusual("tables that do not exist");
            }
        }
        if body[body.len() - 3..] != [0, 63, 0] {
            return unusual("a progressive scan");
        }
        Ok(())
    }
}
