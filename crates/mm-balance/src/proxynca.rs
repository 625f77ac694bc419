//! ProxyNCA: one proxy per class; a row is pulled to the proxy of its class and pushed from the others.
//!
//! ```text
//! d_c = ‖x - p_c‖²                                     x, p of unit length
//! P   = mean_i -log [ exp(-d_y) / Σ_{c≠y} exp(-d_c) ]                            (paper)
//! P   = mean_i Σ_c t_c [ D_c + log Σ_j exp(-D_j) ],  D_c = ‖s_x x - s_p p_c‖²    (released)
//! L   = CE(z, y) + weight Σ_m P(h_m, y)
//! ```
//!
//! with smoothed targets t: 1 - ε for the class, ε/(C-1) for each of the others. Here every modality has proxies of
//! its own (C, D_m) for its features h_m (B, D_m); rows that lack the modality are left out of the mean. P is a
//! scalar with a gradient to features and proxies; the paper's may be negative.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` | 1 | > 0 | weight of the losses beside the fused one |
//! | `variant` | `paper` | | `released` |
//! | `smoothing` ε | 0.1 | [0, 1) | released only |
//! | `scale_x` s_x, `scale_proxy` s_p | 3, 3 | > 0 | released only |
//! | `rate` | 1 | > 0 | learning rate of the proxies over that of the model |
//!
//! Parameters: `balance.proxynca.m<index>.proxies`, N(0, 1/8²).
//!
//! Differences. The paper leaves the right class out of the denominator, the code that everybody runs has it inside,
//! with label smoothing and lengths; there is none of the authors' own. `smoothing = 0` and s_x = s_p = √t is the
//! loss of pytorch-metric-learning with scale t, whose gradient is NaN in f32 at t = 32 and finite here. As a loss
//! beside a fused one, one per modality, it is our composition: the papers use it for retrieval.
//!
//! Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017; `released` is
//! dichotomies/proxy-nca @ad9880a.

use crate::multimodal_loss::normalised;
use crate::proxies::{Proxies, log_sum_exp, one_hot};
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Checked, ConfigError, Forward, Gradients, Init, Modal, Scope};
use mm_kernels::cross_entropy_soft;
use serde::{Deserialize, Serialize};

/// Which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The right class is not in the denominator.
    #[default]
    Paper,
    /// It is, with smoothed targets and lengths.
    Released,
}

/// Settings of [`ProxyNca`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyNcaConfig {
    /// Weight of the losses beside the fused one.
    pub weight: f64,
    /// Which loss.
    pub variant: Variant,
    /// ε, what the other classes share of a target.
    pub smoothing: f64,
    /// s_x, length of features.
    pub scale_x: f64,
    /// s_p, length of proxies.
    pub scale_proxy: f64,
    /// Learning rate of the proxies over that of the model.
    pub rate: f64,
}

impl Default for ProxyNcaConfig {
    fn default() -> Self {
        Self {
            weight: 1.0,
            variant: Variant::Paper,
            smoothing: 0.1,
            scale_x: 3.0,
            scale_proxy: 3.0,
            rate: 1.0,
        }
    }
}

impl ProxyNcaConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("smoothing", self.smoothing, 0.0, 1.0 - 1e-9)?;
        ConfigError::check_range("scale_x", self.scale_x, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("scale_proxy", self.scale_proxy, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("rate", self.rate, f64::MIN_POSITIVE, f64::MAX)
    }

    /// Makes the proxies under `scope`.
    pub fn build(&self, scope: Scope<'_>, widths: &Modal<usize>, classes: usize) -> Result<ProxyNca> {
        if classes < 2 {
            bail!("ProxyNCA compares classes: it needs at least 2, the data have {classes}");
        }
        let init = Init::Normal { mean: 0.0, std: 0.125 };
        let proxies = Proxies::new(scope, widths, |w| (classes, w), |_| init, (self.weight, self.rate))?;
        Ok(ProxyNca { config: self.clone(), proxies })
    }
}

/// `‖s_x x/‖x‖ - s_p p/‖p‖‖²`: (B, C) for features (B, D) and proxies (C, D).
pub fn distances(features: &Tensor, proxies: &Tensor, scale_x: f64, scale_proxy: f64) -> Result<Tensor> {
    let ((_, width), (_, expected)) = (features.dims2()?, proxies.dims2()?);
    if width != expected {
        bail!("ProxyNCA: features of width {width} against proxies of width {expected}; they must be equal");
    }
    // The lengths of normalised vectors are summed and not assumed, because a vector of zeros stays one.
    let x = (normalised(features, 1)? * scale_x)?;
    let p = (normalised(proxies, 1)? * scale_proxy)?;
    let squares = x.sqr()?.sum_keepdim(1)?.broadcast_add(&p.sqr()?.sum_keepdim(1)?.t()?)?;
    squares - (x.matmul(&p.t()?)? * 2.0)?
}

/// P of the paper: the right class is not in the denominator; `weights` are those of the rows.
pub fn loss(features: &Tensor, proxies: &Tensor, labels: &[u32], weights: Option<&[f64]>) -> Result<Tensor> {
    let distances = distances(features, proxies, 1.0, 1.0)?;
    let (rows, classes) = distances.dims2()?;
    let right = one_hot(labels, classes, &distances)?;
    let to_right = (&distances * &right)?.sum(1)?;
    // Squared distances are at most 4: a thousand takes the right class out of the sum exactly.
    let others = log_sum_exp(&((right * -1e3)? - distances)?, 1)?;
    let each = (to_right + others)?;
    let weights = match weights {
        Some(weights) => weights.to_vec(),
        None => vec![1.0; rows],
    };
    let total: f64 = weights.iter().sum();
    let share = weights.iter().map(|w| if total > 0.0 { w / total } else { 0.0 }).collect();
    let share = Tensor::from_vec(share, rows, each.device())?.to_dtype(each.dtype())?;
    (each * share)?.sum_all()
}

/// P of the released code: a cross-entropy over all proxies with smoothed targets.
pub fn loss_released(
    features: &Tensor,
    proxies: &Tensor,
    labels: &[u32],
    weights: Option<&[f64]>,
    config: &ProxyNcaConfig,
) -> Result<Tensor> {
    let distances = distances(features, proxies, config.scale_x, config.scale_proxy)?;
    let classes = distances.dim(1)?;
    let rest = config.smoothing / (classes.max(2) - 1) as f64;
    let targets = one_hot(labels, classes, &distances)?.affine(1.0 - config.smoothing - rest, rest)?;
    cross_entropy_soft(&distances.neg()?, &targets, weights)
}

/// See the [module](self).
#[derive(Debug)]
pub struct ProxyNca {
    config: ProxyNcaConfig,
    proxies: Proxies,
}

impl Balancer for ProxyNca {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (labels, config) = (&cx.batch.labels, &self.config);
        self.proxies.loss(cx, fwd, |h, p, weights| match config.variant {
            Variant::Paper => loss(h, p, labels, weights),
            Variant::Released => loss_released(h, p, labels, weights, config),
        })
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        self.proxies.gradients(cx, g);
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        self.proxies.observe(sink);
    }
}
