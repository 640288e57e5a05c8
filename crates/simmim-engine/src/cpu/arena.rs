//! Aligned memory and the views that kernels get of it.

#![allow(unsafe_code, reason = "hands out disjoint parts of one arena, as laid out and verified by the plan")]

use crate::error::EngineError;
use crate::graph::DType;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Bytes to which memory is aligned: two megabytes let the system back large arenas with huge pages.
const LARGE: usize = 1 << 21;
const LINE: usize = 64;

/// Zeroed, aligned memory of four-byte elements.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<f32>,
    len: usize,
    layout: Layout,
}

// SAFETY: `Memory` owns its allocation like a `Vec<f32>`.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn zeroed(len: usize, what: &'static str) -> Result<Self, EngineError> {
        let bytes = len.max(1).checked_mul(4).ok_or(EngineError::OutOfMemory { what, bytes: usize::MAX })?;
        let align = if bytes >= LARGE { LARGE } else { LINE };
        let failed = EngineError::OutOfMemory { what, bytes };
        let Ok(layout) = Layout::from_size_align(bytes, align) else { return Err(failed) };
        // SAFETY: the layout has a positive size.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }.cast::<f32>()).ok_or(failed)?;
        Ok(Self { start, len, layout })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: the allocation holds `len` initialised elements, and every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Pointer to element `offset`; the caller has checked that it lies inside.
    pub(super) fn at(&self, offset: usize) -> *mut f32 {
        debug_assert!(offset <= self.len);
        self.start.as_ptr().wrapping_add(offset)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
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
