//! Modality dropout: in each row every modality is dropped with one constant probability, but never all of them.
//!
//! ```text
//! b_{i,m} ~ Bernoulli(1 - q)     a row that would lose all it has keeps one, each with the same chance
//! h_{i,m} ← b_{i,m} h_{i,m}
//! ```
//!
//! Features are dropped after the encoder, in training only; nothing is rescaled and no row leaves the batch.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `rate` q | 0.3 | [0, 1] | probability of dropping; ours |
//! | `start_epoch`, `end_epoch` | 0, none | | when it acts |
//!
//! Differences. There is no one paper and no reference code: the rate is a choice, and so are keeping one modality
//! and dropping features rather than inputs. OPM is the variant whose probability follows the lead of a modality and
//! that rescales. Dropped features are zeros, not missing ones, as with OPM.
//!
//! Source: Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition", TPAMI 2016, for the idea.

use crate::opm::drop_features;
use crate::{Balancer, Edited, Needs, StepCx, Windowed};
use candle_core::Result;
use mm_core::rng::Draws;
use mm_core::{Checked, ConfigError, Features, Modal};
use serde::{Deserialize, Serialize};

/// Settings of [`ModalityDropout`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModalityDropoutConfig {
    /// q, probability of dropping.
    pub rate: f64,
    /// First epoch with drops.
    pub start_epoch: usize,
    /// First epoch without drops again.
    pub end_epoch: Option<usize>,
}

impl Default for ModalityDropoutConfig {
    fn default() -> Self {
        Self { rate: 0.3, start_epoch: 0, end_epoch: None }
    }
}

impl ModalityDropoutConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Windowed<ModalityDropout>> {
        ConfigError::check_range("rate", self.rate, 0.0, 1.0)?;
        Ok(Windowed::new(
            ModalityDropout { rate: self.rate, dropped: Vec::new() },
            self.start_epoch,
            self.end_epoch,
        ))
    }
}

/// Which modalities each row keeps: flags per modality, then row. `present[m][row]` says what there is to keep; a row
/// without anything keeps all its zeros.
pub fn keep_masks(present: &[Vec<bool>], rate: f64, draws: &mut Draws) -> Vec<Vec<bool>> {
    let rows = present.first().map_or(0, Vec::len);
    let mut keep = vec![vec![true; rows]; present.len()];
    for row in 0..rows {
        for flags in &mut keep {
            flags[row] = draws.uniform() >= rate;
        }
        let here: Vec<usize> = (0..present.len()).filter(|&m| present[m][row]).collect();
        if here.is_empty() {
            for flags in &mut keep {
                flags[row] = true;
            }
        } else if here.iter().all(|&m| !keep[m][row]) {
            keep[here[draws.below(here.len())]][row] = true;
        }
    }
    keep
}

/// See the [module](self).
#[derive(Debug)]
pub struct ModalityDropout {
    rate: f64,
    dropped: Vec<f64>,
}

impl Balancer for ModalityDropout {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        let rows = cx.batch.rows();
        let present: Vec<Vec<bool>> = (cx.batch.present.values().iter())
            .map(|p| p.as_ref().map_or_else(|| vec![true; rows], |p| p.rows().to_vec()))
            .collect();
        let keep = keep_masks(&present, self.rate, &mut cx.rng.stream("modality-dropout").draws());
        self.dropped = (keep.iter().zip(&present))
            .map(|(keep, present)| {
                let lost = keep.iter().zip(present).filter(|(keep, here)| !**keep && **here).count();
                lost as f64 / present.iter().filter(|here| **here).count().max(1) as f64
            })
            .collect();
        drop_features(&z, &Modal::new(keep), &|_, _| true, 0.0)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, share) in self.dropped.iter().enumerate() {
            sink("dropped", Some(m), *share);
        }
    }
}
