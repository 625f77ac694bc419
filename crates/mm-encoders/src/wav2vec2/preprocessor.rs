//! What happens to waveforms before the encoder sees them.

use super::fields::Fields;
use candle_core::{Device, Result, Tensor, bail};
use mm_core::{Checked, ConfigError};
use serde::{Deserialize, Serialize};

/// Added to the variance of a clip.
const EPS: f64 = 1e-7;

/// Makes one padded batch of clips, as a checkpoint's `preprocessor_config.json` says.
///
/// ```text
/// x[b, s] = (clip_b[s] - mean_b) / sqrt(var_b + 1e-7)     over the samples of the clip, where `do_normalize`
/// x[b, s] = padding_value                                 behind the clip
/// ```
///
/// | setting | default | range |
/// |---|---|---|
/// | `do_normalize` | true | |
/// | `sampling_rate` | 16000 | samples per second, at least 1; clips of another rate are refused |
/// | `padding_value` | 0.0 | finite |
/// | `return_attention_mask` | false | whether a batch knows the lengths of its clips |
///
/// Checkpoints with group norm (`wav2vec2-base`) were trained without lengths and say `return_attention_mask = false`;
/// their clips then see the padding. With `true`, a clip of a batch has the features that it has alone.
///
/// Difference: without an attention mask, transformers takes mean and variance of a padded clip with its padding; here
/// they are always the clip's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocessor {
    /// Whether each clip gets mean 0 and variance 1.
    pub do_normalize: bool,
    /// Samples per second.
    pub sampling_rate: usize,
    /// What stands behind the end of a clip.
    pub padding_value: f64,
    /// Whether a batch knows the lengths of its clips.
    pub return_attention_mask: bool,
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self { do_normalize: true, sampling_rate: 16_000, padding_value: 0.0, return_attention_mask: false }
    }
}

/// A batch of clips.
#[derive(Debug, Clone)]
pub struct Clips {
    /// The samples, (B, samples of the longest clip), f32.
    pub values: Tensor,
    /// The samples of each clip, where the encoder shall know them.
    pub lengths: Option<Vec<usize>>,
}

impl Preprocessor {
    /// Reads a checkpoint's `preprocessor_config.json`: pass a `&serde_json::Value`, or any other source of serde.
    pub fn from_hugging_face<'de, D: serde::Deserializer<'de>>(config: D) -> Checked<Self> {
        const KIND: &str = "Wav2Vec2FeatureExtractor";
        let fields = Fields::read("preprocessor_config.json", config)?;
        fields.name("feature_extractor_type", KIND, &[KIND])?;
        fields.name("padding_side", "right", &["right"])?;
        let channels = fields.whole("feature_size", 1)?;
        if channels != 1 {
            return Err(ConfigError::new(
                "feature_size",
                channels,
                "must be 1: the encoder hears one channel",
            ));
        }
        let d = Self::default();
        let preprocessor = Self {
            do_normalize: fields.flag("do_normalize", d.do_normalize)?,
            sampling_rate: fields.whole("sampling_rate", d.sampling_rate)?,
            padding_value: fields.real("padding_value", d.padding_value)?,
            return_attention_mask: fields.flag("return_attention_mask", d.return_attention_mask)?,
        };
        preprocessor.check()?;
        Ok(preprocessor)
    }

    /// Checks every setting.
    pub fn check(&self) -> Checked<()> {
        if self.sampling_rate == 0 {
            return Err(ConfigError::new("sampling_rate", 0, "must be at least 1"));
        }
        if !self.padding_value.is_finite() {
            return Err(ConfigError::new("padding_value", self.padding_value, "must be a finite number"));
        }
        Ok(())
    }

    /// Makes a batch of clips of one channel, whose samples follow each other at `sampling_rate`.
    pub fn batch<C: AsRef<[f32]>>(
        &self,
        clips: &[C],
        sampling_rate: usize,
        device: &Device,
    ) -> Result<Clips> {
        self.check().map_err(candle_core::Error::wrap)?;
        if sampling_rate != self.sampling_rate {
            bail!(
                "clips of {sampling_rate} samples per second, the encoder needs {}: resample them",
                self.sampling_rate
            );
        }
        let lengths: Vec<usize> = clips.iter().map(|clip| clip.as_ref().len()).collect();
        let samples = lengths.iter().copied().max().unwrap_or(0);
        let mut values = Vec::with_capacity(samples * clips.len());
        for (row, clip) in clips.iter().enumerate() {
            let clip = clip.as_ref();
            if let Some(at) = clip.iter().position(|x| !x.is_finite()) {
                bail!("clip {row} has {} at sample {at}: samples must be finite", clip[at]);
            }
            if clip.is_empty() {
                bail!("clip {row} has no samples: leave it out");
            }
            let (mean, scale) = if self.do_normalize { moments(clip) } else { (0.0, 1.0) };
            values.extend(clip.iter().map(|&x| ((f64::from(x) - mean) * scale) as f32));
            values.resize((row + 1) * samples, self.padding_value as f32);
        }
        let values = Tensor::from_vec(values, (clips.len(), samples), device)?;
        Ok(Clips { values, lengths: self.return_attention_mask.then_some(lengths) })
    }
}

/// The mean of a clip and 1 / sqrt(var + eps).
fn moments(clip: &[f32]) -> (f64, f64) {
    let count = clip.len() as f64;
    let mean = clip.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let var = clip.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    (mean, 1.0 / (var + EPS).sqrt())
}
