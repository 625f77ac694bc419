//! Positions: a wide convolution in groups, whose kernel is normalised tap by tap.

use super::config::Wav2Vec2Config;
use crate::Precision;
use candle_core::{Result, Tensor};
use mm_core::{Init, Scope};
use mm_kernels::{Conv1dConfig, conv1d_nlc, gelu, weight_norm};

#[derive(Debug)]
pub(super) struct Positions {
    /// The norm of each tap, (1, 1, K).
    size: Tensor,
    /// The direction of each tap, (D, D / groups, K).
    direction: Tensor,
    bias: Tensor,
    groups: usize,
    precision: Precision,
}

impl Positions {
    pub(super) fn new(config: &Wav2Vec2Config, mut scope: Scope<'_>) -> Result<Self> {
        let (width, taps, groups) =
            (config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups);
        let std = 2.0 / ((taps * width) as f64).sqrt();
        let expected = std * ((width * (width / groups)) as f64).sqrt();
        let size = scope.param("weight_g", (1, 1, taps), Init::Const(expected))?;
        let shape = (width, width / groups, taps);
        let direction = scope.param("weight_v", shape, Init::Normal { mean: 0.0, std })?;
        let bias = scope.param("bias", width, Init::Const(0.0))?;
        Ok(Self { size, direction, bias, groups, precision: config.precision })
    }

    /// From z (B, T, D) to what is added to it.
    pub(super) fn forward(&self, z: &Tensor) -> Result<Tensor> {
        let config = Conv1dConfig {
            padding: self.direction.dim(2)? / 2,
            groups: self.groups,
            precision: self.precision.into(),
            ..Conv1dConfig::default()
        };
        let y = conv1d_nlc(z, &weight_norm(&self.direction, &self.size)?, Some(&self.bias), &config)?;
        // An even kernel has one place too many on the right.
        gelu(&y.narrow(1, 0, z.dim(1)?)?)
    }
}
