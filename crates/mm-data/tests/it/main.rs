//! Tests of mm-data through its public interface.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod config;
mod csv;
mod dataset;
mod features;
mod hostile;
mod loader;
mod pack;
mod splits;
mod standardize;
mod support;
mod synthetic;
