//! The driver of the forward pass and of the gradient of the input: both correlate an image with taps.
//!
//! A task is a run of output rows (or a piece of one long row). For each block of input channels it copies the input rows
//! it needs into working memory - channel by channel, columns side by side, borders as zeros, so that the pixels of a tile
//! lie next to each other whatever the stride - and runs the tiles over it. Each output is one sum in one order: the
//! partition into tasks and the number of threads do not change its bits.
#![allow(unsafe_code)] // raw pointers for the tiles, from sizes that are checked at the top of each function

use super::format::Format;
use super::geometry::Geometry;
use super::tile::{Start, Tile, Width};
use crate::buffers::Buffer;
use crate::host::Real;
use crate::scratch::{self, Bytes, Shared};
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{self, Part};
use crate::simd::{BLOCK, Isa, on, transpose};
use rayon::prelude::*;
use std::any::TypeId;
use std::borrow::Cow;

/// Pixels of a task: enough to use each packed weight often, few enough for the second-level cache.
const TASK_PIXELS: usize = 448;
/// Bytes of weights that one tile runs over.
const WEIGHT_BYTES: usize = 160 * 1024;
/// Bytes of packed input of a task.
const INPUT_BYTES: usize = 320 * 1024;

/// One tap: where it reads relative to `row * stride`, and which kernel element it multiplies.
#[derive(Debug, Clone, Copy)]
struct Tap {
    row: isize,
    column: isize,
    kernel: usize,
}

/// The taps of the outputs at `row + i * step`, `column + j * step`.
#[derive(Debug)]
struct Phase {
    row: usize,
    column: usize,
    taps: Vec<Tap>,
}

/// A correlation of `(n, h, w, groups * inputs)` to `(n, oh, ow, groups * outputs)`.
#[derive(Debug)]
pub(crate) struct Correlation {
    n: usize,
    h: usize,
    w: usize,
    oh: usize,
    ow: usize,
    /// Channels of one group.
    inputs: usize,
    outputs: usize,
    groups: usize,
    /// Input pixels from one place of a phase to the next.
    stride: (usize, usize),
    /// Output pixels from one place of a phase to the next.
    step: (usize, usize),
    /// Places of the largest phase.
    rows: usize,
    columns: usize,
    phases: Vec<Phase>,
    /// Whether kernel elements are taken as `(input, output)`: the gradient of the input.
    transposed: bool,
    kernel: usize,
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

    fn bounds(&self) -> Bounds {
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
struct Bounds {
    row: isize,
    row_span: usize,
    column: isize,
    /// Packed columns beyond the first that a tap reads.
    column_reach: usize,
    /// For each remainder of the stride, the place of its columns in working memory.
    slots: Vec<Option<usize>>,
    used: usize,
}

/// What is correlated: numbers as they are stored, or a function of each.
pub(crate) trait Source<T>: Sync {
    /// The value at flat index `i` of channel `c`.
    ///
    /// # Safety
    /// `i` and `c` are in range.
    unsafe fn at(&self, i: usize, c: usize) -> T;
    /// Numbers stored.
    fn len(&self) -> usize;
    /// The numbers as the units of a format, if they lie in memory as such.
    fn units<F: Format<T>>(&self) -> Option<&[F::Unit]> {
        None
    }
    /// The numbers as `f32`, and the scale and shift of a [`Normalised`] source, if that is what they are.
    fn raw(&self) -> Option<Raw<'_>> {
        None
    }
    /// The numbers, for an image of so many channels.
    fn numbers(&self, channels: usize) -> Cow<'_, [T]>
    where
        T: Clone;
}

/// The numbers themselves.
pub(crate) struct Stored<'a, T>(pub(crate) &'a [T]);

/// A source of `f32`, for the packing that is written for a processor.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) affine: Option<(&'a [f32], &'a [f32])>,
}

/// A slice as one of another type, if the types are the same.
pub(super) fn same<A: 'static, B: 'static>(x: &[A]) -> Option<&[B]> {
    // SAFETY: the types are the same.
    (TypeId::of::<A>() == TypeId::of::<B>())
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
}

/// As [`same`], to write to.
#[cfg(feature = "onednn")]
pub(super) fn same_mut<A: 'static, B: 'static>(x: &mut [A]) -> Option<&mut [B]> {
    // SAFETY: the types are the same.
    (TypeId::of::<A>() == TypeId::of::<B>())
        .then(|| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) })
}

impl<T: Copy + Sync + 'static> Source<T> for Stored<'_, T> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, _: usize) -> T {
        debug_assert!(i < self.0.len());
        // SAFETY: the caller's promise.
        unsafe { *self.0.get_unchecked(i) }
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn numbers(&self, _: usize) -> Cow<'_, [T]> {
        Cow::Borrowed(self.0)
    }

    fn units<F: Format<T>>(&self) -> Option<&[F::Unit]> {
        same(self.0)
    }

    fn raw(&self) -> Option<Raw<'_>> {
        Some(Raw { x: same(self.0)?, affine: None })
    }
}

/// max(scale x + shift, 0) of each number: a batch normalisation and its ReLU.
pub(crate) struct Normalised<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) scale: &'a [T],
    pub(crate) shift: &'a [T],
}

impl<T: Real> Source<T> for Normalised<'_, T> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, c: usize) -> T {
        debug_assert!(i < self.x.len() && c < self.scale.len() && c < self.shift.len());
        // SAFETY: the caller's promise.
        let (x, a, b) =
            unsafe { (*self.x.get_unchecked(i), *self.scale.get_unchecked(c), *self.shift.get_unchecked(c)) };
        let y = x * a + b;
        if y > T::zero() || y.is_nan() { y } else { T::zero() }
    }

    fn len(&self) -> usize {
        self.x.len()
    }

    fn numbers(&self, channels: usize) -> Cow<'_, [T]> {
        assert!(channels <= self.scale.len() && channels <= self.shift.len());
        // SAFETY: the indices are those of x, and the channels are in range.
        Cow::Owned((0..self.x.len()).map(|i| unsafe { self.at(i, i % channels) }).collect())
    }

    fn raw(&self) -> Option<Raw<'_>> {
        Some(Raw { x: same(self.x)?, affine: Some((same(self.scale)?, same(self.shift)?)) })
    }
}

/// How a correlation is cut up.
struct Cut {
    /// Units of input channels at a time.
    block: usize,
    /// Rows of a task.
    rows: usize,
    /// Columns of a task.
    columns: usize,
}

impl Cut {
    fn new<T, F: Format<T>>(c: &Correlation, bounds: &Bounds, width: usize) -> Self {
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

/// The weights in the order in which the tiles read them: group, phase, block of output channels, unit of input channels,
/// product, tap, output channel.
fn pack_weights<T: Real + Bytes, F: Format<T>>(
    isa: Isa,
    c: &Correlation,
    w: &[T],
    width: usize,
) -> Buffer<F::Unit>
where
    F::Unit: Bytes,
{
    assert_eq!(
        w.len(),
        c.groups * c.outputs * c.inputs * c.kernel,
        "the weight has the size of its geometry"
    );
    let units = c.inputs.div_ceil(F::PER_UNIT);
    let mut jobs = Vec::new();
    let mut total = 0;
    for group in 0..c.groups {
        for phase in &c.phases {
            let row = F::PRODUCTS.len() * phase.taps.len() * width;
            for block in 0..c.outputs.div_ceil(width) {
                for first in (0..units).step_by(64) {
                    jobs.push((total + row * first, group, phase, block, first));
                }
                total += row * units;
            }
        }
    }
    // Element (o, i, tap) of a group lies at o * of_output + i * of_input + tap.
    let (of_output, of_input) =
        if c.transposed { (c.kernel, c.outputs * c.kernel) } else { (c.inputs * c.kernel, c.kernel) };
    let group_size = c.inputs * c.outputs * c.kernel;
    let fill = |out: *mut F::Unit| {
        let out = Shared::new(out);
        let job = |&(start, group, phase, block, first): &(usize, usize, &Phase, usize, usize)| {
            let w = &w[group * group_size..][..group_size];
            let row = F::PRODUCTS.len() * phase.taps.len() * width;
            // Lanes are turned round sixteen at a time, all taps of a unit together.
            let mut turned = vec![T::zero(); F::PER_UNIT * c.kernel.next_multiple_of(BLOCK) * BLOCK];
            let mut rows = [[T::zero(); BLOCK]; BLOCK];
            for lane in (0..width).step_by(BLOCK) {
                let output = block * width + lane;
                let lanes = BLOCK.min(width - lane);
                let valid = lanes.min(c.outputs.saturating_sub(output));
                for u in first..(first + 64).min(units) {
                    for (k, turned) in
                        turned.chunks_exact_mut(c.kernel.next_multiple_of(BLOCK) * BLOCK).enumerate()
                    {
                        let i = u * F::PER_UNIT + k;
                        for (tap, turned) in
                            (0..c.kernel).step_by(BLOCK).zip(turned.chunks_exact_mut(BLOCK * BLOCK))
                        {
                            let taps = BLOCK.min(c.kernel - tap);
                            for (o, row) in rows.iter_mut().enumerate() {
                                if i >= c.inputs || o >= valid {
                                    *row = [T::zero(); BLOCK];
                                    continue;
                                }
                                // More than the taps where there is more: sixteen at once are faster than nine.
                                let at = (output + o) * of_output + i * of_input + tap;
                                match w.get(at..at + BLOCK) {
                                    Some(w) => row.copy_from_slice(w),
                                    None => row[..taps].copy_from_slice(&w[at..at + taps]),
                                }
                            }
                            transpose(isa, &rows, turned, BLOCK, BLOCK);
                        }
                    }
                    for (p, &(_, plane)) in F::PRODUCTS.iter().enumerate() {
                        for (t, tap) in phase.taps.iter().enumerate() {
                            let at = start + (u - first) * row + (p * phase.taps.len() + t) * width + lane;
                            let one = &turned[tap.kernel * BLOCK..][..BLOCK];
                            let two = &turned[(F::PER_UNIT - 1) * c.kernel.next_multiple_of(BLOCK) * BLOCK
                                + tap.kernel * BLOCK..][..BLOCK];
                            for o in 0..lanes {
                                // SAFETY: jobs do not overlap and together are `total`; this is a row of this one.
                                unsafe { out.get().add(at + o).write(F::unit(one[o], two[o], plane)) };
                            }
                        }
                    }
                }
            }
        };
        if total > 1 << 14 {
            jobs.par_iter().for_each(|j| on(isa, || job(j)));
        } else {
            jobs.iter().for_each(job);
        }
    };
    // All of it is written: all blocks, units, products, taps and lanes.
    let mut packed = Buffer::new(total);
    fill(packed.as_mut_ptr());
    packed
}

/// What the outputs start from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base<'a, T> {
    /// Zero.
    Zero,
    /// A value per output channel.
    Bias(&'a [T]),
    /// The numbers that are there already.
    Added,
}

/// What is called with the number of a task and its finished pixels.
pub(crate) type Done<'a, T> = Option<&'a (dyn Fn(usize, &mut [T]) + Sync)>;

/// Runs a correlation and writes every number of `y`.
///
/// `done(task, rows)` is called with each finished run of whole outputs (whole pixels, in memory order) when the phases
/// are one, that is, for a forward pass; tasks are numbered from zero in memory order.
///
/// # Safety
/// `y` is valid for `n * oh * ow * groups * outputs` numbers, which are initialised if `base` is `Added`.
#[allow(clippy::too_many_arguments)] // one call, of all that a correlation is
pub(crate) unsafe fn correlate<T, F, S>(
    isa: Isa,
    format: F,
    c: &Correlation,
    x: &S,
    w: &[T],
    base: Base<'_, T>,
    y: *mut T,
    done: Done<'_, T>,
) where
    T: Real + Bytes,
    F: Format<T>,
    F::Unit: Bytes,
    S: Source<T>,
{
    assert_eq!(x.len(), c.n * c.h * c.w * c.groups * c.inputs, "the input has the size of its geometry");
    if c.n * c.oh * c.ow == 0 {
        return;
    }
    let bounds = c.bounds();
    let tiles = format.tiles();
    let width = tiles.width(c.outputs, c.columns);
    let lanes = width.registers * tiles.lanes;
    let cut = Cut::new::<T, F>(c, &bounds, lanes);
    let weights = pack_weights::<T, F>(isa, c, w, lanes);
    let bias = match base {
        Base::Bias(bias) => {
            assert_eq!(bias.len(), c.groups * c.outputs, "one bias per output channel");
            // Whole blocks: a tile loads all its lanes.
            let mut padded = vec![T::zero(); c.groups * c.outputs.next_multiple_of(lanes)];
            for (to, from) in
                padded.chunks_exact_mut(c.outputs.next_multiple_of(lanes)).zip(bias.chunks_exact(c.outputs))
            {
                to[..c.outputs].copy_from_slice(from);
            }
            Some(padded)
        }
        _ => None,
    };
    let task = Run {
        isa,
        c,
        bounds: &bounds,
        width,
        lanes,
        cut: &cut,
        weights: &weights,
        bias: bias.as_deref(),
        added: matches!(base, Base::Added),
        y: Shared::new(y),
    };
    let pieces = c.columns.div_ceil(cut.columns);
    let row_tasks = (c.n * c.rows).div_ceil(cut.rows);
    let body = |t: usize| {
        let rows = t / pieces * cut.rows..(t / pieces * cut.rows + cut.rows).min(c.n * c.rows);
        let columns = t % pieces * cut.columns..(t % pieces * cut.columns + cut.columns).min(c.columns);
        // SAFETY: tasks own different rows or columns of places, and so different outputs; sizes were checked above.
        unsafe { task.run::<F, S>(x, rows.clone(), columns.clone()) };
        if let Some(done) = done {
            let channels = c.groups * c.outputs;
            let start = (rows.start * c.ow + columns.start) * channels;
            let len = ((rows.len() - 1) * c.ow + columns.len()) * channels;
            // SAFETY: with one phase the task has just written this run, or a piece of its only row, and owns it.
            done(t, unsafe { std::slice::from_raw_parts_mut(y_at(task.y, start), len) });
        }
    };
    let work = c.n * c.oh * c.ow * c.outputs * c.inputs * c.kernel;
    if work < 1 << 16 {
        (0..row_tasks * pieces).for_each(body);
    } else {
        (0..row_tasks * pieces).into_par_iter().for_each(body);
    }
}

fn y_at<T>(y: Shared<T>, at: usize) -> *mut T {
    // SAFETY: callers pass offsets within the output.
    unsafe { y.get().add(at) }
}

/// The number of tasks of a forward correlation: what `done` counts to.
pub(crate) fn tasks<T: 'static, F: Format<T>>(format: F, c: &Correlation) -> usize {
    let bounds = c.bounds();
    let tiles = format.tiles();
    let width = tiles.width(c.outputs, c.columns);
    let cut = Cut::new::<T, F>(c, &bounds, width.registers * tiles.lanes);
    (c.n * c.rows).div_ceil(cut.rows) * c.columns.div_ceil(cut.columns)
}

struct Run<'a, T, U: 'static>
where
    T: 'static,
{
    isa: Isa,
    c: &'a Correlation,
    bounds: &'a Bounds,
    width: &'static Width<U, T>,
    lanes: usize,
    cut: &'a Cut,
    weights: &'a [U],
    bias: Option<&'a [T]>,
    added: bool,
    y: Shared<T>,
}

/// Rows `first .. first + rows` of places of one image, packed at `offset`.
struct Segment {
    image: usize,
    first: usize,
    rows: usize,
    offset: usize,
}

impl<T: Real + Bytes, U: Bytes + Default + Send + Sync> Run<'_, T, U> {
    unsafe fn run<F, S>(&self, x: &S, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>)
    where
        F: Format<T, Unit = U>,
        S: Source<T>,
    {
        let (c, bounds, cut) = (self.c, self.bounds, self.cut);
        let units = c.inputs.div_ceil(F::PER_UNIT);
        let pitch = columns.len() + bounds.column_reach;
        let row_units = bounds.used * cut.block * pitch;
        let mut segments = Vec::with_capacity(rows.len() / c.rows + 2);
        let (mut row, mut offset) = (rows.start, 0);
        while row < rows.end {
            let (image, first) = (row / c.rows, row % c.rows);
            let here = (c.rows - first).min(rows.end - row);
            segments.push(Segment { image, first, rows: here, offset });
            offset += ((here - 1) * c.stride.0 + bounds.row_span + 1) * row_units;
            row += here;
        }
        let plane = offset;
        // A tile of M pixels broadcasts only what exists; no padding at the end is needed.
        scratch::with::<U, _>(0, plane * F::PLANES, |packed| {
            for group in 0..c.groups {
                for first in (0..units).step_by(cut.block) {
                    let here = cut.block.min(units - first);
                    for segment in &segments {
                        let job = Pack {
                            isa: self.isa,
                            c,
                            bounds,
                            segment,
                            columns: columns.clone(),
                            group,
                            first,
                            here,
                            block: cut.block,
                            pitch,
                            plane,
                        };
                        job.run::<T, F, S>(x, packed);
                    }
                    // SAFETY: passed on.
                    unsafe { self.tiles::<F>(packed, &segments, &columns, pitch, plane, group, first, here) };
                }
            }
        });
    }

    #[allow(clippy::too_many_arguments)] // one call, split off for its length
    unsafe fn tiles<F: Format<T, Unit = U>>(
        &self,
        packed: &[U],
        segments: &[Segment],
        columns: &std::ops::Range<usize>,
        pitch: usize,
        plane: usize,
        group: usize,
        first: usize,
        here: usize,
    ) {
        let (c, bounds, lanes) = (self.c, self.bounds, self.lanes);
        let units = c.inputs.div_ceil(F::PER_UNIT);
        let channels = c.groups * c.outputs;
        let total = c.n * c.oh * c.ow * channels;
        let row_units = bounds.used * self.cut.block * pitch;
        let blocks = c.outputs.div_ceil(lanes);
        let per_group: usize =
            c.phases.iter().map(|p| F::PRODUCTS.len() * p.taps.len() * units * lanes * blocks).sum();
        let mut phase_start = group * per_group;
        let mut spare = [T::zero(); 14 * 64];
        for phase in &c.phases {
            let taps = phase.taps.len();
            let mut offsets = Vec::with_capacity(F::PRODUCTS.len() * taps);
            for &(part, _) in F::PRODUCTS {
                for tap in &phase.taps {
                    let column = (tap.column - bounds.column) as usize;
                    let slot = bounds.slots[column % c.stride.1].unwrap_or(0);
                    let row = (tap.row - bounds.row) as usize;
                    offsets.push(
                        part * plane + row * row_units + slot * self.cut.block * pitch + column / c.stride.1,
                    );
                }
            }
            let reach = offsets.iter().max().map_or(0, |last| last + here.saturating_sub(1) * pitch);
            // The columns of this phase: those of its places that are within the output.
            let places = c.ow.saturating_sub(phase.column).div_ceil(c.step.1);
            let columns = columns.start.min(places)..columns.end.min(places);
            let most = self.width.tiles.len();
            for block in 0..blocks {
                let valid = lanes.min(c.outputs - block * lanes);
                let size = F::PRODUCTS.len() * taps * units * lanes;
                let at = phase_start + block * size + F::PRODUCTS.len() * taps * first * lanes;
                let b = &self.weights[at..at + F::PRODUCTS.len() * taps * here * lanes];
                let start = match (first, self.bias) {
                    (0, Some(bias)) => {
                        let from = group * c.outputs.next_multiple_of(lanes) + block * lanes;
                        Start::Row(bias[from..from + lanes].as_ptr())
                    }
                    (0, None) if !self.added => Start::Zero,
                    _ => Start::Y,
                };
                for segment in segments {
                    for r in 0..segment.rows {
                        let row = (segment.first + r) * c.step.0 + phase.row;
                        if row >= c.oh {
                            continue;
                        }
                        let pixel0 = (segment.image * c.oh + row) * c.ow + phase.column;
                        let a_row = segment.offset + r * c.stride.0 * row_units;
                        let mut done = 0;
                        let mut left = columns.len().div_ceil(most);
                        while left > 0 {
                            let m = (columns.len() - done).div_ceil(left);
                            let place = columns.start + done;
                            let y =
                                (pixel0 + place * c.step.1) * channels + group * c.outputs + block * lanes;
                            let a = a_row + done;
                            assert!(
                                y + (m - 1) * c.step.1 * channels + valid <= total
                                    && a + reach + m <= packed.len()
                            );
                            // SAFETY: what the tile reads lies within the packed rows and its m pixels within `y`:
                            // asserted; `b` has a row per tap and unit, and the pixels are this task's own.
                            unsafe {
                                let y = self.y.get().add(y);
                                let mut tile = Tile {
                                    a: packed.as_ptr().add(a),
                                    offsets: &offsets,
                                    run: here,
                                    a_step: pitch,
                                    b: b.as_ptr(),
                                    y,
                                    y_stride: c.step.1 * channels,
                                    start: match start {
                                        Start::Zero => Start::Zero,
                                        Start::Row(row) => Start::Row(row),
                                        Start::Y => Start::Y,
                                    },
                                };
                                if valid == lanes {
                                    self.width.tiles[m - 1](&tile);
                                } else {
                                    // Lanes beyond the last channel go to spare room.
                                    tile.y = spare.as_mut_ptr();
                                    tile.y_stride = lanes;
                                    if matches!(tile.start, Start::Y) {
                                        for i in 0..m {
                                            let from = y.add(i * c.step.1 * channels);
                                            std::ptr::copy_nonoverlapping(from, tile.y.add(i * lanes), valid);
                                        }
                                    }
                                    self.width.tiles[m - 1](&tile);
                                    for i in 0..m {
                                        let to = y.add(i * c.step.1 * channels);
                                        std::ptr::copy_nonoverlapping(tile.y.add(i * lanes), to, valid);
                                    }
                                }
                            }
                            done += m;
                            left -= 1;
                        }
                    }
                }
            }
            phase_start += F::PRODUCTS.len() * taps * units * lanes * blocks;
        }
    }
}

/// Copies the rows that a segment reads into working memory.
struct Pack<'a> {
    isa: Isa,
    c: &'a Correlation,
    bounds: &'a Bounds,
    segment: &'a Segment,
    columns: std::ops::Range<usize>,
    group: usize,
    first: usize,
    here: usize,
    block: usize,
    pitch: usize,
    plane: usize,
}

impl Pack<'_> {
    fn run<T: Real, F: Format<T>, S: Source<T>>(&self, x: &S, packed: &mut [F::Unit]) {
        on(self.isa, || self.fill::<T, F, S>(x, packed));
    }

    /// Packs the whole blocks of a strip with the processor's own instructions, if it has them for this format.
    #[allow(clippy::too_many_arguments, unused_variables)] // one call; not all processors use all
    #[inline(always)]
    fn raw<T: Real, F: Format<T>, S: Source<T>>(
        &self,
        x: &S,
        at: usize,
        step: usize,
        channel: usize,
        whole: usize,
        plane: usize,
        pixels: usize,
        out: &mut [F::Unit],
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512 { bf16 }, Some(raw)) = (self.isa, x.raw())
            && size_of::<F::Unit>() == 4
            && (bf16 || F::PER_UNIT == 1)
        {
            if whole == 0 {
                return true;
            }
            let width = BLOCK * F::PER_UNIT;
            let numbers = whole / BLOCK * width;
            assert!(at + (pixels - 1) * step + numbers <= raw.x.len() && pixels <= BLOCK);
            assert!((whole - 1) * self.pitch + pixels <= out.len());
            assert!(raw.affine.is_none_or(|(a, b)| channel + numbers <= a.len().min(b.len())));
            for block in 0..whole / BLOCK {
                // SAFETY: the numbers, constants and units of the blocks are in range: asserted above.
                unsafe {
                    let x = raw.x.as_ptr().add(at + block * width);
                    let first = channel + block * width;
                    let affine = raw.affine.map(|(a, b)| (a.as_ptr().add(first), b.as_ptr().add(first)));
                    let out = out.as_mut_ptr().add(block * BLOCK * self.pitch).cast();
                    match (F::PER_UNIT, plane) {
                        (1, _) => x86::pack_whole(x, step, pixels, affine, out, self.pitch),
                        (_, 0) => x86::pack(Part::Rounded, x, step, pixels, affine, out, self.pitch),
                        _ => x86::pack(Part::Rest, x, step, pixels, affine, out, self.pitch),
                    }
                }
            }
            return true;
        }
        false
    }

    #[inline(always)]
    fn fill<T: Real, F: Format<T>, S: Source<T>>(&self, x: &S, packed: &mut [F::Unit]) {
        let (c, bounds, pitch) = (self.c, self.bounds, self.pitch);
        let row_units = bounds.used * self.block * pitch;
        let channels = c.groups * c.inputs;
        let channel0 = self.group * c.inputs + self.first * F::PER_UNIT;
        let end = (self.group + 1) * c.inputs;
        let rows = (self.segment.rows - 1) * c.stride.0 + bounds.row_span + 1;
        let left = (self.columns.start * c.stride.1) as isize + bounds.column;
        for r in 0..rows {
            let source = (self.segment.first * c.stride.0 + r) as isize + bounds.row;
            for (remainder, slot) in bounds.slots.iter().enumerate() {
                let Some(slot) = slot else { continue };
                let at = self.segment.offset + r * row_units + slot * self.block * pitch;
                // Column q reads input column left + remainder + q stride; from .. to are those that exist.
                let (stride, base) = (c.stride.1 as isize, left + remainder as isize);
                let from = if base >= 0 { 0 } else { ((-base + stride - 1) / stride) as usize }.min(pitch);
                let exist = c.w as isize - base;
                let to = if exist <= 0 { 0 } else { ((exist + stride - 1) / stride) as usize }
                    .min(pitch)
                    .max(from);
                let inside = source >= 0 && (source as usize) < c.h;
                for plane in 0..F::PLANES {
                    let out = &mut packed[plane * self.plane + at..][..self.here * pitch];
                    if !inside {
                        out.fill(F::Unit::default());
                        continue;
                    }
                    let row = (self.segment.image * c.h + source as usize) * c.w;
                    let pixel = |q: usize| (row + (base + q as isize * stride) as usize) * channels;
                    for out in out.chunks_exact_mut(pitch) {
                        out[..from].fill(F::Unit::default());
                        out[to..].fill(F::Unit::default());
                    }
                    // Columns in strips of sixteen, units in blocks of sixteen: a block is read pixel by pixel and
                    // turned round in registers.
                    let mut q = from;
                    while q < to {
                        let strip = (to - q).min(BLOCK);
                        // Of the last unit the second number may not exist: whole blocks end before it.
                        let whole =
                            (self.here * F::PER_UNIT).min(end - channel0) / (BLOCK * F::PER_UNIT) * BLOCK;
                        let at = pixel(q) + channel0;
                        let packed = self.raw::<T, F, S>(
                            x,
                            at,
                            stride as usize * channels,
                            channel0,
                            whole,
                            plane,
                            strip,
                            &mut out[q..],
                        );
                        for u in (0..if packed { 0 } else { whole }).step_by(BLOCK) {
                            let i = channel0 + u * F::PER_UNIT;
                            let mut block = [[F::Unit::default(); BLOCK]; BLOCK];
                            for (k, block) in block.iter_mut().enumerate().take(strip) {
                                let at = pixel(q + k) + i;
                                for (j, unit) in block.iter_mut().enumerate() {
                                    let j = j * F::PER_UNIT;
                                    // SAFETY: row and column exist, so do the channels of a whole block, and the source has
                                    // the size of the geometry.
                                    let (one, two) = unsafe {
                                        let second = if F::PER_UNIT == 2 {
                                            x.at(at + j + 1, i + j + 1)
                                        } else {
                                            T::zero()
                                        };
                                        (x.at(at + j, i + j), second)
                                    };
                                    *unit = F::unit(one, two, plane);
                                }
                            }
                            transpose(self.isa, &block, &mut out[u * pitch + q..], pitch, strip);
                        }
                        for u in whole..self.here {
                            let i = channel0 + u * F::PER_UNIT;
                            let second = F::PER_UNIT == 2 && i + 1 < end;
                            let out = &mut out[u * pitch + q..][..strip];
                            for (k, out) in out.iter_mut().enumerate() {
                                let at = pixel(q + k) + i;
                                // SAFETY: as above.
                                let (one, two) = unsafe {
                                    (x.at(at, i), if second { x.at(at + 1, i + 1) } else { T::zero() })
                                };
                                *out = F::unit(one, two, plane);
                            }
                        }
                        q += strip;
                    }
                }
            }
        }
    }
}
