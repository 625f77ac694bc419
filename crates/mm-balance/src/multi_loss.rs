//! Multi-Loss: the cross-entropy of every modality's own head beside the fused one.
//!
//! `L = CE(z, y) + λ Σ_m CE(u^m, y)`
//!
//! where z are the fused logits (B, C) and `u^m = W_m h_m + b_m` the logits of a linear head per modality. A row whose
//! modality m is missing takes no part in that modality's mean.
//!
//! | parameter | default | range |
//! |---|---|---|
//! | `weight` λ | 1 | >= 0 |
//!
//! Source: MLB (arXiv 2405.07930), section 3.2, where it is the baseline without gradient modulation. The released code
//! has all weights 1, as here.

use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Batch, Checked, ConfigError, Forward, Modal};
use mm_kernels::cross_entropy::cross_entropy;
use serde::{Deserialize, Serialize};

/// Settings of [`MultiLoss`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiLossConfig {
    /// λ, the weight of each unimodal loss.
    pub weight: f64,
}

impl Default for MultiLossConfig {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

impl MultiLossConfig {
    /// Validates.
    pub fn build(&self) -> Checked<MultiLoss> {
        ConfigError::check_range("weight", self.weight, 0.0, f64::MAX)?;
        Ok(MultiLoss { weight: self.weight })
    }
}

/// Σ_m CE(u^m, y), each over the rows in which the modality is present.
pub fn unimodal_losses(heads: &Modal<Tensor>, batch: &Batch) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for (m, logits) in heads.iter() {
        let loss = cross_entropy(logits, &batch.labels, batch.weights(m).as_deref())?;
        total = Some(match total {
            Some(sum) => (sum + loss)?,
            None => loss,
        });
    }
    total.ok_or_else(|| candle_core::Error::Msg("a unimodal loss over no modality".into()))
}

/// The heads of a forward pass, or an error that says what to do.
pub(crate) fn heads_of(fwd: &Forward) -> Result<&Modal<Tensor>> {
    match &fwd.heads {
        Some(heads) => Ok(heads),
        None => bail!("this method needs a head per modality: build the model with `Composite::with_heads`"),
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct MultiLoss {
    weight: f64,
}

impl Balancer for MultiLoss {
    fn needs(&self) -> Needs {
        Needs { heads: true, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let loss = unimodal_losses(heads_of(fwd)?, cx.batch)?;
        if self.weight == 1.0 { Ok(Some(loss)) } else { (loss * self.weight).map(Some) }
    }
}
