//! How numbers lie in packed panels: as they are, or as pairs of bfloat16.

use super::tile::{Native, Tiles, bf16_tiles};
use crate::host::Real;
use crate::simd::Isa;

/// The packing of numbers of type `T` into the units that a tile multiplies.
pub(crate) trait Format<T>: Copy + Send + Sync {
    /// What a tile reads at once.
    type Unit: Copy + Send + Sync + Default + 'static;
    /// Numbers in a unit.
    const PER_UNIT: usize;
    /// Panels that a number is split into.
    const PLANES: usize;
    /// The products that make up one product of numbers: (panel of the one, panel of the other).
    const PRODUCTS: &'static [(usize, usize)];

    /// The unit of one or two numbers in a panel.
    fn unit(first: T, second: T, plane: usize) -> Self::Unit;
    /// The tiles for it.
    fn tiles(self) -> &'static Tiles<Self::Unit, T>;
}

/// Numbers as they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain(pub(crate) Isa);

impl<T: Real + Native + Default> Format<T> for Plain {
    type Unit = T;
    const PER_UNIT: usize = 1;
    const PLANES: usize = 1;
    const PRODUCTS: &'static [(usize, usize)] = &[(0, 0)];

    #[inline(always)]
    fn unit(first: T, _: T, _: usize) -> T {
        first
    }

    fn tiles(self) -> &'static Tiles<T, T> {
        T::tiles(self.0)
    }
}

/// `f32` rounded to bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(&'static Tiles<u32, f32>);

impl Bf16 {
    /// `None` where the processor has no such products.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        bf16_tiles(isa).map(Self)
    }
}

impl Format<f32> for Bf16 {
    type Unit = u32;
    const PER_UNIT: usize = 2;
    const PLANES: usize = 1;
    const PRODUCTS: &'static [(usize, usize)] = &[(0, 0)];

    #[inline(always)]
    fn unit(first: f32, second: f32, _: usize) -> u32 {
        pair(first, second)
    }

    fn tiles(self) -> &'static Tiles<u32, f32> {
        self.0
    }
}

/// `f32` split into the sum of two bfloat16; the product of the two small parts is left out.
#[derive(Clone, Copy)]
pub(crate) struct Bf16x3(&'static Tiles<u32, f32>);

impl Bf16x3 {
    /// `None` where the processor has no such products.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        bf16_tiles(isa).map(Self)
    }
}

impl Format<f32> for Bf16x3 {
    type Unit = u32;
    const PER_UNIT: usize = 2;
    const PLANES: usize = 2;
    const PRODUCTS: &'static [(usize, usize)] = &[(1, 0), (0, 1), (0, 0)];

    #[inline(always)]
    fn unit(first: f32, second: f32, plane: usize) -> u32 {
        if plane == 0 { pair(first, second) } else { pair(first - rounded(first), second - rounded(second)) }
    }

    fn tiles(self) -> &'static Tiles<u32, f32> {
        self.0
    }
}

/// The bits of the nearest bfloat16, ties to even, in the upper half; infinities and NaN stay what they are.
#[inline(always)]
fn upper(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // Rounding must not carry a NaN over into infinity or zero.
    (if x.is_nan() { bits | 0x0040_0000 } else { nearest }) & 0xffff_0000
}

#[inline(always)]
fn rounded(x: f32) -> f32 {
    f32::from_bits(upper(x))
}

#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    (upper(first) >> 16) | upper(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        // Steps of 1/128 above one: a half and three halves of it are ties.
        let step = 2f32.powi(-7);
        for (x, expected) in
            [(1.0, 1.0), (1.0 + step / 2.0, 1.0), (1.0 + 1.5 * step, 1.0 + 2.0 * step), (-1.005, -1.0 - step)]
        {
            assert_eq!(rounded(x), expected, "{x}");
        }
        assert!(rounded(f32::NAN).is_nan() && rounded(f32::from_bits(0x7f80_0001)).is_nan());
        assert_eq!(rounded(f32::INFINITY), f32::INFINITY);
        assert_eq!(pair(1.0, -2.0), 0xc000_3f80);
        // A sum of two: what is left is below 2^-16 of the number.
        let x = 1.234_567_8f32;
        let rest = x - rounded(x);
        assert!(((x - rounded(x)) - rounded(rest)).abs() < x * 2f32.powi(-16));
    }
}
