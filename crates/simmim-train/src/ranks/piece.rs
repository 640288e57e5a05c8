//! Floats on their way between ranks.

use super::collectives::Collectives;
use crate::error::TrainError;
use simmim_engine::graph::Bf16;
use simmim_models::Precision;
use std::ops::Range;

/// Numbers as they travel.
#[derive(Debug)]
enum Values {
    Float(Vec<f32>),
    Bfloat16(Vec<Bf16>),
}

impl Values {
    fn zeros(precision: Precision, len: usize) -> Self {
        match precision {
            Precision::Float32 => Self::Float(vec![0.0; len]),
            Precision::Bfloat16 => Self::Bfloat16(vec![Bf16::default(); len]),
        }
    }

    fn precision(&self) -> Precision {
        match self {
            Self::Float(_) => Precision::Float32,
            Self::Bfloat16(_) => Precision::Bfloat16,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Bfloat16(values) => values.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Float(values) => bytemuck::cast_slice(values),
            Self::Bfloat16(values) => bytemuck::cast_slice(values),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Float(values) => bytemuck::cast_slice_mut(values),
            Self::Bfloat16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    fn write(&mut self, at: usize, floats: &[f32]) {
        match self {
            Self::Float(values) => values[at..at + floats.len()].copy_from_slice(floats),
            Self::Bfloat16(values) => {
                values[at..].iter_mut().zip(floats).for_each(|(to, from)| *to = Bf16::nearest(*from));
            }
        }
    }

    fn read(&self, at: usize, into: &mut [f32]) {
        match self {
            Self::Float(values) => into.copy_from_slice(&values[at..at + into.len()]),
            Self::Bfloat16(values) => into.iter_mut().zip(&values[at..]).for_each(|(to, from)| *to = from.value()),
        }
    }
}

/// A block of floats for each rank, or the one of this rank.
#[derive(Debug)]
pub(super) struct Piece {
    values: Values,
    /// Sum of the squares of what it holds, where it holds sums for this rank alone.
    squares: f64,
}

impl Piece {
    fn zeros(precision: Precision, len: usize) -> Self {
        Self { values: Values::zeros(precision, len), squares: 0.0 }
    }

    fn fits(&self, precision: Precision, len: usize) -> bool {
        self.values.precision() == precision && self.values.len() == len
    }

    /// One of the pieces that are kept for this, or a new one. It may hold anything.
    pub(super) fn reuse(kept: &mut Vec<Self>, precision: Precision, len: usize) -> Self {
        let known = kept.iter().position(|piece| piece.fits(precision, len));
        known.map_or_else(|| Self::zeros(precision, len), |at| kept.swap_remove(at))
    }

    /// Overwrites these places with zeros.
    pub(super) fn clear(&mut self, range: Range<usize>) {
        match &mut self.values {
            Values::Float(values) => values[range].fill(0.0),
            Values::Bfloat16(values) => values[range].fill(Bf16::default()),
        }
    }

    /// Writes floats from place `at` on, rounded to what travels.
    pub(super) fn write(&mut self, at: usize, floats: &[f32]) {
        self.values.write(at, floats);
    }

    pub(super) fn read(&self, at: usize, into: &mut [f32]) {
        self.values.read(at, into);
    }

    pub(super) fn squares(&self) -> f64 {
        self.squares
    }

    /// Sums the addends of all ranks in their order, in floats, each block on the rank that it belongs to. With `hand_out` every rank gets all
    /// sums, rounded to what travels; otherwise its own, as floats, at the beginning.
    pub(super) fn sum(
        mut self,
        collectives: &impl Collectives,
        hand_out: bool,
        work: &mut Vec<Piece>,
    ) -> Result<Self, TrainError> {
        let (precision, len) = (self.values.precision(), self.values.len());
        let block = len / collectives.world();
        let mut received = Self::reuse(work, precision, len);
        collectives.all_to_all(self.values.bytes(), received.values.bytes_mut())?;
        let mut sums = received.into_sums(block, work);
        if hand_out {
            if precision == Precision::Bfloat16 {
                let mut rounded = Self::reuse(work, precision, block);
                rounded.values.write(0, sums.floats(block));
                work.push(std::mem::replace(&mut sums, rounded));
            }
            let bytes = self.values.bytes().len() / collectives.world();
            collectives.all_gather(&sums.values.bytes()[..bytes], self.values.bytes_mut())?;
            work.push(sums);
            return Ok(self);
        }
        sums.squares = sum_of_squares(sums.floats(block));
        work.push(self);
        Ok(sums)
    }

    /// The sums of what came from each rank, in floats, at the beginning.
    fn into_sums(mut self, block: usize, work: &mut Vec<Piece>) -> Self {
        match &mut self.values {
            Values::Float(values) => {
                let (sums, others) = values.split_at_mut(block);
                for addends in others.chunks_exact(block) {
                    sums.iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend);
                }
                self
            }
            Values::Bfloat16(values) => {
                let mut piece = Self::reuse(work, Precision::Float32, values.len());
                if let Values::Float(sums) = &mut piece.values {
                    sums[..block].iter_mut().zip(&values[..block]).for_each(|(to, from)| *to = from.value());
                    for addends in values[block..].chunks_exact(block) {
                        sums[..block].iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend.value());
                    }
                }
                work.push(self);
                piece
            }
        }
    }

    /// The first of its numbers, which are floats.
    fn floats(&self, len: usize) -> &[f32] {
        match &self.values {
            Values::Float(values) => &values[..len],
            Values::Bfloat16(_) => &[],
        }
    }

    /// Gathers the block of every rank; this holds that of this rank in its place.
    pub(super) fn gather(mut self, collectives: &impl Collectives, work: &mut Vec<Piece>) -> Result<Self, TrainError> {
        let block = self.values.len() / collectives.world();
        let mut own = Self::reuse(work, self.values.precision(), block);
        let bytes = own.values.bytes().len();
        let start = collectives.rank() * bytes;
        own.values.bytes_mut().copy_from_slice(&self.values.bytes()[start..start + bytes]);
        collectives.all_gather(own.values.bytes(), self.values.bytes_mut())?;
        work.push(own);
        Ok(self)
    }
}

/// In f64, several sums at a time.
fn sum_of_squares(floats: &[f32]) -> f64 {
    let mut sums = [0.0; 16];
    let (head, tail) = floats.as_chunks::<16>();
    for chunk in head {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    sums.iter().chain(&tail.iter().map(|&v| f64::from(v) * f64::from(v)).collect::<Vec<_>>()).sum()
}
