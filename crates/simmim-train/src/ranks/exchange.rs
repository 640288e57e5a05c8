//! States that ranks add up or put together, in pieces, while the program that computes them still runs.
//!
//! Every state is cut into as many slices as there are ranks. The slices of a rank, one after another, are its stream. A piece takes as many
//! floats of each stream; it leaves as soon as all of them are there, and what comes back is written over what was sent.

use super::link::{Done, Job, Link};
use super::piece::Piece;
use crate::error::TrainError;
use simmim_engine::EngineError;
use simmim_engine::executor::States;
use simmim_models::Precision;
use simmim_models::optimizer::Share;
use std::collections::VecDeque;

/// Pieces that are gathered at a time.
const UNDER_WAY: usize = 3;

/// What becomes of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// Every rank gets the sums of all.
    Sum,
    /// Every rank gets the sums of its slices, and zeros for the rest.
    SumOwn,
    /// Every rank gets each slice from the rank it belongs to.
    Gather,
}

/// One exchange, of one rank.
pub(super) struct Exchange<'a> {
    link: &'a Link,
    aim: Aim,
    precision: Precision,
    /// Floats of a piece for each rank.
    block: usize,
    /// The states in the order in which they came, and their lengths.
    states: Vec<(String, usize)>,
    /// Floats of each stream so far.
    filled: Vec<usize>,
    /// Pieces that are not full yet, beginning with number `sent`.
    open: VecDeque<Piece>,
    sent: usize,
    taken: usize,
    /// State of each stream to which the next float that comes back belongs, and its place in the slice.
    cursors: Vec<(usize, usize)>,
    squares: f64,
    failed: Option<TrainError>,
}

impl<'a> Exchange<'a> {
    /// One in pieces of about so many bytes.
    pub(super) fn new(link: &'a Link, aim: Aim, precision: Precision, bytes: usize) -> Self {
        let width = match precision {
            Precision::Float32 => 4,
            Precision::Bfloat16 => 2,
        };
        Self {
            link,
            aim,
            precision,
            block: (bytes / width / link.world).max(1),
            states: Vec::new(),
            filled: vec![0; link.world],
            open: VecDeque::new(),
            sent: 0,
            taken: 0,
            cursors: vec![(0, 0); link.world],
            squares: 0.0,
            failed: None,
        }
    }

    /// Sends a state that is complete here; writes what has come back meanwhile. A failure is told at the end.
    pub(super) fn add(&mut self, name: &str, states: &mut dyn States) -> Result<(), EngineError> {
        let floats = states.state(name)?;
        for rank in 0..self.link.world {
            let slice = Share { rank, world: self.link.world }.of(floats.len());
            if self.aim != Aim::Gather || rank == self.link.rank {
                self.write(rank, &floats[slice.clone()]);
            }
            if self.aim == Aim::SumOwn {
                // What other ranks sum begins anew here; what this one sums is written over.
                floats[slice.clone()].fill(0.0);
            }
            self.filled[rank] += slice.len();
        }
        self.states.push((name.to_owned(), floats.len()));
        if self.failed.is_none() {
            self.failed = self.send(false).and_then(|()| self.take_done(states)).err();
        }
        Ok(())
    }

    /// Waits for all sums. Gives the sum of the squares of what this rank has summed for itself alone.
    pub(super) fn finish(mut self, states: &mut dyn States) -> Result<f64, TrainError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        self.send(true)?;
        while self.taken < self.sent {
            let done = self.link.take()?;
            self.take_back(done, states)?;
        }
        Ok(self.squares)
    }

    /// A piece to be filled.
    fn empty(&self) -> Piece {
        Piece::reuse(&mut self.link.pieces.borrow_mut(), self.precision, self.block * self.link.world)
    }

    /// Adds floats to the stream of a rank.
    fn write(&mut self, rank: usize, mut floats: &[f32]) {
        let mut at = self.filled[rank];
        while !floats.is_empty() {
            let (piece, place) = (at / self.block - self.sent, at % self.block);
            while self.open.len() <= piece {
                let empty = self.empty();
                self.open.push_back(empty);
            }
            let (now, rest) = floats.split_at(floats.len().min(self.block - place));
            self.open[piece].write(rank * self.block + place, now);
            (floats, at) = (rest, at + now.len());
        }
    }

    /// Sends the pieces that are full; at the end, all.
    fn send(&mut self, all: bool) -> Result<(), TrainError> {
        let filled = if all { self.filled.iter().max() } else { self.filled.iter().min() }.copied().unwrap_or(0);
        let ready = if all { filled.div_ceil(self.block) } else { filled / self.block };
        while self.sent < ready {
            // A stream that is shorter than others ends in a piece that this rank has nothing for.
            let mut piece = self.open.pop_front().unwrap_or_else(|| self.empty());
            for (rank, &filled) in self.filled.iter().enumerate() {
                let there = filled.saturating_sub(self.sent * self.block).min(self.block);
                piece.clear(rank * self.block + there..(rank + 1) * self.block);
            }
            self.link.give(match self.aim {
                Aim::Sum => Job::Sum { piece, hand_out: true },
                Aim::SumOwn => Job::Sum { piece, hand_out: false },
                Aim::Gather => Job::Gather(piece),
            })?;
            self.sent += 1;
        }
        Ok(())
    }

    /// Writes what has come back. What is not computed meanwhile waits for it, so that the memory of few pieces is used again and again.
    fn take_done(&mut self, states: &mut dyn States) -> Result<(), TrainError> {
        while self.aim == Aim::Gather && self.sent - self.taken > UNDER_WAY {
            let done = self.link.take()?;
            self.take_back(done, states)?;
        }
        while let Some(done) = self.link.take_done()? {
            self.take_back(done, states)?;
        }
        Ok(())
    }

    fn take_back(&mut self, done: Done, states: &mut dyn States) -> Result<(), TrainError> {
        match done {
            Done::Piece(piece) => self.write_back(piece, states),
            Done::Bytes(_) | Done::Failed(_) => {
                Err(TrainError::Internal { what: "a sum between ranks was lost".into() })
            }
        }
    }

    /// Writes a piece that has come back over what was sent.
    fn write_back(&mut self, piece: Piece, states: &mut dyn States) -> Result<(), TrainError> {
        let (world, here) = (self.link.world, self.link.rank);
        self.squares += piece.squares();
        for rank in 0..world {
            let start = match self.aim {
                Aim::Sum => rank * self.block,
                Aim::SumOwn if rank == here => 0,
                Aim::Gather if rank != here => rank * self.block,
                Aim::SumOwn | Aim::Gather => continue,
            };
            let mut left = self.block.min(self.filled[rank] - (self.taken * self.block).min(self.filled[rank]));
            let mut at = start;
            while left > 0 {
                let (number, place) = self.cursors[rank];
                let (name, len) = &self.states[number];
                let slice = Share { rank, world }.of(*len);
                let now = left.min(slice.len() - place);
                if now > 0 {
                    let from = slice.start + place;
                    piece.read(at, &mut states.state(name)?[from..from + now]);
                }
                self.cursors[rank] = if place + now == slice.len() { (number + 1, 0) } else { (number, place + now) };
                (at, left) = (at + now, left - now);
            }
        }
        self.taken += 1;
        self.link.pieces.borrow_mut().push(piece);
        Ok(())
    }
}
