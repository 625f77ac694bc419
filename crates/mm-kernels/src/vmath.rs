//! Exponentials and their kin over vectors of floats.
//!
//! In `f64` they are those of the standard library, one number at a time. In `f32` they are polynomials over whole
//! registers, and a rest that fills none is computed in one too: a number's result does not depend on its place.
//!
//! Errors in `f32`, of all finite arguments (`tests` below): `exp` 2e-7 relative, `tanh` 3e-7 relative, `normal_cdf` 3e-7
//! absolute and 1e-5 relative down to -8; results of `exp` below 1e-37 within one denormal step. NaN stays NaN.
//!
//! Sources: the reduction of Cody and Waite with the polynomials of Cephes (Moshier) for `exp` and `tanh`; for
//! `normal_cdf` the fit of the complementary error function of Numerical Recipes, section 6.2.
#![allow(unsafe_code)] // vectors, and raw pointers to the numbers that they are made of
#![allow(clippy::excessive_precision)] // coefficients as their sources print them

use crate::rowwise::{Floats, One};
use crate::scratch::{self, Bytes, Shared};
use crate::simd::Isa;
use rayon::prelude::*;

/// Numbers that one task works on.
const PIECE: usize = 1 << 13;

/// A vector with what activations are made of.
pub(crate) trait Math<T>: Floats<T> {
    /// x in every lane.
    unsafe fn of(x: f64) -> Self;
    /// self * b.
    unsafe fn mul(self, b: Self) -> Self;
    /// self / b.
    unsafe fn div(self, b: Self) -> Self;
    /// |self|.
    unsafe fn abs(self) -> Self;
    /// e^self.
    unsafe fn exp(self) -> Self;
    /// The normal distribution function, (1 + erf(x / sqrt 2)) / 2.
    unsafe fn normal_cdf(self) -> Self;
    /// The hyperbolic tangent.
    unsafe fn tanh(self) -> Self;
}

impl Math<f64> for One<f64> {
    // SAFETY of all: nothing unsafe is done.
    #[inline(always)]
    unsafe fn of(x: f64) -> Self {
        Self(x)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(self.0 * b.0)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(self.0 / b.0)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(self.0.abs())
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Self(self.0.exp())
    }
    #[inline(always)]
    unsafe fn normal_cdf(self) -> Self {
        Self(0.5 + 0.5 * candle_core::cpu::erf::erf_f64(self.0 * std::f64::consts::FRAC_1_SQRT_2))
    }
    #[inline(always)]
    unsafe fn tanh(self) -> Self {
        Self(self.0.tanh())
    }
}

/// What the polynomials need of a vector of `f32`.
trait Single: Floats<f32> {
    unsafe fn times(self, b: Self) -> Self;
    unsafe fn over(self, b: Self) -> Self;
    /// The larger one; NaN if self is.
    unsafe fn at_least(self, low: Self) -> Self;
    /// The smaller one; NaN if self is.
    unsafe fn at_most(self, high: Self) -> Self;
    /// The nearest integer.
    unsafe fn round(self) -> Self;
    /// self * 2^n for an integer n in [-260, 260].
    unsafe fn scale(self, n: Self) -> Self;
}

#[inline(always)]
unsafe fn polynomial<V: Single>(x: V, coefficients: &[f32]) -> V {
    // SAFETY: the instruction set of V is there.
    unsafe {
        let mut sum = V::zero();
        for &c in coefficients {
            sum = sum.mul_add(x, V::splat(c));
        }
        sum
    }
}

#[inline(always)]
unsafe fn exp<V: Single>(x: V) -> V {
    // SAFETY: the instruction set of V is there.
    unsafe {
        let x = x.at_least(V::splat(-104.0)).at_most(V::splat(89.0));
        let n = x.times(V::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, of which the first times an integer is exact.
        let r = n.mul_add(V::splat(-0.693_359_4), x);
        let r = n.mul_add(V::splat(2.121_944_4e-4), r);
        let p = polynomial(
            r,
            &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.000_000_1e-1],
        );
        p.mul_add(r.times(r), r.add(V::splat(1.0))).scale(n)
    }
}

#[inline(always)]
unsafe fn tanh<V: Single>(x: V) -> V {
    // SAFETY: the instruction set of V is there.
    unsafe {
        let size = x.at_least(V::zero().sub(x));
        let e = exp(size.add(size));
        let large = V::splat(1.0).sub(V::splat(2.0).over(e.add(V::splat(1.0))));
        let negative = V::zero().sub(large);
        let large = large.unless_at_most(negative, x, V::zero());
        let square = x.times(x);
        let p = polynomial(
            square,
            &[-5.704_988_7e-3, 2.063_908_9e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1],
        );
        let small = p.times(square).mul_add(x, x);
        large.unless_at_most(small, size, V::splat(0.625))
    }
}

/// Half the complementary error function of |x| / sqrt 2, and its reflection for positive x: no digits cancel in the
/// lower tail.
#[inline(always)]
unsafe fn normal_cdf<V: Single>(x: V) -> V {
    // SAFETY: the instruction set of V is there.
    unsafe {
        let z = x.at_least(V::zero().sub(x)).times(V::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = V::splat(1.0).over(z.mul_add(V::splat(0.5), V::splat(1.0)));
        let p = polynomial(
            t,
            &[
                0.170_872_77,
                -0.822_152_23,
                1.488_515_9,
                -1.135_204,
                0.278_868_07,
                -0.186_288_06,
                0.096_784_18,
                0.374_091_96,
                1.000_023_7,
                -1.265_512_2,
            ],
        );
        let tail = t.times(V::splat(0.5)).times(exp(V::zero().sub(z).mul_add(z, p)));
        V::splat(1.0).sub(tail).unless_at_most(tail, x, V::zero())
    }
}

macro_rules! math {
    ($vector:ty) => {
        impl Math<f32> for $vector {
            // SAFETY of all: the instruction set of the vector is there.
            #[inline(always)]
            unsafe fn of(x: f64) -> Self {
                unsafe { Self::splat(x as f32) }
            }
            #[inline(always)]
            unsafe fn mul(self, b: Self) -> Self {
                unsafe { self.times(b) }
            }
            #[inline(always)]
            unsafe fn div(self, b: Self) -> Self {
                unsafe { self.over(b) }
            }
            #[inline(always)]
            unsafe fn abs(self) -> Self {
                unsafe { self.at_least(Self::zero().sub(self)) }
            }
            #[inline(always)]
            unsafe fn exp(self) -> Self {
                unsafe { exp(self) }
            }
            #[inline(always)]
            unsafe fn normal_cdf(self) -> Self {
                unsafe { normal_cdf(self) }
            }
            #[inline(always)]
            unsafe fn tanh(self) -> Self {
                unsafe { tanh(self) }
            }
        }
    };
}
math!(One<f32>);

/// 2^n for an integer n in [-126, 127].
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

impl Single for One<f32> {
    // SAFETY of all: nothing unsafe is done.
    #[inline(always)]
    unsafe fn times(self, b: Self) -> Self {
        Self(self.0 * b.0)
    }
    #[inline(always)]
    unsafe fn over(self, b: Self) -> Self {
        Self(self.0 / b.0)
    }
    #[inline(always)]
    unsafe fn at_least(self, low: Self) -> Self {
        Self(if self.0 < low.0 { low.0 } else { self.0 })
    }
    #[inline(always)]
    unsafe fn at_most(self, high: Self) -> Self {
        Self(if self.0 > high.0 { high.0 } else { self.0 })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        // In two steps: 2^n alone may be no float where the product is one.
        let n = n.0 as i32;
        Self(self.0 * power(n >> 1) * power(n - (n >> 1)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Math, Single, exp, normal_cdf, tanh};
    use crate::rowwise::{
        Floats,
        x86::{Avx2F32, Avx512F32},
    };
    #[allow(clippy::wildcard_imports)] // of intrinsics
    use std::arch::x86_64::*;

    math!(Avx512F32);
    math!(Avx2F32);

    impl Single for Avx512F32 {
        // SAFETY of all: the caller runs with the instruction set enabled. Where one operand is NaN, the result is the
        // second.
        #[inline(always)]
        unsafe fn times(self, b: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn over(self, b: Self) -> Self {
            Self(unsafe { _mm512_div_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            Self(unsafe { _mm512_max_ps(low.0, self.0) })
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            Self(unsafe { _mm512_min_ps(high.0, self.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            Self(unsafe { _mm512_roundscale_ps::<0x08>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
    }

    impl Single for Avx2F32 {
        // SAFETY of all: as above.
        #[inline(always)]
        unsafe fn times(self, b: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn over(self, b: Self) -> Self {
            Self(unsafe { _mm256_div_ps(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            Self(unsafe { _mm256_max_ps(low.0, self.0) })
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            Self(unsafe { _mm256_min_ps(high.0, self.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            Self(unsafe { _mm256_round_ps::<0x08>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            unsafe {
                let n = _mm256_cvtps_epi32(n.0);
                let half = _mm256_srai_epi32::<1>(n);
                let power = |n: __m256i| {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
                };
                let once = _mm256_mul_ps(self.0, power(half));
                Self(_mm256_mul_ps(once, power(_mm256_sub_epi32(n, half))))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Math, Single, exp, normal_cdf, tanh};
    use crate::rowwise::{Floats, arm::NeonF32};
    #[allow(clippy::wildcard_imports)] // of intrinsics
    use std::arch::aarch64::*;

    math!(NeonF32);

    impl Single for NeonF32 {
        // SAFETY of all: the caller runs with the instruction set enabled. NaN of either operand is kept.
        #[inline(always)]
        unsafe fn times(self, b: Self) -> Self {
            Self(unsafe { vmulq_f32(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn over(self, b: Self) -> Self {
            Self(unsafe { vdivq_f32(self.0, b.0) })
        }
        #[inline(always)]
        unsafe fn at_least(self, low: Self) -> Self {
            Self(unsafe { vmaxq_f32(low.0, self.0) })
        }
        #[inline(always)]
        unsafe fn at_most(self, high: Self) -> Self {
            Self(unsafe { vminq_f32(high.0, self.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            Self(unsafe { vrndnq_f32(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            unsafe {
                let n = vcvtnq_s32_f32(n.0);
                let half = vshrq_n_s32::<1>(n);
                let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
                Self(vmulq_f32(vmulq_f32(self.0, power(half)), power(vsubq_s32(n, half))))
            }
        }
    }
}

/// A function of vectors: `K` arguments, one result.
pub(crate) trait Map<T, const K: usize> {
    /// The result for one vector of each argument.
    ///
    /// # Safety
    /// The instruction set of V is there.
    unsafe fn call<V: Math<T>>(&self, x: [V; K]) -> V;
}

/// Numbers over which a [`Map`] runs.
pub(crate) trait Mapped: Bytes + Default + Send + Sync {
    /// Applies the function to `len` numbers from each pointer on.
    ///
    /// # Safety
    /// Every pointer is valid for `len` numbers, `y` for writes; an argument is `y` itself, or does not overlap it.
    unsafe fn run<const K: usize>(
        isa: Isa,
        x: [*const Self; K],
        len: usize,
        y: *mut Self,
        f: &impl Map<Self, K>,
    ) where
        Self: Sized;
}

#[inline(always)]
unsafe fn lanes<T: Copy + Default, V: Math<T>, const K: usize>(
    x: [*const T; K],
    len: usize,
    y: *mut T,
    f: &impl Map<T, K>,
) {
    // SAFETY: whole vectors end within `len`; the rest is copied to and from room for one vector.
    unsafe {
        let mut at = 0;
        while at + V::LANES <= len {
            f.call::<V>(x.map(|x| V::load(x.add(at)))).store(y.add(at));
            at += V::LANES;
        }
        if at < len {
            let mut room = [T::default(); 16];
            let rest = x.map(|x| {
                std::ptr::copy_nonoverlapping(x.add(at), room.as_mut_ptr(), len - at);
                V::load(room.as_ptr())
            });
            f.call::<V>(rest).store(room.as_mut_ptr());
            std::ptr::copy_nonoverlapping(room.as_ptr(), y.add(at), len - at);
        }
    }
}

impl Mapped for f64 {
    unsafe fn run<const K: usize>(_: Isa, x: [*const f64; K], len: usize, y: *mut f64, f: &impl Map<f64, K>) {
        // SAFETY: passed on.
        unsafe { lanes::<f64, One<f64>, K>(x, len, y, f) }
    }
}

impl Mapped for f32 {
    unsafe fn run<const K: usize>(
        isa: Isa,
        x: [*const f32; K],
        len: usize,
        y: *mut f32,
        f: &impl Map<f32, K>,
    ) {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::rowwise::x86::{Avx2F32, Avx512F32};
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512<const K: usize>(
                x: [*const f32; K],
                len: usize,
                y: *mut f32,
                f: &impl Map<f32, K>,
            ) {
                // SAFETY: passed on.
                unsafe { lanes::<f32, Avx512F32, K>(x, len, y, f) }
            }
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<const K: usize>(
                x: [*const f32; K],
                len: usize,
                y: *mut f32,
                f: &impl Map<f32, K>,
            ) {
                // SAFETY: passed on.
                unsafe { lanes::<f32, Avx2F32, K>(x, len, y, f) }
            }
            match isa {
                // SAFETY: `Isa` is only made of what the processor has; the rest is passed on.
                Isa::Avx512 { .. } => return unsafe { avx512(x, len, y, f) },
                // SAFETY: as above.
                Isa::Avx2 => return unsafe { avx2(x, len, y, f) },
                Isa::Portable => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        if isa == Isa::Neon {
            #[target_feature(enable = "neon")]
            unsafe fn neon<const K: usize>(
                x: [*const f32; K],
                len: usize,
                y: *mut f32,
                f: &impl Map<f32, K>,
            ) {
                // SAFETY: passed on.
                unsafe { lanes::<f32, crate::rowwise::arm::NeonF32, K>(x, len, y, f) }
            }
            // SAFETY: as above.
            return unsafe { neon(x, len, y, f) };
        }
        let _ = isa;
        // SAFETY: passed on.
        unsafe { lanes::<f32, One<f32>, K>(x, len, y, f) }
    }
}

/// The function of every number of the arguments into room for them, on this thread.
pub(crate) fn each<T: Mapped, const K: usize>(isa: Isa, x: [&[T]; K], y: &mut [T], f: &impl Map<T, K>) {
    assert!(x.iter().all(|x| x.len() == y.len()), "arguments of one length");
    // SAFETY: all have the length of y, which is borrowed mutably.
    unsafe { T::run(isa, x.map(<[T]>::as_ptr), y.len(), y.as_mut_ptr(), f) }
}

/// The function of every number in its place, on this thread.
pub(crate) fn in_place<T: Mapped>(isa: Isa, y: &mut [T], f: &impl Map<T, 1>) {
    let p = y.as_mut_ptr();
    // SAFETY: both pointers are those of y, which is borrowed mutably.
    unsafe { T::run(isa, [p.cast_const()], y.len(), p, f) }
}

/// y = f(x, y), on this thread.
pub(crate) fn in_place2<T: Mapped>(isa: Isa, x: &[T], y: &mut [T], f: &impl Map<T, 2>) {
    assert_eq!(x.len(), y.len(), "arguments of one length");
    let p = y.as_mut_ptr();
    // SAFETY: both have the length of y, which is borrowed mutably.
    unsafe { T::run(isa, [x.as_ptr(), p.cast_const()], y.len(), p, f) }
}

/// The function of every number of the arguments, which have one length, on several threads where that pays.
pub(crate) fn map<T: Mapped, const K: usize>(isa: Isa, x: [&[T]; K], f: &(impl Map<T, K> + Sync)) -> Vec<T> {
    let len = x[0].len();
    assert!(x.iter().all(|x| x.len() == len), "arguments of one length");
    let fill = |y: *mut T| {
        let y = Shared::new(y);
        let piece = |k: usize| {
            let at = k * PIECE;
            // SAFETY: each piece lies within all arguments, and its results belong to one call.
            unsafe { T::run(isa, x.map(|x| x.as_ptr().add(at)), PIECE.min(len - at), y.get().add(at), f) }
        };
        if len <= 2 * PIECE {
            (0..len.div_ceil(PIECE)).for_each(piece);
        } else {
            (0..len.div_ceil(PIECE)).into_par_iter().for_each(piece);
        }
    };
    // SAFETY: the pieces are all of it.
    unsafe { scratch::filled(len, fill) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp;
    struct Cdf;
    struct Tanh;
    macro_rules! function {
        ($name:ident, $method:ident) => {
            impl Map<f32, 1> for $name {
                unsafe fn call<V: Math<f32>>(&self, [x]: [V; 1]) -> V {
                    // SAFETY: passed on.
                    unsafe { x.$method() }
                }
            }
        };
    }
    function!(Exp, exp);
    function!(Cdf, normal_cdf);
    function!(Tanh, tanh);

    /// Arguments of all sizes and signs, dense where the functions turn.
    fn arguments() -> Vec<f32> {
        let mut x: Vec<f32> = (-120_000..120_000).map(|k| k as f32 * 1e-3).collect();
        x.extend((0..254).flat_map(|e| [1.0, 1.3, -1.7].map(|m: f32| m * power(e - 126))));
        x.extend([0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY]);
        x
    }

    /// The complementary error function by its continued fraction, and near zero by the error function.
    fn erfc(x: f64) -> f64 {
        if x < 2.0 {
            return 1.0 - candle_core::cpu::erf::erf_f64(x);
        }
        let fraction = (1..200).rev().fold(x, |f, k| x + 0.5 * f64::from(k) / f);
        (-x * x).exp() / (fraction * std::f64::consts::PI.sqrt())
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn functions_are_exact_to_the_stated_error() {
        let x = arguments();
        for isa in Isa::available() {
            for (i, y) in map(isa, [&x], &Exp).into_iter().enumerate() {
                let expected = f64::from(x[i]).exp();
                let error = (f64::from(y) - expected).abs();
                let fits = if expected > f64::from(f32::MAX) {
                    y == f32::INFINITY || y > 3.4e38
                } else {
                    error <= 2e-7 * expected + 1.5e-45
                };
                assert!(fits, "{isa:?}: exp({}) is {y}, expected {expected}", x[i]);
            }
            for (i, y) in map(isa, [&x], &Tanh).into_iter().enumerate() {
                let expected = f64::from(x[i]).tanh();
                assert!(
                    (f64::from(y) - expected).abs() <= 3e-7 * expected.abs(),
                    "{isa:?}: tanh({}) is {y}, expected {expected}",
                    x[i]
                );
            }
            for (i, y) in map(isa, [&x], &Cdf).into_iter().enumerate() {
                let z = f64::from(x[i]);
                let expected = 0.5 * erfc(-z * std::f64::consts::FRAC_1_SQRT_2);
                let error = (f64::from(y) - expected).abs();
                assert!(
                    error <= 3e-7 && (z < -8.0 || error <= 1e-5 * expected),
                    "{isa:?}: normal_cdf({z}) is {y}, expected {expected}"
                );
            }
            for nan in
                [map(isa, [&[f32::NAN]], &Exp), map(isa, [&[f32::NAN]], &Tanh), map(isa, [&[f32::NAN]], &Cdf)]
            {
                assert!(nan[0].is_nan(), "{isa:?}");
            }
        }
    }

    #[test]
    fn a_result_does_not_depend_on_its_place() {
        let x: Vec<f32> = (0..67).map(|k| k as f32 * 0.1 - 3.0).collect();
        for isa in Isa::available() {
            let all = map(isa, [&x], &Cdf);
            for (k, y) in all.iter().enumerate() {
                assert_eq!(map(isa, [&x[k..]], &Cdf)[0].to_bits(), y.to_bits());
            }
        }
    }
}
