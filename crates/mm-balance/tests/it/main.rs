//! Tests of the balancing methods: against other people's numbers, by their properties, and in training steps.

mod configuration;
mod fixture;
mod golden;
mod gradients;
mod hooks;
mod methods;
mod nets;
mod properties;
mod steps;
