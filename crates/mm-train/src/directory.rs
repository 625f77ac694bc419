//! Whose a run's directory is: what may be replaced in it, and what is done already.

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::record::read_json;
use crate::result::RunResult;
use std::fs;
use std::path::Path;

/// What a run leaves in its directory, beside its lock.
const FILES: [&str; 8] = [
    "result.json",
    "config.toml",
    "env.json",
    "metrics.jsonl",
    "run.log",
    "predictions.json",
    "ckpt",
    "model",
];

/// Refuses a directory that holds files of these names which no run of ours has written: they would be replaced.
pub(crate) fn refuse_foreign(dir: &Path) -> Result<(), TrainError> {
    let foreign = FILES.iter().find(|name| dir.join(name).exists());
    match foreign {
        Some(name) if !dir.join(".lock").exists() => {
            let reason =
                format!("holds `{name}`, which is not of a run; choose an --out of its own for every run");
            Err(TrainError::run(dir, reason))
        }
        _ => Ok(()),
    }
}

/// Removes the files of an earlier run, and nothing else.
pub(crate) fn clear(dir: &Path) -> Result<(), TrainError> {
    for name in FILES {
        let path = dir.join(name);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(TrainError::write(&path, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Makes sure that the directory is free or belongs to this configuration; returns the result if the run is done.
pub(crate) fn claim(config: &RunConfig, dir: &Path, resume: bool) -> Result<Option<RunResult>, TrainError> {
    let text = config.to_toml()?;
    let path = dir.join("config.toml");
    match fs::read_to_string(&path) {
        Ok(found) if found == text => {
            let result = dir.join("result.json");
            if result.exists() {
                return read_json(&result).map(Some);
            }
            if !resume && dir.join("ckpt/latest").exists() {
                let reason = "holds an unfinished run of this configuration; add --resume to go on or --fresh to redo it";
                return Err(TrainError::run(dir, reason));
            }
            Ok(None)
        }
        Ok(_) => {
            let reason =
                "holds a run of another configuration; choose another --out or add --fresh to replace it";
            Err(TrainError::run(dir, reason))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TrainError::run(dir, format!("cannot be a run directory ({e}); choose another --out"))),
    }
}
