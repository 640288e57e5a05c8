//! Tile instructions for processors without them, in tests only: where the processor stops at one, a signal handler does what it would have
//! done, so that the kernels in `gemm/amx/` are tested wherever there is AVX-512 with BF16.
//!
//! Encodings and arithmetic are those of Intel's "Architecture Instruction Set Extensions Programming Reference", chapter 3 (AMX). Instructions
//! that the kernels do not use stay illegal.

#![allow(unsafe_code, reason = "a signal handler that reads instructions and memory where the processor stopped")]

use std::cell::UnsafeCell;
use std::sync::OnceLock;

/// Rows of a tile, and bytes of a row.
const ROWS: usize = 16;
const ROW: usize = 64;

/// What the tile registers of a thread hold. Rows and bytes of a row are those of the configuration.
struct Tiles {
    rows: [usize; 8],
    bytes: [usize; 8],
    data: [[[u8; ROW]; ROWS]; 8],
}

impl Tiles {
    const RELEASED: Self = Self { rows: [0; 8], bytes: [0; 8], data: [[[0; ROW]; ROWS]; 8] };
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::RELEASED) };
}

/// Installs the handler, once; says whether it is there.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: a structure of numbers and an empty set of signals, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_illegal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that `SA_SIGINFO` asks for, and lives as long as the program.
        unsafe { libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0 }
    })
}

/// Does what the instruction would have done, and goes on behind it; what is not one of those becomes what it was, a fault.
extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a context to handlers with `SA_SIGINFO`, and nothing else refers to it meanwhile.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // SAFETY: the processor has read the instruction there; the longest takes 15 bytes, of which those are looked at that the
    // ones before ask for.
    let decoded = unsafe { Instruction::decode(registers) };
    let done = decoded.is_some_and(|(instruction, length)| {
        registers[libc::REG_RIP as usize] += length as i64;
        // SAFETY: the handler runs on the thread that it interrupted, between two instructions of it: nothing else refers to the
        // tiles. Memory is that which the instruction would have touched.
        unsafe { TILES.with(|tiles| instruction.run(&mut *tiles.get())) }
        true
    });
    if !done {
        // SAFETY: the default action is always there: the instruction is met again and ends the process.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// An instruction with the addresses that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instruction {
    Configure {
        from: usize,
    },
    Release,
    Zero {
        tile: usize,
    },
    Load {
        tile: usize,
        from: usize,
        stride: usize,
    },
    Store {
        tile: usize,
        to: usize,
        stride: usize,
    },
    /// `sums += a b`, of bfloat16.
    Multiply {
        sums: usize,
        a: usize,
        b: usize,
    },
}

/// General registers in the order of their numbers.
const GENERAL: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// A memory operand: the address without its index, the scaled index, and the bytes that it takes in the instruction.
struct Address {
    base: usize,
    index: usize,
    length: usize,
}

impl Instruction {
    /// The instruction at the program counter and its length, if it is one of these.
    ///
    /// # Safety
    /// The program counter points to an instruction.
    unsafe fn decode(registers: &[libc::greg_t]) -> Option<(Self, usize)> {
        let at = registers[libc::REG_RIP as usize] as usize as *const u8;
        // SAFETY: an instruction is as long as its bytes say, from the first on.
        let byte = |i: usize| unsafe { *at.add(i) };
        // Three bytes of VEX with the opcodes of 0F 38, 128 bits, W = 0.
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
            return None;
        }
        let (prefix, opcode, modrm) = (byte(2) & 3, byte(3), byte(4));
        let (registers_only, tile) = (modrm >> 6 == 3, usize::from(modrm >> 3 & 7));
        let tile_in_rm = usize::from(modrm & 7);
        let memory = || Self::address(registers, byte(1), modrm, &byte);
        Some(match (opcode, prefix, registers_only) {
            (0x49, 0, false) if tile == 0 => {
                let address = memory();
                (Self::Configure { from: address.base.wrapping_add(address.index) }, 5 + address.length)
            }
            (0x49, 0, true) if modrm == 0xc0 => (Self::Release, 5),
            (0x49, 3, true) if tile_in_rm == 0 => (Self::Zero { tile }, 5),
            (0x4b, 3 | 2, false) if tile_in_rm == 4 => {
                let Address { base, index: stride, length } = memory();
                let instruction = match prefix {
                    3 => Self::Load { tile, from: base, stride },
                    _ => Self::Store { tile, to: base, stride },
                };
                (instruction, 5 + length)
            }
            (0x5c, 2, true) => (Self::Multiply { sums: tile, a: tile_in_rm, b: usize::from(!(byte(2) >> 3) & 0xf) }, 5),
            _ => return None,
        })
    }

    /// The memory operand of `modrm`, whose other bytes follow at 5.
    fn address(registers: &[libc::greg_t], vex: u8, modrm: u8, byte: &impl Fn(usize) -> u8) -> Address {
        let value = |number: u8, extended: bool| {
            registers[GENERAL[usize::from(number & 7) + if extended { 8 } else { 0 }] as usize] as usize
        };
        // The bits that extend a register's number are inverted.
        let (extend_index, extend_base) = (vex & 0x40 == 0, vex & 0x20 == 0);
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let (mut length, mut index, mut base_number) = (0, 0, rm);
        if rm == 4 {
            let sib = byte(5);
            length = 1;
            base_number = sib & 7;
            // Register 4 as index means none.
            if sib >> 3 & 7 != 4 || extend_index {
                index = value(sib >> 3, extend_index) << (sib >> 6);
            }
        }
        let displacement = |from: usize, bytes: usize| match bytes {
            1 => isize::from(byte(from) as i8),
            _ => i32::from_le_bytes([0, 1, 2, 3].map(|i| byte(from + i))) as isize,
        };
        assert!(mode != 0 || base_number != 5, "an address without a base register is not emulated");
        let bytes = [0, 1, 4][usize::from(mode)];
        let shift = if bytes == 0 { 0 } else { displacement(5 + length, bytes) };
        let base = value(base_number, extend_base).wrapping_add_signed(shift);
        Address { base, index, length: length + bytes }
    }

    /// Does it.
    ///
    /// # Safety
    /// Its addresses are those of memory that the interrupted code may read, or write.
    unsafe fn run(self, tiles: &mut Tiles) {
        let row = |start: usize, stride: usize, i: usize| start.wrapping_add(stride.wrapping_mul(i));
        match self {
            Self::Configure { from } => {
                // SAFETY: the instruction reads 64 bytes.
                let shapes: [u8; 64] = unsafe { (from as *const [u8; 64]).read_unaligned() };
                assert!(shapes[0] == 1, "palette {}", shapes[0]);
                *tiles = Tiles::RELEASED;
                for tile in 0..8 {
                    tiles.bytes[tile] = usize::from(u16::from_le_bytes([shapes[16 + 2 * tile], shapes[17 + 2 * tile]]));
                    tiles.rows[tile] = usize::from(shapes[48 + tile]);
                    assert!(tiles.bytes[tile] <= ROW && tiles.rows[tile] <= ROWS, "shape of tile {tile}");
                }
            }
            Self::Release => *tiles = Tiles::RELEASED,
            Self::Zero { tile } => tiles.data[tile] = [[0; ROW]; ROWS],
            Self::Load { tile, from, stride } => {
                let bytes = tiles.bytes[tile];
                assert!(bytes > 0, "tile {tile} is not configured");
                for i in 0..tiles.rows[tile] {
                    // SAFETY: the caller's obligation.
                    let source = unsafe { std::slice::from_raw_parts(row(from, stride, i) as *const u8, bytes) };
                    tiles.data[tile][i] = [0; ROW];
                    tiles.data[tile][i][..bytes].copy_from_slice(source);
                }
            }
            Self::Store { tile, to, stride } => {
                let bytes = tiles.bytes[tile];
                assert!(bytes > 0, "tile {tile} is not configured");
                for i in 0..tiles.rows[tile] {
                    // SAFETY: the caller's obligation.
                    let target = unsafe { std::slice::from_raw_parts_mut(row(to, stride, i) as *mut u8, bytes) };
                    target.copy_from_slice(&tiles.data[tile][i][..bytes]);
                }
            }
            // SAFETY: the handler is installed only where the processor has AVX-512.
            Self::Multiply { sums, a, b } => unsafe { multiply(tiles, sums, a, b) },
        }
    }
}

/// TDPBF16PS: the first numbers of all pairs are multiplied and added up, fused, and so are the second ones; both sums are added, and then
/// added to what the tile holds. Subnormal numbers count as zero everywhere.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
unsafe fn multiply(tiles: &mut Tiles, sums: usize, a: usize, b: usize) {
    let (pairs, columns) = (tiles.bytes[a] / 4, tiles.bytes[sums] / 4);
    assert!(tiles.rows[b] == pairs && tiles.bytes[b] == tiles.bytes[sums], "shapes of tiles {sums}, {a}, {b}");
    assert!(tiles.rows[a] == tiles.rows[sums] && tiles.rows[a] > 0, "rows of tiles {sums} and {a}");
    let mut right = [[[0.0; ROWS]; 2]; ROWS];
    for (row, right) in tiles.data[b].iter().zip(&mut right) {
        *right = [0, 1].map(|half| std::array::from_fn(|n| number(row, n, half)));
    }
    for m in 0..tiles.rows[sums] {
        let mut added = [[0.0f32; ROWS]; 2];
        for (k, right) in right.iter().enumerate().take(pairs) {
            for half in 0..2 {
                let left = number(&tiles.data[a][m], k, half);
                for n in 0..columns.min(ROWS) {
                    added[half][n] = flushed(left.mul_add(right[half][n], added[half][n]));
                }
            }
        }
        let held = tiles.data[sums][m].as_chunks_mut::<4>().0.iter_mut().take(columns);
        for (held, (first, second)) in held.zip(added[0].iter().zip(&added[1])) {
            let sum = flushed(flushed(f32::from_le_bytes(*held)) + flushed(first + second));
            *held = sum.to_le_bytes();
        }
    }
}

/// A number of a pair.
#[inline(always)]
fn number(row: &[u8; ROW], pair: usize, half: usize) -> f32 {
    let at = 4 * pair + 2 * half;
    flushed(f32::from_bits(u32::from(u16::from_le_bytes([row[at], row[at + 1]])) << 16))
}

/// Zero for what is below the smallest normal number.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions as an assembler writes them, and what they are with register `r` holding `1000 r`.
    #[test]
    fn instructions_are_read_as_an_assembler_writes_them() {
        let cases: [(&[u8], Instruction); 9] = [
            // ldtilecfg [rax]; [r12]; [r13]
            (&[0xc4, 0xe2, 0x78, 0x49, 0x00], Instruction::Configure { from: 0 }),
            (&[0xc4, 0xc2, 0x78, 0x49, 0x04, 0x24], Instruction::Configure { from: 12000 }),
            (&[0xc4, 0xc2, 0x78, 0x49, 0x45, 0x00], Instruction::Configure { from: 13000 }),
            // tilerelease
            (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Instruction::Release),
            // tilezero tmm3
            (&[0xc4, 0xe2, 0x7b, 0x49, 0xd8], Instruction::Zero { tile: 3 }),
            // tileloadd tmm6, [rcx + rdx + 4096]
            (
                &[0xc4, 0xe2, 0x7b, 0x4b, 0xb4, 0x11, 0x00, 0x10, 0x00, 0x00],
                Instruction::Load { tile: 6, from: 5096, stride: 2000 },
            ),
            // tileloadd tmm4, [r9 + 2 r10]
            (&[0xc4, 0x82, 0x7b, 0x4b, 0x24, 0x51], Instruction::Load { tile: 4, from: 9000, stride: 20000 }),
            // tilestored [rsi + rdi + 64], tmm1
            (&[0xc4, 0xe2, 0x7a, 0x4b, 0x4c, 0x3e, 0x40], Instruction::Store { tile: 1, to: 6064, stride: 7000 }),
            // tdpbf16ps tmm2, tmm5, tmm6
            (&[0xc4, 0xe2, 0x4a, 0x5c, 0xd5], Instruction::Multiply { sums: 2, a: 5, b: 6 }),
        ];
        for (bytes, expected) in cases {
            let mut code = [0u8; 16];
            code[..bytes.len()].copy_from_slice(bytes);
            let mut registers = [0; 23];
            for (number, &register) in GENERAL.iter().enumerate() {
                registers[register as usize] = 1000 * number as i64;
            }
            registers[libc::REG_RIP as usize] = code.as_ptr() as i64;
            // SAFETY: an instruction is there, padded to the length of the longest.
            let found = unsafe { Instruction::decode(&registers) };
            assert_eq!(found, Some((expected, bytes.len())), "{bytes:x?}");
        }
    }
}
