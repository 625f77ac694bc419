//! What happens to the numbers of an analysis: their scale, their mean and spread, their layout.
//!
//! ```text
//! linear    y = s            ln  y = ln(s + eps)            db  y = max(10 log10(max(s, floor)), max(y) - top)
//! constant  y = (y - mean) / std                            clip  y = (y - mean(y)) / (std(y) + 1e-9)
//! ```
//!
//! Shapes: (time, bins) with `time-bins`, which is what sequences take; (bins, time) with `bins-time`, which is how
//! librosa and SciPy lay a spectrogram out and what networks for images take.
//!
//! | setting | default | range |
//! |---|---|---|
//! | scale | depends on the front-end | `linear`; `ln`, eps in (0, 1]; `db`, floor in (0, 1], top in (0, 1000] |
//! | norm | `none` | `none`; `clip`; `constant` with a finite mean and std > 0 |
//! | orientation | `time-bins` | `time-bins`, `bins-time` |
//!
//! Source: `db` is `librosa.power_to_db` with ref = 1; `clip` is what github.com/fanyunfeng-bit/Modal-Imbalance-PMR
//! does.

use mm_core::ConfigError;
use serde::{Deserialize, Serialize};

/// Added to the spread of a clip, so that silence becomes zeros.
const SPREAD_EPS: f64 = 1e-9;

/// The scale of magnitudes and powers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Scale {
    /// As they are.
    Linear,
    /// The natural logarithm.
    Ln {
        /// Added before.
        eps: f64,
    },
    /// Decibels of a power.
    Db {
        /// The smallest power.
        floor: f64,
        /// How far below the largest value of the clip the smallest may be.
        top: f64,
    },
}

impl Scale {
    /// ln(s + 1e-7), which OGM-GE and those after it use.
    pub const LN: Self = Self::Ln { eps: 1e-7 };
    /// What librosa's features use.
    pub const DB: Self = Self::Db { floor: 1e-10, top: 80.0 };

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let positive = |field, value, high| ConfigError::check_range(field, value, f64::MIN_POSITIVE, high);
        match *self {
            Self::Linear => Ok(()),
            Self::Ln { eps } => positive("scale.eps", eps, 1.0),
            Self::Db { floor, top } => {
                positive("scale.floor", floor, 1.0)?;
                positive("scale.top", top, 1000.0)
            }
        }
    }

    /// Of a whole clip: decibels look at its largest value.
    pub(super) fn apply(&self, values: &mut [f64]) {
        match *self {
            Self::Linear => {}
            Self::Ln { eps } => values.iter_mut().for_each(|v| *v = (*v + eps).ln()),
            Self::Db { floor, top } => {
                for v in &mut *values {
                    *v = 10.0 * v.max(floor).log10();
                }
                let lowest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max) - top;
                for v in &mut *values {
                    *v = v.max(lowest);
                }
            }
        }
    }
}

/// Mean and spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Norm {
    /// As they are.
    #[default]
    None,
    /// Zero mean and unit spread over all values of the clip.
    Clip,
    /// Numbers that were measured on a data set.
    Constant {
        /// Taken away.
        mean: f64,
        /// Divided by.
        std: f64,
    },
}

/// How the two axes lie in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// One row per instant.
    #[default]
    TimeBins,
    /// One row per bin.
    BinsTime,
}

/// What happens to the numbers at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Mean and spread. Default: as they are.
    pub norm: Norm,
    /// The layout. Default `time-bins`.
    pub orientation: Orientation,
}

impl Output {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Norm::Constant { mean, std } = self.norm {
            ConfigError::check_range("norm.mean", mean, f64::MIN, f64::MAX)?;
            ConfigError::check_range("norm.std", std, f64::MIN_POSITIVE, f64::MAX)?;
        }
        Ok(())
    }

    /// From (time, bins) of an analysis to what the model gets.
    pub(super) fn finish(&self, mut values: Vec<f64>, shape: [usize; 2]) -> Frames {
        if let Some((mean, spread)) = self.spread(|| values.iter().copied()) {
            for v in &mut values {
                *v = (*v - mean) / spread;
            }
        }
        let frames = Frames { values: values.into_iter().map(|v| v as f32).collect(), shape };
        match self.orientation {
            Orientation::TimeBins => frames,
            Orientation::BinsTime => frames.transposed(),
        }
    }

    /// Mean and spread, for numbers that have their layout.
    pub(super) fn normalise(&self, values: &mut [f32]) {
        if let Some((mean, spread)) = self.spread(|| values.iter().copied().map(f64::from)) {
            for v in values {
                *v = ((f64::from(*v) - mean) / spread) as f32;
            }
        }
    }

    /// What is taken away, and what is divided by.
    fn spread<I: ExactSizeIterator<Item = f64>>(&self, values: impl Fn() -> I) -> Option<(f64, f64)> {
        match self.norm {
            Norm::None => None,
            Norm::Constant { mean, std } => Some((mean, std)),
            Norm::Clip => {
                let n = values().len().max(1) as f64;
                let mean = values().sum::<f64>() / n;
                let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                Some((mean, variance.sqrt() + SPREAD_EPS))
            }
        }
    }

    /// The shape that [`Output::finish`] gives.
    pub(super) fn shape(&self, [time, bins]: [usize; 2]) -> [usize; 2] {
        match self.orientation {
            Orientation::TimeBins => [time, bins],
            Orientation::BinsTime => [bins, time],
        }
    }
}

/// What a front-end gives for one clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// The numbers, row by row.
    pub values: Vec<f32>,
    /// (time, bins), or (bins, time) where the orientation says so.
    pub shape: [usize; 2],
}

impl Frames {
    /// The same with the axes exchanged.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let [rows, columns] = self.shape;
        let mut values = Vec::with_capacity(self.values.len());
        for column in 0..columns {
            values.extend(self.values.iter().skip(column).step_by(columns.max(1)));
        }
        Self { values, shape: [columns, rows] }
    }
}
