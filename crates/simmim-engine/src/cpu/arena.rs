//! Aligned memory and the views that kernels get of it.

#![allow(unsafe_code, reason = "hands out disjoint parts of one arena, as laid out and verified by the plan")]

use crate::error::EngineError;
use crate::graph::{Bf16, DType, Element, TensorType};
use memmap2::MmapMut;

/// Bytes of a huge page. Rows of large matrices lie pages apart, and walks of the page tables cost more than the loads.
const HUGE: usize = 1 << 21;

/// Zeroed bytes, aligned to a page, or to a huge page where there are as many. Views of them are typed and checked.
#[derive(Debug)]
pub(super) struct Memory {
    start: *mut u8,
    bytes: usize,
    _owner: MmapMut,
}

// SAFETY: `Memory` owns its mapping like a `Vec<u8>`.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn zeroed(bytes: usize, what: &'static str) -> Result<Self, EngineError> {
        let failed = EngineError::OutOfMemory { what, bytes };
        // Mappings start at a page; a huge page more leaves room to start at a huge one. What is never touched takes no memory.
        let spare = if bytes >= HUGE { HUGE } else { 0 };
        let Some(mapped) = bytes.max(1).checked_add(spare) else { return Err(failed) };
        if isize::try_from(mapped).is_err() {
            return Err(failed);
        }
        let Ok(mut owner) = MmapMut::map_anon(mapped) else { return Err(failed) };
        #[cfg(target_os = "linux")]
        if spare > 0 {
            // A hint: where the system has no huge pages, small ones do.
            let _ = owner.advise(memmap2::Advice::HugePage);
        }
        let skipped = if spare > 0 { owner.as_ptr().align_offset(HUGE).min(spare) } else { 0 };
        let start = owner.as_mut_ptr().wrapping_add(skipped);
        Ok(Self { start, bytes, _owner: owner })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pointer to `len` elements from byte `offset` on.
    ///
    /// # Panics
    /// If they do not lie inside, aligned to their type: a fault of the caller.
    fn at<T: Element>(&self, offset: usize, len: usize) -> *mut T {
        let bytes = len.checked_mul(size_of::<T>());
        let end = bytes.and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.bytes), "{len} {} at byte {offset} of {}", T::DTYPE, self.bytes);
        let start = self.start.wrapping_add(offset).cast::<T>();
        assert!(start.is_aligned(), "{} at byte {offset} is not aligned", T::DTYPE);
        start
    }

    /// `len` elements from byte `offset` on.
    ///
    /// # Panics
    /// As [`Memory::at`].
    pub(super) fn slice<T: Element>(&self, offset: usize, len: usize) -> &[T] {
        // SAFETY: the range lies in the mapping and is aligned (`at`), its bytes are zero or were written, and every pattern of bits
        // is an element (`Pod`).
        unsafe { std::slice::from_raw_parts(self.at(offset, len), len) }
    }

    /// `len` elements from byte `offset` on.
    ///
    /// # Panics
    /// As [`Memory::at`].
    pub(super) fn slice_mut<T: Element>(&mut self, offset: usize, len: usize) -> &mut [T] {
        // SAFETY: as in `slice`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }

    /// Pointer to a value from byte `offset` on.
    ///
    /// # Panics
    /// As [`Memory::at`].
    pub(super) fn locate(&self, offset: usize, ty: &TensorType) -> *mut u8 {
        match ty.dtype {
            DType::F32 => self.at::<f32>(offset, ty.len()).cast(),
            DType::Bf16 => self.at::<Bf16>(offset, ty.len()).cast(),
            DType::I32 => self.at::<i32>(offset, ty.len()).cast(),
        }
    }
}

/// A value of a loaded instruction: where it lies in memory.
#[derive(Debug, Clone)]
pub(super) struct Located {
    /// Aligned to the element type.
    pub(super) start: *mut u8,
    pub(super) ty: TensorType,
    /// Elements.
    pub(super) len: usize,
    /// An input whose buffer is an output of the same instruction: kernels find its contents there.
    pub(super) taken: bool,
}

impl Located {
    /// The elements.
    ///
    /// # Panics
    /// If the value holds another type: a fault of the kernel.
    fn pointer<T: Element>(&self, what: &str) -> *mut T {
        assert!(self.ty.dtype == T::DTYPE, "{what} of {} taken as {}", self.ty.dtype, T::DTYPE);
        self.start.cast()
    }
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
    /// 1. Every located value points to `len` aligned, initialised elements of its type that outlive `'a`.
    /// 2. No output overlaps another output or an input, except inputs marked `taken`.
    /// 3. Nothing else touches the memory during `'a`.
    pub(super) unsafe fn new(inputs: &'a [Located], outputs: &'a [Located], scratch: &'a mut [f32]) -> Self {
        Self { inputs, outputs, scratch }
    }

    /// Inputs, the `N` outputs, which hold floats, and the working memory.
    ///
    /// # Panics
    /// If the instruction has not `N` outputs, or one that holds something else: a fault of the kernel.
    pub fn split<const N: usize>(&mut self) -> (Inputs<'_>, [&mut [f32]; N], &mut [f32]) {
        assert_eq!(self.outputs.len(), N, "outputs of the instruction");
        let (inputs, mut outputs, scratch) = self.parts();
        (inputs, std::array::from_fn(|_| outputs.take()), scratch)
    }

    /// Inputs, outputs and the working memory.
    pub fn parts(&mut self) -> (Inputs<'_>, Outputs<'_>, &mut [f32]) {
        let inputs = Inputs { inputs: self.inputs, outputs: self.outputs };
        (inputs, Outputs { left: self.outputs.iter() }, self.scratch)
    }

    /// Element type of input `i`.
    #[must_use]
    pub fn input_type(&self, i: usize) -> DType {
        self.inputs[i].ty.dtype
    }

    /// Element type of output `i`.
    #[must_use]
    pub fn output_type(&self, i: usize) -> DType {
        self.outputs[i].ty.dtype
    }
}

/// The outputs of an instruction that no one has taken yet.
#[derive(Debug)]
pub struct Outputs<'a> {
    left: std::slice::Iter<'a, Located>,
}

impl<'a> Outputs<'a> {
    /// Takes the next output.
    ///
    /// # Panics
    /// If there is none, or it holds another type: a fault of the kernel.
    pub fn take<T: Element>(&mut self) -> &'a mut [T] {
        let Some(output) = self.left.next() else { panic!("an output of the instruction that is not there") };
        // SAFETY: obligations 1 to 3 of `Args::new`; each output is taken once, and `&mut` in `Args::parts` keeps a second call from
        // lending the outputs again.
        unsafe { std::slice::from_raw_parts_mut(output.pointer("an output"), output.len) }
    }
}

impl<'a> Inputs<'a> {
    /// Number of inputs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inputs.len()
    }

    /// The elements of input `i`.
    ///
    /// # Panics
    /// If it holds another type, or is modified in place (its contents are in the output then): a fault of the kernel.
    #[must_use]
    pub fn get<T: Element>(&self, i: usize) -> &'a [T] {
        let input = &self.inputs[i];
        assert!(!input.taken, "input {i} is to be read from the output");
        // SAFETY: obligations 1 to 3 of `Args::new`.
        unsafe { std::slice::from_raw_parts(input.pointer("an input"), input.len) }
    }

    /// The floats of input `i`; see [`Inputs::get`].
    #[must_use]
    pub fn f32(&self, i: usize) -> &'a [f32] {
        self.get(i)
    }

    /// The indices of input `i`; see [`Inputs::get`].
    #[must_use]
    pub fn i32(&self, i: usize) -> &'a [i32] {
        self.get(i)
    }

    /// Element type of input `i`.
    #[must_use]
    pub fn dtype(&self, i: usize) -> DType {
        self.inputs[i].ty.dtype
    }

    /// The shape of input `i`.
    #[must_use]
    pub fn shape(&self, i: usize) -> &'a [usize] {
        &self.inputs[i].ty.shape
    }

    /// The shape of output `i`.
    #[must_use]
    pub fn output_shape(&self, i: usize) -> &'a [usize] {
        &self.outputs[i].ty.shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_its_own() {
        for bytes in [0, 4, 4000, HUGE - 4, HUGE, 4 * HUGE + 20] {
            let (mut a, b) = (Memory::zeroed(bytes, "a").unwrap(), Memory::zeroed(bytes, "b").unwrap());
            let len = bytes / 4;
            let zeros = |m: &Memory| m.slice::<f32>(0, len).iter().all(|&v| v == 0.0);
            assert!(a.bytes() == bytes && zeros(&a) && zeros(&b));
            let align = if bytes >= HUGE { HUGE } else { crate::plan::ALIGNMENT };
            assert!((a.start as usize).is_multiple_of(align) && (b.start as usize).is_multiple_of(align), "{bytes}");
            a.slice_mut::<f32>(0, len).fill(1.0);
            assert!(zeros(&b));
        }
        for bytes in [usize::MAX, usize::MAX / 2, usize::MAX / 8] {
            assert!(matches!(Memory::zeroed(bytes, "x"), Err(EngineError::OutOfMemory { .. })));
        }
    }

    #[test]
    fn views_end_with_the_memory() {
        let memory = Memory::zeroed(64, "x").unwrap();
        assert_eq!(memory.slice::<i32>(60, 1), [0]);
        for (offset, len) in [(64, 1), (0, 17), (4, usize::MAX), (usize::MAX, 1), (2, 1)] {
            let view = std::panic::catch_unwind(|| memory.slice::<f32>(offset, len).len());
            assert!(view.is_err(), "{len} floats at byte {offset}");
        }
    }
}
