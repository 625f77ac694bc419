//! The settings of a Wav2Vec2, and how they are read from a checkpoint's `config.json`.

use super::features::output_length;
use super::fields::Fields;
use super::{SpanMask, Wav2Vec2, from_hugging_face_name};
use crate::Precision;
use candle_core::Result;
use mm_core::{Checked, ConfigError, Scope};
use serde::{Deserialize, Deserializer, Serialize};

/// Where the convolutions are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureNorm {
    /// After the first one: each channel over the places of a clip.
    #[default]
    Group,
    /// After each: each place over its channels.
    Layer,
}

/// What the encoder makes of its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// Nothing: the features are the frames.
    None,
}

/// Settings of [`Wav2Vec2`]; the table is in [its module](super).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wav2Vec2Config {
    /// Channels of each convolution.
    pub conv_dim: Vec<usize>,
    /// Taps of each convolution.
    pub conv_kernel: Vec<usize>,
    /// Steps of each convolution.
    pub conv_stride: Vec<usize>,
    /// Whether convolutions have a bias.
    pub conv_bias: bool,
    /// Where the convolutions are normalised.
    pub feat_extract_norm: FeatureNorm,
    /// Width of the transformer and of the features.
    pub hidden_size: usize,
    /// Layers of the transformer.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Whether norms come before the parts of a layer.
    pub do_stable_layer_norm: bool,
    /// Taps of the convolution that adds positions.
    pub num_conv_pos_embeddings: usize,
    /// Groups of the convolution that adds positions.
    pub num_conv_pos_embedding_groups: usize,
    /// Added to variances, but for those between convolutions.
    pub layer_norm_eps: f64,
    /// Dropout of what a part adds.
    pub hidden_dropout: f64,
    /// Dropout inside the feed-forward part.
    pub activation_dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// Dropout of the projected features.
    pub feat_proj_dropout: f64,
    /// Probability that a layer is left out of a training step.
    pub layerdrop: f64,
    /// Whether training hides spans of time and of features.
    pub apply_spec_augment: bool,
    /// Share of the frames that are hidden.
    pub mask_time_prob: f64,
    /// Frames of a hidden span.
    pub mask_time_length: usize,
    /// The least number of spans of time.
    pub mask_time_min_masks: usize,
    /// Share of the features that are hidden.
    pub mask_feature_prob: f64,
    /// Features of a hidden span.
    pub mask_feature_length: usize,
    /// The least number of spans of features.
    pub mask_feature_min_masks: usize,
    /// Only the first so many layers.
    pub layers: Option<usize>,
    /// Whether the convolutions are left as they are.
    pub freeze_features: bool,
    /// What the encoder makes of its frames.
    pub pooling: Pooling,
    /// The numbers in which products are taken.
    pub precision: Precision,
}

impl Default for Wav2Vec2Config {
    fn default() -> Self {
        Self {
            conv_dim: vec![512; 7],
            conv_kernel: vec![10, 3, 3, 3, 3, 2, 2],
            conv_stride: vec![5, 2, 2, 2, 2, 2, 2],
            conv_bias: false,
            feat_extract_norm: FeatureNorm::Group,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            do_stable_layer_norm: false,
            num_conv_pos_embeddings: 128,
            num_conv_pos_embedding_groups: 16,
            layer_norm_eps: 1e-5,
            hidden_dropout: 0.1,
            activation_dropout: 0.1,
            attention_dropout: 0.1,
            feat_proj_dropout: 0.0,
            layerdrop: 0.1,
            apply_spec_augment: true,
            mask_time_prob: 0.05,
            mask_time_length: 10,
            mask_time_min_masks: 2,
            mask_feature_prob: 0.0,
            mask_feature_length: 10,
            mask_feature_min_masks: 0,
            layers: None,
            freeze_features: true,
            pooling: Pooling::Mean,
            precision: Precision::F32,
        }
    }
}

impl Wav2Vec2Config {
    /// Reads a checkpoint's `config.json`, such as those of `facebook/wav2vec2-base-960h` and
    /// `facebook/wav2vec2-large-robust`: pass a `&serde_json::Value`, or any other source of serde.
    ///
    /// What the file leaves out has the default of transformers, which is ours; fields that the encoder has no use
    /// for (of quantisers, heads, tokenisers) are passed over. Refused is what would give other numbers than the
    /// checkpoint's: another `model_type`, another activation than "gelu", adapters. The settings that are ours -
    /// `layers`, `freeze_features`, `pooling`, `precision` - are left at their defaults.
    pub fn from_hugging_face<'de, D: Deserializer<'de>>(config: D) -> Checked<Self> {
        let fields = Fields::read("config.json", config)?;
        fields
            .present("model_type", "must be \"wav2vec2\": is this the config.json of such a checkpoint?")?;
        fields.name("model_type", "wav2vec2", &["wav2vec2"])?;
        fields.name("hidden_act", "gelu", &["gelu"])?;
        fields.name("feat_extract_activation", "gelu", &["gelu"])?;
        fields.absent("add_adapter", "adapters are not supported: use a checkpoint without")?;
        fields.absent("adapter_attn_dim", "adapters are not supported: use a checkpoint without")?;
        let d = Self::default();
        let config = Self {
            conv_dim: fields.wholes("conv_dim", d.conv_dim)?,
            conv_kernel: fields.wholes("conv_kernel", d.conv_kernel)?,
            conv_stride: fields.wholes("conv_stride", d.conv_stride)?,
            conv_bias: fields.flag("conv_bias", d.conv_bias)?,
            feat_extract_norm: match fields.name("feat_extract_norm", "group", &["group", "layer"])? {
                "layer" => FeatureNorm::Layer,
                _ => FeatureNorm::Group,
            },
            hidden_size: fields.whole("hidden_size", d.hidden_size)?,
            num_hidden_layers: fields.whole("num_hidden_layers", d.num_hidden_layers)?,
            num_attention_heads: fields.whole("num_attention_heads", d.num_attention_heads)?,
            intermediate_size: fields.whole("intermediate_size", d.intermediate_size)?,
            do_stable_layer_norm: fields.flag("do_stable_layer_norm", d.do_stable_layer_norm)?,
            num_conv_pos_embeddings: fields.whole("num_conv_pos_embeddings", d.num_conv_pos_embeddings)?,
            num_conv_pos_embedding_groups: fields
                .whole("num_conv_pos_embedding_groups", d.num_conv_pos_embedding_groups)?,
            layer_norm_eps: fields.real("layer_norm_eps", d.layer_norm_eps)?,
            hidden_dropout: fields.real("hidden_dropout", d.hidden_dropout)?,
            activation_dropout: fields.real("activation_dropout", d.activation_dropout)?,
            attention_dropout: fields.real("attention_dropout", d.attention_dropout)?,
            feat_proj_dropout: fields.real("feat_proj_dropout", d.feat_proj_dropout)?,
            layerdrop: fields.real("layerdrop", d.layerdrop)?,
            apply_spec_augment: fields.flag("apply_spec_augment", d.apply_spec_augment)?,
            mask_time_prob: fields.real("mask_time_prob", d.mask_time_prob)?,
            mask_time_length: fields.whole("mask_time_length", d.mask_time_length)?,
            mask_time_min_masks: fields.whole("mask_time_min_masks", d.mask_time_min_masks)?,
            mask_feature_prob: fields.real("mask_feature_prob", d.mask_feature_prob)?,
            mask_feature_length: fields.whole("mask_feature_length", d.mask_feature_length)?,
            mask_feature_min_masks: fields.whole("mask_feature_min_masks", d.mask_feature_min_masks)?,
            layers: d.layers,
            freeze_features: d.freeze_features,
            pooling: d.pooling,
            precision: d.precision,
        };
        let count = fields.whole("num_feat_extract_layers", config.conv_dim.len())?;
        if count != config.conv_dim.len() {
            let rule = format!("must be the number of entries of conv_dim, {}", config.conv_dim.len());
            return Err(ConfigError::new("num_feat_extract_layers", count, rule));
        }
        config.check()?;
        Ok(config)
    }

    /// Checks every setting.
    pub fn check(&self) -> Checked<()> {
        let convolutions = self.conv_dim.len();
        for (field, list) in [
            ("conv_dim", &self.conv_dim),
            ("conv_kernel", &self.conv_kernel),
            ("conv_stride", &self.conv_stride),
        ] {
            if list.is_empty() || list.contains(&0) {
                let rule = "must have at least one entry, and each must be at least 1";
                return Err(ConfigError::new(field, format!("{list:?}"), rule));
            }
            if list.len() != convolutions {
                let rule = format!("must have one entry per convolution, {convolutions}, as conv_dim has");
                return Err(ConfigError::new(field, format!("{list:?}"), rule));
            }
        }
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("num_conv_pos_embeddings", self.num_conv_pos_embeddings),
            ("num_conv_pos_embedding_groups", self.num_conv_pos_embedding_groups),
            ("mask_time_length", self.mask_time_length),
            ("mask_feature_length", self.mask_feature_length),
        ] {
            if value == 0 {
                return Err(ConfigError::new(field, 0, "must be at least 1"));
            }
        }
        for (field, value) in [
            ("num_attention_heads", self.num_attention_heads),
            ("num_conv_pos_embedding_groups", self.num_conv_pos_embedding_groups),
        ] {
            if !self.hidden_size.is_multiple_of(value) {
                let rule = format!("must divide hidden_size = {}", self.hidden_size);
                return Err(ConfigError::new(field, value, rule));
            }
        }
        if let Some(layers) = self.layers.filter(|layers| !(1..=self.num_hidden_layers).contains(layers)) {
            let rule = format!("must be from 1 to num_hidden_layers = {}", self.num_hidden_layers);
            return Err(ConfigError::new("layers", layers, rule));
        }
        ConfigError::check_range("layer_norm_eps", self.layer_norm_eps, f64::MIN_POSITIVE, f64::MAX)?;
        for (field, value) in [
            ("hidden_dropout", self.hidden_dropout),
            ("activation_dropout", self.activation_dropout),
            ("attention_dropout", self.attention_dropout),
            ("feat_proj_dropout", self.feat_proj_dropout),
            ("layerdrop", self.layerdrop),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigError::new(field, value, "must be a number in [0, 1)"));
            }
        }
        ConfigError::check_range("mask_time_prob", self.mask_time_prob, 0.0, 1.0)?;
        ConfigError::check_range("mask_feature_prob", self.mask_feature_prob, 0.0, 1.0)
    }

    /// Makes the encoder, with its parameters in `scope`.
    pub fn build(&self, scope: Scope<'_>) -> Result<Wav2Vec2> {
        self.check().map_err(candle_core::Error::wrap)?;
        Wav2Vec2::new(self, scope)
    }

    /// The number of frames of a clip of so many samples; 0 for one that is too short.
    pub fn frames(&self, samples: usize) -> usize {
        let convolutions = self.conv_kernel.iter().zip(&self.conv_stride);
        convolutions.fold(samples, |places, (&kernel, &stride)| output_length(places, kernel, stride))
    }

    /// The samples of the shortest clip that has a frame.
    pub fn least_samples(&self) -> usize {
        let convolutions = self.conv_kernel.iter().zip(&self.conv_stride).rev();
        convolutions.fold(1, |places: usize, (&kernel, &stride)| {
            places.saturating_sub(1).saturating_mul(stride).saturating_add(kernel)
        })
    }

    /// [`from_hugging_face_name`] for an encoder of this configuration: `None` as well for layers beyond `layers`, and
    /// for `masked_spec_embed` where no time is masked.
    pub fn tensor_name(&self, name: &str) -> Option<String> {
        let name = from_hugging_face_name(name)?;
        let layer =
            name.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let beyond = layer.is_some_and(|l: usize| (self.kept_layers()..self.num_hidden_layers).contains(&l));
        let unused = name == "masked_spec_embed" && self.time_mask().is_none();
        (!beyond && !unused).then_some(name)
    }

    /// The number of layers that are built.
    pub(super) fn kept_layers(&self) -> usize {
        self.layers.unwrap_or(self.num_hidden_layers)
    }

    /// How training hides time, if it does.
    pub(super) fn time_mask(&self) -> Option<SpanMask> {
        (self.apply_spec_augment && self.mask_time_prob > 0.0).then_some(SpanMask {
            probability: self.mask_time_prob,
            length: self.mask_time_length,
            at_least: self.mask_time_min_masks,
        })
    }

    /// How training hides features, if it does.
    pub(super) fn feature_mask(&self) -> Option<SpanMask> {
        (self.apply_spec_augment && self.mask_feature_prob > 0.0).then_some(SpanMask {
            probability: self.mask_feature_prob,
            length: self.mask_feature_length,
            at_least: self.mask_feature_min_masks,
        })
    }
}
