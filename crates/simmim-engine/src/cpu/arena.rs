//! Aligned memory and the views that kernels get of it.

#![allow(unsafe_code, reason = "hands out disjoint parts of one arena, as laid out and verified by the plan")]

use crate::error::EngineError;
use crate::graph::DType;
use memmap2::MmapMut;

/// Bytes of a huge page. Rows of large matrices lie pages apart, and walks of the page tables cost more than the loads.
const HUGE: usize = 1 << 21;
/// Floats in a cache line, to which values are aligned.
pub(super) const LINE: usize = 16;

/// Zeroed memory of four-byte elements, aligned to a cache line, or to a huge page where it is as large.
#[derive(Debug)]
pub(super) struct Memory {
    start: *mut f32,
    len: usize,
    _owner: MmapMut,
}

// SAFETY: `Memory` owns its mapping like a `Vec<f32>`.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn zeroed(len: usize, what: &'static str) -> Result<Self, EngineError> {
        let bytes = len.max(1).checked_mul(4).ok_or(EngineError::OutOfMemory { what, bytes: usize::MAX })?;
        let failed = EngineError::OutOfMemory { what, bytes };
        // Mappings start at a page; a huge page more leaves room to start at a huge one. What is never touched takes no memory.
        let spare = if bytes >= HUGE { HUGE } else { 0 };
        let Some(mapped) = bytes.checked_add(spare) else { return Err(failed) };
        let Ok(mut owner) = MmapMut::map_anon(mapped) else { return Err(failed) };
        #[cfg(target_os = "linux")]
        if spare > 0 {
            // A wish: where the system has no huge pages, small ones serve.
            let _ = owner.advise(memmap2::Advice::HugePage);
        }
        let skipped = if spare > 0 { owner.as_ptr().align_offset(HUGE).min(spare) } else { 0 };
        let start = owner.as_mut_ptr().wrapping_add(skipped).cast::<f32>();
        Ok(Self { start, len, _owner: owner })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: the mapping holds `len` zeroed or written elements from `start` on, and every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Pointer to element `offset`; the caller has checked that it lies inside.
    pub(super) fn at(&self, offset: usize) -> *mut f32 {
        debug_assert!(offset <= self.len);
        self.start.wrapping_add(offset)
    }
}

/// A value of a loaded instruction: where it lies in memory.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) start: *mut f32,
    pub(super) shape: Vec<usize>,
    pub(super) len: usize,
    pub(super) dtype: DType,
    /// An input whose buffer is an output of the same instruction: kernels find its contents there.
    pub(super) taken: bool,
}

/// What a kernel gets: its inputs, outputs and working memory.
#[derive(Debug)]
pub struct Args<'a> {
    inputs: &'a [Located],
    outputs: &'a [Located],
    scratch: &'a mut [f32],
}

/// The inputs of an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    inputs: &'a [Located],
    outputs: &'a [Located],
}

// SAFETY: inputs are only read while a kernel runs, see `Args::new`.
unsafe impl Sync for Inputs<'_> {}
// SAFETY: as above.
unsafe impl Send for Inputs<'_> {}

impl<'a> Args<'a> {
    /// # Safety
    /// 1. Every located value points to `len` initialised elements that outlive `'a`.
    /// 2. No output overlaps another output or an input, except inputs marked `taken`.
    /// 3. Nothing else touches the memory during `'a`.
    pub(super) unsafe fn new(inputs: &'a [Located], outputs: &'a [Located], scratch: &'a mut [f32]) -> Self {
        Self { inputs, outputs, scratch }
    }

    /// Inputs, the `N` outputs, and the working memory.
    ///
    /// # Panics
    /// If the instruction has not `N` outputs: a fault of the kernel.
    pub fn split<const N: usize>(&mut self) -> (Inputs<'_>, [&mut [f32]; N], &mut [f32]) {
        assert_eq!(self.outputs.len(), N, "outputs of the instruction");
        // SAFETY: obligations 1 to 3 of `new`; `&mut self` keeps a second call from lending the outputs again.
        let outputs = std::array::from_fn(|i| unsafe {
            std::slice::from_raw_parts_mut(self.outputs[i].start, self.outputs[i].len)
        });
        (Inputs { inputs: self.inputs, outputs: self.outputs }, outputs, self.scratch)
    }
}

impl<'a> Inputs<'a> {
    /// Number of inputs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inputs.len()
    }

    /// The floats of input `i`.
    ///
    /// # Panics
    /// If it holds indices, or is modified in place (its contents are in the output then): a fault of the kernel.
    #[must_use]
    pub fn f32(&self, i: usize) -> &'a [f32] {
        let input = &self.inputs[i];
        assert!(input.dtype == DType::F32 && !input.taken, "input {i} is not to be read as floats");
        // SAFETY: obligations 1 to 3 of `Args::new`.
        unsafe { std::slice::from_raw_parts(input.start, input.len) }
    }

    /// The indices of input `i`.
    ///
    /// # Panics
    /// If it holds floats: a fault of the kernel.
    #[must_use]
    pub fn i32(&self, i: usize) -> &'a [i32] {
        let input = &self.inputs[i];
        assert!(input.dtype == DType::I32 && !input.taken, "input {i} does not hold indices");
        // SAFETY: obligations 1 to 3 of `Args::new`; both element types have four bytes and accept every bit pattern.
        unsafe { std::slice::from_raw_parts(input.start.cast::<i32>(), input.len) }
    }

    /// The shape of input `i`.
    #[must_use]
    pub fn shape(&self, i: usize) -> &'a [usize] {
        &self.inputs[i].shape
    }

    /// The shape of output `i`.
    #[must_use]
    pub fn output_shape(&self, i: usize) -> &'a [usize] {
        &self.outputs[i].shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_its_own() {
        for len in [0, 1, 1000, HUGE / 4 - 1, HUGE / 4, HUGE + 5] {
            let (mut a, b) = (Memory::zeroed(len, "a").unwrap(), Memory::zeroed(len, "b").unwrap());
            assert!(a.len() == len && a.floats().iter().chain(b.floats()).all(|&v| v == 0.0));
            let align = if 4 * len >= HUGE { HUGE } else { 4 * LINE };
            assert!((a.at(0) as usize).is_multiple_of(align) && (b.at(0) as usize).is_multiple_of(align), "{len}");
            a.floats_mut().fill(1.0);
            assert!(b.floats().iter().all(|&v| v == 0.0));
        }
        assert!(matches!(Memory::zeroed(usize::MAX, "x"), Err(EngineError::OutOfMemory { .. })));
        assert!(matches!(Memory::zeroed(usize::MAX / 8, "x"), Err(EngineError::OutOfMemory { .. })));
    }
}
