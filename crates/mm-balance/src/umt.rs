//! UMT: the features of each encoder are drawn to those of a teacher, an encoder that was trained alone.
//!
//! ```text
//! L = CE(z, y) + λ Σ_m mean (h^m - t^m)²
//! ```
//!
//! t^m are the features that the frozen teacher of m has for the same input; the mean runs over entries of rows that have m.
//! Shapes: h^m, t^m (B, D_m) or (B, N, D_m). No gradient reaches a teacher.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` λ | 10 | > 0 | that of BalanceBenchmark |
//! | `teachers.<modality>` | required | | the folder of a finished run of `unimodal` on this modality |
//!
//! A teacher has the configuration, the data and the split of its run: give both runs the same, so that inputs are
//! standardised alike, and the same encoder. In a loop of your own, teachers are anything that implements [`Teachers`].
//!
//! Differences. There is no code of the authors'. Squared differences of features and λ are those of BalanceBenchmark; the
//! paper distils features, too, and its choice between this and the average of the teachers (its uni-modal ensemble, here
//! `mm ensemble`) by validation is left to the user.
//!
//! Source: Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning", ICML 2023, arXiv 2305.01233.

use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Modality, Presence};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of [`Umt`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UmtConfig {
    /// λ, weight of the distillation.
    pub weight: f64,
    /// The folder of a finished unimodal run for every modality.
    pub teachers: BTreeMap<String, String>,
}

impl Default for UmtConfig {
    fn default() -> Self {
        Self { weight: 10.0, teachers: BTreeMap::new() }
    }
}

/// Encoders that were trained alone.
pub trait Teachers: std::fmt::Debug {
    /// The features that the teacher of modality `m`, called `name`, has for a batch.
    fn features(&mut self, m: Modality, name: &str, batch: &Batch) -> Result<Tensor>;
}

impl UmtConfig {
    /// Validates the numbers.
    pub fn check(&self) -> Checked<Needs> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(Needs::default())
    }

    /// The method with these teachers; without any, its first step is an error.
    pub fn build(&self, teachers: Option<Box<dyn Teachers>>) -> Checked<Umt> {
        self.check()?;
        Ok(Umt { weight: self.weight, teachers, losses: Vec::new() })
    }
}

/// The mean squared difference over the entries of the rows that are there; the teacher's features are constants.
pub fn distillation(student: &Tensor, teacher: &Tensor, present: Option<&Presence>) -> Result<Tensor> {
    if student.dims() != teacher.dims() {
        bail!(
            "UMT: a teacher has features {:?}, the encoder {:?}: train the teacher with the same encoder settings",
            teacher.shape(),
            student.shape()
        );
    }
    let rows = student.dim(0)?;
    let square = (student - teacher.detach())?.sqr()?;
    let (square, here) = match present {
        None => (square, rows),
        Some(p) => (p.apply(&square)?, p.count()),
    };
    let entries = student.elem_count() / rows.max(1) * here.max(1);
    square.sum_all()? / entries.max(1) as f64
}

/// See the [module](self).
#[derive(Debug)]
pub struct Umt {
    weight: f64,
    teachers: Option<Box<dyn Teachers>>,
    losses: Vec<f64>,
}

impl Balancer for Umt {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let Some(teachers) = &mut self.teachers else {
            bail!("UMT needs a teacher for every modality: pass them to `UmtConfig::build`")
        };
        let names = cx.model.modalities();
        let losses = fwd.features.try_map(|m, h| {
            let teacher = teachers.features(m, names.name(m), cx.batch)?;
            distillation(h, &teacher, cx.batch.present[m].as_ref())
        })?;
        self.losses.clear();
        for loss in losses.values() {
            self.losses.push(to_host(loss)?[0]);
        }
        (sum(losses.values())? * self.weight).map(Some)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, loss) in self.losses.iter().enumerate() {
            sink("distance", Some(m), *loss);
        }
    }
}
