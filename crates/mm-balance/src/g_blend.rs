//! G-Blend: the losses of the modalities and of the fusion are blended by how well each generalises.
//!
//! ```text
//! L    = Σ_k w_k L_k,    k over the modalities, L_k = CE(u^k, y), and the fusion, L_0 = CE(z, y)
//! G_k  = V_k(N) - V_k(N + n)                  how much the loss of held-out rows falls while L_k alone is trained
//! O_k  = V_k - T_k,   ΔO_k = O_k(N + n) - O_k(N)            how much its distance to the training loss grows
//! w_k  = G_k / ΔO_k² / Σ_j G_j / ΔO_j²        the inverse of the overfitting-to-generalisation ratio, squared
//! ```
//!
//! At the start of every super-epoch (online), or once (offline), each L_k is trained alone for n epochs from the
//! parameters of that moment, V and T are measured before and after, and the parameters are put back; then the whole
//! model is trained with the w_k. A head reaches no encoder but its own, so all modalities are trained alone in one go,
//! and the fusion in a second: n epochs cost 2n. V is taken over rows that are set aside from the *training* part, T
//! over the rest, both in evaluation mode; neither the validation nor the test part is used. Rows that lack modality k
//! take no part in L_k.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `super_epoch` | 10 | >= 1 | epochs between estimates |
//! | `estimate_epochs` n | `super_epoch` | >= 1 | epochs of training for an estimate |
//! | `held_out` | 50 | >= 2 | rows set aside |
//! | `schedule` | `online` | | `offline`: one estimate, before the first epoch |
//! | `estimator` | `paper` | | `multi-bench`: below |
//! | `floor` | 0.1 | > 0 | least |ΔO|, against division by nearly nothing |
//! | `least` | 0.05 | [0, 1/(M+1)] | least w_k; what it adds is taken from the others |
//! | `rate` | the run's learning rate | > 0 | of the estimates |
//!
//! `multi-bench` is what the MultiBench repository computes by default: the final V_k in the place of G_k, and the
//! final O_k in the place of ΔO_k, where one below 1e-4 counts as 1e-4 - so that a modality that does not overfit at
//! all takes nearly all the weight.
//!
//! State: the w_k. Before the first estimate all are equal.
//!
//! Differences. The released code of the authors holds only the weighted sum and tables of weights; the estimate is
//! made from the mathematics, and the reading of the text is ours where it leaves room: estimates are trained by plain
//! gradient descent, whatever the run's optimiser is, and the held-out rows are the same in all of them. G_k <= 0 gives
//! w_k = 0; where no loss has G > 0, all w are equal. |ΔO| is not let below `floor`: the rows that measure it are few,
//! and one lucky ΔO of 0.01 would outweigh all others by a hundred. No w_k is let below `least`, because a fusion of
//! weight 0 would decide untrained.
//!
//! Source: Wang, Tran and Feiszli, "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020, arXiv
//! 1905.12681; released code facebookresearch/VMZ @4cc542d (weighted sum only); estimator of pliang279/MultiBench
//! @49f9be2.

use crate::balancer::saved;
use crate::multi_loss::heads_of;
use crate::step::weighted;
use crate::{Balancer, EpochCx, Needs, State, StepCx, score};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Gradients, Mode};
use mm_kernels::cross_entropy;
use serde::{Deserialize, Serialize};

/// When weights are estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// At the start of every super-epoch.
    #[default]
    Online,
    /// Before the first epoch.
    Offline,
}

/// What a weight is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// G / ΔO².
    #[default]
    Paper,
    /// The default of the MultiBench repository.
    MultiBench,
}

/// Settings of [`GBlend`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GBlendConfig {
    /// Epochs between estimates.
    pub super_epoch: usize,
    /// n, epochs of training for an estimate; a super-epoch where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_epochs: Option<usize>,
    /// Training rows set aside.
    pub held_out: usize,
    /// When weights are estimated.
    pub schedule: Schedule,
    /// What a weight is made of.
    pub estimator: Estimator,
    /// The least |ΔO|.
    pub floor: f64,
    /// The least w_k.
    pub least: f64,
    /// Learning rate of the estimates; the run's where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
}

impl Default for GBlendConfig {
    fn default() -> Self {
        Self {
            super_epoch: 10,
            estimate_epochs: None,
            held_out: 50,
            schedule: Schedule::Online,
            estimator: Estimator::Paper,
            floor: 0.1,
            least: 0.05,
            rate: None,
        }
    }
}

impl GBlendConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<GBlend> {
        ConfigError::check_range("super_epoch", self.super_epoch as f64, 1.0, 1e9)?;
        if let Some(epochs) = self.estimate_epochs {
            ConfigError::check_range("estimate_epochs", epochs as f64, 1.0, 1e9)?;
        }
        ConfigError::check_range("held_out", self.held_out as f64, 2.0, 1e12)?;
        ConfigError::check_range("floor", self.floor, f64::MIN_POSITIVE, f64::MAX)?;
        if let Some(rate) = self.rate {
            ConfigError::check_range("rate", rate, f64::MIN_POSITIVE, f64::MAX)?;
        }
        let losses = modalities + 1;
        ConfigError::check_range("least", self.least, 0.0, 1.0 / losses as f64)?;
        Ok(GBlend { config: self.clone(), weights: vec![1.0 / losses as f64; losses], scores: Vec::new() })
    }
}

/// Losses of one predictor before and after it was trained alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// T(N), of the training rows.
    pub train_before: f64,
    /// V(N), of the held-out rows.
    pub held_before: f64,
    /// T(N + n).
    pub train_after: f64,
    /// V(N + n).
    pub held_after: f64,
}

impl Measured {
    /// G, how much the loss of held-out rows fell.
    pub fn generalisation(&self) -> f64 {
        self.held_before - self.held_after
    }

    /// ΔO, how much its distance to the training loss grew.
    pub fn overfitting(&self) -> f64 {
        (self.held_after - self.train_after) - (self.held_before - self.train_before)
    }

    /// The weight before normalisation.
    ///
    /// ```
    /// use mm_balance::g_blend::{Estimator, Measured};
    /// let m = Measured { train_before: 1.5, held_before: 1.5, train_after: 0.5, held_after: 1.0 };
    /// assert_eq!(m.raw(Estimator::Paper, 0.01), 2.0);
    /// ```
    pub fn raw(&self, estimator: Estimator, floor: f64) -> f64 {
        match estimator {
            Estimator::Paper => self.generalisation() / self.overfitting().abs().max(floor).powi(2),
            Estimator::MultiBench => self.held_after / (self.held_after - self.train_after).max(1e-4).powi(2),
        }
    }
}

/// Weights that add up to 1; what is not positive gets 0, and where nothing is positive all are equal.
pub fn normalised(raw: &[f64]) -> Vec<f64> {
    let positive: Vec<f64> = raw.iter().map(|w| if *w > 0.0 && w.is_finite() { *w } else { 0.0 }).collect();
    let total: f64 = positive.iter().sum();
    if total > 0.0 && total.is_finite() {
        positive.iter().map(|w| w / total).collect()
    } else {
        vec![1.0 / raw.len() as f64; raw.len()]
    }
}

/// Weights that add up to 1 with each below `least` raised to it; the others are scaled down.
///
/// ```
/// assert_eq!(mm_balance::g_blend::raised(&[0.75, 0.25, 0.0], 0.25), [0.5, 0.25, 0.25]);
/// ```
pub fn raised(weights: &[f64], least: f64) -> Vec<f64> {
    // Scaling down may take another one below: each round fixes at least one more, so there are few.
    let mut low = vec![false; weights.len()];
    loop {
        let fixed = low.iter().filter(|l| **l).count() as f64 * least;
        let free: f64 = weights.iter().zip(&low).filter(|(_, l)| !**l).map(|(w, _)| w).sum();
        let scale = if free > 0.0 { (1.0 - fixed) / free } else { 0.0 };
        let next: Vec<f64> =
            weights.iter().zip(&low).map(|(w, l)| if *l { least } else { w * scale }).collect();
        let before = low.clone();
        for (low, w) in low.iter_mut().zip(&next) {
            *low |= *w < least;
        }
        if low == before || low.iter().all(|l| *l) {
            return if before == low { next } else { vec![1.0 / weights.len() as f64; weights.len()] };
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct GBlend {
    config: GBlendConfig,
    /// Of the modalities in their order, then of the fusion.
    weights: Vec<f64>,
    scores: Vec<f64>,
}

impl GBlend {
    fn estimate(&self, cx: &EpochCx<'_>) -> Result<Vec<f64>> {
        let (Some((_, held)), Some(_)) = (cx.batches, cx.train) else {
            bail!("G-Blend measures on training rows and on rows set aside: the trainer must pass both");
        };
        let start = cx.params.snapshot()?;
        let measure = || -> Result<Vec<f64>> {
            let before = self.losses(cx, held)?;
            let mut after = Vec::new();
            for fusion in [false, true] {
                self.train_alone(cx, fusion)?;
                let all = self.losses(cx, held)?;
                // The fusion stands last.
                let own = if fusion {
                    self.weights.len() - 1..self.weights.len()
                } else {
                    0..self.weights.len() - 1
                };
                after.extend_from_slice(&all[own]);
                cx.params.restore(&start)?;
            }
            let raw = before.iter().zip(&after).map(|(before, after)| {
                let [train_before, held_before] = *before;
                let [train_after, held_after] = *after;
                let measured = Measured { train_before, held_before, train_after, held_after };
                measured.raw(self.config.estimator, self.config.floor)
            });
            Ok(raw.collect())
        };
        let raw = measure();
        cx.params.restore(&start)?;
        Ok(raised(&normalised(&raw?), self.config.least))
    }

    /// Some epochs of plain gradient descent on the heads' losses, or on the fusion's.
    fn train_alone(&self, cx: &EpochCx<'_>, fusion: bool) -> Result<()> {
        let rate = self.config.rate.unwrap_or(cx.learning_rate);
        let key = cx.rng.stream("g-blend").sample(u64::from(fusion));
        let mut step = 0;
        for _ in 0..self.config.estimate_epochs.unwrap_or(self.config.super_epoch) {
            for n in 0..cx.train.map_or(0, crate::TrainBatches::count) {
                let Some(batch) = cx.train.map(|t| t.get(n)).transpose()? else { continue };
                let fwd = cx.model.forward(&batch, Mode::Train(key.step(step)))?;
                step += 1;
                let loss = if fusion {
                    cross_entropy(&fwd.fused, &batch.labels, None)?
                } else {
                    let heads = heads_of(&fwd)?;
                    let losses =
                        heads.try_map(|m, u| cross_entropy(u, &batch.labels, batch.weights(m).as_deref()))?;
                    sum(losses.values())?
                };
                let gradients = Gradients::collect(cx.params, loss.backward()?);
                for id in cx.params.ids() {
                    if let Some(g) = gradients.get(id)? {
                        let var = cx.params.get(id).var();
                        var.set(&(var.as_tensor().detach() - g.affine(rate, 0.0)?)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// T and V of every predictor, the fusion last.
    fn losses(&self, cx: &EpochCx<'_>, held: &Batch) -> Result<Vec<[f64; 2]>> {
        let mut train = Mean::new(self.weights.len());
        for n in 0..cx.train.map_or(0, crate::TrainBatches::count) {
            if let Some(batch) = cx.train.map(|t| t.get(n)).transpose()? {
                train.push(cx, &batch)?;
            }
        }
        // Held-out rows lie in one batch; in pieces they take no more memory than training does.
        let mut outer = Mean::new(self.weights.len());
        let rows: Vec<u32> = (0..held.rows() as u32).collect();
        for piece in rows.chunks(256) {
            outer.push(cx, &held.select(piece)?)?;
        }
        Ok(train.means().into_iter().zip(outer.means()).map(|(t, v)| [t, v]).collect())
    }
}

/// Mean losses over several batches.
struct Mean {
    totals: Vec<f64>,
    rows: Vec<f64>,
}

impl Mean {
    fn new(count: usize) -> Self {
        Self { totals: vec![0.0; count], rows: vec![0.0; count] }
    }

    fn push(&mut self, cx: &EpochCx<'_>, batch: &Batch) -> Result<()> {
        let fwd = cx.model.forward(batch, Mode::Eval)?;
        for (m, u) in heads_of(&fwd)?.iter() {
            let weights = batch.weights(m);
            let rows = weights.as_ref().map_or(batch.rows() as f64, |w| w.iter().sum());
            if rows > 0.0 {
                let loss = to_host(&cross_entropy(u, &batch.labels, weights.as_deref())?)?[0];
                self.totals[m.index()] += rows * loss;
                self.rows[m.index()] += rows;
            }
        }
        let last = self.totals.len() - 1;
        self.totals[last] +=
            batch.rows() as f64 * to_host(&cross_entropy(&fwd.fused, &batch.labels, None)?)?[0];
        self.rows[last] += batch.rows() as f64;
        Ok(())
    }

    /// NaN where there was no row.
    fn means(&self) -> Vec<f64> {
        self.totals.iter().zip(&self.rows).map(|(total, rows)| total / rows).collect()
    }
}

impl Balancer for GBlend {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, held_out: self.config.held_out, ..Needs::default() }
    }

    fn task_weight(&self) -> f64 {
        self.weights.last().copied().unwrap_or(1.0)
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        let due = match self.config.schedule {
            Schedule::Online => cx.epoch.is_multiple_of(self.config.super_epoch),
            Schedule::Offline => cx.epoch == 0,
        };
        if due {
            self.weights = self.estimate(cx)?;
        }
        Ok(())
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let heads = heads_of(fwd)?;
        self.scores = score::true_class(heads, cx.batch)?.into_values();
        let losses = heads.try_map(|m, u| {
            let loss = cross_entropy(u, &cx.batch.labels, cx.batch.weights(m).as_deref())?;
            weighted(loss, self.weights[m.index()])
        })?;
        sum(losses.values()).map(Some)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        let modalities = self.weights.len() - 1;
        for (k, w) in self.weights.iter().enumerate() {
            sink("loss_weight", (k < modalities).then_some(k), *w);
        }
    }

    fn state(&self) -> State {
        State::from([("weights".to_owned(), self.weights.clone())])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.weights = saved(state, "G-Blend", "weights", self.weights.len())?.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_at_the_edges() {
        assert_eq!(normalised(&[1.0, 3.0]), [0.25, 0.75]);
        assert_eq!(normalised(&[1.0, -3.0, f64::NAN]), [1.0, 0.0, 0.0]);
        assert_eq!(normalised(&[-1.0, 0.0]), [0.5, 0.5]);
        assert_eq!(raised(&[0.25, 0.75], 0.0), [0.25, 0.75]);
        assert_eq!(raised(&[1.0, 0.0], 0.5), [0.5, 0.5]);
        let w = raised(&[0.7, 0.26, 0.04, 0.0], 0.25);
        assert!(w.iter().all(|w| (w - 0.25).abs() < 1e-15), "{w:?}");
        let still = Measured { train_before: 1.0, held_before: 1.0, train_after: 0.9, held_after: 0.9 };
        assert!((still.raw(Estimator::Paper, 0.01) - 0.1 / 1e-4).abs() < 1e-9);
    }
}
