//! Vector registers of the instruction sets, under one trait.

#![allow(unsafe_code, reason = "vector instructions, which the caller knows to be there")]

/// Registers of an instruction set. Every method may only be called where the instruction set is there, and pointers must be
/// valid for [`Simd::LANES`] floats.
pub(super) trait Simd {
    /// A vector register.
    type V: Copy;
    /// Floats in it.
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: *const f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `lanes` floats, and zeros; reads nothing beyond them.
    unsafe fn load_part(from: *const f32, lanes: usize) -> Self::V;
    /// Writes the first `lanes` floats.
    unsafe fn store_part(to: *mut f32, v: Self::V, lanes: usize);
    /// `a b + c`.
    unsafe fn madd(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Of each word, the number in its lower half as a float.
    unsafe fn low(words: Self::V) -> Self::V;
    /// Of each word, the number in its upper half as a float.
    unsafe fn high(words: Self::V) -> Self::V;
}

/// What is added to a sum for two words. Every method may only be called where its instructions are.
pub(super) trait Terms<S: Simd> {
    unsafe fn add(a: S::V, b: S::V, sum: S::V) -> S::V;
}

/// Words are floats.
pub(super) struct Floats;

impl<S: Simd> Terms<S> for Floats {
    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller's obligations.
        unsafe { S::madd(a, b, sum) }
    }
}

/// Words are pairs of bfloat16, widened to floats. The upper product is added first, as the instruction does it.
pub(super) struct Pairs;

impl<S: Simd> Terms<S> for Pairs {
    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the caller's obligations.
        unsafe { S::madd(S::low(a), S::low(b), S::madd(S::high(a), S::high(b), sum)) }
    }
}

/// Words are pairs of bfloat16, for which there is an instruction. It takes subnormal numbers as zeros.
#[cfg(simmim_x86)]
pub(super) struct NativePairs;

#[cfg(simmim_x86)]
impl Terms<Avx512> for NativePairs {
    #[inline(always)]
    unsafe fn add(
        a: std::arch::x86_64::__m512,
        b: std::arch::x86_64::__m512,
        sum: std::arch::x86_64::__m512,
    ) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps};
        // SAFETY: the caller's obligations; both types are 512 bits.
        unsafe {
            let [a, b] = [a, b].map(|words| std::mem::transmute::<std::arch::x86_64::__m512, __m512bh>(words));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
}

macro_rules! x86 {
    ($name:ident, $v:ident, $lanes:literal, $zero:ident, $splat:ident, $load:ident, $store:ident, $madd:ident, $add:ident,
     $mask:ident, $load_part:ident, $store_part:ident, $low:ident, $high:ident) => {
        #[cfg(simmim_x86)]
        pub(super) struct $name;

        #[cfg(simmim_x86)]
        // SAFETY (of each block): the caller's obligations are those of the trait.
        impl Simd for $name {
            type V = std::arch::x86_64::$v;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn zero() -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$zero() }
            }
            #[inline(always)]
            unsafe fn splat(x: *const f32) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$splat(x.read_unaligned()) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, v: Self::V) {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$store(to, v) }
            }
            #[inline(always)]
            unsafe fn load_part(from: *const f32, lanes: usize) -> Self::V {
                // SAFETY: see above; lanes that the mask leaves out are not read.
                unsafe { $load_part(from, $mask(lanes)) }
            }
            #[inline(always)]
            unsafe fn store_part(to: *mut f32, v: Self::V, lanes: usize) {
                // SAFETY: see above; lanes that the mask leaves out are not written.
                unsafe { $store_part(to, $mask(lanes), v) }
            }
            #[inline(always)]
            unsafe fn madd(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$madd(a, b, c) }
            }
            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { std::arch::x86_64::$add(a, b) }
            }
            #[inline(always)]
            unsafe fn low(words: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { $low(words) }
            }
            #[inline(always)]
            unsafe fn high(words: Self::V) -> Self::V {
                // SAFETY: see above.
                unsafe { $high(words) }
            }
        }
    };
}

x86! { Avx512, __m512, 16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps,
mask16, load16, store16, low16, high16 }
x86! { Avx2, __m256, 8, _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps,
mask8, load8, store8, low8, high8 }

#[cfg(simmim_x86)]
mod masked {
    //! Masked loads and stores under one signature.
    use std::arch::x86_64::*;

    #[inline(always)]
    pub(super) fn mask16(lanes: usize) -> __mmask16 {
        ((1u32 << lanes) - 1) as __mmask16
    }

    /// # Safety
    /// (1) The processor has AVX-512. (2) The masked floats are there.
    #[inline(always)]
    pub(super) unsafe fn load16(from: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: the caller's obligations.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }

    /// # Safety
    /// (1) The processor has AVX-512. (2) The masked floats are there.
    #[inline(always)]
    pub(super) unsafe fn store16(to: *mut f32, mask: __mmask16, v: __m512) {
        // SAFETY: the caller's obligations.
        unsafe { _mm512_mask_storeu_ps(to, mask, v) }
    }

    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    pub(super) unsafe fn low16(words: __m512) -> __m512 {
        // SAFETY: the caller's obligation.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(words))) }
    }

    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    pub(super) unsafe fn high16(words: __m512) -> __m512 {
        // SAFETY: the caller's obligation.
        unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), upper))
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    pub(super) unsafe fn low8(words: __m256) -> __m256 {
        // SAFETY: the caller's obligation.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(words))) }
    }

    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    pub(super) unsafe fn high8(words: __m256) -> __m256 {
        // SAFETY: the caller's obligation.
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(words), upper))
        }
    }

    /// A window over this array has its first `lanes` elements set.
    const LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    /// # Safety
    /// (1) The processor has AVX2. (2) `lanes` is at most 8.
    #[inline(always)]
    pub(super) unsafe fn mask8(lanes: usize) -> __m256i {
        // SAFETY: the window lies in the array.
        unsafe { _mm256_loadu_si256(LANES.as_ptr().add(8 - lanes).cast()) }
    }

    /// # Safety
    /// (1) The processor has AVX2. (2) The masked floats are there.
    #[inline(always)]
    pub(super) unsafe fn load8(from: *const f32, mask: __m256i) -> __m256 {
        // SAFETY: the caller's obligations.
        unsafe { _mm256_maskload_ps(from, mask) }
    }

    /// # Safety
    /// (1) The processor has AVX2. (2) The masked floats are there.
    #[inline(always)]
    pub(super) unsafe fn store8(to: *mut f32, mask: __m256i, v: __m256) {
        // SAFETY: the caller's obligations.
        unsafe { _mm256_maskstore_ps(to, mask, v) }
    }
}
#[cfg(simmim_x86)]
use masked::{high8, high16, load8, load16, low8, low16, mask8, mask16, store8, store16};

/// What every target can do: plain code over eight floats, which the compiler spreads over the registers there are.
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: *const f32) -> Self::V {
        // SAFETY: the trait's obligation.
        [unsafe { x.read_unaligned() }; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the trait's obligation.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the trait's obligation.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, lanes: usize) -> Self::V {
        let mut v = [0.0; 8];
        // SAFETY: the trait's obligation.
        v[..lanes].copy_from_slice(unsafe { std::slice::from_raw_parts(from, lanes) });
        v
    }
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, v: Self::V, lanes: usize) {
        // SAFETY: the trait's obligation.
        unsafe { std::slice::from_raw_parts_mut(to, lanes) }.copy_from_slice(&v[..lanes]);
    }
    #[inline(always)]
    unsafe fn madd(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        const FMA: bool = cfg!(target_arch = "aarch64");
        std::array::from_fn(|i| crate::host::dispatch::madd::<FMA>(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn low(words: Self::V) -> Self::V {
        words.map(|word| f32::from_bits(word.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn high(words: Self::V) -> Self::V {
        words.map(|word| f32::from_bits(word.to_bits() & 0xffff_0000))
    }
}
