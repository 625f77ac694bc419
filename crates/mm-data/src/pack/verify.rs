//! Reading a pack from end to end.

use super::read::{Pack, read_index};
use crate::DataError;
use crate::dataset::hex;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// What [`verify`] has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: usize,
}

/// Reads every file of a pack and compares its checksum with the index; then opens it as training would.
pub fn verify(dir: &Path) -> Result<Verified, DataError> {
    let (index, _) = read_index(dir)?;
    let mut bytes = 0;
    for entry in index.shards.iter().chain([&index.table]) {
        let path = dir.join(&entry.file);
        let file = path.display().to_string();
        let (length, found) = sum(&path).map_err(|source| DataError::Io { file: file.clone(), source })?;
        bytes += length;
        if found != entry.sha256 {
            let rule = format!("has SHA-256 {found}, but the index says {}", entry.sha256);
            let remedy = "it was changed or damaged: fetch it again, or prepare the data again";
            return Err(DataError::invalid(&file, rule, remedy));
        }
    }
    let data = Pack::open(dir)?.dataset(&super::PackedConfig::new(dir))?;
    Ok(Verified { files: index.shards.len() + 1, bytes, rows: data.rows() })
}

/// Length and checksum of a file.
pub(super) fn sum(path: &Path) -> std::io::Result<(u64, String)> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut chunk = vec![0u8; 1 << 20];
    loop {
        let n = reader.read(&mut chunk)?;
        if n == 0 {
            return Ok((bytes, hex(&hasher.finalize())));
        }
        bytes += n as u64;
        hasher.update(&chunk[..n]);
    }
}
