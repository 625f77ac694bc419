use crate::support::{Entry, entries, floats, integers, matrix, says, vectors, with, write};
use mm_data::{DataConfig, DataError, Dataset, FeaturesConfig, Splits, load_inputs};
use safetensors::Dtype;
use std::path::Path;

fn load_with(path: &Path, change: impl FnOnce(&mut FeaturesConfig)) -> Result<(Dataset, Splits), DataError> {
    let mut config = FeaturesConfig::new(path);
    change(&mut config);
    DataConfig::Features(config).load(0)
}

fn load(all: &[Entry]) -> Result<(Dataset, Splits), DataError> {
    let folder = tempfile::tempdir().unwrap();
    load_with(&write(folder.path(), all, None), |_| {})
}

#[test]
fn a_set_with_missing_rows_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let nan = f32::NAN;
    let video = [0.5, nan, 1.5, 2.0, nan, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0];
    let mut all = with(floats("x_video", &[12, 1], &video));
    all.push(floats("oof_logits", &[12, 3], &[0.0; 36]));
    let mut flags = [1i64; 12];
    flags[3] = 0;
    all.push(integers("present_audio", &flags));
    let path = write(folder.path(), &all, Some("sad, calm,happy"));
    let config = DataConfig::Features(FeaturesConfig::new(&path));
    let summary = config.peek().unwrap();
    assert_eq!(summary.modalities, vectors(&[("audio", 2), ("video", 1)]));
    assert_eq!((summary.classes, summary.rows), (Some(3), Some(12)));
    let (data, splits) = config.load(0).unwrap();
    assert_eq!((data.name.as_str(), data.classes), ("set", 3));
    assert_eq!(data.class_names, ["sad", "calm", "happy"]);
    assert_eq!(data.labels, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let (audio, seen) = (matrix(&data, 0), matrix(&data, 1));
    assert_eq!((audio.row(2), audio.row(3)), (&[4.0, 5.0][..], &[0.0, 0.0][..]));
    assert!(audio.is_present(2) && !audio.is_present(3));
    assert_eq!(seen.present_count(), 10);
    for (row, value) in video.into_iter().enumerate() {
        assert_eq!(seen.row(row)[0], if value.is_nan() { 0.0 } else { value });
        assert_eq!(seen.is_present(row), !value.is_nan());
    }
    assert_eq!(data.columns["actor"][4], 1);
    assert_eq!(data.indices["test_index"], [8, 9, 10, 11]);
    assert_eq!(data.ignored, ["oof_logits"]);
    assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (8, 0, 4));
    assert_eq!(data.hash.len(), 64);
    assert_eq!(data.hash, config.load(1).unwrap().0.hash);
}

#[test]
fn modalities_can_be_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &entries(), None);
    let (data, _) = load_with(&path, |c| c.modalities = Some(vec!["video".to_owned()])).unwrap();
    assert_eq!(data.modalities.names(), ["video"]);
    assert_eq!(data.ignored, ["x_audio"]);
    let error = load_with(&path, |c| c.modalities = Some(vec!["vidoe".to_owned()])).unwrap_err();
    says(&error, &["data.modalities", "\"vidoe\"", "audio, video", "did you mean `video`?"]);
}

#[test]
fn every_number_type_is_read() {
    let half: Vec<u8> = [0x3c00u16; 12].iter().flat_map(|v| v.to_le_bytes()).collect();
    let brain: Vec<u8> = [0x3f80u16; 12].iter().flat_map(|v| v.to_le_bytes()).collect();
    let double: Vec<u8> = [1f64; 12].iter().flat_map(|v| v.to_le_bytes()).collect();
    for (dtype, bytes) in [(Dtype::F16, half), (Dtype::BF16, brain), (Dtype::F64, double)] {
        let (data, _) = load(&with(Entry { name: "x_video", dtype, shape: vec![12, 1], bytes })).unwrap();
        assert_eq!(matrix(&data, 1).values, [1.0; 12], "{dtype:?}");
    }
    let labels = [0u8, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2];
    for (dtype, width) in [
        (Dtype::U8, 1),
        (Dtype::I8, 1),
        (Dtype::U16, 2),
        (Dtype::I16, 2),
        (Dtype::U32, 4),
        (Dtype::I32, 4),
        (Dtype::U64, 8),
    ] {
        let widen = |&v: &u8| (0..width).map(move |i| if i == 0 { v } else { 0 });
        let bytes = labels.iter().flat_map(widen).collect();
        let (data, _) = load(&with(Entry { name: "y", dtype, shape: vec![12], bytes })).unwrap();
        assert_eq!(data.labels, labels.map(u32::from), "{dtype:?}");
    }
}

#[test]
fn labels_must_be_there_and_in_range() {
    let mut all = entries();
    all.retain(|e| e.name != "y");
    says(&load(&all).unwrap_err(), &["set.safetensors", "no tensor `y`", "x_audio", "save the labels"]);
    let mut y = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, -1];
    says(&load(&with(integers("y", &y))).unwrap_err(), &["row 11", "label -1 is negative", "from 0"]);
    y[11] = 500;
    says(&load(&with(integers("y", &y))).unwrap_err(), &["row 11", "label 500", "only 12 rows"]);
    y[11] = i64::MAX;
    says(&load(&with(integers("y", &y))).unwrap_err(), &["row 11", "out of range"]);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &entries(), None);
    let error = load_with(&path, |c| c.classes = Some(2)).unwrap_err();
    says(&error, &["set.safetensors", "row 2", "label 2", "2 classes", "0 to 1", "`classes`"]);
    says(&load(&with(integers("y", &[0; 12]))).unwrap_err(), &["1 class only", "at least 2"]);
    says(&load(&with(floats("y", &[12], &[0.0; 12]))).unwrap_err(), &["`y`", "not integers", "I64"]);
    says(&load(&with(integers("y", &[0, 1]))).unwrap_err(), &["`audio` has 12 rows", "2 labels"]);
}

#[test]
fn features_must_be_finite_tables_of_floats() {
    let nan = f32::NAN;
    let mut values = [1.0; 24];
    values[7] = nan;
    let error = load(&with(floats("x_audio", &[12, 2], &values))).unwrap_err();
    says(&error, &["set.safetensors", "row 3", "`audio`", "column 1", "NaN", "fill it in"]);
    values[7] = f32::NEG_INFINITY;
    says(&load(&with(floats("x_audio", &[12, 2], &values))).unwrap_err(), &["row 3", "-inf"]);
    let large: Vec<u8> = [1e300f64; 12].iter().flat_map(|v| v.to_le_bytes()).collect();
    let large = Entry { name: "x_video", dtype: Dtype::F64, shape: vec![12, 1], bytes: large };
    says(&load(&with(large)).unwrap_err(), &["row 0", "too large for 32-bit"]);
    let error = load(&with(floats("x_audio", &[12, 2, 1], &[0.0; 24]))).unwrap_err();
    says(&error, &["`x_audio`", "[12, 2, 1]", "flatten"]);
    says(&load(&with(integers("x_audio", &[0; 12]))).unwrap_err(), &["`x_audio`", "not floats"]);
    says(&load(&with(floats("x_audio", &[0, 2], &[]))).unwrap_err(), &["`x_audio`", "empty"]);
    says(&load(&with(floats("x_audio", &[12, 0], &[]))).unwrap_err(), &["`x_audio`", "no features"]);
    let none = [integers("y", &[0, 1])];
    says(&load(&none).unwrap_err(), &["no modality", "x_<modality>"]);
}

#[test]
fn flags_and_lists_are_checked() {
    says(&load(&with(integers("present_audio", &[1, 1]))).unwrap_err(), &["`present_audio`", "2 values"]);
    let mut flags = [1; 12];
    flags[5] = 2;
    says(&load(&with(integers("present_audio", &flags))).unwrap_err(), &["row 5", "flag is 2", "0 or 1"]);
    let error = load(&with(integers("train_index", &[0, 1, 12]))).unwrap_err();
    says(&error, &["set.safetensors", "entry 2", "`train_index`", "row 12", "12 rows", "0 to 11"]);
    let error = load(&with(integers("train_index", &[0, 1, -4]))).unwrap_err();
    says(&error, &["entry 2", "row -4"]);
    says(&load(&with(integers("train_index", &[7, 8]))).unwrap_err(), &["row 8", "both train and test"]);
}

#[test]
fn a_modality_that_training_lacks_is_named() {
    let nan = f32::NAN;
    let mut video = [nan; 12];
    video[9] = 1.0;
    let error = load(&with(floats("x_video", &[12, 1], &video))).unwrap_err();
    says(&error, &["set.safetensors", "`video` is missing in every training row", "data.modalities"]);
}

#[test]
fn inputs_for_prediction_need_no_labels() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = [("audio".to_owned(), 2), ("text".to_owned(), 5)];
    let all = [floats("x_audio", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), integers("id", &[70, 71])];
    let (inputs, ids) = load_inputs(write(folder.path(), &all, None), &wanted).unwrap();
    assert_eq!(ids, ["70", "71"]);
    assert_eq!(inputs.values()[0].row(1), [3.0, 4.0]);
    assert_eq!(inputs.values()[1].present, Some(vec![false, false]));
    assert_eq!(inputs.values()[1].values, [0.0; 10]);
    let wrong = [floats("x_audio", &[1, 3], &[1.0; 3])];
    let error = load_inputs(write(folder.path(), &wrong, None), &wanted).unwrap_err();
    says(&error, &["`audio` has 3 features", "made for 2"]);
    let other = [floats("x_depth", &[1, 3], &[1.0; 3])];
    let error = load_inputs(write(folder.path(), &other, None), &wanted).unwrap_err();
    says(&error, &["audio, text", "found: depth"]);
    let hollow = [floats("x_audio", &[2, 2], &[1.0, 2.0, f32::NAN, f32::NAN])];
    let error = load_inputs(write(folder.path(), &hollow, None), &wanted).unwrap_err();
    says(&error, &["row 1", "none of the modalities"]);
    says(&load_inputs("inputs.npz", &wanted).unwrap_err(), &["inputs.npz", ".safetensors or .csv"]);
}
