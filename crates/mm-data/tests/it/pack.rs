//! Packs: what is written is read, lies are found, a killed call goes on.

use crate::support::says;
use candle_core::{DType, Device};
use mm_core::{RowShape, StepRng};
use mm_data::pack::{
    Element, Normalize, PackedInputConfig, Pad, Plan, PlannedModality, Row, Written, verify, write,
};
use mm_data::{DataConfig, DataError, Loader, PackedConfig, SplitConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const ROWS: usize = 10;

/// Ten rows: `audio` (T x 2) of 1 to 5 places, missing in row 3; `seen` (2 x 2) in bytes; `wave` (4) in 16 bits.
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
        preset: serde_json::json!({ "audio": { "kind": "log-mel", "version": 1 } }),
        modalities: vec![
            modality("audio", &[0, 2], true, Element::F32),
            modality("seen", &[2, 2], false, Element::U8),
            modality("wave", &[4], false, Element::I16),
        ],
        classes: vec!["calm".into(), "angry".into()],
        ids: (0..ROWS).map(|row| format!("clip{row}")).collect(),
        labels: (0..ROWS).map(|row| (row % 2) as u32).collect(),
        columns: BTreeMap::from([("actor".to_owned(), (0..ROWS).map(|row| row as i64 / 2).collect())]),
        indices: BTreeMap::from([
            ("train_index".to_owned(), (0..6).collect()),
            ("val_index".to_owned(), vec![6, 7]),
            ("test_index".to_owned(), vec![8, 9]),
        ]),
        rows_per_shard: 4,
    }
}

fn audio(row: usize) -> Vec<f32> {
    (0..2 * (1 + row % 5)).map(|i| row as f32 + 0.25 * i as f32).collect()
}

#[allow(clippy::unnecessary_wraps)] // what `write` takes
fn values(row: usize, m: usize) -> Result<Option<Row>, DataError> {
    Ok(match m {
        0 if row == 3 => None,
        0 => Some(Row::Floats(audio(row))),
        1 => Some(Row::Bytes((0..4).map(|i| (row * 20 + i) as u8).collect())),
        _ => Some(Row::Floats(vec![0.5, -1.0, row as f32 / 32768.0, 1.0])),
    })
}

fn make(dir: &Path) -> Written {
    write(dir, &plan(), &values, &|_| {}, &AtomicBool::new(false)).unwrap()
}

fn config(dir: &Path) -> PackedConfig {
    PackedConfig { standardize: false, ..PackedConfig::new(dir) }
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(make(dir.path()), Written::Done { made: ROWS });
    assert_eq!(make(dir.path()), Written::Done { made: 0 });
    let read = verify(dir.path()).unwrap();
    assert_eq!((read.files, read.rows), (4, ROWS));

    let config = DataConfig::Packed(config(dir.path()));
    let shapes = config.peek().unwrap().modalities;
    assert_eq!(shapes[0].1, RowShape::ragged([5, 2]));
    assert_eq!(shapes[1].1, RowShape::fixed([2, 2]));
    let prepared = config.prepare(0).unwrap();
    let data = &prepared.dataset;
    assert_eq!(
        (data.ids[9].as_str(), data.class_names[1].as_str(), data.columns["actor"][9]),
        ("clip9", "angry", 4)
    );
    assert_eq!(prepared.splits.test, [8, 9]);
    assert!(!data.columns.contains_key("length_audio"));

    let loader = Loader::new(data, (0..ROWS).collect(), 3).unwrap();
    let batch = loader.batch(&[1, 3, 7], DType::F32, &Device::Cpu).unwrap();
    assert_eq!(batch.lengths.values()[0].as_deref(), Some(&[2, 0, 3][..]));
    assert_eq!(batch.lengths.values()[1], None);
    assert_eq!(batch.present.values()[0].as_ref().unwrap().rows(), [true, false, true]);
    assert!(batch.present.values()[1].is_none());
    let x = batch.inputs.values()[0].to_vec3::<f32>().unwrap();
    assert_eq!(x[0].concat(), [1.0, 1.25, 1.5, 1.75, 0.0, 0.0]);
    assert_eq!(x[1].concat(), [0.0; 6]);
    assert_eq!(x[2].concat(), audio(7));
    let x = batch.inputs.values()[1].to_vec3::<f32>().unwrap();
    assert_eq!(x[2].concat(), [140.0, 141.0, 142.0, 143.0].map(|v: f32| v / 255.0));
    let x = batch.inputs.values()[2].to_vec2::<f32>().unwrap();
    assert_eq!(x[2], [0.5, -1.0, 7.0 / 32768.0, 32767.0 / 32768.0]);
}

#[test]
fn statistics_are_those_of_the_training_rows() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let train = [0usize, 1, 2, 4, 5];
    let all: Vec<[f64; 2]> = train
        .iter()
        .flat_map(|&row| audio(row).chunks(2).map(|c| [f64::from(c[0]), f64::from(c[1])]).collect::<Vec<_>>())
        .collect();
    let count = all.len() as f64;
    let mean = [0, 1].map(|i| all.iter().map(|x| x[i]).sum::<f64>() / count);
    let std = [0, 1].map(|i| (all.iter().map(|x| (x[i] - mean[i]).powi(2)).sum::<f64>() / count).sqrt());
    let split = SplitConfig::default();
    let config =
        PackedConfig { split, modalities: Some(vec!["audio".into()]), ..PackedConfig::new(dir.path()) };
    let prepared = DataConfig::Packed(config).prepare(0).unwrap();
    let loader = Loader::new(&prepared.dataset, vec![7], 1).unwrap();
    let x =
        loader.batch(&[7], DType::F32, &Device::Cpu).unwrap().inputs.values()[0].to_vec3::<f32>().unwrap();
    for (found, raw) in x[0].iter().zip(audio(7).chunks(2)) {
        for i in 0..2 {
            let expected = ((f64::from(raw[i]) - mean[i]) / std[i]) as f32;
            assert!((found[i] - expected).abs() < 1e-6, "{} {expected}", found[i]);
        }
    }
}

#[test]
fn rows_can_be_cut_filled_and_normalised_alone() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let input = |length, pad, normalize| {
        let input =
            PackedInputConfig { length: Some(length), pad, normalize, ..PackedInputConfig::default() };
        let inputs = BTreeMap::from([("audio".to_owned(), input)]);
        let modalities = Some(vec!["audio".to_owned()]);
        PackedConfig {
            inputs,
            modalities,
            standardize: normalize != Normalize::None,
            ..PackedConfig::new(dir.path())
        }
    };
    let batch = |config: PackedConfig, row: usize, key: Option<StepRng>| {
        let prepared = DataConfig::Packed(config).prepare(0).unwrap();
        assert!(!prepared.dataset.shapes()[0].1.ragged);
        let loader = Loader::new(&prepared.dataset, vec![row], 1).unwrap();
        let batch = match key {
            Some(key) => loader.training_batch(&[row], key, DType::F32, &Device::Cpu).unwrap(),
            None => loader.batch(&[row], DType::F32, &Device::Cpu).unwrap(),
        };
        assert!(batch.lengths.values()[0].is_none());
        batch.inputs.values()[0].to_vec3::<f32>().unwrap()[0].concat()
    };
    // Row 4 has 5 places: the middle 3 are places 1 to 3.
    assert_eq!(batch(input(3, Pad::Zeros, Normalize::None), 4, None), audio(4)[2..8]);
    assert_eq!(batch(input(3, Pad::Tile, Normalize::None), 1, None), [1.0, 1.25, 1.5, 1.75, 1.0, 1.25]);
    assert_eq!(batch(input(3, Pad::Zeros, Normalize::None), 1, None), [1.0, 1.25, 1.5, 1.75, 0.0, 0.0]);
    let alone = batch(input(2, Pad::Zeros, Normalize::Row), 1, None);
    assert!((alone.iter().sum::<f32>()).abs() < 1e-6);
    assert!((alone.iter().map(|v| v * v).sum::<f32>() / 4.0 - 1.0).abs() < 1e-6);
    // Cuts of training lie anywhere, the same for the same key.
    let mut starts = BTreeMap::new();
    for epoch in 0..60 {
        let key = StepRng::new(5).stream("augment").epoch(epoch);
        let cut = batch(input(3, Pad::Zeros, Normalize::None), 4, Some(key));
        assert_eq!(cut, batch(input(3, Pad::Zeros, Normalize::None), 4, Some(key)));
        let start = audio(4).windows(6).step_by(2).position(|w| w == cut).unwrap();
        *starts.entry(start).or_insert(0) += 1;
    }
    assert_eq!(starts.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert!(starts.values().all(|&n| n >= 8), "{starts:?}");
}

#[test]
fn spans_are_hidden_in_training_alone() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let input = PackedInputConfig {
        normalize: Normalize::None,
        time_mask: Some(2),
        feature_mask: Some(1),
        ..PackedInputConfig::default()
    };
    let inputs = BTreeMap::from([("audio".to_owned(), input)]);
    let config = PackedConfig { inputs, ..config(dir.path()) };
    let prepared = DataConfig::Packed(config).prepare(0).unwrap();
    let loader = Loader::new(&prepared.dataset, vec![4], 1).unwrap();
    let plain = loader.batch(&[4], DType::F32, &Device::Cpu).unwrap();
    assert_eq!(plain.inputs.values()[0].to_vec3::<f32>().unwrap()[0].concat(), audio(4));
    let mut hidden = [0usize; 2];
    for epoch in 0..100 {
        let key = StepRng::new(1).epoch(epoch);
        let x = loader.training_batch(&[4], key, DType::F32, &Device::Cpu).unwrap();
        let x = x.inputs.values()[0].to_vec3::<f32>().unwrap().remove(0);
        let rows: Vec<usize> = (0..5).filter(|&t| x[t] == [0.0; 2]).collect();
        assert!(rows.len() <= 2 && rows.windows(2).all(|w| w[1] == w[0] + 1), "{rows:?}");
        let columns = (0..2).filter(|&j| x.iter().all(|place| place[j] == 0.0)).count();
        assert!(columns <= 1);
        hidden[0] += rows.len();
        hidden[1] += columns;
    }
    // 0, 1 or 2 places with equal probability, and 0 or 1 column.
    assert!((80..=120).contains(&hidden[0]) && (35..=65).contains(&hidden[1]), "{hidden:?}");
}

#[test]
fn a_stopped_call_goes_on_and_ends_with_the_same_bytes() {
    let (whole, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(whole.path());
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut ends = 0;
    loop {
        let counted = |row: usize, m: usize| {
            calls.fetch_add(usize::from(m == 0), Ordering::Relaxed);
            values(row, m)
        };
        let halt = |p: mm_data::pack::WriteProgress| {
            stop.store(p.done == 4 * (ends + 1) && p.done < ROWS, Ordering::Relaxed);
        };
        stop.store(false, Ordering::Relaxed);
        match write(dir.path(), &plan(), &counted, &halt, &stop).unwrap() {
            Written::Stopped { done } => {
                ends += 1;
                assert_eq!(done, 4 * ends);
                assert!(!dir.path().join("index.json").exists());
                let error = DataConfig::Packed(config(dir.path())).peek().unwrap_err().to_string();
                assert!(error.contains("not finished") && error.contains("mm data prepare"), "{error}");
            }
            Written::Done { .. } => break,
        }
        assert!(ends < 5);
    }
    assert_eq!((ends, calls.load(Ordering::Relaxed)), (2, ROWS));
    let names = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), names(whole.path()));
    for name in names(dir.path()) {
        assert_eq!(
            std::fs::read(dir.path().join(&name)).unwrap(),
            std::fs::read(whole.path().join(&name)).unwrap()
        );
    }
    // Another plan does not go on there.
    let other = Plan { preset: serde_json::json!({ "version": 2 }), ..plan() };
    let error = write(dir.path(), &other, &values, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("another preset") && error.contains("choose another folder"), "{error}");
}

#[test]
fn damage_is_named() {
    let fresh = || {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        dir
    };
    let error = |dir: &Path| DataConfig::Packed(config(dir)).load(0).unwrap_err().to_string();

    let dir = fresh();
    let shard = dir.path().join("shard-00001.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let found = verify(dir.path()).unwrap_err().to_string();
    assert!(found.contains("shard-00001") && found.contains("SHA-256"), "{found}");
    std::fs::write(&shard, &bytes[..bytes.len() - 3]).unwrap();
    assert!(error(dir.path()).contains("the index says"), "{}", error(dir.path()));

    let dir = fresh();
    std::fs::copy(dir.path().join("shard-00000.safetensors"), dir.path().join("shard-00001.safetensors"))
        .unwrap();
    assert!(error(dir.path()).contains("shard-00001.safetensors"), "{}", error(dir.path()));

    let dir = fresh();
    let index = std::fs::read_to_string(dir.path().join("index.json")).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(index.contains(from), "{from}");
        std::fs::write(dir.path().join("index.json"), index.replace(from, to)).unwrap();
        error(dir.path())
    };
    assert!(edit("shard-00000.safetensors", "../../etc/passwd").contains("no plain name"));
    assert!(edit("\"rows\": 10", "\"rows\": 11").contains("11 rows"));
    assert!(edit("\"format\": 1", "\"format\": 9").contains("format 9"));
    assert!(edit("\"F32\"", "\"F64\"").contains("unknown variant"));
    std::fs::write(dir.path().join("index.json"), &index[..200]).unwrap();
    assert!(error(dir.path()).contains("not the index of a pack"));

    let values = |_: usize, m: usize| Ok(Some(Row::Floats(vec![0.5; if m == 0 { 3 } else { 4 }])));
    let dir = tempfile::tempdir().unwrap();
    let found =
        write(dir.path(), &plan(), &values, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(found.contains("row 0 (`clip0`), modality `audio`") && found.contains("3 values"), "{found}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |input: PackedInputConfig| {
        let inputs = BTreeMap::from([("audio".to_owned(), input)]);
        DataConfig::Packed(PackedConfig { inputs, ..PackedConfig::new("x") }).check().unwrap_err().to_string()
    };
    let zero = PackedInputConfig { length: Some(0), ..PackedInputConfig::default() };
    assert!(refused(zero).starts_with("data.inputs.audio.length = 0: must be at least 1"));
    let tile = PackedInputConfig { pad: Pad::Tile, ..PackedInputConfig::default() };
    assert!(refused(tile).starts_with("data.inputs.audio.pad = \"tile\": goes with `length`"));
}

/// The plan changed, and the error that it is refused with.
#[track_caller]
fn refused(change: impl FnOnce(&mut Plan), pieces: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan();
    change(&mut plan);
    let error = write(dir.path(), &plan, &values, &|_| {}, &AtomicBool::new(false)).unwrap_err();
    says(&error, pieces);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is begun");
}

#[test]
fn names_and_sizes_that_no_pack_can_have_are_refused_before_anything_is_written() {
    refused(|p| p.modalities[1].name = "audio".into(), &["the modality `audio` is named twice"]);
    refused(|p| p.modalities[1].name.clear(), &["the modality `` is named twice, or has no name"]);
    for name in ["y", "x_audio", "present_audio", "length_audio", "length_", "__metadata__", ""] {
        let column = |p: &mut Plan| drop(p.columns.insert(name.to_owned(), vec![0; ROWS]));
        refused(column, &["the column `", name, "has a reserved name"]);
    }
    let column = |p: &mut Plan| drop(p.columns.insert("row_index".to_owned(), vec![0; ROWS]));
    refused(column, &["the column `row_index` is called like a list of rows"]);
    refused(|p| drop(p.indices.insert("rest".into(), vec![1])), &["`rest` does not end in `_index`"]);
    refused(|p| drop(p.indices.insert("x_index".into(), vec![1])), &["`x_index` has a reserved name"]);
    let beyond = |p: &mut Plan| drop(p.indices.insert("rest_index".into(), vec![ROWS]));
    refused(beyond, &["`rest_index` names row 10, the last is 9"]);
    for dims in [vec![1 << 40, 1 << 40], vec![(1 << 29) + 1], vec![usize::MAX, 2]] {
        let m = 1;
        refused(
            |p| (p.modalities[m].dims, p.modalities[m].element) = (dims, Element::F32),
            &["modality `seen`", "bytes"],
        );
    }
}

#[test]
fn a_length_that_memory_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let with = |length| {
        let mut config = config(dir.path());
        let audio = PackedInputConfig { length: Some(length), ..PackedInputConfig::default() };
        config.inputs.insert("audio".into(), audio);
        DataConfig::Packed(config).prepare(0)
    };
    says(&with(usize::MAX).unwrap_err(), &["data.inputs.audio.length", "must be at most 268435456"]);
    // A row may have that length; a batch of many does not fit and says so.
    let prepared = with(1 << 28).unwrap();
    let loader = Loader::new(&prepared.dataset, vec![0; 1 << 20], 1 << 20).unwrap();
    let error = loader.batch(&vec![0; 1 << 20], DType::F32, &Device::Cpu).unwrap_err();
    says(&error, &["modality `audio`", "memory has no place", "train.batch_size"]);
}
