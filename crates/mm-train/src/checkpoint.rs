//! Checkpoints: everything that training needs to go on with the same bits, from any step.
//!
//! A checkpoint is a folder `ckpt/step-N` with `model.safetensors`, `best.safetensors` (the best model so far),
//! `state/optimizer.safetensors` and `state/trainer.json`. It is written under a temporary name, synced and renamed;
//! then the file `ckpt/latest` is replaced to name it, and only then is its predecessor removed. Whatever moment the
//! process dies at, `latest` names a complete checkpoint.

use crate::error::TrainError;
use crate::record::{read_json, read_safetensors, safetensors_bytes, sync_dir, write_atomic};
use candle_core::Tensor;
use mm_balance::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Where training stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch that comes next or is under way.
    pub epoch: usize,
    /// Batches of it that are done.
    pub batches: usize,
    /// Optimiser steps done.
    pub step: usize,
    /// Σ loss x rows of this epoch so far.
    pub loss_sum: f64,
    /// Rows of this epoch so far.
    pub loss_rows: usize,
    /// The best epoch so far.
    pub best: Option<Best>,
    /// Epochs since it.
    pub stale: usize,
    /// Whether training is over.
    pub finished: bool,
    /// Length of `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Steps of each parameter in the optimiser.
    pub optimizer_steps: Vec<u64>,
    /// The balancing methods' state.
    pub balance: State,
    /// Hash of the data it was trained on.
    pub dataset_hash: String,
}

/// The best epoch so far, by the selection part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Which epoch.
    pub epoch: usize,
    /// Accuracy on the selection part.
    pub accuracy: f64,
    /// Cross-entropy on the selection part.
    pub loss: f64,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where training stands.
    pub progress: Progress,
    /// Parameters and buffers.
    pub model: BTreeMap<String, Tensor>,
    /// The best model so far, from the end of the first epoch on.
    pub best: Option<BTreeMap<String, Tensor>>,
    /// Optimiser state.
    pub optimizer: BTreeMap<String, Tensor>,
}

/// Saves a checkpoint under `dir` and removes older ones.
pub fn save(dir: &Path, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    let name = format!("step-{:09}", checkpoint.progress.step);
    let target = dir.join(&name);
    let fail = |e| TrainError::write(&target, e);
    fs::create_dir_all(dir).map_err(fail)?;
    let temporary = tempfile::Builder::new().prefix(".tmp-").tempdir_in(dir).map_err(fail)?;
    let root = temporary.path();
    let tensors = |file: &str, map: &BTreeMap<String, Tensor>| -> Result<(), TrainError> {
        write_atomic(&root.join(file), &safetensors_bytes(map, &target)?).map_err(|e| retarget(e, &target))
    };
    tensors("model.safetensors", &checkpoint.model)?;
    if let Some(best) = &checkpoint.best {
        tensors("best.safetensors", best)?;
    }
    tensors("state/optimizer.safetensors", &checkpoint.optimizer)?;
    let progress =
        serde_json::to_vec(&checkpoint.progress).map_err(|e| TrainError::run(&target, e.to_string()))?;
    write_atomic(&root.join("state/trainer.json"), &progress).map_err(|e| retarget(e, &target))?;
    sync_dir(root).map_err(fail)?;
    if target.exists() {
        // The same step saved again (a finished epoch after a mid-epoch save): the old one stays valid until renamed.
        let old = dir.join(format!(".tmp-old-{name}"));
        let _ = fs::remove_dir_all(&old);
        fs::rename(&target, &old).map_err(fail)?;
        fs::rename(root, &target).map_err(fail)?;
        let _ = fs::remove_dir_all(&old);
    } else {
        fs::rename(root, &target).map_err(fail)?;
    }
    sync_dir(dir).map_err(fail)?;
    let _ = temporary.keep();
    write_atomic(&dir.join("latest"), name.as_bytes())?;
    for entry in fs::read_dir(dir).map_err(fail)?.flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file != name.as_str() && (file.starts_with("step-") || file.starts_with(".tmp-")) {
            // Left-overs take space but do no harm: failing to remove one is no reason to stop.
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Names the checkpoint instead of the temporary file in an error.
fn retarget(error: TrainError, target: &Path) -> TrainError {
    match error {
        TrainError::Io { source, .. } => TrainError::write(target, source),
        other => other,
    }
}

/// The latest checkpoint under `dir`, or `None` where there is none.
pub fn load(dir: &Path) -> Result<Option<Checkpoint>, TrainError> {
    let pointer = dir.join("latest");
    let name = match fs::read_to_string(&pointer) {
        Ok(name) => name,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(TrainError::read(&pointer, e)),
    };
    let name = name.trim();
    if !name.starts_with("step-") || name.contains(['/', '\\']) {
        return Err(TrainError::run(
            &pointer,
            format!("names {name:?}, which is no checkpoint; start the run afresh with --fresh"),
        ));
    }
    let mut root = dir.join(name);
    if !root.exists() {
        // Killed between the two renames of an overwrite.
        root = dir.join(format!(".tmp-old-{name}"));
    }
    let best = root.join("best.safetensors");
    Ok(Some(Checkpoint {
        progress: read_json(&root.join("state/trainer.json"))?,
        model: read_safetensors(&root.join("model.safetensors"))?,
        best: if best.exists() { Some(read_safetensors(&best)?) } else { None },
        optimizer: read_safetensors(&root.join("state/optimizer.safetensors"))?,
    }))
}
