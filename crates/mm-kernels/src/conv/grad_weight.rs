//! The driver of the gradient of the weight: for each tap, a matrix product over all pixels.
//!
//! A chunk of images (or a piece of one long row) at a time is copied into panels - a few input channels side by side
//! for each pixel, a block of output channels for each output pixel - and then every task sums its own elements of the
//! gradient over the chunk. Each element is one sum in one order, whatever the number of threads.
#![allow(unsafe_code)] // raw pointers for the tiles, from sizes that are checked at the top of each function

use super::format::Format;
use super::geometry::Geometry;
use super::panels::{Chunk, Plan, TILE_PIXELS, each, pack_x, pack_y};
use super::source::Source;
use super::tile::{GradTile, Width};
use crate::buffers::Buffer;
use crate::host::Real;
use crate::scratch::{self, Bytes, Shared};
use crate::simd::{BLOCK, Isa, on, transpose};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Output channels up to which a gradient is read in place.
const DIRECT: usize = 256;
/// Tasks that are wanted at least.
const TASKS: usize = 16;

/// The gradient of the weight, `(co, ci / groups, kh, kw)`.
pub(crate) fn grad_weight<T, F, X, Y>(isa: Isa, format: F, g: &Geometry, x: &X, dy: &Y) -> Vec<T>
where
    T: Real + Bytes,
    F: Format<T>,
    F::Unit: Bytes,
    X: Source<T>,
    Y: Source<T>,
{
    assert_eq!(x.len(), g.n * g.h * g.w * g.ci, "x has the size of its geometry");
    assert_eq!(dy.len(), g.n * g.oh * g.ow * g.co, "the output gradient has the size of its geometry");
    let tiles = format.tiles();
    let (plan, width) = Plan::new(g, |channels, pixels| {
        let width = tiles.width(channels, pixels);
        (width, width.registers * tiles.lanes)
    });
    let g = &plan.g;
    // Of each group and block of output channels, for each tap: channels x lanes.
    let block = plan.taps.len() * plan.channels * plan.lanes;
    let mut sums = Buffer::new(g.groups * plan.blocks * block);
    sums.par_chunks_mut(1 << 14).for_each(|sums| sums.fill(T::zero()));
    let chunks = plan.chunks::<T, F>();
    let sized = |f: fn(&Chunk) -> usize| chunks.iter().map(f).max().unwrap_or(0);
    let (images, columns) = (sized(|c| c.images.len()), sized(|c| c.columns.len()));
    let steps = columns.div_ceil(F::PER_UNIT);
    let x_plane = if columns == 0 { 0 } else { images * plan.rows() * plan.row_units(columns) * g.groups };
    // A gradient whose channels are whole blocks, and whose pixels are not so far apart that they fall on the same cache
    // lines, is read where it lies.
    let whole = g.co_group() % plan.lanes == 0 && g.co <= DIRECT;
    let direct = dy.units::<F>().filter(|_| whole);
    let y_plane =
        if direct.is_some() { 0 } else { images * g.oh * steps * plan.lanes * plan.blocks * g.groups };
    scratch::with::<F::Unit, _>(0, x_plane * F::PLANES, |x_panels| {
        scratch::with::<F::Unit, _>(1, y_plane * F::PLANES, |y_panels| {
            for chunk in &chunks {
                pack_x::<T, F, X>(isa, &plan, chunk, x, x_panels, x_plane);
                if direct.is_none() {
                    pack_y::<T, F, Y>(isa, &plan, chunk, dy, y_panels, y_plane);
                }
                sum::<T, F>(&plan, width, chunk, (x_panels, x_plane), (y_panels, y_plane), direct, &mut sums);
            }
        });
    });
    unpack(isa, &plan, &sums)
}

/// Adds the products of a chunk to the sums.
fn sum<T: Real + Bytes, F: Format<T>>(
    plan: &Plan,
    width: &'static Width<F::Unit, T>,
    chunk: &Chunk,
    (x, x_plane): (&[F::Unit], usize),
    (y, y_plane): (&[F::Unit], usize),
    direct: Option<&[F::Unit]>,
    sums: &mut [T],
) {
    let (g, lanes, images) = (&plan.g, plan.lanes, chunk.images.len());
    let columns = chunk.columns.len();
    let steps = columns.div_ceil(F::PER_UNIT);
    let (pitch, row_units, remainders) = (plan.pitch(columns), plan.row_units(columns), plan.remainders());
    let (rows, cig) = (plan.rows(), g.ci_group());
    let taps = plan.taps.len();
    let base = g.groups * plan.blocks * plan.tiles.len();
    let parts = TASKS.div_ceil(base).min(taps);
    // Few rows, or a part of a long one.
    let tile_rows = (TILE_PIXELS / columns).clamp(1, g.oh);
    let tile_steps = if tile_rows == 1 { (TILE_PIXELS / F::PER_UNIT).min(steps) } else { steps };
    // Several small images: sums are loaded and stored once for all of them.
    let whole = tile_rows == g.oh && tile_steps == steps;
    let tile_images = if whole { (TILE_PIXELS / (columns * g.oh)).clamp(1, images.max(1)) } else { 1 };
    let (sums_len, target) = (sums.len(), Shared::new(sums.as_mut_ptr()));
    let y_end = direct.map_or(y_plane, <[F::Unit]>::len);
    assert!(x.len() >= x_plane * F::PLANES && y.len() >= y_plane * F::PLANES);
    let job = |j: usize| {
        let (part, j) = (j % parts, j / parts);
        let (tile, block, group) =
            (j % plan.tiles.len(), j / plan.tiles.len() % plan.blocks, j / plan.tiles.len() / plan.blocks);
        let channels = &plan.tiles[tile];
        let run = width.grads[channels.len() - 1];
        for image in (0..images).step_by(tile_images) {
            let tile_images = tile_images.min(images - image);
            for row in (0..g.oh).step_by(tile_rows) {
                let tile_rows = tile_rows.min(g.oh - row);
                for step in (0..steps).step_by(tile_steps) {
                    let here = tile_steps.min(steps - step);
                    for tap in taps * part / parts..taps * (part + 1) / parts {
                        let (ky, kx) = plan.taps[tap];
                        let (column, pixel) = (kx * g.dilation.1, step * F::PER_UNIT);
                        let row_at = ((group * images + image) * rows + row * g.stride.0 + ky * g.dilation.0)
                            * row_units;
                        let (a, a_step) = if plan.merged {
                            (row_at + pixel * g.stride.1 * cig + channels.start, g.stride.1 * cig)
                        } else {
                            let at = column % g.stride.1 * pitch + column / g.stride.1 + pixel;
                            (
                                row_at + channels.start * remainders * pitch + at * channels.len(),
                                channels.len(),
                            )
                        };
                        let (b, b_image, b_row, b_step) = if direct.is_some() {
                            let pixel = ((chunk.images.start + image) * g.oh + row) * g.ow
                                + chunk.columns.start
                                + step;
                            (
                                pixel * g.co + group * g.co_group() + block * lanes,
                                g.oh * g.ow * g.co,
                                g.ow * g.co,
                                g.co,
                            )
                        } else {
                            let panel = (group * plan.blocks + block) * images + image;
                            (
                                ((panel * g.oh + row) * steps + step) * lanes,
                                g.oh * steps * lanes,
                                steps * lanes,
                                lanes,
                            )
                        };
                        let y = direct.unwrap_or(y);
                        let to = (((group * plan.blocks + block) * taps + tap) * plan.channels
                            + channels.start)
                            * lanes;
                        let (a_image, a_row) = (rows * row_units, g.stride.0 * row_units);
                        let a_end = a
                            + (tile_images - 1) * a_image
                            + (tile_rows - 1) * a_row
                            + (here - 1) * F::PER_UNIT * a_step;
                        let b_end =
                            b + (tile_images - 1) * b_image + (tile_rows - 1) * b_row + (here - 1) * b_step;
                        assert!(a_end + channels.len() <= x_plane && b_end + lanes <= y_end);
                        assert!(to + channels.len() * lanes <= sums_len);
                        for &(one, two) in F::PRODUCTS {
                            // SAFETY: a plane holds what the tile reads of it (asserted), and only this task adds to
                            // these sums.
                            unsafe {
                                run(&GradTile {
                                    a: x.as_ptr().add(one * x_plane + a),
                                    a_image,
                                    a_row,
                                    a_step: a_step * F::PER_UNIT,
                                    images: tile_images,
                                    rows: tile_rows,
                                    pixels: here,
                                    b: y.as_ptr().add(two * y_plane + b),
                                    b_image,
                                    b_row,
                                    b_step,
                                    y: target.get().add(to),
                                    y_stride: lanes,
                                });
                            }
                        }
                    }
                }
            }
        }
    };
    each(base * parts, images * g.oh * columns * g.co * plan.channels * taps, job);
}

/// The sums in the order of the weight.
fn unpack<T: Real + Bytes>(isa: Isa, plan: &Plan, sums: &[T]) -> Vec<T> {
    let (g, taps, lanes) = (&plan.g, plan.taps.len(), plan.lanes);
    let (cig, cog, kernel) = (g.ci_group(), g.co_group(), g.kh * g.kw);
    // Element (ky, kx, i) lies at ky * of_row + kx * of_column + i * lanes, whether merged or not.
    let of_column = if plan.merged { cig * lanes } else { plan.channels * lanes };
    let of_row = if plan.merged { plan.channels * lanes } else { g.kw * of_column };
    let outputs = BLOCK.min(lanes).min(cog);
    // Sixteen output channels of one group (fewer at its end) are turned round together.
    let fill = |group: usize, first: usize, dw: &mut [MaybeUninit<T>]| {
        let block = &sums[(group * plan.blocks + first / lanes) * taps * plan.channels * lanes..];
        let count = dw.len() / (cig * kernel);
        let mut rows = [[MaybeUninit::new(T::zero()); BLOCK]; BLOCK];
        for i in 0..cig {
            for tap in (0..kernel).step_by(BLOCK) {
                let here = BLOCK.min(kernel - tap);
                for (k, row) in rows.iter_mut().enumerate().take(here) {
                    let (ky, kx) = ((tap + k) / g.kw, (tap + k) % g.kw);
                    let at = ky * of_row + kx * of_column + i * lanes + first % lanes;
                    for (to, &from) in row.iter_mut().zip(&block[at..at + count]) {
                        to.write(from);
                    }
                }
                let at = i * kernel + tap;
                if count == BLOCK {
                    transpose(isa, &rows, &mut dw[at..], cig * kernel, here);
                } else {
                    for o in 0..count {
                        for (to, row) in dw[o * cig * kernel + at..][..here].iter_mut().zip(&rows) {
                            *to = row[o];
                        }
                    }
                }
            }
        }
    };
    let mut dw = Vec::with_capacity(g.co * cig * kernel);
    for (group, dw) in
        dw.spare_capacity_mut()[..g.co * cig * kernel].chunks_exact_mut(cog * cig * kernel).enumerate()
    {
        let size = outputs * cig * kernel;
        if dw.len() > 1 << 14 {
            dw.par_chunks_mut(size).enumerate().for_each(|(k, dw)| on(isa, || fill(group, k * outputs, dw)));
        } else {
            dw.chunks_mut(size).enumerate().for_each(|(k, dw)| fill(group, k * outputs, dw));
        }
    }
    // SAFETY: every output channel of every group has been written: all its input channels and taps.
    unsafe { dw.set_len(g.co * cig * kernel) };
    dw
}
