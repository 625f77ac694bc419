//! SoftTriple: several centres per class, and a row is compared with a soft choice among them.
//!
//! ```text
//! S_{c,k} = x · w_{c,k}                                  x, w of unit length
//! S'_c    = Σ_k softmax_k(S_c / γ)_k S_{c,k}
//! P       = CE(λ (S' - δ 1_y), y) + τ Σ_c Σ_{i<j} √(2 + 1e-5 - 2 w_{c,i}·w_{c,j}) / (C K (K-1))
//! L       = CE(z, y) + weight Σ_m P(h_m, y)
//! ```
//!
//! The second term of P draws centres of a class together until as few are left as the class needs. Here every
//! modality has centres of its own for its features h_m (B, D_m); rows that lack the modality are left out of the
//! mean. Centres are (D_m, CK), class-major. P is a scalar with a gradient to features and centres.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` | 1 | > 0 | weight of the losses beside the fused one |
//! | `centers` K | 10 | >= 1 | centres per class |
//! | `scale` λ | 20 | > 0 | inverse temperature of the classes |
//! | `gamma` γ | 0.1 | > 0 | temperature within a class |
//! | `tau` τ | 0.2 | >= 0 | weight of the regulariser |
//! | `margin` δ | 0.01 | >= 0 | |
//! | `rate` | 100 | > 0 | learning rate of the centres over that of the model |
//!
//! Parameters: `balance.softtriple.m<index>.proxies`, U(±1/√(CK)).
//!
//! Differences. The loss is that of the released code, which expects inputs of unit length; they are normalised here.
//! As a loss beside a fused one, one per modality, it is our composition: the papers use it for retrieval. `tau = 0`
//! is the loss of pytorch-metric-learning.
//!
//! Source: Qian et al., "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019; released code
//! idstcv/SoftTriple @cc1c32d.

use crate::multimodal_loss::normalised;
use crate::proxies::{Proxies, one_hot};
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Checked, ConfigError, Forward, Gradients, Init, Modal, Scope};
use mm_kernels::cross_entropy;
use mm_kernels::softmax::softmax_last;
use serde::{Deserialize, Serialize};

/// Settings of [`SoftTriple`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftTripleConfig {
    /// Weight of the losses beside the fused one.
    pub weight: f64,
    /// K, centres per class.
    pub centers: usize,
    /// λ, inverse temperature of the classes.
    pub scale: f64,
    /// γ, temperature within a class.
    pub gamma: f64,
    /// τ, weight of the regulariser.
    pub tau: f64,
    /// δ.
    pub margin: f64,
    /// Learning rate of the centres over that of the model.
    pub rate: f64,
}

impl Default for SoftTripleConfig {
    fn default() -> Self {
        Self { weight: 1.0, centers: 10, scale: 20.0, gamma: 0.1, tau: 0.2, margin: 0.01, rate: 100.0 }
    }
}

impl SoftTripleConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("centers", self.centers as f64, 1.0, 1e6)?;
        ConfigError::check_range("scale", self.scale, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("gamma", self.gamma, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("tau", self.tau, 0.0, f64::MAX)?;
        ConfigError::check_range("margin", self.margin, 0.0, f64::MAX)?;
        ConfigError::check_range("rate", self.rate, f64::MIN_POSITIVE, f64::MAX)
    }

    /// Makes the centres under `scope`.
    pub fn build(&self, scope: Scope<'_>, widths: &Modal<usize>, classes: usize) -> Result<SoftTriple> {
        let columns = classes * self.centers;
        let scales = (self.weight, self.rate);
        let centers = Proxies::new(scope, widths, |w| (w, columns), |_| Init::linear(columns), scales)?;
        Ok(SoftTriple { config: self.clone(), classes, centers })
    }
}

/// P for features (B, D) of any length and centres (D, CK); `weights` are those of the rows.
pub fn loss(
    features: &Tensor,
    centers: &Tensor,
    labels: &[u32],
    weights: Option<&[f64]>,
    classes: usize,
    config: &SoftTripleConfig,
) -> Result<Tensor> {
    let (rows, width) = features.dims2()?;
    let (height, columns) = centers.dims2()?;
    if width != height || classes == 0 || columns == 0 || columns % classes != 0 {
        bail!(
            "SoftTriple: features {:?} and centres {:?} do not fit {classes} classes; the rule is (B, D) and (D, C·K)",
            features.shape(),
            centers.shape()
        );
    }
    let per_class = columns / classes;
    let unit = normalised(centers, 0)?;
    let similarity = normalised(features, 1)?.matmul(&unit)?.reshape((rows, classes, per_class))?;
    let choice = softmax_last(&(&similarity / config.gamma)?)?;
    let by_class = (choice * similarity)?.sum(2)?;
    let margin = (one_hot(labels, classes, &by_class)? * config.margin)?;
    let loss = cross_entropy(&((by_class - margin)? * config.scale)?, labels, weights)?;
    if config.tau == 0.0 || per_class == 1 {
        return Ok(loss);
    }
    loss + (spread(&unit, classes, per_class)? * config.tau)?
}

/// `Σ_c Σ_{i<j} ‖w_{c,i} - w_{c,j}‖ / (C K (K-1))`, kept away from the corner of the root.
fn spread(unit: &Tensor, classes: usize, per_class: usize) -> Result<Tensor> {
    let by_class = unit.t()?.contiguous()?.reshape((classes, per_class, unit.dim(0)?))?;
    let gram = by_class.matmul(&by_class.transpose(1, 2)?.contiguous()?)?;
    let distance = gram.affine(-2.0, 2.0 + 1e-5)?.sqrt()?;
    let pairs: Vec<f64> =
        (0..per_class * per_class).map(|n| f64::from(u8::from(n / per_class < n % per_class))).collect();
    let pairs = Tensor::from_vec(pairs, (1, per_class, per_class), unit.device())?.to_dtype(unit.dtype())?;
    let count = (classes * per_class * (per_class - 1)) as f64;
    distance.broadcast_mul(&pairs)?.sum_all()? / count
}

/// See the [module](self).
#[derive(Debug)]
pub struct SoftTriple {
    config: SoftTripleConfig,
    classes: usize,
    centers: Proxies,
}

impl Balancer for SoftTriple {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (labels, classes, config) = (&cx.batch.labels, self.classes, &self.config);
        self.centers.loss(cx, fwd, |h, w, weights| loss(h, w, labels, weights, classes, config))
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        self.centers.gradients(cx, g);
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        self.centers.observe(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn equal_centres_have_no_corner() {
        let w = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
        let w = candle_core::Var::from_tensor(&w).unwrap();
        let unit = normalised(w.as_tensor(), 0).unwrap();
        let loss = spread(&unit, 2, 2).unwrap();
        let value = loss.to_scalar::<f32>().unwrap();
        assert!((value - 2.0 * 1e-5f32.sqrt() / 4.0).abs() < 1e-4, "{value}");
        let gradient = loss.backward().unwrap().remove(w.as_tensor()).unwrap();
        assert!(mm_core::model::to_host(&gradient).unwrap().iter().all(|g| g.is_finite()));
    }
}
