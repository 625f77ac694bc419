//! A multi-layer perceptron over the summed projections of the features.
//!
//! ```text
//! a_1     = Σ_m W_m h_m + b
//! a_{l+1} = U_l dropout(relu(a_l)) + c_l          l = 1 … layers - 2
//! z       = V dropout(relu(a_{layers - 1})) + d
//! ```
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; W_m (width, D_m); U_l (width, width);
//! V (C, width); z (B, C). M >= 1, widths may differ.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `layers` | 3 | at least 2; linear maps in all |
//! | `width` | 64 | at least 1 |
//! | `dropout` | 0.1 | [0, 1) |
//!
//! Parameters: `fusion.in.<modality>.weight`, `fusion.in_bias`, `fusion.hidden.<l>.{weight,bias}`,
//! `fusion.out.{weight,bias}`. The first layer starts as one linear layer over all ΣD features, U(±1/√ΣD).
//!
//! Unimodal predictions: by masking - the logits when every other modality is missing.
//!
//! A missing modality has h_m = 0 and adds nothing to a_1.
//!
//! Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (MLB, arXiv 2405.07930),
//! the fusion called mid-MLP.
//!
//! Differences: the paper says a two-layer MLP (`layers = 2`), the released code has three maps (the default here). It
//! starts each first map by its own width D_m, and reports unimodal accuracy from heads on the encoders.

use crate::FusionInfo;
use crate::layers::{Linear, check_dropout, dropout};
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{ConfigError, Features, Fusion, Init, Modal, Modalities, Mode, Presence, Scope};
use mm_kernels::{activation::relu, linear::linear};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "mid-mlp",
    summary: "summed projections of the features, then a multi-layer perceptron",
    unimodal: "by masking the other modalities, or from heads on the encoders",
    parameters: &[
        "fusion.in.<modality>.weight",
        "fusion.in_bias",
        "fusion.hidden.<l>.{weight,bias}",
        "fusion.out.{weight,bias}",
    ],
};

/// Settings of [`MidMlp`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MidMlpConfig {
    /// Number of linear maps, the first and the last included.
    pub layers: usize,
    /// Width of the hidden layers.
    pub width: usize,
    /// Dropout after every ReLU.
    pub dropout: f64,
}

impl Default for MidMlpConfig {
    fn default() -> Self {
        Self { layers: 3, width: 64, dropout: 0.1 }
    }
}

impl MidMlpConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        if self.layers < 2 {
            let rule = "must be at least 2; one linear map is the fusion `late-linear`";
            return Err(ConfigError::new("layers", self.layers, rule));
        }
        crate::layers::check_positive("width", self.width)?;
        check_dropout(self.dropout)
    }

    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<MidMlp> {
        self.check().map_err(candle_core::Error::wrap)?;
        let (width, init) = (self.width, Init::linear(dims.values().iter().sum()));
        let first = dims.try_map(|m, &dim| {
            scope.child("in").at(modalities.name(m)).param("weight", (width, dim), init)
        })?;
        let bias = scope.param("in_bias", width, init)?;
        let hidden = (0..self.layers - 2)
            .map(|l| Linear::new(scope.child("hidden").at(l), width, width))
            .collect::<Result<_>>()?;
        let out = Linear::new(scope.child("out"), width, classes)?;
        Ok(MidMlp { first, bias, hidden, out, dropout: self.dropout })
    }
}

/// The mid-MLP fusion; see the equations of this module.
#[derive(Debug)]
pub struct MidMlp {
    first: Modal<Tensor>,
    bias: Tensor,
    hidden: Vec<Linear>,
    out: Linear,
    dropout: f64,
}

impl Fusion for MidMlp {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, mode: Mode) -> Result<Tensor> {
        let parts = z.try_map(|m, h| {
            let bias = (m.index() == 0).then_some(&self.bias);
            linear(&pooled(h)?, &self.first[m], bias)
        })?;
        let mut a = sum(parts.values())?;
        for (l, layer) in self.hidden.iter().chain([&self.out]).enumerate() {
            let mode = mode.stream("hidden").stream(&l.to_string());
            a = layer.forward(&dropout(&relu(&a)?, self.dropout, mode)?)?;
        }
        Ok(a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture};
    use mm_testkit::assert_close;

    #[test]
    fn equals_its_equations() {
        let config = MidMlpConfig { width: 7, ..MidMlpConfig::default() };
        let (fusion, store) = fixture(&[3, 5], |s, m, d| config.build(s, m, d, 4));
        let value = |name: &str| store.find(&format!("fusion.{name}")).unwrap().var().as_tensor().clone();
        let map = |x: &Tensor, w: &str, b: &str| {
            x.matmul(&value(w).t().unwrap()).unwrap().broadcast_add(&value(b)).unwrap()
        };
        let z = features(&[3, 5], 6);
        let second = z.values()[1].matmul(&value("in.b.weight").t().unwrap()).unwrap();
        let a = (map(&z.values()[0], "in.a.weight", "in_bias") + second).unwrap();
        let a = map(&a.relu().unwrap(), "hidden.0.weight", "hidden.0.bias");
        let expected = map(&a.relu().unwrap(), "out.weight", "out.bias");
        assert_close(&fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap(), &expected, 1e-12);
        assert_eq!(store.len(), 7);
    }

    #[test]
    fn the_paper_has_one_map_less() {
        let config = MidMlpConfig { layers: 2, ..MidMlpConfig::default() };
        let (_, store) = fixture(&[3, 5], |s, m, d| config.build(s, m, d, 4));
        assert_eq!(store.len(), 5);
        assert!(MidMlpConfig { layers: 1, ..config }.check().is_err());
    }
}
