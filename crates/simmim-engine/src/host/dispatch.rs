//! Run-time choice of the instruction set.
//!
//! A kernel is written once, as plain code over chunks that the compiler can vectorise, and compiled for each instruction set by
//! [`vectorised!`]. An [`Isa`] can only be made by asking the processor, so holding one proves that its code may run.

#![allow(unsafe_code, reason = "calls of functions compiled for instruction sets that an Isa proves to be there")]

/// Instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(simmim_amx), allow(dead_code, reason = "other processors and systems make fewer of them"))]
pub(crate) enum IsaKind {
    /// AVX-512 and, for large products, tile registers.
    Amx(TileRegisters),
    /// AVX-512 with products of bfloat16.
    Avx512Bf16,
    /// AVX-512 (F, VL, BW, DQ) with FMA.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// What the target guarantees.
    Portable,
}

/// Proof that the processor has tile registers for bfloat16 (AMX) and AVX-512 with BF16, and that the process may use them. In tests of this
/// crate they may be emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TileRegisters(Proof);

#[cfg(simmim_amx)]
type Proof = ();
#[cfg(not(simmim_amx))]
type Proof = std::convert::Infallible;

#[cfg(not(simmim_amx))]
impl TileRegisters {
    /// Anything follows from a proof that cannot exist.
    pub(crate) fn absurd<T>(self) -> T {
        match self.0 {}
    }
}

#[cfg(simmim_amx)]
impl TileRegisters {
    /// Asks the processor, and the system for permission, once.
    fn native() -> Option<Self> {
        use std::sync::OnceLock;
        static ANSWER: OnceLock<bool> = OnceLock::new();
        let there = *ANSWER.get_or_init(|| has_avx512_bf16() && has_tiles() && tile_data_permitted());
        there.then_some(Self(()))
    }

    /// Those of the processor, or emulated ones.
    #[cfg(test)]
    pub(crate) fn ask() -> Option<Self> {
        Self::native().or_else(Self::emulated)
    }

    /// Emulated ones, where the processor has none but all else that the kernels need.
    #[cfg(test)]
    fn emulated() -> Option<Self> {
        let wanted = Self::native().is_none() && has_avx512_bf16();
        (wanted && super::tile_emulator::install()).then_some(Self(()))
    }
}

/// Whether the processor has the instructions of the AVX-512 kernels.
#[cfg(simmim_x86)]
fn has_avx512() -> bool {
    has_avx2()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
}

/// Whether it also multiplies bfloat16.
#[cfg(simmim_x86)]
fn has_avx512_bf16() -> bool {
    has_avx512() && std::is_x86_feature_detected!("avx512bf16")
}

/// Whether the processor has the instructions of the AVX2 kernels.
#[cfg(simmim_x86)]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

/// Leaf 7, EDX: bit 22 is AMX-BF16, bit 24 AMX-TILE (Intel, "Software Developer's Manual", volume 2, CPUID).
#[cfg(simmim_amx)]
fn has_tiles() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24;
    #[allow(unused_unsafe, reason = "asking the processor is safe from Rust 1.94 on")]
    // SAFETY: processors with AVX-512, which was asked for before, have the instruction and the leaf.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(7, 0) };
    leaf.edx & BITS == BITS
}

/// Asks the system to save tile registers for the threads of this process, which it does on request only.
#[cfg(simmim_amx)]
fn tile_data_permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` and `XFEATURE_XTILEDATA` of Linux, Documentation/arch/x86/xstate.rst.
    const REQUEST: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory; where it is unknown it fails.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

/// An instruction set that this processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(IsaKind);

impl Isa {
    /// The widest one here, or the one that the environment names ([`Isa::VARIABLE`]) where the processor has it.
    #[must_use]
    pub fn detect() -> Self {
        Self::from_environment().unwrap_or(None).unwrap_or(Self::available()[0])
    }

    /// Name of the environment variable that chooses an instruction set.
    pub const VARIABLE: &str = "SIMMIM_ISA";

    /// The one that the environment names, if any; an empty name counts as none.
    ///
    /// # Errors
    /// The name, where the processor has no such instruction set.
    pub fn from_environment() -> Result<Option<Self>, String> {
        let Some(name) = std::env::var_os(Self::VARIABLE) else { return Ok(None) };
        let name = name.to_string_lossy();
        if name.trim().is_empty() {
            return Ok(None);
        }
        Self::named(&name).map(Some).ok_or_else(|| name.into_owned())
    }

    /// All that this processor has, widest first; `portable` is always among them.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(simmim_x86)]
        {
            if has_avx512() {
                #[cfg(simmim_amx)]
                found.extend(TileRegisters::native().map(|tiles| Self(IsaKind::Amx(tiles))));
                if has_avx512_bf16() {
                    found.push(Self(IsaKind::Avx512Bf16));
                }
                found.push(Self(IsaKind::Avx512));
            }
            if has_avx2() {
                found.push(Self(IsaKind::Avx2));
            }
        }
        found.push(Self(IsaKind::Portable));
        #[cfg(all(test, simmim_amx))]
        found.extend(TileRegisters::emulated().map(|tiles| Self(IsaKind::Amx(tiles))));
        found
    }

    /// The one of that name (`amx`, `avx512bf16`, `avx512`, `avx2`, `portable`; case does not count), if this processor has it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim()))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            IsaKind::Amx(_) => "amx",
            IsaKind::Avx512Bf16 => "avx512bf16",
            IsaKind::Avx512 => "avx512",
            IsaKind::Avx2 => "avx2",
            IsaKind::Portable => "portable",
        }
    }

    /// Whether there are instructions that multiply bfloat16, so that mixed precision is faster than floats.
    #[must_use]
    pub fn multiplies_bf16(self) -> bool {
        match self.0 {
            IsaKind::Amx(_) | IsaKind::Avx512Bf16 => true,
            IsaKind::Avx512 | IsaKind::Avx2 | IsaKind::Portable => false,
        }
    }

    pub(crate) fn kind(self) -> IsaKind {
        self.0
    }
}

/// `a * b + c`, fused where `FMA` says that the instruction is there (the portable library function would be slow).
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles a function for every instruction set and adds an [`Isa`] as its first parameter, by which it is chosen.
/// The body sees a constant (named first in the angle brackets) that tells whether fused multiply-add is there.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$fma:ident $(, $generic:ident: $bound:path)*>($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes its tensors one by one")]
        #[allow(unsafe_code, reason = "calls code compiled for an instruction set that the Isa proves to be there")]
        $vis fn $name<$($generic: $bound),*>(isa: $crate::host::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its tensors one by one")]
            fn body<const $fma: bool, $($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(simmim_x86)]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its tensors one by one")]
            fn avx512<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? { body::<true, $($generic),*>($($arg),*) }
            #[cfg(simmim_x86)]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "a kernel takes its tensors one by one")]
            fn avx2<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? { body::<true, $($generic),*>($($arg),*) }
            match isa.kind() {
                #[cfg(simmim_x86)]
                $crate::host::dispatch::IsaKind::Amx(_)
                | $crate::host::dispatch::IsaKind::Avx512Bf16
                | $crate::host::dispatch::IsaKind::Avx512 => {
                    // SAFETY: an `Isa` of this kind exists only where the processor has these features.
                    unsafe { avx512::<$($generic),*>($($arg),*) }
                }
                #[cfg(simmim_x86)]
                $crate::host::dispatch::IsaKind::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2::<$($generic),*>($($arg),*) }
                }
                _ => body::<{ cfg!(target_arch = "aarch64") }, $($generic),*>($($arg),*),
            }
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn scaled_sum<FMA>(x: &[f32], scale: f32) -> f32 {
            x.iter().fold(0.0, |sum, &v| madd::<FMA>(v, scale, sum))
        }
    }

    #[test]
    fn every_instruction_set_runs_the_same_function() {
        for isa in Isa::available() {
            assert_eq!(scaled_sum(isa, &[1.0, 2.0, 3.0], 2.0), 12.0, "{}", isa.name());
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("sse9"), None);
    }

    #[test]
    #[cfg(simmim_amx)]
    fn tiles_are_tried_wherever_their_other_instructions_are() {
        assert_eq!(Isa::named("amx").is_some(), has_avx512_bf16());
        assert_eq!(Isa::detect().name() == "amx", has_tiles() && has_avx512_bf16() && tile_data_permitted());
    }
}
