//! Learning-rate schedules: a factor of the base rate as a function of the optimiser step.
//!
//! | `kind` | factor at step t | settings |
//! |---|---|---|
//! | `constant` | 1 | |
//! | `step` | factor^⌊epoch / every⌋ | `every` epochs, `factor` = 0.1 |
//! | `cosine` | floor + (1 - floor)(1 + cos(π t / T))/2 | `floor` = 0, `warmup_steps` = 0 |
//! | `cosine-restarts` | the same within cycles of length `period`, `period · multiplier`, … | `period` (steps), `multiplier` = 2, `floor`, `warmup_steps` |
//!
//! T is the whole run. During warm-up the rate is constant at the base rate where `warmup = "constant"` (as in the MLB
//! code), or rises linearly (`warmup = "linear"`, default). A single cosine starts after it; cycles are counted from step 0
//! whatever the warm-up, as that code counts them.

use mm_core::{Checked, ConfigError};
use serde::{Deserialize, Serialize};

/// What happens during warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// From 1/w of the base rate to all of it.
    #[default]
    Linear,
    /// The base rate.
    Constant,
}

/// `kind = "step"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepDecay {
    /// Epochs between decays.
    pub every: usize,
    /// What the rate is multiplied by.
    #[serde(default = "tenth")]
    pub factor: f64,
}

fn tenth() -> f64 {
    0.1
}

/// `kind = "cosine"`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cosine {
    /// The factor at the end.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// What happens in them.
    pub warmup: Warmup,
}

/// `kind = "cosine-restarts"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts {
    /// Steps of the first cycle.
    pub period: usize,
    /// How much longer each cycle is than the one before.
    #[serde(default = "two")]
    pub multiplier: usize,
    /// The factor at the end of a cycle.
    #[serde(default)]
    pub floor: f64,
    /// Steps of warm-up.
    #[serde(default)]
    pub warmup_steps: usize,
    /// What happens in them.
    #[serde(default)]
    pub warmup: Warmup,
}

fn two() -> usize {
    2
}

/// `kind = "constant"`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ScheduleConfig {
    /// Always 1.
    Constant(Constant),
    /// Powers of a factor.
    Step(StepDecay),
    /// One half cosine.
    Cosine(Cosine),
    /// Half cosines that start anew.
    CosineRestarts(Restarts),
}

impl ScheduleConfig {
    /// Validates.
    pub fn check(&self) -> Checked<()> {
        match self {
            Self::Constant(_) => Ok(()),
            Self::Step(s) => {
                ConfigError::check_range("every", s.every as f64, 1.0, 1e9)?;
                ConfigError::check_range("factor", s.factor, f64::MIN_POSITIVE, f64::MAX)
            }
            Self::Cosine(c) => ConfigError::check_range("floor", c.floor, 0.0, 1.0),
            Self::CosineRestarts(r) => {
                ConfigError::check_range("period", r.period as f64, 1.0, 1e9)?;
                ConfigError::check_range("multiplier", r.multiplier as f64, 1.0, 1e6)?;
                ConfigError::check_range("floor", r.floor, 0.0, 1.0)
            }
        }
    }

    /// The factor at an optimiser step from 0, in an epoch from 0, of a run of `total` steps.
    pub fn factor(&self, step: usize, epoch: usize, total: usize) -> f64 {
        match self {
            Self::Constant(_) => 1.0,
            Self::Step(s) => s.factor.powi((epoch / s.every) as i32),
            Self::Cosine(c) => warm(step, c.warmup_steps, c.warmup).unwrap_or_else(|| {
                let length = total.saturating_sub(c.warmup_steps).max(1);
                half_cosine((step - c.warmup_steps) as f64 / length as f64, c.floor)
            }),
            Self::CosineRestarts(r) => warm(step, r.warmup_steps, r.warmup).unwrap_or_else(|| {
                let (mut at, mut length) = (step, r.period);
                while at >= length {
                    at -= length;
                    length = length.saturating_mul(r.multiplier);
                }
                half_cosine(at as f64 / length as f64, r.floor)
            }),
        }
    }
}

fn warm(step: usize, steps: usize, warmup: Warmup) -> Option<f64> {
    (step < steps).then(|| match warmup {
        Warmup::Linear => (step + 1) as f64 / steps as f64,
        Warmup::Constant => 1.0,
    })
}

fn half_cosine(progress: f64, floor: f64) -> f64 {
    floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_where_the_recipe_says() {
        // CosineAnnealingWarmRestarts(T0 = 4, Tmult = 2) restarts at 4, 12, 28, 60, …
        let schedule = ScheduleConfig::CosineRestarts(Restarts {
            period: 4,
            multiplier: 2,
            floor: 0.0,
            warmup_steps: 0,
            warmup: Warmup::Constant,
        });
        let restarts: Vec<usize> = (0..70).filter(|&t| schedule.factor(t, 0, 0) == 1.0).collect();
        assert_eq!(restarts, [0, 4, 12, 28, 60]);
        // A constant warm-up of 20 steps covers the first restarts and moves none of the later ones.
        let warm = ScheduleConfig::CosineRestarts(Restarts {
            period: 4,
            multiplier: 2,
            floor: 0.0,
            warmup_steps: 20,
            warmup: Warmup::Constant,
        });
        let restarts: Vec<usize> = (20..70).filter(|&t| warm.factor(t, 0, 0) == 1.0).collect();
        assert_eq!(restarts, [28, 60]);
        assert!((schedule.factor(2, 0, 0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn cosine_and_steps() {
        let cosine = ScheduleConfig::Cosine(Cosine { floor: 0.1, warmup_steps: 10, warmup: Warmup::Linear });
        assert!((cosine.factor(0, 0, 110) - 0.1).abs() < 1e-12);
        assert!((cosine.factor(10, 0, 110) - 1.0).abs() < 1e-12);
        assert!((cosine.factor(60, 0, 110) - 0.55).abs() < 1e-12);
        assert!((cosine.factor(500, 0, 110) - 0.1).abs() < 1e-12);
        let step = ScheduleConfig::Step(StepDecay { every: 10, factor: 0.1 });
        assert!((step.factor(0, 25, 0) - 0.01).abs() < 1e-15);
    }
}
