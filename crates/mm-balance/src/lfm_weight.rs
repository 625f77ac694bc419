//! How LFM's weight between supervision (w_c) and matching (w_a = 1 - w_c) moves from epoch to epoch.
//!
//! Heuristic schedules, by epoch e from 0:
//!
//! | `kind` | w_a | source |
//! |---|---|---|
//! | `paper` (default) | 1 - exp(-1/t), t = e + 1 | the paper's heuristic, as a public summary quotes it |
//! | `exponential` | clip(exp(-0.3 e), 0.05, 0.95) | released @f3af6ea |
//! | `polynomial` | 1 - Σ c_i eⁱ, degree 5 | released "learned" run @ad44fa0: a curve fitted to learned weights |
//! | `fixed` | 1 - `supervised` | |
//!
//! The fitted curve belongs to a run of 200 epochs. Its w_c goes slightly above 1 in epochs 177 to 188, as released; from
//! epoch 199 on it is held, since the polynomial itself falls to -1 by epoch 240.
//!
//! Learned (bi-level), once per epoch before training, on a training batch (inner) and on rows that are set aside from
//! the *training* part (outer):
//!
//! ```text
//! θ'        = θ - η (w_c ∇L_c + w_a ∇L_match)                             one inner step, on the inner batch
//! dL_c/dw_c = -η ⟨∇L_c^outer(θ'), ∇L_c - ∇L_match⟩                        exact for one step, no Hessian
//! w_c       ← clip(w_c - lr_α dL_c/dw_c, 0.05, 0.95)
//! ```
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `variant` | `unrolled` | | `released-hvp`: below |
//! | `initial` w_c | 0.5; 0.05 for `released-hvp` | [0.05, 0.95] | before the first update |
//! | `rate` lr_α | 1; 1e-4 for `released-hvp` | > 0 | released: halved every 20 epochs |
//! | `inner_rate` η | the run's learning rate | > 0 | |
//! | `held_out` | 16 | >= 2 | rows set aside |
//!
//! `released-hvp` does what the released `Crema_epoch_learnable.py` does: on the first half of the held-out rows, with
//! L = w_c L_c + w_a L_match, it moves w_a by -lr_α times the *mean entry of H_L ∇L_c within the first parameter tensor*,
//! and halves lr_α at epochs 20, 40, …. That is not the gradient of anything; with the released rate the weight moves by
//! about 4e-3 of it in a whole run. candle has no second derivatives: the product is a fourth-order finite difference of
//! gradients.
//!
//! Gradients here are taken in evaluation mode, so that dropout and batch statistics of the training run are untouched.

use crate::lfm::Matcher;
use crate::{EpochCx, State};
use candle_core::{DType, Result, Tensor, bail};
use mm_core::model::to_host;
use mm_core::{Batch, Checked, ConfigError, Gradients, Mode, Multimodal, ParamStore};
use mm_kernels::cross_entropy::cross_entropy;
use serde::{Deserialize, Serialize};

/// A gradient for each parameter of a store, in its order; `None` where the loss does not reach it.
pub type ByParameter = Vec<Option<Tensor>>;

const LOW: f64 = 0.05;
const HIGH: f64 = 0.95;
/// Coefficients of the released curve, constant term first.
const FITTED: [f64; 6] =
    [2.046_237_04e-1, 3.354_727_27e-3, 1.229_895_57e-4, -2.929_474_16e-6, 2.238_354_86e-8, -5.397_175_05e-11];

/// The last epoch that the curve was fitted to.
const FITTED_LAST: f64 = 199.0;

/// A schedule of the weight.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", from = "Strict")]
pub enum Schedule {
    /// w_a = 1 - exp(-1/t).
    #[default]
    Paper,
    /// w_a = clip(exp(-0.3 e), 0.05, 0.95).
    Exponential,
    /// The released fitted curve.
    Polynomial,
    /// Constant.
    Fixed {
        /// w_c.
        supervised: f64,
    },
}

/// [`Schedule`] as it is read: serde lets unknown keys pass beside the tag of a variant without fields, but not beside
/// that of a variant with an empty list of them.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Strict {
    Paper {},
    Exponential {},
    Polynomial {},
    Fixed { supervised: f64 },
}

impl From<Strict> for Schedule {
    fn from(read: Strict) -> Self {
        match read {
            Strict::Paper {} => Self::Paper,
            Strict::Exponential {} => Self::Exponential,
            Strict::Polynomial {} => Self::Polynomial,
            Strict::Fixed { supervised } => Self::Fixed { supervised },
        }
    }
}

impl Schedule {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        match self {
            Self::Fixed { supervised } => {
                ConfigError::check_range("supervised", *supervised, f64::MIN_POSITIVE, 1.0)
            }
            _ => Ok(()),
        }
    }

    /// w_c at an epoch from 0.
    pub fn supervised(&self, epoch: usize) -> f64 {
        let e = epoch as f64;
        match self {
            Self::Paper => 1.0 - paper_matching(e + 1.0),
            Self::Exponential => 1.0 - (-0.3 * e).exp().clamp(LOW, HIGH),
            Self::Polynomial => FITTED.iter().rev().fold(0.0, |sum, c| sum * e.min(FITTED_LAST) + c),
            Self::Fixed { supervised } => *supervised,
        }
    }
}

/// The paper's matching weight at t from 1: `1 - exp(-1/t)`.
pub fn paper_matching(t: f64) -> f64 {
    1.0 - (-1.0 / t).exp()
}

/// Which update learns the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The exact gradient through one inner step.
    #[default]
    Unrolled,
    /// The released statistic.
    ReleasedHvp,
}

/// Settings of the learned weight; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bilevel {
    /// Which update.
    pub variant: Variant,
    /// w_c before the first update; [`Bilevel::initial`] where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<f64>,
    /// lr_α; [`Bilevel::rate`] where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// η; the run's learning rate if not given.
    pub inner_rate: Option<f64>,
    /// Rows set aside from the training part.
    pub held_out: usize,
}

impl Default for Bilevel {
    fn default() -> Self {
        Self { variant: Variant::Unrolled, initial: None, rate: None, inner_rate: None, held_out: 16 }
    }
}

impl Bilevel {
    /// w_c before the first update: 0.5, or the released 0.05.
    pub fn initial(&self) -> f64 {
        self.initial.unwrap_or(match self.variant {
            Variant::Unrolled => 0.5,
            Variant::ReleasedHvp => LOW,
        })
    }

    /// lr_α: 1, or the released 1e-4.
    pub fn rate(&self) -> f64 {
        self.rate.unwrap_or(match self.variant {
            Variant::Unrolled => 1.0,
            Variant::ReleasedHvp => 1e-4,
        })
    }

    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("initial", self.initial(), LOW, HIGH)?;
        ConfigError::check_range("rate", self.rate(), f64::MIN_POSITIVE, f64::MAX)?;
        if let Some(eta) = self.inner_rate {
            ConfigError::check_range("inner_rate", eta, f64::MIN_POSITIVE, f64::MAX)?;
        }
        ConfigError::check_range("held_out", self.held_out as f64, 2.0, 1e9)
    }
}

/// `-η ⟨∇L_outer(θ'), ∇L_c - ∇L_match⟩`: the exact derivative of the outer loss by w_c through one inner SGD step.
/// A parameter without a gradient counts as zero.
pub fn unrolled_hypergradient(
    eta: f64,
    outer: &[Option<Tensor>],
    supervised: &[Option<Tensor>],
    matching: &[Option<Tensor>],
) -> Result<f64> {
    let mut total = 0.0;
    for (o, (s, m)) in outer.iter().zip(supervised.iter().zip(matching)) {
        let Some(o) = o else { continue };
        for (inner, sign) in [(s, 1.0), (m, -1.0)] {
            if let Some(inner) = inner {
                let product = to_host(o)?.iter().zip(to_host(inner)?).map(|(a, b)| a * b).sum::<f64>();
                total += sign * product;
            }
        }
    }
    Ok(-eta * total)
}

/// One update of the released code: lr_α is halved at epochs 20, 40, …, then w_a moves by -lr_α times the statistic and
/// stays in [0.05, 0.95]. Returns (w_a, lr_α).
///
/// ```
/// let (matching, rate) = mm_balance::lfm_weight::released_step(20, 0.1, 0.7, 2.0);
/// assert!((matching - 0.6).abs() < 1e-15 && rate == 0.05);
/// ```
pub fn released_step(epoch: usize, rate: f64, matching: f64, statistic: f64) -> (f64, f64) {
    let rate = if epoch > 0 && epoch.is_multiple_of(20) { rate / 2.0 } else { rate };
    ((matching - rate * statistic).clamp(LOW, HIGH), rate)
}

/// `H v` of a loss given its gradient as a function of the parameters, by a fourth-order central difference along v:
/// `[8 (g(ε) - g(-ε)) - (g(2ε) - g(-2ε))] / 12ε` with ε = `step` / ‖v‖. Parameters are restored before returning.
pub fn hessian_vector_product(
    params: &ParamStore,
    v: &[Option<Tensor>],
    step: f64,
    mut gradient: impl FnMut() -> Result<ByParameter>,
) -> Result<ByParameter> {
    let mut square = 0.0;
    for t in v.iter().flatten() {
        square += mm_core::gradients::square_sum(t)?;
    }
    if square == 0.0 {
        return v.iter().map(|t| t.as_ref().map(Tensor::zeros_like).transpose()).collect();
    }
    let eps = step / square.sqrt();
    let start = params.snapshot()?;
    let mut total: ByParameter = vec![None; v.len()];
    for (multiple, weight) in [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)] {
        for (id, direction) in params.ids().zip(v) {
            if let Some(d) = direction {
                let moved = (start.get(id) + d.affine(multiple * eps, 0.0)?)?;
                params.get(id).var().set(&moved)?;
            }
        }
        let gradient = gradient();
        params.restore(&start)?;
        for (sum, g) in total.iter_mut().zip(gradient?) {
            let Some(g) = g else { continue };
            let term = g.affine(weight / (12.0 * eps), 0.0)?;
            *sum = Some(match sum.take() {
                Some(s) => (s + term)?,
                None => term,
            });
        }
    }
    Ok(total)
}

/// The weight of a run.
#[derive(Debug)]
pub(crate) struct Weight {
    source: Source,
    supervised: f64,
    /// lr_α, which the released variant halves as it goes.
    rate: f64,
    hypergradient: Option<f64>,
}

#[derive(Debug)]
enum Source {
    Scheduled(Schedule),
    Learned(Bilevel),
}

impl Weight {
    pub(crate) fn scheduled(schedule: Schedule) -> Self {
        let supervised = schedule.supervised(0);
        Self { source: Source::Scheduled(schedule), supervised, rate: 0.0, hypergradient: None }
    }

    pub(crate) fn learned(bilevel: Bilevel) -> Self {
        let (supervised, rate) = (bilevel.initial(), bilevel.rate());
        Self { source: Source::Learned(bilevel), supervised, rate, hypergradient: None }
    }

    pub(crate) fn held_out(&self) -> usize {
        match &self.source {
            Source::Scheduled(_) => 0,
            Source::Learned(b) => b.held_out,
        }
    }

    pub(crate) fn supervised(&self) -> f64 {
        self.supervised
    }

    pub(crate) fn hypergradient(&self) -> Option<f64> {
        self.hypergradient
    }

    pub(crate) fn update(&mut self, cx: &EpochCx<'_>, matcher: &Matcher, loss_scale: f64) -> Result<()> {
        let bilevel = match &self.source {
            Source::Scheduled(schedule) => {
                self.supervised = schedule.supervised(cx.epoch);
                return Ok(());
            }
            Source::Learned(bilevel) => bilevel.clone(),
        };
        let Some((inner, outer)) = cx.batches else {
            bail!(
                "LFM learns its weight on held-out rows: the trainer must pass a training batch and held-out rows"
            );
        };
        let derivatives = Derivatives { cx, matcher };
        let (supervised, rate, statistic) = match bilevel.variant {
            Variant::Unrolled => {
                // The loss that is trained is `loss_scale` times the weighted sum, so its step is as much longer.
                let eta = loss_scale * bilevel.inner_rate.unwrap_or(cx.learning_rate);
                let h = derivatives.unrolled(inner, outer, eta, self.supervised)?;
                ((self.supervised - self.rate * h).clamp(LOW, HIGH), self.rate, h)
            }
            Variant::ReleasedHvp => {
                let half: Vec<u32> = (0..(outer.rows() / 2).max(1) as u32).collect();
                let statistic = derivatives.released(&outer.select(&half)?, self.supervised)?;
                let (matching, rate) = released_step(cx.epoch, self.rate, 1.0 - self.supervised, statistic);
                (1.0 - matching, rate, statistic)
            }
        };
        if !statistic.is_finite() {
            bail!(
                "LFM's hypergradient is {statistic} at the start of epoch {}: lower the learning rate",
                cx.epoch
            );
        }
        (self.supervised, self.rate) = (supervised, rate);
        self.hypergradient = Some(statistic);
        Ok(())
    }

    pub(crate) fn state(&self) -> State {
        let gradient = self.hypergradient.into_iter().collect();
        State::from([
            ("supervised".into(), vec![self.supervised]),
            ("rate".into(), vec![self.rate]),
            ("hypergradient".into(), gradient),
        ])
    }

    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        let number = |name: &str| state.get(name).map(Vec::as_slice);
        match (number("supervised"), number("rate"), number("hypergradient")) {
            (Some(&[supervised]), Some(&[rate]), Some(gradient)) => {
                (self.supervised, self.rate) = (supervised, rate);
                self.hypergradient = gradient.first().copied();
                Ok(())
            }
            _ => bail!("the checkpoint lacks LFM's weight"),
        }
    }
}

/// Gradients of the two losses at the current parameters.
struct Derivatives<'a, 'b> {
    cx: &'a EpochCx<'b>,
    matcher: &'a Matcher,
}

impl Derivatives<'_, '_> {
    fn collect(&self, loss: &Tensor) -> Result<ByParameter> {
        let gradients = Gradients::collect(self.cx.params, loss.backward()?);
        self.cx.params.ids().map(|id| gradients.get(id)).collect()
    }

    fn losses(&self, batch: &Batch) -> Result<(Tensor, Option<Tensor>)> {
        let model: &dyn Multimodal = self.cx.model;
        let fwd = model.forward(batch, Mode::Eval)?;
        let supervised = cross_entropy(&fwd.fused, &batch.labels, None)?;
        Ok((supervised, self.matcher.loss(model, batch, &fwd, Mode::Eval)?))
    }

    fn both(&self, batch: &Batch) -> Result<(ByParameter, ByParameter)> {
        let (supervised, matching) = self.losses(batch)?;
        let none = || vec![None; self.cx.params.len()];
        Ok((self.collect(&supervised)?, matching.map_or_else(|| Ok(none()), |l| self.collect(&l))?))
    }

    fn unrolled(&self, inner: &Batch, outer: &Batch, eta: f64, w: f64) -> Result<f64> {
        let (supervised, matching) = self.both(inner)?;
        let params = self.cx.params;
        let start = params.snapshot()?;
        for (id, (s, m)) in params.ids().zip(supervised.iter().zip(&matching)) {
            let mut value = start.get(id).clone();
            for (g, weight) in [(s, w), (m, 1.0 - w)] {
                if let Some(g) = g {
                    value = (value - g.affine(eta * weight, 0.0)?)?;
                }
            }
            params.get(id).var().set(&value)?;
        }
        let outer = self.losses(outer).and_then(|(loss, _)| self.collect(&loss));
        params.restore(&start)?;
        unrolled_hypergradient(eta, &outer?, &supervised, &matching)
    }

    fn released(&self, batch: &Batch, w: f64) -> Result<f64> {
        let (supervised, _) = self.both(batch)?;
        // Where the rounding of the gradients and the error of the formula meet: about 1e-11 in f64 and 1e-5 in f32.
        let step = if self.cx.params.dtype() == DType::F64 { 1e-3 } else { 2e-2 };
        let product = hessian_vector_product(self.cx.params, &supervised, step, || {
            let (supervised, matching) = self.both(batch)?;
            supervised
                .into_iter()
                .zip(matching)
                .map(|(s, m)| match (s, m) {
                    (Some(s), Some(m)) => (s.affine(w, 0.0)? + m.affine(1.0 - w, 0.0)?).map(Some),
                    (Some(s), None) => s.affine(w, 0.0).map(Some),
                    (None, Some(m)) => m.affine(1.0 - w, 0.0).map(Some),
                    (None, None) => Ok(None),
                })
                .collect()
        })?;
        match product.first() {
            Some(Some(first)) => {
                let values = to_host(first)?;
                Ok(values.iter().sum::<f64>() / values.len() as f64)
            }
            _ => Ok(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_hand_over_from_matching_to_supervision() {
        for schedule in [Schedule::Paper, Schedule::Exponential] {
            let w: Vec<f64> = (0..50).map(|e| schedule.supervised(e)).collect();
            assert!(w.windows(2).all(|p| p[1] >= p[0]) && w[0] < 0.5 && w[49] > 0.9, "{schedule:?}");
        }
        assert!((Schedule::Paper.supervised(0) - (-1f64).exp()).abs() < 1e-15);
        assert!((Schedule::Polynomial.supervised(0) - 0.204_623_704).abs() < 1e-12);
        assert!(Schedule::Fixed { supervised: 1.5 }.check().is_err());
    }
}
