//! `[train]`: the settings of the training loop.

use crate::config::{Precision, Protocol, Select};
use mm_core::{Checked, ConfigError};
use mm_data::Prefetch;
use serde::{Deserialize, Serialize};

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Epochs at most; at least 1.
    pub epochs: usize,
    /// Rows per step; at least 1.
    pub batch_size: usize,
    /// Epochs without improvement after which training stops; never where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// How the epoch to report is chosen.
    pub protocol: Protocol,
    /// By which number.
    pub select: Select,
    /// Largest global gradient norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// `cpu`, `cuda`, `cuda:N` or `metal`.
    pub device: String,
    /// `f32` or `f64`.
    pub precision: Precision,
    /// Seconds between checkpoints, at most.
    pub checkpoint_seconds: f64,
    /// Steps between checkpoints; only by time where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<usize>,
    /// Training rows that linear probes learn from, at most.
    pub probe_rows: usize,
    /// Threads that make batches ahead of their use, see [`mm_data::prefetch`]; 0 makes each when it is its turn. No number
    /// depends on it.
    #[serde(skip_serializing_if = "by_default_workers")]
    pub workers: usize,
    /// Batches that workers have ready or at work beside the one in use, at most.
    #[serde(skip_serializing_if = "by_default_prefetch")]
    pub prefetch: usize,
}

// Left out of a record where they are the defaults: they change no number, and need not change the name of a run.
#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn by_default_workers(workers: &usize) -> bool {
    *workers == Prefetch::default().workers
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as above
fn by_default_prefetch(prefetch: &usize) -> bool {
    *prefetch == Prefetch::default().ahead
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 40,
            batch_size: 64,
            patience: None,
            protocol: Protocol::ValidationSelect,
            select: Select::Accuracy,
            clip_norm: None,
            device: "cpu".into(),
            precision: Precision::F32,
            checkpoint_seconds: 30.0,
            checkpoint_steps: None,
            probe_rows: 5000,
            workers: Prefetch::default().workers,
            prefetch: Prefetch::default().ahead,
        }
    }
}

impl TrainConfig {
    /// How batches are made ahead of their use.
    pub fn prefetch(&self) -> Prefetch {
        Prefetch { workers: self.workers, ahead: self.prefetch }
    }

    pub(crate) fn check(&self) -> Checked<()> {
        ConfigError::check_range("epochs", self.epochs as f64, 1.0, 1e9)?;
        ConfigError::check_range("batch_size", self.batch_size as f64, 1.0, 1e9)?;
        if let Some(norm) = self.clip_norm {
            ConfigError::check_range("clip_norm", norm, f64::MIN_POSITIVE, f64::MAX)?;
        }
        if self.patience == Some(0) {
            return Err(ConfigError::new(
                "patience",
                0,
                "must be at least 1; leave it out to never stop early",
            ));
        }
        ConfigError::check_range("checkpoint_seconds", self.checkpoint_seconds, 0.0, f64::MAX)?;
        if self.checkpoint_steps == Some(0) {
            return Err(ConfigError::new(
                "checkpoint_steps",
                0,
                "must be at least 1; leave it out to save by time",
            ));
        }
        ConfigError::check_range("probe_rows", self.probe_rows as f64, 2.0, 1e12)?;
        self.prefetch().check()
    }
}
