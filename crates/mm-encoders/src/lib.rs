#![doc = include_str!("../README.md")]

pub mod bert;
pub mod conformer;
pub mod efficientnet;
pub mod mlp;
pub mod resnet;
pub mod sequence;
#[cfg(feature = "text")]
pub mod text;
pub mod wav2vec2;
pub mod weights;

mod config;
mod mask;
pub mod pretrained;

pub use bert::{Bert, BertConfig};
pub use config::EncoderConfig;
pub use conformer::{Conformer, ConformerConfig, ConformerLayer};
pub use efficientnet::{EfficientNet, EfficientNetConfig, EfficientNetVariant};
pub use mask::Mask;
pub use mlp::{Activation, Mlp, MlpConfig, Norm};
pub use pretrained::PretrainedConfig;
pub use resnet::{Precision, ResNet, ResNetConfig, ResNetInit};
pub use sequence::{SequenceConfig, SequenceEncoder};
pub use wav2vec2::{Wav2Vec2, Wav2Vec2Config};
