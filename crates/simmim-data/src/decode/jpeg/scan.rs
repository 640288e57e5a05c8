//! The walk over the minimum coded units of a scan: those that a crop needs become pixels, the others are passed over.

use std::ops::Range;

use super::header::{Component, Header, ZIGZAG};
use super::huffman::{AcTable, Bits, DcTable, Tables};
use super::idct::{LAST, inverse};
use super::{Unusual, unusual};
use crate::simd::vectorised;

/// The decoded samples of one component.
#[derive(Default)]
pub(super) struct Plane {
    pub(super) pixels: Vec<u8>,
    /// Samples from row to row.
    pub(super) stride: usize,
    /// Logarithm of the width and height of a block in samples.
    pub(super) size: u32,
}

/// What to decode: ranges of minimum coded units.
pub(super) struct Units {
    pub(super) across: usize,
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// A component with its tables.
struct Part<'a> {
    component: Component,
    dc: &'a DcTable,
    ac: &'a AcTable,
    /// In the order of the file.
    quantiser: [i32; 64],
}

/// Decodes units into planes, whose strides and sizes are set; their pixels are laid out here.
pub(super) fn decode(
    isa: crate::simd::Isa,
    data: &[u8],
    header: &Header,
    units: &Units,
    tables: &Tables,
    planes: &mut [Plane; 3],
) -> Result<(), Unusual> {
    let parts: [Option<Part<'_>>; 3] = {
        let part = |i: usize| -> Result<Option<Part<'_>>, Unusual> {
            if i >= header.count {
                return Ok(None);
            }
            let component = header.components[i];
            let (dc, ac) = tables.get(component.dc, component.ac)?;
            let Some(Some(quantiser)) = header.quantisers.get(component.quantiser) else {
                return unusual("a quantiser that the file does not hold");
            };
            Ok(Some(Part { component, dc, ac, quantiser: quantiser.map(i32::from) }))
        };
        [part(0)?, part(1)?, part(2)?]
    };
    for (plane, part) in planes.iter_mut().zip(&parts) {
        let Some(part) = part else { continue };
        plane.stride = (units.columns.len() * part.component.h) << plane.size;
        let rows = (units.rows.len() * part.component.v) << plane.size;
        // What an earlier image left is overwritten: every unit in the ranges is decoded.
        plane.pixels.resize(plane.stride * rows, 0);
    }
    walk(isa, data, header.restart_interval, units, &parts, planes)
}

vectorised! {
    fn walk<AVX2>(
        data: &[u8],
        interval: usize,
        units: &Units,
        parts: &[Option<Part<'_>>; 3],
        planes: &mut [Plane; 3],
    ) -> Result<(), Unusual> {
        let mut bits = Bits::new(data);
        let mut predictions = [0i32; 3];
        let first = units.rows.start * units.across;
        let mut unit = 0;
        for row in 0..units.rows.end {
            let needed_row = units.rows.contains(&row);
            for column in 0..units.across {
                // An interval that ends before the first unit needed is not even decoded.
                let skipped = interval != 0 && unit / interval < first / interval;
                if interval != 0 && unit != 0 && unit % interval == 0 {
                    bits.restart(unit / interval - 1, (unit - 1) / interval < first / interval)?;
                    predictions = [0; 3];
                }
                unit += 1;
                if skipped {
                    continue;
                }
                let needed = needed_row && units.columns.contains(&column);
                for ((part, plane), prediction) in parts.iter().zip(planes.iter_mut()).zip(&mut predictions) {
                    let Some(part) = part else { break };
                    if !needed {
                        for _ in 0..part.component.h * part.component.v {
                            *prediction = prediction.wrapping_add(part.dc.difference(&mut bits)?);
                            part.ac.pass(&mut bits, 1)?;
                        }
                        continue;
                    }
                    let place = (row - units.rows.start, column - units.columns.start);
                    part.unit::<AVX2>(&mut bits, prediction, plane, place)?;
                }
            }
            if bits.overrun() {
                return unusual("the data ends early");
            }
        }
        Ok(())
    }
}

impl Part<'_> {
    /// Decodes this component's blocks of the unit at `place` (row and column among those decoded).
    #[inline(always)]
    fn unit<const AVX2: bool>(
        &self,
        bits: &mut Bits<'_>,
        prediction: &mut i32,
        plane: &mut Plane,
        (row, column): (usize, usize),
    ) -> Result<(), Unusual> {
        let Component { h, v, .. } = self.component;
        let last = LAST[plane.size as usize];
        for y in 0..v {
            for x in 0..h {
                *prediction = prediction.wrapping_add(self.dc.difference(bits)?);
                let mut block = [0i16; 64];
                block[0] = prediction.wrapping_mul(self.quantiser[0]) as i16;
                let largest = self.ac.block(bits, last, |k, value| {
                    block[usize::from(ZIGZAG[k & 63])] = (value * self.quantiser[k & 63]) as i16;
                })?;
                let start = (((row * v + y) * plane.stride) << plane.size) + ((column * h + x) << plane.size);
                inverse::<AVX2>(&block, largest, plane.size, &mut plane.pixels[start..], plane.stride);
            }
        }
        Ok(())
    }
}
