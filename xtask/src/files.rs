//! Files that are complete or not there.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file so that whoever looks sees the old content or the new one, never a part: a temporary name in the same
/// folder, synced, then renamed. The temporary file is removed when that fails.
pub(crate) fn write_atomic(path: &Path, content: &str) -> Result<()> {
    let temporary = temporary_name(path);
    let written = write_and_rename(&temporary, path, content);
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the error that matters is the one above
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_and_rename(temporary: &Path, path: &Path, content: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?; // the new name survives a power cut too
    }
    Ok(())
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_content_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("new/results.json");
        write_atomic(&path, "old").expect("writable");
        write_atomic(&path, "new").expect("writable");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "new");
        assert_eq!(fs::read_dir(folder.path().join("new")).expect("folder").count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_what_was_there() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).expect("writable"); // no file can be renamed over this folder
        let error = write_atomic(&path, "text").expect_err("a folder is in the way");
        assert!(error.to_string().contains("taken"), "{error}");
        assert!(path.join("inside").is_dir());
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1, "no temporary file is left");
    }
}
