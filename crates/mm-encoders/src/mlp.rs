//! A multi-layer perceptron over a vector of features.
//!
//! ```text
//! a_0     = dropout_in(flatten(x))
//! a_{l+1} = dropout(activation(norm(W_l a_l + b_l)))       l = 0 … L-1, widths `hidden`
//! h       = activation(W_L a_L + b_L)                      width `dim`
//! ```
//!
//! Shapes: x (B, d), or (B, …) with d numbers in a row, which are flattened; h (B, dim).
//!
//! | setting | default | range |
//! |---|---|---|
//! | `hidden` | `[128]` | widths of the hidden layers, each at least 1; `[]` for none |
//! | `dim` | 64 | at least 1 |
//! | `dropout` | 0.1 | [0, 1); after every hidden layer |
//! | `input_dropout` | 0.0 | [0, 1) |
//! | `norm` | "none" | "none", "layer", "batch"; of every hidden layer |
//! | `activation` | "relu" | "relu", "gelu" (exact) |
//! | `final_activation` | true | whether the features h are activated, or linear |
//!
//! Parameters: `encoder.<modality>.<l>.{weight,bias}`, `encoder.<modality>.<l>.norm.{weight,bias}`; buffers of
//! batch normalisation: `encoder.<modality>.<l>.norm.{running_mean,running_var}`. Weights and biases start with PyTorch's
//! default, U(±1/√fan_in); norms with scale 1 and shift 0.
//!
//! Batch normalisation: momentum 0.1 and eps 1e-5, as PyTorch. A pass in training mode moves the running statistics, and
//! so does each further pass of a method that makes several. Rows whose modality is missing hold zeros and count in
//! the statistics of their batch; choose layer normalisation where many are missing. Layers before a batch
//! normalisation keep their bias, which it cancels.
//!
//! Source: none in particular; this is the baseline for features that come out of another network.

use candle_core::{Result, Tensor, Var, bail};
use mm_core::{ConfigError, Encoder, Init, Mode, Scope};
use mm_kernels::activation::{gelu, relu};
use mm_kernels::batch_norm::{batch_norm_eval, batch_norm_train, update_running};
use mm_kernels::{dropout::dropout, layer_norm::layer_norm, linear::linear};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Normalisation of the hidden layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Nothing.
    #[default]
    None,
    /// Each row over its features.
    Layer,
    /// Each feature over the batch.
    Batch,
}

/// The non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x Φ(x), exact.
    Gelu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu => relu(x),
            Self::Gelu => gelu(x),
        }
    }
}

/// Settings of [`Mlp`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Width of the features.
    pub dim: usize,
    /// Dropout after every hidden layer.
    pub dropout: f64,
    /// Dropout of the inputs.
    pub input_dropout: f64,
    /// Normalisation of the hidden layers.
    pub norm: Norm,
    /// The non-linearity.
    pub activation: Activation,
    /// Whether the features are activated too.
    pub final_activation: bool,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            hidden: vec![128],
            dim: 64,
            dropout: 0.1,
            input_dropout: 0.0,
            norm: Norm::None,
            activation: Activation::Relu,
            final_activation: true,
        }
    }
}

impl MlpConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        if self.hidden.contains(&0) {
            let rule = "every hidden layer must be at least 1 wide";
            return Err(ConfigError::new("hidden", format!("{:?}", self.hidden), rule));
        }
        if self.dim == 0 {
            return Err(ConfigError::new("dim", 0, "must be at least 1"));
        }
        for (field, value) in [("dropout", self.dropout), ("input_dropout", self.input_dropout)] {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigError::new(field, value, "must be a number in [0, 1)"));
            }
        }
        Ok(())
    }

    /// Makes the encoder of rows of `input_dim` numbers, with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>, input_dim: usize) -> Result<Mlp> {
        self.check().map_err(candle_core::Error::wrap)?;
        if input_dim == 0 {
            bail!("an encoder needs inputs of at least one number");
        }
        let mut layers = Vec::with_capacity(self.hidden.len() + 1);
        let mut input = input_dim;
        for (l, &width) in self.hidden.iter().chain([&self.dim]).enumerate() {
            let norm = if l < self.hidden.len() { self.norm } else { Norm::None };
            layers.push(Layer::new(scope.child(l), input, width, norm)?);
            input = width;
        }
        Ok(Mlp { config: self.clone(), input_dim, layers })
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct Mlp {
    config: MlpConfig,
    input_dim: usize,
    layers: Vec<Layer>,
}

impl Encoder for Mlp {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = if x.rank() > 2 { x.flatten_from(1)? } else { x.clone() };
        if x.rank() != 2 || x.dim(1)? != self.input_dim {
            bail!("the encoder needs rows of {} numbers, got inputs {:?}", self.input_dim, x.shape());
        }
        let drop = |x: &Tensor, p: f64, place: &str| match mode.stream(place) {
            Mode::Train(rng) => dropout(x, p, rng),
            Mode::Eval => Ok(x.clone()),
        };
        let (config, last) = (&self.config, self.layers.len() - 1);
        let mut a = drop(&x, config.input_dropout, "input")?;
        for (l, layer) in self.layers.iter().enumerate() {
            a = layer.forward(&a, mode)?;
            if l < last {
                a = drop(&config.activation.apply(&a)?, config.dropout, &l.to_string())?;
            } else if config.final_activation {
                a = config.activation.apply(&a)?;
            }
        }
        Ok(a)
    }

    fn dim(&self) -> usize {
        self.config.dim
    }
}

/// A linear map and its normalisation.
#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
    norm: Option<Normalise>,
}

#[derive(Debug)]
struct Normalise {
    weight: Tensor,
    bias: Tensor,
    /// Mean and variance: batch normalisation has them, layer normalisation does not.
    running: Option<(Var, Var)>,
}

impl Layer {
    fn new(mut scope: Scope<'_>, input: usize, output: usize, norm: Norm) -> Result<Self> {
        let weight = scope.param("weight", (output, input), Init::linear(input))?;
        let bias = scope.param("bias", output, Init::linear(input))?;
        let norm = match norm {
            Norm::None => None,
            Norm::Layer | Norm::Batch => Some(Normalise::new(scope.at("norm"), output, norm)?),
        };
        Ok(Self { weight, bias, norm })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = linear(x, &self.weight, Some(&self.bias))?;
        match &self.norm {
            Some(norm) => norm.forward(&x, mode),
            None => Ok(x),
        }
    }
}

impl Normalise {
    fn new(mut scope: Scope<'_>, width: usize, norm: Norm) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        let bias = scope.param("bias", width, Init::Const(0.0))?;
        let running = if norm == Norm::Batch {
            let mean = scope.buffer("running_mean", width, Init::Const(0.0))?;
            Some((mean, scope.buffer("running_var", width, Init::Const(1.0))?))
        } else {
            None
        };
        Ok(Self { weight, bias, running })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        match (&self.running, mode) {
            (None, _) => layer_norm(x, weight, bias, EPS),
            (Some((mean, var)), Mode::Eval) => batch_norm_eval(x, mean, var, weight, bias, EPS),
            (Some((mean, var)), Mode::Train(_)) => {
                let out = batch_norm_train(x, weight, bias, EPS)?;
                update_running(mean, &out.mean, MOMENTUM)?;
                update_running(var, &out.var_unbiased, MOMENTUM)?;
                Ok(out.y)
            }
        }
    }
}
