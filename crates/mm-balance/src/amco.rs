//! AMCo: channels of the modality that the prediction depends on are masked, more of them as training goes on, while
//! every modality keeps a loss of its own.
//!
//! ```text
//! a_m  = mean_i Σ_c softmax([z^1_i; …; z^M_i])_{m,c}       dependence: m's share of one softmax over all unimodal logits
//! p_e  = min(sin(π/2 min(e / (10 ε), 1)), 0.9)             share of the channels that is masked in epoch e
//! h_m  ← h_m ⊙ b_m D_m / (D_m - N_m),  N_m = ⌊p_e D_m⌋       for every m with a_m > σ in the step before
//! L    = CE(z, y) + λ Σ_m CE(z^m, y)                       co-optimisation
//! ```
//!
//! b_m is 0 in N_m channels, drawn anew in every batch and the same for its rows (and tokens), and 1 in the others. z^m
//! is the modality's share of the fused logits, after masking; where the fusion is not a sum, the fused logits with
//! every other modality masked. Shapes: h_m (B, D_m) or (B, N, D_m), z^m (B, C).
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `threshold` σ | 0.5 | [0, 1] | dependence above which a modality is masked |
//! | `ramp` ε | 0.3 | > 0 | tens of epochs until the largest share is masked |
//! | `weight` λ | 1 | > 0 | of the unimodal losses |
//! | `variant` | `steady` | | `benchmark`: below |
//!
//! `benchmark` does what the port in BalanceBenchmark does: p starts at 0 in every epoch and e/10 is added to its
//! argument in every batch, so that p soon is 1 and the whole modality is masked; the factor is 1/(1-p), and 10 from p
//! = 0.9 on; dependent is the first modality with a_m >= σ, until the epoch ends, and of several only the first is
//! masked.
//!
//! State: dependences of the last step; of `benchmark` also who is dependent and how far the epoch is.
//!
//! Differences. The authors published no code, and the paper's equations were not to be had: its abstract says that a
//! mask makes dependent modalities harder to learn while co-optimisation preserves them. All numbers are the port's;
//! `steady` is our reading of them, in which a part of the modality stays and the mask follows the last batch. Where
//! a_m > σ holds for all modalities the least dependent one is spared. a_m is the mean over rows that have m and
//! another modality, in a softmax over the modalities that the row has; NaN, and no mask, where there is no such row.
//!
//! Source: Zhou et al., "Adaptive Mask Co-Optimization for Modal Dependence in Multimodal Learning", ICASSP 2023, doi
//! 10.1109/ICASSP49357.2023.10096641; port GeWu-Lab/BalanceBenchmark @2603a98 (trainer) and @05e0e81 (model).

use crate::balancer::saved;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Edited, EpochCx, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::to_host;
use mm_core::rng::Draws;
use mm_core::{Batch, Checked, ConfigError, Features, Forward, Modal};
use serde::{Deserialize, Serialize};

/// The largest share of channels that `steady` masks, and the share at which `benchmark` stops to raise its factor.
const MOST: f64 = 0.9;

/// When and how much is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// A share that grows with the epochs, of the modalities that the last batch depended on.
    #[default]
    Steady,
    /// BalanceBenchmark's port.
    Benchmark,
}

/// Settings of [`Amco`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AmcoConfig {
    /// σ, dependence above which a modality is masked.
    pub threshold: f64,
    /// ε, tens of epochs until the largest share is masked.
    pub ramp: f64,
    /// λ, weight of the unimodal losses.
    pub weight: f64,
    /// When and how much is masked.
    pub variant: Variant,
}

impl Default for AmcoConfig {
    fn default() -> Self {
        Self { threshold: 0.5, ramp: 0.3, weight: 1.0, variant: Variant::Steady }
    }
}

impl AmcoConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Amco> {
        ConfigError::check_range("threshold", self.threshold, 0.0, 1.0)?;
        ConfigError::check_range("ramp", self.ramp, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(Amco {
            config: self.clone(),
            dependence: vec![f64::NAN; modalities],
            marked: vec![false; modalities],
            progress: 0.0,
            masked: Vec::new(),
            scores: Vec::new(),
        })
    }
}

/// sin(π/2 min(progress / ramp, 1)).
///
/// ```
/// assert!((mm_balance::amco::masked_share(0.1, 0.3) - 0.5).abs() < 1e-12);
/// assert_eq!(mm_balance::amco::masked_share(7.0, 0.3), 1.0);
/// ```
pub fn masked_share(progress: f64, ramp: f64) -> f64 {
    (std::f64::consts::FRAC_PI_2 * (progress / ramp).min(1.0)).sin()
}

/// a_m of every modality; NaN where no row has it and another one.
pub fn dependences(logits: &Modal<Tensor>, batch: &Batch) -> Result<Vec<f64>> {
    let values: Vec<Vec<f64>> = logits.values().iter().map(to_host).collect::<Result<_>>()?;
    let rows = batch.rows();
    let (mut sums, mut counts) = (vec![0.0; values.len()], vec![0.0; values.len()]);
    for row in 0..rows {
        let here: Vec<(usize, &[f64])> = (values.iter().enumerate())
            .filter(|(m, _)| batch.present.values()[*m].as_ref().is_none_or(|p| p.rows()[row]))
            .map(|(m, z)| {
                let classes = z.len() / rows;
                (m, &z[row * classes..(row + 1) * classes])
            })
            .collect();
        if here.len() < 2 {
            continue;
        }
        let largest = here.iter().flat_map(|(_, z)| z.iter()).copied().fold(f64::NEG_INFINITY, f64::max);
        let parts: Vec<f64> =
            here.iter().map(|(_, z)| z.iter().map(|z| (z - largest).exp()).sum::<f64>()).collect();
        let total: f64 = parts.iter().sum();
        for ((m, _), part) in here.iter().zip(parts) {
            sums[*m] += part / total;
            counts[*m] += 1.0;
        }
    }
    Ok(sums.into_iter().zip(counts).map(|(sum, count)| sum / count).collect())
}

/// Who is masked by the rule of `steady`: a_m > σ, but never all of those that are there.
pub fn dependent(dependence: &[f64], threshold: f64) -> Vec<bool> {
    let mut chosen: Vec<bool> = dependence.iter().map(|a| *a > threshold).collect();
    let known = dependence.iter().filter(|a| !a.is_nan()).count();
    if chosen.iter().filter(|c| **c).count() == known {
        let least = dependence.iter().enumerate().filter(|(_, a)| !a.is_nan());
        if let Some((m, _)) = least.min_by(|(_, a), (_, b)| a.total_cmp(b)) {
            chosen[m] = false;
        }
    }
    chosen
}

/// Which of `width` channels stay where `masked` of them do not.
pub fn kept_channels(width: usize, masked: usize, draws: &mut Draws) -> Vec<bool> {
    let mut kept: Vec<bool> = (0..width).map(|channel| channel >= masked).collect();
    draws.shuffle(&mut kept);
    kept
}

/// Features (B, …, D) with `factor` times the channels that stay, and 0 in the others.
pub fn mask(h: &Tensor, kept: &[bool], factor: f64) -> Result<Tensor> {
    let width = h.dim(h.rank() - 1)?;
    if kept.len() != width {
        bail!("AMCo: a mask of {} channels for features of width {width}", kept.len());
    }
    let values: Vec<f64> = kept.iter().map(|k| if *k { factor } else { 0.0 }).collect();
    h.broadcast_mul(&Tensor::from_vec(values, width, h.device())?.to_dtype(h.dtype())?)
}

/// See the [module](self).
#[derive(Debug)]
pub struct Amco {
    config: AmcoConfig,
    /// a_m of the last step.
    dependence: Vec<f64>,
    /// Who is dependent in this epoch, for `benchmark`.
    marked: Vec<bool>,
    /// The argument of p, for `benchmark`.
    progress: f64,
    /// The share of channels masked in this step.
    masked: Vec<f64>,
    scores: Vec<f64>,
}

impl Amco {
    /// Who is masked now, the share, and the factor for a number of masked channels and a width.
    fn plan(&mut self, epoch: usize) -> (Vec<bool>, f64) {
        match self.config.variant {
            Variant::Steady => {
                let share = masked_share(epoch as f64 / 10.0, self.config.ramp).min(MOST);
                (dependent(&self.dependence, self.config.threshold), share)
            }
            Variant::Benchmark => {
                let share = masked_share(self.progress, self.config.ramp);
                self.progress += epoch as f64 / 10.0;
                let first = self.marked.iter().position(|m| *m);
                ((0..self.marked.len()).map(|m| first == Some(m)).collect(), share)
            }
        }
    }

    fn factor(&self, share: f64, masked: usize, width: usize) -> f64 {
        match self.config.variant {
            Variant::Steady => width as f64 / (width - masked).max(1) as f64,
            Variant::Benchmark if share < MOST => 1.0 / (1.0 - share),
            Variant::Benchmark => 10.0,
        }
    }
}

impl Balancer for Amco {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn epoch_start(&mut self, _: &EpochCx<'_>) -> Result<()> {
        self.progress = 0.0;
        self.marked.fill(false);
        Ok(())
    }

    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        let (chosen, share) = self.plan(cx.epoch);
        self.masked = vec![0.0; z.len()];
        let features = z.try_map(|m, h| {
            let width = h.dim(h.rank() - 1)?;
            let masked = (share * width as f64) as usize; // rounds down, as in the port
            if !chosen[m.index()] || masked == 0 {
                return Ok(h.clone());
            }
            self.masked[m.index()] = masked as f64 / width as f64;
            let mut draws = cx.rng.stream("amco").sample(m.index() as u64).draws();
            mask(h, &kept_channels(width, masked, &mut draws), self.factor(share, masked, width))
        })?;
        Ok(Edited::all(features))
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let logits = match &fwd.split {
            Some(split) => split.clone(),
            None => fwd
                .features
                .try_map(|m, _| cx.model.masked_logits(m, &fwd.features, &cx.batch.present, cx.mode))?,
        };
        self.dependence = dependences(&logits, cx.batch)?;
        if self.config.variant == Variant::Benchmark
            && let Some(m) = self.dependence.iter().position(|a| *a >= self.config.threshold)
        {
            self.marked[m] = true;
        }
        let (loss, scores) = losses_and_scores(&logits, cx.batch)?;
        self.scores = scores.into_values();
        if self.config.weight == 1.0 { Ok(Some(loss)) } else { (loss * self.config.weight).map(Some) }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, a) in self.dependence.iter().enumerate().filter(|(_, a)| !a.is_nan()) {
            sink("dependence", Some(m), *a);
        }
        for (m, share) in self.masked.iter().enumerate() {
            sink("masked_share", Some(m), *share);
        }
    }

    fn state(&self) -> State {
        // JSON knows no NaN: a dependence that is not known is saved as -1.
        let known = |a: &f64| if a.is_nan() { -1.0 } else { *a };
        State::from([
            ("dependence".to_owned(), self.dependence.iter().map(known).collect()),
            ("marked".to_owned(), self.marked.iter().map(|m| f64::from(u8::from(*m))).collect()),
            ("progress".to_owned(), vec![self.progress]),
        ])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let count = self.dependence.len();
        let known = |a: &f64| if *a < 0.0 { f64::NAN } else { *a };
        self.dependence = saved(state, "AMCo", "dependence", count)?.iter().map(known).collect();
        self.marked = saved(state, "AMCo", "marked", count)?.iter().map(|m| *m != 0.0).collect();
        self.progress = saved(state, "AMCo", "progress", 1)?[0];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use mm_core::{Modality, Presence, StepRng};

    #[test]
    fn dependences_are_shares_of_one_softmax() {
        // exp of the logits: 2 + 2 against 1 + 3, and 1 + 1 against 6.
        let a = Tensor::new(&[[2f64.ln(), 2f64.ln()], [0.0, 0.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[0.0, 3f64.ln()], [3f64.ln(), 3f64.ln()]], &Device::Cpu).unwrap();
        let logits = Modal::new(vec![a, b]);
        let mut batch = Batch::new(logits.clone(), vec![0, 1]).unwrap();
        let close = |batch: &Batch, expected: [f64; 2]| {
            let found = dependences(&logits, batch).unwrap();
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        close(&batch, [0.375, 0.625]);
        let one = Presence::new(vec![true, false], DType::F64, &Device::Cpu).unwrap();
        batch.present[Modality::new(1)] = Some(one);
        close(&batch, [0.5, 0.5]);
        let none = Presence::new(vec![false, false], DType::F64, &Device::Cpu).unwrap();
        batch.present[Modality::new(1)] = Some(none);
        assert!(dependences(&logits, &batch).unwrap().iter().all(|a| a.is_nan()));
    }

    #[test]
    fn somebody_is_spared() {
        assert_eq!(dependent(&[0.5, 0.5], 0.5), [false, false]);
        assert_eq!(dependent(&[0.7, 0.3], 0.5), [true, false]);
        assert_eq!(dependent(&[0.5, 0.3, 0.2], 0.1), [true, true, false]);
        assert_eq!(dependent(&[f64::NAN, 0.6, 0.4], 0.1), [false, true, false]);
        assert_eq!(dependent(&[f64::NAN, f64::NAN], 0.5), [false, false]);
    }

    #[test]
    fn a_mask_keeps_the_mean() {
        let kept = kept_channels(10, 4, &mut StepRng::new(3).draws());
        assert_eq!(kept.iter().filter(|k| **k).count(), 6);
        let h = Tensor::ones((2, 3, 10), DType::F64, &Device::Cpu).unwrap();
        let masked = mask(&h, &kept, 10.0 / 6.0).unwrap();
        let sums = masked.sum(2).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(sums.iter().all(|s| (s - 10.0).abs() < 1e-12), "{sums:?}");
        assert!(mask(&h, &kept[1..], 1.0).unwrap_err().to_string().contains("a mask of 9 channels"));
    }

    #[test]
    fn the_share_and_the_factor_follow_the_variant() {
        let mut steady = AmcoConfig::default().build(2).unwrap();
        steady.dependence = vec![0.6, 0.4];
        assert_eq!(steady.plan(0), (vec![true, false], 0.0));
        assert!((steady.plan(2).1 - 0.75f64.sqrt()).abs() < 1e-12);
        assert_eq!(steady.plan(9).1, MOST);
        assert_eq!(steady.factor(0.5, 2, 5), 5.0 / 3.0);
        let config = AmcoConfig { variant: Variant::Benchmark, ..AmcoConfig::default() };
        let mut port = config.build(3).unwrap();
        port.marked = vec![false, true, true];
        let shares: Vec<f64> = (0..3).map(|_| port.plan(2).1).collect();
        assert!(
            shares[0] == 0.0 && (shares[1] - 0.75f64.sqrt()).abs() < 1e-12 && shares[2] == 1.0,
            "{shares:?}"
        );
        assert_eq!(port.plan(2).0, [false, true, false]);
        assert_eq!((port.factor(0.75, 3, 5), port.factor(1.0, 5, 5)), (4.0, 10.0));
    }
}
