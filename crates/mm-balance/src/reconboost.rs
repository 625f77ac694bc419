//! ReconBoost: modalities are trained in turns, each against what the others cannot explain yet.
//!
//! ```text
//! z = Σ_m u^m                                                     the decision; u^m: logits of the modality's own head
//! F = softmax(Σ_{j≠k} u^j)                                        of the others, a constant
//! stage of modality k, first phase (encoder and head of k):
//!     L = -1/C mean_i (w_1 - w_2 F_{i,y}) log softmax(u^k_i)[y_i] + α mean (softmax(u^k) - softmax(u^p))²
//! second phase (all): L = CE(z, y)
//! ```
//!
//! k goes round the modalities; p is the one before k, a constant, and the last term reconciles with it: there is
//! none in the first stage. Shapes: u (B, C); the last mean runs over rows and classes. Rows that lack k take no
//! part; a modality that a row lacks adds nothing to F. The method does the whole step, so it stands alone, and
//! decides from the heads, without a fusion.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `boost` w_1, `damp` w_2 | 5, 1 | > 0, >= 0 | weight of a row, and how much less where the others know |
//! | `variant` | `paper` | | `released`: α = 0 |
//! | `alpha` α | 0.5 | >= 0 | weight of the reconciling term |
//! | `boost_epochs` | 4 | >= 1 | epochs of a first phase |
//! | `joint_epochs` | 4 | >= 0 | epochs of a second phase |
//!
//! Differences. In the released code both sides of the reconciling term are cut off the graph, so it changes no
//! gradient: `released` leaves it out; `paper` differentiates it, with the released form, because the paper's
//! equations could not be read: a reading and no reproduction. Released runs start from modalities trained alone,
//! have one MLP head for the sum with a learned rate, and start the optimiser anew in every phase; here heads are
//! linear, rates are 1, training starts from the beginning and momentum goes on. Released for M = 2 and 3. The
//! released code scales by batches of one size; here means are over rows.
//!
//! Source: Hua et al., "ReconBoost: Boosting Can Achieve Modality Reconcilement", ICML 2024; released code
//! huacong/ReconBoost @14ab57a.

use crate::multi_loss::heads_of;
use crate::{EpochCx, EpochReport, Needs, Optimizer, State, StepCx, StepReport, TrainStep, score};
use candle_core::{Result, Tensor};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Gradients, Modal, Modality, Multimodal};
use mm_kernels::softmax::{log_softmax_last, softmax_last};
use mm_kernels::{cross_entropy, true_class_probability};
use serde::{Deserialize, Serialize};

/// Whether the reconciling term has a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// It has.
    #[default]
    Paper,
    /// It has not.
    Released,
}

/// Settings of [`ReconBoost`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReconBoostConfig {
    /// w_1, weight of a row.
    pub boost: f64,
    /// w_2, how much less it weighs where the others know.
    pub damp: f64,
    /// Whether the reconciling term has a gradient.
    pub variant: Variant,
    /// α, weight of the reconciling term.
    pub alpha: f64,
    /// Epochs of a first phase.
    pub boost_epochs: usize,
    /// Epochs of a second phase.
    pub joint_epochs: usize,
}

impl Default for ReconBoostConfig {
    fn default() -> Self {
        Self { boost: 5.0, damp: 1.0, variant: Variant::Paper, alpha: 0.5, boost_epochs: 4, joint_epochs: 4 }
    }
}

impl ReconBoostConfig {
    /// What the method asks for.
    pub fn needs(&self) -> Needs {
        Needs { heads: true, fusion: false, modalities: 2, ..Needs::default() }
    }

    /// Validates.
    pub fn build(&self) -> Checked<ReconBoost> {
        ConfigError::check_range("boost", self.boost, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("damp", self.damp, 0.0, f64::MAX)?;
        ConfigError::check_range("alpha", self.alpha, 0.0, f64::MAX)?;
        ConfigError::check_range("boost_epochs", self.boost_epochs as f64, 1.0, 1e9)?;
        Ok(ReconBoost { config: self.clone(), checked: false })
    }

    /// The stage of an epoch, and whether it is in the first phase.
    pub fn phase(&self, epoch: usize) -> (usize, bool) {
        let length = self.boost_epochs.max(1).saturating_add(self.joint_epochs);
        (epoch / length, epoch % length < self.boost_epochs.max(1))
    }
}

/// `-(w_1 - w_2 F_y) log softmax(u)[y] / C` of every row (B): logits u (B, C), and those of the others, which are
/// constants.
pub fn boosting_losses(
    own: &Tensor,
    others: &Tensor,
    labels: &[u32],
    boost: f64,
    damp: f64,
) -> Result<Tensor> {
    let classes = own.dim(1)? as f64;
    let known = true_class_probability(&others.detach(), labels)?;
    let factors: Vec<f64> = known.iter().map(|f| -(boost - damp * f) / classes).collect();
    let factors = Tensor::from_vec(factors, labels.len(), own.device())?.to_dtype(own.dtype())?;
    let index = Tensor::new(labels, own.device())?.unsqueeze(1)?;
    log_softmax_last(own)?.gather(&index, 1)?.squeeze(1)? * factors
}

/// The mean squared difference of each row's probabilities (B); the second argument is a constant.
pub fn reconciling_losses(own: &Tensor, previous: &Tensor) -> Result<Tensor> {
    (softmax_last(own)? - softmax_last(&previous.detach())?)?.sqr()?.mean(1)
}

/// See the [module](self).
#[derive(Debug)]
pub struct ReconBoost {
    config: ReconBoostConfig,
    checked: bool,
}

impl ReconBoost {
    /// The loss of a first phase.
    fn boosting(&self, batch: &Batch, heads: &Modal<Tensor>, k: Modality, first: bool) -> Result<Tensor> {
        let own = &heads[k];
        let others: Vec<Tensor> = heads.iter().filter(|(j, _)| *j != k).map(|(_, u)| u.clone()).collect();
        let others = sum(&others)?;
        let mut each = boosting_losses(own, &others, &batch.labels, self.config.boost, self.config.damp)?;
        if self.config.variant == Variant::Paper && self.config.alpha > 0.0 && !first {
            let previous = Modality::new((k.index() + heads.len() - 1) % heads.len());
            each = (each + (reconciling_losses(own, &heads[previous])? * self.config.alpha)?)?;
        }
        let weights = batch.weights(k).unwrap_or_else(|| vec![1.0; batch.rows()]);
        let total: f64 = weights.iter().sum::<f64>().max(1.0);
        let weights = Tensor::from_vec(weights, batch.rows(), own.device())?.to_dtype(own.dtype())?;
        (each * weights)?.sum_all()? / total
    }
}

/// The logits of the heads; those of modalities that a row lacks are zero in it.
fn contributions(heads: &Modal<Tensor>, batch: &Batch) -> Result<Modal<Tensor>> {
    heads.try_map(|m, u| batch.present[m].as_ref().map_or_else(|| Ok(u.clone()), |p| p.apply(u)))
}

impl TrainStep for ReconBoost {
    fn needs(&self) -> Needs {
        self.config.needs()
    }

    fn epoch_start(&mut self, _: &EpochCx<'_>) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, cx: &StepCx<'_>, optimizer: &mut dyn Optimizer) -> Result<StepReport> {
        let names = cx.model.modalities();
        let (stage, boosting) = self.config.phase(cx.epoch);
        let k = Modality::new(stage % names.len());
        let fwd = cx.model.forward(cx.batch, cx.mode)?;
        let heads = contributions(heads_of(&fwd)?, cx.batch)?;
        let loss = if boosting {
            self.boosting(cx.batch, &heads, k, stage == 0)?
        } else {
            cross_entropy(&sum(heads.values())?, &cx.batch.labels, None)?
        };
        let mut g = Gradients::collect(cx.params, loss.backward()?);
        if boosting {
            self.keep_only(cx, k, &mut g)?;
        } else if !self.checked {
            g.check_reached(cx.params)?;
            self.checked = true;
        }
        let mut observations = Vec::with_capacity(2 * names.len() + 2);
        for (m, s) in score::true_class(&heads, cx.batch)?.iter() {
            observations.push(("score", Some(m.index()), *s));
        }
        for m in names.iter() {
            let prefix = format!("encoder.{}", names.name(m));
            observations.push(("grad_norm", Some(m.index()), g.norm(cx.params.group(&prefix))?));
        }
        observations.push(("stage", None, stage as f64));
        let norm = optimizer.step(&mut g)?;
        observations.extend(norm.map(|n| ("grad_norm", None, n)));
        Ok(StepReport { loss: to_host(&loss)?[0], rows: cx.batch.rows(), observations })
    }

    fn epoch_end(&mut self, _: &EpochCx<'_>, _: &EpochReport) -> Result<()> {
        Ok(())
    }

    fn decide(&self, _: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Tensor> {
        sum(contributions(heads_of(fwd)?, batch)?.values())
    }

    fn state(&self) -> State {
        State::new()
    }

    fn restore(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}

impl ReconBoost {
    /// Takes the gradients of all modalities but k away: no gradient, so that neither momentum nor weight decay moves
    /// them.
    fn keep_only(&mut self, cx: &StepCx<'_>, k: Modality, g: &mut Gradients) -> Result<()> {
        let mut reached = Gradients::empty(cx.params);
        let mut rests = vec![false; cx.params.len()];
        for m in cx.model.modalities().iter().filter(|&m| m != k) {
            for part in ["encoder", "head"] {
                for id in cx.params.group(&format!("{part}.{}", cx.model.modalities().name(m))) {
                    rests[id.index()] = true;
                }
            }
        }
        for id in cx.params.ids() {
            if rests[id.index()] {
                g.set(id, None);
                reached.set(id, Some(cx.params.get(id).var().zeros_like()?));
            } else if !self.checked {
                reached.set(id, g.get(id)?);
            }
        }
        if !self.checked {
            reached.check_reached(cx.params)?;
            self.checked = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_go_round() {
        let config = ReconBoostConfig { boost_epochs: 2, joint_epochs: 1, ..ReconBoostConfig::default() };
        let phases: Vec<(usize, bool)> = (0..7).map(|epoch| config.phase(epoch)).collect();
        let expected = [(0, true), (0, true), (0, false), (1, true), (1, true), (1, false), (2, true)];
        assert_eq!(phases, expected);
    }
}
