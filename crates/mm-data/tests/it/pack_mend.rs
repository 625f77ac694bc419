//! Damaged files of a pack are named, and made again alone.

use crate::support::says;
use mm_data::DataError;
use mm_data::pack::{
    Element, Mended, Plan, PlannedModality, Row, WriteProgress, Written, mend, verify, write,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const ROWS: usize = 10;

fn plan() -> Plan {
    let modality = |name: &str, dims: &[usize], ragged, element| PlannedModality {
        name: name.into(),
        dims: dims.to_vec(),
        ragged,
        frames: false,
        element,
    };
    Plan {
        name: "toy".into(),
        preset: serde_json::json!({ "version": 1 }),
        modalities: vec![
            modality("sound", &[0, 2], true, Element::F32),
            modality("face", &[3], false, Element::F16),
        ],
        classes: vec!["x".into(), "y".into()],
        ids: (0..ROWS).map(|row| format!("clip{row}")).collect(),
        labels: (0..ROWS).map(|row| (row % 2) as u32).collect(),
        columns: BTreeMap::new(),
        indices: BTreeMap::new(),
        rows_per_shard: 4,
    }
}

fn values(row: usize, m: usize) -> Option<Row> {
    let count = if m == 0 { 2 * (1 + row % 3) } else { 3 };
    (row % 5 != 4 || m == 0).then(|| Row::Floats((0..count).map(|i| (row * 8 + i) as f32).collect()))
}

/// Mends with rows that remember who was asked for.
fn mended(dir: &Path, change: f32) -> (Result<Mended, DataError>, BTreeSet<usize>) {
    let asked = Mutex::new(BTreeSet::new());
    let read = |row: usize, m: usize| {
        asked.lock().unwrap().insert(row);
        Ok(match values(row, m) {
            Some(Row::Floats(values)) => Some(Row::Floats(values.iter().map(|v| v + change).collect())),
            other => other,
        })
    };
    let result = mend(dir, &plan(), &read, &|_| {}, &AtomicBool::new(false));
    (result, asked.into_inner().unwrap())
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn flip(path: &Path, from_the_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - from_the_end;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn made() -> (tempfile::TempDir, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &plan(), &|row, m| Ok(values(row, m)), &|_| {}, &AtomicBool::new(false)).unwrap();
    let whole = files(dir.path());
    assert_eq!(whole.len(), 5, "three shards, a table, an index: {:?}", whole.keys());
    (dir, whole)
}

#[test]
fn one_flipped_byte_is_named_and_its_shard_made_again_alone() {
    let (dir, whole) = made();
    let (result, asked) = mended(dir.path(), 0.0);
    assert_eq!(result.unwrap(), Mended { files: 4, made: vec![], stopped: false });
    assert!(asked.is_empty(), "nothing is damaged, nothing is made");
    for from_the_end in [1, 17, whole["shard-00001.safetensors"].len()] {
        let shard = dir.path().join("shard-00001.safetensors");
        flip(&shard, from_the_end);
        says(
            &verify(dir.path()).unwrap_err(),
            &["shard-00001.safetensors", "has SHA-256", "but the index says"],
        );
        let before: BTreeMap<_, _> = ["shard-00000", "shard-00002"]
            .map(|name| {
                (
                    name,
                    std::fs::metadata(dir.path().join(format!("{name}.safetensors")))
                        .unwrap()
                        .modified()
                        .unwrap(),
                )
            })
            .into();
        let (result, asked) = mended(dir.path(), 0.0);
        assert_eq!(result.unwrap().made, ["shard-00001.safetensors"]);
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(files(dir.path()) == whole);
        for (name, time) in before {
            let now = std::fs::metadata(dir.path().join(format!("{name}.safetensors")))
                .unwrap()
                .modified()
                .unwrap();
            assert_eq!(now, time, "{name} was not touched");
        }
        verify(dir.path()).unwrap();
    }
}

#[test]
fn what_is_cut_or_gone_is_made_again_too() {
    let (dir, whole) = made();
    std::fs::remove_file(dir.path().join("shard-00002.safetensors")).unwrap();
    let shard = dir.path().join("shard-00000.safetensors");
    std::fs::write(&shard, &whole["shard-00000.safetensors"][..50]).unwrap();
    let (result, asked) = mended(dir.path(), 0.0);
    assert_eq!(result.unwrap().made, ["shard-00000.safetensors", "shard-00002.safetensors"]);
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 9]);
    assert!(files(dir.path()) == whole);
    // Lengths are in the table alone: all rows are looked at again.
    flip(&dir.path().join("table.safetensors"), 3);
    says(&verify(dir.path()).unwrap_err(), &["table.safetensors", "SHA-256"]);
    let (result, asked) = mended(dir.path(), 0.0);
    assert_eq!((result.unwrap().made, asked.len()), (vec!["table.safetensors".to_owned()], ROWS));
    assert!(files(dir.path()) == whole);
}

#[test]
fn raw_files_that_were_changed_are_no_remedy() {
    let (dir, whole) = made();
    flip(&dir.path().join("shard-00001.safetensors"), 1);
    let damaged = files(dir.path());
    let (result, _) = mended(dir.path(), 1.0);
    says(
        &result.unwrap_err(),
        &[
            "shard-00001.safetensors",
            "what its raw files give today is not what the index says",
            "another folder",
        ],
    );
    assert!(files(dir.path()) == damaged);
    let other = Plan { preset: serde_json::json!({ "version": 2 }), ..plan() };
    let error = mend(dir.path(), &other, &|row, m| Ok(values(row, m)), &|_| {}, &AtomicBool::new(false));
    says(&error.unwrap_err(), &["another preset"]);
    let stopped =
        mend(dir.path(), &plan(), &|row, m| Ok(values(row, m)), &|_| {}, &AtomicBool::new(true)).unwrap();
    assert!(stopped.stopped && stopped.made.is_empty() && files(dir.path()) == damaged);
    mended(dir.path(), 0.0).0.unwrap();
    assert!(files(dir.path()) == whole);
}

/// A call that stops when this many rows are done.
fn begun(dir: &Path, rows: usize) -> Written {
    let stop = AtomicBool::new(false);
    let halt = |p: WriteProgress| stop.store(p.done >= rows, Ordering::Relaxed);
    write(dir, &plan(), &|row, m| Ok(values(row, m)), &halt, &stop).unwrap()
}

#[test]
fn a_shard_that_was_damaged_before_the_index_was_written_is_made_again() {
    let (_, whole) = made();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(begun(dir.path(), 8), Written::Stopped { done: 8 });
    flip(&dir.path().join("shard-00000.safetensors"), 5);
    // What a killed call leaves of the file that it was writing.
    std::fs::write(dir.path().join(".tmp-abcdef"), "half a shard").unwrap();
    assert_eq!(begun(dir.path(), usize::MAX), Written::Done { made: 6 }, "the second shard was kept");
    assert!(files(dir.path()) == whole);
}

#[test]
fn what_a_call_left_that_was_killed_at_the_very_end_is_cleared_away() {
    let (dir, whole) = made();
    for name in ["shard-00001.safetensors.json", ".tmp-abcdef", ".lock"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert_eq!(begun(dir.path(), usize::MAX), Written::Done { made: 0 });
    assert!(files(dir.path()) == whole);
}

#[test]
fn two_calls_do_not_write_one_pack_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let inner = |row: usize, m: usize| {
        if row == 0 && m == 0 {
            let error =
                write(dir.path(), &plan(), &|row, m| Ok(values(row, m)), &|_| {}, &AtomicBool::new(false));
            says(&error.unwrap_err(), &["another process is preparing a pack in this folder", "wait for it"]);
        }
        Ok(values(row, m))
    };
    write(dir.path(), &plan(), &inner, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(files(dir.path()).len(), 5, "the lock is gone");
}

#[test]
fn an_index_of_other_rows_is_not_mended_by_them() {
    let (dir, _) = made();
    let path = dir.path().join("index.json");
    let text = std::fs::read_to_string(&path).unwrap();
    // One row more than the plan has, and the stamp of the plan.
    let longer = text
        .replace("\"rows\": 10", "\"rows\": 11")
        .replace("\"clip9\"", "\"clip9\",\"clip10\"")
        .replacen("\"rows\": 2,", "\"rows\": 3,", 1);
    assert_ne!(longer, text);
    std::fs::write(&path, longer).unwrap();
    flip(&dir.path().join("shard-00002.safetensors"), 1);
    let (result, asked) = mended(dir.path(), 0.0);
    says(&result.unwrap_err(), &["holds a pack of other rows or another preset"]);
    assert!(asked.is_empty());
}

#[test]
fn what_is_not_finished_is_not_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (result, _) = mended(dir.path(), 0.0);
    says(&result.unwrap_err(), &["there is no index.json", "not finished", "without `--mend`"]);
}
