//! What can stop a run, each with what to do about it.

use mm_core::ConfigError;
use mm_data::DataError;
use mm_metrics::MetricError;
use std::path::{Path, PathBuf};

/// An error of training, evaluation or prediction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is not allowed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint to begin with cannot be used.
    #[error(transparent)]
    Weights(#[from] mm_encoders::weights::WeightsError),
    /// A metric cannot be computed.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}; {remedy}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A run directory or a checkpoint is not what it should be.
    #[error("{}: {reason}", path.display())]
    Run {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A number is not finite any more.
    #[error(
        "{what} at step {step} (epoch {epoch}): training has diverged; lower optim.lr, set train.clip_norm, or check \
         the data; the last checkpoint is kept"
    )]
    Diverged {
        /// What is not finite.
        what: String,
        /// Optimiser step from 0.
        step: usize,
        /// Epoch from 0.
        epoch: usize,
    },
}

impl TrainError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Io { action: "read", path: path.into(), source, remedy: "check that it exists and may be read" }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        let remedy = "free space or choose another --out; what was saved before is intact";
        Self::Io { action: "write", path: path.into(), source, remedy }
    }

    pub(crate) fn run(path: &Path, reason: impl Into<String>) -> Self {
        Self::Run { path: path.into(), reason: reason.into() }
    }
}
