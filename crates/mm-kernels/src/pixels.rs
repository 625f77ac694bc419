//! Weighted sums of pixels of 8 bits in fixed point: both passes of resizing a picture.
//!
//! ```text
//! across   y[r, i, c] = clip((2^21 + sum_j k[i, j] x[r, start[i] + j, c]) >> 22)
//! down     y[i, v]    = clip((2^21 + sum_j k[i, j] x[start[i] + j, v]) >> 22)        clip: to 0 … 255
//! ```
//!
//! Shapes: (rows, width, channels) -> (rows, outputs, channels); (rows, stride) -> (outputs, stride).
//!
//! The arithmetic is that of integers, so that every instruction set gives the same bits. Along a row the four numbers of
//! a vector are the colours of a pixel, and one of the next that is dropped; all outputs have the same number of taps,
//! some of them zero, so that no loop ends at another place than the one before.
#![allow(unsafe_code)] // vectors from raw pointers, and calls for a detected instruction set

use crate::simd::Isa;

/// Bits behind the binary point of a weight.
pub const BITS: u32 = 22;
const HALF: i32 = 1 << (BITS - 1);

/// For each output the first input and the weights, as many for every output.
#[derive(Debug, Clone)]
pub struct Taps {
    starts: Vec<usize>,
    weights: Vec<i32>,
    count: usize,
    end: usize,
}

impl Taps {
    /// From the first input and the weights of every output, for `inputs` of them. Magnitudes of the weights of an output
    /// must add up to less than 2^23, so that no sum overflows.
    ///
    /// # Panics
    /// Where weights reach beyond the inputs, or are too large.
    pub fn new(taps: &[(usize, Vec<i32>)], inputs: usize) -> Self {
        let count = taps.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let mut starts = Vec::with_capacity(taps.len());
        let mut weights = Vec::with_capacity(taps.len() * count);
        for (first, own) in taps {
            assert!(first + own.len() <= inputs, "weights within the inputs");
            let size: u64 = own.iter().map(|k| u64::from(k.unsigned_abs())).sum();
            assert!(size < 1 << (BITS + 1), "weights of about one");
            // Zeros in front where there is no room for them behind; one of `count` inputs at least.
            let start = (*first).min(inputs - count);
            starts.push(start);
            weights.extend(std::iter::repeat_n(0, first - start));
            weights.extend(own);
            weights.resize(starts.len() * count, 0);
        }
        let end = starts.iter().max().map_or(0, |start| start + count);
        Self { starts, weights, count, end }
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.starts.len()
    }

    /// The first input that counts, and the one behind the last.
    pub fn reach(&self) -> (usize, usize) {
        (self.starts.iter().copied().min().unwrap_or(0), self.end)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let own = self.weights.chunks_exact(self.count.max(1));
        self.starts.iter().copied().zip(own)
    }
}

/// Rows of `width` pixels of 1 or 3 channels, each along its columns.
///
/// # Panics
/// Where the values are not whole rows, the taps reach beyond a row, or there are other numbers of channels.
pub fn across(values: &[u8], width: usize, channels: usize, taps: &Taps) -> Vec<u8> {
    assert!(channels == 1 || channels == 3, "1 or 3 channels");
    assert!(width > 0 && values.len().is_multiple_of(width * channels), "whole rows");
    assert!(taps.end <= width, "taps within a row");
    let rows = values.len() / (width * channels);
    let mut out = vec![0; rows * taps.outputs() * channels];
    if taps.count > 0 && rows > 0 {
        on(Isa::detect(), Pass::Across { values, width, channels, taps }, &mut out);
    }
    out
}

/// Rows of `stride` values, of which the first is the input `offset`, down the columns.
///
/// # Panics
/// Where the taps reach beyond the rows.
pub fn down(values: &[u8], offset: usize, stride: usize, taps: &Taps) -> Vec<u8> {
    let (first, end) = taps.reach();
    assert!(offset <= first || taps.count == 0, "taps within the rows");
    assert!((end - offset.min(end)) * stride <= values.len(), "taps within the rows");
    let mut out = vec![0; taps.outputs() * stride];
    if taps.count > 0 {
        on(Isa::detect(), Pass::Down { values, offset, stride, taps }, &mut out);
    }
    out
}

#[derive(Clone, Copy)]
enum Pass<'a> {
    Across { values: &'a [u8], width: usize, channels: usize, taps: &'a Taps },
    Down { values: &'a [u8], offset: usize, stride: usize, taps: &'a Taps },
}

/// The pass by the instruction set; what was asserted above holds.
fn on(isa: Isa, pass: Pass<'_>, out: &mut [u8]) {
    match pass {
        Pass::Across { values, width, channels: 3, taps } => {
            let stride = 3 * width;
            let (rows, wide) = (values.len() / stride, 3 * taps.outputs());
            // The last row has nothing behind it that the last vector could be filled with.
            let mut last = values[values.len() - stride..].to_vec();
            last.push(0);
            let from = |row: usize| {
                if row + 1 < rows { &values[row * stride..=(row + 1) * stride] } else { &last[..] }
            };
            let mut row = 0;
            while row < rows {
                let next = if row + 4 <= rows { 4 } else { 1 };
                let to = &mut out[row * wide..(row + next) * wide];
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 { .. } | Isa::Avx2 => {
                        let from = |r: usize| from(row + r.min(next - 1));
                        // SAFETY: `Isa` is only made of what the processor has; every row has one value more than its
                        // pixels, and `to` as many rows as are asked for.
                        unsafe {
                            match next {
                                4 => x86::colours([from(0), from(1), from(2), from(3)], taps, to),
                                _ => x86::colours([from(0)], taps, to),
                            }
                        }
                    }
                    _ => (0..next)
                        .zip(to.chunks_exact_mut(wide))
                        .for_each(|(r, to)| colours(from(row + r), taps, to)),
                }
                row += next;
            }
        }
        Pass::Across { values, width, taps, .. } => grey(values, width, taps, out),
        Pass::Down { values, offset, stride, taps } => {
            for ((start, weights), to) in taps.iter().zip(out.chunks_exact_mut(stride)) {
                let from = &values[(start - offset) * stride..][..weights.len() * stride];
                let done = match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: `Isa` is only made of what the processor has; there is a row for every weight.
                    Isa::Avx512 { .. } => unsafe { x86::down_avx512(from, weights, to) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Isa::Avx2 => unsafe { x86::down_avx2(from, weights, to) },
                    _ => 0,
                };
                down_rest(from, weights, to, done);
            }
        }
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

fn colours(row: &[u8], taps: &Taps, out: &mut [u8]) {
    let (pixels, _) = row.as_chunks::<3>();
    let (results, _) = out.as_chunks_mut::<3>();
    for ((start, weights), to) in taps.iter().zip(results) {
        let mut sums = [HALF; 3];
        for (pixel, &weight) in pixels[start..].iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        *to = sums.map(clip);
    }
}

fn grey(values: &[u8], width: usize, taps: &Taps, out: &mut [u8]) {
    for (row, to) in values.chunks_exact(width).zip(out.chunks_exact_mut(taps.outputs())) {
        for ((start, weights), to) in taps.iter().zip(to) {
            let sum: i32 = row[start..].iter().zip(weights).map(|(&v, &w)| i32::from(v) * w).sum();
            *to = clip(HALF + sum);
        }
    }
}

/// One result row from as many rows as there are weights, from the value `done` on.
fn down_rest(rows: &[u8], weights: &[i32], to: &mut [u8], done: usize) {
    let stride = to.len();
    let mut sums = [HALF; 64];
    let (mut first, mut rest) = (done, &mut to[done..]);
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(rest.len().min(sums.len()));
        sums.fill(HALF);
        for (row, &weight) in rows.chunks_exact(stride).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&row[first..first + now.len()]) {
                *sum += i32::from(value) * weight;
            }
        }
        first += now.len();
        now.iter_mut().zip(sums).for_each(|(to, sum)| *to = clip(sum));
        rest = later;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BITS, HALF, Taps};
    #[allow(clippy::wildcard_imports)] // of intrinsics
    use std::arch::x86_64::*;

    /// Several rows at a time, which share the weights.
    ///
    /// # Safety
    /// Each of `rows` has 3 width + 1 values for a width that no tap leaves, `out` 3 outputs for each row.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn colours<const R: usize>(rows: [&[u8]; R], taps: &Taps, out: &mut [u8]) {
        let (wide, outputs) = (3 * taps.outputs(), taps.outputs());
        let to = out.as_mut_ptr();
        for (i, (start, weights)) in taps.iter().enumerate() {
            let from = rows.map(|row| row[3 * start..].as_ptr());
            let mut sums = [_mm_set1_epi32(HALF); R];
            for (j, &weight) in weights.iter().enumerate() {
                let weight = _mm_set1_epi32(weight);
                for r in 0..R {
                    // SAFETY: `start + j` is below the width.
                    let pixel = unsafe { from[r].add(3 * j).cast::<i32>().read_unaligned() };
                    let pixel = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(pixel));
                    sums[r] = _mm_add_epi32(sums[r], _mm_mullo_epi32(pixel, weight));
                }
            }
            for (r, &sum) in sums.iter().enumerate() {
                // Packing cuts to 0 … 255.
                let sum = _mm_srai_epi32::<{ BITS as i32 }>(sum);
                let narrow = _mm_packs_epi32(sum, sum);
                let pixel = _mm_cvtsi128_si32(_mm_packus_epi16(narrow, narrow));
                // SAFETY: i is below the outputs; the next pixel replaces the fourth value, which the last one leaves out.
                unsafe {
                    let place = to.add(r * wide + 3 * i);
                    if i + 1 < outputs {
                        place.cast::<i32>().write_unaligned(pixel);
                    } else {
                        place.cast::<[u8; 3]>().write([pixel as u8, (pixel >> 8) as u8, (pixel >> 16) as u8]);
                    }
                }
            }
        }
    }

    macro_rules! down {
        ($name:ident, $features:literal, $lanes:literal, $set:ident, $add:ident, $mul:ident, |$p:ident| $load:expr,
         |$sums:ident, $q:ident| $store:expr) => {
            /// As many values as fill vectors; how many those are.
            ///
            /// # Safety
            /// There is a row of `to.len()` values for every weight.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(rows: &[u8], weights: &[i32], to: &mut [u8]) -> usize {
                let stride = to.len();
                let mut at = 0;
                while at + 4 * $lanes <= stride {
                    let mut $sums = [$set(HALF); 4];
                    for (j, &weight) in weights.iter().enumerate() {
                        let weight = $set(weight);
                        for (k, sum) in $sums.iter_mut().enumerate() {
                            // SAFETY: the vector ends within row j.
                            let values = unsafe {
                                let $p = rows.as_ptr().add(j * stride + at + k * $lanes);
                                $load
                            };
                            *sum = $add(*sum, $mul(values, weight));
                        }
                    }
                    // SAFETY: four vectors end within `to`.
                    unsafe {
                        let $q = to.as_mut_ptr().add(at);
                        $store
                    }
                    at += 4 * $lanes;
                }
                at
            }
        };
    }
    down!(
        down_avx512,
        "avx512f,avx512bw,avx512vl",
        16,
        _mm512_set1_epi32,
        _mm512_add_epi32,
        _mm512_mullo_epi32,
        |p| _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())),
        |sums, q| {
            for (k, sum) in sums.into_iter().enumerate() {
                let positive = _mm512_max_epi32(_mm512_srai_epi32::<{ BITS }>(sum), _mm512_setzero_si512());
                _mm_storeu_si128(q.add(16 * k).cast(), _mm512_cvtusepi32_epi8(positive));
            }
        }
    );
    down!(
        down_avx2,
        "avx2",
        8,
        _mm256_set1_epi32,
        _mm256_add_epi32,
        _mm256_mullo_epi32,
        |p| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())),
        |sums, q| {
            let [a, b, c, d] = sums.map(|sum| _mm256_srai_epi32::<{ BITS as i32 }>(sum));
            let all = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            // Packing works within halves: the fours of a, b, c, d lie as a b c d a b c d.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(q.cast(), _mm256_permutevar8x32_epi32(all, order));
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::StepRng;

    fn picture(len: usize) -> Vec<u8> {
        let mut draws = StepRng::new(3).draws();
        (0..len).map(|_| draws.below(256) as u8).collect()
    }

    /// Weights of about one in all, some below zero; from 1 to 5 of them, at the borders fewer.
    fn weights(inputs: usize, outputs: usize) -> Vec<(usize, Vec<i32>)> {
        let mut draws = StepRng::new(4).draws();
        let own = |i: usize| {
            let first = i * (inputs - 1) / outputs.max(1);
            let count = (1 + draws.below(5)).min(inputs - first);
            let mut k: Vec<i32> = (0..count).map(|_| draws.below(1 << 20) as i32 - (1 << 18)).collect();
            k[0] += (1 << BITS) - k.iter().sum::<i32>();
            (first, k)
        };
        (0..outputs).map(own).collect()
    }

    fn expected(x: impl Fn(usize) -> u8, (first, k): &(usize, Vec<i32>)) -> u8 {
        let sum: i64 = k.iter().enumerate().map(|(j, &k)| i64::from(x(first + j)) * i64::from(k)).sum();
        ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
    }

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_definition() {
        for (rows, width, outputs) in
            [(1, 1, 1), (3, 7, 5), (2, 5, 11), (6, 40, 23), (4, 101, 60), (9, 30, 8)]
        {
            for channels in [1, 3] {
                let x = picture(rows * width * channels);
                let (columns, lines) = (weights(width, outputs), weights(rows, outputs));
                let stride = width * channels;
                let (along, along_lines) = (Taps::new(&columns, width), Taps::new(&lines, rows));
                let mut wide = Vec::new();
                for r in 0..rows {
                    for own in &columns {
                        wide.extend(
                            (0..channels).map(|c| expected(|j| x[r * stride + j * channels + c], own)),
                        );
                    }
                }
                let high: Vec<u8> = lines
                    .iter()
                    .flat_map(|own| (0..stride).map(|v| expected(|j| x[j * stride + v], own)))
                    .collect();
                assert_eq!(across(&x, width, channels, &along), wide);
                assert_eq!(down(&x, 0, stride, &along_lines), high);
                for isa in Isa::available() {
                    let mut out = vec![0; wide.len()];
                    on(isa, Pass::Across { values: &x, width, channels, taps: &along }, &mut out);
                    assert_eq!(out, wide, "{isa:?}");
                    let mut out = vec![0; high.len()];
                    on(isa, Pass::Down { values: &x, offset: 0, stride, taps: &along_lines }, &mut out);
                    assert_eq!(out, high, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn rows_in_front_may_be_left_out() {
        let x = picture(10 * 130);
        let taps = Taps::new(&weights(10, 4)[2..], 10);
        let (first, end) = taps.reach();
        assert!(first > 0);
        assert_eq!(down(&x[first * 130..end * 130], first, 130, &taps), down(&x, 0, 130, &taps));
    }
}
