#![doc = include_str!("../README.md")]

pub mod close;
pub mod golden;
pub mod gradients;
pub mod toy;

pub use close::{assert_close, tolerance};
pub use golden::Golden;
pub use gradients::check_gradients;
