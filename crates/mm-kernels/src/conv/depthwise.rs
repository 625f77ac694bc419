//! Depthwise convolutions: every channel has a kernel of its own, so channels are the lanes and nothing is packed.
#![allow(unsafe_code)] // raw pointers to pixels; sizes are checked at the top of each function

use super::engine::Then;
use super::geometry::Geometry;
use crate::host::Real;
use crate::rowwise::{Columns, Floats, over};
use crate::scratch::{self, Bytes, Shared};
use crate::simd::Isa;
use rayon::prelude::*;

/// Pixels, or taps, whose sums are under way together.
const TILE: usize = 4;
/// Channels of a task of the weight's gradient.
const CHANNELS: usize = 64;
/// Columns of a task: a sequence is one long row.
const PIECE: usize = 128;
/// Products below which one thread does all.
const SMALL: usize = 1 << 15;

/// Whether these kernels apply.
pub(super) fn is(g: &Geometry) -> bool {
    g.groups > 1 && g.ci_group() == 1 && g.co_group() == 1
}

/// How an axis of the result reads the source: place o and tap k meet at (o stride + k dilation - padding) / divisor, where
/// that is whole and within the source.
#[derive(Debug, Clone, Copy)]
struct Axis {
    source: usize,
    taps: usize,
    stride: isize,
    dilation: isize,
    padding: isize,
    divisor: isize,
}

impl Axis {
    #[inline(always)]
    fn at(&self, o: usize, k: usize) -> Option<usize> {
        let i = o as isize * self.stride + k as isize * self.dilation - self.padding;
        // A division costs as much as several products: only where there is something to divide.
        let at = match self.divisor {
            1 => i,
            divisor if i % divisor == 0 => i / divisor,
            _ => return None,
        };
        (i >= 0 && at < self.source as isize).then_some(at as usize)
    }

    /// The places that meet all taps `first .. first + count`, if neighbours read neighbours.
    fn inside(&self, first: usize, count: usize, places: usize) -> std::ops::Range<usize> {
        if self.divisor != 1 || count == 0 {
            return 0..0;
        }
        let ends = [first, first + count - 1].map(|k| k as isize * self.dilation - self.padding);
        let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        let from = if low >= 0 { 0 } else { (-low + self.stride - 1) / self.stride } as usize;
        let room = self.source as isize - high;
        let to = if room <= 0 { 0 } else { ((room - 1) / self.stride + 1) as usize }.min(places);
        from.min(to)..to
    }
}

/// A row of results, or a piece of one.
struct Row<'a, T> {
    channels: usize,
    /// Source rows (flat index of their first number) with the first of their taps in `taps`.
    rows: &'a [(usize, usize)],
    axis: Axis,
    inside: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    source: *const T,
    /// Kernel elements, tap by tap, channels side by side.
    taps: &'a [T],
    bias: Option<&'a [T]>,
    y: *mut T,
}

impl<T: Real> Columns<T> for Row<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let (c, step) = (self.channels, self.axis.stride as usize * self.channels);
        // SAFETY: `first + N LANES` is at most the number of channels; rows, columns and taps are those that exist.
        unsafe {
            let mut base = [V::zero(); N];
            if let Some(bias) = self.bias {
                for (v, base) in base.iter_mut().enumerate() {
                    *base = V::load(bias.as_ptr().add(first + v * V::LANES));
                }
            }
            let mut column = self.columns.start;
            while column < self.columns.end {
                let y = self.y.add((column - self.columns.start) * c + first);
                if column >= self.inside.start && column + TILE <= self.inside.end.min(self.columns.end) {
                    let mut sums = [base; TILE];
                    for &(row, tap) in self.rows {
                        for k in 0..self.axis.taps {
                            let at = column as isize * self.axis.stride + k as isize * self.axis.dilation
                                - self.axis.padding;
                            let x = self.source.add(row + at as usize * c + first);
                            let w = self.taps.as_ptr().add((tap + k) * c + first);
                            for v in 0..N {
                                let w = V::load(w.add(v * V::LANES));
                                for (i, sums) in sums.iter_mut().enumerate() {
                                    sums[v] = w.mul_add(V::load(x.add(i * step + v * V::LANES)), sums[v]);
                                }
                            }
                        }
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        for (v, sum) in sums.iter().enumerate() {
                            sum.store(y.add(i * c + v * V::LANES));
                        }
                    }
                    column += TILE;
                    continue;
                }
                let mut sums = base;
                for &(row, tap) in self.rows {
                    for k in 0..self.axis.taps {
                        let Some(at) = self.axis.at(column, k) else { continue };
                        let x = self.source.add(row + at * c + first);
                        let w = self.taps.as_ptr().add((tap + k) * c + first);
                        for (v, sum) in sums.iter_mut().enumerate() {
                            let i = v * V::LANES;
                            *sum = V::load(w.add(i)).mul_add(V::load(x.add(i)), *sum);
                        }
                    }
                }
                for (v, sum) in sums.iter().enumerate() {
                    sum.store(y.add(v * V::LANES));
                }
                column += 1;
            }
        }
    }
}

/// `(h, w)` results for each of `n` images of `source`.
#[allow(clippy::too_many_arguments)] // one call for the forward pass, one for the gradient
fn correlate<T: Real + Bytes>(
    isa: Isa,
    n: usize,
    (h, w): (usize, usize),
    channels: usize,
    (rows, columns): (Axis, Axis),
    source: &[T],
    taps: &[T],
    bias: Option<&[T]>,
    then: Then<'_, T>,
) -> Vec<T> {
    assert_eq!(
        source.len(),
        n * rows.source * columns.source * channels,
        "the source has the size of its geometry"
    );
    assert_eq!(taps.len(), rows.taps * columns.taps * channels, "a kernel element per tap and channel");
    assert!(bias.is_none_or(|bias| bias.len() == channels), "a bias per channel");
    let inside = columns.inside(0, columns.taps, w);
    let pieces = w.div_ceil(PIECE);
    let len = n * h * w * channels;
    let job = |out: Shared<T>, j: usize| {
        let (image, row, piece) = (j / pieces / h, j / pieces % h, j % pieces);
        let read: Vec<(usize, usize)> = (0..rows.taps)
            .filter_map(|k| Some((rows.at(row, k)?, k * columns.taps)))
            .map(|(at, tap)| ((image * rows.source + at) * columns.source * channels, tap))
            .collect();
        let span = piece * PIECE..w.min((piece + 1) * PIECE);
        let size = span.len() * channels;
        // SAFETY: pieces of rows do not overlap, and end within y.
        let y = unsafe { out.get().add(((image * h + row) * w + span.start) * channels) };
        let mut row = Row {
            channels,
            rows: &read,
            axis: columns,
            inside: inside.clone(),
            columns: span,
            source: source.as_ptr(),
            taps,
            bias,
            y,
        };
        // SAFETY: all rows have `channels` channels: asserted above.
        unsafe { over(isa, channels, &mut row) };
        if let Some(then) = then {
            // SAFETY: the piece of y that has just been written, which is this job's own.
            then(unsafe { std::slice::from_raw_parts_mut(y, size) });
        }
    };
    let jobs = n * h * pieces;
    let fill = |y: *mut T| {
        let y = Shared::new(y);
        if len * rows.taps * columns.taps < SMALL {
            (0..jobs).for_each(|j| job(y, j));
        } else {
            (0..jobs).into_par_iter().for_each(|j| job(y, j));
        }
    };
    // SAFETY: the jobs are all pieces of all rows of all images, and each writes its own, all channels of it.
    unsafe { scratch::filled(len, fill) }
}

/// Kernel elements tap by tap, in the order of `order`, channels side by side.
fn by_tap<T: Real>(w: &[T], channels: usize, order: impl Iterator<Item = usize>) -> Vec<T> {
    let taps = w.len() / channels;
    order.flat_map(|tap| (0..channels).map(move |c| w[c * taps + tap])).collect()
}

/// `y` of `x`.
pub(super) fn forward<T: Real + Bytes>(
    isa: Isa,
    g: &Geometry,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    then: Then<'_, T>,
) -> Vec<T> {
    let axis = |source, taps, stride: usize, dilation: usize, padding: usize| Axis {
        source,
        taps,
        stride: stride as isize,
        dilation: dilation as isize,
        padding: padding as isize,
        divisor: 1,
    };
    let rows = axis(g.h, g.kh, g.stride.0, g.dilation.0, g.padding.0);
    let columns = axis(g.w, g.kw, g.stride.1, g.dilation.1, g.padding.1);
    let taps = by_tap(w, g.ci, 0..g.kh * g.kw);
    correlate(isa, g.n, (g.oh, g.ow), g.ci, (rows, columns), x, &taps, bias, then)
}

/// `dx` of `dy`: input i meets tap k at output (i + padding - k dilation) / stride.
pub(super) fn grad_input<T: Real + Bytes>(isa: Isa, g: &Geometry, dy: &[T], w: &[T]) -> Vec<T> {
    let axis = |source, taps, stride: usize, dilation: usize, padding: usize| Axis {
        source,
        taps,
        stride: 1,
        dilation: -(dilation as isize),
        padding: -(padding as isize),
        divisor: stride as isize,
    };
    let rows = axis(g.oh, g.kh, g.stride.0, g.dilation.0, g.padding.0);
    let columns = axis(g.ow, g.kw, g.stride.1, g.dilation.1, g.padding.1);
    let taps = by_tap(w, g.ci, 0..g.kh * g.kw);
    correlate(isa, g.n, (g.h, g.w), g.ci, (rows, columns), dy, &taps, None, None)
}

/// Sums of the weight's gradient for the channels from `base` on, tap by tap.
struct Sums<'a, T> {
    g: &'a Geometry,
    axis: Axis,
    base: usize,
    channels: usize,
    x: *const T,
    dy: *const T,
    totals: &'a mut [T],
}

impl<T: Real> Sums<'_, T> {
    /// Adds the products of one pair of rows with `K` neighbouring taps.
    ///
    /// # Safety
    /// The rows exist, all `places` meet all taps, and so do the columns.
    #[inline(always)]
    unsafe fn row<V: Floats<T>, const N: usize, const K: usize>(
        &mut self,
        (x_row, y_row): (usize, usize),
        (tap, kx): (usize, usize),
        places: std::ops::Range<usize>,
        first: usize,
    ) {
        if places.is_empty() {
            return;
        }
        let (c, g) = (self.g.ci, self.g);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[V::zero(); N]; K];
            let at = (places.start * g.stride.1 + kx * g.dilation.1) - g.padding.1;
            let mut x = self.x.add((x_row + at) * c + self.base + first);
            let mut dy = self.dy.add((y_row + places.start) * c + self.base + first);
            for _ in places {
                for v in 0..N {
                    let d = V::load(dy.add(v * V::LANES));
                    for (k, sums) in sums.iter_mut().enumerate() {
                        sums[v] = d.mul_add(V::load(x.add(k * g.dilation.1 * c + v * V::LANES)), sums[v]);
                    }
                }
                x = x.wrapping_add(g.stride.1 * c);
                dy = dy.wrapping_add(c);
            }
            for (k, sums) in sums.iter().enumerate() {
                let to = self.totals.as_mut_ptr().add((tap + k) * self.channels + first);
                for (v, sum) in sums.iter().enumerate() {
                    let to = to.add(v * V::LANES);
                    V::load(to).add(*sum).store(to);
                }
            }
        }
    }
}

impl<T: Real> Columns<T> for Sums<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let g = *self.g;
        for (image, oy) in (0..g.n).flat_map(|image| (0..g.oh).map(move |oy| (image, oy))) {
            let y_row = (image * g.oh + oy) * g.ow;
            for ky in 0..g.kh {
                let Some(r) = g.row(oy, ky) else { continue };
                let rows = ((image * g.h + r) * g.w, y_row);
                for kx in (0..g.kw).step_by(TILE) {
                    let tap = ky * g.kw + kx;
                    let count = TILE.min(g.kw - kx);
                    let all = if count == TILE { self.axis.inside(kx, TILE, g.ow) } else { 0..0 };
                    // SAFETY: `inside` gives the places that meet the taps, row and channels exist.
                    unsafe {
                        self.row::<V, N, TILE>(rows, (tap, kx), all.clone(), first);
                        for k in 0..count {
                            let own = self.axis.inside(kx + k, 1, g.ow);
                            let (before, after) = if all.is_empty() {
                                (own, 0..0)
                            } else {
                                (own.start..all.start, all.end..own.end)
                            };
                            self.row::<V, N, 1>(rows, (tap + k, kx + k), before, first);
                            self.row::<V, N, 1>(rows, (tap + k, kx + k), after, first);
                        }
                    }
                }
            }
        }
    }
}

/// The gradient of the weight: for some channels at a time, sums over all pixels in their order.
pub(super) fn grad_weight<T: Real>(isa: Isa, g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    assert_eq!(x.len(), g.n * g.h * g.w * g.ci, "x has the size of its geometry");
    assert_eq!(dy.len(), g.n * g.oh * g.ow * g.co, "the output gradient has the size of its geometry");
    let taps = g.kh * g.kw;
    let mut dw = vec![T::zero(); g.ci * taps];
    let axis = Axis {
        source: g.w,
        taps: g.kw,
        stride: g.stride.1 as isize,
        dilation: g.dilation.1 as isize,
        padding: g.padding.1 as isize,
        divisor: 1,
    };
    let job = |(block, dw): (usize, &mut [T])| {
        let channels = dw.len() / taps;
        let mut sums = vec![T::zero(); dw.len()];
        let (x, dy) = (x.as_ptr(), dy.as_ptr());
        let mut run = Sums { g, axis, base: block * CHANNELS, channels, x, dy, totals: &mut sums };
        // SAFETY: the channels of this block exist in x, dy and the sums: asserted above.
        unsafe { over(isa, channels, &mut run) };
        for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
            for (tap, dw) in dw.iter_mut().enumerate() {
                *dw = sums[tap * channels + c];
            }
        }
    };
    if g.n * g.oh * g.ow * dw.len() < SMALL {
        dw.chunks_mut(CHANNELS * taps).enumerate().for_each(job);
    } else {
        dw.par_chunks_mut(CHANNELS * taps).enumerate().for_each(job);
    }
    dw
}
