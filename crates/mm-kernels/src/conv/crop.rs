//! The part of a kernel that meets the image: on small images the outer taps of a padded kernel see nothing but the border.
//!
//! The last stage of a ResNet-18 on images of 32 x 32 has one pixel, and eight of the nine taps of its three million
//! weights a layer are multiplied with zeros. Without them that convolution is a product of matrices.

use super::geometry::Geometry;
use crate::host::Real;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Kernels that a task copies.
const MANY: usize = 1 << 12;

/// A geometry whose kernel has only the rows and columns that meet the image somewhere.
#[derive(Debug)]
pub(super) struct Crop {
    pub(super) geometry: Geometry,
    /// Its rows and columns in the whole kernel.
    rows: Range<usize>,
    columns: Range<usize>,
    /// Height and width of the whole kernel.
    whole: (usize, usize),
}

/// The run of taps, of a kernel along an axis of `size` numbers and `places` outputs, outside of which none meets a number.
fn alive(
    size: usize,
    places: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
) -> Range<usize> {
    // The last output's first tap lies at `reach` in the padded axis; the first output's at zero.
    let reach = (places - 1).saturating_mul(stride);
    let before =
        |tap: usize| reach.saturating_add(tap * dilation) < padding && (tap + 1) * dilation <= padding;
    let behind = |tap: usize| tap * dilation >= padding.saturating_add(size);
    let first = (0..kernel - 1).find(|&tap| !before(tap)).unwrap_or(kernel - 1);
    let last = (first + 1..kernel).rev().find(|&tap| !behind(tap)).unwrap_or(first);
    first..last + 1
}

impl Crop {
    pub(super) fn new(g: &Geometry) -> Self {
        let rows = alive(g.h, g.oh, g.kh, g.stride.0, g.padding.0, g.dilation.0);
        let columns = alive(g.w, g.ow, g.kw, g.stride.1, g.padding.1, g.dilation.1);
        let geometry = Geometry {
            kh: rows.len(),
            kw: columns.len(),
            padding: (g.padding.0 - rows.start * g.dilation.0, g.padding.1 - columns.start * g.dilation.1),
            ..*g
        };
        Self { geometry, rows, columns, whole: (g.kh, g.kw) }
    }

    fn all(&self) -> bool {
        (self.rows.len(), self.columns.len()) == self.whole
    }

    /// The places in the whole kernel of the taps that are left.
    fn taps(&self) -> Vec<usize> {
        let row = |row: usize| self.columns.clone().map(move |column| row * self.whole.1 + column);
        self.rows.clone().flat_map(row).collect()
    }

    /// The taps that are left of a weight `(co, ci / groups, kh, kw)`.
    pub(super) fn weight<'a, T: Real>(&self, w: &'a [T]) -> Cow<'a, [T]> {
        if self.all() {
            return Cow::Borrowed(w);
        }
        let (size, taps) = (self.whole.0 * self.whole.1, self.taps());
        let mut out = vec![T::zero(); w.len() / size * taps.len()];
        let copy = |(out, w): (&mut [T], &[T])| match taps[..] {
            [tap] => out.iter_mut().zip(w.chunks_exact(size)).for_each(|(out, w)| *out = w[tap]),
            _ => {
                for (out, w) in out.chunks_exact_mut(taps.len()).zip(w.chunks_exact(size)) {
                    out.iter_mut().zip(&taps).for_each(|(out, &tap)| *out = w[tap]);
                }
            }
        };
        out.par_chunks_mut(MANY * taps.len()).zip(w.par_chunks(MANY * size)).for_each(copy);
        Cow::Owned(out)
    }

    /// The gradient of the whole weight, of that of the taps that are left: zero elsewhere.
    pub(super) fn restore<T: Real>(&self, dw: Vec<T>) -> Vec<T> {
        if self.all() {
            return dw;
        }
        let (size, taps) = (self.whole.0 * self.whole.1, self.taps());
        let mut out = vec![T::zero(); dw.len() / taps.len() * size];
        let copy = |(out, dw): (&mut [T], &[T])| {
            if let [tap] = taps[..] {
                return out.chunks_exact_mut(size).zip(dw).for_each(|(out, &dw)| out[tap] = dw);
            }
            for (out, dw) in out.chunks_exact_mut(size).zip(dw.chunks_exact(taps.len())) {
                taps.iter().zip(dw).for_each(|(&tap, &dw)| out[tap] = dw);
            }
        };
        out.par_chunks_mut(MANY * size).zip(dw.par_chunks(MANY * taps.len())).for_each(copy);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tap_that_meets_the_axis_is_left_out() {
        let mut cropped = 0;
        for size in 1..5usize {
            for kernel in 1..6usize {
                for (stride, padding) in (1..4usize).flat_map(|s| (0..6usize).map(move |p| (s, p))) {
                    for dilation in 1..4usize {
                        let span = (kernel - 1) * dilation + 1;
                        let Some(room) = (size + 2 * padding).checked_sub(span) else { continue };
                        let places = room / stride + 1;
                        let kept = alive(size, places, kernel, stride, padding, dilation);
                        let meets = |tap: usize| {
                            (0..places).any(|o| {
                                let at = o * stride + tap * dilation;
                                (padding..padding + size).contains(&at)
                            })
                        };
                        assert!(!kept.is_empty() && kept.end <= kernel);
                        assert!(kept.start * dilation <= padding);
                        let all = format!("{size} {kernel} {stride} {padding} {dilation}: {kept:?}");
                        for tap in (0..kernel).filter(|tap| !kept.contains(tap)) {
                            assert!(!meets(tap), "{all}");
                            cropped += 1;
                        }
                        // Without dilation and with small steps every outer tap that is left meets the axis.
                        if dilation == 1 && stride == 1 && (0..kernel).any(meets) {
                            assert!(meets(kept.start) && meets(kept.end - 1), "{all}");
                        }
                    }
                }
            }
        }
        assert!(cropped > 100);
        assert_eq!(alive(1, 1, 3, 1, 1, 1), 1..2);
        assert_eq!(alive(2, 1, 3, 1, 1, 1), 1..3);
        assert_eq!(alive(2, 2, 3, 1, 1, 1), 0..3);
        assert_eq!(alive(7, 7, 3, 1, 1, 1), 0..3);
        assert_eq!(alive(usize::MAX, 1, 1, 1, 1, 1), 0..1);
    }

    #[test]
    fn what_is_cropped_comes_back_with_zeros_around() {
        let shape = candle_core::Shape::from((2, 3, 3, 3));
        let g = Geometry::new("test", [4, 1, 2, 3], &shape, (1, 1, 1, 1, 1, 1), 1).expect("a geometry");
        let crop = Crop::new(&g);
        assert_eq!((crop.geometry.kh, crop.geometry.kw, crop.geometry.padding), (1, 3, (0, 1)));
        let w: Vec<f64> = (0..54).map(f64::from).collect();
        let kept = crop.weight(&w).into_owned();
        assert_eq!(kept[..6], [3.0, 4.0, 5.0, 12.0, 13.0, 14.0]);
        let back = crop.restore(kept);
        assert_eq!(back[..9], [0.0, 0.0, 0.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0]);
        assert_eq!(back.len(), 54);
    }
}
