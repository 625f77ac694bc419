//! The driver of the forward pass and of the gradient of the input: both correlate an image with taps.
//!
//! A task is a run of output rows (or a piece of one long row). For each block of input channels it copies the input rows
//! it needs into working memory - channel by channel, columns side by side, borders as zeros, so that the pixels of a tile
//! lie next to each other whatever the stride - and runs the tiles over it. Each output is one sum in one order: the
//! partition into tasks and the number of threads do not change its bits.
#![allow(unsafe_code)] // raw pointers for the tiles, from sizes that are checked at the top of each function

use super::format::Format;
use super::pack_input::{Pack, Segment};
use super::pack_weights::pack_weights;
use super::source::Source;
use super::taps::{Bounds, Correlation, Cut};
use super::tile::{Start, Tile, Width};
use crate::host::Real;
use crate::scratch::{self, Bytes, Shared};
use crate::simd::Isa;
use rayon::prelude::*;

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

/// Copies some lanes of a pixel, eight at a time: a call for each pixel would cost more than the copy.
///
/// # Safety
/// Both pointers are valid for `len` numbers, and what they point to does not overlap.
#[inline(always)]
unsafe fn copy_lanes<T: Copy>(from: *const T, to: *mut T, len: usize) {
    let mut at = 0;
    // SAFETY: the caller's promise; each step ends within `len`.
    unsafe {
        while at + 8 <= len {
            to.add(at).cast::<[T; 8]>().write_unaligned(from.add(at).cast::<[T; 8]>().read_unaligned());
            at += 8;
        }
        while at < len {
            to.add(at).write(from.add(at).read());
            at += 1;
        }
    }
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
                                            copy_lanes(from, tile.y.add(i * lanes), valid);
                                        }
                                    }
                                    self.width.tiles[m - 1](&tile);
                                    for i in 0..m {
                                        let to = y.add(i * c.step.1 * channels);
                                        copy_lanes(tile.y.add(i * lanes), to, valid);
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
