//! The samples themselves, as Wav2Vec2 takes them.
//!
//! ```text
//! y[t] = (x[t] - mean(x)) / sqrt(var(x) + 1e-7)        if `normalize`; var: the mean of squares about the mean
//! ```
//!
//! Shapes: T samples become (T, 1): T instants of one number.
//!
//! | setting | default | range |
//! |---|---|---|
//! | normalize | true | |
//! | input | 16 kHz, the whole clip | see [`super::input`] |
//!
//! Name: `kind = "waveform"`.
//!
//! Differences: mean and variance are those of the whole prepared clip in double precision, zeros behind a short one
//! (`short = "zeros"`) included.
//!
//! Source: `Wav2Vec2FeatureExtractor` of transformers 5.23 with `do_normalize`.

use super::input::Input;
use super::{Analysis, check_version};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;

/// Samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveformConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Zero mean and unit variance over the clip. Default: yes.
    pub normalize: bool,
    /// What happens to the clip. Default: 16 kHz, the whole clip.
    pub input: Input,
}

impl Default for WaveformConfig {
    fn default() -> Self {
        Self { version: VERSION, normalize: true, input: Input::default() }
    }
}

impl WaveformConfig {
    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        self.input.check().map_err(|e| e.within("input"))
    }

    pub(super) fn plan(&self) -> Waveform {
        Waveform { normalize: self.normalize }
    }
}

/// [`WaveformConfig`] needs no plan.
#[derive(Debug)]
pub(super) struct Waveform {
    normalize: bool,
}

impl Analysis for Waveform {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        Ok([samples, 1])
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let mut x: Vec<f64> = samples.iter().copied().map(f64::from).collect();
        if self.normalize {
            let n = x.len().max(1) as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let spread = (variance + 1e-7).sqrt();
            for x in &mut x {
                *x = (*x - mean) / spread;
            }
        }
        x
    }
}
