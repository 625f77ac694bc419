//! A trained part of a model as a folder that other libraries load.

use super::error::{Result, WeightsError};
use super::load::targets;
use candle_core::{Device, Tensor};
use mm_core::ParamStore;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes `config.json`, `model.safetensors` and the model card `README.md` to the folder `dir`.
///
/// The parameters and buffers under `prefix` are saved in the store's type under the names that `rename_back` gives for
/// their names below the prefix; `None` leaves one out. The metadata say `{"format": "pt"}`, as loaders of PyTorch want.
///
/// The folder is there whole or not at all, whenever the process stops: it is written and synced under a temporary name
/// beside `dir`, then renamed. So `dir` must not exist yet, or be empty.
pub fn save_folder(
    dir: impl AsRef<Path>,
    store: &ParamStore,
    prefix: &str,
    rename_back: impl Fn(&str) -> Option<String>,
    config: &serde_json::Value,
    card: &str,
) -> Result<()> {
    let dir = dir.as_ref();
    let file = dir.display().to_string();
    let tensors = renamed(&file, store, prefix, &rename_back)?;
    if !config.is_object() {
        let rule = "the configuration is not a JSON object";
        return Err(WeightsError::invalid(&file, rule, "give a map of the model's settings"));
    }
    let mut text = serde_json::to_vec_pretty(config)
        .map_err(|e| WeightsError::invalid(&file, format!("the configuration: {e}"), "give plain JSON"))?;
    text.push(b'\n');
    refuse_filled(dir, &file)?;

    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(WeightsError::io("make", parent))?;
    let scratch = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempdir_in(parent)
        .map_err(WeightsError::io("write to", parent))?;
    write(&scratch.path().join("config.json"), &text)?;
    write(&scratch.path().join("README.md"), card.as_bytes())?;
    let path = scratch.path().join(super::folder::MODEL);
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    safetensors::serialize_to_file(&tensors, Some(metadata), &path).map_err(|e| {
        WeightsError::invalid(&file, format!("the tensors: {e}"), "check the space on the disk")
    })?;
    sync(&path)?;
    permit(&path, 0o644)?;
    permit(scratch.path(), 0o755)?;
    sync_folder(scratch.path())?;
    // An empty folder may stand in the way, which not every system replaces.
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(WeightsError::io("replace", dir)(e));
        }
        _ => {}
    }
    fs::rename(scratch.path(), dir).map_err(WeightsError::io("write", dir))?;
    sync_folder(parent)
}

fn renamed(
    file: &str,
    store: &ParamStore,
    prefix: &str,
    rename_back: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, var) in targets(store, prefix) {
        let own = name.strip_prefix(prefix).unwrap_or(name);
        let Some(theirs) = rename_back(own.strip_prefix('.').unwrap_or(own)) else { continue };
        let value = var.as_tensor().to_device(&Device::Cpu)?.contiguous()?;
        if tensors.insert(theirs.clone(), value).is_some() {
            let rule = format!("two parameters are renamed to `{theirs}`, one of them `{name}`");
            return Err(WeightsError::invalid(file, rule, "give each its own name"));
        }
    }
    if tensors.is_empty() {
        let rule = format!("there is nothing to save under `{prefix}`");
        return Err(WeightsError::invalid(file, rule, "check the prefix and the renaming"));
    }
    Ok(tensors)
}

fn refuse_filled(dir: &Path, file: &str) -> Result<()> {
    match fs::read_dir(dir).map(Iterator::count) {
        Ok(0) => Ok(()),
        Ok(_) => {
            let rule = "the folder is not empty";
            Err(WeightsError::invalid(file, rule, "give a new folder, or remove this one first"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(WeightsError::io("write", dir)(e)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = WeightsError::io("write", path);
    let mut file = File::create(path).map_err(&fail)?;
    file.write_all(bytes).map_err(&fail)?;
    file.sync_all().map_err(fail)
}

pub(super) fn sync(path: &Path) -> Result<()> {
    File::options().write(true).open(path).and_then(|f| f.sync_all()).map_err(WeightsError::io("write", path))
}

/// Makes renames in a folder durable.
pub(super) fn sync_folder(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(dir).and_then(|f| f.sync_all()).map_err(WeightsError::io("write", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// Temporary files are private; what stays has the usual permissions.
fn permit(path: &Path, mode: u32) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).map_err(WeightsError::io("write", path))?;
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
    Ok(())
}
