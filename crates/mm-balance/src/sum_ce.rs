//! SUM+CE: the cross-entropy of the *sum of the unimodal probabilities*, taken as logits.
//!
//! `L = CE(Σ_m softmax(u^m), y)`
//!
//! The baseline of the MultiModal-loss paper as its released notebooks compute it: a softmax inside, and another one
//! inside the cross-entropy, so the logits lie in [0, M] and the loss never falls below log(1 + (C-1) e^{-M}). The
//! decision is the argmax of the sum. There is no fusion module; a missing modality contributes nothing.
//!
//! Source: DMCB-GIST/MultiModalLoss @48ff83d (notebooks), arXiv 2308.10486.

use crate::multi_loss::heads_of;
use crate::{Balancer, Needs};
use candle_core::{Result, Tensor};
use mm_core::{Batch, Forward, Modal, Multimodal};
use mm_kernels::softmax::softmax_last;

/// Unimodal probabilities (B, C) per modality; rows that lack the modality are zero.
pub fn probabilities(heads: &Modal<Tensor>, batch: &Batch) -> Result<Modal<Tensor>> {
    heads.try_map(|m, u| {
        let p = softmax_last(u)?;
        match &batch.present[m] {
            Some(present) => present.apply(&p),
            None => Ok(p),
        }
    })
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SumCe;

impl Balancer for SumCe {
    fn needs(&self) -> Needs {
        Needs { heads: true, fusion: false, ..Needs::default() }
    }

    fn logits(&self, _: &dyn Multimodal, batch: &Batch, fwd: &Forward) -> Result<Option<Tensor>> {
        mm_core::model::sum(probabilities(heads_of(fwd)?, batch)?.values()).map(Some)
    }
}
