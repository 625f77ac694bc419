//! The driver of the gradient of the weight: for each tap, a matrix product over all pixels.
//!
//! A chunk of images (or a piece of one long row) at a time is copied into panels - a few input channels side by side
//! for each pixel, a block of output channels for each output pixel - and then every task sums its own elements of the
//! gradient over the chunk. Each element is one sum in one order, whatever the number of threads.
#![allow(unsafe_code)] // raw pointers for the tiles, from sizes that are checked at the top of each function

use super::correlate::Source;
use super::format::Format;
use super::geometry::Geometry;
use super::tile::{GradTile, Width};
use crate::buffers::Buffer;
use crate::host::Real;
use crate::scratch::{self, Bytes, Shared};
#[cfg(target_arch = "x86_64")]
use crate::simd::x86;
use crate::simd::{BLOCK, Isa, on, transpose};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of panels of a chunk.
const CHUNK_BYTES: usize = 3 << 20;
/// Pixels that a tile sums before the next tap reads the same ones again.
const TILE_PIXELS: usize = 224;
/// Output channels up to which a gradient is read in place.
const DIRECT: usize = 256;
/// Tasks that are wanted at least.
const TASKS: usize = 16;

/// What is summed: the taps of the kernel, or its rows with their columns and channels as one run of "channels".
struct Plan {
    g: Geometry,
    /// Columns of a kernel row are part of the channels: for images of few channels.
    merged: bool,
    /// Channels of one tap.
    channels: usize,
    /// (kernel row, kernel column) of each tap; the column is zero if merged.
    taps: Vec<(usize, usize)>,
    /// Consecutive channels of a tile, of like size.
    tiles: Vec<Range<usize>>,
    /// Output channels of a block.
    lanes: usize,
    blocks: usize,
}

/// A piece of the batch.
#[derive(Debug, Clone)]
struct Chunk {
    images: Range<usize>,
    columns: Range<usize>,
}

impl Plan {
    fn new<T, U>(
        g: &Geometry,
        width: impl Fn(usize, usize) -> (&'static Width<U, T>, usize),
    ) -> (Self, &'static Width<U, T>) {
        let mut g = *g;
        if g.pointwise() {
            let pixels = g.n * g.h * g.w;
            (g.n, g.h, g.oh, g.w, g.ow) = (1, 1, 1, pixels, pixels);
        }
        let cig = g.ci_group();
        let merged = cig < 8 && g.kw > 1 && g.dilation.1 == 1;
        let channels = if merged { g.kw * cig } else { cig };
        let taps = if merged {
            (0..g.kh).map(|ky| (ky, 0)).collect()
        } else {
            (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx))).collect()
        };
        let (width, lanes) = width(g.co_group(), channels);
        let count = channels.div_ceil(width.grads.len());
        let tiles = (0..count).map(|t| channels * t / count..channels * (t + 1) / count).collect();
        let blocks = g.co_group().div_ceil(lanes);
        (Self { g, merged, channels, taps, tiles, lanes, blocks }, width)
    }

    /// Rows of a packed image.
    fn rows(&self) -> usize {
        (self.g.oh - 1) * self.g.stride.0 + (self.g.kh - 1) * self.g.dilation.0 + 1
    }

    /// Packed columns of one remainder of the stride (of all of them, if merged) for `columns` output columns.
    fn pitch(&self, columns: usize) -> usize {
        if self.merged {
            (columns - 1) * self.g.stride.1 + self.g.kw
        } else {
            columns + (self.g.kw - 1) * self.g.dilation.1 / self.g.stride.1
        }
    }

    /// Remainders of the stride that are packed apart.
    fn remainders(&self) -> usize {
        if self.merged { 1 } else { self.g.stride.1.min((self.g.kw - 1) * self.g.dilation.1 + 1) }
    }

    /// Units of one row of one group.
    fn row_units(&self, columns: usize) -> usize {
        self.remainders() * self.pitch(columns) * self.g.ci_group()
    }

    fn chunks<T, F: Format<T>>(&self) -> Vec<Chunk> {
        let (g, unit) = (&self.g, size_of::<F::Unit>() * F::PLANES);
        let bytes = |columns: usize| {
            let x = self.rows() * self.row_units(columns) * g.groups;
            (x + g.oh * columns * self.blocks * self.lanes * g.groups) * unit
        };
        let mut columns = g.ow;
        if g.oh == 1 && g.kh == 1 {
            while columns > 2 * TILE_PIXELS && bytes(columns) > CHUNK_BYTES {
                columns = columns.div_ceil(2).next_multiple_of(2);
            }
        }
        let images = (CHUNK_BYTES / bytes(columns).max(1)).clamp(1, g.n.max(1));
        let mut chunks = Vec::new();
        for first in (0..g.n).step_by(images) {
            for column in (0..g.ow).step_by(columns) {
                let images = first..(first + images).min(g.n);
                chunks.push(Chunk { images, columns: column..(column + columns).min(g.ow) });
            }
        }
        chunks
    }
}

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

/// Runs `f` on the pool, or here if there is little to do.
fn each(count: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if work < 1 << 14 { (0..count).for_each(f) } else { (0..count).into_par_iter().for_each(f) }
}

/// Panels of `x`: group, image, row, then for each tile of channels: remainder, column, channel. Merged: row, column,
/// channel.
fn pack_x<T: Real, F: Format<T>, X: Source<T>>(
    isa: Isa,
    plan: &Plan,
    chunk: &Chunk,
    x: &X,
    panels: &mut [F::Unit],
    plane: usize,
) {
    let (g, rows, cig) = (&plan.g, plan.rows(), plan.g.ci_group());
    let (columns, images) = (chunk.columns.len(), chunk.images.len());
    let (pitch, row_units, remainders) = (plan.pitch(columns), plan.row_units(columns), plan.remainders());
    assert!(g.groups * images * rows * row_units <= plane && panels.len() >= plane * F::PLANES);
    let panels = Shared::new(panels.as_mut_ptr());
    let all = 0..cig;
    let tiles = if plan.merged { std::slice::from_ref(&all) } else { &plan.tiles[..] };
    let left = chunk.columns.start * g.stride.1;
    let job = |j: usize| {
        let (group, image, row) = (j / rows / images, j / rows % images, j % rows);
        for part in 0..F::PLANES {
            // SAFETY: rows of the panels do not overlap, and end within the plane: asserted above.
            let out = unsafe {
                std::slice::from_raw_parts_mut(panels.get().add(part * plane + j * row_units), row_units)
            };
            let Some(r) = row.checked_sub(g.padding.0).filter(|&r| r < g.h) else {
                out.fill(F::Unit::default());
                continue;
            };
            let source = ((chunk.images.start + image) * g.h + r) * g.w;
            // Packed column q of a remainder is input column left + remainder + q step - padding.
            let step = if plan.merged { 1 } else { g.stride.1 };
            for tile in tiles {
                let out = &mut out[tile.start * remainders * pitch..tile.end * remainders * pitch];
                let channel = group * cig + tile.start;
                for (remainder, out) in out.chunks_exact_mut(tile.len() * pitch).enumerate() {
                    let base = (left + remainder) as isize - g.padding.1 as isize;
                    let range = |base: isize| {
                        let from = if base >= 0 { 0 } else { (-base) as usize }.div_ceil(step).min(pitch);
                        let exist = (g.w as isize - base).max(0) as usize;
                        (from, exist.div_ceil(step).clamp(from, pitch))
                    };
                    let (from, to) = range(base);
                    if F::PER_UNIT == 1 {
                        out[..from * tile.len()].fill(F::Unit::default());
                        out[to * tile.len()..].fill(F::Unit::default());
                        let at = (source as isize + base + (from * step) as isize) as usize * g.ci + channel;
                        let out = &mut out[from * tile.len()..to * tile.len()];
                        if let Some(x) = x.units::<F>().filter(|_| step * g.ci == tile.len()) {
                            out.copy_from_slice(&x[at..at + out.len()]);
                            continue;
                        }
                        // SAFETY: rows, columns and channels exist, and the source has the size of the geometry.
                        unsafe { pixels::<T, F, X>(x, at, step * g.ci, channel, tile.len(), part, out) };
                        continue;
                    }
                    // The second of a pair is the pixel of the next output.
                    let (from2, to2) = range(base + g.stride.1 as isize);
                    let at = |q: usize| {
                        (source as isize + base + (q * step) as isize) * g.ci as isize + channel as isize
                    };
                    let (len, ahead) = (tile.len(), g.stride.1 * g.ci);
                    let mut both = from.max(from2)..to.min(to2);
                    let run =
                        PairRun { channel, part, units: both.len(), count: len, step: step * g.ci, ahead };
                    if both.is_empty()
                        || !pairs::<T, F, X>(
                            isa,
                            x,
                            &run,
                            at(both.start) as usize,
                            len,
                            &mut out[both.start * len..both.end * len],
                        )
                    {
                        both = 0..0;
                    }
                    for (q, out) in out.chunks_exact_mut(len).enumerate() {
                        if both.contains(&q) {
                            continue;
                        }
                        let (one, two) = ((from..to).contains(&q), (from2..to2).contains(&q));
                        for (i, out) in out.iter_mut().enumerate() {
                            let value = |exists: bool, ahead: usize| {
                                let at = at(q) + (ahead + i) as isize;
                                // SAFETY: as above, for what exists.
                                if exists { unsafe { x.at(at as usize, channel + i) } } else { T::zero() }
                            };
                            *out = F::unit(value(one, 0), value(two, ahead), part);
                        }
                    }
                }
            }
        }
    };
    each(g.groups * images * rows, images * rows * row_units, |j| on(isa, || job(j)));
}

/// Pairs of pixels that lie at even distances; see [`x86::Pairs`].
struct PairRun {
    channel: usize,
    part: usize,
    units: usize,
    count: usize,
    step: usize,
    ahead: usize,
}

/// Writes pairs of pixels, the first of which lies at `at`, with the processor's own instructions, if it has them for this
/// format; a unit's channels lie `out_step` from the last unit's.
#[allow(unused_variables)] // not all processors use all
#[inline(always)]
fn pairs<T: Real, F: Format<T>, X: Source<T>>(
    isa: Isa,
    x: &X,
    run: &PairRun,
    at: usize,
    out_step: usize,
    out: &mut [F::Unit],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx512 { bf16: true }, Some(raw)) = (isa, x.raw())
        && F::PER_UNIT == 2
        && size_of::<F::Unit>() == 4
    {
        let &PairRun { channel, part, mut units, mut count, mut step, ahead } = run;
        if units == 0 || count == 0 {
            return true;
        }
        assert!(at + (units - 1) * step + ahead + count <= raw.x.len(), "pixels lie in the source");
        assert!((units - 1) * out_step + count <= out.len(), "units have room");
        assert!(raw.affine.is_none_or(|(a, b)| channel + count <= a.len().min(b.len())));
        let mut out_step = out_step;
        if step == count && out_step == count && raw.affine.is_none() {
            // Pixels that follow one another are one run of numbers, which fills whole registers.
            (units, count, step, out_step) = (1, units * count, 0, 0);
        }
        for first in (0..count).step_by(BLOCK) {
            let here = (count - first).min(BLOCK);
            let p = x86::Pairs { rest: part == 1, units, count: here, step, ahead, out_step };
            // SAFETY: the numbers, constants and units are in range: asserted above. What lies between the units of one
            // block are units of its later ones or of other blocks, which are written after it: blocks of a unit rise.
            unsafe {
                let from = raw.x.as_ptr().add(at + first);
                let affine = raw
                    .affine
                    .map(|(a, b)| (a.as_ptr().add(channel + first), b.as_ptr().add(channel + first)));
                x86::pair_run(&p, from, affine, out.as_mut_ptr().add(first).cast());
            }
        }
        return true;
    }
    false
}

/// Copies `count` channels of pixels `step` apart; short runs of a length that the compiler knows.
///
/// # Safety
/// `at + k * step ..` holds `count` numbers for each of the pixels k that `out` has room for.
#[inline(always)]
unsafe fn pixels<T: Real, F: Format<T>, X: Source<T>>(
    x: &X,
    at: usize,
    step: usize,
    channel: usize,
    count: usize,
    part: usize,
    out: &mut [F::Unit],
) {
    macro_rules! run {
        ($count:expr) => {
            for (q, out) in out.chunks_exact_mut($count).enumerate() {
                for (i, out) in out.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    *out = F::unit(unsafe { x.at(at + q * step + i, channel + i) }, T::zero(), part);
                }
            }
        };
    }
    match count {
        1 => run!(1),
        3 => run!(3),
        7 => run!(7),
        11 => run!(11),
        12 => run!(12),
        13 => run!(13),
        14 => run!(14),
        count => run!(count),
    }
}

/// Panels of the output gradient: group, block of channels, image, row, step (one or two pixels), lane.
fn pack_y<T: Real, F: Format<T>, Y: Source<T>>(
    isa: Isa,
    plan: &Plan,
    chunk: &Chunk,
    dy: &Y,
    panels: &mut [F::Unit],
    plane: usize,
) {
    let (g, cog, lanes) = (&plan.g, plan.g.co_group(), plan.lanes);
    let (columns, images) = (chunk.columns.len(), chunk.images.len());
    let steps = columns.div_ceil(F::PER_UNIT);
    let row_units = steps * lanes;
    assert!(g.groups * plan.blocks * images * g.oh * row_units <= plane && panels.len() >= plane * F::PLANES);
    let panels = Shared::new(panels.as_mut_ptr());
    let job = |j: usize| {
        let (image, row) = (j / g.oh, j % g.oh);
        let source = ((chunk.images.start + image) * g.oh + row) * g.ow + chunk.columns.start;
        for (group, block) in
            (0..g.groups).flat_map(|group| (0..plan.blocks).map(move |block| (group, block)))
        {
            let valid = lanes.min(cog - block * lanes);
            let channel = group * cog + block * lanes;
            let at = (((group * plan.blocks + block) * images + image) * g.oh + row) * row_units;
            for part in 0..F::PLANES {
                // SAFETY: rows of the panels do not overlap, and end within the plane: asserted above.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(panels.get().add(part * plane + at), row_units) };
                let at = source * g.co + channel;
                let run =
                    PairRun { channel, part, units: columns / 2, count: valid, step: 2 * g.co, ahead: g.co };
                let paired = F::PER_UNIT == 2 && pairs::<T, F, Y>(isa, dy, &run, at, lanes, out);
                for (k, out) in out.chunks_exact_mut(lanes).enumerate() {
                    let first = k * F::PER_UNIT;
                    let pair = F::PER_UNIT == 2 && first + 1 < columns;
                    let (out, rest) = out.split_at_mut(valid);
                    rest.fill(F::Unit::default());
                    if paired && pair {
                        continue;
                    }
                    for (o, out) in out.iter_mut().enumerate() {
                        let i = (source + first) * g.co + channel + o;
                        // SAFETY: pixel and channel exist, and the source has the size of the geometry.
                        let (one, two) = unsafe {
                            (
                                dy.at(i, channel + o),
                                if pair { dy.at(i + g.co, channel + o) } else { T::zero() },
                            )
                        };
                        *out = F::unit(one, two, part);
                    }
                }
            }
        }
    };
    each(images * g.oh, images * g.oh * row_units * plan.blocks, |j| on(isa, || job(j)));
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
    let (sums_len, target) = (sums.len(), Shared::new(sums.as_mut_ptr()));
    let y_end = direct.map_or(y_plane, <[F::Unit]>::len);
    assert!(x.len() >= x_plane * F::PLANES && y.len() >= y_plane * F::PLANES);
    let job = |j: usize| {
        let (part, j) = (j % parts, j / parts);
        let (tile, block, group) =
            (j % plan.tiles.len(), j / plan.tiles.len() % plan.blocks, j / plan.tiles.len() / plan.blocks);
        let channels = &plan.tiles[tile];
        let run = width.grads[channels.len() - 1];
        for image in 0..images {
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
                        let (b, b_row, b_step) = if direct.is_some() {
                            let pixel = ((chunk.images.start + image) * g.oh + row) * g.ow
                                + chunk.columns.start
                                + step;
                            (pixel * g.co + group * g.co_group() + block * lanes, g.ow * g.co, g.co)
                        } else {
                            let panel = (group * plan.blocks + block) * images + image;
                            (((panel * g.oh + row) * steps + step) * lanes, steps * lanes, lanes)
                        };
                        let y = direct.unwrap_or(y);
                        let to = (((group * plan.blocks + block) * taps + tap) * plan.channels
                            + channels.start)
                            * lanes;
                        let a_row = g.stride.0 * row_units;
                        let a_end = a + (tile_rows - 1) * a_row + (here - 1) * F::PER_UNIT * a_step;
                        let b_end = b + (tile_rows - 1) * b_row + (here - 1) * b_step;
                        assert!(a_end + channels.len() <= x_plane && b_end + lanes <= y_end);
                        assert!(to + channels.len() * lanes <= sums_len);
                        for &(one, two) in F::PRODUCTS {
                            // SAFETY: a plane holds what the tile reads of it (asserted), and only this task adds to
                            // these sums.
                            unsafe {
                                run(&GradTile {
                                    a: x.as_ptr().add(one * x_plane + a),
                                    a_row,
                                    a_step: a_step * F::PER_UNIT,
                                    rows: tile_rows,
                                    pixels: here,
                                    b: y.as_ptr().add(two * y_plane + b),
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
