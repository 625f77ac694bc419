//! Greedy: while a branch learns mostly through what the others tell it, it is trained from its own modality alone.
//!
//! ```text
//! μ(θ; t)  = ‖∂L_t/∂θ‖² / ‖θ‖²                     speed at which a group of parameters learns in step t
//! s_m      = log10( Σ_t μ(θ'_m; t) / Σ_t μ(θ_m; t) )      conditional learning speed, over all regular steps so far
//!            θ_m: encoder and output layer of m;  θ'_m: squeeze, and excite of m
//! c        = argmax_m s_m   if max_m s_m - min_m s_m > ε,   else none
//! ```
//!
//! s_m is large where branch m changes more by its gate - by what the other modalities say - than by its own
//! parameters: the model is then greedy for the others, and m is left behind. For the next `window` steps, the
//! re-balancing steps, the gate of branch c is held at its mean, so that it learns from its own modality; one regular
//! step follows, which measures again. Speeds are measured from the first step on, gates are held from `start_epoch`
//! on.
//!
//! Needs the fusion `mmtm`, whose buffers `fusion.gate.<modality>.held` this method sets. Shapes: scalars per modality.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `tolerance` ε | 0.01 | >= 0 | difference of speeds that is left alone |
//! | `window` | 5 | >= 1 | re-balancing steps in a row |
//! | `start_epoch` | 1 | | first epoch with re-balancing steps; the second, as released |
//!
//! State: both sums of every modality, whose gate is held, and for how many steps more; the flags are buffers.
//!
//! Differences. The released loss adds up the cross-entropies of the branches; here it is that of their mean, which is
//! what the fusion yields - compose with `multi-loss` for a loss per modality. The released network has gates behind
//! three stages of its encoders, this fusion one behind the last. Released for M = 2, where c is the modality with the
//! larger s; largest and smallest of M are our extension. A step whose batch lacks a modality adds nothing to its sums,
//! and a modality whose sums are 0 takes no part.
//!
//! Source: Wu et al., "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural
//! Networks", ICML 2022, arXiv 2202.05306; released code nyukat/greedy_multimodal_learning @cf28c4c, class
//! `Bias_Mitigation_Strong`.

use crate::balancer::saved;
use crate::{Balancer, Needs, State, StepCx};
use candle_core::{Result, Tensor, Var, bail};
use mm_core::gradients::square_sum;
use mm_core::{Checked, ConfigError, Forward, Gradients, Modal, Modalities, ParamStore};
use serde::{Deserialize, Serialize};

/// Settings of [`Greedy`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GreedyConfig {
    /// ε, difference of speeds that is left alone.
    pub tolerance: f64,
    /// Re-balancing steps in a row.
    pub window: usize,
    /// First epoch with re-balancing steps.
    pub start_epoch: usize,
}

impl Default for GreedyConfig {
    fn default() -> Self {
        Self { tolerance: 0.01, window: 5, start_epoch: 1 }
    }
}

impl GreedyConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Greedy> {
        ConfigError::check_range("tolerance", self.tolerance, 0.0, f64::MAX)?;
        ConfigError::check_range("window", self.window as f64, 1.0, 1e9)?;
        Ok(Greedy {
            config: self.clone(),
            own: vec![0.0; modalities],
            others: vec![0.0; modalities],
            held: None,
            left: 0,
        })
    }
}

/// s from the two sums; not finite where there is nothing to compare.
pub fn speed(others: f64, own: f64) -> f64 {
    (others / own).log10()
}

/// c, the modality whose gate is to be held; speeds that are not finite take no part, and a tie goes to the first.
///
/// ```
/// use mm_balance::greedy::choose;
/// assert_eq!(choose(&[-1.0, -1.5], 0.25), Some(0));
/// assert_eq!(choose(&[-1.0, -1.25], 0.25), None);
/// assert_eq!(choose(&[-1.0, f64::INFINITY, -0.5], 0.25), Some(2));
/// ```
pub fn choose(speeds: &[f64], tolerance: f64) -> Option<usize> {
    let known = || speeds.iter().enumerate().filter(|(_, s)| s.is_finite());
    let (first, largest) = known().fold(None, |best: Option<(usize, f64)>, (m, s)| match best {
        Some((_, largest)) if *s <= largest => best,
        _ => Some((m, *s)),
    })?;
    let smallest = known().map(|(_, s)| *s).fold(f64::INFINITY, f64::min);
    (largest - smallest > tolerance).then_some(first)
}

/// See the [module](self).
#[derive(Debug)]
pub struct Greedy {
    config: GreedyConfig,
    /// Σ μ(θ_m).
    own: Vec<f64>,
    /// Σ μ(θ'_m).
    others: Vec<f64>,
    /// Whose gate is held, and for how many steps more.
    held: Option<usize>,
    left: usize,
}

impl Greedy {
    fn measure(&mut self, cx: &StepCx<'_>, g: &Gradients) -> Result<()> {
        let names = cx.model.modalities();
        for m in names.iter() {
            if cx.batch.present[m].as_ref().is_some_and(|p| p.count() == 0) {
                continue;
            }
            let name = names.name(m);
            let own = [format!("encoder.{name}"), format!("fusion.out.{name}")];
            let others = ["fusion.squeeze".to_owned(), format!("fusion.excite.{name}")];
            for (sum, prefixes) in [(&mut self.own[m.index()], own), (&mut self.others[m.index()], others)] {
                let (mut gradients, mut weights) = (0.0, 0.0);
                for prefix in &prefixes {
                    gradients += g.norm(cx.params.group(prefix))?.powi(2);
                    for id in cx.params.group(prefix) {
                        weights += square_sum(cx.params.get(id).var().as_tensor())?;
                    }
                }
                // Nothing that could learn, such as a frozen encoder, has no speed.
                if weights > 0.0 {
                    *sum += gradients / weights;
                }
            }
        }
        Ok(())
    }

    fn speeds(&self) -> Vec<f64> {
        self.others.iter().zip(&self.own).map(|(others, own)| speed(*others, *own)).collect()
    }
}

/// The flags of the fusion, one per modality.
fn flags(params: &ParamStore, names: &Modalities) -> Result<Modal<Var>> {
    Modal::try_from_fn(names.len(), |m| {
        let name = format!("fusion.gate.{}.held", names.name(m));
        match params.buffers().iter().find(|b| b.name() == name) {
            Some(buffer) => Ok(buffer.var().clone()),
            None => bail!(
                "greedy holds gates between modalities, and there is no `{name}`: use the fusion `mmtm`"
            ),
        }
    })
}

impl Balancer for Greedy {
    fn needs(&self) -> Needs {
        Needs { gates: true, modalities: 2, ..Needs::default() }
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        let flags = flags(cx.params, cx.model.modalities())?;
        let before = self.held;
        if self.held.is_some() {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.held = None;
            }
        } else {
            self.measure(cx, g)?;
            if cx.epoch >= self.config.start_epoch {
                self.held = choose(&self.speeds(), self.config.tolerance);
                self.left = self.config.window;
            }
        }
        if self.held != before {
            for (m, flag) in flags.iter() {
                let held = f64::from(u8::from(self.held == Some(m.index())));
                flag.set(&Tensor::full(held, flag.shape(), flag.device())?.to_dtype(flag.dtype())?)?;
            }
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, speed) in self.speeds().into_iter().enumerate().filter(|(_, s)| s.is_finite()) {
            sink("conditional_speed", Some(m), speed);
        }
        for m in 0..self.own.len() {
            sink("held_next", Some(m), f64::from(u8::from(self.held == Some(m))));
        }
    }

    fn state(&self) -> State {
        let held = self.held.map_or(-1.0, |m| m as f64);
        State::from([
            ("own".to_owned(), self.own.clone()),
            ("others".to_owned(), self.others.clone()),
            ("held".to_owned(), vec![held, self.left as f64]),
        ])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let count = self.own.len();
        self.own = saved(state, "greedy", "own", count)?.to_vec();
        self.others = saved(state, "greedy", "others", count)?.to_vec();
        let held = saved(state, "greedy", "held", 2)?;
        self.held = (held[0] >= 0.0).then_some(held[0] as usize);
        self.left = held[1] as usize;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_at_the_edges() {
        assert_eq!(speed(1.0, 100.0), -2.0);
        assert!(!speed(0.0, 0.0).is_finite() && !speed(0.0, 1.0).is_finite() && !speed(1.0, 0.0).is_finite());
        assert_eq!(choose(&[0.5, 0.5], 0.0), None);
        assert_eq!(choose(&[f64::NAN, 0.5], 0.0), None);
        assert_eq!(choose(&[], 0.0), None);
        assert_eq!(choose(&[0.0, 2.0, 2.0], 1.0), Some(1));
    }
}
