//! Late-linear fusion: one linear map per modality, one shared bias; a *split head*.
//!
//! ```text
//! z = Σ_m W_m h_m + b          z_m = W_m h_m + b/M          Σ_m z_m = z
//! ```
//!
//! Equal to a linear layer over the concatenated features, with the weight cut into one block per modality, so a
//! balancing method reaches a modality's share of the last layer by name.
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; W_m (C, D_m); b (C); z (B, C). M >= 1, widths
//! may differ.
//!
//! Parameters: `fusion.<modality>.weight`, `fusion.bias`. No settings. They start as PyTorch starts the linear layer
//! over all ΣD features: U(±1/√ΣD).
//!
//! Unimodal predictions: z_m, exact and free.
//!
//! A missing modality has h_m = 0 and contributes b/M.
//!
//! Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (MLB, arXiv 2405.07930),
//! the fusion called late-linear; Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation"
//! (OGM-GE, arXiv 2203.15332).
//!
//! Differences: the released MLB code puts the bias into the first modality's map, later versions apart from both as
//! here; it starts each map by its own width D_m.

use crate::FusionInfo;
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{Features, Fusion, Head, Init, Modal, Modalities, Mode, Presence, Scope};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "late-linear",
    summary: "one linear map per modality and a shared bias, summed; equals concat + linear",
    unimodal: "exact: W_m h_m + b/M",
    parameters: &["fusion.<modality>.weight", "fusion.bias"],
};

/// Settings of [`LateLinear`]: there are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LateLinearConfig {}

impl LateLinearConfig {
    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<LateLinear> {
        let init = Init::linear(dims.values().iter().sum());
        let weights =
            dims.try_map(|m, &dim| scope.child(modalities.name(m)).param("weight", (classes, dim), init))?;
        let bias = scope.param("bias", classes, init)?;
        Ok(LateLinear { weights, bias })
    }
}

/// The late-linear fusion; see the equations of this module.
#[derive(Debug)]
pub struct LateLinear {
    weights: Modal<Tensor>,
    bias: Tensor,
}

impl LateLinear {
    fn parts(&self, z: &Features) -> Result<Modal<Tensor>> {
        split(&self.weights, &self.bias, z)
    }
}

impl Fusion for LateLinear {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        sum(self.parts(z)?.values())
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        self.parts(z).map(Some)
    }

    fn head(&self) -> Head<'_> {
        Head::Split { weights: self.weights.values().iter().collect(), bias: Some(&self.bias) }
    }
}

/// `W_m h_m + b/M` of every modality.
pub(crate) fn split(weights: &Modal<Tensor>, bias: &Tensor, z: &Features) -> Result<Modal<Tensor>> {
    let share = bias.affine(1.0 / weights.len() as f64, 0.0)?;
    z.try_map(|m, h| mm_kernels::linear::linear(&pooled(h)?, &weights[m], Some(&share)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture};
    use mm_testkit::assert_close;

    #[test]
    fn equals_concat_and_linear() {
        let (fusion, store) = fixture(&[3, 5, 2], |s, m, d| LateLinearConfig::default().build(s, m, d, 4));
        let z = features(&[3, 5, 2], 6);
        let value = |name: &str| store.find(name).unwrap().var().as_tensor().clone();
        let weight = Tensor::cat(&["a", "b", "c"].map(|m| value(&format!("fusion.{m}.weight"))), 1).unwrap();
        let h = Tensor::cat(z.values(), 1).unwrap();
        let expected = h.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&value("fusion.bias")).unwrap();
        let fused = fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap();
        assert_close(&fused, &expected, 1e-12);
        let Head::Split { weights, bias } = fusion.head() else { panic!("a split head") };
        assert_eq!(weights.len(), 3);
        assert_close(bias.unwrap(), &value("fusion.bias"), 0.0);
    }

    #[test]
    fn starts_like_one_linear_layer() {
        let (_, store) = fixture(&[300, 100], |s, m, d| LateLinearConfig::default().build(s, m, d, 50));
        for p in store.params() {
            let values = mm_core::model::to_host(p.var().as_tensor()).unwrap();
            let largest = values.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
            assert!((0.9 / 20.0..=1.0 / 20.0).contains(&largest), "{}: {largest}", p.name());
        }
    }

    #[test]
    fn a_missing_modality_contributes_its_share_of_the_bias() {
        let (fusion, store) = fixture(&[3, 5], |s, m, d| LateLinearConfig::default().build(s, m, d, 4));
        let z = features(&[3, 5], 1).map(|_, h| h.zeros_like().unwrap());
        let half = store.find("fusion.bias").unwrap().var().affine(0.5, 0.0).unwrap().unsqueeze(0).unwrap();
        for part in fusion.split_logits(&z).unwrap().unwrap().values() {
            assert_close(part, &half, 0.0);
        }
    }
}
