#![doc = include_str!("../README.md")]

pub mod balancer;
pub mod config;
pub mod ensemble;
pub mod lfm;
pub mod lfm_weight;
pub mod mlb;
pub mod multi_loss;
pub mod multimodal_loss;
pub mod ogm;
pub mod opm;
pub mod score;
pub mod step;
pub mod sum_ce;
pub mod unimodal;

pub use balancer::{Balancer, Edited, EpochCx, EpochReport, Needs, State, StepCx, Windowed};
pub use config::{Entry, MethodConfig, catalogue};
pub use step::{Joint, Observation, Optimizer, StepReport, TrainStep};
