//! Tests of the balancing methods: against other people's numbers, by their properties, and in training steps.

mod composition;
mod configuration;
mod edges;
mod fixture;
mod golden;
mod gradients;
mod hooks;
mod methods;
mod modulation;
mod nets;
mod properties;
mod round_trip;
mod steps;
