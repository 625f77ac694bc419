//! Training on packs: rows of any shape and length, encoders by kind, weights to begin with, features made once.

use crate::support::{ONE_STEP, START, assert_same, done, essence, go, lines, parse};
use mm_core::{Multimodal as _, StepRng};
use mm_data::pack::{Element, Plan, PlannedModality, Row, write};
use mm_data::{DataConfig, PackedConfig};
use mm_encoders::PretrainedConfig;
use mm_encoders::weights::Source;
use mm_train::encode::{Encoding, encode};
use mm_train::predict::Predictor;
use mm_train::{Outcome, TrainError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const ROWS: usize = 60;

/// Two classes: `sound` (T x 4, 5 to 9 places) whose first number grows in time or falls, `face` (1 x 8 x 8 x 1) that is
/// bright on one side or the other, missing in every tenth row.
fn pack(dir: &Path) {
    let modality = |name: &str, dims: &[usize], ragged, frames, element| PlannedModality {
        name: name.into(),
        dims: dims.to_vec(),
        ragged,
        frames,
        element,
    };
    let part = |name: &str, rows: std::ops::Range<usize>| (format!("{name}_index"), rows.collect());
    let plan = Plan {
        name: "toy".into(),
        preset: serde_json::json!({ "made": "here" }),
        modalities: vec![
            modality("sound", &[0, 4], true, false, Element::F32),
            modality("face", &[1, 8, 8, 1], false, true, Element::U8),
        ],
        classes: vec!["up".into(), "down".into()],
        ids: (0..ROWS).map(|row| format!("clip{row}")).collect(),
        labels: (0..ROWS).map(|row| (row % 2) as u32).collect(),
        columns: BTreeMap::new(),
        indices: BTreeMap::from([part("train", 0..36), part("val", 36..48), part("test", 48..60)]),
        rows_per_shard: 16,
    };
    let values = |row: usize, m: usize| {
        let mut draws = StepRng::new(7).stream("toy").sample((2 * row + m) as u64).draws();
        let sign = if row.is_multiple_of(2) { 1.0 } else { -1.0 };
        Ok(Some(match m {
            0 => {
                let places = 5 + draws.below(5);
                let value = |i: usize| {
                    if i.is_multiple_of(4) { sign * (i / 4) as f32 } else { draws.normal() as f32 }
                };
                Row::Floats((0..4 * places).map(value).collect())
            }
            _ if row % 10 == 9 => return Ok(None),
            _ => {
                let bright = |i: usize| (i % 8 < 4) == (sign > 0.0);
                Row::Bytes(
                    (0..64).map(|i| draws.below(100) as u8 + if bright(i) { 120 } else { 0 }).collect(),
                )
            }
        }))
    };
    write(dir, &plan, &values, &|_| {}, &AtomicBool::new(false)).unwrap();
}

const CONFIG: &str = r#"
[data]
kind = "packed"
path = "PACK"
inputs.sound = { time_mask = 2, feature_mask = 1 }
inputs.face = { normalize = "all" }
[model]
encoders.sound = { kind = "conformer", dim = 8, layers = 1, heads = 2, kernel = 3 }
encoders.face = { kind = "resnet", channels = 1, init = "mlb" }
[optim]
lr = 0.05
[train]
epochs = 2
batch_size = 12
[method]
kind = "mlb"
"#;

fn config(dir: &Path, sets: &[&str]) -> mm_train::RunConfig {
    parse(&CONFIG.replace("PACK", dir.to_str().unwrap()), sets)
}

#[test]
fn sequences_and_images_train_stop_go_on_and_predict() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    let config = config(&place("pack"), &[]);
    let result = done(&config, &place("whole"), START);
    // A probe on the face tells the classes apart, and both encoders together learn.
    let probe = result.unimodal["face"].probe.unwrap();
    assert!(probe >= 0.9, "{probe}");
    let losses: Vec<f64> =
        lines(&place("whole"), "epoch").iter().map(|l| l["train_loss"].as_f64().unwrap()).collect();
    assert!(losses[1] < 0.9 * losses[0], "{losses:?}");
    assert_eq!(result.encoder, "conformer+resnet");

    // Stopped after every step and gone on with, augmentation included.
    let mut stops = 0;
    while !matches!(go(&config, &place("parts"), ONE_STEP).unwrap(), Outcome::Done(_)) {
        stops += 1;
        assert!(stops <= 10);
    }
    assert!(stops >= 5, "{stops}");
    assert_same(&essence(&place("whole")), &essence(&place("parts")));

    // Prediction from the pack is what the run itself decided on those rows, one by one or together.
    let predictor = Predictor::open(&place("whole")).unwrap();
    let all = predictor.predict_file(&place("pack")).unwrap();
    let file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place("whole").join("predictions.json")).unwrap()).unwrap();
    for (i, row) in (48..60).enumerate() {
        assert_eq!(all[row].id, format!("clip{row}"));
        assert_eq!(all[row].present.len(), if row % 10 == 9 { 1 } else { 2 });
        let class = file["predicted"][i].as_u64().unwrap() as usize;
        assert_eq!(all[row].class, predictor.classes()[class], "row {row}");
    }
    let error = predictor.predict_file(&place("rows.csv")).unwrap_err().to_string();
    assert!(error.contains("up to 9 x 4") && error.contains("folder of a pack"), "{error}");
}

#[test]
fn encoders_that_do_not_fit_the_rows_are_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    let refused = |sets: &[&str]| {
        let error = go(&config(&place("pack"), sets), &place("run"), START).unwrap_err();
        assert!(!place("run").exists());
        assert!(matches!(error, TrainError::Config(_) | TrainError::Data(_)), "{error:?}");
        error.to_string()
    };
    let error = refused(&["model.encoders.sound={kind=\"mlp\"}"]);
    let says = "model.encoders.sound.kind = \"mlp\": takes rows of d numbers, but those of `sound` are up to 9 x 4; \
                choose conformer, sequence";
    assert_eq!(error, says);
    let error = refused(&["model.encoders.face={kind=\"resnet\"}"]);
    assert_eq!(error, "model.encoders.face.channels = 3: must be 1: the rows of `face` are 8 x 8");
    assert!(refused(&["data.inputs.face={length=3}"]).contains("data.inputs.face.length = 3"));
    assert!(refused(&["data.inputs.sound={frames={}}"]).contains("are no frames"));
    assert!(refused(&["data.inputs.sond={}"]).contains("did you mean `sound`?"));
}

#[test]
fn a_run_begins_with_the_weights_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    done(&config(&place("pack"), &["train.epochs=1"]), &place("first"), START);
    let from =
        format!("model.weights.sound={{path={:?},prefix=\"encoder.sound\"}}", place("first").join("model"));
    let second = config(&place("pack"), &[&from, "optim.lr=1e-30", "train.epochs=1", "optim.weight_decay=0"]);
    let result = done(&second, &place("second"), START);
    assert_eq!(result.weights["sound"], Source::Folder { path: place("first").join("model") });
    let read = |run: &str| {
        let path = place(run).join("model/model.safetensors");
        mm_train::record::read_safetensors(&path).unwrap()
    };
    let (first, second) = (read("first"), read("second"));
    let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let name = "encoder.sound.layers.0.ff1.expand.weight";
    assert_eq!(values(&first[name]), values(&second[name]));
    assert_ne!(values(&first["encoder.face.conv1.weight"]), values(&second["encoder.face.conv1.weight"]));

    let refused =
        |set: &str| go(&config(&place("pack"), &[set]), &place("third"), START).unwrap_err().to_string();
    let wrong = from.replace("encoder.sound", "encoder.sund");
    assert!(refused(&wrong).contains("encoder.sound.layers.0"), "{}", refused(&wrong));
    let both = "model.weights.sound={path=\"x\",repo=\"y\"}".to_owned();
    let both = parse_error(&place("pack"), &both);
    assert!(both.starts_with("model.weights.sound.path"), "{both}");
}

fn parse_error(pack: &Path, set: &str) -> String {
    let text = CONFIG.replace("PACK", pack.to_str().unwrap());
    mm_train::RunConfig::parse(&text, &[set.to_owned()]).unwrap_err().to_string()
}

#[test]
fn features_made_once_are_those_that_the_encoder_gives() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    let run = config(&place("pack"), &["train.epochs=1", "data.standardize=false"]);
    done(&run, &place("run"), START);
    let plain = DataConfig::Packed(PackedConfig { standardize: false, ..PackedConfig::new(place("pack")) });
    let (data, _) = plain.load(0).unwrap();
    let encoding = Encoding {
        modality: "sound".into(),
        encoder: run.model.encoder("sound").clone(),
        weights: Some(PretrainedConfig {
            path: Some(place("run").join("model")),
            prefix: Some("encoder.sound".into()),
            ..PretrainedConfig::default()
        }),
        seed: 0,
        batch_size: 7,
        device: candle_core::Device::Cpu,
    };
    let out = place("features.safetensors");
    let done_rows = std::cell::Cell::new(0);
    let stop = AtomicBool::new(false);
    let made = encode(&data, &encoding, &out, &|row| done_rows.set(row), &stop).unwrap().unwrap();
    assert_eq!((made.rows, made.dim, done_rows.get()), (ROWS, 8, ROWS));
    assert_eq!(made.left_out, ["face"]);
    // Together or one at a time: the same features, for padding changes nothing.
    let alone = Encoding { batch_size: 1, ..encoding.clone() };
    encode(&data, &alone, &place("alone.safetensors"), &|_| {}, &stop).unwrap();
    let read = |name: &str| {
        let file = mm_train::record::read_safetensors(&place(name)).unwrap();
        file["x_sound"].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    for (a, b) in read("features.safetensors").iter().zip(read("alone.safetensors")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    // Of a run with standardised inputs: what its own encoder makes of its own data.
    let run = config(&place("pack"), &["train.epochs=1", "data.inputs={}"]);
    done(&run, &place("standardised"), START);
    let path = Some(place("standardised").join("model"));
    let weights =
        PretrainedConfig { path, prefix: Some("encoder.sound".into()), ..PretrainedConfig::default() };
    let (raw, _) = DataConfig::Packed(PackedConfig::new(place("pack"))).load(0).unwrap();
    let encoding = Encoding { weights: Some(weights), ..encoding };
    encode(&raw, &encoding, &place("standardised.safetensors"), &|_| {}, &stop).unwrap();
    let predictor = Predictor::open(&place("standardised")).unwrap();
    let prepared = run.data.prepare(run.seed).unwrap();
    let loader = mm_data::Loader::new(&prepared.dataset, (0..ROWS).collect(), ROWS).unwrap();
    let all: Vec<usize> = (0..ROWS).collect();
    let batch = loader.batch(&all, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let sound = prepared.dataset.modalities.find("sound").unwrap();
    let own = predictor.built().model.encode(sound, &batch, mm_core::Mode::Eval).unwrap();
    let own = own.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (a, b) in own.iter().zip(read("standardised.safetensors")) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    // The file is a feature set with the pack's parts.
    let features = DataConfig::Features(mm_data::FeaturesConfig::new(&out));
    let prepared = features.prepare(0).unwrap();
    assert_eq!((prepared.splits.test.len(), prepared.dataset.classes), (12, 2));
    assert_eq!(prepared.dataset.class_names, ["up", "down"]);

    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(encode(&data, &encoding, &place("never"), &|_| {}, &stop).unwrap().is_none());
    assert!(!place("never").exists());
}

#[test]
fn workers_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    let with = |workers: usize, prefetch: usize| {
        let sets = [format!("train.workers={workers}"), format!("train.prefetch={prefetch}")];
        config(&place("pack"), &[&sets[0], &sets[1]])
    };
    let files = ["metrics.jsonl", "model/model.safetensors", "predictions.json"];
    let bytes = |run: &str| files.map(|file| std::fs::read(place(run).join(file)).unwrap());
    done(&with(0, 2), &place("none"), START);
    let expected = bytes("none");
    for (workers, prefetch) in [(1, 1), (4, 3)] {
        let name = format!("{workers}-{prefetch}");
        done(&with(workers, prefetch), &place(&name), START);
        assert!(bytes(&name) == expected, "{workers} workers, {prefetch} ahead");
    }
    // Stopped after every step, while batches are made that nobody takes any more.
    while !matches!(go(&with(4, 8), &place("parts"), ONE_STEP).unwrap(), Outcome::Done(_)) {}
    assert!(bytes("parts") == expected);
    // What changes no number is left out of the record where it is the default.
    assert!(!with(0, 2).to_toml().unwrap().contains("workers"));
    assert!(with(3, 5).to_toml().unwrap().contains("workers = 3\nprefetch = 5"));
}

#[test]
fn a_row_that_cannot_be_read_is_an_error_of_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    pack(&place("pack"));
    // The last number of the first shard's `x_sound`, which is that of row 15.
    let shard = place("pack").join("shard-00000.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let length = u64::from_le_bytes(std::array::from_fn(|i| bytes[i])) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = 8 + length + header["x_sound"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[end - 4..end].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&shard, bytes).unwrap();
    let said = [0, 1, 4].map(|workers| {
        let config = config(&place("pack"), &["data.standardize=false", &format!("train.workers={workers}")]);
        let error = go(&config, &place(&format!("run{workers}")), START).unwrap_err().to_string();
        let steps = lines(&place(&format!("run{workers}")), "step").len();
        (error.lines().next().unwrap().to_owned(), steps)
    });
    assert!(said[0].0.contains("shard-00000.safetensors, row 15, modality `sound`"), "{}", said[0].0);
    assert!(said[0].0.contains("the value is NaN"), "{}", said[0].0);
    assert!(said.iter().all(|other| *other == said[0]), "{said:?}");
}
