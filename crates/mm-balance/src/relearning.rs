//! Diagnosing & Re-learning: now and then every encoder is drawn back to where it started, by how badly it generalises.
//!
//! ```text
//! X       features of encoder m, each column scaled to [-1, 1]
//! P(X)    = 1/N Σ_clusters max_c #{rows of class c in the cluster},   clusters: k-means with one for each class
//! w_m     = tanh(λ |P(X_train) - P(X_held)|)
//! θ_m     ← w_m θ_m⁰ + (1 - w_m) θ_m                all parameters of encoder m; θ⁰: where training started
//! ```
//!
//! so an encoder whose features separate the classes on rows that it was trained on, but not on others, is reset the
//! most: the one that dominated and was over-trained. Nothing is done during the steps. Features are those of
//! evaluation mode, (N, D_m), averaged over tokens; rows that lack the modality take no part. Running statistics stay
//! as they are.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `strength` λ | 3 | > 0 | |
//! | `every` | 20 | >= 1 | epochs between resets: at the start of epoch `every`, 2 `every`, … |
//! | `times` | 3 | >= 1 | resets at most |
//! | `held_out` | 50 | >= 2 | rows set aside for P(X_held) |
//!
//! State: the last w_m; θ⁰ is kept in buffers `balance.relearning.…`.
//!
//! Differences. The held-out rows are set aside from the training part and never trained on, while the validation part
//! chooses the epoch; the released code has a part of its own for them. With fewer rows than training has, P(X_held) is
//! too high by chance where there are many classes: give it several rows for each. The released run resets after the
//! epochs with numbers 20, 40, 60 counted from 0, one epoch later than here, and the optimiser keeps its moments, as
//! here. k-means starts ten times from seeded k-means++, of which the tightest counts; the released code leaves this to
//! its library.
//!
//! Source: Wei et al., "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024, arXiv 2407.09705;
//! released code GeWu-Lab/Diagnosing_Relearning_ECCV2024 @025085e.

use crate::copies::{self, Copied};
use crate::{Balancer, EpochCx, Needs, State};
use candle_core::{Result, bail};
use mm_core::model::{pooled, to_host};
use mm_core::{Batch, Checked, ConfigError, Modal, Mode, StepRng};
use mm_kernels::Draws;
use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "relearning";
const STARTS: u64 = 10;
const ROUNDS: usize = 300;
/// Rows of the held-out batch that are encoded at once.
const PIECE: usize = 256;

/// Settings of [`Relearning`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelearningConfig {
    /// λ.
    pub strength: f64,
    /// Epochs between resets.
    pub every: usize,
    /// Resets at most.
    pub times: usize,
    /// Training rows set aside.
    pub held_out: usize,
}

impl Default for RelearningConfig {
    fn default() -> Self {
        Self { strength: 3.0, every: 20, times: 3, held_out: 50 }
    }
}

impl RelearningConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Relearning> {
        ConfigError::check_range("strength", self.strength, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("every", self.every as f64, 1.0, 1e9)?;
        ConfigError::check_range("times", self.times as f64, 1.0, 1e9)?;
        ConfigError::check_range("held_out", self.held_out as f64, 2.0, 1e12)?;
        Ok(Relearning { config: self.clone(), resets: Vec::new() })
    }
}

/// Points (N, D), row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Points {
    values: Vec<f64>,
    dim: usize,
}

impl Points {
    /// `values` holds rows of `dim` numbers; what is left over at the end does not count.
    pub fn new(values: Vec<f64>, dim: usize) -> Self {
        Self { values, dim: dim.max(1) }
    }

    /// The numbers, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Number of points.
    pub fn count(&self) -> usize {
        self.values.len() / self.dim
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.dim..(i + 1) * self.dim]
    }

    /// Every column scaled to [-1, 1]; a column of one value becomes -1.
    #[must_use]
    pub fn scaled(&self) -> Self {
        let mut ends = vec![(f64::INFINITY, f64::NEG_INFINITY); self.dim];
        for i in 0..self.count() {
            for ((low, high), x) in ends.iter_mut().zip(self.row(i)) {
                (*low, *high) = (low.min(*x), high.max(*x));
            }
        }
        let scale = |(i, x): (usize, &f64)| {
            let (low, high) = ends[i % self.dim];
            if high > low { 2.0 * (x - low) / (high - low) - 1.0 } else { -1.0 }
        };
        Self { values: self.values.iter().enumerate().map(scale).collect(), dim: self.dim }
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The cluster of every point, out of at most `clusters`: of ten starts by k-means++ the tightest.
pub fn k_means(points: &Points, clusters: usize, rng: StepRng) -> Vec<usize> {
    let mut best: Option<(f64, Vec<usize>)> = None;
    for start in 0..STARTS {
        let found = k_means_once(points, clusters, &mut rng.sample(start).draws());
        if best.as_ref().is_none_or(|(least, _)| found.0 < *least) {
            best = Some(found);
        }
    }
    best.map(|(_, clusters)| clusters).unwrap_or_default()
}

/// One start: the sum of squares, and the cluster of every point.
fn k_means_once(points: &Points, clusters: usize, draws: &mut Draws) -> (f64, Vec<usize>) {
    let count = points.count();
    if count == 0 {
        return (0.0, Vec::new());
    }
    // k-means++: a centre is drawn with probability proportional to the squared distance to the nearest one so far.
    let mut centres = vec![points.row(draws.below(count)).to_vec()];
    let mut nearest: Vec<f64> = (0..count).map(|i| distance(points.row(i), &centres[0])).collect();
    while centres.len() < clusters.min(count) {
        let mut left = draws.uniform() * nearest.iter().sum::<f64>();
        let chosen = nearest.iter().position(|d| {
            left -= d;
            left < 0.0
        });
        let centre = points.row(chosen.unwrap_or(count - 1)).to_vec();
        for (i, d) in nearest.iter_mut().enumerate() {
            *d = d.min(distance(points.row(i), &centre));
        }
        centres.push(centre);
    }
    let mut member = vec![usize::MAX; count];
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (i, own) in member.iter_mut().enumerate() {
            let mut least = (f64::INFINITY, 0);
            for (c, centre) in centres.iter().enumerate() {
                let d = distance(points.row(i), centre);
                if d < least.0 {
                    least = (d, c);
                }
            }
            moved |= *own != least.1;
            *own = least.1;
        }
        if !moved {
            break;
        }
        let mut sizes = vec![0.0; centres.len()];
        let mut sums = vec![vec![0.0; points.dim]; centres.len()];
        for (i, c) in member.iter().enumerate() {
            sizes[*c] += 1.0;
            for (sum, x) in sums[*c].iter_mut().zip(points.row(i)) {
                *sum += x;
            }
        }
        for ((centre, sum), size) in centres.iter_mut().zip(sums).zip(sizes) {
            // A cluster that lost all its points stays where it was.
            if size > 0.0 {
                *centre = sum.into_iter().map(|x| x / size).collect();
            }
        }
    }
    let total = member.iter().enumerate().map(|(i, c)| distance(points.row(i), &centres[*c])).sum();
    (total, member)
}

/// The share of rows that belong to the most frequent class of their cluster; NaN without rows.
///
/// ```
/// assert_eq!(mm_balance::relearning::purity(&[0, 0, 1, 1], &[5, 5, 5, 2]), 0.75);
/// ```
pub fn purity(labels: &[u32], clusters: &[usize]) -> f64 {
    let mut counts = std::collections::BTreeMap::<usize, std::collections::BTreeMap<u32, usize>>::new();
    for (label, cluster) in labels.iter().zip(clusters) {
        *counts.entry(*cluster).or_default().entry(*label).or_default() += 1;
    }
    let majority: usize = counts.values().filter_map(|classes| classes.values().max()).sum();
    majority as f64 / labels.len() as f64
}

/// w_m from the two purities; 0 where one of them is not known.
pub fn reset_share(train: f64, held_out: f64, strength: f64) -> f64 {
    let share = (strength * (train - held_out).abs()).tanh();
    if share.is_nan() { 0.0 } else { share }
}

/// Features and labels of the rows that have the modality.
#[derive(Debug, Default)]
struct Collected {
    values: Vec<f64>,
    dim: usize,
    labels: Vec<u32>,
}

impl Collected {
    fn push(&mut self, features: &candle_core::Tensor, batch: &Batch, m: mm_core::Modality) -> Result<()> {
        let features = pooled(features)?;
        self.dim = features.dim(1)?;
        let values = to_host(&features)?;
        for (row, (x, label)) in values.chunks_exact(self.dim).zip(batch.labels.iter()).enumerate() {
            if batch.present[m].as_ref().is_none_or(|p| p.rows()[row]) {
                self.values.extend_from_slice(x);
                self.labels.push(*label);
            }
        }
        Ok(())
    }

    fn purity(self, classes: usize, rng: StepRng) -> f64 {
        let points = Points::new(self.values, self.dim).scaled();
        purity(&self.labels, &k_means(&points, classes, rng))
    }
}

/// One modality at a reset.
#[derive(Debug, Clone, Copy)]
struct Reset {
    train: f64,
    held_out: f64,
    share: f64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Relearning {
    config: RelearningConfig,
    resets: Vec<Reset>,
}

impl Relearning {
    fn reset(&mut self, cx: &EpochCx<'_>, copies: &[Copied]) -> Result<()> {
        let (Some((_, held)), Some(train)) = (cx.batches, cx.train) else {
            bail!("re-learning compares training rows with rows set aside: the trainer must pass both");
        };
        let modalities = cx.model.modalities();
        let collect = |batches: &mut dyn Iterator<Item = Result<Batch>>| -> Result<Modal<Collected>> {
            let mut all = Modal::from_fn(modalities.len(), |_| Collected::default());
            for batch in batches {
                let batch = batch?;
                let features = cx.model.encode_all(&batch, Mode::Eval)?;
                for (m, collected) in all.iter_mut() {
                    collected.push(&features[m], &batch, m)?;
                }
            }
            Ok(all)
        };
        let seen = collect(&mut (0..train.count()).map(|n| train.get(n)))?;
        let rows: Vec<u32> = (0..held.rows() as u32).collect();
        let fresh = collect(&mut rows.chunks(PIECE).map(|piece| held.select(piece)))?;
        let key = cx.rng.stream(NAME);
        let classes = cx.model.classes();
        self.resets = seen
            .into_values()
            .into_iter()
            .zip(fresh.into_values())
            .map(|(seen, fresh)| {
                let (train, held_out) = (
                    seen.purity(classes, key.stream("train")),
                    fresh.purity(classes, key.stream("held-out")),
                );
                Reset { train, held_out, share: reset_share(train, held_out, self.config.strength) }
            })
            .collect();
        for c in copies {
            let share = self.resets[c.of.index()].share;
            let var = cx.params.get(c.id).var();
            var.set(&(c.copy.affine(share, 0.0)? + var.affine(1.0 - share, 0.0)?)?.detach())?;
        }
        Ok(())
    }
}

impl Balancer for Relearning {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, held_out: self.config.held_out, ..Needs::default() }
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        let copies = copies::find(cx.params, cx.model.modalities(), NAME)?;
        if cx.epoch == 0 {
            // Weights may have been loaded since the copies were made.
            for c in &copies {
                c.copy.set(&cx.params.get(c.id).var().as_tensor().copy()?)?;
            }
        }
        let due = cx.epoch > 0
            && cx.epoch.is_multiple_of(self.config.every)
            && cx.epoch / self.config.every <= self.config.times;
        if due { self.reset(cx, &copies) } else { Ok(()) }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, r) in self.resets.iter().enumerate() {
            for (name, value) in [("purity_train", r.train), ("purity_held_out", r.held_out)] {
                if !value.is_nan() {
                    sink(name, Some(m), value);
                }
            }
            sink("reset_share", Some(m), r.share);
        }
    }

    fn state(&self) -> State {
        let column = |of: fn(&Reset) -> f64| self.resets.iter().map(of).collect::<Vec<f64>>();
        State::from([
            // JSON knows no NaN: a purity that is not known is saved as -1.
            ("train".to_owned(), column(|r| if r.train.is_nan() { -1.0 } else { r.train })),
            ("held_out".to_owned(), column(|r| if r.held_out.is_nan() { -1.0 } else { r.held_out })),
            ("share".to_owned(), column(|r| r.share)),
        ])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let column = |name: &str| match state.get(name) {
            Some(saved) => Ok(saved.clone()),
            None => bail!("re-learning: the checkpoint holds no `{name}`; start the run afresh"),
        };
        let known = |x: f64| if x < 0.0 { f64::NAN } else { x };
        let rows = column("train")?.into_iter().zip(column("held_out")?).zip(column("share")?);
        self.resets = rows
            .map(|((train, held_out), share)| Reset { train: known(train), held_out: known(held_out), share })
            .collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_far_apart_are_found() {
        let mut draws = StepRng::new(1).draws();
        let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
        let mut values = Vec::new();
        for label in &labels {
            values.extend([f64::from(*label) * 10.0 + draws.normal(), draws.normal()]);
        }
        let points = Points::new(values, 2);
        assert_eq!(purity(&labels, &k_means(&points, 3, StepRng::new(0))), 1.0);
        assert_eq!(k_means(&points, 3, StepRng::new(0)), k_means(&points, 3, StepRng::new(0)));
        let scaled = points.scaled();
        assert!(scaled.values.iter().all(|x| (-1.0..=1.0).contains(x)));
    }

    #[test]
    fn nothing_to_cluster_resets_nothing() {
        assert!(k_means(&Points::new(Vec::new(), 3), 4, StepRng::new(0)).is_empty());
        assert_eq!(k_means(&Points::new(vec![1.0; 6], 3), 4, StepRng::new(0)), [0, 0]);
        assert_eq!(Points::new(vec![1.0, 2.0, 1.0, 4.0], 2).scaled().values, [-1.0, -1.0, -1.0, 1.0]);
        assert_eq!(reset_share(f64::NAN, 0.5, 3.0), 0.0);
    }
}
