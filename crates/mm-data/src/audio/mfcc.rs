//! Mel-frequency cepstral coefficients of librosa.
//!
//! ```text
//! s[t, b]    mel powers, as in mel.rs
//! d[t, b]  = max(10 log10(max(s, 1e-10)), max(d) - 80)
//! y[t, c]  = sqrt(2 / B) sum_b d[t, b] cos(pi c (2 b + 1) / (2 B)),  times sqrt(1/2) for c = 0
//! ```
//!
//! Shapes: T samples become (1 + T / hop, coefficients) for an even `n_fft`.
//!
//! | setting | default | range |
//! |---|---|---|
//! | coefficients | 20 | 1 to `mel.bins` |
//! | mel | n_fft 2048, hop 512, 128 bins, 22050 Hz, `db` | a table as in [`super::mel`], without its `output` |
//! | output | as it is | see [`super::output`] |
//!
//! Name: `kind = "mfcc"`. The clip's settings are those of `mel.input`.
//!
//! Differences: double precision; no liftering; the type of the cosine transform is II and its norm "ortho".
//!
//! Source: `librosa.feature.mfcc` 0.11.

use super::input::Input;
use super::mel::{LogMel, LogMelConfig};
use super::output::{Output, Scale};
use super::{Analysis, check_version};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;

/// Cepstral coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MfccConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Number of coefficients, the lowest first. Default 20.
    pub coefficients: usize,
    /// The mel spectrogram below. Default as in librosa.
    pub mel: LogMelConfig,
    /// What happens to the numbers.
    pub output: Output,
}

impl Default for MfccConfig {
    fn default() -> Self {
        let input = Input { rate: 22_050, ..Input::librosa() };
        let librosa = LogMelConfig {
            n_fft: 2048,
            hop: 512,
            bins: 128,
            scale: Scale::DB,
            input,
            ..LogMelConfig::default()
        };
        Self { version: VERSION, coefficients: 20, mel: librosa, output: Output::default() }
    }
}

impl MfccConfig {
    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        self.mel.check().map_err(|e| e.within("mel"))?;
        ConfigError::check_range("coefficients", self.coefficients as f64, 1.0, self.mel.bins as f64)?;
        if self.mel.output != Output::default() {
            let rule = "must be left out: the coefficients have their own `output`";
            return Err(ConfigError::new("mel.output", "a table", rule));
        }
        self.output.check().map_err(|e| e.within("output"))
    }

    pub(super) fn plan(&self) -> Mfcc {
        let bins = self.mel.bins;
        let cosine = |c: usize, b: usize| {
            let factor = if c == 0 { 1.0 } else { 2.0 } / bins as f64;
            // The angle repeats every 4 bins, so that it may be reduced before it loses digits.
            let turn = (c * (2 * b + 1)) % (4 * bins);
            factor.sqrt() * (PI * turn as f64 / (2 * bins) as f64).cos()
        };
        let rows = (0..self.coefficients).flat_map(|c| (0..bins).map(move |b| cosine(c, b))).collect();
        Mfcc { mel: self.mel.plan(), bins, coefficients: self.coefficients, rows }
    }
}

/// The planned analysis of [`MfccConfig`].
#[derive(Debug)]
pub(super) struct Mfcc {
    mel: LogMel,
    bins: usize,
    coefficients: usize,
    /// (coefficients, bins).
    rows: Vec<f64>,
}

impl Analysis for Mfcc {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        let [time, _] = self.mel.shape(samples)?;
        Ok([time, self.coefficients])
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let mel = self.mel.run(samples);
        let frames = mel.chunks_exact(self.bins);
        frames
            .flat_map(|frame| {
                let rows = self.rows.chunks_exact(self.bins);
                rows.map(move |row| frame.iter().zip(row).map(|(m, r)| m * r).sum::<f64>())
            })
            .collect()
    }
}
