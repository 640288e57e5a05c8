//! What products could reach at most.

use super::super::dispatch::{IsaKind, TileRegisters};
use super::super::{BlockMut, Cpu};
use super::Operand;
use super::kernel::{self, Rows};
use crate::executor::Peaks;
use crate::graph::Bf16;
use std::time::Instant;

/// Length of the sums: the operands of a tile fit the first-level cache.
const K: usize = 192;

/// Measures the peaks, each for about `seconds`.
#[must_use]
pub fn peaks(cpu: &Cpu, seconds: f64) -> Peaks {
    let vectors = on_vectors::<f32>(cpu, seconds);
    let (tiles, bf16) = match cpu.isa.kind() {
        IsaKind::Amx(tiles) => {
            (Some(on_tiles::<f32>(cpu, tiles, seconds)), Some(on_tiles::<Bf16>(cpu, tiles, seconds)))
        }
        _ => (None, cpu.isa.multiplies_bf16().then(|| on_vectors::<Bf16>(cpu, seconds))),
    };
    Peaks { vectors, tiles, bf16 }
}

fn on_tiles<O: Operand>(cpu: &Cpu, tiles: TileRegisters, seconds: f64) -> f64 {
    /// Blocks between two looks at the clock.
    const BLOCKS: usize = 1_000;
    let flops = super::amx::near::<O>(tiles, K, 0);
    best(cpu, seconds, flops * BLOCKS, || {
        super::amx::near::<O>(tiles, K, BLOCKS);
    })
}

fn on_vectors<O: Operand>(cpu: &Cpu, seconds: f64) -> f64 {
    /// Tiles between two looks at the clock.
    const TILES: usize = 2_000;
    let (rows, cols) = (kernel::tile_rows::<O>(cpu.isa), kernel::panel_width(cpu.isa));
    best(cpu, seconds, 2 * rows * cols * K * O::IN_WORD * TILES, || {
        // A one, or two in bfloat16; zeros take less power, and the clock may rise.
        let one = if O::IN_WORD == 1 { 1.0 } else { f32::from_bits(0x3f80_3f80) };
        let (a, b, mut c) = (vec![one; rows * K], vec![one; cols * K], vec![0.0; rows * cols]);
        let a = Rows::InPlace(bytemuck::cast_slice(&a), 4 * K);
        let mut c = BlockMut::of(&mut c, rows, cols, cols);
        for _ in 0..TILES {
            let operands = kernel::Operands { k: K, a, next: 0, b: &b };
            let epilogue = kernel::Epilogue { alpha: 1.0, accumulate: false, bias: None };
            kernel::tile::<O>(cpu.isa, operands, epilogue, &mut c);
        }
    })
}

/// The best of many short runs on all threads, because what disturbs a run makes it slower only.
fn best(cpu: &Cpu, seconds: f64, flops: usize, run: impl Fn() + Sync) -> f64 {
    let threads = cpu.pool.threads();
    let (begin, mut best) = (Instant::now(), 0.0f64);
    while best == 0.0 || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        cpu.pool.for_scratch(threads, &mut [], |_, _| run());
        best = best.max((flops * threads) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::super::{Isa, Pool};
    use super::*;

    #[test]
    fn a_peak_is_measured_on_every_instruction_set() {
        for isa in Isa::available() {
            let found = peaks(&Cpu { pool: Pool::new(2), isa }, 0.0);
            assert!(found.vectors.is_finite() && found.vectors > 1e6, "{}: {found:?}", isa.name());
            assert_eq!(found.tiles.is_some_and(|t| t > 1e6), isa.name() == "amx", "{found:?}");
            assert_eq!(found.bf16.is_some_and(|b| b > 1e6), isa.multiplies_bf16(), "{found:?}");
            let twice = Peaks { vectors: 2.0 * found.vectors, tiles: None, bf16: None };
            assert_eq!(found.max(twice), Peaks { tiles: found.tiles, bf16: found.bf16, ..twice });
        }
    }
}
