use crate::support::{matrix, says, vectors};
use mm_data::{CsvConfig, DataConfig, DataError, Dataset, Splits, load_inputs};
use std::path::PathBuf;

const GOOD: &str = "y,split,group,audio:a,audio:b,video_0,fold,file\n\
    happy,train,ann,1,2,0.5,0,a.wav\n\
    sad,train,bob,3,4,,0,b.wav\n\
    happy,val,cid,,,1.5,1,c.wav\n\
    sad,test,ann,5,6.5e1,2.5,1,d.wav\n";

fn file(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.csv");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn load(text: &str) -> Result<(Dataset, Splits), DataError> {
    let (_folder, path) = file(text.as_bytes());
    DataConfig::Csv(CsvConfig::new(path)).load(0)
}

#[test]
fn a_manifest_is_read() {
    let (_folder, path) = file(GOOD.as_bytes());
    let config = DataConfig::Csv(CsvConfig::new(path));
    let summary = config.peek().unwrap();
    assert_eq!(summary.modalities, vectors(&[("audio", 2), ("video", 1)]));
    assert_eq!((summary.classes, summary.rows), (None, None));
    let (data, splits) = config.load(0).unwrap();
    assert_eq!((data.classes, data.class_names.as_slice()), (2, &["happy".to_owned(), "sad".to_owned()][..]));
    assert_eq!(data.labels, [0, 1, 0, 1]);
    assert_eq!(matrix(&data, 0).row(3), [5.0, 65.0]);
    assert_eq!(matrix(&data, 0).present, Some(vec![true, true, false, true]));
    assert_eq!(matrix(&data, 1).present, Some(vec![true, false, true, true]));
    assert_eq!(data.columns["group"], [0, 1, 2, 0]);
    assert_eq!(data.columns["fold"], [0, 0, 1, 1]);
    assert_eq!(data.ignored, ["file"]);
    assert_eq!(splits, Splits { train: vec![0, 1], val: vec![2], test: vec![3] });
}

#[test]
fn line_ends_and_byte_order_mark_change_nothing() {
    let (plain, splits) = load(GOOD).unwrap();
    let dressed = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    let (other, other_splits) = load(&dressed).unwrap();
    assert_eq!((plain.inputs, plain.labels, plain.columns), (other.inputs, other.labels, other.columns));
    assert_eq!(splits, other_splits);
    let (_folder, path) = file(dressed.as_bytes());
    assert_eq!(DataConfig::Csv(CsvConfig::new(path)).peek().unwrap().modalities.len(), 2);
}

#[test]
fn too_few_and_too_many_cells() {
    let short = GOOD.replace("sad,train,bob,3,4,,0,b.wav", "sad,train,bob,3");
    says(&load(&short).unwrap_err(), &["set.csv", "line 3", "`audio:b`", "4 cells", "header has 8", "fill"]);
    let long = GOOD.replace("d.wav", "d.wav,9");
    says(&load(&long).unwrap_err(), &["set.csv", "line 5", "9 cells", "quote"]);
}

#[test]
fn cells_must_be_numbers() {
    let error = load(&GOOD.replace("6.5e1", "6,5e1").replace("5,6,5e1", "5,\"6,5\"")).unwrap_err();
    says(&error, &["set.csv", "line 5", "`audio:b`", "\"6,5\" is not a number", "leave the cell empty"]);
    let error = load(&GOOD.replace("1.5", "inf")).unwrap_err();
    says(&error, &["line 4", "`video`", "`video_0`", "inf"]);
    let error = load(&GOOD.replace("3,4,", "3,,")).unwrap_err();
    says(&error, &["line 3", "`audio`", "`audio:b`", "NaN", "fill it in"]);
}

#[test]
fn labels_are_names_or_integers() {
    let numbers = GOOD.replace("happy", "0").replace("sad", "2");
    assert_eq!(load(&numbers).unwrap().0.classes, 3);
    let mixed = GOOD.replacen("happy", "0", 1);
    says(&load(&mixed).unwrap_err(), &["line 3", "`y`", "\"sad\" is not an integer", "only"]);
    let negative = numbers.replacen("\n0,", "\n-1,", 1);
    says(&load(&negative).unwrap_err(), &["set.csv", "line 2", "`y`", "label -1 is negative"]);
    let empty = GOOD.replacen("\nsad,", "\n,", 1);
    says(&load(&empty).unwrap_err(), &["line 3", "`y`", "empty", "drop the line"]);
    says(&load(&GOOD.replace("sad", "happy")).unwrap_err(), &["1 class only"]);
    says(&load(&GOOD.replacen("y,", "label,", 1)).unwrap_err(), &["no column `y`", "add"]);
}

#[test]
fn the_table_must_be_whole() {
    says(&load("").unwrap_err(), &["set.csv", "empty", "header"]);
    says(&load("y,a:1\n").unwrap_err(), &["set.csv", "data set is empty", "at least one line"]);
    says(&load("y,text\n0,1\n").unwrap_err(), &["no modality", "<modality>:<anything>"]);
    says(&load("y,a:1,a:1\n0,1,1\n").unwrap_err(), &["line 1, column 3", "`a:1` appears twice"]);
    says(&load("y,,a:1\n0,1,1\n").unwrap_err(), &["line 1, column 2", "no name"]);
    says(
        &load(&GOOD.replace("val", "dev")).unwrap_err(),
        &["line 4", "`split`", "\"dev\"", "train, val or test"],
    );
    let (_folder, path) = file(b"y,a:1\n0,1\n\xff,2\n");
    let error = DataConfig::Csv(CsvConfig::new(path)).load(0).unwrap_err();
    says(&error, &["set.csv", "line 3", "not UTF-8"]);
    let error = DataConfig::Csv(CsvConfig::new("nowhere.csv")).load(0).unwrap_err();
    says(&error, &["cannot read nowhere.csv", "check the path"]);
}

#[test]
fn without_parts_a_share_can_be_asked_for() {
    let lines: Vec<String> = (0..20).map(|row| format!("{},{row}\n", row % 2)).collect();
    let text = format!("y,a:1\n{}", lines.concat());
    says(&load(&text).unwrap_err(), &["data.split.train", "no index list `train_index`", "test_fraction"]);
    let (_folder, path) = file(text.as_bytes());
    let mut config = CsvConfig::new(path);
    config.split.test_fraction = Some(0.2);
    config.split.val_fraction = Some(0.25);
    let (_, splits) = DataConfig::Csv(config).load(0).unwrap();
    assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (12, 4, 4));
}

#[test]
fn inputs_for_prediction() {
    let wanted = [("audio".to_owned(), 2), ("video".to_owned(), 1), ("text".to_owned(), 3)];
    let (_folder, path) = file(b"id,audio:a,audio:b,video_0\nfirst,1,2,\nsecond,,,7\n");
    let (inputs, ids) = load_inputs(&path, &wanted).unwrap();
    assert_eq!(ids, ["first", "second"]);
    assert_eq!(inputs.values()[0].values, [1.0, 2.0, 0.0, 0.0]);
    assert_eq!(inputs.values()[1].present, Some(vec![false, true]));
    assert_eq!(inputs.values()[2].present, Some(vec![false, false]));
    let (_folder, path) = file(b"audio:a,audio:b\n1,2\n,\n");
    says(&load_inputs(&path, &wanted).unwrap_err(), &["row 1", "none of the modalities"]);
    let (_folder, path) = file(b"depth:a\n1\n");
    says(&load_inputs(&path, &wanted).unwrap_err(), &["none of the modalities audio, video, text"]);
    let (_folder, path) = file(b"audio:a\n1\n");
    says(&load_inputs(&path, &wanted).unwrap_err(), &["`audio` has 1 features", "made for 2"]);
}
