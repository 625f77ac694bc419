//! Tests of the program as people run it.

#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used)]

mod bad_input;
mod commands;
mod disk;
mod kill;
mod predict;
mod prepare;
mod raw;
mod support;
