//! Damaged files of a complete pack, made again one by one.
//!
//! Every file is read and compared with the index. A shard that differs, or is gone, is made again from its rows' raw files
//! and put in its place if it is what the index says; nothing else is written. So the pack is afterwards the same in every
//! byte, or the raw files are not those that it was made from, which is an error.

use super::lock::Lock;
use super::plan::{Plan, check, fingerprint, stamped};
use super::read::read_index;
use super::shard::{Spool, put_checked};
use super::verify::sum;
use super::write::{PIECE, Row, WriteProgress, make, other_pack, table};
use super::{FileEntry, Index};
use crate::DataError;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What [`mend()`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Files of the pack, beside the index.
    pub files: usize,
    /// Those that were made again.
    pub made: Vec<String>,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// Reads a complete pack and makes its damaged files again; `plan` and `read` are those of [`write`](fn@super::write).
pub fn mend(
    dir: &Path,
    plan: &Plan,
    read: &(dyn Fn(usize, usize) -> Result<Option<Row>, DataError> + Sync),
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Mended, DataError> {
    let place = dir.display().to_string();
    check(&place, plan)?;
    if !dir.join("index.json").exists() {
        let rule = "there is no index.json: a pack that is not finished has nothing to mend";
        return Err(DataError::invalid(&place, rule, "prepare it first, without `--mend`"));
    }
    let (index, _) = read_index(dir)?;
    // The index may come from elsewhere: its stamp is a claim, its rows are those that are made.
    if index.preset != stamped(plan, &fingerprint(plan)) || index.ids != plan.ids {
        return Err(other_pack(&place));
    }
    let _lock = Lock::take(dir)?;
    let mut mended = Mended { files: index.shards.len() + 1, made: Vec::new(), stopped: false };
    let rows = plan.ids.len();
    let done = AtomicUsize::new(0);
    let tick = || {
        progress(WriteProgress { done: done.fetch_add(1, Ordering::Relaxed) + 1, rows });
    };
    for (entry, range) in ranges(&index) {
        if stop.load(Ordering::Relaxed) {
            mended.stopped = true;
            return Ok(mended);
        }
        if intact(dir, entry)? {
            range.for_each(|_| tick());
            continue;
        }
        let mut spool = Spool::new(dir, plan, &entry.file)?;
        for first in range.clone().step_by(PIECE) {
            let Some(piece) = make(plan, first..range.end.min(first + PIECE), read, &tick, stop)? else {
                mended.stopped = true;
                return Ok(mended);
            };
            spool.append(piece)?;
        }
        spool.finish(dir, plan, &entry.file, Some(&entry.sha256))?;
        mended.made.push(entry.file.clone());
    }
    if !intact(dir, &index.table)? {
        // How long rows are is written there alone, so every row has to be looked at again.
        let mut lengths: Vec<Vec<usize>> = vec![Vec::with_capacity(rows); plan.modalities.len()];
        for first in (0..rows).step_by(PIECE) {
            let Some(piece) = make(plan, first..rows.min(first + PIECE), read, &|| {}, stop)? else {
                mended.stopped = true;
                return Ok(mended);
            };
            for row in piece {
                lengths.iter_mut().zip(row).for_each(|(all, (_, length))| all.push(length));
            }
        }
        let (bytes, table) = (table(&place, plan, &lengths)?, &index.table);
        put_checked(dir, &table.file, table.rows, Some(&table.sha256), |to| to.write_all(&bytes))?;
        mended.made.push(index.table.file.clone());
    }
    Ok(mended)
}

/// The shards and their rows.
fn ranges(index: &Index) -> impl Iterator<Item = (&FileEntry, std::ops::Range<usize>)> {
    index.shards.iter().scan(0, |start, entry| {
        let range = *start..*start + entry.rows;
        *start = range.end;
        Some((entry, range))
    })
}

/// Whether a file is there and is what the index says.
pub(super) fn intact(dir: &Path, entry: &FileEntry) -> Result<bool, DataError> {
    let path = dir.join(&entry.file);
    let io = |source| DataError::Io { file: path.display().to_string(), source };
    match std::fs::metadata(&path) {
        Ok(about) if about.len() != entry.bytes => return Ok(false),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io(e)),
    }
    Ok(sum(&path).map_err(io)?.1 == entry.sha256)
}
