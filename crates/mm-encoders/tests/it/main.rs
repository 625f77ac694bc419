//! Every encoder against finite differences, its equations and its configuration.

#![allow(clippy::unwrap_used)] // a test that unwraps an error has failed as it should

mod bert;
mod bert_golden;
mod config;
mod conformer;
mod conformer_golden;
mod draws;
mod efficientnet;
mod efficientnet_golden;
#[cfg(feature = "hub")]
mod hub;
mod mlp;
mod resnet;
mod resnet18_golden;
mod resnet_names;
mod sequence;
mod sequence_golden;
#[cfg(feature = "text")]
mod text;
mod wav2vec2;
mod wav2vec2_config;
mod wav2vec2_golden;
mod weights;
mod weights_export;
mod weights_hostile;
