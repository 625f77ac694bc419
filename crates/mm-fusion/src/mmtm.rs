//! Multimodal transfer module: what all modalities have in common opens and closes the channels of each.
//!
//! ```text
//! e   = relu(Σ_m S_m h_m + s)                      squeeze: what all modalities say together
//! g_m = sigmoid(X_m e + x_m)                       excite: a gate for each channel of m
//! z   = 1/M Σ_m (W_m (g_m ⊙ h_m) + b_m)            the mean of one prediction per modality
//! ```
//!
//! A gate is how one modality reaches the branch of another. For the method `greedy` it can be *held*: in training the
//! branch of a held modality is gated by the mean of its gates so far, and so learns from its own modality alone.
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken - the same gate on every token and then their
//! mean would be equal; S_m (E, D_m) with E = max(1, ⌊2 ΣD / ratio⌋); X_m (D_m, E); W_m (C, D_m); z (B, C). M >= 2,
//! widths may differ.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `ratio` | 4 | >= 0.125; how much the squeeze narrows |
//!
//! Parameters: `fusion.squeeze.<modality>.weight`, `fusion.squeeze.bias`, `fusion.excite.<modality>.{weight,bias}`,
//! `fusion.out.<modality>.{weight,bias}`. Buffers: `fusion.gate.<modality>.{mean,batches}`, the mean of the gates over
//! the training batches that have the modality and how many those were, and `fusion.gate.<modality>.held`, 0 or 1. In
//! evaluation no gate is held and no mean moves. A method may fuse a batch several times in one step, with modalities
//! missing or permuted: the first pass alone moves the mean. Passes of one step are told by their key, so every step needs one of its own.
//!
//! Unimodal predictions: by masking - the logits when every other modality is missing. The terms of z are no shares of
//! single modalities, since a gate depends on all of them.
//!
//! Missing modalities: h_m = 0 adds nothing to the squeeze, and b_m / M remains of its term.
//!
//! Source: Joze et al., "MMTM: Multimodal Transfer Module for CNN Fusion", CVPR 2020 (arXiv 1911.08670), as in the code
//! of Wu et al., "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep Neural Networks"
//! (arXiv 2202.05306), nyukat/greedy_multimodal_learning @cf28c4c.
//!
//! Differences: there modules sit behind three stages of two convolutional networks; here one module gates what the
//! encoders yield, as the last of those three does. Released for M = 2. One matrix of the squeeze is cut into a block
//! per modality, which is the same map. The released running mean also moves in evaluation, and that of the second
//! modality takes the gates of the first; here each takes its own, in training only.

use crate::FusionInfo;
use crate::layers::{Linear, at_least_two};
use candle_core::{Result, Tensor, Var};
use mm_core::model::{pooled, sum, to_host};
use mm_core::{ConfigError, Features, Fusion, Init, Modal, Modalities, Mode, Presence, Scope, StepRng};
use mm_kernels::{linear::linear, relu, sigmoid};
use serde::{Deserialize, Serialize};
use std::sync::Mutex;

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "mmtm",
    summary: "what all modalities have in common opens and closes the channels of each",
    unimodal: "by masking the other modalities, or from heads on the encoders",
    parameters: &[
        "fusion.squeeze.<modality>.weight",
        "fusion.squeeze.bias",
        "fusion.excite.<modality>.{weight,bias}",
        "fusion.out.<modality>.{weight,bias}",
    ],
};

/// Settings of [`Mmtm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmtmConfig {
    /// How much the squeeze narrows: its width is 2 ΣD / ratio.
    pub ratio: f64,
}

impl Default for MmtmConfig {
    fn default() -> Self {
        Self { ratio: 4.0 }
    }
}

impl MmtmConfig {
    /// Checks every setting and the number of modalities.
    pub fn check(&self, modalities: &Modalities) -> std::result::Result<(), ConfigError> {
        at_least_two(INFO.name, modalities)?;
        // Below, the squeeze is wider than 16 ΣD: a slip, and with small numbers no memory would hold it.
        ConfigError::check_range("ratio", self.ratio, 0.125, f64::MAX)
    }

    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Mmtm> {
        self.check(modalities).map_err(candle_core::Error::wrap)?;
        let total: usize = dims.values().iter().sum();
        let narrow = (2.0 * total as f64 / self.ratio) as usize; // rounds down, as published
        let width = narrow.max(1);
        let mut squeeze = scope.child("squeeze");
        let blocks = dims.try_map(|m, &dim| {
            squeeze.child(modalities.name(m)).param("weight", (width, dim), Init::linear(total))
        })?;
        let bias = squeeze.param("bias", width, Init::linear(total))?;
        let branches = dims.try_map(|m, &dim| {
            let name = modalities.name(m);
            let excite = Linear::new(scope.child("excite").at(name), width, dim)?;
            let out = Linear::new(scope.child("out").at(name), dim, classes)?;
            let mut gate = scope.child("gate").at(name);
            Result::Ok(Branch {
                excite,
                out,
                mean: gate.buffer("mean", dim, Init::Const(0.0))?,
                batches: gate.buffer("batches", 1, Init::Const(0.0))?,
                held: gate.buffer("held", 1, Init::Const(0.0))?,
            })
        })?;
        Ok(Mmtm { squeeze: blocks, bias, branches, last: Mutex::new(None) })
    }
}

/// The MMTM fusion; see the equations of this module.
#[derive(Debug)]
pub struct Mmtm {
    squeeze: Modal<Tensor>,
    bias: Tensor,
    branches: Modal<Branch>,
    /// The randomness of the last pass in training.
    last: Mutex<Option<StepRng>>,
}

#[derive(Debug)]
struct Branch {
    excite: Linear,
    out: Linear,
    mean: Var,
    batches: Var,
    held: Var,
}

impl Branch {
    /// The gate that training uses; the first pass of a step moves the mean.
    fn train(&self, gate: Tensor, present: Option<&Presence>, first: bool) -> Result<Tensor> {
        let rows = present.map_or(gate.dim(0)?, Presence::count);
        if first && rows > 0 {
            let detached = gate.detach();
            let here = present.map_or(Ok(detached.clone()), |p| p.apply(&detached))?;
            let now = (here.sum(0)? / rows as f64)?;
            let batches = (self.batches.as_detached_tensor() + 1.0)?;
            let mean = self.mean.as_detached_tensor();
            self.mean.set(&(&mean + (now - &mean)?.broadcast_div(&batches)?)?)?;
            self.batches.set(&batches)?;
        }
        if to_host(self.held.as_tensor())?.first().is_some_and(|held| *held != 0.0) {
            // The layer's gradient is zero then, and not missing.
            return (&gate * gate.zeros_like()?)?.broadcast_add(&self.mean.as_detached_tensor());
        }
        Ok(gate)
    }
}

impl Mmtm {
    /// Whether no pass had this randomness before.
    fn is_first(&self, rng: StepRng) -> bool {
        // A thread that panicked while it held the lock has left a whole value.
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.replace(rng) != Some(rng)
    }
}

impl Fusion for Mmtm {
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, mode: Mode) -> Result<Tensor> {
        let first = match mode {
            Mode::Train(rng) => self.is_first(rng),
            Mode::Eval => false,
        };
        let h = z.try_map(|_, h| pooled(h))?;
        let parts = h.try_map(|m, h| linear(h, &self.squeeze[m], (m.index() == 0).then_some(&self.bias)))?;
        let squeezed = relu(&sum(parts.values())?)?;
        let logits = h.try_map(|m, h| {
            let branch = &self.branches[m];
            let mut gate = sigmoid(&branch.excite.forward(&squeezed)?)?;
            if mode.is_train() {
                gate = branch.train(gate, present[m].as_ref(), first)?;
            }
            branch.out.forward(&(gate * h)?)
        })?;
        sum(logits.values())? / h.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture, missing};
    use mm_core::ParamStore;
    use mm_testkit::assert_close;

    const DIMS: [usize; 2] = [3, 5];

    fn made() -> (Mmtm, ParamStore) {
        fixture(&DIMS, |s, m, d| MmtmConfig::default().build(s, m, d, 4))
    }

    fn value(store: &ParamStore, name: &str) -> Tensor {
        store.tensors()[&format!("fusion.{name}")].clone()
    }

    fn map(store: &ParamStore, x: &Tensor, layer: &str) -> Tensor {
        let weight = value(store, &format!("{layer}.weight"));
        let product = x.matmul(&weight.t().unwrap()).unwrap();
        product.broadcast_add(&value(store, &format!("{layer}.bias"))).unwrap()
    }

    /// The gates, in plain operations.
    fn gates(store: &ParamStore, z: &Features) -> [Tensor; 2] {
        let weight =
            Tensor::cat(&["a", "b"].map(|m| value(store, &format!("squeeze.{m}.weight"))), 1).unwrap();
        let h = Tensor::cat(z.values(), 1).unwrap();
        let squeezed = h.matmul(&weight.t().unwrap()).unwrap();
        let squeezed = squeezed.broadcast_add(&value(store, "squeeze.bias")).unwrap().relu().unwrap();
        ["a", "b"].map(|m| {
            let opened = map(store, &squeezed, &format!("excite.{m}"));
            (opened.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap()
        })
    }

    fn mean(store: &ParamStore, z: &Features, gates: &[Tensor; 2]) -> Tensor {
        let term =
            |m: usize, name: &str| map(store, &(&gates[m] * &z.values()[m]).unwrap(), &format!("out.{name}"));
        ((term(0, "a") + term(1, "b")).unwrap() / 2.0).unwrap()
    }

    #[test]
    fn equals_its_equation() {
        let (fusion, store) = made();
        assert_eq!(value(&store, "squeeze.bias").dims(), [4]);
        let z = features(&DIMS, 6);
        let expected = mean(&store, &z, &gates(&store, &z));
        assert_close(&fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap(), &expected, 1e-12);

        // A missing modality: nothing to squeeze, and the bias of its term remains.
        let zero = z.map(|m, h| if m.index() == 0 { h.zeros_like().unwrap() } else { h.clone() });
        let expected = mean(&store, &zero, &gates(&store, &zero));
        assert_close(&fusion.fuse(&zero, &missing(&z, 0), Mode::Eval).unwrap(), &expected, 1e-12);
    }

    #[test]
    fn a_held_gate_is_the_mean_of_those_before_it() {
        let (fusion, store) = made();
        let train = |step| Mode::Train(StepRng::new(0).step(step));
        let batches = [features(&DIMS, 6), features(&DIMS, 4).map(|_, h| h.affine(-0.5, 0.2).unwrap())];
        let everywhere = batches[0].map(|_, _| None);
        let seen = batches.each_ref().map(|z| gates(&store, z));
        for (step, z) in (0..).zip(&batches) {
            let live = fusion.fuse(z, &everywhere, train(step)).unwrap();
            assert_close(&live, &fusion.fuse(z, &everywhere, Mode::Eval).unwrap(), 0.0);
        }
        let average = |m: usize| {
            let [one, two] = seen.each_ref().map(|gates| gates[m].mean(0).unwrap());
            ((one + two).unwrap() / 2.0).unwrap()
        };
        assert_close(&value(&store, "gate.a.mean"), &average(0), 1e-14);
        assert_close(&value(&store, "gate.b.mean"), &average(1), 1e-14);
        // Another pass of the same step, without a modality, says nothing about the gates of training.
        fusion.fuse(&batches[0], &missing(&batches[0], 1), train(1)).unwrap();
        assert_close(&value(&store, "gate.a.mean"), &average(0), 1e-14);
        assert_eq!(to_host(&value(&store, "gate.a.batches")).unwrap(), [2.0]);

        // Held, the batch at hand counts too; the other gate stays what it is, and so does evaluation.
        let held = store.buffers().iter().find(|b| b.name() == "fusion.gate.a.held").unwrap();
        held.var().set(&held.var().ones_like().unwrap()).unwrap();
        let z = &batches[0];
        let fixed = ((average(0) * 2.0).unwrap() + seen[0][0].mean(0).unwrap()).unwrap();
        let fixed = (fixed / 3.0).unwrap().broadcast_as(seen[0][0].shape()).unwrap();
        let expected = mean(&store, z, &[fixed, seen[0][1].clone()]);
        assert_close(&fusion.fuse(z, &everywhere, train(2)).unwrap(), &expected, 1e-13);
        let live = mean(&store, z, &seen[0]);
        assert_close(&fusion.fuse(z, &everywhere, Mode::Eval).unwrap(), &live, 1e-12);
    }

    #[test]
    fn rows_without_the_modality_do_not_count_in_the_mean() {
        let (fusion, store) = made();
        let z = features(&DIMS, 4);
        let present =
            Presence::new(vec![true, false, false, true], z.values()[0].dtype(), z.values()[0].device());
        let present = Modal::new(vec![Some(present.unwrap()), None]);
        let z = z.map(|m, h| present[m].as_ref().map_or(h.clone(), |p| p.apply(h).unwrap()));
        fusion.fuse(&z, &present, Mode::Train(StepRng::new(0))).unwrap();
        let gate = &gates(&store, &z)[0];
        let two = (gate.narrow(0, 0, 1).unwrap() + gate.narrow(0, 3, 1).unwrap()).unwrap();
        assert_close(&value(&store, "gate.a.mean"), &(two / 2.0).unwrap().squeeze(0).unwrap(), 1e-14);
        fusion.fuse(&z, &missing(&z, 0), Mode::Train(StepRng::new(0).step(1))).unwrap();
        assert_eq!(to_host(&value(&store, "gate.a.batches")).unwrap(), [1.0]);
        assert_eq!(to_host(&value(&store, "gate.b.batches")).unwrap(), [2.0]);
    }

    #[test]
    fn a_squeeze_of_no_sensible_width_is_refused() {
        let modalities = mm_core::Modalities::new(["a", "b"]).unwrap();
        for (ratio, good) in
            [(0.125, true), (4.0, true), (1e9, true), (0.12, false), (0.0, false), (f64::NAN, false)]
        {
            assert_eq!(MmtmConfig { ratio }.check(&modalities).is_ok(), good, "{ratio}");
        }
    }
}
