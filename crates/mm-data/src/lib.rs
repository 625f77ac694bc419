#![doc = include_str!("../README.md")]

mod carve;
mod config;
mod dataset;
mod decode;
mod error;
mod features;
pub mod idx;
pub mod image;
mod inputs;
mod labels;
mod loader;
mod manifest;
mod matrix;
pub mod npy;
mod safe_file;
mod splits;
mod standardize;
mod synthetic;
mod table;
pub mod video;
mod warnings;

pub use config::{DataConfig, Prepared, Summary};
pub use dataset::Dataset;
pub use error::DataError;
pub use features::FeaturesConfig;
pub use inputs::load_inputs;
pub use loader::Loader;
pub use manifest::CsvConfig;
pub use matrix::Matrix;
pub use splits::{SplitConfig, Splits};
pub use standardize::Standardizer;
pub use synthetic::{SourceConfig, State, Synthetic, SyntheticConfig, Truth};
