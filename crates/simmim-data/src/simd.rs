//! Run-time choice of the instruction set for the loops over pixels, as `simmim-engine` does it for its kernels (the two
//! crates do not know each other).

#![allow(unsafe_code, reason = "calls of functions compiled for instruction sets that an Isa proves to be there")]

/// An instruction set that this processor has. Only [`Isa::detect`] makes one that is wider than portable, so holding one
/// proves that its code may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa {
    avx2: bool,
}

impl Isa {
    /// What every processor of the target has.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests compare it with the detected one"))]
    pub(crate) const PORTABLE: Self = Self { avx2: false };

    /// The widest one here: AVX2 with BMI or what the target guarantees.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("bmi1")
                && std::is_x86_feature_detected!("bmi2")
                && std::is_x86_feature_detected!("lzcnt");
            Self { avx2 }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self { avx2: false }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        self.avx2
    }
}

impl Default for Isa {
    fn default() -> Self {
        Self::detect()
    }
}

/// Compiles a function for AVX2 and for the target's own instructions, and adds an [`Isa`] as its first parameter, by
/// which it is chosen. The body sees a constant (named in the angle brackets) that tells whether AVX2 is there.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$avx2:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, reason = "calls code compiled for an instruction set that the Isa proves to be there")]
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters, reason = "not every body asks for the instruction set")]
            fn body<const $avx2: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx2() {
                // SAFETY: an `Isa` with AVX2 exists only where the processor has these features.
                return unsafe { avx2($($arg),*) };
            }
            let _ = isa;
            body::<false>($($arg),*)
        }
    };
}
pub(crate) use vectorised;
