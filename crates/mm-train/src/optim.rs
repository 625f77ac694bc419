//! Optimisers over a [`ParamStore`] with named, saveable state.
//!
//! | `kind` | update | settings |
//! |---|---|---|
//! | `sgd` | momentum buffer, optionally Nesterov; weight decay coupled (added to the gradient) | `momentum` = 0.9, `nesterov` = false |
//! | `adam` | Adam with coupled L2, as PyTorch's `Adam(weight_decay=…)` | `beta1` = 0.9, `beta2` = 0.999, `eps` = 1e-8 |
//! | `adamw` | decoupled weight decay | as adam |
//!
//! Common: `lr` (0.05 for SGD, 1e-3 for the others), `weight_decay` = 0, `lr_scale` (a table from dotted parameter prefix to a factor),
//! `missing_gradient` = `skip` | `zero`: what happens to a parameter that received no gradient in a step - nothing, as in
//! PyTorch where `grad is None`, or a step with gradient zero, in which momentum and weight decay still move it.

use crate::error::TrainError;
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::Optimizer;
use mm_core::{Checked, ConfigError, Gradients, ParamStore};
use mm_kernels::optim::{AdamStep, SgdStep, adam_step, sgd_step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::Table;

/// Which update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Stochastic gradient descent.
    Sgd,
    /// Adam with coupled L2.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// What to do with a parameter without a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingGradient {
    /// Leave it.
    #[default]
    Skip,
    /// Step with a zero gradient.
    Zero,
}

/// Settings of an optimiser; see the [module](self).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Which rule.
    pub kind: Kind,
    /// Base learning rate.
    pub lr: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// Nesterov momentum.
    pub nesterov: bool,
    /// Weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What to do without a gradient.
    pub missing_gradient: MissingGradient,
    /// Learning-rate factors by dotted parameter prefix.
    pub lr_scale: BTreeMap<String, f64>,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Sgd,
            lr: 0.05,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            missing_gradient: MissingGradient::Skip,
            lr_scale: BTreeMap::new(),
        }
    }
}

impl OptimConfig {
    /// Reads `[optim]`; the default learning rate depends on the kind.
    pub(crate) fn from_table(table: Table) -> Checked<Self> {
        let given = table.contains_key("lr");
        let mut config: Self = crate::parse::section(table, "optim")?;
        if !given && config.kind != Kind::Sgd {
            config.lr = 1e-3;
        }
        Ok(config)
    }

    /// Validates.
    pub fn check(&self) -> Checked<()> {
        ConfigError::check_range("lr", self.lr, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("momentum", self.momentum, 0.0, 1.0)?;
        ConfigError::check_range("weight_decay", self.weight_decay, 0.0, f64::MAX)?;
        ConfigError::check_range("beta1", self.beta1, 0.0, 1.0 - f64::EPSILON)?;
        ConfigError::check_range("beta2", self.beta2, 0.0, 1.0 - f64::EPSILON)?;
        ConfigError::check_range("eps", self.eps, f64::MIN_POSITIVE, f64::MAX)?;
        if self.nesterov && self.momentum == 0.0 {
            return Err(ConfigError::new("nesterov", true, "needs a momentum above 0"));
        }
        for (prefix, k) in &self.lr_scale {
            ConfigError::check_range(&format!("lr_scale.{prefix}"), *k, 0.0, f64::MAX)?;
        }
        Ok(())
    }
}

/// The state of one parameter.
#[derive(Debug)]
struct Slot {
    lr_scale: f64,
    first: Option<Var>,
    second: Option<Var>,
    steps: u64,
}

/// An optimiser with its state.
#[derive(Debug)]
pub struct Optim<'a> {
    config: OptimConfig,
    params: &'a ParamStore,
    slots: Vec<Slot>,
    clip_norm: Option<f64>,
    /// The learning rate of the next step.
    pub learning_rate: f64,
}

impl<'a> Optim<'a> {
    /// An optimiser over all parameters of a store.
    pub fn new(config: OptimConfig, params: &'a ParamStore, clip_norm: Option<f64>) -> Checked<Self> {
        config.check()?;
        for (prefix, factor) in &config.lr_scale {
            if params.group(prefix).next().is_none() {
                let names: Vec<&str> = params.params().iter().map(mm_core::Param::name).collect();
                let field = format!("optim.lr_scale.{prefix}");
                let mut error = ConfigError::new(field, factor, "no parameter has this prefix");
                error.suggestion = mm_core::nearest(prefix, &names).map(str::to_owned);
                return Err(error);
            }
        }
        let slots = params
            .ids()
            .map(|id| {
                let applies = |prefix: &str| params.group(prefix).any(|other| other == id);
                let lr_scale = config.lr_scale.iter().filter(|(p, _)| applies(p)).map(|(_, k)| k).product();
                Slot { lr_scale, first: None, second: None, steps: 0 }
            })
            .collect();
        let learning_rate = config.lr;
        Ok(Self { config, params, slots, clip_norm, learning_rate })
    }

    /// The state as named tensors and step counts, to save.
    pub fn state(&self) -> (BTreeMap<String, Tensor>, Vec<u64>) {
        let mut tensors = BTreeMap::new();
        for (p, slot) in self.params.params().iter().zip(&self.slots) {
            for (tag, var) in [("first", &slot.first), ("second", &slot.second)] {
                if let Some(var) = var {
                    tensors.insert(format!("{}.{tag}", p.name()), var.as_tensor().clone());
                }
            }
        }
        (tensors, self.slots.iter().map(|s| s.steps).collect())
    }

    /// Takes a saved state back.
    pub fn restore(
        &mut self,
        tensors: &BTreeMap<String, Tensor>,
        steps: &[u64],
    ) -> std::result::Result<(), TrainError> {
        if steps.len() != self.slots.len() {
            let message = format!(
                "the optimiser state is for {} parameters, the model has {}",
                steps.len(),
                self.slots.len()
            );
            return Err(candle_core::Error::Msg(message).into());
        }
        for ((p, slot), steps) in self.params.params().iter().zip(&mut self.slots).zip(steps) {
            slot.steps = *steps;
            for (tag, var) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                *var = match tensors.get(&format!("{}.{tag}", p.name())) {
                    Some(t) => Some(Var::from_tensor(&t.to_device(p.var().device())?)?),
                    None => None,
                };
            }
        }
        Ok(())
    }
}

/// The variable in `slot`, made of zeros on first use.
fn state_of<'a>(slot: &'a mut Option<Var>, like: &Var) -> Result<&'a Var> {
    if slot.is_none() {
        *slot = Some(Var::zeros(like.shape(), like.dtype(), like.device())?);
    }
    slot.as_ref().ok_or_else(|| candle_core::Error::Msg("optimiser state".into()))
}

impl Optimizer for Optim<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        let norm = self.clip_norm.map(|max| gradients.clip_norm(max)).transpose()?;
        let c = &self.config;
        for (id, slot) in self.params.ids().zip(&mut self.slots) {
            let var = self.params.get(id).var();
            let zero;
            let (grad, grad_scale) = match (gradients.raw(id), c.missing_gradient) {
                (Some((g, k)), _) => (g, k),
                (None, MissingGradient::Skip) => continue,
                (None, MissingGradient::Zero) => {
                    zero = var.as_tensor().zeros_like()?;
                    (&zero, 1.0)
                }
            };
            let lr = self.learning_rate * slot.lr_scale * gradients.lr_scale(id);
            slot.steps += 1;
            match c.kind {
                Kind::Sgd => {
                    let step = SgdStep {
                        lr,
                        momentum: c.momentum,
                        dampening: 0.0,
                        weight_decay: c.weight_decay,
                        nesterov: c.nesterov,
                        grad_scale,
                        first: slot.steps == 1,
                    };
                    let buffer = if c.momentum == 0.0 { None } else { Some(state_of(&mut slot.first, var)?) };
                    sgd_step(var, grad, buffer, &step)?;
                }
                Kind::Adam | Kind::Adamw => {
                    let step = AdamStep {
                        lr,
                        beta1: c.beta1,
                        beta2: c.beta2,
                        eps: c.eps,
                        weight_decay: c.weight_decay,
                        decoupled: c.kind == Kind::Adamw,
                        grad_scale,
                        step: slot.steps,
                    };
                    state_of(&mut slot.first, var)?;
                    state_of(&mut slot.second, var)?;
                    if let (Some(m), Some(v)) = (&slot.first, &slot.second) {
                        adam_step(var, grad, m, v, &step)?;
                    }
                }
            }
        }
        Ok(norm)
    }
}

/// The element type of a run.
pub fn dtype(precision: crate::config::Precision) -> DType {
    match precision {
        crate::config::Precision::F32 => DType::F32,
        crate::config::Precision::F64 => DType::F64,
    }
}
