//! ProxyAnchor: each proxy is an anchor that is compared with all rows of the batch at once.
//!
//! ```text
//! s_{i,c} = x_i · p_c / (‖x_i‖ ‖p_c‖)
//! P = 1/|C⁺| Σ_{c in C⁺} log(1 + Σ_{i: y_i=c} e^{-α (s_{i,c} - δ)})
//!   + 1/C Σ_c log(1 + Σ_{i: y_i≠c} e^{α (s_{i,c} + δ)})
//! L = CE(z, y) + weight Σ_m P(h_m, y)
//! ```
//!
//! where C⁺ are the classes that the batch has. Here every modality has proxies of its own (C, D_m) for its features
//! h_m (B, D_m); rows that lack the modality take no part. P is a scalar with a gradient to features and proxies.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` | 1 | > 0 | weight of the losses beside the fused one |
//! | `alpha` α | 32 | > 0 | hardness |
//! | `margin` δ | 0.1 | >= 0 | |
//! | `rate` | 100 | > 0 | learning rate of the proxies over that of the model |
//!
//! Parameters: `balance.proxyanchor.m<index>.proxies`, N(0, 2/C) as there.
//!
//! Differences. The sums are taken in logarithms: e^{35} overflows half precision there. Two classes work; the
//! released code loses a column then. As a loss beside a fused one, one per modality, it is our composition: the
//! paper uses it for retrieval.
//!
//! Source: Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020; released code
//! tjddus9597/Proxy-Anchor-CVPR2020 @51db570.

use crate::multimodal_loss::normalised;
use crate::proxies::{Proxies, log_sum_exp, one_hot};
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Checked, ConfigError, Forward, Gradients, Init, Modal, Scope};
use serde::{Deserialize, Serialize};

/// Settings of [`ProxyAnchor`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyAnchorConfig {
    /// Weight of the losses beside the fused one.
    pub weight: f64,
    /// α, hardness.
    pub alpha: f64,
    /// δ.
    pub margin: f64,
    /// Learning rate of the proxies over that of the model.
    pub rate: f64,
}

impl Default for ProxyAnchorConfig {
    fn default() -> Self {
        Self { weight: 1.0, alpha: 32.0, margin: 0.1, rate: 100.0 }
    }
}

impl ProxyAnchorConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, 1e6)?;
        ConfigError::check_range("margin", self.margin, 0.0, f64::MAX)?;
        ConfigError::check_range("rate", self.rate, f64::MIN_POSITIVE, f64::MAX)
    }

    /// Makes the proxies under `scope`.
    pub fn build(&self, scope: Scope<'_>, widths: &Modal<usize>, classes: usize) -> Result<ProxyAnchor> {
        let init = Init::Normal { mean: 0.0, std: (2.0 / classes.max(1) as f64).sqrt() };
        let proxies = Proxies::new(scope, widths, |w| (classes, w), |_| init, (self.weight, self.rate))?;
        Ok(ProxyAnchor { config: self.clone(), proxies })
    }
}

/// P for features (B, D) and proxies (C, D); rows of weight 0 take no part.
pub fn loss(
    features: &Tensor,
    proxies: &Tensor,
    labels: &[u32],
    weights: Option<&[f64]>,
    config: &ProxyAnchorConfig,
) -> Result<Tensor> {
    let ((rows, width), (classes, expected)) = (features.dims2()?, proxies.dims2()?);
    if width != expected {
        bail!(
            "ProxyAnchor: features of width {width} against proxies of width {expected}; they must be equal"
        );
    }
    let similarity = normalised(features, 1)?.matmul(&normalised(proxies, 1)?.t()?)?;
    let right = one_hot(labels, classes, &similarity)?;
    let here: Vec<f64> = (0..rows)
        .map(|row| f64::from(u8::from(weights.is_none_or(|w| w.get(row).is_some_and(|&w| w > 0.0)))))
        .collect();
    let mut seen = vec![false; classes];
    for (&label, _) in labels.iter().zip(&here).filter(|(_, here)| **here > 0.0) {
        seen[label as usize] = true; // `one_hot` has checked the labels
    }
    let seen = seen.iter().filter(|&&s| s).count().max(1);
    let here = Tensor::from_vec(here, (rows, 1), right.device())?.to_dtype(right.dtype())?;
    let positive = right.broadcast_mul(&here)?;
    let negative = right.affine(-1.0, 1.0)?.broadcast_mul(&here)?;
    let (alpha, margin) = (config.alpha, config.margin);
    let pull = soft_sum(&similarity.affine(-alpha, alpha * margin)?, &positive)?;
    let push = soft_sum(&similarity.affine(alpha, alpha * margin)?, &negative)?;
    (pull / seen as f64)? + (push / classes as f64)?
}

/// `Σ_c log(1 + Σ_i mask_{i,c} e^{a_{i,c}})`; a class without rows adds nothing.
fn soft_sum(exponents: &Tensor, mask: &Tensor) -> Result<Tensor> {
    // Masked entries are far below 0, the exponent of the 1, so they vanish; and they have no gradient.
    let far = mask.affine(1e9, -1e9)?;
    let masked = ((exponents * mask)? + far)?;
    let one = masked.zeros_like()?.narrow(0, 0, 1)?;
    log_sum_exp(&Tensor::cat(&[one, masked], 0)?, 0)?.sum_all()
}

/// See the [module](self).
#[derive(Debug)]
pub struct ProxyAnchor {
    config: ProxyAnchorConfig,
    proxies: Proxies,
}

impl Balancer for ProxyAnchor {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (labels, config) = (&cx.batch.labels, &self.config);
        self.proxies.loss(cx, fwd, |h, p, weights| loss(h, p, labels, weights, config))
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        self.proxies.gradients(cx, g);
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        self.proxies.observe(sink);
    }
}
