#![doc = include_str!("../README.md")]
// Intrinsics must be inlined into a function that enables their instruction set: as calls they would cost more than they do.
#![allow(clippy::inline_always)]

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod block;
mod buffers;
pub mod check;
pub mod conv;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod feed_forward;
pub mod group_norm;
mod host;
pub mod layer_norm;
pub mod layers;
pub mod linear;
mod nary;
#[cfg(feature = "onednn")]
mod onednn;
pub mod optim;
mod parallel;
pub mod pixels;
pub mod pool;
mod products;
pub mod residual;
pub mod rng;
mod rowwise;
pub mod scale;
mod scratch;
mod simd;
pub mod softmax;
pub mod spectrum;
#[cfg(test)]
mod testing;
mod vmath;
pub mod weight_norm;

pub use activation::{Gate, gelu, gelu_tanh, glu, relu, sigmoid, silu, tanh};
pub use attention::{RelativePositions, attention, attention_relative};
pub use batch_norm::{BatchNormOut, batch_norm_eval, batch_norm_train, update_running};
pub use block::{
    BatchStatistics, BlockConfig, BlockOut, ConvNorm, ResidualBlock, Shortcut, Statistics, conv_norm_pool,
    residual_block, residual_blocks,
};
pub use check::{GradCheckReport, gradcheck};
pub use conv::{
    Conv1dConfig, Conv2dConfig, Precision, conv1d, conv1d_nlc, conv1d_nlc_then, conv2d, conv2d_nhwc,
    conv2d_nhwc_then,
};
pub use cross_entropy::{cross_entropy, cross_entropy_soft, true_class_probability};
pub use dropout::dropout;
pub use embedding::embedding;
pub use feed_forward::{FeedForward, feed_forward};
pub use group_norm::{group_norm, group_norm_nhwc};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_in};
pub use optim::{AdamStep, SgdStep, adam_step, adamw_step, sgd_step};
pub use pool::{
    PoolConfig, adaptive_avg_pool2d, adaptive_avg_pool2d_nhwc, avg_pool2d, avg_pool2d_nhwc, max_pool2d,
    max_pool2d_nhwc,
};
pub use residual::residual;
pub use rng::{Draws, StepRng};
pub use scale::{scale_channels, scale_rows};
pub use softmax::{log_softmax_last, softmax_last};
pub use weight_norm::weight_norm;
