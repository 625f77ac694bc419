//! Gated fusion: one modality opens and closes the channels of the others.
//!
//! ```text
//! s_m = sigmoid(G_m h_g + g_m)                     for every modality m other than the gate g
//! z   = Σ_{m ≠ g} V_m (s_m ⊙ (W_m h_m + w_m)) + v
//! ```
//!
//! With two modalities there is one term, as published. With more each of the others has a gate of its own, and the
//! gated values are mapped to logits and summed (our extension).
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; G_m (H_m, D_g); W_m (H_m, D_m); V_m (C, H_m);
//! z (B, C). M >= 2, widths may differ.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `gate` | the first modality | a modality's name |
//! | `width` | D_m | H_m, at least 1; the same for every gated modality where it is given |
//!
//! Parameters: `fusion.gate.<modality>.{weight,bias}`, `fusion.value.<modality>.{weight,bias}`,
//! `fusion.out.<modality>.weight`, `fusion.out.bias`, for every modality but the gate.
//!
//! Unimodal predictions: by masking - the logits when every other modality is missing. The gate alone decides through
//! the biases w_m only.
//!
//! Missing modalities: in rows without the gate s = 1, so the values pass unchanged; a missing gated modality has
//! h_m = 0, and the gated bias s_m ⊙ w_m remains.
//!
//! Source: Kiela et al., "Efficient Large-Scale Multi-Modal Classification" (arXiv 1802.02892), as a fusion in the code
//! of OGM-GE (arXiv 2203.15332) and of MLB (arXiv 2405.07930).
//!
//! Differences: in the released code audio is the gate, which is the default here where audio is named first. The
//! released code treats a missing gate as zero features, so the gate is then sigmoid(g_m).

use crate::FusionInfo;
use crate::layers::{Linear, at_least_two, check_positive, chosen, neutral};
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{ConfigError, Features, Fusion, Init, Modal, Modalities, Modality, Mode, Presence, Scope};
use mm_kernels::{activation::sigmoid, linear::linear};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "gated",
    summary: "one modality opens and closes the channels of the others",
    unimodal: "by masking the other modalities, or from heads on the encoders",
    parameters: &[
        "fusion.gate.<modality>.{weight,bias}",
        "fusion.value.<modality>.{weight,bias}",
        "fusion.out.<modality>.weight",
        "fusion.out.bias",
    ],
};

/// Settings of [`Gated`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatedConfig {
    /// The modality that gates the others; the first where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// Number of gated channels per modality; that modality's own width where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
}

impl GatedConfig {
    /// Checks every setting and the number of modalities.
    pub fn check(&self, modalities: &Modalities) -> std::result::Result<(), ConfigError> {
        at_least_two(INFO.name, modalities)?;
        check_positive("width", self.width.unwrap_or(1))?;
        chosen("gate", self.gate.as_deref(), modalities).map(drop)
    }

    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Gated> {
        self.check(modalities).map_err(candle_core::Error::wrap)?;
        let gate = chosen("gate", self.gate.as_deref(), modalities).map_err(candle_core::Error::wrap)?;
        let others = || dims.iter().filter(|(m, _)| *m != gate);
        let width = |dim: usize| self.width.unwrap_or(dim);
        let init = Init::linear(others().map(|(_, &dim)| width(dim)).sum());
        let mut branches = Vec::with_capacity(dims.len() - 1);
        for (m, &dim) in others() {
            let (name, width) = (modalities.name(m), width(dim));
            branches.push(Branch {
                m,
                gate: Linear::new(scope.child("gate").at(name), dims[gate], width)?,
                value: Linear::new(scope.child("value").at(name), dim, width)?,
                out: scope.child("out").at(name).param("weight", (classes, width), init)?,
            });
        }
        let bias = scope.child("out").param("bias", classes, init)?;
        Ok(Gated { gate, branches, bias })
    }
}

/// The gated fusion; see the equations of this module.
#[derive(Debug)]
pub struct Gated {
    gate: Modality,
    branches: Vec<Branch>,
    bias: Tensor,
}

#[derive(Debug)]
struct Branch {
    m: Modality,
    gate: Linear,
    value: Linear,
    out: Tensor,
}

impl Fusion for Gated {
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        let opener = pooled(&z[self.gate])?;
        let there = present[self.gate].as_ref();
        let terms = self.branches.iter().enumerate().map(|(i, branch)| {
            let gate = neutral(&sigmoid(&branch.gate.forward(&opener)?)?, there, 1.0)?;
            let gated = (gate * branch.value.forward(&pooled(&z[branch.m])?)?)?;
            linear(&gated, &branch.out, (i == 0).then_some(&self.bias))
        });
        sum(&terms.collect::<Result<Vec<_>>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture, missing};
    use mm_testkit::assert_close;

    #[test]
    fn equals_its_equation() {
        let (fusion, store) = fixture(&[3, 5], |s, m, d| GatedConfig::default().build(s, m, d, 4));
        let value = |name: &str| store.find(&format!("fusion.{name}")).unwrap().var().as_tensor().clone();
        let map = |x: &Tensor, w: &str, b: &str| {
            x.matmul(&value(w).t().unwrap()).unwrap().broadcast_add(&value(b)).unwrap()
        };
        let z = features(&[3, 5], 6);
        let gate = map(&z.values()[0], "gate.b.weight", "gate.b.bias");
        let gate = (gate.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
        let values = map(&z.values()[1], "value.b.weight", "value.b.bias");
        let expected = map(&(gate * &values).unwrap(), "out.b.weight", "out.bias");
        assert_close(&fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap(), &expected, 1e-12);

        // Without the gate the values pass unchanged.
        let open = fusion.fuse(&z, &missing(&z, 0), Mode::Eval).unwrap();
        assert_close(&open, &map(&values, "out.b.weight", "out.bias"), 1e-12);
    }

    #[test]
    fn the_width_is_the_modality_s_own_or_the_given_one() {
        for (width, expected) in [(None, 5), (Some(2), 2)] {
            let config = GatedConfig { gate: None, width };
            let (_, store) = fixture(&[3, 5], |s, m, d| config.build(s, m, d, 4));
            assert_eq!(store.find("fusion.gate.b.weight").unwrap().var().dims(), [expected, 3]);
            assert_eq!(store.find("fusion.out.b.weight").unwrap().var().dims(), [4, expected]);
        }
    }
}
