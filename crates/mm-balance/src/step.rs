//! A whole training step: [`TrainStep`], and [`Joint`], the bridge from any [`Balancer`] to it.

use crate::{Balancer, EpochCx, EpochReport, Needs, State, StepCx, score};
use candle_core::{Result, Tensor};
use mm_core::model::to_host;
use mm_core::{Batch, Forward, Gradients, Modal, Mode, Multimodal, StepRng};
use mm_kernels::cross_entropy::cross_entropy;
use std::cell::RefCell;

/// What a training step may ask of the optimiser.
pub trait Optimizer {
    /// Clips and applies the gradients; returns the global norm before clipping, if it was computed.
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>>;
}

/// A number reported by a step: (name, modality index or `None`, value).
pub type Observation = (&'static str, Option<usize>, f64);

/// What one step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The loss that was minimised; NaN where the step was skipped.
    pub loss: f64,
    /// Rows that took part; 0 where the step was skipped.
    pub rows: usize,
    /// Scores, ratios, coefficients and gradient norms.
    pub observations: Vec<Observation>,
}

/// A method that owns a batch including the optimiser step. The trainer knows only this trait.
pub trait TrainStep: std::fmt::Debug {
    /// What it asks for.
    fn needs(&self) -> Needs;
    /// Before the first step of an epoch.
    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()>;
    /// One batch: forward, backward and whatever optimiser steps it takes.
    fn step(&mut self, cx: &StepCx<'_>, optimizer: &mut dyn Optimizer) -> Result<StepReport>;
    /// After an epoch's evaluation.
    fn epoch_end(&mut self, cx: &EpochCx<'_>, seen: &EpochReport) -> Result<()>;
    /// The decision for a forward pass.
    fn decide(&self, model: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Tensor>;
    /// What a checkpoint must hold.
    fn state(&self) -> State;
    /// Takes a saved state back.
    fn restore(&mut self, state: &State) -> Result<()>;
}

/// One forward pass, one backward pass, one optimiser step, with a balancer's hooks in between.
#[derive(Debug)]
pub struct Joint<B> {
    balancer: B,
    checked: bool,
}

impl<B: Balancer> Joint<B> {
    /// Joint training under `balancer`; `()` balances nothing.
    pub fn new(balancer: B) -> Self {
        Self { balancer, checked: false }
    }

    /// The balancer.
    pub fn balancer(&self) -> &B {
        &self.balancer
    }
}

impl<B: Balancer> TrainStep for Joint<B> {
    fn needs(&self) -> Needs {
        self.balancer.needs()
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.balancer.epoch_start(cx)
    }

    fn step(&mut self, cx: &StepCx<'_>, optimizer: &mut dyn Optimizer) -> Result<StepReport> {
        let encoded = cx.model.encode_all(cx.batch, cx.mode)?;
        let edited = self.balancer.features(cx, encoded)?;
        let kept = match &edited.keep {
            Some(keep) if keep.is_empty() => {
                return Ok(StepReport { loss: f64::NAN, rows: 0, observations: Vec::new() });
            }
            Some(keep) => Some(cx.batch.select(keep)?),
            None => None,
        };
        let batch = kept.as_ref().unwrap_or(cx.batch);
        let cx = StepCx { batch, scores: cx.scores.clone(), ..*cx };

        let fwd = cx.model.fuse(edited.features, &batch.present, cx.mode)?;
        let decision = match self.balancer.logits(cx.model, batch, &fwd)? {
            Some(logits) => logits,
            None => fwd.fused.clone(),
        };
        let task = cross_entropy(&decision, &batch.labels, None)?;
        let weight = self.balancer.task_weight();
        let mut loss = weighted(task, weight)?;
        if let Some(auxiliary) = self.balancer.auxiliary(&cx, &fwd)? {
            loss = (loss + auxiliary)?;
        }

        let mut gradients = Gradients::collect(cx.params, loss.backward()?);
        if !self.checked {
            gradients.check_reached(cx.params)?;
            self.checked = true;
        }
        self.balancer.gradients(&cx, &fwd, &mut gradients)?;

        let mut observations = Vec::with_capacity(8);
        self.balancer.observe(&mut |name, m, value| observations.push((name, m, value)));
        if !observations.iter().any(|(name, ..)| *name == "score") {
            let scores = match (&fwd.heads, &fwd.split) {
                (Some(heads), _) => Some(score::true_class(heads, batch)?),
                (None, Some(split)) => Some(cx.scores(&fwd.features, Some(split))?),
                (None, None) => None,
            };
            for (m, s) in scores.iter().flat_map(Modal::iter) {
                observations.push(("score", Some(m.index()), *s));
            }
        }
        for m in cx.model.modalities().iter() {
            let prefix = format!("encoder.{}", cx.model.modalities().name(m));
            let norm = gradients.norm(cx.params.group(&prefix))?;
            observations.push(("grad_norm", Some(m.index()), norm));
        }
        let norm = optimizer.step(&mut gradients)?;
        observations.extend(norm.map(|n| ("grad_norm", None, n)));
        Ok(StepReport { loss: to_host(&loss)?[0], rows: batch.rows(), observations })
    }

    fn epoch_end(&mut self, cx: &EpochCx<'_>, seen: &EpochReport) -> Result<()> {
        self.balancer.epoch_end(cx, seen)
    }

    fn decide(&self, model: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Tensor> {
        Ok(self.balancer.logits(model, batch, fwd)?.unwrap_or_else(|| fwd.fused.clone()))
    }

    fn state(&self) -> State {
        self.balancer.state()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.balancer.restore(state)
    }
}

/// `weight` times a loss, whose gradient is there even where the weight is 0: candle's backward pass leaves out what is
/// multiplied by the number 0, and a parameter without gradient is not the same as one with a gradient of 0.
pub(crate) fn weighted(loss: Tensor, weight: f64) -> Result<Tensor> {
    match weight {
        1.0 => Ok(loss),
        0.0 => &loss * loss.detach().zeros_like()?,
        _ => loss * weight,
    }
}

impl<'a> StepCx<'a> {
    /// The context of a step in train mode; `rng` is the key of the run, refined by epoch and step here.
    pub fn new(
        model: &'a dyn Multimodal,
        params: &'a mm_core::ParamStore,
        batch: &'a Batch,
        epoch: usize,
        step: usize,
        rng: StepRng,
    ) -> Self {
        let rng = rng.epoch(epoch).step(step);
        let (mode, rng) = (Mode::Train(rng.stream("model")), rng.stream("balance"));
        Self { model, params, batch, epoch, step, mode, rng, scores: RefCell::new(None) }
    }
}
