//! Every encoder against finite differences, its equations and its configuration.

#![allow(clippy::unwrap_used)] // a test that unwraps an error has failed as it should

mod config;
mod conformer;
mod conformer_golden;
mod draws;
mod mlp;
mod resnet;
mod resnet18_golden;
mod wav2vec2;
mod wav2vec2_config;
mod wav2vec2_golden;
