#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps an error has failed as it should

pub mod close;
pub mod golden;
pub mod gradients;
pub mod toy;

pub use close::{assert_close, tolerance};
pub use golden::Golden;
pub use gradients::check_gradients;
