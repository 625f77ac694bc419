//! Making a pack: shard after shard, each complete or not there.

use super::lock::Lock;
use super::plan::{Plan, check, fingerprint, stamped};
use super::shard::{Bytes, Spool, failed, put};
use super::{Element, FORMAT, FileEntry, Index, PackedModality};
use crate::DataError;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

/// How the names of files begin that are being written.
pub(super) const TEMPORARY: &str = ".tmp-";

/// The values of one row of one modality.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// Numbers, which are converted to the type of the modality. `U8` takes them from 0 to 1, `I16` from -1 to 1.
    Floats(Vec<f32>),
    /// Bytes, for `U8` alone.
    Bytes(Vec<u8>),
}

/// How far [`write()`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteProgress {
    /// Rows done, those of an earlier call counted in.
    pub done: usize,
    /// Rows in all.
    pub rows: usize,
}

/// How [`write()`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The pack is complete.
    Done {
        /// Rows that this call made; 0 if the pack was complete before.
        made: usize,
    },
    /// It was stopped, and the same call goes on where it was.
    Stopped {
        /// Rows in complete shards.
        done: usize,
    },
}

/// What is kept beside a complete shard until the index is written.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    plan: String,
    entry: FileEntry,
    /// By modality.
    lengths: Vec<Vec<usize>>,
}

/// Rows that are made before they are put aside; memory holds two such pieces.
pub(super) const PIECE: usize = 64;

/// Writes a pack into `dir`. `read` makes the values of a row and a modality, `None` where the row lacks it; it is called
/// by all threads, in no order. Errors are the first by row.
///
/// A pack that is there already, made by the same plan, is left as it is. One by another plan is refused.
pub fn write(
    dir: &Path,
    plan: &Plan,
    read: &(dyn Fn(usize, usize) -> Result<Option<Row>, DataError> + Sync),
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Written, DataError> {
    let place = dir.display().to_string();
    let rows = plan.ids.len();
    let fingerprint = fingerprint(plan);
    if is_complete(dir, plan)? {
        return Ok(Written::Done { made: 0 });
    }
    std::fs::create_dir_all(dir).map_err(|source| failed(&place, source))?;
    let lock = Lock::take(dir)?;
    // Whoever had the lock may have just finished.
    if has_index(dir, plan)? {
        return Ok(Written::Done { made: 0 });
    }
    sweep(dir, false);
    let mut complete = Complete {
        shards: Vec::new(),
        lengths: vec![Vec::with_capacity(rows); plan.modalities.len()],
        done: 0,
        made: 0,
    };
    let size = plan.rows_per_shard.max(1);
    let stopped = std::thread::scope(|scope| -> Result<bool, DataError> {
        // One shard is written while the rows of the next are made, piece by piece.
        let mut writing: Option<ScopedJoinHandle<'_, Result<Sidecar, DataError>>> = None;
        for (s, start) in (0..rows).step_by(size).enumerate() {
            let end = (start + size).min(rows);
            let file = format!("shard-{s:05}.safetensors");
            let sidecar = dir.join(format!("{file}.json"));
            if let Some(part) = earlier(&sidecar, &fingerprint, dir, &file) {
                complete.wait(&mut writing)?;
                complete.add(part);
            } else {
                let count = AtomicUsize::new(start);
                let tick = || {
                    let done = count.fetch_add(1, Ordering::Relaxed) + 1;
                    progress(WriteProgress { done, rows });
                };
                let name = file.clone();
                let mut spooling = scope.spawn(move || Spool::new(dir, plan, &name));
                for first in (start..end).step_by(PIECE) {
                    let piece = make(plan, first..end.min(first + PIECE), read, &tick, stop)?;
                    // No more than one piece is put aside while another is made.
                    let mut spool = joined(spooling)?;
                    let Some(piece) = piece else {
                        complete.wait(&mut writing)?;
                        return Ok(true);
                    };
                    spooling = scope.spawn(move || spool.append(piece).map(|()| spool));
                }
                complete.wait(&mut writing)?;
                complete.made += end - start;
                let fingerprint = &fingerprint;
                writing = Some(scope.spawn(move || {
                    let (entry, lengths) = joined(spooling)?.finish(dir, plan, &file, None)?;
                    let part = Sidecar { plan: fingerprint.clone(), entry, lengths };
                    let text = serde_json::to_vec(&part).unwrap_or_default();
                    put(dir, &format!("{file}.json"), 0, |to| to.write_all(&text))?;
                    Ok(part)
                }));
            }
            progress(WriteProgress { done: end, rows });
        }
        complete.wait(&mut writing)?;
        Ok(false)
    })?;
    let Complete { shards, lengths, done, made } = complete;
    if stopped {
        return Ok(Written::Stopped { done });
    }
    let table = {
        let bytes = table(&place, plan, &lengths)?;
        put(dir, "table.safetensors", rows, |to| to.write_all(&bytes))?
    };
    let modalities = plan.modalities.iter().zip(&lengths).map(|(m, lengths)| {
        let mut dims = m.dims.clone();
        if m.ragged
            && let Some(first) = dims.first_mut()
        {
            *first = lengths.iter().copied().max().unwrap_or(0).max(1);
        }
        PackedModality { name: m.name.clone(), dims, ragged: m.ragged, frames: m.frames, element: m.element }
    });
    let index = Index {
        format: FORMAT,
        name: plan.name.clone(),
        preset: stamped(plan, &fingerprint),
        rows,
        classes: plan.classes.clone(),
        modalities: modalities.collect(),
        shards: shards.clone(),
        table,
        ids: plan.ids.clone(),
    };
    let text = serde_json::to_vec_pretty(&index)
        .map_err(|e| DataError::invalid(&place, format!("the index cannot be written ({e})"), "see above"))?;
    put(dir, "index.json", 0, |to| to.write_all(&text))?;
    sweep(dir, true);
    drop(lock);
    Ok(Written::Done { made })
}

/// Whether the pack of this plan is there, complete; one of another plan, and a plan that no pack can follow, is refused.
pub(crate) fn is_complete(dir: &Path, plan: &Plan) -> Result<bool, DataError> {
    check(&dir.display().to_string(), plan)?;
    let complete = has_index(dir, plan)?;
    if complete {
        tidy(dir);
    }
    Ok(complete)
}

fn has_index(dir: &Path, plan: &Plan) -> Result<bool, DataError> {
    if !dir.join("index.json").exists() {
        return Ok(false);
    }
    let (index, _) = super::read::read_index(dir)?;
    if index.preset == stamped(plan, &fingerprint(plan)) {
        Ok(true)
    } else {
        Err(other_pack(&dir.display().to_string()))
    }
}

pub(super) fn other_pack(place: &str) -> DataError {
    let rule = "holds a pack of other rows or another preset";
    DataError::invalid(place, rule, "choose another folder, or delete this one")
}

/// Removes what nobody needs: files that a killed call was writing, and what stood beside shards of a pack that is complete.
fn sweep(dir: &Path, complete: bool) {
    for path in left_over(dir, complete) {
        // It stays where it cannot be removed, which harms nobody.
        let _ = std::fs::remove_file(path);
    }
}

fn left_over(dir: &Path, complete: bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let old = |name: &str| {
        let sidecar = name.strip_suffix(".json").is_some_and(|shard| shard.starts_with("shard-"));
        name.starts_with(TEMPORARY) || (complete && sidecar)
    };
    entries.filter(|entry| old(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

/// [`sweep`] for a pack whose last call was killed when its index was written already.
fn tidy(dir: &Path) {
    if (dir.join(".lock").exists() || !left_over(dir, true).is_empty())
        && let Ok(_lock) = Lock::take(dir)
    {
        sweep(dir, true);
    }
}

/// Shards that are on the disk.
struct Complete {
    shards: Vec<FileEntry>,
    /// By modality.
    lengths: Vec<Vec<usize>>,
    done: usize,
    made: usize,
}

impl Complete {
    fn add(&mut self, part: Sidecar) {
        for (all, own) in self.lengths.iter_mut().zip(&part.lengths) {
            all.extend(own);
        }
        self.done += part.entry.rows;
        self.shards.push(part.entry);
    }

    /// Waits for the shard that is being written, if one is.
    fn wait(
        &mut self,
        writing: &mut Option<ScopedJoinHandle<'_, Result<Sidecar, DataError>>>,
    ) -> Result<(), DataError> {
        if let Some(writing) = writing.take() {
            self.add(joined(writing)?);
        }
        Ok(())
    }
}

/// What a thread gave; a panic goes on here.
pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A shard that an earlier call completed, and that is still what it was.
fn earlier(sidecar: &Path, fingerprint: &str, dir: &Path, file: &str) -> Option<Sidecar> {
    let part: Sidecar = serde_json::from_slice(&std::fs::read(sidecar).ok()?).ok()?;
    let same = part.plan == fingerprint && part.entry.file == file;
    (same && super::mend::intact(dir, &part.entry).ok()?).then_some(part)
}

/// Some rows, of each what its modalities have; nothing where it was told to stop.
pub(super) fn make(
    plan: &Plan,
    rows: std::ops::Range<usize>,
    read: &(dyn Fn(usize, usize) -> Result<Option<Row>, DataError> + Sync),
    tick: &(dyn Fn() + Sync),
    stop: &AtomicBool,
) -> Result<Option<Vec<Vec<Bytes>>>, DataError> {
    let one = |row: usize| -> Result<Option<Vec<Bytes>>, DataError> {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let values = (0..plan.modalities.len()).map(|m| encode(plan, row, m, read(row, m)?));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        tick();
        Ok(Some(values))
    };
    // Every row is made before an error is reported, so that it is the first by row whatever thread was first.
    let made: Vec<Result<Option<Vec<Bytes>>, DataError>> = rows.into_par_iter().map(one).collect();
    made.into_iter().collect()
}

/// The bytes of a row and its length.
fn encode(plan: &Plan, row: usize, m: usize, values: Option<Row>) -> Result<Bytes, DataError> {
    let modality = &plan.modalities[m];
    let inner: usize = modality.dims.iter().skip(1).product();
    let first = modality.dims[0];
    let fault = |rule: String| {
        let place = format!("row {row} (`{}`), modality `{}`", plan.ids[row], modality.name);
        DataError::row(&plan.name, place, rule, "mend or leave out the clip")
    };
    let Some(values) = values else {
        let stored = if modality.ragged { 0 } else { first * inner * modality.element.size() };
        return Ok((vec![0; stored], 0));
    };
    let count = match &values {
        Row::Floats(values) => values.len(),
        Row::Bytes(values) => values.len(),
    };
    let fits =
        if modality.ragged { count > 0 && count.is_multiple_of(inner) } else { count == first * inner };
    if !fits {
        return Err(fault(format!("has {count} values, which are no rows of {:?}", modality.dims)));
    }
    let bytes = match values {
        Row::Bytes(bytes) if modality.element == Element::U8 => bytes,
        Row::Bytes(_) => return Err(fault("has bytes for values of another type".into())),
        Row::Floats(values) => {
            if let Some(value) = values.iter().find(|v| !v.is_finite()) {
                return Err(fault(format!("has the value {value}")));
            }
            match modality.element {
                Element::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Element::F16 => {
                    if let Some(value) = values.iter().find(|v| v.abs() > 65504.0) {
                        return Err(fault(format!("has the value {value}, too large for 16 bits")));
                    }
                    values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
                }
                Element::I16 => {
                    let round = |v: f32| (v * 32768.0).round_ties_even().clamp(-32768.0, 32767.0) as i16;
                    values.iter().flat_map(|&v| round(v).to_le_bytes()).collect()
                }
                Element::U8 => {
                    values.iter().map(|v| (v * 255.0).round_ties_even().clamp(0.0, 255.0) as u8).collect()
                }
            }
        }
    };
    Ok((bytes, count / inner))
}

/// Labels, lengths, columns and index lists.
pub(super) fn table(place: &str, plan: &Plan, lengths: &[Vec<usize>]) -> Result<Vec<u8>, DataError> {
    let integers = |name: String, values: &mut dyn Iterator<Item = i64>| {
        let data: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
        (name, Dtype::I64, vec![data.len() / 8], data)
    };
    let mut blocks = vec![integers("y".into(), &mut plan.labels.iter().map(|&y| i64::from(y)))];
    for (m, lengths) in plan.modalities.iter().zip(lengths) {
        let full = !m.ragged && lengths.iter().all(|&l| l == m.dims[0]);
        if !full {
            blocks.push(integers(format!("length_{}", m.name), &mut lengths.iter().map(|&l| l as i64)));
        }
    }
    for (name, values) in &plan.columns {
        blocks.push(integers(name.clone(), &mut values.iter().copied()));
    }
    for (name, rows) in &plan.indices {
        blocks.push(integers(name.clone(), &mut rows.iter().map(|&r| r as i64)));
    }
    serialize(place, &blocks)
}

fn serialize(place: &str, blocks: &[(String, Dtype, Vec<usize>, Vec<u8>)]) -> Result<Vec<u8>, DataError> {
    let fail = |e: safetensors::SafeTensorError| {
        DataError::invalid(place, format!("tensors cannot be written ({e})"), "report this as a fault")
    };
    let views: Result<Vec<_>, _> = blocks
        .iter()
        .map(|(name, dtype, shape, data)| Ok((name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect();
    safetensors::serialize(views.map_err(fail)?, None).map_err(fail)
}
