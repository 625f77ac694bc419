//! LFM: contrastive matching of the modalities beside supervised learning, with a weight that moves between them.
//!
//! ```text
//! L = w_c CE(z, y) + w_a L_match,     w_c + w_a = 1, constant within an epoch
//! ```
//!
//! The matching loss pulls the modalities together early, supervision takes over later. How the weight moves is the
//! method: see [`lfm_weight`](crate::lfm_weight) for the heuristic schedules and for the learned, bi-level one.
//!
//! `matching` chooses L_match, averaged over all pairs of modalities and over the rows that have both:
//!
//! ```text
//! info-nce    1/2 [CE(S, 1..B) + CE(Sᵀ, 1..B)],  S = ĥ^a ĥ^bᵀ / τ,  ĥ of unit length       features, equal widths
//! alignment   1/2 [KL(Q‖P^a) + KL(Q‖P^b)],  P = softmax(z^m), Q = (P^a + P^b)/2             released code
//! js          1/2 [KL(P^a‖Q) + KL(P^b‖Q)]                                                   Jensen-Shannon
//! ```
//!
//! `alignment` and `js` take M times each modality's share of the fused logits, so that their mean over modalities is the
//! fused logit, as in the released model z = (z^a + z^v)/2; fusions that are not a sum use masked logits.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `matching` | `info-nce` | | which L_match |
//! | `temperature` τ | 0.07 | > 0 | of info-nce |
//! | `loss_scale` | 1 | > 0 | factor of the whole loss; the released code has 2 |
//! | `schedule` / bi-level settings | | | see [`lfm_weight`](crate::lfm_weight) |
//!
//! Differences. The paper describes unsupervised contrastive learning (info-nce); the released code computes `alignment`,
//! whose KL divergences have their arguments the wrong way round for a Jensen-Shannon divergence - unbounded, and NaN in
//! f32 for confident logits. Here it is computed from log-probabilities and stays finite. The factor 2 is in the released
//! code only. The released code exists for M = 2.
//!
//! Source: "Facilitating Multimodal Classification via Dynamically Learning Modality Gap", NeurIPS 2024; released code
//! njustkmg/NeurIPS24-LFM @ad44fa0 and, for info-nce and the exponential schedule, @f3af6ea.

use crate::lfm_weight::{Bilevel, Schedule, Weight};
use crate::{Balancer, EpochCx, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Modal, Mode, Multimodal};
use mm_kernels::cross_entropy::cross_entropy;
use serde::{Deserialize, Serialize};

/// Which matching loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// InfoNCE between features.
    #[default]
    InfoNce,
    /// The released divergence between unimodal predictions.
    Alignment,
    /// Jensen-Shannon divergence between unimodal predictions.
    Js,
}

/// LFM with a schedule (`lfm-heuristic`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LfmHeuristicConfig {
    /// Which matching loss.
    pub matching: Matching,
    /// τ of InfoNCE.
    pub temperature: f64,
    /// Factor of the whole loss.
    pub loss_scale: f64,
    /// How the weight moves.
    pub schedule: Schedule,
}

impl Default for LfmHeuristicConfig {
    fn default() -> Self {
        Self {
            matching: Matching::InfoNce,
            temperature: 0.07,
            loss_scale: 1.0,
            schedule: Schedule::default(),
        }
    }
}

/// LFM with a learned weight (`lfm-learned`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LfmLearnedConfig {
    /// Which matching loss.
    pub matching: Matching,
    /// τ of InfoNCE.
    pub temperature: f64,
    /// Factor of the whole loss.
    pub loss_scale: f64,
    /// How the weight is learned.
    pub bilevel: Bilevel,
}

impl Default for LfmLearnedConfig {
    fn default() -> Self {
        Self { matching: Matching::InfoNce, temperature: 0.07, loss_scale: 1.0, bilevel: Bilevel::default() }
    }
}

impl LfmHeuristicConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Lfm> {
        self.schedule.check().map_err(|e| e.within("schedule"))?;
        build(self.matching, self.temperature, self.loss_scale, Weight::scheduled(self.schedule.clone()))
    }
}

impl LfmLearnedConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Lfm> {
        self.bilevel.check().map_err(|e| e.within("bilevel"))?;
        build(self.matching, self.temperature, self.loss_scale, Weight::learned(self.bilevel.clone()))
    }
}

fn build(matching: Matching, temperature: f64, loss_scale: f64, weight: Weight) -> Checked<Lfm> {
    ConfigError::check_range("temperature", temperature, f64::MIN_POSITIVE, f64::MAX)?;
    ConfigError::check_range("loss_scale", loss_scale, f64::MIN_POSITIVE, f64::MAX)?;
    Ok(Lfm { matching: Matcher::new(matching, temperature), loss_scale, weight })
}

/// InfoNCE between two sets of features (B, D) whose rows belong together.
pub fn info_nce(a: &Tensor, b: &Tensor, temperature: f64) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!(
            "LFM info-nce needs features of one width, got {:?} and {:?}: give the encoders the same `dim`, or choose \
             matching = \"alignment\"",
            a.shape(),
            b.shape()
        );
    }
    let similarity = (unit_rows(a)?.matmul(&unit_rows(b)?.t()?)? / temperature)?;
    let labels: Vec<u32> = (0..a.dim(0)? as u32).collect();
    let forth = cross_entropy(&similarity, &labels, None)?;
    let back = cross_entropy(&similarity.t()?.contiguous()?, &labels, None)?;
    (forth + back)? * 0.5
}

pub(crate) fn unit_rows(x: &Tensor) -> Result<Tensor> {
    let square = x.sqr()?.sum_keepdim(1)?;
    let floor = square.detach().le(1e-24)?.to_dtype(x.dtype())?;
    x.broadcast_div(&(square + floor)?.sqrt()?)
}

/// The released alignment `1/2 [KL(Q‖P^a) + KL(Q‖P^b)]` between the softmaxes of two logits (B, C), mean over rows.
pub fn alignment(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    divergence(a, b, alignment_row)
}

/// The Jensen-Shannon divergence `1/2 [KL(P^a‖Q) + KL(P^b‖Q)]`, mean over rows.
pub fn jensen_shannon(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    divergence(a, b, jensen_shannon_row)
}

/// One class of one row, from log P^a, log P^b and log Q: its term of the loss, and the derivatives of the row's loss
/// with respect to log P^a and log P^b.
type Term = fn(f64, f64, f64) -> (f64, f64, f64);

fn alignment_row(a: f64, b: f64, q: f64) -> (f64, f64, f64) {
    let (pa, pb, pq) = (a.exp(), b.exp(), q.exp());
    // Q (log Q - (log P^a + log P^b)/2); Q = 0 contributes nothing.
    let excess = q - 0.5 * (a + b);
    let term = if pq == 0.0 { 0.0 } else { pq * excess };
    let part = |p: f64| if p == 0.0 { 0.0 } else { 0.5 * p * (excess + 1.0) };
    (term, part(pa) - 0.5 * pq, part(pb) - 0.5 * pq)
}

fn jensen_shannon_row(a: f64, b: f64, q: f64) -> (f64, f64, f64) {
    let part = |log: f64| if log.exp() == 0.0 { 0.0 } else { 0.5 * log.exp() * (log - q) };
    (part(a) + part(b), part(a), part(b))
}

/// Value and gradient are computed on the host in f64 from log-probabilities, and handed to autograd as a linear
/// function of the logits with exactly this value and this gradient.
fn divergence(a: &Tensor, b: &Tensor, term: Term) -> Result<Tensor> {
    let (rows, classes) = a.dims2()?;
    if b.dims2()? != (rows, classes) {
        bail!("LFM: predictions of shapes {:?} and {:?} cannot be matched", a.shape(), b.shape());
    }
    let (va, vb) = (to_host(a)?, to_host(b)?);
    let (mut ga, mut gb) = (vec![0.0; va.len()], vec![0.0; vb.len()]);
    let mut loss = 0.0;
    let scale = 1.0 / rows.max(1) as f64;
    for row in 0..rows {
        let span = row * classes..(row + 1) * classes;
        let (la, lb) = (log_softmax(&va[span.clone()]), log_softmax(&vb[span.clone()]));
        for (c, i) in span.clone().enumerate() {
            let (high, low) = if la[c] > lb[c] { (la[c], lb[c]) } else { (lb[c], la[c]) };
            let q = high + (low - high).exp().ln_1p() - std::f64::consts::LN_2;
            let (value, da, db) = term(la[c], lb[c], q);
            loss += scale * value;
            ga[i] = scale * da;
            gb[i] = scale * db;
        }
        through_log_softmax(&mut ga[span.clone()], &la);
        through_log_softmax(&mut gb[span], &lb);
    }
    let linear = |x: &Tensor, g: Vec<f64>| -> Result<Tensor> {
        let g = Tensor::from_vec(g, x.shape(), x.device())?.to_dtype(x.dtype())?;
        ((x - x.detach())? * g)?.sum_all()
    };
    (linear(a, ga)? + linear(b, gb)?)? + loss
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let high = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let norm = high + z.iter().map(|x| (x - high).exp()).sum::<f64>().ln();
    z.iter().map(|x| x - norm).collect()
}

fn through_log_softmax(g: &mut [f64], log_p: &[f64]) {
    let total: f64 = g.iter().sum();
    for (g, l) in g.iter_mut().zip(log_p) {
        *g -= l.exp() * total;
    }
}

/// The matching loss of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Matcher {
    matching: Matching,
    temperature: f64,
}

impl Matcher {
    /// `temperature` is that of InfoNCE; the others ignore it.
    pub fn new(matching: Matching, temperature: f64) -> Self {
        Self { matching, temperature }
    }

    /// L_match, averaged over the pairs of modalities that share at least one row; `None` if no pair does.
    pub fn loss(
        &self,
        model: &dyn Multimodal,
        batch: &Batch,
        fwd: &Forward,
        mode: Mode,
    ) -> Result<Option<Tensor>> {
        let views = match self.matching {
            Matching::InfoNce => fwd.features.try_map(|_, h| pooled(h))?,
            Matching::Alignment | Matching::Js => predictions(model, batch, fwd, mode)?,
        };
        let mut losses = Vec::new();
        for (m, a) in views.iter() {
            for (n, b) in views.iter().skip(m.index() + 1) {
                let here = |row: usize| {
                    [m, n].iter().all(|&m| batch.present[m].as_ref().is_none_or(|p| p.rows()[row]))
                };
                let rows: Vec<u32> = (0..batch.rows()).filter(|&r| here(r)).map(|r| r as u32).collect();
                if rows.is_empty() {
                    continue;
                }
                let pick = |x: &Tensor| -> Result<Tensor> {
                    if rows.len() == batch.rows() {
                        return Ok(x.clone());
                    }
                    x.index_select(&Tensor::new(rows.as_slice(), x.device())?, 0)
                };
                let (a, b) = (pick(a)?, pick(b)?);
                losses.push(match self.matching {
                    Matching::InfoNce => info_nce(&a, &b, self.temperature)?,
                    Matching::Alignment => alignment(&a, &b)?,
                    Matching::Js => jensen_shannon(&a, &b)?,
                });
            }
        }
        if losses.is_empty() {
            return Ok(None);
        }
        (mm_core::model::sum(&losses)? / losses.len() as f64).map(Some)
    }
}

/// M times each modality's share of the fused logits; masked logits where the fusion is not a sum.
fn predictions(model: &dyn Multimodal, batch: &Batch, fwd: &Forward, mode: Mode) -> Result<Modal<Tensor>> {
    match &fwd.split {
        Some(split) => split.try_map(|_, z| z * split.len() as f64),
        None => fwd.features.try_map(|m, _| model.masked_logits(m, &fwd.features, &batch.present, mode)),
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Lfm {
    matching: Matcher,
    loss_scale: f64,
    weight: Weight,
}

impl Balancer for Lfm {
    fn needs(&self) -> Needs {
        Needs {
            modalities: 2,
            equal_widths: self.matching.matching == Matching::InfoNce,
            held_out: self.weight.held_out(),
            ..Needs::default()
        }
    }

    fn task_weight(&self) -> f64 {
        self.loss_scale * self.weight.supervised()
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.weight.update(cx, &self.matching, self.loss_scale)
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let weight = self.loss_scale * (1.0 - self.weight.supervised());
        match self.matching.loss(cx.model, cx.batch, fwd, cx.mode)? {
            Some(loss) => (loss * weight).map(Some),
            None => Ok(None),
        }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        sink("supervised_weight", None, self.weight.supervised());
        if let Some(gradient) = self.weight.hypergradient() {
            sink("hypergradient", None, gradient);
        }
    }

    fn state(&self) -> State {
        self.weight.state()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.weight.restore(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn divergences_vanish_between_equals_and_stay_finite() {
        let z = Tensor::new(&[[1.0, 2.0, -1.0], [0.0, 0.5, 0.2]], &Device::Cpu).unwrap();
        for loss in [alignment(&z, &z).unwrap(), jensen_shannon(&z, &z).unwrap()] {
            assert!(loss.to_scalar::<f64>().unwrap().abs() < 1e-15);
        }
        let sure = Tensor::new(&[[300f32, -300.0, 0.0]], &Device::Cpu).unwrap();
        let other = Tensor::new(&[[-300f32, 300.0, 0.0]], &Device::Cpu).unwrap();
        let loss = alignment(&sure, &other).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - (300.0 - std::f32::consts::LN_2)).abs() < 1e-3, "{loss}");
        let loss = jensen_shannon(&sure, &other).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - std::f32::consts::LN_2).abs() < 1e-6, "{loss}");
    }
}
