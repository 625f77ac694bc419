//! A convolution as a correlation with taps: the forward pass, and the gradient of the input.

use super::format::Format;
use super::geometry::Geometry;

/// Pixels of a task: enough to use each packed weight often, few enough for the second-level cache.
const TASK_PIXELS: usize = 448;
/// Bytes of weights that one tile runs over.
const WEIGHT_BYTES: usize = 160 * 1024;
/// Bytes of packed input of a task.
const INPUT_BYTES: usize = 320 * 1024;

/// One tap: where it reads relative to `row * stride`, and which kernel element it multiplies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    pub(super) row: isize,
    pub(super) column: isize,
    pub(super) kernel: usize,
}

/// The taps of the outputs at `row + i * step`, `column + j * step`.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) taps: Vec<Tap>,
}

/// A correlation of `(n, h, w, groups * inputs)` to `(n, oh, ow, groups * outputs)`.
#[derive(Debug)]
pub(crate) struct Correlation {
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) oh: usize,
    pub(super) ow: usize,
    /// Channels of one group.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) groups: usize,
    /// Input pixels from one place of a phase to the next.
    pub(super) stride: (usize, usize),
    /// Output pixels from one place of a phase to the next.
    pub(super) step: (usize, usize),
    /// Places of the largest phase.
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) phases: Vec<Phase>,
    /// Whether kernel elements are taken as `(input, output)`: the gradient of the input.
    pub(super) transposed: bool,
    pub(super) kernel: usize,
}

impl Correlation {
    /// `y` of `x`.
    pub(crate) fn forward(g: &Geometry) -> Self {
        let mut taps = Vec::with_capacity(g.kh * g.kw);
        for (ky, kx) in (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx))) {
            taps.push(Tap {
                row: (ky * g.dilation.0) as isize - g.padding.0 as isize,
                column: (kx * g.dilation.1) as isize - g.padding.1 as isize,
                kernel: ky * g.kw + kx,
            });
        }
        let mut this = Self {
            n: g.n,
            h: g.h,
            w: g.w,
            oh: g.oh,
            ow: g.ow,
            inputs: g.ci_group(),
            outputs: g.co_group(),
            groups: g.groups,
            stride: g.stride,
            step: (1, 1),
            rows: g.oh,
            columns: g.ow,
            phases: vec![Phase { row: 0, column: 0, taps }],
            transposed: false,
            kernel: g.kh * g.kw,
        };
        if g.pointwise() {
            this.flatten();
        }
        this
    }

    /// `dx` of `dy`: for each remainder b of the stride, the outputs s u + b are a plain correlation. With
    /// b + p = s m + a, tap k contributes where k d = a (mod s), and reads dy at u + m - floor(k d / s).
    pub(crate) fn grad_input(g: &Geometry) -> Self {
        let along = |b: usize, k: usize, s: usize, p: usize, d: usize| -> Option<isize> {
            ((b + p) % s == (k * d) % s).then(|| ((b + p) / s) as isize - (k * d / s) as isize)
        };
        let mut phases = Vec::new();
        for row in 0..g.stride.0.min(g.h) {
            for column in 0..g.stride.1.min(g.w) {
                let mut taps = Vec::new();
                for (ky, kx) in (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx))) {
                    let r = along(row, ky, g.stride.0, g.padding.0, g.dilation.0);
                    let c = along(column, kx, g.stride.1, g.padding.1, g.dilation.1);
                    if let (Some(r), Some(c)) = (r, c) {
                        taps.push(Tap { row: r, column: c, kernel: ky * g.kw + kx });
                    }
                }
                phases.push(Phase { row, column, taps });
            }
        }
        let mut this = Self {
            n: g.n,
            h: g.oh,
            w: g.ow,
            oh: g.h,
            ow: g.w,
            inputs: g.co_group(),
            outputs: g.ci_group(),
            groups: g.groups,
            stride: (1, 1),
            step: g.stride,
            rows: g.h.div_ceil(g.stride.0),
            columns: g.w.div_ceil(g.stride.1),
            phases,
            transposed: true,
            kernel: g.kh * g.kw,
        };
        if g.pointwise() {
            this.flatten();
        }
        this
    }

    /// Pixels that do not see each other are one long row.
    fn flatten(&mut self) {
        assert_eq!((self.h, self.w), (self.oh, self.ow), "pixels stay where they are");
        let pixels = self.n * self.h * self.w;
        (self.n, self.h, self.oh, self.rows) = (1, 1, 1, 1);
        (self.w, self.ow, self.columns) = (pixels, pixels, pixels);
    }

    pub(super) fn bounds(&self) -> Bounds {
        let taps = || self.phases.iter().flat_map(|phase| &phase.taps);
        let low = |f: fn(&Tap) -> isize| taps().map(f).min().unwrap_or(0);
        let high = |f: fn(&Tap) -> isize| taps().map(f).max().unwrap_or(0);
        let (rows, columns) = ((low(|t| t.row), high(|t| t.row)), (low(|t| t.column), high(|t| t.column)));
        let mut slots = vec![None; self.stride.1];
        let mut used = 0;
        for tap in taps() {
            let slot = &mut slots[(tap.column - columns.0) as usize % self.stride.1];
            if slot.is_none() {
                *slot = Some(used);
                used += 1;
            }
        }
        Bounds {
            row: rows.0,
            row_span: (rows.1 - rows.0) as usize,
            column: columns.0,
            column_reach: (columns.1 - columns.0) as usize / self.stride.1,
            slots,
            used: used.max(1),
        }
    }
}

/// What the taps of all phases touch.
pub(super) struct Bounds {
    pub(super) row: isize,
    pub(super) row_span: usize,
    pub(super) column: isize,
    /// Packed columns beyond the first that a tap reads.
    pub(super) column_reach: usize,
    /// For each remainder of the stride, the place of its columns in working memory.
    pub(super) slots: Vec<Option<usize>>,
    pub(super) used: usize,
}

/// How a correlation is cut up.
pub(super) struct Cut {
    /// Units of input channels at a time.
    pub(super) block: usize,
    /// Rows of a task.
    pub(super) rows: usize,
    /// Columns of a task.
    pub(super) columns: usize,
}

impl Cut {
    pub(super) fn new<T, F: Format<T>>(c: &Correlation, bounds: &Bounds, width: usize) -> Self {
        let unit = size_of::<F::Unit>();
        let units = c.inputs.div_ceil(F::PER_UNIT);
        let taps = c.phases.iter().map(|p| p.taps.len()).max().unwrap_or(1).max(1) * F::PRODUCTS.len();
        let fit = (WEIGHT_BYTES / (taps * width * unit)).max(8);
        let columns = if c.rows == 1 { c.columns.min(TASK_PIXELS) } else { c.columns };
        let packed = |rows: usize, columns: usize, units: usize| {
            let rows = (rows - 1) * c.stride.0 + bounds.row_span + 1;
            rows * bounds.used * (columns + bounds.column_reach) * units * unit * F::PLANES
        };
        // Blocks of like size, whole vectors where there are several.
        let even = |most: usize| {
            if units <= most { units } else { units.div_ceil(units.div_ceil(most)).next_multiple_of(8) }
        };
        let mut block = even(fit);
        if packed(1, columns, block) > INPUT_BYTES {
            let share = packed(1, columns, block).div_ceil(INPUT_BYTES);
            block = even((block / share).max(16));
        }
        let wanted = (TASK_PIXELS / columns.max(1)).max(1);
        let mut rows = wanted.min(c.n * c.rows).max(1);
        // Whole images, tasks of like size, or an equal part of one image.
        rows = if rows >= c.rows {
            c.n.div_ceil(c.n.div_ceil(rows / c.rows)) * c.rows
        } else {
            c.rows.div_ceil(c.rows.div_ceil(rows))
        };
        while rows > 1 && packed(rows.min(c.rows), columns, block) * rows.div_ceil(c.rows) > INPUT_BYTES {
            rows = if rows > c.rows { rows - c.rows } else { rows.div_ceil(2) };
        }
        Self { block, rows, columns }
    }
}
