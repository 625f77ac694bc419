//! The shape of one convolution, checked once, before any kernel runs.

use candle_core::{Result, Shape, bail};

/// A convolution of `(n, h, w, ci)` to `(n, oh, ow, co)`, channels last. Every size is at least one, but `n`, which may
/// be zero, and the paddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) ci: usize,
    pub(crate) co: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
    pub(crate) stride: (usize, usize),
    pub(crate) padding: (usize, usize),
    pub(crate) dilation: (usize, usize),
    pub(crate) groups: usize,
    pub(crate) oh: usize,
    pub(crate) ow: usize,
}

/// The sizes of a window that moves over an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) padding: (usize, usize),
    pub(crate) dilation: (usize, usize),
}

impl Window {
    /// The number of places of the window along one axis, or why there are none.
    pub(crate) fn places(
        op: &str,
        axis: &str,
        size: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        dilation: usize,
    ) -> Result<usize> {
        for (what, value) in [("kernel", kernel), ("stride", stride), ("dilation", dilation)] {
            if value == 0 {
                bail!("{op}: {what} must be at least 1 along the {axis}, got 0")
            }
        }
        let span = (kernel - 1).checked_mul(dilation).and_then(|s| s.checked_add(1));
        let padded = padding.checked_mul(2).and_then(|p| p.checked_add(size));
        let (Some(span), Some(padded)) = (span, padded) else {
            bail!(
                "{op}: kernel {kernel}, dilation {dilation} or padding {padding} along the {axis} is too large"
            )
        };
        if span > padded {
            bail!(
                "{op}: a kernel of {kernel} (dilation {dilation}: {span} wide) does not fit the {axis} of {size} with \
                 padding {padding}: it must be at most {padded}"
            )
        }
        Ok((padded - span) / stride + 1)
    }

    /// The sizes of the output for an input of `h` by `w`.
    pub(crate) fn output(&self, op: &str, h: usize, w: usize) -> Result<(usize, usize)> {
        let Self { kernel, stride, padding, dilation } = *self;
        Ok((
            Self::places(op, "height", h, kernel.0, stride.0, padding.0, dilation.0)?,
            Self::places(op, "width", w, kernel.1, stride.1, padding.1, dilation.1)?,
        ))
    }
}

impl Geometry {
    /// Checks `x (n, h, w, ci)` against `weight (co, ci / groups, kh, kw)`.
    pub(crate) fn new(
        op: &str,
        x: [usize; 4],
        weight: &Shape,
        window: (usize, usize, usize, usize, usize, usize),
        groups: usize,
    ) -> Result<Self> {
        let ([n, h, w, ci], &[co, per_group, kh, kw]) = (x, weight.dims()) else {
            bail!("{op}: weight must be (out, in / groups, kernel height, kernel width), got {weight:?}")
        };
        let (sh, sw, ph, pw, dh, dw) = window;
        if groups == 0 || ci % groups != 0 || co % groups != 0 {
            bail!("{op}: groups must divide the {ci} input and {co} output channels, got {groups}")
        }
        if ci == 0 || co == 0 || h == 0 || w == 0 {
            bail!(
                "{op}: channels, height and width must be at least 1, got an input of {h}x{w}x{ci} and weight {weight:?}"
            )
        }
        if per_group * groups != ci {
            bail!(
                "{op}: weight {weight:?} does not fit an input of {ci} channels in {groups} groups: its second dimension \
                 must be {}",
                ci / groups
            )
        }
        let window = Window { kernel: (kh, kw), stride: (sh, sw), padding: (ph, pw), dilation: (dh, dw) };
        let (oh, ow) = window.output(op, h, w)?;
        let sizes = [[n, h, w, ci], [n, oh, ow, co], [co, per_group, kh, kw]];
        for [a, b, c, d] in sizes {
            let bytes = [b, c, d, 8].iter().try_fold(a, |n, &m| n.checked_mul(m));
            if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                bail!("{op}: {a}x{b}x{c}x{d} elements do not fit in memory")
            }
        }
        Ok(Self {
            n,
            h,
            w,
            ci,
            co,
            kh,
            kw,
            // One place needs no step: whatever was asked for, the loops over remainders of the stride stay short.
            stride: (if oh == 1 { 1 } else { sh }, if ow == 1 { 1 } else { sw }),
            padding: window.padding,
            dilation: window.dilation,
            groups,
            oh,
            ow,
        })
    }

    /// Input channels of one group.
    pub(crate) fn ci_group(&self) -> usize {
        self.ci / self.groups
    }

    /// Output channels of one group.
    pub(crate) fn co_group(&self) -> usize {
        self.co / self.groups
    }

    /// Whether every output pixel sees the input pixel at its own place and no other.
    pub(crate) fn pointwise(&self) -> bool {
        self.kh * self.kw == 1 && self.padding == (0, 0) && (self.oh, self.ow) == (self.h, self.w)
    }

    /// The input row under output row `o` and kernel row `k`, if it is one.
    #[inline]
    pub(crate) fn row(&self, o: usize, k: usize) -> Option<usize> {
        (o * self.stride.0 + k * self.dilation.0).checked_sub(self.padding.0).filter(|&r| r < self.h)
    }

    /// The input column under output column `o` and kernel column `k`, if it is one.
    #[cfg(test)]
    #[inline]
    pub(crate) fn column(&self, o: usize, k: usize) -> Option<usize> {
        (o * self.stride.1 + k * self.dilation.1).checked_sub(self.padding.1).filter(|&c| c < self.w)
    }
}
