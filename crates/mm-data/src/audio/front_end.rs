//! All front-ends under one table of settings, and the plan that turns clips into frames.

use super::fbank::FbankConfig;
use super::input::Input;
use super::mel::LogMelConfig;
use super::mfcc::MfccConfig;
use super::output::{Frames, Output};
use super::psd::PsdConfig;
use super::resample::Resampler;
use super::stft::StftConfig;
use super::wav::{self, Clip};
use super::waveform::WaveformConfig;
use crate::DataError;
use mm_core::ConfigError;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The most numbers that one clip may become.
const MAX_VALUES: usize = 1 << 28;
/// The most banks of filters that a plan keeps, one for each rate that it met.
const MAX_RESAMPLERS: usize = 16;

/// A front-end, told apart by `kind`.
///
/// `kind` may also be one of the names of a published recipe ([`FrontEnd::NAMES`]); then every other setting changes
/// that recipe. What is written is always the plain kind with all its settings, so that a record does not depend on
/// what a name means.
///
/// ```
/// use mm_data::audio::FrontEnd;
///
/// let front_end: FrontEnd = serde_json::from_str(
///     r#"{ "kind": "ogm-stft", "hop": 256, "input": { "samples": 44100 } }"#,
/// ).unwrap();
/// front_end.check().unwrap();
/// assert_eq!(front_end.shape(16_000, 16_000).unwrap(), [257, 173]); // (frequencies, time) of two seconds
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FrontEnd {
    /// Short-time Fourier transform of librosa.
    Stft(StftConfig),
    /// Power spectral density of SciPy.
    Psd(PsdConfig),
    /// Log-mel spectrogram of librosa.
    LogMel(LogMelConfig),
    /// Filter banks of Kaldi.
    KaldiFbank(FbankConfig),
    /// Cepstral coefficients of librosa.
    Mfcc(MfccConfig),
    /// The samples.
    Waveform(WaveformConfig),
}

impl FrontEnd {
    /// The kinds and the names of recipes.
    pub const NAMES: [&str; 14] = [
        "stft",
        "psd",
        "log-mel",
        "kaldi-fbank",
        "mfcc",
        "waveform",
        "ogm-stft",
        "lfm-stft",
        "ucf-stft",
        "vggsound-stft",
        "scipy-psd",
        "pmr-psd",
        "mla-fbank",
        "bb-fbank",
    ];

    /// The front-end of one of [`FrontEnd::NAMES`].
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        Ok(match name {
            "stft" => Self::Stft(StftConfig::default()),
            "psd" => Self::Psd(PsdConfig::default()),
            "log-mel" => Self::LogMel(LogMelConfig::default()),
            "kaldi-fbank" => Self::KaldiFbank(FbankConfig::default()),
            "mfcc" => Self::Mfcc(MfccConfig::default()),
            "waveform" => Self::Waveform(WaveformConfig::default()),
            "ogm-stft" => Self::Stft(StftConfig::ogm()),
            "lfm-stft" => Self::Stft(StftConfig::lfm()),
            "ucf-stft" => Self::Stft(StftConfig::ucf()),
            "vggsound-stft" => Self::Stft(StftConfig::vggsound()),
            "scipy-psd" => Self::Psd(PsdConfig::scipy()),
            "pmr-psd" => Self::Psd(PsdConfig::pmr()),
            "mla-fbank" => Self::KaldiFbank(FbankConfig::mla()),
            "bb-fbank" => Self::KaldiFbank(FbankConfig::balance_benchmark()),
            _ => return Err(ConfigError::unknown("kind", name, &Self::NAMES)),
        })
    }

    /// Checks every setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Stft(c) => c.check(),
            Self::Psd(c) => c.check(),
            Self::LogMel(c) => c.check(),
            Self::KaldiFbank(c) => c.check(),
            Self::Mfcc(c) => c.check(),
            Self::Waveform(c) => c.check(),
        }
    }

    /// What happens to a clip first.
    pub fn input(&self) -> &Input {
        match self {
            Self::Stft(c) => &c.input,
            Self::Psd(c) => &c.input,
            Self::LogMel(c) => &c.input,
            Self::KaldiFbank(c) => &c.input,
            Self::Mfcc(c) => &c.mel.input,
            Self::Waveform(c) => &c.input,
        }
    }

    /// What happens to the numbers at the end.
    pub fn output(&self) -> Output {
        match self {
            Self::Stft(c) => c.output,
            Self::Psd(c) => c.output,
            Self::LogMel(c) => c.output,
            Self::KaldiFbank(c) => c.output,
            Self::Mfcc(c) => c.output,
            Self::Waveform(_) => Output::default(),
        }
    }

    /// The version of the numbers: frames that were kept under another one have to be made again.
    pub fn version(&self) -> u32 {
        match self {
            Self::Stft(c) => c.version,
            Self::Psd(c) => c.version,
            Self::LogMel(c) => c.version,
            Self::KaldiFbank(c) => c.version,
            Self::Mfcc(c) => c.version,
            Self::Waveform(c) => c.version,
        }
    }

    /// The shape of the frames of a clip of `samples` samples at `rate`.
    pub fn shape(&self, samples: usize, rate: u32) -> Result<[usize; 2], DataError> {
        self.plan()?.shape(samples, rate)
    }

    /// The frames of one clip. For many clips, [`FrontEnd::plan`] once.
    pub fn apply(&self, clip: &Clip) -> Result<Frames, DataError> {
        self.plan()?.apply(clip)
    }

    /// Checks the settings and prepares windows, filters and transforms.
    pub fn plan(&self) -> Result<Planned, DataError> {
        self.check()?;
        let analysis: Box<dyn Analysis> = match self {
            Self::Stft(c) => Box::new(c.plan()),
            Self::Psd(c) => Box::new(c.plan()),
            Self::LogMel(c) => Box::new(c.plan()),
            Self::KaldiFbank(c) => Box::new(c.plan()),
            Self::Mfcc(c) => Box::new(c.plan()),
            Self::Waveform(c) => Box::new(c.plan()),
        };
        Ok(Planned {
            input: self.input().clone(),
            output: self.output(),
            analysis,
            resamplers: Mutex::default(),
        })
    }
}

/// From prepared samples to (time, bins); the settings were checked.
pub(super) trait Analysis: std::fmt::Debug + Send + Sync {
    /// (time, bins) for this many samples, at least one; `Err` holds the broken rule.
    fn shape(&self, samples: usize) -> Result<[usize; 2], String>;
    /// The numbers, for samples whose shape was right.
    fn run(&self, samples: &[f32]) -> Vec<f64>;
    /// What the model gets, for samples whose shape was right.
    fn frames(&self, samples: &[f32], output: &Output, shape: [usize; 2]) -> Frames {
        output.finish(self.run(samples), shape)
    }
}

/// A front-end with everything computed that does not depend on the clip; threads may share it.
#[derive(Debug)]
pub struct Planned {
    input: Input,
    output: Output,
    analysis: Box<dyn Analysis>,
    resamplers: Mutex<BTreeMap<u32, Arc<Resampler>>>,
}

impl Planned {
    /// The shape of the frames of a clip of `samples` samples at `rate`.
    pub fn shape(&self, samples: usize, rate: u32) -> Result<[usize; 2], DataError> {
        let fault = |rule| invalid("clip", rule);
        let samples = if rate == self.input.rate {
            samples
        } else {
            self.resampler(rate).map_err(fault)?.length(samples)
        };
        if samples == 0 {
            return Err(fault("there is not a single sample".to_owned()));
        }
        self.analysed(self.input.length(samples)).map(|shape| self.output.shape(shape)).map_err(fault)
    }

    /// The frames of a clip.
    pub fn apply(&self, clip: &Clip) -> Result<Frames, DataError> {
        self.apply_named("clip", clip)
    }

    /// Reads a file and gives its frames.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Frames, DataError> {
        let path = path.as_ref();
        let clip = Clip::open_channel(path, self.input.channel)?;
        self.apply_named(&path.display().to_string(), &clip)
    }

    /// [`Planned::apply`]; `name` is what an error calls the clip.
    pub fn apply_named(&self, name: &str, clip: &Clip) -> Result<Frames, DataError> {
        wav::check(clip).map_err(|(rule, remedy)| DataError::invalid(name, rule, remedy))?;
        let fault = |rule| invalid(name, rule);
        let samples = if clip.rate == self.input.rate {
            Cow::Borrowed(clip.samples.as_slice())
        } else {
            Cow::Owned(self.resampler(clip.rate).and_then(|r| r.apply(&clip.samples)).map_err(fault)?)
        };
        let shape = self.analysed(self.input.length(samples.len())).map_err(fault)?;
        let samples = self.input.prepared(samples);
        Ok(self.analysis.frames(&samples, &self.output, shape))
    }

    fn analysed(&self, samples: usize) -> Result<[usize; 2], String> {
        let [time, bins] = self.analysis.shape(samples)?;
        match time.checked_mul(bins) {
            Some(values) if values <= MAX_VALUES => Ok([time, bins]),
            _ => Err(format!("{time} x {bins} numbers are more than the allowed {MAX_VALUES}")),
        }
    }

    fn resampler(&self, rate: u32) -> Result<Arc<Resampler>, String> {
        let mut known = self.resamplers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resampler) = known.get(&rate) {
            return Ok(Arc::clone(resampler));
        }
        if !wav::RATES.contains(&rate) {
            return Err(format!(
                "the sampling rate is {rate} Hz, allowed {} to {}",
                wav::RATES.start(),
                wav::RATES.end()
            ));
        }
        let resampler = Arc::new(Resampler::new(self.input.resample, rate, self.input.rate)?);
        if known.len() >= MAX_RESAMPLERS {
            known.clear();
        }
        known.insert(rate, Arc::clone(&resampler));
        Ok(resampler)
    }
}

fn invalid(name: &str, rule: String) -> DataError {
    DataError::invalid(
        name,
        rule,
        "take the clip out of the list, or set `input.samples` and the sizes of the front-end to fit",
    )
}

impl<'de> Deserialize<'de> for FrontEnd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut given = Map::deserialize(deserializer)?;
        let Some(kind) = given.remove("kind") else { return Err(D::Error::missing_field("kind")) };
        let Some(kind) = kind.as_str() else { return Err(D::Error::custom("`kind` must be a name")) };
        let filled = match Self::named(kind).map_err(D::Error::custom)? {
            Self::Stft(c) => filled(&c, given).map(Self::Stft),
            Self::Psd(c) => filled(&c, given).map(Self::Psd),
            Self::LogMel(c) => filled(&c, given).map(Self::LogMel),
            Self::KaldiFbank(c) => filled(&c, given).map(Self::KaldiFbank),
            Self::Mfcc(c) => filled(&c, given).map(Self::Mfcc),
            Self::Waveform(c) => filled(&c, given).map(Self::Waveform),
        };
        filled.map_err(D::Error::custom)
    }
}

/// The settings `given`, and those of `base` where nothing is given.
fn filled<C: Serialize + DeserializeOwned>(base: &C, given: Map<String, Value>) -> serde_json::Result<C> {
    let mut settings = serde_json::to_value(base)?;
    lay_over(&mut settings, Value::Object(given));
    serde_json::from_value(settings)
}

/// Tables are merged key by key, unless they are of different kinds.
fn lay_over(base: &mut Value, given: Value) {
    match (base, given) {
        (Value::Object(base), Value::Object(given))
            if given.get("kind").is_none_or(|kind| base.get("kind") == Some(kind)) =>
        {
            for (key, value) in given {
                lay_over(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, given) => *base = given,
    }
}
