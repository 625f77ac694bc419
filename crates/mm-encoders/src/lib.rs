#![doc = include_str!("../README.md")]

pub mod mlp;

mod config;

pub use config::EncoderConfig;
pub use mlp::{Activation, Mlp, MlpConfig, Norm};
