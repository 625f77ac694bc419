//! Weights in the order in which the tiles of a correlation read them.
#![allow(unsafe_code)] // jobs write to disjoint rows of one block

use super::format::Format;
use super::taps::{Correlation, Phase};
use crate::buffers::Buffer;
use crate::host::Real;
use crate::scratch::{Bytes, Shared};
use crate::simd::{BLOCK, Isa, on, transpose};
use rayon::prelude::*;

/// The weights in the order in which the tiles read them: group, phase, block of output channels, unit of input channels,
/// product, tap, output channel.
pub(super) fn pack_weights<T: Real + Bytes, F: Format<T>>(
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
            // Lanes are turned round sixteen at a time, all taps of a unit together; of a single tap, sixteen inputs.
            if c.kernel == 1 {
                let units = first..(first + 64).min(units);
                return single::<T, F>(isa, c, w, (phase, block, width), units, (out, start));
            }
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

/// The units of a kernel of one tap, a matrix of outputs and inputs, from `start` on.
fn single<T: Real + Bytes, F: Format<T>>(
    isa: Isa,
    c: &Correlation,
    w: &[T],
    (phase, block, width): (&Phase, usize, usize),
    units: std::ops::Range<usize>,
    (out, start): (Shared<F::Unit>, usize),
) {
    let row = F::PRODUCTS.len() * phase.taps.len() * width;
    let mut rows = [[T::zero(); BLOCK]; BLOCK];
    let mut turned = [T::zero(); BLOCK * BLOCK];
    for lane in (0..width).step_by(BLOCK) {
        let output = block * width + lane;
        let lanes = BLOCK.min(width - lane);
        let valid = lanes.min(c.outputs.saturating_sub(output));
        for unit in units.clone().step_by(BLOCK / F::PER_UNIT) {
            let input = unit * F::PER_UNIT;
            let inputs = BLOCK.min(c.inputs - input);
            if c.transposed {
                turned.fill(T::zero());
                let lines = turned.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate();
                for (k, turned) in lines.take(if valid > 0 { inputs } else { 0 }) {
                    turned[..valid].copy_from_slice(&w[(input + k) * c.outputs + output..][..valid]);
                }
            } else {
                for (o, row) in rows.iter_mut().enumerate() {
                    if o >= valid {
                        *row = [T::zero(); BLOCK];
                        continue;
                    }
                    let from = &w[(output + o) * c.inputs + input..];
                    // Numbers of a known count are copied without a call.
                    if let Some(from) = from.first_chunk::<BLOCK>().filter(|_| inputs == BLOCK) {
                        *row = *from;
                    } else {
                        *row = [T::zero(); BLOCK];
                        row[..inputs].copy_from_slice(&from[..inputs]);
                    }
                }
                transpose(isa, &rows, &mut turned, BLOCK, BLOCK);
            }
            let here = (units.end - unit).min(BLOCK / F::PER_UNIT);
            for (u, numbers) in turned.chunks_exact(BLOCK * F::PER_UNIT).enumerate().take(here) {
                let (one, two) = (&numbers[..BLOCK], &numbers[(F::PER_UNIT - 1) * BLOCK..][..BLOCK]);
                for (p, &(_, plane)) in F::PRODUCTS.iter().enumerate() {
                    for t in 0..phase.taps.len() {
                        let tap = p * phase.taps.len() + t;
                        let at = start + (unit + u - units.start) * row + tap * width + lane;
                        for o in 0..lanes {
                            // SAFETY: the caller's job owns the rows of these units.
                            unsafe { out.get().add(at + o).write(F::unit(one[o], two[o], plane)) };
                        }
                    }
                }
            }
        }
    }
}
