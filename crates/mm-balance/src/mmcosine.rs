//! MMCosine: the fused logits are a sum of cosines between each modality's features and its class weights.
//!
//! ```text
//! z^m_c = s h_m · W_{m,c} / (‖h_m‖ ‖W_{m,c}‖)
//! z     = Σ_m z^m
//! L     = CE(z, y)
//! ```
//!
//! Neither the length of a modality's features nor that of its weights can make it lead; there is no bias. Shapes:
//! h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; W_m (C, D_m); z (B, C). The method brings this sum
//! as its own fusion, in the place of the configured one, so the modalities' shares of the logits are exact and
//! methods that read them (OGM, OPM) can be composed with it.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `scale` s | 10 | > 0 | length that the unit vectors are given |
//!
//! Parameters: `fusion.<modality>.weight`, which start as a linear layer over all ΣD features would: U(±1/√ΣD).
//!
//! Differences. The released script offers a class-aware contrastive term whose default weight is 0; it is not here.
//! A feature vector of zeros - a missing modality - has the logits 0 and passes no gradient on to its encoder; the
//! released code multiplies its gradient by 1e12. Released for M = 2; the sum is theirs for any M.
//!
//! Source: Xu, Feng, Zhang and Hu, "MMCosine", ICASSP 2023; released code GeWu-Lab/MMCosine_ICASSP23 @00ba0a9.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! let h = Tensor::new(&[[3f64, 4.0]], &Device::Cpu)?;
//! let w = Tensor::new(&[[2f64, 0.0], [0.0, 7.0]], &Device::Cpu)?;
//! let z = mm_balance::mmcosine::logits(&h, &w, 10.0)?.to_vec2::<f64>()?;
//! assert!((z[0][0] - 6.0).abs() < 1e-12 && (z[0][1] - 8.0).abs() < 1e-12);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::multimodal_loss::normalised;
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, sum};
use mm_core::{Checked, ConfigError, Features, Fusion, Init, Modal, Modalities, Mode, Presence, Scope};
use serde::{Deserialize, Serialize};

/// Settings of [`Cosine`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmCosineConfig {
    /// s, the length of the unit vectors.
    pub scale: f64,
}

impl Default for MmCosineConfig {
    fn default() -> Self {
        Self { scale: 10.0 }
    }
}

impl MmCosineConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("scale", self.scale, f64::MIN_POSITIVE, f64::MAX)
    }

    /// Makes the weights under `scope`.
    pub fn fusion(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        widths: &Modal<usize>,
        classes: usize,
    ) -> Result<Cosine> {
        let init = Init::linear(widths.values().iter().sum());
        let weights = widths
            .try_map(|m, &width| scope.child(modalities.name(m)).param("weight", (classes, width), init))?;
        Ok(Cosine { weights, scale: self.scale })
    }
}

/// `s cos(h, W_c)`: logits (B, C) of features (B, D) and weights (C, D).
pub fn logits(features: &Tensor, weights: &Tensor, scale: f64) -> Result<Tensor> {
    let ((_, width), (_, expected)) = (features.dims2()?, weights.dims2()?);
    if width != expected {
        bail!("MMCosine: features of width {width} against weights of width {expected}; they must be equal");
    }
    normalised(features, 1)?.matmul(&normalised(weights, 1)?.t()?)? * scale
}

/// The fusion of the method; see the [module](self).
#[derive(Debug)]
pub struct Cosine {
    weights: Modal<Tensor>,
    scale: f64,
}

impl Cosine {
    fn parts(&self, z: &Features) -> Result<Modal<Tensor>> {
        z.try_map(|m, h| logits(&pooled(h)?, &self.weights[m], self.scale))
    }
}

impl Fusion for Cosine {
    fn fuse(&self, z: &Features, _: &Modal<Option<Presence>>, _: Mode) -> Result<Tensor> {
        sum(self.parts(z)?.values())
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        self.parts(z).map(Some)
    }
}
