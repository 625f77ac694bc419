//! Tests of the crate from outside: reference numbers and properties.

mod golden;
mod properties;
