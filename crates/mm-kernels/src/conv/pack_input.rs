//! Rows of the input in working memory, channel by channel, so that the pixels of a tile lie side by side.
#![allow(unsafe_code)] // the processor's own packing, from sizes that are asserted before it

use super::format::Format;
use super::source::Source;
use super::taps::{Bounds, Correlation};
use crate::host::Real;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{self, Part};
use crate::simd::{BLOCK, Isa, on, transpose};

/// Rows `first .. first + rows` of places of one image, packed at `offset`.
pub(super) struct Segment {
    pub(super) image: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) offset: usize,
}

/// Copies the rows that a segment reads into working memory.
pub(super) struct Pack<'a> {
    pub(super) isa: Isa,
    pub(super) c: &'a Correlation,
    pub(super) bounds: &'a Bounds,
    pub(super) segment: &'a Segment,
    pub(super) columns: std::ops::Range<usize>,
    pub(super) group: usize,
    pub(super) first: usize,
    pub(super) here: usize,
    pub(super) block: usize,
    pub(super) pitch: usize,
    pub(super) plane: usize,
}

impl Pack<'_> {
    pub(super) fn run<T: Real, F: Format<T>, S: Source<T>>(&self, x: &S, packed: &mut [F::Unit]) {
        on(self.isa, || self.fill::<T, F, S>(x, packed));
    }

    /// Packs the whole blocks of a strip with the processor's own instructions, if it has them for this format.
    #[allow(clippy::too_many_arguments, clippy::unused_self, unused_variables)] // one call; not all processors use all
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
