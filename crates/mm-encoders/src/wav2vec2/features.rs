//! The convolutions from samples to frames.

use super::config::{FeatureNorm, Wav2Vec2Config};
use crate::Precision;
use candle_core::{Result, Tensor};
use mm_core::{Init, Scope};
use mm_kernels::{Conv1dConfig, Gate, conv1d_nlc, conv1d_nlc_then, gelu, group_norm_nhwc, layer_norm};

/// Of the norms between convolutions, whatever `layer_norm_eps` says: so it is in transformers.
const EPS: f64 = 1e-5;

/// The convolutions, channels last.
#[derive(Debug)]
pub(super) struct Features {
    layers: Vec<Convolution>,
    width: usize,
}

#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<(FeatureNorm, Tensor, Tensor)>,
    stride: usize,
    precision: Precision,
}

impl Features {
    pub(super) fn new(config: &Wav2Vec2Config, mut scope: Scope<'_>) -> Result<Self> {
        let (mut layers, mut width) = (Vec::new(), 1);
        let sizes = config.conv_dim.iter().zip(&config.conv_kernel).zip(&config.conv_stride);
        for (i, ((&output, &kernel), &stride)) in sizes.enumerate() {
            let mut scope = scope.child(i);
            let mut conv = scope.child("conv");
            let he = Init::Normal { mean: 0.0, std: (2.0 / (width * kernel) as f64).sqrt() };
            let weight = make(config, &mut conv, "weight", &[output, width, kernel], he)?;
            let bias = config
                .conv_bias
                .then(|| make(config, &mut conv, "bias", &[output], Init::linear(width * kernel)));
            let norm = (i == 0 || config.feat_extract_norm == FeatureNorm::Layer).then(|| {
                let mut norm = scope.child("layer_norm");
                let scale = make(config, &mut norm, "weight", &[output], Init::Const(1.0))?;
                let shift = make(config, &mut norm, "bias", &[output], Init::Const(0.0))?;
                Ok::<_, candle_core::Error>((config.feat_extract_norm, scale, shift))
            });
            let (bias, norm) = (bias.transpose()?, norm.transpose()?);
            layers.push(Convolution { weight, bias, norm, stride, precision: config.precision });
            width = output;
        }
        Ok(Self { layers, width })
    }

    /// The width of the frames.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// From x (B, samples) to (B, T, width). `lengths`: how much of each row is the clip's.
    pub(super) fn forward(&self, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let mut x = x.unsqueeze(2)?;
        let mut lengths = lengths.map(<[usize]>::to_vec);
        for layer in &self.layers {
            let kernel = layer.weight.dim(2)?;
            for length in lengths.iter_mut().flatten() {
                *length = output_length(*length, kernel, layer.stride);
            }
            x = layer.forward(&x, lengths.as_deref())?;
        }
        Ok(x)
    }
}

/// A parameter, or while the convolutions are frozen a buffer, cut from the graph: it shares its memory with the
/// store, so values that are loaded later arrive here.
fn make(
    config: &Wav2Vec2Config,
    scope: &mut Scope<'_>,
    name: &str,
    shape: &[usize],
    init: Init,
) -> Result<Tensor> {
    if config.freeze_features {
        Ok(scope.buffer(name, shape, init)?.as_tensor().detach())
    } else {
        scope.param(name, shape, init)
    }
}

/// How many places a convolution without padding makes of `input` places; 0 where there are fewer than `kernel`.
pub(super) fn output_length(input: usize, kernel: usize, stride: usize) -> usize {
    input.checked_sub(kernel).map_or(0, |rest| rest / stride.max(1) + 1)
}

impl Convolution {
    fn forward(&self, x: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
        let precision = self.precision.into();
        let config = Conv1dConfig { stride: self.stride, precision, ..Conv1dConfig::default() };
        let Some(norm) = &self.norm else {
            return conv1d_nlc_then(x, &self.weight, self.bias.as_ref(), &config, Gate::Gelu);
        };
        let y = conv1d_nlc(x, &self.weight, self.bias.as_ref(), &config)?;
        gelu(&match norm {
            (FeatureNorm::Layer, scale, shift) => layer_norm(&y, Some(scale), Some(shift), EPS)?,
            (FeatureNorm::Group, scale, shift) => over_time(&y, scale, shift, lengths)?,
        })
    }
}

/// Each channel of each clip over the clip's own places; zeros behind them.
fn over_time(y: &Tensor, scale: &Tensor, shift: &Tensor, lengths: Option<&[usize]>) -> Result<Tensor> {
    let (_, places, channels) = y.dims3()?;
    let norm = |y: &Tensor| group_norm_nhwc(y, channels, Some(scale), Some(shift), EPS);
    let Some(lengths) = lengths.filter(|lengths| lengths.iter().any(|&l| l < places)) else {
        return norm(y);
    };
    let clips = lengths.iter().enumerate().map(|(row, &length)| {
        let clip = norm(&y.narrow(0, row, 1)?.narrow(1, 0, length)?)?;
        clip.pad_with_zeros(1, 0, places - length)
    });
    Tensor::cat(&clips.collect::<Result<Vec<_>>>()?, 0)
}
