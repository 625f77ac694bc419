//! Checkpoints of Wav2Vec2-Conformer: their configuration and their names.

use super::{Activation, ConformerConfig, ConvolutionNorm, EPS, Input, Padding};
use mm_core::ConfigError;
use serde::{Deserialize, Deserializer};

/// What `config.json` says of the encoder; everything that is not there has the default of the transformers library.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Published {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    hidden_dropout: f64,
    activation_dropout: f64,
    attention_dropout: f64,
    conformer_conv_dropout: f64,
    layer_norm_eps: f64,
    position_embeddings_type: Option<String>,
    conv_depthwise_kernel_size: usize,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            model_type: "none".to_owned(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout: 0.1,
            activation_dropout: 0.1,
            attention_dropout: 0.1,
            conformer_conv_dropout: 0.1,
            layer_norm_eps: EPS,
            position_embeddings_type: Some("relative".to_owned()),
            conv_depthwise_kernel_size: 31,
        }
    }
}

impl ConformerConfig {
    /// The encoder layers of a Wav2Vec2-Conformer such as `facebook/wav2vec2-conformer-rel-pos-large`, from its
    /// `config.json`: a `&serde_json::Value`, or anything else that serde reads.
    ///
    /// The encoder takes what the checkpoint's feature projection gives, (B, N, `hidden_size`), and ends with the
    /// normalisation after the last layer. Set `layers` afterwards to keep the first few only. `layerdrop` and SpecAugment
    /// of the file are not applied. Errors: another kind of model, positions other than "relative".
    pub fn from_hugging_face<'de, D>(config: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        let published = Published::deserialize(config)
            .map_err(|error| ConfigError::new("config.json", error, "must be the file of a checkpoint"))?;
        if published.model_type != "wav2vec2-conformer" {
            let rule = "must be \"wav2vec2-conformer\": choose the encoder of the checkpoint's own kind";
            return Err(ConfigError::new("model_type", format!("\"{}\"", published.model_type), rule));
        }
        if published.position_embeddings_type.as_deref() != Some("relative") {
            let value = published.position_embeddings_type.unwrap_or_else(|| "null".to_owned());
            let rule = "must be \"relative\": use a checkpoint whose name has `rel-pos`";
            return Err(ConfigError::new("position_embeddings_type", value, rule));
        }
        if published.layer_norm_eps != EPS {
            return Err(ConfigError::new("layer_norm_eps", published.layer_norm_eps, "must be 1e-5"));
        }
        let activation = match published.hidden_act.as_str() {
            "swish" | "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            other => return Err(ConfigError::unknown("hidden_act", other, &["swish", "silu", "gelu"])),
        };
        let config = Self {
            dim: published.hidden_size,
            layers: published.num_hidden_layers,
            heads: published.num_attention_heads,
            kernel: published.conv_depthwise_kernel_size,
            feed_forward: Some(published.intermediate_size),
            activation,
            norm: ConvolutionNorm::Batch,
            conv_bias: false,
            input: Input::None,
            final_norm: true,
            padding: Padding::None,
            dropout: published.hidden_dropout,
            activation_dropout: Some(published.activation_dropout),
            attention_dropout: Some(published.attention_dropout),
            conv_dropout: Some(published.conformer_conv_dropout),
            weights_dropout: published.attention_dropout,
            released: false,
        };
        config.check()?;
        Ok(config)
    }
}

/// The name in the encoder's scope of a tensor of a Wav2Vec2-Conformer checkpoint with relative positions.
///
/// `None` for what is not part of the encoder: feature extractor and feature projection, quantiser, heads, the
/// positional convolution (which such checkpoints have and do not use) and counts of batches.
///
/// ```
/// use mm_encoders::conformer::from_wav2vec2_conformer;
/// let name = "wav2vec2_conformer.encoder.layers.3.self_attn.pos_bias_u";
/// assert_eq!(from_wav2vec2_conformer(name).as_deref(), Some("layers.3.attention.content_bias"));
/// assert_eq!(from_wav2vec2_conformer("lm_head.weight"), None);
/// ```
pub fn from_wav2vec2_conformer(name: &str) -> Option<String> {
    let name = name.strip_prefix("wav2vec2_conformer.").unwrap_or(name).strip_prefix("encoder.")?;
    if let Some(part) = name.strip_prefix("layer_norm.") {
        return matches!(part, "weight" | "bias").then(|| format!("norm.{part}"));
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (module, part) = match rest {
        "self_attn.pos_bias_u" => return Some(format!("layers.{layer}.attention.content_bias")),
        "self_attn.pos_bias_v" => return Some(format!("layers.{layer}.attention.position_bias")),
        _ => rest.rsplit_once('.')?,
    };
    let (own, running, bias) = match module {
        "ffn1_layer_norm" => ("ff1.norm", false, true),
        "ffn1.intermediate_dense" => ("ff1.expand", false, true),
        "ffn1.output_dense" => ("ff1.project", false, true),
        "self_attn_layer_norm" => ("attention.norm", false, true),
        "self_attn.linear_q" => ("attention.query", false, true),
        "self_attn.linear_k" => ("attention.key", false, true),
        "self_attn.linear_v" => ("attention.value", false, true),
        "self_attn.linear_out" => ("attention.out", false, true),
        "self_attn.linear_pos" => ("attention.position", false, false),
        "conv_module.layer_norm" => ("conv.norm", false, true),
        "conv_module.pointwise_conv1" => ("conv.expand", false, false),
        "conv_module.depthwise_conv" => ("conv.depthwise", false, false),
        "conv_module.batch_norm" => ("conv.batch_norm", true, true),
        "conv_module.pointwise_conv2" => ("conv.project", false, false),
        "ffn2_layer_norm" => ("ff2.norm", false, true),
        "ffn2.intermediate_dense" => ("ff2.expand", false, true),
        "ffn2.output_dense" => ("ff2.project", false, true),
        "final_layer_norm" => ("norm", false, true),
        _ => return None,
    };
    let known = part == "weight"
        || (bias && part == "bias")
        || (running && matches!(part, "running_mean" | "running_var"));
    known.then(|| format!("layers.{layer}.{own}.{part}"))
}
