//! Normalisation over the rows of a channels-last image: statistics, and the passes over a gradient.
//!
//! Sums are taken over pieces of a fixed number of rows, in the type of the data, and put together in f64 in the order of
//! the pieces: the bits do not depend on the number of threads.
#![allow(unsafe_code)] // raw pointers down the rows

use crate::host::Real;
use crate::rowwise::{Columns, Floats, over};
use crate::scratch::{Bytes, Shared};
use crate::simd::Isa;
use rayon::prelude::*;

/// Rows of a piece.
const ROWS: usize = 256;

/// Count, mean and sum of squared deviations of each channel.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    count: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Those of some rows, in two passes: the variance of large values stays exact.
    pub(super) fn of<T: Real>(isa: Isa, rows: &[T], channels: usize) -> Self {
        let (count, mut mean, mut squares) =
            ((rows.len() / channels) as f64, vec![0.0; channels], vec![0.0; channels]);
        let (mut sums, mut second) = (vec![T::zero(); channels], vec![T::zero(); channels]);
        assert_eq!(rows.len() % channels, 0, "whole rows");
        // SAFETY: rows and sums have `channels` columns.
        unsafe {
            over(isa, channels, &mut Sum { x: rows, centre: None, sums: &mut sums, squares: &mut second });
        }
        let centre: Vec<T> = sums.iter().map(|s| T::from_f64(s.to_f64() / count)).collect();
        let centred = Some(&centre[..]);
        // SAFETY: as above.
        unsafe {
            over(isa, channels, &mut Sum { x: rows, centre: centred, sums: &mut sums, squares: &mut second });
        }
        // The centre is rounded: what it misses of the mean is taken out of both.
        for c in 0..channels {
            let rest = sums[c].to_f64();
            mean[c] = centre[c].to_f64() + rest / count;
            squares[c] = second[c].to_f64() - rest * rest / count;
        }
        Self { count, mean, squares }
    }

    /// Those of all rows together.
    pub(super) fn merge<'a>(mut parts: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let mut all = parts.next()?.clone();
        for part in parts {
            let count = all.count + part.count;
            for c in 0..all.mean.len() {
                let step = part.mean[c] - all.mean[c];
                all.mean[c] += step * part.count / count;
                all.squares[c] += part.squares[c] + step * step * all.count * part.count / count;
            }
            all.count = count;
        }
        Some(all)
    }

    pub(super) fn count(&self) -> f64 {
        self.count
    }

    pub(super) fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The variance, with `count - less` in the denominator.
    pub(super) fn variance(&self, less: f64) -> Vec<f64> {
        self.squares.iter().map(|s| s / (self.count - less)).collect()
    }
}

/// Sums of x, or of (x - centre) and its square, over rows.
struct Sum<'a, T> {
    x: &'a [T],
    centre: Option<&'a [T]>,
    sums: &'a mut [T],
    squares: &'a mut [T],
}

impl<T: Real> Columns<T> for Sum<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let c = self.sums.len();
        // SAFETY: the columns exist, and x has whole rows.
        unsafe {
            let (mut sums, mut squares) = ([V::zero(); N], [V::zero(); N]);
            let mut x = self.x.as_ptr().add(first);
            if let Some(centre) = self.centre {
                let centre: [V; N] = vectors(centre, first);
                for _ in 0..self.x.len() / c {
                    for v in 0..N {
                        let d = V::load(x.add(v * V::LANES)).sub(centre[v]);
                        sums[v] = sums[v].add(d);
                        squares[v] = d.mul_add(d, squares[v]);
                    }
                    x = x.wrapping_add(c);
                }
            } else {
                for _ in 0..self.x.len() / c {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(V::load(x.add(v * V::LANES)));
                    }
                    x = x.wrapping_add(c);
                }
            }
            put(self.sums, first, sums);
            put(self.squares, first, squares);
        }
    }
}

/// Neighbouring columns of a row.
///
/// # Safety
/// They exist.
#[inline(always)]
pub(super) unsafe fn vectors<T: Real, V: Floats<T>, const N: usize>(row: &[T], first: usize) -> [V; N] {
    debug_assert!(first + N * V::LANES <= row.len());
    // SAFETY: the caller's promise.
    std::array::from_fn(|v| unsafe { V::load(row.as_ptr().add(first + v * V::LANES)) })
}

/// Writes neighbouring columns of a row.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn put<T: Real, V: Floats<T>, const N: usize>(row: &mut [T], first: usize, values: [V; N]) {
    debug_assert!(first + N * V::LANES <= row.len());
    for (v, value) in values.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { value.store(row.as_mut_ptr().add(first + v * V::LANES)) };
    }
}

/// A normalisation with known statistics: y = scale x + shift per channel.
#[derive(Debug, Clone)]
pub(super) struct Affine<T> {
    pub(super) scale: Vec<T>,
    pub(super) shift: Vec<T>,
    /// Whether the statistics depend on x.
    through: bool,
    count: f64,
    gamma: Vec<f64>,
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

impl<T: Real> Affine<T> {
    /// gamma (x - mean) / sqrt(variance + eps) + beta.
    pub(super) fn new(
        gamma: &[T],
        beta: &[T],
        (mean, variance): (&[f64], &[f64]),
        eps: f64,
        count: f64,
        through: bool,
    ) -> Self {
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let gamma: Vec<f64> = gamma.iter().map(|g| g.to_f64()).collect();
        let scale: Vec<f64> = gamma.iter().zip(&inverse).map(|(g, i)| g * i).collect();
        let shift =
            beta.iter().zip(mean).zip(&scale).map(|((b, m), s)| T::from_f64(b.to_f64() - m * s)).collect();
        let scale = scale.into_iter().map(T::from_f64).collect();
        Self { scale, shift, through, count, gamma, mean: mean.to_vec(), inverse }
    }

    /// From the sums of d and of d (x - mean) over all rows: the gradients of gamma and beta, and the coefficients of
    /// dx = k0 d + k1 (x - mean) + k2.
    pub(super) fn pull(&self, sums: &[Vec<f64>]) -> Pull<T> {
        let cast =
            |f: &dyn Fn(usize) -> f64| (0..self.scale.len()).map(|c| T::from_f64(f(c))).collect::<Vec<T>>();
        let k0 = |c: usize| self.gamma[c] * self.inverse[c];
        let k1 = |c: usize| {
            if self.through {
                -k0(c) * self.inverse[c] * self.inverse[c] * sums[1][c] / self.count
            } else {
                0.0
            }
        };
        let k2 = |c: usize| if self.through { -k0(c) * sums[0][c] / self.count } else { 0.0 };
        Pull {
            gamma: cast(&|c| sums[1][c] * self.inverse[c]),
            beta: cast(&|c| sums[0][c]),
            k: [cast(&k0), cast(&k1), cast(&k2), self.centre()],
        }
    }

    /// The mean, in the type of the data.
    pub(super) fn centre(&self) -> Vec<T> {
        self.mean.iter().map(|&m| T::from_f64(m)).collect()
    }
}

/// What backward through a normalisation needs, per channel.
pub(super) struct Pull<T> {
    pub(super) gamma: Vec<T>,
    pub(super) beta: Vec<T>,
    k: [Vec<T>; 4],
}

/// y = relu(scale x + shift + other), where other is nothing, an image, or scale x + shift of another.
///
/// # Safety
/// `y` is valid for as many numbers as `x` has.
pub(super) unsafe fn finish<T: Real + Bytes>(
    isa: Isa,
    x: &[T],
    a: &Affine<T>,
    other: &Other<'_, T>,
    y: *mut T,
) {
    let (c, y) = (a.scale.len(), Shared::new(y));
    let size = ROWS * c;
    assert!(x.len().is_multiple_of(c), "whole rows of channels");
    (0..x.len().div_ceil(size)).into_par_iter().for_each(|k| {
        let at = k * size..((k + 1) * size).min(x.len());
        let other = match other {
            Other::Nothing => Other::Nothing,
            Other::Image(o) => Other::Image(&o[at.clone()]),
            Other::Normal(o, b) => Other::Normal(&o[at.clone()], b),
        };
        // SAFETY: all images have this piece, in whole rows of c columns, and so have the constants; no other thread
        // writes to it.
        unsafe {
            let y = y.get().add(at.start);
            over(isa, c, &mut Finish { x: &x[at], a, other, y });
        }
    });
}

/// What is added before the last ReLU.
pub(super) enum Other<'a, T> {
    Nothing,
    Image(&'a [T]),
    Normal(&'a [T], &'a Affine<T>),
}

struct Finish<'a, T> {
    x: &'a [T],
    a: &'a Affine<T>,
    other: Other<'a, T>,
    y: *mut T,
}

impl<T: Real> Columns<T> for Finish<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let c = self.a.scale.len();
        // SAFETY: the columns exist, and all images have the rows of y.
        unsafe {
            let (scale, shift): ([V; N], [V; N]) =
                (vectors(&self.a.scale, first), vectors(&self.a.shift, first));
            let mut at = first;
            for _ in 0..self.x.len() / c {
                for v in 0..N {
                    let i = at + v * V::LANES;
                    let mut value = V::load(self.x.as_ptr().add(i)).mul_add(scale[v], shift[v]);
                    match &self.other {
                        Other::Nothing => {}
                        Other::Image(o) => value = value.add(V::load(o.as_ptr().add(i))),
                        Other::Normal(o, b) => {
                            let (s, t): ([V; 1], [V; 1]) = (
                                vectors(&b.scale, first + v * V::LANES),
                                vectors(&b.shift, first + v * V::LANES),
                            );
                            value = value.add(V::load(o.as_ptr().add(i)).mul_add(s[0], t[0]));
                        }
                    }
                    value.relu().store(self.y.add(i));
                }
                at += c;
            }
        }
    }
}

/// Where a gradient passes: where an output is positive, where scale x + shift is, or everywhere.
#[derive(Clone, Copy)]
enum Mask<'a, T> {
    Output(&'a [T], &'a [T]),
    Affine(&'a Affine<T>),
    None,
}

/// Masks a gradient, and sums it and its products with up to two centred images.
struct Reduce<'a, T> {
    mask: Mask<'a, T>,
    images: &'a [(&'a [T], &'a [T])],
    d: &'a mut [T],
    sums: &'a mut [Vec<T>],
}

impl<T: Real> Columns<T> for Reduce<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let c = self.sums[0].len();
        let rows = self.d.len() / c;
        let d = self.d.as_mut_ptr();
        // SAFETY: the columns exist, and all images have the rows of d.
        unsafe {
            let (x, centre) = (self.images[0].0.as_ptr(), vectors::<T, V, N>(self.images[0].1, first));
            let (mut plain, mut products) = ([V::zero(); N], [V::zero(); N]);
            let mut at = first;
            match self.mask {
                Mask::Output(grad, y) => {
                    for _ in 0..rows {
                        for v in 0..N {
                            let i = at + v * V::LANES;
                            let g = V::load(grad.as_ptr().add(i)).where_positive(V::load(y.as_ptr().add(i)));
                            g.store(d.add(i));
                            plain[v] = plain[v].add(g);
                            products[v] = g.mul_add(V::load(x.add(i)).sub(centre[v]), products[v]);
                        }
                        at += c;
                    }
                }
                Mask::Affine(a) => {
                    let (scale, shift): ([V; N], [V; N]) =
                        (vectors(&a.scale, first), vectors(&a.shift, first));
                    for _ in 0..rows {
                        for v in 0..N {
                            let i = at + v * V::LANES;
                            let x = V::load(x.add(i));
                            let g = V::load(d.add(i)).where_positive(x.mul_add(scale[v], shift[v]));
                            g.store(d.add(i));
                            plain[v] = plain[v].add(g);
                            products[v] = g.mul_add(x.sub(centre[v]), products[v]);
                        }
                        at += c;
                    }
                }
                Mask::None => {
                    for _ in 0..rows {
                        for v in 0..N {
                            let i = at + v * V::LANES;
                            let g = V::load(d.add(i));
                            plain[v] = plain[v].add(g);
                            products[v] = g.mul_add(V::load(x.add(i)).sub(centre[v]), products[v]);
                        }
                        at += c;
                    }
                }
            }
            put(&mut self.sums[0], first, plain);
            put(&mut self.sums[1], first, products);
            for (k, (x, centre)) in self.images.iter().enumerate().skip(1) {
                let (centre, mut products) = (vectors::<T, V, N>(centre, first), [V::zero(); N]);
                let mut at = first;
                for _ in 0..rows {
                    for v in 0..N {
                        let i = at + v * V::LANES;
                        let x = V::load(x.as_ptr().add(i)).sub(centre[v]);
                        products[v] = V::load(d.add(i)).mul_add(x, products[v]);
                    }
                    at += c;
                }
                put(&mut self.sums[k + 1], first, products);
            }
        }
    }
}

fn reduce<T: Real>(
    isa: Isa,
    mask: Mask<'_, T>,
    images: &[(&[T], &[T])],
    c: usize,
    d: &mut [T],
) -> Vec<Vec<f64>> {
    let parts = d.par_chunks_mut(ROWS * c).enumerate().map(|(k, d)| {
        let at = k * ROWS * c..k * ROWS * c + d.len();
        let images: Vec<_> = images.iter().map(|(x, centre)| (&x[at.clone()], *centre)).collect();
        let mask = match mask {
            Mask::Output(grad, y) => Mask::Output(&grad[at.clone()], &y[at]),
            mask => mask,
        };
        let mut sums = vec![vec![T::zero(); c]; 1 + images.len()];
        // SAFETY: all images have the pieces of d, in whole rows of c columns, and so have the constants and sums.
        unsafe { over(isa, c, &mut Reduce { mask, images: &images, d, sums: &mut sums }) };
        sums
    });
    gather(parts.collect(), 1 + images.len(), c)
}

/// d = gradient where the output is positive, and its sums: of d, and of d (x - mean) for each of the images.
pub(super) fn mask_by_output<T: Real>(
    isa: Isa,
    grad: &[T],
    y: &[T],
    images: &[(&[T], Vec<T>)],
    channels: usize,
    d: &mut [T],
) -> Vec<Vec<f64>> {
    let images: Vec<(&[T], &[T])> = images.iter().map(|(x, centre)| (*x, &centre[..])).collect();
    reduce(isa, Mask::Output(grad, y), &images, channels, d)
}

/// Sets d to zero where scale x + shift is not positive, and sums d and d (x - mean).
pub(super) fn mask_by_affine<T: Real>(isa: Isa, d: &mut [T], x: &[T], a: &Affine<T>) -> Vec<Vec<f64>> {
    reduce(isa, Mask::Affine(a), &[(x, &a.centre())], a.scale.len(), d)
}

/// The sums of a piece of d and of d (x - mean).
pub(super) fn sums_of<T: Real>(isa: Isa, d: &mut [T], x: &[T], centre: &[T]) -> Vec<Vec<T>> {
    let c = centre.len();
    assert!(d.len() == x.len() && d.len().is_multiple_of(c));
    let mut sums = vec![vec![T::zero(); c]; 2];
    // SAFETY: both have whole rows of c columns, as many.
    unsafe { over(isa, c, &mut Reduce { mask: Mask::None, images: &[(x, centre)], d, sums: &mut sums }) };
    sums
}

/// The sums of all pieces, in f64 and in their order.
pub(super) fn gather<T: Real>(parts: Vec<Vec<Vec<T>>>, sums: usize, channels: usize) -> Vec<Vec<f64>> {
    let mut all = vec![vec![0.0; channels]; sums];
    for part in parts {
        for (all, part) in all.iter_mut().zip(part) {
            for (all, part) in all.iter_mut().zip(part) {
                *all += part.to_f64();
            }
        }
    }
    all
}

/// out = k0 d + k1 (x - mean) + k2, where out may be d.
struct Apply<'a, T> {
    d: *const T,
    x: &'a [T],
    pull: &'a Pull<T>,
    out: *mut T,
}

impl<T: Real> Columns<T> for Apply<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let c = self.pull.beta.len();
        // SAFETY: the columns exist, and d and out have the rows of x.
        unsafe {
            let [k0, k1, k2, mean] = std::array::from_fn(|k| vectors::<T, V, N>(&self.pull.k[k], first));
            let mut at = first;
            for _ in 0..self.x.len() / c {
                for v in 0..N {
                    let i = at + v * V::LANES;
                    let x = V::load(self.x.as_ptr().add(i)).sub(mean[v]);
                    V::load(self.d.add(i)).mul_add(k0[v], x.mul_add(k1[v], k2[v])).store(self.out.add(i));
                }
                at += c;
            }
        }
    }
}

/// out = k0 d + k1 (x - mean) + k2.
pub(super) fn apply<T: Real>(isa: Isa, d: &[T], x: &[T], pull: &Pull<T>, out: &mut [T]) {
    let c = pull.beta.len();
    out.par_chunks_mut(ROWS * c).enumerate().for_each(|(k, out)| {
        let at = k * ROWS * c..k * ROWS * c + out.len();
        let (d, x) = (&d[at.clone()], &x[at]);
        // SAFETY: all three have whole rows of c columns, as many, and the constants have c.
        unsafe { over(isa, c, &mut Apply { d: d.as_ptr(), x, pull, out: out.as_mut_ptr() }) };
    });
}

/// d = k0 d + k1 (x - mean) + k2.
pub(super) fn apply_in_place<T: Real>(isa: Isa, d: &mut [T], x: &[T], pull: &Pull<T>) {
    let c = pull.beta.len();
    d.par_chunks_mut(ROWS * c).enumerate().for_each(|(k, d)| {
        let x = &x[k * ROWS * c..k * ROWS * c + d.len()];
        let d = d.as_mut_ptr();
        // SAFETY: both have whole rows of c columns, as many; each number is read before it is written.
        unsafe { over(isa, c, &mut Apply { d, x, pull, out: d }) };
    });
}
