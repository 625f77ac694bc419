//! How the gradient of a weight is cut up, and the panels of pixels that its tiles read.
#![allow(unsafe_code)] // raw pointers into panels, from sizes that are checked at the top of each function

use super::format::Format;
use super::geometry::Geometry;
use super::source::Source;
use super::tile::Width;
use crate::host::Real;
use crate::scratch::Shared;
#[cfg(target_arch = "x86_64")]
use crate::simd::BLOCK;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86;
use crate::simd::{Isa, on};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of panels of a chunk.
const CHUNK_BYTES: usize = 3 << 20;
/// Pixels that a tile sums before the next tap reads the same ones again.
pub(super) const TILE_PIXELS: usize = 224;
/// What is summed: the taps of the kernel, or its rows with their columns and channels as one run of "channels".
pub(super) struct Plan {
    pub(super) g: Geometry,
    /// Columns of a kernel row are part of the channels: for images of few channels.
    pub(super) merged: bool,
    /// Channels of one tap.
    pub(super) channels: usize,
    /// (kernel row, kernel column) of each tap; the column is zero if merged.
    pub(super) taps: Vec<(usize, usize)>,
    /// Consecutive channels of a tile, of like size.
    pub(super) tiles: Vec<Range<usize>>,
    /// Output channels of a block.
    pub(super) lanes: usize,
    pub(super) blocks: usize,
}

/// A piece of the batch.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) images: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Plan {
    pub(super) fn new<T, U>(
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
    pub(super) fn rows(&self) -> usize {
        (self.g.oh - 1) * self.g.stride.0 + (self.g.kh - 1) * self.g.dilation.0 + 1
    }

    /// Packed columns of one remainder of the stride (of all of them, if merged) for `columns` output columns.
    pub(super) fn pitch(&self, columns: usize) -> usize {
        if self.merged {
            (columns - 1) * self.g.stride.1 + self.g.kw
        } else {
            columns + (self.g.kw - 1) * self.g.dilation.1 / self.g.stride.1
        }
    }

    /// Remainders of the stride that are packed apart.
    pub(super) fn remainders(&self) -> usize {
        if self.merged { 1 } else { self.g.stride.1.min((self.g.kw - 1) * self.g.dilation.1 + 1) }
    }

    /// Units of one row of one group.
    pub(super) fn row_units(&self, columns: usize) -> usize {
        self.remainders() * self.pitch(columns) * self.g.ci_group()
    }

    pub(super) fn chunks<T, F: Format<T>>(&self) -> Vec<Chunk> {
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

/// Runs `f` on the pool, or here if there is little to do.
pub(super) fn each(count: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if work < 1 << 14 { (0..count).for_each(f) } else { (0..count).into_par_iter().for_each(f) }
}

/// Panels of `x`: group, image, row, then for each tile of channels: remainder, column, channel. Merged: row, column,
/// channel.
pub(super) fn pack_x<T: Real, F: Format<T>, X: Source<T>>(
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
                        if from == to {
                            continue; // All of it is border.
                        }
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
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only there is packing written for the processor
pub(super) struct PairRun {
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
pub(super) fn pairs<T: Real, F: Format<T>, X: Source<T>>(
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
            // SAFETY: the numbers, constants and units are in range: asserted above. A block of fewer than
            // sixteen channels writes beyond itself only where its own next units follow and are written later.
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
pub(super) unsafe fn pixels<T: Real, F: Format<T>, X: Source<T>>(
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
pub(super) fn pack_y<T: Real, F: Format<T>, Y: Source<T>>(
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
