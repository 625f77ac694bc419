//! Concatenation and one linear layer.
//!
//! ```text
//! z = W [h_1; …; h_M] + b      z_m = W[:, block m] h_m + b/M      Σ_m z_m = z
//! ```
//!
//! The same function as [`crate::late_linear`] with one weight instead of M. Choose it to load or compare models of the
//! OGM family, which name it so; MLB scales its columns.
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; W (C, ΣD); b (C); z (B, C). M >= 1, widths may
//! differ.
//!
//! Parameters: `fusion.weight`, `fusion.bias`. No settings. They start with PyTorch's default, U(±1/√ΣD).
//!
//! Unimodal predictions: z_m, from the columns of W that belong to the modality.
//!
//! A missing modality has h_m = 0 and contributes b/M.
//!
//! Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (OGM-GE, arXiv 2203.15332).
//!
//! Differences: the released code starts W with Xavier-normal values and b with zero, because its model initialises
//! every linear layer so.

use crate::FusionInfo;
use crate::late_linear::split;
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{Features, Fusion, Head, Init, Modal, Modalities, Mode, Presence, Scope};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "concat",
    summary: "concatenated features and one linear layer; late-linear with a single weight",
    unimodal: "exact: the modality's columns of W, + b/M",
    parameters: &["fusion.weight", "fusion.bias"],
};

/// Settings of [`Concat`]: there are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConcatConfig {}

impl ConcatConfig {
    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        _modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Concat> {
        let total = dims.values().iter().sum();
        let weight = scope.param("weight", (classes, total), Init::linear(total))?;
        let bias = scope.param("bias", classes, Init::linear(total))?;
        let mut start = 0;
        // Views: they follow every update of the weight, and their gradients flow into it.
        let blocks = dims.try_map(|_, &dim| {
            start += dim;
            weight.narrow(1, start - dim, dim)
        })?;
        Ok(Concat { weight, blocks, bias })
    }
}

/// The concatenation fusion; see the equations of this module.
#[derive(Debug)]
pub struct Concat {
    weight: Tensor,
    blocks: Modal<Tensor>,
    bias: Tensor,
}

impl Fusion for Concat {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        sum(split(&self.blocks, &self.bias, z)?.values())
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        split(&self.blocks, &self.bias, z).map(Some)
    }

    fn head(&self) -> Head<'_> {
        Head::Split { weights: self.blocks.values().iter().collect(), bias: Some(&self.bias) }
    }
}

impl Concat {
    /// The logits by one product over the concatenated features, up to rounding those of `fuse`.
    pub fn joined(&self, z: &Features) -> Result<Tensor> {
        let h = z.try_map(|_, h| pooled(h))?;
        mm_kernels::linear::linear(&Tensor::cat(h.values(), 1)?, &self.weight, Some(&self.bias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture};
    use mm_testkit::assert_close;

    #[test]
    fn blocks_follow_the_weight() {
        let (fusion, store) = fixture(&[3, 5], |s, m, d| ConcatConfig::default().build(s, m, d, 4));
        let z = features(&[3, 5], 6);
        let fused = |f: &Concat| f.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap();
        assert_close(&fused(&fusion), &fusion.joined(&z).unwrap(), 1e-12);
        let before = fused(&fusion);
        for p in store.params() {
            p.var().set(&p.var().affine(-2.0, 0.0).unwrap()).unwrap();
        }
        assert_close(&fused(&fusion), &before.affine(-2.0, 0.0).unwrap(), 1e-12);
        let Head::Split { weights, .. } = fusion.head() else { panic!("a split head") };
        let rebuilt = Tensor::cat(weights.values(), 1).unwrap();
        assert_close(&rebuilt, store.find("fusion.weight").unwrap().var(), 0.0);
    }
}
