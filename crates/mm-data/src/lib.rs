#![doc = include_str!("../README.md")]

pub mod audio;
mod carve;
mod config;
mod dataset;
mod decode;
mod error;
mod features;
mod input;
mod inputs;
mod labels;
mod loader;
mod manifest;
mod matrix;
pub mod pack;
mod safe_file;
mod splits;
mod standardize;
mod synthetic;
mod table;
mod warnings;

pub use config::{DataConfig, Prepared, Summary};
pub use dataset::Dataset;
pub use error::DataError;
pub use features::FeaturesConfig;
pub use input::Input;
pub use inputs::load_inputs;
pub use loader::{Loader, unlabelled_batch};
pub use manifest::CsvConfig;
pub use matrix::Matrix;
pub use pack::{PackedConfig, PackedInputConfig};
pub use splits::{SplitConfig, Splits};
pub use standardize::Standardizer;
pub use synthetic::{SourceConfig, State, Synthetic, SyntheticConfig, Truth};
