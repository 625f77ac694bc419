//! A Conformer over sequences: feed-forward, attention over relative positions, convolution, feed-forward.
//!
//! ```text
//! x_0     = dropout(W x + b)
//! y       = x_l + ½ ff(x_l)                       ff(x) = dropout(W_2 dropout(act(W_1 norm(x) + b_1)) + b_2)
//! y       = y + dropout(attention(norm(y)))       relative positions with u and v, as in Transformer-XL
//! y       = y + conv(norm(y))                     conv(z) = dropout(W_4 act(g) + b_4)
//!                                                 g = inner_norm(depthwise(glu(W_3 z + b_3)))
//! x_{l+1} = norm(y + ½ ff'(y))                    l = 0 … L-1
//! h       = mean over the real places of x_L
//! ```
//!
//! Shapes: x (B, N, d), h (B, `dim`); W_3 is twice as wide as `dim`. Channels last throughout.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `dim` | 512 | at least 1 |
//! | `layers` | 5 | at least 1 |
//! | `heads` | 8 | a divisor of `dim` |
//! | `kernel` | 31 | odd; width of the depthwise convolution |
//! | `feed_forward` | 4 `dim` | at least 1; inside of a feed-forward part |
//! | `activation` | "silu" | "silu", "gelu" (exact) |
//! | `norm` | "batch" | "batch", "layer"; inside the convolution part |
//! | `conv_bias` | true | whether W_3 and W_4 have b_3 and b_4 |
//! | `input` | "linear" | "linear"; "none": x is x_0 before its dropout, d = `dim` |
//! | `final_norm` | false | whether x_L is normalised once more |
//! | `padding` | "none" | "none"; "zeros": the places after the last that is not all zeros are padding |
//! | `dropout` | 0.1 | [0, 1); of x_0 and behind W_2 |
//! | `activation_dropout`, `attention_dropout`, `conv_dropout` | as `dropout` | [0, 1); before W_2, behind attention, behind W_4 |
//! | `weights_dropout` | 0 | [0, 1); of attention weights |
//! | `released` | false | what the released code of VAVL and MLB does, see below |
//!
//! Parameters, in `encoder.<modality>`: `input.{weight,bias}`, and for each layer l, in `layers.<l>`:
//! `ff1.{norm,expand,project}.{weight,bias}`, `attention.{norm,query,key,value,out}.{weight,bias}`,
//! `attention.position.weight`, `attention.{content_bias,position_bias}`,
//! `conv.{norm,expand,batch_norm,project}.{weight,bias}`, `conv.depthwise.weight`, `ff2.…` as `ff1`,
//! `norm.{weight,bias}`; buffers `conv.batch_norm.{running_mean,running_var}`; `conv.layer_norm` where that is chosen;
//! `norm.{weight,bias}` of `final_norm`. Linear maps start with Glorot's uniform distribution and zero biases, u and v
//! with Glorot's; the two pointwise and the depthwise convolution, which have PyTorch's shapes, with its default,
//! U(±1/√fan_in); norms with scale 1 and shift 0.
//!
//! Masks. [`Conformer::encode`] takes a [`Mask`]; `padding = "zeros"` makes one where only tensors are handed on. Padding
//! is no key, is zero before the depthwise convolution, and counts neither in statistics nor in the mean: in
//! evaluation a clip has the same features alone and in a padded batch. A row without a real place has features of zero.
//!
//! Batch normalisation: momentum 0.1 and eps 1e-5, over rows and real places. A pass in training mode moves the running
//! statistics, and so does each further pass of a method that makes several.
//!
//! Differences. With `released`, three things are as in the code that VAVL and MLB published. (1) Batch and time are
//! exchanged: attention, convolution and statistics run over the clips of a batch, one time step after another, so
//! features depend on the batch and its order. (2) Scores are divided by √`dim`, not by the root of a head's width.
//! (3) There is one sinusoid per place, t = 0 … N-1, and none for keys after their query: the key i - o of query i meets
//! number N-1-o, the key i + 1 none at all, and the key i + 2 + t gets the next query's product with number t. There are
//! no masks then. [`ConformerConfig::released`] sets the dropout of attention weights, too, as that code has it; its
//! unused subsampling layer is not here.
//!
//! [`ConformerConfig::from_hugging_face`] reads the configuration of Wav2Vec2-Conformer, and [`from_wav2vec2_conformer`]
//! names its tensors. There, padding is zero before the first layer only, and then spreads through convolutions and
//! statistics.
//!
//! Source: Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv 2005.08100;
//! start values and biases as in the Conformer of ilucasgoncalves/VAVL @c128439.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::{ConformerConfig, Mask};
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = ConformerConfig { dim: 16, heads: 2, kernel: 3, layers: 1, ..ConformerConfig::default() };
//! let encoder = config.build(store.root().at("encoder").at("audio"), 10)?;
//! let sequences = Tensor::zeros((2, 7, 10), DType::F32, &Device::Cpu)?;
//! assert_eq!(encoder.forward(&sequences, Mode::Eval)?.dims(), [2, 16]);
//! let clips = Mask::from_lengths(&[7, 4], 7)?;
//! assert_eq!(encoder.encode(&sequences, Some(&clips), Mode::Eval)?.dims(), [2, 16]);
//! # Ok::<(), candle_core::Error>(())
//! ```

pub(crate) mod attention;
mod parts;
mod wav2vec2;

pub use wav2vec2::from_wav2vec2_conformer;

use crate::mask::{Mask, Places};
use attention::Attention;
use candle_core::{DType, Device, Result, Tensor, bail};
use mm_core::{ConfigError, Encoder, Mode, Scope, StepRng};
use mm_kernels::{dropout, residual};
use parts::{Affine, Convolution, FeedForward, Scaled};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The non-linearity of the feed-forward and convolution parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x σ(x), also called swish.
    #[default]
    Silu,
    /// x Φ(x), exact.
    Gelu,
}

/// Normalisation inside the convolution part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvolutionNorm {
    /// Each channel over the batch and its places.
    #[default]
    Batch,
    /// Each place over its channels: no statistics, and no clip sees another one in training.
    Layer,
}

/// What comes before the first layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// A linear map to `dim`.
    #[default]
    Linear,
    /// Nothing: inputs are `dim` wide.
    None,
}

/// Which places of inputs that come without a mask are padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// None.
    #[default]
    None,
    /// Those after the last place that is not all zeros.
    Zeros,
}

impl Padding {
    /// The mask of `x` (B, N, d), if there is to be one; other shapes are for the encoder to name.
    pub(crate) fn mask(self, x: &Tensor) -> Result<Option<Mask>> {
        match self {
            Self::Zeros if x.rank() == 3 => Mask::trailing_zeros(x).map(Some),
            Self::None | Self::Zeros => Ok(None),
        }
    }
}

/// Settings of [`Conformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConformerConfig {
    /// Width of the layers and of the features.
    pub dim: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Width of the depthwise convolution.
    pub kernel: usize,
    /// Width inside a feed-forward part; `None` is four times `dim`.
    pub feed_forward: Option<usize>,
    /// The non-linearity.
    pub activation: Activation,
    /// Normalisation inside the convolution part.
    pub norm: ConvolutionNorm,
    /// Whether the pointwise convolutions have biases.
    pub conv_bias: bool,
    /// What comes before the first layer.
    pub input: Input,
    /// Whether the last layer's output is normalised once more.
    pub final_norm: bool,
    /// Which places of inputs that come without a mask are padding.
    pub padding: Padding,
    /// Dropout of the first layer's input and of the feed-forward parts' outputs.
    pub dropout: f64,
    /// Dropout inside the feed-forward parts; `None` is `dropout`.
    pub activation_dropout: Option<f64>,
    /// Dropout of the attention's output; `None` is `dropout`.
    pub attention_dropout: Option<f64>,
    /// Dropout of the convolution part's output; `None` is `dropout`.
    pub conv_dropout: Option<f64>,
    /// Dropout of attention weights.
    pub weights_dropout: f64,
    /// Whether batch and time are exchanged, scores scaled and positions counted as in the released code.
    pub released: bool,
}

impl Default for ConformerConfig {
    fn default() -> Self {
        Self {
            dim: 512,
            layers: 5,
            heads: 8,
            kernel: 31,
            feed_forward: None,
            activation: Activation::Silu,
            norm: ConvolutionNorm::Batch,
            conv_bias: true,
            input: Input::Linear,
            final_norm: false,
            padding: Padding::None,
            dropout: 0.1,
            activation_dropout: None,
            attention_dropout: None,
            conv_dropout: None,
            weights_dropout: 0.0,
            released: false,
        }
    }
}

impl ConformerConfig {
    /// The Conformer of the released code of VAVL and MLB; see "Differences" of this module.
    pub fn released() -> Self {
        Self { released: true, weights_dropout: 0.1, ..Self::default() }
    }

    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        let sizes = [("dim", self.dim), ("layers", self.layers), ("heads", self.heads)];
        for (field, value) in sizes.into_iter().chain([("feed_forward", self.inside())]) {
            if value == 0 {
                return Err(ConfigError::new(field, 0, "must be at least 1"));
            }
        }
        if !self.dim.is_multiple_of(self.heads) {
            let rule = format!("must divide dim = {}", self.dim);
            return Err(ConfigError::new("heads", self.heads, rule));
        }
        if self.kernel.is_multiple_of(2) {
            let rule = "must be odd: as many places before as after";
            return Err(ConfigError::new("kernel", self.kernel, rule));
        }
        let dropouts = [
            ("dropout", Some(self.dropout)),
            ("activation_dropout", self.activation_dropout),
            ("attention_dropout", self.attention_dropout),
            ("conv_dropout", self.conv_dropout),
            ("weights_dropout", Some(self.weights_dropout)),
        ];
        for (field, value) in dropouts {
            if let Some(value) = value.filter(|value| !(0.0..1.0).contains(value)) {
                return Err(ConfigError::new(field, value, "must be a number in [0, 1)"));
            }
        }
        if self.released && self.padding != Padding::None {
            let rule = "must be \"none\" with released = true, which mixes clips and has no masks";
            return Err(ConfigError::new("padding", "\"zeros\"", rule));
        }
        Ok(())
    }

    /// Makes the encoder of sequences of `input_dim` numbers per place, with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>, input_dim: usize) -> Result<Conformer> {
        self.check().map_err(candle_core::Error::wrap)?;
        if input_dim == 0 {
            bail!("an encoder needs inputs of at least one number");
        }
        let input = match self.input {
            Input::Linear => Some(Affine::new(scope.child("input"), input_dim, self.dim)?),
            Input::None if input_dim == self.dim => None,
            Input::None => bail!(
                "input = \"none\" needs inputs of dim = {} numbers, not {input_dim}: set input = \"linear\"",
                self.dim
            ),
        };
        let layers: Result<Vec<_>> =
            (0..self.layers).map(|l| self.build_layer(scope.child("layers").at(l))).collect();
        let norm = self.final_norm.then(|| Scaled::new(&mut scope.child("norm"), self.dim)).transpose()?;
        let positions = Mutex::new(None);
        Ok(Conformer { config: self.clone(), input_dim, input, layers: layers?, norm, positions })
    }

    /// Makes one layer, of which a network of one's own may be built; `layers` has no say in it.
    pub fn build_layer(&self, mut scope: Scope<'_>) -> Result<ConformerLayer> {
        self.check().map_err(candle_core::Error::wrap)?;
        Ok(ConformerLayer {
            first: FeedForward::new(scope.child("ff1"), self)?,
            attention: Attention::new(scope.child("attention"), self)?,
            conv: Convolution::new(scope.child("conv"), self)?,
            last: FeedForward::new(scope.child("ff2"), self)?,
            norm: Scaled::new(&mut scope.child("norm"), self.dim)?,
            attention_dropout: self.attention_dropout.unwrap_or(self.dropout),
            conv_dropout: self.conv_dropout.unwrap_or(self.dropout),
        })
    }

    /// The width inside a feed-forward part.
    fn inside(&self) -> usize {
        self.feed_forward.unwrap_or(4 * self.dim)
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct Conformer {
    config: ConformerConfig,
    input_dim: usize,
    input: Option<Affine>,
    layers: Vec<ConformerLayer>,
    norm: Option<Scaled>,
    /// The table of the last length: batches of one length after another share it.
    positions: Mutex<Option<Tensor>>,
}

impl Conformer {
    /// The features (B, `dim`) of x (B, N, d). Without a mask every place is real, whatever `padding` says.
    pub fn encode(&self, x: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        let places = self.places(x, mask, mode)?;
        mask.map_or_else(|| places.mean(1), |mask| mask.mean(&places))
    }

    /// The last layer's output (B, N, `dim`), before the mean. In places of padding it means nothing.
    pub fn places(&self, x: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        match *x.dims() {
            [_, places, d] if places > 0 && d == self.input_dim => {}
            _ => bail!(
                "the encoder needs sequences (batch, places, {}) of at least one place, got inputs {:?}",
                self.input_dim,
                x.shape()
            ),
        }
        let mask = Places::new(mask, x)?;
        let mask = mask.as_ref();
        if self.config.released {
            if mask.is_some() {
                bail!(
                    "released = true mixes the clips of a batch and has no masks: give sequences of one length"
                );
            }
            return self.run(&x.transpose(0, 1)?.contiguous()?, None, mode)?.transpose(0, 1)?.contiguous();
        }
        match mask {
            Some(places) => self.run(&places.clear(x)?, mask, mode),
            None => self.run(x, None, mode),
        }
    }

    fn run(&self, x: &Tensor, places: Option<&Places>, mode: Mode) -> Result<Tensor> {
        let table = self.positions(x)?;
        let x = self.input.as_ref().map_or(Ok(x.clone()), |input| input.forward(x))?;
        let mut x = drop(&x, self.config.dropout, mode, "input")?;
        for (l, layer) in self.layers.iter().enumerate() {
            x = layer.run(&x, &table, places, mode.stream(&l.to_string()))?;
        }
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.layer_norm(&x))
    }

    fn positions(&self, x: &Tensor) -> Result<Tensor> {
        let length = x.dim(1)?;
        let rows = if self.config.released { length } else { (2 * length).saturating_sub(1) };
        let mut last = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = last.as_ref()
            && table.dim(0)? == rows
        {
            return Ok(table.clone());
        }
        let make = if self.config.released { released_positions } else { positions };
        let table = make(length, self.config.dim, x.dtype(), x.device())?;
        *last = Some(table.clone());
        Ok(table)
    }
}

impl Encoder for Conformer {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.encode(x, self.config.padding.mask(x)?.as_ref(), mode)
    }

    fn forward_padded(&self, x: &Tensor, lengths: &[usize], mode: Mode) -> Result<Tensor> {
        self.encode(x, Some(&Mask::from_lengths(lengths, x.dim(1)?)?), mode)
    }

    fn dim(&self) -> usize {
        self.config.dim
    }
}

/// The sinusoids of the relative positions of a sequence, (2 `length` - 1, `dim`): row r belongs to the offset
/// o = `length` - 1 - r of a query from its key, and holds sin(o w_0), cos(o w_0), sin(o w_1), … with
/// w_i = 10000^(-2i/`dim`).
pub fn positions(length: usize, dim: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let last = length as f64 - 1.0;
    sinusoids((0..(2 * length).saturating_sub(1)).map(|r| last - r as f64), dim, dtype, device)
}

/// The sinusoids of the released code, (`length`, `dim`): row t belongs to the number t, in the layout of [`positions`].
pub fn released_positions(length: usize, dim: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    sinusoids((0..length).map(|t| t as f64), dim, dtype, device)
}

pub(crate) fn sinusoids(
    numbers: impl ExactSizeIterator<Item = f64>,
    dim: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let rows = numbers.len();
    let mut table = Vec::with_capacity(rows * dim);
    for number in numbers {
        table.extend((0..dim).map(|d| {
            let angle = number * 10000f64.powf(-((d - d % 2) as f64) / dim as f64);
            if d % 2 == 0 { angle.sin() } else { angle.cos() }
        }));
    }
    Tensor::from_vec(table, (rows, dim), device)?.to_dtype(dtype)
}

/// One layer; see the equations of this module.
#[derive(Debug)]
pub struct ConformerLayer {
    first: FeedForward,
    attention: Attention,
    conv: Convolution,
    last: FeedForward,
    norm: Scaled,
    attention_dropout: f64,
    conv_dropout: f64,
}

impl ConformerLayer {
    /// From x (B, N, `dim`) to the same shape; `table` comes from [`positions`], or with `released` from
    /// [`released_positions`], and then x is (N, B, `dim`).
    pub fn forward(&self, x: &Tensor, table: &Tensor, mode: Mode) -> Result<Tensor> {
        self.run(x, table, None, mode)
    }

    fn run(&self, x: &Tensor, table: &Tensor, places: Option<&Places>, mode: Mode) -> Result<Tensor> {
        let x = self.first.forward(x, mode.stream("ff1"))?;
        let keys = places.map(|places| &places.keys);
        let attended = self.attention.forward(&x, table, keys, mode)?;
        let x = residual(&x, &attended, 1.0, key(self.attention_dropout, mode, "attention"))?;
        let mixed = self.conv.forward(&x, places, mode)?;
        let x = residual(&x, &mixed, 1.0, key(self.conv_dropout, mode, "conv"))?;
        let x = self.last.forward(&x, mode.stream("ff2"))?;
        self.norm.layer_norm(&x)
    }
}

fn drop(x: &Tensor, p: f64, mode: Mode, place: &str) -> Result<Tensor> {
    match mode.stream(place) {
        Mode::Train(rng) => dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// The probability and the key of a dropout in training.
fn key(p: f64, mode: Mode, place: &str) -> Option<(f64, StepRng)> {
    match mode.stream(place) {
        Mode::Train(rng) => Some((p, rng)),
        Mode::Eval => None,
    }
}
