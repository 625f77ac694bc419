//! Multi-Loss: the cross-entropy of every modality's own head beside the fused one.
//!
//! `L = CE(z, y) + λ Σ_m CE(u^m, y)`
//!
//! where z are the fused logits (B, C) and `u^m = W_m h_m + b_m` the logits of a linear head per modality. A row whose
//! modality m is missing takes no part in that modality's mean.
//!
//! | parameter | default | range |
//! |---|---|---|
//! | `weight` λ | 1 | > 0; `joint` is the method without unimodal losses |
//!
//! Source: MLB (arXiv 2405.07930), section 3.2, where it is the baseline without gradient modulation. The released code
//! has all weights 1, as here.

use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::{Checked, ConfigError, Forward, Modal};
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
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(MultiLoss { weight: self.weight, scores: Vec::new() })
    }
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
    scores: Vec<f64>,
}

impl Balancer for MultiLoss {
    fn needs(&self) -> Needs {
        Needs { heads: true, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (loss, scores) = losses_and_scores(heads_of(fwd)?, cx.batch)?;
        self.scores = scores.into_values();
        if self.weight == 1.0 { Ok(Some(loss)) } else { (loss * self.weight).map(Some) }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
    }
}
