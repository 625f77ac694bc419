#![doc = include_str!("../README.md")]

pub mod agm;
pub mod balancer;
pub mod cggm;
pub mod composition;
pub mod config;
pub mod copies;
pub mod ensemble;
pub mod g_blend;
pub mod info_reg;
pub mod lfm;
pub mod lfm_weight;
pub mod mlb;
pub mod mmpareto;
pub mod mslr;
pub mod multi_loss;
pub mod multimodal_loss;
pub mod ogm;
pub mod opm;
pub mod relearning;
pub mod score;
pub mod step;
pub mod sum_ce;
pub mod unimodal;

pub use balancer::{
    Balancer, Edited, EpochCx, EpochReport, LazyBatches, Needs, State, StepCx, TrainBatches, Windowed,
};
pub use composition::check_composition;
pub use config::{Entry, MethodConfig, catalogue};
pub use step::{Joint, Observation, Optimizer, StepReport, TrainStep};
