//! InfoReg: while a modality that is ahead still takes in information fast, its encoder is held back.
//!
//! ```text
//! L      = CE(z, y) + Σ_m CE(u^m, y)
//! s_m    = mean_i softmax(u^m)_i[y_i],   d_m = s_m - mean_{j≠m} s_j          above 0 where m is ahead
//! I_m(e) = Σ_p 1/|p| Σ_steps ‖∂L/∂p‖²                 trace of the Fisher information of epoch e, over the weights p of
//!                                                      encoder m (tensors of rank 2 and more), each by its mean entry
//! k_m(e) = (S(e) - S(e-1)) / S(e),   S(e) = I_m(e-10) + … + I_m(e-1);   k_m(0) = 1
//! β_m    = β exp(tanh(d_m))   if d_m > 0 and k_m > K,   else 0
//! ∂L/∂θ_m ← ∂L/∂θ_m + β_m (θ_m - θ_m*)                θ*: the parameters at the start of the epoch
//! ```
//!
//! k_m > K marks the prime learning window, early in training, in which the information of an encoder still grows by
//! more than the share K from one window of ten epochs to the next. Epochs that were not there count as 0.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `strength` β | 0.95 | > 0 | |
//! | `threshold` K | 0.04 | >= 0 | end of the prime learning window |
//! | `window` | 10 | >= 1 | epochs that are added up |
//! | `variant` | `paper` | | `released`: below |
//!
//! `released` does what the released `main.py` does: d is the difference of the *sums* of the scores over the batch, so
//! that tanh saturates, and only the first modality is ever held back, since the second branch repeats the first's
//! condition. It exists for M = 2.
//!
//! State: the traces so far, and the one under way; θ* is kept in buffers `balance.info-reg.…`.
//!
//! Differences. The paper's equations were not to be had: the formulas are the released code's, and `paper` takes out
//! of them what its text speaks against - it holds back the modalities that have enough information, whichever they
//! are, by the gap of their performance. That reading, and that a modality is compared with the mean of the others for
//! M > 2, is ours. The released code also counts the regulation itself as Fisher information; here the gradient of L
//! alone counts.
//!
//! Source: Huang et al., "Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition", CVPR 2025,
//! arXiv 2503.18595; released code GeWu-Lab/InfoReg_CVPR2025 @41d887f.

use crate::balancer::saved;
use crate::copies::{self, Copied};
use crate::multi_loss::heads_of;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, EpochCx, EpochReport, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::gradients::square_sum;
use mm_core::{Checked, ConfigError, Forward, Gradients};
use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "info-reg";

/// Who is held back, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Every modality that is ahead, by mean scores.
    #[default]
    Paper,
    /// Two modalities; the first only, by sums of scores.
    Released,
}

/// Settings of [`InfoReg`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfoRegConfig {
    /// β.
    pub strength: f64,
    /// K, end of the prime learning window.
    pub threshold: f64,
    /// Epochs that are added up.
    pub window: usize,
    /// Who is held back.
    pub variant: Variant,
}

impl Default for InfoRegConfig {
    fn default() -> Self {
        Self { strength: 0.95, threshold: 0.04, window: 10, variant: Variant::Paper }
    }
}

impl InfoRegConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<InfoReg> {
        ConfigError::check_range("strength", self.strength, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("threshold", self.threshold, 0.0, f64::MAX)?;
        ConfigError::check_range("window", self.window as f64, 1.0, 1e6)?;
        if self.variant == Variant::Released && modalities != 2 {
            let rule =
                format!("this variant exists for 2 modalities only, the model has {modalities}; use paper");
            return Err(ConfigError::new("variant", "\"released\"", rule));
        }
        Ok(InfoReg {
            config: self.clone(),
            past: vec![Vec::new(); modalities],
            running: vec![0.0; modalities],
            scores: Vec::new(),
            rows: 0,
            growth: Vec::new(),
            coefficients: Vec::new(),
        })
    }
}

/// k_m from the traces of the epochs before this one, the latest last.
///
/// ```
/// assert_eq!(mm_balance::info_reg::growth(&[], 10), 1.0);
/// assert_eq!(mm_balance::info_reg::growth(&[3.0, 1.0], 10), 0.25);
/// assert_eq!(mm_balance::info_reg::growth(&[4.0, 3.0, 1.0], 2), -0.75);
/// ```
pub fn growth(traces: &[f64], window: usize) -> f64 {
    let Some((last, before)) = traces.split_last() else { return 1.0 };
    let now: f64 = traces[traces.len().saturating_sub(window)..].iter().sum();
    // What the window takes in at its end, less what it loses at its start.
    let lost = if traces.len() > window { before[traces.len() - 1 - window] } else { 0.0 };
    let growth = (last - lost) / now;
    if growth.is_nan() { 0.0 } else { growth }
}

/// d_m from the scores; 0 where there is nothing to compare.
pub fn gaps(scores: &[f64]) -> Vec<f64> {
    (0..scores.len())
        .map(|m| {
            let others = || (0..scores.len()).filter(|&j| j != m && !scores[j].is_nan()).map(|j| scores[j]);
            let gap = scores[m] - others().sum::<f64>() / others().count() as f64;
            if gap.is_nan() { 0.0 } else { gap }
        })
        .collect()
}

/// β_m from d_m and k_m.
pub fn coefficient(gap: f64, growth: f64, strength: f64, threshold: f64) -> f64 {
    if gap > 0.0 && growth > threshold { strength * gap.tanh().exp() } else { 0.0 }
}

/// See the [module](self).
#[derive(Debug)]
pub struct InfoReg {
    config: InfoRegConfig,
    /// Traces of finished epochs, as far back as they count.
    past: Vec<Vec<f64>>,
    /// The trace of the epoch under way.
    running: Vec<f64>,
    scores: Vec<f64>,
    rows: usize,
    growth: Vec<f64>,
    coefficients: Vec<f64>,
}

impl InfoReg {
    fn regulate(&mut self) {
        let config = &self.config;
        self.growth = self.past.iter().map(|traces| growth(traces, config.window)).collect();
        let scores: Vec<f64> = match config.variant {
            Variant::Paper => self.scores.clone(),
            Variant::Released => self.scores.iter().map(|s| s * self.rows as f64).collect(),
        };
        let held = gaps(&scores).into_iter().zip(&self.growth).enumerate().map(|(m, (gap, growth))| {
            if config.variant == Variant::Released && m > 0 {
                return 0.0;
            }
            coefficient(gap, *growth, config.strength, config.threshold)
        });
        self.coefficients = held.collect();
    }
}

impl Balancer for InfoReg {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, ..Needs::default() }
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        for Copied { id, copy, .. } in copies::find(cx.params, cx.model.modalities(), NAME)? {
            copy.set(&cx.params.get(id).var().as_tensor().copy()?)?;
        }
        self.running.fill(0.0);
        Ok(())
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (loss, scores) = losses_and_scores(heads_of(fwd)?, cx.batch)?;
        self.scores = scores.into_values();
        self.rows = cx.batch.rows();
        Ok(Some(loss))
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        self.regulate();
        for Copied { id, of, copy } in copies::find(cx.params, cx.model.modalities(), NAME)? {
            let var = cx.params.get(id).var();
            if let Some((gradient, factor)) = g.raw(id)
                && var.rank() >= 2
            {
                self.running[of.index()] +=
                    factor * factor * square_sum(gradient)? / gradient.elem_count().max(1) as f64;
            }
            let beta = self.coefficients[of.index()];
            if beta != 0.0 {
                let away = (var.as_tensor().detach() - copy.as_tensor().detach())?;
                g.add(id, &away.affine(beta, 0.0)?)?;
            }
        }
        Ok(())
    }

    fn epoch_end(&mut self, _: &EpochCx<'_>, _: &EpochReport) -> Result<()> {
        for (past, trace) in self.past.iter_mut().zip(&mut self.running) {
            past.push(std::mem::take(trace));
            let extra = past.len().saturating_sub(self.config.window + 1);
            past.drain(..extra);
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, k) in self.growth.iter().enumerate() {
            sink("information_growth", Some(m), *k);
        }
        for (m, beta) in self.coefficients.iter().enumerate() {
            sink("regulation", Some(m), *beta);
        }
    }

    fn state(&self) -> State {
        let mut state = State::from([("running".to_owned(), self.running.clone())]);
        state.extend(self.past.iter().enumerate().map(|(m, past)| (format!("past.{m}"), past.clone())));
        state
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.running = saved(state, "InfoReg", "running", self.running.len())?.to_vec();
        for (m, past) in self.past.iter_mut().enumerate() {
            match state.get(&format!("past.{m}")) {
                Some(saved) => past.clone_from(saved),
                None => {
                    bail!("InfoReg: the checkpoint holds no traces of modality {m}; start the run afresh")
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_closes_when_information_stops_growing() {
        let steady = [2.0; 12];
        assert_eq!(growth(&steady[..1], 10), 1.0);
        assert_eq!(growth(&steady[..4], 10), 0.25);
        assert_eq!(growth(&steady[..10], 10), 0.1);
        assert_eq!(growth(&steady[..11], 10), 0.0);
        assert_eq!(growth(&[0.0, 0.0], 10), 0.0);
    }

    #[test]
    fn only_who_is_ahead_is_held_back() {
        assert_eq!(gaps(&[0.75, 0.25, 0.5]), [0.375, -0.375, 0.0]);
        assert_eq!(gaps(&[0.5, f64::NAN]), [0.0, 0.0]);
        assert_eq!(coefficient(0.0, 1.0, 0.95, 0.04), 0.0);
        assert_eq!(coefficient(0.5, 0.04, 0.95, 0.04), 0.0);
        assert_eq!(coefficient(0.5, 1.0, 2.0, 0.04), 2.0 * 0.5f64.tanh().exp());
    }
}
