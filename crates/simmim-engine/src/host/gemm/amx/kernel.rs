//! The micro-kernel on the tile registers: a block of 32 x 32 sums, from operands in one part or in three.
//!
//! A tile register holds 16 rows of 64 bytes. Four of the eight hold sums, two a row of tiles of `a`, two a column of tiles of `b`. Three
//! parts follow each other such that 24 multiplications take 14 loads.

#![allow(unsafe_code, reason = "tile instructions, which Rust has as assembly only; an Isa proves that they are there")]

use super::super::kernel::Epilogue;
use super::super::simd::{Avx512, Simd};
use super::parts::Parts;
use crate::host::block::BlockMut;
use crate::host::dispatch::TileRegisters;
use std::arch::asm;
use std::cell::Cell;

/// Rows and columns of a block of sums.
pub(super) const BLOCK: usize = 32;

/// Terms of a sum that a tile holds.
pub(super) const DEPTH: usize = 32;

/// Floats' worth of memory that a tile takes: 1024 bytes.
pub(super) const TILE: usize = 256;

/// Floats' worth of memory that `BLOCK` lines of `DEPTH` terms take: two tiles of each part.
pub(super) const fn packed<O: Parts>() -> usize {
    O::COUNT * 2 * TILE
}

/// The sums of a block as rows, aligned to cache lines.
#[repr(align(64))]
pub(super) struct Sums([f32; BLOCK * BLOCK]);

impl Sums {
    pub(super) fn zero() -> Self {
        Self([0.0; BLOCK * BLOCK])
    }
}

/// The shapes of the tile registers of this thread, given back when dropped: a thread that holds tiles costs more to suspend.
pub(super) struct Configured(std::marker::PhantomData<*mut ()>);

thread_local! {
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

impl Configured {
    /// # Panics
    /// If the thread holds tiles already, of which the shapes would be lost with these: a fault of the caller.
    pub(super) fn new(_proof: TileRegisters) -> Self {
        assert!(!CONFIGURED.replace(true), "tiles are in use on this thread");
        #[repr(align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for tile in 0..8 {
            // Bytes of a row, as 16-bit numbers, and rows.
            shapes.0[16 + 2 * tile] = 64;
            shapes.0[48 + tile] = 16;
        }
        // SAFETY: a `TileRegisters` exists only where the instruction is there and permitted; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Self(std::marker::PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: tiles are configured only where the instruction is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
        CONFIGURED.set(false);
    }
}

/// Where 32 rows lie that will be needed: 128 bytes of each are prefetched while sums are computed.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    /// The first row; any address will do.
    pub(super) start: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
}

/// Prefetches a row for writing.
macro_rules! written {
    () => {
        "prefetchw [{w}]\n prefetchw [{w} + 64]\n add {w}, {w_step}\n"
    };
}

/// Prefetches a row for reading.
macro_rules! read {
    () => {
        "prefetcht1 [{r}]\n prefetcht1 [{r} + 64]\n add {r}, {r_step}\n"
    };
}

/// Two tiles of `a` from these offsets, times the tiles of `b` that are there. A row is prefetched for writing and
/// one for reading.
macro_rules! with_a {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {step} + ",
            $first,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n",
            written!(),
            "tileloadd tmm5, [{a} + {step} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n",
            read!(),
        )
    };
}

/// The same with two tiles of `b`.
macro_rules! with_b {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm6, [{b} + {step} + ",
            $first,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm2, tmm5, tmm6\n",
            written!(),
            "tileloadd tmm7, [{b} + {step} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm3, tmm5, tmm7\n",
            read!(),
        )
    };
}

/// What every product of tiles begins with: no sums.
macro_rules! zero {
    () => {
        "tilezero tmm0\n tilezero tmm1\n tilezero tmm2\n tilezero tmm3"
    };
}

/// The steps of a product, in runs of at most so many.
///
/// A store ends each run: one after more than a hundred multiplications takes a thousand cycles (measured; one after fewer costs nothing,
/// and what it writes is written again at the end).
macro_rules! steps {
    ($run:literal, $($step:expr),* $(,)?) => {
        concat!(
            "3:\n mov {run}, ", $run, "\n cmp {depth}, ", $run, "\n cmovb {run}, {depth}\n sub {depth}, {run}\n",
            "2:\n", $($step, "\n",)*
            "dec {run}\n jnz 2b\n tilestored [{c} + {row}], tmm0\n test {depth}, {depth}\n jnz 3b\n",
            "tilestored [{c} + {row} + 64], tmm1\n",
            "tilestored [{c} + {row} + 2048], tmm2\n",
            "tilestored [{c} + {row} + 2112], tmm3",
        )
    };
}

/// To the next tiles of terms, so many bytes further. Some rows have been prefetched; after the last, the same again, which costs little.
macro_rules! next {
    ($bytes:literal, $rows:literal) => {
        concat!(
            "add {a}, ",
            $bytes,
            "\n add {b}, ",
            $bytes,
            "\n",
            "sub {rows}, ",
            $rows,
            "\n cmovs {w_step}, {rows_end}\n cmovs {r_step}, {rows_end}",
        )
    };
}

/// Runs the instructions of a product on packed operands.
///
/// # Safety
/// (1) Tiles are configured. (2) The instructions read `depth` times the bytes of [`next!`] of each operand and write nothing but the sums.
macro_rules! run {
    ($product:ident, $steps:expr) => {
        asm!(
            zero!(),
            $steps,
            a = inout(reg) $product.a => _,
            b = inout(reg) $product.b => _,
            depth = inout(reg) $product.depth => _,
            run = out(reg) _,
            c = in(reg) $product.sums,
            step = in(reg) 64usize,
            row = in(reg) 4 * BLOCK,
            w = inout(reg) $product.prefetches[0].start => _,
            w_step = inout(reg) $product.prefetches[0].stride => _,
            r = inout(reg) $product.prefetches[1].start => _,
            r_step = inout(reg) $product.prefetches[1].stride => _,
            rows = inout(reg) BLOCK - 1 => _,
            rows_end = in(reg) 0usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// A product of packed operands, as pointers.
struct Packed {
    depth: usize,
    a: *const f32,
    b: *const f32,
    prefetches: [Prefetch; 2],
    sums: *mut f32,
}

/// `sums = a b` for `depth` tiles of terms; `a` and `b` hold [`packed`] floats for each. Meanwhile prefetches rows for writing and others for
/// reading.
///
/// # Panics
/// If they are shorter: a fault of the caller.
#[inline(always)]
pub(super) fn multiply<O: Parts>(
    _tiles: &Configured,
    depth: usize,
    a: &[f32],
    b: &[f32],
    prefetches: [Prefetch; 2],
    sums: &mut Sums,
) {
    assert!(depth > 0 && a.len().min(b.len()) >= depth * packed::<O>(), "packed operands too short");
    let p = Packed { depth, a: a.as_ptr(), b: b.as_ptr(), prefetches, sums: sums.0.as_mut_ptr() };
    const { assert!(O::COUNT == 1 || O::COUNT == 3) };
    // SAFETY: tiles are configured; a step reads two tiles of each part of each operand, `packed` floats, and the stores write 16 rows of 64
    // bytes, 128 bytes apart, from four corners of `sums`.
    unsafe {
        if O::COUNT == 1 {
            multiply_whole(&p);
        } else {
            multiply_split(&p);
        }
    }
}

/// Operands in one part: four multiplications of a step take four loads.
///
/// # Safety
/// Tiles are configured; the operands hold two tiles for each step, and the sums are those of a block.
#[inline(always)]
unsafe fn multiply_whole(p: &Packed) {
    // SAFETY: the caller's obligations.
    unsafe {
        run!(
            p,
            steps!(
                "16",
                "tileloadd tmm4, [{a} + {step}]\n tileloadd tmm6, [{b} + {step}]\n tdpbf16ps tmm0, tmm4, tmm6",
                concat!(written!(), written!()),
                "tileloadd tmm7, [{b} + {step} + 1024]\n tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {step} + 1024]\n tdpbf16ps tmm2, tmm5, tmm6",
                concat!(read!(), read!()),
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!("2048", "2"),
            )
        );
    }
}

/// Operands in three parts, of whose nine products those six are added that matter.
///
/// # Safety
/// Tiles are configured; the operands hold six tiles for each step, and the sums are those of a block.
#[inline(always)]
unsafe fn multiply_split(p: &Packed) {
    // SAFETY: the caller's obligations.
    unsafe {
        run!(
            p,
            steps!(
                "4",
                // Third part of b with the first of a; second of b with the first and second of a; first of b with all.
                "tileloadd tmm6, [{b} + {step} + 4096]",
                "tileloadd tmm7, [{b} + {step} + 5120]",
                with_a!("0", "1024"),
                with_b!("2048", "3072"),
                with_a!("2048", "3072"),
                with_b!("0", "1024"),
                with_a!("4096", "5120"),
                with_a!("0", "1024"),
                next!("6144", "6"),
            )
        );
    }
}

/// Writes the sums to a block of the result, which may be smaller.
///
/// # Panics
/// If the block is larger: a fault of the caller.
#[inline(always)]
pub(super) fn finish(_tiles: &Configured, sums: &Sums, epilogue: &Epilogue<'_>, c: &mut BlockMut<'_>) {
    // SAFETY: where there are tiles, there is AVX-512.
    unsafe { finish_avx512(sums, epilogue, c) };
}

/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn finish_avx512(sums: &Sums, epilogue: &Epilogue<'_>, c: &mut BlockMut<'_>) {
    let (rows, cols, stride, start) = (c.rows(), c.cols(), c.stride(), c.as_mut_ptr());
    assert!(rows <= BLOCK && cols <= BLOCK && epilogue.bias.is_none_or(|b| b.len() == cols), "block [{rows}, {cols}]");
    // SAFETY: the caller's obligation; `lanes` floats from column `col` on lie in the block, in the bias and in the sums.
    unsafe {
        let alpha = Avx512::splat(&raw const epilogue.alpha);
        for col in (0..cols).step_by(Avx512::LANES) {
            let lanes = (cols - col).min(Avx512::LANES);
            let bias = epilogue.bias.map_or(Avx512::zero(), |b| Avx512::load_part(b.as_ptr().add(col), lanes));
            for i in 0..rows {
                let to = start.add(i * stride + col);
                let held = if epilogue.accumulate { Avx512::add(bias, Avx512::load_part(to, lanes)) } else { bias };
                let sum = Avx512::load(sums.0.as_ptr().add(i * BLOCK + col));
                Avx512::store_part(to, Avx512::madd(alpha, sum, held), lanes);
            }
        }
    }
}
