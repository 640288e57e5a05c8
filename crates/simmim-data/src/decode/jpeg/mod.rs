//! Decodes the part of a baseline JPEG file that a crop needs, at full size, a half, a quarter or an eighth.
//!
//! `zune-jpeg`, which the `image` crate uses, decodes whole files at full size only. For a crop of a large photo most of that
//! is thrown away: here the units outside the crop are passed over without inverse DCT, several codes at a time, decoding
//! ends with the last row needed, and where the crop is much larger than its target only the low frequencies become pixels.
//! At full size the pixels equal libjpeg's, and so PIL's. Everything out of the ordinary (progressive, CMYK, 12 bits, damage)
//! is [`Unusual`] and left to the general decoder.

mod color;
mod header;
mod huffman;
mod idct;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use header::Header;

use crate::region::Region;
use crate::simd::Isa;
use scan::{Plane, Units};

/// Why a file is left to the general decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unusual(pub(crate) &'static str);

fn unusual<T>(reason: &'static str) -> Result<T, Unusual> {
    Err(Unusual(reason))
}

/// Scratch memory, reused from image to image.
#[derive(Default)]
pub(crate) struct Workspace {
    isa: Isa,
    tables: huffman::Tables,
    planes: [Plane; 3],
    sums: Vec<u16>,
    chroma: [Vec<u8>; 2],
}

impl Header {
    /// Samples of each decoded pixel: 1 for gray, 3 for colour.
    pub(crate) fn channels(&self) -> usize {
        self.count
    }

    /// Logarithm of the ratio of luma to chroma resolution, across and down.
    fn subsampling(&self) -> (u32, u32) {
        let luma = self.components[0];
        ((luma.h / 2) as u32, (luma.v / 2) as u32)
    }
}

impl Workspace {
    /// Decodes the pixels of `part` (in pixels of the whole file) at `1 / 2^shift` of the size, into `out`: interleaved rows
    /// of gray or RGB. Returns which pixels of the smaller image these are: all that `part` touches.
    ///
    /// # Errors
    /// [`Unusual`] for files that the general decoder should read.
    pub(crate) fn decode(
        &mut self,
        bytes: &[u8],
        header: &Header,
        part: Region,
        shift: u32,
        out: &mut Vec<u8>,
    ) -> Result<Region, Unusual> {
        let data = bytes.get(header.scan..).unwrap_or_default();
        let window = part.reduced(shift);
        let (h, v) = header.subsampling();
        // Where chroma has half the resolution in both directions, a smaller size takes it one step less small, and there
        // is nothing to upsample.
        let halved = (h, v) == (1, 1);
        let chroma_shift = if halved { shift.saturating_sub(1) } else { shift };
        let (upsample_h, upsample_v) = if halved && shift > 0 { (false, false) } else { (h == 1, v == 1) };
        // Upsampling looks at the next sample on each side.
        let units = Units::new(header, window.grown(2), shift);
        self.planes[0].size = 3 - shift;
        self.planes[1].size = 3 - chroma_shift;
        self.planes[2].size = 3 - chroma_shift;
        self.tables.prepare(&header.dc, &header.ac)?;
        scan::decode(self.isa, data, header, &units, &self.tables, &mut self.planes)?;

        let (unit_width, unit_height) = (8 << h >> shift, 8 << v >> shift);
        let left = window.left - units.columns.start * unit_width;
        let top = window.top - units.rows.start * unit_height;
        out.resize(window.width * window.height * header.count, 0);
        let stride = self.planes[0].stride;
        if header.count == 1 {
            for (line, row) in
                out.chunks_exact_mut(window.width).zip(self.planes[0].pixels.chunks_exact(stride).skip(top))
            {
                line.copy_from_slice(&row[left..left + window.width]);
            }
            return Ok(window);
        }
        // Samples of chroma that lie inside the image; beyond them the last one counts.
        let inside = |size: usize, up: bool, start: usize| {
            let scaled = size.div_ceil(1 << shift);
            (if up { scaled.div_ceil(2) } else { scaled }).saturating_sub(start)
        };
        let chroma_width = unit_width >> u32::from(upsample_h);
        let chroma_height = unit_height >> u32::from(upsample_v);
        let columns = inside(header.width, upsample_h, units.columns.start * chroma_width).min(self.planes[1].stride);
        let rows = inside(header.height, upsample_v, units.rows.start * chroma_height)
            .min(self.planes[1].pixels.len() / self.planes[1].stride);
        self.sums.resize(columns + 2, 0);
        for chroma in &mut self.chroma {
            chroma.resize(columns * 2, 0);
        }
        for (y, line) in (top..).zip(out.chunks_exact_mut(window.width * 3)) {
            let luma = &self.planes[0].pixels[y * stride..][left..left + window.width];
            let [_, cb, cr] = &self.planes;
            let mut ready = [&[][..]; 2];
            for ((plane, chroma), ready) in [cb, cr].into_iter().zip(&mut self.chroma).zip(&mut ready) {
                let row = |y: usize| &plane.pixels[y * plane.stride..][..columns];
                *ready = if upsample_v {
                    let near = y / 2;
                    let far = if y % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(rows - 1) };
                    color::upsample_both(self.isa, row(near), row(far), &mut self.sums, chroma);
                    &chroma[left..left + window.width]
                } else if upsample_h {
                    color::upsample_width(self.isa, row(y), &mut self.sums, chroma);
                    &chroma[left..left + window.width]
                } else {
                    &row(y)[left..left + window.width]
                };
            }
            color::convert(self.isa, luma, ready[0], ready[1], line);
        }
        Ok(window)
    }
}

impl Units {
    /// The units that hold `window`, a part of the image at `1 / 2^shift` of its size that may reach beyond it.
    fn new(header: &Header, window: Region, shift: u32) -> Self {
        let (h, v) = header.subsampling();
        let (width, height) = (8usize << h, 8usize << v);
        let (across, down) = (header.width.div_ceil(width), header.height.div_ceil(height));
        let range = |start: usize, length: usize, unit: usize, count: usize| {
            let unit = unit >> shift;
            (start / unit).min(count - 1)..(start + length).div_ceil(unit).clamp(1, count)
        };
        Self {
            across,
            columns: range(window.left, window.width, width, across),
            rows: range(window.top, window.height, height, down),
        }
    }
}
