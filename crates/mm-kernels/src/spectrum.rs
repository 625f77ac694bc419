//! Power spectra of several frames of a signal at a time, and logarithms of them.
//!
//! ```text
//! P[k, t] = |sum_i w[i] x[t hop + i] exp(-2 pi j i k / n)|^2        k = 0 to n / 2
//! ln_magnitude: ln(sqrt(P) + eps)                                   ln_power: ln(P + eps)
//! ```
//!
//! Each lane of a vector holds another frame, so that no step of the transform moves numbers between lanes, and bins lie
//! behind each other with their frames side by side, which is how a spectrogram is laid out that has a row per bin. A
//! frame of n real numbers is a transform of n / 2 complex ones (its even and odd samples as real and imaginary parts)
//! by radix 4 in place, and one pass that takes the two apart.
//!
//! Shapes: `(lanes - 1) hop + n` samples become (n / 2 + 1, lanes).
//!
//! Errors: powers are in `f64`, to some 1e-15 of the largest of their frame. Logarithms are computed in `f32` wherever
//! that can hold the powers, to 5e-7 of 1 or of the result, whichever is larger; elsewhere in `f64`.
//!
//! Source: the logarithm's polynomial is that of Cephes (Moshier).
#![allow(unsafe_code)] // vectors, and raw pointers to the numbers that they are made of
#![allow(clippy::excessive_precision)] // coefficients as their source prints them

use crate::rowwise::{Floats, One};
use crate::simd::Isa;
use std::f64::consts::PI;

/// The lengths that [`Spectra`] takes: powers of two of this range.
pub const LENGTHS: std::ops::RangeInclusive<usize> = 16..=8192;
/// The most frames that are transformed at once.
pub const MAX_LANES: usize = 8;
/// Of powers beyond this the logarithm is computed in `f64`.
const LARGE: f64 = 1e37;
/// The smallest eps for which what `f32` cannot hold of a power is lost in it.
const SMALL: f64 = 1e-12;

/// A planned transform with its window.
#[derive(Debug, Clone)]
pub struct Spectra {
    isa: Isa,
    /// Half the window: the last pass then needs no factor.
    window: Vec<f64>,
    passes: Vec<Pass>,
    /// Where in the work each complex number of the half transform ends up.
    places: Vec<usize>,
    /// exp(-2 pi j k / n) for k = 0 to n / 4.
    turns: Vec<[f64; 2]>,
}

/// One pass over the half transform: butterflies of `radix` numbers, `part` apart.
#[derive(Debug, Clone)]
struct Pass {
    radix: usize,
    part: usize,
    /// exp(-2 pi j i s / (radix part)) for every place i of a part and s = 1 to radix - 1.
    turns: Vec<[f64; 2]>,
}

/// The memory that a thread works in; it grows to what the transform needs.
#[derive(Debug, Clone, Default)]
pub struct Work {
    numbers: Vec<f64>,
    powers: Vec<f64>,
}

fn turn(k: usize, n: usize) -> [f64; 2] {
    let angle = -2.0 * PI * k as f64 / n as f64;
    [angle.cos(), angle.sin()]
}

impl Spectra {
    /// Plans the transform of frames of the window's length; `None` where that is not of [`LENGTHS`].
    pub fn new(window: &[f64]) -> Option<Self> {
        Self::on(Isa::detect(), window)
    }

    fn on(isa: Isa, window: &[f64]) -> Option<Self> {
        let n = window.len();
        if !LENGTHS.contains(&n) || !n.is_power_of_two() {
            return None;
        }
        let mut passes = Vec::new();
        let mut left = n / 2;
        while left > 1 {
            let radix = if left.is_multiple_of(4) { 4 } else { 2 };
            let part = left / radix;
            let turns = (0..part).flat_map(|i| (1..radix).map(move |s| turn(i * s, left))).collect();
            passes.push(Pass { radix, part, turns });
            left = part;
        }
        let place = |k: usize| {
            let (mut at, mut k) = (0, k);
            for pass in &passes {
                at += (k % pass.radix) * pass.part;
                k /= pass.radix;
            }
            at
        };
        let places = (0..n / 2).map(place).collect();
        let turns = (0..=n / 4).map(|k| turn(k, n)).collect();
        let window = window.iter().map(|w| 0.5 * w).collect();
        Some(Self { isa, window, passes, places, turns })
    }

    /// Samples of a frame.
    pub fn length(&self) -> usize {
        self.window.len()
    }

    /// Numbers of a spectrum.
    pub fn bins(&self) -> usize {
        self.window.len() / 2 + 1
    }

    /// Frames that are transformed at once, at most [`MAX_LANES`].
    pub fn lanes(&self) -> usize {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 { .. } => 8,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => 4,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => 2,
            Isa::Portable => 1,
        }
    }

    /// The powers of [`Spectra::lanes`] frames, the first at the first sample and each `hop` behind the one before: bin
    /// after bin, of each the frames.
    ///
    /// # Panics
    /// Where there are fewer than `(lanes - 1) hop + length` samples.
    pub fn powers<'w>(&self, samples: &[f32], hop: usize, work: &'w mut Work) -> &'w [f64] {
        let (n, lanes) = (self.length(), self.lanes());
        let needed = (lanes - 1).checked_mul(hop).and_then(|before| before.checked_add(n));
        assert!(needed.is_some_and(|needed| needed <= samples.len()), "samples of all frames");
        let numbers = aligned(&mut work.numbers, n * lanes);
        let powers = aligned(&mut work.powers, self.bins() * lanes);
        // SAFETY: the samples of every lane exist (asserted), `numbers` has room for n vectors and `powers` for one of
        // each bin; `Isa` is only made of what the processor has, and has `lanes` lanes.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 { .. } => x86::avx512(self, samples, hop, numbers, powers),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2(self, samples, hop, numbers, powers),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => arm::neon(self, samples, hop, numbers, powers),
                Isa::Portable => transform::<One<f64>, 1>(self, samples, hop, numbers, powers),
            }
        }
        powers
    }
}

/// `len` numbers that begin with a cache line, for vectors that lie across two cost two.
fn aligned(numbers: &mut Vec<f64>, len: usize) -> &mut [f64] {
    numbers.resize(len + 8, 0.0);
    let skip = numbers.as_ptr().align_offset(64).min(8);
    &mut numbers[skip..skip + len]
}

/// All of it for the vectors V of L lanes.
///
/// # Safety
/// There are `(L - 1) hop + n` samples, n L numbers, (n / 2 + 1) L powers, and the instruction set of V.
#[inline(always)]
unsafe fn transform<V: Floats<f64>, const L: usize>(
    plan: &Spectra,
    samples: &[f32],
    hop: usize,
    numbers: &mut [f64],
    powers: &mut [f64],
) {
    // SAFETY: the contract.
    unsafe {
        debug_assert_eq!(V::LANES, L);
        frames::<L>(samples, hop, &plan.window, numbers);
        let x = numbers.as_mut_ptr();
        let half = plan.window.len() / 2;
        for pass in &plan.passes {
            if pass.radix == 4 {
                radix4::<V>(x, half, pass);
            } else {
                radix2::<V>(x, half, pass);
            }
        }
        apart::<V>(plan, x, powers.as_mut_ptr());
    }
}

/// Windowed samples, of each the frames side by side.
///
/// # Safety
/// There are `(L - 1) hop + n` samples and n L numbers.
#[inline(always)]
unsafe fn frames<const L: usize>(samples: &[f32], hop: usize, window: &[f64], numbers: &mut [f64]) {
    let (x, to) = (samples.as_ptr(), numbers.as_mut_ptr().cast::<[f64; L]>());
    for (i, &w) in window.iter().enumerate() {
        // SAFETY: i < n, and a frame begins at the latest (L - 1) hop behind the first.
        unsafe { *to.add(i) = std::array::from_fn(|lane| f64::from(*x.add(lane * hop + i)) * w) };
    }
}

/// A complex number of every lane.
#[derive(Clone, Copy)]
struct Complex<V>(V, V);

impl<V: Floats<f64>> Complex<V> {
    // SAFETY of all: the instruction set of V is there, and places lie within what the pointer is valid for.
    #[inline(always)]
    unsafe fn load(x: *const f64, place: usize) -> Self {
        unsafe { Self(V::load(x.add(2 * place * V::LANES)), V::load(x.add((2 * place + 1) * V::LANES))) }
    }
    #[inline(always)]
    unsafe fn store(self, x: *mut f64, place: usize) {
        unsafe {
            self.0.store(x.add(2 * place * V::LANES));
            self.1.store(x.add((2 * place + 1) * V::LANES));
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        unsafe { Self(self.0.add(b.0), self.1.add(b.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        unsafe { Self(self.0.sub(b.0), self.1.sub(b.1)) }
    }
    /// self - i b.
    #[inline(always)]
    unsafe fn sub_i(self, b: Self) -> Self {
        unsafe { Self(self.0.add(b.1), self.1.sub(b.0)) }
    }
    /// self + i b.
    #[inline(always)]
    unsafe fn add_i(self, b: Self) -> Self {
        unsafe { Self(self.0.sub(b.1), self.1.add(b.0)) }
    }
    #[inline(always)]
    unsafe fn times(self, [c, s]: [f64; 2]) -> Self {
        unsafe {
            let (zero, cos) = (V::zero(), V::splat(c));
            Self(
                self.0.mul_add(cos, self.1.mul_add(V::splat(-s), zero)),
                self.1.mul_add(cos, self.0.mul_add(V::splat(s), zero)),
            )
        }
    }
    #[inline(always)]
    unsafe fn square(self) -> V {
        unsafe { self.0.mul_add(self.0, self.1.mul_add(self.1, V::zero())) }
    }
}

/// # Safety
/// `x` is valid for `2 half` vectors, and the instruction set of V is there.
#[inline(always)]
unsafe fn radix4<V: Floats<f64>>(x: *mut f64, half: usize, pass: &Pass) {
    let part = pass.part;
    // SAFETY: the contract; the last of four places is below `at + 4 part`, which is at most `half`.
    unsafe {
        for i in 0..part {
            let turns: [[f64; 2]; 3] = [pass.turns[3 * i], pass.turns[3 * i + 1], pass.turns[3 * i + 2]];
            let mut at = i;
            while at < half {
                let [a, b, c, d] = [0, 1, 2, 3].map(|s| Complex::<V>::load(x, at + s * part));
                let (even, odd) = (a.add(c), a.sub(c));
                let (sum, gap) = (b.add(d), b.sub(d));
                even.add(sum).store(x, at);
                let rest = [odd.sub_i(gap), even.sub(sum), odd.add_i(gap)];
                for s in 0..3 {
                    let turned = if part == 1 { rest[s] } else { rest[s].times(turns[s]) };
                    turned.store(x, at + (s + 1) * part);
                }
                at += 4 * part;
            }
        }
    }
}

/// # Safety
/// As for [`radix4`].
#[inline(always)]
unsafe fn radix2<V: Floats<f64>>(x: *mut f64, half: usize, pass: &Pass) {
    let part = pass.part;
    // SAFETY: the contract; the second of two places is below `at + 2 part`, which is at most `half`.
    unsafe {
        for (i, &turn) in pass.turns.iter().enumerate() {
            let mut at = i;
            while at < half {
                let (a, b) = (Complex::<V>::load(x, at), Complex::<V>::load(x, at + part));
                a.add(b).store(x, at);
                a.sub(b).times(turn).store(x, at + part);
                at += 2 * part;
            }
        }
    }
}

/// From the half transform Z to the powers of the whole: with E = Z[k] + conj Z[-k] and O = (Z[k] - conj Z[-k]) / i the
/// bins k and n/2 - k are E + exp(-2 pi j k / n) O and, conjugated, E - exp(-2 pi j k / n) O.
///
/// # Safety
/// `x` is valid for n vectors and `powers` for n / 2 + 1, and the instruction set of V is there.
#[inline(always)]
unsafe fn apart<V: Floats<f64>>(plan: &Spectra, x: *const f64, powers: *mut f64) {
    // SAFETY: the contract; places are below n / 2.
    unsafe {
        let half = plan.window.len() / 2;
        let first = Complex::<V>::load(x, plan.places[0]);
        let (sum, gap) = (first.0.add(first.1), first.0.sub(first.1));
        let twice = |v: V| v.add(v);
        Complex(twice(sum), V::zero()).square().store(powers);
        Complex(twice(gap), V::zero()).square().store(powers.add(half * V::LANES));
        for (k, &turn) in plan.turns.iter().enumerate().skip(1) {
            let a = Complex::<V>::load(x, plan.places[k]);
            let b = Complex::<V>::load(x, plan.places[half - k]);
            let even = Complex(a.0.add(b.0), a.1.sub(b.1));
            let odd = Complex(a.1.add(b.1), b.0.sub(a.0)).times(turn);
            even.add(odd).square().store(powers.add(k * V::LANES));
            even.sub(odd).square().store(powers.add((half - k) * V::LANES));
        }
    }
}

/// ln(sqrt(P) + eps) of every number, which must be at least 0.
///
/// # Panics
/// Where `out` has another length than `powers`.
pub fn ln_magnitude(powers: &[f64], eps: f64, out: &mut [f32]) {
    logarithms::<true>(powers, eps, out);
}

/// ln(P + eps) of every number, which must be at least 0.
///
/// # Panics
/// Where `out` has another length than `powers`.
pub fn ln_power(powers: &[f64], eps: f64, out: &mut [f32]) {
    logarithms::<false>(powers, eps, out);
}

fn logarithms<const ROOT: bool>(powers: &[f64], eps: f64, out: &mut [f32]) {
    assert_eq!(powers.len(), out.len(), "one result for each power");
    let fits = (SMALL..=1.0).contains(&eps)
        && match Isa::detect() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Isa` is only made of what the processor has.
            Isa::Avx512 { .. } => unsafe { x86::logarithms_avx512::<ROOT>(powers, eps as f32, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::logarithms_avx2::<ROOT>(powers, eps as f32, out) },
            _ => single::<ROOT>(powers, eps as f32, out),
        };
    if !fits {
        for (y, &p) in out.iter_mut().zip(powers) {
            *y = (if ROOT { p.sqrt() } else { p } + eps).ln() as f32;
        }
    }
}

/// Whether `f32` could hold all powers; if not, the results are wrong.
#[inline(always)]
fn single<const ROOT: bool>(powers: &[f64], eps: f32, out: &mut [f32]) -> bool {
    let mut large = 0u32;
    for (y, &p) in out.iter_mut().zip(powers) {
        large |= u32::from(p > LARGE);
        let p = p as f32;
        *y = ln(if ROOT { p.sqrt() } else { p } + eps);
    }
    large == 0
}

/// Of a positive, normal number.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)).
    let bits = x.to_bits();
    let e = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let r = f32::from_bits(bits.wrapping_sub((e as u32) << 23)) - 1.0;
    let coefficients = [
        -1.151_461_031_0e-1_f32,
        1.167_699_874_0e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ];
    let p = coefficients.iter().fold(7.037_683_629_2e-2, |p, c| p * r + c);
    let e = e as f32;
    let square = r * r;
    // ln 2 in two parts, of which the first times an integer is exact.
    let low = p * square * r - 2.121_944_4e-4 * e - 0.5 * square;
    e * 0.693_359_4 + (r + low)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Spectra, single, transform};
    use crate::rowwise::x86::{Avx2F64, Avx512F64};

    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) unsafe fn avx512(
        plan: &Spectra,
        samples: &[f32],
        hop: usize,
        numbers: &mut [f64],
        powers: &mut [f64],
    ) {
        // SAFETY: passed on.
        unsafe { transform::<Avx512F64, 8>(plan, samples, hop, numbers, powers) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        plan: &Spectra,
        samples: &[f32],
        hop: usize,
        numbers: &mut [f64],
        powers: &mut [f64],
    ) {
        // SAFETY: passed on.
        unsafe { transform::<Avx2F64, 4>(plan, samples, hop, numbers, powers) }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    pub(super) fn logarithms_avx512<const ROOT: bool>(powers: &[f64], eps: f32, out: &mut [f32]) -> bool {
        single::<ROOT>(powers, eps, out)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn logarithms_avx2<const ROOT: bool>(powers: &[f64], eps: f32, out: &mut [f32]) -> bool {
        single::<ROOT>(powers, eps, out)
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Spectra, transform};
    use crate::rowwise::arm::NeonF64;

    #[target_feature(enable = "neon")]
    pub(super) unsafe fn neon(
        plan: &Spectra,
        samples: &[f32],
        hop: usize,
        numbers: &mut [f64],
        powers: &mut [f64],
    ) {
        // SAFETY: passed on.
        unsafe { transform::<NeonF64, 2>(plan, samples, hop, numbers, powers) }
    }
}

#[cfg(test)]
mod tests;
