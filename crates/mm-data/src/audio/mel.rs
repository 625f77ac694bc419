//! Mel filter banks and the log-mel spectrogram of librosa.
//!
//! ```text
//! slaney   m = 3 f / 200 below 1000 Hz, 15 + 27 ln(f / 1000) / ln(6.4) above         htk   m = 2595 log10(1 + f / 700)
//! F[b, k] = max(0, min((f_k - c_b) / (c_b+1 - c_b), (c_b+2 - f_k) / (c_b+2 - c_b+1)))  f_k = k rate / n_fft
//! F[b, k] *= 2 / (c_b+2 - c_b)   if `area`                                        c: bins + 2 places, even in mel
//! s[t, b] = sum_k F[b, k] |X[t, k]|^2                                             y = ln(s + 1e-7)
//! ```
//!
//! Shapes: T samples become (1 + T / hop, bins) for an even `n_fft`.
//!
//! | setting | default | range |
//! |---|---|---|
//! | n_fft | 400 | 2 to 65536 |
//! | window | n_fft | 1 to n_fft samples |
//! | hop | 160 | 1 to 65536 samples |
//! | padding | `constant` | `constant` (zeros), `reflect` |
//! | bins | 80 | 1 to 1024 |
//! | low | 0 | at least 0, below `high`, Hz |
//! | high | half the rate | at most half the rate, Hz |
//! | curve | `slaney` | `slaney`, `htk` |
//! | area | true | filters of one area each (`norm = "slaney"` of librosa), else of height 1 |
//! | scale | `ln` with 1e-7 | see [`super::output`]; librosa's `power_to_db` is `db` |
//! | input, output | 16 kHz, the whole clip | see [`super::input`], [`super::output`] |
//!
//! Name: `kind = "log-mel"`. At 16 kHz the defaults are windows of 25 ms every 10 ms.
//!
//! Differences: double precision. A filter between two frequencies of the transform is empty, of which librosa warns;
//! here it is an error.
//!
//! Source: `librosa.filters.mel` and `librosa.feature.melspectrogram` 0.11.

use super::input::Input;
use super::output::{Output, Scale};
use super::stft::{Framing, Padding};
use super::{Analysis, check_version};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;
/// The most filters of a bank.
pub const MAX_BINS: usize = 1024;

/// A log-mel spectrogram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogMelConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Length of the transform. Default 400.
    pub n_fft: usize,
    /// Length of the window. Default: that of the transform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Samples between frames. Default 160.
    pub hop: usize,
    /// What lies before and after the clip. Default `constant`.
    pub padding: Padding,
    /// Number of filters. Default 80.
    pub bins: usize,
    /// Where the first filter begins, in Hz. Default 0.
    pub low: f64,
    /// Where the last filter ends, in Hz. Default: half the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// The mel scale. Default `slaney`.
    pub curve: Curve,
    /// Whether all filters have one area. Default: yes.
    pub area: bool,
    /// The scale. Default `ln` with eps 1e-7.
    pub scale: Scale,
    /// What happens to the clip. Default: 16 kHz, the whole clip.
    pub input: Input,
    /// What happens to the numbers.
    pub output: Output,
}

/// A mel scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curve {
    /// Of the Auditory Toolbox: linear up to 1000 Hz, logarithmic above.
    Slaney,
    /// Of the Hidden Markov Model Toolkit.
    Htk,
}

impl Default for LogMelConfig {
    fn default() -> Self {
        Self {
            version: VERSION,
            n_fft: 400,
            window: None,
            hop: 160,
            padding: Padding::Constant,
            bins: 80,
            low: 0.0,
            high: None,
            curve: Curve::Slaney,
            area: true,
            scale: Scale::LN,
            input: Input::librosa(),
            output: Output::default(),
        }
    }
}

impl LogMelConfig {
    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        Framing::check(self.n_fft, self.window, self.hop)?;
        ConfigError::check_range("bins", self.bins as f64, 1.0, MAX_BINS as f64)?;
        self.scale.check()?;
        self.input.check().map_err(|e| e.within("input"))?;
        self.output.check().map_err(|e| e.within("output"))?;
        let half = f64::from(self.input.rate) / 2.0;
        ConfigError::check_range("high", self.high.unwrap_or(half), f64::MIN_POSITIVE, half)?;
        check_low(self.low, self.high.unwrap_or(half))?;
        self.filters().check(self.bins)
    }

    fn filters(&self) -> Filters {
        let rate = f64::from(self.input.rate);
        let edges = (self.low, self.high.unwrap_or(rate / 2.0));
        Filters::librosa(self.curve, self.area, self.bins, edges, rate, self.n_fft)
    }

    pub(super) fn plan(&self) -> LogMel {
        let framing = Framing::new(self.n_fft, self.window, self.hop, self.padding);
        LogMel { framing, filters: self.filters(), scale: self.scale }
    }
}

/// The planned analysis of [`LogMelConfig`].
#[derive(Debug)]
pub(super) struct LogMel {
    framing: Framing,
    filters: Filters,
    scale: Scale,
}

impl Analysis for LogMel {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        Ok([self.framing.frames(samples), self.filters.len()])
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let powers = self.framing.powers(samples);
        let mut values = Vec::with_capacity(self.framing.frames(samples.len()) * self.filters.len());
        for frame in powers.chunks_exact(self.framing.bins()) {
            self.filters.sums(frame, &mut values);
        }
        self.scale.apply(&mut values);
        values
    }
}

/// The first filter must begin below the place where the last one ends.
pub(super) fn check_low(low: f64, high: f64) -> Result<(), ConfigError> {
    if low >= 0.0 && low < high {
        return Ok(());
    }
    Err(ConfigError::new("low", low, format!("must be at least 0 and below `high`, which is {high}")))
}

/// A bank of filters; of each only the part that is not zero, as (first bin, weights).
#[derive(Debug, Clone)]
pub(super) struct Filters(Vec<(usize, Vec<f64>)>);

impl Filters {
    /// `librosa.filters.mel`.
    pub(super) fn librosa(
        curve: Curve,
        area: bool,
        bins: usize,
        (low, high): (f64, f64),
        rate: f64,
        n_fft: usize,
    ) -> Self {
        let (from, to) = (curve.mel(low), curve.mel(high));
        let place = |i: usize| curve.hertz(from + (to - from) * i as f64 / (bins + 1) as f64);
        let filter = |b: usize| {
            let (left, middle, right) = (place(b), place(b + 1), place(b + 2));
            let height = if area { 2.0 / (right - left) } else { 1.0 };
            let weight = |k: usize| {
                let f = k as f64 * rate / n_fft as f64;
                ((f - left) / (middle - left)).min((right - f) / (right - middle)).max(0.0) * height
            };
            (0..=n_fft / 2).map(weight).collect()
        };
        Self::new((0..bins).map(filter))
    }

    /// From rows of weights.
    pub(super) fn new(rows: impl Iterator<Item = Vec<f64>>) -> Self {
        let tight = |row: Vec<f64>| {
            let first = row.iter().position(|&w| w != 0.0).unwrap_or(0);
            let end = row.iter().rposition(|&w| w != 0.0).map_or(first, |last| last + 1);
            (first, row[first..end].to_vec())
        };
        Self(rows.map(tight).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Refuses a bank with an empty filter, whose output would be a constant.
    pub(super) fn check(&self, bins: usize) -> Result<(), ConfigError> {
        match self.0.iter().position(|(_, weights)| weights.is_empty()) {
            None => Ok(()),
            Some(b) => {
                let rule = format!(
                    "leaves filter {b} without any frequency of the transform: \
                     take fewer bins, a longer transform, or a larger range of frequencies"
                );
                Err(ConfigError::new("bins", bins, rule))
            }
        }
    }

    /// Appends one number per filter.
    pub(super) fn sums(&self, spectrum: &[f64], out: &mut Vec<f64>) {
        out.extend(self.0.iter().map(|(first, weights)| {
            spectrum.iter().skip(*first).zip(weights).map(|(s, w)| s * w).sum::<f64>()
        }));
    }
}

impl Curve {
    fn mel(self, hertz: f64) -> f64 {
        match self {
            Self::Slaney if hertz < 1000.0 => hertz * 3.0 / 200.0,
            Self::Slaney => 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln(),
            Self::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
        }
    }

    fn hertz(self, mel: f64) -> f64 {
        match self {
            Self::Slaney if mel < 15.0 => mel * 200.0 / 3.0,
            Self::Slaney => 1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp(),
            Self::Htk => 700.0 * (10_f64.powf(mel / 2595.0) - 1.0),
        }
    }
}
