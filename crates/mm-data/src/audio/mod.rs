//! Sound: clips from files, and the front-ends that turn a clip into the numbers a model reads.
//!
//! ```text
//! file -> Clip (one channel) -> input: rate, length, limits -> analysis -> output: scale, norm, layout -> Frames
//! ```
//!
//! One front-end is one file: [`stft`], [`psd`], [`mel`], [`fbank`], [`mfcc`], [`waveform`]; what all of them share
//! is in [`input`], [`output`] and [`resample`], and [`FrontEnd`] names them all in a configuration. Numbers equal
//! those of the libraries that the published recipes use (librosa, SciPy, torchaudio) to 1e-5 of the largest, see
//! `tests/golden`.
//!
//! | `kind` | shape for T samples at 16 kHz | what it is |
//! |---|---|---|
//! | `stft` | 1 + T / 353 x 257 | magnitudes, natural logarithm |
//! | `psd` | (T - 353) / 159 x 257 | power spectral density, natural logarithm |
//! | `log-mel` | 1 + T / 160 x 80 | mel filters over powers, natural logarithm |
//! | `kaldi-fbank` | 1 + (T - 400) / 160 x 23 | mel filters as in Kaldi |
//! | `mfcc` | 1 + T / 512 x 20 (at 22050 Hz) | cepstral coefficients |
//! | `waveform` | T x 1 | the samples with zero mean and unit variance |
//!
//! Recipes of published work have names too, with shapes of their own: `ogm-stft`, `lfm-stft`, `ucf-stft`,
//! `vggsound-stft`, `scipy-psd`, `pmr-psd`, `mla-fbank`, `bb-fbank`.
//!
//! Every front-end is a function of the clip alone: what it gives may be kept under its settings, of which `version`
//! is one.
//!
//! ```
//! use mm_data::audio::{Clip, FrontEnd};
//!
//! let samples = (0..16_000u16).map(|t| (f32::from(t) * 0.17).sin() * 0.5).collect();
//! let clip = Clip { samples, rate: 16_000 };
//! let planned = FrontEnd::named("log-mel").unwrap().plan().unwrap(); // once for all clips
//! let frames = planned.apply(&clip).unwrap();
//! assert_eq!(frames.shape, [101, 80]); // time first
//! assert_eq!(frames.transposed().shape, [80, 101]); // as librosa has it
//! ```

pub mod fbank;
mod front_end;
pub mod input;
#[cfg(feature = "media")]
mod media;
pub mod mel;
pub mod mfcc;
pub mod output;
pub mod psd;
pub mod resample;
mod spectrum;
pub mod stft;
pub mod wav;
pub mod waveform;

pub use fbank::FbankConfig;
pub use front_end::{FrontEnd, Planned};
pub use input::Input;
pub use mel::LogMelConfig;
pub use mfcc::MfccConfig;
pub use output::{Frames, Output};
pub use psd::PsdConfig;
pub use resample::Resampler;
pub use stft::StftConfig;
pub use wav::Clip;
pub use waveform::WaveformConfig;

use front_end::Analysis;
use mm_core::ConfigError;

/// Refuses settings that another version of this program wrote.
fn check_version(given: u32, known: u32) -> Result<(), ConfigError> {
    if given == known {
        return Ok(());
    }
    let rule = format!(
        "must be {known}, which is what this program computes: leave it out, and make kept frames again"
    );
    Err(ConfigError::new("version", given, rule))
}
