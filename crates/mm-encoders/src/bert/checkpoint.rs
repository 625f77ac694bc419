//! Checkpoints of BERT and DistilBERT: their configuration and their names.

use crate::bert::{Activation, BertConfig, Family};
use mm_core::ConfigError;
use serde::{Deserialize, Deserializer};

impl BertConfig {
    /// From a checkpoint's `config.json`: a `&serde_json::Value`, or anything else that serde reads.
    ///
    /// `model_type` decides the family; what is not there has the default of the transformers library. Set `layers`
    /// afterwards to keep the first few only, and `pooling`. Errors: another kind of model, relative positions, a decoder.
    pub fn from_hugging_face<'de, D>(config: D) -> Result<Self, ConfigError>
    where
        D: Deserializer<'de>,
    {
        Published::deserialize(config)
            .map_err(|error| ConfigError::new("config.json", error, "must be the file of a checkpoint"))?
            .read()
    }
}

/// What `config.json` says, in the names of either family.
#[derive(Debug, Deserialize)]
struct Published {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_layers")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_heads")]
    num_attention_heads: Option<usize>,
    #[serde(alias = "hidden_dim")]
    intermediate_size: Option<usize>,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    #[serde(alias = "dropout")]
    hidden_dropout_prob: Option<f64>,
    #[serde(alias = "attention_dropout")]
    attention_probs_dropout_prob: Option<f64>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

impl Published {
    fn read(self) -> Result<BertConfig, ConfigError> {
        let base = BertConfig::default();
        let (family, layers) = match self.model_type.as_deref() {
            Some("bert") => (Family::Bert, 12),
            Some("distilbert") => (Family::DistilBert, 6),
            other => {
                let rule =
                    "must be \"bert\" or \"distilbert\": choose the encoder of the checkpoint's own kind";
                let value = other.map_or_else(|| "null".to_owned(), |kind| format!("\"{kind}\""));
                return Err(ConfigError::new("model_type", value, rule));
            }
        };
        if let Some(kind) = self.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(ConfigError::new("position_embedding_type", kind, "must be \"absolute\""));
        }
        if self.is_decoder == Some(true) {
            return Err(ConfigError::new(
                "is_decoder",
                true,
                "must be false: texts are read in both directions",
            ));
        }
        let activation = match self.hidden_act.as_deref() {
            None | Some("gelu") => Activation::Gelu,
            Some("gelu_new") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("silu") => Activation::Silu,
            Some(other) => {
                return Err(ConfigError::unknown("hidden_act", other, &["gelu", "gelu_new", "relu", "silu"]));
            }
        };
        let config = BertConfig {
            family,
            vocab_size: self.vocab_size.unwrap_or(base.vocab_size),
            dim: self.hidden_size.unwrap_or(base.dim),
            layers: self.num_hidden_layers.unwrap_or(layers),
            heads: self.num_attention_heads.unwrap_or(base.heads),
            feed_forward: self.intermediate_size.unwrap_or(base.feed_forward),
            activation,
            max_positions: self.max_position_embeddings.unwrap_or(base.max_positions),
            type_vocab_size: self.type_vocab_size.unwrap_or(base.type_vocab_size),
            pad_token_id: self.pad_token_id.unwrap_or(base.pad_token_id),
            // DistilBERT's is fixed, whatever its file says.
            eps: self.layer_norm_eps.filter(|_| family == Family::Bert).unwrap_or(base.eps),
            dropout: self.hidden_dropout_prob.unwrap_or(base.dropout),
            attention_dropout: self.attention_probs_dropout_prob.unwrap_or(base.attention_dropout),
            pooling: base.pooling,
        };
        config.check()?;
        Ok(config)
    }
}

/// The name in the encoder's scope of a tensor of a BERT checkpoint, of the bare model or of one with a head.
///
/// `None` for what is not part of the encoder: pooler, heads, position numbers. Old files call the scale of a norm
/// `gamma` and its shift `beta`.
///
/// ```
/// use mm_encoders::bert::from_bert;
/// let name = "bert.encoder.layer.0.output.LayerNorm.gamma";
/// assert_eq!(from_bert(name).as_deref(), Some("encoder.layer.0.output.LayerNorm.weight"));
/// assert_eq!(from_bert("bert.pooler.dense.weight"), None);
/// ```
pub fn from_bert(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let (module, part) = name.rsplit_once('.')?;
    let part = match part {
        "gamma" if module.ends_with("LayerNorm") => "weight",
        "beta" if module.ends_with("LayerNorm") => "bias",
        "weight" | "bias" => part,
        _ => return None,
    };
    let known = match module.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
        Some((layer, inside)) => {
            layer.parse::<usize>().is_ok() && LAYER.iter().any(|(own, _)| *own == inside)
        }
        None => module == "embeddings.LayerNorm" || (TABLES.contains(&module) && part == "weight"),
    };
    known.then(|| format!("{module}.{part}"))
}

/// As [`from_bert`] for DistilBERT.
///
/// ```
/// use mm_encoders::bert::from_distilbert;
/// let name = "distilbert.transformer.layer.5.attention.q_lin.weight";
/// assert_eq!(from_distilbert(name).as_deref(), Some("encoder.layer.5.attention.self.query.weight"));
/// assert_eq!(from_distilbert("vocab_transform.weight"), None);
/// ```
pub fn from_distilbert(name: &str) -> Option<String> {
    let name = name.strip_prefix("distilbert.").unwrap_or(name);
    let Some(rest) = name.strip_prefix("transformer.layer.") else {
        let known = name.starts_with("embeddings.") && !name.contains("token_type");
        return known.then(|| from_bert(name)).flatten();
    };
    let (layer, rest) = rest.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let (own, _) = LAYER.iter().find(|(_, distilled)| *distilled == module)?;
    from_bert(&format!("encoder.layer.{layer}.{own}.{part}"))
}

const TABLES: [&str; 3] =
    ["embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings"];

/// The modules of a layer: BERT's names and DistilBERT's.
const LAYER: [(&str, &str); 8] = [
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
];
