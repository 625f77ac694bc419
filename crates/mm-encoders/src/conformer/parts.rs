//! The parts of a layer that have no attention: linear maps, norms, feed-forward, convolution.

use super::{Activation, ConformerConfig, ConvolutionNorm, EPS, MOMENTUM, key};
use crate::mask::Places;
use candle_core::{Result, Tensor, Var};
use mm_core::{Init, Mode, Scope};
use mm_kernels::batch_norm::{batch_norm_eval, batch_norm_train, update_running};
use mm_kernels::{Conv1dConfig, Gate, Precision, conv1d_nlc, feed_forward, glu, layer_norm, linear};

impl Activation {
    fn gate(self) -> Gate {
        match self {
            Self::Silu => Gate::Silu,
            Self::Gelu => Gate::Gelu,
        }
    }
}

/// Weight and bias of a linear map.
fn affine(mut scope: Scope<'_>, input: usize, output: usize) -> Result<(Tensor, Tensor)> {
    let weight = scope.param("weight", (output, input), Init::xavier_uniform(input, output))?;
    Ok((weight, scope.param("bias", output, Init::Const(0.0))?))
}

/// A linear map.
#[derive(Debug)]
pub(super) struct Affine {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Affine {
    pub(super) fn new(scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let (weight, bias) = affine(scope, input, output)?;
        Ok(Self { weight, bias: Some(bias) })
    }

    /// A convolution of one tap, as PyTorch shapes and starts it.
    fn pointwise(mut scope: Scope<'_>, input: usize, output: usize, bias: bool) -> Result<Self> {
        let init = Init::linear(input);
        let weight = scope.param("weight", (output, input, 1), init)?;
        let bias = bias.then(|| scope.param("bias", output, init)).transpose()?;
        Ok(Self { weight, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = if self.weight.rank() == 3 { self.weight.squeeze(2)? } else { self.weight.clone() };
        linear(x, &weight, self.bias.as_ref())
    }
}

/// The scale and the shift of a normalisation.
#[derive(Debug)]
pub(super) struct Scaled {
    weight: Tensor,
    bias: Tensor,
}

impl Scaled {
    pub(super) fn new(scope: &mut Scope<'_>, width: usize) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        Ok(Self { weight, bias: scope.param("bias", width, Init::Const(0.0))? })
    }

    pub(super) fn layer_norm(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), EPS)
    }
}

#[derive(Debug)]
pub(super) struct FeedForward {
    norm: Scaled,
    expand: (Tensor, Tensor),
    project: (Tensor, Tensor),
    activation: Activation,
    dropouts: (f64, f64),
}

impl FeedForward {
    pub(super) fn new(mut scope: Scope<'_>, config: &ConformerConfig) -> Result<Self> {
        let (dim, inside) = (config.dim, config.inside());
        Ok(Self {
            norm: Scaled::new(&mut scope.child("norm"), dim)?,
            expand: affine(scope.child("expand"), dim, inside)?,
            project: affine(scope.child("project"), inside, dim)?,
            activation: config.activation,
            dropouts: (config.activation_dropout.unwrap_or(config.dropout), config.dropout),
        })
    }

    /// x and half of what this part makes of it.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let part = mm_kernels::FeedForward {
            norm: Some((&self.norm.weight, &self.norm.bias, EPS)),
            expand: (&self.expand.0, &self.expand.1),
            gate: self.activation.gate(),
            project: (&self.project.0, &self.project.1),
            dropouts: [key(self.dropouts.0, mode, "inside"), key(self.dropouts.1, mode, "outside")],
            factor: 0.5,
            precision: Precision::F32,
        };
        feed_forward(x, &part)
    }
}

#[derive(Debug)]
pub(super) struct Convolution {
    norm: Scaled,
    expand: Affine,
    depthwise: Tensor,
    inner_norm: Scaled,
    /// Mean and variance: batch normalisation has them, layer normalisation does not.
    running: Option<(Var, Var)>,
    activation: Activation,
    project: Affine,
}

impl Convolution {
    pub(super) fn new(mut scope: Scope<'_>, config: &ConformerConfig) -> Result<Self> {
        let (dim, kernel, bias) = (config.dim, config.kernel, config.conv_bias);
        let norm = Scaled::new(&mut scope.child("norm"), dim)?;
        let expand = Affine::pointwise(scope.child("expand"), dim, 2 * dim, bias)?;
        let depthwise = scope.child("depthwise").param("weight", (dim, 1, kernel), Init::linear(kernel))?;
        let project = Affine::pointwise(scope.child("project"), dim, dim, bias)?;
        let (inner_norm, running) = match config.norm {
            ConvolutionNorm::Layer => (Scaled::new(&mut scope.at("layer_norm"), dim)?, None),
            ConvolutionNorm::Batch => {
                let mut scope = scope.at("batch_norm");
                let norm = Scaled::new(&mut scope, dim)?;
                let mean = scope.buffer("running_mean", dim, Init::Const(0.0))?;
                let var = scope.buffer("running_var", dim, Init::Const(1.0))?;
                (norm, Some((mean, var)))
            }
        };
        Ok(Self { norm, expand, depthwise, inner_norm, running, activation: config.activation, project })
    }

    pub(super) fn forward(&self, x: &Tensor, places: Option<&Places>, mode: Mode) -> Result<Tensor> {
        let (_, _, dim) = x.dims3()?;
        let gated = glu(&self.expand.forward(&self.norm.layer_norm(x)?)?, 2)?;
        // The taps must not carry padding into the last real places.
        let gated = places.map_or(Ok(gated.clone()), |places| places.scale(&gated))?;
        let padding = self.depthwise.dim(2)? / 2;
        let config = Conv1dConfig { padding, groups: dim, ..Conv1dConfig::default() };
        let y = conv1d_nlc(&gated, &self.depthwise, None, &config)?;
        let normal = match &self.running {
            None => self.inner_norm.layer_norm(&y)?,
            Some((mean, var)) => {
                self.batch_norm(&y.reshape(((), dim))?, mean, var, places, mode)?.reshape(y.shape())?
            }
        };
        self.project.forward(&self.activation.gate().apply(&normal)?)
    }

    fn batch_norm(
        &self,
        rows: &Tensor,
        mean: &Var,
        var: &Var,
        places: Option<&Places>,
        mode: Mode,
    ) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.inner_norm.weight), Some(&self.inner_norm.bias));
        // A batch in which every row lacks this modality has no statistics to give.
        let empty = places.is_some_and(|places| places.count() == 0);
        if !mode.is_train() || empty {
            return batch_norm_eval(rows, mean, var, weight, bias, EPS);
        }
        let real = places.map_or(Ok(rows.clone()), |places| places.gather(rows))?;
        let out = batch_norm_train(&real, weight, bias, EPS)?;
        update_running(mean, &out.mean, MOMENTUM)?;
        update_running(var, &out.var_unbiased, MOMENTUM)?;
        places.map_or(Ok(out.y.clone()), |places| places.scatter(&out.y))
    }
}
