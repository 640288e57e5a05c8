//! The micro-kernel: a tile of the result in registers.
//!
//! While a tile is computed, what is needed next is prefetched: the tile of the result, and the rows of the next tile. The sums are long
//! enough to hide these loads; without them a quarter of the time goes into waiting.

#![allow(unsafe_code, reason = "vector instructions, chosen by an Isa that proves they are there")]
#![allow(clippy::needless_range_loop, reason = "loops over registers are unrolled where they are written plainly")]

#[cfg(simmim_x86)]
use super::simd::{Avx2, Avx512, NativePairs};
use super::simd::{Floats, Pairs, Portable, Simd, Terms};
use super::{EpilogueOperand, Operand, Tile};
use crate::host::block::BlockMut;
use crate::host::dispatch::IsaKind;
use crate::host::{Isa, LINE};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of the largest portable tile: 32 registers of four floats on 64-bit ARM, 16 elsewhere.
const PORTABLE_ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

/// Floats between the columns of packed rows of `a`: what a copy writes at once.
pub(super) const TILE_STRIDE: usize = 8;

/// Floats in the largest tile.
pub(super) const LARGEST: usize = 8 * 48;

fn by_isa<T>(isa: Isa, avx512: T, avx2: T, portable: T) -> T {
    match isa.kind() {
        IsaKind::Amx(_) | IsaKind::Avx512Bf16 | IsaKind::Avx512 => avx512,
        IsaKind::Avx2 => avx2,
        IsaKind::Portable => portable,
    }
}

/// Floats in a vector of the micro-kernel.
pub(super) fn lanes(isa: Isa) -> usize {
    by_isa(isa, 16, 8, 8)
}

/// Rows of the largest tile: with the columns of a panel, its sums and operands just fill the registers. Pairs that no instruction
/// multiplies take more of them.
pub(super) fn tile_rows<O: Operand>(isa: Isa) -> usize {
    if O::IN_WORD == 1 { by_isa(isa, 8, 6, PORTABLE_ROWS) } else { by_isa(isa, 8, 4, PORTABLE_ROWS) }
}

/// Columns of a packed panel of `b`.
pub(super) fn panel_width(isa: Isa) -> usize {
    by_isa(isa, 48, 16, 16)
}

/// Terms between two prefetches: a cache line of each row.
const PACE: usize = 16;

/// Brings the cache line of an address into the second-level cache; any address will do.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(simmim_x86)]
    // SAFETY: the instruction is in every x86-64 processor and takes any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(simmim_x86))]
    let _ = at;
}

/// Prefetches a tile of the result, for writing.
#[inline(always)]
pub(super) fn prefetch_tile<T>(c: &mut BlockMut<'_, T>, rows: &Range<usize>, cols: &Range<usize>) {
    let (start, stride) = (c.as_mut_ptr(), c.stride());
    for i in rows.clone() {
        for line in cols.clone().step_by(4 * LINE / size_of::<T>()) {
            prefetch_write(start.wrapping_add(i * stride + line).cast());
        }
    }
}

/// Prefetches a tile of a contiguous matrix of `columns` columns, for reading.
#[inline(always)]
pub(super) fn prefetch_rows(matrix: EpilogueOperand<'_>, columns: usize, place: &Tile) {
    let element = matrix.element;
    let start = matrix.bytes.as_ptr().wrapping_add((place.first.0 * columns + place.first.1) * element);
    for i in place.rows.clone() {
        for col in place.cols.clone().step_by(4 * LINE / element) {
            prefetch(start.wrapping_add((i * columns + col) * element).cast());
        }
    }
}

/// Prefetches the cache line of an address for writing; any address will do.
#[inline(always)]
fn prefetch_write(at: *const f32) {
    #[cfg(simmim_x86)]
    // SAFETY: the instruction takes any address, and processors without it do nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(at.cast());
    }
    #[cfg(not(simmim_x86))]
    let _ = at;
}

/// The rows of `a` of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows<'a> {
    /// The bytes of the rows, each in one piece, and the distance between their starts.
    InPlace(&'a [u8], usize),
    /// `[k, TILE_STRIDE]` words.
    Packed(&'a [f32]),
}

/// Operands of a tile in words: `a [rows, k]`, and a packed panel `b [k, width]`, the width being the tile's columns rounded up to
/// whole vectors. The rows that lie `next` bytes ahead of these are prefetched, unless it is zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) k: usize,
    pub(super) a: Rows<'a>,
    pub(super) next: usize,
    pub(super) b: &'a [f32],
}

/// What is done with the sums of a tile: `c = alpha sums + bias + c`, the last two where wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
    pub(super) bias: Option<&'a [f32]>,
}

/// Computes a tile: all of `c`, which is not higher than [`tile_rows`] and not wider than [`panel_width`].
///
/// # Panics
/// If a slice is too short or the tile too large: a fault of the caller.
#[inline(always)]
pub(super) fn tile<O: Operand>(isa: Isa, o: Operands<'_>, epilogue: Epilogue<'_>, c: &mut BlockMut<'_>) {
    let (rows, cols) = (c.rows(), c.cols());
    let fits = (1..=tile_rows::<O>(isa)).contains(&rows) && (1..=panel_width(isa)).contains(&cols);
    assert!(fits, "tile [{rows}, {cols}]");
    assert!(o.b.len() >= o.k * cols.next_multiple_of(lanes(isa)), "panel too short");
    assert!(epilogue.bias.is_none_or(|b| b.len() == cols), "bias of the wrong length");
    let (a, row_stride, packed, short) = match o.a {
        Rows::InPlace(a, stride) => (a.as_ptr().cast(), stride, 0, (rows - 1) * stride + 4 * o.k > a.len()),
        Rows::Packed(a) => (a.as_ptr(), 4, 1, TILE_STRIDE * o.k > a.len()),
    };
    assert!(o.k == 0 || !short, "rows too short");
    let run = runs::<O>(isa)[rows - 1][cols.div_ceil(lanes(isa)) - 1][packed];
    let pointers = Pointers { k: o.k, a, row_stride, next: o.next, b: o.b.as_ptr() };
    // SAFETY: (1) an `Isa` exists only where the processor has it, and the tables hold its functions; (2) lengths are asserted above.
    unsafe { run(&pointers, &epilogue, c) };
}

/// The functions for an instruction set: by height and number of vectors, from one on, and whether the rows are packed.
#[inline(always)]
fn runs<O: Operand>(isa: Isa) -> Table {
    #[cfg(simmim_x86)]
    return match (isa.kind(), O::IN_WORD) {
        (IsaKind::Amx(_) | IsaKind::Avx512Bf16 | IsaKind::Avx512, 1) => AVX512,
        (IsaKind::Amx(_) | IsaKind::Avx512Bf16, _) => AVX512_NATIVE_PAIRS,
        (IsaKind::Avx512, _) => AVX512_PAIRS,
        (IsaKind::Avx2, 1) => AVX2,
        (IsaKind::Avx2, _) => AVX2_PAIRS,
        (IsaKind::Portable, 1) => PORTABLE,
        (IsaKind::Portable, _) => PORTABLE_PAIRS,
    };
    #[cfg(not(simmim_x86))]
    match (isa.kind(), O::IN_WORD) {
        (_, 1) => PORTABLE,
        (_, _) => PORTABLE_PAIRS,
    }
}

/// The operands of a tile as pointers: as slices they would tell the compiler that loads may move, and it would load for later
/// steps, for which there are no registers.
struct Pointers {
    k: usize,
    a: *const f32,
    /// In bytes, as `next` is.
    row_stride: usize,
    next: usize,
    b: *const f32,
}

/// Computes a tile of fixed height and number of vectors.
///
/// # Safety
/// (1) The processor has the instruction set. (2) The pointers have the lengths that [`tile`] asserts; the tile has that height and
/// number of vectors.
type Run = unsafe fn(&Pointers, &Epilogue<'_>, &mut BlockMut<'_>);

/// See [`runs`].
type Table = &'static [[[Run; 2]; 3]];

macro_rules! tiles {
    ($table:ident, $name:ident, $simd:ident, $terms:ident, $($feature:literal)?, [$($height:literal)*], $widths:tt) => {
        /// # Safety
        /// Those of [`Run`].
        $(#[cfg(simmim_x86)] #[target_feature(enable = $feature)])?
        unsafe fn $name<const ROWS: usize, const VECTORS: usize, const PACKED: bool>(
            pointers: &Pointers,
            epilogue: &Epilogue<'_>,
            c: &mut BlockMut<'_>,
        ) {
            // SAFETY: the caller's obligations.
            unsafe { sum::<$simd, $terms, ROWS, VECTORS, PACKED>(pointers, epilogue, c) };
        }

        $(#[doc = $feature] #[cfg(simmim_x86)])?
        static $table: Table = &[$(tiles!(@row $name, $height, $widths)),*];
    };
    (@row $name:ident, $height:literal, [$a:literal $b:literal $c:literal]) => {
        [tiles!(@both $name, $height, $a), tiles!(@both $name, $height, $b), tiles!(@both $name, $height, $c)]
    };
    (@both $name:ident, $height:literal, $v:literal) => {
        [$name::<$height, $v, false>, $name::<$height, $v, true>]
    };
}

tiles! { AVX512, avx512, Avx512, Floats, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma", [1 2 3 4 5 6 7 8], [1 2 3] }
tiles! { AVX512_NATIVE_PAIRS, avx512_native_pairs, Avx512, NativePairs, "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma",
[1 2 3 4 5 6 7 8], [1 2 3] }
tiles! { AVX512_PAIRS, avx512_pairs, Avx512, Pairs, "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma", [1 2 3 4 5 6 7 8], [1 2 3] }
tiles! { AVX2, avx2, Avx2, Floats, "avx2,fma", [1 2 3 4 5 6], [1 2 2] }
tiles! { AVX2_PAIRS, avx2_pairs, Avx2, Pairs, "avx2,fma", [1 2 3 4], [1 2 2] }
tiles! { PORTABLE, portable, Portable, Floats, , [1 2 3 4 5 6], [1 2 2] }
tiles! { PORTABLE_PAIRS, portable_pairs, Portable, Pairs, , [1 2 3 4 5 6], [1 2 2] }

/// Keeps the compiler from knowing how a pointer was computed, so that it holds it in a register.
#[inline(always)]
#[cfg_attr(
    not(any(simmim_x86, target_arch = "aarch64")),
    allow(unused_mut, reason = "other processors leave it as it is")
)]
fn opaque(mut at: *const f32) -> *const f32 {
    #[cfg(any(simmim_x86, target_arch = "aarch64"))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) at, options(nostack, preserves_flags));
    }
    at
}

/// Computes a tile of `ROWS` rows and `VECTORS` vectors.
///
/// # Safety
/// Those of [`Run`]; the rows are packed or not, as `PACKED` says.
#[inline(always)]
unsafe fn sum<S: Simd, K: Terms<S>, const ROWS: usize, const VECTORS: usize, const PACKED: bool>(
    pointers: &Pointers,
    epilogue: &Epilogue<'_>,
    c: &mut BlockMut<'_>,
) {
    let (mut target, mut target_rows, target_stride) = (c.as_mut_ptr(), ROWS, c.stride());
    // Rows are addressed from every third one: base, base + stride, base + 2 stride are one instruction each, where the compiler
    // would make a chain of additions.
    let &Pointers { k, a, row_stride: stride, next, mut b } = pointers;
    let mut bases = [a; 3];
    for (i, base) in bases.iter_mut().enumerate() {
        *base = if PACKED { a } else { opaque(a.wrapping_byte_add(3 * i * stride)) };
    }
    // SAFETY: the caller's obligations; the loops read `k` columns of `a` and rows of `b`.
    unsafe {
        let mut sums = [[S::zero(); VECTORS]; ROWS];
        // Not a closure: that would be compiled without the instruction set.
        macro_rules! step {
            ($at:expr) => {
                let mut row = [S::zero(); VECTORS];
                for v in 0..VECTORS {
                    row[v] = S::load(b.add(v * S::LANES));
                }
                b = b.add(VECTORS * S::LANES);
                for i in 0..ROWS {
                    let x = if PACKED {
                        S::splat(bases[0].add($at * TILE_STRIDE + i))
                    } else {
                        S::splat(bases[i / 3].wrapping_byte_add(i % 3 * stride).add($at))
                    };
                    for v in 0..VECTORS {
                        sums[i][v] = K::add(x, row[v], sums[i][v]);
                    }
                }
            };
        }
        macro_rules! advance {
            ($by:expr) => {
                for base in &mut bases {
                    *base = base.wrapping_add(if PACKED { $by * TILE_STRIDE } else { $by });
                }
            };
        }
        for _ in 0..k / PACE {
            for v in (0..VECTORS * S::LANES).step_by(LINE) {
                prefetch_write(target.wrapping_add(v));
            }
            target_rows -= usize::from(target_rows > 1);
            target = target.wrapping_add(if target_rows > 1 { target_stride } else { 0 });
            if !PACKED && next > 0 {
                for i in 0..ROWS {
                    prefetch(bases[i / 3].wrapping_byte_add(i % 3 * stride + next));
                }
            }
            for _ in 0..PACE / 4 {
                step!(0);
                step!(1);
                step!(2);
                step!(3);
                advance!(4);
            }
        }
        for _ in 0..k % PACE {
            step!(0);
            advance!(1);
        }
        // Loops this plain are unrolled, so that the sums stay in registers until here; others go through memory.
        let alpha = S::splat(&raw const epilogue.alpha);
        let whole = c.cols() == VECTORS * S::LANES;
        let (start, stride) = (c.as_mut_ptr(), c.stride());
        match epilogue.bias {
            None if whole && epilogue.accumulate => {
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        let to = start.add(i * stride + v * S::LANES);
                        S::store(to, S::madd(alpha, sums[i][v], S::load(to)));
                    }
                }
            }
            None if whole => {
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        S::store(start.add(i * stride + v * S::LANES), S::madd(alpha, sums[i][v], S::zero()));
                    }
                }
            }
            Some(bias) if whole && !epilogue.accumulate => {
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        let bias = S::load(bias.as_ptr().add(v * S::LANES));
                        S::store(start.add(i * stride + v * S::LANES), S::madd(alpha, sums[i][v], bias));
                    }
                }
            }
            _ => {
                let mut done = [const { MaybeUninit::<f32>::uninit() }; LARGEST];
                let to = done.as_mut_ptr().cast::<f32>();
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        S::store(to.add((i * VECTORS + v) * S::LANES), sums[i][v]);
                    }
                }
                finish::<S, ROWS, VECTORS>(to, epilogue, c);
            }
        }
    }
}

/// Writes a tile. Its last vectors of columns may be partly used.
///
/// # Safety
/// (1) The processor has the instruction set. (2) `c` has `ROWS` rows and more than `VECTORS - 1` vectors of columns; a bias is as
/// long as a row; `sums` points to `ROWS` times `VECTORS` vectors.
#[inline(always)]
unsafe fn finish<S: Simd, const ROWS: usize, const VECTORS: usize>(
    sums: *const f32,
    epilogue: &Epilogue<'_>,
    c: &mut BlockMut<'_>,
) {
    let (start, stride, lanes) = (c.as_mut_ptr(), c.stride(), c.cols() - (VECTORS - 1) * S::LANES);
    // SAFETY: obligations 1 and 2; of the last vector only `lanes` floats are touched.
    unsafe {
        let alpha = S::splat(&raw const epilogue.alpha);
        for v in 0..VECTORS {
            let whole = v + 1 < VECTORS || lanes == S::LANES;
            let mut bias = S::zero();
            if let Some(given) = epilogue.bias {
                let from = given.as_ptr().add(v * S::LANES);
                bias = if whole { S::load(from) } else { S::load_part(from, lanes) };
            }
            for i in 0..ROWS {
                let to = start.add(i * stride + v * S::LANES);
                let mut held = bias;
                if epilogue.accumulate {
                    held = S::add(bias, if whole { S::load(to) } else { S::load_part(to, lanes) });
                }
                let result = S::madd(alpha, S::load(sums.add((i * VECTORS + v) * S::LANES)), held);
                if whole {
                    S::store(to, result);
                } else {
                    S::store_part(to, result, lanes);
                }
            }
        }
    }
}
