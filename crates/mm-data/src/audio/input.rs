//! What happens to a clip before it is analysed: rate, mean, length, limits, in this order.
//!
//! ```text
//! x = resample(clip, rate)      x -= mean(x)        if `remove_mean`
//! longer than `samples`:        the first ones, or those in the middle
//! shorter than `samples`:       tile  x[t] = x[t mod T];   zeros  x[t] = 0 for t >= T;   leave  as it is
//! x = min(max(x, -1), 1)        if `clamp`
//! ```
//!
//! Shapes: T samples become `samples`, or stay T where `samples` is not given or the clip is short and left so.
//!
//! | setting | default | range |
//! |---|---|---|
//! | rate | 16000 | 100 to 768000 Hz |
//! | resample | `sinc`; `soxr-like` in `stft`, `psd`, `log-mel`, `mfcc` | one of [`super::resample`] |
//! | channel | the mean of all | or a channel of the file, from 0 |
//! | remove_mean | false | |
//! | samples | the whole clip | 1 to 2^28 |
//! | short | `tile` | `tile`, `zeros`, `leave` |
//! | take | `start` | `start`, `centre` |
//! | clamp | false | |
//!
//! Differences: OGM-GE and those after it repeat a CREMA-D clip three times and cut, which gives three seconds only
//! where the clip has one; here it is repeated until it is long enough, and the same where theirs works. Random crops
//! are no part of a front-end, because what it gives is a function of the clip alone and may be kept.

use super::resample::Method;
use super::wav::{MAX_SAMPLES, RATES};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What happens to a clip before it is analysed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The sampling rate of the analysis in Hz. Default 16000.
    pub rate: u32,
    /// How clips of another rate get there. Default `sinc`, and `soxr-like` in front-ends of librosa and SciPy.
    pub resample: Method,
    /// The channel of a file, from 0. Default: the mean of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<usize>,
    /// Whether the clip's mean is taken away first. Default: no.
    pub remove_mean: bool,
    /// The length in samples (at `rate`). Default: that of the clip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// What happens to a clip that is shorter. Default `tile`.
    pub short: Short,
    /// What is taken of a clip that is longer. Default `start`.
    pub take: Take,
    /// Whether samples outside [-1, 1] are put on the border. Default: no.
    pub clamp: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            rate: 16_000,
            resample: Method::Sinc,
            channel: None,
            remove_mean: false,
            samples: None,
            short: Short::Tile,
            take: Take::Start,
            clamp: false,
        }
    }
}

/// What happens to a clip that is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Short {
    /// It is repeated.
    Tile,
    /// Zeros follow it.
    Zeros,
    /// It stays short.
    Leave,
}

/// What is taken of a clip that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// Its first samples.
    Start,
    /// Those in its middle.
    Centre,
}

impl Input {
    /// For recipes that load files with librosa.
    pub(super) fn librosa() -> Self {
        Self { resample: Method::SoxrLike, ..Self::default() }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (low, high) = (f64::from(*RATES.start()), f64::from(*RATES.end()));
        ConfigError::check_range("rate", f64::from(self.rate), low, high)?;
        match self.samples {
            Some(samples) => ConfigError::check_range("samples", samples as f64, 1.0, MAX_SAMPLES as f64),
            None => Ok(()),
        }
    }

    /// How many samples a clip of `samples` (at [`Input::rate`]) becomes.
    pub fn length(&self, samples: usize) -> usize {
        match self.samples {
            Some(wanted) if samples < wanted && self.short == Short::Leave => samples,
            Some(wanted) => wanted,
            None => samples,
        }
    }

    /// Everything but the resampling; `x` is not empty.
    pub(super) fn prepare(&self, mut x: Vec<f32>) -> Vec<f32> {
        if self.remove_mean {
            let mean = x.iter().copied().map(f64::from).sum::<f64>() / x.len() as f64;
            for v in &mut x {
                *v = (f64::from(*v) - mean) as f32;
            }
        }
        let (given, wanted) = (x.len(), self.length(x.len()));
        if wanted < given {
            if self.take == Take::Centre {
                x.drain(..(given - wanted) / 2);
            }
            x.truncate(wanted);
        } else if self.short == Short::Tile {
            while x.len() < wanted {
                let more = given.min(wanted - x.len());
                x.extend_from_within(..more);
            }
        } else {
            x.resize(wanted, 0.0);
        }
        if self.clamp {
            for v in &mut x {
                *v = v.clamp(-1.0, 1.0);
            }
        }
        x
    }

    /// [`Input::prepare`] of samples that may already be right.
    pub(super) fn prepared<'a>(&self, x: Cow<'a, [f32]>) -> Cow<'a, [f32]> {
        // Without a way out of the middle, which can be done for many samples at once.
        let inside = |x: &[f32]| !x.iter().fold(false, |out, v| out | (v.abs() > 1.0));
        if !self.remove_mean && self.length(x.len()) == x.len() && (!self.clamp || inside(&x)) {
            return x;
        }
        Cow::Owned(self.prepare(x.into_owned()))
    }
}
