//! Values and gradients against the released codes' own (`tests/golden`, or the directory in `MM_GOLDEN_DIR`).
//!
//! f64 within 1e-9 of the tensor's largest entry, 1e-6 where the original goes through f32 numbers, 1e-5 for products with
//! second derivatives, which are finite differences here; f32 within 2e-5. Shapes and settings come from the file; the
//! numbers below that do not are the ones that its documentation fixes for every such file.

mod agm;
mod amco;
mod arl;
mod baselines;
mod cggm;
mod functional_entropy;
mod gblend;
mod greedy;
mod info_reg;
mod lfm;
mod mbsd;
mod mcr;
mod misc;
mod mla;
mod mlb;
mod mmcosine;
mod mmpareto;
mod mslr;
mod multimodal_loss;
mod ogm;
mod opm;
mod pmr;
mod proxies;
mod reconboost;
mod relearning;
