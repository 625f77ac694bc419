#![doc = include_str!("../README.md")]

pub mod agm;
pub mod amco;
pub mod arl;
pub mod balancer;
pub mod catalogue;
pub mod cggm;
pub mod cml;
pub mod composition;
pub mod config;
pub mod copies;
pub mod ensemble;
pub mod functional_entropy;
pub mod g_blend;
pub mod greedy;
pub mod info_reg;
pub mod lfm;
pub mod lfm_weight;
pub mod mbsd;
pub mod mcr;
pub mod mla;
pub mod mlb;
pub mod mmcosine;
pub mod mmpareto;
pub mod modality_dropout;
pub mod mslr;
pub mod multi_loss;
pub mod multimodal_loss;
pub mod ogm;
pub mod opm;
pub mod pmr;
mod proxies;
pub mod proxyanchor;
pub mod proxynca;
pub mod reconboost;
pub mod relearning;
pub mod score;
pub mod softtriple;
pub mod step;
pub mod sum_ce;
pub mod umt;
pub mod unimodal;
pub mod valuation;

pub use balancer::{
    Balancer, Edited, EpochCx, EpochReport, LazyBatches, Needs, State, StepCx, TrainBatches, Windowed,
};
pub use catalogue::{Entry, catalogue};
pub use composition::check_composition;
pub use config::MethodConfig;
pub use step::{Joint, Observation, Optimizer, StepReport, TrainStep};
