//! Checkpoints from files and folders into a store: what is loaded, what is refused, and that it is all or nothing.

use candle_core::{DType, Device, Tensor};
use mm_core::{Init, ParamStore};
use mm_encoders::weights::{Matching, Source, Weights, WeightsError};
use std::path::Path;

/// A safetensors file of float32 tensors, written by hand.
pub(super) fn file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, numbers) in tensors {
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert((*name).to_owned(), info);
    }
    with_header(&serde_json::to_string(&header).unwrap(), &data)
}

pub(super) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A store of vectors of zeros.
pub(super) fn filled(params: &[(&str, usize)]) -> ParamStore {
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    for (name, len) in params {
        store.root().param(name, *len, Init::Const(0.0)).unwrap();
    }
    store
}

pub(super) fn values(store: &ParamStore, name: &str) -> Vec<f64> {
    let all = store.tensors();
    all[name].flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

pub(super) fn says(error: &WeightsError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[allow(clippy::unnecessary_wraps)] // the shape of a renaming
fn same(name: &str) -> Option<String> {
    Some(name.to_owned())
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

/// A folder with one file `model.safetensors`.
fn folder(tensors: &[(&str, &[usize], &[f32])]) -> (tempfile::TempDir, Weights) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model.safetensors", file(tensors));
    let weights = Weights::from_dir(dir.path()).unwrap();
    (dir, weights)
}

#[test]
fn every_type_of_float_is_converted_to_the_stores() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = [1.5f64, -0.007_812_5, 240.0];
    for from in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let path = dir.path().join("any.safetensors");
        let tensor = Tensor::new(&numbers, &Device::Cpu).unwrap().to_dtype(from).unwrap();
        tensor.save_safetensors("w", &path).unwrap();
        let weights = Weights::from_file(&path).unwrap();
        assert_eq!(weights.tensor("w").unwrap().dtype(), from);
        assert_eq!(weights.shape("w"), Some([3].as_slice()));
        for to in [DType::F32, DType::F64] {
            let mut store = ParamStore::new(0, to, &Device::Cpu);
            store.root().at("e").param("w", 3, Init::Const(0.0)).unwrap();
            let report = weights.load_into(&store, "e", same, Matching::Strict).unwrap();
            assert_eq!(report.loaded, ["e.w"]);
            assert_eq!(values(&store, "e.w"), numbers);
            assert_eq!(store.params()[0].var().dtype(), to);
        }
    }
    let path = dir.path().join("int.safetensors");
    Tensor::new(&[1i64, 2, 3], &Device::Cpu).unwrap().save_safetensors("w", &path).unwrap();
    let weights = Weights::from_file(&path).unwrap();
    says(&weights.tensor("w").unwrap_err(), &["`w` holds I64", "F32"]);
    let error = weights.load_into(&filled(&[("w", 3)]), "", same, Matching::Strict).unwrap_err();
    says(&error, &["1 of another shape or type: `w`: the model needs floats of [3], `w` has I64 [3]"]);
}

#[test]
fn parameters_and_buffers_under_the_prefix_are_loaded_and_nothing_else() {
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    for m in ["a", "ab"] {
        store.root().at("encoder").at(m).param("bn.weight", 1, Init::Const(7.0)).unwrap();
        store.root().at("encoder").at(m).buffer("bn.running_mean", 1, Init::Const(7.0)).unwrap();
    }
    let (dir, weights) = folder(&[
        ("net.bn.weight", &[1], &[1.0]),
        ("net.bn.running_mean", &[1], &[2.0]),
        ("net.bn.num_batches_tracked", &[1], &[3.0]),
        ("fc.weight", &[1], &[4.0]),
    ]);
    let rename = |name: &str| {
        let own = name.strip_prefix("net.")?;
        (!own.ends_with("num_batches_tracked")).then(|| own.to_owned())
    };
    let report = weights.load_into(&store, "encoder.a", rename, Matching::Strict).unwrap();
    assert_eq!(report.loaded, ["encoder.a.bn.running_mean", "encoder.a.bn.weight"]);
    assert_eq!(report.ignored, ["fc.weight", "net.bn.num_batches_tracked"]);
    assert_eq!(report.to_string(), "2 of 2 tensors loaded");
    assert_eq!(values(&store, "encoder.a.bn.weight"), [1.0]);
    assert_eq!(values(&store, "encoder.a.bn.running_mean"), [2.0]);
    assert_eq!(values(&store, "encoder.ab.bn.weight"), [7.0]);
    assert_eq!(weights.source(), &Source::Folder { path: dir.path().to_owned() });
    assert_eq!(weights.commit(), None);
    let error = weights.load_into(&store, "encoder.b", rename, Matching::Partial).unwrap_err();
    says(&error, &["no parameter under `encoder.b`", "did you mean `encoder.a`?"]);
}

#[test]
fn a_strict_load_lists_everything_that_does_not_fit_and_changes_nothing() {
    let names: Vec<String> = (0..13).map(|i| format!("e.layer{i:02}.weight")).collect();
    let mut params: Vec<(&str, usize)> = names.iter().map(|n| (n.as_str(), 2)).collect();
    params.extend([("e.good", 1), ("e.wide", 2)]);
    let store = filled(&params);
    let (_dir, weights) = folder(&[
        ("good", &[1], &[1.0]),
        ("wide", &[1, 2], &[1.0, 1.0]),
        ("layer00.wieght", &[2], &[1.0, 1.0]),
        ("head.bias", &[1], &[1.0]),
    ]);
    let error = weights.load_into(&store, "e", same, Matching::Strict).unwrap_err();
    says(
        &error,
        &[
            "does not fit the parameters under `e`",
            "13 missing from the checkpoint: `e.layer00.weight` (nearest: `layer00.wieght`)",
            "`e.layer09.weight`",
            " and 3 more",
            "2 not part of the model: `head.bias`, `layer00.wieght` (nearest: `e.layer00.weight`)",
            "1 of another shape or type: `e.wide`: the model needs floats of [2], `wide` has F32 [1, 2]",
            "Matching::Partial",
        ],
    );
    assert!(!error.to_string().contains("layer10"), "{error}");
    let WeightsError::Mismatch(all) = error else { panic!("another error") };
    assert_eq!((all.missing.len(), all.extra.len(), all.misshapen.len()), (13, 2, 1));
    assert_eq!(values(&store, "e.good"), [0.0]);

    let report = weights.load_into(&store, "e", same, Matching::Partial).unwrap();
    assert_eq!(report.loaded, ["e.good"]);
    assert_eq!(report.fresh, names);
    assert_eq!(report.left_over, ["head.bias", "layer00.wieght"]);
    assert_eq!(report.misshapen.len(), 1);
    assert_eq!(report.misshapen[0].needed, [2]);
    assert_eq!(report.misshapen[0].found, [1, 2]);
    assert_eq!(values(&store, "e.good"), [1.0]);
    assert_eq!(values(&store, "e.wide"), [0.0, 0.0]);
    let text = report.to_string();
    assert!(text.starts_with("1 of 15 tensors loaded; 13 as they were: `e.layer00.weight`"), "{text}");
    assert!(text.contains("2 left over: `head.bias`, `layer00.wieght`; 1 of another shape"), "{text}");
    let record = serde_json::to_value(&report).unwrap();
    assert_eq!(record["misshapen"][0]["tensor"], "wide");
}

#[test]
fn two_tensors_for_one_parameter_and_no_tensor_at_all_are_errors() {
    let (_dir, weights) = folder(&[("x", &[1], &[1.0]), ("y", &[1], &[2.0]), ("z", &[1], &[3.0])]);
    let store = filled(&[("e.w", 1), ("e.z", 1)]);
    let rename = |name: &str| Some(if name == "z" { "z" } else { "w" }.to_owned());
    for how in [Matching::Strict, Matching::Partial] {
        let error = weights.load_into(&store, "e", rename, how).unwrap_err();
        says(&error, &["1 named by several tensors: `e.w` from `x`, `y`"]);
        assert_eq!(values(&store, "e.z"), [0.0]);
    }
    let nowhere = |name: &str| Some(format!("model.{name}"));
    let error = weights.load_into(&store, "e", nowhere, Matching::Partial).unwrap_err();
    says(&error, &["2 missing", "3 not part of the model: `x`"]);
    says(&weights.tensor("q").unwrap_err(), &["no tensor `q` among 3"]);
}

#[test]
fn a_file_that_breaks_off_while_it_is_loaded_changes_nothing() {
    let (dir, weights) = folder(&[("a", &[1], &[1.0]), ("b", &[2], &[2.0, 3.0])]);
    let store = filled(&[("a", 1), ("b", 2)]);
    let path = dir.path().join("model.safetensors");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let error = weights.load_into(&store, "", same, Matching::Strict).unwrap_err();
    says(&error, &["model.safetensors", "tensor `b`, 8 bytes at", "cannot be read", "changed meanwhile"]);
    assert_eq!(values(&store, "a"), [0.0]);
}

const INDEX: &str = "model.safetensors.index.json";

fn sharded(map: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "s-1.safetensors", file(&[("a", &[1], &[1.0])]));
    put(dir.path(), "s-2.safetensors", file(&[("b", &[1], &[2.0])]));
    put(dir.path(), INDEX, format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#));
    dir
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = sharded(r#"{"a": "s-1.safetensors", "b": "s-2.safetensors"}"#);
    for weights in [Weights::from_dir(dir.path()), Weights::from_file(dir.path().join(INDEX))] {
        let weights = weights.unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
        let store = filled(&[("e.a", 1), ("e.b", 1)]);
        weights.load_into(&store, "e", same, Matching::Strict).unwrap();
        assert_eq!((values(&store, "e.a"), values(&store, "e.b")), (vec![1.0], vec![2.0]));
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let refused = |map: &str, words: &[&str]| {
        let dir = sharded(map);
        let error = Weights::from_dir(dir.path()).unwrap_err();
        says(&error, &[INDEX]);
        says(&error, words);
    };
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "s-3.safetensors", file(&[("a", &[1], &[9.0])]));
    let absolute = outside.path().join("s-3.safetensors").display().to_string();
    for shard in [
        absolute.as_str(),
        "../s-3.safetensors",
        "./s-1.safetensors",
        "x/s-1.safetensors",
        "",
        ".safetensors",
    ] {
        refused(&format!(r#"{{"a": "{shard}"}}"#), &["is not the plain name", "beside its index"]);
    }
    refused(r#"{"a": "C:\\s.safetensors"}"#, &["is not the plain name"]);
    refused(r#"{"a": "pytorch_model-00001-of-00002.bin"}"#, &["pickle", "python -c"]);
    refused(r#"{"a": "s-4.safetensors"}"#, &["there is no shard", "s-4.safetensors"]);
    refused(
        r#"{"a": "s-1.safetensors", "c": "s-1.safetensors"}"#,
        &["`s-1.safetensors` lacks tensor `c`", "fetch them again together"],
    );
    refused(
        r#"{"a": "s-1.safetensors", "c": "s-2.safetensors"}"#,
        &["holds tensor `b`, which the index has nowhere"],
    );
    refused(r#"{"a": "s-1.safetensors", "a": "s-2.safetensors"}"#, &["`a` appears twice"]);
    refused(r#"{"a": "s-1.safetensors"}, "weight_map": {}"#, &["`weight_map` appears twice"]);
    refused(r#"["a"]"#, &["not a valid index"]);
    let dir = sharded("{}");
    put(dir.path(), INDEX, "{}");
    says(&Weights::from_dir(dir.path()).unwrap_err(), &["no entry `weight_map`"]);
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_but_inside() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "m.safetensors", file(&[("a", &[1], &[1.0])]));
    put(outside.path(), "c.json", "{}");
    let escapes = |dir: &Path| {
        let error = Weights::from_dir(dir).unwrap_err();
        says(&error, &["link out of its folder", "m.safetensors", "Weights::from_file"]);
    };

    let dir = tempfile::tempdir().unwrap();
    symlink(outside.path().join("m.safetensors"), dir.path().join("model.safetensors")).unwrap();
    escapes(dir.path());
    // The same by hand is the caller's own decision.
    assert!(Weights::from_file(dir.path().join("model.safetensors")).is_ok());

    let dir = sharded(r#"{"a": "s-1.safetensors", "b": "s-2.safetensors"}"#);
    std::fs::remove_file(dir.path().join("s-1.safetensors")).unwrap();
    symlink(outside.path().join("m.safetensors"), dir.path().join("s-1.safetensors")).unwrap();
    escapes(dir.path());

    let (dir, weights) = folder(&[("a", &[1], &[1.0])]);
    symlink(outside.path().join("c.json"), dir.path().join("config.json")).unwrap();
    says(&weights.config().unwrap_err(), &["config.json", "link out of its folder"]);
    put(dir.path(), "real.json", "{}");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    symlink("real.json", dir.path().join("config.json")).unwrap();
    assert!(weights.config().is_ok());
}

#[test]
fn pickles_are_refused_by_name_and_by_contents() {
    let dir = tempfile::tempdir().unwrap();
    let convert = ["pickle", "never loaded", "python -c", "weights_only=True", "model.safetensors"];
    for name in ["pytorch_model.bin", "w.pt", "w.PTH", "w.ckpt"] {
        put(dir.path(), name, b"anything");
        says(&Weights::from_file(dir.path().join(name)).unwrap_err(), &convert);
    }
    says(&Weights::from_dir(dir.path()).unwrap_err(), &convert);
    for bytes in [b"PK\x03\x04\0\0\x08\x08rest".as_slice(), b"\x80\x02}q\0(X\x01\0\0\0a"] {
        put(dir.path(), "model.safetensors", bytes);
        says(&Weights::from_dir(dir.path()).unwrap_err(), &convert);
    }
}

#[test]
fn a_folder_without_a_checkpoint_says_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "weights.safetensors", file(&[("a", &[1], &[1.0])]));
    let error = Weights::from_dir(dir.path()).unwrap_err();
    says(&error, &["neither `model.safetensors` nor", "[weights.safetensors]", "Weights::from_file"]);
    says(
        &Weights::from_dir(dir.path().join("none")).unwrap_err(),
        &["cannot read", "none", "check the path"],
    );
    says(&Weights::from_file(dir.path()).unwrap_err(), &["not a regular file"]);
    says(&Weights::from_file(dir.path().join("none.safetensors")).unwrap_err(), &["cannot read"]);
}

#[test]
fn configurations_are_read_from_beside_the_weights() {
    let (dir, weights) = folder(&[("a", &[1], &[1.0])]);
    says(&weights.config().unwrap_err(), &["config.json", "no such file"]);
    assert_eq!(weights.preprocessor_config().unwrap(), None);
    put(dir.path(), "config.json", r#"{"hidden_size": 16}"#);
    put(dir.path(), "preprocessor_config.json", r#"{"sampling_rate": 16000}"#);
    assert_eq!(weights.config().unwrap()["hidden_size"], 16);
    assert_eq!(weights.preprocessor_config().unwrap().unwrap()["sampling_rate"], 16000);
    let alone = Weights::from_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(alone.config().unwrap()["hidden_size"], 16);
    for (text, rule) in [("{", "not valid JSON"), ("[1]", "not a JSON object"), ("\u{1}", "not valid JSON")] {
        put(dir.path(), "config.json", text);
        says(&weights.config().unwrap_err(), &["config.json", rule]);
    }
    put(dir.path(), "config.json", b"\xff\xfe");
    says(&weights.config().unwrap_err(), &["not UTF-8"]);
    put(dir.path(), "config.json", vec![b' '; 10_000_001]);
    says(&weights.config().unwrap_err(), &["more than the allowed 10000000 bytes"]);
}
