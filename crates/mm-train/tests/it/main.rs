//! Tests of the trainer as a library.

#![allow(missing_docs, clippy::unwrap_used)]

mod config;
mod determinism;
mod directory;
mod optim;
mod packed;
mod raw_test_part;
mod refused;
mod selection;
mod shipped;
mod support;
