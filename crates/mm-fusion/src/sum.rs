//! Sum of one complete linear classifier per modality.
//!
//! ```text
//! z = Σ_m (W_m h_m + b_m)      z_m = W_m h_m + b_m      Σ_m z_m = z
//! ```
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; W_m (C, D_m); b_m (C); z (B, C). M >= 1,
//! widths may differ.
//!
//! Parameters: `fusion.<modality>.weight`, `fusion.<modality>.bias`. No settings. They start with PyTorch's default for
//! each layer, U(±1/√D_m).
//!
//! Unimodal predictions: z_m, each with its whole bias. There is no bias that the modalities share, so the head is not
//! a [`Head::Split`](mm_core::Head::Split); methods that ask for one (MMCosine) need late-linear.
//!
//! A missing modality has h_m = 0 and still contributes b_m, as in the released code.
//!
//! Source: the code of Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (OGM-GE, arXiv
//! 2203.15332).
//!
//! Differences: the released code scores modalities with the whole bias b_m in training but with b_m/2 in evaluation,
//! where the shares then no longer add up to z; here it is b_m in both.

use crate::FusionInfo;
use crate::layers::Linear;
use candle_core::{Result, Tensor};
use mm_core::model::pooled;
use mm_core::{Features, Fusion, Modal, Modalities, Mode, Presence, Scope};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "sum",
    summary: "one linear classifier with its own bias per modality, summed",
    unimodal: "exact: W_m h_m + b_m",
    parameters: &["fusion.<modality>.weight", "fusion.<modality>.bias"],
};

/// Settings of [`Sum`]: there are none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SumConfig {}

impl SumConfig {
    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Sum> {
        let layers = dims.try_map(|m, &dim| Linear::new(scope.child(modalities.name(m)), dim, classes))?;
        Ok(Sum { layers })
    }
}

/// The sum fusion; see the equations of this module.
#[derive(Debug)]
pub struct Sum {
    layers: Modal<Linear>,
}

impl Sum {
    fn parts(&self, z: &Features) -> Result<Modal<Tensor>> {
        z.try_map(|m, h| self.layers[m].forward(&pooled(h)?))
    }
}

impl Fusion for Sum {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        mm_core::model::sum(self.parts(z)?.values())
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        self.parts(z).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture};
    use mm_testkit::assert_close;

    #[test]
    fn shares_carry_their_whole_bias() {
        let (fusion, store) = fixture(&[3, 5], |s, m, d| SumConfig::default().build(s, m, d, 4));
        let zeros = features(&[3, 5], 2).map(|_, h| h.zeros_like().unwrap());
        let parts = fusion.split_logits(&zeros).unwrap().unwrap();
        for (m, name) in [(0, "a"), (1, "b")] {
            let bias = store.find(&format!("fusion.{name}.bias")).unwrap().var().as_tensor();
            assert_close(&parts.values()[m], &bias.broadcast_as((2, 4)).unwrap(), 0.0);
        }
        assert!(matches!(fusion.head(), mm_core::Head::Opaque));
    }
}
