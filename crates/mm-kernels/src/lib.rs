#![doc = include_str!("../README.md")]

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod check;
pub mod cross_entropy;
pub mod dropout;
mod host;
pub mod layer_norm;
pub mod linear;
pub mod optim;
pub mod rng;
pub mod softmax;
#[cfg(test)]
mod testing;

pub use activation::{gelu, gelu_tanh, relu, sigmoid, silu, tanh};
pub use attention::attention;
pub use batch_norm::{BatchNormOut, batch_norm_eval, batch_norm_train, update_running};
pub use check::{GradCheckReport, gradcheck};
pub use cross_entropy::{cross_entropy, cross_entropy_soft, true_class_probability};
pub use dropout::dropout;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use optim::{AdamStep, SgdStep, adam_step, adamw_step, sgd_step};
pub use rng::{Draws, StepRng};
pub use softmax::{log_softmax_last, softmax_last};
