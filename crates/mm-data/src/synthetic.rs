//! Synthetic sets with controlled noise.

mod config;
mod generate;

pub use config::{SourceConfig, SyntheticConfig};
pub use generate::{State, Synthetic, Truth};
