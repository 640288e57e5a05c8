//! The sixteen-bit float of mixed precision.

/// The upper sixteen bits of a 32-bit float: its sign, its eight bits of exponent, and seven of its 23 bits of mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Bf16 {
    /// The nearest number; of two that are equally near, the one whose last bit is zero, as processors round. What is larger than
    /// the largest becomes infinite; NaN stays NaN.
    #[inline(always)]
    #[must_use]
    pub fn nearest(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // The carry of rounding could turn a NaN into an infinity or into zero.
        let nan = bits >> 16 | 0x40;
        Self((if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16)
    }

    /// The same number as a float.
    #[inline(always)]
    #[must_use]
    pub fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// The number of these bits.
    #[inline(always)]
    #[must_use]
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[inline(always)]
    #[must_use]
    pub fn to_bits(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_its_own_nearest() {
        for bits in 0..=u16::MAX {
            let number = Bf16::from_bits(bits);
            if number.value().is_nan() {
                assert!(Bf16::nearest(number.value()).value().is_nan(), "{bits:04x}");
            } else {
                assert_eq!(Bf16::nearest(number.value()), number, "{bits:04x}");
            }
        }
    }

    #[test]
    fn what_lies_between_two_numbers_goes_to_the_nearer_and_halves_to_the_even_one() {
        for low in (0..0x7f7f_u16).step_by(7).chain([0, 1, 0x7f, 0x80, 0x7f7e]) {
            let (a, b) = (u32::from(low) << 16, u32::from(low + 1) << 16);
            let even = if low & 1 == 0 { low } else { low + 1 };
            for (bits, expected) in [(a + 0x7fff, low), (a + 0x8000, even), (a + 0x8001, low + 1), (b, low + 1)] {
                for sign in [0, 1 << 31] {
                    let found = Bf16::nearest(f32::from_bits(bits | sign)).to_bits();
                    assert_eq!(found, expected | (sign >> 16) as u16, "{:08x}", bits | sign);
                }
            }
        }
        assert_eq!(Bf16::nearest(f32::MAX).value(), f32::INFINITY);
        assert_eq!(Bf16::nearest(f32::NEG_INFINITY).value(), f32::NEG_INFINITY);
        for bits in [0x7f80_0001u32, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            assert!(Bf16::nearest(f32::from_bits(bits)).value().is_nan(), "{bits:08x}");
        }
    }
}
