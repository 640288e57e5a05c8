//! The micro-kernel on the tile registers: a block of 32 x 32 sums, from operands split in three.
//!
//! A tile register holds 16 rows of 64 bytes. Four of the eight hold sums, two a row of tiles of `a`, two a column of tiles of `b`: the
//! parts follow each other such that 24 multiplications take 14 loads.

#![allow(unsafe_code, reason = "tile instructions, which Rust has as assembly only; an Isa proves that they are there")]

use super::super::kernel::Epilogue;
use super::super::simd::{Avx512, Simd};
use crate::host::block::BlockMut;
use crate::host::dispatch::TileRegisters;
use std::arch::asm;
use std::cell::Cell;

/// Rows and columns of a block of sums.
pub(super) const BLOCK: usize = 32;

/// Terms of a sum that a tile holds.
pub(super) const DEPTH: usize = 32;

/// Floats' worth of memory that `BLOCK` lines of `DEPTH` terms take: three parts of two tiles of 1024 bytes.
pub(super) const PACKED: usize = 3 * 2 * 256;

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
    pub(super) start: *const f32,
    /// Floats from row to row.
    pub(super) stride: usize,
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
            "prefetchw [{w}]\n prefetchw [{w} + 64]\n add {w}, {w_step}\n",
            "tileloadd tmm5, [{a} + {step} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n",
            "prefetcht1 [{r}]\n prefetcht1 [{r} + 64]\n add {r}, {r_step}",
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
            "prefetchw [{w}]\n prefetchw [{w} + 64]\n add {w}, {w_step}\n",
            "tileloadd tmm7, [{b} + {step} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm3, tmm5, tmm7\n",
            "prefetcht1 [{r}]\n prefetcht1 [{r} + 64]\n add {r}, {r_step}",
        )
    };
}

/// `sums = a b` for `depth` tiles of terms; `a` and `b` hold [`PACKED`] floats for each. Meanwhile prefetches rows
/// for writing and others for reading.
///
/// # Panics
/// If they are shorter: a fault of the caller.
#[inline(always)]
pub(super) fn multiply(
    _tiles: &Configured,
    depth: usize,
    a: &[f32],
    b: &[f32],
    prefetches: [Prefetch; 2],
    sums: &mut Sums,
) {
    assert!(depth > 0 && a.len() >= depth * PACKED && b.len() >= depth * PACKED, "packed operands too short");
    // SAFETY: tiles are configured; the loop reads `depth` times `PACKED` floats of each operand, and the stores write 16 rows of
    // 64 bytes, 128 bytes apart, from four corners of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            // Four steps at most between two stores: the store after a longer run takes a thousand cycles (measured; one after each
            // four costs nothing, and what it writes is written again at the end).
            "3:",
            "mov {run}, 4",
            "cmp {depth}, 4",
            "cmovb {run}, {depth}",
            "sub {depth}, {run}",
            "2:",
            // Third part of b with the first of a; second of b with the first and second of a; first of b with all.
            "tileloadd tmm6, [{b} + {step} + 4096]",
            "tileloadd tmm7, [{b} + {step} + 5120]",
            with_a!("0", "1024"),
            with_b!("2048", "3072"),
            with_a!("2048", "3072"),
            with_b!("0", "1024"),
            with_a!("4096", "5120"),
            with_a!("0", "1024"),
            "add {a}, 6144",
            "add {b}, 6144",
            // Six rows have been prefetched; after the last, the same again, which costs little.
            "sub {rows}, 6",
            "cmovs {w_step}, {rows_end}",
            "cmovs {r_step}, {rows_end}",
            "dec {run}",
            "jnz 2b",
            "tilestored [{c} + {row}], tmm0",
            "test {depth}, {depth}",
            "jnz 3b",
            "tilestored [{c} + {row} + 64], tmm1",
            "tilestored [{c} + {row} + 2048], tmm2",
            "tilestored [{c} + {row} + 2112], tmm3",
            a = inout(reg) a.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            depth = inout(reg) depth => _,
            run = out(reg) _,
            c = in(reg) sums.0.as_mut_ptr(),
            step = in(reg) 64usize,
            row = in(reg) 4 * BLOCK,
            w = inout(reg) prefetches[0].start => _,
            w_step = inout(reg) 4 * prefetches[0].stride => _,
            r = inout(reg) prefetches[1].start => _,
            r_step = inout(reg) 4 * prefetches[1].stride => _,
            rows = inout(reg) BLOCK - 1 => _,
            rows_end = in(reg) 0usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
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
