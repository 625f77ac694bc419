//! Wav2Vec2: a waveform through convolutions to frames, and a transformer over them.
//!
//! ```text
//! f_0     = x                                      one channel
//! f_{i+1} = gelu(norm_i(conv_i(f_i)))              i = 0 … I-1, strided: 20 ms per frame as published
//! z       = dropout(W norm(f_I) + b)               in training, `masked_spec_embed` in spans of time,
//!                                                  0 in spans of features; 0 behind the end of a clip
//! z       = z + gelu(conv_p(z))                    positions: a wide convolution in groups, of the kernel
//!                                                  w[.., .., k] = g[k] v[.., .., k] / |v[.., .., k]|
//! post-norm:
//! y_0     = dropout(norm(z))
//! y       = norm(y_l + dropout(attention(y_l)))    y_{l+1} = norm(y + ff(y))     l = 0 … L-1
//! frames  = y_L
//! pre-norm:
//! y_0     = dropout(z)
//! y       = y_l + dropout(attention(norm(y_l)))    y_{l+1} = y + ff(norm(y))
//! frames  = norm(y_L)
//!
//! ff(y)   = dropout(W_2 dropout(gelu(W_1 y + b_1)) + b_2)
//! h       = mean of the frames of the clip
//! ```
//!
//! Shapes: x (B, samples); frames (B, T, `hidden_size`), T = [`Wav2Vec2Config::frames`] of the samples; h (B,
//! `hidden_size`). At least [`Wav2Vec2Config::least_samples`] samples (400 as published).
//!
//! | setting | default | range |
//! |---|---|---|
//! | `conv_dim` | 512, seven times | channels of each convolution, at least 1 |
//! | `conv_kernel` | 10, 3, 3, 3, 3, 2, 2 | one per convolution, at least 1 |
//! | `conv_stride` | 5, 2, 2, 2, 2, 2, 2 | one per convolution, at least 1 |
//! | `conv_bias` | false | |
//! | `feat_extract_norm` | "group" | "group": the first, each channel over the clip; "layer": all, over channels |
//! | `hidden_size` | 768 | at least 1 |
//! | `num_hidden_layers` | 12 | at least 1 |
//! | `num_attention_heads` | 12 | a divisor of `hidden_size` |
//! | `intermediate_size` | 3072 | at least 1; width inside ff |
//! | `do_stable_layer_norm` | false | false: post-norm; true: pre-norm |
//! | `num_conv_pos_embeddings` | 128 | taps of conv_p, at least 1 |
//! | `num_conv_pos_embedding_groups` | 16 | a divisor of `hidden_size` |
//! | `layer_norm_eps` | 1e-5 | above 0; the norms of the convolutions have 1e-5 |
//! | `hidden_dropout`, `activation_dropout` | 0.1 | [0, 1); of what a part adds, and inside ff |
//! | `attention_dropout` | 0.1 | [0, 1); of attention weights |
//! | `feat_proj_dropout` | 0.0 | [0, 1); of z |
//! | `layerdrop` | 0.1 | [0, 1); probability that a layer is left out of a training step |
//! | `apply_spec_augment` | true | whether training masks |
//! | `mask_time_prob`, `mask_feature_prob` | 0.05, 0.0 | [0, 1]; see [`SpanMask`] |
//! | `mask_time_length`, `mask_feature_length` | 10, 10 | at least 1 |
//! | `mask_time_min_masks`, `mask_feature_min_masks` | 2, 0 | |
//! | `layers` | none | 1 to `num_hidden_layers`: only the first so many layers; the last norm stays |
//! | `freeze_features` | true | whether the convolutions are left as they are |
//! | `pooling` | "mean" | "mean" over the frames of a clip; "none": [`Encoder`] gives frames |
//! | `precision` | "f32" | "f32", "bf16", "bf16x3": of the products of convolutions and linear maps |
//!
//! The defaults are those of `Wav2Vec2Config` in transformers, `wav2vec2-base`;
//! [`Wav2Vec2Config::from_hugging_face`] reads a checkpoint's `config.json`, and [`Preprocessor`] its
//! `preprocessor_config.json`.
//!
//! Parameters have the names and the shapes of a checkpoint without its `wav2vec2.`:
//! `feature_extractor.conv_layers.<i>.{conv,layer_norm}.{weight,bias}`,
//! `feature_projection.{layer_norm,projection}.{weight,bias}`, `masked_spec_embed` (where training masks time),
//! `encoder.pos_conv_embed.conv.{weight_g,weight_v,bias}`, `encoder.layer_norm.{weight,bias}`, and in
//! `encoder.layers.<l>`: `attention.{q,k,v,out}_proj`, `layer_norm`, `feed_forward.{intermediate,output}_dense`,
//! `final_layer_norm`. Those of `feature_extractor` are buffers while they are frozen: saved and loaded with the
//! model, in no optimiser, and no graph is kept for them. [`from_hugging_face_name`] maps the names of checkpoints.
//!
//! Start values are those of transformers: convolutions He's normal, linear maps N(0, 0.02) and zero biases, the
//! projection PyTorch's default, norms 1 and 0; but `weight_g` starts at the expected norm of `weight_v`, not at its
//! own, and `masked_spec_embed` in [-1, 1), not [0, 1).
//!
//! Clips of several lengths are padded to one, and [`Wav2Vec2::frames`] is told their lengths: frames behind the end
//! of a clip are zero where positions are added, and no key of attention. A clip then gives in evaluation what it
//! gives alone.
//!
//! Differences from transformers:
//! - Group norm takes its statistics over the whole padded clip there, so that padding changes a clip's features; here
//!   over the clip's own samples where lengths are given. Without lengths, and without padding, both are the same.
//! - A mask longer than the clip is an error there, and no mask here.
//! - A layer that is left out gets no gradient there; here it is zero, because a run stops at a parameter that the
//!   first batch does not reach. Optimisers with momentum or weight decay do move such a layer.
//! - No adapters (`add_adapter`, `adapter_attn_dim`), and no activation but "gelu".
//!
//! Source: Baevski et al., "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations", arXiv
//! 2006.11477; masks as in SpecAugment, arXiv 1904.08779; layers left out as in LayerDrop, arXiv 1909.11556. Numbers,
//! names and the rules of masks are those of `Wav2Vec2Model` in transformers 5.23.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::Wav2Vec2Config;
//! let text = "model_type = 'wav2vec2'\nhidden_size = 16\nnum_hidden_layers = 2\nnum_attention_heads = 2\n\
//!             intermediate_size = 32\nconv_dim = [8, 8]\nconv_kernel = [10, 3]\nconv_stride = [5, 2]";
//! let mut config = Wav2Vec2Config::from_hugging_face(toml::from_str::<toml::Value>(text)?)?;
//! config.layers = Some(1);
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let encoder = config.build(store.root().at("encoder").at("audio"))?;
//! let clips = Tensor::zeros((2, 200), DType::F32, &Device::Cpu)?;
//! assert_eq!(encoder.forward(&clips, Mode::Eval)?.dims(), [2, 16]);
//! let frames = encoder.frames(&clips, Some(&[200, 80]), Mode::Eval)?;
//! assert_eq!(frames.dims(), [2, config.frames(200), 16]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod features;
mod fields;
mod masks;
mod positional;
mod preprocessor;
mod transformer;

pub use config::{FeatureNorm, Pooling, Wav2Vec2Config};
pub use masks::SpanMask;
pub use preprocessor::{Clips, Preprocessor};

use candle_core::{Result, Tensor, bail};
use features::Features;
use mm_core::{Encoder, Init, Mode, Scope, StepRng};
use mm_kernels::residual;
use positional::Positions;
use transformer::{Affine, Layer, Norm, drop};

/// What is added to the score of a key that does not count: the softmax of it is zero in f32 and in f64.
const MASKED: f64 = -1e30;

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct Wav2Vec2 {
    config: Wav2Vec2Config,
    features: Features,
    feature_norm: Norm,
    projection: Affine,
    masked: Option<Tensor>,
    positions: Positions,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Wav2Vec2 {
    fn new(config: &Wav2Vec2Config, mut scope: Scope<'_>) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let features = Features::new(config, scope.child("feature_extractor").at("conv_layers"))?;
        let mut projection = scope.child("feature_projection");
        let feature_norm = Norm::new(projection.child("layer_norm"), features.width(), eps)?;
        let projection = Affine::with(
            projection.child("projection"),
            (features.width(), width),
            (Init::linear(features.width()), Init::linear(features.width())),
            config.precision,
        )?;
        let masked = match config.time_mask() {
            Some(_) => Some(scope.param("masked_spec_embed", width, Init::Uniform { bound: 1.0 })?),
            None => None,
        };
        let mut scope = scope.at("encoder");
        let positions = Positions::new(config, scope.child("pos_conv_embed").at("conv"))?;
        let norm = Norm::new(scope.child("layer_norm"), width, eps)?;
        let mut scope = scope.at("layers");
        let layers: Result<Vec<_>> =
            (0..config.kept_layers()).map(|l| Layer::new(config, scope.child(l))).collect();
        let config = config.clone();
        Ok(Self { config, features, feature_norm, projection, masked, positions, norm, layers: layers? })
    }

    /// The configuration that the encoder was made from.
    pub fn config(&self) -> &Wav2Vec2Config {
        &self.config
    }

    /// The frames of clips x (B, samples), (B, T, `hidden_size`).
    ///
    /// `lengths` says how many samples of each row are the clip's; what follows is padding. Frames that lie wholly or
    /// partly in the padding, from [`Wav2Vec2Config::frames`] of the length on, are there in the result and mean
    /// nothing. Without lengths every sample counts.
    pub fn frames(&self, x: &Tensor, lengths: Option<&[usize]>, mode: Mode) -> Result<Tensor> {
        let samples = self.check(x, lengths)?;
        // A batch without padding takes the shorter way, whoever gave its lengths.
        let lengths = lengths.filter(|lengths| lengths.iter().any(|&l| l < samples));
        let features = self.features.forward(x, lengths)?;
        let (batch, frames, _) = features.dims3()?;
        let valid = lengths.map(|lengths| lengths.iter().map(|&l| self.config.frames(l)).collect::<Vec<_>>());

        let z = self.projection.forward(&self.feature_norm.forward(&features)?)?;
        let z = drop(&z, self.config.feat_proj_dropout, mode, "feature_projection")?;
        let mut z = match mode.stream("masks") {
            Mode::Train(rng) => self.mask(&z, valid.as_deref().unwrap_or(&vec![frames; batch]), rng)?,
            Mode::Eval => z,
        };
        let mut keys = None;
        if let Some(valid) = valid.filter(|valid| valid.iter().any(|&v| v < frames)) {
            let inside = inside(&valid, frames, &z)?;
            z = z.broadcast_mul(&inside.unsqueeze(2)?)?;
            keys = Some(((1.0 - inside)? * MASKED)?.reshape((batch, 1, 1, frames))?);
        }
        let z = residual(&z, &self.positions.forward(&z)?, 1.0, None)?;
        let post = !self.config.do_stable_layer_norm;
        let mut y = if post { self.norm.forward(&z)? } else { z };
        y = drop(&y, self.config.hidden_dropout, mode, "positions")?;
        for (l, layer) in self.layers.iter().enumerate() {
            y = layer.forward(&y, keys.as_ref(), mode.stream("layers").stream(&l.to_string()))?;
        }
        if post { Ok(y) } else { self.norm.forward(&y) }
    }

    /// The mean of each clip's own frames, (B, `hidden_size`); `lengths` as in [`Wav2Vec2::frames`].
    pub fn pooled(&self, x: &Tensor, lengths: Option<&[usize]>, mode: Mode) -> Result<Tensor> {
        let y = self.frames(x, lengths, mode)?;
        let Some(lengths) = lengths else { return y.mean(1) };
        let (batch, frames, _) = y.dims3()?;
        let valid: Vec<usize> = lengths.iter().map(|&l| self.config.frames(l)).collect();
        let shares: Vec<f64> = valid.iter().map(|&v| 1.0 / v as f64).collect();
        let shares = Tensor::from_vec(shares, (batch, 1), y.device())?.to_dtype(y.dtype())?;
        let shares = inside(&valid, frames, &y)?.broadcast_mul(&shares)?;
        y.broadcast_mul(&shares.unsqueeze(2)?)?.sum(1)
    }

    /// The number of samples, once inputs and lengths fit.
    fn check(&self, x: &Tensor, lengths: Option<&[usize]>) -> Result<usize> {
        let least = self.config.least_samples();
        let samples = match *x.dims() {
            [batch, samples] if batch > 0 && samples >= least => samples,
            _ => bail!(
                "the encoder needs waveforms (batch, samples) of at least {least} samples, got inputs {:?}: \
                 pad or leave out shorter clips",
                x.shape()
            ),
        };
        let Some(lengths) = lengths else { return Ok(samples) };
        if lengths.len() != x.dim(0)? {
            bail!("{} lengths for {} clips: give one for each", lengths.len(), x.dim(0)?);
        }
        if let Some((row, length)) = lengths.iter().enumerate().find(|(_, l)| !(least..=samples).contains(l))
        {
            bail!(
                "clip {row} has a length of {length} samples: it must be at least {least}, one frame, and at most \
                 the {samples} of the batch"
            );
        }
        Ok(samples)
    }

    /// Puts `masked_spec_embed` into spans of time and zeros into spans of features.
    fn mask(&self, z: &Tensor, valid: &[usize], rng: StepRng) -> Result<Tensor> {
        let (batch, frames, width) = z.dims3()?;
        let mut z = z.clone();
        if let (Some(spans), Some(embed)) = (self.config.time_mask(), &self.masked) {
            let mask = spans.draw(valid, frames, rng.stream("time"));
            let mask = Tensor::from_vec(mask, (batch, frames, 1), z.device())?.broadcast_as(z.shape())?;
            z = mask.where_cond(&embed.broadcast_as(z.shape())?, &z)?;
        }
        if let Some(spans) = self.config.feature_mask() {
            let mask = spans.draw(&vec![width; batch], width, rng.stream("features"));
            let mask = Tensor::from_vec(mask, (batch, 1, width), z.device())?.broadcast_as(z.shape())?;
            z = mask.where_cond(&z.zeros_like()?, &z)?;
        }
        Ok(z)
    }
}

impl Encoder for Wav2Vec2 {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self.config.pooling {
            Pooling::Mean => self.pooled(x, None, mode),
            Pooling::None => self.frames(x, None, mode),
        }
    }

    fn forward_padded(&self, x: &Tensor, lengths: &[usize], mode: Mode) -> Result<Tensor> {
        if self.config.pooling == Pooling::None {
            bail!(
                "clips of different lengths have different numbers of frames, which no fusion is told of: set pooling = \
                 \"mean\", or prepare the data with a fixed length"
            );
        }
        // A row without a clip stands in with one frame of silence, whose features are then taken away.
        let least = self.config.least_samples();
        let stand_in: Vec<usize> = lengths.iter().map(|&l| if l == 0 { least } else { l }).collect();
        let h = self.pooled(x, Some(&stand_in), mode)?;
        if stand_in == lengths {
            return Ok(h);
        }
        let real: Vec<u8> = lengths.iter().map(|&l| u8::from(l > 0)).collect();
        let real = Tensor::from_vec(real, (lengths.len(), 1), h.device())?.broadcast_as(h.shape())?;
        real.where_cond(&h, &h.zeros_like()?)
    }

    fn dim(&self) -> usize {
        self.config.hidden_size
    }
}

/// 1 for each clip's own frames and 0 behind them, (B, T), in the type of `like`.
fn inside(valid: &[usize], frames: usize, like: &Tensor) -> Result<Tensor> {
    let flags: Vec<f64> =
        valid.iter().flat_map(|&v| (0..frames).map(move |t| if t < v { 1.0 } else { 0.0 })).collect();
    Tensor::from_vec(flags, (valid.len(), frames), like.device())?.to_dtype(like.dtype())
}

/// The name of a checkpoint's tensor relative to the encoder's scope, for the checkpoints of transformers:
/// `Wav2Vec2Model`, and models on top of it whose names begin with `wav2vec2.`.
///
/// `None` for what is no part of the encoder: `quantizer.…`, `project_hid.…`, `project_q.…`, `lm_head.…`,
/// `classifier.…`, adapters. Weight normalisation may be written in the old way (`weight_g`, `weight_v`) or in the
/// new one (`parametrizations.weight.original0`, `…original1`). [`Wav2Vec2Config::tensor_name`] leaves out as well
/// what an encoder of that configuration does not have.
///
/// ```
/// use mm_encoders::wav2vec2::from_hugging_face_name;
/// let name = from_hugging_face_name("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0");
/// assert_eq!(name.as_deref(), Some("encoder.pos_conv_embed.conv.weight_g"));
/// assert_eq!(from_hugging_face_name("lm_head.weight"), None);
/// ```
pub fn from_hugging_face_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("wav2vec2.").unwrap_or(name);
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    match first {
        "masked_spec_embed" if rest.is_empty() => Some(name.to_owned()),
        "feature_extractor" | "feature_projection" => Some(name.to_owned()),
        "encoder" if !name.contains(".adapter_layer.") => Some(
            name.replace(".parametrizations.weight.original0", ".weight_g")
                .replace(".parametrizations.weight.original1", ".weight_v"),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use mm_core::ParamStore;

    #[test]
    fn hidden_time_is_the_embedding_and_hidden_features_are_zero() {
        let config = Wav2Vec2Config {
            hidden_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 1,
            mask_time_prob: 0.5,
            mask_time_length: 3,
            mask_feature_prob: 0.25,
            mask_feature_length: 2,
            ..Wav2Vec2Config::default()
        };
        let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
        let encoder = config.build(store.root()).unwrap();
        let embed = encoder.masked.as_ref().unwrap().to_vec1::<f64>().unwrap();
        let z = Tensor::full(7f64, (2, 20, 16), &Device::Cpu).unwrap();
        let valid = [20, 9];
        let mut seen = [0; 3];
        for seed in 0..20 {
            let rng = StepRng::new(seed);
            let masked = encoder.mask(&z, &valid, rng).unwrap().to_vec3::<f64>().unwrap();
            let time = config.time_mask().unwrap().draw(&valid, 20, rng.stream("time"));
            let features = config.feature_mask().unwrap().draw(&[16; 2], 16, rng.stream("features"));
            for (b, t, d) in (0..2 * 20 * 16).map(|i| (i / 320, i / 16 % 20, i % 16)) {
                let (expected, kind) = match (features[16 * b + d], time[20 * b + t]) {
                    (1, _) => (0.0, 0),
                    (_, 1) => (embed[d], 1),
                    _ => (7.0, 2),
                };
                assert_eq!(masked[b][t][d], expected, "{b}, {t}, {d}");
                seen[kind] += 1;
            }
        }
        assert!(seen.iter().all(|&count| count > 2000), "{seen:?}");
    }
}
