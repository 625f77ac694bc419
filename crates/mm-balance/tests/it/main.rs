//! Tests of the balancing methods: against other people's numbers, by their properties, and in training steps.

mod fixture;
mod golden;
mod nets;
