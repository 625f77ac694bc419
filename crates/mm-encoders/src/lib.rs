#![doc = include_str!("../README.md")]

pub mod conformer;
pub mod efficientnet;
pub mod mlp;
pub mod resnet;

mod config;

pub use config::EncoderConfig;
pub use conformer::{Conformer, ConformerConfig, ConformerLayer};
pub use efficientnet::{EfficientNet, EfficientNetConfig, EfficientNetVariant};
pub use mlp::{Activation, Mlp, MlpConfig, Norm};
pub use resnet::{Precision, ResNet, ResNetConfig, ResNetInit};
