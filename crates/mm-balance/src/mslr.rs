//! MSLR: every modality has a learning rate of its own, which follows how its validation accuracy moves.
//!
//! ```text
//! a_m(e)      validation accuracy of modality m's own prediction after epoch e
//! r_m(e + 1)  = a_m(e) / mean(a_m(e-1), …, a_m(e-K))         1 until K + 1 accuracies are known
//! lr_m        = c_m r_m lr                                    in epoch e + 1
//! ```
//!
//! so a modality that improves on its recent past is sped up, and one that falls back is slowed down. lr_m is the rate
//! of encoder m, of its head and of its block of a linear fusion: in additive late fusion, for which the paper is
//! written, that is the model of the modality. The method needs a prediction of every modality alone: heads, or a
//! fusion that is a sum. It adds no loss.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `factors` c_m | all 1 | > 0 each | constant factor of each modality's rate, in the order of the modalities |
//! | `keep` K | 5 | >= 1 | how many earlier accuracies are averaged |
//! | `strategy` | `dynamic` | | `fixed`: r_m = 1, only the constant factors |
//! | `parameters` | `branch` | | `encoder`: the encoder alone |
//! | `apply` | `learning-rate` | | `gradient`: c_m r_m multiplies the gradient, as both published ports do |
//!
//! State: the last K + 1 accuracies of each modality.
//!
//! Differences. The authors published no code; two ports exist, in the repositories of AGM and of MLB, which agree on
//! r_m and on K = 5, with c = (0.9, 1.1) for audio and video. AGM's port takes the accuracies from the *test* part;
//! here they are the validation part's, as in MLB's, and a protocol that hides them leaves r_m = 1. AGM's scales
//! encoder and head (`branch`), MLB's the encoder alone (`encoder`); both scale gradients. A mean of 0 divides by zero
//! there; here it gives r_m = 1. The paper's other strategies, which copy the rates of unimodal runs, are `strategy =
//! "fixed"` with their rates as factors.
//!
//! Source: Yao and Mihalcea, "Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion", Findings
//! of ACL 2022; ports lihong2303/AGM_ICCV2023 @5a65542 and kkontras/MLB @357b5ce.

use crate::mlb::{Apply, scale_branches};
use crate::{Balancer, EpochCx, EpochReport, Needs, State, StepCx};
use candle_core::{Result, bail};
use mm_core::{Checked, ConfigError, Forward, Gradients, Modality, ParamId};
use serde::{Deserialize, Serialize};

/// Whether the rates follow the accuracies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// They do.
    #[default]
    Dynamic,
    /// Constant factors.
    Fixed,
}

/// What a modality's rate is the rate of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parameters {
    /// Encoder, head and block of a linear fusion.
    #[default]
    Branch,
    /// The encoder.
    Encoder,
}

/// Settings of [`Mslr`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MslrConfig {
    /// c_m, constant factors in the order of the modalities; empty means 1 for all.
    pub factors: Vec<f64>,
    /// K, how many earlier accuracies are averaged.
    pub keep: usize,
    /// Whether the rates follow the accuracies.
    pub strategy: Strategy,
    /// Which parameters.
    pub parameters: Parameters,
    /// Learning rate or gradient.
    pub apply: Apply,
}

impl Default for MslrConfig {
    fn default() -> Self {
        Self {
            factors: Vec::new(),
            keep: 5,
            strategy: Strategy::Dynamic,
            parameters: Parameters::Branch,
            apply: Apply::LearningRate,
        }
    }
}

impl MslrConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Mslr> {
        ConfigError::check_range("keep", self.keep as f64, 1.0, 1e6)?;
        for c in &self.factors {
            ConfigError::check_range("factors", *c, f64::MIN_POSITIVE, f64::MAX)?;
        }
        if !self.factors.is_empty() && self.factors.len() != modalities {
            let rule =
                format!("names one factor per modality, of which there are {modalities}; leave it out for 1");
            return Err(ConfigError::new("factors", format!("{:?}", self.factors), rule));
        }
        let factors = if self.factors.is_empty() { vec![1.0; modalities] } else { self.factors.clone() };
        Ok(Mslr {
            config: self.clone(),
            ratios: vec![1.0; factors.len()],
            past: vec![Vec::new(); factors.len()],
            factors,
            parameters: Vec::new(),
        })
    }
}

/// r_m from the accuracies of one modality so far, the latest last.
///
/// ```
/// assert_eq!(mm_balance::mslr::ratio(&[0.125, 0.375, 0.5], 2), 2.0);
/// assert_eq!(mm_balance::mslr::ratio(&[0.2, 0.4], 2), 1.0);
/// ```
pub fn ratio(accuracies: &[f64], keep: usize) -> f64 {
    let Some((last, past)) = accuracies.split_last() else { return 1.0 };
    if keep == 0 || past.len() < keep {
        return 1.0;
    }
    let mean = past[past.len() - keep..].iter().sum::<f64>() / keep as f64;
    let ratio = last / mean;
    if ratio.is_finite() { ratio } else { 1.0 }
}

/// See the [module](self). It belongs to one model, whose parameters it looks up in its first step.
#[derive(Debug)]
pub struct Mslr {
    config: MslrConfig,
    factors: Vec<f64>,
    ratios: Vec<f64>,
    past: Vec<Vec<f64>>,
    parameters: Vec<(ParamId, Modality)>,
}

impl Mslr {
    fn coefficients(&self) -> Vec<f64> {
        self.factors.iter().zip(&self.ratios).map(|(c, r)| c * r).collect()
    }

    fn update(&mut self) {
        if self.config.strategy == Strategy::Dynamic {
            self.ratios = self.past.iter().map(|past| ratio(past, self.config.keep)).collect();
        }
    }
}

impl Balancer for Mslr {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        let k = self.coefficients();
        if self.config.parameters == Parameters::Branch {
            return scale_branches(&mut self.parameters, cx, fwd, g, &k, self.config.apply);
        }
        for m in cx.model.modalities().iter() {
            let prefix = format!("encoder.{}", cx.model.modalities().name(m));
            match self.config.apply {
                Apply::Gradient => g.scale(cx.params, &prefix, k[m.index()]),
                Apply::LearningRate => g.scale_lr(cx.params, &prefix, k[m.index()]),
            }
        }
        Ok(())
    }

    fn epoch_end(&mut self, _: &EpochCx<'_>, seen: &EpochReport) -> Result<()> {
        let Some(accuracies) = &seen.unimodal else {
            if seen.accuracy.is_some() && self.config.strategy == Strategy::Dynamic {
                bail!(
                    "MSLR follows the accuracy of each modality alone, and this model has none: choose a fusion that is \
                     a sum (late-linear, concat, sum), or compose it with a method that trains heads (multi-loss+mslr)"
                );
            }
            return Ok(());
        };
        for (past, accuracy) in self.past.iter_mut().zip(accuracies.values()) {
            past.push(*accuracy);
            let extra = past.len().saturating_sub(self.config.keep + 1);
            past.drain(..extra);
        }
        self.update();
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, r) in self.ratios.iter().enumerate() {
            sink("ratio", Some(m), *r);
        }
        for (m, k) in self.coefficients().into_iter().enumerate() {
            sink("coefficient", Some(m), k);
        }
    }

    fn state(&self) -> State {
        self.past.iter().enumerate().map(|(m, past)| (format!("accuracies.{m}"), past.clone())).collect()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        for (m, past) in self.past.iter_mut().enumerate() {
            let Some(saved) = state.get(&format!("accuracies.{m}")) else {
                bail!("MSLR: the checkpoint holds no accuracies of modality {m}; start the run afresh");
            };
            past.clone_from(saved);
        }
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_waits_for_its_past_and_survives_zeros() {
        assert_eq!(ratio(&[], 5), 1.0);
        assert_eq!(ratio(&[0.5; 5], 5), 1.0);
        assert_eq!(ratio(&[0.0, 0.0, 0.4], 2), 1.0);
        assert_eq!(ratio(&[0.0, 0.0, 0.0], 2), 1.0);
        assert_eq!(ratio(&[0.9, 0.4, 0.4, 0.2], 2), 0.5);
    }

    #[test]
    fn factors_are_one_for_each_modality() {
        let config = MslrConfig { factors: vec![0.9, 1.1], ..MslrConfig::default() };
        assert!(config.build(2).is_ok());
        assert_eq!(config.build(3).unwrap_err().field, "factors");
        let config = MslrConfig { factors: vec![0.9, 0.0], ..MslrConfig::default() };
        assert_eq!(config.build(2).unwrap_err().field, "factors");
    }
}
