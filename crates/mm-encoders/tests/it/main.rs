//! Every encoder against finite differences, its equations and its configuration.

#![allow(clippy::unwrap_used)] // a test that unwraps an error has failed as it should

mod config;
mod conformer;
mod conformer_golden;
mod draws;
#[cfg(feature = "hub")]
mod hub;
mod mlp;
mod resnet;
mod resnet18_golden;
mod weights;
mod weights_export;
mod weights_hostile;
