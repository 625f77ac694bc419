//! What a balancing method may do, and when: the hooks of a [`Balancer`].

use crate::score;
use candle_core::{Result, Tensor, bail};
use mm_core::{Batch, Features, Forward, Gradients, Modal, Mode, Multimodal, ParamStore, StepRng};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Named numbers that a method carries from step to step; what a checkpoint saves of it.
pub type State = BTreeMap<String, Vec<f64>>;

/// The `count` numbers called `name` in a saved state of `method`, or an error that says what to do.
pub(crate) fn saved<'a>(state: &'a State, method: &str, name: &str, count: usize) -> Result<&'a [f64]> {
    match state.get(name) {
        Some(saved) if saved.len() == count => Ok(saved),
        _ => bail!("{method}: the checkpoint holds no `{name}` of {count} numbers; start the run afresh"),
    }
}

/// What a method asks of the model and the trainer before training starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// A linear head per modality on top of its encoder (`head.<modality>`).
    pub heads: bool,
    /// A fusion; methods that decide from the heads alone do without.
    pub fusion: bool,
    /// How many training rows to set aside for the method's own outer objective (never the validation part).
    pub held_out: usize,
    /// All encoders must have one and the same feature width.
    pub equal_widths: bool,
    /// A fusion with gates between the modalities that can be held: `mmtm`.
    pub gates: bool,
    /// The least number of modalities it makes sense for.
    pub modalities: usize,
}

impl Default for Needs {
    fn default() -> Self {
        Self { heads: false, fusion: true, held_out: 0, equal_widths: false, gates: false, modalities: 1 }
    }
}

impl Needs {
    /// What two composed methods ask for together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            heads: self.heads || other.heads,
            fusion: self.fusion && other.fusion,
            held_out: self.held_out.max(other.held_out),
            equal_widths: self.equal_widths || other.equal_widths,
            gates: self.gates || other.gates,
            modalities: self.modalities.max(other.modalities),
        }
    }
}

/// One optimiser step as a method sees it.
#[derive(Debug)]
pub struct StepCx<'a> {
    /// The model.
    pub model: &'a dyn Multimodal,
    /// Its parameters.
    pub params: &'a ParamStore,
    /// The batch; after `features` it holds only the rows that were kept.
    pub batch: &'a Batch,
    /// Epochs count from 0.
    pub epoch: usize,
    /// Optimiser steps since the start of training, from 0.
    pub step: usize,
    /// Train mode with the key of this step.
    pub mode: Mode,
    /// The method's own randomness in this step.
    pub rng: StepRng,
    /// Scores of this step's batch, shared by composed methods; see [`StepCx::scores`].
    pub scores: RefCell<Option<Modal<f64>>>,
}

impl StepCx<'_> {
    /// The mean true-class probability of each modality's unimodal logits in this batch (NaN where the modality is
    /// missing in every row). The first method that asks computes it; the others of the step get the same numbers.
    ///
    /// The unimodal logits are the exact shares of a split fusion; otherwise the fused logits with every other
    /// modality masked.
    pub fn scores(&self, features: &Features, split: Option<&Modal<Tensor>>) -> Result<Modal<f64>> {
        if let Some(scores) = self.scores.borrow().as_ref() {
            return Ok(scores.clone());
        }
        let scores = if let Some(split) = split {
            score::true_class(split, self.batch)?
        } else {
            let z = features.map(|_, h| h.detach());
            let logits = match self.model.split_logits(&z)? {
                Some(split) => split,
                None => z.try_map(|m, _| self.model.masked_logits(m, &z, &self.batch.present, Mode::Eval))?,
            };
            score::true_class(&logits, self.batch)?
        };
        *self.scores.borrow_mut() = Some(scores.clone());
        Ok(scores)
    }
}

/// The training rows of an epoch, batch by batch in its order: for methods that look at more than one batch between
/// steps. A batch is read when it is asked for.
pub trait TrainBatches: std::fmt::Debug {
    /// How many there are.
    fn count(&self) -> usize;
    /// The `n`-th.
    fn get(&self, n: usize) -> Result<Batch>;
}

impl TrainBatches for Vec<Batch> {
    fn count(&self) -> usize {
        self.len()
    }
    fn get(&self, n: usize) -> Result<Batch> {
        match self.as_slice().get(n) {
            Some(batch) => Ok(batch.clone()),
            None => bail!("batch {n} was asked for, there are {}", self.len()),
        }
    }
}

/// Batches that a function reads.
pub struct LazyBatches<F> {
    count: usize,
    read: F,
}

impl<F: Fn(usize) -> Result<Batch>> LazyBatches<F> {
    /// `read` is asked for batches below `count`.
    pub fn new(count: usize, read: F) -> Self {
        Self { count, read }
    }
}

impl<F> std::fmt::Debug for LazyBatches<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} batches", self.count)
    }
}

impl<F: Fn(usize) -> Result<Batch>> TrainBatches for LazyBatches<F> {
    fn count(&self) -> usize {
        self.count
    }
    fn get(&self, n: usize) -> Result<Batch> {
        if n >= self.count {
            bail!("batch {n} was asked for, there are {}", self.count);
        }
        (self.read)(n)
    }
}

/// The start of an epoch as a method sees it.
#[derive(Debug)]
pub struct EpochCx<'a> {
    /// The model.
    pub model: &'a dyn Multimodal,
    /// Its parameters.
    pub params: &'a ParamStore,
    /// Epochs count from 0.
    pub epoch: usize,
    /// The learning rate at the start of this epoch.
    pub learning_rate: f64,
    /// A training batch and the held-out rows, where the method's [`Needs`] ask for them.
    pub batches: Option<(&'a Batch, &'a Batch)>,
    /// All training rows, without those that were set aside.
    pub train: Option<&'a dyn TrainBatches>,
    /// The method's own randomness in this epoch.
    pub rng: StepRng,
}

/// What is known at the end of an epoch. Validation numbers only: no method ever sees the test part.
#[derive(Debug, Clone, Default)]
pub struct EpochReport {
    /// Mean training loss.
    pub train_loss: f64,
    /// Validation accuracy of the decision rule.
    pub accuracy: Option<f64>,
    /// Validation accuracy of each modality's unimodal logits.
    pub unimodal: Option<Modal<f64>>,
}

/// Features after a method's `features` hook.
#[derive(Debug, Clone)]
pub struct Edited {
    /// The features, only of the rows kept.
    pub features: Features,
    /// The rows that the features are of, where some were dropped or come more than once; an empty list skips the step.
    pub keep: Option<Vec<u32>>,
}

impl Edited {
    /// Features with all their rows.
    pub fn all(features: Features) -> Self {
        Self { features, keep: None }
    }
}

/// A balancing method: hooks into a training step, each a no-op by default.
///
/// The order within a step: encode, `features`, fuse, `logits`, loss = `task_weight` x cross-entropy + `auxiliary`,
/// backward, `gradients`, clip, optimiser step. A balancer cannot step the optimiser; composition is `(a, b)`.
pub trait Balancer: std::fmt::Debug {
    /// What it asks for.
    fn needs(&self) -> Needs {
        Needs::default()
    }
    /// Weight of the cross-entropy of the decision in this step.
    fn task_weight(&self) -> f64 {
        1.0
    }
    /// Before the first step of an epoch.
    fn epoch_start(&mut self, _cx: &EpochCx<'_>) -> Result<()> {
        Ok(())
    }
    /// May change features, drop rows, or add copies of them.
    fn features(&mut self, _cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        Ok(Edited::all(z))
    }
    /// The decision rule where it is not the fused logits; used in training and in evaluation.
    fn logits(&self, _model: &dyn Multimodal, _batch: &Batch, _fwd: &Forward) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// A scalar added to the loss.
    fn auxiliary(&mut self, _cx: &StepCx<'_>, _fwd: &Forward) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// May change gradients.
    fn gradients(&mut self, _cx: &StepCx<'_>, _fwd: &Forward, _g: &mut Gradients) -> Result<()> {
        Ok(())
    }
    /// After an epoch's evaluation.
    fn epoch_end(&mut self, _cx: &EpochCx<'_>, _seen: &EpochReport) -> Result<()> {
        Ok(())
    }
    /// Reports scores and coefficients of the last step: (name, modality index or `None`, value).
    fn observe(&self, _sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {}
    /// What a checkpoint must hold for training to go on with the same bits.
    fn state(&self) -> State {
        State::new()
    }
    /// Takes a saved state back.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}

/// Joint training: no balancing.
impl Balancer for () {}

/// Two methods, left to right. Two decision rules at once are an error.
impl<A: Balancer, B: Balancer> Balancer for (A, B) {
    fn needs(&self) -> Needs {
        self.0.needs().join(self.1.needs())
    }
    fn task_weight(&self) -> f64 {
        self.0.task_weight() * self.1.task_weight()
    }
    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.0.epoch_start(cx)?;
        self.1.epoch_start(cx)
    }
    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        let first = self.0.features(cx, z)?;
        let Some(keep) = first.keep else { return self.1.features(cx, first.features) };
        if keep.is_empty() {
            return Ok(Edited { features: first.features, keep: Some(keep) });
        }
        let batch = cx.batch.select(&keep)?;
        let cx = StepCx { batch: &batch, scores: cx.scores.clone(), ..*cx };
        let second = self.1.features(&cx, first.features)?;
        let keep = match second.keep {
            None => keep,
            Some(rows) => rows.iter().map(|&r| keep[r as usize]).collect(),
        };
        Ok(Edited { features: second.features, keep: Some(keep) })
    }
    fn logits(&self, model: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Option<Tensor>> {
        match (self.0.logits(model, batch, fwd)?, self.1.logits(model, batch, fwd)?) {
            (Some(_), Some(_)) => bail!("two composed methods both bring their own decision rule; keep one"),
            (a, b) => Ok(a.or(b)),
        }
    }
    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        match (self.0.auxiliary(cx, fwd)?, self.1.auxiliary(cx, fwd)?) {
            (Some(a), Some(b)) => (a + b).map(Some),
            (a, b) => Ok(a.or(b)),
        }
    }
    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        self.0.gradients(cx, fwd, g)?;
        self.1.gradients(cx, fwd, g)
    }
    fn epoch_end(&mut self, cx: &EpochCx<'_>, seen: &EpochReport) -> Result<()> {
        self.0.epoch_end(cx, seen)?;
        self.1.epoch_end(cx, seen)
    }
    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        self.0.observe(sink);
        self.1.observe(sink);
    }
    fn state(&self) -> State {
        let tag = |tag: &str, state: State| -> State {
            state.into_iter().map(|(k, v)| (format!("{tag}.{k}"), v)).collect()
        };
        let mut state = tag("0", self.0.state());
        state.extend(tag("1", self.1.state()));
        state
    }
    fn restore(&mut self, state: &State) -> Result<()> {
        let part = |tag: &str| -> State {
            let strip = |k: &String| k.strip_prefix(tag).and_then(|k| k.strip_prefix('.')).map(str::to_owned);
            state.iter().filter_map(|(k, v)| strip(k).map(|k| (k, v.clone()))).collect()
        };
        self.0.restore(&part("0"))?;
        self.1.restore(&part("1"))
    }
}

impl<B: Balancer + ?Sized> Balancer for Box<B> {
    fn needs(&self) -> Needs {
        (**self).needs()
    }
    fn task_weight(&self) -> f64 {
        (**self).task_weight()
    }
    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        (**self).epoch_start(cx)
    }
    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        (**self).features(cx, z)
    }
    fn logits(&self, model: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Option<Tensor>> {
        (**self).logits(model, batch, fwd)
    }
    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        (**self).auxiliary(cx, fwd)
    }
    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        (**self).gradients(cx, fwd, g)
    }
    fn epoch_end(&mut self, cx: &EpochCx<'_>, seen: &EpochReport) -> Result<()> {
        (**self).epoch_end(cx, seen)
    }
    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        (**self).observe(sink);
    }
    fn state(&self) -> State {
        (**self).state()
    }
    fn restore(&mut self, state: &State) -> Result<()> {
        (**self).restore(state)
    }
}

/// A method that modulates features and gradients only from epoch `start` to epoch `end` (exclusive); its losses,
/// its decision rule and its state are not affected. Outside of these epochs it reports nothing.
#[derive(Debug)]
pub struct Windowed<B> {
    inner: B,
    start: usize,
    end: usize,
    acting: bool,
}

impl<B: Balancer> Windowed<B> {
    /// Modulates in epochs `start..end` only.
    pub fn new(inner: B, start: usize, end: Option<usize>) -> Self {
        Self { inner, start, end: end.unwrap_or(usize::MAX), acting: false }
    }

    fn acts(&mut self, epoch: usize) -> bool {
        self.acting = (self.start..self.end).contains(&epoch);
        self.acting
    }
}

impl<B: Balancer> Balancer for Windowed<B> {
    fn needs(&self) -> Needs {
        self.inner.needs()
    }
    fn task_weight(&self) -> f64 {
        self.inner.task_weight()
    }
    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.inner.epoch_start(cx)
    }
    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        if self.acts(cx.epoch) { self.inner.features(cx, z) } else { Ok(Edited::all(z)) }
    }
    fn logits(&self, model: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Option<Tensor>> {
        self.inner.logits(model, batch, fwd)
    }
    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        self.inner.auxiliary(cx, fwd)
    }
    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        if self.acts(cx.epoch) { self.inner.gradients(cx, fwd, g) } else { Ok(()) }
    }
    fn epoch_end(&mut self, cx: &EpochCx<'_>, seen: &EpochReport) -> Result<()> {
        self.inner.epoch_end(cx, seen)
    }
    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        if self.acting {
            self.inner.observe(sink);
        }
    }
    fn state(&self) -> State {
        self.inner.state()
    }
    fn restore(&mut self, state: &State) -> Result<()> {
        self.inner.restore(state)
    }
}
