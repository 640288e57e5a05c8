//! What executors rely on, checked on the finished program, whoever made it.
//!
//! The places of the arena are followed through the program: a region becomes live where an input or a result is written to it,
//! and dies where anything else is written over a part of it. Every operand must be a live region of its own type. So nothing is
//! read that was not written in this run, and indices that were in bounds when the caller wrote them still are when they are
//! used: nothing but the caller writes to them.

use super::{ALIGNMENT, Buffer, Instruction, Location, Program};
use crate::error::EngineError;
use crate::graph::{DType, check_indices};
use crate::ops::Operation;
use std::collections::HashSet;
use std::ops::Range;

/// What is known of the arena while the instructions are followed.
struct Arena<'a> {
    /// Regions that hold a value, each with what it is.
    live: Vec<(Range<usize>, Live<'a>)>,
    bytes: usize,
}

/// What a region holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live<'a> {
    /// What the caller wrote: indices below a bound.
    Indices { name: &'a str, bound: usize },
    /// Floats.
    Floats,
}

fn invalid<T>(what: String) -> Result<T, EngineError> {
    Err(EngineError::Invalid(what))
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn unique<'n>(mut names: impl Iterator<Item = &'n String>) -> bool {
    let mut seen = HashSet::new();
    names.all(|name| seen.insert(name))
}

impl<'a> Arena<'a> {
    fn region(&self, buffer: &Buffer, offset: usize) -> Result<Range<usize>, EngineError> {
        let end = offset.checked_add(buffer.ty.bytes()).filter(|&end| end <= self.bytes);
        match end {
            Some(end) if buffer.ty.is_possible() && offset.is_multiple_of(ALIGNMENT) => Ok(offset..end),
            _ => invalid(format!("{} at byte {offset} does not lie in an arena of {} bytes", buffer.ty, self.bytes)),
        }
    }

    fn write(&mut self, region: Range<usize>, what: Live<'a>) {
        self.live.retain(|(known, _)| !overlap(known, &region));
        self.live.push((region, what));
    }

    fn read(&self, region: &Range<usize>) -> Result<Live<'a>, EngineError> {
        match self.live.iter().find(|(known, _)| known == region) {
            Some(&(_, what)) => Ok(what),
            None => invalid(format!("bytes {region:?} of the arena are read, but hold no value")),
        }
    }
}

impl Program {
    /// Checks that every value lies where it can be, aligned, in memory of its type; that operands were written and hold what
    /// their operation takes; that no result overlaps another value of its instruction except in place; and that no index can
    /// lead out of bounds.
    ///
    /// # Errors
    /// [`EngineError::Invalid`], or what the operation says, for the first fault.
    pub(super) fn verify(&self) -> Result<(), EngineError> {
        if isize::try_from(self.arena_bytes).is_err() {
            return Err(EngineError::OutOfMemory { what: "the arena", bytes: self.arena_bytes });
        }
        self.verify_names()?;
        let mut arena = Arena { live: Vec::new(), bytes: self.arena_bytes };
        self.verify_inputs(&mut arena)?;
        for (at, instruction) in self.instructions.iter().enumerate() {
            self.verify_instruction(instruction, &mut arena).map_err(|e| match e {
                EngineError::Invalid(what) => {
                    EngineError::Invalid(format!("instruction {at} ({}): {what}", instruction.op.name()))
                }
                other => other,
            })?;
        }
        for output in &self.outputs {
            if matches!(output.buffer.location, Location::Constant(_)) {
                return invalid(format!("output `{}` is a constant", output.name));
            }
            if output.buffer.ty.dtype != DType::F32 {
                return invalid(format!("output `{}` is {}", output.name, output.buffer.ty));
            }
            self.verify_float_value(&output.buffer, &arena, &output.name)?;
        }
        Ok(())
    }

    fn verify_names(&self) -> Result<(), EngineError> {
        let inputs = self.inputs.iter().map(|i| &i.name);
        let outputs = self.outputs.iter().map(|o| &o.name);
        if !unique(inputs) || !unique(outputs) || !unique(self.states.iter().map(|s| &s.name)) {
            return invalid("a name stands for two values".into());
        }
        match self.states.iter().find(|s| !s.ty.dtype.is_float() || !s.ty.is_possible()) {
            Some(state) => invalid(format!("state `{}` is {}", state.name, state.ty)),
            None => Ok(()),
        }
    }

    /// Inputs lie apart in the arena.
    fn verify_inputs<'a>(&'a self, arena: &mut Arena<'a>) -> Result<(), EngineError> {
        for input in &self.inputs {
            let name = &input.name;
            let Location::Arena(offset) = input.buffer.location else {
                return invalid(format!("input `{name}` is outside the arena"));
            };
            let region = arena.region(&input.buffer, offset)?;
            if arena.live.iter().any(|(other, _)| overlap(other, &region)) {
                return invalid(format!("input `{name}` overlaps another"));
            }
            let what = match (input.buffer.ty.dtype, input.bound) {
                (DType::F32, None) => Live::Floats,
                // What nobody reads needs no bound.
                (DType::I32, bound) => Live::Indices { name, bound: bound.unwrap_or(usize::MAX) },
                (DType::F32, Some(_)) => return invalid(format!("input `{name}` holds floats, yet bounded indices")),
                (DType::Bf16, _) => return invalid(format!("input `{name}` is {}", input.buffer.ty)),
            };
            arena.write(region, what);
        }
        Ok(())
    }

    fn verify_instruction<'a>(&'a self, i: &'a Instruction, arena: &mut Arena<'a>) -> Result<(), EngineError> {
        let types: Vec<_> = i.inputs.iter().map(|b| b.ty.clone()).collect();
        let results = i.op.infer(&types)?;
        let found: Vec<_> = i.outputs.iter().map(|b| b.ty.clone()).collect();
        if !i.op.defines(&types, &results, &found) {
            return invalid("its results are not those of the operation".into());
        }
        let bounds = i.op.index_bounds(&types);
        for (at, input) in i.inputs.iter().enumerate() {
            match bounds.iter().find(|(port, _)| *port == at) {
                Some(&(_, bound)) => self.verify_indices(input, bound, arena)?,
                None => self.verify_float_value(input, arena, "an operand")?,
            }
        }
        self.verify_places(i)?;
        for output in &i.outputs {
            match output.location {
                Location::Arena(offset) => {
                    let region = arena.region(output, offset)?;
                    arena.write(region, Live::Floats);
                }
                Location::State(_) => self.verify_float_value(output, arena, "a result")?,
                Location::Constant(_) => return invalid("a result over a constant".into()),
            }
        }
        Ok(())
    }

    /// A value of numbers: live in the arena, or a whole state or constant.
    fn verify_float_value(&self, buffer: &Buffer, arena: &Arena<'_>, what: &str) -> Result<(), EngineError> {
        if !buffer.ty.dtype.is_float() {
            return invalid(format!("{what}: {} instead of floats", buffer.ty));
        }
        match buffer.location {
            Location::Arena(offset) => match arena.read(&arena.region(buffer, offset)?)? {
                Live::Floats => Ok(()),
                Live::Indices { name, .. } => invalid(format!("{what}: the indices `{name}` read as floats")),
            },
            Location::State(n) => match self.states.get(n) {
                Some(state) if state.ty.bytes() == buffer.ty.bytes() => Ok(()),
                _ => invalid(format!("{what}: {} is not state {n}", buffer.ty)),
            },
            Location::Constant(n) => match self.constants.get(n) {
                // Every pattern of bits is a float.
                Some(constant) if buffer.ty.dtype == DType::F32 && constant.data.len() == buffer.ty.len() => Ok(()),
                _ => invalid(format!("{what}: {} is not constant {n}", buffer.ty)),
            },
        }
    }

    /// Indices: a constant within the bound, or an input whose indices are checked against it when they are written.
    fn verify_indices(&self, buffer: &Buffer, bound: usize, arena: &Arena<'_>) -> Result<(), EngineError> {
        match buffer.location {
            Location::Constant(n) => match self.constants.get(n) {
                Some(constant) => check_indices(&constant.name, &constant.data, buffer.ty.len(), bound),
                None => invalid(format!("there is no constant {n}")),
            },
            Location::Arena(offset) => match arena.read(&arena.region(buffer, offset)?)? {
                Live::Indices { bound: kept, .. } if kept <= bound => Ok(()),
                Live::Indices { name, bound: kept } => {
                    invalid(format!("indices in `{name}` may reach {kept}, expected at most {bound}"))
                }
                Live::Floats => invalid("floats read as indices".into()),
            },
            Location::State(n) => invalid(format!("state {n} read as indices")),
        }
    }

    /// No result overlaps another value of the instruction, except where the operation works in place.
    fn verify_places(&self, i: &Instruction) -> Result<(), EngineError> {
        let meet = |a: &Buffer, b: &Buffer| match (a.location, b.location) {
            (Location::Arena(x), Location::Arena(y)) => {
                overlap(&(x..x.saturating_add(a.ty.bytes())), &(y..y.saturating_add(b.ty.bytes())))
            }
            (x, y) => x == y,
        };
        let in_place = i.op.in_place();
        if i.copies.iter().any(|pair| !in_place.contains(pair)) {
            return invalid("a copy that the operation does not ask for".into());
        }
        for &(from, to) in &in_place {
            let (Some(input), Some(output)) = (i.inputs.get(from), i.outputs.get(to)) else {
                return invalid("in place where there is no value".into());
            };
            let apart = i.copies.contains(&(from, to));
            if input.ty.bytes() != output.ty.bytes() || (!apart && input.location != output.location) {
                return invalid("in place, but not in one place".into());
            }
        }
        for (o, output) in i.outputs.iter().enumerate() {
            for (n, input) in i.inputs.iter().enumerate() {
                let allowed = in_place.contains(&(n, o)) && !i.copies.contains(&(n, o));
                if meet(input, output) && !allowed {
                    return invalid("a result overlaps an operand".into());
                }
            }
            if i.outputs[..o].iter().any(|other| meet(other, output)) {
                return invalid("two results overlap".into());
            }
        }
        Ok(())
    }
}
