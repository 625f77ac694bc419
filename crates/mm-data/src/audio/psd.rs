//! The power spectral density of `scipy.signal.spectrogram`.
//!
//! ```text
//! x_t[i] = x[t hop + i] - mean_i(x[t hop + i])              i = 0 .. segment - 1, hop = segment - overlap
//! X[t, k] = sum_i w[i] x_t[i] exp(-2 pi j i k / segment)      w = Tukey(segment, taper), periodic
//! s = c |X|^2 / (rate sum_i w[i]^2)                           c = 2, but 1 at 0 Hz and at half the rate
//! y = ln(s + 1e-7)
//! ```
//!
//! Shapes: T samples become ((T - overlap) / hop, segment / 2 + 1); no sample lies outside the clip.
//!
//! | setting | default | range |
//! |---|---|---|
//! | segment | 512 | 2 to 65536 samples |
//! | overlap | 353 | 0 to segment - 1 samples |
//! | taper | 0.25 | share of the Tukey window that is tapered, in [0, 1] |
//! | scale | `ln` with 1e-7 | see [`super::output`] |
//! | input, output | 16 kHz, the whole clip | see [`super::input`], [`super::output`] |
//!
//! Names: `kind = "psd"`, or one of these, which any setting changes further:
//!
//! | name | who | input | shape | norm |
//! |---|---|---|---|---|
//! | `scipy-psd` | AVE of MLB | 16 kHz, tiled to 160000, clamped | 257 x 1004 | none |
//! | `pmr-psd` | AVE of PMR | the same | 257 x 1004 | each clip |
//!
//! The rate is changed with `soxr-like`, which comes nearest to what librosa does when it loads a file.
//!
//! Differences: 353 is the overlap here and the hop in the recipes of librosa; the hop is 159. SciPy shortens its
//! segment for a shorter clip, here it is an error. Most densities of speech lie far below 1e-7, which is what the
//! logarithm then shows: the recipe is like that. The transform is in double precision.
//!
//! Source: `scipy.signal.spectrogram` 1.17, mode "psd", detrend "constant", scaling "density".

use super::input::Input;
use super::output::{Norm, Orientation, Output, Scale};
use super::spectrum::{Fourier, MAX_LENGTH};
use super::{Analysis, check_version};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;

/// A power spectral density.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PsdConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Samples of a segment. Default 512.
    pub segment: usize,
    /// Samples that two segments share. Default 353.
    pub overlap: usize,
    /// Share of the window that is tapered. Default 0.25.
    pub taper: f64,
    /// The scale. Default `ln` with eps 1e-7.
    pub scale: Scale,
    /// What happens to the clip. Default: 16 kHz, the whole clip.
    pub input: Input,
    /// What happens to the numbers.
    pub output: Output,
}

impl Default for PsdConfig {
    fn default() -> Self {
        Self {
            version: VERSION,
            segment: 512,
            overlap: 353,
            taper: 0.25,
            scale: Scale::LN,
            input: Input::librosa(),
            output: Output::default(),
        }
    }
}

impl PsdConfig {
    /// AVE as MLB prepares it.
    pub fn scipy() -> Self {
        let input = Input { samples: Some(160_000), clamp: true, ..Input::librosa() };
        let output = Output { orientation: Orientation::BinsTime, ..Output::default() };
        Self { input, output, ..Self::default() }
    }

    /// AVE as PMR prepares it.
    pub fn pmr() -> Self {
        let scipy = Self::scipy();
        Self { output: Output { norm: Norm::Clip, ..scipy.output }, ..scipy }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        ConfigError::check_range("segment", self.segment as f64, 2.0, MAX_LENGTH as f64)?;
        ConfigError::check_range("overlap", self.overlap as f64, 0.0, (self.segment - 1) as f64)?;
        ConfigError::check_range("taper", self.taper, 0.0, 1.0)?;
        self.scale.check()?;
        self.input.check().map_err(|e| e.within("input"))?;
        self.output.check().map_err(|e| e.within("output"))
    }

    pub(super) fn plan(&self) -> Psd {
        let window = tukey(self.segment, self.taper);
        let energy: f64 = window.iter().map(|w| w * w).sum();
        let factor = 1.0 / (f64::from(self.input.rate) * energy);
        let fourier = Fourier::new(self.segment);
        Psd { fourier, window, hop: self.segment - self.overlap, factor, scale: self.scale }
    }
}

/// The planned transform of [`PsdConfig`].
#[derive(Debug)]
pub(super) struct Psd {
    fourier: Fourier,
    window: Vec<f64>,
    hop: usize,
    factor: f64,
    scale: Scale,
}

impl Analysis for Psd {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        match samples.checked_sub(self.window.len()) {
            Some(rest) => Ok([1 + rest / self.hop, self.fourier.bins()]),
            None => Err(format!("{samples} samples are too few for one segment of {}", self.window.len())),
        }
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let (length, bins) = (self.window.len(), self.fourier.bins());
        let mut values = Vec::with_capacity((1 + samples.len() / self.hop) * bins);
        let mut scratch = self.fourier.scratch();
        for segment in samples.windows(length).step_by(self.hop) {
            let mean = segment.iter().copied().map(f64::from).sum::<f64>() / length as f64;
            for ((to, &x), &w) in scratch.frame.iter_mut().zip(segment).zip(&self.window) {
                *to = (f64::from(x) - mean) * w;
            }
            let alone = |k: usize| k == 0 || 2 * k == length;
            let both = |(k, power): (usize, f64)| self.factor * power * if alone(k) { 1.0 } else { 2.0 };
            values.extend(self.fourier.power(&mut scratch).enumerate().map(both));
        }
        self.scale.apply(&mut values);
        values
    }
}

/// The tapered cosine window, periodic: one of `length` + 1 points without the last.
fn tukey(length: usize, taper: f64) -> Vec<f64> {
    let n = length as f64;
    if taper <= 0.0 {
        return vec![1.0; length];
    }
    let value = |i: usize| {
        // The window is symmetric about n / 2.
        let i = (i as f64).min(n - i as f64);
        if i >= taper * n / 2.0 { 1.0 } else { 0.5 * (1.0 + (PI * (2.0 * i / (taper * n) - 1.0)).cos()) }
    };
    (0..length).map(value).collect()
}
