//! Input that is wrong: a message with the place and the remedy, an exit code, no panic, and nothing lost.

use crate::support::{LONG, Place, Rows, Tensors, on_file};

/// Trains on a feature set and asserts how it fails.
#[track_caller]
fn features(bytes: &[u8], pieces: &[&str]) {
    let place = Place::new();
    place.file("set.safetensors", bytes);
    place.file("c.toml", on_file("features", "set.safetensors"));
    place.fails(&["train", "c.toml", "--out", "run"], 1, &[&["error: ", "set.safetensors"], pieces].concat());
    assert!(!place.path("run").exists());
}

#[track_caller]
fn csv(lines: &[String], pieces: &[&str]) {
    let place = Place::new();
    place.file("set.csv", lines.join("\n"));
    place.file("c.toml", on_file("csv", "set.csv"));
    place.fails(&["train", "c.toml", "--out", "run"], 1, &[&["error: ", "set.csv"], pieces].concat());
    assert!(!place.path("run").exists());
}

fn set() -> Tensors {
    Rows::new().tensors(0..90, true)
}

fn with(name: &str, values: &[i64]) -> Vec<u8> {
    let mut set = set();
    set.integers(name, values);
    set.bytes()
}

#[test]
fn empty_sets() {
    let mut empty = Tensors::default();
    empty.floats("x_a", 4, &[]);
    empty.integers("y", &[]);
    features(&empty.bytes(), &["no rows: the data set is empty", "give it rows"]);
    csv(&Rows::new().csv()[..1], &["the data set is empty", "at least one line"]);
    features(&with("train_index", &[]), &["train part is empty"]);
}

#[test]
fn labels() {
    let y = |row: usize, label: i64| {
        let mut y: Vec<i64> = (0..90).map(|i| i % 3).collect();
        y[row] = label;
        y
    };
    features(&with("y", &[0; 90]), &["1 class only", "at least 2 classes"]);
    features(&with("y", &y(7, 90)), &["row 7", "the label 90 is out of range", "without gaps"]);
    features(&with("y", &y(7, -1)), &["row 7", "the label -1 is negative", "from 0"]);
    features(&set().without("y").bytes(), &["no tensor `y`", "save the labels"]);
    let place = Place::new();
    place.file("set.safetensors", set().bytes());
    place.file("c.toml", on_file("features", "set.safetensors"));
    let args = ["train", "c.toml", "--out", "run", "--set", "data.classes=2"];
    place.fails(&args, 1, &["row 2", "the label 2 is out of range for 2 classes", "declare more `classes`"]);
}

#[test]
fn numbers() {
    let mut values: Vec<f32> = Rows::new().a.concat();
    values[4 * 11 + 2] = f32::NAN;
    let mut nan = set();
    nan.floats("x_a", 4, &values);
    features(&nan.bytes(), &["row 11, modality `a`, column 2", "NaN", "fill it in"]);
    values[4 * 11 + 2] = f32::INFINITY;
    nan.floats("x_a", 4, &values);
    features(&nan.bytes(), &["row 11, modality `a`, column 2", "finite", "repair"]);
    let mut lines = Rows::new().csv();
    lines[4] = lines[4].rsplit_once(',').unwrap().0.to_owned() + ",x1";
    csv(&lines, &["line 5, column `b_1`", "\"x1\" is not a number", "leave the cell empty"]);
}

#[test]
fn parts() {
    features(&with("test_index", &[88, 89, 90]), &["entry 2", "row 90, but there are 90 rows", "0 to 89"]);
    features(&with("test_index", &[88, -1]), &["entry 1", "row -1"]);
    features(&with("test_index", &[88, 3]), &["split of", "row 3", "train", "test"]);
    features(&with("val_index", &[88, 88]), &["split of", "row 88"]);
    let missing: Vec<f32> = Rows::new().b.iter().flat_map(|b| b.unwrap_or([0.0; 2])).collect();
    let gone = [vec![f32::NAN; 100], missing[100..].to_vec()].concat();
    let mut set = set();
    set.floats("x_b", 2, &gone);
    features(&set.bytes(), &["modality `b` is missing in every training row", "data.modalities"]);
}

#[test]
fn lines_with_too_few_or_too_many_cells() {
    let mut lines = Rows::new().csv();
    lines[3] = "r2,emu,train,1,2".into();
    csv(&lines, &["line 4, column `a:2`", "5 cells, but the header has 9", "fill the line up"]);
    lines[3] = "r2,dog, big,train,1,2,3,4,5,6".into();
    csv(&lines, &["line 4", "10 cells", "quote cells that contain commas"]);
}

#[test]
fn files_that_are_cut_or_lie() {
    let whole = set().bytes();
    features(&whole[..whole.len() - 40], &["truncated", "fetch it again"]);
    features(&whole[..100], &["the header claims", "truncated"]);
    features(b"", &["too few", "truncated"]);
    features(&u64::MAX.to_le_bytes(), &["claims 18446744073709551615 bytes"]);
    let header = br#"{"x_a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}"#;
    let mut lie = (header.len() as u64).to_le_bytes().to_vec();
    lie.extend_from_slice(header);
    lie.extend([0; 4]);
    features(&lie, &["contradicts itself", "make it again"]);
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let mut longer = whole.clone();
    longer[..8].copy_from_slice(&(length + 1_000_000).to_le_bytes());
    features(&longer, &["the header claims", "fetch it again"]);
}

#[test]
fn settings() {
    let place = Place::new();
    place.file("c.toml", LONG);
    for (set, pieces) in [
        ("train.batch_size=0", &["train.batch_size = 0", "[1, "][..]),
        ("train.batch_size=-4", &["train.batch_size = -4", "expected usize"]),
        ("optim.lr=0", &["optim.lr = 0", "above 0"]),
        ("optim.lr=nan", &["optim.lr = NaN", "above 0"]),
        ("optim.lr=-1", &["optim.lr = -1", "above 0"]),
        ("optim.lr=inf", &["optim.lr = inf", "finite"]),
        ("train.epochs=0", &["train.epochs = 0", "[1, "]),
        ("train.device=gpu", &["train.device = \"gpu\"", "allowed: cpu, cuda"]),
        ("train.device=cuda:x", &["train.device = \"cuda:x\"", "cuda:0"]),
        ("method.kind=ensemble", &["mm ensemble RUN RUN --out DIR"]),
        ("model.fusion={kind=\"gated\",gate=\"c\"}", &["model.fusion.gate = \"c\"", "allowed: a, b"]),
        ("train.epoch=3", &["train.epoch = 3", "did you mean `epochs`?"]),
        ("train.epochs", &["--set = \"train.epochs\"", "key.path=value"]),
        ("data.n_val=0", &["no validation rows", "ogm-test-select"]),
    ] {
        place.fails(&["train", "c.toml", "--out", "run", "--set", set], 2, &[&["error: "], pieces].concat());
    }
    assert!(!place.path("run").exists());
    assert!(!place.path("runs").exists());
}

#[test]
fn configuration_files() {
    let place = Place::new();
    place.fails(&["train", "none.toml"], 1, &["cannot read the configuration none.toml", "check the path"]);
    place.file("bad.toml", "name = \"x\"\n\n[data\n");
    place.fails(
        &["train", "bad.toml"],
        2,
        &["bad.toml: configuration = line 3: is not valid TOML", "fix it there"],
    );
    place.file("latin.toml", b"name = \"\xe9\"");
    place.fails(&["train", "latin.toml"], 1, &["latin.toml", "UTF-8"]);
    place.file("f.toml", on_file("features", "none.safetensors"));
    place.fails(&["train", "f.toml"], 1, &["cannot read none.safetensors", "check the path"]);
    place.fails(&["train"], 2, &["<CONFIG>"]);
    place.fails(&["trian"], 2, &["train"]);
}

#[test]
fn the_system_is_quoted_once() {
    let place = Place::new();
    place.file("f.toml", on_file("csv", "none.csv"));
    let output = place.run(&["train", "f.toml"]);
    let text = crate::support::stderr(&output);
    assert_eq!(text.matches("No such file").count(), 1, "{text}");
}

#[test]
fn predictions_of_wrong_files() {
    let place = Place::new();
    let rows = Rows::new();
    place.file("set.csv", rows.csv().join("\n"));
    place.file("c.toml", on_file("csv", "set.csv"));
    place.ok(&["train", "c.toml", "--out", "run", "-q", "--set", "train.epochs=1"]);
    let fails = |name: &str, bytes: &[u8], pieces: &[&str]| {
        place.file(name, bytes);
        place.fails(&["predict", "run", name], 1, &[&[name], pieces].concat());
    };
    fails("in.csv", b"id,a:0,a:1,a:2,a:3\nx,1,2,3\n", &["line 2", "4 cells, but the header has 5"]);
    fails("in.csv", b"id,a:0,a:1,a:2\nx,1,2,3\n", &["`a` has 3 features", "made for 4"]);
    fails("in.csv", b"id,c:0\nx,1\n", &["none of the modalities a, b", "at least one"]);
    fails("in.csv", b"id,a:0,a:1,a:2,a:3\nx,,,,\n", &["row 0 (id x)", "none of the modalities", "drop it"]);
    fails("in.csv", b"id,a:0,a:1,a:2,a:3\nx,1,,2,3\n", &["line 2", "`a`", "NaN"]);
    fails("in.csv", b"id,a:0,a:1,a:2,a:3\n", &["the data set is empty"]);
    fails("in.txt", b"x", &["ends in .safetensors or .csv"]);
    fails("in.safetensors", b"short", &["too few"]);
    place.fails(&["predict", "run", "none.csv"], 1, &["none.csv", "check the path"]);
    place.fails(&["predict", "nowhere", "in.csv"], 1, &["nowhere", "no finished model", "--resume"]);
    place.fails(&["predict", "run", "in.csv", "--format", "jsn"], 2, &["did you mean"]);
    place.fails(&["eval", "run", "--part", "tset"], 2, &["did you mean `test`?"]);
    std::fs::write(place.path("run/model/model.safetensors"), "short").unwrap();
    place.file("in.csv", rows.inputs_csv(0..3));
    place.fails(&["predict", "run", "in.csv"], 1, &["model.safetensors: is damaged"]);
}
