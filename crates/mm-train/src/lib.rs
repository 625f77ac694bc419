#![doc = include_str!("../README.md")]

pub mod build;
pub mod checkpoint;
pub mod config;
mod directory;
pub mod encode;
pub mod ensemble;
pub mod error;
pub mod evaluate;
pub mod optim;
pub mod parse;
pub mod predict;
pub mod record;
pub mod result;
pub mod schedule;
mod telemetry;
mod train_config;
pub mod trainer;

pub use config::{ModelConfig, Protocol, RunConfig, TrainConfig};
pub use error::TrainError;
pub use result::RunResult;
pub use trainer::{Options, Outcome, train};
