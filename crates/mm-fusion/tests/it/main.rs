//! What holds for every fusion, checked over numbers of modalities, widths and missing rows.

#![allow(clippy::unwrap_used)] // a test that unwraps an error has failed as it should

mod config;
mod every_fusion;
mod golden;
