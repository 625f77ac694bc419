#![doc = include_str!("../README.md")]

pub mod conformer;
pub mod mlp;
pub mod resnet;
pub mod weights;

mod config;

pub use config::EncoderConfig;
pub use conformer::{Conformer, ConformerConfig, ConformerLayer};
pub use mlp::{Activation, Mlp, MlpConfig, Norm};
pub use resnet::{Precision, ResNet, ResNetConfig};
