//! The operations of this crate as layers, for networks written against candle's `Module` and `ModuleT`.
//!
//! A layer is its tensors and its settings. `new` takes the tensors; `from_tensors` asks for them by
//! PyTorch's names, `weight`, `bias`, `running_mean` and `running_var`, through a closure - for instance
//! `|name| vb.get_unchecked(name)` with a `candle_nn::VarBuilder` over a file. (One over a `VarMap` has to be
//! told shapes: `|name| vb.get(if name == "weight" { &[64, 3, 7, 7][..] } else { &[64] }, name)`.) Shapes are
//! checked by the operation that a layer calls.
//!
//! Layers take channels first, as PyTorch does; `channels_last` turns one round: images `(B, H, W, C)`,
//! sequences `(B, L, C)`. That is the faster layout.
//!
//! ```
//! use candle_core::{Device, Module, Tensor};
//! use mm_kernels::layers::{Conv2d, MaxPool2d};
//! use mm_kernels::{Conv2dConfig, PoolConfig};
//! let weight = Tensor::ones((2, 1, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
//! let conv = Conv2d::new(weight, None, Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() });
//! let pool = MaxPool2d::new(PoolConfig::square(2, 2, 0));
//! let x = Tensor::ones((1, 1, 4, 4), candle_core::DType::F32, &Device::Cpu)?;
//! let y = pool.forward(&conv.forward(&x)?)?;
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [9.0; 8]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::conv::{Conv1dConfig, Conv2dConfig, conv1d, conv1d_nlc, conv2d, conv2d_nhwc};
use crate::group_norm::{group_norm, group_norm_nhwc};
use crate::pool::{
    PoolConfig, adaptive_avg_pool2d, adaptive_avg_pool2d_nhwc, avg_pool2d, avg_pool2d_nhwc, max_pool2d,
    max_pool2d_nhwc,
};
use crate::{batch_norm_eval, batch_norm_train, embedding, layer_norm, linear, update_running};
use candle_core::{D, Module, ModuleT, Result, Tensor, Var};

/// Weight and bias by their names; the bias only if there is to be one.
fn affine(get: impl Fn(&str) -> Result<Tensor>, bias: bool) -> Result<(Tensor, Option<Tensor>)> {
    Ok((get("weight")?, bias.then(|| get("bias")).transpose()?))
}

/// Gives a layer the method `channels_last`.
macro_rules! channels_last {
    ($layer:ident, $shape:literal) => {
        impl $layer {
            #[doc = concat!("The same layer over ", $shape, ".")]
            #[must_use]
            pub fn channels_last(self) -> Self {
                Self { last: true, ..self }
            }
        }
    };
}

/// A fully connected layer: [`linear`](crate::linear()).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight (out, in)`, `bias (out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// From `weight`, and `bias` if `bias` is true.
    pub fn from_tensors(get: impl Fn(&str) -> Result<Tensor>, bias: bool) -> Result<Self> {
        let (weight, bias) = affine(get, bias)?;
        Ok(Self::new(weight, bias))
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// A convolution of images: [`conv2d`].
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
    last: bool,
}

impl Conv2d {
    /// `weight (out, in / groups, kernel height, kernel width)`, `bias (out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv2dConfig) -> Self {
        Self { weight, bias, config, last: false }
    }

    /// From `weight`, and `bias` if `bias` is true.
    pub fn from_tensors(
        get: impl Fn(&str) -> Result<Tensor>,
        bias: bool,
        config: Conv2dConfig,
    ) -> Result<Self> {
        let (weight, bias) = affine(get, bias)?;
        Ok(Self::new(weight, bias, config))
    }
}
channels_last!(Conv2d, "`(B, H, W, C)`");

impl Module for Conv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = if self.last { conv2d_nhwc } else { conv2d };
        op(x, &self.weight, self.bias.as_ref(), &self.config)
    }
}

/// A convolution of sequences: [`conv1d`].
#[derive(Debug, Clone)]
pub struct Conv1d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv1dConfig,
    last: bool,
}

impl Conv1d {
    /// `weight (out, in / groups, kernel)`, `bias (out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv1dConfig) -> Self {
        Self { weight, bias, config, last: false }
    }

    /// From `weight`, and `bias` if `bias` is true.
    pub fn from_tensors(
        get: impl Fn(&str) -> Result<Tensor>,
        bias: bool,
        config: Conv1dConfig,
    ) -> Result<Self> {
        let (weight, bias) = affine(get, bias)?;
        Ok(Self::new(weight, bias, config))
    }
}
channels_last!(Conv1d, "`(B, L, C)`");

impl Module for Conv1d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = if self.last { conv1d_nlc } else { conv1d };
        op(x, &self.weight, self.bias.as_ref(), &self.config)
    }
}

/// Batch normalisation with running statistics: [`batch_norm_train`] and [`batch_norm_eval`].
///
/// In training it normalises by the batch and moves the running statistics towards it, whether or not a
/// backward pass follows; otherwise it normalises by the running statistics. Clones share them.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    running_mean: Var,
    running_var: Var,
    momentum: f64,
    eps: f64,
    last: bool,
}

impl BatchNorm {
    /// `weight`, `bias` and the running statistics are `(C)`; PyTorch's `momentum` of 0.1 and `eps` of 1e-5.
    pub fn new(weight: Option<Tensor>, bias: Option<Tensor>, running_mean: Var, running_var: Var) -> Self {
        Self { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-5, last: false }
    }

    /// From `weight`, `bias`, `running_mean` and `running_var`; PyTorch's `num_batches_tracked` is not asked
    /// for.
    ///
    /// Statistics that are variables already, as a `VarMap` gives them, are shared; others are copied.
    pub fn from_tensors(get: impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let (weight, bias) = affine(&get, true)?;
        let [mean, var] = [get("running_mean")?, get("running_var")?].map(|t| Var::from_tensor(&t));
        Ok(Self::new(Some(weight), bias, mean?, var?))
    }

    /// The weight of a new batch in the running statistics, in [0, 1]: an error in training otherwise.
    #[must_use]
    pub fn momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// What is added to a variance.
    #[must_use]
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// The running mean, `(C)`.
    pub fn running_mean(&self) -> &Var {
        &self.running_mean
    }

    /// The running variance, `(C)`.
    pub fn running_var(&self) -> &Var {
        &self.running_var
    }

    fn normalise(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (weight, bias) = (self.weight.as_ref(), self.bias.as_ref());
        let (mean, var) = (self.running_mean.as_tensor(), self.running_var.as_tensor());
        if !train {
            return batch_norm_eval(x, mean, var, weight, bias, self.eps);
        }
        let out = batch_norm_train(x, weight, bias, self.eps)?;
        update_running(&self.running_mean, &out.mean, self.momentum)?;
        update_running(&self.running_var, &out.var_unbiased, self.momentum)?;
        Ok(out.y)
    }
}
channels_last!(BatchNorm, "`(B, .., C)`");

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !self.last || x.rank() <= 2 {
            return self.normalise(x, train);
        }
        // Statistics are over all places alike: each is a row of a batch.
        let channels = x.dim(D::Minus1)?;
        let rows = x.dims()[..x.rank() - 1].iter().product::<usize>();
        self.normalise(&x.reshape((rows, channels))?, train)?.reshape(x.shape())
    }
}

/// Layer normalisation over the last dimension: [`layer_norm`](crate::layer_norm()).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// `weight (D)` and `bias (D)`; PyTorch's `eps` is 1e-5.
    pub fn new(weight: Option<Tensor>, bias: Option<Tensor>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// From `weight`, and `bias` if `bias` is true.
    pub fn from_tensors(get: impl Fn(&str) -> Result<Tensor>, bias: bool, eps: f64) -> Result<Self> {
        let (weight, bias) = affine(get, bias)?;
        Ok(Self::new(Some(weight), bias, eps))
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

/// Group normalisation: [`group_norm`].
#[derive(Debug, Clone)]
pub struct GroupNorm {
    groups: usize,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f64,
    last: bool,
}

impl GroupNorm {
    /// `weight (C)` and `bias (C)`; PyTorch's `eps` is 1e-5.
    pub fn new(groups: usize, weight: Option<Tensor>, bias: Option<Tensor>, eps: f64) -> Self {
        Self { groups, weight, bias, eps, last: false }
    }

    /// From `weight` and `bias`.
    pub fn from_tensors(get: impl Fn(&str) -> Result<Tensor>, groups: usize, eps: f64) -> Result<Self> {
        let (weight, bias) = affine(get, true)?;
        Ok(Self::new(groups, Some(weight), bias, eps))
    }
}
channels_last!(GroupNorm, "`(B, .., C)`");

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = if self.last { group_norm_nhwc } else { group_norm };
        op(x, self.groups, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

/// A table of rows by number: [`embedding`](crate::embedding()).
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
    padding_idx: Option<usize>,
}

impl Embedding {
    /// `weight (V, D)`; the row `padding_idx` gets no gradient.
    pub fn new(weight: Tensor, padding_idx: Option<usize>) -> Self {
        Self { weight, padding_idx }
    }

    /// From `weight`.
    pub fn from_tensors(get: impl Fn(&str) -> Result<Tensor>, padding_idx: Option<usize>) -> Result<Self> {
        Ok(Self::new(get("weight")?, padding_idx))
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        embedding(ids, &self.weight, self.padding_idx)
    }
}

/// The largest value of each window: [`max_pool2d`].
#[derive(Debug, Clone)]
pub struct MaxPool2d {
    config: PoolConfig,
    last: bool,
}

impl MaxPool2d {
    /// A layer with these settings.
    pub fn new(config: PoolConfig) -> Self {
        Self { config, last: false }
    }
}
channels_last!(MaxPool2d, "`(B, H, W, C)`");

impl Module for MaxPool2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.last { max_pool2d_nhwc(x, &self.config) } else { max_pool2d(x, &self.config) }
    }
}

/// The mean of each window: [`avg_pool2d`].
#[derive(Debug, Clone)]
pub struct AvgPool2d {
    config: PoolConfig,
    last: bool,
}

impl AvgPool2d {
    /// A layer with these settings.
    pub fn new(config: PoolConfig) -> Self {
        Self { config, last: false }
    }
}
channels_last!(AvgPool2d, "`(B, H, W, C)`");

impl Module for AvgPool2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.last { avg_pool2d_nhwc(x, &self.config) } else { avg_pool2d(x, &self.config) }
    }
}

/// The mean of each bin, for an output of a given size: [`adaptive_avg_pool2d`].
#[derive(Debug, Clone)]
pub struct AdaptiveAvgPool2d {
    output: (usize, usize),
    last: bool,
}

impl AdaptiveAvgPool2d {
    /// A layer that gives (height, width).
    pub fn new(output: (usize, usize)) -> Self {
        Self { output, last: false }
    }
}
channels_last!(AdaptiveAvgPool2d, "`(B, H, W, C)`");

impl Module for AdaptiveAvgPool2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = if self.last { adaptive_avg_pool2d_nhwc } else { adaptive_avg_pool2d };
        op(x, self.output)
    }
}
