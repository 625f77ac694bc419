//! Files of a run: nothing complete is ever lost, because everything is written to a temporary name, synced and renamed.
//!
//! ```text
//! RUN/config.toml       the complete configuration
//! RUN/env.json          versions, machine, dataset hash
//! RUN/metrics.jsonl     one line per step and per epoch; no times, so two runs with one seed are equal byte for byte
//! RUN/run.log           what happened when
//! RUN/ckpt/latest       name of the last complete checkpoint beside it
//! RUN/model/            the selected model: config.json, model.safetensors, preprocessor_config.json
//! RUN/predictions.json  ids, labels and predictions of the test part
//! RUN/result.json       the result; a run is done when it exists
//! RUN/.lock             held by the process that trains here
//! ```

use crate::error::TrainError;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Writes a file as a whole or not at all.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let fail = |e| TrainError::write(path, e);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(fail)?;
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    let file = file.persist(path).map_err(|e| fail(e.error))?;
    // A temporary file is private; what we leave behind has the usual permissions of a new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(fail)?;
    }
    drop(file);
    sync_dir(dir).map_err(fail)
}

/// Makes renames in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// The exclusive use of a run directory, given back when it is dropped or the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory, which is made if need be, or fails at once where another process has it.
    pub(crate) fn take(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join(".lock");
        let fail = |e| TrainError::write(&path, e);
        fs::create_dir_all(dir).map_err(fail)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let reason =
                    "another process is training in this directory; wait for it or choose another --out";
                Err(TrainError::run(dir, reason))
            }
            // A file system without locks is no reason not to train.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _file: file }),
        }
    }
}

/// Removes what a killed [`write_atomic`] left in a directory.
pub(crate) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Tensors as the bytes of a safetensors file with PyTorch's format tag.
pub fn safetensors_bytes(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<Vec<u8>, TrainError> {
    let host: BTreeMap<&str, Tensor> = tensors
        .iter()
        .map(|(name, t)| Ok((name.as_str(), t.detach().to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<candle_core::Result<_>>()?;
    #[allow(clippy::disallowed_types)] // safetensors asks for one; with a single entry it has no order
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(host.iter().map(|(n, t)| (*n, t)), Some(metadata))
        .map_err(|e| TrainError::run(path, format!("tensors cannot be written: {e}")))
}

/// Reads a safetensors file of ours.
pub fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let bytes = fs::read(path).map_err(|e| TrainError::read(path, e))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| {
        TrainError::run(path, format!("is damaged ({e}); restore it or start the run afresh with --fresh"))
    })?;
    Ok(tensors.into_iter().collect())
}

/// Reads a JSON file of ours.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let bytes = fs::read(path).map_err(|e| TrainError::read(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        TrainError::run(path, format!("is damaged ({e}); restore it or start the run afresh with --fresh"))
    })
}

/// Writes a value as pretty JSON, atomically.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), TrainError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| TrainError::run(path, e.to_string()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// The growing `metrics.jsonl`.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    written: u64,
}

impl Metrics {
    /// Opens the file and cuts it to `length` bytes: what a checkpoint knows of.
    pub fn open(path: &Path, length: u64) -> Result<Self, TrainError> {
        let fail = |e| TrainError::write(path, e);
        let mut file = File::options().create(true).truncate(false).write(true).open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        if found < length {
            let reason = format!(
                "holds {found} bytes, the checkpoint knows of {length}; start the run afresh with --fresh"
            );
            return Err(TrainError::run(path, reason));
        }
        file.set_len(length).map_err(fail)?;
        file.seek(SeekFrom::Start(length)).map_err(fail)?;
        Ok(Self { path: path.into(), file, buffer: Vec::with_capacity(1 << 16), written: length })
    }

    /// Adds a line.
    pub fn line(&mut self, value: &serde_json::Map<String, serde_json::Value>) -> Result<(), TrainError> {
        serde_json::to_writer(&mut self.buffer, value)
            .map_err(|e| TrainError::run(&self.path, e.to_string()))?;
        self.buffer.push(b'\n');
        if self.buffer.len() > 1 << 15 {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> Result<(), TrainError> {
        self.file.write_all(&self.buffer).map_err(|e| TrainError::write(&self.path, e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes everything durable and returns the length of the file.
    pub fn sync(&mut self) -> Result<u64, TrainError> {
        self.flush()?;
        self.file.sync_data().map_err(|e| TrainError::write(&self.path, e))?;
        Ok(self.written)
    }
}
