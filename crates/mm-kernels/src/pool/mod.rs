//! Pooling over windows of an image.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | settings, and which inputs belong to which output |
//! | `max.rs` | `max_pool2d`, `max_pool2d_nhwc` |
//! | `avg.rs` | `avg_pool2d`, `adaptive_avg_pool2d` and their channels-last twins |
//!
//! candle's own `max_pool2d` scales the gradient where windows touch, and fails in the backward pass where
//! they overlap. PyTorch's `ceil_mode` (windows that hang over the right and the lower border) is not
//! offered.

mod avg;
mod max;

use crate::conv::Window;
use crate::parallel::SMALL;
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

pub use avg::{adaptive_avg_pool2d, adaptive_avg_pool2d_nhwc, avg_pool2d, avg_pool2d_nhwc};
pub use max::{max_pool2d, max_pool2d_nhwc};

/// Settings of [`max_pool2d`], [`avg_pool2d`] and their channels-last twins: pairs are (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Size of the window; no default, each at least 1.
    pub kernel: (usize, usize),
    /// Steps of the window over the input; default: the kernel, each at least 1.
    pub stride: (usize, usize),
    /// Border on both sides, -inf for the maximum and 0 for the average; default (0, 0), at most half of the
    /// kernel.
    pub padding: (usize, usize),
    /// Distance between the elements of a window; default (1, 1), each at least 1.
    pub dilation: (usize, usize),
    /// Whether an average divides by the size of the window, border included, or by the number of elements of
    /// the input in it; default true. The maximum does not ask.
    pub count_include_pad: bool,
}

impl PoolConfig {
    /// Windows side by side: the stride is the kernel, everything else the default.
    pub fn new(kernel: (usize, usize)) -> Self {
        Self { kernel, stride: kernel, padding: (0, 0), dilation: (1, 1), count_include_pad: true }
    }

    /// The same kernel, stride and padding for height and width, everything else the default.
    ///
    /// ```
    /// # use mm_kernels::PoolConfig;
    /// assert_eq!(PoolConfig::square(2, 2, 0), PoolConfig::new((2, 2)));
    /// ```
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { stride: (stride, stride), padding: (padding, padding), ..Self::new((kernel, kernel)) }
    }
}

/// Which indices of one axis of the input belong to which place of the output.
#[derive(Debug, Clone, Copy)]
enum Axis {
    /// Windows of one size at equal steps.
    Windows { size: usize, places: usize, kernel: usize, stride: usize, padding: usize, dilation: usize },
    /// Bins from floor(i size / places) to ceil((i + 1) size / places): PyTorch's adaptive pooling.
    Bins { size: usize, places: usize },
}

/// The indices `start`, `start + step`, ..; `taps` of them, all inside the input.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    step: usize,
    taps: usize,
}

impl Span {
    #[inline]
    fn indices(self) -> impl Iterator<Item = usize> {
        (0..self.taps).map(move |k| self.start + k * self.step)
    }
}

impl Axis {
    fn size(&self) -> usize {
        let (Self::Windows { size, .. } | Self::Bins { size, .. }) = *self;
        size
    }

    fn places(&self) -> usize {
        let (Self::Windows { places, .. } | Self::Bins { places, .. }) = *self;
        places
    }

    /// The input under place `o`. A dilated window may lie in the border with all its taps: then there are
    /// none.
    #[inline]
    fn span(&self, o: usize) -> Span {
        match *self {
            Self::Windows { size, kernel, stride, padding, dilation, .. } => {
                let at = o * stride;
                let skipped = padding.saturating_sub(at).div_ceil(dilation);
                let end = (size + padding).saturating_sub(at).div_ceil(dilation).min(kernel);
                let start = (at + skipped * dilation).saturating_sub(padding);
                Span { start, step: dilation, taps: end.saturating_sub(skipped) }
            }
            Self::Bins { size, places } => {
                let start = o * size / places;
                Span { start, step: 1, taps: ((o + 1) * size).div_ceil(places) - start }
            }
        }
    }

    /// A bound on the taps of one place.
    fn most_taps(&self) -> usize {
        match *self {
            Self::Windows { size, kernel, .. } => kernel.min(size),
            Self::Bins { size, .. } => size,
        }
    }

    /// The places whose reach, from the first tap to the last, meets the indices `from..to` of the input.
    fn touching(&self, from: usize, to: usize) -> Range<usize> {
        let (start, end) = match *self {
            Self::Windows { kernel, stride, padding, dilation, .. } => {
                let reach = (kernel - 1) * dilation;
                ((from + padding).saturating_sub(reach).div_ceil(stride), (to + padding).div_ceil(stride))
            }
            Self::Bins { size, places } => (from * places / size, (to * places).div_ceil(size)),
        };
        start..end.min(self.places())
    }
}

/// A pooling of `(n, h, w, c)` to `(n, oh, ow, c)`, checked: no size but `n` is zero, and all index
/// arithmetic fits.
#[derive(Debug, Clone, Copy)]
struct Plan {
    n: usize,
    c: usize,
    rows: Axis,
    columns: Axis,
}

impl Plan {
    fn windows(op: &str, dims: [usize; 4], config: &PoolConfig) -> Result<Self> {
        let [_, h, w, _] = dims;
        let PoolConfig { kernel, stride, padding, dilation, .. } = *config;
        let (oh, ow) = Window { kernel, stride, padding, dilation }.output(op, h, w)?;
        let axis = |axis: &str, size, places, kernel: usize, stride, padding, dilation| {
            if padding > kernel / 2 {
                bail!(
                    "{op}: padding along the {axis} must be at most half of the kernel, got {padding} for \
                     {kernel}"
                )
            }
            Ok(Axis::Windows { size, places, kernel, stride, padding, dilation })
        };
        let rows = axis("height", h, oh, kernel.0, stride.0, padding.0, dilation.0)?;
        let columns = axis("width", w, ow, kernel.1, stride.1, padding.1, dilation.1)?;
        Self::checked(op, dims, rows, columns)
    }

    fn bins(op: &str, dims: [usize; 4], output: (usize, usize)) -> Result<Self> {
        let [_, h, w, _] = dims;
        let axis = |size: usize, places: usize| {
            if places == 0 || places.checked_add(1).and_then(|p| p.checked_mul(size)).is_none() {
                bail!(
                    "{op}: the output must be at least 1x1 and fit in memory, got {}x{}",
                    output.0,
                    output.1
                )
            }
            Ok(Axis::Bins { size, places })
        };
        Self::checked(op, dims, axis(h, output.0)?, axis(w, output.1)?)
    }

    fn checked(op: &str, [n, h, w, c]: [usize; 4], rows: Axis, columns: Axis) -> Result<Self> {
        if h == 0 || w == 0 || c == 0 {
            bail!("{op}: channels, height and width must be at least 1, got an input of {h}x{w}x{c}")
        }
        let (oh, ow) = (rows.places(), columns.places());
        let bytes = [oh, ow, c, 8].iter().try_fold(n.max(1), |n, &m| n.checked_mul(m));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            bail!("{op}: {n}x{oh}x{ow}x{c} elements do not fit in memory")
        }
        Ok(Self { n, c, rows, columns })
    }

    /// Elements of one image of the input.
    fn plane(&self) -> usize {
        self.rows.size() * self.columns.size() * self.c
    }

    /// Elements of the output.
    fn outputs(&self) -> usize {
        self.n * self.rows.places() * self.columns.places() * self.c
    }

    fn output_shape(&self) -> (usize, usize, usize, usize) {
        (self.n, self.rows.places(), self.columns.places(), self.c)
    }

    /// About the number of elements that one pass reads.
    fn work(&self) -> usize {
        self.outputs().saturating_mul(self.rows.most_taps().saturating_mul(self.columns.most_taps()))
    }

    /// Rows of the input that one thread fills in the backward pass: neighbours share the windows between
    /// them, which both visit, so pieces are not small.
    fn block(&self) -> usize {
        (SMALL / (self.columns.size() * self.c)).max(self.rows.most_taps())
    }
}

fn images(op: &str, x: &Tensor, layout: &str) -> Result<[usize; 4]> {
    match *x.dims() {
        [a, b, c, d] => Ok([a, b, c, d]),
        _ => bail!("{op}: x must be ({layout}), got {:?}", x.shape()),
    }
}

/// Dimensions in the order of the kernels, (batch, height, width, channels).
fn first_dims(op: &str, x: &Tensor) -> Result<[usize; 4]> {
    let [n, c, h, w] = images(op, x, "batch, channels, height, width")?;
    Ok([n, h, w, c])
}

fn last_dims(op: &str, x: &Tensor) -> Result<[usize; 4]> {
    images(op, x, "batch, height, width, channels")
}

/// A channels-last operation on a channels-first tensor.
fn turned(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&x.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every axis of up to nine elements that passes the checks.
    fn axes() -> Vec<Axis> {
        let mut axes = Vec::new();
        for size in 1..10 {
            axes.extend((1..8).map(|places| Axis::Bins { size, places }));
            for (kernel, stride, dilation) in
                (1..6).flat_map(|k| (1..5).flat_map(move |s| (1..4).map(move |d| (k, s, d))))
            {
                for padding in 0..=kernel / 2 {
                    if let Ok(places) = Window::places("op", "axis", size, kernel, stride, padding, dilation)
                    {
                        axes.push(Axis::Windows { size, places, kernel, stride, padding, dilation });
                    }
                }
            }
        }
        axes
    }

    #[test]
    fn spans_hold_the_taps_inside_the_input() {
        for axis in axes() {
            for o in 0..axis.places() {
                let expected: Vec<usize> = match axis {
                    Axis::Windows { size, kernel, stride, padding, dilation, .. } => (0..kernel)
                        .filter_map(|k| (o * stride + k * dilation).checked_sub(padding))
                        .filter(|&i| i < size)
                        .collect(),
                    Axis::Bins { size, places } => {
                        let (start, end) = (
                            o as f64 * size as f64 / places as f64,
                            (o + 1) as f64 * size as f64 / places as f64,
                        );
                        (start.floor() as usize..end.ceil() as usize).collect()
                    }
                };
                let got: Vec<usize> = axis.span(o).indices().collect();
                assert_eq!(got, expected, "{axis:?}, place {o}");
                assert!(got.len() <= axis.most_taps());
            }
        }
    }

    #[test]
    fn no_place_that_touches_a_block_is_left_out() {
        for axis in axes() {
            for (from, to) in (0..axis.size()).flat_map(|a| (a + 1..=axis.size()).map(move |b| (a, b))) {
                let range = axis.touching(from, to);
                for o in 0..axis.places() {
                    let touches = axis.span(o).indices().any(|i| (from..to).contains(&i));
                    assert!(!touches || range.contains(&o), "{axis:?}, {from}..{to}, place {o}");
                }
            }
        }
    }
}
