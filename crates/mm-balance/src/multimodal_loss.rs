//! MultiModal loss: proxies that subgroup the instances of a class by what each modality contributes.
//!
//! ```text
//! e   = [softmax(u^1) | … | softmax(u^M)]                       (B, MC) unimodal probabilities
//! ŵ   = columns of max(F, 0), each of unit length               F: (MC, CK) proxies, K for each class, class-major
//! S   = (e / ‖e‖) ŵ                                             (B, CK) cosine similarities
//! A   = softmax_{CK}(γ S) ŵᵀ                                    (B, MC) attention over all proxies
//! o_c = Σ_m e_{m,c} (1 + A_{m,c})                               (B, C) attended output
//! σ_c = Σ_k softmax_C(γ S_{·,k})_c S_{c,k}                      (B, C) similarity, normalised across classes
//! L   = CE(σ + o, y),   decision = argmax(σ + o)
//! ```
//!
//! The proxies take the place of a fusion; the heads u^m are linear. All parts are differentiated.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `proxies` K | 20 | >= 1 | proxies per class |
//! | `temperature` | 0.1 | > 0 | 1/γ |
//!
//! Differences. The paper's text speaks of the attended output; the released code adds the plain sum Σ_m e_m to it (the
//! 1 in 1 + A), which is kept, since the formula of the paper could not be read and every published number comes from
//! the code. Unlike SoftTriple the softmax runs across classes for each proxy index, not across the centres of a class.
//!
//! Worth knowing. A proxy whose entries are all negative is dead: similarity 0 and gradient 0 for ever, as in the released
//! code. Logits are bounded by 2M + K, so the loss has a floor above 0. A row without some modality has zeros in its
//! place; a row without any has the class prior of nothing: logits 0.
//!
//! Source: arXiv 2308.10486; released code DMCB-GIST/MultiModalLoss @48ff83d with pytorch-metric-learning 0.9.99.

use crate::multi_loss::heads_of;
use crate::sum_ce::probabilities;
use crate::{Balancer, Needs};
use candle_core::{D, Result, Tensor, bail};
use mm_core::{Batch, Checked, ConfigError, Forward, Init, Multimodal, Scope};
use mm_kernels::softmax::softmax_last;
use serde::{Deserialize, Serialize};

/// Settings of [`MultiModalLoss`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiModalLossConfig {
    /// K, proxies per class.
    pub proxies: usize,
    /// 1/γ.
    pub temperature: f64,
}

impl Default for MultiModalLossConfig {
    fn default() -> Self {
        Self { proxies: 20, temperature: 0.1 }
    }
}

impl MultiModalLossConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("proxies", self.proxies as f64, 1.0, 1e6)?;
        ConfigError::check_range("temperature", self.temperature, f64::MIN_POSITIVE, f64::MAX)
    }

    /// Makes the proxies under `scope`: U(±1/√(CK)), PyTorch's `kaiming_uniform(a=√5)` on an (MC, CK) tensor.
    pub fn build(&self, mut scope: Scope<'_>, modalities: usize, classes: usize) -> Result<MultiModalLoss> {
        let columns = classes * self.proxies;
        let proxies = scope.param("proxies", (modalities * classes, columns), Init::linear(columns))?;
        Ok(MultiModalLoss { proxies, gamma: 1.0 / self.temperature, classes })
    }
}

/// The result of [`logits`] with everything on the way to it.
#[derive(Debug, Clone)]
pub struct Parts {
    /// ŵ (MC, CK).
    pub proxies: Tensor,
    /// S (B, CK).
    pub similarity: Tensor,
    /// A (B, MC).
    pub attention: Tensor,
    /// o (B, C).
    pub attended: Tensor,
    /// σ (B, C).
    pub class_similarity: Tensor,
    /// σ + o (B, C).
    pub logits: Tensor,
}

/// The logits from embeddings e (B, MC) and raw proxies F (MC, CK).
pub fn logits(embeddings: &Tensor, proxies: &Tensor, classes: usize, gamma: f64) -> Result<Parts> {
    let (rows, width) = embeddings.dims2()?;
    let (height, columns) = proxies.dims2()?;
    if width != height || classes == 0 || width % classes != 0 || columns % classes != 0 {
        bail!(
            "MultiModal loss: embeddings {:?} and proxies {:?} do not fit {classes} classes; the rule is (B, M·C) and \
             (M·C, C·K)",
            embeddings.shape(),
            proxies.shape()
        );
    }
    let (modalities, per_class) = (width / classes, columns / classes);
    // max(F, 0) with gradient 1 at exactly 0, as PyTorch's clamp.
    let positive = proxies.ge(&proxies.zeros_like()?)?.to_dtype(proxies.dtype())?;
    let unit = normalised(&(proxies * positive)?, 0)?;
    let similarity = normalised(embeddings, 1)?.matmul(&unit)?;
    let attention = softmax_last(&(&similarity * gamma)?)?.matmul(&unit.t()?)?;
    let attended =
        (embeddings + embeddings.mul(&attention)?)?.reshape((rows, modalities, classes))?.sum(1)?;
    let by_proxy = similarity.reshape((rows, classes, per_class))?.transpose(1, 2)?.contiguous()?;
    let class_similarity = (softmax_last(&(&by_proxy * gamma)?)? * &by_proxy)?.sum(1)?;
    let logits = (&class_similarity + &attended)?;
    Ok(Parts { proxies: unit, similarity, attention, attended, class_similarity, logits })
}

/// `x / max(‖x‖₂, 1e-12)` along `dim`, with a gradient of zero through the norm where it is clamped.
pub(crate) fn normalised(x: &Tensor, dim: usize) -> Result<Tensor> {
    let square = x.sqr()?.sum_keepdim(dim)?;
    let floor = square.detach().le(1e-24)?.to_dtype(x.dtype())?;
    // Adding 1 where the norm vanishes keeps sqrt and its derivative finite; those columns are zero anyway.
    x.broadcast_div(&(square + floor)?.sqrt()?)
}

/// See the [module](self).
#[derive(Debug)]
pub struct MultiModalLoss {
    proxies: Tensor,
    gamma: f64,
    classes: usize,
}

impl Balancer for MultiModalLoss {
    fn needs(&self) -> Needs {
        Needs { heads: true, fusion: false, ..Needs::default() }
    }

    fn logits(&self, _: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Option<Tensor>> {
        let embeddings = Tensor::cat(probabilities(heads_of(fwd)?, batch)?.values(), D::Minus1)?;
        Ok(Some(logits(&embeddings, &self.proxies, self.classes, self.gamma)?.logits))
    }
}
