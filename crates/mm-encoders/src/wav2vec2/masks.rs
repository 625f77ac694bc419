//! Spans of places that training hides.

use mm_core::StepRng;

/// Spans that are hidden, as in SpecAugment and by the rules of transformers.
///
/// ```text
/// n = floor(probability valid / length + r)      r uniform in [0, 1), one for the batch
/// n = max(n, at_least)
/// n = floor(places / length)                     where n length > places
/// n = max(valid - length + 1, 0)                 where that is less
/// ```
///
/// spans of `length` places begin at n different places out of the first `valid` - `length` + 1. They may overlap, so
/// `probability` bounds the share that is hidden from above, but for the rounding and `at_least`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanMask {
    /// The share of places.
    pub probability: f64,
    /// Places of a span.
    pub length: usize,
    /// The least number of spans.
    pub at_least: usize,
}

impl SpanMask {
    /// The number of spans in a row of `places`, of which `valid` count; `rounding` is r.
    pub fn spans(&self, valid: usize, places: usize, rounding: f64) -> usize {
        let length = self.length.max(1);
        let expected = self.probability * valid as f64 / length as f64;
        let mut spans = ((expected + rounding).floor() as usize).max(self.at_least);
        if spans.saturating_mul(length) > places {
            spans = places / length;
        }
        spans.min((valid + 1).saturating_sub(length))
    }

    /// 1 where a place is hidden, row by row of `places`; `valid` holds how many count in each row.
    pub fn draw(&self, valid: &[usize], places: usize, rng: StepRng) -> Vec<u8> {
        let rounding = rng.stream("rounding").draws().uniform();
        let mut mask = vec![0; valid.len() * places];
        if places == 0 {
            return mask;
        }
        for (row, (hidden, &valid)) in mask.chunks_exact_mut(places).zip(valid).enumerate() {
            let valid = valid.min(places);
            let mut draws = rng.stream("starts").sample(row as u64).draws();
            let mut starts: Vec<usize> = (0..(valid + 1).saturating_sub(self.length.max(1))).collect();
            for i in 0..self.spans(valid, places, rounding) {
                // The first steps of a shuffle are a draw without replacement.
                let j = i + draws.below(starts.len() - i);
                starts.swap(i, j);
                hidden[starts[i]..][..self.length.max(1)].fill(1);
            }
        }
        mask
    }
}
