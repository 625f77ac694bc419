//! Valuation: rows in which a modality contributes little are seen again with that modality alone.
//!
//! ```text
//! v(S)    = |S| if the modalities S of a row decide it rightly, else 0;   v(∅) = 0
//! φ_{i,m} = Shapley value of m in row i;   M = 2: φ_1 = (v(1) + v(1,2) - v(2)) / 2
//! n_{i,m} = max(0, round(2 (1 - φ_{i,m})))                                         (sample)
//! p_m     = min(1, 2/3 α (max_j φ̄_j - φ̄_m)),   φ̄: mean over rows                    (modality)
//! ```
//!
//! At the start of an epoch φ is computed for every training row in evaluation mode. Then each row of a batch is
//! followed by n_{i,m} copies of itself in which only the features of m are left (`sample`), or by one such copy with
//! probability p_m (`modality`); the loss is the mean over rows and copies. Right means that the fused logits with
//! all other features zero and marked missing have their largest at the label. Shapes: features (B, …) in, (B +
//! copies, …) out.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `level` | `sample` | | `modality` |
//! | `alpha` α | 1 | > 0 | how often the weak modality is seen alone; `modality` only |
//! | `start_epoch`, `end_epoch` | 5, none | | when it acts |
//!
//! Differences. The released code enlarges the training set, so copies lie in other batches than their rows and an
//! epoch takes more steps; here they lie in the same batch, whose encoders run once. It computes φ after each epoch,
//! which is the same parameters. At the modality level it averages φ over a random fifth of the rows and draws with
//! replacement. Both are released for M = 2; here any M up to 6 (2^M fusions of every training row per epoch). A
//! modality that a row lacks is no player and gets no copies. Dropped features are zeros, not missing ones, as with
//! OPM. φ says what the fused logits do: it cannot be composed with a method that decides otherwise.
//!
//! Source: Wei et al., "Enhancing Multimodal Cooperation via Sample-level Modality Valuation", CVPR 2024, arXiv
//! 2309.06255; released code GeWu-Lab/Valuate-and-Enhance-Multimodal-Cooperation @077648e.

use crate::{Balancer, Edited, EpochCx, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Batch, Checked, ConfigError, Features, Mode, Multimodal, Presence};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MOST: usize = 6;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Copies of a row by its own contributions.
    #[default]
    Sample,
    /// Copies at random by the mean contributions.
    Modality,
}

/// Settings of [`Valuation`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValuationConfig {
    /// What is counted.
    pub level: Level,
    /// α, how often the weak modality is seen alone.
    pub alpha: f64,
    /// First epoch with copies.
    pub start_epoch: usize,
    /// First epoch without copies again.
    pub end_epoch: Option<usize>,
}

impl Default for ValuationConfig {
    fn default() -> Self {
        Self { level: Level::Sample, alpha: 1.0, start_epoch: 5, end_epoch: None }
    }
}

impl ValuationConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Valuation> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, f64::MAX)?;
        if modalities > MOST {
            let rule =
                format!("takes 2^M fusions per row: at most {MOST} modalities, the model has {modalities}");
            return Err(ConfigError::new("kind", "\"valuation\"", rule));
        }
        Ok(Valuation {
            config: self.clone(),
            contributions: BTreeMap::new(),
            probabilities: Vec::new(),
            means: Vec::new(),
        })
    }
}

/// The Shapley values of a row: `right[S]` says whether the coalition with the bits S decides it rightly, `players`
/// are the bits of the modalities that the row has. Others get NaN.
///
/// ```
/// // Right with both and with the first alone.
/// let phi = mm_balance::valuation::contributions(&[false, true, false, true], 0b11, 2);
/// assert_eq!(phi, [1.5, 0.5]);
/// ```
pub fn contributions(right: &[bool], players: usize, modalities: usize) -> Vec<f64> {
    let value =
        |s: usize| if s != 0 && right.get(s) == Some(&true) { f64::from(s.count_ones()) } else { 0.0 };
    let count = players.count_ones() as usize;
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    (0..modalities)
        .map(|m| {
            if players >> m & 1 == 0 {
                return f64::NAN;
            }
            let others = (0..1usize << modalities).filter(|s| s & !players == 0 && s >> m & 1 == 0);
            others
                .map(|s| {
                    let size = s.count_ones() as usize;
                    let weight = factorial(size) * factorial(count - size - 1) / factorial(count);
                    weight * (value(s | 1 << m) - value(s))
                })
                .sum()
        })
        .collect()
}

/// How many copies a contribution asks for; none for a modality that is not there (NaN).
pub fn copies(contribution: f64) -> usize {
    let n = (2.0 * (1.0 - contribution)).round();
    if n > 0.0 { n as usize } else { 0 }
}

/// p_m from the mean contributions; NaN means a modality that no row has.
pub fn probabilities(means: &[f64], alpha: f64) -> Vec<f64> {
    let best = means.iter().copied().fold(f64::NEG_INFINITY, f64::max); // ignores NaN
    means
        .iter()
        .map(|phi| if phi.is_nan() { 0.0 } else { (alpha * (best - phi) * 2.0 / 3.0).min(1.0) })
        .collect()
}

/// See the [module](self).
#[derive(Debug)]
pub struct Valuation {
    config: ValuationConfig,
    /// φ of each row, by its id.
    contributions: BTreeMap<usize, Vec<f64>>,
    /// p_m.
    probabilities: Vec<f64>,
    /// φ̄_m.
    means: Vec<f64>,
}

impl Valuation {
    fn acts(&self, epoch: usize) -> bool {
        (self.config.start_epoch..self.config.end_epoch.unwrap_or(usize::MAX)).contains(&epoch)
    }
}

/// φ of every row of a batch.
fn evaluate(model: &dyn Multimodal, batch: &Batch) -> Result<Vec<Vec<f64>>> {
    let count = model.modalities().len();
    let z = model.encode_all(batch, Mode::Eval)?.map(|_, h| h.detach());
    let mut right = vec![vec![false; 1 << count]; batch.rows()];
    for s in 1..1usize << count {
        let member = |m: mm_core::Modality| s >> m.index() & 1 == 1;
        let alone = z.try_map(|m, h| if member(m) { Ok(h.clone()) } else { h.zeros_like() })?;
        let present = batch.present.try_map(|m, p| {
            if member(m) {
                return Ok(p.clone());
            }
            Presence::new(vec![false; batch.rows()], z[m].dtype(), z[m].device()).map(Some)
        })?;
        let best = model.fuse(alone, &present, Mode::Eval)?.fused.argmax(1)?.to_vec1::<u32>()?;
        for ((right, best), label) in right.iter_mut().zip(best).zip(batch.labels.iter()) {
            right[s] = best == *label;
        }
    }
    let players = |row: usize| {
        let has = batch.present.iter().filter(|(_, p)| p.as_ref().is_none_or(|p| p.rows()[row]));
        has.map(|(m, _)| 1usize << m.index()).sum()
    };
    Ok(right.iter().enumerate().map(|(row, right)| contributions(right, players(row), count)).collect())
}

impl Balancer for Valuation {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.contributions.clear();
        self.probabilities.clear();
        self.means.clear();
        if !self.acts(cx.epoch) {
            return Ok(());
        }
        let Some(rows) = cx.train else {
            bail!("valuation looks at all training rows: the trainer must pass them in `EpochCx::training`")
        };
        for n in 0..rows.count() {
            let batch = rows.get(n)?;
            for (id, phi) in batch.ids.iter().zip(evaluate(cx.model, &batch)?) {
                self.contributions.insert(*id, phi);
            }
        }
        let mean = |m: usize| {
            let known = || self.contributions.values().map(|phi| phi[m]).filter(|phi| !phi.is_nan());
            known().sum::<f64>() / known().count() as f64
        };
        self.means = (0..cx.model.modalities().len()).map(mean).collect();
        self.probabilities = probabilities(&self.means, self.config.alpha);
        if self.config.level == Level::Modality {
            self.contributions.clear();
        }
        Ok(())
    }

    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        if self.probabilities.is_empty() || !self.acts(cx.epoch) {
            return Ok(Edited::all(z));
        }
        let rows = cx.batch.rows();
        let has = |m: usize, row: usize| cx.batch.present.values()[m].as_ref().is_none_or(|p| p.rows()[row]);
        let mut draws = cx.rng.stream("valuation").draws();
        // Which row, and which modality is left of it.
        let mut extra: Vec<(u32, usize)> = Vec::new();
        for row in 0..rows {
            let phi = self.contributions.get(&cx.batch.ids[row]);
            for (m, p) in self.probabilities.iter().enumerate() {
                let count = match self.config.level {
                    Level::Sample => phi.and_then(|phi| phi.get(m)).map_or(0, |phi| copies(*phi)),
                    Level::Modality => usize::from(draws.uniform() < *p),
                };
                let alone = (0..z.len()).all(|j| j == m || !has(j, row));
                if has(m, row) && !alone {
                    extra.extend(std::iter::repeat_n((row as u32, m), count));
                }
            }
        }
        if extra.is_empty() {
            return Ok(Edited::all(z));
        }
        let keep: Vec<u32> = (0..rows as u32).chain(extra.iter().map(|(row, _)| *row)).collect();
        let features = z.try_map(|m, h| {
            let index = Tensor::new(keep.as_slice(), h.device())?;
            let mut mask = vec![1f32; rows];
            mask.extend(extra.iter().map(|(_, left)| f32::from(u8::from(*left == m.index()))));
            let mut shape = vec![1; h.rank()];
            shape[0] = keep.len();
            h.index_select(&index, 0)?
                .broadcast_mul(&Tensor::from_vec(mask, shape, h.device())?.to_dtype(h.dtype())?)
        })?;
        Ok(Edited { features, keep: Some(keep) })
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, phi) in self.means.iter().enumerate().filter(|(_, phi)| phi.is_finite()) {
            sink("contribution", Some(m), *phi);
        }
    }

    fn state(&self) -> State {
        State::from([
            ("ids".into(), self.contributions.keys().map(|&id| id as f64).collect()),
            ("contributions".into(), self.contributions.values().flatten().copied().map(marked).collect()),
            ("probabilities".into(), self.probabilities.clone()),
            ("means".into(), self.means.iter().copied().map(marked).collect()),
        ])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let get = |name: &str| match state.get(name) {
            Some(values) => Ok(values.clone()),
            None => bail!("the checkpoint lacks the valuation's {name}"),
        };
        self.probabilities = get("probabilities")?;
        self.means = get("means")?.into_iter().map(unmarked).collect();
        let (ids, values) = (get("ids")?, get("contributions")?);
        let count = self.probabilities.len().max(1);
        if values.len() != ids.len() * count {
            bail!(
                "the checkpoint has {} contributions for {} rows of {count} modalities",
                values.len(),
                ids.len()
            );
        }
        let phi = values.chunks(count).map(|phi| phi.iter().copied().map(unmarked).collect());
        self.contributions = ids.iter().map(|&id| id as usize).zip(phi).collect();
        Ok(())
    }
}

/// Checkpoints hold no NaN: what is not there is far below any contribution.
const ABSENT: f64 = -1e9;

fn marked(phi: f64) -> f64 {
    if phi.is_nan() { ABSENT } else { phi }
}

fn unmarked(phi: f64) -> f64 {
    if phi == ABSENT { f64::NAN } else { phi }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The released rule for two modalities, for every outcome.
    #[test]
    fn two_modalities_as_released() {
        for bits in 0..8usize {
            let (a, v, both) = (bits & 1 == 1, bits >> 1 & 1 == 1, bits >> 2 & 1 == 1);
            let [va, vv] = [a, v].map(|right| f64::from(u8::from(right)));
            let all = if both { 2.0 } else { 0.0 };
            let expected = [(va + all - vv) / 2.0, (vv + all - va) / 2.0];
            let found = contributions(&[false, a, v, both], 0b11, 2);
            assert_eq!(found, expected);
            for phi in found {
                let released = match phi {
                    p if p > 0.9 => 0,
                    p if p > 0.4 => 1,
                    p if p > -0.1 => 2,
                    _ => 3,
                };
                assert_eq!(copies(phi), released, "{phi}");
            }
        }
        assert_eq!(copies(f64::NAN), 0);
    }

    #[test]
    fn contributions_share_out_what_all_are_worth() {
        for bits in 0..256usize {
            let right: Vec<bool> = (0..8).map(|s| bits >> s & 1 == 1).collect();
            let total: f64 = contributions(&right, 0b111, 3).iter().sum();
            assert!((total - if right[7] { 3.0 } else { 0.0 }).abs() < 1e-12);
            let two = contributions(&right, 0b101, 3);
            assert!(two[1].is_nan());
            assert!((two[0] + two[2] - if right[5] { 2.0 } else { 0.0 }).abs() < 1e-12);
        }
        assert_eq!(probabilities(&[1.0, 0.4, f64::NAN], 1.0)[0], 0.0);
        assert!((probabilities(&[1.0, 0.4, f64::NAN], 1.0)[1] - 0.4).abs() < 1e-12);
    }
}
