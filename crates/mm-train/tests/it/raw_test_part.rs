//! From raw files to a trained model, twice: the second time every file and every label of the test part is another one.
//! Nothing that training writes may differ.

use crate::support::{START, done, lines, parse};
use mm_core::StepRng;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::pack::Written;
use mm_data::prepare::{Recipe, Source, prepare};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const TRAIN: Range<usize> = 0..36;
const VAL: Range<usize> = 36..48;
const TEST: Range<usize> = 48..60;

const RECIPE: &str = r#"{ "inputs": {
    "wav": { "sound": { "front_end": { "kind": "stft", "n_fft": 16, "hop": 40, "input": { "rate": 4000 } } } },
    "png": { "image": { "channels": 1 } } } }"#;

const CONFIG: &str = r#"
[data]
kind = "packed"
path = "PACK"
inputs.wav = { normalize = "feature" }
inputs.png = { normalize = "all" }
[model]
encoders.wav = { kind = "conformer", dim = 8, layers = 1, heads = 2, kernel = 3 }
encoders.png = { kind = "resnet", channels = 1, init = "mlb" }
[optim]
lr = 0.05
[train]
epochs = 4
batch_size = 12
patience = 1
[method]
kind = "mlb"
"#;

/// Two classes, told by the pitch of a short sound and by the bright side of a picture; `other` rows have other files and
/// other labels.
fn raw(dir: &Path, other: Range<usize>) {
    std::fs::create_dir_all(dir).unwrap();
    let mut manifest = "id,label,split,wav,png\n".to_owned();
    for row in 0..TEST.end {
        let changed = other.contains(&row);
        let mut draws = StepRng::new(11 + u64::from(changed)).stream("raw").sample(row as u64).draws();
        // Every third row shows the other class, so accuracies are no constant.
        let class = (row + usize::from(changed)) % 2;
        let shown = if draws.below(3) == 0 { 1 - class } else { class };
        let loud = if changed { 0.9 } else { 0.1 };
        let pitch = if shown == 0 { 0.3 } else { 0.9 };
        let wave = |t: usize| (loud * ((t as f64 * pitch).sin() + 0.3 * draws.normal())) as f32;
        let samples: Vec<f32> = (0..300 + 40 * (row % 3)).map(wave).collect();
        Clip { samples, rate: 4000 }.write(dir.join(format!("{row}.wav"))).unwrap();
        let bright = if changed { 250 } else { 150 };
        let pixel = |i: usize| {
            draws.below(100) as u8 / 2 + if (i % 8 < 4) == (shown == 0) { bright / 2 + 60 } else { 0 }
        };
        let pixels = (0..64).map(pixel).collect();
        Frame::new(8, 8, 1, pixels).unwrap().write_png(&dir.join(format!("{row}.png"))).unwrap();
        let part = if TRAIN.contains(&row) {
            "train"
        } else if VAL.contains(&row) {
            "val"
        } else {
            "test"
        };
        writeln!(manifest, "clip{row},{},{part},{row}.wav,{row}.png", ["low", "high"][class]).unwrap();
    }
    std::fs::write(dir.join("manifest.csv"), manifest).unwrap();
}

/// Everything that training writes and that later choices rest on.
struct Trained {
    model: Vec<u8>,
    metrics: Vec<u8>,
    statistics: Vec<u8>,
    selected: usize,
    epochs: usize,
    val: serde_json::Value,
    test: serde_json::Value,
    hash: String,
}

fn trained(place: &Path, other: Range<usize>) -> Trained {
    let at = |part: &str| place.join(format!("{part}-{}-{}", other.start, other.end));
    raw(&at("raw"), other.clone());
    let recipe: Recipe = serde_json::from_str(RECIPE).unwrap();
    let stop = AtomicBool::new(false);
    let written = prepare(Source::Manifest, &at("raw"), &recipe, &at("pack"), &|_| {}, &stop).unwrap();
    assert_eq!(written, Written::Done { made: TEST.end });
    let config = parse(&CONFIG.replace("PACK", at("pack").to_str().unwrap()), &[]);
    let result = done(&config, &at("run"), START);
    assert_eq!(lines(&at("run"), "epoch").len(), result.epochs);
    let read = |name: &str| std::fs::read(at("run").join(name)).unwrap();
    Trained {
        model: read("model/model.safetensors"),
        metrics: read("metrics.jsonl"),
        statistics: read("model/preprocessor_config.json"),
        selected: result.selected_epoch,
        epochs: result.epochs,
        val: serde_json::to_value(&result.val).unwrap(),
        test: serde_json::to_value(&result.test).unwrap(),
        hash: result.dataset.hash,
    }
}

#[test]
fn no_file_of_the_test_part_reaches_training() {
    let folder = tempfile::tempdir().unwrap();
    let first = trained(folder.path(), 0..0);
    let second = trained(folder.path(), TEST);
    assert!(first.metrics == second.metrics, "every line of every step and epoch");
    assert!(first.model == second.model, "the bytes of the selected model");
    assert!(first.statistics == second.statistics, "means and deviations");
    assert_eq!(
        (first.selected, first.epochs),
        (second.selected, second.epochs),
        "selection and early stopping"
    );
    assert_eq!(first.val, second.val);
    // The test part is another one, and is reported as such.
    assert_ne!(first.test, second.test);
    assert_ne!(first.hash, second.hash);
    // The other parts do have a say, so that the comparison is none of constants.
    let train = trained(folder.path(), 0..2);
    assert!(
        train.model != first.model && train.metrics != first.metrics && train.statistics != first.statistics
    );
    let val = trained(folder.path(), VAL);
    assert!(val.metrics != first.metrics && val.statistics == first.statistics);
}
