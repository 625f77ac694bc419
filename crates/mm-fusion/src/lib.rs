#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps an error has failed as it should

pub mod concat;
pub mod film;
pub mod gated;
pub mod late_linear;
pub mod mid_mlp;
pub mod mmtm;
pub mod sum;
pub mod transformer;

mod config;
mod layers;
#[cfg(test)]
mod testing;

pub use concat::{Concat, ConcatConfig};
pub use config::{FusionConfig, FusionInfo, catalogue};
pub use film::{Film, FilmConfig};
pub use gated::{Gated, GatedConfig};
pub use late_linear::{LateLinear, LateLinearConfig};
pub use mid_mlp::{MidMlp, MidMlpConfig};
pub use mmtm::{Mmtm, MmtmConfig};
pub use sum::{Sum, SumConfig};
pub use transformer::{Transformer, TransformerConfig};
