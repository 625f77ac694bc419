//! BERT or DistilBERT over the token ids of a text.
//!
//! ```text
//! x_0     = dropout(norm(word[id] + type[0] + position[t]))           DistilBERT has no type
//! a       = norm(x_l + dropout(O attention(Q x_l, K x_l, V x_l)))     DistilBERT has no dropout here
//! x_{l+1} = norm(a + dropout(W_2 act(W_1 a)))                         l = 0 … L-1; every linear map has a bias
//! h       = x_L of the first token, or the mean of x_L over the real tokens
//! ```
//!
//! Shapes: ids (B, N), h (B, `dim`).
//!
//! | setting | default | range |
//! |---|---|---|
//! | `family` | "bert" | "bert", "distilbert" |
//! | `vocab_size` | 30522 | at least 1 |
//! | `dim` | 768 | at least 1 |
//! | `layers` | 12 | at least 1; fewer than the checkpoint has are its first ones |
//! | `heads` | 12 | a divisor of `dim` |
//! | `feed_forward` | 3072 | at least 1; inside of W_1 and W_2 |
//! | `activation` | "gelu" | "gelu" (exact), "gelu-tanh", "relu", "silu" |
//! | `max_positions` | 512 | at least 1; the longest text |
//! | `type_vocab_size` | 2 | at least 1; of BERT alone |
//! | `pad_token_id` | 0 | below `vocab_size` |
//! | `eps` | 1e-12 | above 0; of the norms |
//! | `dropout` | 0.1 | [0, 1) |
//! | `attention_dropout` | 0.1 | [0, 1); of attention weights |
//! | `pooling` | "first" | "first", "mean" |
//!
//! Ids come as `u32` or `i64`, or as whole numbers in `f32` or `f64`, because batches of features are floats; they stay
//! exact there up to 2^24, far above a vocabulary. There is one rule for all: the places that hold `pad_token_id` are
//! padding. That id is 0 in both families, so rows that were filled up with zeros, and rows whose modality is missing,
//! need no mask of their own. [`Bert::encode`] takes a [`Mask`] instead where another rule holds. Padding goes to the
//! right; it is no key and not in the mean. A text has the same features alone and in a padded batch, in evaluation. A
//! row without a token has features of zero.
//!
//! Parameters, in `encoder.<modality>`, have BERT's names in both families:
//! `embeddings.{word_embeddings,position_embeddings,token_type_embeddings}.weight`, `embeddings.LayerNorm.{weight,bias}`,
//! and in `encoder.layer.<l>`: `attention.self.{query,key,value}.{weight,bias}`, `attention.output.{dense,LayerNorm}.…`,
//! `intermediate.dense.…`, `output.{dense,LayerNorm}.…`. [`from_bert`] and [`from_distilbert`] name a checkpoint's
//! tensors so. Weights start with N(0, 0.02²), biases with 0, norms with scale 1 and shift 0. The embedding of
//! `pad_token_id` gets no gradient.
//!
//! Differences. The library's pooler, a linear map with tanh over the first token, is not here: it was trained for
//! another task. All tokens have type 0. Texts are cut into tokens elsewhere.
//!
//! Source: Devlin et al., "BERT", arXiv 1810.04805; Sanh et al., "DistilBERT", arXiv 1910.01108; the numbers are those of
//! transformers 5.23.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::BertConfig;
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = BertConfig {
//!     vocab_size: 50, dim: 16, layers: 2, heads: 2, feed_forward: 32, max_positions: 8, ..BertConfig::default()
//! };
//! let encoder = config.build(store.root().at("encoder").at("text"))?;
//! let ids = Tensor::new(&[[2u32, 17, 9, 3], [2, 30, 3, 0]], &Device::Cpu)?;
//! assert_eq!(encoder.forward(&ids, Mode::Eval)?.dims(), [2, 16]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod checkpoint;

pub use checkpoint::{from_bert, from_distilbert};

use crate::conformer::attention::{split, weigh};
use crate::mask::Mask;
use candle_core::{DType, Result, Tensor, bail};
use mm_core::model::to_host;
use mm_core::{ConfigError, Encoder, Init, Mode, Scope};
use mm_kernels::{attention, dropout, embedding, gelu, gelu_tanh, layer_norm, linear, relu, silu};
use serde::{Deserialize, Serialize};

/// How weights start.
const START: Init = Init::Normal { mean: 0.0, std: 0.02 };

/// The kind of checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// BERT.
    #[default]
    Bert,
    /// DistilBERT: no token types, no dropout behind attention.
    DistilBert,
}

/// The non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x Φ(x), exact.
    #[default]
    Gelu,
    /// The approximation of it by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x σ(x).
    Silu,
}

/// How the tokens of a text become one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The first token, `[CLS]`.
    #[default]
    First,
    /// The mean over the real tokens.
    Mean,
}

/// Settings of [`Bert`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BertConfig {
    /// The kind of checkpoint.
    pub family: Family,
    /// Number of tokens that there are.
    pub vocab_size: usize,
    /// Width of the layers and of the features.
    pub dim: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// The non-linearity.
    pub activation: Activation,
    /// Length of the longest text.
    pub max_positions: usize,
    /// Number of token types; BERT's alone.
    pub type_vocab_size: usize,
    /// The token that fills texts up to one length.
    pub pad_token_id: u32,
    /// What the norms add to a variance.
    pub eps: f64,
    /// Dropout of embeddings and of what layers add.
    pub dropout: f64,
    /// Dropout of attention weights.
    pub attention_dropout: f64,
    /// How the tokens of a text become one feature.
    pub pooling: Pooling,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            family: Family::Bert,
            vocab_size: 30522,
            dim: 768,
            layers: 12,
            heads: 12,
            feed_forward: 3072,
            activation: Activation::Gelu,
            max_positions: 512,
            type_vocab_size: 2,
            pad_token_id: 0,
            eps: 1e-12,
            dropout: 0.1,
            attention_dropout: 0.1,
            pooling: Pooling::First,
        }
    }
}

impl BertConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        let widths = [("dim", self.dim), ("heads", self.heads), ("feed_forward", self.feed_forward)];
        let tables = [("vocab_size", self.vocab_size), ("type_vocab_size", self.type_vocab_size)];
        let lengths = [("layers", self.layers), ("max_positions", self.max_positions)];
        if let Some((field, _)) =
            [&widths[..], &tables, &lengths].concat().into_iter().find(|size| size.1 == 0)
        {
            return Err(ConfigError::new(field, 0, "must be at least 1"));
        }
        if !self.dim.is_multiple_of(self.heads) {
            return Err(ConfigError::new("heads", self.heads, format!("must divide dim = {}", self.dim)));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            let rule = format!("must be below vocab_size = {}", self.vocab_size);
            return Err(ConfigError::new("pad_token_id", self.pad_token_id, rule));
        }
        ConfigError::check_range("eps", self.eps, f64::MIN_POSITIVE, f64::MAX)?;
        for (field, value) in [("dropout", self.dropout), ("attention_dropout", self.attention_dropout)] {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigError::new(field, value, "must be a number in [0, 1)"));
            }
        }
        Ok(())
    }

    /// Makes the encoder with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>) -> Result<Bert> {
        self.check().map_err(candle_core::Error::wrap)?;
        let mut place = scope.child("embeddings");
        let mut table = |name: &str, rows: usize| place.child(name).param("weight", (rows, self.dim), START);
        let words = table("word_embeddings", self.vocab_size)?;
        let positions = table("position_embeddings", self.max_positions)?;
        let types = match self.family {
            Family::Bert => Some(table("token_type_embeddings", self.type_vocab_size)?),
            Family::DistilBert => None,
        };
        let norm = Pair::norm(place.at("LayerNorm"), self.dim)?;
        let mut scope = scope.at("encoder").at("layer");
        let layers: Result<Vec<_>> = (0..self.layers).map(|l| Layer::new(scope.child(l), self)).collect();
        Ok(Bert { config: self.clone(), words, positions, types, norm, layers: layers? })
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct Bert {
    config: BertConfig,
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: Pair,
    layers: Vec<Layer>,
}

impl Bert {
    /// The features (B, `dim`) of ids (B, N). Without a mask every token is real, the padding token too.
    pub fn encode(&self, ids: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        let x = self.tokens(ids, mask, mode)?;
        match (self.config.pooling, mask) {
            (Pooling::Mean, None) => x.mean(1),
            (Pooling::Mean, Some(mask)) => mask.mean(&x),
            (Pooling::First, None) => x.narrow(1, 0, 1)?.squeeze(1),
            (Pooling::First, Some(mask)) => {
                if let Some(row) = mask.starts_late() {
                    bail!(
                        "row {row} begins with padding, but its feature is its first token: pad on the right"
                    );
                }
                x.narrow(1, 0, 1)?.squeeze(1)?.broadcast_mul(&mask.filled(x.dtype(), x.device())?)
            }
        }
    }

    /// The last layer's output (B, N, `dim`). In places of padding it means nothing.
    pub fn tokens(&self, ids: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        let numbers = self.numbers(ids)?;
        let ids = Tensor::from_vec(numbers, ids.shape(), self.words.device())?;
        if let Some(mask) = mask {
            mask.fits(&ids)?;
        }
        let keys = mask.filter(|mask| !mask.is_full()).map(|mask| mask.keys(ids.device())).transpose()?;
        let x = embedding(&ids, &self.words, Some(self.config.pad_token_id as usize))?;
        // All tokens have type 0.
        let x =
            self.types.as_ref().map_or(Ok(x.clone()), |types| x.broadcast_add(&types.narrow(0, 0, 1)?))?;
        let x = x.broadcast_add(&self.positions.narrow(0, 0, ids.dim(1)?)?)?;
        let mut x =
            drop(&self.norm.normalise(&x, self.config.eps)?, self.config.dropout, mode, "embeddings")?;
        for (l, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, keys.as_ref(), &self.config, mode.stream(&l.to_string()))?;
        }
        Ok(x)
    }

    /// The ids in order, all below `vocab_size`.
    fn numbers(&self, ids: &Tensor) -> Result<Vec<u32>> {
        let (&[_, places], DType::U32 | DType::I64 | DType::F32 | DType::F64) = (ids.dims(), ids.dtype())
        else {
            bail!(
                "the encoder needs token ids (batch, tokens) as u32, i64, f32 or f64, got {:?} of {:?}",
                ids.shape(),
                ids.dtype()
            )
        };
        let (longest, tokens) = (self.config.max_positions, self.config.vocab_size);
        if places == 0 || places > longest {
            bail!(
                "the encoder reads texts of 1 to max_positions = {longest} tokens, not {places}: cut the texts"
            );
        }
        let check = |(at, id): (usize, f64)| {
            if id < 0.0 || id >= tokens as f64 || id.fract() != 0.0 || id.is_nan() {
                bail!(
                    "row {}, place {} holds {id}, not a token id below vocab_size = {tokens}: use the tokenizer of \
                     the checkpoint",
                    at / places,
                    at % places
                )
            }
            Ok(id as u32)
        };
        to_host(ids)?.into_iter().enumerate().map(check).collect()
    }
}

impl Encoder for Bert {
    fn forward(&self, ids: &Tensor, mode: Mode) -> Result<Tensor> {
        let keep = self.numbers(ids)?.into_iter().map(|id| id != self.config.pad_token_id).collect();
        let (rows, places) = ids.dims2()?;
        self.encode(ids, Some(&Mask::from_flags(keep, rows, places)), mode)
    }

    fn forward_padded(&self, ids: &Tensor, lengths: &[usize], mode: Mode) -> Result<Tensor> {
        self.encode(ids, Some(&Mask::from_lengths(lengths, ids.dim(1)?)?), mode)
    }

    fn dim(&self) -> usize {
        self.config.dim
    }
}

fn drop(x: &Tensor, p: f64, mode: Mode, place: &str) -> Result<Tensor> {
    match mode.stream(place) {
        Mode::Train(rng) => dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// Weight and bias, of a linear map or of a norm.
#[derive(Debug)]
struct Pair {
    weight: Tensor,
    bias: Tensor,
}

impl Pair {
    fn linear(mut scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let weight = scope.param("weight", (output, input), START)?;
        Ok(Self { weight, bias: scope.param("bias", output, Init::Const(0.0))? })
    }

    fn norm(mut scope: Scope<'_>, width: usize) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        Ok(Self { weight, bias: scope.param("bias", width, Init::Const(0.0))? })
    }

    fn map(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    fn normalise(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), eps)
    }
}

#[derive(Debug)]
struct Layer {
    query: Pair,
    key: Pair,
    value: Pair,
    out: Pair,
    attention_norm: Pair,
    expand: Pair,
    project: Pair,
    norm: Pair,
}

impl Layer {
    fn new(mut scope: Scope<'_>, config: &BertConfig) -> Result<Self> {
        let (dim, inside) = (config.dim, config.feed_forward);
        let mut affine = |name: &str, input, output| Pair::linear(scope.child(name), input, output);
        Ok(Self {
            query: affine("attention.self.query", dim, dim)?,
            key: affine("attention.self.key", dim, dim)?,
            value: affine("attention.self.value", dim, dim)?,
            out: affine("attention.output.dense", dim, dim)?,
            expand: affine("intermediate.dense", dim, inside)?,
            project: affine("output.dense", inside, dim)?,
            attention_norm: Pair::norm(scope.child("attention.output.LayerNorm"), dim)?,
            norm: Pair::norm(scope.child("output.LayerNorm"), dim)?,
        })
    }

    fn forward(&self, x: &Tensor, keys: Option<&Tensor>, config: &BertConfig, mode: Mode) -> Result<Tensor> {
        let (q, k, v) = (self.query.map(x)?, self.key.map(x)?, self.value.map(x)?);
        // The kernel drops no weights.
        let attended = if mode.is_train() && config.attention_dropout > 0.0 {
            let scale = (config.heads as f64 / config.dim as f64).sqrt();
            let scores = split(&(q * scale)?, config.heads)?.matmul(&split(&k, config.heads)?.t()?)?;
            weigh(&scores, &v, keys, config.attention_dropout, mode)?
        } else {
            attention(&q, &k, &v, keys, config.heads)?
        };
        let p = if config.family == Family::Bert { config.dropout } else { 0.0 };
        let a = drop(&self.out.map(&attended)?, p, mode, "attention")?;
        let a = self.attention_norm.normalise(&(x + a)?, config.eps)?;
        let hidden = self.expand.map(&a)?;
        let hidden = match config.activation {
            Activation::Gelu => gelu(&hidden)?,
            Activation::GeluTanh => gelu_tanh(&hidden)?,
            Activation::Relu => relu(&hidden)?,
            Activation::Silu => silu(&hidden)?,
        };
        let y = drop(&self.project.map(&hidden)?, config.dropout, mode, "feed-forward")?;
        self.norm.normalise(&(a + y)?, config.eps)
    }
}
