//! A Conformer over sequences: feed-forward, attention over relative positions, convolution, feed-forward.
//!
//! ```text
//! x_0     = dropout(W x + b)
//! y       = x_l + ½ ff(x_l)                       ff(x) = dropout(W_2 dropout(silu(W_1 norm(x) + b_1)) + b_2)
//! y       = y + dropout(attention(norm(y)))       relative positions with u and v, as in Transformer-XL
//! y       = y + conv(norm(y))                     conv(z) = dropout(W_4 silu(g) + b_4)
//!                                                 g = batch_norm(depthwise(glu(W_3 z + b_3)))
//! x_{l+1} = norm(y + ½ ff'(y))                    l = 0 … L-1
//! h       = mean over places of x_L
//! ```
//!
//! Shapes: x (B, N, d), h (B, `dim`); W_1 four times as wide as `dim`, W_3 twice. Channels last throughout.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `dim` | 512 | at least 1 |
//! | `layers` | 5 | at least 1 |
//! | `heads` | 8 | a divisor of `dim` |
//! | `kernel` | 31 | odd; width of the depthwise convolution |
//! | `dropout` | 0.1 | [0, 1) |
//!
//! Parameters, in `encoder.<modality>`: `input.{weight,bias}`, and for each layer l, in `layers.<l>`:
//! `ff1.{norm,expand,project}.{weight,bias}`, `attention.{norm,query,key,value,out}.{weight,bias}`,
//! `attention.position.weight`, `attention.{content_bias,position_bias}`,
//! `conv.{norm,expand,batch_norm,project}.{weight,bias}`, `conv.depthwise.weight`, `ff2.…` as `ff1`,
//! `norm.{weight,bias}`; buffers `conv.batch_norm.{running_mean,running_var}`. Linear maps start with Glorot's
//! uniform distribution and zero biases, u and v with Glorot's; the two pointwise and the depthwise convolution
//! with PyTorch's default, U(±1/√fan_in); norms with scale 1 and shift 0.
//!
//! Batch normalisation: momentum 0.1 and eps 1e-5, over rows and places. A pass in training mode moves the running
//! statistics, and so does each further pass of a method that makes several.
//!
//! Differences. The Conformer of the released code of VAVL and MLB divides scores by √`dim` instead of the root of
//! a head's width, has no positions for keys after their query, drops attention weights too, and is handed sequences with
//! batch and time exchanged; none of that is so here. Sequences have no mask: pad to one length, or use one length.
//!
//! Source: Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", arXiv 2005.08100;
//! start values and biases as in the Conformer of ilucasgoncalves/VAVL @c128439.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::ConformerConfig;
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = ConformerConfig { dim: 16, heads: 2, kernel: 3, layers: 1, ..ConformerConfig::default() };
//! let encoder = config.build(store.root().at("encoder").at("audio"), 10)?;
//! let sequences = Tensor::zeros((2, 7, 10), DType::F32, &Device::Cpu)?;
//! assert_eq!(encoder.forward(&sequences, Mode::Eval)?.dims(), [2, 16]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use mm_core::{ConfigError, Encoder, Init, Mode, Scope};
use mm_kernels::batch_norm::{batch_norm_eval, batch_norm_train, update_running};
use mm_kernels::{
    Conv1dConfig, RelativePositions, attention_relative, conv1d_nlc, dropout, glu, layer_norm, linear, silu,
};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;
/// How much wider the inside of a feed-forward part is.
const EXPANSION: usize = 4;

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
    /// Dropout, everywhere.
    pub dropout: f64,
}

impl Default for ConformerConfig {
    fn default() -> Self {
        Self { dim: 512, layers: 5, heads: 8, kernel: 31, dropout: 0.1 }
    }
}

impl ConformerConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        for (field, value) in [("dim", self.dim), ("layers", self.layers), ("heads", self.heads)] {
            if value == 0 {
                return Err(ConfigError::new(field, 0, "must be at least 1"));
            }
        }
        if !self.dim.is_multiple_of(self.heads) {
            let rule = format!("must divide dim = {}", self.dim);
            return Err(ConfigError::new("heads", self.heads, rule));
        }
        if self.kernel.is_multiple_of(2) {
            return Err(ConfigError::new(
                "kernel",
                self.kernel,
                "must be odd: as many places before as after",
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "must be a number in [0, 1)"));
        }
        Ok(())
    }

    /// Makes the encoder of sequences of `input_dim` numbers per place, with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>, input_dim: usize) -> Result<Conformer> {
        self.check().map_err(candle_core::Error::wrap)?;
        if input_dim == 0 {
            bail!("an encoder needs inputs of at least one number");
        }
        let input = Affine::new(scope.child("input"), input_dim, self.dim)?;
        let mut scope = scope.at("layers");
        let layers: Result<Vec<_>> = (0..self.layers).map(|l| self.build_layer(scope.child(l))).collect();
        Ok(Conformer { config: self.clone(), input_dim, input, layers: layers?, positions: Mutex::new(None) })
    }

    /// Makes one layer, of which a network of one's own may be built; `layers` has no say in it.
    pub fn build_layer(&self, mut scope: Scope<'_>) -> Result<ConformerLayer> {
        self.check().map_err(candle_core::Error::wrap)?;
        let dim = self.dim;
        Ok(ConformerLayer {
            first: FeedForward::new(scope.child("ff1"), dim)?,
            attention: Attention::new(scope.child("attention"), dim, self.heads)?,
            conv: Convolution::new(scope.child("conv"), dim, self.kernel)?,
            last: FeedForward::new(scope.child("ff2"), dim)?,
            norm: Scaled::new(&mut scope.child("norm"), dim)?,
            dropout: self.dropout,
        })
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct Conformer {
    config: ConformerConfig,
    input_dim: usize,
    input: Affine,
    layers: Vec<ConformerLayer>,
    /// The table of the last length: batches of one length after another share it.
    positions: Mutex<Option<Tensor>>,
}

impl Conformer {
    fn positions(&self, x: &Tensor) -> Result<Tensor> {
        let rows = (2 * x.dim(1)?).saturating_sub(1);
        let mut last = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = last.as_ref()
            && table.dim(0)? == rows
        {
            return Ok(table.clone());
        }
        let table = positions(x.dim(1)?, self.config.dim, x.dtype(), x.device())?;
        *last = Some(table.clone());
        Ok(table)
    }
}

impl Encoder for Conformer {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match *x.dims() {
            [_, places, d] if places > 0 && d == self.input_dim => {}
            _ => bail!(
                "the encoder needs sequences (batch, places, {}) of at least one place, got inputs {:?}",
                self.input_dim,
                x.shape()
            ),
        }
        let table = self.positions(x)?;
        let mut x = drop(&self.input.forward(x)?, self.config.dropout, mode, "input")?;
        for (l, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &table, mode.stream(&l.to_string()))?;
        }
        x.mean(1)
    }

    fn dim(&self) -> usize {
        self.config.dim
    }
}

/// The sinusoids of the relative positions of a sequence, (2 `length` - 1, `dim`): row r belongs to the offset
/// o = `length` - 1 - r of a query from its key, and holds sin(o w_0), cos(o w_0), sin(o w_1), … with
/// w_i = 10000^(-2i/`dim`).
pub fn positions(length: usize, dim: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let rows = (2 * length).saturating_sub(1);
    let mut table = Vec::with_capacity(rows * dim);
    for r in 0..rows {
        let offset = length as f64 - 1.0 - r as f64;
        table.extend((0..dim).map(|d| {
            let angle = offset * 10000f64.powf(-((d - d % 2) as f64) / dim as f64);
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
    dropout: f64,
}

impl ConformerLayer {
    /// From x (B, N, `dim`) to the same shape; `table` comes from [`positions`].
    pub fn forward(&self, x: &Tensor, table: &Tensor, mode: Mode) -> Result<Tensor> {
        let p = self.dropout;
        let x = (x + self.first.forward(x, p, mode.stream("ff1"))? * 0.5)?;
        let x = (&x + drop(&self.attention.forward(&x, table)?, p, mode, "attention")?)?;
        let x = (&x + drop(&self.conv.forward(&x, mode)?, p, mode, "conv")?)?;
        let x = (&x + self.last.forward(&x, p, mode.stream("ff2"))? * 0.5)?;
        self.norm.layer_norm(&x)
    }
}

fn drop(x: &Tensor, p: f64, mode: Mode, place: &str) -> Result<Tensor> {
    match mode.stream(place) {
        Mode::Train(rng) => dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// A linear map.
#[derive(Debug)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn new(scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        Self::with(scope, (input, output), Init::xavier_uniform(input, output), Init::Const(0.0))
    }

    fn with(mut scope: Scope<'_>, (input, output): (usize, usize), weight: Init, bias: Init) -> Result<Self> {
        let weight = scope.param("weight", (output, input), weight)?;
        Ok(Self { weight, bias: scope.param("bias", output, bias)? })
    }

    /// As PyTorch starts a convolution of one tap.
    fn pointwise(scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        Self::with(scope, (input, output), Init::linear(input), Init::linear(input))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }
}

/// The scale and the shift of a normalisation.
#[derive(Debug)]
struct Scaled {
    weight: Tensor,
    bias: Tensor,
}

impl Scaled {
    fn new(scope: &mut Scope<'_>, width: usize) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        Ok(Self { weight, bias: scope.param("bias", width, Init::Const(0.0))? })
    }

    fn layer_norm(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), EPS)
    }
}

#[derive(Debug)]
struct FeedForward {
    norm: Scaled,
    expand: Affine,
    project: Affine,
}

impl FeedForward {
    fn new(mut scope: Scope<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            norm: Scaled::new(&mut scope.child("norm"), dim)?,
            expand: Affine::new(scope.child("expand"), dim, EXPANSION * dim)?,
            project: Affine::new(scope.child("project"), EXPANSION * dim, dim)?,
        })
    }

    fn forward(&self, x: &Tensor, p: f64, mode: Mode) -> Result<Tensor> {
        let hidden = silu(&self.expand.forward(&self.norm.layer_norm(x)?)?)?;
        drop(&self.project.forward(&drop(&hidden, p, mode, "inside")?)?, p, mode, "outside")
    }
}

#[derive(Debug)]
struct Attention {
    heads: usize,
    norm: Scaled,
    query: Affine,
    key: Affine,
    value: Affine,
    position: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    out: Affine,
}

impl Attention {
    fn new(mut scope: Scope<'_>, dim: usize, heads: usize) -> Result<Self> {
        let mut affine = |name: &str| Affine::new(scope.child(name), dim, dim);
        let (query, key, value, out) = (affine("query")?, affine("key")?, affine("value")?, affine("out")?);
        let norm = Scaled::new(&mut scope.child("norm"), dim)?;
        let glorot = Init::xavier_uniform(dim, dim);
        let position = scope.child("position").param("weight", (dim, dim), glorot)?;
        let head = (heads, dim / heads);
        let init = Init::xavier_uniform(head.0, head.1);
        let content_bias = scope.param("content_bias", head, init)?;
        let position_bias = scope.param("position_bias", head, init)?;
        Ok(Self { heads, norm, query, key, value, position, content_bias, position_bias, out })
    }

    fn forward(&self, x: &Tensor, table: &Tensor) -> Result<Tensor> {
        let x = self.norm.layer_norm(x)?;
        let positions = RelativePositions {
            table: &linear(table, &self.position, None)?,
            content_bias: &self.content_bias,
            position_bias: &self.position_bias,
        };
        let (q, k, v) = (self.query.forward(&x)?, self.key.forward(&x)?, self.value.forward(&x)?);
        self.out.forward(&attention_relative(&q, &k, &v, &positions, None, self.heads)?)
    }
}

#[derive(Debug)]
struct Convolution {
    norm: Scaled,
    expand: Affine,
    depthwise: Tensor,
    batch_norm: Scaled,
    mean: Var,
    var: Var,
    project: Affine,
}

impl Convolution {
    fn new(mut scope: Scope<'_>, dim: usize, kernel: usize) -> Result<Self> {
        let norm = Scaled::new(&mut scope.child("norm"), dim)?;
        let expand = Affine::pointwise(scope.child("expand"), dim, 2 * dim)?;
        let depthwise = scope.child("depthwise").param("weight", (dim, 1, kernel), Init::linear(kernel))?;
        let project = Affine::pointwise(scope.child("project"), dim, dim)?;
        let mut scope = scope.at("batch_norm");
        let batch_norm = Scaled::new(&mut scope, dim)?;
        let mean = scope.buffer("running_mean", dim, Init::Const(0.0))?;
        let var = scope.buffer("running_var", dim, Init::Const(1.0))?;
        Ok(Self { norm, expand, depthwise, batch_norm, mean, var, project })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (_, _, dim) = x.dims3()?;
        let gated = glu(&self.expand.forward(&self.norm.layer_norm(x)?)?, 2)?;
        let padding = self.depthwise.dim(2)? / 2;
        let config = Conv1dConfig { padding, groups: dim, ..Conv1dConfig::default() };
        let y = conv1d_nlc(&gated, &self.depthwise, None, &config)?;
        let normal = self.normalise(&y.reshape(((), dim))?, mode)?;
        self.project.forward(&silu(&normal.reshape(y.shape())?)?)
    }

    fn normalise(&self, rows: &Tensor, mode: Mode) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.batch_norm.weight), Some(&self.batch_norm.bias));
        match mode {
            Mode::Eval => batch_norm_eval(rows, &self.mean, &self.var, weight, bias, EPS),
            Mode::Train(_) => {
                let out = batch_norm_train(rows, weight, bias, EPS)?;
                update_running(&self.mean, &out.mean, MOMENTUM)?;
                update_running(&self.var, &out.var_unbiased, MOMENTUM)?;
                Ok(out.y)
            }
        }
    }
}
